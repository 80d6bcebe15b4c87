/* SPDX-License-Identifier: Apache-2.0
 * How far two pictures are apart: apart A B prints the largest difference of a value and, in dB,
 * the peak signal-to-noise ratio, as JSON (psnr_db null: they are the same). */
#include "config.h"
#include "worker/image.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	struct picture a = { 0 }, b = { 0 };
	struct err e = ERR_INIT;
	int largest = 0;
	double squares = 0;
	size_t n;

	if (argc != 3 || image_read(argv[1], &a, &e) < 0 || image_read(argv[2], &b, &e) < 0 ||
	    a.width != b.width || a.height != b.height) {
		fprintf(stderr, "apart: expected two pictures of one size %s\n", e.text);
		return 2;
	}
	n = (size_t)a.width * (size_t)a.height * 3;
	for (size_t i = 0; i < n; i++) {
		int by = abs(a.rgb[i] - b.rgb[i]);

		largest = by > largest ? by : largest;
		squares += by * by;
	}
	if (squares > 0)
		printf("{\"largest\":%d,\"psnr_db\":%.2f}\n", largest,
		       10 * log10(255.0 * 255.0 * (double)n / squares));
	else
		printf("{\"largest\":0,\"psnr_db\":null}\n");
	picture_release(&a);
	picture_release(&b);
	return 0;
}
