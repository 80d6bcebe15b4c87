/* SPDX-License-Identifier: Apache-2.0
 * Importing a dataset: samples from the source, captions to tokens, pictures cropped and resized,
 * through the autoencoder where one is given, into shards. Pictures are decoded by all threads
 * of the job, a batch at a time. A batch goes into the writer in the order of the source, good
 * and bad ones alike, so that an interrupted import goes on exactly where the last commit was. */
#include "config.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "model/vae.h"
#include "proto/limits.h"
#include "store/dataset.h"
#include "worker/image.h"
#include "worker/opened.h"
#include "worker/source.h"
#include "worker/spm.h"
#include "worker/worker.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define BATCH 64                  /* samples decoded, encoded and written together */
#define PIXELS_BESIDE_LATENTS 128 /* pictures up to this size keep their pixels too */
#define BAD_LOGGED 20

/* A sample on its way. */
struct item {
	struct buf name, text, file; /* file: the picture, encoded */
	char position[SOURCE_POSITION_MAX];
	bool bad; /* text says why */
	struct picture picture;
	int32_t *token;
	size_t tokens;
};

struct ingest {
	struct job *job;
	const Tf__IngestSpec *spec;
	struct source *source;
	struct dataset_writer *writer;
	struct dataset_plan plan;
	struct spm *spm;
	struct vae *vae;
	struct item item[BATCH];
	int items;
	uint8_t *pixels; /* [BATCH, size, size, 3], of the good ones */
	float *latents;  /* [BATCH, rows, columns, channels] */
	uint16_t *halves;
	uint64_t read; /* in this attempt */
	char first_bad[256];
};

/* ---- opening ---- */

static int open_vae(struct ingest *g, struct err *e)
{
	const struct vae_config *c;
	int factor, size = (int)g->spec->size;

	TRY(job_kernels(g->job, e));
	TRY(opened_vae(g->job, DT_F32, &g->vae, e));
	c = vae_config_of(g->vae);
	factor = vae_factor(c);
	FAIL_IF(size % factor, e, TF_EINVALID,
		"size: found %d, expected a multiple of %d, the autoencoder's factor", size,
		factor);
	g->plan.vae = vae_hash(g->vae);
	g->plan.rows = g->plan.columns = size / factor;
	g->plan.channels = c->latent_channels;
	g->plan.mean = vae_mean(g->vae);
	g->plan.deviation = vae_deviation(g->vae);
	return 0;
}

static int make_plan(struct ingest *g, struct err *e)
{
	const Tf__IngestSpec *s = g->spec;
	struct dataset_plan *p = &g->plan;

	p->kind = DATASET_TEXT;
	p->format = source_format(g->source);
	p->map_bytes = g->job->assignment->map_bytes;
	p->holdout.percent = s->has_holdout_percent ? s->holdout_percent : 0;
	p->holdout.name = s->heldout;
	p->holdout.names = s->n_heldout;
	if (job_input(g->job, "tokenizer", 0)) {
		TRY(opened_tokenizer(g->job, &g->spm, e));
		p->tokenizer = spm_hash(g->spm);
		p->pieces = spm_pieces(g->spm);
	}
	if (!source_has_pictures(g->source)) {
		FAIL_IF(job_input(g->job, "vae", 0), e, TF_EINVALID,
			"an autoencoder is given, but the files (%s) have no pictures",
			p->format);
		return 0;
	}
	p->kind = DATASET_IMAGES;
	p->height = p->width = (int)s->size;
	p->pixels = true;
	if (job_input(g->job, "vae", 0)) {
		TRY(open_vae(g, e));
		p->kind = DATASET_PAIRS;
		p->pixels = s->size <= PIXELS_BESIDE_LATENTS;
	}
	return 0;
}

static int open_all(struct ingest *g, struct err *e)
{
	const Tf__Assignment *a = g->job->assignment;
	size_t pixels = (size_t)g->spec->size * g->spec->size * 3, latent;

	TRY(source_open(a->source, a->n_source, g->spec->format, "", &g->source, e));
	TRY(make_plan(g, e));
	TRY(dataset_writer_open(g->job->output, &g->plan, &g->writer, e));
	source_close(g->source);
	TRY(source_open(a->source, a->n_source, g->spec->format,
			dataset_writer_position(g->writer), &g->source, e));
	if (*dataset_writer_position(g->writer))
		log_info("going on after %" PRIu64 " samples", dataset_writer_samples(g->writer));
	log_info("importing %s as %s", source_format(g->source), dataset_kind_name(g->plan.kind));
	if (g->plan.kind != DATASET_TEXT)
		g->pixels = xmalloc(BATCH * pixels);
	latent = (size_t)g->plan.rows * g->plan.columns * g->plan.channels;
	if (latent) {
		g->latents = xmalloc(BATCH * latent * sizeof *g->latents);
		g->halves = xmalloc(BATCH * latent * sizeof *g->halves);
	}
	return 0;
}

static void close_all(struct ingest *g)
{
	dataset_writer_close(g->writer);
	source_close(g->source);
	if (g->spm)
		spm_close(g->spm);
	if (g->vae)
		vae_free(g->vae);
	for (int i = 0; i < BATCH; i++) {
		struct item *m = &g->item[i];

		buf_release(&m->name);
		buf_release(&m->text);
		buf_release(&m->file);
		picture_release(&m->picture);
		xfree(m->token);
	}
	xfree(g->pixels);
	xfree(g->latents);
	xfree(g->halves);
}

/* ---- a batch ---- */

static void set(struct buf *b, const void *data, size_t bytes)
{
	buf_clear(b);
	buf_append(b, data ? data : "", bytes);
}

static void make_bad(struct item *m, const char *reason)
{
	m->bad = true;
	set(&m->text, reason, strlen(reason));
}

/* Reads up to BATCH items; fewer at the end of the source. */
static int read_batch(struct ingest *g, struct err *e)
{
	struct source_item found;

	for (g->items = 0; g->items < BATCH; g->items++) {
		struct item *m = &g->item[g->items];

		TRY(source_next(g->source, &found, e));
		if (found.what == SOURCE_END)
			return 0;
		set(&m->name, found.name, strlen(found.name));
		set(&m->text, found.text, found.text_bytes);
		set(&m->file, found.picture, found.picture_bytes);
		snprintf(m->position, sizeof m->position, "%s", found.position);
		m->bad = found.what == SOURCE_BAD;
	}
	return 0;
}

/* Decodes and fits an item's picture into place i of the batch's pixels. Any thread. */
static void decode(struct ingest *g, struct item *m)
{
	struct picture whole = { 0 };
	struct err bad = ERR_INIT;

	if (image_decode(m->file.data, m->file.len, m->name.data, &whole, &bad) < 0 ||
	    image_fit(&whole, g->plan.width, g->plan.height, &m->picture, &bad) < 0)
		make_bad(m, bad.text);
	picture_release(&whole);
}

static void decode_batch(struct ingest *g)
{
	int threads = g->job->threads > 0 ? g->job->threads : 1;

	(void)threads;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
	for (int i = 0; i < g->items; i++)
		if (!g->item[i].bad)
			decode(g, &g->item[i]);
}

static void tokenize_batch(struct ingest *g)
{
	for (int i = 0; i < g->items; i++) {
		struct item *m = &g->item[i];
		struct err bad = ERR_INIT;

		if (!m->bad && spm_encode(g->spm, m->text.data, m->text.len, &m->token,
					  &m->tokens, &bad) < 0)
			make_bad(m, bad.text);
	}
}

/* Latents of the good pictures, in their order. */
static int encode_batch(struct ingest *g, struct err *e)
{
	size_t pixels = (size_t)g->plan.height * g->plan.width * 3;
	size_t latent = (size_t)g->plan.rows * g->plan.columns * g->plan.channels;
	int64_t good = 0;

	for (int i = 0; i < g->items; i++)
		if (!g->item[i].bad)
			memcpy(g->pixels + good++ * pixels, g->item[i].picture.rgb, pixels);
	if (!g->vae || !good)
		return 0;
	TRY(vae_encode_u8(g->vae, g->pixels, good, g->plan.height, g->plan.width, g->latents, e));
	for (size_t i = 0; i < (size_t)good * latent; i++)
		g->halves[i] = bf16_from_float(g->latents[i]);
	return 0;
}

static int write_item(struct ingest *g, const struct item *m, int64_t number, struct err *e)
{
	size_t latent = (size_t)g->plan.rows * g->plan.columns * g->plan.channels;
	struct sample s = { .name = m->name.data,
			    .text = m->text.data,
			    .text_bytes = m->text.len };

	if (m->bad) {
		if (!*g->first_bad)
			snprintf(g->first_bad, sizeof g->first_bad, "%.100s: %.150s",
				 m->name.data, m->text.data);
		if (dataset_writer_bad_samples(g->writer) < BAD_LOGGED)
			log_warn("left out %s: %s", m->name.data, m->text.data);
		return dataset_writer_bad(g->writer, m->name.data, m->text.data, m->position, e);
	}
	if (g->spm) {
		s.token = m->token;
		s.tokens = m->tokens;
		s.token_bytes = 4;
	}
	if (g->plan.pixels) {
		s.pixels = m->picture.rgb;
		s.height = m->picture.height;
		s.width = m->picture.width;
	}
	if (g->vae) {
		s.latent = g->halves + (size_t)number * latent;
		s.rows = g->plan.rows;
		s.columns = g->plan.columns;
		s.channels = g->plan.channels;
	}
	return dataset_writer_add(g->writer, &s, m->position, e);
}

static int write_batch(struct ingest *g, struct err *e)
{
	int64_t good = 0;
	int rc = 0;

	for (int i = 0; i < g->items; i++) {
		struct item *m = &g->item[i];

		if (rc == 0)
			rc = write_item(g, m, good, e);
		good += !m->bad;
		picture_release(&m->picture);
		xfree(m->token);
	}
	g->read += (uint64_t)g->items;
	return rc;
}

static int import(struct ingest *g, struct err *e)
{
	for (;;) {
		uint64_t done;

		if (job_should_stop(g->job)) {
			TRY(dataset_writer_sync(g->writer, e));
			return job_stopped(g->job, e);
		}
		TRY(read_batch(g, e));
		if (!g->items)
			return 0;
		if (g->plan.kind != DATASET_TEXT)
			decode_batch(g);
		if (g->spm)
			tokenize_batch(g);
		if (g->plan.kind != DATASET_TEXT)
			TRY(encode_batch(g, e));
		TRY(write_batch(g, e));
		done = dataset_writer_samples(g->writer) + dataset_writer_bad_samples(g->writer);
		job_gauge(g->job, "bad", (double)dataset_writer_bad_samples(g->writer));
		job_report(g->job, "importing", done,
			   g->job->assignment->n_source == 1 ? source_total(g->source) : 0,
			   "sample");
	}
}

/* ---- the end ---- */

static void state_facts(struct ingest *g, const struct dataset_info *i, double seconds)
{
	struct job *job = g->job;

	job_artefact(job, TF__ARTEFACT_KIND__DATASET, i->hash);
	job_fact(job, "kind", "%s", dataset_kind_name(i->kind));
	job_fact(job, "format", "%s", i->format);
	job_fact(job, "train", "%" PRIu64, i->samples[DATASET_TRAIN]);
	job_fact(job, "heldout", "%" PRIu64, i->samples[DATASET_HELDOUT]);
	job_fact(job, "bad", "%" PRIu64, i->bad);
	if (g->spm) {
		job_fact(job, "tokens", "%" PRIu64, i->tokens[0] + i->tokens[1]);
		job_fact(job, "pieces", "%d", (int)i->pieces);
	}
	if (i->height)
		job_fact(job, "size", "%d", i->height);
	if (i->channels) {
		job_fact(job, "latent_height", "%d", i->rows);
		job_fact(job, "latent_width", "%d", i->columns);
		job_fact(job, "latent_channels", "%d", i->channels);
	}
	job_result(job, "samples", (double)(i->samples[0] + i->samples[1]));
	job_result(job, "bad", (double)i->bad);
	job_result(job, "samples_per_s", seconds > 0 ? (double)g->read / seconds : 0);
	log_info("imported %" PRIu64 " + %" PRIu64 " samples, left out %" PRIu64, i->samples[0],
		 i->samples[1], i->bad);
}

static int run(struct ingest *g, struct err *e)
{
	int64_t start = clock_mono_ms();
	struct dataset_info info;

	TRY(open_all(g, e));
	TRY(import(g, e));
	FAIL_IF(!dataset_writer_samples(g->writer) && !dataset_writer_bad_samples(g->writer), e,
		TF_EINVALID, "there is no sample in these files");
	FAIL_IF(!dataset_writer_samples(g->writer), e, TF_EINVALID,
		"none of the %" PRIu64 " samples could be used; the first is %s",
		dataset_writer_bad_samples(g->writer),
		*g->first_bad ? g->first_bad : "of an earlier attempt");
	TRY(dataset_writer_finish(g->writer, &info, e));
	state_facts(g, &info, (double)(clock_mono_ms() - start) / 1000);
	return 0;
}

int job_ingest(struct job *job, struct err *e)
{
	struct ingest *g;
	int rc;

	FAIL_IF(!job->spec->ingest || !job->output, e, TF_EINVALID,
		"the job has no ingest in its spec, or no folder for the dataset");
	FAIL_IF(job->spec->ingest->size < 1 || job->spec->ingest->size > LIMIT_INGEST_SIDE, e,
		TF_EINVALID, "size: found %u, expected 1 to %u", job->spec->ingest->size,
		LIMIT_INGEST_SIDE);
	g = xcalloc(1, sizeof *g);
	g->job = job;
	g->spec = job->spec->ingest;
	rc = run(g, e);
	close_all(g);
	xfree(g);
	return rc;
}
