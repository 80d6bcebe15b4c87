/* SPDX-License-Identifier: Apache-2.0
 * Slots that are drained and why: GPUs of a fake NVML (fake_nvml.c) that are busy with others'
 * processes, break, hang and vanish; drains that outlive the daemon. */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define TWO_GPUS                                                                                   \
	"GPU-a memory=81920 used=100 load=50 power=300 temp=40 ecc=0\n"                            \
	"GPU-b memory=40960 ecc=0\n"

static struct harness h;
static struct err e;

static void set_gpus(const char *text)
{
	char *path = xasprintf("%s/gpus", h.folder);

	assert_ok(file_write(path, text, strlen(text), 0600, &e), &e);
	xfree(path);
}

/* A library in the test's own folder, where its file of GPUs lies too. */
static char *fake_library(void)
{
	const char *build = getenv("TF_BUILD");
	char *to = xasprintf("%s/nvml.so", h.folder), *from, path[1000];

	from = realpath(build ? build : ".", NULL);
	assert_non_null(from);
	snprintf(path, sizeof path, "%s/tests/daemon/fake_nvml.so", from);
	free(from);
	if (!file_exists(to))
		assert_int_equal(symlink(path, to), 0);
	return to;
}

static void start(const char *gpus, const char *timeout_ms)
{
	static char *library;

	err_clear(&e);
	harness_init(&h);
	xfree(library);
	library = fake_library();
	if (gpus)
		set_gpus(gpus);
	h.extra[0] = "--nvml";
	h.extra[1] = library;
	h.extra[2] = "--gpu-query-ms=50";
	h.extra[3] = "--gpu-timeout-ms";
	h.extra[4] = timeout_ms ? timeout_ms : "60000";
	h.extra[5] = "--gpu-foreign=drain";
	h.extra[6] = NULL;
	harness_start(&h);
}

static Tf__Reply *ask(void)
{
	Tf__Request r = harness_empty(TF__REQUEST__BODY_SLOT_LIST);
	Tf__Reply *reply = NULL;

	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	assert_int_equal(reply->body_case, TF__REPLY__BODY_SLOTS);
	return reply;
}

static const Tf__SlotState *find(const Tf__Reply *reply, const char *name)
{
	for (size_t i = 0; i < reply->slots->n_slot; i++)
		if (strcmp(reply->slots->slot[i]->name, name) == 0)
			return reply->slots->slot[i];
	fail_msg("there is no slot %s", name);
	return NULL;
}

/* Waits until the slot is drained for a reason with this text in it; NULL: until it is not. */
static void until(const char *name, const char *reason)
{
	int64_t end = clock_mono_ms() + 60000;
	char last[300] = "";

	while (clock_mono_ms() < end) {
		Tf__Reply *reply = ask();
		const Tf__SlotState *s = find(reply, name);
		bool there = s->drained && reason && strstr(s->reason, reason);
		bool so = reason ? there : !s->drained;

		snprintf(last, sizeof last, "%s", s->drained ? s->reason : "not drained");
		tf__reply__free_unpacked(reply, NULL);
		if (so)
			return;
		clock_sleep_ms(10);
	}
	fail_msg("%s: '%s', not '%s'", name, last, reason ? reason : "not drained");
}

static int set(struct connection *line, const char *name, Tf__SlotAction action, const char *why)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SlotSet m = TF__SLOT_SET__INIT;

	m.slot = (char *)name;
	m.action = action;
	m.reason = (char *)why;
	r.body_case = TF__REQUEST__BODY_SLOT_SET;
	r.slot_set = &m;
	err_clear(&e);
	return harness_call(line, &r, NULL, &e);
}

static uint64_t gpu_job(const char *how)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	uint64_t id = 0;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.device = (char *)"cuda";
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	return id;
}

static void gpus_are_found(void **state)
{
	const Tf__SlotState *s;
	Tf__Reply *reply;
	uint64_t job;

	(void)state;
	start(TWO_GPUS, NULL);
	until("gpu0", NULL);
	until("gpu1", NULL);
	job = gpu_job("wait");
	harness_until(&h, job, TF__JOB_STATE__RUNNING);
	reply = ask();
	assert_int_equal(reply->slots->n_slot, 3);
	assert_string_equal(reply->slots->driver, "1.2.3-fake");
	s = find(reply, "gpu0");
	assert_int_equal(s->job, job);
	assert_true(s->memory == 81920ull << 20);
	assert_string_equal(s->gpu->uuid, "GPU-a");
	assert_string_equal(s->gpu->model, "Fake H100");
	assert_int_equal(s->gpu->load, 50);
	assert_int_equal(s->gpu->temperature, 40);
	assert_true(s->gpu->power_w == 300.0);
	assert_false(find(reply, "gpu1")->gpu->has_load);
	assert_int_equal(find(reply, "gpu1")->job, 0);
	tf__reply__free_unpacked(reply, NULL);
	harness_stop(&h);
}

/* The machine of the tests, and most others. */
static void no_driver_is_said(void **state)
{
	Tf__Reply *reply;

	(void)state;
	start(NULL, NULL);
	reply = ask();
	assert_int_equal(reply->slots->n_slot, 1);
	assert_non_null(strstr(reply->slots->fault, "Driver Not Loaded"));
	tf__reply__free_unpacked(reply, NULL);
	harness_kill(&h, SIGTERM);
	h.extra[1] = "/nowhere/libnvidia-ml.so.1";
	harness_start(&h);
	reply = ask();
	assert_int_equal(reply->slots->n_slot, 1);
	assert_non_null(strstr(reply->slots->fault, "/nowhere/libnvidia-ml.so.1"));
	tf__reply__free_unpacked(reply, NULL);
	harness_stop(&h);
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

static void set_process(pid_t pid)
{
	char text[300];

	snprintf(text, sizeof text, "GPU-a memory=81920 procs=%d:2048\nGPU-b memory=40960\n",
		 (int)pid);
	set_gpus(text);
}

static void a_foreign_process_drains_while_it_is_there(void **state)
{
	char why[64];
	uint64_t job;
	pid_t pid;

	(void)state;
	start(TWO_GPUS, NULL);
	until("gpu0", NULL);
	pid = somebody();
	set_process(pid);
	snprintf(why, sizeof why, "process %d (", (int)pid);
	until("gpu0", why);
	until("gpu0", "uses 2.0 GiB");
	job = gpu_job("wait"); /* goes to the other one */
	harness_until(&h, job, TF__JOB_STATE__RUNNING);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	until("gpu0", NULL); /* though the driver still lists it */
	harness_stop(&h);
}

/* The process that stands in the job's folder, or in that of its attempt. */
static pid_t worker_pid(uint64_t job)
{
	char *name = xasprintf("for p in /proc/[0-9]*; do case \"$(readlink $p/cwd)/\" in "
			       "%s/jobs/%d/*) echo ${p#/proc/};; esac; done 2>/dev/null",
			       h.state, (int)job);
	FILE *f = popen(name, "r");
	int pid = 0;

	assert_int_equal(fscanf(f, "%d", &pid), 1);
	pclose(f);
	xfree(name);
	return pid;
}

static void a_worker_is_not_foreign(void **state)
{
	char line[300];
	uint64_t job;
	pid_t pid;

	(void)state;
	start(TWO_GPUS, NULL);
	until("gpu0", NULL);
	job = gpu_job("wait");
	harness_until(&h, job, TF__JOB_STATE__RUNNING);
	pid = somebody();
	/* once the other one is seen, so is the worker */
	snprintf(line, sizeof line,
		 "GPU-a memory=81920 procs=%d:2048\nGPU-b memory=40960 procs=%d:1\n",
		 (int)worker_pid(job), (int)pid);
	set_gpus(line);
	until("gpu1", "of no job");
	until("gpu0", NULL);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	harness_stop(&h);
}

/* What is an event stays until an admin says otherwise, and outlives the daemon. */
static void errors_drain_until_resumed(void **state)
{
	(void)state;
	start(TWO_GPUS, NULL);
	until("gpu0", NULL);
	set_gpus("GPU-a memory=81920 ecc=0 xid=13\nGPU-b memory=40960 ecc=3\n");
	until("gpu1", "3 memory errors");
	until("gpu0", NULL); /* 13 is a program's own fault */
	set_gpus("GPU-a memory=81920 ecc=0 xid=79\nGPU-b memory=40960 ecc=3\n");
	until("gpu0", "XID 79: it has fallen off the bus");
	set_gpus("GPU-a memory=81920 ecc=0\nGPU-b memory=40960 ecc=3\n");
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	until("gpu0", "XID 79");
	until("gpu1", "3 memory errors");
	assert_ok(set(h.line, "gpu0", TF__SLOT_ACTION__SLOT_RESUME, NULL), &e);
	assert_ok(set(h.line, "gpu1", TF__SLOT_ACTION__SLOT_RESUME, NULL), &e);
	until("gpu0", NULL);
	until("gpu1", NULL);
	harness_until(&h, gpu_job("done"), TF__JOB_STATE__DONE); /* some looks later */
	until("gpu1", NULL);
	set_gpus("GPU-a memory=81920 ecc=0\nGPU-b memory=40960 ecc=4\n");
	until("gpu1", "1 memory errors");
	harness_stop(&h);
}

static void a_failed_query_drains(void **state)
{
	(void)state;
	start(TWO_GPUS, NULL);
	until("gpu0", NULL);
	set_gpus("GPU-b memory=40960 mig=1\n");
	until("gpu0", "GPU is lost");
	until("gpu1", "MIG");
	set_gpus(TWO_GPUS);
	until("gpu0", NULL);
	until("gpu1", NULL);
	harness_stop(&h);
}

static void a_hung_query_drains_that_gpu(void **state)
{
	(void)state;
	start(TWO_GPUS, "700");
	until("gpu1", NULL);
	set_gpus("GPU-a memory=81920 hang=1\nGPU-b memory=40960\n");
	until("gpu0", "has not answered about it for");
	harness_until(&h, gpu_job("done"), TF__JOB_STATE__DONE); /* on the other one */
	set_gpus(TWO_GPUS);
	until("gpu0", NULL);
	harness_stop(&h);
}

/* The driver hangs from the start: the GPUs of before are known, and no job gets one. */
static char *daemon_log(void)
{
	char *path = xasprintf("%s/daemon.log", h.folder);
	struct buf b = BUF_INIT;

	assert_ok(file_read(path, 1 << 20, &b, &e), &e);
	buf_text(&b, "");
	xfree(path);
	return buf_detach(&b);
}

/* Found again after a restart, none is said to be drained; one that is gone is, and it is told. */
static void a_restart_is_quiet(void **state)
{
	bool told = false;
	char *log;

	(void)state;
	start(TWO_GPUS, NULL);
	until("gpu1", NULL);
	harness_kill(&h, SIGTERM);
	h.extra[6] = "--notify-command=/bin/false";
	harness_start(&h);
	until("gpu1", NULL);
	log = daemon_log();
	assert_null(strstr(log, "is drained"));
	xfree(log);
	harness_kill(&h, SIGTERM);
	set_gpus("GPU-b memory=40960\n");
	harness_start(&h);
	until("gpu0", "does not list it");
	for (int i = 0; i < 6000 && !told; i++) {
		clock_sleep_ms(10);
		log = daemon_log();
		told = strstr(log, "\"slot\":\"gpu0\"") != NULL; /* the command fails */
		xfree(log);
	}
	assert_true(told);
	harness_stop(&h);
}

static void a_driver_that_hangs_at_the_start(void **state)
{
	uint64_t running;

	(void)state;
	start(TWO_GPUS, "700");
	until("gpu1", NULL);
	running = gpu_job("wait");
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	harness_kill(&h, SIGTERM);
	set_gpus("GPU-b memory=40960 hang=1\nGPU-c memory=1024\n");
	harness_start(&h);
	until("gpu0", "does not list it");
	until("gpu1", "did not answer in time");
	assert_int_equal(harness_state(&h, running), TF__JOB_STATE__RUNNING);
	set_gpus("GPU-b memory=40960\nGPU-c memory=1024\n");
	until("gpu1", NULL); /* it has kept its name */
	until("gpu2", NULL);
	until("gpu0", "does not list it");
	assert_int_equal(set(h.line, "gpu1", TF__SLOT_ACTION__SLOT_FORGET, NULL), TF_ESTATE);
	assert_ok(set(h.line, "gpu0", TF__SLOT_ACTION__SLOT_FORGET, NULL), &e);
	harness_stop(&h);
}

static void drains_of_admins_last(void **state)
{
	char long_reason[200];
	uint64_t job;

	(void)state;
	start(NULL, NULL);
	assert_ok(set(h.line, "cpu0", TF__SLOT_ACTION__SLOT_DRAIN, "the fan"), &e);
	until("cpu0", "the fan");
	job = harness_noop(&h, "done");
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	until("cpu0", "the fan");
	assert_int_equal(harness_state(&h, job), TF__JOB_STATE__QUEUED);
	assert_int_equal(set(h.line, "gpu7", TF__SLOT_ACTION__SLOT_DRAIN, NULL), TF_ENOTFOUND);
	memset(long_reason, 'a', sizeof long_reason - 1);
	long_reason[sizeof long_reason - 1] = 0;
	assert_int_equal(set(h.line, "cpu0", TF__SLOT_ACTION__SLOT_DRAIN, long_reason), TF_ELIMIT);
	assert_ok(set(h.line, "cpu0", TF__SLOT_ACTION__SLOT_RESUME, NULL), &e);
	harness_until(&h, job, TF__JOB_STATE__DONE);
	harness_stop(&h);
}

static void only_admins_drain(void **state)
{
	struct key_pair member;
	struct connection *line;
	char user[100];

	(void)state;
	assert_ok(key_pair_make(&member, &e), &e);
	harness_init(&h);
	snprintf(user, sizeof user, "--user=ada member %s", member.public_key);
	h.extra[0] = user;
	h.extra[1] = NULL;
	harness_start(&h);
	line = harness_line(&h, &member);
	assert_int_equal(set(line, "cpu0", TF__SLOT_ACTION__SLOT_DRAIN, NULL), TF_EREFUSED);
	connection_close(line);
	until("cpu0", NULL);
	harness_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(gpus_are_found),
		cmocka_unit_test(no_driver_is_said),
		cmocka_unit_test(a_foreign_process_drains_while_it_is_there),
		cmocka_unit_test(a_worker_is_not_foreign),
		cmocka_unit_test(errors_drain_until_resumed),
		cmocka_unit_test(a_failed_query_drains),
		cmocka_unit_test(a_hung_query_drains_that_gpu),
		cmocka_unit_test(a_restart_is_quiet),
		cmocka_unit_test(a_driver_that_hangs_at_the_start),
		cmocka_unit_test(drains_of_admins_last),
		cmocka_unit_test(only_admins_drain),
	};

	return cmocka_run_group_tests_name("slots", tests, NULL, NULL);
}
