/* SPDX-License-Identifier: Apache-2.0
 * What of an outcome is on disk before the worker stops waiting for its daemon: the file and every
 * name that leads to it. */
#include "tests/test.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "worker/report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/tfr-XXXXXX";
static char synced[10][200]; /* paths, in order */
static size_t synced_count;
static struct err e;

int __real_fsync(int fd);
int __wrap_fsync(int fd);

int __wrap_fsync(int fd)
{
	char link[40];
	ssize_t n;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	assert_true(synced_count < ARRAY_LEN(synced));
	n = readlink(link, synced[synced_count], sizeof *synced - 1);
	assert_true(n > 0);
	synced[synced_count++][n] = 0;
	return __real_fsync(fd);
}

static bool was_synced(const char *rel)
{
	char *path = xasprintf("%s%s", folder, rel);
	bool was = false;

	for (size_t i = 0; i < synced_count; i++)
		was |= strcmp(synced[i], path) == 0;
	xfree(path);
	return was;
}

/* Of job 7, at this path in its folder. */
static void sync_outcome(const char *rel)
{
	char *job_folder = xasprintf("%s/jobs/7", folder);
	struct job job = { .folder = job_folder };

	job.outcome = xasprintf("%s/%s", job_folder, rel);
	assert_ok(file_put(job.outcome, "done", 4, 0600, &e), &e);
	synced_count = 0;
	assert_ok(report_sync_outcome(&job, &e), &e);
	xfree(job.outcome);
	xfree(job_folder);
}

static void its_names_are_synced_once(void **state)
{
	(void)state;
	sync_outcome("outcome-1.pb");
	assert_int_equal(synced_count, 3);
	assert_true(was_synced("/jobs/7/outcome-1.pb"));
	assert_true(was_synced("/jobs/7"));
	assert_true(was_synced("/jobs"));
}

/* It has named a folder of the attempt, which leads to the file like the others. */
static void those_of_an_older_daemon_too(void **state)
{
	(void)state;
	sync_outcome("attempt-1/outcome.pb");
	assert_true(was_synced("/jobs/7/attempt-1/outcome.pb"));
	assert_true(was_synced("/jobs/7/attempt-1"));
	assert_true(was_synced("/jobs/7"));
	assert_true(was_synced("/jobs"));
}

static int setup(void **state)
{
	char *path;
	int rc;

	(void)state;
	if (!mkdtemp(folder))
		return -1;
	path = xasprintf("%s/jobs/7/attempt-1", folder);
	rc = dir_make(path, 0700, &e);
	xfree(path);
	synced_count = 0;
	return rc;
}

static int teardown(void **state)
{
	(void)state;
	return dir_remove(folder, &e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(its_names_are_synced_once),
		cmocka_unit_test(those_of_an_older_daemon_too),
	};

	return cmocka_run_group_tests_name("report", tests, setup, teardown);
}
