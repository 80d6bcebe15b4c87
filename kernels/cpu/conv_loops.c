/* SPDX-License-Identifier: Apache-2.0
 * Loops of the convolutional operations, written for the compiler's vectoriser and compiled once
 * for each instruction set: LOOPS_LEVEL ends the table's name. bf16 data pass through blocks of
 * floats that stay in the first-level cache; f32 data are used where they lie. */
#include "config.h"
#include "kernels/cpu/conv.h"
#include "kernels/cpu/loops/loops.h"

#include <math.h>
#include <string.h>

#ifndef LOOPS_LEVEL
#define LOOPS_LEVEL base
#endif
#define NAME_(level) conv_loops_##level
#define NAME(level) NAME_(level)

#define ALIGNED(p) ((float *)__builtin_assume_aligned((p), 64))

/* n elements from `first` on as floats: in place for f32, else in buffer. */
static const float *load(const void *x, enum dtype type, int64_t first, int64_t n, float *buffer)
{
	const uint16_t *b;

	if (type == DT_F32)
		return (const float *)x + first;
	b = (const uint16_t *)x + first;
#pragma omp simd
	for (int64_t i = 0; i < n; i++) {
		union { uint32_t u; float f; } v = { (uint32_t)b[i] << 16 };

		buffer[i] = v.f;
	}
	return buffer;
}

/* Where results of load's kind are put before store takes them away. */
static float *target_of(void *out, enum dtype type, int64_t first, float *buffer)
{
	return type == DT_F32 ? (float *)out + first : buffer;
}

static void store(void *out, enum dtype type, int64_t first, int64_t n, const float *buffer)
{
	uint16_t *b = (uint16_t *)out + first;

	if (type == DT_F32)
		return;
#pragma omp simd
	for (int64_t i = 0; i < n; i++) {
		union { float f; uint32_t u; } v = { buffer[i] };
		uint32_t rounded = (v.u + 0x7fffu + (v.u >> 16 & 1)) >> 16;

		b[i] = (uint16_t)((v.u & 0x7fffffffu) > 0x7f800000u ? v.u >> 16 | 0x40 : rounded);
	}
}

/* ---- group norm */

/* Scratch of one image: eight blocks. Values by channel are repeated over a block, so that loops
 * run over pixels and channels alike. */
struct blocks {
	float *a, *b, *c, *d;    /* repeated values */
	float *in, *in2, *sum, *sum2;
	int64_t size;            /* elements of a block: whole pixels */
};

static struct blocks blocks_of(const struct norm_image *g)
{
	size_t n = norm_block_floats(g->channels);
	float *s = g->scratch;

	return (struct blocks){
		s,	   s + n,     s + 2 * n,
		s + 3 * n, s + 4 * n, s + 5 * n,
		s + 6 * n, s + 7 * n, (NORM_BLOCK + g->channels - 1) / g->channels * g->channels
	};
}

static void repeat(float *block, int64_t size, int channels)
{
	for (int64_t i = channels; i < size; i++)
		block[i] = block[i - channels];
}

/* Folds a block of sums into its first pixel. */
static void fold(float *block, int64_t size, int channels)
{
	for (int64_t i = channels; i < size; i += channels)
		for (int c = 0; c < channels; c++)
			block[c] += block[i + c];
}

static void add_moments(float *restrict sum, float *restrict sum2, const float *restrict x,
			const float *restrict pivot, int64_t n)
{
	sum = ALIGNED(sum);
	sum2 = ALIGNED(sum2);
	pivot = ALIGNED(pivot);
#pragma omp simd
	for (int64_t i = 0; i < n; i++) {
		float d = x[i] - pivot[i];

		sum[i] += d;
		sum2[i] += d * d;
	}
}

/* Mean and variance by group from the channels' sums around their pivots (Chan et al. 1983). */
static void finish_moments(const struct norm_image *g, const struct blocks *s)
{
	int width = g->channels / g->groups;

	for (int j = 0; j < g->groups; j++) {
		double mean = 0, squares = 0, n = (double)g->pixels;

		for (int c = j * width; c < (j + 1) * width; c++)
			mean += (double)s->a[c] + (double)s->sum[c] / n;
		mean /= width;
		for (int c = j * width; c < (j + 1) * width; c++) {
			double own = (double)s->sum[c] / n, away = (double)s->a[c] + own - mean;

			squares += (double)s->sum2[c] - own * own * n + away * away * n;
		}
		squares = squares > 0 ? squares : 0;
		g->mean[j] = (float)mean;
		g->rstd[j] = (float)(1 / sqrt(squares / (n * width) + (double)g->eps));
	}
}

static void moments(const struct norm_image *g, const struct blocks *s)
{
	int64_t count = g->pixels * g->channels;

	memcpy(s->a, load(g->x, g->type, 0, g->channels, s->in),
	       (size_t)g->channels * sizeof(float));
	repeat(s->a, s->size, g->channels);
	memset(s->sum, 0, (size_t)s->size * sizeof(float));
	memset(s->sum2, 0, (size_t)s->size * sizeof(float));
	for (int64_t at = 0; at < count; at += s->size) {
		int64_t n = count - at < s->size ? count - at : s->size;

		add_moments(s->sum, s->sum2, load(g->x, g->type, at, n, s->in), s->a, n);
	}
	fold(s->sum, s->size, g->channels);
	fold(s->sum2, s->size, g->channels);
	finish_moments(g, s);
}

static void affine(float *restrict y, const float *restrict x, const float *restrict scale,
		   const float *restrict shift, int64_t n)
{
	scale = ALIGNED(scale);
	shift = ALIGNED(shift);
#pragma omp simd
	for (int64_t i = 0; i < n; i++)
		y[i] = x[i] * scale[i] + shift[i];
}

static void affine_silu(float *restrict y, const float *restrict x, const float *restrict scale,
			const float *restrict shift, int64_t n)
{
	scale = ALIGNED(scale);
	shift = ALIGNED(shift);
#pragma omp simd
	for (int64_t i = 0; i < n; i++) {
		float v = x[i] * scale[i] + shift[i];

		y[i] = v * loop_sigmoid(v);
	}
}

/* a: scale, b: shift, so that the norm is x * scale + shift. */
static void norm_constants(const struct norm_image *g, const struct blocks *s)
{
	int width = g->channels / g->groups;

	for (int c = 0; c < g->channels; c++) {
		s->a[c] = g->weight[c] * g->rstd[c / width];
		s->b[c] = g->bias[c] - g->mean[c / width] * s->a[c];
	}
	repeat(s->a, s->size, g->channels);
	repeat(s->b, s->size, g->channels);
}

static void norm(const struct norm_image *g)
{
	struct blocks s = blocks_of(g);
	int64_t count = g->pixels * g->channels;

	moments(g, &s);
	norm_constants(g, &s);
	for (int64_t at = 0; at < count; at += s.size) {
		int64_t n = count - at < s.size ? count - at : s.size;
		const float *x = load(g->x, g->type, at, n, s.in);
		float *y = target_of(g->out, g->type, at, s.in2);

		(g->silu ? affine_silu : affine)(y, x, s.a, s.b, n);
		store(g->out, g->type, at, n, y);
	}
}

/* Gradient before SiLU: d s (1 + y (1 - s)), s = loop_sigmoid(y), y = x * scale + shift. */
static void through_silu(float *restrict d, const float *restrict dout, const float *restrict x,
			 const float *restrict scale, const float *restrict shift, int64_t n)
{
	scale = ALIGNED(scale);
	shift = ALIGNED(shift);
#pragma omp simd
	for (int64_t i = 0; i < n; i++) {
		float y = x[i] * scale[i] + shift[i], s = loop_sigmoid(y);

		d[i] = dout[i] * s * (1.0f + y * (1.0f - s));
	}
}

static void add_products(float *restrict sum, float *restrict sum2, const float *restrict d,
			 const float *restrict x, int64_t n)
{
	sum = ALIGNED(sum);
	sum2 = ALIGNED(sum2);
#pragma omp simd
	for (int64_t i = 0; i < n; i++) {
		sum[i] += d[i];
		sum2[i] += d[i] * x[i];
	}
}

/* dweight and dbias of the image; then dx = d * a + x * c + e: a is in place, c and e are found
 * here. */
static void backward_constants(const struct norm_image *g, const struct blocks *s)
{
	int width = g->channels / g->groups;
	double count = (double)g->pixels * width;

	for (int j = 0; j < g->groups; j++) {
		double m = g->mean[j], r = g->rstd[j], sum = 0, sum_hat = 0;

		for (int c = j * width; c < (j + 1) * width; c++) {
			double d_hat = ((double)s->sum2[c] - m * (double)s->sum[c]) * r;

			g->dbias[c] = s->sum[c];
			g->dweight[c] = (float)d_hat;
			sum += (double)g->weight[c] * (double)s->sum[c];
			sum_hat += (double)g->weight[c] * d_hat;
		}
		for (int c = j * width; c < (j + 1) * width; c++) {
			s->c[c] = (float)(-r * r * sum_hat / count);
			s->d[c] = (float)(r * (m * r * sum_hat - sum) / count);
		}
	}
	repeat(s->c, s->size, g->channels);
	repeat(s->d, s->size, g->channels);
}

static void combine(float *restrict dx, const float *restrict d, const float *restrict x,
		    const float *restrict a, const float *restrict c, const float *restrict e,
		    int64_t n)
{
	a = ALIGNED(a);
	c = ALIGNED(c);
	e = ALIGNED(e);
#pragma omp simd
	for (int64_t i = 0; i < n; i++)
		dx[i] = d[i] * a[i] + x[i] * c[i] + e[i];
}

/* The gradient before SiLU of a block, and its input, as floats. */
static const float *block_gradient(const struct norm_image *g, const struct blocks *s, int64_t at,
				   int64_t n, float *buffer, const float **x)
{
	const float *dout = load(g->dout, g->type, at, n, buffer);

	*x = load(g->x, g->type, at, n, s->in);
	if (!g->silu)
		return dout;
	through_silu(s->in2, dout, *x, s->a, s->b, n);
	return s->in2;
}

static void norm_backward(const struct norm_image *g)
{
	struct blocks s = blocks_of(g);
	int64_t count = g->pixels * g->channels;
	const float *x, *d;

	norm_constants(g, &s);
	memset(s.sum, 0, (size_t)s.size * sizeof(float));
	memset(s.sum2, 0, (size_t)s.size * sizeof(float));
	for (int64_t at = 0; at < count; at += s.size) {
		int64_t n = count - at < s.size ? count - at : s.size;

		d = block_gradient(g, &s, at, n, s.c, &x);
		add_products(s.sum, s.sum2, d, x, n);
	}
	fold(s.sum, s.size, g->channels);
	fold(s.sum2, s.size, g->channels);
	backward_constants(g, &s);
	for (int64_t at = 0; at < count; at += s.size) {
		int64_t n = count - at < s.size ? count - at : s.size;
		float *dx = target_of(g->out, g->type, at, s.sum2);

		d = block_gradient(g, &s, at, n, s.sum, &x);
		combine(dx, d, x, s.a, s.c, s.d, n);
		store(g->out, g->type, at, n, dx);
	}
}

/* ---- elementwise */

#define BLOCK 512

static void leaky_relu(void *out, const void *x, enum dtype type, float slope, int64_t first,
		       int64_t last)
{
	float in[BLOCK], to[BLOCK];

	for (int64_t at = first; at < last; at += BLOCK) {
		int64_t n = last - at < BLOCK ? last - at : BLOCK;
		const float *v = load(x, type, at, n, in);
		float *y = target_of(out, type, at, to);

#pragma omp simd
		for (int64_t i = 0; i < n; i++)
			y[i] = v[i] > 0 ? v[i] : slope * v[i];
		store(out, type, at, n, y);
	}
}

static void leaky_relu_backward(void *dx, const void *dout, const void *x, enum dtype type,
				float slope, int64_t first, int64_t last)
{
	float in[BLOCK], in2[BLOCK], to[BLOCK];

	for (int64_t at = first; at < last; at += BLOCK) {
		int64_t n = last - at < BLOCK ? last - at : BLOCK;
		const float *v = load(x, type, at, n, in), *d = load(dout, type, at, n, in2);
		float *y = target_of(dx, type, at, to);

#pragma omp simd
		for (int64_t i = 0; i < n; i++)
			y[i] = v[i] > 0 ? d[i] : slope * d[i];
		store(dx, type, at, n, y);
	}
}

static void upsample_row(void *out, const void *x, enum dtype type, int64_t width, int64_t channels)
{
	size_t pixel = (size_t)channels * dtype_bytes(type);
	char *to = out;
	const char *from = x;

	for (int64_t i = 0; i < width; i++, from += pixel, to += 2 * pixel) {
		memcpy(to, from, pixel);
		memcpy(to + pixel, from, pixel);
	}
}

static void add_quads(float *restrict dx, const float *restrict a, const float *restrict b,
		      int64_t width, int64_t channels)
{
	for (int64_t i = 0; i < width; i++, dx += channels, a += 2 * channels, b += 2 * channels)
#pragma omp simd
		for (int64_t c = 0; c < channels; c++)
			dx[c] = a[c] + a[c + channels] + (b[c] + b[c + channels]);
}

/* One pixel in bf16, a piece of its channels at a time. */
static void add_quad_bf16(uint16_t *dx, const uint16_t *a, const uint16_t *b, int64_t channels)
{
	float in[4][BLOCK];

	for (int64_t c = 0; c < channels; c += BLOCK) {
		int64_t n = channels - c < BLOCK ? channels - c : BLOCK;

		load(a, DT_BF16, c, n, in[0]);
		load(a, DT_BF16, channels + c, n, in[1]);
		load(b, DT_BF16, c, n, in[2]);
		load(b, DT_BF16, channels + c, n, in[3]);
#pragma omp simd
		for (int64_t i = 0; i < n; i++)
			in[0][i] = in[0][i] + in[1][i] + (in[2][i] + in[3][i]);
		store(dx, DT_BF16, c, n, in[0]);
	}
}

static void upsample_row_backward(void *dx, const void *upper, const void *lower, enum dtype type,
				  int64_t width, int64_t channels)
{
	const uint16_t *a = upper, *b = lower;
	uint16_t *to = dx;

	if (type == DT_F32) {
		add_quads(dx, upper, lower, width, channels);
		return;
	}
	for (int64_t i = 0; i < width; i++)
		add_quad_bf16(to + i * channels, a + 2 * i * channels, b + 2 * i * channels,
			      channels);
}

static double l1(void *dx, const void *x, enum dtype type, const float *target, float step,
		 int64_t n)
{
	float in[BLOCK], to[BLOCK];
	double sum = 0;

	for (int64_t at = 0; at < n; at += BLOCK) {
		int64_t m = n - at < BLOCK ? n - at : BLOCK;
		const float *v = load(x, type, at, m, in);
		float part = 0, *d = dx ? target_of(dx, type, at, to) : to;

#pragma omp simd reduction(+ : part)
		for (int64_t i = 0; i < m; i++) {
			float difference = v[i] - target[at + i];

			part += fabsf(difference);
			d[i] = difference > 0 ? step : difference < 0 ? -step : 0;
		}
		sum += (double)part;
		if (dx)
			store(dx, type, at, m, d);
	}
	return sum;
}

const struct conv_loops NAME(LOOPS_LEVEL) = {
	norm, norm_backward, leaky_relu, leaky_relu_backward, upsample_row,
	upsample_row_backward, l1,
};
