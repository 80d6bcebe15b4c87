/* SPDX-License-Identifier: Apache-2.0
 * Requests about jobs: submit, list, show, wait, log, cancel. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/job.h"
#include "daemon/reply.h"
#include "daemon/submit.h"
#include "daemon/warm.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/utf8.h"

#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- submit */

/* What can never run here is refused now. */
static int check_demand(struct daemon *d, const Tf__JobSpec *spec, struct err *e)
{
	const struct job asked = { .kind = (uint8_t)spec->kind,
				   .device = (uint8_t)device_parse(spec->device),
				   .demand = demand_of(spec->demand) };
	struct demand want = job_demand(&d->machine, &asked);

	return machine_suits(&d->machine, &want, e);
}

/* Files a job reads: uploads of the user, or paths below a configured root. */
static int check_sources(struct daemon *d, const struct request *r, char **path, size_t paths,
			 char **upload, size_t uploads, struct err *e)
{
	for (size_t i = 0; i < uploads; i++)
		TRY(upload_path(d, upload[i], r->user, NULL, e));
	for (size_t i = 0; i < paths; i++) {
		bool inside = false;

		for (size_t k = 0; k < d->options.root.count; k++)
			inside |= path_is_inside(d->options.root.text[k], path[i]);
		FAIL_IF(!inside, e, TF_EREFUSED,
			"%s: not below a folder the daemon may read (option root)", path[i]);
	}
	return 0;
}

static int check_files(struct daemon *d, const struct request *r, const Tf__JobSpec *s,
		       struct err *e)
{
	if (s->spec_case == TF__JOB_SPEC__SPEC_INGEST)
		return check_sources(d, r, s->ingest->path, s->ingest->n_path, s->ingest->upload,
				     s->ingest->n_upload, e);
	if (s->spec_case == TF__JOB_SPEC__SPEC_TOKENIZER)
		return check_sources(d, r, s->tokenizer->path, s->tokenizer->n_path,
				     s->tokenizer->upload, s->tokenizer->n_upload, e);
	return 0;
}

int submit_put_uses(struct daemon *d, uint64_t id, const Tf__JobSpec *s, Tf__Input *const *input,
		    size_t inputs, struct err *e)
{
	char job[24];
	char **upload;
	size_t uploads = spec_uploads(s, &upload);

	if (inputs + uploads == 0)
		return 0;
	snprintf(job, sizeof job, "%llu", (unsigned long long)id);
	for (size_t i = 0; i < inputs; i++)
		TRY(use_put(d->state, input[i]->id, 'j', job, e));
	for (size_t i = 0; i < uploads; i++)
		TRY(use_put(d->state, upload[i], 'j', job, e));
	return 0;
}

int submit_put_made_from(struct daemon *d, const char *artefact, Tf__Input **input, size_t inputs,
			 struct err *e)
{
	Tf__ArtefactRecord *r = NULL;
	Tf__Artefact a;
	int rc;

	if (!artefact || inputs == 0)
		return 0;
	TRY(artefact_get(d->state, artefact, &r, e));
	a = *r->artefact;
	a.made_from = input;
	a.n_made_from = inputs;
	rc = artefact_put(d->state, &a, e);
	record_free(r);
	return rc;
}

/* The job that a submit describes, as clients see it; all its pointers are borrowed. */
static void describe(const struct request *r, const Tf__JobSpec *s, Tf__Job *j)
{
	j->kind = s->kind;
	j->name = s->name;
	j->user = (char *)r->user;
	j->project = s->project;
	j->has_submitted = true;
	j->submitted = clock_wall_ms();
	j->n_after = s->n_after;
	j->after = s->after;
	j->n_after_any = s->n_after_any;
	j->after_any = s->after_any;
	j->n_after_failed = s->n_after_failed;
	j->after_failed = s->after_failed;
	j->n_tag = s->n_tag;
	j->tag = s->tag;
	j->group = s->group;
	j->has_group_running = s->has_group_running;
	j->group_running = s->group_running;
	j->demand = s->demand;
}

static int next_number(struct daemon *d, struct job_numbers *numbers, uint64_t *out, struct err *e)
{
	if (!numbers)
		return jobs_next_id(d->state, 1, out, e);
	if (numbers->first == 0)
		TRY(jobs_next_id(d->state, numbers->count, &numbers->first, e));
	*out = numbers->first + numbers->used++;
	return 0;
}

/* Everything was checked: from here on only the disk can fail. */
static int create(struct daemon *d, const struct request *r, const Tf__Submit *m,
		  struct job_numbers *numbers, const struct resolved *v, Tf__Job *job,
		  struct err *e)
{
	Tf__JobRecord record = TF__JOB_RECORD__INIT;
	Tf__SpecRecord spec = TF__SPEC_RECORD__INIT;
	int rc;

	TRY(next_number(d, numbers, &job->id, e));
	rc = artefact_reserve(d, m->spec, job->id, r, false, &record.artefact, e);
	if (rc == 0)
		rc = submit_put_made_from(d, record.artefact, v->input, v->inputs, e);
	job->has_seq = true;
	job->seq = job_seq(d);
	record.job = job;
	record.token = m->token;
	record.device = m->spec->device;
	record.together = join_key(m->spec, v->input, v->inputs);
	record.has_together = record.together != 0;
	spec.spec = m->spec;
	spec.n_input = v->inputs;
	spec.input = v->input;
	if (rc == 0)
		rc = job_spec_put(d->state, job->id, &spec, e);
	if (rc == 0)
		rc = submit_put_uses(d, job->id, m->spec, v->input, v->inputs, e);
	if (rc == 0)
		rc = after_put(d, job, e);
	if (rc == 0)
		rc = job_put(d->state, &record, e);
	if (rc == 0)
		live_add(&d->live, &record);
	d->schedule_due = true;
	xfree(record.artefact);
	return rc;
}

static void reply_submitted(struct daemon *d, struct request *r, const struct submitted *of)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Submitted s = TF__SUBMITTED__INIT;

	s.job = r->made = of->job;
	s.has_already = s.already = of->already;
	s.n_input = of->resolved.inputs;
	s.input = of->resolved.input;
	s.n_fact = of->resolved.facts;
	s.fact = of->resolved.fact;
	reply.body_case = TF__REPLY__BODY_SUBMITTED;
	reply.submitted = &s;
	reply_put(d, r, &reply);
}

/* The job the token got earlier; its owner alone may ask for it again. */
static int submitted_before(struct daemon *d, const struct request *r, uint64_t id, struct err *e)
{
	Tf__JobRecord *old = NULL;
	bool own;

	TRY(job_get(d->state, id, &old, e));
	own = old->job->user && strcmp(old->job->user, r->user) == 0;
	record_free(old);
	FAIL_IF(!own, e, TF_EREFUSED, "this token belongs to a job of another user");
	return 0;
}

int submit_one(struct daemon *d, const struct request *r, const Tf__Submit *m,
	       struct job_numbers *numbers, struct submitted *out, struct err *e)
{
	Tf__Job job = TF__JOB__INIT;
	char *none = NULL;
	int rc;

	*out = (struct submitted){ 0 };
	FAIL_IF(m->token.len != TOKEN_BYTES, e, TF_EINVALID,
		"a token of %zu bytes: expected %u", m->token.len, TOKEN_BYTES);
	rc = job_by_token(d->state, m->token.data, &out->job, e);
	out->already = rc == 0;
	if (rc == 0)
		return submitted_before(d, r, out->job, e);
	FAIL_IF(rc != TF_ENOTFOUND, e, rc, "the token cannot be looked up");
	TRY(disk_check(d, e));
	TRY(quota_check(d, r->user, 0, e));
	TRY(spec_check(m->spec, e));
	TRY(check_demand(d, m->spec, e));
	TRY(queue_admit(d, r, r->user, m->spec, e));
	describe(r, m->spec, &job);
	TRY(rc = after_look(d, &job, e));
	job.state = m->spec->hold ? TF__JOB_STATE__HELD
		    : rc > 0      ? TF__JOB_STATE__WAITING
				  : TF__JOB_STATE__QUEUED;
	TRY(check_files(d, r, m->spec, e));
	rc = resolve_spec(d, m->spec, &out->resolved, e);
	if (rc == 0)
		rc = artefact_reserve(d, m->spec, 0, r, true, &none, e);
	if (rc == 0 && !m->dry_run)
		rc = create(d, r, m, numbers, &out->resolved, &job, e);
	out->job = job.id;
	if (rc < 0)
		resolved_release(&out->resolved);
	xfree(none);
	return rc;
}

int handle_submit(struct daemon *d, struct request *r)
{
	const Tf__Submit *m = r->message->submit;
	struct submitted s;

	FAIL_IF(m->n_after_member, &r->err, TF_EINVALID,
		"after_member is for the jobs of a batch, expected none");
	TRY(submit_one(d, r, m, NULL, &s, &r->err));
	reply_submitted(d, r, &s);
	resolved_release(&s.resolved);
	return 0;
}

/* ---------------------------------------------------------------- list, show, wait, log */

/* A list is packed while the store is walked: ten thousand records never lie in memory together.
 * One answer passes over so few that the loop goes on soon; the client asks for the rest. */
struct list {
	struct daemon *d;
	struct job_filter filter;
	struct buf packed; /* fields `job` of a message Jobs */
	size_t count, limit, passed;
	uint64_t last; /* job looked at */
	bool more;
	Tf__JobRefusal **refused; /* NULL: none; see refusals_release */
	size_t refusals, refused_bytes;
};

/* packed: the record's message Job, which goes on as it is, what is not on record behind it. */
static void pack_job(struct list *l, const Tf__JobRecord *r, struct state_value packed)
{
	Tf__JobNews news = TF__JOB_NEWS__INIT;
	struct job_view view;

	job_view(l->d, r, &view);
	/* a second progress would be merged with the first, which is of an earlier run */
	if (!packed.len || (r->job->progress && view.job.progress != r->job->progress)) {
		reply_pack_item(&l->packed, NULL, 0, &view.job.base);
		return;
	}
	if (view.job.progress != r->job->progress)
		news.progress = view.job.progress;
	news.has_seq = view.job.has_seq && view.job.seq != r->job->seq;
	news.seq = view.job.seq;
	news.has_place = view.job.has_place;
	news.place = view.job.place;
	news.waits = view.job.waits;
	news.has_expected_start = view.job.has_expected_start;
	news.expected_start = view.job.expected_start;
	reply_pack_item(&l->packed, packed.data, packed.len, &news.base);
}

static int list_job(void *arg, Tf__JobRecord *r, struct state_value packed)
{
	struct list *l = arg;

	if (l->count >= l->limit || l->packed.len + l->refused_bytes > REPLY_LIST_BYTES ||
	    l->passed >= LIMIT_JOBS_PASSED) {
		l->more = true;
		return 1;
	}
	l->last = r->job->id;
	if (!job_filter_takes(&l->filter, r->job)) {
		l->passed++;
		return 0;
	}
	pack_job(l, r, packed);
	l->count++;
	return 0;
}

static void reply_list(struct daemon *d, struct request *r, struct list *l)
{
	Tf__Jobs rest = TF__JOBS__INIT;

	rest.has_more = rest.has_next = rest.more = l->more;
	rest.next = l->last;
	rest.n_refused = l->refusals;
	rest.refused = l->refused;
	reply_pack_rest(&l->packed, &rest.base);
	reply_put_packed(d, r, TF__REPLY__BODY_JOBS, &l->packed);
	buf_release(&l->packed);
}

int handle_job_list(struct daemon *d, struct request *r)
{
	const Tf__JobList *m = r->message->job_list;
	struct list l = { .d = d, .limit = LIMIT_JOBS_LISTED };
	int rc;

	TRY(job_filter_init(&l.filter, m, &r->err));
	if (m->has_limit && m->limit > 0 && m->limit < LIMIT_JOBS_LISTED)
		l.limit = m->limit;
	rc = jobs_list(d->state, l.filter.all, m->before, list_job, &l, &r->err);
	if (rc == 0)
		reply_list(d, r, &l);
	buf_release(&l.packed);
	return rc;
}

int handle_job_show(struct daemon *d, struct request *r)
{
	reply_job(d, r, r->message->job_show->job, true);
	return 0;
}

int handle_job_wait(struct daemon *d, struct request *r)
{
	const Tf__JobWait *m = r->message->job_wait;
	const struct job *j = live_find(&d->live, m->job);

	if (!j || j->seq > m->since || m->timeout_ms == 0) {
		reply_job(d, r, m->job, false);
		return 0;
	}
	return wait_add(d, r, WAIT_JOB, m->job, m->since, m->timeout_ms, &r->err);
}

int handle_log_read(struct daemon *d, struct request *r)
{
	const Tf__LogRead *m = r->message->log_read;
	Tf__JobRecord *record = NULL;
	char *path;
	int64_t size;

	TRY(job_get(d->state, m->job, &record, &r->err));
	record_free(record);
	path = daemon_path(d, "jobs/%llu/log", (unsigned long long)m->job);
	size = file_size(path);
	xfree(path);
	if (m->wait_ms > 0 && live_find(&d->live, m->job) &&
	    (size < 0 || (uint64_t)size <= m->offset))
		return wait_add(d, r, WAIT_LOG, m->job, m->offset, m->wait_ms, &r->err);
	reply_log(d, r, m->job, m->offset);
	return 0;
}

/* ---------------------------------------------------------------- cancel */

#define REFUSAL_BYTES 300      /* of a sentence: LIMIT_JOB_REFS of them fit a message */
#define REFUSAL_HEAD_BYTES 4   /* of one in a message, besides itself */

_Static_assert(LIMIT_JOB_REFS * (REFUSAL_BYTES + REFUSAL_HEAD_BYTES + 32) < REPLY_LIST_BYTES,
	       "an answer has room for what is refused");

int job_may_change(const struct request *r, const Tf__Job *j, struct err *e)
{
	char what[32];

	snprintf(what, sizeof what, "job %llu", (unsigned long long)j->id);
	return may_change(r, j->user, what, e);
}

static int cancel_one(struct daemon *d, const struct request *r, uint64_t id, struct err *e)
{
	struct job_edit edit = { .stopping = TF__STOP_REASON__STOP_CANCEL };
	char reason[LIMIT_NAME_BYTES + 32];
	struct worker *w;

	if (!live_find(&d->live, id))
		return 0; /* it has ended: its state says how */
	snprintf(reason, sizeof reason, "cancelled by %s", r->user);
	edit.reason = reason;
	TRY(job_change(d, id, EVENT_CANCEL, &edit, e));
	w = worker_of(d, id);
	if (w)
		worker_order(d, w);
	return 0;
}

static void refusal_add(struct list *l, uint64_t job, const struct err *e)
{
	Tf__JobRefusal *refusal = xmalloc(sizeof *refusal);

	tf__job_refusal__init(refusal);
	refusal->job = job;
	refusal->code = e->code;
	refusal->text = xstrndup(e->text, utf8_cut(e->text, REFUSAL_BYTES));
	l->refused_bytes += tf__job_refusal__get_packed_size(refusal) + REFUSAL_HEAD_BYTES;
	l->refused = xrealloc(l->refused, l->refusals + 1, sizeof *l->refused);
	l->refused[l->refusals++] = refusal;
}

static void refusals_release(struct list *l)
{
	for (size_t i = 0; i < l->refusals; i++) {
		xfree(l->refused[i]->text);
		xfree(l->refused[i]);
	}
	xfree(l->refused);
	l->refusals = 0;
}

static int check_each(struct daemon *d, struct request *r, const Tf__JobRefs *m)
{
	FAIL_IF(m->n_job == 0 || m->n_job > LIMIT_JOB_REFS, &r->err, TF_ELIMIT,
		"%zu jobs are named: expected 1 to %u", m->n_job, LIMIT_JOB_REFS);
	for (size_t i = 0; i < m->n_job; i++) {
		Tf__JobRecord *record = NULL;
		int rc;

		TRY(job_get(d->state, m->job[i], &record, &r->err));
		rc = job_may_change(r, record->job, &r->err);
		record_free(record);
		TRY(rc);
	}
	return 0;
}

int handle_each(struct daemon *d, struct request *r, const Tf__JobRefs *m,
		int (*fn)(struct daemon *, const struct request *, uint64_t, struct err *))
{
	struct list l = { .d = d, .limit = LIMIT_JOBS_LISTED };
	int rc = check_each(d, r, m);

	for (size_t i = 0; rc == 0 && i < m->n_job; i++) {
		struct err e = ERR_INIT;

		if (fn(d, r, m->job[i], &e) < 0)
			refusal_add(&l, m->job[i], &e);
	}
	if (rc == 0 && l.refusals == m->n_job)
		rc = err_set(&r->err, l.refused[0]->code, "%s%s", l.refused[0]->text,
			     m->n_job > 1 ? "; nor is another one changed" : "");
	for (size_t i = 0, k = 0; rc == 0 && i < m->n_job; i++) {
		Tf__JobRecord *record = NULL;

		if (k < l.refusals && l.refused[k]->job == m->job[i]) {
			k++;
			continue;
		}
		rc = job_get(d->state, m->job[i], &record, &r->err);
		if (rc == 0)
			list_job(&l, record, (struct state_value){ NULL, 0 });
		record_free(record);
	}
	if (rc == 0)
		reply_list(d, r, &l);
	refusals_release(&l);
	buf_release(&l.packed);
	return rc;
}

int handle_job_cancel(struct daemon *d, struct request *r)
{
	return handle_each(d, r, r->message->job_cancel, cancel_one);
}
