/* SPDX-License-Identifier: Apache-2.0
 * What the files of the CPU backend share. */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/kernels.h"
#include "kernels/ref/ref.h"

#include <oneapi/dnnl/dnnl.h>
#include "lib/library.h"

/* Not all of these exist: cpu.c installs those that do. */
#define K(ret, name, args) ret cpu_##name args;
#include "kernels/kernels.def"
#undef K

/* oneDNN is opened when kernels of the CPU first are: loading it takes a millisecond or two, which
 * a job that computes nothing, or on a GPU, need not pay. */
#define ONEDNN_FUNCTIONS(F) \
	F(dnnl_convolution_backward_data_desc_init) \
	F(dnnl_convolution_backward_weights_desc_init) \
	F(dnnl_convolution_forward_desc_init) \
	F(dnnl_engine_create) \
	F(dnnl_engine_destroy) \
	F(dnnl_get_effective_cpu_isa) \
	F(dnnl_matmul_desc_init) \
	F(dnnl_memory_create) \
	F(dnnl_memory_desc_get_size) \
	F(dnnl_memory_desc_init_by_strides) \
	F(dnnl_memory_desc_init_by_tag) \
	F(dnnl_memory_destroy) \
	F(dnnl_memory_set_data_handle) \
	F(dnnl_post_ops_append_sum) \
	F(dnnl_post_ops_create) \
	F(dnnl_post_ops_destroy) \
	F(dnnl_primitive_attr_create) \
	F(dnnl_primitive_attr_destroy) \
	F(dnnl_primitive_attr_set_post_ops) \
	F(dnnl_primitive_attr_set_scratchpad_mode) \
	F(dnnl_primitive_create) \
	F(dnnl_primitive_desc_create) \
	F(dnnl_primitive_desc_destroy) \
	F(dnnl_primitive_desc_query_md) \
	F(dnnl_primitive_destroy) \
	F(dnnl_primitive_execute) \
	F(dnnl_reorder_primitive_desc_create) \
	F(dnnl_stream_create) \
	F(dnnl_stream_destroy) \
	F(dnnl_stream_wait) \
	F(dnnl_version)

struct onednn {
	ONEDNN_FUNCTIONS(LIBRARY_POINTER)
};
extern struct onednn onednn;

/* Instruction sets that loops are compiled for (loops/, conv_loops.c): x86-64's levels. */
enum cpu_level { CPU_BASE, CPU_V3, CPU_V4 };

/* The widest of them that this processor has. */
enum cpu_level cpu_level(void);

#define CPU_PRODUCTS_MAX 512   /* different matrix products kept ready */

/* A matrix product built once for its shape and types. */
struct cpu_product {
	int64_t m, n, k;
	enum dtype type, out;
	bool ta, tb, bias, accumulate;
	dnnl_primitive_t primitive;
	dnnl_memory_t a, b, c, bias_memory;
};

/* Memory that grows and is reused, 64-byte aligned; operations run one after the other. */
struct cpu_scratch { void *data; size_t bytes; };

/* The operands of a product or convolution. */
enum cpu_operand { OPERAND_A, OPERAND_B, OPERAND_RESULT, OPERANDS };

struct cpu_state {
	dnnl_engine_t engine;
	dnnl_stream_t stream;
	struct cpu_product product[CPU_PRODUCTS_MAX];
	int products;
	unsigned oldest;               /* the next to make room once all are taken */
	struct cpu_conv *conv;         /* of conv.c, NULL until a convolution ran */
	struct cpu_scratch wide[OPERANDS];
	char words[160];
};

void cpu_product_release(struct cpu_product *p);

/* At least so many bytes, whose contents are not kept from call to call; ends the process with
 * EXIT_MEMORY where there are none. */
void *cpu_scratch(struct cpu_scratch *s, size_t bytes);
void cpu_scratch_release(struct cpu_scratch *s);

/* The operand as oneDNN takes it here: itself or, where it is bf16 and the processor multiplies
 * none, a copy in f32, which is valid until the next of the same `which`. */
struct tensor cpu_wide(struct kernels *k, enum cpu_operand which, struct tensor t);
/* The same without its contents: what a result is written to. */
struct tensor cpu_wide_space(struct kernels *k, enum cpu_operand which, struct tensor t);
/* Takes such a result to where it belongs, rounded to nearest; nothing when it is there. */
void cpu_narrow(struct kernels *k, struct tensor to, struct tensor wide);

/* A failing oneDNN call is a bug of ours: shapes were checked before. */
#define CPU_DNNL(call) do { dnnl_status_t status_ = onednn.call; \
	if (status_ != dnnl_success) BUG("%s: oneDNN status %d", #call, (int)status_); } while (0)

#endif
