/* SPDX-License-Identifier: Apache-2.0
 * The catalogue of artefacts, their uses, and uploads; see catalogue.h. */
#include "config.h"
#include "store/catalogue.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <stdio.h>
#include <string.h>

static const char *const folders[] = {
	[TF__ARTEFACT_KIND__DATASET] = "data",
	[TF__ARTEFACT_KIND__TOKENIZER_MODEL] = "tokenizers",
	[TF__ARTEFACT_KIND__VAE_MODEL] = "vaes",
	[TF__ARTEFACT_KIND__MODEL] = "models",
};

static bool kind_known(Tf__ArtefactKind kind)
{
	return (size_t)kind < ARRAY_LEN(folders) && folders[kind];
}

const char *artefact_kind_folder(Tf__ArtefactKind kind)
{
	CHECK(kind_known(kind));
	return folders[kind];
}

static size_t name_key(Tf__ArtefactKind kind, const char *name, char key[LIMIT_NAME_BYTES + 2])
{
	size_t n = strlen(name);

	CHECK(n > 0 && n <= LIMIT_NAME_BYTES);
	key[0] = (char)kind;
	memcpy(key + 1, name, n + 1);
	return n + 1;
}

static bool artefact_is_whole(const Tf__Artefact *a)
{
	return kind_known(a->kind) && *a->id && strlen(a->id) <= LIMIT_NAME_BYTES + 24 &&
	       *a->name && strlen(a->name) <= LIMIT_NAME_BYTES && a->state;
}

int artefact_put(struct state *s, Tf__Artefact *artefact, struct err *e)
{
	Tf__ArtefactRecord r = TF__ARTEFACT_RECORD__INIT;
	char key[LIMIT_NAME_BYTES + 2];
	size_t n = name_key(artefact->kind, artefact->name, key);

	CHECK(artefact_is_whole(artefact));
	r.artefact = artefact;
	TRY(record_put(s, STATE_ARTEFACTS, artefact->id, strlen(artefact->id), &r.base, e));
	for (size_t i = 0; i < artefact->n_made_from; i++)
		TRY(use_put(s, artefact->made_from[i]->id, 'a', artefact->id, e));
	return state_put(s, STATE_NAMES, key, n, artefact->id, strlen(artefact->id), e);
}

static int unpack_artefact(struct state_value v, Tf__ArtefactRecord **out, struct err *e)
{
	TRY(record_unpack(v, &tf__artefact_record__descriptor, out, e));
	if (artefact_is_whole((*out)->artefact))
		return 0;
	record_free(*out);
	return err_set(e, TF_ECORRUPT, "store: the record of an artefact contradicts itself");
}

int artefact_get(struct state *s, const char *id, Tf__ArtefactRecord **out, struct err *e)
{
	struct state_value v;

	if (!*id || strlen(id) > 511)
		return TF_ENOTFOUND;
	TRY(state_get(s, STATE_ARTEFACTS, id, strlen(id), &v, e));
	return unpack_artefact(v, out, e);
}

int artefact_find(struct state *s, Tf__ArtefactKind kind, const char *name,
		  Tf__ArtefactRecord **out, struct err *e)
{
	char key[LIMIT_NAME_BYTES + 2], id[512];
	struct state_value v;
	int rc = TF_ENOTFOUND;

	if (*name && strlen(name) <= LIMIT_NAME_BYTES && kind_known(kind))
		rc = state_get(s, STATE_NAMES, key, name_key(kind, name, key), &v, e);
	FAIL_IF(rc == TF_ENOTFOUND, e, TF_ENOTFOUND, "no %s called '%s'", artefact_kind_name(kind),
		name);
	TRY(rc);
	snprintf(id, sizeof id, "%.*s", (int)v.len, (const char *)v.data);
	rc = artefact_get(s, id, out, e);
	FAIL_IF(rc == TF_ENOTFOUND, e, TF_ECORRUPT, "store: %s '%s' leads to no record",
		artefact_kind_name(kind), name);
	return rc;
}

int artefact_remove(struct state *s, const Tf__Artefact *artefact, struct err *e)
{
	char key[LIMIT_NAME_BYTES + 2];
	size_t n = name_key(artefact->kind, artefact->name, key);

	for (size_t i = 0; i < artefact->n_made_from; i++)
		TRY(use_delete(s, artefact->made_from[i]->id, 'a', artefact->id, e));
	TRY(state_delete(s, STATE_NAMES, key, n, e));
	return state_delete(s, STATE_ARTEFACTS, artefact->id, strlen(artefact->id), e);
}

struct walk {
	artefact_fn artefact;
	upload_fn upload;
	void *arg;
	int kind;
	struct err *e;
};

static int walk_artefact(void *arg, struct state_value key, struct state_value value)
{
	struct walk *w = arg;
	Tf__ArtefactRecord *r = NULL;
	int rc = 0;

	(void)key;
	TRY(unpack_artefact(value, &r, w->e));
	if (w->kind == 0 || (int)r->artefact->kind == w->kind)
		rc = w->artefact(w->arg, r->artefact);
	record_free(r);
	return rc;
}

int artefacts_each(struct state *s, int kind, artefact_fn fn, void *arg, struct err *e)
{
	struct walk w = { .artefact = fn, .arg = arg, .kind = kind, .e = e };

	return state_each(s, STATE_ARTEFACTS, NULL, 0, false, walk_artefact, &w, e);
}

int artefacts_each_from(struct state *s, const char *id, artefact_fn fn, void *arg, struct err *e)
{
	struct walk w = { .artefact = fn, .arg = arg, .e = e };

	return state_each(s, STATE_ARTEFACTS, id, strlen(id), false, walk_artefact, &w, e);
}

static size_t use_key(const char *id, char who, const char *name, char key[512])
{
	int n = snprintf(key, 512, "%s%c%c%s", id, 1, who, name);

	CHECK(n > 0 && n < 512);
	key[strlen(id)] = 0;
	return (size_t)n;
}

int use_put(struct state *s, const char *id, char who, const char *name, struct err *e)
{
	char key[512];
	size_t n = use_key(id, who, name, key);

	return state_put(s, STATE_USES, key, n, "", 0, e);
}

int use_delete(struct state *s, const char *id, char who, const char *name, struct err *e)
{
	char key[512];
	size_t n = use_key(id, who, name, key);

	return state_delete(s, STATE_USES, key, n, e);
}

struct found_use {
	const char *id;
	char who;
	char *name;
};

static int first_use(void *arg, struct state_value key, struct state_value value)
{
	struct found_use *f = arg;
	size_t n = strlen(f->id) + 2;

	(void)value;
	if (key.len > n && memcmp(key.data, f->id, n - 1) == 0) {
		f->who = ((const char *)key.data)[n - 1];
		f->name = xstrndup((const char *)key.data + n, key.len - n);
	}
	return 1;
}

int use_find(struct state *s, const char *id, char *who, char **name, struct err *e)
{
	struct found_use f = { id, 0, NULL };

	TRY(state_each(s, STATE_USES, id, strlen(id) + 1, false, first_use, &f, e));
	if (!f.name)
		return TF_ENOTFOUND;
	*who = f.who;
	*name = f.name;
	return 0;
}

int upload_put(struct state *s, const uint8_t token[16], Tf__UploadRecord *record, struct err *e)
{
	return record_put(s, STATE_UPLOADS, token, 16, &record->base, e);
}

int upload_get(struct state *s, const uint8_t token[16], Tf__UploadRecord **out, struct err *e)
{
	return record_get(s, STATE_UPLOADS, token, 16, &tf__upload_record__descriptor, out, e);
}

int upload_delete(struct state *s, const uint8_t token[16], struct err *e)
{
	return state_delete(s, STATE_UPLOADS, token, 16, e);
}

static int walk_upload(void *arg, struct state_value key, struct state_value value)
{
	struct walk *w = arg;
	Tf__UploadRecord *r = NULL;
	int rc;

	if (key.len != 16)
		return err_set(w->e, TF_ECORRUPT, "store: an upload's key has %zu bytes", key.len);
	TRY(record_unpack(value, &tf__upload_record__descriptor, &r, w->e));
	rc = w->upload(w->arg, key.data, r);
	record_free(r);
	return rc;
}

int uploads_each(struct state *s, upload_fn fn, void *arg, struct err *e)
{
	struct walk w = { .upload = fn, .arg = arg, .e = e };

	return state_each(s, STATE_UPLOADS, NULL, 0, false, walk_upload, &w, e);
}

void upload_id(const uint8_t token[16], char out[33])
{
	for (int i = 0; i < 16; i++)
		snprintf(out + 2 * i, 3, "%02x", token[i]);
}

bool upload_token(const char *id, uint8_t token[16])
{
	if (strlen(id) != 32 || strspn(id, "0123456789abcdef") != 32)
		return false;
	for (int i = 0; i < 16; i++) {
		unsigned byte;

		sscanf(id + 2 * i, "%2x", &byte);
		token[i] = (uint8_t)byte;
	}
	return true;
}
