/* SPDX-License-Identifier: Apache-2.0
 * Datasets: a folder with manifest.json, bad.jsonl and LMDB shards (shard-0000.mdb ...).
 * doc/store.md has the layout. A dataset is written by one dataset_writer in a staging folder,
 * its manifest last; from then on nothing in it changes, so that readers map it without locks
 * and read records in place. A reader opens in constant time and finds a sample in constant time.
 *
 * What is damaged gives TF_ECORRUPT with the shard's name: sizes are checked when opened, a
 * record's bounds and checksum whenever it is read, everything by dataset_verify. A damaged
 * page of LMDB's own tree may still end the process that reads it: dataset_verify hashes a
 * shard's file before it looks inside, so it is safe anywhere; let another process than the
 * daemon do the rest. */
#ifndef STORE_DATASET_H
#define STORE_DATASET_H

#include "lib/buf.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DATASET_MANIFEST "manifest.json"
#define DATASET_BAD "bad.jsonl"              /* lines of {"file": ..., "reason": ...} */
#define DATASET_HASH_TEXT 33                 /* 32 hex digits and the zero */
#define DATASET_CHANNELS_MAX 64              /* of a latent */
#define DATASET_SIDE_MAX 16384               /* of a picture or latent */

enum dataset_kind {
	DATASET_TEXT,     /* "text": text alone */
	DATASET_IMAGES,   /* "images": pictures as pixels, captions where there are any */
	DATASET_PAIRS,    /* "pairs": pictures as latents (small ones as pixels too) and captions */
	DATASET_KINDS
};

enum dataset_split { DATASET_TRAIN, DATASET_HELDOUT, DATASET_SPLITS };

const char *dataset_kind_name(enum dataset_kind kind);
const char *dataset_split_name(enum dataset_split split);   /* "train", "heldout" */
/* TF_EINVALID for another word than train, heldout. */
int dataset_split_parse(const char *word, enum dataset_split *out, struct err *e);

/* One sample, as given to a writer and as found by a reader. A reader's pointers lead into the
 * map and live until dataset_close; latents and tokens may be unaligned: use the functions
 * below. */
struct sample {
	const char *name;            /* zero-terminated; from its file, never empty */
	const char *text;            /* caption or document, UTF-8, zero-terminated; "" without */
	size_t text_bytes;
	const void *token;           /* bare tokens; NULL when imported without a tokenizer */
	size_t tokens;
	int token_bytes;             /* 2 or 4 (given to a writer: 4, int32_t) */
	const uint8_t *pixels;       /* [height, width, 3] RGB; NULL when not kept */
	int height, width;
	const void *latent;          /* [rows, columns, channels] bf16, raw; NULL without a VAE */
	int rows, columns, channels;
};

/* Copies count tokens from `first` on. The range must lie within the sample. */
void sample_tokens(const struct sample *s, size_t first, size_t count, int32_t *out);
/* Copies the latent as f32, rows x columns x channels. mean and deviation (channels each)
 * normalise it: (x - mean) / deviation; NULL: raw. */
void sample_latent(const struct sample *s, const float *mean, const float *deviation, float *out);

struct dataset_info {
	enum dataset_kind kind;
	uint64_t samples[DATASET_SPLITS];
	uint64_t tokens[DATASET_SPLITS];     /* sums of bare tokens; 0 without a tokenizer */
	uint64_t text_bytes[DATASET_SPLITS];
	uint64_t captions;                   /* samples with a text */
	uint64_t longest_tokens;             /* of one sample */
	uint64_t bytes;                      /* of the shards' files */
	uint64_t bad;                        /* samples left out; bad.jsonl lists them */
	char tokenizer[DATASET_HASH_TEXT];   /* hash, or "" */
	int32_t pieces;                      /* of the tokenizer */
	char vae[DATASET_HASH_TEXT];         /* hash, or "" */
	int height, width;                   /* of every picture; 0: text */
	bool pixels;                         /* whether pixels are kept */
	int rows, columns, channels;         /* of every latent; 0: none */
	float mean[DATASET_CHANNELS_MAX], deviation[DATASET_CHANNELS_MAX];   /* of the VAE */
	double holdout_percent;
	char hash[DATASET_HASH_TEXT];        /* of the content: the same for the same import */
	char format[32];                     /* what was imported: "folder", "tsv", ... */
};

struct dataset;

/* Opens a whole dataset for reading, from one thread at a time. Reads the manifest and checks the
 * shards' sizes: TF_ENOTFOUND, TF_EVERSION, TF_ECORRUPT. */
int dataset_open(const char *folder, struct dataset **out, struct err *e);
void dataset_close(struct dataset *d);
const struct dataset_info *dataset_info(const struct dataset *d);
/* Sample i of a split, 0 <= i < samples[split] (TF_EINVALID). TF_ECORRUPT names shard and
 * sample. */
int dataset_get(struct dataset *d, enum dataset_split split, uint64_t i, struct sample *out,
		struct err *e);

/* Facts of a manifest without opening the shards. */
int dataset_read_info(const char *folder, struct dataset_info *out, struct err *e);
/* Reads everything again: sizes and hashes of the files, then every record's bounds and checksum,
 * and the dataset's hash. Appends a JSON object {"good": bool, "samples": n, "bytes": n,
 * "damage": [sentence...]} to report. *good says the same. Fails only when it cannot tell.
 * `progress` (may be NULL) is told bytes done and total; a negative return stops it. */
typedef int dataset_progress(void *arg, uint64_t done, uint64_t total);
int dataset_verify(const char *folder, struct buf *report, bool *good, dataset_progress *progress,
		   void *arg, struct err *e);
/* Appends count samples drawn by seed as a JSON array: name, split, text, tokens (their number),
 * token ids, picture and latent sizes. */
int dataset_sample_json(const char *folder, uint32_t count, uint64_t seed, struct buf *out,
			struct err *e);
/* Appends the manifest's facts as a JSON object for people and programs (`data show`). */
int dataset_info_json(const char *folder, struct buf *out, struct err *e);

/* ---- writing ---- */

/* Whether a name is held out: in the list (whole, or its last path component), or, when the
 * list is empty, xxh64(name) mod 10,000 < 100 x percent. A list none of whose names was added makes
 * dataset_writer_finish fail with TF_EINVALID. */
struct dataset_holdout {
	double percent;              /* 0..100 */
	char *const *name;           /* borrowed; sorted inside by the writer */
	size_t names;
};
bool dataset_holdout_by_hash(const char *name, double percent);

struct dataset_plan {
	enum dataset_kind kind;
	const char *tokenizer;       /* hash; NULL: no tokens */
	int32_t pieces;
	const char *vae;             /* hash; NULL: no latents */
	int height, width;           /* of pictures; 0: text */
	bool pixels;
	int rows, columns, channels; /* of latents */
	const float *mean, *deviation;
	struct dataset_holdout holdout;
	const char *format;          /* for people; at most 31 bytes */
	uint64_t map_bytes;          /* of a shard; 0: DATASET_MAP_BYTES */
};

#define DATASET_MAP_BYTES (64ull << 30)

struct dataset_writer;

/* Starts in an empty folder, or goes on from what an interrupted writer made durable there (the
 * plan must be the same: TF_EMISMATCH). Everything in the plan is copied. */
int dataset_writer_open(const char *folder, const struct dataset_plan *plan,
			struct dataset_writer **out, struct err *e);
/* What the last durable sample was given as its position; "" at the start. */
const char *dataset_writer_position(const struct dataset_writer *w);
/* Counts so far, what is not durable yet included. */
uint64_t dataset_writer_samples(const struct dataset_writer *w);
uint64_t dataset_writer_bad_samples(const struct dataset_writer *w);
/* Adds a sample; position says where the source goes on after it. The sample must be as planned
 * (TF_EINVALID). Durable only later: what follows the last commit is read again after a kill. */
int dataset_writer_add(struct dataset_writer *w, const struct sample *s, const char *position,
		       struct err *e);
/* Notes a sample that was left out. */
int dataset_writer_bad(struct dataset_writer *w, const char *file, const char *reason,
		       const char *position, struct err *e);
/* Makes what was added durable as far as blocks are full (a stop order). */
int dataset_writer_sync(struct dataset_writer *w, struct err *e);
/* Writes the last block, bad.jsonl and the manifest, all synced. info may be NULL. */
int dataset_writer_finish(struct dataset_writer *w, struct dataset_info *info, struct err *e);
void dataset_writer_close(struct dataset_writer *w);

#endif
