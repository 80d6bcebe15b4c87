/* SPDX-License-Identifier: Apache-2.0
 * Who may speak with the daemon: a user is a public key with a name and a role. */
#ifndef STORE_USERS_H
#define STORE_USERS_H

#include "proto/keys.h"
#include "proto/limits.h"
#include "store/record.h"
#include "store/store.pb-c.h"

/* Least to most, as in proto/requests.def; a worker's key belongs to one attempt and is no user. */
enum user_role { ROLE_NONE, ROLE_READER, ROLE_MEMBER, ROLE_ADMIN, ROLE_WORKER };

const char *role_name(enum user_role role);  /* "reader" ...; never NULL */
enum user_role role_parse(const char *name); /* ROLE_NONE when it is no role of people */

/* key: Z85, 40 characters. */
int user_put(struct state *s, const char *key, Tf__UserRecord *record, struct err *e);
/* TF_ENOTFOUND without a sentence. The caller frees *out with record_free. */
int user_get(struct state *s, const char *key, Tf__UserRecord **out, struct err *e);
/* One that is not there is fine. */
int user_delete(struct state *s, const char *key, struct err *e);

struct user {
	char key[KEY_CHARS + 1];
	char name[LIMIT_NAME_BYTES + 1];
	enum user_role role;
	int64_t created; /* ms since 1970 */
	bool configured;
};
/* All of them, an entry for each key; *out is the caller's (xfree). */
int users_list(struct state *s, struct user **out, size_t *count, struct err *e);
/* Whether a line of the configuration is "NAME ROLE KEY"; says what is wrong with which user. */
int users_line_check(const char *line, struct err *e);
/* Makes the configured users exactly these `count` ("NAME ROLE KEY" each): others that came from
 * the configuration go, users that were enrolled otherwise stay. */
int users_configure(struct state *s, const char *const *line, size_t count, struct err *e);

#endif
