/* SPDX-License-Identifier: Apache-2.0
 * Preloaded into a daemon and its workers: does what it is asked through the bare system call, and
 * appends what that did to the files below a folder to a trace (powercut_trace.h). LMDB writes data
 * pages and syncs them, then its root page through a descriptor with O_DSYNC: such a write is its
 * own sync. Records are single appends, so several processes share a trace. It can also let such
 * calls fail, or be slow. Programs that change files by other calls are not seen. */
#define _GNU_SOURCE
#include "tests/daemon/powercut_trace.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int trace_fd = -2;
static char root[PATH_MAX];
static size_t root_len;

static bool watching(void)
{
	const char *folder = getenv(POWERCUT_ROOT), *file = getenv(POWERCUT_TRACE);

	if (trace_fd != -2)
		return root_len > 0;
	trace_fd = -1;
	if (!folder || strlen(folder) >= sizeof root)
		return false;
	root_len = strlen(folder);
	memcpy(root, folder, root_len + 1);
	if (file)
		trace_fd = (int)syscall(SYS_openat, AT_FDCWD, file,
					O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	if (trace_fd >= 0 && trace_fd < 100)
		trace_fd = fcntl(trace_fd, F_DUPFD_CLOEXEC, 900);
	return true;
}

/* Whether the file of faults holds this word now. */
static bool fault_is(const char *word)
{
	const char *file = getenv(POWERCUT_FAULT);
	char text[32] = "";
	int kept = errno;
	int fd = file ? (int)syscall(SYS_openat, AT_FDCWD, file, O_RDONLY | O_CLOEXEC) : -1;

	if (fd >= 0) {
		if (read(fd, text, sizeof text - 1) < 0)
			text[0] = 0;
		close(fd);
	}
	errno = kept;
	return strcmp(text, word) == 0;
}

/* The path below the root ("" is the root itself); false: it lies elsewhere. */
static bool below(const char *path, char out[PATH_MAX])
{
	char here[PATH_MAX];

	if (!watching())
		return false;
	if (*path != '/' && getcwd(here, sizeof here) &&
	    snprintf(out, PATH_MAX, "%s/%s", here, path) < PATH_MAX)
		path = out;
	if (strncmp(path, root, root_len) != 0 || (path[root_len] && path[root_len] != '/'))
		return false;
	memmove(out, path + root_len, strlen(path + root_len) + 1);
	return true;
}

static bool below_fd(int fd, char out[PATH_MAX])
{
	char link[64], path[PATH_MAX];
	ssize_t n;

	if (!watching())
		return false;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	n = readlink(link, path, sizeof path - 1);
	if (n <= 0)
		return false;
	path[n] = 0;
	return !strstr(path, " (deleted)") && below(path, out);
}

static void record(enum powercut_op op, bool synced, const char *path, const char *second,
		   uint64_t offset, const struct iovec *data, int parts)
{
	struct powercut_head h = { .op = op, .synced = synced, .offset = offset };
	struct iovec all[3 + 64];
	int kept = errno;

	if (trace_fd < 0)
		return;
	h.path_len = (uint32_t)strlen(path);
	h.second_len = second ? (uint32_t)strlen(second) : 0;
	all[0] = (struct iovec){ &h, sizeof h };
	all[1] = (struct iovec){ (void *)path, h.path_len };
	all[2] = (struct iovec){ (void *)second, h.second_len };
	for (int i = 0; i < parts && i < 64; i++) {
		all[3 + i] = data[i];
		h.data_len += data[i].iov_len;
	}
	if (syscall(SYS_writev, trace_fd, all, 3 + parts) < 0)
		_exit(99);
	errno = kept;
}

/* ---------------------------------------------------------------- names */

static int open_traced(int folder, const char *path, int flags, mode_t mode)
{
	char rel[PATH_MAX];
	bool ours = (flags & (O_CREAT | O_TRUNC)) && (folder == AT_FDCWD || *path == '/') &&
		    below(path, rel);
	bool was = ours && syscall(SYS_access, path, F_OK) == 0;
	int fd;

	if (ours && !was && fault_is(FAULT_FULL)) {
		errno = ENOSPC;
		return -1;
	}
	fd = (int)syscall(SYS_openat, folder, path, flags, mode);
	if (fd >= 0 && ours && !was)
		record(OP_CREATE, false, rel, NULL, 0, NULL, 0);
	else if (fd >= 0 && ours && (flags & O_TRUNC))
		record(OP_TRUNCATE, false, rel, NULL, 0, NULL, 0);
	return fd;
}

static mode_t mode_of(int flags, va_list ap)
{
	return flags & (O_CREAT | O_TMPFILE) ? (mode_t)va_arg(ap, int) : 0;
}

#define OPEN(name)                                                                                 \
	int name(const char *path, int flags, ...)                                                 \
	{                                                                                          \
		va_list ap;                                                                        \
		mode_t mode;                                                                       \
                                                                                                   \
		va_start(ap, flags);                                                               \
		mode = mode_of(flags, ap);                                                         \
		va_end(ap);                                                                        \
		return open_traced(AT_FDCWD, path, flags, mode);                                   \
	}
OPEN(open)
OPEN(open64)

int openat(int folder, const char *path, int flags, ...)
{
	va_list ap;
	mode_t mode;

	va_start(ap, flags);
	mode = mode_of(flags, ap);
	va_end(ap);
	return open_traced(folder, path, flags, mode);
}

int mkdir(const char *path, mode_t mode)
{
	char rel[PATH_MAX];
	int rc;

	if (below(path, rel) && fault_is(FAULT_FULL)) {
		errno = ENOSPC;
		return -1;
	}
	rc = (int)syscall(SYS_mkdir, path, mode);
	if (rc == 0 && below(path, rel))
		record(OP_MKDIR, false, rel, NULL, 0, NULL, 0);
	return rc;
}

int rename(const char *from, const char *to)
{
	char a[PATH_MAX], b[PATH_MAX];
	int rc = (int)syscall(SYS_rename, from, to);

	if (rc == 0 && below(from, a) && below(to, b))
		record(OP_RENAME, false, a, b, 0, NULL, 0);
	return rc;
}

int unlink(const char *path)
{
	char rel[PATH_MAX];
	int rc = (int)syscall(SYS_unlink, path);

	if (rc == 0 && below(path, rel))
		record(OP_REMOVE, false, rel, NULL, 0, NULL, 0);
	return rc;
}

int rmdir(const char *path)
{
	char rel[PATH_MAX];
	int rc = (int)syscall(SYS_rmdir, path);

	if (rc == 0 && below(path, rel))
		record(OP_REMOVE, false, rel, NULL, 0, NULL, 0);
	return rc;
}

/* ---------------------------------------------------------------- bytes */

/* Whether bytes to the descriptor, or its sync, are to fail; errno says how. Slow ones wait here.
 */
static bool fails(int fd, bool sync)
{
	char rel[PATH_MAX];
	int flags;

	if (!getenv(POWERCUT_FAULT) || fd == trace_fd || !below_fd(fd, rel))
		return false;
	flags = fcntl(fd, F_GETFL);
	sync |= flags >= 0 && (flags & O_DSYNC);
	if (sync && fault_is(FAULT_SLOW))
		usleep(100000);
	errno = sync ? EIO : ENOSPC;
	return sync ? fault_is(FAULT_BROKEN) : fault_is(FAULT_FULL);
}

static void wrote(int fd, const struct iovec *part, int parts, ssize_t n, int64_t offset)
{
	char rel[PATH_MAX];
	int flags = fcntl(fd, F_GETFL);

	if (n <= 0 || !below_fd(fd, rel))
		return;
	if (offset < 0)
		offset = lseek(fd, 0, SEEK_CUR) - n;
	record(OP_WRITE, flags >= 0 && (flags & O_DSYNC), rel, NULL, (uint64_t)offset, part, parts);
}

ssize_t write(int fd, const void *data, size_t len)
{
	ssize_t n = fails(fd, false) ? -1 : syscall(SYS_write, fd, data, len);
	struct iovec part = { (void *)data, n > 0 ? (size_t)n : 0 };

	if (fd != trace_fd && n > 0)
		wrote(fd, &part, 1, n, -1);
	return n;
}

static ssize_t pwrite_traced(int fd, const void *data, size_t len, off_t offset)
{
	ssize_t n = fails(fd, false) ? -1 : syscall(SYS_pwrite64, fd, data, len, offset);
	struct iovec part = { (void *)data, n > 0 ? (size_t)n : 0 };

	wrote(fd, &part, 1, n, offset);
	return n;
}

ssize_t pwrite(int fd, const void *data, size_t len, off_t offset)
{
	return pwrite_traced(fd, data, len, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t len, off64_t offset)
{
	return pwrite_traced(fd, data, len, offset);
}

/* A short vector write is recorded as if whole parts were written: LMDB takes it for an error. */
static ssize_t pwritev_traced(int fd, const struct iovec *part, int parts, off_t offset)
{
	ssize_t n = fails(fd, false) ? -1 : syscall(SYS_pwritev, fd, part, parts, offset, 0);

	wrote(fd, part, parts, n, offset);
	return n;
}

ssize_t pwritev(int fd, const struct iovec *part, int parts, off_t offset)
{
	return pwritev_traced(fd, part, parts, offset);
}

ssize_t pwritev64(int fd, const struct iovec *part, int parts, off64_t offset)
{
	return pwritev_traced(fd, part, parts, offset);
}

ssize_t writev(int fd, const struct iovec *part, int parts)
{
	ssize_t n = fails(fd, false) ? -1 : syscall(SYS_writev, fd, part, parts);

	wrote(fd, part, parts, n, -1);
	return n;
}

static int truncate_traced(int fd, off_t len)
{
	char rel[PATH_MAX];
	int rc = (int)syscall(SYS_ftruncate, fd, len);

	if (rc == 0 && below_fd(fd, rel))
		record(OP_TRUNCATE, false, rel, NULL, (uint64_t)len, NULL, 0);
	return rc;
}

int ftruncate(int fd, off_t len)
{
	return truncate_traced(fd, len);
}

int ftruncate64(int fd, off64_t len)
{
	return truncate_traced(fd, len);
}

static int sync_traced(long number, int fd)
{
	char rel[PATH_MAX];
	int rc = fails(fd, true) ? -1 : (int)syscall(number, fd);

	if (rc == 0 && below_fd(fd, rel))
		record(OP_SYNC, false, rel, NULL, 0, NULL, 0);
	return rc;
}

int fsync(int fd)
{
	return sync_traced(SYS_fsync, fd);
}

int fdatasync(int fd)
{
	return sync_traced(SYS_fdatasync, fd);
}

static int statvfs_traced(const char *path, struct statvfs *out, struct statvfs64 *wide)
{
	struct statfs st;
	char rel[PATH_MAX];

	if (syscall(SYS_statfs, path, &st) < 0)
		return -1;
	if (below(path, rel) && fault_is(FAULT_FULL))
		st.f_bavail = 0;
	if (out)
		*out = (struct statvfs){ .f_bsize = (unsigned long)st.f_bsize,
					 .f_frsize = (unsigned long)st.f_bsize,
					 .f_bavail = st.f_bavail };
	else
		*wide = (struct statvfs64){ .f_bsize = (unsigned long)st.f_bsize,
					    .f_frsize = (unsigned long)st.f_bsize,
					    .f_bavail = st.f_bavail };
	return 0;
}

int statvfs(const char *path, struct statvfs *out)
{
	return statvfs_traced(path, out, NULL);
}

int statvfs64(const char *path, struct statvfs64 *out)
{
	return statvfs_traced(path, NULL, out);
}

/* ---------------------------------------------------------------- processes */

int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
	__typeof__(&posix_spawn) real = NULL;
	void *found = dlsym(RTLD_NEXT, "posix_spawn");

	memcpy(&real, &found, sizeof real);
	return fault_is(FAULT_FORK) ? EAGAIN : real(pid, path, actions, attributes, argv, envp);
}
