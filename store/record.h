/* SPDX-License-Identifier: Apache-2.0
 * Records of store.proto in and out of a table: packed, unpacked, their version checked both ways.
 * Every record message begins with `required uint32 version = 1`. */
#ifndef STORE_RECORD_H
#define STORE_RECORD_H

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
/* Memory of one record after another, for a walk: most of unpacking would be malloc's. */
struct record_room {
	size_t used;
	bool over; /* something did not fit and was allocated */
	_Alignas(16) char bytes[8192];
};
/* The same in a room that is all zeros or was cleared; *out lasts until it is. */
int record_unpack_in(struct record_room *room, struct state_value value,
		     const ProtobufCMessageDescriptor *type, void *out, struct err *e);
void record_room_clear(struct record_room *room, ProtobufCMessage *record); /* NULL is fine */
/* Frees an unpacked record and clears the pointer; NULL is fine. */
#define record_free(p)                                                                             \
	do {                                                                                       \
		if (p)                                                                             \
			protobuf_c_message_free_unpacked(&(p)->base, NULL);                        \
		(p) = NULL;                                                                        \
	} while (0)

#endif
