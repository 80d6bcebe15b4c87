/* SPDX-License-Identifier: Apache-2.0
 * Any bytes as a tar given to an import: samples within the limits and bad ones with a reason,
 * each at a place the import can go on from, or a sentence. */
#include "config.h"
#include "worker/source.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SAMPLES_MOST 1000 /* a list of lines with nothing in them has many */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char *folder, *path; /* made once; path is the tar in it */

static void clear(void)
{
	unlink(path);
	rmdir(folder);
	xfree(path);
	xfree(folder);
}

/* A name that ends in .tar, for whatever the bytes are. */
static void name_it(int fd)
{
	const char *given = getenv("TMPDIR");
	char target[64];

	if (!path) {
		folder = xasprintf("%s/fuzz_tar-XXXXXX", given ? given : "/tmp");
		if (!mkdtemp(folder))
			BUG("no folder for the tar");
		path = xasprintf("%s/x.tar", folder);
		atexit(clear);
	}
	unlink(path);
	snprintf(target, sizeof target, "/proc/self/fd/%d", fd);
	if (symlink(target, path) < 0)
		BUG("no link to the tar");
}

/* The samples from a place on; the place after the first goes to position. */
static int take(char *position, struct err *e)
{
	struct source_item item;
	struct source *s;
	char *only = path;
	int count = 0, rc = source_open(&only, 1, NULL, position, &s, e);

	if (rc < 0)
		return rc;
	while ((rc = source_next(s, &item, e)) == 0 && item.what != SOURCE_END) {
		CHECK(item.name && item.text && item.text[item.text_bytes] == 0);
		CHECK(item.what == SOURCE_BAD ? item.text_bytes > 0
					      : item.text_bytes <= LIMIT_SAMPLE_TEXT_BYTES);
		if (count++ == 0)
			snprintf(position, SOURCE_POSITION_MAX, "%s", item.position);
		if (count == SAMPLES_MOST)
			break;
	}
	source_close(s);
	return rc < 0 ? rc : count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char position[SOURCE_POSITION_MAX] = "";
	struct err e = ERR_INIT;
	int fd = memfd_create("fuzz", MFD_CLOEXEC), all;

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		BUG("no memory file");
	name_it(fd);
	all = take(position, &e);
	if (all < 0)
		CHECK(e.code < 0 && e.text[0]);
	else if (all > 0 && all < SAMPLES_MOST)
		CHECK(take(position, &e) == all - 1);
	close(fd);
	return 0;
}
