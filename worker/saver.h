/* SPDX-License-Identifier: Apache-2.0
 * Checkpoints that are written while training goes on: a copy of the run is taken, and a thread of
 * its own writes, syncs, publishes and prunes. One at a time. */
#ifndef WORKER_SAVER_H
#define WORKER_SAVER_H

#include "worker/checkpoint.h"

#include <stdbool.h>
#include <stdint.h>

struct saver;

struct saver_options {
	const char *folder;              /* of the model */
	const struct model_facts *facts; /* both outlive the saver */
	int64_t keep_last, keep_every;   /* as checkpoints_prune */
};

/* Takes the memory for copies of such runs. TF_ENOMEM. */
int saver_new(const struct checkpoint *c, const struct saver_options *o, struct saver **out,
	      struct err *e);
/* Waits for what is being written. */
void saver_free(struct saver *s);

/* Takes the copy behind the work queued so far and starts to write it; nothing is being written,
 * and the outcome of what was has been asked for. */
void saver_begin(struct saver *s, const struct checkpoint *c, double score);
/* Whether saver_end has an outcome to tell, and would not wait. */
bool saver_is_done(struct saver *s);
bool saver_is_busy(const struct saver *s);
/* Waits for what is being written: how it ended, its step and milliseconds since it began. */
int saver_end(struct saver *s, uint64_t *step, int64_t *took_ms, struct err *e);

#endif
