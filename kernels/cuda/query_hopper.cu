/* SPDX-License-Identifier: Apache-2.0
 * Attention of tokens on Hopper, heads of 64 and 128. Every multiprocessor has a block, which goes
 * through its units (query_shares.cuh): one warp copies their keys and values into shared memory,
 * others compute, each a unit as a whole (query_softmax.cuh) in a stage that is its own, and the
 * last one puts heads together (query_parts.cuh). Copies begin while the kernel ahead still runs,
 * which does not write the cache. The new key and value are put into the unit in shared memory that
 * has their place, whatever the cache has there.
 *
 * Where heads are few, each has a cluster of blocks of its own (NEAR), and parts are handed over in
 * shared memory: through the second cache that takes longer than computing them. So it is where
 * there is much to read: then one warp a block that merges would be late.
 *
 * A unit's softmax does not depend on which block or warp has it, and a head's are put together in
 * order: a sequence has the same bits whatever is beside it. */
#include "kernels/cuda/few.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/query_parts.cuh"

/* Warps that compute; beside them one that copies and one that merges. */
#define WARPS(HD) ((HD) == 64 ? 5 : 3)
#define THREADS(HD) ((WARPS(HD) + 2) * 32)
#define UNIT(HD) (KEYS * (HD)) /* elements of the keys, and as many of the values */
/* Of the ring, with what aligns it; leaves room for the block of the kernel behind. */
#define SHARED_BYTES(HD) ((size_t)WARPS(HD) * UNIT(HD) * 4 + 1024)
#define NEAR_UNITS 128 /* of a head whose parts lie behind the ring: there is room for as many */
#define FILL_CLOCKS 5600 /* for the ring's first units, so that the kernel ahead reads, too */
#define FEW_BYTES ((int64_t)512 << 10) /* of the cache, for a multiprocessor */

#ifdef HOPPER_CODE

/* Beside the ring, a stage for each warp that computes: a unit's keys, then its values. */
template <int HD>
struct query_shared {
	uint64_t keys_full[WARPS(HD)], values_full[WARPS(HD)], empty[WARPS(HD)];
	/* With a head: with all units of it that are the block's; where the block has its last one
	 * and a cluster, with all. */
	uint64_t done[WARPS(HD)];
	__align__(16) bf16 row[WARPS(HD)][3][HD]; /* of a head: query, new key, new value */
	int place[WARPS(HD)];     /* of the new ones in the cache; -1: nowhere */
};

/* Barriers: of all warps, of those that compute, of these and the one that merges. */
enum { START, ROWS, ROUND };

static __device__ __forceinline__ void meet(int barrier, int warps)
{
	asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(warps * 32) : "memory");
}

/* Waits for all warps of the block, or of its cluster, whose barriers are there then. */
template <int HD, bool NEAR>
static __device__ __forceinline__ void start(void)
{
	if constexpr (NEAR)
		cluster_sync();
	else
		meet(START, WARPS(HD) + 2);
}

/* Parts that come to the block from its cluster. */
template <int HD>
static __device__ __forceinline__ float *parts_behind(bf16 *ring)
{
	return reinterpret_cast<float *>(ring + WARPS(HD) * 2 * UNIT(HD));
}

/* ---- the warp that copies */

/* Bytes of parts are expected before the copies are that a warp waits for before it is done. */
template <int HD, bool NEAR>
static __device__ __forceinline__ void start_barriers(struct query_shared<HD> &m,
						      const struct head &h)
{
	if (threadIdx.x % 32 == 0) {
		for (int i = 0; i < WARPS(HD); i++) {
			barrier_init(m.keys_full + i, 1);
			barrier_init(m.values_full + i, 1);
			barrier_init(m.empty + i, 1);
			barrier_init(m.done + i, WARPS(HD));
		}
		barrier_init_done_alone();
		if (NEAR && h.units > 1 && has_last(h))
			barrier_expect_more(m.done, h.units * TOLD_BYTES(HD));
	}
	__syncwarp();
}

/* Where the copying warp is. */
struct copying {
	struct head head;
	struct ring at;
	unsigned unit;
};

/* Units up to `end`, each when its stage is free. */
template <int HD>
static __device__ __forceinline__ void
copy_units(const struct query &a, const struct plan &p, struct query_shared<HD> &m, bf16 *ring,
	   const CUtensorMap *keys, const CUtensorMap *values, struct copying &c, unsigned end)
{
#pragma unroll 1
	for (; c.unit < end; c.unit++) {
		uint64_t *k = m.keys_full + c.at.stage, *v = m.values_full + c.at.stage;
		bf16 *to = ring + c.at.stage * 2 * UNIT(HD);
		int row;

		if (c.unit == c.head.end)
			next_head(a, p, c.head);
		row = (int)(c.unit - c.head.start) * KEYS;
		barrier_wait(m.empty + c.at.stage, c.at.phase ^ 1);
		if (threadIdx.x % 32 == 0) {
			barrier_expect(k, UNIT(HD) * 2);
			barrier_expect(v, UNIT(HD) * 2);
			copy_head<HD, KEYS>(to, keys, k, c.head.head, row, c.head.sequence);
			copy_head<HD, KEYS>(to + UNIT(HD), values, v, c.head.head, row,
					    c.head.sequence);
		}
		__syncwarp();
		ring_next<WARPS(HD)>(c.at);
	}
}

/* All stages are asked for before the others know of the barriers; a fence for other blocks would
 * hold them up. */
template <int HD, bool NEAR>
static __device__ __forceinline__ void
copy(const struct query &a, const struct plan &p, struct query_shared<HD> &m, bf16 *ring,
     const CUtensorMap *keys, const CUtensorMap *values)
{
	const unsigned first = min(p.end, p.first + WARPS(HD));
	struct copying c = { first_head(p), {}, p.first };
	unsigned when = clocks_now();

	start_barriers<HD, NEAR>(m, c.head);
#pragma unroll 1
	for (; c.unit < first; when += a.pace) {
		while (!clock_reached(when))
			;
		__syncwarp();
		copy_units<HD>(a, p, m, ring, keys, values, c, c.unit + 1);
	}
	if constexpr (NEAR)
		barrier_init_done();
	start<HD, NEAR>();
	copy_units<HD>(a, p, m, ring, keys, values, c, p.end);
}

/* ---- the warps that compute */

/* What turns a head's new row, and where that belongs; lane i has pairs i, i + 32, ... */
template <int HD>
struct row_turn {
	float cosine[HD / 64], sine[HD / 64];
	int place; /* in the cache; -1: nowhere */
	const bf16 *from; /* the row: its query */
};

template <int HD>
static __device__ __forceinline__ struct row_turn<HD>
read_turn(const struct query &a, const struct plan &p, const struct head &h)
{
	int64_t at = __shfl_sync(0xffffffffu, p.position, h.sequence);
	struct row_turn<HD> t;

	t.from = a.qkv + (int64_t)h.sequence * 3 * a.heads * HD + h.head * HD + threadIdx.x % 32;
	at = at * (HD / 2) + threadIdx.x % 32;
	t.place = __shfl_sync(0xffffffffu, p.place, h.sequence);
	if (t.place >= a.capacity)
		t.place = -1;
#pragma unroll
	for (int i = 0; i < HD / 64; i++) {
		t.cosine[i] = a.cosine[at + 32 * i];
		t.sine[i] = a.sine[at + 32 * i];
	}
	return t;
}

/* Where element i of a query lies, so that a lane's pairs of all products follow one another. */
template <int HD>
static __device__ __forceinline__ int query_place(int i)
{
	return i % 8 / 2 * (HD / 4) + i / 8 * 2 + i % 2;
}

/* A head's query, new key and new value: the lane's pairs. */
template <int HD>
struct new_row {
	float x[HD / 64][3][2];
};

template <int HD>
static __device__ __forceinline__ struct new_row<HD> read_row(const struct query &a,
							      const struct row_turn<HD> &t)
{
	const int64_t width = (int64_t)a.heads * HD, half = HD / 2;
	struct new_row<HD> r;

#pragma unroll
	for (int i = 0; i < HD / 64; i++) {
#pragma unroll
		for (int j = 0; j < 3; j++) {
			r.x[i][j][0] = read_result(t.from + j * width + 32 * i);
			r.x[i][j][1] = read_result(t.from + j * width + 32 * i + half);
		}
	}
	return r;
}

/* The head's new row, turned: to shared memory, and to the cache where the head's last unit is the
 * block's. */
template <int HD>
static __device__ __forceinline__ void take_row(const struct query &a, const struct head &h,
						const struct row_turn<HD> &t,
						const struct new_row<HD> &r,
						struct query_shared<HD> &m, int slot)
{
	bf16 (*row)[HD] = m.row[slot];
	const int64_t width = (int64_t)a.heads * HD, half = HD / 2;
	const bool keep = t.place >= 0 && has_last(h);
	int64_t to = ((int64_t)h.sequence * a.capacity + t.place) * width + h.head * HD;

	m.place[slot] = t.place;
#pragma unroll
	for (int i = 0; i < HD / 64; i++) {
		int at = (int)threadIdx.x % 32 + 32 * i;

#pragma unroll
		for (int j = 0; j < 3; j++) {
			float low = r.x[i][j][0], high = r.x[i][j][1];
			float cosine = j < 2 ? t.cosine[i] : 1.0f, sine = j < 2 ? t.sine[i] : 0.0f;
			bf16 below = __float2bfloat16_rn(j < 2 ? low * cosine - high * sine : low);
			bf16 above = __float2bfloat16_rn(j < 2 ? high * cosine + low * sine : high);

			row[j][j ? at : query_place<HD>(at)] = below;
			row[j][j ? at + half : query_place<HD>(at + HD / 2)] = above;
			if (j && keep) {
				bf16 *cache = (j == 1 ? a.keys : a.values) + to + at;

				cache[0] = below;
				cache[half] = above;
			}
		}
	}
}

/* The warp's unit, in its stage of the ring; place: of the new row in it, or -1. */
template <int HD>
static __device__ __forceinline__ struct unit_softmax<HD>
attend_unit(struct query_shared<HD> &m, bf16 *ring, uint32_t phase, const uint32_t (&q)[HD / 8],
	    float scale, int keys, int place, const bf16 (*row)[HD])
{
	const int stage = (int)threadIdx.x / 32;
	bf16 *k = ring + stage * 2 * UNIT(HD), *v = k + UNIT(HD);
	float score[KEYS / 16][4] = {}, value[HD / 16][4] = {}, most, sum;
	uint32_t weight[KEYS / 8];

	barrier_wait(m.keys_full + stage, phase);
	if (place >= 0)
		put_row<HD>(k, place, row[1]);
	score_keys<HD>(k, q, score);
	most = mask_scores(score, scale, keys);
	sum = weigh(score, most, weight);
	barrier_wait(m.values_full + stage, phase);
	if (place >= 0)
		put_row<HD>(v, place, row[2]);
	if (keys < KEYS)
		clear_rows<HD>(v, keys);
	sum_values<HD>(v, weight, value);
	if (place >= 0 || keys < KEYS) /* written before the next copy writes there */
		asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
	barrier_release(m.empty + stage);
	return finish_unit<HD>(most, sum, value);
}

/* Where a computing warp is: its next unit, and the phase of its stage. */
struct computing {
	unsigned unit;
	uint32_t phase;
};

/* Where the last block of the cluster has parts and is told of them. */
template <int HD>
static __device__ __forceinline__ struct near_place last_block(struct query_shared<HD> &m,
							       bf16 *ring)
{
	const unsigned last = cluster_blocks() - 1;

	return { cluster_address(parts_behind<HD>(ring), last), cluster_address(m.done, last) };
}

/* The warp's units of a head. */
template <int HD, bool NEAR>
static __device__ __forceinline__ void
attend_head(const struct query &a, struct query_shared<HD> &m, bf16 *ring, const struct head &h,
	    int slot, struct computing &c)
{
	const int lane = (int)threadIdx.x % 32;
	const uint4 *from = reinterpret_cast<const uint4 *>(m.row[slot][0] + lane % 4 * (HD / 4));
	uint32_t q[HD / 8];
	int place;

	if (c.unit >= h.end)
		return;
	place = m.place[slot];
#pragma unroll
	for (int i = 0; i < HD / 32; i++)
		*reinterpret_cast<uint4 *>(q + 4 * i) = from[i];
#pragma unroll 1
	for (; c.unit < h.end; c.unit += WARPS(HD)) {
		int n = (int)(c.unit - h.start), first = n * KEYS;
		int keys = min(KEYS, h.to + 1 - first);
		bool here = place >= first && place < first + keys;
		struct unit_softmax<HD> u = attend_unit<HD>(
			m, ring, c.phase, q, a.scale, keys, here ? place - first : -1, m.row[slot]);

		if (h.units == 1)
			put_whole<HD>(a, h, u);
		else if constexpr (NEAR)
			put_part<HD>(last_block<HD>(m, ring) + n * (HD + APART), u);
		else
			put_part<HD>(parts_of<HD>(a, h) + n * (HD + APART), u);
		c.phase ^= 1;
	}
}

/* Sequences that see nothing get zeros. */
template <int HD>
static __device__ __forceinline__ void clear_idle(const struct query &a, const struct plan &p)
{
	const int width = a.heads * HD, threads = WARPS(HD) * 32;

#pragma unroll 1
	for (int s = 0; s < a.sequences; s++)
		if (!(p.awake >> s & 1))
			for (int i = (int)blockIdx.x * threads + (int)threadIdx.x; i < width;
			     i += (int)gridDim.x * threads)
				put(a.out + (int64_t)s * width + i, 0.0f);
}

/* Of the heads from h, the one whose new row the warp takes. */
static __device__ __forceinline__ struct head own_head(const struct query &a, const struct plan &p,
						       struct head h)
{
	for (int i = 0; i < (int)threadIdx.x / 32 && has_units(p, h); i++)
		next_head(a, p, h);
	return h;
}

/* Heads in rounds: of as many as there are warps each warp takes one new row, then all compute. */
template <int HD, bool NEAR>
static __device__ __forceinline__ void compute(const struct query &a, const struct plan &p,
					       struct query_shared<HD> &m, bf16 *ring)
{
	const int warp = (int)threadIdx.x / 32;
	struct head h = first_head(p), mine = own_head(a, p, h);
	struct computing c = { p.first + (unsigned)warp };
	struct row_turn<HD> turn = {};
	struct new_row<HD> row = {};

	if (has_units(p, mine))
		turn = read_turn<HD>(a, p, mine);
	start<HD, NEAR>();
	wait_for_kernel_ahead();
	if (has_units(p, mine))
		row = read_row<HD>(a, turn);
	if (p.awake != ~0u >> (32 - a.sequences))
		clear_idle<HD>(a, p);
#pragma unroll 1
	for (;;) {
		if (has_units(p, mine))
			take_row<HD>(a, mine, turn, row, m, warp);
		meet(ROWS, WARPS(HD));
#pragma unroll 1
		for (int i = 0; i < WARPS(HD) && has_units(p, h); i++) {
			attend_head<HD, NEAR>(a, m, ring, h, i, c);
			barrier_release(m.done + i);
			next_head(a, p, h);
		}
		if (!has_units(p, h))
			break;
		mine = own_head(a, p, h);
		if (has_units(p, mine)) {
			turn = read_turn<HD>(a, p, mine);
			row = read_row<HD>(a, turn);
		}
		meet(ROUND, WARPS(HD) + 1);
	}
}

/* ---- the warp that merges: heads whose last unit is the block's */
template <int HD, bool NEAR>
static __device__ __forceinline__ void merge(const struct query &a, const struct plan &p,
					     struct query_shared<HD> &m, bf16 *ring)
{
	struct head h = first_head(p);
	uint32_t phase = 0;
	int slot = 0;

	start<HD, NEAR>();
	wait_for_kernel_ahead();
#pragma unroll 1
	while (has_units(p, h)) {
		barrier_wait(m.done + slot, phase);
		if (h.units > 1 && has_last(h))
			merge_parts<HD, NEAR>(a, h, NEAR ? parts_behind<HD>(ring)
							 : parts_of<HD>(a, h));
		next_head(a, p, h);
		if (++slot == WARPS(HD) && has_units(p, h)) {
			slot = 0;
			phase ^= 1;
			meet(ROUND, WARPS(HD) + 1);
		}
	}
}

#endif

/* Registers: as few as let the products' blocks run beside it. */
template <int HD, bool NEAR>
__global__ void __launch_bounds__(THREADS(HD), 512 / THREADS(HD))
	query_ring(const __grid_constant__ CUtensorMap keys,
		   const __grid_constant__ CUtensorMap values,
		   const __grid_constant__ struct query a)
{
#ifdef HOPPER_CODE
	extern __shared__ char raw[];
	__shared__ struct query_shared<HD> m;
	bf16 *ring = reinterpret_cast<bf16 *>(raw + ((1024 - (shared_address(raw) & 1023)) & 1023));
	const int warp = (int)threadIdx.x / 32, copier = WARPS(HD);
	struct plan p;

	static_assert(sizeof m <= 8192, "more than shared_most leaves");
	let_kernel_behind_start();
	if (warp == copier) {
		asm volatile("prefetch.tensormap [%0];" ::"l"(&keys) : "memory");
		asm volatile("prefetch.tensormap [%0];" ::"l"(&values) : "memory");
	}
	p = plan_block<NEAR>(a);
	if (warp < copier)
		compute<HD, NEAR>(a, p, m, ring);
	else if (warp == copier)
		copy<HD, NEAR>(a, p, m, ring, &keys, &values);
	else
		merge<HD, NEAR>(a, p, m, ring);
#endif
}

/* A map of [sequences][capacity][heads * hd] for boxes of KEYS x 64 elements. Where a box reaches
 * beyond the capacity it has zeros: nothing of the next sequence, nor beyond the last, is read. */
static CUtensorMap cache_map(struct cuda_state *s, const struct query *a, const bf16 *first)
{
	const int64_t row = (int64_t)a->heads * a->hd;
	const struct mapped m = { first, a->sequences, a->capacity, row, row, row * a->capacity };

	return hopper_map(s, &m, KEYS);
}

static int64_t units_of_head(const struct query *a)
{
	return div_up(a->capacity, KEYS);
}

static int64_t units_most(const struct query *a)
{
	return a->sequences * a->heads * units_of_head(a);
}

template <int HD, bool NEAR>
static void set_shared(int bytes)
{
	CUDA(cudaFuncSetAttribute(query_ring<HD, NEAR>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				  bytes));
	CUDA(cudaFuncSetAttribute(query_ring<HD, NEAR>,
				  cudaFuncAttributePreferredSharedMemoryCarveout,
				  cudaSharedmemCarveoutMaxShared));
}

/* How many clusters of so many blocks run at a time, each block alone on a multiprocessor: asked
 * for blocks that take all its shared memory. -1: none. */
template <int HD>
static int clusters_at_once(struct cuda_state *s, int blocks)
{
	int *n = s->clusters + blocks;

	if (!*n) {
		cudaLaunchAttribute cluster;
		cudaLaunchConfig_t shape =
			launch_shape(s, dim3((unsigned)blocks), THREADS(HD), false, &cluster);

		set_shared<HD, true>((int)s->shared_most);
		shape.dynamicSmemBytes = s->shared_most;
		form_clusters(&shape, (unsigned)blocks);
		CUDA(cudaOccupancyMaxActiveClusters(n, query_ring<HD, true>, &shape));
		*n = *n ? *n : -1;
	}
	return *n;
}

/* How many blocks each head has for itself: as many as run at once; two where heads are many and
 * there is much to read; else 0. */
template <int HD>
static int blocks_of_head(struct cuda_state *s, const struct query *a)
{
	const int heads = a->sequences * a->heads;

	if (units_of_head(a) > NEAR_UNITS)
		return 0;
	for (int n = CLUSTER_MOST; n > 1; n--)
		if (n * heads <= s->processors && clusters_at_once<HD>(s, n) >= heads)
			return n;
	return units_most(a) * UNIT(HD) * 4 > FEW_BYTES * s->processors ? 2 : 0;
}

template <int HD, bool NEAR>
static void launch(struct cuda_state *s, const cudaLaunchConfig_t *shape, const struct query *a)
{
	set_shared<HD, NEAR>((int)shape->dynamicSmemBytes);
	CUDA(cudaLaunchKernelEx(shape, query_ring<HD, NEAR>, cache_map(s, a, a->keys),
				cache_map(s, a, a->values), *a));
	LAUNCHED();
}

template <int HD>
static void run(struct cuda_state *s, const struct query *a)
{
	const int each = blocks_of_head<HD>(s, a);
	const int blocks = each ? each * a->sequences * a->heads : s->processors;
	cudaLaunchAttribute attribute[2];
	cudaLaunchConfig_t shape =
		launch_shape(s, dim3((unsigned)blocks), THREADS(HD), true, attribute);
	struct query q = *a;

	shape.dynamicSmemBytes = SHARED_BYTES(HD);
	if (each) {
		form_clusters(&shape, (unsigned)each);
		shape.dynamicSmemBytes += (size_t)units_of_head(a) * PART_BYTES(HD);
		launch<HD, true>(s, &shape, &q);
	} else {
		q.pace = FILL_CLOCKS / WARPS(HD);
		q.part = (float *)cuda_parts(s, (size_t)units_most(a) * PART_BYTES(HD));
		launch<HD, false>(s, &shape, &q);
	}
}

/* Bulk copies want addresses and rows of multiples of 16 bytes, as rows of such heads are. A block
 * must fit on a multiprocessor: with one for each, all run at once, as query_parts.cuh needs it.
 * Units times blocks are counted in 32 bits. */
bool query_hopper_fits(const struct cuda_state *s, const struct query *a)
{
	return s->hopper && (a->hd == 64 || a->hd == 128) && a->sequences <= SEQUENCES_MOST &&
	       aligned16(a->keys) && aligned16(a->values) &&
	       SHARED_BYTES(a->hd) <= s->shared_most &&
	       units_most(a) * s->processors < INT32_MAX;
}

void query_hopper(struct cuda_state *s, const struct query *a)
{
	if (a->hd == 64)
		run<64>(s, a);
	else
		run<128>(s, a);
}
