/* SPDX-License-Identifier: Apache-2.0
 * The autoencoder's layers (vae_net.h). Level i of the encoder halves the picture with a
 * convolution to channels[i]; the decoder's level i runs its blocks at channels[i] and doubles
 * to channels[i - 1]. */
#include "config.h"
#include "model/layers.h"
#include "model/vae_net.h"

#include <stdio.h>

static int blocks(struct tape *t, int x, const char *half, int level, const struct vae_config *c)
{
	for (int b = 0; b < c->blocks; b++) {
		char name[PARAM_NAME_MAX];

		snprintf(name, sizeof name, "%s.level%d.block%d", half, level, b);
		x = layer_residual(t, x, name, c->groups);
	}
	return x;
}

int vae_net_encode(struct tape *t, int x, const struct vae_config *c)
{
	x = layer_convert(t, x, tape_params(t)->act);
	for (int level = 0; level < c->levels; level++) {
		char name[PARAM_NAME_MAX];

		snprintf(name, sizeof name, "encoder.level%d.down", level);
		x = layer_conv(t, x, name, c->channels[level], 3, 2);
		x = blocks(t, x, "encoder", level, c);
	}
	x = layer_norm_silu(t, x, "encoder.norm", c->groups, true);
	x = layer_conv(t, x, "encoder.out", 2 * c->latent_channels, 3, 1);
	return layer_convert(t, x, DT_F32);
}

int vae_net_decode(struct tape *t, int z, const struct vae_config *c)
{
	int x = layer_convert(t, z, tape_params(t)->act);

	x = layer_conv(t, x, "decoder.in", c->channels[c->levels - 1], 3, 1);
	for (int level = c->levels - 1; level >= 0; level--) {
		char name[PARAM_NAME_MAX];

		x = blocks(t, x, "decoder", level, c);
		snprintf(name, sizeof name, "decoder.level%d.up", level);
		x = layer_up(t, x, name, c->channels[level > 0 ? level - 1 : 0]);
	}
	x = layer_norm_silu(t, x, "decoder.norm", c->groups, true);
	x = layer_conv(t, x, "decoder.out", 3, 3, 1);
	return layer_convert(t, x, DT_F32);
}
