/* SPDX-License-Identifier: Apache-2.0
 * What is kept of slots: drains that outlive the daemon, and the names of the GPUs found. */
#ifndef STORE_SLOTS_H
#define STORE_SLOTS_H

#include "store/record.h"
#include "store/store.pb-c.h"

int slot_put(struct state *s, const char *name, Tf__SlotRecord *record, struct err *e);
/* TF_ENOTFOUND without a sentence. The caller frees *out with record_free. */
int slot_get(struct state *s, const char *name, Tf__SlotRecord **out, struct err *e);
int slot_delete(struct state *s, const char *name, struct err *e);
typedef int (*slot_fn)(void *arg, const char *name, const Tf__SlotRecord *record); /* borrowed */
int slots_each(struct state *s, slot_fn fn, void *arg, struct err *e);

#endif
