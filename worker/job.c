/* SPDX-License-Identifier: Apache-2.0
 * What every kind of job needs of its assignment; see worker.h. */
#include "config.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/spec.h"
#include "worker/kept.h"
#include "worker/link.h"
#include "worker/report.h"
#include "worker/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

/* Made here if it is not there: so the daemon need not wait for the disk. Its name is synced at the
 * end, if there are results. */
static int make_folder(const char *path, struct err *e)
{
	return mkdir(path, 0700) == 0 || errno == EEXIST ? 0 : dir_make(path, 0700, e);
}

/* A daemon from before outcome_file has a folder for each attempt. */
static int find_outcome(struct job *job, const Tf__Assignment *a, struct err *e)
{
	if (a->outcome_file && *a->outcome_file) {
		job->outcome = xstrdup(a->outcome_file);
		return 0;
	}
	job->outcome = job_path(a->attempt_folder, "outcome.pb");
	return make_folder(a->attempt_folder, e);
}

int job_init(struct job *job, const Tf__Assignment *assignment, struct link *link, struct err *e)
{
	const struct job_kind *kind;

	memset(job, 0, sizeof *job);
	job->state = report_new();
	FAIL_IF(!*assignment->job_folder || !*assignment->attempt_folder, e, TF_EINVALID,
		"the assignment names no folders");
	kind = job_kind_find(assignment->spec->kind);
	FAIL_IF(!kind || kind->spec != assignment->spec->spec_case, e, TF_EINVALID,
		"the job's kind (%d) and its spec (%d) do not go together",
		(int)assignment->spec->kind, (int)assignment->spec->spec_case);
	job->id = assignment->job;
	job->attempt = assignment->attempt;
	job->spec = assignment->spec;
	job->assignment = assignment;
	job->folder = assignment->job_folder;
	job->output = assignment->output_folder;
	job->device = assignment->device && *assignment->device ? assignment->device : "cpu";
	job->threads = assignment->has_threads ? assignment->threads : 0;
	if (job->spec->has_threads && job->spec->threads > 0)
		job->threads = job->spec->threads;
	job->link = link;
	job->results = job_path(job->folder, "results");
	TRY(make_folder(job->folder, e));
	return find_outcome(job, assignment, e);
}

void job_release(struct job *job)
{
	if (job->kernels && !job->kept)
		kernels_close(job->kernels);
	report_free(job->state);
	xfree_((void *)job->results);
	xfree(job->outcome);
	memset(job, 0, sizeof *job);
}

int job_kernels(struct job *job, struct err *e)
{
	if (job->kernels)
		return 0;
	if (job->kept)
		TRY(kept_kernels(job->kept, job->device, job->threads, &job->kernels, e));
	else
		TRY(kernels_open(job->device, job->threads, &job->kernels, e));
	log_info("kernels %s: %s", job->kernels->backend, kernels_describe(job->kernels));
	return 0;
}

const Tf__Input *job_input(const struct job *job, const char *role, size_t number)
{
	for (size_t i = 0; i < job->assignment->n_input; i++) {
		const Tf__Input *in = job->assignment->input[i];

		if (in->role && strcmp(in->role, role) == 0 && number-- == 0)
			return in;
	}
	return NULL;
}

int job_need_input(const struct job *job, const char *role, const Tf__Input **out, struct err *e)
{
	*out = job_input(job, role, 0);
	FAIL_IF(!*out, e, TF_EINVALID, "the job has no input with the role %s", role);
	FAIL_IF(!(*out)->path || !*(*out)->path, e, TF_EINVALID, "%s '%s' has no folder", role,
		(*out)->name);
	return 0;
}

Tf__StopReason job_should_stop(const struct job *job)
{
	return job->link ? link_stop(job->link) : TF__STOP_REASON__STOP_NONE;
}

int job_stopped(const struct job *job, struct err *e)
{
	static const char *const words[] = { "on its own", "it was cancelled",
					     "to make room for another job", "over its time limit",
					     "the worker was told to leave" };
	unsigned reason = (unsigned)job_should_stop(job);

	return err_set(e, TF_ECANCELLED, "stopped: %s",
		       words[reason < ARRAY_LEN(words) ? reason : 0]);
}

__attribute__((format(printf, 2, 0))) static char *path_of(const char *folder, const char *fmt,
							   va_list ap)
{
	char name[1024];
	int n = vsnprintf(name, sizeof name, fmt, ap);

	CHECK(n >= 0 && (size_t)n < sizeof name);
	return xasprintf("%s/%s", folder, name);
}

char *job_path(const char *folder, const char *fmt, ...)
{
	va_list ap;
	char *path;

	va_start(ap, fmt);
	path = path_of(folder, fmt, ap);
	va_end(ap);
	return path;
}

char *job_result_path(const struct job *job, const char *fmt, ...)
{
	va_list ap;
	char *path;

	va_start(ap, fmt);
	path = path_of(job->results, fmt, ap);
	va_end(ap);
	mkdir(job->results, 0700); /* where it fails, so does what is opened there, and says why */
	return path;
}

int job_hash_file(const char *path, char hex[33], struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	XXH3_state_t *state = XXH3_createState();
	XXH128_canonical_t sum;
	static char chunk[1 << 16];
	ssize_t n = 0;
	int rc = 0;

	CHECK(state);
	XXH3_128bits_reset(state);
	while (fd >= 0 && (n = read(fd, chunk, sizeof chunk)) > 0)
		XXH3_128bits_update(state, chunk, (size_t)n);
	if (fd < 0 || n < 0)
		rc = err_errno(e, "%s", path);
	XXH128_canonicalFromHash(&sum, XXH3_128bits_digest(state));
	XXH3_freeState(state);
	for (size_t i = 0; i < sizeof sum.digest; i++)
		snprintf(hex + 2 * i, 3, "%02x", sum.digest[i]);
	if (fd >= 0)
		close(fd);
	return rc;
}
