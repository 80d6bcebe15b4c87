/* SPDX-License-Identifier: Apache-2.0
 * A generate job: job_generate.c reads what is asked, batch.c runs it, with others in one batch
 * where they are, generate_write.c writes what came of it. */
#ifndef WORKER_GENERATE_H
#define WORKER_GENERATE_H

#include "model/sampler.h"
#include "worker/opened.h"
#include "worker/worker.h"

/* One prompt: a picture, a text, both (the picture first) or neither. */
struct request {
	const char *text; /* borrowed; NULL: none */
	int picture;      /* number of the picture given; -1: none */
	int32_t *token;
	struct segment segment[2];
	int64_t segments;
};

struct generation {
	struct job *job;
	const Tf__GenerateSpec *spec;
	struct opened *o; /* borrowed */
	struct sampler_options options;
	struct request *request;
	size_t requests;
	float *latent;                 /* of the pictures given, normalised */
	int64_t context;               /* positions of a sequence */
	struct sampler_prompt *prompt; /* [results] */
	struct sampler_entry *entry;   /* [results] */
	struct sampler_result *result; /* [requests x spec->count] */
	size_t results;
};

/* From the job's spec and the model, which is open, to prompts that can be run. Release it in any
 * case. */
int generation_begin(struct generation *g, struct job *job, struct opened *o, struct err *e);
void generation_release(struct generation *g);
/* Runs the job, and those of its crew that join it, to their ends; what job_generate is. */
int batch_run(struct job *job, struct err *e);

/* Writes pictures, texts.jsonl and manifest.json into the job's results. */
int generate_write(struct generation *g, struct err *e);

#endif
