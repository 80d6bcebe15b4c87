/* SPDX-License-Identifier: Apache-2.0
 * Memory of training runs; see needs.h. The groups are those of model/transformer.h's plan. */
#include "config.h"
#include "worker/needs.h"
#include "model/pass.h"
#include "model/sampler.h"

#define CAPTION_TOKENS 32 /* of a sampled caption, about */

/* The sampler of the pictures that are drawn while training goes on. */
static size_t sampling_bytes(const struct train_experiment *x, const struct dims *dims)
{
	struct sampler_options o = { .mode = SAMPLE_IMAGE,
				     .steps = x->sample.steps,
				     .guidance = (float)x->sample.guidance,
				     .max_tokens = 1 };
	struct memory_plan m = { 0 };
	int64_t context, n;

	if (x->sample.every == 0 || dims_patches(dims) == 0)
		return 0;
	context = sampler_context(dims, &o, CAPTION_TOKENS);
	context = context < dims->T ? context : dims->T;
	n = x->prompt_count ? x->prompt_count : x->sample.count;
	sampler_memory(dims, n, context, o.guidance != 1, &m);
	return m.activations;
}

void needs_measure(const struct train_experiment *x, const struct dims *dims, struct needs *out)
{
	struct memory_plan *m = &out->model;

	transformer_memory(dims, dims->T, true, x->train.ema > 0, m);
	pass_memory(dims, true, m);
	m->host *= (size_t)(x->train.batch / dims->B); /* all batches of a step wait together */
	out->saving = m->gradients + m->moments + m->average; /* a copy of all, weights in f32 */
	out->sampling = sampling_bytes(x, dims);
	out->scratch = pass_scratch(dims);
}

size_t needs_of_gpu(const struct needs *n)
{
	return memory_plan_total(&n->model) - n->model.host + n->sampling + n->scratch;
}

size_t needs_of_cpu(const struct needs *n)
{
	return memory_plan_total(&n->model) + n->saving + n->sampling;
}

static bool fits(const struct train_experiment *x, size_t bytes, const struct dims *dims)
{
	struct needs n;

	needs_measure(x, dims, &n);
	return needs_of_gpu(&n) <= bytes - bytes / 50; /* the rest: trials of algorithms, pieces */
}

void needs_fit(const struct train_experiment *x, size_t bytes, struct dims *dims)
{
	dims->recompute = x->train.recompute == RECOMPUTE_ON ? dims->layers : 0;
	if (x->train.recompute != RECOMPUTE_AUTO || bytes == 0)
		return;
	while (dims->recompute < dims->layers && !fits(x, bytes, dims))
		dims->recompute++;
}
