/* SPDX-License-Identifier: Apache-2.0
 * Memory that is always there: these end the program (EXIT_MEMORY) when none is left. For sizes
 * that come from outside, check the bound first (proto/limits.h). Pair every call with xfree. */
#ifndef LIB_MEM_H
#define LIB_MEM_H

#include <stddef.h>

void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size);                 /* zeroed */
void *xrealloc(void *p, size_t count, size_t size);       /* count * size, overflow checked */
char *xstrdup(const char *s);                             /* NULL gives NULL */
char *xstrndup(const char *s, size_t n);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void *xmemdup(const void *p, size_t n);
void xfree_(void *p);
/* Frees and clears the pointer; NULL is fine. */
#define xfree(p) do { xfree_(p); (p) = NULL; } while (0)

#define ARRAY_LEN(a) (sizeof (a) / sizeof *(a))

#endif
