/* SPDX-License-Identifier: Apache-2.0
 * Several jobs in one process: a warm worker that runs a job of a joint kind (generate) is given
 * further ones with the same model, which it runs in one batch. Each is an attempt like any other,
 * with a record, a folder, a connection, a progress and an outcome of its own; the process, its
 * key and what it holds are theirs in common. Of the attempts of a process one has the holding
 * counted, the others are `joined`; when that one is over, it goes to another. The process is told
 * of a further attempt after the commit, and says hello for it. When it does not, or ends before,
 * the job goes back into the queue as if nothing had been. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "daemon/reply.h"
#include "daemon/spawn.h"
#include "daemon/warm.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <xxhash.h>
#include <string.h>

/* ---------------------------------------------------------------- which */

/* Texts and pictures mixed freely have steps of their own, which no other job can share. */
static bool is_joint(const Tf__JobSpec *s)
{
	const struct job_kind *kind = job_kind_find(s->kind);

	return kind && kind->joint && s->spec_case == TF__JOB_SPEC__SPEC_GENERATE &&
	       strcmp(s->generate->mode, "free") != 0;
}

uint64_t join_key(const Tf__JobSpec *s, Tf__Input *const *input, size_t inputs)
{
	const Tf__SpecRecord record = { .n_input = inputs, .input = (Tf__Input **)input };
	struct demand want = demand_of(s->demand);
	struct buf text = BUF_INIT;
	char *model = is_joint(s) ? warm_model(&record) : NULL;
	uint64_t key;

	if (!model)
		return 0;
	buf_printf(&text, "%s %s %d %u %llu %u %llu", model, s->device ? s->device : "", s->threads,
		   want.gpus, (unsigned long long)want.gpu_mem, want.cpus,
		   (unsigned long long)want.mem);
	key = XXH64(text.data, text.len, 0);
	buf_release(&text);
	xfree(model);
	return key ? key : 1;
}

bool join_same(const struct worker *a, const struct worker *b)
{
	return strcmp(a->key, b->key) == 0;
}

struct worker *join_other(const struct daemon *d, const struct worker *w)
{
	for (size_t i = 0; i < d->workers; i++)
		if (d->worker[i] != w && join_same(d->worker[i], w) && !d->worker[i]->ended)
			return d->worker[i];
	return NULL;
}

struct worker *join_named(const struct daemon *d, struct worker *w, uint64_t job, uint32_t attempt)
{
	for (size_t i = 0; i < d->workers; i++)
		if (d->worker[i]->job == job && d->worker[i]->attempt == attempt &&
		    join_same(d->worker[i], w))
			return d->worker[i];
	return w;
}

/* An attempt of the process that has a connection. */
static const struct worker *listener(const struct daemon *d, const struct worker *w)
{
	for (size_t i = 0; i < d->workers; i++)
		if (join_same(d->worker[i], w) && !d->worker[i]->ended && d->worker[i]->route_len)
			return d->worker[i];
	return NULL;
}

uint32_t join_room(const struct daemon *d, const struct worker *w)
{
	uint32_t most = (uint32_t)d->options.joined_jobs, jobs = 0;

	if (!w->together || !w->room || !w->warm || w->joined)
		return 0;
	for (size_t i = 0; i < d->workers; i++) {
		const struct worker *other = d->worker[i];

		if (!join_same(other, w))
			continue;
		if (other->ended || other->terminated || other->killed)
			return 0;
		jobs++;
	}
	if (jobs >= most || !listener(d, w) || holding_drained(&d->machine, &w->holding))
		return 0;
	return w->room < most - jobs ? w->room : most - jobs;
}

/* ---------------------------------------------------------------- coming */

/* The same process, holding the same. */
static struct worker *beside(const struct worker *first, const struct job *j)
{
	struct worker *w = worker_new();

	w->job = j->id;
	w->attempt = j->attempt + 1;
	w->holding = first->holding;
	w->holding.job = j->id;
	w->joined = w->unheard = w->unsaid = true;
	w->together = j->together;
	w->pid = first->pid;
	w->pid_start = first->pid_start;
	w->pidfd = process_fd(first->pid);
	w->child = first->child;
	memcpy(w->key, first->key, sizeof w->key);
	return w;
}

int join_start(struct daemon *d, const struct decision *decision, struct err *e)
{
	struct job *j = live_find(&d->live, decision->job);
	struct worker *first = worker_of(d, decision->beside), *w;
	int rc;

	CHECK(j && j->state == TF__JOB_STATE__QUEUED);
	if (!first || join_room(d, first) == 0)
		return 1; /* it ended meanwhile */
	w = beside(first, j);
	rc = w->pidfd < 0 ? err_errno(e, "process %d", (int)w->pid) : 0;
	if (rc == 0)
		rc = worker_record(d, w, e);
	worker_add(d, w);
	if (rc < 0) {
		w->ended = true;
		worker_remove(d, w);
		return rc;
	}
	w->hello_by_ms = clock_mono_ms() + d->options.hello_seconds * 1000;
	first->room--;
	queue_divide(d, w);
	j->user->last_start_ms[j->lane] = clock_wall_ms();
	join_put(d, listener(d, first), w);
	log_line(LOG_INFO, w->job, "attempt=%u joins job %llu, pid=%d", w->attempt,
		 (unsigned long long)first->job, (int)w->pid);
	return 0;
}

/* ---------------------------------------------------------------- leaving */

int join_leave(struct daemon *d, struct worker *w, struct err *e)
{
	struct worker *other = join_other(d, w);

	TRY(attempt_delete(d->state, w->job, w->attempt, e));
	if (!w->joined) {
		other->joined = false;
		other->room = w->room;
	}
	worker_remove(d, w);
	queue_divide(d, other);
	return 0;
}

int join_undo(struct daemon *d, struct worker *w, struct err *e)
{
	struct job_edit edit = { .reason = "the worker left before it could join" };

	TRY(job_change(d, w->job, EVENT_REQUEUE, &edit, e));
	w->ended = true;
	return 0;
}

void join_tick(struct daemon *d)
{
	int64_t now = clock_mono_ms();

	for (size_t i = d->workers; i > 0 && !d->read_only; i--) {
		struct worker *w = d->worker[i - 1];
		struct err e = ERR_INIT;

		if (!w->unheard || !w->hello_by_ms || now <= w->hello_by_ms || !join_other(d, w))
			continue;
		log_line(LOG_WARN, w->job, "pid=%d did not take it in", (int)w->pid);
		if (join_undo(d, w, &e) < 0 || join_leave(d, w, &e) < 0)
			log_line(LOG_ERROR, w->job, "cannot be put back: %s", e.text);
	}
}
