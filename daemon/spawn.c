/* SPDX-License-Identifier: Apache-2.0
 * Child processes: exec'ed in a session of their own (a signal to the daemon's group does not reach
 * them), with /dev/null, one output and at most one more descriptor, a short list of variables and
 * default signals. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/spawn.h"
#include "lib/fault.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a child may see of our environment; everything else stays here. */
static const char *const passed_on[] = {
	"PATH",
	"HOME",
	"LANG",
	"LC_ALL",
	"TZ",
	"TMPDIR",
	"LD_LIBRARY_PATH",
	"CUDA_DEVICE_ORDER",
	"ASAN_OPTIONS",
	"UBSAN_OPTIONS",
	"TF_FAULT",
	"TF_HOLD",
	"TF_BOUND",
	"DNNL_MAX_CPU_ISA",
};

char **spawn_env(int threads, const char *visible)
{
	char **list = xcalloc(ARRAY_LEN(passed_on) + 4, sizeof *list);
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_LEN(passed_on); i++) {
		const char *value = getenv(passed_on[i]);

		if (value)
			list[n++] = xasprintf("%s=%s", passed_on[i], value);
	}
	if (threads > 0)
		list[n++] = xasprintf("OMP_NUM_THREADS=%d", threads);
	if (visible)
		list[n++] = xasprintf("CUDA_VISIBLE_DEVICES=%s", visible);
	/* Threads that spin while they wait cost more than waking them, once the processor is
	 * shared. */
	list[n++] = xstrdup("OMP_WAIT_POLICY=passive");
	return list;
}

void spawn_env_free(char **environment)
{
	for (char **p = environment; p && *p; p++)
		xfree(*p);
	xfree(environment);
}

static int actions_of(const struct spawn *s, posix_spawn_file_actions_t *a)
{
	int rc = posix_spawn_file_actions_addopen(a, 0, "/dev/null", O_RDONLY, 0);

	if (!rc)
		rc = posix_spawn_file_actions_adddup2(a, s->output, 1);
	if (!rc)
		rc = posix_spawn_file_actions_adddup2(a, s->output, 2);
	if (!rc && s->extra >= 0)
		rc = posix_spawn_file_actions_adddup2(a, s->extra, 3);
	if (!rc)
		rc = posix_spawn_file_actions_addclosefrom_np(a, s->extra >= 0 ? 4 : 3);
	if (!rc)
		rc = posix_spawn_file_actions_addchdir_np(a, s->folder ? s->folder : "/");
	return rc;
}

static int attributes_of(posix_spawnattr_t *attributes)
{
	sigset_t none, all;
	int rc;

	sigemptyset(&none);
	sigfillset(&all);
	rc = posix_spawnattr_setsigmask(attributes, &none);
	if (!rc)
		rc = posix_spawnattr_setsigdefault(attributes, &all);
	if (!rc)
		rc = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSID |
								  POSIX_SPAWN_SETSIGMASK |
								  POSIX_SPAWN_SETSIGDEF);
	return rc;
}

/* The bound on a process's own memory. It is set from outside, before the process has its key and
 * so has done anything. Address sanitizers reserve more than any bound. */
static int limit_data(pid_t pid, uint64_t bytes, struct err *e)
{
#if !defined(__SANITIZE_ADDRESS__)
	const struct rlimit limit = { bytes, bytes };

	if (bytes && prlimit(pid, RLIMIT_DATA, &limit, NULL) < 0)
		return err_errno(e, "the memory of process %d cannot be bounded", (int)pid);
#endif
	(void)pid;
	(void)bytes;
	(void)e;
	return 0;
}

/* Nobody would know of its end. */
static void end_at_once(pid_t *pid, int *pidfd)
{
	kill(*pid, SIGKILL);
	waitpid(*pid, NULL, 0);
	if (*pidfd >= 0)
		close(*pidfd);
	*pid = 0;
	*pidfd = -1;
}

int spawn_process(const struct spawn *s, pid_t *pid, int *pidfd, struct err *e)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	int rc;

	CHECK(s->output > 3 && (s->extra < 0 || s->extra > 3));
	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	rc = actions_of(s, &actions);
	if (!rc)
		rc = attributes_of(&attributes);
	if (!rc)
		rc = fault_hit("spawn") ? EAGAIN
					: posix_spawn(pid, s->argv[0], &actions, &attributes,
						      s->argv, s->environment);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	errno = rc;
	if (rc)
		return err_errno(e, "cannot start %s", s->argv[0]);
	*pidfd = fault_hit("pidfd") ? -1 : process_fd(*pid);
	rc = *pidfd < 0 ? err_errno(e, "process %d cannot be watched", (int)*pid)
			: limit_data(*pid, s->data_bytes, e);
	if (rc < 0)
		end_at_once(pid, pidfd);
	return rc;
}

int process_fd(pid_t pid)
{
	return (int)syscall(SYS_pidfd_open, pid, 0);
}

char *program_beside(const char *name)
{
	char path[1024];
	ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
	char *slash;

	path[n > 0 ? n : 0] = 0;
	slash = strrchr(path, '/');
	return xasprintf("%.*s/%s", slash ? (int)(slash - path) : 0, path, name);
}

const char *machine_boot(void)
{
	static char boot[64];
	FILE *f = *boot ? NULL : fopen("/proc/sys/kernel/random/boot_id", "re");

	if (f && fgets(boot, sizeof boot, f))
		boot[strcspn(boot, "\n")] = 0;
	if (f)
		fclose(f);
	return boot;
}

uint64_t process_start(pid_t pid)
{
	char path[64], text[1024], state = 0, *p;
	unsigned long long start = 0;
	FILE *f;
	size_t n;

	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	n = fread(text, 1, sizeof text - 1, f);
	fclose(f);
	text[n] = 0;
	p = strrchr(text, ')'); /* the name in field 2 may hold anything */
	if (!p || sscanf(p + 1,
			 " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d "
			 "%*d %*d %llu",
			 &state, &start) != 2)
		return 0;
	return state == 'Z' || state == 'X' ? 0 : start;
}
