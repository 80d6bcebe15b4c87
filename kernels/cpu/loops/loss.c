/* SPDX-License-Identifier: Apache-2.0
 * Vectorised losses; see loops.h. */
#include "config.h"
#include "kernels/cpu/loops/loops.h"

#include <math.h>

static float row_most(const struct tensor *x, int64_t first, int64_t n)
{
	float most = -INFINITY;

	for (int64_t at = 0; at < n; at += LOOP_BLOCK) {
		int64_t m = loop_min(LOOP_BLOCK, n - at);
		float in[LOOP_BLOCK];
		const float *v = loop_load(x, first + at, m, in);

#pragma omp simd reduction(max : most)
		for (int64_t c = 0; c < m; c++)
			most = v[c] > most ? v[c] : most;
	}
	return most;
}

static float row_sum_exp(const struct tensor *x, int64_t first, int64_t n, float most)
{
	double total = 0;

	for (int64_t at = 0; at < n; at += LOOP_BLOCK) {
		int64_t m = loop_min(LOOP_BLOCK, n - at);
		float in[LOOP_BLOCK], sum = 0;
		const float *v = loop_load(x, first + at, m, in);

#pragma omp simd reduction(+ : sum)
		for (int64_t c = 0; c < m; c++)
			sum += loop_exp(v[c] - most);
		total += sum;
	}
	return (float)total;
}

/* Logits of the row become weight (softmax - onehot). */
static void row_gradient(const struct tensor *x, int64_t first, int64_t vocab, int64_t target,
			 float lse, float weight)
{
	int64_t width = x->dim[1];

	for (int64_t at = 0; at < width; at += LOOP_BLOCK) {
		int64_t m = loop_min(LOOP_BLOCK, width - at), used = loop_min(m, vocab - at);
		float in[LOOP_BLOCK], out[LOOP_BLOCK], *y = loop_target(x, first + at, out);
		const float *v = loop_load(x, first + at, m, in);

#pragma omp simd
		for (int64_t c = 0; c < used; c++)
			y[c] = weight * loop_exp(v[c] - lse);
#pragma omp simd
		for (int64_t c = used < 0 ? 0 : used; c < m; c++)
			y[c] = 0;
		if (target >= at && target < at + m)
			y[target - at] -= weight;
		loop_store(x, first + at, m, y);
	}
}

void LOOP(cross_entropy)(struct kernels *k, struct tensor loss, struct tensor logits,
			 struct tensor target, struct tensor weight, int64_t vocab, bool backward)
{
	int64_t rows = logits.dim[0], width = logits.dim[1];
	const int32_t *id = loop_i32(&target);

	(void)k;
	CHECK(logits.rank == 2 && vocab > 0 && vocab <= width && loss.type == DT_F32);
	CHECK(tensor_count(&loss) == rows && tensor_count(&target) == rows);
#pragma omp parallel for schedule(static) if (rows * width > LOOP_PARALLEL)
	for (int64_t r = 0; r < rows; r++) {
		float picked, most, lse, block[1];

		CHECK(id[r] < vocab);
		if (id[r] < 0) {
			loop_f32(&loss)[r] = 0;
			if (backward)
				memset((char *)logits.data + r * width * dtype_bytes(logits.type),
				       0, width * dtype_bytes(logits.type));
			continue;
		}
		most = row_most(&logits, r * width, vocab);
		lse = most + logf(row_sum_exp(&logits, r * width, vocab, most));
		picked = *loop_load(&logits, r * width + id[r], 1, block);
		loop_f32(&loss)[r] = lse - picked;
		if (backward)
			row_gradient(&logits, r * width, vocab, id[r], lse, loop_f32(&weight)[r]);
	}
}

void LOOP(mse_rows)(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		    struct tensor target, struct tensor weight)
{
	int64_t rows = x.dim[0], width = x.dim[1];

	(void)k;
	CHECK(x.rank == 2 && target.type == DT_F32 && tensor_count(&target) == tensor_count(&x));
	CHECK(tensor_count(&loss) == rows && tensor_count(&weight) == rows);
#pragma omp parallel for schedule(static) if (rows * width > LOOP_PARALLEL)
	for (int64_t r = 0; r < rows; r++) {
		float step = loop_f32(&weight)[r] * 2.0f / (float)width, sum = 0;

		for (int64_t at = 0; at < width; at += LOOP_BLOCK) {
			int64_t m = loop_min(LOOP_BLOCK, width - at), first = r * width + at;
			float in[LOOP_BLOCK], out[LOOP_BLOCK], *y = NULL;
			const float *v = loop_load(&x, first, m, in);
			const float *want = loop_f32(&target) + first;

#pragma omp simd reduction(+ : sum)
			for (int64_t c = 0; c < m; c++)
				sum += (v[c] - want[c]) * (v[c] - want[c]);
			if (!dx.data)
				continue;
			y = loop_target(&dx, first, out);
#pragma omp simd
			for (int64_t c = 0; c < m; c++)
				y[c] = step * (v[c] - want[c]);
			loop_store(&dx, first, m, y);
		}
		loop_f32(&loss)[r] = sum / (float)width;
	}
}

void LOOP(argmax)(struct kernels *k, struct tensor out, struct tensor logits, int64_t vocab)
{
	int64_t rows = logits.dim[0], width = logits.dim[1];

	(void)k;
	CHECK(out.type == DT_I32 && tensor_count(&out) == rows && vocab > 0 && vocab <= width);
#pragma omp parallel for schedule(static) if (rows * width > LOOP_PARALLEL)
	for (int64_t r = 0; r < rows; r++) {
		float most = row_most(&logits, r * width, vocab), block[1];
		int64_t v = 0;

		while (v < vocab && *loop_load(&logits, r * width + v, 1, block) != most)
			v++;
		((int32_t *)out.data)[r] = v < vocab ? (int32_t)v : 0;
	}
}
