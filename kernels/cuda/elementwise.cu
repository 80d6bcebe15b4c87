/* SPDX-License-Identifier: Apache-2.0
 * Operations on single elements, and sums over an array: eight elements a thread where addresses
 * allow, bound by memory. */
#include "kernels/cuda/common.cuh"

/* f(i, left): eight elements from i on, of which `left` (or more) exist. */
template <typename F>
__global__ void by_eight(int64_t n, F f)
{
	EACH (c, (n + 7) / 8)
		f(8 * c, n - 8 * c);
}

template <typename F>
static void launch(struct cuda_state *s, int64_t n, F f)
{
	if (!n)
		return;
	by_eight<<<grid_for(s, (n + 7) / 8, 256), 256, 0, s->stream>>>(n, f);
	LAUNCHED();
}

/* to[i] = op(a[i], b[i]); b may be a again. */
template <bool WIDE, typename TO, typename TI, typename OP>
struct map2 {
	TO *to;
	const TI *a, *b;
	OP op;
	__device__ void operator()(int64_t i, int64_t left) const
	{
		float x[8], y[8];

		get_eight<WIDE>(a + i, left, x);
		get_eight<WIDE>(b + i, left, y);
#pragma unroll
		for (int j = 0; j < 8; j++)
			x[j] = op(x[j], y[j]);
		put_eight<WIDE>(to + i, left, x);
	}
};

template <typename TO, typename TI, typename OP>
static void map(struct kernels *k, int64_t n, void *to, const void *a, const void *b, OP op)
{
	if (n % 8 == 0 && aligned16(to) && aligned16(a) && aligned16(b))
		launch(state_of(k), n,
		       map2<true, TO, TI, OP>{ (TO *)to, (const TI *)a, (const TI *)b, op });
	else
		launch(state_of(k), n,
		       map2<false, TO, TI, OP>{ (TO *)to, (const TI *)a, (const TI *)b, op });
}

struct op_first {
	__device__ float operator()(float a, float) const
	{
		return a;
	}
};
struct op_add {
	__device__ float operator()(float a, float b) const
	{
		return a + b;
	}
};
struct op_fill {
	float v;
	__device__ float operator()(float, float) const
	{
		return v;
	}
};
struct op_scale {
	float by;
	__device__ float operator()(float a, float) const
	{
		return by * a;
	}
};
struct op_lerp {
	float w;
	__device__ float operator()(float a, float b) const
	{
		return a + w * (b - a);
	}
};
struct op_silu {
	__device__ float operator()(float a, float) const
	{
		return a / (1.0f + expf(-a));
	}
};
struct op_leaky {
	float slope;
	__device__ float operator()(float a, float) const
	{
		return a > 0.0f ? a : slope * a;
	}
};
struct op_leaky_backward {
	float slope;
	__device__ float operator()(float dy, float x) const
	{
		return x > 0.0f ? dy : slope * dy;
	}
};
struct op_silu_backward {
	__device__ float operator()(float dy, float x) const
	{
		float s = 1.0f / (1.0f + expf(-x));

		return dy * s * (1.0f + x * (1.0f - s));
	}
};

void cuda_convert(struct kernels *k, struct tensor to, struct tensor from)
{
	int64_t n = tensor_count(&to);

	CHECK(n == tensor_count(&from));
	if (to.type == from.type)
		cuda_copy(k, to.data, from.data, tensor_bytes(&to));
	else if (to.type == DT_BF16 && from.type == DT_F32)
		map<bf16, float>(k, n, to.data, from.data, from.data, op_first{});
	else {
		CHECK(to.type == DT_F32 && from.type == DT_BF16);
		map<float, bf16>(k, n, to.data, from.data, from.data, op_first{});
	}
}

template <typename T>
__global__ void fill_whole(T *to, int64_t n, T value)
{
	EACH (i, n)
		to[i] = value;
}

void cuda_fill(struct kernels *k, struct tensor to, float value)
{
	struct cuda_state *s = state_of(k);
	int64_t n = tensor_count(&to);
	unsigned grid = grid_for(s, n, 256);

	if (!n)
		return;
	switch (to.type) {
	case DT_I32:
		fill_whole<<<grid, 256, 0, s->stream>>>((int32_t *)to.data, n, (int32_t)value);
		break;
	case DT_I64:
		fill_whole<<<grid, 256, 0, s->stream>>>((int64_t *)to.data, n, (int64_t)value);
		break;
	case DT_U8:
		fill_whole<<<grid, 256, 0, s->stream>>>((uint8_t *)to.data, n, (uint8_t)value);
		break;
	default: ACT(to.type, fill_whole<<<grid, 256, 0, s->stream>>>((T *)to.data, n, (T)value));
	}
	LAUNCHED();
}

void cuda_add(struct kernels *k, struct tensor to, struct tensor a, struct tensor b)
{
	CHECK(to.type == a.type && a.type == b.type && tensor_count(&to) == tensor_count(&a) &&
	      tensor_count(&a) == tensor_count(&b));
	ACT(to.type, map<T, T>(k, tensor_count(&to), to.data, a.data, b.data, op_add{}));
}

void cuda_scale(struct kernels *k, struct tensor to, float by)
{
	ACT(to.type, map<T, T>(k, tensor_count(&to), to.data, to.data, to.data, op_scale{ by }));
}

void cuda_lerp(struct kernels *k, struct tensor to, struct tensor x, float w)
{
	CHECK(to.type == DT_F32 && x.type == DT_F32 && tensor_count(&to) == tensor_count(&x));
	map<float, float>(k, tensor_count(&to), to.data, to.data, x.data, op_lerp{ w });
}

void cuda_silu(struct kernels *k, struct tensor to, struct tensor x)
{
	CHECK(to.type == x.type && tensor_count(&to) == tensor_count(&x));
	ACT(to.type, map<T, T>(k, tensor_count(&to), to.data, x.data, x.data, op_silu{}));
}

void cuda_silu_backward(struct kernels *k, struct tensor dx, struct tensor dy, struct tensor x)
{
	CHECK(dx.type == dy.type && dy.type == x.type && tensor_count(&dx) == tensor_count(&x));
	ACT(dx.type, map<T, T>(k, tensor_count(&dx), dx.data, dy.data, x.data, op_silu_backward{}));
}

void cuda_leaky_relu(struct kernels *k, struct tensor out, struct tensor x, float slope)
{
	CHECK(out.type == x.type && tensor_count(&out) == tensor_count(&x));
	ACT(out.type,
	    map<T, T>(k, tensor_count(&out), out.data, x.data, x.data, op_leaky{ slope }));
}

void cuda_leaky_relu_backward(struct kernels *k, struct tensor dx, struct tensor dout,
			      struct tensor x, float slope)
{
	CHECK(dx.type == dout.type && dout.type == x.type && tensor_count(&dx) == tensor_count(&x));
	ACT(dx.type, map<T, T>(k, tensor_count(&dx), dx.data, dout.data, x.data,
			       op_leaky_backward{ slope }));
}

/* ---- sums: SUM_BLOCKS partial ones, then one block over them; the order depends on n alone */
#define SUM_BLOCKS 1024

template <bool SQUARE>
__global__ void sum_partial(float *part, const float *x, int64_t n)
{
	float sum = 0.0f;
	int64_t wide = ((uintptr_t)x & 15) == 0 ? n / 4 : 0;

	EACH (i, wide) {
		float4 v = reinterpret_cast<const float4 *>(x)[i];

		sum += SQUARE ? v.x * v.x + v.y * v.y + (v.z * v.z + v.w * v.w)
			      : v.x + v.y + (v.z + v.w);
	}
	EACH (i, n - 4 * wide) {
		float v = x[4 * wide + i];

		sum += SQUARE ? v * v : v;
	}
	sum = block_sum(sum);
	if (threadIdx.x == 0)
		part[blockIdx.x] = sum;
}

__global__ void sum_finish(float *to, const float *part, int n)
{
	float sum = 0.0f;

	for (int i = (int)threadIdx.x; i < n; i += (int)blockDim.x)
		sum += part[i];
	sum = block_sum(sum);
	if (threadIdx.x == 0)
		*to = sum;
}

template <bool SQUARE>
static void sum_of(struct kernels *k, float *to, const float *x, int64_t n)
{
	struct cuda_state *s = state_of(k);
	float *part = (float *)cuda_scratch(s, SUM_BLOCKS * sizeof *part);

	sum_partial<SQUARE><<<SUM_BLOCKS, 256, 0, s->stream>>>(part, x, n);
	LAUNCHED();
	sum_finish<<<1, 1024, 0, s->stream>>>(to, part, SUM_BLOCKS);
	LAUNCHED();
}

void cuda_sum(struct kernels *k, float *to, const float *x, int64_t n)
{
	sum_of<false>(k, to, x, n);
}

void cuda_sum_squares(struct kernels *k, float *to, const float *x, int64_t n)
{
	sum_of<true>(k, to, x, n);
}
