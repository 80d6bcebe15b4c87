/* SPDX-License-Identifier: Apache-2.0
 * Sizes and memory of an experiment; see plan.h. The groups are those of model/transformer.h's
 * plan; what a worker needs besides was measured and stands below with its reason. */
#include "config.h"
#include "worker/plan.h"
#include "lib/mem.h"
#include "model/pass.h"
#include "model/sampler.h"
#include "worker/memory.h"
#include "worker/opened.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_BYTES_MAX (1 << 20)
#define PIECES_ASSUMED 2000
#define LATENT_MOST 16384
#define PROGRAM_BYTES (24 << 20) /* compiled products, tokenizer, buffers */
#define CAPTION_TOKENS 32        /* of a sampled caption, about */

struct plan_groups {
	struct memory_plan model;
	size_t saving, sampling, program;
};

struct planning {
	struct train_experiment x;
	struct model_facts facts;
	struct dims dims;
	struct plan_groups bytes;
	char device[32];
	json_t *assumed;
};

/* ---- what is asked */

/* The number called `key`, or by a key that ends in ".key"; a number or its text. -1: there is
 * none. */
static int64_t find_fact(const json_t *facts, const char *key)
{
	const char *name;
	json_t *value;

	json_object_foreach ((json_t *)facts, name, value) {
		const char *last = strrchr(name, '.');
		const char *text = json_string_value(value);

		if (strcmp(last ? last + 1 : name, key) != 0)
			continue;
		if (json_is_integer(value))
			return json_integer_value(value);
		if (text && *text && strspn(text, "0123456789") == strlen(text))
			return strtoll(text, NULL, 10);
	}
	return -1;
}

/* A fact within its bounds; `assumed` and a word about it when it is not given. */
static int take_fact(struct planning *p, const json_t *facts, const char *key, int64_t most,
		     int64_t assumed, int64_t *out, struct err *e)
{
	*out = find_fact(facts, key);
	if (*out < 0) {
		*out = assumed;
		json_object_set_new(p->assumed, key, json_integer(assumed));
	}
	FAIL_IF(*out > most, e, TF_EINVALID, "facts: %s is %" PRId64 ", expected at most %" PRId64,
		key, *out, most);
	return 0;
}

static int take_facts(struct planning *p, const json_t *facts, struct err *e)
{
	struct model_facts *f = &p->facts;

	f->bos = 1;
	f->eos = 2;
	TRY(take_fact(p, facts, "pieces", INT32_MAX / 2, PIECES_ASSUMED, &f->pieces, e));
	TRY(take_fact(p, facts, "latent_height", LATENT_MOST, 8, &f->latent_height, e));
	TRY(take_fact(p, facts, "latent_width", LATENT_MOST, 8, &f->latent_width, e));
	return take_fact(p, facts, "latent_channels", LATENT_MOST, 8, &f->latent_channels, e);
}

static int read_request(struct planning *p, const json_t *request, struct err *e)
{
	const char *text = json_string_value(json_object_get(request, "experiment"));
	const char *device = json_string_value(json_object_get(request, "device"));

	FAIL_IF(!text, e, TF_EINVALID, "expected {\"experiment\": text, \"facts\": {...}}");
	snprintf(p->device, sizeof p->device, "%s", device && *device ? device : "cpu");
	TRY(train_experiment_read("the experiment", text, strlen(text), &p->x, e));
	return take_facts(p, json_object_get(request, "facts"), e);
}

/* ---- sizes */

static bool on_gpu(const struct planning *p)
{
	return strncmp(p->device, "cuda", 4) == 0;
}

/* Sizes as the device will have them; a GPU need not be there to be asked about. */
static int make_dims(struct planning *p, struct err *e)
{
	struct kernels gpu = { .backend = "cuda", .has_bf16 = true }, *k = &gpu;
	int64_t micro_batch = p->x.train.micro_batch ? p->x.train.micro_batch : p->x.train.batch;
	int rc;

	if (!on_gpu(p))
		TRY(kernels_open(p->device, 0, &k, e));
	rc = opened_dims(&p->x, &p->facts, micro_batch, k, &p->dims, e);
	if (k != &gpu)
		kernels_close(k);
	return rc;
}

/* The sampler of the pictures that are drawn while training goes on. */
static size_t sampling_bytes(const struct planning *p)
{
	struct sampler_options o = { .mode = SAMPLE_IMAGE,
				     .steps = p->x.sample.steps,
				     .guidance = (float)p->x.sample.guidance,
				     .max_tokens = 1 };
	struct memory_plan m = { 0 };
	int64_t context, n;

	if (p->x.sample.every == 0 || p->facts.latent_height == 0)
		return 0;
	context = sampler_context(&p->dims, &o, CAPTION_TOKENS);
	context = context < p->dims.T ? context : p->dims.T;
	n = p->x.prompt_count ? p->x.prompt_count : p->x.sample.count;
	sampler_memory(&p->dims, n, context, o.guidance != 1, &m);
	return m.activations;
}

static int measure(struct planning *p, struct err *e)
{
	struct plan_groups *b = &p->bytes;
	int64_t micro = p->x.train.batch / p->dims.B;

	(void)e;
	transformer_memory(&p->dims, p->dims.T, true, p->x.train.ema > 0, &b->model);
	pass_memory(&p->dims, true, &b->model);
	b->model.host *= (size_t)micro;     /* all batches of a step wait together */
	b->saving = b->model.gradients + b->model.moments + b->model.average; /* a copy of all */
	b->sampling = sampling_bytes(p);
	/* What the libraries take when they are loaded, this very program knows of itself. */
	b->program = PROGRAM_BYTES + (size_t)memory_rss_anon();
	return 0;
}

static int64_t count_parameters(const struct planning *p)
{
	return (int64_t)(p->bytes.model.gradients / sizeof(float));
}

/* ---- the answer */

static json_t *answer(struct planning *p)
{
	const struct memory_plan *m = &p->bytes.model;
	size_t extra = p->bytes.saving + p->bytes.sampling;
	int64_t positions = p->x.train.batch * p->dims.T;
	size_t device = memory_plan_total(m) - m->host + p->bytes.sampling;
	json_t *bytes =
		json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "weights",
			  (json_int_t)m->weights, "gradients", (json_int_t)m->gradients,
			  "optimiser", (json_int_t)m->moments, "ema", (json_int_t)m->average,
			  "activations", (json_int_t)m->activations, "constants",
			  (json_int_t)m->constants, "host", (json_int_t)m->host, "saving",
			  (json_int_t)p->bytes.saving, "sampling", (json_int_t)p->bytes.sampling,
			  "program", (json_int_t)p->bytes.program);
	json_t *root = json_pack("{s:I, s:I, s:f, s:s, s:o, s:O}", "parameters",
				 (json_int_t)count_parameters(p), "positions_per_step",
				 (json_int_t)positions, "flops_per_step",
				 transformer_flops_per_position(&p->dims) * (double)positions,
				 "type", p->dims.act == DT_BF16 ? "bf16" : "f32", "bytes", bytes,
				 "assumed", p->assumed);

	CHECK(root);
	if (on_gpu(p))
		json_object_set_new(root, "device_bytes", json_integer((json_int_t)device));
	else
		json_object_set_new(root, "peak_rss_anon",
				    json_integer((json_int_t)(memory_plan_total(m) + extra +
							      p->bytes.program)));
	return root;
}

static int plan(const char *text, size_t len, json_t **out, struct err *e)
{
	struct planning p = { .assumed = json_object() };
	json_error_t error;
	json_t *request = json_loadb(text, len, JSON_REJECT_DUPLICATES, &error);
	int rc;

	if (request)
		rc = read_request(&p, request, e);
	else
		rc = err_set(e, TF_EINVALID, "the request, byte %d: %s", error.position,
			     error.text);
	if (rc == 0)
		rc = make_dims(&p, e);
	if (rc == 0)
		rc = measure(&p, e);
	if (rc == 0)
		*out = answer(&p);
	train_experiment_release(&p.x);
	json_decref(p.assumed);
	json_decref(request);
	return rc;
}

int plan_main(FILE *in, FILE *out)
{
	char *text = xmalloc(INPUT_BYTES_MAX);
	size_t len = fread(text, 1, INPUT_BYTES_MAX, in);
	struct err e = ERR_INIT;
	json_t *root = NULL;
	int rc;

	if (len == INPUT_BYTES_MAX)
		rc = err_set(&e, TF_ELIMIT, "the request is longer than %d bytes",
			     INPUT_BYTES_MAX);
	else
		rc = plan(text, len, &root, &e);
	if (rc == 0) {
		json_dumpf(root, out, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
		fputc('\n', out);
	} else {
		fprintf(stderr, "transfuse-worker: %s\n", e.text);
	}
	json_decref(root);
	xfree(text);
	return rc < 0 ? WORKER_FAILED : WORKER_DONE;
}
