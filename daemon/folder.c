/* SPDX-License-Identifier: Apache-2.0
 * Files for clients: opened step by step below a root, no link followed on the way, regular files
 * only. A worker or a person may have put anything into these folders; nothing outside them is ever
 * opened. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/utf8.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER_DEPTH_MAX 8

static int refused(const char *rel, struct err *e)
{
	if (errno == ELOOP || errno == ENOTDIR || errno == EMLINK)
		return err_set(e, TF_EREFUSED, "%s: a link or no regular file", rel);
	return err_errno(e, "%s", rel);
}

/* Goes down to the folder that holds the last part of rel; *last points into rel. */
static int go_down(const char *root, const char *rel, int *dir, const char **last, struct err *e)
{
	int fd = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	const char *slash;

	if (fd < 0)
		return err_errno(e, "%s", rel);
	while ((slash = strchr(rel, '/')) != NULL) {
		char part[256];
		int below;

		if ((size_t)(slash - rel) >= sizeof part) {
			close(fd);
			return err_set(e, TF_ELIMIT, "a part of the path is over 255 bytes");
		}
		snprintf(part, sizeof part, "%.*s", (int)(slash - rel), rel);
		below = openat(fd, *part ? part : ".",
			       O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		close(fd);
		if (below < 0)
			return refused(rel, e);
		fd = below;
		rel = slash + 1;
	}
	*dir = fd;
	*last = rel;
	return 0;
}

int folder_open_file(const char *root, const char *rel, int *fd, uint64_t *size, struct err *e)
{
	const char *last = rel;
	struct stat st;
	int dir = -1;

	FAIL_IF(strlen(rel) > LIMIT_PATH_BYTES, e, TF_ELIMIT,
		"a path of %zu bytes, the limit is %u", strlen(rel), LIMIT_PATH_BYTES);
	FAIL_IF(!path_is_plain(rel), e, TF_EREFUSED, "'%s' is no plain relative path", rel);
	TRY(go_down(root, rel, &dir, &last, e));
	*fd = openat(dir, last, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	close(dir);
	if (*fd < 0)
		return refused(rel, e);
	if (fstat(*fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		close(*fd);
		*fd = -1;
		return err_set(e, TF_EREFUSED, "%s: a link or no regular file", rel);
	}
	*size = (uint64_t)st.st_size;
	return 0;
}

struct listing {
	folder_filter filter;
	Tf__Files *files;
	struct err *e;
};

static int list_below(struct listing *l, int fd, const char *prefix, int depth);

static int list_entry(struct listing *l, int dir, const char *prefix, const char *name, int depth)
{
	char *rel = xasprintf("%s%s%s", prefix, *prefix ? "/" : "", name);
	Tf__FileInfo *info;
	struct stat st;
	int rc = 0;

	/* a name that is no text could neither be answered nor asked for */
	if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !utf8_valid(name, strlen(name)) ||
	    (l->filter && !S_ISDIR(st.st_mode) && !l->filter(rel))) {
		xfree(rel);
		return 0;
	}
	if (S_ISDIR(st.st_mode) && depth < FOLDER_DEPTH_MAX) {
		int below = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

		rc = below >= 0 ? list_below(l, below, rel, depth + 1) : 0;
	} else if (S_ISREG(st.st_mode)) {
		if (l->files->n_file >= LIMIT_FILES_LISTED)
			rc = err_set(l->e, TF_ELIMIT, "more than %u files", LIMIT_FILES_LISTED);
		info = xmalloc(sizeof *info);
		tf__file_info__init(info);
		info->path = xstrdup(rel);
		info->size = (uint64_t)st.st_size;
		l->files->file =
			xrealloc(l->files->file, l->files->n_file + 1, sizeof *l->files->file);
		l->files->file[l->files->n_file++] = info;
	}
	xfree(rel);
	return rc;
}

/* Takes fd. */
static int list_below(struct listing *l, int fd, const char *prefix, int depth)
{
	DIR *dir = fdopendir(fd);
	struct dirent *entry;
	int rc = 0;

	if (!dir) {
		close(fd);
		return err_errno(l->e, "%s", prefix);
	}
	while (rc == 0 && (entry = readdir(dir)) != NULL)
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			rc = list_entry(l, dirfd(dir), prefix, entry->d_name, depth);
	closedir(dir);
	return rc;
}

static int by_path(const void *a, const void *b)
{
	return strcmp((*(Tf__FileInfo *const *)a)->path, (*(Tf__FileInfo *const *)b)->path);
}

int folder_list(const char *root, folder_filter filter, Tf__Files *out, struct err *e)
{
	struct listing l = { filter, out, e };
	int fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int rc = 0;

	if (fd < 0 && errno != ENOENT)
		return err_errno(e, "%s", root);
	if (fd >= 0)
		rc = list_below(&l, fd, "", 0);
	if (out->n_file)
		qsort(out->file, out->n_file, sizeof *out->file, by_path);
	return rc;
}

void folder_list_release(Tf__Files *files)
{
	for (size_t i = 0; i < files->n_file; i++) {
		xfree(files->file[i]->path);
		xfree(files->file[i]);
	}
	xfree(files->file);
	files->n_file = 0;
}
