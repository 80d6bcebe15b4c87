/* SPDX-License-Identifier: Apache-2.0
 * What a sampler computes: elements into the cache, denoising, logits. All of it over the same
 * weights and operations as pass_forward.c, with cached keys and values in place of whole
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
	out->host += (size_t)(S * columns_of(dims) * 4 + sequences * dims_latent(dims)) * 4;
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
			       .columns = columns_of(&m->dims), .guided = guided };
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
	plan_release(&s->plan, s->k);
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
	xfree(s);
}

static void send(struct sampler *s, enum sampler_tensor to, const void *host, int64_t n)
{
	s->k->ops->upload(s->k, s->t[to].data, host, (size_t)n * dtype_bytes(s->t[to].type));
}

static struct tensor prompts(const struct sampler *s, enum sampler_tensor t)
{
	return first_rows(s->t[t], s->count);
}

static struct tensor prompt_patches(const struct sampler *s, enum sampler_tensor t)
{
	return first_rows(s->t[t], s->count * dims_patches(&s->m->dims));
}

static struct tensor pictures(const struct sampler *s, enum sampler_tensor t, int64_t n)
{
	const struct dims *m = &s->m->dims;

	return tensor_4d(s->t[t].data, DT_F32, n, m->h, m->w, m->c);
}

/* PICTURE with the time value of TIME, through the patch layer, to PATCH_X. */
static void embed_patches(struct sampler *s)
{
	struct transformer *m = s->m;
	const struct kernel_ops *ops = s->k->ops;
	struct tensor patches = prompt_patches(s, PATCHES), x = prompt_patches(s, PATCH_X);
	struct tensor hidden = prompts(s, TIME_HIDDEN), time = prompts(s, TIME_OUT);

	ops->patchify(s->k, patches, pictures(s, PICTURE, s->count), (int)m->dims.patch);
	ops->time_embedding(s->k, prompts(s, WAVES), prompts(s, TIME));
	linear(s->k, hidden, prompts(s, WAVES), transformer_weight(m, W_TIME_IN),
	       transformer_weight(m, W_TIME_IN_BIAS));
	ops->silu(s->k, prompts(s, TIME_SILU), hidden);
	linear(s->k, time, prompts(s, TIME_SILU), transformer_weight(m, W_TIME_OUT),
	       transformer_weight(m, W_TIME_OUT_BIAS));
	if (m->dims.time == TIME_AT_PATCH)
		ops->add_per_image(s->k, patches, time);
	linear(s->k, x, patches, transformer_weight(m, W_PATCH_IN),
	       transformer_weight(m, W_PATCH_IN_BIAS));
	if (m->dims.time == TIME_AT_MODEL)
		ops->add_per_image(s->k, x, time);
}

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
		.keys = first_rows(s->keys[l], s->total),
		.values = first_rows(s->values[l], s->total),
	};
}

/* X_IN of total x n rows through all blocks to NORMED, the final norm's output. */
static void blocks(struct sampler *s, int64_t n)
{
	struct transformer *m = s->m;
	int64_t rows = s->total * n;
	struct tensor normed = first_rows(s->t[NORMED], rows);
	const struct cached_layers c = {
		.layer = s->layer, .layers = (int)m->dims.layers, .heads = (int)m->dims.H,
		.eps = m->dims.eps, .norm = transformer_weight(m, W_NORM),
		.x = first_rows(s->t[X_IN], rows), .out = normed, .h = normed,
		.position = first_rows(s->t[POSITION], rows),
		.limit = first_rows(s->t[LIMIT], rows), .at = first_rows(s->t[AT], s->total),
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

/* The picture that begins at row r of sequence i is read from its clean latent. */
static void put_picture(struct sampler *s, int64_t i, int64_t r, int32_t segment)
{
	int64_t P = dims_patches(&s->m->dims), E = dims_latent(&s->m->dims);

	CHECK(i < s->count);
	memcpy(s->host_picture + i * E, s->sequence[i].segment[segment].latent,
	       (size_t)E * sizeof *s->host_picture);
	for (int64_t j = 0; j < P; j++)
		s->host_patch_row[i * P + j] = (int32_t)(r + j);
}

static void send_rows(struct sampler *s, int64_t n)
{
	send(s, TOKEN, s->host_token, s->total * n);
	send(s, POSITION, s->host_position, s->total * n);
	send(s, LIMIT, s->host_limit, s->total * n);
	send(s, LAST_ROW, s->host_last, s->total * n);
	send(s, AT, s->host_at, s->total);
}

/* Lays the next elements of every sequence into rows of n columns; whether a picture is among
 * them. */
static bool lay_rows(struct sampler *s, int64_t n)
{
	bool pictures = false;

	for (int64_t i = 0; i < s->count * dims_patches(&s->m->dims); i++)
		s->host_patch_row[i] = -1;
	for (int64_t i = 0; i < s->total; i++) {
		struct sequence *q = &s->sequence[i];
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
				s->host_last[r] = (int32_t)i;
		}
		q->fed += (int32_t)taken;
	}
	return pictures;
}

/* Columns of the next evaluation; 0: nothing is left to feed. */
static int64_t widest(const struct sampler *s)
{
	int64_t n = 0;

	for (int64_t i = 0; i < s->total; i++) {
		int64_t taken = take(s, &s->sequence[i]);

		n = taken > n ? taken : n;
	}
	if (n > 1)
		n = (n + COLUMNS_STEP - 1) / COLUMNS_STEP * COLUMNS_STEP;
	return n < s->columns ? n : s->columns;
}

void sampler_feed(struct sampler *s)
{
	const struct kernel_ops *ops = s->k->ops;

	for (int64_t n = widest(s); n > 0; n = widest(s)) {
		int64_t rows = s->total * n;
		struct tensor x = first_rows(s->t[X_IN], rows);
		bool pictures = lay_rows(s, n);

		send_rows(s, n);
		ops->embed(s->k, x, transformer_weight(s->m, W_TOKEN),
			   first_rows(s->t[TOKEN], rows));
		if (pictures) {
			send(s, PICTURE, s->host_picture, s->count * dims_latent(&s->m->dims));
			send(s, PATCH_ROW, s->host_patch_row,
			     s->count * dims_patches(&s->m->dims));
			ops->fill(s->k, prompts(s, TIME), 1);
			embed_patches(s);
			ops->scatter_rows(s->k, x, prompt_patches(s, PATCH_X),
					  prompt_patches(s, PATCH_ROW));
		}
		blocks(s, n);
		ops->scatter_rows(s->k, s->t[LAST], first_rows(s->t[NORMED], rows),
				  first_rows(s->t[LAST_ROW], rows));
	}
}

/* The patches of every picture being drawn as rows, P a sequence; the noise streams of the first
 * noise and of each step. */
static void prepare_denoise(struct sampler *s)
{
	int64_t P = dims_patches(&s->m->dims), steps = s->o->steps;
	int64_t *stream = xcalloc((size_t)((steps + 1) * s->count), sizeof *stream);

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
		for (int64_t k = 0; i < s->count && k <= steps; k++)
			stream[k * s->count + i] = (int64_t)sampler_stream(
				q->prompt->index, q->pictures, k);
	}
	send_rows(s, P);
	send(s, STREAM, stream, (steps + 1) * s->count);
	xfree(stream);
}

static struct tensor stream_of(const struct sampler *s, int64_t k)
{
	return tensor_1d((int64_t *)s->t[STREAM].data + k * s->count, DT_I64, s->count);
}

/* One evaluation: EPS [total, E], the noise predicted in PICTURE at time t. */
static void predict(struct sampler *s, int64_t t)
{
	struct transformer *m = s->m;
	const struct kernel_ops *ops = s->k->ops;
	int64_t P = dims_patches(&m->dims), rows = s->total * P;
	struct tensor half = prompt_patches(s, PATCH_X);
	struct tensor out = first_rows(s->t[PREDICTED], rows);
	char *x = s->t[X_IN].data;

	ops->fill(s->k, prompts(s, TIME), (float)t);
	embed_patches(s);
	for (int64_t branch = 0; branch < s->total / s->count; branch++)
		ops->copy(s->k, x + (size_t)branch * tensor_bytes(&half), half.data,
			  tensor_bytes(&half));
	blocks(s, P);
	linear(s->k, out, first_rows(s->t[NORMED], rows), transformer_weight(m, W_PATCH_OUT),
	       transformer_weight(m, W_PATCH_OUT_BIAS));
	ops->unpatchify(s->k, pictures(s, EPS, s->total), out, (int)m->dims.patch);
	s->evaluations++;
}

static void denoise_step(struct sampler *s, int64_t k)
{
	const struct sampler_options *o = s->o;
	int64_t t = schedule_time(k, o->steps), next = schedule_time(k + 1, o->steps);
	int64_t n = s->count * dims_latent(&s->m->dims);
	struct schedule_step c = schedule_step(o->schedule, t, next);
	float *eps = s->t[EPS].data;
	struct denoise d = {
		.x = s->t[PICTURE].data, .eps_c = eps,
		.eps_u = s->total > s->count ? eps + n : NULL,
		.n = n, .sqrt_abar = c.sqrt_abar, .sqrt_one_minus_abar = c.sqrt_one_minus_abar,
		.guidance = o->guidance, .clamp = o->clamp, .c_x0 = c.c_x0, .c_eps = c.c_eps,
		.c_x = c.c_x, .sigma = c.sigma,
	};

	predict(s, t);
	if (c.sigma > 0) {
		s->k->ops->normals(s->k, prompts(s, STEP_NOISE), o->seed, PHILOX_DRAW_STEP,
				   stream_of(s, k + 1));
		d.noise = s->t[STEP_NOISE].data;
	}
	s->k->ops->denoise(s->k, &d);
}

int sampler_denoise(struct sampler *s, struct err *e)
{
	const struct sampler_watch *watch = s->watch;
	int64_t E = dims_latent(&s->m->dims), steps = s->o->steps;

	prepare_denoise(s);
	s->k->ops->normals(s->k, prompts(s, PICTURE), s->o->seed, PHILOX_DRAW_START,
			   stream_of(s, 0));
	for (int64_t k = 0; k < steps; k++) {
		FAIL_IF(watch && watch->step(watch->arg, "denoise", k, steps), e, TF_ECANCELLED,
			"stopped after %lld of %lld denoising steps", (long long)k,
			(long long)steps);
		denoise_step(s, k);
	}
	s->k->ops->download(s->k, s->host_picture, s->t[PICTURE].data,
			    (size_t)(s->count * E) * sizeof *s->host_picture);
	for (int64_t i = 0; i < s->count; i++) {
		struct sequence *q = &s->sequence[i];

		if (q->state == SEQUENCE_PICTURE)
			memcpy(q->result.part[q->result.parts - 1].latent, s->host_picture + i * E,
			       (size_t)E * sizeof *s->host_picture);
	}
	return 0;
}

struct chance {
	int32_t token;
	double weight;
};

static int by_weight(const void *a, const void *b)
{
	const struct chance *x = a, *y = b;

	if (x->weight != y->weight)
		return x->weight < y->weight ? 1 : -1;
	return x->token < y->token ? -1 : 1;
}

/* A token drawn by u in [0,1) from softmax(logits / temperature) cut to its likeliest share
 * top_p. */
static int32_t draw(const float *logits, int32_t n, float temperature, float top_p, double u)
{
	struct chance *c = xmalloc((size_t)n * sizeof *c);
	double most = logits[0], sum = 0, kept = 0, reached = 0;
	int32_t count = 0, token;

	for (int32_t i = 1; i < n; i++)
		most = logits[i] > most ? logits[i] : most;
	for (int32_t i = 0; i < n; i++) {
		c[i] = (struct chance){ i, exp((logits[i] - most) / temperature) };
		sum += c[i].weight;
	}
	qsort(c, (size_t)n, sizeof *c, by_weight);
	while (count < n && (count == 0 || kept < (double)top_p * sum))
		kept += c[count++].weight;
	token = c[count - 1].token;
	for (int32_t i = 0; i < count; i++) {
		reached += c[i].weight;
		if (u * kept < reached) {
			token = c[i].token;
			break;
		}
	}
	xfree(c);
	return token;
}

static void draw_all(struct sampler *s, int32_t bound, int32_t *out)
{
	int64_t V = s->m->dims.vocabulary.rows;
	float *logits = xmalloc((size_t)(s->count * V) * sizeof *logits);

	s->k->ops->convert(s->k, prompts(s, LOGITS_F32), prompts(s, LOGITS));
	s->k->ops->download(s->k, logits, s->t[LOGITS_F32].data,
			    (size_t)(s->count * V) * sizeof *logits);
	for (int64_t i = 0; i < s->count; i++) {
		const struct sequence *q = &s->sequence[i];
		double u = philox_uniform(s->o->seed, PHILOX_TEXT, q->prompt->index,
					  (uint64_t)q->length);

		out[i] = draw(logits + i * V, bound, s->o->temperature, s->o->top_p, u);
	}
	xfree(logits);
}

void sampler_draw_tokens(struct sampler *s, int32_t bound, int32_t *out)
{
	linear(s->k, prompts(s, LOGITS), prompts(s, LAST), transformer_weight(s->m, W_HEAD),
	       NO_TENSOR);
	if (s->o->temperature > 0) {
		draw_all(s, bound, out);
		return;
	}
	s->k->ops->argmax(s->k, prompts(s, DRAWN), prompts(s, LOGITS), bound);
	s->k->ops->download(s->k, out, s->t[DRAWN].data, (size_t)s->count * sizeof *out);
}

int64_t sampler_evaluations(const struct sampler *s)
{
	return s->evaluations;
}
