/* SPDX-License-Identifier: Apache-2.0
 * The verb wait: until jobs have ended, or are in a state; all of them, or the first; in time. */
#include "config.h"
#include "client/client.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "lib/quantity.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct wait {
	struct follow follow;
	struct selection jobs;
	bool json;
	json_t *list;      /* of those that came */
	size_t pending;    /* that did not */
	int worst;         /* status of those that came */
};

static void came(struct wait *w, const Tf__Job *j, int status)
{
	if (w->json)
		json_array_append_new(w->list, json_of_job(j));
	else if (job_state_is_end(j->state))
		print_end(j);
	else
		printf("job %" PRIu64 " is %s\n", j->id, job_state_name(j->state));
	if (w->worst != STATUS_FAILED && status != STATUS_DONE)
		w->worst = status;
}

/* One after the other: what came meanwhile is seen when its turn is. */
static int wait_all(struct client *c, struct wait *w, struct err *e)
{
	for (size_t i = 0; i < w->jobs.count; i++) {
		Tf__Reply *reply;
		int status = follow_until(c, w->jobs.id[i], &w->follow, &reply, e);

		TRY(status);
		if (status == STATUS_TIMEOUT)
			w->pending++;
		else
			came(w, reply->jobs->job[0], status);
		tf__reply__free_unpacked(reply, NULL);
	}
	return 0;
}

static int ask_news(struct client *c, const struct wait *w, uint64_t job, uint64_t since,
		    struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobWait m = TF__JOB_WAIT__INIT;
	uint64_t id;

	m.job = job;
	m.has_since = m.has_timeout_ms = true;
	m.since = since;
	m.timeout_ms = follow_left(&w->follow);
	r.body_case = TF__REQUEST__BODY_JOB_WAIT;
	r.job_wait = &m;
	return connection_send(c->connection, &r, &id, e);
}

/* A question about each is open; the first that came is the last that is looked at. */
static int wait_any(struct client *c, struct wait *w, struct err *e)
{
	size_t answers = 0;

	FAIL_IF(w->jobs.count > LIMIT_WAIT_ANY, e, TF_EUSAGE,
		"--any is given %zu jobs, at most %u are allowed", w->jobs.count, LIMIT_WAIT_ANY);
	TRY(client_connect(c, e));
	for (size_t i = 0; i < w->jobs.count; i++)
		TRY(ask_news(c, w, w->jobs.id[i], 0, e));
	for (;;) {
		uint32_t left = follow_left(&w->follow);
		Tf__Reply *reply;
		const Tf__Job *j;
		int rc, status;

		TRY(client_note(c, connection_receive(c->connection, left + ASK_MS, &reply, e)));
		rc = client_check(c, reply, TF__REPLY__BODY_JOBS, e);
		j = rc == 0 && reply->jobs->n_job == 1 ? reply->jobs->job[0] : NULL;
		if (j && follow_fits(&w->follow, j, &status)) {
			came(w, j, status);
			tf__reply__free_unpacked(reply, NULL);
			return 0;
		}
		/* each was looked at once before the time is up */
		if (j && (left > 0 || ++answers < w->jobs.count))
			rc = left > 0 ? ask_news(c, w, j->id, j->seq, e) : 0;
		else if (j)
			w->pending = w->jobs.count;
		tf__reply__free_unpacked(reply, NULL);
		if (rc < 0 || w->pending)
			return rc;
	}
}

static int read_options(const struct args *a, struct wait *w, struct err *e)
{
	Tf__JobState state[LIMIT_FILTERS];
	const char *timeout = args_text(a, OPTION_TIMEOUT);
	size_t states;
	int64_t seconds = 0;

	TRY(states_read(a, state, &states, e));
	for (size_t i = 0; i < states; i++)
		w->follow.states |= 1u << state[i];
	if (timeout) {
		TRY(span_parse("--timeout", timeout, &seconds, e));
		w->follow.until_ms = clock_mono_ms() + 1000 * seconds;
	}
	return 0;
}

int wait_for_ends(struct client *c, const uint64_t *id, size_t count, bool quiet, struct err *e)
{
	struct wait w = { .json = quiet, .worst = STATUS_DONE, .list = json_array() };
	int rc;

	w.follow = (struct follow){ .quiet = quiet, .until_ms = INT64_MAX };
	w.jobs = (struct selection){ (uint64_t *)id, count }; /* borrowed */
	rc = wait_all(c, &w, e);
	json_decref(w.list);
	return rc < 0 ? rc : w.worst;
}

int verb_wait(struct client *c, struct err *e)
{
	struct wait w = { .json = args_has(&c->args, OPTION_JSON), .worst = STATUS_DONE };
	bool any = args_has(&c->args, OPTION_ANY);
	bool one = any || c->args.operand.count == 1;
	int rc;

	w.list = json_array();
	w.follow = (struct follow){ .quiet = w.json, .until_ms = INT64_MAX };
	rc = read_options(&c->args, &w, e);
	if (rc == 0)
		rc = selection_read(c, NULL, 0, &w.jobs, e);
	if (rc == 0)
		rc = any ? wait_any(c, &w, e) : wait_all(c, &w, e);
	if (rc == 0 && w.json)
		json_print(one && json_array_size(w.list) == 1
				   ? json_incref(json_array_get(w.list, 0))
				   : json_incref(w.list));
	if (rc == 0 && w.pending)
		fprintf(stderr, "transfuse: the time is up for %zu of %zu jobs\n", w.pending,
			w.jobs.count);
	json_decref(w.list);
	selection_release(&w.jobs);
	return rc < 0 ? rc : w.pending ? STATUS_TIMEOUT : w.worst;
}
