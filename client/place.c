/* SPDX-License-Identifier: Apache-2.0
 * Where the daemon is and with which keys it is spoken to. */
#include "config.h"
#include "client/place.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/yaml.h"
#include "proto/connection.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SYSTEM_FILE "/etc/transfused/client.yaml"
#define SYSTEM_ENDPOINT "ipc:///run/transfused/socket"
#define SYSTEM_SERVER_KEY "/etc/transfused/server.pub"

/* client.yaml: the system's daemon, or the one of `transfuse login`. */
struct system_file {
	char *endpoint, *server_key, *key;
};
static const struct yaml_field system_fields[] = {
	{ "endpoint", YAML_TEXT, offsetof(struct system_file, endpoint), SYSTEM_ENDPOINT, 1, 1000,
	  NULL, "where the daemon listens" },
	{ "server_key", YAML_TEXT, offsetof(struct system_file, server_key), "", 0, 1000, NULL,
	  "file with the daemon's public key (default: server.pub beside this file)" },
	{ "key", YAML_TEXT, offsetof(struct system_file, key), "", 0, 1000, NULL,
	  "file with the user's key pair (default: ~/.config/transfused/client.key)" },
};

char *place_own_file(const char *name)
{
	const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");

	if (config && *config)
		return xasprintf("%s/transfused/%s", config, name);
	return home && *home ? xasprintf("%s/.config/transfused/%s", home, name) : NULL;
}

char *place_own_key(void)
{
	return place_own_file("client.key");
}

static const char *variable(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

static int read_keys(struct place *p, const char *server_file, char *key_file, struct err *e)
{
	p->key_file = key_file;
	FAIL_IF(!key_file, e, TF_ENOTFOUND,
		"no key of yours is known: give --key FILE or set HOME");
	FAIL_IF(!file_exists(server_file), e, TF_ENOTFOUND,
		"the daemon's public key is not known: give --server-key FILE (there is no %s)",
		server_file);
	TRY(key_public_read(server_file, p->server_key, e));
	if (!file_exists(key_file))
		return err_set(e, TF_ENOTFOUND, "%s: you have no key yet; make one with "
			       "`transfuse key` and give its public half to the administrator",
			       key_file);
	return key_pair_read(key_file, &p->keys, e);
}

/* The keys for an endpoint that was named: given ones, else the state folder's, else the user's. */
static int named_keys(const struct place_given *given, struct place *p, struct err *e)
{
	const char *state = variable("TRANSFUSE_STATE"), *key = given->key_file;
	const char *server = given->server_key_file;
	char *server_file = server ? xstrdup(server)
				   : state ? xasprintf("%s/keys/server.pub", state)
					   : place_own_file("server.pub");
	char *key_file = key ? xstrdup(key)
			     : state ? xasprintf("%s/keys/client.key", state) : place_own_key();
	int rc;

	if (server_file && !file_exists(server_file) && !server && !state) {
		xfree(server_file);
		server_file = xstrdup(SYSTEM_SERVER_KEY);
	}
	rc = read_keys(p, server_file ? server_file : SYSTEM_SERVER_KEY, key_file, e);
	xfree(server_file);
	return rc;
}

static int private_daemon(const struct place_given *given, const char *state, struct place *p,
			  struct err *e)
{
	int rc = endpoint_read(state, &p->endpoint, NULL);

	p->found_by = "TRANSFUSE_STATE";
	FAIL_IF(rc < 0 && access(state, X_OK) < 0 && errno == EACCES, e, TF_EREFUSED,
		"the state folder %s (of TRANSFUSE_STATE) is another user's: who may ask its "
		"daemon uses `transfuse login ENDPOINT KEY`", state);
	if (rc < 0)
		return err_set(e, TF_ENODAEMON, "no daemon has run with the state folder %s (of "
			       "TRANSFUSE_STATE); start one: transfused --state %s", state, state);
	return named_keys(given, p, e);
}

/* What a client.yaml says; server: where the daemon's key is unless the file names another. */
static int filed_daemon(const struct place_given *given, const char *file, const char *server,
			struct place *p, struct err *e)
{
	struct system_file s = { 0 };
	struct buf text = BUF_INIT;
	struct yaml y = { 0 };
	const char *key = given->key_file, *other = given->server_key_file;
	int rc = 0;

	p->found_by = file;
	if (file_exists(file))
		rc = file_read(file, YAML_BYTES_MAX, &text, e);
	if (rc == 0)
		rc = yaml_parse(file, text.data ? text.data : "", text.len, &y, e);
	if (rc == 0)
		rc = yaml_fields_read(&y, system_fields, ARRAY_LEN(system_fields), &s, e);
	if (rc == 0) {
		p->endpoint = xstrdup(s.endpoint);
		rc = read_keys(p, other ? other : *s.server_key ? s.server_key : server,
			       key ? xstrdup(key) : *s.key ? xstrdup(s.key) : place_own_key(), e);
		yaml_fields_release(system_fields, ARRAY_LEN(system_fields), &s);
	}
	yaml_release(&y);
	buf_release(&text);
	return rc;
}

/* The one of `transfuse login`; *found says whether there was a login. */
static int own_daemon(const struct place_given *given, bool *found, struct place *p, struct err *e)
{
	char *file = place_own_file("client.yaml"), *server = place_own_file("server.pub");
	int rc = 0;

	*found = file && file_exists(file);
	if (*found)
		rc = filed_daemon(given, file, file_exists(server) ? server : SYSTEM_SERVER_KEY, p,
				  e);
	p->found_by = "transfuse login";
	xfree(file);
	xfree(server);
	return rc;
}

int place_find(const struct place_given *given, struct place *p, struct err *e)
{
	const char *option = given->endpoint;
	const char *endpoint = option ? option : variable("TRANSFUSE_ENDPOINT");
	const char *state = variable("TRANSFUSE_STATE");
	bool own = false;

	if (endpoint) {
		p->found_by = option ? "--endpoint" : "TRANSFUSE_ENDPOINT";
		p->endpoint = xstrdup(endpoint);
		return named_keys(given, p, e);
	}
	if (state)
		return private_daemon(given, state, p, e);
	TRY(own_daemon(given, &own, p, e));
	if (own)
		return 0;
	FAIL_IF(!file_exists(SYSTEM_FILE) && !file_exists(SYSTEM_SERVER_KEY), e, TF_ENODAEMON,
		"no daemon is known: set TRANSFUSE_STATE to the state folder of a private one, or "
		"`transfuse login ENDPOINT KEY`, or give --endpoint (there is no " SYSTEM_FILE ")");
	return filed_daemon(given, SYSTEM_FILE, SYSTEM_SERVER_KEY, p, e);
}

void place_release(struct place *p)
{
	key_pair_wipe(&p->keys);
	xfree(p->endpoint);
	xfree(p->key_file);
}
