/* SPDX-License-Identifier: Apache-2.0
 * The autoencoder: pictures [n,h,w,3] in [-1,1] <-> latents [n,h/f,w/f,c], f = 4, 8 or 16.
 *
 * Encoder: a 3 x 3 convolution of stride 2 and `blocks` residual blocks per level, then group norm,
 * SiLU and a convolution to mean and log variance. Decoder: the mirror image, each level ending in
 * a doubling. Per-channel mean and deviation of the latents, measured over the training split, are
 * part of the VAE (all 0 and 1 until vae_set_statistics): latents are stored raw, the transformer
 * sees normalised ones.
 *
 * One file, safetensors (names in doc/model.md): the parameters in f32, "latent.mean" and
 * "latent.deviation" [c], and the configuration in its metadata. Arrays of these functions are
 * the host's, NHWC, f32. One thread at a time. */
#ifndef MODEL_VAE_H
#define MODEL_VAE_H

#include "kernels/kernels.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

#define VAE_FILE "vae.safetensors"        /* its name in a VAE's folder */
#define VAE_LEVELS_MAX 4
#define VAE_CHANNELS_MAX 1024
#define VAE_BLOCKS_MAX 8
#define VAE_LATENT_CHANNELS_MAX 64
#define VAE_HASH_TEXT 33

struct vae_config {
	int levels;                       /* halvings: 2, 3 or 4 for 4x, 8x, 16x */
	int channels[VAE_LEVELS_MAX];     /* of each level, the picture's side first */
	int blocks;                       /* residual blocks a level */
	int latent_channels;
	int groups;                       /* of the group norms; divides every channel count */
};

struct vae;

/* 16/32/64 channels, one block, 8 latent channels, 8 groups: 0.26M parameters. */
extern const struct vae_config vae_config_small;
/* Says which field is out of range. */
int vae_config_check(const struct vae_config *c, struct err *e);
static inline int vae_factor(const struct vae_config *c) { return 1 << c->levels; }

/* A VAE with drawn parameters; act is the type of activations (DT_F32 or DT_BF16). k outlives
 * it. */
int vae_new(struct kernels *k, const struct vae_config *c, enum dtype act, uint64_t seed,
	    struct vae **out, struct err *e);
/* Reads a VAE file; every name, shape and number in it is checked. */
int vae_open(struct kernels *k, const char *path, enum dtype act, struct vae **out, struct err *e);
int vae_save(struct vae *v, const char *path, struct err *e);
/* Writes the file with other values, params_bytes of the host's; v stays as it is. Any thread. */
int vae_write(const struct vae *v, const void *values, const char *path, struct err *e);
void vae_free(struct vae *v);

const struct vae_config *vae_config_of(const struct vae *v);
int64_t vae_parameters(const struct vae *v);
/* XXH3-128, as hex, of the file it was last read from or saved to; "" when there was none. */
const char *vae_hash(const struct vae *v);

/* Posterior means (raw) of n pictures; height and width are multiples of the factor
 * (TF_EINVALID). Pictures go through the net `batch` at a time (vae_set_batch, 8 at first); a
 * picture's latent does not depend on the others. The plan for one shape is kept until another
 * is asked for. */
int vae_encode(struct vae *v, const float *images, int64_t n, int64_t height, int64_t width,
	       float *latents, struct err *e);
/* The same from bytes: value / 127.5 - 1. */
int vae_encode_u8(struct vae *v, const uint8_t *images, int64_t n, int64_t height, int64_t width,
		  float *latents, struct err *e);
/* Pictures from raw latents [n,rows,columns,c]; not clamped. One or two go through the net one by
 * one: on a GPU they may then differ from those of a batch by the rounding of bf16. */
int vae_decode(struct vae *v, const float *latents, int64_t n, int64_t rows, int64_t columns,
	       float *images, struct err *e);
void vae_set_batch(struct vae *v, int pictures);
/* The backend's memory that decoding n latents takes, the parameters included. */
size_t vae_drawing_bytes(struct vae *v, int64_t n, int64_t rows, int64_t columns);

/* In place over `pixels` latent pixels of c channels: (x - mean) / deviation and back. */
void vae_normalise(const struct vae *v, float *latents, int64_t pixels);
void vae_denormalise(const struct vae *v, float *latents, int64_t pixels);
const float *vae_mean(const struct vae *v);
const float *vae_deviation(const struct vae *v);
/* Deviations must be positive and finite. */
void vae_set_statistics(struct vae *v, const float *mean, const float *deviation);

/* Pictures to bytes: round((x + 1) * 127.5), clamped. */
void vae_to_bytes(const float *images, int64_t count, uint8_t *bytes);

#endif
