/* SPDX-License-Identifier: Apache-2.0
 * Checks of job specs: a good spec of each kind passes, and each broken field is named. */
#include "tests/test.h"
#include "lib/mem.h"
#include "proto/spec.h"

#include <math.h>
#include <string.h>

static Tf__JobSpec job;
static Tf__IngestSpec ingest;
static Tf__TokenizerSpec tokenizer;
static Tf__VaeSpec vae;
static Tf__TrainSpec train;
static Tf__GenerateSpec generate;
static Tf__EvalSpec eval;
static Tf__NoopSpec noop;
static char *one_path[] = { "/data/cats.tar", "/data/dogs.tar" };
static char *one_upload[] = { "u1" };
static char *one_prompt[] = { "a cat" };

/* A valid spec of the kind, in the statics above. */
static void fresh(Tf__JobKind kind)
{
	tf__job_spec__init(&job);
	tf__ingest_spec__init(&ingest);
	tf__tokenizer_spec__init(&tokenizer);
	tf__vae_spec__init(&vae);
	tf__train_spec__init(&train);
	tf__generate_spec__init(&generate);
	tf__eval_spec__init(&eval);
	tf__noop_spec__init(&noop);
	ingest.dataset = tokenizer.tokenizer = "cats-1.0_b";
	ingest.path = tokenizer.path = one_path;
	ingest.n_path = tokenizer.n_path = 1;
	vae.vae = train.model = generate.model = eval.model = "m";
	vae.experiment = train.experiment = "preset: tiny\n";
	generate.prompt = one_prompt;
	generate.n_prompt = 1;
	eval.task = "loss";
	eval.data = "cats";
	job.kind = kind;
	job.spec_case = job_kind_find(kind)->spec;
	switch (kind) {
	case TF__JOB_KIND__INGEST: job.ingest = &ingest; break;
	case TF__JOB_KIND__TOKENIZER: job.tokenizer = &tokenizer; break;
	case TF__JOB_KIND__VAE: job.vae = &vae; break;
	case TF__JOB_KIND__TRAIN: job.train = &train; break;
	case TF__JOB_KIND__GENERATE: job.generate = &generate; break;
	case TF__JOB_KIND__EVAL: job.eval = &eval; break;
	default: job.noop = &noop;
	}
}

/* Breaks a good spec by the assignment; the refusal names the word. */
#define REFUSED(kind, assignment, word) do { \
	struct err e_ = ERR_INIT; \
	fresh(TF__JOB_KIND__##kind); \
	assert_ok(spec_check(&job, &e_), &e_); \
	assignment; \
	assert_true(spec_check(&job, &e_) < 0); \
	if (!strstr(e_.text, word)) \
		fail_msg("'%s' does not name %s", e_.text, word); \
} while (0)

static void every_kind(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(job_kind_count, 7);
	for (size_t i = 0; i < job_kind_count; i++) {
		fresh(job_kinds[i].kind);
		assert_ok(spec_check(&job, &e), &e);
		assert_ptr_equal(job_kind_named(job_kinds[i].id), &job_kinds[i]);
		job.spec_case = TF__JOB_SPEC__SPEC__NOT_SET;
		assert_int_equal(spec_check(&job, NULL), TF_EINVALID);
	}
	job.kind = (Tf__JobKind)99;
	assert_int_equal(spec_check(&job, NULL), TF_EINVALID);
	assert_string_equal(job_state_name(TF__JOB_STATE__CANCELLED), "cancelled");
	assert_string_equal(job_state_name((Tf__JobState)77), "unknown");
	assert_string_equal(artefact_kind_name(TF__ARTEFACT_KIND__VAE_MODEL), "vae");
}

static void common_fields(void **state)
{
	static uint64_t nothing[1], many[LIMIT_AFTER + 1];

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(many); i++)
		many[i] = 1;
	REFUSED(NOOP, job.name = "a/b", "name");
	REFUSED(NOOP, job.threads = -1, "threads");
	REFUSED(NOOP, job.device = "tpu", "device is 'tpu'");
	REFUSED(NOOP, job.retries = LIMIT_RETRIES + 1, "retries");
	REFUSED(NOOP, (job.after = nothing, job.n_after = 1), "after");
	REFUSED(NOOP, (job.after = many, job.n_after = LIMIT_AFTER + 1), "at most 256");
}

static void imports(void **state)
{
	static char long_path[LIMIT_PATH_BYTES + 2] = "/", *long_paths[] = { long_path };
	static char *relative[] = { "cats.tar" }, *dots[] = { "/data/../etc" };

	(void)state;
	REFUSED(INGEST, ingest.dataset = "../x", "dataset");
	REFUSED(INGEST, ingest.dataset = "", "empty");
	REFUSED(INGEST, ingest.n_path = 0, "no files");
	REFUSED(INGEST, ingest.path = relative, "absolute");
	REFUSED(INGEST, ingest.path = dots, "'..'");
	REFUSED(INGEST, (ingest.upload = one_upload, ingest.n_upload = 1), "both given");
	REFUSED(INGEST, ingest.n_path = LIMIT_SOURCES + 1, "path has 4097");
	REFUSED(INGEST, ingest.size = 0, "size");
	REFUSED(INGEST, ingest.size = LIMIT_INGEST_SIDE + 1, "size");
	memset(long_path + 1, 'a', LIMIT_PATH_BYTES);
	REFUSED(INGEST, ingest.path = long_paths, "1024");
	REFUSED(INGEST, (ingest.has_holdout_percent = 1, ingest.holdout_percent = NAN), "holdout");
	REFUSED(INGEST, (ingest.has_holdout_percent = 1, ingest.holdout_percent = 95), "holdout");
	REFUSED(INGEST, ingest.n_heldout = LIMIT_HELDOUT_NAMES + 1, "heldout");
	REFUSED(INGEST, ingest.vae = "v:x", "vae");
	REFUSED(INGEST, ingest.format = "zip", "format is 'zip', expected one of tsv");
	REFUSED(TOKENIZER, tokenizer.pieces = 0, "pieces");
	REFUSED(TOKENIZER, tokenizer.n_path = 0, "at least one");
	REFUSED(TOKENIZER, (tokenizer.import = 1, tokenizer.n_path = 2), "one file");
}

static void experiments(void **state)
{
	char *large = xcalloc(1, LIMIT_EXPERIMENT_BYTES + 2);

	(void)state;
	memset(large, '#', LIMIT_EXPERIMENT_BYTES + 1);
	REFUSED(TRAIN, train.experiment = large, "experiment");
	REFUSED(TRAIN, train.experiment = "", "empty");
	REFUSED(TRAIN, train.model = "m@ema", "model");
	REFUSED(VAE, vae.experiment = large, "experiment");
	REFUSED(VAE, vae.vae = "-v", "vae");
	xfree(large);
}

static void drawing(void **state)
{
	static ProtobufCBinaryData nothing[1];

	(void)state;
	REFUSED(GENERATE, generate.model = "m:01", "model");
	REFUSED(GENERATE, generate.n_prompt = 0, "neither");
	REFUSED(GENERATE, generate.n_prompt = LIMIT_PROMPTS + 1, "prompt has");
	REFUSED(GENERATE, generate.count = 0, "count");
	REFUSED(GENERATE, generate.count = LIMIT_IMAGES_PER_PROMPT + 1, "count");
	REFUSED(GENERATE, generate.steps = 0, "steps is 0");
	REFUSED(GENERATE, generate.steps = 1001, "steps");
	REFUSED(GENERATE, generate.guidance = -1, "guidance");
	REFUSED(GENERATE, generate.guidance = INFINITY, "guidance");
	REFUSED(GENERATE, generate.temperature = NAN, "temperature");
	REFUSED(GENERATE, generate.top_p = 0, "top_p");
	REFUSED(GENERATE, generate.top_p = NAN, "top_p");
	REFUSED(GENERATE, generate.seed = UINT64_MAX, "seed");
	REFUSED(GENERATE, generate.sampler = "euler", "ddpm|ddim");
	REFUSED(GENERATE, generate.sampler = "ddpm|ddim", "sampler");
	REFUSED(GENERATE, generate.mode = "", "mode");
	REFUSED(GENERATE, generate.max_tokens = 0, "max_tokens");
	REFUSED(GENERATE, generate.clamp = -1, "clamp");
	REFUSED(GENERATE, (generate.image = nothing, generate.n_image = 1), "image 1 is empty");
}

/* As the message that tells a worker of it. */
static void large_jobs(void **state)
{
	static char text[1001], *many[4000];

	(void)state;
	memset(text, 'a', sizeof text - 1);
	text[0] = '/';
	for (size_t i = 0; i < ARRAY_LEN(many); i++)
		many[i] = text;
	REFUSED(GENERATE, (generate.prompt = many, generate.n_prompt = 4000), "limit is 3932160");
	fresh(TF__JOB_KIND__GENERATE);
	generate.prompt = many;
	generate.n_prompt = 3900;
	assert_int_equal(spec_check(&job, NULL), 0);
	REFUSED(INGEST, (ingest.path = many, ingest.n_path = 2000), "limit is 1966080");
}

static void evaluating(void **state)
{
	(void)state;
	REFUSED(EVAL, eval.task = "fid", "task is 'fid'");
	REFUSED(EVAL, eval.data = "", "dataset");
	REFUSED(EVAL, eval.split = "test", "split");
	REFUSED(EVAL, eval.steps = 0, "steps");
	REFUSED(EVAL, eval.guidance = 101, "guidance");
	REFUSED(EVAL, eval.sheet = 1, "sheet");
	REFUSED(EVAL, (eval.task = "draw", eval.dump = 1), "dump");
	REFUSED(EVAL, (eval.has_batch = 1, eval.batch = 0), "batch");
	REFUSED(NOOP, noop.seconds = -1, "seconds");
	REFUSED(NOOP, noop.seconds = NAN, "seconds");
	REFUSED(NOOP, noop.fail = "maybe", "fail");
}

static void names(void **state)
{
	struct artefact_name n;
	char longest[LIMIT_NAME_BYTES + 2];

	(void)state;
	memset(longest, 'n', sizeof longest);
	longest[LIMIT_NAME_BYTES] = 0;
	assert_int_equal(name_check("model", longest, NULL), 0);
	longest[LIMIT_NAME_BYTES] = 'n';
	longest[LIMIT_NAME_BYTES + 1] = 0;
	assert_int_equal(name_check("model", longest, NULL), TF_ELIMIT);
	assert_int_equal(artefact_name_parse("model", longest, &n, NULL), TF_ELIMIT);
	assert_int_equal(artefact_name_parse("model", "m:1200@ema", &n, NULL), 0);
	assert_string_equal(n.name, "m");
	assert_string_equal(n.step, "1200");
	assert_true(n.ema);
	assert_int_equal(artefact_name_parse("model", "m.x:best", &n, NULL), 0);
	assert_string_equal(n.step, "best");
	assert_false(n.ema);
	assert_int_equal(artefact_name_parse("model", "m@ema", &n, NULL), 0);
	assert_string_equal(n.step, "");
	assert_int_equal(artefact_name_parse("model", "m:0", &n, NULL), 0);
	for (const char *const *bad = (const char *const[]){ "", ":1", "m:", "m:first", "m:-1",
			"m:00", "m@", "m@EMA", "m@ema:1", "m:1:2", "m/x", ".m", 
			"m:99999999999999999999",
			"m:1234567890123456789012345678901234567890", NULL }; *bad; bad++)
		if (artefact_name_parse("model", *bad, &n, NULL) == 0)
			fail_msg("'%s' was taken", *bad);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_kind),  cmocka_unit_test(common_fields),
		cmocka_unit_test(imports),     cmocka_unit_test(experiments),
		cmocka_unit_test(drawing),     cmocka_unit_test(evaluating),
		cmocka_unit_test(large_jobs),  cmocka_unit_test(names),
	};

	return cmocka_run_group_tests_name("test_spec", tests, NULL, NULL);
}
