/* SPDX-License-Identifier: Apache-2.0
 * A synchronous caller's line to the daemon: one DEALER, any number of open requests. A request
 * stays open until it is answered: when the connection breaks and comes back, the open ones are
 * sent again, unchanged and with the same id. A refused key, a stranger's key and nobody there
 * are told apart and end the call at once or after the patience given. One thread uses a
 * connection. */
#ifndef PROTO_CONNECTION_H
#define PROTO_CONNECTION_H

#include "lib/err.h"
#include "proto/keys.h"
#include "proto/transfused.pb-c.h"

#include <stdbool.h>
#include <stdint.h>

struct connection;
struct wire_message;

struct connection_options {
	const char *endpoint;
	const char *server_key;     /* Z85 */
	struct key_pair keys;
	const char *key_file;       /* for messages; may be NULL */
	const char *as_user;        /* an administrator asks as this user; NULL: as oneself */
	int64_t connect_ms;         /* patience with an absent daemon at first; 0: 3 s */
	int64_t reconnect_ms;       /* and once it had answered; 0: 30 s */
};

/* Begins to connect (waits for nothing); the strings are copied. */
int connection_open(const struct connection_options *o, struct connection **out, struct err *e);
void connection_close(struct connection *c);   /* NULL is fine */

/* Sends r (version and id are filled in) and waits for its answer at most timeout_ms. 0: *out
 * is the caller's (tf__reply__free_unpacked). An error of the daemon's comes back as this
 * function's, with its sentence. TF_ENODAEMON: nobody there (or no longer); TF_EREFUSED: the
 * key; TF_ETIMEOUT. */
int connection_call(struct connection *c, Tf__Request *r, int64_t timeout_ms, Tf__Reply **out,
		    struct err *e);

/* Several outstanding: send gives the id; receive gives an answer to any open request, errors
 * of the daemon included (reply->code). */
int connection_send(struct connection *c, Tf__Request *r, uint64_t *id, struct err *e);
int connection_receive(struct connection *c, int64_t timeout_ms, Tf__Reply **out, struct err *e);
/* The same with the answer as it came: out is closed by the caller after a return of 0. */
int connection_receive_packed(struct connection *c, int64_t timeout_ms, struct wire_message *out,
			      uint64_t *id, struct err *e);
/* Gives up an open request: its answer will be dropped. */
void connection_forget(struct connection *c, uint64_t id);

/* Looked at in every wait: when it returns true, calls end with TF_ECANCELLED. NULL: never. */
void connection_set_interrupt(struct connection *c, bool (*interrupted)(void));
/* How often the line was lost and found again: who sees it change knows that answers may be
 * repeated. */
uint64_t connection_reconnects(const struct connection *c);
const char *connection_endpoint(const struct connection *c);

#endif
