/* SPDX-License-Identifier: Apache-2.0
 * Philox against the published known answers (Random123 kat_vectors), and what is drawn from it. */
#include "tests/test.h"
#include "lib/philox.h"

#include <math.h>
#include <stdbool.h>

static void known_answers(void **state)
{
	static const uint32_t ones[4] = { ~0u, ~0u, ~0u, ~0u }, zeros[4] = { 0 };
	uint32_t out[4];

	(void)state;
	philox_block(zeros, zeros, out);
	assert_int_equal(out[0], 0x6627e8d5);
	assert_int_equal(out[1], 0xe169c58d);
	assert_int_equal(out[2], 0xbc57ac4c);
	assert_int_equal(out[3], 0x9b00dbd8);
	philox_block(ones, ones, out);
	assert_int_equal(out[0], 0x408f276d);
	assert_int_equal(out[1], 0x41c83b0e);
	assert_int_equal(out[2], 0xa20bc7c6);
	assert_int_equal(out[3], 0x6d5451fd);
}

static void normals_do_not_depend_on_the_cut(void **state)
{
	float all[37], part[37];

	(void)state;
	philox_normals(7, PHILOX_TEST, 3, 0, all, 37);
	philox_normals(7, PHILOX_TEST, 3, 0, part, 5);
	philox_normals(7, PHILOX_TEST, 3, 5, part + 5, 1);
	philox_normals(7, PHILOX_TEST, 3, 6, part + 6, 31);
	assert_memory_equal(all, part, sizeof all);
}

static void normals_have_mean_0_and_deviation_1(void **state)
{
	enum { N = 200000 };
	static float x[N];
	double mean = 0, square = 0;

	(void)state;
	philox_normals(1, PHILOX_TEST, 0, 0, x, N);
	for (int i = 0; i < N; i++) {
		mean += x[i];
		square += (double)x[i] * x[i];
	}
	assert_true(fabs(mean / N) < 0.01);
	assert_true(fabs(square / N - 1) < 0.02);
}

static void permutation_hits_everything_once(void **state)
{
	static const uint64_t sizes[] = { 1, 2, 3, 17, 200, 1000 };

	(void)state;
	for (int s = 0; s < 6; s++) {
		bool seen[1000] = { false };

		for (uint64_t i = 0; i < sizes[s]; i++) {
			uint64_t to = philox_permute(5, 2, i, sizes[s]);

			assert_true(to < sizes[s] && !seen[to]);
			seen[to] = true;
		}
	}
}

int main(void)
{
	const struct CMUnitTest philox[] = {
		cmocka_unit_test(known_answers),
		cmocka_unit_test(normals_do_not_depend_on_the_cut),
		cmocka_unit_test(normals_have_mean_0_and_deviation_1),
		cmocka_unit_test(permutation_hits_everything_once),
	};
	return cmocka_run_group_tests(philox, NULL, NULL);
}
