/* SPDX-License-Identifier: Apache-2.0
 * Sockets, keys and a caller's connection, against a small ROUTER in a thread: what a caller
 * sees of an absent daemon, a refused key, another daemon's key, silence, a daemon that comes back,
 * and one that answers and leaves. */
#include "tests/test.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/connection.h"
#include "proto/wire.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATIENCE_MS 60000 /* only a failure takes it; other work may fill the machine */
#define SOON_MS 20000     /* what does not wait for it ends long before */

struct server {
	char folder[64], endpoint[96];
	struct key_pair keys, known; /* known: the one key that is let in */
	void *context;
	pthread_t thread;
	atomic_bool stop, mute;
	atomic_int seen;
};

static void zap_answer(struct server *s, void *zap)
{
	char frame[7][256], key[41] = "";
	int n = 0, len[7] = { 0 };
	bool good;

	while (n < 7) {
		int more;
		size_t size = sizeof more;

		len[n] = zmq_recv(zap, frame[n], sizeof frame[n], ZMQ_DONTWAIT);
		if (len[n] < 0)
			return;
		n++;
		zmq_getsockopt(zap, ZMQ_RCVMORE, &more, &size);
		if (!more)
			break;
	}
	if (n == 7 && len[6] == 32)
		zmq_z85_encode(key, (uint8_t *)frame[6], 32);
	good = strcmp(key, s->known.public_key) == 0;
	zmq_send(zap, "1.0", 3, ZMQ_SNDMORE);
	zmq_send(zap, frame[1], len[1], ZMQ_SNDMORE);
	zmq_send(zap, good ? "200" : "400", 3, ZMQ_SNDMORE);
	zmq_send(zap, "", 0, ZMQ_SNDMORE);
	zmq_send(zap, key, strlen(key), ZMQ_SNDMORE);
	zmq_send(zap, "", 0, 0);
}

/* Answers a ping with ok, anything else with an error. */
static void answer(struct server *s, void *router)
{
	struct wire_message m;
	Tf__Request *r;
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Empty ok = TF__EMPTY__INIT;
	uint64_t id;

	if (wire_receive(router, true, &m, NULL) <= 0)
		return;
	if (strcmp(m.user, s->known.public_key) != 0 ||
	    wire_unpack_request(zmq_msg_data(&m.body), zmq_msg_size(&m.body), &r, &id, NULL) < 0)
		BUG("a request of %zu bytes of '%s'", zmq_msg_size(&m.body), m.user);
	atomic_fetch_add(&s->seen, 1);
	reply.version = TF_PROTOCOL_VERSION;
	reply.id = id;
	if (r->body_case == TF__REQUEST__BODY_PING) {
		reply.body_case = TF__REPLY__BODY_OK;
		reply.ok = &ok;
	} else {
		reply.has_code = 1;
		reply.code = TF_ENOTFOUND;
		reply.text = "there is no such thing";
	}
	if (!s->mute)
		wire_send(router, m.route, m.route_len, &reply.base, NULL);
	tf__request__free_unpacked(r, NULL);
	wire_message_close(&m);
}

static void *serve(void *arg)
{
	struct server *s = arg;
	struct err e = ERR_INIT;
	void *zap = zmq_socket(s->context, ZMQ_REP), *router = NULL;
	int zero = 0, linger = SOON_MS;

	zmq_setsockopt(zap, ZMQ_LINGER, &zero, sizeof zero);
	if (zmq_bind(zap, "inproc://zeromq.zap.01") < 0 ||
	    wire_router(s->context, &s->keys, &router, &e) < 0 ||
	    wire_bind(router, s->endpoint, 0600, &e) < 0)
		BUG("the test's server: %s", e.text);
	while (!s->stop) {
		zmq_pollitem_t items[] = { { router, 0, ZMQ_POLLIN, 0 },
					   { zap, 0, ZMQ_POLLIN, 0 } };

		zmq_poll(items, 2, 20);
		if (items[0].revents)
			answer(s, router);
		if (items[1].revents)
			zap_answer(s, zap);
	}
	zmq_setsockopt(router, ZMQ_LINGER, &linger, sizeof linger);
	zmq_close(router);
	zmq_close(zap);
	return NULL;
}

static void server_start(struct server *s)
{
	s->stop = false;
	s->context = zmq_ctx_new();
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void server_stop(struct server *s)
{
	s->stop = true;
	pthread_join(s->thread, NULL);
	zmq_ctx_term(s->context);
}

static int setup(void **state)
{
	struct server *s = xcalloc(1, sizeof *s);
	struct err e = ERR_INIT;
	const char *tmp = getenv("TMPDIR");

	snprintf(s->folder, sizeof s->folder, "%.40s/tf-wire-XXXXXX",
		 tmp && strlen(tmp) < 40 ? tmp : "/tmp");
	if (!mkdtemp(s->folder) || keys_private_make(s->folder, &s->keys, &s->known, &e) < 0)
		return -1;
	snprintf(s->endpoint, sizeof s->endpoint, "ipc://%s/socket", s->folder);
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct server *s = *state;

	dir_remove(s->folder, NULL);
	xfree(s);
	return 0;
}

static struct connection *connect_as(struct server *s, const struct key_pair *keys,
				     const char *server_key)
{
	struct err e = ERR_INIT;
	struct connection_options o = { .endpoint = s->endpoint, .server_key = server_key,
					.keys = *keys, .key_file = "me.key", .connect_ms = 700,
					.reconnect_ms = 4000 };
	struct connection *c = NULL;

	assert_ok(connection_open(&o, &c, &e), &e);
	return c;
}

static Tf__Request ping_request(void)
{
	static Tf__Empty empty = TF__EMPTY__INIT;
	Tf__Request r = TF__REQUEST__INIT;

	r.body_case = TF__REQUEST__BODY_PING;
	r.ping = &empty;
	return r;
}

static int ping(struct connection *c, int64_t timeout_ms, struct err *e)
{
	Tf__Request r = ping_request();
	Tf__Reply *reply;
	int rc;

	rc = connection_call(c, &r, timeout_ms, &reply, e);
	if (rc == 0)
		tf__reply__free_unpacked(reply, NULL);
	return rc;
}

static void keys_in_files(void **state)
{
	struct server *s = *state;
	struct err e = ERR_INIT;
	struct key_pair again, other, made;
	char path[128], text[KEY_CHARS + 1];

	assert_ok(keys_private_make(s->folder, &again, &other, &e), &e);
	assert_string_equal(again.secret_key, s->keys.secret_key);
	assert_string_equal(other.public_key, s->known.public_key);
	snprintf(path, sizeof path, "%s/keys/server.pub", s->folder);
	assert_ok(key_public_read(path, text, &e), &e);
	assert_string_equal(text, s->keys.public_key);
	snprintf(path, sizeof path, "%s/keys/client.key", s->folder);
	chmod(path, 0640);
	assert_int_equal(key_pair_read(path, &other, &e), TF_EREFUSED);
	assert_non_null(strstr(e.text, "mode 640"));
	chmod(path, 0600);
	assert_ok(key_pair_of_secret(s->known.secret_key, &made, &e), &e);
	assert_string_equal(made.public_key, s->known.public_key);
	err_clear(&e);
	assert_int_equal(key_pair_of_secret("short", &made, &e), TF_EINVALID);
	memcpy(made.public_key, s->keys.public_key, sizeof made.public_key);
	made = s->known;
	memcpy(made.public_key, s->keys.public_key, sizeof made.public_key);
	snprintf(path, sizeof path, "%s/mixed.key", s->folder);
	assert_ok(key_pair_write(path, &made, NULL), &e);
	err_clear(&e);
	assert_int_equal(key_pair_read(path, &made, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "no pair"));
}

static void endpoints(void **state)
{
	static const char *const bad[] = { "ipc://relative", "tcp://host", "tcp://:80", "tcp://h:x",
					   "tcp://h:123456", "inproc://x", "", "tcp:" };
	struct server *s = *state;
	char path[160] = "ipc:///", *read = NULL;
	const char *list[] = { s->endpoint, "tcp://127.0.0.1:7080" };
	struct err e = ERR_INIT;

	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_true(wire_endpoint_check(bad[i], NULL) < 0);
	assert_int_equal(wire_endpoint_check("tcp://*:7080", NULL), 0);
	assert_int_equal(wire_endpoint_check("tcp://[::1]:7080", NULL), 0);
	memset(path + 7, 'a', 106);
	assert_int_equal(wire_endpoint_check(path, NULL), 0);
	memset(path + 7, 'a', 107);
	assert_int_equal(wire_endpoint_check(path, NULL), TF_ELIMIT);
	assert_ok(endpoint_write(s->folder, list, 2, &e), &e);
	assert_ok(endpoint_read(s->folder, &read, &e), &e);
	assert_string_equal(read, s->endpoint);
	xfree(read);
}

static void calls(void **state)
{
	struct server *s = *state;
	struct err e = ERR_INIT;
	struct connection *c;
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRef ref = TF__JOB_REF__INIT;
	Tf__Reply *reply;

	server_start(s);
	c = connect_as(s, &s->known, s->keys.public_key);
	for (int i = 0; i < 20; i++)
		assert_ok(ping(c, PATIENCE_MS, &e), &e);
	r.body_case = TF__REQUEST__BODY_JOB_SHOW;
	r.job_show = &ref;
	assert_int_equal(connection_call(c, &r, PATIENCE_MS, &reply, &e), TF_ENOTFOUND);
	assert_string_equal(e.text, "there is no such thing");
	connection_close(c);
	server_stop(s);
}

static void absent(void **state)
{
	struct server *s = *state;
	struct err e = ERR_INIT;
	struct connection *c = connect_as(s, &s->known, s->keys.public_key);
	int64_t start = clock_mono_ms();

	assert_int_equal(ping(c, PATIENCE_MS, &e), TF_ENODAEMON);
	assert_true(clock_mono_ms() - start < SOON_MS);
	connection_close(c);
}

static void refused(void **state)
{
	struct server *s = *state;
	struct err e = ERR_INIT;
	struct key_pair other;
	struct connection *c;
	int64_t start = clock_mono_ms();

	server_start(s);
	assert_ok(key_pair_make(&other, &e), &e);
	c = connect_as(s, &other, s->keys.public_key);
	assert_int_equal(ping(c, PATIENCE_MS, &e), TF_EREFUSED);
	assert_non_null(strstr(e.text, "me.key"));
	assert_true(clock_mono_ms() - start < SOON_MS);
	connection_close(c);
	err_clear(&e);
	c = connect_as(s, &s->known, other.public_key); /* that is not who answers */
	assert_true(ping(c, PATIENCE_MS, &e) < 0);
	assert_true(clock_mono_ms() - start < 2 * SOON_MS);
	connection_close(c);
	assert_int_equal(s->seen, 0);
	server_stop(s);
}

static void silence(void **state)
{
	struct server *s = *state;
	struct err e = ERR_INIT;
	struct connection *c;

	server_start(s);
	s->mute = true;
	c = connect_as(s, &s->known, s->keys.public_key);
	assert_int_equal(ping(c, 300, &e), TF_ETIMEOUT);
	s->mute = false;
	err_clear(&e);
	assert_ok(ping(c, PATIENCE_MS, &e), &e); /* the answer given up does not disturb */
	connection_close(c);
	server_stop(s);
}

static void receive_answer(struct connection *c, uint64_t id)
{
	struct err e = ERR_INIT;
	Tf__Reply *reply;

	assert_ok(connection_receive(c, PATIENCE_MS, &reply, &e), &e);
	assert_true(reply->id == id);
	tf__reply__free_unpacked(reply, NULL);
}

static void comes_back(void **state)
{
	struct server *s = *state;
	struct err e = ERR_INIT;
	struct connection *c;
	Tf__Request r = ping_request();
	Tf__Reply *reply;
	uint64_t id;

	server_start(s);
	c = connect_as(s, &s->known, s->keys.public_key);
	assert_ok(ping(c, PATIENCE_MS, &e), &e);
	s->mute = true;
	assert_ok(connection_send(c, &r, &id, &e), &e);
	assert_int_equal(connection_receive(c, 300, &reply, NULL), TF_ETIMEOUT);
	server_stop(s);
	s->mute = false;
	server_start(s);
	receive_answer(c, id); /* sent again by itself */
	assert_true(connection_reconnects(c) >= 1);
	connection_close(c);
	server_stop(s);
}

/* A daemon that answers and leaves: a caller who looks when all is over still reads the answer. */
static void last_words(void **state)
{
	struct server *s = *state;
	struct err e = ERR_INIT;
	struct connection *c;
	Tf__Request r = ping_request();
	Tf__Reply *reply;
	uint64_t id;

	server_start(s);
	c = connect_as(s, &s->known, s->keys.public_key);
	assert_ok(ping(c, PATIENCE_MS, &e), &e);
	assert_int_equal(connection_receive(c, 0, &reply, NULL), TF_ETIMEOUT); /* nothing is left */
	assert_ok(connection_send(c, &r, &id, &e), &e);
	while (s->seen < 2)
		usleep(1000);
	server_stop(s);
	usleep(200000); /* so that the loss is noticed before the answer is read */
	receive_answer(c, id);
	connection_close(c);
}

static bool yes(void)
{
	return true;
}

static void interrupted(void **state)
{
	struct server *s = *state;
	struct connection *c = connect_as(s, &s->known, s->keys.public_key);

	connection_set_interrupt(c, yes);
	assert_int_equal(ping(c, PATIENCE_MS, NULL), TF_ECANCELLED);
	connection_close(c);
}

/* A public key is given to commands as it is. */
static void public_keys_are_no_options(void **state)
{
	struct key_pair keys;

	(void)state;
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(key_pair_make(&keys, NULL), 0);
		assert_true(keys.public_key[0] != '-');
	}
}

#define LIVE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(public_keys_are_no_options),
		LIVE(keys_in_files), LIVE(endpoints), LIVE(calls),      LIVE(absent),
		LIVE(refused),       LIVE(silence),   LIVE(comes_back), LIVE(interrupted),
		LIVE(last_words),
	};

	return cmocka_run_group_tests_name("test_connection", tests, NULL, NULL);
}
