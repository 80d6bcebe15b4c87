/* SPDX-License-Identifier: Apache-2.0
 * Jobs in the store: the record a list shows, the spec beside it, the attempts that may have a live
 * process. The indexes (live jobs, tokens) follow the record by themselves. */
#ifndef STORE_JOBS_H
#define STORE_JOBS_H

#include "proto/spec.h"
#include "proto/token.h"
#include "store/record.h"
#include "store/store.pb-c.h"

/* Starting, running or stopping: the job has an attempt. */
bool job_state_active(Tf__JobState state);

/* The first of the next `count` jobs' numbers; counted in the transaction that is open. */
int jobs_next_id(struct state *s, uint64_t count, uint64_t *first, struct err *e);
/* There will be no jobs of these numbers: others get them if none were given since. */
int jobs_return_ids(struct state *s, uint64_t count, uint64_t first, struct err *e);
/* Puts a record after checking it. */
int job_put(struct state *s, Tf__JobRecord *record, struct err *e);
/* TF_ENOTFOUND "no job N". The caller frees *out with record_free. */
int job_get(struct state *s, uint64_t id, Tf__JobRecord **out, struct err *e);
int job_spec_put(struct state *s, uint64_t id, Tf__SpecRecord *record, struct err *e);
int job_spec_get(struct state *s, uint64_t id, Tf__SpecRecord **out, struct err *e);
/* The job a token was given to; TF_ENOTFOUND without a sentence. */
int job_by_token(struct state *s, const uint8_t token[TOKEN_BYTES], uint64_t *out,
		 struct err *e);

typedef int (*job_fn)(void *arg, Tf__JobRecord *record); /* borrowed, for this call */
/* Each job, newest first, from those below `before` (0: all). fn as in state_each. */
int jobs_each(struct state *s, uint64_t before, job_fn fn, void *arg, struct err *e);
/* Each job, oldest first, from number `from` on. */
int jobs_each_upward(struct state *s, uint64_t from, job_fn fn, void *arg, struct err *e);
/* Each job that has not ended, oldest first. */
int jobs_each_live(struct state *s, job_fn fn, void *arg, struct err *e);
/* For a list, newest first below `before` (0: from the newest on), all or those that have not
 * ended: fn gets the record's message Job as it is packed, too. */
typedef int (*job_row_fn)(void *arg, Tf__JobRecord *record, struct state_value job);
int jobs_list(struct state *s, bool all, uint64_t before, job_row_fn fn, void *arg, struct err *e);

/* Notes that `waiter` waits for `job`; forgets it; the waiters of a job (caller frees *out). */
int job_after_put(struct state *s, uint64_t job, uint64_t waiter, struct err *e);
int job_after_delete(struct state *s, uint64_t job, uint64_t waiter, struct err *e);
int job_waiters(struct state *s, uint64_t job, uint64_t **out, size_t *count, struct err *e);

int attempt_put(struct state *s, Tf__AttemptRecord *record, struct err *e);
int attempt_delete(struct state *s, uint64_t job, uint32_t attempt, struct err *e);
/* Forgets all attempts: the daemon that opens the store next puts their jobs back into the queue.
 */
int attempts_forget(struct state *s, struct err *e);
typedef int (*attempt_fn)(void *arg, const Tf__AttemptRecord *record);
int attempts_each(struct state *s, attempt_fn fn, void *arg, struct err *e);

#endif
