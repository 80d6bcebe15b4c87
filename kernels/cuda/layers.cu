/* SPDX-License-Identifier: Apache-2.0
 * All layers of sampling. One row a sequence and at most FEW_ROWS of them (tokens): five kernels a
 * layer, each of which reads its weights or cache while the one ahead of it ends. Otherwise
 * (prompts, pictures): products with what follows them (fused.cu), or the library's and one kernel
 * that turns queries and keys and fills the cache; residuals are added inside the products. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/few.cuh"
#include "kernels/cuda/fused.cuh"

/* ---- one query a sequence: a block takes CHUNK keys of a head, the last one to finish adds up */
#define GROUPS 16  /* of lanes, each over one key at a time */
#define STEPS 8    /* keys of a group */
#define CHUNK (GROUPS * STEPS)
#define HEAD_MOST 128

struct query {
	const bf16 *qkv;                        /* [S, 3, heads, hd], not turned yet */
	bf16 *keys, *values;                    /* [S, capacity, heads * hd] */
	bf16 *out;                              /* [S, heads * hd] */
	const float *cosine, *sine;             /* [positions, hd / 2] */
	const int32_t *position, *at, *limit;   /* [S] */
	float *part;                            /* [S, heads, chunks, hd + 2] */
	unsigned *arrived;                      /* [S, heads], zero before and after */
	int heads, capacity;
	float scale;                            /* with log2(e) in it */
};

/* Elements c .. c+7 of a head turned to a position, rounded as they are stored. */
static __device__ __forceinline__ uint4 turn(const bf16 *head, const float *cosine,
					     const float *sine, int c, int half)
{
	int other = c < half ? c + half : c - half, at = c < half ? c : c - half;
	float x[8], y[8], cs[8], sn[8], sign = c < half ? -1.0f : 1.0f;

	load8(head + c, x);
	load8(head + other, y);
	load8(cosine + at, cs);
	load8(sine + at, sn);
#pragma unroll
	for (int i = 0; i < 8; i++)
		x[i] = x[i] * cs[i] + sign * y[i] * sn[i];
	return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
			  pack_bf16(x[6], x[7]));
}

static __device__ __forceinline__ void unpack(uint4 v, float x[8])
{
	uint32_t w[4] = { v.x, v.y, v.z, v.w };

#pragma unroll
	for (int i = 0; i < 4; i++) {
		x[2 * i] = __uint_as_float(w[i] << 16);
		x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
	}
}

/* The group's softmax over its keys and the values' sum: most, sum and o. */
template <int LANES>
static __device__ __forceinline__ void attend_group(const float q[8], const uint4 key[STEPS],
						    const uint4 value[STEPS], int first, int to,
						    float o[8], float *most, float *sum)
{
	float score[STEPS];

	*most = -INFINITY;
	*sum = 0.0f;
#pragma unroll
	for (int i = 0; i < STEPS; i++) {
		float x[8], dot = 0.0f;

		unpack(key[i], x);
#pragma unroll
		for (int j = 0; j < 8; j++)
			dot += q[j] * x[j];
#pragma unroll
		for (int j = LANES / 2; j > 0; j >>= 1)
			dot += __shfl_xor_sync(0xffffffffu, dot, j);
		score[i] = first + i * GROUPS <= to ? dot : -INFINITY;
		*most = fmaxf(*most, score[i]);
	}
#pragma unroll
	for (int i = 0; i < STEPS; i++) {
		float x[8], w = score[i] == -INFINITY ? 0.0f : exp2f(score[i] - *most);

		*sum += w;
		unpack(value[i], x);
#pragma unroll
		for (int j = 0; j < 8; j++)
			o[j] += w * x[j];
	}
}

/* A head's partial softmaxes put together, element e: from n parts `stride` apart, in order. */
struct merged {
	float most, sum, value;
};

static __device__ __forceinline__ struct merged merge(const volatile float *value,
						      const volatile float *most,
						      const volatile float *sum, int n,
						      int value_stride, int stride)
{
	struct merged m = { -INFINITY, 0.0f, 0.0f };

	for (int i = 0; i < n; i++)
		m.most = fmaxf(m.most, most[i * stride]);
	for (int i = 0; i < n && m.most > -INFINITY; i++) {
		float w = exp2f(most[i * stride] - m.most);

		m.sum += w * sum[i * stride];
		m.value += w * value[i * value_stride];
	}
	return m;
}

/* Whether this block is the last of its head's; the others' parts are there then. */
static __device__ __forceinline__ bool last_to_arrive(unsigned *arrived, int chunks)
{
	__shared__ bool last;

	__threadfence();
	__syncthreads();
	if (threadIdx.x == 0)
		last = atomicInc(arrived, (unsigned)chunks - 1) == (unsigned)chunks - 1;
	__syncthreads();
	__threadfence();
	return last;
}

/* What the block's chunk holds: the row's new key and value where they belong to it. */
struct chunk {
	int first, to, place;
	uint4 key, value;
};

template <int LANES>
static __device__ __forceinline__ void attend_chunk(const struct query &a, const struct chunk &n,
						    uint4 turned, int64_t cache, int64_t row,
						    float *heads, float *parts)
{
	int group = (int)threadIdx.x / LANES, c = (int)threadIdx.x % LANES * 8;
	const uint4 none = { 0, 0, 0, 0 };
	uint4 key[STEPS], value[STEPS];
	float q[8], o[8] = {}, most, sum;

#pragma unroll
	for (int i = 0; i < STEPS; i++) {
		int j = n.first + group + i * GROUPS;
		int64_t at = cache + j * row + c;

		key[i] = value[i] = none;
		if (j <= n.to && j != n.place) {
			key[i] = *reinterpret_cast<const uint4 *>(a.keys + at);
			value[i] = *reinterpret_cast<const uint4 *>(a.values + at);
		} else if (j <= n.to) {
			key[i] = n.key;
			value[i] = n.value;
		}
	}
	unpack(turned, q);
#pragma unroll
	for (int i = 0; i < 8; i++)
		q[i] *= a.scale;
	attend_group<LANES>(q, key, value, n.first + group, n.to, o, &most, &sum);
	store8(heads + group * LANES * 8 + c, o);
	if (c == 0) {
		parts[group] = most;
		parts[GROUPS + group] = sum;
	}
}

/* grid: chunks, heads, sequences; LANES * GROUPS threads. */
template <int LANES>
__global__ void __launch_bounds__(LANES * GROUPS) attend_query(struct query a)
{
	const int hd = LANES * 8;
	__shared__ float heads[GROUPS * HEAD_MOST], parts[2 * GROUPS];
	int head = (int)blockIdx.y, s = (int)blockIdx.z, chunks = (int)gridDim.x;
	int thread = (int)threadIdx.x, c = thread % LANES * 8;
	int64_t row = (int64_t)a.heads * hd, cache = s * a.capacity * row + head * hd;
	float *part = a.part + ((int64_t)s * a.heads + head) * chunks * (hd + 2);
	struct chunk n = { (int)blockIdx.x * CHUNK, -1, -1 };

	let_kernel_behind_start();
	wait_for_kernel_ahead();
	if (a.limit[s] >= 0) {
		const bf16 *q = a.qkv + s * 3 * row + head * hd;
		const float *cosine = a.cosine + (int64_t)a.position[s] * (hd / 2),
			    *sine = a.sine + (int64_t)a.position[s] * (hd / 2);
		int place = a.at[s];

		n.to = min(a.limit[s], a.capacity - 1);
		if (place >= n.first && place < min(n.first + CHUNK, a.capacity)) {
			n.place = place;
			n.key = turn(q + row, cosine, sine, c, hd / 2);
			n.value = *reinterpret_cast<const uint4 *>(q + 2 * row + c);
		}
		if (n.place >= 0 && thread < LANES) {
			*reinterpret_cast<uint4 *>(a.keys + cache + place * row + c) = n.key;
			*reinterpret_cast<uint4 *>(a.values + cache + place * row + c) = n.value;
		}
		if (n.first <= n.to)
			attend_chunk<LANES>(a, n, turn(q, cosine, sine, c, hd / 2), cache, row,
					    heads, parts);
	}
	__syncthreads();
	if (n.first <= n.to && thread < hd) {
		struct merged m = merge(heads + thread, parts, parts + GROUPS, GROUPS, hd, 1);

		part[(int)blockIdx.x * (hd + 2) + thread] = m.value;
		if (thread == 0) {
			part[(int)blockIdx.x * (hd + 2) + hd] = m.most;
			part[(int)blockIdx.x * (hd + 2) + hd + 1] = m.sum;
		}
	}
	if (last_to_arrive(a.arrived + s * a.heads + head, chunks) && thread < hd) {
		struct merged m = merge(part + thread, part + hd, part + hd + 1,
					n.to < 0 ? 0 : n.to / CHUNK + 1, hd + 2, hd + 2);

		put(a.out + s * row + head * hd + thread, m.sum > 0.0f ? m.value / m.sum : 0.0f);
	}
}

static void run_query(struct cuda_state *s, const struct query *a, int sequences, int hd)
{
	cudaLaunchAttribute room;
	dim3 grid((unsigned)div_up(a->capacity, CHUNK), (unsigned)a->heads, (unsigned)sequences);
	cudaLaunchConfig_t shape = launch_shape(s, grid, (unsigned)hd / 8 * GROUPS, true, &room);

	if (hd == 32)
		CUDA(cudaLaunchKernelEx(&shape, attend_query<4>, *a));
	else if (hd == 64)
		CUDA(cudaLaunchKernelEx(&shape, attend_query<8>, *a));
	else
		CUDA(cudaLaunchKernelEx(&shape, attend_query<16>, *a));
	LAUNCHED();
}

/* ---- tokens */
static struct few product_of(const struct tensor *out, const struct tensor *x,
			     const struct tensor *w, const struct tensor *norm, float eps)
{
	struct few f = {};

	f.x = (const bf16 *)x->data;
	f.w = (const bf16 *)w->data;
	f.out = out->data;
	f.norm = norm ? (const float *)norm->data : NULL;
	f.eps = eps;
	f.m = (int)x->dim[0];
	f.n = (int)out->dim[1];
	f.k = (int)x->dim[1];
	f.add = !norm;
	f.type = DT_BF16;
	return f;
}

static struct few gate_up_of(const struct cached_layers *c, const struct cached_layer *l)
{
	struct few f = product_of(&c->swiglu, &c->x, &l->gate_up, &l->ff_norm, c->eps);

	f.swiglu = true;
	return f;
}

static bool tokens_fit(const struct cuda_state *s, const struct cached_layers *c)
{
	int64_t rows = c->x.dim[0], d = c->x.dim[1], hd = d / c->heads;

	if (!c->layers || c->x.type != DT_BF16 || rows != tensor_count(&c->at) || rows > FEW_ROWS ||
	    rows < 1 || rows * c->heads > ARRIVALS || !(hd == 32 || hd == 64 || hd == 128))
		return false;
	if (!aligned16(c->qkv.data) || !aligned16(c->attention.data) ||
	    !aligned16(c->swiglu.data) || !aligned16(c->cosine.data) || !aligned16(c->sine.data))
		return false;
	for (int i = 0; i < c->layers; i++) {
		const struct cached_layer *l = &c->layer[i];
		struct few part[4] = {
			product_of(&c->qkv, &c->x, &l->qkv, &l->attention_norm, c->eps),
			product_of(&c->x, &c->attention, &l->attention_out, NULL, 0),
			gate_up_of(c, l), product_of(&c->x, &c->swiglu, &l->down, NULL, 0)
		};

		for (int j = 0; j < 4; j++)
			if (!few_fits(&part[j]))
				return false;
		if (!aligned16(l->keys.data) || !aligned16(l->values.data))
			return false;
	}
	return s->arrived != NULL;
}

static void run_tokens(struct cuda_state *s, const struct cached_layers *c)
{
	int rows = (int)c->x.dim[0], hd = (int)c->x.dim[1] / c->heads;
	int capacity = (int)c->layer[0].keys.dim[1];
	struct query q = {};

	q.qkv = (const bf16 *)c->qkv.data;
	q.out = (bf16 *)c->attention.data;
	q.cosine = (const float *)c->cosine.data;
	q.sine = (const float *)c->sine.data;
	q.position = (const int32_t *)c->position.data;
	q.at = (const int32_t *)c->at.data;
	q.limit = (const int32_t *)c->limit.data;
	q.part = (float *)cuda_scratch(s, (size_t)rows * c->heads * div_up(capacity, CHUNK) *
						  (hd + 2) * sizeof(float));
	q.arrived = s->arrived;
	q.heads = c->heads;
	q.capacity = capacity;
	q.scale = 1.44269504f / sqrtf((float)hd);
	for (int i = 0; i < c->layers; i++) {
		const struct cached_layer *l = &c->layer[i];
		struct few qkv = product_of(&c->qkv, &c->x, &l->qkv, &l->attention_norm, c->eps);
		struct few out = product_of(&c->x, &c->attention, &l->attention_out, NULL, 0);
		struct few gate_up = gate_up_of(c, l);
		struct few down = product_of(&c->x, &c->swiglu, &l->down, NULL, 0);

		q.keys = (bf16 *)l->keys.data;
		q.values = (bf16 *)l->values.data;
		few_run(s, &qkv, true);
		run_query(s, &q, rows, hd);
		few_run(s, &out, true);
		few_run(s, &gate_up, true);
		few_run(s, &down, true);
	}
}

/* ---- many rows */

/* Turns the queries in place and the keys on their way to the cache; a thread takes eight pairs of
 * a head of the query, the key or the value. */
template <bool WIDE, typename T>
__global__ void turn_and_append(T *qkv, T *keys, T *values, const float *cosine, const float *sine,
				const int32_t *position, const int32_t *at, const int32_t *limit,
				int64_t rows, int64_t n, int64_t capacity, int heads, int half)
{
	int eights = (half + 7) / 8;
	int64_t width = (int64_t)heads * half * 2;

	EACH (i, rows * 3 * heads * eights) {
		int c = (int)(i % eights) * 8, head = (int)(i / eights % heads);
		int kind = (int)(i / eights / heads % 3);
		int64_t row = i / eights / heads / 3, place = at[row / n] + row % n;
		T *from = qkv + row * 3 * width + kind * width + head * 2 * half + c, *to = from;
		float a[8], b[8], cs[8], sn[8], x[8], y[8];

		if (kind > 0 && (limit[row] < 0 || place < 0 || place >= capacity))
			continue;
		if (kind > 0)
			to = (kind == 1 ? keys : values) + (row / n * capacity + place) * width +
			     head * 2 * half + c;
		get_eight<WIDE>(from, half - c, a);
		get_eight<WIDE>(from + half, half - c, b);
		if (kind == 2) {
			put_eight<WIDE>(to, half - c, a);
			put_eight<WIDE>(to + half, half - c, b);
			continue;
		}
		get_eight<WIDE>(cosine + (int64_t)position[row] * half + c, half - c, cs);
		get_eight<WIDE>(sine + (int64_t)position[row] * half + c, half - c, sn);
#pragma unroll
		for (int j = 0; j < 8; j++) {
			x[j] = a[j] * cs[j] - b[j] * sn[j];
			y[j] = b[j] * cs[j] + a[j] * sn[j];
		}
		put_eight<WIDE>(to, half - c, x);
		put_eight<WIDE>(to + half, half - c, y);
	}
}

static void run_turn(struct cuda_state *s, const struct cached_layers *c,
		     const struct cached_layer *l)
{
	int64_t rows = c->x.dim[0], sequences = tensor_count(&c->at), capacity = l->keys.dim[1];
	int half = (int)c->cosine.dim[1];
	unsigned grid = grid_for(s, rows * 3 * c->heads * div_up(half, 8), 256);
	bool wide = half % 8 == 0 && aligned16(c->qkv.data) && aligned16(l->keys.data) &&
		    aligned16(l->values.data) && aligned16(c->cosine.data) &&
		    aligned16(c->sine.data);
	const float *cosine = (const float *)c->cosine.data, *sine = (const float *)c->sine.data;
	const int32_t *position = (const int32_t *)c->position.data;
	const int32_t *at = (const int32_t *)c->at.data, *limit = (const int32_t *)c->limit.data;

	if (wide)
		ACT(c->x.type, turn_and_append<true><<<grid, 256, 0, s->stream>>>(
				       (T *)c->qkv.data, (T *)l->keys.data, (T *)l->values.data,
				       cosine, sine, position, at, limit, rows, rows / sequences,
				       capacity, c->heads, half));
	else
		ACT(c->x.type, turn_and_append<false><<<grid, 256, 0, s->stream>>>(
				       (T *)c->qkv.data, (T *)l->keys.data, (T *)l->values.data,
				       cosine, sine, position, at, limit, rows, rows / sequences,
				       capacity, c->heads, half));
	LAUNCHED();
}

static void product(struct kernels *k, const struct tensor *y, const struct tensor *x,
		    const struct tensor *w, bool add)
{
	struct tensor none = {};

	cuda_matmul(k, *y, *x, false, *w, true, none, add ? 1.0f : 0.0f);
}

static void run_qkv(struct kernels *k, const struct cached_layers *c, const struct cached_layer *l)
{
	const struct fused_turn t = {
		(const float *)c->cosine.data,
		(const float *)c->sine.data,
		(const int32_t *)c->position.data,
		(const int32_t *)c->limit.data,
		(const int32_t *)c->at.data,
		(bf16 *)l->keys.data,
		(bf16 *)l->values.data,
		(int)(c->x.dim[0] / tensor_count(&c->at)),
		(int)l->keys.dim[1],
		(int)(2 * c->cosine.dim[1]),
	};

	if (fused_qkv_fits(state_of(k), &c->qkv, &c->h, &l->qkv, &t)) {
		fused_qkv(state_of(k), &c->qkv, &c->h, &l->qkv, &t);
		return;
	}
	product(k, &c->qkv, &c->h, &l->qkv, false);
	run_turn(state_of(k), c, l);
}

static void run_gate_up(struct kernels *k, const struct cached_layers *c,
			const struct cached_layer *l)
{
	if (fused_swiglu_fits(state_of(k), &c->swiglu, &c->h, &l->gate_up)) {
		fused_swiglu(state_of(k), &c->swiglu, &c->h, &l->gate_up);
		return;
	}
	product(k, &c->gate_up, &c->h, &l->gate_up, false);
	cuda_swiglu(k, c->swiglu, c->gate_up);
}

static void run_rows(struct kernels *k, const struct cached_layers *c)
{
	struct cuda_state *s = state_of(k);
	struct attend_plan plan = { NULL, NULL, c->layers };

	for (int i = 0; i < c->layers; i++) {
		const struct cached_layer *l = &c->layer[i];

		cuda_rmsnorm(k, c->h, c->rstd, c->x, l->attention_norm, c->eps);
		run_qkv(k, c, l);
		attend_cache(s, &c->attention, &c->qkv, c->heads, &l->keys, &l->values, &c->limit,
			     &plan);
		product(k, &c->x, &c->attention, &l->attention_out, true);
		cuda_rmsnorm(k, c->h, c->rstd, c->x, l->ff_norm, c->eps);
		run_gate_up(k, c, l);
		product(k, &c->x, &c->swiglu, &l->down, true);
	}
}

void cuda_cached_layers(struct kernels *k, const struct cached_layers *c)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = c->x.dim[0], sequences = tensor_count(&c->at), d = c->x.dim[1];

	CHECK(c->position.type == DT_I32 && c->limit.type == DT_I32 && c->at.type == DT_I32);
	CHECK(tensor_count(&c->position) == rows && tensor_count(&c->limit) == rows);
	CHECK(c->cosine.type == DT_F32 && c->sine.type == DT_F32 && c->heads > 0 &&
	      d == 2 * c->cosine.dim[1] * c->heads);
	if (!rows)
		return;
	CHECK(sequences > 0 && rows % sequences == 0);
	for (int i = 0; i < c->layers; i++) {
		const struct cached_layer *l = &c->layer[i];

		CHECK(l->keys.rank == 3 && l->keys.dim[0] == sequences && l->keys.dim[2] == d);
		CHECK(l->keys.type == c->x.type && l->values.type == c->x.type &&
		      tensor_count(&l->values) == tensor_count(&l->keys) &&
		      l->keys.dim[1] == c->layer[0].keys.dim[1]);
		CHECK(l->qkv.type == c->x.type && tensor_count(&l->qkv) == 3 * d * d);
	}
	if (tokens_fit(s, c))
		run_tokens(s, c);
	else
		run_rows(k, c);
	cuda_rmsnorm(k, c->out, c->rstd, c->x, c->norm, c->eps);
}
