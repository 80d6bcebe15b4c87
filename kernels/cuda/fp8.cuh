/* SPDX-License-Identifier: Apache-2.0
 * Rows as e4m3, written by whoever makes them (the `also` of kernels.def) or by quantise (fp8.cu):
 * the same bits either way. */
#ifndef KERNELS_CUDA_FP8_CUH
#define KERNELS_CUDA_FP8_CUH

#include "kernels/cuda/common.cuh"

#include <cuda_fp8.h>

static inline void check_scaled(const struct scaled *s, int64_t rows, int64_t d)
{
	CHECK(!s->q.data || (s->q.type == DT_E4M3 && tensor_count(&s->q) == rows * d &&
			     s->scale.type == DT_F32 && tensor_count(&s->scale) == rows));
}

static __device__ __forceinline__ uint32_t pack4(float a, float b, float c, float d)
{
	uint32_t lo = __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
	uint32_t hi = __nv_cvt_float2_to_fp8x2(make_float2(c, d), __NV_SATFINITE, __NV_E4M3);

	return lo | hi << 16;
}

template <bool WIDE>
static __device__ __forceinline__ void put_bytes(uint8_t *to, int64_t left, const float x[8],
						 float by)
{
	uint2 v = make_uint2(pack4(x[0] * by, x[1] * by, x[2] * by, x[3] * by),
			     pack4(x[4] * by, x[5] * by, x[6] * by, x[7] * by));

	if constexpr (WIDE) {
		*reinterpret_cast<uint2 *>(to) = v;
	} else {
		for (int i = 0; i < 8 && i < left; i++)
			to[i] = (uint8_t)((i < 4 ? v.x >> 8 * i : v.y >> 8 * (i - 4)) & 0xff);
	}
}

static __device__ __forceinline__ float most_of(const float x[8], float most)
{
#pragma unroll
	for (int i = 0; i < 8; i++)
		most = fmaxf(most, fabsf(x[i]));
	return most;
}

/* Of a block's row, from what each thread found in its part; every thread calls it. Returns what to
 * multiply the row's elements by. */
static __device__ __forceinline__ float row_factor(float most, float *scale)
{
	most = block_max(fmaxf(most, E4M3_AMAX_LEAST));
	if (threadIdx.x == 0)
		*scale = most / E4M3_MOST;
	return E4M3_MOST / most;
}

/* x as it is stored in T. */
template <typename T>
static __device__ __forceinline__ void round_eight(float x[8])
{
#pragma unroll
	for (int i = 0; i < 8; i++) {
		T rounded;

		put(&rounded, x[i]);
		x[i] = to_float(rounded);
	}
}

/* A block's row [d], of which each thread holds the eights at (threadIdx.x + i blockDim.x) 8, as q
 * and its scale; it is rounded to T on the way. q NULL: nothing is done. */
template <int KEEP, bool WIDE, typename T>
static __device__ __forceinline__ void put_scaled(uint8_t *q, float *scale, float row[KEEP][8],
						  int64_t d)
{
	float most = 0.0f, by;

	if (!q)
		return;
#pragma unroll
	for (int i = 0; i < KEEP; i++) {
		round_eight<T>(row[i]);
		most = most_of(row[i], most);
	}
	by = row_factor(most, scale);
#pragma unroll
	for (int i = 0; i < KEEP; i++) {
		int64_t c = ((int64_t)threadIdx.x + i * blockDim.x) * 8;

		if (c < d)
			put_bytes<WIDE>(q + c, d - c, row[i], by);
	}
}

#endif
