/* SPDX-License-Identifier: Apache-2.0
 * What a sampler computes without the host: denoising step after step, token after token. What
 * differs from step to step lies in the backend's memory, so that one step, recorded as a graph
 * where the backend has them, runs for all; the host looks every few steps. */
#include "config.h"
#include "model/linear.h"
#include "model/sampler_plan.h"
#include "lib/mem.h"

#include <math.h>
#include <string.h>

/* Runs the step n times: as it is at first, which also readies what a graph cannot (scratch,
 * choices of algorithms), then recorded. A graph serves later prompts, too: see find_alike. */
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

static void forget_graph(struct sampler *s, enum sampler_graph which)
{
	if (s->graph[which])
		s->k->ops->graph_release(s->k, s->graph[which]);
	s->graph[which] = NULL;
}

void sampler_forget_graphs(struct sampler *s)
{
	for (enum sampler_graph i = 0; i < SAMPLER_GRAPHS; i++)
		forget_graph(s, i);
}

static void reset_counter(struct sampler *s)
{
	const int32_t zero = 0;

	sampler_send(s, COUNTER, &zero, 1);
}

/* ---- prompts that are alike */

static bool draws_alike(const struct sequence *a, const struct alike *b)
{
	return a->step == b->step && a->o->steps == b->o.steps && a->o->seed == b->o.seed &&
	       a->o->schedule == b->o.schedule && !islessgreater(a->o->guidance, b->o.guidance) &&
	       !islessgreater(a->o->clamp, b->o.clamp);
}

static bool writes_alike(const struct sequence *a, const struct alike *b)
{
	if (a->o->temperature <= 0 && b->o.temperature <= 0)
		return true; /* the likeliest: nothing is drawn */
	return a->o->seed == b->o.seed && !islessgreater(a->o->temperature, b->o.temperature) &&
	       !islessgreater(a->o->top_p, b->o.top_p);
}

/* What a recorded step has in it. */
static bool same_calls(const struct alike *a, const struct alike *b, int64_t n)
{
	for (int64_t i = 0; i < n; i++)
		if (a[i].first != b[i].first || a[i].n != b[i].n || a[i].o.seed != b[i].o.seed ||
		    a[i].o.schedule != b[i].o.schedule ||
		    islessgreater(a[i].o.guidance, b[i].o.guidance) ||
		    islessgreater(a[i].o.clamp, b[i].o.clamp) ||
		    islessgreater(a[i].o.temperature, b[i].o.temperature) ||
		    islessgreater(a[i].o.top_p, b[i].o.top_p))
			return false;
	return true;
}

static bool recorded_for(const struct recorded *a, const struct recorded *b)
{
	return a->count == b->count && a->total == b->total && a->bound == b->bound;
}

/* Divides the prompts into stretches of such that are alike; those that do not step now go with
 * their neighbours. A graph of other calls than these is of no use any more. */
static void find_alike(struct sampler *s, enum sampler_graph which, enum sequence_state state,
		       bool (*alike)(const struct sequence *, const struct alike *))
{
	const struct recorded now = { s->count, s->total, which == GRAPH_TOKEN ? s->bound : 0 };
	struct alike *list = xcalloc((size_t)s->count, sizeof *list);
	bool stepping = false; /* whether the last one has a prompt that steps */
	int64_t n = 0;

	for (int64_t i = 0; i < s->count; i++) {
		const struct sequence *q = &s->sequence[i];
		bool steps = q->state == state;

		if (n == 0 || (steps && stepping && !alike(q, &list[n - 1]))) {
			list[n++].first = i;
			stepping = false;
		}
		if (!stepping) {
			list[n - 1].o = *q->o;
			list[n - 1].step = q->step;
			stepping = steps;
		}
		list[n - 1].n++;
	}
	if (n != s->alikes[which] || !same_calls(list, s->alike[which], n) ||
	    !recorded_for(&s->recorded[which], &now))
		forget_graph(s, which);
	s->recorded[which] = now;
	memcpy(s->alike[which], list, (size_t)n * sizeof *list);
	s->alikes[which] = n;
	xfree(list);
}

/* ---- pictures */

/* A row of STEPS, and STEP itself: DENOISE_VALUES numbers for each of those that are alike, the
 * prompts' noise streams (two floats hold one), their time values. */
static int64_t step_width(const struct sampler *s)
{
	return DENOISE_VALUES * s->alikes[GRAPH_DENOISE] + 3 * s->count;
}

static float *step_values(const struct sampler *s)
{
	return s->t[STEP].data;
}

static int64_t streams_at(const struct sampler *s)
{
	return DENOISE_VALUES * s->alikes[GRAPH_DENOISE];
}

static struct tensor step_times(const struct sampler *s)
{
	return tensor_1d(step_values(s) + streams_at(s) + 2 * s->count, DT_F32, s->count);
}

/* Of those alike, the step `ahead` steps from now. */
static void put_step(const struct sampler *s, const struct alike *a, float *values, int64_t ahead,
		     float *row)
{
	int64_t k = a->step + ahead, t = schedule_time(k, a->o.steps);
	struct schedule_step c = schedule_step(a->o.schedule, t, schedule_time(k + 1, a->o.steps));

	values[DENOISE_SQRT_ABAR] = c.sqrt_abar;
	values[DENOISE_SQRT_ONE_MINUS_ABAR] = c.sqrt_one_minus_abar;
	values[DENOISE_X0] = c.c_x0;
	values[DENOISE_EPS] = c.c_eps;
	values[DENOISE_X] = c.c_x;
	values[DENOISE_SIGMA] = c.sigma;
	for (int64_t i = a->first; i < a->first + a->n; i++) {
		const struct sequence *q = &s->sequence[i];
		uint64_t stream = sampler_stream(q->prompt->index, q->pictures, k + 1);

		memcpy(row + streams_at(s) + 2 * i, &stream, sizeof stream);
		row[streams_at(s) + 2 * s->count + i] = (float)t;
	}
}

/* What differs in the next n steps. */
static void send_steps(struct sampler *s, int64_t n)
{
	int64_t width = step_width(s);
	float *table = xcalloc((size_t)(n * width), sizeof *table);

	for (int64_t k = 0; k < n; k++)
		for (int64_t a = 0; a < s->alikes[GRAPH_DENOISE]; a++)
			put_step(s, &s->alike[GRAPH_DENOISE][a],
				 table + k * width + a * DENOISE_VALUES, k, table + k * width);
	sampler_send(s, STEPS, table, n * width);
	reset_counter(s);
	xfree(table);
}

void sampler_begin_pictures(struct sampler *s)
{
	uint64_t *stream = xcalloc((size_t)s->count, sizeof *stream);

	for (int64_t i = 0; i < s->count; i++)
		stream[i] = sampler_stream(s->sequence[i].prompt->index, s->sequence[i].pictures,
					   0);
	sampler_send(s, STREAM, stream, s->count);
	for (int64_t i = 0, n; i < s->count; i += n) {
		const struct sampler_options *o = s->sequence[i].o;

		for (n = 0; i + n < s->count && s->sequence[i + n].step < 0 &&
			    s->sequence[i + n].o->seed == o->seed; n++)
			s->sequence[i + n].step = 0;
		if (n > 0)
			s->k->ops->normals(s->k, sampler_rows(s->t[PICTURE], i, n), o->seed,
					   PHILOX_DRAW_START, sampler_rows(s->t[STREAM], i, n));
		else
			n = 1;
	}
	xfree(stream);
}

/* One evaluation: EPS [total, E], the noise predicted in PICTURE at the step's times. */
static void predict(struct sampler *s)
{
	struct transformer *m = s->m;
	const struct kernel_ops *ops = s->k->ops;
	int64_t P = dims_patches(&m->dims), rows = s->total * P;
	struct tensor half = first_rows(s->t[PATCH_X], s->count * P);
	struct tensor out = first_rows(s->t[PREDICTED], rows);
	char *x = s->t[X_IN].data;

	sampler_embed_patches(s, 0, s->count, step_times(s));
	for (int64_t branch = 0; branch < s->branches; branch++)
		ops->copy(s->k, x + (size_t)branch * tensor_bytes(&half), half.data,
			  tensor_bytes(&half));
	sampler_blocks(s, P, NO_TENSOR);
	linear(s->k, out, first_rows(s->t[NORMED], rows), transformer_weight(m, W_PATCH_OUT),
	       transformer_weight(m, W_PATCH_OUT_BIAS));
	ops->unpatchify(s->k, sampler_pictures(s, EPS, 0, s->total), out, (int)m->dims.patch);
}

/* The update of those alike, whose values of the step are the i-th. */
static void denoise(struct sampler *s, const struct alike *a, int64_t i)
{
	int64_t E = dims_latent(&s->m->dims);
	float *eps = s->t[EPS].data, *streams = step_values(s) + streams_at(s);
	struct tensor noise = sampler_rows(s->t[STEP_NOISE], a->first, a->n);
	struct denoise d = {
		.x = (float *)s->t[PICTURE].data + a->first * E, .eps_c = eps + a->first * E,
		.eps_u = s->branches > 1 ? eps + (s->count + a->first) * E : NULL,
		.step = step_values(s) + i * DENOISE_VALUES, .n = a->n * E,
		.guidance = a->o.guidance, .clamp = a->o.clamp,
	};

	if (a->o.schedule == SCHEDULE_DDPM) {
		s->k->ops->normals(s->k, noise, a->o.seed, PHILOX_DRAW_STEP,
				   tensor_1d(streams + 2 * a->first, DT_I64, a->n));
		d.noise = noise.data;
	}
	s->k->ops->denoise(s->k, &d);
}

static void denoise_step(struct sampler *s)
{
	int64_t width = step_width(s);

	s->k->ops->next_row(s->k, tensor_1d(step_values(s), DT_F32, width),
			    tensor_2d(s->t[STEPS].data, DT_F32, STEPS_AHEAD, width),
			    s->t[COUNTER]);
	predict(s);
	for (int64_t i = 0; i < s->alikes[GRAPH_DENOISE]; i++)
		denoise(s, &s->alike[GRAPH_DENOISE][i], i);
}

/* Steps that every picture has left, few at a time. */
static int64_t steps_ahead(const struct sampler *s)
{
	int64_t n = s->steps_ahead;

	for (int64_t i = 0; i < s->count; i++) {
		const struct sequence *q = &s->sequence[i];

		if (q->state == SEQUENCE_PICTURE && q->o->steps - q->step < n)
			n = q->o->steps - q->step;
	}
	return n;
}

void sampler_denoise(struct sampler *s)
{
	int64_t E = dims_latent(&s->m->dims), n = steps_ahead(s);
	bool through = false;

	find_alike(s, GRAPH_DENOISE, SEQUENCE_PICTURE, draws_alike);
	if (!s->laid)
		sampler_lay_pictures(s);
	send_steps(s, n);
	run_steps(s, GRAPH_DENOISE, denoise_step, n);
	s->evaluations += n;
	for (int64_t i = 0; i < s->count; i++) {
		struct sequence *q = &s->sequence[i];

		if (q->state != SEQUENCE_PICTURE)
			continue;
		q->step += n;
		through |= q->step == q->o->steps;
	}
	if (!through)
		return;
	s->k->ops->download(s->k, s->host_picture, s->t[PICTURE].data,
			    (size_t)(s->count * E) * sizeof *s->host_picture);
	for (int64_t i = 0; i < s->count; i++) {
		struct sequence *q = &s->sequence[i];

		if (q->state == SEQUENCE_PICTURE && q->step == q->o->steps)
			memcpy(q->result.part[q->result.parts - 1].latent, s->host_picture + i * E,
			       (size_t)E * sizeof *s->host_picture);
	}
}

/* ---- tokens */

/* DRAWN from LOGITS, for the place behind POSITION. */
static void draw_tokens(struct sampler *s)
{
	struct tensor logits = sampler_prompts(s, LOGITS);

	for (int64_t i = 0; i < s->alikes[GRAPH_TOKEN]; i++) {
		const struct alike *a = &s->alike[GRAPH_TOKEN][i];
		struct tensor drawn = sampler_rows(s->t[DRAWN], a->first, a->n);
		struct tensor from = sampler_rows(logits, a->first, a->n);

		if (a->o.temperature > 0)
			s->k->ops->draw_tokens(s->k, drawn, from, s->bound, a->o.temperature,
					       a->o.top_p, a->o.seed,
					       sampler_rows(s->t[STREAM], a->first, a->n),
					       sampler_rows(s->t[POSITION], a->first, a->n));
		else
			s->k->ops->argmax(s->k, drawn, from, s->bound);
	}
}

static void send_indices(struct sampler *s)
{
	uint64_t *index = xcalloc((size_t)s->count, sizeof *index);

	for (int64_t i = 0; i < s->count; i++)
		index[i] = s->sequence[i].prompt->index;
	sampler_send(s, STREAM, index, s->count);
	xfree(index);
	find_alike(s, GRAPH_TOKEN, SEQUENCE_TEXT, writes_alike);
}

void sampler_draw_tokens(struct sampler *s, int32_t *out)
{
	for (int64_t i = 0; i < s->count; i++)
		s->host_at[i] = s->sequence[i].length - 1;
	sampler_send(s, POSITION, s->host_at, s->count);
	send_indices(s);
	linear(s->k, sampler_prompts(s, LOGITS), sampler_prompts(s, LAST),
	       transformer_weight(s->m, W_HEAD), NO_TENSOR);
	draw_tokens(s);
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
	sampler_blocks(s, 1, sampler_prompts(s, LOGITS));
	draw_tokens(s);
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
