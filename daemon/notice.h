/* SPDX-License-Identifier: Apache-2.0
 * Notices: what happens here, told to a web address and to a command of the administrator's. They
 * are committed together with what makes them true, and wait for their turn: another program,
 * transfuse-notify, delivers one at a time, so that no address and no command holds up the daemon.
 * What was delivered, or could not be, is deleted with the next commit: a daemon that is killed
 * before it delivers that notice once more, under the same id, and after NOTICE_STARTS starts that
 * each found the same one first in line it is given up.
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

#define NOTICE_STARTS 4 /* of daemons that deliver the same notice */

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
	char *text[LIMIT_NOTICES]; /* JSON objects, each at its number modulo the room */
	uint64_t first, next;      /* numbers: of the oldest that waits, of the next to come */
	uint64_t fresh;            /* those from here on are of a turn that is not committed */
	uint64_t kept_first, kept_next;     /* those on disk */
	uint64_t saving_first, saving_next; /* what this turn's commit makes of these */
	uint64_t lost; /* since this was last logged */
	bool open;     /* the daemon runs: a slot that was drained before is no news */
	bool leaving;  /* no other one is begun */
	pid_t pid;     /* of the program that delivers the first; 0: none runs */
	int pidfd;     /* -1: none */
	int output;    /* what it said */
	int64_t until_ms; /* monotonic: then it is killed */
};

/* Reads the options; rules NULL: only checks them. */
int notices_read(const struct options *o, struct notice_rule *rules, size_t *count, struct err *e);
int notices_configure(struct daemon *d, struct err *e); /* at the start and after a reload */
int notices_load(struct daemon *d, struct err *e);      /* those of an earlier daemon */
void notices_open(struct daemon *d);                    /* from now on drained slots are news */
void notices_finish(struct daemon *d); /* waits a moment for the one that is being delivered */
void notices_close(struct daemon *d);
void notice_job_end(struct daemon *d, const Tf__Job *job);
void notice_jobs_ended(struct daemon *d); /* some did in this turn: is the queue empty? */
/* by "": the daemon by itself. */
void notice_slot_drained(struct daemon *d, const char *slot, const char *reason, const char *by);
int notices_save(struct daemon *d, struct err *e); /* before the turn's commit */
/* The turn's commit succeeded or failed; then the first in the queue is delivered. */
void notices_committed(struct daemon *d, bool committed);
void notice_exited(struct daemon *d); /* pidfd became readable */
void notices_tick(struct daemon *d);  /* once a second */

#endif
