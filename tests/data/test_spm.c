/* SPDX-License-Identifier: Apache-2.0
 * Tokenizers: exact round trips, small corpora, the same file from the same text, and models that
 * are refused. */
#include "tests/test.h"

#include "lib/files.h"
#include "lib/mem.h"
#include "lib/philox.h"
#include "worker/spm.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/spm-XXXXXX";

static const char *const words[] = { "red",  "apple", "green", "a",      "the",
				     "cat",  "dog",   "sees",  "eats",   "under",
				     "tree", "house", "moon",  "bright", "slow" };

static struct spm_corpus *made_corpus(size_t lines)
{
	struct spm_corpus *c = spm_corpus_new();

	for (size_t i = 0; i < lines; i++) {
		struct buf line = BUF_INIT;

		for (uint64_t k = 0; k < 8; k++)
			buf_printf(&line, "%s%s", k ? " " : "",
				   words[philox_below(1, PHILOX_TEST, i, k, ARRAY_LEN(words))]);
		spm_corpus_add(c, line.data, line.len);
		buf_release(&line);
	}
	return c;
}

static int start(void **state)
{
	(void)state;
	return mkdtemp(folder) ? 0 : -1;
}

static int end(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	return dir_remove(folder, &e);
}

static void assert_exact(struct spm *s, const char *text, size_t bytes)
{
	struct buf back = BUF_INIT;
	struct err e = ERR_INIT;
	int32_t *token;
	size_t count;

	assert_ok(spm_encode(s, text, bytes, &token, &count, &e), &e);
	for (size_t i = 0; i < count; i++)
		assert_in_range(token[i], 3, spm_pieces(s) - 1);
	assert_ok(spm_decode(s, token, count, &back, &e), &e);
	assert_int_equal(back.len, bytes);
	if (bytes)
		assert_memory_equal(back.data, text, bytes);
	xfree(token);
	buf_release(&back);
}

static void exact_round_trip(void **state)
{
	static const char *const texts[] = { "", " ", "a red  apple \n\t cat ",
					     "\xf0\x9f\x8d\x8e na\xc3\xafve",
					     "<s>moon</s> <unk>" };
	char *path = xasprintf("%s/a.model", folder);
	struct spm_corpus *c = made_corpus(400);
	struct err e = ERR_INIT;
	struct spm *s;
	int32_t got;

	(void)state;
	assert_ok(spm_train(c, 330, path, &got, &e), &e);
	assert_int_equal(got, 330);
	assert_ok(spm_open(path, &s, &e), &e);
	assert_int_equal(spm_pieces(s), 330);
	assert_int_equal(spm_bos(s), 1);
	assert_int_equal(spm_eos(s), 2);
	assert_true(spm_is_exact(s));
	for (size_t i = 0; i < ARRAY_LEN(texts); i++)
		assert_exact(s, texts[i], strlen(texts[i]));
	for (uint64_t i = 0; i < 200; i++) {
		struct buf text = BUF_INIT;

		for (uint64_t k = 0; k < 20; k++) {
			unsigned code = 1 + (unsigned)philox_below(5, PHILOX_TEST, i, k, 0x7fe);

			if (code < 0x80)
				buf_printf(&text, "%c", (int)code);
			else
				buf_printf(&text, "%c%c", (int)(0xC0 | code >> 6),
					   (int)(0x80 | (code & 0x3F)));
		}
		assert_exact(s, text.data, text.len);
		buf_release(&text);
	}
	spm_close(s);
	spm_corpus_free(c);
	xfree(path);
}

static void small_corpora(void **state)
{
	static const size_t lines[] = { 1, 2, 5, 20 };
	char *path = xasprintf("%s/small.model", folder);
	struct err e = ERR_INIT;
	struct spm_corpus *c;
	struct spm *s;
	int32_t got;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
		c = made_corpus(lines[i]);
		assert_ok(spm_train(c, 2000, path, &got, &e), &e);
		assert_in_range(got, 259, 1999);
		assert_ok(spm_open(path, &s, &e), &e);
		assert_exact(s, "unseen: \xe2\x82\xac 5", 14);
		spm_close(s);
		spm_corpus_free(c);
	}
	c = spm_corpus_new();
	assert_int_equal(spm_train(c, 2000, path, &got, &e), TF_EINVALID);
	spm_corpus_add(c, "\xff\xfe", 2);
	assert_int_equal(spm_corpus_left_out(c), 1);
	spm_corpus_free(c);
	xfree(path);
}

/* Hundreds of characters that occur once: more than 300 pieces can name. */
static void many_characters(void **state)
{
	char *path = xasprintf("%s/many.model", folder);
	struct spm_corpus *c = made_corpus(2);
	struct buf text = BUF_INIT;
	struct err e = ERR_INIT;
	int32_t got;

	(void)state;
	for (unsigned code = 0x4e00; code < 0x4e00 + 500; code++)
		buf_printf(&text, "%c%c%c", (int)(0xE0 | code >> 12),
			   (int)(0x80 | (code >> 6 & 0x3F)), (int)(0x80 | (code & 0x3F)));
	spm_corpus_add(c, text.data, text.len);
	assert_int_equal(spm_train(c, 300, path, &got, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "too few"));
	assert_ok(spm_train(c, 1000, path, &got, &e), &e);
	spm_corpus_free(c);
	buf_release(&text);
	xfree(path);
}

static void same_text_same_file(void **state)
{
	char *a = xasprintf("%s/x.model", folder), *b = xasprintf("%s/y.model", folder);
	struct spm_corpus *c = made_corpus(100);
	struct err e = ERR_INIT;
	struct spm *s, *t;
	int32_t got;

	(void)state;
	assert_ok(spm_train(c, 320, a, &got, &e), &e);
	assert_ok(spm_train(c, 320, b, &got, &e), &e);
	assert_ok(spm_open(a, &s, &e), &e);
	assert_ok(spm_open(b, &t, &e), &e);
	assert_string_equal(spm_hash(s), spm_hash(t));
	spm_close(s);
	spm_close(t);
	spm_corpus_free(c);
	xfree(a);
	xfree(b);
}

static void refused(void **state)
{
	char *path = xasprintf("%s/bad.model", folder);
	struct err e = ERR_INIT;
	struct spm *s;

	(void)state;
	assert_int_equal(spm_open(path, &s, &e), TF_ENOTFOUND);
	err_clear(&e);
	assert_ok(file_write(path, "no model at all", 15, 0600, &e), &e);
	err_clear(&e);
	assert_int_equal(spm_open(path, &s, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "not a SentencePiece model"));
	assert_ok(file_write(path, "", 0, 0600, &e), &e);
	err_clear(&e);
	assert_int_equal(spm_open(path, &s, &e), TF_EINVALID);
	xfree(path);
}

/* SentencePiece's own test model, where it is at hand. */
static void known_model(void **state)
{
	static const int32_t expected[] = { 151, 88, 21, 887, 6, 284, 47, 11, 4, 15, 400, 6 };
	const char *data = getenv("TF_SHARED_DATA");
	struct err e = ERR_INIT;
	int32_t *token;
	size_t count;
	struct spm *s;
	char *path;

	(void)state;
	if (!data) {
		print_message("# skipped: TF_SHARED_DATA names no folder\n");
		skip();
	}
	path = xasprintf("%s/tokenizer-1000.model", data);
	assert_ok(spm_open(path, &s, &e), &e);
	assert_int_equal(spm_pieces(s), 1000);
	assert_ok(spm_encode(s, "Hello world. This is a test.", 28, &token, &count, &e), &e);
	assert_int_equal(count, ARRAY_LEN(expected));
	assert_memory_equal(token, expected, sizeof expected);
	assert_int_equal(spm_encode(s, "\xc3", 1, &token, &count, &e), TF_EINVALID);
	spm_close(s);
	xfree(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(exact_round_trip), cmocka_unit_test(small_corpora),
		cmocka_unit_test(many_characters),  cmocka_unit_test(same_text_same_file),
		cmocka_unit_test(refused),          cmocka_unit_test(known_model),
	};

	return cmocka_run_group_tests_name("spm", tests, start, end);
}
