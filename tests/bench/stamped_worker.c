/* SPDX-License-Identifier: Apache-2.0
 * Stands in for the worker to tell when the process of a job began, as tests/bench/stamp does for
 * other queues: "began NANOSECONDS" (CLOCK_MONOTONIC) is the first line of the job's log. Then it
 * becomes the worker, two folders above. */
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static const char name[] = "transfuse-worker";
	char path[PATH_MAX + sizeof name];
	struct timespec now;
	ssize_t n;

	clock_gettime(CLOCK_MONOTONIC, &now);
	dprintf(STDOUT_FILENO, "began %lld%09ld\n", (long long)now.tv_sec, now.tv_nsec);
	n = readlink("/proc/self/exe", path, PATH_MAX);
	path[n > 0 ? n : 0] = 0;
	for (int up = 0; up < 3; up++) {
		char *slash = strrchr(path, '/');

		if (!slash)
			return 126;
		*slash = 0;
	}
	strcat(strcat(path, "/"), name);
	(void)argc;
	argv[0] = path;
	execv(path, argv);
	return 127;
}
