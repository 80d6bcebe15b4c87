/* SPDX-License-Identifier: Apache-2.0
 * Between the daemon and the scheduler's pure functions: what runs and who pays for it, users'
 * limits and shares, walltimes and deadlines, and what people are told of a waiting job. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "daemon/warm.h"
#include "lib/bound.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "store/shares.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define HOUR_MS 3600000ll
#define SETTLE_MS 60000    /* running jobs' use is saved so often */
#define FORECAST_MS 1000   /* one is good for so long when nothing changes */

struct queue_view {
	struct schedule_input in;
	struct running running[LIMIT_WORKERS];
};

/* ---------------------------------------------------------------- users */

int queue_check(const struct options *o, struct err *e)
{
	struct user_limits limits = { 0 };
	char name[LIMIT_NAME_BYTES + 1];

	for (size_t i = 0; i < o->user_limit.count; i++)
		TRY(limits_parse(o->user_limit.text[i], name, &limits, e));
	return 0;
}

int queue_configure(struct daemon *d, struct err *e)
{
	const struct options *o = &d->options;
	struct shares *s = &d->live.shares;
	char name[LIMIT_NAME_BYTES + 1];

	for (size_t i = 0; s->half_life_s > 0 && i < s->count; i++)
		share_settle(s->user[i], s->half_life_s, clock_wall_ms()); /* by the old one */
	d->schedule_due = true;
	d->forecast_ms = 0;
	s->half_life_s = 3600.0 * (double)o->half_life_hours;
	s->limits = (struct user_limits){ .weight = 1,
					  .running = (uint32_t)o->limit_running,
					  .queued = (uint32_t)o->limit_queued,
					  .gpus = (uint32_t)o->limit_gpus,
					  .gpu_hours = (uint32_t)o->limit_gpu_hours };
	for (size_t i = 0; i < s->count; i++)
		s->user[i]->limits = s->limits;
	for (size_t i = 0; i < o->user_limit.count; i++) {
		struct user_limits limits = s->limits;

		TRY(limits_parse(o->user_limit.text[i], name, &limits, e));
		shares_get(s, name)->limits = limits;
	}
	return 0;
}

static int load_share(void *arg, const char *name, const Tf__ShareRecord *r)
{
	struct user_share *u = shares_get(arg, name);

	u->used = r->used;
	u->used_ms = r->used_ms;
	u->month_gpu_s = r->month_gpu_s;
	for (size_t i = 0; i < LANES && i < r->n_last_start; i++)
		u->last_start_ms[i] = r->last_start[i];
	return 0;
}

int queue_load(struct daemon *d, struct err *e)
{
	struct shares *s = &d->live.shares;

	for (size_t i = 0; i < s->count; i++) {
		struct user_share *u = s->user[i];

		CHECK(u->running == 0 && u->queued == 0);
		u->used = u->month_gpu_s = 0;
		u->used_ms = 0;
		u->changed = false;
		memset(u->last_start_ms, 0, sizeof u->last_start_ms);
	}
	return shares_each(d->state, load_share, s, e);
}

int queue_save(struct daemon *d, struct err *e)
{
	const struct shares *s = &d->live.shares;

	for (size_t i = 0; i < s->count; i++) {
		struct user_share *u = s->user[i];
		Tf__ShareRecord r = TF__SHARE_RECORD__INIT;

		if (!u->changed)
			continue;
		r.used = u->used;
		r.used_ms = u->used_ms;
		r.month_gpu_s = u->month_gpu_s;
		r.n_last_start = LANES;
		r.last_start = u->last_start_ms;
		TRY(share_put(d->state, u->name, &r, e));
		u->changed = false;
	}
	return 0;
}

void queue_forget(struct daemon *d)
{
	struct shares *s = &d->live.shares;
	int64_t now = clock_wall_ms();
	struct err e = ERR_INIT;

	for (size_t i = s->count; i > 0; i--) {
		if (!share_is_nothing(s, s->user[i - 1], now))
			continue;
		if (share_delete(d->state, s->user[i - 1]->name, &e) < 0)
			return; /* the commit will say so */
		shares_remove(s, i - 1);
	}
}

int queue_admit(struct daemon *d, const struct request *r, const char *owner,
		const Tf__JobSpec *spec, struct err *e)
{
	static const bool admins_only[] = {
#define P(id, kind, charge, admins, help) [TF__PRIORITY__##kind] = admins,
#include "proto/priorities.def"
#undef P
	};
	const struct user_share *u = shares_get(&d->live.shares, owner);
	const Tf__Demand *m = spec->demand;
	uint32_t gpus = m ? m->gpus : 0;
	/* a process that has yet to leave may be that of a job which has ended */
	uint32_t waiting = u->jobs > u->running ? u->jobs - u->running : 0;
	uint64_t most = bound("jobs-queued", LIMIT_JOBS_QUEUED);

	FAIL_IF(d->live.count - d->live.holes >= most, e, TF_ELIMIT,
		"%llu jobs are queued, the limit", (unsigned long long)most);
	FAIL_IF(m && admins_only[m->priority] && r->role != ROLE_ADMIN, e, TF_EREFUSED,
		"priority %s is for admins; you are a %s", priority_name(m->priority),
		role_name(r->role));
	FAIL_IF(u->limits.queued && waiting >= u->limits.queued, e, TF_ELIMIT,
		"%s has %u jobs waiting, the limit", u->name, u->limits.queued);
	FAIL_IF(spec->group && *spec->group && u->groups >= LIMIT_GROUPS &&
			!group_find(&d->live.shares, u, spec->group),
		e, TF_ELIMIT, "%s has %u groups of jobs, the limit", u->name, u->groups);
	FAIL_IF(u->limits.gpus && gpus > u->limits.gpus, e, TF_ELIMIT,
		"the job asks for %u GPUs; %s may have %u at a time", gpus, u->name,
		u->limits.gpus);
	FAIL_IF(m && m->deadline && m->deadline < clock_wall_ms() + 1000 * (int64_t)m->walltime, e,
		TF_EREFUSED, "the job cannot end by its deadline");
	return 0;
}

/* ---------------------------------------------------------------- what runs */

void queue_begin(struct daemon *d, struct worker *w)
{
	const struct job *j = live_find(&d->live, w->job);
	const struct shares *s = &d->live.shares;

	d->schedule_due = true;
	if (!j)
		return;
	w->user = j->user;
	w->part = 1;
	w->had_ms = 0;
	w->begun_ms = w->had_at_ms = clock_mono_ms();
	w->charge = charge_of(&d->machine, &w->holding, (Tf__Priority)j->priority);
	share_start(w->user, s->half_life_s, w->charge, clock_wall_ms());
}

void queue_end(struct daemon *d, struct worker *w)
{
	d->schedule_due = true;
	if (w->user)
		share_end(w->user, d->live.shares.half_life_s, w->charge, clock_wall_ms());
	w->user = NULL;
}

static void settle_part(struct worker *w, int64_t now)
{
	w->had_ms += w->part * (double)(now - w->had_at_ms);
	w->had_at_ms = now;
}

/* Whether the process of d->worker[i] runs an earlier one of its user's. */
static bool has_another(const struct daemon *d, size_t i)
{
	const struct worker *w = d->worker[i];

	for (size_t k = 0; k < i; k++)
		if (join_same(d->worker[k], w) && !d->worker[k]->ended &&
		    d->worker[k]->user == w->user)
			return true;
	return false;
}

void queue_divide(struct daemon *d, const struct worker *of)
{
	const struct shares *s = &d->live.shares;
	int64_t now = clock_mono_ms(), wall = clock_wall_ms();
	size_t n = 0;

	for (size_t i = 0; i < d->workers; i++)
		n += join_same(d->worker[i], of) && !d->worker[i]->ended;
	for (size_t i = 0; i < d->workers; i++) {
		struct worker *w = d->worker[i];
		const struct job *j = live_find(&d->live, w->job);

		if (!join_same(w, of) || w->ended || !w->user || !j)
			continue;
		settle_part(w, now);
		w->part = 1 / (double)n;
		share_end(w->user, s->half_life_s, w->charge, wall);
		w->charge = charge_of(&d->machine, &w->holding, (Tf__Priority)j->priority);
		w->charge.units *= w->part;
		w->charge.gpus *= w->part;
		w->charge.held *= !has_another(d, i);
		share_start(w->user, s->half_life_s, w->charge, wall);
	}
}

double queue_part(const struct worker *w)
{
	int64_t now = clock_mono_ms();

	if (now <= w->begun_ms)
		return w->part;
	return (w->had_ms + w->part * (double)(now - w->had_at_ms)) / (double)(now - w->begun_ms);
}

static void view_of(const struct daemon *d, const struct worker *w, bool guess, int64_t now,
		    struct running *out)
{
	const struct job *j = live_find(&d->live, w->job);
	const struct job_kind *kind = j ? job_kind_find((Tf__JobKind)j->kind) : NULL;

	*out = (struct running){ .holding = w->holding, .stopping = true, .ends_ms = now };
	if (!j || w->ended)
		return;
	out->started_ms = j->started_ms;
	out->ends_ms = job_ends_ms(j, j->started_ms);
	if (guess && out->ends_ms == NEVER_MS && j->progress && j->progress->has_eta_s &&
	    j->progress->eta_s >= 0 && j->progress->eta_s < 1e9)
		out->ends_ms = now + (int64_t)(1000 * j->progress->eta_s);
	out->priority = j->priority;
	out->stopping = j->state == TF__JOB_STATE__STOPPING;
	out->together = w->together;
	out->room = join_room(d, w);
	out->jobs = 1;
	out->user[0] = j->user;
	out->may_step_back = kind && kind->resumable && j->state == TF__JOB_STATE__RUNNING;
}

/* A process ends with the last of its jobs. */
static void view_others(const struct daemon *d, const struct worker *w, bool guess, int64_t now,
			struct running *out)
{
	for (size_t i = 0; i < d->workers; i++) {
		const struct worker *other = d->worker[i];
		struct running r;

		if (!other->joined || !join_same(w, other))
			continue;
		view_of(d, other, guess, now, &r);
		out->ends_ms = r.ends_ms > out->ends_ms ? r.ends_ms : out->ends_ms;
		out->stopping &= r.stopping;
		out->may_step_back = false;
		if (out->jobs < LIMIT_JOINED)
			out->user[out->jobs++] = r.user[0];
	}
}

/* guess: what running jobs report of their end counts where they have no walltime. */
static void queue_view(const struct daemon *d, bool guess, struct queue_view *out)
{
	int64_t now = clock_wall_ms();
	size_t n = 0;

	CHECK(d->workers <= worker_most());
	for (size_t i = 0; i < d->workers; i++)
		if (!d->worker[i]->idle && !d->worker[i]->joined) {
			const struct worker *w = d->worker[i];

			view_of(d, w, guess, now, &out->running[n]);
			view_others(d, w, guess, now, &out->running[n++]);
		} /* what a warm worker holds is free */
	out->in = (struct schedule_input){
		.machine = &d->machine,
		.running = out->running,
		.runnings = n,
		.shares = &d->live.shares,
		.rules = { .aging_ms = d->options.aging_hours * HOUR_MS,
			   .preempt_after_ms = d->options.preempt_after_seconds * 1000 },
		.now_ms = now,
	};
}

/* The job is to save its state and leave, for a reason that stays on record. */
static int stop_job(struct daemon *d, uint64_t id, Tf__StopReason why, const char *reason,
		    struct err *e)
{
	struct job_edit edit = { .stopping = why, .reason = reason };
	struct worker *w = worker_of(d, id);

	TRY(job_change(d, id, EVENT_STOP, &edit, e));
	if (w)
		worker_order(d, w);
	return 0;
}

size_t queue_decide(struct daemon *d, struct decision out[LIMIT_WORKERS])
{
	struct queue_view view;
	size_t n, starts = 0, busy = 0;

	d->schedule_due = false;
	queue_view(d, false, &view);
	for (size_t i = 0; i < d->workers; i++)
		busy += !d->worker[i]->idle;
	n = schedule_decide(&view.in, out, worker_most() - busy, &d->first);
	for (size_t i = 0; i < n; i++) {
		struct err e = ERR_INIT;
		char reason[80];

		if (out[i].kind != DECIDE_STEP_BACK) {
			out[starts++] = out[i];
			continue;
		}
		snprintf(reason, sizeof reason, "stepped back for job %llu",
			 (unsigned long long)d->first.job);
		if (stop_job(d, out[i].job, TF__STOP_REASON__STOP_PREEMPT, reason, &e) < 0)
			log_line(LOG_ERROR, out[i].job, "cannot step back: %s", e.text);
	}
	return starts;
}

/* ---------------------------------------------------------------- walltimes and deadlines */

/* When the running job must end, and what for. */
static int64_t must_end_ms(const struct job *j, const char **why)
{
	int64_t ends = job_ends_ms(j, j->started_ms);

	*why = "over its walltime";
	if (j->deadline_ms && j->deadline_ms < ends) {
		*why = "its deadline has passed";
		ends = j->deadline_ms;
	}
	return ends;
}

static void warn(struct daemon *d, struct worker *w, int64_t left_ms, const char *why)
{
	char *path = daemon_path(d, "jobs/%llu/log", (unsigned long long)w->job), text[160];
	int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
	int n = snprintf(text, sizeof text,
			 "(in %lld s it is told to save its state and leave: %s)\n",
			 (long long)(left_ms / 1000), why);

	w->warned = true;
	log_line(LOG_INFO, w->job, "has %lld s left", (long long)(left_ms / 1000));
	if (fd < 0 || write(fd, text, (size_t)n) < 0)
		log_line(LOG_WARN, w->job, "its log cannot be written");
	if (fd >= 0)
		close(fd);
	xfree(path);
}

static void tick_running(struct daemon *d, struct worker *w, int64_t now)
{
	const struct job *j = live_find(&d->live, w->job);
	int64_t ends, notice = d->options.warn_seconds * 1000;
	struct err e = ERR_INIT;
	const char *why;

	if (!j || w->ended || j->state == TF__JOB_STATE__STOPPING)
		return;
	ends = must_end_ms(j, &why);
	if (j->walltime_ms && notice > j->walltime_ms / 2)
		notice = j->walltime_ms / 2;
	if (ends == NEVER_MS)
		return;
	if (now >= ends) {
		if (!w->warned)
			warn(d, w, 0, why); /* the log says why, however late we look */
		if (stop_job(d, w->job, TF__STOP_REASON__STOP_LIMIT, why, &e) < 0)
			log_line(LOG_ERROR, w->job, "cannot be stopped: %s", e.text);
	} else if (now >= ends - notice && !w->warned) {
		warn(d, w, ends - now, why);
	}
}

/* A queued job that can no longer end by its deadline is not started. */
static void tick_deadlines(struct daemon *d, int64_t now)
{
	struct job_edit edit = { .reason = "missed its deadline: it could not end in time" };

	for (size_t i = 0; d->live.deadlines > 0 && i < d->live.count; i++) {
		const struct job *j = d->live.job[i];
		struct err e = ERR_INIT;
		int64_t ends;

		if (!j || !j->deadline_ms || j->state != TF__JOB_STATE__QUEUED)
			continue;
		ends = job_ends_ms(j, now);
		if ((ends == NEVER_MS ? now : ends) <= j->deadline_ms)
			continue;
		if (job_change(d, j->id, EVENT_FAIL, &edit, &e) < 0)
			log_line(LOG_ERROR, j->id, "after its deadline: %s", e.text);
	}
}

void queue_tick(struct daemon *d)
{
	const struct shares *s = &d->live.shares;
	int64_t now = clock_wall_ms();

	if (d->read_only)
		return;
	d->schedule_due = true;
	for (size_t i = 0; i < d->workers; i++)
		tick_running(d, d->worker[i], now);
	tick_deadlines(d, now);
	for (size_t i = 0; i < s->count; i++)
		if (s->user[i]->running && now - s->user[i]->used_ms >= SETTLE_MS)
			share_settle(s->user[i], s->half_life_s, now);
}

/* ---------------------------------------------------------------- for people */

static struct queue_view kept; /* good as long as the forecast is */

void queue_forecast(struct daemon *d)
{
	int64_t now = clock_mono_ms();

	if (d->forecast_seq != d->seq || now - d->forecast_ms > FORECAST_MS) {
		queue_view(d, true, &kept);
		schedule_forecast(&kept.in);
		d->forecast_seq = d->seq;
		d->forecast_ms = now;
	}
}

/* The first of those that have not ended, and how many more. */
static void explain_after(struct daemon *d, Tf__Job *view, char waits[WAITS_MAX])
{
	const struct {
		const uint64_t *job;
		size_t count;
	} list[] = { { view->after, view->n_after },
		     { view->after_any, view->n_after_any },
		     { view->after_failed, view->n_after_failed } };
	const struct job *first = NULL;
	size_t others = 0;
	int n;

	for (size_t i = 0; i < ARRAY_LEN(list); i++)
		for (size_t k = 0; k < list[i].count; k++) {
			const struct job *j = live_find(&d->live, list[i].job[k]);

			others += j && first;
			first = first ? first : j;
		}
	if (!first)
		return; /* it is woken in this turn */
	n = snprintf(waits, WAITS_MAX, "after job %llu, which is %s", (unsigned long long)first->id,
		     job_state_name((Tf__JobState)first->state));
	if (others)
		snprintf(waits + n, WAITS_MAX - (size_t)n, ", and %zu more", others);
	view->waits = waits;
}

void queue_describe(struct daemon *d, const struct job *j, Tf__Job *view, char waits[WAITS_MAX])
{
	if (j->state == TF__JOB_STATE__WAITING)
		explain_after(d, view, waits);
	if (j->state != TF__JOB_STATE__QUEUED)
		return;
	queue_forecast(d);
	view->waits = waits;
	if (d->draining)
		view->waits = (char *)"the daemon starts no jobs now: it is drained";
	else if (d->disk_low)
		view->waits = (char *)"the daemon starts no jobs now: the disk is nearly full";
	else
		schedule_explain(&kept.in, &d->first, j, waits, WAITS_MAX);
	view->has_place = true;
	view->place = j->place;
	view->has_expected_start = j->expected_ms != NEVER_MS && !d->draining;
	view->expected_start = view->has_expected_start ? j->expected_ms : 0;
}
