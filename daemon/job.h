/* SPDX-License-Identifier: Apache-2.0
 * What becomes of a job: its states, its end, what it waits for, which ones a list shows. */
#ifndef DAEMON_JOB_H
#define DAEMON_JOB_H

#include "daemon/daemon.h"

/* ---- job_state.c: the one place where a job changes ---- */
/* The state after the event; 0: the event is not possible then. */
Tf__JobState job_next(Tf__JobState state, enum job_event event);
const char *job_event_name(enum job_event event);
/* Checks, persists, announces. TF_ESTATE when the table has no such step. */
int job_change(struct daemon *d, uint64_t id, enum job_event event, const struct job_edit *edit,
	       struct err *e);
/* A job as clients see it: the record's, with the progress of memory and what it waits for. It
 * borrows from the record and from the job: good until one of them goes or changes. */
struct job_view {
	Tf__Job job;
	char waits[WAITS_MAX];
};
void job_view(struct daemon *d, const Tf__JobRecord *record, struct job_view *out);
uint64_t job_seq(struct daemon *d); /* the next number of a change */
/* An attempt after a step back works again: until now its time was lost. */
int job_resumed(struct daemon *d, struct job *j, struct err *e);
void job_progress(struct daemon *d, struct job *j, const Tf__Progress *progress);

/* ---- job_end.c: what follows from the end of an attempt or of a job ---- */
/* Applies the outcome of an attempt: publishes, ends or requeues the job. */
int job_outcome(struct daemon *d, struct worker *w, const Tf__Outcome *outcome, struct err *e);
/* The attempt is gone without an outcome; why for people. */
int job_lost(struct daemon *d, struct worker *w, Tf__Failure failure, const char *why,
	     struct err *e);
/* Dependents, uses, uploads and half-made artefacts of the jobs that ended in this turn. */
void job_follow_up(struct daemon *d);
/* Settles a waiting or held job by how those stand that it waits for: ready, given up, or neither.
 */
int job_wake(struct daemon *d, uint64_t id, struct err *e);

/* ---- after.c: what a job waits for ---- */
/* 0: all has come; 1: not yet; TF_EREFUSED with a sentence: something cannot come any more;
 * TF_ENOTFOUND: one of them is not on record. */
int after_look(struct daemon *d, const Tf__Job *j, struct err *e);
/* Notes for which jobs it waits: those that have not ended will wake it. */
int after_put(struct daemon *d, const Tf__Job *j, struct err *e);
/* The uploads a spec names; borrowed. Returns how many. */
size_t spec_uploads(const Tf__JobSpec *spec, char ***out);

/* ---- job_filter.c: which jobs a list is asked for; all zero takes every job ---- */
struct job_filter {
	const Tf__JobList *asked; /* borrowed */
	bool all;                 /* ended ones too */
	uint32_t states, kinds;   /* a bit for each that fits; 0: all */
};
int job_filter_init(struct job_filter *f, const Tf__JobList *m, struct err *e);
bool job_filter_takes(const struct job_filter *f, const Tf__Job *j);

#endif
