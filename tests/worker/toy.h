/* SPDX-License-Identifier: Apache-2.0
 * A toy world for tests of jobs: coloured discs of 16 x 16 with captions, a tokenizer, an
 * autoencoder that has learnt nothing, and a dataset made with both, all in one temporary folder.
 * Kernels are the reference's: no threads, so that a test may fork. */
#ifndef TESTS_WORKER_TOY_H
#define TESTS_WORKER_TOY_H

#include "lib/err.h"
#include "proto/transfused.pb-c.h"

#include <stdint.h>

#define TOY_SIDE 16
#define TOY_PICTURES 24
#define TOY_HELDOUT 4 /* the last ones */

struct kept;

struct toy {
	char *folder;
	char *data, *text_data, *tokenizer, *vae; /* folders */
	char *model;                              /* where toy_train makes its model */
	const char *device;                       /* of toy_run; NULL: "ref" */
	struct kept *kept;                        /* what toy_run's jobs may leave behind; NULL */
};

int toy_init(struct toy *t);
void toy_release(struct toy *t);
/* The world that another process made in this folder. */
void toy_open(struct toy *t, const char *folder);
void toy_picture(int number, uint8_t rgb[TOY_SIDE * TOY_SIDE * 3]);

/* The experiment of a small model with "a.b=c" settings over it; the caller frees. data: "toy". */
char *toy_experiment(const char *const *set, size_t n);
/* Runs a job in this process in <folder>/<name>, making its model in `output` (NULL: none). */
int toy_run(const struct toy *t, const char *name, Tf__JobSpec *spec, const char *output,
	    const char *data, struct err *e);
/* Trains into `output` with these settings. */
int toy_train(const struct toy *t, const char *name, const char *output, const char *const *set,
	      size_t n, struct err *e);
/* Trains an autoencoder with a discriminator likewise. */
int toy_train_vae(const struct toy *t, const char *name, const char *output,
		  const char *const *set, size_t n, struct err *e);

#endif
