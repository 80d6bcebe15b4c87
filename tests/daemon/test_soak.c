/* SPDX-License-Identifier: Apache-2.0
 * What must not grow: memory and descriptors of the daemon under clients that submit, cancel and
 * watch, and its memory with ever more ended jobs on disk. The long forms:
 *   TF_SOAK=1800 tests/daemon/test_soak      half an hour (default: 4000 jobs without a pause)
 *   TF_RANDOM=1 with it                      of clients whose tokens do not begin with the time
 *   TF_ENDED=1000000 tests/daemon/test_soak  a million ended jobs (default 20,000) */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "store/jobs.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define CLIENTS 8
#define SAMPLES_MAX 100000
#define TOOK_MAX 10000000
#define SHORT_JOBS 4000 /* of the short form */
#define SHORT_KIB 512   /* by which memory may grow in it */

static struct harness h;
static struct err e;
static atomic_int at_work; /* clients */

static long from_environment(const char *name, long otherwise)
{
	const char *text = getenv(name);

	return text && *text ? atol(text) : otherwise;
}

static uint64_t ended_jobs(void)
{
	return (uint64_t)from_environment("TF_ENDED", 20000);
}

static int count_one(void *arg, const char *name)
{
	(void)name;
	++*(long *)arg;
	return 0;
}

static long descriptors(pid_t pid)
{
	char *path = xasprintf("/proc/%d/fd", (int)pid);
	long count = 0;

	assert_ok(dir_each(path, count_one, &count, &e), &e);
	xfree(path);
	return count;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* ---------------------------------------------------------------- a store of ended jobs */

static void put_ended(struct state *s, uint64_t id)
{
	Tf__JobRecord r = TF__JOB_RECORD__INIT;
	Tf__SpecRecord spec = TF__SPEC_RECORD__INIT;
	Tf__JobSpec job_spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	Tf__Job j = TF__JOB__INIT;
	uint8_t token[TOKEN_BYTES]; /* random: as those of older clients were */

	assert_int_equal(getrandom(token, sizeof token, 0), sizeof token);
	job_spec.kind = j.kind = TF__JOB_KIND__NOOP;
	job_spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	job_spec.noop = &noop;
	spec.spec = &job_spec;
	j.id = id;
	j.name = (char *)"a-job-with-a-name";
	j.user = (char *)"somebody";
	j.state = TF__JOB_STATE__DONE;
	j.has_attempt = j.has_submitted = j.has_started = j.has_ended = true;
	j.attempt = 1;
	j.submitted = j.started = j.ended = clock_wall_ms();
	r.job = &j;
	r.token.data = token;
	r.token.len = sizeof token;
	assert_ok(job_put(s, &r, &e), &e);
	assert_ok(job_spec_put(s, id, &spec, &e), &e);
}

static void put_many(uint64_t count)
{
	char *path = harness_path(&h, "store");
	struct state *s = NULL;

	assert_ok(dir_make(path, 0700, &e), &e);
	assert_ok(state_open(path, 8ull << 30, &s, &e), &e);
	for (uint64_t id = 1; id <= count; id++) {
		put_ended(s, id);
		if (id % 100000 == 0)
			assert_ok(state_commit(s, &e), &e);
	}
	assert_ok(state_set_number(s, "last-job", count, &e), &e);
	assert_ok(state_commit(s, &e), &e);
	state_close(s);
	xfree(path);
}

/* ---------------------------------------------------------------- clients */

struct client {
	struct connection *line;
	pthread_t thread;
	unsigned number;
	bool random_tokens;
	int pause_ms;  /* at most, between a job and the next */
	unsigned each; /* one job of so many is watched, another listed */
	size_t most;   /* jobs */
	int64_t until_ms;
	double *took_ms; /* of each submit */
	size_t submits, watched, cancelled;
	int failed; /* the first error */
};

static int submit(struct client *c, uint64_t *id)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	uint8_t token[TOKEN_BYTES];
	int64_t start;
	int rc;

	assert_ok(token_make(token, &e), &e);
	if (c->random_tokens)
		assert_int_equal(getrandom(token, sizeof token, 0), sizeof token);
	start = clock_mono_ns();
	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)"done";
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	rc = harness_submit(c->line, &spec, token, false, id, NULL);
	c->took_ms[c->submits++] = (double)(clock_mono_ns() - start) / 1e6;
	return rc;
}

static int watch(struct client *c, uint64_t id)
{
	uint64_t since = 0;

	for (;;) {
		Tf__Request r = TF__REQUEST__INIT;
		Tf__JobWait m = TF__JOB_WAIT__INIT;
		Tf__Reply *reply = NULL;
		bool ended;

		m.job = id;
		m.has_since = m.has_timeout_ms = true;
		m.since = since;
		m.timeout_ms = 1000;
		r.body_case = TF__REQUEST__BODY_JOB_WAIT;
		r.job_wait = &m;
		TRY(harness_call(c->line, &r, &reply, NULL));
		since = reply->jobs->job[0]->seq;
		ended = job_state_is_end(reply->jobs->job[0]->state);
		tf__reply__free_unpacked(reply, NULL);
		if (ended || clock_mono_ms() > c->until_ms)
			return 0;
	}
}

static int list(struct client *c)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;

	m.has_all = m.all = m.has_limit = true;
	m.limit = 100;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	return harness_call(c->line, &r, NULL, NULL);
}

static void *work(void *arg)
{
	struct client *c = arg;
	unsigned random = c->number * 7919;

	while (c->failed == 0 && clock_mono_ms() < c->until_ms && c->submits < c->most) {
		uint64_t id = 0;
		int rc = submit(c, &id);

		random = random * 1103515245 + 12345;
		switch ((random >> 16) % c->each) {
		case 0:
			rc = rc < 0 ? rc : watch(c, id);
			c->watched++;
			break;
		case 1:
			rc = rc < 0 ? rc : list(c);
			/* fall through */
		default:
			rc = rc < 0 ? rc : harness_cancel(c->line, id, NULL);
			c->cancelled++;
		}
		c->failed = rc < 0 ? rc : 0;
		clock_sleep_ms((random >> 20) % (unsigned)(c->pause_ms + 1));
	}
	at_work--;
	return NULL;
}

/* The short form is of so many jobs, that the leak of one shows on a slow machine, too. */
static void start_clients(struct client *c, long seconds)
{
	bool quick = seconds == 0;
	char *path = harness_path(&h, "keys/client.key");
	struct key_pair owner;

	assert_ok(key_pair_read(path, &owner, &e), &e);
	for (unsigned i = 0; i < CLIENTS; i++) {
		c[i].line = harness_line(&h, &owner);
		c[i].number = i + 1;
		c[i].random_tokens = from_environment("TF_RANDOM", 0);
		c[i].pause_ms = quick ? 0 : 15;
		c[i].each = quick ? 64 : 8;
		c[i].most = (quick ? SHORT_JOBS : TOOK_MAX) / CLIENTS;
		c[i].until_ms = quick ? INT64_MAX : clock_mono_ms() + seconds * 1000;
		c[i].took_ms = xcalloc(TOOK_MAX / CLIENTS, sizeof *c[i].took_ms);
		at_work++;
		assert_int_equal(pthread_create(&c[i].thread, NULL, work, &c[i]), 0);
	}
	xfree(path);
}

static void end_clients(struct client *c)
{
	double *all = NULL;
	size_t n = 0, watched = 0, cancelled = 0;

	for (unsigned i = 0; i < CLIENTS; i++) {
		pthread_join(c[i].thread, NULL);
		assert_int_equal(c[i].failed, 0);
		all = xrealloc(all, n + c[i].submits, sizeof *all);
		memcpy(all + n, c[i].took_ms, c[i].submits * sizeof *all);
		n += c[i].submits;
		watched += c[i].watched;
		cancelled += c[i].cancelled;
		connection_close(c[i].line);
		xfree(c[i].took_ms);
	}
	qsort(all, n, sizeof *all, by_size);
	print_message("# %zu submits, %zu cancelled, %zu watched to their end; submit median "
		      "%.2f ms, p99 %.2f ms\n",
		      n, cancelled, watched, all[n / 2], all[n * 99 / 100]);
	assert_true(n > 0 && watched > 0 && cancelled > 0);
	xfree(all);
}

static double median(const double *from, size_t count)
{
	double *copy = xcalloc(count + 1, sizeof *copy), middle;

	memcpy(copy, from, count * sizeof *copy);
	qsort(copy, count, sizeof *copy, by_size);
	middle = copy[count / 2];
	xfree(copy);
	return middle;
}

/* Memory from the second fifth of the time on, when buffers have their sizes, against the last. */
static void nothing_grows_under_clients(void **state)
{
	static double kib[SAMPLES_MAX];
	static struct client c[CLIENTS];
	long seconds = from_environment("TF_SOAK", 0), before, after;
	double early, late;
	size_t n = 0;

	(void)state;
	harness_init(&h);
	h.slots = "2";
	h.extra[0] = "--map-mib";
	h.extra[1] = "8192";
	h.extra[2] = "--log-level";
	h.extra[3] = "error";
	put_many(ended_jobs());
	harness_start(&h);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE); /* connected */
	before = descriptors(h.pid);
	start_clients(c, seconds);
	while (at_work > 0 && n < SAMPLES_MAX) {
		kib[n++] = (double)harness_rss_anon_kib(&h);
		clock_sleep_ms(seconds ? 500 : 5);
	}
	end_clients(c);
	for (int i = 0; i < 300 && descriptors(h.pid) > before; i++)
		clock_sleep_ms(100); /* the last workers leave, connections are closed */
	after = descriptors(h.pid);
	early = median(kib + n / 5, n / 5);
	late = median(kib + n - n / 5, n / 5);
	print_message("# RssAnon %.0f -> %.0f KiB (%+.1f %%), descriptors %ld -> %ld\n", early,
		      late, 100 * (late - early) / early, before, after);
	harness_stop(&h);
	assert_true(after <= before);
	/* in the short form buffers still grow to their sizes; sanitizers keep freed memory */
	if (!getenv("TF_SANITIZED"))
		assert_true(late <= early * 1.02 + (seconds ? 0 : SHORT_KIB));
}

/* ---------------------------------------------------------------- ended jobs */

/* As `status` says it. */
static uint64_t count_of_ended(void)
{
	Tf__Request r = harness_empty(TF__REQUEST__BODY_STATUS);
	Tf__Reply *reply = NULL;
	uint64_t count = UINT64_MAX;

	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	for (size_t i = 0; i < reply->status->n_count; i++)
		if (strcmp(reply->status->count[i]->key, "ended") == 0)
			count = strtoull(reply->status->count[i]->value, NULL, 10);
	tf__reply__free_unpacked(reply, NULL);
	return count;
}

static long memory_with(uint64_t ended)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;
	Tf__Reply *reply = NULL;
	int64_t start;
	long kib;

	harness_init(&h);
	h.extra[0] = "--map-mib";
	h.extra[1] = "8192";
	if (ended)
		put_many(ended);
	start = clock_mono_ms();
	harness_start(&h);
	start = clock_mono_ms() - start;
	m.has_all = m.all = m.has_limit = true;
	m.limit = 10;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	assert_int_equal(reply->jobs->n_job, ended ? 10 : 0);
	if (ended)
		assert_int_equal(reply->jobs->job[0]->id, ended);
	assert_int_equal(count_of_ended(), ended);
	tf__reply__free_unpacked(reply, NULL);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	kib = harness_rss_anon_kib(&h);
	print_message("# %llu ended jobs: RssAnon %ld KiB, started in %lld ms\n",
		      (unsigned long long)ended, kib, (long long)start);
	harness_stop(&h);
	return kib;
}

static void ended_jobs_cost_no_memory(void **state)
{
	long none, many;

	(void)state;
	none = memory_with(0);
	many = memory_with(ended_jobs());
	if (!getenv("TF_SANITIZED"))
		assert_true(many - none < 512);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ended_jobs_cost_no_memory),
		cmocka_unit_test(nothing_grows_under_clients),
	};

	return cmocka_run_group_tests_name("soak", tests, NULL, NULL);
}
