/* SPDX-License-Identifier: Apache-2.0
 * After a reboot numbers of processes begin anew: whoever has a lost worker's number is left alone,
 * and the job starts again. */
#include "tests/daemon/harness.h"
#include "daemon/daemon.h"
#include "daemon/spawn.h"
#include "lib/mem.h"
#include "store/jobs.h"
#include "tests/daemon/own_store.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct harness h;
static struct err e;

/* The one attempt there is. */
static int take(void *arg, const Tf__AttemptRecord *record)
{
	Tf__AttemptRecord *r = arg;

	assert_non_null(record->boot);
	assert_string_equal(record->boot, machine_boot());
	*r = *record;
	r->key = xstrdup(record->key);
	r->slot = xstrdup(record->slot);
	return 0;
}

/* It speaks of another process, in some boot; NULL: as an earlier version wrote it. */
static void rewrite(pid_t pid, const char *boot)
{
	Tf__AttemptRecord r = TF__ATTEMPT_RECORD__INIT;
	struct state *s = own_store_of(h.state);

	assert_ok(attempts_each(s, take, &r, &e), &e);
	r.boot = (char *)boot;
	r.pid = (uint32_t)pid;
	r.pid_start = process_start(pid);
	assert_true(r.pid_start > 0);
	assert_ok(attempt_put(s, &r, &e), &e);
	assert_ok(state_commit(s, &e), &e);
	state_close(s);
	xfree(r.key);
	xfree(r.slot);
}

static pid_t somebody(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		setsid();
		for (;;)
			pause();
	}
	assert_true(pid > 0);
	return pid;
}

/* The daemon is gone, and the record of its running job speaks of a stranger. */
static uint64_t leave_record(const char *boot, pid_t stranger)
{
	uint64_t job;

	err_clear(&e);
	harness_init(&h);
	harness_start(&h);
	job = harness_noop(&h, "wait");
	harness_until(&h, job, TF__JOB_STATE__RUNNING);
	harness_kill(&h, SIGKILL);
	rewrite(stranger, boot);
	return job;
}

static uint32_t attempt_of(uint64_t job)
{
	uint32_t attempt;

	xfree_(harness_reason(&h, job, &attempt));
	return attempt;
}

static void a_stranger_is_left_alone(void **state)
{
	pid_t stranger = somebody();
	uint64_t job = leave_record("11111111-2222-3333-4444-555555555555", stranger);

	(void)state;
	harness_start(&h);
	harness_until(&h, job, TF__JOB_STATE__RUNNING);
	assert_int_equal(attempt_of(job), 2);
	assert_ok(harness_cancel(h.line, job, &e), &e);
	harness_until(&h, job, TF__JOB_STATE__CANCELLED);
	harness_stop(&h);
	assert_int_equal(waitpid(stranger, NULL, WNOHANG), 0); /* it lives */
	kill(stranger, SIGKILL);
	waitpid(stranger, NULL, 0);
}

/* The same process, in this boot: number and start are the worker's, so it is taken for it. */
static void in_the_same_boot_it_is_the_worker(void **state)
{
	const char *const boots[] = { machine_boot(), NULL };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(boots); i++) {
		pid_t worker = somebody();
		uint64_t job = leave_record(boots[i], worker);

		harness_start(&h);
		assert_int_equal(attempt_of(job), 1);
		assert_int_not_equal(harness_state(&h, job), TF__JOB_STATE__QUEUED);
		kill(worker, SIGKILL);
		waitpid(worker, NULL, 0);
		harness_stop(&h);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_stranger_is_left_alone),
		cmocka_unit_test(in_the_same_boot_it_is_the_worker),
	};

	return cmocka_run_group_tests_name("reboot", tests, NULL, NULL);
}
