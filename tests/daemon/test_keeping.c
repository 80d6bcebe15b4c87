/* SPDX-License-Identifier: Apache-2.0
 * What keeps a state for years: the check finds every kind of damage, a backup is whole also while
 * the daemon works, a restored one goes on, and a store of an earlier version is taken over. */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "store/backup.h"
#include "store/catalogue.h"
#include "store/check.h"
#include "store/jobs.h"
#include "store/usage.h"
#include "tests/daemon/own_store.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct harness h;
static struct err e;

struct found {
	uint64_t problems;
	char first[1024];
};

static void note(void *arg, const char *problem)
{
	struct found *f = arg;

	if (f->problems++ == 0)
		snprintf(f->first, sizeof f->first, "%s", problem);
}

static struct found look(struct state *s, const char *folder)
{
	struct check_report report;
	struct found f = { 0 };

	assert_ok(store_check(s, folder, note, &f, &report, &e), &e);
	assert_int_equal(report.problems, f.problems);
	return f;
}

static void expect_sound(struct state *s, const char *folder)
{
	struct found f = look(s, folder);

	if (f.problems)
		fail_msg("%s", f.first);
}

static int ask_usage(const char *since, const char *until, Tf__Reply **reply)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UsageList m = TF__USAGE_LIST__INIT;

	err_clear(&e);
	m.since = (char *)since;
	m.until = (char *)until;
	r.body_case = TF__REQUEST__BODY_USAGE;
	r.usage = &m;
	return harness_call(h.line, &r, reply, &e);
}

/* ---------------------------------------------------------------- an earlier version */

/* tests/daemon/store-v1.mdb was written by the first version of the store: jobs 1 and 2 done, the
 * tokenizer of job 3, job 4 running when its daemon was killed, 5 queued, 6 waiting for 4, 7
 * cancelled, a configured user. */
static void put_old_store(void)
{
	char *source = xasprintf("%s/tests/daemon/store-v1.mdb", getenv("TF_SOURCE"));
	char *store = harness_path(&h, "store"), *to = harness_path(&h, "store/data.mdb");
	char *words = harness_path(&h, "tokenizers/words.3");
	struct buf b = BUF_INIT;

	assert_ok(dir_make(store, 0700, &e), &e);
	assert_ok(dir_make(words, 0700, &e), &e);
	assert_ok(file_read(source, 1 << 20, &b, &e), &e);
	assert_ok(file_write(to, b.data, b.len, 0600, &e), &e);
	buf_release(&b);
	xfree(words);
	xfree(to);
	xfree(store);
	xfree(source);
}

static void an_old_store_is_taken_over(void **state)
{
	static const Tf__JobState was[] = { TF__JOB_STATE__DONE, TF__JOB_STATE__DONE,
					    TF__JOB_STATE__DONE };
	struct state *s;
	Tf__Reply *reply;

	(void)state;
	put_old_store();
	h.slots = "2";
	harness_start(&h);
	assert_ok(ask_usage("2026-11", "2026-11", &reply), &e);
	assert_true(reply->usage->n_row >= 1); /* of jobs 1 to 3 */
	assert_true(reply->usage->row[0]->jobs >= 3);
	assert_true(reply->usage->row[0]->cpu_s > 0);
	tf__reply__free_unpacked(reply, NULL);
	for (uint64_t i = 0; i < ARRAY_LEN(was); i++)
		assert_int_equal(harness_state(&h, i + 1), was[i]);
	assert_int_equal(harness_state(&h, 7), TF__JOB_STATE__CANCELLED);
	for (uint64_t id = 4; id <= 6; id++)
		harness_until(&h, id, TF__JOB_STATE__DONE);
	assert_int_equal(harness_noop(&h, "done"), 8);
	harness_until(&h, 8, TF__JOB_STATE__DONE);
	harness_kill(&h, SIGTERM);
	s = own_store_of(h.state);
	expect_sound(s, h.state);
	state_close(s);
}

/* ---------------------------------------------------------------- damage is found */

static void spoil_live(struct state *s)
{
	uint8_t key[8];

	state_key(5, key);
	state_delete(s, STATE_LIVE, key, sizeof key, &e);
}

static void spoil_spec(struct state *s)
{
	uint8_t key[8];

	state_key(2, key);
	state_delete(s, STATE_SPECS, key, sizeof key, &e);
}

static void spoil_record(struct state *s)
{
	uint8_t key[8];

	state_key(1, key);
	state_put(s, STATE_JOBS, key, sizeof key, "\xff\xff", 2, &e);
}

static void spoil_token(struct state *s)
{
	uint8_t job[8];

	state_key(99, job);
	state_put(s, STATE_TOKENS, "0123456789abcdef", 16, job, sizeof job, &e);
}

static void spoil_name(struct state *s)
{
	state_put(s, STATE_NAMES, "\002ghost", 6, "ghost.1", 7, &e);
}

static void spoil_artefact(struct state *s)
{
	state_delete(s, STATE_NAMES, "\002words", 6, &e);
}

static void spoil_use(struct state *s)
{
	use_put(s, "words.3", 'j', "1", &e);
}

static void spoil_attempt(struct state *s)
{
	uint8_t key[16] = { 0 };

	state_key(1000, key);
	key[15] = 1;
	state_put(s, STATE_ATTEMPTS, key, sizeof key, "\x08\x01", 2, &e);
}

static void spoil_number(struct state *s)
{
	state_set_number(s, "last-job", 3, &e);
}

static void damage_is_found(void **state)
{
	static const struct {
		void (*spoil)(struct state *s);
		const char *says;
	} kinds[] = {
		{ spoil_live, "job 5" },
		{ spoil_spec, "job 2: what was asked for is missing" },
		{ spoil_record, "JobRecord" },
		{ spoil_token, "token" },
		{ spoil_name, "'ghost' leads to nothing" },
		{ spoil_artefact, "words" },
		{ spoil_use, "'words.3' is used by live job 1" },
		{ spoil_attempt, "AttemptRecord" },
		{ spoil_number, "the last number given is 3" },
	};
	char *words = harness_path(&h, "tokenizers/words.3");
	struct state *s;
	struct found f;

	(void)state;
	put_old_store();
	s = own_store_of(h.state);
	expect_sound(s, h.state);
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		kinds[i].spoil(s);
		f = look(s, h.state);
		assert_true(f.problems > 0);
		if (!strstr(f.first, kinds[i].says))
			fail_msg("'%s' does not say '%s'", f.first, kinds[i].says);
		state_abort(s);
		expect_sound(s, h.state);
	}
	assert_ok(dir_remove(words, &e), &e);
	f = look(s, h.state);
	assert_non_null(strstr(f.first, "tokenizers/words.3: is missing"));
	state_close(s);
	xfree(words);
}

/* ---------------------------------------------------------------- backup and restore */

static char *beside(const char *name)
{
	return xasprintf("%s/%s", h.folder, name);
}

static void a_backup_of_a_working_daemon_goes_on(void **state)
{
	char *to = beside("backup"), *again = beside("again");
	struct backup_report r;
	struct harness other = { 0 };
	uint64_t running, queued, done, waits[30];
	Tf__Reply *reply;

	(void)state;
	harness_start(&h);
	done = harness_noop(&h, "done");
	harness_until(&h, done, TF__JOB_STATE__DONE);
	running = harness_noop(&h, "wait");
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	queued = harness_noop(&h, "done");
	for (size_t i = 0; i < ARRAY_LEN(waits); i++)
		waits[i] = harness_noop(&h, "done");
	assert_ok(backup_make(h.state, to, &r, &e), &e);
	assert_int_equal(r.jobs, 3 + ARRAY_LEN(waits));
	assert_int_equal(harness_state(&h, running), TF__JOB_STATE__RUNNING);
	assert_int_equal(backup_make(h.state, to, &r, &e), TF_EEXISTS);
	err_clear(&e);
	harness_cancel(h.line, running, &e); /* after the moment of the backup */
	harness_until(&h, waits[ARRAY_LEN(waits) - 1], TF__JOB_STATE__DONE);
	harness_kill(&h, SIGTERM);

	assert_ok(backup_restore(to, again, &r, &e), &e);
	other = h;
	other.state = again;
	harness_start(&other);
	assert_int_equal(harness_state(&other, done), TF__JOB_STATE__DONE);
	assert_int_equal(harness_state(&other, waits[29]), TF__JOB_STATE__QUEUED);
	harness_until(&other, running, TF__JOB_STATE__RUNNING); /* a second attempt */
	reply = harness_show(&other, running);
	assert_int_equal(reply->jobs->job[0]->attempt, 2);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(harness_cancel(other.line, running, &e), &e);
	harness_until(&other, queued, TF__JOB_STATE__DONE);
	harness_kill(&other, SIGTERM);
	xfree(to);
	xfree(again);
}

/* Who reads the store beside an idle daemon sees all. */
static void an_idle_daemon_folds_the_journal(void **state)
{
	char *path = harness_path(&h, "store");
	int64_t until = clock_mono_ms() + 60000;
	uint64_t jobs = 0, id;

	(void)state;
	harness_start(&h);
	id = harness_noop(&h, "done");
	harness_until(&h, id, TF__JOB_STATE__DONE);
	while (jobs == 0) {
		struct state *s = NULL;

		assert_true(clock_mono_ms() < until);
		clock_sleep_ms(50);
		assert_ok(state_open_reading(path, &s, &e), &e);
		jobs = state_count(s, STATE_JOBS);
		if (jobs > 0)
			expect_sound(s, h.state);
		state_close(s);
	}
	xfree(path);
	harness_kill(&h, SIGKILL);
}

static void only_a_whole_backup_is_restored(void **state)
{
	char *to = beside("backup"), *again = beside("again"), *seal = beside("backup/backup");
	char *words = beside("backup/tokenizers/words.3");
	char *gone = harness_path(&h, "removed/1-1"), *not_there = beside("backup/removed");
	struct backup_report r;

	(void)state;
	put_old_store();
	assert_ok(dir_make(gone, 0700, &e), &e);
	assert_ok(backup_make(h.state, to, &r, &e), &e);
	assert_false(file_exists(not_there)); /* what goes is not kept here */
	assert_int_equal(r.artefacts, 1);
	assert_int_equal(backup_restore(to, to, &r, &e), TF_EEXISTS);
	err_clear(&e);
	assert_ok(dir_remove(words, &e), &e);
	assert_int_equal(backup_restore(to, again, &r, &e), TF_ECORRUPT);
	assert_non_null(strstr(e.text, "words.3"));
	err_clear(&e);
	assert_ok(dir_remove(again, &e), &e);
	unlink(seal);
	assert_int_equal(backup_restore(to, again, &r, &e), TF_EINVALID);
	xfree(words);
	xfree(gone);
	xfree(not_there);
	xfree(seal);
	xfree(to);
	xfree(again);
}

/* ---------------------------------------------------------------- usage */

static uint64_t submit_for(const char *project, const char *how, bool gpu)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	Tf__Demand demand = TF__DEMAND__INIT;
	uint64_t id = 0;

	demand.has_gpus = gpu;
	demand.gpus = gpu;
	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.project = (char *)project;
	spec.demand = &demand;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	return id;
}

static Tf__UsageRow *row_of(Tf__Reply *reply, const char *project, bool running)
{
	for (size_t i = 0; i < reply->usage->n_row; i++)
		if (strcmp(reply->usage->row[i]->project, project) == 0 &&
		    reply->usage->row[i]->running == running)
			return reply->usage->row[i];
	return NULL;
}

static void usage_is_kept(void **state)
{
	Tf__Reply *reply;
	uint64_t id;

	(void)state;
	h.extra[0] = "--gpus";
	h.extra[1] = "1";
	harness_start(&h);
	harness_until(&h, submit_for("vision", "once", false), TF__JOB_STATE__DONE);
	harness_until(&h, submit_for("vision", "done", false), TF__JOB_STATE__DONE);
	id = submit_for(NULL, "wait", true);
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	assert_ok(ask_usage(NULL, NULL, &reply), &e);
	assert_true(row_of(reply, "", true)->gpu_s >= 0);
	assert_int_equal(row_of(reply, "vision", false)->jobs, 2);
	assert_int_equal(row_of(reply, "vision", false)->attempts, 3);
	assert_true(row_of(reply, "vision", false)->cpu_s > 0);
	assert_true(row_of(reply, "vision", false)->gpu_s == 0);
	tf__reply__free_unpacked(reply, NULL);
	clock_sleep_ms(50);
	assert_ok(harness_cancel(h.line, id, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__CANCELLED);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	assert_ok(ask_usage("2026-01", NULL, &reply), &e);
	assert_int_equal(reply->usage->n_row, 2);
	assert_true(row_of(reply, "", false)->gpu_s >= 0.05);
	assert_true(row_of(reply, "", false)->cpu_s >= 0.05);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(ask_usage(NULL, "2020-12", &reply), &e);
	assert_int_equal(reply->usage->n_row, 0);
	tf__reply__free_unpacked(reply, NULL);
	assert_int_equal(ask_usage("2026-13", NULL, NULL), TF_EINVALID);
	assert_non_null(strstr(e.text, "2026-13"));
}

static int sum_months(void *arg, const char *month, const char *user, const char *project,
		      const Tf__UsageRecord *sum)
{
	struct buf *b = arg;

	buf_printf(b, "%s %s %s %.0f/%.0f %llu\n", month, user, project, sum->cpu_s, sum->gpu_s,
		   (unsigned long long)sum->attempts);
	return 0;
}

/* An attempt over the turn of a month counts in both; a clock set back counts as nothing. */
static void months_are_kept_apart(void **state)
{
	static const int64_t turn = 1767225600000; /* 2026-01-01 */
	struct usage_attempt a = { .user = "mia",
				   .project = "p",
				   .from_ms = turn - 10000,
				   .to_ms = turn + 20000,
				   .cpus = 2,
				   .gpus = 1,
				   .ends_job = true };
	struct state *s;
	struct buf b = BUF_INIT;

	(void)state;
	s = own_store_of(h.state);
	assert_ok(usage_add(s, &a, &e), &e);
	a.to_ms = a.from_ms - 5000;
	assert_ok(usage_add(s, &a, &e), &e);
	assert_ok(state_commit(s, &e), &e);
	assert_ok(usage_each(s, NULL, sum_months, &b, &e), &e);
	assert_string_equal(b.data, "2025-12 mia p 20/10 1\n2026-01 mia p 40/20 1\n");
	buf_clear(&b);
	assert_ok(usage_each(s, "2026-01", sum_months, &b, &e), &e);
	assert_string_equal(b.data, "2026-01 mia p 40/20 1\n");
	buf_release(&b);
	state_close(s);
}

/* ---------------------------------------------------------------- reload */

static void configure(const char *path, const char *text)
{
	assert_ok(file_write(path, text, strlen(text), 0600, &e), &e);
}

/* Sends SIGHUP and waits until the log says so. */
static void reload_until(const char *says)
{
	assert_int_equal(kill(h.pid, SIGHUP), 0);
	harness_until_said(&h, says, 1);
}

static void a_signal_reads_the_configuration_again(void **state)
{
	char *config = xasprintf("%s/config.yaml", h.folder);
	uint64_t running;

	(void)state;
	configure(config, "quota: 1G\n");
	h.extra[0] = "--config";
	h.extra[1] = config;
	harness_start(&h);
	running = harness_noop(&h, "wait");
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	assert_ok(harness_upload_open(h.line, 1 << 20, &e), &e);
	configure(config, "quota: 2M\nmap_mib: 32\nlisten: ['tcp://127.0.0.1:1']\n");
	reload_until("option quota: '1G' -> '2M'");
	reload_until("option listen: 0 entries -> 1 entries takes a new daemon");
	assert_int_equal(harness_upload_open(h.line, 2 << 20, &e), TF_ELIMIT);
	configure(config, "quota: 7X\n");
	reload_until("the configuration stays as it was: quota");
	configure(config, "quotas: 1\n");
	reload_until("the configuration stays as it was: ");
	assert_int_equal(harness_upload_open(h.line, 2 << 20, &e), TF_ELIMIT);
	assert_int_equal(harness_state(&h, running), TF__JOB_STATE__RUNNING);
	assert_ok(harness_cancel(h.line, running, &e), &e);
	harness_until(&h, running, TF__JOB_STATE__CANCELLED);
	xfree(config);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(an_old_store_is_taken_over, harness_prepared),
		WITH_HARNESS(damage_is_found, harness_prepared),
		WITH_HARNESS(a_backup_of_a_working_daemon_goes_on, harness_prepared),
		WITH_HARNESS(an_idle_daemon_folds_the_journal, harness_prepared),
		WITH_HARNESS(only_a_whole_backup_is_restored, harness_prepared),
		WITH_HARNESS(usage_is_kept, harness_prepared),
		WITH_HARNESS(a_signal_reads_the_configuration_again, harness_prepared),
		WITH_HARNESS(months_are_kept_apart, harness_prepared),
	};

	return cmocka_run_group_tests_name("keeping", tests, NULL, NULL);
}
