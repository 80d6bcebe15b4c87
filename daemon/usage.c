/* SPDX-License-Identifier: Apache-2.0
 * Accounts: what each attempt had is added to its user's and project's sums when it ends, in the
 * transaction that ends it, so nothing is counted twice or forgotten. What still runs is added to
 * the answer of `usage` only. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "store/usage.h"

#include <string.h>

static double gpus_held(const struct daemon *d, const struct holding *h)
{
	double gpus = 0;

	for (size_t i = 0; i < d->machine.gpus; i++)
		if (h->gpus >> i & 1)
			gpus += h->share && d->machine.gpu[i].memory
					? (double)h->share / (double)d->machine.gpu[i].memory
					: 1;
	return gpus;
}

static struct usage_attempt attempt_of(const struct daemon *d, const struct worker *w,
				       const Tf__Job *j)
{
	double part = queue_part(w);

	return (struct usage_attempt){
		.user = j->user ? j->user : "",
		.project = j->project,
		.from_ms = j->started,
		.to_ms = clock_wall_ms(),
		.gpus = part * gpus_held(d, &w->holding),
		.cpus = part * (double)worker_threads(d, w),
	};
}

int usage_attempt_ended(struct daemon *d, const struct worker *w, const Tf__Job *j, struct err *e)
{
	struct usage_attempt a = attempt_of(d, w, j);
	Tf__JobRecord *now = NULL;

	TRY(job_get(d->state, j->id, &now, e));
	a.ends_job = job_state_is_end(now->job->state);
	record_free(now);
	return usage_add(d->state, &a, e);
}

/* ---------------------------------------------------------------- the answer */

struct rows {
	Tf__UsageRow row[LIMIT_USAGE_LISTED], *list[LIMIT_USAGE_LISTED];
	char *text[LIMIT_USAGE_LISTED]; /* month, user, project of each */
	size_t count;
	const char *until;
};

static Tf__UsageRow *add_row(struct rows *rows, const char *month, const char *user,
			     const char *project)
{
	Tf__UsageRow *row = &rows->row[rows->count];
	size_t n = strlen(user) + 1;
	char *text = xmalloc(USAGE_MONTH_CHARS + 1 + n + strlen(project) + 1);

	tf__usage_row__init(row);
	row->month = strcpy(text, month);
	row->user = strcpy(text + USAGE_MONTH_CHARS + 1, user);
	row->project = strcpy(text + USAGE_MONTH_CHARS + 1 + n, project);
	rows->text[rows->count] = text;
	rows->list[rows->count++] = row;
	return row;
}

static int take_sum(void *arg, const char *month, const char *user, const char *project,
		    const Tf__UsageRecord *sum)
{
	struct rows *rows = arg;
	Tf__UsageRow *row;

	if (rows->until && strcmp(month, rows->until) > 0)
		return 1;
	if (rows->count == LIMIT_USAGE_LISTED)
		return TF_ELIMIT;
	row = add_row(rows, month, user, project);
	row->jobs = sum->jobs;
	row->attempts = sum->attempts;
	row->cpu_s = sum->cpu_s;
	row->gpu_s = sum->gpu_s;
	return 0;
}

/* What runs now counts in the month it began in, until it ends. */
static int add_running(struct daemon *d, struct rows *rows, const char *since, struct err *e)
{
	for (size_t i = 0; i < d->workers && rows->count < LIMIT_USAGE_LISTED; i++) {
		const struct worker *w = d->worker[i];
		char month[USAGE_MONTH_CHARS + 1];
		struct usage_attempt a;
		Tf__JobRecord *r = NULL;
		Tf__UsageRow *row;
		double s;

		if (w->ended || !live_find(&d->live, w->job))
			continue;
		TRY(job_get(d->state, w->job, &r, e));
		a = attempt_of(d, w, r->job);
		usage_month(a.from_ms, month);
		s = a.to_ms > a.from_ms ? (double)(a.to_ms - a.from_ms) / 1000 : 0;
		if ((!since || strcmp(month, since) >= 0) &&
		    (!rows->until || strcmp(month, rows->until) <= 0)) {
			row = add_row(rows, month, a.user, a.project ? a.project : "");
			row->running = 1;
			row->cpu_s = s * a.cpus;
			row->gpu_s = s * a.gpus;
		}
		record_free(r);
	}
	return 0;
}

static int check_month(const char *name, const char *text, struct err *e)
{
	int month;

	if (!text)
		return 0;
	month = strlen(text) == USAGE_MONTH_CHARS ? (text[5] - '0') * 10 + text[6] - '0' : 0;
	FAIL_IF(strspn(text, "0123456789-") != USAGE_MONTH_CHARS || text[4] != '-' || month < 1 ||
			month > 12,
		e, TF_EINVALID, "%s '%.20s': expected a month as 2026-11", name, text);
	return 0;
}

int handle_usage(struct daemon *d, struct request *r)
{
	const Tf__UsageList *m = r->message->usage;
	const char *since = m->since && *m->since ? m->since : NULL;
	const char *until = m->until && *m->until ? m->until : NULL;
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Usage usage = TF__USAGE__INIT;
	struct rows *rows;
	int rc;

	TRY(check_month("since", since, &r->err));
	TRY(check_month("until", until, &r->err));
	rows = xcalloc(1, sizeof *rows);
	rows->until = until;
	rc = usage_each(d->state, since, take_sum, rows, &r->err);
	if (rc == TF_ELIMIT)
		err_set(&r->err, rc, "more than %u sums: ask for fewer months (since, until)",
			LIMIT_USAGE_LISTED);
	if (rc == 0)
		rc = add_running(d, rows, since, &r->err);
	if (rc == 0) {
		usage.n_row = rows->count;
		usage.row = rows->list;
		reply.body_case = TF__REPLY__BODY_USAGE;
		reply.usage = &usage;
		reply_put(d, r, &reply);
	}
	for (size_t i = 0; i < rows->count; i++)
		xfree(rows->text[i]);
	xfree(rows);
	return rc;
}
