/* SPDX-License-Identifier: Apache-2.0
 * What a job waits for: other jobs, each to be done, to end or to fail. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "lib/mem.h"

#include <stddef.h>

/* The jobs of a row are in these fields of Job, and this is how they must end. */
struct after_kind {
	size_t count, list;           /* offsets in Tf__Job */
	bool done, failed, cancelled; /* which ends are good */
	const char *wanted;
};

static const struct after_kind kinds[] = {
#define AFTER(field, done, failed, cancelled, wanted)                                              \
	{                                                                                          \
		offsetof(Tf__Job, n_##field), offsetof(Tf__Job, field), done, failed, cancelled,   \
			wanted                                                                     \
	}
	AFTER(after, true, false, false, "to be done"),
	AFTER(after_any, true, true, true, "to end"),
	AFTER(after_failed, false, true, false, "to fail"),
#undef AFTER
};

typedef int (*after_fn)(struct daemon *d, const struct after_kind *k, uint64_t waiter, uint64_t job,
			struct err *e);

/* Calls for each job that j waits for until one fails. How many returned 1. */
static int each(struct daemon *d, const Tf__Job *j, after_fn fn, struct err *e)
{
	int sum = 0, rc;

	for (size_t k = 0; k < ARRAY_LEN(kinds); k++) {
		size_t count = *(const size_t *)((const char *)j + kinds[k].count);
		uint64_t *const *list = (uint64_t *const *)((const char *)j + kinds[k].list);

		for (size_t i = 0; i < count; i++) {
			TRY(rc = fn(d, &kinds[k], j->id, (*list)[i], e));
			sum += rc;
		}
	}
	return sum;
}

static int look(struct daemon *d, const struct after_kind *k, uint64_t waiter, uint64_t job,
		struct err *e)
{
	Tf__JobRecord *r = NULL;
	Tf__JobState state;
	int rc = job_get(d->state, job, &r, e);

	(void)waiter;
	TRY(rc);
	state = r->job->state;
	record_free(r);
	if (!job_state_is_end(state))
		return 1;
	if (state == TF__JOB_STATE__DONE     ? k->done
	    : state == TF__JOB_STATE__FAILED ? k->failed
					     : k->cancelled)
		return 0;
	return err_set(e, TF_EREFUSED, "it waits for job %llu %s, which is %s",
		       (unsigned long long)job, k->wanted, job_state_name(state));
}

int after_look(struct daemon *d, const Tf__Job *j, struct err *e)
{
	int rc = each(d, j, look, e);

	return rc > 0 ? 1 : rc;
}

static int put(struct daemon *d, const struct after_kind *k, uint64_t waiter, uint64_t job,
	       struct err *e)
{
	(void)k;
	return live_find(&d->live, job) ? job_after_put(d->state, job, waiter, e) : 0;
}

int after_put(struct daemon *d, const Tf__Job *j, struct err *e)
{
	return each(d, j, put, e);
}
