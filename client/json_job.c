/* SPDX-License-Identifier: Apache-2.0
 * A job as --json prints it, see json.c. Lists have ten thousands of jobs, so it is written as text
 * at once; what wants a tree of it reads that text. */
#include "config.h"
#include "client/client.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "proto/retry.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- values */

static void put_null(struct buf *out)
{
	buf_append(out, "null", 4);
}

static void put_escaped(struct buf *out, unsigned char c)
{
	static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
	const char *at = strchr(plain, c);

	if (at)
		buf_append(out, (char[]){ '\\', letter[at - plain] }, 2);
	else
		buf_printf(out, "\\u%04X", c);
}

static void put_string(struct buf *out, const char *text)
{
	size_t from = 0, i;

	buf_append(out, "\"", 1);
	for (i = 0; text[i]; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c >= ' ' && c != '"' && c != '\\')
			continue;
		buf_append(out, text + from, i - from);
		put_escaped(out, c);
		from = i + 1;
	}
	buf_append(out, text + from, i - from);
	buf_append(out, "\"", 1);
}

/* As jansson reads them: what is over INT64_MAX is none of ours. */
static void put_whole(struct buf *out, uint64_t n)
{
	char digits[20], *p = digits + sizeof digits;

	n = n <= INT64_MAX ? n : INT64_MAX;
	do {
		*--p = (char)('0' + n % 10);
		n /= 10;
	} while (n);
	buf_append(out, p, (size_t)(digits + sizeof digits - p));
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
	buf_append(out, text, json_dumpb(value, text, sizeof text,
					 JSON_ENCODE_ANY | JSON_REAL_PRECISION(JSON_DIGITS)));
	json_decref(value);
}

/* ---- members of an object */

/* Between values of an object or array, not before the first. */
static void put_comma(struct buf *out)
{
	char last = out->len ? out->data[out->len - 1] : '[';

	if (last != '{' && last != '[')
		buf_append(out, ",", 1);
}

static void key(struct buf *out, const char *name)
{
	put_comma(out);
	put_string(out, name);
	buf_append(out, ":", 1);
}

static void text_or_null(struct buf *out, const char *name, const char *text)
{
	key(out, name);
	if (text && *text)
		put_string(out, text);
	else
		put_null(out);
}

static void whole(struct buf *out, const char *name, uint64_t n)
{
	key(out, name);
	put_whole(out, n);
}

static void whole_or_null(struct buf *out, const char *name, protobuf_c_boolean has, uint64_t n)
{
	key(out, name);
	if (has)
		put_whole(out, n);
	else
		put_null(out);
}

static void real_or_null(struct buf *out, const char *name, protobuf_c_boolean has, double x)
{
	key(out, name);
	put_real(out, has ? x : NAN);
}

static void time_or_null(struct buf *out, const char *name, protobuf_c_boolean has, int64_t ms)
{
	char text[CLOCK_TEXT_MAX] = "";

	if (has && ms > 0)
		clock_format_ms(ms, text);
	text_or_null(out, name, text);
}

static void ids(struct buf *out, const char *name, size_t n, const uint64_t *id)
{
	key(out, name);
	buf_append(out, "[", 1);
	for (size_t i = 0; i < n; i++) {
		put_comma(out);
		put_whole(out, id[i]);
	}
	buf_append(out, "]", 1);
}

static void metrics(struct buf *out, const char *name, size_t n, Tf__Metric **metric)
{
	key(out, name);
	buf_append(out, "{", 1);
	for (size_t i = 0; i < n; i++)
		real_or_null(out, metric[i]->name, true, metric[i]->value);
	buf_append(out, "}", 1);
}

/* ---- parts of a job */

static void progress(struct buf *out, const Tf__Progress *p)
{
	key(out, "progress");
	if (!p) {
		put_null(out);
		return;
	}
	buf_append(out, "{", 1);
	text_or_null(out, "phase", p->phase);
	whole_or_null(out, "done", p->has_done, p->done);
	whole_or_null(out, "total", p->has_total && p->total, p->total);
	text_or_null(out, "unit", p->unit);
	real_or_null(out, "rate", p->has_rate, p->rate);
	real_or_null(out, "eta_s", p->has_eta_s, p->eta_s);
	metrics(out, "metrics", p->n_metric, p->metric);
	buf_append(out, "}", 1);
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
	buf_append(out, "{", 1);
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
	buf_append(out, "}", 1);
}

static void stops(struct buf *out, const Tf__Job *j)
{
	key(out, "stops");
	buf_append(out, "[", 1);
	for (size_t i = 0; i < j->n_stop; i++) {
		put_comma(out);
		buf_append(out, "{", 1);
		text_or_null(out, "reason", stop_reason_name(j->stop[i]->reason));
		whole(out, "times", j->stop[i]->times);
		real_or_null(out, "lost_s", true, j->stop[i]->lost_s);
		buf_append(out, "}", 1);
	}
	buf_append(out, "]", 1);
}

static void tags(struct buf *out, const Tf__Job *j)
{
	key(out, "tags");
	buf_append(out, "[", 1);
	for (size_t i = 0; i < j->n_tag; i++) {
		put_comma(out);
		put_string(out, j->tag[i]);
	}
	buf_append(out, "]", 1);
}

/* How many attempts failed, of each kind: {"crash": 1}. */
static void failures(struct buf *out, const Tf__Job *j)
{
	key(out, "failures");
	buf_append(out, "{", 1);
	for (size_t i = 1; i < j->n_failed && i < FAILURES; i++)
		if (j->failed[i])
			whole(out, failure_name((Tf__Failure)i), j->failed[i]);
	buf_append(out, "}", 1);
}

/* Milliseconds of a job: in the queue, then its work by stage: {"queue_ms": 1, "load_ms": 0.2}. */
static void timing(struct buf *out, const Tf__Job *j)
{
	key(out, "timing");
	buf_append(out, "{", 1);
	if (j->n_timing && j->started >= j->submitted)
		whole(out, "queue_ms", (uint64_t)(j->started - j->submitted));
	for (size_t i = 0; i < j->n_timing; i++) {
		char *name = xasprintf("%s_ms", j->timing[i]->name);

		real_or_null(out, name, true, j->timing[i]->value);
		xfree(name);
	}
	buf_append(out, "}", 1);
}

void json_item_job(struct buf *out, const Tf__Job *j)
{
	put_comma(out);
	buf_append(out, "{", 1);
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
