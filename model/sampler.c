/* SPDX-License-Identifier: Apache-2.0
 * Generation: what each sequence does next; see sampler.h. A run takes prompts in groups of as
 * many as the cache has room for. In a group all sequences that write text step together until
 * each has ended or wants a picture; then all pictures that are wanted are drawn together; and so
 * on. */
#include "config.h"
#include "model/sampler_plan.h"
#include "lib/mem.h"

#include <math.h>

#define ORDINAL_BITS 12
#define STEP_BITS 12

uint64_t sampler_stream(uint64_t index, int64_t ordinal, int64_t step)
{
	CHECK(ordinal >= 0 && ordinal < 1 << ORDINAL_BITS && step >= 0 && step < 1 << STEP_BITS);
	return index << (ORDINAL_BITS + STEP_BITS) | (uint64_t)ordinal << STEP_BITS
	       | (uint64_t)step;
}

void sampler_result_release(struct sampler_result *r)
{
	for (int64_t i = 0; i < r->parts; i++) {
		xfree(r->part[i].token);
		xfree(r->part[i].latent);
	}
	xfree(r->part);
	*r = (struct sampler_result){ 0 };
}

int64_t sampler_prompt_length(const struct dims *dims, const struct sampler_prompt *p)
{
	const struct document doc = { p->segment, p->segments, true, false };

	return document_length(dims, &doc);
}

int64_t sampler_context(const struct dims *dims, const struct sampler_options *o,
			int64_t prompt_length)
{
	int64_t picture = dims_patches(dims) + 2;

	if (o->mode == SAMPLE_IMAGE)
		return prompt_length + picture;
	if (o->mode == SAMPLE_TEXT)
		return prompt_length + o->max_tokens;
	return prompt_length + o->max_tokens + o->max_images * picture;
}

static int check_options(const struct dims *dims, const struct sampler_options *o, struct err *e)
{
	bool draws = o->mode != SAMPLE_TEXT, writes = o->mode != SAMPLE_IMAGE;

	FAIL_IF(draws && dims_patches(dims) == 0, e, TF_EINVALID,
		"the model has text alone, it cannot draw");
	FAIL_IF(draws && (o->steps < 1 || o->steps > TIMESTEPS), e, TF_EINVALID,
		"%lld denoising steps, expected 1 to %d", (long long)o->steps, TIMESTEPS);
	FAIL_IF(draws && !(isfinite(o->guidance) && o->guidance >= 0), e, TF_EINVALID,
		"guidance %g, expected 0 or more", (double)o->guidance);
	FAIL_IF(draws && !(o->clamp >= 0), e, TF_EINVALID, "clamp %g, expected 0 or more",
		(double)o->clamp);
	FAIL_IF(writes && !(o->temperature >= 0 && isfinite(o->temperature)), e, TF_EINVALID,
		"temperature %g, expected 0 or more", (double)o->temperature);
	FAIL_IF(writes && !(o->top_p > 0 && o->top_p <= 1), e, TF_EINVALID,
		"top-p %g, expected above 0 and at most 1", (double)o->top_p);
	FAIL_IF(writes && o->max_tokens < 1, e, TF_EINVALID,
		"at most %lld tokens, expected at least 1", (long long)o->max_tokens);
	FAIL_IF(o->mode == SAMPLE_FREE && (o->max_images < 0 || o->max_images >= 1 << ORDINAL_BITS),
		e, TF_EINVALID, "at most %lld pictures, expected 0 to %d", (long long)o->max_images,
		(1 << ORDINAL_BITS) - 1);
	return 0;
}

static int check_prompt(const struct dims *dims, int64_t context, const struct sampler_options *o,
			const struct sampler_prompt *p, struct err *e)
{
	const struct document doc = { p->segment, p->segments, true, false };
	int64_t length = sampler_prompt_length(dims, p);
	int64_t least = length + (o->mode == SAMPLE_IMAGE ? dims_patches(dims) + 2 : 1);

	TRY(document_check(dims, &doc, e));
	for (int64_t i = 0; i < p->segments; i++)
		FAIL_IF(p->segment[i].kind == SEGMENT_IMAGE && p->segment[i].time != 0, e,
			TF_EINVALID, "a prompt's picture has timestep %d, expected a clean one",
			p->segment[i].time);
	FAIL_IF(p->index >> 39, e, TF_EINVALID, "sample number %llu, expected below 2^39",
		(unsigned long long)p->index);
	FAIL_IF(least > context, e, TF_ELIMIT, "%s needs %lld positions, the context has %lld",
		o->mode == SAMPLE_IMAGE ? "the prompt with its picture" : "the prompt",
		(long long)least, (long long)context);
	return 0;
}

int sampler_check(const struct dims *dims, int64_t context, const struct sampler_options *o,
		  const struct sampler_prompt *prompt, int64_t n, struct err *e)
{
	TRY(check_options(dims, o, e));
	for (int64_t i = 0; i < n; i++)
		TRY(check_prompt(dims, context, o, &prompt[i], e));
	return 0;
}

bool sampler_is_guided(const struct sampler_options *o)
{
	return o->mode != SAMPLE_TEXT && (o->guidance < 1 || o->guidance > 1);
}

static void lay_out(struct sampler *s, struct sequence *q)
{
	const struct document doc = { q->segment, q->segments, true, false };

	CHECK(document_length(&s->m->dims, &doc) <= s->context);
	document_layout(&s->m->dims, &doc, q->element);
	q->length = (int32_t)document_length(&s->m->dims, &doc);
}

static void add_segment(struct sequence *q, struct segment segment)
{
	q->segment = xrealloc(q->segment, (size_t)q->segments + 1, sizeof *q->segment);
	q->segment[q->segments++] = segment;
}

static struct sampler_part *add_part(struct sequence *q, enum segment_kind kind)
{
	struct sampler_result *r = &q->result;

	r->part = xrealloc(r->part, (size_t)r->parts + 1, sizeof *r->part);
	r->part[r->parts] = (struct sampler_part){ .kind = kind };
	return &r->part[r->parts++];
}

/* Appends a drawn token: to the last part, which is a text or becomes one. */
static void add_token(struct sequence *q, int32_t token)
{
	struct sampler_result *r = &q->result;
	struct sampler_part *p = r->parts && r->part[r->parts - 1].kind == SEGMENT_TEXT
				 ? &r->part[r->parts - 1] : add_part(q, SEGMENT_TEXT);

	p->token = xrealloc(p->token, (size_t)p->count + 1, sizeof *p->token);
	p->token[p->count++] = token;
	element_token(&q->element[q->length], q->length, token, -1);
	q->length++;
	q->tokens++;
}

/* The texts drawn since the last picture become segments, a picture follows them, and all is laid
 * out anew: its BOI takes the place after the last element, and what is in the cache stays as it
 * is. */
static void begin_picture(struct sampler *s, struct sequence *q)
{
	int64_t E = dims_latent(&s->m->dims);
	struct segment picture = { .kind = SEGMENT_IMAGE };
	int32_t before = q->length;

	if (q->prompt) {
		struct sampler_result *r = &q->result;
		struct sampler_part *p = r->parts ? &r->part[r->parts - 1] : NULL;

		if (p && p->kind == SEGMENT_TEXT)
			add_segment(q, (struct segment){ .kind = SEGMENT_TEXT, .token = p->token,
							 .count = p->count });
		p = add_part(q, SEGMENT_IMAGE);
		p->latent = xcalloc((size_t)E, sizeof *p->latent);
		picture.latent = p->latent;
	}
	add_segment(q, picture);
	lay_out(s, q);
	q->picture = before + 1;
	q->step = -1;
	CHECK(q->element[q->picture].patch == 0 && q->fed <= q->picture);
	q->state = SEQUENCE_PICTURE;
}

/* What came of it is the entry's. */
static void end(struct sequence *q, enum sampler_end why)
{
	q->result.end = why;
	q->state = SEQUENCE_DONE;
	q->entry->result = q->result;
	q->entry->ended = true;
	q->result = (struct sampler_result){ 0 };
}

static void take_token(struct sampler *s, struct sequence *q, int32_t token)
{
	const struct vocabulary *v = &s->m->dims.vocabulary;

	if (token == v->eos) {
		end(q, END_EOS);
	} else if (token == v->boi) {
		if (q->pictures >= q->o->max_images)
			end(q, END_IMAGES);
		else if (q->length + dims_patches(&s->m->dims) + 2 > s->context)
			end(q, END_CONTEXT);
		else
			begin_picture(s, q);
	} else {
		add_token(q, token);
		if (q->tokens >= q->o->max_tokens)
			end(q, END_TOKENS);
		else if (q->length >= s->context)
			end(q, END_CONTEXT);
	}
}

void sampler_feed_state(struct sampler *s, enum sequence_state state, int64_t first, int64_t n,
			int32_t less)
{
	for (int64_t i = first; i < first + n; i++) {
		struct sequence *q = &s->sequence[i];
		int32_t until = state == SEQUENCE_PICTURE ? q->picture : q->length - less;

		q->until = q->state == state && until > q->fed ? until : q->fed;
	}
	sampler_feed(s, first, n);
}

static int64_t count_state(const struct sampler *s, enum sequence_state state)
{
	int64_t n = 0;

	for (int64_t i = 0; i < s->count; i++)
		n += s->sequence[i].state == state;
	return n;
}

/* Tokens to be written before the host looks again: as many as every text has room for, or 0 where
 * one has more to be fed than its last token. */
static int64_t tokens_ahead(const struct sampler *s)
{
	int64_t n = s->tokens_ahead, wanted = 0;

	for (int64_t i = 0; i < s->count; i++) {
		const struct sequence *q = &s->sequence[i];

		if (q->state != SEQUENCE_TEXT)
			continue;
		if (q->length - q->fed != 1 || q->element[q->fed].patch >= 0)
			return 0;
		if (s->context - q->length + 1 < n)
			n = s->context - q->length + 1;
		if (q->o->max_tokens - q->tokens > wanted)
			wanted = q->o->max_tokens - q->tokens;
	}
	return n < wanted ? n : wanted;
}

/* Tokens for every sequence that writes: at first from what its prompt or picture ends in. */
static void text_round(struct sampler *s)
{
	const struct vocabulary *v = &s->m->dims.vocabulary;
	int64_t n = tokens_ahead(s);
	const int32_t *token = s->host_drawn;

	s->bound = s->mode == SAMPLE_FREE ? v->boi + 1 : v->pieces;
	if (n == 0) {
		sampler_feed_state(s, SEQUENCE_TEXT, 0, s->total, 0);
		sampler_draw_tokens(s, s->host_drawn);
		n = 1;
	} else {
		token = sampler_write(s, n);
	}
	for (int64_t k = 0; k < n; k++)
		for (int64_t i = 0; i < s->count; i++) {
			struct sequence *q = &s->sequence[i];

			if (q->state == SEQUENCE_TEXT) {
				q->fed = q->length;
				take_token(s, q, token[k * s->count + i]);
			}
		}
}

/* The first of n sequences that has more to be fed before its picture; n: none has. */
static int64_t first_unfed(const struct sequence *q, int64_t n)
{
	int64_t i = 0;

	while (i < n && !(q[i].state == SEQUENCE_PICTURE && q[i].fed < q[i].picture))
		i++;
	return i;
}

/* Pictures that were not begun: their prompts, then noise. Those under way lie before them. */
static void prompt_round(struct sampler *s)
{
	int64_t others = s->total - s->count;
	int64_t i = first_unfed(s->sequence, s->count);
	int64_t j = first_unfed(s->sequence + s->count, others);

	if (i == 0 && j == 0) {
		sampler_feed_state(s, SEQUENCE_PICTURE, 0, s->total, 0);
	} else {
		if (i < s->count)
			sampler_feed_state(s, SEQUENCE_PICTURE, i, s->count - i, 0);
		if (j < others)
			sampler_feed_state(s, SEQUENCE_PICTURE, s->count + j, others - j, 0);
	}
	sampler_begin_pictures(s);
}

/* The next steps of all pictures. After the last one text goes on behind the clean latent: its
 * patches are fed again (time value 1) with EOI by the next text round. */
static void picture_round(struct sampler *s)
{
	sampler_denoise(s);
	for (int64_t i = 0; i < s->count; i++) {
		struct sequence *q = &s->sequence[i];

		if (q->state != SEQUENCE_PICTURE || q->step < q->o->steps)
			continue;
		q->pictures++;
		if (s->mode == SAMPLE_IMAGE)
			end(q, END_IMAGES);
		else if (q->length >= s->context)
			end(q, END_CONTEXT);
		else
			q->state = SEQUENCE_TEXT;
	}
}

void sampler_begin(struct sampler *s, struct sequence *q, struct sampler_entry *entry)
{
	*q = (struct sequence){ .entry = entry, .state = SEQUENCE_TEXT };
	q->element = xcalloc((size_t)s->context + 1, sizeof *q->element);
	if (entry) {
		q->o = entry->options;
		q->prompt = entry->prompt;
		for (int64_t j = 0; j < q->prompt->segments; j++)
			add_segment(q, q->prompt->segment[j]);
	}
	lay_out(s, q);
	if (!entry || s->mode == SAMPLE_IMAGE)
		begin_picture(s, q);
}

enum sampler_phase sampler_next(const struct sampler *s)
{
	if (count_state(s, SEQUENCE_TEXT) > 0)
		return SAMPLER_WRITES;
	for (int64_t i = 0; i < s->count; i++)
		if (s->sequence[i].state == SEQUENCE_PICTURE && s->sequence[i].step < 0)
			return SAMPLER_BEGINS;
	return count_state(s, SEQUENCE_PICTURE) > 0 ? SAMPLER_DRAWS : SAMPLER_RESTS;
}

static void tell_entries(struct sampler *s)
{
	for (int64_t i = 0; i < s->count; i++) {
		struct sequence *q = &s->sequence[i];

		q->entry->done = s->mode != SAMPLE_IMAGE ? q->tokens : q->step > 0 ? q->step : 0;
	}
}

void sampler_step(struct sampler *s)
{
	switch (sampler_next(s)) {
	case SAMPLER_RESTS: return;
	case SAMPLER_WRITES: text_round(s); break;
	case SAMPLER_BEGINS: prompt_round(s); break;
	case SAMPLER_DRAWS: picture_round(s); break;
	}
	tell_entries(s);
}

/* ---- one run */

static int stopped(const struct sampler_watch *w, const char *phase, int64_t done, int64_t total,
		   struct err *e)
{
	FAIL_IF(w && w->step(w->arg, phase, done, total), e, TF_ECANCELLED,
		"stopped after %lld of %lld (%s)", (long long)done, (long long)total, phase);
	return 0;
}

static int step_watched(struct sampler *s, const struct sampler_options *o,
			const struct sampler_watch *w, struct err *e)
{
	enum sampler_phase next = sampler_next(s);
	int64_t most = 0;

	if (next == SAMPLER_BEGINS)
		TRY(stopped(w, "prompt", 0, s->count, e));
	if (next == SAMPLER_DRAWS) {
		for (int64_t i = 0; i < s->count; i++)
			if (s->sequence[i].state == SEQUENCE_PICTURE)
				most = s->sequence[i].step;
		s->k->ops->sync(s->k);
		TRY(stopped(w, "denoise", most, o->steps, e));
	}
	sampler_step(s);
	if (next != SAMPLER_WRITES)
		return 0;
	for (int64_t i = 0; i < s->count; i++)
		most = s->sequence[i].tokens > most ? s->sequence[i].tokens : most;
	return stopped(w, "token", most, o->max_tokens, e);
}

/* One group of prompts, at most s->sequences. */
static int run_group(struct sampler *s, const struct sampler_options *o,
		     const struct sampler_prompt *prompt, int64_t n, const struct sampler_watch *w,
		     struct sampler_result *result, struct err *e)
{
	struct sampler_entry *entry = xcalloc((size_t)n, sizeof *entry);
	int rc = 0;

	for (int64_t i = 0; i < n; i++)
		entry[i] = (struct sampler_entry){ .options = o, .prompt = &prompt[i] };
	sampler_admit(s, entry, n);
	while (rc == 0 && sampler_next(s) != SAMPLER_RESTS)
		rc = step_watched(s, o, w, e);
	sampler_clear(s);
	for (int64_t i = 0; i < n; i++) {
		if (rc == 0)
			result[i] = entry[i].result;
		else
			sampler_result_release(&entry[i].result);
	}
	xfree(entry);
	return rc;
}

int sampler_run(struct sampler *s, const struct sampler_options *o,
		const struct sampler_prompt *prompt, int64_t n, const struct sampler_watch *watch,
		struct sampler_result *result, struct err *e)
{
	int rc = 0;

	TRY(sampler_check(&s->m->dims, s->context, o, prompt, n, e));
	FAIL_IF(sampler_is_guided(o) && !s->guided, e, TF_EINVALID,
		"guidance %g, but the sampler was made with one branch", (double)o->guidance);
	CHECK(s->count == 0);
	for (int64_t done = 0; done < n && rc == 0; ) {
		int64_t group = n - done < s->sequences ? n - done : s->sequences;

		rc = run_group(s, o, prompt + done, group, watch, result + done, e);
		for (int64_t i = 0; rc < 0 && i < done; i++)
			sampler_result_release(&result[i]);
		done += group;
	}
	return rc;
}
