/* SPDX-License-Identifier: Apache-2.0
 * Workers: a process for each attempt, but for those that are joined (join.c). A worker is started
 * before the attempt is on record, but it waits for its secret key, which is written into its pipe
 * after the commit: until then it can do nothing, and when the daemon dies it reads an end of file
 * and leaves. From then on it outlives the daemon. Its pidfd says when it ended; its outcome file
 * says how. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "daemon/reply.h"
#include "daemon/spawn.h"
#include "daemon/submit.h"
#include "daemon/warm.h"
#include "lib/bound.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <zmq.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SPAWN_WAIT_MS_MAX 30000

struct worker *worker_new(void)
{
	struct worker *w = xcalloc(1, sizeof *w);

	w->pidfd = w->key_pipe = w->holding.slot = -1;
	w->part = 1;
	w->begun_ms = w->had_at_ms = clock_mono_ms();
	return w;
}

void worker_add(struct daemon *d, struct worker *w)
{
	d->worker = xrealloc(d->worker, d->workers + 1, sizeof *d->worker);
	d->worker[d->workers++] = w;
	queue_begin(d, w);
}

static void worker_free(struct worker *w)
{
	if (w->key_pipe >= 0)
		close(w->key_pipe);
	if (w->pidfd >= 0)
		close(w->pidfd);
	explicit_bzero(w->secret, sizeof w->secret);
	xfree(w->model);
	xfree(w);
}

void worker_remove(struct daemon *d, struct worker *w)
{
	for (size_t i = 0; i < d->workers; i++)
		if (d->worker[i] == w) {
			d->worker[i] = d->worker[--d->workers];
			break;
		}
	queue_end(d, w);
	worker_free(w);
}

void worker_forget_all(struct daemon *d)
{
	while (d->workers > 0)
		worker_remove(d, d->worker[0]);
	xfree(d->worker);
}

struct worker *worker_of(struct daemon *d, uint64_t job)
{
	for (size_t i = 0; i < d->workers; i++)
		if (d->worker[i]->job == job && !d->worker[i]->ended)
			return d->worker[i];
	return NULL;
}

bool worker_is_left(const struct daemon *d, uint64_t job)
{
	for (size_t i = 0; i < d->workers; i++)
		if (d->worker[i]->job == job && !d->worker[i]->idle)
			return true;
	return false;
}

struct worker *worker_by_key(struct daemon *d, const char *key)
{
	for (size_t i = 0; i < d->workers; i++)
		if (strcmp(d->worker[i]->key, key) == 0)
			return d->worker[i];
	return NULL;
}

/* ---------------------------------------------------------------- starting */

/* jobs/<id> and the log in it, open; its worker makes the rest, and syncs the names with what it
 * leaves there. */
static int make_folder(struct daemon *d, const struct worker *w, char **folder, int *log,
		       struct err *e)
{
	char *path;
	int rc = 0;

	*folder = daemon_path(d, "jobs/%llu", (unsigned long long)w->job);
	path = xasprintf("%s/log", *folder);
	*log = -1;
	if (mkdir(*folder, 0700) < 0 && errno != EEXIST)
		rc = err_errno(e, "%s", *folder);
	else if ((*log = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600)) <
		 0)
		rc = err_errno(e, "%s", path);
	xfree(path);
	return rc;
}

int worker_threads(const struct daemon *d, const struct worker *w)
{
	return w->holding.cpus ? (int)w->holding.cpus : (int)d->options.threads;
}

/* The GPUs of a holding for CUDA_VISIBLE_DEVICES: by uuid, else by number, which counts within the
 * daemon's own CUDA_VISIBLE_DEVICES when it has one. "" hides them all. */
static char *visible_gpus(const struct daemon *d, const struct holding *h)
{
	const char *own = getenv("CUDA_VISIBLE_DEVICES");
	struct buf b = BUF_INIT;

	buf_text(&b, "");
	for (size_t i = 0; i < d->machine.gpus; i++) {
		const struct gpu *g = &d->machine.gpu[i];
		const char *id = g->uuid[0] ? g->uuid : g->device + strlen("cuda:");
		size_t len = strlen(id);

		if (!(h->gpus >> i & 1))
			continue;
		if (!g->uuid[0] && own) {
			const char *p = own;

			for (int skip = atoi(id); skip > 0 && p; skip--)
				p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL;
			id = p ? p : "-1";
			len = strcspn(id, ",");
		}
		buf_printf(&b, "%s%.*s", b.len ? "," : "", (int)len, id);
	}
	return buf_detach(&b);
}

static int run_program(struct daemon *d, struct worker *w, const char *folder, int log,
		       struct err *e)
{
	char job[24], attempt[16];
	char *argv[] = { d->worker_program,
			 "--endpoint",
			 d->worker_endpoint,
			 "--server-key",
			 d->server.public_key,
			 "--job",
			 job,
			 "--attempt",
			 attempt,
			 "--key-fd",
			 "3",
			 NULL };
	struct spawn s = { .argv = argv, .folder = folder, .output = log };
	char **environment, *visible;
	int pipe_fd[2], rc;

	snprintf(job, sizeof job, "%llu", (unsigned long long)w->job);
	snprintf(attempt, sizeof attempt, "%u", w->attempt);
	if (pipe2(pipe_fd, O_CLOEXEC) < 0)
		return err_errno(e, "pipe for the key of job %s", job);
	visible = visible_gpus(d, &w->holding);
	environment = spawn_env(worker_threads(d, w), visible);
	xfree(visible);
	s.environment = environment;
	s.data_bytes = w->holding.gpus ? 0 : w->holding.mem;
	s.extra = pipe_fd[0];
	w->key_pipe = pipe_fd[1];
	rc = spawn_process(&s, &w->pid, &w->pidfd, e);
	close(pipe_fd[0]);
	spawn_env_free(environment);
	if (rc == 0) {
		w->child = true;
		w->pid_start = process_start(w->pid);
	}
	return rc;
}

int worker_record(struct daemon *d, struct worker *w, struct err *e)
{
	Tf__AttemptRecord r = TF__ATTEMPT_RECORD__INIT;
	char slot[HOLDING_TEXT_MAX];
	struct job_edit edit = { .slot = slot };

	holding_text(&d->machine, &w->holding, slot);
	r.job = w->job;
	r.attempt = w->attempt;
	r.pid = (uint32_t)w->pid;
	r.pid_start = w->pid_start;
	r.key = w->key;
	r.slot = slot;
	r.boot = *machine_boot() ? (char *)machine_boot() : NULL;
	r.has_cpus = r.has_mem = true;
	r.cpus = w->holding.cpus;
	r.mem = w->holding.mem;
	TRY(attempt_put(d->state, &r, e));
	return job_change(d, w->job, EVENT_START, &edit, e);
}

/* A process that is not to live: it has no key yet, so it has done nothing. */
static void abandon(struct worker *w)
{
	if (w->pid > 0) {
		kill(w->pid, SIGKILL);
		waitpid(w->pid, NULL, 0);
	}
	worker_free(w);
}

void worker_drop_unborn(struct daemon *d)
{
	for (size_t i = d->workers; i > 0; i--) {
		struct worker *w = d->worker[i - 1];

		if (w->key_pipe < 0 && !w->unsaid)
			continue;
		if (!w->unheard) { /* else it was not told */
			kill(w->pid, SIGKILL);
			if (w->child)
				waitpid(w->pid, NULL, 0);
		}
		worker_remove(d, w);
	}
}

static int start_one(struct daemon *d, const struct decision *decision, struct err *e)
{
	const struct job *j = live_find(&d->live, decision->job);
	struct worker *w = worker_new();
	char *folder = NULL;
	int log = -1, rc;

	CHECK(j && j->state == TF__JOB_STATE__QUEUED);
	w->job = j->id;
	w->attempt = j->attempt + 1;
	w->holding = decision->holding;
	w->holding.job = j->id;
	w->together = j->together;
	w->hello_by_ms = clock_mono_ms() + d->options.hello_seconds * 1000;
	CHECK(zmq_curve_keypair(w->key, w->secret) == 0);
	rc = make_folder(d, w, &folder, &log, e);
	if (rc == 0)
		rc = run_program(d, w, folder, log, e);
	if (rc == 0 && fault_hit("spawned"))
		rc = err_set(e, TF_EIO, "fault after the start");
	if (rc == 0)
		rc = worker_record(d, w, e);
	if (log >= 0)
		close(log);
	xfree(folder);
	if (rc == 0) {
		j->user->last_start_ms[j->lane] = clock_wall_ms();
		worker_add(d, w);
	} else {
		abandon(w);
	}
	return rc;
}

/* Inputs that were not there at the submit are now, or the job cannot run. */
static int ready_inputs(struct daemon *d, uint64_t job, struct err *e)
{
	Tf__SpecRecord *spec = NULL;
	struct job_edit edit = { 0 };
	struct err why = ERR_INIT;
	int rc = job_spec_get(d->state, job, &spec, e);

	if (rc == 0 && resolve_late(d, spec, job, &why) < 0) {
		edit.reason = why.text;
		rc = job_change(d, job, EVENT_FAIL, &edit, e);
		if (rc == 0)
			rc = TF_ESTATE;
	}
	record_free(spec);
	return rc;
}

/* Idle processes count, too, though the scheduler sees what they hold as free. */
size_t worker_most(void)
{
	return bound("workers", LIMIT_WORKERS);
}

/* Carries out the i-th decision; 1: it waits until a warm worker has left. */
static int start_decided(struct daemon *d, struct decision *list, size_t n, size_t i,
			 struct err *e)
{
	bool full = d->workers >= worker_most();
	struct worker *idle = NULL;
	enum warm warm;

	if (list[i].kind == DECIDE_JOIN && !full)
		return join_start(d, &list[i], e);
	warm = list[i].kind == DECIDE_JOIN ? WARM_COLD : warm_look(d, list, n, i, &idle);
	if (warm == WARM_HERE)
		return warm_start(d, idle, &list[i], e);
	if (warm == WARM_COLD && !full)
		return start_one(d, &list[i], e);
	if (warm == WARM_COLD)
		warm_drop_all(d, "there are as many processes as there may be");
	return 1;
}

/* The secret is a line of the pipe; with it the worker may begin. */
static void release_keys(struct daemon *d)
{
	for (size_t i = 0; i < d->workers; i++) {
		struct worker *w = d->worker[i];
		char line[KEY_CHARS + 2];

		w->unsaid = false; /* its assignment has left */
		if (w->key_pipe < 0)
			continue;
		snprintf(line, sizeof line, "%s\n", w->secret);
		if (write(w->key_pipe, line, strlen(line)) < 0)
			log_line(LOG_WARN, w->job, "the worker did not take its key");
		close(w->key_pipe);
		w->key_pipe = -1;
		explicit_bzero(w->secret, sizeof w->secret);
		explicit_bzero(line, sizeof line);
	}
}

static void start_failed(struct daemon *d, uint64_t job, const struct err *e)
{
	int64_t wait_ms = 500LL << (d->spawn_failures < 6 ? d->spawn_failures : 6);

	d->spawn_failures++;
	d->spawn_after_ms =
		clock_mono_ms() + (wait_ms < SPAWN_WAIT_MS_MAX ? wait_ms : SPAWN_WAIT_MS_MAX);
	log_line(LOG_ERROR, job, "cannot be started, next try in %lld ms: %s", (long long)wait_ms,
		 e->text);
}

static bool may_start(const struct daemon *d)
{
	return !d->read_only && !d->disk_low && !d->draining && !d->leaving && d->schedule_due &&
	       clock_mono_ms() >= d->spawn_after_ms;
}

/* Carries out what the scheduler decides; whether anything was started. */
static bool start_some(struct daemon *d)
{
	struct decision decision[LIMIT_WORKERS];
	size_t n = queue_decide(d, decision);
	bool started = false;

	for (size_t i = 0; i < n; i++) {
		struct err e = ERR_INIT;

		if (ready_inputs(d, decision[i].job, &e) < 0)
			continue;
		if (start_decided(d, decision, n, i, &e) < 0) {
			start_failed(d, decision[i].job, &e);
			break;
		}
		d->spawn_failures = 0;
		started = true;
	}
	return started;
}

void worker_start_all(struct daemon *d, bool committed)
{
	bool started;

	if (!committed && !d->read_only)
		job_follow_up(d); /* what waited for what ended may start */
	started = may_start(d) && start_some(d);
	if (committed && !started && !(d->state && state_changed(d->state)))
		return;
	if (loop_commit(d) && started) {
		fault_hit("start-committed");
		release_keys(d);
	}
}

/* ---------------------------------------------------------------- stopping */

void worker_order(struct daemon *d, struct worker *w)
{
	const struct job *j = live_find(&d->live, w->job);

	CHECK(j && j->stopping);
	if (!w->stop_at_ms)
		w->stop_at_ms = clock_mono_ms();
	if (w->route_len)
		order_put(d, w, (Tf__StopReason)j->stopping);
}

static void signal_worker(const struct worker *w, int number, const char *why)
{
	if (w->pidfd < 0)
		return;
	log_line(LOG_WARN, w->job, "%s to pid=%d: %s", number == SIGKILL ? "SIGKILL" : "SIGTERM",
		 (int)w->pid, why);
	syscall(SYS_pidfd_send_signal, w->pidfd, number, NULL, 0);
}

/* A log that grew over its bound is cut there; the worker's descriptor appends after the cut. */
static void bound_log(struct daemon *d, const struct worker *w)
{
	char *path = daemon_path(d, "jobs/%llu/log", (unsigned long long)w->job);
	static const char last[] = "\n(the log is over its limit: later lines are dropped)\n";
	int64_t size = file_size(path);

	if (size > (int64_t)d->options.log_mib << 20) {
		int64_t keep = ((int64_t)d->options.log_mib << 20) - (int64_t)sizeof last;
		int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW);

		if (fd >= 0 && ftruncate(fd, keep) == 0 &&
		    pwrite(fd, last, sizeof last - 1, keep) < 0)
			log_line(LOG_WARN, w->job, "its log cannot be cut");
		if (fd >= 0)
			close(fd);
	}
	xfree(path);
}

static void escalate(struct daemon *d, struct worker *w, int64_t now)
{
	int64_t grace = w->ended ? 0 : d->options.stop_grace_seconds * 1000;
	int64_t kill_at = w->stop_at_ms + grace + d->options.kill_grace_seconds * 1000;

	if (!w->killed && w->hello_by_ms && now > w->hello_by_ms) {
		w->killed = true;
		signal_worker(w, SIGKILL, "it did not report in time");
	}
	if (w->stop_at_ms && !w->terminated && !w->ended && now > w->stop_at_ms + grace) {
		w->terminated = true;
		signal_worker(w, SIGTERM, "it did not stop in time");
	}
	if (w->stop_at_ms && !w->killed && now > kill_at) {
		w->killed = true;
		signal_worker(w, SIGKILL, "it did not leave in time");
	}
}

void worker_tick(struct daemon *d)
{
	int64_t now = clock_mono_ms();

	join_tick(d);
	for (size_t i = 0; i < d->workers; i++) {
		escalate(d, d->worker[i], now);
		if (!d->worker[i]->idle)
			bound_log(d, d->worker[i]);
	}
	warm_tick(d);
}

/* ---------------------------------------------------------------- ending */

char *worker_outcome_path(struct daemon *d, const struct worker *w)
{
	return daemon_path(d, "jobs/%llu/outcome-%u.pb", (unsigned long long)w->job, w->attempt);
}

/* NULL: there is none. One from before outcome_file has put it into a folder of the attempt. */
static char *find_outcome(struct daemon *d, const struct worker *w)
{
	char *path = worker_outcome_path(d, w);

	if (file_exists(path))
		return path;
	xfree(path);
	path = daemon_path(d, "jobs/%llu/attempt-%u/outcome.pb", (unsigned long long)w->job,
			   w->attempt);
	if (!file_exists(path))
		xfree(path);
	return path;
}

/* The attempt's outcome file; NULL when there is none that can be read. */
static Tf__Outcome *read_outcome(struct daemon *d, const struct worker *w)
{
	char *path = find_outcome(d, w);
	struct buf b = BUF_INIT;
	struct err e = ERR_INIT;
	ProtobufCMessage *outcome = NULL;

	if (path &&
	    (file_read(path, LIMIT_MESSAGE_BYTES, &b, &e) < 0 ||
	     wire_unpack(&tf__outcome__descriptor, b.data, b.len, &outcome, &e) < 0))
		log_line(LOG_ERROR, w->job, "%s cannot be read: %s", path, e.text);
	buf_release(&b);
	xfree(path);
	return (Tf__Outcome *)outcome;
}

/* The process is gone: its outcome, or its loss. */
static int settle(struct daemon *d, struct worker *w, Tf__Failure failure, const char *why,
		  struct err *e)
{
	Tf__Outcome *outcome = w->ended ? NULL : read_outcome(d, w);
	int rc = w->unheard ? join_undo(d, w, e)
		 : outcome  ? job_outcome(d, w, outcome, e)
			    : job_lost(d, w, failure, why, e);

	if (outcome)
		tf__outcome__free_unpacked(outcome, NULL);
	if (rc == TF_EFENCED || rc == TF_ENOTFOUND)
		rc = 0; /* a later attempt counts, or the job ended otherwise */
	TRY(rc);
	return attempt_delete(d->state, w->job, w->attempt, e);
}

/* Whether it is known how the process ended; then all its attempts know it. */
static bool reap(struct daemon *d, struct worker *w)
{
	int status;

	if (!w->reaped && w->child && waitpid(w->pid, &status, 0) > 0)
		for (size_t i = 0; i < d->workers; i++)
			if (join_same(d->worker[i], w)) {
				d->worker[i]->reaped = true;
				d->worker[i]->exit_status = status;
			}
	return w->reaped;
}

/* How its process ended, for people, and what kind of failure that is. */
static char *exit_text(struct daemon *d, struct worker *w, Tf__Failure *failure)
{
	int status;

	*failure = TF__FAILURE__FAILURE_LOST;
	if (!reap(d, w))
		return xstrdup("the worker's process is gone, without an outcome");
	status = w->exit_status;
	if (WIFSIGNALED(status) && w->hello_by_ms && w->killed)
		return xstrdup("the worker did not report in time and was killed");
	*failure = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_MEMORY
			   ? TF__FAILURE__FAILURE_MEMORY
			   : TF__FAILURE__FAILURE_CRASH;
	if (WIFSIGNALED(status))
		return xasprintf("the worker was killed by signal %d (%s)", WTERMSIG(status),
				 strsignal(WTERMSIG(status)));
	return xasprintf("the worker ended with status %d and no outcome", WEXITSTATUS(status));
}

void worker_exited(struct daemon *d, struct worker *w)
{
	Tf__Failure failure;
	char *why = exit_text(d, w, &failure);
	struct err e = ERR_INIT;

	if (!d->read_only && settle(d, w, failure, why, &e) < 0)
		log_line(LOG_ERROR, w->job, "after the end of its worker: %s", e.text);
	xfree(why);
	worker_remove(d, w); /* read-only: the attempt stays on record and is looked at again */
}

/* ---------------------------------------------------------------- adopting */

/* After another boot its number is a stranger's. Earlier versions did not note the boot. */
static bool is_of_this_boot(const Tf__AttemptRecord *r)
{
	return !r->boot || !*machine_boot() || strcmp(r->boot, machine_boot()) == 0;
}

int worker_adopt(struct daemon *d, const Tf__AttemptRecord *r, struct err *e)
{
	struct worker *w = worker_new();
	const struct job *j = live_find(&d->live, r->job);
	int rc = 0;

	w->job = r->job;
	w->attempt = r->attempt;
	holding_parse(&d->machine, r->slot, &w->holding);
	w->holding.job = r->job;
	w->holding.cpus = r->cpus;
	w->holding.mem = r->mem;
	w->pid = (pid_t)r->pid;
	w->pid_start = r->pid_start;
	w->child = is_of_this_boot(r) && waitpid(w->pid, NULL, WNOHANG) == 0;
	w->ended = !j || j->attempt != r->attempt || !job_state_active((Tf__JobState)j->state);
	snprintf(w->key, sizeof w->key, "%s", r->key);
	w->together = j ? j->together : 0;
	w->joined = join_other(d, w) != NULL;
	w->unheard = w->joined && !w->ended && j->state == TF__JOB_STATE__STARTING;
	w->pidfd = is_of_this_boot(r) ? process_fd(w->pid) : -1;
	if (w->pidfd >= 0 && process_start(w->pid) == w->pid_start) {
		log_line(LOG_INFO, w->job, "attempt=%u is alive, pid=%d", w->attempt, (int)w->pid);
		w->hello_by_ms = w->ended ? 0 : clock_mono_ms() + d->options.hello_seconds * 1000;
		w->stop_at_ms = w->ended || j->stopping ? clock_mono_ms() : 0;
		worker_add(d, w);
		queue_divide(d, w);
		if (w->ended)
			warm_drop(w, "its job had ended when this daemon came");
		return 0;
	}
	rc = settle(d, w, TF__FAILURE__FAILURE_LOST,
		    "the worker ended while no daemon ran, without an outcome", e);
	worker_free(w);
	return rc;
}
