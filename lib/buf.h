/* SPDX-License-Identifier: Apache-2.0
 * A growing byte buffer. data is always followed by a zero byte, so text can be read as a C
 * string. */
#ifndef LIB_BUF_H
#define LIB_BUF_H

#include <stddef.h>

struct buf {
	char *data;   /* owned; never NULL after the first append */
	size_t len;
	size_t room;
};

#define BUF_INIT { NULL, 0, 0 }

void buf_append(struct buf *b, const void *data, size_t len);
void buf_text(struct buf *b, const char *text);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_reserve(struct buf *b, size_t more);  /* room for more bytes after len */
void buf_clear(struct buf *b);                 /* empties, keeps the memory */
void buf_release(struct buf *b);               /* frees; b is BUF_INIT again */
/* Hands the bytes to the caller (free with xfree); b is BUF_INIT again. Never NULL. */
char *buf_detach(struct buf *b);

#endif
