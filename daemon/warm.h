/* SPDX-License-Identifier: Apache-2.0
 * Workers that run more than one job, one after another (warm.c) or at a time (join.c). */
#ifndef DAEMON_WARM_H
#define DAEMON_WARM_H

#include "daemon/daemon.h"

/* ---- warm.c: workers that wait for another job ---- */
/* How long a worker may stay after a job of this kind; 0: it may not. */
uint32_t warm_seconds(const struct daemon *d, Tf__JobKind kind);
/* Whether one waits for a job. */
bool warm_any(const struct daemon *d);
/* The worker, whose job has ended, waits for another one. False: it is to leave. */
bool warm_stay(struct daemon *d, struct worker *w);
/* What a job's worker has open afterwards, for comparing; the caller's. NULL: nothing. */
char *warm_model(const Tf__SpecRecord *spec);
enum warm {
	WARM_COLD,  /* a new process; list[i] may have got another place */
	WARM_HERE,  /* *out is to have it */
	WARM_LATER, /* an idle worker leaves first */
};
/* How the i-th of n decisions is carried out, the earlier ones being carried out already. */
enum warm warm_look(struct daemon *d, struct decision *list, size_t n, size_t i,
		    struct worker **out);
/* Gives the job to the idle worker, whose assignment leaves with the commit. */
int warm_start(struct daemon *d, struct worker *w, const struct decision *decision, struct err *e);
void warm_drop(struct worker *w, const char *why); /* the idle worker is to leave */
void warm_drop_all(struct daemon *d, const char *why);
void warm_tick(struct daemon *d); /* those nobody needed for long; all when memory is short */
/* Of the host, bytes; what new processes may take. Negative: not known. */
int memory_now(uint64_t *total, uint64_t *available);

/* ---- join.c: several jobs in one process ---- */
/* What jobs that may run together have in common; 0: it runs alone. */
uint64_t join_key(const Tf__JobSpec *spec, Tf__Input *const *input, size_t inputs);
/* How many more jobs may be put into w's process. */
uint32_t join_room(const struct daemon *d, const struct worker *w);
/* Puts the job into the process that runs the one beside it; the process is told after the commit.
 */
int join_start(struct daemon *d, const struct decision *decision, struct err *e);
bool join_same(const struct worker *a, const struct worker *b); /* of one process */
/* Another attempt of w's process that is not over; NULL: none is. */
struct worker *join_other(const struct daemon *d, const struct worker *w);
/* That attempt of w's process; w itself where there is none. */
struct worker *join_named(const struct daemon *d, struct worker *w, uint64_t job,
			  uint32_t attempt);
/* w's attempt is over and its process runs others: it leaves them what the process holds, and is
 * gone. */
int join_leave(struct daemon *d, struct worker *w, struct err *e);
/* The process never took it in: the job goes back into the queue, and nothing is counted. */
int join_undo(struct daemon *d, struct worker *w, struct err *e);
void join_tick(struct daemon *d); /* those that were not taken in in time */

#endif
