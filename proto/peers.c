/* SPDX-License-Identifier: Apache-2.0
 * What befalls the connections of a ROUTER; declared in wire.h. ZeroMQ tells of a connection that
 * it ended and not why: a peer that left and one that was cut off for a frame over the limit look
 * the same. So a second descriptor of each connection is kept: when its peer has not closed it and
 * bytes are left in it, it was ended here, for what it sent. That keeps the connection open until
 * the news is read, which is to be often. Of a long frame no more may have come than was read: the
 * rest is waited for, a moment and not often, as from a peer that fell silent nothing comes.
 *
 * ZeroMQ's descriptor is closed, and its number used anew, when the news of the end is read: a
 * number is only looked at while no such news is in what was read (`gone`). */
#include "config.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "proto/watch.h"
#include "proto/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROUTER_EVENTS                                                                              \
	(ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL)
#define DESCRIPTORS_MAX 65536 /* a higher one has no copy */
#define REST_MS 50            /* for the rest of a frame */
#define REST_EVERY_MS 1000    /* at most so often */

/* By the number of ZeroMQ's descriptor. */
struct peer {
	int copy;      /* of it; -1: none */
	uint64_t gone; /* number of the newest news that it was closed; 0: none was read */
};

struct news {
	int event;
	uint32_t value;
};

struct wire_peers {
	struct wire_watch *watch;
	struct peer *peer;
	size_t peers;
	struct news *news; /* read, from `next` on not given yet */
	size_t next, count, room;
	uint64_t read;     /* in all */
	bool broke;        /* it was told why the next that goes does */
	bool going;        /* one was ended here: that it went comes next */
	int64_t wait_from_ms; /* no rest of a frame is waited for before */
	char from[64], text[96];
};

int wire_router_watch(void *context, void *router, struct wire_peers **out, struct err *e)
{
	struct wire_peers *p = xcalloc(1, sizeof *p);
	int rc = wire_watch_open(context, router, ROUTER_EVENTS, &p->watch, e);

	if (rc == 0)
		*out = p;
	else
		wire_peers_close(p);
	return rc;
}

void wire_peers_close(struct wire_peers *p)
{
	if (!p)
		return;
	for (size_t i = 0; i < p->peers; i++)
		if (p->peer[i].copy >= 0)
			close(p->peer[i].copy);
	wire_watch_close(p->watch);
	xfree(p->peer);
	xfree(p->news);
	xfree(p);
}

static struct peer *peer_of(struct wire_peers *p, uint32_t fd)
{
	if (fd >= DESCRIPTORS_MAX)
		return NULL;
	if (fd >= p->peers) {
		p->peer = xrealloc(p->peer, fd + 1, sizeof *p->peer);
		while (p->peers <= fd)
			p->peer[p->peers++] = (struct peer){ .copy = -1 };
	}
	return &p->peer[fd];
}

static void read_news(struct wire_peers *p)
{
	struct news n = { 0, 0 };

	p->next = p->count = 0;
	while ((n.event = wire_watch_event(p->watch, &n.value)) >= 0) {
		struct peer *of = n.event == ZMQ_EVENT_DISCONNECTED ? peer_of(p, n.value) : NULL;

		p->read++;
		if (of)
			of->gone = p->read;
		if (p->count == p->room) {
			p->room = p->room ? 2 * p->room : 64;
			p->news = xrealloc(p->news, p->room, sizeof *p->news);
		}
		p->news[p->count++] = n;
	}
}

static void drop_copy(struct peer *of)
{
	if (of && of->copy >= 0)
		close(of->copy);
	if (of)
		of->copy = -1;
}

static void came(struct wire_peers *p, uint32_t fd, uint64_t number)
{
	struct peer *of = peer_of(p, fd);

	drop_copy(of);
	if (of && of->gone < number)
		of->copy = fcntl((int)fd, F_DUPFD_CLOEXEC, 0);
}

/* The other end's address, as ZeroMQ has it. */
static void address_of(int fd, char *out, size_t room)
{
	struct sockaddr_storage a;
	socklen_t len = sizeof a;
	struct ucred who;
	socklen_t size = sizeof who;

	out[0] = 0;
	if (getpeername(fd, (struct sockaddr *)&a, &len) < 0)
		return;
	if (a.ss_family == AF_INET)
		inet_ntop(AF_INET, &((struct sockaddr_in *)&a)->sin_addr, out, (socklen_t)room);
	else if (a.ss_family == AF_INET6)
		inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&a)->sin6_addr, out, (socklen_t)room);
	else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0)
		snprintf(out, room, "uid %lu pid %lu", (unsigned long)who.uid,
			 (unsigned long)who.pid);
}

/* More than 0: something is left that was not read; EAGAIN: nothing, but more may come. */
static ssize_t look(int fd)
{
	char byte;

	return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
}

static bool rest_comes(struct wire_peers *p, int fd)
{
	struct pollfd item = { fd, POLLIN, 0 };
	int64_t now = clock_mono_ms();

	if (now < p->wait_from_ms)
		return false;
	p->wait_from_ms = now + REST_EVERY_MS;
	return poll(&item, 1, REST_MS) > 0 && look(fd) > 0;
}

/* Whether it was ended here, for what it sent. */
static bool was_cut(struct wire_peers *p, uint32_t fd)
{
	struct peer *of = peer_of(p, fd);
	bool cut = false;

	if (of && of->copy >= 0 && !p->broke) {
		ssize_t left = look(of->copy);

		cut = left > 0 || (left < 0 && errno == EAGAIN && rest_comes(p, of->copy));
		address_of(of->copy, p->from, sizeof p->from);
	}
	drop_copy(of);
	p->broke = false;
	return cut;
}

/* ZeroMQ names so what is wrong with a frame after the handshake, too. */
static const char *fault_of(uint32_t code)
{
	switch (code) {
	case ZMQ_PROTOCOL_ERROR_ZMTP_INVALID_SEQUENCE:
		return "a frame was sent again or out of order";
	case ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
		return "a frame was forged or damaged, or is for another server key";
	case ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
		return "it is not encrypted";
	default:
		return "it does not keep to the protocol";
	}
}

enum wire_peer wire_router_next(struct wire_peers *p, const char **what, const char **from)
{
	const struct news *n;
	uint64_t number;

	*from = p->from;
	p->from[0] = 0;
	if (p->going) {
		p->going = false;
		return PEER_WENT;
	}
	if (p->next == p->count)
		read_news(p);
	if (p->next == p->count)
		return PEER_NOTHING;
	number = p->read - (p->count - p->next) + 1;
	n = &p->news[p->next++];
	switch (n->event) {
	case ZMQ_EVENT_ACCEPTED:
		came(p, n->value, number);
		return PEER_CAME;
	case ZMQ_EVENT_DISCONNECTED:
		p->going = was_cut(p, n->value);
		snprintf(p->text, sizeof p->text,
			 "it sent a frame over %u bytes, or what is no frame", LIMIT_FRAME_BYTES);
		*what = p->text;
		return p->going ? PEER_BROKE : PEER_WENT;
	default:
		p->broke = true;
		*what = fault_of(n->value);
		return PEER_BROKE;
	}
}
