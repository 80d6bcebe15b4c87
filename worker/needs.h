/* SPDX-License-Identifier: Apache-2.0
 * The memory a training run needs, known before anything is allocated, and what is done so that it
 * fits. */
#ifndef WORKER_NEEDS_H
#define WORKER_NEEDS_H

#include "model/transformer.h"
#include "proto/experiment.h"

#include <stddef.h>

struct needs {
	struct memory_plan model;
	size_t saving;   /* the host's: a copy of the run for its checkpoints */
	size_t sampling; /* pictures drawn while training goes on: sampler and autoencoder */
	size_t scratch;  /* a GPU's, of operations */
	size_t widening; /* a CPU's, for bf16 where it has no products of it; else 0 */
};

/* Pictures drawn at a time while training goes on; 0: none. */
int64_t needs_samples(const struct train_experiment *x);
/* drawing: vae_drawing_bytes of the autoencoder they are drawn with, or 0; widens: for a CPU
 * without products of bf16. */
void needs_measure(const struct train_experiment *x, const struct dims *dims, size_t drawing,
		   bool widens, struct needs *out);
/* At the peak, on a GPU and on a CPU (the program itself not counted). */
size_t needs_of_gpu(const struct needs *n);
size_t needs_of_cpu(const struct needs *n);

/* Sets dims->recompute by train.recompute: all layers, none, or with auto the fewest with which the
 * run fits into `bytes` of a GPU (all, when it never does); 0 bytes: any run fits. */
void needs_fit(const struct train_experiment *x, size_t bytes, size_t drawing, struct dims *dims);

#endif
