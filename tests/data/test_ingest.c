/* SPDX-License-Identifier: Apache-2.0
 * Imports from folders, tars, lists and texts: the same files give the same dataset, bad
 * samples are left out by name, an import goes on after any kill, tokenizers come out of it. */
#include "tests/test.h"

#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/philox.h"
#include "model/vae.h"
#include "store/dataset.h"
#include "worker/png.h"
#include "worker/spm.h"
#include "worker/worker.h"

#include <archive.h>
#include <archive_entry.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PICTURES 150

static char top[] = "/tmp/ingest-XXXXXX";
static const char *const colours[] = { "red", "green", "blue", "yellow", "black" };

static char *below(const char *name)
{
	return xasprintf("%s/%s", top, name);
}

static void write_text(const char *folder, const char *name, const char *text, size_t bytes)
{
	char *path = xasprintf("%s/%s", folder, name);
	struct err e = ERR_INIT;

	assert_ok(file_write(path, text, bytes, 0600, &e), &e);
	xfree(path);
}

static void caption(int i, char *out)
{
	sprintf(out, "a %s picture, number %d", colours[i % 5], i);
}

/* A folder of pictures with captions, three bad ones among them; lists beside it. */
/* PNG's checksum. */
static uint32_t crc_of(const uint8_t *data, size_t len)
{
	uint32_t c = 0xFFFFFFFFu;

	for (size_t i = 0; i < len; i++) {
		c ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			c = c >> 1 ^ (c & 1 ? 0xEDB88320u : 0);
	}
	return ~c;
}

/* A picture of a gigapixel in a few hundred bytes. */
static void write_bomb(const char *folder, const char *name)
{
	static const uint8_t side[8] = { 0, 0, 0x7d, 0, 0, 0, 0x7d, 0 }; /* 32000 x 32000 */
	char *path = xasprintf("%s/%s", folder, name);
	struct buf bytes = BUF_INIT;
	struct picture p;
	struct err e = ERR_INIT;
	uint32_t crc;

	picture_init(&p, 8, 8, 0);
	assert_ok(png_write(path, &p, NULL, 0, &e), &e);
	picture_release(&p);
	assert_ok(file_read(path, 1 << 20, &bytes, &e), &e);
	memcpy(bytes.data + 16, side, sizeof side);
	crc = crc_of((const uint8_t *)bytes.data + 12, 17);
	for (int i = 0; i < 4; i++)
		bytes.data[29 + i] = (char)(crc >> (24 - 8 * i));
	write_text(folder, name, bytes.data, bytes.len);
	buf_release(&bytes);
	xfree(path);
}

static void make_folder(void)
{
	char *folder = below("pictures"), *path, text[64];
	struct buf tsv = BUF_INIT, jsonl = BUF_INIT, prose = BUF_INIT;
	struct err e = ERR_INIT;

	assert_ok(dir_make(folder, 0700, &e), &e);
	for (int i = 0; i < PICTURES; i++) {
		struct picture p;

		picture_init(&p, 24 + i % 7, 20 + i % 5, (uint8_t)(i * 5));
		for (int k = 0; k < p.width * p.height * 3; k++)
			p.rgb[k] = (uint8_t)(p.rgb[k] + k % (7 + i % 5) * 9);
		path = xasprintf("%s/p-%03d.png", folder, i);
		assert_ok(png_write(path, &p, NULL, 0, &e), &e);
		xfree(path);
		picture_release(&p);
		caption(i, text);
		buf_printf(&tsv, "p-%03d.png\t%s\n", i, text);
		buf_printf(&jsonl, "{\"image\": \"p-%03d.png\", \"caption\": \"%s\"}\n", i, text);
		buf_printf(&prose, "%s.\n\n", text);
		strcat(text, "\n");
		path = xasprintf("p-%03d.txt", i);
		write_text(folder, path, text, strlen(text));
		xfree(path);
	}
	write_bomb(folder, "x-bomb.png");
	write_text(folder, "x-cut.png", "\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 16);
	write_text(folder, "x-not.jpg", "no picture", 10);
	write_text(folder, "x-empty.webp", "", 0);
	write_text(top, "prose.txt", prose.data, prose.len);
	path = below("tsv");
	assert_ok(dir_make(path, 0700, &e), &e);
	xfree(path);
	write_text(folder, "../tsv/list", tsv.data, tsv.len);
	write_text(folder, "../tsv/lines", jsonl.data, jsonl.len);
	buf_release(&tsv);
	buf_release(&jsonl);
	buf_release(&prose);
	xfree(folder);
}

struct tar_maker {
	struct archive *a;
	const char *folder;
	bool only_good;
};

static int add_to_tar(void *arg, const char *name)
{
	struct tar_maker *t = arg;
	struct archive_entry *entry = archive_entry_new();
	char *path = xasprintf("%s/%s", t->folder, name);
	struct buf bytes = BUF_INIT;
	struct err e = ERR_INIT;

	if (t->only_good && name[0] == 'x')
		goto out;
	assert_ok(file_read(path, 1 << 20, &bytes, &e), &e);
	archive_entry_set_pathname(entry, name);
	archive_entry_set_size(entry, (la_int64_t)bytes.len);
	archive_entry_set_filetype(entry, AE_IFREG);
	archive_entry_set_perm(entry, 0644);
	assert_int_equal(archive_write_header(t->a, entry), ARCHIVE_OK);
	assert_int_equal(archive_write_data(t->a, bytes.data ? bytes.data : "", bytes.len),
			 bytes.len);
out:
	archive_entry_free(entry);
	buf_release(&bytes);
	xfree(path);
	return 0;
}

static void make_tar(const char *folder, const char *path, bool only_good)
{
	struct tar_maker t = { archive_write_new(), folder, only_good };
	struct err e = ERR_INIT;

	archive_write_set_format_pax_restricted(t.a);
	assert_int_equal(archive_write_open_filename(t.a, path), ARCHIVE_OK);
	assert_ok(dir_each(folder, add_to_tar, &t, &e), &e);
	assert_int_equal(archive_write_close(t.a), ARCHIVE_OK);
	archive_write_free(t.a);
}

/* ---- running a job ---- */

struct import {
	const char *source, *tokenizer, *vae; /* folders of the last two, or NULL */
	double holdout;
	uint32_t size;
};

static void add_input(Tf__Assignment *a, Tf__Input *in, const char *role, const char *path)
{
	tf__input__init(in);
	in->role = (char *)role;
	in->name = (char *)role;
	in->path = (char *)path;
	a->input = xrealloc(a->input, a->n_input + 1, sizeof *a->input);
	a->input[a->n_input++] = in;
}

static int run_job(Tf__JobSpec *spec, Tf__Assignment *a, const char *output, struct err *e)
{
	char *folder = below("job");
	struct job job;
	int rc;

	assert_int_equal(dir_make(output, 0700, e), 0);
	a->spec = spec;
	a->job_folder = a->attempt_folder = folder;
	a->output_folder = (char *)output;
	a->device = (char *)"cpu";
	a->has_threads = a->has_map_bytes = true;
	a->threads = 2;
	a->map_bytes = 16 << 20;
	rc = job_init(&job, a, NULL, e);
	if (rc == 0)
		rc = spec->kind == TF__JOB_KIND__INGEST ? job_ingest(&job, e)
							: job_tokenizer(&job, e);
	job_release(&job);
	xfree(a->input);
	xfree(folder);
	return rc;
}

static int import(const struct import *m, const char *output, struct dataset_info *info,
		  struct err *e)
{
	Tf__Assignment a = TF__ASSIGNMENT__INIT;
	Tf__IngestSpec s = TF__INGEST_SPEC__INIT;
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__Input tokenizer, vae;
	char *source = (char *)m->source;

	s.dataset = (char *)"made";
	s.size = m->size ? m->size : 16;
	s.has_holdout_percent = true;
	s.holdout_percent = m->holdout;
	spec.kind = TF__JOB_KIND__INGEST;
	spec.spec_case = TF__JOB_SPEC__SPEC_INGEST;
	spec.ingest = &s;
	a.source = &source;
	a.n_source = 1;
	if (m->tokenizer)
		add_input(&a, &tokenizer, "tokenizer", m->tokenizer);
	if (m->vae)
		add_input(&a, &vae, "vae", m->vae);
	TRY(run_job(&spec, &a, output, e));
	return dataset_read_info(output, info, e);
}

static int make_tokenizer(const char *source, const char *data, bool import, const char *output,
			  struct err *e)
{
	Tf__Assignment a = TF__ASSIGNMENT__INIT;
	Tf__TokenizerSpec s = TF__TOKENIZER_SPEC__INIT;
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__Input in;

	s.tokenizer = (char *)"made";
	s.pieces = 400;
	s.import = import;
	spec.kind = TF__JOB_KIND__TOKENIZER;
	spec.spec_case = TF__JOB_SPEC__SPEC_TOKENIZER;
	spec.tokenizer = &s;
	a.source = (char **)&source;
	a.n_source = source != NULL;
	if (data)
		add_input(&a, &in, "data", data);
	return run_job(&spec, &a, output, e);
}

static int start(void **state)
{
	(void)state;
	if (!mkdtemp(top))
		return -1;
	make_folder();
	return 0;
}

static int end(void **state)
{
	struct err e = ERR_INIT;

	(void)state;
	return dir_remove(top, &e);
}

/* ---- tests ---- */

static void check_captions(const char *folder, const char *name_format)
{
	struct dataset *d;
	struct sample s;
	struct err e = ERR_INIT;
	uint64_t next[2] = { 0 };

	assert_ok(dataset_open(folder, &d, &e), &e);
	for (int i = 0; i < PICTURES; i++) {
		char name[64], text[64];
		enum dataset_split split;

		snprintf(name, sizeof name, name_format, i);
		caption(i, text);
		split = dataset_holdout_by_hash(name, dataset_info(d)->holdout_percent);
		assert_ok(dataset_get(d, split, next[split]++, &s, &e), &e);
		assert_string_equal(s.name, name);
		assert_string_equal(s.text, text);
	}
	dataset_close(d);
}

static void folder_and_tar_are_the_same(void **state)
{
	char *folder = below("pictures"), *tar = below("p.tar"), *a = below("d1"),
	     *b = below("d2");
	struct import m = { .source = folder, .holdout = 10 };
	struct dataset_info x, y;
	struct buf bad = BUF_INIT;
	struct err e = ERR_INIT;
	char *path = xasprintf("%s/%s", a, DATASET_BAD);

	(void)state;
	make_tar(folder, tar, false);
	assert_ok(import(&m, a, &x, &e), &e);
	m.source = tar;
	assert_ok(import(&m, b, &y, &e), &e);
	assert_string_equal(x.hash, y.hash);
	assert_string_equal(x.format, "pictures+captions");
	assert_int_equal(x.kind, DATASET_IMAGES);
	assert_int_equal(x.samples[0] + x.samples[1], PICTURES);
	assert_true(x.samples[1] > 0);
	assert_int_equal(x.bad, 4);
	assert_int_equal(y.bad, 4);
	assert_ok(file_read(path, 1 << 20, &bad, &e), &e);
	assert_non_null(strstr(bad.data, "a picture of 32000 x 32000"));
	assert_non_null(strstr(bad.data, "x-cut"));
	assert_non_null(strstr(bad.data, "x-not"));
	assert_non_null(strstr(bad.data, "x-empty"));
	check_captions(a, "p-%03d");
	buf_release(&bad);
	xfree(path);
	xfree(folder);
	xfree(tar);
	xfree(a);
	xfree(b);
}

static void lists(void **state)
{
	static const char *const from[] = { "tsv/list", "tsv/lines" };
	static const char *const to[] = { "pictures/list.tsv", "pictures/list.jsonl" };
	static const char *const format[] = { "tsv", "jsonl" };
	char *folder = below("pictures"), *tar = below("list.tar");
	struct dataset_info x, y;
	struct err e = ERR_INIT;

	(void)state;
	for (int i = 0; i < 2; i++) {
		char *a = below(from[i]), *b = below(to[i]), *out = xasprintf("%s/l%d", top, i);
		char *out2 = xasprintf("%s/t%d", top, i);
		struct import m = { .source = b, .holdout = 10 };

		assert_int_equal(rename(a, b), 0);
		assert_ok(import(&m, out, &x, &e), &e);
		assert_string_equal(x.format, format[i]);
		assert_int_equal(x.samples[0] + x.samples[1], PICTURES);
		assert_int_equal(x.bad, 0);
		check_captions(out, "p-%03d");
		make_tar(folder, tar, true);
		m.source = tar;
		assert_ok(import(&m, out2, &y, &e), &e);
		assert_string_equal(x.hash, y.hash);
		assert_int_equal(unlink(b), 0);
		xfree(a);
		xfree(b);
		xfree(out);
		xfree(out2);
	}
	xfree(folder);
	xfree(tar);
}

static const char mixed[] = "{\"text\": \"one\"}\n\n{\"text\": 5}\nnot json\n{\"text\": \"two\"}";

static void texts(void **state)
{
	char *prose = below("prose.txt"), *a = below("d3"), *t = below("tok"), *b = below("d4");
	struct import m = { .source = prose, .holdout = 10, .tokenizer = t };
	struct dataset_info x;
	struct dataset *d;
	struct sample s;
	struct spm *spm;
	struct buf back = BUF_INIT;
	int32_t token[64];
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(make_tokenizer(prose, NULL, false, t, &e), &e);
	assert_ok(import(&m, a, &x, &e), &e);
	assert_string_equal(x.format, "text lines");
	assert_int_equal(x.kind, DATASET_TEXT);
	assert_int_equal(x.samples[0] + x.samples[1], PICTURES);
	assert_ok(spm_open_folder(t, &spm, &e), &e);
	assert_string_equal(x.tokenizer, spm_hash(spm));
	assert_ok(dataset_open(a, &d, &e), &e);
	assert_ok(dataset_get(d, DATASET_TRAIN, 5, &s, &e), &e);
	assert_true(s.tokens > 0 && s.tokens < 64);
	sample_tokens(&s, 0, s.tokens, token);
	assert_ok(spm_decode(spm, token, s.tokens, &back, &e), &e);
	assert_string_equal(back.data, s.text);
	dataset_close(d);
	spm_close(spm);
	buf_release(&back);
	write_text(top, "t.jsonl", mixed, sizeof mixed - 1);
	xfree(prose);
	prose = below("t.jsonl");
	m.source = prose;
	assert_ok(import(&m, b, &x, &e), &e);
	assert_int_equal(x.samples[0] + x.samples[1], 2);
	assert_int_equal(x.bad, 2);
	xfree(prose);
	xfree(a);
	xfree(b);
	xfree(t);
}

/* A tokenizer learns from the training split of a dataset and can be imported again. */
static void tokenizers(void **state)
{
	char *data = below("d1"), *t = below("tok2"), *u = below("tok3"),
	     *bad = below("prose.txt");
	char *file = xasprintf("%s/%s", t, SPM_FILE);
	struct err e = ERR_INIT;
	struct spm *x, *y;

	(void)state;
	assert_ok(make_tokenizer(NULL, data, false, t, &e), &e);
	assert_ok(make_tokenizer(file, NULL, true, u, &e), &e);
	assert_ok(spm_open_folder(t, &x, &e), &e);
	assert_ok(spm_open_folder(u, &y, &e), &e);
	assert_string_equal(spm_hash(x), spm_hash(y));
	assert_true(spm_is_exact(x));
	spm_close(x);
	spm_close(y);
	assert_int_equal(make_tokenizer(bad, NULL, true, u, &e), TF_EINVALID);
	xfree(data);
	xfree(t);
	xfree(u);
	xfree(bad);
	xfree(file);
}

static void latents(void **state)
{
	char *folder = below("pictures"), *v = below("vae"), *out = below("d5"),
	     *t = below("tok");
	char *path = xasprintf("%s/%s", v, VAE_FILE);
	struct import m = { .source = folder, .holdout = 10, .vae = v, .tokenizer = t };
	struct kernels *k = NULL;
	struct dataset_info x;
	struct dataset *d;
	struct sample s;
	struct vae *vae;
	float expected[2 * 2 * 8], found[2 * 2 * 8];
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(kernels_open("cpu", 1, &k, &e), &e);
	assert_ok(dir_make(v, 0700, &e), &e);
	assert_ok(vae_new(k, &vae_config_small, DT_F32, 1, &vae, &e), &e);
	assert_ok(vae_save(vae, path, &e), &e);
	assert_ok(import(&m, out, &x, &e), &e);
	assert_int_equal(x.kind, DATASET_PAIRS);
	assert_int_equal(x.rows * x.columns * x.channels, 32);
	assert_string_equal(x.vae, vae_hash(vae));
	assert_true(x.pixels);
	assert_ok(dataset_open(out, &d, &e), &e);
	for (uint64_t i = 0; i < 100; i += 33) {
		assert_ok(dataset_get(d, DATASET_TRAIN, i, &s, &e), &e);
		assert_ok(vae_encode_u8(vae, s.pixels, 1, 16, 16, expected, &e), &e);
		sample_latent(&s, NULL, NULL, found);
		for (int j = 0; j < 32; j++)
			assert_float_equal(found[j], expected[j],
					   0.01 * (1 + fabsf(expected[j])));
	}
	dataset_close(d);
	vae_free(vae);
	kernels_close(k);
	m.size = 20;
	m.vae = v;
	xfree(out);
	out = below("d6");
	assert_int_equal(import(&m, out, &x, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "multiple of 8"));
	xfree(folder);
	xfree(v);
	xfree(out);
	xfree(t);
	xfree(path);
}

static void killed_imports_go_on(void **state)
{
	char *folder = below("pictures"), *a = below("d1"), *b = below("d7");
	struct import m = { .source = folder, .holdout = 10 };
	struct dataset_info x, y;
	struct err e = ERR_INIT;
	int kills = 0, status;

	(void)state;
	assert_ok(dataset_read_info(a, &x, &e), &e);
	for (uint64_t i = 0; i < 10; i++) {
		pid_t pid = fork();

		assert_true(pid >= 0);
		if (pid == 0)
			_exit(import(&m, b, &y, &e) < 0);
		clock_sleep_ms(1 + (int64_t)philox_below(5, PHILOX_TEST, i, 0, 12));
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		kills += WIFSIGNALED(status);
	}
	assert_true(kills > 0);
	assert_ok(import(&m, b, &y, &e), &e);
	assert_string_equal(x.hash, y.hash);
	assert_int_equal(x.bad, y.bad);
	xfree(folder);
	xfree(a);
	xfree(b);
}

static void hopeless(void **state)
{
	char *bad = below("bad"), *out = below("d8"), *nowhere = below("nowhere");
	struct import m = { .source = bad };
	struct dataset_info x;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dir_make(bad, 0700, &e), &e);
	assert_int_equal(import(&m, out, &x, &e), TF_EINVALID);
	write_text(bad, "a.png", "nothing", 7);
	err_clear(&e);
	assert_int_equal(import(&m, out, &x, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "none of the 1 samples"));
	m.source = nowhere;
	err_clear(&e);
	assert_int_equal(import(&m, out, &x, &e), TF_ENOTFOUND);
	write_text(top, "cut.tar", "x", 1);
	xfree(nowhere);
	nowhere = below("cut.tar");
	m.source = nowhere;
	err_clear(&e);
	assert_int_equal(import(&m, out, &x, &e), TF_EINVALID);
	xfree(bad);
	xfree(out);
	xfree(nowhere);
}

/* A list that names files outside its folder reads none of them. */
static void lists_stay_below(void **state)
{
	static const char list[] = "../pictures/p-001.png\tup\n/etc/hostname.png\troot\n";
	char *folder = below("jail"), *out = below("d9"), *file = below("jail/l.tsv");
	char *link = below("jail/link.png"), *to = below("pictures/p-002.png");
	struct import m = { .source = file };
	struct dataset_info x;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dir_make(folder, 0700, &e), &e);
	assert_int_equal(symlink(to, link), 0);
	write_text(folder, "l.tsv", list, sizeof list - 1);
	assert_int_equal(import(&m, out, &x, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "none of the 2 samples"));
	m.source = folder;
	write_text(folder, "l.tsv", "link.png\tlinked\n", 16);
	err_clear(&e);
	assert_int_equal(import(&m, out, &x, &e), TF_EINVALID);
	xfree(folder);
	xfree(out);
	xfree(file);
	xfree(link);
	xfree(to);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(folder_and_tar_are_the_same),
		cmocka_unit_test(lists),
		cmocka_unit_test(texts),
		cmocka_unit_test(tokenizers),
		cmocka_unit_test(killed_imports_go_on),
		cmocka_unit_test(latents),
		cmocka_unit_test(hopeless),
		cmocka_unit_test(lists_stay_below),
	};

	return cmocka_run_group_tests_name("ingest", tests, start, end);
}
