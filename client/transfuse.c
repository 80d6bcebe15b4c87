/* SPDX-License-Identifier: Apache-2.0
 * libtransfuse; see transfuse.h for programs and line.h for the command line. */
#include "config.h"
#include "client/line.h"
#include "client/spec_json.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "proto/spec.h"
#include "proto/token.h"
#include "proto/wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ASK_MS 30000
#define POLL_MS 10000
#define PAGE 1000u /* jobs in one answer of a list */

_Static_assert((int)TRANSFUSE_INVALID == TF_EINVALID && (int)TRANSFUSE_UNKNOWN == TF_EUNKNOWN &&
		       (int)TRANSFUSE_NOT_FOUND == TF_ENOTFOUND &&
		       (int)TRANSFUSE_REFUSED == TF_EREFUSED &&
		       (int)TRANSFUSE_LIMIT == TF_ELIMIT &&
		       (int)TRANSFUSE_NO_DAEMON == TF_ENODAEMON &&
		       (int)TRANSFUSE_TIMEOUT == TF_ETIMEOUT,
	       "the public numbers are the wire's");
_Static_assert(TRANSFUSE_BATCH_MOST == LIMIT_BATCH_JOBS, "the public limit is the wire's");

/* ---- messages: for the command line and for what follows below */

int line_open(const struct place_given *given, const char *as_user, struct transfuse **out,
	      struct err *e)
{
	struct transfuse *t = *out = xcalloc(1, sizeof *t);
	struct connection_options o = { 0 };
	int rc;

	TRY(place_find(given, &t->place, e));
	o.endpoint = t->place.endpoint;
	o.server_key = t->place.server_key;
	o.keys = t->place.keys;
	o.key_file = t->place.key_file;
	o.as_user = as_user;
	rc = connection_open(&o, &t->connection, e);
	key_pair_wipe(&o.keys);
	return rc;
}

static int wrong_answer(struct err *e)
{
	return err_set(e, TF_EINTERNAL, "the daemon gave an answer of another kind than asked for");
}

int line_check(const Tf__Reply *reply, Tf__Reply__BodyCase want, struct err *e)
{
	if (reply->has_code && reply->code != 0)
		return err_set(e, reply->code < 0 ? reply->code : TF_EINTERNAL, "%s",
			       reply->text && *reply->text ? reply->text : err_text(reply->code));
	return reply->body_case == want ? 0 : wrong_answer(e);
}

int line_ask(struct transfuse *t, Tf__Request *r, Tf__Reply__BodyCase want, int64_t timeout_ms,
	     Tf__Reply **out, struct err *e)
{
	FAIL_IF(!t->connection, e, TF_ENODAEMON, "there is no connection to a daemon");
	TRY(connection_call(t->connection, r, timeout_ms, out, e));
	if ((*out)->body_case == want)
		return 0;
	tf__reply__free_unpacked(*out, NULL);
	*out = NULL;
	return wrong_answer(e);
}

int line_submit(struct transfuse *t, Tf__JobSpec *spec, bool dry_run, Tf__Reply **out,
		struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Submit m = TF__SUBMIT__INIT;
	uint8_t token[TOKEN_BYTES];

	TRY(token_make(token, e));
	m.token.data = token;
	m.token.len = sizeof token;
	m.spec = spec;
	m.has_dry_run = m.dry_run = dry_run;
	r.body_case = TF__REQUEST__BODY_SUBMIT;
	r.submit = &m;
	return line_ask(t, &r, TF__REPLY__BODY_SUBMITTED, ASK_MS, out, e);
}

/* Each job as a packed Submit of its own, as SubmitBatch wants them. */
static int pack_all(const struct line_member *member, size_t count, ProtobufCBinaryData *packed,
		    struct err *e)
{
	for (size_t i = 0; i < count; i++) {
		Tf__Submit m = TF__SUBMIT__INIT;
		Tf__AfterMember after = TF__AFTER_MEMBER__INIT, *first = &after;
		uint8_t token[TOKEN_BYTES];

		TRY(token_make(token, e));
		m.token.data = token;
		m.token.len = sizeof token;
		m.spec = member[i].spec;
		m.n_after_member = member[i].after >= 0;
		m.after_member = &first;
		after.member = (uint32_t)member[i].after;
		TRY(wire_pack(&m.base, &packed[i].data, &packed[i].len, e));
	}
	return 0;
}

static int send_batch(struct transfuse *t, ProtobufCBinaryData *packed, size_t count, bool dry_run,
		      uint64_t *job, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SubmitBatch m = TF__SUBMIT_BATCH__INIT;
	Tf__Reply *reply = NULL;
	int rc = 0;

	m.n_submit = count;
	m.submit = packed;
	m.has_dry_run = m.dry_run = dry_run;
	r.body_case = TF__REQUEST__BODY_SUBMIT_BATCH;
	r.submit_batch = &m;
	TRY(line_ask(t, &r, TF__REPLY__BODY_SUBMITTED_BATCH, ASK_MS, &reply, e));
	if (!dry_run && reply->submitted_batch->n_job == count)
		memcpy(job, reply->submitted_batch->job, count * sizeof *job);
	else if (!dry_run)
		rc = wrong_answer(e);
	tf__reply__free_unpacked(reply, NULL);
	return rc;
}

int line_submit_members(struct transfuse *t, const struct line_member *member, size_t count,
			bool dry_run, uint64_t *job, struct err *e)
{
	ProtobufCBinaryData *packed;
	int rc;

	FAIL_IF(count > LIMIT_BATCH_JOBS, e, TF_ELIMIT, "%zu jobs at once, at most %u are possible",
		count, LIMIT_BATCH_JOBS);
	if (count == 0)
		return 0;
	packed = xcalloc(count, sizeof *packed);
	rc = pack_all(member, count, packed, e);
	if (rc == 0)
		rc = send_batch(t, packed, count, dry_run, job, e);
	for (size_t i = 0; i < count; i++)
		xfree(packed[i].data);
	xfree(packed);
	return rc;
}

int line_submit_batch(struct transfuse *t, Tf__JobSpec *const *spec, size_t count, uint64_t *job,
		      struct err *e)
{
	struct line_member *member = xcalloc(count + 1, sizeof *member);
	int rc;

	for (size_t i = 0; i < count; i++)
		member[i] = (struct line_member){ spec[i], -1 };
	rc = line_submit_members(t, member, count, false, job, e);
	xfree(member);
	return rc;
}

int line_news(struct transfuse *t, uint64_t job, uint64_t since, uint32_t timeout_ms,
	      Tf__Reply **out, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobWait m = TF__JOB_WAIT__INIT;

	m.job = job;
	m.has_since = m.has_timeout_ms = 1;
	m.since = since;
	m.timeout_ms = timeout_ms;
	r.body_case = TF__REQUEST__BODY_JOB_WAIT;
	r.job_wait = &m;
	TRY(line_ask(t, &r, TF__REPLY__BODY_JOBS, timeout_ms + ASK_MS, out, e));
	if ((*out)->jobs->n_job == 1)
		return 0;
	tf__reply__free_unpacked(*out, NULL);
	*out = NULL;
	return err_set(e, TF_EINTERNAL, "the daemon answered with no job");
}

static int send_page(struct transfuse *t, Tf__JobList *m, uint64_t most, uint64_t *id,
		     struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;

	m->has_limit = 1;
	m->limit = most < PAGE ? (uint32_t)most : PAGE;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = m;
	return connection_send(t->connection, &r, id, e);
}

/* An answer with a message Jobs, as it came. */
struct page {
	struct wire_message message;
	struct wire_cursor jobs;
	uint64_t count, next; /* next: where the following page begins; 0: there is none */
};

enum { JOBS_JOB = 1, JOBS_MORE = 2, JOBS_NEXT = 30 }; /* numbers of the fields of Jobs */

/* Finds the jobs in an answer; its error, if it is one or is of another kind. */
static int find_jobs(const struct transfuse *t, struct page *p, struct err *e)
{
	const uint8_t *data = zmq_msg_data(&p->message.body);
	size_t len = zmq_msg_size(&p->message.body);
	struct wire_cursor c = { data, data + len };
	Tf__Reply *reply = NULL;
	struct wire_field f;
	size_t others = 0;
	int rc;

	while ((rc = wire_next(&c, &f)) > 0)
		if (f.number == TF__REPLY__BODY_JOBS && f.type == WIRE_BYTES)
			p->jobs = f.bytes;
		else
			others++;
	if (rc == 0 && p->jobs.at && others == 2) /* version and id */
		return 0;
	if (wire_unpack_reply(data, len, &reply, e) < 0)
		return err_prefix(e, "the answer of %s", connection_endpoint(t->connection));
	rc = line_check(reply, TF__REPLY__BODY_JOBS, e);
	tf__reply__free_unpacked(reply, NULL);
	return rc;
}

static void look_through(struct page *p)
{
	struct wire_cursor c = p->jobs;
	struct wire_field f;
	uint64_t more = 0;

	while (wire_next(&c, &f) > 0) {
		p->count += f.number == JOBS_JOB;
		if (f.number == JOBS_MORE && f.type == WIRE_VARINT)
			more = f.value;
		if (f.number == JOBS_NEXT && f.type == WIRE_VARINT)
			p->next = f.value;
	}
	if (!more)
		p->next = 0;
}

/* Takes the page that was asked for. */
static int receive_page(struct transfuse *t, uint64_t id, struct page *p, struct err *e)
{
	uint64_t of;
	int rc;

	*p = (struct page){ .count = 0 };
	for (;;) {
		TRY(connection_receive_packed(t->connection, ASK_MS, &p->message, &of, e));
		if (of == id)
			break;
		wire_message_close(&p->message);
	}
	rc = find_jobs(t, p, e);
	if (rc == 0)
		look_through(p);
	else
		wire_message_close(&p->message);
	return rc;
}

static int each_job(struct transfuse *t, const struct page *p, line_job_fn fn, void *arg,
		    struct err *e)
{
	struct unpack_room room = { .used = 0 };
	struct wire_cursor c = p->jobs;
	struct wire_field f;
	int rc = 0;

	while (rc == 0 && wire_next(&c, &f) > 0) {
		ProtobufCMessage *job = NULL;

		if (f.number != JOBS_JOB)
			continue;
		rc = wire_unpack_part(&room, &tf__job__descriptor, f.bytes, &job, e);
		if (rc == 0)
			rc = fn(arg, (const Tf__Job *)job);
		else
			err_prefix(e, "the answer of %s", connection_endpoint(t->connection));
		unpack_room_clear(&room, job);
	}
	return rc;
}

/* The next page is asked for as soon as one is there, before its jobs are unpacked: the daemon
 * makes it meanwhile. */
int line_list_jobs(struct transfuse *t, Tf__JobList *m, uint64_t most, line_job_fn fn, void *arg,
		   struct err *e)
{
	uint64_t id = 0;
	int rc;

	FAIL_IF(!t->connection, e, TF_ENODAEMON, "there is no connection to a daemon");
	rc = send_page(t, m, most, &id, e);
	while (rc == 0 && id) {
		struct page page;

		rc = receive_page(t, id, &page, e);
		if (rc < 0)
			break;
		id = 0;
		most -= page.count < most ? page.count : most;
		m->has_before = 1;
		m->before = page.next;
		if (page.next && most > 0)
			rc = send_page(t, m, most, &id, e);
		if (rc == 0)
			rc = each_job(t, &page, fn, arg, e);
		wire_message_close(&page.message);
	}
	connection_forget(t->connection, id);
	return rc;
}

/* ---- programs */

/* Begins a call: the last one's error is forgotten. */
static struct err *begin(struct transfuse *t)
{
	err_clear(&t->err);
	return &t->err;
}

int transfuse_connect(const struct transfuse_place *place, struct transfuse **out)
{
	struct place_given given = { 0 };
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Empty empty = TF__EMPTY__INIT;
	Tf__Reply *reply = NULL;
	struct err e = ERR_INIT;
	int rc;

	if (place)
		given = (struct place_given){ place->endpoint, place->key_file,
					      place->server_key_file };
	rc = line_open(&given, NULL, out, &e);
	r.body_case = TF__REQUEST__BODY_PING;
	r.ping = &empty;
	if (rc == 0)
		rc = line_ask(*out, &r, TF__REPLY__BODY_OK, ASK_MS, &reply, &e);
	if (reply)
		tf__reply__free_unpacked(reply, NULL);
	(*out)->err = e;
	return rc;
}

void transfuse_close(struct transfuse *t)
{
	if (!t)
		return;
	connection_close(t->connection);
	place_release(&t->place);
	xfree(t);
}

const char *transfuse_error(const struct transfuse *t)
{
	return t->err.text;
}

int transfuse_submit(struct transfuse *t, const char *spec, uint64_t *job)
{
	struct err *e = begin(t);
	Tf__JobSpec *s = NULL;
	Tf__Reply *reply = NULL;
	int rc;

	TRY(spec_json_read(spec, strlen(spec), &s, e));
	rc = line_submit(t, s, false, &reply, e);
	tf__job_spec__free_unpacked(s, NULL);
	TRY(rc);
	*job = reply->submitted->job;
	tf__reply__free_unpacked(reply, NULL);
	return 0;
}

int transfuse_submit_batch(struct transfuse *t, const char *const *spec, size_t count,
			   uint64_t *job)
{
	struct err *e = begin(t);
	Tf__JobSpec **s;
	int rc = 0;

	FAIL_IF(count > TRANSFUSE_BATCH_MOST, e, TF_ELIMIT,
		"%zu jobs at once, at most %d are possible", count, TRANSFUSE_BATCH_MOST);
	s = xcalloc(count + 1, sizeof *s);
	for (size_t i = 0; rc == 0 && i < count; i++) {
		rc = spec_json_read(spec[i], strlen(spec[i]), &s[i], e);
		if (rc < 0)
			err_prefix(e, "job %zu of the batch", i + 1);
	}
	if (rc == 0)
		rc = line_submit_batch(t, s, count, job, e);
	for (size_t i = 0; i < count; i++)
		if (s[i])
			tf__job_spec__free_unpacked(s[i], NULL);
	xfree(s);
	return rc;
}

static double share(const Tf__Progress *p)
{
	if (!p || !p->has_done || !p->has_total || p->total == 0)
		return -1;
	return p->done < p->total ? (double)p->done / (double)p->total : 1;
}

static void tell(const Tf__Job *j, struct transfuse_job *out)
{
	*out = (struct transfuse_job){
		.id = j->id,
		.kind = job_kind_name(j->kind),
		.state = job_state_name(j->state),
		.ended = job_state_is_end(j->state),
		.done = j->state == TF__JOB_STATE__DONE,
		.attempt = j->attempt,
		.submitted_ms = j->submitted,
		.started_ms = j->started,
		.ended_ms = j->ended,
		.progress = share(j->progress),
	};
	snprintf(out->name, sizeof out->name, "%s", j->name ? j->name : "");
	snprintf(out->user, sizeof out->user, "%s", j->user ? j->user : "");
	snprintf(out->slot, sizeof out->slot, "%s", j->slot ? j->slot : "");
	snprintf(out->reason, sizeof out->reason, "%s", j->reason ? j->reason : "");
}

int transfuse_wait(struct transfuse *t, uint64_t job, int64_t timeout_ms,
		   struct transfuse_job *out)
{
	struct err *e = begin(t);
	int64_t until = clock_mono_ms() + timeout_ms;
	uint64_t since = 0;

	for (;;) {
		int64_t left = until - clock_mono_ms();
		Tf__Reply *reply = NULL;
		bool ended;

		left = left < 0 ? 0 : left < POLL_MS ? left : POLL_MS;
		TRY(line_news(t, job, since, (uint32_t)left, &reply, e));
		since = reply->jobs->job[0]->seq;
		ended = job_state_is_end(reply->jobs->job[0]->state);
		if (out)
			tell(reply->jobs->job[0], out);
		tf__reply__free_unpacked(reply, NULL);
		if (ended)
			return 0;
		FAIL_IF(clock_mono_ms() >= until, e, TF_ETIMEOUT,
			"job %" PRIu64 " has not ended in the time given", job);
	}
}

int transfuse_cancel(struct transfuse *t, const uint64_t *job, size_t count)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;
	Tf__Reply *reply = NULL;
	struct err *e = begin(t);
	int rc = 0;

	m.n_job = count;
	m.job = (uint64_t *)job;
	r.body_case = TF__REQUEST__BODY_JOB_CANCEL;
	r.job_cancel = &m;
	TRY(line_ask(t, &r, TF__REPLY__BODY_JOBS, ASK_MS, &reply, e));
	if (reply->jobs->n_refused > 0)
		rc = err_set(e, reply->jobs->refused[0]->code, "%s", reply->jobs->refused[0]->text);
	tf__reply__free_unpacked(reply, NULL);
	return rc;
}

struct told {
	int (*fn)(void *arg, const struct transfuse_job *job);
	void *arg;
};

static int tell_job(void *arg, const Tf__Job *job)
{
	const struct told *to = arg;
	struct transfuse_job j;

	tell(job, &j);
	return to->fn(to->arg, &j);
}

int transfuse_list(struct transfuse *t, int all, uint64_t before, size_t most,
		   int (*fn)(void *arg, const struct transfuse_job *job), void *arg)
{
	struct told to = { fn, arg };
	Tf__JobList m = TF__JOB_LIST__INIT;

	m.has_all = m.has_before = 1;
	m.all = all != 0;
	m.before = before;
	return line_list_jobs(t, &m, most ? most : UINT64_MAX, tell_job, &to, begin(t));
}
