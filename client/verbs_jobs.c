/* SPDX-License-Identifier: Apache-2.0
 * Verbs about jobs: noop, jobs, show, logs, wait, cancel, fetch. */
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

static int ask_jobs(struct client *c, bool all, uint64_t before, uint32_t limit, Tf__Reply **out,
		    struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;

	m.has_all = 1;
	m.all = all;
	m.has_before = before > 0;
	m.before = before;
	m.has_limit = limit > 0;
	m.limit = limit;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	return client_ask(c, &r, TF__REPLY__BODY_JOBS, out, e);
}

static void percent_of(const Tf__Job *j, char out[16])
{
	const Tf__Progress *p = j->progress;

	out[0] = 0;
	if (j->state == TF__JOB_STATE__DONE)
		snprintf(out, 16, "100 %%");
	else if (p && p->has_total && p->total && p->has_done)
		snprintf(out, 16, "%.0f %%", 100.0 * (double)p->done / (double)p->total);
}

static void add_job(struct table *t, const Tf__Job *j)
{
	char id[24], age[FORMAT_MAX], percent[16];

	snprintf(id, sizeof id, "%" PRIu64, j->id);
	format_age(j->has_submitted ? j->submitted : 0, age);
	percent_of(j, percent);
	table_add(t, (const char *[]){ id, job_kind_name(j->kind), j->name, j->user,
				       job_state_name(j->state), j->slot, percent, age,
				       j->reason && *j->reason ? j->reason : " " });
}

int verb_jobs(struct client *c, struct err *e)
{
	static const char *const head[] = { "id", "kind", "name", "user",
					    "state", "slot", "progress", "age", "reason" };
	bool all = args_has(&c->args, OPTION_ALL), json = args_has(&c->args, OPTION_JSON);
	bool more = true;
	json_t *list = json_array();
	int64_t left = INT64_MAX;
	uint64_t before = 0;
	struct table t;
	int rc;

	rc = args_int(&c->args, OPTION_LIMIT, 1, INT32_MAX, &left, e);
	table_init(&t, "rlllllrrl", head);
	while (rc == 0 && more && left > 0) {
		uint32_t limit = left < 1000 ? (uint32_t)left : 1000;
		Tf__Reply *reply;
		size_t n;

		rc = ask_jobs(c, all, before, limit, &reply, e);
		if (rc < 0)
			break;
		n = reply->jobs->n_job;
		for (size_t i = 0; i < n; i++) {
			before = reply->jobs->job[i]->id;
			json_array_append_new(list, json_of_job(reply->jobs->job[i]));
			add_job(&t, reply->jobs->job[i]);
		}
		left -= (int64_t)n;
		more = reply->jobs->more && n > 0;
		tf__reply__free_unpacked(reply, NULL);
	}
	if (rc == 0 && json)
		json_print(json_incref(list));
	if (rc == 0 && !json && t.rows == 1)
		puts(all ? "no jobs yet" : "no jobs queued or running (--all shows ended ones)");
	else if (rc == 0 && !json)
		table_print(&t);
	table_release(&t);
	json_decref(list);
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

/* ---- wait, cancel, fetch */

int verb_wait(struct client *c, struct err *e)
{
	bool json = args_has(&c->args, OPTION_JSON);
	json_t *list = json_array();
	int worst = STATUS_DONE, rc = 0;

	for (int i = 0; rc >= 0 && i < c->args.operand.count; i++) {
		Tf__Reply *reply;
		uint64_t id;

		rc = operand_job(c, i, &id, e);
		if (rc >= 0)
			rc = follow_job(c, id, json, &reply, e);
		if (rc < 0)
			break;
		if (json)
			json_array_append_new(list, json_of_job(reply->jobs->job[0]));
		else
			print_end(reply->jobs->job[0]);
		if (worst != STATUS_FAILED && rc != STATUS_DONE)
			worst = rc;
		tf__reply__free_unpacked(reply, NULL);
	}
	if (json && rc >= 0)
		json_print(json_incref(c->args.operand.count == 1 ? json_array_get(list, 0)
								  : list));
	json_decref(list);
	return rc < 0 ? rc : worst;
}

/* A running job is cancelled once its worker has left: until then it is stopping. */
static void print_cancelled(const struct client *c, const Tf__Jobs *jobs)
{
	json_t *list = json_array();

	for (size_t i = 0; i < jobs->n_job; i++) {
		const Tf__Job *j = jobs->job[i];

		json_array_append_new(list, json_of_job(j));
		if (!args_has(&c->args, OPTION_JSON))
			printf("job %" PRIu64 " is %s\n", j->id,
			       j->state == TF__JOB_STATE__STOPPING ? "being cancelled"
								   : job_state_name(j->state));
	}
	if (args_has(&c->args, OPTION_JSON))
		json_print(json_incref(list));
	json_decref(list);
}

int verb_cancel(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;
	uint64_t ids[LIMIT_JOB_REFS];
	int n = c->args.operand.count;
	Tf__Reply *reply;

	FAIL_IF(n > (int)LIMIT_JOB_REFS, e, TF_EUSAGE, "%d jobs are named, at most %u are allowed",
		n, LIMIT_JOB_REFS);
	for (int i = 0; i < n; i++)
		TRY(operand_job(c, i, &ids[i], e));
	m.job = ids;
	m.n_job = (size_t)n;
	r.body_case = TF__REQUEST__BODY_JOB_CANCEL;
	r.job_cancel = &m;
	TRY(client_ask(c, &r, TF__REPLY__BODY_JOBS, &reply, e));
	print_cancelled(c, reply->jobs);
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}

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
