/* SPDX-License-Identifier: Apache-2.0
 * Warm workers under a live daemon, with the real worker: one process runs several jobs, and
 * nothing is lost, repeated or stuck when it, the daemon or the disk fails in between. */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>


static char *program;

static void begin(struct harness *h, const char *slots, const char *fault)
{
	harness_init(h);
	h->worker = program;
	h->slots = slots;
	h->fault = fault;
	h->reconnect_ms = fault ? 1000 : 0; /* it dies of it */
	harness_start(h);
}

static char *daemon_log(const struct harness *h)
{
	char *path = xasprintf("%s/daemon.log", h->folder);
	struct buf b = BUF_INIT;

	file_read(path, 4 << 20, &b, NULL);
	xfree(path);
	buf_text(&b, "");
	return buf_detach(&b);
}

static pid_t warm_pid(const struct harness *h)
{
	char *log = daemon_log(h);
	pid_t pid = 0;

	for (const char *p = log; (p = strstr(p, "goes to the warm worker pid=")) != NULL; p++)
		pid = (pid_t)atoi(p + strlen("goes to the warm worker pid="));
	xfree(log);
	assert_true(pid > 0);
	return pid;
}

static uint64_t noop(struct harness *h, double seconds, uint32_t cpus)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec n = TF__NOOP_SPEC__INIT;
	Tf__Demand demand = TF__DEMAND__INIT;
	struct err e = ERR_INIT;
	uint64_t id = 0;

	n.has_seconds = true;
	n.seconds = seconds;
	n.echo = (char *)"echo";
	demand.has_cpus = true;
	demand.cpus = cpus;
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &n;
	spec.demand = cpus ? &demand : NULL;
	assert_ok(harness_submit(h->line, &spec, NULL, false, &id, &e), &e);
	return id;
}

/* Its log begins with the job's own first line and holds no other job's. */
static void check_log(struct harness *h, uint64_t id)
{
	char *log = harness_log(h, id), own[40];
	const char *p = log;

	snprintf(own, sizeof own, "job=%llu ", (unsigned long long)id);
	assert_non_null(strstr(log, "done"));
	for (; (p = strstr(p, "job=")) != NULL; p++)
		assert_memory_equal(p, own, strlen(own));
	xfree(log);
}

static void one_process_runs_many_jobs(void **state)
{
	struct harness h;
	uint64_t id[20];

	(void)state;
	begin(&h, "1", NULL);
	for (int i = 0; i < 20; i++)
		id[i] = noop(&h, 0, 0);
	for (int i = 0; i < 20; i++) {
		char *echo = xasprintf("jobs/%llu/results/echo.txt", (unsigned long long)id[i]);
		uint32_t attempt;

		harness_until(&h, id[i], TF__JOB_STATE__DONE);
		xfree_(harness_reason(&h, id[i], &attempt));
		assert_int_equal(attempt, 1);
		assert_true(harness_exists(&h, echo));
		check_log(&h, id[i]);
		xfree(echo);
	}
	assert_int_equal(harness_said(&h, "goes to the warm worker"), 19);
	harness_stop(&h); /* and the idle worker goes with the daemon */
}

static void set_slot(struct harness *h, const char *slot, Tf__SlotAction action)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SlotSet m = TF__SLOT_SET__INIT;
	struct err e = ERR_INIT;

	m.slot = (char *)slot;
	m.action = action;
	r.body_case = TF__REQUEST__BODY_SLOT_SET;
	r.slot_set = &m;
	assert_ok(harness_call(h->line, &r, NULL, &e), &e);
}

/* Of two processes one is idle: it makes room for a job it cannot serve, whose place is free. */
static void idle_workers_count_where_processes_are_bounded(void **state)
{
	struct harness h;
	uint64_t job[4];

	(void)state;
	begin(&h, "3", NULL);
	harness_kill(&h, SIGTERM);
	h.bound = "workers:2";
	harness_start(&h);
	set_slot(&h, "cpu0", TF__SLOT_ACTION__SLOT_DRAIN);
	job[0] = noop(&h, 600, 0);
	job[1] = noop(&h, 0, 0);
	harness_until(&h, job[0], TF__JOB_STATE__RUNNING);
	harness_until(&h, job[1], TF__JOB_STATE__DONE);
	set_slot(&h, "cpu0", TF__SLOT_ACTION__SLOT_RESUME);
	job[2] = noop(&h, 600, 2);
	harness_until(&h, job[2], TF__JOB_STATE__RUNNING);
	assert_int_equal(harness_said(&h, "as many processes as there may be"), 1);
	job[3] = noop(&h, 600, 2);
	clock_sleep_ms(300);
	assert_int_equal(harness_state(&h, job[3]), TF__JOB_STATE__QUEUED);
	harness_stop(&h);
}

static void a_cancelled_job_leaves_the_worker_warm(void **state)
{
	struct err e = ERR_INIT;
	struct harness h;
	uint64_t first, second;

	(void)state;
	begin(&h, "1", NULL);
	first = noop(&h, 600, 0);
	second = noop(&h, 0, 0);
	harness_until(&h, first, TF__JOB_STATE__RUNNING);
	assert_ok(harness_cancel(h.line, first, &e), &e);
	harness_until(&h, first, TF__JOB_STATE__CANCELLED);
	harness_until(&h, second, TF__JOB_STATE__DONE);
	assert_int_equal(harness_said(&h, "goes to the warm worker"), 1);
	second = noop(&h, 600, 0); /* the order was for the job alone */
	harness_until(&h, second, TF__JOB_STATE__RUNNING);
	clock_sleep_ms(100);
	assert_int_equal(harness_state(&h, second), TF__JOB_STATE__RUNNING);
	harness_stop(&h);
}

/* Jobs one after another: which of them sends an idle worker away, which is given to one. */
static void where_jobs_go(void **state)
{
	static const struct {
		const char *slots, *warm_seconds;
		uint32_t cpus[3]; /* counted ones; a worker has those of its first job */
		size_t jobs;
		int in_place_of_a_worker, to_a_worker;
	} row[] = {
		{ "1", "600", { 0, 0 }, 2, 0, 1 },
		{ "1", "600", { 0, 1 }, 2, 1, 0 },
		{ "2", "600", { 0, 1, 0 }, 3, 0, 1 }, /* a free place is taken first */
		{ "1", "0", { 0, 0 }, 2, 0, 0 },      /* no worker stays */
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(row); i++) {
		struct harness h;

		harness_init(&h);
		h.worker = program;
		h.slots = row[i].slots;
		h.extra[0] = "--warm-seconds";
		h.extra[1] = row[i].warm_seconds;
		harness_start(&h);
		for (size_t k = 0; k < row[i].jobs; k++)
			harness_until(&h, noop(&h, 0, row[i].cpus[k]), TF__JOB_STATE__DONE);
		assert_int_equal(harness_said(&h, "another job needs its place"),
				 row[i].in_place_of_a_worker);
		assert_int_equal(harness_said(&h, "goes to the warm worker"), row[i].to_a_worker);
		harness_stop(&h);
	}
}

/* Two jobs of one moment; the first gets the worker on the second slot, which waited longer. */
static void two_idle_workers_get_a_job_each(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SubmitBatch batch = TF__SUBMIT_BATCH__INIT;
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec n = TF__NOOP_SPEC__INIT;
	ProtobufCBinaryData packed[2];
	uint8_t data[2][200];
	struct err e = ERR_INIT;
	struct harness h;
	uint64_t first, second;

	(void)state;
	begin(&h, "2", NULL);
	first = noop(&h, 0.5, 0);
	second = noop(&h, 0, 0);
	harness_until(&h, second, TF__JOB_STATE__DONE);
	harness_until(&h, first, TF__JOB_STATE__DONE);
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &n;
	for (int i = 0; i < 2; i++) {
		Tf__Submit one = TF__SUBMIT__INIT;
		uint8_t token[16] = { (uint8_t)(i + 1) };

		one.token = (ProtobufCBinaryData){ sizeof token, token };
		one.spec = &spec;
		assert_true(tf__submit__get_packed_size(&one) <= sizeof data[i]);
		packed[i] = (ProtobufCBinaryData){ tf__submit__pack(&one, data[i]), data[i] };
	}
	batch.n_submit = 2;
	batch.submit = packed;
	r.body_case = TF__REQUEST__BODY_SUBMIT_BATCH;
	r.submit_batch = &batch;
	assert_ok(harness_call(h.line, &r, NULL, &e), &e);
	harness_until(&h, second + 1, TF__JOB_STATE__DONE);
	harness_until(&h, second + 2, TF__JOB_STATE__DONE);
	assert_int_equal(harness_said(&h, "another job needs its place"), 0);
	assert_int_equal(harness_said(&h, "goes to the warm worker"), 2);
	harness_stop(&h);
}

static void on_a_drained_slot_it_gets_nothing(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SlotSet m = TF__SLOT_SET__INIT;
	struct err e = ERR_INIT;
	struct harness h;

	(void)state;
	begin(&h, "2", NULL);
	harness_until(&h, noop(&h, 0, 0), TF__JOB_STATE__DONE);
	m.slot = (char *)"cpu0";
	m.action = TF__SLOT_ACTION__SLOT_DRAIN;
	r.body_case = TF__REQUEST__BODY_SLOT_SET;
	r.slot_set = &m;
	assert_ok(harness_call(h.line, &r, NULL, &e), &e);
	harness_until(&h, noop(&h, 0, 0), TF__JOB_STATE__DONE);
	assert_int_equal(harness_said(&h, "goes to the warm worker"), 0);
	harness_until_said(&h, "its slot is drained", 1);
	harness_stop(&h);
}

static void killed_idle_or_busy_it_is_replaced(void **state)
{
	static const char lost[] = "state=queued attempt=1 reason=";
	struct harness h;
	uint32_t attempt;
	uint64_t id;
	int before;

	(void)state;
	begin(&h, "1", NULL);
	harness_until(&h, noop(&h, 0, 0), TF__JOB_STATE__DONE);
	harness_until(&h, noop(&h, 0, 0), TF__JOB_STATE__DONE);
	kill(warm_pid(&h), SIGKILL); /* idle, as far as the daemon knows when the next job comes */
	id = noop(&h, 0, 0);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	id = noop(&h, 600, 0);
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	before = harness_said(&h, lost);
	kill(warm_pid(&h), SIGKILL); /* at work: the attempt is lost, a new process follows */
	harness_until_said(&h, lost, before + 1);
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	xfree_(harness_reason(&h, id, &attempt));
	assert_int_equal(attempt, 2);
	harness_stop(&h);
}

/* The daemon is killed with a worker idle and another at work: the next one adopts the job and
 * lets the idle process go. */
static void a_new_daemon_adopts_the_job_and_not_the_idle(void **state)
{
	struct harness h;
	uint64_t running, id;
	uint32_t attempt;

	(void)state;
	begin(&h, "2", NULL);
	id = noop(&h, 0.2, 0);
	harness_until(&h, noop(&h, 0, 0), TF__JOB_STATE__DONE);
	running = noop(&h, 1.5, 0); /* on the warm worker */
	harness_until(&h, id, TF__JOB_STATE__DONE);
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	assert_int_equal(harness_said(&h, "goes to the warm worker"), 1);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	harness_until_said(&h, "its job had ended when this daemon came", 1);
	harness_until(&h, running, TF__JOB_STATE__DONE);
	xfree_(harness_reason(&h, running, &attempt));
	assert_int_equal(attempt, 1);
	harness_until(&h, noop(&h, 0, 0), TF__JOB_STATE__DONE);
	harness_stop(&h);
}

/* The n-th commit and what is around it, as the daemon dies there or the disk refuses it. */
static void every_commit_may_be_the_last(void **state)
{
	static const char *const faults[] = { "store-committed:7!", "store-committed:8!",
					      "store-committed:9!", "store-commit:8",
					      "store-commit:9" };

	(void)state;
	for (size_t k = 0; k < ARRAY_LEN(faults); k++) {
		uint64_t id[4] = { 0 };
		struct harness h;

		begin(&h, "1", faults[k]);
		for (int i = 0; i < 4; i++) {
			Tf__JobSpec spec = TF__JOB_SPEC__INIT;
			Tf__NoopSpec n = TF__NOOP_SPEC__INIT;

			spec.kind = TF__JOB_KIND__NOOP;
			spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
			spec.noop = &n;
			if (h.pid && waitpid(h.pid, NULL, WNOHANG) != 0)
				h.pid = 0; /* it is gone, and its number may be another's */
			if (h.pid)
				harness_submit(h.line, &spec, NULL, false, &id[i], NULL);
		}
		harness_kill(&h, SIGKILL);
		h.fault = NULL;
		harness_start(&h);
		for (int i = 0; i < 4; i++)
			if (id[i]) /* acknowledged */
				harness_until(&h, id[i], TF__JOB_STATE__DONE);
		harness_stop(&h);
	}
}

static void an_idle_worker_leaves_in_time(void **state)
{
	struct harness h;

	(void)state;
	harness_init(&h);
	h.worker = program;
	h.extra[0] = "--warm-seconds";
	h.extra[1] = "1";
	harness_start(&h);
	harness_until(&h, noop(&h, 0, 0), TF__JOB_STATE__DONE);
	harness_until_said(&h, "leaves: no job came", 1);
	harness_until(&h, noop(&h, 0, 0), TF__JOB_STATE__DONE);
	harness_stop(&h);
}

static int set_up(void **state)
{
	const char *build = getenv("TF_BUILD");

	(void)state;
	program = xasprintf("%s/transfuse-worker", build ? build : ".");
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	xfree(program);
	return 0;
}

int main(void)
{
	const struct CMUnitTest warm[] = {
		cmocka_unit_test(one_process_runs_many_jobs),
		cmocka_unit_test(idle_workers_count_where_processes_are_bounded),
		cmocka_unit_test(a_cancelled_job_leaves_the_worker_warm),
		cmocka_unit_test(where_jobs_go),
		cmocka_unit_test(two_idle_workers_get_a_job_each),
		cmocka_unit_test(on_a_drained_slot_it_gets_nothing),
		cmocka_unit_test(killed_idle_or_busy_it_is_replaced),
		cmocka_unit_test(a_new_daemon_adopts_the_job_and_not_the_idle),
		cmocka_unit_test(every_commit_may_be_the_last),
		cmocka_unit_test(an_idle_worker_leaves_in_time),
	};
	return cmocka_run_group_tests_name("warm", warm, set_up, tear_down);
}
