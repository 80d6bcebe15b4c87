/* SPDX-License-Identifier: Apache-2.0
 * Requests about slots: what each holds and how its GPU is; draining and resuming. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static Tf__SlotState *add_slot(struct slot_rows *s, const char *name, const char *device)
{
	Tf__SlotState *row = s->list[s->count] = &s->row[s->count];

	tf__slot_state__init(row);
	row->name = (char *)name;
	row->device = (char *)device;
	row->jobs = s->jobs[s->count++];
	return row;
}

static void add_holder(Tf__SlotState *row, const struct worker *w)
{
	const struct holding *h = &w->holding;

	row->has_job = true;
	row->job = row->n_jobs ? row->job : h->job;
	row->jobs[row->n_jobs++] = h->job;
	row->given += w->joined ? 0 : h->share;
}

static void say_drain(Tf__SlotState *row, const struct slot *s, bool drained, const char *why)
{
	row->has_drained = true;
	row->drained = drained;
	if (!drained)
		return;
	row->reason = (char *)why;
	row->drained_by = s->drained && *s->by ? (char *)s->by : NULL;
	row->has_drained_since = s->drained;
	row->drained_since = s->since;
}

static void add_gpu(struct daemon *d, struct slot_rows *rows, size_t gpu)
{
	const struct gpu *g = &d->machine.gpu[gpu];
	const struct slot *s = slot_of_gpu(d, gpu);
	Tf__SlotState *row = add_slot(rows, g->name, g->device);

	row->has_job = row->has_memory = row->has_given = true;
	row->memory = g->memory;
	row->gpu = s->report ? s->report->gpu[0] : NULL;
	say_drain(row, s, g->drained, g->why);
}

/* The row of that name, made when it is not there. */
static Tf__SlotState *late_row(struct slot_rows *s, const char *name)
{
	for (size_t i = 0; i < s->count; i++)
		if (strcmp(s->row[i].name, name) == 0)
			return &s->row[i];
	return add_slot(s, name, "cpu");
}

/* The row of a worker's slot; those of the fast lane, and of slots that a reload took away, are
 * made as they come. */
static Tf__SlotState *slot_row(struct slot_rows *s, const struct machine *m,
			       const struct holding *h)
{
	char *name;

	if (h->slot < (int)m->slots)
		return &s->row[h->slot];
	if (h->slot < (int)LIMIT_SLOTS) {
		name = s->name[h->slot];
		snprintf(name, GPU_NAME_MAX, "cpu%d", h->slot);
		return late_row(s, name);
	}
	name = s->fast[h->slot - (int)LIMIT_SLOTS];
	snprintf(name, GPU_NAME_MAX, "fast%d", h->slot - (int)LIMIT_SLOTS);
	return late_row(s, name);
}

struct slot_rows *slot_rows_new(struct daemon *d)
{
	struct slot_rows *s = xcalloc(1, sizeof *s);
	const struct machine *m = &d->machine;

	for (uint32_t i = 0; i < m->slots; i++) {
		Tf__SlotState *row = add_slot(s, slot_name(d, i, s->name[i]), "cpu");

		row->has_job = true;
		say_drain(row, &d->slot[i], d->slot[i].drained, d->slot[i].reason);
	}
	for (size_t i = 0; i < m->gpus; i++)
		add_gpu(d, s, i);
	for (size_t i = 0; i < d->workers; i++) {
		const struct worker *w = d->worker[i];
		const struct holding *h = &w->holding;

		if (w->idle)
			continue;
		if (h->slot >= 0)
			add_holder(slot_row(s, m, h), w);
		for (size_t g = 0; g < m->gpus; g++)
			if (h->gpus >> g & 1)
				add_holder(&s->row[m->slots + g], w);
	}
	return s;
}

/* ---------------------------------------------------------------- list */

#define STATES TF__JOB_STATE__DONE /* those before have not ended */

struct view {
	struct slots_view base;
	struct slot_rows *rows;
	Tf__KeyValue pair[STATES], *count[STATES];
	char number[STATES][24];
	Tf__UserLoad *load, **user;
};

static void count_jobs(const struct live *l, struct view *v)
{
	uint64_t jobs[TF__JOB_STATE__CANCELLED + 1] = { 0 };
	size_t n = 0;

	for (size_t i = 0; i < l->count; i++)
		if (l->job[i])
			jobs[l->job[i]->state]++;
	for (int s = TF__JOB_STATE__QUEUED; s < STATES; s++, n++) {
		snprintf(v->number[n], sizeof v->number[n], "%llu", (unsigned long long)jobs[s]);
		tf__key_value__init(&v->pair[n]);
		v->pair[n].key = (char *)job_state_name((Tf__JobState)s);
		v->pair[n].value = v->number[n];
		v->count[n] = &v->pair[n];
	}
	v->base.message.n_count = n;
	v->base.message.count = v->count;
}

static uint32_t gpus_of(const struct daemon *d, const struct user_share *u)
{
	uint64_t gpus = 0;

	for (size_t i = 0; i < d->workers; i++)
		if (d->worker[i]->user == u && !d->worker[i]->idle)
			gpus |= d->worker[i]->holding.gpus;
	return (uint32_t)__builtin_popcountll(gpus);
}

static int by_jobs(const void *a, const void *b)
{
	const Tf__UserLoad *x = *(Tf__UserLoad *const *)a, *y = *(Tf__UserLoad *const *)b;

	if (x->running != y->running)
		return x->running < y->running ? 1 : -1;
	if (x->queued != y->queued)
		return x->queued < y->queued ? 1 : -1;
	return strcmp(x->user, y->user);
}

/* Those with jobs that have not ended, the busiest first. */
static void fill_users(struct daemon *d, struct view *v)
{
	const struct shares *s = &d->live.shares;
	size_t n = 0;

	v->load = xcalloc(s->count + 1, sizeof *v->load);
	v->user = xcalloc(s->count + 1, sizeof *v->user);
	for (size_t i = 0; i < s->count; i++) {
		const struct user_share *u = s->user[i];
		Tf__UserLoad *load = &v->load[n];

		if (u->jobs == 0)
			continue;
		tf__user_load__init(load);
		load->user = (char *)u->name;
		load->has_running = load->has_queued = load->has_waiting = load->has_gpus = true;
		load->running = u->running;
		load->queued = u->queued;
		load->waiting = u->jobs > u->running + u->queued
					? u->jobs - u->running - u->queued
					: 0; /* one that has ended may still have its process */
		load->gpus = gpus_of(d, u);
		v->user[n++] = load;
	}
	qsort(v->user, n, sizeof *v->user, by_jobs);
	v->base.message.n_user = n;
	v->base.message.user = v->user;
}

struct slots_view *slots_view_new(struct daemon *d)
{
	struct view *v = xcalloc(1, sizeof *v);
	Tf__Slots *m = &v->base.message;

	tf__slots__init(m);
	v->rows = slot_rows_new(d);
	m->n_slot = v->rows->count;
	m->slot = v->rows->list;
	count_jobs(&d->live, v);
	fill_users(d, v);
	m->driver = *d->gpu_watch.driver ? d->gpu_watch.driver : NULL;
	m->fault = *d->gpu_watch.fault ? d->gpu_watch.fault : NULL;
	m->has_draining = m->has_read_only = true;
	m->draining = d->draining;
	m->read_only = d->read_only;
	return &v->base;
}

void slots_view_free(struct slots_view *view)
{
	struct view *v = (struct view *)view;

	xfree(v->rows);
	xfree(v->load);
	xfree(v->user);
	xfree(v);
}

int handle_slot_list(struct daemon *d, struct request *r)
{
	Tf__Reply reply = TF__REPLY__INIT;
	struct slots_view *view = slots_view_new(d);

	reply.body_case = TF__REPLY__BODY_SLOTS;
	reply.slots = &view->message;
	reply_put(d, r, &reply);
	slots_view_free(view);
	return 0;
}

/* ---------------------------------------------------------------- set */

static int drain(struct daemon *d, struct request *r, size_t i, const Tf__SlotSet *m)
{
	FAIL_IF(m->reason && strlen(m->reason) >= GPU_WHY_MAX, &r->err, TF_ELIMIT,
		"the reason has %zu bytes, at most %d are allowed", strlen(m->reason),
		GPU_WHY_MAX - 1);
	return slot_drain(d, i, r->user, m->reason ? m->reason : "", &r->err);
}

int handle_slot_set(struct daemon *d, struct request *r)
{
	const Tf__SlotSet *m = r->message->slot_set;
	int i = slot_find(d, m->slot);

	FAIL_IF(i < 0, &r->err, TF_ENOTFOUND, "there is no slot '%.100s'", m->slot);
	switch (m->action) {
	case TF__SLOT_ACTION__SLOT_DRAIN: TRY(drain(d, r, (size_t)i, m)); break;
	case TF__SLOT_ACTION__SLOT_RESUME: TRY(slot_resume(d, (size_t)i, &r->err)); break;
	default: TRY(slot_forget(d, (size_t)i, &r->err)); break;
	}
	log_info("%s: %s by %s", m->slot,
		 m->action == TF__SLOT_ACTION__SLOT_DRAIN    ? "drained"
		 : m->action == TF__SLOT_ACTION__SLOT_RESUME ? "resumed"
							     : "forgotten",
		 r->user);
	reply_ok(d, r);
	return 0;
}
