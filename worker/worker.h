/* SPDX-License-Identifier: Apache-2.0
 * The vocabulary of transfuse-worker: one process runs one attempt of one job at a time, mostly one
 * in all; of a joint kind several (crew.h).
 *
 * main.c says hello to the daemon, fills struct job from the Assignment and calls the job's
 * function (proto/jobs.def has a row for each kind; its work is job_<kind>.c). The function
 * returns 0 when the work is done, TF_ECANCELLED when it left because job_should_stop said so, or
 * another TF_E* with a sentence. crew.c then writes the outcome, tells the daemon and exits or asks
 * for another job: then it is warm, and kept.h says what it keeps.
 *
 * A job's function runs in the main thread. A thread of its own (link.c) speaks with the daemon,
 * so that no function of this header ever waits for the daemon. */
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H

#include "kernels/kernels.h"
#include "lib/err.h"
#include "proto/transfused.pb-c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Exit statuses (the daemon takes them for hints: the outcome file counts). */
enum worker_exit {
	WORKER_DONE = 0,                    /* outcome written: done */
	WORKER_FAILED = 1,                  /* outcome written: failed */
	WORKER_USAGE = 2,                   /* wrong arguments; no outcome */
	WORKER_NO_DAEMON = 3,               /* no Assignment came; no outcome */
	WORKER_FENCED = 4,                  /* another attempt took over; no outcome */
	WORKER_STOPPED = 5,                 /* outcome written: stopped as asked */
	WORKER_DEVICE = KERNEL_EXIT_DEVICE, /* a device error */
};

struct crew;
struct kept;
struct link;
struct report;

struct job {
	uint64_t id;
	uint32_t attempt;
	const Tf__JobSpec *spec;          /* as submitted; its oneof goes with its kind */
	const Tf__Assignment *assignment; /* inputs with paths, source files, map_bytes */
	const char *folder;               /* jobs/<id>: log, metrics.jsonl */
	char *outcome;                    /* the file that the attempt's outcome goes to */
	const char *results;              /* <folder>/results; see job_result_path */
	const char *output;               /* where a new artefact is made, exists; NULL: none */
	const char *device;               /* "cpu", "ref", "cuda:0" */
	int threads;                      /* 0: all of the process's */
	struct kernels *kernels;          /* NULL until job_kernels */
	struct link *link;                /* NULL in tests: reports go nowhere */
	struct report *state;             /* of report.c */
	struct kept *kept;                /* what may outlive the job (kept.h); NULL: nothing */
	struct crew *crew;                /* those beside it (crew.h); NULL in tests: none */
};

/* One function for each row of jobs.def. That of a joint kind takes in further jobs of its crew,
 * and sees all of them off with crew_leave, this one, too; without a crew it is as the others. */
#define J(id, ENUM, field, artefact, resumable, warm, joint, help) \
	int job_##id(struct job *job, struct err *e);
#include "proto/jobs.def"
#undef J

/* ---- job.c: what every kind of job needs ---- */

/* Makes a job of an Assignment (borrowed; it must outlive the job). link may be NULL. Makes
 * the job's folder if it is not there. */
int job_init(struct job *job, const Tf__Assignment *assignment, struct link *link, struct err *e);
/* Closes metrics, and kernels that are not kept. */
void job_release(struct job *job);

/* Opens the kernels of the job's device once; job->kernels then. Logs what they are. */
int job_kernels(struct job *job, struct err *e);

/* The number-th input of a role ("data", "tokenizer", "vae", "model", "init"), or NULL. Inputs
 * keep the order in which the experiment names them. */
const Tf__Input *job_input(const struct job *job, const char *role, size_t number);
/* The only input of a role; TF_EINVALID with a sentence when there is none. */
int job_need_input(const struct job *job, const char *role, const Tf__Input **out, struct err *e);

/* Why the job should leave now, or TF__STOP_REASON__STOP_NONE. Cheap: ask at every step or sample.
 */
Tf__StopReason job_should_stop(const struct job *job);
/* The usual way out: sets "stopped: <reason>" and returns TF_ECANCELLED. */
int job_stopped(const struct job *job, struct err *e);

/* ---- report.c: progress, metrics, results ---- */

/* Progress of a phase ("reading", "training"): done of total (0: unknown) in units ("step",
 * "sample"). Call it as often as you like: it sends at most four a second, computes rate and ETA,
 * and never waits. A new phase, and done == total, are sent at once. */
void job_report(struct job *job, const char *phase, uint64_t done, uint64_t total,
		const char *unit);
/* Sets a figure that goes with the progress from now on ("loss", "psnr"): the last value counts.
 */
void job_gauge(struct job *job, const char *name, double value);

struct job_metric {
	const char *name;
	double value; /* not finite: written as null */
};
/* Appends {"step": step, "<name>": value, ...} to <folder>/metrics.jsonl (one write, never
 * synced). A failed write is logged once. */
void job_metrics(struct job *job, uint64_t step, const struct job_metric *metric, size_t count);
/* Forgets the lines whose step is beyond `step`: a resumed run writes them again. */
int job_metrics_rewind(struct job *job, uint64_t step, struct err *e);

/* A summary number of the outcome; a name set again is replaced. */
void job_result(struct job *job, const char *name, double value);
/* A stage of the work begins ("load"; kept, so a constant) and the one before ends; NULL: the last
 * one ends. The outcome tells how many milliseconds each lasted in all. */
void job_stage(struct job *job, const char *stage);
/* The same within work that may be of a job without stages: nothing where none is under way. */
void job_stage_within(struct job *job, const char *stage);
/* States what the output folder now holds: kind, and the hash of its content as hex. Copies. */
void job_artefact(struct job *job, Tf__ArtefactKind kind, const char *hash);
/* A fact of that artefact ("samples", "psnr", "vocab"); a key set again is replaced. */
void job_fact(struct job *job, const char *key, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* ---- paths: each returns a string the caller frees ---- */
char *job_path(const char *folder, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The same for a result: makes results/ first, so that a job without any has no such folder. */
char *job_result_path(const struct job *job, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* XXH3-128 of a file's content as 32 hex digits: what artefacts are named by. */
int job_hash_file(const char *path, char hex[33], struct err *e);

#endif
