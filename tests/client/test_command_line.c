/* SPDX-License-Identifier: Apache-2.0
 * The tables of verbs and options, the reading of a command line, near misses, numbers for
 * people, and the shapes of --json. */
#include "tests/test.h"
#include "client/client.h"
#include "client/files.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int read_line(const char *word, const char *sub, struct args *a, struct err *e, ...)
{
	char *argv[16] = { (char *)word };
	int argc = 1;
	va_list rest;

	va_start(rest, e);
	while ((argv[argc] = va_arg(rest, char *)) != NULL)
		argc++;
	va_end(rest);
	err_clear(e);
	return args_read(verb_find(word, sub), argc, argv, a, e);
}

/* Every option a verb names exists, every verb has an example that names it, no two are alike. */
static void tables(void **state)
{
	(void)state;
	for (size_t i = 0; i < verb_count; i++) {
		const struct verb *v = &verbs[i];
		char *copy = xstrdup(v->options), *save, name[64];
		size_t named = 0, taken = 0;

		for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save))
			named++;
		for (int o = 0; o < OPTIONS; o++)
			taken += verb_takes(v, o);
		if (taken != named + GLOBAL_OPTIONS)
			fail_msg("%s %s names %zu options, %zu exist", v->word, v->sub, named,
				 taken - GLOBAL_OPTIONS);
		snprintf(name, sizeof name, "transfuse %s%s%s", v->word, *v->sub ? " " : "",
			 v->sub);
		if (strncmp(v->example, name, strlen(name)) != 0)
			fail_msg("the example of %s is '%s'", name, v->example);
		assert_ptr_equal(verb_find(v->word, v->sub), v);
		xfree(copy);
	}
}

/* The example of each verb is a command line that is accepted. */
static void examples(void **state)
{
	(void)state;
	for (size_t i = 0; i < verb_count; i++) {
		char *copy = xstrdup(verbs[i].example), *argv[24] = { NULL }, *save;
		struct err e = ERR_INIT;
		struct args a;
		int argc = 0, skip = *verbs[i].sub ? 2 : 1;

		for (char *w = strtok_r(copy, " ", &save); w && *w != '>' && argc < 23;
		     w = strtok_r(NULL, " ", &save)) {
			if (argc && w[strlen(w) - 1] == '"' && *w != '"')
				continue; /* the rest of a quoted text */
			argv[argc++] = w;
		}
		argv[argc] = NULL;
		assert_ok(args_read(&verbs[i], argc - skip, argv + skip, &a, &e), &e);
		args_release(&a);
		xfree(copy);
	}
}

static void reading(void **state)
{
	struct err e = ERR_INIT;
	struct args a;
	int64_t n = 7;
	double x = 1.5;

	(void)state;
	assert_ok(read_line("generate", "", &a, &e, "mine", "--prompt", "a", "-n", "4", "-w",
			    "--prompt=b", "--guidance", "-0.5", NULL), &e);
	assert_int_equal(a.given[OPTION_PROMPT].count, 2);
	assert_string_equal(a.given[OPTION_PROMPT].word[1], "b");
	assert_true(args_has(&a, OPTION_WAIT));
	assert_string_equal(a.operand.word[0], "mine");
	assert_int_equal(args_int(&a, OPTION_COUNT, 1, 10, &n, &e), 0);
	assert_int_equal(n, 4);
	assert_int_equal(args_int(&a, OPTION_SEED, 1, 10, &n, &e), 0);
	assert_int_equal(n, 4);
	assert_int_equal(args_float(&a, OPTION_GUIDANCE, 0, 10, &x, &e), TF_EUSAGE);
	assert_non_null(strstr(e.text, "--guidance is '-0.5'"));
	args_release(&a);
}

static void mistakes(void **state)
{
	struct err e = ERR_INIT;
	struct args a;
	int64_t n;

	(void)state;
	assert_int_equal(read_line("ping", "", &a, &e, "x", NULL), TF_EUSAGE);
	args_release(&a);
	assert_int_equal(read_line("train", "", &a, &e, "x", NULL), TF_EUSAGE);
	assert_non_null(strstr(e.text, "NAME FILE.yaml"));
	args_release(&a);
	assert_int_equal(read_line("noop", "", &a, &e, "--secnds", "1", NULL), TF_EUSAGE);
	assert_non_null(strstr(e.text, "--seconds?"));
	args_release(&a);
	assert_int_equal(read_line("noop", "", &a, &e, "-z", NULL), TF_EUSAGE);
	assert_non_null(strstr(e.text, "'-z'"));
	args_release(&a);
	assert_int_equal(read_line("noop", "", &a, &e, "--seconds", NULL), TF_EUSAGE);
	assert_non_null(strstr(e.text, "needs a value"));
	args_release(&a);
	for (const char *const *bad = (const char *const[]){ "", " 1", "1x", "0x1", "1.5", "0",
							     "11", "99999999999999999999", NULL };
	     *bad; bad++)
		assert_int_equal(text_to_int("n", *bad, 1, 10, &n, NULL), TF_EUSAGE);
	assert_string_equal(suggest_verb("trian"), "train");
	assert_string_equal(suggest_sub("data", "lsit"), "list");
	assert_null(suggest_verb("xyzzy"));
}

#define NOW_MS 1800000000000ll

static void numbers(void **state)
{
	static const struct {
		int64_t seconds;
		const char *text;
	} age[] = { { -5, "0 s" },	{ 0, "0 s" },	       { 59, "59 s" },
		    { 60, "1 min" },	{ 3599, "59 min" },    { 3600, "1 h" },
		    { 172799, "47 h" }, { 172800, "2 d" },     { 100 * 86400, "100 d" } };
	char out[FORMAT_MAX], *safe;

	(void)state;
	format_bytes(999, out);
	assert_string_equal(out, "999 B");
	format_bytes(1500000, out);
	assert_string_equal(out, "1.5 MB");
	format_bytes(999999, out);
	assert_string_equal(out, "1.0 MB");
	format_count(1234567, out);
	assert_string_equal(out, "1,234,567");
	format_count(12, out);
	assert_string_equal(out, "12");
	format_age(clock_wall_ms() - 125000, out);
	assert_string_equal(out, "2 min");
	format_age(0, out);
	assert_string_equal(out, "-");
	assert_ptr_equal(format_whole(UINT64_MAX, out), out + 20);
	assert_string_equal(out, "18446744073709551615");
	assert_string_equal((format_whole(0, out), out), "0");
	for (size_t i = 0; i < ARRAY_LEN(age); i++) {
		format_age_at(NOW_MS, NOW_MS - 1000 * age[i].seconds, out);
		assert_string_equal(out, age[i].text);
	}
	format_until_at(NOW_MS, NOW_MS + 3600000, out);
	assert_string_equal(out, "in 1 h");
	format_until_at(NOW_MS, NOW_MS + 999, out);
	assert_string_equal(out, "now");
	format_until_at(NOW_MS, 0, out);
	assert_string_equal(out, "");
	safe = text_safe("a\033[2Jb\nc\xc2\x9b" "d");
	assert_string_equal(safe, "a?[2Jb?c??d");
	xfree(safe);
}

/* Eight bytes are looked at together: whatever is among them is found at each place. */
static void texts_of_all_bytes(void **state)
{
	(void)state;
	for (size_t len = 1; len <= 18; len++)
		for (size_t at = 0; at < len; at++)
			for (int byte = 1; byte < 256; byte++) {
				char text[19] = "", *tag = text, *safe;
				bool shown = byte >= ' ' && byte != 0x7f;
				Tf__Job job = TF__JOB__INIT;
				json_t *o;

				memset(text, 'a', len);
				text[at] = (char)byte;
				safe = text_safe(text);
				assert_int_equal(safe[at], shown ? (char)byte : '?');
				xfree(safe);
				job.n_tag = 1;
				job.tag = &tag;
				if (byte >= 0x80)
					continue; /* not UTF-8 */
				o = json_of_job(&job);
				assert_string_equal(json_string_value(json_array_get(
							    json_object_get(o, "tags"), 0)),
						    text);
				json_decref(o);
			}
}

static void times(void **state)
{
	static const struct {
		int64_t ms;
		const char *text;
	} at[] = { { 1800000000123ll, "2027-01-15T08:00:00.123Z" },
		   { 1799999999999ll, "2027-01-15T07:59:59.999Z" },
		   { 1799971200000ll, "2027-01-15T00:00:00.000Z" },
		   { 1799971199999ll, "2027-01-14T23:59:59.999Z" },
		   { 951782400000ll, "2000-02-29T00:00:00.000Z" },
		   { -1000, "1969-12-31T23:59:59.000Z" },
		   { 0, "1970-01-01T00:00:00.000Z" } };
	char out[CLOCK_TEXT_MAX];

	(void)state;
	for (size_t i = 0; i < 2 * ARRAY_LEN(at); i++) {
		clock_format_ms(at[i % ARRAY_LEN(at)].ms, out);
		assert_string_equal(out, at[i % ARRAY_LEN(at)].text);
	}
}

static void need_key(const json_t *o, const char *key)
{
	if (!json_object_get(o, key))
		fail_msg("the key %s is missing", key);
}

static void job_as_json(void **state)
{
	static const char *const keys[] = { "id", "kind", "name", "user", "state", "submitted",
					    "started", "ended", "progress", "reason" };
	static const char *const parts[] = { "phase", "done", "total", "unit", "rate", "eta_s",
					     "metrics" };
	Tf__Job job = TF__JOB__INIT;
	Tf__Progress p = TF__PROGRESS__INIT;
	Tf__Metric loss = TF__METRIC__INIT, *metric[] = { &loss };
	json_t *o;

	(void)state;
	job.id = 12;
	job.kind = TF__JOB_KIND__TRAIN;
	job.state = TF__JOB_STATE__RUNNING;
	job.has_submitted = 1;
	job.submitted = 1700000000123;
	o = json_of_job(&job);
	for (size_t i = 0; i < ARRAY_LEN(keys); i++)
		need_key(o, keys[i]);
	assert_string_equal(json_string_value(json_object_get(o, "submitted")),
			    "2023-11-14T22:13:20.123Z");
	assert_true(json_is_null(json_object_get(o, "ended")));
	assert_true(json_is_null(json_object_get(o, "progress")));
	json_decref(o);
	loss.name = "loss";
	loss.value = 0.0 / 0.0; /* JSON has no NaN */
	p.metric = metric;
	p.n_metric = 1;
	job.progress = &p;
	o = json_of_job(&job);
	for (size_t i = 0; i < ARRAY_LEN(parts); i++)
		need_key(json_object_get(o, "progress"), parts[i]);
	assert_true(json_is_null(json_object_get(
		json_object_get(json_object_get(o, "progress"), "metrics"), "loss")));
	json_decref(o);
}

/* What a job's text must keep: every character, the largest numbers, commas between jobs. */
static void jobs_as_text(void **state)
{
	Tf__Job job = TF__JOB__INIT;
	char *tag[] = { (char *)"a\"b\\c",
			(char *)"\b\f\n\r\t\001 \x7f \xc3\xa9 \xf0\x9f\x98\x80" };
	uint64_t after[] = { 1, INT64_MAX };
	uint32_t failed[] = { 0, 2, 0, 1 };
	struct buf list = BUF_INIT;
	json_t *read;

	(void)state;
	job.id = 7;
	job.kind = TF__JOB_KIND__NOOP;
	job.state = TF__JOB_STATE__DONE;
	job.n_tag = job.n_after = 2;
	job.tag = tag;
	job.after = after;
	job.n_failed = ARRAY_LEN(failed);
	job.failed = failed;
	buf_text(&list, "[");
	json_item_job(&list, &job);
	json_item_job(&list, &job);
	buf_text(&list, "]");
	read = json_loads(list.data, JSON_REJECT_DUPLICATES, NULL);
	assert_int_equal(json_array_size(read), 2);
	for (size_t i = 0; i < 2; i++) {
		const json_t *o = json_array_get(read, i);

		for (size_t k = 0; k < 2; k++) {
			assert_string_equal(
				json_string_value(json_array_get(json_object_get(o, "tags"), k)),
				tag[k]);
			assert_int_equal(
				json_integer_value(json_array_get(json_object_get(o, "after"), k)),
				after[k]);
		}
		assert_int_equal(json_object_size(json_object_get(o, "failures")), 2);
	}
	json_decref(read);
	buf_release(&list);
}

/* ---- what an import sends */

static void put(const char *folder, const char *name, const char *text)
{
	char *path = xasprintf("%s/%s", folder, name), *slash;
	struct err e = ERR_INIT;

	slash = strrchr(path, '/');
	*slash = 0;
	assert_ok(dir_make(path, 0700, &e), &e);
	*slash = '/';
	assert_ok(file_write(path, text, strlen(text), 0600, &e), &e);
	xfree(path);
}

static void sources(void **state)
{
	const char *tmp = getenv("TMPDIR");
	char *folder = xasprintf("%s/tf-files-XXXXXX", tmp ? tmp : "/tmp"), *list;
	struct err e = ERR_INIT;
	struct file_set f;

	(void)state;
	assert_non_null(mkdtemp(folder));
	put(folder, "b.png", "22");
	put(folder, "a/c.JPG", "333");
	put(folder, "b.txt", "a b");
	put(folder, "list.tsv", "image\tcaption\n./a/c.JPG\ta c\na/c.JPG\tagain\nz.png\tgone\n");
	put(folder, "junk.bin", "x");
	put(folder, ".hidden.png", "x");
	assert_ok(file_set_read(folder, &f, &e), &e);
	assert_int_equal(f.count, 4);
	assert_string_equal(f.entry[0].path, "list.tsv");
	assert_string_equal(f.entry[1].path, "a/c.JPG");
	assert_int_equal(f.entry[1].size, 3);
	assert_string_equal(file_set_kind(&f), "images+captions");
	file_set_release(&f);
	list = xasprintf("%s/list.tsv", folder);
	assert_ok(file_set_read(list, &f, &e), &e);
	assert_int_equal(f.count, 2); /* the list and one picture, once */
	assert_int_equal(f.missing, 1);
	assert_string_equal(f.first_missing, "z.png");
	assert_false(f.single);
	file_set_release(&f);
	put(folder, "list.tsv", "../b.png\tout of it\n");
	assert_int_equal(file_set_read(list, &f, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "list.tsv:1"));
	put(folder, "list.tsv", "just\ttext\n");
	err_clear(&e);
	assert_ok(file_set_read(list, &f, &e), &e);
	assert_true(f.single);
	assert_string_equal(file_set_kind(&f), "text");
	file_set_release(&f);
	xfree(list);
	list = xasprintf("%s/a.jsonl", folder);
	put(folder, "a.jsonl", "{\"image\": \"b.png\", \"caption\": \"b\"}\nnot json\n");
	assert_ok(file_set_read(list, &f, &e), &e);
	assert_int_equal(f.count, 2);
	file_set_release(&f);
	xfree(list);
	assert_int_equal(file_set_read("/nonexistent/x", &f, &e), TF_ENOTFOUND);
	dir_remove(folder, NULL);
	xfree(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tables),  cmocka_unit_test(examples),
		cmocka_unit_test(reading), cmocka_unit_test(mistakes),
		cmocka_unit_test(numbers), cmocka_unit_test(job_as_json),
		cmocka_unit_test(jobs_as_text),
		cmocka_unit_test(texts_of_all_bytes),
		cmocka_unit_test(times),
		cmocka_unit_test(sources),
	};

	return cmocka_run_group_tests_name("test_command_line", tests, NULL, NULL);
}
