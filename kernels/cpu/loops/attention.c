/* SPDX-License-Identifier: Apache-2.0
 * Attention over intervals of keys, one (sequence, head) to a thread at a time; see loops.h. Keys
 * and values of the head are laid out once, transposed where the loop over keys is the inner one,
 * so that scores of a query are built 16 keys at a time. Only keys inside the interval are
 * touched. */
#include "config.h"
#include "kernels/cpu/loops/loops.h"

#include <math.h>
#include <stdlib.h>

#define HEAD_MAX 256
#define SCORE_BLOCK 64        /* keys whose scores are built together */
#define WEIGH_BLOCK 32        /* channels summed together */
#define TILE 16               /* queries of the backward pass that share their sums over keys */

/* Floats of this thread's own, kept from call to call. */
static float *scratch(size_t floats)
{
	static __thread float *memory;
	static __thread size_t room;

	if (floats > room) {
		free(memory);
		room = (floats + 1023) / 1024 * 1024;
		memory = aligned_alloc(64, room * sizeof *memory);
		if (!memory)
			BUG("out of memory (%zu floats)", room);
	}
	return memory;
}

struct shape {
	const struct tensor *qkv;
	int64_t B, T, H, hd;
	/* of transposed arrays: T and room for a block to run over */
	int64_t stride;
	float scale;
};

static struct shape shape_of(const struct tensor *qkv, int heads, const struct tensor *start,
			     const struct tensor *limit)
{
	struct shape s = { .qkv = qkv, .B = start->dim[0], .T = start->dim[1], .H = heads };
	int64_t rows = s.B * s.T;

	CHECK(start->rank == 2 && limit->rank == 2 && start->type == DT_I32 &&
	      limit->type == DT_I32);
	CHECK(heads > 0 && limit->dim[0] == s.B && limit->dim[1] == s.T);
	s.hd = rows ? tensor_count(qkv) / (rows * 3 * heads) : 0;
	CHECK(s.hd * rows * 3 * heads == tensor_count(qkv) && s.hd <= HEAD_MAX);
	s.stride = (s.T + 15) / 16 * 16 + SCORE_BLOCK;
	s.scale = 1.0f / sqrtf((float)s.hd);
	return s;
}

static int64_t place(const struct shape *s, int64_t row, int part, int64_t h)
{
	return ((row * 3 + part) * s->H + h) * s->hd;
}

/* out[t, c] (plain) and turned[c, t] (transposed) of one part of a head; either may be NULL. */
static void lay_out(const struct shape *s, int64_t b, int part, int64_t h, float *plain,
		    float *turned)
{
	for (int64_t t = 0; t < s->T; t++) {
		float block[HEAD_MAX];
		const float *x = loop_load(s->qkv, place(s, b * s->T + t, part, h), s->hd, block);

		if (plain)
			memcpy(plain + t * s->hd, x, s->hd * sizeof *x);
		for (int64_t c = 0; turned && c < s->hd; c++)
			turned[c * s->stride + t] = x[c];
	}
}

/* score[j] = factor * sum_c q[c] turned[c, j] for j < width, a constant. */
static inline __attribute__((always_inline)) void score_block(float *restrict score, const float *q,
							      const float *turned, int64_t stride,
							      int64_t hd, float factor, int width)
{
	float sum[SCORE_BLOCK] = { 0 };

	for (int64_t c = 0; c < hd; c++) {
#pragma omp simd
		for (int j = 0; j < width; j++)
			sum[j] += q[c] * turned[c * stride + j];
	}
#pragma omp simd
	for (int j = 0; j < width; j++)
		score[j] = sum[j] * factor;
}

/* Scores of n keys. Up to a block beyond n is written too: score and turned have the room. */
static void scores(float *restrict score, const float *q, const float *turned, int64_t stride,
		   int64_t hd, int64_t n, float factor)
{
	int64_t j = 0;

	for (; n - j > 32; j += 64)
		score_block(score + j, q, turned + j, stride, hd, factor, 64);
	for (; n - j > 16; j += 32)
		score_block(score + j, q, turned + j, stride, hd, factor, 32);
	for (; n - j > 0; j += 16)
		score_block(score + j, q, turned + j, stride, hd, factor, 16);
}

/* to[c] += sum_j w[j * step] rows[j, c]: sums of a block of channels stay in registers. */
static void weigh(float *restrict to, const float *w, int64_t step, const float *rows, int64_t n,
		  int64_t hd)
{
	int64_t at = 0;

	for (; at + WEIGH_BLOCK <= hd; at += WEIGH_BLOCK) {
		float even[WEIGH_BLOCK] = { 0 }, odd[WEIGH_BLOCK] = { 0 };

		for (int64_t j = 0; j + 1 < n; j += 2) {
			const float *first = rows + j * hd + at, *second = first + hd;

#pragma omp simd
			for (int c = 0; c < WEIGH_BLOCK; c++) {
				even[c] += w[j * step] * first[c];
				odd[c] += w[(j + 1) * step] * second[c];
			}
		}
		for (int c = 0; n % 2 && c < WEIGH_BLOCK; c++)
			even[c] += w[(n - 1) * step] * rows[(n - 1) * hd + at + c];
#pragma omp simd
		for (int c = 0; c < WEIGH_BLOCK; c++)
			to[at + c] += even[c] + odd[c];
	}
	for (int64_t j = 0; at < hd && j < n; j++)
		for (int64_t c = at; c < hd; c++)
			to[c] += w[j * step] * rows[j * hd + c];
}

/* score becomes exp(score - most); returns log of the sum of exponentials, *sum the sum. */
static float soften(float *score, int64_t n, float *sum)
{
	float most = -INFINITY, total = 0;

#pragma omp simd reduction(max : most)
	for (int64_t j = 0; j < n; j++)
		most = score[j] > most ? score[j] : most;
#pragma omp simd reduction(+ : total)
	for (int64_t j = 0; j < n; j++) {
		score[j] = loop_exp(score[j] - most);
		total += score[j];
	}
	*sum = total;
	return most + logf(total);
}

static void forward_head(const struct shape *s, const struct tensor *out, float *lse,
			 const int32_t *start, const int32_t *limit, int64_t b, int64_t h)
{
	float *turned = scratch(s->hd * s->stride + s->T * s->hd + s->stride);
	float *values = turned + s->hd * s->stride, *score = values + s->T * s->hd;

	memset(turned, 0, s->hd * s->stride * sizeof *turned);
	lay_out(s, b, 1, h, NULL, turned);
	lay_out(s, b, 2, h, values, NULL);
	for (int64_t t = 0; t < s->T; t++) {
		int64_t row = b * s->T + t, from = start[row], n = limit[row] - from + 1;
		float block[HEAD_MAX], sum, in[HEAD_MAX], to[HEAD_MAX] = { 0 };
		const float *q = loop_load(s->qkv, place(s, row, 0, h), s->hd, in);
		float *y = loop_target(out, (row * s->H + h) * s->hd, block);

		CHECK(from >= 0 && n > 0 && from + n <= s->T);
		scores(score, q, turned + from, s->stride, s->hd, n, s->scale);
		lse[(b * s->H + h) * s->T + t] = soften(score, n, &sum);
		weigh(to, score, 1, values + from * s->hd, n, s->hd);
		for (int64_t c = 0; c < s->hd; c++)
			y[c] = to[c] / sum;
		loop_store(out, (row * s->H + h) * s->hd, s->hd, y);
	}
}

void LOOP(attention)(struct kernels *k, struct tensor out, struct tensor lse, struct tensor qkv,
		     int heads, struct tensor start, struct tensor limit)
{
	struct shape s = shape_of(&qkv, heads, &start, &limit);

	(void)k;
	CHECK(tensor_count(&out) == s.B * s.T * s.H * s.hd &&
	      tensor_count(&lse) == s.B * s.H * s.T);
#pragma omp parallel for schedule(dynamic, 1)
	for (int64_t i = 0; i < s.B * s.H; i++)
		forward_head(&s, &out, loop_f32(&lse), loop_i32(&start), loop_i32(&limit), i / s.H,
			     i % s.H);
}

/* The arrays of one head's backward pass. */
struct backward {
	float *query, *dout;                 /* [TILE, hd] */
	float *key, *dkey, *dvalue;          /* [T, hd] */
	float *key_turned, *value_turned;    /* [hd, stride] */
	float *p, *ds;                       /* [TILE, stride]: 0 outside a query's interval */
};

static struct backward backward_arrays(const struct shape *s)
{
	int64_t plain = s->T * s->hd, turned = s->hd * s->stride, tile = TILE * s->stride;
	float *at = scratch(3 * plain + 2 * turned + 2 * tile + 2 * TILE * s->hd);
	struct backward w;

	memset(at, 0, (3 * plain + 2 * turned) * sizeof *at);
	w.dkey = at;
	w.dvalue = w.dkey + plain;
	w.key = w.dvalue + plain;
	w.key_turned = w.key + plain;
	w.value_turned = w.key_turned + turned;
	w.p = w.value_turned + turned;
	w.ds = w.p + tile;
	w.query = w.ds + tile;
	w.dout = w.query + TILE * s->hd;
	return w;
}

struct upstream {
	const struct tensor *dqkv, *dout, *out;
	const float *lse;
	const int32_t *start, *limit;
};

/* Rows `slot` of p and ds for query t, over the tile's keys first .. first + n - 1:
 * p = exp(s - lse), ds = p (do . v - do . o) scale; dq = sum of ds k goes out at once. */
static void backward_query(const struct shape *s, const struct upstream *u,
			   const struct backward *w, int64_t b, int64_t h, int64_t t, int slot,
			   int64_t first, int64_t n)
{
	int64_t row = b * s->T + t, hd = s->hd, at = place(s, row, 0, h), o = (row * s->H + h) * hd;
	int64_t from = u->start[row] - first, count = u->limit[row] - u->start[row] + 1;
	float block[HEAD_MAX], dq[HEAD_MAX] = { 0 }, mean = 0, in[HEAD_MAX];
	float *q = w->query + slot * hd, *dy = w->dout + slot * hd,
	      *to = loop_target(u->dqkv, at, block);
	float *p = w->p + slot * s->stride, *ds = w->ds + slot * s->stride;
	float lse = u->lse[(b * s->H + h) * s->T + t];
	const float *y = loop_load(u->out, o, hd, in);

	memcpy(q, loop_load(s->qkv, at, hd, block), hd * sizeof *q);
	memcpy(dy, loop_load(u->dout, o, hd, block), hd * sizeof *dy);
#pragma omp simd reduction(+ : mean)
	for (int64_t c = 0; c < hd; c++)
		mean += dy[c] * y[c];
	memset(p, 0, from * sizeof *p);
	memset(ds, 0, from * sizeof *ds);
	scores(p + from, q, w->key_turned + u->start[row], s->stride, hd, count, s->scale);
	scores(ds + from, dy, w->value_turned + u->start[row], s->stride, hd, count, 1.0f);
#pragma omp simd
	for (int64_t j = from; j < from + count; j++) {
		p[j] = loop_exp(p[j] - lse);
		ds[j] = p[j] * (ds[j] - mean) * s->scale;
	}
	for (int64_t j = from + count; j < n; j++)
		p[j] = ds[j] = 0;
	weigh(dq, ds + from, 1, w->key + u->start[row] * hd, count, hd);
	memcpy(to, dq, hd * sizeof *to);
	loop_store(u->dqkv, at, hd, to);
}

/* Queries t .. t + count - 1, and their sums into dk and dv: dv += p do, dk += ds q. */
static void backward_tile(const struct shape *s, const struct upstream *u, const struct backward *w,
			  int64_t b, int64_t h, int64_t t, int count)
{
	int64_t first = u->start[b * s->T + t], last = u->limit[b * s->T + t + count - 1];
	int64_t n = last - first + 1;

	for (int i = 0; i < count; i++)
		backward_query(s, u, w, b, h, t + i, i, first, n);
	for (int64_t j = 0; j < n; j++) {
		weigh(w->dvalue + (first + j) * s->hd, w->p + j, s->stride, w->dout, count, s->hd);
		weigh(w->dkey + (first + j) * s->hd, w->ds + j, s->stride, w->query, count, s->hd);
	}
}

static void backward_head(const struct shape *s, const struct upstream *u, int64_t b, int64_t h)
{
	struct backward w = backward_arrays(s);

	lay_out(s, b, 1, h, w.key, w.key_turned);
	lay_out(s, b, 2, h, NULL, w.value_turned);
	for (int64_t t = 0; t < s->T; t += TILE)
		backward_tile(s, u, &w, b, h, t, (int)loop_min(TILE, s->T - t));
	for (int part = 1; part <= 2; part++) {
		const float *grad = part == 1 ? w.dkey : w.dvalue;

		for (int64_t t = 0; t < s->T; t++) {
			int64_t at = place(s, b * s->T + t, part, h);
			float block[HEAD_MAX], *to = loop_target(u->dqkv, at, block);

			memcpy(to, grad + t * s->hd, s->hd * sizeof *to);
			loop_store(u->dqkv, at, s->hd, to);
		}
	}
}

void LOOP(attention_backward)(struct kernels *k, struct tensor dqkv, struct tensor dout,
			      struct tensor out, struct tensor lse, struct tensor qkv, int heads,
			      struct tensor start, struct tensor limit)
{
	struct shape s = shape_of(&qkv, heads, &start, &limit);
	struct upstream u = {
		&dqkv, &dout, &out, loop_f32(&lse), loop_i32(&start), loop_i32(&limit)
	};

	(void)k;
	CHECK(tensor_count(&dqkv) == tensor_count(&qkv) && dqkv.data != qkv.data);
#pragma omp parallel for schedule(dynamic, 1)
	for (int64_t i = 0; i < s.B * s.H; i++)
		backward_head(&s, &u, i / s.H, i % s.H);
}

/* The caches of sampling. */
struct cache {
	const struct tensor *qkv, *keys, *values, *out;
	const int32_t *at, *limit;
	int64_t S, n, capacity, H, hd;
};

static void cache_write(const struct cache *c, int64_t row)
{
	int64_t sequence = row / c->n, where = c->at[sequence] + row % c->n, width = c->H * c->hd;
	const struct tensor *to[2] = { c->keys, c->values };

	if (where < 0 || where >= c->capacity || c->limit[row] < 0)
		return;
	for (int part = 0; part < 2; part++)
		for (int64_t i = 0; i < width; i += LOOP_BLOCK) {
			int64_t m = loop_min(LOOP_BLOCK, width - i);
			int64_t first = (sequence * c->capacity + where) * width + i;
			float in[LOOP_BLOCK], block[LOOP_BLOCK],
				*y = loop_target(to[part], first, block);
			const float *x = loop_load(c->qkv, (row * 3 + 1 + part) * width + i, m, in);

			memcpy(y, x, m * sizeof *y);
			loop_store(to[part], first, m, y);
		}
}

static void cache_attend(const struct cache *c, int64_t row, int64_t h)
{
	int64_t n = (int64_t)c->limit[row] + 1, width = c->H * c->hd, hd = c->hd;
	int64_t base = row / c->n * c->capacity * width + h * hd, o = (row * c->H + h) * hd;
	float *score = scratch(c->capacity), scale = 1.0f / sqrtf((float)hd), sum = 1;
	float in[HEAD_MAX], other[HEAD_MAX], block[HEAD_MAX], to[HEAD_MAX] = { 0 };
	const float *q = loop_load(c->qkv, row * 3 * width + h * hd, hd, in);
	float *y = loop_target(c->out, o, block);

	CHECK(n <= c->capacity);
	for (int64_t j = 0; j < n; j++) {
		const float *key = loop_load(c->keys, base + j * width, hd, other);
		float dot = 0;

#pragma omp simd reduction(+ : dot)
		for (int64_t i = 0; i < hd; i++)
			dot += q[i] * key[i];
		score[j] = dot * scale;
	}
	if (n > 0)
		soften(score, n, &sum);
	for (int64_t j = 0; j < n; j++)
		weigh(to, score + j, 1, loop_load(c->values, base + j * width, hd, other), 1, hd);
	for (int64_t i = 0; i < hd; i++)
		y[i] = to[i] / sum;
	loop_store(c->out, o, hd, y);
}

void LOOP(attention_cached)(struct kernels *k, struct tensor out, struct tensor qkv, int heads,
			    struct tensor keys, struct tensor values, struct tensor at,
			    struct tensor limit)
{
	struct cache c = {
		&qkv,        &keys, &values,     &out,  loop_i32(&at),      loop_i32(&limit),
		keys.dim[0], 0,     keys.dim[1], heads, keys.dim[2] / heads
	};

	(void)k;
	CHECK(keys.rank == 3 && values.rank == 3 && tensor_count(&at) == c.S && c.hd <= HEAD_MAX);
	c.n = c.S ? tensor_count(&limit) / c.S : 0;
	CHECK(tensor_count(&qkv) == c.S * c.n * 3 * heads * c.hd);
#pragma omp parallel for schedule(static)
	for (int64_t row = 0; row < c.S * c.n; row++)
		cache_write(&c, row);
#pragma omp parallel for schedule(static)
	for (int64_t i = 0; i < c.S * c.n * heads; i++)
		cache_attend(&c, i / heads, i % heads);
}
