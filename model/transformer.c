/* SPDX-License-Identifier: Apache-2.0
 * The transformer's parameters and rotary tables; see transformer.h. */
#include "config.h"
#include "model/transformer.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define INIT_DEVIATION 0.02f

static int add_matrix(struct params *p, const char *name, int64_t rows, int64_t columns)
{
	const int64_t dim[] = { rows, columns };

	return params_add(p, name, 2, dim, PARAM_NORMAL, INIT_DEVIATION);
}

/* One whose gradient is made by products alone. */
static int add_linear(struct params *p, const char *name, int64_t rows, int64_t columns)
{
	int i = add_matrix(p, name, rows, columns);

	params_by_product(p, i);
	return i;
}

static int add_vector(struct params *p, const char *name, int64_t n, enum param_init init)
{
	return params_add(p, name, 1, &n, init, 0);
}

/* rows 0: a norm's weight. */
static int add_block(struct params *p, int64_t layer, const char *name, int64_t rows,
		     int64_t columns)
{
	char full[PARAM_NAME_MAX];

	snprintf(full, sizeof full, "blocks.%lld.%s.weight", (long long)layer, name);
	return rows ? add_linear(p, full, rows, columns) : add_vector(p, full, columns, PARAM_ONE);
}

static void declare_blocks(struct params *p, const struct dims *m, int *block)
{
	for (int64_t l = 0; l < m->layers; l++) {
		int *b = block + l * BLOCK_WEIGHTS;

		b[W_ATTENTION_NORM] = add_block(p, l, "attention_norm", 0, m->d);
		b[W_QKV] = add_block(p, l, "qkv", 3 * m->d, m->d);
		b[W_ATTENTION_OUT] = add_block(p, l, "attention_out", m->d, m->d);
		b[W_FF_NORM] = add_block(p, l, "ff_norm", 0, m->d);
		b[W_GATE_UP] = add_block(p, l, "gate_up", 2 * m->F, m->d);
		b[W_DOWN] = add_block(p, l, "down", m->d, m->F);
	}
}

static void declare(struct params *p, const struct dims *m, int weight[WEIGHTS], int *block)
{
	int64_t D = dims_patch_width(m), W = dims_time_width(m);

	for (int i = 0; i < WEIGHTS; i++)
		weight[i] = -1;
	weight[W_TOKEN] = add_matrix(p, "token.weight", m->vocabulary.rows, m->d);
	declare_blocks(p, m, block);
	weight[W_NORM] = add_vector(p, "norm.weight", m->d, PARAM_ONE);
	weight[W_HEAD] = add_linear(p, "head.weight", m->vocabulary.rows, m->d);
	if (dims_patches(m) == 0)
		return;
	weight[W_PATCH_IN] = add_linear(p, "patch_in.weight", m->d, D);
	weight[W_PATCH_IN_BIAS] = add_vector(p, "patch_in.bias", m->d, PARAM_ZERO);
	weight[W_PATCH_OUT] = add_linear(p, "patch_out.weight", D, m->d);
	weight[W_PATCH_OUT_BIAS] = add_vector(p, "patch_out.bias", D, PARAM_ZERO);
	weight[W_TIME_IN] = add_linear(p, "time.in.weight", W, 2 * TIME_WAVES);
	weight[W_TIME_IN_BIAS] = add_vector(p, "time.in.bias", W, PARAM_ZERO);
	weight[W_TIME_OUT] = add_linear(p, "time.out.weight", W, W);
	weight[W_TIME_OUT_BIAS] = add_vector(p, "time.out.bias", W, PARAM_ZERO);
}

size_t memory_plan_total(const struct memory_plan *m)
{
	return m->weights + m->gradients + m->moments + m->average + m->activations
	       + m->constants + m->host;
}

void transformer_memory(const struct dims *dims, int64_t positions, bool training, bool average,
			struct memory_plan *out)
{
	int weight[WEIGHTS], *block = xcalloc((size_t)dims->layers * BLOCK_WEIGHTS, sizeof *block);
	struct params p;
	size_t n;

	params_init(&p, NULL, dims->act);
	declare(&p, dims, weight, block);
	n = (size_t)params_place(&p);
	*out = (struct memory_plan){
		.parameters = params_count(&p),
		.weights = n * (dims->act == DT_BF16 ? 6 : 4),
		.gradients = training ? n * 4 : 0,
		.moments = training ? 2 * n * dtype_bytes(dims->moments) : 0,
		.average = average ? n * 4 : 0,
		.constants = (size_t)(positions * (dims->d / dims->H)) * sizeof(float),
	};
	params_release(&p);
	xfree(block);
}

/* cos and sin of position * base^(-2 i / head width), i < head width / 2. */
static int make_rotary(struct transformer *m, int64_t positions, struct err *e)
{
	int64_t half = m->dims.d / m->dims.H / 2;
	size_t n = (size_t)(positions * half), bytes = n * sizeof(float);
	float *host = xmalloc(bytes);

	m->cosine = tensor_2d(m->k->ops->alloc(m->k, bytes), DT_F32, positions, half);
	m->sine = tensor_2d(m->k->ops->alloc(m->k, bytes), DT_F32, positions, half);
	for (int part = 0; part < 2 && m->cosine.data && m->sine.data; part++) {
		for (int64_t i = 0; i < positions * half; i++) {
			double turn = pow(m->dims.rope_base, -(double)(i % half) / (double)half);
			double angle = (double)(i / half) * turn;

			host[i] = (float)(part == 0 ? cos(angle) : sin(angle));
		}
		m->k->ops->upload(m->k, part == 0 ? m->cosine.data : m->sine.data, host, bytes);
	}
	xfree(host);
	FAIL_IF(!m->cosine.data || !m->sine.data, e, TF_ENOMEM,
		"no memory for rotary tables of %lld positions", (long long)positions);
	return 0;
}

int transformer_init(struct transformer *m, struct kernels *k, const struct dims *dims,
		     int64_t positions, bool training, struct err *e)
{
	int rc;

	CHECK(positions >= 1);
	TRY(dims_check(dims, e));
	*m = (struct transformer){ .dims = *dims, .k = k };
	m->block = xcalloc((size_t)dims->layers * BLOCK_WEIGHTS, sizeof *m->block);
	params_init(&m->params, k, dims->act);
	m->params.moments = dims->moments;
	m->params.stochastic = dims->stochastic;
	m->params.rounding = dims->rounding;
	declare(&m->params, dims, m->weight, m->block);
	rc = params_alloc(&m->params, training, e);
	if (rc == 0)
		rc = make_rotary(m, positions, e);
	if (rc < 0)
		transformer_release(m);
	return rc;
}

void transformer_release(struct transformer *m)
{
	if (!m->k)
		return;
	if (m->cosine.data)
		m->k->ops->release(m->k, m->cosine.data);
	if (m->sine.data)
		m->k->ops->release(m->k, m->sine.data);
	params_release(&m->params);
	xfree(m->block);
	*m = (struct transformer){ 0 };
}

void transformer_draw(struct transformer *m, uint64_t seed)
{
	params_draw(&m->params, seed);
}

struct tensor transformer_weight(const struct transformer *m, enum weight w)
{
	return params_value(&m->params, m->weight[w]);
}

struct tensor transformer_gradient(const struct transformer *m, enum weight w)
{
	return params_gradient(&m->params, m->weight[w]);
}

struct tensor transformer_block_weight(const struct transformer *m, int64_t layer,
				       enum block_weight w)
{
	return params_value(&m->params, m->block[layer * BLOCK_WEIGHTS + w]);
}

struct tensor transformer_block_gradient(const struct transformer *m, int64_t layer,
					 enum block_weight w)
{
	return params_gradient(&m->params, m->block[layer * BLOCK_WEIGHTS + w]);
}

struct dweight transformer_dweight(struct transformer *m, enum weight w)
{
	return params_dweight(&m->params, m->weight[w]);
}

struct dweight transformer_block_dweight(struct transformer *m, int64_t layer, enum block_weight w)
{
	return params_dweight(&m->params, m->block[layer * BLOCK_WEIGHTS + w]);
}

double transformer_flops_per_position(const struct dims *m)
{
	double block = 4.0 * (double)m->d * (double)m->d + 3.0 * (double)m->d * (double)m->F;
	double ends = (double)m->d * ((double)m->vocabulary.rows + 2 * (double)dims_patch_width(m));

	return 6 * ((double)m->layers * block + ends);
}
