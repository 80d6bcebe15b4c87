/* SPDX-License-Identifier: Apache-2.0
 * A Transfusion model with what belongs to it: sizes from an experiment file, the tokenizer, the
 * autoencoder and the weights of a checkpoint. Training makes its own weights; drawing, writing
 * and evaluating open them. */
#ifndef WORKER_OPENED_H
#define WORKER_OPENED_H

#include "model/sampler.h"
#include "model/vae.h"
#include "proto/experiment.h"
#include "worker/checkpoint.h"
#include "worker/spm.h"
#include "worker/worker.h"

/* Sizes of a model that is made with experiment x on data with these facts. B sequences of a pass;
 * act is what x's precision means on kernels k. TF_EINVALID names the setting that does not fit.
 */
int opened_dims(const struct train_experiment *x, const struct model_facts *f, int64_t B,
		const struct kernels *k, struct dims *out, struct err *e);

/* TF_EUNSUPPORTED when x trains with 8-bit products and k has none; drawing and evaluating do not
 * use them. */
int opened_fp8(const struct train_experiment *x, const struct kernels *k, struct err *e);

/* The tokenizer of an input with that role; its hash must be the one the input names. */
int opened_tokenizer(const struct job *job, struct spm **out, struct err *e);
/* The autoencoder likewise, in the model's number type. */
int opened_vae(const struct job *job, enum dtype act, struct vae **out, struct err *e);

struct opened {
	struct model_facts facts;
	struct train_experiment x;
	struct dims dims;
	struct transformer model; /* for forward passes */
	struct spm *spm;
	struct vae *vae; /* NULL: a model of text alone */
	struct sampler *sampler; /* of the last drawing, when it may serve another; or NULL */
	uint64_t step;
	char *name; /* "NAME:step" or "NAME:step@ema", for people */
	char *key;  /* opened_key, when the job may keep it; NULL: it may not */
};

/* Opens the job's inputs "model", "tokenizer" and "vae" (with kernels). B: sequences of a pass
 * that is to be run over it; 0: some. TF_EMISMATCH when they do not belong together. A model kept
 * from an earlier job is used when opened_key is the same. */
int opened_init(struct opened *o, struct job *job, int64_t B, struct err *e);
/* Names what opened_init would read: artefacts, step, average, B, and the files with their inode,
 * size and time of change. Two jobs with one key read the same bytes. The caller frees *out. */
int opened_key(const struct job *job, int64_t B, char **out, struct err *e);
/* After a job that went well: kept for the next one where the job has a keeper, else released. */
void opened_leave(struct opened *o, struct job *job);
void opened_release(struct opened *o);

#endif
