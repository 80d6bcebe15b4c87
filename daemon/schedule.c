/* SPDX-License-Identifier: Apache-2.0
 * The order of the queue and what is decided from it; see schedule.h. Nothing here has a memory of
 * its own: the `pass` of a user is scratch of the decision being made. */
#include "config.h"
#include "daemon/schedule.h"
#include "lib/mem.h"

#include <stdlib.h>
#include <string.h>

/* Jobs looked at in one decision, in their order: what is behind has to wait for another. */
#define SCAN_MAX 10000

/* ---------------------------------------------------------------- jobs */

void line_add(struct job *j)
{
	struct line *l = &j->user->line[j->lane];
	struct job *before = l->last;

	if (l->first && l->first->id > j->id)
		before = NULL; /* a job that was queued again goes back to the front */
	while (before && before->id > j->id)
		before = before->before;
	j->before = before;
	j->after = before ? before->after : l->first;
	*(j->before ? &j->before->after : &l->first) = j;
	*(j->after ? &j->after->before : &l->last) = j;
	j->user->queued++;
}

void line_remove(struct job *j)
{
	struct line *l = &j->user->line[j->lane];

	CHECK(j->user->queued > 0);
	*(j->before ? &j->before->after : &l->first) = j->after;
	*(j->after ? &j->after->before : &l->last) = j->before;
	j->before = j->after = NULL;
	j->user->queued--;
}

enum lane lane_of(Tf__JobKind kind, Tf__Priority priority, int64_t walltime_ms)
{
	bool fast = kind == TF__JOB_KIND__GENERATE && walltime_ms > 0 &&
		    walltime_ms <= FAST_SECONDS * 1000;

	if (fast && (priority == TF__PRIORITY__NORMAL || priority == TF__PRIORITY__HIGH))
		return LANE_FAST;
	return (enum lane)(LANE_LOW + (priority - TF__PRIORITY__LOW));
}

struct demand job_demand(const struct machine *m, const struct job *j)
{
	static const unsigned computes = 1u << TF__JOB_KIND__VAE | 1u << TF__JOB_KIND__TRAIN |
					 1u << TF__JOB_KIND__EVAL | 1u << TF__JOB_KIND__GENERATE;
	struct demand want = j->demand;
	bool gpu = j->device == DEVICE_CUDA;

	if (j->device == DEVICE_ANY && m->gpus)
		gpu = m->slots == 0 || computes >> j->kind & 1;
	if (gpu && want.gpus == 0 && want.gpu_mem == 0)
		want.gpus = 1;
	want.fast = j->lane == LANE_FAST;
	return want;
}

int64_t job_ends_ms(const struct job *j, int64_t start_ms)
{
	int64_t left = j->walltime_ms - j->ran_ms;

	return j->walltime_ms ? start_ms + (left > 0 ? left : 0) : NEVER_MS;
}

/* ---------------------------------------------------------------- the order */

/* One line, from the next job on. */
struct cursor {
	struct user_share *user;
	enum lane lane;
	struct job *at; /* the next to give */
	int rank;
	double key;
	uint64_t id;
};

struct order {
	const struct schedule_input *in;
	struct cursor *cursor;
	size_t count, i;
	struct job *given;
};

enum { RANK_URGENT, RANK_FAST, RANK_OVERDUE, RANK_HIGH, RANK_NORMAL, RANK_LOW };

/* Where the line stands: its class, unless it got nothing for too long; within the class by what
 * the user has had, weighed; overdue ones by how long they wait. */
static void cursor_rank(const struct order *o, struct cursor *c)
{
	static const int rank[LANES] = { [LANE_LOW] = RANK_LOW,
					 [LANE_NORMAL] = RANK_NORMAL,
					 [LANE_HIGH] = RANK_HIGH,
					 [LANE_URGENT] = RANK_URGENT,
					 [LANE_FAST] = RANK_FAST };
	const struct user_share *u = c->user;
	int64_t since = u->pass.last_start_ms[c->lane];

	c->rank = rank[c->lane];
	c->key = (u->pass.used + LOOKAHEAD_S * u->pass.rate.units) / u->limits.weight;
	if (!c->at)
		return;
	c->id = c->at->id;
	if (c->at->submitted_ms > since)
		since = c->at->submitted_ms;
	if (c->at->begin_ms > since)
		since = c->at->begin_ms;
	if (c->rank > RANK_OVERDUE && o->in->now_ms - since >= o->in->rules.aging_ms) {
		c->rank = RANK_OVERDUE;
		c->key = (double)since;
	}
}

static int cursor_compare(const void *a, const void *b)
{
	const struct cursor *x = a, *y = b;

	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	return x->id < y->id ? -1 : x->id > y->id;
}

/* True when a limit of the user stops all their jobs. */
static bool user_is_full(const struct user_share *u, int64_t now_ms)
{
	return (u->limits.running && u->pass.running >= u->limits.running) ||
	       (u->limits.gpu_hours &&
		share_month_gpu_s(u, now_ms) >= 3600.0 * u->limits.gpu_hours);
}

struct order *order_open(const struct schedule_input *in)
{
	struct order *o = xcalloc(1, sizeof *o);
	const struct shares *s = in->shares;

	o->in = in;
	for (size_t i = 0; i < s->groups; i++)
		s->group[i]->starting = 0;
	o->cursor = xcalloc(s->count * LANES + 1, sizeof *o->cursor);
	for (size_t i = 0; i < s->count; i++) {
		struct user_share *u = s->user[i];

		if (u->queued == 0)
			continue;
		u->pass.used = share_used(u, s->half_life_s, in->now_ms);
		u->pass.rate = u->rate;
		u->pass.running = u->running;
		u->pass.closed = user_is_full(u, in->now_ms);
		memcpy(u->pass.last_start_ms, u->last_start_ms, sizeof u->last_start_ms);
		for (enum lane lane = 0; lane < LANES; lane++)
			if (u->line[lane].first) {
				struct cursor *c = &o->cursor[o->count++];

				c->user = u;
				c->lane = lane;
				c->at = u->line[lane].first;
				cursor_rank(o, c);
			}
	}
	if (o->count > 1)
		qsort(o->cursor, o->count, sizeof *o->cursor, cursor_compare);
	return o;
}

struct job *order_next(struct order *o)
{
	struct cursor *c = &o->cursor[o->i];

	while (o->i < o->count && !c->at)
		c = &o->cursor[++o->i];
	if (o->i >= o->count)
		return NULL;
	o->given = c->at;
	c->at = c->at->after;
	if (c->at) /* of thousands of jobs, memory is what takes the time */
		__builtin_prefetch(&c->at->deadline_ms);
	return o->given;
}

/* The lines of a user moved back; those from i on are put in order again (nearly all of them are).
 */
static void order_again(struct order *o, const struct user_share *user)
{
	for (size_t k = o->i; k < o->count; k++)
		if (o->cursor[k].user == user)
			cursor_rank(o, &o->cursor[k]);
	for (size_t k = o->i + 1; k < o->count; k++) {
		struct cursor c = o->cursor[k];
		size_t to = k;

		for (; to > o->i && cursor_compare(&c, &o->cursor[to - 1]) < 0; to--)
			o->cursor[to] = o->cursor[to - 1];
		o->cursor[to] = c;
	}
}

void order_start(struct order *o, struct charge c)
{
	struct user_share *u = o->given->user;

	u->pass.rate.units += c.units;
	u->pass.rate.gpus += c.gpus;
	u->pass.rate.held += c.held;
	u->pass.running++;
	if (o->given->group)
		o->given->group->starting++;
	u->pass.last_start_ms[o->given->lane] = o->in->now_ms;
	u->pass.closed = user_is_full(u, o->in->now_ms);
	order_again(o, u);
}

void order_close(struct order *o)
{
	xfree(o->cursor);
	xfree(o);
}

/* ---------------------------------------------------------------- a decision */

/* Something that ends, sooner or later. */
struct end {
	int64_t ms;
	const struct holding *holding;
};

struct pass {
	const struct schedule_input *in;
	struct order *order;
	struct room free;  /* now */
	struct room later; /* when the first in line starts, less what it takes */
	struct room both;  /* free now and not needed then */
	bool both_is_stale;
	uint32_t joined[LIMIT_WORKERS]; /* jobs that each process has taken in */
	uint64_t rooms;                 /* that are left in all of them */
	struct first_in_line first;
	struct decision *out;
	size_t room, n;
};

static bool nothing_left(const struct room *r)
{
	return !(r->slots | r->fast | r->whole | r->part);
}

/* Whether limits and times allow the job to start now; but for its GPUs. */
static bool may_start(const struct schedule_input *in, const struct job *j)
{
	if (j->begin_ms > in->now_ms || j->user->pass.closed)
		return false;
	if (j->group && j->group->running + j->group->starting >= j->group_most)
		return false;
	return !j->deadline_ms || j->deadline_ms >= job_ends_ms(j, in->now_ms) ||
	       (!j->walltime_ms && j->deadline_ms > in->now_ms);
}

/* Whether the user may have so many GPUs more. */
static bool may_have(const struct user_share *u, double gpus)
{
	return !u->limits.gpus || gpus == 0 || u->pass.rate.held + gpus <= u->limits.gpus + 1e-6;
}

/* Whether the job is out of the way when the first in line starts; without a walltime never. */
static bool ends_in_time(const struct pass *p, const struct job *j)
{
	int64_t ends = job_ends_ms(j, p->in->now_ms);

	return !p->first.job || (ends != NEVER_MS && ends <= p->first.start_ms);
}

static bool fits(struct pass *p, const struct job *j, const struct demand *want,
		 struct holding *out)
{
	if (ends_in_time(p, j))
		return room_place(&p->free, want, out);
	if (p->both_is_stale)
		room_common(&p->both, &p->free, &p->later);
	p->both_is_stale = false;
	return room_place(&p->both, want, out);
}

static void start(struct pass *p, struct job *j, struct holding *h)
{
	h->job = j->id;
	room_take(&p->free, p->in->machine, h);
	if (!ends_in_time(p, j))
		room_take(&p->later, p->in->machine, h);
	p->both_is_stale = true;
	p->out[p->n++] =
		(struct decision){ .kind = DECIDE_START, .job = j->id, .start = j, .holding = *h };
	order_start(p->order, charge_of(p->in->machine, h, (Tf__Priority)j->priority));
}

/* Whether a job of the user is in the process, or was just decided to come into it. */
static bool is_in(const struct pass *p, const struct running *r, const struct user_share *u)
{
	for (uint32_t i = 0; i < r->jobs && i < LIMIT_JOINED; i++)
		if (r->user[i] == u)
			return true;
	for (size_t i = 0; i < p->n; i++)
		if (p->out[i].kind == DECIDE_JOIN && p->out[i].beside == r->holding.job &&
		    p->out[i].start->user == u)
			return true;
	return false;
}

/* Runs beside jobs of its kind in their process: where there is no free place for it. It is in
 * nobody's way, unless that process is to end for the first in line. Its user has the GPU of the
 * process from then on: with a job there already, nothing more. */
static bool join(struct pass *p, struct job *j)
{
	for (size_t i = 0; j->together && ends_in_time(p, j) && i < p->in->runnings; i++) {
		const struct running *r = &p->in->running[i];
		struct charge c = charge_of(p->in->machine, &r->holding, (Tf__Priority)j->priority);
		uint32_t jobs = r->jobs + p->joined[i] + 1;

		if (r->together != j->together || r->stopping || p->joined[i] >= r->room)
			continue;
		c.held = is_in(p, r, j->user) ? 0 : c.held;
		if (!may_have(j->user, c.held))
			continue;
		p->joined[i]++;
		p->rooms--;
		p->out[p->n++] = (struct decision){ .kind = DECIDE_JOIN,
						    .job = j->id,
						    .start = j,
						    .beside = r->holding.job,
						    .holding = { .slot = -1 } };
		order_start(p->order, (struct charge){ c.units / jobs, c.gpus / jobs, c.held });
		return true;
	}
	return false;
}

/* ---------------------------------------------------------------- the first in line */

static int by_end(const void *a, const void *b)
{
	const struct end *x = a, *y = b;

	return x->ms < y->ms ? -1 : x->ms > y->ms;
}

/* Everything that runs or was just decided to, by its end. */
static size_t list_ends(const struct pass *p, struct end *end)
{
	size_t n = 0;

	for (size_t i = 0; i < p->in->runnings; i++) {
		const struct running *r = &p->in->running[i];

		end[n++] = (struct end){ r->stopping || r->ends_ms < p->in->now_ms ? p->in->now_ms
										   : r->ends_ms,
					 &r->holding };
	}
	for (size_t i = 0; i < p->n; i++)
		if (p->out[i].kind == DECIDE_START)
			end[n++] = (struct end){ job_ends_ms(p->out[i].start, p->in->now_ms),
						 &p->out[i].holding };
	if (n > 1)
		qsort(end, n, sizeof *end, by_end);
	return n;
}

/* What is free when the first `ended` of them have ended. */
static void room_after(const struct pass *p, const struct end *end, size_t n, size_t ended,
		       struct room *out)
{
	room_init(out, p->in->machine, false);
	for (size_t i = ended; i < n; i++)
		room_take(out, p->in->machine, end[i].holding);
}

/* When j can start at the latest, and what is left then for others. */
static void reserve(struct pass *p, const struct job *j, const struct demand *want)
{
	struct end end[2 * LIMIT_WORKERS];
	size_t n = list_ends(p, end), known = n, low, high;
	struct holding h;

	while (known > 0 && end[known - 1].ms == NEVER_MS)
		known--;
	p->first = (struct first_in_line){ .job = j->id, .start_ms = NEVER_MS, .ahead = p->n };
	p->both_is_stale = true;
	room_after(p, end, n, known, &p->later);
	if (!room_place(&p->later, want, &h)) {
		room_claim(&p->later, want);
		return;
	}
	for (low = 0, high = known; low < high;) { /* the fewest ends that suffice */
		size_t middle = low + (high - low) / 2;

		room_after(p, end, n, middle, &p->later);
		if (room_place(&p->later, want, &h))
			high = middle;
		else
			low = middle + 1;
	}
	p->first.start_ms = low ? end[low - 1].ms : p->in->now_ms;
	while (low < known && end[low].ms <= p->first.start_ms)
		low++; /* they end then, too */
	room_after(p, end, n, low, &p->later);
	if (room_place(&p->later, want, &h))
		room_take(&p->later, p->in->machine, &h);
}

/* ---------------------------------------------------------------- stepping back */

static int by_loss(const void *a, const void *b)
{
	const struct running *x = *(const struct running *const *)a,
			     *y = *(const struct running *const *)b;

	if (x->priority != y->priority)
		return x->priority < y->priority ? -1 : 1;
	return x->started_ms > y->started_ms ? -1 : x->started_ms < y->started_ms;
}

static size_t list_victims(const struct pass *p, const struct job *j,
			   const struct running *victim[LIMIT_WORKERS])
{
	size_t n = 0;

	for (size_t i = 0; i < p->in->runnings; i++) {
		const struct running *r = &p->in->running[i];

		if (r->may_step_back && !r->stopping && r->priority < j->priority &&
		    r->started_ms + p->in->rules.preempt_after_ms <= p->in->now_ms)
			victim[n++] = r;
	}
	if (n > 1)
		qsort(victim, n, sizeof *victim, by_loss);
	return n;
}

/* What is free when those that were told to leave have left, and these victims, too. */
static void room_without(const struct pass *p, const struct running *const *victim, size_t victims,
			 struct room *out)
{
	room_init(out, p->in->machine, false);
	for (size_t i = 0; i < p->in->runnings; i++) {
		const struct running *other = &p->in->running[i];
		bool leaves = other->stopping;

		for (size_t k = 0; k < victims && !leaves; k++)
			leaves = victim[k] == other;
		if (!leaves)
			room_take(out, p->in->machine, &other->holding);
	}
	for (size_t i = 0; i < p->n; i++)
		room_take(out, p->in->machine, &p->out[i].holding);
}

static bool fits_without(const struct pass *p, const struct demand *want,
			 const struct running *const *victim, size_t victims)
{
	struct holding h;
	struct room r;

	room_without(p, victim, victims, &r);
	return room_place(&r, want, &h);
}

/* The fewest of the victims that suffice: of the lowest class and the latest started first, and
 * none in vain. Returns how many, now at the front; 0: all of them do not. */
static size_t choose_victims(const struct pass *p, const struct demand *want,
			     const struct running **victim, size_t all)
{
	size_t n = 0;

	while (n < all && !fits_without(p, want, victim, n))
		n++;
	if (!fits_without(p, want, victim, n))
		return 0;
	for (size_t k = n; k-- > 0;) {
		const struct running *spared = victim[k];

		memmove(victim + k, victim + k + 1, (n - k - 1) * sizeof(*victim));
		victim[n - 1] = spared;
		if (fits_without(p, want, victim, n - 1))
			n--;
	}
	return n;
}

/* Makes running jobs of a lower class step back for j, the first in line. */
static void make_room(struct pass *p, const struct job *j, const struct demand *want)
{
	const struct running *victim[LIMIT_WORKERS];
	struct holding h;
	size_t n;

	if (fits_without(p, want, NULL, 0)) {
		p->first.makes_room = true; /* those told to leave suffice */
		return;
	}
	n = list_victims(p, j, victim);
	n = n ? choose_victims(p, want, victim, n) : 0;
	if (n == 0 || n > p->room - p->n)
		return;
	room_without(p, victim, n, &p->later);
	if (room_place(&p->later, want, &h))
		room_take(&p->later, p->in->machine, &h);
	p->first.start_ms = p->in->now_ms;
	p->first.makes_room = true;
	for (size_t k = 0; k < n; k++)
		p->out[p->n++] = (struct decision){ .kind = DECIDE_STEP_BACK,
						    .job = victim[k]->holding.job,
						    .holding = { .slot = -1 } };
}

size_t schedule_decide(const struct schedule_input *in, struct decision *out, size_t room,
		       struct first_in_line *first)
{
	struct pass p = { .in = in, .order = order_open(in), .out = out, .room = room };
	struct job *j;

	CHECK(room <= LIMIT_WORKERS && in->runnings <= LIMIT_WORKERS);
	room_init(&p.free, in->machine, false);
	for (size_t i = 0; i < in->runnings; i++) {
		room_take(&p.free, in->machine, &in->running[i].holding);
		p.rooms += in->running[i].room;
	}
	for (int scanned = 0; p.n < room && scanned < SCAN_MAX; scanned++) {
		struct demand want;
		struct holding h;
		struct room all;
		bool limited;

		if ((p.first.job && nothing_left(&p.free) && !p.rooms) ||
		    !(j = order_next(p.order)))
			break;
		want = job_demand(in->machine, j);
		if (!may_start(in, j))
			continue;
		limited = !may_have(j->user, want.gpus + (want.gpu_mem ? 1e-9 : 0));
		if (!limited && fits(&p, j, &want, &h)) {
			start(&p, j, &h);
			continue;
		}
		if (join(&p, j) || limited || p.first.job)
			continue;
		room_init(&all, in->machine, false);
		if (room_place(&all, &want, &h)) {
			reserve(&p, j, &want);
			make_room(&p, j, &want);
		}
	}
	order_close(p.order);
	if (first)
		*first = p.first;
	return p.n;
}
