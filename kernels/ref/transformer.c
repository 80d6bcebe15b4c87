/* SPDX-License-Identifier: Apache-2.0
 * Reference of norm, rotary positions, attention and SwiGLU of kernels.def, after the formulas,
 * sums in double. */
#include "config.h"
#include "kernels/ref/ref.h"


#include <math.h>

static void check_norm(const struct tensor *x, const struct tensor *weight,
		       const struct tensor *rstd)
{
	CHECK(x->rank == 2 && weight->type == DT_F32 && tensor_count(weight) == x->dim[1]);
	CHECK(rstd->type == DT_F32 && tensor_count(rstd) == x->dim[0]);
}

/* RMSNorm (Zhang & Sennrich 2019): y = x w / sqrt(mean(x^2) + eps). */
void ref_rmsnorm(struct kernels *k, struct tensor out, struct tensor rstd, struct tensor x,
		 struct tensor weight, float eps)
{
	int64_t d = x.dim[1];

	(void)k;
	check_norm(&x, &weight, &rstd);
	for (int64_t i = 0; i < x.dim[0]; i++) {
		double square = 0, r;

		for (int64_t c = 0; c < d; c++)
			square += (double)ref_get(&x, i * d + c) * ref_get(&x, i * d + c);
		r = 1 / sqrt(square / d + eps);
		ref_put(&rstd, i, r);
		for (int64_t c = 0; c < d; c++)
			ref_put(&out, i * d + c, ref_get(&x, i * d + c) * r * ref_get(&weight, c));
	}
}

void ref_add_rmsnorm(struct kernels *k, struct tensor out, struct tensor rstd, struct tensor sum,
		     struct tensor x, struct tensor delta, struct tensor weight, float eps,
		     struct scaled also)
{
	ref_add(k, sum, x, delta);
	ref_rmsnorm(k, out, rstd, sum, weight, eps);
	ref_also(k, also, out);
}

/* dx_c = r (w_c g_c - x_c r^2 mean(w g x)) of each row. */
void ref_rmsnorm_backward(struct kernels *k, struct tensor dx, struct tensor dweight,
			  struct tensor dout, struct tensor x, struct tensor weight,
			  struct tensor rstd, struct tensor dresidual, struct scaled also)
{
	int64_t d = x.dim[1];

	check_norm(&x, &weight, &rstd);
	CHECK(dweight.type == DT_F32 && tensor_count(&dweight) == d);
	for (int64_t i = 0; i < x.dim[0]; i++) {
		double r = ref_get(&rstd, i), dot = 0;

		for (int64_t c = 0; c < d; c++)
			dot += (double)ref_get(&weight, c) * ref_get(&dout, i * d + c) *
				ref_get(&x, i * d + c);
		for (int64_t c = 0; c < d; c++) {
			double g = ref_get(&dout, i * d + c), value = ref_get(&x, i * d + c);
			double grad = r * (ref_get(&weight, c) * g - value * r * r * dot / d);

			if (dresidual.data)
				grad += ref_get(&dresidual, i * d + c);
			ref_put(&dx, i * d + c, grad);
			ref_put(&dweight, c, ref_get(&dweight, c) + g * value * r);
		}
	}
	ref_also(k, also, dx);
}

/* RoPE (Su et al. 2021) with pairs (i, i + hd/2). */
void ref_rope(struct kernels *k, struct tensor qkv, int heads, struct tensor cosine,
	      struct tensor sine, struct tensor position, bool inverse)
{
	int64_t rows = tensor_count(&position), half = cosine.dim[1], hd = 2 * half;
	double sign = inverse ? -1 : 1;

	(void)k;
	CHECK(tensor_count(&qkv) == rows * 3 * heads * hd && position.type == DT_I32);
	for (int64_t n = 0; n < rows; n++) {
		int64_t p = ref_index(&position, n);

		CHECK(p >= 0 && p < cosine.dim[0]);
		for (int64_t h = 0; h < 2 * heads; h++)
			for (int64_t i = 0; i < half; i++) {
				int64_t at = (n * 3 * heads + h) * hd + i;
				double a = ref_get(&qkv, at), b = ref_get(&qkv, at + half);
				double c = ref_get(&cosine, p * half + i);
				double s = sign * ref_get(&sine, p * half + i);

				ref_put(&qkv, at, a * c - b * s);
				ref_put(&qkv, at + half, b * c + a * s);
			}
	}
}

void ref_swiglu(struct kernels *k, struct tensor out, struct tensor gate_up, struct scaled also)
{
	int64_t width = out.dim[1];

	CHECK(gate_up.dim[0] == out.dim[0] && gate_up.dim[1] == 2 * width);
	for (int64_t i = 0; i < out.dim[0]; i++)
		for (int64_t c = 0; c < width; c++) {
			double g = ref_get(&gate_up, i * 2 * width + c);
			double u = ref_get(&gate_up, i * 2 * width + width + c);

			ref_put(&out, i * width + c, g / (1 + exp(-g)) * u);
		}
	ref_also(k, also, out);
}

void ref_swiglu_backward(struct kernels *k, struct tensor dgate_up, struct tensor dout,
			 struct tensor gate_up, struct scaled also)
{
	int64_t width = dout.dim[1];

	CHECK(gate_up.dim[0] == dout.dim[0] && gate_up.dim[1] == 2 * width);
	for (int64_t i = 0; i < dout.dim[0]; i++)
		for (int64_t c = 0; c < width; c++) {
			int64_t at = i * 2 * width + c;
			double g = ref_get(&gate_up, at), u = ref_get(&gate_up, at + width);
			double dy = ref_get(&dout, i * width + c), s = 1 / (1 + exp(-g));

			ref_put(&dgate_up, at, dy * u * s * (1 + g * (1 - s)));
			ref_put(&dgate_up, at + width, dy * g * s);
		}
	ref_also(k, also, dgate_up);
}
