/* SPDX-License-Identifier: Apache-2.0
 * Experiment files: presets, overrides, checks across settings, and text that stands for itself.
 */
#include "tests/test.h"
#include "lib/mem.h"
#include "proto/experiment.h"

#include <string.h>

static void every_preset_is_valid(void **state)
{
	int count = 0;

	(void)state;
	for (const struct experiment_preset *p = experiment_presets; p->name; p++, count++) {
		char *text = xasprintf("preset: %s\ndata: [{name: emoji}]\n", p->name);
		enum experiment_kind kind;
		struct buf out = BUF_INIT;
		struct err e = ERR_INIT;
		bool names_data;

		assert_ok(experiment_detect("x", text, strlen(text), &kind, &names_data, &e), &e);
		assert_true(names_data);
		assert_ok(experiment_resolve(kind, "x", text, strlen(text), NULL, 0, &out, &e),
			  &e);
		assert_int_equal(kind == EXPERIMENT_VAE, strncmp(p->name, "vae-", 4) == 0);
		assert_ok(experiment_detect(p->name, p->text, strlen(p->text), &kind, &names_data,
					    &e),
			  &e);
		assert_false(names_data);
		buf_release(&out);
		xfree(text);
	}
	assert_int_equal(count, 8);
}

static void settings_arrive(void **state)
{
	static const char text[] =
		"preset: tiny\nmodel: {layers: 3}\ndata:\n- {name: a, weight: 2}\n"
		"- name: b\nsample: {prompts: [a fox, \"12\"]}\n";
	struct train_experiment x;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(train_experiment_read("x.yaml", text, strlen(text), &x, &e), &e);
	assert_int_equal(x.model.layers, 3);
	assert_int_equal(x.model.dim, 192);
	assert_int_equal(x.images.noise_limit, 500);
	assert_true(x.train.lambda == 5 && x.images.caption_first == 0.8);
	assert_int_equal(x.model.attention, ATTENTION_IMAGE);
	assert_int_equal(x.train.nan, NAN_STOP);
	assert_int_equal(x.data_count, 2);
	assert_string_equal(x.data[1].name, "b");
	assert_true(x.data[0].weight == 2 && x.data[1].weight == 1);
	assert_int_equal(x.prompt_count, 2);
	assert_string_equal(x.prompt[1], "12");
	train_experiment_release(&x);
}

/* Resolved text reads to the same, and resolving it again changes nothing. */
static void resolved_text_stands_for_itself(void **state)
{
	static const char text[] = "preset: tiny\nsample: {prompts: ['a: b']}\n";
	static const char *const set[] = { "train.lr=2e-3", "data.0.name=emoji",
					   "train.steps=3k" };
	struct buf one = BUF_INIT, two = BUF_INIT;
	struct train_experiment x;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(experiment_resolve(EXPERIMENT_TRAIN, "x", text, strlen(text), set, 3, &one, &e),
		  &e);
	assert_ok(experiment_resolve(EXPERIMENT_TRAIN, "y", one.data, one.len, NULL, 0, &two, &e),
		  &e);
	assert_string_equal(one.data, two.data);
	assert_null(strstr(one.data, "preset"));
	assert_ok(train_experiment_read("y", two.data, two.len, &x, &e), &e);
	assert_true(x.train.lr == 2e-3);
	assert_int_equal(x.train.steps, 3000);
	assert_string_equal(x.prompt[0], "a: b");
	train_experiment_release(&x);
	buf_release(&one);
	buf_release(&two);
}

#define DATA "data: [{name: a}]\n"

static const struct {
	enum experiment_kind kind;
	const char *text, *complaint;
} mistakes[] = {
	{ EXPERIMENT_TRAIN, "preset: tiny\nmodel:\n  heads: 7\n" DATA,
	  "x.yaml: model.dim: found 192, expected a multiple of heads (7)" },
	{ EXPERIMENT_TRAIN, "preset: tiny\nmodel:\n  dim: 18\n" DATA,
	  "model.heads: 6 heads of a width of 18 have 3 each, expected an even number" },
	{ EXPERIMENT_TRAIN, "preset: tiny\nmodel:\n  patch: 3\n" DATA,
	  "x.yaml:3: model.patch: found 3, expected 1, 2, 4 or 8" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ntrain:\n  fp8: yes\n" DATA,
	  "x.yaml:3: train.fp8: found 'yes', expected one of off, on" },
	{ EXPERIMENT_TRAIN, "preset: tiny\nmodel:\n  ff: 520\ntrain: {fp8: on}\n" DATA,
	  "x.yaml:3: model.ff: found 520, expected a multiple of 16 with train.fp8: on" },
	{ EXPERIMENT_TRAIN, "preset: tiny\nmodel: {dim: 168}\ntrain: {fp8: on}\n" DATA,
	  "model.dim: found 168, expected a multiple of 16" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ntrain: {fp8: on, sequence: 250}\n" DATA,
	  "train.sequence: found 250, expected a multiple of 16" },
	{ EXPERIMENT_TRAIN, "preset: tiny\nmodel: {precision: f32}\ntrain: {fp8: on}\n" DATA,
	  "model.precision: found f32, expected auto or bf16 with train.fp8: on" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ntrain:\n  warmup: 2400\n" DATA,
	  "x.yaml:3: train.warmup: found 2400, expected fewer than steps (2400)" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ntrain:\n  micro_batch: 2\n" DATA,
	  "train.micro_batch: found 2, expected a divisor of batch (7)" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ntrain:\n  lr_end: 1\n" DATA,
	  "train.lr_end: found 1, expected at most lr (0.0015)" },
	{ EXPERIMENT_TRAIN, "preset: tiny\n", "x.yaml: data: expected at least one dataset" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ndata: [a]\n", "x.yaml:2: data.0: expected a dataset" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ndata: [{name: a}, {name: a}]\n",
	  "data: a is given twice" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ndata: [{name: a, weigth: 1}]\n",
	  "'weigth': a dataset has" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ndata: [{name: a, weight: 0}]\n",
	  "data.0.weight: found '0'" },
	{ EXPERIMENT_TRAIN, "preset: tiny\nsample: {prompts: [[a]]}\n" DATA,
	  "sample.prompts: expected a text" },
	{ EXPERIMENT_TRAIN, "preset: small\n" DATA,
	  "preset: found 'small', expected one of tiny, 0.16b" },
	{ EXPERIMENT_TRAIN, "preset: vae-tiny\n" DATA, "vae-tiny is a preset for autoencoders" },
	{ EXPERIMENT_VAE, "preset: tiny\n" DATA, "tiny is a preset for training runs" },
	{ EXPERIMENT_TRAIN, "preset: tiny\ntrain: {lamda: 5}\n" DATA,
	  "did you mean train.lambda?" },
	{ EXPERIMENT_TRAIN, DATA, "x.yaml: model.layers is missing: transformer blocks" },
	{ EXPERIMENT_VAE, "preset: vae-tiny\nmodel:\n  downsample: 12\n" DATA,
	  "expected 4, 8 or 16" },
	{ EXPERIMENT_VAE, "preset: vae-tiny\nmodel:\n  downsample: 16\n" DATA,
	  "3 levels make latents 8 times smaller, downsample says 16" },
	{ EXPERIMENT_VAE, "preset: vae-tiny\nmodel:\n  channels: [16, 32, 60]\n" DATA,
	  "x.yaml:3: model.channels: found 60, expected multiples of groups (8)" },
};

static void every_mistake_is_named(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(mistakes); i++) {
		struct buf out = BUF_INIT;
		struct err e = ERR_INIT;

		if (experiment_resolve(mistakes[i].kind, "x.yaml", mistakes[i].text,
				       strlen(mistakes[i].text), NULL, 0, &out, &e) == 0)
			fail_msg("accepted: %s", mistakes[i].text);
		if (!strstr(e.text, mistakes[i].complaint))
			fail_msg("%s said '%s', not '%s'", mistakes[i].text, e.text,
				 mistakes[i].complaint);
		buf_release(&out);
	}
}

static void pictures_must_fit(void **state)
{
	static const char text[] = "preset: tiny\nmodel: {patch: 8}\ntrain: {sequence: 67}\n" DATA;
	struct experiment_facts facts = { 1000, 8, 8, 8 };
	struct train_experiment x;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(train_experiment_read("x", text, strlen(text), &x, &e), &e);
	assert_ok(train_experiment_fits(&x, &facts, &e), &e);
	facts.latent_width = 12;
	assert_int_equal(train_experiment_fits(&x, &facts, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "expected a divisor of the latents' 8 x 12 pixels"));
	err_clear(&e);
	facts.latent_height = facts.latent_width = 64;
	assert_int_equal(train_experiment_fits(&x, &facts, &e), TF_EINVALID);
	assert_non_null(
		strstr(e.text,
		       "x:3: train.sequence: found 67, a picture with its marks takes 68"));
	train_experiment_release(&x);
}

static void settings_are_described(void **state)
{
	struct buf out = BUF_INIT;

	(void)state;
	experiment_describe(EXPERIMENT_TRAIN, &out);
	assert_non_null(strstr(out.data, "model.attention: image: patches"));
	assert_non_null(strstr(out.data, "\n    image, causal; default image\n"));
	assert_non_null(
		strstr(out.data, "train.steps: optimiser steps\n    1 to 1000000000; must be"));
	buf_release(&out);
}

int main(void)
{
	const struct CMUnitTest experiment[] = {
		cmocka_unit_test(every_preset_is_valid),
		cmocka_unit_test(settings_arrive),
		cmocka_unit_test(resolved_text_stands_for_itself),
		cmocka_unit_test(every_mistake_is_named),
		cmocka_unit_test(pictures_must_fit),
		cmocka_unit_test(settings_are_described),
	};
	return cmocka_run_group_tests(experiment, NULL, NULL);
}
