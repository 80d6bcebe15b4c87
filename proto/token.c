/* SPDX-License-Identifier: Apache-2.0
 * Tokens; see token.h. */
#include "config.h"
#include "proto/token.h"
#include "lib/clock.h"

#include <sys/random.h>

int token_make(uint8_t token[TOKEN_BYTES], struct err *e)
{
	const size_t random_bytes = TOKEN_BYTES - TOKEN_TIME_BYTES;
	uint64_t time_us = (uint64_t)clock_wall_us();

	if (getrandom(token + TOKEN_TIME_BYTES, random_bytes, 0) != (ssize_t)random_bytes)
		return err_errno(e, "random bytes");
	for (int i = TOKEN_TIME_BYTES - 1; i >= 0; i--, time_us >>= 8)
		token[i] = (uint8_t)time_us;
	return 0;
}
