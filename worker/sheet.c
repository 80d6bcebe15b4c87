/* SPDX-License-Identifier: Apache-2.0
 * Laying out and drawing contact sheets; see sheet.h. Letters are the small face of font.def,
 * smoothed as they are enlarged. */
#include "config.h"
#include "worker/sheet.h"
#include "lib/mem.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define SIDE_SHOWN 112      /* pictures are enlarged by a whole number to about this side */
#define MARGIN 14           /* around a cell's content */
#define GAP 6               /* between the two pictures of a cell */
#define MARK 3              /* thickness of the line that says right or wrong */
#define SCALE 2             /* of letters */
#define ADVANCE (6 * SCALE) /* from one letter to the next */
#define LINE (11 * SCALE)   /* from one line to the next */
#define LINES 2             /* of a caption */
#define TITLE 52            /* height of the title's strip */
#define SIDE_MAX 30000      /* of the sheet */

struct color {
	uint8_t r, g, b;
};

static const struct color ink = { 38, 42, 51 }, frame = { 226, 228, 233 };
static const struct color marks[] = { { 255, 255, 255 }, { 46, 158, 91 }, { 226, 120, 60 } };

struct glyph {
	unsigned char code;
	int drop;
	uint8_t row[7];
};

static const struct glyph glyphs[] = {
#define G(code, drop, ...) { code, drop, { __VA_ARGS__ } },
#include "worker/font.def"
#undef G
};

/* ---- text */

/* The next character of UTF-8 as one of the face's: accents are left off, what it lacks is '?'. */
static char next_letter(const char **text)
{
	static const char latin[] =
		"AAAAAAACEEEEIIIIDNOOOOOxOUUUUYPsaaaaaaaceeeeiiiidnooooo/ouuuuypy";
	const unsigned char *p = (const unsigned char *)*text;
	unsigned code = p[0];

	(*text)++;
	if (code < 0x80)
		return code >= 32 && code < 127 ? (char)code : ' ';
	while (((unsigned char)**text & 0xC0) == 0x80)
		(*text)++;
	if (code == 0xC3)
		return latin[p[1] & 0x3F];
	if (code == 0xE2 && p[1] == 0x80) /* quotation marks and dashes */
		return p[2] == 0x98 || p[2] == 0x99 ? '\'' : p[2] >= 0x9C ? '"' : '-';
	return '?';
}

static void plain_text(const char *text, char *out, size_t room)
{
	size_t n = 0;

	while (*text && n + 1 < room)
		out[n++] = next_letter(&text);
	out[n] = 0;
}

static const struct glyph *find_glyph(char c)
{
	for (size_t i = 0; i < ARRAY_LEN(glyphs); i++)
		if (glyphs[i].code == (unsigned char)c)
			return &glyphs[i];
	return &glyphs[0];
}

static float bit(const struct glyph *g, int x, int y)
{
	if (x < 0 || x > 4 || y < 0 || y > 6)
		return 0;
	return (float)(g->row[y] >> (4 - x) & 1);
}

static void blend(struct picture *p, int x, int y, struct color c, float alpha)
{
	uint8_t *at = p->rgb + ((size_t)y * (size_t)p->width + (size_t)x) * 3;
	const uint8_t to[3] = { c.r, c.g, c.b };

	if (x < 0 || y < 0 || x >= p->width || y >= p->height)
		return;
	for (int i = 0; i < 3; i++)
		at[i] = (uint8_t)lrintf((float)at[i] + alpha * ((float)to[i] - (float)at[i]));
}

/* A letter with its upper left corner at (left, top); edges are softened between the face's
 * points. */
static void draw_letter(struct picture *p, const struct glyph *g, int left, int top)
{
	for (int y = -1; y <= 7 * SCALE; y++)
		for (int x = -1; x <= 5 * SCALE; x++) {
			float u = ((float)x + 0.5f) / SCALE - 0.5f,
			      v = ((float)y + 0.5f) / SCALE - 0.5f;
			int i = (int)floorf(u), j = (int)floorf(v);
			float a = u - (float)i, b = v - (float)j;
			float value = (bit(g, i, j) * (1 - a) + bit(g, i + 1, j) * a) * (1 - b) +
				      (bit(g, i, j + 1) * (1 - a) + bit(g, i + 1, j + 1) * a) * b;
			float alpha = fminf(1, fmaxf(0, (value - 0.3f) * 2.5f));

			if (alpha > 0)
				blend(p, left + x, top + y + g->drop * SCALE, ink, alpha);
		}
}

static void draw_line(struct picture *p, const char *text, size_t len, int left, int top)
{
	for (size_t i = 0; i < len; i++)
		draw_letter(p, find_glyph(text[i]), left + (int)i * ADVANCE, top);
}

/* How much of text goes on a line of `columns` letters: up to a space when there is one. */
static size_t line_length(const char *text, size_t columns)
{
	size_t len = strlen(text), cut;

	if (len <= columns)
		return len;
	for (cut = columns; cut > 0 && text[cut] != ' '; cut--)
		;
	return cut ? cut : columns;
}

/* Up to LINES centred lines; what does not fit ends in dots. */
static void draw_caption(struct picture *p, const char *caption, int left, int top, int width)
{
	size_t columns = (size_t)(width / ADVANCE);
	char plain[512];
	char *text = plain;

	plain_text(caption, plain, sizeof plain);
	for (int line = 0; line < LINES && *text; line++) {
		size_t len = line_length(text, columns);

		if (line == LINES - 1 && text[len] && columns > 2) {
			len = len < columns - 2 ? len : columns - 2;
			memcpy(text + len, "..", 3);
			len += 2;
		}
		draw_line(p, text, len, left + (width - (int)len * ADVANCE + SCALE) / 2,
			  top + line * LINE);
		text += len;
		while (*text == ' ')
			text++;
	}
}

/* ---- pictures */

static void fill(struct picture *p, int left, int top, int width, int height, struct color c)
{
	for (int y = top; y < top + height; y++)
		for (int x = left; x < left + width; x++)
			blend(p, x, y, c, 1);
}

/* A picture enlarged `by` times with straight lines between its pixels. */
static void draw_picture(struct picture *p, const struct sheet *s, const uint8_t *rgb, int by,
			 int left, int top)
{
	fill(p, left - 1, top - 1, s->width * by + 2, s->height * by + 2, frame);
	for (int y = 0; y < s->height * by; y++)
		for (int x = 0; x < s->width * by; x++) {
			float u = fmaxf(0, ((float)x + 0.5f) / (float)by - 0.5f);
			float v = fmaxf(0, ((float)y + 0.5f) / (float)by - 0.5f);
			int i = (int)u, j = (int)v;
			int i2 = i + 1 < s->width ? i + 1 : i, j2 = j + 1 < s->height ? j + 1 : j;
			float a = u - (float)i, b = v - (float)j;
			uint8_t *to =
				p->rgb +
				((size_t)(top + y) * (size_t)p->width + (size_t)(left + x)) * 3;

			for (int c = 0; c < 3; c++) {
				float above = (float)rgb[(j * s->width + i) * 3 + c] * (1 - a) +
					      (float)rgb[(j * s->width + i2) * 3 + c] * a;
				float below = (float)rgb[(j2 * s->width + i) * 3 + c] * (1 - a) +
					      (float)rgb[(j2 * s->width + i2) * 3 + c] * a;

				to[c] = (uint8_t)lrintf(above * (1 - b) + below * b);
			}
		}
}

/* ---- layout */

struct layout {
	int by; /* pictures are enlarged so many times */
	int cell_width, cell_height;
	int columns, rows;
};

static struct layout lay_out(const struct sheet *s)
{
	struct layout l = { 0 };
	int pictures = 1;

	for (size_t i = 0; i < s->count; i++)
		if (s->cell[i].picture[1])
			pictures = 2;
	l.by = s->width < SIDE_SHOWN ? (SIDE_SHOWN + s->width / 2) / s->width : 1;
	l.cell_width = pictures * s->width * l.by + (pictures - 1) * GAP + 2 * MARGIN;
	l.cell_height = s->height * l.by + MARK + LINES * LINE + 2 * MARGIN + GAP;
	/* half again as wide as high */
	l.columns = (int)ceil(sqrt(1.5 * (double)s->count * l.cell_height / l.cell_width));
	if ((size_t)l.columns > s->count)
		l.columns = (int)s->count;
	l.rows = (int)((s->count + (size_t)l.columns - 1) / (size_t)l.columns);
	l.columns = (int)((s->count + (size_t)l.rows - 1) / (size_t)l.rows); /* rows alike */
	return l;
}

static void draw_cell(struct picture *p, const struct sheet *s, const struct layout *l,
		      const struct sheet_cell *cell, int left, int top)
{
	int x = left + MARGIN, y = top + MARGIN, side = s->width * l->by;
	int below = y + s->height * l->by;
	int last = cell->picture[1] ? x + side + GAP : x;

	draw_picture(p, s, cell->picture[0], l->by, x, y);
	if (cell->picture[1])
		draw_picture(p, s, cell->picture[1], l->by, x + side + GAP, y);
	if (cell->mark != SHEET_PLAIN)
		fill(p, last, below + 2, side, MARK, marks[cell->mark]);
	draw_caption(p, cell->caption, x, below + MARK + GAP + 4, l->cell_width - 2 * MARGIN);
}

int sheet_write(const char *path, const struct sheet *s, const struct png_text *text, size_t texts,
		struct err *e)
{
	struct layout l;
	struct picture p;
	char title[512];
	int rc;

	CHECK(s->count > 0 && s->count < 1000000 && s->width > 0 && s->height > 0);
	l = lay_out(s);
	FAIL_IF(l.columns > SIDE_MAX / l.cell_width || l.rows > (SIDE_MAX - TITLE) / l.cell_height,
		e, TF_ELIMIT, "%s: %zu pictures of %d x %d do not fit on a sheet", path, s->count,
		s->width, s->height);
	picture_init(&p, l.columns * l.cell_width, TITLE + l.rows * l.cell_height, 255);
	plain_text(s->title, title, sizeof title);
	draw_line(&p, title, strlen(title), MARGIN, (TITLE - 7 * SCALE) / 2);
	fill(&p, 0, TITLE - 2, p.width, 1, frame);
	for (size_t i = 0; i < s->count; i++)
		draw_cell(&p, s, &l, &s->cell[i], (int)(i % (size_t)l.columns) * l.cell_width,
			  TITLE + (int)(i / (size_t)l.columns) * l.cell_height);
	rc = png_write(path, &p, text, texts, e);
	picture_release(&p);
	return rc;
}
