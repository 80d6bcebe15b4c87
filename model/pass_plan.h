/* SPDX-License-Identifier: Apache-2.0
 * The tensors of a pass (pass.h), by name: X(name, type, dims). `act` is the model's type; shapes
 * are in the letters of dims.h, with M the rows of LM targets, I pictures, IP their patches, at
 * capacity. A pass works on the first rows that its batch needs. */
#ifndef MODEL_PASS_PLAN_H
#define MODEL_PASS_PLAN_H

#include "model/pass.h"
#include "model/plan.h"

/* What the batch brings, mirrored on the host and uploaded at once. */
#define PASS_INPUTS(X) \
	X(TOKEN, DT_I32, N, 0, 0, 0) \
	X(START, DT_I32, B, T, 0, 0) \
	X(LIMIT, DT_I32, B, T, 0, 0) \
	X(POSITION, DT_I32, N, 0, 0, 0) \
	X(LM_ROW, DT_I32, M, 0, 0, 0) \
	X(LM_TARGET, DT_I32, M, 0, 0, 0) \
	X(LM_WEIGHT, DT_F32, M, 0, 0, 0)          /* 1 / targets of the step; unused rows 0 */ \
	X(PATCH_ROW, DT_I32, IP, 0, 0, 0)         /* unused: -1 */ \
	X(PATCH_SHARE, DT_F32, IP, 0, 0, 0)       /* 1 / (noised of the step P), or 0 */ \
	X(PATCH_WEIGHT, DT_F32, IP, 0, 0, 0)      /* lambda PATCH_SHARE */ \
	X(TIME, DT_F32, I, 0, 0, 0)               /* time value: the timestep, 1 when clean */ \
	X(SIGNAL, DT_F32, I, 0, 0, 0)             /* sqrt(abar) */ \
	X(SIGMA, DT_F32, I, 0, 0, 0)              /* sqrt(1 - abar) */ \
	X(SAMPLE, DT_I64, I, 0, 0, 0) \
	X(LATENT, DT_F32, I, E, 0, 0) \
	X(GIVEN_NOISE, DT_F32, I, E, 0, 0)

/* One set for each layer in training, but that layers which are computed again (dims.recompute)
 * have X_IN of their own and share the rest; two sets in turn otherwise. */
#define PASS_LAYER(X) \
	X(X_IN, act, N, d, 0, 0)                  /* residual stream */ \
	X(H1, act, N, d, 0, 0)                    /* its norm */ \
	X(RSTD1, DT_F32, N, 0, 0, 0) \
	X(QKV, act, N, 3 * d, 0, 0)               /* q and k turned */ \
	X(ATTENTION, act, N, d, 0, 0) \
	X(LSE, DT_F32, B, H, T, 0) \
	X(X_MID, act, N, d, 0, 0) \
	X(H2, act, N, d, 0, 0) \
	X(RSTD2, DT_F32, N, 0, 0, 0) \
	X(GATE_UP, act, N, 2 * F, 0, 0) \
	X(SWIGLU, act, N, F, 0, 0)

#define PASS_ENDS(X) \
	X(X_OUT, act, N, d, 0, 0) \
	X(H_OUT, act, N, d, 0, 0) \
	X(RSTD_OUT, DT_F32, N, 0, 0, 0) \
	X(LM_H, act, M, d, 0, 0) \
	X(LOGITS, act, M, V, 0, 0)                /* becomes its own gradient */ \
	X(LM_LOSS, DT_F32, M, 0, 0, 0) \
	X(NOISE, DT_F32, I, E, 0, 0) \
	X(NOISY, DT_F32, I, E, 0, 0) \
	X(PATCHES, act, IP, D, 0, 0) \
	X(TARGET, DT_F32, IP, D, 0, 0)            /* noise, as patches */ \
	X(WAVES, act, I, 2 * TIME_WAVES, 0, 0) \
	X(TIME_HIDDEN, act, I, W, 0, 0) \
	X(TIME_SILU, act, I, W, 0, 0) \
	X(TIME_OUT, act, I, W, 0, 0) \
	X(PATCH_X, act, IP, d, 0, 0) \
	X(PATCH_H, act, IP, d, 0, 0) \
	X(PREDICTED, act, IP, D, 0, 0) \
	X(PATCH_LOSS, DT_F32, IP, 0, 0, 0) \
	X(SUMS, DT_F32, 2, 1, 0, 0)               /* lm, diffusion: added up until read */

#define PASS_GRADIENTS(X) \
	X(DX, act, N, d, 0, 0)                    /* of the residual stream */ \
	X(DH, act, N, d, 0, 0)                    /* of a norm's or attention's output */ \
	X(DQKV, act, N, 3 * d, 0, 0) \
	X(DSWIGLU, act, N, F, 0, 0) \
	X(DGATE_UP, act, N, 2 * F, 0, 0) \
	X(DLM_H, act, M, d, 0, 0) \
	X(DPREDICTED, act, IP, D, 0, 0) \
	X(DPATCH_H, act, IP, d, 0, 0) \
	X(DPATCHES, act, IP, D, 0, 0) \
	X(DTIME_OUT, act, I, W, 0, 0) \
	X(DTIME_SILU, act, I, W, 0, 0) \
	X(DTIME_HIDDEN, act, I, W, 0, 0)

/* Operands of 8-bit products (dims.fp8): the rows made last of activations or their gradients,
 * those of DX, and a weight; the output of attention or feed-forward, which is added by itself. */
#define PASS_FP8(X) \
	X(BRANCH, act, N, d, 0, 0) \
	X(FP8_ROWS, DT_E4M3, N, widest, 0, 0) \
	X(FP8_ROWS_SCALE, DT_F32, N, 0, 0, 0) \
	X(FP8_DX, DT_E4M3, N, d, 0, 0) \
	X(FP8_DX_SCALE, DT_F32, N, 0, 0, 0) \
	X(FP8_WEIGHT, DT_E4M3, widest, d, 0, 0) \
	X(FP8_WEIGHT_SCALE, DT_F32, widest, 0, 0, 0)

#define PASS_NAME(name, ...) name,
enum pass_input { PASS_INPUTS(PASS_NAME) INPUTS };
enum pass_layer { PASS_LAYER(PASS_NAME) LAYER_TENSORS };
enum pass_tensor {
	PASS_ENDS(PASS_NAME) PASS_GRADIENTS(PASS_NAME) PASS_FP8(PASS_NAME) PASS_TENSORS
};
#undef PASS_NAME

struct pass {
	struct transformer *m;        /* borrowed */
	struct kernels *k;
	bool training;
	struct plan inputs, plan;
	struct tensor input[INPUTS];
	struct tensor t[PASS_TENSORS];
	struct tensor (*layer)[LAYER_TENSORS];   /* [layers]; see pass_home */
	char *host;                   /* mirror of inputs */
	/* of the batch at hand */
	int64_t targets, target_rows; /* used, and computed (rounded up) */
	int64_t images, image_slots;  /* used, and computed */
	float lambda;
	bool evaluating;              /* logits stay logits, SUMS as they are, nothing is e4m3 */
};

/* The layer whose tensors a layer uses. */
static inline int64_t pass_home(const struct dims *m, bool training, int64_t layer)
{
	if (!training)
		return layer % 2;
	return layer < m->recompute ? 0 : layer;
}

/* Tensors at the size of the batch at hand. The last layer's next one is nobody's. */
static inline struct tensor *pass_layer(struct pass *p, int64_t layer)
{
	return layer < p->m->dims.layers ? p->layer[layer] : NULL;
}

static inline struct tensor pass_targets(const struct pass *p, struct tensor t)
{
	return first_rows(t, p->target_rows);
}

static inline struct tensor pass_images(const struct pass *p, struct tensor t)
{
	return first_rows(t, p->image_slots);
}

static inline struct tensor pass_patches(const struct pass *p, struct tensor t)
{
	return first_rows(t, p->image_slots * dims_patches(&p->m->dims));
}

/* [n, E] seen as pictures [n, h, w, c]. */
static inline struct tensor pass_pictures(const struct pass *p, struct tensor t)
{
	const struct dims *m = &p->m->dims;

	return tensor_4d(t.data, DT_F32, p->image_slots, m->h, m->w, m->c);
}

/* Sends the batch to the device, with the weights its losses have. */
void pass_load(struct pass *p, const struct batch *b, const struct pass_totals *totals);
/* Embedding to losses; when training, LOGITS and DPREDICTED are left as gradients. */
void pass_forward(struct pass *p);
void pass_backward(struct pass *p);
/* Products of a layer's weight w[outputs, inputs]: y = x w^T, and dx = dy w. In training they are
 * of e4m3 where dims.fp8 says so (pass_products.c); rows: x or dy as e4m3 where whoever made it
 * has made them besides, NOT_SCALED: they are made here. */
void pass_linear(struct pass *p, struct tensor y, struct tensor x, struct scaled rows,
		 struct tensor w);
/* sum = x + y w^T, the stream behind attention or feed-forward; out = norm sum, whose 8-bit rows go
 * to `also` where products are of 8 bits. */
struct normed {
	struct tensor sum, out, rstd;
};
void pass_linear_norm(struct pass *p, struct normed to, struct tensor x, struct tensor y,
		      struct scaled rows, struct tensor w, struct tensor norm, struct scaled also);
/* GATE_UP, and SWIGLU of it, from x whose 8-bit rows were made with it. */
void pass_linear_swiglu(struct pass *p, struct tensor y, struct tensor gate_up, struct tensor x,
			struct tensor w);
void pass_linear_backward(struct pass *p, struct tensor dx, struct tensor dy, struct scaled rows,
			  struct tensor w);
/* Where rows of such a width go for the next product, and those of DX; NOT_SCALED where products
 * are the model's. */
struct scaled pass_rows(const struct pass *p, int64_t width);
struct scaled pass_dx_rows(const struct pass *p);
/* A layer's activations again, from its X_IN, as far as the backward pass needs them. */
void pass_recompute(struct pass *p, int64_t layer);

#endif
