/* SPDX-License-Identifier: Apache-2.0
 * What a user's flood does to another's submits. The flood is a process of its own; the other user
 * submits one job after the other, alone and during the flood by turns, so that what else the
 * machine does befalls both. A line for each kind of flood: medians over the rounds of the median
 * and of the 99th percentile, alone and in the flood, and of their ratios.
 * usage: flood [ROUNDS [KIND...]] (in the build folder; TF_BUILD names another) */
#include "config.h"
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUND_MS 400
#define SUBMITS_MAX 10000
#define ROUNDS_MAX 100
#define BATCH_MAX 1000

static struct harness h;
static struct key_pair flooder;
static struct err e;

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double part_of(double *value, size_t n, double part)
{
	qsort(value, n, sizeof *value, by_size);
	return value[(size_t)(part * (double)(n - 1))];
}

static double middle(double *value, int n)
{
	return part_of(value, (size_t)n, 0.5);
}

/* ---------------------------------------------------------------- floods */

static Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
static Tf__JobSpec spec = TF__JOB_SPEC__INIT;
static Tf__Submit one = TF__SUBMIT__INIT;
static uint64_t token[2];
static size_t batch_jobs;

static void ask_submit(Tf__Request *r)
{
	token[0]++;
	r->body_case = TF__REQUEST__BODY_SUBMIT;
	r->submit = &one;
}

static void ask_batch(Tf__Request *r)
{
	static Tf__SubmitBatch batch = TF__SUBMIT_BATCH__INIT;
	static ProtobufCBinaryData packed[BATCH_MAX];

	for (size_t i = 0; i < batch_jobs; i++) {
		token[0]++;
		if (!packed[i].data)
			packed[i].data = xmalloc(tf__submit__get_packed_size(&one) + 64);
		packed[i].len = tf__submit__pack(&one, packed[i].data);
	}
	batch.n_submit = batch_jobs;
	batch.submit = packed;
	r->body_case = TF__REQUEST__BODY_SUBMIT_BATCH;
	r->submit_batch = &batch;
}

static void ask_list(Tf__Request *r)
{
	static Tf__JobList list = TF__JOB_LIST__INIT;

	list.has_limit = true;
	list.limit = 1000;
	r->body_case = TF__REQUEST__BODY_JOB_LIST;
	r->job_list = &list;
}

static const struct kind {
	const char *name;
	void (*ask)(Tf__Request *r);
	uint64_t open; /* unanswered requests of each of its connections */
	size_t batch;  /* jobs in each */
} kinds[] = {
	{ "submits, 2 x 64 open", ask_submit, 64, 0 },
	{ "submits, 2 x 1000 open", ask_submit, 1000, 0 },
	{ "submits without end", ask_submit, UINT64_MAX, 0 },
	{ "batches of 100", ask_batch, 2, 100 },
	{ "batches of 1000", ask_batch, 2, BATCH_MAX },
	{ "lists of 1000 jobs", ask_list, 2, 0 },
};

static void *flood_socket(void *context)
{
	char *path = harness_path(&h, "keys/server.pub"), *endpoint = NULL, server[KEY_CHARS + 1];
	void *socket = NULL;

	assert_ok(key_public_read(path, server, &e), &e);
	assert_ok(endpoint_read(h.state, &endpoint, &e), &e);
	assert_ok(wire_dealer(context, endpoint, server, &flooder, &socket, NULL, &e), &e);
	xfree(endpoint);
	xfree(path);
	return socket;
}

/* Asks and takes the answers until it is killed. */
static void flood(const struct kind *k)
{
	void *context = zmq_ctx_new(), *socket[2];
	Tf__Request r = TF__REQUEST__INIT;
	uint64_t open[2] = { 0 };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	batch_jobs = k->batch;
	r.version = TF_PROTOCOL_VERSION;
	token[1] = (uint64_t)clock_mono_ns();
	for (int i = 0; i < 2; i++)
		socket[i] = flood_socket(context);
	for (;;) {
		zmq_pollitem_t item[2] = { { socket[0], 0, ZMQ_POLLIN, 0 },
					   { socket[1], 0, ZMQ_POLLIN, 0 } };
		struct wire_message m;

		for (int i = 0; i < 2; i++) {
			while (open[i] < k->open) {
				r.id++;
				k->ask(&r);
				if (wire_send(socket[i], NULL, 0, &r.base, NULL) < 0)
					break;
				open[i]++;
			}
			while (wire_receive(socket[i], false, &m, NULL) == 1) {
				wire_message_close(&m);
				open[i]--;
			}
		}
		zmq_poll(item, 2, 1);
	}
}

/* ---------------------------------------------------------------- measuring */

struct measured {
	double median_ms, p99_ms;
	uint64_t jobs; /* of the flood meanwhile */
};

static struct measured measure(void)
{
	static double took[SUBMITS_MAX];
	uint64_t last = harness_noop(&h, "done");
	int64_t until = clock_mono_ms() + ROUND_MS;
	struct measured m = { 0, 0, 0 };
	size_t n = 0;

	while (clock_mono_ms() < until && n < SUBMITS_MAX) {
		int64_t begin = clock_mono_ns();
		uint64_t id = harness_noop(&h, "done");

		took[n++] = (double)(clock_mono_ns() - begin) / 1e6;
		m.jobs += id - last - 1;
		last = id;
	}
	m.median_ms = part_of(took, n, 0.5);
	m.p99_ms = part_of(took, n, 0.99);
	return m;
}

/* What the flood left waiting is handled. */
static void settle(void)
{
	uint64_t last = 0, id;

	while ((id = harness_noop(&h, "done")) != last + 1) {
		last = id;
		clock_sleep_ms(20);
	}
}

static void bench(const struct kind *k, int rounds)
{
	double alone[2][ROUNDS_MAX], among[2][ROUNDS_MAX], ratio[2][ROUNDS_MAX];
	uint64_t jobs = 0;

	for (int i = 0; i < rounds; i++) {
		struct measured a = measure(), b;
		pid_t child = fork();

		if (child == 0)
			flood(k);
		clock_sleep_ms(100);
		b = measure();
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		settle();
		alone[0][i] = a.median_ms, alone[1][i] = a.p99_ms;
		among[0][i] = b.median_ms, among[1][i] = b.p99_ms;
		for (int j = 0; j < 2; j++)
			ratio[j][i] = among[j][i] / alone[j][i];
		jobs += b.jobs;
	}
	printf("%-24s", k->name);
	for (int j = 0; j < 2; j++)
		printf(" %s %.2f ms alone, %.2f in it: %.2f x;", j ? "p99" : "median",
		       middle(alone[j], rounds), middle(among[j], rounds),
		       middle(ratio[j], rounds));
	printf(" its jobs: %.0f/s\n", (double)jobs / (rounds * ROUND_MS / 1000.0));
	fflush(stdout);
}

static bool is_wanted(const char *name, int argc, char **argv)
{
	for (int i = 2; i < argc; i++)
		if (strstr(name, argv[i]))
			return true;
	return argc <= 2;
}

int main(int argc, char **argv)
{
	int rounds = argc > 1 ? atoi(argv[1]) : 9;
	char user[100];

	if (rounds < 1 || rounds > ROUNDS_MAX)
		return 2;
	setenv("TF_BUILD", ".", 0);
	one.token.len = sizeof token;
	one.token.data = (uint8_t *)token;
	one.spec = &spec;
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	assert_ok(key_pair_make(&flooder, &e), &e);
	snprintf(user, sizeof user, "flo member %s", flooder.public_key);
	for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
		if (!is_wanted(kinds[i].name, argc, argv))
			continue;
		harness_init(&h);
		h.extra[0] = "--user";
		h.extra[1] = user;
		h.extra[2] = "--log-level";
		h.extra[3] = "error";
		harness_start(&h);
		assert_ok(harness_drain(h.line, false, false, &e), &e);
		for (int j = 0; j < 1000; j++)
			harness_noop(&h, "done");
		bench(&kinds[i], rounds);
		harness_stop(&h);
	}
	return 0;
}
