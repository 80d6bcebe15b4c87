/* SPDX-License-Identifier: Apache-2.0
 * Naming pictures: the likeliest tokens after the picture until EOS. Scores: the share named
 * exactly (the same bytes) and CIDEr-D (cider.h). results/captions.jsonl has every picture. */
#include "config.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "worker/cider.h"
#include "worker/draw.h"
#include "worker/eval.h"

#include <string.h>

#define SPARE_TOKENS 16 /* beyond the longest caption known */

struct naming {
	size_t n;
	char **name, **reference; /* of the pictures with a caption */
	float *latent;            /* [n, E] */
	struct buf *written;      /* [n] */
	double *cider;            /* [n] */
};

static int collect(struct evaluation *ev, struct naming *c, struct err *e)
{
	size_t most = (size_t)eval_samples(ev), E = (size_t)dims_latent(&ev->o.dims);

	c->name = xcalloc(most, sizeof *c->name);
	c->reference = xcalloc(most, sizeof *c->reference);
	c->latent = xcalloc(most, E * sizeof *c->latent);
	for (size_t i = 0; i < most; i++) {
		struct sample s;

		TRY(eval_sample(ev, i, &s, e));
		if (!s.latent || !s.text_bytes)
			continue;
		sample_latent(&s, ev->info->mean, ev->info->deviation, c->latent + c->n * E);
		c->name[c->n] = xstrdup(s.name);
		c->reference[c->n++] = xstrdup(s.text);
	}
	FAIL_IF(c->n == 0, e, TF_EINVALID, "'%s' has no pictures with captions", ev->spec->data);
	c->written = xcalloc(c->n, sizeof *c->written);
	c->cider = xcalloc(c->n, sizeof *c->cider);
	return 0;
}

static int decode_parts(struct evaluation *ev, const struct sampler_result *r, struct buf *out,
			struct err *e)
{
	for (int64_t i = 0; i < r->parts; i++)
		if (r->part[i].kind == SEGMENT_TEXT)
			TRY(spm_decode(ev->o.spm, r->part[i].token, (size_t)r->part[i].count, out,
				       e));
	return 0;
}

static int name_all(struct evaluation *ev, struct naming *c, struct err *e)
{
	struct sampler_options o = { .mode = SAMPLE_TEXT,
				     .steps = 1,
				     .guidance = 1,
				     .top_p = 1,
				     .seed = ev->spec->seed,
				     .max_images = 1,
				     .max_tokens =
					     (int64_t)ev->info->longest_tokens + SPARE_TOKENS };
	struct segment *segment = xcalloc(c->n, sizeof *segment);
	struct sampler_prompt *prompt = xcalloc(c->n, sizeof *prompt);
	struct sampler_result *result = xcalloc(c->n, sizeof *result);
	size_t E = (size_t)dims_latent(&ev->o.dims);
	int rc;

	for (size_t i = 0; i < c->n; i++) {
		segment[i] =
			(struct segment) { .kind = SEGMENT_IMAGE, .latent = c->latent + i * E };
		prompt[i] = (struct sampler_prompt) { &segment[i], 1, i };
	}
	rc = draw_run(ev->job, &ev->o.model, &o, prompt, (int64_t)c->n, "naming", &ev->o.sampler,
		      result, e);
	job_stage(ev->job, "measure");
	if (rc == 0) {
		for (size_t i = 0; i < c->n; i++) {
			if (rc == 0)
				rc = decode_parts(ev, &result[i], &c->written[i], e);
			sampler_result_release(&result[i]);
		}
	}
	xfree(result);
	xfree(prompt);
	xfree(segment);
	return rc;
}

static const char *written_text(const struct naming *c, size_t i)
{
	return c->written[i].len ? c->written[i].data : "";
}

static double score(struct naming *c)
{
	struct cider_item *item = xcalloc(c->n, sizeof *item);
	double mean;

	for (size_t i = 0; i < c->n; i++)
		item[i] = (struct cider_item) { written_text(c, i),
						(const char *const *)&c->reference[i], 1 };
	mean = cider_score(item, c->n, c->cider);
	xfree(item);
	return mean;
}

static int report(struct evaluation *ev, struct naming *c, struct err *e)
{
	struct eval_lines lines = { BUF_INIT };
	double cider = score(c);
	size_t exact = 0;

	for (size_t i = 0; i < c->n; i++) {
		bool same = strcmp(written_text(c, i), c->reference[i]) == 0;
		json_t *text = json_stringn(written_text(c, i), c->written[i].len);

		exact += same;
		eval_line(&lines, json_pack("{s:s, s:s, s:o, s:b, s:f}", "name", c->name[i],
					    "reference", c->reference[i], "caption",
					    text ? text : json_string("(not UTF-8)"), "exact",
					    same, "cider", c->cider[i]));
	}
	eval_result(ev, "exact", (double)exact / (double)c->n);
	eval_result(ev, "named", (double)exact);
	eval_result(ev, "of", (double)c->n);
	eval_result(ev, "cider", cider);
	log_info("named %zu of %zu exactly, CIDEr-D %.3f", exact, c->n, cider);
	return eval_lines_write(&lines, ev, "captions.jsonl", e);
}

static void release(struct naming *c)
{
	for (size_t i = 0; i < c->n; i++) {
		xfree(c->name[i]);
		xfree(c->reference[i]);
		if (c->written)
			buf_release(&c->written[i]);
	}
	xfree(c->name);
	xfree(c->reference);
	xfree(c->latent);
	xfree(c->written);
	xfree(c->cider);
}

int eval_caption(struct evaluation *ev, struct err *e)
{
	struct naming c = { 0 };
	int rc = 0;

	FAIL_IF(!ev->info->channels || !ev->o.vae, e, TF_EINVALID, "'%s' has no latents to name",
		ev->spec->data);
	rc = collect(ev, &c, e);
	if (rc == 0)
		rc = name_all(ev, &c, e);
	if (rc == 0)
		rc = report(ev, &c, e);
	release(&c);
	return rc;
}
