/* SPDX-License-Identifier: Apache-2.0
 * What the retention options no longer keep goes, and nothing else; who has used up their disk gets
 * no more. */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "store/catalogue.h"
#include "store/checkpoints.h"
#include "store/jobs.h"
#include "tests/daemon/own_store.h"

#include <math.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DAY_MS (24 * 3600 * 1000LL)

static struct harness h;
static struct err e;

static void close_store(struct state *s)
{
	assert_ok(state_commit(s, &e), &e);
	state_close(s);
}

/* The job was submitted, and ended if it did, so many days earlier than it was. */
static void make_older(struct state *s, uint64_t id, int days)
{
	Tf__JobRecord *r = NULL;

	assert_ok(job_get(s, id, &r, &e), &e);
	r->job->submitted -= days * DAY_MS;
	if (r->job->has_ended)
		r->job->ended -= days * DAY_MS;
	assert_ok(job_put(s, r, &e), &e);
	record_free(r);
}

static Tf__Reply *gc(bool dry_run, const char *from)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Gc m = TF__GC__INIT;
	Tf__Reply *reply = NULL;

	m.has_dry_run = m.dry_run = dry_run;
	m.from = (char *)from;
	r.body_case = TF__REQUEST__BODY_GC;
	r.gc = &m;
	err_clear(&e);
	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	return reply;
}

/* Asks and compares the paths, which are sorted by kind and age. */
static void expect_gc(bool dry_run, size_t count, const char *const *path)
{
	Tf__Reply *reply = gc(dry_run, NULL);
	uint64_t bytes = 0;

	assert_null(reply->gc->next);
	for (size_t i = 0; i < count && i < reply->gc->n_item; i++)
		assert_string_equal(reply->gc->item[i]->path, path[i]);
	assert_int_equal(reply->gc->n_item, count);
	for (size_t i = 0; i < reply->gc->n_item; i++)
		bytes += reply->gc->item[i]->bytes;
	assert_int_equal(reply->gc->bytes, bytes);
	tf__reply__free_unpacked(reply, NULL);
}

static void until_gone(const char *rel)
{
	for (int i = 0; i < 6000 && harness_exists(&h, rel); i++)
		clock_sleep_ms(10);
	assert_false(harness_exists(&h, rel));
}

/* Whether the folder is empty in the end. */
static void until_none(const char *rel)
{
	char *path = harness_path(&h, "%s", rel);

	for (int i = 0; i < 6000 && rmdir(path) < 0; i++)
		clock_sleep_ms(10);
	assert_false(file_exists(path));
	xfree(path);
}

static void put_artefact(struct state *s, Tf__ArtefactKind kind, const char *name, uint64_t bytes)
{
	struct passwd *pw = getpwuid(geteuid());
	Tf__Artefact a = TF__ARTEFACT__INIT;
	char id[64];

	snprintf(id, sizeof id, "%s.900", name);
	a.kind = kind;
	a.name = (char *)name;
	a.id = id;
	a.state = (char *)ARTEFACT_READY;
	a.has_bytes = true;
	a.bytes = bytes;
	a.user = pw ? pw->pw_name : (char *)"owner";
	assert_ok(artefact_put(s, &a, &e), &e);
}

/* A model with checkpoints 1 to 4; the second has the best score. */
static void put_model(struct state *s, const char *name)
{
	char *folder = harness_path(&h, "models/%s.900", name), *path = NULL;

	put_artefact(s, TF__ARTEFACT_KIND__MODEL, name, 1000);
	assert_ok(dir_make(folder, 0700, &e), &e);
	for (uint64_t step = 1; step <= 4; step++) {
		assert_ok(checkpoint_begin(folder, step, &path, &e), &e);
		assert_ok(checkpoint_commit(folder, step, path, step == 2 ? 0.5 : 1.0, &e), &e);
		xfree(path);
	}
	xfree(folder);
}

static void old_files_go(void **state)
{
	static const char *const old[] = { "models/free.900/step-00000001",
					   "models/free.900/step-00000003", "jobs/1" };
	Tf__JobRecord *r = NULL;
	struct state *s;
	uint64_t running;

	(void)state;
	h.extra[0] = "--keep-logs-days";
	h.extra[1] = "30";
	h.extra[2] = "--keep-checkpoints";
	h.extra[3] = "1";
	harness_start(&h);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	running = harness_noop(&h, "wait");
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	expect_gc(true, 0, NULL);
	harness_kill(&h, SIGTERM);
	s = own_store_of(h.state);
	make_older(s, 1, 31);
	make_older(s, 2, 29);
	make_older(s, running, 90);
	put_model(s, "free");
	put_model(s, "used");
	assert_ok(use_put(s, "used.900", 'j', "3", &e), &e);
	close_store(s);
	harness_start(&h);
	expect_gc(true, 3, old);
	assert_true(harness_exists(&h, old[0]) && harness_exists(&h, old[2]));
	expect_gc(false, 3, old);
	for (size_t i = 0; i < ARRAY_LEN(old); i++)
		assert_false(harness_exists(&h, old[i])); /* by now: the job may be put back */
	expect_gc(false, 0, NULL);
	assert_true(harness_exists(&h, "models/free.900/step-00000002/score")); /* the best */
	assert_true(harness_exists(&h, "models/free.900/step-00000004/score"));
	assert_true(harness_exists(&h, "models/used.900/step-00000001/score"));
	assert_true(harness_exists(&h, "jobs/2/log") && harness_exists(&h, "jobs/3/log"));
	assert_int_equal(harness_state(&h, 1), TF__JOB_STATE__DONE); /* its record stays */
	assert_ok(harness_cancel(h.line, running, &e), &e);
	harness_until(&h, running, TF__JOB_STATE__CANCELLED);
	harness_kill(&h, SIGTERM);
	s = own_store_of(h.state);
	assert_ok(job_get(s, 1, &r, &e), &e);
	assert_int_equal(r->bytes, 0);
	record_free(r);
	assert_ok(job_get(s, 2, &r, &e), &e);
	assert_true(r->bytes > 0);
	record_free(r);
	state_close(s);
}

static void put_file(const char *folder, const char *name)
{
	char *path = harness_path(&h, "%s", folder), *file = xasprintf("%s/%s", path, name);

	assert_ok(dir_make(path, 0700, &e), &e);
	assert_ok(file_write(file, "x", 1, 0600, &e), &e);
	xfree(file);
	xfree(path);
}

/* A job's folder goes with the last thing that is kept in it, and not before. */
static void a_folder_goes_with_the_last_of_it(void **state)
{
	static const char *const old[] = { "jobs/1/log", "jobs/2", "jobs/3/log" };
	static const char *const older[] = { "jobs/1", "jobs/3/metrics.jsonl" };
	struct state *s;

	(void)state;
	h.extra[0] = "--keep-logs-days";
	h.extra[1] = "30";
	h.extra[2] = "--keep-results-days";
	h.extra[3] = "60";
	harness_start(&h);
	for (int i = 0; i < 3; i++)
		harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	harness_kill(&h, SIGTERM);
	put_file("jobs/1/results", "picture.png");
	put_file("jobs/3/results", "picture.png");
	put_file("removed/1-1/results", "left.png"); /* by a daemon that was killed */
	s = own_store_of(h.state);
	for (uint64_t id = 1; id <= 3; id++)
		make_older(s, id, 31);
	close_store(s);
	harness_start(&h);
	until_gone("removed/1-1");
	expect_gc(true, 3, old);
	expect_gc(false, 3, old);
	assert_true(harness_exists(&h, "jobs/1/outcome-1.pb"));
	assert_true(harness_exists(&h, "jobs/1/results/picture.png"));
	assert_false(harness_exists(&h, "jobs/2"));
	expect_gc(false, 0, NULL);
	harness_kill(&h, SIGTERM);
	put_file("jobs/3", "metrics.jsonl");
	s = own_store_of(h.state);
	make_older(s, 1, 30);
	close_store(s);
	harness_start(&h);
	expect_gc(false, 2, older);
	assert_false(harness_exists(&h, "jobs/1"));
	assert_true(harness_exists(&h, "jobs/3/results/picture.png"));
	until_none("removed");
}

/* What lies beyond the bound of an answer comes in the next. */
static void a_pass_comes_in_pages(void **state)
{
	static const char *const old[] = { "jobs/1", "jobs/2", "jobs/3" };
	char *next = NULL;
	struct state *s;
	size_t seen = 0, pages = 0;

	(void)state;
	h.extra[0] = "--keep-logs-days";
	h.extra[1] = "30";
	h.bound = "gc-listed:9";
	harness_start(&h);
	for (int i = 0; i < 3; i++)
		harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	harness_kill(&h, SIGTERM);
	s = own_store_of(h.state);
	for (uint64_t id = 1; id <= 3; id++)
		make_older(s, id, 31);
	close_store(s);
	harness_start(&h);
	do {
		Tf__Reply *reply = gc(true, next);

		assert_true(reply->gc->n_item <= 2);
		for (size_t i = 0; i < reply->gc->n_item; i++)
			assert_string_equal(reply->gc->item[i]->path, old[seen++]);
		xfree(next);
		next = reply->gc->next ? xstrdup(reply->gc->next) : NULL;
		tf__reply__free_unpacked(reply, NULL);
		pages++;
	} while (next);
	assert_int_equal(seen, 3);
	assert_true(pages >= 2);
}

/* ---------------------------------------------------------------- quotas */

static void a_quota_is_kept(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactRef ref = TF__ARTEFACT_REF__INIT;
	struct state *s = own_store_of(h.state);

	(void)state;
	put_artefact(s, TF__ARTEFACT_KIND__TOKENIZER_MODEL, "big", 3u << 20);
	close_store(s);
	h.extra[0] = "--quota";
	h.extra[1] = "4M";
	harness_start(&h);
	assert_ok(harness_submit_noop(h.line, "done", NULL, NULL, &e), &e);
	assert_int_equal(harness_upload_open(h.line, 2u << 20, &e), TF_ELIMIT);
	assert_non_null(strstr(e.text, "the quota is 4M"));
	assert_ok(harness_upload_open(h.line, 500, &e), &e);
	harness_kill(&h, SIGTERM);
	h.extra[1] = "2M";
	harness_start(&h);
	assert_int_equal(harness_submit_noop(h.line, "done", NULL, NULL, &e), TF_ELIMIT);
	assert_non_null(strstr(e.text, "would use 3M of disk"));
	ref.kind = TF__ARTEFACT_KIND__TOKENIZER_MODEL;
	ref.name = (char *)"big";
	r.body_case = TF__REQUEST__BODY_ARTEFACT_DELETE;
	r.artefact_delete = &ref;
	err_clear(&e);
	assert_ok(harness_call(h.line, &r, NULL, &e), &e);
	for (int i = 0; i < 3000 && harness_submit_noop(h.line, "done", NULL, NULL, &e) < 0; i++)
		clock_sleep_ms(20);
	assert_int_equal(e.code, 0);
}

/* The folder of an ended job counts for its user, until it goes. */
static void ended_jobs_count(void **state)
{
	struct passwd *pw = getpwuid(geteuid());
	char *user = xasprintf("%s 10", pw ? pw->pw_name : "owner"), text[2000];

	(void)state;
	h.extra[0] = "--user-quota";
	h.extra[1] = user;
	harness_start(&h);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	for (int i = 0; i < 3000 && harness_submit_noop(h.line, "done", NULL, NULL, &e) == 0; i++)
		clock_sleep_ms(20);
	assert_int_equal(e.code, TF_ELIMIT); /* its log has more than ten bytes */
	harness_kill(&h, SIGTERM);
	h.extra[1] = "nonsense";
	assert_int_equal(harness_start_fails(&h, text, sizeof text), 1);
	assert_non_null(strstr(text, "NAME SIZE"));
	xfree(user);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(old_files_go, harness_prepared),
		WITH_HARNESS(a_folder_goes_with_the_last_of_it, harness_prepared),
		WITH_HARNESS(a_pass_comes_in_pages, harness_prepared),
		WITH_HARNESS(a_quota_is_kept, harness_prepared),
		WITH_HARNESS(ended_jobs_count, harness_prepared),
	};

	return cmocka_run_group_tests_name("retention", tests, NULL, NULL);
}
