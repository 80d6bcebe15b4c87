/* SPDX-License-Identifier: Apache-2.0
 * Sizes and spans of time as people write them: "20G", "512M", "1h30m". */
#ifndef LIB_QUANTITY_H
#define LIB_QUANTITY_H

#include "lib/err.h"

#include <stdint.h>

#define SIZE_TEXT_MAX 24

/* A whole number with K, M, G or T (powers of 1,024; "GiB" and "GB" mean the same), or of bytes.
 * what names the value for the sentence: "--mem". */
int size_parse(const char *what, const char *text, uint64_t *bytes, struct err *e);
/* The shortest form that size_parse reads back to the same number: "20G", "1536M". */
void size_format(uint64_t bytes, char out[SIZE_TEXT_MAX]);
/* Seconds: "90", "90s", "1h30m", "2d". */
int span_parse(const char *what, const char *text, int64_t *seconds, struct err *e);

#endif
