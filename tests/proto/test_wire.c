/* SPDX-License-Identifier: Apache-2.0
 * Messages: round trips, and what hostile bytes are answered. */
#include "tests/test.h"
#include "lib/buf.h"
#include "lib/mem.h"
#include "proto/wire.h"
#include "proto/wire_check.h"

#include <stdlib.h>
#include <string.h>

static void put_varint(struct buf *b, uint64_t value)
{
	do {
		uint8_t byte = (value & 0x7f) | (value > 0x7f ? 0x80 : 0);

		buf_append(b, &byte, 1);
		value >>= 7;
	} while (value);
}

static void put_tag(struct buf *b, unsigned field, unsigned type)
{
	put_varint(b, field << 3 | type);
}

static void put_bytes(struct buf *b, unsigned field, const void *data, size_t len)
{
	put_tag(b, field, 2);
	put_varint(b, len);
	buf_append(b, data, len);
}

static void put_number(struct buf *b, unsigned field, uint64_t value)
{
	put_tag(b, field, 0);
	put_varint(b, value);
}

/* version and id of a request */
static void put_head(struct buf *b)
{
	put_number(b, 1, TF_PROTOCOL_VERSION);
	put_number(b, 2, 7);
}

static int refusal(const struct buf *b, const char *word)
{
	struct err e = ERR_INIT;
	Tf__Request *r = NULL;
	uint64_t id;
	int rc = wire_unpack_request(b->data, b->len, &r, &id, &e);

	if (rc == 0)
		tf__request__free_unpacked(r, NULL);
	else if (!strstr(e.text, word))
		fail_msg("'%s' does not name %s", e.text, word);
	return rc;
}

static void round_trip(void **state)
{
	struct err e = ERR_INIT;
	Tf__Request r = TF__REQUEST__INIT, *back;
	Tf__Submit submit = TF__SUBMIT__INIT;
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__GenerateSpec generate = TF__GENERATE_SPEC__INIT;
	char *prompts[] = { "ein Käse", "红苹果", "" };
	uint8_t token[16] = { 1, 0, 255 }, *data;
	uint64_t id;
	size_t len;

	(void)state;
	generate.model = "emoji@ema";
	generate.prompt = prompts;
	generate.n_prompt = 3;
	spec.kind = TF__JOB_KIND__GENERATE;
	spec.spec_case = TF__JOB_SPEC__SPEC_GENERATE;
	spec.generate = &generate;
	submit.token.data = token;
	submit.token.len = sizeof token;
	submit.spec = &spec;
	r.version = TF_PROTOCOL_VERSION;
	r.id = UINT64_MAX;
	r.body_case = TF__REQUEST__BODY_SUBMIT;
	r.submit = &submit;
	assert_ok(wire_pack(&r.base, &data, &len, &e), &e);
	assert_ok(wire_unpack_request(data, len, &back, &id, &e), &e);
	assert_true(id == UINT64_MAX);
	assert_int_equal(back->submit->spec->generate->n_prompt, 3);
	assert_string_equal(back->submit->spec->generate->prompt[1], "红苹果");
	assert_memory_equal(back->submit->token.data, token, 16);
	tf__request__free_unpacked(back, NULL);
	/* no prefix of it is a request, none reads beyond */
	for (size_t cut = 0; cut < len; cut++) {
		uint8_t *part = xmemdup(data, cut);

		assert_true(wire_unpack_request(part, cut, &back, &id, NULL) < 0);
		xfree(part);
	}
	xfree(data);
}

static void versions_and_bodies(void **state)
{
	struct buf b = BUF_INIT;

	(void)state;
	put_number(&b, 1, 99);
	put_number(&b, 2, 5);
	put_bytes(&b, 10, "", 0);
	assert_int_equal(refusal(&b, "version 99"), TF_EVERSION);
	buf_clear(&b);
	put_head(&b);
	assert_int_equal(refusal(&b, "kind"), TF_EUNSUPPORTED);
	put_bytes(&b, 3000, "future", 6); /* an unknown body is answered, not dropped */
	assert_int_equal(refusal(&b, "kind"), TF_EUNSUPPORTED);
	buf_clear(&b);
	put_number(&b, 1, TF_PROTOCOL_VERSION);
	put_number(&b, 2, 0);
	put_bytes(&b, 10, "", 0);
	assert_int_equal(refusal(&b, "id is 0"), TF_EINVALID);
	buf_clear(&b);
	put_head(&b);
	put_bytes(&b, 10, "", 0);
	put_number(&b, 1, 99); /* once more: the last counts */
	assert_int_equal(refusal(&b, "version 99"), TF_EVERSION);
	buf_release(&b);
}

/* A request data_sample{name} with these bytes as the name. */
static int sample_named(const void *name, size_t len, const char *word)
{
	struct buf inner = BUF_INIT, b = BUF_INIT;
	int rc;

	put_bytes(&inner, 1, name, len);
	put_head(&b);
	put_bytes(&b, 27, inner.data, inner.len);
	rc = refusal(&b, word);
	buf_release(&inner);
	buf_release(&b);
	return rc;
}

static void texts(void **state)
{
	char *large = xcalloc(1, LIMIT_TEXT_BYTES + 1);

	(void)state;
	memset(large, 'x', LIMIT_TEXT_BYTES + 1);
	assert_int_equal(sample_named("cats", 4, ""), 0);
	assert_int_equal(sample_named("c\0ts", 4, "'name' of DataSample"), TF_EINVALID);
	assert_int_equal(sample_named("\xff", 1, "UTF-8"), TF_EINVALID);
	assert_int_equal(sample_named("\xc0\x80", 2, "UTF-8"), TF_EINVALID);     /* overlong */
	assert_int_equal(sample_named("\xed\xa0\x80", 3, "UTF-8"), TF_EINVALID); /* surrogate */
	assert_int_equal(sample_named("\xf4\x90\x80\x80", 4, "UTF-8"), TF_EINVALID);
	assert_int_equal(sample_named("\xe2\x82", 2, "UTF-8"), TF_EINVALID); /* cut */
	assert_int_equal(sample_named("\xf0\x9f\x98\x80", 4, ""), 0);
	assert_int_equal(sample_named(large, LIMIT_TEXT_BYTES, ""), 0);
	assert_int_equal(sample_named(large, LIMIT_TEXT_BYTES + 1, "at most"), TF_ELIMIT);
	xfree(large);
}

static void enums(void **state)
{
	struct buf inner = BUF_INIT, b = BUF_INIT;

	(void)state;
	put_number(&inner, 1, 99);
	put_head(&b);
	put_bytes(&b, 24, inner.data, inner.len);
	assert_int_equal(refusal(&b, "value 99, which is no ArtefactKind"), TF_EINVALID);
	buf_clear(&inner);
	put_bytes(&inner, 1, "\x63", 1); /* packed form of the same */
	buf_clear(&b);
	put_head(&b);
	put_bytes(&b, 24, inner.data, inner.len);
	assert_true(refusal(&b, "") < 0);
	buf_release(&inner);
	buf_release(&b);
}

static void framing(void **state)
{
	static const char *const broken[] = {
		"\x0a",                         /* a length is missing */
		"\x0a\xff\xff\xff\xff\x7f",     /* 32 GiB claimed */
		"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", /* an endless varint */
		"\x0b",                         /* a group */
		"\x0f",                         /* wire type 7 */
		"\x02\x01",                     /* field 0 */
		"\x09\x01\x02",                 /* fixed64 cut */
	};
	struct buf b = BUF_INIT;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(broken); i++) {
		buf_clear(&b);
		put_head(&b);
		put_bytes(&b, 27, broken[i], strlen(broken[i]));
		if (refusal(&b, "") == 0)
			fail_msg("broken bytes %zu were taken", i);
	}
	buf_release(&b);
}

/* Wraps bytes in messages without end: none of our types recurses, so made by hand. */
static void depth(void **state)
{
	static ProtobufCMessageDescriptor nested;
	static ProtobufCFieldDescriptor field;
	static const ProtobufCIntRange range[] = { { 1, 0 }, { 0, 1 } };
	struct buf b = BUF_INIT;
	struct err e = ERR_INIT;

	(void)state;
	field = (ProtobufCFieldDescriptor){ .name = "deeper", .id = 1,
		.label = PROTOBUF_C_LABEL_OPTIONAL, .type = PROTOBUF_C_TYPE_MESSAGE,
		.descriptor = &nested };
	nested = tf__empty__descriptor;
	nested.n_fields = 1;
	nested.fields = &field;
	nested.n_field_ranges = 1;
	nested.field_ranges = range;
	for (int i = 0; i < 2000; i++) {
		char *inner = b.data ? xmemdup(b.data, b.len) : xstrdup("");
		size_t len = b.len;

		buf_clear(&b);
		put_bytes(&b, 1, inner, len);
		xfree(inner);
		if (i == WIRE_DEPTH_MAX - 2)
			assert_int_equal(wire_check(&nested, b.data, b.len, NULL, NULL), 0);
	}
	assert_int_equal(wire_check(&nested, b.data, b.len, NULL, &e), TF_ELIMIT);
	buf_release(&b);
}

/* Hundreds of thousands of tiny fields cost little to send and much to hold. */
static void amplification(void **state)
{
	struct buf inner = BUF_INIT, b = BUF_INIT;

	(void)state;
	for (int i = 0; i < 300000; i++)
		put_number(&inner, 1, 1);
	put_head(&b);
	put_bytes(&b, 18, inner.data, inner.len);
	assert_int_equal(refusal(&b, "unpacks to more than"), TF_ELIMIT);
	buf_clear(&inner);
	for (unsigned i = 0; i < LIMIT_JOB_REFS; i++)
		put_varint(&inner, 1000000 + i);
	buf_clear(&b);
	put_bytes(&b, 1, inner.data, inner.len);
	buf_clear(&inner);
	buf_append(&inner, b.data, b.len);
	buf_clear(&b);
	put_head(&b);
	put_bytes(&b, 18, inner.data, inner.len);
	assert_int_equal(refusal(&b, ""), 0);
	buf_release(&inner);
	buf_release(&b);
}

static void too_long(void **state)
{
	struct err e = ERR_INIT;
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadChunk chunk = TF__UPLOAD_CHUNK__INIT;
	uint8_t *data;
	size_t len;

	(void)state;
	chunk.upload = "u";
	chunk.data.len = LIMIT_MESSAGE_BYTES;
	chunk.data.data = xcalloc(1, chunk.data.len);
	r.body_case = TF__REQUEST__BODY_UPLOAD_CHUNK;
	r.upload_chunk = &chunk;
	assert_int_equal(wire_pack(&r.base, &data, &len, &e), TF_ELIMIT);
	xfree(chunk.data.data);
	data = xcalloc(1, LIMIT_MESSAGE_BYTES + 1);
	err_clear(&e);
	assert_int_equal(wire_check(&tf__request__descriptor, data, LIMIT_MESSAGE_BYTES + 1, NULL,
				    &e),
			 TF_ELIMIT);
	xfree(data);
}

/* A list of as many queued jobs as a reply may hold is no attack. */
static void long_list(void **state)
{
	struct err e = ERR_INIT;
	Tf__Reply r = TF__REPLY__INIT, *back;
	Tf__Jobs jobs = TF__JOBS__INIT;
	Tf__Job *job = xcalloc(LIMIT_JOBS_LISTED, sizeof *job);
	uint8_t *data;
	size_t len;

	(void)state;
	jobs.job = xcalloc(LIMIT_JOBS_LISTED, sizeof *jobs.job);
	jobs.n_job = LIMIT_JOBS_LISTED;
	for (unsigned i = 0; i < LIMIT_JOBS_LISTED; i++) {
		tf__job__init(&job[i]);
		job[i].id = i + 1;
		job[i].kind = TF__JOB_KIND__NOOP;
		job[i].state = TF__JOB_STATE__QUEUED;
		job[i].user = "o";
		jobs.job[i] = &job[i];
	}
	r.version = TF_PROTOCOL_VERSION;
	r.body_case = TF__REPLY__BODY_JOBS;
	r.jobs = &jobs;
	assert_ok(wire_pack(&r.base, &data, &len, &e), &e);
	assert_ok(wire_unpack_reply(data, len, &back, &e), &e);
	assert_int_equal(back->jobs->n_job, LIMIT_JOBS_LISTED);
	tf__reply__free_unpacked(back, NULL);
	xfree(data);
	xfree(jobs.job);
	xfree(job);
}

/* Eight bytes are looked at together: what is no text is found at each place. */
static void texts_of_all_lengths(void **state)
{
	char text[24];

	(void)state;
	for (size_t len = 0; len < sizeof text; len++) {
		memset(text, 'a', len);
		assert_int_equal(wire_text_check(text, len), 0);
		for (size_t at = 0; at < len; at++)
			for (int byte = 0; byte < 256; byte++) {
				text[at] = (char)byte;
				assert_int_equal(wire_text_check(text, len),
						 byte > 0 && byte < 0x80 ? 0 : TF_EINVALID);
				text[at] = 'a';
			}
	}
	memcpy(text, "aaaaaaa\xc3\xa9""aaaaaaa\xf0\x9f\x98\x80", 20);
	assert_int_equal(wire_text_check(text, 20), 0);
	assert_int_equal(wire_text_check(text, 19), TF_EINVALID);
}

/* Field after field; a part of a message is checked like the whole and lies in a room. */
static void parts(void **state)
{
	Tf__Job job = TF__JOB__INIT;
	struct unpack_room room = { .used = 0 };
	ProtobufCMessage *m = NULL;
	struct err e = ERR_INIT;
	struct wire_cursor c, whole;
	struct wire_field f;
	uint64_t numbers = 0;
	uint8_t *data;
	size_t len;

	(void)state;
	job.id = 300;
	job.kind = TF__JOB_KIND__NOOP;
	job.state = TF__JOB_STATE__QUEUED;
	job.user = (char *)"o";
	assert_ok(wire_pack(&job.base, &data, &len, &e), &e);
	whole = c = (struct wire_cursor){ data, data + len };
	while (wire_next(&c, &f) > 0) {
		numbers = 10 * numbers + f.number;
		assert_true(f.number != 1 || f.value == 300);
		assert_true(f.number != 4 || (f.type == WIRE_BYTES && *f.bytes.at == 'o'));
	}
	assert_int_equal(numbers, 1245);
	assert_int_equal(wire_next(&c, &f), 0);
	assert_ok(wire_unpack_part(&room, &tf__job__descriptor, whole, &m, &e), &e);
	assert_int_equal(((Tf__Job *)m)->id, 300);
	assert_true((char *)m >= room.bytes && (char *)m < room.bytes + sizeof room.bytes);
	unpack_room_clear(&room, m);
	for (const uint8_t *end = data; end < whole.end; end++) {
		struct wire_cursor part = { data, end };

		assert_int_equal(wire_unpack_part(&room, &tf__job__descriptor, part, &m, &e),
				 TF_EINVALID);
		unpack_room_clear(&room, NULL);
	}
	c = (struct wire_cursor){ data, data + 2 }; /* within the id */
	assert_true(wire_next(&c, &f) < 0);
	xfree(data);
}

static void random_bytes(void **state)
{
	(void)state;
	srand(1);
	for (int round = 0; round < 20000; round++) {
		uint8_t data[64];
		size_t len = rand() % sizeof data;
		Tf__Request *r;
		uint64_t id;
		uint8_t *exact;

		for (size_t i = 0; i < len; i++)
			data[i] = rand();
		if (len > 4)
			memcpy(data, "\x08\x01\x10\x07", 4);
		exact = xmemdup(data, len);
		if (wire_unpack_request(exact, len, &r, &id, NULL) == 0)
			tf__request__free_unpacked(r, NULL);
		xfree(exact);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(round_trip),   cmocka_unit_test(versions_and_bodies),
		cmocka_unit_test(texts),        cmocka_unit_test(enums),
		cmocka_unit_test(framing),      cmocka_unit_test(depth),
		cmocka_unit_test(amplification), cmocka_unit_test(too_long),
		cmocka_unit_test(long_list),    cmocka_unit_test(random_bytes),
		cmocka_unit_test(texts_of_all_lengths), cmocka_unit_test(parts),
	};

	return cmocka_run_group_tests_name("test_wire", tests, NULL, NULL);
}
