/* SPDX-License-Identifier: Apache-2.0
 * Nobody's flood keeps the others out: users are served in turn however many connections one has;
 * the rate, the waiting requests, the connections and the unread answers of a user are bounded.
 * What a flood does to another's submits is measured by tests/bench/flood; how time is shared, by
 * test_inbox. */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FLOOD_LINES 8
#define FLOOD_EACH 60
#define POLITE 16
#define FLOOD_OPEN 1000 /* on each of two connections */
#define ROUNDS 31

static struct harness h;
static struct key_pair flo;
static struct err e;

static void start(const char *option, const char *value)
{
	err_clear(&e);
	harness_init(&h);
	h.extra[0] = option;
	h.extra[1] = value;
	harness_start(&h);
	harness_enrol(&h, "flo", "member", &flo);
}

static void start_bound(const char *bound)
{
	err_clear(&e);
	harness_init(&h);
	h.bound = bound;
	harness_start(&h);
	harness_enrol(&h, "flo", "member", &flo);
}

/* The daemon stands still while two users ask: one with many requests on each of many connections,
 * one with a few. Job numbers tell the order in which they were served then. With one line for each
 * connection, eight of the flood would come for each of the other's. */
static void many_connections_are_one_user(void **state)
{
	void *context = zmq_ctx_new(), *flood[FLOOD_LINES], *polite;
	uint64_t first, last = 0;

	(void)state;
	start(NULL, NULL);
	assert_ok(harness_drain(h.line, false, false, &e), &e);
	polite = harness_socket(&h, context, NULL);
	harness_send_noops(polite, "done", 1, 1);
	harness_receive_job(polite);
	for (int i = 0; i < FLOOD_LINES; i++) {
		flood[i] = harness_socket(&h, context, &flo);
		harness_send_noops(flood[i], "done", 1, 1);
		harness_receive_job(flood[i]);
	}
	kill(h.pid, SIGSTOP);
	for (int i = 0; i < FLOOD_LINES; i++)
		harness_send_noops(flood[i], "done", 2, FLOOD_EACH);
	harness_send_noops(polite, "done", 2, POLITE);
	clock_sleep_ms(500); /* all of it is on its way, also from a busy machine */
	kill(h.pid, SIGCONT);
	first = harness_receive_job(polite);
	for (int i = 1; i < POLITE; i++)
		last = harness_receive_job(polite);
	print_message("# %llu jobs between the first and the last of %d\n",
		      (unsigned long long)(last - first), POLITE);
	assert_true(last - first < 4 * POLITE);
	for (int i = 0; i < FLOOD_LINES; i++) {
		for (int j = 0; j < FLOOD_EACH; j++)
			harness_receive_job(flood[i]); /* they come too */
		zmq_close(flood[i]);
	}
	zmq_close(polite);
	zmq_ctx_term(context);
	harness_stop(&h);
}

/* Takes what answers came and sends more, until so many are open. */
struct flood {
	void *socket;
	uint64_t open, next;
};

static void flood_on(struct flood *f, uint64_t most)
{
	Tf__Reply *reply;

	while ((reply = harness_receive(f->socket, 0)) != NULL) {
		assert_int_equal(reply->code, 0);
		tf__reply__free_unpacked(reply, NULL);
		f->open--;
	}
	harness_send_noops(f->socket, "done", f->next, most - f->open);
	f->next += most - f->open;
	f->open = most;
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* One user has thousands of requests open all the time, another sends one submit after the other.
 * The numbers of the jobs tell how many of the first come before each: as good as none while the
 * other is served, and what is theirs until the other asks again. A daemon that takes them as they
 * come has all that wait before each. No clock is looked at: a slow machine is slow for both. */
static void a_submit_is_not_behind_a_flood(void **state)
{
	void *context = zmq_ctx_new(), *polite;
	struct flood flood[2];
	uint64_t last = 0, before[ROUNDS];

	(void)state;
	start(NULL, NULL);
	assert_ok(harness_drain(h.line, false, false, &e), &e);
	polite = harness_socket(&h, context, NULL);
	for (int i = 0; i < 2; i++)
		flood[i] = (struct flood){ harness_socket(&h, context, &flo), 0, 1 };
	for (uint64_t i = 0; i <= ROUNDS; i++) {
		uint64_t id;

		for (int k = 0; k < 2; k++)
			flood_on(&flood[k], FLOOD_OPEN);
		harness_send_noops(polite, "done", 1 + i, 1);
		id = harness_receive_job(polite);
		if (i > 0)
			before[i - 1] = id - last - 1;
		last = id;
	}
	qsort(before, ROUNDS, sizeof *before, by_size);
	print_message("# %llu jobs of the flood before one of the other's, at most %llu\n",
		      (unsigned long long)before[ROUNDS / 2],
		      (unsigned long long)before[ROUNDS - 1]);
	assert_true(before[ROUNDS / 2] < FLOOD_OPEN / 4);
	for (int i = 0; i < 2; i++)
		zmq_close(flood[i].socket);
	zmq_close(polite);
	zmq_ctx_term(context);
	harness_stop(&h);
}

static void send_pings(void *socket, uint64_t first, uint64_t count)
{
	Tf__Request r = harness_empty(TF__REQUEST__BODY_PING);

	for (r.id = first; r.id < first + count; r.id++)
		harness_send(socket, &r);
}

/* Those above the rate wait; nobody else does. */
static void the_rate_of_a_user_is_bounded(void **state)
{
	void *context = zmq_ctx_new(), *socket;
	int64_t begin;

	(void)state;
	start("--user-requests-per-second", "40");
	socket = harness_socket(&h, context, &flo);
	begin = clock_mono_ms();
	send_pings(socket, 1, 44);
	for (int i = 0; i < 44; i++) {
		Tf__Reply *reply = harness_receive(socket, LIMIT_WAIT_MS);

		assert_non_null(reply);
		assert_int_equal(reply->code, 0);
		tf__reply__free_unpacked(reply, NULL);
	}
	assert_true(clock_mono_ms() - begin >= 900); /* the first four at once */
	zmq_close(socket);
	zmq_ctx_term(context);
	harness_stop(&h);
}

/* With one request a second the others wait, until too many do. */
static void what_waits_of_a_user_is_bounded(void **state)
{
	void *context = zmq_ctx_new(), *socket;
	bool refused = false;
	Tf__Reply *reply;

	(void)state;
	start("--user-requests-per-second", "1");
	socket = harness_socket(&h, context, &flo);
	send_pings(socket, 1, LIMIT_USER_PENDING + 100);
	while (!refused && (reply = harness_receive(socket, LIMIT_WAIT_MS)) != NULL) {
		refused = reply->code == TF_ELIMIT;
		if (refused) {
			assert_true(reply->id > LIMIT_USER_PENDING);
			assert_non_null(strstr(reply->text, "4096 requests of flo wait already"));
		}
		tf__reply__free_unpacked(reply, NULL);
	}
	assert_true(refused);
	harness_noop(&h, "done"); /* the others do not notice */
	zmq_close(socket);
	zmq_ctx_term(context);
	harness_stop(&h);
}

static int ping(struct connection *c)
{
	Tf__Request r = harness_empty(TF__REQUEST__BODY_PING);

	err_clear(&e);
	return harness_call(c, &r, NULL, &e);
}

/* The owner has one, another three. */
static void connections_are_bounded(void **state)
{
	struct connection *line[8];
	int refused = 0, open = 0;

	(void)state;
	start("--clients", "4");
	for (int i = 0; i < 8; i++) {
		line[i] = harness_line(&h, &flo);
		if (ping(line[i]) < 0) {
			refused++;
			assert_int_equal(e.code, TF_ELIMIT);
			assert_non_null(strstr(e.text, "takes no more connections now"));
		} else {
			open++;
		}
	}
	assert_int_equal(open, 3);
	assert_int_equal(refused, 5);
	assert_int_equal(ping(h.line), 0); /* those that are there stay */
	for (int i = 0; i < 8; i++)
		connection_close(line[i]);
	for (int64_t until = clock_mono_ms() + 20000;; clock_sleep_ms(20)) {
		int rc;

		line[0] = harness_line(&h, &flo); /* there is room again */
		rc = ping(line[0]);
		connection_close(line[0]);
		if (rc == 0)
			break;
		assert_true(clock_mono_ms() < until);
	}
	harness_stop(&h);
}

/* The log of a job that has ended, so long. */
static uint64_t long_log(size_t bytes)
{
	uint64_t id = harness_noop(&h, "done");
	char *path, *text = xcalloc(1, bytes);
	struct err wrong = ERR_INIT;

	harness_until(&h, id, TF__JOB_STATE__DONE);
	memset(text, 'x', bytes);
	path = harness_path(&h, "jobs/%llu/log", (unsigned long long)id);
	assert_ok(file_write(path, text, bytes, 0600, &wrong), &wrong);
	xfree(path);
	xfree(text);
	return id;
}

/* Asks so often for the log on a connection that takes only one more answer in. The bound on what
 * it takes in is set once it is there: ZeroMQ makes the queue of a connection when its handshake
 * is through, by the options that its zmq_connect saw. */
static void *ask_and_not_read(void *context, uint64_t job, uint64_t times)
{
	void *socket = harness_socket(&h, context, &flo);
	Tf__Request r = TF__REQUEST__INIT;
	Tf__LogRead m = TF__LOG_READ__INIT;
	Tf__Reply *pong;
	int one = 1;

	send_pings(socket, 1, 1);
	pong = harness_receive(socket, LIMIT_WAIT_MS);
	assert_non_null(pong);
	tf__reply__free_unpacked(pong, NULL);
	assert_int_equal(zmq_setsockopt(socket, ZMQ_RCVHWM, &one, sizeof one), 0);
	m.job = job;
	r.version = TF_PROTOCOL_VERSION;
	r.body_case = TF__REQUEST__BODY_LOG_READ;
	r.log_read = &m;
	for (r.id = 2; r.id < 2 + times; r.id++)
		harness_send(socket, &r);
	return socket;
}

static void until_said_alive(const char *words)
{
	for (int64_t until = clock_mono_ms() + 30000; !harness_said(&h, words);) {
		assert_true(clock_mono_ms() < until);
		assert_int_equal(ping(h.line), 0);
		clock_sleep_ms(20);
	}
}

/* Somebody asks for long answers and reads none: so much is kept for them, the rest is dropped. */
static void unread_answers_are_bounded(void **state)
{
	void *context = zmq_ctx_new(), *socket;
	uint64_t id;
	long before;

	(void)state;
	start(NULL, NULL);
	id = long_log((300u << 10) - 1);
	before = harness_rss_anon_kib(&h);
	socket = ask_and_not_read(context, id, 1500); /* 375 MiB of answers */
	until_said_alive("bytes wait for this connection");
	print_message("# %ld KiB for 1500 unread answers of 256 KiB\n",
		      harness_rss_anon_kib(&h) - before);
	if (!getenv("TF_SANITIZED")) /* freed memory is kept there for a while */
		assert_true(harness_rss_anon_kib(&h) - before < (100 << 10));
	assert_int_equal(harness_said(&h, "bytes wait for all connections"), 0);
	zmq_close(socket);
	zmq_ctx_term(context);
	harness_stop(&h);
}

/* Three connections that each keep within their own bound, and not within that of all. */
static void all_unread_answers_are_bounded(void **state)
{
	void *context = zmq_ctx_new(), *socket[3];
	uint64_t id;

	(void)state;
	start_bound("unsent-bytes:2000000");
	id = long_log((300u << 10) - 1);
	for (int i = 0; i < 3; i++)
		socket[i] = ask_and_not_read(context, id, 200);
	until_said_alive("bytes wait for all connections");
	assert_int_equal(harness_said(&h, "bytes wait for this connection"), 0);
	for (int i = 0; i < 3; i++)
		zmq_close(socket[i]);
	zmq_ctx_term(context);
	harness_noop(&h, "done"); /* others go on */
	harness_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(many_connections_are_one_user),
		cmocka_unit_test(a_submit_is_not_behind_a_flood),
		cmocka_unit_test(the_rate_of_a_user_is_bounded),
		cmocka_unit_test(what_waits_of_a_user_is_bounded),
		cmocka_unit_test(connections_are_bounded),
		cmocka_unit_test(unread_answers_are_bounded),
		cmocka_unit_test(all_unread_answers_are_bounded),
	};

	return cmocka_run_group_tests_name("fairness", tests, NULL, NULL);
}
