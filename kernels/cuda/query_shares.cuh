/* SPDX-License-Identifier: Apache-2.0
 * What each block of query_hopper.cu works on. The keys of every head are divided into units of
 * KEYS; all units of all heads, in order, are shared out evenly: every block has as many that
 * follow one another. Where a head has a cluster of its own, its units are shared out among the
 * blocks of that. A warp knows of all sequences at once, lane s of sequence s. */
#ifndef KERNELS_CUDA_QUERY_SHARES_CUH
#define KERNELS_CUDA_QUERY_SHARES_CUH

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/query.cuh"

#define KEYS 64           /* of a unit */
#define SEQUENCES_MOST 16 /* a power of two, at most the lanes of a warp */

#ifdef HOPPER_CODE

/* What the sequences come to: lane s has sequence s's. */
struct plan {
	int to, place, position;     /* the last key seen, or -1; of the new row */
	unsigned units, start;       /* of a head; all before the sequence's first */
	unsigned first, end;         /* the block's */
	unsigned awake;              /* bits of the sequences that have units */
};

/* A head, its units, and those of the block. */
struct head {
	int sequence, head, to;
	unsigned units, start;
	unsigned first, end;
};

/* The i-th of n shares of the units from `first` on; the last one has some where there are any. */
static __device__ __forceinline__ void take_share(struct plan &p, unsigned first, unsigned units,
						  unsigned i, unsigned n)
{
	unsigned from = units * i / n, to = units * (i + 1) / n;

	if (from < to) {
		p.first = first + from;
		p.end = first + to;
	}
}

/* The block's share of the head that is its cluster's. */
static __device__ __forceinline__ void share_head(const struct query &a, struct plan &p)
{
	const unsigned n = cluster_blocks(), heads = (unsigned)a.heads, head = blockIdx.x / n;
	const int s = (int)(head / heads);
	unsigned units = __shfl_sync(0xffffffffu, p.units, s);
	unsigned start = __shfl_sync(0xffffffffu, p.start, s);

	take_share(p, start + head % heads * units, units, (unsigned)cluster_rank(), n);
}

/* NEAR: where a head has a cluster of its own. */
template <bool NEAR>
static __device__ __forceinline__ struct plan plan_block(const struct query &a)
{
	int lane = (int)threadIdx.x % 32;
	struct plan p = {};
	unsigned sum, total;

	p.to = -1;
	if (lane < a.sequences) {
		p.to = min(a.limit[lane], a.capacity - 1);
		p.place = a.at[lane];
		p.position = a.position[lane];
	}
	p.units = p.to < 0 ? 0 : (unsigned)p.to / KEYS + 1;
	sum = p.units * (unsigned)a.heads;
#pragma unroll
	for (int i = 1; i < SEQUENCES_MOST; i *= 2) {
		unsigned before = __shfl_up_sync(0xffffffffu, sum, i);

		sum += lane >= i ? before : 0;
	}
	p.start = sum - p.units * (unsigned)a.heads;
	p.awake = __ballot_sync(0xffffffffu, p.units > 0);
	total = __shfl_sync(0xffffffffu, sum, SEQUENCES_MOST - 1);
	if constexpr (NEAR)
		share_head(a, p);
	else if (blockIdx.x < min(gridDim.x, total))
		take_share(p, 0, total, blockIdx.x, min(gridDim.x, total));
	return p;
}

static __device__ __forceinline__ void own_units(const struct plan &p, struct head &h)
{
	h.first = max(p.first, h.start);
	h.end = min(p.end, h.start + h.units);
}

static __device__ __forceinline__ void take_sequence(const struct plan &p, struct head &h, int s)
{
	h.sequence = s;
	h.head = 0;
	h.to = __shfl_sync(0xffffffffu, p.to, s);
	h.units = __shfl_sync(0xffffffffu, p.units, s);
}

/* The head of the block's first unit, where it has one. */
static __device__ __forceinline__ struct head first_head(const struct plan &p)
{
	bool before = p.units > 0 && p.start <= p.first;
	struct head h = {};

	if (p.first == p.end)
		return h;
	take_sequence(p, h, 31 - __clz((int)__ballot_sync(0xffffffffu, before)));
	h.start = __shfl_sync(0xffffffffu, p.start, h.sequence);
	h.head = (int)((p.first - h.start) / h.units);
	h.start += (unsigned)h.head * h.units;
	own_units(p, h);
	return h;
}

/* Whether the block has the head's last unit: it puts parts together. */
static __device__ __forceinline__ bool has_last(const struct head &h)
{
	return h.end == h.start + h.units;
}

/* Whether the block has units of the head, which is its first one or comes after that. */
static __device__ __forceinline__ bool has_units(const struct plan &p, const struct head &h)
{
	return h.start < p.end;
}

/* The head after this one; nothing but its start where the block has no units of it. */
static __device__ __forceinline__ void next_head(const struct query &a, const struct plan &p,
						 struct head &h)
{
	h.start += h.units;
	if (!has_units(p, h))
		return;
	if (++h.head == a.heads)
		take_sequence(p, h, __ffs((int)(p.awake & ~0u << h.sequence << 1)) - 1);
	own_units(p, h);
}

#endif
#endif
