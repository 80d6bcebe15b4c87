/* SPDX-License-Identifier: Apache-2.0
 * VAE training (vae_train.h). A step runs its batch in micro-batches through one tape for the
 * whole VAE and, after its start, one for the discriminator; gradients add up, then both nets
 * are updated. Losses are fetched once a step, without a wait. The VAE belongs to the caller. */
#include "config.h"
#include "model/layers.h"
#include "model/vae_net.h"
#include "model/vae_train_plan.h"
#include "lib/mem.h"

#include <math.h>

const struct vae_train_config vae_train_config_small = {
	.steps = 2500,
	.warmup = 50,
	.batch = 32,
	.size = 64,
	.lr = 2e-3,
	.lr_final = 4e-5,
	.beta1 = 0.9,
	.beta2 = 0.95,
	.eps = 1e-8,
	.weight_decay = 0.01,
	.clip = 1,
	.l1_weight = 1, .kl_weight = 1e-4, .gan_lr = 2e-4,
	.gan = { 64, 3, 8 },
};

static int check_optimiser(const struct vae_train_config *c, struct err *e)
{
	const struct { const char *name; double value, most;
	} row[] = {
		{ "lr", c->lr, 10 },
		{ "lr_final", c->lr_final, 10 },
		{ "beta1", c->beta1, 0.999999 },
		{ "beta2", c->beta2, 0.999999 },
		{ "eps", c->eps, 1 },
		{ "weight_decay", c->weight_decay, 10 },
		{ "clip", c->clip, 1e6 },
		{ "l1_weight", c->l1_weight, 1e6 },
		{ "kl_weight", c->kl_weight, 1e6 },
		{ "gan_weight", c->gan_weight, 1e6 },
		{ "gan_lr", c->gan_lr, 10 },
	};

	for (size_t i = 0; i < ARRAY_LEN(row); i++)
		FAIL_IF(!(row[i].value >= 0 && row[i].value <= row[i].most), e, TF_EINVALID,
			"VAE training: %s is %g, expected 0 to %g", row[i].name, row[i].value,
			row[i].most);
	return 0;
}

int vae_train_config_check(const struct vae_train_config *c, const struct vae_config *v,
			   struct err *e)
{
	int factor = vae_factor(v);

	TRY(vae_config_check(v, e));
	TRY(check_optimiser(c, e));
	FAIL_IF(c->steps < 1 || c->warmup < 0 || c->gan_start < 0, e, TF_EINVALID,
		"VAE training: %lld steps, warm-up %lld, discriminator from step %lld; expected at "
		"least "
		"1, 0 and 0",
		(long long)c->steps, (long long)c->warmup, (long long)c->gan_start);
	FAIL_IF(c->batch < 1 || c->batch > 65536, e, TF_EINVALID,
		"VAE training: batch is %d, expected 1 to 65536", c->batch);
	FAIL_IF(c->micro_batch < 0 || (c->micro_batch && c->batch % c->micro_batch), e, TF_EINVALID,
		"VAE training: micro_batch is %d, expected a divisor of batch %d", c->micro_batch,
		c->batch);
	FAIL_IF(c->size < factor || c->size % factor || c->size > 4096, e, TF_EINVALID,
		"VAE training: pictures of side %d, expected a multiple of %d up to 4096", c->size,
		factor);
	return c->gan_weight > 0 ? patchgan_config_check(&c->gan, c->size, e) : 0;
}

/* ---- making */

static int lay_out(struct vae_train *t, struct err *e)
{
	const struct vae_config *v = vae_config_of(t->vae);
	int64_t n = t->c.micro_batch, side = t->c.size, small = side / vae_factor(v);
	int z;

	t->tape = tape_new(t->params);
	t->image = tape_input(t->tape, DT_F32, n, side, side, 3, false);
	t->noise = tape_input(t->tape, DT_F32, n, small, small, v->latent_channels, false);
	t->kl_weight = tape_input_1d(t->tape, n);
	t->moments = vae_net_encode(t->tape, t->image, v);
	z = layer_posterior(t->tape, t->moments, t->noise, t->kl_weight, &t->kl);
	t->reconstruction = vae_net_decode(t->tape, z, v);
	tape_output(t->tape, t->kl);
	tape_output(t->tape, t->reconstruction);
	return tape_plan(t->tape, true, e);
}

static int lay_out_judge(struct vae_train *t, struct err *e)
{
	int64_t n = t->c.micro_batch, side = t->c.size;

	t->judge_tape = tape_new(&t->judge);
	t->shown = tape_input(t->judge_tape, DT_F32, n, side, side, 3, true);
	t->logits = patchgan_layers(t->judge_tape, t->shown, &t->c.gan);
	tape_output(t->judge_tape, t->logits);
	TRY(tape_plan(t->judge_tape, true, e));
	params_draw(&t->judge, t->c.seed + 1);
	return 0;
}

static int take(struct vae_train *t, void *field, size_t bytes, struct err *e)
{
	void **at = field;

	*at = t->k->ops->alloc(t->k, bytes);
	FAIL_IF(!*at, e, TF_ENOMEM, "no memory for a batch of pictures: %zu KiB wanted",
		bytes >> 10);
	return 0;
}

static int take_constant(struct vae_train *t, struct tensor *x, float value, struct err *e)
{
	*x = tensor_1d(NULL, DT_F32, t->c.micro_batch);
	TRY(take(t, &x->data, tensor_bytes(x), e));
	t->k->ops->fill(t->k, *x, value);
	return 0;
}

static int take_all(struct vae_train *t, struct err *e)
{
	const struct vae_train_config *c = &t->c;
	int64_t elements = (int64_t)c->size * c->size * 3, n = c->micro_batch;

	t->target = tensor_2d(NULL, DT_F32, n, elements);
	t->samples = tensor_1d(NULL, DT_I64, n);
	TRY(take(t, &t->target.data, tensor_bytes(&t->target), e));
	TRY(take(t, &t->samples.data, tensor_bytes(&t->samples), e));
	TRY(take_constant(t, &t->weight, (float)(c->l1_weight / c->batch), e));
	TRY(take_constant(t, &t->gan_weight, (float)(c->gan_weight / c->batch), e));
	TRY(take_constant(t, &t->judge_weight, 0.5f / (float)c->batch, e));
	TRY(take(t, &t->figure, (size_t)(FIGURES * c->batch) * sizeof *t->figure, e));
	t->host = xcalloc((size_t)(n * elements), sizeof *t->host);
	t->host_samples = xcalloc((size_t)n, sizeof *t->host_samples);
	return 0;
}

int vae_train_new(struct vae *v, const struct vae_train_config *c, struct vae_train **out,
		  struct err *e)
{
	struct vae_train *t;
	int rc;

	TRY(vae_train_config_check(c, vae_config_of(v), e));
	t = xcalloc(1, sizeof *t);
	t->vae = v;
	t->params = vae_params(v);
	t->k = t->params->k;
	t->c = *c;
	if (!t->c.micro_batch)
		t->c.micro_batch = c->batch;
	params_init(&t->judge, t->k, t->params->act);
	rc = lay_out(t, e);
	if (rc == 0 && c->gan_weight > 0)
		rc = lay_out_judge(t, e);
	if (rc == 0)
		rc = take_all(t, e);
	if (rc < 0) {
		vae_train_free(t);
		return rc;
	}
	t->k->ops->fill(t->k, tape_value(t->tape, t->kl_weight), (float)(c->kl_weight / c->batch));
	*out = t;
	return 0;
}

void vae_train_free(struct vae_train *t)
{
	if (!t)
		return;
	tape_free(t->tape);
	tape_free(t->judge_tape);
	params_release(&t->judge);
	if (t->figure)
		t->k->ops->release(t->k, t->figure);
	struct tensor *taken[] = { &t->target, &t->samples, &t->weight, &t->gan_weight,
				   &t->judge_weight };
	for (size_t i = 0; i < ARRAY_LEN(taken); i++)
		if (taken[i]->data)
			t->k->ops->release(t->k, taken[i]->data);
	xfree(t->host);
	xfree(t->host_samples);
	xfree(t);
}

int64_t vae_train_step_count(const struct vae_train *t)
{
	return t->step;
}

size_t vae_train_bytes(const struct vae_train *t)
{
	size_t bytes = tape_bytes(t->tape) + tensor_bytes(&t->target);

	if (t->judge_tape)
		bytes += tape_bytes(t->judge_tape) + (size_t)t->judge.total * 4 * sizeof(float);
	return bytes + (size_t)t->params->total * (4 * sizeof(float) +
						   (t->params->resident ? sizeof(uint16_t) : 0));
}

/* ---- a step */

static struct tensor by_image(struct tensor x)
{
	return tensor_2d(x.data, x.type, x.dim[0], tensor_count(&x) / x.dim[0]);
}

static struct tensor figures(const struct vae_train *t, enum figure f, int64_t first)
{
	return tensor_1d(t->figure + f * t->c.batch + first, DT_F32, t->c.micro_batch);
}

static void load(struct vae_train *t, const uint8_t *images, int64_t first)
{
	const struct kernel_ops *ops = t->k->ops;
	struct tensor noise = tape_value(t->tape, t->noise), image = tape_value(t->tape, t->image);
	int64_t count = tensor_count(&t->target);

	for (int64_t i = 0; i < count; i++)
		t->host[i] = (float)images[i] / 127.5f - 1;
	ops->upload(t->k, t->target.data, t->host, (size_t)count * sizeof *t->host);
	ops->copy(t->k, image.data, t->target.data, tensor_bytes(&image));
	for (int64_t i = 0; i < t->c.micro_batch; i++)
		t->host_samples[i] = t->step * t->c.batch + first + i;
	ops->upload(t->k, t->samples.data, t->host_samples, tensor_bytes(&t->samples));
	ops->normals(t->k, by_image(noise), t->c.seed, PHILOX_VAE, t->samples);
}

/* The discriminator on pictures already in its input: their hinge with this sign; back to the
 * pictures (sign 0) or into the discriminator's gradients. */
static void judge(struct vae_train *t, int sign, enum figure f, int64_t first)
{
	struct tensor weight = sign ? t->judge_weight : t->gan_weight;

	t->k->ops->hinge_images(t->k, figures(t, f, first),
				by_image(tape_gradient(t->judge_tape, t->logits)),
				by_image(tape_value(t->judge_tape, t->logits)), sign, weight);
	tape_backward(t->judge_tape, sign ? TAPE_PARAMETERS : TAPE_INPUTS);
}

static void show(struct vae_train *t, struct tensor pictures)
{
	struct tensor shown = tape_value(t->judge_tape, t->shown);

	t->k->ops->copy(t->k, shown.data, pictures.data, tensor_bytes(&shown));
	tape_forward(t->judge_tape);
}

/* Writes the gradient of the reconstruction: one term after the other, each adding its own.
 * Terms that look at pictures through a frozen net of their own (perceptual, identity) belong
 * after the adversarial one and look like it. */
static void reconstruction_gradient(struct vae_train *t, bool gan, int64_t first)
{
	struct tensor y = tape_value(t->tape, t->reconstruction);
	struct tensor dy = tape_gradient(t->tape, t->reconstruction);

	t->k->ops->l1_images(t->k, figures(t, L1, first), by_image(dy), by_image(y), t->target,
			     t->weight);
	if (!gan)
		return;
	show(t, y);
	judge(t, 0, GAN, first);
	t->k->ops->add(t->k, dy, dy, tape_gradient(t->judge_tape, t->shown));
	judge(t, -1, FAKE, first);
	show(t, t->target);
	judge(t, 1, REAL, first);
}

static void micro_step(struct vae_train *t, const uint8_t *images, bool gan, int64_t first)
{
	struct tensor kl;

	load(t, images, first);
	tape_forward(t->tape);
	kl = tape_value(t->tape, t->kl);
	t->k->ops->copy(t->k, figures(t, KL, first).data, kl.data, tensor_bytes(&kl));
	reconstruction_gradient(t, gan, first);
	tape_backward(t->tape, TAPE_PARAMETERS);
}

static double learning_rate(const struct vae_train *t, int64_t step)
{
	const struct vae_train_config *c = &t->c;
	double part;

	if (step < c->warmup)
		return c->lr * (double)(step + 1) / (double)c->warmup;
	if (step >= c->steps)
		return c->lr_final;
	part = (double)(step - c->warmup) / (double)(c->steps - c->warmup);
	return c->lr_final + (c->lr - c->lr_final) * 0.5 * (1 + cos(part * 3.14159265358979323846));
}

static bool has_judge(const struct vae_train *t, int64_t step)
{
	return t->c.gan_weight > 0 && step >= t->c.gan_start;
}

size_t vae_train_figures(const struct vae_train *t)
{
	return (size_t)(FIGURES * t->c.batch + NORMS);
}

void vae_train_spoil(struct vae_train *t)
{
	t->spoil = true;
}

static void spoil(struct vae_train *t)
{
	t->k->ops->fill(t->k, figures(t, L1, 0), NAN);
	t->k->ops->fill(t->k, params_gradient(t->params, 0), NAN);
	t->spoil = false;
}

static void update(struct vae_train *t, bool gan)
{
	const struct vae_train_config *c = &t->c;
	double lr = learning_rate(t, t->step);
	struct params_update u = {
		.lr = (float)lr,
		.beta1 = (float)c->beta1,
		.beta2 = (float)c->beta2,
		.eps = (float)c->eps,
		.weight_decay = (float)c->weight_decay,
		.clip = (float)c->clip,
		.grad_scale = 1,
	};

	params_step(t->params, &u);
	if (gan) {
		u.lr = (float)(lr * c->gan_lr / (c->lr > 0 ? c->lr : 1));
		params_step(&t->judge, &u);
	}
}

/* The figures of the step just launched set out for the host. */
static int take_off(struct vae_train *t, bool gan, struct fetch *fetch, float *host)
{
	size_t count = (size_t)((gan ? FIGURES : KL + 1) * t->c.batch);
	float *norms = host + FIGURES * t->c.batch;

	t->k->ops->fetch_begin(t->k, &fetch[0], host, t->figure, count * sizeof *host);
	params_norm2_begin(t->params, &fetch[1], norms + NORM);
	if (gan)
		params_norm2_begin(&t->judge, &fetch[2], norms + JUDGE_NORM);
	return gan ? 3 : 2;
}

int vae_train_launch(struct vae_train *t, const uint8_t *images, struct fetch *fetch, float *host)
{
	const struct vae_train_config *c = &t->c;
	bool gan = has_judge(t, t->step);
	int64_t elements = (int64_t)c->size * c->size * 3;

	params_zero_gradients(t->params);
	if (gan)
		params_zero_gradients(&t->judge);
	for (int64_t first = 0; first < c->batch; first += c->micro_batch)
		micro_step(t, images + first * elements, gan, first);
	if (t->spoil)
		spoil(t);
	update(t, gan);
	t->step++;
	return take_off(t, gan, fetch, host);
}

static double mean_of(const struct vae_train *t, const float *host, enum figure f)
{
	double sum = 0;

	for (int i = 0; i < t->c.batch; i++)
		sum += host[f * t->c.batch + i];
	return sum / t->c.batch;
}

void vae_train_settle(struct vae_train *t, int64_t step, const float *host, struct vae_losses *out)
{
	const float *norms = host + FIGURES * t->c.batch;
	bool gan = has_judge(t, step), judged = true;

	*out = (struct vae_losses){ .lr = learning_rate(t, step) };
	out->l1 = mean_of(t, host, L1);
	out->kl = mean_of(t, host, KL);
	out->grad_norm = sqrt((double)norms[NORM]);
	if (gan) {
		out->gan = mean_of(t, host, GAN);
		out->discriminator =
			0.5 * (mean_of(t, host, REAL) + mean_of(t, host, FAKE));
		judged = isfinite(norms[JUDGE_NORM]);
	}
	out->loss =
		t->c.l1_weight * out->l1 + t->c.kl_weight * out->kl + t->c.gan_weight * out->gan;
	t->params->left_out += !isfinite(norms[NORM]);
	t->judge.left_out += !judged;
	out->counts = isfinite(norms[NORM]) && judged;
}

/* ---- measuring */

void vae_statistics_add(struct vae_statistics *s, const float *latents, int64_t pixels)
{
	for (int64_t p = 0; p < pixels; p++)
		for (int c = 0; c < s->channels; c++) {
			double x = (double)latents[p * s->channels + c];

			s->sum[c] += x;
			s->squares[c] += x * x;
		}
	s->count += (double)pixels;
}

void vae_statistics_read(const struct vae_statistics *s, float *mean, float *deviation)
{
	double n = s->count > 0 ? s->count : 1;

	for (int c = 0; c < s->channels; c++) {
		double m = s->sum[c] / n, variance = s->squares[c] / n - m * m;

		mean[c] = (float)m;
		deviation[c] = variance > 1e-12 ? (float)sqrt(variance) : 1;
	}
}

double vae_psnr(const float *a, const float *b, int64_t count)
{
	double sum = 0;

	for (int64_t i = 0; i < count; i++) {
		double d = fmin(fmax(a[i], -1), 1) - fmin(fmax(b[i], -1), 1);

		sum += d * d;
	}
	return 10 * log10(4 * (double)count / (sum > 1e-12 ? sum : 1e-12));
}
