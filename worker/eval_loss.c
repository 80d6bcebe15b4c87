/* SPDX-License-Identifier: Apache-2.0
 * Both losses of a model over a split: documents as in training, each once, noise and times fixed
 *by the seed. With dump, results/dump.safetensors holds all that another implementation needs to
 *compute the same:
 *
 *	token, kind, start, limit, position [S,T]   kind: 0 padding, 1 token, 2 patch; token -1 at
 *patches lm_row, lm_target, lm_loss [n]              row s T + t, the token to predict there, -log
 *p image_row, image_time, image_error [m]      row of the first patch; 1..1000 (0: clean); mean
 *square latent, noise [m,h,w,c]                     normalised */
#include "config.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "lib/safetensors.h"
#include "worker/eval.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define DUMP_BYTES_MAX ((size_t)8 << 30)

static int open_loader(struct evaluation *ev, struct loader **out, struct err *e)
{
	struct loader_source source = { ev->data, 1 };
	struct loader_options options = {
		.seed = ev->spec->seed,
		.split = ev->split,
		.caption_first = ev->o.x.images.caption_first,
		.caption_dropout = ev->o.x.images.caption_dropout,
		.noise_limit = (int)ev->o.x.images.noise_limit,
		.once = true,
		.limit = ev->spec->limit,
	};

	return loader_new(&ev->o.dims, &source, 1, &options, out, e);
}

typedef int each_batch(void *arg, struct pass *pass, const struct batch *b,
		       const float *token_loss, const float *image_loss, struct err *e);

static void add_up(const struct batch *b, const float *token_loss, const float *image_loss,
		   struct eval_sums *s)
{
	for (int64_t i = 0; i < b->targets; i++)
		s->lm += (double)token_loss[i];
	for (int64_t i = 0; i < b->images; i++)
		s->diffusion += (double)image_loss[i];
	s->targets += b->targets;
	s->noised += b->noised;
	s->sequences += b->dims->B;
}

static int run_batches(struct evaluation *ev, struct loader *loader, struct pass *pass,
		       struct batch *b, struct eval_sums *s, each_batch *each, void *arg,
		       struct err *e)
{
	size_t rows = (size_t)(ev->o.dims.B * ev->o.dims.T);
	float *token_loss = xcalloc(rows, sizeof *token_loss);
	float *image_loss = xcalloc((size_t)ev->o.dims.images + 1, sizeof *image_loss);
	uint64_t done = 0, total = eval_samples(ev);
	int rc = 0;

	for (;;) {
		int64_t documents = 0;

		rc = job_should_stop(ev->job) ? job_stopped(ev->job, e)
					      : loader_next(loader, b, &documents, e);
		if (rc < 0 || documents == 0)
			break;
		pass_evaluate(pass, b, token_loss, image_loss);
		add_up(b, token_loss, image_loss, s);
		rc = each ? each(arg, pass, b, token_loss, image_loss, e) : 0;
		if (rc < 0)
			break;
		done += (uint64_t)documents;
		job_report(ev->job, "evaluating", done < total ? done : total, total, "sample");
	}
	xfree(token_loss);
	xfree(image_loss);
	return rc;
}

int eval_run_losses(struct evaluation *ev, struct eval_sums *s, each_batch *each, void *arg,
		    struct err *e)
{
	struct loader *loader = NULL;
	struct pass *pass = NULL;
	struct batch b;
	int rc;

	memset(s, 0, sizeof *s);
	batch_init(&b, &ev->o.dims);
	rc = open_loader(ev, &loader, e);
	if (rc == 0)
		rc = pass_new(&ev->o.model, false, &pass, e);
	if (rc == 0)
		rc = run_batches(ev, loader, pass, &b, s, each, arg, e);
	if (pass)
		pass_free(pass);
	if (loader)
		loader_free(loader);
	batch_release(&b);
	return rc;
}

/* ---- the dump */

struct dump {
	struct buf token, kind, start, limit, position; /* rows of sequences */
	struct buf lm_row, lm_target, lm_loss;
	struct buf image_row, image_time, image_error, latent, noise;
	int64_t sequences, targets, images;
	const struct dims *dims;
};

static void append_rows(struct buf *out, const int32_t *row, int64_t count, int64_t first)
{
	for (int64_t i = 0; i < count; i++) {
		int32_t shifted = (int32_t)(row[i] + first);

		buf_append(out, &shifted, sizeof shifted);
	}
}

static void append_kinds(struct dump *d, const struct batch *b)
{
	int64_t T = d->dims->T;

	for (int64_t i = 0; i < d->dims->B * T; i++) {
		uint8_t kind = i % T >= b->used[i / T] ? 0 : b->token[i] < 0 ? 2 : 1;

		buf_append(&d->kind, &kind, 1);
	}
}

static int dump_batch(void *arg, struct pass *pass, const struct batch *b, const float *token_loss,
		      const float *image_loss, struct err *e)
{
	struct dump *d = arg;
	size_t words = (size_t)(d->dims->B * d->dims->T) * sizeof(int32_t);
	size_t latent = (size_t)(b->images * dims_latent(d->dims)) * sizeof(float);
	float *noise = xcalloc(1, latent);
	int64_t first = d->sequences * d->dims->T;

	FAIL_IF(first + d->dims->B * d->dims->T > INT32_MAX ||
			d->latent.len + latent > DUMP_BYTES_MAX,
		e, TF_ELIMIT, "the dump would be too large: evaluate fewer samples");
	buf_append(&d->token, b->token, words);
	buf_append(&d->start, b->start, words);
	buf_append(&d->limit, b->limit, words);
	buf_append(&d->position, b->position, words);
	append_kinds(d, b);
	append_rows(&d->lm_row, b->lm_row, b->targets, first);
	append_rows(&d->lm_target, b->lm_target, b->targets, 0);
	buf_append(&d->lm_loss, token_loss, (size_t)b->targets * sizeof *token_loss);
	append_rows(&d->image_row, b->image_row, b->images, first);
	append_rows(&d->image_time, b->image_time, b->images, 0);
	buf_append(&d->image_error, image_loss, (size_t)b->images * sizeof *image_loss);
	if (b->images)
		pass_read(pass, NULL, NULL, noise);
	buf_append(&d->latent, b->latent, latent);
	buf_append(&d->noise, noise, latent);
	d->sequences += d->dims->B;
	d->targets += b->targets;
	d->images += b->images;
	xfree(noise);
	return 0;
}

static int write_dump(struct evaluation *ev, struct dump *d, struct err *e)
{
	const int64_t rows[2] = { d->sequences, d->dims->T };
	const int64_t pictures[4] = { d->images, d->dims->h, d->dims->w, d->dims->c };
	char *path = job_result_path(ev->job, "dump.safetensors");
	struct st_writer w;
	int rc;

	st_writer_init(&w);
	st_writer_meta(&w, "format", "transfused dump");
	st_writer_meta(&w, "model", ev->o.name);
	st_writer_meta(&w, "experiment", ev->o.facts.experiment);
	st_writer_add(&w, "token", ST_I32, 2, rows, d->token.data);
	st_writer_add(&w, "kind", ST_U8, 2, rows, d->kind.data);
	st_writer_add(&w, "start", ST_I32, 2, rows, d->start.data);
	st_writer_add(&w, "limit", ST_I32, 2, rows, d->limit.data);
	st_writer_add(&w, "position", ST_I32, 2, rows, d->position.data);
	st_writer_add(&w, "lm_row", ST_I32, 1, &d->targets, d->lm_row.data);
	st_writer_add(&w, "lm_target", ST_I32, 1, &d->targets, d->lm_target.data);
	st_writer_add(&w, "lm_loss", ST_F32, 1, &d->targets, d->lm_loss.data);
	st_writer_add(&w, "image_row", ST_I32, 1, &d->images, d->image_row.data);
	st_writer_add(&w, "image_time", ST_I32, 1, &d->images, d->image_time.data);
	st_writer_add(&w, "image_error", ST_F32, 1, &d->images, d->image_error.data);
	st_writer_add(&w, "latent", ST_F32, 4, pictures, d->latent.data);
	st_writer_add(&w, "noise", ST_F32, 4, pictures, d->noise.data);
	rc = st_writer_save(&w, path, e);
	st_writer_release(&w);
	xfree(path);
	return rc;
}

static void dump_release(struct dump *d)
{
	struct buf *all[] = { &d->token,     &d->kind,       &d->start,       &d->limit,
			      &d->position,  &d->lm_row,     &d->lm_target,   &d->lm_loss,
			      &d->image_row, &d->image_time, &d->image_error, &d->latent,
			      &d->noise };

	for (size_t i = 0; i < ARRAY_LEN(all); i++)
		buf_release(all[i]);
}

int eval_loss(struct evaluation *ev, struct err *e)
{
	struct dump d = { .dims = &ev->o.dims };
	struct eval_sums s;
	int rc = eval_run_losses(ev, &s, ev->spec->dump ? dump_batch : NULL, &d, e);

	if (rc == 0) {
		double lm = s.targets ? s.lm / (double)s.targets : 0;
		double diffusion = s.noised ? s.diffusion / (double)s.noised : 0;

		eval_result(ev, "lm", lm);
		eval_result(ev, "diffusion", diffusion);
		eval_result(ev, "loss", lm + ev->o.x.train.lambda * diffusion);
		eval_result(ev, "targets", (double)s.targets);
		eval_result(ev, "images", (double)s.noised);
		if (ev->spec->dump)
			rc = write_dump(ev, &d, e);
	}
	dump_release(&d);
	return rc;
}
