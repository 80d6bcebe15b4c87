/* SPDX-License-Identifier: Apache-2.0
 * Where the daemon is and with which keys it is spoken to: what was given, else the variables
 * TRANSFUSE_ENDPOINT and TRANSFUSE_STATE, else the daemon of `transfuse login`, else the
 * system's. */
#ifndef CLIENT_PLACE_H
#define CLIENT_PLACE_H

#include "lib/err.h"
#include "proto/keys.h"

/* What a person or program named; each may be NULL. Borrowed. */
struct place_given {
	const char *endpoint, *key_file, *server_key_file;
};

struct place {
	char *endpoint, *key_file;
	char server_key[KEY_CHARS + 1];
	struct key_pair keys;
	const char *found_by;     /* "--endpoint", "TRANSFUSE_STATE", ... */
};

/* The endpoint given, else that of TRANSFUSE_ENDPOINT, the daemon of TRANSFUSE_STATE, the
 * system's; with the keys for it. *out is released by the caller, after an error too. */
int place_find(const struct place_given *given, struct place *out, struct err *e);
void place_release(struct place *p);
char *place_own_file(const char *name); /* ~/.config/transfused/NAME; free it. NULL: no home */
char *place_own_key(void);        /* its client.key */

#endif
