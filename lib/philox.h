/* SPDX-License-Identifier: Apache-2.0
 * Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): random
 * numbers as a function of (seed, purpose, sample, element), so that a stream needs no state and
 * does not depend on batch, rank or thread. */
#ifndef LIB_PHILOX_H
#define LIB_PHILOX_H

#include <stdint.h>

/* What a number is for; part of the key. Never renumber: checkpoints and golden values depend on
 * it. */
enum philox_purpose {
	PHILOX_INIT = 1,        /* weights */
	PHILOX_NOISE = 2,       /* diffusion noise of training */
	PHILOX_TIME = 3,        /* timesteps of training */
	PHILOX_ORDER = 4,       /* order of the epoch */
	PHILOX_LAYOUT = 5,      /* caption first, image first, caption dropped */
	PHILOX_DRAW_START = 6,  /* first noise of a drawn picture */
	PHILOX_DRAW_STEP = 7,   /* DDPM noise of a step */
	PHILOX_TEXT = 8,        /* sampling of tokens */
	PHILOX_VAE = 9,         /* VAE posterior samples */
	PHILOX_TEST = 10,
	PHILOX_EVAL = 11,       /* fixed noise and times of held-out losses */
	PHILOX_ROUND = 12,      /* rounding of moments by chance */
};

/* The block function: counter (4 words) under key (2 words) -> 4 words. */
void philox_block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* Four words number `block` of the stream (seed, purpose, sample).
 * key = (seed lo, seed hi ^ purpose * 0x9E3779B9); counter = (block lo, block hi, sample lo,
 * sample hi). */
void philox_words(uint64_t seed, enum philox_purpose purpose, uint64_t sample, uint64_t block,
		  uint32_t out[4]);
/* Uniform in [0, 1), 24 bits: word 0 of block `element`. */
float philox_uniform(uint64_t seed, enum philox_purpose purpose, uint64_t sample, uint64_t element);
/* Uniform integer in [0, n), n > 0, by 64-bit multiply-shift of words 0 and 1. */
uint64_t philox_below(uint64_t seed, enum philox_purpose purpose, uint64_t sample, uint64_t element,
		      uint64_t n);
/* n standard normals: elements first .. first + n - 1 of the stream. Element i is lane i % 4 of
 * block i / 4; lanes (0,1) and (2,3) are Box-Muller pairs: r = sqrt(-2 ln u), u = (word0 + 1) /
 * 2^32, lane 0 = r cos(2 pi v), lane 1 = r sin(2 pi v), v = word1 / 2^32. Computed in float. */
void philox_normals(uint64_t seed, enum philox_purpose purpose, uint64_t sample, uint64_t first,
		    float *out, uint64_t n);
/* A keyed permutation of [0, n): the image of index i (cycle-walking Feistel of 4 rounds). */
uint64_t philox_permute(uint64_t seed, uint64_t epoch, uint64_t i, uint64_t n);

#endif
