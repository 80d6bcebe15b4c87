/* SPDX-License-Identifier: Apache-2.0
 * The verb sweep: a training for each point of a sweep file, and what is measured of it, submitted
 * together or not at all. */
#include "config.h"
#include "client/line.h"
#include "client/spec_json.h"
#include "client/submit.h"
#include "client/sweep.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* A job of the sweep: a point's training, then its evaluations, which wait for it. */
struct sweep_job {
	Tf__JobSpec spec;
	union {
		Tf__TrainSpec train;
		Tf__VaeSpec vae;
	} of;
	Tf__JobSpec *eval; /* owned; spec borrows from it */
	char *name;
	size_t point;
	int64_t after;     /* job of the sweep; -1: none */
};

struct jobs {
	struct sweep_job *job;
	uint64_t *id;
	size_t count;
	char **tag; /* of all of them */
	size_t tags;
};

static void jobs_release(struct jobs *all)
{
	for (size_t i = 0; i < all->count; i++) {
		xfree(all->job[i].name);
		if (all->job[i].eval)
			tf__job_spec__free_unpacked(all->job[i].eval, NULL);
	}
	xfree(all->job);
	xfree(all->id);
	xfree(all->tag);
}

/* The options of the command line, and what the sweep says. */
static int finish(struct client *c, const struct sweep *s, struct jobs *all, struct sweep_job *j,
		  struct err *e)
{
	TRY(submit_check(c, &j->spec, e));
	j->spec.name = j->name;
	j->spec.tag = all->tag;
	j->spec.n_tag = all->tags;
	if (s->at_once > 0) {
		j->spec.group = s->name;
		j->spec.has_group_running = true;
		j->spec.group_running = (uint32_t)s->at_once;
	}
	all->count++;
	return spec_check(&j->spec, e);
}

static int add_point(struct client *c, const struct sweep *s, struct jobs *all, size_t point,
		     struct err *e)
{
	struct sweep_job *j = &all->job[all->count];
	struct sweep_point *p = &s->point[point];

	*j = (struct sweep_job){ .spec = TF__JOB_SPEC__INIT, .point = point, .after = -1 };
	j->name = xstrdup(p->name);
	if (s->kind == EXPERIMENT_TRAIN) {
		j->of.train = (Tf__TrainSpec)TF__TRAIN_SPEC__INIT;
		j->of.train.model = p->name;
		j->of.train.experiment = p->experiment.data;
		j->spec.kind = TF__JOB_KIND__TRAIN;
		j->spec.spec_case = TF__JOB_SPEC__SPEC_TRAIN;
		j->spec.train = &j->of.train;
	} else {
		j->of.vae = (Tf__VaeSpec)TF__VAE_SPEC__INIT;
		j->of.vae.vae = p->name;
		j->of.vae.experiment = p->experiment.data;
		j->spec.kind = TF__JOB_KIND__VAE;
		j->spec.spec_case = TF__JOB_SPEC__SPEC_VAE;
		j->spec.vae = &j->of.vae;
	}
	return finish(c, s, all, j, e);
}

static int add_eval(struct client *c, const struct sweep *s, struct jobs *all, size_t point,
		    const struct sweep_eval *eval, int64_t step, size_t after, struct err *e)
{
	struct sweep_job *j = &all->job[all->count];
	char *text = sweep_eval_json(s, point, eval, step), number[24];
	Tf__JobSpec *spec = NULL;
	int rc = spec_json_read(text, strlen(text), &spec, e);

	xfree(text);
	TRY(rc);
	*j = (struct sweep_job){ .spec = TF__JOB_SPEC__INIT, .point = point };
	j->eval = spec;
	j->after = (int64_t)after;
	snprintf(number, sizeof number, "-%" PRId64, step);
	j->name = xasprintf("%s-%s%s", s->point[point].name, spec->eval->task,
			    eval->every ? number : "");
	j->spec.kind = TF__JOB_KIND__EVAL;
	j->spec.spec_case = TF__JOB_SPEC__SPEC_EVAL;
	j->spec.eval = spec->eval;
	return finish(c, s, all, j, e);
}

/* A point's evaluations: each, or each of each checkpoint. */
static int add_evals(struct client *c, const struct sweep *s, struct jobs *all, size_t point,
		     struct err *e)
{
	const struct sweep_point *p = &s->point[point];
	size_t training = all->count - 1;

	for (size_t k = 0; k < s->evaluations; k++)
		for (size_t i = 0; i < sweep_eval_count(p, &s->eval[k]); i++)
			TRY(add_eval(c, s, all, point, &s->eval[k],
				     s->eval[k].every ? p->step[i] : 0, training, e));
	return 0;
}

static int count_jobs(const struct sweep *s, size_t *count, struct err *e)
{
	*count = s->points;
	for (size_t i = 0; i < s->points; i++)
		for (size_t k = 0; k < s->evaluations; k++)
			*count += sweep_eval_count(&s->point[i], &s->eval[k]);
	FAIL_IF(*count > LIMIT_BATCH_JOBS, e, TF_ELIMIT,
		"%s: %zu jobs or more, at most %u make a sweep", s->file.file, *count,
		LIMIT_BATCH_JOBS);
	return 0;
}

static int make_jobs(struct client *c, const struct sweep *s, struct jobs *all, struct err *e)
{
	const struct words *tags = &c->args.given[OPTION_TAG];

	size_t count;

	TRY(count_jobs(s, &count, e));
	all->job = xcalloc(count, sizeof *all->job);
	all->id = xcalloc(count, sizeof *all->id);
	all->tag = xcalloc((size_t)tags->count + 1, sizeof *all->tag);
	all->tag[all->tags++] = s->name;
	for (int i = 0; i < tags->count; i++)
		all->tag[all->tags++] = tags->word[i];
	for (size_t i = 0; i < s->points; i++) {
		TRY(add_point(c, s, all, i, e));
		TRY(add_evals(c, s, all, i, e));
	}
	return 0;
}

static int send_jobs(struct client *c, const struct sweep *s, struct jobs *all, struct err *e)
{
	struct line_member *m = xcalloc(all->count, sizeof *m);
	int rc = client_connect(c, e);

	for (size_t i = 0; i < all->count; i++)
		m[i] = (struct line_member){ &all->job[i].spec, all->job[i].after };
	if (rc == 0)
		rc = client_note(c, line_submit_members(c->line, m, all->count,
							args_has(&c->args, OPTION_DRY_RUN),
							all->id, e));
	xfree(m);
	return rc < 0 && c->refused ? err_prefix(e, "%s", s->file.file) : rc;
}

/* ---- what was made */

static json_t *json_of_point(const struct sweep_point *p)
{
	json_t *o = json_object();

	for (size_t i = 0; i < p->sets; i++)
		json_object_set_new(o, p->set[i].key, json_string(p->set[i].value->text));
	return o;
}

static void print_json(const struct client *c, const struct sweep *s, const struct jobs *all)
{
	json_t *o = json_object(), *list = json_array();

	for (size_t i = 0; i < all->count; i++) {
		const struct sweep_job *j = &all->job[i];
		json_t *job = json_object();

		json_object_set_new(job, "id", all->id[i] ? json_integer((json_int_t)all->id[i])
							  : json_null());
		json_object_set_new(job, "name", json_string(j->name));
		json_object_set_new(job, "kind", json_string(job_kind_name(j->spec.kind)));
		json_object_set_new(job, "settings", json_of_point(&s->point[j->point]));
		json_object_set_new(job, "after_member",
				    j->after < 0 ? json_null() : json_integer(j->after));
		json_array_append_new(list, job);
	}
	json_object_set_new(o, "name", json_string(s->name));
	json_object_set_new(o, "at_once", json_integer(s->at_once));
	json_object_set_new(o, "dry_run", json_boolean(args_has(&c->args, OPTION_DRY_RUN)));
	json_object_set_new(o, "jobs", list);
	json_print(o);
}

/* A row a job: its id and name, and the values of what varies. */
static void print_table(const struct sweep *s, const struct jobs *all)
{
	size_t columns = 3 + s->keys;
	const char **cell = xcalloc(columns, sizeof *cell);
	char *align = xcalloc(columns + 1, 1);
	struct table t;

	cell[0] = "job";
	cell[1] = "kind";
	cell[2] = "name";
	for (size_t k = 0; k < s->keys; k++)
		cell[3 + k] = s->key[k];
	memset(align, 'l', columns);
	align[0] = 'r';
	table_init(&t, align, cell);
	for (size_t i = 0; i < all->count; i++) {
		const struct sweep_job *j = &all->job[i];
		char id[24];

		snprintf(id, sizeof id, "%" PRIu64, all->id[i]);
		cell[0] = all->id[i] ? id : NULL;
		cell[1] = job_kind_name(j->spec.kind);
		cell[2] = j->name;
		for (size_t k = 0; k < s->keys; k++) {
			const struct yaml_node *v = sweep_value(&s->point[j->point], s->key[k]);

			cell[3 + k] = v ? v->text : NULL;
		}
		table_add(&t, cell);
	}
	table_print(&t);
	xfree(align);
	xfree(cell);
}

static void print_sweep(const struct client *c, const struct sweep *s, const struct jobs *all)
{
	if (args_has(&c->args, OPTION_JSON)) {
		print_json(c, s, all);
		return;
	}
	print_table(s, all);
	if (args_has(&c->args, OPTION_DRY_RUN))
		printf("The daemon would take these %zu jobs; nothing was submitted.\n",
		       all->count);
	else
		printf("%zu jobs are submitted; wait for them: transfuse wait --tag %s\n",
		       all->count, s->name);
}

int verb_sweep(struct client *c, struct err *e)
{
	struct jobs all = { 0 };
	struct sweep s;
	int rc = sweep_read(c->args.operand.word[0], &c->args.given[OPTION_SET], &s, e);

	if (rc == 0)
		rc = make_jobs(c, &s, &all, e);
	if (rc == 0)
		rc = send_jobs(c, &s, &all, e);
	if (rc == 0)
		print_sweep(c, &s, &all);
	if (rc == 0 && args_has(&c->args, OPTION_WAIT) && !args_has(&c->args, OPTION_DRY_RUN))
		rc = wait_for_ends(c, all.id, all.count, args_has(&c->args, OPTION_JSON), e);
	jobs_release(&all);
	sweep_release(&s);
	return rc;
}
