/* SPDX-License-Identifier: Apache-2.0
 * Which tiles of keys a tile of queries visits on Hopper, and which tiles of queries a tile of
 * keys: arithmetic alone, so that a test without a GPU can check it. Rows of a tile are shared out
 * to warpgroups, PART each; what passes by comes in tiles of its own, which begin where the first
 * of them is needed, so that a document's first tile has no edge before it. */
#ifndef KERNELS_CUDA_ATTENTION_TILES_H
#define KERNELS_CUDA_ATTENTION_TILES_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __CUDACC__
#define TILES static inline __host__ __device__
#else
#define TILES static inline
#endif

#define PART 64	     /* rows of a tile that a warpgroup owns */
#define PARTS_MOST 3 /* of a tile */

struct span {
	int32_t first, last;	      /* visited keys (queries), inclusive; first > last: none */
	int32_t start_max, limit_min; /* of its queries: keys between them need no mask */
};

/* A warpgroup's share of an item: tiles 0 to top (-1: none) pass by all warpgroups, of which low to
 * high (none where high < low) hold something for its own rows. Tile 0 begins at row `base`. */
struct share {
	int sequence, tile, head;
	int base, top, high, low;
	int start_max, limit_min;
	int rest; /* rows of tile `high` that are needed */
};

/* First i in [0, n) with x[i] >= v (or n): x never decreases. */
TILES int first_at_least(const int32_t *x, int n, int v)
{
	int low = 0, high = n;

	while (low < high) {
		int middle = (low + high) / 2;

		if (x[middle] >= v)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* The queries that see keys from..to-1 of n. */
TILES struct span seen_by(const int32_t *start, const int32_t *limit, int queries, int from, int to)
{
	struct span p = { queries, -1, 0, 0 };

	if (from < to) {
		p.first = first_at_least(limit, queries, from);
		p.last = first_at_least(start, queries, to) - 1;
	}
	return p;
}

/* Passing tiles of `size` rows; the first begins at a multiple of `from`. */
TILES void share_tiles(struct share *t, const struct span *all, const struct span *mine, int size,
		       int from)
{
	bool none = mine->first > mine->last;

	t->base = all->first / from * from;
	t->top = all->first > all->last ? -1 : (all->last - t->base) / size;
	t->high = none ? -1 : (mine->last - t->base) / size;
	t->low = none ? 0 : (mine->first - t->base) / size;
	t->rest = none ? 0 : (mine->last - t->base) % size + 1;
	t->start_max = mine->start_max;
	t->limit_min = mine->limit_min;
}

/* Whether keys from `key` on need a mask since not all queries see the first one. */
TILES bool share_before(const struct share *t, int key)
{
	return key < t->start_max;
}

/* The same of `size` keys from `key` on and the last one. */
TILES bool share_beyond(const struct share *t, int key, int size)
{
	return key + size - 1 > t->limit_min;
}

/* Which tile of which head comes at place `at` of a list of `tiles` a head, in groups of `group`
 * tiles: in a group head after head, but tile by tile for the last `mixed` of them. */
struct place {
	int tile, head;
};

TILES struct place place_of(int at, int tiles, int heads, int group, int mixed)
{
	int first = at / (group * heads) * group, rest = at - first * heads;
	int here = group < tiles - first ? group : tiles - first, alone = heads - mixed;
	struct place p = { first + rest % here, rest / here };

	if (p.head >= alone) {
		rest -= alone * here;
		p.tile = first + rest / mixed;
		p.head = alone + rest % mixed;
	}
	return p;
}

#endif
