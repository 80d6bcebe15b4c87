/* SPDX-License-Identifier: Apache-2.0
 * Convolutions as their two ways see them: conv.cu lays out windows for cuBLASLt, cudnn.cu asks
 * cuDNN where it is found. */
#ifndef KERNELS_CUDA_CONV_CUH
#define KERNELS_CUDA_CONV_CUH

#include "kernels/cuda/common.cuh"

struct geometry {
	int64_t n, h, w, ci, co, kh, kw, ho, wo;
	int64_t stride, before, after; /* padding on both axes */
};

enum conv_pass { CONV_FORWARD, CONV_DATA, CONV_WEIGHT, CONV_PASSES };

/* x and w (forward), dout and w (data), dout and x (weight) to out, all of the type but that
 * CONV_WEIGHT adds to an f32 out. False, with nothing done: there is no cuDNN, or it has no
 * algorithm of fixed order for this shape. */
bool cudnn_conv(struct cuda_state *s, enum conv_pass pass, const struct geometry *g,
		enum dtype type, const void *a, const void *b, void *out);

#endif
