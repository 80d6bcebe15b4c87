/* SPDX-License-Identifier: Apache-2.0
 * The daemon's side of notices; see notice.h. */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOTIFY_PROGRAM "transfuse-notify"
#define REASON_BYTES 1000
#define SAID_BYTES 400 /* of what the program says about a failure */
#define SPARE_MS 10000 /* beyond what the program grants itself */
#define WAIT_MOST_S 60 /* between two tries; see notify.c */

static const char *const event_names[NOTICE_EVENTS] = { "job_end", "queue_empty", "slot_drained" };

/* ---------------------------------------------------------------- options */

static int take_states(const char *text, uint32_t *states, struct err *e)
{
	char *copy = xstrdup(text), *save = NULL;
	int rc = 0;

	for (char *word = strtok_r(copy, ",", &save); word && rc == 0;
	     word = strtok_r(NULL, ",", &save)) {
		int s = TF__JOB_STATE__DONE;

		while (s <= TF__JOB_STATE__CANCELLED &&
		       strcmp(job_state_name((Tf__JobState)s), word) != 0)
			s++;
		if (s > TF__JOB_STATE__CANCELLED)
			rc = err_set(e, TF_EINVALID,
				     "state '%.20s' is none of done, failed, cancelled", word);
		else
			*states |= 1u << s;
	}
	xfree(copy);
	return rc;
}

static int take_word(const char *word, struct notice_rule *rule, struct err *e)
{
	FAIL_IF(rule->event != NOTICE_JOB_END, e, TF_EINVALID, "'%.100s': only job_end has more",
		word);
	if (strncmp(word, "state=", 6) == 0)
		return take_states(word + 6, &rule->states, e);
	FAIL_IF(strncmp(word, "user=", 5) != 0, e, TF_EINVALID,
		"'%.100s', expected state=STATE,... or user=NAME", word);
	TRY(name_check("user", word + 5, e));
	snprintf(rule->user, sizeof rule->user, "%s", word + 5);
	return 0;
}

/* "job_end state=failed,cancelled user=ada" */
static int rule_read(const char *text, struct notice_rule *rule, struct err *e)
{
	char *copy = xstrdup(text), *save = NULL, *word = strtok_r(copy, " \t", &save);
	int rc = 0;

	*rule = (struct notice_rule){ .event = NOTICE_JOB_END };
	while (word && rule->event < NOTICE_EVENTS && strcmp(event_names[rule->event], word) != 0)
		rule->event++;
	if (!word || rule->event == NOTICE_EVENTS)
		rc = err_set(e, TF_EINVALID, "expected job_end, queue_empty or slot_drained");
	while (rc == 0 && (word = strtok_r(NULL, " \t", &save)))
		rc = take_word(word, rule, e);
	if (rc < 0)
		err_prefix(e, "notify_on '%.200s'", text);
	xfree(copy);
	return rc;
}

static int check_url(const char *url, struct err *e)
{
	if (!*url)
		return 0;
#ifndef HAVE_CURL
	return err_set(e, TF_EUNSUPPORTED,
		       "notify_url: this program was built without libcurl; notify_command works");
#else
	FAIL_IF(strncmp(url, "https://", 8) != 0 && strncmp(url, "http://", 7) != 0, e, TF_EINVALID,
		"notify_url is '%.20s...', expected https:// or http://", url);
	return 0;
#endif
}

int notices_read(const struct options *o, struct notice_rule *rules, size_t *count, struct err *e)
{
	struct notice_rule rule;

	TRY(check_url(o->notify_url, e));
	if (o->notify_command.count) {
		const char *program = o->notify_command.text[0];

		FAIL_IF(*program != '/', e, TF_EINVALID,
			"notify_command is '%.200s', expected a whole path, beginning with /",
			program);
		FAIL_IF(access(program, X_OK) < 0, e, TF_EINVALID,
			"notify_command '%.200s' cannot be run: %s", program, strerror(errno));
	}
	FAIL_IF(o->notify_on.count > LIMIT_NOTICE_RULES, e, TF_ELIMIT,
		"notify_on has %zu entries, at most %u are allowed", o->notify_on.count,
		LIMIT_NOTICE_RULES);
	for (size_t i = 0; i < o->notify_on.count; i++) {
		TRY(rule_read(o->notify_on.text[i], &rule, e));
		if (rules)
			rules[i] = rule;
	}
	if (count)
		*count = o->notify_on.count;
	return 0;
}

int notices_configure(struct daemon *d, struct err *e)
{
	struct notices *n = &d->notices;

	TRY(notices_read(&d->options, n->rule, &n->rules, e));
	n->wanted = *d->options.notify_url || d->options.notify_command.count;
	return 0;
}

/* ---------------------------------------------------------------- the queue */

static bool is_wanted(const struct daemon *d, enum notice_event event, const Tf__Job *j)
{
	const struct notices *n = &d->notices;

	if (!n->wanted || !n->open)
		return false;
	for (size_t i = 0; i < n->rules; i++) {
		const struct notice_rule *rule = &n->rule[i];

		if (rule->event != event)
			continue;
		if (!j || ((!rule->states || rule->states >> j->state & 1) &&
			   (!*rule->user || (j->user && strcmp(rule->user, j->user) == 0))))
			return true;
	}
	return n->rules == 0;
}

/* Takes the object. */
static void add(struct daemon *d, enum notice_event event, json_t *o)
{
	struct notices *n = &d->notices;
	char host[256] = "", now[CLOCK_TEXT_MAX];

	if (n->count == LIMIT_NOTICES) {
		n->lost++;
		json_decref(o);
		return;
	}
	gethostname(host, sizeof host - 1);
	clock_format_ms(clock_wall_ms(), now);
	json_object_set_new(o, "event", json_string(event_names[event]));
	json_object_set_new(o, "time", json_string(now));
	json_object_set_new(o, "host", json_string(host));
	n->text[(n->first + n->count++) % LIMIT_NOTICES] = json_dumps(o, JSON_COMPACT);
	n->fresh++;
	json_decref(o);
}

static void drop_first(struct notices *n)
{
	free(n->text[n->first]);
	n->text[n->first] = NULL;
	n->first = (n->first + 1) % LIMIT_NOTICES;
	n->count--;
}

/* Cut to a length, between two characters. */
static json_t *cut_text(const char *text)
{
	size_t len = text ? strnlen(text, REASON_BYTES) : 0;
	json_t *value = NULL;

	while (text && !(value = json_stringn(text, len)) && len > 0)
		len--;
	return value ? value : json_null();
}

static json_t *time_text(protobuf_c_boolean has, int64_t ms)
{
	char text[CLOCK_TEXT_MAX];

	if (!has || ms == 0)
		return json_null();
	clock_format_ms(ms, text);
	return json_string(text);
}

void notice_job_end(struct daemon *d, const Tf__Job *j)
{
	json_t *o;

	if (!is_wanted(d, NOTICE_JOB_END, j))
		return;
	o = json_object();
	json_object_set_new(o, "job", json_integer((json_int_t)j->id));
	json_object_set_new(o, "name", cut_text(j->name));
	json_object_set_new(o, "kind", json_string(job_kind_name(j->kind)));
	json_object_set_new(o, "user", cut_text(j->user));
	json_object_set_new(o, "project", cut_text(j->project));
	json_object_set_new(o, "state", json_string(job_state_name(j->state)));
	json_object_set_new(o, "reason", cut_text(j->reason));
	json_object_set_new(o, "attempt", json_integer(j->attempt));
	json_object_set_new(o, "slot", cut_text(j->slot));
	json_object_set_new(o, "submitted", time_text(j->has_submitted, j->submitted));
	json_object_set_new(o, "started", time_text(j->has_started, j->started));
	json_object_set_new(o, "ended", time_text(j->has_ended, j->ended));
	add(d, NOTICE_JOB_END, o);
}

/* Held ones do not count: nothing happens with them by itself. */
void notice_jobs_ended(struct daemon *d)
{
	const struct live *l = &d->live;

	if (!is_wanted(d, NOTICE_QUEUE_EMPTY, NULL))
		return;
	for (size_t i = 0; i < l->count; i++)
		if (l->job[i] && l->job[i]->state != TF__JOB_STATE__HELD)
			return;
	add(d, NOTICE_QUEUE_EMPTY, json_object());
}

void notice_slot_drained(struct daemon *d, const char *slot, const char *reason, const char *by)
{
	json_t *o;

	if (!is_wanted(d, NOTICE_SLOT_DRAINED, NULL))
		return;
	o = json_object();
	json_object_set_new(o, "slot", json_string(slot));
	json_object_set_new(o, "reason", cut_text(reason));
	json_object_set_new(o, "by", *by ? cut_text(by) : json_null());
	add(d, NOTICE_SLOT_DRAINED, o);
}

/* ---------------------------------------------------------------- delivering */

/* What the program is told on its descriptor 3. */
static char *order_text(const struct daemon *d)
{
	const struct options *o = &d->options;
	json_t *order = json_object(), *command = json_array();
	char *text;

	for (size_t i = 0; i < o->notify_command.count; i++)
		json_array_append_new(command, json_string(o->notify_command.text[i]));
	json_object_set_new(order, "command", command);
	json_object_set_new(order, "url", json_string(o->notify_url));
	json_object_set_new(order, "timeout_s", json_integer(o->notify_timeout_seconds));
	json_object_set_new(order, "retries", json_integer(o->notify_retries));
	json_object_set_new(order, "notice",
			    json_loads(d->notices.text[d->notices.first], 0, NULL));
	text = json_dumps(order, JSON_COMPACT);
	json_decref(order);
	return text;
}

static int start_program(struct daemon *d, struct err *e)
{
	struct notices *n = &d->notices;
	const struct options *o = &d->options;
	char *program = program_beside(NOTIFY_PROGRAM), *text = order_text(d);
	char *argv[] = { program, NULL };
	struct spawn s = { .argv = argv };
	int order = memfd_create("notice", MFD_CLOEXEC), rc;

	n->output = memfd_create("notified", MFD_CLOEXEC);
	if (order < 0 || n->output < 0 ||
	    pwrite(order, text, strlen(text), 0) != (ssize_t)strlen(text)) {
		rc = err_errno(e, "a file for a notice");
	} else {
		s.environment = spawn_env(0, NULL);
		s.output = n->output;
		s.extra = order;
		rc = spawn_process(&s, &n->pid, &n->pidfd, e);
		spawn_env_free((char **)s.environment);
	}
	if (order >= 0)
		close(order);
	free(text);
	xfree(program);
	n->until_ms = clock_mono_ms() + SPARE_MS +
		      (1 + o->notify_retries) * (2000 * o->notify_timeout_seconds +
						 2000 * WAIT_MOST_S);
	return rc;
}

static void end_program(struct notices *n)
{
	if (n->pidfd >= 0)
		close(n->pidfd);
	if (n->output >= 0)
		close(n->output);
	n->pidfd = n->output = -1;
	n->pid = 0;
}

static void start_next(struct daemon *d)
{
	struct notices *n = &d->notices;
	struct err e = ERR_INIT;

	while (n->pid == 0 && n->count > n->fresh) {
		if (!n->wanted) {
			drop_first(n); /* a reload has taken the address away */
			continue;
		}
		if (start_program(d, &e) == 0 && n->pidfd >= 0)
			return;
		log_error("a notice is not delivered: %s: %s", n->text[n->first], e.text);
		end_program(n);
		drop_first(n);
	}
}

void notices_committed(struct daemon *d, bool committed)
{
	struct notices *n = &d->notices;

	for (; n->fresh > 0; n->fresh--)
		if (!committed) {
			size_t last = (n->first + --n->count) % LIMIT_NOTICES;

			free(n->text[last]);
			n->text[last] = NULL;
		}
	if (n->count)
		start_next(d);
}

void notice_exited(struct daemon *d)
{
	struct notices *n = &d->notices;
	char said[SAID_BYTES + 1] = "";
	int status = 0;

	waitpid(n->pid, &status, 0);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		if (pread(n->output, said, SAID_BYTES, 0) < 0)
			said[0] = 0;
		said[strcspn(said, "\n")] = 0;
		log_error("a notice is not delivered: %s: %s", n->text[n->first],
			  WIFSIGNALED(status) ? strsignal(WTERMSIG(status)) : said);
	}
	end_program(n);
	drop_first(n);
	start_next(d);
}

void notices_tick(struct daemon *d)
{
	struct notices *n = &d->notices;

	if (n->pid && clock_mono_ms() > n->until_ms)
		kill(n->pid, SIGKILL);
	if (n->lost) {
		log_error("%llu notices are lost: %u wait already", (unsigned long long)n->lost,
			  LIMIT_NOTICES);
		n->lost = 0;
	}
}

void notices_open(struct daemon *d)
{
	d->notices.open = true;
}

void notices_close(struct daemon *d)
{
	struct notices *n = &d->notices;
	size_t running = n->pid ? 1 : 0;

	if (n->count > running)
		log_warn("%zu notices are not delivered: the daemon leaves", n->count - running);
	end_program(n); /* it ends in its time */
	while (n->count)
		drop_first(n);
}
