/* SPDX-License-Identifier: Apache-2.0
 * Requests of workers: hello (answered by the assignment), report, done. A worker is known by the
 * key of its attempt; what it says of another job or attempt is refused. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/job.h"
#include "daemon/reply.h"
#include "daemon/warm.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <string.h>

static int check_attempt(struct daemon *d, struct request *r, uint64_t job, uint32_t attempt)
{
	struct worker *w = r->worker = join_named(d, r->worker, job, attempt);
	const struct job *j = live_find(&d->live, job);

	FAIL_IF(w->job != job || w->attempt != attempt, &r->err, TF_EFENCED,
		"this key is for attempt %u of job %llu, not for attempt %u of job %llu",
		w->attempt, (unsigned long long)w->job, attempt, (unsigned long long)job);
	FAIL_IF(w->ended || !j || j->attempt != attempt, &r->err, TF_EFENCED,
		"attempt %u of job %llu is over", attempt, (unsigned long long)job);
	if (w->route_len)
		w->hello_by_ms = 0; /* it has the assignment */
	return 0;
}

/* ---------------------------------------------------------------- hello */

struct assignment {
	Tf__Assignment message;
	Tf__JobRecord *job;
	Tf__SpecRecord *spec;
};

static void assignment_release(struct assignment *a)
{
	for (size_t i = 0; i < a->message.n_source; i++)
		xfree(a->message.source[i]);
	xfree(a->message.source);
	xfree(a->message.job_folder);
	xfree(a->message.attempt_folder);
	xfree(a->message.outcome_file);
	xfree(a->message.output_folder);
	record_free(a->job);
	record_free(a->spec);
}

static int add_sources(struct daemon *d, struct assignment *a, char **path, size_t paths,
		       char **upload, size_t uploads, struct err *e)
{
	Tf__Assignment *m = &a->message;

	m->source = xcalloc(paths + uploads + 1, sizeof *m->source);
	for (size_t i = 0; i < paths; i++)
		m->source[m->n_source++] = xstrdup(path[i]);
	for (size_t i = 0; i < uploads; i++) {
		TRY(upload_path(d, upload[i], NULL, &m->source[m->n_source], e));
		m->n_source++;
	}
	return 0;
}

/* The folder the new artefact is made in; it exists afterwards. */
static int make_output(struct daemon *d, struct assignment *a, struct err *e)
{
	Tf__ArtefactRecord *r = NULL;
	int rc;

	if (!a->job->artefact)
		return 0;
	rc = artefact_get(d->state, a->job->artefact, &r, e);
	FAIL_IF(rc == TF_ENOTFOUND, e, TF_EINTERNAL, "what the job makes is not in the catalogue");
	TRY(rc);
	a->message.output_folder = artefact_path(d, r->artefact->kind, r->artefact->id,
						 !artefact_in_place(r->artefact->kind));
	record_free(r);
	return dir_make(a->message.output_folder, 0700, e);
}

static int fill(struct daemon *d, const struct worker *w, struct assignment *a, struct err *e)
{
	const Tf__JobSpec *s;
	Tf__Assignment *m = &a->message;

	TRY(job_get(d->state, w->job, &a->job, e));
	TRY(job_spec_get(d->state, w->job, &a->spec, e));
	s = a->spec->spec;
	m->job = w->job;
	m->attempt = w->attempt;
	m->spec = a->spec->spec;
	m->n_input = a->spec->n_input;
	m->input = a->spec->input;
	for (size_t i = 0; i < m->n_input; i++)
		m->input[i]->path = artefact_path(d, m->input[i]->kind, m->input[i]->id, false);
	m->job_folder = daemon_path(d, "jobs/%llu", (unsigned long long)w->job);
	m->attempt_folder =
		daemon_path(d, "jobs/%llu/attempt-%u", (unsigned long long)w->job, w->attempt);
	m->outcome_file = worker_outcome_path(d, w);
	m->device = (char *)(w->holding.gpus ? "cuda:0" : "cpu"); /* it sees its own alone */
	m->has_threads = m->has_map_bytes = true;
	m->threads = s->threads > 0 ? s->threads : (int32_t)worker_threads(d, w);
	m->map_bytes = (uint64_t)d->options.data_map_mib << 20;
	m->stop = a->job->job->stopping;
	m->warm_seconds = warm_seconds(d, s->kind);
	m->has_warm_seconds = m->warm_seconds > 0;
	m->has_stop = m->stop != TF__STOP_REASON__STOP_NONE;
	if (s->spec_case == TF__JOB_SPEC__SPEC_INGEST)
		TRY(add_sources(d, a, s->ingest->path, s->ingest->n_path, s->ingest->upload,
				s->ingest->n_upload, e));
	if (s->spec_case == TF__JOB_SPEC__SPEC_TOKENIZER)
		TRY(add_sources(d, a, s->tokenizer->path, s->tokenizer->n_path,
				s->tokenizer->upload, s->tokenizer->n_upload, e));
	return make_output(d, a, e);
}

/* Whether the process may stay for other jobs, and with what it has open. */
static void note_warm(struct daemon *d, struct worker *w, const Tf__SpecRecord *spec)
{
	w->warm = warm_seconds(d, spec->spec->kind) > 0;
	xfree(w->model);
	w->model = w->warm ? warm_model(spec) : NULL;
}

int worker_assign(struct daemon *d, struct worker *w, struct request *r, struct err *e)
{
	struct assignment a = { .message = TF__ASSIGNMENT__INIT };
	struct request unasked = { .route_len = w->route_len };
	Tf__Reply reply = TF__REPLY__INIT;
	int rc = fill(d, w, &a, e);

	if (rc == 0 && live_find(&d->live, w->job)->state == TF__JOB_STATE__STARTING)
		rc = job_change(d, w->job, EVENT_HELLO, NULL, e);
	if (rc == 0) {
		memcpy(unasked.route, w->route, w->route_len);
		note_warm(d, w, a.spec);
		reply.body_case = TF__REPLY__BODY_ASSIGNMENT;
		reply.assignment = &a.message;
		reply_put(d, r ? r : &unasked, &reply);
	}
	if (rc == 0 && r) {
		w->hello_by_ms = 0;
		w->unheard = false;
		w->route_len = r->route_len;
		memcpy(w->route, r->route, r->route_len);
	}
	assignment_release(&a);
	return rc;
}

int handle_worker_hello(struct daemon *d, struct request *r)
{
	const Tf__WorkerHello *m = r->message->worker_hello;
	struct worker *w;

	TRY(check_attempt(d, r, m->job, m->attempt));
	w = r->worker;
	FAIL_IF((pid_t)m->pid != w->pid, &r->err, TF_EFENCED,
		"attempt %u of job %llu is process %d, not %u", w->attempt,
		(unsigned long long)w->job, (int)w->pid, m->pid);
	if (live_find(&d->live, w->job)->state != TF__JOB_STATE__STARTING && !w->route_len)
		log_line(LOG_INFO, w->job, "attempt=%u is adopted, pid=%d", w->attempt,
			 (int)w->pid);
	return worker_assign(d, w, r, &r->err);
}

/* ---------------------------------------------------------------- report, done */

/* A worker whose line came back so soon that it noticed no other daemon, and so said no hello. */
static void hear_again(struct daemon *d, struct request *r)
{
	struct worker *w = r->worker;
	const struct job *j = live_find(&d->live, w->job);
	Tf__SpecRecord *spec = NULL;

	if (job_spec_get(d->state, w->job, &spec, NULL) == 0)
		note_warm(d, w, spec);
	record_free(spec);
	w->hello_by_ms = 0;
	w->route_len = r->route_len;
	memcpy(w->route, r->route, r->route_len);
	if (j->stopping)
		order_put(d, w, (Tf__StopReason)j->stopping);
}

/* The process says how many more jobs it would take in. */
static void note_room(struct daemon *d, const struct worker *w, uint32_t room)
{
	for (size_t i = 0; i < d->workers; i++) {
		struct worker *first = d->worker[i];

		if (first->joined || !join_same(first, w))
			continue;
		d->schedule_due |= room > first->room;
		first->room = room;
	}
}

static int check_word(const char *what, const char *word, struct err *e)
{
	size_t len = word ? strlen(word) : 0;

	FAIL_IF(len > LIMIT_NAME_BYTES, e, TF_ELIMIT, "%s of %zu bytes: the limit is %u", what, len,
		LIMIT_NAME_BYTES);
	return 0;
}

/* It is kept in memory, and shown in lists of jobs. */
static int check_progress(const Tf__Progress *p, struct err *e)
{
	FAIL_IF(p->n_metric > LIMIT_METRICS, e, TF_ELIMIT, "%zu metrics: the limit is %u",
		p->n_metric, LIMIT_METRICS);
	for (size_t i = 0; i < p->n_metric; i++)
		TRY(check_word("a metric's name", p->metric[i]->name, e));
	TRY(check_word("a phase", p->phase, e));
	return check_word("a unit", p->unit, e);
}

int handle_worker_report(struct daemon *d, struct request *r)
{
	const Tf__WorkerReport *m = r->message->worker_report;
	struct job *j;

	TRY(check_attempt(d, r, m->job, m->attempt));
	TRY(check_progress(m->progress, &r->err));
	j = live_find(&d->live, m->job);
	if (!r->worker->route_len && j->state != TF__JOB_STATE__STARTING)
		hear_again(d, r);
	if (j->resuming)
		TRY(job_resumed(d, j, &r->err));
	job_progress(d, j, m->progress);
	if (m->has_room)
		note_room(d, r->worker, m->room);
	reply_ok(d, r);
	return 0;
}

/* An attempt that was joined to others is forgotten when it is over. */
static bool is_said_again(struct daemon *d, const struct request *r, const Tf__WorkerDone *m)
{
	const struct worker *w = r->worker;
	Tf__JobRecord *record = NULL;
	bool again = w->job == m->job && w->attempt == m->attempt && w->ended;

	if (w->job != m->job && job_get(d->state, m->job, &record, NULL) == 0)
		again = record->job->attempt == m->attempt &&
			!job_state_active(record->job->state);
	record_free(record);
	return again;
}

int handle_worker_done(struct daemon *d, struct request *r)
{
	const Tf__WorkerDone *m = r->message->worker_done;

	r->worker = join_named(d, r->worker, m->job, m->attempt);
	if (is_said_again(d, r, m)) {
		reply_ok(d, r);
		return 0;
	}
	TRY(check_attempt(d, r, m->job, m->attempt));
	TRY(job_outcome(d, r->worker, m->outcome, &r->err));
	if (join_other(d, r->worker)) {
		TRY(join_leave(d, r->worker, &r->err));
		r->worker = NULL;
		reply_ok(d, r);
		return 0;
	}
	if (m->has_stay && m->stay && r->worker->route_len)
		warm_stay(d, r->worker); /* else it asks, and hears that it is not wanted */
	reply_ok(d, r);
	return 0;
}
