/* SPDX-License-Identifier: Apache-2.0
 * Elementwise parts of a transformer block: rotary positions in place, and SwiGLU with its
 * gradient. */
#include "kernels/cuda/common.cuh"

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

template <bool WIDE, typename T>
__global__ void swiglu_forward(T *out, const T *gate_up, int64_t rows, int64_t f)
{
	int64_t eights = (f + 7) / 8;

	EACH (i, rows * eights) {
		int64_t row = i / eights, c = i % eights * 8;
		float g[8], u[8];

		get_eight<WIDE>(gate_up + row * 2 * f + c, f - c, g);
		get_eight<WIDE>(gate_up + row * 2 * f + f + c, f - c, u);
#pragma unroll
		for (int j = 0; j < 8; j++)
			u[j] *= g[j] / (1.0f + __expf(-g[j]));
		put_eight<WIDE>(out + row * f + c, f - c, u);
	}
}

void cuda_swiglu(struct kernels *k, struct tensor out, struct tensor gate_up)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = out.dim[0], f = out.dim[1];
	unsigned grid = grid_for(s, rows * div_up(f, 8), 256);

	CHECK(out.type == gate_up.type && gate_up.dim[0] == rows && gate_up.dim[1] == 2 * f);
	if (!rows)
		return;
	if (f % 8 == 0 && aligned16(out.data) && aligned16(gate_up.data))
		ACT(out.type, swiglu_forward<true>
		    <<<grid, 256, 0, s->stream>>>((T *)out.data, (const T *)gate_up.data, rows, f));
	else
		ACT(out.type, swiglu_forward<false>
		    <<<grid, 256, 0, s->stream>>>((T *)out.data, (const T *)gate_up.data, rows, f));
	LAUNCHED();
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
#pragma unroll
		for (int j = 0; j < 8; j++) {
			float s = 1.0f / (1.0f + __expf(-g[j])),
			      dg = d[j] * u[j] * s * (1.0f + g[j] * (1.0f - s));

			u[j] = d[j] * g[j] * s;
			g[j] = dg;
		}
		put_eight<WIDE>(dgate_up + at, f - c, g);
		put_eight<WIDE>(dgate_up + at + f, f - c, u);
	}
}

void cuda_swiglu_backward(struct kernels *k, struct tensor dgate_up, struct tensor dout,
			  struct tensor gate_up)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = dout.dim[0], f = dout.dim[1];
	unsigned grid = grid_for(s, rows * div_up(f, 8), 256);

	CHECK(dgate_up.type == gate_up.type && dout.type == gate_up.type &&
	      gate_up.dim[1] == 2 * f && gate_up.dim[0] == rows &&
	      tensor_count(&dgate_up) == tensor_count(&gate_up));
	if (!rows)
		return;
	if (f % 8 == 0 && aligned16(dgate_up.data) && aligned16(dout.data) &&
	    aligned16(gate_up.data))
		ACT(dout.type, swiglu_gradient<true>
		    <<<grid, 256, 0, s->stream>>>((T *)dgate_up.data, (const T *)dout.data,
						  (const T *)gate_up.data, rows, f));
	else
		ACT(dout.type, swiglu_gradient<false>
		    <<<grid, 256, 0, s->stream>>>((T *)dgate_up.data, (const T *)dout.data,
						  (const T *)gate_up.data, rows, f));
	LAUNCHED();
}
