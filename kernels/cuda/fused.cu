/* SPDX-License-Identifier: Apache-2.0
 * Products of many rows with what follows them, on Hopper. Blocks stay on their multiprocessor and
 * take tiles of 128 rows by twice 128 rows of the weights. One warp copies the operands ahead, 64
 * of the depth at a time, through the tile's end into the next one; two warpgroups own 64 rows
 * each, with both halves of the columns in registers, so that gate and up of a place, and the pairs
 * of a head that are turned together, meet in one thread. */
#include "kernels/cuda/fused.cuh"
#include "kernels/cuda/hopper.cuh"

#define SIDE 128         /* rows of a tile, and of either half of the weights */
#define DEPTH 64         /* of a stage */
#define STAGES 4
#define THREADS (3 * 128)
#define TOGETHER 16      /* tiles of rows that take the same weights at about the same time */
#define ROWS_LEAST 512   /* below, the library's smaller tiles are better */

struct fused {
	int rows, columns, depth; /* of the output; of the product */
	int step, apart;          /* rows of the weights between tiles, and between the halves */
	int row_tiles, tiles;
	int whole, numbers; /* tiles taken whole; with halves of the others */
	bf16 *out;
	struct fused_turn turn;
};

struct fused_shared {
	bf16 x[STAGES][SIDE * DEPTH];
	bf16 w[STAGES][2][SIDE * DEPTH];
	uint64_t full[STAGES], empty[STAGES];
};

#ifdef HOPPER_CODE

struct tile {
	int row, column; /* first ones */
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
	struct tile t = { (group * TOGETHER + rest % rows) * SIDE, rest / rows * f.step, half < 0 };

	if (half > 0 && half % 2)
		t.column += f.apart;
	return t;
}

static __device__ void fused_producer(const struct fused &f, struct fused_shared &m,
				      const CUtensorMap *mx, const CUtensorMap *mw)
{
	struct ring r = { 0, 0 };

	for (int number = (int)blockIdx.x; number < f.numbers; number += (int)gridDim.x) {
		struct tile t = tile_of(f, number);

		for (int k = 0; k < f.depth; k += DEPTH) {
			uint64_t *full = &m.full[r.stage];

			barrier_wait(&m.empty[r.stage], r.phase ^ 1);
			barrier_expect(full, sizeof m.x[0] + (t.both ? 2 : 1) * sizeof m.w[0][0]);
			copy_tile(m.x[r.stage], mx, full, k, t.row, 0);
			copy_tile(m.w[r.stage][0], mw, full, k, t.column, 0);
			if (t.both)
				copy_tile(m.w[r.stage][1], mw, full, k, t.column + f.apart, 0);
			ring_next<STAGES>(r);
		}
	}
}

/* Both halves of a tile's sums for the warpgroup's 64 rows, or one. */
template <bool BOTH>
static __device__ __forceinline__ void fused_sums(const struct fused &f, struct fused_shared &m,
						  int group, struct ring &r, float (&low)[SIDE / 2],
						  float (&high)[SIDE / 2])
{
	struct ring before = r;

	for (int k = 0; k < f.depth; k += DEPTH) {
		uint64_t x = along_k(m.x[r.stage] + group * 64 * DEPTH);
		uint64_t a = along_k(m.w[r.stage][0]), b = along_k(m.w[r.stage][1]);

		barrier_wait(&m.full[r.stage], r.phase);
		products_begin();
#pragma unroll
		for (int i = 0; i < DEPTH / 16; i++) {
			product16<SIDE>::ss(low, x + 2 * i, a + 2 * i, k | i);
			if (BOTH)
				product16<SIDE>::ss(high, x + 2 * i, b + 2 * i, k | i);
		}
		products_commit();
		products_wait<1>();
		if (k > 0)
			barrier_release(&m.empty[before.stage]);
		before = r;
		ring_next<STAGES>(r);
	}
	products_wait<0>();
	pin(low);
	if (BOTH)
		pin(high);
	barrier_release(&m.empty[before.stage]);
}

/* SwiGLU, from gate and up. */
static __device__ __forceinline__ void finish_swiglu(const struct fused &f, int row, int column,
						     float (&gate)[SIDE / 2],
						     const float (&up)[SIDE / 2])
{
#pragma unroll
	for (int i = 0; i < SIDE / 2; i++)
		gate[i] = __fdividef(gate[i], 1.0f + __expf(-gate[i])) * up[i];
#pragma unroll
	for (int half = 0; half < 2; half++, row += 8)
		write_row<SIDE>(row < f.rows ? f.out + (int64_t)row * f.columns + column : NULL,
				gate, half, 1.0f);
}

/* The pairs of a row's heads turned to its position. */
template <int HD>
static __device__ __forceinline__ void turn_row(float (&x)[SIDE / 2], int half, const float *cosine,
						const float *sine)
{
#pragma unroll
	for (int c = 0; c < HD / 16; c++) {
		int at = 8 * c + 2 * ((int)threadIdx.x % 4);
		float2 cs = *reinterpret_cast<const float2 *>(cosine + at);
		float2 sn = *reinterpret_cast<const float2 *>(sine + at);

#pragma unroll
		for (int head = 0; head < SIDE / HD; head++) {
			int i = 4 * (c + head * (HD / 8)) + 2 * half, j = i + HD / 4;
			float a0 = x[i], a1 = x[i + 1], b0 = x[j], b1 = x[j + 1];

			x[i] = a0 * cs.x - b0 * sn.x;
			x[i + 1] = a1 * cs.y - b1 * sn.y;
			x[j] = b0 * cs.x + a0 * sn.x;
			x[j + 1] = b1 * cs.y + a1 * sn.y;
		}
	}
}

/* Half a tile of queries, keys or values: the first two turned, the last two into the cache. */
template <int HD>
static __device__ __forceinline__ void finish_turn(const struct fused &f, int row, int column,
						   float (&x)[SIDE / 2])
{
	const struct fused_turn &t = f.turn;
	int d = f.columns / 3, kind = column / d;

	if (column >= f.columns)
		return;
#pragma unroll
	for (int half = 0; half < 2; half++, row += 8) {
		int r = min(row, f.rows - 1), sequence = r / t.each;
		int64_t at = (int64_t)t.position[r] * (HD / 2), place = t.at[sequence] + r % t.each;
		bf16 *to = f.out + (int64_t)r * f.columns + column;

		if (kind < 2)
			turn_row<HD>(x, half, t.cosine + at, t.sine + at);
		if (kind > 0)
			to = (kind == 1 ? t.keys : t.values) +
			     (sequence * (int64_t)t.capacity + place) * d + column - kind * d;
		if (row >= f.rows ||
		    (kind > 0 && (t.limit[r] < 0 || place < 0 || place >= t.capacity)))
			to = NULL;
		write_row<SIDE>(to, x, half, 1.0f);
	}
}

/* HD: the head dim of what is turned, or 0 for SwiGLU. */
template <int HD>
static __device__ void fused_consumer(const struct fused &f, struct fused_shared &m)
{
	int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128 - 1, 0);
	int in_tile = group * 64 + (int)threadIdx.x % 128 / 32 * 16 + (int)threadIdx.x % 32 / 4;
	struct ring r = { 0, 0 };

	for (int number = (int)blockIdx.x; number < f.numbers; number += (int)gridDim.x) {
		struct tile t = tile_of(f, number);
		float low[SIDE / 2], high[SIDE / 2];

		if constexpr (HD == 0) {
			fused_sums<true>(f, m, group, r, low, high);
			finish_swiglu(f, t.row + in_tile, t.column, low, high);
		} else if (!t.both) {
			fused_sums<false>(f, m, group, r, low, high);
			finish_turn<HD>(f, t.row + in_tile, t.column, low);
		} else {
			fused_sums<true>(f, m, group, r, low, high);
			finish_turn<HD>(f, t.row + in_tile, t.column, low);
			finish_turn<HD>(f, t.row + in_tile, t.column + SIDE, high);
		}
	}
}

#endif

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
			barrier_init(&m.empty[i], 2 * 4);
		}
		barrier_init_done();
	}
	__syncthreads();
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

/* A map of [rows, columns] for boxes of SIDE rows by DEPTH; reads beyond give zeros. */
static CUtensorMap rows_map(struct cuda_state *s, const struct tensor *t)
{
	typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
				      const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
				      const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
				      CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
	encode_fn encode = (encode_fn)s->encode_tiled;
	cuuint64_t rows = (cuuint64_t)t->dim[0], columns = (cuuint64_t)t->dim[1];
	cuuint64_t dim[3] = { columns, rows, 1 }, stride[2] = { columns * 2, columns * rows * 2 };
	cuuint32_t box[3] = { DEPTH, SIDE, 1 }, step[3] = { 1, 1, 1 };
	CUtensorMap map;
	CUresult rc = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, t->data, dim, stride, box,
			     step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
			     CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

	if (rc != CUDA_SUCCESS)
		BUG("the driver refuses a tensor map (%d) of %lld x %lld", (int)rc,
		    (long long)t->dim[0], (long long)t->dim[1]);
	return map;
}

static bool operands_fit(const struct cuda_state *s, const struct tensor *out,
			 const struct tensor *x, const struct tensor *w)
{
	return s->hopper && x->type == DT_BF16 && out->type == DT_BF16 && w->type == DT_BF16 &&
	       x->dim[0] >= ROWS_LEAST && x->dim[0] < 1 << 24 && x->dim[1] % DEPTH == 0 &&
	       aligned16(x->data) && aligned16(w->data) && aligned16(out->data);
}

template <int HD>
static void run(struct cuda_state *s, const struct tensor *x, const struct tensor *w,
		struct fused *f)
{
	const int bytes = (int)sizeof(struct fused_shared) + 1024;
	int left, grid;

	CHECK(w->dim[1] == x->dim[1]);
	f->rows = (int)x->dim[0];
	f->depth = (int)x->dim[1];
	f->row_tiles = (int)div_up(f->rows, SIDE);
	f->tiles = f->row_tiles * (int)div_up(f->columns, f->step);
	/* Where the last round would leave half the multiprocessors idle, its tiles are shared out;
	 * gate and up must stay together. */
	left = f->tiles % s->processors;
	f->whole = HD && 2 * left <= s->processors ? f->tiles - left : f->tiles;
	f->numbers = 2 * f->tiles - f->whole;
	CUDA(cudaFuncSetAttribute(fused_blocks<HD>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				  bytes));
	grid = f->numbers < s->processors ? f->numbers : s->processors;
	fused_blocks<HD><<<(unsigned)grid, THREADS, bytes, s->stream>>>(rows_map(s, x),
									rows_map(s, w), *f);
	LAUNCHED();
}

bool fused_swiglu_fits(const struct cuda_state *s, const struct tensor *out, const struct tensor *x,
		       const struct tensor *gate_up)
{
	return operands_fit(s, out, x, gate_up) && out->dim[1] % SIDE == 0;
}

void fused_swiglu(struct cuda_state *s, const struct tensor *out, const struct tensor *x,
		  const struct tensor *gate_up)
{
	struct fused f = {};

	CHECK(gate_up->dim[0] == 2 * out->dim[1] && out->dim[0] == x->dim[0]);
	f.out = (bf16 *)out->data;
	f.columns = f.apart = (int)out->dim[1];
	f.step = SIDE;
	run<0>(s, x, gate_up, &f);
}

bool fused_qkv_fits(const struct cuda_state *s, const struct tensor *out, const struct tensor *x,
		    const struct tensor *w, const struct fused_turn *t)
{
	return operands_fit(s, out, x, w) && (t->hd == 64 || t->hd == 128) &&
	       out->dim[1] % (3 * SIDE) == 0 && aligned16(t->keys) && aligned16(t->values) &&
	       aligned16(t->cosine) && aligned16(t->sine);
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
