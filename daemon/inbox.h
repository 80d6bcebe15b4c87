/* SPDX-License-Identifier: Apache-2.0
 * Requests that came in and wait, a line for each user, so that nobody's flood slows down the
 * others. Pure: no clock, no socket; times are monotonic nanoseconds that the caller gives.
 *
 * Lines are served one request each, round by round. While more than one user is about, each has a
 * quarter of the time for handling requests, INBOX_QUANTUM_NS of it at once, and one with others
 * behind it counts INBOX_REQUEST_NS more, for receiving, committing, answering and the sender's own
 * program take the processors too. Whoever asks for more waits though nobody else asks for
 * anything, so the others find the daemon and the machine idle most of the time. Who waits for each
 * answer before they ask again never reaches it. */
#ifndef DAEMON_INBOX_H
#define DAEMON_INBOX_H

#include "lib/err.h"
#include "proto/wire.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INBOX_SHARE 4               /* of the time: one part in so many */
#define INBOX_REQUEST_NS 60000      /* what one in a flood costs besides its handling */
#define INBOX_QUANTUM_NS 500000     /* so much may come at once */
#define INBOX_BURST_NS 100000000    /* so much of a second's requests may come at once */
#define INBOX_ABOUT_NS 10000000000  /* so long after a request somebody is about */
#define INBOX_FORGET_NS 60000000000 /* so long the line of an idle user is kept */

struct inbox_bounds {
	size_t requests; /* of a user that may wait */
	uint64_t bytes;
	int64_t per_second; /* of a user that are handled; 0: any number */
};

struct inbox;

struct inbox *inbox_new(void);
void inbox_free(struct inbox *b); /* with what waits; NULL is fine */
/* The user is about to ask something: the others make room already. */
void inbox_expect(struct inbox *b, const char *user, int64_t now);
/* Puts m into the user's line; its body is the inbox's then. TF_ELIMIT: the line is full, m is
 * still the caller's. */
int inbox_put(struct inbox *b, const char *user, const struct inbox_bounds *bounds,
	      struct wire_message *m, int64_t now, struct err *e);
/* Takes out the next request that may be handled now; false: there is none. */
bool inbox_take(struct inbox *b, const struct inbox_bounds *bounds, struct wire_message *out,
		int64_t now);
/* Handling what was taken last took so long. */
void inbox_charge(struct inbox *b, int64_t took, int64_t now);
/* While that is handled: takes out the first request of another user, if it may be handled now and
 * fits, and charges it to them in advance: `took`. A user is given once a round, which begins with
 * *at 0. */
bool inbox_take_beside(struct inbox *b, const struct inbox_bounds *bounds,
		       bool (*fits)(void *arg, const struct wire_message *m), void *arg, size_t *at,
		       struct wire_message *out, int64_t took, int64_t now);
/* Whether several users are about. */
bool inbox_is_shared(const struct inbox *b, int64_t now);
/* How many wait of users that may go on now: there is no need to read more. */
size_t inbox_ready(const struct inbox *b, int64_t now);
/* Until inbox_take gives something; 0: now; INT64_MAX: nothing waits. */
int64_t inbox_wait_ns(const struct inbox *b, int64_t now);
void inbox_tick(struct inbox *b, int64_t now); /* forgets who is gone */

#endif
