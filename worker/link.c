/* SPDX-License-Identifier: Apache-2.0
 * The line to the daemon; see link.h. One request is open at a time. The thread alone touches the
 * socket; the fields under `lock` are how the main thread and it meet. An answer that does not
 * come in time means that the daemon is away: the socket is made anew and hello is said until one
 * answers. Between two jobs (link_next) a daemon that is away ends the wait: nothing is lost then,
 * and no later daemon knows of this process. */
#include "config.h"
#include "worker/link.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/wire.h"
#include "worker/memory.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_MS 5000     /* an answer that takes longer does not come */
#define KEEPALIVE_MS 5000  /* silence after which the daemon is asked whether it is there */
#define PAUSE_MS_FIRST 200 /* between hellos while nobody answers, doubling */
#define PAUSE_MS_MOST 5000
#define TURN_MS 100 /* the thread looks around at least so often */
#define ROOM_UNSAID UINT32_MAX

struct message {
	struct buf bytes; /* a packed Request; empty: none */
	uint64_t id;
};

struct link {
	char *endpoint;
	char server_key[KEY_CHARS + 1];
	struct key_pair keys;
	uint64_t job;
	uint32_t attempt;
	void (*fenced)(const char *);

	pthread_t thread;
	int wake_fd;     /* eventfd: something is to be sent, or the thread should end */
	atomic_int stop; /* Tf__StopReason; of this job */
	atomic_bool leaving; /* SIGTERM came */
	atomic_bool is_fenced;
	_Atomic uint32_t room; /* for further jobs; ROOM_UNSAID: not for them */
	_Atomic int64_t peak_rss_anon;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	Tf__Reply *assigned; /* what the job is of; stays until the next job or link_close */
	Tf__Reply *following; /* the next one's, that came before link_next */
	struct message progress;
	bool progress_is_new;
	struct message done;
	bool acknowledged;
	bool stay;      /* the daemon knows that another job is welcome */
	struct message next;
	bool next_is_new;
	struct {
		uint64_t job;
		uint32_t attempt;
	} join[LIMIT_JOINED]; /* not taken in yet */
	size_t joins;
	bool idle;      /* link_next waits; ended by an Assignment */
	bool dismissed; /* none will come */
	bool closing;
	char trouble[ERR_TEXT_MAX]; /* what the daemon last answered instead of an assignment */
	uint64_t last_id;

	/* of the thread alone */
	void *context, *socket;
	struct message hello;
	bool known;       /* this daemon has answered our hello */
	uint64_t open_id; /* the request whose answer is awaited; 0: none */
	enum { OPEN_HELLO, OPEN_REPORT, OPEN_DONE, OPEN_NEXT } open_kind;
	int64_t sent_ms, heard_ms, next_hello_ms, pause_ms, watched_ms;
};

/* ---- messages */

static uint64_t pack_request(struct link *l, Tf__Request *r, struct message *m)
{
	size_t len;

	r->version = TF_PROTOCOL_VERSION;
	r->id = ++l->last_id;
	len = tf__request__get_packed_size(r);
	buf_clear(&m->bytes);
	buf_reserve(&m->bytes, len);
	tf__request__pack(r, (uint8_t *)m->bytes.data);
	m->bytes.len = len;
	m->id = r->id;
	return r->id;
}

static void pack_hello(struct link *l)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__WorkerHello hello = TF__WORKER_HELLO__INIT;

	hello.job = l->job;
	hello.attempt = l->attempt;
	hello.pid = (uint32_t)getpid();
	r.body_case = TF__REQUEST__BODY_WORKER_HELLO;
	r.worker_hello = &hello;
	pack_request(l, &r, &l->hello);
}

static void pack_next(struct link *l)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__WorkerNext next = TF__WORKER_NEXT__INIT;

	next.job = l->job;
	next.attempt = l->attempt;
	next.pid = (uint32_t)getpid();
	r.body_case = TF__REQUEST__BODY_WORKER_NEXT;
	r.worker_next = &next;
	pack_request(l, &r, &l->next);
	l->next_is_new = true;
}

static void wake(struct link *l)
{
	uint64_t one = 1;

	if (write(l->wake_fd, &one, sizeof one) < 0 && errno != EAGAIN)
		log_warn("cannot wake the link: %s", strerror(errno));
}

void link_progress(struct link *l, const Tf__Progress *progress)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__WorkerReport report = TF__WORKER_REPORT__INIT;

	report.job = l->job;
	report.attempt = l->attempt;
	report.progress = (Tf__Progress *)progress;
	report.room = atomic_load(&l->room);
	report.has_room = report.room != ROOM_UNSAID;
	r.body_case = TF__REQUEST__BODY_WORKER_REPORT;
	r.worker_report = &report;
	pthread_mutex_lock(&l->lock);
	pack_request(l, &r, &l->progress);
	l->progress_is_new = true;
	pthread_mutex_unlock(&l->lock);
	wake(l);
}

/* ---- the socket */

static int open_socket(struct link *l, struct err *e)
{
	return wire_dealer(l->context, l->endpoint, l->server_key, &l->keys, &l->socket, NULL, e);
}

/* Ends a wait for another job; false when there is none. */
static bool dismiss(struct link *l, const char *why)
{
	bool idle;

	pthread_mutex_lock(&l->lock);
	idle = l->idle;
	if (idle && !l->dismissed) {
		l->dismissed = true;
		snprintf(l->trouble, sizeof l->trouble, "%s", why);
		pthread_cond_broadcast(&l->changed);
	}
	pthread_mutex_unlock(&l->lock);
	return idle;
}

/* Nobody answers: a new socket, and hello after a pause. */
static void lose(struct link *l, int64_t now)
{
	if (l->known && !dismiss(l, "the daemon does not answer"))
		log_line(LOG_WARN, l->job, "the daemon does not answer; the job goes on");
	l->known = false;
	l->open_id = 0;
	l->next_hello_ms = now + l->pause_ms;
	l->pause_ms = 2 * l->pause_ms < PAUSE_MS_MOST ? 2 * l->pause_ms : PAUSE_MS_MOST;
	zmq_close(l->socket);
	l->socket = NULL;
}

static void send_message(struct link *l, const struct message *m, int kind, int64_t now)
{
	if (wire_send_bytes(l->socket, NULL, 0, m->bytes.data, m->bytes.len, NULL) < 0)
		return; /* not connected: the next turn tries again */
	l->open_id = m->id;
	l->open_kind = kind;
	l->sent_ms = now;
}

/* The outcome does not wait for the answer to a report. */
static bool done_is_due(const struct link *l)
{
	return l->done.bytes.len > 0 && !l->acknowledged && l->open_id != l->done.id;
}

/* Whether something may be sent: no answer is awaited, or only a report's. */
static bool may_send(struct link *l)
{
	bool may = !l->open_id;

	if (!may && l->open_kind == OPEN_REPORT) {
		pthread_mutex_lock(&l->lock);
		may = done_is_due(l);
		pthread_mutex_unlock(&l->lock);
	}
	return may;
}

/* Sends what matters most. Nothing is said of a job whose outcome was acknowledged. */
static void send_most(struct link *l, int64_t now)
{
	if (!l->known) {
		if (now >= l->next_hello_ms) {
			send_message(l, &l->hello, OPEN_HELLO, now);
			/* connected or not, give up on this socket after a while */
			if (!l->open_id && now - l->next_hello_ms > ANSWER_MS)
				lose(l, now);
		}
		return;
	}
	pthread_mutex_lock(&l->lock);
	if (done_is_due(l)) {
		send_message(l, &l->done, OPEN_DONE, now);
	} else if (l->acknowledged) {
		if (l->idle && (l->next_is_new || now - l->heard_ms > KEEPALIVE_MS)) {
			send_message(l, &l->next, OPEN_NEXT, now);
			l->next_is_new = l->next_is_new && !l->open_id;
		}
	} else if (l->progress_is_new ||
		   (l->progress.bytes.len > 0 && now - l->heard_ms > KEEPALIVE_MS)) {
		send_message(l, &l->progress, OPEN_REPORT, now);
		l->progress_is_new = l->progress_is_new && !l->open_id;
	} else if (now - l->heard_ms > KEEPALIVE_MS) {
		send_message(l, &l->hello, OPEN_HELLO, now);
	}
	pthread_mutex_unlock(&l->lock);
	if (!l->open_id && now - l->heard_ms > KEEPALIVE_MS + ANSWER_MS)
		lose(l, now);
}

/* ---- answers */

static void take_stop(struct link *l, Tf__StopReason reason)
{
	int none = TF__STOP_REASON__STOP_NONE;

	if (reason != TF__STOP_REASON__STOP_NONE &&
	    atomic_compare_exchange_strong(&l->stop, &none, (int)reason))
		log_line(LOG_INFO, l->job, "told to stop, reason=%d", (int)reason);
}

/* From here on the line is this job's; called with the lock held. */
static void turn_to(struct link *l, Tf__Reply *reply)
{
	const Tf__Assignment *a = reply->assignment;

	l->job = a->job;
	l->attempt = a->attempt;
	tf__reply__free_unpacked(l->assigned, NULL);
	l->assigned = reply;
	l->following = NULL;
	atomic_store(&l->stop, a->has_stop ? (int)a->stop : 0);
	atomic_store(&l->peak_rss_anon, 0);
	buf_clear(&l->progress.bytes);
	buf_clear(&l->done.bytes);
	l->progress_is_new = l->acknowledged = l->idle = l->next_is_new = l->stay = false;
	pack_hello(l);
	pthread_cond_broadcast(&l->changed);
}

/* Another job, for a worker that asked for one. The main thread may not be through with the last
 * one yet: then it is kept until link_next. */
static bool take_next(struct link *l, Tf__Reply *reply)
{
	const Tf__Assignment *a = reply->assignment;
	bool taken;

	pthread_mutex_lock(&l->lock);
	taken = (l->idle ? !l->dismissed : l->stay && l->acknowledged && !l->following) &&
		(a->job != l->job || a->attempt != l->attempt);
	if (taken && l->idle)
		turn_to(l, reply);
	else if (taken)
		l->following = reply;
	pthread_mutex_unlock(&l->lock);
	return taken;
}

static void take_following(struct link *l)
{
	pthread_mutex_lock(&l->lock);
	if (l->following && l->idle && !l->dismissed)
		turn_to(l, l->following);
	pthread_mutex_unlock(&l->lock);
}

/* Takes the reply when it is kept. */
static bool take_assignment(struct link *l, Tf__Reply *reply)
{
	bool kept = false;

	if (reply->body_case != TF__REPLY__BODY_ASSIGNMENT)
		return false;
	if (reply->assignment->has_stop)
		take_stop(l, reply->assignment->stop);
	l->known = true;
	l->pause_ms = PAUSE_MS_FIRST;
	pthread_mutex_lock(&l->lock);
	if (!l->assigned) {
		l->assigned = reply;
		kept = true;
		pthread_cond_broadcast(&l->changed);
	}
	pthread_mutex_unlock(&l->lock);
	return kept;
}

static void take_trouble(struct link *l, const Tf__Reply *reply, int64_t now)
{
	const char *text = reply->text && *reply->text ? reply->text : err_text(reply->code);

	if (reply->code == TF_EFENCED) {
		atomic_store(&l->is_fenced, true);
		l->fenced(text);
	}
	pthread_mutex_lock(&l->lock);
	snprintf(l->trouble, sizeof l->trouble, "%s", text);
	pthread_mutex_unlock(&l->lock);
	log_line(LOG_WARN, l->job, "the daemon answers: %s", text);
	l->known = false;
	l->next_hello_ms = now + l->pause_ms;
	l->pause_ms = 2 * l->pause_ms < PAUSE_MS_MOST ? 2 * l->pause_ms : PAUSE_MS_MOST;
}

static void take_order(struct link *l, const Tf__Order *order)
{
	bool kept;

	pthread_mutex_lock(&l->lock);
	kept = l->following && l->following->assignment->job == order->job;
	if (kept) {
		l->following->assignment->has_stop = true;
		l->following->assignment->stop = order->stop;
	}
	pthread_mutex_unlock(&l->lock);
	if (!kept && order->job == l->job && !dismiss(l, "the daemon needs this worker no more"))
		take_stop(l, order->stop);
}

static void take_join(struct link *l, const Tf__Join *join)
{
	pthread_mutex_lock(&l->lock);
	if (l->joins < ARRAY_LEN(l->join)) { /* else the daemon puts the job back in time */
		l->join[l->joins].job = join->job;
		l->join[l->joins++].attempt = join->attempt;
	}
	pthread_mutex_unlock(&l->lock);
}

/* Returns whether the reply was kept. */
static bool take_reply(struct link *l, Tf__Reply *reply, int64_t now)
{
	l->heard_ms = now;
	if (reply->body_case == TF__REPLY__BODY_ORDER)
		take_order(l, reply->order);
	if (reply->id == 0 && reply->body_case == TF__REPLY__BODY_JOIN)
		take_join(l, reply->join);
	if (reply->id == 0 && reply->body_case == TF__REPLY__BODY_ASSIGNMENT)
		return take_next(l, reply);
	if (reply->id == 0 || reply->id != l->open_id)
		return false;
	l->open_id = 0;
	if (reply->has_code && reply->code != 0) {
		if (!dismiss(l, reply->text ? reply->text : ""))
			take_trouble(l, reply, now);
		return false;
	}
	if (l->open_kind == OPEN_NEXT)
		return reply->body_case == TF__REPLY__BODY_ASSIGNMENT && take_next(l, reply);
	if (l->open_kind == OPEN_HELLO)
		return take_assignment(l, reply);
	if (l->open_kind == OPEN_DONE) {
		pthread_mutex_lock(&l->lock);
		l->acknowledged = true;
		pthread_cond_broadcast(&l->changed);
		pthread_mutex_unlock(&l->lock);
	}
	return false;
}

static void take_message(struct link *l, zmq_msg_t *body, int64_t now)
{
	Tf__Reply *reply = NULL;
	struct err e = ERR_INIT;

	if (wire_unpack_reply(zmq_msg_data(body), zmq_msg_size(body), &reply, &e) < 0)
		log_warn("the daemon's answer: %s", e.text);
	else if (!take_reply(l, reply, now))
		tf__reply__free_unpacked(reply, NULL);
}

static void receive_all(struct link *l, int64_t now)
{
	struct wire_message m;
	struct err e = ERR_INIT;
	int rc;

	while ((rc = wire_receive(l->socket, false, &m, &e)) != 0) {
		if (rc < 0) {
			log_warn("the daemon's answer: %s", e.text);
			err_clear(&e);
			continue;
		}
		take_message(l, &m.body, now);
		wire_message_close(&m);
	}
}

/* ---- the thread */

static void wait_for_something(struct link *l)
{
	/* a hello that is due leaves as soon as the handshake is through */
	bool hello = !l->known && !l->open_id && clock_mono_ms() >= l->next_hello_ms;
	zmq_pollitem_t items[] = { { l->socket, 0, ZMQ_POLLIN | (hello ? ZMQ_POLLOUT : 0), 0 },
				   { NULL, l->wake_fd, ZMQ_POLLIN, 0 } };
	uint64_t count;

	zmq_poll(items, 2, TURN_MS);
	if (items[1].revents & ZMQ_POLLIN && read(l->wake_fd, &count, sizeof count) < 0)
		log_warn("eventfd: %s", strerror(errno));
}

static void watch_memory(struct link *l)
{
	int64_t now = clock_mono_ms(), bytes;

	if (now - l->watched_ms < TURN_MS)
		return;
	l->watched_ms = now;
	bytes = memory_rss_anon();
	if (bytes > atomic_load(&l->peak_rss_anon))
		atomic_store(&l->peak_rss_anon, bytes);
}

static void *run_thread(void *arg)
{
	struct link *l = arg;
	bool closing = false;

	l->heard_ms = l->next_hello_ms = clock_mono_ms();
	l->pause_ms = PAUSE_MS_FIRST;
	while (!closing) {
		int64_t now = clock_mono_ms();

		watch_memory(l);
		if (!l->socket && open_socket(l, NULL) < 0) {
			clock_sleep_ms(TURN_MS);
		} else {
			receive_all(l, now);
			if (l->open_id && now - l->sent_ms > ANSWER_MS)
				lose(l, now);
			take_following(l);
			if (l->socket && may_send(l))
				send_most(l, now);
			if (l->socket)
				wait_for_something(l);
		}
		pthread_mutex_lock(&l->lock);
		closing = l->closing;
		pthread_mutex_unlock(&l->lock);
		if (atomic_load(&l->leaving))
			dismiss(l, "SIGTERM");
	}
	return NULL;
}

/* Signals are for the main thread. */
static int start_thread(struct link *l, struct err *e)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = pthread_create(&l->thread, NULL, run_thread, l);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	errno = rc;
	return rc ? err_errno(e, "a thread for the daemon's messages") : 0;
}

static void release(struct link *l)
{
	if (l->socket)
		zmq_close(l->socket);
	if (l->context)
		zmq_ctx_term(l->context);
	if (l->wake_fd >= 0)
		close(l->wake_fd);
	if (l->assigned)
		tf__reply__free_unpacked(l->assigned, NULL);
	if (l->following)
		tf__reply__free_unpacked(l->following, NULL);
	buf_release(&l->hello.bytes);
	buf_release(&l->progress.bytes);
	buf_release(&l->done.bytes);
	buf_release(&l->next.bytes);
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	key_pair_wipe(&l->keys);
	xfree(l->endpoint);
	xfree(l);
}

/* Takes the link, whose keys are those of the process. */
static int start(struct link *l, struct link **out, struct err *e)
{
	pthread_condattr_t monotonic;
	int rc = 0;

	atomic_store(&l->room, ROOM_UNSAID);
	pthread_mutex_init(&l->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&l->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->context = zmq_ctx_new();
	if (l->wake_fd < 0 || !l->context)
		rc = err_errno(e, "the link to the daemon");
	if (rc == 0)
		rc = open_socket(l, e);
	if (rc == 0) {
		pack_hello(l);
		rc = start_thread(l, e);
	}
	if (rc < 0)
		release(l);
	else
		*out = l;
	return rc;
}

static struct link *new(const char *endpoint, const char *server_key, uint64_t job,
			uint32_t attempt, void (*fenced)(const char *))
{
	struct link *l = xcalloc(1, sizeof *l);

	l->endpoint = xstrdup(endpoint);
	snprintf(l->server_key, sizeof l->server_key, "%s", server_key);
	l->job = job;
	l->attempt = attempt;
	l->fenced = fenced;
	return l;
}

int link_open(const struct link_options *o, struct link **out, struct err *e)
{
	struct key_pair keys;
	struct link *l;

	TRY(key_pair_of_secret(o->secret_key, &keys, e));
	l = new(o->endpoint, o->server_key, o->job, o->attempt, o->fenced);
	l->keys = keys;
	key_pair_wipe(&keys);
	return start(l, out, e);
}

int link_beside(const struct link *of, uint64_t job, uint32_t attempt, struct link **out,
		struct err *e)
{
	struct link *l = new(of->endpoint, of->server_key, job, attempt, of->fenced);

	l->keys = of->keys;
	atomic_store(&l->leaving, atomic_load(&of->leaving));
	return start(l, out, e);
}

void link_close(struct link *l)
{
	if (!l)
		return;
	pthread_mutex_lock(&l->lock);
	l->closing = true;
	pthread_mutex_unlock(&l->lock);
	wake(l);
	pthread_join(l->thread, NULL);
	release(l);
}

/* ---- waiting; called with the lock held */

static struct timespec deadline_after(int64_t timeout_ms)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += timeout_ms / 1000;
	t.tv_nsec += timeout_ms % 1000 * 1000000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_nsec -= 1000000000;
		t.tv_sec++;
	}
	return t;
}

int link_assignment(struct link *l, int64_t timeout_ms, const Tf__Assignment **out, struct err *e)
{
	struct timespec until = deadline_after(timeout_ms);
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	while (!l->assigned && rc == 0)
		rc = pthread_cond_timedwait(&l->changed, &l->lock, &until);
	if (l->assigned)
		*out = l->assigned->assignment;
	else
		err_set(e, TF_ENODAEMON, "%s gave no assignment in %" PRId64 " s%s%s", l->endpoint,
			timeout_ms / 1000, *l->trouble ? ": " : "", l->trouble);
	rc = l->assigned ? 0 : TF_ENODAEMON;
	pthread_mutex_unlock(&l->lock);
	return rc;
}

void link_done(struct link *l, const struct buf *outcome, bool stay)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__WorkerDone done = TF__WORKER_DONE__INIT;

	done.job = l->job;
	done.attempt = l->attempt;
	done.outcome = tf__outcome__unpack(NULL, outcome->len, (const uint8_t *)outcome->data);
	CHECK(done.outcome);
	done.has_stay = done.stay = stay;
	r.body_case = TF__REQUEST__BODY_WORKER_DONE;
	r.worker_done = &done;
	pthread_mutex_lock(&l->lock);
	pack_request(l, &r, &l->done);
	l->stay = stay;
	pthread_mutex_unlock(&l->lock);
	wake(l);
	tf__outcome__free_unpacked(done.outcome, NULL);
}

int link_told(struct link *l, int64_t timeout_ms, struct err *e)
{
	struct timespec until = deadline_after(timeout_ms);
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	while (!l->acknowledged && rc == 0)
		rc = pthread_cond_timedwait(&l->changed, &l->lock, &until);
	rc = l->acknowledged
		     ? 0
		     : err_set(e, TF_ETIMEOUT,
			       "no daemon took the outcome in %" PRId64 " s: the file counts",
			       timeout_ms / 1000);
	pthread_mutex_unlock(&l->lock);
	return rc;
}

int link_next(struct link *l, int64_t timeout_ms, const Tf__Assignment **out, struct err *e)
{
	struct timespec until = deadline_after(timeout_ms);
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	CHECK(l->acknowledged && !l->idle);
	l->idle = true;
	l->dismissed = false;
	pack_next(l);
	wake(l);
	while (l->idle && !l->dismissed && rc == 0)
		rc = pthread_cond_timedwait(&l->changed, &l->lock, &until);
	if (!l->idle)
		*out = l->assigned->assignment;
	else
		err_set(e, TF_ECANCELLED, "no other job: %s",
			l->dismissed ? l->trouble : "none came in time");
	rc = l->idle ? TF_ECANCELLED : 0;
	l->dismissed = true; /* whatever comes later is not taken */
	pthread_mutex_unlock(&l->lock);
	return rc;
}

void link_room(struct link *l, uint32_t jobs)
{
	atomic_store(&l->room, jobs);
}

bool link_join(struct link *l, uint64_t *job, uint32_t *attempt)
{
	bool any;

	pthread_mutex_lock(&l->lock);
	any = l->joins > 0;
	if (any) {
		*job = l->join[0].job;
		*attempt = l->join[0].attempt;
		memmove(l->join, l->join + 1, --l->joins * sizeof l->join[0]);
	}
	pthread_mutex_unlock(&l->lock);
	return any;
}

bool link_is_fenced(const struct link *l)
{
	return atomic_load(&l->is_fenced);
}

Tf__StopReason link_stop(const struct link *l)
{
	int stop = atomic_load(&l->stop);

	if (stop == TF__STOP_REASON__STOP_NONE &&
	    (atomic_load(&l->leaving) || atomic_load(&l->is_fenced)))
		return TF__STOP_REASON__STOP_SHUTDOWN;
	return (Tf__StopReason)stop;
}

void link_leave(struct link *l)
{
	uint64_t one = 1;

	atomic_store(&l->leaving, true);
	if (write(l->wake_fd, &one, sizeof one) < 0)
		return; /* it is awake, or looks around soon */
}

int64_t link_peak_rss_anon(const struct link *l)
{
	int64_t now = memory_rss_anon(), peak = atomic_load(&l->peak_rss_anon);

	return now > peak ? now : peak;
}
