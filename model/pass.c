/* SPDX-License-Identifier: Apache-2.0
 * Passes: their plan, what a batch uploads, what is read back; see pass.h. The mathematics is in
 * pass_forward.c and pass_backward.c. */
#include "config.h"
#include "model/pass_plan.h"
#include "model/schedule.h"
#include "lib/mem.h"

#include <math.h>
#include <string.h>

/* The letters that the tables of pass_plan.h are written in. */
struct sizes {
	int64_t N, B, T, H, d, F, V, M, I, IP, E, D, W, widest;
	enum dtype act;
};

static struct sizes sizes_of(const struct dims *m)
{
	int64_t P = dims_patches(m), I = m->images;

	return (struct sizes){
		.N = m->B * m->T, .B = m->B, .T = m->T, .H = m->H, .d = m->d, .F = m->F,
		.V = m->vocabulary.rows, .M = dims_round_rows(m, m->B * m->T), .I = I, .IP = I * P,
		.E = dims_latent(m), .D = dims_patch_width(m), .W = dims_time_width(m),
		.act = m->act, .widest = 3 * m->d > 2 * m->F ? 3 * m->d : 2 * m->F,
	};
}

#define ADD(name, type, a, b, c, d_) \
	plan_add(plan, #name, &slot[name], type, a, b, c, d_);
#define LETTERS(s) \
	const int64_t N = (s).N, B = (s).B, T = (s).T, H = (s).H, d = (s).d, F = (s).F, V = (s).V, \
		      M = (s).M, I = (s).I, IP = (s).IP, E = (s).E, D = (s).D, W = (s).W, \
		      widest = (s).widest; \
	const enum dtype act = (s).act; \
	(void)N, (void)B, (void)T, (void)H, (void)d, (void)F, (void)V, (void)M, (void)I, (void)IP, \
	(void)E, (void)D, (void)W, (void)widest, (void)act

static void plan_inputs(struct plan *plan, const struct dims *m, struct tensor slot[INPUTS])
{
	LETTERS(sizes_of(m));
	PASS_INPUTS(ADD)
}

static void plan_layer(struct plan *plan, const struct dims *m, struct tensor slot[LAYER_TENSORS])
{
	LETTERS(sizes_of(m));
	PASS_LAYER(ADD)
}

static void plan_ends(struct plan *plan, const struct dims *m, bool training,
		      struct tensor slot[PASS_TENSORS])
{
	LETTERS(sizes_of(m));
	PASS_ENDS(ADD)
	if (training) {
		PASS_GRADIENTS(ADD)
		if (m->fp8) {
			PASS_FP8(ADD)
		}
	}
}

static void plan_all(struct pass *p, const struct dims *m)
{
	const int64_t N = m->B * m->T, d = m->d;

	plan_inputs(&p->inputs, m, p->input);
	for (int64_t l = 0; l < m->layers; l++)
		if (pass_home(m, p->training, l) == l)
			plan_layer(&p->plan, m, p->layer[l]);
		else if (p->training)
			plan_add(&p->plan, "X_IN", &p->layer[l][X_IN], m->act, N, d, 0, 0);
	plan_ends(&p->plan, m, p->training, p->t);
}

/* What the layers share, once it has its place. */
static void share_layers(struct pass *p, const struct dims *m)
{
	for (int64_t l = 0; l < m->layers; l++) {
		struct tensor *home = p->layer[pass_home(m, p->training, l)];
		struct tensor own = p->layer[l][X_IN];

		memcpy(p->layer[l], home, sizeof p->layer[l]);
		if (p->training)
			p->layer[l][X_IN] = own;
	}
}

void pass_memory(const struct dims *dims, bool training, struct memory_plan *out)
{
	struct pass p = { .training = training };
	size_t rows = (size_t)(dims->B * dims->T);

	p.layer = xcalloc((size_t)dims->layers, sizeof *p.layer);
	plan_all(&p, dims);
	out->activations += p.inputs.bytes + p.plan.bytes;
	out->host += p.inputs.bytes + rows * 6 * sizeof(int32_t)
		     + (size_t)(dims->images * (dims_latent(dims) + 4)) * sizeof(float);
	xfree(p.inputs.entry);
	xfree(p.plan.entry);
	xfree(p.layer);
}

/* Scratch grows by steps of a quarter and is kept. The largest use is of products with a bias in
 * bf16: their result in f32 (patches into the model, here). */
size_t pass_scratch(const struct dims *dims)
{
	size_t patches = (size_t)(dims->images * dims_patches(dims));

	return ((size_t)16 << 20) + patches * (size_t)dims->d * sizeof(float) * 5 / 4;
}

static int64_t larger(int64_t a, int64_t b)
{
	return a > b ? a : b;
}

/* Of the operands of all products, forward and backward, the largest of each place (see
 * kernels/cpu/cpu.h): rows or their gradients; weights, or rows that a weight's gradient is of;
 * results. */
size_t pass_widening(const struct dims *dims)
{
	int64_t rows = dims->B * dims->T, d = dims->d, F = dims->F, V = dims->vocabulary.rows;
	int64_t row = larger(larger(3 * d, 2 * F), V);
	int64_t other = larger(rows * larger(d, F), row * d);

	return (size_t)(2 * rows * row + other) * sizeof(float);
}

int pass_new(struct transformer *m, bool training, struct pass **out, struct err *e)
{
	struct pass *p = xcalloc(1, sizeof *p);
	int rc;

	CHECK(!training || m->params.grad);
	p->m = m;
	p->k = m->k;
	p->training = training;
	p->layer = xcalloc((size_t)m->dims.layers, sizeof *p->layer);
	plan_all(p, &m->dims);
	p->host = xcalloc(1, p->inputs.bytes);
	rc = plan_alloc(&p->inputs, p->k, "batches", e);
	if (rc == 0)
		rc = plan_alloc(&p->plan, p->k, "activations", e);
	if (rc < 0) {
		pass_free(p);
		return rc;
	}
	share_layers(p, &m->dims);
	p->k->ops->zero(p->k, p->t[SUMS].data, tensor_bytes(&p->t[SUMS]));
	*out = p;
	return 0;
}

void pass_free(struct pass *p)
{
	if (!p)
		return;
	plan_release(&p->inputs, p->k);
	plan_release(&p->plan, p->k);
	xfree(p->layer);
	xfree(p->host);
	xfree(p);
}

/* The host's mirror of an input. */
static void *mirror(const struct pass *p, enum pass_input i)
{
	return p->host + p->inputs.entry[i].at;
}

static void load_targets(struct pass *p, const struct batch *b, int64_t total)
{
	int32_t *row = mirror(p, LM_ROW), *target = mirror(p, LM_TARGET);
	float *weight = mirror(p, LM_WEIGHT), share = total > 0 ? 1 / (float)total : 0;

	p->targets = b->targets;
	p->target_rows = dims_round_rows(&p->m->dims, b->targets);
	for (int64_t i = 0; i < p->target_rows; i++) {
		bool used = i < b->targets;

		row[i] = used ? b->lm_row[i] : -1;
		target[i] = used ? b->lm_target[i] : -1;
		weight[i] = used ? share : 0;
	}
}

static void load_patches(struct pass *p, const struct batch *b, const struct pass_totals *totals)
{
	int64_t P = dims_patches(&p->m->dims);
	int32_t *row = mirror(p, PATCH_ROW);
	float *share = mirror(p, PATCH_SHARE), *weight = mirror(p, PATCH_WEIGHT);
	float one = totals->noised > 0 ? 1 / (float)(totals->noised * P) : 0;

	for (int64_t i = 0; i < p->image_slots; i++) {
		bool used = i < b->images, noised = used && b->image_time[i] > 0;

		for (int64_t n = i * P; n < (i + 1) * P; n++) {
			row[n] = used ? b->image_row[i] + (int32_t)(n - i * P) : -1;
			share[n] = noised ? one : 0;
			weight[n] = share[n] * totals->lambda;
		}
	}
}

static void load_images(struct pass *p, const struct batch *b)
{
	float *time = mirror(p, TIME), *signal = mirror(p, SIGNAL), *sigma = mirror(p, SIGMA);
	int64_t *sample = mirror(p, SAMPLE), E = dims_latent(&p->m->dims);

	for (int64_t i = 0; i < p->image_slots; i++) {
		int32_t t = i < b->images ? b->image_time[i] : 0;
		double abar = schedule_abar(t);

		time[i] = t > 0 ? (float)t : 1;
		signal[i] = (float)sqrt(abar);
		sigma[i] = (float)sqrt(1 - abar);
		sample[i] = i < b->images ? b->image_sample[i] : 0;
	}
	memcpy(mirror(p, LATENT), b->latent, (size_t)(b->images * E) * sizeof(float));
	if (b->noise)
		memcpy(mirror(p, GIVEN_NOISE), b->noise, (size_t)(b->images * E) * sizeof(float));
}

void pass_load(struct pass *p, const struct batch *b, const struct pass_totals *totals)
{
	const struct dims *m = &p->m->dims;
	size_t rows = (size_t)(m->B * m->T) * sizeof(int32_t), bytes = p->inputs.bytes;

	CHECK(b->dims->B == m->B && b->dims->T == m->T && b->images <= m->images);
	memcpy(mirror(p, TOKEN), b->token, rows);
	memcpy(mirror(p, START), b->start, rows);
	memcpy(mirror(p, LIMIT), b->limit, rows);
	memcpy(mirror(p, POSITION), b->position, rows);
	p->lambda = totals->lambda;
	p->images = b->images;
	p->image_slots = dims_round_images(m, b->images);
	load_targets(p, b, totals->targets);
	load_patches(p, b, totals);
	load_images(p, b);
	if (!b->noise)
		bytes = p->inputs.entry[GIVEN_NOISE].at;
	p->k->ops->upload(p->k, p->inputs.memory, p->host, bytes);
	if (p->images == 0)
		return;
	if (b->noise)
		p->k->ops->copy(p->k, p->t[NOISE].data, p->input[GIVEN_NOISE].data,
				tensor_bytes(&p->t[NOISE]));
	else
		p->k->ops->normals(p->k, pass_images(p, p->t[NOISE]), b->noise_seed,
				   b->noise_purpose, pass_images(p, p->input[SAMPLE]));
}

void pass_run(struct pass *p, const struct batch *b, const struct pass_totals *totals)
{
	pass_load(p, b, totals);
	pass_forward(p);
	if (p->training)
		pass_backward(p);
}

void pass_losses_of(const struct pass *p, const float *sums, struct pass_losses *out)
{
	out->lm = sums[0];
	out->diffusion = sums[1];
	out->loss = out->lm + (double)p->lambda * out->diffusion;
}

void pass_losses(struct pass *p, struct pass_losses *out)
{
	float sums[2];

	p->k->ops->download(p->k, sums, p->t[SUMS].data, sizeof sums);
	p->k->ops->zero(p->k, p->t[SUMS].data, sizeof sums);
	pass_losses_of(p, sums, out);
}

void pass_losses_begin(struct pass *p, struct fetch *f, float *sums)
{
	p->k->ops->fetch_begin(p->k, f, sums, p->t[SUMS].data, tensor_bytes(&p->t[SUMS]));
	p->k->ops->zero(p->k, p->t[SUMS].data, tensor_bytes(&p->t[SUMS]));
}

void pass_spoil(struct pass *p)
{
	p->k->ops->fill(p->k, p->t[SUMS], NAN);
	p->k->ops->fill(p->k, transformer_gradient(p->m, W_TOKEN), NAN);
}

/* Means over each picture's patches. */
static void read_image_loss(struct pass *p, const struct batch *b, float *out)
{
	int64_t P = dims_patches(&p->m->dims), n = b->images * P;
	float *patch = xmalloc((size_t)(n + 1) * sizeof *patch);

	if (n > 0)
		p->k->ops->download(p->k, patch, p->t[PATCH_LOSS].data, (size_t)n * sizeof *patch);
	for (int64_t i = 0; i < b->images; i++) {
		double sum = 0;

		for (int64_t j = i * P; j < (i + 1) * P; j++)
			sum += patch[j];
		out[i] = b->image_time[i] > 0 ? (float)(sum / (double)P) : 0;
	}
	xfree(patch);
}

void pass_evaluate(struct pass *p, const struct batch *b, float *token_loss, float *image_loss)
{
	const struct pass_totals totals = { b->targets, b->noised, 1 };

	p->evaluating = true;
	pass_load(p, b, &totals);
	pass_forward(p);
	p->evaluating = false;
	if (token_loss && b->targets > 0)
		p->k->ops->download(p->k, token_loss, p->t[LM_LOSS].data,
				    (size_t)b->targets * sizeof *token_loss);
	if (image_loss)
		read_image_loss(p, b, image_loss);
	p->k->ops->sync(p->k);
}

/* n elements of a device tensor as f32 on the host. */
static void read_floats(struct kernels *k, const struct tensor *t, int64_t n, float *out)
{
	uint16_t *half;

	if (t->type == DT_F32) {
		k->ops->download(k, out, t->data, (size_t)n * sizeof *out);
		return;
	}
	half = xmalloc((size_t)n * sizeof *half);
	k->ops->download(k, half, t->data, (size_t)n * sizeof *half);
	for (int64_t i = 0; i < n; i++)
		out[i] = bf16_to_float(half[i]);
	xfree(half);
}

static void read_logits(struct pass *p, float *out)
{
	int64_t V = p->m->dims.vocabulary.rows, ids = p->m->dims.vocabulary.ids;
	float *row = xmalloc((size_t)(p->targets * V) * sizeof *row);

	read_floats(p->k, &p->t[LOGITS], p->targets * V, row);
	for (int64_t i = 0; i < p->targets; i++)
		memcpy(out + i * ids, row + i * V, (size_t)ids * sizeof *out);
	xfree(row);
}

/* Back from patches to the order of the latent (row, column, channel). */
static void read_predicted(struct pass *p, float *out)
{
	const struct dims *m = &p->m->dims;
	int64_t n = p->images * dims_latent(m), k = m->patch, across = m->w / k;
	float *patch = xmalloc((size_t)n * sizeof *patch);

	read_floats(p->k, &p->t[PREDICTED], n, patch);
	for (int64_t i = 0; i < n; i++) {
		int64_t c = i % m->c, x = i / m->c % m->w, y = i / m->c / m->w % m->h;
		int64_t image = i / dims_latent(m);
		int64_t row = image * dims_patches(m) + y / k * across + x / k;

		out[i] = patch[row * dims_patch_width(m) + (y % k * k + x % k) * m->c + c];
	}
	xfree(patch);
}

void pass_read(struct pass *p, float *logits, float *predicted, float *noise)
{
	if (logits && p->targets > 0)
		read_logits(p, logits);
	if (predicted && p->images > 0)
		read_predicted(p, predicted);
	if (noise && p->images > 0)
		read_floats(p->k, &p->t[NOISE], p->images * dims_latent(&p->m->dims), noise);
}
