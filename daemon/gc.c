/* SPDX-License-Identifier: Apache-2.0
 * Retention: what keep_logs_days, keep_results_days and keep_checkpoints no longer keep. Records of
 * jobs stay; their folders go with the last thing that is kept in them. A model that a job or
 * another artefact uses, or that is being made, keeps all its checkpoints. A pass looks at a
 * bounded number of artefacts, then of jobs from the oldest on, and says where the next one goes
 * on; a whole round is made once an hour, the first ten minutes after the start. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "daemon/submit.h"
#include "lib/bound.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "store/checkpoints.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUND_MS (3600 * 1000)
#define FIRST_MS (10 * 60 * 1000)
#define DAY_MS (24 * 3600 * 1000LL)
#define LOOKED_MAX 5000

/* Where a round stands: first artefacts by id, then jobs by number. */
struct place {
	char artefact[LIMIT_NAME_BYTES + 25]; /* begin with this id; "": with the first */
	uint64_t job;                         /* not 0: artefacts are done */
};

struct gc {
	struct daemon *d;
	bool dry_run;
	int64_t now_ms;
	struct place at; /* of the entry being looked at; after the pass: of the next */
	bool more;
	size_t looked;
	Tf__GcItem *item[LIMIT_GC_LISTED];
	size_t items;
	uint64_t bytes;
	struct buf changed; /* uint64_t: jobs whose folders shrank */
	struct err *e;
};

static bool gc_full(struct gc *g)
{
	g->more = g->looked >= LOOKED_MAX || g->items + 8 > bound("gc-listed", LIMIT_GC_LISTED);
	return g->more;
}

/* Takes rel (below the state folder) away, or would. aside: what it is called by now. */
static void let_go(struct gc *g, const char *rel, const char *aside, const char *why)
{
	char *path = daemon_path(g->d, "%s", aside ? aside : rel);
	Tf__GcItem *item = xmalloc(sizeof *item);
	int64_t size = file_size(path);

	tf__gc_item__init(item);
	item->path = xstrdup(rel);
	item->why = xstrdup(why);
	item->bytes = dir_is(path) ? (uint64_t)dir_size(path) : size > 0 ? (uint64_t)size : 0;
	g->bytes += item->bytes;
	g->item[g->items++] = item;
	if (g->dry_run)
		xfree(path);
	else
		loop_doom(g->d, path);
}

/* ---------------------------------------------------------------- checkpoints */

static bool is_used(struct gc *g, const char *id)
{
	char who, *name = NULL;
	int rc = use_find(g->d->state, id, &who, &name, NULL);

	xfree(name);
	return rc != TF_ENOTFOUND;
}

static int old_checkpoints(struct gc *g, const Tf__Artefact *a)
{
	char *rel = xasprintf("%s/%s", artefact_kind_folder(a->kind), a->id), why[80];
	char *folder = daemon_path(g->d, "%s", rel);
	uint64_t *step = NULL;
	size_t count = 0;
	int rc = checkpoints_superfluous(folder, g->d->options.keep_checkpoints, 0, &step, &count,
					 g->e);

	snprintf(why, sizeof why, "older than the newest %lld and not the best",
		 (long long)g->d->options.keep_checkpoints);
	for (size_t i = 0; rc == 0 && i < count && g->items + 8 < LIMIT_GC_LISTED; i++) {
		char name[CHECKPOINT_NAME_MAX], *one, *aside = NULL;

		checkpoint_name(step[i], name);
		one = xasprintf("%s/%s", rel, name);
		if (!g->dry_run) /* nobody may find it any more, from now on */
			rc = checkpoint_set_aside(folder, step[i], &aside, g->e);
		if (rc == 0)
			let_go(g, one, aside ? aside + strlen(g->d->folder) + 1 : NULL, why);
		xfree(aside);
		xfree(one);
	}
	xfree(step);
	xfree(folder);
	xfree(rel);
	return rc;
}

static int look_at_artefact(void *arg, const Tf__Artefact *a)
{
	struct gc *g = arg;
	bool steps = a->kind == TF__ARTEFACT_KIND__MODEL || a->kind == TF__ARTEFACT_KIND__VAE_MODEL;

	snprintf(g->at.artefact, sizeof g->at.artefact, "%s", a->id);
	if (gc_full(g))
		return 1;
	g->looked++;
	if (!steps || strcmp(a->state, ARTEFACT_MAKING) == 0 || is_used(g, a->id))
		return 0;
	return old_checkpoints(g, a);
}

/* ---------------------------------------------------------------- jobs */

/* What a job's folder keeps for people, and for how long. */
struct keeping {
	const char *option;
	int64_t days; /* 0: for ever */
	const char *names[3];
};

static bool is_over(const struct gc *g, const Tf__Job *j, const struct keeping *k)
{
	return k->days > 0 && g->now_ms - j->ended > k->days * DAY_MS;
}

/* Whether the job's folder (name ""), or an entry of it, is there. */
static bool has(struct gc *g, const Tf__Job *j, const char *name)
{
	char *path = daemon_path(g->d, "jobs/%llu/%s", (unsigned long long)j->id, name);
	bool there = file_exists(path);

	xfree(path);
	return there;
}

static bool has_any(struct gc *g, const Tf__Job *j, const struct keeping *k)
{
	for (size_t i = 0; k->names[i]; i++)
		if (has(g, j, k->names[i]))
			return true;
	return false;
}

/* An entry of a job's folder goes, or with "" all of it. */
static void let_go_of_job(struct gc *g, const Tf__Job *j, const char *name, const struct keeping *k)
{
	char why[120], *rel = xasprintf("jobs/%llu%s%s", (unsigned long long)j->id,
					*name ? "/" : "", name);

	snprintf(why, sizeof why, "the job ended %lld days ago (%s %lld)",
		 (long long)((g->now_ms - j->ended) / DAY_MS), k->option, (long long)k->days);
	let_go(g, rel, NULL, why);
	if (g->changed.len < sizeof j->id ||
	    memcmp(g->changed.data + g->changed.len - sizeof j->id, &j->id, sizeof j->id) != 0)
		buf_append(&g->changed, &j->id, sizeof j->id);
	xfree(rel);
}

/* A folder in which nothing is kept any more goes as a whole, with the outcomes, which the job's
 * record has. A process that is still there, of an attempt that was given up, keeps it. */
static void look_at_folder(struct gc *g, const Tf__Job *j, const struct keeping kept[2])
{
	bool over[2], whole = true;

	for (int i = 0; i < 2; i++) {
		over[i] = is_over(g, j, &kept[i]);
		whole &= over[i] || !has_any(g, j, &kept[i]);
	}
	if (whole && !worker_is_left(g->d, j->id)) {
		let_go_of_job(g, j, "", &kept[over[0] ? 0 : 1]);
		return;
	}
	for (int i = 0; i < 2; i++)
		for (size_t n = 0; over[i] && kept[i].names[n]; n++)
			if (has(g, j, kept[i].names[n]))
				let_go_of_job(g, j, kept[i].names[n], &kept[i]);
}

static int look_at_job(void *arg, Tf__JobRecord *r)
{
	const struct options *o = &((struct gc *)arg)->d->options;
	const struct keeping kept[2] = {
		{ "keep_logs_days", o->keep_logs_days, { "log", "metrics.jsonl", NULL } },
		{ "keep_results_days", o->keep_results_days, { "results", NULL } },
	};
	struct gc *g = arg;
	int64_t least = o->keep_logs_days;

	g->at.job = r->job->id;
	if (gc_full(g))
		return 1;
	g->looked++;
	if (least == 0 || (o->keep_results_days && o->keep_results_days < least))
		least = o->keep_results_days;
	if (g->now_ms - r->job->submitted <= least * DAY_MS)
		return 1; /* later ones are younger still */
	if (job_state_is_end(r->job->state) &&
	    (is_over(g, r->job, &kept[0]) || is_over(g, r->job, &kept[1])) && has(g, r->job, ""))
		look_at_folder(g, r->job, kept);
	return 0;
}

/* ---------------------------------------------------------------- a pass */

static int run_pass(struct gc *g)
{
	const struct options *o = &g->d->options;

	g->now_ms = clock_wall_ms();
	if (g->at.job == 0 && o->keep_checkpoints > 0)
		TRY(artefacts_each_from(g->d->state, g->at.artefact, look_at_artefact, g, g->e));
	if (g->more || (o->keep_logs_days == 0 && o->keep_results_days == 0))
		return 0;
	TRY(jobs_each_upward(g->d->state, g->at.job, look_at_job, g, g->e));
	for (size_t i = 0; !g->dry_run && i < g->changed.len; i += sizeof(uint64_t)) {
		uint64_t id;

		memcpy(&id, g->changed.data + i, sizeof id);
		TRY(quota_job_shrank(g->d, id, g->item, g->items, g->e));
	}
	return 0;
}

static void pass_release(struct gc *g)
{
	for (size_t i = 0; i < g->items; i++)
		tf__gc_item__free_unpacked(g->item[i], NULL);
	buf_release(&g->changed);
	xfree_(g);
}

static char *place_text(const struct place *p)
{
	return p->job ? xasprintf("j%llu", (unsigned long long)p->job)
		      : xasprintf("a%s", p->artefact);
}

static int place_parse(const char *text, struct place *p, struct err *e)
{
	*p = (struct place){ 0 };
	FAIL_IF(*text && *text != 'a' && *text != 'j', e, TF_EINVALID,
		"from '%.20s': expected what an earlier answer called next", text);
	if (*text == 'j')
		p->job = strtoull(text + 1, NULL, 10);
	else if (*text)
		snprintf(p->artefact, sizeof p->artefact, "%s", text + 1);
	return 0;
}

int handle_gc(struct daemon *d, struct request *r)
{
	const Tf__Gc *m = r->message->gc;
	struct gc *g = xcalloc(1, sizeof *g);
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__GcReport report = TF__GC_REPORT__INIT;
	int rc = place_parse(m->from ? m->from : "", &g->at, &r->err);

	g->d = d;
	g->dry_run = m->dry_run;
	g->e = &r->err;
	if (rc == 0)
		rc = run_pass(g);
	if (rc == 0) {
		report.n_item = g->items;
		report.item = g->item;
		report.bytes = g->bytes;
		report.next = g->more ? place_text(&g->at) : NULL;
		reply.body_case = TF__REPLY__BODY_GC;
		reply.gc = &report;
		reply_put(d, r, &reply);
		xfree(report.next);
	}
	pass_release(g);
	return rc;
}

void gc_tick(struct daemon *d)
{
	const struct options *o = &d->options;
	struct err e = ERR_INIT;
	struct gc *g;

	if (d->gc_at_ms == 0) /* time to look what a changed option would do */
		d->gc_at_ms = clock_mono_ms() + FIRST_MS;
	if ((!o->keep_checkpoints && !o->keep_logs_days && !o->keep_results_days) ||
	    clock_mono_ms() < d->gc_at_ms)
		return;
	g = xcalloc(1, sizeof *g);
	g->d = d;
	g->e = &e;
	place_parse(d->gc_next, &g->at, NULL);
	if (run_pass(g) < 0)
		log_error("letting old files go: %s", e.text);
	if (g->items > 0)
		log_info("%zu old files and folders go, %llu bytes", g->items,
			 (unsigned long long)g->bytes);
	d->gc_next[0] = 0;
	if (g->more) {
		char *next = place_text(&g->at);

		snprintf(d->gc_next, sizeof d->gc_next, "%s", next);
		xfree(next);
	} else {
		d->gc_at_ms = clock_mono_ms() + ROUND_MS;
	}
	pass_release(g);
}
