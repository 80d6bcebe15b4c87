/* SPDX-License-Identifier: Apache-2.0
 * One training step of a VAE: l1_weight L1 + kl_weight KL + gan_weight * patch discriminator
 * (after its start), AdamW with warm-up and cosine decay, for both nets. Perceptual and identity
 * terms would be further writers of the reconstruction's gradient (vae_train.c,
 * reconstruction_gradient). */
#ifndef MODEL_VAE_TRAIN_H
#define MODEL_VAE_TRAIN_H

#include "model/patchgan.h"
#include "model/vae.h"

#include "lib/safetensors.h"

struct vae_train_config {
	int64_t steps;               /* length of the cosine */
	int64_t warmup;
	int batch;                   /* pictures a step */
	int micro_batch;             /* pictures at a time; divides batch; 0: all */
	int size;                    /* side of the pictures */
	double lr, lr_final;         /* peak, and at the end */
	double beta1, beta2, eps, weight_decay, clip;
	double l1_weight, kl_weight;
	double gan_weight;           /* 0: no discriminator */
	int64_t gan_start;           /* first step that has it */
	double gan_lr;               /* peak rate of the discriminator; same schedule */
	struct patchgan_config gan;
	uint64_t seed;               /* of the posterior's noise */
};

/* Means over the batch. */
struct vae_losses {
	double loss, l1, kl, gan, discriminator;
	double grad_norm;            /* before clipping */
	double lr;
};

struct vae_train;

extern const struct vae_train_config vae_train_config_small;
int vae_train_config_check(const struct vae_train_config *c, const struct vae_config *v,
			   struct err *e);

/* v and its backend outlive the training. */
int vae_train_new(struct vae *v, const struct vae_train_config *c, struct vae_train **out,
		  struct err *e);
void vae_train_free(struct vae_train *t);
int64_t vae_train_step_count(const struct vae_train *t);      /* steps made */
size_t vae_train_bytes(const struct vae_train *t); /* backend memory held, parameters included */
/* Pictures [batch,size,size,3] u8. TF_ENAN when a loss or gradient is no number: the parameters
 * are then as before the step. */
int vae_train_step(struct vae_train *t, const uint8_t *images, struct vae_losses *out,
		   struct err *e);
/* Leaves a step out: the next one has the next number. */
void vae_train_skip(struct vae_train *t);
int64_t vae_train_skipped(const struct vae_train *t);
/* Optimiser state, discriminator and step (not the VAE's own parameters: vae_save). After save
 * and load the next steps are the same bit for bit. */
int vae_train_save(struct vae_train *t, const char *path, struct err *e);
int vae_train_load(struct vae_train *t, const char *path, struct err *e);

/* The mean and deviation of each latent channel, over any number of latents: pixels are added,
 * then the result is read. A channel that never changes has deviation 1. */
struct vae_statistics {
	int channels;
	double count, sum[VAE_LATENT_CHANNELS_MAX], squares[VAE_LATENT_CHANNELS_MAX];
};
void vae_statistics_add(struct vae_statistics *s, const float *latents, int64_t pixels);
void vae_statistics_read(const struct vae_statistics *s, float *mean, float *deviation);

/* PSNR in dB of one picture: 10 log10(4 / mean squared error), values clamped to [-1,1]. */
double vae_psnr(const float *a, const float *b, int64_t count);

#endif
