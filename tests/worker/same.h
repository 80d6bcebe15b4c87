/* SPDX-License-Identifier: Apache-2.0
 * Whether what two runs made is the same. */
#ifndef TESTS_WORKER_SAME_H
#define TESTS_WORKER_SAME_H

#include "tests/test.h"
#include "lib/buf.h"
#include "lib/files.h"

#include <string.h>

/* Two files, each of at most so many bytes, byte for byte. */
static inline bool same_content(const char *path, const char *other, size_t most)
{
	struct buf x = BUF_INIT, y = BUF_INIT;
	struct err e = ERR_INIT;
	bool same;

	assert_ok(file_read(path, most, &x, &e), &e);
	assert_ok(file_read(other, most, &y, &e), &e);
	same = x.len == y.len && memcmp(x.data, y.data, x.len) == 0;
	buf_release(&x);
	buf_release(&y);
	return same;
}

#endif
