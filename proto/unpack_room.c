/* SPDX-License-Identifier: Apache-2.0
 * An allocator of protobuf-c's that gives pieces of one room; see unpack_room.h. */
#include "config.h"
#include "proto/unpack_room.h"

#include <stdlib.h>

static void *room_take(void *data, size_t size)
{
	struct unpack_room *room = data;
	char *at = room->bytes + room->used;

	size = (size + 15) / 16 * 16;
	if (size > room->left) {
		room->exceeded = true;
		return NULL;
	}
	room->left -= size;
	if (size > sizeof room->bytes - room->used) {
		room->over = true;
		return malloc(size);
	}
	room->used += size;
	return at;
}

static void room_give(void *data, void *p)
{
	struct unpack_room *room = data;

	if ((char *)p < room->bytes || (char *)p >= room->bytes + sizeof room->bytes)
		free(p);
}

ProtobufCMessage *unpack_in_room(struct unpack_room *room, const ProtobufCMessageDescriptor *type,
				 const void *data, size_t len, size_t most)
{
	ProtobufCAllocator allocator = { room_take, room_give, room };

	room->left = most;
	return protobuf_c_message_unpack(type, &allocator, len, data);
}

void unpack_room_clear(struct unpack_room *room, ProtobufCMessage *m)
{
	ProtobufCAllocator allocator = { room_take, room_give, room };

	if (m && room->over)
		protobuf_c_message_free_unpacked(m, &allocator);
	room->used = 0;
	room->exceeded = room->over = false;
}
