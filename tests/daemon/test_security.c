/* SPDX-License-Identifier: Apache-2.0
 * What must be refused is refused, and put down in the audit log: unknown and revoked keys, a
 * reader that writes, paths out of bounds, messages over the limit, frames that are replayed,
 * reordered or forged on the way, links in results, another's token, a worker of another attempt.
 * doc/security.md has the table of all such tests. */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define HEADERS 50 /* of frames of 250 MiB in all */

static struct harness h;
static struct key_pair member;
static struct err e;

static int start_with(void **state, const char *bound)
{
	harness_prepared(state);
	h.extra[0] = "--root";
	h.extra[1] = h.state; /* any folder */
	h.bound = bound;
	harness_start(&h);
	harness_enrol(&h, "bob", "member", &member);
	return 0;
}

static int start(void **state)
{
	return start_with(state, NULL);
}

/* A connection that is out of step is closed when its heartbeats stay away. */
static int start_impatient(void **state)
{
	return start_with(state, "heartbeat-ms:1000");
}

/* Whether one of the newest entries is "user action outcome" with these words in its text. */
static bool is_put_down(const char *user, const char *action, const char *outcome,
			const char *words)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__AuditRead m = TF__AUDIT_READ__INIT;
	Tf__Reply *reply = NULL;
	bool there = false;

	m.has_limit = true;
	m.limit = 20;
	r.body_case = TF__REQUEST__BODY_AUDIT_READ;
	r.audit_read = &m;
	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	for (size_t i = 0; i < reply->audit->n_entry; i++) {
		const Tf__AuditEntry *a = reply->audit->entry[i];

		there |= strcmp(a->user, user) == 0 && strcmp(a->action, action) == 0 &&
			 strcmp(a->outcome, outcome) == 0 && strstr(a->text, words);
	}
	tf__reply__free_unpacked(reply, NULL);
	return there;
}

static void put_down(const char *user, const char *action, const char *outcome, const char *words)
{
	int64_t until = clock_mono_ms() + 30000;

	while (!is_put_down(user, action, outcome, words)) {
		if (clock_mono_ms() > until)
			fail_msg("the audit log has no %s of '%s', %s with '%s'", action, user,
				 outcome, words);
		clock_sleep_ms(20);
	}
}

static int ask(struct connection *c, Tf__Request__BodyCase body)
{
	Tf__Request r = harness_empty(body);

	err_clear(&e);
	return harness_call(c, &r, NULL, &e);
}

/* ---------------------------------------------------------------- who */

static void keys_and_roles(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserRevoke m = TF__USER_REVOKE__INIT;
	struct key_pair stranger, reader;
	struct connection *c;

	(void)state;
	assert_ok(key_pair_make(&stranger, &e), &e);
	c = harness_line(&h, &stranger);
	assert_int_equal(ask(c, TF__REQUEST__BODY_PING), TF_EREFUSED);
	put_down("-", "connect", "TF_EREFUSED", "unknown key");
	connection_close(c);
	harness_enrol(&h, "ann", "reader", &reader);
	c = harness_line(&h, &reader);
	assert_int_equal(harness_submit_noop(c, "done", NULL, NULL, &e), TF_EREFUSED);
	put_down("ann", "submit", "TF_EREFUSED", "ann is a reader");
	connection_close(c);
	c = harness_line(&h, &member);
	assert_ok(ask(c, TF__REQUEST__BODY_PING), &e);
	m.who = (char *)"bob";
	r.body_case = TF__REQUEST__BODY_USER_REVOKE;
	r.user_revoke = &m;
	assert_ok(harness_call(h.line, &r, NULL, &e), &e);
	assert_int_equal(ask(c, TF__REQUEST__BODY_PING), TF_EREFUSED); /* an open connection */
	put_down("-", "ping", "TF_EREFUSED", "not known here any more");
	connection_close(c);
	c = harness_line(&h, &member);
	assert_int_equal(ask(c, TF__REQUEST__BODY_PING), TF_EREFUSED);
	connection_close(c);
}

/* Whose token it is may ask for the job again; another learns nothing of it. */
static void anothers_token(void **state)
{
	static const uint8_t token[16] = "an owner's token";
	struct connection *c = harness_line(&h, &member);
	uint64_t id = 0, again = 0, theirs = 0;

	(void)state;
	assert_ok(harness_submit_noop(h.line, "wait", token, &id, &e), &e);
	assert_int_equal(harness_submit_noop(c, "wait", token, &theirs, &e), TF_EREFUSED);
	assert_int_equal(theirs, 0);
	put_down("bob", "submit", "TF_EREFUSED", "this token belongs to a job of another user");
	assert_ok(harness_submit_noop(h.line, "wait", token, &again, &e), &e);
	assert_int_equal(again, id);
	connection_close(c);
}

static void a_worker_of_another_attempt(void **state)
{
	uint64_t id = harness_noop(&h, "fence");
	char *reason;

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	reason = harness_reason(&h, id, NULL);
	assert_string_equal(reason, "answered so");
	xfree(reason);
	put_down("(worker)", "worker_report", "TF_EFENCED", "attempt");
}

/* ---------------------------------------------------------------- where */

static int read_result(uint64_t job, const char *path)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__FileRead m = TF__FILE_READ__INIT;
	Tf__FileOf of = TF__FILE_OF__INIT;

	of.of_case = TF__FILE_OF__OF_JOB;
	of.job = job;
	m.of = &of;
	m.path = (char *)path;
	m.length = 10;
	r.body_case = TF__REQUEST__BODY_FILE_READ;
	r.file_read = &m;
	err_clear(&e);
	return harness_call(h.line, &r, NULL, &e);
}

static int import(char *path)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__IngestSpec ingest = TF__INGEST_SPEC__INIT;

	ingest.dataset = (char *)"data";
	ingest.n_path = 1;
	ingest.path = &path;
	spec.kind = TF__JOB_KIND__INGEST;
	spec.spec_case = TF__JOB_SPEC__SPEC_INGEST;
	spec.ingest = &ingest;
	err_clear(&e);
	return harness_submit(h.line, &spec, NULL, false, NULL, &e);
}

static void paths_and_links(void **state)
{
	uint64_t id = harness_noop(&h, "done");
	char *results = harness_path(&h, "jobs/%llu/results", (unsigned long long)id);
	char *link = xasprintf("%s/link", results);

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__DONE);
	dir_make(results, 0700, NULL);
	assert_int_equal(symlink("/etc/passwd", link), 0);
	assert_int_equal(read_result(id, "results/link"), TF_EREFUSED);
	assert_int_equal(harness_said(&h, "root:x"), 0);
	assert_int_equal(read_result(id, "results/../outcome-1.pb"), TF_EREFUSED);
	assert_int_equal(import((char *)"/etc/passwd"), TF_EREFUSED);
	xfree(link);
	link = harness_path(&h, "passwd");
	assert_int_equal(symlink("/etc/passwd", link), 0); /* below the root, and leads out of it */
	assert_int_equal(import(link), TF_EREFUSED);
	xfree(link);
	xfree(results);
}

/* ---------------------------------------------------------------- what */

static void a_message_over_the_limit(void **state)
{
	void *context = zmq_ctx_new(), *socket = harness_socket(&h, context, &member);
	uint8_t *big = xcalloc(1, 2 * LIMIT_MESSAGE_BYTES);
	static const uint8_t head[] = { 0x08, TF_PROTOCOL_VERSION, 0x10, 77 }; /* version, id */
	struct connection *c = harness_line(&h, &member);
	Tf__Reply *reply;

	(void)state;
	memcpy(big, head, sizeof head);
	while (zmq_send(socket, big, LIMIT_MESSAGE_BYTES + 1, ZMQ_DONTWAIT) < 0)
		clock_sleep_ms(1);
	reply = harness_receive(socket, 30000);
	assert_non_null(reply);
	assert_int_equal(reply->id, 77);
	assert_int_equal(reply->code, TF_ELIMIT);
	assert_non_null(strstr(reply->text, "4194305 bytes"));
	tf__reply__free_unpacked(reply, NULL);
	put_down("bob", "message", "TF_ELIMIT", "4194305 bytes");
	while (zmq_send(socket, big, LIMIT_FRAME_BYTES + 1, ZMQ_DONTWAIT) < 0)
		clock_sleep_ms(1);
	assert_null(harness_receive(socket, 300)); /* the connection is closed unread */
	harness_until_said(&h, "was closed: it sent a frame over 5242880 bytes", 1);
	assert_int_equal(harness_said(&h, "a connection from uid "), 1);
	put_down("-", "connect", "TF_EREFUSED", "over 5242880 bytes");
	assert_ok(ask(c, TF__REQUEST__BODY_PING), &e);
	connection_close(c); /* it leaves by itself: nothing is said */
	zmq_close(socket);
	clock_sleep_ms(100);
	assert_ok(ask(h.line, TF__REQUEST__BODY_PING), &e);
	assert_int_equal(harness_said(&h, "was closed: "), 1);
	zmq_ctx_term(context);
	xfree(big);
}

static char there[200]; /* the daemon's socket */

static void send_all(int fd, const uint8_t *data, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		data += n;
		len -= (size_t)n;
	}
}

static void find_socket(void)
{
	char *endpoint = NULL;

	assert_ok(endpoint_read(h.state, &endpoint, &e), &e);
	snprintf(there, sizeof there, "%s", endpoint + strlen("ipc://"));
	xfree(endpoint);
}

static int dial(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%.100s", there);
	if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0)
		return fd;
	close(fd);
	return -1;
}

static void send_head(int fd, uint8_t flags, uint64_t frame_bytes)
{
	uint8_t head[9] = { flags };

	for (int i = 0; i < 8; i++)
		head[1 + i] = (uint8_t)(frame_bytes >> (56 - 8 * i));
	send_all(fd, head, sizeof head);
}

/* A stranger's connection with the header of a command and nothing behind it. */
static int send_header(uint64_t frame_bytes)
{
	static const uint8_t greeting[64] = "\xff\0\0\0\0\0\0\0\1\x7f\3\1" "CURVE";
	int fd = dial();

	assert_true(fd >= 0);
	send_all(fd, greeting, sizeof greeting);
	send_head(fd, 6, frame_bytes);
	return fd;
}

/* Whether the daemon closes it within this time. */
static bool is_closed(int fd, int64_t within_ms)
{
	int64_t until = clock_mono_ms() + within_ms;
	struct pollfd item = { fd, POLLIN, 0 };
	uint8_t said[256];

	while (clock_mono_ms() < until)
		if (poll(&item, 1, 50) > 0 && read(fd, said, sizeof said) <= 0)
			return true;
	return false;
}

/* What they announce is neither waited for nor in memory. */
static void headers_alone(void **state)
{
	static const uint64_t too_long[] = { LIMIT_FRAME_BYTES + 1, INT64_MAX, UINT64_MAX };
	long before = harness_rss_anon_kib(&h);
	int fd[HEADERS];

	(void)state;
	find_socket();
	for (size_t i = 0; i < ARRAY_LEN(too_long); i++) {
		fd[0] = send_header(too_long[i]);
		assert_true(is_closed(fd[0], 2000)); /* sooner than a handshake must be through */
		close(fd[0]);
	}
	for (size_t i = 0; i < HEADERS; i++)
		fd[i] = send_header(LIMIT_FRAME_BYTES);
	assert_false(is_closed(fd[HEADERS - 1], 500));
	assert_ok(ask(h.line, TF__REQUEST__BODY_PING), &e);
	assert_in_range(harness_rss_anon_kib(&h), 1, before + (32 << 10));
	for (size_t i = 0; i < HEADERS; i++) {
		assert_true(is_closed(fd[i], 30000)); /* the time of the handshake is over */
		close(fd[i]);
	}
}

/* ---------------------------------------------------------------- on the way */

/* Somebody between client and daemon, who sees frames (ZMTP: flags, length, body) but no keys. */
enum mischief { PASS, REPLAY, SWAP, FORGE, EXCEED, ANNOUNCE };

static struct proxy {
	int listener;
	atomic_int mischief;
	atomic_bool leave;
	pthread_t thread;
} proxy;

struct stream {
	uint8_t data[1 << 16];
	size_t len;
	size_t greeted; /* of the 64 bytes before the first frame */
	uint8_t held[4096];
	size_t held_len;
};

/* The whole frame at the beginning; 0: it is not all there. */
static size_t frame_len(const struct stream *s, bool *message)
{
	size_t head = s->len > 0 && (s->data[0] & 2) ? 9 : 2, body = 0;

	*message = false;
	if (s->len < head)
		return 0;
	for (size_t i = 1; i < head; i++)
		body = body << 8 | s->data[i];
	*message = s->len >= head + 8 && memcmp(s->data + head, "\x07MESSAGE", 8) == 0;
	return s->len >= head + body ? head + body : 0;
}

static void pass_message(struct stream *s, int to, size_t len)
{
	switch (atomic_load(&proxy.mischief)) {
	case REPLAY:
		send_all(to, s->data, len);
		break;
	case FORGE:
		s->data[len - 1] ^= 1;
		break;
	case ANNOUNCE: /* the longest frame; this one and all that follow are but its beginning */
		send_head(to, 2, LIMIT_FRAME_BYTES);
		break;
	case EXCEED: /* a longer one; what came of it was read when the connection is closed */
		send_head(to, 2, LIMIT_FRAME_BYTES + 1);
		clock_sleep_ms(2);
		break;
	case SWAP:
		if (s->held_len == 0) {
			assert_true(len <= sizeof s->held);
			memcpy(s->held, s->data, len);
			s->held_len = len;
			return;
		}
		send_all(to, s->data, len);
		send_all(to, s->held, s->held_len);
		atomic_store(&proxy.mischief, PASS);
		return;
	default:
		break;
	}
	send_all(to, s->data, len);
	atomic_store(&proxy.mischief, PASS);
}

static void take_off(struct stream *s, size_t len)
{
	s->len -= len;
	memmove(s->data, s->data + len, s->len);
}

static void pass_frames(struct stream *s, int to)
{
	size_t len = 64 - s->greeted < s->len ? 64 - s->greeted : s->len;
	bool message;

	send_all(to, s->data, len);
	take_off(s, len);
	s->greeted += len;
	while ((len = frame_len(s, &message)) > 0) {
		if (message)
			pass_message(s, to, len);
		else
			send_all(to, s->data, len);
		take_off(s, len);
	}
}

static void relay(int client)
{
	struct stream *s = xcalloc(1, sizeof *s);
	uint8_t back[1 << 16];
	int server = dial();

	while (server >= 0 && !atomic_load(&proxy.leave)) {
		struct pollfd item[2] = { { client, POLLIN, 0 }, { server, POLLIN, 0 } };
		ssize_t n = 1;

		if (poll(item, 2, 20) <= 0)
			continue;
		if (item[1].revents) {
			n = read(server, back, sizeof back);
			if (n > 0)
				send_all(client, back, (size_t)n);
		}
		if (n > 0 && item[0].revents) {
			n = read(client, s->data + s->len, sizeof s->data - s->len);
			s->len += n > 0 ? (size_t)n : 0;
			pass_frames(s, server);
		}
		if (n <= 0)
			break;
	}
	if (server >= 0)
		close(server);
	close(client);
	xfree(s);
}

static void *run_proxy(void *arg)
{
	(void)arg;
	while (!atomic_load(&proxy.leave)) {
		struct pollfd item = { proxy.listener, POLLIN, 0 };
		int fd = poll(&item, 1, 20) > 0 ? accept(proxy.listener, NULL, NULL) : -1;

		if (fd >= 0)
			relay(fd);
	}
	return NULL;
}

/* A line of the member that goes through the proxy. */
static struct connection *start_proxy(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct connection_options o = { .keys = member,
					.connect_ms = 60000,
					.reconnect_ms = 60000 };
	char *here, *path = harness_path(&h, "keys/server.pub");
	char server[KEY_CHARS + 1];
	struct connection *c = NULL;

	find_socket();
	snprintf(a.sun_path, sizeof a.sun_path, "%.90s/proxy", h.folder);
	proxy.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(proxy.listener, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(listen(proxy.listener, 8), 0);
	atomic_store(&proxy.leave, false);
	atomic_store(&proxy.mischief, PASS);
	assert_int_equal(pthread_create(&proxy.thread, NULL, run_proxy, NULL), 0);
	here = xasprintf("ipc://%s", a.sun_path);
	assert_ok(key_public_read(path, server, &e), &e);
	o.endpoint = here;
	o.server_key = server;
	assert_ok(connection_open(&o, &c, &e), &e);
	assert_ok(ask(c, TF__REQUEST__BODY_PING), &e);
	xfree(here);
	xfree(path);
	return c;
}

static void stop_proxy(struct connection *c)
{
	connection_close(c);
	atomic_store(&proxy.leave, true);
	pthread_join(proxy.thread, NULL);
	close(proxy.listener);
}

static void ping_twice(struct connection *c)
{
	Tf__Request r = harness_empty(TF__REQUEST__BODY_PING);
	uint64_t id;

	for (int i = 0; i < 2; i++)
		assert_ok(connection_send(c, &r, &id, &e), &e);
	for (int i = 0; i < 2; i++) {
		Tf__Reply *reply = NULL;

		assert_ok(connection_receive(c, 60000, &reply, &e), &e);
		assert_int_equal(reply->code, 0);
		tf__reply__free_unpacked(reply, NULL);
	}
}

/* Another's pings, so that the daemon looks at its connections all the time. */
static void *keep_busy(void *arg)
{
	struct connection *c = arg;
	Tf__Request r = harness_empty(TF__REQUEST__BODY_PING);
	struct err failed = ERR_INIT;

	while (!atomic_load(&proxy.leave) && harness_call(c, &r, NULL, &failed) == 0)
		;
	return NULL;
}

/* The daemon closes the connection and says so; the client comes again and gets its answers. */
static void frames_are_looked_at(void **state)
{
	static const char *const says[] = { [REPLAY] = "a frame was sent again or out of order",
					    [SWAP] = "a frame was sent again or out of order",
					    [FORGE] = "a frame was forged or damaged",
					    [EXCEED] = "over 5242880 bytes" };
	struct connection *c = start_proxy(), *other = harness_line(&h, &member);
	pthread_t busy;
	int said = 0;

	(void)state;
	assert_int_equal(pthread_create(&busy, NULL, keep_busy, other), 0);
	for (int k = REPLAY; k <= EXCEED; k++) {
		uint64_t before = connection_reconnects(c);

		said = harness_said(&h, says[k]);
		atomic_store(&proxy.mischief, k);
		ping_twice(c);
		harness_until_said(&h, says[k], said + 1);
		put_down("-", "connect", "TF_EREFUSED", says[k]);
		ping_twice(c);
		assert_int_equal(connection_reconnects(c), before + 1);
		assert_int_equal(harness_said(&h, says[k]), said + 1);
	}
	stop_proxy(c);
	pthread_join(busy, NULL);
	connection_close(other);
}

/* It waits for the rest of a frame no longer than for any sign of life. */
static void a_frame_without_an_end(void **state)
{
	struct connection *c = start_proxy();
	uint64_t before = connection_reconnects(c);

	(void)state;
	atomic_store(&proxy.mischief, ANNOUNCE);
	ping_twice(c);
	assert_int_equal(connection_reconnects(c), before + 1);
	stop_proxy(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(keys_and_roles, start),
		WITH_HARNESS(anothers_token, start),
		WITH_HARNESS(a_worker_of_another_attempt, start),
		WITH_HARNESS(paths_and_links, start),
		WITH_HARNESS(a_message_over_the_limit, start),
		WITH_HARNESS(headers_alone, start),
		WITH_HARNESS(frames_are_looked_at, start_impatient),
		WITH_HARNESS(a_frame_without_an_end, start_impatient),
	};

	return cmocka_run_group_tests_name("security", tests, NULL, NULL);
}
