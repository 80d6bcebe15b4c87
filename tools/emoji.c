/* SPDX-License-Identifier: Apache-2.0
 * Real pictures with true captions out of a colour font: each emoji's picture (a PNG inside the
 * font's CBDT table) and beside it a .txt with its Unicode name. HarfBuzz maps a sequence of code
 * points to its glyph; pictures become squares on white unless --raw asks for the bytes as they
 * are. See `emoji --help`. */
#include "config.h"
#include "lib/buf.h"
#include "lib/err.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <getopt.h>
#include <hb-ot.h>
#include <png.h>
#include <stb_image_resize.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FONT "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
#define NAMES "/usr/share/unicode/emoji/emoji-test.txt"
#define NAMES_BYTES_MAX (16u << 20)
#define CODES_MAX 16
#define SIDE_MAX 4096

static const char usage[] =
	"Usage: emoji [OPTION]... DIR\n"
	"Writes DIR/NAME.png and DIR/NAME.txt (its caption) for the emoji of a font.\n\n"
	"  --groups LIST     only these, divided by commas: 'Animals & Nature,Food & Drink'\n"
	"  --count N         N of them, spread evenly over the chosen ones\n"
	"  --no-skin-tones   leave out the variants with skin tones\n"
	"  --size PIXELS     squares of so many pixels (default: the font's own size, padded)\n"
	"  --raw             the font's own bytes: not padded, with palettes, transparent\n"
	"  --list FILE       also writes the NAMEs, one a line\n"
	"  --font FILE       default " FONT "\n"
	"  --names FILE      default " NAMES "\n\n"
	"Example: emoji --groups 'Animals & Nature,Food & Drink' --no-skin-tones --count 200 out\n";

struct options {
	const char *font, *names, *groups, *list, *folder;
	long count, size;
	bool no_skin_tones, raw;
};

struct emoji {
	uint32_t code[CODES_MAX];
	int codes;
	char *caption;               /* "red apple" */
	char *name;                  /* "red-apple": the files' */
};

struct chosen {
	struct emoji *list;
	size_t count, room;
};

static void read_options(int argc, char **argv, struct options *o)
{
	static const struct option table[] = {
		{ "groups", required_argument, NULL, 'g' },
		{ "count", required_argument, NULL, 'n' },
		{ "no-skin-tones", no_argument, NULL, 't' },
		{ "size", required_argument, NULL, 's' },
		{ "raw", no_argument, NULL, 'r' },
		{ "list", required_argument, NULL, 'l' },
		{ "font", required_argument, NULL, 'f' },
		{ "names", required_argument, NULL, 'u' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	char *end = "";
	int c;

	while ((c = getopt_long(argc, argv, "h", table, NULL)) != -1) {
		switch (c) {
		case 'g': o->groups = optarg; break;
		case 'n': o->count = strtol(optarg, &end, 10); break;
		case 't': o->no_skin_tones = true; break;
		case 's': o->size = strtol(optarg, &end, 10); break;
		case 'r': o->raw = true; break;
		case 'l': o->list = optarg; break;
		case 'f': o->font = optarg; break;
		case 'u': o->names = optarg; break;
		case 'h': fputs(usage, stdout); exit(0);
		default: exit(2);
		}
		if (*end || o->count < 0 || o->size < 0 || o->size > SIDE_MAX)
			die(2, "found '%s', expected a number (--size at most %d)", optarg,
			    SIDE_MAX);
	}
	if (optind + 1 != argc)
		die(2, "expected one folder; see emoji --help");
	o->folder = argv[optind];
}

/* Whether group is one of the comma-divided groups of list (NULL: all are). */
static bool in_groups(const char *list, const char *group)
{
	size_t len = strlen(group);

	for (const char *p = list; p; p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL) {
		while (*p == ' ')
			p++;
		if (strncmp(p, group, len) == 0 && (p[len] == 0 || p[len] == ','))
			return true;
	}
	return !list;
}

/* A file name of a caption: letters and digits of ASCII, the rest joined to single dashes. A
 * name that is taken gets the code points behind it. */
static char *file_name(const struct chosen *all, const struct emoji *m)
{
	struct buf name = BUF_INIT;

	for (const char *p = m->caption; *p; p++) {
		bool plain = (*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9');

		if (*p >= 'A' && *p <= 'Z')
			buf_printf(&name, "%c", *p - 'A' + 'a');
		else if (plain)
			buf_append(&name, p, 1);
		else if (name.len && name.data[name.len - 1] != '-')
			buf_text(&name, "-");
	}
	while (name.len && name.data[name.len - 1] == '-')
		name.data[--name.len] = 0;
	for (size_t i = 0; i < all->count; i++)
		if (!name.len || strcmp(all->list[i].name, name.data) == 0) {
			for (int k = 0; k < m->codes; k++)
				buf_printf(&name, "-%x", m->code[k]);
			break;
		}
	return buf_detach(&name);
}

/* Reads "1F34E ; fully-qualified # <picture> E0.6 red apple"; false for any other line. */
static bool read_line(const char *line, const struct options *o, struct emoji *out)
{
	const char *status = strchr(line, ';'), *p = line, *name;
	bool skin_tone = false;
	char *end;

	memset(out, 0, sizeof *out);
	if (*line == '#' || !status || strncmp(status, "; fully-qualified", 17) != 0)
		return false;
	for (; out->codes < CODES_MAX; p = end) {
		unsigned long code = strtoul(p, &end, 16);

		if (end == p || end > status)
			break;
		out->code[out->codes++] = (uint32_t)code;
		skin_tone |= code >= 0x1F3FB && code <= 0x1F3FF;
	}
	name = strstr(status, " E");
	name = name ? strchr(name + 1, ' ') : NULL;
	if (!name || !out->codes || (skin_tone && o->no_skin_tones))
		return false;
	out->caption = xstrdup(name + 1);
	return true;
}

static void read_names(const struct options *o, struct chosen *all)
{
	struct buf text = BUF_INIT;
	struct err e = ERR_INIT;
	bool wanted = false;

	if (file_read(o->names, NAMES_BYTES_MAX, &text, &e) < 0)
		die(1, "%s", e.text);
	for (char *save, *line = strtok_r(text.data, "\r\n", &save); line;
	     line = strtok_r(NULL, "\r\n", &save)) {
		struct emoji m;

		if (strncmp(line, "# group: ", 9) == 0)
			wanted = in_groups(o->groups, line + 9);
		if (!wanted || !read_line(line, o, &m))
			continue;
		if (all->count == all->room) {
			all->room = all->room ? 2 * all->room : 256;
			all->list = xrealloc(all->list, all->room, sizeof *all->list);
		}
		m.name = file_name(all, &m);
		all->list[all->count++] = m;
	}
	buf_release(&text);
}

/* The PNG of an emoji's glyph; empty when the font has no single glyph for it. */
static hb_blob_t *find_picture(hb_font_t *font, hb_buffer_t *text, const struct emoji *m)
{
	hb_glyph_info_t *glyph;
	unsigned count;

	hb_buffer_reset(text);
	hb_buffer_add_utf32(text, m->code, m->codes, 0, m->codes);
	hb_buffer_guess_segment_properties(text);
	hb_shape(font, text, NULL, 0);
	glyph = hb_buffer_get_glyph_infos(text, &count);
	if (count != 1 || glyph[0].codepoint == 0)
		return hb_blob_get_empty();
	return hb_ot_color_glyph_reference_png(font, glyph[0].codepoint);
}

/* Decodes over white into the middle of a square, resized to size (0: as it is). */
static uint8_t *square(const void *data, size_t len, long size, int *side)
{
	const png_color white = { 255, 255, 255 };
	png_image png = { .version = PNG_IMAGE_VERSION };
	uint8_t *at, *out, *resized;
	int n;

	if (!png_image_begin_read_from_memory(&png, data, len) || png.width > SIDE_MAX ||
	    png.height > SIDE_MAX)
		return NULL;
	png.format = PNG_FORMAT_RGB;
	n = (int)(png.width > png.height ? png.width : png.height);
	out = xmalloc((size_t)n * n * 3);
	memset(out, 255, (size_t)n * n * 3);
	at = out + ((size_t)(n - png.height) / 2 * n + (n - png.width) / 2) * 3;
	if (!png_image_finish_read(&png, &white, at, n * 3, NULL)) {
		xfree(out);
		return NULL;
	}
	*side = n;
	if (size && size != n) {
		resized = xmalloc((size_t)size * size * 3);
		CHECK(stbir_resize_uint8(out, n, n, 0, resized, (int)size, (int)size, 0, 3));
		xfree(out);
		out = resized;
		*side = (int)size;
	}
	return out;
}

static void write_file(const char *folder, const char *name, const char *ending, const void *data,
		       size_t len)
{
	char *path = xasprintf("%s/%s%s", folder, name, ending);
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(data, 1, len, f) != len || fclose(f) != 0)
		die(1, "%s: cannot be written", path);
	xfree(path);
}

static void write_square(const struct options *o, const struct emoji *m, const void *data,
			 size_t len)
{
	png_image png = { .version = PNG_IMAGE_VERSION, .format = PNG_FORMAT_RGB,
			  .flags = PNG_IMAGE_FLAG_FAST };
	char *path = xasprintf("%s/%s.png", o->folder, m->name);
	int side = 0;
	uint8_t *rgb = square(data, len, o->size, &side);

	if (!rgb)
		die(1, "%s: the picture of '%s' cannot be read", o->font, m->caption);
	png.width = png.height = (uint32_t)side;
	if (!png_image_write_to_file(&png, path, 0, rgb, 0, NULL))
		die(1, "%s: cannot be written: %s", path, png.message);
	xfree(rgb);
	xfree(path);
}

/* Writes every stride-th emoji that has a picture; returns how many. */
static long write_pictures(const struct options *o, const struct chosen *all, struct buf *list)
{
	hb_blob_t *file = hb_blob_create_from_file_or_fail(o->font);
	hb_face_t *face = file ? hb_face_create(file, 0) : NULL;
	hb_font_t *font = face ? hb_font_create(face) : NULL;
	hb_buffer_t *text = hb_buffer_create();
	long wanted = o->count ? o->count : (long)all->count, written = 0;

	if (!font || !hb_ot_color_has_png(face))
		die(1, "%s: not a font with PNG pictures", o->font);
	for (size_t i = 0; i < all->count; i++) {
		const struct emoji *m = &all->list[i];
		hb_blob_t *png;
		unsigned len;
		const char *data;

		/* The i-th is taken when the share of all up to it steps to the next number. */
		if ((i + 1) * (size_t)wanted / all->count == i * (size_t)wanted / all->count)
			continue;
		png = find_picture(font, text, m);
		data = hb_blob_get_data(png, &len);
		if (len && o->raw)
			write_file(o->folder, m->name, ".png", data, len);
		else if (len)
			write_square(o, m, data, len);
		if (len) {
			write_file(o->folder, m->name, ".txt", m->caption, strlen(m->caption));
			buf_printf(list, "%s\n", m->name);
			written++;
		}
		hb_blob_destroy(png);
	}
	hb_buffer_destroy(text);
	hb_font_destroy(font);
	hb_face_destroy(face);
	hb_blob_destroy(file);
	return written;
}

int main(int argc, char **argv)
{
	struct options o = { .font = FONT, .names = NAMES };
	struct chosen all = { 0 };
	struct buf list = BUF_INIT;
	struct err e = ERR_INIT;

	die_set_program("emoji");
	read_options(argc, argv, &o);
	read_names(&o, &all);
	if (!all.count)
		die(1, "%s: no emoji of the groups '%s'", o.names, o.groups ? o.groups : "(all)");
	if (o.count > (long)all.count)
		die(1, "--count %ld: only %zu emoji are in the chosen groups", o.count, all.count);
	if (dir_make(o.folder, 0777, &e) < 0)
		die(1, "%s", e.text);
	printf("%ld pictures in %s\n", write_pictures(&o, &all, &list), o.folder);
	if (o.list && file_write(o.list, list.data, list.len, 0666, &e) < 0)
		die(1, "%s", e.text);
	for (size_t i = 0; i < all.count; i++) {
		xfree(all.list[i].caption);
		xfree(all.list[i].name);
	}
	xfree(all.list);
	buf_release(&list);
	return 0;
}
