/* SPDX-License-Identifier: Apache-2.0
 * Partial softmaxes of query_hopper.cu: of a unit each, from the warps that have them to the one
 * that puts a head's together, in a block or between blocks. They lie in memory all of whose words
 * are EMPTY between kernels (cuda_parts): a word that is something else is there, with no counter
 * and no fence, and whoever has read it empties it again.
 *
 * The block with a head's last unit puts its parts together, and waits for those of blocks before
 * it. That ends. A block waits only for blocks of lower number, which are placed first and wait for
 * none of higher number; and all are there at once: there are no more than multiprocessors, each of
 * which holds one, and kernels behind start only after all of them. */
#ifndef KERNELS_CUDA_QUERY_PARTS_CUH
#define KERNELS_CUDA_QUERY_PARTS_CUH

#include "kernels/cuda/query_softmax.cuh"

#define APART 4           /* floats of a part beside its values: the highest score, the sum */
#define PARTS 16          /* that are read at once */
#define EMPTY 0xffffffffu /* arithmetic gives 0x7fffffff for what is not a number */

#ifdef HOPPER_CODE

/* Words of a part; never moved by the compiler. */
static __device__ __forceinline__ void put_word(float *to, float x)
{
	asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(x) : "memory");
}

static __device__ __forceinline__ void put_words(float *to, float x, float y)
{
	asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(to), "f"(x), "f"(y)
		     : "memory");
}

/* Where there is none, v as it is. */
static __device__ __forceinline__ void read_words(float2 &v, const float *from, bool there)
{
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

template <int HD>
static __device__ __forceinline__ void put_part(float *to, const struct unit_softmax<HD> &u)
{
	int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;

#pragma unroll
	for (int i = 0; i < HD / 64; i++) {
		put_word(to + 64 * i + 16 * t + g, u.value[i][0]);
		put_word(to + 64 * i + 16 * t + g + 8, u.value[i][1]);
	}
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

/* The first n of them or PARTS, where there are more: again until all are there. */
template <int HD>
static __device__ __forceinline__ void read_parts(struct parts<HD> &p, const float *from, int n)
{
	const int lane = (int)threadIdx.x % 32;
	bool there;

	do {
		there = true;
#pragma unroll
		for (int i = 0; i < PARTS; i++) {
			const float *part = from + i * (HD + APART);

			p.whole[i] = make_float2(-INFINITY, 0.0f);
			read_words(p.whole[i], part + HD, i < n);
#pragma unroll
			for (int j = 0; j < HD / 64; j++) {
				p.value[i][j] = make_float2(0.0f, 0.0f);
				read_words(p.value[i][j], part + 64 * j + 2 * lane, i < n);
			}
		}
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

/* A softmax of the parts before; a lane has two elements of every 64. */
template <int HD>
struct merged {
	float most, sum, value[HD / 32];
};

template <int HD>
static __device__ __forceinline__ void add_parts(struct merged<HD> &s, const struct parts<HD> &p)
{
	float top = fmaxf(s.most, LEAST), by;

#pragma unroll
	for (int i = 0; i < PARTS; i++)
		top = fmaxf(top, p.whole[i].x);
	by = exp2_fast(s.most - top);
	s.most = top;
	s.sum *= by;
#pragma unroll
	for (int j = 0; j < HD / 32; j++)
		s.value[j] *= by;
#pragma unroll
	for (int i = 0; i < PARTS; i++) {
		by = exp2_fast(p.whole[i].x - top);
		s.sum += by * p.whole[i].y;
#pragma unroll
		for (int j = 0; j < HD / 64; j++) {
			s.value[2 * j] += by * p.value[i][j].x;
			s.value[2 * j + 1] += by * p.value[i][j].y;
		}
	}
}

/* By a warp: the head's result from its parts, in order. */
template <int HD>
static __device__ __forceinline__ void merge_parts(const struct query &a, const struct head &h)
{
	const int n = (int)h.units;
	float *part = parts_of<HD>(a, h), by;
	struct merged<HD> s = { -INFINITY };
	bf16 *out = a.out + ((int64_t)h.sequence * a.heads + h.head) * HD + threadIdx.x % 32 * 2;

#pragma unroll 1
	for (int first = 0; first < n; first += PARTS) {
		struct parts<HD> p;

		read_parts<HD>(p, part + first * (HD + APART), n - first);
		empty_parts<HD>(part + first * (HD + APART), n - first);
		add_parts<HD>(s, p);
	}
	by = s.sum > 0.0f ? 1.0f / s.sum : 0.0f;
#pragma unroll
	for (int j = 0; j < HD / 64; j++)
		*reinterpret_cast<uint32_t *>(out + 64 * j) =
			pack_bf16(s.value[2 * j] * by, s.value[2 * j + 1] * by);
}

#endif
#endif
