/* SPDX-License-Identifier: Apache-2.0
 * The backward pass, by hand, in the order of pass_forward.c turned round; see pass.h. DX is the
 * gradient of the residual stream all the way down. */
#include "config.h"
#include "model/linear.h"
#include "model/pass_plan.h"

/* Gradient of H_OUT into DH: text and patch rows are distinct, all others are zero. */
static void outputs_backward(struct pass *p)
{
	struct transformer *m = p->m;
	struct kernels *k = p->k;
	struct tensor dh = p->t[DH];

	k->ops->zero(k, dh.data, tensor_bytes(&dh));
	if (p->targets > 0) {
		struct tensor dlogits = pass_targets(p, p->t[LOGITS]);
		struct tensor drows = pass_targets(p, p->t[DLM_H]);

		linear_backward_weight(k, transformer_dweight(m, W_HEAD), dlogits,
				       pass_targets(p, p->t[LM_H]));
		linear_backward_input(k, drows, dlogits, transformer_weight(m, W_HEAD));
		k->ops->scatter_rows(k, dh, drows, pass_targets(p, p->input[LM_ROW]));
	}
	if (p->images > 0) {
		struct tensor dout = pass_patches(p, p->t[DPREDICTED]);
		struct tensor drows = pass_patches(p, p->t[DPATCH_H]);

		linear_backward_weight(k, transformer_dweight(m, W_PATCH_OUT), dout,
				       pass_patches(p, p->t[PATCH_H]));
		k->ops->bias_backward(k, transformer_gradient(m, W_PATCH_OUT_BIAS), dout);
		linear_backward_input(k, drows, dout, transformer_weight(m, W_PATCH_OUT));
		k->ops->scatter_rows(k, dh, drows, pass_patches(p, p->input[PATCH_ROW]));
	}
}

static void feed_forward_backward(struct pass *p, int64_t l)
{
	struct transformer *m = p->m;
	struct kernels *k = p->k;
	struct tensor *a = pass_layer(p, l), *t = p->t;

	linear_backward_weight(k, transformer_block_dweight(m, l, W_DOWN), t[DX], a[SWIGLU]);
	pass_linear_backward(p, t[DSWIGLU], t[DX], pass_dx_rows(p),
			     transformer_block_weight(m, l, W_DOWN));
	k->ops->swiglu_backward(k, t[DGATE_UP], t[DSWIGLU], a[GATE_UP],
				pass_rows(p, 2 * m->dims.F));
	linear_backward_weight(k, transformer_block_dweight(m, l, W_GATE_UP), t[DGATE_UP], a[H2]);
	pass_linear_backward(p, t[DH], t[DGATE_UP], pass_rows(p, 2 * m->dims.F),
			     transformer_block_weight(m, l, W_GATE_UP));
	k->ops->rmsnorm_backward(k, t[DX], transformer_block_gradient(m, l, W_FF_NORM), t[DH],
				 a[X_MID], transformer_block_weight(m, l, W_FF_NORM), a[RSTD2],
				 t[DX], pass_dx_rows(p));
}

static void attention_backward(struct pass *p, int64_t l)
{
	struct transformer *m = p->m;
	struct kernels *k = p->k;
	struct tensor *a = pass_layer(p, l), *t = p->t;
	const struct turned turned = { m->cosine, m->sine, p->input[POSITION] };

	linear_backward_weight(k, transformer_block_dweight(m, l, W_ATTENTION_OUT), t[DX],
			       a[ATTENTION]);
	pass_linear_backward(p, t[DH], t[DX], pass_dx_rows(p),
			     transformer_block_weight(m, l, W_ATTENTION_OUT));
	k->ops->attention_backward(k, t[DQKV], t[DH], a[ATTENTION], a[LSE], a[QKV],
				   (int)m->dims.H, p->input[START], p->input[LIMIT], &turned);
	linear_backward_weight(k, transformer_block_dweight(m, l, W_QKV), t[DQKV], a[H1]);
	pass_linear_backward(p, t[DH], t[DQKV], NOT_SCALED,
			     transformer_block_weight(m, l, W_QKV));
	k->ops->rmsnorm_backward(k, t[DX], transformer_block_gradient(m, l, W_ATTENTION_NORM),
				 t[DH], a[X_IN], transformer_block_weight(m, l, W_ATTENTION_NORM),
				 a[RSTD1], t[DX], pass_dx_rows(p));
}

/* Gradient of TIME_OUT, in DTIME_OUT, through the two layers of the time embedding. */
static void time_backward(struct pass *p)
{
	struct transformer *m = p->m;
	struct kernels *k = p->k;
	struct tensor *t = p->t;
	struct tensor dout = pass_images(p, t[DTIME_OUT]), dbent = pass_images(p, t[DTIME_SILU]);
	struct tensor dhidden = pass_images(p, t[DTIME_HIDDEN]);

	linear_backward_weight(k, transformer_dweight(m, W_TIME_OUT), dout,
			       pass_images(p, t[TIME_SILU]));
	k->ops->bias_backward(k, transformer_gradient(m, W_TIME_OUT_BIAS), dout);
	linear_backward_input(k, dbent, dout, transformer_weight(m, W_TIME_OUT));
	k->ops->silu_backward(k, dhidden, dbent, pass_images(p, t[TIME_HIDDEN]));
	linear_backward_weight(k, transformer_dweight(m, W_TIME_IN), dhidden,
			       pass_images(p, t[WAVES]));
	k->ops->bias_backward(k, transformer_gradient(m, W_TIME_IN_BIAS), dhidden);
}

static void patches_backward(struct pass *p)
{
	struct transformer *m = p->m;
	struct kernels *k = p->k;
	struct tensor *t = p->t;
	struct tensor dx = pass_patches(p, t[DPATCH_H]), dtime = pass_images(p, t[DTIME_OUT]);

	k->ops->gather_rows(k, dx, t[DX], pass_patches(p, p->input[PATCH_ROW]));
	linear_backward_weight(k, transformer_dweight(m, W_PATCH_IN), dx,
			       pass_patches(p, t[PATCHES]));
	k->ops->bias_backward(k, transformer_gradient(m, W_PATCH_IN_BIAS), dx);
	if (m->dims.time == TIME_AT_MODEL) {
		k->ops->add_per_image_backward(k, dtime, dx);
	} else {
		struct tensor dpatches = pass_patches(p, t[DPATCHES]);

		linear_backward_input(k, dpatches, dx, transformer_weight(m, W_PATCH_IN));
		k->ops->add_per_image_backward(k, dtime, dpatches);
	}
	time_backward(p);
}

void pass_backward(struct pass *p)
{
	struct transformer *m = p->m;
	struct kernels *k = p->k;
	struct tensor *t = p->t;

	if (p->targets == 0 && p->images == 0)
		return;
	outputs_backward(p);
	k->ops->rmsnorm_backward(k, t[DX], transformer_gradient(m, W_NORM), t[DH], t[X_OUT],
				 transformer_weight(m, W_NORM), t[RSTD_OUT], NO_TENSOR,
				 pass_dx_rows(p));
	for (int64_t l = m->dims.layers - 1; l >= 0; l--) {
		if (l < m->dims.recompute - 1) /* the last of them is there still */
			pass_recompute(p, l);
		feed_forward_backward(p, l);
		attention_backward(p, l);
	}
	k->ops->embed_backward(k, transformer_gradient(m, W_TOKEN), t[DX], p->input[TOKEN]);
	if (p->images > 0)
		patches_backward(p);
}
