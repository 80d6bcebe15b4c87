/* SPDX-License-Identifier: Apache-2.0
 * Records of store.proto in and out of a table: packed, unpacked, their version checked both ways.
 * Every record message begins with `required uint32 version = 1`. */
#ifndef STORE_RECORD_H
#define STORE_RECORD_H

#include "proto/unpack_room.h"
#include "store/state.h"

#include <protobuf-c/protobuf-c.h>

/* Sets the record's version and puts it. */
int record_put(struct state *s, enum state_table table, const void *key, size_t key_len,
	       ProtobufCMessage *record, struct err *e);
/* TF_ENOTFOUND without a sentence when it is not there; TF_ECORRUPT when it cannot be read. The
 * caller frees *out with protobuf_c_message_free_unpacked(*out, NULL). */
int record_get(struct state *s, enum state_table table, const void *key, size_t key_len,
	       const ProtobufCMessageDescriptor *type, void *out, struct err *e);
/* Unpacks a value met on a walk. */
int record_unpack(struct state_value value, const ProtobufCMessageDescriptor *type, void *out,
		  struct err *e);
/* The same, the record lasting until the room is cleared. */
int record_unpack_in(struct unpack_room *room, struct state_value value,
		     const ProtobufCMessageDescriptor *type, void *out, struct err *e);
/* Frees an unpacked record and clears the pointer; NULL is fine. */
#define record_free(p)                                                                             \
	do {                                                                                       \
		if (p)                                                                             \
			protobuf_c_message_free_unpacked(&(p)->base, NULL);                        \
		(p) = NULL;                                                                        \
	} while (0)

#endif
