/* SPDX-License-Identifier: Apache-2.0
 * Ends: what the outcome of an attempt, or its loss, makes of the job, and what the end of a job
 * means for those that wait for it, for what it used and for what it was making. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "lib/utf8.h"
#include "proto/retry.h"

#include <stdio.h>
#include <string.h>

/* How many bytes of a reason go into a record: a list of ten thousand must stay small. */
#define REASON_BYTES 500

static char *shortened(const char *text)
{
	size_t n = utf8_cut(text, REASON_BYTES);

	return text[n] ? xasprintf("%.*s...", (int)n, text) : xstrdup(text);
}

/* "attempt 2: why (crash 1 of 3)"; the caller's. */
static char *failure_text(const Tf__Job *j, Tf__Failure failure, uint32_t n, uint32_t times,
			  const char *why)
{
	const char *name = failure_name(failure);

	if (times == RETRY_ANY)
		return xstrdup(why);
	if (n <= times)
		return xasprintf("attempt %u: %s (%s %u of %u)", j->attempt, why, name, n,
				 times + 1);
	return n > 1 ? xasprintf("%s (%s %u of %u)", why, name, n, times + 1) : xstrdup(why);
}

/* Another attempt, as long as some are left after ends of this kind; later each time. */
static int retry_or_fail(struct daemon *d, const Tf__Job *j, Tf__Failure failure, const char *why,
			 struct job_edit *edit, struct err *e)
{
	uint32_t n = retry_number(j, failure, clock_wall_ms()), times;
	enum job_event event = EVENT_FAIL;
	Tf__SpecRecord *spec = NULL;
	char *reason;
	int rc;

	TRY(job_spec_get(d->state, j->id, &spec, e));
	times = retry_times(spec->spec, failure);
	if (n <= times) {
		int64_t delay = retry_delay_ms(spec->spec, failure, n);

		event = EVENT_REQUEUE;
		edit->next_try_ms = delay ? clock_wall_ms() + delay : 0;
		edit->outcome = NULL; /* the results are those of the last attempt */
	}
	record_free(spec);
	edit->failed = true;
	edit->failure = failure;
	edit->failures = n;
	edit->reason = reason = failure_text(j, failure, n, times, why);
	rc = job_change(d, j->id, event, edit, e);
	xfree(reason);
	return rc;
}

/* The attempt left because it was told to. */
static int left_as_told(struct daemon *d, const struct worker *w, const Tf__JobRecord *r,
			struct err *e)
{
	struct job_edit edit = { 0 };

	if (w->stop_at_ms)
		edit.lost_s = (double)(clock_mono_ms() - w->stop_at_ms) / 1e3;

	switch (r->job->stopping) {
	case TF__STOP_REASON__STOP_CANCEL:
		break; /* its reason says who wanted it */
	case TF__STOP_REASON__STOP_LIMIT:
		return job_change(d, r->job->id, EVENT_FAIL, &edit, e);
	case TF__STOP_REASON__STOP_PREEMPT:
		return retry_or_fail(d, r->job, TF__FAILURE__FAILURE_PREEMPTED,
				     r->job->reason ? r->job->reason : "", &edit, e);
	default:
		edit.reason = "stopped by a drain";
	}
	return job_change(d, r->job->id, EVENT_REQUEUE, &edit, e);
}

static int done(struct daemon *d, const Tf__JobRecord *r, const Tf__Outcome *outcome, struct err *e)
{
	struct job_edit edit = { .outcome = outcome, .reason = "" };
	struct err why = ERR_INIT;

	if (artefact_publish(d, r, outcome, &why) < 0) {
		edit.reason = why.text;
		log_line(LOG_ERROR, r->job->id, "publishing failed: %s", why.text);
		return job_change(d, r->job->id, EVENT_FAIL, &edit, e);
	}
	return job_change(d, r->job->id, EVENT_DONE, &edit, e);
}

static int failed(struct daemon *d, const Tf__JobRecord *r, const Tf__Outcome *outcome,
		  struct err *e)
{
	char *why = shortened(outcome->text && *outcome->text ? outcome->text
							      : err_text(outcome->code));
	struct job_edit edit = { .reason = why, .outcome = outcome };
	Tf__Failure failure = outcome->has_failure ? outcome->failure
			      : outcome->retry	   ? TF__FAILURE__FAILURE_CRASH
						   : TF__FAILURE__FAILURE_OTHER;
	int rc;

	if ((unsigned)failure >= FAILURES)
		failure = TF__FAILURE__FAILURE_OTHER; /* of a later program */
	rc = failure != TF__FAILURE__FAILURE_OTHER
		     ? retry_or_fail(d, r->job, failure, why, &edit, e)
		     : job_change(d, r->job->id, EVENT_FAIL, &edit, e);
	xfree(why);
	return rc;
}

/* The record, when this attempt is still the one that counts. */
static int current(struct daemon *d, const struct worker *w, Tf__JobRecord **out, struct err *e)
{
	TRY(job_get(d->state, w->job, out, e));
	if (job_state_active((*out)->job->state) && (*out)->job->attempt == w->attempt)
		return 0;
	record_free(*out);
	return err_set(e, TF_EFENCED, "attempt %u of job %llu is over", w->attempt,
		       (unsigned long long)w->job);
}

int job_outcome(struct daemon *d, struct worker *w, const Tf__Outcome *outcome, struct err *e)
{
	struct job_edit edit = { 0 };
	Tf__JobRecord *r = NULL;
	int rc;

	if (w->ended)
		return 0;
	TRY(current(d, w, &r, e));
	if (outcome->code == 0)
		rc = done(d, r, outcome, e);
	else if (outcome->code == TF_ECANCELLED && r->job->stopping != TF__STOP_REASON__STOP_NONE)
		rc = left_as_told(d, w, r, e);
	else if (outcome->code == TF_ECANCELLED)
		rc = retry_or_fail(d, r->job, TF__FAILURE__FAILURE_CRASH,
				   "the worker was told to stop, but not by the daemon", &edit, e);
	else
		rc = failed(d, r, outcome, e);
	if (rc == 0)
		rc = usage_attempt_ended(d, w, r->job, e);
	record_free(r);
	TRY(rc);
	w->ended = true;
	w->stop_at_ms = clock_mono_ms();
	return 0;
}

int job_lost(struct daemon *d, struct worker *w, Tf__Failure failure, const char *why,
	     struct err *e)
{
	struct job_edit edit = { 0 };
	Tf__JobRecord *r = NULL;
	int rc;

	if (w->ended)
		return 0;
	TRY(current(d, w, &r, e));
	rc = r->job->stopping != TF__STOP_REASON__STOP_NONE
		     ? left_as_told(d, w, r, e)
		     : retry_or_fail(d, r->job, failure, why, &edit, e);
	if (rc == 0)
		rc = usage_attempt_ended(d, w, r->job, e);
	record_free(r);
	TRY(rc);
	w->ended = true;
	return 0;
}

int job_wake(struct daemon *d, uint64_t id, struct err *e)
{
	Tf__JobRecord *r = NULL;
	struct err why = ERR_INIT;
	struct job_edit edit = { .reason = why.text };
	Tf__JobState state;
	int rc;

	TRY(job_get(d->state, id, &r, e));
	state = r->job->state;
	rc = job_state_is_end(state) ? 1 : after_look(d, r->job, &why);
	record_free(r);
	if (rc == TF_EREFUSED || rc == TF_ENOTFOUND)
		return job_change(d, id, EVENT_UNREADY, &edit, e);
	FAIL_IF(rc < 0, e, rc, "%s", why.text);
	if (rc == 0 && state == TF__JOB_STATE__WAITING)
		return job_change(d, id, EVENT_READY, NULL, e);
	return 0;
}

static int wake_waiters(struct daemon *d, uint64_t id, struct err *e)
{
	uint64_t *waiter = NULL;
	size_t n = 0;
	int rc = job_waiters(d->state, id, &waiter, &n, e);

	for (size_t i = 0; rc == 0 && i < n; i++) {
		rc = job_after_delete(d->state, id, waiter[i], e);
		if (rc == 0)
			rc = job_wake(d, waiter[i], e);
	}
	xfree(waiter);
	return rc;
}

size_t spec_uploads(const Tf__JobSpec *spec, char ***out)
{
	*out = NULL;
	if (spec->spec_case == TF__JOB_SPEC__SPEC_INGEST)
		*out = spec->ingest->upload;
	else if (spec->spec_case == TF__JOB_SPEC__SPEC_TOKENIZER)
		*out = spec->tokenizer->upload;
	else
		return 0;
	return spec->spec_case == TF__JOB_SPEC__SPEC_INGEST ? spec->ingest->n_upload
							    : spec->tokenizer->n_upload;
}

/* An upload goes with the last job that used it. */
static int drop_upload(struct daemon *d, const char *id, const char *job, struct err *e)
{
	uint8_t token[16];
	char who, *name = NULL;

	TRY(use_delete(d->state, id, 'j', job, e));
	if (use_find(d->state, id, &who, &name, e) == TF_ENOTFOUND && upload_token(id, token)) {
		TRY(upload_delete(d->state, token, e));
		loop_doom(d, daemon_path(d, "uploads/%s", id));
	}
	xfree(name);
	return 0;
}

static int drop_uses(struct daemon *d, uint64_t id, struct err *e)
{
	Tf__SpecRecord *spec = NULL;
	char job[24], **upload;
	size_t n;
	int rc;

	snprintf(job, sizeof job, "%llu", (unsigned long long)id);
	TRY(job_spec_get(d->state, id, &spec, e));
	rc = 0;
	for (size_t i = 0; rc == 0 && i < spec->n_input; i++)
		rc = use_delete(d->state, spec->input[i]->id, 'j', job, e);
	n = spec_uploads(spec->spec, &upload);
	for (size_t i = 0; rc == 0 && i < n; i++)
		rc = drop_upload(d, upload[i], job, e);
	record_free(spec);
	return rc;
}

static int follow_up(struct daemon *d, uint64_t id, struct err *e)
{
	Tf__JobRecord *r = NULL;
	int rc = 0;

	TRY(job_get(d->state, id, &r, e));
	CHECK(job_state_is_end(r->job->state));
	if (r->artefact && r->job->state != TF__JOB_STATE__DONE)
		rc = artefact_unmake(d, r->artefact, e);
	if (rc == 0)
		rc = quota_job_ended(d, r, e);
	notice_job_end(d, r->job);
	record_free(r);
	if (rc == 0)
		rc = drop_uses(d, id, e);
	return rc == 0 ? wake_waiters(d, id, e) : rc;
}

void job_follow_up(struct daemon *d)
{
	uint64_t id;

	/* the list grows while it is walked: a failed job may end others */
	for (size_t at = 0; at < d->ended.len; at += sizeof id) {
		struct err e = ERR_INIT;

		memcpy(&id, d->ended.data + at, sizeof id);
		if (follow_up(d, id, &e) < 0)
			log_line(LOG_ERROR, id, "after its end: %s", e.text);
	}
	if (d->ended.len)
		notice_jobs_ended(d);
	buf_clear(&d->ended);
}
