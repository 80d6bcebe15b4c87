/* SPDX-License-Identifier: Apache-2.0
 * The sizes of a Transfusion model and of the batches it takes, and the ids of its vocabulary.
 * Filled in once by the caller (from an experiment file, the tokenizer and the autoencoder),
 * read-only afterwards.
 *
 * Short names used in model/: B sequences of a micro batch, T positions of a sequence, N = B T
 * rows, d width, H heads, F width of the feed-forward layer, P patches of a picture, D numbers of
 * a patch vector (patch^2 c), E numbers of a picture's latent (h w c = P D), V rows of the
 * vocabulary matrices. */
#ifndef MODEL_DIMS_H
#define MODEL_DIMS_H

#include "kernels/kernels.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

#define TIME_WAVES 128                /* cosines, and as many sines, of the time embedding */
#define TIMESTEPS 1000                /* of the diffusion */
#define VOCABULARY_MULTIPLE 128       /* rows of the vocabulary matrices are rounded up to it */

/* Ids: the tokenizer's pieces, then the specials. */
struct vocabulary {
	int32_t pieces;               /* V0 */
	int32_t bos, eos;             /* the tokenizer's own, below pieces */
	int32_t boi, eoi, pad;        /* V0, V0 + 1, V0 + 2 */
	int32_t ids;                  /* valid ids: V0 + 3; logits from here on are masked */
	int32_t rows;                 /* ids rounded up to VOCABULARY_MULTIPLE */
};

/* TF_EINVALID when pieces < 3 or bos/eos are not two different ids below pieces. */
int vocabulary_init(struct vocabulary *v, int32_t pieces, int32_t bos, int32_t eos, struct err *e);

enum time_place { TIME_AT_PATCH, TIME_AT_MODEL };   /* before or after the patch layer */

struct dims {
	/* the model */
	int64_t layers, d, H, F;
	struct vocabulary vocabulary;
	int64_t patch;                /* latent pixels along a patch's side */
	int64_t h, w, c;              /* latent of a picture; all 0: a model of text alone */
	enum time_place time;
	float eps;                    /* RMSNorm; 1e-5 */
	float rope_base;              /* 10000 */
	enum dtype act;               /* DT_F32 or DT_BF16: matrix products, activations */
	bool causal;                  /* patches do not see later patches of their picture */
	bool positions_restart;       /* positions count along the document (false: the sequence) */
	/* a micro batch */
	int64_t B, T;
	int64_t images;               /* most pictures of a micro batch; see dims_images_most */
	int64_t row_multiple;         /* rows of text targets and patches are rounded up to it */
	/* training */
	int64_t recompute;            /* the first so many layers keep their input alone and compute
				       * their activations again in the backward pass */
	enum dtype moments;           /* of AdamW: DT_F32 or DT_BF16 */
	bool stochastic;              /* bf16 moments: rounded by chance, not to the nearest */
	uint64_t rounding;            /* seed of that chance */
	bool fp8;                     /* the layers' products are of e4m3, but those of weights'
				       * gradients (kernels.def: matmul_scaled) */
};

/* Checks everything that could be wrong with sizes that come from files: each at least 1 and
 * bounded, heads divide d into an even head width, patch divides h and w, a picture with BOS BOI
 * EOI EOS fits T, the number of elements of any tensor fits memory arithmetic. TF_EINVALID with a
 * sentence. */
int dims_check(const struct dims *m, struct err *e);
int64_t dims_patches(const struct dims *m);          /* P; 0 without pictures */
int64_t dims_patch_width(const struct dims *m);      /* D */
int64_t dims_latent(const struct dims *m);           /* E */
int64_t dims_time_width(const struct dims *m);       /* D or d */
/* The most pictures B sequences of T positions can hold (a picture takes P + 2 positions at
 * least). */
int64_t dims_images_most(const struct dims *m);
/* n rounded up to row_multiple. */
int64_t dims_round_rows(const struct dims *m, int64_t n);
/* The capacity n pictures are computed in: their patches rounded up to row_multiple, in whole
 * pictures, at most m->images. */
int64_t dims_round_images(const struct dims *m, int64_t n);

#endif
