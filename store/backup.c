/* SPDX-License-Identifier: Apache-2.0
 * Backups; see backup.h. The store is copied first, as one reading transaction sees it; then the
 * files that this copy speaks of. What the daemon removes in between is missing then: the store is
 * copied again, and what has become superfluous goes at the first start of a daemon on it. */
#include "config.h"
#include "store/backup.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/catalogue.h"
#include "store/check.h"
#include "store/jobs.h"
#include "store/notices.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEAL "backup"
#define TRIES 5

struct backup {
	const char *from, *to;
	struct state *copy; /* the store of the backup */
	struct backup_report *report;
	bool vanished; /* something the copy speaks of is no longer there */
	struct err *e;
};

/* ---------------------------------------------------------------- helpers */

static int note_entry(void *arg, const char *name)
{
	(void)name;
	*(bool *)arg = true;
	return 0;
}

/* Makes the folder, or sees that it holds nothing. */
static int empty_folder(const char *path, struct err *e)
{
	bool any = false;

	TRY(dir_make(path, 0700, e));
	TRY(dir_each(path, note_entry, &any, e));
	FAIL_IF(any, e, TF_EEXISTS, "%s: expected an empty or absent folder", path);
	return 0;
}

static int sync_disk(const char *folder, struct err *e)
{
	int fd = open(folder, O_RDONLY | O_CLOEXEC), rc = 0;

	if (fd < 0 || syncfs(fd) < 0)
		rc = err_errno(e, "sync of %s", folder);
	if (fd >= 0)
		close(fd);
	return rc;
}

static void first_problem(void *arg, const char *problem)
{
	err_set(arg, TF_ECORRUPT, "%s", problem);
}

/* Checks the copy with its files; the first problem becomes the error. */
static int check_copy(struct backup *b)
{
	struct check_report found;
	struct err why = ERR_INIT;

	TRY(store_check(b->copy, b->to, first_problem, &why, &found, b->e));
	FAIL_IF(found.problems > 0, b->e, TF_ECORRUPT, "%s is not sound (%llu problems): %s", b->to,
		(unsigned long long)found.problems, why.text);
	b->report->records = found.records;
	b->report->jobs = state_count(b->copy, STATE_JOBS);
	return 0;
}

static int copy_below(struct backup *b, const char *rel, bool share)
{
	char *from = xasprintf("%s/%s", b->from, rel), *to = xasprintf("%s/%s", b->to, rel);
	int rc = dir_copy(from, to, share, &b->report->bytes, b->e);

	xfree(from);
	xfree(to);
	return rc;
}

/* ---------------------------------------------------------------- what the store speaks of */

static int copy_artefact(void *arg, const Tf__Artefact *a)
{
	struct backup *b = arg;
	char *rel = xasprintf("%s/%s", artefact_kind_folder(a->kind), a->id);
	int rc = copy_below(b, rel, true);

	xfree(rel);
	b->report->artefacts++;
	if (rc == TF_ENOTFOUND && strcmp(a->state, ARTEFACT_MAKING) != 0)
		b->vanished = true;
	return rc == TF_ENOTFOUND ? 0 : rc;
}

static int copy_upload(void *arg, const uint8_t token[16], const Tf__UploadRecord *r)
{
	struct backup *b = arg;
	char *rel = xasprintf("uploads/%s", r->id);
	int rc = copy_below(b, rel, r->closed);

	(void)token;
	xfree(rel);
	if (rc == TF_ENOTFOUND && r->closed)
		b->vanished = true;
	return rc == TF_ENOTFOUND ? 0 : rc;
}

static int copy_job(void *arg, Tf__JobRecord *r)
{
	struct backup *b = arg;
	char *rel = xasprintf("jobs/%llu", (unsigned long long)r->job->id);
	int rc = copy_below(b, rel, job_state_is_end(r->job->state));

	xfree(rel);
	return rc == TF_ENOTFOUND ? 0 : rc;
}

/* What lies in the state folder besides: keys and the like. */
static int copy_rest(void *arg, const char *name)
{
	static const char *const apart[] = {
		"store",  "jobs", "uploads",  "data",       "tokenizers", "vaes",
		"models", "lock", "endpoint", "sync-probe", "daemon.log", "removed",
		SEAL,
	};
	struct backup *b = arg;
	char *from = xasprintf("%s/%s", b->from, name), *to = xasprintf("%s/%s", b->to, name);
	struct stat st;
	int rc = 0;

	for (size_t i = 0; i < ARRAY_LEN(apart); i++)
		if (strcmp(name, apart[i]) == 0)
			goto out;
	if (lstat(from, &st) == 0)
		rc = S_ISDIR(st.st_mode) ? dir_copy(from, to, false, &b->report->bytes, b->e)
					 : file_copy(from, to, false, &b->report->bytes, b->e);
out:
	xfree(from);
	xfree(to);
	return rc == TF_ENOTFOUND ? 0 : rc;
}

static int copy_files(struct backup *b)
{
	static const char *const below[] = { "jobs", "uploads", "data", "tokenizers", "vaes",
					     "models" };
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < ARRAY_LEN(below); i++) {
		char *path = xasprintf("%s/%s", b->to, below[i]);

		rc = dir_make(path, 0700, b->e);
		xfree(path);
	}
	TRY(rc);
	TRY(artefacts_each(b->copy, 0, copy_artefact, b, b->e));
	TRY(uploads_each(b->copy, copy_upload, b, b->e));
	return jobs_each(b->copy, 0, copy_job, b, b->e);
}

/* ---------------------------------------------------------------- backup */

/* The store as it is now, without attempts: their processes belong to this machine and moment; and
 * without notices: this daemon delivers them. */
static int copy_store(struct backup *b)
{
	char *from = xasprintf("%s/store", b->from), *to = xasprintf("%s/store", b->to);
	struct state *s = NULL;
	int rc = state_open_reading(from, &s, b->e);

	if (rc == 0)
		rc = dir_remove(to, b->e);
	if (rc == 0)
		rc = state_copy(s, to, b->e);
	state_close(s);
	if (rc == 0)
		rc = state_open(to, 0, &b->copy, b->e);
	if (rc == 0)
		rc = attempts_forget(b->copy, b->e);
	if (rc == 0)
		rc = notices_forget(b->copy, b->e);
	if (rc == 0)
		rc = state_commit(b->copy, b->e);
	xfree(from);
	xfree(to);
	return rc;
}

static int one_try(struct backup *b)
{
	int rc;

	*b->report = (struct backup_report){ 0 };
	b->vanished = false;
	rc = copy_store(b);
	if (rc == 0)
		rc = copy_files(b);
	if (rc == 0 && !b->vanished)
		rc = check_copy(b);
	state_close(b->copy);
	b->copy = NULL;
	return rc;
}

static int write_seal(const struct backup *b)
{
	char *path = xasprintf("%s/" SEAL, b->to), text[CLOCK_TEXT_MAX], line[200];
	int n, rc;

	clock_format_ms(clock_wall_ms(), text);
	n = snprintf(line, sizeof line, "transfused %s store %u at %s\n", PACKAGE_VERSION,
		     TF_STORE_VERSION, text);
	rc = file_write(path, line, (size_t)n, 0600, b->e);
	xfree(path);
	return rc;
}

int backup_make(const char *state, const char *to, struct backup_report *out, struct err *e)
{
	struct backup b = { .from = state, .to = to, .report = out, .vanished = true, .e = e };
	int rc = empty_folder(to, e);

	for (int i = 0; rc == 0 && b.vanished && i < TRIES; i++)
		rc = one_try(&b);
	FAIL_IF(rc == 0 && b.vanished, e, TF_EBUSY,
		"artefacts went away %d times while %s was written: try again", TRIES, to);
	if (rc == 0)
		rc = dir_each(state, copy_rest, &b, e);
	if (rc == 0)
		rc = sync_disk(to, e);
	return rc == 0 ? write_seal(&b) : rc;
}

/* ---------------------------------------------------------------- restore */

static int restore_entry(void *arg, const char *name)
{
	struct backup *b = arg;
	char *from = xasprintf("%s/%s", b->from, name), *to = xasprintf("%s/%s", b->to, name);
	struct stat st;
	int rc = 0;

	if (strcmp(name, SEAL) == 0)
		;
	else if (lstat(from, &st) < 0)
		rc = err_errno(b->e, "%s", from);
	else if (S_ISDIR(st.st_mode))
		rc = dir_copy(from, to, false, &b->report->bytes, b->e);
	else
		rc = file_copy(from, to, false, &b->report->bytes, b->e);
	xfree(from);
	xfree(to);
	return rc;
}

static int count_artefact(void *arg, const Tf__Artefact *a)
{
	(void)a;
	++*(uint64_t *)arg;
	return 0;
}

int backup_restore(const char *from, const char *state, struct backup_report *out, struct err *e)
{
	struct backup b = { .from = from, .to = state, .report = out, .e = e };
	char *seal = xasprintf("%s/" SEAL, from), *store = xasprintf("%s/store", state);
	int rc = 0;

	*out = (struct backup_report){ 0 };
	if (!file_exists(seal))
		rc = err_set(e, TF_EINVALID,
			     "%s: is no backup, or one that was not finished (no file " SEAL ")",
			     from);
	if (rc == 0)
		rc = empty_folder(state, e);
	if (rc == 0)
		rc = dir_each(from, restore_entry, &b, e);
	if (rc == 0)
		rc = state_open_reading(store, &b.copy, e);
	if (rc == 0)
		rc = check_copy(&b);
	if (rc == 0)
		rc = artefacts_each(b.copy, 0, count_artefact, &out->artefacts, e);
	state_close(b.copy);
	if (rc == 0)
		rc = sync_disk(state, e);
	xfree(seal);
	xfree(store);
	return rc;
}
