/* SPDX-License-Identifier: Apache-2.0
 * The worker's line to the daemon: a thread that owns the socket, says hello, hands on progress
 * and the outcome, and takes orders. The daemon may be away at any time: the thread says hello
 * again with growing pauses until one answers, keeping of the progress only the newest. Nothing
 * here waits for the daemon but link_assignment, link_told and link_next, which say how long. */
#ifndef WORKER_LINK_H
#define WORKER_LINK_H

#include "lib/buf.h"
#include "lib/err.h"
#include "proto/transfused.pb-c.h"

#include <stdbool.h>
#include <stdint.h>

struct link;

struct link_options {
	const char *endpoint;
	const char *server_key; /* Z85 */
	const char *secret_key; /* Z85, of this attempt */
	uint64_t job;
	uint32_t attempt;
	/* Another attempt counts: called in the thread. It ends the process, or returns where that
	 * runs other jobs; then link_is_fenced says so, and the job should leave without a word. */
	void (*fenced)(const char *);
};

/* Starts the thread; the options' strings are copied. TF_EINVALID for keys that are none. */
int link_open(const struct link_options *o, struct link **out, struct err *e);
/* Another line of this process, with the same key, for a further attempt. */
int link_beside(const struct link *l, uint64_t job, uint32_t attempt, struct link **out,
		struct err *e);
/* Ends the thread; what was not sent is dropped. NULL is fine. */
void link_close(struct link *l);

/* Waits for the Assignment, which lives until link_next or link_close. TF_ENODAEMON after
 * timeout_ms. */
int link_assignment(struct link *l, int64_t timeout_ms, const Tf__Assignment **out, struct err *e);
/* Sends this progress (copied) as soon as the daemon listens; an earlier one not sent yet is
 * dropped. */
void link_progress(struct link *l, const Tf__Progress *progress);
/* Says with each progress from now on how many more jobs the process would take in; before the
 * first call nothing is said of it. */
void link_room(struct link *l, uint32_t jobs);
/* A further attempt that the daemon put into this process; false: there is none (any more). */
bool link_join(struct link *l, uint64_t *job, uint32_t *attempt);
/* Tells the outcome (packed), and whether the process would take another job. */
void link_done(struct link *l, const struct buf *outcome, bool stay);
/* Waits until the daemon has the outcome on disk. TF_ETIMEOUT after timeout_ms. */
int link_told(struct link *l, int64_t timeout_ms, struct err *e);

/* Once the outcome was acknowledged: asks for another job and waits for it. 0: the line is that
 * job's from now on, and the earlier Assignment is gone. TF_ECANCELLED: none will come (the daemon
 * said so or is away, SIGTERM, or the time is up); the process has nothing left to do. */
int link_next(struct link *l, int64_t timeout_ms, const Tf__Assignment **out, struct err *e);

bool link_is_fenced(const struct link *l);
/* Why the job should leave; STOP_NONE: it need not. */
Tf__StopReason link_stop(const struct link *l);
/* Asks the job to leave as if the daemon had (for a SIGTERM; safe in a signal handler). */
void link_leave(struct link *l);
/* The most private memory (RssAnon) the process was seen with, in bytes. */
int64_t link_peak_rss_anon(const struct link *l);

#endif
