/* SPDX-License-Identifier: Apache-2.0
 * A store of a test's own, in a temp folder and without a daemon; and that of a daemon which does
 * not run. */
#ifndef TESTS_DAEMON_OWN_STORE_H
#define TESTS_DAEMON_OWN_STORE_H

#include "store/state.h"

#define OWN_STORE_MAP_BYTES (16u << 20)

/* An empty store in a new folder; e, which the program's tests share, is cleared before. */
int own_store_open(char **folder, struct state **store, struct err *e);
/* Closes what is open of it, removes the folder, and sets both to NULL. */
void own_store_close(char **folder, struct state **store);

/* That of the daemon's state folder, made if it is absent; an error ends the test. state_close. */
struct state *own_store_of(const char *state_folder);

#endif
