/* SPDX-License-Identifier: Apache-2.0
 * Key files and the files by which a private daemon is found; see keys.h. */
#include "config.h"
#include "proto/keys.h"
#include "lib/buf.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zmq.h>

#define KEY_FILE_MAX 256
#define ENDPOINT_FILE_MAX 8192

bool key_is_valid(const char *z85)
{
	uint8_t raw[32];

	return strlen(z85) == KEY_CHARS && zmq_z85_decode(raw, z85);
}

void key_pair_wipe(struct key_pair *k)
{
	explicit_bzero(k, sizeof *k);
}

int key_pair_make(struct key_pair *out, struct err *e)
{
	do {
		FAIL_IF(zmq_curve_keypair(out->public_key, out->secret_key) < 0, e,
			TF_EUNSUPPORTED, "cannot make keys: %s (is libzmq built with CURVE?)",
			zmq_strerror(errno));
	} while (out->public_key[0] == '-'); /* an operand of commands: no option */
	return 0;
}

int key_pair_of_secret(const char *secret, struct key_pair *out, struct err *e)
{
	FAIL_IF(!key_is_valid(secret), e, TF_EINVALID, "a secret key is not %d characters of Z85",
		KEY_CHARS);
	memcpy(out->secret_key, secret, sizeof out->secret_key);
	FAIL_IF(zmq_curve_public(out->public_key, secret) < 0, e, TF_EINVALID,
		"a secret key that is none: %s", zmq_strerror(errno));
	return 0;
}

/* PATH.pub for PATH.key, else PATH with .pub appended. */
static char *public_path(const char *path)
{
	size_t len = strlen(path);

	if (len > 4 && strcmp(path + len - 4, ".key") == 0)
		len -= 4;
	return xasprintf("%.*s.pub", (int)len, path);
}

int key_pair_write(const char *path, const struct key_pair *k, struct err *e)
{
	char *other = public_path(path);
	struct buf text = BUF_INIT;
	int rc;

	buf_printf(&text, "public %s\nsecret %s\n", k->public_key, k->secret_key);
	rc = file_write(path, text.data, text.len, 0600, e);
	explicit_bzero(text.data, text.len);
	buf_clear(&text);
	buf_printf(&text, "%s\n", k->public_key);
	if (rc == 0)
		rc = file_write(other, text.data, text.len, 0644, e);
	buf_release(&text);
	xfree(other);
	return rc;
}

/* Takes "<word> <key>\n" off *at into key. */
static bool take_key(const char **at, const char *word, char key[KEY_CHARS + 1])
{
	size_t len = strlen(word);

	if (strncmp(*at, word, len) != 0 || strlen(*at) < len + KEY_CHARS ||
	    strcspn(*at + len, " \t\r\n") != KEY_CHARS)
		return false;
	memcpy(key, *at + len, KEY_CHARS);
	key[KEY_CHARS] = 0;
	*at += len + KEY_CHARS;
	*at += strspn(*at, "\r\n");
	return key_is_valid(key);
}

static int check_private(const char *path, struct err *e)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return err_errno(e, "%s", path);
	FAIL_IF(st.st_uid != geteuid() && geteuid() != 0, e, TF_EREFUSED,
		"%s: a secret key of another user of this machine; give --key FILE of your own",
		path);
	FAIL_IF(st.st_mode & 077, e, TF_EREFUSED,
		"%s: a secret key that others can read (mode %03o); chmod 600 it", path,
		(unsigned)st.st_mode & 0777);
	return 0;
}

int key_pair_read(const char *path, struct key_pair *out, struct err *e)
{
	struct buf text = BUF_INIT;
	char derived[KEY_CHARS + 1];
	int rc = check_private(path, e);

	if (rc == 0)
		rc = file_read(path, KEY_FILE_MAX, &text, e);
	if (rc == 0) {
		const char *at = text.data ? text.data : "";

		if (!take_key(&at, "public ", out->public_key) ||
		    !take_key(&at, "secret ", out->secret_key) || *at)
			rc = err_set(e, TF_EINVALID,
				     "%s: expected two lines, 'public KEY' and 'secret KEY'", path);
		else if (zmq_curve_public(derived, out->secret_key) < 0 ||
			 strcmp(derived, out->public_key) != 0)
			rc = err_set(e, TF_EINVALID, "%s: the two keys are no pair", path);
	}
	if (text.data)
		explicit_bzero(text.data, text.len);
	buf_release(&text);
	if (rc < 0)
		key_pair_wipe(out);
	return rc;
}

int key_public_read(const char *path, char out[KEY_CHARS + 1], struct err *e)
{
	struct buf text = BUF_INIT;
	int rc = file_read(path, KEY_FILE_MAX, &text, e);

	if (rc == 0) {
		const char *at = text.data ? text.data : "";

		if (!take_key(&at, "", out) || *at)
			rc = err_set(e, TF_EINVALID,
				     "%s: expected one line with a public key of %d characters",
				     path, KEY_CHARS);
	}
	buf_release(&text);
	return rc;
}

static int read_or_make(const char *folder, const char *name, struct key_pair *k, struct err *e)
{
	char *path = xasprintf("%s/keys/%s", folder, name), *other = public_path(path);
	int rc;

	if (file_exists(path))
		rc = key_pair_read(path, k, e);
	else
		rc = key_pair_make(k, e);
	if (rc == 0 && !(file_exists(path) && file_exists(other)))
		rc = key_pair_write(path, k, e);
	xfree(other);
	xfree(path);
	return rc;
}

int keys_private_make(const char *state_folder, struct key_pair *server, struct key_pair *client,
		      struct err *e)
{
	char *folder = xasprintf("%s/keys", state_folder);
	int rc = dir_make(folder, 0700, e);

	if (rc == 0 && chmod(folder, 0700) < 0)
		rc = err_errno(e, "%s", folder);
	if (rc == 0)
		rc = read_or_make(state_folder, "server.key", server, e);
	if (rc == 0)
		rc = read_or_make(state_folder, "client.key", client, e);
	xfree(folder);
	return rc;
}

int endpoint_write(const char *state_folder, const char *const *endpoint, size_t n, struct err *e)
{
	char *path = xasprintf("%s/endpoint", state_folder);
	struct buf text = BUF_INIT;
	int rc;

	for (size_t i = 0; i < n; i++)
		buf_printf(&text, "%s\n", endpoint[i]);
	rc = file_write(path, text.data, text.len, 0644, e);
	buf_release(&text);
	xfree(path);
	return rc;
}

int endpoint_read(const char *state_folder, char **out, struct err *e)
{
	char *path = xasprintf("%s/endpoint", state_folder);
	struct buf text = BUF_INIT;
	int rc = file_read(path, ENDPOINT_FILE_MAX, &text, e);

	if (rc == 0) {
		size_t len = text.data ? strcspn(text.data, "\n") : 0;

		if (len == 0 || text.data[len] != '\n')
			rc = err_set(e, TF_EINVALID, "%s: expected an endpoint in the first line",
				     path);
		else
			*out = xstrndup(text.data, len);
	}
	buf_release(&text);
	xfree(path);
	return rc;
}
