/* SPDX-License-Identifier: Apache-2.0
 * Matrix products through oneDNN. A primitive is built once for its shape and types, and only its
 * data pointers change from call to call. */
#include "config.h"
#include "kernels/cpu/cpu.h"

static dnnl_data_type_t dnnl_type(enum dtype t)
{
	CHECK(t == DT_F32 || t == DT_BF16);
	return t == DT_F32 ? dnnl_f32 : dnnl_bf16;
}

/* A row-major [rows, columns] matrix, or its transpose as seen by the product. */
static dnnl_memory_desc_t matrix(int64_t rows, int64_t columns, bool transposed, enum dtype type)
{
	dnnl_dims_t dims = { rows, columns };
	dnnl_dims_t strides = { transposed ? 1 : columns, transposed ? rows : 1 };
	dnnl_memory_desc_t md;

	CPU_DNNL(dnnl_memory_desc_init_by_strides(&md, 2, dims, dnnl_type(type), strides));
	return md;
}

static dnnl_memory_t memory(struct cpu_state *s, const dnnl_memory_desc_t *md)
{
	dnnl_memory_t m;

	CPU_DNNL(dnnl_memory_create(&m, md, s->engine, DNNL_MEMORY_NONE));
	return m;
}

static dnnl_primitive_attr_t attributes(bool accumulate)
{
	dnnl_primitive_attr_t attr;
	dnnl_post_ops_t ops;

	CPU_DNNL(dnnl_primitive_attr_create(&attr));
	if (accumulate) {
		CPU_DNNL(dnnl_post_ops_create(&ops));
		CPU_DNNL(dnnl_post_ops_append_sum(ops, 1.0f));
		CPU_DNNL(dnnl_primitive_attr_set_post_ops(attr, ops));
		CPU_DNNL(dnnl_post_ops_destroy(ops));
	}
	return attr;
}

static void build(struct cpu_state *s, struct cpu_product *p)
{
	dnnl_memory_desc_t a = matrix(p->m, p->k, p->ta, p->type);
	dnnl_memory_desc_t b = matrix(p->k, p->n, p->tb, p->type);
	dnnl_memory_desc_t c = matrix(p->m, p->n, false, p->out);
	dnnl_memory_desc_t bias = matrix(1, p->n, false, DT_F32);
	dnnl_primitive_attr_t attr = attributes(p->accumulate);
	dnnl_primitive_desc_t pd;
	dnnl_matmul_desc_t desc;

	CPU_DNNL(dnnl_matmul_desc_init(&desc, &a, &b, p->bias ? &bias : NULL, &c));
	CPU_DNNL(dnnl_primitive_desc_create(&pd, &desc, attr, s->engine, NULL));
	CPU_DNNL(dnnl_primitive_create(&p->primitive, pd));
	CPU_DNNL(dnnl_primitive_desc_destroy(pd));
	CPU_DNNL(dnnl_primitive_attr_destroy(attr));
	p->a = memory(s, &a);
	p->b = memory(s, &b);
	p->c = memory(s, &c);
	if (p->bias)
		p->bias_memory = memory(s, &bias);
}

void cpu_product_release(struct cpu_product *p)
{
	onednn.dnnl_primitive_destroy(p->primitive);
	onednn.dnnl_memory_destroy(p->a);
	onednn.dnnl_memory_destroy(p->b);
	onednn.dnnl_memory_destroy(p->c);
	if (p->bias)
		onednn.dnnl_memory_destroy(p->bias_memory);
}

static bool same(const struct cpu_product *a, const struct cpu_product *b)
{
	return a->m == b->m && a->n == b->n && a->k == b->k && a->type == b->type &&
	       a->out == b->out && a->ta == b->ta && a->tb == b->tb && a->bias == b->bias &&
	       a->accumulate == b->accumulate;
}

static struct cpu_product *find(struct cpu_state *s, const struct cpu_product *want)
{
	struct cpu_product *p;

	for (int i = 0; i < s->products; i++)
		if (same(&s->product[i], want))
			return &s->product[i];
	if (s->products < CPU_PRODUCTS_MAX) {
		p = &s->product[s->products++];
	} else {   /* the oldest makes room */
		p = &s->product[s->oldest++ % CPU_PRODUCTS_MAX];
		cpu_product_release(p);
	}
	*p = *want;
	build(s, p);
	return p;
}

static void multiply(struct kernels *k, struct tensor c, struct tensor a, bool ta, struct tensor b,
		     bool tb, struct tensor bias, bool accumulate)
{
	struct cpu_state *s = k->state;
	struct cpu_product want = { .m = c.dim[0], .n = c.dim[1], .k = a.dim[ta ? 0 : 1],
				    .type = a.type, .out = c.type, .ta = ta, .tb = tb,
				    .bias = bias.data != NULL, .accumulate = accumulate };
	struct cpu_product *p = find(s, &want);

	CPU_DNNL(dnnl_memory_set_data_handle(p->a, a.data));
	CPU_DNNL(dnnl_memory_set_data_handle(p->b, b.data));
	CPU_DNNL(dnnl_memory_set_data_handle(p->c, c.data));
	if (p->bias)
		CPU_DNNL(dnnl_memory_set_data_handle(p->bias_memory, bias.data));
	dnnl_exec_arg_t args[] = { { DNNL_ARG_SRC, p->a }, { DNNL_ARG_WEIGHTS, p->b },
				   { DNNL_ARG_DST, p->c }, { DNNL_ARG_BIAS, p->bias_memory } };
	CPU_DNNL(dnnl_primitive_execute(p->primitive, s->stream, p->bias ? 4 : 3, args));
	CPU_DNNL(dnnl_stream_wait(s->stream));
}

void cpu_matmul(struct kernels *k, struct tensor c, struct tensor a, bool ta, struct tensor b,
		bool tb, struct tensor bias, float beta)
{
	int64_t depth = a.dim[ta ? 0 : 1];
	struct tensor wide;

	CHECK(a.rank == 2 && b.rank == 2 && c.rank == 2 && a.type == b.type &&
	      (beta == 0 || beta == 1));
	CHECK(a.dim[ta ? 1 : 0] == c.dim[0] && b.dim[tb ? 0 : 1] == c.dim[1] &&
	      b.dim[tb ? 1 : 0] == depth);
	CHECK(!bias.data || (bias.type == DT_F32 && tensor_count(&bias) == c.dim[1]));
	if (tensor_count(&c) == 0)
		return;
	if (depth == 0) {
		ref_matmul(k, c, a, ta, b, tb, bias, beta);
		return;
	}
	wide = beta == 0 ? cpu_wide_space(k, OPERAND_RESULT, c) : cpu_wide(k, OPERAND_RESULT, c);
	multiply(k, wide, cpu_wide(k, OPERAND_A, a), ta, cpu_wide(k, OPERAND_B, b), tb, bias,
		 beta != 0);
	cpu_narrow(k, c, wide);
}
