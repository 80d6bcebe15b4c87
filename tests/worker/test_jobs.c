/* SPDX-License-Identifier: Apache-2.0
 * Drawing, writing and evaluating with a toy model: what lies in the results, and what is refused.
 */
#include "config.h"
#include "tests/test.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/safetensors.h"
#include "proto/limits.h"
#include "tests/worker/same.h"
#include "tests/worker/toy.h"
#include "worker/kept.h"

#include <jansson.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct toy toy;

static char *result_path(const char *job, const char *name)
{
	return xasprintf("%s/%s/results/%s", toy.folder, job, name);
}

static json_t *read_json(const char *job, const char *name)
{
	char *path = result_path(job, name);
	json_t *o = json_load_file(path, 0, NULL);

	if (!o)
		fail_msg("%s is no JSON", path);
	xfree(path);
	return o;
}

static double number(const json_t *o, const char *key)
{
	assert_true(json_is_number(json_object_get(o, key)));
	return json_number_value(json_object_get(o, key));
}

static int evaluate(const char *job, const char *task, const char *split, const char *data,
		    bool dump, struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__EvalSpec eval = TF__EVAL_SPEC__INIT;

	spec.kind = TF__JOB_KIND__EVAL;
	spec.spec_case = TF__JOB_SPEC__SPEC_EVAL;
	spec.eval = &eval;
	eval.model = "model";
	eval.data = "toy";
	eval.task = (char *)task;
	eval.split = (char *)split;
	eval.steps = 4;
	eval.sampler = "ddim";
	eval.sheet = true;
	eval.dump = dump;
	return toy_run(&toy, job, &spec, NULL, data, e);
}

static int generate(const char *job, Tf__GenerateSpec *g, struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;

	spec.kind = TF__JOB_KIND__GENERATE;
	spec.spec_case = TF__JOB_SPEC__SPEC_GENERATE;
	spec.generate = g;
	g->model = "model";
	return toy_run(&toy, job, &spec, NULL, toy.data, e);
}

static void losses_agree_with_the_dump(void **state)
{
	char *path = result_path("loss", "dump.safetensors");
	struct err e = ERR_INIT;
	struct st_file f;
	const struct st_tensor *t;
	double sum = 0;
	json_t *report;

	(void)state;
	assert_ok(evaluate("loss", "loss", "heldout", toy.data, true, &e), &e);
	report = read_json("loss", "report.json");
	assert_ok(st_open(path, &f, &e), &e);
	t = st_find(&f, "lm_loss");
	assert_true(t && t->dim[0] == (int64_t)number(report, "targets"));
	for (int64_t i = 0; i < t->dim[0]; i++)
		sum += (double)((const float *)t->data)[i];
	assert_true(sum / (double)t->dim[0] - number(report, "lm") < 1e-5);
	assert_int_equal(st_find(&f, "image_error")->dim[0], TOY_HELDOUT);
	assert_int_equal(st_find(&f, "noise")->dim[3], 4);
	assert_int_equal(st_find(&f, "token")->dim[1], 64);
	st_close(&f);
	json_decref(report);
	xfree(path);
}

/* The same draws give the same figures. */
static void losses_are_the_same_again(void **state)
{
	struct err e = ERR_INIT;
	json_t *one, *two;

	(void)state;
	assert_ok(evaluate("again", "loss", "heldout", toy.data, false, &e), &e);
	one = read_json("loss", "report.json");
	two = read_json("again", "report.json");
	assert_true(number(one, "loss") == number(two, "loss"));
	json_decref(one);
	json_decref(two);
}

static void perplexity_is_of_text(void **state)
{
	struct err e = ERR_INIT;
	json_t *report;

	(void)state;
	assert_ok(evaluate("perplexity", "perplexity", "train", toy.text_data, false, &e), &e);
	report = read_json("perplexity", "report.json");
	assert_true(number(report, "perplexity") > 1 && number(report, "perplexity") < 400);
	assert_true(number(report, "bits_per_byte") > 0);
	json_decref(report);
	assert_int_equal(evaluate("no", "perplexity", "train", toy.data, false, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "perplexity is of text alone"));
	err_clear(&e);
	assert_int_equal(evaluate("no", "speed", "train", toy.data, false, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "task: found 'speed'"));
	err_clear(&e);
	assert_int_equal(evaluate("no", "draw", "train", toy.text_data, false, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "keeps no pixels"));
}

static void pictures_are_named_and_drawn(void **state)
{
	char *sheet = result_path("draw", "sheet.png");
	struct err e = ERR_INIT;
	json_t *report;

	(void)state;
	assert_ok(evaluate("caption", "caption", "train", toy.data, false, &e), &e);
	report = read_json("caption", "report.json");
	assert_int_equal(number(report, "of"), TOY_PICTURES - TOY_HELDOUT);
	assert_true(number(report, "exact") >= 0 && number(report, "cider") >= 0);
	json_decref(report);
	assert_ok(evaluate("draw", "draw", "heldout", toy.data, false, &e), &e);
	report = read_json("draw", "report.json");
	assert_int_equal(number(report, "of"), TOY_HELDOUT);
	assert_int_equal(number(report, "pictures"), TOY_PICTURES);
	assert_true(number(report, "nearest") >= 0 && number(report, "nearest") <= 1);
	assert_true(file_size(sheet) > 1000);
	json_decref(report);
	xfree(sheet);
}

static void drawings_say_how_they_were_made(void **state)
{
	Tf__GenerateSpec g = TF__GENERATE_SPEC__INIT;
	char *prompt[] = { "a red disc of size 3", "a blue disc of size 4" };
	char *path = result_path("generate", "00003.png");
	struct buf png = BUF_INIT;
	struct err e = ERR_INIT;
	json_t *manifest;

	(void)state;
	g.n_prompt = 2;
	g.prompt = prompt;
	g.count = 2;
	g.steps = 3;
	g.seed = 11;
	assert_ok(generate("generate", &g, &e), &e);
	manifest = read_json("generate", "manifest.json");
	assert_int_equal(json_array_size(json_object_get(manifest, "samples")), 4);
	assert_ok(file_read(path, 1 << 20, &png, &e), &e);
	assert_non_null(memmem(png.data, png.len, "a blue disc of size 4", 21));
	assert_non_null(memmem(png.data, png.len, "model:20", 8));
	assert_non_null(memmem(png.data, png.len, "sampler=ddpm steps=3 guidance=3", 31));
	json_decref(manifest);
	buf_release(&png);
	xfree(path);
}

static void text_and_free_and_mistakes(void **state)
{
	Tf__GenerateSpec g = TF__GENERATE_SPEC__INIT;
	char *prompt[] = { "a red" };
	char *path = result_path("text", "texts.jsonl");
	ProtobufCBinaryData junk = { 4, (uint8_t *)"junk" };
	struct err e = ERR_INIT;

	(void)state;
	g.n_prompt = 1;
	g.prompt = prompt;
	g.mode = "text";
	g.max_tokens = 12;
	assert_ok(generate("text", &g, &e), &e);
	assert_true(file_size(path) > 20);
	g.mode = "free";
	g.steps = 2;
	g.temperature = 1;
	assert_ok(generate("free", &g, &e), &e);
	g.mode = "dance";
	assert_int_equal(generate("no", &g, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "mode: found 'dance'"));
	err_clear(&e);
	g.mode = "auto";
	g.n_image = 1;
	g.image = &junk;
	assert_int_equal(generate("no", &g, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "picture 1"));
	xfree(path);
}

/* A picture is drawn the same whatever else is in the job. */
static void a_picture_depends_on_seed_and_index_alone(void **state)
{
	Tf__GenerateSpec g = TF__GENERATE_SPEC__INIT;
	char *prompt[] = { "a red disc of size 3", "a blue disc of size 4", "a green disc" };
	char *a = result_path("three", "00000.png"), *b = result_path("one", "00000.png");
	struct buf x = BUF_INIT, y = BUF_INIT;
	struct err e = ERR_INIT;

	(void)state;
	g.n_prompt = 3;
	g.prompt = prompt;
	g.steps = 3;
	assert_ok(generate("three", &g, &e), &e);
	g.n_prompt = 1;
	assert_ok(generate("one", &g, &e), &e);
	assert_ok(file_read(a, 1 << 20, &x, &e), &e);
	assert_ok(file_read(b, 1 << 20, &y, &e), &e);
	assert_int_equal(x.len, y.len); /* the reference backend computes rows one by one */
	assert_memory_equal(x.data, y.data, x.len);
	buf_release(&x);
	buf_release(&y);
	xfree(a);
	xfree(b);
}

static void draw_many(const char *job, uint64_t seed, uint32_t count)
{
	Tf__GenerateSpec g = TF__GENERATE_SPEC__INIT;
	char *prompt[] = { "a red disc of size 3", "a blue disc of size 4" };
	struct err e = ERR_INIT;

	g.n_prompt = 2;
	g.prompt = prompt;
	g.steps = 3;
	g.seed = seed;
	g.has_count = true;
	g.count = count;
	assert_ok(generate(job, &g, &e), &e);
}

static void draw_some(const char *job, uint64_t seed)
{
	draw_many(job, seed, 1);
}

static bool same_file(const char *job, const char *other, const char *name)
{
	char *a = result_path(job, name), *b = result_path(other, name);
	bool same = same_content(a, b, 1 << 20);

	xfree(a);
	xfree(b);
	return same;
}

/* Whatever a process did before, a job gives the bits of a fresh process. */
static void a_warm_job_gives_the_bits_of_a_cold_one(void **state)
{
	struct kept kept = { 0 };
	struct err e = ERR_INIT;

	(void)state;
	toy.device = "cpu";
	draw_some("cold", 11);
	assert_ok(evaluate("cold-loss", "loss", "heldout", toy.data, false, &e), &e);
	toy.kept = &kept;
	draw_some("warm-1", 11);
	assert_non_null(kept.opened.key);
	draw_some("warm-2", 12);
	draw_some("warm-3", 11);
	assert_ok(evaluate("warm-loss", "loss", "heldout", toy.data, false, &e), &e);
	assert_ok(evaluate("warm-loss-2", "loss", "heldout", toy.data, false, &e), &e);
	assert_int_not_equal(evaluate("no", "speed", "heldout", toy.data, false, &e), 0);
	err_clear(&e);
	draw_some("warm-4", 11);
	toy.kept = NULL;
	toy.device = NULL;
	assert_true(same_file("cold", "warm-1", "00001.png"));
	assert_false(same_file("cold", "warm-2", "00001.png"));
	assert_true(same_file("cold", "warm-3", "00001.png"));
	assert_true(same_file("cold", "warm-4", "00001.png"));
	assert_true(same_file("cold-loss", "warm-loss", "report.json"));
	assert_true(same_file("cold-loss", "warm-loss-2", "report.json"));
	kept_release(&kept);
}

/* The cache of many sequences is memory that others may need. */
static void a_small_sampler_is_kept(void **state)
{
	struct kept kept = { 0 };
	int64_t evaluations;

	(void)state;
	toy.kept = &kept;
	draw_many("most", 1, LIMIT_KEPT_SEQUENCES / 2);
	assert_non_null(kept.opened.sampler);
	evaluations = sampler_evaluations(kept.opened.sampler);
	draw_many("again", 2, LIMIT_KEPT_SEQUENCES / 2);
	assert_non_null(kept.opened.sampler);
	assert_int_equal(sampler_evaluations(kept.opened.sampler), 2 * evaluations);
	draw_many("more", 3, LIMIT_KEPT_SEQUENCES / 2 + 1);
	assert_null(kept.opened.sampler);
	toy.kept = NULL;
	kept_release(&kept);
}

/* Evaluations keep theirs, too, and score the same with a used one. */
static void an_evaluation_keeps_its_sampler(void **state)
{
	static const char *const task[] = { "draw", "caption" };
	static const char *const lines[] = { "drawn.jsonl", "captions.jsonl" };
	struct kept kept = { 0 };
	struct err e = ERR_INIT;

	(void)state;
	for (int i = 0; i < 2; i++) {
		char *name[] = { xasprintf("%s-cold", task[i]), xasprintf("%s-first", task[i]),
				 xasprintf("%s-second", task[i]) };
		int64_t evaluations;

		assert_ok(evaluate(name[0], task[i], "heldout", toy.data, false, &e), &e);
		toy.kept = &kept;
		assert_ok(evaluate(name[1], task[i], "heldout", toy.data, false, &e), &e);
		assert_non_null(kept.opened.sampler);
		evaluations = sampler_evaluations(kept.opened.sampler);
		assert_ok(evaluate(name[2], task[i], "heldout", toy.data, false, &e), &e);
		assert_non_null(kept.opened.sampler);
		assert_int_equal(sampler_evaluations(kept.opened.sampler), 2 * evaluations);
		toy.kept = NULL;
		for (int k = 1; k < 3; k++) {
			assert_true(same_file(name[0], name[k], "report.json"));
			assert_true(same_file(name[0], name[k], lines[i]));
		}
		for (int k = 0; k < 3; k++)
			xfree(name[k]);
	}
	kept_release(&kept);
}

/* The same name and step with other weights is another model. */
static void a_kept_model_is_used_for_its_files_alone(void **state)
{
	static const char *const other[] = { "train.lr=1e-2", "train.seed=5" };
	struct kept kept = { 0 };
	struct err e = ERR_INIT;

	(void)state;
	toy.kept = &kept;
	draw_some("first", 11);
	assert_ok(dir_remove(toy.model, &e), &e);
	assert_ok(dir_make(toy.model, 0700, &e), &e);
	toy.kept = NULL;
	assert_ok(toy_train(&toy, "train-other", toy.model, other, ARRAY_LEN(other), &e), &e);
	draw_some("other-cold", 11);
	toy.kept = &kept;
	draw_some("other", 11);
	toy.kept = NULL;
	assert_true(same_file("other-cold", "other", "00001.png"));
	assert_false(same_file("first", "other", "00001.png"));
	kept_release(&kept);
}

static int set_up(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	if (toy_init(&toy) < 0)
		return -1;
	return toy_train(&toy, "train", toy.model, NULL, 0, &e);
}

static int tear_down(void **state)
{
	(void)state;
	toy_release(&toy);
	return 0;
}

int main(void)
{
	const struct CMUnitTest jobs[] = {
		cmocka_unit_test(losses_agree_with_the_dump),
		cmocka_unit_test(losses_are_the_same_again),
		cmocka_unit_test(perplexity_is_of_text),
		cmocka_unit_test(pictures_are_named_and_drawn),
		cmocka_unit_test(drawings_say_how_they_were_made),
		cmocka_unit_test(text_and_free_and_mistakes),
		cmocka_unit_test(a_picture_depends_on_seed_and_index_alone),
		cmocka_unit_test(a_warm_job_gives_the_bits_of_a_cold_one),
		/* the last: it trains the model anew */
		cmocka_unit_test(a_small_sampler_is_kept),
		cmocka_unit_test(an_evaluation_keeps_its_sampler),
		cmocka_unit_test(a_kept_model_is_used_for_its_files_alone),
	};
	return cmocka_run_group_tests_name("jobs", jobs, set_up, tear_down);
}
