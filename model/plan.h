/* SPDX-License-Identifier: Apache-2.0
 * A plan of named tensors: shapes first, then one allocation that all of them are carved from. The
 * plan alone tells the bytes. A tensor's place is filled into the slot it was planned for. */
#ifndef MODEL_PLAN_H
#define MODEL_PLAN_H

#include "kernels/kernels.h"
#include "lib/err.h"

/* Where a tensor begins matters to a GPU, whose caches have lines of 128 bytes: with 64 in place of
 * this a training step took 1 % longer, a token 3 % (doc/speed.md). */
#define PLAN_ALIGN 2048

/* What a tensor of so many bytes takes of a plan. */
static inline size_t plan_bytes(size_t bytes)
{
	return (bytes + PLAN_ALIGN - 1) / PLAN_ALIGN * PLAN_ALIGN;
}

struct plan_entry {
	const char *name;             /* for messages; static text */
	struct tensor *slot;
	size_t at;                    /* bytes from the start, a multiple of PLAN_ALIGN */
};

struct plan {
	struct plan_entry *entry;
	int count, room;
	size_t bytes;
	void *memory;                 /* of the backend */
};

#define PLAN_INIT { NULL, 0, 0, 0, NULL }

/* Plans a tensor [a,b,c,d] (trailing 0: a lower rank). slot stays where it is until plan_release.
 * A size of zero in `a` is kept as one row, so that every slot has a place. */
void plan_add(struct plan *p, const char *name, struct tensor *slot, enum dtype type, int64_t a,
	      int64_t b, int64_t c, int64_t d);
/* Allocates and fills in the slots. TF_ENOMEM names what for. */
int plan_alloc(struct plan *p, struct kernels *k, const char *what, struct err *e);
void plan_release(struct plan *p, struct kernels *k);

/* The first n rows of a tensor (all its trailing dims). */
static inline struct tensor first_rows(struct tensor t, int64_t n)
{
	CHECK(n >= 0 && n <= t.dim[0]);
	t.dim[0] = n;
	return t;
}

#endif
