/* SPDX-License-Identifier: Apache-2.0
 * Requests about files: out of a job's or an artefact's folder, and uploads into the daemon. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/reply.h"
#include "lib/mem.h"

#include <string.h>
#include <unistd.h>

/* Of a job's folder, clients see its results, log and metrics. */
static bool job_file(const char *rel)
{
	return strcmp(rel, "log") == 0 || strcmp(rel, "metrics.jsonl") == 0 ||
	       strncmp(rel, "results/", 8) == 0;
}

static int find_root(struct daemon *d, const Tf__FileOf *of, char **root, folder_filter *filter,
		     struct err *e)
{
	Tf__ArtefactRecord *a = NULL;
	Tf__JobRecord *job = NULL;

	if (of->of_case == TF__FILE_OF__OF_JOB) {
		TRY(job_get(d->state, of->job, &job, e));
		record_free(job);
		*root = daemon_path(d, "jobs/%llu", (unsigned long long)of->job);
		*filter = job_file;
		return 0;
	}
	FAIL_IF(of->of_case != TF__FILE_OF__OF_ARTEFACT, e, TF_EINVALID,
		"files of what? expected a job or an artefact");
	TRY(artefact_find_named(d, of->artefact, &a, e));
	*root = artefact_path(d, a->artefact->kind, a->artefact->id, false);
	*filter = NULL;
	record_free(a);
	return 0;
}

int handle_file_list(struct daemon *d, struct request *r)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Files files = TF__FILES__INIT;
	folder_filter filter;
	char *root = NULL;
	int rc;

	TRY(find_root(d, r->message->file_list->of, &root, &filter, &r->err));
	rc = folder_list(root, filter, &files, &r->err);
	if (rc == 0) {
		reply.body_case = TF__REPLY__BODY_FILES;
		reply.files = &files;
		reply_put(d, r, &reply);
	}
	folder_list_release(&files);
	xfree(root);
	return rc;
}

static int read_part(int fd, const Tf__FileRead *m, Tf__FilePart *part, struct err *e)
{
	ssize_t n = pread(fd, part->data.data, m->length, (off_t)m->offset);

	if (n < 0)
		return err_errno(e, "%s", m->path);
	part->data.len = (size_t)n;
	part->offset = m->offset;
	part->has_end = part->has_size = true;
	part->end = m->offset + (uint64_t)n >= part->size;
	return 0;
}

int handle_file_read(struct daemon *d, struct request *r)
{
	const Tf__FileRead *m = r->message->file_read;
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__FilePart part = TF__FILE_PART__INIT;
	folder_filter filter;
	char *root = NULL;
	int fd = -1, rc;

	FAIL_IF(m->length > LIMIT_CHUNK_BYTES, &r->err, TF_ELIMIT,
		"%u bytes at a time: the limit is %u", m->length, LIMIT_CHUNK_BYTES);
	FAIL_IF(m->offset > INT64_MAX, &r->err, TF_EINVALID, "offset %llu is beyond any file",
		(unsigned long long)m->offset);
	TRY(find_root(d, m->of, &root, &filter, &r->err));
	part.data.data = xmalloc(m->length + 1);
	rc = filter && !filter(m->path)
		     ? err_set(&r->err, TF_EREFUSED, "%s: not a result, the log or metrics.jsonl",
			       m->path)
		     : folder_open_file(root, m->path, &fd, &part.size, &r->err);
	if (rc == 0)
		rc = read_part(fd, m, &part, &r->err);
	if (rc == 0) {
		reply.body_case = TF__REPLY__BODY_FILE;
		reply.file = &part;
		reply_put(d, r, &reply);
	}
	if (fd >= 0)
		close(fd);
	xfree(part.data.data);
	xfree(root);
	return rc;
}

/* ---------------------------------------------------------------- uploads */

static int reply_upload(struct daemon *d, struct request *r, Tf__UploadState *state)
{
	Tf__Reply reply = TF__REPLY__INIT;

	reply.body_case = TF__REPLY__BODY_UPLOAD;
	reply.upload = state;
	reply_put(d, r, &reply);
	return 0;
}

int handle_upload_open(struct daemon *d, struct request *r)
{
	Tf__UploadState state = TF__UPLOAD_STATE__INIT;

	TRY(upload_start(d, r, r->message->upload_open, &state, &r->err));
	return reply_upload(d, r, &state);
}

int handle_upload_chunk(struct daemon *d, struct request *r)
{
	Tf__UploadState state = TF__UPLOAD_STATE__INIT;

	TRY(upload_write(d, r, r->message->upload_chunk, &state, &r->err));
	return reply_upload(d, r, &state);
}

int handle_upload_close(struct daemon *d, struct request *r)
{
	return upload_finish(d, r, r->message->upload_close, &r->err);
}
