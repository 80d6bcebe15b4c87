/* SPDX-License-Identifier: Apache-2.0
 * Vectorised elementwise operations, sums, SwiGLU and AdamW; see loops.h. */
#include "config.h"
#include "kernels/cpu/loops/loops.h"

#include <math.h>

#define FOR_BLOCKS(at, n) \
	LOOP_PRAGMA(omp parallel for schedule(static) if ((n) > LOOP_PARALLEL)) \
	for (int64_t at = 0; at < (n); at += LOOP_BLOCK)

static int64_t same_count(const struct tensor *a, const struct tensor *b)
{
	int64_t n = tensor_count(a);

	CHECK(n == tensor_count(b) && (a->type == DT_F32 || a->type == DT_BF16));
	return n;
}

void LOOP(convert)(struct kernels *k, struct tensor to, struct tensor from)
{
	int64_t n = same_count(&to, &from);

	(void)k;
	FOR_BLOCKS(at, n) {
		int64_t m = loop_min(LOOP_BLOCK, n - at);
		float block[LOOP_BLOCK];
		const float *x = loop_load(&from, at, m, block);

		if (to.type == DT_F32)
			memcpy(loop_f32(&to) + at, x, m * sizeof *x);
		else
			loop_store(&to, at, m, x);
	}
}

void LOOP(fill)(struct kernels *k, struct tensor to, float value)
{
	int64_t n = tensor_count(&to);

	(void)k;
	FOR_BLOCKS(at, n) {
		int64_t m = loop_min(LOOP_BLOCK, n - at);
		float block[LOOP_BLOCK], *y = loop_target(&to, at, block);

#pragma omp simd
		for (int64_t i = 0; i < m; i++)
			y[i] = value;
		loop_store(&to, at, m, y);
	}
}

void LOOP(add)(struct kernels *k, struct tensor to, struct tensor a, struct tensor b)
{
	int64_t n = same_count(&to, &a);

	(void)k;
	same_count(&a, &b);
	FOR_BLOCKS(at, n) {
		int64_t m = loop_min(LOOP_BLOCK, n - at);
		float first[LOOP_BLOCK], second[LOOP_BLOCK], out[LOOP_BLOCK];
		const float *x = loop_load(&a, at, m, first), *y = loop_load(&b, at, m, second);
		float *z = loop_target(&to, at, out);

#pragma omp simd
		for (int64_t i = 0; i < m; i++)
			z[i] = x[i] + y[i];
		loop_store(&to, at, m, z);
	}
}

void LOOP(scale)(struct kernels *k, struct tensor to, float by)
{
	int64_t n = tensor_count(&to);

	(void)k;
	FOR_BLOCKS(at, n) {
		int64_t m = loop_min(LOOP_BLOCK, n - at);
		float block[LOOP_BLOCK], *y = loop_target(&to, at, block);
		const float *x = loop_load(&to, at, m, block);

#pragma omp simd
		for (int64_t i = 0; i < m; i++)
			y[i] = x[i] * by;
		loop_store(&to, at, m, y);
	}
}

void LOOP(lerp)(struct kernels *k, struct tensor to, struct tensor x, float w)
{
	int64_t n = same_count(&to, &x);
	float *y = loop_f32(&to);
	const float *from = loop_f32(&x);

	(void)k;
	CHECK(to.type == DT_F32 && x.type == DT_F32);
	FOR_BLOCKS(at, n)
		for (int64_t i = at; i < loop_min(n, at + LOOP_BLOCK); i++)
			y[i] += w * (from[i] - y[i]);
}

void LOOP(silu)(struct kernels *k, struct tensor to, struct tensor x)
{
	int64_t n = same_count(&to, &x);

	(void)k;
	FOR_BLOCKS(at, n) {
		int64_t m = loop_min(LOOP_BLOCK, n - at);
		float in[LOOP_BLOCK], out[LOOP_BLOCK], *y = loop_target(&to, at, out);
		const float *v = loop_load(&x, at, m, in);

#pragma omp simd
		for (int64_t i = 0; i < m; i++)
			y[i] = v[i] * loop_sigmoid(v[i]);
		loop_store(&to, at, m, y);
	}
}

void LOOP(silu_backward)(struct kernels *k, struct tensor dx, struct tensor dy, struct tensor x)
{
	int64_t n = same_count(&dx, &x);

	(void)k;
	same_count(&dy, &x);
	FOR_BLOCKS(at, n) {
		int64_t m = loop_min(LOOP_BLOCK, n - at);
		float in[LOOP_BLOCK], grad[LOOP_BLOCK], out[LOOP_BLOCK];
		const float *v = loop_load(&x, at, m, in), *g = loop_load(&dy, at, m, grad);
		float *d = loop_target(&dx, at, out);

#pragma omp simd
		for (int64_t i = 0; i < m; i++) {
			float s = loop_sigmoid(v[i]);

			d[i] = g[i] * s * (1.0f + v[i] * (1.0f - s));
		}
		loop_store(&dx, at, m, d);
	}
}

/* Sums are cut into a fixed number of shares, added up in order: the same whatever the threads. */
#define SUM_SHARES 64
#define SUM_BLOCK 4096

static double sum_share(const float *x, int64_t first, int64_t end, bool squares)
{
	double total = 0;

	for (int64_t at = first; at < end; at += SUM_BLOCK) {
		int64_t last = loop_min(end, at + SUM_BLOCK);
		float sum = 0;

		if (squares)
#pragma omp simd reduction(+ : sum)
			for (int64_t i = at; i < last; i++)
				sum += x[i] * x[i];
		else
#pragma omp simd reduction(+ : sum)
			for (int64_t i = at; i < last; i++)
				sum += x[i];
		total += sum;
	}
	return total;
}

static double sum_of(const float *x, int64_t n, bool squares)
{
	int64_t each = (n + SUM_SHARES - 1) / SUM_SHARES;
	double share[SUM_SHARES], total = 0;

#pragma omp parallel for schedule(static) if (n > 4 * LOOP_PARALLEL)
	for (int i = 0; i < SUM_SHARES; i++)
		share[i] = sum_share(x, i * each, loop_min(n, (i + 1) * each), squares);
	for (int i = 0; i < SUM_SHARES; i++)
		total += share[i];
	return total;
}

void LOOP(sum)(struct kernels *k, float *to, const float *x, int64_t n)
{
	(void)k;
	*to = (float)sum_of(x, n, false);
}

void LOOP(sum_squares)(struct kernels *k, float *to, const float *x, int64_t n)
{
	(void)k;
	*to = (float)sum_of(x, n, true);
}

void LOOP(swiglu)(struct kernels *k, struct tensor out, struct tensor gate_up,
		  struct scaled also)
{
	int64_t rows = out.dim[0], width = out.dim[1];

	CHECK(gate_up.dim[0] == rows && gate_up.dim[1] == 2 * width);
#pragma omp parallel for schedule(static) if (rows * width > LOOP_PARALLEL)
	for (int64_t r = 0; r < rows; r++)
		for (int64_t at = 0; at < width; at += LOOP_BLOCK) {
			int64_t m = loop_min(LOOP_BLOCK, width - at), from = r * 2 * width + at;
			float first[LOOP_BLOCK], second[LOOP_BLOCK], block[LOOP_BLOCK];
			const float *g = loop_load(&gate_up, from, m, first);
			const float *u = loop_load(&gate_up, from + width, m, second);
			float *y = loop_target(&out, r * width + at, block);

#pragma omp simd
			for (int64_t i = 0; i < m; i++)
				y[i] = g[i] * loop_sigmoid(g[i]) * u[i];
			loop_store(&out, r * width + at, m, y);
		}
	loop_also(k, also, out);
}

void LOOP(swiglu_backward)(struct kernels *k, struct tensor dgate_up, struct tensor dout,
			   struct tensor gate_up, struct scaled also)
{
	int64_t rows = dout.dim[0], width = dout.dim[1];

	CHECK(gate_up.dim[0] == rows && gate_up.dim[1] == 2 * width);
#pragma omp parallel for schedule(static) if (rows * width > LOOP_PARALLEL)
	for (int64_t r = 0; r < rows; r++)
		for (int64_t at = 0; at < width; at += LOOP_BLOCK) {
			int64_t m = loop_min(LOOP_BLOCK, width - at), from = r * 2 * width + at;
			float in[3][LOOP_BLOCK], out[2][LOOP_BLOCK];
			const float *g = loop_load(&gate_up, from, m, in[0]);
			const float *u = loop_load(&gate_up, from + width, m, in[1]);
			const float *dy = loop_load(&dout, r * width + at, m, in[2]);
			float *dg = loop_target(&dgate_up, from, out[0]);
			float *du = loop_target(&dgate_up, from + width, out[1]);

#pragma omp simd
			for (int64_t i = 0; i < m; i++) {
				float s = loop_sigmoid(g[i]), gate = g[i], d = dy[i];

				dg[i] = d * u[i] * s * (1.0f + gate * (1.0f - s));
				du[i] = d * gate * s;
			}
			loop_store(&dgate_up, from, m, dg);
			loop_store(&dgate_up, from + width, m, du);
		}
	loop_also(k, also, dgate_up);
}

void LOOP(add_noise)(struct kernels *k, struct tensor out, struct tensor x, struct tensor noise,
		     struct tensor signal, struct tensor sigma)
{
	int64_t n = tensor_count(&signal), each = n ? tensor_count(&x) / n : 0;
	float *y = loop_f32(&out);
	const float *clean = loop_f32(&x), *eps = loop_f32(&noise);

	(void)k;
	CHECK(each * n == tensor_count(&x) && tensor_count(&noise) == tensor_count(&x));
	CHECK(tensor_count(&out) == tensor_count(&x) && tensor_count(&sigma) == n);
#pragma omp parallel for schedule(static) if (n * each > LOOP_PARALLEL)
	for (int64_t i = 0; i < n; i++) {
		float a = loop_f32(&signal)[i], b = loop_f32(&sigma)[i];

#pragma omp simd
		for (int64_t j = i * each; j < (i + 1) * each; j++)
			y[j] = a * clean[j] + b * eps[j];
	}
}

void LOOP(denoise)(struct kernels *k, const struct denoise *d)
{
	float abar = d->step[DENOISE_SQRT_ABAR], rest = d->step[DENOISE_SQRT_ONE_MINUS_ABAR];
	float c_x0 = d->step[DENOISE_X0], c_eps = d->step[DENOISE_EPS], c_x = d->step[DENOISE_X];
	float sigma = d->noise ? d->step[DENOISE_SIGMA] : 0;
	float invert = 1.0f / abar, back = 1.0f / rest;

	(void)k;
	CHECK(abar > 0);
#pragma omp simd
	for (int64_t i = 0; i < d->n; i++) {
		float eps = d->eps_c[i], x = d->x[i], x0;

		if (d->eps_u)
			eps = d->eps_u[i] + d->guidance * (eps - d->eps_u[i]);
		x0 = (x - rest * eps) * invert;
		if (d->clamp > 0) {
			x0 = x0 > d->clamp ? d->clamp : x0 < -d->clamp ? -d->clamp : x0;
			eps = (x - abar * x0) * back;
		}
		x = c_x0 * x0 + c_eps * eps + c_x * x;
		d->x[i] = sigma != 0 ? x + sigma * d->noise[i] : x;
	}
}

struct adamw_terms {
	float scale, rate, root;
	int64_t updates;
};

/* n new moments from element `at` on, a multiple of 4, in the type they are kept in; shift 0 takes
 * the low and 16 the high half of each random word. */
static void store_moments(const struct adamw *a, const struct adamw_terms *t, void *array,
			  int shift, int64_t at, int64_t n, const float *value)
{
	struct tensor to = tensor_1d(array, a->moments, a->n);
	uint16_t *half = (uint16_t *)array + at;

	if (a->moments == DT_F32 || !a->stochastic) {
		loop_store(&to, at, n, value);
		return;
	}
	for (int64_t i = 0; i < n; i += 4) {
		uint32_t word[4];

		philox_words(a->seed, PHILOX_ROUND, (uint64_t)t->updates, (uint64_t)(at + i) / 4,
			     word);
		for (int64_t j = i; j < loop_min(i + 4, n); j++)
			half[j] = bf16_by_chance(value[j], word[j - i] >> shift & 0xffff);
	}
}

static void adamw_block(const struct adamw *a, const struct adamw_terms *t, int64_t at, int64_t n)
{
	struct tensor moments[2] = { tensor_1d(a->m, a->moments, a->n),
				     tensor_1d(a->v, a->moments, a->n) };
	float block[2][LOOP_BLOCK], rest1 = 1.0f - a->beta1, rest2 = 1.0f - a->beta2;
	float *p = a->master + at, *m = loop_target(&moments[0], at, block[0]);
	float *v = loop_target(&moments[1], at, block[1]);
	const float *grad = a->grad + at;
	int64_t decayed = a->decayed - at;

	loop_load(&moments[0], at, n, block[0]);
	loop_load(&moments[1], at, n, block[1]);
#pragma omp simd
	for (int64_t i = 0; i < n; i++) {
		float g = grad[i] * t->scale, decay = i < decayed ? a->weight_decay : 0;

		m[i] = a->beta1 * m[i] + rest1 * g;
		v[i] = a->beta2 * v[i] + rest2 * g * g;
		p[i] -= t->rate * m[i] / (sqrtf(v[i]) * t->root + a->eps) + a->lr * decay * p[i];
	}
	store_moments(a, t, a->m, 0, at, n, m);
	store_moments(a, t, a->v, 16, at, n, v);
	if (a->average)
		for (int64_t i = 0; i < n; i++)
			a->average[at + i] += a->average_weight * (p[i] - a->average[at + i]);
	if (a->resident) {
		struct tensor copy = tensor_1d(a->resident, DT_BF16, a->n);

		loop_store(&copy, at, n, p);
	}
}

void LOOP(adamw)(struct kernels *k, const struct adamw *a)
{
	int64_t updates = a->step - (a->skipped ? *a->skipped : 0);
	float norm = sqrtf(*a->grad_norm2) * a->grad_scale;
	struct adamw_terms t = {
		.scale = a->grad_scale,
		.rate = a->lr / (float)(1 - pow(a->beta1, (double)updates)),
		.root = 1.0f / (float)sqrt(1 - pow(a->beta2, (double)updates)),
		.updates = updates,
	};

	(void)k;
	CHECK(updates > 0 && a->decayed >= 0 && a->decayed <= a->n);
	CHECK(a->moments == DT_F32 || a->moments == DT_BF16);
	if (!isfinite(*a->grad_norm2)) {
		if (a->skipped)
			++*a->skipped;
		return;
	}
	if (a->clip > 0 && norm > a->clip)
		t.scale *= a->clip / norm;
	FOR_BLOCKS(at, a->n)
		adamw_block(a, &t, at, loop_min(LOOP_BLOCK, a->n - at));
}
