/* SPDX-License-Identifier: Apache-2.0
 * A live daemon and workers that crash, hang, vanish and lie: every job ends as it should, once. */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int count_of(const char *text, const char *word)
{
	int n = 0;

	for (const char *p = text; (p = strstr(p, word)) != NULL; p++)
		n++;
	return n;
}

static void a_job_goes_the_whole_way(void **state)
{
	struct harness h;
	uint64_t id;
	char *log;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	id = harness_noop(&h, "done");
	harness_until(&h, id, TF__JOB_STATE__DONE);
	log = harness_log(&h, id);
	assert_string_equal(log, "begin 1\nend 1\n");
	xfree(log);
	harness_stop(&h);
}

static void acknowledged_jobs_survive_kill_9(void **state)
{
	struct harness h;
	uint64_t running, first, last = 0;
	char *log;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	running = harness_noop(&h, "wait");
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	first = harness_noop(&h, "done");
	for (int i = 0; i < 50; i++)
		last = harness_noop(&h, "done");
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	assert_int_equal(harness_state(&h, last), TF__JOB_STATE__QUEUED);
	clock_sleep_ms(300);
	assert_int_equal(harness_state(&h, running), TF__JOB_STATE__RUNNING); /* adopted */
	assert_int_equal(harness_state(&h, first), TF__JOB_STATE__QUEUED);
	harness_cancel(h.line, running, NULL);
	harness_until(&h, running, TF__JOB_STATE__CANCELLED);
	harness_until(&h, last, TF__JOB_STATE__DONE);
	log = harness_log(&h, running);
	assert_int_equal(count_of(log, "begin"), 1);
	xfree(log);
	harness_stop(&h);
}

static void a_worker_that_ends_without_a_daemon_counts(void **state)
{
	static const char *const how[] = { "quiet", "aged" };
	struct harness h;
	uint64_t id;
	uint32_t attempt;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	for (size_t i = 0; i < ARRAY_LEN(how); i++) {
		id = harness_noop(&h, how[i]);
		harness_until(&h, id, TF__JOB_STATE__DONE);
		xfree_(harness_reason(&h, id, &attempt));
		assert_int_equal(attempt, 1);
	}
	harness_stop(&h);
}

static void a_crash_is_retried_so_often(void **state)
{
	struct harness h;
	uint64_t always, once;
	uint32_t attempt;
	char *reason, *log;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	always = harness_noop(&h, "crash");
	once = harness_noop(&h, "once");
	harness_until(&h, always, TF__JOB_STATE__FAILED);
	reason = harness_reason(&h, always, &attempt);
	assert_int_equal(attempt, 3);
	assert_non_null(strstr(reason, "signal 6"));
	xfree(reason);
	harness_until(&h, once, TF__JOB_STATE__DONE);
	log = harness_log(&h, once);
	assert_int_equal(count_of(log, "begin"), 2);
	assert_int_equal(count_of(log, "end"), 1);
	xfree(log);
	harness_stop(&h);
}

static void a_job_can_be_cancelled_at_any_time(void **state)
{
	struct harness h;
	uint64_t running, queued, stubborn;
	struct err e = ERR_INIT;
	char *reason;

	(void)state;
	harness_init(&h);
	h.extra[0] = "--stop-grace-seconds";
	h.extra[1] = "0";
	h.extra[2] = "--kill-grace-seconds";
	h.extra[3] = "1";
	harness_start(&h);
	running = harness_noop(&h, "wait");
	queued = harness_noop(&h, "done");
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	assert_ok(harness_cancel(h.line, queued, &e), &e);
	assert_int_equal(harness_state(&h, queued), TF__JOB_STATE__CANCELLED);
	assert_ok(harness_cancel(h.line, running, &e), &e);
	assert_ok(harness_cancel(h.line, running, &e), &e);
	harness_until(&h, running, TF__JOB_STATE__CANCELLED);
	reason = harness_reason(&h, running, NULL);
	assert_non_null(strstr(reason, "cancelled by "));
	xfree(reason);
	stubborn = harness_noop(&h, "stubborn");
	assert_ok(harness_cancel(h.line, stubborn, &e), &e); /* while starting, or before */
	harness_until(&h, stubborn, TF__JOB_STATE__CANCELLED);
	stubborn = harness_noop(&h, "stubborn");
	harness_until(&h, stubborn, TF__JOB_STATE__RUNNING);
	assert_ok(harness_cancel(h.line, stubborn, &e), &e);
	assert_int_equal(harness_state(&h, stubborn), TF__JOB_STATE__STOPPING);
	harness_kill(&h, SIGKILL); /* the cancel was acknowledged */
	harness_start(&h);
	harness_until(&h, stubborn, TF__JOB_STATE__CANCELLED);
	harness_stop(&h);
}

static void other_attempts_are_fenced(void **state)
{
	struct harness h;
	uint64_t id;
	char *reason;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	id = harness_noop(&h, "fence");
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	reason = harness_reason(&h, id, NULL);
	assert_string_equal(reason, "answered so");
	xfree(reason);
	harness_stop(&h);
}

static void a_mute_worker_is_lost(void **state)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	struct harness h;
	struct err e = ERR_INIT;
	uint64_t id;
	char *reason;

	(void)state;
	harness_init(&h);
	h.fault = "mute-worker:1";
	h.extra[0] = "--hello-seconds";
	h.extra[1] = "1";
	harness_start(&h);
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	spec.has_retries = true;
	spec.retries = 0;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	reason = harness_reason(&h, id, NULL);
	if (!strstr(reason, "did not report in time"))
		fail_msg("the reason is '%s'", reason);
	xfree(reason);
	harness_stop(&h);
}

static int submit_after(struct harness *h, const char *how, uint64_t after, uint64_t *id,
			struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	spec.n_after = 1;
	spec.after = &after;
	return harness_submit(h->line, &spec, NULL, false, id, e);
}

static void dependents_wait_and_fall(void **state)
{
	struct harness h;
	uint64_t first, second, third, bad, worse, worst;
	struct err e = ERR_INIT;
	char *reason;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	first = harness_noop(&h, "wait");
	assert_ok(submit_after(&h, "fail", first, &bad, &e), &e);
	assert_ok(submit_after(&h, "done", bad, &worse, &e), &e);
	assert_ok(submit_after(&h, "done", worse, &worst, &e), &e);
	harness_until(&h, first, TF__JOB_STATE__RUNNING);
	assert_int_equal(harness_state(&h, bad), TF__JOB_STATE__WAITING);
	assert_ok(harness_cancel(h.line, first, &e), &e);
	harness_until(&h, first, TF__JOB_STATE__CANCELLED);
	harness_until(&h, worst, TF__JOB_STATE__CANCELLED);
	reason = harness_reason(&h, worst, NULL);
	assert_non_null(strstr(reason, "to be done, which is cancelled"));
	xfree(reason);
	second = harness_noop(&h, "done");
	assert_ok(submit_after(&h, "done", second, &third, &e), &e);
	harness_until(&h, third, TF__JOB_STATE__DONE);
	assert_int_equal(submit_after(&h, "done", worst, NULL, &e), TF_EREFUSED);
	err_clear(&e);
	assert_int_equal(submit_after(&h, "done", 999, NULL, &e), TF_ENOTFOUND);
	harness_stop(&h);
}

static void a_token_gives_one_job(void **state)
{
	static const uint8_t token[16] = "the same token..";
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	struct harness h;
	uint64_t a = 0, b = 0;
	struct err e = ERR_INIT;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	assert_ok(harness_submit(h.line, &spec, token, false, &a, &e), &e);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	assert_ok(harness_submit(h.line, &spec, token, false, &b, &e), &e);
	assert_int_equal(a, b);
	harness_stop(&h);
}

static void a_drain_puts_jobs_back(void **state)
{
	struct harness h;
	struct err e = ERR_INIT;
	uint64_t id;
	uint32_t attempt;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	id = harness_noop(&h, "wait");
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	assert_ok(harness_drain(h.line, false, false, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__QUEUED);
	clock_sleep_ms(200);
	assert_int_equal(harness_state(&h, id), TF__JOB_STATE__QUEUED);
	assert_ok(harness_drain(h.line, true, false, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	xfree_(harness_reason(&h, id, &attempt));
	assert_int_equal(attempt, 2);
	assert_ok(harness_drain(h.line, false, true, &e), &e);
	harness_kill(&h, 0); /* it leaves by itself */
	harness_start(&h);
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	harness_stop(&h);
}

static void sigterm_leaves_the_workers(void **state)
{
	struct harness h;
	uint64_t id;
	char *log;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	id = harness_noop(&h, "wait");
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	harness_kill(&h, SIGTERM);
	harness_start(&h);
	clock_sleep_ms(200);
	assert_int_equal(harness_state(&h, id), TF__JOB_STATE__RUNNING);
	harness_cancel(h.line, id, NULL);
	harness_until(&h, id, TF__JOB_STATE__CANCELLED);
	log = harness_log(&h, id);
	assert_int_equal(count_of(log, "begin"), 1);
	xfree(log);
	harness_stop(&h);
}

static void a_second_daemon_is_refused(void **state)
{
	struct harness h;
	char text[2000], pid[40];

	(void)state;
	harness_init(&h);
	harness_start(&h);
	assert_int_equal(harness_start_fails(&h, text, sizeof text), 1);
	snprintf(pid, sizeof pid, "another daemon (pid %d)", (int)h.pid);
	if (!strstr(text, pid))
		fail_msg("it said: %s", text);
	harness_stop(&h);
}

/* A copy of the descriptor of the daemon's lock, as a worker has one that is just being started;
 * -1 where the system does not give it out. */
static int copy_of_lock(const struct harness *h)
{
	char *lock = harness_path(h, "lock"), link[64], target[1024];
	int pidfd = (int)syscall(SYS_pidfd_open, h->pid, 0), copy = -1;

	for (int fd = 3; fd < 1024 && copy < 0; fd++) {
		ssize_t n;

		snprintf(link, sizeof link, "/proc/%d/fd/%d", (int)h->pid, fd);
		n = readlink(link, target, sizeof target - 1);
		target[n > 0 ? n : 0] = 0;
		if (strcmp(target, lock) == 0)
			copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	}
	close(pidfd);
	xfree(lock);
	return copy;
}

static void what_a_killed_daemon_was_starting_holds_no_lock(void **state)
{
	struct harness h;
	int copy;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	copy = copy_of_lock(&h);
	harness_kill(&h, SIGKILL);
	if (copy >= 0)
		harness_start(&h);
	close(copy);
	harness_stop(&h);
	if (copy < 0)
		skip();
}

/* Shown by itself the job is what it is in a list. */
static void assert_shown(struct harness *h, const Tf__Job *listed)
{
	Tf__Reply *reply = harness_show(h, listed->id);
	Tf__Job shown = *reply->jobs->job[0];
	uint8_t one[4096], other[4096];
	size_t len;

	shown.spec = NULL;
	assert_true(tf__job__get_packed_size(&shown) < sizeof one);
	len = tf__job__pack(&shown, one);
	assert_int_equal(tf__job__get_packed_size(listed), len);
	tf__job__pack(listed, other);
	assert_memory_equal(one, other, len);
	tf__reply__free_unpacked(reply, NULL);
}

static void submit_noop(struct harness *h, Tf__JobSpec *spec, const char *how)
{
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	struct err e = ERR_INIT;

	spec->kind = TF__JOB_KIND__NOOP;
	spec->name = (char *)how;
	spec->spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec->noop = &noop;
	assert_ok(harness_submit(h->line, spec, NULL, false, NULL, &e), &e);
}

/* Jobs 1 to 7: done, failed, running with a walltime and figures, queued twice, waiting, held. */
static void submit_all_kinds(struct harness *h)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__Demand hour = TF__DEMAND__INIT;
	char *tags[] = { (char *)"red", (char *)"blue" };
	uint64_t running = 3;

	submit_noop(h, &spec, "done");
	submit_noop(h, &spec, "fail");
	harness_until(h, 1, TF__JOB_STATE__DONE);
	harness_until(h, 2, TF__JOB_STATE__FAILED);
	hour.has_walltime = true;
	hour.walltime = 3600;
	spec.demand = &hour;
	submit_noop(h, &spec, "wait");
	harness_until(h, running, TF__JOB_STATE__RUNNING);
	spec.tag = tags;
	spec.n_tag = ARRAY_LEN(tags);
	submit_noop(h, &spec, "done");
	submit_noop(h, &spec, "done");
	spec.n_after = 1;
	spec.after = &running;
	submit_noop(h, &spec, "done");
	spec.has_hold = spec.hold = true;
	submit_noop(h, &spec, "done");
}

/* Whether job 3 has said what it will, by which the starts of others are foretold. */
static bool has_said_all(const Tf__Reply *reply)
{
	return reply->jobs->n_job == 7 && reply->jobs->job[4]->progress &&
	       reply->jobs->job[3]->has_expected_start;
}

/* The records' bytes, and behind them what is only in memory. */
static void a_list_tells_what_each_job_tells(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;
	Tf__Reply *reply = NULL;
	struct err e = ERR_INIT;
	struct harness h;
	Tf__Job **job;

	(void)state;
	harness_init(&h);
	harness_start(&h);
	submit_all_kinds(&h);
	m.has_all = m.all = true;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	for (int i = 0; i < 6000 && !has_said_all(reply); i++) {
		tf__reply__free_unpacked(reply, NULL);
		clock_sleep_ms(10);
		assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	}
	assert_int_equal(reply->jobs->n_job, 7);
	job = reply->jobs->job; /* the newest first */
	assert_int_equal(job[0]->state, TF__JOB_STATE__HELD);
	assert_non_null(job[1]->waits);
	assert_int_equal(job[2]->place, 2);
	assert_true(job[3]->has_expected_start);
	assert_non_null(job[4]->progress);
	for (size_t i = 0; i < reply->jobs->n_job; i++)
		assert_shown(&h, job[i]);
	tf__reply__free_unpacked(reply, NULL);
	harness_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_job_goes_the_whole_way),
		cmocka_unit_test(acknowledged_jobs_survive_kill_9),
		cmocka_unit_test(a_worker_that_ends_without_a_daemon_counts),
		cmocka_unit_test(a_crash_is_retried_so_often),
		cmocka_unit_test(a_job_can_be_cancelled_at_any_time),
		cmocka_unit_test(other_attempts_are_fenced),
		cmocka_unit_test(a_mute_worker_is_lost),
		cmocka_unit_test(dependents_wait_and_fall),
		cmocka_unit_test(a_token_gives_one_job),
		cmocka_unit_test(a_list_tells_what_each_job_tells),
		cmocka_unit_test(a_drain_puts_jobs_back),
		cmocka_unit_test(sigterm_leaves_the_workers),
		cmocka_unit_test(a_second_daemon_is_refused),
		cmocka_unit_test(what_a_killed_daemon_was_starting_holds_no_lock),
	};

	return cmocka_run_group_tests_name("live", tests, NULL, NULL);
}
