/* SPDX-License-Identifier: Apache-2.0
 * The queue follows a SIGHUP: limits, rules and what there is to hand out. A mistake changes
 * nothing. */
#include "tests/daemon/harness.h"
#include "tests/daemon/user_keys.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define PATIENCE_MS 60000

static struct harness h;
static struct err e;
static char option[200];

static void configure(const char *text)
{
	char *path = xasprintf("%s/config.yaml", h.folder);

	assert_ok(file_write(path, text, strlen(text), 0600, &e), &e);
	snprintf(option, sizeof option, "--config=%s", path);
	xfree(path);
}

static void start(const char *config)
{
	err_clear(&e);
	harness_init(&h);
	configure(config);
	h.slots = "";
	h.extra[0] = option;
	harness_start(&h);
}

static int count_in_log(const char *text)
{
	char *path = xasprintf("%s/daemon.log", h.folder);
	struct buf b = BUF_INIT;
	int n = 0;

	assert_ok(file_read(path, 1 << 20, &b, &e), &e);
	buf_text(&b, "");
	for (const char *p = b.data; (p = strstr(p, text)) != NULL; p++)
		n++;
	buf_release(&b);
	xfree(path);
	return n;
}

/* Waits until the daemon has read it, and says this. */
static void reload(const char *config, const char *says)
{
	int64_t end = clock_mono_ms() + PATIENCE_MS;
	int before = count_in_log(says);

	configure(config);
	assert_int_equal(kill(h.pid, SIGHUP), 0);
	while (count_in_log(says) == before) {
		if (clock_mono_ms() > end)
			fail_msg("the log does not say '%s'", says);
		clock_sleep_ms(10);
	}
}

#define GOOD "the configuration was read again"
#define BAD "the configuration stays as it was: "

static int submit(const char *how, uint32_t cpus, Tf__Priority priority, uint64_t *id)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	Tf__Demand demand = TF__DEMAND__INIT;

	demand.has_cpus = cpus > 0;
	demand.cpus = cpus;
	demand.has_priority = true;
	demand.priority = priority;
	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	spec.demand = &demand;
	err_clear(&e);
	return harness_submit(h.line, &spec, NULL, false, id, &e);
}

static void limits_follow(void **state)
{
	uint64_t first, second, third;

	(void)state;
	start("slots: 3\nlimit_running: 1\nlimit_queued: 1\n");
	assert_ok(submit("wait", 0, TF__PRIORITY__NORMAL, &first), &e);
	harness_until(&h, first, TF__JOB_STATE__RUNNING);
	assert_ok(submit("wait", 0, TF__PRIORITY__NORMAL, &second), &e);
	assert_int_equal(submit("wait", 0, TF__PRIORITY__NORMAL, &third), TF_ELIMIT);
	assert_int_equal(harness_state(&h, second), TF__JOB_STATE__QUEUED);
	reload("slots: 3\nlimit_running: 2\nlimit_queued: 5\n", GOOD);
	harness_until(&h, second, TF__JOB_STATE__RUNNING);
	assert_ok(submit("wait", 0, TF__PRIORITY__NORMAL, &third), &e);
	reload("slots: 3\nlimit_running: 2\nuser_limit: [\"ann running=x\"]\n", BAD "user_limit");
	reload("slots: 3\nhalf_life_hours: 0\n", BAD);
	assert_int_equal(harness_state(&h, third), TF__JOB_STATE__QUEUED);
	reload("slots: 3\nhalf_life_hours: 1\n", "option half_life_hours: 168 -> 1");
	harness_until(&h, third, TF__JOB_STATE__RUNNING); /* there is no limit any more */
	harness_stop(&h);
}

/* An import waits until it is told to step back. */
static uint64_t import(void)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__IngestSpec ingest = TF__INGEST_SPEC__INIT;
	Tf__Demand demand = TF__DEMAND__INIT;
	char *path = xasprintf("%s/lines.txt", h.folder);
	uint64_t id = 0;

	assert_ok(file_write(path, "a\n", 2, 0600, &e), &e);
	demand.has_priority = true;
	demand.priority = TF__PRIORITY__LOW;
	ingest.dataset = (char *)"lines";
	ingest.n_path = 1;
	ingest.path = &path;
	spec.kind = TF__JOB_KIND__INGEST;
	spec.name = (char *)"wait";
	spec.spec_case = TF__JOB_SPEC__SPEC_INGEST;
	spec.ingest = &ingest;
	spec.demand = &demand;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	xfree(path);
	return id;
}

static void rules_follow(void **state)
{
	uint64_t low, high;
	char *soon, *late;

	(void)state;
	err_clear(&e);
	harness_init(&h);
	soon = xasprintf("root: ['%s']\nslots: 1\npreempt_after_seconds: 0\n", h.folder);
	late = xasprintf("root: ['%s']\nslots: 1\npreempt_after_seconds: 86400\n", h.folder);
	configure(late);
	h.slots = "";
	h.extra[0] = option;
	harness_start(&h);
	low = import();
	harness_until(&h, low, TF__JOB_STATE__RUNNING);
	assert_ok(submit("done", 0, TF__PRIORITY__URGENT, &high), &e);
	assert_int_equal(harness_state(&h, high), TF__JOB_STATE__QUEUED);
	reload(soon, "option preempt_after_seconds: 86400 -> 0");
	harness_until(&h, high, TF__JOB_STATE__DONE);
	xfree(soon);
	xfree(late);
	harness_stop(&h);
}

static Tf__Reply *slots(void)
{
	Tf__Request r = harness_empty(TF__REQUEST__BODY_SLOT_LIST);
	Tf__Reply *reply = NULL;

	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	return reply;
}

static void slots_come_and_go(void **state)
{
	uint64_t id[3], refused;
	Tf__Reply *reply;

	(void)state;
	start("slots: 1\ncpus: 1\n");
	for (int i = 0; i < 3; i++)
		assert_ok(submit("wait", 0, TF__PRIORITY__NORMAL, &id[i]), &e);
	harness_until(&h, id[0], TF__JOB_STATE__RUNNING);
	assert_int_equal(submit("wait", 2, TF__PRIORITY__NORMAL, &refused), TF_EREFUSED);
	reload("slots: 2\ncpus: 2\nmem: 1G\n", "option slots: 1 -> 2");
	harness_until(&h, id[1], TF__JOB_STATE__RUNNING);
	assert_ok(submit("wait", 2, TF__PRIORITY__NORMAL, &refused), &e);
	assert_ok(harness_cancel(h.line, refused, &e), &e);
	reload("slots: 1\ncpus: 2\nmem: much\n", BAD "mem");
	reload("slots: 1\ncpus: 2\n", "option slots: 2 -> 1");
	assert_int_equal(harness_state(&h, id[1]), TF__JOB_STATE__RUNNING); /* it goes on */
	reply = slots();
	assert_int_equal(reply->slots->n_slot, 2);
	assert_string_equal(reply->slots->slot[1]->name, "cpu1");
	assert_int_equal(reply->slots->slot[1]->job, id[1]);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(harness_cancel(h.line, id[1], &e), &e);
	harness_until(&h, id[1], TF__JOB_STATE__CANCELLED);
	assert_int_equal(harness_state(&h, id[2]), TF__JOB_STATE__QUEUED);
	reply = slots();
	assert_int_equal(reply->slots->slot[0]->job, id[0]);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(harness_cancel(h.line, id[0], &e), &e);
	harness_until(&h, id[2], TF__JOB_STATE__RUNNING);
	harness_stop(&h);
}

/* Those of the configuration, in the order of their keys, as "name role, ". */
static char *configured_users(void)
{
	Tf__Request r = harness_empty(TF__REQUEST__BODY_USER_LIST);
	Tf__Reply *reply = NULL;
	struct buf text = BUF_INIT;

	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	for (size_t i = 0; i < reply->users->n_user; i++)
		if (reply->users->user[i]->configured)
			buf_printf(&text, "%s %s, ", reply->users->user[i]->name,
				   reply->users->user[i]->role);
	buf_text(&text, "");
	tf__reply__free_unpacked(reply, NULL);
	return buf_detach(&text);
}

static void expect_users(const char *expected)
{
	char *now = configured_users();

	assert_string_equal(now, expected);
	xfree(now);
}

static void users_follow(void **state)
{
	(void)state;
	start("user: ['ann reader " KEY_A "']\n");
	expect_users("ann reader, ");
	reload("user: ['ann admin " KEY_A "', 'bob member " KEY_B "']\n", GOOD);
	expect_users("bob member, ann admin, ");
	reload("user: ['bob owner " KEY_B "']\n", BAD);
	expect_users("bob member, ann admin, ");
	reload("user: ['bob reader " KEY_B "']\nhalf_life_hours: 0\n", BAD);
	expect_users("bob member, ann admin, "); /* one mistake, and nothing of it counts */
	reload("user: ['bob reader " KEY_B "']\n", GOOD);
	expect_users("bob reader, ");
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	expect_users("bob reader, ");
	harness_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(limits_follow),
		cmocka_unit_test(rules_follow),
		cmocka_unit_test(slots_come_and_go),
		cmocka_unit_test(users_follow),
	};

	return cmocka_run_group_tests_name("reload", tests, NULL, NULL);
}
