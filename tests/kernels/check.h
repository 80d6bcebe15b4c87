/* SPDX-License-Identifier: Apache-2.0
 * One table of cases serves correctness, determinism and speed of every operation on every
 * backend. A case runs its operation once on inputs that depend on the seed alone, so that two
 * backends get the same. */
#ifndef TESTS_KERNELS_CHECK_H
#define TESTS_KERNELS_CHECK_H

#include "kernels/kernels.h"

#define RUN_TENSORS_MAX 32
#define PERF_BATCH 4 /* passes that are timed together */

/* Normals of a case, of which every run of it gets the same; in the order of the draws. */
struct inputs {
	void *values[RUN_TENSORS_MAX];
};

/* One run of a case on one backend. */
struct run {
	struct kernels *k;
	struct inputs *inputs;                /* kept for further runs of the case; NULL: not */
	uint64_t seed;
	enum dtype act;                       /* the type of activations in this run */
	const int64_t *dim;                   /* the case's numbers for this shape */
	int count;
	uint64_t drawn;                       /* inputs so far: each has a stream of its own */
	struct tensor tensor[RUN_TENSORS_MAX];
	bool output[RUN_TENSORS_MAX];         /* compared with the reference's */
	double flops, bytes;                  /* work of one pass, for speed */
	int passes, done;                     /* wanted of the operation, and had */
	int64_t begin;                        /* of the passes after the first */
	int mark, replay;                     /* tensors made by the arguments of the operation */
	double seconds;                       /* of one of those passes */
};

#define CHECK_DIMS 7

struct op_case {
	const char *op;
	void (*run)(struct run *r);
	bool bf16;                            /* also with bf16 activations */
	double loose;                         /* tolerance is this many times the usual one */
	int64_t shape[4][CHECK_DIMS];         /* odd shapes first; a row of zeros ends */
	int64_t big[4][CHECK_DIMS];           /* for speed; ends like shape */
	unsigned fills;                       /* bits: these numbers of shape are there to fill a
					       * GPU: a CPU gets at most 3 */
};

/* cases.c, cases_rows.c, cases_images.c */
extern const struct op_case op_cases[], row_cases[], image_cases[];
extern const int op_cases_count, row_cases_count, image_cases_count;

/* run.c. Inputs: standard normals; integers in [least, most]; everything freed by run_release. */
struct tensor run_input(struct run *r, enum dtype type, int rank, const int64_t *dim);
struct tensor run_input1(struct run *r, enum dtype type, int64_t n);
struct tensor run_input2(struct run *r, enum dtype type, int64_t a, int64_t b);
struct tensor run_input3(struct run *r, enum dtype type, int64_t a, int64_t b, int64_t c);
struct tensor run_input4(struct run *r, enum dtype type, int64_t a, int64_t b, int64_t c,
			 int64_t d);
struct tensor run_integers(struct run *r, int64_t n, int64_t least, int64_t most);
/* n distinct integers of [0, range), some of them -1. */
struct tensor run_distinct(struct run *r, int64_t n, int64_t range);
struct tensor run_i32(struct run *r, int64_t n, const int32_t *values);
/* Outputs, poisoned with NaN before the operation; and inputs that it changes. */
struct tensor run_output(struct run *r, struct tensor like);
struct tensor run_changes(struct run *r, struct tensor input);
/* Whether the operation is to run (again); measures the passes after the first. */
bool run_again(struct run *r);
void run_release(struct run *r);
void inputs_release(struct inputs *inputs);

/* Finite differences of every backward operation; TAP. Returns the failures. k: memory of the
 * host. */
int check_gradients(struct kernels *k);

#endif
