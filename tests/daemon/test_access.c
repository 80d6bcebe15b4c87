/* SPDX-License-Identifier: Apache-2.0
 * Who may do what, and what a message may be: roles, unknown keys, versions, limits, files. */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <xxhash.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct harness h;
static struct key_pair reader, member, stranger;
static char user_reader[100], user_member[100];
static struct err e;

static int start(void **state)
{
	harness_prepared(state);
	if (key_pair_make(&reader, &e) < 0 || key_pair_make(&member, &e) < 0 ||
	    key_pair_make(&stranger, &e) < 0)
		return -1;
	snprintf(user_reader, sizeof user_reader, "ann reader %s", reader.public_key);
	snprintf(user_member, sizeof user_member, "bob member %s", member.public_key);
	h.extra[0] = "--user";
	h.extra[1] = user_reader;
	h.extra[2] = "--user";
	h.extra[3] = user_member;
	harness_start(&h);
	return 0;
}

static int simple(struct connection *c, int body, Tf__Reply **reply)
{
	Tf__Request r = harness_empty((Tf__Request__BodyCase)body);

	err_clear(&e);
	return harness_call(c, &r, reply, &e);
}

static void a_reader_may_look_only(void **state)
{
	struct connection *c = harness_line(&h, &reader);
	Tf__Reply *reply = NULL;

	(void)state;
	assert_ok(simple(c, TF__REQUEST__BODY_PING, NULL), &e);
	assert_ok(simple(c, TF__REQUEST__BODY_STATUS, &reply), &e);
	assert_string_equal(reply->status->user, "ann");
	assert_string_equal(reply->status->role, "reader");
	tf__reply__free_unpacked(reply, NULL);
	assert_int_equal(harness_submit_noop(c, "done", NULL, NULL, &e), TF_EREFUSED);
	assert_non_null(strstr(e.text, "ann is a reader"));
	connection_close(c);
}

static void a_member_changes_their_own(void **state)
{
	struct connection *c = harness_line(&h, &member);
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Drain m = TF__DRAIN__INIT;
	uint64_t theirs = harness_noop(&h, "wait"), own = 0;

	(void)state;
	assert_ok(harness_submit_noop(c, "wait", NULL, &own, &e), &e);
	assert_int_equal(harness_cancel(c, theirs, &e), TF_EREFUSED);
	err_clear(&e);
	assert_ok(harness_cancel(c, own, &e), &e);
	r.body_case = TF__REQUEST__BODY_DRAIN;
	r.drain = &m;
	assert_int_equal(harness_call(c, &r, NULL, &e), TF_EREFUSED);
	connection_close(c);
}

static void a_key_nobody_knows_is_refused(void **state)
{
	struct connection *c = harness_line(&h, &stranger);

	(void)state;
	assert_int_equal(simple(c, TF__REQUEST__BODY_PING, NULL), TF_EREFUSED);
	connection_close(c);
}

static void a_client_is_no_worker(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__WorkerHello m = TF__WORKER_HELLO__INIT;

	(void)state;
	m.job = 1;
	m.attempt = 1;
	m.pid = 1;
	r.body_case = TF__REQUEST__BODY_WORKER_HELLO;
	r.worker_hello = &m;
	err_clear(&e);
	assert_int_equal(harness_call(h.line, &r, NULL, &e), TF_EREFUSED);
}

/* ---------------------------------------------------------------- raw messages */

static void send_raw(void *socket, const void *data, size_t len, int parts)
{
	for (int i = 1; i <= parts; i++)
		for (int tries = 0; tries < 3000; tries++) {
			if (zmq_send(socket, data, len,
				     ZMQ_DONTWAIT | (i < parts ? ZMQ_SNDMORE : 0)) >= 0)
				break;
			clock_sleep_ms(1);
		}
}

static void another_version_is_told_so(void **state)
{
	void *context = zmq_ctx_new(), *socket = harness_socket(&h, context, &member);
	Tf__Request r = harness_empty(TF__REQUEST__BODY_PING);
	uint8_t data[64];
	Tf__Reply *reply;

	(void)state;
	r.version = TF_PROTOCOL_VERSION + 1;
	r.id = 77;
	send_raw(socket, data, tf__request__pack(&r, data), 1);
	reply = harness_receive(socket, LIMIT_WAIT_MS);
	assert_non_null(reply);
	assert_int_equal(reply->code, TF_EVERSION);
	assert_int_equal(reply->id, 77);
	tf__reply__free_unpacked(reply, NULL);
	zmq_close(socket);
	zmq_ctx_term(context);
}

static void bad_messages_harm_nobody(void **state)
{
	void *context = zmq_ctx_new(), *socket = harness_socket(&h, context, &member);
	uint8_t *big = xcalloc(1, LIMIT_MESSAGE_BYTES + 1000);

	(void)state;
	send_raw(socket, "rubbish", 7, 1);
	send_raw(socket, "", 0, 1);
	send_raw(socket, "part", 4, 9);
	send_raw(socket, big, LIMIT_MESSAGE_BYTES + 1000, 1);
	clock_sleep_ms(100);
	assert_ok(simple(h.line, TF__REQUEST__BODY_PING, NULL), &e);
	assert_null(harness_receive(socket, 0));
	xfree(big);
	zmq_close(socket);
	zmq_ctx_term(context);
}

/* ---------------------------------------------------------------- files */

static int read_file(uint64_t job, const char *path, uint32_t length, Tf__Reply **reply)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__FileRead m = TF__FILE_READ__INIT;
	Tf__FileOf of = TF__FILE_OF__INIT;

	of.of_case = TF__FILE_OF__OF_JOB;
	of.job = job;
	m.of = &of;
	m.path = (char *)path;
	m.length = length;
	r.body_case = TF__REQUEST__BODY_FILE_READ;
	r.file_read = &m;
	err_clear(&e);
	return harness_call(h.line, &r, reply, &e);
}

static void only_results_are_read_out(void **state)
{
	uint64_t id = harness_noop(&h, "done");
	Tf__Reply *reply = NULL;
	char *results = harness_path(&h, "jobs/%llu/results", (unsigned long long)id), *path;

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__DONE);
	dir_make(results, 0700, NULL);
	path = xasprintf("%s/good", results);
	assert_ok(file_write(path, "1234567890", 10, 0600, &e), &e);
	xfree(path);
	path = xasprintf("%s/link", results);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	xfree(path);
	path = xasprintf("%s/folder", results);
	assert_int_equal(symlink("/etc", path), 0);
	xfree(path);
	path = xasprintf("%s/pipe", results);
	assert_int_equal(mkfifo(path, 0600), 0);
	xfree(path);
	assert_ok(read_file(id, "results/good", 4, &reply), &e);
	assert_memory_equal(reply->file->data.data, "1234", 4);
	assert_int_equal(reply->file->size, 10);
	assert_false(reply->file->end);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(read_file(id, "log", 100, NULL), &e);
	assert_int_equal(read_file(id, "results/link", 10, NULL), TF_EREFUSED);
	assert_int_equal(read_file(id, "results/folder/passwd", 10, NULL), TF_EREFUSED);
	assert_int_equal(read_file(id, "results/pipe", 10, NULL), TF_EREFUSED);
	assert_int_equal(read_file(id, "results/../outcome-1.pb", 10, NULL), TF_EREFUSED);
	assert_int_equal(read_file(id, "/etc/passwd", 10, NULL), TF_EREFUSED);
	assert_int_equal(read_file(id, "outcome-1.pb", 10, NULL), TF_EREFUSED);
	assert_int_equal(read_file(id, "results/none", 10, NULL), TF_ENOTFOUND);
	assert_int_equal(read_file(id, "results/good", LIMIT_CHUNK_BYTES + 1, NULL), TF_ELIMIT);
	xfree(results);
}

/* ---------------------------------------------------------------- uploads */

static const uint8_t upload_name[16] = "an upload token.";

static int upload_open(struct connection *c, const char *name, uint64_t size, Tf__Reply **reply)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadOpen m = TF__UPLOAD_OPEN__INIT;

	m.token.data = (uint8_t *)upload_name;
	m.token.len = 16;
	m.name = (char *)name;
	m.size = size;
	r.body_case = TF__REQUEST__BODY_UPLOAD_OPEN;
	r.upload_open = &m;
	err_clear(&e);
	return harness_call(c, &r, reply, &e);
}

static int upload_chunk(struct connection *c, const char *id, uint64_t offset, const char *text)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadChunk m = TF__UPLOAD_CHUNK__INIT;

	m.upload = (char *)id;
	m.offset = offset;
	m.data.data = (uint8_t *)text;
	m.data.len = strlen(text);
	r.body_case = TF__REQUEST__BODY_UPLOAD_CHUNK;
	r.upload_chunk = &m;
	err_clear(&e);
	return harness_call(c, &r, NULL, &e);
}

static int upload_close(struct connection *c, const char *id, uint64_t hash)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadClose m = TF__UPLOAD_CLOSE__INIT;

	m.upload = (char *)id;
	m.xxh64 = hash;
	r.body_case = TF__REQUEST__BODY_UPLOAD_CLOSE;
	r.upload_close = &m;
	err_clear(&e);
	return harness_call(c, &r, NULL, &e);
}

static void an_upload_goes_on_where_it_stopped(void **state)
{
	struct connection *other = harness_line(&h, &member);
	Tf__Reply *reply = NULL;
	char *id;

	(void)state;
	assert_ok(upload_open(h.line, "a.tar", 10, &reply), &e);
	id = xstrdup(reply->upload->upload);
	assert_int_equal(reply->upload->have, 0);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(upload_chunk(h.line, id, 0, "12345"), &e);
	assert_int_equal(upload_chunk(h.line, id, 7, "x"), TF_EINVALID);
	assert_int_equal(upload_chunk(h.line, id, 5, "6789012"), TF_ELIMIT);
	assert_int_equal(upload_chunk(other, id, 5, "6"), TF_EREFUSED);
	connection_close(other);
	assert_int_equal(upload_close(h.line, id, 0), TF_ESTATE);
	harness_kill(&h, 9);
	harness_start(&h);
	assert_int_equal(upload_open(h.line, "b.tar", 10, NULL), TF_EMISMATCH);
	assert_ok(upload_open(h.line, "a.tar", 10, &reply), &e);
	assert_int_equal(reply->upload->have, 5);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(upload_chunk(h.line, id, 5, "67890"), &e);
	assert_int_equal(upload_close(h.line, id, 1), TF_ECORRUPT); /* from the beginning then */
	assert_ok(upload_chunk(h.line, id, 0, "1234567890"), &e);
	assert_ok(upload_close(h.line, id, XXH64("1234567890", 10, 0)), &e);
	assert_ok(upload_close(h.line, id, XXH64("1234567890", 10, 0)), &e);
	assert_int_equal(upload_chunk(h.line, id, 0, "1"), TF_ESTATE);
	assert_int_equal(upload_chunk(h.line, "../../keys", 0, "1"), TF_ENOTFOUND);
	xfree(id);
}

static void upload_names_stay_in_their_folder(void **state)
{
	(void)state;
	assert_int_equal(upload_open(h.line, "../x", 1, NULL), TF_EINVALID);
	assert_int_equal(upload_open(h.line, "a/b", 1, NULL), TF_EINVALID);
	assert_int_equal(upload_open(h.line, "a", LIMIT_UPLOAD_BYTES + 1, NULL), TF_ELIMIT);
}

static int wait_job(uint64_t job, uint64_t since, uint32_t ms, Tf__Reply **reply)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobWait m = TF__JOB_WAIT__INIT;

	m.job = job;
	m.has_since = m.has_timeout_ms = true;
	m.since = since;
	m.timeout_ms = ms;
	r.body_case = TF__REQUEST__BODY_JOB_WAIT;
	r.job_wait = &m;
	err_clear(&e);
	return harness_call(h.line, &r, reply, &e);
}

static void a_wait_ends_with_change_or_time(void **state)
{
	uint64_t id = harness_noop(&h, "wait"), since;
	Tf__Reply *reply = NULL;
	int64_t start_ms;

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	assert_ok(wait_job(id, 0, LIMIT_WAIT_MS, &reply), &e);
	since = reply->jobs->job[0]->seq;
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(wait_job(id, since, LIMIT_WAIT_MS, &reply), &e); /* its progress */
	assert_true(reply->jobs->job[0]->seq > since);
	assert_string_equal(reply->jobs->job[0]->progress->phase, "trying");
	tf__reply__free_unpacked(reply, NULL);
	start_ms = clock_mono_ms();
	assert_ok(wait_job(id, UINT64_MAX, 300, &reply), &e);
	assert_true(clock_mono_ms() - start_ms >= 300);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(harness_cancel(h.line, id, &e), &e);
	assert_ok(wait_job(id, UINT64_MAX, LIMIT_WAIT_MS, &reply), &e);
	assert_int_equal(reply->jobs->job[0]->state, TF__JOB_STATE__CANCELLED);
	tf__reply__free_unpacked(reply, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(a_reader_may_look_only, start),
		WITH_HARNESS(a_member_changes_their_own, start),
		WITH_HARNESS(a_key_nobody_knows_is_refused, start),
		WITH_HARNESS(a_client_is_no_worker, start),
		WITH_HARNESS(another_version_is_told_so, start),
		WITH_HARNESS(bad_messages_harm_nobody, start),
		WITH_HARNESS(only_results_are_read_out, start),
		WITH_HARNESS(an_upload_goes_on_where_it_stopped, start),
		WITH_HARNESS(upload_names_stay_in_their_folder, start),
		WITH_HARNESS(a_wait_ends_with_change_or_time, start),
	};

	return cmocka_run_group_tests_name("access", tests, NULL, NULL);
}
