/* SPDX-License-Identifier: Apache-2.0
 * Vectorised operations on rows: embedding, gathering, norms, rotary positions; see loops.h. */
#include "config.h"
#include "kernels/cpu/loops/loops.h"

#include <math.h>

#define FOR_ROWS(r, rows, width) \
	LOOP_PRAGMA(omp parallel for schedule(static) if ((rows) * (width) > LOOP_PARALLEL)) \
	for (int64_t r = 0; r < (rows); r++)

static void check_rows(const struct tensor *wide, const struct tensor *narrow,
		       const struct tensor *row)
{
	CHECK(wide->rank == 2 && narrow->rank == 2 && wide->dim[1] == narrow->dim[1]);
	CHECK(row->type == DT_I32 && tensor_count(row) == narrow->dim[0]);
}

/* Row i of `to` becomes row j of `from`, or zeros when j < 0. */
static void copy_row(const struct tensor *to, int64_t i, const struct tensor *from, int64_t j)
{
	int64_t d = to->dim[1];

	for (int64_t at = 0; at < d; at += LOOP_BLOCK) {
		int64_t m = loop_min(LOOP_BLOCK, d - at);
		float in[LOOP_BLOCK], out[LOOP_BLOCK], *y = loop_target(to, i * d + at, out);
		const float *x = NULL;

		if (j < 0)
			memset(y, 0, m * sizeof *y);
		else
			x = loop_load(from, j * d + at, m, in);
		for (int64_t c = 0; x && c < m; c++)
			y[c] = x[c];
		loop_store(to, i * d + at, m, y);
	}
}

static void add_row(const struct tensor *to, int64_t i, const struct tensor *from, int64_t j)
{
	int64_t d = to->dim[1];

	for (int64_t at = 0; at < d; at += LOOP_BLOCK) {
		int64_t m = loop_min(LOOP_BLOCK, d - at);
		float in[LOOP_BLOCK], sum[LOOP_BLOCK], out[LOOP_BLOCK];
		const float *x = loop_load(from, j * d + at, m, in);
		const float *old = loop_load(to, i * d + at, m, sum);
		float *y = loop_target(to, i * d + at, out);

#pragma omp simd
		for (int64_t c = 0; c < m; c++)
			y[c] = old[c] + x[c];
		loop_store(to, i * d + at, m, y);
	}
}

void LOOP(embed)(struct kernels *k, struct tensor out, struct tensor table, struct tensor token)
{
	const int32_t *id = loop_i32(&token);

	(void)k;
	check_rows(&table, &out, &token);
	FOR_ROWS(i, out.dim[0], out.dim[1]) {
		CHECK(id[i] < table.dim[0]);
		if (id[i] >= 0)
			copy_row(&out, i, &table, id[i]);
	}
}

/* Each thread owns a share of the columns, so rows are added in their order whatever the threads.
 * */
void LOOP(embed_backward)(struct kernels *k, struct tensor dtable, struct tensor dout,
			  struct tensor token)
{
	int64_t n = dout.dim[0], d = dout.dim[1];
	const int32_t *id = loop_i32(&token);
	float *grad = loop_f32(&dtable);

	(void)k;
	check_rows(&dtable, &dout, &token);
	CHECK(dtable.type == DT_F32);
#pragma omp parallel for schedule(static) if (n * d > LOOP_PARALLEL)
	for (int64_t at = 0; at < d; at += 64) {
		int64_t m = loop_min(64, d - at);

		for (int64_t i = 0; i < n; i++) {
			float block[64], *to;
			const float *x;

			if (id[i] < 0)
				continue;
			CHECK(id[i] < dtable.dim[0]);
			x = loop_load(&dout, i * d + at, m, block);
			to = grad + (int64_t)id[i] * d + at;
#pragma omp simd
			for (int64_t c = 0; c < m; c++)
				to[c] += x[c];
		}
	}
}

void LOOP(gather_rows)(struct kernels *k, struct tensor out, struct tensor in, struct tensor row)
{
	const int32_t *from = loop_i32(&row);

	(void)k;
	check_rows(&in, &out, &row);
	FOR_ROWS(i, out.dim[0], out.dim[1]) {
		CHECK(from[i] < in.dim[0]);
		copy_row(&out, i, &in, from[i]);
	}
}

void LOOP(scatter_rows)(struct kernels *k, struct tensor out, struct tensor in, struct tensor row)
{
	const int32_t *to = loop_i32(&row);

	(void)k;
	check_rows(&out, &in, &row);
	FOR_ROWS(i, in.dim[0], in.dim[1]) {
		CHECK(to[i] < out.dim[0]);
		if (to[i] >= 0)
			copy_row(&out, to[i], &in, i);
	}
}

void LOOP(scatter_add_rows)(struct kernels *k, struct tensor out, struct tensor in,
			    struct tensor row)
{
	const int32_t *to = loop_i32(&row);

	(void)k;
	check_rows(&out, &in, &row);
	FOR_ROWS(i, in.dim[0], in.dim[1]) {
		CHECK(to[i] < out.dim[0]);
		if (to[i] >= 0)
			add_row(&out, to[i], &in, i);
	}
}

void LOOP(add_per_image)(struct kernels *k, struct tensor rows, struct tensor vector)
{
	int64_t patches = vector.dim[0] ? rows.dim[0] / vector.dim[0] : 0;

	(void)k;
	CHECK(rows.dim[1] == vector.dim[1] && patches * vector.dim[0] == rows.dim[0]);
	FOR_ROWS(i, rows.dim[0], rows.dim[1])
		add_row(&rows, i, &vector, i / patches);
}

/* Columns of dy summed over all rows into dbias; each thread owns columns. */
void LOOP(bias_backward)(struct kernels *k, struct tensor dbias, struct tensor dy)
{
	int64_t rows = dy.dim[0], d = dy.dim[1];

	(void)k;
	CHECK(dy.rank == 2 && dbias.type == DT_F32 && tensor_count(&dbias) == d);
#pragma omp parallel for schedule(static) if (rows * d > LOOP_PARALLEL)
	for (int64_t at = 0; at < d; at += 64) {
		int64_t m = loop_min(64, d - at);
		float *to = loop_f32(&dbias) + at;

		for (int64_t r = 0; r < rows; r++) {
			float block[64];
			const float *x = loop_load(&dy, r * d + at, m, block);

#pragma omp simd
			for (int64_t c = 0; c < m; c++)
				to[c] += x[c];
		}
	}
}

static void check_norm(const struct tensor *x, const struct tensor *weight,
		       const struct tensor *rstd)
{
	CHECK(x->rank == 2 && weight->type == DT_F32 && tensor_count(weight) == x->dim[1]);
	CHECK(rstd->type == DT_F32 && tensor_count(rstd) == x->dim[0]);
}

/* Normalises row r of x, which is in the cache by now, by its mean square. */
static void norm_row(const struct tensor *out, const struct tensor *rstd, const struct tensor *x,
		     const struct tensor *weight, int64_t r, float square, float eps)
{
	int64_t d = x->dim[1];
	const float *w = loop_f32(weight);
	float scale = 1.0f / sqrtf(square / (float)d + eps);

	loop_f32(rstd)[r] = scale;
	for (int64_t at = 0; at < d; at += LOOP_BLOCK) {
		int64_t m = loop_min(LOOP_BLOCK, d - at);
		float in[LOOP_BLOCK], block[LOOP_BLOCK], *y = loop_target(out, r * d + at, block);
		const float *v = loop_load(x, r * d + at, m, in);

#pragma omp simd
		for (int64_t c = 0; c < m; c++)
			y[c] = v[c] * scale * w[at + c];
		loop_store(out, r * d + at, m, y);
	}
}

void LOOP(rmsnorm)(struct kernels *k, struct tensor out, struct tensor rstd, struct tensor x,
		   struct tensor weight, float eps)
{
	int64_t d = x.dim[1];

	(void)k;
	check_norm(&x, &weight, &rstd);
	FOR_ROWS(r, x.dim[0], d) {
		float square = 0;

		for (int64_t at = 0; at < d; at += LOOP_BLOCK) {
			int64_t m = loop_min(LOOP_BLOCK, d - at);
			float in[LOOP_BLOCK];
			const float *v = loop_load(&x, r * d + at, m, in);

#pragma omp simd reduction(+ : square)
			for (int64_t c = 0; c < m; c++)
				square += v[c] * v[c];
		}
		norm_row(&out, &rstd, &x, &weight, r, square, eps);
	}
}

void LOOP(add_rmsnorm)(struct kernels *k, struct tensor out, struct tensor rstd, struct tensor sum,
		       struct tensor x, struct tensor delta, struct tensor weight, float eps,
		       struct scaled also)
{
	int64_t d = x.dim[1];

	check_norm(&sum, &weight, &rstd);
	FOR_ROWS(r, x.dim[0], d) {
		float square = 0;

		for (int64_t at = 0; at < d; at += LOOP_BLOCK) {
			int64_t m = loop_min(LOOP_BLOCK, d - at), first = r * d + at;
			float in[2][LOOP_BLOCK], block[LOOP_BLOCK];
			const float *a = loop_load(&x, first, m, in[0]);
			const float *b = loop_load(&delta, first, m, in[1]);
			float *y = loop_target(&sum, first, block);

#pragma omp simd
			for (int64_t c = 0; c < m; c++)
				y[c] = a[c] + b[c];
			loop_store(&sum, first, m, y);
			a = loop_load(&sum, first, m, in[0]);
#pragma omp simd reduction(+ : square)
			for (int64_t c = 0; c < m; c++)
				square += a[c] * a[c];
		}
		norm_row(&out, &rstd, &sum, &weight, r, square, eps);
	}
	loop_also(k, also, out);
}

struct norm_backward {
	const struct tensor *dx, *dout, *x, *weight, *rstd, *dresidual;
};

/* sum over the row of w g x. */
static float norm_dot(const struct norm_backward *n, int64_t r)
{
	int64_t d = n->x->dim[1];
	const float *w = loop_f32(n->weight);
	float dot = 0;

	for (int64_t at = 0; at < d; at += LOOP_BLOCK) {
		int64_t m = loop_min(LOOP_BLOCK, d - at);
		float in[2][LOOP_BLOCK];
		const float *g = loop_load(n->dout, r * d + at, m, in[0]);
		const float *x = loop_load(n->x, r * d + at, m, in[1]);

#pragma omp simd reduction(+ : dot)
		for (int64_t c = 0; c < m; c++)
			dot += w[at + c] * g[c] * x[c];
	}
	return dot;
}

/* dx of row r, and its share of dweight added to `share` [d]. */
static void norm_backward_row(const struct norm_backward *n, int64_t r, float *share)
{
	int64_t d = n->x->dim[1];
	const float *w = loop_f32(n->weight);
	float scale = loop_f32(n->rstd)[r];
	float pull = norm_dot(n, r) * scale * scale * scale / (float)d;

	for (int64_t at = 0; at < d; at += LOOP_BLOCK) {
		int64_t m = loop_min(LOOP_BLOCK, d - at), first = r * d + at;
		float in[3][LOOP_BLOCK], block[LOOP_BLOCK];
		const float *g = loop_load(n->dout, first, m, in[0]);
		const float *x = loop_load(n->x, first, m, in[1]);
		const float *old =
			n->dresidual->data ? loop_load(n->dresidual, first, m, in[2]) : NULL;
		float *y = loop_target(n->dx, first, block);

#pragma omp simd
		for (int64_t c = 0; c < m; c++)
			share[at + c] += g[c] * x[c] * scale;
		if (old)
#pragma omp simd
			for (int64_t c = 0; c < m; c++)
				y[c] = old[c] + (scale * w[at + c] * g[c] - x[c] * pull);
		else
#pragma omp simd
			for (int64_t c = 0; c < m; c++)
				y[c] = scale * w[at + c] * g[c] - x[c] * pull;
		loop_store(n->dx, first, m, y);
	}
}

/* Rows are cut into a fixed number of shares, each with a partial dweight, added in order. */
#define NORM_SHARES 16
#define NORM_WIDTH_MAX 16384

void LOOP(rmsnorm_backward)(struct kernels *k, struct tensor dx, struct tensor dweight,
			    struct tensor dout, struct tensor x, struct tensor weight,
			    struct tensor rstd, struct tensor dresidual, struct scaled also)
{
	struct norm_backward n = { &dx, &dout, &x, &weight, &rstd, &dresidual };
	int64_t rows = x.dim[0], d = x.dim[1], each = (rows + NORM_SHARES - 1) / NORM_SHARES;
	float *to = loop_f32(&dweight);
	static float share[NORM_SHARES][NORM_WIDTH_MAX] __attribute__((aligned(64)));

	check_norm(&x, &weight, &rstd);
	CHECK(dweight.type == DT_F32 && tensor_count(&dweight) == d && d <= NORM_WIDTH_MAX);
#pragma omp parallel for schedule(static) if (rows * d > LOOP_PARALLEL)
	for (int s = 0; s < NORM_SHARES; s++) {
		memset(share[s], 0, d * sizeof *to);
		for (int64_t r = s * each; r < loop_min(rows, (s + 1) * each); r++)
			norm_backward_row(&n, r, share[s]);
	}
	for (int s = 0; s < NORM_SHARES; s++)
#pragma omp simd
		for (int64_t c = 0; c < d; c++)
			to[c] += share[s][c];
	loop_also(k, also, dx);
}

void LOOP(rope)(struct kernels *k, struct tensor qkv, int heads, struct tensor cosine,
		struct tensor sine, struct tensor position, bool inverse)
{
	int64_t rows = tensor_count(&position), half = cosine.dim[1], width = 6 * heads * half;
	const int32_t *place = loop_i32(&position);
	float sign = inverse ? -1.0f : 1.0f;

	(void)k;
	CHECK(tensor_count(&qkv) == rows * width && position.type == DT_I32 &&
	      half <= LOOP_BLOCK / 2);
	FOR_ROWS(r, rows, width) {
		const float *c = loop_f32(&cosine) + place[r] * half;
		const float *s = loop_f32(&sine) + place[r] * half;

		CHECK(place[r] >= 0 && place[r] < cosine.dim[0]);
		for (int64_t h = 0; h < 2 * heads; h++) {
			int64_t at = r * width + h * 2 * half;
			float in[LOOP_BLOCK], out[LOOP_BLOCK];
			const float *x = loop_load(&qkv, at, 2 * half, in);
			float *y = loop_target(&qkv, at, out);

#pragma omp simd
			for (int64_t i = 0; i < half; i++) {
				float a = x[i], b = x[half + i], turn = sign * s[i];

				y[i] = a * c[i] - b * turn;
				y[half + i] = b * c[i] + a * turn;
			}
			loop_store(&qkv, at, 2 * half, y);
		}
	}
}
