/* SPDX-License-Identifier: Apache-2.0
 * Reference of 8-bit products: rows scaled and rounded to e4m3, and products of such. */
#include "config.h"
#include "kernels/ref/ref.h"

#include <math.h>

void ref_quantise(struct kernels *k, struct tensor q, struct tensor scale, struct tensor x,
		  bool turned)
{
	int64_t rows = q.dim[0], d = q.dim[1];
	int64_t along = turned ? rows : 1, across = turned ? 1 : d;

	(void)k;
	CHECK(q.rank == 2 && q.type == DT_E4M3 && ref_is_act(&x) && x.rank == 2);
	CHECK(x.dim[0] == (turned ? d : rows) && x.dim[1] == (turned ? rows : d));
	CHECK(scale.type == DT_F32 && tensor_count(&scale) == rows);
	for (int64_t m = 0; m < rows; m++) {
		uint8_t *row = (uint8_t *)q.data + m * d;
		float most = E4M3_AMAX_LEAST, by;

		for (int64_t c = 0; c < d; c++)
			most = fmaxf(most, fabsf(ref_get(&x, m * across + c * along)));
		by = E4M3_MOST / most;
		for (int64_t c = 0; c < d; c++)
			row[c] = e4m3_from_float(ref_get(&x, m * across + c * along) * by);
		ref_put(&scale, m, most / E4M3_MOST);
	}
}

void ref_matmul_scaled(struct kernels *k, struct tensor c, struct tensor a, struct tensor a_scale,
		       struct tensor b, struct tensor b_scale, bool rough)
{
	int64_t M = c.dim[0], N = c.dim[1], K = a.dim[1];
	const uint8_t *x = a.data, *y = b.data;
	float value[256];

	(void)k, (void)rough;
	CHECK(a.type == DT_E4M3 && b.type == DT_E4M3 && ref_is_act(&c));
	CHECK(a.dim[0] == M && b.dim[0] == N && b.dim[1] == K);
	CHECK(tensor_count(&a_scale) == M && tensor_count(&b_scale) == N);
	for (int i = 0; i < 256; i++)
		value[i] = e4m3_to_float((uint8_t)i);
	for (int64_t m = 0; m < M; m++)
		for (int64_t n = 0; n < N; n++) {
			double sum = 0;

			for (int64_t i = 0; i < K; i++)
				sum += (double)value[x[m * K + i]] * (double)value[y[n * K + i]];
			ref_put(&c, m * N + n,
				sum * (double)ref_get(&a_scale, m) * (double)ref_get(&b_scale, n));
		}
}
