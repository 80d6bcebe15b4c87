/* SPDX-License-Identifier: Apache-2.0
 * From datasets to batches of packed sequences, for training and for held-out losses. Which
 * document comes next, how it is laid out, at which timestep, and where it is put are functions
 * of the seed and of counters, so that a few hundred saved bytes continue a run bit for bit.
 *
 * Order: each pass over a dataset is a keyed permutation. The next document comes from the
 * dataset with the least positions / weight. Up to 64 documents wait; a sequence takes the
 * first that fits until none does. A text longer than a sequence continues in the next ones; a
 * picture with its caption is never cut. Runs in the process that trains, in one thread. */
#ifndef WORKER_LOADER_H
#define WORKER_LOADER_H

#include "lib/buf.h"
#include "model/sequence.h"
#include "store/dataset.h"

#include <stdbool.h>
#include <stdint.h>

#define LOADER_SOURCES_MAX 256
#define LOADER_WAITING 64

struct loader_source {
	struct dataset *data; /* open, with tokens; outlives the loader */
	double weight;        /* > 0 */
};

struct loader_options {
	uint64_t seed;
	enum dataset_split split;
	double caption_first;   /* share of pairs whose caption comes first; 0.8 */
	double caption_dropout; /* share of those that lose it; 0.1 */
	int noise_limit;        /* largest timestep where the picture comes first; 500 */
	/* Held-out losses: order as stored, each sample once, noise and times from PHILOX_EVAL.
	 *  */
	bool once;
	uint64_t limit; /* once: at most so many samples of each dataset; 0: all */
};

struct loader;

/* dims (borrowed) gives vocabulary, latent shape, T, B and the most pictures of a batch.
 * Latents are normalised by their dataset's mean and deviation. TF_EMISMATCH: a dataset's
 * pieces or latent shape are not the model's, or datasets differ in tokenizer or VAE;
 * TF_EINVALID: no samples, no tokens. */
int loader_new(const struct dims *dims, const struct loader_source *source, int sources,
	       const struct loader_options *options, struct loader **out, struct err *e);
void loader_free(struct loader *l);

/* Clears the batch and fills it with dims->B sequences. With `once`, a batch may stay partly
 * empty, and *documents is 0 when all was shown. documents may be NULL. */
int loader_next(struct loader *l, struct batch *b, int64_t *documents, struct err *e);
/* Back to the start (held-out losses measured again and again on the same draws). */
void loader_rewind(struct loader *l);

struct loader_count {
	uint64_t documents; /* drawn from it, waiting ones included */
	uint64_t positions; /* of them */
	uint64_t left_out;  /* a picture with a caption too long for a sequence */
	uint64_t epoch;     /* whole passes */
};
struct loader_count loader_count(const struct loader *l, int source);

/* Appends the state between two batches. */
void loader_save(const struct loader *l, struct buf *out);
/* Continues from a saved state of the same datasets, options and sizes: TF_EMISMATCH,
 * TF_ECORRUPT. */
int loader_restore(struct loader *l, const void *state, size_t bytes, struct err *e);

#endif
