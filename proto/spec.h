/* SPDX-License-Identifier: Apache-2.0
 * What a job may be asked: checks of a JobSpec, names, and the words for the enums. Client and
 * daemon check alike; only what needs the store (does the dataset exist?) is left to the
 * daemon. */
#ifndef PROTO_SPEC_H
#define PROTO_SPEC_H

#include "lib/err.h"
#include "proto/limits.h"
#include "proto/transfused.pb-c.h"

#include <stdbool.h>
#include <stdint.h>

/* A row of jobs.def. */
struct job_kind {
	const char *id;                 /* "train" */
	Tf__JobKind kind;
	Tf__JobSpec__SpecCase spec;
	Tf__ArtefactKind makes;         /* 0: nothing */
	bool resumable;
	bool warm;                      /* one process may run several */
	bool joint;                     /* at a time, too */
	const char *help;
};
extern const struct job_kind job_kinds[];
extern const size_t job_kind_count;
const struct job_kind *job_kind_find(Tf__JobKind kind);      /* NULL: none */
const struct job_kind *job_kind_named(const char *id);

/* "train", "running", "dataset", ...; "unknown" for a number that is none. Never NULL. */
const char *job_kind_name(Tf__JobKind kind);
const char *job_state_name(Tf__JobState state);
const char *priority_name(Tf__Priority priority);
Tf__Priority priority_named(const char *text);               /* 0: none */
const char *stop_reason_name(Tf__StopReason reason);
const char *artefact_kind_name(Tf__ArtefactKind kind);       /* "dataset", "model", ... */
/* The tasks of proto/tasks.def as "perplexity|loss|...", behind one more '|'. */
extern const char eval_tasks_barred[];
#define EVAL_TASKS (eval_tasks_barred + 1)
/* The kinds of datasets that a task takes, divided by '|': "text|pairs"; "" for an unknown task. */
const char *eval_task_data(const char *task);
bool job_state_is_end(Tf__JobState state);                   /* done, failed, cancelled */

/* Every field of the spec: one sentence names the field, its value and what was expected. */
int spec_check(const Tf__JobSpec *spec, struct err *e);

/* A name: 1 to LIMIT_NAME_BYTES of A-Z a-z 0-9 . _ -, not beginning with '.' or '-'. what:
 * "dataset". */
int name_check(const char *what, const char *name, struct err *e);

/* NAME[:step|latest|best][@ema] taken apart. */
struct artefact_name {
	char name[LIMIT_NAME_BYTES + 1];
	char step[24];                  /* "", "latest", "best" or a decimal number */
	bool ema;
};
int artefact_name_parse(const char *what, const char *text, struct artefact_name *out,
			struct err *e);

#endif
