/* SPDX-License-Identifier: Apache-2.0
 * Libraries opened by name: what is found is called, what is missing is named. */
#include "tests/test.h"
#include "lib/library.h"

#include <string.h>

struct functions {
	double (*floor)(double);
	double (*fabs)(double);
};

static int load(const char *file, const char *second, struct functions *f, struct err *e)
{
	const char *names[] = { "floor", second };

	return library_open(file, names, 2, (void **)f, e);
}

static void functions_are_found_in_their_order(void **state)
{
	struct functions f = { NULL, NULL };
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(load("libm.so.6", "fabs", &f, &e), TF_OK);
	assert_true(f.floor(-1.5) == -2.0);
	assert_true(f.fabs(-1.5) == 1.5);
}

static void a_missing_library_is_named(void **state)
{
	struct functions f;
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(load("libnowhere.so.13", "fabs", &f, &e), TF_EUNSUPPORTED);
	assert_non_null(strstr(e.text, "libnowhere.so.13"));
}

static void a_missing_function_is_named_with_its_library(void **state)
{
	struct functions f;
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(load("libm.so.6", "no_such_function", &f, &e), TF_EUNSUPPORTED);
	assert_string_equal(e.text, "the library libm.so.6 has no no_such_function");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(functions_are_found_in_their_order),
		cmocka_unit_test(a_missing_library_is_named),
		cmocka_unit_test(a_missing_function_is_named_with_its_library),
	};

	return cmocka_run_group_tests_name("library", tests, NULL, NULL);
}
