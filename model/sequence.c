/* SPDX-License-Identifier: Apache-2.0
 * The layout of documents, and batches made of them; see sequence.h. */
#include "config.h"
#include "model/sequence.h"
#include "lib/mem.h"

#include <string.h>

int64_t document_length(const struct dims *m, const struct document *doc)
{
	int64_t n = (doc->bos ? 1 : 0) + (doc->eos ? 1 : 0);

	for (int64_t i = 0; i < doc->segments; i++)
		n += doc->segment[i].kind == SEGMENT_TEXT ? doc->segment[i].count
							  : dims_patches(m) + 2;
	return n;
}

void element_token(struct element *out, int32_t at, int32_t token, int32_t segment)
{
	*out = (struct element){ .token = token, .segment = segment, .patch = -1, .limit = at,
				 .target = -1 };
}

/* Where document_layout is. */
struct cursor {
	struct element *out;
	int32_t at;
	bool causal;
};

static void put(struct cursor *c, int32_t token, int32_t segment)
{
	element_token(&c->out[c->at], c->at, token, segment);
	c->at++;
}

static void put_patches(struct cursor *c, int32_t segment, int32_t patches)
{
	int32_t last = c->at + patches - 1;

	for (int32_t i = 0; i < patches; i++) {
		put(c, -1, segment);
		c->out[c->at - 1].patch = i;
		if (!c->causal)
			c->out[c->at - 1].limit = last;
	}
}

void document_layout(const struct dims *m, const struct document *doc, struct element *out)
{
	const struct vocabulary *v = &m->vocabulary;
	struct cursor c = { .out = out, .causal = m->causal };

	if (doc->bos)
		put(&c, v->bos, -1);
	for (int32_t i = 0; i < doc->segments; i++) {
		const struct segment *s = &doc->segment[i];

		if (s->kind == SEGMENT_TEXT) {
			for (int64_t n = 0; n < s->count; n++)
				put(&c, s->token[n], i);
			continue;
		}
		put(&c, v->boi, i);
		put_patches(&c, i, (int32_t)dims_patches(m));
		put(&c, v->eoi, i);
	}
	if (doc->eos)
		put(&c, v->eos, -1);
	for (int32_t i = 0; i + 1 < c.at; i++)
		if (out[i].token >= 0 && out[i].token != v->boi)
			out[i].target = out[i + 1].token;
}

static int segment_check(const struct dims *m, const struct segment *s, int64_t i, struct err *e)
{
	if (s->kind == SEGMENT_IMAGE) {
		FAIL_IF(m->images < 1, e, TF_EINVALID,
			"segment %lld is a picture, the model has text alone", (long long)i);
		FAIL_IF(!s->latent, e, TF_EINVALID, "segment %lld: a picture without a latent",
			(long long)i);
		FAIL_IF(s->time < 0 || s->time > TIMESTEPS, e, TF_EINVALID,
			"segment %lld: timestep %d, expected 0 to %d", (long long)i, s->time,
			TIMESTEPS);
		return 0;
	}
	FAIL_IF(s->count < 0, e, TF_EINVALID, "segment %lld: %lld tokens", (long long)i,
		(long long)s->count);
	for (int64_t n = 0; n < s->count; n++)
		FAIL_IF(s->token[n] < 0 || s->token[n] >= m->vocabulary.pieces, e, TF_EINVALID,
			"segment %lld: token %lld is %d, expected a piece below %d", (long long)i,
			(long long)n, s->token[n], m->vocabulary.pieces);
	return 0;
}

int document_check(const struct dims *m, const struct document *doc, struct err *e)
{
	for (int64_t i = 0; i < doc->segments; i++)
		TRY(segment_check(m, &doc->segment[i], i, e));
	return 0;
}

void batch_init(struct batch *b, const struct dims *m)
{
	size_t rows = (size_t)(m->B * m->T), images = (size_t)m->images;

	*b = (struct batch){ .dims = m };
	b->token = xcalloc(rows, sizeof *b->token);
	b->start = xcalloc(rows, sizeof *b->start);
	b->limit = xcalloc(rows, sizeof *b->limit);
	b->position = xcalloc(rows, sizeof *b->position);
	b->used = xcalloc((size_t)m->B, sizeof *b->used);
	b->lm_row = xcalloc(rows, sizeof *b->lm_row);
	b->lm_target = xcalloc(rows, sizeof *b->lm_target);
	b->image_row = xcalloc(images + 1, sizeof *b->image_row);
	b->image_time = xcalloc(images + 1, sizeof *b->image_time);
	b->image_sample = xcalloc(images + 1, sizeof *b->image_sample);
	b->latent = xcalloc(images * (size_t)dims_latent(m) + 1, sizeof *b->latent);
	batch_clear(b, 0, PHILOX_NOISE);
}

void batch_release(struct batch *b)
{
	xfree(b->token);
	xfree(b->start);
	xfree(b->limit);
	xfree(b->position);
	xfree(b->used);
	xfree(b->lm_row);
	xfree(b->lm_target);
	xfree(b->image_row);
	xfree(b->image_time);
	xfree(b->image_sample);
	xfree(b->latent);
	*b = (struct batch){ 0 };
}

void batch_clear(struct batch *b, uint64_t noise_seed, enum philox_purpose purpose)
{
	const struct dims *m = b->dims;

	for (int64_t i = 0; i < m->B * m->T; i++) {
		int32_t t = (int32_t)(i % m->T);

		b->token[i] = m->vocabulary.pad;
		b->start[i] = b->limit[i] = t;
		b->position[i] = m->positions_restart ? 0 : t;
	}
	memset(b->used, 0, (size_t)m->B * sizeof *b->used);
	b->targets = b->images = b->noised = 0;
	b->noise_seed = noise_seed;
	b->noise_purpose = purpose;
	b->noise = NULL;
}

int64_t batch_room(const struct batch *b, int64_t i)
{
	return b->dims->T - b->used[i];
}

static void add_image(struct batch *b, const struct segment *s, int32_t row)
{
	int64_t E = dims_latent(b->dims);

	b->image_row[b->images] = row;
	b->image_time[b->images] = s->time;
	b->image_sample[b->images] = s->sample;
	memcpy(b->latent + b->images * E, s->latent, (size_t)E * sizeof *b->latent);
	b->images++;
	if (s->time > 0)
		b->noised++;
}

static void place(struct batch *b, int64_t i, const struct document *doc,
		  const struct element *element, int32_t n)
{
	int32_t first = b->used[i];

	for (int32_t t = 0; t < n; t++) {
		const struct element *x = &element[t];
		int32_t row = (int32_t)(i * b->dims->T) + first + t;

		b->token[row] = x->token;
		b->start[row] = first;
		b->limit[row] = first + x->limit;
		b->position[row] = b->dims->positions_restart ? t : first + t;
		if (x->patch == 0)
			add_image(b, &doc->segment[x->segment], row);
		if (x->target < 0)
			continue;
		b->lm_row[b->targets] = row;
		b->lm_target[b->targets] = x->target;
		b->targets++;
	}
	b->used[i] += n;
}

static int64_t count_images(const struct document *doc)
{
	int64_t n = 0;

	for (int64_t i = 0; i < doc->segments; i++)
		n += doc->segment[i].kind == SEGMENT_IMAGE;
	return n;
}

int batch_add(struct batch *b, int64_t i, const struct document *doc, struct err *e)
{
	int64_t n = document_length(b->dims, doc), images = count_images(doc);
	struct element *element;

	CHECK(i >= 0 && i < b->dims->B);
	TRY(document_check(b->dims, doc, e));
	FAIL_IF(n > batch_room(b, i), e, TF_ELIMIT,
		"a document of %lld positions, the sequence has room for %lld", (long long)n,
		(long long)batch_room(b, i));
	FAIL_IF(b->images + images > b->dims->images, e, TF_ELIMIT,
		"a batch of more than %lld pictures", (long long)b->dims->images);
	element = xcalloc((size_t)n + 1, sizeof *element);
	document_layout(b->dims, doc, element);
	place(b, i, doc, element, (int32_t)n);
	xfree(element);
	return 0;
}
