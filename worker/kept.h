/* SPDX-License-Identifier: Apache-2.0
 * What a worker keeps from one job to the next: the kernels of its device and the last model opened
 * for drawing or evaluating, with tokenizer and autoencoder. Nothing else outlives a job: seeds,
 * options, reports, the log and the folder are of the job alone. A kept model is used again only
 * for the same files of the same artefacts, average, batch, device and threads, so that a job's
 * results are the same bits with it and without. Main thread only. */
#ifndef WORKER_KEPT_H
#define WORKER_KEPT_H

#include "worker/opened.h"
#include "worker/worker.h"

struct kept {
	struct kernels *kernels; /* NULL: none */
	char *device;            /* what they were opened for */
	int threads;
	struct opened opened; /* lies here between jobs only; key NULL: none */
};

/* The job's kernels, opened or used again; they stay the keeper's. */
int kept_kernels(struct kept *k, const char *device, int threads, struct kernels **out,
		 struct err *e);
/* The model of that key, when it is here: it is the caller's until kept_put. */
bool kept_take(struct kept *k, const char *key, struct opened *out);
/* Keeps a model that has a key in place of the one there is; *o is emptied. */
void kept_put(struct kept *k, struct opened *o);
void kept_release(struct kept *k);

#endif
