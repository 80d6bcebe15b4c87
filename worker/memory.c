/* SPDX-License-Identifier: Apache-2.0
 * The private memory of this process; see memory.h. */
#include "config.h"
#include "worker/memory.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int64_t memory_rss_anon(void)
{
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	char text[4096];
	const char *line;
	ssize_t n;

	if (fd < 0)
		return 0;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	line = strstr(text, "\nRssAnon:");
	return line ? strtoll(line + strlen("\nRssAnon:"), NULL, 10) * 1024 : 0;
}
