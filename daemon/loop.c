/* SPDX-License-Identifier: Apache-2.0
 * The event loop. One turn: wait for something, take all of it, commit once, send the answers, then
 * start what can start. Nothing in a turn waits for a disk longer than the commit, nor for a peer.
 */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/job.h"
#include "daemon/reply.h"
#include "daemon/warm.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <zmq.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define FIXED_ITEMS 4
#define TICK_MS 100
#define SECOND_MS 1000
#define MINUTE_MS 60000
#define STORE_RETRY_MS 2000
#define FOLD_MS 100 /* without a change */
#define LAST_TURNS 1000 /* at the end, for what waits */

/* ---------------------------------------------------------------- committing */

void loop_doom(struct daemon *d, char *path)
{
	d->doomed.text = xrealloc(d->doomed.text, d->doomed.count + 1, sizeof *d->doomed.text);
	d->doomed.text[d->doomed.count++] = path;
}

static int doom_removed(void *arg, const char *name)
{
	struct daemon *d = arg;

	loop_doom(d, daemon_path(d, REMOVED_FOLDER "/%s", name));
	return 0;
}

void loop_collect(struct daemon *d)
{
	char *path = daemon_path(d, REMOVED_FOLDER);
	struct err e = ERR_INIT;

	if (dir_each(path, doom_removed, d, &e) < 0)
		log_error("looking for what was to be removed: %s", e.text);
	xfree(path);
}

/* Out of the way at once: the next attempt of a job that is put back does not meet what goes. */
static char *set_aside(struct daemon *d, char *path)
{
	char *to = daemon_path(d, REMOVED_FOLDER "/%lld-%llu", (long long)d->started_ms,
			       (unsigned long long)++d->removed);

	if (rename(path, to) < 0) { /* it lies on another disk */
		xfree(to);
		return path;
	}
	xfree(path);
	return to;
}

static void remove_folder(void *arg)
{
	struct err e = ERR_INIT;

	if (dir_remove(arg, &e) < 0)
		log_error("a folder stays: %s", e.text);
}

static void removed_folder(struct daemon *d, void *arg)
{
	(void)d;
	xfree_(arg);
}

static void remove_doomed(struct daemon *d, bool committed)
{
	for (size_t i = 0; i < d->doomed.count; i++) {
		if (committed)
			task_start(d, remove_folder, removed_folder,
				   set_aside(d, d->doomed.text[i]));
		else
			xfree(d->doomed.text[i]);
	}
	d->doomed.count = 0;
}

static void become_read_only(struct daemon *d, const struct err *e)
{
	log_error("the state could not be written, nothing is changed until it can: %s", e->text);
	d->read_only = true;
	d->store_trouble = *e;
	d->retry_store_ms = clock_mono_ms() + STORE_RETRY_MS;
}

/* After a commit that failed the store can be used no more, not even read. */
static int reopen(struct daemon *d, struct err *e)
{
	char *path = daemon_path(d, "store");
	int rc;

	state_close(d->state);
	d->state = NULL;
	rc = state_open(path, (uint64_t)d->options.map_mib << 20, &d->state, e);
	xfree(path);
	return rc;
}

/* To be read, until it can be written. */
static void reopen_to_read(struct daemon *d)
{
	struct err e = ERR_INIT;

	if (reopen(d, &e) < 0)
		log_error("the state cannot be opened: %s", e.text);
}

static void try_store(struct daemon *d)
{
	struct err e = ERR_INIT;
	uint64_t checks = 0;
	int rc;

	d->retry_store_ms = clock_mono_ms() + STORE_RETRY_MS;
	rc = d->state ? 0 : reopen(d, &e);
	if (rc == 0)
		rc = state_number(d->state, "checks", &checks, &e);
	if (rc == 0)
		rc = state_set_number(d->state, "checks", checks + 1, &e);
	if (rc == 0)
		rc = state_commit(d->state, &e);
	if (rc < 0) {
		log_error("the state still cannot be written: %s", e.text);
		if (d->state)
			reopen_to_read(d);
		return;
	}
	d->read_only = false;
	rc = daemon_load(d, &e);
	if (rc < 0) {
		become_read_only(d, &e);
		return;
	}
	log_info("the state can be written again");
}

/* Folders go only when whoever reads the store sees that it speaks of them no more. */
static int commit_store(struct daemon *d, struct err *e)
{
	TRY(queue_save(d, e));
	TRY(notices_save(d, e));
	if (state_changed(d->state))
		d->fold_ms = clock_mono_ms() + FOLD_MS;
	return d->doomed.count > 0 ? state_fold(d->state, e) : state_commit(d->state, e);
}

static void store_failed(struct daemon *d, const struct err *e)
{
	become_read_only(d, e);
	worker_drop_unborn(d);
	buf_clear(&d->ended);
	reopen_to_read(d);
}

/* Nobody waits for the disk when nothing has changed for a while. */
static void fold_store(struct daemon *d)
{
	struct err e = ERR_INIT;

	if (d->state && !d->read_only && !state_folded(d->state) &&
	    clock_mono_ms() >= d->fold_ms && state_fold(d->state, &e) < 0)
		store_failed(d, &e);
}

bool loop_commit(struct daemon *d)
{
	struct err e = ERR_INIT;
	bool committed;

	if (!d->read_only) {
		job_follow_up(d);
		wait_answer(d, false);
	}
	committed = !d->state || d->read_only || commit_store(d, &e) == 0;
	if (d->read_only && d->state)
		state_abort(d->state);
	remove_doomed(d, committed);
	audit_write(d, committed);
	notices_committed(d, committed);
	outbox_send(d, committed);
	if (!committed)
		store_failed(d, &e);
	return committed;
}

/* ---------------------------------------------------------------- waiting */

static int64_t wait_ms(const struct daemon *d)
{
	int64_t now = clock_mono_ms();
	int64_t until = d->second_ms, inbox = server_wait_ms(d);

	if (inbox == 0)
		return 0;
	if (d->outbox.count > 0)
		return 1; /* a peer's queue was full */
	if (d->waits > 0)
		until = d->tick_ms < until ? d->tick_ms : until;
	if (d->spawn_after_ms > now && d->spawn_after_ms < until)
		until = d->spawn_after_ms;
	if (d->state && !d->read_only && !state_folded(d->state) && d->fold_ms < until)
		until = d->fold_ms;
	if (inbox < until - now)
		return inbox;
	return until > now ? until - now : 0;
}

static size_t fill_items(struct daemon *d, zmq_pollitem_t *item)
{
	size_t n = FIXED_ITEMS;

	item[0] = (zmq_pollitem_t){ .socket = d->router, .events = ZMQ_POLLIN };
	item[1] = (zmq_pollitem_t){ .socket = d->zap, .events = ZMQ_POLLIN };
	item[2] = (zmq_pollitem_t){ .fd = d->signal_fd, .events = ZMQ_POLLIN };
	item[3] = (zmq_pollitem_t){ .fd = d->task_fd, .events = ZMQ_POLLIN };
	for (size_t i = 0; i < d->workers; i++)
		item[n++] = (zmq_pollitem_t){ .fd = d->worker[i]->pidfd, .events = ZMQ_POLLIN };
	for (int i = 0; i < READER_PROCESSES_MAX; i++)
		if (d->reader[i].pidfd >= 0)
			item[n++] =
				(zmq_pollitem_t){ .fd = d->reader[i].pidfd, .events = ZMQ_POLLIN };
	if (d->notices.pidfd >= 0)
		item[n++] = (zmq_pollitem_t){ .fd = d->notices.pidfd, .events = ZMQ_POLLIN };
	if (d->gpu_watch.fd >= 0)
		item[n++] = (zmq_pollitem_t){ .fd = d->gpu_watch.fd, .events = ZMQ_POLLIN };
	return n;
}

static void take_signal(struct daemon *d)
{
	struct signalfd_siginfo info;

	while (read(d->signal_fd, &info, sizeof info) == sizeof info) {
		if (info.ssi_signo == SIGHUP) {
			options_reload(d);
			continue;
		}
		log_info("signal %u: leaving; workers stay for the next daemon", info.ssi_signo);
		d->leaving = true;
	}
}

/* Ended processes. Those lists change while they are handled, so they are looked up by descriptor.
 */
static void take_ended(struct daemon *d, const zmq_pollitem_t *item, size_t n)
{
	for (size_t k = FIXED_ITEMS; k < n; k++) {
		if (!item[k].revents)
			continue;
		for (size_t i = 0; i < d->workers; i++)
			if (d->worker[i]->pidfd == item[k].fd) {
				worker_exited(d, d->worker[i]);
				break;
			}
		for (int i = 0; i < READER_PROCESSES_MAX; i++)
			if (d->reader[i].pidfd == item[k].fd)
				reader_exited(d, &d->reader[i]);
		if (d->notices.pidfd == item[k].fd)
			notice_exited(d);
		if (d->gpu_watch.fd == item[k].fd)
			gpu_watch_read(d);
	}
}

static void housekeeping(struct daemon *d)
{
	int64_t now = clock_mono_ms();

	if (now >= d->tick_ms) {
		d->tick_ms = now + TICK_MS;
		if (!d->read_only)
			wait_answer(d, true);
	}
	if (now >= d->second_ms) {
		d->second_ms = now + SECOND_MS;
		disk_tick(d);
		worker_tick(d);
		queue_tick(d);
		audit_tick(d);
		inbox_tick(d->inbox, clock_mono_ns());
		reader_tick(d);
		gpu_watch_tick(d);
		notices_tick(d);
		log_file_tick(d);
	}
	if (d->read_only && now >= d->retry_store_ms)
		try_store(d);
	if (now >= d->minute_ms) {
		d->minute_ms = now + MINUTE_MS;
		if (!d->read_only) {
			state_reader_check(d->state);
			upload_collect(d);
			queue_forget(d);
			gc_tick(d);
		}
	}
}

void loop_settle(struct daemon *d)
{
	bool at_once;

	housekeeping(d);
	/* what ended and what starts instead are one commit, unless a new process would keep
	 * somebody waiting for an answer */
	at_once = warm_any(d) || d->outbox.count == 0;
	if (at_once || loop_commit(d))
		worker_start_all(d, !at_once);
	fold_store(d);
}

static void turn(struct daemon *d)
{
	zmq_pollitem_t item[FIXED_ITEMS + LIMIT_WORKERS + READER_PROCESSES_MAX + 2];
	size_t n = fill_items(d, item);

	CHECK(n <= ARRAY_LEN(item));
	server_hold_back(d);
	if (zmq_poll(item, (int)n, (long)wait_ms(d)) < 0)
		n = 0; /* a signal: the next turn sees it */
	if (n && item[2].revents)
		take_signal(d);
	if (n && item[1].revents)
		server_zap(d);
	server_receive(d);
	if (n)
		take_ended(d, item, n);
	if (n && item[3].revents)
		tasks_finish(d);
	loop_settle(d);
}

void loop_run(struct daemon *d)
{
	notices_open(d);
	slots_announce(d);
	while (!d->leaving && !(d->leave_when_idle && d->workers == 0))
		turn(d);
	/* what came in before the end is answered */
	for (int i = 0; i < LAST_TURNS; i++) {
		server_receive(d);
		loop_commit(d);
		if (server_wait_ms(d) > 0)
			break;
	}
	notices_finish(d);
	loop_commit(d);
	warm_drop_all(d, "the daemon leaves");
}
