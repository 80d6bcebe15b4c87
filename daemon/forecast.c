/* SPDX-License-Identifier: Apache-2.0
 * What people are told of a queued job: its place, about when it starts, why it waits. The forecast
 * goes through the queue in its order and lets each job start where its GPUs or a slot are free
 * first, by walltimes and by what running jobs report; one without a walltime never ends in it.
 * Jobs that begin later come after those that need not wait, as when it is decided; of them at
 * least that time is known. */
#include "config.h"
#include "daemon/schedule.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* When each GPU and each slot of the processor is free. */
struct outlook {
	const struct schedule_input *in;
	int64_t gpu[LIMIT_GPUS], slot[LIMIT_SLOTS + LIMIT_FAST_SLOTS];
	struct room free; /* now */
};

static void later_of(int64_t *at, int64_t ms)
{
	*at = ms > *at ? ms : *at;
}

static void outlook_init(struct outlook *o, const struct schedule_input *in)
{
	o->in = in;
	room_init(&o->free, in->machine, false);
	for (size_t i = 0; i < LIMIT_GPUS; i++)
		o->gpu[i] = i < in->machine->gpus && !in->machine->gpu[i].drained ? in->now_ms
										  : NEVER_MS;
	for (size_t i = 0; i < ARRAY_LEN(o->slot); i++)
		o->slot[i] = NEVER_MS;
	for (size_t i = 0; i < in->machine->slots; i++)
		if (!(in->machine->drained >> i & 1))
			o->slot[i] = in->now_ms;
	for (size_t i = 0; i < in->machine->fast; i++)
		o->slot[LIMIT_SLOTS + i] = in->now_ms;
	for (size_t i = 0; i < in->runnings; i++) {
		const struct running *r = &in->running[i];
		int64_t ends = r->stopping ? in->now_ms : r->ends_ms;

		room_take(&o->free, in->machine, &r->holding);
		if (r->holding.slot >= 0)
			later_of(&o->slot[r->holding.slot], ends);
		for (uint64_t mask = r->holding.gpus; mask; mask &= mask - 1)
			later_of(&o->gpu[__builtin_ctzll(mask)], ends);
	}
}

static size_t earliest(const int64_t *at, size_t n, uint64_t taken)
{
	size_t best = 0;
	int64_t ms = NEVER_MS;

	for (size_t i = 0; i < n; i++)
		if (!(i < 64 && taken >> i & 1) && (at[i] < ms || ms == NEVER_MS)) {
			best = i;
			ms = at[i];
		}
	return best;
}

/* A share starts now or when a GPU is free as a whole; it is not counted further. */
static int64_t share_start_ms(const struct outlook *o, const struct demand *want)
{
	struct holding h;

	if (room_place(&o->free, want, &h))
		return o->in->now_ms;
	return o->gpu[earliest(o->gpu, o->in->machine->gpus, 0)];
}

static int64_t expect(struct outlook *o, const struct job *j)
{
	const struct machine *m = o->in->machine;
	struct demand want = job_demand(m, j);
	int64_t start = j->begin_ms > o->in->now_ms ? j->begin_ms : o->in->now_ms, ends;
	uint64_t taken = 0;
	size_t slot;

	if (j->group && j->group->running + j->group->starting >= j->group_most)
		return NEVER_MS; /* by the group, whose jobs' ends are not looked into */
	if (want.gpu_mem) {
		later_of(&start, m->gpus ? share_start_ms(o, &want) : NEVER_MS);
		return start;
	}
	if (want.gpus == 0) {
		slot = earliest(o->slot, want.fast ? ARRAY_LEN(o->slot) : LIMIT_SLOTS, 0);
		later_of(&start, o->slot[slot]);
		o->slot[slot] = start == NEVER_MS ? start : job_ends_ms(j, start);
		return start;
	}
	for (uint32_t n = 0; n < want.gpus && n < m->gpus; n++) {
		size_t i = earliest(o->gpu, m->gpus, taken);

		taken |= 1ull << i;
		later_of(&start, o->gpu[i]);
	}
	ends = start == NEVER_MS ? start : job_ends_ms(j, start);
	for (; taken; taken &= taken - 1)
		o->gpu[__builtin_ctzll(taken)] = ends;
	return start;
}

/* Those that begin later, in their order. */
static void expect_later(struct outlook *o, struct job **later, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		struct job *j = later[i];

		j->expected_ms = expect(o, j);
		if (j->expected_ms == NEVER_MS)
			j->expected_ms = j->begin_ms;
	}
}

void schedule_forecast(const struct schedule_input *in)
{
	struct order *order = order_open(in);
	struct job *j, **later = NULL;
	struct outlook o;
	uint32_t place = 0;
	size_t count = 0;

	outlook_init(&o, in);
	while ((j = order_next(order))) {
		struct demand want = job_demand(in->machine, j);
		struct holding h = { .cpus = want.cpus, .slot = want.gpus ? -1 : 0 };

		h.gpus = want.gpus >= 64 ? UINT64_MAX : (1ull << want.gpus) - 1;
		j->place = ++place;
		if (j->begin_ms > in->now_ms) {
			later = xrealloc(later, count + 1, sizeof *later);
			later[count++] = j;
		} else {
			j->expected_ms = expect(&o, j);
		}
		order_start(order, charge_of(in->machine, &h, (Tf__Priority)j->priority));
	}
	expect_later(&o, later, count);
	xfree(later);
	order_close(order);
}

static bool explain_limits(const struct schedule_input *in, const struct job *j,
			   const struct demand *want, char *out, size_t room)
{
	const struct user_share *u = j->user;

	if (j->group && j->group->running >= j->group_most)
		snprintf(out, room, "%u jobs of group %s may run at a time", j->group_most,
			 j->group->name);
	else if (u->limits.running && u->running >= u->limits.running)
		snprintf(out, room, "%s may run %u jobs at a time", u->name, u->limits.running);
	else if (u->limits.gpu_hours &&
		 share_month_gpu_s(u, in->now_ms) >= 3600.0 * u->limits.gpu_hours)
		snprintf(out, room, "%s has used the %u GPU hours of this month", u->name,
			 u->limits.gpu_hours);
	else if (u->limits.gpus && (want->gpus || want->gpu_mem) &&
		 u->rate.held + want->gpus > u->limits.gpus)
		snprintf(out, room, "%s may have %u GPUs at a time", u->name, u->limits.gpus);
	else
		return false;
	return true;
}

void schedule_explain(const struct schedule_input *in, const struct first_in_line *first,
		      const struct job *j, char *out, size_t room)
{
	struct demand want = job_demand(in->machine, j);
	char time[CLOCK_TEXT_MAX];
	struct room all;
	struct holding h;

	room_init(&all, in->machine, false);
	if (j->begin_ms > in->now_ms) {
		clock_format_ms(j->begin_ms, time);
		snprintf(out, room, "not before %s", time);
	} else if (explain_limits(in, j, &want, out, room)) {
		return;
	} else if (!room_place(&all, &want, &h)) {
		snprintf(out, room, "what it needs is drained or gone");
	} else if (first->job == j->id) {
		snprintf(out, room, "first in line: %s",
			 first->makes_room ? "others are stepping back for it"
					   : "waits for what it needs to be free");
	} else {
		uint32_t before = j->place > 0 ? j->place - 1 : 0;

		snprintf(out, room, before == 1 ? "%u job is before it" : "%u jobs are before it",
			 before);
	}
}
