/* SPDX-License-Identifier: Apache-2.0
 * The bounds of proto/limits.h on files from outside: what exceeds one is told by a sentence with
 * the bound in it, and what comes behind it is still read. Large files are holes. */
#include "tests/test.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/dataset.h"
#include "worker/image.h"
#include "worker/source.h"
#include "worker/spm.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *top;

static char *below(const char *name)
{
	return xasprintf("%s/%s", top, name);
}

static int make_top(void **state)
{
	const char *tmp = getenv("TMPDIR");

	(void)state;
	top = xasprintf("%s/bounds-XXXXXX", tmp ? tmp : "/tmp");
	return mkdtemp(top) ? 0 : -1;
}

static int remove_top(void **state)
{
	struct err e = ERR_INIT;
	int rc = dir_remove(top, &e);

	(void)state;
	xfree(top);
	return rc;
}

/* A file of so many bytes that takes no room, then the text. */
static void write_hole(const char *name, uint64_t bytes, const char *text)
{
	char *path = below(name);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	assert_int_equal(pwrite(fd, text, strlen(text), (off_t)bytes), strlen(text));
	close(fd);
	xfree(path);
}

/* Reads all of one path: how many samples, how many bad, and the last reason. */
static void read_all(const char *name, int *good, int *bad, char reason[200])
{
	char *path = below(name);
	struct source *s;
	struct source_item item;
	struct err e = ERR_INIT;

	*good = *bad = 0;
	assert_ok(source_open(&path, 1, NULL, "", &s, &e), &e);
	for (;;) {
		assert_ok(source_next(s, &item, &e), &e);
		if (item.what == SOURCE_END)
			break;
		*(item.what == SOURCE_BAD ? bad : good) += 1;
		if (item.what == SOURCE_BAD)
			snprintf(reason, 200, "%s", item.text);
	}
	source_close(s);
	xfree(path);
}

static void assert_one_bad(const char *name, int good_expected, const char *bound)
{
	char reason[200] = "";
	int good, bad;

	read_all(name, &good, &bad, reason);
	assert_int_equal(good, good_expected);
	assert_int_equal(bad, 1);
	if (!strstr(reason, bound))
		fail_msg("%s: '%s' does not say %s", name, reason, bound);
}

static void long_lines_are_passed_over(void **state)
{
	(void)state;
	/* a line is measured whenever a block was read */
	write_hole("long.txt", LIMIT_LINE_BYTES + (1 << 20), "\na sentence\n");
	assert_one_bad("long.txt", 1, "67108864");
}

static void large_files_are_left_out(void **state)
{
	struct err e = ERR_INIT;
	char *folder = below("pictures");

	(void)state;
	assert_ok(dir_make(folder, 0700, &e), &e);
	write_hole("pictures/big.png", LIMIT_IMAGE_BYTES + 1, "");
	assert_one_bad("pictures", 0, "67108864");
	xfree(folder);
	folder = below("texts");
	assert_ok(dir_make(folder, 0700, &e), &e);
	write_hole("texts/a.txt", LIMIT_SAMPLE_TEXT_BYTES + 1, "");
	write_hole("texts/b.txt", 0, "a sentence");
	assert_one_bad("texts", 1, "16777216");
	xfree(folder);
}

static void long_names_are_left_out(void **state)
{
	struct buf name = BUF_INIT;
	struct err e = ERR_INIT;
	char *path;

	(void)state;
	buf_text(&name, "deep");
	while (name.len < LIMIT_SAMPLE_NAME_BYTES + 10) {
		path = below(name.data);
		assert_ok(dir_make(path, 0700, &e), &e);
		xfree(path);
		buf_text(&name, "/a-folder-with-a-name-of-some-length-within-another");
	}
	path = below(name.data);
	assert_ok(dir_make(path, 0700, &e), &e);
	xfree(path);
	buf_text(&name, "/b.txt");
	write_hole(name.data, 0, "too deep");
	write_hole("deep/a.txt", 0, "a sentence");
	assert_one_bad("deep", 1, "1000");
	buf_release(&name);
}

static void large_models_and_manifests_are_refused(void **state)
{
	struct err e = ERR_INIT;
	struct spm *s;
	struct dataset *d;
	char *path = below("large.model"), *folder = below("dataset");

	(void)state;
	write_hole("large.model", LIMIT_TOKENIZER_BYTES + 1, "");
	assert_true(spm_open(path, &s, &e) < 0);
	assert_non_null(strstr(e.text, "large.model"));
	err_clear(&e);
	assert_ok(dir_make(folder, 0700, &e), &e);
	write_hole("dataset/manifest.json", LIMIT_MANIFEST_BYTES + 1, "");
	assert_int_equal(dataset_open(folder, &d, &e), TF_ELIMIT);
	assert_non_null(strstr(e.text, "manifest.json"));
	xfree(path);
	xfree(folder);
}

/* All bad samples are counted, so many are listed. */
static void bad_samples_are_listed_up_to_a_bound(void **state)
{
	struct dataset_plan plan = { .kind = DATASET_TEXT,
				     .format = "test",
				     .map_bytes = 16u << 20 };
	struct sample sample = { .name = "good", .text = "a text", .text_bytes = 6 };
	struct dataset_writer *w;
	struct dataset_info info;
	struct buf list = BUF_INIT;
	struct err e = ERR_INIT;
	char *folder = below("bad"), *path = below("bad/bad.jsonl");
	size_t lines = 0;

	(void)state;
	assert_ok(dir_make(folder, 0700, &e), &e);
	assert_ok(dataset_writer_open(folder, &plan, &w, &e), &e);
	for (unsigned i = 0; i < LIMIT_BAD_LISTED + 5; i++)
		assert_ok(dataset_writer_bad(w, "file", "no good", "", &e), &e);
	assert_ok(dataset_writer_add(w, &sample, "1", &e), &e);
	assert_ok(dataset_writer_finish(w, &info, &e), &e);
	dataset_writer_close(w);
	assert_ok(file_read(path, 16 << 20, &list, &e), &e);
	for (size_t i = 0; i < list.len; i++)
		lines += list.data[i] == '\n';
	assert_int_equal(lines, LIMIT_BAD_LISTED);
	assert_int_equal(info.bad, LIMIT_BAD_LISTED + 5);
	buf_release(&list);
	xfree(path);
	xfree(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(long_lines_are_passed_over),
		cmocka_unit_test(large_files_are_left_out),
		cmocka_unit_test(long_names_are_left_out),
		cmocka_unit_test(large_models_and_manifests_are_refused),
		cmocka_unit_test(bad_samples_are_listed_up_to_a_bound),
	};

	return cmocka_run_group_tests_name("bounds", tests, make_top, remove_top);
}
