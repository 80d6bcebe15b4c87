/* SPDX-License-Identifier: Apache-2.0
 * Users in the store; see users.h. */
#include "config.h"
#include "store/users.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "proto/spec.h"

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

/* ---------------------------------------------------------------- configured ones */

struct configured {
	char name[LIMIT_NAME_BYTES + 1], key[KEY_CHARS + 1];
	enum user_role role;
};

#define FORM "expected NAME ROLE KEY"

/* What is wrong is told without the whole of a key: it may be the secret one, given by mistake. */
static int take_words(char *const word[4], size_t words, struct configured *out, struct err *e)
{
	FAIL_IF(words < 2, e, TF_EINVALID, "user: %zu words, " FORM, words);
	FAIL_IF(key_is_valid(word[0]) && name_check("user", word[0], NULL) < 0, e, TF_EINVALID,
		"user '%.8s...': a key comes first, " FORM, word[0]);
	if (name_check("user", word[0], e) < 0)
		return err_prefix(e, "user");
	FAIL_IF(words != 3, e, TF_EINVALID, "user '%s': %s words, " FORM, word[0],
		words < 3 ? "two" : "more than three");
	out->role = role_parse(word[1]);
	FAIL_IF(out->role == ROLE_NONE, e, TF_EINVALID,
		"user '%s': role '%.8s': expected reader, member or admin", word[0], word[1]);
	FAIL_IF(!key_is_valid(word[2]), e, TF_EINVALID,
		"user '%s': key '%.8s...' of %zu characters is no public key: expected the %d "
		"characters of Z85 that `transfuse key` prints",
		word[0], word[2], strlen(word[2]), KEY_CHARS);
	snprintf(out->name, sizeof out->name, "%s", word[0]);
	snprintf(out->key, sizeof out->key, "%s", word[2]);
	return 0;
}

static int parse_line(const char *line, struct configured *out, struct err *e)
{
	char *copy = xstrdup(line), *save = NULL, *word[4];
	size_t words = 0;
	int rc;

	while (words < ARRAY_LEN(word) &&
	       (word[words] = strtok_r(words ? NULL : copy, " \t\n", &save)))
		words++;
	rc = take_words(word, words, out, e);
	xfree(copy);
	return rc;
}

int users_line_check(const char *line, struct err *e)
{
	struct configured c;

	return parse_line(line, &c, e);
}

/* A key that is given twice is one user. */
static int parse_lines(const char *const *line, size_t count, struct configured *out, struct err *e)
{
	for (size_t i = 0; i < count; i++) {
		TRY(parse_line(line[i], &out[i], e));
		for (size_t k = 0; k < i; k++)
			FAIL_IF(strcmp(out[k].key, out[i].key) == 0 &&
					(strcmp(out[k].name, out[i].name) != 0 ||
					 out[k].role != out[i].role),
				e, TF_EINVALID,
				"user '%s': key '%.8s...' is that of '%s' (%s) too: expected "
				"another",
				out[i].name, out[i].key, out[k].name, role_name(out[k].role));
	}
	return 0;
}

struct stale {
	const struct configured *user;
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
		named |= key.len == KEY_CHARS && memcmp(st->user[i].key, key.data, KEY_CHARS) == 0;
	if (r->configured && !named)
		buf_append(&st->keys, key.data, key.len);
	record_free(r);
	return 0;
}

static int put_configured(struct state *s, const struct configured *c, struct err *e)
{
	Tf__UserRecord r = TF__USER_RECORD__INIT;

	r.name = (char *)c->name;
	r.role = c->role;
	r.created = clock_wall_ms();
	r.has_configured = r.configured = true;
	return user_put(s, c->key, &r, e);
}

int users_configure(struct state *s, const char *const *line, size_t count, struct err *e)
{
	struct configured *user = xcalloc(count + 1, sizeof *user);
	struct stale st = { user, count, BUF_INIT, e };
	int rc = parse_lines(line, count, user, e);

	if (rc == 0)
		rc = state_each(s, STATE_USERS, NULL, 0, false, find_stale, &st, e);
	for (size_t i = 0; rc == 0 && i < st.keys.len; i += KEY_CHARS)
		rc = state_delete(s, STATE_USERS, st.keys.data + i, KEY_CHARS, e);
	for (size_t i = 0; rc == 0 && i < count; i++)
		rc = put_configured(s, &user[i], e);
	buf_release(&st.keys);
	xfree(user);
	return rc;
}
