/* SPDX-License-Identifier: Apache-2.0
 * What a training run shows of itself while it goes: held-out losses and drawn samples; see
 * train.h. */
#include "config.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "worker/draw.h"
#include "worker/opened.h"
#include "worker/sheet.h"
#include "worker/train.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- held-out losses */

struct sums {
	double lm, diffusion;
	int64_t targets, noised;
};

static void add_losses(const struct batch *b, const float *token_loss, const float *image_loss,
		       struct sums *s)
{
	for (int64_t i = 0; i < b->targets; i++)
		s->lm += (double)token_loss[i];
	for (int64_t i = 0; i < b->images; i++)
		s->diffusion += (double)image_loss[i];
	s->targets += b->targets;
	s->noised += b->noised;
}

static int sum_heldout(struct training *t, struct sums *s, struct err *e)
{
	int64_t documents = 0, rows = t->dims.B * t->dims.T;
	float *token_loss = xcalloc((size_t)rows, sizeof *token_loss);
	float *image_loss = xcalloc((size_t)t->dims.images + 1, sizeof *image_loss);
	int rc = 0;

	loader_rewind(t->heldout);
	for (int64_t i = 0; rc == 0 && i < t->x.eval.batches; i++) {
		rc = loader_next(t->heldout, &t->batch[0], &documents, e);
		if (rc < 0 || documents == 0)
			break;
		pass_evaluate(t->pass, &t->batch[0], token_loss, image_loss);
		add_losses(&t->batch[0], token_loss, image_loss, s);
	}
	pass_losses(t->pass, &(struct pass_losses) { 0 }); /* the next step's sums begin at zero */
	xfree(token_loss);
	xfree(image_loss);
	return rc;
}

int train_measure(struct training *t, struct err *e)
{
	struct sums s = { 0 };
	double lm, diffusion;

	if (!t->heldout)
		return 0;
	TRY(sum_heldout(t, &s, e));
	lm = s.targets ? s.lm / (double)s.targets : 0;
	diffusion = s.noised ? s.diffusion / (double)s.noised : 0;
	t->score = lm + t->x.train.lambda * diffusion;
	t->scored_at = t->step;
	job_metrics(t->job, t->step,
		    (struct job_metric[]) { { "heldout_loss", t->score },
					    { "heldout_lm", lm },
					    { "heldout_diffusion", diffusion } },
		    3);
	job_gauge(t->job, "heldout", t->score);
	job_result(t->job, "heldout_loss", t->score);
	job_result(t->job, "heldout_lm", lm);
	job_result(t->job, "heldout_diffusion", diffusion);
	log_info("step=%" PRIu64 " heldout_loss=%.4f heldout_lm=%.4f heldout_diffusion=%.4f",
		 t->step, t->score, lm, diffusion);
	return 0;
}

/* ---- samples */

/* The captions that are drawn: of the experiment, or of held-out pairs, or of trained ones. */
struct captions {
	char **text;
	int64_t count;
};

static void captions_release(struct captions *c)
{
	for (int64_t i = 0; i < c->count; i++)
		xfree(c->text[i]);
	xfree(c->text);
}

static int take_captions(struct training *t, enum dataset_split split, struct captions *c,
			 struct err *e)
{
	for (int i = 0; i < t->sources && c->count < t->x.sample.count; i++) {
		const struct dataset_info *info = dataset_info(t->data[i]);

		if (!info->channels)
			continue;
		for (uint64_t n = 0; n < info->samples[split] && c->count < t->x.sample.count;
		     n++) {
			struct sample s;

			TRY(dataset_get(t->data[i], split, n, &s, e));
			if (s.text_bytes)
				c->text[c->count++] = xstrdup(s.text);
		}
	}
	return 0;
}

static int collect_captions(struct training *t, struct captions *c, struct err *e)
{
	int most = t->x.prompt_count ? t->x.prompt_count : (int)t->x.sample.count;
	int rc = 0;

	c->text = xcalloc((size_t)most, sizeof *c->text);
	for (int i = 0; i < t->x.prompt_count; i++)
		c->text[c->count++] = xstrdup(t->x.prompt[i]);
	if (c->count == 0)
		rc = take_captions(t, DATASET_HELDOUT, c, e);
	if (rc == 0 && c->count == 0)
		rc = take_captions(t, DATASET_TRAIN, c, e);
	return rc;
}

int train_open_samples(struct training *t, struct err *e)
{
	if (t->x.sample.every == 0 || !t->facts.latent_height)
		return 0;
	return opened_vae(t->job, t->dims.act, &t->vae, e);
}

/* Trades the weights for the averaged ones, through the gradients' memory, which is free between
 * steps. A second call undoes the first. */
static void trade_weights(struct training *t)
{
	struct params *p = &t->model.params;
	const struct kernel_ops *ops = t->model.k->ops;
	size_t bytes = (size_t)p->total * sizeof(float);

	if (!t->average)
		return;
	ops->copy(p->k, p->grad, p->master, bytes);
	ops->copy(p->k, p->master, t->average, bytes);
	ops->copy(p->k, t->average, p->grad, bytes);
	if (p->resident)
		ops->convert(p->k, tensor_1d(p->resident, DT_BF16, p->total),
			     tensor_1d(p->master, DT_F32, p->total));
}

static int write_samples(struct training *t, const struct captions *c,
			 const struct sampler_result *result, struct err *e)
{
	size_t n = (size_t)c->count, bytes = draw_bytes(t->vae, &t->dims);
	const float **latent = xcalloc(n, sizeof *latent);
	struct sheet_cell *cell = xcalloc(n, sizeof *cell);
	uint8_t *rgb = xcalloc(n, bytes);
	char *path = job_result_path(t->job, "samples-%08" PRIu64 ".png", t->step);
	char title[100];
	struct sheet sheet = { draw_width(t->vae, &t->dims), draw_height(t->vae, &t->dims), title,
			       cell, n };
	int rc;

	for (size_t i = 0; i < n; i++) {
		latent[i] = draw_picture(&result[i]);
		CHECK(latent[i]);
		cell[i] = (struct sheet_cell) { .caption = c->text[i],
						.picture = { rgb + i * bytes, NULL } };
	}
	snprintf(title, sizeof title, "step %" PRIu64 ", guidance %g", t->step,
		 t->x.sample.guidance);
	rc = draw_decode(t->vae, &t->dims, latent, c->count, rgb, e);
	if (rc == 0)
		rc = sheet_write(path, &sheet, NULL, 0, e);
	xfree(path);
	xfree(rgb);
	xfree(cell);
	xfree(latent);
	return rc;
}

static int draw_captions(struct training *t, const struct captions *c, struct err *e)
{
	struct sampler_options o = {
		.mode = SAMPLE_IMAGE,
		.schedule = t->x.sample.sampler == SAMPLER_DDIM ? SCHEDULE_DDIM : SCHEDULE_DDPM,
		.steps = t->x.sample.steps,
		.guidance = (float)t->x.sample.guidance,
		.clamp = 4,
		.top_p = 1,
		.seed = (uint64_t)t->x.train.seed,
		.max_tokens = 1,
		.max_images = 1,
	};
	size_t n = (size_t)c->count;
	struct sampler_prompt *prompt = xcalloc(n, sizeof *prompt);
	struct segment *segment = xcalloc(n, sizeof *segment);
	struct sampler_result *result = xcalloc(n, sizeof *result);
	int32_t **token = xcalloc(n, sizeof *token);
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < n; i++) {
		size_t count = 0;

		rc = spm_encode(t->spm, c->text[i], strlen(c->text[i]), &token[i], &count, e);
		segment[i] = (struct segment) { .kind = SEGMENT_TEXT,
						.token = token[i],
						.count = (int64_t)count };
		prompt[i] = (struct sampler_prompt) { &segment[i], count > 0, i };
	}
	if (rc == 0)
		rc = draw_run(t->job, &t->model, &o, prompt, c->count, "sampling", NULL, result,
			      e);
	if (rc == 0) {
		rc = write_samples(t, c, result, e);
		for (size_t i = 0; i < n; i++)
			sampler_result_release(&result[i]);
	}
	for (size_t i = 0; i < n; i++)
		xfree(token[i]);
	xfree(token);
	xfree(result);
	xfree(segment);
	xfree(prompt);
	return rc;
}

int train_draw_samples(struct training *t, struct err *e)
{
	struct captions c = { 0 };
	int rc;

	if (!t->vae)
		return 0;
	rc = collect_captions(t, &c, e);
	if (rc == 0 && c.count > 0) {
		trade_weights(t);
		rc = draw_captions(t, &c, e);
		trade_weights(t);
	}
	captions_release(&c);
	return rc;
}
