/* SPDX-License-Identifier: Apache-2.0
 * Takes over a store that an earlier version of the program wrote. */
#ifndef STORE_UPGRADE_H
#define STORE_UPGRADE_H

#include "store/state.h"

/* Brings the store to TF_STORE_VERSION in one transaction, committed at the end. *from is the
 * version it had; the current one: nothing was to be done. */
int store_upgrade(struct state *s, uint64_t *from, struct err *e);

#endif
