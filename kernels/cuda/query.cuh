/* SPDX-License-Identifier: Apache-2.0
 * Attention of tokens: one query a sequence over its keys and values in the cache, which the new
 * ones join. query_hopper.cu for heads of 64 and 128 on Hopper, query.cu for all others. */
#ifndef KERNELS_CUDA_QUERY_CUH
#define KERNELS_CUDA_QUERY_CUH

#include "kernels/cuda/common.cuh"

struct query {
	const bf16 *qkv;                        /* [S, 3, heads, hd], not turned yet */
	bf16 *keys, *values;                    /* [S, capacity, heads * hd] */
	bf16 *out;                              /* [S, heads * hd] */
	const float *cosine, *sine;             /* [positions, hd / 2] */
	const int32_t *position, *at, *limit;   /* [S] */
	int sequences, heads, hd, capacity;
	float scale;                            /* with log2(e) in it */
	float *part;        /* partial softmaxes; this and the rest are for the two files to fill */
	unsigned *arrived;                      /* [S, heads], zero before and after */
	int chunks;                             /* of the capacity */
	unsigned pace;      /* clocks between a block's first units */
};

/* hd 32, 64 or 128; at most ARRIVALS heads of all sequences; pointers aligned to 16. Starts while
 * the kernel ahead ends, which must not write the cache, or position, at and limit. */
void query_run(struct cuda_state *s, const struct query *a);

bool query_hopper_fits(const struct cuda_state *s, const struct query *a);
void query_hopper(struct cuda_state *s, const struct query *a);

#endif
