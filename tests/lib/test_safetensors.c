/* SPDX-License-Identifier: Apache-2.0
 * safetensors: what is written reads back; each kind of damage is named, nothing is read past the
 * end. */
#include "tests/test.h"
#include "lib/buf.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *folder, *path;

static int make_folder(void **state)
{
	const char *tmp = getenv("TMPDIR");

	(void)state;
	folder = xasprintf("%s/test_safetensors.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(folder))
		return -1;
	path = xasprintf("%s/x.safetensors", folder);
	return 0;
}

static int remove_folder(void **state)
{
	int rc = dir_remove(folder, NULL);

	(void)state;
	xfree(path);
	xfree(folder);
	return rc;
}

static void what_is_written_reads_back(void **state)
{
	static const float a[6] = { 1, 2, 3, 4, 5, 6 };
	static const uint16_t b[3] = { 7, 8, 9 };
	static const int64_t dims_a[2] = { 2, 3 }, dims_b[1] = { 3 }, dims_c[2] = { 0, 4 };
	const struct st_tensor *t = NULL;
	struct st_writer w;
	struct st_file f;
	struct err e = ERR_INIT;
	char *tmp = xasprintf("%s.tmp", path);

	(void)state;
	st_writer_init(&w);
	st_writer_meta(&w, "format", "tf");
	st_writer_meta(&w, "text", "two\nlines \"quoted\" \xF0\x9F\xA6\x8A");
	st_writer_add(&w, "layers.0.weight", ST_F32, 2, dims_a, a);
	st_writer_add(&w, "b", ST_BF16, 1, dims_b, b);
	st_writer_add(&w, "empty", ST_F32, 2, dims_c, NULL);
	st_writer_add(&w, "scalar", ST_U8, 0, NULL, "x");
	assert_ok(st_writer_save(&w, path, &e), &e);
	st_writer_release(&w);
	assert_false(file_exists(tmp));

	assert_ok(st_open(path, &f, &e), &e);
	assert_int_equal(f.count, 4);
	assert_string_equal(st_meta(&f, "text"), "two\nlines \"quoted\" \xF0\x9F\xA6\x8A");
	assert_null(st_meta(&f, "none"));
	assert_ok(st_need(&f, path, "layers.0.weight", ST_F32, 2, dims_a, &t, &e), &e);
	assert_memory_equal(t->data, a, sizeof a);
	assert_int_equal((uintptr_t)t->data % 64, 0);
	assert_memory_equal(st_find(&f, "b")->data, b, sizeof b);
	assert_int_equal(st_find(&f, "scalar")->bytes, 1);
	assert_int_equal(st_need(&f, path, "b", ST_F32, 1, dims_b, &t, &e), TF_EMISMATCH);
	assert_non_null(strstr(e.text, "tensor 'b' is BF16 [3], expected F32 [3]"));
	err_clear(&e);
	assert_int_equal(st_need(&f, path, "no", ST_F32, 1, dims_b, &t, &e), TF_ENOTFOUND);
	st_close(&f);
	xfree(tmp);
}

static void put(const char *header, size_t claimed, const char *data, size_t data_bytes)
{
	struct buf b = BUF_INIT;
	struct err e = ERR_INIT;
	size_t len = claimed ? claimed : strlen(header);
	unsigned char prefix[8];

	for (int i = 0; i < 8; i++)
		prefix[i] = (unsigned char)(len >> 8 * i);
	buf_append(&b, prefix, 8);
	buf_text(&b, header);
	buf_append(&b, data, data_bytes);
	assert_ok(file_write(path, b.data, b.len, 0644, &e), &e);
	buf_release(&b);
}

#define ONE(dtype, shape, from, to)                                                               \
	"{\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" from "," to "]}" \
											     "}"

static const struct {
	const char *header;
	size_t claimed;
	size_t data_bytes;
	const char *complaint;
} damages[] = {
	{ ONE("F32", "[2]", "0", "8"), 1u << 31, 8, "a header of 2147483648 bytes" },
	{ ONE("F32", "[2]", "0", "8"), SIZE_MAX, 8, "a header of 18446744073709551615 bytes" },
	{ "[1,2]", 0, 0, "does not begin with '{'" },
	{ "{\"a\":", 0, 0, "header, byte" },
	{ "{\"a\":1}", 0, 0, "expected dtype, shape and data_offsets" },
	{ "{\"a\":{},\"a\":{}}", 0, 0, "duplicate" },
	{ ONE("F33", "[2]", "0", "8"), 0, 8, "dtype 'F33', which is not supported" },
	{ ONE("F32", "[-1]", "0", "8"), 0, 8, "dimension 0 is not a whole number" },
	{ ONE("F32", "[1.5]", "0", "8"), 0, 8, "dimension 0 is not a whole number" },
	{ ONE("F32", "[1,1,1,1,1,1,1,1,2]", "0", "8"), 0, 8, "no shape of at most 8 dimensions" },
	{ ONE("F32", "[4611686018427387904,4]", "0", "8"), 0, 8, "larger than any file" },
	{ ONE("F32", "[2]", "0", "12"), 0, 8, "lies at bytes 0 to 12 of 8" },
	{ ONE("F32", "[2]", "8", "0"), 0, 8, "lies at bytes 8 to 0 of 8" },
	{ ONE("F32", "[2]", "-8", "0"), 0, 8, "lies at bytes -8 to 0 of 8" },
	{ ONE("F32", "[1]", "0", "8"), 0, 8, "has 8 bytes, its shape and type need 4" },
	{ ONE("F32", "[1]", "4", "8"), 0, 8, "begins at byte 4 of the data, expected 0 (a hole)" },
	{ ONE("F32", "[1]", "0", "4"), 0, 8, "8 bytes of data, its tensors have 4" },
	{ "{\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
	  "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[2,5]}}",
	  0, 5, "(an overlap)" },
	{ "{\"__metadata__\":{\"k\":1}}", 0, 0, "'k' is not a text" },
	{ "{\"__metadata__\":[]}", 0, 0, "not a map of texts" },
	{ "{\"a\":{\"dtype\":1,\"shape\":[2],\"data_offsets\":[0,8]}}", 0, 8, "has no dtype" },
	{ "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0]}}", 0, 2,
	  "no data_offsets" },
};

static void every_damage_is_named(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(damages); i++) {
		struct err e = ERR_INIT;
		struct st_file f;

		put(damages[i].header, damages[i].claimed, "0123456789abcdef",
		    damages[i].data_bytes);
		if (st_open(path, &f, &e) == 0)
			fail_msg("accepted: %s", damages[i].header);
		if (!strstr(e.text, damages[i].complaint))
			fail_msg("%s said '%s', not '%s'", damages[i].header, e.text,
				 damages[i].complaint);
		assert_non_null(strstr(e.text, path));
	}
}

/* Every prefix of a good file is refused. */
static void every_cut_is_noticed(void **state)
{
	static const char header[] = ONE("F32", "[2]", "0", "8");

	(void)state;
	for (size_t cut = 0; cut < 8 + sizeof header - 1 + 8; cut++) {
		struct err e = ERR_INIT;
		struct st_file f;

		put(header, 0, "01234567", 8);
		assert_int_equal(truncate(path, (off_t)cut), 0);
		assert_int_equal(st_open(path, &f, &e), TF_ECORRUPT);
	}
}

static void what_is_not_a_file_is_refused(void **state)
{
	struct err e = ERR_INIT;
	struct st_file f;

	(void)state;
	assert_int_equal(st_open("/nonexistent", &f, &e), TF_ENOTFOUND);
	err_clear(&e);
	assert_int_equal(st_open(folder, &f, &e), TF_ECORRUPT);
}

int main(void)
{
	const struct CMUnitTest safetensors[] = {
		cmocka_unit_test(what_is_written_reads_back),
		cmocka_unit_test(every_damage_is_named),
		cmocka_unit_test(every_cut_is_noticed),
		cmocka_unit_test(what_is_not_a_file_is_refused),
	};
	return cmocka_run_group_tests(safetensors, make_folder, remove_folder);
}
