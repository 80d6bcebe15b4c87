/* SPDX-License-Identifier: Apache-2.0
 * What a sampler computes of elements that the host lays out: their keys and values into the cache,
 * over the same weights as pass_forward.c, with cached keys and values in place of whole
 * sequences. */
#include "config.h"
#include "model/linear.h"
#include "model/sampler_plan.h"
#include "lib/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS_LEAST 32
#define COLUMNS_STEP 8      /* more than one element: rounded up, so that shapes are few */

#define ADD(name, type, a, b, c, d_) plan_add(plan, #name, &slot[name], type, a, b, c, d_);

static int64_t columns_of(const struct dims *m)
{
	int64_t columns = dims_patches(m) + 2;

	return columns > COLUMNS_LEAST ? columns : COLUMNS_LEAST;
}

/* The plan of everything but the cache, then the cache. keys and values are [layers]. */
static void plan_all(struct plan *plan, const struct dims *m, struct tensor slot[SAMPLER_COUNT],
		     struct tensor *keys, struct tensor *values, int64_t n, int64_t S,
		     int64_t context)
{
	const int64_t R = S * columns_of(m), d = m->d, F = m->F, V = m->vocabulary.rows;
	const int64_t E = dims_latent(m), P = dims_patches(m), D = dims_patch_width(m);
	const int64_t W = dims_time_width(m), nP = n * P, SP = S * P;
	const int64_t step = (DENOISE_VALUES + 3) * n; /* no two prompts alike */
	const enum dtype act = m->act;

	SAMPLER_TENSORS(ADD)
	for (int64_t l = 0; l < m->layers; l++) {
		plan_add(plan, "keys", &keys[l], act, S, context, d, 0);
		plan_add(plan, "values", &values[l], act, S, context, d, 0);
	}
}

void sampler_memory(const struct dims *dims, int64_t sequences, int64_t context, bool guided,
		    struct memory_plan *out)
{
	struct tensor slot[SAMPLER_COUNT];
	struct tensor *cache = xcalloc((size_t)dims->layers * 2, sizeof *cache);
	int64_t S = guided ? 2 * sequences : sequences;
	struct plan plan = PLAN_INIT;

	plan_all(&plan, dims, slot, cache, cache + dims->layers, sequences, S, context);
	out->activations += plan.bytes;
	out->host += (size_t)(S * columns_of(dims) * 4 + sequences * dims_latent(dims) +
			      sequences * TOKENS_AHEAD) * 4;
	xfree(plan.entry);
	xfree(cache);
}

static int make(struct sampler *s, struct err *e)
{
	int64_t S = s->guided ? 2 * s->sequences : s->sequences, R = S * s->columns;
	const struct dims *m = &s->m->dims;

	s->keys = xcalloc((size_t)m->layers, sizeof *s->keys);
	s->values = xcalloc((size_t)m->layers, sizeof *s->values);
	s->layer = xcalloc((size_t)m->layers, sizeof *s->layer);
	s->host_token = xcalloc((size_t)R, sizeof *s->host_token);
	s->host_position = xcalloc((size_t)R, sizeof *s->host_position);
	s->host_limit = xcalloc((size_t)R, sizeof *s->host_limit);
	s->host_last = xcalloc((size_t)R, sizeof *s->host_last);
	s->host_at = xcalloc((size_t)S, sizeof *s->host_at);
	s->host_patch_row = xcalloc((size_t)(s->sequences * dims_patches(m) + 1),
				    sizeof *s->host_patch_row);
	s->host_picture = xcalloc((size_t)(s->sequences * dims_latent(m) + 1),
				  sizeof *s->host_picture);
	s->host_drawn = xcalloc((size_t)(TOKENS_AHEAD * s->sequences), sizeof *s->host_drawn);
	s->sequence = xcalloc((size_t)S, sizeof *s->sequence);
	for (int i = 0; i < SAMPLER_GRAPHS; i++)
		s->alike[i] = xcalloc((size_t)s->sequences, sizeof *s->alike[i]);
	plan_all(&s->plan, m, s->t, s->keys, s->values, s->sequences, S, s->context);
	return plan_alloc(&s->plan, s->k, "the sampler's cache and activations", e);
}

int sampler_new(struct transformer *m, int64_t sequences, int64_t context, bool guided,
		struct sampler **out, struct err *e)
{
	struct sampler *s;
	int rc;

	FAIL_IF(sequences < 1, e, TF_EINVALID, "%lld sequences at once, expected at least 1",
		(long long)sequences);
	FAIL_IF(context < 2 || context > m->cosine.dim[0], e, TF_ELIMIT,
		"a context of %lld positions, the model has 2 to %lld", (long long)context,
		(long long)m->cosine.dim[0]);
	s = xcalloc(1, sizeof *s);
	*s = (struct sampler){ .m = m, .k = m->k, .sequences = sequences, .context = context,
			       .columns = columns_of(&m->dims), .guided = guided,
			       .tokens_ahead = m->k->has_graphs ? TOKENS_AHEAD : 1,
			       .steps_ahead = m->k->has_graphs ? STEPS_AHEAD : 1 };
	rc = make(s, e);
	if (rc < 0) {
		sampler_free(s);
		return rc;
	}
	*out = s;
	return 0;
}

void sampler_free(struct sampler *s)
{
	if (!s)
		return;
	if (s->sequence)
		sampler_clear(s);
	sampler_forget_graphs(s);
	plan_release(&s->plan, s->k);
	for (int i = 0; i < SAMPLER_GRAPHS; i++)
		xfree(s->alike[i]);
	xfree(s->sequence);
	xfree(s->keys);
	xfree(s->values);
	xfree(s->layer);
	xfree(s->host_token);
	xfree(s->host_position);
	xfree(s->host_limit);
	xfree(s->host_last);
	xfree(s->host_at);
	xfree(s->host_patch_row);
	xfree(s->host_picture);
	xfree(s->host_drawn);
	xfree(s);
}

bool sampler_is_for(const struct sampler *s, int64_t sequences, int64_t context, bool guided)
{
	return s->sequences == sequences && s->context == context && s->guided == guided;
}

void sampler_move(struct sampler *s, struct transformer *m)
{
	s->m = m;
}

void sampler_send(struct sampler *s, enum sampler_tensor to, const void *host, int64_t n)
{
	s->k->ops->upload(s->k, s->t[to].data, host, (size_t)n * dtype_bytes(s->t[to].type));
}

struct tensor sampler_prompts(const struct sampler *s, enum sampler_tensor t)
{
	return first_rows(s->t[t], s->count);
}

struct tensor sampler_rows(struct tensor t, int64_t first, int64_t n)
{
	struct tensor row = first_rows(t, 1);

	CHECK(first >= 0 && first + n <= t.dim[0]);
	t.data = (char *)t.data + (size_t)first * tensor_bytes(&row);
	t.dim[0] = n;
	return t;
}

struct tensor sampler_pictures(const struct sampler *s, enum sampler_tensor t, int64_t first,
			       int64_t n)
{
	const struct dims *m = &s->m->dims;

	return tensor_4d(sampler_rows(s->t[t], first, n).data, DT_F32, n, m->h, m->w, m->c);
}

void sampler_embed_patches(struct sampler *s, int64_t first, int64_t n, struct tensor times)
{
	struct transformer *m = s->m;
	const struct kernel_ops *ops = s->k->ops;
	int64_t P = dims_patches(&m->dims);
	struct tensor patches = first_rows(s->t[PATCHES], n * P);
	struct tensor x = first_rows(s->t[PATCH_X], n * P);
	struct tensor waves = first_rows(s->t[WAVES], n), silu = first_rows(s->t[TIME_SILU], n);
	struct tensor hidden = first_rows(s->t[TIME_HIDDEN], n);
	struct tensor time = first_rows(s->t[TIME_OUT], n);

	ops->patchify(s->k, patches, sampler_pictures(s, PICTURE, first, n), (int)m->dims.patch);
	ops->time_embedding(s->k, waves, times);
	linear(s->k, hidden, waves, transformer_weight(m, W_TIME_IN),
	       transformer_weight(m, W_TIME_IN_BIAS));
	ops->silu(s->k, silu, hidden);
	linear(s->k, time, silu, transformer_weight(m, W_TIME_OUT),
	       transformer_weight(m, W_TIME_OUT_BIAS));
	if (m->dims.time == TIME_AT_PATCH)
		ops->add_per_image(s->k, patches, time);
	linear(s->k, x, patches, transformer_weight(m, W_PATCH_IN),
	       transformer_weight(m, W_PATCH_IN_BIAS));
	if (m->dims.time == TIME_AT_MODEL)
		ops->add_per_image(s->k, x, time);
}

/* ---- the layers */
static struct cached_layer layer_of(const struct sampler *s, int64_t l)
{
	struct transformer *m = s->m;

	return (struct cached_layer){
		.attention_norm = transformer_block_weight(m, l, W_ATTENTION_NORM),
		.qkv = transformer_block_weight(m, l, W_QKV),
		.attention_out = transformer_block_weight(m, l, W_ATTENTION_OUT),
		.ff_norm = transformer_block_weight(m, l, W_FF_NORM),
		.gate_up = transformer_block_weight(m, l, W_GATE_UP),
		.down = transformer_block_weight(m, l, W_DOWN),
		.keys = sampler_rows(s->keys[l], s->first, s->span),
		.values = sampler_rows(s->values[l], s->first, s->span),
	};
}

void sampler_blocks(struct sampler *s, int64_t n, struct tensor logits)
{
	struct transformer *m = s->m;
	int64_t rows = s->span * n;
	struct tensor normed = first_rows(s->t[NORMED], rows);
	const struct cached_layers c = {
		.layer = s->layer, .layers = (int)m->dims.layers, .heads = (int)m->dims.H,
		.eps = m->dims.eps, .norm = transformer_weight(m, W_NORM),
		.head = transformer_weight(m, W_HEAD), .logits = logits,
		.x = first_rows(s->t[X_IN], rows), .out = normed, .h = normed,
		.position = first_rows(s->t[POSITION], rows),
		.limit = first_rows(s->t[LIMIT], rows), .at = first_rows(s->t[AT], s->span),
		.cosine = m->cosine, .sine = m->sine, .qkv = first_rows(s->t[QKV], rows),
		.attention = first_rows(s->t[ATTENTION], rows),
		.gate_up = first_rows(s->t[GATE_UP], rows),
		.swiglu = first_rows(s->t[SWIGLU], rows), .rstd = first_rows(s->t[RSTD], rows),
	};

	for (int64_t l = 0; l < m->dims.layers; l++)
		s->layer[l] = layer_of(s, l);
	s->k->ops->cached_layers(s->k, &c);
}

/* How many elements of q the next evaluation takes: a picture's patches stay together, one
 * picture. */
static int64_t take(const struct sampler *s, const struct sequence *q)
{
	int64_t n = q->until - q->fed, pictures = 0, P = dims_patches(&s->m->dims);

	if (n > s->columns)
		n = s->columns;
	for (int64_t i = 0; i < n; i++)
		if (q->element[q->fed + i].patch == 0 && (pictures++ > 0 || i + P > n))
			return i;
	return n;
}

/* Row r becomes element `at` of q. */
static void put_row(struct sampler *s, int64_t r, const struct sequence *q, int32_t at)
{
	s->host_token[r] = q->element[at].token;
	s->host_position[r] = at;
	s->host_limit[r] = q->element[at].limit;
}

static void idle_row(struct sampler *s, int64_t r)
{
	s->host_token[r] = s->m->dims.vocabulary.pad;
	s->host_position[r] = 0;
	s->host_limit[r] = -1;
}

/* The picture that begins at row r, of the i-th sequence of the evaluation, is read from its clean
 * latent. */
static void put_picture(struct sampler *s, int64_t i, int64_t r, int32_t segment)
{
	int64_t P = dims_patches(&s->m->dims), E = dims_latent(&s->m->dims);

	CHECK(s->first + i < s->count);
	memcpy(s->host_picture + i * E, s->sequence[s->first + i].segment[segment].latent,
	       (size_t)E * sizeof *s->host_picture);
	for (int64_t j = 0; j < P; j++)
		s->host_patch_row[i * P + j] = (int32_t)(r + j);
}

static void send_rows(struct sampler *s, int64_t n)
{
	sampler_send(s, TOKEN, s->host_token, s->span * n);
	sampler_send(s, POSITION, s->host_position, s->span * n);
	sampler_send(s, LIMIT, s->host_limit, s->span * n);
	sampler_send(s, LAST_ROW, s->host_last, s->span * n);
	sampler_send(s, AT, s->host_at, s->span);
}

/* Prompts among the sequences of the evaluation: only they have pictures to be read. */
static int64_t readers(const struct sampler *s)
{
	int64_t end = s->first + s->span < s->count ? s->first + s->span : s->count;

	return end > s->first ? end - s->first : 0;
}

/* Lays the next elements of every sequence into rows of n columns; whether a picture is among
 * them. */
static bool lay_rows(struct sampler *s, int64_t n)
{
	bool pictures = false;

	for (int64_t i = 0; i < readers(s) * dims_patches(&s->m->dims); i++)
		s->host_patch_row[i] = -1;
	for (int64_t i = 0; i < s->span; i++) {
		struct sequence *q = &s->sequence[s->first + i];
		int64_t taken = take(s, q);

		s->host_at[i] = q->fed;
		for (int64_t j = 0; j < n; j++) {
			int64_t r = i * n + j;
			int32_t at = q->fed + (int32_t)j;

			s->host_last[r] = -1;
			if (j >= taken) {
				idle_row(s, r);
				continue;
			}
			put_row(s, r, q, at);
			if (q->element[at].patch == 0) {
				put_picture(s, i, r, q->element[at].segment);
				pictures = true;
			}
			if (at + 1 == q->until)
				s->host_last[r] = (int32_t)(s->first + i);
		}
		q->fed += (int32_t)taken;
	}
	return pictures;
}

/* Columns of the next evaluation; 0: nothing is left to feed. */
static int64_t widest(const struct sampler *s)
{
	int64_t n = 0;

	for (int64_t i = 0; i < s->span; i++) {
		int64_t taken = take(s, &s->sequence[s->first + i]);

		n = taken > n ? taken : n;
	}
	if (n > 1)
		n = (n + COLUMNS_STEP - 1) / COLUMNS_STEP * COLUMNS_STEP;
	return n < s->columns ? n : s->columns;
}

void sampler_feed(struct sampler *s, int64_t first, int64_t span)
{
	const struct kernel_ops *ops = s->k->ops;
	int64_t P = dims_patches(&s->m->dims);

	s->first = first;
	s->span = span;
	s->laid = false;
	for (int64_t n = widest(s); n > 0; n = widest(s)) {
		int64_t rows = span * n, images = readers(s);
		struct tensor x = first_rows(s->t[X_IN], rows);
		bool pictures = lay_rows(s, n);

		send_rows(s, n);
		ops->embed(s->k, x, transformer_weight(s->m, W_TOKEN),
			   first_rows(s->t[TOKEN], rows));
		if (pictures) {
			struct tensor to = sampler_rows(s->t[PICTURE], first, images);

			ops->upload(s->k, to.data, s->host_picture, tensor_bytes(&to));
			sampler_send(s, PATCH_ROW, s->host_patch_row, images * P);
			ops->fill(s->k, first_rows(s->t[TIME], images), 1);
			sampler_embed_patches(s, first, images, first_rows(s->t[TIME], images));
			ops->scatter_rows(s->k, x, first_rows(s->t[PATCH_X], images * P),
					  first_rows(s->t[PATCH_ROW], images * P));
		}
		sampler_blocks(s, n, NO_TENSOR);
		ops->scatter_rows(s->k, s->t[LAST], first_rows(s->t[NORMED], rows),
				  first_rows(s->t[LAST_ROW], rows));
	}
}

/* The patches of every picture being drawn as rows, P a sequence. */
void sampler_lay_pictures(struct sampler *s)
{
	int64_t P = dims_patches(&s->m->dims);

	s->first = 0;
	s->span = s->total;
	for (int64_t i = 0; i < s->total; i++) {
		struct sequence *q = &s->sequence[i];

		s->host_at[i] = q->picture;
		for (int64_t j = 0; j < P; j++) {
			if (q->state == SEQUENCE_PICTURE)
				put_row(s, i * P + j, q, q->picture + (int32_t)j);
			else
				idle_row(s, i * P + j);
			s->host_last[i * P + j] = -1;
		}
	}
	send_rows(s, P);
	s->laid = true;
}

/* The next element of every sequence that writes text, a row each. */
void sampler_lay_tokens(struct sampler *s)
{
	s->first = 0;
	s->span = s->total;
	s->laid = false;
	for (int64_t i = 0; i < s->total; i++) {
		struct sequence *q = &s->sequence[i];

		s->host_at[i] = q->fed;
		s->host_last[i] = -1;
		if (i < s->count && q->state == SEQUENCE_TEXT)
			put_row(s, i, q, q->fed);
		else
			idle_row(s, i);
	}
	send_rows(s, 1);
}
