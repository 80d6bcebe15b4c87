/* SPDX-License-Identifier: Apache-2.0
 * The steps from each version of the store to the next; see upgrade.h. Records need none: fields
 * are only added, and a record is written in the new form when it changes. */
#include "config.h"
#include "store/upgrade.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/jobs.h"
#include "store/usage.h"

#include <string.h>

#define BATCH 1000

struct batch {
	Tf__JobRecord *record[BATCH];
	size_t count;
};

static int take_ended(void *arg, Tf__JobRecord *r)
{
	struct batch *b = arg;
	size_t len;
	uint8_t *copy;

	if (b->count == BATCH)
		return 1;
	len = tf__job_record__get_packed_size(r);
	copy = xmalloc(len + 1);
	tf__job_record__pack(r, copy);
	b->record[b->count++] = tf__job_record__unpack(NULL, len, copy);
	xfree(copy);
	return 0;
}

/* The last attempt of an ended job is all that its record tells. */
static int account(struct state *s, const Tf__Job *j, struct err *e)
{
	struct usage_attempt a = { .user = j->user ? j->user : "",
				   .from_ms = j->started,
				   .to_ms = j->ended,
				   .gpus = j->slot && strncmp(j->slot, "gpu", 3) == 0 ? 1 : 0,
				   .cpus = 1,
				   .ends_job = true };

	return job_state_is_end(j->state) && j->started > 0 ? usage_add(s, &a, e) : 0;
}

/* 1 to 2: the table of usage, begun with the jobs that ended before there was one. */
static int to_2(struct state *s, struct err *e)
{
	struct batch b = { .count = BATCH };
	uint64_t before = 0;
	int rc = 0;

	while (rc == 0 && b.count == BATCH) {
		b.count = 0;
		rc = jobs_each(s, before, take_ended, &b, e);
		for (size_t i = 0; i < b.count; i++) {
			before = b.record[i]->job->id;
			if (rc == 0)
				rc = account(s, b.record[i]->job, e);
			record_free(b.record[i]);
		}
	}
	return rc;
}

/* 2 to 3: the journal, which state_open makes. A program that knows none must not open this. */
static int to_3(struct state *s, struct err *e)
{
	(void)s;
	(void)e;
	return 0;
}

static int (*const steps[])(struct state *s, struct err *e) = { [1] = to_2, [2] = to_3 };

int store_upgrade(struct state *s, uint64_t *from, struct err *e)
{
	_Static_assert(ARRAY_LEN(steps) == TF_STORE_VERSION, "a step from each earlier version");
	TRY(state_number(s, "version", from, e));
	CHECK(*from >= 1 && *from <= TF_STORE_VERSION);
	if (*from == TF_STORE_VERSION)
		return 0;
	for (uint64_t v = *from; v < TF_STORE_VERSION; v++)
		TRY(steps[v](s, e));
	TRY(state_set_number(s, "version", TF_STORE_VERSION, e));
	return state_commit(s, e);
}
