/* SPDX-License-Identifier: Apache-2.0
 * A generate job: job_generate.c reads what is asked and runs the sampler, generate_write.c writes
 * what came of it. */
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
	struct opened o;
	struct sampler_options options;
	struct request *request;
	size_t requests;
	float *latent;                 /* of the pictures given, normalised */
	struct sampler_result *result; /* [requests x spec->count] */
	size_t results;
};

/* Writes pictures, texts.jsonl and manifest.json into the job's results. */
int generate_write(struct generation *g, struct err *e);

#endif
