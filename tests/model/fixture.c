/* SPDX-License-Identifier: Apache-2.0
 * Shared by the tests of the transformer; see fixture.h. */
#include "tests/test.h"
#include "tests/model/fixture.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fixture_devices(const char *device[2])
{
	device[0] = getenv("TF_DEVICE");
	if (device[0])
		return 1;
	device[0] = "ref";
	device[1] = "cpu";
	return 2;
}

struct kernels *fixture_kernels(const char *device)
{
	const char *instead = getenv("TF_DEVICE");
	struct err e = ERR_INIT;
	struct kernels *k = NULL;
	int rc = kernels_open(instead ? instead : device, 2, &k, &e);

	if (rc == TF_EUNSUPPORTED && instead)
		skip();
	assert_ok(rc, &e);
	return k;
}

struct dims fixture_dims(void)
{
	struct err e = ERR_INIT;
	struct dims m = { .layers = 2, .d = 16, .H = 2, .F = 24, .patch = 2, .h = 4, .w = 4, .c = 2,
			  .time = TIME_AT_PATCH, .eps = 1e-5f, .rope_base = 10000, .act = DT_F32,
			  .positions_restart = true, .B = 2, .T = 40, .row_multiple = 4 };

	assert_ok(vocabulary_init(&m.vocabulary, 40, 1, 2, &e), &e);
	m.images = dims_images_most(&m);
	return m;
}

void fixture_draw(struct transformer *m, uint64_t seed)
{
	struct params *p = &m->params;
	float *values = xcalloc((size_t)p->total, sizeof *values);

	for (int i = 0; i < p->count; i++) {
		const struct param *q = &p->list[i];
		float *at = values + q->at, centre = q->init == PARAM_ONE ? 1 : 0;
		float deviation = q->rank > 1 ? 1 / sqrtf((float)q->dim[1]) : 0.1f;

		philox_normals(seed, PHILOX_TEST, (uint64_t)i, 0, at, (uint64_t)q->count);
		for (int64_t n = 0; n < q->count; n++)
			at[n] = centre + deviation * at[n];
	}
	m->k->ops->upload(m->k, p->master, values, (size_t)p->total * sizeof *values);
	if (p->resident)
		m->k->ops->convert(m->k, tensor_1d(p->resident, DT_BF16, p->total),
				   tensor_1d(p->master, DT_F32, p->total));
	xfree(values);
}

float *fixture_latent(const struct dims *m, uint64_t number)
{
	size_t n = (size_t)dims_latent(m);
	float *latent = xcalloc(n, sizeof *latent);

	philox_normals(99, PHILOX_TEST, number, 0, latent, n);
	return latent;
}

struct segment fixture_text(const int32_t *token, int64_t count)
{
	return (struct segment){ .kind = SEGMENT_TEXT, .token = token, .count = count };
}

struct segment fixture_image(const float *latent, int32_t time, int64_t sample)
{
	return (struct segment){ .kind = SEGMENT_IMAGE, .latent = latent, .time = time,
				 .sample = sample };
}

double fixture_distance(const float *a, const float *b, int64_t n)
{
	double apart = 0, size = 0;

	for (int64_t i = 0; i < n; i++) {
		apart += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
		size += (double)b[i] * b[i];
	}
	return size > 0 ? sqrt(apart / size) : sqrt(apart);
}

double fixture_largest(const float *a, const float *b, int64_t n)
{
	double most = 0;

	for (int64_t i = 0; i < n; i++)
		most = fmax(most, fabs((double)a[i] - b[i]));
	return most;
}

static const char *fact(const struct golden *g, const char *key)
{
	const char *value = st_meta(&g->file, key);

	if (!value)
		fail_msg("the golden file has no fact %s", key);
	return value;
}

double golden_fact(const struct golden *g, const char *key)
{
	return atof(fact(g, key));
}

static const struct st_tensor *find(const struct golden *g, const char *name)
{
	const struct st_tensor *t = st_find(&g->file, name);

	if (!t)
		fail_msg("the golden file has no tensor %s", name);
	return t;
}

const void *golden_data(const struct golden *g, const char *name)
{
	return find(g, name)->data;
}

static struct dims dims_of(const struct golden *g)
{
	struct err e = ERR_INIT;
	struct dims m = {
		.layers = atoi(fact(g, "layers")), .d = atoi(fact(g, "dim")),
		.H = atoi(fact(g, "heads")), .F = atoi(fact(g, "ff")),
		.patch = atoi(fact(g, "patch")), .h = atoi(fact(g, "h")), .w = atoi(fact(g, "w")),
		.c = atoi(fact(g, "c")), .B = atoi(fact(g, "batch")), .T = atoi(fact(g, "length")),
		.time = strcmp(fact(g, "time"), "model") == 0 ? TIME_AT_MODEL : TIME_AT_PATCH,
		.causal = strcmp(fact(g, "attention"), "causal") == 0,
		.positions_restart = strcmp(fact(g, "positions"), "document") == 0,
		.eps = 1e-5f, .rope_base = 10000, .act = DT_F32, .row_multiple = 8,
	};

	assert_ok(vocabulary_init(&m.vocabulary, atoi(fact(g, "pieces")), atoi(fact(g, "bos")),
				  atoi(fact(g, "eos")), &e), &e);
	m.images = dims_images_most(&m);
	assert_ok(dims_check(&m, &e), &e);
	return m;
}

/* documents [n,4]: sequence, bos, eos, segments; segments [m,2]: 0, tokens | 1, time. */
static void read_documents(struct golden *g)
{
	const struct st_tensor *documents = find(g, "documents"), *segments = find(g, "segments");
	const int32_t *row = documents->data, *part = segments->data;
	const int32_t *text = golden_data(g, "text");
	const float *latent = golden_data(g, "latent");
	struct segment *next;

	g->documents = documents->dim[0];
	g->document = xcalloc((size_t)g->documents, sizeof *g->document);
	g->sequence = xcalloc((size_t)g->documents, sizeof *g->sequence);
	next = g->segment = xcalloc((size_t)segments->dim[0], sizeof *g->segment);
	for (int64_t i = 0; i < segments->dim[0]; i++, part += 2) {
		if (part[0] == 0) {
			g->segment[i] = fixture_text(text, part[1]);
			text += part[1];
		} else {
			g->segment[i] = fixture_image(latent, part[1], i);
			latent += dims_latent(&g->dims);
		}
	}
	for (int64_t i = 0; i < g->documents; i++, row += 4) {
		g->sequence[i] = row[0];
		g->document[i] = (struct document){ next, row[3], row[1], row[2] };
		next += row[3];
	}
}

void golden_open(struct golden *g, const char *name)
{
	struct err e = ERR_INIT;
	char path[4096];
	const char *source = getenv("TF_SOURCE");

	snprintf(path, sizeof path, "%s/tests/model/golden-%s.safetensors", source ? source : ".",
		 name);
	assert_ok(st_open(path, &g->file, &e), &e);
	g->dims = dims_of(g);
	read_documents(g);
}

void golden_close(struct golden *g)
{
	xfree(g->document);
	xfree(g->sequence);
	xfree(g->segment);
	st_close(&g->file);
}

void golden_batch(const struct golden *g, struct batch *b)
{
	struct err e = ERR_INIT;

	for (int64_t i = 0; i < g->documents; i++)
		assert_ok(batch_add(b, g->sequence[i], &g->document[i], &e), &e);
}
