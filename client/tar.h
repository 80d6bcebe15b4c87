/* SPDX-License-Identifier: Apache-2.0
 * Writes tar: plain files with one owner, mode and time, so that the same files make the same
 * bytes. A path that is long or not ASCII, or a size of 8 GiB and more, goes into a pax header. */
#ifndef CLIENT_TAR_H
#define CLIENT_TAR_H

#include "lib/err.h"

#include <stddef.h>
#include <stdint.h>

/* Takes the bytes, 0 or an error. */
typedef int (*tar_put)(void *arg, const void *data, size_t len, struct err *e);

/* What comes before the content of a file, and after it; and after the last one. */
int tar_begin(const char *path, uint64_t size, tar_put put, void *arg, struct err *e);
int tar_pad(uint64_t size, tar_put put, void *arg, struct err *e);
int tar_finish(tar_put put, void *arg, struct err *e);

#endif
