/* SPDX-License-Identifier: Apache-2.0
 * Inside the sampler: its tensors by name, and the sequences it runs. sampler.c decides what is
 * drawn, sampler_device.c computes. S sequences of the cache: the prompts', then as many
 * unconditional ones. */
#ifndef MODEL_SAMPLER_PLAN_H
#define MODEL_SAMPLER_PLAN_H

#include "model/plan.h"
#include "model/sampler.h"

/* R: rows of an evaluation at most (S columns); n: prompts; nP, SP: patches. */
#define SAMPLER_TENSORS(X) \
	X(TOKEN, DT_I32, R, 0, 0, 0) \
	X(POSITION, DT_I32, R, 0, 0, 0) \
	X(LIMIT, DT_I32, R, 0, 0, 0)              /* -1: an idle row */ \
	X(LAST_ROW, DT_I32, R, 0, 0, 0)           /* sequence whose last element it is, or -1 */ \
	X(AT, DT_I32, S, 0, 0, 0) \
	X(X_IN, act, R, d, 0, 0) \
	X(NORMED, act, R, d, 0, 0) \
	X(RSTD, DT_F32, R, 0, 0, 0) \
	X(QKV, act, R, 3 * d, 0, 0) \
	X(ATTENTION, act, R, d, 0, 0) \
	X(GATE_UP, act, R, 2 * F, 0, 0) \
	X(SWIGLU, act, R, F, 0, 0) \
	X(LAST, act, S, d, 0, 0)                  /* output of each sequence's last element */ \
	X(LOGITS, act, n, V, 0, 0) \
	X(LOGITS_F32, DT_F32, n, V, 0, 0) \
	X(DRAWN, DT_I32, n, 0, 0, 0) \
	X(PICTURE, DT_F32, n, E, 0, 0)            /* x_t, or a clean latent */ \
	X(STEP_NOISE, DT_F32, n, E, 0, 0) \
	X(STREAM, DT_I64, TIMESTEPS + 1, n, 0, 0) /* of the first noise, then of each step */ \
	X(TIME, DT_F32, n, 0, 0, 0) \
	X(WAVES, act, n, 2 * TIME_WAVES, 0, 0) \
	X(TIME_HIDDEN, act, n, W, 0, 0) \
	X(TIME_SILU, act, n, W, 0, 0) \
	X(TIME_OUT, act, n, W, 0, 0) \
	X(PATCHES, act, nP, D, 0, 0) \
	X(PATCH_X, act, nP, d, 0, 0) \
	X(PATCH_ROW, DT_I32, nP, 0, 0, 0) \
	X(PREDICTED, act, SP, D, 0, 0) \
	X(EPS, DT_F32, S, E, 0, 0)

#define SAMPLER_NAME(name, ...) name,
enum sampler_tensor { SAMPLER_TENSORS(SAMPLER_NAME) SAMPLER_COUNT };
#undef SAMPLER_NAME

enum sequence_state { SEQUENCE_TEXT, SEQUENCE_PICTURE, SEQUENCE_DONE };

/* One sequence of the cache: everything it holds, laid out as a document. */
struct sequence {
	const struct sampler_prompt *prompt;   /* NULL: unconditional */
	struct segment *segment;      /* the prompt's, then drawn pictures */
	int64_t segments;
	struct element *element;      /* [context + 1] */
	int32_t length;               /* elements laid out */
	int32_t fed;                  /* elements whose keys and values are in the cache */
	int32_t until;                /* how far sampler_feed goes; fed: the sequence is idle */
	int32_t picture;              /* element of the first patch of the picture being drawn */
	enum sequence_state state;
	int64_t tokens, pictures;     /* drawn */
	struct sampler_result result;
};

struct sampler {
	struct transformer *m;        /* borrowed */
	struct kernels *k;
	int64_t sequences;            /* prompts at once */
	int64_t context;              /* cache positions of a sequence */
	int64_t columns;              /* most elements of a sequence in one evaluation */
	bool guided;
	struct plan plan;
	struct tensor t[SAMPLER_COUNT];
	struct tensor *keys, *values; /* [layers] of [S, context, d] */
	struct cached_layer *layer;   /* [layers]: the weights and caches of one evaluation */
	int32_t *host_token, *host_position, *host_limit, *host_last, *host_at, *host_patch_row;
	float *host_picture;          /* [sequences, E] */
	int64_t evaluations;
	/* of the run at hand */
	const struct sampler_options *o;
	const struct sampler_watch *watch;
	int64_t count, total;         /* prompts, and sequences with the unconditional ones */
	struct sequence *sequence;    /* [total] */
};

/* Computes the elements fed..until of every sequence; LAST has the outputs of those that ended a
 * feed. */
void sampler_feed(struct sampler *s);
/* Draws the pictures of all sequences in state SEQUENCE_PICTURE, whose BOI has been fed, into the
 * latents of their last segments. TF_ECANCELLED. */
int sampler_denoise(struct sampler *s, struct err *e);
/* The next token of each prompt from LAST, among ids below `bound`; out [count]. */
void sampler_draw_tokens(struct sampler *s, int32_t bound, int32_t *out);

#endif
