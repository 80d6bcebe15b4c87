/* SPDX-License-Identifier: Apache-2.0
 * The patch discriminator's layers (patchgan.h): no norm after the first convolution and none
 * after the last; the last two have stride 1. */
#include "config.h"
#include "model/layers.h"
#include "model/patchgan.h"

#include <stdio.h>

#define SLOPE 0.2f
#define WIDEN_MAX 8
#define CHANNELS_MAX 1024

static int channels_at(const struct patchgan_config *c, int layer)
{
	int widen = 1 << layer;

	return c->channels * (widen < WIDEN_MAX ? widen : WIDEN_MAX);
}

static int64_t side_after(int64_t side, int stride)
{
	return (side + 2 - 4) / stride + 1;
}

int patchgan_config_check(const struct patchgan_config *c, int64_t side, struct err *e)
{
	int64_t s = side;

	FAIL_IF(c->layers < 1 || c->layers > PATCHGAN_LAYERS_MAX, e, TF_EINVALID,
		"the discriminator has %d layers, expected 1 to %d", c->layers,
		PATCHGAN_LAYERS_MAX);
	FAIL_IF(c->channels < 1 || c->channels > CHANNELS_MAX, e, TF_EINVALID,
		"the discriminator has %d channels, expected 1 to %d", c->channels, CHANNELS_MAX);
	FAIL_IF(c->groups < 1 || c->channels % c->groups, e, TF_EINVALID,
		"the discriminator has %d norm groups, expected a divisor of its %d channels",
		c->groups, c->channels);
	for (int i = 0; i < c->layers; i++)
		s = side_after(s, 2);
	FAIL_IF(s < 4, e, TF_EINVALID,
		"pictures of side %lld are too small for a discriminator of %d "
		"layers: expected at least %d",
		(long long)side, c->layers, 4 << c->layers);
	return 0;
}

int patchgan_layers(struct tape *t, int x, const struct patchgan_config *c)
{
	x = layer_convert(t, x, tape_params(t)->act);
	for (int layer = 0; layer <= c->layers; layer++) {
		char name[PARAM_NAME_MAX];

		snprintf(name, sizeof name, "discriminator.conv%d", layer);
		x = layer_conv_even(t, x, name, channels_at(c, layer), 4,
				    layer < c->layers ? 2 : 1);
		snprintf(name, sizeof name, "discriminator.norm%d", layer);
		if (layer > 0)
			x = layer_norm_silu(t, x, name, c->groups, false);
		x = layer_leaky_relu(t, x, SLOPE);
	}
	x = layer_conv_even(t, x, "discriminator.out", 1, 4, 1);
	return layer_convert(t, x, DT_F32);
}
