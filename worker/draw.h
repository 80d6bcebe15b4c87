/* SPDX-License-Identifier: Apache-2.0
 * Running the sampler for a job: batches of a fitting size, progress, stop orders, and latents to
 * pictures. */
#ifndef WORKER_DRAW_H
#define WORKER_DRAW_H

#include "model/sampler.h"
#include "model/vae.h"
#include "worker/worker.h"

/* The schedule and the mode by name; TF_EINVALID. */
int draw_schedule(const char *name, enum schedule_kind *out, struct err *e);

/* Positions a sampler needs for these, rounded so that it serves others, too; and how many
 * sequences of so many it has at most. */
int64_t draw_context(const struct dims *m, const struct sampler_options *o,
		     const struct sampler_prompt *prompt, int64_t n);
int64_t draw_at_once(int64_t context);
/* Runs all n prompts; on success result[0..n-1] are the caller's. phase is for progress
 * ("drawing"). `kept` (may be NULL) is where a sampler of m lies that may be used, or NULL; a small
 * one is left there for the next run, with what it recorded, and freed before m is. */
int draw_run(struct job *job, struct transformer *m, const struct sampler_options *o,
	     const struct sampler_prompt *prompt, int64_t n, const char *phase,
	     struct sampler **kept, struct sampler_result *result, struct err *e);

/* The first picture of a result, or NULL. */
const float *draw_picture(const struct sampler_result *r);

/* n normalised latents [h, w, c] to n pictures [h f, w f, 3] of bytes. */
int draw_decode(struct vae *v, const struct dims *m, const float *const *latent, int64_t n,
		uint8_t *rgb, struct err *e);
/* n pictures to normalised latents; width and height as the model's pictures. */
int draw_encode(struct vae *v, const struct dims *m, const uint8_t *rgb, int64_t n, float *latent,
		struct err *e);
/* Sides and bytes of the model's pictures. */
int draw_width(const struct vae *v, const struct dims *m);
int draw_height(const struct vae *v, const struct dims *m);
size_t draw_bytes(const struct vae *v, const struct dims *m);

#endif
