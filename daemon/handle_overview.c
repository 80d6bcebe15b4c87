/* SPDX-License-Identifier: Apache-2.0
 * The overview: all of a screen of `transfuse top` in one answer, so that its parts agree. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "daemon/reply.h"
#include "daemon/warm.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define JOBS_USUAL 50

struct overview {
	struct daemon *d;
	Tf__Overview message;
	const struct job *job[LIMIT_OVERVIEW_JOBS];
	size_t jobs, most;
	Tf__JobRecord *record[LIMIT_OVERVIEW_JOBS];
	struct job_view view[LIMIT_OVERVIEW_JOBS];
	Tf__Job *shown[LIMIT_OVERVIEW_JOBS]; /* of view */
};

/* ---------------------------------------------------------------- which jobs */

static int rank(const struct job *j)
{
	return job_state_active((Tf__JobState)j->state) ? 0 : j->state; /* queued, waiting, held */
}

/* What runs by its number, then the queue by place, then what waits for others and what is held. */
static bool comes_first(const struct job *a, const struct job *b)
{
	uint32_t p = a->place ? a->place : UINT32_MAX, q = b->place ? b->place : UINT32_MAX;

	if (rank(a) != rank(b))
		return rank(a) < rank(b);
	if (a->state == TF__JOB_STATE__QUEUED && p != q)
		return p < q;
	return a->id < b->id;
}

static void choose(struct overview *o)
{
	const struct live *l = &o->d->live;

	queue_forecast(o->d);
	for (size_t i = 0; i < l->count; i++) {
		const struct job *j = l->job[i];
		size_t at = o->jobs;

		if (!j)
			continue;
		if (o->jobs == o->most)
			o->message.left_out++;
		while (at > 0 && comes_first(j, o->job[at - 1]))
			at--;
		if (at == o->most)
			continue;
		if (o->jobs < o->most)
			o->jobs++;
		memmove(o->job + at + 1, o->job + at, (o->jobs - at - 1) * sizeof *o->job);
		o->job[at] = j;
	}
}

/* ---------------------------------------------------------------- the answer */

static int view_jobs(struct overview *o, struct err *e)
{
	for (size_t i = 0; i < o->jobs; i++) {
		TRY(job_get(o->d->state, o->job[i]->id, &o->record[i], e));
		job_view(o->d, o->record[i], &o->view[i]);
		o->shown[i] = &o->view[i].job;
	}
	return 0;
}

static void fill_host(struct overview *o)
{
	Tf__Overview *m = &o->message;
	double load;

	if (getloadavg(&load, 1) == 1) {
		m->has_load = true;
		m->load = load;
	}
	if (memory_now(&m->memory, &m->memory_free) == 0)
		m->has_memory = m->has_memory_free = true;
	m->has_disk_free = o->d->disk_free > 0;
	m->disk_free = o->d->disk_free;
}

int handle_overview(struct daemon *d, struct request *r)
{
	const Tf__OverviewAsk *ask = r->message->overview;
	Tf__Reply reply = TF__REPLY__INIT;
	struct slots_view *slots;
	struct overview *o;
	int rc;

	FAIL_IF(ask->jobs > LIMIT_OVERVIEW_JOBS, &r->err, TF_ELIMIT,
		"%u jobs are asked for, at most %u are shown", ask->jobs, LIMIT_OVERVIEW_JOBS);
	o = xcalloc(1, sizeof *o);
	tf__overview__init(&o->message);
	o->d = d;
	o->most = ask->has_jobs ? ask->jobs : JOBS_USUAL;
	choose(o);
	rc = view_jobs(o, &r->err);
	if (rc == 0) {
		slots = slots_view_new(d);
		o->message.now = clock_wall_ms();
		o->message.user = r->user;
		o->message.slots = &slots->message;
		o->message.n_job = o->jobs;
		o->message.job = o->shown;
		o->message.has_left_out = true;
		fill_host(o);
		reply.body_case = TF__REPLY__BODY_OVERVIEW;
		reply.overview = &o->message;
		reply_put(d, r, &reply);
		slots_view_free(slots);
	}
	for (size_t i = 0; i < o->jobs && o->record[i]; i++)
		record_free(o->record[i]);
	xfree(o);
	return rc;
}
