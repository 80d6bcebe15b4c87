/* SPDX-License-Identifier: Apache-2.0
 * A month of a busy machine played through the scheduler's pure functions: 100 users whose jobs
 * arrive at random for 30 days. Nothing here sleeps; the clock is a number. After every decision
 * the rules are looked at from outside, with arithmetic of the test's own where it can be. */
#include "tests/test.h"
#include "daemon/schedule.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "lib/philox.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define USERS 100
#define HEAVY 60          /* of them always want more than their part */
#define DAYS 30
#define HOUR 3600000ll
#define DAY (24 * HOUR)
#define START_MS 1764547200000ll /* 2025-12-01: one calendar month */
#define AGING_MS (2 * DAY)
#define GPU_COUNT 64
#define QUEUE_LEAST 4     /* heavy users keep so many jobs queued */

struct sim_job {
	struct job job; /* first: decisions give it back */
	int64_t takes_ms; /* in truth */
	int64_t ends_ms;
	struct charge charge;
	struct holding holding;
	struct sim_job *next_free;
};

struct sim {
	struct machine machine;
	struct shares shares;
	struct user_share *user[USERS];
	struct sim_job *running[LIMIT_WORKERS];
	size_t runnings;
	uint64_t last_id, random, decisions, starts, steps_back;
	int64_t now, decide_ns, worst_ns;
	int64_t next_arrival[USERS];
	double had[USERS];  /* charged unit-seconds */
	double gpu_s, gpu_free_s;
	double worst_wait_s;
	uint64_t backfilled;
	struct first_in_line first;
};

/* Of this thread: others on the machine do not count. */
static int64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static double uniform(struct sim *s)
{
	uint64_t x = s->random += 0x9e3779b97f4a7c15ull; /* splitmix64 */

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ x >> 27) * 0x94d049bb133111ebull;
	return (double)((x ^ x >> 31) >> 11) / 9007199254740992.0;
}

static void sim_init(struct sim *s, size_t users)
{
	memset(s, 0, sizeof *s);
	s->machine = (struct machine){ .slots = 8, .cpus = 256, .mem = 1ull << 40 };
	s->machine.gpus = GPU_COUNT;
	for (int i = 0; i < GPU_COUNT; i++) {
		snprintf(s->machine.gpu[i].name, GPU_NAME_MAX, "gpu%d", i);
		s->machine.gpu[i].memory = 80ull << 30;
	}
	s->shares.half_life_s = 7 * 86400;
	s->shares.limits.weight = 1;
	s->now = START_MS;
	for (size_t i = 0; i < users; i++) {
		char name[16];

		snprintf(name, sizeof name, "user%03zu", i);
		s->user[i] = shares_get(&s->shares, name);
		s->user[i]->limits.weight = i < HEAVY && i % 4 == 0 ? 2 : 1;
		s->next_arrival[i] = START_MS + (int64_t)(uniform(s) * (double)DAY);
	}
}

/* A job as people submit them: mostly one GPU for a few hours; some whole boxes, some shares, some
 * on the processor; two thirds with a walltime that is generous. */
static struct sim_job *submit(struct sim *s, size_t user)
{
	struct sim_job *j = xcalloc(1, sizeof *j);
	double kind = uniform(s), hours = 0.2 - 2 * log(1 - uniform(s));
	Tf__Priority p = TF__PRIORITY__NORMAL;

	j->takes_ms = (int64_t)((hours > 8 ? 8 : hours) * (double)HOUR);
	j->job.id = ++s->last_id;
	j->job.kind = TF__JOB_KIND__TRAIN;
	j->job.state = TF__JOB_STATE__QUEUED;
	if (kind < 0.1) {
		j->job.device = DEVICE_CPU;
		j->job.demand.cpus = 8;
	} else if (kind < 0.2) {
		j->job.demand.gpu_mem = 20ull << 30;
	} else {
		j->job.demand.gpus = kind < 0.7 ? 1 : kind < 0.9 ? 2 : 4;
		if (kind > 0.98 && user >= HEAVY)
			j->job.demand.gpus = 8;
	}
	if (user >= HEAVY && user % 10 == 3)
		p = uniform(s) < 0.3 ? TF__PRIORITY__HIGH : TF__PRIORITY__LOW;
	if (uniform(s) < 0.67)
		j->job.walltime_ms = j->takes_ms * 3 / 2 + HOUR / 10;
	j->job.priority = (uint8_t)p;
	j->job.lane = (uint8_t)lane_of(TF__JOB_KIND__TRAIN, p, j->job.walltime_ms);
	j->job.submitted_ms = s->now;
	j->job.user = s->user[user];
	line_add(&j->job);
	return j;
}

static size_t view(const struct sim *s, struct running out[LIMIT_WORKERS])
{
	for (size_t i = 0; i < s->runnings; i++) {
		const struct sim_job *j = s->running[i];

		out[i] = (struct running){ .holding = j->holding,
					   .started_ms = j->job.started_ms,
					   .ends_ms = job_ends_ms(&j->job, j->job.started_ms),
					   .priority = j->job.priority };
	}
	return s->runnings;
}

static void begin(struct sim *s, const struct decision *d)
{
	struct sim_job *j = (struct sim_job *)d->start;
	struct user_share *u = j->job.user;
	int64_t since = u->last_start_ms[j->job.lane];

	since = j->job.submitted_ms > since ? j->job.submitted_ms : since;
	if ((double)(s->now - since) / 1e3 > s->worst_wait_s)
		s->worst_wait_s = (double)(s->now - since) / 1e3;
	line_remove(&j->job);
	j->job.started_ms = s->now;
	j->job.state = TF__JOB_STATE__RUNNING;
	j->ends_ms = s->now + j->takes_ms;
	j->holding = d->holding;
	j->charge = charge_of(&s->machine, &j->holding, (Tf__Priority)j->job.priority);
	share_start(u, s->shares.half_life_s, j->charge, s->now);
	u->last_start_ms[j->job.lane] = s->now;
	s->running[s->runnings++] = j;
	s->starts++;
}

static void end(struct sim *s, size_t i)
{
	struct sim_job *j = s->running[i];

	for (size_t u = 0; u < USERS; u++)
		if (s->user[u] == j->job.user)
			s->had[u] += j->charge.units * (double)(s->now - j->job.started_ms) / 1e3;
	s->gpu_s += j->charge.gpus * (double)(s->now - j->job.started_ms) / 1e3;
	share_end(j->job.user, s->shares.half_life_s, j->charge, s->now);
	s->running[i] = s->running[--s->runnings];
	xfree(j);
}

/* ---------------------------------------------------------------- the rules, from outside */

/* Free GPUs and slots counted one by one. */
static void count_free(const struct sim *s, uint32_t *gpus, uint32_t *slots)
{
	uint64_t held = 0, slot = 0;

	for (size_t i = 0; i < s->runnings; i++) {
		const struct holding *h = &s->running[i]->holding;

		assert_true(h->share || (held & h->gpus) == 0); /* never given twice */
		held |= h->gpus;
		if (h->slot >= 0) {
			assert_true(h->slot < 8 && !(slot >> h->slot & 1));
			slot |= 1ull << h->slot;
		}
	}
	*gpus = GPU_COUNT - (uint32_t)__builtin_popcountll(held);
	*slots = s->machine.slots - (uint32_t)__builtin_popcountll(slot);
}

/* Nothing idles that an admissible job fits: any that would end before the first in line starts, or
 * any at all while nobody is held up. */
static void nothing_idles(const struct sim *s)
{
	uint32_t gpus, slots;

	count_free(s, &gpus, &slots);
	for (size_t u = 0; u < s->shares.count && (gpus || slots); u++)
		for (int lane = 0; lane < LANES; lane++)
			for (const struct job *j = s->shares.user[u]->line[lane].first; j;
			     j = j->after) {
				int64_t ends = job_ends_ms(j, s->now);
				bool room = j->demand.gpu_mem ? gpus > 0
					    : j->demand.gpus  ? gpus >= j->demand.gpus
							      : slots > 0;

				if (room && (!s->first.job ||
					     (ends != NEVER_MS && ends <= s->first.start_ms)))
					fail_msg("job %llu fits %u GPUs, %u slots and waits",
						 (unsigned long long)j->id, gpus, slots);
			}
}

/* What starts from behind the first in line never puts off the promise to it. (Jobs of users who
 * had less come before it, and may.) */
static void first_is_not_delayed(const struct sim *s, const struct first_in_line *before)
{
	if (before->job && before->job == s->first.job && s->first.ahead == 0 &&
	    s->first.start_ms > before->start_ms)
		fail_msg("job %llu was to start by %lld, now by %lld",
			 (unsigned long long)before->job, (long long)before->start_ms,
			 (long long)s->first.start_ms);
}

static void decide(struct sim *s)
{
	struct running running[LIMIT_WORKERS];
	struct decision out[LIMIT_WORKERS];
	const struct schedule_input in = { .machine = &s->machine,
					   .running = running,
					   .runnings = view(s, running),
					   .shares = &s->shares,
					   .rules = { .aging_ms = AGING_MS },
					   .now_ms = s->now };
	struct first_in_line before = s->first;
	int64_t start = cpu_ns();
	size_t n = schedule_decide(&in, out, LIMIT_WORKERS - s->runnings, &s->first);

	start = cpu_ns() - start;
	s->decide_ns += start;
	s->decisions++;
	if (start > s->worst_ns)
		s->worst_ns = start;
	for (size_t i = 0; i < n; i++) {
		assert_int_equal(out[i].kind, DECIDE_START);
		s->backfilled += s->first.job && i >= s->first.ahead;
		begin(s, &out[i]);
	}
	nothing_idles(s);
	first_is_not_delayed(s, &before);
}

/* ---------------------------------------------------------------- a month */

static int64_t next_event(const struct sim *s)
{
	int64_t next = NEVER_MS;

	for (size_t i = 0; i < s->runnings; i++)
		next = s->running[i]->ends_ms < next ? s->running[i]->ends_ms : next;
	for (size_t u = HEAVY; u < USERS; u++)
		next = s->next_arrival[u] < next ? s->next_arrival[u] : next;
	return next;
}

static void arrive(struct sim *s)
{
	for (size_t u = 0; u < USERS; u++) {
		if (u < HEAVY) {
			while (s->user[u]->queued < QUEUE_LEAST)
				submit(s, u);
			continue;
		}
		if (s->now < s->next_arrival[u])
			continue;
		submit(s, u); /* a job or two a day: below a fair part */
		s->next_arrival[u] = s->now - (int64_t)(log(1 - uniform(s)) * (double)DAY / 1.5);
	}
}

static void play(struct sim *s)
{
	while (s->now < START_MS + DAYS * DAY) {
		for (size_t i = 0; i < s->runnings;)
			if (s->running[i]->ends_ms <= s->now)
				end(s, i);
			else
				i++;
		arrive(s);
		decide(s);
		s->now = next_event(s);
	}
	while (s->runnings)
		end(s, 0);
}

static void drop_queue(struct sim *s)
{
	for (size_t u = 0; u < s->shares.count; u++)
		for (int lane = 0; lane < LANES; lane++)
			while (s->shares.user[u]->line[lane].first) {
				struct job *j = s->shares.user[u]->line[lane].first;

				line_remove(j);
				free(j);
			}
	shares_release(&s->shares);
}

static void a_month_is_fair_and_busy(void **state)
{
	static struct sim s;
	double least = INFINITY, most = 0, sum = 0, weights = 0, busy;

	(void)state;
	sim_init(&s, USERS);
	play(&s);
	for (size_t u = 0; u < HEAVY; u++) {
		sum += s.had[u];
		weights += s.user[u]->limits.weight;
	}
	for (size_t u = 0; u < HEAVY; u++) {
		double part = s.had[u] / (sum * s.user[u]->limits.weight / weights);

		least = part < least ? part : least;
		most = part > most ? part : most;
	}
	busy = s.gpu_s / (GPU_COUNT * 86400.0 * DAYS);
	print_message("# %llu decisions, %llu starts, %llu of them past the first in line; GPUs "
		      "%.1f %% busy\n",
		      (unsigned long long)s.decisions, (unsigned long long)s.starts,
		      (unsigned long long)s.backfilled, 100 * busy);
	print_message("# parts of what is theirs: %.3f to %.3f; longest wait of a line: %.1f h; "
		      "decisions: mean %.1f us, worst %.1f us\n",
		      least, most, s.worst_wait_s / 3600,
		      (double)s.decide_ns / (double)s.decisions / 1e3, (double)s.worst_ns / 1e3);
	assert_true(least > 0.95 && most < 1.05);
	assert_true(busy > 0.9);
	assert_true(s.backfilled > 100);
	/* a line that is overdue is served once what runs before it has ended */
	assert_true(s.worst_wait_s * 1000 < AGING_MS + 24 * HOUR);
	drop_queue(&s);
}

/* ---------------------------------------------------------------- ten thousand */

static int by_size(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

/* One GPU is free and all wait for more of them: every job has to be looked at. */
static void ten_thousand_are_decided_in_time(void **state)
{
	static struct sim s;
	struct running running[LIMIT_WORKERS];
	struct decision out[LIMIT_WORKERS];
	int64_t took[21], forecast;
	const struct schedule_input in = { .machine = &s.machine,
					   .running = running,
					   .runnings = 9,
					   .shares = &s.shares,
					   .rules = { .aging_ms = AGING_MS },
					   .now_ms = START_MS + HOUR };
	uint32_t last = 0;

	(void)state;
	sim_init(&s, USERS);
	memset(running, 0, sizeof running);
	for (int i = 0; i < 9; i++) {
		running[i].holding.slot = -1;
		running[i].holding.gpus = i < 8 ? 127ull << (7 * i) : 127ull << 56;
		running[i].ends_ms = START_MS + (i + 2) * HOUR;
	}
	for (int i = 0; i < 10000; i++) {
		struct sim_job *j = submit(&s, (size_t)(uniform(&s) * USERS));

		j->job.device = DEVICE_ANY;
		j->job.demand = (struct demand){ .gpus = 2 + (uint32_t)(uniform(&s) * 6) };
	}
	for (size_t i = 0; i < ARRAY_LEN(took); i++) {
		took[i] = cpu_ns();
		assert_int_equal(schedule_decide(&in, out, LIMIT_WORKERS - 9, &s.first), 0);
		took[i] = cpu_ns() - took[i];
	}
	qsort(took, ARRAY_LEN(took), sizeof *took, by_size);
	forecast = cpu_ns();
	schedule_forecast(&in);
	forecast = cpu_ns() - forecast;
	for (size_t u = 0; u < USERS; u++)
		for (int lane = 0; lane < LANES; lane++)
			for (const struct job *j = s.user[u]->line[lane].first; j; j = j->after)
				last = j->place > last ? j->place : last;
	assert_int_equal(last, 10000);
	print_message("# 10,000 queued: a decision takes %.3f ms (least), %.3f ms (median), "
		      "%.3f ms (worst); a forecast of all %.1f ms\n",
		      (double)took[0] / 1e6, (double)took[10] / 1e6, (double)took[20] / 1e6,
		      (double)forecast / 1e6);
#if !defined(__SANITIZE_ADDRESS__) && defined(__OPTIMIZE__)
	assert_true(took[0] < 1000000); /* to the others a busy machine's caches add */
#endif
	drop_queue(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_month_is_fair_and_busy),
		cmocka_unit_test(ten_thousand_are_decided_in_time),
	};

	return cmocka_run_group_tests_name("simulate", tests, NULL, NULL);
}
