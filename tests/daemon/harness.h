/* SPDX-License-Identifier: Apache-2.0
 * A live daemon in a temp folder, and a client of it, for tests. Everything that should work and
 * does not ends the test at once. */
#ifndef TESTS_DAEMON_HARNESS_H
#define TESTS_DAEMON_HARNESS_H

#include "tests/test.h"
#include "proto/connection.h"
#include "proto/spec.h"

#include <sys/types.h>

struct harness {
	char *folder; /* temp; removed by harness_stop, but for harness_keep_in */
	char *state;
	pid_t pid;               /* of the daemon; 0: none runs */
	struct connection *line; /* of its owner */
	const char *worker;      /* program; NULL: fake_worker */
	const char *slots;       /* NULL: 1; "": what the configuration says */
	const char *extra[8];    /* further options, NULL-ended */
	const char *fault;       /* TF_FAULT of the daemon; NULL: none */
	const char *bound;       /* TF_BOUND of it; NULL: none */
	int64_t reconnect_ms;    /* patience of lines to it when it is gone; 0: a minute */
	char *environment[4];    /* further "NAME=value" of it, NULL-ended; owned by the test */
};

/* For measurements: from now on all make their folders in this one, whose maker removes it when all
 * is measured. An ext4 without a journal searches past each inode deleted in the last five minutes
 * when it makes a file: what one part tidied away would slow the next one down by milliseconds. */
void harness_keep_in(const char *folder);
void harness_init(struct harness *h);  /* makes the folder; starts nothing */
void harness_start(struct harness *h); /* a daemon that is ready, and a line to it */
int harness_start_fails(struct harness *h, char *text,
			size_t room);             /* exit status of one that must not start */
void harness_kill(struct harness *h, int signal); /* and waits for the end; closes the line */
void harness_stop(struct harness *h);             /* kills everything, removes the folder */
/* All that stand in a folder below ours. */
void harness_kill_workers(const struct harness *h);

/* For the tests of a program that has one harness h and one error e: setups that begin with both
 * anew, without a daemon, with one, and with one that takes sources from h's folder; and their end.
 */
struct harness_fixture {
	struct harness *h;
	struct err *e;
};
int harness_prepared(void **state);
int harness_started(void **state);
int harness_rooted(void **state);
int harness_ended(void **state);
#define WITH_HARNESS(test, setup)                                              \
	cmocka_unit_test_prestate_setup_teardown(test, setup, harness_ended, \
						 &((struct harness_fixture){ &h, &e }))

/* How often the daemon's own log says this; and waits until it does so often, a minute at most. */
int harness_said(const struct harness *h, const char *words);
void harness_until_said(const struct harness *h, const char *words, int times);

long harness_rss_anon_kib(const struct harness *h); /* private memory of the daemon */

/* A line of another user; close it with connection_close. */
struct connection *harness_line(struct harness *h, const struct key_pair *keys);
/* Makes a pair of keys and enrols the public one. */
void harness_enrol(struct harness *h, const char *name, const char *role, struct key_pair *keys);
/* A bare DEALER of a user (NULL: the owner), for what a connection would not send; zmq_close. */
void *harness_socket(struct harness *h, void *context, const struct key_pair *keys);
/* Sends on it, waiting until there is room. */
void harness_send(void *socket, const Tf__Request *r);
/* Submits noop jobs of this name on it, as requests first, first + 1, ...; takes no answers. */
void harness_send_noops(void *socket, const char *how, uint64_t first, uint64_t count);
/* An answer that comes on it within the time; NULL: none. */
Tf__Reply *harness_receive(void *socket, int64_t timeout_ms);
/* The number of the job that the next answer on it names, which is no error. */
uint64_t harness_receive_job(void *socket);
char *harness_path(const struct harness *h, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
bool harness_exists(const struct harness *h, const char *rel);

/* A request of a kind that says nothing but itself: ping, status, slot_list, user_list. */
Tf__Request harness_empty(Tf__Request__BodyCase kind);
/* Calls; the code is 0 or the daemon's. *reply (may be NULL) is the caller's. */
int harness_call(struct connection *c, Tf__Request *r, Tf__Reply **reply, struct err *e);
/* Submits a noop job that the fake worker takes for an order to behave so. */
uint64_t harness_noop(struct harness *h, const char *how);
int harness_submit(struct connection *c, const Tf__JobSpec *spec, const uint8_t token[16],
		   bool dry_run, uint64_t *id, struct err *e);
/* A noop job of this name; token NULL: one of its own, id NULL: it is of no interest. */
int harness_submit_noop(struct connection *c, const char *how, const uint8_t *token, uint64_t *id,
			struct err *e);
int harness_drain(struct connection *c, bool resume, bool stop, struct err *e);
/* The job as job_show gives it; free the reply with tf__reply__free_unpacked. */
Tf__Reply *harness_show(struct harness *h, uint64_t id);
Tf__JobState harness_state(struct harness *h, uint64_t id);
/* Waits until the job is so; fails the test after a minute. */
void harness_until(struct harness *h, uint64_t id, Tf__JobState state);
/* The job's reason and attempt now; reason is the caller's. */
char *harness_reason(struct harness *h, uint64_t id, uint32_t *attempt);
/* Begins an upload of so many bytes, under a token of its own. */
int harness_upload_open(struct connection *c, uint64_t size, struct err *e);
int harness_cancel(struct connection *c, uint64_t id, struct err *e);
char *harness_log(struct harness *h, uint64_t id); /* the job's log file; the caller's */

#endif
