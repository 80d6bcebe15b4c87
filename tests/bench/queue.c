/* SPDX-License-Identifier: Apache-2.0
 * How fast the queue is: the rows of doc/speed.md, each a JSON object on a line. Every section runs
 * a daemon of its own with the real worker and checks that what it measured happened: warm jobs
 * went to warm workers, the others to a process each, all are done at the end.
 * usage: queue [SECTION...] (in the build folder; TF_BUILD names another)
 * The folders of all sections are removed at the end, or left to whoever names one for them in
 * TF_FOLDER. */
#include "config.h"
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/token.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define SUBMIT_SECONDS 2
#define BATCH_JOBS 5000
#define CLI_CALLS 150
#define LATENCY_JOBS 300
#define DRAIN_WARM 1000
#define DRAIN_EXEC 150
#define MANY_ENDED 2000
#define MANY_QUEUED 10000
#define LISTS 10
#define CRASH_QUEUED 100

extern char **environ;
static Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;

static void noop_spec(Tf__JobSpec *spec)
{
	tf__job_spec__init(spec);
	spec->kind = TF__JOB_KIND__NOOP;
	spec->spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec->noop = &noop;
}

static char *built(const char *rel)
{
	return xasprintf("%s/%s", getenv("TF_BUILD"), rel);
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* A row: {"system":"transfused","what":WHAT,"value":VALUE and the rest, a JSON text. */
__attribute__((format(printf, 3, 4))) static void say(const char *what, double value,
						      const char *rest, ...)
{
	va_list ap;

	printf("{\"system\":\"transfused\",\"what\":\"%s\",\"value\":%.4g", what, value);
	va_start(ap, rest);
	vprintf(rest, ap);
	va_end(ap);
	printf("}\n");
}

static void say_times(const char *what, double *took_ms, size_t n)
{
	qsort(took_ms, n, sizeof *took_ms, by_size);
	say(what, took_ms[n / 2], ",\"unit\":\"ms\",\"p99\":%.3g,\"n\":%zu",
	    took_ms[n * 99 / 100], n);
}

static double since_ms(int64_t start_ns)
{
	return (double)(clock_mono_ns() - start_ns) / 1e6;
}

/* ---------------------------------------------------------------- a daemon */

static void start_with(struct harness *h, const char *program, const char *slots,
		       const char *warm_seconds)
{
	static char worker[4096];
	char *path = built(program);

	snprintf(worker, sizeof worker, "%s", path);
	xfree(path);
	harness_init(h);
	h->worker = worker;
	h->slots = slots;
	h->extra[0] = "--warm-seconds";
	h->extra[1] = warm_seconds;
	h->extra[2] = "--map-mib";
	h->extra[3] = "1024";
	harness_start(h);
}

static void start(struct harness *h, const char *slots, const char *warm_seconds)
{
	start_with(h, "transfuse-worker", slots, warm_seconds);
}

/* Jobs queue up, or run. */
static void set_drained(struct harness *h, bool drained)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Drain m = TF__DRAIN__INIT;
	struct err e = ERR_INIT;

	r.body_case = TF__REQUEST__BODY_DRAIN;
	r.drain = &m;
	m.has_resume = m.resume = !drained;
	assert_ok(harness_call(h->line, &r, NULL, &e), &e);
}

static uint64_t submit(struct harness *h)
{
	struct err e = ERR_INIT;
	Tf__JobSpec spec;
	uint64_t id = 0;

	noop_spec(&spec);
	assert_ok(harness_submit(h->line, &spec, NULL, false, &id, &e), &e);
	return id;
}

/* Waits, without asking again and again, until the job is in the state or beyond. */
static void until(struct harness *h, uint64_t id, Tf__JobState state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobWait m = TF__JOB_WAIT__INIT;
	struct err e = ERR_INIT;
	bool there = false;

	r.body_case = TF__REQUEST__BODY_JOB_WAIT;
	r.job_wait = &m;
	m.job = id;
	m.has_since = m.has_timeout_ms = true;
	m.timeout_ms = 10000;
	while (!there) {
		Tf__Reply *reply = NULL;
		const Tf__Job *j;

		assert_ok(harness_call(h->line, &r, &reply, &e), &e);
		j = reply->jobs->job[0];
		there = j->state >= state || job_state_is_end(j->state);
		m.since = j->seq;
		tf__reply__free_unpacked(reply, NULL);
	}
}

/* How many jobs are in the state (of the newest so many); adds up their attempts. */
static size_t count_jobs(struct harness *h, Tf__JobState state, uint64_t *attempts)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;
	struct err e = ERR_INIT;
	size_t n = 0;
	bool more = true;

	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	m.has_all = m.all = true;
	while (more) {
		Tf__Reply *reply = NULL;

		assert_ok(harness_call(h->line, &r, &reply, &e), &e);
		for (size_t i = 0; i < reply->jobs->n_job; i++) {
			const Tf__Job *j = reply->jobs->job[i];

			n += j->state == state;
			if (attempts)
				*attempts += j->attempt;
		}
		more = reply->jobs->more;
		m.has_before = true;
		m.before = reply->jobs->next;
		tf__reply__free_unpacked(reply, NULL);
	}
	return n;
}

/* What a row says must be so: that many jobs went to workers that were there. */
static void check_warm(struct harness *h, int least, int most)
{
	int n = harness_said(h, "goes to the warm worker");

	if (n < least || n > most)
		fail_msg("%d jobs went to warm workers, expected %d to %d", n, least, most);
}

/* ---------------------------------------------------------------- submits */

struct client {
	struct connection *line;
	int64_t until_ns;
	double *took_ms;
	size_t count, room;
};

static void *submit_all(void *arg)
{
	struct client *c = arg;
	Tf__JobSpec spec;
	uint8_t token[TOKEN_BYTES];

	noop_spec(&spec);
	while (clock_mono_ns() < c->until_ns) {
		int64_t start = clock_mono_ns();

		if (token_make(token, NULL) < 0 ||
		    harness_submit(c->line, &spec, token, false, NULL, NULL) < 0)
			abort();
		if (c->count == c->room) {
			c->room = c->room ? 2 * c->room : 4096;
			c->took_ms = xrealloc(c->took_ms, c->room, sizeof *c->took_ms);
		}
		c->took_ms[c->count++] = since_ms(start);
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
static void bench_clients(size_t clients)
{
	struct client *c = xcalloc(clients, sizeof *c);
	pthread_t *thread = xcalloc(clients, sizeof *thread);
	double *all = NULL;
	size_t n = 0;
	struct harness h;
	struct key_pair keys;
	char what[40];

	start(&h, "1", "0");
	set_drained(&h, true);
	keys = owner_of(&h);
	for (size_t i = 0; i < clients; i++) {
		c[i] = (struct client){ .line = harness_line(&h, &keys),
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
	snprintf(what, sizeof what, "submits, %zu", clients);
	say(what, (double)n / SUBMIT_SECONDS,
	    ",\"unit\":\"/s\",\"durable\":true,\"median_ms\":%.3g,\"p99_ms\":%.3g", all[n / 2],
	    all[n * 99 / 100]);
	harness_stop(&h);
	xfree(all);
	xfree(thread);
	xfree(c);
}

static void bench_submits(void)
{
	bench_clients(1);
	bench_clients(8);
	bench_clients(32);
}

/* ---------------------------------------------------------------- the command line */

/* How long the program takes, from before its start to its end. */
static double run_ms(char **argv, const char *output)
{
	posix_spawn_file_actions_t actions;
	int64_t began = clock_mono_ns();
	int status;
	pid_t pid;

	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, output,
					 O_WRONLY | O_CREAT | O_TRUNC, 0600);
	assert_int_equal(posix_spawn(&pid, argv[0], &actions, NULL, argv, environ), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (status != 0)
		fail_msg("%s ended with status %#x", argv[0], status);
	posix_spawn_file_actions_destroy(&actions);
	return since_ms(began);
}

static char *write_batch(struct harness *h, size_t jobs)
{
	char *path = xasprintf("%s/batch.jsonl", h->folder);
	struct buf text = BUF_INIT;
	struct err e = ERR_INIT;

	for (size_t i = 0; i < jobs; i++)
		buf_text(&text, "{\"kind\":\"noop\",\"name\":\"a-name\",\"noop\":{}}\n");
	assert_ok(file_write(path, text.data, text.len, 0600, &e), &e);
	buf_release(&text);
	return path;
}

/* `transfuse submit --batch FILE`, from its start to its end. */
static double submit_file(struct harness *h, size_t jobs)
{
	char *file = write_batch(h, jobs), *transfuse = built("transfuse");
	char *argv[] = { transfuse, "submit", "--batch", file, NULL };
	double took;

	setenv("TRANSFUSE_STATE", h->state, 1);
	took = run_ms(argv, "/dev/null");
	assert_int_equal(count_jobs(h, TF__JOB_STATE__QUEUED, NULL), jobs);
	xfree(transfuse);
	xfree(file);
	return took;
}

static void bench_batch(void)
{
	struct harness h;

	start(&h, "1", "0");
	set_drained(&h, true);
	say("submit --batch", BATCH_JOBS / submit_file(&h, BATCH_JOBS) * 1e3,
	    ",\"unit\":\"/s\",\"durable\":true,\"jobs\":%d", BATCH_JOBS);
	harness_stop(&h);
}

struct echo {
	void *router;
	bool end;
};

static void *serve_echo(void *arg)
{
	struct echo *s = arg;
	char route[256], text[1024];
	int time_ms = 100;

	zmq_setsockopt(s->router, ZMQ_RCVTIMEO, &time_ms, sizeof time_ms);
	while (!__atomic_load_n(&s->end, __ATOMIC_ACQUIRE)) {
		int n = zmq_recv(s->router, route, sizeof route, 0), len;

		if (n < 0)
			continue;
		len = zmq_recv(s->router, text, sizeof text, 0);
		zmq_send(s->router, route, (size_t)n, ZMQ_SNDMORE);
		zmq_send(s->router, text, (size_t)len, 0);
	}
	return NULL;
}

/* The two programs by turns, so that what else the machine does befalls both. */
static void compare_programs(char **transfuse, char **echo)
{
	static double ours[CLI_CALLS], least[CLI_CALLS];

	for (int i = -5; i < CLI_CALLS; i++) {
		double a = run_ms(transfuse, "/dev/null"), b = run_ms(echo, "/dev/null");

		if (i < 0)
			continue;
		ours[i] = a;
		least[i] = b;
	}
	qsort(ours, CLI_CALLS, sizeof *ours, by_size);
	qsort(least, CLI_CALLS, sizeof *least, by_size);
	say("transfuse noop / echo", least[CLI_CALLS / 2] / ours[CLI_CALLS / 2],
	    ",\"unit\":\"x\",\"transfuse_ms\":%.3g,\"echo_ms\":%.3g,\"transfuse_p99_ms\":%.3g,"
	    "\"echo_p99_ms\":%.3g",
	    ours[CLI_CALLS / 2], least[CLI_CALLS / 2], ours[CLI_CALLS * 99 / 100],
	    least[CLI_CALLS * 99 / 100]);
	say("submits, 1 command after another", 1e3 / ours[CLI_CALLS / 2],
	    ",\"unit\":\"/s\",\"durable\":true");
}

static void bench_cli(void)
{
	struct key_pair server, client;
	struct echo s = { NULL, false };
	int one = 1;
	struct harness h;
	void *context = zmq_ctx_new();
	char *transfuse = built("transfuse"), *program = built("tests/bench/echo"), *endpoint;
	char *ours[] = { transfuse, "noop", NULL };
	char *echo[] = { program, NULL, server.public_key, client.public_key, client.secret_key,
			 NULL };
	pthread_t thread;

	start(&h, "1", "0");
	set_drained(&h, true);
	setenv("TRANSFUSE_STATE", h.state, 1);
	endpoint = echo[1] = xasprintf("ipc://%s/echo", h.folder);
	key_pair_make(&server, NULL);
	key_pair_make(&client, NULL);
	s.router = zmq_socket(context, ZMQ_ROUTER);
	zmq_setsockopt(s.router, ZMQ_CURVE_SERVER, &one, sizeof one);
	zmq_setsockopt(s.router, ZMQ_CURVE_SECRETKEY, server.secret_key, KEY_CHARS + 1);
	assert_int_equal(zmq_bind(s.router, endpoint), 0);
	pthread_create(&thread, NULL, serve_echo, &s);
	compare_programs(ours, echo);
	__atomic_store_n(&s.end, true, __ATOMIC_RELEASE);
	pthread_join(thread, NULL);
	zmq_close(s.router);
	zmq_ctx_term(context);
	harness_stop(&h);
	xfree(endpoint);
	xfree(program);
	xfree(transfuse);
}

/* ---------------------------------------------------------------- starts */

/* How many processes the daemon has. */
static size_t children(const struct harness *h)
{
	char *path = xasprintf("/proc/%d/task/%d/children", (int)h->pid, (int)h->pid);
	struct buf text = BUF_INIT;
	size_t n = 0;

	file_read(path, 1 << 20, &text, NULL);
	for (size_t i = 0; i < text.len; i++)
		n += text.data[i] == ' ';
	buf_release(&text);
	xfree(path);
	return n;
}

/* From before the submit until its start is on record (durable) and told to the client: for a
 * process of its own it is started then, a warm worker was given it. */
static void bench_start(const char *what, bool warm)
{
	double to_start[LATENCY_JOBS], to_hello[LATENCY_JOBS];
	struct harness h;
	size_t before;

	start(&h, "1", warm ? "600" : "0");
	clock_sleep_ms(200);
	before = children(&h);
	for (int i = warm ? -1 : 0; i < LATENCY_JOBS; i++) {
		int64_t began = clock_mono_ns();
		uint64_t id = submit(&h);

		until(&h, id, TF__JOB_STATE__STARTING);
		if (i >= 0)
			to_start[i] = since_ms(began);
		until(&h, id, TF__JOB_STATE__RUNNING);
		if (i >= 0)
			to_hello[i] = since_ms(began);
		until(&h, id, TF__JOB_STATE__DONE);
		while (!warm && children(&h) > before)
			clock_sleep_ms(1);
		clock_sleep_ms(5);
	}
	check_warm(&h, warm ? LATENCY_JOBS : 0, warm ? LATENCY_JOBS : 0);
	say_times(what, to_start, LATENCY_JOBS);
	if (!warm)
		say_times("submit to the worker's hello", to_hello, LATENCY_JOBS);
	harness_stop(&h);
}

/* From before the submit until the process of the job runs, by its own word as in other queues. */
static void bench_began(void)
{
	double to_exec[LATENCY_JOBS];
	struct harness h;

	start_with(&h, "tests/bench/stamped_worker", "1", "0");
	clock_sleep_ms(200);
	for (int i = 0; i < LATENCY_JOBS; i++) {
		int64_t sent = clock_mono_ns();
		uint64_t id = submit(&h);
		long long began = 0;
		char *log;

		until(&h, id, TF__JOB_STATE__DONE);
		log = harness_log(&h, id);
		assert_int_equal(sscanf(log, "began %lld", &began), 1);
		to_exec[i] = (double)(began - sent) / 1e6;
		xfree(log);
		clock_sleep_ms(20);
	}
	check_warm(&h, 0, 0);
	say_times("submit to exec", to_exec, LATENCY_JOBS);
	harness_stop(&h);
}

static void bench_starts(void)
{
	bench_began();
	bench_start("submit to start, exec", false);
	bench_start("submit to start, warm", true);
}

/* ---------------------------------------------------------------- drains */

/* Jobs that wait, from the word to go until all are done on record. */
static void drain_jobs(struct harness *h, const char *what, size_t jobs)
{
	uint64_t attempts = 0;
	int64_t began;
	double took;

	set_drained(h, true);
	submit_file(h, jobs);
	began = clock_mono_ns();
	set_drained(h, false);
	until(h, jobs, TF__JOB_STATE__DONE);
	for (uint64_t id = jobs - 1; id + 8 > jobs; id--)
		until(h, id, TF__JOB_STATE__DONE);
	took = since_ms(began);
	assert_int_equal(count_jobs(h, TF__JOB_STATE__DONE, &attempts), jobs);
	assert_int_equal(attempts, jobs);
	say(what, (double)jobs / took * 1e3,
	    ",\"unit\":\"/s\",\"jobs\":%zu,\"slots\":2,\"durable\":true", jobs);
}

static void bench_drains(void)
{
	struct harness h;

	start(&h, "2", "600");
	drain_jobs(&h, "drain, warm", DRAIN_WARM);
	check_warm(&h, DRAIN_WARM - 2, DRAIN_WARM - 1);
	harness_stop(&h);
	start(&h, "2", "0");
	drain_jobs(&h, "drain, exec", DRAIN_EXEC);
	check_warm(&h, 0, 0);
	harness_stop(&h);
}

/* ---------------------------------------------------------------- many jobs */

static void say_memory(const struct harness *h, const char *what)
{
	say(what, (double)harness_rss_anon_kib(h) * 1024 / 1e6, ",\"unit\":\"MB\"");
}

static void time_list(struct harness *h, const char *what, const char *option)
{
	char *transfuse = built("transfuse"), *out = xasprintf("%s/list", h->folder);
	char *argv[] = { transfuse, "jobs", "--limit", "100000", (char *)option, NULL };
	double took[LISTS];

	for (int i = 0; i < LISTS; i++)
		took[i] = run_ms(argv, out);
	assert_true(file_size(out) > 40 * MANY_QUEUED);
	say_times(what, took, LISTS);
	xfree(out);
	xfree(transfuse);
}

/* Ten thousand jobs wait, others have ended. */
static void bench_many(void)
{
	struct harness h;

	start(&h, "2", "600");
	say_memory(&h, "memory, empty");
	set_drained(&h, true);
	submit_file(&h, MANY_ENDED);
	set_drained(&h, false);
	for (uint64_t id = MANY_ENDED; id + 8 > MANY_ENDED; id--)
		until(&h, id, TF__JOB_STATE__DONE);
	say_memory(&h, "memory, 2000 ended");
	set_drained(&h, true);
	submit_file(&h, MANY_QUEUED);
	say_memory(&h, "memory, 10000 queued");
	time_list(&h, "list, text", NULL);
	time_list(&h, "list, JSON", "--json");
	say_memory(&h, "memory, after lists");
	harness_stop(&h);
}

/* ---------------------------------------------------------------- kill -9 */

static void bench_crash(void)
{
	struct harness h;
	struct err e = ERR_INIT;
	uint64_t attempts = 0, running;
	size_t queued, repeated;
	bool adopted;

	start(&h, "1", "0");
	noop.has_seconds = true;
	noop.seconds = 60;
	running = submit(&h);
	noop.seconds = 0;
	until(&h, running, TF__JOB_STATE__RUNNING);
	for (int i = 0; i < CRASH_QUEUED; i++)
		submit(&h);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	queued = count_jobs(&h, TF__JOB_STATE__QUEUED, NULL);
	adopted = harness_state(&h, running) == TF__JOB_STATE__RUNNING &&
		  harness_said(&h, "is alive, pid=") == 1;
	assert_ok(harness_cancel(h.line, running, &e), &e);
	until(&h, running, TF__JOB_STATE__CANCELLED);
	for (uint64_t id = running + 1; id <= running + CRASH_QUEUED; id++)
		until(&h, id, TF__JOB_STATE__DONE);
	assert_int_equal(count_jobs(&h, TF__JOB_STATE__DONE, &attempts), CRASH_QUEUED);
	repeated = attempts - CRASH_QUEUED - 1;
	say("kill -9", (double)queued,
	    ",\"unit\":\"of 100 queued kept\",\"running_adopted\":%s,\"repeated\":%zu",
	    adopted ? "true" : "false", repeated);
	harness_stop(&h);
}

static const struct section {
	const char *name;
	void (*run)(void);
} sections[] = {
	{ "submits", bench_submits }, { "batch", bench_batch }, { "cli", bench_cli },
	{ "starts", bench_starts },   { "drains", bench_drains }, { "many", bench_many },
	{ "crash", bench_crash },
};

int main(int argc, char **argv)
{
	char own[] = "/tmp/tf-queue-XXXXXX";
	const char *given = getenv("TF_FOLDER");
	struct err e = ERR_INIT;

	setvbuf(stdout, NULL, _IOLBF, 0);
	setenv("TF_BUILD", ".", 0);
	harness_keep_in(given ? given : mkdtemp(own));
	for (size_t i = 0; i < ARRAY_LEN(sections); i++) {
		bool wanted = argc == 1;

		for (int k = 1; k < argc; k++)
			wanted |= strcmp(argv[k], sections[i].name) == 0;
		if (wanted)
			sections[i].run();
	}
	if (!given)
		assert_ok(dir_remove(own, &e), &e);
	return 0;
}
