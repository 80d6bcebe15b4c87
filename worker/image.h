/* SPDX-License-Identifier: Apache-2.0
 * Pictures from outside: PNG, JPEG and WebP files to 8-bit RGB, cropping and resizing. Nothing in
 * a file is trusted: its sizes are bounded before anything is decoded. Alpha lies over white;
 * 16-bit, grey and palette become 8-bit RGB; CMYK JPEG is converted. */
#ifndef WORKER_IMAGE_H
#define WORKER_IMAGE_H

#include "lib/err.h"
#include "worker/png.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Decodes a whole file by its first bytes, whatever it is called; name is for messages. On success
 * the caller releases *out. TF_EINVALID: not a picture, damaged or cut; TF_ELIMIT: more than
 * LIMIT_IMAGE_PIXELS. */
int image_decode(const void *data, size_t len, const char *name, struct picture *out,
		 struct err *e);
/* The same from a file. */
int image_read(const char *path, struct picture *out, struct err *e);
/* The largest centred part of the shape width:height, resized to it (Mitchell's filter down,
 * Catmull-Rom's up; values as they are, no gamma). */
int image_fit(const struct picture *in, int width, int height, struct picture *out, struct err *e);
/* Whether a file name ends in .png, .jpg, .jpeg or .webp, in any case. */
bool image_is_name(const char *name);

#endif
