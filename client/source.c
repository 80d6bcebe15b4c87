/* SPDX-License-Identifier: Apache-2.0
 * What an import sends. A single file goes as it is. A folder, and a list (TSV, JSONL) that
 * names pictures, go as one tar made on the way: the list first, then the files sorted by name,
 * all with the same owner, mode and time, so that the same files make the same bytes. The tar
 * is written twice: once from zeros to learn its size, then for the daemon. */
#include "config.h"
#include "client/client.h"
#include "client/files.h"
#include "client/tar.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK_BYTES (256u << 10)
#define NAME_ROOM 80 /* of an upload's name, before ".tar" */

/* Where the tar's bytes go. */
struct sink {
	struct upload *upload; /* NULL: only counted */
	uint64_t bytes;
};

static int sink_put(void *arg, const void *data, size_t len, struct err *e)
{
	struct sink *s = arg;

	s->bytes += len;
	return s->upload ? upload_put(s->upload, data, len, e) : 0;
}

/* The content of a file of the size it had; zeros for the first writing. */
static int put_content(struct sink *s, const char *path, uint64_t size, struct err *e)
{
	int fd = s->upload ? open(path, O_RDONLY | O_CLOEXEC) : -1, rc = 0;
	uint8_t *block = xcalloc(1, BLOCK_BYTES);

	if (s->upload && fd < 0)
		rc = err_errno(e, "%s", path);
	while (rc == 0 && size > 0) {
		size_t want = size < BLOCK_BYTES ? (size_t)size : BLOCK_BYTES;
		ssize_t n = fd < 0 ? (ssize_t)want : read(fd, block, want);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			rc = err_errno(e, "%s", path);
		else if (n == 0)
			rc = err_set(e, TF_ECORRUPT, "%s: it became shorter while it was read",
				     path);
		else
			rc = sink_put(s, block, (size_t)n, e);
		size -= rc == 0 ? (uint64_t)n : 0;
	}
	xfree(block);
	if (fd >= 0)
		close(fd);
	return rc;
}

static int put_entry(struct sink *s, const struct file_set *f, const struct file_entry *entry,
		     struct err *e)
{
	char *path = xasprintf("%s/%s", f->root, entry->path);
	int rc = tar_begin(entry->path, entry->size, sink_put, s, e);

	if (rc == 0)
		rc = put_content(s, path, entry->size, e);
	if (rc == 0)
		rc = tar_pad(entry->size, sink_put, s, e);
	xfree(path);
	return rc;
}

static int write_tar(const struct file_set *f, struct sink *s, struct err *e)
{
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < f->count; i++)
		rc = put_entry(s, f, &f->entry[i], e);
	return rc == 0 ? tar_finish(sink_put, s, e) : rc;
}

/* ---- the upload's name: the file's, without what the daemon would refuse */

static char *upload_name(const char *path, const char *suffix)
{
	char *real = realpath(path, NULL), *name;
	const char *base = real && strrchr(real, '/')[1] ? strrchr(real, '/') + 1 : "files";
	size_t len = strlen(base);

	if (len > NAME_ROOM)
		base += len - NAME_ROOM; /* the end has the suffix */
	while (*base == '.' || *base == '-')
		base++;
	name = xasprintf("%s%s", *base ? base : "files", suffix);
	for (char *p = name; *p; p++)
		if ((unsigned char)*p < ' ' || (unsigned char)*p >= 0x7f)
			*p = '_';
	free(real);
	return name;
}

/* ---- sending */

static int send_tar(struct client *c, const char *path, const struct file_set *f, char **id,
		    struct err *e)
{
	struct sink counted = { 0 }, sent = { 0 };
	char *name = upload_name(path, ".tar");
	int rc = write_tar(f, &counted, e);

	if (rc == 0)
		rc = upload_open(c, name, counted.bytes, &sent.upload, e);
	if (rc == 0)
		rc = write_tar(f, &sent, e);
	if (rc == 0)
		rc = upload_close(sent.upload, id, e);
	else
		upload_abandon(sent.upload);
	xfree(name);
	return rc;
}

static int send_bytes(int fd, const char *path, struct upload *u, uint64_t size, struct err *e)
{
	uint8_t *block = xmalloc(BLOCK_BYTES);
	int rc = 0;

	while (rc == 0 && size > 0) {
		ssize_t n = read(fd, block, size < BLOCK_BYTES ? (size_t)size : BLOCK_BYTES);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			rc = err_errno(e, "%s", path);
		else if (n == 0)
			rc = err_set(e, TF_ECORRUPT, "%s: it became shorter while it was read",
				     path);
		else
			rc = upload_put(u, block, (size_t)n, e);
		size -= rc == 0 ? (uint64_t)n : 0;
	}
	xfree(block);
	return rc;
}

static int send_file(struct client *c, const char *path, char **id, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc;
	struct upload *u = NULL;
	struct stat st;
	char *name;

	if (fd < 0 || fstat(fd, &st) < 0) {
		rc = err_errno(e, "%s", path);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	name = upload_name(path, "");
	rc = upload_open(c, name, (uint64_t)st.st_size, &u, e);
	if (rc == 0)
		rc = send_bytes(fd, path, u, (uint64_t)st.st_size, e);
	if (rc == 0)
		rc = upload_close(u, id, e);
	else
		upload_abandon(u);
	xfree(name);
	close(fd);
	return rc;
}

int send_source(struct client *c, const char *path, char **id, const char **kind, struct err *e)
{
	struct file_set f;
	int rc = file_set_read(path, &f, e);

	if (rc < 0)
		return rc;
	*kind = file_set_kind(&f);
	if (f.missing)
		fprintf(stderr, "transfuse: %s: %zu of the pictures it names %s not there, the "
				"first is %s\n",
			path, f.missing, f.missing == 1 ? "is" : "are", f.first_missing);
	rc = client_connect(c, e);
	if (rc == 0)
		rc = f.single ? send_file(c, path, id, e) : send_tar(c, path, &f, id, e);
	file_set_release(&f);
	return rc;
}

int look_at_source(const char *path, uint64_t *bytes, const char **kind, struct err *e)
{
	struct file_set f;

	TRY(file_set_read(path, &f, e));
	*kind = file_set_kind(&f);
	*bytes = 0;
	for (size_t i = 0; i < f.count; i++)
		*bytes += f.entry[i].size;
	file_set_release(&f);
	return 0;
}
