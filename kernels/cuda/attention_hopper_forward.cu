/* SPDX-License-Identifier: Apache-2.0
 * Attention forward on Hopper (bf16, head dim 64 or 128). Blocks stay on their multiprocessor and
 * take tiles of 64 x WGS queries of one head, longest first. One warp copies tiles of Q, K and V
 * ahead (bulk tensor copies); WGS warpgroups own 64 queries each. The next tile's scores are
 * computed while the softmax of the present one runs. Tiles of 128 keys outside the interval are
 * not visited, only edge tiles are masked, and of the first one half is left out where it can be.
 * After Shah et al. 2024, FlashAttention-3. */
#include "kernels/cuda/hopper.cuh"

#define KEYS 128 /* keys of a tile */
#define STAGES(HD) ((HD) == 64 ? 4 : 2) /* tiles of K and V: as many as there is room for */
#define OWN_STAGES 2 /* tiles of Q: the next one comes while this one is worked on */
#define RISE 8.0f /* of scores, in powers of two, that probabilities may have above 1 */

#define CACHE_BYTES \
	(24 << 20) /* keys and values that stay in the second-level cache beside the rest */

#define MIXED_BYTES (32 << 20) /* of the last heads, which are worked on together */

/* Sequences whose keys and values stay in the second-level cache beside the rest. */
static int sequences_together(const struct attend *a)
{
	int n = (int)(CACHE_BYTES / ((int64_t)a->keys * a->hd * 4));

	return n < 1 ? 1 : n < a->batch ? n : a->batch;
}

struct work_list hopper_list(const struct attend *a, bool by_query, int rows,
			     struct tile_plan *order)
{
	int each = (int)div_up(by_query ? a->queries : a->keys, rows), tiles = each * a->batch;
	int64_t head = (int64_t)a->keys * a->hd * 4 * sequences_together(a);
	int most = head > MIXED_BYTES / 2 ? 1 : head > MIXED_BYTES / 4 ? 2 : 4;

	return { order,	   &order[tiles].sequence,	    tiles,
		 a->heads, sequences_together(a) * each, most < a->heads ? most : a->heads };
}

struct work_list hopper_work(struct cuda_state *s, const struct attend *a, bool by_query, int rows,
			     struct tile_plan *order, struct tile_plan *work)
{
	order = attention_plan(s, a, by_query, rows, sequences_together(a), order, work);
	return hopper_list(a, by_query, rows, order);
}

bool attention_hopper_fits(const struct cuda_state *s, const struct attend *a)
{
	return s->hopper && a->type == DT_BF16 && (a->hd == 64 || a->hd == 128) &&
	       aligned16(a->q) && aligned16(a->k) && aligned16(a->v) && aligned16(a->start) &&
	       aligned16(a->limit) && a->q_row % 8 == 0 && a->kv_row % 8 == 0;
}

struct forward_work {
	struct work_list list;
	int queries, keys;
	bool starts; /* queries have one; else it is 0 */
	bf16 *out;
	float *lse, scale_log2, scale;
};

/* Starts and limits of a tile of queries. Copies begin at 16 bytes: up to three words before it. */
template <int WGS>
struct own_spans {
	static constexpr int words = WGS * 64 + 4;
	__align__(128) int32_t start[words];
	__align__(128) int32_t limit[words];
};

template <int HD, int WGS>
struct forward_shared {
	bf16 q[OWN_STAGES][WGS * 64 * HD];
	bf16 k[STAGES(HD)][KEYS * HD];
	bf16 v[STAGES(HD)][KEYS * HD];
	struct own_spans<WGS> span[OWN_STAGES];
	struct work_item item[OWN_STAGES];
	uint64_t own_full[OWN_STAGES], own_empty[OWN_STAGES];
	uint64_t k_full[STAGES(HD)], k_empty[STAGES(HD)], v_full[STAGES(HD)], v_empty[STAGES(HD)];
};

#ifdef HOPPER_CODE

/* At 64 registers are short, and at 128 more of a tile's time goes to its sums. */
#define LAZY(HD) ((HD) == 128)

template <int HD, int WGS>
using own_queries = own_operand<HD, WGS * 64, HD == 128>;

template <int HD, int WGS>
static __device__ void forward_producer(struct forward_shared<HD, WGS> &m,
					const struct forward_work &w, const CUtensorMap *items,
					const CUtensorMap *starts, const CUtensorMap *limits,
					const CUtensorMap *mq, const CUtensorMap *mk,
					const CUtensorMap *mv)
{
	uint32_t bytes = sizeof m.q[0] + (w.starts ? 2 : 1) * sizeof m.span[0].limit;
	struct ring r = { 0, 0 }, own = { 0, 0 };
	struct errand e;
	int at = atomicAdd(w.list.next, 1);

	while (announce_work(m, w.list, items, own, at, e, bytes)) {
		uint64_t *own_full = &m.own_full[own.stage];
		int row = e.tile * WGS * 64, word = (e.sequence * w.queries + row) / 4 * 4;

		if (e.first <= e.last) {
			copy_head<HD, WGS * 64>(m.q[own.stage], mq, own_full, e.head, row,
						e.sequence);
			copy_words(m.span[own.stage].limit, limits, own_full, word);
			if (w.starts)
				copy_words(m.span[own.stage].start, starts, own_full, word);
		}
		ring_next<OWN_STAGES>(own);
		for (int key = e.first + (e.last - e.first) / KEYS * KEYS; key >= e.first;
		     key -= KEYS) {
			barrier_wait(&m.k_empty[r.stage], r.phase ^ 1);
			barrier_expect(&m.k_full[r.stage], sizeof m.k[0]);
			copy_head<HD, KEYS>(m.k[r.stage], mk, &m.k_full[r.stage], e.head, key,
					    e.sequence);
			barrier_wait(&m.v_empty[r.stage], r.phase ^ 1);
			barrier_expect(&m.v_full[r.stage], sizeof m.v[0]);
			copy_head<HD, KEYS>(m.v[r.stage], mv, &m.v_full[r.stage], e.head, key,
					    e.sequence);
			ring_next<STAGES(HD)>(r);
		}
	}
}

/* What a thread knows of its two rows. */
struct two_rows {
	int from[2], to[2]; /* keys each sees */
	float most[2], sum[2];
};

/* Scores become exp2(scale (s - most)), and keep[] what the sums so far are multiplied by. `most`
 * is the largest score so far or, if LAZY, one that is at most RISE / scale_log2 below it, so that
 * it seldom changes; where it does not, keep[] is 1. */
template <bool LAZY, int N>
static __device__ __forceinline__ void soften(float (&s)[N], struct two_rows &r,
					      float scale_log2, float keep[2])
{
#pragma unroll
	for (int half = 0; half < 2; half++) {
		float most = r.most[half], sum = 0.0f, base;
		bool stays;

#pragma unroll
		for (int i = 0; i < N / 4; i++)
			most = fmaxf(most, fmaxf(s[4 * i + 2 * half], s[4 * i + 2 * half + 1]));
		most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
		most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
		stays = LAZY && (most - r.most[half]) * scale_log2 <= RISE;
		if (stays)
			most = r.most[half];
		base = most == -INFINITY ? 0.0f : most * scale_log2;
		keep[half] = stays ? 1.0f : exp2_fast(r.most[half] * scale_log2 - base);
#pragma unroll
		for (int i = 0; i < N / 2; i++) {
			float &x = s[4 * (i / 2) + 2 * half + i % 2];

			x = exp2_fast(fmaf(x, scale_log2, -base));
			sum += x;
		}
		r.most[half] = most;
		r.sum[half] = r.sum[half] * keep[half] + sum;
	}
}

template <int N>
static __device__ __forceinline__ void rescale(float (&o)[N], const float keep[2])
{
#pragma unroll
	for (int i = 0; i < N; i++)
		o[i] *= keep[i / 2 % 2];
}

template <int HD>
static __device__ __forceinline__ void forward_finish(const struct forward_work &w,
						      const struct share &t, int row0,
						      const float (&o)[HD / 2], struct two_rows &r)
{
#pragma unroll
	for (int half = 0; half < 2; half++) {
		int row = row0 + 8 * half;
		int64_t at = (int64_t)t.sequence * w.queries + row;
		float sum = quad_sum(r.sum[half]);
		bool there = row < w.queries;

		write_row<HD>(there ? w.out + (at * w.list.heads + t.head) * HD : NULL, o, half,
			      sum > 0.0f ? 1.0f / sum : 0.0f);
		if (there && w.lse && threadIdx.x % 4 == 0)
			w.lse[((int64_t)t.sequence * w.list.heads + t.head) * w.queries + row] =
				r.most[half] * w.scale + logf(sum);
	}
}

/* Tiles `from` down to `to` pass by with nothing for this warpgroup, which lets them go. */
template <int HD, int WGS>
static __device__ __forceinline__ void forward_pass_by(struct forward_shared<HD, WGS> &m,
						       struct ring &r, int from, int to)
{
	for (int j = from; j >= to; j--) {
		barrier_wait(&m.k_full[r.stage], r.phase);
		barrier_release(&m.k_empty[r.stage]);
		barrier_wait(&m.v_full[r.stage], r.phase);
		barrier_release(&m.v_empty[r.stage]);
		ring_next<STAGES(HD)>(r);
	}
}

/* The probabilities of the warpgroup's first tile, of which the first N keys are needed. */
template <int N, int HD, int WGS>
static __device__ __forceinline__ void forward_first(struct forward_shared<HD, WGS> &m,
						     const struct forward_work &w,
						     const struct share &t, int stage,
						     own_queries<HD, WGS> &q,
						     uint32_t (&probability)[KEYS / 4],
						     struct two_rows &rows)
{
	float s[N / 2], keep[2];
	int key = t.base + t.high * KEYS;

	products_begin();
	q.template scores<N, KEYS>(s, m.k[stage]);
	products_commit();
	products_wait<0>();
	pin(s);
	barrier_release(&m.k_empty[stage]);
	mask_keys(s, rows.from, rows.to, t, key, -INFINITY);
	soften<LAZY(HD)>(s, rows, w.scale_log2, keep);
#pragma unroll
	for (int i = 0; i < KEYS / 4; i++)
		probability[i] =
			i < N / 4 ? pack_bf16(s[2 * i % (N / 2)], s[2 * i % (N / 2) + 1]) : 0;
}

/* The warpgroup's own tiles, high to low. */
template <int HD, int WGS>
static __device__ __forceinline__ void forward_tile(struct forward_shared<HD, WGS> &m,
						    const struct forward_work &w,
						    const struct share &t, int group,
						    struct ring &r, int own_stage,
						    float (&o)[HD / 2], struct two_rows &rows)
{
	own_queries<HD, WGS> q;
	float s[KEYS / 2], keep[2];
	uint32_t probability[KEYS / 4];
	struct ring before;
	int more = 0;

	q.take(m.q[own_stage] + group * 64 * 64);
	barrier_wait(&m.k_full[r.stage], r.phase);
	if (t.rest <= KEYS / 2)
		forward_first<KEYS / 2>(m, w, t, r.stage, q, probability, rows);
	else
		forward_first<KEYS>(m, w, t, r.stage, q, probability, rows);
	before = r;
	ring_next<STAGES(HD)>(r);
	for (int j = t.high - 1; j >= t.low; j--) {
		barrier_wait(&m.k_full[r.stage], r.phase);
		products_begin();
		q.template scores<KEYS>(s, m.k[r.stage]);
		products_commit();
		barrier_wait(&m.v_full[before.stage], before.phase);
		products_begin();
		product_values<HD, KEYS>(o, probability, m.v[before.stage], more);
		products_commit();
		products_wait<1>();
		pin(s);
		mask_keys(s, rows.from, rows.to, t, t.base + j * KEYS, -INFINITY);
		soften<LAZY(HD)>(s, rows, w.scale_log2, keep);
		barrier_release_after(&m.k_empty[r.stage], rows.sum[0] + rows.sum[1]);
		products_wait<0>();
		pin(o);
		barrier_release(&m.v_empty[before.stage]);
		pack_operand(probability, s);
		if (!LAZY(HD) || __any_sync(0xffffffffu, keep[0] != 1.0f || keep[1] != 1.0f))
			rescale(o, keep);
		more = 1;
		before = r;
		ring_next<STAGES(HD)>(r);
	}
	barrier_wait(&m.v_full[before.stage], before.phase);
	products_begin();
	product_values<HD, KEYS>(o, probability, m.v[before.stage], more);
	products_commit();
	products_wait<0>();
	pin(o);
	barrier_release(&m.v_empty[before.stage]);
}

template <int HD, int WGS>
static __device__ void forward_consumer(struct forward_shared<HD, WGS> &m,
					const struct forward_work &w)
{
	int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128 - 1, 0);
	int in_tile = group * 64 + (int)threadIdx.x % 128 / 32 * 16 + (int)threadIdx.x % 32 / 4;
	struct ring r = { 0, 0 }, own = { 0, 0 };
	struct share t;

	while (receive_work<KEYS, 1>(m, own, group, t)) {
		int row0 = t.tile * WGS * 64 + in_tile;
		int word = (t.sequence * w.queries + t.tile * WGS * 64) % 4 + in_tile;
		float o[HD / 2];
		struct two_rows rows;

#pragma unroll
		for (int half = 0; half < 2; half++) {
			const struct own_spans<WGS> &span = m.span[own.stage];

			rows.from[half] = w.starts ? span.start[word + 8 * half] : 0;
			rows.to[half] = min(span.limit[word + 8 * half], w.keys - 1);
			rows.most[half] = -INFINITY;
			rows.sum[half] = 0.0f;
		}
#pragma unroll
		for (int i = 0; i < HD / 2; i++)
			o[i] = 0.0f;
		if (t.high >= t.low) {
			forward_pass_by(m, r, t.top, t.high + 1);
			forward_tile<HD, WGS>(m, w, t, group, r, own.stage, o, rows);
			forward_pass_by(m, r, t.low - 1, 0);
		} else {
			forward_pass_by(m, r, t.top, 0);
		}
		barrier_release(&m.own_empty[own.stage]);
		ring_next<OWN_STAGES>(own);
		forward_finish<HD>(w, t, row0, o, rows);
	}
}

#endif

template <int HD, int WGS>
__global__ void __launch_bounds__((WGS + 1) * 128, 1)
	forward_blocks(const __grid_constant__ CUtensorMap items,
		       const __grid_constant__ CUtensorMap starts,
		       const __grid_constant__ CUtensorMap limits,
		       const __grid_constant__ CUtensorMap mq,
		       const __grid_constant__ CUtensorMap mk,
		       const __grid_constant__ CUtensorMap mv,
		       const __grid_constant__ struct forward_work w)
{
#ifdef HOPPER_CODE
	typedef register_shares<WGS, WGS == 3 ? 32 : 24, WGS == 3 ? 160 : 240> registers;
	extern __shared__ char raw[];
	struct forward_shared<HD, WGS> &m = *reinterpret_cast<struct forward_shared<HD, WGS> *>(
		raw + ((1024 - (shared_address(raw) & 1023)) & 1023));

	if (threadIdx.x == 0) {
		for (int i = 0; i < OWN_STAGES; i++) {
			barrier_init(&m.own_full[i], 1);
			barrier_init(&m.own_empty[i], WGS * 4);
		}
		for (int i = 0; i < STAGES(HD); i++) {
			barrier_init(&m.k_full[i], 1);
			barrier_init(&m.v_full[i], 1);
			barrier_init(&m.k_empty[i], WGS * 4);
			barrier_init(&m.v_empty[i], WGS * 4);
		}
		barrier_init_done();
	}
	__syncthreads();
	if (threadIdx.x < 128) {
		registers::produce();
		if (threadIdx.x == 0)
			forward_producer<HD, WGS>(m, w, &items, &starts, &limits, &mq, &mk, &mv);
	} else {
		registers::consume();
		forward_consumer<HD, WGS>(m, w);
	}
#endif
}

/* The work of one pass: its plan is made for it alone, or with the first of several. */
static struct work_list forward_list(struct cuda_state *s, const struct attend *a, int rows)
{
	int tiles = (int)div_up(a->queries, rows) * a->batch;
	int passes = a->plan ? a->plan->passes : 0;
	int entries = plan_entries(tiles, a->heads);
	size_t bytes = 2 * (size_t)entries * sizeof(struct tile_plan);
	struct tile_plan *order;
	struct work_list list;

	if (a->plan && a->plan->order) {
		list = hopper_list(a, true, rows, a->plan->order);
	} else {
		order = (struct tile_plan *)cuda_scratch(s, bytes + (size_t)passes * sizeof(int));
		list = hopper_work(s, a, true, rows, order, order + entries);
		if (!a->plan)
			return list;
		a->plan->order = (struct tile_plan *)list.plan; /* it may be a kept one */
		a->plan->next = (int *)((char *)order + bytes);
		CUDA(cudaMemsetAsync(a->plan->next, 0, (size_t)passes * sizeof(int), s->stream));
	}
	CHECK(a->plan->passes-- > 0);
	list.next = a->plan->next++;
	return list;
}

template <int HD, int WGS>
static void run_forward(struct cuda_state *s, const struct attend *a)
{
	int tiles = (int)div_up(a->queries, WGS * 64) * a->batch, grid;
	float scale = 1.0f / sqrtf((float)a->hd);
	struct forward_work w = { forward_list(s, a, WGS * 64),
				  a->queries,
				  a->keys,
				  a->start != NULL,
				  (bf16 *)a->out,
				  a->lse,
				  scale * LOG2_E,
				  scale };
	size_t bytes = sizeof(struct forward_shared<HD, WGS>) + 1024;
	int64_t rows = (int64_t)a->batch * a->queries;
	const int32_t *starts = a->start ? a->start : a->limit; /* there must be a map */

	CUDA(cudaFuncSetAttribute(forward_blocks<HD, WGS>,
				  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
	grid = tiles * a->heads < s->processors ? tiles * a->heads : s->processors;
	forward_blocks<HD, WGS><<<(unsigned)grid, (WGS + 1) * 128, bytes, s->stream>>>(
		hopper_item_map(s, &w.list),
		hopper_word_map(s, starts, rows, own_spans<WGS>::words),
		hopper_word_map(s, a->limit, rows, own_spans<WGS>::words),
		hopper_query_map(s, a, a->q, a->q_row, a->q_sequence, WGS * 64),
		hopper_key_map(s, a, a->k, KEYS), hopper_key_map(s, a, a->v, KEYS), w);
	LAUNCHED();
}

/* 192 queries a tile, or 128 where these leave much less of the last tile empty. */
void attention_hopper(struct cuda_state *s, const struct attend *a)
{
	if (a->hd == 64 && div_up(a->queries, 128) * 128 * 8 < div_up(a->queries, 192) * 192 * 7)
		run_forward<64, 2>(s, a);
	else if (a->hd == 64)
		run_forward<64, 3>(s, a);
	else
		run_forward<128, 2>(s, a);
}
