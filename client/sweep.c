/* SPDX-License-Identifier: Apache-2.0
 * Reading and expanding sweep files; see sweep.h. The points are the product of the grid's axes,
 * the last one fastest, for each entry of the list. */
#include "config.h"
#include "client/sweep.h"
#include "client/spec_json.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/spec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off */
static const struct yaml_field fields[] = {
	{ "name", YAML_TEXT, offsetof(struct sweep, name), NULL, 1, LIMIT_NAME_BYTES, NULL,
	  "name of the sweep: its tag, its group, and the beginning of its models' names" },
	{ "base", YAML_TEXT, offsetof(struct sweep, base), NULL, 1, LIMIT_PATH_BYTES, NULL,
	  "experiment file of all points; a path from the sweep's file" },
	{ "at_once", YAML_INT, offsetof(struct sweep, at_once), "0", 0, LIMIT_WORKERS, NULL,
	  "jobs that may run at a time; 0: as many as there is room for" },
	{ "set", YAML_NODE, offsetof(struct sweep, settings), "{}", 0, 0, NULL,
	  "settings of all points" },
	{ "grid", YAML_NODE, offsetof(struct sweep, grid), "{}", 0, 0, NULL,
	  "settings with a list of values each: all combinations are points" },
	{ "list", YAML_NODE, offsetof(struct sweep, list), "[]", 0, 0, NULL,
	  "points one by one, each a map of settings" },
	{ "eval", YAML_NODE, offsetof(struct sweep, evals), "[]", 0, 0, NULL,
	  "what is measured of each point's model when it is done: task, data ..." },
};
/* clang-format on */

static size_t children(const struct yaml_node *n)
{
	size_t count = 0;

	for (const struct yaml_node *c = n ? n->child : NULL; c; c = c->next)
		count++;
	return count;
}

/* "grid.train.lr": the field of a node for a message. */
static int wrong(const struct sweep *s, const struct yaml_node *n, const char *section,
		 const char *key, struct err *e, const char *text)
{
	char path[200];

	snprintf(path, sizeof path, "%s%s%s", section, key ? "." : "", key ? key : "");
	return yaml_error(&s->file, n, path, e, "%s", text);
}

static void add_key(struct sweep *s, const char *key)
{
	for (size_t i = 0; i < s->keys; i++)
		if (strcmp(s->key[i], key) == 0)
			return;
	s->key = xrealloc(s->key, s->keys + 1, sizeof *s->key);
	s->key[s->keys++] = key;
}

/* A map of settings with one value each. */
static int check_settings(const struct sweep *s, const struct yaml_node *map, const char *section,
			  struct err *e)
{
	if (map->kind != YAML_MAP)
		return wrong(s, map, section, NULL, e, "expected settings, as in train.lr: 3e-4");
	for (const struct yaml_node *n = map->child; n; n = n->next)
		if (n->kind != YAML_SCALAR || yaml_is_null(n))
			return wrong(s, n, section, n->key, e, "expected one value");
	return 0;
}

static int check_axis(const struct sweep *s, const struct yaml_node *axis, struct err *e)
{
	if (axis->kind != YAML_LIST || !axis->child)
		return wrong(s, axis, "grid", axis->key, e,
			     "expected a list of values, as in [3e-4, 1e-3]");
	for (const struct yaml_node *n = axis->child; n; n = n->next)
		if (n->kind != YAML_SCALAR || yaml_is_null(n))
			return wrong(s, n, "grid", axis->key, e, "expected a value in the list");
	return 0;
}

/* What a file says beside the base: all its shapes are right, and which names it sets. */
static int check_shape(struct sweep *s, struct err *e)
{
	if (s->settings)
		TRY(check_settings(s, s->settings, "set", e));
	if (s->grid && s->grid->kind != YAML_MAP)
		return wrong(s, s->grid, "grid", NULL, e, "expected settings with lists of values");
	for (const struct yaml_node *n = s->grid ? s->grid->child : NULL; n; n = n->next) {
		TRY(check_axis(s, n, e));
		add_key(s, n->key);
	}
	if (s->list && s->list->kind != YAML_LIST)
		return wrong(s, s->list, "list", NULL, e, "expected a list of points");
	for (const struct yaml_node *n = s->list ? s->list->child : NULL; n; n = n->next) {
		TRY(check_settings(s, n, "list", e));
		for (const struct yaml_node *c = n->child; c; c = c->next) {
			if (s->grid && yaml_get(s->grid, c->key))
				return wrong(s, c, "list", c->key, e, "the grid sets it, too");
			add_key(s, c->key);
		}
	}
	return 0;
}

/* ---- points */

static void point_add(struct sweep_point *p, const char *key, const struct yaml_node *value)
{
	p->set = xrealloc(p->set, p->sets + 1, sizeof *p->set);
	p->set[p->sets++] = (struct sweep_setting){ key, value };
}

const struct yaml_node *sweep_value(const struct sweep_point *p, const char *key)
{
	for (size_t i = 0; i < p->sets; i++)
		if (strcmp(p->set[i].key, key) == 0)
			return p->set[i].value;
	return NULL;
}

static const struct yaml_node *child_at(const struct yaml_node *n, size_t i)
{
	const struct yaml_node *c = n->child;

	while (i-- > 0)
		c = c->next;
	return c;
}

/* Settings of the i-th point: an entry of the list, then a digit for each axis of the grid. */
static void point_settings(const struct sweep *s, size_t i, struct sweep_point *p)
{
	size_t rest = s->points;

	if (s->list && s->list->child) {
		rest /= children(s->list);
		for (const struct yaml_node *n = child_at(s->list, i / rest)->child; n; n = n->next)
			point_add(p, n->key, n);
		i %= rest;
	}
	for (const struct yaml_node *axis = s->grid ? s->grid->child : NULL; axis;
	     axis = axis->next) {
		rest /= children(axis);
		point_add(p, axis->key, child_at(axis, i / rest));
		i %= rest;
	}
}

/* "train.lr=3e-4", as for --set; the caller's. */
static char *assignment(const char *key, const struct yaml_node *value)
{
	struct buf b = BUF_INIT;

	buf_printf(&b, "%s=", key);
	yaml_write_text(value->text, value->quoted, &b);
	return buf_detach(&b);
}

/* "train.lr=3e-4, model.layers=2": which point a message is about. */
static void label(const struct sweep_point *p, char *out, size_t room)
{
	size_t n = 0;

	for (size_t i = 0; i < p->sets && n < room; i++)
		n += (size_t)snprintf(out + n, room - n, "%s%s=%s", i ? ", " : "", p->set[i].key,
				      p->set[i].value->text);
}

/* The line of the setting that a message is about, or of the last one. */
static int line_of(const struct sweep *s, const struct sweep_point *p, const char *text)
{
	size_t i = 0;

	if (p->sets == 0)
		return s->file.root->line;
	for (const struct yaml_node *n = s->settings ? s->settings->child : NULL; n; n = n->next)
		if (strstr(text, n->key) && !sweep_value(p, n->key))
			return n->line;
	while (i + 1 < p->sets && !strstr(text, p->set[i].key))
		i++;
	return p->set[i].value->line;
}

static int resolve(struct sweep *s, const struct buf *base, const char *base_path,
		   const struct words *set, struct sweep_point *p, struct err *e)
{
	size_t n = 0, most = children(s->settings) + p->sets + (size_t)set->count;
	char **all = xcalloc(most + 1, sizeof *all), where[200] = "";
	int rc;

	for (const struct yaml_node *c = s->settings ? s->settings->child : NULL; c; c = c->next)
		all[n++] = assignment(c->key, c);
	for (size_t i = 0; i < p->sets; i++)
		all[n++] = assignment(p->set[i].key, p->set[i].value);
	for (int i = 0; i < set->count; i++)
		all[n++] = xstrdup(set->word[i]);
	rc = experiment_resolve(s->kind, base_path, base->data ? base->data : "", base->len,
				(const char *const *)all, n, &p->experiment, e);
	label(p, where, sizeof where);
	if (rc < 0)
		rc = err_prefix(e, "%s:%d: %s (%s)", s->file.file, line_of(s, p, e->text),
				p->name, where);
	for (size_t i = 0; i < n; i++)
		xfree(all[i]);
	xfree(all);
	return rc;
}

static size_t evaluations(const struct sweep *s)
{
	return s->evals && s->evals->kind == YAML_MAP ? s->evals->child != NULL
						      : children(s->evals);
}

static int expand(struct sweep *s, const struct words *set, struct err *e)
{
	const char *slash = strrchr(s->file.file, '/');
	char *path = *s->base == '/' || !slash
			     ? xstrdup(s->base)
			     : xasprintf("%.*s/%s", (int)(slash - s->file.file), s->file.file,
					 s->base);
	size_t total = s->list && s->list->child ? children(s->list) : 1;
	struct buf base = BUF_INIT;
	bool names_data;
	int rc = file_read(path, LIMIT_EXPERIMENT_BYTES, &base, e);

	for (const struct yaml_node *n = s->grid ? s->grid->child : NULL; n; n = n->next)
		total = total <= LIMIT_BATCH_JOBS ? total * children(n) : total;
	if (rc < 0)
		err_prefix(e, "%s: base", s->file.file);
	else if (total * (1 + evaluations(s)) > LIMIT_BATCH_JOBS)
		rc = err_set(e, TF_ELIMIT,
			     "%s: %zu points or more with %zu evaluations each are over "
			     "%u jobs, the most of a sweep",
			     s->file.file, total, evaluations(s), LIMIT_BATCH_JOBS);
	else
		rc = experiment_detect(path, base.data ? base.data : "", base.len, &s->kind,
				       &names_data, e);
	if (rc == 0) {
		s->point = xcalloc(total, sizeof *s->point);
		s->points = total;
	}
	for (size_t i = 0; rc == 0 && i < total; i++) {
		s->point[i].name = xasprintf("%s-%zu", s->name, i + 1);
		point_settings(s, i, &s->point[i]);
		rc = resolve(s, &base, path, set, &s->point[i], e);
	}
	buf_release(&base);
	xfree(path);
	return rc;
}

/* ---- evaluations */

static int64_t common_divisor(int64_t a, int64_t b)
{
	while (b != 0) {
		int64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

/* More than a sweep may have are not counted further. */
static void add_step(struct sweep_point *p, int64_t step)
{
	p->step = xrealloc(p->step, p->steps + 1, sizeof *p->step);
	p->step[p->steps++] = step;
}

/* The checkpoints that a training leaves: of those at every so many steps and at the last one, the
 * newest and some multiples stay. That a best one stays as well is not known before. */
static int find_steps(struct sweep_point *p, struct err *e)
{
	struct train_experiment x;
	int64_t every, last, all, older, stride = 0;

	TRY(train_experiment_read(p->name, p->experiment.data, p->experiment.len, &x, e));
	every = x.save.every;
	last = x.train.steps;
	all = (last + every - 1) / every;
	older = all > x.save.keep_last ? all - x.save.keep_last : 0;
	if (x.save.keep_every)
		stride = every / common_divisor(every, x.save.keep_every) * x.save.keep_every;
	for (int64_t step = stride; stride && step <= older * every; step += stride) {
		if (p->steps > LIMIT_BATCH_JOBS)
			break;
		add_step(p, step);
	}
	for (int64_t k = older + 1; k <= all && p->steps <= LIMIT_BATCH_JOBS; k++)
		add_step(p, k < all ? k * every : last);
	train_experiment_release(&x);
	return 0;
}

size_t sweep_eval_count(const struct sweep_point *p, const struct sweep_eval *eval)
{
	return eval->every ? p->steps : 1;
}

static json_t *json_of_scalar(const struct yaml_node *n)
{
	json_t *v = n->quoted ? NULL : json_loads(n->text, JSON_DECODE_ANY, NULL);

	if (v && (json_is_number(v) || json_is_boolean(v)))
		return v;
	json_decref(v);
	return json_string(n->text);
}

/* The fields of EvalSpec but the model, for which there are `checkpoint` and `ema`. */
static int read_eval(struct sweep *s, const struct yaml_node *map, struct err *e)
{
	struct sweep_eval *eval = &s->eval[s->evaluations];
	const struct yaml_node *checkpoint = yaml_get(map, "checkpoint");
	const struct yaml_node *ema = yaml_get(map, "ema");
	json_t *o = json_object();
	char *text;

	for (const struct yaml_node *n = map->child; n; n = n->next)
		if (n != checkpoint && n != ema)
			json_object_set_new(o, n->key, json_of_scalar(n));
	text = json_dumps(o, JSON_COMPACT);
	eval->json = xstrdup(text);
	free(text);
	json_decref(o);
	eval->checkpoint = xstrdup(checkpoint ? checkpoint->text : "");
	eval->every = strcmp(eval->checkpoint, "every") == 0;
	eval->ema = ema && strcmp(ema->text, "true") == 0;
	s->evaluations++;
	if (yaml_get(map, "model"))
		return wrong(s, yaml_get(map, "model"), "eval", "model", e,
			     "it is the point's model, expected none");
	if (ema && !eval->ema && strcmp(ema->text, "false") != 0)
		return wrong(s, ema, "eval", "ema", e, "expected true or false");
	return 0;
}

char *sweep_eval_json(const struct sweep *s, size_t point, const struct sweep_eval *eval,
		      int64_t step)
{
	const char *rest = eval->json + 1; /* behind its brace */
	char number[24];

	snprintf(number, sizeof number, "%lld", (long long)step);
	return xasprintf("{\"eval\":{\"model\":\"%s%s%s%s\"%s%s}", s->point[point].name,
			 *eval->checkpoint ? ":" : "", eval->every ? number : eval->checkpoint,
			 eval->ema ? "@ema" : "", *rest == '}' ? "" : ",", rest);
}

static int check_eval(struct sweep *s, const struct yaml_node *map, struct err *e)
{
	const struct sweep_eval *eval = &s->eval[s->evaluations - 1];
	char *text = sweep_eval_json(s, 0, eval, eval->every);
	Tf__JobSpec *spec = NULL;
	struct err why = ERR_INIT;
	int rc = spec_json_read(text, strlen(text), &spec, &why);

	xfree(text);
	if (spec)
		tf__job_spec__free_unpacked(spec, NULL);
	return rc == 0 ? 0 : wrong(s, map, "eval", NULL, e, why.text);
}

static int read_evals(struct sweep *s, struct err *e)
{
	const struct yaml_node *list = s->evals;
	bool one = list && list->kind == YAML_MAP;

	if (list && list->kind == YAML_SCALAR)
		return wrong(s, list, "eval", NULL, e,
			     "expected task and data, or a list of those");
	if (evaluations(s) == 0)
		return 0;
	if (s->kind != EXPERIMENT_TRAIN)
		return wrong(s, list, "eval", NULL, e, "an autoencoder is not measured so");
	s->eval = xcalloc(evaluations(s), sizeof *s->eval);
	for (const struct yaml_node *n = one ? list : list->child; n; n = one ? NULL : n->next) {
		TRY(check_settings(s, n, "eval", e));
		TRY(read_eval(s, n, e));
		TRY(check_eval(s, n, e));
	}
	for (size_t i = 0; i < s->points; i++)
		TRY(find_steps(&s->point[i], e));
	return 0;
}

/* ---- the whole */

/* The names below these are people's: no table knows them. */
static void take_all(struct yaml_node *n)
{
	for (struct yaml_node *c = n ? n->child : NULL; c; c = c->next) {
		c->used = true;
		take_all(c);
	}
}

int sweep_read(const char *path, const struct words *set, struct sweep *out, struct err *e)
{
	struct buf text = BUF_INIT;
	int rc = file_read(path, YAML_BYTES_MAX, &text, e);

	*out = (struct sweep){ 0 };
	if (rc == 0)
		rc = yaml_parse(path, text.data ? text.data : "", text.len, &out->file, e);
	buf_release(&text);
	TRY(rc);
	take_all(yaml_get(out->file.root, "set"));
	take_all(yaml_get(out->file.root, "grid"));
	take_all(yaml_get(out->file.root, "eval"));
	TRY(yaml_fields_read(&out->file, fields, ARRAY_LEN(fields), out, e));
	if (name_check("sweep", out->name, e) < 0)
		return err_prefix(e, "%s", path);
	TRY(check_shape(out, e));
	TRY(expand(out, set, e));
	return read_evals(out, e);
}

void sweep_release(struct sweep *s)
{
	for (size_t i = 0; i < s->points; i++) {
		xfree(s->point[i].name);
		xfree(s->point[i].set);
		xfree(s->point[i].step);
		buf_release(&s->point[i].experiment);
	}
	for (size_t i = 0; i < s->evaluations; i++) {
		xfree(s->eval[i].checkpoint);
		xfree(s->eval[i].json);
	}
	xfree(s->point);
	xfree(s->eval);
	xfree(s->key);
	yaml_fields_release(fields, ARRAY_LEN(fields), s);
	yaml_release(&s->file);
}
