/* SPDX-License-Identifier: Apache-2.0
 * Attention of one head of one sequence (head.c), as attention.c hands it out to threads. */
#ifndef KERNELS_CPU_LOOPS_HEAD_H
#define KERNELS_CPU_LOOPS_HEAD_H

#include "kernels/cpu/loops/loops.h"

/* One head of one sequence: rows of hd elements, `stride` elements apart. Query i sees the keys
 * start[i] .. limit[i] (start NULL: from 0; limit below start: none, its output is 0). */
struct head {
	enum dtype type; /* of all that is `void` */
	int64_t queries, keys;
	int hd;
	const void *q, *k, *v;
	int64_t q_stride, key_stride;
	const int32_t *start, *limit;
	void *out;
	int64_t out_stride; /* of out and dout */
	float *lse;         /* [queries]: written forward unless NULL, read backward */
	const void *dout;
	void *dq, *dk, *dv; /* backward: strides of q and of the keys */
	float *scratch;     /* head_scratch floats, 64-byte aligned */
};

#define HEAD_PANEL 256                      /* keys handled at a time */
#define HEAD_PANEL_STRIDE (HEAD_PANEL + 16) /* so that rows do not share a cache set */
#define HEAD_GROUP 8                        /* queries handled at a time */

/* Widths in scratch: whole vectors. */
static inline int64_t head_width(int hd)
{
	return (hd + 15) / 16 * 16;
}
static inline int64_t head_groups(int64_t queries)
{
	return (queries + HEAD_GROUP - 1) / HEAD_GROUP;
}

/* Floats of scratch that a head needs, forward and backward. */
static inline size_t head_scratch(int64_t queries, int hd)
{
	size_t rows = (size_t)head_groups(queries) * HEAD_GROUP, width = (size_t)head_width(hd);
	size_t by_query = rows * (3 * width) + 2 * ((rows + 15) / 16 * 16);
	size_t by_key = 2 * width * HEAD_PANEL_STRIDE + 4 * width * HEAD_PANEL;

	return by_query + by_key + 2 * HEAD_GROUP * HEAD_PANEL_STRIDE;
}

void LOOP(head_forward)(const struct head *h);
void LOOP(head_backward)(const struct head *h);

#endif
