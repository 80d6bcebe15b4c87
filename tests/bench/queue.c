/* SPDX-License-Identifier: Apache-2.0
 * How fast the queue is: durable submits a second from 1, 8 and 32 clients, the time from a submit
 * to the exec of its worker on an idle daemon, noop jobs a second through workers, the list of ten
 * thousand jobs, and the daemon's private memory with them. One line a figure. Runs a daemon of its
 * own with the real worker. usage: queue (in the build folder; TF_BUILD names another) */
#include "config.h"
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUBMIT_SECONDS 3
#define LATENCY_JOBS 100
#define DRAIN_JOBS 300
#define LIST_JOBS 10000

static Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;

static void noop_spec(Tf__JobSpec *spec)
{
	tf__job_spec__init(spec);
	spec->kind = TF__JOB_KIND__NOOP;
	spec->spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec->noop = &noop;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct client {
	struct connection *line;
	int64_t until_ns;
	double *took_ms;
	size_t count, room;
	uint32_t number;
};

static void *submit_all(void *arg)
{
	struct client *c = arg;
	Tf__JobSpec spec;
	uint32_t token[4] = { c->number, 0, 0, (uint32_t)clock_mono_ms() };

	noop_spec(&spec);
	while (clock_mono_ns() < c->until_ns) {
		int64_t start = clock_mono_ns();

		token[1]++;
		if (harness_submit(c->line, &spec, (uint8_t *)token, false, NULL, NULL) < 0)
			abort();
		if (c->count == c->room) {
			c->room = c->room ? 2 * c->room : 4096;
			c->took_ms = xrealloc(c->took_ms, c->room, sizeof *c->took_ms);
		}
		c->took_ms[c->count++] = (double)(clock_mono_ns() - start) / 1e6;
	}
	return NULL;
}

static struct key_pair owner_of(struct harness *h)
{
	char *path = harness_path(h, "keys/client.key");
	struct key_pair keys;

	if (key_pair_read(path, &keys, NULL) < 0)
		abort();
	xfree(path);
	return keys;
}

/* Durable submits from so many clients at once, each with one request open. */
static void bench_submits(size_t clients)
{
	struct client *c = xcalloc(clients, sizeof *c);
	pthread_t *thread = xcalloc(clients, sizeof *thread);
	double *all = NULL;
	size_t n = 0;
	struct harness h;
	struct key_pair keys;

	harness_init(&h);
	h.slots = "0";
	h.extra[0] = "--log-level";
	h.extra[1] = "warn";
	h.extra[2] = "--gpus";
	h.extra[3] = "1";
	h.extra[4] = "--worker";
	h.extra[5] = "/bin/false";
	h.fault = "spawn:1+";
	harness_start(&h);
	keys = owner_of(&h);
	for (size_t i = 0; i < clients; i++) {
		c[i] = (struct client){ .line = harness_line(&h, &keys),
					.number = (uint32_t)i + 1,
					.until_ns =
						clock_mono_ns() + SUBMIT_SECONDS * 1000000000LL };
		pthread_create(&thread[i], NULL, submit_all, &c[i]);
	}
	for (size_t i = 0; i < clients; i++) {
		pthread_join(thread[i], NULL);
		all = xrealloc(all, n + c[i].count, sizeof *all);
		memcpy(all + n, c[i].took_ms, c[i].count * sizeof *all);
		n += c[i].count;
		connection_close(c[i].line);
		xfree(c[i].took_ms);
	}
	qsort(all, n, sizeof *all, by_size);
	printf("submits, %zu client%s: %.0f/s, median %.2f ms, p99 %.2f ms\n", clients,
	       clients == 1 ? "" : "s", (double)n / SUBMIT_SECONDS, all[n / 2], all[n * 99 / 100]);
	harness_stop(&h);
	xfree(all);
	xfree(thread);
	xfree(c);
}

/* From before the submit to the worker's exec (its job is `starting` on record then). */
static void bench_latency(const char *worker)
{
	double took[LATENCY_JOBS];
	struct harness h;

	harness_init(&h);
	h.worker = worker;
	harness_start(&h);
	for (int i = 0; i < LATENCY_JOBS; i++) {
		int64_t start = clock_mono_ns();
		uint64_t id = harness_noop(&h, "");
		Tf__JobState state;

		while ((state = harness_state(&h, id)) == TF__JOB_STATE__QUEUED)
			;
		took[i] = (double)(clock_mono_ns() - start) / 1e6;
		while (!job_state_is_end(harness_state(&h, id)))
			clock_sleep_ms(2);
		clock_sleep_ms(30); /* its process leaves, the slot is free */
	}
	qsort(took, LATENCY_JOBS, sizeof *took, by_size);
	printf("submit to exec, idle: median %.2f ms, p99 %.2f ms (n=%d)\n", took[LATENCY_JOBS / 2],
	       took[LATENCY_JOBS * 99 / 100], LATENCY_JOBS);
	harness_stop(&h);
}

static void bench_drain(const char *worker)
{
	struct harness h;
	uint64_t last = 0;
	int64_t start;

	harness_init(&h);
	h.worker = worker;
	h.slots = "2";
	harness_start(&h);
	start = clock_mono_ns();
	for (int i = 0; i < DRAIN_JOBS; i++)
		last = harness_noop(&h, "");
	while (!job_state_is_end(harness_state(&h, last)))
		clock_sleep_ms(5);
	printf("noop jobs, 2 slots, a process each: %.0f/s\n",
	       DRAIN_JOBS / ((double)(clock_mono_ns() - start) / 1e9));
	harness_stop(&h);
}

static long rss_anon_kib(pid_t pid)
{
	char *path = xasprintf("/proc/%d/status", (int)pid), line[256];
	FILE *f = fopen(path, "r");
	long kib = -1;

	while (f && fgets(line, sizeof line, f))
		sscanf(line, "RssAnon: %ld", &kib);
	if (f)
		fclose(f);
	xfree(path);
	return kib;
}

static void bench_list(void)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;
	double took[20];
	struct harness h;
	size_t n = 0;

	harness_init(&h);
	h.fault = "spawn:1+";
	harness_start(&h);
	printf("private memory (RssAnon), empty: %.1f MB\n", (double)rss_anon_kib(h.pid) / 1e3);
	for (int i = 0; i < LIST_JOBS; i++)
		harness_noop(&h, "a-name");
	printf("private memory (RssAnon), %d queued: %.1f MB\n", LIST_JOBS,
	       (double)rss_anon_kib(h.pid) / 1e3);
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	for (size_t i = 0; i < ARRAY_LEN(took); i++) {
		int64_t start = clock_mono_ns();
		Tf__Reply *reply = NULL;

		if (harness_call(h.line, &r, &reply, NULL) < 0)
			abort();
		took[i] = (double)(clock_mono_ns() - start) / 1e6;
		n = reply->jobs->n_job;
		tf__reply__free_unpacked(reply, NULL);
	}
	qsort(took, ARRAY_LEN(took), sizeof *took, by_size);
	printf("list of %zu jobs over the wire, unpacked: median %.1f ms\n", n,
	       took[ARRAY_LEN(took) / 2]);
	printf("private memory (RssAnon) after lists: %.1f MB\n",
	       (double)rss_anon_kib(h.pid) / 1e3);
	harness_stop(&h);
}

int main(void)
{
	const char *build = getenv("TF_BUILD");
	char *worker = xasprintf("%s/transfuse-worker", build ? build : ".");

	setvbuf(stdout, NULL, _IOLBF, 0);
	bench_submits(1);
	bench_submits(8);
	bench_submits(32);
	bench_latency(worker);
	bench_drain(worker);
	bench_list();
	xfree(worker);
	return 0;
}
