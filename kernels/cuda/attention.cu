/* SPDX-License-Identifier: Apache-2.0
 * The attention rows of the table: shapes are checked, a version is picked, caches are written. */
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
			     struct tensor start, struct tensor limit, const struct turned *turned)
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
	if (!attention_hopper_fits(s, &a.f)) {
		attention_portable_backward(s, &a);
		if (turned)
			cuda_rope(k, dqkv, heads, turned->cosine, turned->sine, turned->position,
				  true);
		return;
	}
	if (turned) {
		CHECK(turned->cosine.type == DT_F32 && turned->sine.type == DT_F32 &&
		      turned->cosine.dim[1] * 2 == a.f.hd);
		CHECK(turned->position.type == DT_I32 &&
		      tensor_count(&turned->position) == tensor_count(&limit));
		a.cosine = (const float *)turned->cosine.data;
		a.sine = (const float *)turned->sine.data;
		a.position = (const int32_t *)turned->position.data;
	}
	attention_hopper_backward(s, &a);
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
