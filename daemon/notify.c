/* SPDX-License-Identifier: Apache-2.0
 * transfuse-notify, started by transfused for one notice: runs the administrator's command and
 * posts to the web address. What to do comes as JSON on descriptor 3 (an address may be a secret).
 * Leaves with 0, or with 1 and a line that says why. Every wait in it is bounded. */
#include "config.h"
#include "daemon/notify.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/err.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ORDER_FD 3
#define ORDER_BYTES_MAX (1u << 20)
#define WAIT_MOST_S 60
#define TRY_AGAIN 75 /* EX_TEMPFAIL: the command asks for it */

/* ---------------------------------------------------------------- the command */

/* NOTICE_JOB=12 for {"job": 12}. */
static void set_variables(const json_t *notice)
{
	const char *key, *text;
	json_t *value;

	json_object_foreach((json_t *)notice, key, value) {
		char *name = xasprintf("NOTICE_%s", key), *number = NULL;

		for (char *p = name; *p; p++)
			*p = (char)toupper((unsigned char)*p);
		if (json_is_integer(value))
			number = xasprintf("%" JSON_INTEGER_FORMAT, json_integer_value(value));
		text = number ? number : json_string_value(value);
		setenv(name, text ? text : "", 1);
		xfree(number);
		xfree(name);
	}
}

/* In the child: a group of its own, the notice as stdin, nothing said. */
static void become_command(const json_t *notice, int input, char *const *argv)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	setpgid(0, 0);
	set_variables(notice);
	if (null < 0 || dup2(input, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0 ||
	    dup2(null, STDERR_FILENO) < 0)
		_exit(126);
	execv(argv[0], argv);
	_exit(127);
}

/* Its exit status; negative: it took too long or was killed. */
static int wait_for(pid_t pid, int64_t timeout_ms, struct err *e)
{
	struct pollfd item = { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	int64_t until = clock_mono_ms() + timeout_ms, left = timeout_ms;
	int ready = 0, status = 0;

	while (ready <= 0 && left > 0) {
		ready = poll(&item, 1, (int)left);
		left = until - clock_mono_ms();
	}
	kill(-pid, SIGKILL); /* and what it has left behind */
	waitpid(pid, &status, 0);
	if (item.fd >= 0)
		close(item.fd);
	FAIL_IF(ready <= 0, e, TF_ETIMEOUT, "the command took more than %lld s and was killed",
		(long long)timeout_ms / 1000);
	FAIL_IF(WIFSIGNALED(status), e, TF_EREFUSED, "the command was killed by signal %d",
		WTERMSIG(status));
	return WEXITSTATUS(status);
}

static int run_command(const json_t *notice, char *const *argv, int64_t timeout_ms, bool *again,
		       struct err *e)
{
	int input = memfd_create("notice", MFD_CLOEXEC), rc;
	pid_t pid = -1;

	rc = input < 0 ? err_errno(e, "a file for the command") : 0;
	if (rc == 0 && (json_dumpfd(notice, input, JSON_COMPACT) < 0 ||
			write(input, "\n", 1) != 1 || lseek(input, 0, SEEK_SET) < 0))
		rc = err_errno(e, "the command's input");
	if (rc == 0) {
		pid = fork();
		if (pid == 0)
			become_command(notice, input, argv);
		if (pid < 0)
			rc = err_errno(e, "cannot start the command");
	}
	if (input >= 0)
		close(input);
	TRY(rc);
	setpgid(pid, pid); /* whichever comes first */
	rc = wait_for(pid, timeout_ms, e);
	*again = rc == TRY_AGAIN;
	FAIL_IF(rc > 0, e, TF_EREFUSED, "the command %s ended with status %d", argv[0], rc);
	return rc;
}

/* ---------------------------------------------------------------- tries */

struct order {
	json_t *json; /* owns the texts */
	const json_t *notice;
	char **command; /* NULL-ended */
	const char *url;
	int64_t timeout_ms, retries;
};

static int deliver_once(const struct order *o, bool web, bool *again, struct err *e)
{
	char *body;
	int rc;

	if (!web)
		return run_command(o->notice, o->command, o->timeout_ms, again, e);
	body = json_dumps(o->notice, JSON_COMPACT);
	rc = web_post(o->url, body, o->timeout_ms, again, e);
	free(body);
	return rc;
}

static int deliver(const struct order *o, bool web, struct err *e)
{
	bool again = false;
	int rc = deliver_once(o, web, &again, e);
	int64_t pause_s = 1;

	for (int64_t i = 0; rc < 0 && again && i < o->retries; i++) {
		clock_sleep_ms(1000 * pause_s);
		pause_s = 2 * pause_s < WAIT_MOST_S ? 2 * pause_s : WAIT_MOST_S;
		err_clear(e);
		rc = deliver_once(o, web, &again, e);
	}
	return rc;
}

/* ---------------------------------------------------------------- the order */

static void read_order(struct order *o)
{
	struct buf text = BUF_INIT;
	json_t *command, *item;
	size_t i;
	ssize_t n = 1;

	while (n > 0 && text.len < ORDER_BYTES_MAX) {
		buf_reserve(&text, 4096);
		n = pread(ORDER_FD, text.data + text.len, 4096, (off_t)text.len);
		text.len += n > 0 ? (size_t)n : 0;
	}
	close(ORDER_FD);
	o->json = text.len ? json_loadb(text.data, text.len, 0, NULL) : NULL;
	buf_release(&text);
	o->notice = json_object_get(o->json, "notice");
	o->url = json_string_value(json_object_get(o->json, "url"));
	o->timeout_ms = 1000 * json_integer_value(json_object_get(o->json, "timeout_s"));
	o->retries = json_integer_value(json_object_get(o->json, "retries"));
	command = json_object_get(o->json, "command");
	if (!json_is_object(o->notice) || !o->url || o->timeout_ms <= 0 || !json_is_array(command))
		die(2, "no order on descriptor 3: transfused starts this program");
	o->command = xcalloc(json_array_size(command) + 1, sizeof *o->command);
	json_array_foreach(command, i, item)
		o->command[i] = (char *)json_string_value(item);
}

int main(void)
{
	struct err command = ERR_INIT, web = ERR_INIT;
	struct order o;
	int rc = 0;

	die_set_program("transfuse-notify");
	signal(SIGPIPE, SIG_IGN);
	read_order(&o);
	if (o.command[0])
		rc = deliver(&o, false, &command);
	if (*o.url && deliver(&o, true, &web) < 0)
		rc = -1;
	if (rc < 0)
		printf("%s%s%s\n", command.text, *command.text && *web.text ? "; " : "", web.text);
	xfree(o.command);
	json_decref(o.json);
	return rc < 0;
}
