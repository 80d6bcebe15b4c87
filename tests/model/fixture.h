/* SPDX-License-Identifier: Apache-2.0
 * What the tests of the transformer share: small models, documents read from a golden file,
 * comparisons. */
#ifndef TESTS_MODEL_FIXTURE_H
#define TESTS_MODEL_FIXTURE_H

#include "lib/safetensors.h"
#include "model/pass.h"
#include "model/sampler.h"

/* Opens "ref" or "cpu" (2 threads), or what the environment's TF_DEVICE names in their place:
 * TF_DEVICE=cuda runs these tests on a GPU. Fails the test, or skips it where there is no such
 * device. */
struct kernels *fixture_kernels(const char *device);
/* The devices that a test goes over: ref and cpu, or TF_DEVICE alone. Returns how many. */
int fixture_devices(const char *device[2]);

/* A small model: 2 layers of width 16, 2 heads, feed-forward 24, 40 pieces (BOS 1, EOS 2), latents
 * of 4 x 4 x 2 in patches of 2, 2 sequences of 40 positions. */
struct dims fixture_dims(void);
/* Draws weights of a size at which every part of the model matters: matrices N(0, 1 / inputs),
 * others moved from their start by N(0, 0.1). */
void fixture_draw(struct transformer *m, uint64_t seed);
/* A latent of n standard normals; free with xfree. */
float *fixture_latent(const struct dims *m, uint64_t number);

/* Segments for literals. */
struct segment fixture_text(const int32_t *token, int64_t count);
struct segment fixture_image(const float *latent, int32_t time, int64_t sample);
#define TEXT(...) fixture_text((const int32_t[]){ __VA_ARGS__ }, \
	(int64_t)(sizeof((const int32_t[]){ __VA_ARGS__ }) / sizeof(int32_t)))
/* A whole document of the segments given. */
#define DOCUMENT(...) (&(struct document){ (const struct segment[]){ __VA_ARGS__ }, \
	(int64_t)(sizeof((const struct segment[]){ __VA_ARGS__ }) / sizeof(struct segment)), \
	true, true })

/* ||a - b|| / ||b||; 0 when both are zero. */
double fixture_distance(const float *a, const float *b, int64_t n);
double fixture_largest(const float *a, const float *b, int64_t n);   /* max |a - b| */

/* ---- golden files ---- */

struct golden {
	struct st_file file;
	struct dims dims;
	struct document *document;    /* all, in order */
	int64_t *sequence;            /* of each document */
	int64_t documents;
	struct segment *segment;
};

/* Opens tests/model/golden-<name>.safetensors of the source tree. */
void golden_open(struct golden *g, const char *name);
void golden_close(struct golden *g);
/* Data of a tensor that must be there. */
const void *golden_data(const struct golden *g, const char *name);
double golden_fact(const struct golden *g, const char *key);
/* All documents into an empty batch. */
void golden_batch(const struct golden *g, struct batch *b);

#endif
