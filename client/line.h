/* SPDX-License-Identifier: Apache-2.0
 * The inside of libtransfuse, which the verbs of the command line use with messages in place of
 * JSON. Errors go into the caller's struct err. */
#ifndef CLIENT_LINE_H
#define CLIENT_LINE_H

#include "client/place.h"
#include "client/transfuse.h"
#include "lib/err.h"
#include "proto/connection.h"
#include "proto/transfused.pb-c.h"

#include <stdbool.h>

struct transfuse {
	struct place place;
	struct connection *connection; /* NULL: the place was not found */
	struct err err;                /* for transfuse_error */
};

/* Finds the daemon and begins to connect, asking nothing. as_user: an administrator asks as this
 * user; NULL. *out is freed with transfuse_close, after an error too. */
int line_open(const struct place_given *given, const char *as_user, struct transfuse **out,
	      struct err *e);
/* Sends r and waits for an answer of this kind, which the caller frees. */
int line_ask(struct transfuse *t, Tf__Request *r, Tf__Reply__BodyCase want, int64_t timeout_ms,
	     Tf__Reply **out, struct err *e);
/* Whether an answer taken out of several outstanding ones is of this kind; its error, if it is
 * one. */
int line_check(const Tf__Reply *reply, Tf__Reply__BodyCase want, struct err *e);
/* Submits a spec that was checked. The answer (submitted) is the caller's. */
int line_submit(struct transfuse *t, Tf__JobSpec *spec, bool dry_run, Tf__Reply **out,
		struct err *e);
/* One of several jobs that are submitted together: it waits for another before it to be done. */
struct line_member {
	Tf__JobSpec *spec;
	int64_t after; /* its place; -1: none */
};
/* Submits up to TRANSFUSE_BATCH_MOST jobs, all or none. job stays as it is after a dry run. */
int line_submit_members(struct transfuse *t, const struct line_member *member, size_t count,
			bool dry_run, uint64_t *job, struct err *e);
/* The same for jobs that do not wait for each other. */
int line_submit_batch(struct transfuse *t, Tf__JobSpec *const *spec, size_t count, uint64_t *job,
		      struct err *e);
/* One long poll: the job (the answer's jobs[0]) when its seq is over `since`, it has ended, or
 * timeout_ms are over. */
int line_news(struct transfuse *t, uint64_t job, uint64_t since, uint32_t timeout_ms,
	      Tf__Reply **out, struct err *e);
/* The jobs that m asks for, newest first and at most so many. They come in pages: the daemon makes
 * the next one while fn looks at the jobs of this one, each borrowed for the call. m->before, where
 * given, is where the list begins; the rest of it is the page's. A return of fn other than 0 ends
 * the list and is returned. */
typedef int (*line_job_fn)(void *arg, const Tf__Job *job);
int line_list_jobs(struct transfuse *t, Tf__JobList *m, uint64_t most, line_job_fn fn, void *arg,
		   struct err *e);

#endif
