/* SPDX-License-Identifier: Apache-2.0
 * Samples of an import, one after the other, out of folders, tars, lists and text files:
 *
 *	lists		.tsv (picture, caption) or .jsonl; pictures beside the list or in the tar
 *	pictures	each with its caption in a .txt or .json of the same name, if there is one
 *	text files	one document each
 *	text lines	a single .txt: one document a line
 *
 * In .jsonl a line names a picture (image, image_path, path, file, file_name or filename) and
 * has a caption (caption or text), or has a text alone. The first path decides whether it is
 * pictures or texts; what does not fit is a bad sample. A place in the source is a short text,
 * so that an import goes on where it stopped. */
#ifndef WORKER_SOURCE_H
#define WORKER_SOURCE_H

#include "lib/buf.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SOURCE_POSITION_MAX 96

struct source;

enum source_what { SOURCE_END, SOURCE_SAMPLE, SOURCE_BAD };

/* What source_next found; lives until the next call. */
struct source_item {
	enum source_what what;
	const char *name;            /* of the sample; of the file that is bad */
	const char *text;            /* caption or document, UTF-8; why it is bad */
	size_t text_bytes;
	const void *picture;         /* the picture's file, encoded; NULL: text alone */
	size_t picture_bytes;
	const char *position;        /* where the source goes on after it */
};

/* format: NULL or "" to find out, or one of the words below. position: "" or an item's. */
int source_open(char *const *path, size_t paths, const char *format, const char *position,
		struct source **out, struct err *e);
void source_close(struct source *s);
/* From now on pictures are not read: items have texts alone, and a text may be empty. */
void source_skip_pictures(struct source *s);
/* "tsv", "jsonl", "pictures", "pictures+captions", "text files", "text lines". */
const char *source_format(const struct source *s);
bool source_has_pictures(const struct source *s);
/* Samples of the path being read; 0: not known. */
uint64_t source_total(const struct source *s);
/* Errors are those that end an import: a path that is not there, a damaged tar. */
int source_next(struct source *s, struct source_item *out, struct err *e);

#endif
