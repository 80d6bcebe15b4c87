/* SPDX-License-Identifier: Apache-2.0
 * Notices reach a script and a local web server, and nothing that these do reaches the daemon. */
#include "tests/daemon/harness.h"
#include "daemon/notice.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <arpa/inet.h>
#include <jansson.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define PATIENCE_MS 60000

static struct harness h;
static struct err e;
static char config_option[200];

static void write_config(const char *text)
{
	char *path = xasprintf("%s/config.yaml", h.folder);

	assert_ok(file_write(path, text, strlen(text), 0600, &e), &e);
	snprintf(config_option, sizeof config_option, "--config=%s", path);
	xfree(path);
}

static void prepare(void)
{
	err_clear(&e);
	harness_init(&h);
	h.extra[0] = config_option;
	h.extra[1] = NULL;
}

static char *read_text(const char *name)
{
	char *path = xasprintf("%s/%s", h.folder, name);
	struct buf b = BUF_INIT;

	file_read(path, 4 << 20, &b, NULL);
	buf_text(&b, "");
	xfree(path);
	return buf_detach(&b);
}

/* Waits until a file of the test's folder holds this text so often. */
static char *until_text(const char *name, const char *text, int times)
{
	int64_t end = clock_mono_ms() + PATIENCE_MS;

	for (;;) {
		char *all = read_text(name);
		int n = 0;

		for (const char *p = all; (p = strstr(p, text)) != NULL; p++)
			n++;
		if (n >= times)
			return all;
		if (clock_mono_ms() > end)
			fail_msg("'%s' is not %d times in %s: %s", text, times, name, all);
		xfree(all);
		clock_sleep_ms(10);
	}
}

/* A script that adds what it is told to `told`. */
static char *script(const char *body)
{
	char *path = xasprintf("%s/tell", h.folder), *text;

	text = xasprintf("#!/bin/sh\nexec >>%s/told\n%s\n", h.folder, body);
	assert_ok(file_write(path, text, strlen(text), 0700, &e), &e);
	assert_int_equal(chmod(path, 0700), 0);
	xfree(text);
	return path;
}

#define TELL                                                                                       \
	"echo \"$# $1 $NOTICE_EVENT $NOTICE_JOB $NOTICE_STATE $NOTICE_SLOT $NOTICE_REASON\"; cat"

static void start_with_script(const char *body, const char *more)
{
	char *path, *text;

	prepare();
	path = script(body);
	text = xasprintf("notify_command: [\"%s\", \"a b\"]\n%s", path, more);
	write_config(text);
	xfree(text);
	xfree(path);
	harness_start(&h);
}

static void fill_drain(Tf__Request *r, Tf__SlotSet *m, const char *slot, const char *why)
{
	m->slot = (char *)slot;
	m->action = why ? TF__SLOT_ACTION__SLOT_DRAIN : TF__SLOT_ACTION__SLOT_RESUME;
	m->reason = (char *)why;
	r->body_case = TF__REQUEST__BODY_SLOT_SET;
	r->slot_set = m;
}

static int drain(const char *slot, const char *why)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SlotSet m = TF__SLOT_SET__INIT;

	fill_drain(&r, &m, slot, why);
	return harness_call(h.line, &r, NULL, &e);
}

/* ---- the command */

static void a_command_is_told(void **state)
{
	char *told, *line, *end;
	json_t *o;

	(void)state;
	start_with_script(TELL, "");
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	told = until_text("told", "queue_empty", 2);
	assert_non_null(strstr(told, "1 a b job_end 1 done"));
	line = strchr(told, '{');
	assert_non_null(line);
	end = strchr(line, '\n');
	*end = 0;
	o = json_loads(line, 0, NULL);
	assert_non_null(o);
	assert_string_equal(json_string_value(json_object_get(o, "event")), "job_end");
	assert_int_equal(json_integer_value(json_object_get(o, "job")), 1);
	assert_string_equal(json_string_value(json_object_get(o, "state")), "done");
	assert_string_equal(json_string_value(json_object_get(o, "kind")), "noop");
	assert_non_null(json_string_value(json_object_get(o, "ended")));
	assert_non_null(json_string_value(json_object_get(o, "host")));
	json_decref(o);
	xfree(told);
	assert_ok(drain("cpu0", "the fan; $(touch /tmp/x) `id`"), &e); /* no shell sees it */
	told = until_text("told", "slot_drained", 2);
	assert_non_null(strstr(told, "slot_drained   cpu0 the fan; $(touch /tmp/x) `id`"));
	xfree(told);
	harness_stop(&h);
}

/* By state and owner; what is not asked for is not told. */
static void only_what_is_wanted(void **state)
{
	char *told;
	uint64_t id;

	(void)state;
	start_with_script(TELL, "notify_on: [\"job_end state=failed,cancelled\", "
				"\"job_end user=nobody-here\"]\n");
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	id = harness_noop(&h, "wait");
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	assert_ok(harness_cancel(h.line, id, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__CANCELLED);
	told = until_text("told", "\"state\":\"cancelled\"", 1);
	assert_null(strstr(told, "\"state\":\"done\""));
	assert_null(strstr(told, "queue_empty"));
	xfree(told);
	harness_stop(&h);
}

/* One that hangs is killed with what it started, the next one comes, and the daemon answers. */
static void a_command_that_hangs_or_fails(void **state)
{
	(void)state;
	start_with_script("case $NOTICE_JOB in 1) sleep 1000 & sleep 1000;; 2) exit 3;; "
			  "3) [ -e \"$0.again\" ] || { : >\"$0.again\"; exit 75; };; "
			  "esac; echo \"$NOTICE_JOB is told\"",
			  "notify_timeout_seconds: 1\nnotify_on: [\"job_end\"]\n");
	for (int i = 0; i < 3; i++)
		harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	xfree_(until_text("told", "3 is told", 1));
	xfree_(until_text("daemon.log", "took more than 1 s and was killed", 1));
	xfree_(until_text("daemon.log", "ended with status 3", 1));
	harness_stop(&h);
}

/* At most so many wait; the rest is counted. */
static void the_queue_is_bounded(void **state)
{
	void *context = zmq_ctx_new(), *socket;
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SlotSet m = TF__SLOT_SET__INIT;
	char *log;

	(void)state;
	start_with_script("sleep 1000", "notify_timeout_seconds: 10\n");
	socket = harness_socket(&h, context, NULL);
	r.version = TF_PROTOCOL_VERSION;
	for (r.id = 1; r.id <= 2 * (LIMIT_NOTICES + 20); r.id++) {
		fill_drain(&r, &m, "cpu0", r.id % 2 ? "again" : NULL);
		harness_send(socket, &r);
	}
	log = until_text("daemon.log", "notices are lost", 1);
	assert_non_null(strstr(log, "1000 wait already"));
	xfree(log);
	zmq_close(socket);
	zmq_ctx_term(context);
	harness_kill(&h, SIGKILL); /* one that leaves waits for the notice under way */
	harness_stop(&h);
}

/* ---- across the daemon's end */

#define HELD "[ -e %s/hold ] && { echo \"tried $NOTICE_ID\"; sleep 1000; }; "                      \
	     "echo \"$NOTICE_EVENT of $NOTICE_JOB is $NOTICE_ID\""

static void hold(bool on)
{
	char *path = xasprintf("%s/hold", h.folder);

	if (on)
		assert_ok(file_write(path, "", 0, 0600, &e), &e);
	else
		unlink(path);
	xfree(path);
}

/* A script that hangs while the file `hold` is there. */
static void start_holding(void)
{
	char *body, *path, *text;

	prepare();
	body = xasprintf(HELD, h.folder);
	path = script(body);
	text = xasprintf("notify_command: [\"%s\"]\nnotify_on: [\"job_end\"]\n"
			 "notify_timeout_seconds: 30\n",
			 path);
	write_config(text);
	hold(true);
	harness_start(&h);
	xfree(text);
	xfree(path);
	xfree(body);
}

static int count(const char *text, const char *words)
{
	int n = 0;

	for (const char *p = text; (p = strstr(p, words)) != NULL; p++)
		n++;
	return n;
}

/* What waited and what was being delivered comes from the next daemon, under the same id. */
static void a_killed_daemon_forgets_none(void **state)
{
	char *told, id[64], *first;

	(void)state;
	start_holding();
	for (int i = 0; i < 3; i++)
		harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	xfree_(until_text("told", "tried", 1));
	harness_kill(&h, SIGKILL);
	hold(false);
	harness_start(&h);
	told = until_text("told", "of 3 is", 1);
	assert_int_equal(sscanf(told, "tried %63s", id), 1);
	first = xasprintf("of 1 is %s\n", id);
	assert_int_equal(count(told, first), 1);
	assert_int_equal(count(told, "of 2 is"), 1);
	xfree(told);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	xfree_(until_text("told", "of 4 is", 1));
	harness_kill(&h, SIGTERM); /* what was delivered is not delivered again */
	harness_start(&h);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	told = until_text("told", "of 5 is", 1);
	assert_int_equal(count(told, "job_end of"), 5);
	xfree(told);
	xfree(first);
	harness_stop(&h);
}

/* One over which daemons end again and again is given up, and the next one comes. */
static void none_is_delivered_for_ever(void **state)
{
	char *told;

	(void)state;
	start_holding();
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	for (int start = 1; start < NOTICE_STARTS; start++) {
		xfree_(until_text("told", "tried 1-", start));
		harness_kill(&h, SIGKILL);
		harness_start(&h);
	}
	xfree_(until_text("told", "tried 1-", NOTICE_STARTS));
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	told = until_text("told", "tried 2-", 1);
	assert_int_equal(count(told, "tried 1-"), NOTICE_STARTS);
	xfree_(until_text("daemon.log", "daemons ended over it", 1));
	xfree(told);
	harness_kill(&h, SIGKILL);
	harness_stop(&h);
}

/* The daemon is killed at one commit after another, also where a job ends while none runs: whatever
 * ended has been told. */
#define FIRST_COMMIT 4 /* of a daemon that is ready */

static void each_end_on_disk_is_told(void **state)
{
	void *context = zmq_ctx_new(), *socket;
	char fault[40], told_of[40];
	uint64_t id = 0;

	(void)state;
	start_with_script("echo \"$NOTICE_EVENT of $NOTICE_JOB is $NOTICE_ID\"",
			  "notify_on: [\"job_end\"]\n");
	for (int commit = FIRST_COMMIT; commit < FIRST_COMMIT + 11; commit++) {
		harness_kill(&h, SIGKILL);
		snprintf(fault, sizeof fault, "store-commit:%d!", commit);
		h.fault = fault;
		harness_start(&h);
		socket = harness_socket(&h, context, NULL);
		harness_send_noops(socket, "quiet", 1, 4); /* they say nothing themselves */
		for (int i = 0; i < 30; i++) { /* it dies of the fault, or had too few commits */
			siginfo_t info = { 0 };

			waitid(P_PID, (id_t)h.pid, &info, WEXITED | WNOHANG | WNOWAIT);
			if (info.si_pid)
				break;
			clock_sleep_ms(10);
		}
		zmq_close(socket);
		harness_kill(&h, SIGKILL);
		h.fault = NULL;
		harness_start(&h);
		id = harness_noop(&h, "done"); /* those before it have ended then */
		harness_until(&h, id, TF__JOB_STATE__DONE);
		snprintf(told_of, sizeof told_of, "of %llu is", (unsigned long long)id);
		xfree_(until_text("told", told_of, 1));
	}
	for (uint64_t job = 1; job <= id; job++) {
		assert_int_equal(harness_state(&h, job), TF__JOB_STATE__DONE);
		snprintf(told_of, sizeof told_of, "of %llu is", (unsigned long long)job);
		xfree_(until_text("told", told_of, 1));
	}
	print_message("# %llu jobs\n", (unsigned long long)id);
	zmq_ctx_term(context);
	harness_stop(&h);
}

static void wrong_options_are_refused(void **state)
{
	static const struct {
		const char *config, *why;
	} wrong[] = {
		{ "notify_command: [\"tell\"]\n", "beginning with /" },
		{ "notify_command: [\"/nowhere/tell\"]\n", "cannot be run" },
		{ "notify_on: [\"job_ends\"]\n", "expected job_end, queue_empty or slot_drained" },
		{ "notify_on: [\"job_end state=running\"]\n", "none of done, failed, cancelled" },
		{ "notify_on: [\"queue_empty user=ann\"]\n", "only job_end has more" },
#ifdef HAVE_CURL
		{ "notify_url: \"ftp://example.com/\"\n", "expected https:// or http://" },
#else
		{ "notify_url: \"http://example.com/\"\n", "without libcurl" },
#endif
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		char text[2000] = "";

		prepare();
		write_config(wrong[i].config);
		assert_int_equal(harness_start_fails(&h, text, sizeof text), 1);
		if (!strstr(text, wrong[i].why))
			fail_msg("'%s' is not in: %s", wrong[i].why, text);
		harness_stop(&h);
	}
}

/* LIMIT_NOTICE_RULES are taken, one more is not. */
static void too_many_rules_are_refused(void **state)
{
	struct buf config = BUF_INIT;
	char text[2000] = "";

	(void)state;
	for (int more = 0; more < 2; more++) {
		prepare();
		buf_clear(&config);
		buf_text(&config, "notify_on: [queue_empty");
		for (size_t i = 1; i < LIMIT_NOTICE_RULES + (size_t)more; i++)
			buf_text(&config, ", queue_empty");
		buf_text(&config, "]\n");
		write_config(config.data);
		if (more)
			assert_in_range(harness_start_fails(&h, text, sizeof text), 1, 2);
		else
			harness_start(&h);
		harness_stop(&h);
	}
	assert_non_null(strstr(text, "notify_on"));
	buf_release(&config);
}

/* SIGHUP: another command; a wrong one changes nothing. */
static void a_reload_is_followed(void **state)
{
	char *text;

	(void)state;
	start_with_script(TELL, "notify_on: [\"slot_drained\"]\n");
	write_config("notify_command: [\"tell\"]\n");
	kill(h.pid, SIGHUP);
	xfree_(until_text("daemon.log", "the configuration stays as it was", 1));
	assert_ok(drain("cpu0", "one"), &e);
	xfree_(until_text("told", "slot_drained", 1));
	assert_ok(drain("cpu0", NULL), &e);
	text = xasprintf("notify_command: [\"%s/tell\"]\nnotify_on: [\"queue_empty\"]\n", h.folder);
	write_config(text);
	xfree(text);
	kill(h.pid, SIGHUP);
	xfree_(until_text("daemon.log", "the configuration was read again", 1));
	assert_ok(drain("cpu0", "two"), &e);
	assert_ok(drain("cpu0", NULL), &e);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	text = until_text("told", "queue_empty", 1);
	assert_null(strstr(text, "two"));
	xfree(text);
	harness_stop(&h);
}

#ifdef HAVE_CURL

/* ---- the address */

static int listen_here(int *port)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
	*port = ntohs(a.sin_port);
	return fd;
}

/* Takes one request and answers it; answer NULL: never. *body is the caller's. */
static int serve(int listener, const char *answer, char **body)
{
	struct pollfd item = { .fd = listener, .events = POLLIN };
	struct buf b = BUF_INIT;
	const char *head_end, *length;
	int fd;

	assert_int_equal(poll(&item, 1, PATIENCE_MS), 1);
	fd = accept(listener, NULL, NULL);
	assert_true(fd >= 0);
	for (;;) {
		ssize_t n;

		buf_reserve(&b, 4097);
		n = read(fd, b.data + b.len, 4096);
		assert_true(n > 0);
		b.len += (size_t)n;
		b.data[b.len] = 0;
		head_end = strstr(b.data, "\r\n\r\n");
		length = strstr(b.data, "Content-Length: ");
		if (head_end && length && strlen(head_end + 4) >= (size_t)atoi(length + 16))
			break;
	}
	assert_memory_equal(b.data, "POST /hook?key=secret HTTP/1.1\r\n", 32);
	assert_non_null(strstr(b.data, "Content-Type: application/json\r\n"));
	if (body)
		*body = xstrdup(head_end + 4);
	buf_release(&b);
	if (!answer)
		return fd;
	assert_int_equal(write(fd, answer, strlen(answer)), strlen(answer));
	close(fd);
	return -1;
}

#define ANSWER(status) "HTTP/1.1 " status "\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"

static int start_with_address(const char *more)
{
	char *text;
	int port, fd;

	prepare();
	fd = listen_here(&port);
	text = xasprintf("notify_url: \"http://127.0.0.1:%d/hook?key=secret\"\n%s", port, more);
	write_config(text);
	xfree(text);
	harness_start(&h);
	return fd;
}

static void an_address_is_told(void **state)
{
	char *body = NULL, *again = NULL;
	json_t *o;
	int fd;

	(void)state;
	fd = start_with_address("notify_on: [\"job_end state=done\", \"queue_empty\"]\n");
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	serve(fd, ANSWER("503 Not Now"), &body);
	serve(fd, ANSWER("204 Good"), &again);
	assert_string_equal(body, again);
	o = json_loads(body, 0, NULL);
	assert_non_null(o);
	assert_string_equal(json_string_value(json_object_get(o, "event")), "job_end");
	assert_int_equal(json_integer_value(json_object_get(o, "job")), 1);
	json_decref(o);
	xfree(body);
	xfree(again);
	serve(fd, ANSWER("200 OK"), &body);
	assert_non_null(strstr(body, "\"event\":\"queue_empty\""));
	xfree(body);
	close(fd);
	harness_stop(&h);
}

/* A no, a redirect, silence: logged without the secret, never in the daemon's way. */
static void an_address_in_trouble(void **state)
{
	int fd, silent;
	char *log;

	(void)state;
	fd = start_with_address("notify_on: [\"job_end\"]\nnotify_timeout_seconds: 1\n"
				"notify_retries: 0\n");
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	silent = serve(fd, NULL, NULL);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE); /* meanwhile */
	xfree_(until_text("daemon.log", "127.0.0.1: Timeout was reached", 1));
	close(silent);
	serve(fd, ANSWER("404 No"), NULL);
	xfree_(until_text("daemon.log", "127.0.0.1 answered with status 404", 1));
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	serve(fd, "HTTP/1.1 302 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
	      NULL);
	log = until_text("daemon.log", "answered with status 302", 1);
	assert_null(strstr(log, "key=secret"));
	xfree(log);
	close(fd);
	harness_stop(&h);
}

#endif

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_command_is_told),
		cmocka_unit_test(only_what_is_wanted),
		cmocka_unit_test(a_command_that_hangs_or_fails),
		cmocka_unit_test(the_queue_is_bounded),
		cmocka_unit_test(a_killed_daemon_forgets_none),
		cmocka_unit_test(none_is_delivered_for_ever),
		cmocka_unit_test(each_end_on_disk_is_told),
		cmocka_unit_test(wrong_options_are_refused),
		cmocka_unit_test(too_many_rules_are_refused),
		cmocka_unit_test(a_reload_is_followed),
#ifdef HAVE_CURL
		cmocka_unit_test(an_address_is_told),
		cmocka_unit_test(an_address_in_trouble),
#endif
	};

	return cmocka_run_group_tests_name("notices", tests, NULL, NULL);
}
