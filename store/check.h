/* SPDX-License-Identifier: Apache-2.0
 * Whether a state folder is sound: every record of its store can be read, the indexes agree with
 * the records, and the files that the records speak of are there. Changes nothing. */
#ifndef STORE_CHECK_H
#define STORE_CHECK_H

#include "store/state.h"

struct check_report {
	uint64_t records;  /* looked at */
	uint64_t problems; /* found */
};

/* problem gets a sentence for each; borrowed for the call. folder: the state's; NULL: look at the
 * records alone. Fails only when it cannot tell. */
typedef void (*check_fn)(void *arg, const char *problem);
int store_check(struct state *s, const char *folder, check_fn problem, void *arg,
		struct check_report *out, struct err *e);

#endif
