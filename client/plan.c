/* SPDX-License-Identifier: Apache-2.0
 * Memory and sizes of a training run: only the worker knows its plan, so its program is asked.
 * It reads {"experiment": TEXT, "device": "cpu", "facts": {...}} and prints one object, or
 * {"error": TEXT}. */
#include "config.h"
#include "client/client.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORKER "transfuse-worker"
#define PLAN_BYTES_MAX (1u << 20)

/* Beside this program, in ../libexec, else by PATH. */
static char *worker_program(void)
{
	static const char *const places[] = { "", "../libexec/", "../libexec/transfused/" };
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	char *slash;

	self[n > 0 ? n : 0] = 0;
	slash = strrchr(self, '/');
	for (size_t i = 0; slash && i < ARRAY_LEN(places); i++) {
		char *path;

		*slash = 0;
		path = xasprintf("%s/%s" WORKER, self, places[i]);
		if (access(path, X_OK) == 0)
			return path;
		xfree(path);
	}
	return xstrdup(WORKER);
}

/* Starts the program with stdin from `in` and stdout to `out`. */
static pid_t start(const char *program, int in, int out)
{
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0)
		_exit(127);
	execlp(program, WORKER, "--plan", (char *)NULL);
	_exit(127);
}

static int read_all(int fd, struct buf *out, size_t most, struct err *e)
{
	for (;;) {
		ssize_t n;

		buf_reserve(out, 4096);
		n = read(fd, out->data + out->len, 4096);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(e, "the answer of " WORKER);
		if (n == 0)
			break;
		out->len += (size_t)n;
		FAIL_IF(out->len > most, e, TF_ELIMIT, WORKER " --plan printed over %zu bytes",
			most);
	}
	buf_reserve(out, 1);
	out->data[out->len] = 0;
	return 0;
}

/* The question as a file without a name, so that neither side waits for the other. */
static int unnamed_file(const void *data, size_t len, int *fd, struct err *e)
{
	FILE *f = tmpfile();
	int rc;

	if (!f)
		return err_errno(e, "a temporary file");
	*fd = dup(fileno(f));
	fclose(f);
	if (*fd < 0)
		return err_errno(e, "a temporary file");
	rc = file_write_all(*fd, data, len, "a temporary file", e);
	if (rc == 0 && lseek(*fd, 0, SEEK_SET) < 0)
		rc = err_errno(e, "a temporary file");
	return rc;
}

/* The program's own sentence when it gave one. */
static int plan_failed(const char *answer, int status, struct err *e)
{
	json_t *o = answer ? json_loads(answer, 0, NULL) : NULL;
	const char *text = json_string_value(json_object_get(o, "error"));

	if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
		err_set(e, TF_ENOTFOUND, "the program " WORKER " is not found; expected beside "
			"this program, in ../libexec or on PATH");
	else if (text)
		err_set(e, TF_EINVALID, "%s", text);
	else
		err_set(e, TF_EINTERNAL, WORKER " --plan failed (status %d)",
			WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
	json_decref(o);
	return e && e->code ? e->code : TF_EINTERNAL;
}

static int ask_worker(const char *question, struct buf *answer, struct err *e)
{
	int in = -1, out[2] = { -1, -1 }, status = 0, rc;
	char *program = worker_program();
	pid_t pid = -1;

	rc = unnamed_file(question, strlen(question), &in, e);
	if (rc == 0 && (pipe2(out, O_CLOEXEC) < 0 || (pid = start(program, in, out[1])) < 0))
		rc = err_errno(e, "starting %s", program);
	if (out[1] >= 0)
		close(out[1]);
	if (rc == 0)
		rc = read_all(out[0], answer, PLAN_BYTES_MAX, e);
	if (out[0] >= 0)
		close(out[0]);
	if (pid > 0 && waitpid(pid, &status, 0) < 0 && rc == 0)
		rc = err_errno(e, "%s", program);
	if (rc == 0 && status != 0)
		rc = plan_failed(answer->data, status, e);
	if (in >= 0)
		close(in);
	xfree(program);
	return rc;
}

int plan_experiment(const char *experiment, const char *device, const json_t *facts, json_t **plan,
		    struct err *e)
{
	json_t *question = json_object();
	struct buf answer = BUF_INIT;
	json_error_t why;
	char *text;
	int rc;

	json_object_set_new(question, "experiment", json_string(experiment));
	json_object_set_new(question, "device", json_string(device ? device : "cpu"));
	json_object_set(question, "facts", (json_t *)facts);
	text = json_dumps(question, JSON_COMPACT);
	json_decref(question);
	FAIL_IF(!text, e, TF_EINVALID, "the experiment is not UTF-8 text");
	rc = ask_worker(text, &answer, e);
	free(text);
	if (rc == 0) {
		*plan = json_loads(answer.data, 0, &why);
		if (!json_is_object(*plan)) {
			json_decref(*plan);
			rc = err_set(e, TF_EINTERNAL, WORKER " --plan printed no object: %s",
				     why.text);
		}
	}
	buf_release(&answer);
	return rc;
}

/* ---- for people */

static void print_figure(const char *key, const json_t *value)
{
	char text[FORMAT_MAX], *safe;

	if (json_is_string(value)) {
		safe = text_safe(json_string_value(value));
		printf("%s: %s\n", key, safe);
		xfree(safe);
	} else if (json_is_number(value) && (strstr(key, "bytes") || strstr(key, "rss"))) {
		format_bytes((uint64_t)json_number_value(value), text);
		printf("%s: %s\n", key, text);
	} else if (json_is_integer(value)) {
		format_count((uint64_t)json_integer_value(value), text);
		printf("%s: %s\n", key, text);
	} else if (json_is_real(value)) {
		printf("%s: %.3g\n", key, json_real_value(value));
	}
}

void print_plan(const json_t *plan)
{
	static const char *const head[] = { "memory of", "size" };
	const json_t *bytes = json_object_get(plan, "bytes");
	const json_t *assumed = json_object_get(plan, "assumed");
	const char *key;
	json_t *value;
	char text[FORMAT_MAX];
	struct table t;

	json_object_foreach((json_t *)plan, key, value)
		print_figure(key, value);
	if (json_object_size(assumed)) {
		puts("assumed (--pieces and --latent change it):");
		print_json_for_people(assumed, 2);
	}
	if (!json_is_object(bytes))
		return;
	table_init(&t, "lr", head);
	json_object_foreach((json_t *)bytes, key, value) {
		format_bytes((uint64_t)json_number_value(value), text);
		table_add(&t, (const char *[]){ key, text });
	}
	table_print(&t);
}
