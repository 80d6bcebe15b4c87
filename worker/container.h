/* SPDX-License-Identifier: Apache-2.0
 * The files of one path given to an import: a folder, a tar (WebDataset), or a single file, all
 * seen the same way: a list of entries, sorted by name with lists (.tsv, .jsonl) first, so that
 * the same files give the same order whether they come in a folder or a tar. Nothing outside
 * the folder or tar is ever opened. */
#ifndef WORKER_CONTAINER_H
#define WORKER_CONTAINER_H

#include "lib/buf.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum entry_kind { ENTRY_OTHER, ENTRY_LIST, ENTRY_IMAGE, ENTRY_TEXT, ENTRY_JSON };

struct entry {
	char *name;                  /* relative, plain, below the folder or in the tar */
	enum entry_kind kind;
	uint64_t offset, size;       /* offset in the tar; 0 otherwise */
};

struct container {
	char *path;
	char *root;                  /* folder of the entries; NULL: a tar */
	int tar;                     /* descriptor of the tar, or -1 */
	struct entry *entry;
	size_t count, room;
};

/* TF_ENOTFOUND, TF_EINVALID (neither, or a damaged tar). On failure nothing is owned. */
int container_open(const char *path, struct container *out, struct err *e);
void container_close(struct container *c);
/* The entry of a name; NULL when there is none. */
const struct entry *container_find(const struct container *c, const char *name);
/* How many entries of a kind. */
size_t container_kind_count(const struct container *c, enum entry_kind kind);
/* Appends the whole content, at most max bytes. */
int container_read(const struct container *c, const struct entry *entry, size_t max,
		   struct buf *out, struct err *e);
enum entry_kind entry_kind_of(const char *name);
/* The name without its ending (".png"); the caller frees it. */
char *entry_stem(const char *name);

/* Reading an entry line by line. */
struct lines {
	int fd;
	uint64_t at, end;            /* next byte to take from the descriptor, end of the entry */
	uint64_t offset;             /* in the entry: where the next line begins */
	uint64_t start;              /* of the entry in its file */
	uint64_t number;             /* of the line last returned, from 1 */
	struct buf ahead;            /* read, not yet returned; from `taken` on */
	size_t taken;
	bool own_fd;
};

/* Begins at offset, where line number + 1 begins. */
int lines_open(struct lines *l, const struct container *c, const struct entry *entry,
	       uint64_t offset, uint64_t number, struct err *e);
void lines_close(struct lines *l);
/* The next line without its end (\n or \r\n), valid until the next call; *line NULL: no more. A
 * line over LIMIT_LINE_BYTES is passed over: TF_ELIMIT, and the next call goes on behind it. */
int lines_next(struct lines *l, char **line, size_t *bytes, struct err *e);

#endif
