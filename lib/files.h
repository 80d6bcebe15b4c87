/* SPDX-License-Identifier: Apache-2.0
 * Files: whole reads, durable writes, folders, and path checks. Every error names the path. */
#ifndef LIB_FILES_H
#define LIB_FILES_H

#include "lib/buf.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

/* Reads a whole regular file of at most max bytes (TF_ELIMIT beyond) and appends it to out. */
int file_read(const char *path, size_t max, struct buf *out, struct err *e);
/* Writes path whole or not at all: <path>.tmp, fsync, rename, fsync of the folder. mode as chmod.
 * */
int file_write(const char *path, const void *data, size_t len, unsigned mode, struct err *e);
/* The same, but that it is synced with the others of its folder by dir_sync alone. */
int file_put(const char *path, const void *data, size_t len, unsigned mode, struct err *e);
/* All bytes to a descriptor; retries short writes and EINTR. name is for the error. */
int file_write_all(int fd, const void *data, size_t len, const char *name, struct err *e);
int file_fsync(const char *path, struct err *e);         /* a file or a folder */
/* The folder that path lies in: its name there, which a sync of the file alone leaves out. */
int file_fsync_parent(const char *path, struct err *e);
/* Renames and syncs both parent folders. */
int file_rename(const char *from, const char *to, struct err *e);
bool file_exists(const char *path);
int64_t file_size(const char *path);                     /* -1 when it cannot be had */
/* with its parents; exists is fine */
int dir_make(const char *path, unsigned mode, struct err *e);
bool dir_is(const char *path);                           /* a folder, no link */
/* Syncs the regular files of a folder, not of those below, and their names: together, which costs
 * less than one after the other. */
int dir_sync(const char *path, struct err *e);
/* the whole tree or a file, no link followed */
int dir_remove(const char *path, struct err *e);
/* Makes the folder `to` (which may exist) like `from`: folders and regular files, no link followed.
 * share: hard links where the disk allows, for files that never change, and what is there already
 * stays; else copies with their modes. What vanishes meanwhile is left out,
 * `from` itself too (TF_ENOTFOUND). Not synced. *bytes (may be NULL) grows by the files' sizes. */
int dir_copy(const char *from, const char *to, bool share, uint64_t *bytes, struct err *e);
/* The same for one file. */
int file_copy(const char *from, const char *to, bool share, uint64_t *bytes, struct err *e);
int64_t dir_size(const char *path);                      /* bytes of the regular files below */
/* Calls fn for each entry (not . and ..), in name order; a negative return ends the walk and is
 * returned. */
int dir_each(const char *path, int (*fn)(void *arg, const char *name), void *arg, struct err *e);
/* True when rel is a plain relative path: not empty, no "..", no leading '/', no control bytes. */
bool path_is_plain(const char *rel);
/* The real path of `path` lies in the real folder root (or is it); links are resolved first. */
bool path_is_inside(const char *root, const char *path);

#endif
