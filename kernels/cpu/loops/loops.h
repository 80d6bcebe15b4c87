/* SPDX-License-Identifier: Apache-2.0
 * The vectorised loops of the CPU backend. Their files are compiled once for each instruction set;
 * LOOPS_LEVEL is the suffix of that set (base, v3: AVX2, v4: AVX-512), and each set ends in one
 * table of the rows it serves. cpu.c takes the widest the processor has.
 *
 * bf16 rows pass through blocks of floats that stay in the first-level cache; f32 rows are used
 * where they lie. Work is cut into the same pieces whatever the schedule, so that the same inputs
 * give the same bits at a given number of threads. */
#ifndef KERNELS_CPU_LOOPS_LOOPS_H
#define KERNELS_CPU_LOOPS_LOOPS_H

#include "kernels/kernels.h"

#include <string.h>

#ifndef LOOPS_LEVEL
#define LOOPS_LEVEL base
#endif
#define LOOPS_PASTE_(name, set) name##_##set
#define LOOPS_PASTE(name, set) LOOPS_PASTE_(name, set)
#define LOOP(name) LOOPS_PASTE(loop_##name, LOOPS_LEVEL)

/* Puts the rows of an instruction set into a table. */
void loop_install_base(struct kernel_ops *ops);
void loop_install_v3(struct kernel_ops *ops);
void loop_install_v4(struct kernel_ops *ops);

#define K(ret, name, args) ret LOOP(name) args;
#include "kernels/kernels.def"
#undef K

#define LOOP_BLOCK 512        /* floats of a block */
#define LOOP_PARALLEL 16384   /* elements below which threads cost more than they bring */

#define LOOP_PRAGMA(text) _Pragma(#text)

static inline float *loop_f32(const struct tensor *t)
{
	return t->data;
}

/* Rows of 8 bits need no speed here. */
static inline void loop_also(struct kernels *k, struct scaled also, struct tensor rows)
{
	if (also.q.data)
		k->ops->quantise(k, also.q, also.scale, rows, false);
}

static inline const int32_t *loop_i32(const struct tensor *t)
{
	return t->data;
}

/* n floats of t from element `first` on: in place for f32, else converted into block. */
static inline const float *loop_load(const struct tensor *t, int64_t first, int64_t n, float *block)
{
	const uint16_t *b = (const uint16_t *)t->data + first;

	if (t->type == DT_F32)
		return (const float *)t->data + first;
#pragma omp simd
	for (int64_t i = 0; i < n; i++)
		block[i] = bf16_to_float(b[i]);
	return block;
}

/* Where to write n floats of t: in place for f32, else the block, which loop_store then converts.
 * */
static inline float *loop_target(const struct tensor *t, int64_t first, float *block)
{
	return t->type == DT_F32 ? (float *)t->data + first : block;
}

static inline void loop_store(const struct tensor *t, int64_t first, int64_t n, const float *block)
{
	uint16_t *b = (uint16_t *)t->data + first;

	if (t->type == DT_F32)
		return;
#pragma omp simd
	for (int64_t i = 0; i < n; i++) {
		union { float f; uint32_t u; } v = { block[i] };
		uint32_t rounded = (v.u + 0x7fffu + (v.u >> 16 & 1)) >> 16;
		uint32_t nan = v.u >> 16 | 0x40;

		b[i] = (uint16_t)((v.u & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
	}
}

static inline int64_t loop_min(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* exp(x), relative error under 2e-7 for -87 <= x <= 88; clamped beyond. 2^k times a polynomial of
 * degree 6 on +-ln2/2 (Taylor coefficients nudged for an even error). NaN stays NaN. */
static inline float loop_exp(float x)
{
	union { int32_t i; float f; } two;
	float c = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
	float k = __builtin_rintf(c * 1.44269504f);
	float r = (c - k * 0.693359375f) + k * 2.12194440e-4f;
	float p = 1.9875691500e-4f;

	p = p * r + 1.3981999507e-3f;
	p = p * r + 8.3334519073e-3f;
	p = p * r + 4.1665795894e-2f;
	p = p * r + 1.6666665459e-1f;
	p = p * r + 5.0000001201e-1f;
	p = p * r * r + r + 1.0f;
	two.i = ((int32_t)k + 127) * (1 << 23);
	return p * two.f;
}

static inline float loop_sigmoid(float x)
{
	return 1.0f / (1.0f + loop_exp(-x));
}

#endif
