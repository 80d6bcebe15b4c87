/* SPDX-License-Identifier: Apache-2.0
 * Pictures from outside; see image.h. Each format has one function: sizes first, then the pixels.
 * libpng and libjpeg leave by longjmp: what must be freed then lies in a struct the caller
 * made. */
#include "config.h"
#include "worker/image.h"

#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <jerror.h>
#include <png.h>
#include <setjmp.h>
#include <stb_image_resize.h>
#include <stdio.h>
#include <jpeglib.h>
#include <string.h>
#include <strings.h>
#include <webp/decode.h>

#define JPEG_SCANS_MAX 200

static int check_size(const char *name, uint64_t width, uint64_t height, struct err *e)
{
	FAIL_IF(width < 1 || height < 1, e, TF_EINVALID, "%s: a picture of %llu x %llu", name,
		(unsigned long long)width, (unsigned long long)height);
	FAIL_IF(width > LIMIT_IMAGE_SIDE || height > LIMIT_IMAGE_SIDE ||
			width * height > LIMIT_IMAGE_PIXELS,
		e, TF_ELIMIT, "%s: a picture of %llu x %llu, expected at most %u pixels", name,
		(unsigned long long)width, (unsigned long long)height, LIMIT_IMAGE_PIXELS);
	return 0;
}

/* RGBA over white, in place, to RGB; the memory shrinks. */
static void over_white(uint8_t **pixels, size_t count)
{
	uint8_t *p = *pixels;

	for (size_t i = 0; i < count; i++) {
		unsigned a = p[4 * i + 3];

		for (int k = 0; k < 3; k++)
			p[3 * i + k] = (uint8_t)((p[4 * i + k] * a + 255 * (255 - a) + 127) / 255);
	}
	*pixels = xrealloc(p, count, 3);
}

/* ---- PNG ---- */

static int decode_png(const void *data, size_t len, const char *name, struct picture *out,
		      struct err *e)
{
	png_image png = { .version = PNG_IMAGE_VERSION };
	int rc;

	FAIL_IF(!png_image_begin_read_from_memory(&png, data, len), e, TF_EINVALID,
		"%s: a damaged PNG: %s", name, png.message);
	rc = check_size(name, png.width, png.height, e);
	if (rc < 0) {
		png_image_free(&png);
		return rc;
	}
	out->width = (int)png.width;
	out->height = (int)png.height;
	out->rgb = xmalloc((size_t)png.width * png.height * 4);
	png.format = PNG_FORMAT_RGBA;
	png.flags = PNG_IMAGE_FLAG_16BIT_sRGB;
	if (!png_image_finish_read(&png, NULL, out->rgb, 0, NULL)) {
		xfree(out->rgb);
		return err_set(e, TF_EINVALID, "%s: a damaged PNG: %s", name, png.message);
	}
	over_white(&out->rgb, (size_t)out->width * out->height);
	return 0;
}

/* ---- JPEG ---- */

struct jpeg {
	struct jpeg_decompress_struct lib;
	struct jpeg_error_mgr errors;
	struct jpeg_progress_mgr progress;
	jmp_buf leave;
	char text[JMSG_LENGTH_MAX];
	uint8_t *row; /* of a CMYK picture */
	uint8_t *rgb;
};

static void jpeg_fail(j_common_ptr lib)
{
	struct jpeg *j = lib->client_data;

	lib->err->format_message(lib, j->text);
	longjmp(j->leave, 1);
}

/* A warning that means that pixels are missing is an error; others are let be. */
static void jpeg_message(j_common_ptr lib, int level)
{
	int code = lib->err->msg_code;

	if (level < 0 &&
	    (code == JWRN_JPEG_EOF || code == JWRN_HIT_MARKER || code == JWRN_HUFF_BAD_CODE))
		jpeg_fail(lib);
}

/* Thousands of scans of a small file take hours. */
static void jpeg_scan(j_common_ptr lib)
{
	struct jpeg *j = lib->client_data;

	if (j->lib.input_scan_number > JPEG_SCANS_MAX) {
		snprintf(j->text, sizeof j->text, "more than %d scans", JPEG_SCANS_MAX);
		longjmp(j->leave, 1);
	}
}

/* Adobe writes CMYK inverted; what is not Adobe's is taken as it is. */
static void cmyk_row(const struct jpeg *j, uint8_t *rgb)
{
	bool inverted = j->lib.saw_Adobe_marker;

	for (unsigned x = 0; x < j->lib.output_width; x++) {
		const uint8_t *p = j->row + 4 * x;
		unsigned k = inverted ? p[3] : 255u - p[3];

		for (int i = 0; i < 3; i++) {
			unsigned c = inverted ? p[i] : 255u - p[i];

			rgb[3 * x + i] = (uint8_t)((c * k + 127) / 255);
		}
	}
}

static void jpeg_rows(struct jpeg *j, bool cmyk)
{
	size_t stride = (size_t)j->lib.output_width * 3;

	while (j->lib.output_scanline < j->lib.output_height) {
		uint8_t *line = j->rgb + j->lib.output_scanline * stride;
		JSAMPROW row = cmyk ? j->row : line;

		jpeg_read_scanlines(&j->lib, &row, 1);
		if (cmyk)
			cmyk_row(j, line);
	}
}

static int run_jpeg(struct jpeg *j, const void *data, size_t len, const char *name, struct err *e)
{
	bool cmyk;

	if (setjmp(j->leave))
		return err_set(e, TF_EINVALID, "%s: a damaged JPEG: %s", name, j->text);
	jpeg_create_decompress(&j->lib);
	j->lib.progress = &j->progress;
	jpeg_mem_src(&j->lib, data, len);
	jpeg_read_header(&j->lib, TRUE);
	TRY(check_size(name, j->lib.image_width, j->lib.image_height, e));
	cmyk = j->lib.num_components == 4;
	j->lib.out_color_space = cmyk ? JCS_CMYK : JCS_RGB;
	jpeg_start_decompress(&j->lib);
	j->rgb = xmalloc((size_t)j->lib.output_width * j->lib.output_height * 3);
	j->row = xmalloc((size_t)j->lib.output_width * 4);
	jpeg_rows(j, cmyk);
	jpeg_finish_decompress(&j->lib);
	return 0;
}

static int decode_jpeg(const void *data, size_t len, const char *name, struct picture *out,
		       struct err *e)
{
	struct jpeg *j = xcalloc(1, sizeof *j);
	int rc;

	j->lib.err = jpeg_std_error(&j->errors);
	j->lib.client_data = j;
	j->errors.error_exit = jpeg_fail;
	j->errors.emit_message = jpeg_message;
	j->progress.progress_monitor = jpeg_scan;
	rc = run_jpeg(j, data, len, name, e);
	if (rc == 0) {
		out->width = (int)j->lib.output_width;
		out->height = (int)j->lib.output_height;
		out->rgb = j->rgb;
		j->rgb = NULL;
	}
	jpeg_destroy_decompress(&j->lib);
	xfree(j->row);
	xfree(j->rgb);
	xfree(j);
	return rc;
}

/* ---- WebP ---- */

static int decode_webp(const void *data, size_t len, const char *name, struct picture *out,
		       struct err *e)
{
	WebPBitstreamFeatures f;
	size_t bytes;

	FAIL_IF(WebPGetFeatures(data, len, &f) != VP8_STATUS_OK, e, TF_EINVALID,
		"%s: a damaged WebP", name);
	FAIL_IF(f.has_animation, e, TF_EINVALID, "%s: an animated WebP, expected a still picture",
		name);
	TRY(check_size(name, (uint64_t)f.width, (uint64_t)f.height, e));
	bytes = (size_t)f.width * f.height * 4;
	out->width = f.width;
	out->height = f.height;
	out->rgb = xmalloc(bytes);
	if (!WebPDecodeRGBAInto(data, len, out->rgb, bytes, f.width * 4)) {
		xfree(out->rgb);
		return err_set(e, TF_EINVALID, "%s: a damaged or cut WebP", name);
	}
	over_white(&out->rgb, (size_t)f.width * f.height);
	return 0;
}

/* ---- all of them ---- */

int image_decode(const void *data, size_t len, const char *name, struct picture *out,
		 struct err *e)
{
	const uint8_t *p = data;

	memset(out, 0, sizeof *out);
	FAIL_IF(len > LIMIT_IMAGE_BYTES, e, TF_ELIMIT,
		"%s: a picture file of %zu bytes, expected at most %u", name, len,
		LIMIT_IMAGE_BYTES);
	if (len >= 8 && memcmp(p, "\x89PNG\r\n\x1a\n", 8) == 0)
		return decode_png(data, len, name, out, e);
	if (len >= 3 && memcmp(p, "\xff\xd8\xff", 3) == 0)
		return decode_jpeg(data, len, name, out, e);
	if (len >= 12 && memcmp(p, "RIFF", 4) == 0 && memcmp(p + 8, "WEBP", 4) == 0)
		return decode_webp(data, len, name, out, e);
	return err_set(e, TF_EINVALID, "%s: not a PNG, JPEG or WebP picture", name);
}

int image_read(const char *path, struct picture *out, struct err *e)
{
	struct buf file = BUF_INIT;
	int rc = file_read(path, LIMIT_IMAGE_BYTES, &file, e);

	memset(out, 0, sizeof *out);
	if (rc >= 0)
		rc = image_decode(file.data ? file.data : "", file.len, path, out, e);
	buf_release(&file);
	return rc < 0 ? rc : 0;
}

int image_fit(const struct picture *in, int width, int height, struct picture *out, struct err *e)
{
	int64_t w = in->width, h = in->height;
	const uint8_t *at;

	memset(out, 0, sizeof *out);
	FAIL_IF(width < 1 || height < 1 || (uint64_t)width > LIMIT_IMAGE_SIDE ||
			(uint64_t)height > LIMIT_IMAGE_SIDE,
		e, TF_EINVALID, "picture size: found %d x %d, expected 1 to %u", width, height,
		LIMIT_IMAGE_SIDE);
	if (w * height > h * width)
		w = h * width / height;
	else
		h = w * height / width;
	w = w ? w : 1;
	h = h ? h : 1;
	at = in->rgb + ((in->height - h) / 2 * in->width + (in->width - w) / 2) * 3;
	out->width = width;
	out->height = height;
	out->rgb = xmalloc((size_t)width * height * 3);
	if (!stbir_resize_uint8_generic(at, (int)w, (int)h, in->width * 3, out->rgb, width, height,
					width * 3, 3, STBIR_ALPHA_CHANNEL_NONE, 0,
					STBIR_EDGE_CLAMP, STBIR_FILTER_DEFAULT,
					STBIR_COLORSPACE_LINEAR, NULL)) {
		xfree(out->rgb);
		return err_set(e, TF_ENOMEM, "no memory to resize a picture to %d x %d", width,
			       height);
	}
	return 0;
}

bool image_is_name(const char *name)
{
	static const char *const endings[] = { ".png", ".jpg", ".jpeg", ".webp" };
	const char *dot = strrchr(name, '.');

	for (size_t i = 0; dot && i < ARRAY_LEN(endings); i++)
		if (strcasecmp(dot, endings[i]) == 0)
			return true;
	return false;
}
