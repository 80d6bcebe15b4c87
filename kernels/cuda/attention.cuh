/* SPDX-License-Identifier: Apache-2.0
 * Attention over intervals of keys, as its versions see it. attention.cu checks shapes and picks:
 * attention_hopper_*.cu (bf16, head dim 64 or 128, compute capability 9.0), else
 * attention_portable.cu.
 *
 * All versions take rows by stride, so that training (packed q, k, v) and sampling (caches) share
 * them. */
#ifndef KERNELS_CUDA_ATTENTION_CUH
#define KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/common.cuh"

struct tile_plan;

/* A plan of tiles of queries that serves several passes over the same intervals (Hopper). */
struct attend_plan {
	struct tile_plan *order; /* NULL: not made yet */
	int *next;               /* a counter for each pass left, zero */
	int passes;
};

struct attend {
	const void *q, *k, *v;	      /* first element of head 0 of row 0 of sequence 0 */
	void *out;		      /* [batch * queries, heads * hd] */
	float *lse;		      /* [batch, heads, queries], or NULL */
	const int32_t *start, *limit; /* [batch, queries]; start NULL: 0 */
	int64_t q_row, q_sequence;    /* elements from one row, one sequence, to the next */
	int64_t kv_row, kv_sequence;
	int batch, queries, keys, heads, hd;
	enum dtype type;
	struct attend_plan *plan; /* forward: made on first use and kept in scratch; NULL: none */
};

struct attend_backward {
	struct attend f;
	const void *dout;   /* like out */
	void *dq, *dk, *dv; /* rows and sequences apart as q, k, v */
	const float *cosine, *sine; /* [positions, hd / 2]: dq and dk are turned back; or NULL */
	const int32_t *position;    /* [batch, queries] */
};

void attention_portable(struct cuda_state *s, const struct attend *a);
void attention_portable_backward(struct cuda_state *s, const struct attend_backward *a);
/* One query row a sequence or few: a block a row and head, the keys shared out to its warps. */
void attention_decode(struct cuda_state *s, const struct attend *a);
bool attention_decode_fits(const struct attend *a);

/* The queries of qkv over caches that hold their keys and values already. plan (may be NULL): of
 * this pass and the next ones; until the last of them nothing else may take scratch. */
void attend_cache(struct cuda_state *s, const struct tensor *out, const struct tensor *qkv,
		  int heads, const struct tensor *keys, const struct tensor *values,
		  const struct tensor *limit, struct attend_plan *plan);

bool attention_hopper_fits(const struct cuda_state *s, const struct attend *a);
void attention_hopper(struct cuda_state *s, const struct attend *a);
void attention_hopper_backward(struct cuda_state *s, const struct attend_backward *a);

/* ---- plans: what each tile of queries (or keys) has to visit, longest first */
struct __align__(16) tile_plan {
	int32_t sequence, tile, unused[2];
	struct span all, part[PARTS_MOST]; /* of keys' tiles only first and last */
};

#define PLAN_WORDS ((int)(sizeof(struct tile_plan) / 4))
#define NUMBER_WORDS 4 /* from one head's number to the next: copies begin at 16 bytes */

/* Where the number of a head lies in a list of `tiles` plans, in words. Head -1 has one, too: it
 * says that there is no more. */
static inline __host__ __device__ int number_word(int tiles, int head)
{
	return (tiles + 1) * PLAN_WORDS + (head + 1) * NUMBER_WORDS;
}

/* Entries of a list's memory: plans, a counter, numbers of heads. */
static inline int plan_entries(int tiles, int heads)
{
	return (int)div_up(number_word(tiles, heads), PLAN_WORDS);
}

/* The tiles of `rows` queries (or keys), `together` sequences after one another and in them the
 * longest first. Behind them lie a counter (the word `sequence` of an entry) that is 0 between
 * kernels and the numbers of the heads. Where the plan cannot be kept it is made in order[], with
 * scratch of the same size (plan_entries). */
struct tile_plan *attention_plan(struct cuda_state *s, const struct attend *a, bool by_query,
				 int rows, int together, struct tile_plan *order,
				 struct tile_plan *work);

#endif
