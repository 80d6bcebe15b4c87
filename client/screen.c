/* SPDX-License-Identifier: Apache-2.0
 * The whole terminal as a screen: its alternate page, no cursor, keys as they are pressed. Before
 * this process ends or stops, by whatever signal, all is put back as it was: the handler does it,
 * then lets the signal take its course. One screen a process. */
#include "config.h"
#include "client/client.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#define ENTER "\033[?1049h\033[?25l\033[2J"
#define LEAVE "\033[?25h\033[?1049l"

static const int endings[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGSEGV, SIGBUS,
			       SIGABRT, SIGFPE, SIGILL, SIGXCPU, SIGALRM };

static struct {
	struct termios before, during;
	bool keys; /* stdin is a terminal too */
	volatile sig_atomic_t open, stale;
} screen;

/* ---- called by handlers too: nothing but what POSIX allows there */

static void put_plain(const char *text)
{
	size_t left = strlen(text);

	while (left > 0) {
		ssize_t n = write(STDOUT_FILENO, text, left);

		if (n < 0 && errno != EINTR)
			return;
		if (n > 0) {
			text += n;
			left -= (size_t)n;
		}
	}
}

static void enter(void)
{
	if (screen.keys)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &screen.during);
	put_plain(ENTER);
	screen.open = screen.stale = 1;
}

static void leave(void)
{
	if (!screen.open)
		return;
	screen.open = 0;
	put_plain(LEAVE);
	if (screen.keys)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &screen.before);
}

static void on_end(int signal_number)
{
	leave();
	signal(signal_number, SIG_DFL);
	raise(signal_number); /* once this handler returns */
}

static void on_stop(int signal_number)
{
	int kept = errno;

	(void)signal_number;
	leave();
	raise(SIGSTOP);
	enter();
	errno = kept;
}

static void on_resize(int signal_number)
{
	(void)signal_number;
	screen.stale = 1;
}

/* ---- the screen */

static void handle(int signal_number, void (*handler)(int))
{
	struct sigaction action = { .sa_handler = handler };

	sigaction(signal_number, &action, NULL);
}

void screen_open(void)
{
	screen.keys = tcgetattr(STDIN_FILENO, &screen.before) == 0;
	screen.during = screen.before;
	screen.during.c_lflag &= (tcflag_t)~(ICANON | ECHO);
	screen.during.c_cc[VMIN] = 0;
	screen.during.c_cc[VTIME] = 0;
	for (size_t i = 0; i < ARRAY_LEN(endings); i++)
		handle(endings[i], on_end);
	handle(SIGTSTP, on_stop);
	handle(SIGWINCH, on_resize);
	signal(SIGTTOU, SIG_IGN); /* putting it back must not stop us */
	fflush(stdout);
	enter();
}

void screen_close(void)
{
	leave();
	for (size_t i = 0; i < ARRAY_LEN(endings); i++)
		handle(endings[i], SIG_DFL);
	handle(SIGTSTP, SIG_DFL);
	handle(SIGWINCH, SIG_DFL);
}

void screen_size(int *width, int *height)
{
	struct winsize size;

	*width = 80;
	*height = 24;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col && size.ws_row) {
		*width = size.ws_col;
		*height = size.ws_row;
	}
}

void screen_paint(char *text)
{
	struct buf out = BUF_INIT;
	bool head = true;
	int width, height;

	screen.stale = 0;
	screen_size(&width, &height);
	buf_text(&out, "\033[H");
	for (int row = 0; row < height; row++) {
		char *end = text ? strchr(text, '\n') : NULL;

		if (end)
			*end = 0;
		if (text)
			text_cut(text, width);
		/* cleared first: behind a full line the cursor is still on its last place */
		buf_printf(&out, "\033[K%s%s%s%s", head && text ? "\033[1m" : "", text ? text : "",
			   head && text ? "\033[m" : "", row + 1 < height ? "\r\n" : "");
		head = text && !*text;
		text = end ? end + 1 : NULL;
	}
	put_plain(out.data);
	buf_release(&out);
}

int screen_key(int64_t timeout_ms)
{
	struct pollfd item = { .fd = screen.keys ? STDIN_FILENO : -1, .events = POLLIN };
	unsigned char key;

	if (screen.stale)
		return SCREEN_STALE;
	if (poll(&item, 1, (int)timeout_ms) > 0 && item.revents) {
		ssize_t n = read(STDIN_FILENO, &key, 1);

		if (n == 1)
			return key;
		if (n == 0 || errno != EINTR)
			screen.keys = false; /* nobody is there to press any */
	}
	return screen.stale ? SCREEN_STALE : SCREEN_NOTHING;
}
