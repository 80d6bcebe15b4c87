/* SPDX-License-Identifier: Apache-2.0
 * Artefacts: their names are reserved at the submit, their folders appear whole or not at all.
 *
 * A dataset or tokenizer is made in <id>.making and renamed to <id> when its job's outcome is good;
 * the rename comes before the commit that calls it ready. When the daemon dies between the two, the
 * outcome is applied again by the next one, which finds the folder in place. Models and
 * autoencoders are made in their own folder: a checkpoint appears in it by rename. Folders that no
 * record names are removed at the start. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "store/checkpoints.h"

#include <stdio.h>
#include <string.h>

#define STAGING ".making"

bool artefact_in_place(Tf__ArtefactKind kind)
{
	return kind == TF__ARTEFACT_KIND__VAE_MODEL || kind == TF__ARTEFACT_KIND__MODEL;
}

char *artefact_path(const struct daemon *d, Tf__ArtefactKind kind, const char *id, bool staging)
{
	return daemon_path(d, "%s/%s%s", artefact_kind_folder(kind), id, staging ? STAGING : "");
}

int artefact_find_named(struct daemon *d, const Tf__ArtefactRef *ref, Tf__ArtefactRecord **out,
			struct err *e)
{
	struct artefact_name name;

	TRY(artefact_name_parse(artefact_kind_name(ref->kind), ref->name, &name, e));
	return artefact_find(d->state, ref->kind, name.name, out, e);
}

/* What the spec makes: kind (0: nothing), name, and whether to go on with an existing one. */
static Tf__ArtefactKind made_by(const Tf__JobSpec *spec, const char **name, bool *resume)
{
	*name = NULL;
	*resume = false;
	switch (spec->spec_case) {
	case TF__JOB_SPEC__SPEC_INGEST:
		*name = spec->ingest->dataset;
		return TF__ARTEFACT_KIND__DATASET;
	case TF__JOB_SPEC__SPEC_TOKENIZER:
		*name = spec->tokenizer->tokenizer;
		return TF__ARTEFACT_KIND__TOKENIZER_MODEL;
	case TF__JOB_SPEC__SPEC_VAE:
		*name = spec->vae->vae;
		*resume = spec->vae->resume;
		return TF__ARTEFACT_KIND__VAE_MODEL;
	case TF__JOB_SPEC__SPEC_TRAIN:
		*name = spec->train->model;
		*resume = spec->train->resume;
		return TF__ARTEFACT_KIND__MODEL;
	default:
		return (Tf__ArtefactKind)0;
	}
}

int artefact_may_change(const struct request *r, const Tf__Artefact *a, struct err *e)
{
	char what[LIMIT_NAME_BYTES + 32];

	snprintf(what, sizeof what, "%s '%s'", artefact_kind_name(a->kind), a->name);
	return may_change(r, a->user, what, e);
}

/* Goes on with one that exists; TF_EBUSY while another job makes it. */
static int take_up(struct daemon *d, Tf__Artefact *a, uint64_t job, const struct request *r,
		   bool dry_run, char **id, struct err *e)
{
	TRY(artefact_may_change(r, a, e));
	FAIL_IF(strcmp(a->state, ARTEFACT_MAKING) == 0, e, TF_EBUSY,
		"%s '%s' is being made by job %llu", artefact_kind_name(a->kind), a->name,
		(unsigned long long)a->job);
	if (!dry_run) {
		xfree(a->state);
		a->state = xstrdup(ARTEFACT_MAKING);
		a->has_job = true;
		a->job = job;
		TRY(artefact_put(d->state, a, e));
	}
	*id = xstrdup(a->id);
	return 0;
}

static int reserve_new(struct daemon *d, Tf__ArtefactKind kind, const char *name, uint64_t job,
		       const char *user, char **id, struct err *e)
{
	Tf__Artefact a = TF__ARTEFACT__INIT;
	int rc;

	FAIL_IF(state_count(d->state, STATE_ARTEFACTS) >= LIMIT_ARTEFACTS, e, TF_ELIMIT,
		"there are %u artefacts, the limit: delete some", LIMIT_ARTEFACTS);
	*id = xasprintf("%s.%llu", name, (unsigned long long)job);
	a.kind = kind;
	a.name = (char *)name;
	a.id = *id;
	a.has_created = a.has_job = true;
	a.created = clock_wall_ms();
	a.job = job;
	a.state = (char *)ARTEFACT_MAKING;
	a.user = (char *)user;
	rc = artefact_put(d->state, &a, e);
	if (rc < 0)
		xfree(*id);
	return rc;
}

int artefact_reserve(struct daemon *d, const Tf__JobSpec *spec, uint64_t job,
		     const struct request *r, bool dry_run, char **id, struct err *e)
{
	Tf__ArtefactRecord *old = NULL;
	const char *name;
	bool resume;
	Tf__ArtefactKind kind = made_by(spec, &name, &resume);
	int rc;

	*id = NULL;
	if (kind == 0)
		return 0;
	rc = artefact_find(d->state, kind, name, &old, NULL);
	if (rc == TF_ENOTFOUND && resume)
		return err_set(e, TF_ENOTFOUND, "no %s called '%s' to resume",
			       artefact_kind_name(kind), name);
	if (rc == TF_ENOTFOUND)
		return dry_run ? 0 : reserve_new(d, kind, name, job, r->user, id, e);
	FAIL_IF(rc < 0, e, rc, "%s '%s' cannot be looked up", artefact_kind_name(kind), name);
	if (resume)
		rc = take_up(d, old->artefact, job, r, dry_run, id, e);
	else
		rc = err_set(e, TF_EEXISTS, "a %s called '%s' exists: choose another name%s",
			     artefact_kind_name(kind), name,
			     artefact_in_place(kind) ? ", or go on with it (--resume)"
						     : ", or delete it");
	record_free(old);
	return rc;
}

uint64_t artefact_maker(struct daemon *d, const Tf__JobSpec *spec)
{
	Tf__ArtefactRecord *r = NULL;
	const char *name;
	bool resume;
	Tf__ArtefactKind kind = made_by(spec, &name, &resume);
	uint64_t job = 0;

	if (kind != 0 && artefact_find(d->state, kind, name, &r, NULL) == 0)
		job = r->artefact->job;
	record_free(r);
	return job;
}

/* A folder that no record names is being removed, which may take long: nothing is made in it. */
static int check_gone(struct daemon *d, Tf__ArtefactKind kind, const char *name, const char *id,
		      struct err *e)
{
	char *path = artefact_path(d, kind, id, !artefact_in_place(kind));
	bool there = file_exists(path);

	xfree(path);
	FAIL_IF(there, e, TF_EBUSY, "what there was of %s '%s' is still being removed: try again",
		artefact_kind_name(kind), name);
	return 0;
}

int artefact_reserve_again(struct daemon *d, const Tf__JobSpec *spec, const Tf__JobRecord *r,
			   const struct request *by, struct err *e)
{
	Tf__ArtefactRecord *old = NULL;
	const char *name;
	bool resume;
	Tf__ArtefactKind kind = made_by(spec, &name, &resume);
	char *id = NULL;
	int rc;

	if (!r->artefact)
		return 0;
	rc = artefact_find(d->state, kind, name, &old, e);
	if (rc == TF_ENOTFOUND && !resume) {
		err_clear(e);
		rc = check_gone(d, kind, name, r->artefact, e);
		if (rc == 0)
			rc = reserve_new(d, kind, name, r->job->id, r->job->user, &id, e);
	} else if (rc == 0 && strcmp(old->artefact->id, r->artefact) == 0) {
		rc = take_up(d, old->artefact, r->job->id, by, false, &id, e);
	} else if (rc == 0) {
		rc = err_set(e, TF_EEXISTS, "another %s called '%s' exists by now",
			     artefact_kind_name(kind), name);
	}
	CHECK(rc < 0 || strcmp(id, r->artefact) == 0);
	record_free(old);
	xfree(id);
	return rc;
}

/* ---------------------------------------------------------------- publishing */

static int put_in_place(struct daemon *d, const Tf__Artefact *a, struct err *e)
{
	char *staging = artefact_path(d, a->kind, a->id, true);
	char *path = artefact_path(d, a->kind, a->id, false);
	int rc = 0;

	if (!artefact_in_place(a->kind) && file_exists(staging) && !file_exists(path))
		rc = fault_hit("publish") ? err_set(e, TF_EIO, "%s: fault", staging)
					  : file_rename(staging, path, e);
	if (rc == 0 && !file_exists(path))
		rc = err_set(e, TF_EINTERNAL,
			     "the worker said that %s '%s' is made, but %s is not there",
			     artefact_kind_name(a->kind), a->name, path);
	fault_hit("published");
	xfree(staging);
	xfree(path);
	return rc;
}

/* A shallow copy of the record with what the outcome says of it. Borrows from all three. */
static Tf__Artefact finished(struct daemon *d, const Tf__Artefact *old, const Tf__Artefact *made,
			     const Tf__SpecRecord *spec)
{
	Tf__Artefact a = *old;
	char *path = artefact_path(d, a.kind, a.id, false);

	a.state = (char *)ARTEFACT_READY;
	a.hash = made->hash;
	a.has_bytes = true;
	a.bytes = made->has_bytes ? made->bytes : (uint64_t)dir_size(path);
	a.n_fact = made->n_fact;
	a.fact = made->fact;
	if (spec->n_input) {
		a.n_made_from = spec->n_input;
		a.made_from = spec->input;
	}
	xfree(path);
	return a;
}

/* An answer has room for what is on record of one. */
static int fits_record(const Tf__Artefact *a, struct err *e)
{
	size_t bytes = tf__artefact__get_packed_size(a);

	FAIL_IF(bytes > LIMIT_ARTEFACT_BYTES, e, TF_ELIMIT,
		"what the worker says of %s '%s' takes %zu bytes: the limit is %u",
		artefact_kind_name(a->kind), a->name, bytes, LIMIT_ARTEFACT_BYTES);
	return 0;
}

/* What the record said before is in the user's sum already. */
static int fits_quota(struct daemon *d, const Tf__Artefact *old, const Tf__Artefact *new,
		      struct err *e)
{
	uint64_t before = old->has_bytes ? old->bytes : 0;

	return new->user && new->bytes > before ? quota_check(d, new->user, new->bytes - before, e)
						: 0;
}

int artefact_publish(struct daemon *d, const Tf__JobRecord *r, const Tf__Outcome *outcome,
		     struct err *e)
{
	Tf__ArtefactRecord *old = NULL;
	Tf__SpecRecord *spec = NULL;
	Tf__Artefact a;
	int rc;

	if (!r->artefact)
		return 0;
	rc = artefact_get(d->state, r->artefact, &old, e);
	FAIL_IF(rc == TF_ENOTFOUND, e, TF_EINTERNAL,
		"what the job makes ('%s') is not in the catalogue", r->artefact);
	TRY(rc);
	if (!outcome->artefact || outcome->artefact->kind != old->artefact->kind)
		rc = err_set(e, TF_EINTERNAL, "the worker did not say what it made");
	else
		rc = job_spec_get(d->state, r->job->id, &spec, e);
	if (rc == 0)
		rc = put_in_place(d, old->artefact, e);
	if (rc == 0) {
		a = finished(d, old->artefact, outcome->artefact, spec);
		rc = fits_record(&a, e);
		if (rc == 0)
			rc = fits_quota(d, old->artefact, &a, e);
		if (rc == 0)
			rc = artefact_put(d->state, &a, e);
	}
	record_free(spec);
	record_free(old);
	return rc;
}

/* ---------------------------------------------------------------- removing */

static bool has_checkpoint(const char *path)
{
	uint64_t step;

	return file_exists(path) && checkpoints_find(path, NULL, &step, NULL) == 0;
}

int artefact_unmake(struct daemon *d, const char *id, struct err *e)
{
	Tf__ArtefactRecord *r = NULL;
	char *path;
	int rc = artefact_get(d->state, id, &r, e);

	if (rc == TF_ENOTFOUND)
		return 0;
	TRY(rc);
	path = artefact_path(d, r->artefact->kind, id, !artefact_in_place(r->artefact->kind));
	if (artefact_in_place(r->artefact->kind) && has_checkpoint(path)) {
		xfree(r->artefact->state);
		r->artefact->state = xstrdup(ARTEFACT_STOPPED);
		rc = artefact_put(d->state, r->artefact, e);
		xfree(path);
	} else {
		rc = artefact_remove(d->state, r->artefact, e);
		if (file_exists(path))
			loop_doom(d, path);
		else
			xfree(path);
	}
	record_free(r);
	return rc;
}

struct collect {
	struct daemon *d;
	Tf__ArtefactKind kind;
};

/* A folder of a kind: is there a record for it? */
static int collect_folder(void *arg, const char *name)
{
	struct collect *c = arg;
	size_t n = strlen(name), tail = strlen(STAGING);
	bool staging = n > tail && strcmp(name + n - tail, STAGING) == 0;
	char *id = xstrndup(name, staging ? n - tail : n);
	Tf__ArtefactRecord *r = NULL;
	int rc = artefact_get(c->d->state, id, &r, NULL);
	bool wanted = rc == 0 ? !staging || strcmp(r->artefact->state, ARTEFACT_MAKING) == 0
			      : rc != TF_ENOTFOUND;

	if (!wanted) {
		log_info("removing %s/%s: nothing names it", artefact_kind_folder(c->kind), name);
		loop_doom(c->d, daemon_path(c->d, "%s/%s", artefact_kind_folder(c->kind), name));
	}
	record_free(r);
	xfree(id);
	return 0;
}

struct half_made {
	struct daemon *d;
	struct buf ids; /* zero-ended, one after the other */
};

static int find_half_made(void *arg, const Tf__Artefact *a)
{
	struct half_made *h = arg;

	if (strcmp(a->state, ARTEFACT_MAKING) == 0 && !live_find(&h->d->live, a->job))
		buf_append(&h->ids, a->id, strlen(a->id) + 1);
	return 0;
}

void artefact_collect(struct daemon *d)
{
	struct half_made h = { d, BUF_INIT };
	struct err e = ERR_INIT;

	artefacts_each(d->state, 0, find_half_made, &h, &e);
	for (size_t at = 0; at < h.ids.len; at += strlen(h.ids.data + at) + 1)
		artefact_unmake(d, h.ids.data + at, &e);
	for (int kind = TF__ARTEFACT_KIND__DATASET; kind <= TF__ARTEFACT_KIND__MODEL; kind++) {
		struct collect c = { d, (Tf__ArtefactKind)kind };
		char *path = daemon_path(d, "%s", artefact_kind_folder(c.kind));

		dir_each(path, collect_folder, &c, &e);
		xfree(path);
	}
	if (e.code)
		log_error("looking for left-over folders: %s", e.text);
	buf_release(&h.ids);
}
