/* SPDX-License-Identifier: Apache-2.0
 * The bounds of proto/limits.h on files from outside: what exceeds one is told by a sentence with
 * the bound in it, and what comes behind it is still read. Large files are holes; bounds that take
 * longer than seconds to reach are lowered (lib/bound.h). */
#include "tests/test.h"
#include "lib/buf.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/dataset.h"
#include "worker/image.h"
#include "worker/source.h"
#include "worker/spm.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What lowers the bounds, for the whole program: above what other tests here need. */
#define FILES 200
#define SHARDS 2
#define CORPUS_BYTES 1000
#define LOWERED "import-files:200,shards:2,corpus-bytes:1000"

static char *top;

static char *below(const char *name)
{
	return xasprintf("%s/%s", top, name);
}

static int make_top(void **state)
{
	const char *tmp = getenv("TMPDIR");

	(void)state;
	setenv("TF_BOUND", LOWERED, 1);
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

static void many_shards_are_refused(void **state)
{
	struct dataset_plan plan = { .kind = DATASET_TEXT, .format = "test", .map_bytes = 1 << 20 };
	char *folder = below("shards"), *path = below("shards/manifest.json");
	struct sample sample = { .name = "noise" };
	struct dataset_writer *w;
	struct dataset_info info;
	struct err e = ERR_INIT;
	struct buf text = BUF_INIT;
	json_t *manifest, *shards, *shard;
	int rc = 0;

	(void)state;
	for (int i = 0; i < 4096; i++) /* does not compress to nothing */
		buf_printf(&text, "%08x", (unsigned)i * 2654435761u);
	sample.text = text.data;
	sample.text_bytes = text.len;
	assert_ok(dir_make(folder, 0700, &e), &e);
	assert_ok(dataset_writer_open(folder, &plan, &w, &e), &e);
	for (int i = 0; rc == 0 && i < 1000; i++)
		rc = dataset_writer_add(w, &sample, "1", &e);
	assert_int_equal(rc, TF_ELIMIT);
	assert_non_null(strstr(e.text, "more than 2 shards"));
	dataset_writer_close(w);

	/* and when read: a third one in a manifest that is right with two */
	xfree(path);
	xfree(folder);
	folder = below("shard"), path = below("shard/manifest.json");
	assert_ok(dir_make(folder, 0700, &e), &e);
	assert_ok(dataset_writer_open(folder, &plan, &w, &e), &e);
	assert_ok(dataset_writer_add(w, &sample, "1", &e), &e);
	assert_ok(dataset_writer_finish(w, NULL, &e), &e);
	dataset_writer_close(w);
	manifest = json_load_file(path, 0, NULL);
	shards = json_object_get(manifest, "shards");
	assert_int_equal(json_array_size(shards), 1);
	for (int i = 2; i <= 3; i++) {
		shard = json_deep_copy(json_array_get(shards, 0));
		json_object_update_new(json_object_get(shard, "samples"),
				       json_pack("{si}", "train", 0));
		json_array_append_new(shards, shard);
		assert_int_equal(json_dump_file(manifest, path, 0), 0);
		if (i <= SHARDS)
			assert_ok(dataset_read_info(folder, &info, &e), &e);
		else
			assert_int_equal(dataset_read_info(folder, &info, &e), TF_ECORRUPT);
	}
	json_decref(manifest);
	buf_release(&text);
	xfree(path);
	xfree(folder);
}

static void assert_over(const char *name, const char *why)
{
	char *path = below(name);
	struct source *s = NULL;
	struct err e = ERR_INIT;

	assert_int_equal(source_open(&path, 1, NULL, "", &s, &e), TF_ELIMIT);
	if (!strstr(e.text, why))
		fail_msg("%s: '%s' does not say %s", name, e.text, why);
	xfree(path);
}

/* 32 folders in one another are read, one more ends the import. */
static void deep_folders_are_refused(void **state)
{
	struct buf name = BUF_INIT;
	struct err e = ERR_INIT;
	char reason[200], *path;
	int good, bad;

	(void)state;
	buf_text(&name, "depth");
	for (int i = 0; i <= 33; i++) {
		path = below(name.data);
		assert_ok(dir_make(path, 0700, &e), &e);
		xfree(path);
		if (i == 32) {
			buf_text(&name, "/a.txt");
			write_hole(name.data, 0, "as deep as may be");
			name.len -= strlen("/a.txt");
			name.data[name.len] = 0;
			read_all("depth", &good, &bad, reason);
			assert_int_equal(good, 1);
		}
		buf_text(&name, "/d");
	}
	assert_over("depth", "folders more than 32 deep");
	buf_release(&name);
}

static void many_files_are_refused(void **state)
{
	struct err e = ERR_INIT;
	char *folder = below("many"), reason[200], name[32];
	int good, bad;

	(void)state;
	assert_ok(dir_make(folder, 0700, &e), &e);
	for (int i = 0; i <= FILES; i++) {
		if (i == FILES) {
			read_all("many", &good, &bad, reason);
			assert_int_equal(good, FILES);
		}
		snprintf(name, sizeof name, "many/%d.txt", i);
		write_hole(name, 0, "a sentence");
	}
	assert_over("many", "more than 200 files");
	xfree(folder);
}

/* A million pieces and one, each a few bytes: refused when asked for, and in a model. */
static void large_tokenizers_are_refused(void **state)
{
	struct spm_corpus *c = spm_corpus_new();
	char *path = below("pieces.model"), text[CORPUS_BYTES];
	struct buf model = BUF_INIT;
	struct err e = ERR_INIT;
	struct spm *s;
	int32_t got;

	(void)state;
	memset(text, 'a', sizeof text);
	spm_corpus_add(c, text, sizeof text - 10);
	spm_corpus_add(c, text, 11); /* one byte too many */
	assert_int_equal(spm_corpus_left_out(c), 1);
	spm_corpus_add(c, text, 10);
	assert_int_equal(spm_corpus_left_out(c), 1);
	assert_int_equal(spm_corpus_bytes(c), CORPUS_BYTES);
	assert_int_equal(spm_train(c, LIMIT_TOKENIZER_PIECES + 1, path, &got, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "expected 300 to 1000000"));
	spm_corpus_free(c);
	for (int i = 0; i <= LIMIT_TOKENIZER_PIECES; i++) { /* a piece: its text and its type */
		static const char *const first[] = { "<unk>", "<s>", "</s>" };
		char piece[16];
		int n = snprintf(piece, sizeof piece, i < 3 ? "%s" : "%.0s%x",
				 i < 3 ? first[i] : "", i);

		buf_printf(&model, "\n%c\n%c%s\030%c", n + 4, n, piece,
			   i == 0 ? 2 : i < 3 ? 3 : 1);
	}
	assert_ok(file_write(path, model.data, model.len, 0600, &e), &e);
	err_clear(&e);
	assert_int_equal(spm_open(path, &s, &e), TF_EINVALID);
	if (!strstr(e.text, "1000001 pieces, expected 3 to 1000000"))
		fail_msg("it said: %s", e.text);
	buf_release(&model);
	xfree(path);
}

/* A tar is never unpacked: it is read in place, entry by entry. */
struct tar {
	struct buf bytes;
};

/* A head of 512 bytes; the size it claims need not be true. */
static void tar_entry(struct tar *t, const char *name, char type, uint64_t claimed,
		      const char *link, const char *text)
{
	unsigned char head[512] = { 0 };
	unsigned sum = 0;
	size_t len = strlen(text);

	snprintf((char *)head, 100, "%s", name);
	memcpy(head + 100, "0000644\0000000000\0000000000\0", 24);
	snprintf((char *)head + 124, 12, "%011llo", (unsigned long long)claimed);
	memcpy(head + 136, "00000000000", 12);
	head[156] = (unsigned char)type;
	snprintf((char *)head + 157, 100, "%s", link);
	memcpy(head + 257, "ustar\00000", 8);
	memset(head + 148, ' ', 8);
	for (size_t i = 0; i < sizeof head; i++)
		sum += head[i];
	snprintf((char *)head + 148, 8, "%06o", sum);
	buf_append(&t->bytes, head, sizeof head);
	buf_append(&t->bytes, text, len);
	while (t->bytes.len % 512)
		buf_append(&t->bytes, "", 1);
}

static void tar_write(struct tar *t, const char *name)
{
	static const char end[1024];
	struct err e = ERR_INIT;
	char *path = below(name);

	buf_append(&t->bytes, end, sizeof end);
	assert_ok(file_write(path, t->bytes.data, t->bytes.len, 0600, &e), &e);
	buf_release(&t->bytes);
	xfree(path);
}

static void assert_no_tar(const char *name, const char *why)
{
	char *path = below(name);
	struct source *s = NULL;
	struct err e = ERR_INIT;
	struct source_item item;
	int rc = source_open(&path, 1, NULL, "", &s, &e);

	if (rc == 0)
		rc = source_next(s, &item, &e);
	assert_int_equal(rc, TF_EINVALID);
	if (!strstr(e.text, why))
		fail_msg("%s: '%s' does not say %s", name, e.text, why);
	if (s)
		source_close(s);
	xfree(path);
}

static void tar_bombs_are_refused(void **state)
{
	struct tar t = { BUF_INIT };
	char reason[200] = "";
	int good, bad;

	(void)state;
	tar_entry(&t, "a.txt", '0', 077777777777, "", "eight gigabytes that are not there");
	tar_write(&t, "claims.tar");
	assert_no_tar("claims.tar", "the tar ends within 'a.txt'");
	/* an entry of a gigabyte in a few bytes, as GNU tar stores holes */
	tar_entry(&t, "h", 'x', 103, "",
		  "22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.name=b.txt\n"
		  "34 GNU.sparse.realsize=1073741824\n");
	tar_entry(&t, "GNUSparseFile.0/b.txt", '0', 513, "", "1\n1073741823\n1\n");
	buf_append(&t.bytes, "x", 1);
	while (t.bytes.len % 512)
		buf_append(&t.bytes, "", 1);
	tar_write(&t, "sparse.tar");
	assert_no_tar("sparse.tar", "sparse");
	/* nothing is written, whatever the names say; links are not followed */
	tar_entry(&t, "../../outside.txt", '0', 4, "", "text");
	tar_entry(&t, "/tmp/outside.txt", '0', 4, "", "text");
	tar_entry(&t, "link.txt", '2', 0, "/etc/passwd", "");
	tar_entry(&t, "hard.txt", '1', 0, "/etc/passwd", "");
	tar_entry(&t, "device.txt", '3', 0, "", "");
	tar_entry(&t, "good.txt", '0', 10, "", "a sentence");
	tar_write(&t, "names.tar");
	read_all("names.tar", &good, &bad, reason);
	assert_int_equal(good, 1);
	assert_int_equal(bad, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(long_lines_are_passed_over),
		cmocka_unit_test(large_files_are_left_out),
		cmocka_unit_test(long_names_are_left_out),
		cmocka_unit_test(large_models_and_manifests_are_refused),
		cmocka_unit_test(bad_samples_are_listed_up_to_a_bound),
		cmocka_unit_test(many_shards_are_refused),
		cmocka_unit_test(deep_folders_are_refused),
		cmocka_unit_test(many_files_are_refused),
		cmocka_unit_test(large_tokenizers_are_refused),
		cmocka_unit_test(tar_bombs_are_refused),
	};

	return cmocka_run_group_tests_name("bounds", tests, make_top, remove_top);
}
