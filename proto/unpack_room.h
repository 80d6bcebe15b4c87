/* SPDX-License-Identifier: Apache-2.0
 * Memory of one unpacked message after another, for walks over many small ones: most of unpacking
 * them would be malloc's, and together they would lie in more memory than the processor keeps near.
 */
#ifndef PROTO_UNPACK_ROOM_H
#define PROTO_UNPACK_ROOM_H

#include <protobuf-c/protobuf-c.h>

#include <stdbool.h>
#include <stddef.h>

/* All zeros, or cleared. */
struct unpack_room {
	size_t used;
	size_t left;   /* may be taken yet */
	bool exceeded; /* more was asked for */
	bool over;     /* something did not fit and was allocated */
	_Alignas(16) char bytes[8192];
};

/* The message lasts until the room is cleared. NULL: the bytes are damaged, or it would take more
 * than `most` bytes (exceeded). */
ProtobufCMessage *unpack_in_room(struct unpack_room *room, const ProtobufCMessageDescriptor *type,
				 const void *data, size_t len, size_t most);
void unpack_room_clear(struct unpack_room *room, ProtobufCMessage *m); /* NULL is fine */

#endif
