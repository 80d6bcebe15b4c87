/* SPDX-License-Identifier: Apache-2.0
 * Every layer and whole nets on the tape against finite differences: the loss is a fixed random
 * sum of the output, and the slope along a random direction of each parameter and input must be
 * the one that the gradients tell. */
#include "tests/test.h"

#include "lib/mem.h"
#include "model/layers.h"
#include "model/patchgan.h"
#include "model/vae_net.h"

#include <math.h>
#include <string.h>

#define STEP 1e-3f          /* of finite differences */
#define STEP_KINKS 1e-4f    /* of a net with kinks, which count in proportion to the step */

static struct kernels *k;

static int open_kernels(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(kernels_open("cpu", 2, &k, &e), &e);
	return 0;
}

static int close_kernels(void **state)
{
	(void)state;
	kernels_close(k);
	return 0;
}

/* A net under test: what is on the tape, and the shape of its input. */
struct net {
	const char *name;
	int (*build)(struct tape *t, int x);
	int64_t n, h, w, c;
	float step;
};

struct bench {
	struct params params;
	struct tape *tape;
	int x, y;
	float *input;             /* written before each pass: its place may serve others later */
	float *weight;            /* of the output's elements in the loss */
};

static float *normals(int64_t n, uint64_t sample)
{
	float *x = xmalloc((size_t)n * sizeof *x);

	philox_normals(11, PHILOX_TEST, sample, 0, x, (uint64_t)n);
	return x;
}

static double dot(const float *a, const float *b, int64_t n)
{
	double sum = 0;

	for (int64_t i = 0; i < n; i++)
		sum += (double)a[i] * (double)b[i];
	return sum;
}

static double loss(struct bench *b)
{
	struct tensor x = tape_value(b->tape, b->x), y = tape_value(b->tape, b->y);

	memcpy(x.data, b->input, tensor_bytes(&x));
	tape_forward(b->tape);
	return dot(b->weight, y.data, tensor_count(&y));
}

/* Moves x by `by` times direction. */
static void shift(float *x, const float *direction, int64_t n, float by)
{
	for (int64_t i = 0; i < n; i++)
		x[i] += by * direction[i];
}

static void check_slope(struct bench *b, const struct net *net, const char *what, float *x,
			const float *gradient, int64_t n, uint64_t sample)
{
	float *direction = normals(n, sample), *kept = xmemdup(x, (size_t)n * sizeof *x);
	double size = sqrt(dot(gradient, gradient, n)), slope, up, down;

	shift(x, direction, n, net->step);
	up = loss(b);
	memcpy(x, kept, (size_t)n * sizeof *x);
	shift(x, direction, n, -net->step);
	down = loss(b);
	memcpy(x, kept, (size_t)n * sizeof *x);
	slope = (up - down) / (2 * (double)net->step);
	if (!(fabs(slope - dot(gradient, direction, n)) <=
	      (net->step < STEP ? 0.03 : 0.01) * size + 0.01))
		fail_msg("%s: %s: slope %g, the gradient (of size %g) says %g", net->name, what,
			 slope, size, dot(gradient, direction, n));
	xfree(kept);
	xfree(direction);
}

static void build(struct bench *b, const struct net *net)
{
	struct err e = ERR_INIT;
	struct tensor x, y;

	params_init(&b->params, k, DT_F32);
	b->tape = tape_new(&b->params);
	b->x = tape_input(b->tape, DT_F32, net->n, net->h, net->w, net->c, true);
	b->y = net->build(b->tape, b->x);
	tape_output(b->tape, b->y);
	assert_ok(tape_plan(b->tape, true, &e), &e);
	params_draw(&b->params, 3);
	for (int i = 0; i < b->params.count; i++) {
		struct tensor p = params_value(&b->params, i);
		float *noise = normals(p.dim[0], 500 + (uint64_t)i);

		if (p.rank == 1)         /* biases and norms away from 0 and 1 */
			shift(p.data, noise, p.dim[0], 0.2f);
		xfree(noise);
	}
	x = tape_value(b->tape, b->x);
	y = tape_value(b->tape, b->y);
	b->input = normals(tensor_count(&x), 1);
	b->weight = normals(tensor_count(&y), 2);
}

static void check_net(const struct net *net)
{
	struct bench b;
	struct tensor x, y, dx, dy;
	float *input_gradient, *gradient;

	build(&b, net);
	x = tape_value(b.tape, b.x);
	y = tape_value(b.tape, b.y);
	loss(&b);
	dy = tape_gradient(b.tape, b.y);
	memcpy(dy.data, b.weight, tensor_bytes(&y));
	params_zero_gradients(&b.params);
	tape_backward(b.tape, TAPE_PARAMETERS | TAPE_INPUTS);
	dx = tape_gradient(b.tape, b.x);
	input_gradient = xmemdup(dx.data, tensor_bytes(&dx));
	gradient = xmemdup(b.params.grad, (size_t)b.params.total * sizeof *gradient);
	check_slope(&b, net, "input", b.input, input_gradient, tensor_count(&x), 900);
	for (int i = 0; i < b.params.count; i++) {
		const struct param *p = &b.params.list[i];

		check_slope(&b, net, p->name, b.params.master + p->at, gradient + p->at,
			    p->count, 1000 + (uint64_t)i);
	}
	xfree(gradient);
	xfree(input_gradient);
	xfree(b.weight);
	xfree(b.input);
	tape_free(b.tape);
	params_release(&b.params);
}

/* ---- nets */

static int net_conv(struct tape *t, int x) { return layer_conv(t, x, "a", 5, 3, 1); }
static int net_conv_down(struct tape *t, int x) { return layer_conv(t, x, "a", 6, 3, 2); }
static int net_conv_even(struct tape *t, int x) { return layer_conv_even(t, x, "a", 4, 4, 2); }
static int net_norm(struct tape *t, int x) { return layer_norm_silu(t, x, "a", 2, false); }
static int net_norm_silu(struct tape *t, int x) { return layer_norm_silu(t, x, "a", 4, true); }
static int net_residual(struct tape *t, int x) { return layer_residual(t, x, "a", 2); }
static int net_up(struct tape *t, int x) { return layer_up(t, x, "a", 3); }
static int net_relu(struct tape *t, int x) { return layer_leaky_relu(t, x, 0.2f); }

/* Two blocks, then a sum of values that many others read: gradients are added, shared and
 * copied. */
static int net_tangle(struct tape *t, int x)
{
	int a = layer_residual(t, x, "a", 2), b = layer_residual(t, a, "b", 2);
	int sum = layer_add(t, layer_add(t, a, b), x);

	return layer_add(t, layer_conv(t, sum, "c", 8, 3, 1), layer_add(t, sum, a));
}

static int net_double(struct tape *t, int x)
{
	int a = layer_conv(t, x, "a", 4, 1, 1);

	return layer_add(t, a, a);
}

static int net_vae(struct tape *t, int x)
{
	const struct vae_config c = { 2, { 8, 16 }, 1, 3, 4 };
	int noise = tape_input(t, DT_F32, 2, 2, 3, 3, false), weight = tape_input_1d(t, 2), kl, z;

	z = layer_posterior(t, vae_net_encode(t, x, &c), noise, weight, &kl);
	return vae_net_decode(t, z, &c);
}

static int net_discriminator(struct tape *t, int x)
{
	return patchgan_layers(t, x, &(struct patchgan_config){ 4, 2, 2 });
}

static const struct net nets[] = {
	{ "conv", net_conv, 2, 5, 4, 3, STEP },
	{ "conv of stride 2", net_conv_down, 2, 7, 6, 4, STEP },
	{ "even conv", net_conv_even, 2, 8, 6, 3, STEP },
	{ "group norm", net_norm, 2, 5, 3, 6, STEP },
	{ "group norm with SiLU", net_norm_silu, 3, 4, 4, 8, STEP },
	{ "residual block", net_residual, 2, 4, 5, 4, STEP },
	{ "up", net_up, 2, 3, 4, 5, STEP },
	{ "leaky ReLU", net_relu, 2, 3, 3, 2, STEP_KINKS },
	{ "tangle", net_tangle, 2, 4, 4, 8, STEP },
	{ "double", net_double, 1, 3, 3, 2, STEP },
	{ "autoencoder", net_vae, 2, 8, 12, 3, STEP },
	{ "discriminator", net_discriminator, 2, 20, 16, 3, STEP_KINKS },
};

static void test_gradients(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(nets); i++)
		check_net(&nets[i]);
}

/* Training keeps what an inference-only plan may overwrite: the outputs are the same. */
static void test_plans_agree(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(nets); i++) {
		const struct net *net = &nets[i];
		struct tensor from, to;
		struct bench b;
		struct tape *t;
		int x, y;

		build(&b, net);
		t = tape_new(&b.params);
		x = tape_input(t, DT_F32, net->n, net->h, net->w, net->c, false);
		y = net->build(t, x);
		tape_output(t, y);
		assert_ok(tape_plan(t, false, &e), &e);
		assert_true(tape_bytes(t) < tape_bytes(b.tape));
		to = tape_value(t, x);
		memcpy(to.data, b.input, tensor_bytes(&to));
		loss(&b);
		tape_forward(t);
		from = tape_value(b.tape, b.y);
		to = tape_value(t, y);
		assert_memory_equal(from.data, to.data, tensor_bytes(&from));
		tape_free(t);
		xfree(b.weight);
		xfree(b.input);
		tape_free(b.tape);
		params_release(&b.params);
	}
}

/* A backward pass for the inputs alone leaves the parameters' gradients as they are, and the
 * same forward pass serves a second one. */
static void test_frozen(void **state)
{
	struct tensor y, dy, dx;
	struct bench b;
	float *first;

	(void)state;
	build(&b, &nets[ARRAY_LEN(nets) - 1]);
	loss(&b);
	params_zero_gradients(&b.params);
	y = tape_value(b.tape, b.y);
	dy = tape_gradient(b.tape, b.y);
	memcpy(dy.data, b.weight, tensor_bytes(&y));
	tape_backward(b.tape, TAPE_INPUTS);
	for (int64_t i = 0; i < b.params.total; i++)
		assert_true(b.params.grad[i] == 0);
	dx = tape_gradient(b.tape, b.x);
	first = xmemdup(dx.data, tensor_bytes(&dx));
	memcpy(dy.data, b.weight, tensor_bytes(&y));
	tape_backward(b.tape, TAPE_INPUTS | TAPE_PARAMETERS);
	assert_memory_equal(first, dx.data, tensor_bytes(&dx));
	assert_true(params_gradient_norm2(&b.params) > 0);
	xfree(first);
	xfree(b.weight);
	xfree(b.input);
	tape_free(b.tape);
	params_release(&b.params);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_gradients), cmocka_unit_test(test_plans_agree),
		cmocka_unit_test(test_frozen),
	};

	return cmocka_run_group_tests_name("tape", tests, open_kernels, close_kernels);
}
