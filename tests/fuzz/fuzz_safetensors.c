/* SPDX-License-Identifier: Apache-2.0
 * Any bytes as a safetensors file: opened with every tensor inside the map, or a sentence. */
#include "config.h"
#include "lib/safetensors.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Kept where the compiler cannot know that nobody reads it. */
extern unsigned fuzz_sum;
unsigned fuzz_sum;

static void touch(const struct st_file *f)
{

	for (size_t i = 0; i < f->count; i++) {
		const uint8_t *bytes = f->tensors[i].data;

		CHECK(st_find(f, f->tensors[i].name));
		for (size_t b = 0; b < f->tensors[i].bytes; b++)
			fuzz_sum += bytes[b];
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct err e = ERR_INIT;
	struct st_file f;
	char path[64];
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		BUG("no memory file");
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (st_open(path, &f, &e) == 0) {
		touch(&f);
		st_close(&f);
	} else {
		CHECK(e.code < 0 && e.text[0]);
	}
	close(fd);
	return 0;
}
