/* SPDX-License-Identifier: Apache-2.0
 * Warm workers: processes whose job has ended and that wait for another one, with the last model
 * still in memory. An idle worker has nothing to lose and counts for nothing: the scheduler sees
 * what it holds as free. When a decision falls on it, it gets the job if it suits (same kind of
 * holding, a kind of job that may run warm), else it is told to leave and the job waits until the
 * process is gone. Its key stays; the attempt on record names the same process. An attempt that is
 * over stays on record until the next one replaces it in one transaction, so that a later daemon
 * finds the process either way, and lets an idle one go. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "daemon/warm.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PRESSURE_SHARE 16 /* idle workers go when less than a sixteenth of the memory is left */

uint32_t warm_seconds(const struct daemon *d, Tf__JobKind kind)
{
	const struct job_kind *k = job_kind_find(kind);

	return k && k->warm ? (uint32_t)d->options.warm_seconds : 0;
}

/* ---------------------------------------------------------------- leaving */

void warm_drop(struct worker *w, const char *why)
{
	log_line(LOG_INFO, w->job, "the warm worker pid=%d leaves: %s", (int)w->pid, why);
	w->idle = false;
	w->terminated = true;
	w->stop_at_ms = clock_mono_ms();
	if (w->pidfd >= 0)
		syscall(SYS_pidfd_send_signal, w->pidfd, SIGTERM, NULL, 0);
}

void warm_drop_all(struct daemon *d, const char *why)
{
	for (size_t i = 0; i < d->workers; i++)
		if (d->worker[i]->idle)
			warm_drop(d->worker[i], why);
}

int memory_now(uint64_t *total, uint64_t *available)
{
	FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kib[2] = { 0 };
	char line[128];

	while (f && fgets(line, sizeof line, f)) {
		sscanf(line, "MemTotal: %llu", &kib[0]);
		sscanf(line, "MemAvailable: %llu", &kib[1]);
	}
	if (f)
		fclose(f);
	*total = kib[0] << 10;
	*available = kib[1] << 10;
	return kib[0] ? 0 : -1;
}

static bool memory_is_short(void)
{
	uint64_t total, available;

	return memory_now(&total, &available) == 0 && available < total / PRESSURE_SHARE;
}

void warm_tick(struct daemon *d)
{
	int64_t now = clock_mono_ms();
	bool idle = false;

	for (size_t i = 0; i < d->workers; i++) {
		struct worker *w = d->worker[i];

		if (w->idle && now - w->idle_ms > d->options.warm_seconds * 1000)
			warm_drop(w, "no job came");
		else if (w->idle && holding_drained(&d->machine, &w->holding))
			warm_drop(w, "its slot is drained");
		idle |= w->idle;
	}
	if (idle && memory_is_short())
		warm_drop_all(d, "memory is short");
}

/* ---------------------------------------------------------------- staying */

bool warm_stay(struct daemon *d, struct worker *w)
{
	if (!w->ended || !w->warm || w->terminated || d->draining || d->leaving ||
	    join_other(d, w))
		return false;
	if (w->idle)
		return true;
	queue_end(d, w);
	w->idle = true;
	w->idle_ms = clock_mono_ms();
	w->stop_at_ms = 0;
	return true;
}

int handle_worker_next(struct daemon *d, struct request *r)
{
	const Tf__WorkerNext *m = r->message->worker_next;
	struct worker *w = join_named(d, r->worker, m->job, m->attempt);
	bool current = w->job == m->job && w->attempt == m->attempt;

	FAIL_IF((pid_t)m->pid != w->pid, &r->err, TF_EFENCED, "this key is process %d's, not %u's",
		(int)w->pid, m->pid);
	/* it was given a job, and that did not reach it */
	if (!current && !w->ended)
		return worker_assign(d, w, r, &r->err);
	FAIL_IF(!current || !warm_stay(d, w), &r->err, TF_EFENCED,
		"there is no other job for this process");
	w->route_len = r->route_len;
	memcpy(w->route, r->route, r->route_len);
	reply_ok(d, r);
	return 0;
}

/* ---------------------------------------------------------------- another job */

/* The same amounts of the same things. */
static bool same_shape(const struct holding *a, const struct holding *b)
{
	return a->cpus == b->cpus && a->mem == b->mem && a->share == b->share &&
	       (a->slot >= 0) == (b->slot >= 0) &&
	       __builtin_popcountll(a->gpus) == __builtin_popcountll(b->gpus);
}

static bool overlap(const struct holding *a, const struct holding *b)
{
	return (a->slot >= 0 && a->slot == b->slot) || (a->gpus & b->gpus) != 0;
}

/* Whether w's holding is free for list[i]; a later decision that has it swaps with it. */
static bool can_have(const struct worker *w, struct decision *list, size_t n, size_t i)
{
	for (size_t k = 0; k < n; k++) {
		if (k == i || !overlap(&w->holding, &list[k].holding))
			continue;
		if (k < i || !same_shape(&list[k].holding, &list[i].holding))
			return false;
		list[k].holding = list[i].holding;
		list[k].holding.job = list[k].job;
	}
	return true;
}

static char *model_of(struct daemon *d, uint64_t job)
{
	Tf__SpecRecord *spec = NULL;
	char *model = NULL;

	if (job_spec_get(d->state, job, &spec, NULL) == 0)
		model = warm_model(spec);
	record_free(spec);
	return model;
}

char *warm_model(const Tf__SpecRecord *spec)
{
	for (size_t i = 0; i < spec->n_input; i++) {
		const Tf__Input *in = spec->input[i];

		if (in->role && strcmp(in->role, "model") == 0)
			return xasprintf("%s:%s%s", in->id, in->step ? in->step : "",
					 in->ema ? "@ema" : "");
	}
	return NULL;
}

/* An idle worker that may get a job of such a holding: not one on a drained slot. */
static bool suits(const struct daemon *d, const struct worker *w, const struct holding *h)
{
	return w->idle && same_shape(&w->holding, h) && !holding_drained(&d->machine, &w->holding);
}

/* An idle worker that suits list[i]: one with its model, else the one that waits the longest. */
static struct worker *find_idle(struct daemon *d, struct decision *list, size_t n, size_t i)
{
	const struct job *j = live_find(&d->live, list[i].job);
	const struct job_kind *kind = job_kind_find((Tf__JobKind)j->kind);
	struct worker *best = NULL;
	size_t suit = 0;
	char *model;

	for (size_t k = 0; kind && kind->warm && k < d->workers; k++) {
		struct worker *w = d->worker[k];

		if (!suits(d, w, &list[i].holding))
			continue;
		suit++;
		best = !best || w->idle_ms < best->idle_ms ? w : best;
	}
	model = suit > 1 ? model_of(d, j->id) : NULL;
	for (size_t k = 0; model && k < d->workers; k++) {
		struct worker *w = d->worker[k];

		if (w->model && strcmp(w->model, model) == 0 && suits(d, w, &list[i].holding)) {
			best = w;
			break;
		}
	}
	xfree(model);
	return best && can_have(best, list, n, i) ? best : NULL;
}

/* Looks for a place that no idle worker sits in. */
static bool place_elsewhere(const struct daemon *d, struct decision *list, size_t n, size_t i)
{
	const struct job *j = live_find(&d->live, list[i].job);
	struct demand want = job_demand(&d->machine, j);
	struct holding h;
	struct room room;

	room_init(&room, &d->machine, false);
	for (size_t k = 0; k < d->workers; k++) {
		if (d->worker[k]->joined)
			continue;
		h = d->worker[k]->holding;
		if (d->worker[k]->idle)
			h.cpus = 0; /* it waits */
		room_take(&room, &d->machine, &h);
	}
	for (size_t k = i + 1; k < n; k++) /* earlier ones are among the workers */
		room_take(&room, &d->machine, &list[k].holding);
	if (!room_place(&room, &want, &h))
		return false;
	list[i].holding = h;
	list[i].holding.job = j->id;
	return true;
}

/* Idle workers in the way of this holding leave; false when there are none. */
static bool clear_place(struct daemon *d, const struct holding *h)
{
	bool any = false;

	for (int pass = 0; pass < 2 && !any; pass++)
		for (size_t k = 0; k < d->workers; k++) {
			struct worker *w = d->worker[k];

			if (!w->idle || !(pass == 0 ? overlap(&w->holding, h) : w->holding.mem > 0))
				continue;
			warm_drop(w, "another job needs its place");
			any = true;
		}
	return any;
}

bool warm_any(const struct daemon *d)
{
	for (size_t k = 0; k < d->workers; k++)
		if (d->worker[k]->idle)
			return true;
	return false;
}

enum warm warm_look(struct daemon *d, struct decision *list, size_t n, size_t i,
		    struct worker **out)
{
	if (!warm_any(d))
		return WARM_COLD;
	*out = find_idle(d, list, n, i);
	if (*out) { /* its place is taken, and that of the decision may be free for a later one */
		list[i].holding = (*out)->holding;
		list[i].holding.job = list[i].job;
		return WARM_HERE;
	}
	if (d->workers < worker_most() && place_elsewhere(d, list, n, i))
		return WARM_COLD;
	return clear_place(d, &list[i].holding) ? WARM_LATER : WARM_COLD;
}

int warm_start(struct daemon *d, struct worker *w, const struct decision *decision, struct err *e)
{
	struct job *j = live_find(&d->live, decision->job);
	uint64_t old_job = w->job;
	uint32_t old_attempt = w->attempt;
	int rc;

	CHECK(j && j->state == TF__JOB_STATE__QUEUED && w->idle && w->ended && w->route_len);
	w->job = w->holding.job = j->id;
	w->attempt = j->attempt + 1;
	w->idle = w->ended = w->killed = w->terminated = w->warned = false;
	w->together = j->together;
	w->room = 0;
	w->stop_at_ms = 0;
	w->hello_by_ms = clock_mono_ms() + d->options.hello_seconds * 1000;
	w->unsaid = true;
	rc = attempt_delete(d->state, old_job, old_attempt, e);
	if (rc == 0)
		rc = worker_record(d, w, e);
	if (rc == 0)
		rc = worker_assign(d, w, NULL, e);
	if (rc == 0) {
		queue_begin(d, w);
		j->user->last_start_ms[j->lane] = clock_wall_ms();
		log_line(LOG_INFO, w->job, "attempt=%u goes to the warm worker pid=%d", w->attempt,
			 (int)w->pid);
		return 0;
	}
	/* what it was given reaches it in no case: it goes as the idle one it still is */
	w->job = w->holding.job = old_job;
	w->attempt = old_attempt;
	w->ended = true;
	w->hello_by_ms = 0;
	w->unsaid = false;
	warm_drop(w, "another job could not be given to it");
	return rc;
}
