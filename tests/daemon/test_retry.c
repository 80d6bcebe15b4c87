/* SPDX-License-Identifier: Apache-2.0
 * Further attempts: how many after which failure, when, and what is told of them. */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/retry.h"

#include <signal.h>
#include <string.h>

static struct harness h;
static struct err e;

/* A spec with rules as the command line gives them, NULL-ended. */
static void rules(Tf__JobSpec *spec, const char *const *text)
{
	static Tf__RetryRule rule[FAILURES], *list[FAILURES];

	*spec = (Tf__JobSpec)TF__JOB_SPEC__INIT;
	for (; text[spec->n_retry]; spec->n_retry++) {
		list[spec->n_retry] = &rule[spec->n_retry];
		assert_ok(retry_parse(text[spec->n_retry], list[spec->n_retry], &e), &e);
	}
	spec->retry = list;
}

static uint64_t submit(const char *how, Tf__JobSpec *spec)
{
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	uint64_t id = 0;

	spec->kind = TF__JOB_KIND__NOOP;
	spec->name = (char *)how;
	spec->spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec->noop = &noop;
	assert_ok(harness_submit(h.line, spec, NULL, false, &id, &e), &e);
	return id;
}

#define SUBMIT(how, ...) submit_with(how, (const char *const[]){ __VA_ARGS__, NULL })
static uint64_t submit_with(const char *how, const char *const *text)
{
	Tf__JobSpec spec;

	rules(&spec, text);
	return submit(how, &spec);
}

static void says(uint64_t job, uint32_t attempts, const char *text)
{
	uint32_t attempt = 0;
	char *reason = harness_reason(&h, job, &attempt);

	if (!strstr(reason, text) || attempt != attempts)
		fail_msg("job %llu, attempt %u: '%s' is not in '%s'", (unsigned long long)job,
			 attempt, text, reason);
	xfree(reason);
}

static void rules_are_read(void **state)
{
	static const char *const wrong[] = { "",        "crash",    "crash=",   "crash=-1",
					     "crash=11", "error=1", "crash=1:", "crash=1s",
					     "cras=1",  "crash=1:2x" };
	Tf__JobSpec spec;
	Tf__RetryRule r;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		assert_int_equal(retry_parse(wrong[i], &r, &e), TF_EUSAGE);
	assert_non_null(strstr(e.text, "expected crash, oom, nan, lost or preempted"));
	err_clear(&e);
	rules(&spec, (const char *const[]){ "oom=3:60", "crash=1", NULL });
	assert_int_equal(retry_times(&spec, TF__FAILURE__FAILURE_MEMORY), 3);
	assert_int_equal(retry_delay_ms(&spec, TF__FAILURE__FAILURE_MEMORY, 1), 60000);
	assert_int_equal(retry_delay_ms(&spec, TF__FAILURE__FAILURE_MEMORY, 3), 240000);
	assert_int_equal(retry_delay_ms(&spec, TF__FAILURE__FAILURE_MEMORY, 63),
			 1000ll * LIMIT_RETRY_DELAY_S);
	assert_int_equal(retry_times(&spec, TF__FAILURE__FAILURE_CRASH), 1);
	assert_int_equal(retry_times(&spec, TF__FAILURE__FAILURE_LOST), 2);
	assert_int_equal(retry_times(&spec, TF__FAILURE__FAILURE_NAN), 0);
	assert_int_equal(retry_times(&spec, TF__FAILURE__FAILURE_OTHER), 0);
	assert_int_equal(retry_times(&spec, TF__FAILURE__FAILURE_PREEMPTED), RETRY_ANY);
	spec.retries = 7;
	assert_int_equal(retry_times(&spec, TF__FAILURE__FAILURE_CRASH), 1);
	assert_int_equal(retry_times(&spec, TF__FAILURE__FAILURE_LOST), 7);
	assert_ok(retry_check(&spec, &e), &e);
	spec.retry[1]->failure = TF__FAILURE__FAILURE_MEMORY;
	assert_int_equal(retry_check(&spec, &e), TF_EINVALID);
	assert_string_equal(e.text, "retry has two rules for oom, expected one");
	spec.n_retry = 1;
	spec.retry[0]->delay_s = LIMIT_RETRY_DELAY_S + 1;
	assert_int_equal(retry_check(&spec, NULL), TF_EINVALID);
	spec.retry[0]->delay_s = 0;
	spec.retry[0]->times = LIMIT_RETRIES + 1;
	assert_int_equal(retry_check(&spec, NULL), TF_EINVALID);
	spec.n_retry = FAILURES;
	assert_int_equal(retry_check(&spec, NULL), TF_ELIMIT);
}

static void a_long_attempt_begins_anew(void **state)
{
	uint32_t failed[FAILURES] = { [TF__FAILURE__FAILURE_LOST] = 2,
				      [TF__FAILURE__FAILURE_PREEMPTED] = 4 };
	Tf__Job j = TF__JOB__INIT;
	int64_t now = 1000000000000;

	(void)state;
	assert_int_equal(retry_number(&j, TF__FAILURE__FAILURE_LOST, now), 1);
	j.failed = failed;
	j.n_failed = FAILURES;
	j.started = now - 1000 * RETRY_ANEW_S + 1;
	assert_int_equal(retry_number(&j, TF__FAILURE__FAILURE_LOST, now), 3);
	assert_int_equal(retry_number(&j, TF__FAILURE__FAILURE_CRASH, now), 1);
	j.started--;
	assert_int_equal(retry_number(&j, TF__FAILURE__FAILURE_LOST, now), 1);
	assert_int_equal(retry_number(&j, TF__FAILURE__FAILURE_PREEMPTED, now), 5);
}

static void a_crash_is_tried_again_so_often(void **state)
{
	uint64_t id = SUBMIT("crash", "crash=2:0"), other = SUBMIT("fail", "crash=2:0");
	Tf__Reply *reply;
	char *log;

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	says(id, 3, "(crash 3 of 3)");
	log = harness_log(&h, id);
	assert_string_equal(log, "begin 1\nbegin 2\nbegin 3\n");
	xfree(log);
	reply = harness_show(&h, id);
	assert_int_equal(reply->jobs->job[0]->failure, TF__FAILURE__FAILURE_CRASH);
	assert_int_equal(reply->jobs->job[0]->failed[TF__FAILURE__FAILURE_CRASH], 3);
	tf__reply__free_unpacked(reply, NULL);
	harness_until(&h, other, TF__JOB_STATE__FAILED);
	says(other, 1, "it had to fail"); /* an error would come again */
}

/* nan, oom, crash, then done: each has attempts of its own. */
static void each_kind_is_counted_apart(void **state)
{
	uint64_t id = SUBMIT("medley", "nan=1:0", "oom=1:0", "crash=1:0"), less, no_nan;

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__DONE);
	says(id, 4, "");
	less = SUBMIT("medley", "nan=1:0", "oom=0");
	harness_until(&h, less, TF__JOB_STATE__FAILED);
	says(less, 2, "no memory");
	no_nan = SUBMIT("medley", "oom=9");
	harness_until(&h, no_nan, TF__JOB_STATE__FAILED);
	says(no_nan, 1, "not a number");
}

static int put_back(uint64_t id)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;

	m.n_job = 1;
	m.job = &id;
	r.body_case = TF__REQUEST__BODY_JOB_REQUEUE;
	r.job_requeue = &m;
	return harness_call(h.line, &r, NULL, &e);
}

static void until_queued_again(uint64_t id, uint32_t attempts)
{
	for (int i = 0; i < 6000; i++) {
		uint32_t attempt;
		char *reason = harness_reason(&h, id, &attempt);

		xfree(reason);
		if (attempt == attempts && harness_state(&h, id) == TF__JOB_STATE__QUEUED)
			return;
		clock_sleep_ms(10);
	}
	fail_msg("job %llu is not queued again", (unsigned long long)id);
}

/* The next attempt has its time, which outlives the daemon; others go past meanwhile. */
static void a_later_attempt_waits(void **state)
{
	uint64_t id = SUBMIT("crash", "crash=1:3600"), other;
	Tf__Reply *reply;
	const Tf__Job *j;

	(void)state;
	until_queued_again(id, 1);
	says(id, 1, "attempt 1: the worker was killed by signal");
	says(id, 1, "(crash 1 of 2)");
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	other = SUBMIT("done", "crash=0");
	harness_until(&h, other, TF__JOB_STATE__DONE);
	reply = harness_show(&h, id);
	j = reply->jobs->job[0];
	assert_int_equal(j->state, TF__JOB_STATE__QUEUED);
	assert_int_equal(j->attempt, 1);
	assert_true(j->next_try > clock_wall_ms() + 3000000);
	assert_non_null(strstr(j->waits, "not before"));
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(harness_cancel(h.line, id, &e), &e);
	assert_ok(put_back(id), &e); /* counts anew, starts at once, fails anew */
	until_queued_again(id, 2);
	says(id, 2, "(crash 1 of 2)");
}

/* A worker that never says hello is killed, and is no crash of its own. */
static void a_lost_worker_is_tried_again(void **state)
{
	uint64_t id;

	(void)state;
	harness_kill(&h, SIGTERM);
	h.fault = "mute-worker:1";
	h.extra[0] = "--hello-seconds";
	h.extra[1] = "1";
	harness_start(&h);
	id = SUBMIT("done", "lost=1:0", "crash=0");
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	says(id, 2, "did not report in time and was killed (lost 2 of 2)");
}

/* An import can go on from where it was; this one may not as often as it is asked to. */
static void stepping_back_may_have_an_end(void **state)
{
	char *path = xasprintf("%s/source.txt", h.folder);
	Tf__IngestSpec ingest = TF__INGEST_SPEC__INIT;
	Tf__Demand low = TF__DEMAND__INIT, high = TF__DEMAND__INIT;
	Tf__JobSpec spec;
	uint64_t id, first;

	(void)state;
	harness_kill(&h, SIGTERM);
	h.extra[0] = "--preempt-after-seconds";
	h.extra[1] = "0";
	h.extra[2] = "--root";
	h.extra[3] = h.folder;
	harness_start(&h);
	assert_int_equal(file_write(path, "text\n", 5, 0600, NULL), 0);
	rules(&spec, (const char *const[]){ "preempted=1:0", NULL });
	spec.kind = TF__JOB_KIND__INGEST;
	spec.name = (char *)"wait";
	spec.demand = &low;
	spec.spec_case = TF__JOB_SPEC__SPEC_INGEST;
	spec.ingest = &ingest;
	ingest.dataset = (char *)"some";
	ingest.path = &path;
	ingest.n_path = 1;
	low.has_priority = high.has_priority = true;
	low.priority = TF__PRIORITY__LOW;
	high.priority = TF__PRIORITY__HIGH;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	for (int i = 0; i < 2; i++) {
		rules(&spec, (const char *const[]){ NULL });
		spec.demand = &high;
		first = submit("done", &spec);
		harness_until(&h, first, TF__JOB_STATE__DONE);
		harness_until(&h, id, i ? TF__JOB_STATE__FAILED : TF__JOB_STATE__RUNNING);
	}
	says(id, 2, "(preempted 2 of 2)");
	xfree(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rules_are_read),
		cmocka_unit_test(a_long_attempt_begins_anew),
		WITH_HARNESS(a_crash_is_tried_again_so_often, harness_started),
		WITH_HARNESS(each_kind_is_counted_apart, harness_started),
		WITH_HARNESS(a_later_attempt_waits, harness_started),
		WITH_HARNESS(a_lost_worker_is_tried_again, harness_started),
		WITH_HARNESS(stepping_back_may_have_an_end, harness_started),
	};

	return cmocka_run_group_tests_name("retry", tests, NULL, NULL);
}
