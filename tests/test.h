/* SPDX-License-Identifier: Apache-2.0
 * What every cmocka test includes. One group per program: its name is the file's. */
#ifndef TESTS_TEST_H
#define TESTS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <cmocka.h>

#include "config.h"
#include "lib/err.h"

/* The call succeeds; otherwise its sentence is shown. */
#define assert_ok(call, e) do { int rc_ = (call); \
	if (rc_ < 0) fail_msg("%s: %s (%s)", #call, err_name(rc_), (e)->text); } while (0)

/* One test alone, by a pattern such as '*resume*' (cmocka itself reads no such variable). */
__attribute__((constructor)) static inline void test_filter(void)
{
	const char *pattern = getenv("CMOCKA_TEST_FILTER");

	if (pattern)
		cmocka_set_test_filter(pattern);
}

#endif
