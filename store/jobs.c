/* SPDX-License-Identifier: Apache-2.0
 * Jobs in the store; see jobs.h. */
#include "config.h"
#include "store/jobs.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "proto/wire_check.h"

#include <string.h>

bool job_state_active(Tf__JobState state)
{
	return state == TF__JOB_STATE__STARTING || state == TF__JOB_STATE__RUNNING ||
	       state == TF__JOB_STATE__STOPPING;
}

int jobs_next_id(struct state *s, uint64_t count, uint64_t *first, struct err *e)
{
	uint64_t last;

	TRY(state_number(s, "last-job", &last, e));
	TRY(state_set_number(s, "last-job", last + count, e));
	*first = last + 1;
	return 0;
}

int jobs_return_ids(struct state *s, uint64_t count, uint64_t first, struct err *e)
{
	uint64_t last;

	TRY(state_number(s, "last-job", &last, e));
	return last == first + count - 1 ? state_set_number(s, "last-job", first - 1, e) : 0;
}

/* What must hold of a record, before it is put and after it is got. */
static bool record_is_whole(const Tf__JobRecord *r)
{
	const Tf__Job *j = r->job;

	return j->id != 0 && r->token.len == TOKEN_BYTES && j->state >= TF__JOB_STATE__QUEUED &&
	       j->state <= TF__JOB_STATE__CANCELLED && j->kind >= TF__JOB_KIND__INGEST &&
	       j->kind <= TF__JOB_KIND__NOOP && (!job_state_active(j->state) || j->attempt > 0) &&
	       (j->state == TF__JOB_STATE__STOPPING) == (j->stopping != TF__STOP_REASON__STOP_NONE);
}

/* A job keeps its token: no page is changed for it again. */
static int token_put(struct state *s, const Tf__JobRecord *r, const uint8_t key[8], struct err *e)
{
	uint64_t known;
	int rc = job_by_token(s, r->token.data, &known, e);

	if (rc != TF_ENOTFOUND)
		return rc;
	return state_put(s, STATE_TOKENS, r->token.data, TOKEN_BYTES, key, 8, e);
}

int job_put(struct state *s, Tf__JobRecord *record, struct err *e)
{
	uint8_t key[8];

	CHECK(record_is_whole(record));
	state_key(record->job->id, key);
	TRY(record_put(s, STATE_JOBS, key, sizeof key, &record->base, e));
	if (job_state_is_end(record->job->state))
		TRY(state_delete(s, STATE_LIVE, key, sizeof key, e));
	else
		TRY(state_put(s, STATE_LIVE, key, sizeof key, "", 0, e));
	return token_put(s, record, key, e);
}

static int check_job(const Tf__JobRecord *r, uint64_t id, struct err *e)
{
	FAIL_IF(r->job->id != id || !record_is_whole(r), e, TF_ECORRUPT,
		"store: the record of job %llu contradicts itself", (unsigned long long)id);
	return 0;
}

int job_get(struct state *s, uint64_t id, Tf__JobRecord **out, struct err *e)
{
	struct state_value v;
	uint8_t key[8];
	int rc;

	state_key(id, key);
	rc = state_get(s, STATE_JOBS, key, sizeof key, &v, e);
	FAIL_IF(rc == TF_ENOTFOUND, e, TF_ENOTFOUND, "no job %llu", (unsigned long long)id);
	TRY(rc);
	TRY(record_unpack(v, &tf__job_record__descriptor, out, e));
	rc = check_job(*out, id, e);
	if (rc < 0)
		record_free(*out);
	return rc;
}

int job_spec_put(struct state *s, uint64_t id, Tf__SpecRecord *record, struct err *e)
{
	uint8_t key[8];

	state_key(id, key);
	return record_put(s, STATE_SPECS, key, sizeof key, &record->base, e);
}

int job_spec_get(struct state *s, uint64_t id, Tf__SpecRecord **out, struct err *e)
{
	uint8_t key[8];
	int rc;

	state_key(id, key);
	rc = record_get(s, STATE_SPECS, key, sizeof key, &tf__spec_record__descriptor, out, e);
	FAIL_IF(rc == TF_ENOTFOUND, e, TF_ENOTFOUND, "no job %llu", (unsigned long long)id);
	return rc;
}

int job_by_token(struct state *s, const uint8_t token[TOKEN_BYTES], uint64_t *out,
		 struct err *e)
{
	struct state_value v;

	TRY(state_get(s, STATE_TOKENS, token, TOKEN_BYTES, &v, e));
	FAIL_IF(v.len != 8, e, TF_ECORRUPT, "store: a token leads to %zu bytes instead of 8",
		v.len);
	*out = state_key_number(v.data);
	return 0;
}

#define RECORD_JOB 2 /* the number of JobRecord.job */

struct walk {
	struct state *state;
	job_fn job;
	job_row_fn row;
	attempt_fn attempt;
	void *arg;
	struct err *e;
	struct unpack_room room;
};

/* The message Job in the bytes of a JobRecord. */
static int walk_row(const struct walk *w, Tf__JobRecord *r, struct state_value record)
{
	struct wire_cursor c = { record.data, (const uint8_t *)record.data + record.len };
	struct state_value job = { NULL, 0 };
	struct wire_field f;
	int found = 0;

	while (wire_next(&c, &f) > 0)
		if (f.number == RECORD_JOB && f.type == WIRE_BYTES) {
			job = (struct state_value){ f.bytes.at, f.bytes.end - f.bytes.at };
			found++;
		}
	FAIL_IF(found != 1, w->e, TF_ECORRUPT, "store: the record of job %llu has %d jobs",
		(unsigned long long)r->job->id, found);
	return w->row(w->arg, r, job);
}

static int walk_job(void *arg, struct state_value key, struct state_value value)
{
	struct walk *w = arg;
	Tf__JobRecord *r = NULL;
	int rc = record_unpack_in(&w->room, value, &tf__job_record__descriptor, &r, w->e);

	if (rc == 0)
		rc = check_job(r, state_key_number(key.data), w->e);
	if (rc == 0)
		rc = w->row ? walk_row(w, r, value) : w->job(w->arg, r);
	unpack_room_clear(&w->room, r ? &r->base : NULL);
	return rc;
}

static int walk_live(void *arg, struct state_value key, struct state_value value)
{
	struct walk *w = arg;

	(void)value;
	TRY(state_get(w->state, STATE_JOBS, key.data, key.len, &value, w->e));
	return walk_job(w, key, value);
}

int jobs_each(struct state *s, uint64_t before, job_fn fn, void *arg, struct err *e)
{
	struct walk w = { .state = s, .job = fn, .arg = arg, .e = e };
	uint8_t key[8];

	state_key(before, key);
	return state_each(s, STATE_JOBS, key, before ? sizeof key : 0, true, walk_job, &w, e);
}

int jobs_each_upward(struct state *s, uint64_t from, job_fn fn, void *arg, struct err *e)
{
	struct walk w = { .state = s, .job = fn, .arg = arg, .e = e };
	uint8_t key[8];

	state_key(from, key);
	return state_each(s, STATE_JOBS, key, sizeof key, false, walk_job, &w, e);
}

int jobs_each_live(struct state *s, job_fn fn, void *arg, struct err *e)
{
	struct walk w = { .state = s, .job = fn, .arg = arg, .e = e };

	return state_each(s, STATE_LIVE, NULL, 0, false, walk_live, &w, e);
}

int jobs_list(struct state *s, bool all, uint64_t before, job_row_fn fn, void *arg, struct err *e)
{
	struct walk w = { .state = s, .row = fn, .arg = arg, .e = e };
	uint8_t key[8];

	state_key(before, key);
	return state_each(s, all ? STATE_JOBS : STATE_LIVE, key, before ? sizeof key : 0, true,
			  all ? walk_job : walk_live, &w, e);
}

static void pair_key(uint64_t job, uint64_t second, uint8_t key[16])
{
	state_key(job, key);
	state_key(second, key + 8);
}

int job_after_put(struct state *s, uint64_t job, uint64_t waiter, struct err *e)
{
	uint8_t key[16];

	pair_key(job, waiter, key);
	return state_put(s, STATE_AFTER, key, sizeof key, "", 0, e);
}

int job_after_delete(struct state *s, uint64_t job, uint64_t waiter, struct err *e)
{
	uint8_t key[16];

	pair_key(job, waiter, key);
	return state_delete(s, STATE_AFTER, key, sizeof key, e);
}

struct waiters {
	uint64_t job;
	uint64_t *id;
	size_t count;
};

static int walk_waiter(void *arg, struct state_value key, struct state_value value)
{
	struct waiters *w = arg;

	(void)value;
	if (key.len != 16 || state_key_number(key.data) != w->job)
		return 1;
	w->id = xrealloc(w->id, w->count + 1, sizeof *w->id);
	w->id[w->count++] = state_key_number((const uint8_t *)key.data + 8);
	return 0;
}

int job_waiters(struct state *s, uint64_t job, uint64_t **out, size_t *count, struct err *e)
{
	struct waiters w = { job, NULL, 0 };
	uint8_t key[16];
	int rc;

	pair_key(job, 0, key);
	rc = state_each(s, STATE_AFTER, key, sizeof key, false, walk_waiter, &w, e);
	*out = w.id;
	*count = w.count;
	return rc;
}

int attempt_put(struct state *s, Tf__AttemptRecord *record, struct err *e)
{
	uint8_t key[16];

	CHECK(record->job && record->attempt && record->pid);
	pair_key(record->job, record->attempt, key);
	return record_put(s, STATE_ATTEMPTS, key, sizeof key, &record->base, e);
}

int attempt_delete(struct state *s, uint64_t job, uint32_t attempt, struct err *e)
{
	uint8_t key[16];

	pair_key(job, attempt, key);
	return state_delete(s, STATE_ATTEMPTS, key, sizeof key, e);
}

static int walk_attempt(void *arg, struct state_value key, struct state_value value)
{
	struct walk *w = arg;
	Tf__AttemptRecord *r = NULL;
	int rc;

	(void)key;
	TRY(record_unpack(value, &tf__attempt_record__descriptor, &r, w->e));
	rc = w->attempt(w->arg, r);
	record_free(r);
	return rc;
}

int attempts_each(struct state *s, attempt_fn fn, void *arg, struct err *e)
{
	struct walk w = { .state = s, .attempt = fn, .arg = arg, .e = e };

	return state_each(s, STATE_ATTEMPTS, NULL, 0, false, walk_attempt, &w, e);
}

static int first_key(void *arg, struct state_value key, struct state_value value)
{
	(void)value;
	if (key.len != 16)
		return TF_ECORRUPT;
	memcpy(arg, key.data, 16);
	return 1;
}

int attempts_forget(struct state *s, struct err *e)
{
	uint8_t key[16];

	while (state_count(s, STATE_ATTEMPTS) > 0) {
		TRY(state_each(s, STATE_ATTEMPTS, NULL, 0, false, first_key, key, e));
		TRY(state_delete(s, STATE_ATTEMPTS, key, sizeof key, e));
	}
	return 0;
}
