/* SPDX-License-Identifier: Apache-2.0
 * Parameters of convolutional nets: declaration, placement, initial values, updates, files. */
#include "config.h"
#include "model/params.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define ALIGN 128 /* elements: 256 bytes of bf16 */

void params_init(struct params *p, struct kernels *k, enum dtype act)
{
	CHECK(act == DT_F32 || act == DT_BF16);
	*p = (struct params){ .k = k, .act = act };
}

void params_release(struct params *p)
{
	const struct kernel_ops *ops = p->k ? p->k->ops : NULL;
	void *memory[] = { p->master, p->grad, p->m, p->v, p->resident, p->grad_norm2,
			   p->skipped };

	for (size_t i = 0; i < ARRAY_LEN(memory); i++)
		if (memory[i])
			ops->release(p->k, memory[i]);
	xfree(p->list);
	*p = (struct params){ 0 };
}

static int find(const struct params *p, const char *name)
{
	for (int i = 0; i < p->count; i++)
		if (strcmp(p->list[i].name, name) == 0)
			return i;
	return -1;
}

int params_add(struct params *p, const char *name, int rank, const int64_t *dim,
	       enum param_init init, float bound)
{
	int i = find(p, name);
	struct param *q;

	CHECK(rank >= 1 && rank <= TENSOR_RANK_MAX && strlen(name) < PARAM_NAME_MAX);
	if (i >= 0) {
		CHECK(p->list[i].rank == rank);
		CHECK(memcmp(p->list[i].dim, dim, (size_t)rank * sizeof *dim) == 0);
		return i;
	}
	CHECK(!params_allocated(p));
	if (p->count == p->room) {
		p->room = p->room ? 2 * p->room : 32;
		p->list = xrealloc(p->list, (size_t)p->room, sizeof *p->list);
	}
	q = &p->list[p->count];
	*q = (struct param){ .rank = rank, .dim = { 1, 1, 1, 1 }, .count = 1, .init = init,
			     .bound = bound };
	memcpy(q->name, name, strlen(name) + 1);
	for (int d = 0; d < rank; d++) {
		CHECK(dim[d] > 0);
		q->dim[d] = dim[d];
		q->count *= dim[d];
	}
	return p->count++;
}

bool params_allocated(const struct params *p)
{
	return p->master != NULL;
}

static int64_t padded(int64_t count)
{
	return (count + ALIGN - 1) / ALIGN * ALIGN;
}

/* Filters and matrices first, then what does not decay. */
int64_t params_place(struct params *p)
{
	p->total = 0;
	for (int pass = 0; pass < 2; pass++) {
		for (int i = 0; i < p->count; i++) {
			if ((p->list[i].rank == 1) != (pass == 1))
				continue;
			p->list[i].at = p->total;
			p->total += padded(p->list[i].count);
		}
		if (pass == 0)
			p->decayed = p->total;
	}
	return p->total;
}

static int allocate(struct params *p, void *field, int64_t count, size_t size, struct err *e)
{
	void **at = field;

	if (*at)
		return 0;
	*at = p->k->ops->alloc(p->k, (size_t)count * size);
	FAIL_IF(!*at, e, TF_ENOMEM, "no memory for %lld parameters", (long long)count);
	return 0;
}

int params_alloc(struct params *p, bool training, struct err *e)
{
	if (!params_allocated(p))
		params_place(p);
	TRY(allocate(p, &p->master, p->total, sizeof(float), e));
	if (p->act == DT_BF16)
		TRY(allocate(p, &p->resident, p->total, sizeof(uint16_t), e));
	if (!training)
		return 0;
	TRY(allocate(p, &p->grad, p->total, sizeof(float), e));
	TRY(allocate(p, &p->m, p->total, dtype_bytes(p->moments), e));
	TRY(allocate(p, &p->v, p->total, dtype_bytes(p->moments), e));
	TRY(allocate(p, &p->skipped, 1, sizeof(int32_t), e));
	return allocate(p, &p->grad_norm2, 1, sizeof(float), e);
}

static void refresh(struct params *p)
{
	if (p->resident)
		p->k->ops->convert(p->k, tensor_1d(p->resident, DT_BF16, p->total),
				   tensor_1d(p->master, DT_F32, p->total));
}

/* Initial values of a tensor that are not normal: drawn on the host, few in a large model. */
static void draw_host(struct params *p, const struct param *q, uint64_t seed, int i)
{
	float *out = xmalloc((size_t)q->count * sizeof *out);

	for (int64_t n = 0; n < q->count; n++)
		out[n] = q->init == PARAM_UNIFORM
			? q->bound * (2 * philox_uniform(seed, PHILOX_INIT, (uint64_t)i,
							 (uint64_t)n) - 1)
			: q->init == PARAM_ONE ? 1 : 0;
	p->k->ops->upload(p->k, p->master + q->at, out, (size_t)q->count * sizeof *out);
	xfree(out);
}

/* Normal ones are drawn where they will lie: billions of them take the host minutes. */
static void draw_normals(struct params *p, const struct param *q, uint64_t seed,
			 struct tensor stream)
{
	struct tensor values = tensor_2d(p->master + q->at, DT_F32, 1, q->count);

	p->k->ops->normals(p->k, values, seed, PHILOX_INIT, stream);
	p->k->ops->scale(p->k, values, q->bound);
}

void params_draw(struct params *p, uint64_t seed)
{
	size_t bytes = (size_t)p->count * sizeof(int64_t);
	int64_t *number = xmalloc(bytes);
	int64_t *stream = p->k->ops->alloc(p->k, bytes);

	CHECK(params_allocated(p) && stream);
	for (int i = 0; i < p->count; i++)
		number[i] = i;
	p->k->ops->upload(p->k, stream, number, bytes);
	p->k->ops->zero(p->k, p->master, (size_t)p->total * sizeof *p->master);
	for (int i = 0; i < p->count; i++) {
		const struct param *q = &p->list[i];

		if (q->init == PARAM_NORMAL)
			draw_normals(p, q, seed, tensor_1d(stream + i, DT_I64, 1));
		else
			draw_host(p, q, seed, i);
	}
	refresh(p);
	p->k->ops->release(p->k, stream);
	xfree(number);
}

static struct tensor view(const struct param *q, void *data, enum dtype type)
{
	struct tensor t = { data, type, q->rank, { 1, 1, 1, 1 } };

	memcpy(t.dim, q->dim, sizeof t.dim);
	return t;
}

struct tensor params_value(const struct params *p, int i)
{
	const struct param *q = &p->list[i];

	CHECK(i >= 0 && i < p->count && params_allocated(p));
	if (p->resident && q->rank > 1)
		return view(q, p->resident + q->at, DT_BF16);
	return view(q, p->master + q->at, DT_F32);
}

struct tensor params_gradient(const struct params *p, int i)
{
	CHECK(i >= 0 && i < p->count && p->grad);
	return view(&p->list[i], p->grad + p->list[i].at, DT_F32);
}

void params_by_product(struct params *p, int i)
{
	CHECK(p->list[i].rank > 1); /* matrices lie in the order of the list */
	p->list[i].product = true;
}

struct dweight params_dweight(struct params *p, int i)
{
	struct param *q = &p->list[i];
	struct dweight d = { params_gradient(p, i), q->stale ? 0 : 1 };

	CHECK(q->product);
	q->stale = false;
	return d;
}

static void zero_gradients(struct params *p, int64_t from, int64_t to)
{
	if (from < to)
		p->k->ops->zero(p->k, p->grad + from, (size_t)(to - from) * sizeof *p->grad);
}

/* All but what products write: what lies between those is zeroed at once. */
void params_zero_gradients(struct params *p)
{
	int64_t from = 0;

	for (int i = 0; i < p->count; i++) {
		struct param *q = &p->list[i];

		if (!q->product)
			continue;
		zero_gradients(p, from, q->at);
		from = q->at + padded(q->count);
		q->stale = true;
	}
	zero_gradients(p, from, p->total);
}

void params_settle_gradients(struct params *p)
{
	for (int i = 0; i < p->count; i++) {
		struct param *q = &p->list[i];

		if (q->stale)
			zero_gradients(p, q->at, q->at + q->count);
		q->stale = false;
	}
}

float params_gradient_norm2(struct params *p)
{
	float norm2;

	params_settle_gradients(p);
	p->k->ops->sum_squares(p->k, p->grad_norm2, p->grad, p->total);
	p->k->ops->download(p->k, &norm2, p->grad_norm2, sizeof norm2);
	return norm2;
}

void params_step(struct params *p, const struct params_update *u)
{
	struct adamw a = {
		.master = p->master, .grad = p->grad, .m = p->m, .v = p->v, .resident = p->resident,
		.moments = p->moments, .stochastic = p->stochastic, .seed = p->rounding,
		.average = u->average, .average_weight = u->average_weight,
		.grad_norm2 = p->grad_norm2, .skipped = p->skipped, .n = p->total,
		.decayed = p->decayed, .step = ++p->step,
		.lr = u->lr, .beta1 = u->beta1, .beta2 = u->beta2, .eps = u->eps,
		.weight_decay = u->weight_decay, .grad_scale = u->grad_scale, .clip = u->clip,
	};

	params_settle_gradients(p);
	p->k->ops->sum_squares(p->k, p->grad_norm2, p->grad, p->total);
	p->k->ops->adamw(p->k, &a);
}

void params_norm2_begin(struct params *p, struct fetch *f, float *host)
{
	p->k->ops->fetch_begin(p->k, f, host, p->grad_norm2, sizeof *host);
}

int64_t params_count(const struct params *p)
{
	int64_t n = 0;

	for (int i = 0; i < p->count; i++)
		n += p->list[i].count;
	return n;
}

static void *array_of(const struct params *p, enum params_array which)
{
	return which == PARAMS_MASTER ? p->master : which == PARAMS_M ? p->m : p->v;
}

static enum dtype type_of(const struct params *p, enum params_array which)
{
	return which == PARAMS_MASTER ? DT_F32 : p->moments;
}

static enum st_type file_type(const struct params *p, enum params_array which)
{
	return type_of(p, which) == DT_F32 ? ST_F32 : ST_BF16;
}

static void file_name(const char *prefix, const struct param *q, char out[2 * PARAM_NAME_MAX])
{
	int n = snprintf(out, 2 * PARAM_NAME_MAX, "%s%s", prefix, q->name);

	CHECK(n > 0 && n < 2 * PARAM_NAME_MAX);
}

size_t params_bytes(const struct params *p, enum params_array which)
{
	return (size_t)p->total * dtype_bytes(type_of(p, which));
}

void params_fetch_begin(struct params *p, enum params_array which, struct fetch *f, void *host)
{
	p->k->ops->fetch_begin(p->k, f, host, array_of(p, which), params_bytes(p, which));
}

void params_declare(const struct params *p, enum params_array which, const char *prefix,
		    const void *host, struct st_writer *w)
{
	size_t size = dtype_bytes(type_of(p, which));

	for (int i = 0; i < p->count; i++) {
		char name[2 * PARAM_NAME_MAX];

		file_name(prefix, &p->list[i], name);
		st_writer_add(w, name, file_type(p, which), p->list[i].rank, p->list[i].dim,
			      (const char *)host + (size_t)p->list[i].at * size);
	}
}

void params_write(struct params *p, enum params_array which, const char *prefix,
		  struct st_writer *w, void **copy)
{
	void *from = array_of(p, which);

	CHECK(from);
	*copy = xmalloc(params_bytes(p, which));
	p->k->ops->download(p->k, *copy, from, params_bytes(p, which));
	params_declare(p, which, prefix, *copy, w);
}

static int read_finite(const struct st_tensor *t, const char *path, char *to, struct err *e)
{
	size_t size = st_type_bytes(t->type);

	memcpy(to, t->data, t->bytes);
	for (size_t n = 0; n < t->bytes / size; n++) {
		uint16_t half;
		float value;

		memcpy(&half, to + n * size, sizeof half);
		memcpy(&value, to + n * size, size == sizeof value ? sizeof value : 0);
		if (size != sizeof value)
			value = bf16_to_float(half);
		FAIL_IF(!isfinite(value), e, TF_ECORRUPT,
			"%s: tensor %s: element %zu is %g, expected a finite number", path,
			t->name, n, (double)value);
	}
	return 0;
}

int params_read(struct params *p, enum params_array which, const char *prefix,
		const struct st_file *f, const char *path, struct err *e)
{
	size_t size = dtype_bytes(type_of(p, which));
	char *values = xcalloc((size_t)p->total, size);
	void *to = array_of(p, which);
	int rc = 0;

	CHECK(to);
	for (int i = 0; i < p->count && rc == 0; i++) {
		const struct st_tensor *t;
		char name[2 * PARAM_NAME_MAX];

		file_name(prefix, &p->list[i], name);
		rc = st_need(f, path, name, file_type(p, which), p->list[i].rank, p->list[i].dim,
			     &t, e);
		if (rc == 0)
			rc = read_finite(t, path, values + (size_t)p->list[i].at * size, e);
	}
	if (rc == 0)
		p->k->ops->upload(p->k, to, values, params_bytes(p, which));
	if (rc == 0 && which == PARAMS_MASTER)
		refresh(p);
	xfree(values);
	return rc;
}
