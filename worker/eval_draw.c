/* SPDX-License-Identifier: Apache-2.0
 * Drawing captions: the share of drawn pictures whose nearest among all imported pictures (both
 * splits; nearest.h) is the true one. results/drawn.jsonl has every caption; with sheet,
 * results/sheet.png shows caption, true picture and drawn picture side by side. */
#include "config.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "worker/draw.h"
#include "worker/eval.h"
#include "worker/nearest.h"
#include "worker/sheet.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct drawing {
	size_t n;
	char **name, **caption;
	int32_t **token;
	struct segment *segment;
	size_t *truth;        /* index among all pictures */
	size_t *rank, *first; /* of the drawn one */
	uint8_t *drawn;       /* [n] pictures */
	struct nearest all;   /* train, then heldout, in the order of the dataset */
	char **all_name;
};

/* All imported pictures, and where each name lies. */
static int collect_pictures(struct evaluation *ev, struct drawing *d, struct err *e)
{
	uint64_t total = ev->info->samples[DATASET_TRAIN] + ev->info->samples[DATASET_HELDOUT];

	nearest_init(&d->all, ev->info->width, ev->info->height, ev->job->threads);
	d->all_name = xcalloc(total, sizeof *d->all_name);
	for (int split = 0; split < DATASET_SPLITS; split++)
		for (uint64_t i = 0; i < ev->info->samples[split]; i++) {
			struct sample s;

			TRY(dataset_get(ev->data, (enum dataset_split)split, i, &s, e));
			FAIL_IF(!s.pixels, e, TF_EINVALID, "sample '%s' has no pixels", s.name);
			d->all_name[d->all.count] = xstrdup(s.name);
			nearest_add(&d->all, s.pixels);
			job_report(ev->job, "reading", d->all.count, total, "picture");
		}
	return 0;
}

static int collect_captions(struct evaluation *ev, struct drawing *d, struct err *e)
{
	size_t most = (size_t)eval_samples(ev);

	d->name = xcalloc(most, sizeof *d->name);
	d->caption = xcalloc(most, sizeof *d->caption);
	d->token = xcalloc(most, sizeof *d->token);
	d->segment = xcalloc(most, sizeof *d->segment);
	d->truth = xcalloc(most, sizeof *d->truth);
	for (size_t i = 0; i < most; i++) {
		struct sample s;

		TRY(eval_sample(ev, i, &s, e));
		if (!s.tokens)
			continue;
		d->name[d->n] = xstrdup(s.name);
		d->caption[d->n] = xstrdup(s.text);
		d->token[d->n] = xcalloc(s.tokens, sizeof **d->token);
		sample_tokens(&s, 0, s.tokens, d->token[d->n]);
		d->segment[d->n] = (struct segment) { .kind = SEGMENT_TEXT,
						      .token = d->token[d->n],
						      .count = (int64_t)s.tokens };
		d->truth[d->n] =
			eval_number(ev, i) +
			(ev->split == DATASET_HELDOUT ? ev->info->samples[DATASET_TRAIN] : 0);
		d->n++;
	}
	FAIL_IF(d->n == 0, e, TF_EINVALID, "'%s' has no captions to draw", ev->spec->data);
	return 0;
}

static int decode_all(struct evaluation *ev, struct drawing *d,
		      const struct sampler_result *result, struct err *e)
{
	size_t bytes = draw_bytes(ev->o.vae, &ev->o.dims);
	const float **latent = xcalloc(d->n, sizeof *latent);
	int rc = 0;

	d->drawn = xcalloc(d->n, bytes);
	for (size_t i = 0; i < d->n; i++) {
		latent[i] = draw_picture(&result[i]);
		CHECK(latent[i]);
	}
	job_stage(ev->job, "decode");
	rc = draw_decode(ev->o.vae, &ev->o.dims, latent, (int64_t)d->n, d->drawn, e);
	xfree(latent);
	return rc;
}

static int draw_all(struct evaluation *ev, struct drawing *d, struct err *e)
{
	struct sampler_options o = { .mode = SAMPLE_IMAGE,
				     .steps = ev->spec->steps,
				     .guidance = (float)ev->spec->guidance,
				     .clamp = 4,
				     .top_p = 1,
				     .seed = ev->spec->seed,
				     .max_tokens = 1,
				     .max_images = 1 };
	struct sampler_prompt *prompt = xcalloc(d->n, sizeof *prompt);
	struct sampler_result *result = xcalloc(d->n, sizeof *result);
	int rc = draw_schedule(ev->spec->sampler, &o.schedule, e);

	for (size_t i = 0; i < d->n; i++)
		prompt[i] = (struct sampler_prompt) { &d->segment[i], 1, i };
	if (rc == 0)
		rc = draw_run(ev->job, &ev->o.model, &o, prompt, (int64_t)d->n, "drawing",
			      &ev->o.sampler, result, e);
	if (rc == 0) {
		rc = decode_all(ev, d, result, e);
		for (size_t i = 0; i < d->n; i++)
			sampler_result_release(&result[i]);
	}
	xfree(result);
	xfree(prompt);
	return rc;
}

static int find_nearest(struct evaluation *ev, struct drawing *d, struct err *e)
{
	size_t bytes = draw_bytes(ev->o.vae, &ev->o.dims);
	struct eval_lines lines = { BUF_INIT };
	size_t right = 0, among_five = 0;

	d->rank = xcalloc(d->n, sizeof *d->rank);
	d->first = xcalloc(d->n, sizeof *d->first);
	for (size_t i = 0; i < d->n; i++) {
		if (job_should_stop(ev->job)) {
			buf_release(&lines.text);
			return job_stopped(ev->job, e);
		}
		d->rank[i] =
			nearest_rank(&d->all, d->drawn + i * bytes, d->truth[i], &d->first[i]);
		right += d->rank[i] == 0;
		among_five += d->rank[i] < 5;
		eval_line(&lines, json_pack("{s:s, s:s, s:s, s:I}", "name", d->name[i], "caption",
					    d->caption[i], "nearest", d->all_name[d->first[i]],
					    "nearer", (json_int_t)d->rank[i]));
		job_report(ev->job, "comparing", i + 1, d->n, "picture");
	}
	eval_result(ev, "nearest", (double)right / (double)d->n);
	eval_result(ev, "among_five", (double)among_five / (double)d->n);
	eval_result(ev, "drawn", (double)right);
	eval_result(ev, "of", (double)d->n);
	eval_result(ev, "pictures", (double)d->all.count);
	log_info("drawn %zu of %zu: the nearest of %zu pictures is the true one", right, d->n,
		 d->all.count);
	return eval_lines_write(&lines, ev, "drawn.jsonl", e);
}

/* The true picture of a caption, found again by its place. */
static int true_picture(struct evaluation *ev, size_t index, const uint8_t **out, struct err *e)
{
	uint64_t train = ev->info->samples[DATASET_TRAIN];
	struct sample s;

	TRY(dataset_get(ev->data, index < train ? DATASET_TRAIN : DATASET_HELDOUT,
			index < train ? index : index - train, &s, e));
	*out = s.pixels;
	return 0;
}

static int write_sheet(struct evaluation *ev, struct drawing *d, struct err *e)
{
	size_t bytes = draw_bytes(ev->o.vae, &ev->o.dims), right = 0;
	struct sheet_cell *cell = xcalloc(d->n, sizeof *cell);
	char *path = job_result_path(ev->job, "sheet.png");
	const struct png_text text[] = { { "model", ev->o.name } };
	struct sheet sheet = { ev->info->width, ev->info->height, NULL, cell, d->n };
	char title[200];
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < d->n; i++) {
		cell[i].caption = d->caption[i];
		cell[i].picture[1] = d->drawn + i * bytes;
		cell[i].mark = d->rank[i] == 0 ? SHEET_RIGHT : SHEET_WRONG;
		right += d->rank[i] == 0;
		rc = true_picture(ev, d->truth[i], &cell[i].picture[0], e);
	}
	snprintf(title, sizeof title,
		 "left true, right drawn; green: the true picture is the nearest of %zu (%zu of "
		 "%zu)",
		 d->all.count, right, d->n);
	sheet.title = title;
	if (rc == 0)
		rc = sheet_write(path, &sheet, text, 1, e);
	xfree(path);
	xfree(cell);
	return rc;
}

static void release(struct drawing *d)
{
	for (size_t i = 0; i < d->n; i++) {
		xfree(d->name[i]);
		xfree(d->caption[i]);
		xfree(d->token[i]);
	}
	for (size_t i = 0; d->all_name && i < d->all.count; i++)
		xfree(d->all_name[i]);
	xfree(d->name);
	xfree(d->caption);
	xfree(d->token);
	xfree(d->segment);
	xfree(d->truth);
	xfree(d->rank);
	xfree(d->first);
	xfree(d->drawn);
	xfree(d->all_name);
	nearest_release(&d->all);
}

int eval_draw(struct evaluation *ev, struct err *e)
{
	struct drawing d = { 0 };
	int rc;

	FAIL_IF(!ev->info->pixels || !ev->o.vae, e, TF_EINVALID,
		"'%s' keeps no pixels to compare drawings with", ev->spec->data);
	FAIL_IF(ev->info->width != draw_width(ev->o.vae, &ev->o.dims) ||
			ev->info->height != draw_height(ev->o.vae, &ev->o.dims),
		e, TF_EMISMATCH, "'%s' has pictures of %d x %d, the model draws %d x %d",
		ev->spec->data, ev->info->width, ev->info->height,
		draw_width(ev->o.vae, &ev->o.dims), draw_height(ev->o.vae, &ev->o.dims));
	rc = collect_pictures(ev, &d, e);
	if (rc == 0)
		rc = collect_captions(ev, &d, e);
	if (rc == 0)
		rc = draw_all(ev, &d, e);
	job_stage(ev->job, "measure");
	if (rc == 0)
		rc = find_nearest(ev, &d, e);
	if (rc == 0 && ev->spec->sheet)
		rc = write_sheet(ev, &d, e);
	release(&d);
	return rc;
}
