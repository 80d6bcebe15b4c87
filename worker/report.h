/* SPDX-License-Identifier: Apache-2.0
 * What a job has said of itself: progress on its way to the daemon, and the summary that becomes
 * its outcome. Used by job.c, main.c and the link; jobs call the functions of worker.h. */
#ifndef WORKER_REPORT_H
#define WORKER_REPORT_H

#include "lib/buf.h"
#include "worker/worker.h"

struct report *report_new(void);
void report_free(struct report *r);

/* Packs the outcome: code 0 is done, else text says why not. The bytes are appended to out. */
void report_outcome(struct report *r, int code, const char *text, Tf__Failure failure,
		    struct buf *out);
/* Lets the outcome's file survive a power cut, too: syncs it, and the names that lead to it. */
int report_sync_outcome(const struct job *job, struct err *e);
/* The same of what the job left in its results, if it did. */
int report_sync_results(const struct job *job, struct err *e);

#endif
