/* SPDX-License-Identifier: Apache-2.0
 * The files of an import: what PATH is, and which files belong to it. */
#ifndef CLIENT_FILES_H
#define CLIENT_FILES_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct file_entry {
	char *path;        /* relative to the root, plain */
	uint64_t size;
};

struct file_set {
	char *root;
	struct file_entry *entry;  /* the list first, then by name */
	size_t count, room;
	bool single;               /* one file, sent as it is */
	size_t images, texts, lists, tars, others;   /* others were left out */
	size_t missing;            /* pictures that a list names and that are not there */
	char *first_missing;
};

/* TF_ENOTFOUND, TF_EINVALID (nothing of use in it; a list that names files outside its folder). On
 * failure nothing is owned. */
int file_set_read(const char *path, struct file_set *out, struct err *e);
void file_set_release(struct file_set *f);
/* "images+captions", "pixels", "text", "webdataset". */
const char *file_set_kind(const struct file_set *f);

#endif
