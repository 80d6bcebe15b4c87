/* SPDX-License-Identifier: Apache-2.0
 * The rules of the queue one by one, on the scheduler's pure functions: classes, shares, aging,
 * backfill, stepping back, limits, times, the fast lane, and what people are told. */
#include "tests/test.h"
#include "daemon/schedule.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOW 1764547200000ll /* 2025-12-01 */
#define MINUTE 60000ll
#define HOUR (60 * MINUTE)
#define JOBS_MAX 32

/* A machine of 2 slots and 4 GPUs, and what goes on there. */
struct scene {
	struct machine machine;
	struct shares shares;
	struct schedule_rules rules;
	struct running running[8];
	size_t runnings;
	struct job job[JOBS_MAX];
	size_t jobs;
	struct decision out[LIMIT_WORKERS];
	struct first_in_line first;
	char text[200];
};

static int setup(void **state)
{
	struct scene *s = *state = xcalloc(1, sizeof *s);

	s->machine = (struct machine){ .slots = 2, .cpus = 16, .mem = 1ull << 36, .gpus = 4 };
	for (int i = 0; i < 4; i++) {
		snprintf(s->machine.gpu[i].name, GPU_NAME_MAX, "gpu%d", i);
		s->machine.gpu[i].memory = 80ull << 30;
	}
	s->rules = (struct schedule_rules){ .aging_ms = 72 * HOUR, .preempt_after_ms = MINUTE };
	s->shares.half_life_s = 86400;
	s->shares.limits.weight = 1;
	return 0;
}

static int teardown(void **state)
{
	struct scene *s = *state;

	shares_release(&s->shares);
	xfree(s);
	return 0;
}

/* A job of a user that wants so many GPUs (0: a slot) for so long (0: nobody knows). */
static struct job *queue(struct scene *s, const char *user, Tf__Priority priority, uint32_t gpus,
			 int64_t walltime_ms)
{
	struct job *j = &s->job[s->jobs++];

	CHECK(s->jobs <= JOBS_MAX);
	j->id = s->jobs;
	j->state = TF__JOB_STATE__QUEUED;
	j->kind = TF__JOB_KIND__TRAIN;
	j->device = gpus ? DEVICE_CUDA : DEVICE_CPU;
	j->demand.gpus = gpus;
	j->priority = (uint8_t)priority;
	j->walltime_ms = walltime_ms;
	j->submitted_ms = NOW;
	j->lane = (uint8_t)lane_of(TF__JOB_KIND__TRAIN, priority, walltime_ms);
	j->user = shares_get(&s->shares, user);
	line_add(j);
	return j;
}

/* Job 100 + its number runs with these GPUs since an hour, until ends_ms. */
static struct running *run(struct scene *s, Tf__Priority priority, uint64_t gpus, int64_t ends_ms)
{
	struct running *r = &s->running[s->runnings++];

	*r = (struct running){ .holding = { .job = 100 + s->runnings, .gpus = gpus, .slot = -1 },
			       .started_ms = NOW - HOUR,
			       .ends_ms = ends_ms,
			       .priority = (uint8_t)priority,
			       .may_step_back = true };
	return r;
}

static struct schedule_input input(struct scene *s)
{
	return (struct schedule_input){ .machine = &s->machine,
					.running = s->running,
					.runnings = s->runnings,
					.shares = &s->shares,
					.rules = s->rules,
					.now_ms = NOW };
}

/* What is decided, as text: "3 1 -102" starts 3 and 1 and makes 102 step back. */
static const char *decide(struct scene *s)
{
	struct schedule_input in = input(s);
	size_t n = schedule_decide(&in, s->out, LIMIT_WORKERS - s->runnings, &s->first), at = 0;

	s->text[0] = 0;
	for (size_t i = 0; i < n; i++)
		at += (size_t)snprintf(s->text + at, sizeof s->text - at, "%s%s%llu", i ? " " : "",
				       s->out[i].kind == DECIDE_STEP_BACK ? "-" : "",
				       (unsigned long long)s->out[i].job);
	return s->text;
}

#define LOW TF__PRIORITY__LOW
#define NORMAL TF__PRIORITY__NORMAL
#define HIGH TF__PRIORITY__HIGH
#define URGENT TF__PRIORITY__URGENT

/* ---------------------------------------------------------------- the order */

static void classes_come_in_their_order(void **state)
{
	struct scene *s = *state;

	queue(s, "ann", LOW, 1, 0);
	queue(s, "ann", NORMAL, 1, 0);
	queue(s, "ann", HIGH, 1, 0);
	queue(s, "ben", URGENT, 1, 0);
	assert_string_equal(decide(s), "4 3 2 1");
}

static void users_take_turns_by_weight(void **state)
{
	struct scene *s = *state;

	for (int i = 0; i < 4; i++)
		queue(s, "ann", NORMAL, 1, 0);
	for (int i = 0; i < 4; i++)
		queue(s, "ben", NORMAL, 1, 0);
	assert_string_equal(decide(s), "1 5 2 6");
	shares_get(&s->shares, "ann")->limits.weight = 3;
	assert_string_equal(decide(s), "1 5 2 3");
}

static void who_had_less_goes_first(void **state)
{
	struct scene *s = *state;
	struct user_share *ann;

	queue(s, "ann", NORMAL, 4, 0);
	queue(s, "ben", NORMAL, 4, 0);
	assert_string_equal(decide(s), "1");
	ann = shares_get(&s->shares, "ann");
	ann->used = 10;
	ann->used_ms = NOW;
	assert_string_equal(decide(s), "2");
}

/* A line that got nothing for too long goes before its class, but not before urgent jobs, and for
 * one job only. */
static void who_waits_too_long_is_served(void **state)
{
	struct scene *s = *state;

	queue(s, "ann", LOW, 1, 0)->submitted_ms = NOW - 72 * HOUR;
	queue(s, "ann", LOW, 1, 0)->submitted_ms = NOW - 72 * HOUR;
	queue(s, "ben", HIGH, 1, 0);
	queue(s, "ben", URGENT, 1, 0);
	assert_string_equal(decide(s), "4 1 3 2");
	s->job[0].user->last_start_ms[LANE_LOW] = NOW - 71 * HOUR;
	assert_string_equal(decide(s), "4 3 1 2");
}

static void a_job_queued_again_has_its_place(void **state)
{
	struct scene *s = *state;
	struct job *first = queue(s, "ann", NORMAL, 4, 0), *middle;

	middle = queue(s, "ann", NORMAL, 4, 0);
	queue(s, "ann", NORMAL, 4, 0);
	line_remove(first);
	line_remove(middle);
	assert_string_equal(decide(s), "3");
	line_add(middle);
	assert_string_equal(decide(s), "2");
	line_add(first);
	assert_string_equal(decide(s), "1");
	line_remove(middle);
	line_add(middle);
	line_remove(first);
	assert_string_equal(decide(s), "2");
}

/* ---------------------------------------------------------------- backfill */

static void what_ends_in_time_may_pass(void **state)
{
	struct scene *s = *state;

	run(s, NORMAL, 3, NOW + HOUR);           /* gpu0, gpu1 for an hour */
	queue(s, "ann", NORMAL, 4, HOUR);        /* the first in line */
	queue(s, "ann", NORMAL, 1, HOUR + 1);    /* too long by a millisecond */
	queue(s, "ann", NORMAL, 1, 0);           /* who knows */
	queue(s, "ben", NORMAL, 1, HOUR);
	queue(s, "ben", NORMAL, 0, 0);           /* on the processor: not in the way */
	assert_string_equal(decide(s), "4 5");
	assert_int_equal(s->first.job, 1);
	assert_true(s->first.start_ms == NOW + HOUR);
}

static void what_fits_beside_the_first_may_pass(void **state)
{
	struct scene *s = *state;

	run(s, NORMAL, 7, NOW + HOUR);
	queue(s, "ann", NORMAL, 3, HOUR); /* in an hour it leaves one GPU */
	queue(s, "ben", NORMAL, 1, 0);
	assert_string_equal(decide(s), "2");
	assert_true(s->first.start_ms == NOW + HOUR);
}

/* Nobody knows when the first can start: what is idle is for jobs that end. */
static void before_an_unknown_end_only_bounded_jobs_pass(void **state)
{
	struct scene *s = *state;

	run(s, NORMAL, 1, NEVER_MS);
	queue(s, "ann", NORMAL, 4, 0);
	queue(s, "ben", NORMAL, 1, 0);
	queue(s, "ben", NORMAL, 1, 100 * HOUR);
	assert_string_equal(decide(s), "3");
	assert_true(s->first.start_ms == NEVER_MS);
}

static void a_share_of_a_gpu_is_kept_for_the_first(void **state)
{
	struct scene *s = *state;
	struct job *j;

	s->machine.gpus = 1;
	run(s, NORMAL, 1, NOW + HOUR)->holding.share = 60ull << 30;
	j = queue(s, "ann", NORMAL, 0, 0);
	j->device = DEVICE_CUDA;
	j->demand.gpu_mem = 50ull << 30;
	for (int i = 0; i < 3; i++) {
		j = queue(s, "ben", NORMAL, 0, 0);
		j->device = DEVICE_CUDA;
		j->demand.gpu_mem = 15ull << 30;
	}
	assert_string_equal(decide(s), "2"); /* 80 - 50 leaves room for 30, 80 - 60 for 20 now */
}

/* ---------------------------------------------------------------- stepping back */

static void the_lowest_and_latest_step_back(void **state)
{
	struct scene *s = *state;

	run(s, NORMAL, 1, NEVER_MS);
	run(s, LOW, 2, NEVER_MS)->started_ms = NOW - 3 * HOUR;
	run(s, LOW, 4, NEVER_MS)->started_ms = NOW - 2 * HOUR;
	run(s, HIGH, 8, NEVER_MS);
	queue(s, "ann", HIGH, 1, 0);
	assert_string_equal(decide(s), "-103");
	assert_true(s->first.makes_room);
	s->running[2].stopping = true; /* while it leaves nobody else is asked */
	assert_string_equal(decide(s), "");
	assert_true(s->first.makes_room);
	s->running[2].stopping = false;
	s->job[0].demand.gpus = 3;
	assert_string_equal(decide(s), "-101 -102 -103");
	s->job[0].demand.gpus = 4; /* in vain: one of its own class stays */
	assert_string_equal(decide(s), "");
}

/* One that holds much suffices: those that were chosen before it are spared. */
static void nobody_steps_back_in_vain(void **state)
{
	struct scene *s = *state;

	run(s, LOW, 1, NEVER_MS)->started_ms = NOW - 2 * HOUR;
	run(s, LOW, 14, NEVER_MS)->started_ms = NOW - 3 * HOUR;
	queue(s, "ann", NORMAL, 3, 0);
	assert_string_equal(decide(s), "-102");
}

static void some_never_step_back(void **state)
{
	struct scene *s = *state;
	struct running *r = run(s, LOW, 15, NEVER_MS);

	queue(s, "ann", URGENT, 1, 0);
	r->may_step_back = false;
	assert_string_equal(decide(s), "");
	r->may_step_back = true;
	r->started_ms = NOW - MINUTE + 1; /* it has hardly begun */
	assert_string_equal(decide(s), "");
	r->started_ms = NOW - MINUTE;
	r->priority = URGENT;
	assert_string_equal(decide(s), "");
	r->priority = HIGH;
	assert_string_equal(decide(s), "-101");
}

/* ---------------------------------------------------------------- limits and times */

static void limits_pass_over(void **state)
{
	struct scene *s = *state;
	struct user_share *ann = shares_get(&s->shares, "ann");

	queue(s, "ann", NORMAL, 2, 0);
	queue(s, "ann", NORMAL, 1, 0);
	queue(s, "ann", NORMAL, 1, 0);
	queue(s, "ben", NORMAL, 2, 0);
	ann->limits.gpus = 1;
	assert_string_equal(decide(s), "2 4");
	assert_int_equal(s->first.job, 0); /* one at its limit holds nobody up */
	ann->limits.gpus = 0;
	ann->limits.running = 1;
	assert_string_equal(decide(s), "1 4");
	ann->limits.running = 0;
	ann->limits.gpu_hours = 2;
	ann->used_ms = NOW;
	ann->month_gpu_s = 7199;
	assert_string_equal(decide(s), "1 4");
	ann->month_gpu_s = 7200;
	assert_string_equal(decide(s), "4");
	ann->used_ms = NOW - 1; /* that was November */
	assert_int_equal((int)strlen(decide(s)), 3);
}

static void times_are_kept(void **state)
{
	struct scene *s = *state;

	queue(s, "ann", NORMAL, 4, 0)->begin_ms = NOW + 1;
	queue(s, "ann", NORMAL, 1, HOUR)->deadline_ms = NOW + HOUR - 1;
	queue(s, "ann", NORMAL, 1, HOUR)->deadline_ms = NOW + HOUR;
	queue(s, "ann", NORMAL, 1, 0)->deadline_ms = NOW + 1;
	assert_string_equal(decide(s), "3 4");
	s->job[0].begin_ms = NOW;
	assert_string_equal(decide(s), "1");
}

static void what_ran_counts_for_the_walltime(void **state)
{
	struct scene *s = *state;
	struct job *j = queue(s, "ann", NORMAL, 1, HOUR);

	assert_true(job_ends_ms(j, NOW) == NOW + HOUR);
	j->ran_ms = HOUR / 4;
	assert_true(job_ends_ms(j, NOW) == NOW + 3 * HOUR / 4);
	j->ran_ms = 2 * HOUR;
	assert_true(job_ends_ms(j, NOW) == NOW);
	j->walltime_ms = 0;
	assert_true(job_ends_ms(j, NOW) == NEVER_MS);
}

static void short_generates_have_a_lane(void **state)
{
	struct scene *s = *state;
	struct job *j;

	s->machine.fast = 1;
	s->machine.slots = 1;
	run(s, HIGH, 0, NEVER_MS)->holding.slot = 0;
	queue(s, "ann", HIGH, 0, MINUTE);
	j = queue(s, "ann", NORMAL, 0, MINUTE);
	line_remove(j);
	j->kind = TF__JOB_KIND__GENERATE;
	assert_int_equal(lane_of(TF__JOB_KIND__GENERATE, NORMAL, MINUTE + 1), LANE_NORMAL);
	assert_int_equal(lane_of(TF__JOB_KIND__GENERATE, NORMAL, 0), LANE_NORMAL);
	j->lane = (uint8_t)lane_of(TF__JOB_KIND__GENERATE, NORMAL, MINUTE);
	assert_int_equal(j->lane, LANE_FAST);
	line_add(j);
	assert_string_equal(decide(s), "2");
	assert_int_equal(s->out[0].holding.slot, LIMIT_SLOTS);
}

/* ---------------------------------------------------------------- shares */

/* The closed form against many small steps. */
static void use_decays_as_written(void **state)
{
	struct user_share u = { .used_ms = NOW };
	double by_steps = 0;

	(void)state;
	share_start(&u, 3600, (struct charge){ 2, 1 }, NOW);
	for (int i = 0; i < 3 * 36000; i++)
		by_steps = by_steps * exp2(-0.1 / 3600) + 2 * 0.1;
	assert_true(fabs(share_used(&u, 3600, NOW + 3 * HOUR) - by_steps) < 1);
	share_end(&u, 3600, (struct charge){ 2, 1 }, NOW + 3 * HOUR);
	assert_true(fabs(share_used(&u, 3600, NOW + 4 * HOUR) - by_steps / 2) < 1);
	assert_true(fabs(share_month_gpu_s(&u, NOW + 4 * HOUR) - 3 * 3600) < 1);
}

static void a_month_begins_at_its_first_second(void **state)
{
	struct user_share u = { .used_ms = NOW - HOUR, .month_gpu_s = 5 };

	(void)state;
	u.rate.gpus = 2;
	assert_true(share_month_gpu_s(&u, NOW - 1) > 7000);
	assert_true(fabs(share_month_gpu_s(&u, NOW + 1000) - 2) < 1e-6);
}

static void charges_are_as_written(void **state)
{
	struct scene *s = *state;
	struct holding gpus = { .gpus = 7, .slot = -1, .cpus = 8 };
	struct holding share = { .gpus = 2, .share = 20ull << 30, .slot = -1 };
	struct holding slot = { .slot = 1 };

	assert_true(charge_of(&s->machine, &gpus, NORMAL).units == 3.5);
	assert_true(charge_of(&s->machine, &gpus, HIGH).units == 7);
	assert_true(charge_of(&s->machine, &gpus, HIGH).gpus == 3);
	assert_true(charge_of(&s->machine, &share, LOW).units == 0.125);
	assert_true(charge_of(&s->machine, &slot, NORMAL).units == 0.0625);
}

static void limits_are_read_strictly(void **state)
{
	static const char *const wrong[] = { "",         "-x running=1",  "ann weight=0",
					     "ann run=1", "ann running=",  "ann running=-1",
					     "ann gpus=1x", "ann weight=nan" };
	struct user_limits l = { .weight = 1, .queued = 7 };
	char name[LIMIT_NAME_BYTES + 1];
	struct err e = ERR_INIT;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		assert_int_equal(limits_parse(wrong[i], name, &l, &e), TF_EINVALID);
	assert_ok(limits_parse("ann weight=0.5 running=4 gpus=2 gpu_hours=300", name, &l, &e), &e);
	assert_string_equal(name, "ann");
	assert_true(l.weight == 0.5 && l.running == 4 && l.queued == 7 && l.gpus == 2 &&
		    l.gpu_hours == 300);
}

/* ---------------------------------------------------------------- for people */

static void explain(struct scene *s, size_t i, const char *expected)
{
	struct schedule_input in = input(s);

	schedule_explain(&in, &s->first, &s->job[i], s->text, sizeof s->text);
	assert_string_equal(s->text, expected);
}

static void people_are_told_why_and_when(void **state)
{
	struct scene *s = *state;
	struct schedule_input in;

	run(s, NORMAL, 3, NOW + HOUR);
	run(s, NORMAL, 12, NOW + 2 * HOUR);
	queue(s, "ann", NORMAL, 2, HOUR);
	queue(s, "ann", NORMAL, 4, 0);
	queue(s, "ann", NORMAL, 1, 0);
	queue(s, "ann", NORMAL, 0, 0);
	queue(s, "ann", NORMAL, 1, 0)->begin_ms = NOW + HOUR;
	s->machine.slots = 1;
	decide(s);
	in = input(s);
	schedule_forecast(&in);
	assert_int_equal(s->job[0].place, 1);
	assert_int_equal(s->job[2].place, 3);
	assert_true(s->job[0].expected_ms == NOW + HOUR);
	assert_true(s->job[1].expected_ms == NOW + 2 * HOUR);
	assert_true(s->job[2].expected_ms == NEVER_MS); /* behind one without a walltime */
	assert_true(s->job[3].expected_ms == NOW);
	assert_true(s->job[4].expected_ms == NOW + HOUR); /* no more is known */
	explain(s, 0, "first in line: waits for what it needs to be free");
	explain(s, 1, "1 job is before it");
	explain(s, 4, "not before 2025-12-01T01:00:00.000Z");
	s->job[0].user->limits.running = 1;
	s->job[0].user->running = 1;
	explain(s, 1, "ann may run 1 jobs at a time");
	s->job[0].user->running = 0;
	s->machine.gpu[0].drained = true;
	explain(s, 1, "what it needs is drained or gone");
}

/* A job that begins later is in nobody's way until then. */
static void what_begins_later_is_expected_then(void **state)
{
	struct scene *s = *state;
	struct schedule_input in;

	s->machine.slots = 1;
	queue(s, "ann", NORMAL, 0, 0)->begin_ms = NOW + HOUR;
	queue(s, "ann", NORMAL, 0, 2 * HOUR);
	assert_string_equal(decide(s), "2");
	in = input(s);
	schedule_forecast(&in);
	assert_int_equal(s->job[0].place, 1);
	assert_true(s->job[1].expected_ms == NOW);
	assert_true(s->job[0].expected_ms == NOW + 2 * HOUR);
	s->job[1].walltime_ms = 0;
	schedule_forecast(&in);
	assert_true(s->job[0].expected_ms == NOW + HOUR);
}

/* A GPU that runs several jobs of a user at a time is one of the GPUs they may have; so it is when
 * others' jobs are there, too, for those may end first. */
static void a_gpu_with_several_jobs_counts_once(void **state)
{
	struct scene *s = *state;
	struct running *crew = run(s, NORMAL, 1, NEVER_MS);
	struct user_share *ann = shares_get(&s->shares, "ann"), *ben;

	run(s, NORMAL, 14, NEVER_MS);
	crew->together = 7;
	crew->room = 9;
	crew->jobs = 1;
	crew->user[0] = ann;
	ann->rate = (struct charge){ 1, 1, 1 };
	ann->running = 1;
	ann->limits.gpus = 1;
	queue(s, "ann", NORMAL, 1, 0)->together = 7;
	queue(s, "ann", NORMAL, 1, 0);
	queue(s, "ben", NORMAL, 1, 0)->together = 7;
	queue(s, "ben", NORMAL, 1, 0)->together = 7;
	ben = shares_get(&s->shares, "ben");
	ben->limits.gpus = 1;
	assert_string_equal(decide(s), "3 4 1");
	for (int i = 0; i < 3; i++)
		assert_int_equal(s->out[i].kind, DECIDE_JOIN);
	ben->rate = (struct charge){ 2, 1, 1 }; /* on another GPU */
	ben->running = 1;
	assert_string_equal(decide(s), "1");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(classes_come_in_their_order),
		T(users_take_turns_by_weight),
		T(who_had_less_goes_first),
		T(who_waits_too_long_is_served),
		T(a_job_queued_again_has_its_place),
		T(what_ends_in_time_may_pass),
		T(what_fits_beside_the_first_may_pass),
		T(before_an_unknown_end_only_bounded_jobs_pass),
		T(a_share_of_a_gpu_is_kept_for_the_first),
		T(the_lowest_and_latest_step_back),
		T(nobody_steps_back_in_vain),
		T(some_never_step_back),
		T(limits_pass_over),
		T(times_are_kept),
		T(what_ran_counts_for_the_walltime),
		T(short_generates_have_a_lane),
		T(use_decays_as_written),
		T(a_month_begins_at_its_first_second),
		T(charges_are_as_written),
		T(limits_are_read_strictly),
		T(people_are_told_why_and_when),
		T(what_begins_later_is_expected_then),
		T(a_gpu_with_several_jobs_counts_once),
	};

	return cmocka_run_group_tests_name("order", tests, NULL, NULL);
}
