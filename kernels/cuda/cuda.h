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

/* The algorithms chosen so far, one text line each (shape, types, algorithm in hex), as a string
 * that the caller frees with xfree. Importing them before the first product makes a later run use
 * the same ones, so that the same seed gives the same bits. A line for another library version is
 * refused. */
char *cuda_algorithms_export(struct kernels *k);
int cuda_algorithms_import(struct kernels *k, const char *text, struct err *e);

#ifdef __cplusplus
}
#endif

#endif
