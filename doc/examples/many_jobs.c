/* SPDX-License-Identifier: Apache-2.0
 * Submits two jobs one by one and three at once, waits for them, and lists them. With a number as
 * argument it then submits so many more in batches, and cancels what has not ended.
 *
 *	cc many_jobs.c $(pkg-config --cflags --libs --static transfuse) -o many_jobs
 *	TRANSFUSE_STATE=/path/of/state ./many_jobs */
#include <transfuse.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const struct transfuse *t, const char *what)
{
	fprintf(stderr, "%s: %s\n", what, transfuse_error(t));
	return 1;
}

static int print(void *arg, const struct transfuse_job *job)
{
	int *lines = arg;

	printf("%" PRIu64 " %s %s %s\n", job->id, job->kind, job->state, job->name);
	++*lines;
	return 0;
}

static int few(struct transfuse *t)
{
	const char *batch[] = { "{\"noop\": {}}", "{\"noop\": {}, \"name\": \"second\"}",
				"{\"kind\": \"noop\", \"noop\": {\"seconds\": 0.01}}" };
	uint64_t job[5];
	struct transfuse_job end;
	int lines = 0;

	if (transfuse_submit(t, "{\"noop\": {}, \"name\": \"alone\"}", &job[0]) < 0 ||
	    transfuse_submit(t, "{\"noop\": {\"seconds\": 600}}", &job[1]) < 0)
		return failed(t, "submit");
	if (transfuse_submit_batch(t, batch, 3, job + 2) < 0)
		return failed(t, "batch");
	if (transfuse_cancel(t, &job[1], 1) < 0)
		return failed(t, "cancel");
	for (int i = 0; i < 5; i++) {
		if (transfuse_wait(t, job[i], 60000, &end) < 0)
			return failed(t, "wait");
		if (end.done != (i != 1))
			return fprintf(stderr, "job %" PRIu64 " is %s: %s\n", end.id, end.state,
				       end.reason), 1;
	}
	if (transfuse_list(t, 1, 0, 5, print, &lines) < 0)
		return failed(t, "list");
	if (transfuse_submit(t, "{\"noop\": {\"minutes\": 1}}", &job[0]) != TRANSFUSE_INVALID)
		return fprintf(stderr, "a wrong spec was taken\n"), 1;
	printf("a wrong spec: %s\n", transfuse_error(t));
	return lines != 5;
}

static int count_one(void *arg, const struct transfuse_job *job)
{
	(void)job;
	++*(size_t *)arg;
	return 0;
}

static int only_one(void *arg, const struct transfuse_job *job)
{
	*(uint64_t *)arg = job->id;
	return 1; /* what a list is ended with is what it returns */
}

static size_t part(size_t left)
{
	return left < TRANSFUSE_BATCH_MOST ? left : TRANSFUSE_BATCH_MOST;
}

static int many(struct transfuse *t, size_t count, uint64_t *job)
{
	const char *batch[TRANSFUSE_BATCH_MOST];
	uint64_t newest = 0;
	size_t listed = 0;

	for (int i = 0; i < TRANSFUSE_BATCH_MOST; i++)
		batch[i] = "{\"noop\": {}}";
	for (size_t i = 0; i < count; i += part(count - i))
		if (transfuse_submit_batch(t, batch, part(count - i), job + i) < 0)
			return failed(t, "batch");
	if (transfuse_list(t, 1, 0, 0, only_one, &newest) != 1 ||
	    transfuse_list(t, 1, 0, count, count_one, &listed) < 0)
		return failed(t, "list");
	printf("%zu more jobs, the newest is %" PRIu64 "; %zu of them are listed\n", count, newest,
	       listed);
	for (size_t i = 0; i < count; i += part(count - i))
		if (transfuse_cancel(t, job + i, part(count - i)) < 0)
			return failed(t, "cancel");
	return newest != job[count - 1] || listed != count;
}

static int given(struct transfuse *t, long count)
{
	uint64_t *job = count > 0 ? calloc((size_t)count, sizeof *job) : NULL;
	int status = job ? many(t, (size_t)count, job) : 1;

	free(job);
	return status;
}

int main(int argc, char **argv)
{
	struct transfuse *t;
	int status;

	if (transfuse_connect(NULL, &t) < 0)
		status = failed(t, "connect");
	else
		status = few(t);
	if (status == 0 && argc > 1)
		status = given(t, atol(argv[1]));
	transfuse_close(t);
	return status;
}
