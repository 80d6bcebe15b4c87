/* SPDX-License-Identifier: Apache-2.0
 * A worker that behaves as its job's name says, to try the daemon's side of the protocol:
 *   done       says it is done at once            fail       ends with an error
 *   wait       stays until ordered to stop         stubborn   stays until it is killed
 *   crash      exits with no outcome, always       once       crashes in its first attempt only
 *   quiet      writes its outcome, exits unsaid    mute       never says hello
 *   aged       as quiet, into a folder of its attempt, as workers did before
 *   chatty     reports more figures than may be
 *   wordy      reports and leaves figures with a name longer than may be, and one without
 *   boast      makes what it should, and says more of it than fits a record
 *   garbled    leaves an outcome whose reason is no text, exits unsaid
 *   fence      speaks for another attempt first    make       makes the artefact it should
 *   half       makes half of it and fails          steps      leaves a checkpoint and fails
 *   env        writes what it may use, then as wait
 *   first      fails in its first attempt only
 *   medley     nan, no memory, a crash, done: an attempt each
 * It writes "begin N" and "end N" (N: attempt) lines into its log. */
#include "config.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/spec.h"
#include "proto/wire.h"
#include "store/checkpoints.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define BOASTS 40

static struct {
	void *socket;
	uint64_t job, next_id;
	uint32_t attempt;
	Tf__Reply *assigned; /* keeps the assignment alive */
	const Tf__Assignment *a;
	Tf__StopReason stop;
	Tf__Metric *result[2];
	size_t results;
} self;

static Tf__Reply *receive(int64_t timeout_ms)
{
	int64_t until = clock_mono_ms() + timeout_ms;

	while (clock_mono_ms() < until) {
		zmq_pollitem_t item = { .socket = self.socket, .events = ZMQ_POLLIN };
		struct wire_message m;
		Tf__Reply *reply = NULL;
		int rc;

		zmq_poll(&item, 1, timeout_ms < 20 ? timeout_ms : 20);
		rc = wire_receive(self.socket, false, &m, NULL);
		if (rc != 1)
			continue;
		rc = wire_unpack_reply(zmq_msg_data(&m.body), zmq_msg_size(&m.body), &reply, NULL);
		wire_message_close(&m);
		if (rc < 0)
			die(9, "a reply cannot be read");
		if (reply->body_case != TF__REPLY__BODY_ORDER)
			return reply;
		self.stop = reply->order->stop;
		tf__reply__free_unpacked(reply, NULL);
		if (timeout_ms < 0)
			return NULL;
	}
	return NULL;
}

/* Sends and waits for the answer; sends again when none comes (another daemon may be there), or
 * after a while when the daemon cannot write. */
static Tf__Reply *call(Tf__Request *r)
{
	Tf__Reply *reply = NULL;

	r->version = TF_PROTOCOL_VERSION;
	r->id = ++self.next_id;
	for (int i = 0; i < 5000 && !reply; i++) {
		bool sent = wire_send(self.socket, NULL, 0, &r->base, NULL) == 0;

		reply = receive(sent ? 500 : 1);
		if (reply && reply->code == TF_EUNKNOWN)
			clock_sleep_ms(50);
		if (reply && (reply->id != r->id || reply->code == TF_EUNKNOWN)) {
			tf__reply__free_unpacked(reply, NULL);
			reply = NULL;
		}
	}
	if (!reply)
		die(9, "no answer");
	return reply;
}

static void hello(void)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__WorkerHello m = TF__WORKER_HELLO__INIT;

	m.job = self.job;
	m.attempt = self.attempt;
	m.pid = (uint32_t)getpid();
	r.body_case = TF__REQUEST__BODY_WORKER_HELLO;
	r.worker_hello = &m;
	if (self.assigned)
		tf__reply__free_unpacked(self.assigned, NULL);
	self.assigned = call(&r);
	if (self.assigned->body_case != TF__REPLY__BODY_ASSIGNMENT)
		die(4, "no assignment: %s", self.assigned->text ? self.assigned->text : "?");
	self.a = self.assigned->assignment;
	if (self.a->stop)
		self.stop = self.a->stop;
	if (dir_make(self.a->job_folder, 0700, NULL) < 0)
		die(9, "%s cannot be made", self.a->job_folder);
}

static int report(uint32_t attempt, uint64_t done, size_t metrics, const char *name)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__WorkerReport m = TF__WORKER_REPORT__INIT;
	Tf__Metric metric = TF__METRIC__INIT, *list[LIMIT_METRICS + 1];
	Tf__Progress p = TF__PROGRESS__INIT;
	Tf__Reply *reply;
	int code;

	p.phase = (char *)"trying";
	p.has_done = true;
	p.done = done;
	m.job = self.job;
	m.attempt = attempt;
	m.progress = &p;
	metric.name = (char *)name;
	for (size_t i = 0; i < metrics; i++)
		list[i] = &metric;
	p.n_metric = metrics;
	p.metric = list;
	r.body_case = TF__REQUEST__BODY_WORKER_REPORT;
	r.worker_report = &m;
	reply = call(&r);
	code = reply->code;
	tf__reply__free_unpacked(reply, NULL);
	return code;
}

/* Where the outcome goes; the caller frees it. */
static char *outcome_path(const char *how)
{
	if (strcmp(how, "aged") != 0)
		return xstrdup(self.a->outcome_file);
	if (dir_make(self.a->attempt_folder, 0700, NULL) < 0)
		die(9, "%s cannot be made", self.a->attempt_folder);
	return xasprintf("%s/outcome.pb", self.a->attempt_folder);
}

static const char *own_name(void)
{
	return self.a->spec->name ? self.a->spec->name : "done";
}

static void leave(int code, const char *text, Tf__Artefact *artefact, bool say)
{
	char *path = outcome_path(own_name());
	Tf__Outcome o = TF__OUTCOME__INIT;
	Tf__WorkerDone m = TF__WORKER_DONE__INIT;
	Tf__Request r = TF__REQUEST__INIT;
	uint8_t *data;

	o.version = 1;
	o.code = code;
	o.has_failure = true;
	o.failure = code == TF_ENAN     ? TF__FAILURE__FAILURE_NAN
		    : code == TF_ENOMEM ? TF__FAILURE__FAILURE_MEMORY
					: TF__FAILURE__FAILURE_OTHER;
	o.text = (char *)text;
	o.artefact = artefact;
	o.n_result = self.results;
	o.result = self.result;
	data = xmalloc(tf__outcome__get_packed_size(&o));
	if (file_write(path, data, tf__outcome__pack(&o, data), 0600, NULL) < 0)
		die(9, "%s cannot be written", path);
	xfree(data);
	printf("end %u\n", self.attempt);
	fflush(stdout);
	m.job = self.job;
	m.attempt = self.attempt;
	m.outcome = &o;
	r.body_case = TF__REQUEST__BODY_WORKER_DONE;
	r.worker_done = &m;
	if (say)
		tf__reply__free_unpacked(call(&r), NULL);
	exit(code ? 1 : 0);
}

static char *long_text(size_t bytes)
{
	char *text = xmalloc(bytes + 1);

	memset(text, 'x', bytes);
	text[bytes] = 0;
	return text;
}

static void be_wordy(void)
{
	static Tf__Metric fine = TF__METRIC__INIT, wordy = TF__METRIC__INIT;

	fine.name = (char *)"figure";
	wordy.name = long_text(LIMIT_NAME_BYTES + 1);
	self.result[0] = &wordy;
	self.result[1] = &fine;
	self.results = 2;
	if (report(self.attempt, 1, 1, wordy.name) != TF_ELIMIT)
		leave(TF_EINTERNAL, "its report was taken", NULL, true);
	leave(0, NULL, NULL, true);
}

/* boasts: so many facts as long as a text may be. */
static void make(bool whole, size_t boasts)
{
	char *path = xasprintf("%s/content", self.a->output_folder);
	Tf__KeyValue kind = TF__KEY_VALUE__INIT, *fact[BOASTS] = { &kind };
	Tf__Artefact a = TF__ARTEFACT__INIT;

	if (file_write(path, "content\n", 8, 0600, NULL) < 0)
		die(9, "%s cannot be written", path);
	a.kind = self.a->spec->spec_case == TF__JOB_SPEC__SPEC_TOKENIZER
			 ? TF__ARTEFACT_KIND__TOKENIZER_MODEL
		 : self.a->spec->spec_case == TF__JOB_SPEC__SPEC_INGEST ? TF__ARTEFACT_KIND__DATASET
		 : self.a->spec->spec_case == TF__JOB_SPEC__SPEC_VAE ? TF__ARTEFACT_KIND__VAE_MODEL
								     : TF__ARTEFACT_KIND__MODEL;
	kind.key = (char *)"kind";
	kind.value = boasts ? long_text(LIMIT_TEXT_BYTES) : (char *)"images";
	for (size_t i = 1; i < boasts; i++)
		fact[i] = &kind;
	a.n_fact = boasts ? boasts : a.kind == TF__ARTEFACT_KIND__DATASET;
	a.fact = fact;
	a.name = a.id = (char *)"";
	a.hash = (char *)"00112233445566778899aabbccddeeff";
	if (whole)
		leave(0, NULL, &a, true);
	leave(TF_EIO, "half of it was made", NULL, true);
}

static void checkpoint(void)
{
	char *path = NULL;

	if (checkpoint_begin(self.a->output_folder, 100, &path, NULL) < 0 ||
	    checkpoint_commit(self.a->output_folder, 100, path, 0.5, NULL) < 0)
		die(9, "no checkpoint");
	leave(TF_ENAN, "the loss is not a number", NULL, true);
}

static void wait_for_order(bool obey)
{
	int64_t said = 0;

	for (uint64_t i = 0; !self.stop || !obey; i++) {
		Tf__Reply *reply = receive(20);

		if (reply)
			tf__reply__free_unpacked(reply, NULL);
		/* a new daemon knows us only by a new hello */
		if (clock_mono_ms() - said > 100 && !(self.stop && !obey)) {
			said = clock_mono_ms();
			if (report(self.attempt, i, 0, "") < 0 || i % 3 == 0)
				hello();
		}
	}
	printf("told %s\n", stop_reason_name(self.stop));
	leave(TF_ECANCELLED, "stopped", NULL, true);
}

static const char *variable(const char *name)
{
	return getenv(name) ? getenv(name) : "(none)";
}

static void write_environment(void)
{
	struct rlimit data = { 0, 0 };

	getrlimit(RLIMIT_DATA, &data);
	printf("CUDA_VISIBLE_DEVICES=%s device=%s\n", variable("CUDA_VISIBLE_DEVICES"),
	       self.a->device);
	printf("OMP_NUM_THREADS=%s threads=%d\n", variable("OMP_NUM_THREADS"), self.a->threads);
	printf("data=%llu\n", (unsigned long long)data.rlim_cur);
	fflush(stdout);
}

static void behave(const char *how)
{
	printf("begin %u\n", self.attempt);
	fflush(stdout);
	if (strcmp(how, "crash") == 0 || (strcmp(how, "once") == 0 && self.attempt == 1))
		abort();
	if (strcmp(how, "env") == 0)
		write_environment();
	if (strcmp(how, "wait") == 0 || strcmp(how, "env") == 0)
		wait_for_order(true);
	if (strcmp(how, "stubborn") == 0) {
		signal(SIGTERM, SIG_IGN);
		wait_for_order(false);
	}
	if (strcmp(how, "fence") == 0)
		leave(report(self.attempt + 1, 1, 0, ""), "answered so", NULL, true);
	if (strcmp(how, "chatty") == 0)
		leave(report(self.attempt, 1, LIMIT_METRICS + 1, "figure"), "answered so", NULL,
		      true);
	if (strcmp(how, "make") == 0)
		make(true, 0);
	if (strcmp(how, "half") == 0)
		make(false, 0);
	if (strcmp(how, "steps") == 0)
		checkpoint();
	if (strcmp(how, "wordy") == 0)
		be_wordy();
	if (strcmp(how, "boast") == 0)
		make(true, BOASTS);
	if (strcmp(how, "garbled") == 0)
		leave(TF_EINVALID, "\xff", NULL, false);
	if (strcmp(how, "fail") == 0 || (strcmp(how, "first") == 0 && self.attempt == 1))
		leave(TF_EINVALID, "it had to fail", NULL, true);
	if (strcmp(how, "medley") == 0 && self.attempt == 1)
		leave(TF_ENAN, NULL, NULL, true);
	if (strcmp(how, "medley") == 0 && self.attempt == 2)
		leave(TF_ENOMEM, "no memory", NULL, true);
	if (strcmp(how, "medley") == 0 && self.attempt == 3)
		abort();
	leave(0, NULL, NULL, strcmp(how, "quiet") != 0 && strcmp(how, "aged") != 0);
}

static const char *option(int argc, char **argv, const char *name)
{
	for (int i = 1; i + 1 < argc; i += 2)
		if (strcmp(argv[i], name) == 0)
			return argv[i + 1];
	die(2, "%s is missing", name);
}

int main(int argc, char **argv)
{
	char secret[KEY_CHARS + 2] = "";
	struct key_pair own;
	struct err e = ERR_INIT;
	size_t have = 0;
	ssize_t n;
	int fd = atoi(option(argc, argv, "--key-fd"));

	die_set_program("fake_worker");
	self.job = strtoull(option(argc, argv, "--job"), NULL, 10);
	self.attempt = (uint32_t)atoi(option(argc, argv, "--attempt"));
	while (have < KEY_CHARS + 1 && (n = read(fd, secret + have, KEY_CHARS + 1 - have)) > 0)
		have += (size_t)n;
	secret[KEY_CHARS] = 0;
	if (have < KEY_CHARS || key_pair_of_secret(secret, &own, &e) < 0)
		return 3; /* the attempt never was */
	if (wire_dealer(zmq_ctx_new(), option(argc, argv, "--endpoint"),
			option(argc, argv, "--server-key"), &own, &self.socket, NULL, &e) < 0)
		die(3, "%s", e.text);
	if (getenv("TF_FAULT") && strstr(getenv("TF_FAULT"), "mute-worker"))
		pause();
	hello();
	behave(own_name());
}
