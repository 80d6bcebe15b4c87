/* SPDX-License-Identifier: Apache-2.0
 * Strict scalars, and tables of fields that fill a struct from a YAML tree; see yaml.h. */
#include "config.h"
#include "lib/yaml.h"
#include "lib/mem.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BYTES_MAX 256
#define TEXT_SHOWN_MAX 60

int yaml_error(const struct yaml *y, const struct yaml_node *n, const char *path, struct err *e,
	       const char *fmt, ...)
{
	char text[ERR_TEXT_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (n && n->line)
		return err_set(e, TF_EINVALID, "%s:%d: %s: %s", y->file, n->line, path, text);
	return err_set(e, TF_EINVALID, "%s: %s: %s", y->file, path, text);
}

static int found_instead(const struct yaml *y, const struct yaml_node *n, const char *path,
			 struct err *e, const char *expected)
{
	if (n->kind != YAML_SCALAR)
		return yaml_error(y, n, path, e, "found a %s, expected %s",
				  n->kind == YAML_LIST ? "list" : "section", expected);
	if (yaml_is_null(n))
		return yaml_error(y, n, path, e, "no value, expected %s", expected);
	return yaml_error(y, n, path, e, "found '%.*s%s', expected %s", TEXT_SHOWN_MAX, n->text,
			  strlen(n->text) > TEXT_SHOWN_MAX ? "..." : "", expected);
}

static bool is_plain_scalar(const struct yaml_node *n)
{
	return n->kind == YAML_SCALAR && !n->quoted;
}

/* Decimal digits without leading zeros, an optional sign before, an optional k, M or G after. */
static bool parse_int(const char *text, int64_t *out)
{
	const char *digits = text + (*text == '-' || *text == '+');
	size_t len = strspn(digits, "0123456789");
	int64_t scale = 1, value;
	char *end;

	if (len == 0 || (len > 1 && digits[0] == '0'))
		return false;
	switch (digits[len]) {
	case 'k': scale = 1000; break;
	case 'M': scale = 1000000; break;
	case 'G': scale = 1000000000; break;
	case 0: break;
	default: return false;
	}
	if (digits[len] && digits[len + 1])
		return false;
	errno = 0;
	value = strtoll(text, &end, 10);
	return errno == 0 && !__builtin_mul_overflow(value, scale, out);
}

/* [+-] digits [. digits] [e [+-] digits], with a digit before or after the point. */
static bool parse_float(const char *text, double *out)
{
	const char *p = text + (*text == '-' || *text == '+');
	size_t whole = strspn(p, "0123456789"), part = 0;

	if (whole > 1 && p[0] == '0')
		return false;
	p += whole;
	if (*p == '.') {
		part = strspn(p + 1, "0123456789");
		p += 1 + part;
	}
	if (whole + part == 0)
		return false;
	if (*p == 'e' || *p == 'E') {
		size_t digits;

		p += 1 + (p[1] == '-' || p[1] == '+');
		digits = strspn(p, "0123456789");
		if (digits == 0)
			return false;
		p += digits;
	}
	if (*p)
		return false;
	*out = strtod(text, NULL);
	return isfinite(*out);
}

int yaml_int(const struct yaml *y, struct yaml_node *n, const char *path, int64_t least,
	     int64_t most, int64_t *out, struct err *e)
{
	char expected[100];
	int64_t value;

	snprintf(expected, sizeof expected, "a whole number from %lld to %lld", (long long)least,
		 (long long)most);
	n->used = true;
	if (!is_plain_scalar(n) || !parse_int(n->text, &value) || value < least || value > most)
		return found_instead(y, n, path, e, expected);
	*out = value;
	return 0;
}

int yaml_float(const struct yaml *y, struct yaml_node *n, const char *path, double least,
	       double most, double *out, struct err *e)
{
	char expected[100];
	double value;

	snprintf(expected, sizeof expected, "a number from %g to %g", least, most);
	n->used = true;
	if (!is_plain_scalar(n) || !parse_float(n->text, &value) || value < least || value > most)
		return found_instead(y, n, path, e, expected);
	*out = value;
	return 0;
}

int yaml_bool(const struct yaml *y, struct yaml_node *n, const char *path, bool *out,
	      struct err *e)
{
	n->used = true;
	if (is_plain_scalar(n) && strcmp(n->text, "true") == 0)
		*out = true;
	else if (is_plain_scalar(n) && strcmp(n->text, "false") == 0)
		*out = false;
	else
		return found_instead(y, n, path, e, "true or false");
	return 0;
}

static int read_text(const struct yaml *y, struct yaml_node *n, const struct yaml_field *f,
		     char **out, struct err *e)
{
	char expected[100];
	size_t len;

	snprintf(expected, sizeof expected, "text of %g to %g bytes", f->least, f->most);
	n->used = true;
	if (n->kind != YAML_SCALAR || yaml_is_null(n))
		return found_instead(y, n, f->name, e, expected);
	len = strlen(n->text);
	if ((double)len < f->least || (double)len > f->most)
		return found_instead(y, n, f->name, e, expected);
	*out = xstrdup(n->text);
	return 0;
}

/* The index of text among words divided by '|', or -1. */
static int choice_index(const char *choices, const char *text)
{
	size_t len = strlen(text);

	for (int i = 0;; i++) {
		size_t n = strcspn(choices, "|");

		if (n == len && memcmp(choices, text, n) == 0)
			return i;
		if (!choices[n])
			return -1;
		choices += n + 1;
	}
}

static int read_enum(const struct yaml *y, struct yaml_node *n, const struct yaml_field *f,
		     int *out, struct err *e)
{
	char expected[PATH_BYTES_MAX] = "one of ";
	int index = n->kind == YAML_SCALAR ? choice_index(f->choices, n->text) : -1;
	size_t at = strlen(expected);

	n->used = true;
	if (index >= 0) {
		*out = index;
		return 0;
	}
	for (const char *p = f->choices; *p && at + 3 < sizeof expected; p++) {
		if (*p == '|') {
			expected[at++] = ',';
			expected[at++] = ' ';
		} else {
			expected[at++] = *p;
		}
	}
	return found_instead(y, n, f->name, e, expected);
}

static int read_ints(const struct yaml *y, struct yaml_node *n, const struct yaml_field *f,
		     struct yaml_ints *out, struct err *e)
{
	n->used = true;
	out->count = 0;
	if (n->kind != YAML_LIST || !n->child)
		return found_instead(y, n, f->name, e, "a list of whole numbers, [16, 32]");
	for (struct yaml_node *c = n->child; c; c = c->next) {
		char path[PATH_BYTES_MAX];

		if (out->count == YAML_INTS_MAX)
			return yaml_error(y, n, f->name, e, "more than %d entries", YAML_INTS_MAX);
		snprintf(path, sizeof path, "%s.%d", f->name, out->count);
		TRY(yaml_int(y, c, path, (int64_t)f->least, (int64_t)f->most,
			     &out->value[out->count], e));
		out->count++;
	}
	return 0;
}

static void mark_all(struct yaml_node *n)
{
	n->used = true;
	for (struct yaml_node *c = n->child; c; c = c->next)
		mark_all(c);
}

struct yaml_node *yaml_find(const struct yaml *y, const char *name)
{
	struct yaml_node *at = y->root;

	while (at && *name) {
		size_t len = strcspn(name, ".");
		char word[PATH_BYTES_MAX];

		CHECK(len < sizeof word);
		memcpy(word, name, len);
		word[len] = 0;
		at = yaml_get(at, word);
		if (at)
			at->used = true;
		name += len + (name[len] == '.');
	}
	return at;
}

static int read_value(const struct yaml *y, struct yaml_node *n, const struct yaml_field *f,
		      void *to, struct err *e)
{
	void *at = (char *)to + f->offset;

	switch (f->type) {
	case YAML_INT: return yaml_int(y, n, f->name, (int64_t)f->least, (int64_t)f->most, at, e);
	case YAML_FLOAT: return yaml_float(y, n, f->name, f->least, f->most, at, e);
	case YAML_BOOL: return yaml_bool(y, n, f->name, at, e);
	case YAML_TEXT: return read_text(y, n, f, at, e);
	case YAML_ENUM: return read_enum(y, n, f, at, e);
	case YAML_INTS: return read_ints(y, n, f, at, e);
	case YAML_NODE:
		mark_all(n);
		*(struct yaml_node **)at = n;
		return 0;
	}
	BUG("field %s has type %d", f->name, f->type);
}

static int read_fallback(const struct yaml *y, const struct yaml_field *f, void *to, struct err *e)
{
	struct yaml own = { 0 };
	char *text;
	int rc;

	if (!f->fallback)
		return err_set(e, TF_EINVALID, "%s: %s is missing: %s", y->file, f->name, f->help);
	if (f->type == YAML_NODE)
		return 0;
	text = xasprintf("value: %s\n", *f->fallback ? f->fallback : "\"\""); /* "": empty */
	rc = yaml_parse("built in", text, strlen(text), &own, e);
	if (rc == 0)
		rc = read_value(&own, own.root->child, f, to, e);
	CHECK(rc == 0);
	yaml_release(&own);
	xfree(text);
	return rc;
}

/* Sections on the way to a field must be maps (or left empty). */
static int check_sections(const struct yaml *y, const struct yaml_field *f, struct err *e)
{
	struct yaml_node *at = y->root;
	const char *name = f->name;

	for (;;) {
		size_t len = strcspn(name, ".");
		char word[PATH_BYTES_MAX];

		if (!name[len])
			return 0;
		CHECK(len < sizeof word);
		memcpy(word, name, len);
		word[len] = 0;
		at = yaml_get(at, word);
		if (!at)
			return 0;
		at->used = true;
		if (at->kind != YAML_MAP && !yaml_is_null(at))
			return found_instead(y, at, word, e, "a section with settings");
		name += len + 1;
	}
}

/* Levenshtein's distance, for hints. */
static size_t edit_distance(const char *a, const char *b)
{
	size_t n = strlen(b), row[PATH_BYTES_MAX + 1];

	if (n > PATH_BYTES_MAX || strlen(a) > PATH_BYTES_MAX)
		return PATH_BYTES_MAX;
	for (size_t j = 0; j <= n; j++)
		row[j] = j;
	for (size_t i = 1; a[i - 1]; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= n; j++) {
			size_t swap = diagonal + (a[i - 1] != b[j - 1]);
			size_t best = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;

			diagonal = row[j];
			row[j] = swap < best ? swap : best;
		}
	}
	return row[n];
}

static int unknown(const struct yaml *y, const struct yaml_node *n, const char *path,
		   const struct yaml_field *table, size_t count, struct err *e)
{
	const char *last = strrchr(path, '.'), *nearest = NULL;
	size_t least = strlen(path);

	last = last ? last + 1 : path;
	for (size_t i = 0; i < count; i++) {
		const char *word = strrchr(table[i].name, '.');
		size_t whole = edit_distance(path, table[i].name);
		/* the right word in the wrong section is near, too */
		size_t moved = edit_distance(last, word ? word + 1 : table[i].name) + 1;
		size_t distance = whole < moved ? whole : moved;

		if (distance < least) {
			least = distance;
			nearest = table[i].name;
		}
	}
	if (nearest && least <= 1 + strlen(last) / 3)
		return yaml_error(y, n, path, e, "no such setting; did you mean %s?", nearest);
	return yaml_error(y, n, path, e, "no such setting");
}

static int check_all_used(const struct yaml *y, const struct yaml_node *map, const char *prefix,
			  const struct yaml_field *table, size_t count, struct err *e)
{
	for (const struct yaml_node *n = map->child; n; n = n->next) {
		char path[2 * PATH_BYTES_MAX];

		snprintf(path, sizeof path, "%s%s%s", prefix, *prefix ? "." : "",
			 n->key ? n->key : "");
		if (!n->used)
			return unknown(y, n, path, table, count, e);
		if (n->kind == YAML_MAP)
			TRY(check_all_used(y, n, path, table, count, e));
	}
	return 0;
}

static size_t type_bytes(enum yaml_type type)
{
	switch (type) {
	case YAML_INT: return sizeof(int64_t);
	case YAML_FLOAT: return sizeof(double);
	case YAML_BOOL: return sizeof(bool);
	case YAML_TEXT: return sizeof(char *);
	case YAML_ENUM: return sizeof(int);
	case YAML_INTS: return sizeof(struct yaml_ints);
	case YAML_NODE: return sizeof(struct yaml_node *);
	}
	BUG("type %d", type);
}

int yaml_fields_read(const struct yaml *y, const struct yaml_field *table, size_t count, void *to,
		     struct err *e)
{
	int rc = 0;

	for (size_t i = 0; i < count; i++)
		memset((char *)to + table[i].offset, 0, type_bytes(table[i].type));
	for (size_t i = 0; rc == 0 && i < count; i++) {
		struct yaml_node *n;

		rc = check_sections(y, &table[i], e);
		if (rc < 0)
			break;
		n = yaml_find(y, table[i].name);
		rc = n ? read_value(y, n, &table[i], to, e) : 0;
	}
	/* a misspelt name is told before the one that is missing for it */
	if (rc == 0)
		rc = check_all_used(y, y->root, "", table, count, e);
	for (size_t i = 0; rc == 0 && i < count; i++)
		if (!yaml_find(y, table[i].name))
			rc = read_fallback(y, &table[i], to, e);
	if (rc < 0)
		yaml_fields_release(table, count, to);
	return rc;
}

void yaml_fields_release(const struct yaml_field *table, size_t count, void *from)
{
	for (size_t i = 0; i < count; i++) {
		if (table[i].type == YAML_TEXT) {
			char **text = (char **)((char *)from + table[i].offset);

			xfree(*text);
		}
	}
}

/* The fewest digits that read back as the same number. */
static void write_float(double value, struct buf *out)
{
	char text[32];

	for (int digits = 15; digits <= 17; digits++) {
		snprintf(text, sizeof text, "%.*g", digits, value);
		if (strtod(text, NULL) == value)
			break;
	}
	buf_text(out, text);
}

static void write_choice(const char *choices, int index, struct buf *out)
{
	for (; index > 0; index--)
		choices += strcspn(choices, "|") + 1;
	buf_append(out, choices, strcspn(choices, "|"));
}

static void write_value(const struct yaml_field *f, const void *from, int indent, struct buf *out)
{
	const void *at = (const char *)from + f->offset;
	const struct yaml_ints *ints = at;
	const struct yaml_node *node;

	if (f->type == YAML_NODE) {
		node = *(struct yaml_node *const *)at;
		if (node)
			yaml_write_node(node, indent + 2, out);
		else
			buf_printf(out, " %s\n", f->fallback);
		return;
	}
	buf_text(out, " ");
	switch (f->type) {
	case YAML_INT: buf_printf(out, "%lld", (long long)*(const int64_t *)at); break;
	case YAML_FLOAT: write_float(*(const double *)at, out); break;
	case YAML_BOOL: buf_text(out, *(const bool *)at ? "true" : "false"); break;
	case YAML_TEXT: yaml_write_text(*(char *const *)at, true, out); break;
	case YAML_ENUM: write_choice(f->choices, *(const int *)at, out); break;
	case YAML_INTS:
		for (int i = 0; i < ints->count; i++)
			buf_printf(out, "%s%lld", i ? ", " : "[", (long long)ints->value[i]);
		buf_text(out, ints->count ? "]" : "[]");
		break;
	default: BUG("field %s has type %d", f->name, f->type);
	}
	buf_text(out, "\n");
}

/* Fields of one section stand together in a table, so its heading is written where it changes. */
void yaml_fields_write(const struct yaml_field *table, size_t count, const void *from,
		       struct buf *out)
{
	const char *section = "";
	size_t section_len = 0;

	for (size_t i = 0; i < count; i++) {
		const char *dot = strchr(table[i].name, '.');
		const char *word = dot ? dot + 1 : table[i].name;
		size_t len = dot ? (size_t)(dot - table[i].name) : 0;

		CHECK(!strchr(word, '.')); /* tables have two levels */
		if (len && (len != section_len || memcmp(table[i].name, section, len) != 0))
			buf_printf(out, "%.*s:\n", (int)len, table[i].name);
		section = table[i].name;
		section_len = len;
		buf_printf(out, "%s%s:", len ? "  " : "", word);
		write_value(&table[i], from, len ? 2 : 0, out);
	}
}
