/* SPDX-License-Identifier: Apache-2.0
 * Elementwise parts of a transformer block: rotary positions in place, and SwiGLU with its
 * gradient. */
#include "kernels/cuda/fp8.cuh"

/* One thread turns eight pairs (i, i + half) of one head of q or k. */
template <bool WIDE, typename T>
__global__ void turn_pairs(T *qkv, const float *cosine, const float *sine, const int32_t *position,
			   int64_t rows, int heads, int half, float sign)
{
	int eights = (half + 7) / 8;

	EACH (i, rows * 2 * heads * eights) {
		int c = (int)(i % eights) * 8;
		int64_t head = i / eights % (2 * heads), row = i / ((int64_t)eights * 2 * heads);
		T *lo = qkv + (row * 3 * heads + head) * 2 * half + c, *hi = lo + half;
		int64_t at = (int64_t)position[row] * half + c;
		float a[8], b[8], cs[8], sn[8], x[8], y[8];

		get_eight<WIDE>(lo, half - c, a);
		get_eight<WIDE>(hi, half - c, b);
		get_eight<WIDE>(cosine + at, half - c, cs);
		get_eight<WIDE>(sine + at, half - c, sn);
#pragma unroll
		for (int j = 0; j < 8; j++) {
			x[j] = a[j] * cs[j] - sign * b[j] * sn[j];
			y[j] = b[j] * cs[j] + sign * a[j] * sn[j];
		}
		put_eight<WIDE>(lo, half - c, x);
		put_eight<WIDE>(hi, half - c, y);
	}
}

void cuda_rope(struct kernels *k, struct tensor qkv, int heads, struct tensor cosine,
	       struct tensor sine, struct tensor position, bool inverse)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = tensor_count(&position);
	int half = (int)cosine.dim[1];
	unsigned grid = grid_for(s, rows * 2 * heads * div_up(half, 8), 256);
	bool wide = half % 8 == 0 && aligned16(qkv.data) && aligned16(cosine.data) &&
		    aligned16(sine.data);
	float sign = inverse ? -1.0f : 1.0f;

	CHECK(tensor_count(&qkv) == rows * 6 * heads * half && cosine.type == DT_F32 &&
	      sine.type == DT_F32);
	CHECK(position.type == DT_I32 && sine.dim[1] == half);
	if (!rows)
		return;
	if (wide)
		ACT(qkv.type,
		    turn_pairs<true><<<grid, 256, 0, s->stream>>>(
			    (T *)qkv.data, (const float *)cosine.data, (const float *)sine.data,
			    (const int32_t *)position.data, rows, heads, half, sign));
	else
		ACT(qkv.type,
		    turn_pairs<false><<<grid, 256, 0, s->stream>>>(
			    (T *)qkv.data, (const float *)cosine.data, (const float *)sine.data,
			    (const int32_t *)position.data, rows, heads, half, sign));
	LAUNCHED();
}

/* u = silu(g) u */
static __device__ __forceinline__ void swiglu_eight(const float g[8], float u[8])
{
#pragma unroll
	for (int j = 0; j < 8; j++)
		u[j] *= g[j] / (1.0f + __expf(-g[j]));
}

/* g and u become their gradients. */
static __device__ __forceinline__ void swiglu_eight_backward(float g[8], float u[8],
							     const float d[8])
{
#pragma unroll
	for (int j = 0; j < 8; j++) {
		float s = 1.0f / (1.0f + __expf(-g[j])),
		      dg = d[j] * u[j] * s * (1.0f + g[j] * (1.0f - s));

		u[j] = d[j] * g[j] * s;
		g[j] = dg;
	}
}

template <bool WIDE, typename T>
__global__ void swiglu_forward(T *out, const T *gate_up, int64_t rows, int64_t f)
{
	int64_t eights = (f + 7) / 8;

	EACH (i, rows * eights) {
		int64_t row = i / eights, c = i % eights * 8;
		float g[8], u[8];

		get_eight<WIDE>(gate_up + row * 2 * f + c, f - c, g);
		get_eight<WIDE>(gate_up + row * 2 * f + f + c, f - c, u);
		swiglu_eight(g, u);
		put_eight<WIDE>(out + row * f + c, f - c, u);
	}
}

template <bool WIDE, typename T>
__global__ void swiglu_gradient(T *dgate_up, const T *dout, const T *gate_up, int64_t rows,
				int64_t f)
{
	int64_t eights = (f + 7) / 8;

	EACH (i, rows * eights) {
		int64_t row = i / eights, c = i % eights * 8, at = row * 2 * f + c;
		float g[8], u[8], d[8];

		get_eight<WIDE>(gate_up + at, f - c, g);
		get_eight<WIDE>(gate_up + at + f, f - c, u);
		get_eight<WIDE>(dout + row * f + c, f - c, d);
		swiglu_eight_backward(g, u, d);
		put_eight<WIDE>(dgate_up + at, f - c, g);
		put_eight<WIDE>(dgate_up + at + f, f - c, u);
	}
}

/* ---- with rows as e4m3 besides: a block takes a row, a thread KEEP eights of it */
#define ROW_THREADS_MOST 1024

template <int KEEP, typename T>
__global__ void __launch_bounds__(ROW_THREADS_MOST)
	swiglu_rows(T *out, uint8_t *q, float *scale, const T *gate_up, int64_t f)
{
	int64_t at = (int64_t)blockIdx.x * f;
	float kept[KEEP][8] = {}, g[8];

#pragma unroll
	for (int i = 0; i < KEEP; i++) {
		int64_t c = ((int64_t)threadIdx.x + i * blockDim.x) * 8;

		if (c >= f)
			continue;
		load8(gate_up + 2 * at + c, g);
		load8(gate_up + 2 * at + f + c, kept[i]);
		swiglu_eight(g, kept[i]);
		store8(out + at + c, kept[i]);
	}
	put_scaled<KEEP, true, T>(q + at, scale + blockIdx.x, kept, f);
}

template <int KEEP, typename T>
__global__ void __launch_bounds__(ROW_THREADS_MOST)
	swiglu_gradient_rows(T *dgate_up, uint8_t *q, float *scale, const T *dout,
			     const T *gate_up, int64_t f)
{
	int64_t at = (int64_t)blockIdx.x * 2 * f;
	float g[KEEP][8] = {}, u[KEEP][8] = {}, d[8], most = 0.0f, by;

#pragma unroll
	for (int i = 0; i < KEEP; i++) {
		int64_t c = ((int64_t)threadIdx.x + i * blockDim.x) * 8;

		if (c >= f)
			continue;
		load8(gate_up + at + c, g[i]);
		load8(gate_up + at + f + c, u[i]);
		load8(dout + at / 2 + c, d);
		swiglu_eight_backward(g[i], u[i], d);
		store8(dgate_up + at + c, g[i]);
		store8(dgate_up + at + f + c, u[i]);
		round_eight<T>(g[i]);
		round_eight<T>(u[i]);
		most = most_of(u[i], most_of(g[i], most));
	}
	by = row_factor(most, scale + blockIdx.x);
#pragma unroll
	for (int i = 0; i < KEEP; i++) {
		int64_t c = ((int64_t)threadIdx.x + i * blockDim.x) * 8;

		if (c >= f)
			continue;
		put_bytes<true>(q + at + c, 8, g[i], by);
		put_bytes<true>(q + at + f + c, 8, u[i], by);
	}
}

/* Runs the statement with KEEP as rows of f ask, and as many threads. */
#define SWIGLU_ROWS(f, ...)                                                       \
	do {                                                                      \
		if ((f) <= ROW_THREADS_MOST * 8) {                                \
			constexpr int KEEP = 1;                                   \
			__VA_ARGS__;                                              \
		} else {                                                          \
			constexpr int KEEP = 2;                                   \
			__VA_ARGS__;                                              \
		}                                                                 \
	} while (0)

static unsigned threads_of_row(int64_t f, int keep)
{
	return (unsigned)(div_up(div_up(f, 8 * keep), 32) * 32);
}

/* Wider or odd rows are made first and read again. */
static bool makes_rows(const struct scaled *also, int64_t f, bool wide)
{
	return also->q.data && wide && aligned16(also->q.data) && f <= ROW_THREADS_MOST * 16;
}

void cuda_swiglu(struct kernels *k, struct tensor out, struct tensor gate_up, struct scaled also)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = out.dim[0], f = out.dim[1];
	unsigned grid = grid_for(s, rows * div_up(f, 8), 256);
	bool wide = f % 8 == 0 && aligned16(out.data) && aligned16(gate_up.data);

	CHECK(out.type == gate_up.type && gate_up.dim[0] == rows && gate_up.dim[1] == 2 * f);
	check_scaled(&also, rows, f);
	if (!rows)
		return;
	if (makes_rows(&also, f, wide)) {
		SWIGLU_ROWS(f, ACT(out.type, swiglu_rows<KEEP>
			<<<(unsigned)rows, threads_of_row(f, KEEP), 0, s->stream>>>(
				(T *)out.data, (uint8_t *)also.q.data, (float *)also.scale.data,
				(const T *)gate_up.data, f)));
		LAUNCHED();
		return;
	}
	if (wide)
		ACT(out.type, swiglu_forward<true>
		    <<<grid, 256, 0, s->stream>>>((T *)out.data, (const T *)gate_up.data, rows, f));
	else
		ACT(out.type, swiglu_forward<false>
		    <<<grid, 256, 0, s->stream>>>((T *)out.data, (const T *)gate_up.data, rows, f));
	LAUNCHED();
	if (also.q.data)
		cuda_quantise(k, also.q, also.scale, out, false);
}

void cuda_swiglu_backward(struct kernels *k, struct tensor dgate_up, struct tensor dout,
			  struct tensor gate_up, struct scaled also)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = dout.dim[0], f = dout.dim[1];
	unsigned grid = grid_for(s, rows * div_up(f, 8), 256);
	bool wide = f % 8 == 0 && aligned16(dgate_up.data) && aligned16(dout.data) &&
		    aligned16(gate_up.data);

	CHECK(dgate_up.type == gate_up.type && dout.type == gate_up.type &&
	      gate_up.dim[1] == 2 * f && gate_up.dim[0] == rows &&
	      tensor_count(&dgate_up) == tensor_count(&gate_up));
	check_scaled(&also, rows, 2 * f);
	if (!rows)
		return;
	if (makes_rows(&also, f, wide)) {
		SWIGLU_ROWS(f, ACT(dout.type, swiglu_gradient_rows<KEEP>
			<<<(unsigned)rows, threads_of_row(f, KEEP), 0, s->stream>>>(
				(T *)dgate_up.data, (uint8_t *)also.q.data,
				(float *)also.scale.data, (const T *)dout.data,
				(const T *)gate_up.data, f)));
		LAUNCHED();
		return;
	}
	if (wide)
		ACT(dout.type, swiglu_gradient<true>
		    <<<grid, 256, 0, s->stream>>>((T *)dgate_up.data, (const T *)dout.data,
						  (const T *)gate_up.data, rows, f));
	else
		ACT(dout.type, swiglu_gradient<false>
		    <<<grid, 256, 0, s->stream>>>((T *)dgate_up.data, (const T *)dout.data,
						  (const T *)gate_up.data, rows, f));
	LAUNCHED();
	if (also.q.data)
		cuda_quantise(k, also.q, also.scale, dgate_up, false);
}
