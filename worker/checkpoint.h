/* SPDX-License-Identifier: Apache-2.0
 * What is in a checkpoint of a Transfusion model (store/checkpoints.h has the folders): the
 *weights with what is needed to use them, the averaged weights, and the state that lets a run go
 *on bit for bit.
 *
 *	weights.safetensors   every tensor of model/transformer.h, f32; metadata as in struct
 *model_facts ema.safetensors       the same names: averaged weights; absent when not averaged
 *	state.safetensors     "m.NAME", "v.NAME": AdamW moments; "loader": the data's position,
 *bytes; metadata: step, skipped, positions, images, backend, threads, and version experiment.yaml
 *what the run is made with score                 the held-out loss, or nothing */
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

/* A training run at a step. All borrowed but `loader`. */
struct checkpoint {
	uint64_t step;              /* steps done */
	uint64_t skipped;           /* steps left out because their loss was no number */
	uint64_t positions, images; /* seen so far */
	struct transformer *model;
	float *average;    /* backend memory of model->params.total values; NULL: none */
	struct buf loader; /* the data's position */
};

/* Writes a checkpoint into folder and publishes it. TF_ENOSPACE and TF_EIO leave the folder as it
 * was, but for remains that the next one clears away. score NaN: not measured. */
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
