/* SPDX-License-Identifier: Apache-2.0
 * Inside the sampler: its tensors by name, and the sequences it runs. sampler.c decides what is
 * drawn, sampler_device.c computes what the host lays out, sampler_steps.c what runs without it. S
 * sequences of the cache: the prompts', then as many
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
	X(STEPS, DT_F32, TIMESTEPS, step, 0, 0)   /* what differs, a row a denoising step */ \
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
	int32_t *host_drawn;          /* [TOKENS_AHEAD, sequences] */
	int64_t tokens_ahead, steps_ahead;
	int64_t evaluations;
	/* of the run at hand */
	const struct sampler_options *o;
	const struct sampler_watch *watch;
	int64_t count, total;         /* prompts, and sequences with the unconditional ones */
	struct sequence *sequence;    /* [total] */
	int32_t bound;                /* tokens below it may be drawn */
	void *graph[SAMPLER_GRAPHS];  /* recorded steps of the group of prompts, or NULL */
};

/* Computes the elements fed..until of every sequence; LAST has the outputs of those that ended a
 * feed. */
void sampler_feed(struct sampler *s);
/* Draws the pictures of all sequences in state SEQUENCE_PICTURE, whose BOI has been fed, into the
 * latents of their last segments. TF_ECANCELLED. */
int sampler_denoise(struct sampler *s, struct err *e);
/* The next token of each prompt from LAST, among ids below s->bound; out [count]. */
void sampler_draw_tokens(struct sampler *s, int32_t *out);
/* n tokens of each prompt in state SEQUENCE_TEXT, whose last element alone is not fed yet: a row of
 * [count] a token, valid until the next call. All but the last of them are fed; fed and length of
 * the sequences are left to the caller. */
const int32_t *sampler_write(struct sampler *s, int64_t n);
/* At the end of a group of prompts: what was recorded is of no use to another. */
void sampler_forget_graphs(struct sampler *s);

/* ---- of sampler_device.c, for sampler_steps.c */
void sampler_send(struct sampler *s, enum sampler_tensor to, const void *host, int64_t n);
/* The prompts' rows of a tensor, their patches, n pictures. */
struct tensor sampler_prompts(const struct sampler *s, enum sampler_tensor t);
struct tensor sampler_patches(const struct sampler *s, enum sampler_tensor t);
struct tensor sampler_pictures(const struct sampler *s, enum sampler_tensor t, int64_t n);
void sampler_lay_pictures(struct sampler *s);
void sampler_lay_tokens(struct sampler *s);
/* PICTURE with these time values, through the patch layer, to PATCH_X. */
void sampler_embed_patches(struct sampler *s, struct tensor times);
/* X_IN of total x n rows through all layers to NORMED, the final norm's output. */
void sampler_blocks(struct sampler *s, int64_t n);

#endif
