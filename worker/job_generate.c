/* SPDX-License-Identifier: Apache-2.0
 * Drawing pictures and writing text: prompts of texts and pictures, each answered `count` times.
 */
#include "config.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "worker/draw.h"
#include "worker/generate.h"
#include "worker/image.h"

#include <stdio.h>
#include <string.h>

#define FREE_IMAGES_MOST 16 /* pictures of one free text */

/* auto: pictures are named, texts are drawn; a model of text alone writes. */
static int choose_mode(struct generation *g, struct err *e)
{
	const char *mode = g->spec->mode;

	if (strcmp(mode, "auto") == 0)
		mode = g->spec->n_image || !g->o->vae ? "text" : "image";
	if (strcmp(mode, "image") == 0)
		g->options.mode = SAMPLE_IMAGE;
	else if (strcmp(mode, "text") == 0)
		g->options.mode = SAMPLE_TEXT;
	else if (strcmp(mode, "free") == 0)
		g->options.mode = SAMPLE_FREE;
	else
		return err_set(e, TF_EINVALID,
			       "mode: found '%.40s', expected auto, image, text or free", mode);
	FAIL_IF(!g->o->vae && g->options.mode == SAMPLE_IMAGE, e, TF_EINVALID,
		"%s is a model of text alone: it draws no pictures", g->o->name);
	return 0;
}

static int take_options(struct generation *g, struct err *e)
{
	const Tf__GenerateSpec *s = g->spec;

	g->options = (struct sampler_options) {
		.steps = s->steps,
		.guidance = (float)s->guidance,
		.clamp = (float)s->clamp,
		.temperature = (float)s->temperature,
		.top_p = (float)s->top_p,
		.seed = s->seed,
		.max_tokens = s->max_tokens,
		.max_images = FREE_IMAGES_MOST,
	};
	TRY(draw_schedule(s->sampler, &g->options.schedule, e));
	return choose_mode(g, e);
}

/* ---- prompts */

static int encode_picture(struct generation *g, size_t i, struct err *e)
{
	const ProtobufCBinaryData *file = &g->spec->image[i];
	const struct dims *m = &g->o->dims;
	struct picture whole = { 0 }, fitted = { 0 };
	char name[40];
	int rc;

	snprintf(name, sizeof name, "picture %zu", i + 1);
	rc = image_decode(file->data, file->len, name, &whole, e);
	if (rc == 0)
		rc = image_fit(&whole, draw_width(g->o->vae, m), draw_height(g->o->vae, m), &fitted,
			       e);
	if (rc == 0)
		rc = draw_encode(g->o->vae, m, fitted.rgb, 1,
				 g->latent + i * (size_t)dims_latent(m), e);
	picture_release(&whole);
	picture_release(&fitted);
	return rc;
}

static int encode_pictures(struct generation *g, struct err *e)
{
	size_t n = g->spec->n_image;

	FAIL_IF(n > 0 && !g->o->vae, e, TF_EINVALID,
		"%s is a model of text alone: it takes no pictures", g->o->name);
	FAIL_IF(n > LIMIT_PROMPTS, e, TF_ELIMIT, "%zu pictures, at most %u", n, LIMIT_PROMPTS);
	g->latent = xcalloc(n, (size_t)dims_latent(&g->o->dims) * sizeof *g->latent);
	for (size_t i = 0; i < n; i++)
		TRY(encode_picture(g, i, e));
	return 0;
}

static int fill_request(struct generation *g, struct request *r, struct err *e)
{
	size_t E = (size_t)dims_latent(&g->o->dims), count = 0;

	if (r->picture >= 0)
		r->segment[r->segments++] =
			(struct segment) { .kind = SEGMENT_IMAGE,
					   .latent = g->latent + (size_t)r->picture * E };
	if (!r->text || !*r->text)
		return 0;
	TRY(spm_encode(g->o->spm, r->text, strlen(r->text), &r->token, &count, e));
	if (count)
		r->segment[r->segments++] = (struct segment) { .kind = SEGMENT_TEXT,
							       .token = r->token,
							       .count = (int64_t)count };
	return 0;
}

/* n texts and m pictures: as many pairs when n = m; one goes with all of the other. */
static int make_requests(struct generation *g, struct err *e)
{
	size_t texts = g->spec->n_prompt, pictures = g->spec->n_image;

	FAIL_IF(texts > 1 && pictures > 1 && texts != pictures, e, TF_EINVALID,
		"%zu prompts and %zu pictures: expected as many, or one of either", texts,
		pictures);
	FAIL_IF(texts > LIMIT_PROMPTS, e, TF_ELIMIT, "%zu prompts, at most %u", texts,
		LIMIT_PROMPTS);
	g->requests = texts > pictures ? texts : pictures ? pictures : 1;
	g->request = xcalloc(g->requests, sizeof *g->request);
	for (size_t i = 0; i < g->requests; i++) {
		struct request *r = &g->request[i];

		r->text = texts ? g->spec->prompt[texts > 1 ? i : 0] : NULL;
		r->picture = pictures ? (int)(pictures > 1 ? i : 0) : -1;
		TRY(fill_request(g, r, e));
	}
	return 0;
}

/* What is to be run: each request `count` times. */
static int make_entries(struct generation *g, struct err *e)
{
	const struct dims *m = &g->o->dims;
	size_t count = g->spec->count, n = g->requests * count;

	g->prompt = xcalloc(n, sizeof *g->prompt);
	g->entry = xcalloc(n, sizeof *g->entry);
	g->result = xcalloc(n, sizeof *g->result);
	for (size_t i = 0; i < n; i++) {
		const struct request *r = &g->request[i / count];

		g->prompt[i] = (struct sampler_prompt) { r->segment, r->segments, i };
		g->entry[i].options = &g->options;
		g->entry[i].prompt = &g->prompt[i];
	}
	g->results = n;
	g->context = draw_context(m, &g->options, g->prompt, (int64_t)n);
	return sampler_check(m, g->context, &g->options, g->prompt, (int64_t)n, e);
}

int generation_begin(struct generation *g, struct job *job, struct opened *o, struct err *e)
{
	*g = (struct generation) { .job = job, .spec = job->spec->generate, .o = o };
	FAIL_IF(g->spec->count < 1 || g->spec->count > LIMIT_IMAGES_PER_PROMPT, e, TF_EINVALID,
		"count: found %u, expected 1 to %u", g->spec->count, LIMIT_IMAGES_PER_PROMPT);
	TRY(take_options(g, e));
	job_stage(job, "prompt");
	TRY(encode_pictures(g, e));
	TRY(make_requests(g, e));
	return make_entries(g, e);
}

void generation_release(struct generation *g)
{
	for (size_t i = 0; i < g->results; i++) {
		if (g->entry[i].ended)
			sampler_result_release(&g->entry[i].result);
	}
	for (size_t i = 0; i < g->requests; i++)
		xfree(g->request[i].token);
	xfree(g->entry);
	xfree(g->prompt);
	xfree(g->result);
	xfree(g->request);
	xfree(g->latent);
}

int job_generate(struct job *job, struct err *e)
{
	return batch_run(job, e);
}
