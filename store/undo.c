/* SPDX-License-Identifier: Apache-2.0
 * Former records; see undo.h. */
#include "config.h"
#include "store/undo.h"
#include "lib/mem.h"

struct undo_change {
	unsigned table;
	bool had;           /* a record */
	size_t at, key_len; /* the key in `bytes`, its value after it */
	size_t len;
};

void undo_note(struct undo *u, unsigned table, const void *key, size_t key_len, const void *value,
	       size_t len)
{
	if (u->count == u->room) {
		u->room = u->room ? 2 * u->room : 64;
		u->change = xrealloc(u->change, u->room, sizeof *u->change);
	}
	u->change[u->count++] =
		(struct undo_change){ table, value != NULL, u->bytes.len, key_len, len };
	buf_append(&u->bytes, key, key_len);
	if (len)
		buf_append(&u->bytes, value, len);
}

int undo_each(const struct undo *u, journal_fn fn, void *arg, struct err *e)
{
	for (size_t i = u->count; i > 0; i--) {
		const struct undo_change *c = &u->change[i - 1];
		const char *key = u->bytes.data + c->at;

		TRY(fn(arg, c->table, key, c->key_len, c->had ? key + c->key_len : NULL, c->len,
		       e));
	}
	return 0;
}

void undo_clear(struct undo *u)
{
	u->count = 0;
	buf_clear(&u->bytes);
}

void undo_release(struct undo *u)
{
	xfree(u->change);
	buf_release(&u->bytes);
	*u = (struct undo){ 0 };
}
