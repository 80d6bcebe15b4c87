/* SPDX-License-Identifier: Apache-2.0
 * A linear layer over the table of operations: y = x W^T + b, W [outputs, inputs]. */
#ifndef MODEL_LINEAR_H
#define MODEL_LINEAR_H

#include "model/params.h"

#define NO_TENSOR ((struct tensor){ 0 })

static inline void linear(struct kernels *k, struct tensor y, struct tensor x, struct tensor w,
			  struct tensor bias)
{
	k->ops->matmul(k, y, x, false, w, true, bias, 0);
}

/* dw (+)= dy^T x */
static inline void linear_backward_weight(struct kernels *k, struct dweight dw, struct tensor dy,
					  struct tensor x)
{
	k->ops->matmul(k, dw.to, dy, true, x, false, NO_TENSOR, dw.beta);
}

/* dx = dy W */
static inline void linear_backward_input(struct kernels *k, struct tensor dx, struct tensor dy,
					 struct tensor w)
{
	k->ops->matmul(k, dx, dy, false, w, false, NO_TENSOR, 0);
}

#endif
