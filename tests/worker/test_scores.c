/* SPDX-License-Identifier: Apache-2.0
 * CIDEr-D against values worked out by hand, and nearest pictures. */
#include "tests/test.h"
#include "lib/mem.h"
#include "worker/cider.h"
#include "worker/nearest.h"

#include <math.h>
#include <string.h>

static double one(const char *candidate, const char *reference, const char *other)
{
	const char *first[] = { reference }, *second[] = { other };
	struct cider_item items[] = { { candidate, first, 1 }, { other, second, 1 } };
	double each[2];

	cider_score(items, 2, each);
	return each[0];
}

static void the_same_caption_has_ten(void **state)
{
	(void)state;
	assert_true(fabs(one("a red fox runs", "a red fox runs", "two blue birds sing") - 10) <
		    1e-9);
	assert_true(fabs(one("A red, fox: RUNS!", "a red fox runs", "two blue birds sing") - 10) <
		    1e-9);
	/* a caption of one word has 1-grams alone: a quarter of it */
	assert_true(fabs(one("mango", "mango", "fox") - 2.5) < 1e-9);
	assert_true(one("fox", "mango", "fox") == 0);
	assert_true(one("", "mango", "fox") == 0);
}

/* N = 2; every word of the two references is in one picture, so all idf are ln 2 and cancel.
 * Candidate "red fox", reference "red fox runs": 1-grams: 2 / (sqrt 2 sqrt 3); 2-grams ("red fox";
 * "red fox", "fox runs"): 1 / (1 sqrt 2); 3- and 4-grams: 0. Penalty exp(-1 / 72). */
static void a_shorter_caption(void **state)
{
	double expected = 10 * exp(-1.0 / 72) * (2 / sqrt(6) + 1 / sqrt(2)) / 4;

	(void)state;
	assert_true(fabs(one("red fox", "red fox runs", "birds sing") - expected) < 1e-9);
}

/* Words of both pictures have idf ln(2/2) = 0: only "fox" counts, which both have. Repetition is
 * clipped: candidate counts (fox 2), reference (fox 1): min(2, 1) 1 / (2 1) = 1/2; 2-grams:
 * candidate "fox fox" unknown to the references (df 0, idf ln 2), reference "the fox": none in
 * common. */
static void common_words_and_repetition(void **state)
{
	double expected = 10 * 0.5 / 4;

	(void)state;
	assert_true(fabs(one("fox fox", "the fox", "the bird") - expected) < 1e-9);
}

static void several_references_are_averaged(void **state)
{
	const char *first[] = { "red fox", "blue bird" }, *second[] = { "green tree" };
	struct cider_item items[] = { { "red fox", first, 2 }, { "green tree", second, 1 } };
	double each[2], mean = cider_score(items, 2, each);

	(void)state;
	assert_true(fabs(each[0] - 2.5) < 1e-9); /* (10 / 2 + 0) / 2 for 1- and 2-grams */
	assert_true(fabs(each[1] - 5) < 1e-9);
	assert_true(fabs(mean - 3.75) < 1e-9);
	assert_true(cider_score(NULL, 0, NULL) == 0);
}

#define SIDE 6

static void flat(uint8_t *rgb, uint8_t value)
{
	memset(rgb, value, SIDE * SIDE * 3);
}

static void the_nearest_is_found(void **state)
{
	uint8_t rgb[SIDE * SIDE * 3];
	struct nearest n;
	size_t first;

	(void)state;
	nearest_init(&n, SIDE, SIDE, 2);
	for (int i = 0; i < 20; i++) {
		flat(rgb, (uint8_t)(10 * i));
		nearest_add(&n, rgb);
	}
	flat(rgb, 52);
	assert_int_equal(nearest_rank(&n, rgb, 5, &first), 0);
	assert_int_equal(first, 5);
	assert_int_equal(nearest_rank(&n, rgb, 6, &first), 1);
	assert_int_equal(nearest_rank(&n, rgb, 8, NULL), 5); /* 50, 60, 40, 70 and 30 are nearer */
	nearest_release(&n);
}

/* A checkerboard is grey once averaged; equal pictures do not count against the true one. */
static void blocks_are_averaged_and_ties_count(void **state)
{
	uint8_t rgb[SIDE * SIDE * 3];
	struct nearest n;
	size_t first;

	(void)state;
	nearest_init(&n, SIDE, SIDE, 2);
	flat(rgb, 0);
	nearest_add(&n, rgb);
	flat(rgb, 100);
	nearest_add(&n, rgb);
	nearest_add(&n, rgb);
	for (int i = 0; i < SIDE * SIDE; i++)
		memset(rgb + 3 * i, (i + i / SIDE) % 2 ? 200 : 0, 3);
	assert_int_equal(nearest_rank(&n, rgb, 2, &first), 0);
	assert_int_equal(first, 1);
	assert_int_equal(nearest_rank(&n, rgb, 0, NULL), 2);
	nearest_release(&n);
}

int main(void)
{
	const struct CMUnitTest scores[] = {
		cmocka_unit_test(the_same_caption_has_ten),
		cmocka_unit_test(a_shorter_caption),
		cmocka_unit_test(common_words_and_repetition),
		cmocka_unit_test(several_references_are_averaged),
		cmocka_unit_test(the_nearest_is_found),
		cmocka_unit_test(blocks_are_averaged_and_ties_count),
	};
	return cmocka_run_group_tests(scores, NULL, NULL);
}
