/* SPDX-License-Identifier: Apache-2.0
 * Tensor maps for bulk copies on Hopper: the driver makes them, on the host, for each launch. */
#include "kernels/cuda/hopper.cuh"

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
			      const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
			      const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
			      CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

CUtensorMap hopper_map(struct cuda_state *s, const struct mapped *m, int box_rows)
{
	encode_fn encode = (encode_fn)s->encode_tiled;
	cuuint64_t dim[3] = { (cuuint64_t)m->columns, (cuuint64_t)m->rows, (cuuint64_t)m->planes };
	cuuint64_t stride[2] = { (cuuint64_t)m->row * 2, (cuuint64_t)m->plane * 2 };
	cuuint32_t box[3] = { 64, (cuuint32_t)box_rows, 1 }, step[3] = { 1, 1, 1 };
	CUtensorMap map;
	CUresult rc = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)m->first, dim,
			     stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
			     CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
			     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

	if (rc != CUDA_SUCCESS)
		BUG("the driver refuses a tensor map (%d) of %lld x %lld x %lld", (int)rc,
		    (long long)m->planes, (long long)m->rows, (long long)m->columns);
	return map;
}

CUtensorMap hopper_word_map(struct cuda_state *s, const void *first, int64_t words, int at_once)
{
	encode_fn encode = (encode_fn)s->encode_tiled;
	cuuint64_t dim[1] = { (cuuint64_t)words }, stride[1] = { 16 }; /* a stride is never used */
	cuuint32_t box[1] = { (cuuint32_t)at_once }, step[1] = { 1 };
	CUtensorMap map;
	CUresult rc = encode(&map, CU_TENSOR_MAP_DATA_TYPE_INT32, 1, (void *)first, dim, stride,
			     box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
			     CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

	CHECK(words <= INT_MAX);
	if (rc != CUDA_SUCCESS)
		BUG("the driver refuses a tensor map (%d) of %lld words", (int)rc,
		    (long long)words);
	return map;
}

CUtensorMap hopper_item_map(struct cuda_state *s, const struct work_list *l)
{
	int64_t words = (int64_t)plan_entries(l->tiles, l->heads) * PLAN_WORDS;

	return hopper_word_map(s, l->plan, words, PLAN_WORDS);
}

CUtensorMap hopper_query_map(struct cuda_state *s, const struct attend *a, const void *first,
			     int64_t row, int64_t sequence, int box_rows)
{
	const struct mapped m = { first, a->batch, a->queries, (int64_t)a->heads * a->hd, row,
				  sequence };

	return hopper_map(s, &m, box_rows);
}

CUtensorMap hopper_key_map(struct cuda_state *s, const struct attend *a, const void *first,
			   int box_rows)
{
	const struct mapped m = { first, a->batch, a->keys, (int64_t)a->heads * a->hd, a->kv_row,
				  a->kv_sequence };

	return hopper_map(s, &m, box_rows);
}
