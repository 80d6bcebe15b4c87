/* SPDX-License-Identifier: Apache-2.0
 * AdamW over all parameters of a net in one pass, clipped by a norm that never leaves the device.
 * Four parameters a thread; memory sets the pace (30 bytes a parameter, 22 with bf16 moments). */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/philox.cuh"

struct adamw_terms {
	float scale, correct1, correct2;
	uint32_t key; /* of the chance that rounds */
	int64_t updates;
};

static __device__ __forceinline__ float adamw_one(const struct adamw &a, struct adamw_terms t,
						  bool decays, float p, float g, float &m, float &v)
{
	g *= t.scale;
	m = a.beta1 * m + (1.0f - a.beta1) * g;
	v = a.beta2 * v + (1.0f - a.beta2) * g * g;
	return p - a.lr * (m * t.correct1 / (sqrtf(v * t.correct2) + a.eps) +
			   (decays ? a.weight_decay * p : 0.0f));
}

/* The running average, one value on. */
static __device__ __forceinline__ float towards(float average, float p, float weight)
{
	return average + weight * (p - average);
}

/* After steps that were left out the corrections are those of fewer updates. */
static __device__ __forceinline__ float correction(float beta, int64_t updates)
{
	return (float)(1.0 / (1.0 - pow((double)beta, (double)updates)));
}

/* The random words of four parameters. */
static __device__ __forceinline__ void chance_of(const struct adamw &a, struct adamw_terms t,
						 int64_t four, uint32_t word[4])
{
	word[0] = (uint32_t)four;
	word[1] = (uint32_t)(four >> 32);
	word[2] = (uint32_t)t.updates;
	word[3] = (uint32_t)(t.updates >> 32);
	philox(word, (uint32_t)a.seed, t.key);
}

/* See bf16_by_chance of kernels.h. */
static __device__ __forceinline__ uint32_t by_chance(float x, uint32_t chance)
{
	uint32_t u = __float_as_uint(x);

	if ((u & 0x7f800000u) == 0x7f800000u)
		return pack_bf16(x, 0.0f);
	return (u + chance) >> 16;
}

static __device__ __forceinline__ void put_by_chance(bf16 *p, float x, uint32_t chance)
{
	*(uint16_t *)p = (uint16_t)by_chance(x, chance);
}
static __device__ __forceinline__ void put_by_chance(float *p, float x, uint32_t)
{
	*p = x;
}

static __device__ __forceinline__ void get_four(const float *p, float x[4])
{
	float4 f = *(const float4 *)p;

	x[0] = f.x;
	x[1] = f.y;
	x[2] = f.z;
	x[3] = f.w;
}
static __device__ __forceinline__ void get_four(const bf16 *p, float x[4])
{
	uint2 w = *(const uint2 *)p;
	float2 a = unpack_bf16(w.x), b = unpack_bf16(w.y);

	x[0] = a.x;
	x[1] = a.y;
	x[2] = b.x;
	x[3] = b.y;
}
static __device__ __forceinline__ void put_four(float *p, const float x[4])
{
	*(float4 *)p = make_float4(x[0], x[1], x[2], x[3]);
}
static __device__ __forceinline__ void put_four(bf16 *p, const float x[4])
{
	*(uint2 *)p = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
}

/* Rounded by the low halves of the words, or the high ones. */
static __device__ __forceinline__ void put_four_by_chance(float *p, const float x[4],
							   const uint32_t[4], int)
{
	put_four(p, x);
}
static __device__ __forceinline__ void put_four_by_chance(bf16 *p, const float x[4],
							   const uint32_t word[4], int shift)
{
	uint32_t y[4];

#pragma unroll
	for (int j = 0; j < 4; j++)
		y[j] = by_chance(x[j], word[j] >> shift & 0xffff);
	*(uint2 *)p = make_uint2(y[0] | y[1] << 16, y[2] | y[3] << 16);
}

/* Parameters 4 i to 4 i + 3. */
template <typename M, bool CHANCE>
static __device__ __forceinline__ void adamw_four(const struct adamw &a, struct adamw_terms t,
						  int64_t i)
{
	float p[4], g[4], m[4], v[4];
	uint32_t word[4];

	get_four(a.master + 4 * i, p);
	get_four(a.grad + 4 * i, g);
	get_four((const M *)a.m + 4 * i, m);
	get_four((const M *)a.v + 4 * i, v);
#pragma unroll
	for (int j = 0; j < 4; j++)
		p[j] = adamw_one(a, t, 4 * i + j < a.decayed, p[j], g[j], m[j], v[j]);
	put_four(a.master + 4 * i, p);
	if (CHANCE) {
		chance_of(a, t, i, word);
		put_four_by_chance((M *)a.m + 4 * i, m, word, 0);
		put_four_by_chance((M *)a.v + 4 * i, v, word, 16);
	} else {
		put_four((M *)a.m + 4 * i, m);
		put_four((M *)a.v + 4 * i, v);
	}
	if (a.average) {
		float e[4];

		get_four(a.average + 4 * i, e);
#pragma unroll
		for (int j = 0; j < 4; j++)
			e[j] = towards(e[j], p[j], a.average_weight);
		put_four(a.average + 4 * i, e);
	}
	if (a.resident)
		put_four((bf16 *)a.resident + 4 * i, p);
}

/* One parameter, whatever the alignment. */
template <typename M, bool CHANCE>
static __device__ void adamw_alone(const struct adamw &a, struct adamw_terms t, int64_t i)
{
	float m = to_float(((const M *)a.m)[i]), v = to_float(((const M *)a.v)[i]);
	float p = adamw_one(a, t, i < a.decayed, a.master[i], a.grad[i], m, v);
	uint32_t word[4];

	a.master[i] = p;
	if (CHANCE) {
		chance_of(a, t, i / 4, word);
		put_by_chance((M *)a.m + i, m, word[i % 4] & 0xffff);
		put_by_chance((M *)a.v + i, v, word[i % 4] >> 16);
	} else {
		put((M *)a.m + i, m);
		put((M *)a.v + i, v);
	}
	if (a.average)
		a.average[i] = towards(a.average[i], p, a.average_weight);
	if (a.resident)
		put((bf16 *)a.resident + i, p);
}

template <bool WIDE, typename M, bool CHANCE>
__global__ void adamw_all(struct adamw a, struct adamw_terms t)
{
	int skipped = a.skipped ? *a.skipped : 0;

	if (a.grad_norm2 && !isfinite(*a.grad_norm2)) {
		if (thread_index() == 0 && a.skipped)
			*a.skipped = skipped + 1; /* nobody else reads it in this step */
		return;
	}
	if (skipped) {
		t.updates -= skipped;
		t.correct1 = correction(a.beta1, t.updates);
		t.correct2 = correction(a.beta2, t.updates);
	}
	if (a.clip > 0.0f && a.grad_norm2) {
		float norm = sqrtf(*a.grad_norm2) * a.grad_scale;

		if (norm > a.clip)
			t.scale *= a.clip / norm;
	}
	EACH (i, WIDE ? a.n / 4 : a.n) {
		if (WIDE)
			adamw_four<M, CHANCE>(a, t, i);
		else
			adamw_alone<M, CHANCE>(a, t, i);
	}
}

template <typename M, bool CHANCE>
static void launch(struct cuda_state *s, const struct adamw *a, const struct adamw_terms *t)
{
	bool wide = a->n % 4 == 0 && aligned16(a->master) && aligned16(a->grad) &&
		    aligned16(a->m) && aligned16(a->v) && aligned16(a->average) &&
		    aligned16(a->resident);
	unsigned blocks = grid_for(s, wide ? a->n / 4 : a->n, 256);

	if (wide)
		adamw_all<true, M, CHANCE><<<blocks, 256, 0, s->stream>>>(*a, *t);
	else
		adamw_all<false, M, CHANCE><<<blocks, 256, 0, s->stream>>>(*a, *t);
	LAUNCHED();
}

void cuda_adamw(struct kernels *k, const struct adamw *a)
{
	struct cuda_state *s = state_of(k);
	struct adamw_terms t = { a->grad_scale,
				 (float)(1.0 / (1.0 - pow((double)a->beta1, (double)a->step))),
				 (float)(1.0 / (1.0 - pow((double)a->beta2, (double)a->step))),
				 philox_key(a->seed, PHILOX_ROUND), a->step };

	CHECK(a->master && a->grad && a->m && a->v && a->step >= 1 && a->decayed <= a->n);
	CHECK(a->clip == 0.0f || a->grad_norm2);
	CHECK(a->moments == DT_F32 || a->moments == DT_BF16);
	if (!a->n)
		return;
	if (a->moments == DT_F32)
		launch<float, false>(s, a, &t);
	else if (a->stochastic)
		launch<bf16, true>(s, a, &t);
	else
		launch<bf16, false>(s, a, &t);
}
