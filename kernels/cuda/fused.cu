/* SPDX-License-Identifier: Apache-2.0
 * Products of many rows with what follows them, on Hopper. Blocks stay on their multiprocessor and
 * take tiles of 128 rows by twice 128 rows of the weights. One warp copies the operands ahead, 64
 * of the depth at a time, through the tile's end into the next one; two warpgroups own 64 rows
 * each, with both halves of the columns in registers, so that gate and up of a place, and the pairs
 * of a head that are turned together, meet in one thread.
 *
 * Two blocks of a cluster take neighbouring rows and the same weights, of which each copies one
 * half for both: copies from the second-level cache are what holds the products back. The first
 * warpgroup runs ahead of the second, so that one has products to do while the other finishes a
 * tile. */
#include "kernels/cuda/fused.cuh"
#include "kernels/cuda/hopper.cuh"

#define SIDE 128         /* rows of a tile, and of either half of the weights */
#define DEPTH 64         /* of a stage */
#define STAGES 4
#define LEAD 2           /* stages that the first warpgroup is ahead; at most STAGES */
#define THREADS (3 * 128)
#define PAIR 2           /* blocks of a cluster */
#define HEIGHT (PAIR * SIDE) /* rows of a pair's tile */
#define TOGETHER 8       /* of a pair's tiles of rows take the same weights at about one time */
#define ROWS_LEAST 512   /* below, the library's smaller tiles are better */

struct fused {
	int rows, columns, depth; /* of the output; of the product */
	int step, apart;          /* rows of the weights between tiles, and between the halves */
	int row_tiles, tiles;     /* of a pair */
	int whole, numbers; /* tiles taken whole; with halves of the others */
	bf16 *out;
	bf16 *gate_up; /* where they are wanted besides */
	struct fused_turn turn;
};

struct fused_shared {
	bf16 x[STAGES][SIDE * DEPTH];
	bf16 w[STAGES][2 * SIDE * DEPTH];
	uint64_t full[STAGES], empty[STAGES], ahead;
};

#ifdef HOPPER_CODE

struct tile {
	int row, column; /* the block's first ones */
	bool both;	 /* halves of the columns */
};

/* Groups of rows one after the other; in a group all its rows for a column, then the next column.
 */
static __device__ __forceinline__ struct tile tile_of(const struct fused &f, int number)
{
	int half = number - f.whole, at = half < 0 ? number : f.whole + half / 2;
	int columns = f.tiles / f.row_tiles, group = at / (TOGETHER * columns);
	int rest = at % (TOGETHER * columns);
	int rows = min(TOGETHER, f.row_tiles - group * TOGETHER);
	struct tile t = { (group * TOGETHER + rest % rows) * HEIGHT + cluster_rank() * SIDE,
			  rest / rows * f.step, half < 0 };

	if (half > 0 && half % 2)
		t.column += f.apart;
	return t;
}

/* The weights at depth k, to the same place in both blocks of the pair: this one's part of them. A
 * barrier that both blocks' readers arrive at keeps either from getting ahead by more than the
 * stages. */
static __device__ __forceinline__ void copy_weights(const struct fused &f, struct fused_shared &m,
						    const CUtensorMap *mw, const struct tile &t,
						    int stage, int k)
{
	const int part = (t.both ? 2 : 1) * SIDE / PAIR, from = cluster_rank() * part;

	for (int i = from; i < from + part; i += SIDE / PAIR)
		copy_tile_to((1 << PAIR) - 1, m.w[stage] + i * DEPTH, mw, &m.full[stage], k,
			     t.column + (i < SIDE ? i : f.apart + i - SIDE), 0);
}

static __device__ void fused_producer(const struct fused &f, struct fused_shared &m,
				      const CUtensorMap *mx, const CUtensorMap *mw)
{
	struct ring r = { 0, 0 };

	for (int number = (int)blockIdx.x / PAIR; number < f.numbers;
	     number += (int)gridDim.x / PAIR) {
		struct tile t = tile_of(f, number);

		for (int k = 0; k < f.depth; k += DEPTH) {
			uint64_t *full = &m.full[r.stage];

			barrier_wait(&m.empty[r.stage], r.phase ^ 1);
			barrier_expect(full, sizeof m.x[0] + sizeof m.w[0] / (t.both ? 1 : 2));
			copy_tile(m.x[r.stage], mx, full, k, t.row, 0);
			copy_weights(f, m, mw, t, r.stage, k);
			ring_next<STAGES>(r);
		}
	}
	/* the block's memory stays until the other one has told its barriers the last */
	for (int i = 0; i < STAGES; i++) {
		barrier_wait(&m.empty[r.stage], r.phase ^ 1);
		ring_next<STAGES>(r);
	}
}

/* Of a thread's sums the N from number i N on. */
template <int N, int ALL>
static __device__ __forceinline__ float (&part_of(float (&sums)[ALL], int i))[N]
{
	return *reinterpret_cast<float(*)[N]>(sums + i * N);
}

/* What is done with a thread's sums of the rows `row` and `row` + 8, columns from `column` on:
 * queries and keys, of heads of HD, are turned, keys and values go into the cache. What is needed
 * for it besides is read while the sums are made (the constructor, prepare), and the second row's
 * cosines while the first one is written. */
template <int HD>
struct fused_end {
	static constexpr bool halves = true; /* tiles may be shared out in halves */
	static constexpr bool early = HD == 64; /* cosines of a larger head find no registers */

	int row, column;
	int position[2], limit[2], at[2];
	int place[2]; /* of the cache's rows, or -1 */
	float2 cosine[HD / 16], sine[HD / 16];

	__device__ __forceinline__ fused_end(const struct fused &f, int row_, int column_)
		: row(row_), column(column_)
	{
#pragma unroll
		for (int half = 0; half < 2; half++) {
			int r = min(row + 8 * half, f.rows - 1);

			position[half] = __ldg(f.turn.position + r);
			limit[half] = __ldg(f.turn.limit + r);
			at[half] = __ldg(f.turn.at + r / f.turn.each);
		}
	}

	__device__ __forceinline__ void load(const struct fused &f, int half)
	{
		int64_t from = (int64_t)position[half] * (HD / 2) + 2 * ((int)threadIdx.x % 4);

#pragma unroll
		for (int c = 0; c < HD / 16; c++) {
			const float *to_cosine = f.turn.cosine + from + 8 * c;
			const float *to_sine = f.turn.sine + from + 8 * c;

			cosine[c] = __ldg(reinterpret_cast<const float2 *>(to_cosine));
			sine[c] = __ldg(reinterpret_cast<const float2 *>(to_sine));
		}
	}

	__device__ __forceinline__ void prepare(const struct fused &f)
	{
		const struct fused_turn &t = f.turn;

#pragma unroll
		for (int half = 0; half < 2; half++) {
			int r = min(row + 8 * half, f.rows - 1);
			int into = at[half] + r % t.each;

			place[half] = limit[half] < 0 || into < 0 || into >= t.capacity
					      ? -1
					      : r / t.each * t.capacity + into;
		}
		if (early)
			load(f, 0);
	}

	/* The pairs of a head in row `half`. */
	__device__ __forceinline__ void turn(float (&x)[HD / 2], int half)
	{
#pragma unroll
		for (int c = 0; c < HD / 16; c++) {
			int i = 4 * c + 2 * half, j = i + HD / 4;
			float a0 = x[i], a1 = x[i + 1], b0 = x[j], b1 = x[j + 1];

			x[i] = a0 * cosine[c].x - b0 * sine[c].x;
			x[i + 1] = a1 * cosine[c].y - b1 * sine[c].y;
			x[j] = b0 * cosine[c].x + a0 * sine[c].x;
			x[j + 1] = b1 * cosine[c].y + a1 * sine[c].y;
		}
	}

	/* Where row `half` goes, from column c on; NULL: nowhere. */
	__device__ __forceinline__ bf16 *place_of_row(const struct fused &f, int half, int c) const
	{
		int d = f.columns / 3, kind = c / d, r = row + 8 * half;

		if (r >= f.rows || c >= f.columns || (kind > 0 && place[half] < 0))
			return NULL;
		if (kind == 0)
			return f.out + (int64_t)r * f.columns + c;
		return (kind == 1 ? f.turn.keys : f.turn.values) + (int64_t)place[half] * d + c -
		       kind * d;
	}

	template <int N>
	__device__ __forceinline__ void finish(const struct fused &f, float (&sums)[N / 2])
	{
		int turned = f.columns / 3 * 2; /* columns */

		if (!early)
			load(f, 0);
#pragma unroll
		for (int half = 0; half < 2; half++) {
#pragma unroll
			for (int i = 0; i < N / HD; i++)
				if (column + i * HD < turned)
					turn(part_of<HD / 2>(sums, i), half);
			if (half == 0)
				load(f, 1);
#pragma unroll
			for (int i = 0; i < N / HD; i++)
				write_row<HD>(place_of_row(f, half, column + i * HD),
					      part_of<HD / 2>(sums, i), half, 1.0f);
		}
	}
};

/* No heads: SwiGLU, from gate and up, which must stay together. */
template <>
struct fused_end<0> {
	static constexpr bool halves = false;

	int row, column;

	__device__ __forceinline__ fused_end(const struct fused &, int row_, int column_)
		: row(row_), column(column_)
	{
	}

	__device__ __forceinline__ void prepare(const struct fused &)
	{
	}

	__device__ __forceinline__ void write_both(const struct fused &f,
						   const float (&gate)[SIDE / 2],
						   const float (&up)[SIDE / 2])
	{
#pragma unroll
		for (int half = 0; half < 2; half++) {
			int r = row + 8 * half;
			bf16 *to = f.gate_up + (int64_t)r * 2 * f.columns + column;

			write_row<SIDE>(r < f.rows ? to : NULL, gate, half, 1.0f);
			write_row<SIDE>(r < f.rows ? to + f.columns : NULL, up, half, 1.0f);
		}
	}

	template <int N>
	__device__ __forceinline__ void finish(const struct fused &f, float (&sums)[N / 2])
	{
		float(&gate)[SIDE / 2] = part_of<SIDE / 2>(sums, 0);
		float(&up)[SIDE / 2] = part_of<SIDE / 2>(sums, 1);

		if (f.gate_up)
			write_both(f, gate, up);
#pragma unroll
		for (int i = 0; i < SIDE / 2; i++)
			gate[i] = __fdividef(gate[i], 1.0f + __expf(-gate[i])) * up[i];
#pragma unroll
		for (int half = 0; half < 2; half++) {
			int r = row + 8 * half;
			bf16 *to = f.out + (int64_t)r * f.columns + column;

			write_row<SIDE>(r < f.rows ? to : NULL, gate, half, 1.0f);
		}
	}
};

/* A tile's sums of N columns for the warpgroup's 64 rows. `tell`: the depth at which the other
 * warpgroup may start; `end` is prepared half way, while products run. */
template <int N, typename END>
static __device__ __forceinline__ void fused_sums(const struct fused &f, struct fused_shared &m,
						  int group, struct ring &r, int tell, END &end,
						  float (&sums)[N / 2])
{
	const int middle = f.depth / DEPTH / 2 * DEPTH;
	struct ring before = r;

	for (int k = 0; k < f.depth; k += DEPTH) {
		uint64_t x = along_k(m.x[r.stage] + group * 64 * DEPTH);
		uint64_t w = along_k(m.w[r.stage]);

		barrier_wait(&m.full[r.stage], r.phase);
		products_begin();
#pragma unroll
		for (int i = 0; i < DEPTH / 16; i++)
			product16<N>::ss(sums, x + 2 * i, w + 2 * i, k | i);
		products_commit();
		if (k == middle)
			end.prepare(f);
		products_wait<1>();
		if (k > 0)
			cluster_release(&m.empty[before.stage], PAIR);
		if (k == tell)
			barrier_release(&m.ahead);
		before = r;
		ring_next<STAGES>(r);
	}
	products_wait<0>();
	pin(sums);
	cluster_release(&m.empty[before.stage], PAIR);
}

/* N columns of a tile, for the rows `row` and `row` + 8 of the thread. */
template <int HD, int N>
static __device__ __forceinline__ void consume_tile(const struct fused &f, struct fused_shared &m,
						    int group, struct ring &r, int tell, int row,
						    int column, float (&sums)[N / 2])
{
	struct fused_end<HD> end(f, row, column);

	fused_sums<N>(f, m, group, r, tell, end, sums);
	end.template finish<N>(f, sums);
}

template <int HD>
static __device__ void fused_consumer(const struct fused &f, struct fused_shared &m)
{
	int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128 - 1, 0);
	int in_tile = group * 64 + (int)threadIdx.x % 128 / 32 * 16 + (int)threadIdx.x % 32 / 4;
	int tell = group == 0 ? min(LEAD * DEPTH, f.depth) - DEPTH : -1;
	struct ring r = { 0, 0 };

	if (group == 1)
		barrier_wait(&m.ahead, 0);
	for (int number = (int)blockIdx.x / PAIR; number < f.numbers;
	     number += (int)gridDim.x / PAIR) {
		struct tile t = tile_of(f, number);
		int row = t.row + in_tile;
		float sums[SIDE];

		if (!fused_end<HD>::halves || t.both)
			consume_tile<HD, 2 * SIDE>(f, m, group, r, tell, row, t.column, sums);
		else if constexpr (fused_end<HD>::halves)
			consume_tile<HD, SIDE>(f, m, group, r, tell, row, t.column,
					       part_of<SIDE / 2>(sums, 0));
		tell = -1;
	}
}

#endif

/* HD: the head dim of what is turned, or 0 for SwiGLU. */
template <int HD>
__global__ void __launch_bounds__(THREADS, 1)
	fused_blocks(const __grid_constant__ CUtensorMap mx, const __grid_constant__ CUtensorMap mw,
		     const __grid_constant__ struct fused f)
{
#ifdef HOPPER_CODE
	extern __shared__ char raw[];
	struct fused_shared &m = *reinterpret_cast<struct fused_shared *>(
		raw + ((1024 - (shared_address(raw) & 1023)) & 1023));

	if (threadIdx.x == 0) {
		for (int i = 0; i < STAGES; i++) {
			barrier_init(&m.full[i], 1);
			barrier_init(&m.empty[i], PAIR * 2 * 4);
		}
		barrier_init(&m.ahead, 4);
		barrier_init_done();
	}
	cluster_sync();
	if (threadIdx.x < 128) {
		register_shares<2, 24, 240>::produce();
		if (threadIdx.x == 0)
			fused_producer(f, m, &mx, &mw);
	} else {
		register_shares<2, 24, 240>::consume();
		fused_consumer<HD>(f, m);
	}
#endif
}

/* A map of [rows, columns] for boxes of `box_rows` by DEPTH. */
static CUtensorMap rows_map(struct cuda_state *s, const struct tensor *t, int box_rows)
{
	int64_t rows = t->dim[0], columns = t->dim[1];
	const struct mapped m = { t->data, 1, rows, columns, columns, rows * columns };

	static_assert(DEPTH == 64, "a box of hopper_map");
	return hopper_map(s, &m, box_rows);
}

static bool operands_fit(const struct cuda_state *s, const struct tensor *out,
			 const struct tensor *x, const struct tensor *w)
{
	return s->hopper && x->type == DT_BF16 && out->type == DT_BF16 && w->type == DT_BF16 &&
	       x->dim[0] >= ROWS_LEAST && x->dim[0] < 1 << 24 && x->dim[1] % DEPTH == 0 &&
	       aligned16(x->data) && aligned16(w->data) && aligned16(out->data);
}

/* The launch of so many pairs. */
template <int HD>
static cudaLaunchConfig_t launch_of(struct cuda_state *s, int pairs, cudaLaunchAttribute *cluster)
{
	const int bytes = (int)sizeof(struct fused_shared) + 1024;
	cudaLaunchConfig_t c = {};

	CUDA(cudaFuncSetAttribute(fused_blocks<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				  bytes));
	c.gridDim = dim3((unsigned)(PAIR * pairs));
	c.blockDim = dim3(THREADS);
	c.dynamicSmemBytes = (size_t)bytes;
	c.stream = s->stream;
	c.attrs = cluster;
	form_clusters(&c, PAIR);
	return c;
}

/* How many pairs run at a time: at most half the multiprocessors. */
static int pairs_at_once(struct cuda_state *s)
{
	if (!s->pairs) {
		cudaLaunchAttribute cluster = {};
		cudaLaunchConfig_t shape = launch_of<0>(s, s->processors / PAIR, &cluster);

		CUDA(cudaOccupancyMaxActiveClusters(&s->pairs, fused_blocks<0>, &shape));
		CHECK(s->pairs > 0);
	}
	return s->pairs;
}

template <int HD>
static void run(struct cuda_state *s, const struct tensor *x, const struct tensor *w,
		struct fused *f)
{
	const int most = pairs_at_once(s);
	cudaLaunchAttribute cluster = {};
	cudaLaunchConfig_t shape;
	int left;

	CHECK(w->dim[1] == x->dim[1]);
	f->rows = (int)x->dim[0];
	f->depth = (int)x->dim[1];
	f->row_tiles = (int)div_up(f->rows, HEIGHT);
	f->tiles = f->row_tiles * (int)div_up(f->columns, f->step);
	/* Where the last round would leave half the pairs idle, its tiles are shared out; gate and
	 * up must stay together. */
	left = f->tiles % most;
	f->whole = HD && 2 * left <= most ? f->tiles - left : f->tiles;
	f->numbers = 2 * f->tiles - f->whole;
	shape = launch_of<HD>(s, f->numbers < most ? f->numbers : most, &cluster);
	CUDA(cudaLaunchKernelEx(&shape, fused_blocks<HD>, rows_map(s, x, SIDE),
				rows_map(s, w, SIDE / PAIR), *f));
	LAUNCHED();
}

bool fused_swiglu_fits(const struct cuda_state *s, const struct tensor *out, const struct tensor *x,
		       const struct tensor *w)
{
	return operands_fit(s, out, x, w) && out->dim[1] % SIDE == 0;
}

void fused_swiglu(struct cuda_state *s, const struct tensor *out, const struct tensor *gate_up,
		  const struct tensor *x, const struct tensor *w)
{
	struct fused f = {};

	CHECK(w->dim[0] == 2 * out->dim[1] && out->dim[0] == x->dim[0]);
	CHECK(!gate_up || (gate_up->dim[0] == x->dim[0] && gate_up->dim[1] == w->dim[0] &&
			   aligned16(gate_up->data)));
	f.out = (bf16 *)out->data;
	f.gate_up = gate_up ? (bf16 *)gate_up->data : NULL;
	f.columns = f.apart = (int)out->dim[1];
	f.step = SIDE;
	run<0>(s, x, w, &f);
}

bool fused_qkv_fits(const struct cuda_state *s, const struct tensor *out, const struct tensor *x,
		    const struct tensor *w, const struct fused_turn *t)
{
	return operands_fit(s, out, x, w) && (t->hd == 64 || t->hd == 128) &&
	       out->dim[1] % (3 * SIDE) == 0 &&
	       x->dim[0] / t->each * t->capacity <= INT32_MAX && aligned16(t->keys) &&
	       aligned16(t->values) && aligned16(t->cosine) && aligned16(t->sine);
}

void fused_qkv(struct cuda_state *s, const struct tensor *out, const struct tensor *x,
	       const struct tensor *w, const struct fused_turn *t)
{
	struct fused f = {};

	CHECK(w->dim[0] == out->dim[1] && out->dim[0] == x->dim[0]);
	f.out = (bf16 *)out->data;
	f.columns = (int)out->dim[1];
	f.step = 2 * SIDE;
	f.apart = SIDE;
	f.turn = *t;
	if (t->hd == 64)
		run<64>(s, x, w, &f);
	else
		run<128>(s, x, w, &f);
}
