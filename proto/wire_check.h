/* SPDX-License-Identifier: Apache-2.0
 * The look at a message's bytes before protobuf-c sees them: it accepts texts that are no text
 * and enum values that do not exist, and forgets how long a text was. */
#ifndef PROTO_WIRE_CHECK_H
#define PROTO_WIRE_CHECK_H

#include "lib/err.h"
#include "proto/transfused.pb-c.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_DEPTH_MAX 8 /* of messages in messages; the deepest of transfused.proto has 6 */

/* ---- a message's fields, one after another */

enum wire_type { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };
struct wire_cursor {
	const uint8_t *at, *end;
};
/* One field as it lies in the message. */
struct wire_field {
	uint32_t number;
	enum wire_type type;
	uint64_t value;           /* of a varint */
	struct wire_cursor bytes; /* of the other types */
};
/* 1: a field, behind which c is now; 0: c is at the end; negative: damaged or cut short. */
int wire_next(struct wire_cursor *c, struct wire_field *out);

/* ---- the whole of it */

/* Walks the bytes along the descriptor: framing, wire types, depth, enum values, texts (UTF-8,
 * no NUL, length). Unknown fields are stepped over; *unknown (may be NULL) says whether there are
 * any. */
int wire_check(const ProtobufCMessageDescriptor *type, const void *data, size_t len, bool *unknown,
	       struct err *e);
/* The first varint field number `field` of the outermost message; 0 when there is none before the
 * first fault. Used for version and id of a message that is refused. */
uint64_t wire_peek_varint(const void *data, size_t len, uint32_t field);
/* The bytes are valid UTF-8 (no surrogates, no overlong forms) without NUL. */
int wire_text_check(const char *text, size_t len);

#endif
