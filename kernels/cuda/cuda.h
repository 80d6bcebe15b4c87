/* SPDX-License-Identifier: Apache-2.0
 * The GPU backend as the rest of kernels/ sees it: opening, and the list of matrix-product
 * algorithms that were chosen by timing. Every row of kernels.def is made here; sm_80 and later
 * work, sm_90a has its own attention. Built only with a CUDA toolkit (HAVE_CUDA). */
#ifndef KERNELS_CUDA_CUDA_H
#define KERNELS_CUDA_CUDA_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Opens GPU `device` (from 0). TF_EUNSUPPORTED with a sentence when there is no driver, no such
 * device, or it is older than compute capability 8.0. Close with cuda_close. */
int cuda_open(int device, struct kernels **out, struct err *e);
void cuda_close(struct kernels *k);
const char *cuda_describe(const struct kernels *k);

/* See kernels_profile_begin, kernels_profile_end and kernels_memory. */
void cuda_profile_begin(struct kernels *k);
void cuda_profile_end(struct kernels *k, kernels_profile_row *row, void *arg);
void cuda_memory(struct kernels *k, size_t *available, size_t *total);

/* See kernels_choices and kernels_choose. The text: the library's version and the device's name,
 * then a line for each product (shape, types, algorithm in hex). */
char *cuda_choices(const struct kernels *k);
int cuda_choose(struct kernels *k, const char *text, struct err *e);

#ifdef __cplusplus
}
#endif

#endif
