/* SPDX-License-Identifier: Apache-2.0
 * What a sampler computes without the host: denoising step after step, token after token. What
 * differs from step to step lies in the backend's memory, so that one step, recorded as a graph
 * where the backend has them, runs for all; the host looks every few steps. */
#include "config.h"
#include "model/linear.h"
#include "model/sampler_plan.h"
#include "lib/mem.h"

#include <string.h>

/* Runs the step n times: as it is at first, which also readies what a graph cannot (scratch,
 * choices of algorithms), then recorded. A graph is kept until the group of prompts ends. */
static void run_steps(struct sampler *s, enum sampler_graph which, void (*step)(struct sampler *),
		      int64_t n)
{
	const struct kernel_ops *ops = s->k->ops;

	for (int64_t i = 0; i < n; i++) {
		if (s->graph[which]) {
			ops->graph_run(s->k, s->graph[which]);
			continue;
		}
		step(s);
		if (s->k->has_graphs && n > 1) {
			ops->graph_begin(s->k);
			step(s);
			s->graph[which] = ops->graph_end(s->k);
		}
	}
}

void sampler_forget_graphs(struct sampler *s)
{
	for (int i = 0; i < SAMPLER_GRAPHS; i++) {
		if (s->graph[i])
			s->k->ops->graph_release(s->k, s->graph[i]);
		s->graph[i] = NULL;
	}
}

static void reset_counter(struct sampler *s)
{
	const int32_t zero = 0;

	sampler_send(s, COUNTER, &zero, 1);
}

/* ---- pictures */

/* A row of STEPS, and STEP itself: DENOISE_VALUES numbers, the prompts' noise streams (two floats
 * hold one), their time values. */
static int64_t step_width(const struct sampler *s)
{
	return DENOISE_VALUES + 3 * s->count;
}

static float *step_values(const struct sampler *s)
{
	return s->t[STEP].data;
}

static struct tensor step_streams(const struct sampler *s)
{
	return tensor_1d(step_values(s) + DENOISE_VALUES, DT_I64, s->count);
}

static struct tensor step_times(const struct sampler *s)
{
	return tensor_1d(step_values(s) + DENOISE_VALUES + 2 * s->count, DT_F32, s->count);
}

static void put_step(const struct sampler *s, int64_t k, float *row)
{
	const struct sampler_options *o = s->o;
	int64_t t = schedule_time(k, o->steps), next = schedule_time(k + 1, o->steps);
	struct schedule_step c = schedule_step(o->schedule, t, next);

	row[DENOISE_SQRT_ABAR] = c.sqrt_abar;
	row[DENOISE_SQRT_ONE_MINUS_ABAR] = c.sqrt_one_minus_abar;
	row[DENOISE_X0] = c.c_x0;
	row[DENOISE_EPS] = c.c_eps;
	row[DENOISE_X] = c.c_x;
	row[DENOISE_SIGMA] = c.sigma;
	for (int64_t i = 0; i < s->count; i++) {
		const struct sequence *q = &s->sequence[i];
		uint64_t stream = sampler_stream(q->prompt->index, q->pictures, k + 1);

		memcpy(row + DENOISE_VALUES + 2 * i, &stream, sizeof stream);
		row[DENOISE_VALUES + 2 * s->count + i] = (float)t;
	}
}

/* The rows of the patches, all steps, and the first noise. */
static void prepare_pictures(struct sampler *s)
{
	int64_t steps = s->o->steps, width = step_width(s);
	float *table = xcalloc((size_t)(steps * width), sizeof *table);
	uint64_t *stream = xcalloc((size_t)s->count, sizeof *stream);

	for (int64_t k = 0; k < steps; k++)
		put_step(s, k, table + k * width);
	for (int64_t i = 0; i < s->count; i++)
		stream[i] = sampler_stream(s->sequence[i].prompt->index, s->sequence[i].pictures,
					   0);
	sampler_lay_pictures(s);
	sampler_send(s, STEPS, table, steps * width);
	sampler_send(s, STREAM, stream, s->count);
	reset_counter(s);
	s->k->ops->normals(s->k, sampler_prompts(s, PICTURE), s->o->seed, PHILOX_DRAW_START,
			   sampler_prompts(s, STREAM));
	xfree(table);
	xfree(stream);
}

/* One evaluation: EPS [total, E], the noise predicted in PICTURE at the step's time. */
static void predict(struct sampler *s)
{
	struct transformer *m = s->m;
	const struct kernel_ops *ops = s->k->ops;
	int64_t P = dims_patches(&m->dims), rows = s->total * P;
	struct tensor half = sampler_patches(s, PATCH_X);
	struct tensor out = first_rows(s->t[PREDICTED], rows);
	char *x = s->t[X_IN].data;

	sampler_embed_patches(s, step_times(s));
	for (int64_t branch = 0; branch < s->total / s->count; branch++)
		ops->copy(s->k, x + (size_t)branch * tensor_bytes(&half), half.data,
			  tensor_bytes(&half));
	sampler_blocks(s, P);
	linear(s->k, out, first_rows(s->t[NORMED], rows), transformer_weight(m, W_PATCH_OUT),
	       transformer_weight(m, W_PATCH_OUT_BIAS));
	ops->unpatchify(s->k, sampler_pictures(s, EPS, s->total), out, (int)m->dims.patch);
}

static void denoise_step(struct sampler *s)
{
	const struct sampler_options *o = s->o;
	int64_t n = s->count * dims_latent(&s->m->dims);
	float *eps = s->t[EPS].data;
	struct denoise d = {
		.x = s->t[PICTURE].data, .eps_c = eps, .step = step_values(s), .n = n,
		.eps_u = s->total > s->count ? eps + n : NULL, .guidance = o->guidance,
		.clamp = o->clamp,
	};

	s->k->ops->next_row(s->k, tensor_1d(step_values(s), DT_F32, step_width(s)),
			    tensor_2d(s->t[STEPS].data, DT_F32, o->steps, step_width(s)),
			    s->t[COUNTER]);
	predict(s);
	if (o->schedule == SCHEDULE_DDPM) {
		s->k->ops->normals(s->k, sampler_prompts(s, STEP_NOISE), o->seed,
				   PHILOX_DRAW_STEP, step_streams(s));
		d.noise = s->t[STEP_NOISE].data;
	}
	s->k->ops->denoise(s->k, &d);
}

int sampler_denoise(struct sampler *s, struct err *e)
{
	const struct sampler_watch *watch = s->watch;
	int64_t E = dims_latent(&s->m->dims), steps = s->o->steps;

	prepare_pictures(s);
	for (int64_t k = 0, n; k < steps; k += n) {
		n = steps - k < s->steps_ahead ? steps - k : s->steps_ahead;
		s->k->ops->sync(s->k);
		FAIL_IF(watch && watch->step(watch->arg, "denoise", k, steps), e, TF_ECANCELLED,
			"stopped after %lld of %lld denoising steps", (long long)k,
			(long long)steps);
		run_steps(s, GRAPH_DENOISE, denoise_step, n);
		s->evaluations += n;
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

/* ---- tokens */

/* DRAWN from the last layer's output x, for the place behind POSITION. */
static void draw_from(struct sampler *s, struct tensor x)
{
	const struct sampler_options *o = s->o;
	struct tensor logits = sampler_prompts(s, LOGITS), drawn = sampler_prompts(s, DRAWN);

	linear(s->k, logits, x, transformer_weight(s->m, W_HEAD), NO_TENSOR);
	if (o->temperature > 0)
		s->k->ops->draw_tokens(s->k, drawn, logits, s->bound, o->temperature, o->top_p,
				       o->seed, sampler_prompts(s, STREAM),
				       sampler_prompts(s, POSITION));
	else
		s->k->ops->argmax(s->k, drawn, logits, s->bound);
}

static void send_indices(struct sampler *s)
{
	uint64_t *index = xcalloc((size_t)s->count, sizeof *index);

	for (int64_t i = 0; i < s->count; i++)
		index[i] = s->sequence[i].prompt->index;
	sampler_send(s, STREAM, index, s->count);
	xfree(index);
}

void sampler_draw_tokens(struct sampler *s, int32_t *out)
{
	for (int64_t i = 0; i < s->count; i++)
		s->host_at[i] = s->sequence[i].length - 1;
	sampler_send(s, POSITION, s->host_at, s->count);
	send_indices(s);
	draw_from(s, sampler_prompts(s, LAST));
	s->k->ops->download(s->k, out, s->t[DRAWN].data, (size_t)s->count * sizeof *out);
}

static void token_step(struct sampler *s)
{
	const struct token_rows t = {
		.token = s->t[TOKEN].data, .position = s->t[POSITION].data,
		.at = s->t[AT].data, .limit = s->t[LIMIT].data, .drawn = s->t[DRAWN].data,
		.history = s->t[HISTORY].data, .counter = s->t[COUNTER].data, .n = s->count,
		.steps = TOKENS_AHEAD,
	};

	s->k->ops->embed(s->k, first_rows(s->t[X_IN], s->total),
			 transformer_weight(s->m, W_TOKEN), first_rows(s->t[TOKEN], s->total));
	sampler_blocks(s, 1);
	draw_from(s, sampler_prompts(s, NORMED));
	s->k->ops->advance_tokens(s->k, &t);
}

const int32_t *sampler_write(struct sampler *s, int64_t n)
{
	CHECK(n >= 1 && n <= TOKENS_AHEAD);
	sampler_lay_tokens(s);
	send_indices(s);
	reset_counter(s);
	run_steps(s, GRAPH_TOKEN, token_step, n);
	s->k->ops->download(s->k, s->host_drawn, s->t[HISTORY].data,
			    (size_t)(n * s->count) * sizeof *s->host_drawn);
	return s->host_drawn;
}

int64_t sampler_evaluations(const struct sampler *s)
{
	return s->evaluations;
}
