/* SPDX-License-Identifier: Apache-2.0
 * Answers. They are packed at once and lie in the outbox until the turn's commit; after a failed
 * one each becomes "outcome unknown". A peer that does not read is not waited for: its answer is
 * tried a few turns long and then dropped. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/job.h"
#include "daemon/reply.h"
#include "lib/bound.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <xxhash.h>
#include <zmq.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define SEND_TRIES 2000
#define LOG_PART_BYTES (256u << 10)

static struct letter *letter_add(struct outbox *o, const void *route, size_t route_len, uint64_t id)
{
	struct letter *l;

	CHECK(route_len > 0 && route_len <= ROUTE_BYTES_MAX);
	if (o->count == o->room) {
		o->room = o->room ? 2 * o->room : 64;
		o->letter = xrealloc(o->letter, o->room, sizeof *o->letter);
	}
	l = &o->letter[o->count++];
	*l = (struct letter){ .route_len = (uint8_t)route_len, .id = id };
	memcpy(l->route, route, route_len);
	return l;
}

static void letter_pack(struct letter *l, Tf__Reply *reply)
{
	reply->version = TF_PROTOCOL_VERSION;
	reply->id = l->id;
	xfree(l->data);
	l->len = tf__reply__get_packed_size(reply);
	l->data = xmalloc(l->len + 1);
	tf__reply__pack(reply, l->data);
}

void reply_put(struct daemon *d, struct request *r, Tf__Reply *reply)
{
	struct letter *l = letter_add(&d->outbox, r->route, r->route_len, r->id);

	letter_pack(l, reply);
	if (l->len > LIMIT_MESSAGE_BYTES) {
		Tf__Reply error = TF__REPLY__INIT;

		error.has_code = true;
		error.code = TF_ELIMIT;
		error.text = (char *)"the answer is over the limit of a message";
		letter_pack(l, &error);
	}
}

static void put_varint(struct buf *b, uint64_t value)
{
	char bytes[10];
	size_t n = 0;

	do {
		bytes[n++] = (char)((value & 0x7F) | (value > 0x7F ? 0x80 : 0));
		value >>= 7;
	} while (value);
	buf_append(b, bytes, n);
}

/* Field number and length of an embedded message, as protobuf has them. */
static void put_field(struct buf *b, unsigned field, size_t len)
{
	put_varint(b, (uint64_t)field << 3 | 2);
	put_varint(b, len);
}

static void pack(struct buf *list, const ProtobufCMessage *m, size_t len)
{
	buf_reserve(list, len);
	list->len += protobuf_c_message_pack(m, (uint8_t *)list->data + list->len);
}

void reply_pack_rest(struct buf *list, const ProtobufCMessage *rest)
{
	pack(list, rest, protobuf_c_message_get_packed_size(rest));
}

void reply_pack_item(struct buf *list, const void *packed, size_t len, const ProtobufCMessage *rest)
{
	size_t more = protobuf_c_message_get_packed_size(rest);

	put_field(list, 1, len + more);
	buf_append(list, packed, len);
	pack(list, rest, more);
}

void reply_put_packed(struct daemon *d, struct request *r, unsigned field, const struct buf *body)
{
	struct letter *l = letter_add(&d->outbox, r->route, r->route_len, r->id);
	Tf__Reply head = TF__REPLY__INIT;
	struct buf b = BUF_INIT;

	letter_pack(l, &head);
	put_field(&b, field, body->len);
	l->data = xrealloc(l->data, l->len + b.len + body->len, 1);
	memcpy(l->data + l->len, b.data, b.len);
	if (body->len)
		memcpy(l->data + l->len + b.len, body->data, body->len);
	l->len += b.len + body->len;
	buf_release(&b);
	CHECK(l->len <= LIMIT_MESSAGE_BYTES);
}

void reply_ok(struct daemon *d, struct request *r)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Empty empty = TF__EMPTY__INIT;

	reply.body_case = TF__REPLY__BODY_OK;
	reply.ok = &empty;
	reply_put(d, r, &reply);
}

void reply_error(struct daemon *d, struct request *r, int code, const char *text)
{
	Tf__Reply reply = TF__REPLY__INIT;

	CHECK(code < 0);
	reply.has_code = true;
	reply.code = code;
	reply.text = (char *)(*text ? text : err_text(code));
	reply_put(d, r, &reply);
}

void reply_job(struct daemon *d, struct request *r, uint64_t job, bool whole)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Jobs jobs = TF__JOBS__INIT;
	Tf__SpecRecord *spec = NULL;
	Tf__JobRecord *record = NULL;
	struct err e = ERR_INIT;
	struct job_view view;
	Tf__Job *one = &view.job;
	int rc = job_get(d->state, job, &record, &e);

	if (rc == 0 && whole)
		rc = job_spec_get(d->state, job, &spec, &e);
	if (rc < 0) {
		reply_error(d, r, rc, e.text);
	} else {
		job_view(d, record, &view);
		if (spec) {
			one->spec = spec->spec;
			one->n_input = spec->n_input;
			one->input = spec->input;
		}
		jobs.n_job = 1;
		jobs.job = &one;
		reply.body_case = TF__REPLY__BODY_JOBS;
		reply.jobs = &jobs;
		reply_put(d, r, &reply);
	}
	record_free(spec);
	record_free(record);
}

void reply_log(struct daemon *d, struct request *r, uint64_t job, uint64_t offset)
{
	char *folder = daemon_path(d, "jobs/%llu", (unsigned long long)job);
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__LogPart part = TF__LOG_PART__INIT;
	struct err e = ERR_INIT;
	uint64_t size = 0;
	ssize_t n = 0;
	int fd = -1, rc;

	part.offset = offset;
	part.data.data = xmalloc(LOG_PART_BYTES);
	rc = folder_open_file(folder, "log", &fd, &size, &e);
	if (rc == 0)
		n = pread(fd, part.data.data, LOG_PART_BYTES, (off_t)offset);
	if (n < 0)
		rc = err_errno(&e, "log of job %llu", (unsigned long long)job);
	part.data.len = n > 0 ? (size_t)n : 0;
	part.has_end = true;
	part.end = !live_find(&d->live, job) && offset + part.data.len >= size;
	reply.body_case = TF__REPLY__BODY_LOG;
	reply.log = &part;
	if (rc == 0 || rc == TF_ENOTFOUND)
		reply_put(d, r, &reply);
	else
		reply_error(d, r, rc, e.text);
	if (fd >= 0)
		close(fd);
	xfree(part.data.data);
	xfree(folder);
}

void order_put(struct daemon *d, struct worker *w, Tf__StopReason stop)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Order order = TF__ORDER__INIT;

	order.job = w->job;
	order.stop = stop;
	reply.body_case = TF__REPLY__BODY_ORDER;
	reply.order = &order;
	letter_pack(letter_add(&d->outbox, w->route, w->route_len, 0), &reply);
}

void join_put(struct daemon *d, const struct worker *w, const struct worker *further)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Join join = TF__JOIN__INIT;

	join.job = further->job;
	join.attempt = further->attempt;
	reply.body_case = TF__REPLY__BODY_JOIN;
	reply.join = &join;
	letter_pack(letter_add(&d->outbox, w->route, w->route_len, 0), &reply);
}

static void make_unknown(struct letter *l)
{
	Tf__Reply error = TF__REPLY__INIT;

	error.has_code = true;
	error.code = TF_EUNKNOWN;
	error.text = (char *)"the state could not be written: the outcome is unknown, see the "
			     "daemon's log";
	letter_pack(l, &error);
}

static bool letter_send(struct daemon *d, struct letter *l)
{
	if (zmq_send(d->router, l->route, l->route_len, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0) {
		if (errno == EAGAIN && ++l->tries < SEND_TRIES)
			return false;
		log_debug("an answer of %zu bytes was dropped: %s", l->len, zmq_strerror(errno));
	} else if (zmq_send(d->router, l->data, l->len, ZMQ_DONTWAIT) < 0) {
		log_warn("an answer of %zu bytes was dropped: %s", l->len, zmq_strerror(errno));
	}
	xfree(l->data);
	return true;
}

/* Answers that a peer does not take are kept within bounds, counted by a hash of its route: at
 * worst two peers share a bound. */
struct unsent {
	uint64_t of[256], all;
};

static bool keep(struct unsent *u, const struct letter *l)
{
	uint64_t *of = &u->of[XXH32(l->route, l->route_len, 0) % ARRAY_LEN(u->of)];
	bool peer_full = *of + l->len > LIMIT_PEER_UNSENT_BYTES;

	if (peer_full || u->all + l->len > bound("unsent-bytes", LIMIT_UNSENT_BYTES)) {
		log_warn("an answer of %zu bytes was dropped: nobody takes it, %llu bytes wait "
			 "for %s",
			 l->len, (unsigned long long)(peer_full ? *of : u->all),
			 peer_full ? "this connection" : "all connections");
		return false;
	}
	*of += l->len;
	u->all += l->len;
	return true;
}

void outbox_send(struct daemon *d, bool committed)
{
	struct outbox *o = &d->outbox;
	struct unsent unsent = { { 0 }, 0 };
	size_t kept = 0;

	for (size_t i = 0; i < o->count; i++) {
		struct letter l = o->letter[i];

		/* one with tries is of an earlier turn, an order (id 0) will be given again */
		if (!committed && l.tries == 0 && l.id == 0) {
			xfree(l.data);
			continue;
		}
		if (!committed && l.tries == 0)
			make_unknown(&l);
		if (letter_send(d, &l))
			continue;
		if (keep(&unsent, &l)) {
			o->letter[kept++] = l;
		} else {
			xfree(l.data);
		}
	}
	o->count = kept;
}

void outbox_release(struct outbox *o)
{
	for (size_t i = 0; i < o->count; i++)
		xfree(o->letter[i].data);
	xfree(o->letter);
	*o = (struct outbox){ 0 };
}
