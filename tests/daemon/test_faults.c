/* SPDX-License-Identifier: Apache-2.0
 * A disk that is full, broken or slow, a process table or descriptors used up, switched on and off
 * under a running daemon: it lives, never says yes to what is not on disk, says what is wrong, and
 * goes on by itself when the fault is over, with everything it had acknowledged. */
#define _GNU_SOURCE /* prlimit */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "tests/daemon/powercut_trace.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define RECOVER_MS 20000

static struct harness h;
static struct err e;
static char *control;

static int start(void **state)
{
	const char *build = getenv("TF_BUILD");

	(void)state;
	err_clear(&e);
	harness_init(&h);
	control = xasprintf("%s/fault", h.folder);
	h.environment[0] = xasprintf("LD_PRELOAD=%s/tests/daemon/powercut_shim.so",
				     build ? build : ".");
	h.environment[1] = xasprintf(POWERCUT_ROOT "=%s", h.state);
	h.environment[2] = xasprintf(POWERCUT_FAULT "=%s", control);
	setenv("ASAN_OPTIONS", "verify_asan_link_order=0", 0);
	harness_start(&h);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	for (int i = 0; i < 3; i++)
		xfree(h.environment[i]);
	harness_stop(&h);
	xfree(control);
	return 0;
}

static void fault(const char *word)
{
	FILE *f = word ? fopen(control, "w") : NULL; /* at once: nothing is synced */

	if (f) {
		fputs(word, f);
		assert_int_equal(fclose(f), 0);
	} else {
		assert_int_equal(unlink(control), 0);
	}
}

static int submit(const uint8_t token[16], uint64_t *id)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;

	err_clear(&e);
	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)"done";
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	return harness_submit(h.line, &spec, token, false, id, &e);
}

/* Submits until it is taken: the same token, so the job is one whatever was said before. */
static uint64_t submit_until_taken(const uint8_t token[16])
{
	int64_t until = clock_mono_ms() + RECOVER_MS;
	uint64_t id = 0;

	while (submit(token, &id) < 0) {
		if (clock_mono_ms() > until)
			fail_msg("still refused: %s", e.text);
		clock_sleep_ms(50);
	}
	return id;
}

static Tf__Reply *status(void)
{
	Tf__Request r = harness_empty(TF__REQUEST__BODY_STATUS);
	Tf__Reply *reply = NULL;

	err_clear(&e);
	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	return reply;
}

/* Waits until `status` says (or no longer says) that it is in trouble; *text is the caller's. */
static char *trouble_until(bool wanted)
{
	int64_t until = clock_mono_ms() + RECOVER_MS;

	for (;;) {
		Tf__Reply *reply = status();
		char *text = xstrdup(reply->status->trouble);

		tf__reply__free_unpacked(reply, NULL);
		if (!text == !wanted)
			return text;
		xfree(text);
		if (clock_mono_ms() > until)
			fail_msg("trouble %s", wanted ? "is not told" : "stays");
		clock_sleep_ms(50);
	}
}

/* What was acknowledged before is there, and the queue goes on. */
static void goes_on(uint64_t before, const uint8_t token[16])
{
	uint64_t id = submit_until_taken(token);

	harness_until(&h, before, TF__JOB_STATE__DONE);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	xfree_(trouble_until(false));
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	assert_int_equal(harness_state(&h, before), TF__JOB_STATE__DONE);
	assert_int_equal(harness_state(&h, id), TF__JOB_STATE__DONE);
}

static void a_full_disk_stops_new_work_only(void **state)
{
	static const uint8_t token[16] = "full: in the end";
	uint64_t running = harness_noop(&h, "wait"), queued = harness_noop(&h, "done");
	char *text;

	(void)state;
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	fault(FAULT_FULL);
	text = trouble_until(true);
	if (!strstr(text, "disk") && !strstr(text, "space"))
		fail_msg("'%s' does not name the disk", text);
	assert_true(submit((const uint8_t *)"full: not before", NULL) < 0);
	assert_true(e.code == TF_ENOSPACE || e.code == TF_EUNKNOWN);
	assert_int_equal(harness_state(&h, running), TF__JOB_STATE__RUNNING);
	assert_int_equal(harness_state(&h, queued), TF__JOB_STATE__QUEUED);
	fault(NULL);
	xfree_(trouble_until(false));
	assert_ok(harness_cancel(h.line, running, &e), &e);
	harness_until(&h, running, TF__JOB_STATE__CANCELLED);
	goes_on(queued, token);
	xfree(text);
}

static void a_broken_disk_is_never_a_yes(void **state)
{
	static const uint8_t token[16] = "broken: one job!";
	uint64_t before = harness_noop(&h, "done"), id = 0;
	char *text;

	(void)state;
	harness_until(&h, before, TF__JOB_STATE__DONE);
	fault(FAULT_BROKEN);
	assert_int_equal(submit(token, &id), TF_EUNKNOWN);
	text = trouble_until(true);
	assert_true(*text);
	assert_int_equal(harness_state(&h, before), TF__JOB_STATE__DONE);
	for (int i = 0; i < 3; i++)
		assert_int_equal(submit(token, &id), TF_EUNKNOWN);
	fault(NULL);
	goes_on(before, token);
	xfree(text);
}

/* Longer than it takes to be tried again, and again. */
static void a_disk_may_be_broken_for_long(void **state)
{
	static const uint8_t token[16] = "broken: for long";
	uint64_t before = harness_noop(&h, "done"), id = 0;

	(void)state;
	harness_until(&h, before, TF__JOB_STATE__DONE);
	fault(FAULT_BROKEN);
	assert_int_equal(submit(token, &id), TF_EUNKNOWN);
	harness_until_said(&h, "the state still cannot be written", 2);
	assert_int_equal(harness_state(&h, before), TF__JOB_STATE__DONE);
	fault(NULL);
	goes_on(before, token);
}

static double processor_seconds(pid_t pid)
{
	clockid_t clock;
	struct timespec t;

	assert_int_equal(clock_getcpuclockid(pid, &clock), 0);
	assert_int_equal(clock_gettime(clock, &t), 0);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* What the journal has cannot be folded then, and is not tried without end. */
static void a_broken_disk_is_no_work(void **state)
{
	static const uint8_t token[16] = "broken: at rest.";
	uint64_t before = harness_noop(&h, "wait"), id = 0;
	double used;

	(void)state;
	harness_until(&h, before, TF__JOB_STATE__RUNNING);
	assert_ok(submit((const uint8_t *)"broken: just then", &id), &e);
	fault(FAULT_BROKEN); /* before that is folded */
	assert_int_equal(submit(token, &id), TF_EUNKNOWN);
	clock_sleep_ms(500);
	used = processor_seconds(h.pid);
	clock_sleep_ms(1500);
	used = processor_seconds(h.pid) - used;
	if (used > 0.2)
		fail_msg("%.3f s of the processor in 1.5 s", used);
	fault(NULL);
	xfree_(trouble_until(false));
	assert_ok(harness_cancel(h.line, before, &e), &e);
	harness_until(&h, before, TF__JOB_STATE__CANCELLED);
}

static int open_upload(void)
{
	uint8_t token[16] = "an upload: once";
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadOpen m = TF__UPLOAD_OPEN__INIT;

	m.token = (ProtobufCBinaryData){ sizeof token, token };
	m.name = (char *)"file";
	m.size = 10;
	r.body_case = TF__REQUEST__BODY_UPLOAD_OPEN;
	r.upload_open = &m;
	err_clear(&e);
	return harness_call(h.line, &r, NULL, &e);
}

/* How many descriptors the daemon has of files that are uploaded. */
static int open_files(void)
{
	char *path = xasprintf("/proc/%d/fd", (int)h.pid);
	DIR *list = opendir(path);
	struct dirent *one;
	int count = 0;

	assert_non_null(list);
	while ((one = readdir(list)) != NULL) {
		char to[300] = "";

		if (readlinkat(dirfd(list), one->d_name, to, sizeof to - 1) > 0)
			count += strstr(to, "/uploads/") != NULL;
	}
	closedir(list);
	xfree(path);
	return count;
}

/* It is not on record, so who opens it again has one, not two. */
static void an_upload_may_come_to_nothing(void **state)
{
	static const uint8_t token[16] = "an upload: after";

	(void)state;
	fault(FAULT_BROKEN);
	assert_int_equal(open_upload(), TF_EUNKNOWN);
	fault(NULL);
	submit_until_taken(token);
	assert_int_equal(open_files(), 0);
	assert_ok(open_upload(), &e);
	assert_int_equal(open_files(), 1);
}

static void a_slow_disk_is_waited_for(void **state)
{
	static const uint8_t token[16] = "slow: but steady";
	uint64_t before = harness_noop(&h, "done"), id = 0;
	int64_t started;

	(void)state;
	harness_until(&h, before, TF__JOB_STATE__DONE);
	fault(FAULT_SLOW);
	started = clock_mono_ms();
	assert_ok(submit(token, &id), &e);
	assert_true(clock_mono_ms() - started >= 100); /* not answered before the sync */
	harness_kill(&h, SIGKILL);
	fault(NULL);
	harness_start(&h);
	goes_on(before, token);
	assert_int_equal(submit_until_taken(token), id);
}

static void a_failed_fork_is_tried_again(void **state)
{
	static const uint8_t token[16] = "fork: it will do";
	uint64_t before;
	uint32_t attempt;
	int64_t until = clock_mono_ms() + RECOVER_MS;
	int failures = 0;

	(void)state;
	fault(FAULT_FORK);
	before = harness_noop(&h, "done");
	while (failures == 0 && clock_mono_ms() < until) {
		Tf__Reply *reply = status();

		for (size_t i = 0; i < reply->status->n_fact; i++)
			if (strcmp(reply->status->fact[i]->key, "spawn_failures") == 0)
				failures = atoi(reply->status->fact[i]->value);
		tf__reply__free_unpacked(reply, NULL);
	}
	assert_true(failures > 0);
	assert_int_equal(harness_state(&h, before), TF__JOB_STATE__QUEUED);
	fault(NULL);
	harness_until(&h, before, TF__JOB_STATE__DONE);
	xfree_(harness_reason(&h, before, &attempt));
	assert_int_equal(attempt, 1);
	goes_on(before, token);
}

static void descriptors_may_run_out(void **state)
{
	static const uint8_t token[16] = "files: come back";
	uint64_t before = harness_noop(&h, "done"), id = 0;
	struct rlimit old, none;

	(void)state;
	harness_until(&h, before, TF__JOB_STATE__DONE);
	assert_int_equal(prlimit(h.pid, RLIMIT_NOFILE, NULL, &old), 0);
	none = old;
	none.rlim_cur = 5; /* below what is open: nothing more can be opened */
	assert_int_equal(prlimit(h.pid, RLIMIT_NOFILE, &none, NULL), 0);
	assert_ok(submit(token, &id), &e); /* needs none */
	clock_sleep_ms(200);
	assert_int_equal(harness_state(&h, id), TF__JOB_STATE__QUEUED);
	assert_int_equal(harness_state(&h, before), TF__JOB_STATE__DONE);
	assert_int_equal(prlimit(h.pid, RLIMIT_NOFILE, &old, NULL), 0);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	goes_on(before, token);
}

/* Lines of the audit log wait while the disk takes none: so many bytes, the rest is counted. */
static void audit_lines_wait_within_a_bound(void **state)
{
	char *path = harness_path(&h, "audit/log"), *line;
	struct buf log = BUF_INIT;
	int kept = 0, lost = 0;

	(void)state;
	harness_kill(&h, SIGTERM);
	h.bound = "audit-pending-bytes:2000";
	harness_start(&h);
	fault(FAULT_FULL);
	for (uint64_t i = 0; i < 60; i++) /* fewer than refusals are put down in a second */
		assert_true(harness_cancel(h.line, 999000 + i, &e) < 0);
	harness_until_said(&h, "the audit log cannot be written", 1);
	fault(NULL);
	for (int64_t until = clock_mono_ms() + RECOVER_MS; lost == 0; clock_sleep_ms(50)) {
		assert_true(clock_mono_ms() < until);
		harness_cancel(h.line, 1000000, &e);
		buf_clear(&log);
		assert_ok(file_read(path, 1 << 20, &log, &e), &e);
		line = strstr(log.data, " more lines are left out here");
		while (line && line > log.data && line[-1] >= '0' && line[-1] <= '9')
			line--;
		lost = line ? atoi(line) : 0;
	}
	for (line = log.data; (line = strstr(line, "job=999")) != NULL; line++)
		kept++;
	assert_true(kept >= 5 && kept <= 40);
	assert_true(kept + lost >= 60);
	buf_release(&log);
	xfree(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_full_disk_stops_new_work_only, start, stop),
		cmocka_unit_test_setup_teardown(a_broken_disk_is_never_a_yes, start, stop),
		cmocka_unit_test_setup_teardown(a_disk_may_be_broken_for_long, start, stop),
		cmocka_unit_test_setup_teardown(a_broken_disk_is_no_work, start, stop),
		cmocka_unit_test_setup_teardown(an_upload_may_come_to_nothing, start, stop),
		cmocka_unit_test_setup_teardown(a_slow_disk_is_waited_for, start, stop),
		cmocka_unit_test_setup_teardown(a_failed_fork_is_tried_again, start, stop),
		cmocka_unit_test_setup_teardown(descriptors_may_run_out, start, stop),
		cmocka_unit_test_setup_teardown(audit_lines_wait_within_a_bound, start, stop),
	};

	return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
