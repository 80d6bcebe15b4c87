/* SPDX-License-Identifier: Apache-2.0
 * The tape (tape.h): values, their places in one allocation, and the two passes.
 *
 * Time runs 0 .. 2N+1 for N operations: the caller writes inputs at 0, operation i runs forward
 * at i+1 and backward at 2N+1-i, the caller writes output gradients at N+1. A value is live from
 * its writing to its last reader; in training a value that a backward pass reads lives to the
 * end, so that several backward passes may follow one forward pass. A gradient lives from its
 * first writer to its operation. */
#include "config.h"
#include "model/tape.h"
#include "lib/mem.h"

#include <stdlib.h>
#include <string.h>

#define PLACE_ALIGN 256

struct value {
	enum dtype type;
	int rank;
	int64_t dim[TENSOR_RANK_MAX];
	bool input, output;
	int wants;               /* TAPE_* bits: whose gradients run through it */
	int producer;            /* operation, -1: input */
	int readers;             /* operations that take it */
	int lies_in;             /* value whose memory it shares, or itself */
	int gradient_in;         /* value whose gradient memory it shares, or itself */
	struct place { size_t at; int first, last; bool used; } data, gradient;
};

struct tape {
	struct params *p;
	struct value *value;
	struct op *op;
	bool (*adds)[OP_VALUES];         /* the gradient of input i of op n is added, not written */
	int values, values_room, ops, ops_room;
	struct place scratch;            /* for what is added */
	size_t scratch_bytes;
	bool planned, training;
	char *memory;
	size_t bytes;
};

struct tape *tape_new(struct params *p)
{
	struct tape *t = xcalloc(1, sizeof *t);

	t->p = p;
	return t;
}

void tape_free(struct tape *t)
{
	if (!t)
		return;
	if (t->memory)
		t->p->k->ops->release(t->p->k, t->memory);
	xfree(t->value);
	xfree(t->op);
	xfree(t->adds);
	xfree(t);
}

struct params *tape_params(const struct tape *t)
{
	return t->p;
}

int tape_add_value(struct tape *t, enum dtype type, int64_t n, int64_t h, int64_t w, int64_t c)
{
	int rank = h == 0 ? 1 : w == 0 ? 2 : 4;

	CHECK(!t->planned && n > 0);
	if (t->values == t->values_room) {
		t->values_room = t->values_room ? 2 * t->values_room : 64;
		t->value = xrealloc(t->value, (size_t)t->values_room, sizeof *t->value);
	}
	t->value[t->values] = (struct value){
		.type = type, .rank = rank, .producer = -1, .lies_in = t->values,
		.gradient_in = t->values,
		.dim = { n, rank > 1 ? h : 1, rank > 2 ? w : 1, rank > 2 ? c : 1 },
	};
	return t->values++;
}

int tape_input(struct tape *t, enum dtype type, int64_t n, int64_t h, int64_t w, int64_t c,
	       bool gradient)
{
	int v = tape_add_value(t, type, n, h, w, c);

	t->value[v].input = true;
	t->value[v].wants = gradient ? TAPE_INPUTS : 0;
	return v;
}

int tape_input_1d(struct tape *t, int64_t n)
{
	return tape_input(t, DT_F32, n, 0, 0, 0, false);
}

void tape_output(struct tape *t, int value)
{
	CHECK(!t->planned && value >= 0 && value < t->values);
	t->value[value].output = true;
}

void tape_add_op(struct tape *t, const struct op *op)
{
	int wants = op->parameters ? TAPE_PARAMETERS : 0;

	CHECK(!t->planned);
	if (t->ops == t->ops_room) {
		t->ops_room = t->ops_room ? 2 * t->ops_room : 64;
		t->op = xrealloc(t->op, (size_t)t->ops_room, sizeof *t->op);
	}
	for (int i = 0; i < op->inputs; i++) {
		wants |= t->value[op->input[i]].wants;
		t->value[op->input[i]].readers++;
	}
	for (int i = 0; i < op->outputs; i++)
		t->value[op->output[i]].producer = t->ops;
	t->value[op->output[0]].wants = wants;   /* only the first output carries a gradient */
	t->op[t->ops++] = *op;
}

void tape_shape(const struct tape *t, int value, int64_t dim[4])
{
	CHECK(value >= 0 && value < t->values);
	memcpy(dim, t->value[value].dim, sizeof t->value[value].dim);
}

enum dtype tape_type(const struct tape *t, int value)
{
	CHECK(value >= 0 && value < t->values);
	return t->value[value].type;
}

/* ---- times */

static int time_forward(int op) { return op + 1; }
static int time_backward(const struct tape *t, int op) { return 2 * t->ops + 1 - op; }

static void place_extend(struct place *p, int time)
{
	if (!p->used || time < p->first)
		p->first = time;
	if (!p->used || time > p->last)
		p->last = time;
	p->used = true;
}

/* The output of an in-place operation lies where its second input lies, if nobody else needs
 * that. */
static void share_value(struct tape *t, const struct op *op)
{
	struct value *b = &t->value[op->input[1]], *y = &t->value[op->output[0]];
	const struct op *maker;

	if (!op->kind->in_place || b->producer < 0 || b->output || b->readers != 1)
		return;
	maker = &t->op[b->producer];
	for (int i = 0; i < maker->outputs; i++)
		if (maker->output[i] == op->input[1] && maker->kind->reads_y & 1u << i)
			return;
	y->lies_in = b->lies_in;
}

static void live_values(struct tape *t)
{
	int end = 2 * t->ops + 2;

	for (int i = 0; i < t->values; i++) {
		if (t->value[i].input)
			place_extend(&t->value[i].data, 0);
		if (t->value[i].output)
			place_extend(&t->value[i].data, end);
	}
	for (int n = 0; n < t->ops; n++) {
		const struct op *op = &t->op[n];

		share_value(t, op);
		for (int i = 0; i < op->inputs; i++) {
			struct value *x = &t->value[t->value[op->input[i]].lies_in];

			place_extend(&x->data, time_forward(n));
			if (t->training && op->kind->reads_x & 1u << i)
				place_extend(&x->data, end);
		}
		for (int i = 0; i < op->outputs; i++) {
			struct value *y = &t->value[op->output[i]];
			struct value *home = &t->value[y->lies_in];

			place_extend(&home->data, time_forward(n));
			if (y->output || (t->training && op->kind->reads_y & 1u << i))
				place_extend(&home->data, end);
		}
	}
}

/* For y = a + b both gradients are y's. They may lie where it lies when nothing is added to them
 * before the last of the operations that made a and b has read it: for the value `other`, which
 * is read by others too, that those readers come before `alone`, which has the sum as its only
 * reader, was made. */
static void share_gradient(struct tape *t, int n)
{
	const struct op *op = &t->op[n];
	int y = op->output[0];

	for (int i = 0; i < 2; i++) {
		int other = op->input[i], alone = op->input[1 - i];
		bool safe = other != alone && t->value[alone].readers == 1 &&
			    t->value[alone].producer >= 0;

		if (t->value[other].output || t->value[alone].output || t->value[other].input)
			safe = false;
		for (int m = t->value[alone].producer; safe && m < t->ops; m++)
			for (int j = 0; j < t->op[m].inputs; j++)
				if (m != n && t->op[m].input[j] == other)
					safe = false;
		if (!safe)
			continue;
		t->value[alone].gradient_in = t->value[y].gradient_in;
		t->value[other].gradient_in = t->value[y].gradient_in;
		return;
	}
}

/* Backward order: who writes a gradient first, who adds to it, how long it lives. */
static void live_gradients(struct tape *t)
{
	bool *written = xcalloc((size_t)t->values, sizeof *written);

	for (int i = 0; i < t->values; i++)
		if (t->value[i].output && t->value[i].wants) {
			place_extend(&t->value[i].gradient, t->ops + 1);
			written[i] = true;
		}
	for (int n = t->ops - 1; n >= 0; n--) {
		const struct op *op = &t->op[n];
		int y = op->output[0];

		if (!t->value[y].wants)
			continue;
		CHECK(written[y]);   /* otherwise nothing reads it: a dead end */
		place_extend(&t->value[t->value[y].gradient_in].gradient, time_backward(t, n));
		if (op->kind->shares && !written[op->input[0]] && !written[op->input[1]])
			share_gradient(t, n);
		for (int i = 0; i < op->inputs; i++) {
			struct value *x = &t->value[op->input[i]];

			if (!x->wants)
				continue;
			t->adds[n][i] = written[op->input[i]];
			written[op->input[i]] = true;
			place_extend(&t->value[x->gradient_in].gradient, time_backward(t, n));
			if (x->input)
				place_extend(&x->gradient, 2 * t->ops + 2);
		}
	}
	xfree(written);
}

/* ---- places */

struct want { struct place *place; size_t bytes; int order; };

static int by_size(const void *a, const void *b)
{
	const struct want *x = a, *y = b;

	if (x->bytes != y->bytes)
		return x->bytes < y->bytes ? 1 : -1;
	return x->order - y->order;
}

static size_t value_bytes(const struct value *v)
{
	size_t n = dtype_bytes(v->type);

	for (int i = 0; i < v->rank; i++)
		n *= (size_t)v->dim[i];
	return (n + PLACE_ALIGN - 1) / PLACE_ALIGN * PLACE_ALIGN;
}

/* The lowest address where `w` meets none of the placed ones that live at the same time. */
static size_t lowest(const struct want *placed, int n, const struct want *w)
{
	size_t at = 0;
	bool moved = true;

	while (moved) {
		moved = false;
		for (int i = 0; i < n; i++) {
			const struct place *q = placed[i].place;

			if (q->last < w->place->first || q->first > w->place->last)
				continue;
			if (q->at < at + w->bytes && at < q->at + placed[i].bytes) {
				at = q->at + placed[i].bytes;
				moved = true;
			}
		}
	}
	return at;
}

/* Appends a want; returns their number. */
static int add_want(struct want *want, int n, struct place *place, size_t bytes)
{
	want[n] = (struct want){ place, bytes, n };
	return n + 1;
}

static void place_all(struct tape *t)
{
	struct want *want = xcalloc(2 * (size_t)t->values + 1, sizeof *want);
	int n = 0;

	for (int i = 0; i < t->values; i++) {
		struct value *v = &t->value[i];

		if (v->data.used)
			n = add_want(want, n, &v->data, value_bytes(v));
		if (v->gradient.used)
			n = add_want(want, n, &v->gradient, value_bytes(v));
	}
	if (t->scratch.used)
		n = add_want(want, n, &t->scratch, t->scratch_bytes);
	qsort(want, (size_t)n, sizeof *want, by_size);
	for (int i = 0; i < n; i++) {
		want[i].place->at = lowest(want, i, &want[i]);
		if (want[i].place->at + want[i].bytes > t->bytes)
			t->bytes = want[i].place->at + want[i].bytes;
	}
	xfree(want);
}

/* ---- binding */

static struct tensor tensor_at(const struct tape *t, const struct value *v, const struct place *p)
{
	struct tensor x = { t->memory + p->at, v->type, v->rank, { 1, 1, 1, 1 } };

	CHECK(p->used);
	memcpy(x.dim, v->dim, sizeof x.dim);
	return x;
}

struct tensor tape_value(const struct tape *t, int value)
{
	const struct value *v = &t->value[value];

	CHECK(t->planned && value >= 0 && value < t->values);
	return tensor_at(t, v, &t->value[v->lies_in].data);
}

struct tensor tape_gradient(const struct tape *t, int value)
{
	const struct value *v = &t->value[value];

	CHECK(t->training && value >= 0 && value < t->values);
	return tensor_at(t, v, &t->value[v->gradient_in].gradient);
}

static void bind(struct tape *t)
{
	for (int n = 0; n < t->ops; n++) {
		struct op *op = &t->op[n];

		for (int i = 0; i < op->inputs; i++)
			op->x[i] = tape_value(t, op->input[i]);
		for (int i = 0; i < op->outputs; i++)
			op->y[i] = tape_value(t, op->output[i]);
		for (int i = 0; i < op->parameters; i++)
			op->w[i] = params_value(t->p, op->parameter[i]);
		if (t->training && t->value[op->output[0]].wants)
			op->dy[0] = tape_gradient(t, op->output[0]);
	}
}

static void scratch_need(struct tape *t)
{
	for (int n = 0; n < t->ops; n++)
		for (int i = 0; i < t->op[n].inputs; i++) {
			size_t bytes = value_bytes(&t->value[t->op[n].input[i]]);

			if (!t->adds[n][i])
				continue;
			place_extend(&t->scratch, time_backward(t, n));
			if (bytes > t->scratch_bytes)
				t->scratch_bytes = bytes;
		}
}

size_t tape_measure(struct tape *t, bool training)
{
	CHECK(!t->planned && t->ops > 0 && t->bytes == 0);
	t->training = training;
	t->adds = xcalloc((size_t)t->ops, sizeof *t->adds);
	live_values(t);
	if (training) {
		live_gradients(t);
		scratch_need(t);
	}
	place_all(t);
	return t->bytes;
}

int tape_plan(struct tape *t, bool training, struct err *e)
{
	TRY(params_alloc(t->p, training, e));
	tape_measure(t, training);
	t->memory = t->p->k->ops->alloc(t->p->k, t->bytes);
	FAIL_IF(!t->memory, e, TF_ENOMEM, "no memory for a net's activations: %zu MiB wanted",
		t->bytes >> 20);
	t->planned = true;
	bind(t);
	return 0;
}

size_t tape_bytes(const struct tape *t)
{
	return t->bytes;
}

/* ---- passes */

void tape_forward(struct tape *t)
{
	CHECK(t->planned);
	for (int n = 0; n < t->ops; n++)
		t->op[n].kind->forward(t->p->k, &t->op[n]);
}

static struct tensor gradient_target(const struct tape *t, int n, int i)
{
	int v = t->op[n].input[i];
	struct tensor x = tape_gradient(t, v);

	if (t->adds[n][i])
		x.data = t->memory + t->scratch.at;
	return x;
}

static void op_backward(struct tape *t, int n, int what)
{
	struct op *op = &t->op[n];
	const struct kernel_ops *ops = t->p->k->ops;
	int adds = 0;

	for (int i = 0; i < op->inputs; i++) {
		op->dx[i].data = NULL;
		if (t->value[op->input[i]].wants & what) {
			op->dx[i] = gradient_target(t, n, i);
			adds += t->adds[n][i];
		}
	}
	CHECK(adds <= 1);            /* there is one scratch */
	for (int i = 0; i < op->parameters; i++) {
		op->dw[i].data = NULL;
		if (what & TAPE_PARAMETERS)
			op->dw[i] = params_gradient(t->p, op->parameter[i]);
	}
	op->kind->backward(t->p->k, op);
	for (int i = 0; i < op->inputs; i++)
		if (op->dx[i].data && t->adds[n][i]) {
			struct tensor sum = tape_gradient(t, op->input[i]);

			ops->add(t->p->k, sum, sum, op->dx[i]);
		}
}

void tape_backward(struct tape *t, int what)
{
	CHECK(t->planned && t->training);
	for (int n = t->ops - 1; n >= 0; n--)
		if (t->value[t->op[n].output[0]].wants & what)
			op_backward(t, n, what);
}
