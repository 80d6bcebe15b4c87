/* SPDX-License-Identifier: Apache-2.0
 * RMSNorm over rows, with the residual addition before it, and its gradient. A block takes a row;
 * each thread keeps its eights of the row in registers, so that a row is read once. The gradient's
 * blocks walk over many rows and keep their part of the weight's gradient in registers: partial
 * sums, added in order. */
#include "kernels/cuda/common.cuh"

#define THREADS_MOST 512
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
		  int64_t d, float eps)
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
}

static bool all_wide(int64_t d, const void *a, const void *b, const void *c, const void *e)
{
	return d % 8 == 0 && aligned16(a) && aligned16(b) && aligned16(c) && aligned16(e);
}

static void run_norm(struct kernels *k, struct tensor out, struct tensor rstd, void *sum,
		     struct tensor x, const void *delta, struct tensor weight, float eps)
{
	struct cuda_state *s = state_of(k);
	int64_t d = tensor_count(&weight), rows = tensor_count(&x) / d;
	unsigned threads = threads_for(d);
	bool wide = all_wide(d, out.data, sum, x.data, delta) && aligned16(weight.data);

	CHECK(out.type == x.type && rstd.type == DT_F32 && weight.type == DT_F32);
	CHECK(tensor_count(&out) == rows * d);
	CHECK(!rstd.data || tensor_count(&rstd) == rows);
	if (!rows)
		return;
	ROWS(d, wide,
	     ACT(x.type, norm_rows<KEEP, WIDE><<<(unsigned)rows, threads, 0, s->stream>>>(
				 (T *)out.data, (float *)rstd.data, (T *)sum, (const T *)x.data,
				 (const T *)delta, (const float *)weight.data, d, eps)));
	LAUNCHED();
}

void cuda_rmsnorm(struct kernels *k, struct tensor out, struct tensor rstd, struct tensor x,
		  struct tensor weight, float eps)
{
	run_norm(k, out, rstd, NULL, x, NULL, weight, eps);
}

void cuda_add_rmsnorm(struct kernels *k, struct tensor out, struct tensor rstd, struct tensor sum,
		      struct tensor x, struct tensor delta, struct tensor weight, float eps)
{
	CHECK(sum.type == x.type && delta.type == x.type &&
	      tensor_count(&delta) == tensor_count(&x));
	run_norm(k, out, rstd, sum.data, x, delta.data, weight, eps);
}

/* With y = x r w, r = (mean x^2 + eps)^-1/2:
 * dx = r (w dy - x r^2 mean(w dy x)), dw = sum over rows of dy x r. */
template <int KEEP, bool WIDE, typename T>
__global__ void __launch_bounds__(THREADS_MOST)
	norm_backward(T *dx, float *part, const T *dout, const T *x, const float *weight,
		      const float *rstd, const T *residual, int64_t rows, int64_t d)
{
	float w[KEEP][8], dw[KEEP][8];

	get_row<KEEP, WIDE>(w, weight, d);
	memset(dw, 0, sizeof dw);
	for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
		int64_t at = row * d;
		float v[KEEP][8], g[KEEP][8], dot = 0.0f, r = rstd[row], mean;

		get_row<KEEP, WIDE>(v, x + at, d);
		get_row<KEEP, WIDE>(g, dout + at, d);
#pragma unroll
		for (int i = 0; i < KEEP * 8; i++) {
			float xr = v[i / 8][i % 8] * r;

			dw[i / 8][i % 8] += g[i / 8][i % 8] * xr;
			g[i / 8][i % 8] *= w[i / 8][i % 8];
			dot += g[i / 8][i % 8] * xr;
			v[i / 8][i % 8] = xr;
		}
		mean = block_sum(dot) / (float)d;
#pragma unroll
		for (int i = 0; i < KEEP * 8; i++)
			g[i / 8][i % 8] = r * (g[i / 8][i % 8] - v[i / 8][i % 8] * mean);
		if (residual) {
			get_row<KEEP, WIDE>(v, residual + at, d);
#pragma unroll
			for (int i = 0; i < KEEP * 8; i++)
				g[i / 8][i % 8] += v[i / 8][i % 8];
		}
		put_row<KEEP, WIDE>(dx + at, g, d);
	}
	put_row<KEEP, WIDE>(part + (int64_t)blockIdx.x * d, dw, d);
}

void cuda_rmsnorm_backward(struct kernels *k, struct tensor dx, struct tensor dweight,
			   struct tensor dout, struct tensor x, struct tensor weight,
			   struct tensor rstd, struct tensor dresidual)
{
	struct cuda_state *s = state_of(k);
	int64_t d = tensor_count(&weight), rows = tensor_count(&x) / d;
	unsigned threads = threads_for(d);
	int64_t resident = s->processors * (1536 / threads < 1 ? 1 : 1536 / threads);
	int64_t blocks = rows < resident ? rows : resident;
	bool wide =
		all_wide(d, dx.data, dout.data, x.data, dresidual.data) && aligned16(weight.data);
	float *part;

	CHECK(dx.type == x.type && dout.type == x.type && dweight.type == DT_F32);
	CHECK(!dresidual.data ||
	      (dresidual.type == x.type && tensor_count(&dresidual) == rows * d));
	if (!rows)
		return;
	part = (float *)cuda_scratch(s, (size_t)(blocks * d) * sizeof *part);
	ROWS(d, wide,
	     ACT(x.type, norm_backward<KEEP, WIDE><<<(unsigned)blocks, threads, 0, s->stream>>>(
				 (T *)dx.data, part, (const T *)dout.data, (const T *)x.data,
				 (const float *)weight.data, (const float *)rstd.data,
				 (const T *)dresidual.data, rows, d)));
	LAUNCHED();
	cuda_add_column_sums(s, (float *)dweight.data, part, blocks, d);
}
