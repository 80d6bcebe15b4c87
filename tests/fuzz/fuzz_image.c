/* SPDX-License-Identifier: Apache-2.0
 * Any bytes as a picture file: RGB of bounded size that can be cropped and resized, or a
 * sentence. */
#include "config.h"
#include "worker/image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct picture picture, small;
	struct err e = ERR_INIT;

	if (image_decode(data, size, "fuzz.png", &picture, &e) < 0) {
		CHECK(e.code < 0 && e.text[0]);
		return 0;
	}
	CHECK(picture.width > 0 && picture.height > 0);
	if (image_fit(&picture, 16, 16, &small, &e) == 0)
		picture_release(&small);
	picture_release(&picture);
	return 0;
}
