/* SPDX-License-Identifier: Apache-2.0
 * Samples of an import; see source.h. A position is "PATH ENTRY OFFSET LINE": numbers of the
 * path and of the entry in it, and for lines the byte and the number of the last line taken. */
#include "config.h"
#include "worker/source.h"

#include "lib/files.h"
#include "lib/mem.h"
#include "lib/utf8.h"
#include "proto/limits.h"
#include "worker/container.h"

#include <ctype.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define PEEK_LINES 100

enum format { TSV, JSONL, PICTURES, CAPTIONED, TEXT_FILES, TEXT_LINES, FORMATS };
static const char *const formats[FORMATS] = { "tsv",        "jsonl",
					      "pictures",   "pictures+captions",
					      "text files", "text lines" };
static const char *const picture_keys[] = { "image", "image_path", "path",
					    "file",  "file_name",  "filename" };

struct source {
	char **path;
	size_t paths;
	const char *asked; /* one of formats, or NULL */
	enum format first; /* of the first path */
	bool pictures;     /* the first path has pictures */
	bool skip_pictures; /* only texts are wanted */
	struct container container;
	bool open;
	enum format format;   /* of the open path */
	enum entry_kind kind; /* of the entries that are walked */
	uint64_t total;
	size_t at_path, at_entry;
	uint64_t offset, line; /* in the entry */
	struct lines lines;
	bool lines_open;
	struct buf name, text, picture;
	char position[SOURCE_POSITION_MAX];
};

/* ---- opening ---- */

static const char *first_string(json_t *o, const char *const *key, size_t keys)
{
	for (size_t i = 0; i < keys; i++) {
		const char *text = json_string_value(json_object_get(o, key[i]));

		if (text && *text)
			return text;
	}
	return NULL;
}

/* Whether one of a .jsonl's first lines names a picture. */
static int peek_pictures(const struct container *c, const struct entry *entry, bool *found,
			 struct err *e)
{
	struct lines l;
	int rc = lines_open(&l, c, entry, 0, 0, e);

	*found = false;
	for (int i = 0; rc == 0 && i < PEEK_LINES && !*found; i++) {
		size_t bytes;
		char *line;
		json_t *o;

		rc = lines_next(&l, &line, &bytes, e);
		if (rc < 0 || !line)
			break;
		o = json_loadb(line, bytes, 0, NULL);
		*found = first_string(o, picture_keys, ARRAY_LEN(picture_keys)) != NULL;
		json_decref(o);
	}
	if (rc == TF_ELIMIT)
		rc = 0;
	lines_close(&l);
	return rc;
}

static enum format detect(const struct source *s, const struct container *c)
{
	size_t texts = container_kind_count(c, ENTRY_TEXT), length;

	if (s->asked)
		for (int i = 0; i < FORMATS; i++)
			if (strcmp(s->asked, formats[i]) == 0)
				return i;
	if (container_kind_count(c, ENTRY_LIST)) {
		length = strlen(c->entry[0].name);
		return strcasecmp(c->entry[0].name + length - 4, ".tsv") == 0 ? TSV : JSONL;
	}
	if (container_kind_count(c, ENTRY_IMAGE))
		return texts || container_kind_count(c, ENTRY_JSON) ? CAPTIONED : PICTURES;
	return texts == 1 ? TEXT_LINES : TEXT_FILES;
}

static enum entry_kind kind_of_format(enum format format)
{
	if (format == TSV || format == JSONL)
		return ENTRY_LIST;
	return format == TEXT_FILES || format == TEXT_LINES ? ENTRY_TEXT : ENTRY_IMAGE;
}

static void close_path(struct source *s)
{
	if (s->lines_open)
		lines_close(&s->lines);
	if (s->open)
		container_close(&s->container);
	s->lines_open = s->open = false;
}

static int open_path(struct source *s, struct err *e)
{
	struct container *c = &s->container;

	TRY(container_open(s->path[s->at_path], c, e));
	s->open = true;
	s->format = detect(s, c);
	s->kind = kind_of_format(s->format);
	s->total = s->format == PICTURES || s->format == CAPTIONED || s->format == TEXT_FILES
			   ? container_kind_count(c, s->kind)
			   : 0;
	FAIL_IF(!container_kind_count(c, s->kind), e, TF_EINVALID,
		"%s: found no file for format '%s'", c->path, formats[s->format]);
	return 0;
}

/* The first path says what the import is. */
static int look_at_first(struct source *s, struct err *e)
{
	s->at_path = 0;
	TRY(open_path(s, e));
	s->first = s->format;
	s->pictures = s->kind != ENTRY_TEXT;
	if (s->format == JSONL)
		TRY(peek_pictures(&s->container, &s->container.entry[0], &s->pictures, e));
	close_path(s);
	return 0;
}

static int take_position(struct source *s, const char *position, struct err *e)
{
	uint64_t path = 0, entry = 0;
	int end = 0;

	if (*position && (sscanf(position, "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 "%n",
				 &path, &entry, &s->offset, &s->line, &end) != 4 ||
			  position[end] || path > s->paths))
		return err_set(e, TF_ECORRUPT, "'%.80s' is no place in these files", position);
	s->at_path = path;
	s->at_entry = entry;
	snprintf(s->position, sizeof s->position, "%s", position);
	return 0;
}

int source_open(char *const *path, size_t paths, const char *format, const char *position,
		struct source **out, struct err *e)
{
	struct source *s = xcalloc(1, sizeof *s);
	bool known = false;
	int rc = 0;

	*out = NULL;
	s->paths = paths;
	s->path = xcalloc(paths + 1, sizeof *s->path);
	s->lines.fd = -1;
	for (size_t i = 0; i < paths; i++)
		s->path[i] = xstrdup(path[i]);
	for (int i = 0; format && *format && i < FORMATS; i++)
		if (strcmp(format, formats[i]) == 0) {
			s->asked = formats[i];
			known = true;
		}
	if (format && *format && !known)
		rc = err_set(e, TF_EINVALID,
			     "format: found '%.40s', expected tsv, jsonl, pictures, "
			     "pictures+captions, text files or text lines",
			     format);
	else if (!paths)
		rc = err_set(e, TF_EINVALID, "there are no files to import");
	if (rc == 0)
		rc = look_at_first(s, e);
	if (rc == 0)
		rc = take_position(s, position, e);
	if (rc < 0) {
		source_close(s);
		return rc;
	}
	*out = s;
	return 0;
}

void source_close(struct source *s)
{
	if (!s)
		return;
	close_path(s);
	for (size_t i = 0; i < s->paths; i++)
		xfree(s->path[i]);
	xfree(s->path);
	buf_release(&s->name);
	buf_release(&s->text);
	buf_release(&s->picture);
	xfree(s);
}

void source_skip_pictures(struct source *s)
{
	s->skip_pictures = true;
}

const char *source_format(const struct source *s)
{
	return formats[s->first];
}

bool source_has_pictures(const struct source *s)
{
	return s->pictures;
}

uint64_t source_total(const struct source *s)
{
	return s->total;
}

/* ---- samples ---- */

static void set_text(struct buf *b, const char *text, size_t bytes)
{
	buf_clear(b);
	buf_append(b, text, bytes);
}

/* Without white space at both ends. */
static void set_trimmed(struct buf *b, const char *text, size_t bytes)
{
	while (bytes && isspace((unsigned char)*text)) {
		text++;
		bytes--;
	}
	while (bytes && isspace((unsigned char)text[bytes - 1]))
		bytes--;
	set_text(b, text, bytes);
}

/* The name of a picture's sample: its file's, without the ending. */
static void set_stem(struct buf *b, const char *name)
{
	char *stem = entry_stem(name);

	set_text(b, stem, strlen(stem));
	xfree(stem);
}

/* The picture a list names, below the list's folder. */
static int read_listed(struct source *s, const struct entry *list, const char *name,
		       struct err *e)
{
	const char *slash = strrchr(list->name, '/');
	struct entry outside = { NULL, ENTRY_IMAGE, 0, 0 };
	const struct entry *found;
	char *full;
	int rc;

	while (strncmp(name, "./", 2) == 0)
		name += 2;
	full = xasprintf("%.*s%s", slash ? (int)(slash - list->name + 1) : 0, list->name, name);
	set_stem(&s->name, full);
	found = container_find(&s->container, full);
	buf_clear(&s->picture);
	if (s->skip_pictures) {
		xfree(full);
		return 0;
	}
	if (!found && s->container.root) {
		char *path = xasprintf("%s/%s", s->container.root, full);
		int64_t size = path_is_plain(full) ? file_size(path) : -1;

		outside.name = full;
		outside.size = size < 0 ? 0 : (uint64_t)size;
		found = size < 0 ? NULL : &outside;
		xfree(path);
	}
	rc = found ? container_read(&s->container, found, LIMIT_IMAGE_BYTES, &s->picture, e)
		   : err_set(e, TF_ENOTFOUND, "the picture '%.200s' is not there", name);
	xfree(full);
	return rc;
}

static void set_line_name(struct source *s, const struct entry *entry)
{
	buf_clear(&s->name);
	buf_printf(&s->name, "%s:%" PRIu64, entry->name, s->lines.number);
}

static int take_tsv(struct source *s, const struct entry *entry, char *line, size_t bytes,
		    bool *skip, struct err *e)
{
	char *tab = memchr(line, '\t', bytes), *end;

	if (tab)
		*tab = 0;
	*skip = s->lines.number == 1 && entry_kind_of(line) != ENTRY_IMAGE; /* a heading */
	if (*skip)
		return 0;
	FAIL_IF(!tab, e, TF_EINVALID, "expected a picture, a tab and its caption");
	end = memchr(tab + 1, '\t', bytes - (size_t)(tab + 1 - line));
	set_trimmed(&s->text, tab + 1,
		    end ? (size_t)(end - tab - 1) : bytes - (size_t)(tab + 1 - line));
	return read_listed(s, entry, line, e);
}

static int take_json(struct source *s, const struct entry *entry, const char *line, size_t bytes,
		     struct err *e)
{
	static const char *const text_keys[] = { "caption", "text" };
	json_error_t where;
	json_t *o = json_loadb(line, bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &where);
	const char *picture = first_string(o, picture_keys, ARRAY_LEN(picture_keys));
	json_t *text = NULL;
	int rc = 0;

	for (size_t i = 0; i < ARRAY_LEN(text_keys) && !json_is_string(text); i++)
		text = json_object_get(o, text_keys[i]);
	if (!json_is_object(o))
		rc = err_set(e, TF_EINVALID, "not a JSON object: %s",
			     o ? "another value" : where.text);
	else if (!json_is_string(text) && !picture)
		rc = err_set(e, TF_EINVALID, "expected a field text, caption or image");
	if (rc == 0 && json_is_string(text) && picture)
		set_trimmed(&s->text, json_string_value(text), json_string_length(text));
	else if (rc == 0 && json_is_string(text))
		set_text(&s->text, json_string_value(text), json_string_length(text));
	if (rc == 0 && picture)
		rc = read_listed(s, entry, picture, e);
	json_decref(o);
	return rc;
}

/* The next line's sample; *none at the end of the entry. Bad lines give an error. */
static int take_line(struct source *s, const struct entry *entry, bool *none, struct err *e)
{
	bool skip = true;

	*none = false;
	while (skip) {
		size_t bytes = 0;
		char *line = NULL;
		int rc = lines_next(&s->lines, &line, &bytes, e);

		s->offset = s->lines.offset;
		s->line = s->lines.number;
		set_line_name(s, entry);
		TRY(rc);
		*none = !line;
		if (!line)
			return 0;
		skip = strspn(line, " \t\r") == bytes;
		if (skip)
			continue;
		buf_clear(&s->text);
		if (s->format == TEXT_LINES)
			set_text(&s->text, line, bytes);
		else if (s->format == TSV)
			TRY(take_tsv(s, entry, line, bytes, &skip, e));
		else
			TRY(take_json(s, entry, line, bytes, e));
	}
	return 0;
}

/* A picture's caption from the .txt or .json beside it; none leaves the text empty. */
static int take_caption(struct source *s, const char *stem, struct err *e)
{
	struct buf file = BUF_INIT;
	char *name = xasprintf("%s.txt", stem);
	const struct entry *found = container_find(&s->container, name);
	json_t *o = NULL;
	const char *text = NULL;
	int rc = 0;

	if (found) {
		rc = container_read(&s->container, found, LIMIT_SAMPLE_TEXT_BYTES, &file, e);
		if (rc == 0)
			set_trimmed(&s->text, file.data, file.len);
	} else {
		xfree(name);
		name = xasprintf("%s.json", stem);
		found = container_find(&s->container, name);
		if (found)
			rc = container_read(&s->container, found, LIMIT_SAMPLE_TEXT_BYTES, &file,
					    e);
		if (found && rc == 0) {
			o = json_loadb(file.data ? file.data : "", file.len, 0, NULL);
			text = first_string(o, (const char *const[]){ "caption", "text" }, 2);
			if (text)
				set_trimmed(&s->text, text, strlen(text));
			else
				rc = err_set(e, TF_EINVALID, "%s: has no caption", name);
		}
	}
	json_decref(o);
	buf_release(&file);
	xfree(name);
	return rc;
}

static int take_file(struct source *s, const struct entry *entry, struct err *e)
{
	char *stem;
	int rc;

	buf_clear(&s->text);
	buf_clear(&s->picture);
	set_text(&s->name, entry->name, strlen(entry->name));
	if (s->kind == ENTRY_TEXT)
		return container_read(&s->container, entry, LIMIT_SAMPLE_TEXT_BYTES, &s->text, e);
	if (!s->skip_pictures)
		TRY(container_read(&s->container, entry, LIMIT_IMAGE_BYTES, &s->picture, e));
	stem = entry_stem(entry->name);
	rc = s->format == CAPTIONED ? take_caption(s, stem, e) : 0;
	if (rc == 0)
		set_text(&s->name, stem, strlen(stem));
	xfree(stem);
	return rc;
}

/* What must hold of every sample. */
static int check_sample(const struct source *s, struct err *e)
{
	FAIL_IF(!utf8_valid(s->name.data, s->name.len), e, TF_EINVALID, "its name is not UTF-8");
	FAIL_IF(s->name.len > LIMIT_SAMPLE_NAME_BYTES, e, TF_ELIMIT,
		"its name has %zu bytes, expected at most %u", s->name.len,
		LIMIT_SAMPLE_NAME_BYTES);
	if (!s->skip_pictures) {
		FAIL_IF(s->pictures && !s->picture.len, e, TF_EINVALID,
			"no picture among pictures");
		FAIL_IF(!s->pictures && s->picture.len, e, TF_EINVALID, "a picture among texts");
		FAIL_IF(!s->pictures && !s->text.len, e, TF_EINVALID, "an empty text");
	}
	FAIL_IF(s->text.len > LIMIT_SAMPLE_TEXT_BYTES, e, TF_ELIMIT,
		"a text of %zu bytes, expected at most %u", s->text.len, LIMIT_SAMPLE_TEXT_BYTES);
	FAIL_IF(!utf8_valid(s->text.data ? s->text.data : "", s->text.len), e, TF_EINVALID,
		"its text is not UTF-8");
	return 0;
}

static void set_item(struct source *s, const struct err *bad, struct source_item *out)
{
	snprintf(s->position, sizeof s->position, "%zu %zu %" PRIu64 " %" PRIu64, s->at_path,
		 s->at_entry, s->offset, s->line);
	if (bad->code)
		set_text(&s->text, bad->text, strlen(bad->text));
	*out = (struct source_item){ .what = bad->code ? SOURCE_BAD : SOURCE_SAMPLE,
				     .name = s->name.data,
				     .text = s->text.data ? s->text.data : "",
				     .text_bytes = s->text.len,
				     .picture = s->picture.len ? s->picture.data : NULL,
				     .picture_bytes = s->picture.len,
				     .position = s->position };
}

/* The next sample of the open path; *none at its end. */
static int next_here(struct source *s, struct source_item *out, bool *none, struct err *e)
{
	bool by_lines = s->kind == ENTRY_LIST || s->format == TEXT_LINES;

	for (; s->at_entry < s->container.count; s->at_entry++, s->offset = s->line = 0) {
		const struct entry *entry = &s->container.entry[s->at_entry];
		struct err bad = ERR_INIT;
		bool end = false;

		if (entry->kind != s->kind)
			continue;
		if (by_lines && !s->lines_open) {
			TRY(lines_open(&s->lines, &s->container, entry, s->offset, s->line, e));
			s->lines_open = true;
		}
		if (by_lines ? take_line(s, entry, &end, &bad) == 0
			     : take_file(s, entry, &bad) == 0)
			if (!end)
				check_sample(s, &bad);
		if (!end) {
			s->at_entry += !by_lines;
			set_item(s, &bad, out);
			return 0;
		}
		lines_close(&s->lines);
		s->lines_open = false;
	}
	*none = true;
	return 0;
}

int source_next(struct source *s, struct source_item *out, struct err *e)
{
	memset(out, 0, sizeof *out);
	out->position = s->position;
	for (; s->at_path < s->paths; s->at_path++) {
		bool none = false;

		if (!s->open)
			TRY(open_path(s, e));
		TRY(next_here(s, out, &none, e));
		if (!none)
			return 0;
		close_path(s);
		s->at_entry = 0;
		s->offset = s->line = 0;
	}
	return 0;
}
