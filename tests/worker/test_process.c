/* SPDX-License-Identifier: Apache-2.0
 * The program transfuse-worker as the daemon starts it: its arguments, its outcome file, its exit
 * status, SIGTERM, and a second attempt that takes over. */
#include "tests/test.h"
#include "tests/worker/fake_daemon.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "worker/worker.h"

#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

extern char **environ;
static char *folder, *endpoint, *program;
static char server_public[41], server_secret[41], worker_public[41], worker_secret[41];
static Tf__NoopSpec noop;
static Tf__JobSpec spec;
static Tf__Assignment assignment;
static uint32_t warm_seconds; /* of the next begin */

static void begin(struct fake *f, double seconds, const char *fail)
{
	tf__noop_spec__init(&noop);
	tf__job_spec__init(&spec);
	tf__assignment__init(&assignment);
	noop.has_seconds = true;
	noop.seconds = seconds;
	noop.fail = (char *)fail;
	noop.echo = "hello";
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	assignment.job = JOB;
	assignment.attempt = ATTEMPT;
	assignment.spec = &spec;
	assignment.job_folder = assignment.attempt_folder = folder;
	f->endpoint = endpoint;
	f->secret_key = server_secret;
	f->assignment = &assignment;
	assignment.has_warm_seconds = warm_seconds > 0;
	assignment.warm_seconds = warm_seconds;
	warm_seconds = 0;
	fake_start(f);
}

static pid_t start_worker(void)
{
	char *argv[] = { program, "--endpoint", endpoint, "--server-key", server_public, "--job",
			 "7",     "--attempt",  "2",      "--key-fd",     "3",           NULL };
	posix_spawn_file_actions_t actions;
	int key[2];
	pid_t pid;

	assert_int_equal(pipe(key), 0);
	assert_int_equal(write(key[1], worker_secret, 40), 40);
	assert_int_equal(write(key[1], "\n", 1), 1);
	close(key[1]);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, key[0], 3);
	assert_int_equal(posix_spawn(&pid, program, &actions, NULL, argv, environ), 0);
	posix_spawn_file_actions_destroy(&actions);
	close(key[0]);
	return pid;
}

static int exit_status(pid_t pid)
{
	int status = 0;

	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static Tf__Outcome *read_outcome(void)
{
	char *path = xasprintf("%s/outcome.pb", folder);
	struct buf b = BUF_INIT;
	struct err e = ERR_INIT;
	Tf__Outcome *o;

	assert_ok(file_read(path, 1 << 20, &b, &e), &e);
	o = tf__outcome__unpack(NULL, b.len, (const uint8_t *)b.data);
	assert_non_null(o);
	unlink(path);
	buf_release(&b);
	xfree(path);
	return o;
}

static double result_of(const Tf__Outcome *o, const char *name)
{
	for (size_t i = 0; i < o->n_result; i++)
		if (strcmp(o->result[i]->name, name) == 0)
			return o->result[i]->value;
	fail_msg("no result %s", name);
	return 0;
}

static void a_job_is_done(void **state)
{
	char *echo = xasprintf("%s/results/echo.txt", folder);
	Tf__Outcome *o;
	struct fake f;

	(void)state;
	begin(&f, 0.3, NULL);
	assert_int_equal(exit_status(start_worker()), WORKER_DONE);
	assert_int_equal(f.dones, 1);
	assert_int_equal(f.last_done_code, 0);
	assert_true(f.reports >= 1);
	o = read_outcome();
	assert_int_equal(o->code, 0);
	assert_true(result_of(o, "seconds") >= 0.3);
	assert_true(result_of(o, "peak_rss_anon_bytes") > 100000);
	assert_int_equal(file_size(echo), 5);
	tf__outcome__free_unpacked(o, NULL);
	fake_stop(&f);
	xfree(echo);
}

static int64_t line_count(const char *path, const char *word)
{
	struct buf b = BUF_INIT;
	int64_t n = 0;

	if (file_read(path, 1 << 20, &b, NULL) == 0)
		for (const char *p = b.data; p && (p = strstr(p, word)); p++)
			n++;
	buf_release(&b);
	return n;
}

/* A second job in the same process: its log, folder and echo are its own, and the first one's log
 * gets no line more. Then the daemon orders the idle worker to leave. */
static void a_warm_worker_takes_another_job(void **state)
{
	char *second = xasprintf("%s/8", folder);
	char *log = xasprintf("%s/log", second), *echo = xasprintf("%s/results/echo.txt", second);
	char *outcome = xasprintf("%s/outcome-1.pb", second);
	Tf__Assignment next = TF__ASSIGNMENT__INIT;
	struct fake f;
	pid_t pid;

	(void)state;
	warm_seconds = 60; /* it makes the folders itself */
	begin(&f, 0, NULL);
	next = assignment;
	next.job = 8;
	next.attempt = 1;
	next.job_folder = second;
	next.outcome_file = outcome;
	f.next = &next;
	pid = start_worker();
	wait_for(f.dones, 2);
	wait_for(f.nexts, 2);
	assert_int_equal(file_size(echo), 5);
	assert_true(file_size(outcome) > 0);
	assert_true(line_count(log, "job=8") >= 2); /* begin and done */
	assert_int_equal(line_count(log, "job=7"), 0);
	assert_int_equal(kill(pid, 0), 0);
	kill(pid, SIGTERM);
	assert_int_equal(exit_status(pid), WORKER_DONE);
	fake_stop(&f);
	xfree(outcome);
	xfree(echo);
	xfree(log);
	xfree(second);
}

/* The daemon's no to the question for another job. */
static void a_worker_that_is_not_needed_leaves(void **state)
{
	struct fake f;

	(void)state;
	warm_seconds = 60;
	begin(&f, 0, NULL);
	f.next_answer = TF_EFENCED;
	assert_int_equal(exit_status(start_worker()), WORKER_DONE);
	assert_int_equal(f.nexts, 1);
	fake_stop(&f);
}

static void a_failed_job_is_the_last(void **state)
{
	struct fake f;

	(void)state;
	warm_seconds = 60;
	begin(&f, 0, "error");
	assert_int_equal(exit_status(start_worker()), WORKER_FAILED);
	assert_int_equal(f.nexts, 0);
	fake_stop(&f);
}

static void a_failure_has_a_reason(void **state)
{
	Tf__Outcome *o;
	struct fake f;

	(void)state;
	begin(&f, 0, "nan");
	assert_int_equal(exit_status(start_worker()), WORKER_FAILED);
	o = read_outcome();
	assert_int_equal(o->code, TF_ENAN);
	assert_string_equal(o->text, "not a number, as asked");
	assert_int_equal(o->failure, TF__FAILURE__FAILURE_NAN);
	tf__outcome__free_unpacked(o, NULL);
	fake_stop(&f);
}

static void sigterm_and_orders_end_it_in_order(void **state)
{
	for (int by_signal = 0; by_signal < 2; by_signal++) {
		Tf__Outcome *o;
		struct fake f;
		pid_t pid;

		(void)state;
		begin(&f, 60, NULL);
		if (!by_signal)
			f.order = TF__STOP_REASON__STOP_CANCEL;
		pid = start_worker();
		wait_for(f.reports, by_signal ? 1 : 0);
		if (by_signal)
			kill(pid, SIGTERM);
		assert_int_equal(exit_status(pid), WORKER_STOPPED);
		o = read_outcome();
		assert_int_equal(o->code, TF_ECANCELLED);
		assert_string_equal(o->text, by_signal ? "stopped: the worker was told to leave"
						       : "stopped: it was cancelled");
		tf__outcome__free_unpacked(o, NULL);
		fake_stop(&f);
	}
}

/* The daemon goes away, the job goes on, ends, and waits for the next daemon to tell it. */
static void the_outcome_waits_for_a_daemon(void **state)
{
	char *path = xasprintf("%s/outcome.pb", folder);
	Tf__Outcome *o;
	struct fake f;
	pid_t pid;

	(void)state;
	begin(&f, 0.5, NULL);
	pid = start_worker();
	wait_for(f.hellos, 1);
	clock_sleep_ms(100);
	fake_stop(&f);
	wait_for((int)file_exists(path), 1);
	xfree(path);
	o = read_outcome();
	assert_int_equal(o->code, 0);
	tf__outcome__free_unpacked(o, NULL);
	begin(&f, 0.5, NULL);
	assert_int_equal(exit_status(pid), WORKER_DONE);
	assert_int_equal(f.dones, 1);
	fake_stop(&f);
}

static void an_attempt_that_is_over_leaves_at_once(void **state)
{
	char *path = xasprintf("%s/outcome.pb", folder);
	struct fake f;
	pid_t pid;

	(void)state;
	begin(&f, 60, NULL);
	pid = start_worker();
	wait_for(f.reports, 1);
	f.answer = TF_EFENCED;
	assert_int_equal(exit_status(pid), WORKER_FENCED);
	assert_false(file_exists(path));
	fake_stop(&f);
	xfree(path);
}

static int status_of(char *const argv[])
{
	posix_spawn_file_actions_t actions;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", 1, 0);
	posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", 1, 0);
	assert_int_equal(posix_spawn(&pid, program, &actions, NULL, argv, environ), 0);
	posix_spawn_file_actions_destroy(&actions);
	return exit_status(pid);
}

static void arguments_are_checked(void **state)
{
	char *help[] = { program, "--help", NULL }, *none[] = { program, NULL };
	char *version[] = { program, "--version", NULL }, *stray[] = { program, "stray", NULL };
	char *bad[] = { program, "--job", "x", NULL };

	(void)state;
	assert_int_equal(status_of(help), 0);
	assert_int_equal(status_of(version), 0);
	assert_int_equal(status_of(none), WORKER_USAGE);
	assert_int_equal(status_of(stray), WORKER_USAGE);
	assert_int_equal(status_of(bad), WORKER_USAGE);
}

static int set_up(void **state)
{
	const char *tmp = getenv("TMPDIR"), *build = getenv("TF_BUILD");

	(void)state;
	folder = xasprintf("%s/tp.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(folder))
		return -1;
	endpoint = xasprintf("ipc://%s/s", folder);
	program = xasprintf("%s/transfuse-worker", build ? build : ".");
	return zmq_curve_keypair(server_public, server_secret) |
	       zmq_curve_keypair(worker_public, worker_secret);
}

static int tear_down(void **state)
{
	int rc = dir_remove(folder, NULL);

	(void)state;
	xfree(folder);
	xfree(endpoint);
	xfree(program);
	return rc;
}

int main(void)
{
	const struct CMUnitTest process[] = {
		cmocka_unit_test(a_job_is_done),
		cmocka_unit_test(a_warm_worker_takes_another_job),
		cmocka_unit_test(a_worker_that_is_not_needed_leaves),
		cmocka_unit_test(a_failed_job_is_the_last),
		cmocka_unit_test(a_failure_has_a_reason),
		cmocka_unit_test(sigterm_and_orders_end_it_in_order),
		cmocka_unit_test(the_outcome_waits_for_a_daemon),
		cmocka_unit_test(an_attempt_that_is_over_leaves_at_once),
		cmocka_unit_test(arguments_are_checked),
	};
	return cmocka_run_group_tests_name("process", process, set_up, tear_down);
}
