/* SPDX-License-Identifier: Apache-2.0
 * The block function of lib/philox.h on the device. */
#ifndef KERNELS_CUDA_PHILOX_CUH
#define KERNELS_CUDA_PHILOX_CUH

#include "kernels/cuda/common.cuh"

static __device__ __forceinline__ void philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
#pragma unroll
	for (int round = 0; round < 10; round++) {
		uint32_t hi0 = __umulhi(0xD2511F53u, c[0]), lo0 = 0xD2511F53u * c[0];
		uint32_t hi1 = __umulhi(0xCD9E8D57u, c[2]), lo1 = 0xCD9E8D57u * c[2];

		c[0] = hi1 ^ c[1] ^ k0;
		c[1] = lo1;
		c[2] = hi0 ^ c[3] ^ k1;
		c[3] = lo0;
		k0 += 0x9E3779B9u;
		k1 += 0xBB67AE85u;
	}
}

/* The second word of the key of (seed, purpose); the first is the seed's low half. */
static inline uint32_t philox_key(uint64_t seed, enum philox_purpose purpose)
{
	return (uint32_t)(seed >> 32) ^ (uint32_t)purpose * 0x9E3779B9u;
}

#endif
