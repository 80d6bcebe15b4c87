/* SPDX-License-Identifier: Apache-2.0
 * Hopper's tiles of attention, at random masks of documents with pictures: every allowed pair lies
 * in exactly one tile of its warpgroup's share, every share within what passes by, and tiles that
 * are not masked hold allowed pairs alone. */
#include "tests/test.h"
#include "kernels/cuda/attention_tiles.h"
#include "lib/philox.h"

#include <string.h>

#define N 900

static struct {
	int32_t start[N], limit[N];
	int n;
} mask;

static int random_below(int n)
{
	static uint64_t drawn;

	return (int)philox_below(20261129, PHILOX_TEST, 0, drawn++, (uint64_t)n);
}

/* Documents of 1 to 400 positions, some with a picture; all causal otherwise. */
static void draw_mask(void)
{
	int first = 0, end, image, images;

	mask.n = 1 + random_below(N);
	while (first < mask.n) {
		end = first + 1 + random_below(400);
		end = end < mask.n ? end : mask.n;
		image = first + random_below(end - first);
		images = random_below(3) ? image + random_below(300) : image;
		images = images < end ? images : end;
		for (int i = first; i < end; i++) {
			mask.start[i] = first;
			mask.limit[i] = i >= image && i < images ? images - 1 : i;
		}
		first = end;
	}
}

static bool allowed(int query, int key)
{
	return key >= mask.start[query] && key <= mask.limit[query];
}

/* As attention_plans.cu makes it of queries row to end - 1. */
static struct span sees(int row, int end)
{
	struct span p = { INT_MAX, -1, -1, INT_MAX };

	for (int i = row; i < end && i < mask.n; i++) {
		p.first = mask.start[i] < p.first ? mask.start[i] : p.first;
		p.last = mask.limit[i] > p.last ? mask.limit[i] : p.last;
		p.start_max = mask.start[i] > p.start_max ? mask.start[i] : p.start_max;
		p.limit_min = mask.limit[i] < p.limit_min ? mask.limit[i] : p.limit_min;
	}
	return p;
}

static struct span seen(int from, int end)
{
	return seen_by(mask.start, mask.limit, mask.n, from, end < mask.n ? end : mask.n);
}

/* Own rows `row` to row + PART - 1, queries or keys, against what passes by. */
static void check_share(const struct share *t, bool by_query, int row, int size)
{
	int end = t->base + t->high * size + t->rest; /* of what is needed */

	assert_true(t->low > t->high || (t->low >= 0 && t->high <= t->top));
	assert_true(t->low > t->high || (t->rest > 0 && t->rest <= size));
	for (int own = row; own < row + PART && own < mask.n; own++)
		for (int other = 0; other < mask.n; other++) {
			int tile = other < t->base ? -1 : (other - t->base) / size;
			bool there = tile >= t->low && tile <= t->high;

			if (by_query ? allowed(own, other) : allowed(other, own))
				assert_true(there && other < end);
			else if (there && by_query && other < mask.start[own])
				assert_true(share_before(t, t->base + tile * size));
			else if (there && by_query)
				assert_true(share_beyond(t, t->base + tile * size, size));
		}
}

static void check_pass(bool by_query, int rows, int size, int from)
{
	for (int row = 0; row < mask.n; row += rows) {
		struct span all = by_query ? sees(row, row + rows) : seen(row, row + rows);

		for (int part = row; part < row + rows; part += PART) {
			struct span mine =
				by_query ? sees(part, part + PART) : seen(part, part + PART);
			struct share t;

			share_tiles(&t, &all, &mine, size, from);
			assert_int_equal(t.base % from, 0);
			assert_true(t.base <= all.first && all.first < t.base + from);
			check_share(&t, by_query, part, size);
		}
	}
}

static void every_pair_in_one_tile(void **state)
{
	(void)state;
	for (int round = 0; round < 60; round++) {
		draw_mask();
		check_pass(true, 128, 128, 1);
		check_pass(true, 192, 128, 1);
		check_pass(true, 128, 64, 1);
		check_pass(false, 128, 64, 64);
	}
}

/* Two of the benchmark's captioned pictures: 36 tiles of 64 queries by 128 keys where tiles begin
 * at multiples of 128, 31 where they begin with the first key. */
static void tiles_of_the_benchmark(void **state)
{
	int tiles = 0;

	(void)state;
	memset(&mask, 0, sizeof mask);
	mask.n = 644; /* 64 caption tokens, a mark, 256 patches, a mark */
	for (int i = 0; i < mask.n; i++) {
		int first = i / 322 * 322, at = i - first;

		mask.start[i] = first;
		mask.limit[i] = at > 64 && at < 321 ? first + 320 : i;
	}
	for (int row = 0; row < mask.n; row += PART) {
		struct span all = sees(row, row + PART);
		struct share t;

		share_tiles(&t, &all, &all, 128, 1);
		tiles += t.high - t.low + 1;
	}
	assert_int_equal(tiles, 31);
}

/* Every tile of every head has one place; heads come one after the other but for the last ones,
 * whose tiles are in the plan's order over all of them: the longest first. */
static void every_tile_has_one_place(void **state)
{
	enum { MOST = 40 };

	(void)state;
	for (int round = 0; round < 200; round++) {
		int tiles = 1 + random_below(MOST), heads = 1 + random_below(MOST);
		int group = 1 + random_below(tiles), mixed = 1 + random_below(heads);
		bool taken[MOST][MOST] = { { false } };
		struct place before = { 0, 0 };

		for (int at = 0; at < tiles * heads; at++) {
			struct place p = place_of(at, tiles, heads, group, mixed);

			assert_in_range(p.tile, 0, tiles - 1);
			assert_in_range(p.head, 0, heads - 1);
			assert_false(taken[p.tile][p.head]);
			taken[p.tile][p.head] = true;
			if (p.tile / group == before.tile / group && p.head < heads - mixed)
				assert_true(p.head >= before.head);
			else if (p.tile / group == before.tile / group &&
				 before.head >= heads - mixed)
				assert_true(p.tile >= before.tile);
			assert_true(p.tile / group >= before.tile / group);
			before = p;
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_tile_has_one_place),
		cmocka_unit_test(every_pair_in_one_tile),
		cmocka_unit_test(tiles_of_the_benchmark),
	};

	return cmocka_run_group_tests_name("attention_tiles", tests, NULL, NULL);
}
