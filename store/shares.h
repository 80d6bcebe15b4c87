/* SPDX-License-Identifier: Apache-2.0
 * What each user has had, as the scheduler counts it (daemon/share.h); the key is the name. */
#ifndef STORE_SHARES_H
#define STORE_SHARES_H

#include "store/record.h"
#include "store/store.pb-c.h"

int share_put(struct state *s, const char *user, Tf__ShareRecord *record, struct err *e);
int share_delete(struct state *s, const char *user, struct err *e);
typedef int (*share_fn)(void *arg, const char *user, const Tf__ShareRecord *record);
int shares_each(struct state *s, share_fn fn, void *arg, struct err *e);

#endif
