/* SPDX-License-Identifier: Apache-2.0
 * Notices that wait to be delivered, by their rising number; see daemon/notice.h. */
#ifndef STORE_NOTICES_H
#define STORE_NOTICES_H

#include "store/record.h"
#include "store/store.pb-c.h"

int notice_put(struct state *s, uint64_t number, Tf__NoticeRecord *record, struct err *e);
int notice_delete(struct state *s, uint64_t number, struct err *e);
typedef int (*notice_fn)(void *arg, uint64_t number, const Tf__NoticeRecord *record); /* borrowed */
int notices_each(struct state *s, notice_fn fn, void *arg, struct err *e); /* oldest first */
int notices_forget(struct state *s, struct err *e);                        /* all of them */

#endif
