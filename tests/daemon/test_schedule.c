/* SPDX-License-Identifier: Apache-2.0
 * The table of job states, every state by every event; the live jobs; the scheduler's pure
 * function. */
#include "tests/test.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

/* What must come out, written down a second time: a letter a state, '.' for "not possible". */
/* clang-format off */
static const char *const expected[] = {
	/* ready unready hold release start hello stop cancel done fail requeue again */
	[TF__JOB_STATE__QUEUED]    = "..H.S..C.F..",
	[TF__JOB_STATE__WAITING]   = "QCH....C....",
	[TF__JOB_STATE__HELD]      = ".C.W...C....",
	[TF__JOB_STATE__STARTING]  = ".....RPPDFQ.",
	[TF__JOB_STATE__RUNNING]   = ".....RPPDFQ.",
	[TF__JOB_STATE__STOPPING]  = ".....PPPDFQ.",
	[TF__JOB_STATE__DONE]      = "............",
	[TF__JOB_STATE__FAILED]    = "...........W",
	[TF__JOB_STATE__CANCELLED] = "...........W",
};
/* clang-format on */

static void every_state_by_every_event(void **state)
{
	static const char letters[] = ".QWHSRPDFC";

	(void)state;
	for (int s = TF__JOB_STATE__QUEUED; s <= TF__JOB_STATE__CANCELLED; s++)
		for (int event = 0; event < JOB_EVENTS; event++) {
			char got = letters[job_next((Tf__JobState)s, (enum job_event)event)];

			if (got != expected[s][event])
				fail_msg("%s, %s: %c instead of %c",
					 job_state_name((Tf__JobState)s),
					 job_event_name((enum job_event)event), got,
					 expected[s][event]);
		}
}

static void add(struct live *l, uint64_t id, Tf__JobState state, const char *device)
{
	Tf__JobRecord r = TF__JOB_RECORD__INIT;
	Tf__Job j = TF__JOB__INIT;

	l->shares.limits.weight = 1;
	l->shares.half_life_s = 86400;
	j.id = id;
	j.state = state;
	j.kind = TF__JOB_KIND__NOOP;
	r.job = &j;
	r.device = (char *)device;
	live_add(l, &r);
}

static void live_jobs_are_found_among_holes(void **state)
{
	struct live l = { 0 };

	(void)state;
	for (uint64_t id = 1; id <= 1000; id++)
		add(&l, 3 * id, TF__JOB_STATE__QUEUED, NULL);
	for (uint64_t id = 1; id <= 1000; id++)
		if (id % 7)
			live_remove(&l, 3 * id);
	for (uint64_t id = 1; id <= 1000; id++) {
		assert_int_equal(live_find(&l, 3 * id) != NULL, id % 7 == 0);
		assert_null(live_find(&l, 3 * id + 1));
	}
	assert_int_equal(l.count - l.holes, 142);
	add(&l, 5000, TF__JOB_STATE__QUEUED, NULL);
	assert_non_null(live_find(&l, 5000));
	for (uint64_t id = 1; id <= 1000; id += 100) /* put back, in between */
		if (id % 7)
			add(&l, 3 * id, TF__JOB_STATE__QUEUED, NULL);
	for (uint64_t id = 1; id <= 1000; id++)
		assert_int_equal(live_find(&l, 3 * id) != NULL, id % 7 == 0 || id % 100 == 1);
	assert_non_null(live_find(&l, 5000));
	live_release(&l);
	shares_release(&l.shares);
}

static size_t decide(const struct live *l, const struct machine *m, const struct running *running,
		     size_t runnings, struct decision *out)
{
	const struct schedule_input in = { .machine = m,
					   .running = running,
					   .runnings = runnings,
					   .shares = &l->shares,
					   .rules = { .aging_ms = 86400000 },
					   .now_ms = 1000000 };

	return schedule_decide(&in, out, LIMIT_WORKERS, NULL);
}

static void first_come_first_served(void **state)
{
	struct machine m = { .slots = 3 };
	struct running held = { .holding = { .job = 1, .slot = 1 }, .ends_ms = NEVER_MS };
	struct decision out[LIMIT_WORKERS];
	struct live l = { 0 };

	(void)state;
	add(&l, 1, TF__JOB_STATE__RUNNING, NULL);
	add(&l, 2, TF__JOB_STATE__WAITING, NULL);
	add(&l, 3, TF__JOB_STATE__QUEUED, NULL);
	add(&l, 4, TF__JOB_STATE__HELD, NULL);
	add(&l, 5, TF__JOB_STATE__QUEUED, NULL);
	add(&l, 6, TF__JOB_STATE__QUEUED, NULL);
	assert_int_equal(decide(&l, &m, &held, 1, out), 2);
	assert_int_equal(out[0].job, 3);
	assert_int_equal(out[0].holding.slot, 0);
	assert_int_equal(out[1].job, 5);
	assert_int_equal(out[1].holding.slot, 2);
	m.slots = 0;
	assert_int_equal(decide(&l, &m, &held, 1, out), 0);
	live_release(&l);
	shares_release(&l.shares);
}

static void a_job_without_its_device_holds_nobody_up(void **state)
{
	struct machine m = { .slots = 1, .gpus = 1, .gpu = { { "gpu0", "cuda:0", "", 0, 0, "" } } };
	struct running held = { .holding = { .job = 7, .slot = -1, .gpus = 1 },
				.ends_ms = NEVER_MS };
	struct decision out[LIMIT_WORKERS];
	struct live l = { 0 };

	(void)state;
	add(&l, 1, TF__JOB_STATE__QUEUED, "cuda");
	add(&l, 2, TF__JOB_STATE__QUEUED, "cpu");
	assert_int_equal(decide(&l, &m, &held, 1, out), 1);
	assert_int_equal(out[0].job, 2);
	assert_int_equal(decide(&l, &m, NULL, 0, out), 2);
	assert_int_equal(out[0].job, 1);
	assert_int_equal(out[0].holding.gpus, 1);
	live_release(&l);
	shares_release(&l.shares);
}

static int read_options(struct options *o, struct err *e, int n, char **argv)
{
	enum options_result result;

	err_clear(e);
	return options_read(n, argv, o, &result, e);
}

/* A queued job that may run with those of a number; walltime in ms, 0: none. */
static struct job *add_joint(struct live *l, uint64_t id, uint64_t together, int64_t walltime_ms)
{
	struct job *j;

	add(l, id, TF__JOB_STATE__QUEUED, NULL);
	j = live_find(l, id);
	j->together = together;
	j->walltime_ms = walltime_ms;
	return j;
}

static void assert_joins(const struct decision *d, uint64_t job, uint64_t beside)
{
	assert_int_equal(d->kind, DECIDE_JOIN);
	assert_int_equal(d->job, job);
	assert_int_equal(d->beside, beside);
	assert_int_equal(d->holding.slot, -1);
}

/* A free place comes first, then a process of the same number, as long as it has room. */
static void jobs_join_where_there_is_room(void **state)
{
	struct machine m = { .slots = 2 };
	struct running held[] = {
		{ .holding = { .job = 1, .slot = 0 }, .ends_ms = NEVER_MS, .together = 7,
		  .room = 2, .jobs = 1 },
		{ .holding = { .job = 2, .slot = 1 }, .ends_ms = NEVER_MS, .together = 8,
		  .room = 1, .jobs = 3 },
	};
	struct decision out[LIMIT_WORKERS];
	struct live l = { 0 };

	(void)state;
	add(&l, 1, TF__JOB_STATE__RUNNING, NULL);
	add(&l, 2, TF__JOB_STATE__RUNNING, NULL);
	for (uint64_t id = 3; id < 8; id++)
		add_joint(&l, id, id == 4 ? 8 : 7, 0);
	assert_int_equal(decide(&l, &m, held, 2, out), 3);
	assert_joins(&out[0], 3, 1);
	assert_joins(&out[1], 4, 2);
	assert_joins(&out[2], 5, 1);
	held[0].stopping = true;
	held[1].room = 0;
	assert_int_equal(decide(&l, &m, held, 2, out), 0);
	held[0].stopping = false;
	live_find(&l, 4)->together = 7;
	assert_int_equal(decide(&l, &m, held, 1, out), 3); /* the second place is free */
	assert_int_equal(out[0].kind, DECIDE_START);
	assert_int_equal(out[0].holding.slot, 1);
	assert_joins(&out[1], 4, 1);
	assert_joins(&out[2], 5, 1);
	live_release(&l);
	shares_release(&l.shares);
}

/* Behind the first in line only what ends in time joins: the process must not go on because of it.
 */
static void joining_does_not_put_off_the_first_in_line(void **state)
{
	struct machine m = { .slots = 1 };
	struct running held = { .holding = { .job = 1, .slot = 0 }, .ends_ms = 1000000 + 60000,
				.together = 7, .room = 9, .jobs = 1 };
	struct decision out[LIMIT_WORKERS];
	struct live l = { 0 };

	(void)state;
	add(&l, 1, TF__JOB_STATE__RUNNING, NULL);
	add_joint(&l, 2, 7, 0);
	add_joint(&l, 3, 0, 0); /* first in line: the slot is its in a minute */
	add_joint(&l, 4, 7, 0);
	add_joint(&l, 5, 7, 61000);
	add_joint(&l, 6, 7, 59000);
	assert_int_equal(decide(&l, &m, &held, 1, out), 2);
	assert_joins(&out[0], 2, 1);
	assert_joins(&out[1], 6, 1);
	live_release(&l);
	shares_release(&l.shares);
}

static void options_come_from_rows(void **state)
{
	char *good[] = { "transfused", "--state",   "/a b\"c",  "--slots",  "3",
			 "--listen",   "tcp://*:1", "--listen", "tcp://*:2" };
	char *range[] = { "transfused", "--slots", "65" },
	     *joined[] = { "transfused", "--joined-jobs", "65" },
	     *word[] = { "transfused", "--slots", "two" };
	char *unknown[] = { "transfused", "--slot-count", "2" };
	struct options o;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(read_options(&o, &e, 9, good), &e);
	assert_string_equal(o.state, "/a b\"c");
	assert_int_equal(o.slots, 3);
	assert_int_equal(o.listen.count, 2);
	assert_string_equal(o.listen.text[1], "tcp://*:2");
	assert_int_equal(o.kill_grace_seconds, 10);
	options_release(&o);
	assert_int_equal(read_options(&o, &e, 3, range), TF_EINVALID);
	assert_non_null(strstr(e.text, "slots"));
	assert_int_equal(read_options(&o, &e, 3, joined), TF_EINVALID);
	assert_non_null(strstr(e.text, "joined"));
	assert_int_equal(read_options(&o, &e, 3, word), TF_EINVALID);
	assert_int_equal(read_options(&o, &e, 3, unknown), TF_EUSAGE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_state_by_every_event),
		cmocka_unit_test(live_jobs_are_found_among_holes),
		cmocka_unit_test(first_come_first_served),
		cmocka_unit_test(a_job_without_its_device_holds_nobody_up),
		cmocka_unit_test(jobs_join_where_there_is_room),
		cmocka_unit_test(joining_does_not_put_off_the_first_in_line),
		cmocka_unit_test(options_come_from_rows),
	};

	return cmocka_run_group_tests_name("schedule", tests, NULL, NULL);
}
