/* SPDX-License-Identifier: Apache-2.0
 * Any bytes as a tokenizer's model file: a tokenizer whose encoding decodes to text, or a
 * sentence. */
#include "config.h"
#include "lib/mem.h"
#include "worker/spm.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(struct spm *s)
{
	static const char text[] = "a red apple, \xf0\x9f\x8d\x8e";
	struct buf back = BUF_INIT;
	struct err e = ERR_INIT;
	int32_t *token = NULL;
	size_t count = 0;

	CHECK(spm_pieces(s) > 0 && spm_bos(s) < spm_pieces(s) && spm_eos(s) < spm_pieces(s));
	if (spm_encode(s, text, sizeof text - 1, &token, &count, &e) == 0) {
		for (size_t i = 0; i < count; i++)
			CHECK(token[i] >= 0 && token[i] < spm_pieces(s));
		spm_decode(s, token, count, &back, &e);
		xfree(token);
	}
	buf_release(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct err e = ERR_INIT;
	struct spm *s = NULL;
	char path[64];
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		BUG("no memory file");
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	if (spm_open(path, &s, &e) == 0) {
		use(s);
		spm_close(s);
	} else {
		CHECK(e.code < 0 && e.text[0]);
	}
	close(fd);
	return 0;
}
