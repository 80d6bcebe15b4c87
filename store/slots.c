/* SPDX-License-Identifier: Apache-2.0
 * Slots in the store; see slots.h. */
#include "config.h"
#include "store/slots.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <string.h>

int slot_put(struct state *s, const char *name, Tf__SlotRecord *record, struct err *e)
{
	CHECK(*name && strlen(name) <= LIMIT_NAME_BYTES);
	return record_put(s, STATE_SLOTS, name, strlen(name), &record->base, e);
}

int slot_get(struct state *s, const char *name, Tf__SlotRecord **out, struct err *e)
{
	return record_get(s, STATE_SLOTS, name, strlen(name), &tf__slot_record__descriptor, out, e);
}

int slot_delete(struct state *s, const char *name, struct err *e)
{
	return state_delete(s, STATE_SLOTS, name, strlen(name), e);
}

struct walk {
	slot_fn fn;
	void *arg;
	struct err *e;
};

static int walk_slot(void *arg, struct state_value key, struct state_value value)
{
	struct walk *w = arg;
	Tf__SlotRecord *r = NULL;
	char name[LIMIT_NAME_BYTES + 1];
	int rc;

	FAIL_IF(key.len > LIMIT_NAME_BYTES, w->e, TF_ECORRUPT, "a slot's name of %zu bytes",
		key.len);
	memcpy(name, key.data, key.len);
	name[key.len] = 0;
	TRY(record_unpack(value, &tf__slot_record__descriptor, &r, w->e));
	rc = w->fn(w->arg, name, r);
	record_free(r);
	return rc;
}

int slots_each(struct state *s, slot_fn fn, void *arg, struct err *e)
{
	struct walk w = { fn, arg, e };

	return state_each(s, STATE_SLOTS, NULL, 0, false, walk_slot, &w, e);
}
