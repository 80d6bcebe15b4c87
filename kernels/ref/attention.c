/* SPDX-License-Identifier: Apache-2.0
 * Reference attention of kernels.def: for each query the softmax over its interval of keys, scores
 * held in double. */
#include "config.h"
#include "kernels/ref/ref.h"
#include "lib/mem.h"

#include <math.h>

/* Where things are: element c of the q (0), k (1) or v (2) of a head at row t of sequence b. */
struct heads {
	const struct tensor *qkv;
	int64_t B, T, H, hd;
};

static struct heads heads_of(const struct tensor *qkv, int heads, const struct tensor *start,
			     const struct tensor *limit)
{
	struct heads s = { qkv, start->dim[0], start->dim[1], heads, 0 };
	int64_t rows = s.B * s.T;

	CHECK(start->rank == 2 && limit->rank == 2 && start->type == DT_I32 &&
	      limit->type == DT_I32);
	CHECK(heads > 0 && limit->dim[0] == s.B && limit->dim[1] == s.T);
	s.hd = rows ? tensor_count(qkv) / (rows * 3 * heads) : 0;
	CHECK(s.hd * rows * 3 * heads == tensor_count(qkv));
	return s;
}

static int64_t at(const struct heads *s, int64_t row, int part, int64_t h)
{
	return ((row * 3 + part) * s->H + h) * s->hd;
}

static double dot(const struct tensor *a, int64_t i, const struct tensor *b, int64_t j, int64_t n)
{
	double sum = 0;

	for (int64_t c = 0; c < n; c++)
		sum += (double)ref_get(a, i + c) * ref_get(b, j + c);
	return sum;
}

/* Softmax of score[0..n) in place; returns log of the sum of exponentials. */
static double softmax(double *score, int64_t n)
{
	double most = -INFINITY, sum = 0;

	for (int64_t j = 0; j < n; j++)
		most = fmax(most, score[j]);
	for (int64_t j = 0; j < n; j++)
		sum += exp(score[j] - most);
	for (int64_t j = 0; j < n; j++)
		score[j] = exp(score[j] - most) / sum;
	return most + log(sum);
}

void ref_attention(struct kernels *k, struct tensor out, struct tensor lse, struct tensor qkv,
		   int heads, struct tensor start, struct tensor limit)
{
	struct heads s = heads_of(&qkv, heads, &start, &limit);
	double *score = xcalloc(s.T, sizeof *score), scale = 1 / sqrt((double)s.hd);

	(void)k;
	CHECK(tensor_count(&out) == s.B * s.T * s.H * s.hd &&
	      tensor_count(&lse) == s.B * s.H * s.T);
	for (int64_t i = 0; i < s.B * s.T * s.H; i++) {
		int64_t h = i % s.H, row = i / s.H, b = row / s.T, t = row % s.T;
		int64_t from = ref_index(&start, row), n = ref_index(&limit, row) - from + 1;

		CHECK(from >= 0 && n > 0 && from + n <= s.T);
		for (int64_t j = 0; j < n; j++)
			score[j] = scale * dot(&qkv, at(&s, row, 0, h), &qkv,
					       at(&s, b * s.T + from + j, 1, h), s.hd);
		ref_put(&lse, (b * s.H + h) * s.T + t, softmax(score, n));
		for (int64_t c = 0; c < s.hd; c++) {
			double sum = 0;

			for (int64_t j = 0; j < n; j++)
				sum += score[j] *
				       ref_get(&qkv, at(&s, b * s.T + from + j, 2, h) + c);
			ref_put(&out, (row * s.H + h) * s.hd + c, sum);
		}
	}
	xfree(score);
}

/* Adds query (row, h)'s share to grad, f64 in the shape of qkv. p_j = exp(s_j - lse);
 * dv_j += p_j do; ds_j = p_j (do . v_j - do . o); dq += scale ds_j k_j; dk_j += scale ds_j q. */
static void backward_query(const struct heads *s, double *grad, const struct tensor *dout,
			   const struct tensor *out, double lse, int64_t row, int64_t h,
			   int64_t from, int64_t to)
{
	double scale = 1 / sqrt((double)s->hd);
	int64_t o = (row * s->H + h) * s->hd, q = at(s, row, 0, h);
	double mean = dot(dout, o, out, o, s->hd);

	for (int64_t j = from; j <= to; j++) {
		int64_t key = at(s, j, 1, h), value = at(s, j, 2, h);
		double p = exp(scale * dot(s->qkv, q, s->qkv, key, s->hd) - lse);
		double ds = p * (dot(dout, o, s->qkv, value, s->hd) - mean) * scale;

		for (int64_t c = 0; c < s->hd; c++) {
			grad[value + c] += p * ref_get(dout, o + c);
			grad[q + c] += ds * ref_get(s->qkv, key + c);
			grad[key + c] += ds * ref_get(s->qkv, q + c);
		}
	}
}

void ref_attention_backward(struct kernels *k, struct tensor dqkv, struct tensor dout,
			    struct tensor out, struct tensor lse, struct tensor qkv, int heads,
			    struct tensor start, struct tensor limit, const struct turned *turned)
{
	struct heads s = heads_of(&qkv, heads, &start, &limit);
	double *grad = xcalloc(tensor_count(&qkv), sizeof *grad);

	CHECK(tensor_count(&dqkv) == tensor_count(&qkv));
	for (int64_t row = 0; row < s.B * s.T; row++)
		for (int64_t h = 0; h < s.H; h++) {
			int64_t b = row / s.T, t = row % s.T;

			backward_query(&s, grad, &dout, &out,
				       ref_get(&lse, (b * s.H + h) * s.T + t), row, h,
				       b * s.T + ref_index(&start, row),
				       b * s.T + ref_index(&limit, row));
		}
	for (int64_t i = 0; i < tensor_count(&qkv); i++)
		ref_put(&dqkv, i, grad[i]);
	xfree(grad);
	if (turned)
		ref_rope(k, dqkv, heads, turned->cosine, turned->sine, turned->position, true);
}

/* The caches of sampling. */
struct cache {
	const struct tensor *keys, *values, *at, *limit;
	int64_t S, n, capacity;
};

static void cache_write(const struct cache *c, const struct heads *s)
{
	int64_t width = s->H * s->hd;

	for (int64_t row = 0; row < c->S * c->n; row++) {
		int64_t sequence = row / c->n, place = ref_index(c->at, sequence) + row % c->n;

		if (place < 0 || place >= c->capacity || ref_index(c->limit, row) < 0)
			continue;
		for (int64_t i = 0; i < width; i++) {
			int64_t to = (sequence * c->capacity + place) * width + i;

			ref_put(c->keys, to, ref_get(s->qkv, (row * 3 + 1) * width + i));
			ref_put(c->values, to, ref_get(s->qkv, (row * 3 + 2) * width + i));
		}
	}
}

static void cache_attend(const struct cache *c, const struct heads *s, const struct tensor *out,
			 int64_t row, int64_t h, double *score)
{
	int64_t n = (int64_t)ref_index(c->limit, row) + 1, width = s->H * s->hd;
	int64_t base = row / c->n * c->capacity * width + h * s->hd;
	double scale = 1 / sqrt((double)s->hd);

	CHECK(n <= c->capacity);
	for (int64_t j = 0; j < n; j++)
		score[j] = scale * dot(s->qkv, at(s, row, 0, h), c->keys, base + j * width, s->hd);
	if (n > 0)
		softmax(score, n);
	for (int64_t i = 0; i < s->hd; i++) {
		double sum = 0;

		for (int64_t j = 0; j < n; j++)
			sum += score[j] * ref_get(c->values, base + j * width + i);
		ref_put(out, (row * s->H + h) * s->hd + i, sum);
	}
}

void ref_attention_cached(struct kernels *k, struct tensor out, struct tensor qkv, int heads,
			  struct tensor keys, struct tensor values, struct tensor place,
			  struct tensor limit)
{
	struct cache c = { &keys, &values, &place, &limit, keys.dim[0], 0, keys.dim[1] };
	struct heads s = { &qkv, c.S, 0, heads, keys.dim[2] / heads };
	double *score = xcalloc(c.capacity, sizeof *score);

	(void)k;
	CHECK(keys.rank == 3 && values.rank == 3 && tensor_count(&place) == c.S);
	c.n = s.T = c.S ? tensor_count(&limit) / c.S : 0;
	CHECK(tensor_count(&qkv) == c.S * c.n * 3 * heads * s.hd);
	cache_write(&c, &s);
	for (int64_t row = 0; row < c.S * c.n; row++)
		for (int64_t h = 0; h < heads; h++)
			cache_attend(&c, &s, &out, row, h, score);
	xfree(score);
}
