/* SPDX-License-Identifier: Apache-2.0
 * Partial softmaxes of query_hopper.cu: of a unit each, from the warps that have them to the one
 * that puts a head's together, in the block with the head's last unit. They lie as warps have them
 * (query_softmax.cuh): a lane's elements of every 64 side by side, lane by lane.
 *
 * Where a head has a cluster of its own, they go to shared memory of its last block, whose barrier
 * counts their bytes. Else they lie in memory all of whose words are EMPTY between kernels
 * (cuda_parts): a word that is something else is there, with no counter and no fence, and whoever
 * has read it empties it again.
 *
 * Waiting there ends. A block waits only for blocks of lower number, which are placed first and
 * wait for none of higher number; and all are there at once: there are no more than
 * multiprocessors, each of which holds one, and kernels behind start only after all of them. */
#ifndef KERNELS_CUDA_QUERY_PARTS_CUH
#define KERNELS_CUDA_QUERY_PARTS_CUH

#include "kernels/cuda/query_softmax.cuh"

#define APART 4           /* floats of a part beside its values: the highest score, the sum */
#define PART_BYTES(HD) (((HD) + APART) * (int)sizeof(float))
#define TOLD_BYTES(HD) (((HD) + 2) * (int)sizeof(float)) /* of these, what is written */
#define PARTS 16          /* that are read at once */
#define EMPTY 0xffffffffu /* arithmetic gives 0x7fffffff for what is not a number */

#ifdef HOPPER_CODE

/* Words of a part; never moved by the compiler. */
static __device__ __forceinline__ void put_words(float *to, float x, float y)
{
	asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x), "f"(y)
		     : "memory");
}

/* A place for words in a block of the cluster, and the barrier there that counts them. */
struct near_place {
	uint32_t at, told;
};

static __device__ __forceinline__ struct near_place operator+(struct near_place p, int words)
{
	return { p.at + (uint32_t)words * 4, p.told };
}

static __device__ __forceinline__ void put_words(struct near_place to, float x, float y)
{
	cluster_put(to.at, x, y, to.told);
}

/* Where there is none, v as it is. */
template <bool NEAR>
static __device__ __forceinline__ void read_words(float2 &v, const float *from, bool there)
{
	if constexpr (NEAR)
		v = there ? *reinterpret_cast<const float2 *>(from) : v;
	else
		asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %3, 0;\n\t"
			     "@p ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];\n\t}"
			     : "+f"(v.x), "+f"(v.y)
			     : "l"(from), "r"((int)there)
			     : "memory");
}

/* The parts of a head. */
template <int HD>
static __device__ __forceinline__ float *parts_of(const struct query &a, const struct head &h)
{
	int64_t head = (int64_t)h.sequence * a.heads + h.head;

	return a.part + head * ((a.capacity + KEYS - 1) / KEYS) * (HD + APART);
}

template <int HD, typename PLACE>
static __device__ __forceinline__ void put_part(PLACE to, const struct unit_softmax<HD> &u)
{
	const int lane = (int)threadIdx.x % 32;

#pragma unroll
	for (int i = 0; i < HD / 64; i++)
		put_words(to + 64 * i + 2 * lane, u.value[i][0], u.value[i][1]);
	if (lane == 0)
		put_words(to + HD, u.most, u.sum);
}

static __device__ __forceinline__ bool is_there(float2 v)
{
	return __float_as_uint(v.x) != EMPTY && __float_as_uint(v.y) != EMPTY;
}

/* Parts as they lie: of each the lane's two elements of every 64, and the highest score and the
 * sum. */
template <int HD>
struct parts {
	float2 value[PARTS][HD / 64], whole[PARTS];
};

/* The first n of them or PARTS, where there are more. */
template <int HD, bool NEAR>
static __device__ __forceinline__ void read_parts(struct parts<HD> &p, const float *from, int n)
{
	const int lane = (int)threadIdx.x % 32;

#pragma unroll
	for (int i = 0; i < PARTS; i++) {
		const float *part = from + i * (HD + APART);

		p.whole[i] = make_float2(-INFINITY, 0.0f);
		read_words<NEAR>(p.whole[i], part + HD, i < n);
#pragma unroll
		for (int j = 0; j < HD / 64; j++) {
			p.value[i][j] = make_float2(0.0f, 0.0f);
			read_words<NEAR>(p.value[i][j], part + 64 * j + 2 * lane, i < n);
		}
	}
}

/* From memory: again until all are there. */
template <int HD>
static __device__ __forceinline__ void await_parts(struct parts<HD> &p, const float *from, int n)
{
	bool there;

	do {
		there = true;
		read_parts<HD, false>(p, from, n);
#pragma unroll
		for (int i = 0; i < PARTS; i++) {
			there = there && is_there(p.whole[i]);
#pragma unroll
			for (int j = 0; j < HD / 64; j++)
				there = there && is_there(p.value[i][j]);
		}
	} while (!__all_sync(0xffffffffu, there));
}

template <int HD>
static __device__ __forceinline__ void empty_parts(float *from, int n)
{
	const float none = __uint_as_float(EMPTY);
	const int lane = (int)threadIdx.x % 32;

#pragma unroll 1
	for (int i = 0; i < min(n, PARTS); i++) {
		float *part = from + i * (HD + APART);

#pragma unroll
		for (int j = 0; j < HD / 64; j++)
			put_words(part + 64 * j + 2 * lane, none, none);
		if (lane == 0)
			put_words(part + HD, none, none);
	}
}

/* Adds parts to the softmax of those before. */
template <int HD>
static __device__ __forceinline__ void add_parts(struct unit_softmax<HD> &s,
						 const struct parts<HD> &p)
{
	float top = fmaxf(s.most, LEAST), by;

#pragma unroll
	for (int i = 0; i < PARTS; i++)
		top = fmaxf(top, p.whole[i].x);
	by = exp2_fast(s.most - top);
	s.most = top;
	s.sum *= by;
#pragma unroll
	for (int j = 0; j < HD / 64; j++) {
		s.value[j][0] *= by;
		s.value[j][1] *= by;
	}
#pragma unroll
	for (int i = 0; i < PARTS; i++) {
		by = exp2_fast(p.whole[i].x - top);
		s.sum += by * p.whole[i].y;
#pragma unroll
		for (int j = 0; j < HD / 64; j++) {
			s.value[j][0] += by * p.value[i][j].x;
			s.value[j][1] += by * p.value[i][j].y;
		}
	}
}

/* By a warp: the head's result from its parts, in order. */
template <int HD, bool NEAR>
static __device__ __forceinline__ void merge_parts(const struct query &a, const struct head &h,
						   float *part)
{
	const int n = (int)h.units;
	struct unit_softmax<HD> s = { -INFINITY };

#pragma unroll 1
	for (int first = 0; first < n; first += PARTS) {
		float *from = part + first * (HD + APART);
		struct parts<HD> p;

		if constexpr (NEAR) {
			read_parts<HD, true>(p, from, n - first);
		} else {
			await_parts<HD>(p, from, n - first);
			empty_parts<HD>(from, n - first);
		}
		add_parts<HD>(s, p);
	}
	put_whole<HD>(a, h, s);
}

#endif
#endif
