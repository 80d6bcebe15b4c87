/* SPDX-License-Identifier: Apache-2.0
 * Checkpoints in the folder of a model or autoencoder: one folder step-%08d each, made under
 * another name and renamed when all of it is on disk, so that what has the name is whole.
 *
 * Inside: weights.safetensors, ema.safetensors (when averaged), state.safetensors (optimiser and
 * data position), experiment.yaml, and score, one line of text: the held-out loss, or nothing. */
#ifndef STORE_CHECKPOINTS_H
#define STORE_CHECKPOINTS_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHECKPOINT_NAME_MAX 32

struct checkpoint_entry {
	uint64_t step;
	double score; /* held-out loss; NaN when it was not measured */
};

/* "step-00000100". */
void checkpoint_name(uint64_t step, char out[CHECKPOINT_NAME_MAX]);
/* The step of such a name; false when it is something else. */
bool checkpoint_parse(const char *name, uint64_t *step);

/* All checkpoints of a folder by rising step; the caller frees *out with xfree. None is fine. */
int checkpoints_list(const char *folder, struct checkpoint_entry **out, size_t *count,
		     struct err *e);
/* which: NULL, "" or "latest", "best" (least score; the latest when none has one) or a step
 * number. TF_ENOTFOUND says which there are. */
int checkpoints_find(const char *folder, const char *which, uint64_t *step, struct err *e);

/* Starts a checkpoint: an empty folder whose path is returned in *path (caller frees). What an
 * earlier run left half-made is removed. */
int checkpoint_begin(const char *folder, uint64_t step, char **path, struct err *e);
/* Writes score (NaN: none), syncs everything in path and gives it its name; one that has it is
 * replaced. */
int checkpoint_commit(const char *folder, uint64_t step, const char *path, double score,
		      struct err *e);
/* Takes its name from a checkpoint, so that nobody finds it any more; *aside (caller frees) is what
 * is to be removed. */
int checkpoint_set_aside(const char *folder, uint64_t step, char **aside, struct err *e);
/* All but the newest keep_last, multiples of keep_every (0: none) and the one with the best score,
 * by rising step; the caller frees *step with xfree. */
int checkpoints_superfluous(const char *folder, int64_t keep_last, int64_t keep_every,
			    uint64_t **step, size_t *count, struct err *e);
/* Removes all but the newest keep_last, multiples of keep_every (0: none) and the one with the
 * best score. */
int checkpoints_prune(const char *folder, int64_t keep_last, int64_t keep_every, struct err *e);

#endif
