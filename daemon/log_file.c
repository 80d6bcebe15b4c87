/* SPDX-License-Identifier: Apache-2.0
 * The daemon's own log with --background: <state>/daemon.log, and older parts of it as daemon.log.1
 * and so on, together of at most the option daemon_log_mib (and what a second brings). */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static char *file_path(const struct daemon *d, int number)
{
	return number ? daemon_path(d, "daemon.log.%d", number) : daemon_path(d, "daemon.log");
}

/* All threads write to the new file from the next line on. */
static int open_current(struct daemon *d, struct err *e)
{
	char *path = file_path(d, 0);
	int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	int rc = fd < 0 || dup2(fd, STDERR_FILENO) < 0 ? err_errno(e, "%s", path) : 0;

	if (fd >= 0)
		close(fd);
	xfree(path);
	return rc;
}

int log_file_open(struct daemon *d, struct err *e)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0)
		return err_errno(e, "/dev/null");
	close(null);
	return open_current(d, e);
}

/* A file that cannot be put aside is emptied: the bound holds. */
static void rotate(struct daemon *d)
{
	struct err e = ERR_INIT;

	for (int i = LIMIT_LOG_FILES - 1; i > 0; i--) {
		char *from = file_path(d, i - 1), *to = file_path(d, i);

		if (rename(from, to) < 0 && errno != ENOENT) {
			err_errno(&e, "%s cannot be put aside", from);
			if (i == 1 && ftruncate(STDERR_FILENO, 0) < 0)
				err_errno(&e, "%s", from);
			log_error("%s", e.text);
		}
		xfree(from);
		xfree(to);
	}
	if (open_current(d, &e) < 0)
		log_error("the log goes on in the last file: %s", e.text);
}

void log_file_tick(struct daemon *d)
{
	struct stat st;
	uint64_t most = ((uint64_t)d->options.daemon_log_mib << 20) / LIMIT_LOG_FILES;

	if (d->options.background && fstat(STDERR_FILENO, &st) == 0 && S_ISREG(st.st_mode) &&
	    (uint64_t)st.st_size >= most)
		rotate(d);
}
