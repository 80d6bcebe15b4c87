/* SPDX-License-Identifier: Apache-2.0
 * Finite differences: every backward operation of the reference against its forward one. With L the
 * sum of dout * out in double, dL/dx of each element of each input is taken as a central difference
 * at two steps, whose combination is of fourth order, and compared with what the backward operation
 * says. */
#include "config.h"
#include "lib/mem.h"
#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>

#define TENSORS 4
#define STEP 0.04
#define NONE tensor_1d(NULL, DT_F32, 0)

/* A differentiable operation at one point. */
struct grads {
	struct kernels *k;
	struct tensor in[TENSORS], grad[TENSORS]; /* what is differentiated by */
	struct tensor out[TENSORS], dout[TENSORS];
	struct tensor fixed[TENSORS]; /* targets, noise, what forward leaves to backward */
	int inputs, outputs, held;
	int variant; /* the case's own */
	double kink; /* inputs stay away from +-kink; negative: none */
	uint64_t drawn;
	void *memory[64];
	int kept;
};

struct grad_case {
	const char *name;
	void (*make)(struct grads *g); /* adds inputs, outputs and fixed tensors */
	void (*forward)(struct grads *g);
	void (*backward)(struct grads *g); /* grad is zero before */
	int variant;
	double kink;
};

#define OPS (g->k->ops)

static struct tensor make(struct grads *g, int rank, const int64_t *dim, bool random)
{
	struct tensor t = { NULL, DT_F32, rank, { 1, 1, 1, 1 } };

	for (int i = 0; i < rank; i++)
		t.dim[i] = dim[i];
	CHECK(g->kept < (int)ARRAY_LEN(g->memory));
	t.data = g->memory[g->kept++] = OPS->alloc(g->k, tensor_bytes(&t));
	if (random)
		philox_normals(5, PHILOX_TEST, g->drawn++, 0, t.data, (uint64_t)tensor_count(&t));
	return t;
}

#define DIMS(...)                                                                                  \
	(int)(sizeof((int64_t[]){ __VA_ARGS__ }) / sizeof(int64_t)), (int64_t[])                   \
	{                                                                                          \
		__VA_ARGS__                                                                        \
	}

static void input(struct grads *g, int rank, const int64_t *dim)
{
	struct tensor t = make(g, rank, dim, true);
	float *x = t.data;

	for (int64_t i = 0; g->kink >= 0 && i < tensor_count(&t); i++)
		if (fabs(fabs((double)x[i]) - g->kink) < 0.15)
			x[i] += x[i] < 0 ? -0.3f : 0.3f;
	g->grad[g->inputs] = make(g, rank, dim, false);
	g->in[g->inputs++] = t;
}

static void output(struct grads *g, int rank, const int64_t *dim)
{
	g->dout[g->outputs] = make(g, rank, dim, true);
	g->out[g->outputs++] = make(g, rank, dim, false);
}

static void hold(struct grads *g, int rank, const int64_t *dim)
{
	g->fixed[g->held++] = make(g, rank, dim, true);
}

static void hold_i32(struct grads *g, int rank, const int64_t *dim, const int32_t *values)
{
	struct tensor t = make(g, rank, dim, false);

	t.type = DT_I32;
	OPS->upload(g->k, t.data, values, tensor_bytes(&t));
	g->fixed[g->held++] = t;
}

/* ---- elementwise and rows */

static void silu_make(struct grads *g)
{
	input(g, DIMS(3, 5));
	output(g, DIMS(3, 5));
}

static void silu_forward(struct grads *g)
{
	OPS->silu(g->k, g->out[0], g->in[0]);
}

static void silu_backward(struct grads *g)
{
	OPS->silu_backward(g->k, g->grad[0], g->dout[0], g->in[0]);
}

/* y = x W^T + b and what linear layers do on the way back */
static void linear_make(struct grads *g)
{
	input(g, DIMS(4, 3));
	input(g, DIMS(5, 3));
	input(g, DIMS(5));
	output(g, DIMS(4, 5));
}

static void linear_forward(struct grads *g)
{
	OPS->matmul(g->k, g->out[0], g->in[0], false, g->in[1], true, g->in[2], 0);
}

static void linear_backward(struct grads *g)
{
	OPS->matmul(g->k, g->grad[0], g->dout[0], false, g->in[1], false, NONE, 0);
	OPS->matmul(g->k, g->grad[1], g->dout[0], true, g->in[0], false, NONE, 1);
	OPS->bias_backward(g->k, g->grad[2], g->dout[0]);
}

static void embed_make(struct grads *g)
{
	input(g, DIMS(4, 3));
	output(g, DIMS(6, 3));
	hold_i32(g, DIMS(6), (int32_t[]){ 1, -1, 3, 1, 0, 1 });
}

static void embed_forward(struct grads *g)
{
	OPS->embed(g->k, g->out[0], g->in[0], g->fixed[0]);
}

static void embed_backward(struct grads *g)
{
	OPS->embed_backward(g->k, g->grad[0], g->dout[0], g->fixed[0]);
}

static void gather_forward(struct grads *g)
{
	OPS->gather_rows(g->k, g->out[0], g->in[0], g->fixed[0]);
}

static void gather_backward(struct grads *g)
{
	OPS->scatter_add_rows(g->k, g->grad[0], g->dout[0], g->fixed[0]);
}

static void scatter_make(struct grads *g)
{
	input(g, DIMS(3, 4));
	output(g, DIMS(5, 4));
	hold_i32(g, DIMS(3), (int32_t[]){ 4, -1, 0 });
}

static void scatter_forward(struct grads *g)
{
	OPS->scatter_rows(g->k, g->out[0], g->in[0], g->fixed[0]);
}

static void scatter_backward(struct grads *g)
{
	OPS->gather_rows(g->k, g->grad[0], g->dout[0], g->fixed[0]);
}

static void per_image_make(struct grads *g)
{
	input(g, DIMS(2, 3));
	output(g, DIMS(8, 3));
}

static void per_image_forward(struct grads *g)
{
	OPS->fill(g->k, g->out[0], 0.5f);
	OPS->add_per_image(g->k, g->out[0], g->in[0]);
}

static void per_image_backward(struct grads *g)
{
	OPS->add_per_image_backward(g->k, g->grad[0], g->dout[0]);
}

/* ---- transformer */

static void norm_make(struct grads *g)
{
	input(g, DIMS(3, 6));
	input(g, DIMS(6));
	output(g, DIMS(3, 6));
	hold(g, DIMS(3));
}

static void norm_forward(struct grads *g)
{
	OPS->rmsnorm(g->k, g->out[0], g->fixed[0], g->in[0], g->in[1], 1e-5f);
}

static void norm_backward(struct grads *g)
{
	OPS->rmsnorm_backward(g->k, g->grad[0], g->grad[1], g->dout[0], g->in[0], g->in[1],
			      g->fixed[0], NONE, NOT_SCALED);
}

/* sum = x + delta; out = norm(sum), and sum goes on by itself */
static void add_norm_make(struct grads *g)
{
	norm_make(g);
	output(g, DIMS(3, 6));
	hold(g, DIMS(3, 6));
}

static void add_norm_forward(struct grads *g)
{
	OPS->add_rmsnorm(g->k, g->out[0], g->fixed[0], g->out[1], g->in[0], g->fixed[1], g->in[1],
			 1e-5f, NOT_SCALED);
}

static void add_norm_backward(struct grads *g)
{
	OPS->rmsnorm_backward(g->k, g->grad[0], g->grad[1], g->dout[0], g->out[1], g->in[1],
			      g->fixed[0], g->dout[1], NOT_SCALED);
}

static void rope_make(struct grads *g)
{
	input(g, DIMS(3, 3, 2, 4));
	output(g, DIMS(3, 3, 2, 4));
	hold(g, DIMS(5, 2));
	hold(g, DIMS(5, 2));
	hold_i32(g, DIMS(3), (int32_t[]){ 0, 4, 2 });
}

static void rope_turn(struct grads *g, struct tensor to, struct tensor from, bool inverse)
{
	OPS->copy(g->k, to.data, from.data, tensor_bytes(&to));
	OPS->rope(g->k, to, 2, g->fixed[0], g->fixed[1], g->fixed[2], inverse);
}

static void rope_forward(struct grads *g)
{
	rope_turn(g, g->out[0], g->in[0], false);
}

static void rope_backward(struct grads *g)
{
	rope_turn(g, g->grad[0], g->dout[0], true);
}

static void attention_make(struct grads *g)
{
	input(g, DIMS(10, 3, 2, 8));
	output(g, DIMS(10, 16));
	hold(g, DIMS(2, 2, 5));
	hold_i32(g, DIMS(2, 5), (int32_t[]){ 0, 0, 0, 3, 3, 0, 0, 0, 0, 4 });
	hold_i32(g, DIMS(2, 5), (int32_t[]){ 0, 2, 2, 3, 4, 0, 1, 2, 3, 4 });
}

static void attention_forward(struct grads *g)
{
	OPS->attention(g->k, g->out[0], g->fixed[0], g->in[0], 2, g->fixed[1], g->fixed[2]);
}

static void attention_backward(struct grads *g)
{
	OPS->attention_backward(g->k, g->grad[0], g->dout[0], g->out[0], g->fixed[0], g->in[0], 2,
				g->fixed[1], g->fixed[2], NULL);
}

static void swiglu_make(struct grads *g)
{
	input(g, DIMS(3, 10));
	output(g, DIMS(3, 5));
}

static void swiglu_forward(struct grads *g)
{
	OPS->swiglu(g->k, g->out[0], g->in[0], NOT_SCALED);
}

static void swiglu_backward(struct grads *g)
{
	OPS->swiglu_backward(g->k, g->grad[0], g->dout[0], g->in[0], NOT_SCALED);
}

/* ---- losses: dout is the weight of each row or image */

static void cross_entropy_make(struct grads *g)
{
	input(g, DIMS(4, 8));
	output(g, DIMS(4));
	hold_i32(g, DIMS(4), (int32_t[]){ 5, -1, 0, 2 });
}

static void cross_entropy_forward(struct grads *g)
{
	OPS->cross_entropy(g->k, g->out[0], g->in[0], g->fixed[0], g->dout[0], 6, false);
}

static void cross_entropy_backward(struct grads *g)
{
	OPS->copy(g->k, g->grad[0].data, g->in[0].data, tensor_bytes(&g->in[0]));
	OPS->cross_entropy(g->k, g->out[0], g->grad[0], g->fixed[0], g->dout[0], 6, true);
}

static void loss_make(struct grads *g)
{
	input(g, DIMS(3, 7));
	output(g, DIMS(3));
	g->fixed[g->held++] = make(g, DIMS(3, 7), g->kink < 0);
}

static void mse_forward(struct grads *g)
{
	OPS->mse_rows(g->k, g->out[0], NONE, g->in[0], g->fixed[0], g->dout[0]);
}

static void mse_backward(struct grads *g)
{
	OPS->mse_rows(g->k, g->out[0], g->grad[0], g->in[0], g->fixed[0], g->dout[0]);
}

static void l1_forward(struct grads *g)
{
	OPS->l1_images(g->k, g->out[0], NONE, g->in[0], g->fixed[0], g->dout[0]);
}

static void l1_backward(struct grads *g)
{
	OPS->l1_images(g->k, g->out[0], g->grad[0], g->in[0], g->fixed[0], g->dout[0]);
}

static void hinge_forward(struct grads *g)
{
	OPS->hinge_images(g->k, g->out[0], NONE, g->in[0], g->variant, g->dout[0]);
}

static void hinge_backward(struct grads *g)
{
	OPS->hinge_images(g->k, g->out[0], g->grad[0], g->in[0], g->variant, g->dout[0]);
}

/* ---- images */

static void patchify_make(struct grads *g)
{
	input(g, DIMS(2, 4, 2, 3));
	output(g, DIMS(4, 12));
}

static void patchify_forward(struct grads *g)
{
	OPS->patchify(g->k, g->out[0], g->in[0], 2);
}

static void patchify_backward(struct grads *g)
{
	OPS->unpatchify(g->k, g->grad[0], g->dout[0], 2);
}

/* variant: the stride */
static void conv_make(struct grads *g)
{
	int64_t side = (5 + 2 - 3) / g->variant + 1;

	input(g, DIMS(2, 5, 5, 2));
	input(g, DIMS(3, 3, 3, 2));
	input(g, DIMS(3));
	output(g, DIMS(2, side, side, 3));
}

static struct conv conv_of(const struct grads *g)
{
	return (struct conv){ g->variant, 1, 1 };
}

static void conv_forward(struct grads *g)
{
	OPS->conv2d(g->k, g->out[0], g->in[0], g->in[1], g->in[2], conv_of(g));
}

static void conv_backward(struct grads *g)
{
	OPS->conv2d_backward_data(g->k, g->grad[0], g->dout[0], g->in[1], conv_of(g));
	OPS->conv2d_backward_weight(g->k, g->grad[1], g->grad[2], g->dout[0], g->in[0], conv_of(g));
}

/* variant: SiLU after the norm */
static void group_norm_make(struct grads *g)
{
	input(g, DIMS(2, 3, 2, 4));
	input(g, DIMS(4));
	input(g, DIMS(4));
	output(g, DIMS(2, 3, 2, 4));
	hold(g, DIMS(2, 2));
	hold(g, DIMS(2, 2));
}

static void group_norm_forward(struct grads *g)
{
	OPS->group_norm(g->k, g->out[0], g->fixed[0], g->fixed[1], g->in[0], g->in[1], g->in[2], 2,
			1e-5f, g->variant);
}

static void group_norm_backward(struct grads *g)
{
	OPS->group_norm_backward(g->k, g->grad[0], g->grad[1], g->grad[2], g->dout[0], g->in[0],
				 g->in[1], g->in[2], g->fixed[0], g->fixed[1], 2, g->variant);
}

static void upsample_make(struct grads *g)
{
	input(g, DIMS(2, 2, 3, 2));
	output(g, DIMS(2, 4, 6, 2));
}

static void upsample_forward(struct grads *g)
{
	OPS->upsample2(g->k, g->out[0], g->in[0]);
}

static void upsample_backward(struct grads *g)
{
	OPS->upsample2_backward(g->k, g->grad[0], g->dout[0]);
}

static void leaky_forward(struct grads *g)
{
	OPS->leaky_relu(g->k, g->out[0], g->in[0], 0.2f);
}

static void leaky_backward(struct grads *g)
{
	OPS->leaky_relu_backward(g->k, g->grad[0], g->dout[0], g->in[0], 0.2f);
}

static void posterior_make(struct grads *g)
{
	input(g, DIMS(2, 2, 2, 6));
	output(g, DIMS(2, 2, 2, 3));
	output(g, DIMS(2));
	hold(g, DIMS(2, 2, 2, 3));
}

static void posterior_forward(struct grads *g)
{
	OPS->posterior(g->k, g->out[0], g->out[1], g->in[0], g->fixed[0]);
}

static void posterior_backward(struct grads *g)
{
	OPS->posterior_backward(g->k, g->grad[0], g->dout[0], g->dout[1], g->in[0], g->fixed[0]);
}

#define CASE(name, variant, kink)                                                                  \
	{                                                                                          \
#name, name##_make, name##_forward, name##_backward, variant, kink                 \
	}
#define LIKE(name, shape, variant, kink)                                                           \
	{                                                                                          \
#name, shape##_make, name##_forward, name##_backward, variant, kink                \
	}

static const struct grad_case cases[] = {
	CASE(silu, 0, -1),          CASE(linear, 0, -1),      CASE(embed, 0, -1),
	LIKE(gather, embed, 0, -1), CASE(scatter, 0, -1),     CASE(per_image, 0, -1),
	CASE(norm, 0, -1),          CASE(add_norm, 0, -1),    CASE(rope, 0, -1),
	CASE(attention, 0, -1),     CASE(swiglu, 0, -1),      CASE(cross_entropy, 0, -1),
	LIKE(mse, loss, 0, -1),     LIKE(l1, loss, 0, 0),     LIKE(hinge, loss, 1, 1),
	LIKE(hinge, loss, -1, 1),   LIKE(hinge, loss, 0, -1), CASE(patchify, 0, -1),
	CASE(conv, 1, -1),          CASE(conv, 2, -1),        CASE(group_norm, 0, -1),
	CASE(group_norm, 1, -1),    CASE(upsample, 0, -1),    LIKE(leaky, silu, 0, 0),
	CASE(posterior, 0, -1),
};

/* ---- differences */

static double loss(const struct grad_case *c, struct grads *g)
{
	double sum = 0;

	c->forward(g);
	for (int t = 0; t < g->outputs; t++)
		for (int64_t i = 0; i < tensor_count(&g->out[t]); i++)
			sum += (double)((float *)g->out[t].data)[i] *
			       (double)((float *)g->dout[t].data)[i];
	return sum;
}

/* Central difference at x of the step really taken in f32. */
static double difference(const struct grad_case *c, struct grads *g, float *x, double step)
{
	float middle = *x, above = (float)(middle + step), below = (float)(middle - step);
	double high, low;

	*x = above;
	high = loss(c, g);
	*x = below;
	low = loss(c, g);
	*x = middle;
	return (high - low) / ((double)above - (double)below);
}

/* The greatest error of an input's gradient over the greatest gradient. */
static double worst_error(const struct grad_case *c, struct grads *g, int which)
{
	float *x = g->in[which].data,
	      *got = xmemdup(g->grad[which].data, tensor_bytes(&g->grad[which]));
	double worst = 0, most = 0;

	for (int64_t i = 0; i < tensor_count(&g->in[which]); i++) {
		double wide = difference(c, g, x + i, STEP),
		       narrow = difference(c, g, x + i, STEP / 2);
		double want = (4 * narrow - wide) / 3;

		worst = fmax(worst, fabs(want - (double)got[i]));
		most = fmax(most, fabs(want));
	}
	xfree(got);
	return isfinite(worst) && most > 0 ? worst / most : INFINITY;
}

int check_gradients(struct kernels *k)
{
	int point = 0, failures = 0;

	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct grads g = { .k = k, .variant = cases[i].variant, .kink = cases[i].kink };

		cases[i].make(&g);
		cases[i].forward(&g);
		cases[i].backward(&g);
		for (int t = 0; t < g.inputs; t++) {
			double error = worst_error(&cases[i], &g, t);

			failures += !(error < 1e-4);
			printf("%s %d - gradient of %s (variant %d) by input %d: off by %.1e\n",
			       error < 1e-4 ? "ok" : "not ok", ++point, cases[i].name,
			       cases[i].variant, t, error);
		}
		for (int t = 0; t < g.kept; t++)
			k->ops->release(k, g.memory[t]);
	}
	printf("1..%d\n", point);
	return failures;
}
