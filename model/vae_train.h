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
	bool counts;                 /* no: a net's gradient was no number; it is as it was */
};

struct vae_train;

extern const struct vae_train_config vae_train_config_small;
int vae_train_config_check(const struct vae_train_config *c, const struct vae_config *v,
			   struct err *e);

/* v and its backend outlive the training. */
int vae_train_new(struct vae *v, const struct vae_train_config *c, struct vae_train **out,
		  struct err *e);
void vae_train_free(struct vae_train *t);
int64_t vae_train_step_count(const struct vae_train *t);   /* steps launched */
size_t vae_train_bytes(const struct vae_train *t); /* backend memory held, parameters included */
/* Launches a step on pictures [batch,size,size,3] u8, which may be reused on return, and begins to
 * fetch its figures: vae_train_figures floats of host_alloc's memory. Returns how many fetches were
 * begun, at most VAE_TRAIN_FETCHES. A net whose gradient is no number is left as it is, by the
 * device itself. */
#define VAE_TRAIN_FETCHES 3
size_t vae_train_figures(const struct vae_train *t);
int vae_train_launch(struct vae_train *t, const uint8_t *images, struct fetch *fetch,
		     float *figures);
/* What the figures say of step `step` (from 0) once the fetches have ended; each step once, in
 * order. */
void vae_train_settle(struct vae_train *t, int64_t step, const float *figures,
		      struct vae_losses *out);
/* Makes the next step's gradients no numbers, for tests of what follows then. */
void vae_train_spoil(struct vae_train *t);
/* ---- vae_state.c */

/* A copy of the run in the host's memory, so that it can be written while the run goes on. */
struct vae_copy;
#define VAE_COPY_FETCHES 6 /* at most, under way until it is written */
/* Takes the memory for copies of t, which outlives it. TF_ENOMEM. */
int vae_copy_new(struct vae_train *t, struct vae_copy **out, struct err *e);
void vae_copy_free(struct vae_copy *c);
/* Starts to copy the run as it is behind all work queued so far, without waiting; all steps are
 * settled. skipped: steps that were left out, which are the caller's to count. */
void vae_copy_take(struct vae_copy *c, struct vae_train *t, uint64_t skipped);
/* Waits for the copy to be whole and writes it: the VAE's file, and the state's (optimiser,
 * discriminator and step). Any thread, while the VAE's statistics stay as they are. */
int vae_copy_write(struct vae_copy *c, const char *vae_path, const char *path, struct err *e);
/* Reads the state; the VAE's parameters are read by vae_open. The next steps are then the same bit
 * for bit. */
int vae_train_load(struct vae_train *t, const char *path, uint64_t *skipped, struct err *e);

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
