/* SPDX-License-Identifier: Apache-2.0
 * The patch discriminator of VAE training (Isola et al. 2017; hinge loss as Lim & Ye 2017): 4 x 4
 * convolutions of stride 2 with leaky ReLU 0.2, group norm between them, then one logit a patch. */
#ifndef MODEL_PATCHGAN_H
#define MODEL_PATCHGAN_H

#include "model/tape.h"

#define PATCHGAN_LAYERS_MAX 4

struct patchgan_config {
	int channels; /* of the first layer; doubled by each next one, up to 8 times */
	int layers;                  /* of stride 2: 1 .. PATCHGAN_LAYERS_MAX */
	int groups;
};

/* Appends the net to t (parameters "discriminator.*"); x [n,h,w,3] -> logits [n,h',w',1]. */
int patchgan_layers(struct tape *t, int x, const struct patchgan_config *c);
/* Says which field is out of range, or that pictures of this side are too small. */
int patchgan_config_check(const struct patchgan_config *c, int64_t side, struct err *e);

#endif
