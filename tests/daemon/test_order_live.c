/* SPDX-License-Identifier: Apache-2.0
 * The rules with a live daemon and fake workers: stepping back, walltimes, deadlines, begin,
 * limits, roles, what is told, and shares that outlive the daemon. */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "store/shares.h"
#include "tests/daemon/own_store.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct harness h;
static struct err e;

static void prepare(const char *const *options)
{
	harness_init(&h);
	for (size_t i = 0; i < 8 && options[i]; i++)
		h.extra[i] = options[i];
	harness_start(&h);
}

static int submit(struct connection *line, const char *how, const Tf__Demand *demand, uint64_t *id)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	spec.demand = (Tf__Demand *)demand;
	err_clear(&e);
	return harness_submit(line, &spec, NULL, false, id, &e);
}

static uint64_t must(const char *how, const Tf__Demand *demand)
{
	uint64_t id = 0;

	assert_ok(submit(h.line, how, demand, &id), &e);
	return id;
}

/* An import: its kind can go on from where it was stopped. */
static uint64_t import(const char *how, Tf__Priority priority)
{
	char *path = xasprintf("%s/source.txt", h.folder);
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__IngestSpec ingest = TF__INGEST_SPEC__INIT;
	Tf__Demand demand = TF__DEMAND__INIT;
	uint64_t id = 0;

	assert_int_equal(file_write(path, "text\n", 5, 0600, NULL), 0);
	demand.has_priority = true;
	demand.priority = priority;
	ingest.dataset = (char *)"lines";
	ingest.n_path = 1;
	ingest.path = &path;
	spec.kind = TF__JOB_KIND__INGEST;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_INGEST;
	spec.ingest = &ingest;
	spec.demand = &demand;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	xfree(path);
	return id;
}

static Tf__Demand of_class(Tf__Priority priority)
{
	Tf__Demand d = TF__DEMAND__INIT;

	d.has_priority = true;
	d.priority = priority;
	return d;
}

static void expect_in_log(uint64_t id, const char *line)
{
	char *log = harness_log(&h, id);

	if (!log || !strstr(log, line))
		fail_msg("no '%s' in '%s'", line, log ? log : "");
	xfree(log);
}

static void expect_reason(uint64_t id, const char *part)
{
	char *reason = harness_reason(&h, id, NULL);

	if (!strstr(reason, part))
		fail_msg("no '%s' in the reason '%s'", part, reason);
	xfree(reason);
}

static void a_lower_job_steps_back_and_goes_on(void **state)
{
	const char *options[] = { "--preempt-after-seconds", "0", "--root", NULL, NULL };
	Tf__Demand high = of_class(TF__PRIORITY__HIGH);
	uint64_t low, first, second;
	Tf__Reply *reply;
	const Tf__Job *j;

	(void)state;
	harness_init(&h);
	options[3] = h.folder;
	for (size_t i = 0; options[i]; i++)
		h.extra[i] = options[i];
	harness_start(&h);
	low = import("wait", TF__PRIORITY__LOW);
	harness_until(&h, low, TF__JOB_STATE__RUNNING);
	first = must("done", &high);
	harness_until(&h, first, TF__JOB_STATE__DONE);
	harness_until(&h, low, TF__JOB_STATE__RUNNING);
	expect_in_log(low, "told preempt");
	second = must("done", &high);
	harness_until(&h, second, TF__JOB_STATE__DONE);
	harness_until(&h, low, TF__JOB_STATE__RUNNING);
	reply = harness_show(&h, low);
	j = reply->jobs->job[0];
	assert_int_equal(j->attempt, 3);
	assert_int_equal(j->n_stop, 1);
	assert_int_equal(j->stop[0]->reason, TF__STOP_REASON__STOP_PREEMPT);
	assert_int_equal(j->stop[0]->times, 2);
	assert_true(j->stop[0]->lost_s > 0 && j->stop[0]->lost_s < 60);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(harness_cancel(h.line, low, &e), &e);
	harness_until(&h, low, TF__JOB_STATE__CANCELLED);
	harness_stop(&h);
}

static void equals_and_others_do_not_step_back(void **state)
{
	static const char *const options[] = { "--preempt-after-seconds", "0", NULL };
	Tf__Demand high = of_class(TF__PRIORITY__HIGH), low = of_class(TF__PRIORITY__LOW);
	uint64_t running, waiting;

	(void)state;
	prepare(options);
	running = must("wait", &low); /* a noop cannot go on from where it was */
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	waiting = must("done", &high);
	clock_sleep_ms(50);
	assert_int_equal(harness_state(&h, waiting), TF__JOB_STATE__QUEUED);
	assert_int_equal(harness_state(&h, running), TF__JOB_STATE__RUNNING);
	assert_ok(harness_cancel(h.line, running, &e), &e);
	harness_until(&h, waiting, TF__JOB_STATE__DONE);
	harness_stop(&h);
}

static void a_walltime_ends_with_a_warning(void **state)
{
	static const char *const options[] = { NULL };
	Tf__Demand bounded = TF__DEMAND__INIT;
	uint64_t id;

	(void)state;
	prepare(options);
	bounded.has_walltime = true;
	bounded.walltime = 2;
	id = must("wait", &bounded);
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	expect_reason(id, "over its walltime");
	expect_in_log(id, "it is told to save its state and leave: over its walltime");
	expect_in_log(id, "told limit");
	harness_stop(&h);
}

static void begins_and_deadlines_are_kept(void **state)
{
	static const char *const options[] = { NULL };
	Tf__Demand later = TF__DEMAND__INIT, late = TF__DEMAND__INIT;
	uint64_t running, begins, misses;
	Tf__Reply *reply;

	(void)state;
	prepare(options);
	later.has_begin = late.has_deadline = true;
	later.begin = clock_wall_ms() + 3000;
	late.has_walltime = true;
	late.walltime = 59;
	begins = must("done", &later);
	running = must("wait", NULL); /* it passes the one that may not begin yet */
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	assert_int_equal(harness_state(&h, begins), TF__JOB_STATE__QUEUED);
	late.deadline = clock_wall_ms() + 60000;
	misses = must("done", &late);
	late.walltime = 61;
	assert_int_equal(submit(h.line, "done", &late, NULL), TF_EREFUSED);
	assert_non_null(strstr(e.text, "cannot end by its deadline"));
	harness_until(&h, misses, TF__JOB_STATE__FAILED);
	expect_reason(misses, "missed its deadline");
	assert_ok(harness_cancel(h.line, running, &e), &e);
	harness_until(&h, begins, TF__JOB_STATE__DONE);
	reply = harness_show(&h, begins);
	assert_true(reply->jobs->job[0]->started >= later.begin);
	tf__reply__free_unpacked(reply, NULL);
	harness_stop(&h);
}

static void limits_of_a_user_hold(void **state)
{
	static const char *const options[] = { "--limit-running", "1", "--limit-queued", "2",
					       NULL };
	Tf__Reply *reply;
	const Tf__Job *j;
	uint64_t running, waits, id;

	(void)state;
	harness_init(&h);
	h.slots = "2";
	for (size_t i = 0; options[i]; i++)
		h.extra[i] = options[i];
	harness_start(&h);
	running = must("wait", NULL);
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	waits = must("done", NULL);
	id = must("done", NULL);
	assert_int_equal(submit(h.line, "done", NULL, NULL), TF_ELIMIT);
	assert_non_null(strstr(e.text, "has 2 jobs waiting, the limit"));
	reply = harness_show(&h, waits);
	j = reply->jobs->job[0];
	assert_int_equal(j->state, TF__JOB_STATE__QUEUED);
	assert_int_equal(j->place, 1);
	assert_non_null(strstr(j->waits, "may run 1 jobs at a time"));
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(harness_cancel(h.line, running, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	harness_stop(&h);
}

static void urgent_jobs_are_for_admins(void **state)
{
	Tf__Demand urgent = of_class(TF__PRIORITY__URGENT);
	struct key_pair member;
	struct connection *line;
	char *user;
	uint64_t id;

	(void)state;
	assert_ok(key_pair_make(&member, &e), &e);
	user = xasprintf("ann member %s", member.public_key);
	prepare((const char *const[]){ "--user", user, NULL });
	line = harness_line(&h, &member);
	assert_int_equal(submit(line, "done", &urgent, &id), TF_EREFUSED);
	assert_string_equal(e.text, "priority urgent is for admins; you are a member");
	id = must("done", &urgent);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	connection_close(line);
	harness_stop(&h);
	xfree(user);
}

static int take_share(void *arg, const char *user, const Tf__ShareRecord *r)
{
	(void)user;
	*(double *)arg += r->used;
	return 0;
}

static double share_on_disk(void)
{
	struct state *s = own_store_of(h.state);
	double used = 0;

	assert_ok(shares_each(s, take_share, &used, &e), &e);
	state_close(s);
	return used;
}

/* What a user has had is on disk with the end of the job, and grows after a restart. */
static void shares_outlive_the_daemon(void **state)
{
	static const char *const options[] = { NULL };
	double before, after;
	uint64_t id;

	(void)state;
	prepare(options);
	id = must("wait", NULL);
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	clock_sleep_ms(200);
	assert_ok(harness_cancel(h.line, id, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__CANCELLED);
	id = must("done", NULL); /* starts when the process is gone and its share counted */
	harness_until(&h, id, TF__JOB_STATE__DONE);
	harness_kill(&h, SIGKILL);
	before = share_on_disk();
	assert_true(before > 0.2 / 16 && before < 60);
	harness_start(&h);
	id = must("wait", NULL);
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	clock_sleep_ms(200);
	assert_ok(harness_cancel(h.line, id, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__CANCELLED);
	id = must("done", NULL);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	harness_kill(&h, SIGTERM);
	after = share_on_disk();
	assert_true(after > before + 0.19 / 16);
	harness_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_lower_job_steps_back_and_goes_on),
		cmocka_unit_test(equals_and_others_do_not_step_back),
		cmocka_unit_test(a_walltime_ends_with_a_warning),
		cmocka_unit_test(begins_and_deadlines_are_kept),
		cmocka_unit_test(limits_of_a_user_hold),
		cmocka_unit_test(urgent_jobs_are_for_admins),
		cmocka_unit_test(shares_outlive_the_daemon),
	};

	return cmocka_run_group_tests_name("order_live", tests, NULL, NULL);
}
