/* SPDX-License-Identifier: Apache-2.0
 * A run of a case of kernelcheck: its inputs, its outputs, and how often the operation runs. */
#include "config.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "tests/kernels/check.h"

#include <string.h>

static struct tensor keep(struct run *r, struct tensor t, const void *host)
{
	CHECK(r->count < RUN_TENSORS_MAX);
	t.data = r->k->ops->alloc(r->k, tensor_bytes(&t));
	CHECK(t.data);
	if (host)
		r->k->ops->upload(r->k, t.data, host, tensor_bytes(&t));
	r->tensor[r->count++] = t;
	return t;
}

/* In a later pass the arguments of the operation are the first pass's. */
static bool replayed(struct run *r, struct tensor *t)
{
	if (r->done < 2)
		return false;
	CHECK(r->replay < r->count);
	*t = r->tensor[r->replay++];
	return true;
}

static void *draw_normals(const struct run *r, enum dtype type, int64_t n)
{
	float *values = xcalloc(n, sizeof *values);

	philox_normals(r->seed, PHILOX_TEST, r->drawn, 0, values, n);
	for (int64_t i = 0; type == DT_BF16 && i < n; i++)
		((uint16_t *)values)[i] = bf16_from_float(values[i]);
	return values;
}

struct tensor run_input(struct run *r, enum dtype type, int rank, const int64_t *dim)
{
	struct tensor t = { NULL, type, rank, { 1, 1, 1, 1 } };
	void *values;

	if (replayed(r, &t))
		return t;
	CHECK(r->drawn < RUN_TENSORS_MAX);
	memcpy(t.dim, dim, rank * sizeof *dim);
	values = r->inputs ? r->inputs->values[r->drawn] : NULL;
	if (!values)
		values = draw_normals(r, type, tensor_count(&t));
	t = keep(r, t, values);
	if (r->inputs)
		r->inputs->values[r->drawn] = values;
	else
		xfree(values);
	r->drawn++;
	return t;
}

struct tensor run_input1(struct run *r, enum dtype type, int64_t n)
{
	return run_input(r, type, 1, (int64_t[]){ n });
}

struct tensor run_input2(struct run *r, enum dtype type, int64_t a, int64_t b)
{
	return run_input(r, type, 2, (int64_t[]){ a, b });
}

struct tensor run_input3(struct run *r, enum dtype type, int64_t a, int64_t b, int64_t c)
{
	return run_input(r, type, 3, (int64_t[]){ a, b, c });
}

struct tensor run_input4(struct run *r, enum dtype type, int64_t a, int64_t b, int64_t c, int64_t d)
{
	return run_input(r, type, 4, (int64_t[]){ a, b, c, d });
}

struct tensor run_i32(struct run *r, int64_t n, const int32_t *values)
{
	struct tensor t;

	return replayed(r, &t) ? t : keep(r, tensor_1d(NULL, DT_I32, n), values);
}

struct tensor run_integers(struct run *r, int64_t n, int64_t least, int64_t most)
{
	int32_t *values = xcalloc(n, sizeof *values);
	struct tensor t;

	if (replayed(r, &t)) {
		xfree(values);
		return t;
	}
	for (int64_t i = 0; i < n; i++)
		values[i] = (int32_t)(least + (int64_t)philox_below(r->seed, PHILOX_TEST, r->drawn,
								    i, most - least + 1));
	r->drawn++;
	t = run_i32(r, n, values);
	xfree(values);
	return t;
}

struct tensor run_distinct(struct run *r, int64_t n, int64_t range)
{
	int32_t *values = xcalloc(n, sizeof *values);
	struct tensor t;

	if (replayed(r, &t)) {
		xfree(values);
		return t;
	}
	CHECK(n <= range);
	for (int64_t i = 0; i < n; i++)
		values[i] = i % 4 == 3 ? -1 : (int32_t)philox_permute(r->seed, r->drawn, i, range);
	r->drawn++;
	t = run_i32(r, n, values);
	xfree(values);
	return t;
}

struct tensor run_changes(struct run *r, struct tensor input)
{
	for (int i = 0; i < r->count; i++)
		if (r->tensor[i].data == input.data)
			r->output[i] = true;
	return input;
}

struct tensor run_output(struct run *r, struct tensor like)
{
	void *poison;
	struct tensor t;

	if (replayed(r, &t))
		return t;
	poison = xmalloc(tensor_bytes(&like));
	memset(poison, 0xff, tensor_bytes(&like));
	t = keep(r, like, poison);
	xfree(poison);
	return run_changes(r, t);
}

void run_release(struct run *r)
{
	for (int i = 0; i < r->count; i++)
		r->k->ops->release(r->k, r->tensor[i].data);
}

/* After a first pass, batches of passes are timed; the fastest counts, as others may use the
 * machine. */
bool run_again(struct run *r)
{
	if (r->done == 0)
		r->mark = r->count;
	r->replay = r->mark;
	if (r->done >= 1 && (r->done - 1) % PERF_BATCH == 0) {
		int64_t now;
		double each;

		r->k->ops->sync(r->k);
		now = clock_mono_ns();
		each = (double)(now - r->begin) * 1e-9 / PERF_BATCH;
		if (r->done > 1 && (r->seconds == 0 || each < r->seconds))
			r->seconds = each;
		r->begin = now;
	}
	return r->done++ < r->passes;
}

void inputs_release(struct inputs *inputs)
{
	for (size_t i = 0; i < ARRAY_LEN(inputs->values); i++)
		xfree(inputs->values[i]);
}
