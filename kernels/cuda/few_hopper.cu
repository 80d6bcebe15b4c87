/* SPDX-License-Identifier: Apache-2.0
 * Products of up to 16 rows on Hopper that follow one another (sampling). A block copies its rows
 * of the weights into shared memory as soon as it starts, which is while the kernels ahead still
 * run, and only then waits for its input: what fits a multiprocessor is on its way before its turn
 * comes.
 *
 * The depth is divided among the warps; their sums are added in order, and which warp takes what
 * depends on the depth alone: a row gives the same bits whatever is computed beside it. A norm's
 * factor is known only at the end of the depth, so the sums are scaled by it, not the input. */
#include "kernels/cuda/few.cuh"
#include "kernels/cuda/hopper.cuh"

#define UNIT 64        /* elements of the depth a warp takes at a time */
#define CHAINS 2       /* sums a warp has under way for a place */
#define APART (TILE + 4) /* floats from an input row to the next in the sums: no bank conflicts */
#define DEEP 2048      /* a depth beyond takes 16 warps */

struct chained {
	struct few f;
	int stride; /* bytes from row to row in shared memory: no bank conflicts either */
};

#ifdef HOPPER_CODE

/* c[16,8] += a[16,16] b[16,8] */
static __device__ __forceinline__ void multiply(float c[4], uint32_t a0, uint32_t a1, uint32_t a2,
						uint32_t a3, uint32_t b0, uint32_t b1)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
	    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	    : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* From the second cache: kernels ahead wrote it after this block started. */
static __device__ __forceinline__ float read_result(const bf16 *p)
{
	return __uint_as_float((uint32_t)__ldcg(reinterpret_cast<const unsigned short *>(p)) << 16);
}

static __device__ __forceinline__ float read_result(const float *p)
{
	return __ldcg(p);
}

/* As copy_bytes, of what is read once: the first to leave the second cache. */
static __device__ __forceinline__ void copy_once(void *to, const void *from, uint32_t bytes,
						 uint64_t *full)
{
	uint64_t policy;

	asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
		     ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
		     "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(policy)
		     : "memory");
}

/* By the first warp: the tile's rows, and the norm's weight behind them, on their way. */
static __device__ __forceinline__ void copy_weights(const struct chained &c, char *tile,
						    uint64_t *full)
{
	const struct few &f = c.f;
	int lane = (int)threadIdx.x;
	uint32_t bytes = (uint32_t)f.k * 2;

	if (lane == 0)
		barrier_expect(full, TILE * bytes + (f.norm ? 2 * bytes : 0));
	__syncwarp();
	if (lane < TILE)
		copy_once(tile + lane * c.stride, tile_row(f, lane), bytes, full);
	else if (lane == TILE && f.norm)
		copy_bytes(tile + TILE * c.stride, f.norm, 2 * bytes, full);
}

/* Eight elements of the input times the norm's weight; square grows by their squares. */
static __device__ __forceinline__ uint4 weigh(uint4 v, const float *norm, float *square)
{
	uint32_t in[4] = { v.x, v.y, v.z, v.w }, out[4];
	float w[8];

	load8(norm, w);
#pragma unroll
	for (int i = 0; i < 4; i++) {
		float lo = __uint_as_float(in[i] << 16), hi = __uint_as_float(in[i] & 0xffff0000u);

		*square += lo * lo + hi * hi;
		out[i] = pack_bf16(lo * w[2 * i], hi * w[2 * i + 1]);
	}
	return make_uint4(out[0], out[1], out[2], out[3]);
}

/* The warp's part of the depth: the input is read some units at once, the first time before the
 * weights are waited for. HALVES: eights of input rows. */
template <int WARPS, int HALVES, bool NORM>
static __device__ __forceinline__ void sum_depth(const struct chained &c, const char *tile,
						 uint64_t *full, float (&sum)[HALVES][CHAINS][4],
						 float (&square)[HALVES])
{
	constexpr int UNITS = HALVES == 1 ? 3 : 1;
	const uint4 none = { 0, 0, 0, 0 };
	const int warp = (int)threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4;
	const int k = c.f.k, units = (k + UNIT - 1) / UNIT, t = (int)threadIdx.x % 4 * 8;
	const int last = units * (warp + 1) / WARPS, first = units * warp / WARPS;
	const int most = min(k, last * UNIT);
	const bf16 *in = c.f.x + (int64_t)g * k;
	const char *weights = tile + g * c.stride;
	const float *norm = reinterpret_cast<const float *>(tile + TILE * c.stride);

	for (int unit = first; unit < last; unit += UNITS) {
		uint4 x[UNITS * 2][HALVES];

#pragma unroll
		for (int i = 0; i < UNITS * 2 * HALVES; i++) {
			int at = unit * UNIT + i / HALVES * 32 + t, m = i % HALVES * 8;
			const bf16 *from = in + m * k + at;

			x[i / HALVES][i % HALVES] =
				at < most && m + g < c.f.m
					? __ldcg(reinterpret_cast<const uint4 *>(from))
					: none;
		}
		if (unit == first)
			barrier_wait(full, 0);
#pragma unroll
		for (int i = 0; i < UNITS * 2; i++) {
			int at = unit * UNIT + i * 32 + t;
			const char *w = weights + at * 2;
			bool inside = at < most;
			uint4 a = inside ? *reinterpret_cast<const uint4 *>(w) : none;
			uint4 b = inside ? *reinterpret_cast<const uint4 *>(w + 8 * c.stride)
					 : none;

#pragma unroll
			for (int j = 0; j < HALVES; j++) {
				uint4 v = x[i][j];

				if (NORM && inside)
					v = weigh(v, norm + at, &square[j]);
				multiply(sum[j][i % CHAINS], a.x, b.x, a.y, b.y, v.x, v.y);
				multiply(sum[j][i % CHAINS], a.z, b.z, a.w, b.w, v.z, v.w);
			}
			if (i % 2)
				asm volatile("" ::: "memory"); /* few weights in registers */
		}
	}
}

/* Each warp's sums [WARPS][8 HALVES][APART] and squares [WARPS][8 HALVES]. */
template <int HALVES>
static __device__ __forceinline__ void put_sums(float *part, float *squares,
						const float (&sum)[HALVES][CHAINS][4],
						float (&square)[HALVES])
{
	int warp = (int)threadIdx.x / 32, g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;

#pragma unroll
	for (int j = 0; j < HALVES; j++) {
		int m = (warp * HALVES + j) * 8;

#pragma unroll
		for (int i = 0; i < 4; i++)
			part[(m + 2 * t + i % 2) * APART + g + i / 2 * 8] =
				sum[j][0][i] + sum[j][1][i];
		square[j] += __shfl_xor_sync(0xffffffffu, square[j], 1);
		square[j] += __shfl_xor_sync(0xffffffffu, square[j], 2);
		if (t == 0)
			squares[m + g] = square[j];
	}
}

/* The sum over the warps, in order; `apart` floats from one warp's to the next. */
template <int WARPS>
static __device__ __forceinline__ float add_warps(const float *part, int apart)
{
	float sum = 0.0f;

#pragma unroll
	for (int w = 0; w < WARPS; w++)
		sum += part[w * apart];
	return sum;
}

#endif

template <int WARPS, int HALVES, bool NORM, typename T>
__global__ void __launch_bounds__(WARPS * 32, 1024 / (WARPS * 32))
	few_chained(const __grid_constant__ struct chained c)
{
#ifdef HOPPER_CODE
	extern __shared__ __align__(128) char tile[];
	__shared__ uint64_t full;
	__shared__ float squares[WARPS * 8 * HALVES];
	const struct few &f = c.f;
	const int columns = f.swiglu ? TILE / 2 : TILE, rows = 8 * HALVES;
	int r = (int)threadIdx.x % columns, m = (int)threadIdx.x / columns;
	int n = (int)blockIdx.x * columns + r;
	bool mine = m < f.m && n < f.n; /* a thread has one place of the output at most */
	T *out = (T *)f.out + (int64_t)m * f.n + n;
	float *part = reinterpret_cast<float *>(tile); /* once the weights are used up */
	float sum[HALVES][CHAINS][4] = {}, square[HALVES] = {}, scale = 1.0f, before = 0.0f, v;

	let_kernel_behind_start();
	if (threadIdx.x == 0) {
		barrier_init(&full, 1);
		barrier_init_done();
	}
	__syncwarp();
	if (threadIdx.x < 32)
		copy_weights(c, tile, &full);
	__syncthreads();
	wait_for_kernel_ahead();
	if (f.add && mine)
		before = read_result(out);
	sum_depth<WARPS, HALVES, NORM>(c, tile, &full, sum, square);
	__syncthreads();
	put_sums<HALVES>(part, squares, sum, square);
	__syncthreads();
	if (!mine)
		return;
	if (NORM)
		scale = rsqrtf(add_warps<WARPS>(squares + m, rows) / (float)f.k + f.eps);
	part += m * APART + r;
	v = scale * add_warps<WARPS>(part, rows * APART);
	if (f.swiglu)
		v = scale * add_warps<WARPS>(part + TILE / 2, rows * APART) * v /
		    (1.0f + __expf(-v));
	if (f.bias)
		v += f.bias[n];
	put(out, v + before);
#endif
}

static int bytes_of(const struct chained *c, int warps)
{
	int bytes = TILE * c->stride + (c->f.norm ? c->f.k * 4 : 0);
	int sums = warps * (c->f.m > 8 ? 16 : 8) * APART * (int)sizeof(float);

	return bytes > sums ? bytes : sums;
}

template <int WARPS, int HALVES, bool NORM, typename T>
static void launch(struct cuda_state *s, const struct chained *c)
{
	cudaLaunchAttribute room;
	unsigned tiles = (unsigned)div_up(c->f.n, c->f.swiglu ? TILE / 2 : TILE);
	cudaLaunchConfig_t shape = launch_shape(s, dim3(tiles), WARPS * 32, true, &room);
	auto kernel = few_chained<WARPS, HALVES, NORM, T>;

	shape.dynamicSmemBytes = (size_t)bytes_of(c, WARPS);
	CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
				  (int)shape.dynamicSmemBytes));
	CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
				  cudaSharedmemCarveoutMaxShared));
	CUDA(cudaLaunchKernelEx(&shape, kernel, *c));
	LAUNCHED();
}

template <int WARPS, int HALVES>
static void run(struct cuda_state *s, const struct chained *c)
{
	if (c->f.norm)
		ACT(c->f.type, launch<WARPS, HALVES, true, T>(s, c));
	else
		ACT(c->f.type, launch<WARPS, HALVES, false, T>(s, c));
}

void few_run_chained(struct cuda_state *s, const struct few *f)
{
	struct chained c = { *f, (int)div_up(f->k, UNIT) * UNIT * 2 + 64 };

	CHECK(few_fits(f));
	if (!s->hopper || (size_t)bytes_of(&c, 16) > s->shared_most)
		few_run(s, f, true);
	else if (f->k > DEEP && f->m > 8)
		run<16, 2>(s, &c);
	else if (f->k > DEEP)
		run<16, 1>(s, &c);
	else if (f->m > 8)
		run<8, 2>(s, &c);
	else
		run<8, 1>(s, &c);
}
