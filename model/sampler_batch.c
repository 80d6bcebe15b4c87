/* SPDX-License-Identifier: Apache-2.0
 * Who is in a sampler: prompts come while others are under way, leave, and what is left closes up.
 * The prompts' sequences are 0 .. count - 1 and the unconditional ones follow, all of which are
 * the same, so that an evaluation takes the cache from its beginning. A sequence that moves takes
 * its keys and values along: of a picture under way those before it (the patches' are written anew
 * in each step), of a text all. */
#include "config.h"
#include "model/sampler_plan.h"
#include "lib/mem.h"

#include <string.h>

int64_t sampler_room(const struct sampler *s)
{
	return s->sequences - s->count;
}

int64_t sampler_count(const struct sampler *s)
{
	return s->count;
}

int64_t sampler_ended(const struct sampler *s)
{
	int64_t n = 0;

	for (int64_t i = 0; i < s->count; i++)
		n += s->sequence[i].state == SEQUENCE_DONE;
	return n;
}

int64_t sampler_positions(const struct sampler *s)
{
	return s->context;
}

/* ---- moving */

static void copy_rows(struct kernels *k, struct tensor to, int64_t i, struct tensor from, int64_t j,
		      int64_t positions)
{
	struct tensor a = sampler_rows(to, i, 1), b = sampler_rows(from, j, 1);
	size_t bytes = (size_t)(positions * to.dim[2]) * dtype_bytes(to.type);

	k->ops->copy(k, a.data, b.data, bytes);
}

/* Sequence j of `from` becomes sequence i of `to`, where nothing is that is still wanted. */
static void move(struct sampler *to, int64_t i, struct sampler *from, int64_t j)
{
	struct sequence *q = &from->sequence[j];
	int64_t positions = q->fed < q->picture || q->state != SEQUENCE_PICTURE ? q->fed
									       : q->picture;

	if (to == from && i == j)
		return;
	for (int64_t l = 0; positions > 0 && l < to->m->dims.layers; l++) {
		copy_rows(to->k, to->keys[l], i, from->keys[l], j, positions);
		copy_rows(to->k, to->values[l], i, from->values[l], j, positions);
	}
	if (q->entry && q->state == SEQUENCE_PICTURE) {
		struct tensor a = sampler_rows(to->t[PICTURE], i, 1);
		struct tensor b = sampler_rows(from->t[PICTURE], j, 1);

		to->k->ops->copy(to->k, a.data, b.data, tensor_bytes(&a));
	}
	to->sequence[i] = *q;
	*q = (struct sequence){ .state = SEQUENCE_DONE };
}

static void release(struct sequence *q)
{
	sampler_result_release(&q->result);
	xfree(q->segment);
	xfree(q->element);
	*q = (struct sequence){ .state = SEQUENCE_DONE };
}

static void set_count(struct sampler *s, int64_t count)
{
	s->count = count;
	s->total = s->branches * count;
	s->laid = false;
}

/* ---- coming */

void sampler_admit(struct sampler *s, struct sampler_entry *entry, int64_t n)
{
	const struct sampler_options *o = entry->options;
	int64_t before = s->count, others = s->total - s->count;

	CHECK(n > 0 && n <= sampler_room(s));
	if (before == 0) {
		s->mode = o->mode;
		s->branches = sampler_is_guided(o) ? 2 : 1;
	}
	CHECK(s->branches == 1 || s->guided);
	CHECK(before == 0 || s->mode != SAMPLE_FREE);
	for (int64_t i = others; i-- > 0; )
		move(s, before + n + i, s, before + i);
	set_count(s, before + n);
	for (int64_t i = 0; i < n; i++) {
		CHECK(entry[i].options->mode == s->mode &&
		      sampler_is_guided(entry[i].options) == (s->branches == 2));
		sampler_begin(s, &s->sequence[before + i], &entry[i]);
	}
	for (int64_t i = s->count + others; i < s->total; i++)
		sampler_begin(s, &s->sequence[i], NULL);
	/* the others go on with a token each, and so do these once all but their last one is fed */
	if (before > 0 && s->mode == SAMPLE_TEXT)
		sampler_feed_state(s, SEQUENCE_TEXT, before, n, 1);
}

/* ---- leaving */

void sampler_close_up(struct sampler *s)
{
	int64_t before = s->count, count = before;

	for (int64_t i = 0; i < count; ) {
		if (s->sequence[i].state != SEQUENCE_DONE) {
			i++;
			continue;
		}
		release(&s->sequence[i]);
		move(s, i, s, --count);
	}
	if (count == before)
		return;
	for (int64_t i = 0; s->branches > 1 && i < before; i++) {
		if (i < count)
			move(s, count + i, s, before + i);
		else
			release(&s->sequence[before + i]);
	}
	set_count(s, count);
}

void sampler_drop(struct sampler *s, const struct sampler_entry *entry, int64_t n)
{
	for (int64_t i = 0; i < s->count; i++)
		if (s->sequence[i].entry >= entry && s->sequence[i].entry < entry + n)
			s->sequence[i].state = SEQUENCE_DONE;
	sampler_close_up(s);
}

void sampler_clear(struct sampler *s)
{
	for (int64_t i = 0; i < s->total; i++)
		release(&s->sequence[i]);
	set_count(s, 0);
}

/* ---- other sizes */

int sampler_resize(struct sampler **s, int64_t sequences, int64_t context, struct err *e)
{
	struct sampler *old = *s, *new = NULL;

	CHECK(sequences >= old->count && context >= old->context);
	TRY(sampler_new(old->m, sequences, context, old->guided, &new, e));
	new->mode = old->mode;
	new->branches = old->branches;
	new->evaluations = old->evaluations;
	for (int64_t i = 0; i < old->total; i++) {
		struct sequence *q = &new->sequence[i];

		move(new, i, old, i);
		q->element = xrealloc(q->element, (size_t)context + 1, sizeof *q->element);
	}
	set_count(new, old->count);
	old->total = 0; /* nothing of them is its own any more */
	sampler_free(old);
	*s = new;
	return 0;
}
