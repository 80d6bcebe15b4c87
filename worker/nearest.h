/* SPDX-License-Identifier: Apache-2.0
 * Which of many pictures a drawn one is nearest to: squared distance of pixels after averaging
 * blocks of 2 x 2. All pictures of a set have one size with even sides. */
#ifndef WORKER_NEAREST_H
#define WORKER_NEAREST_H

#include <stddef.h>
#include <stdint.h>

struct nearest {
	int width, height; /* of the pictures */
	size_t values;     /* of a picture once averaged */
	float *pool;       /* [count, values] */
	size_t count, room;
	int threads;
};

/* threads: that nearest_rank runs on; what it finds does not depend on them. */
void nearest_init(struct nearest *n, int width, int height, int threads);
void nearest_release(struct nearest *n);
/* Adds a picture [height, width, 3]; its index is the count before. */
void nearest_add(struct nearest *n, const uint8_t *rgb);
/* How many pictures of the set are strictly nearer to rgb than number `truth` is. 0: it is the
 * nearest (a tie counts for it). *first, when not NULL, is the nearest one's index, the lowest
 * among equals. */
size_t nearest_rank(const struct nearest *n, const uint8_t *rgb, size_t truth, size_t *first);

#endif
