/* SPDX-License-Identifier: Apache-2.0
 * `transfuse top` on a terminal of its own: it draws, follows changes and the terminal's size, and
 * leaves the terminal as it was however it ends. */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <utmp.h>

#define PATIENCE_MS 60000
#define ENTER "\033[?1049h"
#define LEAVE "\033[?1049l"

static struct harness h;
static struct err e;

/* The terminal; its other end is kept open here too, to see how it was left. */
static struct {
	int master, slave;
	pid_t pid;
	struct termios before;
	struct buf seen;
} tty;

static void begin(int columns)
{
	struct winsize size = { .ws_row = 24, .ws_col = (unsigned short)columns };
	const char *build = getenv("TF_BUILD");
	char program[1000];

	snprintf(program, sizeof program, "%s/transfuse", build ? build : ".");
	assert_int_equal(openpty(&tty.master, &tty.slave, NULL, NULL, &size), 0);
	assert_int_equal(tcgetattr(tty.slave, &tty.before), 0);
	buf_clear(&tty.seen);
	tty.pid = fork();
	if (tty.pid == 0) {
		close(tty.master);
		login_tty(tty.slave);
		setenv("TRANSFUSE_STATE", h.state, 1);
		setenv("TERM", "xterm", 1);
		setenv("ASAN_OPTIONS", "handle_segv=0:allow_user_segv_handler=1", 0);
		execl(program, program, "top", "--every", "0.1", (char *)NULL);
		_exit(127);
	}
	assert_true(tty.pid > 0);
}

/* Reads until the text has come since the last call of forget(). */
static void until(const char *text)
{
	int64_t end = clock_mono_ms() + PATIENCE_MS;
	char part[4096];

	for (;;) {
		struct pollfd item = { .fd = tty.master, .events = POLLIN };
		ssize_t n;

		buf_text(&tty.seen, "");
		if (strstr(tty.seen.data, text))
			return;
		if (clock_mono_ms() > end)
			fail_msg("'%s' is not in: %s", text, tty.seen.data);
		if (poll(&item, 1, 100) <= 0)
			continue;
		n = read(tty.master, part, sizeof part);
		if (n > 0)
			buf_append(&tty.seen, part, (size_t)n);
	}
}

static void forget(void)
{
	buf_clear(&tty.seen);
}

static bool is_as_before(void)
{
	struct termios now;

	assert_int_equal(tcgetattr(tty.slave, &now), 0);
	return now.c_lflag == tty.before.c_lflag && now.c_iflag == tty.before.c_iflag &&
	       now.c_cc[VMIN] == tty.before.c_cc[VMIN];
}

/* It ends, and the terminal is as it was. */
static int end(void)
{
	int status = 0;

	until(LEAVE);
	assert_int_equal(waitpid(tty.pid, &status, 0), tty.pid);
	assert_non_null(strstr(tty.seen.data, "\033[?25h"));
	assert_true(is_as_before());
	close(tty.master);
	close(tty.slave);
	return status;
}

static int prepare(void **state)
{
	(void)state;
	harness_init(&h);
	harness_start(&h);
	return 0;
}

static int finish(void **state)
{
	(void)state;
	harness_stop(&h);
	buf_release(&tty.seen);
	return 0;
}

static void it_draws_and_follows(void **state)
{
	uint64_t running, queued;

	(void)state;
	begin(200);
	until(ENTER);
	until("cpu0");
	assert_false(is_as_before());
	running = harness_noop(&h, "wait");
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	queued = harness_noop(&h, "done");
	until("1 running");
	until("1 queued");
	assert_ok(harness_cancel(h.line, queued, &e), &e);
	assert_ok(harness_cancel(h.line, running, &e), &e);
	forget();
	until("cpu0  cpu     free");
	assert_int_equal(write(tty.master, "q", 1), 1);
	assert_int_equal(end(), 0);
}

/* The longest line of one picture: what is between two moves to its first place. */
static int widest(void)
{
	const char *p = strstr(tty.seen.data, "\033[H");
	int widest = 0, now = 0;

	assert_non_null(p);
	for (p += 3; *p && strncmp(p, "\033[H", 3) != 0; p++) {
		if (*p == '\033') {
			while (*p && !((*p >= 'A' && *p <= 'Z') || (*p >= 'a' && *p <= 'z')))
				p++;
			if (!*p)
				break;
			continue;
		}
		now = *p == '\r' || *p == '\n' ? 0 : now + 1;
		widest = now > widest ? now : widest;
	}
	return widest;
}

/* Has the next picture that comes at the beginning of what was seen, whole. */
static void next_picture(void)
{
	char *p;

	forget();
	until("\033[H");
	p = strstr(tty.seen.data, "\033[H");
	memmove(tty.seen.data, p, strlen(p) + 1);
	tty.seen.len = strlen(tty.seen.data);
	while (!strstr(tty.seen.data + 3, "\033[H")) {
		tty.seen.data[0] = ' '; /* so that the next one is waited for */
		until("\033[H");
		tty.seen.data[0] = '\033';
	}
}

static void it_takes_another_size(void **state)
{
	struct winsize size = { .ws_row = 5, .ws_col = 30 };
	int64_t end_ms;
	int rows = 1;
	char *p, *stop;

	(void)state;
	begin(120);
	until("cpu0");
	assert_in_range(widest(), 31, 120);
	assert_int_equal(ioctl(tty.slave, TIOCSWINSZ, &size), 0);
	end_ms = clock_mono_ms() + PATIENCE_MS;
	do /* those of the old size that were drawn before are still to be read */
		next_picture();
	while (widest() > 30 && clock_mono_ms() < end_ms);
	next_picture();
	assert_in_range(widest(), 10, 30);
	stop = strstr(tty.seen.data + 3, "\033[H");
	for (p = tty.seen.data; p < stop; p++)
		rows += *p == '\n';
	assert_int_equal(rows, 5);
	assert_int_equal(write(tty.master, "q", 1), 1);
	assert_int_equal(end(), 0);
}

/* So that jobs are seen below them. */
static void free_slots_are_counted(void **state)
{
	(void)state;
	harness_kill(&h, SIGTERM);
	h.slots = "64";
	harness_start(&h);
	begin(120);
	until("and 60 more that are free");
	assert_null(strstr(tty.seen.data, "cpu4"));
	assert_int_equal(write(tty.master, "q", 1), 1);
	assert_int_equal(end(), 0);
	harness_kill(&h, SIGTERM);
	h.slots = NULL;
	harness_start(&h);
}

static void any_signal_gives_the_terminal_back(void **state)
{
	static const int signals[] = { SIGTERM, SIGHUP, SIGQUIT, SIGSEGV, SIGABRT };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(signals); i++) {
		int status;

		begin(80);
		until("cpu0");
		assert_int_equal(kill(tty.pid, signals[i]), 0);
		status = end();
		assert_true(WIFSIGNALED(status));
		assert_int_equal(WTERMSIG(status), signals[i]);
	}
	begin(80);
	until("cpu0");
	assert_int_equal(write(tty.master, "\003", 1), 1); /* ctrl-C */
	assert_true(WTERMSIG(end()) == SIGINT);
}

static void it_stops_and_goes_on(void **state)
{
	int status;

	(void)state;
	begin(80);
	until("cpu0");
	assert_int_equal(write(tty.master, "\032", 1), 1); /* ctrl-Z */
	assert_int_equal(waitpid(tty.pid, &status, WUNTRACED), tty.pid);
	assert_true(WIFSTOPPED(status));
	until(LEAVE);
	assert_true(is_as_before());
	forget();
	assert_int_equal(kill(tty.pid, SIGCONT), 0);
	until(ENTER);
	until("cpu0");
	assert_false(is_as_before());
	forget();
	assert_int_equal(write(tty.master, "q", 1), 1);
	assert_int_equal(end(), 0);
}

static void a_daemon_that_goes_is_waited_for(void **state)
{
	(void)state;
	begin(120);
	until("cpu0");
	harness_kill(&h, SIGKILL);
	until("NO ANSWER");
	harness_start(&h);
	forget();
	until("\033[1mtransfused"); /* the first line again */
	assert_int_equal(write(tty.master, "q", 1), 1);
	assert_int_equal(end(), 0);
}

static size_t overview(uint32_t jobs, uint64_t *left_out, int *code)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__OverviewAsk m = TF__OVERVIEW_ASK__INIT;
	Tf__Reply *reply = NULL;
	size_t n = 0;

	m.has_jobs = true;
	m.jobs = jobs;
	r.body_case = TF__REQUEST__BODY_OVERVIEW;
	r.overview = &m;
	err_clear(&e);
	*code = harness_call(h.line, &r, &reply, &e);
	if (*code == 0) {
		n = reply->overview->n_job;
		*left_out = reply->overview->left_out;
		for (size_t i = 1; i < n; i++)
			assert_true(reply->overview->job[i - 1]->id < reply->overview->job[i]->id);
		if (n > 1) {
			assert_int_equal(reply->overview->job[0]->state, TF__JOB_STATE__RUNNING);
			assert_int_equal(reply->overview->job[1]->place, 1);
			assert_int_equal(reply->overview->slots->n_user, 1);
			assert_int_equal(reply->overview->slots->user[0]->running, 1);
			assert_int_equal(reply->overview->slots->user[0]->queued,
					 LIMIT_OVERVIEW_JOBS + 4);
		}
	}
	if (reply)
		tf__reply__free_unpacked(reply, NULL);
	return n;
}

static void the_first_in_line_are_shown(void **state)
{
	uint64_t running = harness_noop(&h, "wait"), left_out = 0;
	int code;

	(void)state;
	for (size_t i = 0; i < LIMIT_OVERVIEW_JOBS + 4; i++)
		harness_noop(&h, "done");
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	assert_int_equal(overview(0, &left_out, &code), 0);
	assert_int_equal(left_out, LIMIT_OVERVIEW_JOBS + 5);
	assert_int_equal(overview(3, &left_out, &code), 3);
	assert_int_equal(left_out, LIMIT_OVERVIEW_JOBS + 2);
	assert_int_equal(overview(LIMIT_OVERVIEW_JOBS, &left_out, &code), LIMIT_OVERVIEW_JOBS);
	assert_int_equal(left_out, 5);
	overview(LIMIT_OVERVIEW_JOBS + 1, &left_out, &code);
	assert_int_equal(code, TF_ELIMIT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(it_draws_and_follows),
		cmocka_unit_test(it_takes_another_size),
		cmocka_unit_test(free_slots_are_counted),
		cmocka_unit_test(any_signal_gives_the_terminal_back),
		cmocka_unit_test(it_stops_and_goes_on),
		cmocka_unit_test(a_daemon_that_goes_is_waited_for),
		cmocka_unit_test(the_first_in_line_are_shown),
	};

	return cmocka_run_group_tests_name("top", tests, prepare, finish);
}
