/* SPDX-License-Identifier: Apache-2.0
 * The tar of an upload, read again by a library that knows every dialect: names of every kind, the
 * content, a size that does not fit a plain header; and the same files make the same bytes. */
#include "config.h"
#include "client/tar.h"
#include "lib/buf.h"
#include "lib/mem.h"
#include "tests/test.h"

#include <archive.h>
#include <archive_entry.h>
#include <locale.h>
#include <string.h>

#define LONG_NAME                                                                                  \
	"0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/0123456789/" \
	"0123456789/0123456789/0123456789/0123456789/long.png"
#define HUGE_BYTES (9ull << 30)

static const struct {
	const char *path, *content;
} files[] = {
	{ "a.png", "first" },
	{ "empty", "" },
	{ "sub/\xc3\xa9t\xc3\xa9.png", "an accent in the name" },
	{ LONG_NAME, "more than a header holds" },
	{ "exactly-100-bytes-0123456789-0123456789-0123456789-0123456789-0123456789-0123456789-"
	  "0123456789-12345",
	  "no end of text in the name's field" },
};

static int append(void *arg, const void *data, size_t len, struct err *e)
{
	(void)e;
	buf_append(arg, data, len);
	return 0;
}

static void write_all(struct buf *out)
{
	struct err e = ERR_INIT;

	for (size_t i = 0; i < ARRAY_LEN(files); i++) {
		size_t size = strlen(files[i].content);

		assert_ok(tar_begin(files[i].path, size, append, out, &e), &e);
		buf_append(out, files[i].content, size);
		assert_ok(tar_pad(size, append, out, &e), &e);
	}
	assert_int_equal(out->len % 512, 0);
}

static struct archive *reader(const struct buf *tar)
{
	struct archive *a = archive_read_new();

	archive_read_support_format_tar(a);
	assert_int_equal(archive_read_set_options(a, "hdrcharset=UTF-8"), ARCHIVE_OK);
	assert_int_equal(archive_read_open_memory(a, tar->data, tar->len), ARCHIVE_OK);
	return a;
}

static void every_file_is_read_again(void **state)
{
	struct buf tar = BUF_INIT, again = BUF_INIT;
	struct archive_entry *entry;
	struct err e = ERR_INIT;
	struct archive *a;
	char content[100];

	(void)state;
	write_all(&tar);
	write_all(&again);
	assert_int_equal(tar.len, again.len);
	assert_memory_equal(tar.data, again.data, tar.len);
	assert_ok(tar_finish(append, &tar, &e), &e);
	a = reader(&tar);
	for (size_t i = 0; i < ARRAY_LEN(files); i++) {
		size_t size = strlen(files[i].content);

		assert_int_equal(archive_read_next_header(a, &entry), ARCHIVE_OK);
		assert_string_equal(archive_entry_pathname(entry), files[i].path);
		assert_int_equal(archive_entry_size(entry), size);
		assert_int_equal(archive_entry_filetype(entry), AE_IFREG);
		assert_int_equal(archive_entry_perm(entry), 0644);
		assert_int_equal(archive_entry_mtime(entry), 0);
		assert_int_equal(archive_read_data(a, content, sizeof content), size);
		assert_memory_equal(content, files[i].content, size);
	}
	assert_int_equal(archive_read_next_header(a, &entry), ARCHIVE_EOF);
	archive_read_free(a);
	buf_release(&again);
	buf_release(&tar);
}

static void a_size_over_8_gib_is_told(void **state)
{
	struct buf tar = BUF_INIT;
	struct archive_entry *entry;
	struct err e = ERR_INIT;
	struct archive *a;

	(void)state;
	assert_ok(tar_begin("huge", HUGE_BYTES, append, &tar, &e), &e);
	a = reader(&tar);
	assert_int_equal(archive_read_next_header(a, &entry), ARCHIVE_OK);
	assert_string_equal(archive_entry_pathname(entry), "huge");
	assert_true((uint64_t)archive_entry_size(entry) == HUGE_BYTES);
	archive_read_free(a);
	buf_release(&tar);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_file_is_read_again),
		cmocka_unit_test(a_size_over_8_gib_is_told),
	};

	setlocale(LC_CTYPE, "C.UTF-8"); /* else libarchive gives no names with accents */
	return cmocka_run_group_tests_name("tar", tests, NULL, NULL);
}
