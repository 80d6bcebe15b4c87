/* SPDX-License-Identifier: Apache-2.0
 * Sums of usage in the store; see usage.h. A key is month, 0, user, 0, project. */
#include "config.h"
#include "store/usage.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define KEY_MAX (USAGE_MONTH_CHARS + 2 + 2 * LIMIT_NAME_BYTES)

void usage_month(int64_t wall_ms, char out[USAGE_MONTH_CHARS + 1])
{
	time_t seconds = (time_t)(wall_ms / 1000);
	struct tm tm;

	gmtime_r(&seconds, &tm);
	strftime(out, USAGE_MONTH_CHARS + 1, "%Y-%m", &tm);
}

/* The first moment of the month after. */
static int64_t next_month(int64_t wall_ms)
{
	time_t seconds = (time_t)(wall_ms / 1000);
	struct tm tm;

	gmtime_r(&seconds, &tm);
	tm = (struct tm){ .tm_year = tm.tm_year, .tm_mon = tm.tm_mon + 1, .tm_mday = 1 };
	return (int64_t)timegm(&tm) * 1000;
}

static int add_to(struct state *s, const struct usage_attempt *a, int64_t from_ms, int64_t to_ms,
		  bool last, struct err *e)
{
	const char *project = a->project ? a->project : "";
	Tf__UsageRecord fresh = TF__USAGE_RECORD__INIT, *old = NULL, *r;
	char month[USAGE_MONTH_CHARS + 1], key[KEY_MAX + 1];
	int n, rc;

	CHECK(strlen(a->user) <= LIMIT_NAME_BYTES && strlen(project) <= LIMIT_NAME_BYTES);
	usage_month(from_ms, month);
	n = snprintf(key, sizeof key, "%s%c%s%c%s", month, 0, a->user, 0, project);
	rc = record_get(s, STATE_USAGE, key, (size_t)n, &tf__usage_record__descriptor, &old, e);
	if (rc == TF_ENOTFOUND)
		rc = 0;
	r = old ? old : &fresh;
	r->cpu_s += (double)(to_ms - from_ms) / 1000 * a->cpus;
	r->gpu_s += (double)(to_ms - from_ms) / 1000 * a->gpus;
	r->attempts += last;
	r->jobs += last && a->ends_job;
	if (rc == 0)
		rc = record_put(s, STATE_USAGE, key, (size_t)n, &r->base, e);
	record_free(old);
	return rc;
}

int usage_add(struct state *s, const struct usage_attempt *a, struct err *e)
{
	int64_t from = a->from_ms, to = a->to_ms > from ? a->to_ms : from;

	for (int64_t end; (end = next_month(from)) < to; from = end)
		TRY(add_to(s, a, from, end, false, e));
	return add_to(s, a, from, to, true, e);
}

struct walk {
	usage_fn fn;
	void *arg;
	struct err *e;
};

static int walk_sum(void *arg, struct state_value key, struct state_value value)
{
	struct walk *w = arg;
	char text[KEY_MAX + 1];
	const char *user = text + USAGE_MONTH_CHARS + 1, *project;
	Tf__UsageRecord *r = NULL;
	int rc;

	FAIL_IF(key.len < USAGE_MONTH_CHARS + 2 || key.len > KEY_MAX, w->e, TF_ECORRUPT,
		"store: a key of usage has %zu bytes", key.len);
	memcpy(text, key.data, key.len);
	text[key.len] = 0;
	project = user + strlen(user) + 1;
	FAIL_IF(project > text + key.len, w->e, TF_ECORRUPT,
		"store: a key of usage has no project");
	TRY(record_unpack(value, &tf__usage_record__descriptor, &r, w->e));
	rc = w->fn(w->arg, text, user, project, r);
	record_free(r);
	return rc;
}

int usage_each(struct state *s, const char *since, usage_fn fn, void *arg, struct err *e)
{
	struct walk w = { fn, arg, e };

	return state_each(s, STATE_USAGE, since, since ? strlen(since) : 0, false, walk_sum, &w, e);
}
