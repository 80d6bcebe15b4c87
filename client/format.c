/* SPDX-License-Identifier: Apache-2.0
 * Tables, sizes, times and texts for people. Nothing that came over the wire reaches the
 * terminal with control characters in it. */
#include "config.h"
#include "client/client.h"
#include "lib/bytes.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#define NARROWEST 10 /* the last column keeps at least so much */
#define PART_BYTES (64u << 10) /* of a table, written at a time */

/* Puts '?' for what could steer a terminal. Whether the text is of ASCII alone. */
static bool make_safe(char *text, size_t len)
{
	const unsigned char *end = (unsigned char *)text + len;
	unsigned char *p = (unsigned char *)text;
	bool ascii = true;

	while (end - p >= 8 && bytes_are_printable(bytes_load(p)))
		p += 8;
	for (; p < end; p++) {
		if (*p >= ' ' && *p < 0x7f)
			continue;
		if (*p < 0x80)
			*p = '?';
		else if (*p == 0xc2 && p[1] >= 0x80 && p[1] < 0xa0) /* U+0080 to U+009F */
			p[0] = p[1] = '?';
		else
			ascii = false;
	}
	return ascii;
}

char *text_safe(const char *text)
{
	char *copy = xstrdup(text ? text : "");

	make_safe(copy, strlen(copy));
	return copy;
}

/* Bytes and columns of the character at p. */
static size_t character(const char *p, int *columns)
{
	mbstate_t state = { 0 };
	wchar_t wide;
	size_t n = mbrtowc(&wide, p, strlen(p), &state);

	if (n == (size_t)-1 || n == (size_t)-2 || n == 0) {
		*columns = ((unsigned char)*p & 0xc0) != 0x80; /* a locale without UTF-8 */
		return 1;
	}
	*columns = wcwidth(wide);
	if (*columns < 0)
		*columns = 0;
	return n;
}

int text_width(const char *text)
{
	int width = 0, columns;

	while (*text) {
		text += character(text, &columns);
		width += columns;
	}
	return width;
}

void text_cut(char *text, int width)
{
	int columns;

	while (*text) {
		size_t n = character(text, &columns);

		if (columns > width)
			break;
		width -= columns;
		text += n;
	}
	*text = 0;
}

int terminal_width(int fd)
{
	struct winsize size;
	const char *term = getenv("TERM");

	if (!isatty(fd) || (term && strcmp(term, "dumb") == 0))
		return 0;
	if (ioctl(fd, TIOCGWINSZ, &size) < 0 || size.ws_col < 20)
		return 80;
	return size.ws_col;
}

/* ---- tables */

struct table_cell {
	uint32_t bytes; /* of its text, which lies in the table's behind that of the cell before */
	int width;
};

void table_init(struct table *t, const char *align, const char *const *head)
{
	*t = (struct table){ .columns = (int)strlen(align), .align = align };
	t->width = xcalloc(t->columns, sizeof *t->width);
	table_add(t, head);
}

void table_add(struct table *t, const char *const *cell)
{
	struct table_cell *c;

	if (t->rows == t->room) {
		t->room = t->room ? 2 * t->room : 16;
		t->cell = xrealloc(t->cell, (size_t)t->room * t->columns, sizeof *t->cell);
	}
	c = &t->cell[(size_t)t->rows++ * t->columns];
	for (int i = 0; i < t->columns; i++, c++) {
		const char *text = cell[i] && *cell[i] ? cell[i] : "-";
		char *safe;

		c->bytes = (uint32_t)strlen(text);
		buf_reserve(&t->text, c->bytes);
		safe = t->text.data + t->text.len;
		memcpy(safe, text, c->bytes + 1);
		t->text.len += c->bytes;
		c->width = make_safe(safe, c->bytes) ? (int)c->bytes : text_width(safe);
		if (c->width > t->width[i])
			t->width[i] = c->width;
	}
}

/* most: columns that the last cell may have; 0: any number. */
static void put_row(const struct table *t, const struct table_cell *cell, const char **text,
		    int most, struct buf *out)
{
	int last = t->columns - 1;
	size_t room = 1;
	char *p;

	for (int i = 0; i <= last; i++)
		room += cell[i].bytes + 2 + (size_t)(t->width[i] - cell[i].width);
	buf_reserve(out, room);
	p = out->data + out->len;
	memset(p, ' ', room);
	for (int i = 0; i <= last; i++) {
		int space = t->width[i] - cell[i].width;

		p += t->align[i] == 'r' ? space : 0;
		memcpy(p, *text, cell[i].bytes);
		*text += cell[i].bytes;
		if (i == last && most && cell[i].width > most) {
			p[cell[i].bytes] = 0;
			text_cut(p, most);
			p += strlen(p);
		} else {
			p += cell[i].bytes;
		}
		if (i < last)
			p += 2 + (t->align[i] == 'r' ? 0 : space);
	}
	*p++ = '\n';
	*p = 0;
	out->len = (size_t)(p - out->data);
}

/* to: what is there goes out part by part, so that a long table does not lie in memory twice; NULL:
 * all of it stays in out. */
static void render(struct table *t, int columns, struct buf *out, FILE *to)
{
	const char *text = t->text.data;
	int most = 0, used = 0;

	for (int i = 0; i + 1 < t->columns; i++)
		used += t->width[i] + 2;
	if (columns > used)
		most = columns - used > NARROWEST ? columns - used : NARROWEST;
	for (int row = 0; row < t->rows; row++) {
		put_row(t, &t->cell[(size_t)row * t->columns], &text, most, out);
		if (to && (out->len > PART_BYTES || row == t->rows - 1)) {
			fwrite(out->data, 1, out->len, to);
			buf_clear(out);
		}
	}
	table_release(t);
}

void table_render(struct table *t, int columns, struct buf *out)
{
	render(t, columns, out, NULL);
}

void table_print(struct table *t)
{
	struct buf part = BUF_INIT;

	render(t, terminal_width(STDOUT_FILENO), &part, stdout);
	buf_release(&part);
}

void table_release(struct table *t)
{
	buf_release(&t->text);
	xfree(t->cell);
	xfree(t->width);
	t->rows = t->room = 0;
}

/* ---- numbers */

void format_bytes(uint64_t bytes, char out[FORMAT_MAX])
{
	static const char *const units[] = { "B", "kB", "MB", "GB", "TB", "PB", "EB" };
	double x = (double)bytes;
	int unit = 0;

	while (x >= 999.5 && unit < 6) {
		x /= 1000;
		unit++;
	}
	snprintf(out, FORMAT_MAX, unit && x < 99.95 ? "%.1f %s" : "%.0f %s", x, units[unit]);
}

void format_count(uint64_t n, char out[FORMAT_MAX])
{
	char digits[24];
	int len = snprintf(digits, sizeof digits, "%" PRIu64, n), at = 0;

	for (int i = 0; i < len; i++) {
		if (i && (len - i) % 3 == 0)
			out[at++] = ',';
		out[at++] = digits[i];
	}
	out[at] = 0;
}

void format_value(double x, char out[FORMAT_MAX])
{
	if (x >= 0 && x < 1e15 && x == (double)(uint64_t)x)
		format_count((uint64_t)x, out);
	else
		snprintf(out, FORMAT_MAX, "%.6g", x);
}

char *format_whole(uint64_t n, char *out)
{
	char digits[20], *p = digits + sizeof digits;
	size_t len;

	do {
		*--p = (char)('0' + n % 10);
		n /= 10;
	} while (n);
	len = (size_t)(digits + sizeof digits - p);
	memcpy(out, p, len);
	out[len] = 0;
	return out + len;
}

void format_age_at(int64_t now_ms, int64_t since_ms, char out[FORMAT_MAX])
{
	static const struct {
		int64_t below, seconds;
		const char *unit;
	} step[] = { { 60, 1, " s" },
		     { 3600, 60, " min" },
		     { 48 * 3600, 3600, " h" },
		     { INT64_MAX, 86400, " d" } };
	int64_t s = (now_ms - since_ms) / 1000;
	size_t i = 0;

	s = s < 0 ? 0 : s;
	while (s >= step[i].below)
		i++;
	if (since_ms <= 0)
		strcpy(out, "-");
	else
		strcpy(format_whole((uint64_t)(s / step[i].seconds), out), step[i].unit);
}

void format_age(int64_t since_ms, char out[FORMAT_MAX])
{
	format_age_at(clock_wall_ms(), since_ms, out);
}

void format_left(const Tf__Job *j, char out[FORMAT_MAX])
{
	const Tf__Progress *p = j->progress;

	out[0] = 0;
	if (j->state == TF__JOB_STATE__RUNNING && p && p->has_eta_s && isfinite(p->eta_s) &&
	    p->eta_s >= 0)
		clock_format_span(p->eta_s, out);
}

void format_until_at(int64_t now_ms, int64_t at_ms, char out[FORMAT_MAX])
{
	char span[FORMAT_MAX];

	out[0] = 0;
	if (at_ms > now_ms + 999) {
		format_age_at(at_ms, now_ms, span);
		snprintf(out, FORMAT_MAX, "in %.40s", span);
	} else if (at_ms > 0) {
		strcpy(out, "now");
	}
}

void format_until(int64_t at_ms, char out[FORMAT_MAX])
{
	format_until_at(clock_wall_ms(), at_ms, out);
}

/* ---- JSON for people */

static void print_scalar(const json_t *value)
{
	char *text;

	char number[FORMAT_MAX];

	if (json_is_string(value)) {
		text = text_safe(json_string_value(value));
		printf("%s\n", text);
		xfree(text);
	} else if (json_is_real(value)) {
		format_value(json_real_value(value), number);
		printf("%s\n", number);
	} else if (json_is_integer(value)) {
		printf("%" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
	} else {
		printf("%s\n", json_is_true(value) ? "yes" : json_is_false(value) ? "no" : "-");
	}
}

/* A list of single values goes into one line. */
static bool print_short_list(const json_t *list)
{
	json_t *item;
	size_t i;

	json_array_foreach(list, i, item)
		if (json_is_object(item) || json_is_array(item) || json_is_string(item))
			return false;
	json_array_foreach(list, i, item) {
		if (json_is_integer(item))
			printf("%s%" JSON_INTEGER_FORMAT, i ? " " : "", json_integer_value(item));
		else
			printf("%s%.4g", i ? " " : "", json_number_value(item));
	}
	putchar('\n');
	return true;
}

void print_json_for_people(const json_t *value, int indent)
{
	const char *key;
	json_t *item;
	size_t i;

	if (json_is_object(value)) {
		json_object_foreach((json_t *)value, key, item) {
			char *safe = text_safe(key);
			bool deep = json_is_object(item) || json_is_array(item);

			printf("%*s%s:%s", indent, "", safe, deep ? "" : " ");
			xfree(safe);
			if (json_is_array(item) && json_array_size(item) <= 16) {
				putchar(' ');
				if (print_short_list(item))
					continue;
			}
			if (deep)
				putchar('\n');
			print_json_for_people(item, indent + 2);
		}
	} else if (json_is_array(value)) {
		json_array_foreach(value, i, item) {
			bool deep = json_is_object(item) || json_is_array(item);

			printf(deep ? "%*s%zu\n" : "%*s", indent, "", i + 1);
			print_json_for_people(item, indent + (deep ? 2 : 0));
		}
	} else {
		print_scalar(value);
	}
}
