/* SPDX-License-Identifier: Apache-2.0
 * Jobs side by side in a process; see crew.h. A seat is taken by a job from the daemon's word that
 * it is ours (then its line says hello), over its work, until the daemon has its outcome. The line
 * of the last one to leave stays: over it another job may come. */
#include "config.h"
#include "worker/crew.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "worker/report.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define HELLO_MS 60000 /* how long an assignment is waited for */
#define SOON_MS 200    /* a daemon that answers in this time has the outcome on disk itself */
#define DONE_MS 180000 /* how long a daemon is waited for once the outcome is on disk here */
#define LOOK_MS 5      /* between two looks at whether it has answered */

enum seat_state { SEAT_FREE, SEAT_HELLO, SEAT_WORKS, SEAT_LEAVES };

struct seat {
	enum seat_state state;
	_Atomic(struct link *) link;
	struct job job;
	int64_t since_ms;
	bool synced; /* the outcome, here */
};

struct crew {
	struct seat seat[LIMIT_JOINED];
	_Atomic(struct link *) line; /* without a seat; NULL: all have one */
	struct kept *kept;
	const struct job *at; /* whose log and folder are ours; NULL: nobody's */
	bool unfit;           /* a job failed, or could not be told */
	bool stays;
	int status;
	pthread_mutex_t lock; /* states of seats, and who writes their outcomes */
};

struct crew *crew_new(struct link *line, struct kept *kept)
{
	struct crew *c = xcalloc(1, sizeof *c);

	atomic_store(&c->line, line);
	c->kept = kept;
	pthread_mutex_init(&c->lock, NULL);
	return c;
}

struct link *crew_line(struct crew *c)
{
	return atomic_load(&c->line);
}

void crew_close(struct crew *c)
{
	link_close(atomic_exchange(&c->line, NULL));
	pthread_mutex_destroy(&c->lock);
	xfree(c);
}

static size_t count_seats(const struct crew *c, enum seat_state state)
{
	size_t n = 0;

	for (size_t i = 0; i < LIMIT_JOINED; i++)
		n += c->seat[i].state == state;
	return n;
}

uint32_t crew_room(const struct crew *c)
{
	return c->unfit ? 0 : (uint32_t)count_seats(c, SEAT_FREE);
}

static void set_state(struct crew *c, struct seat *s, enum seat_state state)
{
	pthread_mutex_lock(&c->lock);
	s->state = state;
	pthread_mutex_unlock(&c->lock);
}

static struct seat *free_seat(struct crew *c)
{
	for (size_t i = 0; i < LIMIT_JOINED; i++)
		if (c->seat[i].state == SEAT_FREE)
			return &c->seat[i];
	return NULL;
}

/* ---- whose log and folder */

static void write_to(const char *path, int flags)
{
	int fd = open(path, flags | O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);

	fflush(stdout);
	if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0)
		die(WORKER_FAILED, "%s: %s", path, strerror(errno));
	close(fd);
}

void crew_turn_to(struct crew *c, const struct job *job)
{
	char *log;

	if (c->at == job)
		return;
	c->at = job;
	if (!job) { /* the log of a job that is over is not ours any more */
		write_to("/dev/null", 0);
		log_set_job(0);
		return;
	}
	log = job_path(job->folder, "log");
	write_to(log, O_CREAT);
	xfree(log);
	log_set_job(job->id);
	if (chdir(job->folder) < 0)
		die(WORKER_FAILED, "%s: %s", job->folder, strerror(errno));
}

/* ---- coming */

static int sit_down(struct crew *c, struct seat *s, const Tf__Assignment *a, bool warm,
		    struct err *e)
{
	int rc = job_init(&s->job, a, atomic_load(&s->link), e);

	s->job.kept = warm ? c->kept : NULL;
	s->job.crew = c;
	set_state(c, s, SEAT_WORKS);
	if (rc == 0)
		crew_turn_to(c, &s->job);
	return rc;
}

int crew_begin(struct crew *c, const Tf__Assignment *a, bool warm, struct job **out, struct err *e)
{
	struct seat *s = free_seat(c);

	CHECK(s && count_seats(c, SEAT_FREE) == LIMIT_JOINED);
	c->unfit = c->stays = false;
	atomic_store(&s->link, atomic_exchange(&c->line, NULL));
	*out = &s->job;
	return sit_down(c, s, a, warm, e);
}

/* A seat for what the daemon said over this line. */
static void take_joins(struct crew *c, struct link *l)
{
	struct seat *s = free_seat(c);
	struct link *line;
	uint64_t job;
	uint32_t attempt;

	for (; l && s && link_join(l, &job, &attempt); s = free_seat(c)) {
		struct err e = ERR_INIT;

		if (fault_hit("join"))
			continue;
		if (link_beside(l, job, attempt, &line, &e) < 0) {
			log_line(LOG_WARN, job, "cannot join: %s", e.text);
			continue; /* the daemon puts it back in time */
		}
		s->since_ms = clock_mono_ms();
		atomic_store(&s->link, line);
		set_state(c, s, SEAT_HELLO);
	}
}

static void look_for_joins(struct crew *c)
{
	take_joins(c, atomic_load(&c->line));
	for (size_t i = 0; i < LIMIT_JOINED; i++)
		if (c->seat[i].state >= SEAT_WORKS)
			take_joins(c, atomic_load(&c->seat[i].link));
}

bool crew_expects(struct crew *c)
{
	look_for_joins(c);
	return count_seats(c, SEAT_HELLO) > 0;
}

bool crew_is_empty(struct crew *c)
{
	return !crew_expects(c) && count_seats(c, SEAT_FREE) == LIMIT_JOINED;
}

/* The seat is free again; its line goes, or stays as the process's. */
static void stand_up(struct crew *c, struct seat *s, bool keep_line)
{
	struct link *l = atomic_load(&s->link);

	if (s->state != SEAT_HELLO)
		job_release(&s->job);
	if (c->at == &s->job)
		crew_turn_to(c, NULL);
	set_state(c, s, SEAT_FREE);
	if (keep_line)
		atomic_store(&c->line, l);
	atomic_store(&s->link, NULL);
	if (!keep_line)
		link_close(l);
	s->synced = false;
}

/* ---- leaving */

/* Writes the outcome, so that it survives the death of any process; what is told to the daemon then
 * is in *packed. */
static int leave_outcome(struct job *job, int code, const char *text, Tf__Failure failure,
			 struct buf *packed, struct err *e)
{
	job_stage(job, NULL);
	job_result(job, "peak_rss_anon_bytes", (double)link_peak_rss_anon(job->link));
	report_outcome(job->state, code, text, failure, packed);
	return file_put(job->outcome, packed->data, packed->len, 0600, e);
}

/* What kind of failure a code is, for another attempt. */
static Tf__Failure failure_of(int code)
{
	return code == TF_EIO || code == TF_ETIMEOUT || code == TF_EINTERNAL
		       ? TF__FAILURE__FAILURE_CRASH
	       : code == TF_ENOMEM ? TF__FAILURE__FAILURE_MEMORY
	       : code == TF_ENAN   ? TF__FAILURE__FAILURE_NAN
				   : TF__FAILURE__FAILURE_OTHER;
}

/* The daemon is told and has the outcome on disk, in its own records; when it does not answer soon,
 * the file is synced, so that the outcome counts whatever happens until it does. True: it knows,
 * or was given up. */
static bool is_told(struct crew *c, struct seat *s, int64_t wait_ms)
{
	struct link *l = atomic_load(&s->link);
	int64_t waited;
	struct err e = ERR_INIT;

	if (link_told(l, wait_ms, NULL) == 0)
		return true;
	waited = clock_mono_ms() - s->since_ms;
	if (!s->synced && waited >= SOON_MS) {
		s->synced = true;
		if (report_sync_outcome(&s->job, &e) < 0)
			log_line(LOG_ERROR, s->job.id, "the outcome cannot be synced: %s", e.text);
	}
	if (waited < SOON_MS + DONE_MS && !link_is_fenced(l))
		return false;
	log_line(LOG_WARN, s->job.id, "no daemon took the outcome: the file counts");
	c->unfit = true;
	return true;
}

/* Those that leave, but for the one that is waited for. */
static void look_after_leaving(struct crew *c, const struct seat *but)
{
	for (size_t i = 0; i < LIMIT_JOINED; i++) {
		struct seat *s = &c->seat[i];

		if (s != but && s->state == SEAT_LEAVES && is_told(c, s, 0)) {
			take_joins(c, atomic_load(&s->link));
			stand_up(c, s, false);
		}
	}
}

bool crew_join(struct crew *c, struct job **out)
{
	look_for_joins(c);
	look_after_leaving(c, NULL);
	for (size_t i = 0; i < LIMIT_JOINED; i++) {
		struct seat *s = &c->seat[i];
		const Tf__Assignment *a = NULL;
		struct err e = ERR_INIT;
		struct link *l = atomic_load(&s->link);

		if (s->state != SEAT_HELLO)
			continue;
		if (link_assignment(l, 0, &a, NULL) < 0) {
			if (link_is_fenced(l) || clock_mono_ms() - s->since_ms > HELLO_MS)
				stand_up(c, s, false);
			continue;
		}
		link_close(atomic_exchange(&c->line, NULL)); /* of one that has left */
		if (sit_down(c, s, a, true, &e) == 0) {
			*out = &s->job;
			return true;
		}
		crew_leave(c, &s->job, e.code, &e);
	}
	return false;
}

static struct seat *seat_of(struct crew *c, const struct job *job)
{
	for (size_t i = 0; i < LIMIT_JOINED; i++)
		if (&c->seat[i].job == job)
			return &c->seat[i];
	BUG("a job without a seat");
}

static void put_down(struct crew *c, struct seat *s, int rc, const struct err *why, bool last)
{
	struct buf packed = BUF_INIT;
	struct err e = ERR_INIT, late = *why;
	int synced = report_sync_results(&s->job, rc == 0 ? &late : NULL);
	const char *text;

	rc = rc == 0 ? synced : rc;
	text = late.code ? late.text : err_text(rc);
	if (rc == 0)
		log_info("done");
	else
		log_line(rc == TF_ECANCELLED ? LOG_INFO : LOG_ERROR, 0, "%s", text);
	if (leave_outcome(&s->job, rc, rc == 0 ? NULL : text, failure_of(rc), &packed, &e) < 0)
		log_error("the outcome cannot be written: %s", e.text);
	c->unfit |= rc != 0 && rc != TF_ECANCELLED;
	c->stays = last && s->job.kept && !c->unfit;
	c->status = rc == 0 ? WORKER_DONE : rc == TF_ECANCELLED ? WORKER_STOPPED : WORKER_FAILED;
	link_done(atomic_load(&s->link), &packed, c->stays);
	buf_release(&packed);
}

void crew_leave(struct crew *c, struct job *job, int rc, const struct err *why)
{
	struct seat *s = seat_of(c, job);
	bool last = count_seats(c, SEAT_WORKS) == 1 && !crew_expects(c);

	CHECK(rc <= 0);
	set_state(c, s, SEAT_LEAVES);
	s->since_ms = clock_mono_ms();
	crew_turn_to(c, job);
	if (link_is_fenced(atomic_load(&s->link))) {
		log_info("another attempt counts");
		stand_up(c, s, last);
		c->unfit = true;
		c->stays = false;
		c->status = WORKER_FENCED;
		return;
	}
	put_down(c, s, rc, why, last);
	if (!last)
		return;
	while (!is_told(c, s, LOOK_MS))
		look_after_leaving(c, s);
	for (; count_seats(c, SEAT_LEAVES) > 1; clock_sleep_ms(LOOK_MS))
		look_after_leaving(c, s);
	c->stays = c->stays && !c->unfit;
	stand_up(c, s, true);
}

bool crew_stays(const struct crew *c)
{
	return c->stays;
}

int crew_status(const struct crew *c)
{
	return c->status;
}

/* ---- ends from outside */

void crew_signal(struct crew *c)
{
	struct link *l = atomic_load(&c->line);

	if (l)
		link_leave(l);
	for (size_t i = 0; i < LIMIT_JOINED; i++) {
		l = atomic_load(&c->seat[i].link);
		if (l)
			link_leave(l);
	}
}

bool crew_die(struct crew *c, int code, const char *text, Tf__Failure failure)
{
	struct link *told[LIMIT_JOINED];
	size_t n = 0;

	pthread_mutex_lock(&c->lock); /* never released: the process ends */
	for (size_t i = 0; i < LIMIT_JOINED; i++) {
		struct seat *s = &c->seat[i];
		struct buf packed = BUF_INIT;
		struct err e = ERR_INIT;

		if (s->state != SEAT_WORKS)
			continue;
		if (leave_outcome(&s->job, code, text, failure, &packed, &e) < 0 ||
		    report_sync_outcome(&s->job, &e) < 0) {
			log_line(LOG_ERROR, s->job.id, "%s", e.text);
			continue;
		}
		told[n] = atomic_load(&s->link);
		link_done(told[n++], &packed, false);
	}
	for (size_t i = 0; i < n; i++)
		link_told(told[i], HELLO_MS, NULL);
	return n > 0;
}

bool crew_is_lone(struct crew *c)
{
	return count_seats(c, SEAT_HELLO) + count_seats(c, SEAT_WORKS) <= 1;
}
