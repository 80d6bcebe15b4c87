/* SPDX-License-Identifier: Apache-2.0
 * The jobs a process runs: mostly one, and of a joint kind further ones that the daemon puts
 * beside it. Each has a line to the daemon, a folder, a log and an outcome of its own; leaving does
 * not make the others wait. Main thread, but for crew_signal and crew_die. */
#ifndef WORKER_CREW_H
#define WORKER_CREW_H

#include "worker/kept.h"
#include "worker/link.h"
#include "worker/worker.h"

struct crew;

/* Of one process. line (the crew's from now on): what its first Assignment comes over. kept is
 * borrowed: what its jobs may leave to others. */
struct crew *crew_new(struct link *line, struct kept *kept);
/* The line over which another job may come, when none is at work. */
struct link *crew_line(struct crew *c);
void crew_close(struct crew *c);

/* The job of the line's Assignment; its log and folder are ours then. warm: it may leave something
 * to the next. *out is there also on failure, for crew_leave. */
int crew_begin(struct crew *c, const Tf__Assignment *a, bool warm, struct job **out, struct err *e);
/* A further job that has come; false: none (yet). Looks after those that leave, too: call it
 * often. */
bool crew_join(struct crew *c, struct job **out);
/* Whether one is on its way. */
bool crew_expects(struct crew *c);
/* Whether none is here: at work, coming or leaving. */
bool crew_is_empty(struct crew *c);
/* How many more it would take in: 0 once a job failed, for then the process is to end. */
uint32_t crew_room(const struct crew *c);
/* From here on log and folder are this job's. */
void crew_turn_to(struct crew *c, const struct job *job);
/* Writes the job's outcome, rc with why, and tells it; the job is gone. The last one's is waited
 * for, and that of those that were leaving. */
void crew_leave(struct crew *c, struct job *job, int rc, const struct err *why);

/* After the last job has left: whether another would be welcome; the process's exit status. */
bool crew_stays(const struct crew *c);
int crew_status(const struct crew *c);

void crew_signal(struct crew *c); /* SIGTERM: all jobs are to leave; safe in a signal handler */
/* The process dies, in any thread: outcomes for all jobs at work. False: there was none. */
bool crew_die(struct crew *c, int code, const char *text, Tf__Failure failure);
/* Another attempt of some job counts; true: this process has to go at once. */
bool crew_is_lone(struct crew *c);

#endif
