/* SPDX-License-Identifier: Apache-2.0
 * UTF-8: whether bytes are it (no overlong forms, no surrogates, nothing beyond U+10FFFF). */
#ifndef LIB_UTF8_H
#define LIB_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes of the character text begins with, 1 to 4; 0 when it is not valid or cut short. */
size_t utf8_length(const char *text, size_t bytes);
bool utf8_valid(const char *text, size_t bytes);
/* How many bytes of it, `most` or fewer, end with no part of a character. */
size_t utf8_cut(const char *text, size_t most);
/* Bytes that are of no valid character become '?'. */
void utf8_mend(char *text);

#endif
