/* SPDX-License-Identifier: Apache-2.0
 * The backends that kernels_open chooses from. Each opener fills *out (released by the close
 * function beside it) or says in one sentence why it cannot. */
#ifndef KERNELS_BACKENDS_H
#define KERNELS_BACKENDS_H

#include "kernels/kernels.h"
#include "kernels/cuda/cuda.h" /* defined only where config.h says HAVE_CUDA */

int ref_open(int threads, struct kernels **out, struct err *e);
void ref_close(struct kernels *k);
const char *ref_describe(const struct kernels *k);

int cpu_open(int threads, struct kernels **out, struct err *e);
void cpu_close(struct kernels *k);
const char *cpu_describe(const struct kernels *k);

/* TF_EUNSUPPORTED naming the first row that the table lacks. */
int kernels_check_table(const char *backend, const struct kernel_ops *ops, struct err *e);

#endif
