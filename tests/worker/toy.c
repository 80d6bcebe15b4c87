/* SPDX-License-Identifier: Apache-2.0
 * The toy world of the tests; see toy.h. */
#include "tests/worker/toy.h"
#include "tests/test.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "model/vae.h"
#include "proto/experiment.h"
#include "store/dataset.h"
#include "worker/spm.h"
#include "worker/worker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAP_BYTES (16u << 20)
#define LATENT (TOY_SIDE / 4)
#define CHANNELS 4

static const char *const colors[] = { "red", "green", "blue", "black" };
static const uint8_t values[][3] = {
	{ 220, 40, 40 }, { 40, 180, 60 }, { 40, 60, 220 }, { 20, 20, 20 }
};

static void caption_of(int number, char out[64])
{
	snprintf(out, 64, "a %s disc of size %d", colors[number % 4], number / 4 + 2);
}

void toy_picture(int number, uint8_t rgb[TOY_SIDE * TOY_SIDE * 3])
{
	int radius = number / 4 + 2;

	memset(rgb, 255, TOY_SIDE * TOY_SIDE * 3);
	for (int i = 0; i < TOY_SIDE * TOY_SIDE; i++) {
		int x = i % TOY_SIDE - TOY_SIDE / 2, y = i / TOY_SIDE - TOY_SIDE / 2;

		if (x * x + y * y <= radius * radius)
			memcpy(rgb + 3 * i, values[number % 4], 3);
	}
}

/* ---- tokenizer, autoencoder, datasets */

static void make_tokenizer(const struct toy *t)
{
	struct spm_corpus *c = spm_corpus_new();
	char *path = xasprintf("%s/" SPM_FILE, t->tokenizer);
	struct err e = ERR_INIT;
	char caption[64];
	int32_t got;

	for (int i = 0; i < TOY_PICTURES; i++) {
		caption_of(i, caption);
		spm_corpus_add(c, caption, strlen(caption));
	}
	assert_ok(spm_train(c, SPM_PIECES_LEAST, path, &got, &e), &e);
	spm_corpus_free(c);
	xfree(path);
}

static struct vae *make_vae(const struct toy *t, struct kernels *k)
{
	static const struct vae_config config = { 2, { 8, 8 }, 1, CHANNELS, 4 };
	static const float mean[CHANNELS], deviation[CHANNELS] = { 1, 1, 1, 1 };
	char *path = xasprintf("%s/" VAE_FILE, t->vae);
	struct err e = ERR_INIT;
	struct vae *v = NULL;

	assert_ok(vae_new(k, &config, DT_F32, 1, &v, &e), &e);
	vae_set_statistics(v, mean, deviation);
	assert_ok(vae_save(v, path, &e), &e);
	xfree(path);
	return v;
}

static void add_pair(struct dataset_writer *w, struct spm *spm, struct vae *v, int number)
{
	uint8_t rgb[TOY_SIDE * TOY_SIDE * 3];
	float latent[LATENT * LATENT * CHANNELS];
	uint16_t stored[LATENT * LATENT * CHANNELS];
	char caption[64], name[32];
	struct err e = ERR_INIT;
	int32_t *token = NULL;
	size_t count = 0;
	struct sample s = { .name = name,
			    .text = caption,
			    .pixels = rgb,
			    .height = TOY_SIDE,
			    .width = TOY_SIDE,
			    .latent = stored,
			    .rows = LATENT,
			    .columns = LATENT,
			    .channels = CHANNELS,
			    .token_bytes = 4 };

	toy_picture(number, rgb);
	caption_of(number, caption);
	snprintf(name, sizeof name, "disc-%02d", number);
	assert_ok(vae_encode_u8(v, rgb, 1, TOY_SIDE, TOY_SIDE, latent, &e), &e);
	for (size_t i = 0; i < ARRAY_LEN(stored); i++)
		stored[i] = bf16_from_float(latent[i]);
	s.text_bytes = strlen(caption);
	assert_ok(spm_encode(spm, caption, s.text_bytes, &token, &count, &e), &e);
	s.token = token;
	s.tokens = count;
	assert_ok(dataset_writer_add(w, &s, name, &e), &e);
	xfree(token);
}

static void make_data(const struct toy *t, struct spm *spm, struct vae *v)
{
	char names[TOY_HELDOUT][32], *list[TOY_HELDOUT];
	struct dataset_plan plan = {
		.kind = DATASET_PAIRS,
		.tokenizer = spm_hash(spm),
		.pieces = spm_pieces(spm),
		.vae = vae_hash(v),
		.height = TOY_SIDE,
		.width = TOY_SIDE,
		.pixels = true,
		.rows = LATENT,
		.columns = LATENT,
		.channels = CHANNELS,
		.mean = vae_mean(v),
		.deviation = vae_deviation(v),
		.holdout = { 0, list, TOY_HELDOUT },
		.format = "test",
		.map_bytes = MAP_BYTES,
	};
	struct dataset_writer *w = NULL;
	struct err e = ERR_INIT;

	for (int i = 0; i < TOY_HELDOUT; i++) {
		snprintf(names[i], sizeof names[i], "disc-%02d", TOY_PICTURES - TOY_HELDOUT + i);
		list[i] = names[i];
	}
	assert_ok(dataset_writer_open(t->data, &plan, &w, &e), &e);
	for (int i = 0; i < TOY_PICTURES; i++)
		add_pair(w, spm, v, i);
	assert_ok(dataset_writer_finish(w, NULL, &e), &e);
	dataset_writer_close(w);
}

static void make_text(const struct toy *t, struct spm *spm)
{
	struct dataset_plan plan = { .kind = DATASET_TEXT,
				     .tokenizer = spm_hash(spm),
				     .pieces = spm_pieces(spm),
				     .holdout = { 50, NULL, 0 },
				     .format = "test",
				     .map_bytes = MAP_BYTES };
	struct dataset_writer *w = NULL;
	struct err e = ERR_INIT;

	assert_ok(dataset_writer_open(t->text_data, &plan, &w, &e), &e);
	for (int i = 0; i < TOY_PICTURES; i++) {
		char caption[64], name[32];
		struct sample s = { .name = name, .text = caption, .token_bytes = 4 };
		int32_t *token = NULL;

		caption_of(i, caption);
		snprintf(name, sizeof name, "text-%02d", i);
		s.text_bytes = strlen(caption);
		assert_ok(spm_encode(spm, caption, s.text_bytes, &token, &s.tokens, &e), &e);
		s.token = token;
		assert_ok(dataset_writer_add(w, &s, name, &e), &e);
		xfree(token);
	}
	assert_ok(dataset_writer_finish(w, NULL, &e), &e);
	dataset_writer_close(w);
}

static char *make_folder(const struct toy *t, const char *name)
{
	char *path = xasprintf("%s/%s", t->folder, name);

	return dir_make(path, 0700, NULL) == 0 ? path : NULL;
}

void toy_open(struct toy *t, const char *folder)
{
	t->folder = xstrdup(folder);
	t->data = make_folder(t, "data");
	t->text_data = make_folder(t, "text");
	t->tokenizer = make_folder(t, "tokenizer");
	t->vae = make_folder(t, "vae");
	t->model = make_folder(t, "model");
}

int toy_init(struct toy *t)
{
	const char *tmp = getenv("TMPDIR");
	char *folder = xasprintf("%s/toy.XXXXXX", tmp ? tmp : "/tmp");
	struct kernels *k = NULL;
	struct spm *spm = NULL;
	struct err e = ERR_INIT;
	struct vae *v;

	if (!mkdtemp(folder))
		return -1;
	toy_open(t, folder);
	xfree(folder);
	assert_ok(kernels_open("ref", 1, &k, &e), &e);
	make_tokenizer(t);
	assert_ok(spm_open_folder(t->tokenizer, &spm, &e), &e);
	v = make_vae(t, k);
	make_data(t, spm, v);
	make_text(t, spm);
	spm_close(spm);
	vae_free(v);
	kernels_close(k);
	return 0;
}

void toy_release(struct toy *t)
{
	dir_remove(t->folder, NULL);
	xfree(t->data);
	xfree(t->text_data);
	xfree(t->tokenizer);
	xfree(t->vae);
	xfree(t->model);
	xfree(t->folder);
}

/* ---- jobs */

char *toy_experiment(const char *const *set, size_t n)
{
	static const char text[] =
		"model: {layers: 2, dim: 32, heads: 2, ff: 64}\n"
		"train: {steps: 20, sequence: 64, batch: 2, lr: 3e-3, warmup: 5,"
		" lr_end: 1e-4, ema: 0.99}\n"
		"eval: {every: 10, batches: 2}\nsave: {every: 5, keep_last: 9}\n"
		"data: [{name: toy}]\n";
	struct buf out = BUF_INIT;
	struct err e = ERR_INIT;

	assert_ok(experiment_resolve(EXPERIMENT_TRAIN, "toy.yaml", text, strlen(text), set, n,
				     &out, &e),
		  &e);
	return buf_detach(&out);
}

int toy_run(const struct toy *t, const char *name, Tf__JobSpec *spec, const char *output,
	    const char *data, struct err *e)
{
	Tf__Input input[] = { TF__INPUT__INIT, TF__INPUT__INIT, TF__INPUT__INIT, TF__INPUT__INIT };
	Tf__Input *inputs[] = { &input[0], &input[1], &input[2], &input[3] };
	char *roles[] = { "data", "tokenizer", "vae", "model" };
	char *paths[] = { (char *)data, t->tokenizer, t->vae, t->model };
	Tf__Assignment a = TF__ASSIGNMENT__INIT;
	char *folder = make_folder(t, name);
	struct job job;
	int rc;

	for (int i = 0; i < 4; i++) {
		input[i].role = roles[i];
		input[i].name = i == 0 ? "toy" : roles[i];
		input[i].path = paths[i];
	}
	a.job = 1;
	a.attempt = 2;
	a.spec = spec;
	a.job_folder = a.attempt_folder = folder;
	a.output_folder = (char *)output;
	a.device = (char *)(t->device ? t->device : "ref");
	a.n_input = ARRAY_LEN(inputs);
	a.input = inputs;
	rc = job_init(&job, &a, NULL, e);
	job.kept = t->kept;
	if (rc == 0)
		rc = spec->kind == TF__JOB_KIND__TRAIN  ? job_train(&job, e)
		     : spec->kind == TF__JOB_KIND__VAE  ? job_vae(&job, e)
		     : spec->kind == TF__JOB_KIND__EVAL ? job_eval(&job, e)
							: job_generate(&job, e);
	job_release(&job);
	xfree(folder);
	return rc;
}

int toy_train(const struct toy *t, const char *name, const char *output, const char *const *set,
	      size_t n, struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__TrainSpec train = TF__TRAIN_SPEC__INIT;
	int rc;

	spec.kind = TF__JOB_KIND__TRAIN;
	spec.spec_case = TF__JOB_SPEC__SPEC_TRAIN;
	spec.train = &train;
	train.model = "model";
	train.experiment = toy_experiment(set, n);
	rc = toy_run(t, name, &spec, output, t->data, e);
	xfree_(train.experiment);
	return rc;
}

int toy_train_vae(const struct toy *t, const char *name, const char *output,
		  const char *const *set, size_t n, struct err *e)
{
	static const char text[] =
		"model: {channels: [8, 16], blocks: 1, latent_channels: 4, groups: 4,"
		" downsample: 4}\n"
		"train: {steps: 12, batch: 4, micro_batch: 2, lr: 2e-3, warmup: 2, lr_end: 1e-4}\n"
		"loss: {gan: 0.1, gan_start: 4, gan_channels: 8}\n"
		"eval: {every: 6, pictures: 4}\nsave: {every: 4, keep_last: 9}\n"
		"data: [{name: toy}]\n";
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__VaeSpec vae = TF__VAE_SPEC__INIT;
	struct buf out = BUF_INIT;
	int rc;

	TRY(experiment_resolve(EXPERIMENT_VAE, "toy.yaml", text, strlen(text), set, n, &out, e));
	spec.kind = TF__JOB_KIND__VAE;
	spec.spec_case = TF__JOB_SPEC__SPEC_VAE;
	spec.vae = &vae;
	vae.vae = "vae";
	vae.experiment = out.data;
	rc = toy_run(t, name, &spec, output, t->data, e);
	buf_release(&out);
	return rc;
}
