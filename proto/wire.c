/* SPDX-License-Identifier: Apache-2.0
 * Packing, unpacking within bounds, and single messages on sockets; see wire.h. */
#include "config.h"
#include "proto/wire.h"
#include "lib/mem.h"
#include "proto/unpack_room.h"
#include "proto/wire_check.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define UNPACK_FLOOR (64u << 10) /* small messages unpack to more than 8 times their size */

/* ---- unpacking */

struct allowance {
	size_t left;
	bool exceeded;
};

static void *limited_alloc(void *data, size_t size)
{
	struct allowance *a = data;

	if (size > a->left) {
		a->exceeded = true;
		return NULL;
	}
	a->left -= size;
	return malloc(size ? size : 1);
}

static void limited_free(void *data, void *p)
{
	(void)data;
	free(p);
}

static int not_unpacked(const ProtobufCMessageDescriptor *type, size_t len, bool exceeded,
			size_t most, struct err *e)
{
	FAIL_IF(exceeded, e, TF_ELIMIT,
		"a message of %zu bytes unpacks to more than %zu bytes, which is refused", len,
		most);
	return err_set(e, TF_EINVALID, "a message of type %s lacks a required field or is damaged",
		       type->short_name);
}

static void drop_unknown(ProtobufCMessage *m, ProtobufCAllocator *allocator);

static void drop_below(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
		       ProtobufCAllocator *allocator)
{
	char *at = (char *)m + f->offset, *quantifier = (char *)m + f->quantifier_offset;
	size_t n = 1;

	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		n = *(size_t *)quantifier;
		at = *(char **)at;
	} else if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
		n = *(uint32_t *)quantifier == f->id;
	}
	for (size_t i = 0; i < n; i++)
		if (((ProtobufCMessage **)at)[i])
			drop_unknown(((ProtobufCMessage **)at)[i], allocator);
}

/* Fields of another version are passed over, not on: they would be packed again with the rest, into
 * records and answers whose size is known by the fields that were checked. */
static void drop_unknown(ProtobufCMessage *m, ProtobufCAllocator *allocator)
{
	for (unsigned i = 0; i < m->n_unknown_fields; i++)
		allocator->free(allocator->allocator_data, m->unknown_fields[i].data);
	if (m->unknown_fields)
		allocator->free(allocator->allocator_data, m->unknown_fields);
	m->unknown_fields = NULL;
	m->n_unknown_fields = 0;
	for (unsigned i = 0; i < m->descriptor->n_fields; i++)
		if (m->descriptor->fields[i].type == PROTOBUF_C_TYPE_MESSAGE)
			drop_below(m, &m->descriptor->fields[i], allocator);
}

static int unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t len,
		  size_t factor, ProtobufCMessage **out, struct err *e)
{
	size_t most = UNPACK_FLOOR + factor * len;
	struct allowance allowance = { most, false };
	ProtobufCAllocator allocator = { limited_alloc, limited_free, &allowance };
	bool unknown;

	TRY(wire_check(type, data, len, &unknown, e));
	*out = protobuf_c_message_unpack(type, &allocator, len, data);
	if (*out && unknown)
		drop_unknown(*out, &allocator);
	return *out ? 0 : not_unpacked(type, len, allowance.exceeded, most, e);
}

int wire_unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t len,
		ProtobufCMessage **out, struct err *e)
{
	return unpack(type, data, len, LIMIT_UNPACK_FACTOR, out, e);
}

static int check_version(const char *who, uint64_t version, struct err *e)
{
	FAIL_IF(version != TF_PROTOCOL_VERSION, e, TF_EVERSION,
		"%s speaks version %" PRIu64 " of the protocol, expected %u", who, version,
		TF_PROTOCOL_VERSION);
	return 0;
}

int wire_unpack_request(const void *data, size_t len, Tf__Request **out, uint64_t *id,
			struct err *e)
{
	ProtobufCMessage *m;
	int rc;

	*id = wire_peek_varint(data, len, 2);
	TRY(check_version("the sender", wire_peek_varint(data, len, 1), e));
	TRY(wire_unpack(&tf__request__descriptor, data, len, &m, e));
	*out = (Tf__Request *)m;
	*id = (*out)->id;
	/* of a field that comes twice the first was looked at, and the last counts */
	rc = check_version("the sender", (*out)->version, e);
	if (rc == 0 && *id == 0)
		rc = err_set(e, TF_EINVALID, "a request's id is 0, expected another number");
	if (rc == 0 && (*out)->body_case == TF__REQUEST__BODY__NOT_SET)
		rc = err_set(e, TF_EUNSUPPORTED,
			     "a request of a kind this program does not know");
	if (rc == 0)
		return 0;
	tf__request__free_unpacked(*out, NULL);
	*out = NULL;
	return rc;
}

int wire_unpack_reply(const void *data, size_t len, Tf__Reply **out, struct err *e)
{
	ProtobufCMessage *m;

	TRY(check_version("the daemon", wire_peek_varint(data, len, 1), e));
	TRY(unpack(&tf__reply__descriptor, data, len, LIMIT_UNPACK_REPLY_FACTOR, &m, e));
	*out = (Tf__Reply *)m;
	return 0;
}

int wire_reply_id(const void *data, size_t len, uint64_t *id, struct err *e)
{
	TRY(check_version("the daemon", wire_peek_varint(data, len, 1), e));
	*id = wire_peek_varint(data, len, 2);
	return 0;
}

int wire_unpack_part(struct unpack_room *room, const ProtobufCMessageDescriptor *type,
		     struct wire_cursor part, ProtobufCMessage **out, struct err *e)
{
	size_t len = part.end - part.at, most = UNPACK_FLOOR + LIMIT_UNPACK_REPLY_FACTOR * len;

	TRY(wire_check(type, part.at, len, NULL, e));
	*out = unpack_in_room(room, type, part.at, len, most);
	return *out ? 0 : not_unpacked(type, len, room->exceeded, most, e);
}

/* ---- sending */

int wire_pack(const ProtobufCMessage *m, uint8_t **out, size_t *len, struct err *e)
{
	*len = protobuf_c_message_get_packed_size(m);
	FAIL_IF(*len > LIMIT_MESSAGE_BYTES, e, TF_ELIMIT,
		"a message would have %zu bytes, at most %u fit into one", *len,
		LIMIT_MESSAGE_BYTES);
	*out = xmalloc(*len ? *len : 1);
	protobuf_c_message_pack(m, *out);
	return 0;
}

static int send_failed(struct err *e)
{
	if (errno == EHOSTUNREACH)
		return err_set(e, TF_ENOTFOUND, "the receiver is not connected");
	if (errno == EAGAIN)
		return err_set(e, TF_EBUSY, "the receiver takes no messages now");
	return err_set(e, TF_EIO, "cannot send a message: %s", zmq_strerror(errno));
}

/* A frame, waiting for nothing; a signal in between does not lose it. */
static int send_frame(void *socket, const void *data, size_t len, int flags)
{
	int rc;

	do
		rc = zmq_send(socket, data, len, flags | ZMQ_DONTWAIT);
	while (rc < 0 && errno == EINTR);
	return rc;
}

int wire_send_bytes(void *socket, const void *route, size_t route_len, const void *data, size_t len,
		    struct err *e)
{
	FAIL_IF(len > LIMIT_MESSAGE_BYTES, e, TF_ELIMIT,
		"a message has %zu bytes, at most %u are allowed", len, LIMIT_MESSAGE_BYTES);
	if (route_len && send_frame(socket, route, route_len, ZMQ_SNDMORE) < 0)
		return send_failed(e);
	return send_frame(socket, data, len, 0) < 0 ? send_failed(e) : 0;
}

int wire_send(void *socket, const void *route, size_t route_len, const ProtobufCMessage *m,
	      struct err *e)
{
	uint8_t *data = NULL;
	size_t len;
	int rc;

	TRY(wire_pack(m, &data, &len, e));
	rc = wire_send_bytes(socket, route, route_len, data, len, e);
	xfree(data);
	return rc;
}

/* ---- receiving */

static int receive_frame(void *socket, zmq_msg_t *frame)
{
	int rc;

	zmq_msg_init(frame);
	do
		rc = zmq_msg_recv(frame, socket, ZMQ_DONTWAIT);
	while (rc < 0 && errno == EINTR);
	if (rc < 0)
		zmq_msg_close(frame);
	return rc;
}

/* Drops the frames that follow; returns how many. */
static unsigned drop_rest(void *socket, bool more)
{
	unsigned n = 0;

	while (more) {
		zmq_msg_t frame;

		if (receive_frame(socket, &frame) < 0)
			break;
		n++;
		more = zmq_msg_more(&frame);
		zmq_msg_close(&frame);
	}
	return n;
}

void wire_address(char *address, size_t room)
{
	unsigned long uid, gid, pid;

	if (sscanf(address, "localhost:%lu:%lu:%lu", &uid, &gid, &pid) == 3)
		snprintf(address, room, "uid %lu pid %lu", uid, pid);
}

static void note_user(zmq_msg_t *frame, struct wire_message *m)
{
	const char *user = zmq_msg_gets(frame, "User-Id");
	const char *from = zmq_msg_gets(frame, "Peer-Address");

	if (from) {
		snprintf(m->from, sizeof m->from, "%s", from);
		wire_address(m->from, sizeof m->from);
	}
	if (user && strlen(user) < sizeof m->user)
		strcpy(m->user, user);
}

/* The routing id that a ROUTER puts first. */
static int receive_route(void *socket, struct wire_message *m, struct err *e)
{
	zmq_msg_t frame;
	int n = receive_frame(socket, &frame);
	bool more;

	if (n < 0)
		return errno == EAGAIN ? 0 : err_set(e, TF_EIO, "cannot receive: %s",
						     zmq_strerror(errno));
	more = zmq_msg_more(&frame);
	note_user(&frame, m);
	if (n > 0 && n <= WIRE_ROUTE_MAX) {
		memcpy(m->route, zmq_msg_data(&frame), n);
		m->route_len = n;
	}
	zmq_msg_close(&frame);
	if (m->route_len && more)
		return 1;
	drop_rest(socket, more);
	return err_set(e, TF_EINVALID, "a message without a body");
}

int wire_receive(void *socket, bool router, struct wire_message *m, struct err *e)
{
	unsigned extra;
	int rc;

	m->route_len = 0;
	m->user[0] = m->from[0] = 0;
	if (router && (rc = receive_route(socket, m, e)) <= 0)
		return rc;
	if (receive_frame(socket, &m->body) < 0) {
		if (errno == EAGAIN)
			return 0;
		return err_set(e, TF_EIO, "cannot receive: %s", zmq_strerror(errno));
	}
	extra = drop_rest(socket, zmq_msg_more(&m->body));
	if (extra == 0 && (router || zmq_msg_size(&m->body) <= LIMIT_MESSAGE_BYTES)) {
		note_user(&m->body, m);
		return 1;
	}
	rc = err_set(e, TF_EINVALID,
		     "a message of %u parts and %zu bytes, expected 1 of at most %u", extra + 1,
		     zmq_msg_size(&m->body), LIMIT_MESSAGE_BYTES);
	zmq_msg_close(&m->body);
	return rc;
}

void wire_message_move(struct wire_message *to, struct wire_message *from)
{
	*to = *from;
	zmq_msg_init(&to->body);
	zmq_msg_move(&to->body, &from->body);
	zmq_msg_close(&from->body);
}

void wire_message_close(struct wire_message *m)
{
	zmq_msg_close(&m->body);
}
