/* SPDX-License-Identifier: Apache-2.0
 * The two halves of the autoencoder as layers on a tape; parameters "encoder.*" and "decoder.*". */
#ifndef MODEL_VAE_NET_H
#define MODEL_VAE_NET_H

#include "model/tape.h"
#include "model/vae.h"

/* x [n,h,w,3] f32 -> moments [n,h/f,w/f,2c] f32: mean, then log variance. */
int vae_net_encode(struct tape *t, int x, const struct vae_config *c);
/* z [n,h,w,c] f32 -> pictures [n,h*f,w*f,3] f32. */
int vae_net_decode(struct tape *t, int z, const struct vae_config *c);

/* For training: the VAE's parameters and the backend they live on. */
struct params *vae_params(struct vae *v);

#endif
