/* SPDX-License-Identifier: Apache-2.0
 * CURVE keys in files, and what a private daemon leaves in its state folder for its user:
 *
 *     keys/server.key  keys/server.pub     the daemon's pair; its public half
 *     keys/client.key  keys/client.pub     the pair of the owner (role admin)
 *     endpoint                             one endpoint a line, the ipc one first
 *
 * A .key file is two lines, "public Z85" and "secret Z85", of mode 0600; one that others can
 * read is refused. A .pub file is one line of Z85. */
#ifndef PROTO_KEYS_H
#define PROTO_KEYS_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>

#define KEY_CHARS 40

struct key_pair {
	char public_key[KEY_CHARS + 1];
	char secret_key[KEY_CHARS + 1];
};

int key_pair_make(struct key_pair *out, struct err *e);
/* The pair of a secret key (a worker gets only that). TF_EINVALID when it is none. */
int key_pair_of_secret(const char *secret, struct key_pair *out, struct err *e);
bool key_is_valid(const char *z85);               /* 40 characters of Z85 */
/* Writes PATH (mode 0600) and, beside it, the public half with .pub for .key. */
int key_pair_write(const char *path, const struct key_pair *k, struct err *e);
/* TF_EREFUSED when others than the owner can read the file; TF_EINVALID when the halves differ. */
int key_pair_read(const char *path, struct key_pair *out, struct err *e);
int key_public_read(const char *path, char out[KEY_CHARS + 1], struct err *e);
/* Forgets a secret. */
void key_pair_wipe(struct key_pair *k);

/* Reads the two pairs of a private daemon, making what is not there (folder 0700, durable). */
int keys_private_make(const char *state_folder, struct key_pair *server, struct key_pair *client,
		      struct err *e);

/* STATE/endpoint. Reading gives its first line (xfree). */
int endpoint_write(const char *state_folder, const char *const *endpoint, size_t n, struct err *e);
int endpoint_read(const char *state_folder, char **out, struct err *e);

#endif
