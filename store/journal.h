/* SPDX-License-Identifier: Apache-2.0
 * The journal of a store: a file of fixed size beside the environment, to which each commit appends
 * its changes by one synced write. A commit of LMDB's own writes pages all over its file, syncs
 * them, then writes and syncs its root page; here it is one write over blocks that are there
 * already, so the file system has nothing of its own to put down either. state.c applies the
 * changes to the environment at once, in a transaction that it commits ("folds") when the journal
 * is full or the daemon idle, and again after a crash.
 *
 * The environment says to which epoch, a random number, the journal belongs; records of another are
 * nothing. A record: epoch, place in it, length, hash (8 bytes each, big-endian), changes. Who
 * reads stops at the first that is not whole: it was never acknowledged. */
#ifndef STORE_JOURNAL_H
#define STORE_JOURNAL_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JOURNAL_FILE "journal"

struct journal;

/* A change: value NULL deletes. */
typedef int (*journal_fn)(void *arg, unsigned table, const void *key, size_t key_len,
			  const void *value, size_t len, struct err *e);

/* Opens the journal in folder, or makes an empty one of LIMIT_JOURNAL_BYTES. */
int journal_open(const char *folder, struct journal **out, struct err *e);
void journal_close(struct journal *j); /* NULL is fine */
/* Goes to the end of what is there of the epoch, giving each change to fn (may be NULL). */
int journal_read(struct journal *j, uint64_t epoch, journal_fn fn, void *arg, struct err *e);
/* Begins anew: what is there is in the environment, which names this epoch. */
void journal_begin(struct journal *j, uint64_t epoch);
uint64_t journal_new_epoch(void); /* never 0 */
bool journal_empty(const struct journal *j); /* nothing was written in this epoch */

/* Notes a change for the next write; of a part: for the write after its end. */
void journal_note(struct journal *j, bool part, unsigned table, const void *key, size_t key_len,
		  const void *value, size_t len);
size_t journal_noted(const struct journal *j); /* bytes for the next write */
void journal_forget(struct journal *j);        /* them */
/* What was noted of the part goes to the rest, or is forgotten. */
void journal_part_end(struct journal *j, bool keep);
/* Whether what was noted has room. */
bool journal_fits(const struct journal *j);
/* Writes what was noted as one record; returns when it is on disk. */
int journal_write(struct journal *j, struct err *e);

#endif
