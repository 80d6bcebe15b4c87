/* SPDX-License-Identifier: Apache-2.0
 * Notices: what happens here, told to a web address and to a command of the administrator's. They
 * wait in memory for the commit that makes them true, then for their turn: another program,
 * transfuse-notify, delivers one at a time, so that no address and no command holds up the daemon.
 * At most LIMIT_NOTICES wait; what comes beyond them is counted and logged. */
#ifndef DAEMON_NOTICE_H
#define DAEMON_NOTICE_H

#include "lib/err.h"
#include "proto/limits.h"
#include "proto/transfused.pb-c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct daemon;
struct options;

enum notice_event { NOTICE_JOB_END, NOTICE_QUEUE_EMPTY, NOTICE_SLOT_DRAINED, NOTICE_EVENTS };

/* Which are wanted. */
struct notice_rule {
	enum notice_event event;
	uint32_t states;                 /* of a job, a bit for each; 0: all */
	char user[LIMIT_NAME_BYTES + 1]; /* "": everybody's */
};

struct notices {
	struct notice_rule rule[LIMIT_NOTICE_RULES];
	size_t rules;
	bool wanted;   /* there is an address or a command */
	char *text[LIMIT_NOTICES]; /* a ring of JSON objects */
	size_t first, count;
	size_t fresh;  /* the last ones are of a turn that is not committed */
	uint64_t lost; /* since this was last logged */
	bool open;     /* the daemon runs: what was so before is no news */
	pid_t pid;     /* of the program that delivers text[first]; 0: none runs */
	int pidfd;     /* -1: none */
	int output;    /* what it said */
	int64_t until_ms; /* monotonic: then it is killed */
};

/* Reads the options; rules NULL: only checks them. */
int notices_read(const struct options *o, struct notice_rule *rules, size_t *count, struct err *e);
int notices_configure(struct daemon *d, struct err *e); /* at the start and after a reload */
void notices_open(struct daemon *d);                    /* from now on there is news */
void notices_close(struct daemon *d);
void notice_job_end(struct daemon *d, const Tf__Job *job);
void notice_jobs_ended(struct daemon *d); /* some did in this turn: is the queue empty? */
/* by "": the daemon by itself. */
void notice_slot_drained(struct daemon *d, const char *slot, const char *reason, const char *by);
/* The turn's commit succeeded or failed; then the first in the queue is delivered. */
void notices_committed(struct daemon *d, bool committed);
void notice_exited(struct daemon *d); /* pidfd became readable */
void notices_tick(struct daemon *d);  /* once a second */

#endif
