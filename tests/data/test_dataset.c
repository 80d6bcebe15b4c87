/* SPDX-License-Identifier: Apache-2.0
 * Datasets: what is written comes back, wherever the writer was killed; damage is named; the
 * held-out rule never moves. */
#include "tests/test.h"

#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/philox.h"
#include "store/dataset.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAP_BYTES (16u << 20)

static const float mean[2] = { 0.5f, -0.25f }, deviation[2] = { 2, 0.3333f };

static char *new_folder(void)
{
	const char *tmp = getenv("TMPDIR");
	char *path = xasprintf("%s/dataset-XXXXXX", tmp ? tmp : "/tmp");

	assert_non_null(mkdtemp(path));
	return path;
}

static void remove_folder(char *path)
{
	struct err e = ERR_INIT;

	assert_ok(dir_remove(path, &e), &e);
	xfree(path);
}

static struct dataset_plan plan_of(enum dataset_kind kind)
{
	struct dataset_plan p = { .kind = kind,
				  .tokenizer = "0123456789abcdef0123456789abcdef",
				  .pieces = 70000,
				  .holdout = { .percent = 5 },
				  .format = "test",
				  .map_bytes = MAP_BYTES };

	if (kind != DATASET_TEXT) {
		p.height = p.width = 16;
		p.pixels = true;
	}
	if (kind == DATASET_PAIRS) {
		p.vae = "fedcba9876543210fedcba9876543210";
		p.rows = p.columns = 4;
		p.channels = 2;
		p.mean = mean;
		p.deviation = deviation;
	}
	return p;
}

/* Sample number i of a made-up source: the same each time it is asked for. */
struct made {
	char name[32], text[4096];
	int32_t token[512];
	uint8_t pixels[16 * 16 * 3];
	uint16_t latent[4 * 4 * 2];
	struct sample s;
};

static void make(struct made *m, uint64_t i, const struct dataset_plan *p)
{
	size_t length = philox_below(1, PHILOX_TEST, i, 0, 500);

	memset(m, 0, sizeof *m);
	snprintf(m->name, sizeof m->name, "folder/sample-%llu", (unsigned long long)i);
	for (size_t k = 0; k < length; k++)
		m->text[k] = (char)('a' + (i + k) % 26);
	for (size_t k = 0; k < length; k++)
		m->token[k] = (int32_t)philox_below(2, PHILOX_TEST, i, k,
						    i % 3 ? 60000 : (uint64_t)p->pieces);
	for (size_t k = 0; k < sizeof m->pixels; k++)
		m->pixels[k] = (uint8_t)(i * 7 + k);
	for (size_t k = 0; k < 32; k++)
		m->latent[k] = (uint16_t)(0x3f00 + i % 64 + k);
	m->s = (struct sample){ .name = m->name,
				.text = m->text,
				.text_bytes = length,
				.token = m->token,
				.tokens = length,
				.token_bytes = 4 };
	if (p->pixels) {
		m->s.pixels = m->pixels;
		m->s.height = m->s.width = 16;
	}
	if (p->vae) {
		m->s.latent = m->latent;
		m->s.rows = m->s.columns = 4;
		m->s.channels = 2;
	}
}

/* Writes samples first..count of the source, every 50th bad, from where the folder has come to.
 *  */
static int write_all(const char *folder, const struct dataset_plan *p, uint64_t count,
		     struct dataset_info *info, struct err *e)
{
	struct dataset_writer *w = NULL;
	struct made *m = xmalloc(sizeof *m);
	int rc = dataset_writer_open(folder, p, &w, e);

	for (uint64_t i = w ? strtoull(dataset_writer_position(w), NULL, 10) : 0;
	     rc >= 0 && i < count; i++) {
		char position[24];

		snprintf(position, sizeof position, "%llu", (unsigned long long)i + 1);
		make(m, i, p);
		rc = i % 50 == 49 ? dataset_writer_bad(w, m->name, "is a test", position, e)
				  : dataset_writer_add(w, &m->s, position, e);
	}
	if (rc >= 0)
		rc = dataset_writer_finish(w, info, e);
	dataset_writer_close(w);
	xfree(m);
	return rc;
}

/* Every sample is what was given, in its order, in the split of its name. */
static void check_all(const char *folder, const struct dataset_plan *p, uint64_t count)
{
	uint64_t next[DATASET_SPLITS] = { 0 };
	struct made *m = xmalloc(sizeof *m);
	struct err e = ERR_INIT;
	struct dataset *d;
	int32_t token[512];
	float latent[32];

	assert_ok(dataset_open(folder, &d, &e), &e);
	for (uint64_t i = 0; i < count; i++) {
		enum dataset_split split;
		struct sample s;

		make(m, i, p);
		if (i % 50 == 49)
			continue;
		split = dataset_holdout_by_hash(m->name, p->holdout.percent);
		assert_ok(dataset_get(d, split, next[split]++, &s, &e), &e);
		assert_string_equal(s.name, m->name);
		assert_int_equal(s.text_bytes, m->s.text_bytes);
		assert_string_equal(s.text, m->text);
		assert_int_equal(s.tokens, m->s.tokens);
		sample_tokens(&s, 0, s.tokens, token);
		assert_memory_equal(token, m->token, s.tokens * 4);
		if (p->pixels)
			assert_memory_equal(s.pixels, m->pixels, sizeof m->pixels);
		if (p->vae) {
			uint32_t bits = (uint32_t)m->latent[5] << 16;
			float raw;

			memcpy(&raw, &bits, 4);
			sample_latent(&s, dataset_info(d)->mean, dataset_info(d)->deviation,
				      latent);
			assert_true(latent[5] == (raw - mean[1]) / deviation[1]);
			sample_latent(&s, NULL, NULL, latent);
			assert_true(latent[5] == raw);
		}
	}
	for (int k = 0; k < DATASET_SPLITS; k++)
		assert_int_equal(dataset_info(d)->samples[k], next[k]);
	assert_true(next[DATASET_HELDOUT] > 0);
	dataset_close(d);
	xfree(m);
}

static void assert_good(const char *folder, bool expected, const char *word)
{
	struct buf report = BUF_INIT;
	struct err e = ERR_INIT;
	bool good;

	assert_ok(dataset_verify(folder, &report, &good, NULL, NULL, &e), &e);
	if (good != expected || (word && !strstr(report.data, word)))
		fail_msg("expected %s: %s", word ? word : "good", report.data);
	buf_release(&report);
}

static void round_trip(void **state)
{
	(void)state;
	for (int kind = 0; kind < DATASET_KINDS; kind++) {
		struct dataset_plan p = plan_of(kind);
		char *folder = new_folder();
		struct dataset_info info;
		struct err e = ERR_INIT;

		assert_ok(write_all(folder, &p, 3000, &info, &e), &e);
		assert_int_equal(info.bad, 60);
		assert_int_equal(info.samples[0] + info.samples[1], 2940);
		check_all(folder, &p, 3000);
		assert_good(folder, true, NULL);
		remove_folder(folder);
	}
}

/* The hash does not depend on shards. */
static void several_shards(void **state)
{
	struct dataset_plan p = plan_of(DATASET_IMAGES);
	char *one = new_folder(), *many = new_folder(), *path;
	struct dataset_info a, b;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(write_all(one, &p, 4000, &a, &e), &e);
	p.map_bytes = 2 << 20;
	assert_ok(write_all(many, &p, 4000, &b, &e), &e);
	path = xasprintf("%s/shard-0002.mdb", many);
	assert_true(file_exists(path));
	assert_string_equal(a.hash, b.hash);
	check_all(many, &p, 4000);
	assert_good(many, true, NULL);
	xfree(path);
	remove_folder(one);
	remove_folder(many);
}

/* A child writes and is killed after `ms`; false when it had come to its end by then. */
static bool killed_after(const char *folder, const struct dataset_plan *p, uint64_t count, int ms)
{
	struct err e = ERR_INIT;
	int status;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0)
		_exit(write_all(folder, p, count, NULL, &e) < 0 ? 1 : 0);
	clock_sleep_ms(ms);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_false(WIFEXITED(status) && WEXITSTATUS(status) == 1);
	return WIFSIGNALED(status);
}

static void killed_and_resumed(void **state)
{
	struct dataset_plan p = plan_of(DATASET_PAIRS);
	char *whole = new_folder(), *broken = new_folder();
	struct dataset_info a, b;
	struct err e = ERR_INIT;
	unsigned kills = 0;
	int64_t start = clock_mono_ms(), length;

	(void)state;
	p.map_bytes = 2 << 20;
	assert_ok(write_all(whole, &p, 6000, &a, &e), &e);
	length = clock_mono_ms() - start;
	for (uint64_t i = 0; i < 12; i++)
		kills += killed_after(
			broken, &p, 6000,
			(int)philox_below(4, PHILOX_TEST, i, 0, (uint64_t)length / 2 + 2));
	assert_true(kills > 0);
	assert_ok(write_all(broken, &p, 6000, &b, &e), &e);
	assert_string_equal(a.hash, b.hash);
	assert_int_equal(a.bad, b.bad);
	check_all(broken, &p, 6000);
	assert_good(broken, true, NULL);
	remove_folder(whole);
	remove_folder(broken);
}

/* What was synced is there, what came after it is not. */
static void synced_is_durable(void **state)
{
	struct dataset_plan p = plan_of(DATASET_TEXT);
	char *folder = new_folder();
	struct dataset_writer *w;
	struct made *m = xmalloc(sizeof *m);
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dataset_writer_open(folder, &p, &w, &e), &e);
	for (uint64_t i = 0; i < 10; i++) {
		make(m, i, &p);
		assert_ok(dataset_writer_add(w, &m->s, i < 5 ? "5" : "10", &e), &e);
		if (i == 4)
			assert_ok(dataset_writer_sync(w, &e), &e);
	}
	dataset_writer_close(w);
	assert_ok(dataset_writer_open(folder, &p, &w, &e), &e);
	assert_string_equal(dataset_writer_position(w), "5");
	assert_int_equal(dataset_writer_samples(w), 5);
	dataset_writer_close(w);
	xfree(m);
	remove_folder(folder);
}

static void other_plan_is_refused(void **state)
{
	struct dataset_plan p = plan_of(DATASET_TEXT);
	struct dataset_writer *w;
	char *folder = new_folder();
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(write_all(folder, &p, 100, NULL, &e), &e);
	p.holdout.percent = 6;
	assert_int_equal(dataset_writer_open(folder, &p, &w, &e), TF_EMISMATCH);
	remove_folder(folder);
}

static void flip(const char *folder, const char *file, off_t at)
{
	char *path = xasprintf("%s/%s", folder, file), byte;
	int fd = open(path, O_RDWR);

	assert_true(fd >= 0);
	if (at < 0)
		at += lseek(fd, 0, SEEK_END);
	assert_int_equal(pread(fd, &byte, 1, at), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	close(fd);
	xfree(path);
}

static void damage_is_named(void **state)
{
	struct dataset_plan p = plan_of(DATASET_IMAGES);
	char *folder = new_folder(), *shard, *manifest;
	struct dataset *d;
	struct err e = ERR_INIT;
	struct stat before;

	(void)state;
	assert_ok(write_all(folder, &p, 1000, NULL, &e), &e);
	shard = xasprintf("%s/shard-0000.mdb", folder);
	manifest = xasprintf("%s/%s", folder, DATASET_MANIFEST);
	assert_int_equal(stat(shard, &before), 0);
	for (int i = 0; i < 20; i++) {
		off_t at = (off_t)philox_below(3, PHILOX_TEST, (uint64_t)i, 0,
					       (uint64_t)before.st_size);

		flip(folder, "shard-0000.mdb", at);
		assert_good(folder, false, "shard-0000.mdb");
		flip(folder, "shard-0000.mdb", at);
	}
	assert_good(folder, true, NULL);
	assert_int_equal(truncate(shard, before.st_size - 4096), 0);
	assert_good(folder, false, "shard-0000.mdb: found");
	assert_int_equal(dataset_open(folder, &d, &e), TF_ECORRUPT);
	assert_non_null(strstr(e.text, "shard-0000.mdb"));
	flip(folder, DATASET_MANIFEST, 0);
	err_clear(&e);
	assert_int_equal(dataset_open(folder, &d, &e), TF_ECORRUPT);
	assert_good(folder, false, DATASET_MANIFEST);
	assert_int_equal(unlink(manifest), 0);
	err_clear(&e);
	assert_int_equal(dataset_open(folder, &d, &e), TF_ENOTFOUND);
	xfree(shard);
	xfree(manifest);
	remove_folder(folder);
}

/* A flipped bit inside a record is found when the sample is read. */
static void damaged_record_is_named(void **state)
{
	struct dataset_plan p = plan_of(DATASET_IMAGES);
	char *folder = new_folder(), *shard;
	struct buf bytes = BUF_INIT;
	struct dataset *d;
	struct sample s;
	struct err e = ERR_INIT;
	size_t at = 0;

	(void)state;
	assert_ok(write_all(folder, &p, 200, NULL, &e), &e);
	shard = xasprintf("%s/shard-0000.mdb", folder);
	assert_ok(file_read(shard, 1 << 30, &bytes, &e), &e);
	while (at + 16 < bytes.len && memcmp(bytes.data + at, "folder/sample-0", 16) != 0)
		at++;
	flip(folder, "shard-0000.mdb", (off_t)at + 40);
	assert_ok(dataset_open(folder, &d, &e), &e);
	assert_int_equal(dataset_get(d, dataset_holdout_by_hash("folder/sample-0", 5), 0, &s, &e),
			 TF_ECORRUPT);
	assert_non_null(strstr(e.text, "shard-0000.mdb: train sample 0"));
	dataset_close(d);
	buf_release(&bytes);
	xfree(shard);
	remove_folder(folder);
}

/* The rule is part of published figures: these names never change sides. */
static void held_out_rule(void **state)
{
	int held = 0;

	(void)state;
	for (int i = 0; i < 20000; i++) {
		char name[32];

		snprintf(name, sizeof name, "picture-%d", i);
		held += dataset_holdout_by_hash(name, 5);
	}
	assert_in_range(held, 940, 1060);
	assert_false(dataset_holdout_by_hash("mango", 0));
	assert_true(dataset_holdout_by_hash("mango", 100));
	assert_false(dataset_holdout_by_hash("", 69.2));
	assert_true(dataset_holdout_by_hash("", 69.22));
}

static void held_out_list(void **state)
{
	char *names[] = { "sample-7", "folder/sample-3" };
	struct dataset_plan p = plan_of(DATASET_TEXT);
	char *folder = new_folder();
	struct dataset_info info;
	struct dataset *d;
	struct sample s;
	struct err e = ERR_INIT;

	(void)state;
	p.holdout.name = names;
	p.holdout.names = 2;
	assert_ok(write_all(folder, &p, 40, &info, &e), &e);
	assert_int_equal(info.samples[DATASET_HELDOUT], 2);
	assert_ok(dataset_open(folder, &d, &e), &e);
	assert_ok(dataset_get(d, DATASET_HELDOUT, 0, &s, &e), &e);
	assert_string_equal(s.name, "folder/sample-3");
	assert_int_equal(dataset_get(d, DATASET_HELDOUT, 2, &s, &e), TF_EINVALID);
	dataset_close(d);
	remove_folder(folder);
}

static void held_out_names_of_nobody(void **state)
{
	char *names[] = { "sample-7.png", "sample-3.png" };
	struct dataset_plan p = plan_of(DATASET_TEXT);
	char *folder = new_folder();
	struct err e = ERR_INIT;

	(void)state;
	p.holdout.name = names;
	p.holdout.names = 2;
	assert_int_equal(write_all(folder, &p, 40, NULL, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "none of the 2 is a sample's, found 'sample-3.png'"));
	remove_folder(folder);
}

static void words_about_it(void **state)
{
	struct dataset_plan p = plan_of(DATASET_PAIRS);
	char *folder = new_folder();
	struct buf text = BUF_INIT;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(write_all(folder, &p, 60, NULL, &e), &e);
	assert_ok(dataset_sample_json(folder, 3, 1, &text, &e), &e);
	assert_non_null(strstr(text.data, "folder/sample-"));
	buf_clear(&text);
	assert_ok(dataset_info_json(folder, &text, &e), &e);
	assert_non_null(strstr(text.data, "\"pairs\""));
	buf_release(&text);
	remove_folder(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),
		cmocka_unit_test(several_shards),
		cmocka_unit_test(killed_and_resumed),
		cmocka_unit_test(synced_is_durable),
		cmocka_unit_test(other_plan_is_refused),
		cmocka_unit_test(damage_is_named),
		cmocka_unit_test(damaged_record_is_named),
		cmocka_unit_test(held_out_rule),
		cmocka_unit_test(held_out_list),
		cmocka_unit_test(held_out_names_of_nobody),
		cmocka_unit_test(words_about_it),
	};

	return cmocka_run_group_tests_name("dataset", tests, NULL, NULL);
}
