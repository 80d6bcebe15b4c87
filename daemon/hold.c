/* SPDX-License-Identifier: Apache-2.0
 * Requests that keep jobs back and bring them again: hold, release, requeue. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/job.h"
#include "daemon/submit.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

#define BY_MAX (LIMIT_NAME_BYTES + 32)

static int hold_one(struct daemon *d, const struct request *r, uint64_t id, struct err *e)
{
	struct job_edit edit = { 0 };
	const struct job *j = live_find(&d->live, id);
	char reason[BY_MAX];

	if (j && j->state == TF__JOB_STATE__HELD)
		return 0;
	snprintf(reason, sizeof reason, "held by %s", r->user);
	edit.reason = reason;
	return job_change(d, id, EVENT_HOLD, &edit, e);
}

int handle_job_hold(struct daemon *d, struct request *r)
{
	return handle_each(d, r, r->message->job_hold, hold_one);
}

static int release_one(struct daemon *d, const struct request *r, uint64_t id, struct err *e)
{
	struct job_edit edit = { .reason = "" };
	const struct job *j = live_find(&d->live, id);

	(void)r;
	if (j && (j->state == TF__JOB_STATE__QUEUED || j->state == TF__JOB_STATE__WAITING))
		return 0;
	TRY(job_change(d, id, EVENT_RELEASE, &edit, e));
	return job_wake(d, id, e);
}

int handle_job_release(struct daemon *d, struct request *r)
{
	return handle_each(d, r, r->message->job_release, release_one);
}

/* What the job read must still be there: nothing kept it since the job ended. */
static int check_inputs(struct daemon *d, const Tf__SpecRecord *s, struct err *e)
{
	char **upload;
	size_t uploads = spec_uploads(s->spec, &upload);

	for (size_t i = 0; i < s->n_input; i++) {
		const Tf__Input *in = s->input[i];
		Tf__ArtefactRecord *a = NULL;
		int rc = artefact_get(d->state, in->id, &a, e);

		record_free(a);
		FAIL_IF(rc == TF_ENOTFOUND, e, TF_ENOTFOUND, "%s '%s', which it used, is gone",
			artefact_kind_name(in->kind), in->name);
		TRY(rc);
	}
	for (size_t i = 0; i < uploads; i++)
		if (upload_path(d, upload[i], NULL, NULL, e) < 0)
			return err_set(e, TF_ENOTFOUND,
				       "the files sent for it are gone: submit it again");
	return 0;
}

static int put_back(struct daemon *d, const struct request *r, const Tf__JobRecord *record,
		    const Tf__SpecRecord *s, struct err *e)
{
	uint64_t id = record->job->id;
	struct job_edit edit = { 0 };
	char reason[BY_MAX];

	FAIL_IF(job_next(record->job->state, EVENT_AGAIN) == 0, e, TF_ESTATE,
		"job %llu is %s: only a failed or cancelled one can be put back",
		(unsigned long long)id, job_state_name(record->job->state));
	TRY(disk_check(d, e));
	TRY(quota_check(d, record->job->user, 0, e));
	TRY(queue_admit(d, r, record->job->user, s->spec, e));
	TRY(after_look(d, record->job, e));
	TRY(check_inputs(d, s, e));
	TRY(artefact_reserve_again(d, s->spec, record, r, e));
	TRY(submit_put_made_from(d, record->artefact, s->input, s->n_input, e));
	TRY(submit_put_uses(d, id, s->spec, s->input, s->n_input, e));
	TRY(after_put(d, record->job, e));
	snprintf(reason, sizeof reason, "put back by %s", r->user);
	edit.reason = reason;
	TRY(job_change(d, id, EVENT_AGAIN, &edit, e));
	return job_wake(d, id, e);
}

static int requeue_one(struct daemon *d, const struct request *r, uint64_t id, struct err *e)
{
	Tf__JobRecord *record = NULL;
	Tf__SpecRecord *spec = NULL;
	int rc;

	job_follow_up(d); /* it may have ended in this turn: what comes of that comes first */
	rc = job_get(d->state, id, &record, e);
	if (rc == 0)
		rc = job_spec_get(d->state, id, &spec, e);
	if (rc == 0)
		rc = put_back(d, r, record, spec, e);
	record_free(record);
	record_free(spec);
	return rc;
}

int handle_job_requeue(struct daemon *d, struct request *r)
{
	return handle_each(d, r, r->message->job_requeue, requeue_one);
}
