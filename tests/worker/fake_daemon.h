/* SPDX-License-Identifier: Apache-2.0
 * A small daemon in a thread for tests of workers: it answers every request and counts what it
 * saw. */
#ifndef TESTS_WORKER_FAKE_DAEMON_H
#define TESTS_WORKER_FAKE_DAEMON_H

#include "proto/transfused.pb-c.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#define JOB 7
#define ATTEMPT 2
#define WAIT_MS 20000

/* Waits until value is at least `least`. */
#define wait_for(value, least)                                                                    \
	do {                                                                                      \
		int64_t end_ = clock_mono_ms() + WAIT_MS;                                         \
		while ((value) < (least) && clock_mono_ms() < end_)                               \
			clock_sleep_ms(5);                                                        \
		assert_true((value) >= (least));                                                  \
	} while (0)

struct fake {
	const char *endpoint, *secret_key; /* of the daemon */
	const Tf__Assignment *assignment;  /* the answer to hello */
	pthread_t thread;
	void *context, *socket;
	atomic_bool closing;
	atomic_int hellos, reports, dones, nexts, last_done_code;
	atomic_llong progress; /* `done` of the last report */
	atomic_int order;      /* sent to the worker after the next request, then 0 */
	atomic_int answer;     /* code of every answer */
	const Tf__Assignment *next; /* what follows a WorkerNext, unasked; NULL: nothing */
	atomic_int next_with_done;  /* or a WorkerDone that says so */
	atomic_int next_answer; /* code of the answer to WorkerNext */
	atomic_int silent;     /* requests to leave unanswered */
};

/* Fields up to assignment are set by the caller, the rest is cleared. */
void fake_start(struct fake *f);
void fake_stop(struct fake *f);

#endif
