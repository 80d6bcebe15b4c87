/* SPDX-License-Identifier: Apache-2.0
 * AdamW over all parameters of a net in one pass, clipped by a norm that never leaves the device.
 * Four parameters a thread; memory sets the pace (30 bytes a parameter). */
#include "kernels/cuda/common.cuh"

struct adamw_terms {
	float scale, correct1, correct2;
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

template <bool WIDE>
__global__ void adamw_all(struct adamw a, float correct1, float correct2)
{
	struct adamw_terms t = { a.grad_scale, correct1, correct2 };
	int skipped = a.skipped ? *a.skipped : 0;

	if (a.grad_norm2 && !isfinite(*a.grad_norm2)) {
		if (thread_index() == 0 && a.skipped)
			*a.skipped = skipped + 1; /* nobody else reads it in this step */
		return;
	}
	if (skipped) {
		t.correct1 = correction(a.beta1, a.step - skipped);
		t.correct2 = correction(a.beta2, a.step - skipped);
	}
	if (a.clip > 0.0f && a.grad_norm2) {
		float norm = sqrtf(*a.grad_norm2) * a.grad_scale;

		if (norm > a.clip)
			t.scale *= a.clip / norm;
	}
	EACH (i, WIDE ? a.n / 4 : a.n) {
		if (!WIDE) {
			a.master[i] = adamw_one(a, t, i < a.decayed, a.master[i], a.grad[i], a.m[i],
						a.v[i]);
			if (a.average)
				a.average[i] = towards(a.average[i], a.master[i], a.average_weight);
			if (a.resident)
				put((bf16 *)a.resident + i, a.master[i]);
			continue;
		}
		float4 p = ((float4 *)a.master)[i], g = ((const float4 *)a.grad)[i];
		float4 m = ((float4 *)a.m)[i], v = ((float4 *)a.v)[i];

		p.x = adamw_one(a, t, 4 * i < a.decayed, p.x, g.x, m.x, v.x);
		p.y = adamw_one(a, t, 4 * i + 1 < a.decayed, p.y, g.y, m.y, v.y);
		p.z = adamw_one(a, t, 4 * i + 2 < a.decayed, p.z, g.z, m.z, v.z);
		p.w = adamw_one(a, t, 4 * i + 3 < a.decayed, p.w, g.w, m.w, v.w);
		((float4 *)a.master)[i] = p;
		((float4 *)a.m)[i] = m;
		((float4 *)a.v)[i] = v;
		if (a.average) {
			float4 e = ((float4 *)a.average)[i];

			e.x = towards(e.x, p.x, a.average_weight);
			e.y = towards(e.y, p.y, a.average_weight);
			e.z = towards(e.z, p.z, a.average_weight);
			e.w = towards(e.w, p.w, a.average_weight);
			((float4 *)a.average)[i] = e;
		}
		if (a.resident)
			((uint2 *)a.resident)[i] =
				make_uint2(pack_bf16(p.x, p.y), pack_bf16(p.z, p.w));
	}
}

void cuda_adamw(struct kernels *k, const struct adamw *a)
{
	struct cuda_state *s = state_of(k);
	float correct1 = (float)(1.0 / (1.0 - pow((double)a->beta1, (double)a->step)));
	float correct2 = (float)(1.0 / (1.0 - pow((double)a->beta2, (double)a->step)));
	bool wide = a->n % 4 == 0 && aligned16(a->master) && aligned16(a->grad) &&
		    aligned16(a->m) && aligned16(a->v) && aligned16(a->average) &&
		    ((uintptr_t)a->resident & 7) == 0;

	CHECK(a->master && a->grad && a->m && a->v && a->step >= 1 && a->decayed <= a->n);
	CHECK(a->clip == 0.0f || a->grad_norm2);
	if (!a->n)
		return;
	if (wide)
		adamw_all<true>
			<<<grid_for(s, a->n / 4, 256), 256, 0, s->stream>>>(*a, correct1, correct2);
	else
		adamw_all<false>
			<<<grid_for(s, a->n, 256), 256, 0, s->stream>>>(*a, correct1, correct2);
	LAUNCHED();
}
