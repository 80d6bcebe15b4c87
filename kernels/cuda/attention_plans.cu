/* SPDX-License-Identifier: Apache-2.0
 * Plans of tiles for attention: which keys each tile of queries visits (or which queries each tile
 * of keys), longest tiles first. All layers of a step have the same intervals: a plan is kept until
 * the memory that it was made from is written. */
#include "kernels/cuda/attention.cuh"

extern "C" {
#include "lib/mem.h"
}

#define PLANS_KEPT 8

/* What a plan was made for. Compared by bytes: no padding. */
struct plan_key {
	const int32_t *start, *limit;
	int32_t batch, queries, keys, heads, rows, together, by_query, unused;
};

struct attention_plans {
	struct {
		struct plan_key key; /* limit NULL: to be made again */
		struct tile_plan *order;
		int room; /* of order, and as many of scratch behind it */
	} kept[PLANS_KEPT];
	int next;
};

/* A warp's view of `rows` queries from `row` on. */
static __device__ struct span span_of(const int32_t *start, const int32_t *limit, int row, int end,
				      int keys)
{
	struct span p = { INT_MAX, -1, -1, INT_MAX };

	for (int r = row + (int)threadIdx.x % 32; r < end; r += 32) {
		int from = start ? start[r] : 0, to = min(limit[r], keys - 1);

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
	return p;
}

__global__ void plan_query_tiles(struct tile_plan *plan, const int32_t *start, const int32_t *limit,
				 int queries, int keys, int rows, int tiles, int count)
{
	int i = (int)(thread_index() / 32), lane = (int)threadIdx.x % 32;
	struct tile_plan p = {};

	if (i >= count)
		return;
	p.sequence = i / tiles;
	p.tile = i % tiles;
	start = start ? start + p.sequence * queries : NULL;
	limit += p.sequence * queries;
	p.all = span_of(start, limit, p.tile * rows, min((p.tile + 1) * rows, queries), keys);
#pragma unroll
	for (int j = 0; j < PARTS_MOST; j++) {
		int from = p.tile * rows + j * PART;

		p.part[j] = span_of(start, limit, from,
				    j * PART < rows ? min(from + PART, queries) : from, keys);
	}
	if (lane == 0)
		plan[i] = p;
}

__global__ void plan_key_tiles(struct tile_plan *plan, const int32_t *start, const int32_t *limit,
			       int queries, int keys, int rows, int tiles, int count)
{
	int i = (int)thread_index(), from;
	struct tile_plan p = {};

	if (i >= count)
		return;
	p.sequence = i / tiles;
	p.tile = i % tiles;
	start += p.sequence * queries;
	limit += p.sequence * queries;
	from = p.tile * rows;
	p.all = seen_by(start, limit, queries, from, min(from + rows, keys));
#pragma unroll
	for (int j = 0; j < PARTS_MOST; j++)
		p.part[j] = seen_by(start, limit, queries, from + j * PART,
				    min(from + min((j + 1) * PART, rows), keys));
	plan[i] = p;
}

/* Places each plan by its group of sequences, then its length; equal ones keep their order. The
 * counter behind them starts from 0; the heads' numbers are themselves. */
__global__ void order_plans(struct tile_plan *order, const struct tile_plan *plan, int together,
			    int count, int entries)
{
	int i = (int)thread_index(), rank = 0, group, mine;

	if (i == 0)
		order[count].sequence = 0;
	for (int head = i - 1; number_word(count, head) < entries * PLAN_WORDS;
	     head += (int)(gridDim.x * blockDim.x))
		*(int4 *)((int32_t *)order + number_word(count, head)) = make_int4(head, 0, 0, 0);
	if (i >= count)
		return;
	group = plan[i].sequence / together;
	mine = plan[i].all.last - plan[i].all.first;
	for (int j = 0; j < count; j++) {
		int other = plan[j].all.last - plan[j].all.first,
		    its = plan[j].sequence / together;

		rank += its < group || (its == group && (other > mine || (other == mine && j < i)));
	}
	order[rank] = plan[i];
}

static void make(struct cuda_state *s, const struct plan_key *k, int tiles, struct tile_plan *to,
		 struct tile_plan *work)
{
	int count = tiles * k->batch;

	if (k->by_query)
		plan_query_tiles<<<(unsigned)div_up(count, 4), 128, 0, s->stream>>>(
			work, k->start, k->limit, k->queries, k->keys, k->rows, tiles, count);
	else
		plan_key_tiles<<<(unsigned)div_up(count, 32), 32, 0, s->stream>>>(
			work, k->start, k->limit, k->queries, k->keys, k->rows, tiles, count);
	LAUNCHED();
	order_plans<<<(unsigned)div_up(count, 32), 32, 0, s->stream>>>(
		to, work, k->together, count, plan_entries(count, k->heads));
	LAUNCHED();
}

/* The plan that is kept for the key, made if need be. */
static struct tile_plan *keep(struct cuda_state *s, const struct plan_key *k, int tiles)
{
	struct attention_plans *p = s->plans;
	int entries = plan_entries(tiles * k->batch, k->heads), i;

	if (!p)
		p = s->plans = (struct attention_plans *)xcalloc(1, sizeof *p);
	for (i = 0; i < PLANS_KEPT; i++)
		if (!memcmp(&p->kept[i].key, k, sizeof *k))
			return p->kept[i].order;
	i = p->next;
	p->next = (i + 1) % PLANS_KEPT;
	if (p->kept[i].room < entries) {
		CUDA(cudaStreamSynchronize(s->stream));
		CUDA(cudaFree(p->kept[i].order));
		CUDA(cudaMalloc(&p->kept[i].order, 2 * (size_t)entries * sizeof(struct tile_plan)));
		p->kept[i].room = entries;
	}
	p->kept[i].key = *k;
	make(s, k, tiles, p->kept[i].order, p->kept[i].order + entries);
	return p->kept[i].order;
}

struct tile_plan *attention_plan(struct cuda_state *s, const struct attend *a, bool by_query,
				 int rows, int together, struct tile_plan *order,
				 struct tile_plan *work)
{
	struct plan_key k = { a->start, a->limit, a->batch, a->queries, a->keys,
			      a->heads, rows,	  together, by_query,	0 };
	int tiles = (int)div_up(by_query ? a->queries : a->keys, rows);

	if (a->start && !s->recording)
		return keep(s, &k, tiles);
	make(s, &k, tiles, order, work);
	return order;
}

static bool overlaps(const int32_t *a, size_t elements, const void *p, size_t bytes)
{
	uintptr_t x = (uintptr_t)a, y = (uintptr_t)p;

	return x < y + bytes && y < x + elements * sizeof *a;
}

void attention_forget(struct cuda_state *s, const void *p, size_t bytes)
{
	struct attention_plans *plans = s->plans;

	for (int i = 0; plans && i < PLANS_KEPT; i++) {
		struct plan_key *k = &plans->kept[i].key;
		size_t n = (size_t)k->batch * (size_t)k->queries;

		if (!p || overlaps(k->start, n, p, bytes) || overlaps(k->limit, n, p, bytes))
			memset(k, 0, sizeof *k);
	}
}

void attention_plans_free(struct cuda_state *s)
{
	for (int i = 0; s->plans && i < PLANS_KEPT; i++)
		(void)cudaFree(s->plans->kept[i].order);
	xfree_(s->plans);
}
