/* SPDX-License-Identifier: Apache-2.0
 * Any bytes as a message from a client or from the daemon: unpacked within its bounds and
 * checked, or a sentence. */
#include "config.h"
#include "lib/mem.h"
#include "proto/spec.h"
#include "proto/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void packs_again(const ProtobufCMessage *m)
{
	struct err e = ERR_INIT;
	uint8_t *bytes = NULL;
	size_t len;

	if (wire_pack(m, &bytes, &len, &e) == 0)
		xfree(bytes);
	else
		CHECK(e.code == TF_ELIMIT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct err e = ERR_INIT;
	Tf__Request *request = NULL;
	Tf__Reply *reply = NULL;
	uint64_t id;

	if (wire_unpack_request(data, size, &request, &id, &e) == 0) {
		struct err why = ERR_INIT;

		CHECK(id == request->id && request->version == TF_PROTOCOL_VERSION);
		packs_again(&request->base);
		if (request->body_case == TF__REQUEST__BODY_SUBMIT &&
		    spec_check(request->submit->spec, &why) < 0)
			CHECK(why.code < 0 && why.text[0]);
		tf__request__free_unpacked(request, NULL);
	} else {
		CHECK(e.code < 0 && e.text[0]);
	}
	err_clear(&e);
	if (wire_unpack_reply(data, size, &reply, &e) == 0) {
		packs_again(&reply->base);
		tf__reply__free_unpacked(reply, NULL);
	} else {
		CHECK(e.code < 0 && e.text[0]);
	}
	return 0;
}
