/* SPDX-License-Identifier: Apache-2.0
 * The layers of convolutional nets. Each appends to a tape (tape.h), declares its parameters
 * under <name>.weight and <name>.bias, and returns the value it computes. Values are NHWC; act
 * type of the tape's parameters unless said. Filters are [out, kh, kw, in]. */
#ifndef MODEL_LAYERS_H
#define MODEL_LAYERS_H

#include "model/tape.h"

/* Odd kernel, padding kernel / 2 on both sides, bias. Filters and biases start uniform in
 * +-1 / sqrt(kernel^2 * inputs). */
int layer_conv(struct tape *t, int x, const char *name, int channels, int kernel, int stride);
/* A 4 x 4 (even) kernel of a patch discriminator: padding 1. */
int layer_conv_even(struct tape *t, int x, const char *name, int channels, int kernel, int stride);
/* Group norm (eps 1e-5) with weight and bias per channel, SiLU after it when silu. */
int layer_norm_silu(struct tape *t, int x, const char *name, int groups, bool silu);
/* x + conv(norm silu(conv(norm silu(x)))): <name>.norm1, .conv1, .norm2, .conv2, same channels. */
int layer_residual(struct tape *t, int x, const char *name, int groups);
/* Nearest neighbour twice as large, then a 3 x 3 convolution. */
int layer_up(struct tape *t, int x, const char *name, int channels);
int layer_leaky_relu(struct tape *t, int x, float slope);
int layer_add(struct tape *t, int a, int b);
/* To another type (f32 <-> bf16); x itself when it has it already. */
int layer_convert(struct tape *t, int x, enum dtype type);
/* The VAE's head: moments[n,h,w,2c] f32 -> latent [n,h,w,c] f32 = mean + exp(log variance / 2)
 * noise; noise is an input like the latent; *kl [n] is the mean divergence of each image and
 * kl_weight [n] (an input) the weight of its gradient. */
int layer_posterior(struct tape *t, int moments, int noise, int kl_weight, int *kl);

#endif
