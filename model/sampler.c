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

static int check_options(const struct sampler *s, const struct sampler_options *o, struct err *e)
{
	bool draws = o->mode != SAMPLE_TEXT, writes = o->mode != SAMPLE_IMAGE;

	FAIL_IF(draws && dims_patches(&s->m->dims) == 0, e, TF_EINVALID,
		"the model has text alone, it cannot draw");
	FAIL_IF(draws && (o->steps < 1 || o->steps > TIMESTEPS), e, TF_EINVALID,
		"%lld denoising steps, expected 1 to %d", (long long)o->steps, TIMESTEPS);
	FAIL_IF(draws && !(isfinite(o->guidance) && o->guidance >= 0), e, TF_EINVALID,
		"guidance %g, expected 0 or more", (double)o->guidance);
	FAIL_IF(draws && o->guidance != 1 && !s->guided, e, TF_EINVALID,
		"guidance %g, but the sampler was made with one branch", (double)o->guidance);
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

static int check_prompt(const struct sampler *s, const struct sampler_options *o,
			const struct sampler_prompt *p, struct err *e)
{
	const struct document doc = { p->segment, p->segments, true, false };
	int64_t length = sampler_prompt_length(&s->m->dims, p);
	int64_t least = length + (o->mode == SAMPLE_IMAGE ? dims_patches(&s->m->dims) + 2 : 1);

	TRY(document_check(&s->m->dims, &doc, e));
	for (int64_t i = 0; i < p->segments; i++)
		FAIL_IF(p->segment[i].kind == SEGMENT_IMAGE && p->segment[i].time != 0, e,
			TF_EINVALID, "a prompt's picture has timestep %d, expected a clean one",
			p->segment[i].time);
	FAIL_IF(p->index >> 39, e, TF_EINVALID, "sample number %llu, expected below 2^39",
		(unsigned long long)p->index);
	FAIL_IF(least > s->context, e, TF_ELIMIT, "%s needs %lld positions, the context has %lld",
		o->mode == SAMPLE_IMAGE ? "the prompt with its picture" : "the prompt",
		(long long)least, (long long)s->context);
	return 0;
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
	CHECK(q->element[q->picture].patch == 0 && q->fed <= q->picture);
	q->state = SEQUENCE_PICTURE;
}

static void end(struct sequence *q, enum sampler_end why)
{
	q->result.end = why;
	q->state = SEQUENCE_DONE;
}

static void take_token(struct sampler *s, struct sequence *q, int32_t token)
{
	const struct vocabulary *v = &s->m->dims.vocabulary;

	if (token == v->eos) {
		end(q, END_EOS);
	} else if (token == v->boi) {
		if (q->pictures >= s->o->max_images)
			end(q, END_IMAGES);
		else if (q->length + dims_patches(&s->m->dims) + 2 > s->context)
			end(q, END_CONTEXT);
		else
			begin_picture(s, q);
	} else {
		add_token(q, token);
		if (q->tokens >= s->o->max_tokens)
			end(q, END_TOKENS);
		else if (q->length >= s->context)
			end(q, END_CONTEXT);
	}
}

/* Every sequence in `state` is fed up to its end (text) or its picture's BOI; the others idle. */
static void feed(struct sampler *s, enum sequence_state state)
{
	for (int64_t i = 0; i < s->total; i++) {
		struct sequence *q = &s->sequence[i];

		q->until = q->state != state ? q->fed
			   : state == SEQUENCE_PICTURE ? q->picture : q->length;
	}
	sampler_feed(s);
}

static int64_t count_state(const struct sampler *s, enum sequence_state state)
{
	int64_t n = 0;

	for (int64_t i = 0; i < s->count; i++)
		n += s->sequence[i].state == state;
	return n;
}

static int stopped(struct sampler *s, const char *phase, int64_t done, int64_t total, struct err *e)
{
	FAIL_IF(s->watch && s->watch->step(s->watch->arg, phase, done, total), e, TF_ECANCELLED,
		"stopped after %lld of %lld (%s)", (long long)done, (long long)total, phase);
	return 0;
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
		if (s->o->max_tokens - q->tokens > wanted)
			wanted = s->o->max_tokens - q->tokens;
	}
	return n < wanted ? n : wanted;
}

/* Tokens for every sequence that writes: at first from what its prompt or picture ends in. */
static int text_round(struct sampler *s, struct err *e)
{
	const struct vocabulary *v = &s->m->dims.vocabulary;
	int64_t n = tokens_ahead(s), most = 0;
	const int32_t *token = s->host_drawn;

	s->bound = s->o->mode == SAMPLE_FREE ? v->boi + 1 : v->pieces;
	if (n == 0) {
		feed(s, SEQUENCE_TEXT);
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
			most = q->tokens > most ? q->tokens : most;
		}
	return stopped(s, "token", most, s->o->max_tokens, e);
}

/* All pictures that are wanted. Afterwards text goes on behind the clean latent: its patches are
 * fed again (time value 1) with EOI by the next text round. */
static int picture_round(struct sampler *s, struct err *e)
{
	TRY(stopped(s, "prompt", 0, s->count, e));
	feed(s, SEQUENCE_PICTURE);
	TRY(sampler_denoise(s, e));
	for (int64_t i = 0; i < s->count; i++) {
		struct sequence *q = &s->sequence[i];

		if (q->state != SEQUENCE_PICTURE)
			continue;
		q->pictures++;
		if (s->o->mode == SAMPLE_IMAGE)
			end(q, END_IMAGES);
		else if (q->length >= s->context)
			end(q, END_CONTEXT);
		else
			q->state = SEQUENCE_TEXT;
	}
	return 0;
}

static void begin(struct sampler *s, const struct sampler_prompt *prompt)
{
	for (int64_t i = 0; i < s->total; i++) {
		struct sequence *q = &s->sequence[i];

		q->element = xcalloc((size_t)s->context + 1, sizeof *q->element);
		q->state = SEQUENCE_TEXT;
		if (i < s->count) {
			q->prompt = &prompt[i];
			for (int64_t j = 0; j < q->prompt->segments; j++)
				add_segment(q, q->prompt->segment[j]);
		}
		lay_out(s, q);
		if (i >= s->count || s->o->mode == SAMPLE_IMAGE)
			begin_picture(s, q);
	}
}

static void finish(struct sampler *s, struct sampler_result *result)
{
	sampler_forget_graphs(s);
	for (int64_t i = 0; i < s->total; i++) {
		struct sequence *q = &s->sequence[i];

		if (result && i < s->count)
			result[i] = q->result;
		else
			sampler_result_release(&q->result);
		xfree(q->segment);
		xfree(q->element);
	}
	xfree(s->sequence);
}

/* One group of prompts, at most s->sequences. */
static int run_group(struct sampler *s, const struct sampler_prompt *prompt, int64_t n,
		     struct sampler_result *result, struct err *e)
{
	bool draws = s->o->mode != SAMPLE_TEXT;
	int rc = 0;

	s->count = n;
	s->total = draws && s->o->guidance != 1 ? 2 * n : n;
	s->sequence = xcalloc((size_t)s->total, sizeof *s->sequence);
	begin(s, prompt);
	while (rc == 0) {
		if (count_state(s, SEQUENCE_TEXT) > 0)
			rc = text_round(s, e);
		else if (count_state(s, SEQUENCE_PICTURE) > 0)
			rc = picture_round(s, e);
		else
			break;
	}
	finish(s, rc == 0 ? result : NULL);
	return rc;
}

int sampler_run(struct sampler *s, const struct sampler_options *o,
		const struct sampler_prompt *prompt, int64_t n, const struct sampler_watch *watch,
		struct sampler_result *result, struct err *e)
{
	int rc = 0;

	TRY(check_options(s, o, e));
	for (int64_t i = 0; i < n; i++)
		TRY(check_prompt(s, o, &prompt[i], e));
	s->o = o;
	s->watch = watch;
	for (int64_t done = 0; done < n && rc == 0; ) {
		int64_t group = n - done < s->sequences ? n - done : s->sequences;

		rc = run_group(s, prompt + done, group, result + done, e);
		for (int64_t i = 0; rc < 0 && i < done; i++)
			sampler_result_release(&result[i]);
		done += group;
	}
	return rc;
}
