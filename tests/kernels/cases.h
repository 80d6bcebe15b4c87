/* SPDX-License-Identifier: Apache-2.0
 * Words of the cases of kernelcheck: cases.c, cases_rows.c, cases_images.c. A case is `r`. */
#ifndef TESTS_KERNELS_CASES_H
#define TESTS_KERNELS_CASES_H

#include "tests/kernels/check.h"

#define OPS (r->k->ops)
#define D(i) (r->dim[i])
/* In a test once; for speed many times over the same tensors. */
#define TIMED(call)                                                                                \
	while (run_again(r))                                                                       \
	call
#define NONE tensor_1d(NULL, DT_F32, 0)

static inline struct tensor out2(struct run *r, enum dtype type, int64_t a, int64_t b)
{
	return run_output(r, tensor_2d(NULL, type, a, b));
}

static inline struct tensor out1(struct run *r, int64_t n)
{
	return run_output(r, tensor_1d(NULL, DT_F32, n));
}

#endif
