/* SPDX-License-Identifier: Apache-2.0
 * Reference of the losses, the diffusion operations and the optimiser of kernels.def. */
#include "config.h"
#include "kernels/ref/ref.h"

#include <math.h>

/* log of the sum of exponentials of one row of logits. */
static double row_lse(const struct tensor *logits, int64_t row, int64_t vocab)
{
	int64_t at = row * logits->dim[1];
	double most = -INFINITY, sum = 0;

	for (int64_t v = 0; v < vocab; v++)
		most = fmax(most, ref_get(logits, at + v));
	for (int64_t v = 0; v < vocab; v++)
		sum += exp(ref_get(logits, at + v) - most);
	return most + log(sum);
}

void ref_cross_entropy(struct kernels *k, struct tensor loss, struct tensor logits,
		       struct tensor target, struct tensor weight, int64_t vocab, bool backward)
{
	int64_t width = logits.dim[1];

	(void)k;
	CHECK(logits.rank == 2 && vocab > 0 && vocab <= width && loss.type == DT_F32);
	CHECK(tensor_count(&loss) == logits.dim[0] && tensor_count(&target) == logits.dim[0]);
	for (int64_t m = 0; m < logits.dim[0]; m++) {
		int64_t y = ref_index(&target, m);
		double lse = row_lse(&logits, m, vocab);

		CHECK(y < vocab);
		ref_put(&loss, m, y < 0 ? 0 : lse - ref_get(&logits, m * width + y));
		for (int64_t v = 0; backward && v < width; v++) {
			double p = v < vocab ? exp(ref_get(&logits, m * width + v) - lse) : 0;

			ref_put(&logits, m * width + v,
				y < 0 ? 0 : ref_get(&weight, m) * (p - (v == y)));
		}
	}
}

void ref_mse_rows(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		  struct tensor target, struct tensor weight)
{
	int64_t width = x.dim[1];

	(void)k;
	CHECK(x.rank == 2 && target.type == DT_F32 && tensor_count(&target) == tensor_count(&x));
	CHECK(tensor_count(&loss) == x.dim[0] && tensor_count(&weight) == x.dim[0]);
	for (int64_t m = 0; m < x.dim[0]; m++) {
		double sum = 0;

		for (int64_t c = 0; c < width; c++) {
			double d = (double)ref_get(&x, m * width + c) -
				   ref_get(&target, m * width + c);

			sum += d * d;
			if (dx.data)
				ref_put(&dx, m * width + c, ref_get(&weight, m) * 2 * d / width);
		}
		ref_put(&loss, m, sum / width);
	}
}

void ref_argmax(struct kernels *k, struct tensor out, struct tensor logits, int64_t vocab)
{
	(void)k;
	CHECK(out.type == DT_I32 && tensor_count(&out) == logits.dim[0] && vocab <= logits.dim[1]);
	for (int64_t m = 0; m < logits.dim[0]; m++) {
		int32_t best = 0;

		for (int64_t v = 1; v < vocab; v++)
			if (ref_get(&logits, m * logits.dim[1] + v) >
			    ref_get(&logits, m * logits.dim[1] + best))
				best = (int32_t)v;
		((int32_t *)out.data)[m] = best;
	}
}

/* A new moment, rounded to the type it is kept in. */
static void put_moment(const struct adamw *a, void *array, int64_t i, double value,
		       uint32_t chance)
{
	struct tensor t = tensor_1d(array, a->moments, a->n);

	if (a->moments == DT_BF16 && a->stochastic)
		((uint16_t *)array)[i] = bf16_by_chance((float)value, chance);
	else
		ref_put(&t, i, value);
}

static void adamw_one(const struct adamw *a, int64_t i, int64_t updates, double scale)
{
	const struct tensor old_m = tensor_1d(a->m, a->moments, a->n);
	const struct tensor old_v = tensor_1d(a->v, a->moments, a->n);
	double c1 = 1 - pow(a->beta1, updates), c2 = 1 - pow(a->beta2, updates);
	double g = a->grad[i] * scale, p = a->master[i];
	double m = a->beta1 * (double)ref_get(&old_m, i) + (1 - (double)a->beta1) * g;
	double v = a->beta2 * (double)ref_get(&old_v, i) + (1 - (double)a->beta2) * g * g;
	double decay = i < a->decayed ? a->weight_decay * p : 0;
	uint32_t word[4] = { 0 };

	if (a->stochastic)
		philox_words(a->seed, PHILOX_ROUND, (uint64_t)updates, (uint64_t)i / 4, word);
	put_moment(a, a->m, i, m, word[i % 4] & 0xffff);
	put_moment(a, a->v, i, v, word[i % 4] >> 16);
	p -= a->lr * (m / c1 / (sqrt(v / c2) + a->eps) + decay);
	a->master[i] = (float)p;
	if (a->average)
		a->average[i] = (float)(a->average[i] + (double)a->average_weight *
						      (a->master[i] - a->average[i]));
	if (a->resident)
		a->resident[i] = bf16_from_float(a->master[i]);
}

void ref_adamw(struct kernels *k, const struct adamw *a)
{
	int64_t updates = a->step - (a->skipped ? *a->skipped : 0);
	double norm = sqrt(*a->grad_norm2) * a->grad_scale, scale = a->grad_scale;

	(void)k;
	CHECK(updates > 0 && a->decayed >= 0 && a->decayed <= a->n);
	CHECK(a->moments == DT_F32 || a->moments == DT_BF16);
	if (!isfinite(*a->grad_norm2)) {
		if (a->skipped)
			++*a->skipped;
		return;
	}
	if (a->clip > 0 && norm > a->clip)
		scale *= a->clip / norm;
	for (int64_t i = 0; i < a->n; i++)
		adamw_one(a, i, updates, scale);
}
