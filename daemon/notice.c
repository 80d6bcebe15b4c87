/* SPDX-License-Identifier: Apache-2.0
 * The daemon's side of notices; see notice.h. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/spawn.h"
#include "daemon/submit.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "store/notices.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
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
#define FINISH_MS 2000 /* when the daemon leaves */
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

	if (!n->wanted)
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

static char **text_at(struct notices *n, uint64_t number)
{
	return &n->text[number % LIMIT_NOTICES];
}

static void drop(struct notices *n, uint64_t number)
{
	free(*text_at(n, number));
	*text_at(n, number) = NULL;
}

static void drop_first(struct notices *n)
{
	drop(n, n->first++);
}

/* Takes the object. */
static void add(struct daemon *d, enum notice_event event, json_t *o)
{
	struct notices *n = &d->notices;
	char host[256] = "", now[CLOCK_TEXT_MAX], id[48];
	int64_t ms = clock_wall_ms();

	if (n->next - n->first == LIMIT_NOTICES) {
		n->lost++;
		json_decref(o);
		return;
	}
	gethostname(host, sizeof host - 1);
	clock_format_ms(ms, now);
	/* a restored state gives its numbers again, at another time */
	snprintf(id, sizeof id, "%" PRIu64 "-%" PRId64, n->next, ms);
	json_object_set_new(o, "event", json_string(event_names[event]));
	json_object_set_new(o, "id", json_string(id));
	json_object_set_new(o, "time", json_string(now));
	json_object_set_new(o, "host", json_string(host));
	*text_at(n, n->next++) = json_dumps(o, JSON_COMPACT);
	json_decref(o);
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

	if (!d->notices.open || !is_wanted(d, NOTICE_SLOT_DRAINED, NULL))
		return;
	o = json_object();
	json_object_set_new(o, "slot", json_string(slot));
	json_object_set_new(o, "reason", cut_text(reason));
	json_object_set_new(o, "by", *by ? cut_text(by) : json_null());
	add(d, NOTICE_SLOT_DRAINED, o);
}

/* ---------------------------------------------------------------- on disk */

struct loading {
	struct daemon *d;
	struct err *e;
	uint32_t starts; /* of the first one, this start included */
};

static int load_one(void *arg, uint64_t number, const Tf__NoticeRecord *r)
{
	struct loading *l = arg;
	struct notices *n = &l->d->notices;

	if (n->first == n->next) {
		n->first = n->next = number;
		l->starts = r->starts + 1;
	}
	FAIL_IF(number != n->next || n->next - n->first == LIMIT_NOTICES, l->e, TF_ECORRUPT,
		"store: notice %" PRIu64 " follows %" PRIu64 " others from %" PRIu64 " on", number,
		n->next - n->first, n->first);
	*text_at(n, n->next++) = strdup(r->text);
	return 0;
}

static int put(struct daemon *d, uint64_t number, uint32_t starts, struct err *e)
{
	Tf__NoticeRecord r = TF__NOTICE_RECORD__INIT;

	r.text = *text_at(&d->notices, number);
	r.has_starts = starts > 0;
	r.starts = starts;
	return notice_put(d->state, number, &r, e);
}

int notices_load(struct daemon *d, struct err *e)
{
	struct notices *n = &d->notices;
	struct loading l = { .d = d, .e = e };
	uint64_t last;

	TRY(state_number(d->state, "last-notice", &last, e));
	TRY(notices_each(d->state, load_one, &l, e));
	if (n->first == n->next)
		n->first = n->next = last + 1;
	n->fresh = n->kept_next = n->next;
	n->kept_first = n->first;
	if (n->first == n->next)
		return 0;
	log_info("%" PRIu64 " notices wait since before the start", n->next - n->first);
	if (l.starts < NOTICE_STARTS)
		return put(d, n->first, l.starts, e);
	log_error("a notice is not delivered: %s: %u daemons ended over it", *text_at(n, n->first),
		  l.starts);
	drop_first(n);
	return 0;
}

int notices_save(struct daemon *d, struct err *e)
{
	struct notices *n = &d->notices;

	for (uint64_t k = n->kept_first; k < n->first && k < n->kept_next; k++)
		TRY(notice_delete(d->state, k, e));
	n->saving_first = n->first;
	n->saving_next = n->kept_next > n->first ? n->kept_next : n->first;
	for (; n->saving_next < n->next; n->saving_next++)
		TRY(put(d, n->saving_next, 0, e));
	return n->saving_next == n->kept_next
		       ? 0
		       : state_set_number(d->state, "last-notice", n->next - 1, e);
}

/* ---------------------------------------------------------------- delivering */

/* What the program is told on its descriptor 3. */
static char *order_text(struct daemon *d)
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
			    json_loads(*text_at(&d->notices, d->notices.first), 0, NULL));
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

	while (n->pid == 0 && !n->leaving && n->first < n->fresh) {
		if (!n->wanted) {
			drop_first(n); /* a reload has taken the address away */
			continue;
		}
		if (start_program(d, &e) == 0)
			return;
		log_error("a notice is not delivered: %s: %s", *text_at(n, n->first), e.text);
		end_program(n);
		drop_first(n);
	}
}

void notices_committed(struct daemon *d, bool committed)
{
	struct notices *n = &d->notices;

	if (committed && n->saving_next > 0) {
		n->kept_first = n->saving_first;
		n->kept_next = n->saving_next;
	}
	n->saving_next = 0;
	while (!committed && n->next > n->fresh)
		drop(n, --n->next);
	n->fresh = n->next;
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
		log_error("a notice is not delivered: %s: %s", *text_at(n, n->first),
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

void notices_finish(struct daemon *d)
{
	struct notices *n = &d->notices;
	struct pollfd item = { .fd = n->pidfd, .events = POLLIN };

	n->leaving = true;
	if (n->pid && poll(&item, 1, FINISH_MS) > 0)
		notice_exited(d);
}

void notices_close(struct daemon *d)
{
	struct notices *n = &d->notices;

	if (n->next > n->first)
		log_info("%" PRIu64 " notices wait for the next daemon", n->next - n->first);
	end_program(n); /* it ends in its time */
	while (n->next > n->first)
		drop_first(n);
}
