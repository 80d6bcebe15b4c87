/* SPDX-License-Identifier: Apache-2.0
 * The jobs that have not ended, in memory: an array of pointers by rising id, which is the order of
 * the queue. New ids only grow, so adding is appending, but for a job that is put back; an ended
 * job leaves a hole, and when half are holes the array is closed up. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/submit.h"
#include "lib/mem.h"

#include <string.h>

enum job_device device_parse(const char *text)
{
	if (!text || !*text)
		return DEVICE_ANY;
	return strncmp(text, "cuda", 4) == 0 ? DEVICE_CUDA : DEVICE_CPU;
}

struct demand demand_of(const Tf__Demand *d)
{
	static const Tf__Demand nothing = TF__DEMAND__INIT;

	d = d ? d : &nothing;
	return (struct demand){
		.gpus = d->gpus, .cpus = d->cpus, .gpu_mem = d->gpu_mem, .mem = d->mem
	};
}

static uint64_t id_at(const struct live *l, size_t i)
{
	return l->job[i] ? l->job[i]->id : 0;
}

/* Index of the job, or of its hole's neighbour; count when there is none such. */
static size_t find(const struct live *l, uint64_t id)
{
	size_t low = 0, high = l->count;
	uint64_t last = high > 0 ? id_at(l, high - 1) : 0;

	/* where it is when no number is missing between it and the last */
	if (id > 0 && id <= last && last - id < high && id_at(l, high - 1 - (last - id)) == id)
		return high - 1 - (last - id);
	while (low < high) {
		size_t middle = low + (high - low) / 2, i = middle;

		while (i < high && !l->job[i])
			i++;
		if (i == high)
			high = middle;
		else if (id_at(l, i) < id)
			low = i + 1;
		else if (id_at(l, i) == id)
			return i;
		else
			high = middle;
	}
	return l->count;
}

struct job *live_find(const struct live *l, uint64_t id)
{
	size_t i = find(l, id);

	return i < l->count ? l->job[i] : NULL;
}

int64_t begin_of(const Tf__Job *j)
{
	int64_t begin = j->demand ? j->demand->begin : 0;

	return begin > j->next_try ? begin : j->next_try;
}

/* What the scheduler needs to know of the record. */
static void take_times(struct job *j, const Tf__JobRecord *r)
{
	static const Tf__Demand nothing = TF__DEMAND__INIT;
	const Tf__Demand *m = r->job->demand ? r->job->demand : &nothing;

	j->demand = demand_of(m);
	j->priority = (uint8_t)m->priority;
	j->begin_ms = begin_of(r->job);
	j->deadline_ms = m->deadline;
	j->walltime_ms = 1000 * (int64_t)m->walltime;
	j->lane = (uint8_t)lane_of(r->job->kind, m->priority, j->walltime_ms);
	j->submitted_ms = r->job->submitted;
	j->started_ms = r->job->started;
	j->ran_ms = r->ran_ms;
	j->resuming = (uint8_t)r->resuming;
	j->expected_ms = NEVER_MS;
}

struct job *live_add(struct live *l, const Tf__JobRecord *r)
{
	struct job *j = xcalloc(1, sizeof *j);
	size_t at, last = l->count;

	j->id = r->job->id;
	j->seq = r->job->seq;
	j->attempt = r->job->attempt;
	j->state = (uint8_t)r->job->state;
	j->kind = (uint8_t)r->job->kind;
	j->stopping = (uint8_t)r->job->stopping;
	j->together = r->has_together ? r->together : 0;
	j->device = (uint8_t)device_parse(r->device);
	j->user = shares_get(&l->shares, r->job->user ? r->job->user : "");
	j->user->jobs++;
	if (r->job->group && *r->job->group) {
		j->group = group_enter(&l->shares, j->user, r->job->group);
		j->group->running += job_state_active(r->job->state);
		j->group_most = r->job->group_running;
	}
	take_times(j, r);
	CHECK(!job_state_is_end(r->job->state));
	if (l->count == l->room) {
		l->room = l->room ? 2 * l->room : 64;
		l->job = xrealloc(l->job, l->room, sizeof *l->job);
	}
	while (last > 0 && !l->job[last - 1])
		last--;
	at = l->count++;
	if (last > 0 && l->job[last - 1]->id > j->id)
		for (; at > 0 && (!l->job[at - 1] || l->job[at - 1]->id > j->id); at--)
			l->job[at] = l->job[at - 1];
	CHECK(at == 0 || !l->job[at - 1] || l->job[at - 1]->id < j->id);
	l->job[at] = j;
	l->deadlines += j->deadline_ms != 0;
	if (j->state == TF__JOB_STATE__QUEUED)
		line_add(j);
	return j;
}

void live_state(struct live *l, struct job *j, Tf__JobState state)
{
	(void)l;
	if (j->group) {
		j->group->running -= job_state_active((Tf__JobState)j->state);
		j->group->running += job_state_active(state);
	}
	if (j->state == TF__JOB_STATE__QUEUED && state != TF__JOB_STATE__QUEUED)
		line_remove(j);
	else if (j->state != TF__JOB_STATE__QUEUED && state == TF__JOB_STATE__QUEUED)
		line_add(j);
	j->state = (uint8_t)state;
}

static void close_up(struct live *l)
{
	size_t kept = 0;

	for (size_t i = 0; i < l->count; i++)
		if (l->job[i])
			l->job[kept++] = l->job[i];
	l->count = kept;
	l->holes = 0;
}

void live_remove(struct live *l, uint64_t id)
{
	size_t i = find(l, id);
	struct job *j;

	CHECK(i < l->count);
	j = l->job[i];
	if (j->state == TF__JOB_STATE__QUEUED)
		line_remove(j);
	j->user->jobs--;
	if (j->group) {
		j->group->running -= job_state_active((Tf__JobState)j->state);
		group_leave(&l->shares, j->group);
	}
	l->deadlines -= j->deadline_ms != 0;
	if (j->progress)
		tf__progress__free_unpacked(j->progress, NULL);
	xfree(l->job[i]);
	if (++l->holes > 64 && l->holes > l->count / 2)
		close_up(l);
}

void live_release(struct live *l)
{
	for (size_t i = 0; i < l->count; i++) {
		if (l->job[i] && l->job[i]->progress)
			tf__progress__free_unpacked(l->job[i]->progress, NULL);
		xfree(l->job[i]);
	}
	xfree(l->job);
	groups_release(&l->shares);
	for (size_t i = 0; i < l->shares.count; i++) {
		struct user_share *u = l->shares.user[i];

		memset(u->line, 0, sizeof u->line);
		u->queued = u->jobs = 0;
	}
	*l = (struct live){ .shares = l->shares };
}
