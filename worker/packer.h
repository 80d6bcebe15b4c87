/* SPDX-License-Identifier: Apache-2.0
 * First-fit packing: up to PACKER_WAITING documents wait; a sequence takes the first that fits
 * until none does. A text longer than a whole sequence is cut: it fills an empty one and its
 * rest waits on, first in line. Nothing else is ever cut. */
#ifndef WORKER_PACKER_H
#define WORKER_PACKER_H

#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

#define PACKER_WAITING 64

/* A document that waits: where it came from, and what is left of it. */
struct waiting {
	uint32_t source;
	uint64_t number; /* how many were drawn from the source before it */
	uint64_t from;   /* tokens of it already packed (texts) */
	int64_t length;  /* positions that are left, marks included */
	bool image;      /* holds a picture: never cut, and counted against the batch's room */
};

struct packer {
	struct waiting list[PACKER_WAITING]; /* in order of arrival */
	int count;
};

static inline bool packer_is_full(const struct packer *p)
{
	return p->count == PACKER_WAITING;
}

/* Adds at the end; the packer must not be full. */
void packer_add(struct packer *p, const struct waiting *w);
/* Index of the first document that fits into `room` of `sequence` positions, or -1. images says
 * whether another picture may be added. */
int packer_find(const struct packer *p, int64_t room, int64_t sequence, bool images);
void packer_remove(struct packer *p, int index);

#endif
