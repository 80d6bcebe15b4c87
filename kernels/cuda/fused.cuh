/* SPDX-License-Identifier: Apache-2.0
 * Products of many rows with what follows them (Hopper, bf16): fused.cu. Where one does not fit,
 * its caller runs the parts one after the other. */
#ifndef KERNELS_CUDA_FUSED_CUH
#define KERNELS_CUDA_FUSED_CUH

#include "kernels/cuda/common.cuh"

/* out[M,F] = silu(x gate^T) (x up^T): x[M,K], w[2F,K], gate first. gate_up [M,2F] (NULL: not
 * wanted) takes both products. */
bool fused_swiglu_fits(const struct cuda_state *s, const struct tensor *out, const struct tensor *x,
		       const struct tensor *w);
void fused_swiglu(struct cuda_state *s, const struct tensor *out, const struct tensor *gate_up,
		  const struct tensor *x, const struct tensor *w);

/* Where queries, keys and values go: see the cached_layers row. */
struct fused_turn {
	const float *cosine, *sine;           /* [positions, hd / 2] */
	const int32_t *position, *limit, *at; /* [M], [M], [M / each] */
	bf16 *keys, *values;                  /* [M / each, capacity, d] */
	int each, capacity, hd;
};

/* x w^T: queries, turned, to out[M,3d]; keys, turned, and values to the cache, and not to out. */
bool fused_qkv_fits(const struct cuda_state *s, const struct tensor *out, const struct tensor *x,
		    const struct tensor *w, const struct fused_turn *t);
void fused_qkv(struct cuda_state *s, const struct tensor *out, const struct tensor *x,
	       const struct tensor *w, const struct fused_turn *t);

#endif
