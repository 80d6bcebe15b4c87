/* SPDX-License-Identifier: Apache-2.0
 * Folders, tars and single files as lists of entries; see container.h. A tar is indexed once by
 * its headers; contents are read by offset. */
#include "config.h"
#include "worker/container.h"

#include "lib/bound.h"
#include "lib/files.h"
#include "lib/library.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "worker/image.h"

#include <archive.h>
#include <archive_entry.h>
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH_MAX 32
#define READ_BYTES (256u << 10)

/* libarchive is opened with the first tar: it brings a dozen libraries, which cost a worker's
 * start a millisecond. */
#define LIBRARY LIBRARY_FILE("libarchive", 13)
#define FUNCTIONS(F) \
	F(archive_entry_filetype) \
	F(archive_entry_hardlink) \
	F(archive_entry_pathname) \
	F(archive_entry_size) \
	F(archive_entry_sparse_count) \
	F(archive_error_string) \
	F(archive_filter_bytes) \
	F(archive_read_free) \
	F(archive_read_new) \
	F(archive_read_next_header) \
	F(archive_read_open_filename) \
	F(archive_read_support_format_tar)

struct tar_library {
	FUNCTIONS(LIBRARY_POINTER)
};

enum entry_kind entry_kind_of(const char *name)
{
	const char *dot = strrchr(name, '.');

	if (image_is_name(name))
		return ENTRY_IMAGE;
	if (!dot)
		return ENTRY_OTHER;
	if (strcasecmp(dot, ".tsv") == 0 || strcasecmp(dot, ".jsonl") == 0)
		return ENTRY_LIST;
	if (strcasecmp(dot, ".txt") == 0)
		return ENTRY_TEXT;
	return strcasecmp(dot, ".json") == 0 ? ENTRY_JSON : ENTRY_OTHER;
}

char *entry_stem(const char *name)
{
	const char *dot = strrchr(name, '.'), *slash = strrchr(name, '/');
	const char *base = slash ? slash + 1 : name;

	return xstrndup(name, dot && dot > base ? (size_t)(dot - name) : strlen(name));
}

static int add(struct container *c, const char *name, uint64_t offset, uint64_t size,
	       struct err *e)
{
	uint64_t most = bound("import-files", LIMIT_IMPORT_FILES);

	FAIL_IF(c->count >= most, e, TF_ELIMIT, "%s: more than %" PRIu64 " files", c->path, most);
	if (c->count == c->room) {
		c->room = c->room ? 2 * c->room : 64;
		c->entry = xrealloc(c->entry, c->room, sizeof *c->entry);
	}
	c->entry[c->count++] = (struct entry){ xstrdup(name), entry_kind_of(name), offset, size };
	return 0;
}

/* Lists first, then by name; of equal names the first in the tar. */
static int compare(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	int order = (y->kind == ENTRY_LIST) - (x->kind == ENTRY_LIST);

	if (!order)
		order = strcmp(x->name, y->name);
	return order ? order : x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* ---- folders ---- */

struct walk {
	struct container *c;
	const char *below; /* "" or "sub/" */
	int depth;
	struct err *e;
};

static int walk_entry(void *arg, const char *name)
{
	struct walk *w = arg;
	char *rel = xasprintf("%s%s", w->below, name);
	char *path = xasprintf("%s/%s", w->c->root, rel);
	struct stat st;
	int rc = 0;

	if (name[0] == '.' || !path_is_plain(rel))
		rc = 0;
	else if (lstat(path, &st) < 0)
		rc = err_errno(w->e, "%s", path);
	else if (S_ISREG(st.st_mode) || (S_ISLNK(st.st_mode) && stat(path, &st) == 0 &&
					 S_ISREG(st.st_mode) && path_is_inside(w->c->root, path)))
		rc = add(w->c, rel, 0, (uint64_t)st.st_size, w->e);
	else if (S_ISDIR(st.st_mode) && w->depth == DEPTH_MAX)
		rc = err_set(w->e, TF_ELIMIT, "%s: folders more than %d deep", path, DEPTH_MAX);
	else if (S_ISDIR(st.st_mode)) {
		char *below = xasprintf("%s/", rel);
		struct walk deeper = { w->c, below, w->depth + 1, w->e };

		rc = dir_each(path, walk_entry, &deeper, w->e);
		xfree(below);
	}
	xfree(path);
	xfree(rel);
	return rc;
}

static int open_folder(struct container *c, struct err *e)
{
	struct walk w = { c, "", 0, e };

	c->root = xstrdup(c->path);
	return dir_each(c->root, walk_entry, &w, e);
}

/* ---- tars ---- */

static int index_tar(struct container *c, const struct tar_library *lib, struct archive *a,
		     struct err *e)
{
	struct archive_entry *entry;
	int64_t size = file_size(c->path);
	int rc;

	while ((rc = lib->archive_read_next_header(a, &entry)) == ARCHIVE_OK ||
	       rc == ARCHIVE_WARN) {
		const char *name = lib->archive_entry_pathname(entry);
		int64_t offset = lib->archive_filter_bytes(a, 0);
		int64_t bytes = lib->archive_entry_size(entry);

		while (name && strncmp(name, "./", 2) == 0)
			name += 2;
		if (lib->archive_entry_filetype(entry) != AE_IFREG ||
		    lib->archive_entry_hardlink(entry) || !name || !path_is_plain(name))
			continue;
		FAIL_IF(offset < 0 || bytes < 0 || bytes > size - offset, e, TF_EINVALID,
			"%s: the tar ends within '%.200s'", c->path, name);
		FAIL_IF(lib->archive_entry_sparse_count(entry) > 0, e, TF_EINVALID,
			"%s: '%.200s' is stored sparse, expected a plain tar", c->path, name);
		TRY(add(c, name, (uint64_t)offset, (uint64_t)bytes, e));
	}
	FAIL_IF(rc != ARCHIVE_EOF, e, TF_EINVALID, "%s: a damaged tar: %s", c->path,
		lib->archive_error_string(a) ? lib->archive_error_string(a) : "unreadable");
	return 0;
}

static int open_tar(struct container *c, struct err *e)
{
	static const char *const names[] = { FUNCTIONS(LIBRARY_NAME) };
	struct tar_library functions, *lib = &functions;
	struct archive *a;
	int rc = 0;

	static_assert(sizeof functions == sizeof names, "a name a pointer");
	TRY(library_open(LIBRARY, names, ARRAY_LEN(names), (void **)lib, e));
	a = lib->archive_read_new();
	CHECK(a);
	c->tar = open(c->path, O_RDONLY | O_CLOEXEC);
	if (c->tar < 0)
		rc = err_errno(e, "%s", c->path);
	lib->archive_read_support_format_tar(a);
	if (rc == 0 && lib->archive_read_open_filename(a, c->path, READ_BYTES) != ARCHIVE_OK)
		rc = err_set(e, TF_EINVALID, "%s: %s", c->path, lib->archive_error_string(a));
	if (rc == 0)
		rc = index_tar(c, lib, a, e);
	lib->archive_read_free(a);
	return rc;
}

/* A tar by its name, or by the mark in its first block. */
static bool is_tar(const char *path)
{
	const char *dot = strrchr(path, '.');
	char mark[5] = { 0 };
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : pread(fd, mark, sizeof mark, 257);

	if (fd >= 0)
		close(fd);
	return (dot && strcasecmp(dot, ".tar") == 0) ||
	       (n == sizeof mark && memcmp(mark, "ustar", sizeof mark) == 0);
}

/* ---- all of them ---- */

static int open_file(struct container *c, uint64_t size, struct err *e)
{
	const char *slash = strrchr(c->path, '/');

	if (is_tar(c->path))
		return open_tar(c, e);
	c->root = slash ? xstrndup(c->path, slash == c->path ? 1 : (size_t)(slash - c->path))
			: xstrdup(".");
	TRY(add(c, slash ? slash + 1 : c->path, 0, size, e));
	FAIL_IF(c->entry[0].kind == ENTRY_OTHER || c->entry[0].kind == ENTRY_JSON, e, TF_EINVALID,
		"%s: expected a folder, .tar, .tsv, .jsonl, .txt or a picture", c->entry[0].name);
	return 0;
}

int container_open(const char *path, struct container *out, struct err *e)
{
	struct stat st;
	int rc;

	memset(out, 0, sizeof *out);
	out->tar = -1;
	if (stat(path, &st) < 0)
		return err_errno(e, "%s", path);
	out->path = xstrdup(path);
	while (strlen(out->path) > 1 && out->path[strlen(out->path) - 1] == '/')
		out->path[strlen(out->path) - 1] = 0;
	rc = S_ISDIR(st.st_mode) ? open_folder(out, e) : open_file(out, (uint64_t)st.st_size, e);
	if (rc < 0) {
		container_close(out);
		return rc;
	}
	if (out->count > 0) /* qsort() must not be given NULL, which an empty folder leaves */
		qsort(out->entry, out->count, sizeof *out->entry, compare);
	return 0;
}

void container_close(struct container *c)
{
	for (size_t i = 0; i < c->count; i++)
		xfree(c->entry[i].name);
	xfree(c->entry);
	if (c->tar >= 0)
		close(c->tar);
	xfree(c->root);
	xfree(c->path);
	memset(c, 0, sizeof *c);
	c->tar = -1;
}

const struct entry *container_find(const struct container *c, const char *name)
{
	size_t low = 0, high = c->count;
	struct entry wanted = { (char *)name, entry_kind_of(name), 0, 0 };

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (compare(&c->entry[middle], &wanted) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low < c->count && strcmp(c->entry[low].name, name) == 0 ? &c->entry[low] : NULL;
}

size_t container_kind_count(const struct container *c, enum entry_kind kind)
{
	size_t n = 0;

	for (size_t i = 0; i < c->count; i++)
		n += c->entry[i].kind == kind;
	return n;
}

/* A descriptor to read an entry from; *own: the caller closes it. */
static int entry_fd(const struct container *c, const struct entry *entry, bool *own,
		    struct err *e)
{
	char *path;
	int fd;

	*own = c->tar < 0;
	if (!*own)
		return c->tar;
	path = xasprintf("%s/%s", c->root, entry->name);
	if (!path_is_inside(c->root, path))
		fd = err_set(e, TF_ENOTFOUND, "%s: not there, or not below %s", entry->name,
			     c->root);
	else if ((fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		fd = err_errno(e, "%s", path);
	xfree(path);
	return fd;
}

int container_read(const struct container *c, const struct entry *entry, size_t max,
		   struct buf *out, struct err *e)
{
	bool own;
	int fd, rc = 0;

	FAIL_IF(entry->size > max, e, TF_ELIMIT, "%s: %llu bytes, expected at most %zu",
		entry->name, (unsigned long long)entry->size, max);
	fd = entry_fd(c, entry, &own, e);
	if (fd < 0)
		return fd;
	buf_reserve(out, entry->size);
	for (uint64_t done = 0; rc == 0 && done < entry->size;) {
		ssize_t n = pread(fd, out->data + out->len, entry->size - done,
				  (off_t)(entry->offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			rc = err_errno(e, "%s", entry->name);
		else if (n == 0)
			rc = err_set(e, TF_EINVALID, "%s: it ends after %llu of %llu bytes",
				     entry->name, (unsigned long long)done,
				     (unsigned long long)entry->size);
		else {
			done += (uint64_t)n;
			out->len += (size_t)n;
			out->data[out->len] = 0;
		}
	}
	if (own)
		close(fd);
	return rc;
}

/* ---- lines ---- */

int lines_open(struct lines *l, const struct container *c, const struct entry *entry,
	       uint64_t offset, uint64_t number, struct err *e)
{
	memset(l, 0, sizeof *l);
	l->fd = entry_fd(c, entry, &l->own_fd, e);
	if (l->fd < 0)
		return l->fd;
	l->start = entry->offset;
	l->end = entry->offset + entry->size;
	l->offset = offset < entry->size ? offset : entry->size;
	l->at = l->start + l->offset;
	l->number = number;
	return 0;
}

void lines_close(struct lines *l)
{
	if (l->own_fd && l->fd >= 0)
		close(l->fd);
	buf_release(&l->ahead);
	memset(l, 0, sizeof *l);
	l->fd = -1;
}

/* Reads on; *more is false at the end. */
static int fill(struct lines *l, bool *more, struct err *e)
{
	uint64_t want = l->end - l->at < READ_BYTES ? l->end - l->at : READ_BYTES;
	ssize_t n = 0;

	buf_reserve(&l->ahead, READ_BYTES);
	do
		n = want ? pread(l->fd, l->ahead.data + l->ahead.len, want, (off_t)l->at) : 0;
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return err_errno(e, "line %llu", (unsigned long long)l->number + 1);
	l->ahead.len += (size_t)n;
	l->ahead.data[l->ahead.len] = 0;
	l->at += (uint64_t)n;
	*more = n > 0;
	return 0;
}

/* Passes over what is left of a line that is too long. */
static int pass_over(struct lines *l, struct err *e)
{
	bool more = true;
	char *end = NULL;

	l->offset += l->ahead.len;
	while (more && !end) {
		buf_clear(&l->ahead);
		TRY(fill(l, &more, e));
		end = memchr(l->ahead.data, '\n', l->ahead.len);
		l->taken = end ? (size_t)(end - l->ahead.data) + 1 : l->ahead.len;
		l->offset += l->taken;
	}
	l->number++;
	return err_set(e, TF_ELIMIT, "line %llu: longer than %u bytes",
		       (unsigned long long)l->number, LIMIT_LINE_BYTES);
}

/* Where the next line ends; NULL: it goes on beyond what was read. */
static char *line_end(const struct lines *l, size_t seen)
{
	return l->ahead.len > seen ? memchr(l->ahead.data + seen, '\n', l->ahead.len - seen)
				   : NULL;
}

int lines_next(struct lines *l, char **line, size_t *bytes, struct err *e)
{
	char *end = line_end(l, l->taken);
	bool more = true;

	while (!end && more) {
		size_t seen = l->ahead.len - l->taken;

		if (l->taken)
			memmove(l->ahead.data, l->ahead.data + l->taken, seen);
		l->ahead.len = seen;
		l->taken = 0;
		if (seen > LIMIT_LINE_BYTES)
			return pass_over(l, e);
		TRY(fill(l, &more, e));
		end = line_end(l, seen);
	}
	*line = NULL;
	*bytes = 0;
	if (!end && l->ahead.len == l->taken)
		return 0;
	*line = l->ahead.data + l->taken;
	*bytes = end ? (size_t)(end - *line) : l->ahead.len - l->taken;
	l->taken += *bytes + (end != NULL);
	l->offset += *bytes + (end != NULL);
	l->number++;
	if (*bytes && (*line)[*bytes - 1] == '\r')
		--*bytes;
	(*line)[*bytes] = 0;
	return 0;
}
