/* SPDX-License-Identifier: Apache-2.0
 * The softmax of a query over one unit of query_hopper.cu: by a warp, from keys and values in
 * shared memory, tiles of 64 columns in the 128-byte swizzle.
 *
 * Scores are products of 16 keys with the query in all eight columns; values are summed by products
 * of 16 elements of the head with the weights: their upper halves in the even columns, what these
 * leave of them in the odd ones, so that nothing is lost by bf16. */
#ifndef KERNELS_CUDA_QUERY_SOFTMAX_CUH
#define KERNELS_CUDA_QUERY_SOFTMAX_CUH

#include "kernels/cuda/few.cuh"
#include "kernels/cuda/query_shares.cuh"

#define LEAST -3.0e38f /* scores are above it, or -inf */

#ifdef HOPPER_CODE

/* As load_matrices, each of them turned. */
static __device__ __forceinline__ void load_turned(uint32_t (&x)[4], uint32_t from)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
		     : "r"(from)
		     : "memory");
}

static __device__ __forceinline__ uint32_t turn_matrix(uint32_t x)
{
	uint32_t y;

	asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
	return y;
}

/* Row r of a unit, from 16 bytes a lane; by the first HD / 8 lanes. */
template <int HD>
static __device__ __forceinline__ uint4 *row_piece(bf16 *unit, int r, int lane)
{
	return reinterpret_cast<uint4 *>(unit + (lane / 8 * KEYS + r) * 64 +
					 (((lane % 8) ^ (r % 8)) << 3));
}

template <int HD>
static __device__ __forceinline__ void put_row(bf16 *unit, int r, const bf16 *row)
{
	int lane = (int)threadIdx.x % 32;

	__syncwarp();
	if (lane < HD / 8)
		*row_piece<HD>(unit, r, lane) = reinterpret_cast<const uint4 *>(row)[lane];
	__syncwarp();
}

/* Whatever lies beyond the last key seen is not a number, for all that is known. */
template <int HD>
static __device__ __forceinline__ void clear_rows(bf16 *unit, int first)
{
	const int lanes = HD / 8, lane = (int)threadIdx.x % 32;

#pragma unroll 1
	for (int r = first + lane / lanes; r < KEYS; r += 32 / lanes)
		*row_piece<HD>(unit, r, lane % lanes) = make_uint4(0, 0, 0, 0);
	__syncwarp();
}

/* The query's products with 16 keys at a time: [0] of key lane / 4, [2] of the one 8 further. */
template <int HD>
static __device__ __forceinline__ void score_keys(const bf16 *unit, const uint32_t (&q)[HD / 8],
						  float (&score)[KEYS / 16][4])
{
	int lane = (int)threadIdx.x % 32;
	uint32_t from = shared_address(unit) + lane % 16 * TILE_ROW_BYTES +
			(((lane / 16) ^ (lane % 8)) << 4);

#pragma unroll
	for (int i = 0; i < HD / 16; i++) {
#pragma unroll
		for (int j = 0; j < KEYS / 16; j++) {
			uint32_t k[4];

			load_matrices(k, (from ^ (i % 4 << 5)) +
						 (i / 4 * KEYS + j * 16) * TILE_ROW_BYTES);
			multiply(score[j], k[0], k[1], k[2], k[3], q[2 * i], q[2 * i + 1]);
		}
	}
}

/* The weights' products with 16 elements of the values at a time: [0] + [1] of element lane / 4,
 * [2] + [3] of the one 8 further. */
template <int HD>
static __device__ __forceinline__ void sum_values(const bf16 *unit,
						  const uint32_t (&weight)[KEYS / 8],
						  float (&sum)[HD / 16][4])
{
	int lane = (int)threadIdx.x % 32, row = lane / 16 * 8 + lane % 8;
	uint32_t from = shared_address(unit) + row * TILE_ROW_BYTES +
			(((lane / 8 % 2) ^ (lane % 8)) << 4);

#pragma unroll
	for (int j = 0; j < KEYS / 16; j++) {
#pragma unroll
		for (int i = 0; i < HD / 16; i++) {
			uint32_t v[4];

			load_turned(v, (from ^ (i % 4 << 5)) +
					       (i / 4 * KEYS + j * 16) * TILE_ROW_BYTES);
			multiply(sum[i], v[0], v[1], v[2], v[3], weight[2 * j], weight[2 * j + 1]);
		}
	}
}

/* The highest of the warp's scores, which come scaled, and -inf beyond the last of `keys`. */
static __device__ __forceinline__ float mask_scores(float (&score)[KEYS / 16][4], float scale,
						    int keys)
{
	int key = (int)threadIdx.x % 32 / 4;
	float most = -INFINITY;

#pragma unroll
	for (int j = 0; j < KEYS / 16; j++) {
		score[j][0] = j * 16 + key < keys ? score[j][0] * scale : -INFINITY;
		score[j][2] = j * 16 + key + 8 < keys ? score[j][2] * scale : -INFINITY;
		most = fmaxf(most, fmaxf(score[j][0], score[j][2]));
	}
#pragma unroll
	for (int i = 4; i < 32; i *= 2)
		most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
	return most;
}

/* The weights as operands of sum_values; returns the thread's part of their sum. */
static __device__ __forceinline__ float weigh(const float (&score)[KEYS / 16][4], float most,
					      uint32_t (&weight)[KEYS / 8])
{
	float from = fmaxf(most, LEAST), sum = 0.0f;

#pragma unroll
	for (int j = 0; j < KEYS / 16; j++) {
		float a = exp2_fast(score[j][0] - from), b = exp2_fast(score[j][2] - from);
		uint32_t upper = pack_bf16(a, b), rest;

		rest = pack_bf16(a - __uint_as_float(upper << 16),
				 b - __uint_as_float(upper & 0xffff0000u));
		weight[2 * j] = turn_matrix(__byte_perm(upper, rest, 0x5410));
		weight[2 * j + 1] = turn_matrix(__byte_perm(upper, rest, 0x7632));
		sum += a + b;
	}
	return sum;
}

/* A warp's softmax over a unit, not divided by its sum yet; lane 4 g + t has elements 16 t + g and
 * 16 t + g + 8 of every 64. */
template <int HD>
struct unit_softmax {
	float most, sum, value[HD / 64][2];
};

template <int HD>
static __device__ __forceinline__ struct unit_softmax<HD>
finish_unit(float most, float sum, const float (&value)[HD / 16][4])
{
	struct unit_softmax<HD> u = { most, sum };
	int t = (int)threadIdx.x % 4;

#pragma unroll
	for (int i = 4; i < 32; i *= 2)
		u.sum += __shfl_xor_sync(0xffffffffu, u.sum, i);
#pragma unroll
	for (int i = 0; i < HD / 16; i++) {
		if (i % 4 == t) {
			u.value[i / 4][0] = value[i][0] + value[i][1];
			u.value[i / 4][1] = value[i][2] + value[i][3];
		}
	}
	return u;
}

/* The result of a head from all of its softmax. */
template <int HD>
static __device__ __forceinline__ void put_whole(const struct query &a, const struct head &h,
						 const struct unit_softmax<HD> &u)
{
	int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
	bf16 *out = a.out + ((int64_t)h.sequence * a.heads + h.head) * HD + 16 * t + g;
	float by = u.sum > 0.0f ? 1.0f / u.sum : 0.0f;

#pragma unroll
	for (int i = 0; i < HD / 64; i++) {
		put(out + 64 * i, u.value[i][0] * by);
		put(out + 64 * i + 8, u.value[i][1] * by);
	}
}

#endif
#endif
