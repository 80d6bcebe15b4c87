/* SPDX-License-Identifier: Apache-2.0
 * Tokenizers: SentencePiece behind a C interface. Text comes back exactly as it went in (identity
 * normalisation, no dummy prefix, bytes for what has no piece). Models made elsewhere may be used
 * when they have BOS and EOS; their normalisation is their own. One thread at a time a
 * tokenizer. */
#ifndef WORKER_SPM_H
#define WORKER_SPM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "lib/buf.h"
#include "lib/err.h"

#define SPM_FILE "tokenizer.model" /* its name in a tokenizer's folder */
#define SPM_HASH_TEXT 33
#define SPM_PIECES_LEAST 300 /* 256 bytes, the marks and some letters */

struct spm;

/* Reads a model file. TF_ENOTFOUND; TF_EINVALID: not a model, no BOS or EOS, too large. */
int spm_open(const char *path, struct spm **out, struct err *e);
/* The same from a tokenizer's folder. */
int spm_open_folder(const char *folder, struct spm **out, struct err *e);
void spm_close(struct spm *s);

int32_t spm_pieces(const struct spm *s);
int32_t spm_bos(const struct spm *s);
int32_t spm_eos(const struct spm *s);
const char *spm_hash(const struct spm *s); /* XXH3-128 of the file, as hex */
/* Whether decode(encode(text)) gives the text for a handful of hard texts. */
bool spm_is_exact(const struct spm *s);

/* Bare tokens of a text (no BOS, no EOS); *token is the caller's (xfree), never NULL. A text that
 * spells a control mark gives the tokens of its letters. TF_EINVALID: not UTF-8. */
int spm_encode(struct spm *s, const char *text, size_t bytes, int32_t **token, size_t *count,
	       struct err *e);
/* Appends the text of bare tokens; control marks give nothing. TF_EINVALID: an id out of range.
 * The bytes may end within a character (a text cut short). */
int spm_decode(struct spm *s, const int32_t *token, size_t count, struct buf *out, struct err *e);
/* How a piece is written, e.g. "<s>" or "▁the"; NULL out of range. Lives as long as s. */
const char *spm_piece(const struct spm *s, int32_t id);

/* Training: give texts one by one, then train. */
struct spm_corpus;
struct spm_corpus *spm_corpus_new(void);
/* Texts of any length; split into lines inside. What is not UTF-8, or beyond max_bytes of the
 * corpus, is left out and counted. */
void spm_corpus_add(struct spm_corpus *c, const char *text, size_t bytes);
uint64_t spm_corpus_bytes(const struct spm_corpus *c);
uint64_t spm_corpus_left_out(const struct spm_corpus *c);
void spm_corpus_free(struct spm_corpus *c);
/* Trains a BPE model of at most `pieces` pieces and writes it to path (whole or not at all). A
 * corpus that is too small for so many gets as many as it can have: *got says how many. The
 * same corpus gives the same file. TF_EINVALID: an empty corpus, pieces out of range. */
int spm_train(const struct spm_corpus *c, int32_t pieces, const char *path, int32_t *got,
	      struct err *e);

#ifdef __cplusplus
}
#endif

#endif
