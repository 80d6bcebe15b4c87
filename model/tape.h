/* SPDX-License-Identifier: Apache-2.0
 * A tape: a convolutional net laid out once for a fixed batch shape, then run any number of times.
 *
 * Layers (layers.h) append operations; each knows its forward and backward over the table of
 * kernels. tape_plan finds for every value and gradient the stretch of time it is needed, places
 * all of them in one allocation (values whose times do not meet share memory) and nothing is
 * allocated afterwards.
 *
 *	t = tape_new(&params);
 *	x = tape_input(t, act, n, h, w, 3, false);
 *	y = layer_conv(t, x, "first", 16, 3, 1);
 *	tape_output(t, y);
 *	tape_plan(t, true, e);
 *	... write tape_value(t, x), then tape_forward(t);
 *	... write tape_gradient(t, y), then tape_backward(t, what) ...
 *
 * A loss is no layer: it reads outputs and writes their gradients between forward and backward
 * (l1_images and the like), so that a further term (a perceptual or an identity loss, itself a
 * net on a tape of frozen parameters whose input gradient is added) is one more writer of the
 * same gradient. */
#ifndef MODEL_TAPE_H
#define MODEL_TAPE_H

#include "kernels/kernels.h"
#include "model/params.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tape;

/* Parameters are declared in p, which outlives the tape; several tapes may share one p. */
struct tape *tape_new(struct params *p);
void tape_free(struct tape *t);

/* A value that the caller writes before each forward pass: NHWC (rank 4) or one number an image
 * (tape_input_1d). With `gradient` the backward pass leaves the gradient in tape_gradient. */
int tape_input(struct tape *t, enum dtype type, int64_t n, int64_t h, int64_t w, int64_t c,
	       bool gradient);
int tape_input_1d(struct tape *t, int64_t n);
/* The value stays readable after a forward pass, and its gradient is the caller's to write before a
 * backward pass. */
void tape_output(struct tape *t, int value);

/* Plans and allocates. training: keep what the backward pass needs. Allocates the parameters,
 * too, when they are not yet (training or not, alike). TF_ENOMEM. */
int tape_plan(struct tape *t, bool training, struct err *e);
/* Bytes that tape_plan would take besides parameters; the tape is good for nothing else then. */
size_t tape_measure(struct tape *t, bool training);
size_t tape_bytes(const struct tape *t);          /* of the one allocation */

struct tensor tape_value(const struct tape *t, int value);
struct tensor tape_gradient(const struct tape *t, int value);
void tape_shape(const struct tape *t, int value, int64_t dim[4]);
enum dtype tape_type(const struct tape *t, int value);

void tape_forward(struct tape *t);

enum { TAPE_PARAMETERS = 1, TAPE_INPUTS = 2 };
/* Adds to the parameters' gradients (TAPE_PARAMETERS) and writes those of the inputs that asked
 * for one (TAPE_INPUTS). The values of the last forward pass are still there afterwards, output
 * gradients are not. */
void tape_backward(struct tape *t, int what);

/* ---- for layers.c ---- */

#define OP_VALUES 3

struct op;

/* A kind of operation. backward adds to dw[] (data NULL: not asked for) and writes dx[] (data
 * NULL: not asked for). The bits say which x[] and y[] it reads; `shares` that dx[0] and dx[1]
 * are both dy[0]. */
struct op_kind {
	const char *name;
	void (*forward)(struct kernels *k, const struct op *op);
	void (*backward)(struct kernels *k, const struct op *op);
	unsigned reads_x, reads_y;
	bool in_place;                   /* y[0] may lie where x[1] lies */
	bool shares;
};

struct op {
	const struct op_kind *kind;
	int inputs, outputs, parameters;
	int input[OP_VALUES], output[OP_VALUES], parameter[2];
	struct conv conv;
	int groups;
	float slope;
	bool silu;
	/* Bound by tape_plan (dx, dw: for the running backward pass). */
	struct tensor x[OP_VALUES], y[OP_VALUES], dx[OP_VALUES], dy[OP_VALUES], w[2], dw[2];
};

/* A new value; of rank 1 when h is 0, of rank 2 (n, h) when w is 0. */
int tape_add_value(struct tape *t, enum dtype type, int64_t n, int64_t h, int64_t w, int64_t c);
/* Appends op (copied); its kind, values, parameters and settings are filled in. */
void tape_add_op(struct tape *t, const struct op *op);
struct params *tape_params(const struct tape *t);

#endif
