/* SPDX-License-Identifier: Apache-2.0
 * The small daemon of the tests; see fake_daemon.h. */
#include "tests/worker/fake_daemon.h"
#include "proto/limits.h"
#include "tests/test.h"

#include <string.h>
#include <zmq.h>

static void reply(struct fake *f, zmq_msg_t *route, Tf__Reply *r)
{
	uint8_t data[4096];
	size_t len = tf__reply__get_packed_size(r);

	assert_true(len <= sizeof data);
	tf__reply__pack(r, data);
	zmq_send(f->socket, zmq_msg_data(route), zmq_msg_size(route), ZMQ_SNDMORE);
	zmq_send(f->socket, data, len, 0);
}

static void count(struct fake *f, const Tf__Request *q)
{
	switch (q->body_case) {
	case TF__REQUEST__BODY_WORKER_HELLO:
		if (f->nexts == 0 && !f->next_with_done) {
			assert_int_equal(q->worker_hello->job, JOB);
			assert_int_equal(q->worker_hello->attempt, ATTEMPT);
		}
		f->hellos++;
		break;
	case TF__REQUEST__BODY_WORKER_REPORT:
		f->progress = (long long)q->worker_report->progress->done;
		f->reports++;
		break;
	case TF__REQUEST__BODY_WORKER_DONE:
		f->last_done_code = q->worker_done->outcome->code;
		f->dones++;
		break;
	case TF__REQUEST__BODY_WORKER_NEXT: f->nexts++; break;
	default: fail_msg("request %d", (int)q->body_case);
	}
}

static void answer(struct fake *f, zmq_msg_t *route, const Tf__Request *q)
{
	Tf__Reply r = TF__REPLY__INIT;
	Tf__Empty ok = TF__EMPTY__INIT;

	r.version = TF_PROTOCOL_VERSION;
	r.id = q->id;
	r.has_code = true;
	r.code = q->body_case == TF__REQUEST__BODY_WORKER_NEXT && f->next_answer ? f->next_answer
										 : f->answer;
	r.text = r.code ? "as the test wants" : NULL;
	if (r.code == 0 && q->body_case == TF__REQUEST__BODY_WORKER_HELLO) {
		r.body_case = TF__REPLY__BODY_ASSIGNMENT;
		r.assignment = (Tf__Assignment *)f->assignment;
	} else if (r.code == 0) {
		r.body_case = TF__REPLY__BODY_OK;
		r.ok = &ok;
	}
	reply(f, route, &r);
}

/* Another job for the worker that asked, as the daemon gives it: unasked, id 0. */
static void push(struct fake *f, zmq_msg_t *route, const Tf__Request *q)
{
	Tf__Reply r = TF__REPLY__INIT;
	bool stays = q->body_case == TF__REQUEST__BODY_WORKER_DONE && q->worker_done->stay;

	if ((q->body_case != TF__REQUEST__BODY_WORKER_NEXT && !(stays && f->next_with_done)) ||
	    !f->next || f->answer)
		return;
	r.version = TF_PROTOCOL_VERSION;
	r.body_case = TF__REPLY__BODY_ASSIGNMENT;
	r.assignment = (Tf__Assignment *)f->next;
	f->next = NULL;
	reply(f, route, &r);
}

static void order(struct fake *f, zmq_msg_t *route)
{
	Tf__Reply r = TF__REPLY__INIT;
	Tf__Order o = TF__ORDER__INIT;

	if (!f->order)
		return;
	o.job = JOB;
	o.stop = (Tf__StopReason)(int)f->order;
	f->order = 0;
	r.version = TF_PROTOCOL_VERSION;
	r.body_case = TF__REPLY__BODY_ORDER;
	r.order = &o;
	reply(f, route, &r);
}

static void *serve(void *arg)
{
	struct fake *f = arg;

	while (!f->closing) {
		zmq_pollitem_t item = { f->socket, 0, ZMQ_POLLIN, 0 };
		zmq_msg_t route, body;
		Tf__Request *q;

		if (zmq_poll(&item, 1, 20) <= 0)
			continue;
		zmq_msg_init(&route);
		zmq_msg_init(&body);
		zmq_msg_recv(&route, f->socket, 0);
		zmq_msg_recv(&body, f->socket, 0);
		q = tf__request__unpack(NULL, zmq_msg_size(&body), zmq_msg_data(&body));
		assert_non_null(q);
		count(f, q);
		if (f->silent > 0) {
			f->silent--;
		} else {
			answer(f, &route, q);
			push(f, &route, q);
			order(f, &route);
		}
		tf__request__free_unpacked(q, NULL);
		zmq_msg_close(&route);
		zmq_msg_close(&body);
	}
	return NULL;
}

void fake_start(struct fake *f)
{
	int yes = 1, zero = 0;

	memset((char *)f + offsetof(struct fake, thread), 0,
	       sizeof *f - offsetof(struct fake, thread));
	f->context = zmq_ctx_new();
	f->socket = zmq_socket(f->context, ZMQ_ROUTER);
	zmq_setsockopt(f->socket, ZMQ_LINGER, &zero, sizeof zero);
	zmq_setsockopt(f->socket, ZMQ_CURVE_SERVER, &yes, sizeof yes);
	zmq_setsockopt(f->socket, ZMQ_CURVE_SECRETKEY, f->secret_key, 41);
	assert_int_equal(zmq_bind(f->socket, f->endpoint), 0);
	assert_int_equal(pthread_create(&f->thread, NULL, serve, f), 0);
}

void fake_stop(struct fake *f)
{
	f->closing = true;
	pthread_join(f->thread, NULL);
	zmq_close(f->socket);
	zmq_ctx_term(f->context);
}
