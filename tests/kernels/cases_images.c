/* SPDX-License-Identifier: Apache-2.0
 * The cases of kernelcheck for the operations of convolutional nets; see cases.c. */
#include "config.h"
#include "tests/kernels/cases.h"
#include "lib/mem.h"

static struct tensor image(struct run *r, int64_t channels)
{
	return run_input4(r, r->act, D(0), D(1), D(2), channels);
}

static struct tensor like(struct run *r, int64_t h, int64_t w, int64_t c)
{
	return run_output(r, tensor_4d(NULL, r->act, D(0), h, w, c));
}

/* dim: images, height, width, channels in, channels out, and kernel 10 + stride. Padding: half the
 * kernel, or 1 before an even one. */
static struct conv conv_of(const struct run *r)
{
	int pad = (int)D(5) / 10 % 2 ? (int)D(5) / 20 : 1;

	return (struct conv){ (int)D(5) % 10, pad, pad };
}

static int64_t side(const struct run *r, int64_t n)
{
	struct conv c = conv_of(r);

	return (n + c.pad_before + c.pad_after - D(5) / 10) / c.stride + 1;
}

static struct tensor filter(struct run *r, enum dtype type)
{
	return run_input4(r, type, D(4), D(5) / 10, D(5) / 10, D(3));
}

static void count_conv(struct run *r)
{
	int64_t kernel = D(5) / 10;

	r->flops = 2.0 * (double)(D(0) * side(r, D(1)) * side(r, D(2)) * D(4) * D(3)) *
		   (double)(kernel * kernel);
}

static void do_conv2d(struct run *r)
{
	struct tensor x = image(r, D(3)), w = filter(r, r->act);
	struct tensor bias = run_input1(r, DT_F32, D(4));
	struct tensor bare = like(r, side(r, D(1)), side(r, D(2)), D(4));
	struct tensor out = like(r, side(r, D(1)), side(r, D(2)), D(4));

	OPS->conv2d(r->k, bare, x, w, NONE, conv_of(r));
	TIMED(OPS->conv2d(r->k, out, x, w, bias, conv_of(r)));
	count_conv(r);
}

static void do_conv2d_backward_data(struct run *r)
{
	struct tensor w = filter(r, r->act);
	struct tensor dout = run_input4(r, r->act, D(0), side(r, D(1)), side(r, D(2)), D(4));
	struct tensor dx = like(r, D(1), D(2), D(3));

	TIMED(OPS->conv2d_backward_data(r->k, dx, dout, w, conv_of(r)));
	count_conv(r);
}

static void do_conv2d_backward_weight(struct run *r)
{
	struct tensor x = image(r, D(3));
	struct tensor dout = run_input4(r, r->act, D(0), side(r, D(1)), side(r, D(2)), D(4));
	struct tensor dw = run_changes(r, filter(r, DT_F32));
	struct tensor db = run_changes(r, run_input1(r, DT_F32, D(4)));

	TIMED(OPS->conv2d_backward_weight(r->k, dw, db, dout, x, conv_of(r)));
	count_conv(r);
}

/* dim: images, height, width, channels, groups, SiLU. */
static void do_group_norm(struct run *r)
{
	struct tensor x = image(r, D(3)), out = like(r, D(1), D(2), D(3));
	struct tensor weight = run_input1(r, DT_F32, D(3)), bias = run_input1(r, DT_F32, D(3));
	struct tensor mean = run_output(r, tensor_1d(NULL, DT_F32, D(0) * D(4)));
	struct tensor rstd = run_output(r, tensor_1d(NULL, DT_F32, D(0) * D(4)));

	TIMED(OPS->group_norm(r->k, out, mean, rstd, x, weight, bias, (int)D(4), 1e-5f,
			      D(5) != 0));
	r->bytes = (double)(D(0) * D(1) * D(2) * D(3)) * 3.0 * (double)dtype_bytes(r->act);
}

static void do_group_norm_backward(struct run *r)
{
	struct tensor x = image(r, D(3)), dout = image(r, D(3)), out = image(r, D(3));
	struct tensor weight = run_input1(r, DT_F32, D(3)), bias = run_input1(r, DT_F32, D(3));
	struct tensor mean = run_input1(r, DT_F32, D(0) * D(4));
	struct tensor rstd = run_input1(r, DT_F32, D(0) * D(4));
	struct tensor dx = like(r, D(1), D(2), D(3));
	struct tensor dw = run_changes(r, run_input1(r, DT_F32, D(3)));
	struct tensor db = run_changes(r, run_input1(r, DT_F32, D(3)));

	if (D(5) > 1) /* of a net that is not trained */
		dw.data = db.data = NULL;
	OPS->group_norm(r->k, out, mean, rstd, x, weight, bias, (int)D(4), 1e-5f, D(5) != 0);
	TIMED(OPS->group_norm_backward(r->k, dx, dw, db, dout, x, weight, bias, mean, rstd,
				       (int)D(4), D(5) != 0));
	r->bytes = (double)(D(0) * D(1) * D(2) * D(3)) * 5.0 * (double)dtype_bytes(r->act);
}

static void do_upsample2(struct run *r)
{
	TIMED(OPS->upsample2(r->k, like(r, 2 * D(1), 2 * D(2), D(3)), image(r, D(3))));
}

static void do_upsample2_backward(struct run *r)
{
	struct tensor dout = run_input4(r, r->act, D(0), 2 * D(1), 2 * D(2), D(3));

	TIMED(OPS->upsample2_backward(r->k, like(r, D(1), D(2), D(3)), dout));
}

static void do_leaky_relu(struct run *r)
{
	TIMED(OPS->leaky_relu(r->k, like(r, D(1), D(2), D(3)), image(r, D(3)), 0.2f));
}

static void do_leaky_relu_backward(struct run *r)
{
	struct tensor dout = image(r, D(3)), x = image(r, D(3));

	TIMED(OPS->leaky_relu_backward(r->k, like(r, D(1), D(2), D(3)), dout, x, 0.2f));
}

/* dim: images, height, width, channels, with noise. */
static void do_posterior(struct run *r)
{
	struct tensor moments = image(r, 2 * D(3)), noise = image(r, D(3));
	struct tensor z = like(r, D(1), D(2), D(3));
	struct tensor kl = run_output(r, tensor_1d(NULL, DT_F32, D(0)));

	TIMED(OPS->posterior(r->k, z, kl, moments, D(4) ? noise : NONE));
}

static void do_posterior_backward(struct run *r)
{
	struct tensor moments = image(r, 2 * D(3)), noise = image(r, D(3)), dz = image(r, D(3));
	struct tensor weight = run_input1(r, DT_F32, D(0));
	struct tensor dmoments = like(r, D(1), D(2), 2 * D(3));

	TIMED(OPS->posterior_backward(r->k, dmoments, dz, weight, moments, D(4) ? noise : NONE));
}

/* dim: images, elements, sign (hinge). */
static void do_l1_images(struct run *r)
{
	struct tensor x = run_input2(r, r->act, D(0), D(1));
	struct tensor target = run_input2(r, DT_F32, D(0), D(1));
	struct tensor weight = run_input1(r, DT_F32, D(0));
	struct tensor loss = run_output(r, tensor_1d(NULL, DT_F32, D(0)));
	struct tensor dx = run_output(r, tensor_2d(NULL, r->act, D(0), D(1)));

	TIMED(OPS->l1_images(r->k, loss, dx, x, target, weight));
}

static void do_hinge_images(struct run *r)
{
	struct tensor x = run_input2(r, r->act, D(0), D(1));
	struct tensor weight = run_input1(r, DT_F32, D(0));
	struct tensor loss = run_output(r, tensor_1d(NULL, DT_F32, D(0)));
	struct tensor dx = run_output(r, tensor_2d(NULL, r->act, D(0), D(1)));

	TIMED(OPS->hinge_images(r->k, loss, dx, x, (int)D(2) - 1, weight));
}

const struct op_case image_cases[] = {
	{ "conv2d", do_conv2d, true, 2,
	  { { 2, 7, 5, 3, 16, 31 }, { 3, 9, 11, 5, 7, 32 }, { 2, 16, 16, 64, 128, 31 },
	    { 2, 10, 8, 16, 8, 42 } },
	  { { 64, 128, 128, 64, 64, 31 }, { 64, 64, 64, 128, 128, 31 }, { 64, 128, 128, 3, 64, 31 },
	    { 64, 128, 128, 64, 128, 32 } } },
	{ "conv2d_backward_data", do_conv2d_backward_data, true, 2,
	  { { 2, 7, 5, 3, 16, 31 }, { 3, 9, 11, 5, 7, 32 }, { 2, 16, 16, 64, 128, 31 },
	    { 2, 10, 8, 16, 8, 42 } },
	  { { 64, 128, 128, 64, 64, 31 }, { 64, 64, 64, 128, 128, 31 },
	    { 64, 128, 128, 64, 128, 32 } } },
	{ "conv2d_backward_weight", do_conv2d_backward_weight, true, 2,
	  { { 2, 7, 5, 3, 16, 31 }, { 3, 9, 11, 5, 7, 32 }, { 2, 16, 16, 64, 128, 31 },
	    { 2, 10, 8, 16, 8, 42 } },
	  { { 64, 128, 128, 64, 64, 31 }, { 64, 64, 64, 128, 128, 31 },
	    { 64, 128, 128, 64, 128, 32 } } },
	{ "group_norm", do_group_norm, true, 2,
	  { { 2, 7, 5, 6, 3, 0 }, { 3, 40, 8, 24, 8, 1 }, { 1, 5, 3, 2064, 8, 1 },
	    { 5, 9, 9, 1, 1, 1 } },
	  { { 64, 128, 128, 64, 8, 1 }, { 64, 32, 32, 256, 8, 1 } } },
	{ "group_norm_backward", do_group_norm_backward, true, 6,
	  { { 2, 7, 5, 6, 3, 0 }, { 3, 40, 8, 24, 8, 1 }, { 1, 5, 3, 2064, 8, 1 },
	    { 5, 9, 9, 1, 1, 1 } },
	  { { 64, 128, 128, 64, 8, 1 }, { 64, 32, 32, 256, 8, 1 } } },
	{ "group_norm_backward", do_group_norm_backward, true, 6,
	  { { 2, 7, 5, 6, 3, 2 }, { 3, 40, 8, 24, 8, 2 } }, { { 0 } } },
	{ "upsample2", do_upsample2, true, 1, { { 1, 1, 1, 1 }, { 3, 5, 7, 3 }, { 2, 4, 4, 528 } },
	  { { 64, 64, 64, 64 } } },
	{ "upsample2_backward", do_upsample2_backward, true, 1,
	  { { 1, 1, 1, 1 }, { 3, 5, 7, 3 }, { 2, 4, 4, 528 } }, { { 64, 64, 64, 64 } } },
	{ "leaky_relu", do_leaky_relu, true, 1, { { 3, 5, 7, 3 }, { 2, 37, 29, 16 } }, { { 0 } } },
	{ "leaky_relu_backward", do_leaky_relu_backward, true, 1,
	  { { 3, 5, 7, 3 }, { 2, 37, 29, 16 } }, { { 0 } } },
	{ "posterior", do_posterior, false, 3, { { 3, 5, 3, 4, 0 }, { 3, 5, 3, 4, 1 } },
	  { { 0 } } },
	{ "posterior_backward", do_posterior_backward, false, 3,
	  { { 3, 5, 3, 4, 0 }, { 3, 5, 3, 4, 1 } }, { { 0 } } },
	{ "l1_images", do_l1_images, true, 2, { { 1, 1 }, { 3, 37 }, { 2, 3001 } }, { { 0 } } },
	{ "hinge_images", do_hinge_images, true, 2,
	  { { 1, 1, 0 }, { 3, 37, 1 }, { 2, 3001, 2 } }, { { 0 } } },
};

const int image_cases_count = ARRAY_LEN(image_cases);
