/* SPDX-License-Identifier: Apache-2.0
 * Generation over a cache of keys and values, for many sequences at once.
 *
 * A sequence begins with its prompt (texts and clean pictures), laid out as in training with BOS
 * and no EOS. Then, by mode:
 *	SAMPLE_IMAGE	BOI, a picture, done
 *	SAMPLE_TEXT	tokens until EOS, max_tokens or a full context; BOI cannot be drawn
 *	SAMPLE_FREE	tokens; BOI begins a picture, EOI is appended after it and tokens
 *			go on, until EOS, max_tokens, max_images or a full context
 * A picture: P patches of noise, `steps` evaluations of the model, each overwriting the patches
 * and their keys and values; the last lands on the clean latent, which later tokens attend to
 * (cache refreshed once with time value 1). Guidance other than 1 runs the unconditional branch
 * BOS BOI p EOI EOS beside it in the same batch.
 *
 * A picture's first noise is the stream (seed, PHILOX_DRAW_START, sampler_stream(index, ordinal,
 * 0)), the noise of DDPM step k is (seed, PHILOX_DRAW_STEP, sampler_stream(index, ordinal, k));
 * tokens are drawn with philox_uniform(seed, PHILOX_TEXT, index, position). So neither depends on
 * what else is in the batch. */
#ifndef MODEL_SAMPLER_H
#define MODEL_SAMPLER_H

#include "model/schedule.h"
#include "model/sequence.h"
#include "model/transformer.h"

enum sampler_mode { SAMPLE_IMAGE, SAMPLE_TEXT, SAMPLE_FREE };
enum sampler_end { END_EOS, END_TOKENS, END_IMAGES, END_CONTEXT };

struct sampler_options {
	enum sampler_mode mode;
	enum schedule_kind schedule;
	int64_t steps;                /* model evaluations of a picture, 1..TIMESTEPS */
	float guidance;               /* 1: one branch */
	float clamp;                  /* of the predicted clean latent; 0: none */
	float temperature;            /* 0: the likeliest token */
	float top_p;                  /* (0, 1]; 1: all */
	uint64_t seed;
	int64_t max_tokens;           /* drawn tokens of a sequence, EOS and BOI not counted */
	int64_t max_images;           /* SAMPLE_FREE */
};

struct sampler_prompt {
	const struct segment *segment;   /* pictures have time 0; may be none */
	int64_t segments;
	uint64_t index;               /* of the sample in the whole job: keys its noise; < 2^39 */
};

/* What came after the prompt, in order: texts and pictures. */
struct sampler_part {
	enum segment_kind kind;
	int32_t *token;
	int64_t count;
	float *latent;                /* [h, w, c], normalised */
};

struct sampler_result {
	struct sampler_part *part;
	int64_t parts;
	enum sampler_end end;
};
void sampler_result_release(struct sampler_result *r);

/* Progress: `done` of `total` in units of the phase ("prompt", "token", "denoise"). Returning true
 * stops the run with TF_ECANCELLED. */
struct sampler_watch {
	bool (*step)(void *arg, const char *phase, int64_t done, int64_t total);
	void *arg;
};

struct sampler;

uint64_t sampler_stream(uint64_t index, int64_t ordinal, int64_t step);

/* Positions a sequence needs at most with these options: what `context` must be. */
int64_t sampler_context(const struct dims *dims, const struct sampler_options *o,
			int64_t prompt_length);
/* Positions of a prompt: BOS and its segments. */
int64_t sampler_prompt_length(const struct dims *dims, const struct sampler_prompt *p);

/* Adds the sampler's memory to out->activations. */
void sampler_memory(const struct dims *dims, int64_t sequences, int64_t context, bool guided,
		    struct memory_plan *out);
/* Room for `sequences` at once with `context` positions each (at most the model's rotary
 * positions); guided: with an unconditional branch beside each. m is borrowed and may be one that
 * is being trained. TF_ENOMEM. */
int sampler_new(struct transformer *m, int64_t sequences, int64_t context, bool guided,
		struct sampler **out, struct err *e);
void sampler_free(struct sampler *s);
/* Whether it was made with these: then it does what a new one would. */
bool sampler_is_for(const struct sampler *s, int64_t sequences, int64_t context, bool guided);
/* The same model lies at m now. */
void sampler_move(struct sampler *s, struct transformer *m);

/* Runs n prompts, `sequences` at a time. On success result[0..n-1] are the caller's to release; on
 * failure nothing is owned. TF_EINVALID for wrong options or segments; TF_ELIMIT, before anything
 * is computed, when a prompt does not fit, or its picture would not; TF_ECANCELLED. watch may be
 * NULL. */
int sampler_run(struct sampler *s, const struct sampler_options *o,
		const struct sampler_prompt *prompt, int64_t n, const struct sampler_watch *watch,
		struct sampler_result *result, struct err *e);

/* ---- many runs at once
 * Prompts of several runs, each with options of its own, step together: they are admitted while
 * others are under way, and leave when they have ended. Those of one sampler are of one mode, and
 * guided or not alike. What comes of one is what comes of it alone, but for the rounding of
 * products of another size. */
struct sampler_entry {
	const struct sampler_options *options;   /* these two live until it has left */
	const struct sampler_prompt *prompt;
	int64_t done;                  /* steps of its picture, or tokens */
	bool ended;                    /* result is the caller's */
	struct sampler_result result;
};

/* Whether these options and prompts are possible at all with so many positions; errors as
 * sampler_run's. */
int sampler_check(const struct dims *dims, int64_t context, const struct sampler_options *o,
		  const struct sampler_prompt *prompt, int64_t n, struct err *e);
bool sampler_is_guided(const struct sampler_options *o);   /* needs the other branch */
/* Sequences that are free. */
int64_t sampler_room(const struct sampler *s);
/* Takes in n checked prompts for which there is room; free ones only where nothing is under way. */
void sampler_admit(struct sampler *s, struct sampler_entry *entry, int64_t n);
/* What the next step does. */
enum sampler_phase { SAMPLER_RESTS, SAMPLER_WRITES, SAMPLER_BEGINS, SAMPLER_DRAWS };
enum sampler_phase sampler_next(const struct sampler *s);
/* The next tokens, prompts, or denoising steps of all: a few where the backend has graphs, else
 * one. */
void sampler_step(struct sampler *s);
/* Entries that have ended leave, the last ones take their places. */
void sampler_close_up(struct sampler *s);
/* Those of n entries that are in leave as they are, and all that have ended. */
void sampler_drop(struct sampler *s, const struct sampler_entry *entry, int64_t n);
void sampler_clear(struct sampler *s);   /* all leave */
/* *s with other sizes, at least those in use; what is under way goes on. On failure it stays. */
int sampler_resize(struct sampler **s, int64_t sequences, int64_t context, struct err *e);
int64_t sampler_count(const struct sampler *s);     /* prompts that are in, ended ones too */
int64_t sampler_ended(const struct sampler *s);     /* of those */
int64_t sampler_positions(const struct sampler *s); /* the context */

/* Model evaluations of patches (both branches count as one) since sampler_new. */
int64_t sampler_evaluations(const struct sampler *s);

#endif
