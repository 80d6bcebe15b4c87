/* SPDX-License-Identifier: Apache-2.0
 * Attention over intervals of keys: each head of each sequence is a task of its own (head.c), so
 * the result does not depend on the number of threads; see loops.h. */
#include "config.h"
#include "kernels/cpu/loops/head.h"

#include <math.h>
#include <stdlib.h>

/* Floats of this thread's own, kept from call to call. */
static float *scratch(size_t floats)
{
	static __thread float *memory;
	static __thread size_t room;

	if (floats > room) {
		free(memory);
		room = (floats + 1023) / 1024 * 1024;
		memory = aligned_alloc(64, room * sizeof *memory);
		if (!memory)
			BUG("out of memory (%zu floats)", room);
	}
	return memory;
}

/* What all heads of a call have in common. */
struct shape {
	int64_t B, T, H, hd;
};

static struct shape shape_of(const struct tensor *qkv, int heads, const struct tensor *start,
			     const struct tensor *limit)
{
	struct shape s = { start->dim[0], start->dim[1], heads, 0 };
	int64_t rows = s.B * s.T;

	CHECK(start->rank == 2 && limit->rank == 2 && start->type == DT_I32 &&
	      limit->type == DT_I32);
	CHECK(heads > 0 && limit->dim[0] == s.B && limit->dim[1] == s.T);
	s.hd = rows ? tensor_count(qkv) / (rows * 3 * heads) : 0;
	CHECK(s.hd * rows * 3 * heads == tensor_count(qkv));
	for (int64_t i = 0; i < rows; i++)
		CHECK(loop_i32(start)[i] >= 0 && loop_i32(start)[i] <= loop_i32(limit)[i] &&
		      loop_i32(limit)[i] < s.T);
	return s;
}

static void *at(const struct tensor *t, int64_t element)
{
	return (char *)t->data + element * (int64_t)dtype_bytes(t->type);
}

/* Task i is head i % H of sequence i / H. */
static struct head head_of(const struct shape *s, const struct tensor *qkv,
			   const struct tensor *out, const struct tensor *lse,
			   const struct tensor *start, const struct tensor *limit, int64_t i)
{
	int64_t b = i / s->H, h = i % s->H, width = s->H * s->hd;
	int64_t first = b * s->T * 3 * width + h * s->hd;

	return (struct head){
		.type = qkv->type,
		.queries = s->T,
		.keys = s->T,
		.hd = (int)s->hd,
		.q = at(qkv, first),
		.k = at(qkv, first + width),
		.v = at(qkv, first + 2 * width),
		.q_stride = 3 * width,
		.key_stride = 3 * width,
		.start = loop_i32(start) + b * s->T,
		.limit = loop_i32(limit) + b * s->T,
		.out = at(out, b * s->T * width + h * s->hd),
		.out_stride = width,
		.lse = loop_f32(lse) + i * s->T,
		.scratch = scratch(head_scratch(s->T, (int)s->hd)),
	};
}

void LOOP(attention)(struct kernels *k, struct tensor out, struct tensor lse, struct tensor qkv,
		     int heads, struct tensor start, struct tensor limit)
{
	struct shape s = shape_of(&qkv, heads, &start, &limit);

	(void)k;
	CHECK(tensor_count(&out) == s.B * s.T * s.H * s.hd && out.type == qkv.type);
	CHECK(tensor_count(&lse) == s.B * s.H * s.T && lse.type == DT_F32);
#pragma omp parallel for schedule(dynamic, 1)
	for (int64_t i = 0; i < s.B * s.H; i++) {
		struct head h = head_of(&s, &qkv, &out, &lse, &start, &limit, i);

		LOOP(head_forward)(&h);
	}
}

void LOOP(attention_backward)(struct kernels *k, struct tensor dqkv, struct tensor dout,
			      struct tensor out, struct tensor lse, struct tensor qkv, int heads,
			      struct tensor start, struct tensor limit, const struct turned *turned)
{
	struct shape s = shape_of(&qkv, heads, &start, &limit);
	int64_t width = s.H * s.hd;

	CHECK(tensor_count(&dqkv) == tensor_count(&qkv) && dqkv.type == qkv.type);
	CHECK(tensor_count(&out) == s.B * s.T * width && out.type == qkv.type);
	CHECK(tensor_count(&dout) == s.B * s.T * width && dout.type == qkv.type);
	CHECK(tensor_count(&lse) == s.B * s.H * s.T && dqkv.data != qkv.data);
#pragma omp parallel for schedule(dynamic, 1)
	for (int64_t i = 0; i < s.B * s.H; i++) {
		struct head h = head_of(&s, &qkv, &out, &lse, &start, &limit, i);
		int64_t first = i / s.H * s.T * width + i % s.H * s.hd;
		int64_t part = i / s.H * s.T * 3 * width + i % s.H * s.hd;

		h.dout = at(&dout, first);
		h.dq = at(&dqkv, part);
		h.dk = at(&dqkv, part + width);
		h.dv = at(&dqkv, part + 2 * width);
		LOOP(head_backward)(&h);
	}
	if (turned)
		LOOP(rope)(k, dqkv, heads, turned->cosine, turned->sine, turned->position, true);
}

/* The caches of sampling. */
struct cache {
	const struct tensor *qkv, *keys, *values, *out;
	const int32_t *at, *limit;
	int64_t S, n, capacity, H, hd;
};

static void cache_write(const struct cache *c, int64_t row)
{
	int64_t sequence = row / c->n, where = c->at[sequence] + row % c->n, width = c->H * c->hd;
	size_t bytes = (size_t)width * dtype_bytes(c->qkv->type);

	if (where < 0 || where >= c->capacity || c->limit[row] < 0)
		return;
	memcpy(at(c->keys, (sequence * c->capacity + where) * width),
	       at(c->qkv, (row * 3 + 1) * width), bytes);
	memcpy(at(c->values, (sequence * c->capacity + where) * width),
	       at(c->qkv, (row * 3 + 2) * width), bytes);
}

static struct head cached_head(const struct cache *c, int64_t i)
{
	int64_t s = i / c->H, first = i % c->H * c->hd, width = c->H * c->hd;

	return (struct head){
		.type = c->qkv->type,
		.queries = c->n,
		.keys = c->capacity,
		.hd = (int)c->hd,
		.q = at(c->qkv, s * c->n * 3 * width + first),
		.k = at(c->keys, s * c->capacity * width + first),
		.v = at(c->values, s * c->capacity * width + first),
		.q_stride = 3 * width,
		.key_stride = width,
		.limit = c->limit + s * c->n,
		.out = at(c->out, s * c->n * width + first),
		.out_stride = width,
		.scratch = scratch(head_scratch(c->n, (int)c->hd)),
	};
}

void LOOP(attention_cached)(struct kernels *k, struct tensor out, struct tensor qkv, int heads,
			    struct tensor keys, struct tensor values, struct tensor place,
			    struct tensor limit)
{
	struct cache c = {
		&qkv,        &keys, &values,     &out,  loop_i32(&place),   loop_i32(&limit),
		keys.dim[0], 0,     keys.dim[1], heads, keys.dim[2] / heads
	};

	(void)k;
	CHECK(keys.rank == 3 && values.rank == 3 && tensor_count(&place) == c.S);
	c.n = c.S ? tensor_count(&limit) / c.S : 0;
	CHECK(tensor_count(&qkv) == c.S * c.n * 3 * heads * c.hd);
	CHECK(tensor_count(&out) == c.S * c.n * heads * c.hd);
	CHECK(keys.type == qkv.type && values.type == qkv.type && out.type == qkv.type);
	for (int64_t row = 0; row < c.S * c.n; row++)
		CHECK(c.limit[row] < c.capacity);
#pragma omp parallel for schedule(static)
	for (int64_t row = 0; row < c.S * c.n; row++)
		cache_write(&c, row);
#pragma omp parallel for schedule(dynamic, 1)
	for (int64_t i = 0; i < c.S * heads; i++) {
		struct head h = cached_head(&c, i);

		LOOP(head_forward)(&h);
	}
}
