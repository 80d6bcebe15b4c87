/* SPDX-License-Identifier: Apache-2.0
 * From what a client submits to a job. */
#ifndef DAEMON_SUBMIT_H
#define DAEMON_SUBMIT_H

#include "daemon/daemon.h"

/* ---- resolve.c: names in a spec to inputs ---- */
/* Whether one of the jobs that it waits for is among these `count` from `first` on. */
bool spec_waits_for(const Tf__JobSpec *spec, uint64_t first, uint64_t count);
struct resolved {
	Tf__Input **input;
	size_t inputs;
	Tf__KeyValue **fact;
	size_t facts;
};
int resolve_spec(struct daemon *d, const Tf__JobSpec *spec, struct resolved *out, struct err *e);
void resolved_release(struct resolved *r);
/* Again at the start of an attempt: what was being made at the submit is there now. */
int resolve_late(struct daemon *d, Tf__SpecRecord *record, uint64_t job, struct err *e);

/* ---- handle_jobs.c ---- */
struct job_numbers {
	uint64_t count, first; /* first 0: they are not taken yet */
	uint64_t used;         /* of them */
};
struct submitted {
	uint64_t job; /* 0: a dry run */
	bool already; /* the token was known */
	struct resolved resolved;
};
int job_may_change(const struct request *r, const Tf__Job *j, struct err *e);
/* Checks all of the submit, then makes the job, with the next of the numbers (NULL: the next of
 * all). Resolved is the caller's when it succeeds. */
int submit_one(struct daemon *d, const struct request *r, const Tf__Submit *m,
	       struct job_numbers *numbers, struct submitted *out, struct err *e);
/* The job uses these from now on: they cannot be deleted before it ends. */
int submit_put_uses(struct daemon *d, uint64_t id, const Tf__JobSpec *s, Tf__Input *const *input,
		    size_t inputs, struct err *e);
/* What the artefact (NULL: none) is made from is known now: its record protects them. */
int submit_put_made_from(struct daemon *d, const char *artefact, Tf__Input **input, size_t inputs,
			 struct err *e);
/* Applies fn to each job, all of which the user may change, and answers with them. One that fn
 * refuses, changing nothing, does not keep the others from it: the answer says so. */
int handle_each(struct daemon *d, struct request *r, const Tf__JobRefs *m,
		int (*fn)(struct daemon *, const struct request *, uint64_t, struct err *));

#endif
