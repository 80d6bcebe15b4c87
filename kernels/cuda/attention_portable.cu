/* SPDX-License-Identifier: Apache-2.0
 * Attention for any type, head dim (up to 256) and device: a warp a query (forward, dq) or a key
 * (dk, dv), lanes across the head. Plain rather than fast, and the measure for the fast versions.
 * attention_decode is the fast one for few queries. */
#include "kernels/cuda/attention.cuh"

#define LANE_ELEMENTS 8 /* head dim up to 256 */
#define WARPS 4

template <typename T>
static __device__ __forceinline__ void get_head(float x[LANE_ELEMENTS], const T *row, int hd)
{
#pragma unroll
	for (int i = 0; i < LANE_ELEMENTS; i++) {
		int c = i * 32 + (int)threadIdx.x % 32;

		x[i] = c < hd ? to_float(row[c]) : 0.0f;
	}
}

template <typename T>
static __device__ __forceinline__ void put_head(T *row, const float x[LANE_ELEMENTS], float by,
						int hd)
{
#pragma unroll
	for (int i = 0; i < LANE_ELEMENTS; i++) {
		int c = i * 32 + (int)threadIdx.x % 32;

		if (c < hd)
			put(row + c, by * x[i]);
	}
}

static __device__ __forceinline__ float dot(const float x[LANE_ELEMENTS],
					    const float y[LANE_ELEMENTS])
{
	float sum = 0.0f;

#pragma unroll
	for (int i = 0; i < LANE_ELEMENTS; i++)
		sum += x[i] * y[i];
	return warp_sum(sum);
}

static __device__ __forceinline__ void add_scaled(float to[LANE_ELEMENTS], float by,
						  const float x[LANE_ELEMENTS])
{
#pragma unroll
	for (int i = 0; i < LANE_ELEMENTS; i++)
		to[i] += by * x[i];
}

/* The warp's (sequence, head, row) among batch * heads * rows. */
struct row_place {
	int sequence, head, row;
	bool valid;
};

static __device__ __forceinline__ struct row_place row_place_of(const struct attend &a, int rows)
{
	int64_t w = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
	struct row_place p = { (int)(w / rows / a.heads), (int)(w / rows % a.heads),
			       (int)(w % rows), w < (int64_t)a.batch * a.heads * rows };
	return p;
}

static __device__ __forceinline__ int64_t q_at(const struct attend &a, const struct row_place &p,
					       int row)
{
	return p.sequence * a.q_sequence + row * a.q_row + (int64_t)p.head * a.hd;
}

static __device__ __forceinline__ int64_t kv_at(const struct attend &a, const struct row_place &p,
						int row)
{
	return p.sequence * a.kv_sequence + row * a.kv_row + (int64_t)p.head * a.hd;
}

static __device__ __forceinline__ int64_t out_at(const struct attend &a, const struct row_place &p,
						 int row)
{
	return (((int64_t)p.sequence * a.queries + row) * a.heads + p.head) * a.hd;
}

static __device__ __forceinline__ int64_t lse_at(const struct attend &a, const struct row_place &p,
						 int row)
{
	return ((int64_t)p.sequence * a.heads + p.head) * a.queries + row;
}

template <typename T>
__global__ void attend_rows(struct attend a, float scale)
{
	struct row_place p = row_place_of(a, a.queries);
	float q[LANE_ELEMENTS], kv[LANE_ELEMENTS], o[LANE_ELEMENTS] = {}, most = -INFINITY,
						   sum = 0.0f;
	int from, to;

	if (!p.valid)
		return;
	from = a.start ? a.start[p.sequence * a.queries + p.row] : 0;
	to = min(a.limit[p.sequence * a.queries + p.row], a.keys - 1);
	get_head(q, (const T *)a.q + q_at(a, p, p.row), a.hd);
	for (int j = from; j <= to; j++) {
		float x, now;

		get_head(kv, (const T *)a.k + kv_at(a, p, j), a.hd);
		x = scale * dot(q, kv);
		now = fmaxf(most, x);
		x = expf(x - now);
		most = expf(most - now);
		sum = sum * most + x;
		get_head(kv, (const T *)a.v + kv_at(a, p, j), a.hd);
#pragma unroll
		for (int i = 0; i < LANE_ELEMENTS; i++)
			o[i] = o[i] * most + x * kv[i];
		most = now;
	}
	put_head((T *)a.out + out_at(a, p, p.row), o, sum > 0.0f ? 1.0f / sum : 0.0f, a.hd);
	if (a.lse && threadIdx.x % 32 == 0)
		a.lse[lse_at(a, p, p.row)] = most + logf(sum);
}

/* delta = dout . out, the softmax gradient's row term. */
template <typename T>
__global__ void attend_delta(struct attend_backward b, float *delta)
{
	struct row_place p = row_place_of(b.f, b.f.queries);
	float x[LANE_ELEMENTS], y[LANE_ELEMENTS], sum;

	if (!p.valid)
		return;
	get_head(x, (const T *)b.f.out + out_at(b.f, p, p.row), b.f.hd);
	get_head(y, (const T *)b.dout + out_at(b.f, p, p.row), b.f.hd);
	sum = dot(x, y);
	if (threadIdx.x % 32 == 0)
		delta[lse_at(b.f, p, p.row)] = sum;
}

template <typename T>
__global__ void attend_dq(struct attend_backward b, const float *delta, float scale)
{
	const struct attend &a = b.f;
	struct row_place p = row_place_of(a, a.queries);
	float q[LANE_ELEMENTS], g[LANE_ELEMENTS], x[LANE_ELEMENTS], v[LANE_ELEMENTS],
		dq[LANE_ELEMENTS] = {};

	if (!p.valid)
		return;
	get_head(q, (const T *)a.q + q_at(a, p, p.row), a.hd);
	get_head(g, (const T *)b.dout + out_at(a, p, p.row), a.hd);
	for (int j = a.start[p.sequence * a.queries + p.row];
	     j <= a.limit[p.sequence * a.queries + p.row]; j++) {
		float w;

		get_head(x, (const T *)a.k + kv_at(a, p, j), a.hd);
		get_head(v, (const T *)a.v + kv_at(a, p, j), a.hd);
		w = expf(scale * dot(q, x) - a.lse[lse_at(a, p, p.row)]);
		add_scaled(dq, w * (dot(g, v) - delta[lse_at(a, p, p.row)]), x);
	}
	put_head((T *)b.dq + q_at(a, p, p.row), dq, scale, a.hd);
}

template <typename T>
__global__ void attend_dkv(struct attend_backward b, const float *delta, float scale)
{
	const struct attend &a = b.f;
	struct row_place p = row_place_of(a, a.keys);
	float k[LANE_ELEMENTS], v[LANE_ELEMENTS], x[LANE_ELEMENTS], g[LANE_ELEMENTS];
	float dk[LANE_ELEMENTS] = {}, dv[LANE_ELEMENTS] = {};

	if (!p.valid)
		return;
	get_head(k, (const T *)a.k + kv_at(a, p, p.row), a.hd);
	get_head(v, (const T *)a.v + kv_at(a, p, p.row), a.hd);
	for (int i = 0; i < a.queries; i++) {
		float w;

		if (a.start[p.sequence * a.queries + i] > p.row ||
		    a.limit[p.sequence * a.queries + i] < p.row)
			continue;
		get_head(x, (const T *)a.q + q_at(a, p, i), a.hd);
		get_head(g, (const T *)b.dout + out_at(a, p, i), a.hd);
		w = expf(scale * dot(x, k) - a.lse[lse_at(a, p, i)]);
		add_scaled(dv, w, g);
		add_scaled(dk, w * (dot(g, v) - delta[lse_at(a, p, i)]), x);
	}
	put_head((T *)b.dk + kv_at(a, p, p.row), dk, scale, a.hd);
	put_head((T *)b.dv + kv_at(a, p, p.row), dv, 1.0f, a.hd);
}

static unsigned blocks_for(const struct attend *a, int rows)
{
	return (unsigned)div_up((int64_t)a->batch * a->heads * rows, WARPS);
}

void attention_portable(struct cuda_state *s, const struct attend *a)
{
	CHECK(a->hd <= 32 * LANE_ELEMENTS);
	ACT(a->type, attend_rows<T><<<blocks_for(a, a->queries), WARPS * 32, 0, s->stream>>>(
			     *a, 1.0f / sqrtf((float)a->hd)));
	LAUNCHED();
}

void attention_portable_backward(struct cuda_state *s, const struct attend_backward *b)
{
	const struct attend *a = &b->f;
	float scale = 1.0f / sqrtf((float)a->hd);
	float *delta =
		(float *)cuda_scratch(s, (size_t)a->batch * a->heads * a->queries * sizeof *delta);

	CHECK(a->hd <= 32 * LANE_ELEMENTS && a->start);
	ACT(a->type,
	    attend_delta<T><<<blocks_for(a, a->queries), WARPS * 32, 0, s->stream>>>(*b, delta);
	    attend_dq<T><<<blocks_for(a, a->queries), WARPS * 32, 0, s->stream>>>(*b, delta, scale);
	    attend_dkv<T><<<blocks_for(a, a->keys), WARPS * 32, 0, s->stream>>>(*b, delta, scale));
	LAUNCHED();
}

/* ---- few queries: LANES lanes hold a head, so that a warp reads 32 / LANES keys at once; each
 * such group keeps its own running softmax, merged through shared memory at the end in a fixed
 * order. */
#define DECODE_THREADS 512

struct partial {
	float most, sum;
};

template <typename T, int LANES>
static __device__ void decode_keys(const struct attend &a, const float q[8], int64_t base, int to,
				   float o[8], struct partial *mine)
{
	const int groups = DECODE_THREADS / LANES, group = (int)threadIdx.x / LANES,
		  c = threadIdx.x % LANES * 8;
	const T *keys = (const T *)a.k + base + c, *values = (const T *)a.v + base + c;

	for (int first = 0; first <= to; first += groups) {
		int j = min(first + group, to);
		float key[8], value[8], x = 0.0f, now, keep;

		load8(keys + j * a.kv_row, key);
		load8(values + j * a.kv_row, value);
#pragma unroll
		for (int i = 0; i < 8; i++)
			x += q[i] * key[i];
#pragma unroll
		for (int i = LANES / 2; i > 0; i >>= 1)
			x += __shfl_xor_sync(0xffffffffu, x, i);
		x = first + group <= to ? x : -INFINITY;
		now = fmaxf(mine->most, x);
		keep = now == -INFINITY ? 0.0f : exp2f(mine->most - now);
		x = now == -INFINITY ? 0.0f : exp2f(x - now);
		mine->most = now;
		mine->sum = mine->sum * keep + x;
#pragma unroll
		for (int i = 0; i < 8; i++)
			o[i] = o[i] * keep + x * value[i];
	}
}

template <typename T, int LANES>
__global__ void __launch_bounds__(DECODE_THREADS) decode_rows(struct attend a, float scale)
{
	const int groups = DECODE_THREADS / LANES, hd = LANES * 8;
	__shared__ float heads[DECODE_THREADS * 8];
	__shared__ struct partial parts[DECODE_THREADS / 4];
	int row = blockIdx.x / a.heads, head = blockIdx.x % a.heads, sequence = row / a.queries;
	int to = min(a.limit[row], a.keys - 1), group = (int)threadIdx.x / LANES;
	int c = (int)threadIdx.x % LANES * 8;
	float q[8], o[8] = {}, most = -INFINITY, sum = 0.0f, value = 0.0f;
	struct partial mine = { -INFINITY, 0.0f };

	load8((const T *)a.q + sequence * a.q_sequence + row % a.queries * a.q_row + head * hd + c,
	      q);
	for (int i = 0; i < 8; i++)
		q[i] *= scale;
	decode_keys<T, LANES>(a, q, sequence * a.kv_sequence + head * hd, to, o, &mine);
	store8(heads + group * hd + c, o);
	if (c == 0)
		parts[group] = mine;
	__syncthreads();
	if ((int)threadIdx.x >= hd)
		return;
	for (int i = 0; i < groups; i++)
		most = fmaxf(most, parts[i].most);
	for (int i = 0; i < groups && most > -INFINITY; i++) {
		float w = exp2f(parts[i].most - most);

		sum += w * parts[i].sum;
		value += w * heads[i * hd + threadIdx.x];
	}
	put((T *)a.out + ((int64_t)row * a.heads + head) * hd + threadIdx.x,
	    sum > 0.0f ? value / sum : 0.0f);
}

bool attention_decode_fits(const struct attend *a)
{
	return (a->hd == 32 || a->hd == 64 || a->hd == 128) && !a->start && aligned16(a->q) &&
	       aligned16(a->k) && aligned16(a->v);
}

void attention_decode(struct cuda_state *s, const struct attend *a)
{
	unsigned grid = (unsigned)(a->batch * a->queries * a->heads);
	float scale = 1.44269504f / sqrtf((float)a->hd);

	if (a->hd == 32)
		ACT(a->type, decode_rows<T, 4><<<grid, DECODE_THREADS, 0, s->stream>>>(*a, scale));
	else if (a->hd == 64)
		ACT(a->type, decode_rows<T, 8><<<grid, DECODE_THREADS, 0, s->stream>>>(*a, scale));
	else
		ACT(a->type, decode_rows<T, 16><<<grid, DECODE_THREADS, 0, s->stream>>>(*a, scale));
	LAUNCHED();
}
