/* SPDX-License-Identifier: Apache-2.0
 * YAML: strictness, the words of each complaint, overrides, inheritance, and writing that reads
 * back. */
#include "tests/test.h"
#include "lib/mem.h"
#include "lib/yaml.h"

#include <string.h>

struct settings {
	int64_t steps;
	double rate;
	bool flip;
	char *name;
	int mode;
	struct yaml_ints channels;
	struct yaml_node *data;
};

static const struct yaml_field table[] = {
	{ "train.steps", YAML_INT, offsetof(struct settings, steps), NULL, 1, 5000000, NULL,
	  "steps" },
	{ "train.rate", YAML_FLOAT, offsetof(struct settings, rate), "3e-4", 0, 10, NULL, "rate" },
	{ "train.flip", YAML_BOOL, offsetof(struct settings, flip), "false", 0, 0, NULL, "flip" },
	{ "model.name", YAML_TEXT, offsetof(struct settings, name), "none", 1, 20, NULL, "name" },
	{ "model.mode", YAML_ENUM, offsetof(struct settings, mode), "fast", 0, 0, "fast|slow",
	  "mode" },
	{ "model.channels", YAML_INTS, offsetof(struct settings, channels), "[1, 2]", 1, 99, NULL,
	  "" },
	{ "data", YAML_NODE, offsetof(struct settings, data), "[]", 0, 0, NULL, "list" },
};

static int read_settings(const char *text, const char *set, struct yaml *y, struct settings *s,
			 struct err *e)
{
	int rc = yaml_parse("f.yaml", text, strlen(text), y, e);

	if (rc == 0 && set)
		rc = yaml_set(y, set, e);
	if (rc == 0)
		rc = yaml_fields_read(y, table, ARRAY_LEN(table), s, e);
	return rc;
}

static void fills_a_struct(void **state)
{
	struct err e = ERR_INIT;
	struct yaml y = { 0 };
	struct settings s;

	(void)state;
	assert_ok(read_settings("# comment\ntrain:\n  steps: 2k\n  rate: 1.5e-3\n  flip: true\n"
				"model:\n  name: \"12\"\n  mode: slow\n  channels: [8, 16, 32]\n"
				"data: [{name: a}]\n",
				NULL, &y, &s, &e),
		  &e);
	assert_int_equal(s.steps, 2000);
	assert_true(s.rate == 1.5e-3 && s.flip);
	assert_string_equal(s.name, "12");
	assert_int_equal(s.mode, 1);
	assert_int_equal(s.channels.count, 3);
	assert_int_equal(s.channels.value[2], 32);
	assert_string_equal(s.data->child->child->text, "a");
	yaml_fields_release(table, ARRAY_LEN(table), &s);
	yaml_release(&y);
}

static void fills_in_defaults(void **state)
{
	struct err e = ERR_INIT;
	struct yaml y = { 0 };
	struct settings s;

	(void)state;
	assert_ok(read_settings("train:\n  steps: 7\nmodel:\n", NULL, &y, &s, &e), &e);
	assert_true(s.rate == 3e-4 && !s.flip && s.mode == 0 && !s.data);
	assert_string_equal(s.name, "none");
	assert_int_equal(s.channels.count, 2);
	yaml_fields_release(table, ARRAY_LEN(table), &s);
	yaml_release(&y);
}

/* Each text and the complaint it must get. */
static const struct {
	const char *text, *complaint;
} mistakes[] = {
	{ "train:\n  steps: 1e3\n",
	  "f.yaml:2: train.steps: found '1e3', expected a whole number from 1"
	  " to 5000000" },
	{ "train:\n  steps: 010\n", "found '010', expected a whole number" },
	{ "train:\n  steps: 5x\n", "found '5x'" },
	{ "train:\n  steps: 5kk\n", "found '5kk'" },
	{ "train:\n  steps: \"5\"\n", "found '5'" },
	{ "train:\n  steps: 0\n", "found '0'" },
	{ "train:\n  steps: 9223372036854775807k\n", "expected a whole number" },
	{ "train:\n  steps:\n", "f.yaml:2: train.steps: no value, expected a whole number" },
	{ "train:\n  steps: [1]\n", "found a list, expected a whole number" },
	{ "train:\n  steps: 1\n  rate: 3e-4abc\n",
	  "f.yaml:3: train.rate: found '3e-4abc', expected a"
	  " number from 0 to 10" },
	{ "train:\n  steps: 1\n  rate: nan\n", "found 'nan'" },
	{ "train:\n  steps: 1\n  rate: .inf\n", "found '.inf'" },
	{ "train:\n  steps: 1\n  rate: 0x10\n", "found '0x10'" },
	{ "train:\n  steps: 1\n  rate: 11\n", "found '11'" },
	{ "train:\n  steps: 1\n  rate: ~\n", "no value" },
	{ "train:\n  steps: 1\n  flip: yes\n", "found 'yes', expected true or false" },
	{ "train: 5\n", "f.yaml:1: train: found '5', expected a section with settings" },
	{ "train:\n  steps: 1\nmodel:\n  mode: quick\n",
	  "model.mode: found 'quick', expected one of"
	  " fast, slow" },
	{ "train:\n  steps: 1\nmodel:\n  name: a name longer than twenty bytes\n",
	  "expected text of 1"
	  " to 20 bytes" },
	{ "train:\n  steps: 1\nmodel:\n  channels: [1, 100]\n", "model.channels.1: found '100'" },
	{ "train:\n  steps: 1\nmodel:\n  channels: []\n", "model.channels: found a list" },
	{ "train:\n  stpes: 1\n",
	  "f.yaml:2: train.stpes: no such setting; did you mean train.steps?" },
	{ "train:\n  steps: 1\n  name: x\n",
	  "train.name: no such setting; did you mean model.name?" },
	{ "train:\n  steps: 1\nzebra: 4\n", "f.yaml:3: zebra: no such setting" },
	{ "train:\n  steps: 1\nzebra:\n\n  a: 4\n", "f.yaml:3: zebra: no such setting" },
	{ "model:\n  mode: fast\n", "f.yaml: train.steps is missing: steps" },
	{ "train:\n  steps: 1\n  steps: 2\n", "f.yaml:3: 'steps' is given twice" },
	{ "train: &x\n  steps: 1\n", "f.yaml:1: anchors (&name) are not supported" },
	{ "train: *x\n", "aliases (*name) are not supported" },
	{ "train: !t\n  steps: 1\n", "tags (!name) are not supported" },
	{ "--- {train: {steps: 1}}\n--- {}\n", "f.yaml:2: a second document; expected one" },
	{ "- 1\n", "f.yaml:1: expected settings, `name: value`" },
	{ "? [a, b]\n: 1\n", "a key must be a word" },
	{ "a: \"x\\0y\"\n", "text must not have zero bytes" },
	{ "a: [1,\n", "f.yaml:2: did not find expected node content" },
	{ "a: \"\\xff", "f.yaml:1:" },
	{ "a: \xff\n", "f.yaml: byte 3:" },
};

static void every_mistake_is_named(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(mistakes); i++) {
		struct err e = ERR_INIT;
		struct yaml y = { 0 };
		struct settings s;

		if (read_settings(mistakes[i].text, NULL, &y, &s, &e) == 0)
			fail_msg("accepted: %s", mistakes[i].text);
		if (!strstr(e.text, mistakes[i].complaint))
			fail_msg("%s said '%s', not '%s'", mistakes[i].text, e.text,
				 mistakes[i].complaint);
		yaml_release(&y);
	}
}

static void size_depth_and_count_are_bounded(void **state)
{
	struct buf text = BUF_INIT;
	struct err e = ERR_INIT;
	struct yaml y = { 0 };

	(void)state;
	buf_text(&text, "a: ");
	for (int i = 0; i < 1000; i++)
		buf_text(&text, "[");
	assert_int_equal(yaml_parse("f", text.data, text.len, &y, &e), TF_ELIMIT);
	assert_string_equal(e.text, "f:1: nested deeper than 16");
	buf_clear(&text);
	err_clear(&e);
	buf_text(&text, "a: [");
	for (int i = 0; i < YAML_NODES_MAX; i++)
		buf_text(&text, "1,");
	buf_text(&text, "]\n");
	assert_int_equal(yaml_parse("f", text.data, text.len, &y, &e), TF_ELIMIT);
	assert_string_equal(e.text, "f: more than 20000 entries");
	buf_clear(&text);
	err_clear(&e);
	buf_reserve(&text, YAML_BYTES_MAX + 1);
	memset(text.data, '\n', YAML_BYTES_MAX + 1);
	assert_int_equal(yaml_parse("f", text.data, YAML_BYTES_MAX + 1, &y, &e), TF_ELIMIT);
	buf_release(&text);
}

static void overrides_reach_everywhere(void **state)
{
	struct err e = ERR_INIT;
	struct yaml y = { 0 };
	struct settings s;
	struct buf out = BUF_INIT;

	(void)state;
	assert_ok(yaml_parse("f", "train: {rate: 1}\n", 17, &y, &e), &e);
	assert_ok(yaml_set(&y, "train.steps=5", &e), &e);
	assert_ok(yaml_set(&y, "train.rate=2", &e), &e);
	assert_ok(yaml_set(&y, "data.0.name=emoji", &e), &e);
	assert_ok(yaml_set(&y, "data.1.name=more", &e), &e);
	assert_ok(yaml_set(&y, "model.channels=[4, 5]", &e), &e);
	assert_ok(yaml_fields_read(&y, table, ARRAY_LEN(table), &s, &e), &e);
	assert_int_equal(s.steps, 5);
	assert_true(s.rate == 2);
	assert_int_equal(s.channels.value[1], 5);
	yaml_write(&y, &out);
	assert_string_equal(out.data, "train:\n  rate: 2\n  steps: 5\ndata:\n  - name: emoji\n"
				      "  - name: more\nmodel:\n  channels:\n    - 4\n    - 5\n");
	yaml_fields_release(table, ARRAY_LEN(table), &s);
	assert_int_equal(yaml_set(&y, "train.steps.more=1", &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "a single value"));
	err_clear(&e);
	assert_int_equal(yaml_set(&y, "data.7.name=x", &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "a place in the list, 0 to 2"));
	err_clear(&e);
	assert_int_equal(yaml_set(&y, "steps", &e), TF_EINVALID);
	err_clear(&e);
	assert_int_equal(yaml_set(&y, "a..b=1", &e), TF_EINVALID);
	err_clear(&e);
	assert_int_equal(yaml_set(&y, "a=[1", &e), TF_EINVALID);
	buf_release(&out);
	yaml_release(&y);
}

static void an_override_is_blamed_without_a_line(void **state)
{
	struct err e = ERR_INIT;
	struct yaml y = { 0 };
	struct settings s;

	(void)state;
	assert_int_equal(read_settings("train: {}\n", "train.steps=many", &y, &s, &e),
			 TF_EINVALID);
	assert_non_null(strstr(e.text, "f.yaml: train.steps: found 'many'"));
	yaml_release(&y);
}

static void a_file_inherits_what_it_does_not_say(void **state)
{
	static const char own[] = "train:\n  steps: 3\nmodel:\ndata: [x]\n";
	static const char base[] =
		"train: {steps: 9, rate: 2}\nmodel: {mode: slow}\ndata: [a, b]\n";
	struct yaml y = { 0 }, b = { 0 };
	struct buf out = BUF_INIT;
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(yaml_parse("f", own, strlen(own), &y, &e), &e);
	assert_ok(yaml_parse("b", base, strlen(base), &b, &e), &e);
	yaml_inherit(&y, &b);
	yaml_write(&y, &out);
	assert_string_equal(out.data, "train:\n  steps: 3\n  rate: 2\nmodel:\n  mode: slow\n"
				      "data:\n  - x\n");
	buf_release(&out);
	yaml_release(&y);
}

/* Written text reads back to the same scalars, whatever is in them. */
static void writing_reads_back(void **state)
{
	static const char *const words[] = {
		"plain",
		"with: colon",
		"# no comment",
		"",
		" padded ",
		"tab\tand\nline",
		"\"quoted\"",
		"back\\slash",
		"- dash",
		"-",
		"---",
		"-3",
		"null",
		"~",
		"true",
		"12",
		"\xC3\xA9t\xC3\xA9",
		"\xE2\x80\xA8 line separator",
		"\xC2\x85 next line",
		"\xF0\x9F\xA6\x8A fox",
		"\x7F",
		"{a",
		"[b",
		"*c",
		"&d",
		"!e",
		"%f",
		"@g",
		"`h",
		"a: b",
		"x #y",
		"\xEF\xBB\xBF",
	};
	struct buf text = BUF_INIT;
	struct err e = ERR_INIT;
	struct yaml y = { 0 };
	struct yaml_node *n;

	(void)state;
	buf_text(&text, "list:\n");
	for (size_t i = 0; i < ARRAY_LEN(words); i++) {
		buf_text(&text, "  - ");
		yaml_write_text(words[i], true, &text);
		buf_text(&text, "\n");
	}
	for (int round = 0; round < 2; round++) {
		assert_ok(yaml_parse("f", text.data, text.len, &y, &e), &e);
		n = y.root->child->child;
		for (size_t i = 0; i < ARRAY_LEN(words); i++, n = n->next) {
			assert_string_equal(n->text, words[i]);
			assert_true(n->quoted);
		}
		assert_null(n);
		buf_clear(&text);
		yaml_write(&y, &text);
		yaml_release(&y);
	}
	buf_release(&text);
}

static void a_struct_is_written_by_its_table(void **state)
{
	struct buf first = BUF_INIT, second = BUF_INIT;
	struct err e = ERR_INIT;
	struct yaml y = { 0 }, again = { 0 };
	struct settings s, t;

	(void)state;
	assert_ok(read_settings("train: {steps: 4, rate: 0.1}\nmodel: {name: \"a: b\"}\n", NULL,
				&y, &s, &e),
		  &e);
	yaml_fields_write(table, ARRAY_LEN(table), &s, &first);
	assert_ok(read_settings(first.data, NULL, &again, &t, &e), &e);
	yaml_fields_write(table, ARRAY_LEN(table), &t, &second);
	assert_string_equal(first.data, second.data);
	assert_true(t.rate == 0.1);
	assert_non_null(strstr(first.data, "model:\n  name: \"a: b\"\n  mode: fast\n"));
	yaml_fields_release(table, ARRAY_LEN(table), &s);
	yaml_fields_release(table, ARRAY_LEN(table), &t);
	yaml_release(&y);
	yaml_release(&again);
	buf_release(&first);
	buf_release(&second);
}

int main(void)
{
	const struct CMUnitTest yaml[] = {
		cmocka_unit_test(fills_a_struct),
		cmocka_unit_test(fills_in_defaults),
		cmocka_unit_test(every_mistake_is_named),
		cmocka_unit_test(size_depth_and_count_are_bounded),
		cmocka_unit_test(overrides_reach_everywhere),
		cmocka_unit_test(an_override_is_blamed_without_a_line),
		cmocka_unit_test(a_file_inherits_what_it_does_not_say),
		cmocka_unit_test(writing_reads_back),
		cmocka_unit_test(a_struct_is_written_by_its_table),
	};
	return cmocka_run_group_tests(yaml, NULL, NULL);
}
