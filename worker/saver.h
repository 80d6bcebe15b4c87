/* SPDX-License-Identifier: Apache-2.0
 * Checkpoints that are written while training goes on: the run takes a copy of itself, and a thread
 * writes, syncs, publishes and prunes. One at a time. */
#ifndef WORKER_SAVER_H
#define WORKER_SAVER_H

#include "worker/worker.h"

#include <stdbool.h>
#include <stdint.h>

struct saver;

struct saver_options {
	const char *folder;            /* the checkpoints are in it; outlives the saver */
	int64_t keep_last, keep_every; /* as checkpoints_prune */
	/* Writes the copy of that step into the folder and publishes it, in the saver's thread:
	 * from saver_begin to the outcome the copy is its own. TF_ENOSPACE and the like leave the
	 * folder as it was. */
	int (*write)(void *copy, uint64_t step, struct err *e);
	void *copy;
};

struct saver *saver_new(const struct saver_options *o);
/* Waits for what is being written. */
void saver_free(struct saver *s);

/* Starts to write the copy, which the caller has just taken; nothing is being written, and the
 * outcome of what was has been asked for. */
void saver_begin(struct saver *s, uint64_t step);
/* Whether saver_end has an outcome to tell, and would not wait. */
bool saver_is_done(struct saver *s);
bool saver_is_busy(const struct saver *s);
/* Waits for what is being written: how it ended, its step and milliseconds since it began. */
int saver_end(struct saver *s, uint64_t *step, int64_t *took_ms, struct err *e);
/* The same, told in the job's log and, when it failed, by its gauge save_failed. */
int saver_tell(struct saver *s, struct job *job, struct err *e);
/* Tells the outcome of what is being written, if anything is. A full disk is an event, not the end:
 * the next save may do. */
void saver_settle(struct saver *s, struct job *job);

#endif
