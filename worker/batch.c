/* SPDX-License-Identifier: Apache-2.0
 * Generate jobs in one batch. The first job brings the model; jobs that the daemon puts beside it
 * (crew.h) come in while others are under way: their texts from the next token on, their pictures
 * from the next denoising step. There is a lane, with a sampler, for texts, for pictures, and for
 * pictures with guidance; jobs of one lane step together whatever their seeds, steps and other
 * settings are. Each job reports, stops, fails and writes its results alone. A job whose files are
 * not the same as the model's that is open waits until that has no jobs any more. */
#include "config.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "worker/crew.h"
#include "worker/draw.h"
#include "worker/generate.h"

#include <string.h>

#define LANES 6 /* modes, each without and with guidance */
#define LOOK_MS 2

struct member {
	struct job *job;
	bool begun;       /* g is there, and the model is its */
	bool reported;
	struct generation g;
	int lane;
	size_t admitted;  /* of its entries */
	size_t most;      /* jobs in the batch at a time, while it was */
};

struct pool {
	struct crew *crew; /* NULL: the only job is all there is */
	struct opened o;
	size_t users;      /* jobs that use it; 0: it is not open */
	bool well;         /* no job failed since it was opened */
	struct sampler *lane[LANES];
	struct member *member[LIMIT_JOINED];
	size_t members;
	unsigned passed;   /* of a held step, for tests */
	int rc;            /* of the only job */
	struct err *e;
};

static int lane_of(const struct sampler_options *o)
{
	return 2 * (int)o->mode + sampler_is_guided(o);
}

/* ---- the model */

static bool is_open_for(const struct pool *b, const struct job *job)
{
	char *key = NULL;
	bool same = b->o.key && opened_key(job, 1, &key, NULL) == 0 && strcmp(key, b->o.key) == 0;

	xfree(key);
	return same;
}

static int open_model(struct pool *b, struct job *job, struct err *e)
{
	job_stage(job, "load");
	if (b->users == 0) {
		TRY(opened_init(&b->o, job, 1, e));
		b->well = true;
	} else {
		TRY(job_kernels(job, e));
		log_info("model=%s, with %zu other jobs", b->o.name, b->users);
	}
	b->users++;
	return 0;
}

/* The last one leaves the model, and a sampler that may serve another job, to the next. */
static void close_model(struct pool *b, struct job *job)
{
	if (--b->users > 0)
		return;
	for (int i = 0; i < LANES; i++) {
		struct sampler *s = b->lane[i];

		if (s && b->well && !b->o.sampler && sampler_room(s) <= LIMIT_KEPT_SEQUENCES)
			b->o.sampler = s;
		else
			sampler_free(s);
		b->lane[i] = NULL;
	}
	if (b->well)
		opened_leave(&b->o, job);
	else
		opened_release(&b->o);
}

/* ---- coming and leaving */

/* The daemon hears how many more would be welcome: none while some wait for room. */
static void tell_room(struct pool *b)
{
	uint32_t room = b->crew ? crew_room(b->crew) : 0;

	for (size_t i = 0; i < b->members; i++) {
		const struct member *m = b->member[i];

		if (!m->begun || m->admitted < m->g.results)
			room = 0;
	}
	for (size_t i = 0; b->crew && i < b->members; i++)
		link_room(b->member[i]->job->link, room);
}

static void add(struct pool *b, struct job *job)
{
	struct member *m = xcalloc(1, sizeof *m);

	CHECK(b->members < LIMIT_JOINED);
	m->job = job;
	b->member[b->members++] = m;
}

static void leave(struct pool *b, struct member *m, int rc, struct err *e)
{
	size_t i = 0;

	if (m->begun) {
		if (b->lane[m->lane])
			sampler_drop(b->lane[m->lane], m->g.entry, (int64_t)m->g.results);
		b->well &= rc == 0 || rc == TF_ECANCELLED;
		job_result(m->job, "jobs_together", (double)m->most);
		generation_release(&m->g);
		close_model(b, m->job);
	}
	while (b->member[i] != m)
		i++;
	b->member[i] = b->member[--b->members];
	if (b->crew) {
		crew_leave(b->crew, m->job, rc, e);
	} else {
		b->rc = rc;
		*b->e = *e;
	}
	xfree(m);
}

static void begin(struct pool *b, struct member *m)
{
	struct err e = ERR_INIT;
	int rc = m->job->spec->kind == TF__JOB_KIND__GENERATE
			 ? open_model(b, m->job, &e)
			 : err_set(&e, TF_EUNSUPPORTED, "only generate jobs are joined");

	if (rc == 0) {
		m->begun = true;
		rc = generation_begin(&m->g, m->job, &b->o, &e);
	}
	if (rc < 0) {
		leave(b, m, rc, &e);
		return;
	}
	m->lane = lane_of(&m->g.options);
	job_stage(m->job, "steps");
}

static void turn_to(struct pool *b, const struct job *job)
{
	if (b->crew)
		crew_turn_to(b->crew, job);
}

static void take_in(struct pool *b)
{
	struct job *job;

	while (b->crew && crew_join(b->crew, &job)) {
		log_info("generate attempt=%u device=%s, joined", job->attempt, job->device);
		add(b, job);
	}
	for (size_t i = b->members; i-- > 0; ) { /* the last one may take a leaver's place */
		struct member *m = b->member[i];

		if (m->begun || (b->users > 0 && !is_open_for(b, m->job)))
			continue;
		turn_to(b, m->job);
		begin(b, m);
	}
}

/* ---- running */

static size_t under_way(const struct member *m)
{
	size_t n = 0;

	for (size_t i = 0; i < m->admitted; i++)
		n += !m->g.entry[i].ended;
	return n;
}

/* Who of a lane is next: the one with the least under way of those that have more to be run. */
static struct member *next_of(const struct pool *b, int lane)
{
	struct member *next = NULL;

	for (size_t i = 0; i < b->members; i++) {
		struct member *m = b->member[i];

		if (m->begun && m->lane == lane && m->admitted < m->g.results &&
		    (!next || under_way(m) < under_way(next)))
			next = m;
	}
	return next;
}

/* A sampler for n sequences: the kept one when it serves, else a new one; then none is kept. */
static int take_sampler(struct pool *b, int lane, int64_t n, int64_t context, struct err *e)
{
	struct sampler *kept = b->o.sampler;

	b->o.sampler = NULL;
	if (kept && sampler_room(kept) >= n &&
	    sampler_is_for(kept, sampler_room(kept), context, lane & 1)) {
		sampler_move(kept, &b->o.model);
		b->lane[lane] = kept;
		return 0;
	}
	sampler_free(kept);
	return sampler_new(&b->o.model, n, context, lane & 1, &b->lane[lane], e);
}

/* Room for as many of m's prompts as there can be, in *room; 0: once others have left. */
static int make_room(struct pool *b, struct member *m, int64_t *room, struct err *e)
{
	struct sampler **s = &b->lane[m->lane];
	int64_t context = m->g.context, wanted = (int64_t)(m->g.results - m->admitted), most, size;

	if (*s && sampler_count(*s) == 0) { /* one of other sizes serves better */
		sampler_free(b->o.sampler);
		b->o.sampler = *s;
		*s = NULL;
	}
	if (!*s) {
		most = draw_at_once(context);
		*room = wanted < most ? wanted : most;
		return take_sampler(b, m->lane, *room, context, e);
	}
	context = context > sampler_positions(*s) ? context : sampler_positions(*s);
	most = draw_at_once(context);
	size = sampler_count(*s) + sampler_room(*s);
	if (sampler_room(*s) < wanted && size < most) {
		size = sampler_count(*s) + wanted > 2 * size ? sampler_count(*s) + wanted
							     : 2 * size;
		size = size < most ? size : most;
	}
	if ((size > sampler_count(*s) + sampler_room(*s) || context > sampler_positions(*s)) &&
	    sampler_resize(s, size, context, NULL) < 0 && context > sampler_positions(*s))
		*room = 0;
	else
		*room = sampler_room(*s);
	return 0;
}

/* Takes in what can be: at once what comes first of a job, else by quarters, since each time all
 * rows are laid out anew. Free texts come all together. */
static void admit(struct pool *b, int lane)
{
	struct sampler *s = b->lane[lane];
	struct member *m;

	if (s && sampler_count(s) > 0 && 4 * sampler_ended(s) >= sampler_count(s))
		sampler_close_up(s);
	while ((m = next_of(b, lane))) {
		struct err e = ERR_INIT;
		int64_t room = 0, left = (int64_t)(m->g.results - m->admitted);

		s = b->lane[lane];
		if (s && lane / 2 == SAMPLE_FREE && sampler_count(s) > 0)
			return;
		if (s && m->admitted > 0 && 4 * sampler_room(s) < sampler_count(s))
			return;
		if (s)
			sampler_close_up(s);
		if (make_room(b, m, &room, &e) < 0) {
			turn_to(b, m->job);
			leave(b, m, e.code, &e);
			continue;
		}
		if (room == 0)
			return;
		room = room < left ? room : left;
		sampler_admit(b->lane[lane], m->g.entry + m->admitted, room);
		m->admitted += (size_t)room;
	}
}

static void step(struct pool *b)
{
	for (int lane = 0; lane < LANES; lane++)
		if (b->lane[lane])
			sampler_step(b->lane[lane]);
	if (b->members > 0)
		b->member[0]->job->kernels->ops->sync(b->member[0]->job->kernels);
}

/* ---- looking after each */

static size_t begun(const struct pool *b)
{
	size_t n = 0;

	for (size_t i = 0; i < b->members; i++)
		n += b->member[i]->admitted > 0;
	return n;
}

static void report(struct pool *b, struct member *m)
{
	bool draws = m->g.options.mode == SAMPLE_IMAGE;
	double all = draws ? (double)m->g.options.steps : (double)m->g.options.max_tokens;
	double done = 0;

	for (size_t i = 0; i < m->admitted; i++)
		done += m->g.entry[i].ended ? 1 : (double)m->g.entry[i].done / all;
	if (!m->reported)
		turn_to(b, m->job); /* the first one is a line of its log */
	m->reported = true;
	job_report(m->job, draws ? "drawing" : "writing", (uint64_t)done, m->g.results, "sample");
}

/* Whether nothing of it is left to be run. */
static bool is_through(const struct member *m)
{
	return m->admitted == m->g.results && under_way(m) == 0;
}

static void look_after(struct pool *b, struct member *m, size_t together)
{
	struct err e = ERR_INIT;
	int rc = 0;

	if (job_should_stop(m->job) != TF__STOP_REASON__STOP_NONE) {
		turn_to(b, m->job);
		rc = job_stopped(m->job, &e);
		leave(b, m, rc, &e);
		return;
	}
	if (!m->begun)
		return;
	m->most = together > m->most ? together : m->most;
	if (!is_through(m))
		return;
	turn_to(b, m->job);
	for (size_t i = 0; i < m->g.results; i++)
		m->g.result[i] = m->g.entry[i].result;
	rc = generate_write(&m->g, &e);
	leave(b, m, rc, &e);
}

int batch_run(struct job *job, struct err *e)
{
	struct pool b = { .crew = job->crew, .e = e };

	add(&b, job);
	while (b.members > 0 || (b.crew && !crew_is_empty(b.crew))) {
		size_t together;

		take_in(&b);
		for (int lane = 0; lane < LANES; lane++)
			admit(&b, lane);
		tell_room(&b);
		for (size_t i = 0; i < b.members; i++)
			if (b.member[i]->begun)
				report(&b, b.member[i]);
		if (fault_held("batch-step", &b.passed))
			clock_sleep_ms(LOOK_MS);
		else
			step(&b);
		together = begun(&b);
		for (size_t i = b.members; i-- > 0; )
			look_after(&b, b.member[i], together);
		if (b.members == 0 && b.crew && !crew_is_empty(b.crew))
			clock_sleep_ms(LOOK_MS);
	}
	return b.rc;
}
