/* SPDX-License-Identifier: Apache-2.0
 * Which files an import sends; see files.h. Folders are walked in name order, links to folders
 * are not followed. */
#include "config.h"
#include "client/files.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#define DEPTH_MAX 32
#define LIST_KEYS { "image", "image_path", "path", "file", "file_name", "filename" }

enum file_kind { FILE_OTHER, FILE_IMAGE, FILE_TEXT, FILE_LIST, FILE_TAR };

static enum file_kind kind_of(const char *name)
{
	static const struct {
		const char *suffix;
		enum file_kind kind;
	} known[] = {
		{ ".png", FILE_IMAGE }, { ".jpg", FILE_IMAGE }, { ".jpeg", FILE_IMAGE },
		{ ".webp", FILE_IMAGE }, { ".txt", FILE_TEXT }, { ".tsv", FILE_LIST },
		{ ".jsonl", FILE_LIST }, { ".tar", FILE_TAR },
	};
	const char *dot = strrchr(name, '.');

	for (size_t i = 0; dot && i < ARRAY_LEN(known); i++)
		if (strcasecmp(dot, known[i].suffix) == 0)
			return known[i].kind;
	return FILE_OTHER;
}

static void add(struct file_set *f, const char *path, uint64_t size)
{
	if (f->count == f->room) {
		f->room = f->room ? 2 * f->room : 64;
		f->entry = xrealloc(f->entry, f->room, sizeof *f->entry);
	}
	f->entry[f->count++] = (struct file_entry){ xstrdup(path), size };
}

/* Adds the file when it is of use, and counts it. */
static void take(struct file_set *f, const char *path, uint64_t size)
{
	switch (kind_of(path)) {
	case FILE_IMAGE: f->images++; break;
	case FILE_TEXT: f->texts++; break;
	case FILE_LIST: f->lists++; break;
	case FILE_TAR:
	case FILE_OTHER: f->others++; return;
	}
	add(f, path, size);
}

void file_set_release(struct file_set *f)
{
	for (size_t i = 0; i < f->count; i++)
		xfree(f->entry[i].path);
	xfree(f->entry);
	xfree(f->root);
	xfree(f->first_missing);
}

const char *file_set_kind(const struct file_set *f)
{
	if (f->tars)
		return "webdataset";
	if (f->images)
		return f->texts + f->lists ? "images+captions" : "pixels";
	return "text";
}

/* ---- folders */

struct walk {
	struct file_set *set;
	const char *below; /* "" or "sub/" */
	int depth;
	struct err *err;
};

static int walk_entry(void *arg, const char *name)
{
	struct walk *w = arg;
	char *rel = xasprintf("%s%s", w->below, name), *path;
	struct stat st, link;
	int rc = 0;

	path = xasprintf("%s/%s", w->set->root, rel);
	if (name[0] == '.')
		rc = 0; /* hidden files are nobody's samples */
	else if (lstat(path, &link) < 0 || stat(path, &st) < 0)
		rc = err_errno(w->err, "%s", path);
	else if (S_ISREG(st.st_mode) && path_is_plain(rel))
		take(w->set, rel, (uint64_t)st.st_size);
	else if (S_ISDIR(link.st_mode) && w->depth == DEPTH_MAX)
		rc = err_set(w->err, TF_ELIMIT, "%s: folders more than %d deep", path, DEPTH_MAX);
	else if (S_ISDIR(link.st_mode)) {
		char *below = xasprintf("%s/", rel);
		struct walk deeper = { w->set, below, w->depth + 1, w->err };

		rc = dir_each(path, walk_entry, &deeper, w->err);
		xfree(below);
	}
	xfree(path);
	xfree(rel);
	return rc;
}

/* Lists first, then by name. */
static int compare(const void *a, const void *b)
{
	const struct file_entry *x = a, *y = b;
	bool x_list = kind_of(x->path) == FILE_LIST, y_list = kind_of(y->path) == FILE_LIST;

	return x_list != y_list ? y_list - x_list : strcmp(x->path, y->path);
}

static int read_folder(const char *path, struct file_set *f, struct err *e)
{
	struct walk w = { f, "", 0, e };

	f->root = xstrdup(path);
	TRY(dir_each(path, walk_entry, &w, e));
	FAIL_IF(f->count == 0, e, TF_EINVALID,
		"%s: no file of use in it, expected .png, .jpg, .webp, .txt, .tsv or .jsonl", path);
	qsort(f->entry, f->count, sizeof *f->entry, compare);
	return 0;
}

/* ---- lists that name pictures */

/* The picture that a line names, or NULL; the caller frees it. */
static char *picture_of_tsv(const char *line)
{
	size_t len = strcspn(line, "\t\r\n");
	char *first = xstrndup(line, len);

	if (line[len] == '\t' && kind_of(first) == FILE_IMAGE)
		return first;
	xfree(first);
	return NULL;
}

static char *picture_of_json(const char *line)
{
	static const char *const keys[] = LIST_KEYS;
	json_t *o = json_loads(line, 0, NULL);
	char *found = NULL;

	for (size_t i = 0; json_is_object(o) && !found && i < ARRAY_LEN(keys); i++) {
		const char *text = json_string_value(json_object_get(o, keys[i]));

		if (text && kind_of(text) == FILE_IMAGE)
			found = xstrdup(text);
	}
	json_decref(o);
	return found;
}

static int take_picture(struct file_set *f, const char *list, size_t line, const char *picture,
			struct err *e)
{
	struct stat st;
	char *path;

	while (strncmp(picture, "./", 2) == 0)
		picture += 2;
	FAIL_IF(!path_is_plain(picture), e, TF_EINVALID,
		"%s:%zu: picture '%.200s': expected a path relative to the list's folder, "
		"without '..'", list, line, picture);
	path = xasprintf("%s/%s", f->root, picture);
	if (stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
		take(f, picture, (uint64_t)st.st_size);
	} else {
		f->missing++;
		if (!f->first_missing)
			f->first_missing = xstrdup(picture);
	}
	xfree(path);
	return 0;
}

static int read_lines(FILE *in, const char *list, bool json, struct file_set *f, struct err *e)
{
	char *line = NULL;
	size_t room = 0, number = 0;
	int rc = 0;

	while (rc == 0 && getline(&line, &room, in) >= 0) {
		char *picture = json ? picture_of_json(line) : picture_of_tsv(line);

		number++;
		if (picture)
			rc = take_picture(f, list, number, picture, e);
		xfree(picture);
	}
	if (rc == 0 && ferror(in))
		rc = err_errno(e, "%s", list);
	free(line);
	return rc;
}

/* Sorts, and keeps one of each. */
static void sort_unique(struct file_set *f)
{
	size_t kept = 0;

	qsort(f->entry, f->count, sizeof *f->entry, compare);
	for (size_t i = 0; i < f->count; i++) {
		if (kept && strcmp(f->entry[kept - 1].path, f->entry[i].path) == 0) {
			xfree(f->entry[i].path);
			continue;
		}
		f->entry[kept++] = f->entry[i];
	}
	f->count = kept;
}

static int read_list(const char *path, uint64_t size, struct file_set *f, struct err *e)
{
	const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
	FILE *in = fopen(path, "re");
	int rc;

	if (!in)
		return err_errno(e, "%s", path);
	f->root = slash ? xstrndup(path, slash == path ? 1 : (size_t)(slash - path)) : xstrdup(".");
	rc = read_lines(in, path, strcasecmp(strrchr(base, '.'), ".jsonl") == 0, f, e);
	fclose(in);
	TRY(rc);
	FAIL_IF(f->missing && !f->images, e, TF_ENOTFOUND, "%s: none of the %zu pictures it names "
		"is there; the first is %s/%s", path, f->missing, f->root, f->first_missing);
	f->single = f->images == 0;
	take(f, base, size);
	sort_unique(f);
	return 0;
}

int file_set_read(const char *path, struct file_set *out, struct err *e)
{
	struct stat st;
	int rc = 0;

	memset(out, 0, sizeof *out);
	if (stat(path, &st) < 0)
		return err_errno(e, "%s", path);
	if (S_ISDIR(st.st_mode)) {
		rc = read_folder(path, out, e);
	} else if (!S_ISREG(st.st_mode)) {
		rc = err_set(e, TF_EINVALID, "%s: neither a file nor a folder", path);
	} else if (kind_of(path) == FILE_LIST) {
		rc = read_list(path, (uint64_t)st.st_size, out, e);
	} else {
		out->single = true;
		out->tars = kind_of(path) == FILE_TAR;
		out->images = kind_of(path) == FILE_IMAGE;
		add(out, path, (uint64_t)st.st_size);
	}
	if (rc < 0)
		file_set_release(out);
	return rc;
}
