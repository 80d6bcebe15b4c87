/* SPDX-License-Identifier: Apache-2.0
 * What the files of the GPU backend share: the state behind struct kernels, error ends, launches,
 * 16-byte accesses of eight elements, and reductions in a fixed order.
 *
 * Nothing allocates after warm-up: scratch grows on first use and is then kept. Every reduction has
 * a fixed order, so that the same input gives the same bits on the same device model. */
#ifndef KERNELS_CUDA_COMMON_CUH
#define KERNELS_CUDA_COMMON_CUH

extern "C" {
#include "kernels/kernels.h"
}
#include "kernels/cuda/cuda.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

extern "C" {
#define K(ret, name, args) ret cuda_##name args;
#include "kernels/kernels.def"
#undef K
}

typedef __nv_bfloat16 bf16;

struct matmul_table;
struct profile;
struct attention_plans;
struct cudnn;

struct cuda_scratch_block {
	void *data;
	size_t bytes;
	struct cuda_scratch_block *older; /* kept until close: recorded graphs may still use it */
};

#define UPLOAD_SLOTS 4
#define UPLOAD_SLOT_BYTES ((size_t)4 << 20)

#define ARRIVALS 4096
#define CLUSTER_MOST 8 /* blocks of a cluster on any device that has them */

struct cuda_state {
	int device;
	int processors; /* streaming multiprocessors */
	int capability; /* 80, 90, ... */
	size_t shared_most; /* dynamic shared memory a block may ask for beside 8 KiB of its own */
	bool hopper;	/* 9.0: wgmma and bulk tensor copies */
	cudaStream_t stream;
	bool recording;
	struct cuda_scratch_block *scratch, *parts; /* newest first */
	char *slot[UPLOAD_SLOTS]; /* pinned; uploads go through them */
	cudaEvent_t slot_free[UPLOAD_SLOTS];
	int slot_next;
	cudaEvent_t fetched[FETCHES_MOST]; /* recorded behind the copies under way */
	bool fetching[FETCHES_MOST];	   /* its event is in use; set and cleared atomically */
	struct matmul_table *matmul; /* matmul.cu */
	struct profile *profile;     /* profile.cu; NULL: none */
	struct attention_plans *plans; /* attention_plans.cu; NULL: none yet */
	struct cudnn *cudnn;	     /* cudnn.cu; NULL: not looked for yet */
	unsigned *arrived;	     /* [ARRIVALS] counters of query.cu, zero between kernels */
	int pairs;		     /* of blocks that fused.cu runs at a time; 0: not asked yet */
	/* clusters of so many blocks that query_hopper.cu runs at a time; 0: not asked yet */
	int clusters[CLUSTER_MOST + 1];
	void *encode_tiled;	     /* cuTensorMapEncodeTiled, or NULL */
	char name[256]; /* the device's */
	char description[512];
};

static inline struct cuda_state *state_of(struct kernels *k)
{
	return (struct cuda_state *)k->state;
}

/* Ends the process: a failed device call cannot be mended from inside the worker. */
void cuda_fail(cudaError_t rc, const char *what, const char *file, int line)
	__attribute__((noreturn));
#define CUDA(call)                                                 \
	do {                                                       \
		cudaError_t rc_ = (call);                          \
		if (rc_ != cudaSuccess)                            \
			cuda_fail(rc_, #call, __FILE__, __LINE__); \
	} while (0)
#define LAUNCHED() CUDA(cudaGetLastError())

/* At least `bytes` of device memory, valid until the next call of cuda_scratch by another
 * operation. Growing while a graph is recorded is a bug of the caller: run the step once before. */
void *cuda_scratch(struct cuda_state *s, size_t bytes);
/* The same of memory that query_hopper.cu alone uses: all bits are set before its kernels, which
 * leave it so. One that did not run to its end has ended the process (cuda_fail). */
void *cuda_parts(struct cuda_state *s, size_t bytes);

struct matmul_table *matmul_table_new(struct cuda_state *s, struct err *e);
void matmul_table_free(struct matmul_table *t);
/* Whether device and library multiply e4m3 whose rows are scaled. */
bool matmul_has_fp8(const struct cuda_state *s);
void cudnn_close(struct cuda_state *s);
void attention_plans_free(struct cuda_state *s);
/* These bytes are being written, or all memory (NULL): plans of attention made from them are not
 * kept. Whatever writes indices must call it. */
void attention_forget(struct cuda_state *s, const void *p, size_t bytes);
/* C[M,N] = op(A) op(B) + bias + beta C over raw pointers; see the matmul row. bias is f32 or NULL.
 * onto, where it is not NULL, takes the place of the C that is added (through the library alone).
 * in DT_E4M3: as the matmul_scaled row has it. */
struct product {
	int64_t m, n, k;
	const void *a, *b;
	void *c;
	const float *bias;
	bool ta, tb;
	enum dtype in, out;
	float beta;
	const float *a_scale, *b_scale; /* [m], [n]: of e4m3 */
	bool rough;
	const void *onto;
};
void cuda_product(struct cuda_state *s, const struct product *p);
/* out[c] += sum over the slices of part[slice, c], in order (rows.cu). */
void cuda_add_column_sums(struct cuda_state *s, float *out, const float *part, int64_t slices,
			  int64_t d);

static inline bool aligned16(const void *p)
{
	return ((uintptr_t)p & 15) == 0;
}

static inline int64_t div_up(int64_t a, int64_t b)
{
	return (a + b - 1) / b;
}

/* Gives every cluster of the launch so many blocks; there must be room for another attribute. */
static inline void form_clusters(cudaLaunchConfig_t *shape, unsigned blocks)
{
	cudaLaunchAttribute *cluster = &shape->attrs[shape->numAttrs++];

	cluster->id = cudaLaunchAttributeClusterDimension;
	cluster->val.clusterDim.x = blocks;
	cluster->val.clusterDim.y = cluster->val.clusterDim.z = 1;
}

/* Blocks for a grid-stride loop over `items` threads' worth of work. */
static inline unsigned grid_for(const struct cuda_state *s, int64_t items, int threads)
{
	int64_t blocks = div_up(items, threads), most = (int64_t)s->processors * 32;

	return (unsigned)(blocks < 1 ? 1 : blocks > most ? most : blocks);
}

/* Runs the statement with T = float or bf16, as the type of an activation says. */
#define ACT(dtype, ...)                           \
	do {                                      \
		if ((dtype) == DT_BF16) {         \
			typedef bf16 T;           \
			__VA_ARGS__;              \
		} else {                          \
			CHECK((dtype) == DT_F32); \
			typedef float T;          \
			__VA_ARGS__;              \
		}                                 \
	} while (0)

/* ---- device side */
static __device__ __forceinline__ float to_float(float x)
{
	return x;
}
static __device__ __forceinline__ float to_float(bf16 x)
{
	return __bfloat162float(x);
}
static __device__ __forceinline__ void put(float *p, float x)
{
	*p = x;
}
static __device__ __forceinline__ void put(bf16 *p, float x)
{
	*p = __float2bfloat16_rn(x);
}

static __device__ __forceinline__ uint32_t pack_bf16(float lo, float hi)
{
	__nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);

	return *reinterpret_cast<uint32_t *>(&v);
}

static __device__ __forceinline__ float2 unpack_bf16(uint32_t v)
{
	return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
}

static __device__ __forceinline__ void load8(const float *p, float x[8])
{
	float4 a = reinterpret_cast<const float4 *>(p)[0],
	       b = reinterpret_cast<const float4 *>(p)[1];

	x[0] = a.x;
	x[1] = a.y;
	x[2] = a.z;
	x[3] = a.w;
	x[4] = b.x;
	x[5] = b.y;
	x[6] = b.z;
	x[7] = b.w;
}

static __device__ __forceinline__ void unpack8(uint4 v, float x[8])
{
	uint32_t w[4] = { v.x, v.y, v.z, v.w };

#pragma unroll
	for (int i = 0; i < 4; i++) {
		float2 pair = unpack_bf16(w[i]);

		x[2 * i] = pair.x;
		x[2 * i + 1] = pair.y;
	}
}

static __device__ __forceinline__ void load8(const bf16 *p, float x[8])
{
	unpack8(*reinterpret_cast<const uint4 *>(p), x);
}

static __device__ __forceinline__ void store8(float *p, const float x[8])
{
	reinterpret_cast<float4 *>(p)[0] = make_float4(x[0], x[1], x[2], x[3]);
	reinterpret_cast<float4 *>(p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

static __device__ __forceinline__ void store8(bf16 *p, const float x[8])
{
	*reinterpret_cast<uint4 *>(p) = make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]),
						   pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

/* Eight elements at p, of which `left` exist (the rest read as 0): one access when WIDE, which
 * needs 16-byte alignment and all eight there. */
template <bool WIDE, typename T>
static __device__ __forceinline__ void get_eight(const T *p, int64_t left, float x[8])
{
	if constexpr (WIDE) {
		load8(p, x);
	} else {
#pragma unroll
		for (int i = 0; i < 8; i++)
			x[i] = i < left ? to_float(p[i]) : 0.0f;
	}
}

template <bool WIDE, typename T>
static __device__ __forceinline__ void put_eight(T *p, int64_t left, const float x[8])
{
	if constexpr (WIDE) {
		store8(p, x);
	} else {
#pragma unroll
		for (int i = 0; i < 8; i++)
			if (i < left)
				put(p + i, x[i]);
	}
}

static __device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
	for (int i = 16; i > 0; i >>= 1)
		x += __shfl_xor_sync(0xffffffffu, x, i);
	return x;
}

/* Of four lanes that follow one another. */
static __device__ __forceinline__ float quad_sum(float x)
{
	x += __shfl_xor_sync(0xffffffffu, x, 1);
	return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

static __device__ __forceinline__ float warp_max(float x)
{
#pragma unroll
	for (int i = 16; i > 0; i >>= 1)
		x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
	return x;
}

/* The same value in every thread of the block; blockDim.x is a multiple of 32. */
static __device__ __forceinline__ float block_sum(float x)
{
	__shared__ float part[32];
	int warp = threadIdx.x / 32, warps = blockDim.x / 32;

	x = warp_sum(x);
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		part[warp] = x;
	__syncthreads();
	return warp_sum((int)(threadIdx.x % 32) < warps ? part[threadIdx.x % 32] : 0.0f);
}

static __device__ __forceinline__ float block_max(float x)
{
	__shared__ float part[32];
	int warp = threadIdx.x / 32, warps = blockDim.x / 32;

	x = warp_max(x);
	__syncthreads();
	if (threadIdx.x % 32 == 0)
		part[warp] = x;
	__syncthreads();
	return warp_max((int)(threadIdx.x % 32) < warps ? part[threadIdx.x % 32] : -INFINITY);
}

static __device__ __forceinline__ int64_t thread_index(void)
{
	return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ int64_t thread_count(void)
{
	return (int64_t)gridDim.x * blockDim.x;
}

/* Loop of every thread over its share of n items. */
#define EACH(i, n) for (int64_t i = thread_index(); i < (n); i += thread_count())

#endif
