/* SPDX-License-Identifier: Apache-2.0
 * Tokens that a client makes: by the time they are sorted, by the rest no two are the same. */
#include "tests/test.h"
#include "lib/clock.h"
#include "proto/token.h"

#define TOKENS 1000

static uint64_t time_us(const uint8_t token[TOKEN_BYTES])
{
	uint64_t us = 0;

	for (unsigned i = 0; i < TOKEN_TIME_BYTES; i++)
		us = us << 8 | token[i];
	return us;
}

static void tokens_begin_with_the_time(void **state)
{
	uint64_t before = (uint64_t)clock_wall_us(), last = before;

	(void)state;
	for (int i = 0; i < TOKENS; i++) {
		uint8_t token[TOKEN_BYTES];

		assert_int_equal(token_make(token, NULL), 0);
		assert_true(time_us(token) >= last);
		last = time_us(token);
	}
	assert_true(last <= (uint64_t)clock_wall_us());
	assert_true(last > before);
}

/* No bit of it stays the same: by chance that happens once in 2^992 runs. */
static void the_rest_is_random(void **state)
{
	uint8_t ones[TOKEN_BYTES] = { 0 }, zeros[TOKEN_BYTES] = { 0 };

	(void)state;
	assert_true(TOKEN_BYTES - TOKEN_TIME_BYTES >= 8);
	for (int i = 0; i < TOKENS; i++) {
		uint8_t token[TOKEN_BYTES];

		assert_int_equal(token_make(token, NULL), 0);
		for (unsigned k = TOKEN_TIME_BYTES; k < TOKEN_BYTES; k++) {
			ones[k] |= token[k];
			zeros[k] |= (uint8_t)~token[k];
		}
	}
	for (unsigned k = TOKEN_TIME_BYTES; k < TOKEN_BYTES; k++)
		assert_true(ones[k] == 0xff && zeros[k] == 0xff);
}

static void no_two_are_the_same(void **state)
{
	static uint8_t token[TOKENS][TOKEN_BYTES];
	const size_t from = TOKEN_TIME_BYTES;

	(void)state;
	for (int i = 0; i < TOKENS; i++) {
		assert_int_equal(token_make(token[i], NULL), 0);
		for (int k = 0; k < i; k++)
			assert_memory_not_equal(token[i] + from, token[k] + from,
						TOKEN_BYTES - from);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tokens_begin_with_the_time),
		cmocka_unit_test(the_rest_is_random),
		cmocka_unit_test(no_two_are_the_same),
	};

	return cmocka_run_group_tests_name("token", tests, NULL, NULL);
}
