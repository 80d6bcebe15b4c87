/* SPDX-License-Identifier: Apache-2.0
 * The sockets: one ROUTER for clients and workers on every endpoint, CURVE on all of them, and the
 * ZAP handler that knows their keys. A message becomes a request here: unpacked within bounds, its
 * version checked, its sender's role looked up (at every message: a revoked key must not live on in
 * an open connection), and handed to the function of its row in requests.def. */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <zmq.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define TURN_MESSAGES 512 /* taken in one turn: then the commit comes */
#define TURN_HANDSHAKES 64
#define REQUEST_FIELD_MAX 100

/* ---------------------------------------------------------------- rows */

struct row {
	const char *name;
	int (*handle)(struct daemon *d, struct request *r);
	enum user_role role;
	bool writes;
};

static const struct row rows[] = {
#define R(name, role, writes) { #name, handle_##name, ROLE_##role, writes },
#include "proto/requests.def"
#undef R
};

/* By the number of the field in Request.body. */
static const struct row *row_of[REQUEST_FIELD_MAX];

static void index_rows(void)
{
	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field_by_name(
			&tf__request__descriptor, rows[i].name);

		CHECK(f && f->id < REQUEST_FIELD_MAX);
		row_of[f->id] = &rows[i];
	}
}

/* ---------------------------------------------------------------- who */

/* The role of a key now. */
static void look_up(struct daemon *d, struct request *r)
{
	Tf__UserRecord *user = NULL;

	r->role = ROLE_NONE;
	if (!d->state)
		return; /* the store cannot be opened: nobody is known */
	r->worker = worker_by_key(d, r->key);
	if (r->worker) {
		r->role = ROLE_WORKER;
	} else if (user_get(d->state, r->key, &user, NULL) == 0) {
		r->role = (enum user_role)user->role;
		snprintf(r->user, sizeof r->user, "%s", user->name);
	}
	record_free(user);
}

/* An administrator asks as another user, with no other rights than theirs. */
static int stand_in(struct daemon *d, struct request *r)
{
	const char *name = r->message->as_user;
	struct user *user = NULL;
	size_t count = 0;
	int rc;

	FAIL_IF(r->role != ROLE_ADMIN, &r->err, TF_EREFUSED,
		"only an administrator may ask as somebody else: %s is a %s",
		*r->user ? r->user : "this key", role_name(r->role));
	TRY(users_list(d->state, &user, &count, &r->err));
	rc = err_set(&r->err, TF_ENOTFOUND, "no user '%.100s' is enrolled to ask as", name);
	for (size_t i = 0; i < count && rc < 0; i++) {
		if (strcmp(user[i].name, name) != 0)
			continue;
		memcpy(r->admin, r->user, sizeof r->admin);
		memcpy(r->user, user[i].name, sizeof r->user);
		r->role = user[i].role;
		err_clear(&r->err);
		rc = 0;
	}
	xfree(user);
	return rc;
}

static bool is_allowed(const struct row *row, enum user_role role)
{
	return row->role == ROLE_WORKER ? role == ROLE_WORKER
					: role >= row->role && role <= ROLE_ADMIN;
}

/* Answers a question of the handshake: version, request id, domain, address, identity, mechanism,
 * key. False when there is none. */
static bool answer_handshake(struct daemon *d)
{
	char part[7][256], *status = "400", *text = "unknown key";
	size_t len[7] = { 0 };
	struct request r = { 0 };
	int more = 1, n = 0;

	for (; more; n++) {
		char rest[256];
		int got = zmq_recv(d->zap, n < 7 ? part[n] : rest, sizeof rest, ZMQ_DONTWAIT);
		size_t size = sizeof more;

		if (got < 0)
			return false;
		if (n < 7)
			len[n] = (size_t)got < sizeof rest ? (size_t)got : sizeof rest;
		zmq_getsockopt(d->zap, ZMQ_RCVMORE, &more, &size);
	}
	if (n == 7 && len[5] == 5 && memcmp(part[5], "CURVE", 5) == 0 && len[6] == 32) {
		zmq_z85_encode(r.key, (const uint8_t *)part[6], 32);
		look_up(d, &r);
		if (r.role != ROLE_NONE) {
			status = "200";
			text = "";
		} else if (!d->state) {
			status = "300"; /* it will be tried again */
			text = "not now";
		}
	}
	if (*text) {
		snprintf(r.from, sizeof r.from, "%.*s", (int)len[3], part[3]);
		wire_address(r.from, sizeof r.from);
		log_warn("refused a connection from %s: %s", r.from, text);
		audit_note(d, &r, "connect", TF_EREFUSED, text);
	}
	zmq_send(d->zap, "1.0", 3, ZMQ_SNDMORE);
	zmq_send(d->zap, part[1], n > 1 ? len[1] : 0, ZMQ_SNDMORE);
	zmq_send(d->zap, status, 3, ZMQ_SNDMORE);
	zmq_send(d->zap, text, strlen(text), ZMQ_SNDMORE);
	zmq_send(d->zap, r.key, strlen(r.key), ZMQ_SNDMORE);
	zmq_send(d->zap, "", 0, 0);
	return true;
}

void server_zap(struct daemon *d)
{
	for (int i = 0; i < TURN_HANDSHAKES && answer_handshake(d); i++)
		;
}

/* ---------------------------------------------------------------- what */

int may_change(const struct request *r, const char *owner, const char *what, struct err *e)
{
	FAIL_IF(r->role != ROLE_ADMIN && (!owner || strcmp(owner, r->user) != 0), e, TF_EREFUSED,
		"%s belongs to %s", what, owner ? owner : "nobody");
	return 0;
}

static int refuse(struct daemon *d, struct request *r, const struct row *row)
{
	if (!d->state)
		return err_set(&r->err, TF_EUNKNOWN,
			       "the state cannot be opened now, see the daemon's log");
	if (row->role == ROLE_WORKER && r->role == ROLE_NONE)
		return err_set(&r->err, TF_EFENCED, "this attempt is over");
	if (r->role == ROLE_NONE)
		return err_set(&r->err, TF_EREFUSED, "the key is not known here any more");
	return err_set(&r->err, TF_EREFUSED, "%s is for %ss: %s is a %s", row->name,
		       role_name(row->role), *r->user ? r->user : "this key", role_name(r->role));
}

static const struct row *find_row(const Tf__Request *m)
{
	return m && (size_t)m->body_case < REQUEST_FIELD_MAX ? row_of[m->body_case] : NULL;
}

/* Whether somebody was kept from something, unlike what is not there or not possible now. */
static bool is_refusal(int code)
{
	return code == TF_EREFUSED || code == TF_EFENCED || code == TF_ELIMIT ||
	       code == TF_EVERSION || code == TF_EINVALID || code == TF_EUNSUPPORTED;
}

/* Actions of people that write, done or not, and all refusals. */
static void put_down(struct daemon *d, const struct request *r, int code)
{
	const struct row *row = find_row(r->message);
	bool action = row && row->writes && row->role != ROLE_WORKER && !r->later;

	if (action || (code < 0 && is_refusal(code)))
		audit_note(d, r, row ? row->name : "message", code, r->err.text);
}

static int dispatch(struct daemon *d, struct request *r)
{
	const Tf__Request *m = r->message;
	const struct row *row = find_row(m);

	CHECK(m->version == TF_PROTOCOL_VERSION);
	FAIL_IF(!row, &r->err, TF_EUNSUPPORTED, "the request is empty or of a kind not known here");
	if (m->as_user)
		TRY(stand_in(d, r));
	if (!is_allowed(row, r->role)) {
		int rc = refuse(d, r, row);

		log_warn("refused %s of %s: %s", row->name, *r->user ? r->user : r->key,
			 r->err.text);
		return rc;
	}
	FAIL_IF(row->writes && d->read_only, &r->err, TF_EUNKNOWN,
		"the state cannot be written now: nothing was changed, see the daemon's log");
	return row->handle(d, r);
}

static void take(struct daemon *d, struct wire_message *m)
{
	struct request r = { .route_len = m->route_len };
	Tf__Request *message = NULL;
	int rc;

	memcpy(r.route, m->route, m->route_len);
	snprintf(r.key, sizeof r.key, "%s", m->user);
	snprintf(r.from, sizeof r.from, "%s", m->from);
	look_up(d, &r);
	rc = wire_unpack_request(zmq_msg_data(&m->body), zmq_msg_size(&m->body), &message, &r.id,
				 &r.err);
	if (rc == 0) {
		r.message = message;
		rc = dispatch(d, &r);
	}
	put_down(d, &r, rc);
	if (rc < 0 && r.id != 0)
		reply_error(d, &r, rc, r.err.text);
	else if (rc < 0)
		log_warn("a message of %s was dropped: %s", *r.user ? r.user : r.key, r.err.text);
	if (message)
		tf__request__free_unpacked(message, NULL);
}

/* A message that is none. */
static void drop(struct daemon *d, const struct wire_message *m, int code, const struct err *e)
{
	struct request r = { .route_len = 0 };

	snprintf(r.key, sizeof r.key, "%s", m->user);
	snprintf(r.from, sizeof r.from, "%s", m->from);
	look_up(d, &r);
	log_warn("a message of %s was dropped: %s", *r.user ? r.user : r.key, e->text);
	audit_note(d, &r, "message", code, e->text);
}

void server_receive(struct daemon *d)
{
	for (int i = 0; i < TURN_MESSAGES; i++) {
		struct wire_message m;
		struct err e = ERR_INIT;
		int rc = wire_receive(d->router, true, &m, &e);

		if (rc == 0)
			break;
		if (rc < 0) {
			drop(d, &m, rc, &e);
			continue;
		}
		take(d, &m);
		wire_message_close(&m);
	}
}

/* ---------------------------------------------------------------- opening */

static int bind_to(struct daemon *d, const char *endpoint, struct err *e)
{
	TRY(wire_bind(d->router, endpoint, 0600, e));
	log_info("answering on %s", endpoint);
	return 0;
}

static int open_router(struct daemon *d, struct err *e)
{
	TRY(wire_router(d->zmq, &d->server, &d->router, e));
	TRY(bind_to(d, d->worker_endpoint, e));
	for (size_t i = 0; i < d->options.listen.count; i++)
		TRY(bind_to(d, d->options.listen.text[i], e));
	return 0;
}

int server_open(struct daemon *d, struct err *e)
{
	index_rows();
	d->zmq = zmq_ctx_new();
	d->zap = zmq_socket(d->zmq, ZMQ_REP);
	if (!d->zap || zmq_bind(d->zap, "inproc://zeromq.zap.01") < 0)
		return err_set(e, TF_EIO, "the socket of the handshake: %s", zmq_strerror(errno));
	return open_router(d, e);
}

void server_close(struct daemon *d)
{
	if (d->router)
		zmq_close(d->router);
	if (d->zap)
		zmq_close(d->zap);
	if (d->zmq)
		zmq_ctx_term(d->zmq);
	d->router = d->zap = d->zmq = NULL;
}
