/* SPDX-License-Identifier: Apache-2.0
 * What is in a checkpoint of a Transfusion model (store/checkpoints.h has the folders): the weights
 * with what is needed to use them, the averaged weights, and the state that lets a run go on bit
 * for bit.
 *
 * weights.safetensors: every tensor of model/transformer.h, f32; metadata as in struct model_facts.
 * ema.safetensors: the same names: averaged weights; absent when not averaged.
 * state.safetensors: "m.NAME", "v.NAME": AdamW moments; "loader": the data's position, bytes;
 * metadata: step, skipped, positions, images, backend, threads, choices (see kernels_choices),
 * version.
 * experiment.yaml: what the run is made with.
 * score: the held-out loss, or nothing. */
#ifndef WORKER_CHECKPOINT_H
#define WORKER_CHECKPOINT_H

#include "lib/buf.h"
#include "lib/err.h"
#include "model/transformer.h"

#include <stdbool.h>
#include <stdint.h>

#define CHECKPOINT_WEIGHTS "weights.safetensors"
#define CHECKPOINT_AVERAGE "ema.safetensors"
#define CHECKPOINT_STATE "state.safetensors"
#define CHECKPOINT_EXPERIMENT "experiment.yaml"

/* What a model needs besides its weights; the metadata of its weights. */
struct model_facts {
	int64_t pieces, bos, eos;                             /* of the tokenizer */
	int64_t latent_height, latent_width, latent_channels; /* 0: text alone */
	char tokenizer[33], vae[33];                          /* hashes; vae "" without pictures */
	char *experiment;                                     /* text; owned */
};
void model_facts_release(struct model_facts *f);

enum checkpoint_array {
	CHECKPOINT_VALUES, CHECKPOINT_AVERAGED, CHECKPOINT_M, CHECKPOINT_V, CHECKPOINT_ARRAYS
};

/* A training run at a step. All borrowed but `loader`. */
struct checkpoint {
	uint64_t step;              /* steps done */
	uint64_t skipped;           /* steps left out because their loss was no number */
	uint64_t positions, images; /* seen so far */
	struct transformer *model;
	float *average;    /* backend memory of model->params.total values; NULL: none */
	struct buf loader; /* the data's position */
};

/* A copy of a run in the host's memory, so that it can be written while the run goes on. */
struct checkpoint_copy {
	struct kernels *k;
	char *memory; /* of host_alloc */
	char *array[CHECKPOINT_ARRAYS];
	struct fetch fetch[CHECKPOINT_ARRAYS];
	bool under_way; /* fetches have begun and not ended */
	struct checkpoint of; /* model: its list of parameters alone; `loader` is the copy's own */
	uint64_t updates;
	char *choices; /* see kernels_choices */
	double score;
};

/* Bytes of the host's memory that a copy takes. */
size_t checkpoint_copy_bytes(const struct params *p, bool average);
/* Takes the memory for copies of such runs. TF_ENOMEM. */
int checkpoint_copy_new(const struct checkpoint *c, struct checkpoint_copy **out, struct err *e);
void checkpoint_copy_free(struct checkpoint_copy *copy);
/* Starts to copy the run as it is behind all work queued so far, without waiting. score NaN: not
 * measured. */
void checkpoint_copy_take(struct checkpoint_copy *copy, const struct checkpoint *c, double score);
/* Waits for the copy to be whole, writes it into folder and publishes it; any thread. TF_ENOSPACE
 * and TF_EIO leave the folder as it was, but for remains that the next one clears away. */
int checkpoint_copy_write(struct checkpoint_copy *copy, const char *folder,
			  const struct model_facts *f, struct err *e);

/* All of it at once. */
int checkpoint_save(const char *folder, const struct checkpoint *c, const struct model_facts *f,
		    double score, struct err *e);

/* Reads what a model is, without its weights. path: the folder of the step. */
int checkpoint_facts(const char *path, struct model_facts *out, struct err *e);
/* Weights (average: the averaged ones) into m, every name and shape checked. */
int checkpoint_weights(const char *path, bool average, struct transformer *m, struct err *e);
/* Everything: weights, average, moments, counters and the loader's position into c, whose model
 * (made for training) and average stand ready. */
int checkpoint_resume(const char *path, struct checkpoint *c, struct err *e);

#endif
