/* SPDX-License-Identifier: Apache-2.0
 * Allocation that ends the process rather than fails; see mem.h. */
#include "config.h"
#include "lib/mem.h"
#include "lib/err.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *checked(void *p, size_t size)
{
	if (!p && size)
		die(EXIT_MEMORY, "out of memory (%zu bytes)", size);
	return p;
}

void *xmalloc(size_t size)
{
	return checked(malloc(size ? size : 1), size);
}

void *xcalloc(size_t count, size_t size)
{
	return checked(calloc(count ? count : 1, size ? size : 1), 1);
}

void *xrealloc(void *p, size_t count, size_t size)
{
	size_t bytes = count * size;

	CHECK(size == 0 || count <= SIZE_MAX / size);
	return checked(realloc(p, bytes > 0 ? bytes : 1), 1);
}

char *xstrdup(const char *s)
{
	return s ? xmemdup(s, strlen(s) + 1) : NULL;
}

char *xstrndup(const char *s, size_t n)
{
	size_t len = strnlen(s, n);
	char *copy = xmalloc(len + 1);

	memcpy(copy, s, len);
	copy[len] = 0;
	return copy;
}

char *xasprintf(const char *fmt, ...)
{
	char *s = NULL;
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	CHECK(n >= 0);
	return s;
}

void *xmemdup(const void *p, size_t n)
{
	void *copy = xmalloc(n);

	if (n)
		memcpy(copy, p, n);
	return copy;
}

void xfree_(void *p)
{
	free(p);
}
