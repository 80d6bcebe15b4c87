/* SPDX-License-Identifier: Apache-2.0
 * Convolutional operations on the CPU: convolutions through oneDNN with activations in NHWC, the
 * rest as loops over images or rows shared among OpenMP threads (conv_loops.c). Sums over images
 * are taken in a fixed order, so results do not depend on timing.
 *
 * A primitive is made once for each shape and kept. oneDNN wants filters in a layout of its own
 * choice: they are reordered at each call, which costs little beside the convolution. */
#include "config.h"
#include "kernels/cpu/conv.h"
#include "kernels/cpu/cpu.h"
#include "lib/mem.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum pass { FORWARD, DATA, WEIGHT };

struct key {
	int64_t pass, type, bias, n, h, w, ci, ho, wo, co, kh, kw, stride, before, after;
};

/* A convolution of one shape: the primitive, the reorder of its filters, and memory objects whose
 * pointers are set at each call. */
struct primitive {
	struct key key;
	dnnl_primitive_t conv, reorder;
	dnnl_memory_t x, out, bias, filter, filter_user, scratch, reorder_scratch;
	size_t filter_bytes, scratch_bytes;
};

struct cpu_conv {
	struct primitive *list;
	int count, room;
	struct cpu_scratch filter, scratch;
	struct cpu_scratch sums;         /* partial sums of images */
	const struct conv_loops *loops;
};

static const struct conv_loops *choose_loops(void)
{
	switch (cpu_level()) {
#ifdef HAVE_X86_LEVELS
	case CPU_V4: return &conv_loops_v4;
	case CPU_V3: return &conv_loops_v3;
#endif
	default: return &conv_loops_base;
	}
}

static struct cpu_state *state_of(struct kernels *k)
{
	return k->state;
}

static struct cpu_conv *conv_of(struct kernels *k)
{
	struct cpu_state *s = k->state;

	if (!s->conv) {
		s->conv = xcalloc(1, sizeof *s->conv);
		s->conv->loops = choose_loops();
	}
	return s->conv;
}

static const struct conv_loops *loops(struct kernels *k)
{
	return conv_of(k)->loops;
}

static void primitive_release(struct primitive *p)
{
	dnnl_memory_t memory[] = { p->x, p->out, p->bias, p->filter, p->filter_user, p->scratch,
				   p->reorder_scratch };

	onednn.dnnl_primitive_destroy(p->conv);
	onednn.dnnl_primitive_destroy(p->reorder);
	for (size_t i = 0; i < ARRAY_LEN(memory); i++)
		if (memory[i])
			onednn.dnnl_memory_destroy(memory[i]);
}

void cpu_conv_close(struct kernels *k)
{
	struct cpu_state *state = k->state;
	struct cpu_conv *v = state->conv;

	if (!v)
		return;
	for (int i = 0; i < v->count; i++)
		primitive_release(&v->list[i]);
	xfree(v->list);
	cpu_scratch_release(&v->filter);
	cpu_scratch_release(&v->scratch);
	cpu_scratch_release(&v->sums);
	xfree(state->conv);
}

/* ---- primitives */

struct layout { dnnl_memory_desc_t x, out, bias, filter, filter_user; };

static struct layout layout_of(const struct key *q)
{
	dnnl_data_type_t act = q->type == DT_BF16 ? dnnl_bf16 : dnnl_f32;
	dnnl_data_type_t filter = q->pass == WEIGHT ? dnnl_f32 : act;
	dnnl_dims_t x = { q->n, q->ci, q->h, q->w }, out = { q->n, q->co, q->ho, q->wo };
	dnnl_dims_t f = { q->co, q->ci, q->kh, q->kw }, bias = { q->co };
	struct layout l = { 0 };

	CPU_DNNL(dnnl_memory_desc_init_by_tag(&l.x, 4, x, act, dnnl_nhwc));
	CPU_DNNL(dnnl_memory_desc_init_by_tag(&l.out, 4, out, act, dnnl_nhwc));
	CPU_DNNL(dnnl_memory_desc_init_by_tag(&l.filter, 4, f, filter, dnnl_format_tag_any));
	CPU_DNNL(dnnl_memory_desc_init_by_tag(&l.filter_user, 4, f, filter, dnnl_ohwi));
	if (q->bias)
		CPU_DNNL(dnnl_memory_desc_init_by_tag(&l.bias, 1, bias, dnnl_f32, dnnl_a));
	return l;
}

static dnnl_primitive_attr_t user_scratchpad(void)
{
	dnnl_primitive_attr_t attr;

	CPU_DNNL(dnnl_primitive_attr_create(&attr));
	CPU_DNNL(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
	return attr;
}

static dnnl_primitive_desc_t describe(struct kernels *k, const struct key *q,
				      const struct layout *l)
{
	dnnl_dims_t stride = { q->stride, q->stride }, before = { q->before, q->before };
	dnnl_dims_t after = { q->after, q->after };
	const dnnl_memory_desc_t *bias = q->bias ? &l->bias : NULL;
	dnnl_primitive_attr_t attr = user_scratchpad();
	dnnl_primitive_desc_t hint, desc;
	dnnl_convolution_desc_t c;

	CPU_DNNL(dnnl_convolution_forward_desc_init(
		&c, dnnl_forward_training, dnnl_convolution_direct, &l->x, &l->filter,
		q->pass == DATA ? NULL : bias, &l->out, stride, before, after));
	if (q->pass == WEIGHT)           /* the hint of a bf16 pass has bf16 filters */
		c.weights_desc.data_type = l->x.data_type;
	CPU_DNNL(dnnl_primitive_desc_create(&hint, &c, attr, state_of(k)->engine, NULL));
	if (q->pass == FORWARD) {
		onednn.dnnl_primitive_attr_destroy(attr);
		return hint;
	}
	if (q->pass == DATA)
		CPU_DNNL(dnnl_convolution_backward_data_desc_init(&c, dnnl_convolution_direct,
								  &l->x, &l->filter, &l->out,
								  stride, before, after));
	else
		CPU_DNNL(dnnl_convolution_backward_weights_desc_init(
			&c, dnnl_convolution_direct, &l->x, &l->filter, bias, &l->out, stride,
			before, after));
	CPU_DNNL(dnnl_primitive_desc_create(&desc, &c, attr, state_of(k)->engine, hint));
	onednn.dnnl_primitive_desc_destroy(hint);
	onednn.dnnl_primitive_attr_destroy(attr);
	return desc;
}

static dnnl_memory_t memory_of(struct kernels *k, const dnnl_memory_desc_t *desc)
{
	dnnl_memory_t m;

	CPU_DNNL(dnnl_memory_create(&m, desc, state_of(k)->engine, DNNL_MEMORY_NONE));
	return m;
}

static dnnl_memory_t scratch_of(struct kernels *k, struct primitive *p,
				const_dnnl_primitive_desc_t desc)
{
	const dnnl_memory_desc_t *s =
		onednn.dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
	size_t bytes = onednn.dnnl_memory_desc_get_size(s);

	if (bytes > p->scratch_bytes)
		p->scratch_bytes = bytes;
	return memory_of(k, s);
}

/* Filters go from the user's layout to oneDNN's, or their gradients back, where they are added. */
static void make_reorder(struct kernels *k, struct primitive *p, const struct layout *l,
			 const dnnl_memory_desc_t *own)
{
	dnnl_primitive_attr_t attr = user_scratchpad();
	dnnl_primitive_desc_t desc;
	dnnl_post_ops_t sum;

	if (p->key.pass == WEIGHT) {
		CPU_DNNL(dnnl_post_ops_create(&sum));
		CPU_DNNL(dnnl_post_ops_append_sum(sum, 1.0f));
		CPU_DNNL(dnnl_primitive_attr_set_post_ops(attr, sum));
		onednn.dnnl_post_ops_destroy(sum);
		CPU_DNNL(dnnl_reorder_primitive_desc_create(&desc, own, state_of(k)->engine,
							    &l->filter_user, state_of(k)->engine,
							    attr));
	} else {
		CPU_DNNL(dnnl_reorder_primitive_desc_create(&desc, &l->filter_user,
							    state_of(k)->engine, own,
							    state_of(k)->engine, attr));
	}
	CPU_DNNL(dnnl_primitive_create(&p->reorder, desc));
	p->reorder_scratch = scratch_of(k, p, desc);
	onednn.dnnl_primitive_desc_destroy(desc);
	onednn.dnnl_primitive_attr_destroy(attr);
}

static void make_primitive(struct kernels *k, struct primitive *p, const struct key *q)
{
	dnnl_query_t which = q->pass == WEIGHT ? dnnl_query_diff_weights_md : dnnl_query_weights_md;
	struct layout l = layout_of(q);
	const dnnl_memory_desc_t *own;
	dnnl_primitive_desc_t desc;

	*p = (struct primitive){ .key = *q };
	desc = describe(k, q, &l);
	own = onednn.dnnl_primitive_desc_query_md(desc, which, 0);
	CPU_DNNL(dnnl_primitive_create(&p->conv, desc));
	p->filter_bytes = onednn.dnnl_memory_desc_get_size(own);
	p->x = memory_of(k, &l.x);
	p->out = memory_of(k, &l.out);
	p->filter = memory_of(k, own);
	p->filter_user = memory_of(k, &l.filter_user);
	if (q->bias)
		p->bias = memory_of(k, &l.bias);
	p->scratch = scratch_of(k, p, desc);
	make_reorder(k, p, &l, own);
	onednn.dnnl_primitive_desc_destroy(desc);
}

static struct primitive *primitive_for(struct kernels *k, const struct key *q)
{
	struct cpu_conv *v = conv_of(k);

	for (int i = 0; i < v->count; i++)
		if (memcmp(&v->list[i].key, q, sizeof *q) == 0)
			return &v->list[i];
	if (v->count == v->room) {
		v->room = v->room ? 2 * v->room : 64;
		v->list = xrealloc(v->list, (size_t)v->room, sizeof *v->list);
	}
	make_primitive(k, &v->list[v->count], q);
	return &v->list[v->count++];
}

static struct key key_of(enum pass pass, const struct tensor *out, const struct tensor *x,
			 const struct tensor *filter, bool bias, struct conv c)
{
	CHECK(out->rank == 4 && x->rank == 4 && filter->rank == 4 && out->type == x->type);
	CHECK(x->type == DT_F32 || x->type == DT_BF16);
	CHECK(filter->type == (pass == WEIGHT ? DT_F32 : x->type));
	CHECK(out->dim[0] == x->dim[0] && out->dim[3] == filter->dim[0] &&
	      x->dim[3] == filter->dim[3]);
	for (int axis = 1; axis <= 2; axis++)
		CHECK(out->dim[axis] == (x->dim[axis] + c.pad_before + c.pad_after -
					 filter->dim[axis]) / c.stride + 1);
	return (struct key){ pass, x->type, bias, x->dim[0], x->dim[1], x->dim[2], x->dim[3],
			     out->dim[1], out->dim[2], out->dim[3], filter->dim[1], filter->dim[2],
			     c.stride, c.pad_before, c.pad_after };
}

static void point(dnnl_memory_t m, const void *data)
{
	CPU_DNNL(dnnl_memory_set_data_handle(m, (void *)data));
}

static void run_reorder(struct kernels *k, struct primitive *p, dnnl_memory_t from,
			dnnl_memory_t to)
{
	dnnl_exec_arg_t args[] = { { DNNL_ARG_FROM, from }, { DNNL_ARG_TO, to },
				   { DNNL_ARG_SCRATCHPAD, p->reorder_scratch } };

	CPU_DNNL(dnnl_primitive_execute(p->reorder, state_of(k)->stream, 3, args));
}

/* Points the memory objects at their data and at the shared buffers. */
static struct primitive *prepare(struct kernels *k, const struct key *q, const struct tensor *out,
				 const struct tensor *x, const struct tensor *filter,
				 const void *bias)
{
	struct primitive *p = primitive_for(k, q);
	struct cpu_conv *v = conv_of(k);
	void *scratch = cpu_scratch(&v->scratch, p->scratch_bytes);

	point(p->x, x->data);
	point(p->out, out->data);
	point(p->filter, cpu_scratch(&v->filter, p->filter_bytes));
	point(p->filter_user, filter->data);
	point(p->scratch, scratch);
	point(p->reorder_scratch, scratch);
	if (p->bias)
		point(p->bias, bias);
	return p;
}

static void run_forward(struct kernels *k, struct tensor out, struct tensor x,
			struct tensor weight, struct tensor bias, struct conv c)
{
	struct key q = key_of(FORWARD, &out, &x, &weight, bias.data != NULL, c);
	struct primitive *p = prepare(k, &q, &out, &x, &weight, bias.data);
	dnnl_exec_arg_t args[] = {
		{ DNNL_ARG_SRC, p->x }, { DNNL_ARG_DST, p->out }, { DNNL_ARG_WEIGHTS, p->filter },
		{ DNNL_ARG_SCRATCHPAD, p->scratch }, { DNNL_ARG_BIAS, p->bias },
	};

	run_reorder(k, p, p->filter_user, p->filter);
	CPU_DNNL(dnnl_primitive_execute(p->conv, state_of(k)->stream, bias.data ? 5 : 4, args));
}

static void run_backward_data(struct kernels *k, struct tensor dx, struct tensor dout,
			      struct tensor weight, struct conv c)
{
	struct key q = key_of(DATA, &dout, &dx, &weight, false, c);
	struct primitive *p = prepare(k, &q, &dout, &dx, &weight, NULL);
	dnnl_exec_arg_t args[] = {
		{ DNNL_ARG_DIFF_SRC, p->x }, { DNNL_ARG_DIFF_DST, p->out },
		{ DNNL_ARG_WEIGHTS, p->filter }, { DNNL_ARG_SCRATCHPAD, p->scratch },
	};

	run_reorder(k, p, p->filter_user, p->filter);
	CPU_DNNL(dnnl_primitive_execute(p->conv, state_of(k)->stream, 4, args));
}

static float *sums(struct kernels *k, size_t count)
{
	return cpu_scratch(&conv_of(k)->sums, count * sizeof(float));
}

static void run_backward_weight(struct kernels *k, struct tensor dweight, struct tensor dbias,
				struct tensor dout, struct tensor x, struct conv c)
{
	struct key q = key_of(WEIGHT, &dout, &x, &dweight, dbias.data != NULL, c);
	float *bias = sums(k, (size_t)dout.dim[3]);
	struct primitive *p = prepare(k, &q, &dout, &x, &dweight, bias);
	dnnl_exec_arg_t args[] = {
		{ DNNL_ARG_SRC, p->x }, { DNNL_ARG_DIFF_DST, p->out },
		{ DNNL_ARG_DIFF_WEIGHTS, p->filter }, { DNNL_ARG_SCRATCHPAD, p->scratch },
		{ DNNL_ARG_DIFF_BIAS, p->bias },
	};

	CPU_DNNL(dnnl_primitive_execute(p->conv, state_of(k)->stream, dbias.data ? 5 : 4, args));
	run_reorder(k, p, p->filter, p->filter_user);
	for (int64_t i = 0; dbias.data && i < dout.dim[3]; i++)
		((float *)dbias.data)[i] += bias[i];
}

/* ---- the operations */

void cpu_conv2d(struct kernels *k, struct tensor out, struct tensor x, struct tensor weight,
		struct tensor bias, struct conv c)
{
	struct tensor wide = cpu_wide_space(k, OPERAND_RESULT, out);

	run_forward(k, wide, cpu_wide(k, OPERAND_A, x), cpu_wide(k, OPERAND_B, weight), bias, c);
	cpu_narrow(k, out, wide);
}

void cpu_conv2d_backward_data(struct kernels *k, struct tensor dx, struct tensor dout,
			      struct tensor weight, struct conv c)
{
	struct tensor wide = cpu_wide_space(k, OPERAND_RESULT, dx);

	run_backward_data(k, wide, cpu_wide(k, OPERAND_A, dout), cpu_wide(k, OPERAND_B, weight),
			  c);
	cpu_narrow(k, dx, wide);
}

void cpu_conv2d_backward_weight(struct kernels *k, struct tensor dweight, struct tensor dbias,
				struct tensor dout, struct tensor x, struct conv c)
{
	run_backward_weight(k, dweight, dbias, cpu_wide(k, OPERAND_A, dout),
			    cpu_wide(k, OPERAND_B, x), c);
}

/* ---- group norm: an image at a time */

static size_t aligned_floats(size_t n)
{
	return (n + 15) / 16 * 16;
}

static struct norm_image image_of(const struct tensor *x, int64_t n, int groups,
				  const struct tensor *weight, const struct tensor *bias,
				  const struct tensor *mean, const struct tensor *rstd)
{
	int64_t pixels = x->dim[1] * x->dim[2], size = pixels * x->dim[3];

	return (struct norm_image){
		.x = (const char *)x->data + (size_t)(n * size) * dtype_bytes(x->type),
		.type = x->type, .pixels = pixels, .channels = (int)x->dim[3], .groups = groups,
		.weight = weight->data, .bias = bias->data,
		.mean = (float *)mean->data + n * groups, .rstd = (float *)rstd->data + n * groups,
	};
}

static void check_norm(const struct tensor *x, const struct tensor *y, const struct tensor *mean,
		       const struct tensor *rstd, const struct tensor *weight, int groups)
{
	CHECK(x->rank == 4 && groups > 0 && x->dim[3] % groups == 0 && y->type == x->type);
	CHECK(x->type == DT_F32 || x->type == DT_BF16);
	CHECK(tensor_count(y) == tensor_count(x) && weight->dim[0] == x->dim[3]);
	CHECK(tensor_count(mean) == x->dim[0] * groups && tensor_count(rstd) == x->dim[0] * groups);
}

void cpu_group_norm(struct kernels *k, struct tensor out, struct tensor mean, struct tensor rstd,
		    struct tensor x, struct tensor weight, struct tensor bias, int groups,
		    float eps, bool silu)
{
	size_t each = aligned_floats(norm_scratch_floats((int)x.dim[3])), image;
	float *scratch = sums(k, each * (size_t)k->threads);
	const struct conv_loops *l = loops(k);

	check_norm(&x, &out, &mean, &rstd, &weight, groups);
	image = (size_t)(tensor_count(&x) / x.dim[0]) * dtype_bytes(x.type);
#pragma omp parallel for schedule(static) num_threads(k->threads)
	for (int64_t n = 0; n < x.dim[0]; n++) {
		struct norm_image g = image_of(&x, n, groups, &weight, &bias, &mean, &rstd);

		g.out = (char *)out.data + (size_t)n * image;
		g.eps = eps;
		g.silu = silu;
		g.scratch = scratch + each * (size_t)omp_get_thread_num();
		l->norm(&g);
	}
}

static void add_by_image(float *to, const float *from, int64_t images, int64_t stride,
			 int64_t count)
{
	for (int64_t n = 0; n < images; n++)
		for (int64_t i = 0; i < count; i++)
			to[i] += from[n * stride + i];
}

void cpu_group_norm_backward(struct kernels *k, struct tensor dx, struct tensor dweight,
			     struct tensor dbias, struct tensor dout, struct tensor x,
			     struct tensor weight, struct tensor bias, struct tensor mean,
			     struct tensor rstd, int groups, bool silu)
{
	size_t each = aligned_floats(norm_scratch_floats((int)x.dim[3])), image;
	size_t row = aligned_floats((size_t)x.dim[3]), rows = 2 * row * (size_t)x.dim[0];
	float *scratch = sums(k, each * (size_t)k->threads + rows);
	float *partial = scratch + each * (size_t)k->threads;
	const struct conv_loops *l = loops(k);

	check_norm(&x, &dx, &mean, &rstd, &weight, groups);
	CHECK(dout.type == x.type && tensor_count(&dout) == tensor_count(&x));
	image = (size_t)(tensor_count(&x) / x.dim[0]) * dtype_bytes(x.type);
#pragma omp parallel for schedule(static) num_threads(k->threads)
	for (int64_t n = 0; n < x.dim[0]; n++) {
		struct norm_image g = image_of(&x, n, groups, &weight, &bias, &mean, &rstd);

		g.dout = (const char *)dout.data + (size_t)n * image;
		g.out = (char *)dx.data + (size_t)n * image;
		g.dweight = partial + 2 * row * (size_t)n;
		g.dbias = g.dweight + row;
		g.silu = silu;
		g.scratch = scratch + each * (size_t)omp_get_thread_num();
		l->norm_backward(&g);
	}
	if (dweight.data)
		add_by_image(dweight.data, partial, x.dim[0], 2 * (int64_t)row, x.dim[3]);
	if (dbias.data)
		add_by_image(dbias.data, partial + row, x.dim[0], 2 * (int64_t)row, x.dim[3]);
}

/* ---- doubling */

static void check_upsample(const struct tensor *large, const struct tensor *small)
{
	CHECK(large->rank == 4 && small->rank == 4 && large->type == small->type);
	CHECK(small->type == DT_F32 || small->type == DT_BF16);
	CHECK(large->dim[0] == small->dim[0] && large->dim[3] == small->dim[3]);
	CHECK(large->dim[1] == 2 * small->dim[1] && large->dim[2] == 2 * small->dim[2]);
}

void cpu_upsample2(struct kernels *k, struct tensor out, struct tensor x)
{
	size_t row = (size_t)(x.dim[2] * x.dim[3]) * dtype_bytes(x.type);
	const struct conv_loops *l = loops(k);

	check_upsample(&out, &x);
#pragma omp parallel for schedule(static) num_threads(k->threads)
	for (int64_t i = 0; i < x.dim[0] * x.dim[1]; i++) {
		char *to = (char *)out.data + (size_t)i * 4 * row;

		l->upsample_row(to, (const char *)x.data + (size_t)i * row, x.type, x.dim[2],
				x.dim[3]);
		memcpy(to + 2 * row, to, 2 * row);
	}
}

void cpu_upsample2_backward(struct kernels *k, struct tensor dx, struct tensor dout)
{
	size_t row = (size_t)(dx.dim[2] * dx.dim[3]) * dtype_bytes(dx.type);
	const struct conv_loops *l = loops(k);

	check_upsample(&dout, &dx);
#pragma omp parallel for schedule(static) num_threads(k->threads)
	for (int64_t i = 0; i < dx.dim[0] * dx.dim[1]; i++) {
		const char *from = (const char *)dout.data + (size_t)i * 4 * row;

		l->upsample_row_backward((char *)dx.data + (size_t)i * row, from, from + 2 * row,
					 dx.type, dx.dim[2], dx.dim[3]);
	}
}

/* ---- elementwise */

#define CHUNK 16384   /* elements of a thread's turn */

void cpu_leaky_relu(struct kernels *k, struct tensor out, struct tensor x, float slope)
{
	int64_t count = tensor_count(&x);
	const struct conv_loops *l = loops(k);

	CHECK(out.type == x.type && tensor_count(&out) == count);
	CHECK(x.type == DT_F32 || x.type == DT_BF16);
#pragma omp parallel for schedule(static) num_threads(k->threads)
	for (int64_t at = 0; at < count; at += CHUNK)
		l->leaky_relu(out.data, x.data, x.type, slope, at,
			      at + CHUNK < count ? at + CHUNK : count);
}

void cpu_leaky_relu_backward(struct kernels *k, struct tensor dx, struct tensor dout,
			     struct tensor x, float slope)
{
	int64_t count = tensor_count(&x);
	const struct conv_loops *l = loops(k);

	CHECK(dx.type == x.type && dout.type == x.type && tensor_count(&dx) == count);
	CHECK((x.type == DT_F32 || x.type == DT_BF16) && tensor_count(&dout) == count);
#pragma omp parallel for schedule(static) num_threads(k->threads)
	for (int64_t at = 0; at < count; at += CHUNK)
		l->leaky_relu_backward(dx.data, dout.data, x.data, x.type, slope, at,
				       at + CHUNK < count ? at + CHUNK : count);
}

/* ---- the VAE's head: small arrays, f32 */

static void check_posterior(const struct tensor *z, const struct tensor *moments,
			    const struct tensor *images, const struct tensor *noise)
{
	CHECK(z->rank == 4 && z->type == DT_F32 && moments->type == DT_F32 &&
	      images->type == DT_F32);
	CHECK(2 * z->dim[3] == moments->dim[3] && 2 * tensor_count(z) == tensor_count(moments));
	CHECK(images->dim[0] == z->dim[0]);
	CHECK(!noise->data || (noise->type == DT_F32 && tensor_count(noise) == tensor_count(z)));
}

static float clamp_log_variance(float lv)
{
	return lv < -20 ? -20 : lv > 5 ? 5 : lv;
}

void cpu_posterior(struct kernels *k, struct tensor z, struct tensor kl, struct tensor moments,
		   struct tensor noise)
{
	int64_t C = z.dim[3], pixels = z.dim[1] * z.dim[2];

	check_posterior(&z, &moments, &kl, &noise);
#pragma omp parallel for schedule(static) num_threads(k->threads)
	for (int64_t n = 0; n < z.dim[0]; n++) {
		const float *m = (const float *)moments.data + n * pixels * 2 * C;
		const float *e = noise.data ? (const float *)noise.data + n * pixels * C : NULL;
		float *out = (float *)z.data + n * pixels * C;
		double sum = 0;

		for (int64_t i = 0; i < pixels * C; i++) {
			float mean = m[i / C * 2 * C + i % C];
			float lv = clamp_log_variance(m[i / C * 2 * C + C + i % C]);

			out[i] = mean + (e ? expf(lv / 2) * e[i] : 0);
			sum += (double)(mean * mean + expf(lv) - 1 - lv) / 2;
		}
		((float *)kl.data)[n] = (float)(sum / (double)(pixels * C));
	}
}

void cpu_posterior_backward(struct kernels *k, struct tensor dmoments, struct tensor dz,
			    struct tensor kl_weight, struct tensor moments, struct tensor noise)
{
	int64_t C = dz.dim[3], pixels = dz.dim[1] * dz.dim[2], count = pixels * C;

	check_posterior(&dz, &moments, &kl_weight, &noise);
	CHECK(dmoments.type == DT_F32 && tensor_count(&dmoments) == tensor_count(&moments));
#pragma omp parallel for schedule(static) num_threads(k->threads)
	for (int64_t i = 0; i < dz.dim[0] * count; i++) {
		int64_t at = i / C * 2 * C + i % C;
		float w = ((const float *)kl_weight.data)[i / count] / (float)count;
		float d = ((const float *)dz.data)[i], raw = ((const float *)moments.data)[at + C];
		float lv = clamp_log_variance(raw), dlv = w * (expf(lv) - 1) / 2;

		if (noise.data)
			dlv += d * expf(lv / 2) / 2 * ((const float *)noise.data)[i];
		((float *)dmoments.data)[at] = d + w * ((const float *)moments.data)[at];
		((float *)dmoments.data)[at + C] = raw == lv ? dlv : 0;
	}
}

/* ---- losses by image */

static void check_images(const struct tensor *loss, const struct tensor *dx, const struct tensor *x,
			 const struct tensor *weight)
{
	CHECK(x->rank == 2 && (x->type == DT_F32 || x->type == DT_BF16));
	CHECK(loss->type == DT_F32 && loss->dim[0] == x->dim[0]);
	CHECK(!dx->data || (dx->type == x->type && tensor_count(dx) == tensor_count(x)));
	CHECK(!dx->data || (weight->type == DT_F32 && weight->dim[0] == x->dim[0]));
}

void cpu_l1_images(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		   struct tensor target, struct tensor weight)
{
	int64_t E = x.dim[1];
	size_t bytes = (size_t)E * dtype_bytes(x.type);
	const struct conv_loops *l = loops(k);

	check_images(&loss, &dx, &x, &weight);
	CHECK(target.type == DT_F32 && tensor_count(&target) == tensor_count(&x));
#pragma omp parallel for schedule(static) num_threads(k->threads)
	for (int64_t n = 0; n < x.dim[0]; n++) {
		char *to = dx.data ? (char *)dx.data + (size_t)n * bytes : NULL;
		float step = dx.data ? ((const float *)weight.data)[n] / (float)E : 0;
		double sum = l->l1(to, (const char *)x.data + (size_t)n * bytes, x.type,
				   (const float *)target.data + n * E, step, E);

		((float *)loss.data)[n] = (float)(sum / (double)E);
	}
}

static float element(const struct tensor *t, int64_t i)
{
	return t->type == DT_BF16 ? bf16_to_float(((const uint16_t *)t->data)[i])
				  : ((const float *)t->data)[i];
}

/* A patch discriminator has few logits: plain loops. */
void cpu_hinge_images(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		      int sign, struct tensor weight)
{
	int64_t E = x.dim[1];

	(void)k;
	check_images(&loss, &dx, &x, &weight);
	CHECK(sign >= -1 && sign <= 1);
	for (int64_t n = 0; n < x.dim[0]; n++) {
		float step = dx.data ? ((const float *)weight.data)[n] / (float)E : 0;
		double sum = 0;

		for (int64_t i = n * E; i < (n + 1) * E; i++) {
			float v = element(&x, i), margin = 1 - (float)sign * v;
			float slope = sign == 0 ? -1 : margin > 0 ? (float)-sign : 0;

			sum += (double)(sign == 0 ? -v : margin > 0 ? margin : 0);
			if (dx.data && dx.type == DT_BF16)
				((uint16_t *)dx.data)[i] = bf16_from_float(slope * step);
			else if (dx.data)
				((float *)dx.data)[i] = slope * step;
		}
		((float *)loss.data)[n] = (float)(sum / (double)E);
	}
}
