/* SPDX-License-Identifier: Apache-2.0
 * Attention of tokens on any GPU: a block takes CHUNK keys of a head at a time and reads its next
 * ones meanwhile; the last block of a head to finish adds the chunks up. The first chunk is read
 * while the kernel ahead still runs, which does not write the cache. */
#include "kernels/cuda/few.cuh"
#include "kernels/cuda/query.cuh"

#define GROUPS 16  /* of lanes, each over one key at a time */
#define STEPS 8    /* keys of a group */
#define CHUNK (GROUPS * STEPS)
#define ROOM 32    /* a multiprocessor holds ROOM / LANES blocks at a time */
#define PARTS 16   /* partial softmaxes that are read at once */

/* What a block's chunk holds, and a thread's place in it: eight elements of every GROUPS-th key. */
struct chunk {
	int first, to, place; /* keys: its first; the last one seen and the new one, or -1 */
	int group, c;         /* of the keys; the first of the eight elements */
	bf16 *keys, *values;  /* the head's eight elements of key 0 */
};

/* Written by a kernel ahead, after this block started. */
static __device__ __forceinline__ uint4 read_eight(const bf16 *p)
{
	return __ldcg(reinterpret_cast<const uint4 *>(p));
}

/* Elements c .. c+7 of a head turned by the cosines and sines of their pairs, rounded as they are
 * stored. */
static __device__ __forceinline__ uint4 turn(const bf16 *head, const float cosine[8],
					     const float sine[8], int c, int half)
{
	float x[8], y[8], sign = c < half ? -1.0f : 1.0f;

	unpack8(read_eight(head + c), x);
	unpack8(read_eight(head + (c < half ? c + half : c - half)), y);
#pragma unroll
	for (int i = 0; i < 8; i++)
		x[i] = x[i] * cosine[i] + sign * y[i] * sine[i];
	return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
			  pack_bf16(x[6], x[7]));
}

/* Of the cache, read once. Never moved by the compiler. */
static __device__ __forceinline__ uint4 read_cache(const bf16 *p)
{
	uint4 v;

	asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
		     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
		     : "l"(p));
	return v;
}

/* The thread's share of the chunk's keys or values; zeros for the new one and beyond the last. */
static __device__ __forceinline__ void read_chunk(const struct chunk &n, int64_t row,
						  const bf16 *from, uint4 to[STEPS])
{
	const uint4 none = { 0, 0, 0, 0 };

#pragma unroll
	for (int i = 0; i < STEPS; i++) {
		int j = n.first + n.group + i * GROUPS;

		to[i] = j <= n.to && j != n.place ? read_cache(from + j * row) : none;
	}
}

/* The new key and value, of a chunk that has their place. */
static __device__ __forceinline__ void take_new(const struct chunk &n, uint4 key[STEPS],
						uint4 value[STEPS], uint4 new_key, uint4 new_value)
{
#pragma unroll
	for (int i = 0; i < STEPS; i++)
		if (n.first + n.group + i * GROUPS == n.place && n.place <= n.to) {
			key[i] = new_key;
			value[i] = new_value;
		}
}

/* A softmax over some keys that is not divided by its sum yet: the thread's part of the values. */
template <int N> struct partial {
	float most, sum, value[N];
};

/* The group's scores of its keys, and the highest. */
template <int LANES>
static __device__ __forceinline__ float score_group(const struct chunk &n, const float q[8],
						    const uint4 key[STEPS], float score[STEPS])
{
	float most = -INFINITY;

#pragma unroll
	for (int i = 0; i < STEPS; i++) {
		float x[8], dot = 0.0f;

		unpack8(key[i], x);
#pragma unroll
		for (int j = 0; j < 8; j++)
			dot += q[j] * x[j];
#pragma unroll
		for (int j = LANES / 2; j > 0; j >>= 1)
			dot += __shfl_xor_sync(0xffffffffu, dot, j);
		score[i] = n.first + n.group + i * GROUPS <= n.to ? dot : -INFINITY;
		most = fmaxf(most, score[i]);
	}
	return most;
}

/* The group's softmax over its keys. */
static __device__ __forceinline__ struct partial<8>
weigh_group(float most, const float score[STEPS], const uint4 value[STEPS])
{
	struct partial<8> p = { most };

#pragma unroll
	for (int i = 0; i < STEPS; i++) {
		float x[8], w = score[i] == -INFINITY ? 0.0f : exp2f(score[i] - most);

		p.sum += w;
		unpack8(value[i], x);
#pragma unroll
		for (int j = 0; j < 8; j++)
			p.value[j] += w * x[j];
	}
	return p;
}

/* The groups of a warp put together; all of them have the result. */
template <int LANES>
static __device__ __forceinline__ void merge_groups(struct partial<8> &p)
{
	float most = p.most, w;

#pragma unroll
	for (int i = LANES; i < 32; i *= 2)
		most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
	w = p.most == -INFINITY ? 0.0f : exp2f(p.most - most);
	p.most = most;
	p.sum *= w;
#pragma unroll
	for (int j = 0; j < 8; j++)
		p.value[j] *= w;
#pragma unroll
	for (int i = LANES; i < 32; i *= 2) {
		p.sum += __shfl_xor_sync(0xffffffffu, p.sum, i);
#pragma unroll
		for (int j = 0; j < 8; j++)
			p.value[j] += __shfl_xor_sync(0xffffffffu, p.value[j], i);
	}
}

/* n parts [hd + 2] (values, most, sum) put together in order, element e of the values. SHARED: they
 * lie in shared memory, else in the second cache. */
template <bool SHARED>
static __device__ __forceinline__ struct partial<1> merge_parts(const float *part, int n, int hd,
								int e)
{
	struct partial<1> p = { -INFINITY };

	for (int first = 0; first < n; first += PARTS) {
		float value[PARTS], most[PARTS], sum[PARTS], top = p.most, w;

#pragma unroll
		for (int i = 0; i < PARTS; i++) {
			const float *from = part + (first + i) * (hd + 2);
			bool there = first + i < n;

			value[i] = !there ? 0.0f : SHARED ? from[e] : __ldcg(from + e);
			most[i] = !there ? -INFINITY : SHARED ? from[hd] : __ldcg(from + hd);
			sum[i] = !there ? 0.0f : SHARED ? from[hd + 1] : __ldcg(from + hd + 1);
			top = fmaxf(top, most[i]);
		}
		if (top == -INFINITY)
			continue;
		w = exp2f(p.most - top);
		p.most = top;
		p.sum *= w;
		p.value[0] *= w;
#pragma unroll
		for (int i = 0; i < PARTS; i++) {
			w = exp2f(most[i] - top);
			p.sum += w * sum[i];
			p.value[0] += w * value[i];
		}
	}
	return p;
}

/* Whether this block is the last of its head's; the others' parts are there then. One thread
 * releases what all of the block wrote, and acquires what the other blocks did. */
static __device__ __forceinline__ bool last_to_arrive(unsigned *arrived, int blocks)
{
	__shared__ bool last;
	unsigned before;

	__syncthreads();
	if (threadIdx.x == 0) {
		asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
			     : "=r"(before)
			     : "l"(arrived), "r"((unsigned)blocks - 1)
			     : "memory");
		last = before == (unsigned)blocks - 1;
	}
	__syncthreads();
	return last;
}

/* The softmax over the block's chunk; thread e has element e of the values. */
template <int LANES>
static __device__ __forceinline__ struct partial<1> merge_chunk(const struct chunk &n,
								const struct partial<8> &mine)
{
	const int hd = LANES * 8, warps = LANES * GROUPS / 32;
	__shared__ float parts[warps * (hd + 2)];
	int thread = (int)threadIdx.x;
	float *p = parts + thread / 32 * (hd + 2);

	if (thread % 32 < LANES) {
#pragma unroll
		for (int i = 0; i < 8; i++)
			p[n.c + i] = mine.value[i];
		if (n.c == 0) {
			p[hd] = mine.most;
			p[hd + 1] = mine.sum;
		}
	}
	__syncthreads();
	return merge_parts<true>(parts, warps, hd, thread % hd);
}

/* A chunk's part to the others of its head. */
static __device__ __forceinline__ void put_part(float *p, const struct partial<1> &part, int hd)
{
	int thread = (int)threadIdx.x;

	if (thread < hd)
		p[thread] = part.value[0];
	if (thread == 0) {
		p[hd] = part.most;
		p[hd + 1] = part.sum;
	}
}

/* The chunks that are the block's: whether it has the softmax of the whole head, which thread e
 * has element e of. */
template <int LANES>
static __device__ __forceinline__ bool
attend_chunks(const struct query &a, struct chunk n, int64_t row, const float q[8],
	      uint4 key[STEPS], uint4 value[STEPS], const uint4 &new_key, const uint4 &new_value,
	      struct partial<1> *whole)
{
	const int hd = LANES * 8, chunks = n.to / CHUNK + 1, blocks = min(chunks, (int)gridDim.x);
	int64_t head = (int64_t)blockIdx.z * a.heads + blockIdx.y;
	float *of_head = a.part + head * a.chunks * (hd + 2), score[STEPS], most;

#pragma unroll 1
	for (;;) {
		struct chunk next = n;
		struct partial<8> mine;

		next.first += (int)gridDim.x * CHUNK;
		take_new(n, key, value, new_key, new_value);
		most = score_group<LANES>(n, q, key, score);
		if (next.first <= n.to)
			read_chunk(next, row, n.keys, key);
		mine = weigh_group(most, score, value);
		if (next.first <= n.to)
			read_chunk(next, row, n.values, value);
		merge_groups<LANES>(mine);
		*whole = merge_chunk<LANES>(n, mine);
		if (chunks == 1)
			return true;
		put_part(of_head + n.first / CHUNK * (hd + 2), *whole, hd);
		if (next.first > n.to)
			break;
		n = next;
		__syncthreads();
	}
	if (!last_to_arrive(a.arrived + head, blocks))
		return false;
	*whole = merge_parts<false>(of_head, chunks, hd, (int)threadIdx.x % hd);
	return true;
}

/* grid: blocks of a head, heads, sequences; LANES * GROUPS threads. */
template <int LANES>
__global__ void __launch_bounds__(LANES * GROUPS)
	attend_query(const __grid_constant__ struct query a)
{
	const int hd = LANES * 8;
	int s = (int)blockIdx.z, thread = (int)threadIdx.x, limit = a.limit[s];
	int64_t row = (int64_t)a.heads * hd, head = (int64_t)blockIdx.y * hd;
	struct chunk n = { (int)blockIdx.x * CHUNK, min(limit, a.capacity - 1),
			   limit < 0 ? -1 : a.at[s], thread / LANES, thread % LANES * 8 };
	int64_t turned = limit < 0 ? 0 : (int64_t)a.position[s] * (hd / 2) + n.c % (hd / 2);
	const bf16 *q = a.qkv + s * 3 * row + head;
	uint4 key[STEPS], value[STEPS], new_key = {}, new_value = {};
	float cosine[8], sine[8], x[8];
	struct partial<1> whole;

	n.keys = a.keys + s * a.capacity * row + head + n.c;
	n.values = a.values + s * a.capacity * row + head + n.c;
	let_kernel_behind_start();
	read_chunk(n, row, n.keys, key);
	read_chunk(n, row, n.values, value);
	load8(a.cosine + turned, cosine);
	load8(a.sine + turned, sine);
	wait_for_kernel_ahead();
	if (limit < 0 && blockIdx.x == 0 && thread < hd)
		put(a.out + s * row + head + thread, 0.0f);
	if (limit < 0)
		return;
	unpack8(turn(q, cosine, sine, n.c, hd / 2), x);
#pragma unroll
	for (int i = 0; i < 8; i++)
		x[i] *= a.scale;
	if (n.place >= 0 && n.place < a.capacity &&
	    n.place / CHUNK % (int)gridDim.x == (int)blockIdx.x) {
		new_key = turn(q + row, cosine, sine, n.c, hd / 2);
		new_value = read_eight(q + 2 * row + n.c);
		if (n.group == 0) {
			*reinterpret_cast<uint4 *>(n.keys + n.place * row) = new_key;
			*reinterpret_cast<uint4 *>(n.values + n.place * row) = new_value;
		}
	}
	if (n.first <= n.to &&
	    attend_chunks<LANES>(a, n, row, x, key, value, new_key, new_value, &whole) &&
	    thread < hd)
		put(a.out + s * row + head + thread,
		    whole.sum > 0.0f ? whole.value[0] / whole.sum : 0.0f);
}

/* All kernels of the chain ask for the same division of a multiprocessor's memory: those of
 * different ones cannot run beside one another. */
template <int LANES>
static void launch(struct cuda_state *s, const struct query *a)
{
	cudaLaunchAttribute room;
	int most = ROOM / LANES * s->processors / (a->heads * a->sequences);
	dim3 grid((unsigned)(most < 1 ? 1 : most < a->chunks ? most : a->chunks),
		  (unsigned)a->heads, (unsigned)a->sequences);
	cudaLaunchConfig_t shape = launch_shape(s, grid, LANES * GROUPS, true, &room);

	CUDA(cudaFuncSetAttribute(attend_query<LANES>,
				  cudaFuncAttributePreferredSharedMemoryCarveout,
				  cudaSharedmemCarveoutMaxShared));
	CUDA(cudaLaunchKernelEx(&shape, attend_query<LANES>, *a));
	LAUNCHED();
}

void query_run(struct cuda_state *s, const struct query *a)
{
	struct query q = *a;

	if (query_hopper_fits(s, a)) {
		query_hopper(s, a);
		return;
	}
	q.chunks = (int)div_up(a->capacity, CHUNK);
	q.part = (float *)cuda_scratch(s, (size_t)a->sequences * a->heads * q.chunks *
						  (a->hd + 2) * sizeof(float));
	q.arrived = s->arrived;
	if (a->hd == 32)
		launch<4>(s, &q);
	else if (a->hd == 64)
		launch<8>(s, &q);
	else
		launch<16>(s, &q);
}
