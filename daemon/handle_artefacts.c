/* SPDX-License-Identifier: Apache-2.0
 * Requests about artefacts: list, show, delete, and looking into datasets. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/reply.h"
#include "lib/mem.h"
#include "store/checkpoints.h"

#include <stdio.h>
#include <string.h>

#define SAMPLES_MAX 1000

/* A list goes to the client in pages, each of which looks at so many artefacts of whatever kind. */
struct list {
	struct buf packed; /* fields of a message Artefacts */
	int kind;          /* 0: all */
	size_t looked;
	char *next; /* where another page begins; NULL: there is none */
};

static int list_artefact(void *arg, const Tf__Artefact *a)
{
	struct list *l = arg;

	if (l->looked == LIMIT_ARTEFACTS_LOOKED ||
	    l->packed.len + tf__artefact__get_packed_size(a) > REPLY_LIST_BYTES) {
		l->next = xstrdup(a->id);
		return 1;
	}
	l->looked++;
	if (l->kind == 0 || (int)a->kind == l->kind)
		reply_pack_item(&l->packed, NULL, 0, &a->base);
	return 0;
}

int handle_artefact_list(struct daemon *d, struct request *r)
{
	const Tf__ArtefactList *m = r->message->artefact_list;
	struct list l = { .packed = BUF_INIT, .kind = (int)m->kind };
	Tf__Artefacts rest = TF__ARTEFACTS__INIT;
	const char *from = m->from ? m->from : "";
	int rc;

	FAIL_IF(strlen(from) > LIMIT_PATH_BYTES / 2, &r->err, TF_EINVALID,
		"from is %zu bytes long, expected the id of an artefact", strlen(from));
	rc = artefacts_each_from(d->state, from, list_artefact, &l, &r->err);
	rest.next = l.next;
	reply_pack_rest(&l.packed, &rest.base);
	if (rc == 0)
		reply_put_packed(d, r, TF__REPLY__BODY_ARTEFACTS, &l.packed);
	buf_release(&l.packed);
	xfree(l.next);
	return rc;
}

/* The checkpoints there are now, as one more fact. The caller frees *text. */
static bool checkpoints_fact(struct daemon *d, const Tf__Artefact *a, Tf__KeyValue *fact,
			     struct buf *text)
{
	struct checkpoint_entry *entry = NULL;
	char *path = artefact_path(d, a->kind, a->id, false);
	size_t n = 0;

	if (artefact_in_place(a->kind) && checkpoints_list(path, &entry, &n, NULL) == 0)
		for (size_t i = 0; i < n; i++)
			buf_printf(text, "%s%llu", i ? " " : "", (unsigned long long)entry[i].step);
	xfree(entry);
	xfree(path);
	fact->key = (char *)"checkpoints";
	fact->value = text->data;
	return text->len > 0;
}

int handle_artefact_show(struct daemon *d, struct request *r)
{
	Tf__ArtefactRecord *record = NULL;
	Tf__KeyValue steps = TF__KEY_VALUE__INIT;
	struct buf text = BUF_INIT, packed = BUF_INIT;
	Tf__KeyValue **fact;
	Tf__Artefact a;

	TRY(artefact_find_named(d, r->message->artefact_show, &record, &r->err));
	a = *record->artefact;
	fact = xcalloc(a.n_fact + 1, sizeof *fact);
	for (size_t i = 0; i < a.n_fact; i++)
		fact[i] = a.fact[i];
	a.fact = fact;
	if (checkpoints_fact(d, &a, &steps, &text))
		fact[a.n_fact++] = &steps;
	reply_pack_item(&packed, NULL, 0, &a.base);
	reply_put_packed(d, r, TF__REPLY__BODY_ARTEFACTS, &packed);
	buf_release(&packed);
	buf_release(&text);
	xfree(fact);
	record_free(record);
	return 0;
}

/* ---------------------------------------------------------------- delete */

static int check_unused(struct daemon *d, const Tf__Artefact *a, struct err *e)
{
	char who, *name = NULL;
	int rc = use_find(d->state, a->id, &who, &name, e);

	if (rc == TF_ENOTFOUND)
		return 0;
	TRY(rc);
	if (who == 'j')
		err_set(e, TF_EBUSY, "%s '%s' is used by job %s", artefact_kind_name(a->kind),
			a->name, name);
	else
		err_set(e, TF_EBUSY, "%s '%s' is needed by %s, which was made from it",
			artefact_kind_name(a->kind), a->name, name);
	xfree(name);
	return TF_EBUSY;
}

static int delete (struct daemon *d, const struct request *r, const Tf__Artefact *a, struct err *e)
{
	TRY(artefact_may_change(r, a, e));
	FAIL_IF(strcmp(a->state, ARTEFACT_MAKING) == 0, e, TF_EBUSY,
		"%s '%s' is being made by job %llu", artefact_kind_name(a->kind), a->name,
		(unsigned long long)a->job);
	TRY(check_unused(d, a, e));
	TRY(artefact_remove(d->state, a, e));
	loop_doom(d, artefact_path(d, a->kind, a->id, false));
	return 0;
}

int handle_artefact_delete(struct daemon *d, struct request *r)
{
	Tf__ArtefactRecord *record = NULL;
	int rc;

	FAIL_IF(strpbrk(r->message->artefact_delete->name, ":@") != NULL, &r->err, TF_EINVALID,
		"'%s': a whole artefact is deleted, give its name alone",
		r->message->artefact_delete->name);
	TRY(artefact_find_named(d, r->message->artefact_delete, &record, &r->err));
	rc = delete (d, r, record->artefact, &r->err);
	if (rc == 0)
		reply_ok(d, r);
	record_free(record);
	return rc;
}

/* ---------------------------------------------------------------- datasets */

static int read_dataset(struct daemon *d, struct request *r, const char *name, const char *count,
			const char *seed)
{
	Tf__ArtefactRecord *record = NULL;
	char *path;
	int rc;

	TRY(artefact_find(d->state, TF__ARTEFACT_KIND__DATASET, name, &record, &r->err));
	path = artefact_path(d, TF__ARTEFACT_KIND__DATASET, record->artefact->id, false);
	if (strcmp(record->artefact->state, ARTEFACT_READY) != 0) {
		rc = err_set(&r->err, TF_ESTATE, "dataset '%s' is still being made", name);
	} else {
		char *argv[] = { (char *)"/proc/self/exe",
				 (char *)"--read-dataset",
				 (char *)(count ? "sample" : "verify"),
				 path,
				 (char *)count,
				 (char *)seed,
				 NULL };

		rc = reader_start(d, r, argv, &r->err);
	}
	record_free(record);
	xfree(path);
	return rc;
}

int handle_data_sample(struct daemon *d, struct request *r)
{
	const Tf__DataSample *m = r->message->data_sample;
	char count[16], seed[24];

	FAIL_IF(m->count > SAMPLES_MAX, &r->err, TF_ELIMIT, "%u samples: the limit is %d", m->count,
		SAMPLES_MAX);
	snprintf(count, sizeof count, "%u", m->has_count ? m->count : 3);
	snprintf(seed, sizeof seed, "%llu", (unsigned long long)m->seed);
	return read_dataset(d, r, m->name, count, seed);
}

int handle_data_verify(struct daemon *d, struct request *r)
{
	return read_dataset(d, r, r->message->data_verify->name, NULL, NULL);
}
