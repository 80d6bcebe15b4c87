/* SPDX-License-Identifier: Apache-2.0
 * Requests about people: enrol, list, revoke, rotate, give another role. They take effect with the
 * turn's commit, in open connections too, as the role is looked up for each message. Users of the
 * configuration (option user) are changed there alone, and an administrator always stays. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <string.h>

/* What is known, and what to do about it: every check comes before the first change. */
struct people {
	struct user *user;
	size_t count;
};

static int load(struct daemon *d, struct people *p, struct err *e)
{
	return users_list(d->state, &p->user, &p->count, e);
}

static const struct user *find_name(const struct people *p, const char *name)
{
	for (size_t i = 0; i < p->count; i++)
		if (strcmp(p->user[i].name, name) == 0)
			return &p->user[i];
	return NULL;
}

static const struct user *find_key(const struct people *p, const char *key)
{
	for (size_t i = 0; i < p->count; i++)
		if (strcmp(p->user[i].key, key) == 0)
			return &p->user[i];
	return NULL;
}

static int key_check(const char *key, struct err *e)
{
	FAIL_IF(!key_is_valid(key), e, TF_EINVALID,
		"'%.60s' is no public key: expected the %d characters that `transfuse key` prints",
		key, KEY_CHARS);
	return 0;
}

/* Whether the user is one whom a request may change. */
static int own_check(const struct user *u, struct err *e)
{
	FAIL_IF(u->configured, e, TF_EREFUSED,
		"a key of %s is in the daemon's configuration (option user): change it there",
		u->name);
	return 0;
}

/* An administrator must be left when those `who` (a name or a key) names are none any more. */
static int admin_check(const struct people *p, const char *who, struct err *e)
{
	for (size_t i = 0; i < p->count; i++) {
		const struct user *u = &p->user[i];

		if (u->role == ROLE_ADMIN && strcmp(u->name, who) != 0 && strcmp(u->key, who) != 0)
			return 0;
	}
	return err_set(e, TF_EREFUSED, "no administrator would be left: enrol another one first");
}

static int put(struct daemon *d, const char *name, enum user_role role, const char *key,
	       int64_t created, struct err *e)
{
	Tf__UserRecord record = TF__USER_RECORD__INIT;

	record.name = (char *)name;
	record.role = role;
	record.created = created;
	return user_put(d->state, key, &record, e);
}

/* ---------------------------------------------------------------- add */

static int check_add(const struct people *p, const Tf__UserAdd *m, struct err *e)
{
	const struct user *same = find_name(p, m->name), *holder = find_key(p, m->key);

	TRY(name_check("user", m->name, e));
	TRY(key_check(m->key, e));
	FAIL_IF(role_parse(m->role) == ROLE_NONE, e, TF_EINVALID,
		"role '%s': expected reader, member or admin", m->role);
	FAIL_IF(holder && strcmp(holder->name, m->name) != 0, e, TF_EEXISTS,
		"this key is %s's already", holder->name);
	FAIL_IF(same && same->role != role_parse(m->role), e, TF_EEXISTS,
		"%s is a %s here already: give all their keys another role with "
		"`transfuse user role`",
		m->name, role_name(same->role));
	FAIL_IF(!holder && p->count >= LIMIT_USERS, e, TF_ELIMIT,
		"%u keys are enrolled, the limit: revoke some", LIMIT_USERS);
	return 0;
}

int handle_user_add(struct daemon *d, struct request *r)
{
	const Tf__UserAdd *m = r->message->user_add;
	struct people p = { 0 };
	int rc;

	TRY(load(d, &p, &r->err));
	rc = check_add(&p, m, &r->err);
	if (rc == 0 && !find_key(&p, m->key))
		rc = put(d, m->name, role_parse(m->role), m->key, clock_wall_ms(), &r->err);
	xfree(p.user);
	if (rc == 0)
		reply_ok(d, r);
	return rc;
}

/* ---------------------------------------------------------------- list */

int handle_user_list(struct daemon *d, struct request *r)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Users users = TF__USERS__INIT;
	struct people p = { 0 };
	Tf__User *item;

	TRY(load(d, &p, &r->err));
	item = xcalloc(p.count + 1, sizeof *item);
	users.user = xcalloc(p.count + 1, sizeof *users.user);
	for (; users.n_user < p.count; users.n_user++) {
		struct user *u = &p.user[users.n_user];
		Tf__User *one = &item[users.n_user];

		tf__user__init(one);
		one->name = u->name;
		one->role = (char *)role_name(u->role);
		one->key = u->key;
		one->has_created = one->has_configured = true;
		one->created = u->created;
		one->configured = u->configured;
		users.user[users.n_user] = one;
	}
	reply.body_case = TF__REPLY__BODY_USERS;
	reply.users = &users;
	reply_put(d, r, &reply);
	xfree(users.user);
	xfree(item);
	xfree(p.user);
	return 0;
}

/* ---------------------------------------------------------------- revoke, rotate, role */

static bool is_meant(const struct user *u, const char *who, bool key)
{
	return strcmp(key ? u->key : u->name, who) == 0;
}

static int revoke(struct daemon *d, const struct people *p, const char *who, struct err *e)
{
	bool key = find_key(p, who) != NULL;

	FAIL_IF(!key && !find_name(p, who), e, TF_ENOTFOUND, "no user or key '%.100s' is enrolled",
		who);
	for (size_t i = 0; i < p->count; i++)
		if (is_meant(&p->user[i], who, key))
			TRY(own_check(&p->user[i], e));
	TRY(admin_check(p, who, e));
	for (size_t i = 0; i < p->count; i++)
		if (is_meant(&p->user[i], who, key))
			TRY(user_delete(d->state, p->user[i].key, e));
	return 0;
}

int handle_user_revoke(struct daemon *d, struct request *r)
{
	struct people p = { 0 };
	int rc;

	TRY(load(d, &p, &r->err));
	rc = revoke(d, &p, r->message->user_revoke->who, &r->err);
	xfree(p.user);
	if (rc == 0)
		reply_ok(d, r);
	return rc;
}

static int rotate(struct daemon *d, const struct people *p, const Tf__UserRotate *m, struct err *e)
{
	const struct user *same = find_name(p, m->name), *holder = find_key(p, m->key);

	TRY(key_check(m->key, e));
	FAIL_IF(!same, e, TF_ENOTFOUND, "no user '%.100s' is enrolled", m->name);
	FAIL_IF(holder && strcmp(holder->name, m->name) != 0, e, TF_EEXISTS,
		"this key is %s's already", holder->name);
	for (size_t i = 0; i < p->count; i++)
		if (is_meant(&p->user[i], m->name, false))
			TRY(own_check(&p->user[i], e));
	for (size_t i = 0; i < p->count; i++)
		if (is_meant(&p->user[i], m->name, false) && strcmp(p->user[i].key, m->key) != 0)
			TRY(user_delete(d->state, p->user[i].key, e));
	return holder ? 0 : put(d, m->name, same->role, m->key, clock_wall_ms(), e);
}

int handle_user_rotate(struct daemon *d, struct request *r)
{
	struct people p = { 0 };
	int rc;

	TRY(load(d, &p, &r->err));
	rc = rotate(d, &p, r->message->user_rotate, &r->err);
	xfree(p.user);
	if (rc == 0)
		reply_ok(d, r);
	return rc;
}

static int give_role(struct daemon *d, const struct people *p, const Tf__UserRole *m,
		     struct err *e)
{
	enum user_role role = role_parse(m->role);

	FAIL_IF(role == ROLE_NONE, e, TF_EINVALID, "role '%s': expected reader, member or admin",
		m->role);
	FAIL_IF(!find_name(p, m->name), e, TF_ENOTFOUND, "no user '%.100s' is enrolled", m->name);
	for (size_t i = 0; i < p->count; i++)
		if (is_meant(&p->user[i], m->name, false))
			TRY(own_check(&p->user[i], e));
	if (role != ROLE_ADMIN)
		TRY(admin_check(p, m->name, e));
	for (size_t i = 0; i < p->count; i++)
		if (is_meant(&p->user[i], m->name, false))
			TRY(put(d, m->name, role, p->user[i].key, p->user[i].created, e));
	return 0;
}

int handle_user_role(struct daemon *d, struct request *r)
{
	struct people p = { 0 };
	int rc;

	TRY(load(d, &p, &r->err));
	rc = give_role(d, &p, r->message->user_role, &r->err);
	xfree(p.user);
	if (rc == 0)
		reply_ok(d, r);
	return rc;
}
