/* SPDX-License-Identifier: Apache-2.0
 * The sockets: one ROUTER for clients and workers on every endpoint, CURVE on all of them, and the
 * ZAP handler that knows their keys. A message becomes a request here: unpacked within bounds, its
 * version checked, its sender's role looked up (at every message: a revoked key must not live on in
 * an open connection), and handed to the function of its row in requests.def. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "daemon/submit.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/wire.h"
#include "proto/wire_check.h"

#include <zmq.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define TURN_HANDSHAKES 64
#define TURN_ALONE_NS 2000000   /* requests are handled so long, then the commit comes */
#define TURN_SHARED_NS 500000   /* while several users are about */
#define READ_MESSAGES 512       /* in a turn */
#define READ_BETWEEN 16         /* after a piece of a batch */
#define BETWEEN_NS 50000        /* what a submit is taken to cost then */
#define BETWEEN_BYTES 16384     /* of one: what is longer may take long to be looked at */
#define READ_FLOODED 4          /* in a turn after one with refusals, which begins */
#define FLOODED_NS 500000       /* so much later, unless others come */
#define LAST_WORDS_MS 1000      /* so long the last answers may take to leave */
#define OWN_DESCRIPTORS 1024    /* workers, uploads, files, libraries */
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

/* Counts connections, and puts down those that were closed for what they sent. */
static void watch_peers(struct daemon *d)
{
	const char *what = "", *from = "";
	enum wire_peer news;

	while ((news = wire_router_next(d->peers, &what, &from)) != PEER_NOTHING) {
		struct request nobody = { .route_len = 0 };

		d->connections += news == PEER_CAME;
		d->connections -= news == PEER_WENT && d->connections > 0;
		if (news != PEER_BROKE)
			continue;
		log_warn("a connection%s%s was closed: %s", *from ? " from " : "", from, what);
		snprintf(nobody.from, sizeof nobody.from, "%s", from);
		audit_note(d, &nobody, "connect", TF_EREFUSED, what);
	}
}

/* Whether a known key is let in; *status and *text for the handshake. */
static void let_in(struct daemon *d, struct request *r, const char **status, const char **text)
{
	look_up(d, r);
	watch_peers(d);
	if (r->role == ROLE_NONE && !d->state) {
		*status = "300"; /* it will be tried again */
		*text = "not now";
	} else if (r->role != ROLE_NONE && r->role != ROLE_WORKER &&
		   (int64_t)d->connections > d->options.clients + (int64_t)d->workers) {
		*status = "500";
		*text = "too many connections (option clients)";
	} else if (r->role != ROLE_NONE) {
		if (*r->user)
			inbox_expect(d->inbox, r->user, clock_mono_ns());
		*status = "200";
		*text = "";
	}
}

/* Answers a question of the handshake: version, request id, domain, address, identity, mechanism,
 * key. False when there is none. */
static bool answer_handshake(struct daemon *d)
{
	const char *status = "400", *text = "unknown key";
	char part[7][256];
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
		let_in(d, &r, &status, &text);
	}
	if (*text) {
		snprintf(r.from, sizeof r.from, "%.*s", (int)len[3], part[3]);
		wire_address(r.from, sizeof r.from);
		log_warn("refused a connection from %s: %s", r.from, text);
		audit_note(d, &r, "connect", *status == '5' ? TF_ELIMIT : TF_EREFUSED, text);
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

void server_take(struct daemon *d, struct wire_message *m)
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

/* What is not looked at: answered if it can be, and put down. */
static void drop(struct daemon *d, struct wire_message *m, bool whole, const struct err *e)
{
	struct request r = { .route_len = m->route_len };

	memcpy(r.route, m->route, m->route_len);
	snprintf(r.key, sizeof r.key, "%s", m->user);
	snprintf(r.from, sizeof r.from, "%s", m->from);
	look_up(d, &r);
	if (whole)
		r.id = wire_peek_varint(zmq_msg_data(&m->body), zmq_msg_size(&m->body), 2);
	if (r.id)
		reply_error(d, &r, e->code, e->text);
	else
		log_warn("a message of %s was dropped: %s", *r.user ? r.user : r.key, e->text);
	audit_note(d, &r, "message", e->code, e->text);
}

/* Into the line of its user. Workers' are handled at once, for they are ours; `between`, the first
 * is held, and nothing more is to be read, for they come in order. */
static void take_in(struct daemon *d, const struct inbox_bounds *bounds, struct wire_message *m,
		    bool between, int64_t now)
{
	Tf__UserRecord *user = NULL;
	struct err e = ERR_INIT;

	if (d->state && worker_by_key(d, m->user)) {
		if (between) {
			wire_message_move(&d->held, m);
			d->holding = true;
			return;
		}
		server_take(d, m);
	} else {
		bool known = d->state && user_get(d->state, m->user, &user, NULL) == 0;
		const char *name = known ? user->name : "(nobody)";

		if (inbox_put(d->inbox, name, bounds, m, now, &e) == 0) {
			record_free(user);
			return;
		}
		d->flooded = true;
		drop(d, m, true, &e);
	}
	record_free(user);
	wire_message_close(m);
}

/* Until something comes on a connection that had nothing to be read: who floods always has, so the
 * others do not wait with them. */
void server_hold_back(struct daemon *d)
{
	struct pollfd news = { .events = POLLIN };
	size_t size = sizeof news.fd;

	d->others = false;
	if (!d->flooded || inbox_ready(d->inbox, clock_mono_ns()) > 0)
		return;
	d->others = zmq_getsockopt(d->router, ZMQ_FD, &news.fd, &size) == 0 &&
		    ppoll(&news, 1, &(struct timespec){ .tv_nsec = FLOODED_NS }, NULL) > 0;
}

/* False: nothing came. */
static bool read_message(struct daemon *d, const struct inbox_bounds *bounds, bool between,
			 int64_t now)
{
	struct wire_message m;
	struct err e = ERR_INIT;
	int rc = wire_receive(d->router, true, &m, &e);

	if (rc < 0)
		drop(d, &m, false, &e);
	else if (rc > 0)
		take_in(d, bounds, &m, between, now);
	return rc != 0;
}

/* What is not read stays with its sender, once ZeroMQ's queues are full. Who sends on although
 * their line is full slows down the reading, so that refusing does not take all of the time. */
static void read_messages(struct daemon *d, const struct inbox_bounds *bounds, int64_t now)
{
	size_t most = READ_MESSAGES, ready = inbox_ready(d->inbox, now);
	size_t flood = READ_FLOODED + d->connections; /* read in turn, so others' come, too */

	if (!inbox_is_shared(d->inbox, now))
		most = ready < most ? most - ready : 0; /* those come first anyway */
	if (d->flooded)
		most = d->others ? flood : READ_FLOODED;
	d->flooded = false;
	if (d->holding) {
		d->holding = false;
		take_in(d, bounds, &d->held, false, now);
	}
	for (size_t i = 0; i < most && flood > 0 && read_message(d, bounds, false, now); i++)
		flood -= d->flooded;
}

static struct inbox_bounds bounds_of(const struct daemon *d)
{
	return (struct inbox_bounds){ LIMIT_USER_PENDING,
				      (uint64_t)d->options.user_pending_mib << 20,
				      d->options.user_requests_per_second };
}

struct between {
	struct daemon *d;
	const struct job_numbers *batch;
};

/* Whether it can meet nothing of a batch that is half made, and may be taken back: a submit that
 * waits for no job of it and makes nothing that one of them makes. */
static bool is_apart(void *arg, const struct wire_message *m)
{
	const struct between *b = arg;
	uint64_t first = b->batch->first, count = first ? b->batch->count : 0, id, maker;
	zmq_msg_t *body = (zmq_msg_t *)&m->body;
	Tf__Request *r = NULL;
	const Tf__JobSpec *s;
	bool apart = false;

	if (zmq_msg_size(body) > BETWEEN_BYTES ||
	    wire_unpack_request(zmq_msg_data(body), zmq_msg_size(body), &r, &id, NULL) < 0)
		return false;
	s = r->body_case == TF__REQUEST__BODY_SUBMIT && !r->as_user ? r->submit->spec : NULL;
	if (s) {
		maker = artefact_maker(b->d, s);
		apart = !(maker >= first && maker - first < count) &&
			!spec_waits_for(s, first, count);
	}
	tf__request__free_unpacked(r, NULL);
	return apart;
}

bool server_between(struct daemon *d, const struct job_numbers *batch)
{
	struct between between = { d, batch };
	struct inbox_bounds bounds = bounds_of(d);
	int64_t began = clock_mono_ns();
	struct wire_message m;
	bool served = false;
	size_t at = 0;

	if (!inbox_is_shared(d->inbox, began))
		return true;
	server_zap(d);
	for (int i = 0; i < READ_BETWEEN && !d->holding; i++)
		if (!read_message(d, &bounds, true, began))
			break;
	state_part_aside(d->state, true);
	while (inbox_take_beside(d->inbox, &bounds, is_apart, &between, &at, &m, BETWEEN_NS,
				 began)) {
		server_take(d, &m);
		wire_message_close(&m);
		served = true;
	}
	if (served && d->doomed.count == 0 && state_can_commit(d->state) && !loop_commit(d))
		return false;
	state_part_aside(d->state, false);
	d->between_ns += clock_mono_ns() - began;
	return true;
}

void server_receive(struct daemon *d)
{
	struct inbox_bounds bounds = bounds_of(d);
	int64_t now = clock_mono_ns(), end;
	struct wire_message m;

	watch_peers(d);
	read_messages(d, &bounds, now);
	now = clock_mono_ns();
	end = now + (inbox_is_shared(d->inbox, now) ? TURN_SHARED_NS : TURN_ALONE_NS);
	while (now < end && inbox_take(d->inbox, &bounds, &m, now)) {
		int64_t began = now;

		d->between_ns = 0;
		server_take(d, &m);
		wire_message_close(&m);
		now = clock_mono_ns();
		inbox_charge(d->inbox, now - began - d->between_ns, now);
	}
}

int64_t server_wait_ms(const struct daemon *d)
{
	int64_t wait = d->holding ? 0 : inbox_wait_ns(d->inbox, clock_mono_ns());

	return wait > 0 && wait < INT64_MAX ? wait / 1000000 + 1 : wait;
}

/* ---------------------------------------------------------------- opening */

/* What was just bound, for people: the port that was found, and for "any address" our name. */
static void note_bound(struct daemon *d, const char *endpoint)
{
	static const char *const any[] = { "tcp://0.0.0.0:", "tcp://[::]:" };
	char last[256] = "", host[128] = "";
	size_t size = sizeof last;
	char *text = NULL;

	if (zmq_getsockopt(d->router, ZMQ_LAST_ENDPOINT, last, &size) < 0)
		snprintf(last, sizeof last, "%s", endpoint);
	for (size_t i = 0; i < ARRAY_LEN(any); i++)
		if (strncmp(last, any[i], strlen(any[i])) == 0 &&
		    gethostname(host, sizeof host - 1) == 0)
			text = xasprintf("tcp://%s:%s", host, last + strlen(any[i]));
	d->bound.text = xrealloc(d->bound.text, d->bound.count + 1, sizeof *d->bound.text);
	d->bound.text[d->bound.count++] = text ? text : xstrdup(last);
}

static int bind_to(struct daemon *d, const char *endpoint, struct err *e)
{
	TRY(wire_bind(d->router, endpoint, 0600, e));
	note_bound(d, endpoint);
	log_info("answering on %s", endpoint);
	return 0;
}

static int open_router(struct daemon *d, struct err *e)
{
	TRY(wire_router(d->zmq, &d->server, &d->router, e));
	TRY(wire_router_watch(d->zmq, d->router, &d->peers, e));
	TRY(bind_to(d, d->worker_endpoint, e));
	for (size_t i = 0; i < d->options.listen.count; i++)
		TRY(bind_to(d, d->options.listen.text[i], e));
	return 0;
}

/* Enough for the connections, two each, and for our own files besides. */
static void raise_descriptors(const struct daemon *d)
{
	rlim_t wanted = 2 * (rlim_t)d->options.clients + OWN_DESCRIPTORS;
	struct rlimit now;

	if (getrlimit(RLIMIT_NOFILE, &now) < 0 || now.rlim_cur >= wanted)
		return;
	now.rlim_cur = now.rlim_max < wanted ? now.rlim_max : wanted;
	if (setrlimit(RLIMIT_NOFILE, &now) < 0 || now.rlim_cur < wanted)
		log_warn("%llu descriptors can be had, %llu would be wanted for %lld clients",
			 (unsigned long long)now.rlim_cur, (unsigned long long)wanted,
			 (long long)d->options.clients);
}

int server_open(struct daemon *d, struct err *e)
{
	index_rows();
	d->zmq = zmq_ctx_new();
	d->zap = zmq_socket(d->zmq, ZMQ_REP);
	if (!d->zap || zmq_bind(d->zap, "inproc://zeromq.zap.01") < 0)
		return err_set(e, TF_EIO, "the socket of the handshake: %s", zmq_strerror(errno));
	TRY(open_router(d, e));
	raise_descriptors(d);
	return 0;
}

void server_close(struct daemon *d)
{
	int linger = LAST_WORDS_MS;

	if (d->holding)
		wire_message_close(&d->held);
	d->holding = false;

	if (d->router) {
		zmq_setsockopt(d->router, ZMQ_LINGER, &linger, sizeof linger);
		zmq_close(d->router);
	}
	wire_peers_close(d->peers);
	if (d->zap)
		zmq_close(d->zap);
	if (d->zmq)
		zmq_ctx_term(d->zmq);
	for (size_t i = 0; i < d->bound.count; i++)
		xfree(d->bound.text[i]);
	xfree(d->bound.text);
	d->bound = (struct text_list){ 0 };
	d->router = d->zap = d->zmq = d->peers = NULL;
}
