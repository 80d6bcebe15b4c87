/* SPDX-License-Identifier: Apache-2.0
 * One pass over a micro batch: forward, losses, and in training backward by hand. Every tensor of
 * it is named and placed once in one allocation; a pass allocates nothing.
 *
 * A training step:
 *	params_zero_gradients(&m->params);
 *	for each micro batch: pass_run(p, batch, &totals);     totals of ALL of them, on all devices
 *	pass_losses(p, &losses);                               waits; starts the next sums at zero
 *	params_step(&m->params, &update);
 *
 * loss = lm + lambda diffusion; lm = sum over targets of -log p / totals.targets; diffusion = sum
 * over noised pictures of the mean over their elements of (noise predicted - noise)^2 /
 * totals.noised. A total of zero gives a loss of zero and no gradient. */
#ifndef MODEL_PASS_H
#define MODEL_PASS_H

#include "model/sequence.h"
#include "model/transformer.h"

struct pass;

struct pass_totals {
	int64_t targets, noised;      /* of the whole step */
	float lambda;                 /* weight of the diffusion loss */
};

struct pass_losses {
	double lm, diffusion, loss;
};

/* Adds the pass's activations to out->activations and a batch's arrays to out->host. */
void pass_memory(const struct dims *dims, bool training, struct memory_plan *out);
/* What operations of a GPU take besides, about. */
size_t pass_scratch(const struct dims *dims);
/* What a CPU without products of bf16 takes for f32 copies of a pass in bf16. */
size_t pass_widening(const struct dims *dims);
/* m is borrowed. training: run backward, too (m made for training). TF_ENOMEM. */
int pass_new(struct transformer *m, bool training, struct pass **out, struct err *e);
void pass_free(struct pass *p);

/* Forward, losses added up; training: gradients added to the parameters'. The batch may be
 * refilled on return. */
void pass_run(struct pass *p, const struct batch *b, const struct pass_totals *totals);
/* Forward alone. token_loss [b->targets] (-log p) and image_loss [b->images] (mean squared error
 * of the noise; clean pictures 0) are host arrays; either may be NULL. The sums of pass_losses
 * stay as they are. Waits. */
void pass_evaluate(struct pass *p, const struct batch *b, float *token_loss, float *image_loss);
/* The sums since the last call; waits. */
void pass_losses(struct pass *p, struct pass_losses *out);
/* The same without waiting: sums are two numbers in memory of host_alloc; once the fetch has ended
 * pass_losses_of makes losses of them. */
void pass_losses_begin(struct pass *p, struct fetch *f, float *sums);
void pass_losses_of(const struct pass *p, const float *sums, struct pass_losses *out);
/* Makes the sums and the gradients no numbers, for tests of what follows then. */
void pass_spoil(struct pass *p);

/* For tests and dumps, after pass_evaluate: logits [targets, ids] and predicted noise [images, E]
 * as f32, and the noise that was used [images, E]. Any may be NULL. */
void pass_read(struct pass *p, float *logits, float *predicted, float *noise);

#endif
