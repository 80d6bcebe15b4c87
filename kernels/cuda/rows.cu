/* SPDX-License-Identifier: Apache-2.0
 * Rows picked by index (embedding, gather, scatter), vectors added to the rows of an image, and
 * sums over rows. The embedding's gradient sorts the rows by token, so that each table row is
 * written by one block that adds in the order of the rows: no atomics on floats. */
#include "kernels/cuda/early.cuh"

/* to[c] (+)= from[c] for the eights of a row; rows are picked by the functor. */
enum row_write { ROW_SET, ROW_ADD };

template <bool WIDE, typename T, int GATHER, row_write WRITE>
__global__ void move_rows(T *out, const T *in, const int32_t *row, int64_t rows, int64_t d,
			  bool zero_negative)
{
	int64_t eights = (d + 7) / 8;

	let_kernel_behind_start(); /* a token's first product reads its weights meanwhile */
	EACH (i, rows * eights) {
		int64_t m = i / eights, c = i % eights * 8;
		int64_t r = row[m];
		const T *from = in + (GATHER ? r : m) * d + c;
		T *to = out + (GATHER ? m : r) * d + c;
		float x[8] = { 0, 0, 0, 0, 0, 0, 0, 0 };

		if (r < 0 && !(GATHER && zero_negative))
			continue;
		if (r >= 0)
			get_eight<WIDE>(from, d - c, x);
		if (WRITE == ROW_ADD) {
			float y[8];

			get_eight<WIDE>(to, d - c, y);
#pragma unroll
			for (int j = 0; j < 8; j++)
				x[j] += y[j];
		}
		put_eight<WIDE>(to, d - c, x);
	}
}

template <int GATHER, row_write WRITE>
static void run_move(struct kernels *k, struct tensor out, struct tensor in, struct tensor row,
		     bool zero)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = tensor_count(&row), d = in.dim[1];
	bool wide = d % 8 == 0 && aligned16(out.data) && aligned16(in.data);
	unsigned grid = grid_for(s, rows * div_up(d, 8), 256);

	CHECK(out.type == in.type && row.type == DT_I32 && out.rank == 2 && in.rank == 2 &&
	      out.dim[1] == d);
	CHECK((GATHER ? out.dim[0] : in.dim[0]) == rows);
	if (!rows)
		return;
	if (wide)
		ACT(in.type, move_rows<true, T, GATHER, WRITE>
		    <<<grid, 256, 0, s->stream>>>((T *)out.data, (const T *)in.data,
						  (const int32_t *)row.data, rows, d, zero));
	else
		ACT(in.type, move_rows<false, T, GATHER, WRITE>
		    <<<grid, 256, 0, s->stream>>>((T *)out.data, (const T *)in.data,
						  (const int32_t *)row.data, rows, d, zero));
	LAUNCHED();
}

void cuda_gather_rows(struct kernels *k, struct tensor out, struct tensor in, struct tensor row)
{
	run_move<1, ROW_SET>(k, out, in, row, true);
}

void cuda_scatter_rows(struct kernels *k, struct tensor out, struct tensor in, struct tensor row)
{
	run_move<0, ROW_SET>(k, out, in, row, false);
}

void cuda_scatter_add_rows(struct kernels *k, struct tensor out, struct tensor in,
			   struct tensor row)
{
	run_move<0, ROW_ADD>(k, out, in, row, false);
}

/* The table may be f32 while the output is bf16 (and the other way round). */
template <typename TO, typename TI>
__global__ void embed_rows(TO *out, const TI *table, const int32_t *token, int64_t rows, int64_t d)
{
	EACH (i, rows * d) {
		int64_t m = i / d, c = i % d;

		if (token[m] >= 0)
			put(out + i, to_float(table[token[m] * d + c]));
	}
}

void cuda_embed(struct kernels *k, struct tensor out, struct tensor table, struct tensor token)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = tensor_count(&token), d = out.dim[1];

	if (out.type == table.type) {
		run_move<1, ROW_SET>(k, out, table, token, false);
		return;
	}
	CHECK(token.type == DT_I32 && out.dim[0] == rows && table.dim[1] == d);
	if (out.type == DT_BF16)
		embed_rows<<<grid_for(s, rows * d, 256), 256, 0, s->stream>>>(
			(bf16 *)out.data, (const float *)table.data, (const int32_t *)token.data,
			rows, d);
	else
		embed_rows<<<grid_for(s, rows * d, 256), 256, 0, s->stream>>>(
			(float *)out.data, (const bf16 *)table.data, (const int32_t *)token.data,
			rows, d);
	LAUNCHED();
}

/* ---- gradient of the embedding: count, scan, place, order, add */
__global__ void count_tokens(int32_t *count, const int32_t *token, int64_t rows)
{
	EACH (i, rows)
		if (token[i] >= 0)
			atomicAdd(count + token[i], 1);
}

/* first[v] = rows with a token below v; one block. next is a copy that placing counts up. */
__global__ void scan_tokens(int32_t *first, int32_t *next, const int32_t *count, int64_t vocab)
{
	__shared__ int32_t part[1024];
	int64_t each = (vocab + 1023) / 1024, from = threadIdx.x * each;
	int64_t to = from + each < vocab ? from + each : vocab;
	int32_t sum = 0;

	for (int64_t v = from; v < to; v++)
		sum += count[v];
	part[threadIdx.x] = sum;
	__syncthreads();
	for (int step = 1; step < 1024; step *= 2) {
		int32_t below = (int)threadIdx.x >= step ? part[threadIdx.x - step] : 0;

		__syncthreads();
		part[threadIdx.x] += below;
		__syncthreads();
	}
	sum = part[threadIdx.x] - sum;
	for (int64_t v = from; v < to; v++) {
		first[v] = next[v] = sum;
		sum += count[v];
	}
}

__global__ void place_rows(int32_t *placed, int32_t *next, const int32_t *token, int64_t rows)
{
	EACH (i, rows)
		if (token[i] >= 0)
			placed[atomicAdd(next + token[i], 1)] = (int32_t)i;
}

/* Placing left the rows of a token in any order; each finds its rank among them. */
__global__ void order_rows(int32_t *ordered, const int32_t *placed, const int32_t *first,
			   const int32_t *count, const int32_t *token, int64_t rows)
{
	EACH (i, rows) {
		int32_t v = token[i], rank = 0;

		if (v < 0)
			continue;
		for (int32_t j = 0; j < count[v]; j++)
			rank += placed[first[v] + j] < (int32_t)i;
		ordered[first[v] + rank] = (int32_t)i;
	}
}

template <typename T>
__global__ void add_by_token(float *table, const T *out, const int32_t *ordered,
			     const int32_t *first, const int32_t *count, int64_t d)
{
	int64_t v = blockIdx.x, c = (int64_t)blockIdx.y * blockDim.x + threadIdx.x;
	int32_t n = count[v];
	float sum = 0.0f;

	if (!n || c >= d)
		return;
	for (int32_t j = 0; j < n; j++)
		sum += to_float(out[ordered[first[v] + j] * d + c]);
	table[v * d + c] += sum;
}

void cuda_embed_backward(struct kernels *k, struct tensor dtable, struct tensor dout,
			 struct tensor token)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = tensor_count(&token), vocab = dtable.dim[0], d = dtable.dim[1];
	int32_t *count = (int32_t *)cuda_scratch(s, (size_t)(3 * vocab + 2 * rows) * 4);
	int32_t *first = count + vocab, *next = first + vocab, *placed = next + vocab,
		*ordered = placed + rows;
	const int32_t *t = (const int32_t *)token.data;
	unsigned grid = grid_for(s, rows, 256);

	CHECK(dtable.type == DT_F32 && token.type == DT_I32 && dout.dim[0] == rows &&
	      dout.dim[1] == d);
	if (!rows)
		return;
	CUDA(cudaMemsetAsync(count, 0, (size_t)vocab * 4, s->stream));
	count_tokens<<<grid, 256, 0, s->stream>>>(count, t, rows);
	scan_tokens<<<1, 1024, 0, s->stream>>>(first, next, count, vocab);
	place_rows<<<grid, 256, 0, s->stream>>>(placed, next, t, rows);
	order_rows<<<grid, 256, 0, s->stream>>>(ordered, placed, first, count, t, rows);
	ACT(dout.type,
	    add_by_token<<<dim3((unsigned)vocab, (unsigned)div_up(d, 256)), 256, 0, s->stream>>>(
		    (float *)dtable.data, (const T *)dout.data, ordered, first, count, d));
	LAUNCHED();
}

/* ---- one vector an image, and sums over rows */
template <typename T, typename TV>
__global__ void add_vectors(T *rows, const TV *vector, int64_t count, int64_t d, int64_t per_image)
{
	EACH (i, count)
		put(rows + i,
		    to_float(rows[i]) + to_float(vector[i / (per_image * d) * d + i % d]));
}

void cuda_add_per_image(struct kernels *k, struct tensor rows, struct tensor vector)
{
	struct cuda_state *s = state_of(k);
	int64_t count = tensor_count(&rows), images = vector.dim[0], d = vector.dim[1];
	unsigned grid = grid_for(s, count, 256);

	if (!count)
		return;
	CHECK(rows.dim[1] == d && rows.dim[0] % images == 0);
	if (vector.type == DT_F32)
		ACT(rows.type, add_vectors<<<grid, 256, 0, s->stream>>>(
				       (T *)rows.data, (const float *)vector.data, count, d,
				       rows.dim[0] / images));
	else
		ACT(rows.type, add_vectors<<<grid, 256, 0, s->stream>>>(
				       (T *)rows.data, (const bf16 *)vector.data, count, d,
				       rows.dim[0] / images));
	LAUNCHED();
}

/* out[group, slice, c] = sum of the slice's rows of the group, eight rows a block at a time. */
template <typename T, typename TO>
__global__ void sum_rows(TO *out, const T *x, int64_t rows, int64_t d, int64_t slice_rows)
{
	__shared__ float part[8][33];
	int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
	int64_t from = blockIdx.y * slice_rows,
		to = from + slice_rows < rows ? from + slice_rows : rows;
	const T *group = x + blockIdx.z * rows * d;
	float sum = 0.0f;

	if (c < d)
		for (int64_t r = from + threadIdx.y; r < to; r += 8)
			sum += to_float(group[r * d + c]);
	part[threadIdx.y][threadIdx.x] = sum;
	__syncthreads();
	if (threadIdx.y || c >= d)
		return;
	for (int i = 1; i < 8; i++)
		sum += part[i][threadIdx.x];
	put(out + ((int64_t)blockIdx.z * gridDim.y + blockIdx.y) * d + c, sum);
}

void cuda_add_per_image_backward(struct kernels *k, struct tensor dvector, struct tensor drows)
{
	struct cuda_state *s = state_of(k);
	int64_t images = dvector.dim[0], d = dvector.dim[1], rows;

	if (!images)
		return;
	rows = drows.dim[0] / images;
	CHECK(drows.dim[1] == d && rows * images == drows.dim[0] && images < 65536);
	dim3 grid((unsigned)div_up(d, 32), 1, (unsigned)images), block(32, 8);
	if (dvector.type == DT_F32)
		ACT(drows.type,
		    sum_rows<<<grid, block, 0, s->stream>>>((float *)dvector.data,
							    (const T *)drows.data, rows, d, rows));
	else
		ACT(drows.type,
		    sum_rows<<<grid, block, 0, s->stream>>>((bf16 *)dvector.data,
							    (const T *)drows.data, rows, d, rows));
	LAUNCHED();
}

#define SLICE_LANES 16

/* 32 columns x SLICE_LANES rows of threads: each row takes every SLICE_LANES-th slice. */
__global__ void add_slices(float *out, const float *part, int64_t slices, int64_t d)
{
	__shared__ float sums[SLICE_LANES][33];
	int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
	float sum = 0.0f;

	if (c < d)
		for (int64_t i = threadIdx.y; i < slices; i += SLICE_LANES)
			sum += part[i * d + c];
	sums[threadIdx.y][threadIdx.x] = sum;
	__syncthreads();
	if (threadIdx.y || c >= d)
		return;
	for (int i = 1; i < SLICE_LANES; i++)
		sum += sums[i][threadIdx.x];
	out[c] += sum;
}

void cuda_add_column_sums(struct cuda_state *s, float *out, const float *part, int64_t slices,
			  int64_t d)
{
	add_slices<<<(unsigned)div_up(d, 32), dim3(32, SLICE_LANES), 0, s->stream>>>(out, part,
										     slices, d);
	LAUNCHED();
}

void cuda_bias_backward(struct kernels *k, struct tensor dbias, struct tensor dy)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = dy.dim[0], d = dy.dim[1];
	int64_t slices = rows / 256 < 1 ? 1 : rows / 256 > 128 ? 128 : rows / 256;
	float *part;

	CHECK(dbias.type == DT_F32 && tensor_count(&dbias) == d && dy.rank == 2);
	if (!rows)
		return;
	part = (float *)cuda_scratch(s, (size_t)(slices * d) * sizeof *part);
	dim3 grid((unsigned)div_up(d, 32), (unsigned)slices, 1), block(32, 8);
	ACT(dy.type, sum_rows<<<grid, block, 0, s->stream>>>(part, (const T *)dy.data, rows, d,
							     div_up(rows, slices)));
	LAUNCHED();
	cuda_add_column_sums(s, (float *)dbias.data, part, slices, d);
}
