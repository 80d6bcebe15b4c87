/* SPDX-License-Identifier: Apache-2.0
 * Between the daemon and the scheduler's pure functions (queue.c). */
#ifndef DAEMON_QUEUE_H
#define DAEMON_QUEUE_H

#include "daemon/schedule.h"
#include "proto/transfused.pb-c.h"

struct daemon;
struct options;
struct request;
struct worker;

#define WAITS_MAX 160

/* Decides, orders jobs to step back, and returns the starts. */
size_t queue_decide(struct daemon *d, struct decision out[LIMIT_WORKERS]);
void queue_forecast(struct daemon *d); /* places and expected starts of the queue, fresh enough */
/* Fills place, waits and expected start of a queued job's view; the text lies in `waits`. */
void queue_describe(struct daemon *d, const struct job *j, Tf__Job *view, char waits[WAITS_MAX]);
/* Limits, weights and half-life from the options; again after they changed. */
int queue_configure(struct daemon *d, struct err *e);
int queue_check(const struct options *o, struct err *e); /* are they well formed? */
int queue_load(struct daemon *d, struct err *e); /* the users' shares, as last saved */
int queue_save(struct daemon *d, struct err *e); /* those that changed */
void queue_forget(struct daemon *d); /* those of users that make no difference any more */
/* May r have one more job of this kind queued, for the owner, whose limits count? */
int queue_admit(struct daemon *d, const struct request *r, const char *owner,
		const Tf__JobSpec *spec, struct err *e);
void queue_tick(struct daemon *d); /* every second: walltimes and deadlines */
/* The process is there; it is gone. */
void queue_begin(struct daemon *d, struct worker *w);
void queue_end(struct daemon *d, struct worker *w);
/* Each attempt in w's process that is not over pays the same part of it. After each change. */
void queue_divide(struct daemon *d, const struct worker *w);
/* Of what the process had since the attempt began, the attempt's part. */
double queue_part(const struct worker *w);

#endif
