/* SPDX-License-Identifier: Apache-2.0
 * list, show, delete and export: the same for datasets, tokenizers, autoencoders and models. */
#include "config.h"
#include "client/client.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

/* ---- list */

/* The facts worth a column, as "samples 200, psnr 29.3". */
static char *summary_of(const Tf__Artefact *a)
{
	struct buf out = BUF_INIT;

	for (size_t i = 0; i < a->n_fact && out.len < 120; i++)
		buf_printf(&out, "%s%s %s", i ? ", " : "", a->fact[i]->key,
			   a->fact[i]->value ? a->fact[i]->value : "");
	return buf_detach(&out);
}

static void add_artefact(struct table *t, const Tf__Artefact *a)
{
	char size[FORMAT_MAX], age[FORMAT_MAX], *facts = summary_of(a);

	format_bytes(a->bytes, size);
	format_age(a->has_created ? a->created : 0, age);
	table_add(t, (const char *[]){ a->name, a->state, a->has_bytes ? size : NULL, age, a->user,
				       *facts ? facts : " " });
	xfree(facts);
}

/* All of a kind, in pages: rows for people in t, or JSON in o. */
static int take_artefacts(struct client *c, Tf__ArtefactKind kind, struct table *t, json_t *o,
			  struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactList m = TF__ARTEFACT_LIST__INIT;
	int rc;

	m.kind = kind;
	r.body_case = TF__REQUEST__BODY_ARTEFACT_LIST;
	r.artefact_list = &m;
	do {
		Tf__Reply *reply;

		rc = client_ask(c, &r, TF__REPLY__BODY_ARTEFACTS, &reply, e);
		xfree(m.from);
		if (rc < 0)
			return rc;
		for (size_t i = 0; i < reply->artefacts->n_artefact; i++)
			if (t)
				add_artefact(t, reply->artefacts->artefact[i]);
			else
				json_array_append_new(
					o, json_of_artefact(reply->artefacts->artefact[i]));
		m.from = xstrdup(reply->artefacts->next);
		tf__reply__free_unpacked(reply, NULL);
	} while (m.from);
	return 0;
}

static int list(struct client *c, Tf__ArtefactKind kind, struct err *e)
{
	static const char *const head[] = { "name", "state", "size", "age", "user", "facts" };
	json_t *o = args_has(&c->args, OPTION_JSON) ? json_array() : NULL;
	struct table t;
	int rc;

	table_init(&t, "llrrll", head);
	rc = take_artefacts(c, kind, o ? NULL : &t, o, e);
	if (rc == 0 && o)
		json_print(json_incref(o));
	else if (rc == 0 && t.rows == 1)
		printf("no %ss yet\n", artefact_kind_name(kind));
	else if (rc == 0)
		table_print(&t);
	table_release(&t);
	json_decref(o);
	return rc;
}

/* ---- the one of the first operand */

static int reference(struct client *c, Tf__ArtefactKind kind, Tf__ArtefactRef *out, struct err *e)
{
	struct artefact_name name;

	tf__artefact_ref__init(out);
	out->kind = kind;
	out->name = c->args.operand.word[0];
	return artefact_name_parse(artefact_kind_name(kind), out->name, &name, e);
}

static int show(struct client *c, Tf__ArtefactKind kind, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactRef ref;
	Tf__Reply *reply;
	json_t *o;

	TRY(reference(c, kind, &ref, e));
	r.body_case = TF__REQUEST__BODY_ARTEFACT_SHOW;
	r.artefact_show = &ref;
	TRY(client_ask(c, &r, TF__REPLY__BODY_ARTEFACTS, &reply, e));
	if (reply->artefacts->n_artefact != 1) {
		tf__reply__free_unpacked(reply, NULL);
		return err_set(e, TF_EINTERNAL, "the daemon answered with no %s",
			       artefact_kind_name(kind));
	}
	o = json_of_artefact(reply->artefacts->artefact[0]);
	tf__reply__free_unpacked(reply, NULL);
	if (args_has(&c->args, OPTION_JSON)) {
		json_print(o);
		return STATUS_DONE;
	}
	print_json_for_people(o, 0);
	json_decref(o);
	return STATUS_DONE;
}

static int delete(struct client *c, Tf__ArtefactKind kind, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactRef ref;
	Tf__Reply *reply;
	json_t *o;

	TRY(reference(c, kind, &ref, e));
	r.body_case = TF__REQUEST__BODY_ARTEFACT_DELETE;
	r.artefact_delete = &ref;
	TRY(client_ask(c, &r, TF__REPLY__BODY_OK, &reply, e));
	tf__reply__free_unpacked(reply, NULL);
	if (!args_has(&c->args, OPTION_JSON)) {
		printf("%s '%s' is deleted\n", artefact_kind_name(kind), ref.name);
		return STATUS_DONE;
	}
	o = json_object();
	json_object_set_new(o, "kind", json_string(artefact_kind_name(kind)));
	json_object_set_new(o, "name", json_string(ref.name));
	json_object_set_new(o, "deleted", json_true());
	json_print(o);
	return STATUS_DONE;
}

static int export(struct client *c, Tf__ArtefactKind kind, struct err *e)
{
	const char *folder = args_text(&c->args, OPTION_OUTPUT);
	Tf__FileOf of = TF__FILE_OF__INIT;
	struct buf names = BUF_INIT;
	Tf__ArtefactRef ref;
	int rc;

	FAIL_IF(!folder, e, TF_EUSAGE, "export expects -o DIR, the folder for the files");
	TRY(reference(c, kind, &ref, e));
	of.of_case = TF__FILE_OF__OF_ARTEFACT;
	of.artefact = &ref;
	rc = fetch_files(c, &of, "", folder, &names, e);
	if (names.len)
		fputs(names.data, stdout);
	buf_release(&names);
	return rc;
}

/* ---- the verbs */

#define VERBS(word, kind)                                                                         \
	int verb_##word##_list(struct client *c, struct err *e)                                   \
	{                                                                                         \
		return list(c, kind, e);                                                          \
	}                                                                                         \
	int verb_##word##_show(struct client *c, struct err *e)                                   \
	{                                                                                         \
		return show(c, kind, e);                                                          \
	}                                                                                         \
	int verb_##word##_delete(struct client *c, struct err *e)                                 \
	{                                                                                         \
		return delete(c, kind, e);                                                        \
	}                                                                                         \
	int verb_##word##_export(struct client *c, struct err *e)                                 \
	{                                                                                         \
		return export(c, kind, e);                                                        \
	}

VERBS(data, TF__ARTEFACT_KIND__DATASET)
VERBS(tokenizer, TF__ARTEFACT_KIND__TOKENIZER_MODEL)
VERBS(vae, TF__ARTEFACT_KIND__VAE_MODEL)
VERBS(model, TF__ARTEFACT_KIND__MODEL)
