/* SPDX-License-Identifier: Apache-2.0
 * Rows of activations and weights as e4m3 with a scale each, for 8-bit products (matmul.cu). A row
 * is read once: a block keeps what it reads until the row's largest element is known. Turned, the
 * largest elements of columns come first, then tiles are turned through shared memory. */
#include "kernels/cuda/fp8.cuh"

#define KEEP 2 /* eights of a row that a thread keeps; those of wider rows are read again */
#define ROW_THREADS_MOST 1024

template <bool WIDE, typename T>
__global__ void __launch_bounds__(ROW_THREADS_MOST)
	quantise_rows(uint8_t *q, float *scale, const T *x, int64_t d)
{
	const int64_t at = (int64_t)blockIdx.x * d, step = blockDim.x * 8, c = threadIdx.x * 8;
	float kept[KEEP][8] = {}, more[8], most = 0.0f, by;

#pragma unroll
	for (int i = 0; i < KEEP; i++)
		if (c + i * step < d) {
			get_eight<WIDE>(x + at + c + i * step, d - c - i * step, kept[i]);
			most = most_of(kept[i], most);
		}
	for (int64_t n = c + KEEP * step; n < d; n += step) {
		get_eight<WIDE>(x + at + n, d - n, more);
		most = most_of(more, most);
	}
	by = row_factor(most, scale + blockIdx.x);
#pragma unroll
	for (int i = 0; i < KEEP; i++)
		if (c + i * step < d)
			put_bytes<WIDE>(q + at + c + i * step, d - c - i * step, kept[i], by);
	for (int64_t n = c + KEEP * step; n < d; n += step) {
		get_eight<WIDE>(x + at + n, d - n, more);
		put_bytes<WIDE>(q + at + n, d - n, more, by);
	}
}

/* ---- turned: x[K, M] becomes q[M, K] */
#define SIDE 64	     /* of a tile */
#define PITCH 80     /* bytes of a tile's row in shared memory */
#define TURN_THREADS 256

/* most[m] = largest |x[:, m]|; a block takes 256 columns and every gridDim.y-th eight of rows. The
 * order of maxima does not matter; bits of floats above 0 are in their order. */
template <bool WIDE, typename T>
__global__ void column_most(int *most, const T *x, int64_t rows, int64_t columns)
{
	int64_t c = ((int64_t)blockIdx.x * 32 + threadIdx.x % 32) * 8;
	int64_t step = (int64_t)gridDim.y * (TURN_THREADS / 32);
	__shared__ float part[TURN_THREADS / 32][32 * 8];
	int lane = threadIdx.x % 32 * 8, slice = threadIdx.x / 32;
	float v[8], top[8] = {};

	if (c < columns)
		for (int64_t r = (int64_t)blockIdx.y * (TURN_THREADS / 32) + slice; r < rows;
		     r += step) {
			get_eight<WIDE>(x + r * columns + c, columns - c, v);
#pragma unroll
			for (int i = 0; i < 8; i++)
				top[i] = fmaxf(top[i], fabsf(v[i]));
		}
#pragma unroll
	for (int i = 0; i < 8; i++)
		part[slice][lane + i] = top[i];
	__syncthreads();
	c = (int64_t)blockIdx.x * 256 + threadIdx.x;
	if (c >= columns)
		return;
	for (int i = 0; i < TURN_THREADS / 32; i++)
		top[0] = i ? fmaxf(top[0], part[i][threadIdx.x]) : part[0][threadIdx.x];
	atomicMax(most + c, __float_as_int(top[0]));
}

/* A tile of SIDE x SIDE a block: blockIdx.x along x's rows, blockIdx.y along its columns. */
template <bool WIDE, typename T>
__global__ void __launch_bounds__(TURN_THREADS)
	turn_tiles(uint8_t *q, float *scale, const T *x, const float *most, int64_t rows,
		   int64_t columns)
{
	__shared__ __align__(16) uint8_t tile[SIDE * PITCH];
	__shared__ float by[SIDE];
	int64_t row = (int64_t)blockIdx.x * SIDE, column = (int64_t)blockIdx.y * SIDE;
	int thread = (int)threadIdx.x, c = thread % 8 * 8;

	if (thread < SIDE && column + thread < columns) {
		float top = fmaxf(most[column + thread], E4M3_AMAX_LEAST);

		by[thread] = E4M3_MOST / top;
		if (blockIdx.x == 0)
			scale[column + thread] = top / E4M3_MOST;
	}
	__syncthreads();
	for (int r = thread / 8; r < SIDE && row + r < rows; r += TURN_THREADS / 8) {
		float v[8];

		if (column + c >= columns)
			break;
		get_eight<WIDE>(x + (row + r) * columns + column + c, columns - column - c, v);
#pragma unroll
		for (int i = 0; i < 8; i++)
			tile[(c + i) * PITCH + r] = (uint8_t)__nv_cvt_float_to_fp8(
				v[i] * by[c + i], __NV_SATFINITE, __NV_E4M3);
	}
	__syncthreads();
	c = thread / 4;
	if (column + c >= columns)
		return;
	q += (column + c) * rows + row + thread % 4 * 16;
	rows -= row + thread % 4 * 16;
	if (WIDE && rows >= 16)
		*reinterpret_cast<uint4 *>(q) = *reinterpret_cast<const uint4 *>(
			tile + c * PITCH + thread % 4 * 16);
	else
		for (int i = 0; i < 16 && i < rows; i++)
			q[i] = tile[c * PITCH + thread % 4 * 16 + i];
}

static void run_turned(struct cuda_state *s, uint8_t *q, float *scale, const struct tensor *x)
{
	int64_t rows = x->dim[0], columns = x->dim[1];
	float *most = (float *)cuda_scratch(s, (size_t)columns * sizeof *most);
	bool wide = columns % 8 == 0 && rows % 16 == 0 && aligned16(x->data) && aligned16(q);
	dim3 across((unsigned)div_up(columns, 256),
		    (unsigned)div_up(s->processors * 8, div_up(columns, 256)));
	dim3 tiles((unsigned)div_up(rows, SIDE), (unsigned)div_up(columns, SIDE));

	CUDA(cudaMemsetAsync(most, 0, (size_t)columns * sizeof *most, s->stream));
	if (wide)
		ACT(x->type, column_most<true><<<across, TURN_THREADS, 0, s->stream>>>(
				     (int *)most, (const T *)x->data, rows, columns));
	else
		ACT(x->type, column_most<false><<<across, TURN_THREADS, 0, s->stream>>>(
				     (int *)most, (const T *)x->data, rows, columns));
	LAUNCHED();
	if (wide)
		ACT(x->type, turn_tiles<true><<<tiles, TURN_THREADS, 0, s->stream>>>(
				     q, scale, (const T *)x->data, most, rows, columns));
	else
		ACT(x->type, turn_tiles<false><<<tiles, TURN_THREADS, 0, s->stream>>>(
				     q, scale, (const T *)x->data, most, rows, columns));
	LAUNCHED();
}

static void run_rows(struct cuda_state *s, uint8_t *q, float *scale, const struct tensor *x)
{
	int64_t rows = x->dim[0], d = x->dim[1], threads = div_up(div_up(d, 8 * KEEP), 32) * 32;
	unsigned block = (unsigned)(threads < ROW_THREADS_MOST ? threads : ROW_THREADS_MOST);

	if (d % 8 == 0 && aligned16(x->data) && aligned16(q))
		ACT(x->type, quantise_rows<true><<<(unsigned)rows, block, 0, s->stream>>>(
				     q, scale, (const T *)x->data, d));
	else
		ACT(x->type, quantise_rows<false><<<(unsigned)rows, block, 0, s->stream>>>(
				     q, scale, (const T *)x->data, d));
	LAUNCHED();
}

void cuda_quantise(struct kernels *k, struct tensor q, struct tensor scale, struct tensor x,
		   bool turned)
{
	int64_t rows = q.dim[0], d = q.dim[1];

	CHECK(q.rank == 2 && q.type == DT_E4M3 && x.rank == 2);
	CHECK(x.dim[0] == (turned ? d : rows) && x.dim[1] == (turned ? rows : d));
	CHECK(scale.type == DT_F32 && tensor_count(&scale) == rows);
	if (!rows || !d)
		return;
	if (turned)
		run_turned(state_of(k), (uint8_t *)q.data, (float *)scale.data, &x);
	else
		run_rows(state_of(k), (uint8_t *)q.data, (float *)scale.data, &x);
}

void cuda_matmul_scaled(struct kernels *k, struct tensor c, struct tensor a, struct tensor a_scale,
			struct tensor b, struct tensor b_scale, bool rough)
{
	struct product p = { c.dim[0], c.dim[1], a.dim[1], a.data, b.data, c.data };

	CHECK(c.rank == 2 && a.type == DT_E4M3 && b.type == DT_E4M3);
	CHECK(a.dim[0] == p.m && b.dim[0] == p.n && b.dim[1] == p.k);
	CHECK(a_scale.type == DT_F32 && tensor_count(&a_scale) == p.m);
	CHECK(b_scale.type == DT_F32 && tensor_count(&b_scale) == p.n);
	p.a_scale = (const float *)a_scale.data;
	p.b_scale = (const float *)b_scale.data;
	p.rough = rough;
	p.tb = true;
	p.in = DT_E4M3;
	p.out = c.type;
	cuda_product(state_of(k), &p);
}
