/* SPDX-License-Identifier: Apache-2.0
 * Artefacts in a live daemon: names are reserved and resolved, appear whole or not at all, stay
 * while they are used; and what a failed commit does. */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <xxhash.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct harness h;
static struct err e;
static char *root;

static int prepare(void **state)
{
	(void)state;
	err_clear(&e);
	harness_init(&h);
	root = xasprintf("%s/root", h.folder);
	dir_make(root, 0700, NULL);
	h.extra[0] = "--root";
	h.extra[1] = root;
	return 0;
}

static int start(void **state)
{
	prepare(state);
	harness_start(&h);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	harness_stop(&h);
	xfree(root);
	return 0;
}

static char *source(void)
{
	static char path[200];

	snprintf(path, sizeof path, "%s/source.txt", root);
	file_write(path, "text\n", 5, 0600, NULL);
	return path;
}

static int import(const char *how, const char *name, char *path, uint64_t after, uint64_t *id)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__IngestSpec ingest = TF__INGEST_SPEC__INIT;

	ingest.dataset = (char *)name;
	ingest.n_path = 1;
	ingest.path = &path;
	spec.kind = TF__JOB_KIND__INGEST;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_INGEST;
	spec.ingest = &ingest;
	spec.n_after = after ? 1 : 0;
	spec.after = &after;
	err_clear(&e);
	return harness_submit(h.line, &spec, NULL, false, id, &e);
}

static int train_vae(const char *how, const char *name, const char *data, bool resume, bool dry_run,
		     uint64_t after, uint64_t *id)
{
	char *text = xasprintf("data:\n  - name: %s\ntrain:\n  steps: 100\n", data);
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__VaeSpec vae = TF__VAE_SPEC__INIT;
	int rc;

	vae.vae = (char *)name;
	vae.experiment = text;
	vae.has_resume = vae.resume = resume;
	spec.kind = TF__JOB_KIND__VAE;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_VAE;
	spec.vae = &vae;
	spec.n_after = after ? 1 : 0;
	spec.after = &after;
	err_clear(&e);
	rc = harness_submit(h.line, &spec, NULL, dry_run, id, &e);
	xfree(text);
	return rc;
}

static int show(Tf__ArtefactKind kind, const char *name, Tf__Reply **reply)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactRef m = TF__ARTEFACT_REF__INIT;

	m.kind = kind;
	m.name = (char *)name;
	r.body_case = TF__REQUEST__BODY_ARTEFACT_SHOW;
	r.artefact_show = &m;
	err_clear(&e);
	return harness_call(h.line, &r, reply, &e);
}

static int delete (Tf__ArtefactKind kind, const char *name)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactRef m = TF__ARTEFACT_REF__INIT;

	m.kind = kind;
	m.name = (char *)name;
	r.body_case = TF__REQUEST__BODY_ARTEFACT_DELETE;
	r.artefact_delete = &m;
	err_clear(&e);
	return harness_call(h.line, &r, NULL, &e);
}

static void until_gone(const char *rel)
{
	for (int i = 0; i < 6000 && harness_exists(&h, rel); i++)
		clock_sleep_ms(10);
	assert_false(harness_exists(&h, rel));
}

static void a_dataset_appears_whole(void **state)
{
	Tf__Reply *reply = NULL;
	uint64_t id;

	(void)state;
	assert_ok(import("make", "emoji", source(), 0, &id), &e);
	assert_int_equal(import("make", "emoji", source(), 0, NULL), TF_EEXISTS);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	assert_true(harness_exists(&h, "data/emoji.1/content"));
	assert_false(harness_exists(&h, "data/emoji.1.making"));
	assert_ok(show(TF__ARTEFACT_KIND__DATASET, "emoji", &reply), &e);
	assert_string_equal(reply->artefacts->artefact[0]->state, "ready");
	assert_string_equal(reply->artefacts->artefact[0]->hash,
			    "00112233445566778899aabbccddeeff");
	assert_int_equal(reply->artefacts->artefact[0]->bytes, 8);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(delete (TF__ARTEFACT_KIND__DATASET, "emoji"), &e);
	until_gone("data/emoji.1");
	assert_int_equal(show(TF__ARTEFACT_KIND__DATASET, "emoji", NULL), TF_ENOTFOUND);
}

static void half_a_dataset_leaves_nothing(void **state)
{
	uint64_t id;

	(void)state;
	assert_ok(import("half", "emoji", source(), 0, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	until_gone("data/emoji.1.making");
	assert_int_equal(show(TF__ARTEFACT_KIND__DATASET, "emoji", NULL), TF_ENOTFOUND);
	assert_ok(import("make", "emoji", source(), 0, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__DONE);
}

/* The folder of a removal that takes long must not become that of the next attempt. */
static void nothing_is_made_in_what_is_removed(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;
	char rel[40], *path;
	uint64_t id;

	(void)state;
	assert_ok(import("half", "pairs", source(), 0, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	snprintf(rel, sizeof rel, "data/pairs.%llu.making", (unsigned long long)id);
	until_gone(rel);
	path = harness_path(&h, "%s", rel);
	assert_ok(dir_make(path, 0700, &e), &e);
	m.n_job = 1;
	m.job = &id;
	r.body_case = TF__REQUEST__BODY_JOB_REQUEUE;
	r.job_requeue = &m;
	assert_int_equal(harness_call(h.line, &r, NULL, &e), TF_EBUSY);
	assert_non_null(strstr(e.text, "is still being removed"));
	assert_ok(dir_remove(path, NULL), &e);
	err_clear(&e);
	assert_ok(harness_call(h.line, &r, NULL, &e), &e);
	xfree(path);
}

static void paths_outside_the_roots_are_refused(void **state)
{
	char link[220];

	(void)state;
	assert_int_equal(import("make", "a", (char *)"/etc/passwd", 0, NULL), TF_EREFUSED);
	snprintf(link, sizeof link, "%s/../root/../../etc", root);
	assert_int_equal(import("make", "a", link, 0, NULL) < 0, true);
	snprintf(link, sizeof link, "%s/link", root);
	assert_int_equal(symlink("/etc/passwd", link), 0);
	assert_int_equal(import("make", "a", link, 0, NULL), TF_EREFUSED);
}

static void what_is_used_stays(void **state)
{
	uint64_t data, vae;

	(void)state;
	assert_ok(import("make", "emoji", source(), 0, &data), &e);
	assert_int_equal(delete (TF__ARTEFACT_KIND__DATASET, "emoji"), TF_EBUSY);
	harness_until(&h, data, TF__JOB_STATE__DONE);
	assert_ok(train_vae("wait", "v", "emoji", false, false, 0, &vae), &e);
	assert_int_equal(delete (TF__ARTEFACT_KIND__DATASET, "emoji"), TF_EBUSY);
	assert_int_equal(delete (TF__ARTEFACT_KIND__VAE_MODEL, "v"), TF_EBUSY);
	assert_non_null(strstr(e.text, "made by job 2"));
	harness_until(&h, vae, TF__JOB_STATE__RUNNING);
	assert_ok(harness_cancel(h.line, vae, &e), &e);
	harness_until(&h, vae, TF__JOB_STATE__CANCELLED);
	until_gone("vaes/v.2"); /* it had no checkpoint */
	assert_ok(delete (TF__ARTEFACT_KIND__DATASET, "emoji"), &e);
}

static void checkpoints_stay_and_are_resumed(void **state)
{
	Tf__Reply *reply = NULL;
	uint64_t id;

	(void)state;
	assert_ok(import("make", "emoji", source(), 0, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	assert_int_equal(train_vae("steps", "v", "emoji", true, false, 0, NULL), TF_ENOTFOUND);
	assert_ok(train_vae("steps", "v", "emoji", false, false, 0, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	assert_ok(show(TF__ARTEFACT_KIND__VAE_MODEL, "v:latest", &reply), &e);
	assert_string_equal(reply->artefacts->artefact[0]->state, "stopped");
	tf__reply__free_unpacked(reply, NULL);
	assert_true(harness_exists(&h, "vaes/v.2/step-00000100"));
	assert_int_equal(train_vae("make", "v", "emoji", false, false, 0, NULL), TF_EEXISTS);
	assert_non_null(strstr(e.text, "--resume"));
	assert_ok(train_vae("make", "v", "emoji", true, false, 0, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	assert_true(harness_exists(&h, "vaes/v.2/content"));
	assert_int_equal(delete (TF__ARTEFACT_KIND__DATASET, "emoji"), TF_EBUSY);
	assert_non_null(strstr(e.text, "v.2"));
}

static void names_are_settled_at_the_submit(void **state)
{
	uint64_t data, vae;

	(void)state;
	assert_int_equal(train_vae("make", "v", "emoji", false, false, 0, NULL), TF_ENOTFOUND);
	assert_string_equal(e.text, "no dataset called 'emoji'");
	assert_ok(import("make", "emoji", source(), 0, &data), &e);
	if (train_vae("make", "v", "emoji", false, false, 0, NULL) != TF_ESTATE)
		harness_until(&h, data, TF__JOB_STATE__DONE); /* it was quick */
	else
		assert_non_null(strstr(e.text, "--after 1"));
	assert_ok(train_vae("make", "w", "emoji", false, false, data, &vae), &e);
	harness_until(&h, vae, TF__JOB_STATE__DONE);
	assert_ok(train_vae("make", "x", "emoji", false, true, 0, &vae), &e);
	assert_int_equal(vae, 0);
	assert_int_equal(show(TF__ARTEFACT_KIND__VAE_MODEL, "x", NULL), TF_ENOTFOUND);
	assert_int_equal(train_vae("make", "x", "emoji\nbad: 1", false, true, 0, NULL),
			 TF_EINVALID);
	assert_non_null(strstr(e.text, "bad"));
}

static int train(const char *how, const char *name, const char *data, uint64_t *id)
{
	char *text = xasprintf("preset: tiny\ndata:\n  - name: %s\n", data);
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__TrainSpec train = TF__TRAIN_SPEC__INIT;
	int rc;

	train.model = (char *)name;
	train.experiment = text;
	spec.kind = TF__JOB_KIND__TRAIN;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_TRAIN;
	spec.train = &train;
	err_clear(&e);
	rc = harness_submit(h.line, &spec, NULL, false, id, &e);
	xfree(text);
	return rc;
}

static int evaluate(const char *task, const char *model, const char *data, uint64_t *id)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__EvalSpec eval = TF__EVAL_SPEC__INIT;

	eval.task = (char *)task;
	eval.model = (char *)model;
	eval.data = (char *)data;
	spec.kind = TF__JOB_KIND__EVAL;
	spec.spec_case = TF__JOB_SPEC__SPEC_EVAL;
	spec.eval = &eval;
	err_clear(&e);
	return harness_submit(h.line, &spec, NULL, true, id, &e);
}

static void a_task_of_other_data_is_refused(void **state)
{
	uint64_t id;

	(void)state;
	assert_ok(import("make", "emoji", source(), 0, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	assert_ok(train("steps", "m", "emoji", &id), &e);
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	assert_int_equal(evaluate("perplexity", "m", "emoji", &id), TF_EINVALID);
	assert_string_equal(e.text,
			    "task perplexity: dataset 'emoji' holds images, expected text");
	assert_int_equal(evaluate("draw", "m", "emoji", &id), TF_EINVALID);
	assert_string_equal(e.text, "task draw: dataset 'emoji' holds images, expected pairs");
}

/* The daemon dies just after the rename, before the commit: the next one finds the work done. */
static void a_crash_within_publishing_is_mended(void **state)
{
	uint64_t id;

	(void)state;
	h.fault = "published:1!";
	harness_start(&h);
	assert_ok(import("make", "emoji", source(), 0, &id), &e);
	for (int i = 0; i < 6000 && kill(h.pid, 0) == 0 && !harness_exists(&h, "data/emoji.1"); i++)
		clock_sleep_ms(10);
	h.fault = NULL;
	harness_kill(&h, SIGKILL);
	assert_true(harness_exists(&h, "data/emoji.1/content"));
	harness_start(&h);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	assert_ok(show(TF__ARTEFACT_KIND__DATASET, "emoji", NULL), &e);
}

static void folders_nobody_names_are_removed(void **state)
{
	char *orphan = harness_path(&h, "models/ghost.7/step-00000001");

	(void)state;
	harness_kill(&h, SIGTERM);
	dir_make(orphan, 0700, NULL);
	harness_start(&h);
	until_gone("models/ghost.7");
	xfree(orphan);
}

/* ---------------------------------------------------------------- failing commits */

static void a_failed_commit_is_never_a_yes(void **state)
{
	static const uint8_t token[16] = "one token, twice";
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	uint64_t id = 0;

	(void)state;
	h.fault = "store-commit:4"; /* 1: tables, 2: start; 3: the first submit, or its start */
	harness_start(&h);
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	for (int i = 0; i < 3; i++) {
		uint8_t own[16] = { (uint8_t)i };
		int rc = harness_submit(h.line, &spec, own, false, &id, &e);

		assert_true(rc == 0 || rc == TF_EUNKNOWN);
		err_clear(&e);
	}
	for (int i = 0; i < 6000; i++) {
		int rc = harness_submit(h.line, &spec, token, false, &id, &e);

		err_clear(&e);
		if (rc == 0)
			break;
		assert_int_equal(rc, TF_EUNKNOWN);
		clock_sleep_ms(10);
	}
	harness_until(&h, id, TF__JOB_STATE__DONE);
}

static void a_start_that_fails_is_tried_again(void **state)
{
	uint64_t id;
	uint32_t attempt;

	(void)state;
	h.fault = "spawn:2,pidfd:2"; /* the first is the process that looks after the GPUs */
	harness_start(&h);
	for (int i = 0; i < 3; i++) { /* a slot that was not given back would be missing */
		id = harness_noop(&h, "done");
		harness_until(&h, id, TF__JOB_STATE__DONE);
		xfree_(harness_reason(&h, id, &attempt));
		assert_int_equal(attempt, 1);
	}
	assert_int_equal(harness_said(&h, "cannot be started"), 2);
}

/* One submit that may be cut off by the daemon's death; whether it was answered does not matter. */
static void submit_maybe(struct harness *own, const Tf__JobSpec *spec, const uint8_t token[16])
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Submit m = TF__SUBMIT__INIT;
	Tf__Reply *reply = NULL;

	m.token.len = 16;
	m.token.data = (uint8_t *)token;
	m.spec = (Tf__JobSpec *)spec;
	r.body_case = TF__REQUEST__BODY_SUBMIT;
	r.submit = &m;
	connection_call(own->line, &r, 300, &reply, NULL);
	if (reply)
		tf__reply__free_unpacked(reply, NULL);
	clock_sleep_ms(100);
}

static void die_and_go_on(const char *fault)
{
	static const uint8_t token[16] = "kill me anywhere";
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	struct harness own;
	uint64_t id = 0;
	char *log;
	int ends = 0;

	harness_init(&own);
	own.fault = fault;
	harness_start(&own);
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	submit_maybe(&own, &spec, token);
	harness_kill(&own, SIGKILL);
	own.fault = NULL;
	harness_start(&own);
	err_clear(&e);
	assert_ok(harness_submit(own.line, &spec, token, false, &id, &e), &e);
	assert_int_equal(id, 1);
	harness_until(&own, id, TF__JOB_STATE__DONE);
	log = harness_log(&own, id);
	for (const char *p = log; (p = strstr(p, "end")) != NULL; p++)
		ends++;
	assert_int_equal(ends, 1);
	xfree(log);
	harness_stop(&own);
}

/* kill -9 at every step of a job's life: it is done in the end, and was done once. */
static void kill_at_each_step(void **state)
{
	static const char *const faults[] = {
		"store-commit:3!",    "store-committed:3!", "spawned:1!",      "store-commit:4!",
		"store-committed:4!", "start-committed:1!", "store-commit:5!", "store-committed:5!",
		"store-commit:6!",    "store-committed:6!",
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(faults); i++)
		die_and_go_on(faults[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_dataset_appears_whole, start, stop),
		cmocka_unit_test_setup_teardown(half_a_dataset_leaves_nothing, start, stop),
		cmocka_unit_test_setup_teardown(nothing_is_made_in_what_is_removed, start, stop),
		cmocka_unit_test_setup_teardown(paths_outside_the_roots_are_refused, start, stop),
		cmocka_unit_test_setup_teardown(what_is_used_stays, start, stop),
		cmocka_unit_test_setup_teardown(checkpoints_stay_and_are_resumed, start, stop),
		cmocka_unit_test_setup_teardown(names_are_settled_at_the_submit, start, stop),
		cmocka_unit_test_setup_teardown(a_task_of_other_data_is_refused, start, stop),
		cmocka_unit_test_setup_teardown(a_crash_within_publishing_is_mended, prepare, stop),
		cmocka_unit_test_setup_teardown(folders_nobody_names_are_removed, start, stop),
		cmocka_unit_test_setup_teardown(a_failed_commit_is_never_a_yes, prepare, stop),
		cmocka_unit_test_setup_teardown(a_start_that_fails_is_tried_again, prepare, stop),
		cmocka_unit_test(kill_at_each_step),
	};

	return cmocka_run_group_tests_name("artefacts", tests, NULL, NULL);
}
