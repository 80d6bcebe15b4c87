/* SPDX-License-Identifier: Apache-2.0
 * Durable files, folders and path checks; see files.h. */
#include "config.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_read(const char *path, size_t max, struct buf *out, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t start = out->len;
	struct stat st;
	int rc = 0;

	if (fd < 0)
		return err_errno(e, "%s", path);
	if (fstat(fd, &st) < 0)
		rc = err_errno(e, "%s", path);
	else if (!S_ISREG(st.st_mode))
		rc = err_set(e, TF_EINVALID, "%s: not a regular file", path);
	while (rc == 0) {
		ssize_t n;

		buf_reserve(out, 65536);
		n = read(fd, out->data + out->len, 65536);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			rc = err_errno(e, "%s", path);
		if (n <= 0)
			break;
		out->len += n;
		out->data[out->len] = 0;
		if (out->len - start > max)
			rc = err_set(e, TF_ELIMIT, "%s: larger than %zu bytes", path, max);
	}
	close(fd);
	return rc;
}

int file_write_all(int fd, const void *data, size_t len, const char *name, struct err *e)
{
	const char *p = data;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(e, "%s", name);
		p += n;
		len -= n;
	}
	return 0;
}

static char *parent_of(const char *path)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return xstrdup(".");
	return slash == path ? xstrdup("/") : xstrndup(path, slash - path);
}

int file_fsync_parent(const char *path, struct err *e)
{
	char *dir = parent_of(path);
	int rc = file_fsync(dir, e);

	xfree(dir);
	return rc;
}

int file_fsync(const char *path, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int rc = 0;

	if (fd < 0)
		return err_errno(e, "%s", path);
	if (fsync(fd) < 0)
		rc = err_errno(e, "sync of %s", path);
	close(fd);
	return rc;
}

static int write_aside(const char *path, const void *data, size_t len, unsigned mode, bool sync,
		       struct err *e)
{
	char *tmp = xasprintf("%s.tmp", path);
	int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
	int rc;

	if (fd < 0) {
		rc = err_errno(e, "%s", tmp);
		goto out;
	}
	rc = file_write_all(fd, data, len, tmp, e);
	if (rc == 0 && sync && fsync(fd) < 0)
		rc = err_errno(e, "sync of %s", tmp);
	if (close(fd) < 0 && rc == 0)
		rc = err_errno(e, "%s", tmp);
	if (rc == 0 && rename(tmp, path) < 0)
		rc = err_errno(e, "%s", path);
	if (rc < 0)
		unlink(tmp);
out:
	xfree(tmp);
	return rc;
}

int file_write(const char *path, const void *data, size_t len, unsigned mode, struct err *e)
{
	TRY(write_aside(path, data, len, mode, true, e));
	return file_fsync_parent(path, e);
}

int file_put(const char *path, const void *data, size_t len, unsigned mode, struct err *e)
{
	return write_aside(path, data, len, mode, false, e);
}

static bool same_parent(const char *a, const char *b)
{
	char *x = parent_of(a), *y = parent_of(b);
	bool same = strcmp(x, y) == 0;

	xfree(x);
	xfree(y);
	return same;
}

int file_rename(const char *from, const char *to, struct err *e)
{
	if (rename(from, to) < 0)
		return err_errno(e, "rename of %s to %s", from, to);
	TRY(file_fsync_parent(to, e));
	return same_parent(from, to) ? 0 : file_fsync_parent(from, e);
}

bool file_exists(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

int64_t file_size(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 ? (int64_t)st.st_size : -1;
}

int dir_make(const char *path, unsigned mode, struct err *e)
{
	struct stat st;
	char *parent;
	int rc;

	if (stat(path, &st) == 0) {
		FAIL_IF(!S_ISDIR(st.st_mode), e, TF_EEXISTS, "%s: exists and is no folder", path);
		return 0;
	}
	parent = parent_of(path);
	rc = strcmp(parent, path) == 0 ? 0 : dir_make(parent, mode, e);
	if (rc == 0 && mkdir(path, mode) < 0 && errno != EEXIST)
		rc = err_errno(e, "%s", path);
	if (rc == 0)
		rc = file_fsync(parent, e);
	xfree(parent);
	return rc;
}

struct walk {
	const char *path;
	struct err *e;
	int64_t bytes;
};

static int remove_entry(void *arg, const char *name)
{
	struct walk *w = arg;
	char *path = xasprintf("%s/%s", w->path, name);
	struct stat st;
	int rc = 0;

	if (lstat(path, &st) < 0)
		rc = errno == ENOENT ? 0 : err_errno(w->e, "%s", path);
	else if (S_ISDIR(st.st_mode))
		rc = dir_remove(path, w->e);
	else if (unlink(path) < 0 && errno != ENOENT)
		rc = err_errno(w->e, "%s", path);
	xfree(path);
	return rc;
}

bool dir_is(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int dir_remove(const char *path, struct err *e)
{
	struct walk w = { path, e, 0 };

	if (!file_exists(path))
		return 0;
	if (!dir_is(path))
		return unlink(path) < 0 && errno != ENOENT ? err_errno(e, "%s", path) : 0;
	TRY(dir_each(path, remove_entry, &w, e));
	if (rmdir(path) < 0 && errno != ENOENT)
		return err_errno(e, "%s", path);
	return 0;
}

static int size_entry(void *arg, const char *name)
{
	struct walk *w = arg;
	char *path = xasprintf("%s/%s", w->path, name);
	struct stat st;

	if (lstat(path, &st) == 0) {
		if (S_ISDIR(st.st_mode))
			w->bytes += dir_size(path);
		else if (S_ISREG(st.st_mode))
			w->bytes += st.st_size;
	}
	xfree(path);
	return 0;
}

int64_t dir_size(const char *path)
{
	struct walk w = { path, NULL, 0 };

	dir_each(path, size_entry, &w, NULL);
	return w.bytes;
}

static int not_dots(const struct dirent *d)
{
	return strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0;
}

static int by_bytes(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

int dir_each(const char *path, int (*fn)(void *arg, const char *name), void *arg, struct err *e)
{
	struct dirent **list = NULL;
	int n = scandir(path, &list, not_dots, by_bytes);
	int rc = 0;

	if (n < 0)
		return err_errno(e, "%s", path);
	for (int i = 0; i < n; i++) {
		if (rc >= 0)
			rc = fn(arg, list[i]->d_name);
		free(list[i]);
	}
	free(list);
	return rc < 0 ? rc : 0;
}

/* Opens a regular file of w->path; *fd -1: it is none. */
static int open_entry(const struct walk *w, const char *name, int *fd)
{
	char *path = xasprintf("%s/%s", w->path, name);
	struct stat st;
	int rc = 0;

	*fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (*fd < 0 && errno != ELOOP)
		rc = err_errno(w->e, "%s", path);
	if (*fd >= 0 && (fstat(*fd, &st) < 0 || !S_ISREG(st.st_mode))) {
		close(*fd);
		*fd = -1;
	}
	xfree(path);
	return rc;
}

/* Sets its bytes out for the disk: a hint, which the first sync of all then finds done. */
static int start_entry(void *arg, const char *name)
{
	int fd;

	TRY(open_entry(arg, name, &fd));
	if (fd >= 0) {
		sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
		close(fd);
	}
	return 0;
}

static int sync_entry(void *arg, const char *name)
{
	struct walk *w = arg;
	int fd, rc = 0;

	TRY(open_entry(w, name, &fd));
	if (fd >= 0 && fsync(fd) < 0)
		rc = err_errno(w->e, "sync of %s/%s", w->path, name);
	if (fd >= 0)
		close(fd);
	return rc;
}

int dir_sync(const char *path, struct err *e)
{
	struct walk w = { path, e, 0 };

	TRY(dir_each(path, start_entry, &w, e));
	TRY(dir_each(path, sync_entry, &w, e));
	return file_fsync(path, e);
}

bool path_is_plain(const char *rel)
{
	const char *p = rel;

	if (!*rel || *rel == '/')
		return false;
	while (*p) {
		size_t n = strcspn(p, "/");

		if (n == 2 && p[0] == '.' && p[1] == '.')
			return false;
		for (size_t i = 0; i < n; i++)
			if ((unsigned char)p[i] < 32 || p[i] == 127)
				return false;
		p += n;
		if (*p)
			p++;
	}
	return true;
}

bool path_is_inside(const char *root, const char *path)
{
	char *r = realpath(root, NULL), *p = realpath(path, NULL);
	size_t n = r ? strlen(r) : 0;
	bool inside = r && p && strncmp(r, p, n) == 0 &&
		(p[n] == 0 || p[n] == '/' || strcmp(r, "/") == 0);

	free(r);
	free(p);
	return inside;
}
