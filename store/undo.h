/* SPDX-License-Identifier: Apache-2.0
 * What records were before they were changed, so that the changes can be taken back. */
#ifndef STORE_UNDO_H
#define STORE_UNDO_H

#include "lib/buf.h"
#include "store/journal.h"

struct undo {
	struct undo_change *change;
	size_t count, room;
	struct buf bytes; /* keys and values of all */
};

/* Before a change of the record: value NULL, there is none. All is copied. */
void undo_note(struct undo *u, unsigned table, const void *key, size_t key_len, const void *value,
	       size_t len);
/* Gives what was there to fn (value NULL deletes), the last change first, until fn fails. */
int undo_each(const struct undo *u, journal_fn fn, void *arg, struct err *e);
void undo_clear(struct undo *u);
void undo_release(struct undo *u);

#endif
