/* SPDX-License-Identifier: Apache-2.0
 * Disk by user: artefacts and uploads as their records say, and the folders of ended jobs, whose
 * size is put into the job's record at its end and into the user's sum. What runs now is counted
 * when it ends. Sums of artefacts and uploads are kept for a second. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/quantity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEEP_MS 1000

/* ---------------------------------------------------------------- limits */

static int parse_one(const char *line, const char *user, uint64_t *bytes, struct err *e)
{
	char name[LIMIT_NAME_BYTES + 1], size[32], rest;

	FAIL_IF(sscanf(line, "%100s %31s %c", name, size, &rest) != 2, e, TF_EINVALID,
		"user_quota '%s': expected NAME SIZE, such as 'mia 200G'", line);
	if (!user || strcmp(user, name) == 0)
		TRY(size_parse("user_quota", size, bytes, e));
	return 0;
}

int quota_limit(const struct options *o, const char *user, uint64_t *bytes, struct err *e)
{
	*bytes = 0;
	if (*o->quota)
		TRY(size_parse("quota", o->quota, bytes, e));
	for (size_t i = 0; i < o->user_quota.count; i++)
		TRY(parse_one(o->user_quota.text[i], user, bytes, e));
	return 0;
}

/* ---------------------------------------------------------------- what is used */

struct sum {
	const char *user;
	uint64_t bytes;
};

static int add_artefact(void *arg, const Tf__Artefact *a)
{
	struct sum *s = arg;

	if (a->user && strcmp(a->user, s->user) == 0)
		s->bytes += a->bytes;
	return 0;
}

static int add_upload(void *arg, const uint8_t token[16], const Tf__UploadRecord *r)
{
	struct sum *s = arg;

	(void)token;
	if (strcmp(r->user, s->user) == 0)
		s->bytes += r->size;
	return 0;
}

static int job_bytes(struct daemon *d, const char *user, uint64_t *bytes, struct err *e)
{
	Tf__DiskRecord *r = NULL;
	int rc = *user ? record_get(d->state, STATE_DISK, user, strlen(user),
				    &tf__disk_record__descriptor, &r, e)
		       : TF_ENOTFOUND;

	*bytes = rc == 0 ? r->job_bytes : 0;
	record_free(r);
	return rc == TF_ENOTFOUND ? 0 : rc;
}

int quota_used(struct daemon *d, const char *user, uint64_t *bytes, struct err *e)
{
	struct sum s = { user, 0 };

	TRY(job_bytes(d, user, bytes, e));
	TRY(artefacts_each(d->state, 0, add_artefact, &s, e));
	TRY(uploads_each(d->state, add_upload, &s, e));
	*bytes += s.bytes;
	return 0;
}

int quota_check(struct daemon *d, const char *user, uint64_t more, struct err *e)
{
	static char kept_user[LIMIT_NAME_BYTES + 1];
	static uint64_t used;
	static int64_t until_ms;
	uint64_t limit;
	char is[SIZE_TEXT_MAX], most[SIZE_TEXT_MAX];

	TRY(quota_limit(&d->options, user, &limit, e));
	if (limit == 0)
		return 0;
	/* a submit asks for nothing yet: its sum may be a second old */
	if (more > 0 || clock_mono_ms() >= until_ms || strcmp(kept_user, user) != 0) {
		TRY(quota_used(d, user, &used, e));
		snprintf(kept_user, sizeof kept_user, "%s", user);
		until_ms = clock_mono_ms() + KEEP_MS;
	}
	size_format((used + more) >> 20 << 20, is);
	size_format(limit, most);
	FAIL_IF(used + more >= limit, e, TF_ELIMIT,
		"%s would use %s of disk, the quota is %s: delete artefacts, or let old results go "
		"(transfuse gc)",
		user, is, most);
	return 0;
}

/* ---------------------------------------------------------------- jobs' folders */

static int set_bytes(struct daemon *d, Tf__JobRecord *r, uint64_t bytes, struct err *e)
{
	const char *user = r->job->user ? r->job->user : "";
	Tf__DiskRecord sum = TF__DISK_RECORD__INIT;
	uint64_t before;

	if (!*user || bytes == r->bytes)
		return 0;
	TRY(job_bytes(d, user, &before, e));
	sum.job_bytes = before + bytes > r->bytes ? before + bytes - r->bytes : 0;
	TRY(record_put(d->state, STATE_DISK, user, strlen(user), &sum.base, e));
	r->has_bytes = true;
	r->bytes = bytes;
	return job_put(d->state, r, e);
}

int quota_job_ended(struct daemon *d, Tf__JobRecord *r, struct err *e)
{
	char *folder = daemon_path(d, "jobs/%llu", (unsigned long long)r->job->id);
	int rc = set_bytes(d, r, file_exists(folder) ? (uint64_t)dir_size(folder) : 0, e);

	xfree(folder);
	return rc;
}

int quota_job_shrank(struct daemon *d, uint64_t id, Tf__GcItem *const *item, size_t items,
		     struct err *e)
{
	char prefix[40];
	Tf__JobRecord *r = NULL;
	uint64_t gone = 0;
	int rc, n = snprintf(prefix, sizeof prefix, "jobs/%llu", (unsigned long long)id);

	TRY(job_get(d->state, id, &r, e));
	for (size_t i = 0; i < items; i++) {
		const char *path = item[i]->path;

		if (strncmp(path, prefix, (size_t)n) == 0 && (path[n] == '/' || !path[n]))
			gone += path[n] ? item[i]->bytes : r->bytes;
	}
	rc = set_bytes(d, r, r->bytes > gone ? r->bytes - gone : 0, e);
	record_free(r);
	return rc;
}
