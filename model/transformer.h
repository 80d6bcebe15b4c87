/* SPDX-License-Identifier: Apache-2.0
 * The weights of a Transfusion transformer: a Llama block (RMSNorm, RoPE, SwiGLU, no biases) with
 * merged query-key-value and gate-up matrices, a vocabulary matrix at each end, a linear layer
 * into and out of patches, and a small time embedding. Values, gradients and moments lie in struct
 * params (params.h):
 *
 *	token.weight [V,d]                       head.weight [V,d]            norm.weight [d]
 *	blocks.N.attention_norm.weight [d]       blocks.N.ff_norm.weight [d]
 *	blocks.N.qkv.weight [3d,d]               blocks.N.gate_up.weight [2F,d]
 *	blocks.N.attention_out.weight [d,d]      blocks.N.down.weight [d,F]
 *	patch_in.weight [d,D]  patch_in.bias [d]       patch_out.weight [D,d]  patch_out.bias [D]
 *	time.in.weight [W,256]  time.in.bias [W]       time.out.weight [W,W]   time.out.bias [W]
 *
 * W is D (time: patch) or d (time: model). Matrices are [outputs, inputs]. qkv rows: queries,
 * keys, values, each head by head. A model of text alone has no patch and time tensors.
 *
 * The passes over it are pass.h (training, evaluation) and sampler.h (generation). */
#ifndef MODEL_TRANSFORMER_H
#define MODEL_TRANSFORMER_H

#include "model/dims.h"
#include "model/params.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum weight {
	W_TOKEN, W_HEAD, W_NORM,
	W_PATCH_IN, W_PATCH_IN_BIAS, W_PATCH_OUT, W_PATCH_OUT_BIAS,
	W_TIME_IN, W_TIME_IN_BIAS, W_TIME_OUT, W_TIME_OUT_BIAS,
	WEIGHTS
};

enum block_weight {
	W_ATTENTION_NORM, W_QKV, W_ATTENTION_OUT, W_FF_NORM, W_GATE_UP, W_DOWN,
	BLOCK_WEIGHTS
};

struct transformer {
	struct dims dims;
	struct kernels *k;            /* borrowed */
	struct params params;
	int weight[WEIGHTS];          /* index into params; -1: the model has none */
	int *block;                   /* [layers][BLOCK_WEIGHTS] */
	struct tensor cosine, sine;   /* f32 [positions, d / H / 2] */
};

/* Bytes of backend memory by group, known without allocating. */
struct memory_plan {
	int64_t parameters;           /* how many; their memory has gaps besides */
	size_t weights;               /* f32 values, and the bf16 copy */
	size_t gradients, moments;    /* training */
	size_t average;               /* EMA */
	size_t activations;           /* a pass or a sampler */
	size_t constants;             /* rotary tables */
	size_t host;                  /* batches on the host */
};
size_t memory_plan_total(const struct memory_plan *m);

/* Sizes of a transformer (activations and host stay 0; pass_memory and sampler_memory add theirs).
 * positions: rows of the rotary tables. */
void transformer_memory(const struct dims *dims, int64_t positions, bool training, bool average,
			struct memory_plan *out);

/* Makes the model, zeroed; dims are checked and copied. positions: as many as any sequence will
 * have (dims->T, or the context of sampling). TF_EINVALID, TF_ENOMEM. */
int transformer_init(struct transformer *m, struct kernels *k, const struct dims *dims,
		     int64_t positions, bool training, struct err *e);
void transformer_release(struct transformer *m);
/* Matrices from N(0, 0.02), tensor i by the stream (seed, PHILOX_INIT, i); norms 1, biases 0. */
void transformer_draw(struct transformer *m, uint64_t seed);

struct tensor transformer_weight(const struct transformer *m, enum weight w);
struct tensor transformer_gradient(const struct transformer *m, enum weight w);
struct tensor transformer_block_weight(const struct transformer *m, int64_t layer,
				       enum block_weight w);
/* Of matrices that products alone make gradients of: all but W_TOKEN. See params_dweight. */
struct dweight transformer_dweight(struct transformer *m, enum weight w);
struct dweight transformer_block_dweight(struct transformer *m, int64_t layer, enum block_weight w);
struct tensor transformer_block_gradient(const struct transformer *m, int64_t layer,
					 enum block_weight w);

/* Multiply-adds x 2 of a training step per position (6 x matrix parameters), for rates. */
double transformer_flops_per_position(const struct dims *dims);

#endif
