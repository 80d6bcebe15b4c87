/* SPDX-License-Identifier: Apache-2.0
 * Which slots take new jobs. A slot is drained by an admin or by an event (a critical error of its
 * GPU): both are on disk and last until an admin resumes it. Or by a condition (somebody else's
 * process, a driver that does not answer): that lifts itself. What runs on a drained slot goes on.
 */
#ifndef DAEMON_SLOTS_H
#define DAEMON_SLOTS_H

#include "daemon/machine.h"
#include "store/slots.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SLOTS_MAX (LIMIT_SLOTS + LIMIT_GPUS)
#define SLOT_ROWS_MAX (SLOTS_MAX + LIMIT_FAST_SLOTS)

struct daemon;

/* Slots of the processor come first, then the GPUs in the order of struct machine. */
struct slot {
	bool drained;              /* on disk, until it is resumed */
	char reason[GPU_WHY_MAX];  /* of that */
	char by[LIMIT_NAME_BYTES + 1]; /* the admin; "": the daemon by itself */
	int64_t since;             /* ms since 1970 */
	uint64_t ecc_accepted;     /* memory errors that were known when it was resumed */
	/* of a GPU that is watched */
	bool watched, missing;     /* the driver is asked about it; does not list it */
	int64_t seen_ms;           /* when it answered last, monotonic */
	uint32_t xids_seen;        /* critical errors of the watching process's life */
	Tf__GpuReport *report;     /* the last one, its gpu[0]; NULL: none yet */
};

/* The name of slot i; name is filled for those of the processor. NULL: there is none. */
const char *slot_name(const struct daemon *d, size_t i, char name[GPU_NAME_MAX]);
/* Its index in d->slot; -1: there is none of that name. */
int slot_find(const struct daemon *d, const char *name);
struct slot *slot_of_gpu(struct daemon *d, size_t gpu);
/* Reads what is on record about the slots of the machine. */
int slots_load(struct daemon *d, struct err *e);
void slots_release(struct daemon *d);
/* Durable. by "": the daemon by itself. */
int slot_drain(struct daemon *d, size_t i, const char *by, const char *reason, struct err *e);
int slot_resume(struct daemon *d, size_t i, struct err *e);
/* A GPU that is gone for good loses its record, so its name; at the next start it is not shown. */
int slot_forget(struct daemon *d, size_t i, struct err *e);
/* Puts name and UUID of a GPU on record. */
int slot_remember(struct daemon *d, size_t gpu, struct err *e);
/* Takes a report about a GPU (its gpu[0]); it is the slot's then. */
void slot_report(struct daemon *d, size_t gpu, Tf__GpuReport *report);
/* A row for each slot, with the jobs that hold it; texts are borrowed. Free it with xfree. */
struct slot_rows {
	Tf__SlotState row[SLOT_ROWS_MAX], *list[SLOT_ROWS_MAX];
	char name[LIMIT_SLOTS][GPU_NAME_MAX], fast[LIMIT_FAST_SLOTS][GPU_NAME_MAX];
	uint64_t jobs[SLOT_ROWS_MAX][LIMIT_WORKERS];
	size_t count;
};
struct slot_rows *slot_rows_new(struct daemon *d); /* handle_slots.c */
/* The message Slots, filled; texts are borrowed from the daemon. */
struct slots_view {
	Tf__Slots message;
};
struct slots_view *slots_view_new(struct daemon *d); /* handle_slots.c */
void slots_view_free(struct slots_view *v);
/* What the machine is to think of its slots now. */
void slots_judge(struct daemon *d);
/* At the start: those that are drained, but not by what is on record, are news. */
void slots_announce(struct daemon *d);

#endif
