/* SPDX-License-Identifier: Apache-2.0
 * top: slots, users and jobs on a screen that is drawn again every second; once, as plain text,
 * where there is no terminal; as JSON. */
#include "config.h"
#include "client/client.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TOP_ASK_MS 3000
#define BAR_COLUMNS 10
#define USERS_ON_SCREEN 6
#define IDLE_ON_SCREEN 4

static int ask_overview(struct client *c, uint32_t jobs, int64_t timeout_ms, Tf__Reply **out,
			struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__OverviewAsk m = TF__OVERVIEW_ASK__INIT;

	m.has_jobs = true;
	m.jobs = jobs < LIMIT_OVERVIEW_JOBS ? jobs : LIMIT_OVERVIEW_JOBS;
	r.body_case = TF__REQUEST__BODY_OVERVIEW;
	r.overview = &m;
	return client_ask_for(c, &r, TF__REPLY__BODY_OVERVIEW, timeout_ms, out, e);
}

/* ---- for people */

static void put_head(struct buf *out, const Tf__Overview *o)
{
	char clock[CLOCK_TEXT_MAX], a[FORMAT_MAX], b[FORMAT_MAX], *user = text_safe(o->user);
	bool any = false;

	clock_format_ms(o->now, clock);
	buf_printf(out, "transfused  %s  you are %s", clock, user);
	if (o->has_load)
		buf_printf(out, "  load %.2f", o->load);
	if (o->has_memory && o->has_memory_free) {
		format_bytes(o->memory - o->memory_free, a);
		format_bytes(o->memory, b);
		buf_printf(out, "  memory %s of %s", a, b);
	}
	if (o->has_disk_free) {
		format_bytes(o->disk_free, a);
		buf_printf(out, "  disk %s free", a);
	}
	buf_text(out, "\njobs: ");
	for (size_t i = 0; i < o->slots->n_count; i++) {
		const Tf__KeyValue *count = o->slots->count[i];

		if (strcmp(count->value, "0") != 0) {
			buf_printf(out, "%s%s %s", any ? ", " : "", count->value, count->key);
			any = true;
		}
	}
	buf_printf(out, "%s%s%s\n", any ? "" : "none",
		   o->slots->draining ? "; DRAINED, nothing new starts" : "",
		   o->slots->read_only ? "; READ-ONLY, see the daemon's log" : "");
	xfree(user);
}

static void put_users(struct buf *out, const Tf__Slots *s, size_t most, int width)
{
	static const char *const head[] = { "user", "running", "queued", "waiting", "gpus" };
	struct table t;

	if (s->n_user == 0)
		return;
	table_init(&t, "lrrrr", head);
	for (size_t i = 0; i < s->n_user && i < most; i++) {
		const Tf__UserLoad *u = s->user[i];
		char n[4][FORMAT_MAX];

		format_count(u->running, n[0]);
		format_count(u->queued, n[1]);
		format_count(u->waiting, n[2]);
		format_count(u->gpus, n[3]);
		table_add(&t, (const char *[]){ u->user, n[0], n[1], n[2], n[3] });
	}
	buf_text(out, "\n");
	table_render(&t, width, out);
	if (s->n_user > most)
		buf_printf(out, "and %zu more\n", s->n_user - most);
}

/* "[====      ] 42 %" */
static void format_progress(const Tf__Progress *p, char out[FORMAT_MAX])
{
	double share;
	int full, n;

	out[0] = 0;
	if (!p || !p->has_total || !p->total || !p->has_done)
		return;
	share = fmin((double)p->done / (double)p->total, 1);
	full = (int)(share * BAR_COLUMNS);
	n = snprintf(out, FORMAT_MAX, "[%.*s%*s]", full, "==========", BAR_COLUMNS - full, "");
	snprintf(out + n, (size_t)(FORMAT_MAX - n), " %3.0f %%", 100 * share);
}

static void add_job(struct table *t, const Tf__Job *j)
{
	const Tf__Progress *p = j->progress;
	char id[24], place[16], bar[FORMAT_MAX], rate[FORMAT_MAX] = "", left[FORMAT_MAX],
	     start[FORMAT_MAX];

	snprintf(id, sizeof id, "%" PRIu64, j->id);
	snprintf(place, sizeof place, "%u", j->place);
	format_progress(p, bar);
	if (p && p->has_rate && p->rate > 0)
		snprintf(rate, sizeof rate, p->rate < 999.5 ? "%.3g %s/s" : "%.0f %s/s", p->rate,
			 p->unit ? p->unit : "");
	format_left(j, left);
	format_until(j->has_expected_start ? j->expected_start : 0, start);
	table_add(t, (const char *[]){ id, j->user, job_kind_name(j->kind), j->name,
				       job_state_name(j->state), j->slot,
				       j->has_place ? place : NULL, *start ? start : NULL, bar,
				       rate, left,
				       j->waits && *j->waits	 ? j->waits
				       : j->reason && *j->reason ? j->reason
				       : p && p->phase		 ? p->phase
								 : " " });
}

static void put_jobs(struct buf *out, const Tf__Overview *o, int width)
{
	static const char *const head[] = { "id",    "user",  "kind",	  "name", "state", "slot",
					    "place", "start", "progress", "rate", "eta",   "note" };
	struct table t;

	if (o->n_job == 0)
		return;
	table_init(&t, "rlllllrlrrrl", head);
	for (size_t i = 0; i < o->n_job; i++)
		add_job(&t, o->job[i]);
	buf_text(out, "\n");
	table_render(&t, width, out);
	if (o->left_out)
		buf_printf(out, "and %" PRIu64 " more\n", o->left_out);
}

static bool is_idle(const Tf__SlotState *s)
{
	return s->n_jobs == 0 && !s->drained && s->memory == 0 && !s->gpu;
}

/* Free slots of the processor beyond so many are only counted. */
static void put_slots(struct buf *out, const Tf__Slots *s, size_t idle_most, int width)
{
	Tf__Slots few = *s;
	struct table t;
	size_t idle = 0;

	few.n_slot = 0;
	few.slot = xcalloc(s->n_slot + 1, sizeof *few.slot);
	for (size_t i = 0; i < s->n_slot; i++) {
		idle += is_idle(s->slot[i]);
		if (!is_idle(s->slot[i]) || idle <= idle_most)
			few.slot[few.n_slot++] = s->slot[i];
	}
	table_of_slots(&t, &few);
	table_render(&t, width, out);
	if (idle > idle_most)
		buf_printf(out, "and %zu more that are free\n", idle - idle_most);
	xfree(few.slot);
}

/* width 0: nothing is cut. whole: nothing is only counted. */
static void put_overview(struct buf *out, const Tf__Overview *o, bool whole, int width)
{
	put_head(out, o);
	buf_text(out, "\n");
	put_slots(out, o->slots, whole ? SIZE_MAX : IDLE_ON_SCREEN, width);
	if (o->slots->fault) {
		char *fault = text_safe(o->slots->fault);

		buf_printf(out, "GPUs are not watched: %s\n", fault);
		xfree(fault);
	}
	put_users(out, o->slots, whole ? SIZE_MAX : USERS_ON_SCREEN, width);
	put_jobs(out, o, width);
}

/* ---- for programs */

static json_t *json_of_overview(const Tf__Overview *o)
{
	json_t *top = json_object(), *slots = json_array(), *users = json_array(),
	       *jobs = json_array();
	char now[CLOCK_TEXT_MAX];

	clock_format_ms(o->now, now);
	for (size_t i = 0; i < o->slots->n_slot; i++)
		json_array_append_new(slots, json_of_slot(o->slots->slot[i]));
	for (size_t i = 0; i < o->slots->n_user; i++) {
		const Tf__UserLoad *u = o->slots->user[i];

		json_array_append_new(users, json_pack("{sssIsIsIsI}", "user", u->user, "running",
						       (json_int_t)u->running, "queued",
						       (json_int_t)u->queued, "waiting",
						       (json_int_t)u->waiting, "gpus",
						       (json_int_t)u->gpus));
	}
	for (size_t i = 0; i < o->n_job; i++)
		json_array_append_new(jobs, json_of_job(o->job[i]));
	json_object_set_new(top, "time", json_string(now));
	json_object_set_new(top, "user", json_string(o->user));
	json_object_set_new(top, "load", o->has_load ? json_real(o->load) : json_null());
	json_object_set_new(top, "memory", json_integer((json_int_t)o->memory));
	json_object_set_new(top, "memory_free", json_integer((json_int_t)o->memory_free));
	json_object_set_new(top, "disk_free", json_integer((json_int_t)o->disk_free));
	json_object_set_new(top, "draining", json_boolean(o->slots->draining));
	json_object_set_new(top, "read_only", json_boolean(o->slots->read_only));
	json_object_set_new(top, "gpu_driver",
			    o->slots->driver ? json_string(o->slots->driver) : json_null());
	json_object_set_new(top, "gpu_fault",
			    o->slots->fault ? json_string(o->slots->fault) : json_null());
	json_object_set_new(top, "counts", json_of_pairs(o->slots->n_count, o->slots->count));
	json_object_set_new(top, "slots", slots);
	json_object_set_new(top, "users", users);
	json_object_set_new(top, "jobs", jobs);
	json_object_set_new(top, "jobs_left_out", json_integer((json_int_t)o->left_out));
	return top;
}

/* ---- the screen */

static void paint(const Tf__Overview *o, const char *trouble)
{
	struct buf text = BUF_INIT;
	int width, height;

	screen_size(&width, &height);
	if (*trouble) {
		char *safe = text_safe(trouble);

		buf_printf(&text, "NO ANSWER: %s (q leaves)\n", safe);
		xfree(safe);
	}
	put_overview(&text, o, false, width);
	screen_paint(text.data);
	buf_release(&text);
}

/* Until the next look is due: keys, and a terminal of another size. False: q was pressed. */
static bool pass_time(const Tf__Overview *o, const char *trouble, int64_t until_ms)
{
	for (;;) {
		int64_t left = until_ms - clock_mono_ms();
		int key = screen_key(left > 0 ? left : 0);

		if (key == 'q' || key == 'Q')
			return false;
		if (key == SCREEN_STALE)
			paint(o, trouble);
		else if (left <= 0 || key == ' ')
			return true;
	}
}

/* A daemon that is away for a while is no reason to leave. */
static int run_live(struct client *c, Tf__Reply *reply, uint32_t jobs, int64_t every_ms)
{
	struct err e = ERR_INIT;
	bool more = true;

	screen_open();
	while (more) {
		Tf__Reply *next = NULL;
		int64_t now = clock_mono_ms();

		paint(reply->overview, e.text);
		more = pass_time(reply->overview, e.text, now + every_ms);
		err_clear(&e);
		if (more && ask_overview(c, jobs, TOP_ASK_MS, &next, &e) == 0) {
			tf__reply__free_unpacked(reply, NULL);
			reply = next;
		}
	}
	screen_close();
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}

int verb_top(struct client *c, struct err *e)
{
	bool json = args_has(&c->args, OPTION_JSON);
	double every = 1;
	int64_t jobs = LIMIT_OVERVIEW_JOBS;
	Tf__Reply *reply;

	TRY(args_float(&c->args, OPTION_EVERY, 0.1, 3600, &every, e));
	TRY(args_int(&c->args, OPTION_LIMIT, 0, LIMIT_OVERVIEW_JOBS, &jobs, e));
	TRY(ask_overview(c, (uint32_t)jobs, ASK_MS, &reply, e));
	if (!json && !args_has(&c->args, OPTION_ONCE) && terminal_width(STDOUT_FILENO))
		return run_live(c, reply, (uint32_t)jobs, (int64_t)(1000 * every));
	if (json) {
		json_print(json_of_overview(reply->overview));
	} else {
		struct buf text = BUF_INIT;

		put_overview(&text, reply->overview, true, terminal_width(STDOUT_FILENO));
		fputs(text.data, stdout);
		buf_release(&text);
	}
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}
