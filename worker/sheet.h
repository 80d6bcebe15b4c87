/* SPDX-License-Identifier: Apache-2.0
 * Contact sheets: pictures in a grid with a line or two of text below, as one PNG. */
#ifndef WORKER_SHEET_H
#define WORKER_SHEET_H

#include "lib/err.h"
#include "worker/png.h"

#include <stddef.h>
#include <stdint.h>

enum sheet_mark { SHEET_PLAIN, SHEET_RIGHT, SHEET_WRONG }; /* a line under the last picture */

struct sheet_cell {
	const char *caption;       /* UTF-8; wrapped to two lines, cut beyond */
	const uint8_t *picture[2]; /* [side rows] [height, width, 3]; the second may be NULL */
	enum sheet_mark mark;
};

struct sheet {
	int width, height; /* of the pictures */
	const char *title; /* one line above all */
	const struct sheet_cell *cell;
	size_t count; /* at least 1 */
};

/* Lays the cells out in rows, wider than high, and writes path with the text chunks given. Small
 * pictures are enlarged. TF_ELIMIT when the sheet would be larger than a PNG may be. */
int sheet_write(const char *path, const struct sheet *s, const struct png_text *text, size_t texts,
		struct err *e);

#endif
