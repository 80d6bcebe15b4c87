/* SPDX-License-Identifier: Apache-2.0
 * The verb compare: jobs beside each other, by the settings in which they differ and by their
 * results. A setting is a field of the job's spec, or "train.lr" of its experiment; a job that
 * reads a model has those of the training that made it, too. */
#include "config.h"
#include "client/client.h"
#include "lib/mem.h"
#include "lib/yaml.h"
#include "proto/spec.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define MEMORY "peak_rss_anon_bytes" /* tells nothing of a model: in JSON only */

struct row {
	uint64_t id;
	const char *kind, *state;
	char *name, *model;
	json_t *settings;  /* name -> text */
	json_t *result;    /* name -> number */
};

struct comparison {
	struct row *row;
	size_t rows;
	json_t *differing; /* names, as keys of an object: it keeps their order */
	json_t *results;
	json_t *trained;   /* id of a model -> settings of its training */
};

/* ---- settings */

/* "train.lr": "3e-4", ... */
static void flatten(const struct yaml_node *n, const char *prefix, json_t *out)
{
	size_t i = 0;

	for (const struct yaml_node *c = n->child; c; c = c->next, i++) {
		char path[200];

		if (c->key)
			snprintf(path, sizeof path, "%s%s%s", prefix, *prefix ? "." : "", c->key);
		else
			snprintf(path, sizeof path, "%s.%zu", prefix, i);
		if (c->kind == YAML_SCALAR)
			json_object_set_new(out, path, json_string(c->text ? c->text : ""));
		else
			flatten(c, path, out);
	}
}

static void add_experiment(const char *text, json_t *out)
{
	struct yaml y;

	if (yaml_parse("experiment", text, strlen(text), &y, NULL) < 0)
		return; /* of another version: nothing is known of it */
	flatten(y.root, "", out);
	yaml_release(&y);
}

static char *text_of(const ProtobufCFieldDescriptor *f, const void *at)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_STRING: return xstrdup(*(char *const *)at);
	case PROTOBUF_C_TYPE_UINT32: return xasprintf("%" PRIu32, *(const uint32_t *)at);
	case PROTOBUF_C_TYPE_UINT64: return xasprintf("%" PRIu64, *(const uint64_t *)at);
	case PROTOBUF_C_TYPE_DOUBLE: return xasprintf("%.9g", *(const double *)at);
	case PROTOBUF_C_TYPE_BOOL:
		return xstrdup(*(const protobuf_c_boolean *)at ? "true" : "false");
	default: return NULL;
	}
}

/* The fields of a kind's spec, but lists and what has a column of its own. */
static void add_fields(const ProtobufCMessage *m, json_t *out)
{
	for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
		char *text;

		if (f->label == PROTOBUF_C_LABEL_REPEATED || strcmp(f->name, "model") == 0 ||
		    strcmp(f->name, "vae") == 0 || strcmp(f->name, "experiment") == 0)
			continue;
		text = text_of(f, (const char *)m + f->offset);
		if (text)
			json_object_set_new(out, f->name, json_string(text));
		xfree(text);
	}
}

static int ask_job(struct client *c, uint64_t id, Tf__Reply **out, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRef m = TF__JOB_REF__INIT;

	m.job = id;
	r.body_case = TF__REQUEST__BODY_JOB_SHOW;
	r.job_show = &m;
	TRY(client_ask(c, &r, TF__REPLY__BODY_JOBS, out, e));
	if ((*out)->jobs->n_job == 1 && (*out)->jobs->job[0]->spec)
		return 0;
	tf__reply__free_unpacked(*out, NULL);
	return err_set(e, TF_EINTERNAL, "the daemon answered with no job");
}

/* The training of the model that is called so now, when it is still the one that was read. */
static int training_of(struct client *c, const Tf__Input *in, uint64_t *job, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactRef ref = TF__ARTEFACT_REF__INIT;
	Tf__Reply *reply;
	int rc;

	*job = 0;
	ref.kind = in->kind;
	ref.name = in->name;
	r.body_case = TF__REQUEST__BODY_ARTEFACT_SHOW;
	r.artefact_show = &ref;
	rc = client_ask(c, &r, TF__REPLY__BODY_ARTEFACTS, &reply, e);
	if (rc == TF_ENOTFOUND)
		return 0;
	TRY(rc);
	if (reply->artefacts->n_artefact == 1 &&
	    strcmp(reply->artefacts->artefact[0]->id, in->id) == 0)
		*job = reply->artefacts->artefact[0]->job;
	tf__reply__free_unpacked(reply, NULL);
	return 0;
}

static const char *experiment_of(const Tf__JobSpec *s)
{
	return s->spec_case == TF__JOB_SPEC__SPEC_TRAIN ? s->train->experiment
	       : s->spec_case == TF__JOB_SPEC__SPEC_VAE ? s->vae->experiment
							: NULL;
}

/* Settings of the training of a model, asked for once. Borrowed. */
static int trained_so(struct client *c, struct comparison *all, const Tf__Input *in, json_t **out,
		      struct err *e)
{
	struct err none = ERR_INIT;
	Tf__Reply *reply = NULL;
	uint64_t job;
	int rc;

	*out = json_object_get(all->trained, in->id);
	if (*out)
		return 0;
	TRY(training_of(c, in, &job, e));
	*out = json_object();
	json_object_set_new(all->trained, in->id, *out);
	rc = job ? ask_job(c, job, &reply, &none) : TF_ENOTFOUND;
	if (rc == TF_ENOTFOUND)
		return 0; /* it is not kept any more */
	FAIL_IF(rc < 0, e, rc, "%s", none.text);
	if (experiment_of(reply->jobs->job[0]->spec))
		add_experiment(experiment_of(reply->jobs->job[0]->spec), *out);
	tf__reply__free_unpacked(reply, NULL);
	return 0;
}

/* ---- rows */

/* The model that a job makes or reads. */
static const char *model_of(const Tf__JobSpec *s)
{
	switch (s->spec_case) {
	case TF__JOB_SPEC__SPEC_TRAIN: return s->train->model;
	case TF__JOB_SPEC__SPEC_VAE: return s->vae->vae;
	case TF__JOB_SPEC__SPEC_EVAL: return s->eval->model;
	case TF__JOB_SPEC__SPEC_GENERATE: return s->generate->model;
	default: return NULL;
	}
}

static int add_row(struct client *c, struct comparison *all, const Tf__Job *j, struct err *e)
{
	struct row *row = &all->row[all->rows++];
	const Tf__JobSpec *s = j->spec;

	*row = (struct row){ .id = j->id,
			     .kind = job_kind_name(j->kind),
			     .state = job_state_name(j->state),
			     .name = xstrdup(j->name),
			     .model = xstrdup(model_of(s)),
			     .settings = json_object(),
			     .result = json_object() };
	if (s->spec_case != TF__JOB_SPEC__SPEC__NOT_SET)
		add_fields((const ProtobufCMessage *)s->train, row->settings); /* any member */
	if (experiment_of(s))
		add_experiment(experiment_of(s), row->settings);
	for (size_t i = 0; i < j->n_input; i++) {
		json_t *training;

		if (j->input[i]->kind != TF__ARTEFACT_KIND__MODEL || !j->input[i]->role ||
		    strcmp(j->input[i]->role, "model") != 0)
			continue;
		TRY(trained_so(c, all, j->input[i], &training, e));
		json_object_update(row->settings, training);
	}
	for (size_t i = 0; i < j->n_result; i++)
		json_object_set_new(row->result, j->result[i]->name,
				    json_real(j->result[i]->value));
	return 0;
}

/* Those of --kind, of the jobs that are named. */
static int read_rows(struct client *c, const struct selection *jobs, struct comparison *all,
		     struct err *e)
{
	const char *kind = args_text(&c->args, OPTION_KIND);

	FAIL_IF(kind && !job_kind_named(kind), e, TF_EUSAGE, "--kind '%s' is no kind of job", kind);
	all->row = xcalloc(jobs->count, sizeof *all->row);
	for (size_t i = 0; i < jobs->count; i++) {
		Tf__Reply *reply;
		int rc = ask_job(c, jobs->id[i], &reply, e);

		TRY(rc);
		if (!kind || strcmp(job_kind_name(reply->jobs->job[0]->kind), kind) == 0)
			rc = add_row(c, all, reply->jobs->job[0], e);
		tf__reply__free_unpacked(reply, NULL);
		TRY(rc);
	}
	c->refused = all->rows == 0;
	FAIL_IF(all->rows == 0, e, TF_ENOTFOUND, "none of the jobs is of kind %s", kind);
	return 0;
}

/* Two jobs have the setting and not the same value, or only one of two of a kind has it. */
static bool differs(const struct comparison *all, const char *key)
{
	const char *first = NULL;

	for (size_t i = 0; i < all->rows; i++) {
		const char *text = json_string_value(json_object_get(all->row[i].settings, key));

		if (text && first && strcmp(text, first) != 0)
			return true;
		first = text ? text : first;
		for (size_t k = 0; k < i; k++) /* the first of its kind speaks for all */
			if (all->row[k].kind == all->row[i].kind) {
				if (!text != !json_object_get(all->row[k].settings, key))
					return true;
				break;
			}
	}
	return false;
}

static void find_columns(struct comparison *all)
{
	json_t *seen = json_object(), *value;
	const char *key;

	all->differing = json_object();
	all->results = json_object();
	for (size_t i = 0; i < all->rows; i++) {
		json_object_foreach(all->row[i].settings, key, value) {
			if (json_object_get(seen, key))
				continue;
			json_object_set_new(seen, key, json_true());
			if (differs(all, key))
				json_object_set_new(all->differing, key, json_true());
		}
		json_object_foreach(all->row[i].result, key, value)
			if (strcmp(key, MEMORY) != 0)
				json_object_set_new(all->results, key, json_true());
	}
	json_decref(seen);
}

/* ---- output */

static json_t *json_of_row(const struct comparison *all, const struct row *row)
{
	json_t *o = json_object(), *settings = json_object(), *value;
	const char *key;

	json_object_foreach(all->differing, key, value)
		if (json_object_get(row->settings, key))
			json_object_set(settings, key, json_object_get(row->settings, key));
	json_object_set_new(o, "id", json_integer((json_int_t)row->id));
	json_object_set_new(o, "kind", json_string(row->kind));
	json_object_set_new(o, "name", row->name ? json_string(row->name) : json_null());
	json_object_set_new(o, "model", row->model ? json_string(row->model) : json_null());
	json_object_set_new(o, "state", json_string(row->state));
	json_object_set_new(o, "settings", settings);
	json_object_set(o, "result", row->result);
	return o;
}

static void print_json(const struct comparison *all)
{
	json_t *list = json_array();

	for (size_t i = 0; i < all->rows; i++)
		json_array_append_new(list, json_of_row(all, &all->row[i]));
	json_print(list);
}

/* Calls for each cell of the table, the head first; NULL: nothing there. */
static void each_cell(const struct comparison *all, bool exact,
		      void (*put)(void *arg, size_t column, const char *text), void *arg)
{
	static const char *const head[] = { "job", "kind", "model", "state" };

	for (size_t i = 0; i <= all->rows; i++) {
		const struct row *row = i ? &all->row[i - 1] : NULL;
		char id[24], number[FORMAT_MAX];
		size_t column = 0;
		const char *key;
		json_t *value;

		snprintf(id, sizeof id, "%" PRIu64, row ? row->id : 0);
		put(arg, column++, row ? id : head[0]);
		put(arg, column++, row ? row->kind : head[1]);
		put(arg, column++, row ? (row->model ? row->model : row->name) : head[2]);
		put(arg, column++, row ? row->state : head[3]);
		json_object_foreach(all->differing, key, value)
			put(arg, column++,
			    row ? json_string_value(json_object_get(row->settings, key)) : key);
		json_object_foreach(all->results, key, value) {
			const json_t *v = row ? json_object_get(row->result, key) : NULL;

			if (v && exact)
				snprintf(number, sizeof number, "%.9g", json_number_value(v));
			else if (v)
				format_value(json_number_value(v), number);
			put(arg, column++, !row ? key : v ? number : NULL);
		}
	}
}

static void put_csv(void *arg, size_t column, const char *text)
{
	size_t *columns = arg; /* of the table */

	if (column)
		putchar(',');
	if (text && text[strcspn(text, ",\"\r\n")]) {
		putchar('"');
		for (; *text; text++) {
			if (*text == '"')
				putchar('"');
			putchar(*text);
		}
		putchar('"');
	} else if (text) {
		fputs(text, stdout);
	}
	if (column + 1 == *columns)
		putchar('\n');
}

struct cells {
	size_t columns;
	char **cell; /* of a row; owned until it is in the table */
	char *align;
	struct table table;
	bool begun;
};

static void put_cell(void *arg, size_t column, const char *text)
{
	struct cells *t = arg;

	t->cell[column] = xstrdup(text);
	if (column + 1 < t->columns)
		return;
	if (t->begun)
		table_add(&t->table, (const char *const *)t->cell);
	else
		table_init(&t->table, t->align, (const char *const *)t->cell);
	t->begun = true;
	for (size_t i = 0; i < t->columns; i++)
		xfree(t->cell[i]);
}

static void print_table(const struct comparison *all, size_t columns)
{
	struct cells t = { .columns = columns };

	t.cell = xcalloc(columns, sizeof *t.cell);
	t.align = xcalloc(columns + 1, 1);
	for (size_t i = 0; i < columns; i++)
		t.align[i] = i == 0 || i >= 4 ? 'r' : 'l';
	each_cell(all, false, put_cell, &t);
	table_print(&t.table);
	xfree(t.cell);
	xfree(t.align);
}

static void comparison_release(struct comparison *all)
{
	for (size_t i = 0; i < all->rows; i++) {
		xfree(all->row[i].name);
		xfree(all->row[i].model);
		json_decref(all->row[i].settings);
		json_decref(all->row[i].result);
	}
	xfree(all->row);
	json_decref(all->differing);
	json_decref(all->results);
	json_decref(all->trained);
}

int verb_compare(struct client *c, struct err *e)
{
	struct comparison all = { .trained = json_object() };
	struct selection jobs;
	int rc = selection_read(c, NULL, 0, &jobs, e);

	if (rc == 0)
		rc = read_rows(c, &jobs, &all, e);
	if (rc == 0) {
		size_t columns;

		find_columns(&all);
		columns = 4 + json_object_size(all.differing) + json_object_size(all.results);
		if (args_has(&c->args, OPTION_JSON))
			print_json(&all);
		else if (args_has(&c->args, OPTION_CSV))
			each_cell(&all, true, put_csv, &columns);
		else
			print_table(&all, columns);
	}
	comparison_release(&all);
	selection_release(&jobs);
	return rc < 0 ? rc : STATUS_DONE;
}
