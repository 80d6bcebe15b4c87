/* SPDX-License-Identifier: Apache-2.0
 * The layers (layers.h) over the table of kernels, each a row of kinds: forward, backward, and what
 * backward reads. */
#include "config.h"
#include "model/layers.h"

#include <math.h>
#include <stdio.h>

#define NORM_EPS 1e-5f

enum { CONV, NORM, UPSAMPLE, RELU, ADD, CONVERT, POSTERIOR };

/* ---- passes */

static void conv_forward(struct kernels *k, const struct op *op)
{
	k->ops->conv2d(k, op->y[0], op->x[0], op->w[0], op->w[1], op->conv);
}

static void conv_backward(struct kernels *k, const struct op *op)
{
	if (op->dw[0].data)
		k->ops->conv2d_backward_weight(k, op->dw[0], op->dw[1], op->dy[0], op->x[0],
					       op->conv);
	if (op->dx[0].data)
		k->ops->conv2d_backward_data(k, op->dx[0], op->dy[0], op->w[0], op->conv);
}

static void norm_forward(struct kernels *k, const struct op *op)
{
	k->ops->group_norm(k, op->y[0], op->y[1], op->y[2], op->x[0], op->w[0], op->w[1],
			   op->groups, NORM_EPS, op->silu);
}

static void norm_backward(struct kernels *k, const struct op *op)
{
	k->ops->group_norm_backward(k, op->dx[0], op->dw[0], op->dw[1], op->dy[0], op->x[0],
				    op->w[0], op->w[1], op->y[1], op->y[2], op->groups, op->silu);
}

static void upsample_forward(struct kernels *k, const struct op *op)
{
	k->ops->upsample2(k, op->y[0], op->x[0]);
}

static void upsample_backward(struct kernels *k, const struct op *op)
{
	if (op->dx[0].data)
		k->ops->upsample2_backward(k, op->dx[0], op->dy[0]);
}

static void relu_forward(struct kernels *k, const struct op *op)
{
	k->ops->leaky_relu(k, op->y[0], op->x[0], op->slope);
}

static void relu_backward(struct kernels *k, const struct op *op)
{
	if (op->dx[0].data)
		k->ops->leaky_relu_backward(k, op->dx[0], op->dy[0], op->x[0], op->slope);
}

static void add_forward(struct kernels *k, const struct op *op)
{
	k->ops->add(k, op->y[0], op->x[0], op->x[1]);
}

/* Both gradients are the sum's: copied only where the tape did not let them share its memory. */
static void add_backward(struct kernels *k, const struct op *op)
{
	for (int i = 0; i < 2; i++)
		if (op->dx[i].data && op->dx[i].data != op->dy[0].data)
			k->ops->copy(k, op->dx[i].data, op->dy[0].data, tensor_bytes(&op->dy[0]));
}

static void convert_forward(struct kernels *k, const struct op *op)
{
	k->ops->convert(k, op->y[0], op->x[0]);
}

static void convert_backward(struct kernels *k, const struct op *op)
{
	if (op->dx[0].data)
		k->ops->convert(k, op->dx[0], op->dy[0]);
}

static void posterior_forward(struct kernels *k, const struct op *op)
{
	k->ops->posterior(k, op->y[0], op->y[1], op->x[0], op->x[1]);
}

static void posterior_backward(struct kernels *k, const struct op *op)
{
	if (op->dx[0].data)
		k->ops->posterior_backward(k, op->dx[0], op->dy[0], op->x[2], op->x[0], op->x[1]);
}

/* name, forward, backward, x and y that backward reads, in place, shares */
static const struct op_kind kinds[] = {
	[CONV] = { "conv", conv_forward, conv_backward, 1, 0, false, false },
	[NORM] = { "norm", norm_forward, norm_backward, 1, 6, false, false },
	[UPSAMPLE] = { "upsample", upsample_forward, upsample_backward, 0, 0, false, false },
	[RELU] = { "relu", relu_forward, relu_backward, 1, 0, false, false },
	[ADD] = { "add", add_forward, add_backward, 0, 0, true, true },
	[CONVERT] = { "convert", convert_forward, convert_backward, 0, 0, false, false },
	[POSTERIOR] = { "posterior", posterior_forward, posterior_backward, 7, 0, false, false },
};

/* ---- layers */

static int parameter(struct tape *t, const char *name, const char *part, int rank,
		     const int64_t *dim, enum param_init init, float bound)
{
	char full[PARAM_NAME_MAX];
	int n = snprintf(full, sizeof full, "%s.%s", name, part);

	CHECK(n > 0 && (size_t)n < sizeof full);
	return params_add(tape_params(t), full, rank, dim, init, bound);
}

/* One value in, one of the given shape out. */
static int append(struct tape *t, struct op *op, int x, enum dtype type, const int64_t dim[4])
{
	int y = tape_add_value(t, type, dim[0], dim[1], dim[2], dim[3]);

	op->inputs = op->inputs ? op->inputs : 1;
	op->outputs = op->outputs ? op->outputs : 1;
	op->input[0] = x;
	op->output[0] = y;
	tape_add_op(t, op);
	return y;
}

static enum dtype act_of(const struct tape *t)
{
	return tape_params(t)->act;
}

static int conv(struct tape *t, int x, const char *name, int channels, int kernel, int stride,
		int padding)
{
	struct op op = { .kind = &kinds[CONV],
			 .parameters = 2,
			 .conv = { stride, padding, padding } };
	int64_t dim[4], weight[4];
	float bound;

	tape_shape(t, x, dim);
	CHECK(channels > 0 && kernel > 0 && stride > 0);
	for (int axis = 1; axis <= 2; axis++) {
		CHECK(dim[axis] + 2 * padding >= kernel);
		dim[axis] = (dim[axis] + 2 * padding - kernel) / stride + 1;
	}
	weight[0] = channels;
	weight[1] = weight[2] = kernel;
	weight[3] = dim[3];
	bound = 1 / sqrtf((float)(kernel * kernel * dim[3]));
	dim[3] = channels;
	op.parameter[0] = parameter(t, name, "weight", 4, weight, PARAM_UNIFORM, bound);
	op.parameter[1] = parameter(t, name, "bias", 1, &dim[3], PARAM_UNIFORM, bound);
	return append(t, &op, x, act_of(t), dim);
}

int layer_conv(struct tape *t, int x, const char *name, int channels, int kernel, int stride)
{
	CHECK(kernel % 2 == 1);
	return conv(t, x, name, channels, kernel, stride, kernel / 2);
}

int layer_conv_even(struct tape *t, int x, const char *name, int channels, int kernel, int stride)
{
	CHECK(kernel % 2 == 0);
	return conv(t, x, name, channels, kernel, stride, 1);
}

int layer_norm_silu(struct tape *t, int x, const char *name, int groups, bool silu)
{
	struct op op = { .kind = &kinds[NORM], .parameters = 2, .outputs = 3, .groups = groups,
			 .silu = silu };
	int64_t dim[4];

	tape_shape(t, x, dim);
	CHECK(groups > 0 && dim[3] % groups == 0);
	op.parameter[0] = parameter(t, name, "weight", 1, &dim[3], PARAM_ONE, 0);
	op.parameter[1] = parameter(t, name, "bias", 1, &dim[3], PARAM_ZERO, 0);
	op.output[1] = tape_add_value(t, DT_F32, dim[0], groups, 0, 0);
	op.output[2] = tape_add_value(t, DT_F32, dim[0], groups, 0, 0);
	return append(t, &op, x, act_of(t), dim);
}

static int part(struct tape *t, int x, const char *name, const char *suffix, int groups)
{
	char full[PARAM_NAME_MAX];
	int64_t dim[4];
	int n = snprintf(full, sizeof full, "%s.norm%s", name, suffix);

	CHECK(n > 0 && (size_t)n < sizeof full);
	tape_shape(t, x, dim);
	x = layer_norm_silu(t, x, full, groups, true);
	snprintf(full, sizeof full, "%s.conv%s", name, suffix);
	return layer_conv(t, x, full, (int)dim[3], 3, 1);
}

int layer_residual(struct tape *t, int x, const char *name, int groups)
{
	int inner = part(t, x, name, "1", groups);

	return layer_add(t, x, part(t, inner, name, "2", groups));
}

int layer_up(struct tape *t, int x, const char *name, int channels)
{
	struct op op = { .kind = &kinds[UPSAMPLE] };
	int64_t dim[4];

	tape_shape(t, x, dim);
	dim[1] *= 2;
	dim[2] *= 2;
	return layer_conv(t, append(t, &op, x, act_of(t), dim), name, channels, 3, 1);
}

int layer_leaky_relu(struct tape *t, int x, float slope)
{
	struct op op = { .kind = &kinds[RELU], .slope = slope };
	int64_t dim[4];

	tape_shape(t, x, dim);
	return append(t, &op, x, act_of(t), dim);
}

int layer_add(struct tape *t, int a, int b)
{
	struct op op = { .kind = &kinds[ADD], .inputs = 2, .input = { a, b } };
	int64_t dim[4];

	tape_shape(t, a, dim);
	return append(t, &op, a, act_of(t), dim);
}

int layer_convert(struct tape *t, int x, enum dtype type)
{
	struct op op = { .kind = &kinds[CONVERT] };
	int64_t dim[4];

	if (tape_type(t, x) == type)
		return x;
	tape_shape(t, x, dim);
	return append(t, &op, x, type, dim);
}

int layer_posterior(struct tape *t, int moments, int noise, int kl_weight, int *kl)
{
	struct op op = { .kind = &kinds[POSTERIOR], .inputs = 3, .outputs = 2,
			 .input = { moments, noise, kl_weight } };
	int64_t dim[4];

	tape_shape(t, moments, dim);
	CHECK(tape_type(t, moments) == DT_F32 && dim[3] % 2 == 0);
	dim[3] /= 2;
	*kl = op.output[1] = tape_add_value(t, DT_F32, dim[0], 0, 0, 0);
	return append(t, &op, moments, DT_F32, dim);
}
