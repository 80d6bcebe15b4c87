/* SPDX-License-Identifier: Apache-2.0
 * Products of the layers' weights; see pass_plan.h. With dims.fp8 both operands are scaled row by
 * row to the range of e4m3 for each product and multiplied in 8 bits. Nothing is kept from
 * step to step: a scale follows from the very row it is for, so that a run goes on bit for bit, and
 * a step that is left out leaves no trace. Gradients of weights are made of the activations as they
 * were, and held-out losses are those of the model as it will be used. */
#include "config.h"
#include "model/linear.h"
#include "model/pass_plan.h"

static bool in_fp8(const struct pass *p)
{
	return p->m->dims.fp8 && p->training && !p->evaluating;
}

struct scaled pass_rows(const struct pass *p, int64_t width)
{
	if (!in_fp8(p))
		return NOT_SCALED;
	return (struct scaled){
		tensor_2d(p->t[FP8_ROWS].data, DT_E4M3, p->t[FP8_ROWS].dim[0], width),
		p->t[FP8_ROWS_SCALE] };
}

struct scaled pass_dx_rows(const struct pass *p)
{
	if (!in_fp8(p))
		return NOT_SCALED;
	return (struct scaled){ p->t[FP8_DX], p->t[FP8_DX_SCALE] };
}

/* y[N,O] = x[N,I] w^T; w is [O,I], or [I,O] when turned. */
static void product_fp8(struct pass *p, struct tensor y, struct tensor x, struct scaled a,
			struct tensor w, bool turned)
{
	int64_t O = y.dim[1], I = x.dim[1];
	struct tensor b = tensor_2d(p->t[FP8_WEIGHT].data, DT_E4M3, O, I);
	struct tensor b_scale = tensor_1d(p->t[FP8_WEIGHT_SCALE].data, DT_F32, O);

	if (!a.q.data) {
		a = pass_rows(p, I);
		p->k->ops->quantise(p->k, a.q, a.scale, x, false);
	}
	p->k->ops->quantise(p->k, b, b_scale, w, turned);
	p->k->ops->matmul_scaled(p->k, y, a.q, a.scale, b, b_scale, !turned);
}

void pass_linear(struct pass *p, struct tensor y, struct tensor x, struct scaled rows,
		 struct tensor w)
{
	if (in_fp8(p))
		product_fp8(p, y, x, rows, w, false);
	else
		linear(p->k, y, x, w, NO_TENSOR);
}

void pass_linear_norm(struct pass *p, struct normed to, struct tensor x, struct tensor y,
		      struct scaled rows, struct tensor w, struct tensor norm, struct scaled also)
{
	const struct kernel_ops *ops = p->k->ops;
	float eps = p->m->dims.eps;

	if (in_fp8(p)) {
		product_fp8(p, p->t[BRANCH], y, rows, w, false);
		ops->add_rmsnorm(p->k, to.out, to.rstd, to.sum, x, p->t[BRANCH], norm, eps, also);
	} else {
		ops->matmul_add(p->k, to.sum, x, y, w);
		ops->rmsnorm(p->k, to.out, to.rstd, to.sum, norm, eps);
	}
}

void pass_linear_swiglu(struct pass *p, struct tensor y, struct tensor gate_up, struct tensor x,
			struct tensor w)
{
	if (!in_fp8(p)) {
		p->k->ops->matmul_swiglu(p->k, y, gate_up, x, w);
		return;
	}
	product_fp8(p, gate_up, x, pass_rows(p, x.dim[1]), w, false);
	p->k->ops->swiglu(p->k, y, gate_up, pass_rows(p, y.dim[1]));
}

void pass_linear_backward(struct pass *p, struct tensor dx, struct tensor dy, struct scaled rows,
			  struct tensor w)
{
	if (in_fp8(p))
		product_fp8(p, dx, dy, rows, w, true);
	else
		linear_backward_input(p->k, dx, dy, w);
}
