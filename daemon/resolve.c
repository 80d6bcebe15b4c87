/* SPDX-License-Identifier: Apache-2.0
 * From the names in a spec to inputs: NAME[:step|latest|best][@ema] becomes the artefact's id and
 * hash and a checkpoint's step. What a model was made with (tokenizer, autoencoder) comes along by
 * itself. Everything is settled at the submit, so what a name means later does not matter; only
 * what a job of --after is still making is settled at the start of the attempt. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/submit.h"
#include "lib/mem.h"
#include "proto/experiment.h"
#include "store/checkpoints.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct resolve {
	struct daemon *d;
	const Tf__JobSpec *spec;
	struct resolved *out;
};

static Tf__Input *input_new(const Tf__Artefact *a, const char *role)
{
	Tf__Input *in = xmalloc(sizeof *in);

	tf__input__init(in);
	in->kind = a->kind;
	in->name = xstrdup(a->name);
	in->id = xstrdup(a->id);
	in->hash = xstrdup(a->hash);
	in->role = xstrdup(role);
	return in;
}

/* Settles the checkpoint of an artefact that has them: `which` or the latest. */
static int settle_step(struct daemon *d, const Tf__Artefact *a, const char *which, Tf__Input *in,
		       struct err *e)
{
	char *path = artefact_path(d, a->kind, a->id, false);
	uint64_t step;
	int rc = checkpoints_find(path, which, &step, e);

	xfree(path);
	if (rc < 0)
		return err_prefix(e, "%s '%s'", artefact_kind_name(a->kind), a->name);
	xfree(in->step);
	in->step = xasprintf("%llu", (unsigned long long)step);
	return 0;
}

static bool has_one_of(const uint64_t *job, size_t jobs, uint64_t first, uint64_t count)
{
	for (size_t i = 0; i < jobs; i++)
		if (job[i] >= first && job[i] - first < count)
			return true;
	return false;
}

bool spec_waits_for(const Tf__JobSpec *spec, uint64_t first, uint64_t count)
{
	return has_one_of(spec->after, spec->n_after, first, count) ||
	       has_one_of(spec->after_any, spec->n_after_any, first, count) ||
	       has_one_of(spec->after_failed, spec->n_after_failed, first, count);
}

/* An artefact's readiness: 0, 1 when the job that makes it comes first, or an error. */
static int readiness(const struct resolve *v, const Tf__Artefact *a, struct err *e)
{
	if (strcmp(a->state, ARTEFACT_MAKING) != 0)
		return 0;
	if (a->has_job && spec_waits_for(v->spec, a->job, 1))
		return 1;
	if (artefact_in_place(a->kind)) {
		char *path = artefact_path(v->d, a->kind, a->id, false);
		uint64_t step;
		int rc = checkpoints_find(path, NULL, &step, NULL);

		xfree(path);
		if (rc == 0)
			return 0;
	}
	return err_set(e, TF_ESTATE,
		       "%s '%s' is still being made by job %llu: wait for it (--after %llu)",
		       artefact_kind_name(a->kind), a->name, (unsigned long long)a->job,
		       (unsigned long long)a->job);
}

static void add_fact(struct resolved *out, char *key, const char *value)
{
	Tf__KeyValue *kv = xmalloc(sizeof *kv);

	tf__key_value__init(kv);
	kv->key = key;
	kv->value = xstrdup(value);
	out->fact = xrealloc(out->fact, out->facts + 1, sizeof *out->fact);
	out->fact[out->facts++] = kv;
}

static void add_input(struct resolved *out, Tf__Input *in, const Tf__Artefact *a)
{
	out->input = xrealloc(out->input, out->inputs + 1, sizeof *out->input);
	out->input[out->inputs++] = in;
	for (size_t i = 0; i < a->n_fact; i++)
		add_fact(out, xasprintf("%s.%s.%s", in->role, in->name, a->fact[i]->key),
			 a->fact[i]->value ? a->fact[i]->value : "");
}

/* Adds what `a` was made with in the role; two different ones do not go together. */
static int add_inherited(const struct resolve *v, const Tf__Artefact *a, const char *role,
			 struct err *e)
{
	for (size_t i = 0; i < a->n_made_from; i++) {
		const Tf__Input *from = a->made_from[i];
		Tf__ArtefactRecord *r = NULL;
		Tf__Input *in;
		int rc;

		if (!from->role || strcmp(from->role, role) != 0)
			continue;
		for (size_t k = 0; k < v->out->inputs; k++) {
			const Tf__Input *old = v->out->input[k];

			if (strcmp(old->role, role) != 0)
				continue;
			FAIL_IF(strcmp(old->id, from->id) != 0 &&
					!(old->hash && from->hash &&
					  strcmp(old->hash, from->hash) == 0),
				e, TF_EMISMATCH,
				"%s '%s' was made with %s '%s', but '%s' is also used here",
				artefact_kind_name(a->kind), a->name, role, from->name, old->name);
			return 0;
		}
		rc = artefact_get(v->d->state, from->id, &r, e);
		FAIL_IF(rc == TF_ENOTFOUND, e, TF_ENOTFOUND,
			"%s '%s', which '%s' was made with, is gone", role, from->name, a->name);
		TRY(rc);
		in = input_new(r->artefact, role);
		xfree(in->hash);
		in->hash = xstrdup(from->hash ? from->hash : r->artefact->hash);
		in->step = xstrdup(from->step);
		in->has_ema = from->has_ema;
		in->ema = from->ema;
		add_input(v->out, in, r->artefact);
		record_free(r);
	}
	return 0;
}

/* One name in one role. */
static int add_named(const struct resolve *v, Tf__ArtefactKind kind, const char *text,
		     const char *role, double weight, struct err *e)
{
	Tf__ArtefactRecord *r = NULL;
	struct artefact_name ref;
	Tf__Input *in;
	int rc, ready;

	TRY(artefact_name_parse(artefact_kind_name(kind), text, &ref, e));
	FAIL_IF((*ref.step || ref.ema) && !artefact_in_place(kind), e, TF_EINVALID,
		"'%s': a %s has no steps", text, artefact_kind_name(kind));
	TRY(artefact_find(v->d->state, kind, ref.name, &r, e));
	ready = rc = readiness(v, r->artefact, e);
	in = input_new(r->artefact, role);
	in->has_ema = ref.ema;
	in->ema = ref.ema;
	in->has_weight = weight > 0;
	in->weight = weight;
	if (ready == 1 && *ref.step)
		in->step = xstrdup(ref.step);
	else if (ready == 0 && artefact_in_place(kind))
		rc = settle_step(v->d, r->artefact, *ref.step ? ref.step : NULL, in, e);
	if (rc < 0) {
		tf__input__free_unpacked(in, NULL);
	} else {
		add_input(v->out, in, r->artefact);
		rc = add_inherited(v, r->artefact, "tokenizer", e);
		if (rc == 0)
			rc = add_inherited(v, r->artefact, "vae", e);
	}
	record_free(r);
	return rc < 0 ? rc : 0;
}

static int resolve_ingest(const struct resolve *v, const Tf__IngestSpec *s, struct err *e)
{
	if (s->tokenizer && *s->tokenizer)
		TRY(add_named(v, TF__ARTEFACT_KIND__TOKENIZER_MODEL, s->tokenizer, "tokenizer", 0,
			      e));
	if (s->vae && *s->vae)
		TRY(add_named(v, TF__ARTEFACT_KIND__VAE_MODEL, s->vae, "vae", 0, e));
	return 0;
}

static int resolve_tokenizer(const struct resolve *v, const Tf__TokenizerSpec *s, struct err *e)
{
	for (size_t i = 0; i < s->n_dataset; i++)
		TRY(add_named(v, TF__ARTEFACT_KIND__DATASET, s->dataset[i], "data", 0, e));
	return 0;
}

static int add_sources(const struct resolve *v, const struct experiment_source *data, int count,
		       struct err *e)
{
	int rc = 0;

	for (int i = 0; rc == 0 && i < count; i++)
		rc = add_named(v, TF__ARTEFACT_KIND__DATASET, data[i].name, "data", data[i].weight,
			       e);
	return rc;
}

static int resolve_vae(const struct resolve *v, const Tf__VaeSpec *s, struct err *e)
{
	struct vae_experiment x;
	int rc;

	TRY(vae_experiment_read("the experiment", s->experiment, strlen(s->experiment), &x, e));
	rc = add_sources(v, x.data, x.data_count, e);
	vae_experiment_release(&x);
	return rc;
}

static int resolve_train(const struct resolve *v, const Tf__TrainSpec *s, struct err *e)
{
	struct train_experiment x;
	int rc;

	TRY(train_experiment_read("the experiment", s->experiment, strlen(s->experiment), &x, e));
	rc = add_sources(v, x.data, x.data_count, e);
	train_experiment_release(&x);
	return rc;
}

/* Is `word` among the words of `list`, which '|' divides? */
static bool is_one_of(const char *word, const char *list)
{
	size_t len = strlen(word);

	for (const char *at = list; *at; at += strcspn(at, "|"), at += *at == '|')
		if (strcspn(at, "|") == len && strncmp(at, word, len) == 0)
			return true;
	return false;
}

/* A dataset of a kind that the task cannot measure is refused now, not in the job. One that is
 * still being made has no kind yet: there the job tells. */
static int check_task_data(const struct resolve *v, const Tf__EvalSpec *s, struct err *e)
{
	const char *takes = eval_task_data(s->task);

	for (size_t i = 0; i < v->out->facts; i++) {
		const char *key = v->out->fact[i]->key, *kind = v->out->fact[i]->value;

		if (strncmp(key, "data.", 5) != 0 || strcmp(strrchr(key, '.'), ".kind") != 0)
			continue;
		FAIL_IF(!is_one_of(kind, takes), e, TF_EINVALID,
			"task %s: dataset '%s' holds %s, expected %s", s->task, s->data, kind,
			takes);
	}
	return 0;
}

static int resolve_eval(const struct resolve *v, const Tf__EvalSpec *s, struct err *e)
{
	TRY(add_named(v, TF__ARTEFACT_KIND__MODEL, s->model, "model", 0, e));
	TRY(add_named(v, TF__ARTEFACT_KIND__DATASET, s->data, "data", 0, e));
	return check_task_data(v, s, e);
}

int resolve_spec(struct daemon *d, const Tf__JobSpec *spec, struct resolved *out, struct err *e)
{
	struct resolve v = { d, spec, out };

	*out = (struct resolved){ 0 };
	switch (spec->spec_case) {
	case TF__JOB_SPEC__SPEC_INGEST:
		return resolve_ingest(&v, spec->ingest, e);
	case TF__JOB_SPEC__SPEC_TOKENIZER:
		return resolve_tokenizer(&v, spec->tokenizer, e);
	case TF__JOB_SPEC__SPEC_VAE:
		return resolve_vae(&v, spec->vae, e);
	case TF__JOB_SPEC__SPEC_TRAIN:
		return resolve_train(&v, spec->train, e);
	case TF__JOB_SPEC__SPEC_EVAL:
		return resolve_eval(&v, spec->eval, e);
	case TF__JOB_SPEC__SPEC_GENERATE:
		return add_named(&v, TF__ARTEFACT_KIND__MODEL, spec->generate->model, "model", 0,
				 e);
	default:
		return 0;
	}
}

void resolved_release(struct resolved *r)
{
	for (size_t i = 0; i < r->inputs; i++)
		tf__input__free_unpacked(r->input[i], NULL);
	for (size_t i = 0; i < r->facts; i++)
		tf__key_value__free_unpacked(r->fact[i], NULL);
	xfree(r->input);
	xfree(r->fact);
	*r = (struct resolved){ 0 };
}

/* True when nothing of the input is open any more. */
static bool is_settled(const Tf__Input *in)
{
	if (!artefact_in_place(in->kind))
		return in->hash != NULL;
	return in->step && strspn(in->step, "0123456789") == strlen(in->step);
}

static int settle_input(struct daemon *d, Tf__Input *in, struct err *e)
{
	Tf__ArtefactRecord *r = NULL;
	int rc = artefact_get(d->state, in->id, &r, e);

	FAIL_IF(rc == TF_ENOTFOUND, e, TF_ENOTFOUND, "%s '%s' was not made",
		artefact_kind_name(in->kind), in->name);
	TRY(rc);
	if (strcmp(r->artefact->state, ARTEFACT_MAKING) == 0)
		rc = err_set(e, TF_ESTATE, "%s '%s' is not ready", artefact_kind_name(in->kind),
			     in->name);
	xfree(in->hash);
	in->hash = xstrdup(r->artefact->hash);
	if (rc == 0 && artefact_in_place(in->kind))
		rc = settle_step(d, r->artefact, in->step, in, e);
	record_free(r);
	return rc;
}

int resolve_late(struct daemon *d, Tf__SpecRecord *record, uint64_t job, struct err *e)
{
	bool changed = false;

	for (size_t i = 0; i < record->n_input; i++) {
		if (is_settled(record->input[i]))
			continue;
		TRY(settle_input(d, record->input[i], e));
		changed = true;
	}
	return changed ? job_spec_put(d->state, job, record, e) : 0;
}
