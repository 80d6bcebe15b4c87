/* SPDX-License-Identifier: Apache-2.0
 * Nearest pictures; see nearest.h. */
#include "config.h"
#include "worker/nearest.h"
#include "lib/err.h"
#include "lib/mem.h"

#include <string.h>

void nearest_init(struct nearest *n, int width, int height, int threads)
{
	CHECK(width > 0 && height > 0 && width % 2 == 0 && height % 2 == 0);
	memset(n, 0, sizeof *n);
	n->width = width;
	n->height = height;
	n->threads = threads > 0 ? threads : 1;
	n->values = (size_t)width / 2 * ((size_t)height / 2) * 3;
}

void nearest_release(struct nearest *n)
{
	xfree(n->pool);
}

static void average(const struct nearest *n, const uint8_t *rgb, float *out)
{
	size_t row = (size_t)n->width * 3;

	for (int y = 0; y < n->height; y += 2)
		for (int x = 0; x < n->width; x += 2)
			for (int c = 0; c < 3; c++) {
				const uint8_t *p = rgb + (size_t)y * row + (size_t)x * 3 + c;

				*out++ = (float)(p[0] + p[3] + p[row] + p[row + 3]) / 4;
			}
}

void nearest_add(struct nearest *n, const uint8_t *rgb)
{
	if (n->count == n->room) {
		n->room = n->room ? 2 * n->room : 64;
		n->pool = xrealloc(n->pool, n->room, n->values * sizeof *n->pool);
	}
	average(n, rgb, n->pool + n->count++ * n->values);
}

/* Sixteen partial sums: a fixed order that compilers turn into vectors. */
static double distance(const float *a, const float *b, size_t count)
{
	float part[16] = { 0 };
	double sum = 0;
	size_t i = 0;

	for (; i + 16 <= count; i += 16)
		for (size_t j = 0; j < 16; j++)
			part[j] += (a[i + j] - b[i + j]) * (a[i + j] - b[i + j]);
	for (; i < count; i++)
		sum += (double)((a[i] - b[i]) * (a[i] - b[i]));
	for (size_t j = 0; j < 16; j++)
		sum += (double)part[j];
	return sum;
}

size_t nearest_rank(const struct nearest *n, const uint8_t *rgb, size_t truth, size_t *first)
{
	float *drawn = xcalloc(n->values, sizeof *drawn);
	double *apart = xcalloc(n->count, sizeof *apart);
	size_t nearer = 0, best = truth;

	CHECK(truth < n->count);
	average(n, rgb, drawn);
#pragma omp parallel for schedule(static) num_threads(n->threads)
	for (size_t i = 0; i < n->count; i++)
		apart[i] = distance(drawn, n->pool + i * n->values, n->values);
	for (size_t i = 0; i < n->count; i++) {
		nearer += apart[i] < apart[truth];
		if (apart[i] < apart[best] || (!(apart[i] > apart[best]) && i < best))
			best = i;
	}
	if (first)
		*first = best;
	xfree(drawn);
	xfree(apart);
	return nearer;
}
