/* SPDX-License-Identifier: Apache-2.0
 * Inside the sampler: its tensors by name, and the sequences it runs. sampler.c decides what is
 * drawn, sampler_batch.c who is in, sampler_device.c computes what the host lays out,
 * sampler_steps.c what runs without it. S sequences of the cache: the prompts', then as many
 * unconditional ones. */
#ifndef MODEL_SAMPLER_PLAN_H
#define MODEL_SAMPLER_PLAN_H

#include "model/plan.h"
#include "model/sampler.h"

/* Tokens and denoising steps that run before the host looks, where the backend has graphs. */
#define TOKENS_AHEAD 16
#define STEPS_AHEAD 4

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
	X(DRAWN, DT_I32, n, 0, 0, 0) \
	X(PICTURE, DT_F32, n, E, 0, 0)            /* x_t, or a clean latent */ \
	X(STEP_NOISE, DT_F32, n, E, 0, 0) \
	X(STREAM, DT_I64, n, 0, 0, 0)             /* of the first noise; the samples' numbers */ \
	X(STEPS, DT_F32, STEPS_AHEAD, step, 0, 0) /* what differs, a row a denoising step */ \
	X(STEP, DT_F32, step, 0, 0, 0)            /* the step's row */ \
	X(COUNTER, DT_I32, 1, 0, 0, 0)            /* steps run: denoising, or tokens */ \
	X(HISTORY, DT_I32, TOKENS_AHEAD, n, 0, 0) /* tokens drawn, not read by the host yet */ \
	X(TIME, DT_F32, n, 0, 0, 0)               /* of clean pictures */ \
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

enum sampler_graph { GRAPH_DENOISE, GRAPH_TOKEN, SAMPLER_GRAPHS };

enum sequence_state { SEQUENCE_TEXT, SEQUENCE_PICTURE, SEQUENCE_DONE };

/* One sequence of the cache: everything it holds, laid out as a document. */
struct sequence {
	struct sampler_entry *entry;           /* what it is run for; NULL: unconditional */
	const struct sampler_options *o;       /* of the entry */
	const struct sampler_prompt *prompt;   /* NULL: unconditional */
	struct segment *segment;      /* the prompt's, then drawn pictures */
	int64_t segments;
	struct element *element;      /* [context + 1] */
	int32_t length;               /* elements laid out */
	int32_t fed;                  /* elements whose keys and values are in the cache */
	int32_t until;                /* how far sampler_feed goes; fed: the sequence is idle */
	int32_t picture;              /* element of the first patch of the picture being drawn */
	enum sequence_state state;
	int64_t step;                 /* denoising steps done; -1: the picture has no noise yet */
	int64_t tokens, pictures;     /* drawn */
	struct sampler_result result;
};

/* Prompts side by side that an operation can take in one call: of the same options, as far as it
 * sees them, at the same denoising step. */
struct alike {
	int64_t first, n;
	struct sampler_options o;
	int64_t step;
};

/* What a graph was recorded for, beside what is alike. */
struct recorded {
	int64_t count, total;
	int32_t bound;
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
	int32_t *host_drawn;          /* [TOKENS_AHEAD, sequences] */
	int64_t tokens_ahead, steps_ahead;
	int64_t evaluations;
	/* of the prompts at hand */
	enum sampler_mode mode;
	int64_t branches;             /* 2: with an unconditional one beside each */
	int64_t count, total;         /* prompts, and sequences with the unconditional ones */
	struct sequence *sequence;    /* [total]; the unconditional ones are all the same */
	int64_t first, span;          /* sequences of the evaluation at hand */
	bool laid;                    /* the rows are those of the pictures being drawn */
	int32_t bound;                /* tokens below it may be drawn */
	struct alike *alike[SAMPLER_GRAPHS];   /* [sequences] */
	int64_t alikes[SAMPLER_GRAPHS];
	void *graph[SAMPLER_GRAPHS];  /* recorded steps, also of earlier prompts; or NULL */
	struct recorded recorded[SAMPLER_GRAPHS];
};

/* Computes the elements fed..until of n sequences from `first` on; LAST has the outputs of those
 * that ended a feed. */
void sampler_feed(struct sampler *s, int64_t first, int64_t n);
/* First noise for the pictures that have none yet and whose BOI has been fed. */
void sampler_begin_pictures(struct sampler *s);
/* The next steps of all pictures; those that are through are in the latents of their sequences'
 * last parts. */
void sampler_denoise(struct sampler *s);
/* The next token of each prompt from LAST, among ids below s->bound; out [count]. */
void sampler_draw_tokens(struct sampler *s, int32_t *out);
/* n tokens of each prompt in state SEQUENCE_TEXT, whose last element alone is not fed yet: a row of
 * [count] a token, valid until the next call. All but the last of them are fed; fed and length of
 * the sequences are left to the caller. */
const int32_t *sampler_write(struct sampler *s, int64_t n);
void sampler_forget_graphs(struct sampler *s);
/* ---- of sampler.c, for sampler_batch.c: lays out what the entry (NULL: nothing) begins with */
void sampler_begin(struct sampler *s, struct sequence *q, struct sampler_entry *entry);
/* Feeds those in `state` among n sequences from `first` on: to their end (text; short of `less`
 * elements) or to their picture's BOI. */
void sampler_feed_state(struct sampler *s, enum sequence_state state, int64_t first, int64_t n,
			int32_t less);

/* ---- of sampler_device.c, for sampler_steps.c */
void sampler_send(struct sampler *s, enum sampler_tensor to, const void *host, int64_t n);
/* The prompts' rows of a tensor; n rows from `first` on; n pictures likewise. */
struct tensor sampler_prompts(const struct sampler *s, enum sampler_tensor t);
struct tensor sampler_rows(struct tensor t, int64_t first, int64_t n);
struct tensor sampler_pictures(const struct sampler *s, enum sampler_tensor t, int64_t first,
			       int64_t n);
void sampler_lay_pictures(struct sampler *s);
void sampler_lay_tokens(struct sampler *s);
/* n rows of PICTURE from `first` on with these time values, through the patch layer, to the first
 * rows of PATCH_X. */
void sampler_embed_patches(struct sampler *s, int64_t first, int64_t n, struct tensor times);
/* X_IN of span x n rows through all layers to NORMED, the final norm's output; or, where logits
 * have data, to those of the first rows alone. */
void sampler_blocks(struct sampler *s, int64_t n, struct tensor logits);

#endif
