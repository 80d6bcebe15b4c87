/* SPDX-License-Identifier: Apache-2.0
 * Backends of tensor operations: kernels.def is the table of them; ref/ is the plain C oracle,
 * cpu/ is oneDNN and vectorised loops, cuda/ is the GPU. A backend has every row or is refused at
 * start.
 *
 * Tensors are dense and row-major in the backend's memory. Operations run in order on the
 * backend's one queue; on the GPU they return before they are done (sync waits). Shapes and types
 * are checked with CHECK: a wrong call is a bug of the caller, not an operating error. A device
 * error ends the process (die, exit status KERNEL_EXIT_DEVICE): only workers use kernels. */
#ifndef KERNELS_KERNELS_H
#define KERNELS_KERNELS_H

#include "lib/err.h"
#include "lib/philox.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KERNEL_EXIT_DEVICE 40   /* exit status after a device error */
#define TENSOR_RANK_MAX 4

enum dtype { DT_F32, DT_BF16, DT_I32, DT_I64, DT_U8, DT_E4M3 };

static inline size_t dtype_bytes(enum dtype t)
{
	return t == DT_I64 ? 8 : t == DT_F32 || t == DT_I32 ? 4 : t == DT_BF16 ? 2 : 1;
}

struct tensor {
	void *data;                       /* backend memory, 64-byte aligned at allocation */
	enum dtype type;
	int rank;
	int64_t dim[TENSOR_RANK_MAX];     /* unused ones are 1 */
};

/* Views: no memory is touched. */
struct tensor tensor_1d(void *data, enum dtype type, int64_t n);
struct tensor tensor_2d(void *data, enum dtype type, int64_t rows, int64_t columns);
struct tensor tensor_3d(void *data, enum dtype type, int64_t a, int64_t b, int64_t c);
struct tensor tensor_4d(void *data, enum dtype type, int64_t a, int64_t b, int64_t c, int64_t d);
int64_t tensor_count(const struct tensor *t);
size_t tensor_bytes(const struct tensor *t);

static inline float bf16_to_float(uint16_t x)
{
	union { uint32_t u; float f; } v = { (uint32_t)x << 16 };
	return v.f;
}

static inline uint16_t bf16_from_float(float f)   /* round to nearest even; NaN stays NaN */
{
	union { float f; uint32_t u; } v = { f };
	if ((v.u & 0x7fffffffu) > 0x7f800000u)
		return (uint16_t)(v.u >> 16 | 0x40);
	return (uint16_t)((v.u + 0x7fffu + (v.u >> 16 & 1)) >> 16);
}

/* Rounded up or down by chance, rather to what is nearer: `chance` is uniform in 0 .. 65535. */
static inline uint16_t bf16_by_chance(float f, uint32_t chance)
{
	union { float f; uint32_t u; } v = { f };
	if ((v.u & 0x7f800000u) == 0x7f800000u)
		return bf16_from_float(f);
	return (uint16_t)((v.u + chance) >> 16);
}

/* e4m3: a sign, four bits of exponent (bias 7), three of fraction; no infinities, 0x7f is no number
 * (OCP 8-bit floating point, 2023). Round to nearest even; what is larger becomes E4M3_MOST. */
#define E4M3_MOST 448.0f
#define E4M3_AMAX_LEAST 0x1p-100f   /* of a row that is scaled: what is smaller becomes zeros */

static inline uint8_t e4m3_from_float(float f)
{
	union { float f; uint32_t u; } v = { f }, small;
	uint32_t size = v.u & 0x7fffffffu, sign = v.u >> 24 & 0x80;

	if (size > 0x7f800000u)
		return 0x7f;
	if (size >= 0x43e00000u)          /* E4M3_MOST */
		return (uint8_t)(sign | 0x7e);
	v.u = size;
	if (size < 0x3c800000u) {         /* below 2^-6: steps of 2^-9, as floats have at 2^14 */
		small.f = v.f + 0x1p14f;
		return (uint8_t)(sign | (small.u - 0x46800000u));
	}
	size += 0x7ffffu + (size >> 20 & 1);
	return (uint8_t)(sign | (size - (120u << 23)) >> 20);
}

static inline float e4m3_to_float(uint8_t x)
{
	uint32_t sign = (uint32_t)(x & 0x80) << 24, size = x & 0x7f;
	union { float f; uint32_t u; } v;

	if (size == 0x7f) {
		v.u = 0x7fc00000u;
	} else if (size < 8) {
		v.f = (float)size * 0x1p-9f;
		v.u |= sign;
	} else {
		v.u = sign | ((size << 20) + (120u << 23));
	}
	return v.f;
}

/* A copy to the host under way; see fetch_begin. */
#define FETCHES_MOST 16
struct fetch { int mark; };

/* AdamW over flat arrays; all parameters of a net lie in one array, matrices (which decay) first.
 * g = grad * grad_scale * min(1, clip / (norm * grad_scale)), norm = sqrt(*grad_norm2) (device
 * memory); m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr (m / c1 / (sqrt(v / c2) + eps) + wd
 * p), c1 = 1 - b1^updates, c2 = 1 - b2^updates, wd only below `decayed` (Loshchilov & Hutter 2019);
 * average += average_weight (p - average). When *grad_norm2 is not finite nothing changes but
 * *skipped, which grows by one: updates = step - *skipped, so that a step left out is as if it had
 * never been. Moments of bf16 are rounded to the nearest or, stochastic, by chance: by the low (m)
 * and the high (v) 16 bits of word i % 4 of block i / 4 of the stream (seed, PHILOX_ROUND,
 * updates). */
struct adamw {
	float *master, *grad;              /* [n] f32 */
	void *m, *v;                       /* [n] of type `moments`: f32 or bf16 */
	enum dtype moments;
	bool stochastic;
	uint64_t seed;
	float *average;                    /* [n] f32: averaged weights, or NULL */
	uint16_t *resident;                /* [n] bf16 copy to refresh, or NULL */
	const float *grad_norm2;           /* one f32: sum of squares of grad */
	int32_t *skipped;                  /* one i32 of the backend's memory, or NULL: none yet */
	int64_t n, decayed, step;          /* step counts from 1 */
	float lr, beta1, beta2, eps, weight_decay, grad_scale, clip;   /* clip 0: none */
	float average_weight;
};

/* One denoising update, elementwise over [images, elements] f32 (recipe: Inference, Exact choices).
 * eps = guided noise = eps_u + guidance (eps_c - eps_u), or eps_c when eps_u is NULL;
 * x0 = clamp((x - sqrt(1-a) eps) / sqrt(a), +-clamp); eps again from x0 (clamp 0: none);
 * x = c_x0 x0 + c_eps eps + c_x x + sigma noise. What changes from step to step lies in the
 * backend's memory, so that a recorded graph can be run for every step. */
enum denoise_value { DENOISE_SQRT_ABAR, DENOISE_SQRT_ONE_MINUS_ABAR, DENOISE_X0, DENOISE_EPS,
		     DENOISE_X, DENOISE_SIGMA, DENOISE_VALUES = 8 };

struct denoise {
	float *x;                          /* in and out */
	const float *eps_c, *eps_u;
	const float *noise;                /* NULL: none is added, whatever sigma says */
	const float *step;                 /* [DENOISE_VALUES], backend memory: differs by step */
	int64_t n;
	float guidance, clamp;
};

/* Rows as quantise makes them; q of no data: none. */
struct scaled {
	struct tensor q, scale;
};
#define NOT_SCALED ((struct scaled){ { 0 }, { 0 } })

/* What rope turned q and k by. */
struct turned {
	struct tensor cosine, sine, position;
};

/* A transformer's layers over cached keys and values, as sampling runs them: in each
 *	x += attention_out(attention_cached(rope(qkv(norm x))))
 *	x += down(swiglu(gate_up(norm x)))
 * then out = norm x, and where logits are wanted (they have data) logits = out head^T of the first
 * M rows, after which out holds anything. N rows, S sequences of N / S rows each; see rope,
 * attention_cached. */
struct cached_layer {
	struct tensor attention_norm, ff_norm;             /* f32[d] */
	struct tensor qkv, attention_out, gate_up, down;   /* act, [outputs, inputs] */
	struct tensor keys, values;                        /* act[S, capacity, d] */
};

struct cached_layers {
	const struct cached_layer *layer;  /* [layers], the host's */
	int layers, heads;
	float eps;
	struct tensor norm;                /* f32[d], of the last output */
	struct tensor x, out;              /* act[N,d]; x is input and is changed */
	struct tensor head, logits;        /* act[V,d], act[M,V], M <= N; or no data */
	struct tensor position, limit, at; /* i32[N], i32[N], i32[S] */
	struct tensor cosine, sine;
	struct tensor h, qkv, attention, gate_up, swiglu, rstd; /* scratch of N rows */
};

/* Tokens drawn for n sequences of one row each become their next rows: token = history[*counter] =
 * drawn; position, at and limit grow by one where limit >= 0; ++*counter. All in backend memory. */
struct token_rows {
	int32_t *token, *position, *at, *limit;    /* [n] */
	const int32_t *drawn;                      /* [n] */
	int32_t *history;                          /* [steps, n]; steps beyond are not kept */
	int32_t *counter;                          /* [1] */
	int64_t n, steps;
};

struct conv { int stride, pad_before, pad_after; };   /* same for both axes */

struct kernels;

struct kernel_ops {
#define K(ret, name, args) ret (*name) args;
#include "kernels/kernels.def"
#undef K
};

/* A backend opened on one device. The fields are read-only to callers. */
struct kernels {
	const struct kernel_ops *ops;
	const char *backend;      /* "ref", "cpu", "cuda" */
	int threads;              /* CPU backends */
	bool has_bf16;            /* bf16 matrix products are native here */
	bool prefers_bf16;        /* precision auto: bf16 products are faster than f32 here */
	bool has_fp8;             /* 8-bit products (matmul_scaled) are native here */
	bool has_graphs;          /* graph_* may be called */
	void *state;              /* the backend's own */
};

/* Opens backend "ref", "cpu" or "cuda" (device "cuda:N"); threads 0 means all of the process's
 * CPUs.
 * TF_EUNSUPPORTED with a sentence when it is not built in, lacks a row, or finds no device. */
int kernels_open(const char *device, int threads, struct kernels **out, struct err *e);
void kernels_close(struct kernels *k);
/* The backends this program was built with, divided by spaces. */
const char *kernels_built_in(void);
/* Words about the device for logs: "oneDNN 2.6.3, AVX-512, 2 threads". Valid until close. */
const char *kernels_describe(const struct kernels *k);

/* What the backend chose by timing so far (algorithms of matrix products, on a GPU), as a text for
 * kernels_choose in a later process, which then computes the same bits. xfree it; "" where nothing
 * is chosen. */
char *kernels_choices(const struct kernels *k);
/* TF_EUNSUPPORTED when they were made by another backend, device or library, TF_EINVALID when the
 * text is no such list: the backend then goes on with choices of its own. */
int kernels_choose(struct kernels *k, const char *choices, struct err *e);
/* The same for a run that goes on: NULL is nothing, and where they cannot be had it goes on all the
 * same, with a warning in the log. */
void kernels_choose_again(struct kernels *k, const char *choices);

/* Times every operation from now on, until kernels_profile_end calls row once for each operation
 * that ran, with its calls and their milliseconds on the device. TF_EUNSUPPORTED but on a GPU. */
typedef void kernels_profile_row(void *arg, const char *name, int64_t calls, double ms);
int kernels_profile_begin(struct kernels *k, struct err *e);
void kernels_profile_end(struct kernels *k, kernels_profile_row *row, void *arg);
/* The device's own memory, bytes. TF_EUNSUPPORTED for CPU backends. */
int kernels_memory(struct kernels *k, size_t *available, size_t *total, struct err *e);

#endif
