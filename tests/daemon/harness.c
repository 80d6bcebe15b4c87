/* SPDX-License-Identifier: Apache-2.0
 * A live daemon for tests; see harness.h. */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/token.h"
#include "proto/wire.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CALL_MS 60000 /* only a failure takes it; other work may fill the machine */

static const struct harness *harness_last; /* whose log is shown when its daemon vanishes */
static const char *kept_in; /* folders lie here and stay; NULL: in /tmp, until a stop */

static char *built(const char *rel)
{
	const char *build = getenv("TF_BUILD");

	return xasprintf("%s/%s", build ? build : ".", rel);
}

void harness_keep_in(const char *folder)
{
	kept_in = folder;
}

void harness_init(struct harness *h)
{
	memset(h, 0, sizeof *h);
	h->folder = xasprintf("%s/tfd-XXXXXX", kept_in ? kept_in : "/tmp");
	assert_non_null(mkdtemp(h->folder));
	h->state = xasprintf("%s/state", h->folder);
}

char *harness_path(const struct harness *h, const char *fmt, ...)
{
	char tail[500];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(tail, sizeof tail, fmt, ap);
	va_end(ap);
	return xasprintf("%s/%s", h->state, tail);
}

bool harness_exists(const struct harness *h, const char *rel)
{
	char *path = harness_path(h, "%s", rel);
	bool there = file_exists(path);

	xfree(path);
	return there;
}

static void set_or_unset(const char *name, const char *value)
{
	if (value)
		setenv(name, value, 1);
	else
		unsetenv(name);
}

static void exec_daemon(struct harness *h, int ready, const char *log)
{
	char *program = built("transfused"), *worker = built("tests/daemon/fake_worker");
	char *runtime = xasprintf("%s/run", h->folder), number[16];
	char *argv[40] = { program,
			   "--state",
			   h->state,
			   "--runtime",
			   runtime,
			   "--map-mib",
			   "64",
			   "--data-map-mib",
			   "16",
			   "--worker",
			   (char *)(h->worker ? h->worker : worker),
			   "--threads",
			   "1",
			   "--ready-fd",
			   number,
			   "--slots",
			   (char *)(h->slots ? h->slots : "1") };
	int n = h->slots && !*h->slots ? 15 : 17;
	int fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);

	snprintf(number, sizeof number, "%d", ready);
	for (int i = 0; i < 8 && h->extra[i]; i++)
		argv[n++] = (char *)h->extra[i];
	argv[n] = NULL;
	set_or_unset("TF_FAULT", h->fault);
	set_or_unset("TF_BOUND", h->bound);
	for (size_t i = 0; i < ARRAY_LEN(h->environment) && h->environment[i]; i++)
		putenv(h->environment[i]);
	dup2(fd, STDERR_FILENO);
	dup2(fd, STDOUT_FILENO);
	execv(program, argv);
	_exit(127);
}

int harness_said(const struct harness *h, const char *words)
{
	char *path = xasprintf("%s/daemon.log", h->folder);
	struct buf b = BUF_INIT;
	int n = 0;

	file_read(path, 64 << 20, &b, NULL);
	buf_text(&b, "");
	for (const char *p = b.data; p && (p = strstr(p, words)) != NULL; p++)
		n++;
	buf_release(&b);
	xfree(path);
	return n;
}

void harness_until_said(const struct harness *h, const char *words, int times)
{
	int64_t until = clock_mono_ms() + CALL_MS;

	while (harness_said(h, words) < times) {
		if (clock_mono_ms() > until)
			fail_msg("the daemon's log does not say '%s'", words);
		clock_sleep_ms(10);
	}
}

/* Starts one; true when it says that it is ready. */
static bool start(struct harness *h)
{
	char *log = xasprintf("%s/daemon.log", h->folder), byte;
	int fd[2];
	bool ready;

	assert_int_equal(pipe(fd), 0);
	h->pid = fork();
	if (h->pid == 0) {
		close(fd[0]);
		exec_daemon(h, fd[1], log);
	}
	close(fd[1]);
	ready = read(fd[0], &byte, 1) == 1;
	close(fd[0]);
	xfree(log);
	return ready;
}

static void print_log(const struct harness *h)
{
	char *log = xasprintf("%s/daemon.log", h->folder);
	struct buf b = BUF_INIT;

	file_read(log, 1 << 20, &b, NULL);
	print_message("%s\n", b.data ? b.data : "");
	buf_release(&b);
	xfree(log);
}

void harness_start(struct harness *h)
{
	char *path = harness_path(h, "keys/client.key");
	struct key_pair owner;
	struct err e = ERR_INIT;

	harness_last = h;
	if (!start(h)) {
		print_log(h);
		fail_msg("the daemon did not start");
	}
	assert_ok(key_pair_read(path, &owner, &e), &e);
	h->line = harness_line(h, &owner);
	xfree(path);
}

int harness_start_fails(struct harness *h, char *text, size_t room)
{
	char *log = xasprintf("%s/daemon.log", h->folder);
	struct buf b = BUF_INIT;
	pid_t kept = h->pid;
	int status;

	unlink(log);
	assert_false(start(h));
	waitpid(h->pid, &status, 0);
	h->pid = kept;
	file_read(log, 1 << 20, &b, NULL);
	snprintf(text, room, "%s", b.data ? b.data : "");
	buf_release(&b);
	xfree(log);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

struct connection *harness_line(struct harness *h, const struct key_pair *keys)
{
	struct connection_options o = { .keys = *keys,
					.connect_ms = CALL_MS,
					.reconnect_ms = h->reconnect_ms ? h->reconnect_ms
									: CALL_MS };
	char *path = harness_path(h, "keys/server.pub"), *endpoint = NULL, server[KEY_CHARS + 1];
	struct connection *c = NULL;
	struct err e = ERR_INIT;

	assert_ok(key_public_read(path, server, &e), &e);
	assert_ok(endpoint_read(h->state, &endpoint, &e), &e);
	o.endpoint = endpoint;
	o.server_key = server;
	assert_ok(connection_open(&o, &c, &e), &e);
	xfree(endpoint);
	xfree(path);
	return c;
}

void harness_kill(struct harness *h, int number)
{
	int status = 0;

	if (h->line)
		connection_close(h->line);
	h->line = NULL;
	if (h->pid > 0) {
		kill(h->pid, number);
		waitpid(h->pid, &status, 0);
	}
	h->pid = 0;
	/* one that leaves in order says so by its status: no sanitizer had anything to report */
	if (number == SIGTERM && (!WIFEXITED(status) || WEXITSTATUS(status) != 0)) {
		print_log(h);
		fail_msg("the daemon left with status %#x", status);
	}
}

void harness_kill_workers(const struct harness *h)
{
	size_t len = strlen(h->folder);
	DIR *processes = opendir("/proc");
	struct dirent *p;

	assert_non_null(processes);
	while ((p = readdir(processes)) != NULL) {
		pid_t pid = (pid_t)atoi(p->d_name); /* 0: no process */
		char link[300], cwd[PATH_MAX];
		ssize_t n;

		snprintf(link, sizeof link, "/proc/%s/cwd", p->d_name);
		n = pid > 0 ? readlink(link, cwd, sizeof cwd) : 0;
		if (n > (ssize_t)len && memcmp(cwd, h->folder, len) == 0 && cwd[len] == '/')
			kill(pid, SIGKILL);
	}
	closedir(processes);
}

void harness_stop(struct harness *h)
{
	struct err e = ERR_INIT;

	harness_last = NULL;
	harness_kill(h, h->pid > 0 ? SIGTERM : 0);
	harness_kill_workers(h);
	if (!kept_in)
		dir_remove(h->folder, &e);
	xfree(h->folder);
	xfree(h->state);
}

int harness_prepared(void **state)
{
	struct harness_fixture *f = *state;

	err_clear(f->e);
	harness_init(f->h);
	return 0;
}

int harness_started(void **state)
{
	struct harness_fixture *f = *state;

	harness_prepared(state);
	harness_start(f->h);
	return 0;
}

int harness_rooted(void **state)
{
	struct harness *h = ((struct harness_fixture *)*state)->h;

	harness_prepared(state);
	h->extra[0] = "--root";
	h->extra[1] = h->folder;
	harness_start(h);
	return 0;
}

int harness_ended(void **state)
{
	struct harness_fixture *f = *state;

	harness_stop(f->h);
	return 0;
}

void harness_enrol(struct harness *h, const char *name, const char *role, struct key_pair *keys)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserAdd m = TF__USER_ADD__INIT;
	struct err e = ERR_INIT;

	assert_ok(key_pair_make(keys, &e), &e);
	m.name = (char *)name;
	m.role = (char *)role;
	m.key = keys->public_key;
	r.body_case = TF__REQUEST__BODY_USER_ADD;
	r.user_add = &m;
	assert_ok(harness_call(h->line, &r, NULL, &e), &e);
}

void *harness_socket(struct harness *h, void *context, const struct key_pair *keys)
{
	char *server_path = harness_path(h, "keys/server.pub"), *endpoint = NULL;
	char *own_path = harness_path(h, "keys/client.key"), server[KEY_CHARS + 1];
	const struct key_pair *user = keys;
	struct key_pair own;
	struct err e = ERR_INIT;
	void *socket = NULL;

	assert_ok(key_public_read(server_path, server, &e), &e);
	assert_ok(key_pair_read(own_path, &own, &e), &e);
	assert_ok(endpoint_read(h->state, &endpoint, &e), &e);
	if (!user)
		user = &own;
	assert_ok(wire_dealer(context, endpoint, server, user, &socket, NULL, &e), &e);
	xfree(endpoint);
	xfree(server_path);
	xfree(own_path);
	return socket;
}

void harness_send(void *socket, const Tf__Request *r)
{
	int64_t until = clock_mono_ms() + CALL_MS;

	while (wire_send(socket, NULL, 0, &r->base, NULL) < 0) {
		assert_true(clock_mono_ms() < until);
		clock_sleep_ms(1);
	}
}

Tf__Reply *harness_receive(void *socket, int64_t timeout_ms)
{
	zmq_pollitem_t item = { .socket = socket, .events = ZMQ_POLLIN };
	struct err e = ERR_INIT;
	struct wire_message m;
	Tf__Reply *reply = NULL;

	if (zmq_poll(&item, 1, (long)timeout_ms) <= 0)
		return NULL;
	assert_int_equal(wire_receive(socket, false, &m, &e), 1);
	assert_ok(wire_unpack_reply(zmq_msg_data(&m.body), zmq_msg_size(&m.body), &reply, &e), &e);
	wire_message_close(&m);
	return reply;
}

uint64_t harness_receive_job(void *socket)
{
	Tf__Reply *reply = harness_receive(socket, LIMIT_WAIT_MS);
	uint64_t id;

	assert_non_null(reply);
	assert_int_equal(reply->code, 0);
	id = reply->submitted->job;
	tf__reply__free_unpacked(reply, NULL);
	return id;
}

Tf__Request harness_empty(Tf__Request__BodyCase kind)
{
	static Tf__Empty empty = TF__EMPTY__INIT;
	Tf__Request r = TF__REQUEST__INIT;

	r.version = TF_PROTOCOL_VERSION;
	r.body_case = kind;
	r.ping = &empty; /* they share their place */
	return r;
}

int harness_call(struct connection *c, Tf__Request *r, Tf__Reply **reply, struct err *e)
{
	Tf__Reply *mine = NULL;
	int rc = connection_call(c, r, CALL_MS, &mine, e);

	if (rc == TF_ENODAEMON && harness_last)
		print_log(harness_last);

	if (reply && rc == 0)
		*reply = mine;
	else if (mine)
		tf__reply__free_unpacked(mine, NULL);
	return rc;
}

int harness_submit(struct connection *c, const Tf__JobSpec *spec, const uint8_t token[16],
		   bool dry_run, uint64_t *id, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Submit m = TF__SUBMIT__INIT;
	uint8_t own[TOKEN_BYTES];
	Tf__Reply *reply = NULL;
	int rc;

	if (!token)
		TRY(token_make(own, e));
	m.token.len = TOKEN_BYTES;
	m.token.data = token ? (uint8_t *)token : own;
	m.spec = (Tf__JobSpec *)spec;
	m.has_dry_run = m.dry_run = dry_run;
	r.body_case = TF__REQUEST__BODY_SUBMIT;
	r.submit = &m;
	rc = harness_call(c, &r, &reply, e);
	if (rc < 0)
		return rc;
	assert_int_equal(reply->body_case, TF__REPLY__BODY_SUBMITTED);
	if (id)
		*id = reply->submitted->job;
	tf__reply__free_unpacked(reply, NULL);
	return 0;
}

uint64_t harness_noop(struct harness *h, const char *how)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	struct err e = ERR_INIT;
	uint64_t id = 0;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	assert_ok(harness_submit(h->line, &spec, NULL, false, &id, &e), &e);
	assert_true(id > 0);
	return id;
}

Tf__Reply *harness_show(struct harness *h, uint64_t id)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRef m = TF__JOB_REF__INIT;
	Tf__Reply *reply = NULL;
	struct err e = ERR_INIT;

	m.job = id;
	r.body_case = TF__REQUEST__BODY_JOB_SHOW;
	r.job_show = &m;
	assert_ok(harness_call(h->line, &r, &reply, &e), &e);
	assert_int_equal(reply->body_case, TF__REPLY__BODY_JOBS);
	assert_int_equal(reply->jobs->n_job, 1);
	return reply;
}

Tf__JobState harness_state(struct harness *h, uint64_t id)
{
	Tf__Reply *reply = harness_show(h, id);
	Tf__JobState state = reply->jobs->job[0]->state;

	tf__reply__free_unpacked(reply, NULL);
	return state;
}

void harness_until(struct harness *h, uint64_t id, Tf__JobState state)
{
	int64_t until = clock_mono_ms() + CALL_MS;
	Tf__JobState now;

	while ((now = harness_state(h, id)) != state) {
		if (clock_mono_ms() > until || job_state_is_end(now)) {
			print_log(h);
			fail_msg("job %llu is %s, not %s", (unsigned long long)id,
				 job_state_name(now), job_state_name(state));
		}
		clock_sleep_ms(5);
	}
}

char *harness_reason(struct harness *h, uint64_t id, uint32_t *attempt)
{
	Tf__Reply *reply = harness_show(h, id);
	char *reason = xstrdup(reply->jobs->job[0]->reason ? reply->jobs->job[0]->reason : "");

	if (attempt)
		*attempt = reply->jobs->job[0]->attempt;
	tf__reply__free_unpacked(reply, NULL);
	return reason;
}

int harness_submit_noop(struct connection *c, const char *how, const uint8_t *token, uint64_t *id,
			struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	err_clear(e);
	return harness_submit(c, &spec, token, false, id, e);
}

int harness_drain(struct connection *c, bool resume, bool stop, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Drain m = TF__DRAIN__INIT;

	m.has_resume = m.has_stop_daemon = true;
	m.resume = resume;
	m.stop_daemon = stop;
	r.body_case = TF__REQUEST__BODY_DRAIN;
	r.drain = &m;
	err_clear(e);
	return harness_call(c, &r, NULL, e);
}

int harness_upload_open(struct connection *c, uint64_t size, struct err *e)
{
	static uint64_t counter;
	uint64_t token[2] = { ++counter, (uint64_t)clock_mono_ns() };
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadOpen m = TF__UPLOAD_OPEN__INIT;

	m.token.data = (uint8_t *)token;
	m.token.len = sizeof token;
	m.name = (char *)"file";
	m.size = size;
	r.body_case = TF__REQUEST__BODY_UPLOAD_OPEN;
	r.upload_open = &m;
	return harness_call(c, &r, NULL, e);
}

int harness_cancel(struct connection *c, uint64_t id, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;

	m.n_job = 1;
	m.job = &id;
	r.body_case = TF__REQUEST__BODY_JOB_CANCEL;
	r.job_cancel = &m;
	return harness_call(c, &r, NULL, e);
}

char *harness_log(struct harness *h, uint64_t id)
{
	char *path = harness_path(h, "jobs/%llu/log", (unsigned long long)id);
	struct buf b = BUF_INIT;

	file_read(path, 1 << 20, &b, NULL);
	xfree(path);
	return buf_detach(&b);
}

long harness_rss_anon_kib(const struct harness *h)
{
	char *path = xasprintf("/proc/%d/status", (int)h->pid), line[256];
	FILE *f = fopen(path, "r");
	long kib = -1;

	while (f && fgets(line, sizeof line, f))
		sscanf(line, "RssAnon: %ld", &kib);
	if (f)
		fclose(f);
	xfree(path);
	return kib;
}

void harness_send_noops(void *socket, const char *how, uint64_t first, uint64_t count)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Submit m = TF__SUBMIT__INIT;
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	uint64_t token[2] = { 0, (uint64_t)(uintptr_t)socket };

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	m.token.len = sizeof token;
	m.token.data = (uint8_t *)token;
	m.spec = &spec;
	r.version = TF_PROTOCOL_VERSION;
	r.body_case = TF__REQUEST__BODY_SUBMIT;
	r.submit = &m;
	for (r.id = first; r.id < first + count; r.id++) {
		token[0] = r.id;
		harness_send(socket, &r);
	}
}
