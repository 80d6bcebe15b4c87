/* SPDX-License-Identifier: Apache-2.0
 * A training run and its parts: job_train.c is the loop, train_step.c makes its steps, train_data.c
 * opens what it learns from, train_watch.c measures held-out losses and draws samples. */
#ifndef WORKER_TRAIN_H
#define WORKER_TRAIN_H

#include "model/pass.h"
#include "model/vae.h"
#include "proto/experiment.h"
#include "store/dataset.h"
#include "worker/checkpoint.h"
#include "worker/flights.h"
#include "worker/loader.h"
#include "worker/saver.h"
#include "worker/spm.h"
#include "worker/worker.h"

struct training {
	struct job *job;
	struct train_experiment x;
	struct model_facts facts;
	struct dims dims;
	struct spm *spm;
	struct dataset *data[EXPERIMENT_SOURCES_MAX];
	int sources;
	struct loader *loader;
	struct checkpoint_copy *copy; /* what the saver writes */
	struct saver *saver;
	struct loader *heldout; /* NULL: nothing is held out, or never measured */
	struct transformer model;
	struct pass *pass;
	struct batch *batch; /* [micro]: all of a step, since losses divide by its totals */
	int64_t micro;
	float *average;  /* EMA, backend memory; NULL: off */
	struct vae *vae; /* to draw samples; NULL: never drawn */
	uint64_t step, positions, images; /* launched */
	struct flights flights;
	struct pass_losses losses; /* of the step that settled last */
	double score;       /* the last held-out loss; NaN: none yet */
	uint64_t scored_at; /* the step it was measured at */
	int64_t started_ns;
	uint64_t started_positions;
};

/* ---- train_data.c */

/* Opens tokenizer and datasets and fills facts; then t->dims can be made. */
int train_open_data(struct training *t, struct err *e);
/* Makes the loaders of both splits. */
int train_open_loaders(struct training *t, struct err *e);
void train_close_data(struct training *t);

/* ---- train_step.c */

int train_open_steps(struct training *t, struct err *e);
void train_close_steps(struct training *t);
/* Loads and launches a step and returns before the device has done it: t->step is one more. */
int train_launch(struct training *t, struct err *e);
/* Waits until at most `most` steps are not settled, and tells the figures of those that are.
 * TF_ENAN by the policy of train.nan. */
int train_settle(struct training *t, int most, struct err *e);

/* ---- train_watch.c */

/* Measures held-out losses on the same draws every time: t->score, gauges and metrics. */
int train_measure(struct training *t, struct err *e);
/* Opens the autoencoder when samples are to be drawn, and checks the prompts. */
int train_open_samples(struct training *t, struct err *e);
/* Draws the prompts (or held-out captions) with the averaged weights when there are any, and
 * writes results/samples-<step>.png. */
int train_draw_samples(struct training *t, struct err *e);

#endif
