/* SPDX-License-Identifier: Apache-2.0
 * What jobs make: its names, its folders, the room it may take. */
#ifndef DAEMON_ARTEFACT_H
#define DAEMON_ARTEFACT_H

#include "daemon/daemon.h"

/* ---- artefact.c: making, publishing and removing what jobs make ---- */
char *artefact_path(const struct daemon *d, Tf__ArtefactKind kind, const char *id, bool staging);
/* Whether the job makes it in its own folder from the start (training) or in a staging folder. */
bool artefact_in_place(Tf__ArtefactKind kind);
int artefact_may_change(const struct request *r, const Tf__Artefact *a, struct err *e);
/* Reserves the name the spec wants, or takes up the existing one to resume. *id is the caller's;
 * NULL when the kind makes nothing. */
int artefact_reserve(struct daemon *d, const Tf__JobSpec *spec, uint64_t job,
		     const struct request *r, bool dry_run, char **id, struct err *e);
/* The job that makes, or has made, what is called as the spec wants; 0: there is none. */
uint64_t artefact_maker(struct daemon *d, const Tf__JobSpec *spec);
/* For a job that was put back: takes up what is left of what it made, or reserves it anew. */
int artefact_reserve_again(struct daemon *d, const Tf__JobSpec *spec, const Tf__JobRecord *r,
			   const struct request *by, struct err *e);
int artefact_publish(struct daemon *d, const Tf__JobRecord *r, const Tf__Outcome *outcome,
		     struct err *e);
/* By kind and name, whatever step the name also says. */
int artefact_find_named(struct daemon *d, const Tf__ArtefactRef *ref, Tf__ArtefactRecord **out,
			struct err *e);
/* The job ended without making it: keeps checkpoints, else removes it. */
int artefact_unmake(struct daemon *d, const char *id, struct err *e);
/* Removes folders that no record names, and half-made ones of jobs that are gone. */
void artefact_collect(struct daemon *d);

/* ---- quota.c: disk by user ---- */
/* Of a user (NULL: only whether all are well formed); 0: none. */
int quota_limit(const struct options *o, const char *user, uint64_t *bytes, struct err *e);
int quota_used(struct daemon *d, const char *user, uint64_t *bytes, struct err *e);
/* TF_ELIMIT when the user has no room for `more` bytes. */
int quota_check(struct daemon *d, const char *user, uint64_t more, struct err *e);
/* Counts the folder of a job that ended; puts the record. */
int quota_job_ended(struct daemon *d, Tf__JobRecord *r, struct err *e);
/* Those of the items that lie in the job's folder go. */
int quota_job_shrank(struct daemon *d, uint64_t id, Tf__GcItem *const *item, size_t items,
		     struct err *e);

#endif
