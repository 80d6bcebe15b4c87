/* SPDX-License-Identifier: Apache-2.0
 * Verbs about jobs: noop, jobs, show, logs, fetch. */
#include "config.h"
#include "client/client.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LOG_WAIT_MS 10000

int verb_noop(struct client *c, struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	uint64_t id;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	noop.has_seconds = args_has(&c->args, OPTION_SECONDS);
	TRY(args_float(&c->args, OPTION_SECONDS, 0, 7 * 86400.0, &noop.seconds, e));
	return submit(c, &spec, false, &id, e);
}

/* ---- jobs */

static void percent_of(const Tf__Job *j, char out[16])
{
	const Tf__Progress *p = j->progress;

	out[0] = 0;
	if (j->state == TF__JOB_STATE__DONE)
		snprintf(out, 16, "100 %%");
	else if (p && p->has_total && p->total && p->has_done)
		snprintf(out, 16, "%.0f %%", 100.0 * (double)p->done / (double)p->total);
}

static void add_job(struct table *t, const Tf__Job *j, int64_t now)
{
	char id[24], age[FORMAT_MAX], percent[16], place[16], start[FORMAT_MAX], left[FORMAT_MAX];

	format_whole(j->id, id);
	format_age_at(now, j->has_submitted ? j->submitted : 0, age);
	percent_of(j, percent);
	format_left(j, left);
	format_whole(j->place, place);
	format_until_at(now, j->has_expected_start ? j->expected_start : 0, start);
	table_add(t, (const char *[]){ id, job_kind_name(j->kind), j->name, j->user,
				       job_state_name(j->state), j->has_place ? place : NULL,
				       start[0] ? start : NULL, j->slot, percent,
				       left[0] ? left : NULL, age,
				       j->waits && *j->waits     ? j->waits
				       : j->reason && *j->reason ? j->reason
								 : " " });
}

/* What was found: rows for people, JSON, or counted. */
struct job_list {
	enum { JOBS_ROWS, JOBS_JSON, JOBS_COUNTS } form;
	struct table table;
	struct buf json;       /* the array so far: "[{...},{...}" */
	json_t *counts;        /* user -> state -> number */
	size_t found;
	int64_t now_ms;
};

static void count_job(json_t *counts, const Tf__Job *j)
{
	const char *user = j->user ? j->user : "", *state = job_state_name(j->state);
	json_t *row = json_object_get(counts, user);

	if (!row) {
		row = json_object();
		json_object_set_new(counts, user, row);
	}
	json_object_set_new(row, state,
			    json_integer(1 + json_integer_value(json_object_get(row, state))));
}

static int take_job(void *arg, const Tf__Job *job)
{
	struct job_list *l = arg;

	if (l->form == JOBS_COUNTS)
		count_job(l->counts, job);
	else if (l->form == JOBS_ROWS)
		add_job(&l->table, job, l->now_ms);
	else
		json_item_job(&l->json, job);
	l->found++;
	return 0;
}

static int read_kinds(const struct args *a, Tf__JobList *m, struct err *e)
{
	const struct words *given = &a->given[OPTION_KIND];
	struct buf known = BUF_INIT;
	int rc = 0;

	m->kind = xcalloc((size_t)given->count + 1, sizeof *m->kind);
	for (size_t i = 0; i < job_kind_count; i++)
		buf_printf(&known, "%s%s", i ? ", " : "", job_kinds[i].id);
	for (int i = 0; rc == 0 && i < given->count; i++) {
		const struct job_kind *k = job_kind_named(given->word[i]);

		if (k)
			m->kind[m->n_kind++] = k->kind;
		else
			rc = err_set(e, TF_EUSAGE, "--kind '%s' is none of %s", given->word[i],
				     known.data);
	}
	buf_release(&known);
	return rc;
}

static int read_filters(const struct args *a, Tf__JobList *m, int64_t *limit, struct err *e)
{
	m->has_all = 1;
	m->all = args_has(a, OPTION_ALL);
	m->name = (char *)args_text(a, OPTION_JOB_NAME);
	m->user = a->given[OPTION_USER].word;
	m->n_user = (size_t)a->given[OPTION_USER].count;
	m->tag = a->given[OPTION_TAG].word;
	m->n_tag = (size_t)a->given[OPTION_TAG].count;
	TRY(args_int(a, OPTION_LIMIT, 1, INT32_MAX, limit, e));
	m->state = xcalloc(LIMIT_FILTERS, sizeof *m->state);
	TRY(states_read(a, m->state, &m->n_state, e));
	return read_kinds(a, m, e);
}

static void print_counts(const json_t *counts)
{
	static const char *const head[] = { "user", "state", "jobs" };
	const char *user, *state;
	struct table t;
	json_t *row, *n;

	table_init(&t, "llr", head);
	json_object_foreach((json_t *)counts, user, row)
		json_object_foreach(row, state, n) {
			char number[FORMAT_MAX];

			format_count((uint64_t)json_integer_value(n), number);
			table_add(&t, (const char *[]){ user, state, number });
		}
	table_print(&t);
}

static void print_jobs(struct job_list *l, const Tf__JobList *asked)
{
	if (l->form == JOBS_JSON)
		printf("%s]\n", l->json.data);
	else if (l->found == 0 && (asked->n_state || asked->n_tag || asked->n_user ||
				   asked->n_kind || asked->name))
		puts("no such jobs");
	else if (l->found == 0)
		puts(asked->all ? "no jobs yet"
				: "no jobs queued or running (--all shows ended ones)");
	else if (l->form == JOBS_COUNTS)
		print_counts(l->counts);
	else
		table_print(&l->table);
}

int verb_jobs(struct client *c, struct err *e)
{
	static const char *const head[] = { "id", "kind", "name", "user", "state", "place",
					    "start", "slot", "progress", "eta", "age", "reason" };
	struct job_list l = { .json = BUF_INIT,
			      .counts = json_object(),
			      .now_ms = clock_wall_ms() };
	Tf__JobList m = TF__JOB_LIST__INIT;
	int64_t limit = INT64_MAX;
	int rc;

	l.form = args_has(&c->args, OPTION_COUNTS) ? JOBS_COUNTS
		 : args_has(&c->args, OPTION_JSON) ? JOBS_JSON
						   : JOBS_ROWS;
	table_init(&l.table, "rllllrllrrrl", head);
	buf_text(&l.json, "[");
	rc = read_filters(&c->args, &m, &limit, e);
	if (rc == 0)
		rc = client_list_jobs(c, &m, limit, take_job, &l, e);
	if (rc == 0 && l.form == JOBS_COUNTS && args_has(&c->args, OPTION_JSON))
		json_print(json_incref(l.counts));
	else if (rc == 0)
		print_jobs(&l, &m);
	table_release(&l.table);
	buf_release(&l.json);
	json_decref(l.counts);
	xfree(m.state);
	xfree(m.kind);
	return rc;
}

/* ---- show */

static int ask_job(struct client *c, uint64_t id, Tf__Reply **out, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRef m = TF__JOB_REF__INIT;

	m.job = id;
	r.body_case = TF__REQUEST__BODY_JOB_SHOW;
	r.job_show = &m;
	TRY(client_ask(c, &r, TF__REPLY__BODY_JOBS, out, e));
	if ((*out)->jobs->n_job == 1)
		return 0;
	tf__reply__free_unpacked(*out, NULL);
	return err_set(e, TF_EINTERNAL, "the daemon answered with no job");
}

static json_t *json_of_inputs(const Tf__Job *j)
{
	json_t *list = json_array();

	for (size_t i = 0; i < j->n_input; i++) {
		const Tf__Input *in = j->input[i];
		json_t *o = json_object();

		json_object_set_new(o, "role", json_string(in->role ? in->role : ""));
		json_object_set_new(o, "kind", json_string(artefact_kind_name(in->kind)));
		json_object_set_new(o, "name", json_string(in->name));
		json_object_set_new(o, "id", json_string(in->id));
		json_object_set_new(o, "step", in->step ? json_string(in->step) : json_null());
		json_array_append_new(list, o);
	}
	return list;
}

static const char *experiment_of(const Tf__Job *j)
{
	if (!j->spec)
		return NULL;
	if (j->spec->spec_case == TF__JOB_SPEC__SPEC_TRAIN)
		return j->spec->train->experiment;
	return j->spec->spec_case == TF__JOB_SPEC__SPEC_VAE ? j->spec->vae->experiment : NULL;
}

int verb_show(struct client *c, struct err *e)
{
	const char *experiment;
	Tf__Reply *reply;
	uint64_t id;
	json_t *o;

	TRY(operand_job(c, 0, &id, e));
	TRY(ask_job(c, id, &reply, e));
	o = json_of_job(reply->jobs->job[0]);
	json_object_set_new(o, "inputs", json_of_inputs(reply->jobs->job[0]));
	experiment = experiment_of(reply->jobs->job[0]);
	if (args_has(&c->args, OPTION_JSON)) {
		json_object_set_new(o, "experiment", experiment ? json_string(experiment)
								: json_null());
		json_print(o);
	} else {
		print_json_for_people(o, 0);
		if (experiment)
			printf("experiment:\n%s", experiment);
		json_decref(o);
	}
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}

/* ---- logs */

/* A log is the worker's text: on a terminal, what is not printable is shown as '?'. */
static void print_log(const Tf__LogPart *part)
{
	bool terminal = terminal_width(1) > 0;

	for (size_t i = 0; i < part->data.len; i++) {
		unsigned char byte = part->data.data[i];

		putchar(terminal && byte < ' ' && byte != '\n' && byte != '\t' ? '?' : byte);
	}
	fflush(stdout);
}

int verb_logs(struct client *c, struct err *e)
{
	bool follow = args_has(&c->args, OPTION_FOLLOW), end = false;
	Tf__Request r = TF__REQUEST__INIT;
	Tf__LogRead m = TF__LOG_READ__INIT;
	size_t got = 1;

	TRY(operand_job(c, 0, &m.job, e));
	m.has_offset = m.has_wait_ms = 1;
	m.wait_ms = follow ? LOG_WAIT_MS : 0;
	r.body_case = TF__REQUEST__BODY_LOG_READ;
	r.log_read = &m;
	while (!end && (follow || got > 0)) {
		Tf__Reply *reply;

		TRY(client_ask_for(c, &r, TF__REPLY__BODY_LOG, LOG_WAIT_MS + ASK_MS, &reply, e));
		got = reply->log->data.len;
		print_log(reply->log);
		m.offset = reply->log->offset + got;
		end = reply->log->end;
		tf__reply__free_unpacked(reply, NULL);
	}
	return STATUS_DONE;
}

/* ---- fetch */

int verb_fetch(struct client *c, struct err *e)
{
	const char *folder = args_text(&c->args, OPTION_OUTPUT);
	Tf__FileOf of = TF__FILE_OF__INIT;
	struct buf names = BUF_INIT;
	uint64_t id;
	int rc;

	FAIL_IF(!folder, e, TF_EUSAGE, "fetch expects -o DIR, the folder for the files");
	TRY(operand_job(c, 0, &id, e));
	of.of_case = TF__FILE_OF__OF_JOB;
	of.job = id;
	rc = fetch_files(c, &of, args_has(&c->args, OPTION_ALL) ? "" : "results/", folder, &names,
			 e);
	if (names.len)
		fputs(names.data, stdout);
	else if (rc == 0)
		printf("job %" PRIu64 " has no results\n", id);
	buf_release(&names);
	return rc;
}
