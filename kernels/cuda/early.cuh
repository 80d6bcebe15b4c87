/* SPDX-License-Identifier: Apache-2.0
 * Kernels that start while those ahead of them still run: how they are launched, wait, and let
 * those behind them start. */
#ifndef KERNELS_CUDA_EARLY_CUH
#define KERNELS_CUDA_EARLY_CUH

#include "kernels/cuda/common.cuh"

/* Whether the device lets a kernel start while the one ahead ends (compute capability 9.0). */
static inline bool starts_early(const struct cuda_state *s)
{
	return s->capability >= 90;
}

/* A launch on the stream; early: before the kernel ahead has finished. The kernel must call
 * wait_for_kernel_ahead before it touches anything that an earlier kernel writes or reads. */
static inline cudaLaunchConfig_t launch_shape(struct cuda_state *s, dim3 grid, unsigned threads,
					      bool early, cudaLaunchAttribute *room)
{
	cudaLaunchConfig_t c = {};

	c.gridDim = grid;
	c.blockDim = dim3(threads);
	c.stream = s->stream;
	room->id = cudaLaunchAttributeProgrammaticStreamSerialization;
	room->val.programmaticStreamSerializationAllowed = 1;
	c.attrs = room;
	c.numAttrs = early && starts_early(s) ? 1 : 0;
	return c;
}

/* From the second cache: kernels ahead wrote it after this block started. */
static __device__ __forceinline__ float read_result(const bf16 *p)
{
	return __uint_as_float((uint32_t)__ldcg(reinterpret_cast<const unsigned short *>(p)) << 16);
}

static __device__ __forceinline__ unsigned clocks_now(void)
{
	return (unsigned)clock();
}

/* Whether the multiprocessor's clock has come to `when`, which is less than 2^31 clocks away. */
static __device__ __forceinline__ bool clock_reached(unsigned when)
{
	return (int)(clocks_now() - when) >= 0;
}

/* The kernel behind may start now: what it reads early is not written by this one. */
static __device__ __forceinline__ void let_kernel_behind_start(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* Everything that earlier kernels wrote is there afterwards. */
static __device__ __forceinline__ void wait_for_kernel_ahead(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#endif
