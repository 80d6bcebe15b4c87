/* SPDX-License-Identifier: Apache-2.0
 * Use that decays, by user; see share.h. With the half-life h, a rate r held for t seconds adds
 * r h/ln 2 (1 - 2^(-t/h)), and what was there shrinks to its 2^(-t/h). */
#include "config.h"
#include "daemon/share.h"
#include "lib/mem.h"
#include "proto/spec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NOTHING_UNIT_S 1e-3 /* a GPU for a millisecond, and it decays on */

static size_t place_of(const struct shares *s, const char *name)
{
	size_t low = 0, high = s->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (strcmp(s->user[middle]->name, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

struct user_share *shares_get(struct shares *s, const char *name)
{
	size_t i = place_of(s, name);
	struct user_share *u;

	if (i < s->count && strcmp(s->user[i]->name, name) == 0)
		return s->user[i];
	u = xcalloc(1, sizeof *u);
	snprintf(u->name, sizeof u->name, "%s", name);
	u->limits = s->limits;
	s->user = xrealloc(s->user, s->count + 1, sizeof *s->user);
	memmove(s->user + i + 1, s->user + i, (s->count - i) * sizeof *s->user);
	s->user[i] = u;
	s->count++;
	return u;
}

bool share_is_nothing(const struct shares *s, const struct user_share *u, int64_t now_ms)
{
	return u->jobs == 0 && u->queued == 0 && u->running == 0 && u->groups == 0 &&
	       memcmp(&u->limits, &s->limits, sizeof u->limits) == 0 &&
	       share_month_gpu_s(u, now_ms) <= 0 &&
	       share_used(u, s->half_life_s, now_ms) < NOTHING_UNIT_S;
}

void shares_remove(struct shares *s, size_t i)
{
	xfree(s->user[i]);
	s->count--;
	memmove(s->user + i, s->user + i + 1, (s->count - i) * sizeof *s->user);
}

void shares_release(struct shares *s)
{
	groups_release(s);
	for (size_t i = 0; i < s->count; i++)
		xfree(s->user[i]);
	xfree(s->user);
	s->count = 0;
}

struct charge charge_of(const struct machine *m, const struct holding *h, Tf__Priority priority)
{
	static const double charge[] = {
#define P(id, kind, charge, admins, help) [TF__PRIORITY__##kind] = charge,
#include "proto/priorities.def"
#undef P
	};
	struct charge c = { 0, 0, 0 };
	double processors = h->cpus;

	if (h->share)
		c.gpus = h->gpus ? (double)h->share /
					   (double)m->gpu[__builtin_ctzll(h->gpus)].memory
				 : 0;
	else
		c.gpus = __builtin_popcountll(h->gpus);
	if (processors < 1 && h->slot >= 0)
		processors = 1;
	c.units = (c.gpus + processors * PROCESSOR_UNITS) * charge[priority];
	c.held = c.gpus;
	return c;
}

static double decay(double half_life_s, int64_t from_ms, int64_t to_ms)
{
	return to_ms > from_ms ? exp2(-(double)(to_ms - from_ms) / 1e3 / half_life_s) : 1;
}

double share_used(const struct user_share *u, double half_life_s, int64_t now_ms)
{
	double left = decay(half_life_s, u->used_ms, now_ms);

	return u->used * left + u->rate.units * half_life_s / M_LN2 * (1 - left);
}

/* The first millisecond of the month of a time, UTC. */
static int64_t month_start_ms(int64_t ms)
{
	time_t seconds = (time_t)(ms / 1000);
	struct tm tm;

	gmtime_r(&seconds, &tm);
	tm.tm_mday = 1;
	tm.tm_hour = tm.tm_min = tm.tm_sec = 0;
	return (int64_t)timegm(&tm) * 1000;
}

double share_month_gpu_s(const struct user_share *u, int64_t now_ms)
{
	int64_t start = month_start_ms(now_ms);
	bool same = u->used_ms >= start;
	int64_t from = same ? u->used_ms : start;

	return (same ? u->month_gpu_s : 0) +
	       (now_ms > from ? u->rate.gpus * (double)(now_ms - from) / 1e3 : 0);
}

void share_settle(struct user_share *u, double half_life_s, int64_t now_ms)
{
	if (now_ms <= u->used_ms)
		return;
	u->month_gpu_s = share_month_gpu_s(u, now_ms);
	u->used = share_used(u, half_life_s, now_ms);
	u->used_ms = now_ms;
	u->changed = true;
}

void share_start(struct user_share *u, double half_life_s, struct charge c, int64_t now_ms)
{
	share_settle(u, half_life_s, now_ms);
	u->rate.units += c.units;
	u->rate.gpus += c.gpus;
	u->rate.held += c.held;
	u->running++;
}

void share_end(struct user_share *u, double half_life_s, struct charge c, int64_t now_ms)
{
	share_settle(u, half_life_s, now_ms);
	CHECK(u->running > 0);
	u->running--;
	/* nothing runs: the rounding of many sums goes, too */
	u->rate.units = u->running ? u->rate.units - c.units : 0;
	u->rate.gpus = u->running ? u->rate.gpus - c.gpus : 0;
	u->rate.held = u->running ? u->rate.held - c.held : 0;
}

static int take_limit(const char *word, struct user_limits *out, struct err *e)
{
	const struct {
		const char *name;
		uint32_t *value;
	} known[] = { { "running=", &out->running },
		      { "queued=", &out->queued },
		      { "gpus=", &out->gpus },
		      { "gpu_hours=", &out->gpu_hours } };
	char *end = NULL;

	if (strncmp(word, "weight=", 7) == 0) {
		out->weight = strtod(word + 7, &end);
		if (*end == 0 && end > word + 7 && out->weight >= 0.01 && out->weight <= 1000)
			return 0;
		return err_set(e, TF_EINVALID, "'%.60s': expected weight=0.01 to 1000", word);
	}
	for (size_t i = 0; i < ARRAY_LEN(known); i++) {
		size_t len = strlen(known[i].name);
		unsigned long n;

		if (strncmp(word, known[i].name, len) != 0)
			continue;
		n = strtoul(word + len, &end, 10);
		FAIL_IF(word[len] < '0' || word[len] > '9' || *end || n > 1000000000, e,
			TF_EINVALID, "'%.60s': expected a number from 0 (no limit) to 1000000000",
			word);
		*known[i].value = (uint32_t)n;
		return 0;
	}
	return err_set(e, TF_EINVALID,
		       "'%.60s': expected weight=, running=, queued=, gpus= or gpu_hours=", word);
}

int limits_parse(const char *text, char name[LIMIT_NAME_BYTES + 1], struct user_limits *out,
		 struct err *e)
{
	char *copy = xstrdup(text), *save = NULL, *word = strtok_r(copy, " \t", &save);
	int rc = word ? name_check("user", word, e)
		      : err_set(e, TF_EINVALID, "expected 'NAME LIMIT=VALUE...'");

	if (rc == 0)
		snprintf(name, LIMIT_NAME_BYTES + 1, "%s", word);
	while (rc == 0 && (word = strtok_r(NULL, " \t", &save)))
		rc = take_limit(word, out, e);
	if (rc < 0)
		err_prefix(e, "user_limit '%.100s'", text);
	xfree(copy);
	return rc;
}
