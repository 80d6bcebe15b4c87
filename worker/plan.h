/* SPDX-License-Identifier: Apache-2.0
 * What a training run will need, without running it: for dry runs and checks of experiment files.
 */
#ifndef WORKER_PLAN_H
#define WORKER_PLAN_H

#include <stdio.h>

/* Reads {"experiment": text, "device": "cpu", "facts": {...}} from in and answers with one JSON
 *object on out:
 *
 *	parameters, positions_per_step, flops_per_step
 *	bytes: weights, gradients, optimiser, ema, activations, constants, host, saving, sampling,
 *program peak_rss_anon         private memory of a worker on a CPU at its largest device_bytes of
 *a GPU, on a GPU assumed               facts that were not given, and what was taken for them
 *
 * Facts are texts by key: "pieces", and "latent" as "8x8x8"; "ROLE.NAME.pieces" does as well. An
 *error is
 * {"error": sentence}. Returns the program's exit status. */
int plan_main(FILE *in, FILE *out);

#endif
