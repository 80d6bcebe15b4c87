/* SPDX-License-Identifier: Apache-2.0
 * Packing and unpacking of the store's records; see record.h. */
#include "config.h"
#include "store/record.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <stdlib.h>
#include <string.h>

/* The version field comes first in every record. */
static uint32_t *version_of(ProtobufCMessage *record)
{
	const ProtobufCFieldDescriptor *f = record->descriptor->fields;

	CHECK(f->id == 1 && f->type == PROTOBUF_C_TYPE_UINT32 && strcmp(f->name, "version") == 0);
	return (uint32_t *)((char *)record + f->offset);
}

int record_put(struct state *s, enum state_table table, const void *key, size_t key_len,
	       ProtobufCMessage *record, struct err *e)
{
	uint8_t small[1024], *data = small;
	size_t len;
	int rc;

	*version_of(record) = TF_STORE_VERSION;
	CHECK(protobuf_c_message_check(record));
	len = protobuf_c_message_get_packed_size(record);
	if (len > sizeof small)
		data = xmalloc(len);
	protobuf_c_message_pack(record, data);
	rc = state_put(s, table, key, key_len, data, len, e);
	if (data != small)
		xfree(data);
	return rc;
}

static int unpack(ProtobufCAllocator *allocator, struct state_value value,
		  const ProtobufCMessageDescriptor *type, void *out, struct err *e)
{
	ProtobufCMessage *m = protobuf_c_message_unpack(type, allocator, value.len, value.data);
	uint32_t version;

	FAIL_IF(!m, e, TF_ECORRUPT, "store: a %s of %zu bytes cannot be read", type->short_name,
		value.len);
	version = *version_of(m);
	if (version == 0 || version > TF_STORE_VERSION) {
		protobuf_c_message_free_unpacked(m, allocator);
		return err_set(e, TF_EVERSION, "store: a %s of version %u, this program knows %u",
			       type->short_name, version, TF_STORE_VERSION);
	}
	*(ProtobufCMessage **)out = m;
	return 0;
}

int record_unpack(struct state_value value, const ProtobufCMessageDescriptor *type, void *out,
		  struct err *e)
{
	return unpack(NULL, value, type, out, e);
}

static void *room_take(void *data, size_t size)
{
	struct record_room *room = data;
	char *at = room->bytes + room->used;

	size = (size + 15) / 16 * 16;
	if (size > sizeof room->bytes - room->used) {
		room->over = true;
		return malloc(size);
	}
	room->used += size;
	return at;
}

static void room_give(void *data, void *p)
{
	struct record_room *room = data;

	if ((char *)p < room->bytes || (char *)p >= room->bytes + sizeof room->bytes)
		free(p);
}

int record_unpack_in(struct record_room *room, struct state_value value,
		     const ProtobufCMessageDescriptor *type, void *out, struct err *e)
{
	ProtobufCAllocator allocator = { room_take, room_give, room };

	return unpack(&allocator, value, type, out, e);
}

void record_room_clear(struct record_room *room, ProtobufCMessage *record)
{
	ProtobufCAllocator allocator = { room_take, room_give, room };

	if (record && room->over)
		protobuf_c_message_free_unpacked(record, &allocator);
	room->used = 0;
	room->over = false;
}

int record_get(struct state *s, enum state_table table, const void *key, size_t key_len,
	       const ProtobufCMessageDescriptor *type, void *out, struct err *e)
{
	struct state_value v;

	TRY(state_get(s, table, key, key_len, &v, e));
	return record_unpack(v, type, out, e);
}
