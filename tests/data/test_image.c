/* SPDX-License-Identifier: Apache-2.0
 * Pictures of every type a file may have, two halves each in known colours, and what is refused. */
#include "tests/test.h"
#include "lib/buf.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "worker/image.h"

#include <stdlib.h>
#include <string.h>

#define LEFT { 200, 60, 20 }
#define RIGHT { 20, 60, 200 }
#define WHITE { 255, 255, 255 }
#define BLACK { 0, 0, 0 }
#define LIGHT { 200, 200, 200 }
#define DARK { 50, 50, 50 }

/* Stored among the fuzzer's pictures. off: what a lossy format may differ by. */
static const struct halves {
	const char *file;
	uint8_t left[3], right[3];
	int off;
} halves[] = {
	{ "rgb8.png", LEFT, RIGHT, 0 },
	{ "rgb16.png", LEFT, RIGHT, 0 },
	{ "rgba16.png", LEFT, WHITE, 0 },
	{ "rgba8-interlaced.png", LEFT, { 208, 216, 244 }, 0 }, /* a fifth over white */
	{ "grey8.png", LIGHT, DARK, 0 },
	{ "grey16.png", LIGHT, DARK, 0 },
	{ "grey1.png", WHITE, BLACK, 0 },
	{ "greyalpha8.png", LIGHT, WHITE, 0 },
	{ "palette2.png", LEFT, RIGHT, 0 },
	{ "palette4-alpha.png", LEFT, WHITE, 0 },
	{ "rgb.jpg", LEFT, RIGHT, 4 },
	{ "progressive.jpg", LEFT, RIGHT, 4 },
	{ "grey.jpg", LIGHT, DARK, 2 },
	{ "cmyk.jpg", LEFT, RIGHT, 4 },
	{ "lossy.webp", LEFT, RIGHT, 12 },
	{ "lossless-alpha.webp", LEFT, WHITE, 0 },
};

static void read_stored(const char *file, struct buf *out)
{
	char *path = xasprintf("%s/tests/fuzz/corpus/image/halves-%s", getenv("TF_SOURCE"), file);
	struct err e = ERR_INIT;

	assert_ok(file_read(path, 1 << 20, out, &e), &e);
	xfree(path);
}

static void assert_colour(const char *file, const struct picture *p, int x, int y,
			  const uint8_t want[3], int off)
{
	const uint8_t *got = p->rgb + 3 * ((size_t)y * (size_t)p->width + (size_t)x);

	for (int i = 0; i < 3; i++)
		if (abs(got[i] - want[i]) > off)
			fail_msg("%s at %d,%d: %d %d %d, expected %d %d %d", file, x, y, got[0],
				 got[1], got[2], want[0], want[1], want[2]);
}

static void every_type_is_read(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(halves); i++) {
		const struct halves *h = &halves[i];
		struct buf b = BUF_INIT;
		struct picture p;
		struct err e = ERR_INIT;

		read_stored(h->file, &b);
		assert_ok(image_decode(b.data, b.len, h->file, &p, &e), &e);
		assert_int_equal(p.width, 16);
		assert_int_equal(p.height, 16);
		for (int y = 0; y < 16; y += 5) {
			assert_colour(h->file, &p, 1, y, h->left, h->off);
			assert_colour(h->file, &p, 14, y, h->right, h->off);
		}
		picture_release(&p);
		buf_release(&b);
	}
}

/* Cut anywhere, a file is refused with its name, or (a JPEG in its last rows) read. */
static void a_cut_file_is_told(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(halves); i++) {
		struct buf b = BUF_INIT;

		read_stored(halves[i].file, &b);
		for (size_t len = 0; len < b.len * 3 / 4; len += 7) {
			struct picture p;
			struct err e = ERR_INIT;

			if (image_decode(b.data, len, "cut.x", &p, &e) == 0)
				fail_msg("%s: %zu of %zu bytes were taken", halves[i].file, len,
					 b.len);
			assert_non_null(strstr(e.text, "cut.x"));
		}
		buf_release(&b);
	}
}

static void put_u32(uint8_t *at, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* A head that promises more pixels than the limit is refused before memory is taken for them. */
static void huge_pictures_are_refused(void **state)
{
	struct buf b = BUF_INIT;
	struct picture p;
	struct err e = ERR_INIT;

	(void)state;
	read_stored("rgb8.png", &b);
	put_u32((uint8_t *)b.data + 16, LIMIT_IMAGE_SIDE - 1);
	put_u32((uint8_t *)b.data + 20, LIMIT_IMAGE_SIDE - 1);
	/* the checksum of the changed head */
	put_u32((uint8_t *)b.data + 29, 0xc690916au);
	assert_int_equal(image_decode(b.data, b.len, "huge.png", &p, &e), TF_ELIMIT);
	assert_non_null(strstr(e.text, "huge.png"));
	buf_release(&b);
}

/* The centre of a wide picture stays, the sides go. */
static void the_centre_is_kept(void **state)
{
	struct picture wide, out;
	struct err e = ERR_INIT;

	(void)state;
	picture_init(&wide, 40, 10, 0);
	for (int y = 0; y < 10; y++)
		for (int x = 15; x < 25; x++)
			wide.rgb[3 * (y * 40 + x)] = 240;
	assert_ok(image_fit(&wide, 20, 20, &out, &e), &e);
	assert_int_equal(out.width, 20);
	assert_colour("wide", &out, 0, 10, (const uint8_t[]){ 240, 0, 0 }, 0);
	assert_colour("wide", &out, 19, 10, (const uint8_t[]){ 240, 0, 0 }, 0);
	picture_release(&out);
	assert_ok(image_fit(&wide, 4, 1, &out, &e), &e);
	assert_true(out.rgb[0] < 20 && out.rgb[3] > 100 && out.rgb[9] < 20);
	picture_release(&out);
	picture_release(&wide);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_type_is_read),
		cmocka_unit_test(a_cut_file_is_told),
		cmocka_unit_test(huge_pictures_are_refused),
		cmocka_unit_test(the_centre_is_kept),
	};

	return cmocka_run_group_tests_name("image", tests, NULL, NULL);
}
