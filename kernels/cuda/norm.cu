/* SPDX-License-Identifier: Apache-2.0
 * RMSNorm over rows, with the residual addition before it, and its gradient. A block takes a row;
 * each thread keeps its eights of the row in registers, so that a row is read once. The gradient's
 * blocks walk over many rows and keep their part of the weight's gradient in registers: partial
 * sums, added in order. */
#include "kernels/cuda/fp8.cuh"

#define THREADS_MOST 512
#define BACKWARD_THREADS 1024 /* on a multiprocessor, as its bf16 form has registers for */
#define KEEP_MOST 4 /* eights of a row a thread holds: rows up to 16,384 wide */

static unsigned threads_for(int64_t d)
{
	int64_t n = div_up(div_up(d, 8), 32) * 32;

	return (unsigned)(n > THREADS_MOST ? THREADS_MOST : n);
}

/* Runs the statement with KEEP and WIDE as the row's width and alignment ask. */
#define ROWS(d, wide, ...)                                  \
	do {                                                \
		CHECK((d) <= KEEP_MOST * THREADS_MOST * 8); \
		if ((wide) && (d) <= THREADS_MOST * 8) {    \
			constexpr int KEEP = 1;             \
			constexpr bool WIDE = true;         \
			__VA_ARGS__;                        \
		} else if (wide) {                          \
			constexpr int KEEP = KEEP_MOST;     \
			constexpr bool WIDE = true;         \
			__VA_ARGS__;                        \
		} else {                                    \
			constexpr int KEEP = KEEP_MOST;     \
			constexpr bool WIDE = false;        \
			__VA_ARGS__;                        \
		}                                           \
	} while (0)

template <int KEEP, bool WIDE, typename T>
static __device__ __forceinline__ void get_row(float keep[KEEP][8], const T *row, int64_t d)
{
#pragma unroll
	for (int i = 0; i < KEEP; i++) {
		int64_t c = ((int64_t)threadIdx.x + i * blockDim.x) * 8;

		if (c < d)
			get_eight<WIDE>(row + c, d - c, keep[i]);
		else
			for (int j = 0; j < 8; j++)
				keep[i][j] = 0.0f;
	}
}

template <int KEEP, bool WIDE, typename T>
static __device__ __forceinline__ void put_row(T *row, const float keep[KEEP][8], int64_t d)
{
#pragma unroll
	for (int i = 0; i < KEEP; i++) {
		int64_t c = ((int64_t)threadIdx.x + i * blockDim.x) * 8;

		if (c < d)
			put_eight<WIDE>(row + c, d - c, keep[i]);
	}
}

template <int KEEP, bool WIDE, typename T>
__global__ void __launch_bounds__(THREADS_MOST)
	norm_rows(T *out, float *rstd, T *sum, const T *x, const T *delta, const float *weight,
		  int64_t d, float eps, uint8_t *q, float *q_scale)
{
	int64_t at = (int64_t)blockIdx.x * d;
	float v[KEEP][8], w[KEEP][8], square = 0.0f, r;

	get_row<KEEP, WIDE>(v, x + at, d);
	if (delta) {
		get_row<KEEP, WIDE>(w, delta + at, d);
#pragma unroll
		for (int i = 0; i < KEEP * 8; i++) {
			T rounded;

			put(&rounded, v[i / 8][i % 8] + w[i / 8][i % 8]);
			v[i / 8][i % 8] = to_float(rounded);
		}
		put_row<KEEP, WIDE>(sum + at, v, d);
	}
	get_row<KEEP, WIDE>(w, weight, d);
#pragma unroll
	for (int i = 0; i < KEEP * 8; i++)
		square += v[i / 8][i % 8] * v[i / 8][i % 8];
	r = rsqrtf(block_sum(square) / (float)d + eps);
	if (threadIdx.x == 0 && rstd)
		rstd[blockIdx.x] = r;
#pragma unroll
	for (int i = 0; i < KEEP * 8; i++)
		v[i / 8][i % 8] *= r * w[i / 8][i % 8];
	put_row<KEEP, WIDE>(out + at, v, d);
	put_scaled<KEEP, WIDE, T>(q ? q + at : NULL, q_scale + blockIdx.x, v, d);
}

static bool all_wide(int64_t d, const void *a, const void *b, const void *c, const void *e)
{
	return d % 8 == 0 && aligned16(a) && aligned16(b) && aligned16(c) && aligned16(e);
}

static void run_norm(struct kernels *k, struct tensor out, struct tensor rstd, void *sum,
		     struct tensor x, const void *delta, struct tensor weight, float eps,
		     struct scaled also)
{
	struct cuda_state *s = state_of(k);
	int64_t d = tensor_count(&weight), rows = tensor_count(&x) / d;
	unsigned threads = threads_for(d);
	bool wide = all_wide(d, out.data, sum, x.data, delta) && aligned16(weight.data) &&
		    aligned16(also.q.data);

	CHECK(out.type == x.type && rstd.type == DT_F32 && weight.type == DT_F32);
	CHECK(tensor_count(&out) == rows * d);
	CHECK(!rstd.data || tensor_count(&rstd) == rows);
	check_scaled(&also, rows, d);
	if (!rows)
		return;
	ROWS(d, wide,
	     ACT(x.type, norm_rows<KEEP, WIDE><<<(unsigned)rows, threads, 0, s->stream>>>(
				 (T *)out.data, (float *)rstd.data, (T *)sum, (const T *)x.data,
				 (const T *)delta, (const float *)weight.data, d, eps,
				 (uint8_t *)also.q.data, (float *)also.scale.data)));
	LAUNCHED();
}

void cuda_rmsnorm(struct kernels *k, struct tensor out, struct tensor rstd, struct tensor x,
		  struct tensor weight, float eps)
{
	run_norm(k, out, rstd, NULL, x, NULL, weight, eps, NOT_SCALED);
}

void cuda_add_rmsnorm(struct kernels *k, struct tensor out, struct tensor rstd, struct tensor sum,
		      struct tensor x, struct tensor delta, struct tensor weight, float eps,
		      struct scaled also)
{
	CHECK(sum.type == x.type && delta.type == x.type &&
	      tensor_count(&delta) == tensor_count(&x));
	run_norm(k, out, rstd, sum.data, x, delta.data, weight, eps, also);
}

/* Eight elements as they lie in memory, in whole registers. */
template <typename T>
struct __align__(16) eight {
	uint32_t word[2 * sizeof(T)];
};

template <bool WIDE, typename T>
static __device__ __forceinline__ void take_eight(struct eight<T> &to, const T *p, int64_t left)
{
	if constexpr (WIDE) {
		to = *reinterpret_cast<const struct eight<T> *>(p);
	} else {
		T x[8];

#pragma unroll
		for (int j = 0; j < 8; j++)
			x[j] = j < left ? p[j] : T(0.0f);
		memcpy(&to, x, sizeof to);
	}
}

static __device__ __forceinline__ float element(const struct eight<float> &e, int i)
{
	return __uint_as_float(e.word[i]);
}

static __device__ __forceinline__ float element(const struct eight<bf16> &e, int i)
{
	return __uint_as_float(i % 2 ? e.word[i / 2] & 0xffff0000u : e.word[i / 2] << 16);
}

/* What a thread needs of a row for its gradient. */
template <int KEEP, typename T>
struct gradient_row {
	struct eight<T> x[KEEP], dout[KEEP], residual[KEEP];
};

template <int KEEP, bool WIDE, typename T>
static __device__ __forceinline__ void fetch_row(struct gradient_row<KEEP, T> &to, const T *x,
						 const T *dout, const T *residual, int64_t row,
						 int64_t d)
{
#pragma unroll
	for (int i = 0; i < KEEP; i++) {
		int64_t c = ((int64_t)threadIdx.x + i * blockDim.x) * 8, at = row * d + c;

		if (c >= d)
			continue;
		take_eight<WIDE>(to.x[i], x + at, d - c);
		take_eight<WIDE>(to.dout[i], dout + at, d - c);
		if (residual)
			take_eight<WIDE>(to.residual[i], residual + at, d - c);
	}
}

/* block_sum with one barrier: `part` is not written again before the block's next sum but one. */
static __device__ __forceinline__ float quick_block_sum(float x, float part[32])
{
	int lane = (int)threadIdx.x % 32;

	x = warp_sum(x);
	if (lane == 0)
		part[threadIdx.x / 32] = x;
	__syncthreads();
	return warp_sum(lane < (int)blockDim.x / 32 ? part[lane] : 0.0f);
}

/* With y = x r w, r = (mean x^2 + eps)^-1/2:
 * dx = r (w dy - x r^2 mean(w dy x)), dw = sum over rows of dy x r.
 * Of narrower rows the next one is on its way while the present one is worked on. */
template <int KEEP, bool WIDE, typename T>
__global__ void __launch_bounds__(THREADS_MOST, KEEP == 1 && sizeof(T) == 2 ? 2 : 1)
	norm_backward(T *dx, float *part, const T *dout, const T *x, const float *weight,
		      const float *rstd, const T *residual, int64_t rows, int64_t d, uint8_t *q,
		      float *q_scale)
{
	__shared__ float sums[2][32];
	struct gradient_row<KEEP, T> in = {};
	float w[KEEP][8], dw[KEEP][8];
	int turn = 0;

	get_row<KEEP, WIDE>(w, weight, d);
	memset(dw, 0, sizeof dw);
	if (KEEP == 1)
		fetch_row<KEEP, WIDE>(in, x, dout, residual, blockIdx.x, d);
	for (int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
		float v[KEEP][8], g[KEEP][8], dot = 0.0f, r = rstd[row], mean;
		struct eight<T> beneath[KEEP];

		if (KEEP > 1)
			fetch_row<KEEP, WIDE>(in, x, dout, residual, row, d);
#pragma unroll
		for (int i = 0; i < KEEP * 8; i++) {
			float xr = element(in.x[i / 8], i % 8) * r,
			      dy = element(in.dout[i / 8], i % 8);

			dw[i / 8][i % 8] += dy * xr;
			v[i / 8][i % 8] = xr;
			g[i / 8][i % 8] = dy * w[i / 8][i % 8];
			dot += g[i / 8][i % 8] * xr;
		}
		memcpy(beneath, in.residual, sizeof beneath);
		if (KEEP == 1 && row + gridDim.x < rows)
			fetch_row<KEEP, WIDE>(in, x, dout, residual, row + gridDim.x, d);
		mean = quick_block_sum(dot, sums[turn]) / (float)d;
#pragma unroll
		for (int i = 0; i < KEEP * 8; i++) {
			g[i / 8][i % 8] = r * (g[i / 8][i % 8] - v[i / 8][i % 8] * mean);
			if (residual)
				g[i / 8][i % 8] += element(beneath[i / 8], i % 8);
		}
		put_row<KEEP, WIDE>(dx + row * d, g, d);
		put_scaled<KEEP, WIDE, T>(q ? q + row * d : NULL, q_scale + row, g, d);
	}
	put_row<KEEP, WIDE>(part + (int64_t)blockIdx.x * d, dw, d);
}

void cuda_rmsnorm_backward(struct kernels *k, struct tensor dx, struct tensor dweight,
			   struct tensor dout, struct tensor x, struct tensor weight,
			   struct tensor rstd, struct tensor dresidual, struct scaled also)
{
	struct cuda_state *s = state_of(k);
	int64_t d = tensor_count(&weight), rows = tensor_count(&x) / d;
	unsigned threads = threads_for(d);
	int64_t resident = s->processors * (int64_t)(BACKWARD_THREADS / threads);
	int64_t blocks = rows < resident ? rows : resident;
	bool wide =
		all_wide(d, dx.data, dout.data, x.data, dresidual.data) && aligned16(weight.data) &&
		aligned16(also.q.data);
	float *part;

	CHECK(dx.type == x.type && dout.type == x.type && dweight.type == DT_F32);
	CHECK(!dresidual.data ||
	      (dresidual.type == x.type && tensor_count(&dresidual) == rows * d));
	check_scaled(&also, rows, d);
	if (!rows)
		return;
	part = (float *)cuda_scratch(s, (size_t)(blocks * d) * sizeof *part);
	ROWS(d, wide,
	     ACT(x.type, norm_backward<KEEP, WIDE><<<(unsigned)blocks, threads, 0, s->stream>>>(
				 (T *)dx.data, part, (const T *)dout.data, (const T *)x.data,
				 (const float *)weight.data, (const float *)rstd.data,
				 (const T *)dresidual.data, rows, d, (uint8_t *)also.q.data,
				 (float *)also.scale.data)));
	LAUNCHED();
	cuda_add_column_sums(s, (float *)dweight.data, part, blocks, d);
}
