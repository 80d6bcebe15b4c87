/* SPDX-License-Identifier: Apache-2.0
 * Attention backward on Hopper (bf16, head dim 64 or 128) in two passes that share no sums, so that
 * it is deterministic without atomics or ordering: one owns tiles of queries and makes dq, one owns
 * tiles of keys and makes dk and dv. Scores are computed twice (7 products in place of 5), but
 * probabilities and their gradients stay in registers: each accumulator is the next product's A
 * operand.
 *
 * The pass over queries also makes delta and hands the other one what it needs of each query.
 *
 * With P = exp(scale q k - lse), dP = dout v, dS = P (dP - delta), delta = dout . out:
 * dq = scale dS k, dk = scale dS^T q, dv = P^T dout. */
#include "kernels/cuda/hopper.cuh"

#define GROUPS 2	    /* warpgroups with 64 rows each */
#define OWNED (GROUPS * 64) /* rows a block owns */
#define PASSING 64	    /* queries of a tile passing by in the keys' pass */
#define STATS 4 /* of a query: lse * log2(e), delta, start, limit */

struct backward_work {
	struct work_list list;
	int queries, keys, stat_tiles;
	const float *lse;
	const int32_t *start, *limit;
	float *stats; /* [batch, heads, stat_tiles, STATS, PASSING], which the first pass writes */
	bf16 *dq, *dk, *dv;
	int64_t q_row, q_sequence, kv_row, kv_sequence;
	float scale_log2, scale;
	struct turn_tables turned;
};

/* The next own tile comes while this one is worked on: into memory of its own, unless this one's
 * rows are held in registers. */
template <int HD, int KEYS>
struct queries_shared {
	static constexpr bool held = HD == 128;
	static constexpr int own_stages = held ? 1 : 2, stages = 4; /* stages: passing tiles */
	bf16 q[own_stages][OWNED * HD], g[own_stages][OWNED * HD], o[own_stages][OWNED * HD];
	bf16 k[stages][KEYS * HD], v[stages][KEYS * HD]; /* g: dout, o: out */
	struct work_item item[own_stages];
	uint64_t own_full[own_stages], own_empty[own_stages], full[stages], empty[stages];
};

template <int HD>
struct keys_shared {
	static constexpr bool held = HD == 64;
	static constexpr int own_stages = held ? 1 : 2, stages = HD == 64 ? 6 : 2;
	bf16 k[own_stages][OWNED * HD], v[own_stages][OWNED * HD];
	bf16 q[stages][PASSING * HD], g[stages][PASSING * HD];
	float stats[stages][STATS][PASSING];
	struct work_item item[own_stages];
	uint64_t own_full[own_stages], own_empty[own_stages], full[stages], empty[stages];
};

#ifdef HOPPER_CODE

typedef register_shares<GROUPS, 24, 240> registers;

template <typename SHARED>
static __device__ __forceinline__ void barriers_begin(SHARED &m)
{
	if (threadIdx.x == 0) {
		for (int i = 0; i < SHARED::own_stages; i++) {
			barrier_init(&m.own_full[i], 1);
			barrier_init(&m.own_empty[i], GROUPS * 4);
		}
		for (int i = 0; i < SHARED::stages; i++) {
			barrier_init(&m.full[i], 1);
			barrier_init(&m.empty[i], GROUPS * 4);
		}
		barrier_init_done();
	}
	__syncthreads();
}

/* ---- the pass over tiles of queries */
template <int HD, int KEYS>
using own_queries = own_operand<HD, OWNED, queries_shared<HD, KEYS>::held>;

template <int HD, int KEYS>
static __device__ void queries_producer(struct queries_shared<HD, KEYS> &m,
					const struct backward_work &w, const CUtensorMap *items,
					const CUtensorMap *mq, const CUtensorMap *mg,
					const CUtensorMap *mo, const CUtensorMap *mk,
					const CUtensorMap *mv)
{
	struct ring r = { 0, 0 }, own = { 0, 0 };
	struct errand p;
	int at = atomicAdd(w.list.next, 1);

	while (announce_work(m, w.list, items, own, at, p, 3 * sizeof m.q[0])) {
		uint64_t *own_full = &m.own_full[own.stage];
		int head = p.head, row = p.tile * OWNED;

		if (p.first <= p.last) {
			copy_head<HD, OWNED>(m.q[own.stage], mq, own_full, head, row, p.sequence);
			copy_head<HD, OWNED>(m.g[own.stage], mg, own_full, head, row, p.sequence);
			copy_head<HD, OWNED>(m.o[own.stage], mo, own_full, head, row, p.sequence);
		}
		ring_next<queries_shared<HD, KEYS>::own_stages>(own);
		for (int key = p.first; key <= p.last; key += KEYS) {
			barrier_wait(&m.empty[r.stage], r.phase ^ 1);
			barrier_expect(&m.full[r.stage], sizeof m.k[0] + sizeof m.v[0]);
			copy_head<HD, KEYS>(m.k[r.stage], mk, &m.full[r.stage], head, key,
					    p.sequence);
			copy_head<HD, KEYS>(m.v[r.stage], mv, &m.full[r.stage], head, key,
					    p.sequence);
			ring_next<queries_shared<HD, KEYS>::stages>(r);
		}
	}
}

/* Two rows of a thread: what their queries see and their statistics. */
struct own_rows {
	int from[2], to[2];
	float lse[2], delta[2]; /* lse: -INFINITY where nothing is seen */
};

static __device__ __forceinline__ float lse_log2(float lse)
{
	return lse == -INFINITY ? INFINITY : lse * LOG2_E;
}

/* All but delta, as it lies in memory: it is not waited for before it is used. */
static __device__ __forceinline__ void get_own_rows(struct own_rows &r,
						    const struct backward_work &w,
						    const struct share &t, int row0)
{
#pragma unroll
	for (int half = 0; half < 2; half++) {
		int row = min(row0 + 8 * half, w.queries - 1);
		int64_t at = (int64_t)t.sequence * w.queries + row;
		int64_t of_head = ((int64_t)t.sequence * w.list.heads + t.head) * w.queries + row;

		r.lse[half] = w.lse[of_head];
		r.from[half] = w.start[at];
		r.to[half] = w.limit[at];
	}
}

/* delta of both rows from the warpgroup's rows of dout and out, a quarter by each lane of a
 * quad. */
template <int HD>
static __device__ __forceinline__ void get_delta(struct own_rows &r, const bf16 *dout,
						 const bf16 *out)
{
	uint32_t x[HD / 4], y[HD / 4];

	load_operand<HD, OWNED>(x, dout);
	load_operand<HD, OWNED>(y, out);
	r.delta[0] = r.delta[1] = 0.0f;
#pragma unroll
	for (int i = 0; i < HD / 4; i++) {
		float2 a = unpack_bf16(x[i]), b = unpack_bf16(y[i]);

		r.delta[i % 2] = fmaf(a.y, b.y, fmaf(a.x, b.x, r.delta[i % 2]));
	}
#pragma unroll
	for (int half = 0; half < 2; half++)
		r.delta[half] = quad_sum(r.delta[half]);
}

/* Statistics for the pass over keys, one of them by each lane of a quad; up to whole tiles they are
 * those of queries that see nothing. */
static __device__ __forceinline__ void put_stats(const struct backward_work &w,
						 const struct share &t, int row0,
						 const struct own_rows &r)
{
	int which = (int)threadIdx.x % 4;
	int64_t tile = ((int64_t)t.sequence * w.list.heads + t.head) * w.stat_tiles;

#pragma unroll
	for (int half = 0; half < 2; half++) {
		int row = row0 + 8 * half;
		bool there = row < w.queries, sees = there && r.lse[half] != -INFINITY;
		float lse2 = sees ? r.lse[half] * LOG2_E : INFINITY;
		float delta = sees ? r.delta[half] : 0.0f;
		int span = which == 2 ? (there ? r.from[half] : INT_MAX)
				      : (there ? r.to[half] : -1);

		if (row < w.stat_tiles * PASSING)
			w.stats[((tile + row / PASSING) * STATS + which) * PASSING +
				row % PASSING] = which == 0   ? lse2
						 : which == 1 ? delta
							      : __int_as_float(span);
	}
}

/* Scores of 64 own queries become probabilities. */
template <int N>
static __device__ __forceinline__ void own_probabilities(float (&s)[N], const struct own_rows &r,
							 const struct share &t, float scale_log2,
							 int key)
{
	float lse2[2] = { lse_log2(r.lse[0]), lse_log2(r.lse[1]) };

#pragma unroll
	for (int i = 0; i < N; i++)
		s[i] = exp2_fast(fmaf(s[i], scale_log2, -lse2[i / 2 % 2]));
	mask_keys(s, r.from, r.to, t, key, 0.0f);
}

/* Passing tiles from `from` to `to` hold nothing for this warpgroup, which lets them go. */
template <typename SHARED>
static __device__ __forceinline__ void let_pass(SHARED &m, struct ring &r, int from, int to)
{
	for (int j = from; j <= to; j++) {
		barrier_wait(&m.full[r.stage], r.phase);
		barrier_release(&m.empty[r.stage]);
		ring_next<SHARED::stages>(r);
	}
}

/* The warpgroup's own tiles of keys, low to high: at least one. */
template <int HD, int KEYS>
static __device__ __forceinline__ void
queries_tile(struct queries_shared<HD, KEYS> &m, const struct backward_work &w,
	     const struct share &t, own_queries<HD, KEYS> &q, own_queries<HD, KEYS> &g,
	     struct ring &r, const struct own_rows &own, float (&dq)[HD / 2])
{
	float s[KEYS / 2], ds[KEYS / 2];
	uint32_t operand[KEYS / 4];
	int before = -1;

	for (int j = t.low; j <= t.high; j++) {
		barrier_wait(&m.full[r.stage], r.phase);
		products_begin();
		q.template scores<KEYS>(s, m.k[r.stage]);
		products_commit();
		g.template scores<KEYS>(ds, m.v[r.stage]);
		products_commit();
		products_wait<1>();
		pin(s);
		pin(dq);
		if (before >= 0)
			barrier_release(&m.empty[before]);
		own_probabilities(s, own, t, w.scale_log2, t.base + j * KEYS);
		products_wait<0>();
		pin(ds);
#pragma unroll
		for (int i = 0; i < KEYS / 2; i++)
			s[i] *= ds[i] - own.delta[i / 2 % 2];
		pack_operand(operand, s);
		pin(operand);
		products_begin();
		product_values<HD, KEYS>(dq, operand, m.k[r.stage], 1);
		products_commit();
		before = r.stage;
		ring_next<queries_shared<HD, KEYS>::stages>(r);
	}
	products_wait<0>();
	pin(dq);
	barrier_release(&m.empty[before]);
}

template <int HD>
static __device__ __forceinline__ void queries_finish(const struct backward_work &w,
						      const struct share &t, int row0,
						      float (&dq)[HD / 2])
{
	turn_back_rows<HD>(dq, w.turned, (int64_t)t.sequence * w.queries, row0, w.queries);
#pragma unroll
	for (int half = 0; half < 2; half++) {
		int row = row0 + 8 * half;
		bf16 *to = w.dq + t.sequence * w.q_sequence + row * w.q_row + t.head * HD;

		write_row<HD>(row < w.queries ? to : NULL, dq, half, w.scale);
	}
}

template <int HD, int KEYS>
static __device__ void queries_consumer(struct queries_shared<HD, KEYS> &m,
					const struct backward_work &w)
{
	int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128 - 1, 0);
	int in_tile = group * 64 + (int)threadIdx.x % 128 / 32 * 16 + (int)threadIdx.x % 32 / 4;
	struct ring r = { 0, 0 }, own = { 0, 0 };
	struct share t;

	while (receive_work<KEYS, 1>(m, own, group, t)) {
		int row0 = t.tile * OWNED + in_tile, at = group * 64 * 64;
		float dq[HD / 2];
		struct own_rows rows;
		own_queries<HD, KEYS> q, g;

		get_own_rows(rows, w, t, row0);
		get_delta<HD>(rows, m.g[own.stage] + at, m.o[own.stage] + at);
		q.take(m.q[own.stage] + at);
		g.take(m.g[own.stage] + at);
		if (m.held)
			barrier_release(&m.own_empty[own.stage]);
#pragma unroll
		for (int i = 0; i < HD / 2; i++)
			dq[i] = 0.0f;
		if (t.high >= t.low) {
			let_pass(m, r, 0, t.low - 1);
			queries_tile<HD, KEYS>(m, w, t, q, g, r, rows, dq);
			let_pass(m, r, t.high + 1, t.top);
		} else {
			let_pass(m, r, 0, t.top);
		}
		if (!m.held)
			barrier_release(&m.own_empty[own.stage]);
		ring_next<queries_shared<HD, KEYS>::own_stages>(own);
		put_stats(w, t, row0, rows);
		queries_finish<HD>(w, t, row0, dq);
	}
}

/* ---- the pass over tiles of keys */
template <int HD>
using own_keys = own_operand<HD, OWNED, keys_shared<HD>::held>;

template <int HD>
static __device__ void keys_producer(struct keys_shared<HD> &m, const struct backward_work &w,
				     const CUtensorMap *items, const CUtensorMap *stats,
				     const CUtensorMap *mq, const CUtensorMap *mg,
				     const CUtensorMap *mk, const CUtensorMap *mv)
{
	struct ring r = { 0, 0 }, own = { 0, 0 };
	struct errand p;
	int at = atomicAdd(w.list.next, 1);

	while (announce_work(m, w.list, items, own, at, p, sizeof m.k[0] + sizeof m.v[0])) {
		int head = p.head;

		if (p.first <= p.last) {
			copy_head<HD, OWNED>(m.k[own.stage], mk, &m.own_full[own.stage], head,
					     p.tile * OWNED, p.sequence);
			copy_head<HD, OWNED>(m.v[own.stage], mv, &m.own_full[own.stage], head,
					     p.tile * OWNED, p.sequence);
		}
		ring_next<keys_shared<HD>::own_stages>(own);
		for (int i = p.first / PASSING; p.first <= p.last && i <= p.last / PASSING; i++) {
			uint64_t *full = &m.full[r.stage];
			int stat = (p.sequence * w.list.heads + head) * w.stat_tiles + i;

			barrier_wait(&m.empty[r.stage], r.phase ^ 1);
			barrier_expect(full, sizeof m.q[0] + sizeof m.g[0] + sizeof m.stats[0]);
			copy_head<HD, PASSING>(m.q[r.stage], mq, full, head, i * PASSING,
					       p.sequence);
			copy_head<HD, PASSING>(m.g[r.stage], mg, full, head, i * PASSING,
					       p.sequence);
			copy_words(m.stats[r.stage], stats, full, stat * STATS * PASSING);
			ring_next<keys_shared<HD>::stages>(r);
		}
	}
}

/* Zero where side * key < side * edge[query]: edge is a thread's first column of starts (side 1) or
 * limits (side -1). */
static __device__ __forceinline__ void mask_passing(float (&s)[PASSING / 2], const int *edge,
						    int row_key, int side)
{
#pragma unroll
	for (int c = 0; c < PASSING / 8; c++) {
		int2 e = *(const int2 *)&edge[8 * c];

#pragma unroll
		for (int i = 0; i < 4; i++)
			if (side * (row_key + i / 2 * 8) < side * (i % 2 ? e.y : e.x))
				s[4 * c + i] = 0.0f;
	}
}

/* Scores of 64 own keys (rows) and the passing queries (columns) become probabilities. */
static __device__ __forceinline__ void passing_probabilities(float (&s)[PASSING / 2],
							     const float (&stats)[STATS][PASSING],
							     float scale_log2, int first_key,
							     int row_key)
{
	const int *start = (const int *)stats[2], *limit = (const int *)stats[3];
	int column = 2 * ((int)threadIdx.x % 4);

#pragma unroll
	for (int c = 0; c < PASSING / 8; c++) {
		float2 lse2 = *(const float2 *)&stats[0][8 * c + column];

#pragma unroll
		for (int i = 0; i < 4; i++)
			s[4 * c + i] = exp2_fast(
				fmaf(s[4 * c + i], scale_log2, i % 2 ? -lse2.y : -lse2.x));
	}
	if (first_key < start[PASSING - 1])
		mask_passing(s, start + column, row_key, 1);
	if (first_key + PART - 1 > limit[0])
		mask_passing(s, limit + column, row_key, -1);
}

/* s = P becomes dS; dp is dP. */
static __device__ __forceinline__ void passing_gradients(float (&s)[PASSING / 2],
							 const float (&dp)[PASSING / 2],
							 const float (&stats)[STATS][PASSING])
{
	int column = 2 * ((int)threadIdx.x % 4);

#pragma unroll
	for (int c = 0; c < PASSING / 8; c++) {
		float2 delta = *(const float2 *)&stats[1][8 * c + column];

#pragma unroll
		for (int i = 0; i < 4; i++)
			s[4 * c + i] *= dp[4 * c + i] - (i % 2 ? delta.y : delta.x);
	}
}

/* The warpgroup's own tiles of queries, low to high: at least one. */
template <int HD>
static __device__ __forceinline__ void
keys_tile(struct keys_shared<HD> &m, const struct backward_work &w, const struct share &t,
	  own_keys<HD> &k, own_keys<HD> &v, int group, int row_key, struct ring &r,
	  float (&dk)[HD / 2], float (&dv)[HD / 2])
{
	float s[PASSING / 2], dp[PASSING / 2];
	uint32_t operand[PASSING / 4], gradient[PASSING / 4];
	int before = -1; /* stage of the tile before, whose last products may still run */

	for (int i = t.low; i <= t.high; i++) {
		const float(&stats)[STATS][PASSING] = m.stats[r.stage];

		barrier_wait(&m.full[r.stage], r.phase);
		products_begin();
		k.template scores<PASSING>(s, m.q[r.stage]);
		products_commit();
		v.template scores<PASSING>(dp, m.g[r.stage]);
		products_commit();
		products_wait<1>();
		pin(s);
		if (before >= 0)
			barrier_release(&m.empty[before]);
		passing_probabilities(s, stats, w.scale_log2, t.tile * OWNED + group * PART,
				      row_key);
		pack_operand(operand, s);
		pin(operand);
		products_begin();
		product_values<HD, PASSING>(dv, operand, m.g[r.stage], 1);
		products_commit();
		products_wait<HD == 64>(); /* at 128 registers are short: P's go before dS's come */
		pin(dp);
		passing_gradients(s, dp, stats);
		pack_operand(gradient, s);
		pin(gradient);
		products_begin();
		product_values<HD, PASSING>(dk, gradient, m.q[r.stage], 1);
		products_commit();
		k.keep(w.queries < 0);
		v.keep(w.queries < 0);
		before = r.stage;
		ring_next<keys_shared<HD>::stages>(r);
	}
	products_wait<0>();
	pin(dk);
	pin(dv);
	barrier_release(&m.empty[before]);
}

template <int HD>
static __device__ __forceinline__ void keys_finish(const struct backward_work &w,
						   const struct share &t, int key0,
						   float (&dk)[HD / 2], const float (&dv)[HD / 2])
{
	turn_back_rows<HD>(dk, w.turned, (int64_t)t.sequence * w.keys, key0, w.keys);
#pragma unroll
	for (int half = 0; half < 2; half++) {
		int key = key0 + 8 * half;
		int64_t at = t.sequence * w.kv_sequence + key * w.kv_row + t.head * HD;

		write_row<HD>(key < w.keys ? w.dk + at : NULL, dk, half, w.scale);
		write_row<HD>(key < w.keys ? w.dv + at : NULL, dv, half, 1.0f);
	}
}

template <int HD>
static __device__ void keys_consumer(struct keys_shared<HD> &m, const struct backward_work &w)
{
	int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128 - 1, 0);
	int in_tile = group * 64 + (int)threadIdx.x % 128 / 32 * 16 + (int)threadIdx.x % 32 / 4;
	struct ring r = { 0, 0 }, own = { 0, 0 };
	struct share t;

	while (receive_work<PASSING, PASSING>(m, own, group, t)) {
		int key0 = t.tile * OWNED + in_tile, at = group * 64 * 64;
		float dk[HD / 2], dv[HD / 2];
		own_keys<HD> k, v;

		k.take(m.k[own.stage] + at);
		v.take(m.v[own.stage] + at);
		if (m.held)
			barrier_release(&m.own_empty[own.stage]);
#pragma unroll
		for (int i = 0; i < HD / 2; i++)
			dk[i] = dv[i] = 0.0f;
		if (t.high >= t.low) {
			let_pass(m, r, 0, t.low - 1);
			keys_tile<HD>(m, w, t, k, v, group, key0, r, dk, dv);
			let_pass(m, r, t.high + 1, t.top);
		} else {
			let_pass(m, r, 0, t.top);
		}
		if (!m.held)
			barrier_release(&m.own_empty[own.stage]);
		ring_next<keys_shared<HD>::own_stages>(own);
		keys_finish<HD>(w, t, key0, dk, dv);
	}
}

#endif

template <typename SHARED>
static __device__ __forceinline__ SHARED &aligned_shared(char *raw)
{
	uint32_t at = (uint32_t)__cvta_generic_to_shared(raw);

	return *reinterpret_cast<SHARED *>(raw + ((1024 - (at & 1023)) & 1023));
}

template <int HD, int KEYS>
__global__ void __launch_bounds__((GROUPS + 1) * 128, 1)
	queries_blocks(const __grid_constant__ CUtensorMap items,
		       const __grid_constant__ CUtensorMap mq,
		       const __grid_constant__ CUtensorMap mg,
		       const __grid_constant__ CUtensorMap mo,
		       const __grid_constant__ CUtensorMap mk,
		       const __grid_constant__ CUtensorMap mv,
		       const __grid_constant__ struct backward_work w)
{
#ifdef HOPPER_CODE
	extern __shared__ char raw[];
	struct queries_shared<HD, KEYS> &m = aligned_shared<struct queries_shared<HD, KEYS>>(raw);

	barriers_begin(m);
	if (threadIdx.x < 128) {
		registers::produce();
		if (threadIdx.x == 0)
			queries_producer<HD, KEYS>(m, w, &items, &mq, &mg, &mo, &mk, &mv);
	} else {
		registers::consume();
		queries_consumer<HD, KEYS>(m, w);
	}
#endif
}

template <int HD>
__global__ void __launch_bounds__((GROUPS + 1) * 128, 1)
	keys_blocks(const __grid_constant__ CUtensorMap items,
		    const __grid_constant__ CUtensorMap stats,
		    const __grid_constant__ CUtensorMap mq, const __grid_constant__ CUtensorMap mg,
		    const __grid_constant__ CUtensorMap mk, const __grid_constant__ CUtensorMap mv,
		    const __grid_constant__ struct backward_work w)
{
#ifdef HOPPER_CODE
	extern __shared__ char raw[];
	struct keys_shared<HD> &m = aligned_shared<struct keys_shared<HD>>(raw);

	barriers_begin(m);
	if (threadIdx.x < 128) {
		registers::produce();
		if (threadIdx.x == 0)
			keys_producer<HD>(m, w, &items, &stats, &mq, &mg, &mk, &mv);
	} else {
		registers::consume();
		keys_consumer<HD>(m, w);
	}
#endif
}

static unsigned grid_of(const struct cuda_state *s, const struct work_list *l)
{
	return (unsigned)(l->tiles * l->heads < s->processors ? l->tiles * l->heads
							      : s->processors);
}

/* Maps of q, dout, out, k, v for boxes of query_rows and key_rows. */
static void make_maps(struct cuda_state *s, const struct attend_backward *b, CUtensorMap map[5],
		      int query_rows, int key_rows)
{
	const struct attend *a = &b->f;
	int64_t width = (int64_t)a->heads * a->hd;

	map[0] = hopper_query_map(s, a, a->q, a->q_row, a->q_sequence, query_rows);
	map[1] = hopper_query_map(s, a, b->dout, width, width * a->queries, query_rows);
	map[2] = hopper_query_map(s, a, a->out, width, width * a->queries, query_rows);
	map[3] = hopper_key_map(s, a, a->k, key_rows);
	map[4] = hopper_key_map(s, a, a->v, key_rows);
}

template <int HD, int KEYS>
static void run_backward(struct cuda_state *s, const struct attend_backward *b)
{
	const struct attend *a = &b->f;
	int tiles = (int)div_up(a->queries, OWNED) * a->batch,
	    stat_tiles = (int)div_up(a->queries, PASSING);
	int64_t rows = (int64_t)a->batch * stat_tiles * PASSING * a->heads;
	size_t entries = (size_t)plan_entries(tiles, a->heads);
	size_t plan_bytes = (entries * sizeof(struct tile_plan) + 255) / 256 * 256;
	char *scratch =
		(char *)cuda_scratch(s, 3 * plan_bytes + (size_t)rows * STATS * sizeof(float));
	struct tile_plan *by_query = (struct tile_plan *)scratch,
			 *work = (struct tile_plan *)(scratch + plan_bytes);
	struct tile_plan *by_key = (struct tile_plan *)(scratch + 2 * plan_bytes);
	float *stats = (float *)(scratch + 3 * plan_bytes), scale = 1.0f / sqrtf((float)a->hd);
	struct backward_work w = { hopper_work(s, a, true, OWNED, by_query, work),
				   a->queries,
				   a->keys,
				   stat_tiles,
				   a->lse,
				   a->start,
				   a->limit,
				   stats,
				   (bf16 *)b->dq,
				   (bf16 *)b->dk,
				   (bf16 *)b->dv,
				   a->q_row,
				   a->q_sequence,
				   a->kv_row,
				   a->kv_sequence,
				   scale * LOG2_E,
				   scale,
				   { b->cosine, b->sine, b->position } };
	size_t queries_bytes = sizeof(struct queries_shared<HD, KEYS>) + 1024;
	size_t keys_bytes = sizeof(struct keys_shared<HD>) + 1024;
	CUtensorMap map[5], stat_map;

	CUDA(cudaFuncSetAttribute(queries_blocks<HD, KEYS>,
				  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)queries_bytes));
	CUDA(cudaFuncSetAttribute(keys_blocks<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				  (int)keys_bytes));
	make_maps(s, b, map, OWNED, KEYS);
	queries_blocks<HD, KEYS>
		<<<grid_of(s, &w.list), (GROUPS + 1) * 128, queries_bytes, s->stream>>>(
			hopper_item_map(s, &w.list), map[0], map[1], map[2], map[3], map[4],
			w);
	LAUNCHED();
	make_maps(s, b, map, PASSING, OWNED);
	w.list = hopper_work(s, a, false, OWNED, by_key, work);
	stat_map = hopper_word_map(s, stats, rows * STATS, STATS * PASSING);
	keys_blocks<HD><<<grid_of(s, &w.list), (GROUPS + 1) * 128, keys_bytes, s->stream>>>(
		hopper_item_map(s, &w.list), stat_map, map[0], map[1], map[3], map[4], w);
	LAUNCHED();
}

void attention_hopper_backward(struct cuda_state *s, const struct attend_backward *b)
{
	CHECK(b->f.start && aligned16(b->f.out) && aligned16(b->dout) && aligned16(b->dq) &&
	      aligned16(b->dk) && aligned16(b->dv));
	if (b->f.hd == 64)
		run_backward<64, 128>(s, b);
	else
		run_backward<128, 64>(s, b);
}
