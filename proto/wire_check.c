/* SPDX-License-Identifier: Apache-2.0
 * A walk over the bytes of a message; see wire_check.h. */
#include "config.h"
#include "proto/wire_check.h"
#include "lib/bytes.h"
#include "proto/limits.h"

#include <inttypes.h>
#include <string.h>

static inline int take_varint(struct wire_cursor *c, uint64_t *out)
{
	uint64_t value = 0;

	if (c->at < c->end && *c->at < 0x80) { /* nearly all */
		*out = *c->at++;
		return 0;
	}
	for (int shift = 0; shift < 64 && c->at < c->end; shift += 7) {
		uint8_t byte = *c->at++;

		value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80)) {
			*out = value;
			return 0;
		}
	}
	return -1;
}

static int take_bytes(struct wire_cursor *c, uint64_t n, struct wire_cursor *out)
{
	if (n > (uint64_t)(c->end - c->at))
		return -1;
	out->at = c->at;
	out->end = c->at += n;
	return 0;
}

static int take_value(struct wire_cursor *c, struct wire_field *out)
{
	uint64_t length;

	switch (out->type) {
	case WIRE_VARINT:
		return take_varint(c, &out->value);
	case WIRE_FIXED64:
		return take_bytes(c, 8, &out->bytes);
	case WIRE_FIXED32:
		return take_bytes(c, 4, &out->bytes);
	case WIRE_BYTES:
		if (take_varint(c, &length) < 0)
			return -1;
		return take_bytes(c, length, &out->bytes);
	default: /* groups are not of this protocol */
		return -1;
	}
}

int wire_next(struct wire_cursor *c, struct wire_field *out)
{
	uint64_t tag;

	if (c->at >= c->end)
		return 0;
	if (take_varint(c, &tag) < 0 || tag >> 3 == 0 || tag >> 3 > (1u << 29) - 1)
		return -1;
	out->number = (uint32_t)(tag >> 3);
	out->type = (enum wire_type)(tag & 7);
	return take_value(c, out) < 0 ? -1 : 1;
}

uint64_t wire_peek_varint(const void *data, size_t len, uint32_t field)
{
	struct wire_cursor c = { data, (const uint8_t *)data + len };
	struct wire_field el;

	while (wire_next(&c, &el) > 0)
		if (el.number == field && el.type == WIRE_VARINT)
			return el.value;
	return 0;
}

/* Bytes of the UTF-8 character at p, or 0 when there is none. */
static size_t utf8_length(const uint8_t *p, size_t left)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t n = *p < 0x80 ? 1 : *p >> 5 == 6 ? 2 : *p >> 4 == 14 ? 3 : *p >> 3 == 30 ? 4 : 0;
	uint32_t code = n > 1 ? *p & (0x7fu >> n) : *p;

	if (n == 0 || n > left)
		return 0;
	for (size_t i = 1; i < n; i++) {
		if (p[i] >> 6 != 2)
			return 0;
		code = code << 6 | (p[i] & 0x3f);
	}
	if (code == 0 || code < least[n] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
		return 0;
	return n;
}

int wire_text_check(const char *text, size_t len)
{
	const uint8_t *p = (const uint8_t *)text;

	/* as nearly all texts are */
	for (; len >= 8 && bytes_are_ascii(bytes_load(p)); len -= 8)
		p += 8;
	while (len) {
		size_t n = utf8_length(p, len);

		if (n == 0)
			return TF_EINVALID;
		p += n;
		len -= n;
	}
	return 0;
}

/* What a text may be long that has more than LIMIT_TEXT_BYTES. The exact bounds of a spec's fields
 * are in spec.c. */
static size_t text_limit(const ProtobufCFieldDescriptor *field)
{
	if (strcmp(field->name, "experiment") == 0)
		return LIMIT_EXPERIMENT_BYTES;
	if (strcmp(field->name, "json") == 0)
		return LIMIT_MESSAGE_BYTES;
	return LIMIT_TEXT_BYTES;
}

static int check_text(const char *in, const ProtobufCFieldDescriptor *field,
		      struct wire_cursor text, struct err *e)
{
	size_t len = text.end - text.at;

	FAIL_IF(len > LIMIT_TEXT_BYTES && len > text_limit(field), e, TF_ELIMIT,
		"field '%s' of %s has %zu bytes, at most %zu are allowed", field->name, in, len,
		text_limit(field));
	FAIL_IF(wire_text_check((const char *)text.at, len) < 0, e, TF_EINVALID,
		"field '%s' of %s is not UTF-8 text without NUL", field->name, in);
	return 0;
}

static int check_enum(const char *in, const ProtobufCFieldDescriptor *field, uint64_t value,
		      struct err *e)
{
	FAIL_IF(!protobuf_c_enum_descriptor_get_value(field->descriptor, (int)(int32_t)value), e,
		TF_EINVALID, "field '%s' of %s has the value %" PRId32 ", which is no %s",
		field->name, in, (int32_t)value,
		((const ProtobufCEnumDescriptor *)field->descriptor)->short_name);
	return 0;
}

static int check_enums(const char *in, const ProtobufCFieldDescriptor *field, struct wire_field *el,
		       struct err *e)
{
	struct wire_cursor packed = el->bytes;

	if (el->type == WIRE_VARINT)
		return check_enum(in, field, el->value, e);
	FAIL_IF(el->type != WIRE_BYTES, e, TF_EINVALID, "field '%s' of %s is damaged",
		field->name, in);
	while (packed.at < packed.end) {
		uint64_t value;

		FAIL_IF(take_varint(&packed, &value) < 0, e, TF_EINVALID,
			"field '%s' of %s is damaged", field->name, in);
		TRY(check_enum(in, field, value, e));
	}
	return 0;
}

static int check_message(const ProtobufCMessageDescriptor *type, struct wire_cursor c, int depth,
			 bool *unknown, struct err *e);

static int check_field(const char *in, const ProtobufCFieldDescriptor *field, struct wire_field *el,
		       int depth, bool *unknown, struct err *e)
{
	if (field->type == PROTOBUF_C_TYPE_ENUM)
		return check_enums(in, field, el, e);
	if (field->type != PROTOBUF_C_TYPE_STRING && field->type != PROTOBUF_C_TYPE_MESSAGE)
		return 0;
	FAIL_IF(el->type != WIRE_BYTES, e, TF_EINVALID, "field '%s' of %s is damaged",
		field->name, in);
	if (field->type == PROTOBUF_C_TYPE_STRING)
		return check_text(in, field, el->bytes, e);
	return check_message(field->descriptor, el->bytes, depth + 1, unknown, e);
}

static int check_message(const ProtobufCMessageDescriptor *type, struct wire_cursor c, int depth,
			 bool *unknown, struct err *e)
{
	struct wire_field el;
	int rc;

	FAIL_IF(depth > WIRE_DEPTH_MAX, e, TF_ELIMIT, "a message is nested more than %d deep",
		WIRE_DEPTH_MAX);
	while ((rc = wire_next(&c, &el)) > 0) {
		const ProtobufCFieldDescriptor *field =
			protobuf_c_message_descriptor_get_field(type, el.number);

		if (field)
			TRY(check_field(type->short_name, field, &el, depth, unknown, e));
		*unknown |= !field;
	}
	FAIL_IF(rc < 0, e, TF_EINVALID, "a message of type %s is damaged or cut short",
		type->short_name);
	return 0;
}

int wire_check(const ProtobufCMessageDescriptor *type, const void *data, size_t len, bool *unknown,
	       struct err *e)
{
	struct wire_cursor c = { data, (const uint8_t *)data + len };
	bool none;

	unknown = unknown ? unknown : &none;
	*unknown = false;
	FAIL_IF(len > LIMIT_MESSAGE_BYTES, e, TF_ELIMIT,
		"a message of %zu bytes; at most %u are allowed", len, LIMIT_MESSAGE_BYTES);
	return check_message(type, c, 1, unknown, e);
}
