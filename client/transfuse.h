/* SPDX-License-Identifier: Apache-2.0
 * libtransfuse: submitting jobs to a transfused and following them, from a C program. The command
 * line transfuse uses the same code.
 *
 *	struct transfuse *t;
 *	uint64_t job;
 *
 *	if (transfuse_connect(NULL, &t) < 0 ||
 *	    transfuse_submit(t, "{\"noop\": {\"seconds\": 1}}", &job) < 0)
 *		fprintf(stderr, "%s\n", transfuse_error(t));
 *	transfuse_close(t);
 *
 * Functions return 0 or a negative enum transfuse_code; transfuse_error has the sentence for it. A
 * struct transfuse is used by one thread at a time, any number of them by one process, none across
 * a fork. A lost connection is made again and what was asked is asked again; a job is submitted
 * once however often that happens. What returned 0 is on the daemon's disk.
 *
 * Link with -ltransfuse -lzmq -lprotobuf-c -ljansson -lyaml -lxxhash -lm (pkg-config --static
 * --libs transfuse). The library ends the process when there is no memory left. */
#ifndef CLIENT_TRANSFUSE_H
#define CLIENT_TRANSFUSE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The errors a program may want to tell apart; the numbers are those of Reply.code, and others of
 * lib/errors.def may be returned. */
enum transfuse_code {
	TRANSFUSE_OK = 0,
	TRANSFUSE_INVALID = -2,    /* a spec is wrong; the sentence names field and value */
	TRANSFUSE_NOT_FOUND = -3,  /* no such job, model, dataset, key file */
	TRANSFUSE_REFUSED = -5,    /* by the daemon: key, role, quota, state */
	TRANSFUSE_LIMIT = -7,      /* over a limit; the sentence names it */
	TRANSFUSE_NO_DAEMON = -13, /* nobody there, or no longer */
	TRANSFUSE_TIMEOUT = -14,   /* the time given is up */
	TRANSFUSE_UNKNOWN = -18,   /* the daemon could not write its state: ask again later */
};

/* Where the daemon is; a member that is NULL is found as the command line finds it:
 * TRANSFUSE_ENDPOINT, the daemon of TRANSFUSE_STATE, /etc/transfused/client.yaml. */
struct transfuse_place {
	const char *endpoint;        /* "ipc:///path" or "tcp://host:port" */
	const char *key_file;        /* the user's key pair */
	const char *server_key_file; /* the daemon's public key */
};

struct transfuse;

/* Finds the daemon, connects and asks whether it answers. place may be NULL. *out is set after an
 * error too, for transfuse_error; transfuse_close frees it either way. */
int transfuse_connect(const struct transfuse_place *place, struct transfuse **out);
/* NULL is fine. Jobs go on. */
void transfuse_close(struct transfuse *t);
/* What the last call had to say when it failed, one sentence; "" when it did not. Valid until the
 * next call. */
const char *transfuse_error(const struct transfuse *t);

/* Submits a job. spec is a JSON object with the fields of message JobSpec in transfused.proto; the
 * kind may be left out, as the member of its spec says it:
 *	{"name": "a", "generate": {"model": "mine@ema", "prompt": ["red apple"], "seed": 7}}
 * *job is the new job's number. */
int transfuse_submit(struct transfuse *t, const char *spec, uint64_t *job);
/* Submits up to TRANSFUSE_BATCH_MOST jobs at once: all of them, or none after an error. job has
 * room for count numbers, in the order of the specs. */
#define TRANSFUSE_BATCH_MOST 1000
int transfuse_submit_batch(struct transfuse *t, const char *const *spec, size_t count,
			   uint64_t *job);

/* A job as the daemon last told it. Texts are cut to their room. */
struct transfuse_job {
	uint64_t id;
	const char *kind;    /* "train", "generate", ...; not to be freed */
	const char *state;   /* "queued", "running", "done", ...; not to be freed */
	int ended;           /* done, failed or cancelled */
	int done;            /* ended well */
	uint32_t attempt;    /* 0: it has not started yet */
	int64_t submitted_ms, started_ms, ended_ms; /* since 1970; 0: not yet */
	double progress;     /* share of the present phase, 0 to 1; negative: not known */
	char name[101], user[101], slot[101];
	char reason[501];    /* why it failed, was cancelled or waits */
};

/* Waits until the job has ended, at most timeout_ms; out (may be NULL) is how it stands then.
 * TRANSFUSE_TIMEOUT when it has not ended; how it ended is no error. */
int transfuse_wait(struct transfuse *t, uint64_t job, int64_t timeout_ms,
		   struct transfuse_job *out);
/* Stops jobs, up to 10,000 in a call: queued ones at once, running ones as soon as they may. One
 * that has ended already stays as it is. */
int transfuse_cancel(struct transfuse *t, const uint64_t *job, size_t count);
/* Calls fn for jobs, newest first: those that have not ended, or all. before: only those with a
 * lower number (0: from the newest). most 0: no limit. A return other than 0 ends the list and is
 * returned. fn must not use t. */
int transfuse_list(struct transfuse *t, int all, uint64_t before, size_t most,
		   int (*fn)(void *arg, const struct transfuse_job *job), void *arg);

#ifdef __cplusplus
}
#endif

#endif
