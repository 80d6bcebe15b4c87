/* SPDX-License-Identifier: Apache-2.0
 * Writing RGB pictures as PNG with text chunks. */
#ifndef WORKER_PNG_H
#define WORKER_PNG_H

#include "lib/buf.h"
#include "lib/err.h"

#include <stddef.h>
#include <stdint.h>

struct picture {
	int width, height;
	uint8_t *rgb; /* [height, width, 3]; owned */
};

struct png_text {
	const char *key;  /* 1 to 79 bytes of Latin-1 ("prompt") */
	const char *text; /* UTF-8 */
};

/* A picture filled with one grey. */
void picture_init(struct picture *p, int width, int height, uint8_t grey);
void picture_release(struct picture *p);

/* Appends the bytes of a file to out. */
int png_encode(const struct picture *p, const struct png_text *text, size_t count,
	       struct buf *out, struct err *e);
/* Writes path whole or not at all. */
int png_write(const char *path, const struct picture *p, const struct png_text *text, size_t count,
	      struct err *e);

#endif
