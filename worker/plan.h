/* SPDX-License-Identifier: Apache-2.0
 * What a training run will need, without running it: for dry runs and checks of experiment files.
 */
#ifndef WORKER_PLAN_H
#define WORKER_PLAN_H

#include <stdio.h>

/* Reads {"experiment": text, "device": "cpu", "device_bytes": N, "facts": {...}} from in and
 * answers with one JSON object on out:
 *
 *	parameters, positions_per_step, flops_per_step
 *	recompute: layers whose activations are computed again
 *	bytes: weights, gradients, optimiser, ema, activations, constants, host, saving, sampling,
 *		scratch, widening, program
 *	peak_rss_anon: private memory of a worker on a CPU at its largest
 *	device_bytes: of a GPU, on a GPU
 *	assumed: facts that were not given, and what was taken for them
 *
 * device_bytes asked: what the GPU has, for `train.recompute: auto`; 0 or none: what the GPU of
 * this machine has left, or else enough. Facts are numbers (or their texts) by key: pieces,
 * latent_height, latent_width, latent_channels (all 0: no pictures), drawing_bytes (of the
 * autoencoder that draws samples); "ROLE.NAME.pieces" does as well. A mistake is a sentence on
 * stderr. Returns the program's exit status. */
int plan_main(FILE *in, FILE *out);

#endif
