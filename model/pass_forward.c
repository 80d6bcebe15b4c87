/* SPDX-License-Identifier: Apache-2.0
 * The forward pass: embedding and patches, blocks, losses; see pass.h. */
#include "config.h"
#include "model/linear.h"
#include "model/pass_plan.h"

/* Noisy patches [IP,D] with their time embedding, through the patch layer, to PATCH_X [IP,d]. */
static void embed_patches(struct pass *p)
{
	struct transformer *m = p->m;
	struct kernels *k = p->k;
	const struct kernel_ops *ops = k->ops;
	struct tensor *t = p->t;
	struct tensor patches = pass_patches(p, t[PATCHES]), x = pass_patches(p, t[PATCH_X]);
	struct tensor waves = pass_images(p, t[WAVES]), hidden = pass_images(p, t[TIME_HIDDEN]);
	struct tensor bent = pass_images(p, t[TIME_SILU]), time = pass_images(p, t[TIME_OUT]);
	bool at_patch = m->dims.time == TIME_AT_PATCH;

	ops->add_noise(k, pass_images(p, t[NOISY]), pass_images(p, p->input[LATENT]),
		       pass_images(p, t[NOISE]), pass_images(p, p->input[SIGNAL]),
		       pass_images(p, p->input[SIGMA]));
	ops->patchify(k, patches, pass_pictures(p, t[NOISY]), (int)m->dims.patch);
	ops->patchify(k, pass_patches(p, t[TARGET]), pass_pictures(p, t[NOISE]),
		      (int)m->dims.patch);
	ops->time_embedding(k, waves, pass_images(p, p->input[TIME]));
	linear(k, hidden, waves, transformer_weight(m, W_TIME_IN),
	       transformer_weight(m, W_TIME_IN_BIAS));
	ops->silu(k, bent, hidden);
	linear(k, time, bent, transformer_weight(m, W_TIME_OUT),
	       transformer_weight(m, W_TIME_OUT_BIAS));
	if (at_patch)
		ops->add_per_image(k, patches, time);
	linear(k, x, patches, transformer_weight(m, W_PATCH_IN),
	       transformer_weight(m, W_PATCH_IN_BIAS));
	if (!at_patch)
		ops->add_per_image(k, x, time);
}

static void embed(struct pass *p, struct tensor x)
{
	p->k->ops->embed(p->k, x, transformer_weight(p->m, W_TOKEN), p->input[TOKEN]);
	if (p->images == 0)
		return;
	embed_patches(p);
	p->k->ops->scatter_rows(p->k, x, pass_patches(p, p->t[PATCH_X]),
				pass_patches(p, p->input[PATCH_ROW]));
}

/* From H1 (whose 8-bit rows may be there) to SWIGLU: all that the backward pass needs of a layer.
 * X_MID is the stream beneath its feed-forward part. */
static void block(struct pass *p, int64_t l, struct scaled h1)
{
	struct transformer *m = p->m;
	struct kernels *k = p->k;
	const struct kernel_ops *ops = k->ops;
	struct tensor *a = pass_layer(p, l);
	const struct normed mid = { a[X_MID], a[H2], a[RSTD2] };
	int heads = (int)m->dims.H;

	pass_linear(p, a[QKV], a[H1], h1, transformer_block_weight(m, l, W_QKV));
	ops->rope(k, a[QKV], heads, m->cosine, m->sine, p->input[POSITION], false);
	ops->attention(k, a[ATTENTION], a[LSE], a[QKV], heads, p->input[START], p->input[LIMIT]);
	pass_linear_norm(p, mid, a[X_IN], a[ATTENTION], NOT_SCALED,
			 transformer_block_weight(m, l, W_ATTENTION_OUT),
			 transformer_block_weight(m, l, W_FF_NORM), pass_rows(p, m->dims.d));
	pass_linear_swiglu(p, a[SWIGLU], a[GATE_UP], a[H2],
			   transformer_block_weight(m, l, W_GATE_UP));
}

void pass_recompute(struct pass *p, int64_t l)
{
	struct tensor *a = pass_layer(p, l);

	p->k->ops->rmsnorm(p->k, a[H1], a[RSTD1], a[X_IN],
			   transformer_block_weight(p->m, l, W_ATTENTION_NORM), p->m->dims.eps);
	block(p, l, NOT_SCALED);
}

static void blocks(struct pass *p)
{
	struct transformer *m = p->m;
	int64_t last = m->dims.layers - 1;

	for (int64_t l = 0; l <= last; l++) {
		struct tensor *a = pass_layer(p, l), *next = pass_layer(p, l + 1), norm;
		struct normed to = { p->t[X_OUT], p->t[H_OUT], p->t[RSTD_OUT] };

		block(p, l, l > 0 ? pass_rows(p, m->dims.d) : NOT_SCALED);
		norm = transformer_weight(m, W_NORM);
		if (l < last) {
			to = (struct normed){ next[X_IN], next[H1], next[RSTD1] };
			norm = transformer_block_weight(m, l + 1, W_ATTENTION_NORM);
		}
		pass_linear_norm(p, to, a[X_MID], a[SWIGLU], pass_rows(p, m->dims.F),
				 transformer_block_weight(m, l, W_DOWN), norm,
				 l < last ? pass_rows(p, m->dims.d) : NOT_SCALED);
	}
}

static bool wants_gradients(const struct pass *p)
{
	return p->training && !p->evaluating;
}

/* SUMS[number] += weight . loss, as a product of a row and a column. */
static void add_sum(struct pass *p, int number, struct tensor weight, struct tensor loss)
{
	float *to = (float *)p->t[SUMS].data + number;

	if (p->evaluating)
		return;
	p->k->ops->matmul(p->k, tensor_2d(to, DT_F32, 1, 1),
			  tensor_2d(weight.data, DT_F32, 1, weight.dim[0]), false,
			  tensor_2d(loss.data, DT_F32, loss.dim[0], 1), false, NO_TENSOR, 1);
}

static void text_loss(struct pass *p)
{
	struct kernels *k = p->k;
	struct tensor h = pass_targets(p, p->t[LM_H]), logits = pass_targets(p, p->t[LOGITS]);
	struct tensor loss = pass_targets(p, p->t[LM_LOSS]);
	struct tensor weight = pass_targets(p, p->input[LM_WEIGHT]);

	k->ops->gather_rows(k, h, p->t[H_OUT], pass_targets(p, p->input[LM_ROW]));
	linear(k, logits, h, transformer_weight(p->m, W_HEAD), NO_TENSOR);
	k->ops->cross_entropy(k, loss, logits, pass_targets(p, p->input[LM_TARGET]), weight,
			      p->m->dims.vocabulary.ids, wants_gradients(p));
	add_sum(p, 0, weight, loss);
}

static void noise_loss(struct pass *p)
{
	struct kernels *k = p->k;
	struct tensor h = pass_patches(p, p->t[PATCH_H]), out = pass_patches(p, p->t[PREDICTED]);
	struct tensor loss = pass_patches(p, p->t[PATCH_LOSS]);
	struct tensor gradient = wants_gradients(p) ? pass_patches(p, p->t[DPREDICTED]) : NO_TENSOR;

	k->ops->gather_rows(k, h, p->t[H_OUT], pass_patches(p, p->input[PATCH_ROW]));
	linear(k, out, h, transformer_weight(p->m, W_PATCH_OUT),
	       transformer_weight(p->m, W_PATCH_OUT_BIAS));
	k->ops->mse_rows(k, loss, gradient, out, pass_patches(p, p->t[TARGET]),
			 pass_patches(p, p->input[PATCH_WEIGHT]));
	add_sum(p, 1, pass_patches(p, p->input[PATCH_SHARE]), loss);
}

void pass_forward(struct pass *p)
{
	struct tensor *first = pass_layer(p, 0);

	embed(p, first[X_IN]);
	p->k->ops->rmsnorm(p->k, first[H1], first[RSTD1], first[X_IN],
			   transformer_block_weight(p->m, 0, W_ATTENTION_NORM), p->m->dims.eps);
	blocks(p);
	if (p->targets > 0)
		text_loss(p);
	if (p->images > 0)
		noise_loss(p);
}
