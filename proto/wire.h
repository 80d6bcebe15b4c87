/* SPDX-License-Identifier: Apache-2.0
 * Messages on ZeroMQ sockets: packing, unpacking that trusts nothing, and the sockets' options.
 * A message is one frame (after the routing id on a ROUTER). Unpacked messages are plain
 * memory: free them with tf__request__free_unpacked(m, NULL), tf__reply__free_unpacked(m,
 * NULL). */
#ifndef PROTO_WIRE_H
#define PROTO_WIRE_H

#include "lib/err.h"
#include "proto/keys.h"
#include "proto/limits.h"
#include "proto/transfused.pb-c.h"
#include "proto/unpack_room.h"
#include "proto/wire_check.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <zmq.h>

#define WIRE_ROUTE_MAX 255

/* ---- unpacking; nothing is owned on failure */

/* Checks the bytes of a `type` and unpacks them: known enum values, texts of valid UTF-8
 * without NUL and within their limits, depth, and memory of at most LIMIT_UNPACK_FACTOR x len +
 * 64 KiB. Fields it does not know are left out. TF_EINVALID or TF_ELIMIT with a sentence naming
 * the field. Free with protobuf_c_message_free_unpacked(*out, NULL). */
int wire_unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t len,
		ProtobufCMessage **out, struct err *e);
/* The same for a Request with its version and body (TF_EVERSION, TF_EUNSUPPORTED). *id is the
 * request's id whenever it can be read, else 0, so that a refusal can be answered. */
int wire_unpack_request(const void *data, size_t len, Tf__Request **out, uint64_t *id,
			struct err *e);
/* A Reply; a code other than 0 in it is no failure here. Its factor is
 * LIMIT_UNPACK_REPLY_FACTOR. */
int wire_unpack_reply(const void *data, size_t len, Tf__Reply **out, struct err *e);
/* A Reply's id (0: it has none), after its version was checked and nothing else. */
int wire_reply_id(const void *data, size_t len, uint64_t *id, struct err *e);
/* A message out of a Reply that was not unpacked, checked like it; *out lasts until the room, which
 * the caller clears also after an error, is cleared. */
int wire_unpack_part(struct unpack_room *room, const ProtobufCMessageDescriptor *type,
		     struct wire_cursor part, ProtobufCMessage **out, struct err *e);

/* ---- sending and receiving, never waiting */

/* Packs a message: *out (xfree) has *len bytes. TF_ELIMIT when it is longer than
 * LIMIT_MESSAGE_BYTES. */
int wire_pack(const ProtobufCMessage *m, uint8_t **out, size_t *len, struct err *e);
/* Sends bytes of a packed message; route_len 0 on a DEALER. TF_EBUSY: the peer's queue is full
 * (or no peer is connected yet); TF_ENOTFOUND: no such peer is connected. */
int wire_send_bytes(void *socket, const void *route, size_t route_len, const void *data, size_t len,
		    struct err *e);
int wire_send(void *socket, const void *route, size_t route_len, const ProtobufCMessage *m,
	      struct err *e);

struct wire_message {
	uint8_t route[WIRE_ROUTE_MAX]; /* of the sender, on a ROUTER */
	size_t route_len;
	char user[KEY_CHARS + 1];      /* User-Id that the ZAP handler gave; "" when none */
	char from[64];                 /* address of the sender, on a ROUTER: see wire_address */
	zmq_msg_t body;                /* valid after a return of 1: wire_message_close */
};
/* Takes one message off the socket. 1: m is filled; 0: there is none; negative: a message of a
 * wrong shape was dropped (m has route and user, body is closed). On a ROUTER one over
 * LIMIT_MESSAGE_BYTES is returned too: unpacking refuses it, so that it is answered. */
int wire_receive(void *socket, bool router, struct wire_message *m, struct err *e);
/* ZeroMQ's address of a peer, made readable: an IP, or "uid 1000 pid 77" of a local process. */
void wire_address(char *address, size_t room);
void wire_message_move(struct wire_message *to, struct wire_message *from); /* no copy is made */
void wire_message_close(struct wire_message *m);

/* ---- sockets */

/* "ipc:///path" with a path of at most 107 bytes, or "tcp://host:port" (binding: '*' as host). */
int wire_endpoint_check(const char *endpoint, struct err *e);
/* A DEALER connecting to endpoint, whose public key is server_key. The caller closes it
 * (zmq_close). watch gets the watcher of its events: the caller sends only when told WIRE_READY;
 * what was received can be read after a WIRE_LOST, and what was not sent by then goes with the next
 * connection. With a NULL nothing is queued before the handshake is through, and what was not read
 * when a connection was lost is lost with it. */
struct wire_watch;
int wire_dealer(void *context, const char *endpoint, const char *server_key,
		const struct key_pair *own, void **out, struct wire_watch **watch, struct err *e);
/* A ROUTER with the daemon's keys and a ZAP domain; bind it with wire_bind after the ZAP
 * handler. */
int wire_router(void *context, const struct key_pair *server, void **out, struct err *e);
/* Binds; makes no folder. An ipc socket gets mode 0600 | group/other bits of `mode`. */
int wire_bind(void *router, const char *endpoint, unsigned mode, struct err *e);

/* ---- what befalls a DEALER */

enum wire_event {
	WIRE_NOTHING,   /* no news */
	WIRE_READY,     /* connected and the handshake is through */
	WIRE_REFUSED,   /* the daemon does not accept our key; it will not be tried again */
	WIRE_FULL,      /* the daemon takes no more connections now */
	WIRE_STRANGER,  /* who answers has another server key or is no daemon */
	WIRE_ABSENT,    /* nobody listens there; it is tried again */
	WIRE_LOST,      /* the connection broke; it is tried again */
};
enum wire_event wire_watch_next(struct wire_watch *w); /* WIRE_NOTHING when drained */
void *wire_watch_socket(struct wire_watch *w);         /* to poll for ZMQ_POLLIN */
/* After the DEALER was closed; NULL is fine. */
void wire_watch_close(struct wire_watch *w);

/* ---- what befalls the connections of a ROUTER */

/* Before it is bound; *peers is to be drained often. Takes one descriptor more a connection. */
struct wire_peers;
int wire_router_watch(void *context, void *router, struct wire_peers **peers, struct err *e);
enum wire_peer {
	PEER_NOTHING, /* no news */
	PEER_CAME,    /* a connection: nobody is known by it yet */
	PEER_WENT,
	PEER_BROKE, /* it broke the protocol, so it was closed; that it went comes, too */
};
/* Of PEER_BROKE *what says how and *from its address ("": not known), until the next call. */
enum wire_peer wire_router_next(struct wire_peers *p, const char **what, const char **from);
void wire_peers_close(struct wire_peers *p); /* after the ROUTER; NULL is fine */

#endif
