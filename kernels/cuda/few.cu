/* SPDX-License-Identifier: Apache-2.0
 * Products of up to 16 rows in bf16: a block takes 16 rows of the weights, its warps share the
 * depth in units of 64 elements, and each reads its part of the weights once, 16 bytes a lane,
 * straight into the registers that the matrix units take. The order of a sum's terms within a unit
 * is free: a lane's eight neighbouring elements serve as the pairs of two m16n8k16 steps, for
 * weights and inputs alike. The warps' sums are added in order, so the same input gives the same
 * bits. */
#include "kernels/cuda/few.cuh"

#define UNIT 64   /* elements of the depth a warp takes at a time: 128 bytes of a row */
#define BATCH 2   /* units a warp has in flight */

/* Sixteen bytes that are read once: not kept in the first cache. Never moved by the compiler. */
static __device__ __forceinline__ uint4 read_weights(const bf16 *p)
{
	uint4 v;

	asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
		     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
		     : "l"(p));
	return v;
}

/* The weights of a warp's next BATCH units: rows `low` and `high` of the tile, two chunks of 32
 * elements a unit. */
template <int WARPS>
static __device__ __forceinline__ void read_batch(uint4 to[BATCH][2][2], const bf16 *low,
						  const bf16 *high, int unit, int k)
{
	const uint4 none = { 0, 0, 0, 0 };
	int t = (int)threadIdx.x % 4;

#pragma unroll
	for (int u = 0; u < BATCH; u++)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			int at = (unit + u * WARPS) * UNIT + h * 32 + t * 8;

			to[u][h][0] = at < k ? read_weights(low + at) : none;
			to[u][h][1] = at < k ? read_weights(high + at) : none;
		}
}

/* Eight elements of input row m from `at`, normalised where f.norm is set; zeros beyond. */
static __device__ __forceinline__ uint4 read_input(const struct few &f, const float *rstd, int m,
						   int at)
{
	uint4 v = { 0, 0, 0, 0 };
	float x[8], w[8];

	if (m >= f.m || at >= f.k)
		return v;
	v = *reinterpret_cast<const uint4 *>(f.x + (int64_t)m * f.k + at);
	if (!f.norm)
		return v;
	load8(f.x + (int64_t)m * f.k + at, x);
	load8(f.norm + at, w);
#pragma unroll
	for (int i = 0; i < 8; i++)
		x[i] *= rstd[m] * w[i];
	return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
			  pack_bf16(x[6], x[7]));
}

/* rstd[m] of every input row, a warp a row; all threads call it. */
template <int WARPS>
static __device__ __forceinline__ void norm_inputs(const struct few &f, float *rstd)
{
	int lane = (int)threadIdx.x % 32;

	for (int m = (int)threadIdx.x / 32; m < f.m; m += WARPS) {
		float square = 0.0f;

#pragma unroll 4
		for (int at = lane * 8; at < f.k; at += 256) {
			float x[8];

			load8(f.x + (int64_t)m * f.k + at, x);
#pragma unroll
			for (int i = 0; i < 8; i++)
				square += x[i] * x[i];
		}
		square = warp_sum(square);
		if (lane == 0)
			rstd[m] = rsqrtf(square / (float)f.k + f.eps);
	}
	__syncthreads();
}

/* The sum over the warps, in order, of a place in the tile: weights' row r, input row m. */
template <int WARPS, int HALVES>
static __device__ __forceinline__ float add_warps(const float *part, int r, int m)
{
	float sum = 0.0f;

#pragma unroll
	for (int w = 0; w < WARPS; w++)
		sum += part[((w * HALVES + m / 8) * TILE + r) * 8 + m % 8];
	return sum;
}

template <int WARPS, int HALVES, typename T>
static __device__ __forceinline__ void finish_tile(const struct few &f, const float *part)
{
	const int columns = f.swiglu ? TILE / 2 : TILE;
	T *out = (T *)f.out;

	for (int i = (int)threadIdx.x; i < columns * 8 * HALVES; i += WARPS * 32) {
		int r = i % columns, m = i / columns, n = (int)blockIdx.x * columns + r;
		float v;

		if (m >= f.m || n >= f.n)
			continue;
		v = add_warps<WARPS, HALVES>(part, r, m);
		if (f.swiglu)
			v = add_warps<WARPS, HALVES>(part, r + TILE / 2, m) * v /
			    (1.0f + __expf(-v));
		if (f.bias)
			v += f.bias[n];
		if (f.add)
			v += to_float(out[(int64_t)m * f.n + n]);
		put(out + (int64_t)m * f.n + n, v);
	}
}

/* WARPS: 8, or 16 where tiles are few. HALVES: eights of input rows. The registers left to a thread
 * let a multiprocessor hold 1024 of them (768), so that most products are one wave of blocks. */
template <int WARPS, int HALVES, typename T>
__global__ void __launch_bounds__(WARPS * 32, (HALVES == 1 ? 1024 : 768) / (WARPS * 32))
	few_rows(struct few f)
{
	__shared__ float part[WARPS * HALVES * TILE * 8], rstd[FEW_ROWS];
	int warp = (int)threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
	const bf16 *low = tile_row(f, g), *high = tile_row(f, g + TILE / 2);
	int units = (f.k + UNIT - 1) / UNIT;
	float sum[HALVES][4] = {};
	uint4 w[BATCH][2][2];

	let_kernel_behind_start();
	read_batch<WARPS>(w, low, high, warp, f.k);
	wait_for_kernel_ahead();
	if (f.norm)
		norm_inputs<WARPS>(f, rstd);
	for (int unit = warp; unit < units; unit += BATCH * WARPS) {
		if (unit != warp)
			read_batch<WARPS>(w, low, high, unit, f.k);
#pragma unroll
		for (int u = 0; u < BATCH * 2; u++) {
			int at = (unit + u / 2 * WARPS) * UNIT + u % 2 * 32 + t * 8;
			const uint4 a = w[u / 2][u % 2][0], b = w[u / 2][u % 2][1];

#pragma unroll
			for (int h = 0; h < HALVES; h++) {
				uint4 x = read_input(f, rstd, h * 8 + g, at);

				multiply(sum[h], a.x, b.x, a.y, b.y, x.x, x.y);
				multiply(sum[h], a.z, b.z, a.w, b.w, x.z, x.w);
			}
		}
	}
#pragma unroll
	for (int h = 0; h < HALVES; h++)
#pragma unroll
		for (int i = 0; i < 4; i++)
			part[((warp * HALVES + h) * TILE + g + i / 2 * 8) * 8 + 2 * t + i % 2] =
				sum[h][i];
	__syncthreads();
	finish_tile<WARPS, HALVES, T>(f, part);
}

bool few_fits(const struct few *f)
{
	return f->m >= 1 && f->m <= FEW_ROWS && f->n >= 1 && f->k >= 8 && f->k % 8 == 0 &&
	       (!f->swiglu || f->n % (TILE / 2) == 0) && aligned16(f->x) && aligned16(f->w) &&
	       (!f->norm || aligned16(f->norm));
}

template <int WARPS>
static void run(struct cuda_state *s, const struct few *f, unsigned tiles, bool early)
{
	cudaLaunchAttribute room;
	cudaLaunchConfig_t shape = launch_shape(s, dim3(tiles), WARPS * 32, early, &room);

	if (f->m <= 8)
		ACT(f->type, CUDA(cudaLaunchKernelEx(&shape, few_rows<WARPS, 1, T>, *f)));
	else
		ACT(f->type, CUDA(cudaLaunchKernelEx(&shape, few_rows<WARPS, 2, T>, *f)));
	LAUNCHED();
}

void few_run_anywhere(struct cuda_state *s, const struct few *f, bool early)
{
	unsigned tiles = (unsigned)div_up(f->n, f->swiglu ? TILE / 2 : TILE);

	CHECK(few_fits(f));
	if (tiles <= 2 * (unsigned)s->processors)
		run<16>(s, f, tiles, early);
	else
		run<8>(s, f, tiles, early);
}
