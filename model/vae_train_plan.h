/* SPDX-License-Identifier: Apache-2.0
 * What a VAE's training consists of, for the files of vae_train.h alone: vae_train.c makes its
 * steps, vae_state.c saves and loads it. */
#ifndef MODEL_VAE_TRAIN_PLAN_H
#define MODEL_VAE_TRAIN_PLAN_H

#include "model/tape.h"
#include "model/vae_train.h"

/* What is read back of each picture: one f32 array each of `batch` numbers. Behind them on the host
 * lie the sums of squares of both nets' gradients. */
enum figure { L1, KL, GAN, REAL, FAKE, FIGURES };
enum norm { NORM, JUDGE_NORM, NORMS };

struct vae_train {
	struct vae *vae;
	struct kernels *k;
	struct vae_train_config c;
	struct params *params;           /* the VAE's */
	struct params judge;             /* the discriminator's */
	struct tape *tape, *judge_tape;
	int image, noise, kl_weight, moments, kl, reconstruction;   /* values of tape */
	int shown, logits;               /* values of judge_tape */
	struct tensor target;            /* pictures of a micro-batch, f32 */
	struct tensor samples;           /* i64, numbers of the posterior's noise */
	struct tensor weight, gan_weight, judge_weight;     /* f32 [micro], constant */
	float *figure;                   /* backend, [FIGURES, batch] */
	float *host;                     /* pictures on the host */
	int64_t *host_samples;
	int64_t step;
	bool spoil;                      /* the next step, for tests */
};

#endif
