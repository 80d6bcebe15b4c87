/* SPDX-License-Identifier: Apache-2.0
 * What the files of the CPU backend share. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/kernels.h"
#include "kernels/ref/ref.h"

#include <oneapi/dnnl/dnnl.h>

/* Not all of these exist: cpu.c installs those that do. */
#define K(ret, name, args) ret cpu_##name args;
#include "kernels/kernels.def"
#undef K

#define CPU_PRODUCTS_MAX 512   /* different matrix products kept ready */

/* A matrix product built once for its shape and types. */
struct cpu_product {
	int64_t m, n, k;
	enum dtype type, out;
	bool ta, tb, bias, accumulate;
	dnnl_primitive_t primitive;
	dnnl_memory_t a, b, c, bias_memory;
};

struct cpu_state {
	dnnl_engine_t engine;
	dnnl_stream_t stream;
	struct cpu_product product[CPU_PRODUCTS_MAX];
	int products;
	unsigned oldest;               /* the next to make room once all are taken */
	struct cpu_conv *conv;         /* of conv.c, NULL until a convolution ran */
	char words[160];
};

void cpu_product_release(struct cpu_product *p);

/* A failing oneDNN call is a bug of ours: shapes were checked before. */
#define CPU_DNNL(call) do { dnnl_status_t status_ = (call); \
	if (status_ != dnnl_success) BUG("%s: oneDNN status %d", #call, (int)status_); } while (0)

#endif
