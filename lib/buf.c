/* SPDX-License-Identifier: Apache-2.0
 * A growing byte buffer; see buf.h. */
#include "config.h"
#include "lib/buf.h"
#include "lib/err.h"
#include "lib/mem.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

void buf_reserve(struct buf *b, size_t more)
{
	size_t need = b->len + more + 1;

	CHECK(need > b->len);
	if (need <= b->room)
		return;
	b->room = need > b->room * 2 ? need : b->room * 2;
	b->data = xrealloc(b->data, b->room, 1);
}

void buf_append(struct buf *b, const void *data, size_t len)
{
	buf_reserve(b, len);
	if (len)
		memcpy(b->data + b->len, data, len);
	b->len += len;
	b->data[b->len] = 0;
}

void buf_text(struct buf *b, const char *text)
{
	buf_append(b, text, strlen(text));
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	CHECK(n >= 0);
	buf_reserve(b, n);
	va_start(ap, fmt);
	vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
	va_end(ap);
	b->len += n;
}

void buf_clear(struct buf *b)
{
	b->len = 0;
	if (b->data)
		b->data[0] = 0;
}

void buf_release(struct buf *b)
{
	xfree(b->data);
	b->len = b->room = 0;
}

char *buf_detach(struct buf *b)
{
	char *data;

	buf_reserve(b, 0);
	b->data[b->len] = 0;
	data = b->data;
	b->data = NULL;
	b->len = b->room = 0;
	return data;
}
