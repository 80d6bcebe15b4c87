/* SPDX-License-Identifier: Apache-2.0
 * Memory of training runs; see needs.h. The groups are those of model/transformer.h's plan. */
#include "config.h"
#include "worker/needs.h"
#include "model/pass.h"
#include "model/sampler.h"

#define CAPTION_TOKENS 32 /* of a sampled caption, about */

int64_t needs_samples(const struct train_experiment *x)
{
	return x->sample.every == 0 ? 0 : x->prompt_count ? x->prompt_count : x->sample.count;
}

/* The sampler of the pictures that are drawn while training goes on. */
static size_t sampler_bytes(const struct train_experiment *x, const struct dims *dims)
{
	struct sampler_options o = { .mode = SAMPLE_IMAGE,
				     .steps = x->sample.steps,
				     .guidance = (float)x->sample.guidance,
				     .max_tokens = 1 };
	struct memory_plan m = { 0 };
	int64_t context;

	if (needs_samples(x) == 0 || dims_patches(dims) == 0)
		return 0;
	context = sampler_context(dims, &o, CAPTION_TOKENS);
	context = context < dims->T ? context : dims->T;
	sampler_memory(dims, needs_samples(x), context, o.guidance != 1, &m);
	return m.activations;
}

void needs_measure(const struct train_experiment *x, const struct dims *dims, size_t drawing,
		   bool widens, struct needs *out)
{
	struct memory_plan *m = &out->model;

	transformer_memory(dims, dims->T, true, x->train.ema > 0, m);
	pass_memory(dims, true, m);
	m->host *= (size_t)(x->train.batch / dims->B); /* all batches of a step wait together */
	out->saving = m->gradients + m->moments + m->average; /* a copy of all, weights in f32 */
	out->sampling = sampler_bytes(x, dims);
	if (out->sampling)
		out->sampling += drawing;
	out->scratch = pass_scratch(dims);
	out->widening = widens && dims->act == DT_BF16 ? pass_widening(dims) : 0;
}

size_t needs_of_gpu(const struct needs *n)
{
	return memory_plan_total(&n->model) - n->model.host + n->sampling + n->scratch;
}

size_t needs_of_cpu(const struct needs *n)
{
	return memory_plan_total(&n->model) + n->saving + n->sampling + n->widening;
}

static bool fits(const struct train_experiment *x, size_t bytes, size_t drawing,
		 const struct dims *dims)
{
	struct needs n;

	needs_measure(x, dims, drawing, false, &n);
	return needs_of_gpu(&n) <= bytes - bytes / 50; /* the rest: trials of algorithms, pieces */
}

void needs_fit(const struct train_experiment *x, size_t bytes, size_t drawing, struct dims *dims)
{
	dims->recompute = x->train.recompute == RECOMPUTE_ON ? dims->layers : 0;
	if (x->train.recompute != RECOMPUTE_AUTO || bytes == 0)
		return;
	while (dims->recompute < dims->layers && !fits(x, bytes, drawing, dims))
		dims->recompute++;
}
