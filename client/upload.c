/* SPDX-License-Identifier: Apache-2.0
 * Bytes to the daemon: chunks, as many unanswered as it gives credit for. Its answers say what
 * it has; after a lost connection the open chunks are sent again, and upload_open with the same
 * token says where to go on. */
#include "config.h"
#include "client/client.h"
#include "client/line.h"
#include "lib/mem.h"
#include "proto/token.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define CHUNK_MS 120000 /* an answer to a chunk may wait for a slow disk */

struct upload {
	struct client *client;
	char *id;
	uint64_t size, at;   /* at: bytes given so far */
	uint64_t have;       /* on the daemon's side when it was opened: not sent again */
	uint8_t *chunk;
	size_t filled;
	unsigned open, credit;
	XXH64_state_t *hash;
	struct progress_view view;
	char *what;
};

int upload_open(struct client *c, const char *name, uint64_t size, struct upload **out,
		struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadOpen m = TF__UPLOAD_OPEN__INIT;
	Tf__Reply *reply;
	uint8_t token[TOKEN_BYTES];
	struct upload *u;

	TRY(token_make(token, e));
	m.token.data = token;
	m.token.len = sizeof token;
	m.name = (char *)name;
	m.size = size;
	r.body_case = TF__REQUEST__BODY_UPLOAD_OPEN;
	r.upload_open = &m;
	TRY(client_ask(c, &r, TF__REPLY__BODY_UPLOAD, &reply, e));
	u = xcalloc(1, sizeof *u);
	u->client = c;
	u->id = xstrdup(reply->upload->upload);
	u->have = reply->upload->have;
	u->credit = reply->upload->credit ? reply->upload->credit : 1;
	if (u->credit > LIMIT_UPLOAD_CREDIT)
		u->credit = LIMIT_UPLOAD_CREDIT;
	tf__reply__free_unpacked(reply, NULL);
	u->size = size;
	u->chunk = xmalloc(LIMIT_CHUNK_BYTES);
	u->hash = XXH64_createState();
	CHECK(u->hash);
	XXH64_reset(u->hash, 0);
	u->what = xasprintf("sending %s", name);
	progress_init(&u->view, args_has(&c->args, OPTION_JSON));
	*out = u;
	return 0;
}

void upload_abandon(struct upload *u)
{
	if (!u)
		return;
	progress_end(&u->view);
	XXH64_freeState(u->hash);
	xfree(u->chunk);
	xfree(u->what);
	xfree(u->id);
	xfree(u);
}

/* Waits until at most `most` chunks are unanswered. */
static int settle(struct upload *u, unsigned most, struct err *e)
{
	while (u->open > most) {
		Tf__Reply *reply;
		int rc;

		TRY(connection_receive(u->client->connection, CHUNK_MS, &reply, e));
		u->open--;
		rc = client_check(u->client, reply, TF__REPLY__BODY_UPLOAD, e);
		if (rc == 0)
			progress_transfer(&u->view, u->what, reply->upload->have, u->size);
		tf__reply__free_unpacked(reply, NULL);
		TRY(rc);
	}
	return 0;
}

static int send_chunk(struct upload *u, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadChunk m = TF__UPLOAD_CHUNK__INIT;
	uint64_t id, offset = u->at - u->filled;

	if (u->filled == 0)
		return 0;
	if (u->at <= u->have) {
		u->filled = 0;
		return 0;
	}
	m.upload = u->id;
	m.offset = offset;
	m.data.data = u->chunk;
	m.data.len = u->filled;
	r.body_case = TF__REQUEST__BODY_UPLOAD_CHUNK;
	r.upload_chunk = &m;
	TRY(settle(u, u->credit - 1, e));
	TRY(connection_send(u->client->connection, &r, &id, e));
	u->open++;
	u->filled = 0;
	return 0;
}

int upload_put(struct upload *u, const void *data, size_t len, struct err *e)
{
	const uint8_t *p = data;

	FAIL_IF(len > u->size - u->at, e, TF_ECORRUPT,
		"%s: it grew while it was read; try again when nobody writes to it", u->what);
	XXH64_update(u->hash, data, len);
	while (len) {
		size_t n = LIMIT_CHUNK_BYTES - u->filled;

		if (n > len)
			n = len;
		memcpy(u->chunk + u->filled, p, n);
		u->filled += n;
		u->at += n;
		p += n;
		len -= n;
		if (u->filled == LIMIT_CHUNK_BYTES)
			TRY(send_chunk(u, e));
	}
	return 0;
}

static int finish(struct upload *u, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadClose m = TF__UPLOAD_CLOSE__INIT;
	Tf__Reply *reply;

	FAIL_IF(u->at != u->size, e, TF_ECORRUPT, "%s: %" PRIu64 " of %" PRIu64
		" bytes were there; try again when nobody writes to it", u->what, u->at, u->size);
	TRY(send_chunk(u, e));
	TRY(settle(u, 0, e));
	m.upload = u->id;
	m.xxh64 = XXH64_digest(u->hash);
	r.body_case = TF__REQUEST__BODY_UPLOAD_CLOSE;
	r.upload_close = &m;
	TRY(client_ask_for(u->client, &r, TF__REPLY__BODY_UPLOAD, CHUNK_MS + 4 * ASK_MS, &reply,
			   e));
	tf__reply__free_unpacked(reply, NULL);
	return 0;
}

int upload_close(struct upload *u, char **id, struct err *e)
{
	int rc = finish(u, e);

	if (rc == 0)
		*id = xstrdup(u->id);
	upload_abandon(u);
	return rc;
}
