/* SPDX-License-Identifier: Apache-2.0
 * The parameters of a convolutional net: declared by name and shape while the net is laid out, then
 * carved from one allocation each for values, gradients and AdamW moments. Matrices and filters,
 * which decay, come first; every tensor starts at a multiple of 256 bytes, in bf16 too, and the
 * gaps stay zero.
 *
 * Master values are f32. With act DT_BF16 a bf16 copy lies beside them and filters are read from
 * it; biases and norm weights are f32 always. Memory belongs to the backend `k`, which outlives
 * this. */
#ifndef MODEL_PARAMS_H
#define MODEL_PARAMS_H

#include "kernels/kernels.h"
#include "lib/err.h"
#include "lib/safetensors.h"

#include <stdbool.h>
#include <stdint.h>

#define PARAM_NAME_MAX 64

enum param_init { PARAM_ZERO, PARAM_ONE, PARAM_UNIFORM, PARAM_NORMAL };

struct param {
	char name[PARAM_NAME_MAX];
	int rank;
	int64_t dim[TENSOR_RANK_MAX];
	int64_t at, count;               /* place in the flat arrays, in elements */
	enum param_init init;
	float bound;                     /* UNIFORM: in [-bound, bound); NORMAL: the deviation */
	bool product;                    /* its gradient is made by products alone */
	bool stale;                      /* of those: the gradient in memory is an earlier step's */
};

/* Where a product puts a parameter's gradient: over what is there (beta 0), or to it (1). */
struct dweight {
	struct tensor to;
	float beta;
};

struct params {
	struct kernels *k;
	enum dtype act;
	struct param *list;
	int count, room;
	int64_t total, decayed;          /* elements with gaps; the first `decayed` of them decay */
	float *master, *grad;            /* backend memory; gradients only in training */
	void *m, *v;                     /* of type `moments`; only in training */
	enum dtype moments;              /* f32, unless set before params_alloc; bf16 */
	bool stochastic;                 /* bf16 moments are rounded by chance, */
	uint64_t rounding;               /* by streams of this seed (struct adamw) */
	uint16_t *resident;              /* bf16 copy, or NULL */
	float *grad_norm2;               /* one element */
	int32_t *skipped;                /* one element: steps that the device left out */
	int64_t step;                    /* steps made, those left out included */
	int64_t left_out;                /* what is known of *skipped */
};

/* What one update is made with; the formula is that of struct adamw. */
struct params_update {
	float lr, beta1, beta2, eps, weight_decay, clip, grad_scale;
	float *average, average_weight;
};

void params_init(struct params *p, struct kernels *k, enum dtype act);
void params_release(struct params *p);
/* Declares a parameter, or finds it when the same net is laid out again (another batch size): the
 * shape must be the same then. Rank 1 does not decay. New names only before params_alloc. Returns
 * its index. */
int params_add(struct params *p, const char *name, int rank, const int64_t *dim,
	       enum param_init init, float bound);
/* Places everything in the flat arrays and returns their length. params_alloc does it by itself. */
int64_t params_place(struct params *p);
/* Places and allocates everything, zeroed. TF_ENOMEM. */
int params_alloc(struct params *p, bool training, struct err *e);
bool params_allocated(const struct params *p);
/* Initial values; parameter i is the stream (seed, PHILOX_INIT, i). */
void params_draw(struct params *p, uint64_t seed);
/* Views: filters (rank > 1) in the act type, the rest f32; gradients f32. */
struct tensor params_value(const struct params *p, int i);
struct tensor params_gradient(const struct params *p, int i);
/* Parameter i's gradient is only ever made by products, through params_dweight: then it need not be
 * zeroed, the first product after params_zero_gradients writes over it. */
void params_by_product(struct params *p, int i);
struct dweight params_dweight(struct params *p, int i);
void params_zero_gradients(struct params *p);
/* Zeroes what no product has written since params_zero_gradients; before all gradients are read. */
void params_settle_gradients(struct params *p);
/* Sum of squares of all gradients, on the host (waits). */
float params_gradient_norm2(struct params *p);
/* One AdamW step (norm, clipping, update, bf16 copy); p->grad_norm2 is its norm afterwards. A step
 * whose norm is not finite changes nothing; who learns of it adds one to p->left_out. */
void params_step(struct params *p, const struct params_update *u);
/* Starts to read the sum of squares of the last params_step into *host, memory of host_alloc. */
void params_norm2_begin(struct params *p, struct fetch *f, float *host);
/* Number of values, gaps not counted. */
int64_t params_count(const struct params *p);

/* Which flat array a file holds; moments in the type they are kept in. Tensors are named
 * <prefix><parameter>. */
enum params_array { PARAMS_MASTER, PARAMS_M, PARAMS_V };

/* Bytes of a flat array, gaps included. */
size_t params_bytes(const struct params *p, enum params_array which);
/* Starts to copy one array to `host`, params_bytes of host_alloc's memory. */
void params_fetch_begin(struct params *p, enum params_array which, struct fetch *f, void *host);
/* Declares to a writer all tensors of an array whose values lie at `host` until it has saved. */
void params_declare(const struct params *p, enum params_array which, const char *prefix,
		    const void *host, struct st_writer *w);
/* Declares all tensors of one array to a writer; *copy is the host memory they lie in (free with
 * xfree once saved). */
void params_write(struct params *p, enum params_array which, const char *prefix,
		  struct st_writer *w, void **copy);
/* Reads one array, checking every name and shape; path is for messages. */
int params_read(struct params *p, enum params_array which, const char *prefix,
		const struct st_file *f, const char *path, struct err *e);

#endif
