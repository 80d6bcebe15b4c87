/* SPDX-License-Identifier: Apache-2.0
 * Copies of files and folders; see files.h. */
#include "config.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COPY_BYTES (1u << 20)

static int copy_bytes(int in, int out, const char *to, struct err *e)
{
	char *data = xmalloc(COPY_BYTES);
	ssize_t n;
	int rc = 0;

	while (rc == 0 && (n = read(in, data, COPY_BYTES)) != 0)
		rc = n < 0 ? err_errno(e, "copy to %s", to)
			   : file_write_all(out, data, (size_t)n, to, e);
	xfree(data);
	return rc;
}

int file_copy(const char *from, const char *to, bool share, uint64_t *bytes, struct err *e)
{
	struct stat st;
	int in = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), out, rc = 0;

	if (in < 0 && (errno == ENOENT || errno == ELOOP))
		return TF_ENOTFOUND;
	if (in < 0 || fstat(in, &st) < 0) {
		rc = err_errno(e, "%s", from);
	} else if (!S_ISREG(st.st_mode)) {
		rc = TF_ENOTFOUND;
	} else if (!share || (link(from, to) < 0 && errno != EEXIST)) {
		out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, st.st_mode & 0777);
		rc = out < 0 ? err_errno(e, "%s", to) : copy_bytes(in, out, to, e);
		if (out >= 0 && close(out) < 0 && rc == 0)
			rc = err_errno(e, "%s", to);
	}
	if (rc == 0 && bytes)
		*bytes += (uint64_t)st.st_size;
	if (in >= 0)
		close(in);
	return rc;
}

struct copy {
	const char *from, *to;
	bool share;
	uint64_t *bytes;
	struct err *e;
};

static int copy_entry(void *arg, const char *name)
{
	struct copy *c = arg;
	char *from = xasprintf("%s/%s", c->from, name), *to = xasprintf("%s/%s", c->to, name);
	struct stat st;
	int rc = 0;

	if (lstat(from, &st) < 0)
		rc = errno == ENOENT ? 0 : err_errno(c->e, "%s", from);
	else if (S_ISDIR(st.st_mode))
		rc = dir_copy(from, to, c->share, c->bytes, c->e);
	else if (S_ISREG(st.st_mode))
		rc = file_copy(from, to, c->share, c->bytes, c->e);
	xfree(from);
	xfree(to);
	return rc == TF_ENOTFOUND ? 0 : rc;
}

int dir_copy(const char *from, const char *to, bool share, uint64_t *bytes, struct err *e)
{
	struct copy c = { from, to, share, bytes, e };
	struct stat st;
	int rc;

	if (lstat(from, &st) < 0)
		return errno == ENOENT ? TF_ENOTFOUND : err_errno(e, "%s", from);
	FAIL_IF(!S_ISDIR(st.st_mode), e, TF_EINVALID, "%s: is no folder", from);
	if (mkdir(to, st.st_mode & 0777) < 0 && errno != EEXIST)
		return err_errno(e, "%s", to);
	rc = dir_each(from, copy_entry, &c, NULL);
	if (rc < 0 && !file_exists(from))
		return TF_ENOTFOUND;
	return rc < 0 ? err_set(e, rc, "%s cannot be copied", from) : 0;
}
