/* SPDX-License-Identifier: Apache-2.0
 * Files from the daemon: several parts are asked for at a time, written beside the place and
 * renamed when whole. What was fetched before an interruption is kept and gone on from. */
#include "config.h"
#include "client/client.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WINDOW 4 /* parts asked for at a time */
#define PART_MS 60000

struct download {
	struct client *client;
	Tf__FileOf *of;
	const char *path; /* the daemon's */
	const char *what; /* for messages: where it goes */
	int fd;
	uint64_t size;
	uint64_t asked, have; /* offsets */
	uint64_t open[WINDOW]; /* ids, oldest first */
	unsigned count;
};

static int ask_part(struct download *d, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__FileRead m = TF__FILE_READ__INIT;
	uint64_t left = d->size - d->asked;

	m.of = d->of;
	m.path = (char *)d->path;
	m.offset = d->asked;
	m.length = left < LIMIT_CHUNK_BYTES ? (uint32_t)left : LIMIT_CHUNK_BYTES;
	r.body_case = TF__REQUEST__BODY_FILE_READ;
	r.file_read = &m;
	TRY(connection_send(d->client->connection, &r, &d->open[d->count], e));
	d->count++;
	d->asked += m.length;
	return 0;
}

static int take_part(struct download *d, const Tf__Reply *reply, struct err *e)
{
	const Tf__FilePart *part;

	TRY(client_check(d->client, reply, TF__REPLY__BODY_FILE, e));
	part = reply->file;
	FAIL_IF(reply->id != d->open[0] || part->offset != d->have || part->data.len == 0 ||
		part->data.len > d->size - d->have, e, TF_ECORRUPT,
		"%s: the daemon's file changed while it was read; fetch it again", d->what);
	d->count--;
	memmove(d->open, d->open + 1, d->count * sizeof *d->open);
	TRY(file_write_all(d->fd, part->data.data, part->data.len, d->what, e));
	d->have += part->data.len;
	/* less than asked for: the parts asked for behind it do not fit */
	FAIL_IF(d->have < d->size && part->data.len < LIMIT_CHUNK_BYTES, e, TF_ECORRUPT,
		"%s: the daemon's file became shorter while it was read; fetch it again", d->what);
	return 0;
}

static int run(struct download *d, struct err *e)
{
	struct progress_view view;
	int rc = 0;

	progress_init(&view, args_has(&d->client->args, OPTION_JSON) || d->size < (4u << 20));
	while (rc == 0 && d->have < d->size) {
		Tf__Reply *reply = NULL;

		while (rc == 0 && d->count < WINDOW && d->asked < d->size)
			rc = ask_part(d, e);
		if (rc == 0)
			rc = connection_receive(d->client->connection, PART_MS, &reply, e);
		if (rc == 0)
			rc = take_part(d, reply, e);
		if (reply)
			tf__reply__free_unpacked(reply, NULL);
		if (rc == 0)
			progress_transfer(&view, d->what, d->have, d->size);
	}
	progress_end(&view);
	for (unsigned i = 0; i < d->count; i++)
		connection_forget(d->client->connection, d->open[i]);
	return rc;
}

/* The name of a half-fetched file says of what it is a half: another source begins anew. */
static char *part_path(const Tf__FileOf *of, const char *to, uint64_t size)
{
	if (of->of_case == TF__FILE_OF__OF_JOB)
		return xasprintf("%s.job%" PRIu64 "-%" PRIu64 ".part", to, of->job, size);
	return xasprintf("%s.%s-%" PRIu64 ".part", to, of->artefact->name, size);
}

static int make_parent(const char *to, struct err *e)
{
	const char *slash = strrchr(to, '/');
	char *folder;
	int rc;

	if (!slash || slash == to)
		return 0;
	folder = xstrndup(to, (size_t)(slash - to));
	rc = dir_make(folder, 0777, e);
	xfree(folder);
	return rc;
}

static int fetch(struct client *c, Tf__FileOf *of, const char *path, uint64_t size, const char *to,
		 struct err *e)
{
	struct download d = { .client = c, .of = of, .path = path, .what = to, .size = size };
	char *part = part_path(of, to, size);
	struct stat st;
	int rc = make_parent(to, e);

	d.fd = rc < 0 ? -1 : open(part, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
	if (rc == 0 && (d.fd < 0 || fstat(d.fd, &st) < 0))
		rc = err_errno(e, "%s", part);
	if (rc == 0) {
		d.have = d.asked = (uint64_t)st.st_size <= size ? (uint64_t)st.st_size : 0;
		if (ftruncate(d.fd, (off_t)d.have) < 0 || lseek(d.fd, 0, SEEK_END) < 0)
			rc = err_errno(e, "%s", part);
	}
	if (rc == 0)
		rc = run(&d, e);
	if (rc == TF_ECORRUPT)
		unlink(part);
	if (rc == 0 && fsync(d.fd) < 0)
		rc = err_errno(e, "%s", part);
	if (d.fd >= 0)
		close(d.fd);
	if (rc == 0)
		rc = file_rename(part, to, e);
	xfree(part);
	return rc;
}

/* ---- what there is */

static int list_files(struct client *c, Tf__FileOf *of, Tf__Reply **out, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__FileList m = TF__FILE_LIST__INIT;

	m.of = of;
	r.body_case = TF__REQUEST__BODY_FILE_LIST;
	r.file_list = &m;
	return client_ask(c, &r, TF__REPLY__BODY_FILES, out, e);
}

static int fetch_below(struct client *c, Tf__FileOf *of, const Tf__FileInfo *info,
		       const char *prefix, const char *folder, struct buf *names, struct err *e)
{
	const char *rel = info->path + strlen(prefix);
	char *to;
	int rc;

	FAIL_IF(!path_is_plain(rel), e, TF_ECORRUPT,
		"the daemon lists a file '%.200s', which would lie outside the folder", rel);
	to = xasprintf("%s/%s", folder, rel);
	rc = fetch(c, of, info->path, info->size, to, e);
	if (rc == 0 && names)
		buf_printf(names, "%s\n", to);
	xfree(to);
	return rc;
}

int fetch_files(struct client *c, Tf__FileOf *of, const char *prefix, const char *folder,
		struct buf *names, struct err *e)
{
	Tf__Reply *reply;
	int rc;

	TRY(list_files(c, of, &reply, e));
	rc = dir_make(folder, 0777, e);
	for (size_t i = 0; rc == 0 && i < reply->files->n_file; i++) {
		const Tf__FileInfo *info = reply->files->file[i];

		if (strncmp(info->path, prefix, strlen(prefix)) == 0)
			rc = fetch_below(c, of, info, prefix, folder, names, e);
	}
	tf__reply__free_unpacked(reply, NULL);
	return rc;
}

int fetch_one(struct client *c, Tf__FileOf *of, const char *path, const char *to, struct err *e)
{
	Tf__Reply *reply;
	int rc = TF_ENOTFOUND;

	TRY(list_files(c, of, &reply, e));
	for (size_t i = 0; i < reply->files->n_file; i++)
		if (strcmp(reply->files->file[i]->path, path) == 0)
			rc = fetch(c, of, path, reply->files->file[i]->size, to, e);
	if (rc == TF_ENOTFOUND)
		err_set(e, rc, "the job made no %s", path);
	tf__reply__free_unpacked(reply, NULL);
	return rc;
}
