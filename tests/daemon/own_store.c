/* SPDX-License-Identifier: Apache-2.0
 * A store of a test's own; see own_store.h. */
#include "tests/daemon/own_store.h"
#include "tests/test.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <stdlib.h>

#define DAEMON_MAP_BYTES (64u << 20) /* as harness.c starts it */

int own_store_open(char **folder, struct state **store, struct err *e)
{
	char template[] = "/tmp/tfs-XXXXXX";

	err_clear(e);
	if (!mkdtemp(template))
		return err_errno(e, "%s", template);
	*folder = xstrdup(template);
	return state_open(*folder, OWN_STORE_MAP_BYTES, store, e);
}

void own_store_close(char **folder, struct state **store)
{
	state_close(*store);
	*store = NULL;
	dir_remove(*folder, NULL);
	xfree(*folder);
}

struct state *own_store_of(const char *state_folder)
{
	char *path = xasprintf("%s/store", state_folder);
	struct err e = ERR_INIT;
	struct state *s = NULL;

	assert_ok(state_open(path, DAEMON_MAP_BYTES, &s, &e), &e);
	xfree(path);
	return s;
}
