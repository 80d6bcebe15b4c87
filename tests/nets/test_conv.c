/* SPDX-License-Identifier: Apache-2.0
 * Convolutional operations of the CPU backend against the reference, at odd shapes, in f32 and
 * bf16: the same inputs go through both tables and every output is compared. */
#include "tests/test.h"

#include "kernels/kernels.h"
#include "lib/mem.h"

#include <math.h>
#include <string.h>

#define OUTPUTS 3

static struct kernels *backend[2]; /* ref, cpu */

static int open_backends(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(kernels_open("ref", 1, &backend[0], &e), &e);
	assert_ok(kernels_open("cpu", 2, &backend[1], &e), &e);
	return 0;
}

static int close_backends(void **state)
{
	(void)state;
	kernels_close(backend[0]);
	kernels_close(backend[1]);
	return 0;
}

static float at(const struct tensor *t, int64_t i)
{
	return t->type == DT_BF16 ? bf16_to_float(((uint16_t *)t->data)[i]) : ((float *)t->data)[i];
}

/* A tensor of normals times deviation plus shift; the stream is numbered by `sample`. */
static struct tensor random_tensor(enum dtype type, int64_t n, int64_t h, int64_t w, int64_t c,
				   uint64_t sample, float deviation, float shift)
{
	struct tensor t = tensor_4d(NULL, type, n, h, w, c);
	int64_t count = tensor_count(&t);
	float *x = xmalloc((size_t)count * sizeof *x);

	philox_normals(7, PHILOX_TEST, sample, 0, x, (uint64_t)count);
	t.data = xmalloc(tensor_bytes(&t));
	for (int64_t i = 0; i < count; i++) {
		float v = x[i] * deviation + shift;

		if (type == DT_BF16)
			((uint16_t *)t.data)[i] = bf16_from_float(v);
		else
			((float *)t.data)[i] = v;
	}
	xfree(x);
	return t;
}

static struct tensor vector(int64_t n, uint64_t sample, float deviation, float shift)
{
	struct tensor t = random_tensor(DT_F32, 1, 1, 1, n, sample, deviation, shift);

	return tensor_1d(t.data, DT_F32, n);
}

static struct tensor copy_of(const struct tensor *t)
{
	struct tensor copy = *t;

	copy.data = xmemdup(t->data, tensor_bytes(t));
	return copy;
}

/* The largest difference must be within `relative` of the largest value. */
static void assert_close(const char *what, const struct tensor *want, const struct tensor *got,
			 float relative)
{
	float most = 0, off = 0;

	for (int64_t i = 0; i < tensor_count(want); i++) {
		assert_true(isfinite(at(got, i)));
		most = fmaxf(most, fabsf(at(want, i)));
		off = fmaxf(off, fabsf(at(want, i) - at(got, i)));
	}
	if (off > relative * most + 1e-7f)
		fail_msg("%s: off by %g where values reach %g", what, (double)off, (double)most);
}

static float tolerance(enum dtype type) { return type == DT_BF16 ? 1.2e-2f : 2e-5f; }

static void free_all(struct tensor *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		xfree(list[i].data);
}

/* ---- convolutions */

struct conv_case {
	int64_t n, h, w, ci, co;
	int kernel, stride, before, after;
};

static const struct conv_case conv_cases[] = {
	{ 1, 1, 1, 1, 1, 1, 1, 0, 0 },	 { 2, 7, 5, 3, 16, 3, 1, 1, 1 },
	{ 3, 9, 11, 5, 7, 3, 2, 1, 1 },	 { 2, 8, 8, 16, 16, 3, 1, 1, 1 },
	{ 2, 8, 8, 16, 3, 3, 1, 1, 1 },	 { 1, 13, 6, 33, 17, 3, 1, 1, 1 },
	{ 2, 8, 8, 16, 32, 3, 2, 1, 1 }, { 2, 8, 8, 16, 32, 3, 2, 0, 1 },
	{ 2, 10, 8, 3, 8, 4, 2, 1, 1 },	 { 2, 6, 7, 8, 1, 4, 1, 1, 1 },
	{ 2, 6, 8, 5, 3, 3, 1, 1, 1 },	 { 1, 9, 9, 1, 8, 3, 1, 1, 1 },
	{ 1, 4, 4, 64, 64, 1, 1, 0, 0 }, { 2, 5, 5, 12, 24, 5, 1, 2, 2 },
};

static int64_t side(const struct conv_case *q, int64_t n)
{
	return (n + q->before + q->after - q->kernel) / q->stride + 1;
}

static void conv_case(const struct conv_case *q, enum dtype type)
{
	struct conv c = { q->stride, q->before, q->after };
	int64_t ho = side(q, q->h), wo = side(q, q->w);
	struct tensor x = random_tensor(type, q->n, q->h, q->w, q->ci, 1, 1, 0.1f);
	struct tensor f = random_tensor(type, q->co, q->kernel, q->kernel, q->ci, 2, 0.3f, 0);
	struct tensor d = random_tensor(type, q->n, ho, wo, q->co, 3, 1, 0);
	struct tensor bias = vector(q->co, 4, 1, 0), none = { 0 };
	struct tensor out[2], bare[2], dx[2], df[2], dbias[2];

	for (int b = 0; b < 2; b++) {
		const struct kernel_ops *ops = backend[b]->ops;

		out[b] = copy_of(&d);
		bare[b] = copy_of(&d);
		dx[b] = copy_of(&x);
		df[b] = random_tensor(DT_F32, q->co, q->kernel, q->kernel, q->ci, 5, 1, 0);
		dbias[b] = vector(q->co, 6, 1, 0);
		ops->conv2d(backend[b], out[b], x, f, bias, c);
		ops->conv2d(backend[b], bare[b], x, f, none, c);
		ops->conv2d_backward_data(backend[b], dx[b], d, f, c);
		ops->conv2d_backward_weight(backend[b], df[b], dbias[b], d, x, c);
		ops->conv2d_backward_weight(backend[b], df[b], none, d, x, c);
	}
	assert_close("conv2d", &out[0], &out[1], tolerance(type));
	assert_close("conv2d without bias", &bare[0], &bare[1], tolerance(type));
	assert_close("conv2d_backward_data", &dx[0], &dx[1], tolerance(type));
	assert_close("conv2d_backward_weight", &df[0], &df[1], tolerance(type));
	assert_close("conv2d_backward_weight's bias", &dbias[0], &dbias[1], tolerance(type));
	free_all((struct tensor[]){ x, f, d, bias, out[0], out[1], bare[0], bare[1], dx[0], dx[1],
				    df[0], df[1], dbias[0], dbias[1] },
		 14);
}

static void test_convolutions(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(conv_cases); i++) {
		conv_case(&conv_cases[i], DT_F32);
		conv_case(&conv_cases[i], DT_BF16);
	}
}

static void test_convolutions_without_products_of_bf16(void **state)
{
	struct kernels *own = backend[1], without = *own;

	(void)state;
	without.has_bf16 = false;
	backend[1] = &without;
	for (size_t i = 0; i < ARRAY_LEN(conv_cases); i++)
		conv_case(&conv_cases[i], DT_BF16);
	backend[1] = own;
}

/* ---- group norm */

struct norm_case {
	int64_t n, h, w, c;
	int groups;
	bool silu;
};

static const struct norm_case norm_cases[] = {
	{ 1, 1, 1, 8, 2, true },   { 2, 7, 5, 6, 3, false },	{ 3, 8, 8, 16, 8, true },
	{ 2, 3, 11, 40, 8, true }, { 1, 16, 16, 64, 8, false }, { 2, 2, 3, 528, 4, true },
	{ 5, 9, 9, 1, 1, true },
};

static void norm_case(const struct norm_case *q, enum dtype type)
{
	struct tensor x = random_tensor(type, q->n, q->h, q->w, q->c, 1, 2, 1.5f);
	struct tensor d = random_tensor(type, q->n, q->h, q->w, q->c, 2, 1, 0);
	struct tensor weight = vector(q->c, 3, 0.5f, 1), bias = vector(q->c, 4, 0.5f, 0);
	struct tensor y[2], mean[2], rstd[2], dx[2], dw[2], db[2];

	for (int b = 0; b < 2; b++) {
		const struct kernel_ops *ops = backend[b]->ops;

		y[b] = copy_of(&x);
		dx[b] = copy_of(&x);
		mean[b] = vector(q->n * q->groups, 5, 1, 0);
		rstd[b] = vector(q->n * q->groups, 5, 1, 0);
		dw[b] = vector(q->c, 6, 1, 0);
		db[b] = vector(q->c, 7, 1, 0);
		ops->group_norm(backend[b], y[b], mean[b], rstd[b], x, weight, bias, q->groups,
				1e-5f, q->silu);
		ops->group_norm_backward(backend[b], dx[b], dw[b], db[b], d, x, weight, bias,
					 mean[0], rstd[0], q->groups, q->silu);
	}
	assert_close("group_norm", &y[0], &y[1], tolerance(type));
	assert_close("group_norm's mean", &mean[0], &mean[1], 2e-5f);
	assert_close("group_norm's rstd", &rstd[0], &rstd[1], 5e-5f);
	assert_close("group_norm_backward", &dx[0], &dx[1], 3 * tolerance(type));
	assert_close("group_norm_backward's weight", &dw[0], &dw[1], 5e-5f);
	assert_close("group_norm_backward's bias", &db[0], &db[1], 5e-5f);
	free_all((struct tensor[]){ x, d, weight, bias, y[0], y[1], mean[0], mean[1], rstd[0],
				    rstd[1], dx[0], dx[1], dw[0], dw[1], db[0], db[1] },
		 16);
}

static void test_group_norm(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(norm_cases); i++) {
		norm_case(&norm_cases[i], DT_F32);
		norm_case(&norm_cases[i], DT_BF16);
	}
}

/* ---- the rest */

static void small_case(enum dtype type, int64_t n, int64_t h, int64_t w, int64_t c)
{
	struct tensor x = random_tensor(type, n, h, w, c, 1, 1, 0);
	struct tensor large = random_tensor(type, n, 2 * h, 2 * w, c, 2, 1, 0);
	struct tensor up[2], down[2], relu[2], drelu[2];

	for (int b = 0; b < 2; b++) {
		const struct kernel_ops *ops = backend[b]->ops;

		up[b] = copy_of(&large);
		down[b] = copy_of(&x);
		relu[b] = copy_of(&x);
		drelu[b] = copy_of(&x);
		ops->upsample2(backend[b], up[b], x);
		ops->upsample2_backward(backend[b], down[b], large);
		ops->leaky_relu(backend[b], relu[b], x, 0.2f);
		ops->leaky_relu_backward(backend[b], drelu[b], down[0], x, 0.2f);
	}
	assert_close("upsample2", &up[0], &up[1], 0);
	assert_close("upsample2_backward", &down[0], &down[1], tolerance(type));
	assert_close("leaky_relu", &relu[0], &relu[1], tolerance(type));
	assert_close("leaky_relu_backward", &drelu[0], &drelu[1], tolerance(type));
	free_all((struct tensor[]){ x, large, up[0], up[1], down[0], down[1], relu[0], relu[1],
				    drelu[0], drelu[1] },
		 10);
}

static void test_small(void **state)
{
	(void)state;
	for (int type = DT_F32; type <= DT_BF16; type++) {
		small_case(type, 1, 1, 1, 1);
		small_case(type, 3, 5, 7, 3);
		small_case(type, 2, 4, 4, 528);
		small_case(type, 2, 37, 29, 16);
	}
}

static void test_posterior(void **state)
{
	struct tensor moments = random_tensor(DT_F32, 3, 5, 3, 8, 1, 9, -4), none = { 0 };
	struct tensor noise = random_tensor(DT_F32, 3, 5, 3, 4, 2, 1, 0);
	struct tensor dz = random_tensor(DT_F32, 3, 5, 3, 4, 3, 1, 0), weight = vector(3, 4, 1, 0);

	(void)state;
	for (int with = 0; with < 2; with++) {
		struct tensor z[2], kl[2], d[2];

		for (int b = 0; b < 2; b++) {
			const struct kernel_ops *ops = backend[b]->ops;

			z[b] = copy_of(&dz);
			kl[b] = copy_of(&weight);
			d[b] = copy_of(&moments);
			ops->posterior(backend[b], z[b], kl[b], moments, with ? noise : none);
			ops->posterior_backward(backend[b], d[b], dz, weight, moments,
						with ? noise : none);
		}
		assert_close("posterior", &z[0], &z[1], 2e-5f);
		assert_close("posterior's KL", &kl[0], &kl[1], 2e-5f);
		assert_close("posterior_backward", &d[0], &d[1], 2e-5f);
		free_all((struct tensor[]){ z[0], z[1], kl[0], kl[1], d[0], d[1] }, 6);
	}
	free_all((struct tensor[]){ moments, noise, dz, weight }, 4);
}

static void loss_case(enum dtype type, int64_t n, int64_t E)
{
	struct tensor x = random_tensor(type, n, 1, 1, E, 1, 1, 0), none = { 0 };
	struct tensor target = random_tensor(DT_F32, n, 1, 1, E, 2, 1, 0);
	struct tensor weight = vector(n, 3, 1, 0), flat = tensor_2d(x.data, type, n, E);

	target = tensor_2d(target.data, DT_F32, n, E);
	for (int sign = -2; sign <= 1; sign++) { /* -2: L1 */
		struct tensor loss[2], dx[2];

		for (int b = 0; b < 2; b++) {
			const struct kernel_ops *ops = backend[b]->ops;

			loss[b] = copy_of(&weight);
			dx[b] = copy_of(&flat);
			if (sign == -2) {
				ops->l1_images(backend[b], loss[b], none, flat, target, none);
				ops->l1_images(backend[b], loss[b], dx[b], flat, target, weight);
			} else {
				ops->hinge_images(backend[b], loss[b], none, flat, sign, none);
				ops->hinge_images(backend[b], loss[b], dx[b], flat, sign, weight);
			}
		}
		assert_close("loss by image", &loss[0], &loss[1], 2e-5f);
		assert_close("its gradient", &dx[0], &dx[1], tolerance(type));
		free_all((struct tensor[]){ loss[0], loss[1], dx[0], dx[1] }, 4);
	}
	free_all((struct tensor[]){ x, target, weight }, 3);
}

static void test_losses(void **state)
{
	(void)state;
	for (int type = DT_F32; type <= DT_BF16; type++) {
		loss_case(type, 1, 1);
		loss_case(type, 3, 37);
		loss_case(type, 2, 3001);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_convolutions),
		cmocka_unit_test(test_convolutions_without_products_of_bf16),
		cmocka_unit_test(test_group_norm),
		cmocka_unit_test(test_small),	     cmocka_unit_test(test_posterior),
		cmocka_unit_test(test_losses),
	};

	return cmocka_run_group_tests_name("conv", tests, open_backends, close_backends);
}
