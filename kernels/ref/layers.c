/* SPDX-License-Identifier: Apache-2.0
 * Rows put together of the backend's others, the layers of sampling above all: the CPU backend uses
 * these as they are, the GPU where it has nothing better. */
#include "config.h"
#include "kernels/ref/ref.h"

static const struct tensor none;

/* y = x W^T, or y += x W^T. */
static void product(struct kernels *k, struct tensor y, struct tensor x, struct tensor w, bool add)
{
	k->ops->matmul(k, y, x, false, w, true, none, add ? 1 : 0);
}

void ref_matmul_add(struct kernels *k, struct tensor c, struct tensor x, struct tensor a,
		    struct tensor b)
{
	k->ops->copy(k, c.data, x.data, tensor_bytes(&c));
	product(k, c, a, b, true);
}

void ref_matmul_swiglu(struct kernels *k, struct tensor out, struct tensor gate_up,
		       struct tensor x, struct tensor w)
{
	product(k, gate_up, x, w, false);
	k->ops->swiglu(k, out, gate_up, NOT_SCALED);
}

void ref_cached_layers(struct kernels *k, const struct cached_layers *c)
{
	const struct kernel_ops *ops = k->ops;

	for (int i = 0; i < c->layers; i++) {
		const struct cached_layer *l = &c->layer[i];

		ops->rmsnorm(k, c->h, c->rstd, c->x, l->attention_norm, c->eps);
		product(k, c->qkv, c->h, l->qkv, false);
		ops->rope(k, c->qkv, c->heads, c->cosine, c->sine, c->position, false);
		ops->attention_cached(k, c->attention, c->qkv, c->heads, l->keys, l->values,
				      c->at, c->limit);
		product(k, c->x, c->attention, l->attention_out, true);
		ops->rmsnorm(k, c->h, c->rstd, c->x, l->ff_norm, c->eps);
		ops->matmul_swiglu(k, c->swiglu, c->gate_up, c->h, l->gate_up);
		product(k, c->x, c->swiglu, l->down, true);
	}
	ops->rmsnorm(k, c->out, c->rstd, c->x, c->norm, c->eps);
	if (c->logits.data)
		product(k, c->logits,
			tensor_2d(c->out.data, c->out.type, c->logits.dim[0], c->out.dim[1]),
			c->head, false);
}
