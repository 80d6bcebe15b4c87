/* SPDX-License-Identifier: Apache-2.0
 * The attention rows of the table: shapes are checked, a version is picked, caches are written, and
 * the plan of tiles is made (which keys a tile of queries visits, longest tiles first). */
#include "kernels/cuda/attention.cuh"

#include <limits.h>

#define PACKED 3 /* q, k, v of a row lie side by side */

static struct attend packed(const struct tensor *qkv, int heads, const struct tensor *start,
			    const struct tensor *limit)
{
	struct attend a = {};
	int64_t rows = tensor_count(limit), width = rows ? tensor_count(qkv) / rows / PACKED : 0;
	size_t step = (size_t)width * dtype_bytes(qkv->type);

	CHECK(start->type == DT_I32 && limit->type == DT_I32 && tensor_count(start) == rows);
	CHECK(width % heads == 0 && limit->rank == 2 && rows < INT_MAX);
	a.q = qkv->data;
	a.k = (const char *)qkv->data + step;
	a.v = (const char *)qkv->data + 2 * step;
	a.start = (const int32_t *)start->data;
	a.limit = (const int32_t *)limit->data;
	a.batch = (int)limit->dim[0];
	a.queries = a.keys = (int)limit->dim[1];
	a.heads = heads;
	a.hd = (int)(width / heads);
	a.q_row = a.kv_row = PACKED * width;
	a.q_sequence = a.kv_sequence = PACKED * width * a.queries;
	a.type = qkv->type;
	return a;
}

void cuda_attention(struct kernels *k, struct tensor out, struct tensor lse, struct tensor qkv,
		    int heads, struct tensor start, struct tensor limit)
{
	struct cuda_state *s = state_of(k);
	struct attend a = packed(&qkv, heads, &start, &limit);

	CHECK(out.type == qkv.type && tensor_count(&out) * PACKED == tensor_count(&qkv));
	CHECK(lse.type == DT_F32 && tensor_count(&lse) == (int64_t)a.batch * a.heads * a.queries);
	if (!tensor_count(&out))
		return;
	a.out = out.data;
	a.lse = (float *)lse.data;
	if (attention_hopper_fits(s, &a))
		attention_hopper(s, &a);
	else
		attention_portable(s, &a);
}

void cuda_attention_backward(struct kernels *k, struct tensor dqkv, struct tensor dout,
			     struct tensor out, struct tensor lse, struct tensor qkv, int heads,
			     struct tensor start, struct tensor limit)
{
	struct cuda_state *s = state_of(k);
	struct attend_backward a = { packed(&qkv, heads, &start, &limit), dout.data };
	size_t step = (size_t)a.f.heads * (size_t)a.f.hd * dtype_bytes(qkv.type);

	CHECK(out.type == qkv.type && dout.type == qkv.type && dqkv.type == qkv.type);
	CHECK(tensor_count(&dqkv) == tensor_count(&qkv) &&
	      tensor_count(&dout) == tensor_count(&out));
	if (!tensor_count(&out))
		return;
	a.f.out = out.data;
	a.f.lse = (float *)lse.data;
	a.dq = dqkv.data;
	a.dk = (char *)dqkv.data + step;
	a.dv = (char *)dqkv.data + 2 * step;
	if (attention_hopper_fits(s, &a.f))
		attention_hopper_backward(s, &a);
	else
		attention_portable_backward(s, &a);
}

/* ---- caches */
template <typename T>
__global__ void append_rows(T *keys, T *values, const T *qkv, const int32_t *at,
			    const int32_t *limit, int64_t rows, int64_t n, int64_t capacity,
			    int64_t width)
{
	EACH (i, rows * width) {
		int64_t row = i / width, c = i % width, sequence = row / n,
			to = at[sequence] + row % n;

		if (limit[row] < 0 || to < 0 || to >= capacity)
			continue;
		keys[(sequence * capacity + to) * width + c] =
			qkv[row * PACKED * width + width + c];
		values[(sequence * capacity + to) * width + c] =
			qkv[row * PACKED * width + 2 * width + c];
	}
}

void cuda_attention_cached(struct kernels *k, struct tensor out, struct tensor qkv, int heads,
			   struct tensor keys, struct tensor values, struct tensor at,
			   struct tensor limit)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = tensor_count(&limit), sequences = keys.dim[0], width = keys.dim[2];

	CHECK(keys.rank == 3 && keys.type == qkv.type && values.type == qkv.type);
	CHECK(at.type == DT_I32 && limit.type == DT_I32 && tensor_count(&at) == sequences);
	CHECK(tensor_count(&qkv) == rows * PACKED * width);
	if (!rows)
		return;
	CHECK(rows % sequences == 0 && tensor_count(&values) == tensor_count(&keys));
	ACT(qkv.type,
	    append_rows<<<grid_for(s, rows * width, 256), 256, 0, s->stream>>>(
		    (T *)keys.data, (T *)values.data, (const T *)qkv.data, (const int32_t *)at.data,
		    (const int32_t *)limit.data, rows, rows / sequences, keys.dim[1], width));
	LAUNCHED();
	attend_cache(s, &out, &qkv, heads, &keys, &values, &limit, NULL);
}

void attend_cache(struct cuda_state *s, const struct tensor *out, const struct tensor *qkv,
		  int heads, const struct tensor *keys, const struct tensor *values,
		  const struct tensor *limit, struct attend_plan *plan)
{
	int64_t rows = tensor_count(limit), width = keys->dim[2];
	struct attend a = {};

	CHECK(out->type == qkv->type && tensor_count(out) == rows * width && width % heads == 0);
	a.q = qkv->data;
	a.k = keys->data;
	a.v = values->data;
	a.out = out->data;
	a.limit = (const int32_t *)limit->data;
	a.batch = (int)keys->dim[0];
	a.queries = (int)(rows / keys->dim[0]);
	a.keys = (int)keys->dim[1];
	a.heads = heads;
	a.hd = (int)(width / heads);
	a.q_row = PACKED * width;
	a.q_sequence = a.q_row * a.queries;
	a.kv_row = width;
	a.kv_sequence = width * a.keys;
	a.type = qkv->type;
	a.plan = plan;
	if (a.queries >= 32 && attention_hopper_fits(s, &a))
		attention_hopper(s, &a);
	else if (attention_decode_fits(&a))
		attention_decode(s, &a);
	else
		attention_portable(s, &a);
}

/* ---- plans */
__global__ void plan_query_tiles(struct tile_plan *plan, const int32_t *start, const int32_t *limit,
				 int queries, int keys, int rows, int tiles, int count)
{
	int i = (int)(thread_index() / 32), lane = (int)threadIdx.x % 32;
	struct tile_plan p = { i / tiles, i % tiles, INT_MAX, -1, -1, INT_MAX };

	if (i >= count)
		return;
	for (int r = p.tile * rows + lane; r < (p.tile + 1) * rows && r < queries; r += 32) {
		int from = start ? start[p.sequence * queries + r] : 0;
		int to = min(limit[p.sequence * queries + r], keys - 1);

		p.start_max = max(p.start_max, from);
		p.limit_min = min(p.limit_min, to);
		if (from <= to) {
			p.first = min(p.first, from);
			p.last = max(p.last, to);
		}
	}
	p.first = (int)__reduce_min_sync(0xffffffffu, p.first);
	p.limit_min = (int)__reduce_min_sync(0xffffffffu, p.limit_min);
	p.last = (int)__reduce_max_sync(0xffffffffu, p.last);
	p.start_max = (int)__reduce_max_sync(0xffffffffu, p.start_max);
	if (lane == 0)
		plan[i] = p;
}

/* First i in [0, n) with x[i] >= v (or n): x never decreases. */
static __device__ int first_at_least(const int32_t *x, int n, int v)
{
	int low = 0, high = n;

	while (low < high) {
		int middle = (low + high) / 2;

		if (x[middle] >= v)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

__global__ void plan_key_tiles(struct tile_plan *plan, const int32_t *start, const int32_t *limit,
			       int queries, int keys, int rows, int tiles, int count)
{
	int i = (int)thread_index();
	struct tile_plan p = { i / tiles, i % tiles, 0, 0, 0, 0 };

	if (i >= count)
		return;
	p.first = first_at_least(limit + p.sequence * queries, queries, p.tile * rows);
	p.last = first_at_least(start + p.sequence * queries, queries,
				min((p.tile + 1) * rows, keys)) -
		 1;
	plan[i] = p;
}

/* Places each plan by its group of sequences, then its length; equal ones keep their order. */
__global__ void order_plans(struct tile_plan *order, const struct tile_plan *plan, int together,
			    int count)
{
	int i = (int)thread_index(), rank = 0, group, mine;

	if (i == 0)
		order[count].sequence = 0;
	if (i >= count)
		return;
	group = plan[i].sequence / together;
	mine = plan[i].last - plan[i].first;
	for (int j = 0; j < count; j++) {
		int other = plan[j].last - plan[j].first, its = plan[j].sequence / together;

		rank += its < group || (its == group && (other > mine || (other == mine && j < i)));
	}
	order[rank] = plan[i];
}

static void order(struct cuda_state *s, struct tile_plan *to, const struct tile_plan *from,
		  int together, int count)
{
	order_plans<<<(unsigned)div_up(count, 32), 32, 0, s->stream>>>(to, from, together, count);
	LAUNCHED();
}

void attention_plan_queries(struct cuda_state *s, const struct attend *a, int rows, int together,
			    struct tile_plan *to, struct tile_plan *work)
{
	int tiles = (int)div_up(a->queries, rows), count = tiles * a->batch;

	plan_query_tiles<<<(unsigned)div_up(count, 4), 128, 0, s->stream>>>(
		work, a->start, a->limit, a->queries, a->keys, rows, tiles, count);
	LAUNCHED();
	order(s, to, work, together, count);
}

void attention_plan_keys(struct cuda_state *s, const struct attend *a, int rows, int together,
			 struct tile_plan *to, struct tile_plan *work)
{
	int tiles = (int)div_up(a->keys, rows), count = tiles * a->batch;

	plan_key_tiles<<<(unsigned)div_up(count, 32), 32, 0, s->stream>>>(
		work, a->start, a->limit, a->queries, a->keys, rows, tiles, count);
	LAUNCHED();
	order(s, to, work, together, count);
}
