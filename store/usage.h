/* SPDX-License-Identifier: Apache-2.0
 * Who has used how much: sums by month (UTC), user and project, added to in the transaction that
 * ends an attempt. */
#ifndef STORE_USAGE_H
#define STORE_USAGE_H

#include "store/record.h"
#include "store/store.pb-c.h"

#define USAGE_MONTH_CHARS 7u /* "2026-11" */

/* What one attempt had, and when. */
struct usage_attempt {
	const char *user, *project; /* project NULL or "": none */
	int64_t from_ms, to_ms;     /* wall clock; a clock set back counts as no time */
	double gpus;                /* a share counts as its part of the GPU */
	double cpus;
	bool ends_job;              /* no attempt follows */
};

/* "2026-11" of a moment. */
void usage_month(int64_t wall_ms, char out[USAGE_MONTH_CHARS + 1]);
/* Adds it; what spans several months is divided among them. */
int usage_add(struct state *s, const struct usage_attempt *a, struct err *e);
/* Each sum from month `since` on (NULL: from the first) by month, user, project; borrowed. fn as in
 * state_each. */
typedef int (*usage_fn)(void *arg, const char *month, const char *user, const char *project,
			const Tf__UsageRecord *sum);
int usage_each(struct state *s, const char *since, usage_fn fn, void *arg, struct err *e);

#endif
