/* SPDX-License-Identifier: Apache-2.0
 * Sockets with all their options, and the watcher of a DEALER's events; declared in wire.h.
 *
 * The monitor of ZeroMQ blocks the I/O thread while nobody is connected to it: its PAIR is
 * connected before the DEALER connects, and its high-water marks are off, so an unread event
 * costs memory only until it is read. */
#include "config.h"
#include "lib/bound.h"
#include "lib/mem.h"
#include "proto/watch.h"
#include "proto/wire.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#define IPC "ipc://"
#define TCP "tcp://"
#define IPC_PATH_MAX 107
#define ZAP_DOMAIN "transfused"
#define PEER_UNREAD 16 /* messages of a connection that a ROUTER did not take yet */
#define PEER_UNSENT 64 /* and those the connection did not */

struct wire_watch {
	void *pair;
	char address[64];
	bool ready; /* the handshake was through */
};

/* ---- endpoints */

int wire_endpoint_check(const char *endpoint, struct err *e)
{
	_Static_assert(sizeof(((struct sockaddr_un *)0)->sun_path) == IPC_PATH_MAX + 1,
		       "ipc paths");
	if (strncmp(endpoint, IPC, strlen(IPC)) == 0) {
		const char *path = endpoint + strlen(IPC);

		FAIL_IF(path[0] != '/', e, TF_EINVALID,
			"endpoint '%s': expected an absolute path after " IPC, endpoint);
		FAIL_IF(strlen(path) > IPC_PATH_MAX, e, TF_ELIMIT,
			"endpoint '%s': the path has %zu bytes, at most %d are possible", endpoint,
			strlen(path), IPC_PATH_MAX);
		return 0;
	}
	if (strncmp(endpoint, TCP, strlen(TCP)) == 0) {
		const char *port = strrchr(endpoint, ':') + 1;
		size_t digits = strspn(port, "0123456789");

		if (port > endpoint + strlen(TCP) + 1 && (digits > 0 || strcmp(port, "*") == 0) &&
		    digits <= 5 && strlen(port) == (digits ? digits : 1))
			return 0;
	}
	return err_set(e, TF_EINVALID,
		       "endpoint '%s': expected ipc:///path or tcp://host:port", endpoint);
}

/* ---- options */

static int set_int(void *s, int option, int value)
{
	return zmq_setsockopt(s, option, &value, sizeof value);
}

/* A peer that stopped reading or went without a word is gone after five times this. */
#define HEARTBEAT_MS 5000

static int set_common(void *s, struct err *e)
{
	int64_t largest = LIMIT_FRAME_BYTES;
	int beat = (int)bound("heartbeat-ms", HEARTBEAT_MS);

	if (zmq_setsockopt(s, ZMQ_MAXMSGSIZE, &largest, sizeof largest) < 0 ||
	    set_int(s, ZMQ_LINGER, 0) < 0 || set_int(s, ZMQ_HANDSHAKE_IVL, 5000) < 0 ||
	    set_int(s, ZMQ_HEARTBEAT_IVL, beat) < 0 ||
	    set_int(s, ZMQ_HEARTBEAT_TIMEOUT, 4 * beat) < 0 ||
	    set_int(s, ZMQ_HEARTBEAT_TTL, 6 * beat) < 0)
		return err_set(e, TF_EINTERNAL, "socket options: %s", zmq_strerror(errno));
	return 0;
}

/* With ZMQ_IMMEDIATE nothing is queued before the handshake is through, but libzmq also throws
 * away, unread, what came in just before a connection was lost: a daemon's last answer. Who has a
 * watcher knows when to send and does without it. */
static int set_dealer(void *s, const char *server_key, const struct key_pair *own, bool watched,
		      struct err *e)
{
	FAIL_IF(!key_is_valid(server_key), e, TF_EINVALID,
		"the daemon's public key is not %d characters of Z85", KEY_CHARS);
	if (set_int(s, ZMQ_IMMEDIATE, !watched) < 0 || set_int(s, ZMQ_RECONNECT_IVL, 100) < 0 ||
	    set_int(s, ZMQ_RECONNECT_IVL_MAX, 2000) < 0 || set_int(s, ZMQ_SNDHWM, 64) < 0 ||
	    zmq_setsockopt(s, ZMQ_CURVE_SERVERKEY, server_key, KEY_CHARS + 1) < 0 ||
	    zmq_setsockopt(s, ZMQ_CURVE_PUBLICKEY, own->public_key, KEY_CHARS + 1) < 0 ||
	    zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, own->secret_key, KEY_CHARS + 1) < 0)
		return err_set(e, TF_EINVALID, "a key pair that is none: %s", zmq_strerror(errno));
	return set_common(s, e);
}

int wire_router(void *context, const struct key_pair *server, void **out, struct err *e)
{
	void *s = zmq_socket(context, ZMQ_ROUTER);
	int rc;

	FAIL_IF(!s, e, TF_EINTERNAL, "a socket: %s", zmq_strerror(errno));
	rc = set_common(s, e);
	if (rc == 0 &&
	    (set_int(s, ZMQ_ROUTER_MANDATORY, 1) < 0 || set_int(s, ZMQ_CURVE_SERVER, 1) < 0 ||
	     set_int(s, ZMQ_SNDHWM, PEER_UNSENT) < 0 || set_int(s, ZMQ_RCVHWM, PEER_UNREAD) < 0 ||
	     set_int(s, ZMQ_BACKLOG, 256) < 0 ||
	     zmq_setsockopt(s, ZMQ_ZAP_DOMAIN, ZAP_DOMAIN, strlen(ZAP_DOMAIN)) < 0 ||
	     zmq_setsockopt(s, ZMQ_CURVE_PUBLICKEY, server->public_key, KEY_CHARS + 1) < 0 ||
	     zmq_setsockopt(s, ZMQ_CURVE_SECRETKEY, server->secret_key, KEY_CHARS + 1) < 0))
		rc = err_set(e, TF_EINVALID, "the daemon's key pair: %s", zmq_strerror(errno));
	if (rc == 0)
		*out = s;
	else
		zmq_close(s);
	return rc;
}

int wire_bind(void *router, const char *endpoint, unsigned mode, struct err *e)
{
	TRY(wire_endpoint_check(endpoint, e));
	FAIL_IF(zmq_bind(router, endpoint) < 0, e, TF_EIO, "cannot answer on %s: %s", endpoint,
		zmq_strerror(errno));
	if (strncmp(endpoint, IPC, strlen(IPC)) == 0 &&
	    chmod(endpoint + strlen(IPC), 0600 | (mode & 0066)) < 0)
		return err_errno(e, "%s", endpoint + strlen(IPC));
	return 0;
}

/* ---- a DEALER and its watcher */

#define DEALER_EVENTS                                                                              \
	(ZMQ_EVENT_CONNECT_RETRIED | ZMQ_EVENT_CLOSED | ZMQ_EVENT_DISCONNECTED |                   \
	 ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |                         \
	 ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL)

int wire_watch_open(void *context, void *socket, int events, struct wire_watch **out,
		    struct err *e)
{
	static atomic_uint count;
	struct wire_watch *w = xcalloc(1, sizeof *w);

	snprintf(w->address, sizeof w->address, "inproc://wire-watch-%u",
		 atomic_fetch_add(&count, 1));
	w->pair = zmq_socket(context, ZMQ_PAIR);
	if (w->pair && set_int(w->pair, ZMQ_LINGER, 0) == 0 &&
	    set_int(w->pair, ZMQ_RCVHWM, 0) == 0 &&
	    zmq_socket_monitor(socket, w->address, events) == 0 &&
	    zmq_connect(w->pair, w->address) == 0) {
		*out = w;
		return 0;
	}
	err_set(e, TF_EINTERNAL, "the watcher of a socket: %s", zmq_strerror(errno));
	zmq_socket_monitor(socket, NULL, 0);
	wire_watch_close(w);
	return TF_EINTERNAL;
}

int wire_dealer(void *context, const char *endpoint, const char *server_key,
		const struct key_pair *own, void **out, struct wire_watch **watch, struct err *e)
{
	struct wire_watch *w = NULL;
	void *s;
	int rc;

	TRY(wire_endpoint_check(endpoint, e));
	s = zmq_socket(context, ZMQ_DEALER);
	FAIL_IF(!s, e, TF_EINTERNAL, "a socket: %s", zmq_strerror(errno));
	rc = set_dealer(s, server_key, own, watch != NULL, e);
	if (rc == 0 && watch)
		rc = wire_watch_open(context, s, DEALER_EVENTS, &w, e);
	if (rc == 0 && zmq_connect(s, endpoint) < 0)
		rc = err_set(e, TF_EINVALID, "endpoint '%s': %s", endpoint, zmq_strerror(errno));
	if (rc == 0) {
		*out = s;
		if (watch)
			*watch = w;
		return 0;
	}
	zmq_close(s);
	wire_watch_close(w);
	return rc;
}

/* The event's second frame, the address, is not of interest. */
int wire_watch_event(struct wire_watch *w, uint32_t *value)
{
	zmq_msg_t frame;
	uint16_t event = 0;
	bool more;

	zmq_msg_init(&frame);
	if (zmq_msg_recv(&frame, w->pair, ZMQ_DONTWAIT) < 0) {
		zmq_msg_close(&frame);
		return -1;
	}
	if (zmq_msg_size(&frame) >= sizeof event)
		memcpy(&event, zmq_msg_data(&frame), sizeof event);
	if (zmq_msg_size(&frame) >= sizeof event + sizeof *value)
		memcpy(value, (char *)zmq_msg_data(&frame) + sizeof event, sizeof *value);
	more = zmq_msg_more(&frame);
	zmq_msg_close(&frame);
	if (more) {
		zmq_msg_init(&frame);
		zmq_msg_recv(&frame, w->pair, 0);
		zmq_msg_close(&frame);
	}
	return event;
}

enum wire_event wire_watch_next(struct wire_watch *w)
{
	uint32_t value = 0;
	int event;

	while ((event = wire_watch_event(w, &value)) >= 0) {
		bool was_ready = w->ready;

		switch (event) {
		case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
			w->ready = true;
			return WIRE_READY;
		case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
			return value == 500 ? WIRE_FULL : WIRE_REFUSED;
		case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
		case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
			return WIRE_STRANGER;
		case ZMQ_EVENT_DISCONNECTED:
		case ZMQ_EVENT_CLOSED:
			w->ready = false;
			if (was_ready)
				return WIRE_LOST;
			break; /* what failed was told, or a retry follows */
		case ZMQ_EVENT_CONNECT_RETRIED:
			return WIRE_ABSENT;
		}
	}
	return WIRE_NOTHING;
}

void *wire_watch_socket(struct wire_watch *w)
{
	return w->pair;
}

void wire_watch_close(struct wire_watch *w)
{
	if (!w)
		return;
	if (w->pair)
		zmq_close(w->pair);
	xfree(w);
}
