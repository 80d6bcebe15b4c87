/* SPDX-License-Identifier: Apache-2.0
 * Hopper's own instructions (sm_90a): barriers in shared memory, bulk tensor copies, matrix
 * products of a warpgroup (wgmma), register shares. Tiles in shared memory are [rows][64] bf16,
 * rows of 128 bytes in the 128-byte swizzle, each tile aligned to 1024; a head of 128 is two such
 * tiles side by side.
 *
 * An accumulator of 64 x N is N/2 registers a thread: register 4c+0,1 is row lane/4 of the warp's
 * 16, columns 8c + 2 (lane % 4) + 0,1; registers 4c+2,3 the same of row lane/4 + 8. Sixteen columns
 * of it, as bf16, are the A operand of the next product with no exchange between threads. */
#ifndef KERNELS_CUDA_HOPPER_CUH
#define KERNELS_CUDA_HOPPER_CUH

#include "kernels/cuda/attention.cuh"

#include <cuda.h>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_CODE 1
#endif

#define TILE_ROW_BYTES 128
#define LOG2_E 1.44269504088896f

/* bf16 [planes][rows][columns], `row` elements from row to row, `plane` from plane to plane. */
struct mapped {
	const void *first;
	int64_t planes, rows, columns, row, plane;
};

/* Host (maps.cu): a map for boxes of box_rows x 64 elements; beyond its end a box has zeros. */
CUtensorMap hopper_map(struct cuda_state *s, const struct mapped *m, int box_rows);
/* Of `words` words of 32 bits for copies of `at_once`, which begin at any multiple of four. */
CUtensorMap hopper_word_map(struct cuda_state *s, const void *first, int64_t words, int at_once);

/* The tiles of every head, handed out one by one to blocks that stay. Order: groups of sequences
 * whose keys fit the cache, in it head by head, in it longest tiles first; the last heads all
 * together, so that what is handed out last is short. */
struct work_list {
	const struct tile_plan *plan;
	int *next;		 /* handed out so far; 0 between kernels */
	int tiles, heads, group; /* group: tiles of a group of sequences */
	int mixed;		 /* of the heads: the last ones, worked on together */
};

/* One tile of one head, as the producer passes it on. All of it comes by tensor copies, which write
 * nothing in a thread's name: racecheck knows no order between what a thread itself stores, or has
 * copied without a map, and reads that wait at a barrier. */
struct work_item {
	__align__(128) struct tile_plan p;
	__align__(128) int32_t head[PLAN_WORDS]; /* the first; -1: there is no more */
};

/* What accumulators are turned back by. */
struct turn_tables {
	const float *cosine, *sine; /* [positions, head dim / 2]; NULL: nothing is turned */
	const int32_t *position;
};

/* The list of an order that is there already. */
struct work_list hopper_list(const struct attend *a, bool by_query, int rows,
			     struct tile_plan *order);
/* The work of a query or key pass; memory for its entries (see attention_plan). */
struct work_list hopper_work(struct cuda_state *s, const struct attend *a, bool by_query, int rows,
			     struct tile_plan *order, struct tile_plan *work);
/* Host (maps.cu): the map that its items are copied by, those of what lies as queries, with `row`
 * and `sequence` elements in between, and of keys or values. */
CUtensorMap hopper_item_map(struct cuda_state *s, const struct work_list *l);
CUtensorMap hopper_query_map(struct cuda_state *s, const struct attend *a, const void *first,
			     int64_t row, int64_t sequence, int box_rows);
CUtensorMap hopper_key_map(struct cuda_state *s, const struct attend *a, const void *first,
			   int box_rows);

#ifdef HOPPER_CODE

static __device__ __forceinline__ uint32_t shared_address(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- barriers: a phase ends when `count` arrivals and all expected bytes are in */
static __device__ __forceinline__ void barrier_init(uint64_t *b, int count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)),
		     "r"(count));
}

static __device__ __forceinline__ void barrier_init_done(void)
{
	asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
	asm volatile("fence.proxy.async;" ::: "memory");
}

/* The same where no other block reaches them. */
static __device__ __forceinline__ void barrier_init_done_alone(void)
{
	asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

static __device__ __forceinline__ void barrier_expect(uint64_t *b, uint32_t bytes)
{
	asm volatile(
		"mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
		"r"(bytes)
		: "memory");
}

/* More bytes, by what does not arrive yet. */
static __device__ __forceinline__ void barrier_expect_more(uint64_t *b, uint32_t bytes)
{
	asm volatile(
		"mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)),
		"r"(bytes)
		: "memory");
}

static __device__ __forceinline__ void barrier_arrive(uint64_t *b)
{
	asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b))
		     : "memory");
}

static __device__ __forceinline__ void barrier_wait(uint64_t *b, uint32_t parity)
{
	asm volatile("{\n\t.reg .pred done;\n"
		     "again:\n\t"
		     "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
		     "@done bra finished;\n\t"
		     "bra again;\n"
		     "finished:\n\t}" ::"r"(shared_address(b)),
		     "r"(parity)
		     : "memory");
}

/* One arrival a warp, once all its lanes are done with what the barrier guards. */
static __device__ __forceinline__ void barrier_release(uint64_t *b)
{
	__syncwarp();
	if (threadIdx.x % 32 == 0)
		barrier_arrive(b);
}

/* The same, and x (never negative) is known by then: the compiler moves waits for products up over
 * plain arithmetic, but not over an arrival that depends on it. */
static __device__ __forceinline__ void barrier_release_after(uint64_t *b, float x)
{
	__syncwarp();
	asm volatile("{\n\t.reg .pred p;\n\tsetp.ge.f32 p, %1, 0f00000000;\n\t"
		     "@p mbarrier.arrive.shared::cta.b64 _, [%0];\n\t}" ::"r"(shared_address(b)),
		     "f"(threadIdx.x % 32 == 0 ? x : -1.0f)
		     : "memory");
}

/* A ring of stages is walked by (stage, phase); the phase flips at each wrap. */
struct ring {
	int stage;
	uint32_t phase;
};

template <int STAGES>
static __device__ __forceinline__ void ring_next(struct ring &r)
{
	if (++r.stage == STAGES) {
		r.stage = 0;
		r.phase ^= 1;
	}
}

/* ---- clusters: blocks that reach one another's shared memory, which is laid out alike in them */
static __device__ __forceinline__ int cluster_rank(void)
{
	int rank;

	asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
	return rank;
}

static __device__ __forceinline__ unsigned cluster_blocks(void)
{
	unsigned blocks;

	asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
	return blocks;
}

/* Where block `rank` of the cluster has what p is here. */
static __device__ __forceinline__ uint32_t cluster_address(const void *p, unsigned rank)
{
	uint32_t there;

	asm("mapa.shared::cluster.u32 %0, %1, %2;"
	    : "=r"(there)
	    : "r"(shared_address(p)), "r"(rank));
	return there;
}

/* Two words to such an address; the barrier in that block counts their bytes when they are there,
 * for which nothing waits here. */
static __device__ __forceinline__ void cluster_put(uint32_t to, float x, float y, uint32_t barrier)
{
	asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 "
		     "[%0], {%1, %2}, [%3];" ::"r"(to),
		     "f"(x), "f"(y), "r"(barrier)
		     : "memory");
}

/* Waits for all threads of the cluster, whose barriers are there then (barrier_init_done). */
static __device__ __forceinline__ void cluster_sync(void)
{
	asm volatile("barrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait.acquire;" ::
			     : "memory");
}

/* barrier_release at this barrier of the first `blocks` blocks of the cluster. It orders products'
 * reads before copies' writes, and not a thread's own writes: that would wait for all of them. */
static __device__ __forceinline__ void cluster_release(uint64_t *b, int blocks)
{
	int lane = (int)threadIdx.x % 32;

	__syncwarp();
	if (lane < blocks)
		asm volatile("{\n\t.reg .b32 there;\n\t"
			     "mapa.shared::cluster.u32 there, %0, %1;\n\t"
			     "mbarrier.arrive.shared::cluster.b64 _, [there];\n\t"
			     "}" ::"r"(shared_address(b)),
			     "r"(lane)
			     : "memory");
}

/* ---- copies */
static __device__ __forceinline__ void copy_tile(void *to, const CUtensorMap *map, uint64_t *b,
						 int column, int row, int sequence)
{
	asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
		     "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
		     "l"(map), "r"(shared_address(b)), "r"(column), "r"(row), "r"(sequence)
		     : "memory");
}

/* To the same place in the blocks of the cluster that `mask` names, each of which is told by its
 * own barrier there. */
static __device__ __forceinline__ void copy_tile_to(uint16_t mask, void *to, const CUtensorMap *map,
						    uint64_t *b, int column, int row, int sequence)
{
	asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
		     ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(
			     shared_address(to)),
		     "l"(map), "r"(shared_address(b)), "r"(column), "r"(row), "r"(sequence),
		     "h"(mask)
		     : "memory");
}

/* Whole rows of a head: HD / 64 tiles of ROWS rows, one after the other. */
template <int HD, int ROWS>
static __device__ __forceinline__ void copy_head(bf16 *to, const CUtensorMap *map, uint64_t *b,
						 int head, int row, int sequence)
{
#pragma unroll
	for (int half = 0; half < HD / 64; half++)
		copy_tile(to + half * ROWS * 64, map, b, head * HD + half * 64, row, sequence);
}

static __device__ __forceinline__ void copy_bytes(void *to, const void *from, uint32_t bytes,
						  uint64_t *b)
{
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
		     "[%1], %2, [%3];" ::"r"(shared_address(to)),
		     "l"(from), "r"(bytes), "r"(shared_address(b))
		     : "memory");
}

/* Words of hopper_word_map, from number `word` on, a multiple of four; `to` is aligned to 128
 * bytes. */
static __device__ __forceinline__ void copy_words(void *to, const CUtensorMap *map, uint64_t *b,
						  int word)
{
	asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes "
		     "[%0], [%1, {%3}], [%2];" ::"r"(shared_address(to)),
		     "l"(map), "r"(shared_address(b)), "r"(word)
		     : "memory");
}

/* ---- work: the producer takes it and passes it on with the own tile's barrier */

/* What the producer keeps of an item. */
struct errand {
	int sequence, tile, first, last, head;
};

static __device__ __forceinline__ void read_errand(struct errand &e, const struct tile_plan &p,
						   int head)
{
	e.sequence = p.sequence;
	e.tile = p.tile;
	e.first = p.all.first;
	e.last = p.all.last;
	e.head = head;
}

/* Puts the item of number `at` into the own stage, expecting `bytes` of its tiles (none when it
 * visits nothing), and takes the next number. False when there is no more. */
template <typename SHARED>
static __device__ __forceinline__ bool
announce_work(SHARED &m, const struct work_list &w, const CUtensorMap *items,
	      const struct ring &own, int &at, struct errand &e, uint32_t bytes)
{
	uint64_t *full = &m.own_full[own.stage];
	struct place place = { 0, -1 };

	if (at < w.tiles * w.heads)
		place = place_of(at, w.tiles, w.heads, w.group, w.mixed);
	at = atomicAdd(w.next, 1);
	if (at == w.tiles * w.heads + 2 * (int)gridDim.x - 1)
		*w.next = 0; /* nobody asks again: each block does so twice beyond its items */
	barrier_wait(&m.own_empty[own.stage], own.phase ^ 1);
	if (place.head < 0) {
		barrier_expect(full, sizeof(struct tile_plan));
		copy_words(m.item[own.stage].head, items, full, number_word(w.tiles, -1));
		return false;
	}
	barrier_expect_more(full, 2 * sizeof(struct tile_plan));
	copy_words(m.item[own.stage].head, items, full, number_word(w.tiles, place.head));
	copy_words(&m.item[own.stage].p, items, full, place.tile * PLAN_WORDS);
	read_errand(e, w.plan[place.tile], place.head);
	if (e.first > e.last)
		barrier_arrive(full);
	else
		barrier_expect(full, bytes);
	return true;
}

/* Waits for the own stage's item, whose passing tiles have SIZE rows, the first from a multiple of
 * FROM on. False when there is no more. */
template <int SIZE, int FROM, typename SHARED>
static __device__ __forceinline__ bool receive_work(const SHARED &m, const struct ring &own,
						    int group, struct share &t)
{
	const struct work_item &item = m.item[own.stage];

	barrier_wait(const_cast<uint64_t *>(&m.own_full[own.stage]), own.phase);
	t.head = item.head[0];
	if (t.head < 0)
		return false;
	t.sequence = item.p.sequence;
	t.tile = item.p.tile;
	share_tiles(&t, &item.p.all, &item.p.part[group], SIZE, FROM);
	return true;
}

/* ---- turning back: accumulators of two rows hold both of a pair (i, i + HD / 2) */

/* Cosines and sines of a thread's columns in one row. Loads through the read-only path may go ahead
 * of writes. */
template <int HD>
struct turning {
	float2 cosine[HD / 16], sine[HD / 16];
};

template <int HD>
static __device__ __forceinline__ void turn_load(struct turning<HD> &r,
						 const struct turn_tables &t, int position)
{
	int64_t at = (int64_t)position * (HD / 2) + 2 * ((int)threadIdx.x % 4);

#pragma unroll
	for (int c = 0; c < HD / 16; c++) {
		r.cosine[c] = __ldg(reinterpret_cast<const float2 *>(t.cosine + at + 8 * c));
		r.sine[c] = __ldg(reinterpret_cast<const float2 *>(t.sine + at + 8 * c));
	}
}

template <int HD>
static __device__ __forceinline__ void turn_back(float (&x)[HD / 2], int half,
						 const struct turning<HD> &r)
{
#pragma unroll
	for (int c = 0; c < HD / 16; c++) {
#pragma unroll
		for (int i = 0; i < 2; i++) {
			float &a = x[4 * c + 2 * half + i],
			      &b = x[4 * (c + HD / 16) + 2 * half + i];
			float was = a, cosine = i ? r.cosine[c].y : r.cosine[c].x,
			      sine = i ? r.sine[c].y : r.sine[c].x;

			a = was * cosine + b * sine;
			b = b * cosine - was * sine;
		}
	}
}

/* Both rows of a thread, of row numbers row and row + 8 below `end`. */
template <int HD>
static __device__ __forceinline__ void turn_back_rows(float (&x)[HD / 2],
						      const struct turn_tables &t, int64_t first,
						      int row, int end)
{
	struct turning<HD> r[2];

	if (!t.cosine)
		return;
#pragma unroll
	for (int half = 0; half < 2; half++)
		turn_load<HD>(r[half], t, __ldg(t.position + first + min(row + 8 * half, end - 1)));
#pragma unroll
	for (int half = 0; half < 2; half++)
		turn_back<HD>(x, half, r[half]);
}

/* ---- registers: the producer's warpgroup gives up what the consumers take. There are no more than
 * all started with: a warpgroup that asks for more waits for ever. */
template <int CONSUMERS, int PRODUCER, int CONSUMER>
struct register_shares {
	static constexpr int first = 65536 / ((CONSUMERS + 1) * 128) / 8 * 8; /* of a thread */
	static_assert(PRODUCER + CONSUMERS * CONSUMER <= (CONSUMERS + 1) * first,
		      "more registers are taken than are given up");

	static __device__ __forceinline__ void produce(void)
	{
		asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(PRODUCER));
	}

	static __device__ __forceinline__ void consume(void)
	{
		asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(CONSUMER));
	}
};

/* ---- products */
static __device__ __forceinline__ void products_begin(void)
{
	asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

static __device__ __forceinline__ void products_commit(void)
{
	asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/* Waits until at most PENDING of the committed groups run on. */
template <int PENDING>
static __device__ __forceinline__ void products_wait(void)
{
	asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* Keeps the compiler from moving uses of asynchronous results across a wait. */
template <int N>
static __device__ __forceinline__ void pin(float (&x)[N])
{
#pragma unroll
	for (int i = 0; i < N; i++)
		asm volatile("" : "+f"(x[i])::"memory");
}

template <int N>
static __device__ __forceinline__ void pin(uint32_t (&x)[N])
{
#pragma unroll
	for (int i = 0; i < N; i++)
		asm volatile("" : "+r"(x[i])::"memory");
}

/* Descriptor of an operand whose rows run along K in the tile (K-major): eight rows are 1024 bytes.
 */
static __device__ __forceinline__ uint64_t along_k(const void *tile)
{
	return (uint64_t)((shared_address(tile) & 0x3ffff) >> 4) | (uint64_t)1 << 16 |
	       (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

/* Of an operand whose rows run along N, K going down the rows (MN-major); `apart` bytes lie between
 * the tiles of 64 columns. */
static __device__ __forceinline__ uint64_t along_n(const void *tile, int apart)
{
	return (uint64_t)((shared_address(tile) & 0x3ffff) >> 4) | (uint64_t)(apart >> 4) << 16 |
	       (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

/* The sums of a product as operands: what they are called in the text, and what they are. */
#define NAMES_32 \
	"%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
	"%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, " \
	"%30, %31"
#define NAMES_64 NAMES_32 ", " \
	"%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
	"%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, " \
	"%60, %61, %62, %63"
#define NAMES_128 NAMES_64 ", " \
	"%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, " \
	"%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, " \
	"%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, " \
	"%105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, " \
	"%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_4(i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4((i) + 4), SUMS_4((i) + 8), SUMS_4((i) + 12)
#define SUMS_32(i) SUMS_16(i), SUMS_16((i) + 16)
#define SUMS_64(i) SUMS_32(i), SUMS_32((i) + 32)
#define SUMS_128(i) SUMS_64(i), SUMS_64((i) + 64)

/* d[64 x N] (+)= A B; `more` 0 starts from zero. ss: A and B along K in shared memory. rs: A in
 * registers, B along N (TB 1) or along K (TB 0). */
template <int N>
struct product16;

template <>
struct product16<64> {
	static __device__ __forceinline__ void ss(float (&d)[32], uint64_t a, uint64_t b, int more)
	{
		asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %34, 0;\n\t"
			     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
			     NAMES_32 "}, "
			     "%32, %33, p, 1, 1, 0, 0;\n\t}"
			     : SUMS_32(0)
			     : "l"(a), "l"(b), "r"(more));
	}
	template <int TB>
	static __device__ __forceinline__ void rs(float (&d)[32], uint32_t a0, uint32_t a1,
						  uint32_t a2, uint32_t a3, uint64_t b, int more)
	{
		asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %37, 0;\n\t"
			     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
			     NAMES_32 "}, "
			     "{%32, %33, %34, %35}, %36, p, 1, 1, %38;\n\t}"
			     : SUMS_32(0)
			     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(more), "n"(TB));
	}
};

template <>
struct product16<128> {
	static __device__ __forceinline__ void ss(float (&d)[64], uint64_t a, uint64_t b, int more)
	{
		asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %66, 0;\n\t"
			     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
			     NAMES_64 "}, "
			     "%64, %65, p, 1, 1, 0, 0;\n\t}"
			     : SUMS_64(0)
			     : "l"(a), "l"(b), "r"(more));
	}
	template <int TB>
	static __device__ __forceinline__ void rs(float (&d)[64], uint32_t a0, uint32_t a1,
						  uint32_t a2, uint32_t a3, uint64_t b, int more)
	{
		asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %69, 0;\n\t"
			     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
			     NAMES_64 "}, "
			     "{%64, %65, %66, %67}, %68, p, 1, 1, %70;\n\t}"
			     : SUMS_64(0)
			     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(b), "r"(more), "n"(TB));
	}
};

template <>
struct product16<256> {
	static __device__ __forceinline__ void ss(float (&d)[128], uint64_t a, uint64_t b, int more)
	{
		asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %130, 0;\n\t"
			     "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
			     NAMES_128 "}, "
			     "%128, %129, p, 1, 1, 0, 0;\n\t}"
			     : SUMS_128(0)
			     : "l"(a), "l"(b), "r"(more));
	}
};

/* s[64 x N] = A[64 x HD] B[N x HD]^T, both from shared memory; A's tiles have AROWS rows, B's
 * BROWS. */
template <int HD, int N, int AROWS, int BROWS = N>
static __device__ __forceinline__ void product_scores(float (&s)[N / 2], const bf16 *a,
						      const bf16 *b)
{
	uint64_t da = along_k(a), db = along_k(b);

#pragma unroll
	for (int k = 0; k < HD / 16; k++)
		product16<N>::ss(s, da + (k / 4) * (AROWS * TILE_ROW_BYTES / 16) + k % 4 * 2,
				 db + (k / 4) * (BROWS * TILE_ROW_BYTES / 16) + k % 4 * 2, k > 0);
}

/* The same with A[64 x HD] in registers. */
template <int HD, int N, int BROWS = N>
static __device__ __forceinline__ void product_scores(float (&s)[N / 2], uint32_t (&a)[HD / 4],
						      const bf16 *b)
{
	uint64_t db = along_k(b);

#pragma unroll
	for (int k = 0; k < HD / 16; k++)
		product16<N>::template rs<0>(
			s, a[4 * k], a[4 * k + 1], a[4 * k + 2], a[4 * k + 3],
			db + (k / 4) * (BROWS * TILE_ROW_BYTES / 16) + k % 4 * 2, k > 0);
}

/* Four matrices of 8 x 8 from shared memory; lane l has the address of row l % 8 of the l / 8-th
 * one. */
static __device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t from)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
		     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
		     : "r"(from)
		     : "memory");
}

/* The 64 rows of a warpgroup in a tile of ROWS rows, as A registers. */
template <int HD, int ROWS>
static __device__ __forceinline__ void load_operand(uint32_t (&a)[HD / 4], const bf16 *tile)
{
	int lane = (int)threadIdx.x % 32;
	int row = (int)threadIdx.x % 128 / 32 * 16 + lane % 16;

#pragma unroll
	for (int k = 0; k < HD / 16; k++) {
		const bf16 *at = tile + k / 4 * ROWS * 64 + row * 64 +
				 ((k % 4 * 2 + lane / 16) ^ lane % 8) * 8;
		uint32_t x[4];

		load_matrices(x, shared_address(at));
#pragma unroll
		for (int i = 0; i < 4; i++)
			a[4 * k + i] = x[i];
	}
}

/* A warpgroup's 64 own rows in a tile of ROWS rows, as A of scores. Products of few columns are
 * bound by what they read from shared memory: half of it is A, unless it is held in registers. */
template <int HD, int ROWS, bool HELD>
struct own_operand {
	const bf16 *tile;

	__device__ __forceinline__ void take(const bf16 *from)
	{
		tile = from;
	}

	template <int N, int BROWS = N>
	__device__ __forceinline__ void scores(float (&s)[N / 2], const bf16 *b)
	{
		product_scores<HD, N, ROWS, BROWS>(s, tile, b);
	}

	__device__ __forceinline__ void keep(bool)
	{
	}
};

template <int HD, int ROWS>
struct own_operand<HD, ROWS, true> {
	uint32_t a[HD / 4];

	__device__ __forceinline__ void take(const bf16 *from)
	{
		load_operand<HD, ROWS>(a, from);
		pin(a);
	}

	template <int N, int BROWS = N>
	__device__ __forceinline__ void scores(float (&s)[N / 2], const bf16 *b)
	{
		product_scores<HD, N, BROWS>(s, a, b);
	}

	/* For each round of a loop, with a condition that never holds. ptxas (13.0) has been seen
	 * to give an operand that a loop does not change the registers of another one that it
	 * fills; what may change keeps its own. */
	__device__ __forceinline__ void keep(bool never)
	{
		if (never) {
#pragma unroll
			for (int i = 0; i < HD / 4; i += 4)
				a[i] ^= 1;
		}
	}
};

/* o[64 x HD] (+)= P[64 x ROWS] V[ROWS x HD]; P in registers, V's rows along the head. */
template <int HD, int ROWS>
static __device__ __forceinline__ void product_values(float (&o)[HD / 2], uint32_t (&p)[ROWS / 4],
						      const bf16 *v, int more)
{
	uint64_t dv = along_n(v, ROWS * TILE_ROW_BYTES);

#pragma unroll
	for (int k = 0; k < ROWS / 16; k++)
		product16<HD>::template rs<1>(o, p[4 * k], p[4 * k + 1], p[4 * k + 2], p[4 * k + 3],
					      dv + k * (16 * TILE_ROW_BYTES / 16), more | (k > 0));
}

/* An accumulator as bf16 A registers. */
template <int N>
static __device__ __forceinline__ void pack_operand(uint32_t (&p)[N / 2], const float (&s)[N])
{
#pragma unroll
	for (int i = 0; i < N / 2; i++)
		p[i] = pack_bf16(s[2 * i], s[2 * i + 1]);
}

static __device__ __forceinline__ float exp2_fast(float x)
{
	float y;

	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
	return y;
}

/* Of 2 N keys from `key` on, those that a thread's two rows (from[] to to[]) do not see become
 * `none`. Most tiles at an edge are at one of the two. */
template <int N>
static __device__ __forceinline__ void mask_keys(float (&s)[N], const int (&from)[2],
						 const int (&to)[2], const struct share &t, int key,
						 float none)
{
	int column = key + 2 * ((int)threadIdx.x % 4);

	if (share_before(&t, key)) {
#pragma unroll
		for (int i = 0; i < N; i++)
			if (i / 4 * 8 + i % 2 < from[i / 2 % 2] - column)
				s[i] = none;
	}
	if (share_beyond(&t, key, 2 * N)) {
#pragma unroll
		for (int i = 0; i < N; i++)
			if (i / 4 * 8 + i % 2 > to[i / 2 % 2] - column)
				s[i] = none;
	}
}

/* Lane i of a quad gives piece j to lane j, as its piece i. */
static __device__ __forceinline__ void trade_pieces(uint32_t (&piece)[4])
{
#pragma unroll
	for (int step = 1; step < 4; step *= 2) {
		bool odd = threadIdx.x & step;

#pragma unroll
		for (int i = 0; i < 4; i++) {
			if (i & step)
				continue;
			uint32_t &low = piece[i], &high = piece[i + step];
			uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? low : high, step);

			low = odd ? got : low;
			high = odd ? high : got;
		}
	}
}

/* Row `half` (0: lane/4, 1: lane/4 + 8) of an accumulator [64 x HD] to bf16 memory: lanes of a quad
 * trade pieces so that each writes 16 bytes at a time. All lanes take part; row_start may be NULL
 * (no row). */
template <int HD>
static __device__ __forceinline__ void write_row(bf16 *row_start, const float (&o)[HD / 2],
						 int half, float by)
{
	int quad = (int)threadIdx.x % 4;

#pragma unroll
	for (int g = 0; g < HD / 32; g++) {
		uint32_t piece[4];

#pragma unroll
		for (int c = 0; c < 4; c++)
			piece[c] = pack_bf16(by * o[16 * g + 4 * c + 2 * half],
					     by * o[16 * g + 4 * c + 2 * half + 1]);
		trade_pieces(piece);
		if (row_start)
			*reinterpret_cast<uint4 *>(row_start + 32 * g + 8 * quad) =
				make_uint4(piece[0], piece[1], piece[2], piece[3]);
	}
}

#endif
#endif
