/* SPDX-License-Identifier: Apache-2.0
 * From datasets to packed batches; see loader.h. What a document is (its sample, layout and
 * timestep) is a function of (seed, source, number), so that the state to save is a counter a
 * source and the numbers of the documents that wait. */
#include "config.h"
#include "worker/loader.h"
#include "lib/mem.h"
#include "worker/packer.h"

#include <string.h>

#define STATE_VERSION 1
/* Sample ids, which key every draw: the source above, the number below. */
#define NUMBER_BITS 44

enum layout { LAYOUT_TEXT, LAYOUT_CAPTION_FIRST, LAYOUT_IMAGE_FIRST, LAYOUT_IMAGE_ALONE };

struct source {
	struct dataset *data;
	const struct dataset_info *info;
	double weight;
	uint64_t samples; /* of the split, limited */
	uint64_t drawn, positions, left_out;
};

struct loader {
	const struct dims *dims;
	struct loader_options options;
	struct source source[LOADER_SOURCES_MAX];
	int sources;
	struct packer packer;
	int32_t *token; /* of the document being added */
	size_t token_room;
	float *latent;
};

/* ---- what a document is */

static int64_t sample_id(uint32_t source, uint64_t number)
{
	return (int64_t)((uint64_t)source << NUMBER_BITS | number);
}

static uint64_t index_of(const struct loader *l, uint32_t source, uint64_t number)
{
	uint64_t n = l->source[source].samples, epoch = number / n;

	if (l->options.once)
		return number;
	return philox_permute(l->options.seed, epoch * LOADER_SOURCES_MAX + source, number % n, n);
}

static int fetch(const struct loader *l, uint32_t source, uint64_t number, struct sample *s,
		 struct err *e)
{
	return dataset_get(l->source[source].data, l->options.split, index_of(l, source, number),
			   s, e);
}

static enum layout layout_of(const struct loader *l, const struct sample *s, int64_t id)
{
	uint64_t seed = l->options.seed;

	if (!s->latent)
		return LAYOUT_TEXT;
	if (s->tokens == 0)
		return LAYOUT_IMAGE_ALONE;
	if (philox_uniform(seed, PHILOX_LAYOUT, id, 0) >= l->options.caption_first)
		return LAYOUT_IMAGE_FIRST;
	return philox_uniform(seed, PHILOX_LAYOUT, id, 1) < l->options.caption_dropout
		       ? LAYOUT_IMAGE_ALONE
		       : LAYOUT_CAPTION_FIRST;
}

static int32_t time_of(const struct loader *l, enum layout layout, int64_t id)
{
	uint64_t most = layout == LAYOUT_IMAGE_FIRST ? l->options.noise_limit : TIMESTEPS;
	enum philox_purpose purpose = l->options.once ? PHILOX_EVAL : PHILOX_TIME;

	/* Element 0 of PHILOX_EVAL begins the noise: the time lies far beyond any latent. */
	return 1 + (int32_t)philox_below(l->options.seed, purpose, id, (uint64_t)1 << 40, most);
}

/* Positions of the whole document, marks included. */
static int64_t length_of(const struct loader *l, const struct sample *s, enum layout layout)
{
	int64_t text = layout == LAYOUT_IMAGE_ALONE ? 0 : (int64_t)s->tokens;
	int64_t image = layout == LAYOUT_TEXT ? 0 : dims_patches(l->dims) + 2;

	return 2 + text + image;
}

/* ---- drawing */

/* The source with the least positions for its weight that has documents left, or -1. */
static int next_source(const struct loader *l)
{
	int best = -1;

	for (int i = 0; i < l->sources; i++) {
		const struct source *s = &l->source[i];

		if (s->samples == 0 || (l->options.once && s->drawn >= s->samples))
			continue;
		if (best < 0 || (double)s->positions / s->weight <
					(double)l->source[best].positions / l->source[best].weight)
			best = i;
	}
	return best;
}

/* Draws one document into the packer; *none when there are no more. */
static int draw(struct loader *l, bool *none, struct err *e)
{
	for (uint64_t tries = 0;; tries++) {
		int i = next_source(l);
		struct source *source = i < 0 ? NULL : &l->source[i];
		struct waiting w = { .source = (uint32_t)i };
		enum layout layout;
		struct sample s;

		*none = !source;
		if (!source)
			return 0;
		FAIL_IF(!l->options.once && tries > 2 * source->samples, e, TF_EINVALID,
			"no document of the datasets fits a sequence of %lld positions",
			(long long)l->dims->T);
		w.number = source->drawn++;
		TRY(fetch(l, w.source, w.number, &s, e));
		layout = layout_of(l, &s, sample_id(w.source, w.number));
		w.image = layout != LAYOUT_TEXT;
		w.length = length_of(l, &s, layout);
		if (w.image && w.length > l->dims->T) {
			source->left_out++;
			continue;
		}
		source->positions += (uint64_t)w.length;
		packer_add(&l->packer, &w);
		return 0;
	}
}

static int fill(struct loader *l, struct err *e)
{
	bool none = false;

	while (!none && !packer_is_full(&l->packer))
		TRY(draw(l, &none, e));
	return 0;
}

/* ---- adding to a batch */

static const int32_t *tokens(struct loader *l, const struct sample *s, size_t first, size_t count)
{
	if (count > l->token_room) {
		l->token_room = count;
		l->token = xrealloc(l->token, count, sizeof *l->token);
	}
	sample_tokens(s, first, count, l->token);
	return l->token;
}

/* What fits of a text, from w->from on; *left is what then remains of its positions. */
static int add_text(struct loader *l, struct batch *b, int64_t row, struct waiting *w,
		    const struct sample *s, struct err *e)
{
	int64_t room = batch_room(b, row), rest = (int64_t)(s->tokens - w->from), take = rest;
	struct segment segment = { .kind = SEGMENT_TEXT };
	struct document doc = { &segment, 1, w->from == 0, true };

	if (w->length > room) {
		doc.eos = false;
		take = room - doc.bos;
	}
	segment.token = tokens(l, s, w->from, (size_t)take);
	segment.count = take;
	TRY(batch_add(b, row, &doc, e));
	w->from += (uint64_t)take;
	w->length -= take + doc.bos + doc.eos;
	return 0;
}

static int add_pair(struct loader *l, struct batch *b, int64_t row, struct waiting *w,
		    const struct sample *s, struct err *e)
{
	const struct dataset_info *info = l->source[w->source].info;
	int64_t id = sample_id(w->source, w->number);
	enum layout layout = layout_of(l, s, id);
	struct segment text = { .kind = SEGMENT_TEXT,
				.token = tokens(l, s, 0, s->tokens),
				.count = (int64_t)s->tokens };
	struct segment image = { .kind = SEGMENT_IMAGE,
				 .latent = l->latent,
				 .time = time_of(l, layout, id),
				 .sample = id };
	struct segment both[2];
	struct document doc = { both, layout == LAYOUT_IMAGE_ALONE ? 1 : 2, true, true };

	sample_latent(s, info->mean, info->deviation, l->latent);
	both[0] = layout == LAYOUT_CAPTION_FIRST ? text : image;
	both[1] = layout == LAYOUT_CAPTION_FIRST ? image : text;
	TRY(batch_add(b, row, &doc, e));
	w->length = 0;
	return 0;
}

/* Adds document `index` of the packer to a row; a text's rest goes on waiting in its place. */
static int add(struct loader *l, struct batch *b, int64_t row, int index, struct err *e)
{
	struct waiting *w = &l->packer.list[index];
	struct sample s;

	TRY(fetch(l, w->source, w->number, &s, e));
	TRY(w->image ? add_pair(l, b, row, w, &s, e) : add_text(l, b, row, w, &s, e));
	if (w->length == 0)
		packer_remove(&l->packer, index);
	return 0;
}

int loader_next(struct loader *l, struct batch *b, int64_t *documents, struct err *e)
{
	int64_t added = 0;

	batch_clear(b, l->options.seed, l->options.once ? PHILOX_EVAL : PHILOX_NOISE);
	for (int64_t row = 0; row < l->dims->B; row++)
		for (;;) {
			int index;

			TRY(fill(l, e));
			index = packer_find(&l->packer, batch_room(b, row), l->dims->T,
					    b->images < l->dims->images);
			if (index < 0)
				break;
			TRY(add(l, b, row, index, e));
			added++;
		}
	if (documents)
		*documents = added;
	return 0;
}

void loader_rewind(struct loader *l)
{
	l->packer.count = 0;
	for (int i = 0; i < l->sources; i++)
		l->source[i].drawn = l->source[i].positions = l->source[i].left_out = 0;
}

struct loader_count loader_count(const struct loader *l, int source)
{
	const struct source *s = &l->source[source];

	CHECK(source >= 0 && source < l->sources);
	return (struct loader_count) { s->drawn, s->positions, s->left_out,
				       s->samples ? s->drawn / s->samples : 0 };
}

/* ---- opening */

static int check_source(const struct dims *m, const struct dataset_info *info, int number,
			struct err *e)
{
	FAIL_IF(info->kind == DATASET_IMAGES, e, TF_EMISMATCH,
		"dataset %d of the list holds pixels; import it with --vae and --tokenizer",
		number + 1);
	FAIL_IF(!*info->tokenizer, e, TF_EMISMATCH,
		"dataset %d of the list was imported without a tokenizer", number + 1);
	FAIL_IF(info->pieces != m->vocabulary.pieces, e, TF_EMISMATCH,
		"dataset %d of the list has a tokenizer of %d pieces, the model one of %d",
		number + 1, (int)info->pieces, (int)m->vocabulary.pieces);
	FAIL_IF(info->kind == DATASET_PAIRS &&
			(info->rows != m->h || info->columns != m->w || info->channels != m->c),
		e, TF_EMISMATCH,
		"dataset %d of the list has latents of %dx%dx%d, the model takes %lldx%lldx%lld",
		number + 1, info->rows, info->columns, info->channels, (long long)m->h,
		(long long)m->w, (long long)m->c);
	return 0;
}

/* All datasets have the same tokenizer, and those with pictures the same VAE. */
static int check_together(const struct loader *l, struct err *e)
{
	const char *vae = "";

	for (int i = 0; i < l->sources; i++) {
		const struct dataset_info *info = l->source[i].info;

		FAIL_IF(strcmp(info->tokenizer, l->source[0].info->tokenizer) != 0, e,
			TF_EMISMATCH,
			"datasets 1 and %d of the list were imported with different tokenizers",
			i + 1);
		FAIL_IF(*info->vae && *vae && strcmp(info->vae, vae) != 0, e, TF_EMISMATCH,
			"dataset %d of the list was imported with another autoencoder than those "
			"before it",
			i + 1);
		if (*info->vae)
			vae = info->vae;
	}
	return 0;
}

static int add_source(struct loader *l, const struct loader_source *given, struct err *e)
{
	struct source *s = &l->source[l->sources];

	CHECK(given->weight > 0);
	s->data = given->data;
	s->info = dataset_info(given->data);
	s->weight = given->weight;
	s->samples = s->info->samples[l->options.split];
	if (l->options.once && l->options.limit && s->samples > l->options.limit)
		s->samples = l->options.limit;
	return check_source(l->dims, s->info, l->sources++, e);
}

int loader_new(const struct dims *dims, const struct loader_source *source, int sources,
	       const struct loader_options *options, struct loader **out, struct err *e)
{
	struct loader *l = xcalloc(1, sizeof *l);
	uint64_t samples = 0;
	int rc = 0;

	CHECK(sources > 0 && sources <= LOADER_SOURCES_MAX);
	l->dims = dims;
	l->options = *options;
	l->latent = xcalloc(dims_latent(dims) + 1, sizeof *l->latent);
	for (int i = 0; i < sources && rc == 0; i++) {
		rc = add_source(l, &source[i], e);
		samples += l->source[i].samples;
	}
	if (rc == 0)
		rc = check_together(l, e);
	if (rc == 0 && samples == 0)
		rc = err_set(e, TF_EINVALID, "the datasets have no samples in the split '%s'",
			     dataset_split_name(options->split));
	if (rc < 0) {
		loader_free(l);
		return rc;
	}
	*out = l;
	return 0;
}

void loader_free(struct loader *l)
{
	if (!l)
		return;
	xfree(l->token);
	xfree(l->latent);
	xfree(l);
}

/* ---- saving: little-endian words of 64 bits */

static void put(struct buf *out, uint64_t word)
{
	uint8_t bytes[8];

	for (int i = 0; i < 8; i++)
		bytes[i] = (uint8_t)(word >> 8 * i);
	buf_append(out, bytes, sizeof bytes);
}

static uint64_t get(const uint8_t **at)
{
	uint64_t word = 0;

	for (int i = 0; i < 8; i++)
		word |= (uint64_t)(*at)[i] << 8 * i;
	*at += 8;
	return word;
}

enum { HEAD_WORDS = 4, SOURCE_WORDS = 4, WAITING_WORDS = 4 };

void loader_save(const struct loader *l, struct buf *out)
{
	put(out, STATE_VERSION);
	put(out, l->options.seed);
	put(out, (uint64_t)l->sources);
	put(out, (uint64_t)l->packer.count);
	for (int i = 0; i < l->sources; i++) {
		put(out, l->source[i].samples);
		put(out, l->source[i].drawn);
		put(out, l->source[i].positions);
		put(out, l->source[i].left_out);
	}
	for (int i = 0; i < l->packer.count; i++) {
		const struct waiting *w = &l->packer.list[i];

		put(out, w->source);
		put(out, w->number);
		put(out, w->from);
		put(out, (uint64_t)w->length);
	}
}

static int restore_waiting(struct loader *l, const uint8_t **at, struct err *e)
{
	struct waiting w = { .source = (uint32_t)get(at) };
	struct sample s;

	w.number = get(at);
	w.from = get(at);
	w.length = (int64_t)get(at);
	FAIL_IF(w.source >= (uint32_t)l->sources || w.number >= l->source[w.source].drawn, e,
		TF_ECORRUPT, "the loader's state names a document that was never drawn");
	TRY(fetch(l, w.source, w.number, &s, e));
	w.image = s.latent != NULL;
	FAIL_IF(w.length <= 0 || w.length > (int64_t)s.tokens + l->dims->T || w.from > s.tokens, e,
		TF_ECORRUPT,
		"the loader's state names %lld positions of a document that has fewer",
		(long long)w.length);
	packer_add(&l->packer, &w);
	return 0;
}

int loader_restore(struct loader *l, const void *state, size_t bytes, struct err *e)
{
	const uint8_t *at = state;
	uint64_t words = bytes / 8, version, seed, sources, waiting;

	FAIL_IF(bytes % 8 || words < HEAD_WORDS, e, TF_ECORRUPT,
		"the loader's state has %zu bytes, expected whole words", bytes);
	version = get(&at);
	seed = get(&at);
	sources = get(&at);
	waiting = get(&at);
	FAIL_IF(version != STATE_VERSION, e, TF_EVERSION,
		"the loader's state has version %llu, not %d", (unsigned long long)version,
		STATE_VERSION);
	FAIL_IF(seed != l->options.seed || sources != (uint64_t)l->sources, e, TF_EMISMATCH,
		"the loader's state belongs to another seed or to other datasets");
	FAIL_IF(waiting > PACKER_WAITING ||
			words != HEAD_WORDS + sources * SOURCE_WORDS + waiting * WAITING_WORDS,
		e, TF_ECORRUPT, "the loader's state is cut or too long");
	loader_rewind(l);
	for (int i = 0; i < l->sources; i++) {
		struct source *s = &l->source[i];
		uint64_t samples = get(&at);

		FAIL_IF(samples != s->samples, e, TF_EMISMATCH,
			"dataset %d of the list had %llu samples when the state was saved, now "
			"%llu",
			i + 1, (unsigned long long)samples, (unsigned long long)s->samples);
		s->drawn = get(&at);
		s->positions = get(&at);
		s->left_out = get(&at);
	}
	for (uint64_t i = 0; i < waiting; i++)
		TRY(restore_waiting(l, &at, e));
	return 0;
}
