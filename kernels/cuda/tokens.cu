/* SPDX-License-Identifier: Apache-2.0
 * What lets sampling run on without the host: rows taken by a counter, tokens drawn, and drawn
 * tokens fed back. */
#include "kernels/cuda/early.cuh"
#include "kernels/cuda/philox.cuh"

__global__ void take_row(float *out, const float *table, int32_t *counter, int64_t rows,
			 int64_t width)
{
	int32_t row = *counter;

	__syncthreads();
	if (threadIdx.x == 0)
		*counter = row + 1;
	row = row < 0 ? 0 : row < rows ? row : (int32_t)(rows - 1);
	for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
		out[c] = table[row * width + c];
}

void cuda_next_row(struct kernels *k, struct tensor out, struct tensor table, struct tensor counter)
{
	struct cuda_state *s = state_of(k);

	CHECK(out.type == DT_F32 && table.type == DT_F32 && counter.type == DT_I32);
	CHECK(table.rank == 2 && table.dim[0] > 0 && tensor_count(&out) == table.dim[1] &&
	      tensor_count(&counter) == 1);
	take_row<<<1, 256, 0, s->stream>>>((float *)out.data, (const float *)table.data,
					   (int32_t *)counter.data, table.dim[0], table.dim[1]);
	LAUNCHED();
}

__global__ void advance_rows(struct token_rows t)
{
	int32_t step;

	wait_for_kernel_ahead();
	step = *t.counter;
	__syncthreads();
	for (int64_t i = threadIdx.x; i < t.n; i += blockDim.x) {
		t.token[i] = t.drawn[i];
		if (step >= 0 && step < t.steps)
			t.history[step * t.n + i] = t.drawn[i];
		if (t.limit[i] >= 0) {
			t.limit[i]++;
			t.position[i]++;
			t.at[i]++;
		}
	}
	if (threadIdx.x == 0)
		*t.counter = step + 1;
}

void cuda_advance_tokens(struct kernels *k, const struct token_rows *t)
{
	struct cuda_state *s = state_of(k);
	cudaLaunchAttribute room;
	cudaLaunchConfig_t shape = launch_shape(s, dim3(1), 64, true, &room);

	CUDA(cudaLaunchKernelEx(&shape, advance_rows, *t));
	LAUNCHED();
}

/* ---- a row of logits shared by a cluster, where there are clusters: each block reads what the
 * others have found. They start while the kernel ahead ends. */
#define THREADS 1024
#define WARPS (THREADS / 32)
#define CLUSTER 8                    /* blocks of a row */

typedef unsigned long long weight_t;

/* Blocks of the cluster, this one among them. */
static __device__ __forceinline__ unsigned peers(void)
{
	unsigned n = 1;

#if __CUDA_ARCH__ >= 900
	asm("mov.u32 %0, %cluster_nctarank;" : "=r"(n));
#endif
	return n;
}

static __device__ __forceinline__ unsigned rank_of_peer(void)
{
	unsigned rank = 0;

#if __CUDA_ARCH__ >= 900
	asm("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
#endif
	return rank;
}

/* Afterwards all have come here, and see what the others wrote before. */
static __device__ __forceinline__ void meet_peers(void)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("barrier.cluster.arrive.release.aligned;\n\t"
		     "barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
	__syncthreads();
#endif
}

/* What a peer has at that place of its shared memory. */
static __device__ __forceinline__ weight_t read_peer(const weight_t *p, unsigned rank)
{
	weight_t v;

#if __CUDA_ARCH__ >= 900
	asm volatile("{\n\t.reg .u32 at;\n\t"
		     "mapa.shared::cluster.u32 at, %1, %2;\n\t"
		     "ld.shared::cluster.u64 %0, [at];\n\t}"
		     : "=l"(v)
		     : "r"((uint32_t)__cvta_generic_to_shared(p)), "r"(rank)
		     : "memory");
#else
	v = *p;
#endif
	return v;
}

/* A launch of a cluster for each row. */
struct row_launch {
	cudaLaunchConfig_t shape;
	cudaLaunchAttribute attribute[2];
};

static void launch_of_rows(struct cuda_state *s, int64_t rows, size_t shared, struct row_launch *l)
{
	const unsigned blocks = s->capability >= 90 ? CLUSTER : 1;

	l->shape = launch_shape(s, dim3((unsigned)rows * blocks), THREADS, true, &l->attribute[0]);
	l->shape.dynamicSmemBytes = shared;
	if (blocks > 1)
		form_clusters(&l->shape, blocks);
}

/* ---- the likeliest token */
/* Order of (value, lower index first) as one number; NaN counts as smallest. */
static __device__ __forceinline__ weight_t ranked(float v, int index)
{
	uint32_t bits = __float_as_uint(v + 0.0f); /* -0 as 0 */

	bits = v != v ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
	return (weight_t)bits << 32 | (0xffffffffu - (uint32_t)index);
}

static __device__ __forceinline__ weight_t warp_most(weight_t x)
{
#pragma unroll
	for (int i = 16; i > 0; i >>= 1)
		x = max(x, __shfl_xor_sync(0xffffffffu, x, i));
	return x;
}

/* The highest rank of a block's part of a row, in its first warp. */
template <bool WIDE, typename T>
static __device__ __forceinline__ weight_t most_of_part(const T *row, int from, int to)
{
	__shared__ weight_t part[WARPS];
	weight_t most = 0;

	for (int c = from + (int)threadIdx.x * 8; c < to; c += THREADS * 8) {
		float x[8];

		get_eight<WIDE>(row + c, to - c, x);
#pragma unroll
		for (int j = 0; j < 8; j++)
			if (c + j < to)
				most = max(most, ranked(x[j], c + j));
	}
	most = warp_most(most);
	if (threadIdx.x % 32 == 0)
		part[threadIdx.x / 32] = most;
	__syncthreads();
	return warp_most(part[threadIdx.x % 32]);
}

template <bool WIDE, typename T>
__global__ void __launch_bounds__(THREADS)
	argmax_rows(int32_t *out, const T *logits, int64_t width, int vocab)
{
	__shared__ weight_t most;
	const int row = (int)(blockIdx.x / peers());
	const int part = (vocab - 1) / (8 * (int)peers()) * 8 + 8;
	const int from = min(part * (int)rank_of_peer(), vocab);
	weight_t x;

	wait_for_kernel_ahead();
	x = most_of_part<WIDE>(logits + row * width, from, min(from + part, vocab));
	if (threadIdx.x == 0)
		most = x;
	meet_peers();
	if (rank_of_peer() == 0 && threadIdx.x < 32) {
		x = warp_most(threadIdx.x < peers() ? read_peer(&most, threadIdx.x) : 0);
		if (threadIdx.x == 0)
			out[row] = (int32_t)(0xffffffffu - (uint32_t)x);
	}
	meet_peers(); /* none ends while another reads */
}

template <typename T>
static void run_argmax(const struct row_launch *l, int32_t *out, const T *logits, int64_t width,
		       int vocab)
{
	bool wide = width % 8 == 0 && aligned16(logits);
	auto kernel = wide ? argmax_rows<true, T> : argmax_rows<false, T>;

	CUDA(cudaLaunchKernelEx(&l->shape, kernel, out, logits, width, vocab));
}

void cuda_argmax(struct kernels *k, struct tensor out, struct tensor logits, int64_t vocab)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = logits.dim[0], width = logits.dim[1];
	struct row_launch l;

	CHECK(out.type == DT_I32 && tensor_count(&out) == rows && vocab > 0 && vocab <= width &&
	      vocab < 1 << 30);
	if (!rows)
		return;
	launch_of_rows(s, rows, 0, &l);
	ACT(logits.type, run_argmax<T>(&l, (int32_t *)out.data, (const T *)logits.data, width,
				       (int)vocab));
	LAUNCHED();
}

/* ---- drawing: tokens are weighed in whole numbers, so that sums are exact in any order, and found
 * by their place in the order likeliest first, digit by digit of the logit's bits. Each block of a
 * cluster reads the others' sums. Most logits share their first digit: lanes with the same one add
 * up first, and each warp has sums of its own. */
#define DIGITS 256
#define LIKELIEST 1099511627776.0f   /* 2^40: the weight of the likeliest token */

/* The block's part of a row's logits and what turns them into weights. */
template <typename T> struct lot {
	const T *logits;
	weight_t (*warp)[DIGITS]; /* sums of the warps, in shared memory */
	weight_t (*mine)[DIGITS]; /* the block's, of this call and the last: peers read them */
	int calls;
	int first, count;  /* of the part: the first token, how many */
	float most, temperature;
};

/* Keeps the order of floats. */
static __device__ __forceinline__ uint32_t key_of(float x)
{
	uint32_t bits = __float_as_uint(x + 0.0f);

	return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ float logit_of(uint32_t key)
{
	return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

template <typename T>
static __device__ __forceinline__ weight_t weight_of(const lot<T> &l, float logit)
{
	return (weight_t)(expf((logit - l.most) / l.temperature) * LIKELIEST);
}

/* The row's highest logit. */
template <typename T> static __device__ float most_of(const lot<T> &l)
{
	__shared__ weight_t most;
	float x = -INFINITY;
	uint32_t key = 0;

	for (int i = (int)threadIdx.x; i < l.count; i += THREADS)
		x = fmaxf(x, to_float(l.logits[i]));
	x = block_max(x);
	if (threadIdx.x == 0)
		most = key_of(x);
	meet_peers();
	for (unsigned i = 0; i < peers(); i++)
		key = max(key, (uint32_t)read_peer(&most, i));
	return logit_of(key);
}

/* The sum of all digits, the same in every thread. */
static __device__ weight_t total_of(const weight_t digit[DIGITS])
{
	weight_t sum = 0;

	for (int d = (int)threadIdx.x % 32; d < DIGITS; d += 32)
		sum += digit[d];
	for (int i = 16; i > 0; i /= 2)
		sum += __shfl_xor_sync(0xffffffffu, sum, i);
	return sum;
}

struct found {
	uint32_t key;
	weight_t before;   /* of the keys above it */
};

/* The digit, from the highest down, at which `before` and the sums in `digit` reach the target;
 * called by the first warp. */
static __device__ void find_digit(const weight_t digit[DIGITS], weight_t target, struct found *f,
				  int shift)
{
	const int each = DIGITS / 32;
	int lane = (int)threadIdx.x;
	weight_t sum = 0, upto, before = f->before;

	for (int i = 0; i < each; i++)
		sum += digit[DIGITS - 1 - lane * each - i];
	upto = sum;
	for (int i = 1; i < 32; i *= 2) {
		weight_t other = __shfl_up_sync(0xffffffffu, upto, i);

		if (lane >= i)
			upto += other;
	}
	__syncwarp();
	if (before + upto < target || before + upto - sum >= target)
		return;
	before += upto - sum;
	for (int i = 0; i < each; i++) {
		int d = DIGITS - 1 - lane * each - i;

		if (before + digit[d] >= target) {
			f->key |= (uint32_t)d << shift;
			f->before = before;
			return;
		}
		before += digit[d];
	}
}

/* digit[d] = sum of the row's weights whose key begins as f's and goes on with d. */
template <typename T>
static __device__ void add_digits(lot<T> &l, weight_t digit[DIGITS], uint32_t key, uint32_t above,
				  int shift)
{
	weight_t *of_warp = l.warp[threadIdx.x / 32], *mine = l.mine[l.calls++ % 2], sum = 0;
	int lane = (int)threadIdx.x % 32;

	for (int d = lane; d < DIGITS; d += 32)
		of_warp[d] = 0;
	__syncwarp();
	for (int first = 0; first < l.count; first += THREADS) {
		int i = first + (int)threadIdx.x;
		float x = i < l.count ? to_float(l.logits[i]) : -INFINITY;
		uint32_t k = key_of(x), d = k >> shift & (DIGITS - 1);
		weight_t w = i < l.count && (k & above) == (key & above) ? weight_of(l, x) : 0;
		unsigned there = __ballot_sync(0xffffffffu, w > 0);

		if (w > 0) {
			unsigned same = __match_any_sync(there, d);
			weight_t low = __reduce_add_sync(same, (unsigned)w & ((1u << 20) - 1));
			weight_t high = __reduce_add_sync(same, (unsigned)(w >> 20));

			if (lane == __ffs((int)same) - 1)
				of_warp[d] += (high << 20) + low;
		}
		__syncwarp();
	}
	__syncthreads();
	if (threadIdx.x < DIGITS) {
		for (int w = 0; w < WARPS; w++)
			sum += l.warp[w][threadIdx.x];
		mine[threadIdx.x] = sum;
	}
	meet_peers();
	if (threadIdx.x < DIGITS) {
		sum = 0;
		for (unsigned i = 0; i < peers(); i++)
			sum += read_peer(mine + threadIdx.x, i);
		digit[threadIdx.x] = sum;
	}
	__syncthreads();
}

/* The key at which the weights, likeliest first, add up to the target (1 .. total). first: the sums
 * of the first digits. */
template <typename T>
static __device__ struct found find_weight(lot<T> &l, weight_t target,
					   const weight_t first[DIGITS])
{
	__shared__ weight_t digit[DIGITS];
	__shared__ struct found f;
	const int lowest = sizeof(T) == 2 ? 16 : 0; /* bf16 has no bits below */
	uint32_t above = 0;
	struct found result;

	if (threadIdx.x == 0) {
		f.key = 0;
		f.before = 0;
	}
	__syncthreads();
	for (int shift = 24; shift >= lowest; shift -= 8) {
		if (shift < 24)
			add_digits(l, digit, f.key, above, shift);
		if (threadIdx.x < 32)
			find_digit(shift == 24 ? first : digit, target, &f, shift);
		above |= (uint32_t)(DIGITS - 1) << shift;
		__syncthreads();
	}
	result = f;
	if (lowest && !(result.key >> 31))
		result.key |= (1u << lowest) - 1;
	return result;
}

/* The token that is number `place` (from 1) of those with the key, by index; in thread order. */
template <typename T>
static __device__ void put_place(int32_t *out, const lot<T> &l, uint32_t key, weight_t place)
{
	__shared__ int warp_count[WARPS];
	__shared__ weight_t count;
	int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, all = 0;
	weight_t before = 0;

	for (int first = 0; first < l.count; first += THREADS) {
		int i = first + (int)threadIdx.x;

		all += __syncthreads_count(i < l.count && key_of(to_float(l.logits[i])) == key);
	}
	if (threadIdx.x == 0)
		count = (weight_t)all;
	meet_peers();
	for (unsigned i = 0; i < rank_of_peer(); i++)
		before += read_peer(&count, i);
	meet_peers(); /* none ends while another reads */
	if (place <= before || place > before + (weight_t)all)
		return;
	place -= before;
	for (int first = 0; first < l.count; first += THREADS) {
		int i = first + (int)threadIdx.x;
		bool mine = i < l.count && key_of(to_float(l.logits[i])) == key;
		unsigned here = __ballot_sync(0xffffffffu, mine);
		weight_t rank = (weight_t)__popc(here & ((1u << lane) - 1));

		all = __syncthreads_count(mine);
		if (place > (weight_t)all) {
			place -= (weight_t)all;
			continue;
		}
		if (lane == 0)
			warp_count[warp] = __popc(here);
		__syncthreads();
		for (int w = 0; w < warp; w++)
			rank += (weight_t)warp_count[w];
		if (mine && rank == place - 1)
			*out = l.first + i;
		return;
	}
}

static __device__ __forceinline__ weight_t divide_up(weight_t a, weight_t b)
{
	return (a + b - 1) / b;
}

template <typename T>
__global__ void __launch_bounds__(THREADS, 1)
	draw_rows(int32_t *out, const T *logits, int64_t width, int vocab, float temperature,
		  float top_p, uint32_t key0, uint32_t key1, const int64_t *index,
		  const int32_t *position)
{
	extern __shared__ __align__(16) weight_t sums[][DIGITS];
	__shared__ weight_t first[DIGITS], mine[2][DIGITS];
	const int row = (int)(blockIdx.x / peers()), part = (vocab - 1) / (int)peers() + 1;
	const int from = min(part * (int)rank_of_peer(), vocab);
	lot<T> l = { logits + row * width + from, sums,      mine, 0, from,
		     min(part, vocab - from),     -INFINITY, temperature };
	weight_t total, kept, each, target;
	struct found f;
	uint32_t c[4];

	wait_for_kernel_ahead();
	l.most = most_of(l);
	add_digits(l, first, 0, 0, 24);
	kept = total = total_of(first);
	target = (weight_t)ceil((double)top_p * (double)total);
	if (target < total) {
		f = find_weight(l, target < 1 ? 1 : target, first);
		each = weight_of(l, logit_of(f.key));
		kept = f.before + divide_up(target - f.before, each) * each;
	}
	c[0] = (uint32_t)position[row] + 1;
	c[1] = 0;
	c[2] = (uint32_t)index[row];
	c[3] = (uint32_t)((uint64_t)index[row] >> 32);
	philox(c, key0, key1);
	target = (weight_t)((double)(c[0] >> 8) * 0x1p-24 * (double)kept) + 1;
	__syncthreads();
	f = find_weight(l, target, first);
	each = weight_of(l, logit_of(f.key));
	put_place(out + row, l, f.key, divide_up(target - f.before, each));
}

template <typename T>
static void run_draw(struct cuda_state *s, int32_t *out, struct tensor logits, int vocab,
		     float temperature, float top_p, uint64_t seed, const int64_t *index,
		     const int32_t *position)
{
	const size_t sums = WARPS * DIGITS * sizeof(weight_t);
	struct row_launch l;

	CUDA(cudaFuncSetAttribute(draw_rows<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
				  (int)sums));
	launch_of_rows(s, logits.dim[0], sums, &l);
	CUDA(cudaLaunchKernelEx(&l.shape, draw_rows<T>, out, (const T *)logits.data, logits.dim[1],
				vocab, temperature, top_p, (uint32_t)seed,
				philox_key(seed, PHILOX_TEXT), index, position));
	LAUNCHED();
}

void cuda_draw_tokens(struct kernels *k, struct tensor out, struct tensor logits, int64_t vocab,
		      float temperature, float top_p, uint64_t seed, struct tensor index,
		      struct tensor position)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = tensor_count(&out);

	CHECK(out.type == DT_I32 && logits.rank == 2 && logits.dim[0] == rows && vocab > 0 &&
	      vocab <= logits.dim[1] && vocab < 1 << 22);
	CHECK(index.type == DT_I64 && tensor_count(&index) == rows && position.type == DT_I32 &&
	      tensor_count(&position) == rows && temperature > 0);
	if (!rows)
		return;
	ACT(logits.type, run_draw<T>(s, (int32_t *)out.data, logits, (int)vocab, temperature, top_p,
				     seed, (const int64_t *)index.data,
				     (const int32_t *)position.data));
}
