/* SPDX-License-Identifier: Apache-2.0
 * From documents to batches. One function lays a document out, for training, evaluation and
 * sampling alike, so that positions, marks and masks cannot differ between them:
 *
 *	[BOS] segment... [EOS]		a text is its tokens, a picture is BOI patches EOI
 *
 * Text: {text}. Caption first: {text, image}. Image first: {image, text}. Caption dropped: {image}.
 * Edit: {image, text, image}. A long text continued in another sequence leaves out BOS (not its
 * first piece) or EOS (not its last). Sampling lays out its prompt with BOS and without EOS.
 *
 * Each position has the interval of keys it sees: from its document's first position to itself, or
 * to the last patch of its picture when it is a patch (struct dims.causal: always to itself). BOI
 * and EOI lie outside the picture's block. PAD sees itself alone. A position has an LM target (the
 * next token) when the next position belongs to the same document and it is neither patch, BOI nor
 * PAD itself. */
#ifndef MODEL_SEQUENCE_H
#define MODEL_SEQUENCE_H

#include "model/dims.h"

#include <stdbool.h>
#include <stdint.h>

enum segment_kind { SEGMENT_TEXT, SEGMENT_IMAGE };

struct segment {
	enum segment_kind kind;
	/* SEGMENT_TEXT: bare tokens, each below vocabulary.pieces; borrowed */
	const int32_t *token;
	int64_t count;
	/* SEGMENT_IMAGE: normalised latent [h, w, c] f32; borrowed, copied into a batch */
	const float *latent;
	int32_t time;                 /* timestep 1..1000; 0: clean (no noise, no loss) */
	int64_t sample;               /* its noise stream; unique for each time it is shown */
};

struct document {
	const struct segment *segment;
	int64_t segments;
	bool bos, eos;                /* whether the marks are written */
};

/* Positions the document takes. */
int64_t document_length(const struct dims *m, const struct document *doc);

/* What lies at a position of a document. */
struct element {
	int32_t token;                /* -1 at a patch */
	int32_t segment;              /* index of its segment; -1 at BOS and EOS */
	int32_t patch;                /* number of the patch in its picture; -1 elsewhere */
	int32_t limit;                /* last position of the document that it sees */
	int32_t target;               /* LM target, or -1 */
};

/* Writes document_length elements. The one layout. */
void document_layout(const struct dims *m, const struct document *doc, struct element *out);
/* Writes the element of a token at position `at` of a document: what document_layout does for
 * each; a sampler appends its tokens with it. */
void element_token(struct element *out, int32_t at, int32_t token, int32_t segment);
/* TF_EINVALID when a token is not a bare piece, a time is out of 0..1000, a latent is missing. */
int document_check(const struct dims *m, const struct document *doc, struct err *e);

/* A micro batch on the host: B sequences of T positions. All arrays are owned by the batch and
 * have room for the largest case; unused rows have token PAD, row -1 or target -1. */
struct batch {
	const struct dims *dims;      /* borrowed */
	int32_t *token;               /* [B,T]; -1 at patches */
	int32_t *start, *limit;       /* [B,T], positions in the sequence */
	int32_t *position;            /* [B,T], for RoPE */
	int32_t *used;                /* [B]: positions taken so far */
	int64_t targets;              /* LM targets: lm_row, lm_target [B T] */
	int32_t *lm_row, *lm_target;  /* row b T + t, and the token to predict there */
	int64_t images;               /* pictures, in order of their adding */
	int64_t noised;               /* of them with a diffusion loss (not clean) */
	int32_t *image_row;           /* [images]: row of its first patch */
	int32_t *image_time;          /* [images]: 0 clean, else 1..1000 */
	int64_t *image_sample;        /* [images] */
	float *latent;                /* [images, E] */
	/* drawn from (noise_seed, noise_purpose, image_sample) unless noise is [images, E] */
	uint64_t noise_seed;
	enum philox_purpose noise_purpose;
	const float *noise;           /* borrowed; NULL: drawn */
};

void batch_init(struct batch *b, const struct dims *m);   /* m is borrowed; the batch is empty */
void batch_release(struct batch *b);
/* Empties: PAD everywhere, no targets, no pictures, noise drawn from (seed, purpose). */
void batch_clear(struct batch *b, uint64_t noise_seed, enum philox_purpose purpose);
/* Positions still free in sequence i. */
int64_t batch_room(const struct batch *b, int64_t i);
/* Appends doc to sequence i. TF_ELIMIT when it does not fit (nothing is changed), TF_EINVALID as
 * document_check. */
int batch_add(struct batch *b, int64_t i, const struct document *doc, struct err *e);

#endif
