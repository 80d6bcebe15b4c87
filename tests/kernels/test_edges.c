/* SPDX-License-Identifier: Apache-2.0
 * Empty tensors, ignored rows and refusals, on the reference and on the CPU backend alike. */
#include "tests/test.h"
#include "kernels/kernels.h"
#include "lib/mem.h"

#include <math.h>
#include <string.h>

#define NONE tensor_1d(NULL, DT_F32, 0)

static struct kernels *backend[2];

static int open_backends(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(kernels_open("ref", 1, &backend[0], &e), &e);
	assert_ok(kernels_open("cpu", 2, &backend[1], &e), &e);
	return 0;
}

static int close_backends(void **state)
{
	(void)state;
	kernels_close(backend[0]);
	kernels_close(backend[1]);
	return 0;
}

static void refusals(void **state)
{
	static const char *const wrong[] = { "", "gpu", "cudax", "cpu:0" };
	struct kernels *k;
	struct err e = ERR_INIT;

	(void)state;
	for (int i = 0; i < 4; i++) {
		err_clear(&e);
		assert_int_equal(kernels_open(wrong[i], 0, &k, &e), TF_EINVALID);
		assert_null(k);
		assert_non_null(strstr(e.text, "device"));
	}
	err_clear(&e);
	assert_int_equal(kernels_open("cpu", -1, &k, &e), TF_EINVALID);
	/* not built in, or no such device */
	err_clear(&e);
	assert_int_equal(kernels_open("cuda:1000", 0, &k, &e), TF_EUNSUPPORTED);
	assert_true(strlen(e.text) > 0);
}

static void a_cpu_chooses_nothing(void **state)
{
	struct kernels *k;
	struct err e = ERR_INIT;
	char *choices;

	(void)state;
	assert_ok(kernels_open("cpu", 1, &k, &e), &e);
	choices = kernels_choices(k);
	assert_string_equal(choices, "");
	assert_ok(kernels_choose(k, choices, &e), &e);
	assert_int_equal(kernels_choose(k, "130000 A GPU\n", &e), TF_EUNSUPPORTED);
	assert_non_null(strstr(e.text, "cpu"));
	xfree(choices);
	kernels_close(k);
}

static void no_rows(void **state)
{
	float weight[8] = { 0 }, table[8] = { 1 }, sum = 5;
	struct tensor rows = tensor_2d(NULL, DT_F32, 0, 8), one = tensor_1d(NULL, DT_F32, 0);
	struct tensor index = tensor_1d(NULL, DT_I32, 0), w = tensor_1d(weight, DT_F32, 8);
	struct tensor wide = tensor_2d(NULL, DT_F32, 0, 16), t = tensor_2d(table, DT_F32, 1, 8);
	struct tensor square = tensor_2d(NULL, DT_F32, 8, 0);

	(void)state;
	for (int b = 0; b < 2; b++) {
		struct kernels *k = backend[b];
		const struct kernel_ops *ops = k->ops;
		float out[64];

		memset(out, 0xff, sizeof out);
		ops->rmsnorm(k, rows, one, rows, w, 1e-5f);
		ops->rmsnorm_backward(k, rows, w, rows, rows, w, one, rows, NOT_SCALED);
		ops->swiglu(k, rows, wide, NOT_SCALED);
		ops->silu(k, rows, rows);
		ops->embed(k, rows, t, index);
		ops->embed_backward(k, t, rows, index);
		ops->gather_rows(k, rows, t, index);
		ops->scatter_rows(k, t, rows, index);
		ops->cross_entropy(k, one, rows, index, one, 8, true);
		ops->mse_rows(k, one, rows, rows, rows, one);
		ops->argmax(k, index, rows, 8);
		ops->bias_backward(k, w, rows);
		ops->matmul(k, rows, rows, false, tensor_2d(out, DT_F32, 8, 8), false, NONE, 0);
		ops->matmul(k, tensor_2d(out, DT_F32, 8, 8), square, false, square, true, w, 0);
		for (int i = 0; i < 64; i++)
			assert_float_equal(out[i], 0, 0);
		ops->sum(k, &sum, NULL, 0);
		assert_float_equal(sum, 0, 0);
		assert_float_equal(table[0], 1, 0);
		assert_float_equal(weight[0], 0, 0);
	}
}

/* Every code is the nearest to itself; what lies between two of them goes to the nearer one, and
 * from the middle to the one whose last bit is zero; what is above the largest becomes that. */
static void e4m3(void **state)
{
	(void)state;
	for (int i = 0; i < 0x7e; i++) {
		float low = e4m3_to_float((uint8_t)i), high = e4m3_to_float((uint8_t)(i + 1));
		float middle = (low + high) / 2;
		int even = i % 2 ? i + 1 : i;

		assert_true(low < high);
		assert_int_equal(e4m3_from_float(low), i);
		assert_int_equal(e4m3_from_float(-high), 0x80 | (i + 1));
		assert_int_equal(e4m3_from_float(middle), even);
		assert_int_equal(e4m3_from_float(nextafterf(middle, 0)), i);
		assert_int_equal(e4m3_from_float(nextafterf(middle, high)), i + 1);
	}
	assert_true(e4m3_to_float(1) == 0x1p-9f && e4m3_to_float(8) == 0x1p-6f);
	assert_true(e4m3_to_float(0x38) == 1 && e4m3_to_float(0xc9) == -4.5f);
	assert_true(e4m3_to_float(0x7e) == E4M3_MOST);
	assert_int_equal(e4m3_from_float(1e9f), 0x7e);
	assert_int_equal(e4m3_from_float(-INFINITY), 0xfe);
	assert_int_equal(e4m3_from_float(-0.0f), 0x80);
	assert_int_equal(e4m3_from_float(NAN), 0x7f);
	assert_true(isnan(e4m3_to_float(0x7f)) && isnan(e4m3_to_float(0xff)));
}

/* A row is scaled by its own largest element, so that a row of large numbers does not make zeros of
 * another one; a row that holds no number makes no numbers, and the others stay what they are. */
static void scaled_rows(void **state)
{
	float x[5][2] = { { 3, -1.5f }, { 6e-6f, 2e-6f }, { 0, 0 }, { NAN, 1 }, { 1, INFINITY } };
	float unit[2] = { 1, 2 }, out[5], scale[5], unit_scale;
	uint8_t q[10], w[2];

	(void)state;
	for (int b = 0; b < 2; b++) {
		struct kernels *k = backend[b];
		struct tensor rows = tensor_2d(q, DT_E4M3, 5, 2), by = tensor_1d(scale, DT_F32, 5);
		struct tensor one = tensor_2d(w, DT_E4M3, 1, 2);
		struct tensor one_by = tensor_1d(&unit_scale, DT_F32, 1);

		k->ops->quantise(k, rows, by, tensor_2d(x, DT_F32, 5, 2), false);
		k->ops->quantise(k, one, one_by, tensor_2d(unit, DT_F32, 2, 1), true);
		k->ops->matmul_scaled(k, tensor_2d(out, DT_F32, 5, 1), rows, by, one, one_by,
				      false);
		assert_true(q[0] == 0x7e && q[1] == 0xf6 && q[2] == 0x7e && q[4] == 0);
		assert_true(fabsf(scale[0] - 3 / 448.0f) < 1e-9f && unit_scale == 2 / 448.0f);
		assert_true(fabsf(out[0]) < 1e-6f && fabsf(out[1] - 1e-5f) < 2e-7f && out[2] == 0);
		assert_true(isnan(out[3]) && isnan(out[4]));
	}
}

static void ignored_targets(void **state)
{
	int32_t target[3] = { -1, -1, -1 };

	(void)state;
	for (int b = 0; b < 2; b++) {
		struct kernels *k = backend[b];
		float logits[3 * 40], loss[3], weight[3] = { 1, 1, 1 };

		for (int i = 0; i < 3 * 40; i++)
			logits[i] = (float)i;
		k->ops->cross_entropy(
			k, tensor_1d(loss, DT_F32, 3), tensor_2d(logits, DT_F32, 3, 40),
			tensor_1d(target, DT_I32, 3), tensor_1d(weight, DT_F32, 3), 33, true);
		for (int i = 0; i < 3; i++)
			assert_float_equal(loss[i], 0, 0);
		for (int i = 0; i < 3 * 40; i++)
			assert_float_equal(logits[i], 0, 0);
	}
}

/* Loss and gradient stay finite where one logit is far above or below all others. */
static void extreme_logits(void **state)
{
	int32_t target[2] = { 0, 1 };

	(void)state;
	for (int b = 0; b < 2; b++) {
		struct kernels *k = backend[b];
		float logits[2 * 16] = { 1e4f }, loss[2], weight[2] = { 1, 1 };

		logits[16] = 3e4f;
		k->ops->cross_entropy(
			k, tensor_1d(loss, DT_F32, 2), tensor_2d(logits, DT_F32, 2, 16),
			tensor_1d(target, DT_I32, 2), tensor_1d(weight, DT_F32, 2), 16, true);
		assert_float_equal(loss[0], 0, 1e-6);
		assert_float_equal(loss[1], 3e4, 1e-2);
		assert_float_equal(logits[16], 1, 1e-6);
		assert_float_equal(logits[17], -1, 1e-6);
	}
}

static void negative_rows(void **state)
{
	int32_t row[3] = { 1, -1, 0 };
	struct tensor index = tensor_1d(row, DT_I32, 3);

	(void)state;
	for (int b = 0; b < 2; b++) {
		struct kernels *k = backend[b];
		float in[2] = { 10, 20 }, out[3] = { 7, 7, 7 }, to[2] = { 7, 7 };
		struct tensor small = tensor_2d(in, DT_F32, 2, 1),
			      wide = tensor_2d(out, DT_F32, 3, 1);

		k->ops->embed(k, wide, small, index);
		assert_float_equal(out[0], 20, 0);
		assert_float_equal(out[1], 7, 0);
		assert_float_equal(out[2], 10, 0);
		k->ops->gather_rows(k, wide, small, index);
		assert_float_equal(out[1], 0, 0);
		out[1] = 99;
		k->ops->scatter_rows(k, tensor_2d(to, DT_F32, 2, 1), wide, index);
		assert_float_equal(to[0], 10, 0);
		assert_float_equal(to[1], 20, 0);
		k->ops->scatter_add_rows(k, tensor_2d(to, DT_F32, 2, 1), wide, index);
		assert_float_equal(to[0], 20, 0);
		assert_float_equal(to[1], 40, 0);
	}
}

/* Rows with limit < 0 are zero and write no key; rows beyond the capacity write nothing either. */
static void cached_rows_left_out(void **state)
{
	enum { HD = 8, ROWS = 3, CAPACITY = 2 };
	int32_t at[1] = { 0 }, limit[ROWS] = { -1, 1, 1 };

	(void)state;
	for (int b = 0; b < 2; b++) {
		struct kernels *k = backend[b];
		float qkv[ROWS * 3 * HD], keys[CAPACITY * HD], values[CAPACITY * HD],
			out[ROWS * HD];

		for (int i = 0; i < ROWS * 3 * HD; i++)
			qkv[i] = 1;
		for (int i = 0; i < CAPACITY * HD; i++)
			keys[i] = values[i] = 5;
		k->ops->attention_cached(k, tensor_2d(out, DT_F32, ROWS, HD),
					 tensor_4d(qkv, DT_F32, ROWS, 3, 1, HD), 1,
					 tensor_3d(keys, DT_F32, 1, CAPACITY, HD),
					 tensor_3d(values, DT_F32, 1, CAPACITY, HD),
					 tensor_1d(at, DT_I32, 1), tensor_1d(limit, DT_I32, ROWS));
		for (int c = 0; c < HD; c++) {
			assert_float_equal(out[c], 0, 0);
			assert_float_equal(keys[c], 5, 0);
			assert_float_equal(keys[HD + c], 1, 0);
			assert_true(out[HD + c] > 1 && out[HD + c] < 5);
		}
	}
}

/* A head width that no vector divides, and a sequence longer than a panel of keys. */
static void odd_heads_agree(void **state)
{
	enum { T = 301, HD = 24 };
	static float qkv[T * 3 * HD], out[2][T * HD], lse[2][T], dqkv[2][T * 3 * HD], dout[T * HD];
	static int32_t start[T], limit[T];
	struct tensor x = tensor_4d(qkv, DT_F32, T, 3, 1, HD), d = tensor_2d(dout, DT_F32, T, HD);
	struct tensor from = tensor_2d(start, DT_I32, 1, T), to = tensor_2d(limit, DT_I32, 1, T);

	(void)state;
	philox_normals(3, PHILOX_TEST, 0, 0, qkv, T * 3 * HD);
	philox_normals(3, PHILOX_TEST, 1, 0, dout, T * HD);
	for (int t = 0; t < T; t++) {
		start[t] = t < 280 ? 0 : 280;
		limit[t] = t >= 200 && t < 270 ? 269 : t;
	}
	for (int b = 0; b < 2; b++) {
		struct tensor y = tensor_2d(out[b], DT_F32, T, HD);
		struct tensor l = tensor_3d(lse[b], DT_F32, 1, 1, T);

		backend[b]->ops->attention(backend[b], y, l, x, 1, from, to);
		backend[b]->ops->attention_backward(backend[b],
						    tensor_4d(dqkv[b], DT_F32, T, 3, 1, HD), d, y,
						    l, x, 1, from, to, NULL);
	}
	for (int i = 0; i < T * HD; i++)
		assert_float_equal(out[1][i], out[0][i], 1e-5);
	for (int i = 0; i < T * 3 * HD; i++)
		assert_float_equal(dqkv[1][i], dqkv[0][i], 3e-5);
}

int main(void)
{
	const struct CMUnitTest edges[] = {
		cmocka_unit_test(refusals),        cmocka_unit_test(no_rows),
		cmocka_unit_test(a_cpu_chooses_nothing),
		cmocka_unit_test(e4m3),
		cmocka_unit_test(scaled_rows),
		cmocka_unit_test(ignored_targets), cmocka_unit_test(extreme_logits),
		cmocka_unit_test(negative_rows),   cmocka_unit_test(cached_rows_left_out),
		cmocka_unit_test(odd_heads_agree),
	};
	return cmocka_run_group_tests(edges, open_backends, close_backends);
}
