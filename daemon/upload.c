/* SPDX-License-Identifier: Apache-2.0
 * Files into the daemon, in chunks. The record says who may send what; the file's size says how
 * much is there, so an upload goes on after a lost connection or a new daemon. Hash and sync come
 * at the close, in another thread. Order in the file is the order of the offsets: a chunk begins at
 * or before its end. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/reply.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <xxhash.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HASH_READ_BYTES (1u << 20)

struct upload {
	char id[33];
	uint8_t token[16];
	char *user, *name;
	uint64_t size, have;
	int64_t created_ms;
	int fd;
	bool closing; /* its hash is being checked */
};

static struct upload *upload_find(struct daemon *d, const char *id)
{
	for (size_t i = 0; i < d->uploads; i++)
		if (strcmp(d->upload[i]->id, id) == 0)
			return d->upload[i];
	return NULL;
}

static void upload_free(struct upload *u)
{
	if (u->fd >= 0)
		close(u->fd);
	xfree(u->user);
	xfree(u->name);
	xfree(u);
}

static void upload_forget(struct daemon *d, struct upload *u)
{
	for (size_t i = 0; i < d->uploads; i++)
		if (d->upload[i] == u) {
			d->upload[i] = d->upload[--d->uploads];
			break;
		}
	upload_free(u);
}

void upload_release_all(struct daemon *d)
{
	while (d->uploads > 0)
		upload_forget(d, d->upload[0]);
	xfree(d->upload);
}

void upload_release_open(struct daemon *d)
{
	for (size_t i = d->uploads; i > 0; i--)
		if (!d->upload[i - 1]->closing)
			upload_forget(d, d->upload[i - 1]);
}

static int owner_check(const char *user, const struct request *r, struct err *e)
{
	FAIL_IF(strcmp(user, r->user) != 0, e, TF_EREFUSED, "this upload belongs to %s", user);
	return 0;
}

/* Opens the file of a record that is not whole yet. */
static int open_file(struct daemon *d, struct upload *u, struct err *e)
{
	char *folder = daemon_path(d, "uploads/%s", u->id);
	char *path = xasprintf("%s/%s", folder, u->name);
	struct stat st;
	int rc = 0;

	if (mkdir(folder, 0700) < 0 && errno != EEXIST)
		rc = err_errno(e, "%s", folder);
	else if ((u->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)) < 0 ||
		 fstat(u->fd, &st) < 0)
		rc = err_errno(e, "%s", path);
	else
		u->have = (uint64_t)st.st_size;
	if (rc == 0 && u->have > u->size && ftruncate(u->fd, (off_t)u->size) == 0)
		u->have = u->size;
	xfree(path);
	xfree(folder);
	return rc;
}

static int take_up(struct daemon *d, const uint8_t token[16], const Tf__UploadRecord *r,
		   struct upload **out, struct err *e)
{
	size_t own = 0;
	struct upload *u;
	int rc;

	for (size_t i = 0; i < d->uploads; i++)
		own += strcmp(d->upload[i]->user, r->user) == 0;
	FAIL_IF(own >= LIMIT_USER_UPLOADS, e, TF_ELIMIT,
		"%u uploads of %s are open already, the limit", LIMIT_USER_UPLOADS, r->user);
	FAIL_IF(d->uploads >= LIMIT_UPLOADS, e, TF_ELIMIT, "%u uploads are open already, the limit",
		LIMIT_UPLOADS);
	u = xcalloc(1, sizeof *u);
	memcpy(u->token, token, 16);
	upload_id(token, u->id);
	u->user = xstrdup(r->user);
	u->name = xstrdup(r->name);
	u->size = r->size;
	u->created_ms = r->created;
	u->fd = -1;
	rc = open_file(d, u, e);
	if (rc < 0) {
		upload_free(u);
		return rc;
	}
	d->upload = xrealloc(d->upload, d->uploads + 1, sizeof *d->upload);
	d->upload[d->uploads++] = u;
	*out = u;
	return 0;
}

static int name_is_plain(const char *name, struct err *e)
{
	FAIL_IF(strlen(name) > LIMIT_NAME_BYTES || !path_is_plain(name) || strchr(name, '/') ||
			strcmp(name, ".") == 0,
		e, TF_EINVALID, "upload name '%s': expected a plain file name of at most %u bytes",
		name, LIMIT_NAME_BYTES);
	return 0;
}

/* What is known of the token: an open upload, a record, or a new one is made. */
static int start(struct daemon *d, const struct request *r, const Tf__UploadOpen *m, uint64_t *have,
		 struct err *e)
{
	Tf__UploadRecord *old = NULL, fresh = TF__UPLOAD_RECORD__INIT;
	struct upload *u;
	char id[33];
	int rc = upload_get(d->state, m->token.data, &old, e);

	upload_id(m->token.data, id);
	if (rc == TF_ENOTFOUND) {
		FAIL_IF(upload_find(d, id), e, TF_EBUSY, "upload %s is being closed", id);
		TRY(quota_check(d, r->user, m->size, e));
		fresh.id = id;
		fresh.name = m->name;
		fresh.size = m->size;
		fresh.user = (char *)r->user;
		fresh.created = clock_wall_ms();
		TRY(take_up(d, m->token.data, &fresh, &u, e));
		*have = u->have;
		rc = upload_put(d->state, m->token.data, &fresh, e);
		if (rc < 0)
			upload_forget(d, u);
		return rc;
	}
	TRY(rc);
	rc = owner_check(old->user, r, e);
	if (rc == 0 && (old->size != m->size || strcmp(old->name, m->name) != 0))
		rc = err_set(e, TF_EMISMATCH, "this upload is '%s' of %llu bytes: not '%s' of %llu",
			     old->name, (unsigned long long)old->size, m->name,
			     (unsigned long long)m->size);
	u = upload_find(d, id);
	if (rc == 0 && !old->closed && !u)
		rc = take_up(d, m->token.data, old, &u, e);
	if (rc == 0)
		*have = old->closed ? old->size : u->have;
	record_free(old);
	return rc;
}

int upload_start(struct daemon *d, const struct request *r, const Tf__UploadOpen *m,
		 Tf__UploadState *out, struct err *e)
{
	static char id[33];

	FAIL_IF(m->token.len != 16, e, TF_EINVALID, "upload token of %zu bytes: expected 16",
		m->token.len);
	FAIL_IF(m->size > LIMIT_UPLOAD_BYTES, e, TF_ELIMIT,
		"upload of %llu bytes: the limit is %llu", (unsigned long long)m->size,
		(unsigned long long)LIMIT_UPLOAD_BYTES);
	TRY(name_is_plain(m->name, e));
	TRY(disk_check(d, e));
	TRY(start(d, r, m, &out->have, e));
	upload_id(m->token.data, id);
	out->upload = id;
	out->credit = LIMIT_UPLOAD_CREDIT;
	return 0;
}

/* The open upload of an id, taken up again when another daemon began it. */
static int need(struct daemon *d, const struct request *r, const char *id, struct upload **out,
		struct err *e)
{
	Tf__UploadRecord *record = NULL;
	uint8_t token[16];
	int rc;

	*out = upload_find(d, id);
	if (*out)
		return owner_check((*out)->user, r, e);
	rc = upload_token(id, token) ? upload_get(d->state, token, &record, e) : TF_ENOTFOUND;
	FAIL_IF(rc == TF_ENOTFOUND, e, rc, "no upload %.40s", id);
	TRY(rc);
	rc = owner_check(record->user, r, e);
	if (rc == 0 && record->closed)
		rc = err_set(e, TF_ESTATE, "upload %s is closed", id);
	if (rc == 0)
		rc = take_up(d, token, record, out, e);
	record_free(record);
	return rc;
}

int upload_write(struct daemon *d, const struct request *r, const Tf__UploadChunk *m,
		 Tf__UploadState *out, struct err *e)
{
	struct upload *u = NULL;
	size_t done = 0;

	FAIL_IF(m->data.len > LIMIT_CHUNK_BYTES, e, TF_ELIMIT,
		"a chunk of %zu bytes: the limit is %u", m->data.len, LIMIT_CHUNK_BYTES);
	TRY(need(d, r, m->upload, &u, e));
	FAIL_IF(u->closing, e, TF_ESTATE, "upload %s is being closed", u->id);
	FAIL_IF(m->offset > u->have, e, TF_EINVALID, "a chunk at %llu: %llu bytes are here so far",
		(unsigned long long)m->offset, (unsigned long long)u->have);
	FAIL_IF(m->data.len > u->size - m->offset, e, TF_ELIMIT,
		"a chunk that ends at %llu: the upload has %llu bytes",
		(unsigned long long)(m->offset + m->data.len), (unsigned long long)u->size);
	while (done < m->data.len) {
		ssize_t n = pwrite(u->fd, m->data.data + done, m->data.len - done,
				   (off_t)(m->offset + done));

		if (n < 0)
			return err_errno(e, "upload %s", u->id);
		done += (size_t)n;
	}
	if (m->offset + done > u->have)
		u->have = m->offset + done;
	out->upload = u->id;
	out->have = u->have;
	out->credit = LIMIT_UPLOAD_CREDIT;
	return 0;
}

/* ---------------------------------------------------------------- closing */

struct closing {
	struct request request;
	char id[33];
	char *path, *folder, *parent;
	int fd;
	uint64_t size, want, got;
	int code;
	struct err err;
};

static void check_bytes(void *arg)
{
	struct closing *c = arg;
	XXH64_state_t *hash = XXH64_createState();
	uint8_t *data = xmalloc(HASH_READ_BYTES);
	uint64_t at = 0;
	ssize_t n;

	XXH64_reset(hash, 0);
	while ((n = pread(c->fd, data, HASH_READ_BYTES, (off_t)at)) > 0) {
		XXH64_update(hash, data, (size_t)n);
		at += (uint64_t)n;
	}
	c->got = XXH64_digest(hash);
	if (n < 0 || fsync(c->fd) < 0)
		c->code = err_errno(&c->err, "upload %s", c->id);
	else if (at != c->size || c->got != c->want)
		c->code = err_set(&c->err, TF_ECORRUPT,
				  "upload %s: %llu bytes with xxh64 %016llx came, "
				  "%llu with %016llx were sent: send it again",
				  c->id, (unsigned long long)at, (unsigned long long)c->got,
				  (unsigned long long)c->size, (unsigned long long)c->want);
	else
		c->code = file_fsync(c->folder, &c->err);
	if (c->code == 0)
		c->code = file_fsync(c->parent, &c->err);
	XXH64_freeState(hash);
	xfree(data);
}

static void reply_closed(struct daemon *d, struct request *r, char *id, uint64_t have)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__UploadState state = TF__UPLOAD_STATE__INIT;

	state.upload = id;
	state.have = have;
	state.credit = LIMIT_UPLOAD_CREDIT;
	reply.body_case = TF__REPLY__BODY_UPLOAD;
	reply.upload = &state;
	reply_put(d, r, &reply);
}

static int mark_closed(struct daemon *d, const struct upload *u, uint64_t hash, struct err *e)
{
	Tf__UploadRecord *record = NULL;
	int rc;

	FAIL_IF(d->read_only, e, TF_EUNKNOWN, "the state cannot be written now");
	rc = upload_get(d->state, u->token, &record, e);
	FAIL_IF(rc == TF_ENOTFOUND, e, rc, "upload %s is not on record: send it again", u->id);
	TRY(rc);
	record->has_closed = record->closed = true;
	record->has_xxh64 = true;
	record->xxh64 = hash;
	rc = upload_put(d->state, u->token, record, e);
	record_free(record);
	return rc;
}

static void note_closed(struct daemon *d, struct closing *c)
{
	Tf__UploadClose m = TF__UPLOAD_CLOSE__INIT;
	Tf__Request r = TF__REQUEST__INIT;

	m.upload = c->id;
	r.body_case = TF__REQUEST__BODY_UPLOAD_CLOSE;
	r.upload_close = &m;
	c->request.message = &r;
	audit_note(d, &c->request, "upload_close", c->code, c->err.text);
	c->request.message = NULL;
}

static void bytes_checked(struct daemon *d, void *arg)
{
	struct closing *c = arg;
	struct upload *u = upload_find(d, c->id);

	CHECK(u);
	if (c->code == TF_ECORRUPT && ftruncate(u->fd, 0) == 0)
		u->have = 0; /* from the beginning */
	u->closing = false;
	if (c->code == 0)
		c->code = mark_closed(d, u, c->got, &c->err);
	note_closed(d, c);
	if (c->code == 0)
		reply_closed(d, &c->request, c->id, c->size);
	else
		reply_error(d, &c->request, c->code, c->err.text);
	if (c->code == 0 || c->code == TF_ENOTFOUND)
		upload_forget(d, u);
	xfree(c->folder);
	xfree(c->parent);
	xfree(c);
}

int upload_finish(struct daemon *d, struct request *r, const Tf__UploadClose *m, struct err *e)
{
	Tf__UploadRecord *record = NULL;
	struct closing *c;
	struct upload *u = NULL;
	uint8_t token[16];

	if (upload_token(m->upload, token) && upload_get(d->state, token, &record, e) == 0 &&
	    record->closed && record->xxh64 == m->xxh64 && strcmp(record->user, r->user) == 0) {
		reply_closed(d, r, record->id, record->size); /* asked again */
		record_free(record);
		return 0;
	}
	record_free(record);
	TRY(need(d, r, m->upload, &u, e));
	FAIL_IF(u->closing, e, TF_EBUSY, "upload %s is being closed", u->id);
	FAIL_IF(u->have != u->size, e, TF_ESTATE, "upload %s: %llu of %llu bytes are here", u->id,
		(unsigned long long)u->have, (unsigned long long)u->size);
	c = xcalloc(1, sizeof *c);
	c->request = *r;
	c->request.message = NULL;
	memcpy(c->id, u->id, sizeof c->id);
	c->folder = daemon_path(d, "uploads/%s", u->id);
	c->parent = daemon_path(d, "uploads");
	c->fd = u->fd;
	c->size = u->size;
	c->want = m->xxh64;
	u->closing = r->later = true;
	task_start(d, check_bytes, bytes_checked, c);
	return 0;
}

int upload_path(struct daemon *d, const char *id, const char *user, char **path, struct err *e)
{
	Tf__UploadRecord *record = NULL;
	uint8_t token[16];
	int rc = upload_token(id, token) ? upload_get(d->state, token, &record, e) : TF_ENOTFOUND;

	FAIL_IF(rc == TF_ENOTFOUND, e, rc, "no upload %.40s", id);
	TRY(rc);
	if (user && strcmp(record->user, user) != 0)
		rc = err_set(e, TF_EREFUSED, "upload %s belongs to %s", id, record->user);
	else if (!record->closed)
		rc = err_set(e, TF_ESTATE, "upload %s is not closed yet", id);
	else if (path)
		*path = daemon_path(d, "uploads/%s/%s", record->id, record->name);
	record_free(record);
	return rc;
}

/* ---------------------------------------------------------------- old ones */

struct old {
	struct daemon *d;
	struct buf tokens; /* 16 bytes each */
	int64_t before_ms;
};

static int find_old(void *arg, const uint8_t token[16], const Tf__UploadRecord *r)
{
	struct old *o = arg;
	char who, *name = NULL;

	if (r->created < o->before_ms && !upload_find(o->d, r->id) &&
	    use_find(o->d->state, r->id, &who, &name, NULL) == TF_ENOTFOUND)
		buf_append(&o->tokens, token, 16);
	xfree(name);
	return 0;
}

static int find_orphan(void *arg, const char *name)
{
	struct daemon *d = arg;
	Tf__UploadRecord *r = NULL;
	uint8_t token[16];

	if (!upload_token(name, token) || upload_get(d->state, token, &r, NULL) == TF_ENOTFOUND)
		loop_doom(d, daemon_path(d, "uploads/%s", name));
	record_free(r);
	return 0;
}

/* Open ones whose time is over are let go, so that they can be removed. */
static void forget_stale(struct daemon *d, int64_t before_ms)
{
	for (size_t i = d->uploads; i > 0; i--)
		if (d->upload[i - 1]->created_ms < before_ms && !d->upload[i - 1]->closing)
			upload_forget(d, d->upload[i - 1]);
}

void upload_collect(struct daemon *d)
{
	struct old o = { d, BUF_INIT, clock_wall_ms() - d->options.upload_hours * 3600 * 1000 };
	struct err e = ERR_INIT;
	char *folder = daemon_path(d, "uploads");

	forget_stale(d, o.before_ms);
	uploads_each(d->state, find_old, &o, &e);
	for (size_t at = 0; at < o.tokens.len; at += 16)
		upload_delete(d->state, (const uint8_t *)o.tokens.data + at, &e);
	dir_each(folder, find_orphan, d, &e);
	if (e.code)
		log_error("looking for old uploads: %s", e.text);
	buf_release(&o.tokens);
	xfree(folder);
}
