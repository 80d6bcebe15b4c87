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

/* What was unpacked, when it is of a version that is known; NULL: it cannot be read. */
static int check(ProtobufCMessage *m, struct state_value value,
		 const ProtobufCMessageDescriptor *type, struct err *e)
{
	uint32_t version;

	FAIL_IF(!m, e, TF_ECORRUPT, "store: a %s of %zu bytes cannot be read", type->short_name,
		value.len);
	version = *version_of(m);
	FAIL_IF(version == 0 || version > TF_STORE_VERSION, e, TF_EVERSION,
		"store: a %s of version %u, this program knows %u", type->short_name, version,
		TF_STORE_VERSION);
	return 0;
}

int record_unpack(struct state_value value, const ProtobufCMessageDescriptor *type, void *out,
		  struct err *e)
{
	ProtobufCMessage *m = protobuf_c_message_unpack(type, NULL, value.len, value.data);
	int rc = check(m, value, type, e);

	if (rc < 0 && m)
		protobuf_c_message_free_unpacked(m, NULL);
	if (rc == 0)
		*(ProtobufCMessage **)out = m;
	return rc;
}

int record_unpack_in(struct unpack_room *room, struct state_value value,
		     const ProtobufCMessageDescriptor *type, void *out, struct err *e)
{
	ProtobufCMessage *m = unpack_in_room(room, type, value.data, value.len, SIZE_MAX);
	int rc = check(m, value, type, e);

	if (rc < 0)
		unpack_room_clear(room, m);
	else
		*(ProtobufCMessage **)out = m;
	return rc;
}

int record_get(struct state *s, enum state_table table, const void *key, size_t key_len,
	       const ProtobufCMessageDescriptor *type, void *out, struct err *e)
{
	struct state_value v;

	TRY(state_get(s, table, key, key_len, &v, e));
	return record_unpack(v, type, out, e);
}
