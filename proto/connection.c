/* SPDX-License-Identifier: Apache-2.0
 * A synchronous caller's line to the daemon; see connection.h. ZeroMQ connects again by itself; the
 * watcher tells when, and then every open request is sent again. */
#include "config.h"
#include "proto/connection.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define CONNECT_MS 3000
#define RECONNECT_MS 30000
#define STRANGER_MS 1500 /* so long a handshake may fail for other reasons than a wrong key */
#define TURN_MS 100      /* a wait looks at the interrupt so often */
#define OPEN_MAX 256     /* requests at once; at least LIMIT_WAIT_ANY */

_Static_assert(OPEN_MAX >= LIMIT_WAIT_ANY, "a question about each job that is waited for");

struct open_request {
	uint64_t id; /* 0: a free place */
	uint8_t *data;
	size_t len;
	bool sent; /* on this connection */
};

struct connection {
	char *endpoint, *key_file, *as_user;
	int64_t connect_ms, reconnect_ms;
	void *context, *socket;
	struct wire_watch *watch;
	struct open_request open[OPEN_MAX];
	uint64_t last_id, reconnects;
	bool ready, was_ready, refused, full, stranger;
	int64_t away_since_ms;
	bool (*interrupted)(void);
};

int connection_open(const struct connection_options *o, struct connection **out, struct err *e)
{
	struct connection *c = xcalloc(1, sizeof *c);
	int rc;

	c->endpoint = xstrdup(o->endpoint);
	c->key_file = xstrdup(o->key_file);
	c->as_user = xstrdup(o->as_user);
	c->connect_ms = o->connect_ms ? o->connect_ms : CONNECT_MS;
	c->reconnect_ms = o->reconnect_ms ? o->reconnect_ms : RECONNECT_MS;
	c->away_since_ms = clock_mono_ms();
	c->context = zmq_ctx_new();
	rc = c->context ? wire_dealer(c->context, o->endpoint, o->server_key, &o->keys, &c->socket,
				      &c->watch, e)
			: err_set(e, TF_EINTERNAL, "ZeroMQ: %s", zmq_strerror(errno));
	if (rc < 0)
		connection_close(c);
	else
		*out = c;
	return rc;
}

void connection_close(struct connection *c)
{
	if (!c)
		return;
	for (size_t i = 0; i < OPEN_MAX; i++)
		xfree(c->open[i].data);
	if (c->socket)
		zmq_close(c->socket);
	wire_watch_close(c->watch);
	if (c->context)
		zmq_ctx_term(c->context);
	xfree(c->endpoint);
	xfree(c->key_file);
	xfree(c->as_user);
	xfree(c);
}

/* ---- the state of the line */

static void lost(struct connection *c)
{
	c->ready = false;
	c->away_since_ms = clock_mono_ms();
	for (size_t i = 0; i < OPEN_MAX; i++)
		c->open[i].sent = false;
}

static void take_events(struct connection *c)
{
	for (;;) {
		switch (wire_watch_next(c->watch)) {
		case WIRE_NOTHING:
			return;
		case WIRE_READY:
			if (c->was_ready)
				c->reconnects++;
			c->ready = c->was_ready = true;
			c->stranger = false;
			break;
		case WIRE_REFUSED:
			c->refused = true;
			break;
		case WIRE_FULL:
			c->full = true;
			break;
		case WIRE_STRANGER:
			c->stranger = true;
			break;
		case WIRE_LOST:
			lost(c);
			break;
		case WIRE_ABSENT:
			c->stranger = false;
			break;
		}
	}
}

/* The unsent request with the lowest id: order counts (chunks of an upload). */
static struct open_request *next_unsent(struct connection *c)
{
	struct open_request *next = NULL;

	for (size_t i = 0; i < OPEN_MAX; i++) {
		struct open_request *r = &c->open[i];

		if (r->id && !r->sent && (!next || r->id < next->id))
			next = r;
	}
	return next;
}

static void send_open(struct connection *c)
{
	struct open_request *r;

	while ((r = next_unsent(c)) != NULL) {
		if (wire_send_bytes(c->socket, NULL, 0, r->data, r->len, NULL) < 0)
			return;
		r->sent = true;
	}
}

/* Whether waiting on is of use. */
static int check_line(const struct connection *c, struct err *e)
{
	int64_t away = clock_mono_ms() - c->away_since_ms;
	int64_t patience = c->was_ready ? c->reconnect_ms : c->connect_ms;

	FAIL_IF(c->full, e, TF_ELIMIT,
		"the daemon at %s takes no more connections now (its option clients)",
		c->endpoint);
	FAIL_IF(c->refused, e, TF_EREFUSED, "the daemon at %s does not know this key%s%s",
		c->endpoint, c->key_file ? ": " : "", c->key_file ? c->key_file : "");
	if (c->ready)
		return 0;
	FAIL_IF(c->stranger && away > STRANGER_MS && !c->was_ready, e, TF_EREFUSED,
		"who answers at %s is not the daemon whose key is known here", c->endpoint);
	FAIL_IF(away > patience, e, TF_ENODAEMON, "no daemon answers at %s%s", c->endpoint,
		c->was_ready ? " any more" : "");
	return 0;
}

/* ---- requests */

static struct open_request *find_open(struct connection *c, uint64_t id)
{
	for (size_t i = 0; i < OPEN_MAX; i++)
		if (c->open[i].id == id)
			return &c->open[i];
	return NULL;
}

void connection_forget(struct connection *c, uint64_t id)
{
	struct open_request *r = id ? find_open(c, id) : NULL;

	if (!r)
		return;
	xfree(r->data);
	memset(r, 0, sizeof *r);
}

int connection_send(struct connection *c, Tf__Request *r, uint64_t *id, struct err *e)
{
	struct open_request *place = find_open(c, 0);

	FAIL_IF(!place, e, TF_ELIMIT, "%d requests are open, no more are possible", OPEN_MAX);
	r->version = TF_PROTOCOL_VERSION;
	r->id = ++c->last_id;
	if (c->as_user)
		r->as_user = c->as_user;
	TRY(wire_pack(&r->base, &place->data, &place->len, e));
	*id = place->id = r->id;
	take_events(c);
	if (c->ready)
		send_open(c);
	return 0;
}

/* Answers that are nobody's are looked at, too, before they are dropped. */
static int drop_answer(struct wire_message *m, struct err *e)
{
	Tf__Reply *reply = NULL;
	int rc = wire_unpack_reply(zmq_msg_data(&m->body), zmq_msg_size(&m->body), &reply, e);

	if (rc == 0)
		tf__reply__free_unpacked(reply, NULL);
	return rc;
}

/* 1: something came, of an open request if *id is not 0, and only then m is to be closed. */
static int take_message(struct connection *c, struct wire_message *m, uint64_t *id, struct err *e)
{
	int rc = wire_receive(c->socket, false, m, e);

	*id = 0;
	if (rc <= 0)
		return rc;
	rc = wire_reply_id(zmq_msg_data(&m->body), zmq_msg_size(&m->body), id, e);
	if (rc == 0 && *id && find_open(c, *id)) {
		connection_forget(c, *id);
		return 1;
	}
	*id = 0;
	if (rc == 0)
		rc = drop_answer(m, e);
	wire_message_close(m);
	return rc < 0 ? err_prefix(e, "the answer of %s", c->endpoint) : 1;
}

int connection_receive_packed(struct connection *c, int64_t timeout_ms, struct wire_message *out,
			      uint64_t *id, struct err *e)
{
	int64_t until = clock_mono_ms() + timeout_ms;

	for (;;) {
		zmq_pollitem_t items[] = { { c->socket, 0, ZMQ_POLLIN, 0 },
					   { wire_watch_socket(c->watch), 0, ZMQ_POLLIN, 0 } };
		int rc;

		take_events(c);
		if (c->ready)
			send_open(c);
		do
			rc = take_message(c, out, id, e);
		while (rc > 0 && !*id);
		if (rc != 0)
			return rc < 0 ? rc : 0;
		FAIL_IF(c->interrupted && c->interrupted(), e, TF_ECANCELLED, "interrupted");
		TRY(check_line(c, e));
		FAIL_IF(clock_mono_ms() >= until, e, TF_ETIMEOUT,
			"the daemon at %s gives no answer", c->endpoint);
		zmq_poll(items, 2, TURN_MS);
	}
}

int connection_receive(struct connection *c, int64_t timeout_ms, Tf__Reply **out, struct err *e)
{
	struct wire_message m;
	uint64_t id;
	int rc;

	*out = NULL;
	TRY(connection_receive_packed(c, timeout_ms, &m, &id, e));
	rc = wire_unpack_reply(zmq_msg_data(&m.body), zmq_msg_size(&m.body), out, e);
	wire_message_close(&m);
	return rc < 0 ? err_prefix(e, "the answer of %s", c->endpoint) : 0;
}

static int reply_failure(const Tf__Reply *r, struct err *e)
{
	const char *text = r->text && *r->text ? r->text : err_text(r->code);

	if (!r->has_code || r->code == 0)
		return 0;
	return err_set(e, r->code < 0 ? r->code : TF_EINTERNAL, "%s", text);
}

int connection_call(struct connection *c, Tf__Request *r, int64_t timeout_ms, Tf__Reply **out,
		    struct err *e)
{
	int64_t until = clock_mono_ms() + timeout_ms;
	uint64_t id;
	int rc;

	*out = NULL;
	TRY(connection_send(c, r, &id, e));
	for (;;) {
		rc = connection_receive(c, until - clock_mono_ms(), out, e);
		if (rc < 0 || (*out)->id == id)
			break;
		tf__reply__free_unpacked(*out, NULL); /* of a request its sender gave up */
		*out = NULL;
	}
	if (rc == 0 && (rc = reply_failure(*out, e)) < 0) {
		tf__reply__free_unpacked(*out, NULL);
		*out = NULL;
	}
	if (rc < 0)
		connection_forget(c, id);
	return rc;
}

void connection_set_interrupt(struct connection *c, bool (*interrupted)(void))
{
	c->interrupted = interrupted;
}

uint64_t connection_reconnects(const struct connection *c)
{
	return c->reconnects;
}

const char *connection_endpoint(const struct connection *c)
{
	return c->endpoint;
}
