/* SPDX-License-Identifier: Apache-2.0
 * Products of up to 16 rows on Hopper (sampling). Every multiprocessor has a block, and every block
 * an even share of the rows of the weights, which its first warp copies into shared memory as soon
 * as the block starts: for products that follow one another that is while kernels ahead still run.
 * What does not fit is copied when all warps have used up a tile of what is there. Copies of gentle
 * products are spread in time: the kernels ahead wait for theirs.
 *
 * The depth is divided among the warps; their sums are added in order, and which warp takes what
 * depends on the depth alone: a row gives the same bits whatever is computed beside it. A norm's
 * factor is known only at the end of the depth, so the sums are scaled by it, not the input. */
#include "kernels/cuda/few.cuh"
#include "kernels/cuda/hopper.cuh"

#define WARPS 8
#define THREADS (WARPS * 32)
#define CHUNK 32      /* elements of the depth that a warp takes at a time */
#define STRIP (WARPS * CHUNK)
#define STRIPS_MOST 24
#define NORM_STRIPS 16 /* where a norm comes before: a model's width at most */
#define SLOTS_MOST 8
#define CHAINS 4      /* sums a warp has under way for a place */
/* Blocks on a multiprocessor that have registers: of products of 1536 as many as have rings. */
#define BLOCKS(STRIPS) ((STRIPS) <= 6 ? 3 : (STRIPS) <= 16 ? 2 : 1)
/* What leaves room for the block of the kernel behind: for weights, and with the norm's weight and
 * sums. Of eight rows of 1536, QKV and the product ahead of it fill a multiprocessor but for 256
 * bytes. */
#define RING_BYTES (135 << 10)
#define BLOCK_BYTES ((125 << 10) + 512)
/* For the first copies of what is read gently: then it is there hardly later than it is needed. */
#define FILL_CLOCKS(M) ((M) > 8 ? 0u : (M) > 4 ? 4500u : 5500u)
#define SUMS_BYTES (24 << 10) /* at most, where nothing runs beside the block anyway */
#define HEAD_LEAST ((int64_t)16 << 20) /* weights of a product alone that pays here */

struct ring_product {
	struct few f;
	int share, rest; /* columns of the output for a block; the first `rest` have one more */
	int tiles[2];    /* of a block, and of one that has one more */
	int columns; /* of the output in a tile: its rows, or half of them where SwiGLU follows */
	int rows;    /* of the weights in a tile */
	int stride;  /* bytes from row to row in the ring: no bank conflicts */
	int slots;   /* tiles that the ring holds */
	int apart;   /* floats from an input row to the next in the sums: no bank conflicts */
	int hold;    /* tiles whose sums are kept until they are added up */
	int rows_log; /* of the input: there is a place in the sums for a power of two of them */
	unsigned per_column; /* 65536 / columns, rounded up */
	float per_k;         /* 1 / k */
	unsigned pace;       /* clocks between the first copies */
};

#ifdef HOPPER_CODE

/* A block's columns of the output. */
struct range {
	int first, n, tiles;
};

static __device__ __forceinline__ struct range range_of(const struct ring_product &c)
{
	int b = (int)blockIdx.x;
	bool more = b < c.rest;

	return { b * c.share + min(b, c.rest), c.share + more, c.tiles[more] };
}

/* As copy_bytes, of what is read once: the first to leave the second cache. */
static __device__ __forceinline__ void copy_once(void *to, const void *from, uint32_t bytes,
						 uint64_t *full)
{
	uint64_t policy;

	asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
		     ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
		     "l"(from), "r"(bytes), "r"(shared_address(full)), "l"(policy)
		     : "memory");
}

/* By a warp: tile i of the range to a slot of the ring, a row a lane; its l-th lane begins l times
 * `pace` clocks after `when`. */
static __device__ __forceinline__ void copy_rows(const struct ring_product &c,
						 const struct range &s, char *ring, uint64_t *full,
						 int i, int slot, unsigned when, unsigned pace)
{
	const struct few &f = c.f;
	int lane = (int)threadIdx.x % 32, first = i * c.columns;
	int part = lane >= c.columns, row = lane - part * c.columns;
	int n = min(c.columns, s.n - first);
	uint32_t bytes = (uint32_t)f.k * 2;
	const bf16 *from = f.w + ((int64_t)part * f.n + s.first + first + row) * f.k;
	char *to = ring + (slot * c.rows + lane) * c.stride;
	bool left = lane < c.rows && row < n;

	if (lane == 0)
		barrier_expect(full + slot, (f.swiglu ? 2 * n : n) * bytes);
	__syncwarp();
	when += (unsigned)lane * pace;
#pragma unroll 1
	while (__any_sync(0xffffffffu, left))
		if (left && clock_reached(when)) {
			copy_once(to, from, bytes, full + slot);
			left = false;
		}
}

/* By the first warp, at the start: barriers, and on their way the norm's weight and what the ring
 * holds. */
static __device__ __forceinline__ void start_copies(const struct ring_product &c,
						    const struct range &s, char *ring,
						    uint64_t *full, uint64_t *empty, uint64_t *norm)
{
	unsigned when = clocks_now();

	if (threadIdx.x == 0) {
#pragma unroll 1
		for (int i = 0; i < c.slots; i++) {
			barrier_init(full + i, 1);
			barrier_init(empty + i, WARPS);
		}
		barrier_init(norm, 1);
		barrier_init_done_alone();
		if (c.f.norm) {
			barrier_expect(norm, (uint32_t)c.f.k * 4);
			copy_bytes(ring + c.slots * c.rows * c.stride, c.f.norm,
				   (uint32_t)c.f.k * 4, norm);
		}
	}
	__syncwarp();
#pragma unroll 1
	for (int i = 0; i < min(c.slots, s.tiles); i++) {
		copy_rows(c, s, ring, full, i, i, when, c.pace);
		when += (unsigned)c.rows * c.pace;
	}
}

/* A tile, and the slot it is in. */
struct walk {
	int tile, slot;
	uint32_t phase;
};

/* The warp has used up the tile. The first warp has the slot filled again once all have. */
static __device__ __forceinline__ void give_back(const struct ring_product &c,
						 const struct range &s, char *ring, uint64_t *full,
						 uint64_t *empty, struct walk &at)
{
	if (at.tile + c.slots < s.tiles) {
		barrier_release(empty + at.slot);
		if (threadIdx.x < 32) {
			barrier_wait(empty + at.slot, at.phase);
			copy_rows(c, s, ring, full, at.tile + c.slots, at.slot,
				  clocks_now(), 0);
		}
	}
	at.tile++;
	if (++at.slot == c.slots) {
		at.slot = 0;
		at.phase ^= 1;
	}
}

/* Eight elements of the input times the norm's weight; square grows by their squares. */
static __device__ __forceinline__ uint4 weigh(uint4 v, const float *norm, float *square)
{
	uint32_t in[4] = { v.x, v.y, v.z, v.w }, out[4];
	float w[8];

	load8(norm, w);
#pragma unroll
	for (int i = 0; i < 4; i++) {
		float2 x = unpack_bf16(in[i]);

		*square += x.x * x.x + x.y * x.y;
		out[i] = pack_bf16(x.x * w[2 * i], x.y * w[2 * i + 1]);
	}
	return make_uint4(out[0], out[1], out[2], out[3]);
}

/* Where the lane's eight elements of a strip begin in the depth. */
static __device__ __forceinline__ int depth_of(int strip)
{
	return (strip * WARPS + (int)threadIdx.x / 32) * CHUNK + (int)threadIdx.x % 4 * 8;
}

/* Whether a place in the depth is inside; EXACT: the strips are the whole depth. */
template <bool EXACT>
static __device__ __forceinline__ bool inside(const struct ring_product &c, int depth)
{
	return EXACT || depth < c.f.k;
}

/* Where the warp's part of the input begins: of row lane / 4, or the last one. */
static __device__ __forceinline__ const bf16 *input_of(const struct ring_product &c, int half)
{
	int row = min((int)threadIdx.x % 32 / 4 + half * 8, c.f.m - 1);

	return c.f.x + (int64_t)row * c.f.k + depth_of(0);
}

/* The warp's part of the input, of rows lane / 4 and, with two HALVES, lane / 4 + 8; zeros beyond
 * the depth, and whatever beyond the last row. */
template <int STRIPS, int HALVES, bool NORM, bool EXACT>
static __device__ __forceinline__ void
read_input(const struct ring_product &c, const bf16 *const (&from)[HALVES], const float *norm,
	   uint64_t *norm_there, uint4 (&x)[STRIPS][HALVES], float *squares)
{
	const uint4 none = { 0, 0, 0, 0 };
	float square[HALVES] = {};

#pragma unroll
	for (int i = 0; i < STRIPS; i++)
#pragma unroll
		for (int j = 0; j < HALVES; j++)
			x[i][j] = inside<EXACT>(c, depth_of(i))
					  ? __ldcg(reinterpret_cast<const uint4 *>(
						    from[j] + i * STRIP))
					  : none;
	if (!NORM)
		return;
	barrier_wait(norm_there, 0);
	norm += depth_of(0);
#pragma unroll
	for (int i = 0; i < STRIPS; i++)
#pragma unroll
		for (int j = 0; j < HALVES; j++)
			if (inside<EXACT>(c, depth_of(i)))
				x[i][j] = weigh(x[i][j], norm + i * STRIP, &square[j]);
#pragma unroll
	for (int j = 0; j < HALVES; j++) {
		square[j] = quad_sum(square[j]);
		if (threadIdx.x % 4 == 0)
			squares[((int)threadIdx.x / 32 * HALVES + j) * 8 +
				(int)threadIdx.x % 32 / 4] = square[j];
	}
}

/* The warp's sums of a tile, [m][apart], from its slot in the ring. */
template <int STRIPS, int HALVES, bool EXACT>
static __device__ __forceinline__ void
sum_tile(const struct ring_product &c, const struct range &s, char *ring, uint64_t *full,
	 uint64_t *empty, struct walk &at, const uint4 (&x)[STRIPS][HALVES], float *to)
{
	const uint4 none = { 0, 0, 0, 0 };
	const int g = (int)threadIdx.x % 32 / 4, t = (int)threadIdx.x % 4;
	const char *tile = ring + at.slot * c.rows * c.stride;
	const char *low = tile + min(g, c.rows - 1) * c.stride;
	const char *high = tile + min(g + 8, c.rows - 1) * c.stride;
	float sum[HALVES][CHAINS][4] = {};

	barrier_wait(full + at.slot, at.phase);
#pragma unroll
	for (int j = 0; j < STRIPS; j++) {
		const int depth = depth_of(j);
		const bool in = inside<EXACT>(c, depth);
		uint4 a = in ? *reinterpret_cast<const uint4 *>(low + depth * 2) : none;
		uint4 b = in ? *reinterpret_cast<const uint4 *>(high + depth * 2) : none;

#pragma unroll
		for (int h = 0; h < HALVES; h++) {
			const uint4 v = x[j][h];

			multiply(sum[h][j * 2 % CHAINS], a.x, b.x, a.y, b.y, v.x, v.y);
			multiply(sum[h][(j * 2 + 1) % CHAINS], a.z, b.z, a.w, b.w, v.z, v.w);
		}
		if (j % 4 == 3)
			asm volatile("" ::: "memory"); /* few weights in registers */
	}
	give_back(c, s, ring, full, empty, at);
#pragma unroll
	for (int i = 0; i < 4 * HALVES; i++) {
		int m = i / 4 * 8 + 2 * t + i % 2;
		const float (&v)[CHAINS][4] = sum[i / 4];

		if (m < c.f.m && g + i % 4 / 2 * 8 < c.rows)
			to[m * c.apart + g + i % 4 / 2 * 8] =
				v[0][i % 4] + v[1][i % 4] + (v[2][i % 4] + v[3][i % 4]);
	}
}

/* The sum over the warps, in order; `apart` floats from one warp's to the next. */
static __device__ __forceinline__ float add_warps(const float *part, int apart)
{
	float sum = 0.0f;

#pragma unroll
	for (int w = 0; w < WARPS; w++)
		sum += part[w * apart];
	return sum;
}

/* A place in the output of some tiles. */
struct spot {
	int m, sums;   /* -1: none; where its sums begin */
	bf16 *out;
};

/* The i-th place of the tiles from `first`, which have so many columns. */
static __device__ __forceinline__ struct spot spot_in(const struct ring_product &c,
						      const struct range &s, int first, int columns,
						      int i)
{
	int m = i & ((1 << c.rows_log) - 1), column = i >> c.rows_log;
	int tile = (int)((unsigned)column * c.per_column >> 16);

	return { m < c.f.m && column < columns ? m : -1,
		 (tile * WARPS * c.f.m + m) * c.apart + column - tile * c.columns,
		 (bf16 *)c.f.out + (int64_t)m * c.f.n + s.first + first * c.columns + column };
}

/* The product at a place, from the sums [tile][WARPS][m][apart]. */
template <int HALVES, bool NORM>
static __device__ __forceinline__ float product_at(const struct ring_product &c,
						   const struct spot &p, const float *sums,
						   const float *squares)
{
	const int apart = c.f.m * c.apart;
	float scale = 1.0f, v;

	sums += p.sums;
	if (NORM)
		scale = rsqrtf(add_warps(squares + p.m, 8 * HALVES) * c.per_k + c.f.eps);
	v = scale * add_warps(sums, apart);
	if (c.f.swiglu)
		v = __fdividef(scale * add_warps(sums + c.columns, apart) * v, 1.0f + __expf(-v));
	return v;
}

#endif

template <int STRIPS, int HALVES, bool NORM, bool EXACT>
__global__ void __launch_bounds__(THREADS, BLOCKS(STRIPS * HALVES))
	few_ring(const __grid_constant__ struct ring_product c)
{
#ifdef HOPPER_CODE
	extern __shared__ __align__(128) char ring[];
	__shared__ uint64_t full[SLOTS_MOST], empty[SLOTS_MOST], norm_there;
	__shared__ float squares[WARPS * 8 * HALVES];
	const struct range s = range_of(c);
	const float *norm = reinterpret_cast<const float *>(ring + c.slots * c.rows * c.stride);
	float *sums = const_cast<float *>(norm) + (NORM ? c.f.k : 0), before = 0.0f;
	const bf16 *from[HALVES];
	uint4 x[STRIPS][HALVES];
	struct walk at = {};
	struct spot p;

	let_kernel_behind_start();
	if (threadIdx.x < 32)
		start_copies(c, s, ring, full, empty, &norm_there);
	p = spot_in(c, s, 0, min(c.hold * c.columns, s.n), (int)threadIdx.x);
#pragma unroll
	for (int j = 0; j < HALVES; j++)
		from[j] = input_of(c, j);
	__syncthreads();
	wait_for_kernel_ahead();
	if (c.f.add && p.m >= 0)
		before = read_result(p.out);
	read_input<STRIPS, HALVES, NORM, EXACT>(c, from, norm, &norm_there, x, squares);
#pragma unroll 1
	for (int first = 0; first < s.tiles; first += c.hold) {
		int columns = min(c.hold * c.columns, s.n - first * c.columns);
		float *to = sums + (int)threadIdx.x / 32 * c.f.m * c.apart;

#pragma unroll 1
		for (int tile = first; tile < min(first + c.hold, s.tiles); tile++) {
			sum_tile<STRIPS, HALVES, EXACT>(c, s, ring, full, empty, at, x, to);
			to += WARPS * c.f.m * c.apart;
		}
		__syncthreads();
#pragma unroll 1
		for (int i = (int)threadIdx.x; i < columns << c.rows_log; i += THREADS) {
			if (first > 0 || i >= THREADS) {
				p = spot_in(c, s, first, columns, i);
				if (c.f.add && p.m >= 0)
					before = read_result(p.out);
			}
			if (p.m >= 0)
				put(p.out, product_at<HALVES, NORM>(c, p, sums, squares) + before);
		}
		if (first + c.hold < s.tiles)
			__syncthreads();
	}
#endif
}

/* Bytes of a tile's sums. */
static int sum_bytes(const struct ring_product *c)
{
	return WARPS * c->f.m * c->apart * (int)sizeof(float);
}

/* Bytes of all but the sums. */
static int read_bytes(const struct ring_product *c)
{
	return c->slots * c->rows * c->stride + (c->f.norm ? c->f.k * 4 : 0);
}

static int bytes_of(const struct ring_product *c)
{
	return read_bytes(c) + c->hold * sum_bytes(c);
}

/* How the product is divided; the blocks of it. */
static unsigned divide(const struct cuda_state *s, struct ring_product *c)
{
	const struct few *f = &c->f;
	int blocks = s->processors < f->n ? s->processors : f->n, share = (int)div_up(f->n, blocks);
	int tiles = (int)div_up(share, f->swiglu ? TILE / 2 : TILE), twice = f->swiglu ? 2 : 1;
	int tile, room;

	c->stride = (int)div_up(f->k, 64) * 128 + 64;
	while (tiles > 1 && tiles < share &&
	       2 * twice * (int)div_up(share, tiles) * c->stride > RING_BYTES)
		tiles++; /* so that the ring has two, one to be filled while the other is used */
	c->columns = (int)div_up(share, tiles);
	c->rows = twice * c->columns;
	tile = c->rows * c->stride;
	c->slots = tile > RING_BYTES ? 1 : RING_BYTES / tile;
	c->slots = c->slots < SLOTS_MOST ? c->slots : SLOTS_MOST;
	c->slots = c->slots < tiles ? c->slots : tiles;
	c->apart = c->rows <= 4 ? 4 : c->rows <= 12 ? 12 : 20;
	room = BLOCK_BYTES - read_bytes(c);
	c->hold = (room < sum_bytes(c) ? SUMS_BYTES : room) / sum_bytes(c);
	c->hold = c->hold < tiles ? c->hold : tiles;
	c->share = f->n / blocks;
	c->rest = f->n % blocks;
	c->tiles[0] = (int)div_up(c->share, c->columns);
	c->tiles[1] = (int)div_up(c->share + 1, c->columns);
	while (1 << c->rows_log < f->m)
		c->rows_log++;
	c->per_column = (unsigned)div_up(65536, c->columns);
	c->per_k = 1.0f / (float)f->k;
	if (f->gently)
		c->pace = FILL_CLOCKS(f->m) / (unsigned)(c->rows * c->slots);
	return (unsigned)blocks;
}

template <int STRIPS, int HALVES, bool NORM, bool EXACT>
static void launch(struct cuda_state *s, const struct ring_product *c, unsigned blocks, bool early)
{
	cudaLaunchAttribute room;
	cudaLaunchConfig_t shape = launch_shape(s, dim3(blocks), THREADS, early, &room);
	auto kernel = few_ring<STRIPS, HALVES, NORM, EXACT>;

	shape.dynamicSmemBytes = (size_t)bytes_of(c);
	CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
				  (int)shape.dynamicSmemBytes));
	CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
				  cudaSharedmemCarveoutMaxShared));
	CUDA(cudaLaunchKernelEx(&shape, kernel, *c));
	LAUNCHED();
}

template <int STRIPS, int HALVES, bool EXACT>
static void run(struct cuda_state *s, const struct ring_product *c, unsigned blocks, bool early)
{
	if constexpr (STRIPS <= NORM_STRIPS) {
		if (c->f.norm) {
			constexpr bool FITS = STRIPS * HALVES <= 12; /* else registers spill */

			launch<STRIPS, HALVES, true, EXACT && FITS>(s, c, blocks, early);
			return;
		}
	}
	launch<STRIPS, HALVES, false, EXACT>(s, c, blocks, early);
}

template <int STRIPS, bool EXACT>
static void run(struct cuda_state *s, const struct ring_product *c, unsigned blocks, bool early)
{
	if (c->f.m > 8)
		run<STRIPS, 2, EXACT>(s, c, blocks, early);
	else
		run<STRIPS, 1, EXACT>(s, c, blocks, early);
}

void few_run(struct cuda_state *s, const struct few *f, bool early)
{
	int strips = (int)div_up(f->k, STRIP);
	struct ring_product c = { *f };
	unsigned blocks;

	CHECK(few_fits(f));
	blocks = divide(s, &c);
	if (!s->hopper || f->type != DT_BF16 || f->bias ||
	    strips > (f->norm ? NORM_STRIPS : STRIPS_MOST) ||
	    (size_t)bytes_of(&c) > s->shared_most ||
	    (!early && (int64_t)f->n * f->k < HEAD_LEAST))
		few_run_anywhere(s, f, early);
	else if (f->k == 6 * STRIP)
		run<6, true>(s, &c, blocks, early);
	else if (f->k == 8 * STRIP)
		run<8, true>(s, &c, blocks, early);
	else if (f->k == 16 * STRIP)
		run<16, true>(s, &c, blocks, early);
	else if (f->k == 22 * STRIP)
		run<22, true>(s, &c, blocks, early);
	else if (strips <= 8)
		run<8, false>(s, &c, blocks, early);
	else if (strips <= 16)
		run<16, false>(s, &c, blocks, early);
	else
		run<STRIPS_MOST, false>(s, &c, blocks, early);
}
