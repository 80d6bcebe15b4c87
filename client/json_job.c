/* SPDX-License-Identifier: Apache-2.0
 * A job as --json prints it, see json.c. Lists have ten thousands of jobs, so it is written as text
 * at once; what wants a tree of it reads that text. */
#include "config.h"
#include "client/client.h"
#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "proto/retry.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- values */

/* As buf_append, but for the zero behind, which json_item_job puts at the end. */
static inline void put(struct buf *out, const char *text, size_t len)
{
	if (out->room - out->len <= len)
		buf_reserve(out, len);
	memcpy(out->data + out->len, text, len);
	out->len += len;
}

static void put_null(struct buf *out)
{
	put(out, "null", 4);
}

static void put_escaped(struct buf *out, unsigned char c)
{
	static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
	const char *at = strchr(plain, c);

	if (at)
		put(out, (char[]){ '\\', letter[at - plain] }, 2);
	else
		buf_printf(out, "\\u%04X", c);
}

/* How many bytes from the beginning need no escape; seven more may not. */
static size_t plain_length(const char *text, size_t len)
{
	size_t n = 0;

	while (len - n >= 8) {
		uint64_t word = bytes_load(text + n);

		if (!bytes_are_from(word, ' ') || !bytes_lack(word, '"') || !bytes_lack(word, '\\'))
			break;
		n += 8;
	}
	return n;
}

static void put_string(struct buf *out, const char *text)
{
	size_t len = strlen(text), from = 0;

	put(out, "\"", 1);
	for (size_t i = plain_length(text, len); i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c >= ' ' && c != '"' && c != '\\')
			continue;
		put(out, text + from, i - from);
		put_escaped(out, c);
		from = i + 1;
	}
	put(out, text + from, len - from);
	put(out, "\"", 1);
}

/* As jansson reads them: what is over INT64_MAX is none of ours. */
static void put_whole(struct buf *out, uint64_t n)
{
	char digits[24];

	put(out, digits, (size_t)(format_whole(n <= INT64_MAX ? n : INT64_MAX, digits) - digits));
}

static void put_real(struct buf *out, double x)
{
	char text[64];
	json_t *value;

	if (!isfinite(x)) {
		put_null(out);
		return;
	}
	value = json_real(x);
	put(out, text, json_dumpb(value, text, sizeof text,
					 JSON_ENCODE_ANY | JSON_REAL_PRECISION(JSON_DIGITS)));
	json_decref(value);
}

/* ---- members of an object */

/* Between values of an object or array, not before the first. */
static void put_comma(struct buf *out)
{
	char last = out->len ? out->data[out->len - 1] : '[';

	if (last != '{' && last != '[')
		put(out, ",", 1);
}

/* A name that may need escapes. */
static void key_of(struct buf *out, const char *name)
{
	put_comma(out);
	put_string(out, name);
	put(out, ":", 1);
}

/* With a literal as its name a key and its value are few instructions; a job has thirty. */
#define LITERAL static inline __attribute__((always_inline))

LITERAL void key(struct buf *out, const char *name)
{
	size_t len = strlen(name);
	char *p;

	if (out->room - out->len <= len + 4)
		buf_reserve(out, len + 4);
	put_comma(out);
	p = out->data + out->len;
	*p = '"';
	memcpy(p + 1, name, len);
	memcpy(p + 1 + len, "\":", 2);
	out->len += len + 3;
}

LITERAL void text_or_null(struct buf *out, const char *name, const char *text)
{
	key(out, name);
	if (text && *text)
		put_string(out, text);
	else
		put_null(out);
}

LITERAL void whole(struct buf *out, const char *name, uint64_t n)
{
	key(out, name);
	put_whole(out, n);
}

LITERAL void whole_or_null(struct buf *out, const char *name, protobuf_c_boolean has, uint64_t n)
{
	key(out, name);
	if (has)
		put_whole(out, n);
	else
		put_null(out);
}

LITERAL void real_or_null(struct buf *out, const char *name, protobuf_c_boolean has, double x)
{
	key(out, name);
	put_real(out, has ? x : NAN);
}

LITERAL void time_or_null(struct buf *out, const char *name, protobuf_c_boolean has, int64_t ms)
{
	char text[CLOCK_TEXT_MAX] = "";

	if (has && ms > 0)
		clock_format_ms(ms, text);
	text_or_null(out, name, text);
}

static void ids(struct buf *out, const char *name, size_t n, const uint64_t *id)
{
	key(out, name);
	put(out, "[", 1);
	for (size_t i = 0; i < n; i++) {
		put_comma(out);
		put_whole(out, id[i]);
	}
	put(out, "]", 1);
}

static void metrics(struct buf *out, const char *name, size_t n, Tf__Metric **metric)
{
	key(out, name);
	put(out, "{", 1);
	for (size_t i = 0; i < n; i++) {
		key_of(out, metric[i]->name);
		put_real(out, metric[i]->value);
	}
	put(out, "}", 1);
}

/* ---- parts of a job */

static void progress(struct buf *out, const Tf__Progress *p)
{
	key(out, "progress");
	if (!p) {
		put_null(out);
		return;
	}
	put(out, "{", 1);
	text_or_null(out, "phase", p->phase);
	whole_or_null(out, "done", p->has_done, p->done);
	whole_or_null(out, "total", p->has_total && p->total, p->total);
	text_or_null(out, "unit", p->unit);
	real_or_null(out, "rate", p->has_rate, p->rate);
	real_or_null(out, "eta_s", p->has_eta_s, p->eta_s);
	metrics(out, "metrics", p->n_metric, p->metric);
	put(out, "}", 1);
}

/* What was asked for; what was not is left out. */
static void demand(struct buf *out, const Tf__Demand *d)
{
	const struct {
		const char *name;
		uint64_t n;
	} first[] = { { "gpus", d ? d->gpus : 0 },
		      { "gpu_mem", d ? d->gpu_mem : 0 },
		      { "cpus", d ? d->cpus : 0 },
		      { "mem", d ? d->mem : 0 } };

	key(out, "demand");
	put(out, "{", 1);
	for (size_t i = 0; i < ARRAY_LEN(first); i++)
		if (first[i].n)
			whole(out, first[i].name, first[i].n);
	if (d && d->has_priority)
		text_or_null(out, "priority", priority_name(d->priority));
	if (d && d->walltime)
		whole(out, "walltime_s", d->walltime);
	if (d && d->has_begin)
		time_or_null(out, "begin", true, d->begin);
	if (d && d->has_deadline)
		time_or_null(out, "deadline", true, d->deadline);
	put(out, "}", 1);
}

static void stops(struct buf *out, const Tf__Job *j)
{
	key(out, "stops");
	put(out, "[", 1);
	for (size_t i = 0; i < j->n_stop; i++) {
		put_comma(out);
		put(out, "{", 1);
		text_or_null(out, "reason", stop_reason_name(j->stop[i]->reason));
		whole(out, "times", j->stop[i]->times);
		real_or_null(out, "lost_s", true, j->stop[i]->lost_s);
		put(out, "}", 1);
	}
	put(out, "]", 1);
}

static void tags(struct buf *out, const Tf__Job *j)
{
	key(out, "tags");
	put(out, "[", 1);
	for (size_t i = 0; i < j->n_tag; i++) {
		put_comma(out);
		put_string(out, j->tag[i]);
	}
	put(out, "]", 1);
}

/* How many attempts failed, of each kind: {"crash": 1}. */
static void failures(struct buf *out, const Tf__Job *j)
{
	key(out, "failures");
	put(out, "{", 1);
	for (size_t i = 1; i < j->n_failed && i < FAILURES; i++)
		if (j->failed[i])
			whole(out, failure_name((Tf__Failure)i), j->failed[i]);
	put(out, "}", 1);
}

/* Milliseconds of a job: in the queue, then its work by stage: {"queue_ms": 1, "load_ms": 0.2}. */
static void timing(struct buf *out, const Tf__Job *j)
{
	key(out, "timing");
	put(out, "{", 1);
	if (j->n_timing && j->started >= j->submitted)
		whole(out, "queue_ms", (uint64_t)(j->started - j->submitted));
	for (size_t i = 0; i < j->n_timing; i++) {
		char *name = xasprintf("%s_ms", j->timing[i]->name);

		key_of(out, name);
		put_real(out, j->timing[i]->value);
		xfree(name);
	}
	put(out, "}", 1);
}

void json_item_job(struct buf *out, const Tf__Job *j)
{
	put_comma(out);
	put(out, "{", 1);
	whole(out, "id", j->id);
	text_or_null(out, "kind", job_kind_name(j->kind));
	text_or_null(out, "name", j->name);
	text_or_null(out, "project", j->project);
	text_or_null(out, "user", j->user);
	text_or_null(out, "state", job_state_name(j->state));
	time_or_null(out, "submitted", j->has_submitted, j->submitted);
	time_or_null(out, "started", j->has_started, j->started);
	time_or_null(out, "ended", j->has_ended, j->ended);
	progress(out, j->progress);
	text_or_null(out, "reason", j->reason);
	whole(out, "attempt", j->has_attempt ? j->attempt : 0);
	text_or_null(out, "slot", j->slot);
	demand(out, j->demand);
	whole_or_null(out, "place", j->has_place, j->place);
	text_or_null(out, "waits", j->waits);
	time_or_null(out, "expected_start", j->has_expected_start, j->expected_start);
	stops(out, j);
	metrics(out, "result", j->n_result, j->result);
	timing(out, j);
	tags(out, j);
	text_or_null(out, "group", j->group);
	ids(out, "after", j->n_after, j->after);
	ids(out, "after_any", j->n_after_any, j->after_any);
	ids(out, "after_failed", j->n_after_failed, j->after_failed);
	failures(out, j);
	time_or_null(out, "next_try", j->has_next_try, j->next_try);
	whole(out, "requeued", j->has_requeued ? j->requeued : 0);
	buf_append(out, "}", 1);
}

json_t *json_of_job(const Tf__Job *j)
{
	struct buf text = BUF_INIT;
	json_t *o;

	json_item_job(&text, j);
	o = json_loadb(text.data, text.len, 0, NULL);
	CHECK(o);
	buf_release(&text);
	return o;
}
