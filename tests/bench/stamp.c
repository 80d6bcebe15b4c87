/* SPDX-License-Identifier: Apache-2.0
 * The job whose start is timed in other queues: writes the time of day into a file, whole.
 * usage: stamp FILE */
#include <stdio.h>
#include <time.h>

int main(int argc, char **argv)
{
	char aside[4096];
	struct timespec now;
	FILE *f;

	clock_gettime(CLOCK_REALTIME, &now);
	if (argc != 2 || snprintf(aside, sizeof aside, "%s.new", argv[1]) >= (int)sizeof aside)
		return 2;
	f = fopen(aside, "w");
	if (!f || fprintf(f, "%lld.%09ld\n", (long long)now.tv_sec, now.tv_nsec) < 0 ||
	    fclose(f) != 0)
		return 1;
	return rename(aside, argv[1]) == 0 ? 0 : 1;
}
