/* SPDX-License-Identifier: Apache-2.0
 * Batches: whole or not at all, and others' submits while one is made. */
#include "tests/daemon/harness.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static struct harness h;
static struct err e;

/* A batch in the making: packed submits of noop jobs that behave as their names say. */
struct members {
	ProtobufCBinaryData packed[LIMIT_BATCH_JOBS + 1];
	size_t count;
	uint8_t first; /* byte of their tokens */
};

static void add(struct members *b, Tf__Submit *m)
{
	uint8_t token[16] = { b->first, (uint8_t)b->count, (uint8_t)(b->count >> 8) };
	ProtobufCBinaryData *p = &b->packed[b->count++];

	m->token.len = sizeof token;
	m->token.data = token;
	p->len = tf__submit__get_packed_size(m);
	p->data = xmalloc(p->len);
	tf__submit__pack(m, p->data);
}

/* after: the place of a member that comes first; -1: none. */
static void add_member(struct members *b, const char *how, int after)
{
	Tf__Submit m = TF__SUBMIT__INIT;
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	Tf__AfterMember first = TF__AFTER_MEMBER__INIT, *one = &first;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	first.member = (uint32_t)after;
	m.spec = &spec;
	m.n_after_member = after >= 0;
	m.after_member = &one;
	add(b, &m);
}

/* Makes the tokenizer "words"; its only path is the caller's. */
static void tokenizer_spec(Tf__JobSpec *spec, Tf__TokenizerSpec *tokenizer)
{
	static char *path;

	path = harness_path(&h, "lock"); /* any file */
	spec->kind = TF__JOB_KIND__TOKENIZER;
	spec->spec_case = TF__JOB_SPEC__SPEC_TOKENIZER;
	spec->tokenizer = tokenizer;
	tokenizer->tokenizer = (char *)"words";
	tokenizer->path = &path;
	tokenizer->n_path = 1;
}

static void add_maker(struct members *b)
{
	Tf__Submit m = TF__SUBMIT__INIT;
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__TokenizerSpec tokenizer = TF__TOKENIZER_SPEC__INIT;

	tokenizer_spec(&spec, &tokenizer);
	m.spec = &spec;
	add(b, &m);
	xfree(*tokenizer.path);
}

static void members_release(struct members *b)
{
	for (size_t i = 0; i < b->count; i++)
		xfree(b->packed[i].data);
	b->count = 0;
}

static int send_batch(struct members *b, bool dry_run, Tf__Reply **reply)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SubmitBatch m = TF__SUBMIT_BATCH__INIT;
	int rc;

	err_clear(&e);
	m.n_submit = b->count;
	m.submit = b->packed;
	m.has_dry_run = m.dry_run = dry_run;
	r.body_case = TF__REQUEST__BODY_SUBMIT_BATCH;
	r.submit_batch = &m;
	rc = harness_call(h.line, &r, reply, &e);
	if (rc == 0)
		assert_int_equal((*reply)->body_case, TF__REPLY__BODY_SUBMITTED_BATCH);
	return rc;
}

static void a_batch_is_submitted_once(void **state)
{
	struct members b = { .first = 1 };
	Tf__Reply *reply = NULL, *again = NULL;
	uint64_t last;

	(void)state;
	add_member(&b, "wait", -1);
	add_member(&b, "done", -1);
	add_member(&b, "done", 1);
	assert_ok(send_batch(&b, true, &reply), &e); /* a dry run: nothing comes of it */
	assert_int_equal(reply->submitted_batch->n_job, 0);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(send_batch(&b, false, &reply), &e);
	assert_false(reply->submitted_batch->already);
	assert_int_equal(reply->submitted_batch->n_job, 3);
	assert_int_equal(reply->submitted_batch->job[0], 1);
	last = reply->submitted_batch->job[2];
	assert_int_equal(last, 3);
	assert_int_equal(harness_state(&h, last), TF__JOB_STATE__WAITING);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	assert_ok(send_batch(&b, false, &again), &e);
	assert_true(again->submitted_batch->already);
	assert_int_equal(again->submitted_batch->n_job, 3);
	assert_int_equal(again->submitted_batch->job[2], last);
	harness_cancel(h.line, 1, NULL);
	harness_until(&h, last, TF__JOB_STATE__DONE);
	tf__reply__free_unpacked(reply, NULL);
	tf__reply__free_unpacked(again, NULL);
	members_release(&b);
}

static void a_batch_with_one_wrong_job_leaves_nothing(void **state)
{
	struct members b = { .first = 2 };
	Tf__Reply *reply = NULL;

	(void)state;
	add_member(&b, "wait", -1);
	add_member(&b, "done", -1);
	add_member(&b, "a/b", -1); /* no name */
	assert_int_equal(send_batch(&b, false, &reply), TF_EINVALID);
	assert_non_null(strstr(e.text, "job 3 of 3"));
	members_release(&b);
	add_member(&b, "done", -1);
	add_member(&b, "done", 1); /* itself */
	assert_int_equal(send_batch(&b, false, &reply), TF_EINVALID);
	assert_non_null(strstr(e.text, "after_member is 1"));
	members_release(&b);
	add_member(&b, "done", 0); /* itself, and there is none before it */
	assert_int_equal(send_batch(&b, false, &reply), TF_EINVALID);
	assert_non_null(strstr(e.text, "after_member is 0, but no job comes before this one"));
	members_release(&b);
	/* the numbers were not used up, nothing is left in the queue's memory */
	assert_int_equal(harness_noop(&h, "done"), 1);
	harness_until(&h, 1, TF__JOB_STATE__DONE);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	assert_int_equal(harness_noop(&h, "done"), 2);
	harness_until(&h, 2, TF__JOB_STATE__DONE);
}

static void tokens_are_known_all_or_none(void **state)
{
	struct members b = { .first = 3 };
	Tf__Reply *reply = NULL;

	(void)state;
	add_member(&b, "wait", -1);
	assert_ok(send_batch(&b, false, &reply), &e);
	tf__reply__free_unpacked(reply, NULL);
	add_member(&b, "done", -1);
	assert_int_equal(send_batch(&b, false, &reply), TF_EINVALID);
	assert_non_null(strstr(e.text, "1 of the 2 tokens"));
	members_release(&b);
	assert_int_equal(harness_noop(&h, "done"), 2);
}

static void a_batch_has_a_limit(void **state)
{
	struct members b = { .first = 4 };
	Tf__Reply *reply = NULL;

	(void)state;
	assert_int_equal(send_batch(&b, false, &reply), TF_ELIMIT);
	add_member(&b, "wait", -1);
	while (b.count < LIMIT_BATCH_JOBS)
		add_member(&b, "done", -1);
	assert_ok(send_batch(&b, false, &reply), &e);
	assert_int_equal(reply->submitted_batch->n_job, LIMIT_BATCH_JOBS);
	tf__reply__free_unpacked(reply, NULL);
	b.first = 5;
	add_member(&b, "done", -1);
	assert_int_equal(send_batch(&b, false, &reply), TF_ELIMIT);
	members_release(&b);
}

/* ---------------------------------------------------------------- others meanwhile */

#define POLITE 4

static uint64_t seq_of(uint64_t id)
{
	Tf__Reply *shown = harness_show(&h, id);
	uint64_t seq = shown->jobs->job[0]->seq;

	tf__reply__free_unpacked(shown, NULL);
	return seq;
}

static bool is_there(uint64_t id)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRef m = TF__JOB_REF__INIT;
	Tf__Reply *reply = NULL;
	int rc;

	m.job = id;
	r.body_case = TF__REQUEST__BODY_JOB_SHOW;
	r.job_show = &m;
	rc = harness_call(h.line, &r, &reply, NULL);
	if (reply)
		tf__reply__free_unpacked(reply, NULL);
	assert_true(rc == 0 || rc == TF_ENOTFOUND);
	return rc == 0;
}

static void send_members(void *socket, struct members *b, uint64_t id)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SubmitBatch m = TF__SUBMIT_BATCH__INIT;

	m.n_submit = b->count;
	m.submit = b->packed;
	r.version = TF_PROTOCOL_VERSION;
	r.id = id;
	r.body_case = TF__REQUEST__BODY_SUBMIT_BATCH;
	r.submit_batch = &m;
	harness_send(socket, &r);
}

static void send_submit(void *socket, uint64_t id, Tf__JobSpec *spec)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Submit m = TF__SUBMIT__INIT;
	uint8_t token[16] = { 99, (uint8_t)id };

	m.token = (ProtobufCBinaryData){ sizeof token, token };
	m.spec = spec;
	r.version = TF_PROTOCOL_VERSION;
	r.id = id;
	r.body_case = TF__REQUEST__BODY_SUBMIT;
	r.submit = &m;
	harness_send(socket, &r);
}

static void send_after(void *socket, uint64_t id, uint64_t job)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	spec.after = &job;
	spec.n_after = 1;
	send_submit(socket, id, &spec);
}

static void send_tokenizer(void *socket, uint64_t id)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__TokenizerSpec tokenizer = TF__TOKENIZER_SPEC__INIT;

	tokenizer_spec(&spec, &tokenizer);
	send_submit(socket, id, &spec);
	xfree(*tokenizer.path);
}

/* Those that a batch lets in, as requests 2 to POLITE + 1. */
static void send_polite(void *socket, uint64_t before)
{
	harness_send_noops(socket, "done", 2, 1);
	send_after(socket, 3, before);
	send_tokenizer(socket, 4);
	harness_send_noops(socket, "done", POLITE + 1, 1);
}

/* One that waits for a job of the batch: the jobs before it are two or three. */
static void send_waiting(void *socket, uint64_t before)
{
	(void)before;
	harness_send_noops(socket, "done", 2, 1);
	send_after(socket, 3, 13);
}

/* And one that makes what a job of the batch makes. */
static void send_rival(void *socket, uint64_t before)
{
	(void)before;
	harness_send_noops(socket, "done", 2, 1);
	send_tokenizer(socket, 3);
}

/* The daemon stands still while one user sends a batch and another a few submits, of which it
 * handles at most one before the batch. Returns the batch's answer, and those to the others. */
static Tf__Reply *batch_and_others(struct members *b, void (*send)(void *socket, uint64_t before),
				   Tf__Reply **other, size_t others)
{
	void *context = zmq_ctx_new(), *one, *polite = harness_socket(&h, context, NULL);
	struct key_pair flo;
	Tf__Reply *reply;
	uint64_t before;

	harness_enrol(&h, "flo", "member", &flo);
	assert_ok(harness_drain(h.line, false, false, &e), &e);
	one = harness_socket(&h, context, &flo);
	harness_send_noops(one, "done", 1, 1); /* they are connected then */
	harness_send_noops(polite, "done", 1, 1);
	harness_receive_job(one);
	before = harness_receive_job(polite);
	kill(h.pid, SIGSTOP);
	send_members(one, b, 2);
	send(polite, before);
	clock_sleep_ms(100);
	kill(h.pid, SIGCONT);
	for (size_t i = 0; i < others; i++) {
		other[i] = harness_receive(polite, LIMIT_WAIT_MS);
		assert_non_null(other[i]);
	}
	reply = harness_receive(one, LIMIT_WAIT_MS);
	assert_non_null(reply);
	zmq_close(one);
	zmq_close(polite);
	zmq_ctx_term(context);
	return reply;
}

static Tf__Reply *batch_and_polite(struct members *b, uint64_t job[POLITE])
{
	Tf__Reply *other[POLITE];
	Tf__Reply *reply = batch_and_others(b, send_polite, other, POLITE);

	for (int i = 0; i < POLITE; i++) {
		assert_int_equal(other[i]->body_case, TF__REPLY__BODY_SUBMITTED);
		job[i] = other[i]->submitted->job;
		tf__reply__free_unpacked(other[i], NULL);
	}
	return reply;
}

/* The order of changes tells that they were made while the batch was. */
static void a_batch_lets_others_in(void **state)
{
	struct members b = { .first = 6 };
	uint64_t other[POLITE], first, last;
	Tf__Reply *reply;

	(void)state;
	while (b.count < LIMIT_BATCH_JOBS)
		add_member(&b, "done", -1);
	reply = batch_and_polite(&b, other);
	assert_int_equal(reply->code, 0);
	first = reply->submitted_batch->job[0];
	last = reply->submitted_batch->job[LIMIT_BATCH_JOBS - 1];
	assert_int_equal(last - first, LIMIT_BATCH_JOBS - 1);
	assert_true(other[POLITE - 1] > last);
	assert_true(seq_of(other[POLITE - 1]) < seq_of(last));
	assert_true(seq_of(other[POLITE - 1]) > seq_of(first));
	tf__reply__free_unpacked(reply, NULL);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	assert_true(is_there(first) && is_there(last) && is_there(other[POLITE - 1]));
	assert_true(harness_noop(&h, "done") > other[POLITE - 1]);
	members_release(&b);
}

/* What was let in stays when the batch's last job is refused; nothing stays of the batch. */
static void a_refused_batch_leaves_others(void **state)
{
	struct members b = { .first = 7 };
	uint64_t other[POLITE], id;
	Tf__Reply *reply;

	(void)state;
	while (b.count < LIMIT_BATCH_JOBS - 1)
		add_member(&b, "done", -1);
	add_member(&b, "a/b", -1); /* no name */
	reply = batch_and_polite(&b, other);
	assert_int_equal(reply->code, TF_EINVALID);
	assert_non_null(strstr(reply->text, "job 1000 of 1000"));
	tf__reply__free_unpacked(reply, NULL);
	for (int again = 0; again < 2; again++) {
		for (int i = 0; i < POLITE; i++)
			assert_true(is_there(other[i]));
		for (id = other[0] + 1; id < other[POLITE - 1]; id++)
			assert_int_equal(is_there(id), id == other[1] || id == other[2]);
		harness_kill(&h, SIGKILL);
		harness_start(&h);
	}
	assert_int_equal(harness_noop(&h, "done"), other[POLITE - 1] + 1);
	members_release(&b);
}

/* A batch that makes something, and is refused for its last job, beside another submit: the answer
 * to that, the caller's. */
static Tf__Reply *beside_a_refused(uint8_t first, void (*send)(void *socket, uint64_t before))
{
	struct members b = { .first = first };
	Tf__Reply *reply, *other[2];

	add_maker(&b);
	while (b.count < LIMIT_BATCH_JOBS - 1)
		add_member(&b, "done", -1);
	add_member(&b, "a/b", -1); /* no name */
	reply = batch_and_others(&b, send, other, 2);
	assert_int_equal(reply->code, TF_EINVALID);
	assert_int_equal(other[0]->body_case, TF__REPLY__BODY_SUBMITTED);
	tf__reply__free_unpacked(reply, NULL);
	tf__reply__free_unpacked(other[0], NULL);
	members_release(&b);
	return other[1];
}

static void who_waits_for_a_batch_is_not_let_in(void **state)
{
	Tf__Reply *reply = beside_a_refused(8, send_waiting);

	(void)state;
	assert_int_equal(reply->code, TF_ENOTFOUND);
	tf__reply__free_unpacked(reply, NULL);
}

static void who_makes_the_same_is_not_let_in(void **state)
{
	Tf__Reply *reply = beside_a_refused(9, send_rival);

	(void)state;
	assert_int_equal(reply->body_case, TF__REPLY__BODY_SUBMITTED);
	tf__reply__free_unpacked(reply, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(a_batch_is_submitted_once, harness_started),
		WITH_HARNESS(a_batch_with_one_wrong_job_leaves_nothing, harness_started),
		WITH_HARNESS(tokens_are_known_all_or_none, harness_started),
		WITH_HARNESS(a_batch_has_a_limit, harness_started),
		WITH_HARNESS(a_batch_lets_others_in, harness_rooted),
		WITH_HARNESS(a_refused_batch_leaves_others, harness_rooted),
		WITH_HARNESS(who_waits_for_a_batch_is_not_let_in, harness_rooted),
		WITH_HARNESS(who_makes_the_same_is_not_let_in, harness_rooted),
	};

	return cmocka_run_group_tests_name("batches", tests, NULL, NULL);
}
