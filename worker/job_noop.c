/* SPDX-License-Identifier: Apache-2.0
 * The diagnostic job: goes the whole way from the client to a worker and back, and does nothing.
 */
#include "config.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "worker/worker.h"

#include <stdlib.h>
#include <string.h>

#define TURN_MS 20

/* The ways to fail that a test may ask for. */
static int fail_as_asked(const char *how, struct err *e)
{
	if (strcmp(how, "crash") == 0)
		abort();
	FAIL_IF(strcmp(how, "error") == 0, e, TF_EINTERNAL, "failed as asked");
	FAIL_IF(strcmp(how, "nan") == 0, e, TF_ENAN, "not a number, as asked");
	FAIL_IF(*how, e, TF_EINVALID, "fail: found '%.40s', expected crash, error or nan", how);
	return 0;
}

static int write_echo(const struct job *job, const char *echo, struct err *e)
{
	char *path = job_result_path(job, "echo.txt");
	int rc = file_write(path, echo, strlen(echo), 0600, e);

	xfree(path);
	return rc;
}

int job_noop(struct job *job, struct err *e)
{
	const Tf__NoopSpec *spec = job->spec->noop;
	int64_t start = clock_mono_ms(), length, passed;

	FAIL_IF(!(spec->seconds >= 0 && spec->seconds <= 1e9), e, TF_EINVALID,
		"seconds: found %g, expected 0 to 1e9", spec->seconds);
	length = (int64_t)(spec->seconds * 1000);
	while ((passed = clock_mono_ms() - start) < length) {
		if (job_should_stop(job))
			return job_stopped(job, e);
		job_report(job, "waiting", (uint64_t)passed, (uint64_t)length, "millisecond");
		clock_sleep_ms(length - passed < TURN_MS ? length - passed : TURN_MS);
	}
	if (length > 0)
		job_report(job, "waiting", (uint64_t)length, (uint64_t)length, "millisecond");
	if (spec->fail)
		TRY(fail_as_asked(spec->fail, e));
	if (spec->echo)
		TRY(write_echo(job, spec->echo, e));
	job_result(job, "seconds", (double)(clock_mono_ms() - start) / 1000);
	return 0;
}
