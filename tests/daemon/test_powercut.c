/* SPDX-License-Identifier: Apache-2.0
 * The power goes off. A daemon and its workers run under a shim that records what they write and
 * what of it was synced; then the state folder is made anew as a cut at many a moment would have
 * left it. Each must open, be sound, and hold every job whose submit or end was acknowledged before
 * that moment; a few get a new daemon, which must bring every job to its end, and none that had
 * ended to another attempt. TF_SEED: of the moments and of what happens to stay; TF_CUTS: how many
 * moments. */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "store/check.h"
#include "store/jobs.h"
#include "tests/daemon/own_store.h"
#include "tests/daemon/powercut.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define JOBS_MAX 200
#define CUTS 150
#define DAEMONS 6
#define KEPT_MS 1500 /* by then a worker has synced the outcome that no daemon took */

static struct harness h;
static struct err e;
static char *trace, *worker, *root;

static void prepare(const char *worker_program)
{
	const char *build = getenv("TF_BUILD");
	char *shim = xasprintf("%s/tests/daemon/powercut_shim.so", build ? build : ".");
	struct buf script = BUF_INIT;

	harness_init(&h);
	trace = xasprintf("%s/trace", h.folder);
	worker = xasprintf("%s/worker", h.folder);
	root = xasprintf("%s/root", h.folder);
	assert_ok(dir_make(root, 0700, &e), &e);
	assert_true(file_exists(shim));
	buf_printf(&script,
		   "#!/bin/sh\n" POWERCUT_ROOT "='%s' " POWERCUT_TRACE "='%s' LD_PRELOAD='%s' "
		   "exec '%s/%s' \"$@\"\n",
		   h.state, trace, shim, build ? build : ".", worker_program);
	assert_ok(file_write(worker, script.data, script.len, 0700, &e), &e);
	buf_release(&script);
	h.worker = worker;
	h.slots = "2";
	h.extra[0] = "--root";
	h.extra[1] = root;
	h.environment[0] = xasprintf("LD_PRELOAD=%s", shim);
	h.environment[1] = xasprintf(POWERCUT_ROOT "=%s", h.state);
	h.environment[2] = xasprintf(POWERCUT_TRACE "=%s", trace);
	/* the shim calls the system itself, so it may come before the sanitizer's library */
	setenv("ASAN_OPTIONS", "verify_asan_link_order=0", 0);
	xfree(shim);
}

/* ---------------------------------------------------------------- the load */

/* What the daemon has said goes into the trace, after what made it true. */
static void said(const char *what, uint64_t job, uint32_t attempt)
{
	struct powercut_head head = { .op = OP_SAID };
	struct iovec part[2];
	char text[64];
	int fd = open(trace, O_WRONLY | O_APPEND | O_CLOEXEC);

	assert_true(fd >= 0);
	head.data_len = (uint64_t)snprintf(text, sizeof text, "%s %llu %u", what,
					   (unsigned long long)job, attempt);
	part[0] = (struct iovec){ &head, sizeof head };
	part[1] = (struct iovec){ text, head.data_len };
	assert_int_equal(writev(fd, part, 2), sizeof head + head.data_len);
	close(fd);
}

static uint64_t make_tokenizer(const char *name)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__TokenizerSpec tokenizer = TF__TOKENIZER_SPEC__INIT;
	char *path = xasprintf("%s/source.txt", root);
	uint64_t id = 0;

	assert_ok(file_write(path, "text\n", 5, 0600, &e), &e);
	tokenizer.tokenizer = (char *)name;
	tokenizer.n_path = 1;
	tokenizer.path = &path;
	spec.kind = TF__JOB_KIND__TOKENIZER;
	spec.name = (char *)"make";
	spec.spec_case = TF__JOB_SPEC__SPEC_TOKENIZER;
	spec.tokenizer = &tokenizer;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	xfree(path);
	return id;
}

static uint32_t harness_attempt(uint64_t id)
{
	uint32_t attempt = 0;

	xfree_(harness_reason(&h, id, &attempt));
	return attempt;
}

static void say_end(uint64_t id)
{
	for (int tries = 0; !job_state_is_end(harness_state(&h, id)); tries++) {
		assert_true(tries < 2000);
		clock_sleep_ms(5);
	}
	said(harness_state(&h, id) == TF__JOB_STATE__DONE ? "done" : "ended", id,
	     harness_attempt(id));
}

static void some_jobs(int round)
{
	static const char *const how[] = { "done", "quiet", "fail", "done", "once" };
	uint64_t id[JOBS_MAX];
	size_t n = 0;
	char name[24];

	for (int i = 0; i < 12; i++) {
		id[n] = harness_noop(&h, how[i % 5]);
		said("job", id[n++], 0);
	}
	snprintf(name, sizeof name, "words%d", round);
	id[n] = make_tokenizer(name);
	said("job", id[n++], 0);
	harness_cancel(h.line, id[7], &e);
	for (size_t i = 0; i < n; i++)
		say_end(id[i]);
}

/* A job of the real worker that takes so long. */
static uint64_t real_job(double seconds)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	uint64_t id = 0;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)"done"; /* to the false one of a daemon after the cut */
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	noop.has_seconds = true;
	noop.seconds = seconds;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	said("job", id, 0);
	return id;
}

/* No daemon takes the outcome: it is synced after a while, and counts. The worker may be gone then;
 * or it is gone before it has one. */
static void a_real_job_alone(bool with_outcome)
{
	uint64_t id = real_job(with_outcome ? 0.3 : 30);
	char *path = harness_path(&h, "jobs/%llu/outcome-1.pb", (unsigned long long)id);

	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	kill(h.pid, with_outcome ? SIGSTOP : SIGKILL);
	for (int tries = 0; with_outcome && !file_exists(path); tries++) {
		assert_true(tries < 2000);
		clock_sleep_ms(5);
	}
	if (with_outcome) {
		clock_sleep_ms(KEPT_MS);
		said("kept", id, 1);
	}
	harness_kill(&h, SIGKILL);
	harness_kill_workers(&h); /* a warm one still stands in the folder of its first job */
	if (!with_outcome) {
		harness_start(&h);
		for (int tries = 0; harness_attempt(id) < 2; tries++) {
			assert_true(tries < 2000);
			clock_sleep_ms(5);
		}
		harness_cancel(h.line, id, &e);
	} else {
		harness_start(&h);
	}
	say_end(id);
	xfree(path);
}

static void real_jobs(int round)
{
	uint64_t id[4];

	for (size_t i = 0; i < ARRAY_LEN(id); i++)
		id[i] = real_job(0);
	for (size_t i = 0; i < ARRAY_LEN(id); i++)
		say_end(id[i]);
	a_real_job_alone(round == 0);
}

/* ---------------------------------------------------------------- after a cut */

struct acknowledged {
	uint64_t job[JOBS_MAX];
	size_t jobs;
	uint8_t end[JOBS_MAX]; /* by job: 0, 'd' done, 'e' not done, 'k' kept: it will be done */
	uint32_t attempt[JOBS_MAX]; /* then */
};

/* True: an outcome is on disk that no daemon has heard of. */
static bool acknowledge(struct acknowledged *a, const struct powercut_head *head, const char *data)
{
	char what[16];
	bool kept;
	unsigned long long job;
	char *text = xstrndup(data, head->data_len);
	unsigned attempt;

	assert_int_equal(sscanf(text, "%15s %llu %u", what, &job, &attempt), 3);
	assert_true(job < JOBS_MAX);
	if (strcmp(what, "job") == 0)
		a->job[a->jobs++] = job;
	else
		a->end[job] = (uint8_t)what[0];
	a->attempt[job] = attempt;
	kept = strcmp(what, "kept") == 0;
	xfree(text);
	return kept;
}

static void complain(void *arg, const char *problem)
{
	print_message("%s: %s\n", (const char *)arg, problem);
}

static void store_holds(const char *folder, const struct acknowledged *a)
{
	struct check_report report;
	struct state *s = own_store_of(folder);

	err_clear(&e);
	assert_ok(store_check(s, folder, complain, (void *)folder, &report, &e), &e);
	assert_int_equal(report.problems, 0);
	for (size_t i = 0; i < a->jobs; i++) {
		Tf__JobRecord *r = NULL;
		uint8_t end = a->end[a->job[i]];

		assert_ok(job_get(s, a->job[i], &r, &e), &e);
		if (end && end != 'k')
			assert_true(job_state_is_end(r->job->state));
		if (end && end != 'k')
			assert_true((r->job->state == TF__JOB_STATE__DONE) == (end == 'd'));
		record_free(r);
	}
	state_close(s);
}

static void daemon_goes_on(char *folder, const struct acknowledged *a)
{
	struct harness after = h;

	memset(after.environment, 0, sizeof after.environment);
	after.worker = NULL;
	after.state = folder;
	after.pid = 0;
	harness_start(&after);
	for (size_t i = 0; i < a->jobs; i++)
		for (int tries = 0; !job_state_is_end(harness_state(&after, a->job[i])); tries++) {
			assert_true(tries < 2000);
			clock_sleep_ms(5);
		}
	for (size_t i = 0; i < a->jobs; i++) {
		uint64_t id = a->job[i];
		uint32_t attempt = 0;

		if (!a->end[id])
			continue;
		xfree_(harness_reason(&after, id, &attempt));
		if (attempt != a->attempt[id])
			fail_msg("job %llu ran again: attempt %u after %u", (unsigned long long)id,
				 attempt, a->attempt[id]);
		assert_true((harness_state(&after, id) == TF__JOB_STATE__DONE) ==
			    (a->end[id] != 'e'));
	}
	harness_kill(&after, SIGTERM);
}

static uint64_t from_environment(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static void cut_here(struct powercut *p, uint64_t luck, uint64_t seed, const struct acknowledged *a,
		     bool goes_on)
{
	char *folder = xasprintf("%s/after", h.folder);

	assert_ok(powercut_write(p, (enum powercut_luck)luck, seed, folder, &e), &e);
	store_holds(folder, a);
	if (goes_on)
		daemon_goes_on(folder, a);
	assert_ok(dir_remove(folder, &e), &e);
	xfree(folder);
}

/* Cuts the power at so many moments of the trace, at each while the state is being made, and
 * wherever an outcome is kept by its file alone; a few of them get a daemon. Returns how many jobs
 * it told of. */
static size_t cut(uint64_t cuts, uint64_t seed)
{
	uint64_t made = 0, daemons = 0, n = 0;
	struct acknowledged a = { 0 };
	struct powercut_head head;
	struct powercut *p = NULL;
	const char *data;
	size_t total;

	assert_ok(powercut_open(trace, &p, &e), &e);
	total = powercut_records(p);
	while (powercut_step(p, &head, &data)) {
		bool kept = head.op == OP_SAID && acknowledge(&a, &head, data), goes_on;

		for (int luck = LUCK_NONE; (kept || a.jobs == 0) && luck <= LUCK_SOME; luck++)
			cut_here(p, (uint64_t)luck, seed + n, &a, kept);
		if (n++ * cuts / total < made)
			continue;
		goes_on = a.jobs > 0 && made * DAEMONS / cuts >= daemons;
		cut_here(p, made % 3, seed + made, &a, goes_on);
		daemons += goes_on;
		made++;
	}
	print_message("# %llu cuts in %zu records, %llu daemons, %zu jobs, TF_SEED=%llu\n",
		      (unsigned long long)made, total, (unsigned long long)daemons, a.jobs,
		      (unsigned long long)seed);
	assert_true(made >= cuts - 1);
	powercut_close(p);
	return a.jobs;
}

static void end(void)
{
	for (int i = 0; i < 3; i++)
		xfree(h.environment[i]);
	harness_stop(&h);
	xfree(trace);
	xfree(worker);
	xfree(root);
}

static void a_power_cut_loses_nothing_acknowledged(void **state)
{
	(void)state;
	prepare("tests/daemon/fake_worker");
	for (int round = 0; round < 2; round++) {
		harness_start(&h);
		some_jobs(round);
		harness_kill(&h, round == 0 ? SIGTERM : SIGKILL);
	}
	assert_int_equal(cut(from_environment("TF_CUTS", CUTS),
			     from_environment("TF_SEED", (uint64_t)getpid())),
			 26);
	end();
}

/* The real worker syncs an outcome only when no daemon takes it soon. */
static void nor_what_a_real_worker_has_done(void **state)
{
	(void)state;
	prepare("transfuse-worker");
	for (int round = 0; round < 2; round++) {
		harness_start(&h);
		real_jobs(round);
		harness_kill(&h, round == 0 ? SIGTERM : SIGKILL);
	}
	assert_int_equal(cut(from_environment("TF_CUTS", CUTS) / 2,
			     from_environment("TF_SEED", (uint64_t)getpid())),
			 10);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_power_cut_loses_nothing_acknowledged),
		cmocka_unit_test(nor_what_a_real_worker_has_done),
	};

	return cmocka_run_group_tests_name("powercut", tests, NULL, NULL);
}
