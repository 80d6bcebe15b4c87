/* SPDX-License-Identifier: Apache-2.0
 * The life of a job: one table, one setter. Every change of a job's state goes through job_change,
 * which looks into the table, writes the record into the turn's transaction, and announces it. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/retry.h"

#include <string.h>

#define SEQ_RESERVE 1000000u

#define Q TF__JOB_STATE__QUEUED
#define W TF__JOB_STATE__WAITING
#define H TF__JOB_STATE__HELD
#define S TF__JOB_STATE__STARTING
#define R_ TF__JOB_STATE__RUNNING
#define P TF__JOB_STATE__STOPPING
#define D TF__JOB_STATE__DONE
#define F TF__JOB_STATE__FAILED
#define C TF__JOB_STATE__CANCELLED

/* A job that is released or put back waits first, and is made ready at once when it waits for
 * nothing. A stopping job that is cancelled stays stopping; its reason changes. An attempt may
 * report its outcome while still starting: the daemon that took its hello died before the commit.
 */
/* clang-format off */
static const uint8_t next[TF__JOB_STATE__CANCELLED + 1][JOB_EVENTS] = {
	/*       ready unready hold release start hello stop cancel done fail requeue again */
	[Q]  = { 0,    0,      H,   0,      S,    0,    0,   C,     0,   F,   0,      0 },
	[W]  = { Q,    C,      H,   0,      0,    0,    0,   C,     0,   0,   0,      0 },
	[H]  = { 0,    C,      0,   W,      0,    0,    0,   C,     0,   0,   0,      0 },
	[S]  = { 0,    0,      0,   0,      0,    R_,   P,   P,     D,   F,   Q,      0 },
	[R_] = { 0,    0,      0,   0,      0,    R_,   P,   P,     D,   F,   Q,      0 },
	[P]  = { 0,    0,      0,   0,      0,    P,    P,   P,     D,   F,   Q,      0 },
	[D]  = { 0 },
	[F]  = { 0,    0,      0,   0,      0,    0,    0,   0,     0,   0,   0,      W },
	[C]  = { 0,    0,      0,   0,      0,    0,    0,   0,     0,   0,   0,      W },
};
/* clang-format on */

/* A stopping job ends cancelled when its attempt is over and a person wanted it so. */
#define CANCELLED_AT_LAST(record, event)                                                           \
	((record)->job->state == P && (record)->job->stopping == TF__STOP_REASON__STOP_CANCEL &&   \
	 ((event) == EVENT_REQUEUE || (event) == EVENT_FAIL))

Tf__JobState job_next(Tf__JobState state, enum job_event event)
{
	CHECK((size_t)event < JOB_EVENTS);
	CHECK(state >= Q && state <= C);
	return (Tf__JobState)next[state][event];
}

const char *job_event_name(enum job_event event)
{
	static const char *const names[JOB_EVENTS] = {
		"made ready", "given up",  "held", "released", "started",      "greeted",
		"stopped",    "cancelled", "done", "failed",   "queued again", "put back",
	};

	return names[event];
}

uint64_t job_seq(struct daemon *d)
{
	if (++d->seq > d->seq_reserved) {
		d->seq_reserved = d->seq + SEQ_RESERVE;
		state_set_number(d->state, "seq", d->seq_reserved, NULL);
	}
	return d->seq;
}

/* Replaces an owned string of a record. */
static void set_text(char **field, const char *text)
{
	xfree(*field);
	*field = text && *text ? xstrdup(text) : NULL;
}

static void clear_metrics(size_t *n, Tf__Metric ***list)
{
	for (size_t i = 0; i < *n; i++)
		tf__metric__free_unpacked((*list)[i], NULL);
	xfree(*list);
	*n = 0;
}

static void copy_metrics(size_t from_n, Tf__Metric *const *from, size_t *n, Tf__Metric ***list)
{
	clear_metrics(n, list);
	*list = xcalloc(LIMIT_METRICS, sizeof **list);
	for (size_t i = 0; i < from_n && *n < LIMIT_METRICS; i++) {
		Tf__Metric *m;

		if (strlen(from[i]->name) > LIMIT_NAME_BYTES)
			continue; /* a list of jobs has room for so much of each */
		m = (*list)[(*n)++] = xmalloc(sizeof *m);
		tf__metric__init(m);
		m->name = xstrdup(from[i]->name);
		m->value = from[i]->value;
	}
}

static void clear_results(Tf__Job *j)
{
	clear_metrics(&j->n_result, &j->result);
	clear_metrics(&j->n_timing, &j->timing);
}

static void set_results(Tf__Job *j, const Tf__Outcome *outcome)
{
	copy_metrics(outcome->n_result, outcome->result, &j->n_result, &j->result);
	copy_metrics(outcome->n_timing, outcome->timing, &j->n_timing, &j->timing);
}

/* The reason's row of the job's tally, made when there is none. */
static Tf__StopTally *tally_of(Tf__Job *j, Tf__StopReason reason)
{
	for (size_t i = 0; i < j->n_stop; i++)
		if (j->stop[i]->reason == reason)
			return j->stop[i];
	j->stop = xrealloc(j->stop, j->n_stop + 1, sizeof *j->stop);
	j->stop[j->n_stop] = xmalloc(sizeof **j->stop);
	tf__stop_tally__init(j->stop[j->n_stop]);
	j->stop[j->n_stop]->reason = reason;
	j->stop[j->n_stop]->has_lost_s = true;
	return j->stop[j->n_stop++];
}

/* A stopping attempt is over: why, how often, what it cost; what it did counts for the walltime
 * when it goes on from there. */
static void count_stop(Tf__JobRecord *r, Tf__JobState to, double lost_s)
{
	Tf__StopReason reason = r->job->stopping;
	Tf__StopTally *t = tally_of(r->job, reason);

	t->times++;
	t->lost_s += lost_s;
	if (to != Q)
		return;
	r->has_ran_ms = r->has_resuming = true;
	r->ran_ms += clock_wall_ms() - r->job->started;
	r->resuming = reason;
}

int job_resumed(struct daemon *d, struct job *j, struct err *e)
{
	Tf__JobRecord *r = NULL;
	int rc;

	TRY(job_get(d->state, j->id, &r, e));
	tally_of(r->job, r->resuming)->lost_s += (double)(clock_wall_ms() - r->job->started) / 1e3;
	r->has_resuming = false;
	r->resuming = TF__STOP_REASON__STOP_NONE;
	rc = job_put(d->state, r, e);
	if (rc == 0)
		j->resuming = TF__STOP_REASON__STOP_NONE;
	record_free(r);
	return rc;
}

/* As if it had not run; the attempts go on counting, so that none of the earlier ones is heard. */
static void put_back(Tf__JobRecord *r)
{
	Tf__Job *j = r->job;

	j->has_requeued = true;
	j->requeued++;
	xfree(j->failed);
	j->n_failed = 0;
	j->has_failure = false;
	j->failure = TF__FAILURE__FAILURE_OTHER;
	r->has_ran_ms = r->has_resuming = false;
	r->ran_ms = 0;
	r->resuming = TF__STOP_REASON__STOP_NONE;
	clear_results(j);
	if (j->progress)
		tf__progress__free_unpacked(j->progress, NULL);
	j->progress = NULL;
	j->has_started = false;
	j->started = 0;
	set_text(&j->slot, NULL);
}

static void count_failure(Tf__Job *j, Tf__Failure failure, uint32_t times)
{
	j->has_failure = true;
	j->failure = failure;
	if (j->n_failed < FAILURES) {
		j->failed = xrealloc(j->failed, FAILURES, sizeof *j->failed);
		memset(j->failed + j->n_failed, 0, (FAILURES - j->n_failed) * sizeof *j->failed);
		j->n_failed = FAILURES;
	}
	j->failed[failure] = times;
}

/* Writes the new state and what goes with it into the record. */
static void edit_record(struct daemon *d, Tf__JobRecord *r, Tf__JobState to, enum job_event event,
			const struct job_edit *edit)
{
	static const struct job_edit nothing;
	Tf__Job *j = r->job;
	bool ended = job_state_is_end(to);

	edit = edit ? edit : &nothing;
	if (j->state == P && to != P)
		count_stop(r, to, edit->lost_s);
	if (event == EVENT_START) {
		j->has_attempt = true;
		j->attempt++;
		j->has_started = true;
		j->started = clock_wall_ms();
		set_text(&j->slot, edit->slot);
		set_text(&j->reason, NULL);
	}
	if (event == EVENT_AGAIN)
		put_back(r);
	if (edit->failed)
		count_failure(j, edit->failure, edit->failures);
	j->has_next_try = to == Q && edit->next_try_ms > 0;
	j->next_try = j->has_next_try ? edit->next_try_ms : 0;
	if (edit->reason)
		set_text(&j->reason, edit->reason);
	if (edit->outcome)
		set_results(j, edit->outcome);
	if (to == Q)
		set_text(&j->slot, NULL);
	if (to != P)
		j->stopping = TF__STOP_REASON__STOP_NONE;
	else if (j->stopping != TF__STOP_REASON__STOP_CANCEL && edit->stopping)
		j->stopping = edit->stopping;
	j->has_stopping = j->stopping != TF__STOP_REASON__STOP_NONE;
	if (ended && live_find(&d->live, j->id)) {
		/* the last progress stays with the record */
		if (j->progress)
			tf__progress__free_unpacked(j->progress, NULL);
		j->progress = live_find(&d->live, j->id)->progress;
		live_find(&d->live, j->id)->progress = NULL;
	}
	j->has_ended = ended;
	j->ended = ended ? clock_wall_ms() : 0;
	j->state = to;
	j->has_seq = true;
	j->seq = job_seq(d);
}

/* The memory follows the record. */
static void announce(struct daemon *d, const Tf__JobRecord *r)
{
	struct job *j = live_find(&d->live, r->job->id);
	bool ended = job_state_is_end(r->job->state);

	if (!j && !ended)
		j = live_add(&d->live, r); /* it was put back */
	CHECK(j);
	d->announced = d->schedule_due = true;
	log_line(LOG_INFO, r->job->id, "state=%s attempt=%u%s%s", job_state_name(r->job->state),
		 r->job->attempt, r->job->reason ? " reason=" : "",
		 r->job->reason ? r->job->reason : "");
	if (ended) {
		buf_append(&d->ended, &r->job->id, sizeof r->job->id);
		live_remove(&d->live, r->job->id);
		return;
	}
	if (j->attempt != r->job->attempt && j->progress) {
		tf__progress__free_unpacked(j->progress, NULL);
		j->progress = NULL;
	}
	j->seq = r->job->seq;
	j->attempt = r->job->attempt;
	j->stopping = (uint8_t)r->job->stopping;
	j->begin_ms = begin_of(r->job);
	j->started_ms = r->job->started;
	j->ran_ms = r->ran_ms;
	j->resuming = (uint8_t)r->resuming;
	live_state(&d->live, j, r->job->state);
}

int job_change(struct daemon *d, uint64_t id, enum job_event event, const struct job_edit *edit,
	       struct err *e)
{
	Tf__JobRecord *r = NULL;
	Tf__JobState to;
	int rc;

	TRY(job_get(d->state, id, &r, e));
	to = job_next(r->job->state, event);
	if (to != 0 && CANCELLED_AT_LAST(r, event))
		to = C;
	if (to == 0) {
		rc = err_set(e, TF_ESTATE, "job %llu is %s: it cannot be %s",
			     (unsigned long long)id, job_state_name(r->job->state),
			     job_event_name(event));
	} else {
		edit_record(d, r, to, event, edit);
		rc = job_put(d->state, r, e);
	}
	if (rc == 0)
		announce(d, r);
	record_free(r);
	return rc;
}

void job_progress(struct daemon *d, struct job *j, const Tf__Progress *progress)
{
	size_t len = tf__progress__get_packed_size(progress);
	uint8_t *copy = xmalloc(len + 1);

	tf__progress__pack(progress, copy);
	if (j->progress)
		tf__progress__free_unpacked(j->progress, NULL);
	j->progress = tf__progress__unpack(NULL, len, copy);
	xfree(copy);
	j->seq = job_seq(d);
	d->announced = true;
}

void job_view(struct daemon *d, const Tf__JobRecord *record, struct job_view *out)
{
	const struct job *j = live_find(&d->live, record->job->id);

	out->job = *record->job;
	if (!j)
		return;
	out->job.seq = j->seq;
	out->job.progress = j->progress;
	queue_describe(d, j, &out->job, out->waits);
}
