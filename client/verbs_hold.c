/* SPDX-License-Identifier: Apache-2.0
 * Verbs that change jobs which are there: cancel, hold, release, requeue. */
#include "config.h"
#include "client/client.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <stdio.h>

/* A running job is cancelled once its worker has left: until then it is stopping. */
static void print_changed(const struct client *c, const Tf__Jobs *jobs)
{
	json_t *list = json_array();

	for (size_t i = 0; i < jobs->n_job; i++) {
		const Tf__Job *j = jobs->job[i];

		json_array_append_new(list, json_of_job(j));
		if (!args_has(&c->args, OPTION_JSON))
			printf("job %" PRIu64 " is %s\n", j->id,
			       j->state == TF__JOB_STATE__STOPPING ? "being cancelled"
								   : job_state_name(j->state));
	}
	for (size_t i = 0; i < jobs->n_refused; i++) {
		const Tf__JobRefusal *r = jobs->refused[i];

		json_array_append_new(list, json_pack("{sI ss}", "id", (json_int_t)r->job,
						      "refused", r->text));
		if (!args_has(&c->args, OPTION_JSON))
			fprintf(stderr, "transfuse: %s\n", r->text);
	}
	if (args_has(&c->args, OPTION_JSON))
		json_print(json_incref(list));
	json_decref(list);
}

/* Some of several jobs are as they were. */
static int say_refused(struct client *c, const Tf__Jobs *jobs, struct err *e)
{
	if (jobs->n_refused == 0)
		return STATUS_DONE;
	return client_note(c, err_set(e, jobs->refused[0]->code, "%zu of %zu jobs are not changed",
				      jobs->n_refused, jobs->n_refused + jobs->n_job));
}

/* Sends the jobs that are named, or those with the tags and one of the states. */
static int change(struct client *c, Tf__Request__BodyCase what, const Tf__JobState *state,
		  size_t states, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;
	struct selection s;
	Tf__Reply *reply;
	int rc = selection_read(c, state, states, &s, e);

	m.job = s.id;
	m.n_job = s.count;
	r.body_case = what;
	r.job_cancel = &m; /* the same for all of them */
	if (rc == 0)
		rc = client_ask(c, &r, TF__REPLY__BODY_JOBS, &reply, e);
	selection_release(&s);
	TRY(rc);
	print_changed(c, reply->jobs);
	rc = say_refused(c, reply->jobs, e);
	tf__reply__free_unpacked(reply, NULL);
	return rc;
}

int verb_cancel(struct client *c, struct err *e)
{
	static const Tf__JobState live[] = {
		TF__JOB_STATE__QUEUED,   TF__JOB_STATE__WAITING, TF__JOB_STATE__HELD,
		TF__JOB_STATE__STARTING, TF__JOB_STATE__RUNNING, TF__JOB_STATE__STOPPING,
	};

	return change(c, TF__REQUEST__BODY_JOB_CANCEL, live, ARRAY_LEN(live), e);
}

int verb_hold(struct client *c, struct err *e)
{
	static const Tf__JobState before[] = { TF__JOB_STATE__QUEUED, TF__JOB_STATE__WAITING };

	return change(c, TF__REQUEST__BODY_JOB_HOLD, before, ARRAY_LEN(before), e);
}

int verb_release(struct client *c, struct err *e)
{
	static const Tf__JobState held = TF__JOB_STATE__HELD;

	return change(c, TF__REQUEST__BODY_JOB_RELEASE, &held, 1, e);
}

int verb_requeue(struct client *c, struct err *e)
{
	static const Tf__JobState ended[] = { TF__JOB_STATE__FAILED, TF__JOB_STATE__CANCELLED };

	return change(c, TF__REQUEST__BODY_JOB_REQUEUE, ended, ARRAY_LEN(ended), e);
}
