/* SPDX-License-Identifier: Apache-2.0
 * Verbs about people: key, login, user, audit. */
#include "config.h"
#include "client/client.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- the key of one's own */

static int make_folder_of(char *path, struct err *e)
{
	char *slash = strrchr(path, '/');
	int rc;

	if (!slash || slash == path)
		return 0;
	*slash = 0;
	rc = dir_make(path, 0700, e);
	*slash = '/';
	return rc;
}

/* --key, the owner's of a private daemon, else ~/.config/transfused/client.key. */
static char *key_path(const struct client *c)
{
	const char *given = args_text(&c->args, OPTION_KEY), *state = getenv("TRANSFUSE_STATE");
	char *owner = state && *state ? xasprintf("%s/keys/client.key", state) : NULL;

	if (given || !owner || access(owner, R_OK) < 0) {
		xfree(owner);
		return given ? xstrdup(given) : place_own_key();
	}
	return owner;
}

/* Reads the pair in the file, making it when there is none. */
static int take_key(char *path, struct key_pair *k, struct err *e)
{
	FAIL_IF(!path, e, TF_EUSAGE, "there is no HOME to keep a key in: give --key FILE");
	if (file_exists(path))
		return key_pair_read(path, k, e);
	TRY(make_folder_of(path, e));
	do
		TRY(key_pair_make(k, e));
	while (k->public_key[0] == '-'); /* on a command line it would look like an option */
	TRY(key_pair_write(path, k, e));
	fprintf(stderr, "made %s\n", path);
	return 0;
}

int verb_key(struct client *c, struct err *e)
{
	const char *given = args_text(&c->args, OPTION_KEY);
	char *path = given ? xstrdup(given) : place_own_key();
	struct key_pair k = { 0 };
	int rc = take_key(path, &k, e);

	if (rc == 0)
		puts(k.public_key);
	key_pair_wipe(&k);
	xfree(path);
	return rc;
}

/* ---- login */

/* Writes the daemon's public key and where it is into the files that place_find reads. */
static int remember_daemon(const char *endpoint, const char *server_key, struct err *e)
{
	char *file = place_own_file("client.yaml"), *server = place_own_file("server.pub");
	struct buf text = BUF_INIT;
	int rc = wire_endpoint_check(endpoint, e);

	if (rc == 0 && !file)
		rc = err_set(e, TF_EUSAGE, "there is no HOME to keep the daemon's address in");
	if (rc == 0 && server_key && !key_is_valid(server_key))
		rc = err_set(e, TF_EUSAGE, "'%.60s' is no public key of a daemon: expected %d "
			     "characters of Z85, in quotes", server_key, KEY_CHARS);
	if (rc == 0)
		rc = make_folder_of(file, e);
	if (rc == 0 && server_key) {
		buf_printf(&text, "%s\n", server_key);
		rc = file_write(server, text.data, text.len, 0644, e);
		buf_clear(&text);
	}
	if (rc == 0) {
		buf_printf(&text, "endpoint: \"%s\"\n", endpoint);
		rc = file_write(file, text.data, text.len, 0644, e);
	}
	buf_release(&text);
	xfree(file);
	xfree(server);
	return rc;
}

static void say_what_to_do(const struct client *c, const char *public_key, bool known_daemon)
{
	const char *name = getenv("USER");

	printf("Your public key is %s\n", public_key);
	printf("An administrator of the daemon lets you in with\n"
	       "    transfuse user add %s member '%s'\n", name && *name ? name : "YOU", public_key);
	if (!known_daemon)
		puts("and tells you the line `transfuse login ENDPOINT 'KEY'` for their daemon.");
	else
		printf("at %s; then say `transfuse login` again.\n", c->place->endpoint);
}

/* Who the daemon takes us for, or what is missing for it to know us. */
static int introduce(struct client *c, const char *public_key, struct err *e)
{
	Tf__Reply *reply = NULL;
	struct err why = ERR_INIT;
	int rc = client_connect(c, &why);
	bool found = rc == 0;
	char *user;

	if (rc == 0)
		rc = ask_status(c, &reply, &why);
	if (rc == 0) {
		user = text_safe(reply->status->user);
		printf("you are %s (%s) at %s, with the key %s\n", user, reply->status->role,
		       c->place->endpoint, c->place->key_file);
		xfree(user);
		tf__reply__free_unpacked(reply, NULL);
		return STATUS_DONE;
	}
	if (found && rc != TF_EREFUSED)
		return err_set(e, rc, "%s", why.text);
	say_what_to_do(c, public_key, found);
	fprintf(stderr, "transfuse: %s\n", why.text);
	return found ? STATUS_REFUSED : STATUS_NO_DAEMON;
}

int verb_login(struct client *c, struct err *e)
{
	const struct words *at = &c->args.operand;
	char *path = key_path(c);
	struct key_pair k = { 0 };
	int rc = take_key(path, &k, e);

	if (rc == 0 && at->count > 0)
		rc = remember_daemon(at->word[0], at->count > 1 ? at->word[1] : NULL, e);
	if (rc == 0)
		rc = introduce(c, k.public_key, e);
	key_pair_wipe(&k);
	xfree(path);
	return rc;
}

/* ---- users, for administrators */

/* The line a newcomer enters, for each place where the daemon answers; of one that does not say
 * them, for the one that is known here. */
static void say_how_to_come(struct client *c)
{
	const char *key = c->place->server_key;
	struct err e = ERR_INIT;
	Tf__Reply *reply = NULL;
	size_t count = ask_status(c, &reply, &e) == 0 ? reply->status->n_endpoint : 0;

	printf("they reach this daemon with%s\n", count > 1 ? " one of" : "");
	if (count == 0)
		printf("    transfuse login %s '%s'\n", c->place->endpoint, key);
	for (size_t i = 0; i < count; i++) {
		char *endpoint = text_safe(reply->status->endpoint[i]);
		bool here = count > 1 && strncmp(endpoint, "ipc:", 4) == 0;

		printf("    transfuse login %s '%s'%s\n", endpoint, key,
		       here ? "  # on this machine" : "");
		xfree(endpoint);
	}
	if (reply)
		tf__reply__free_unpacked(reply, NULL);
}

static int ask_ok(struct client *c, Tf__Request *r, struct err *e)
{
	Tf__Reply *reply;

	TRY(client_ask(c, r, TF__REPLY__BODY_OK, &reply, e));
	tf__reply__free_unpacked(reply, NULL);
	return 0;
}

int verb_user_add(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserAdd m = TF__USER_ADD__INIT;

	m.name = c->args.operand.word[0];
	m.role = c->args.operand.word[1];
	m.key = c->args.operand.word[2];
	r.body_case = TF__REQUEST__BODY_USER_ADD;
	r.user_add = &m;
	TRY(ask_ok(c, &r, e));
	printf("%s is a %s; ", m.name, m.role);
	say_how_to_come(c);
	return STATUS_DONE;
}

int verb_user_revoke(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserRevoke m = TF__USER_REVOKE__INIT;

	m.who = c->args.operand.word[0];
	r.body_case = TF__REQUEST__BODY_USER_REVOKE;
	r.user_revoke = &m;
	TRY(ask_ok(c, &r, e));
	printf("%s is let in no more; their jobs and artefacts stay\n", m.who);
	return STATUS_DONE;
}

int verb_user_rotate(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserRotate m = TF__USER_ROTATE__INIT;

	m.name = c->args.operand.word[0];
	m.key = c->args.operand.word[1];
	r.body_case = TF__REQUEST__BODY_USER_ROTATE;
	r.user_rotate = &m;
	TRY(ask_ok(c, &r, e));
	printf("%s has this key now and no other\n", m.name);
	return STATUS_DONE;
}

int verb_user_role(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserRole m = TF__USER_ROLE__INIT;

	m.name = c->args.operand.word[0];
	m.role = c->args.operand.word[1];
	r.body_case = TF__REQUEST__BODY_USER_ROLE;
	r.user_role = &m;
	TRY(ask_ok(c, &r, e));
	printf("%s is a %s now\n", m.name, m.role);
	return STATUS_DONE;
}

static void print_users(const Tf__Users *users)
{
	static const char *const head[] = { "user", "role", "key", "enrolled", "by" };
	struct table t;

	table_init(&t, "lllll", head);
	for (size_t i = 0; i < users->n_user; i++) {
		const Tf__User *u = users->user[i];
		char age[FORMAT_MAX];

		format_age(u->created, age);
		table_add(&t, (const char *[]){ u->name, u->role, u->key, age,
						u->configured ? "configuration" : "request" });
	}
	table_print(&t);
}

int verb_user_list(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Empty empty = TF__EMPTY__INIT;
	Tf__Reply *reply;

	r.body_case = TF__REQUEST__BODY_USER_LIST;
	r.user_list = &empty;
	TRY(client_ask(c, &r, TF__REPLY__BODY_USERS, &reply, e));
	if (args_has(&c->args, OPTION_JSON))
		json_print(json_of_users(reply->users));
	else
		print_users(reply->users);
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}

/* ---- the audit log */

/* "2h" is an age, anything else the beginning of a time in UTC. */
static int parse_since(const char *text, int64_t *out, struct err *e)
{
	static const struct {
		char unit;
		int64_t ms;
	} units[] = { { 's', 1000 }, { 'm', 60000 }, { 'h', 3600000 }, { 'd', 86400000 } };
	struct tm tm = { 0 };
	char *end;
	long long n = strtoll(text, &end, 10);
	const char *rest;

	for (size_t i = 0; i < ARRAY_LEN(units); i++)
		if (end > text && *end == units[i].unit && !end[1] && n >= 0 && n < 1000000) {
			*out = clock_wall_ms() - n * units[i].ms;
			return 0;
		}
	rest = strptime(text, "%Y-%m-%d", &tm);
	if (rest && *rest == 'T')
		rest = strptime(rest, "T%H:%M", &tm);
	if (rest && *rest == ':')
		rest = strptime(rest, ":%S", &tm);
	FAIL_IF(!rest || *rest, e, TF_EUSAGE,
		"--since is '%s', expected such as 2h, 7d, 2026-01-31 or 2026-01-31T12:00", text);
	*out = (int64_t)timegm(&tm) * 1000;
	return 0;
}

static void print_audit(const Tf__Audit *a)
{
	static const char *const head[] = { "time", "user", "from", "action", "subject",
					    "outcome" };
	struct table t;

	table_init(&t, "llllll", head);
	for (size_t i = 0; i < a->n_entry; i++) {
		const Tf__AuditEntry *x = a->entry[i];
		bool stands_in = strcmp(x->admin, "-") != 0, failed = strcmp(x->text, "-") != 0;
		char *user = stands_in ? xasprintf("%s as %s", x->admin, x->user)
				       : xstrdup(x->user);
		char *outcome = failed ? xasprintf("%s: %s", x->outcome, x->text)
				       : xstrdup(x->outcome);

		table_add(&t, (const char *[]){ x->time, user, x->from, x->action, x->subject,
						outcome });
		xfree(user);
		xfree(outcome);
	}
	table_print(&t);
	if (a->more)
		fprintf(stderr, "transfuse: there are more; -n shows them\n");
}

int verb_audit(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__AuditRead m = TF__AUDIT_READ__INIT;
	Tf__Reply *reply;
	int64_t limit = 50;

	TRY(args_int(&c->args, OPTION_COUNT, 1, LIMIT_AUDIT_LISTED, &limit, e));
	if (args_has(&c->args, OPTION_SINCE))
		TRY(parse_since(args_text(&c->args, OPTION_SINCE), &m.since, e));
	m.has_since = m.has_limit = true;
	m.limit = (uint32_t)limit;
	m.user = (char *)args_text(&c->args, OPTION_USER);
	r.body_case = TF__REQUEST__BODY_AUDIT_READ;
	r.audit_read = &m;
	TRY(client_ask(c, &r, TF__REPLY__BODY_AUDIT, &reply, e));
	if (args_has(&c->args, OPTION_JSON))
		json_print(json_of_audit(reply->audit));
	else
		print_audit(reply->audit);
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}
