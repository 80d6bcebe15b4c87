/* SPDX-License-Identifier: Apache-2.0
 * Reference of the elementwise operations and sums of kernels.def. */
#include "config.h"
#include "kernels/ref/ref.h"

#include <math.h>

static int64_t same_count(const struct tensor *a, const struct tensor *b)
{
	int64_t n = tensor_count(a);

	CHECK(n == tensor_count(b) && ref_is_act(a) && ref_is_act(b));
	return n;
}

void ref_convert(struct kernels *k, struct tensor to, struct tensor from)
{
	int64_t n = same_count(&to, &from);

	(void)k;
	for (int64_t i = 0; i < n; i++)
		ref_put(&to, i, ref_get(&from, i));
}

void ref_fill(struct kernels *k, struct tensor to, float value)
{
	int64_t n = tensor_count(&to);

	(void)k;
	CHECK(ref_is_act(&to));
	for (int64_t i = 0; i < n; i++)
		ref_put(&to, i, value);
}

void ref_add(struct kernels *k, struct tensor to, struct tensor a, struct tensor b)
{
	int64_t n = same_count(&to, &a);

	(void)k;
	same_count(&a, &b);
	for (int64_t i = 0; i < n; i++)
		ref_put(&to, i, (double)ref_get(&a, i) + ref_get(&b, i));
}

void ref_scale(struct kernels *k, struct tensor to, float by)
{
	int64_t n = same_count(&to, &to);

	(void)k;
	for (int64_t i = 0; i < n; i++)
		ref_put(&to, i, (double)ref_get(&to, i) * by);
}

void ref_lerp(struct kernels *k, struct tensor to, struct tensor x, float w)
{
	int64_t n = same_count(&to, &x);

	(void)k;
	CHECK(to.type == DT_F32 && x.type == DT_F32);
	for (int64_t i = 0; i < n; i++)
		ref_put(&to, i, ref_get(&to, i) + (double)w * (ref_get(&x, i) - ref_get(&to, i)));
}

static double sigmoid(double x)
{
	return 1 / (1 + exp(-x));
}

void ref_silu(struct kernels *k, struct tensor to, struct tensor x)
{
	int64_t n = same_count(&to, &x);

	(void)k;
	for (int64_t i = 0; i < n; i++)
		ref_put(&to, i, ref_get(&x, i) * sigmoid(ref_get(&x, i)));
}

void ref_silu_backward(struct kernels *k, struct tensor dx, struct tensor dy, struct tensor x)
{
	int64_t n = same_count(&dx, &x);

	(void)k;
	same_count(&dy, &x);
	for (int64_t i = 0; i < n; i++) {
		double s = sigmoid(ref_get(&x, i));

		ref_put(&dx, i, ref_get(&dy, i) * s * (1 + ref_get(&x, i) * (1 - s)));
	}
}

void ref_sum(struct kernels *k, float *to, const float *x, int64_t n)
{
	double sum = 0;

	(void)k;
	for (int64_t i = 0; i < n; i++)
		sum += x[i];
	*to = (float)sum;
}

void ref_sum_squares(struct kernels *k, float *to, const float *x, int64_t n)
{
	double sum = 0;

	(void)k;
	for (int64_t i = 0; i < n; i++)
		sum += (double)x[i] * x[i];
	*to = (float)sum;
}
