/* SPDX-License-Identifier: Apache-2.0
 * The sampler and the autoencoder at work for a job; see draw.h. */
#include "config.h"
#include "worker/draw.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <stdio.h>
#include <string.h>

#define POSITIONS_AT_ONCE 8192 /* of all sequences in the sampler together, one branch */
#define SEQUENCES_MOST 256
#define CONTEXT_STEP 64 /* contexts are multiples of it, so that a kept sampler fits more often */

int draw_schedule(const char *name, enum schedule_kind *out, struct err *e)
{
	FAIL_IF(strcmp(name, "ddpm") != 0 && strcmp(name, "ddim") != 0, e, TF_EINVALID,
		"sampler: found '%.40s', expected ddpm or ddim", name);
	*out = strcmp(name, "ddim") == 0 ? SCHEDULE_DDIM : SCHEDULE_DDPM;
	return 0;
}

struct watch {
	struct job *job;
	const char *phase;
	int64_t before, total; /* prompts of earlier batches, and of all */
	int64_t now;           /* prompts of this batch */
};

/* Prompts done, counting the part of a batch that its phase has done. */
static bool watch_step(void *arg, const char *phase, int64_t done, int64_t total)
{
	const struct watch *w = arg;
	double share = total > 0 ? (double)done / (double)total : 0;
	double prompts = (double)w->before + share * (double)w->now;

	job_stage_within(w->job, strcmp(phase, "prompt") == 0 ? "prompt" : "steps");
	job_report(w->job, w->phase, (uint64_t)prompts, (uint64_t)w->total, "sample");
	return job_should_stop(w->job) != TF__STOP_REASON__STOP_NONE;
}

static int64_t largest_prompt(const struct dims *m, const struct sampler_prompt *prompt, int64_t n)
{
	int64_t most = 0;

	for (int64_t i = 0; i < n; i++) {
		int64_t length = sampler_prompt_length(m, &prompt[i]);

		most = length > most ? length : most;
	}
	return most;
}

static int run_batches(struct sampler *s, const struct sampler_options *o,
		       const struct sampler_prompt *prompt, int64_t n, int64_t at_once,
		       struct watch *w, struct sampler_result *result, struct err *e)
{
	struct sampler_watch watch = { watch_step, w };

	for (int64_t i = 0; i < n; i += w->now) {
		int rc;

		w->before = i;
		w->now = n - i < at_once ? n - i : at_once;
		rc = sampler_run(s, o, prompt + i, w->now, &watch, result + i, e);
		if (rc < 0) {
			for (int64_t k = 0; k < i; k++)
				sampler_result_release(&result[k]);
			return rc;
		}
	}
	job_report(w->job, w->phase, (uint64_t)n, (uint64_t)n, "sample");
	return 0;
}

int64_t draw_context(const struct dims *m, const struct sampler_options *o,
		     const struct sampler_prompt *prompt, int64_t n)
{
	int64_t context = sampler_context(m, o, largest_prompt(m, prompt, n));

	context = (context + CONTEXT_STEP - 1) / CONTEXT_STEP * CONTEXT_STEP;
	return context < m->T ? context : m->T;
}

int64_t draw_at_once(int64_t context)
{
	int64_t n = POSITIONS_AT_ONCE / context;

	return n < 1 ? 1 : n > SEQUENCES_MOST ? SEQUENCES_MOST : n;
}

/* The kept sampler when it fits, else a new one; then none is kept. */
static int take_sampler(struct transformer *m, int64_t at_once, int64_t context, bool guided,
			struct sampler **kept, struct sampler **out, struct err *e)
{
	*out = kept ? *kept : NULL;
	if (kept)
		*kept = NULL;
	if (*out && sampler_is_for(*out, at_once, context, guided)) {
		sampler_move(*out, m);
		return 0;
	}
	sampler_free(*out);
	*out = NULL;
	return sampler_new(m, at_once, context, guided, out, e);
}

int draw_run(struct job *job, struct transformer *m, const struct sampler_options *o,
	     const struct sampler_prompt *prompt, int64_t n, const char *phase,
	     struct sampler **kept, struct sampler_result *result, struct err *e)
{
	struct watch w = { .job = job, .phase = phase, .total = n };
	struct sampler *s = NULL;
	int64_t context, at_once;
	bool guided = sampler_is_guided(o);
	int rc;

	CHECK(n > 0);
	context = draw_context(&m->dims, o, prompt, n);
	at_once = draw_at_once(context);
	at_once = n < at_once ? n : at_once;
	TRY(take_sampler(m, at_once, context, guided, kept, &s, e));
	rc = run_batches(s, o, prompt, n, at_once, &w, result, e);
	if (kept && rc == 0 && at_once <= LIMIT_KEPT_SEQUENCES)
		*kept = s;
	else
		sampler_free(s);
	if (rc == TF_ECANCELLED) {
		err_clear(e);
		return job_stopped(job, e);
	}
	return rc;
}

const float *draw_picture(const struct sampler_result *r)
{
	for (int64_t i = 0; i < r->parts; i++)
		if (r->part[i].kind == SEGMENT_IMAGE)
			return r->part[i].latent;
	return NULL;
}

int draw_width(const struct vae *v, const struct dims *m)
{
	return (int)m->w * vae_factor(vae_config_of(v));
}

int draw_height(const struct vae *v, const struct dims *m)
{
	return (int)m->h * vae_factor(vae_config_of(v));
}

size_t draw_bytes(const struct vae *v, const struct dims *m)
{
	return (size_t)draw_width(v, m) * (size_t)draw_height(v, m) * 3;
}

static int check_shape(const struct vae *v, const struct dims *m, struct err *e)
{
	FAIL_IF(vae_config_of(v)->latent_channels != m->c, e, TF_EMISMATCH,
		"the autoencoder has %d latent channels, the model %lld",
		vae_config_of(v)->latent_channels, (long long)m->c);
	return 0;
}

int draw_decode(struct vae *v, const struct dims *m, const float *const *latent, int64_t n,
		uint8_t *rgb, struct err *e)
{
	size_t E = (size_t)dims_latent(m), bytes = draw_bytes(v, m);
	float *raw = xcalloc((size_t)n * E, sizeof *raw), *picture = NULL;
	int rc = check_shape(v, m, e);

	for (int64_t i = 0; i < n; i++)
		memcpy(raw + (size_t)i * E, latent[i], E * sizeof *raw);
	if (rc == 0) {
		vae_denormalise(v, raw, n * m->h * m->w);
		picture = xcalloc((size_t)n * bytes, sizeof *picture);
		rc = vae_decode(v, raw, n, m->h, m->w, picture, e);
	}
	if (rc == 0)
		vae_to_bytes(picture, (int64_t)((size_t)n * bytes), rgb);
	xfree(picture);
	xfree(raw);
	return rc;
}

int draw_encode(struct vae *v, const struct dims *m, const uint8_t *rgb, int64_t n, float *latent,
		struct err *e)
{
	TRY(check_shape(v, m, e));
	TRY(vae_encode_u8(v, rgb, n, draw_height(v, m), draw_width(v, m), latent, e));
	vae_normalise(v, latent, n * m->h * m->w);
	return 0;
}
