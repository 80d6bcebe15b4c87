/* SPDX-License-Identifier: Apache-2.0
 * Sizes and memory of an experiment; see plan.h. The groups are those of model/transformer.h's
 * plan; what a worker needs besides was measured and stands below with its reason. */
#include "config.h"
#include "worker/plan.h"
#include "lib/mem.h"
#include "worker/memory.h"
#include "worker/needs.h"
#include "worker/opened.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_BYTES_MAX (1 << 20)
#define PIECES_ASSUMED 2000
#define LATENT_MOST 16384
#define PROGRAM_BYTES (24 << 20) /* compiled products, tokenizer, buffers */

struct planning {
	struct train_experiment x;
	struct model_facts facts;
	struct dims dims;
	struct needs needs;
	char device[32];
	size_t device_bytes; /* of the GPU; 0: not known */
	size_t drawing;      /* of the autoencoder, where its facts tell; 0: not known */
	bool widens;         /* the CPU has no products of bf16 */
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

	p->drawing = find_fact(facts, "drawing_bytes") > 0
			     ? (size_t)find_fact(facts, "drawing_bytes")
			     : 0;
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
	json_int_t bytes = json_integer_value(json_object_get(request, "device_bytes"));

	FAIL_IF(!text, e, TF_EINVALID, "expected {\"experiment\": text, \"facts\": {...}}");
	snprintf(p->device, sizeof p->device, "%s", device && *device ? device : "cpu");
	p->device_bytes = bytes > 0 ? (size_t)bytes : 0;
	TRY(train_experiment_read("the experiment", text, strlen(text), &p->x, e));
	return take_facts(p, json_object_get(request, "facts"), e);
}

/* ---- sizes */

static bool on_gpu(const struct planning *p)
{
	return strncmp(p->device, "cuda", 4) == 0;
}

/* Sizes as the device will have them. A GPU need not be there to be asked about; when it is, what
 * it has left counts, unless the question says another size. */
static int make_dims(struct planning *p, struct err *e)
{
	struct kernels gpu = { .backend = "cuda", .prefers_bf16 = true, .has_fp8 = true };
	struct kernels *k = NULL;
	int64_t micro_batch = p->x.train.micro_batch ? p->x.train.micro_batch : p->x.train.batch;
	struct err absent = ERR_INIT;
	size_t total;
	int rc;

	if (!on_gpu(p))
		TRY(kernels_open(p->device, 0, &k, e));
	else if (p->device_bytes == 0 && kernels_open(p->device, 0, &k, &absent) == 0)
		kernels_memory(k, &p->device_bytes, &total, &absent);
	rc = opened_fp8(&p->x, k ? k : &gpu, e);
	if (rc == 0)
		rc = opened_dims(&p->x, &p->facts, micro_batch, k ? k : &gpu, &p->dims, e);
	p->widens = k && !on_gpu(p) && !k->has_bf16;
	kernels_close(k);
	return rc;
}

/* ---- the answer */

static void put_bytes(json_t *root, const struct needs *n, size_t program)
{
	const struct memory_plan *m = &n->model;
	const struct { const char *name; size_t bytes; } group[] = {
		{ "weights", m->weights },
		{ "gradients", m->gradients },
		{ "optimiser", m->moments },
		{ "ema", m->average },
		{ "activations", m->activations },
		{ "constants", m->constants },
		{ "host", m->host },
		{ "saving", n->saving },
		{ "sampling", n->sampling },
		{ "scratch", n->scratch },
		{ "widening", n->widening },
		{ "program", program },
	};
	json_t *bytes = json_object();

	for (size_t i = 0; i < ARRAY_LEN(group); i++)
		json_object_set_new(bytes, group[i].name,
				    json_integer((json_int_t)group[i].bytes));
	json_object_set_new(root, "bytes", bytes);
}

static json_t *answer(struct planning *p)
{
	int64_t positions = p->x.train.batch * p->dims.T;
	/* What the libraries take when they are loaded, this very program knows of itself. */
	size_t program = PROGRAM_BYTES + (size_t)memory_rss_anon();
	json_t *root = json_pack("{s:I, s:I, s:f, s:s, s:I}", "parameters",
				 (json_int_t)p->needs.model.parameters, "positions_per_step",
				 (json_int_t)positions, "flops_per_step",
				 transformer_flops_per_position(&p->dims) * (double)positions,
				 "type", p->dims.act == DT_BF16 ? "bf16" : "f32", "recompute",
				 (json_int_t)p->dims.recompute);

	CHECK(root);
	put_bytes(root, &p->needs, program);
	json_object_set(root, "assumed", p->assumed);
	if (on_gpu(p))
		json_object_set_new(root, "device_bytes",
				    json_integer((json_int_t)needs_of_gpu(&p->needs)));
	else
		json_object_set_new(root, "peak_rss_anon",
				    json_integer((json_int_t)(needs_of_cpu(&p->needs) + program)));
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
	if (rc == 0) {
		needs_fit(&p.x, p.device_bytes, p.drawing, &p.dims);
		needs_measure(&p.x, &p.dims, p.drawing, p.widens, &p.needs);
		*out = answer(&p);
	}
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
