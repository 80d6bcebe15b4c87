/* SPDX-License-Identifier: Apache-2.0
 * Users in the store; see users.h. */
#include "config.h"
#include "store/users.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

static const char *const role_names[] = { "none", "reader", "member", "admin", "worker" };

const char *role_name(enum user_role role)
{
	return (size_t)role < ARRAY_LEN(role_names) ? role_names[role] : "unknown";
}

enum user_role role_parse(const char *name)
{
	for (int i = ROLE_READER; i <= ROLE_ADMIN; i++)
		if (strcmp(role_names[i], name) == 0)
			return (enum user_role)i;
	return ROLE_NONE;
}

int user_put(struct state *s, const char *key, Tf__UserRecord *record, struct err *e)
{
	CHECK(strlen(key) == KEY_CHARS);
	CHECK(record->role >= ROLE_READER && record->role <= ROLE_ADMIN);
	return record_put(s, STATE_USERS, key, KEY_CHARS, &record->base, e);
}

int user_get(struct state *s, const char *key, Tf__UserRecord **out, struct err *e)
{
	if (strlen(key) != KEY_CHARS)
		return TF_ENOTFOUND;
	return record_get(s, STATE_USERS, key, KEY_CHARS, &tf__user_record__descriptor, out, e);
}

int user_delete(struct state *s, const char *key, struct err *e)
{
	return state_delete(s, STATE_USERS, key, KEY_CHARS, e);
}

struct listing {
	struct user *user;
	size_t count, room;
	struct err *e;
};

static int list_one(void *arg, struct state_value key, struct state_value value)
{
	struct listing *l = arg;
	Tf__UserRecord *r = NULL;
	struct user *u;

	TRY(record_unpack(value, &tf__user_record__descriptor, &r, l->e));
	if (l->count == l->room) {
		l->room = l->room ? 2 * l->room : 16;
		l->user = xrealloc(l->user, l->room, sizeof *l->user);
	}
	u = &l->user[l->count++];
	memset(u, 0, sizeof *u);
	memcpy(u->key, key.data, key.len < KEY_CHARS ? key.len : KEY_CHARS);
	snprintf(u->name, sizeof u->name, "%s", r->name);
	u->role = (enum user_role)r->role;
	u->created = r->created;
	u->configured = r->configured;
	record_free(r);
	return 0;
}

int users_list(struct state *s, struct user **out, size_t *count, struct err *e)
{
	struct listing l = { NULL, 0, 0, e };
	int rc = state_each(s, STATE_USERS, NULL, 0, false, list_one, &l, e);

	if (rc < 0)
		xfree(l.user);
	*out = l.user;
	*count = rc < 0 ? 0 : l.count;
	return rc;
}

struct stale {
	const char *const *line;
	size_t count;
	struct buf keys; /* KEY_CHARS each */
	struct err *e;
};

static int find_stale(void *arg, struct state_value key, struct state_value value)
{
	struct stale *st = arg;
	Tf__UserRecord *r = NULL;
	bool named = false;

	TRY(record_unpack(value, &tf__user_record__descriptor, &r, st->e));
	for (size_t i = 0; i < st->count; i++)
		named |= strstr(st->line[i], " ") && key.len == KEY_CHARS &&
			 strlen(st->line[i]) > KEY_CHARS &&
			 memcmp(st->line[i] + strlen(st->line[i]) - KEY_CHARS, key.data,
				KEY_CHARS) == 0;
	if (r->configured && !named)
		buf_append(&st->keys, key.data, key.len);
	record_free(r);
	return 0;
}

static int put_line(struct state *s, const char *line, struct err *e)
{
	char name[LIMIT_NAME_BYTES + 1], role[16], key[KEY_CHARS + 2], rest;
	Tf__UserRecord r = TF__USER_RECORD__INIT;
	int n = sscanf(line, "%100s %15s %41s %c", name, role, key, &rest);

	FAIL_IF(n != 3 || strlen(key) != KEY_CHARS, e, TF_EINVALID,
		"user '%s': expected NAME ROLE KEY, the key as %d characters of Z85", line,
		KEY_CHARS);
	FAIL_IF(role_parse(role) == ROLE_NONE, e, TF_EINVALID,
		"user '%s': role '%s' is none of reader, member, admin", name, role);
	r.name = name;
	r.role = role_parse(role);
	r.created = clock_wall_ms();
	r.has_configured = r.configured = true;
	return user_put(s, key, &r, e);
}

int users_configure(struct state *s, const char *const *line, size_t count, struct err *e)
{
	struct stale st = { line, count, BUF_INIT, e };
	int rc = state_each(s, STATE_USERS, NULL, 0, false, find_stale, &st, e);

	for (size_t i = 0; rc == 0 && i < st.keys.len; i += KEY_CHARS)
		rc = state_delete(s, STATE_USERS, st.keys.data + i, KEY_CHARS, e);
	for (size_t i = 0; rc == 0 && i < count; i++)
		rc = put_line(s, line[i], e);
	buf_release(&st.keys);
	return rc;
}
