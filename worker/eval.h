/* SPDX-License-Identifier: Apache-2.0
 * Evaluations: job_eval.c opens model and data and writes the report, a file eval_<task>.c for
 * each task measures. */
#ifndef WORKER_EVAL_H
#define WORKER_EVAL_H

#include "model/pass.h"
#include "store/dataset.h"
#include "worker/loader.h"
#include "worker/opened.h"
#include "worker/worker.h"

#include <jansson.h>

struct evaluation {
	struct job *job;
	const Tf__EvalSpec *spec;
	struct opened o;
	struct dataset *data;
	const struct dataset_info *info;
	enum dataset_split split;
	json_t *report; /* results/report.json */
};

/* Adds a figure to the report and to the job's results. */
void eval_result(struct evaluation *ev, const char *name, double value);

/* The samples an evaluation takes: all of the split, or `limit` of them drawn by the seed. */
uint64_t eval_samples(const struct evaluation *ev);
uint64_t eval_number(const struct evaluation *ev, uint64_t i); /* its number in the split */
int eval_sample(struct evaluation *ev, uint64_t i, struct sample *out, struct err *e);

/* A file of results that gets a JSON object a line, written whole at the end. */
struct eval_lines {
	struct buf text;
};
void eval_line(struct eval_lines *l, json_t *object); /* takes the object */
int eval_lines_write(struct eval_lines *l, const struct evaluation *ev, const char *name,
		     struct err *e); /* releases the lines */

/* The tasks. */
#define T(name, data, help) int eval_##name(struct evaluation *ev, struct err *e);
#include "proto/tasks.def"
#undef T

/* ---- eval_loss.c: losses over the split, each sample once */

struct eval_sums {
	double lm, diffusion;
	int64_t targets, noised, sequences;
};
/* Runs the model over all batches; each (may be NULL) sees every batch with its losses. */
int eval_run_losses(struct evaluation *ev, struct eval_sums *s,
		    int (*each)(void *arg, struct pass *pass, const struct batch *b,
				const float *token_loss, const float *image_loss, struct err *e),
		    void *arg, struct err *e);

#endif
