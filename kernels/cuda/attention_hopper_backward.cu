/* SPDX-License-Identifier: Apache-2.0
 * Attention backward on Hopper (bf16, head dim 64 or 128) in two passes that share no sums, so that
 * it is deterministic without atomics or ordering: one owns tiles of queries and makes dq, one owns
 * tiles of keys and makes dk and dv. Scores are computed twice (7 products in place of 5), but
 * probabilities and their gradients stay in registers: each accumulator is the next product's A
 * operand.
 *
 * With P = exp(scale q k - lse), dP = dout v, dS = P (dP - delta), delta = dout . out:
 * dq = scale dS k, dk = scale dS^T q, dv = P^T dout. */
#include "kernels/cuda/hopper.cuh"

#define GROUPS 2	    /* warpgroups with 64 rows each */
#define OWNED (GROUPS * 64) /* rows a block owns */
#define PASSING 64	    /* queries of a tile passing by in the keys' pass */
#define OWN_STAGES 2	    /* the next own tile comes while this one is worked on */
#define LOG2_E 1.44269504088896f
#define STATS 4 /* of a query: lse * log2(e), delta, start, limit */

struct backward_work {
	struct work_list list;
	int queries, keys, stat_tiles;
	const float *stats; /* [batch, heads, stat_tiles, STATS, PASSING] */
	bf16 *dq, *dk, *dv;
	int64_t q_row, q_sequence, kv_row, kv_sequence;
	float scale_log2, scale;
	struct turn_tables turned;
};

/* Statistics of each query, padded to whole tiles with queries that see nothing. HD/8 lanes a row.
 */
template <int HD>
__global__ void query_stats(float *stats, const bf16 *out, const bf16 *dout, const float *lse,
			    const int32_t *start, const int32_t *limit, int batch, int queries,
			    int heads, int tiles)
{
	const int lanes = HD / 8;
	int64_t i = thread_index() / lanes, head = i % heads, row = i / heads % (tiles * PASSING);
	int64_t b = i / heads / (tiles * PASSING), at = b * queries + row;
	bool there = row < queries && b < batch;
	float x[8] = {}, y[8] = {}, sum = 0.0f, *to;

	if (there) {
		load8(out + (at * heads + head) * HD + threadIdx.x % lanes * 8, x);
		load8(dout + (at * heads + head) * HD + threadIdx.x % lanes * 8, y);
	}
#pragma unroll
	for (int j = 0; j < 8; j++)
		sum += x[j] * y[j];
#pragma unroll
	for (int j = lanes / 2; j > 0; j >>= 1)
		sum += __shfl_xor_sync(0xffffffffu, sum, j);
	if (b >= batch || threadIdx.x % lanes)
		return;
	to = stats + ((b * heads + head) * tiles + row / PASSING) * STATS * PASSING + row % PASSING;
	float l = there ? lse[(b * heads + head) * queries + row] : -INFINITY;

	to[0] = l == -INFINITY ? INFINITY : l * LOG2_E;
	to[PASSING] = sum;
	to[2 * PASSING] = __int_as_float(there ? start[at] : INT_MAX);
	to[3 * PASSING] = __int_as_float(there ? limit[at] : -1);
}

template <int HD, int KEYS>
struct queries_shared {
	static constexpr int stages = HD == 64 ? 4 : 3; /* of the tiles passing by */
	bf16 q[OWN_STAGES][OWNED * HD], g[OWN_STAGES][OWNED * HD]; /* g: dout */
	bf16 k[stages][KEYS * HD], v[stages][KEYS * HD];
	struct work_item item[OWN_STAGES];
	uint64_t own_full[OWN_STAGES], own_empty[OWN_STAGES], full[stages], empty[stages];
};

template <int HD>
struct keys_shared {
	static constexpr int stages = HD == 64 ? 6 : 2;
	bf16 k[OWN_STAGES][OWNED * HD], v[OWN_STAGES][OWNED * HD];
	bf16 q[stages][PASSING * HD], g[stages][PASSING * HD];
	float stats[stages][STATS][PASSING];
	struct work_item item[OWN_STAGES];
	uint64_t own_full[OWN_STAGES], own_empty[OWN_STAGES], full[stages], empty[stages];
};

#ifdef HOPPER_CODE

typedef register_shares<GROUPS, 24, 240> registers;

template <typename SHARED>
static __device__ __forceinline__ void barriers_begin(SHARED &m)
{
	if (threadIdx.x == 0) {
		for (int i = 0; i < OWN_STAGES; i++) {
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
static __device__ void queries_producer(struct queries_shared<HD, KEYS> &m,
					const struct backward_work &w, const CUtensorMap *items,
					const CUtensorMap *mq, const CUtensorMap *mg,
					const CUtensorMap *mk, const CUtensorMap *mv)
{
	struct ring r = { 0, 0 }, own = { 0, 0 };
	struct errand p;
	int at = atomicAdd(w.list.next, 1);

	while (announce_work(m, w.list, items, own, at, p, sizeof m.q[0] + sizeof m.g[0])) {
		int head = p.head;

		if (p.first <= p.last) {
			copy_head<HD, OWNED>(m.q[own.stage], mq, &m.own_full[own.stage], head,
					     p.tile * OWNED, p.sequence);
			copy_head<HD, OWNED>(m.g[own.stage], mg, &m.own_full[own.stage], head,
					     p.tile * OWNED, p.sequence);
		}
		ring_next<OWN_STAGES>(own);
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
	float lse2[2], delta[2];
};

static __device__ __forceinline__ void get_own_rows(struct own_rows &r,
						    const struct backward_work &w,
						    const struct share &t, int row0)
{
#pragma unroll
	for (int half = 0; half < 2; half++) {
		int row = min(row0 + 8 * half, w.queries - 1);
		const float *at = w.stats +
				  (((int64_t)t.sequence * w.list.heads + t.head) *
					   w.stat_tiles +
				   row / PASSING) *
					  STATS * PASSING +
				  row % PASSING;

		r.lse2[half] = at[0];
		r.delta[half] = at[PASSING];
		r.from[half] = __float_as_int(at[2 * PASSING]);
		r.to[half] = __float_as_int(at[3 * PASSING]);
	}
}

/* Scores of 64 own queries become probabilities. */
template <int N>
static __device__ __forceinline__ void own_probabilities(float (&s)[N], const struct own_rows &r,
							 float scale_log2, bool masked,
							 int first_key)
{
	int column = first_key + 2 * ((int)threadIdx.x % 4);

#pragma unroll
	for (int i = 0; i < N; i++)
		s[i] = exp2_fast(fmaf(s[i], scale_log2, -r.lse2[i / 2 % 2]));
	if (!masked)
		return;
#pragma unroll
	for (int i = 0; i < N; i++) {
		int half = i / 2 % 2, key = column + i / 4 * 8 + i % 2;

		if (key < r.from[half] || key > r.to[half])
			s[i] = 0.0f;
	}
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
static __device__ __forceinline__ void queries_tile(struct queries_shared<HD, KEYS> &m,
						    const struct backward_work &w,
						    const struct share &t, int group,
						    struct ring &r, int own_stage,
						    const struct own_rows &own, float (&dq)[HD / 2])
{
	float s[KEYS / 2], ds[KEYS / 2];
	uint32_t operand[KEYS / 4];
	int before = -1;

	for (int j = t.low; j <= t.high; j++) {
		int key = t.base + j * KEYS;
		bool masked = share_edge(&t, key, KEYS);

		barrier_wait(&m.full[r.stage], r.phase);
		products_begin();
		product_scores<HD, KEYS, OWNED>(s, m.q[own_stage] + group * 64 * 64, m.k[r.stage]);
		products_commit();
		product_scores<HD, KEYS, OWNED>(ds, m.g[own_stage] + group * 64 * 64, m.v[r.stage]);
		products_commit();
		products_wait<1>();
		pin(s);
		pin(dq);
		if (before >= 0)
			barrier_release(&m.empty[before]);
		own_probabilities(s, own, w.scale_log2, masked, key);
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
		int row0 = t.tile * OWNED + in_tile;
		float dq[HD / 2];
		struct own_rows rows;

		get_own_rows(rows, w, t, row0);
#pragma unroll
		for (int i = 0; i < HD / 2; i++)
			dq[i] = 0.0f;
		if (t.high >= t.low) {
			let_pass(m, r, 0, t.low - 1);
			queries_tile<HD, KEYS>(m, w, t, group, r, own.stage, rows, dq);
			let_pass(m, r, t.high + 1, t.top);
		} else {
			let_pass(m, r, 0, t.top);
		}
		barrier_release(&m.own_empty[own.stage]);
		ring_next<OWN_STAGES>(own);
		queries_finish<HD>(w, t, row0, dq);
	}
}

/* ---- the pass over tiles of keys */
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
		ring_next<OWN_STAGES>(own);
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

/* Scores of 64 own keys (rows) and the passing queries (columns) become probabilities. */
static __device__ __forceinline__ void passing_probabilities(float (&s)[PASSING / 2],
							     const float (&stats)[STATS][PASSING],
							     float scale_log2, int first_key,
							     int row_key)
{
	const int *start = (const int *)stats[2], *limit = (const int *)stats[3];
	bool masked = first_key < start[PASSING - 1] || first_key + PART - 1 > limit[0];
	int column = 2 * ((int)threadIdx.x % 4);

#pragma unroll
	for (int c = 0; c < PASSING / 8; c++) {
		float2 lse2 = *(const float2 *)&stats[0][8 * c + column];

#pragma unroll
		for (int i = 0; i < 4; i++)
			s[4 * c + i] = exp2_fast(
				fmaf(s[4 * c + i], scale_log2, i % 2 ? -lse2.y : -lse2.x));
	}
	if (!masked)
		return;
#pragma unroll
	for (int c = 0; c < PASSING / 8; c++) {
		int2 from = *(const int2 *)&start[8 * c + column],
		     to = *(const int2 *)&limit[8 * c + column];

#pragma unroll
		for (int i = 0; i < 4; i++) {
			int key = row_key + i / 2 * 8;

			if (key < (i % 2 ? from.y : from.x) || key > (i % 2 ? to.y : to.x))
				s[4 * c + i] = 0.0f;
		}
	}
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
static __device__ __forceinline__ void keys_tile(struct keys_shared<HD> &m,
						 const struct backward_work &w,
						 const struct share &t, int group, int own_stage,
						 int row_key, struct ring &r, float (&dk)[HD / 2],
						 float (&dv)[HD / 2])
{
	const bf16 *k = m.k[own_stage] + group * 64 * 64, *v = m.v[own_stage] + group * 64 * 64;
	float s[PASSING / 2], dp[PASSING / 2];
	uint32_t operand[PASSING / 4], gradient[PASSING / 4];
	int before = -1; /* stage of the tile before, whose last products may still run */

	for (int i = t.low; i <= t.high; i++) {
		const float(&stats)[STATS][PASSING] = m.stats[r.stage];

		barrier_wait(&m.full[r.stage], r.phase);
		products_begin();
		product_scores<HD, PASSING, OWNED>(s, k, m.q[r.stage]);
		products_commit();
		product_scores<HD, PASSING, OWNED>(dp, v, m.g[r.stage]);
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
		int key0 = t.tile * OWNED + in_tile;
		float dk[HD / 2], dv[HD / 2];

#pragma unroll
		for (int i = 0; i < HD / 2; i++)
			dk[i] = dv[i] = 0.0f;
		if (t.high >= t.low) {
			let_pass(m, r, 0, t.low - 1);
			keys_tile<HD>(m, w, t, group, own.stage, key0, r, dk, dv);
			let_pass(m, r, t.high + 1, t.top);
		} else {
			let_pass(m, r, 0, t.top);
		}
		barrier_release(&m.own_empty[own.stage]);
		ring_next<OWN_STAGES>(own);
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
			queries_producer<HD, KEYS>(m, w, &items, &mq, &mg, &mk, &mv);
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

/* Maps of q, dout, k, v for boxes of query_rows and key_rows. */
static void make_maps(struct cuda_state *s, const struct attend_backward *b, CUtensorMap map[4],
		      int query_rows, int key_rows)
{
	const struct attend *a = &b->f;
	int64_t width = (int64_t)a->heads * a->hd;

	map[0] = hopper_query_map(s, a, a->q, a->q_row, a->q_sequence, query_rows);
	map[1] = hopper_query_map(s, a, b->dout, width, width * a->queries, query_rows);
	map[2] = hopper_key_map(s, a, a->k, key_rows);
	map[3] = hopper_key_map(s, a, a->v, key_rows);
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
	CUtensorMap map[4], stat_map;

	query_stats<HD><<<(unsigned)div_up(rows * (HD / 8), 256), 256, 0, s->stream>>>(
		stats, (const bf16 *)a->out, (const bf16 *)b->dout, a->lse, a->start, a->limit,
		a->batch, a->queries, a->heads, stat_tiles);
	LAUNCHED();
	CUDA(cudaFuncSetAttribute(queries_blocks<HD, KEYS>,
				  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)queries_bytes));
	CUDA(cudaFuncSetAttribute(keys_blocks<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				  (int)keys_bytes));
	make_maps(s, b, map, OWNED, KEYS);
	queries_blocks<HD, KEYS>
		<<<grid_of(s, &w.list), (GROUPS + 1) * 128, queries_bytes, s->stream>>>(
			hopper_item_map(s, &w.list), map[0], map[1], map[2], map[3], w);
	LAUNCHED();
	make_maps(s, b, map, PASSING, OWNED);
	w.list = hopper_work(s, a, false, OWNED, by_key, work);
	stat_map = hopper_word_map(s, stats, rows * STATS, STATS * PASSING);
	keys_blocks<HD><<<grid_of(s, &w.list), (GROUPS + 1) * 128, keys_bytes, s->stream>>>(
		hopper_item_map(s, &w.list), stat_map, map[0], map[1], map[2], map[3], w);
	LAUNCHED();
}

void attention_hopper_backward(struct cuda_state *s, const struct attend_backward *b)
{
	CHECK(b->f.start && aligned16(b->dout) && aligned16(b->dq) && aligned16(b->dk) &&
	      aligned16(b->dv));
	if (b->f.hd == 64)
		run_backward<64, 128>(s, b);
	else
		run_backward<128, 64>(s, b);
}
