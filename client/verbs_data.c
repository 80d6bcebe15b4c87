/* SPDX-License-Identifier: Apache-2.0
 * Verbs that bring files in and look at datasets: data import, sample, verify; tokenizer train,
 * import. */
#include "config.h"
#include "client/client.h"
#include "client/submit.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PERCENT_MOST 90
#define UNSENT "not-sent-yet" /* stands for uploads while the rest of a spec is checked */

/* Paths of the command line, and the uploads they become. */
struct sources {
	char **path;
	size_t count;
	char **upload;
};

static void sources_release(struct sources *s, bool ours)
{
	for (size_t i = 0; s->upload && ours && i < s->count; i++)
		xfree(s->upload[i]);
	xfree(s->upload);
	xfree(s->path);
}

static void sources_add(struct sources *s, char *path)
{
	s->path = xrealloc(s->path, s->count + 1, sizeof *s->path);
	s->path[s->count++] = path;
}

/* As many uploads as paths, each a placeholder that passes the checks. */
static void sources_pretend(struct sources *s)
{
	s->upload = xcalloc(s->count ? s->count : 1, sizeof *s->upload);
	for (size_t i = 0; i < s->count; i++)
		s->upload[i] = xstrdup(UNSENT);
}

static int sources_send(struct client *c, struct sources *s, struct err *e)
{
	for (size_t i = 0; i < s->count; i++) {
		char *id = NULL;
		const char *kind;

		TRY(send_source(c, s->path[i], &id, &kind, e));
		xfree(s->upload[i]);
		s->upload[i] = id;
		if (!args_has(&c->args, OPTION_JSON))
			fprintf(stderr, "%s: %s, sent\n", s->path[i], kind);
	}
	return 0;
}

static int sources_look(struct client *c, const struct sources *s, struct err *e)
{
	json_t *list = json_array();
	int rc = 0;

	for (size_t i = 0; rc == 0 && i < s->count; i++) {
		char size[FORMAT_MAX];
		const char *kind;
		uint64_t bytes;
		json_t *o;

		rc = look_at_source(s->path[i], &bytes, &kind, e);
		if (rc < 0)
			break;
		o = json_object();
		json_object_set_new(o, "path", json_string(s->path[i]));
		json_object_set_new(o, "kind", json_string(kind));
		json_object_set_new(o, "bytes", json_integer((json_int_t)bytes));
		json_array_append_new(list, o);
		format_bytes(bytes, size);
		if (!args_has(&c->args, OPTION_JSON))
			printf("%s: %s, %s would be sent\n", s->path[i], kind, size);
	}
	if (rc == 0 && args_has(&c->args, OPTION_JSON))
		json_print(json_incref(list));
	json_decref(list);
	return rc;
}

/* Told before gigabytes are on their way; the daemon looks again when it takes the job. */
static int refuse_taken_name(struct client *c, Tf__ArtefactKind kind, char *name, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactRef ref = TF__ARTEFACT_REF__INIT;
	Tf__Reply *reply;
	int rc;

	ref.kind = kind;
	ref.name = name;
	r.body_case = TF__REQUEST__BODY_ARTEFACT_SHOW;
	r.artefact_show = &ref;
	rc = client_ask(c, &r, TF__REPLY__BODY_ARTEFACTS, &reply, e);
	if (rc == TF_ENOTFOUND) {
		err_clear(e);
		c->refused = false;
		return 0;
	}
	TRY(rc);
	tf__reply__free_unpacked(reply, NULL);
	c->refused = true; /* by what the daemon has */
	return err_set(e, TF_EEXISTS, "a %s called '%s' exists: choose another name, or delete it",
		       artefact_kind_name(kind), name);
}

/* Sends the files unless they are the server's or nothing is to be done, then submits. */
static int send_and_submit(struct client *c, Tf__JobSpec *spec, struct sources *s, struct err *e)
{
	bool on_server = args_has(&c->args, OPTION_ON_SERVER);
	Tf__ArtefactKind kind = spec->kind == TF__JOB_KIND__INGEST ?
					TF__ARTEFACT_KIND__DATASET :
					TF__ARTEFACT_KIND__TOKENIZER_MODEL;
	uint64_t id;

	TRY(submit_check(c, spec, e));
	if (args_has(&c->args, OPTION_DRY_RUN) && !on_server && s->count)
		return sources_look(c, s, e);
	if (!on_server && s->count) {
		TRY(refuse_taken_name(c, kind, c->args.operand.word[0], e));
		TRY(sources_send(c, s, e));
	}
	return submit(c, spec, false, &id, e);
}

/* ---- data import */

static int percent(const char *text, double *out, struct err *e)
{
	char *end;

	*out = strtod(text, &end);
	if (end > text && strcmp(end, "%") == 0)
		end++;
	FAIL_IF(end == text || *end || !(*out >= 0 && *out <= PERCENT_MOST), e, TF_EUSAGE,
		"--holdout is '%s', expected a percentage from 0%% to %d%%", text, PERCENT_MOST);
	return 0;
}

/* The lines of a file, without empty ones. */
static int read_lines(const char *path, size_t most, struct words *out, struct buf *text,
		      struct err *e)
{
	char *line, *next;

	TRY(file_read(path, LIMIT_MESSAGE_BYTES, text, e));
	for (line = text->data; line && *line; line = next) {
		size_t len = strcspn(line, "\n");

		next = line[len] ? line + len + 1 : NULL;
		if (len && line[len - 1] == '\r')
			line[len - 1] = 0;
		line[len] = 0;
		if (!*line)
			continue;
		FAIL_IF((size_t)out->count >= most, e, TF_ELIMIT,
			"%s: more than %zu lines, the most that are allowed", path, most);
		out->word = xrealloc(out->word, out->count + 1, sizeof *out->word);
		out->word[out->count++] = line;
	}
	FAIL_IF(out->count == 0, e, TF_EINVALID, "%s: no line with text", path);
	return 0;
}

static int import_options(struct client *c, Tf__IngestSpec *s, struct words *heldout,
			  struct buf *text, struct err *e)
{
	const struct args *a = &c->args;
	int64_t size = 64;

	TRY(args_int(a, OPTION_SIZE, 8, 4096, &size, e));
	s->has_size = 1;
	s->size = (uint32_t)size;
	s->tokenizer = (char *)args_text(a, OPTION_TOKENIZER);
	s->vae = (char *)args_text(a, OPTION_VAE);
	s->format = (char *)args_text(a, OPTION_FORMAT);
	s->has_holdout_percent = args_has(a, OPTION_HOLDOUT);
	if (s->has_holdout_percent)
		TRY(percent(args_text(a, OPTION_HOLDOUT), &s->holdout_percent, e));
	if (args_has(a, OPTION_HELDOUT))
		TRY(read_lines(args_text(a, OPTION_HELDOUT), LIMIT_HELDOUT_NAMES, heldout, text,
			       e));
	s->heldout = heldout->word;
	s->n_heldout = (size_t)heldout->count;
	return 0;
}

int verb_data_import(struct client *c, struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__IngestSpec ingest = TF__INGEST_SPEC__INIT;
	struct sources s = { 0 };
	struct words heldout = { 0 };
	struct buf text = BUF_INIT;
	int rc;

	spec.kind = TF__JOB_KIND__INGEST;
	spec.spec_case = TF__JOB_SPEC__SPEC_INGEST;
	spec.ingest = &ingest;
	ingest.dataset = c->args.operand.word[0];
	for (int i = 1; i < c->args.operand.count; i++)
		sources_add(&s, c->args.operand.word[i]);
	sources_pretend(&s);
	if (args_has(&c->args, OPTION_ON_SERVER)) {
		ingest.path = s.path;
		ingest.n_path = s.count;
	} else {
		ingest.upload = s.upload;
		ingest.n_upload = s.count;
	}
	rc = import_options(c, &ingest, &heldout, &text, e);
	if (rc == 0)
		rc = send_and_submit(c, &spec, &s, e);
	sources_release(&s, true);
	xfree(heldout.word);
	buf_release(&text);
	return rc;
}

/* ---- tokenizers */

static void tokenizer_sources(Tf__TokenizerSpec *t, const struct client *c, struct sources *s)
{
	sources_pretend(s);
	if (args_has(&c->args, OPTION_ON_SERVER)) {
		t->path = s->path;
		t->n_path = s->count;
	} else {
		t->upload = s->upload;
		t->n_upload = s->count;
	}
}

int verb_tokenizer_train(struct client *c, struct err *e)
{
	const struct words *from = &c->args.given[OPTION_FROM];
	const struct words *datasets = &c->args.given[OPTION_FROM_DATA];
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__TokenizerSpec t = TF__TOKENIZER_SPEC__INIT;
	struct sources s = { 0 };
	int64_t pieces = 2000;
	int rc;

	spec.kind = TF__JOB_KIND__TOKENIZER;
	spec.spec_case = TF__JOB_SPEC__SPEC_TOKENIZER;
	spec.tokenizer = &t;
	t.tokenizer = c->args.operand.word[0];
	TRY(args_int(&c->args, OPTION_PIECES, 16, 1000000, &pieces, e));
	t.has_pieces = 1;
	t.pieces = (uint32_t)pieces;
	t.dataset = datasets->word;
	t.n_dataset = (size_t)datasets->count;
	for (int i = 0; i < from->count; i++)
		sources_add(&s, from->word[i]);
	for (int i = 1; i < c->args.operand.count; i++)
		sources_add(&s, c->args.operand.word[i]);
	tokenizer_sources(&t, c, &s);
	rc = send_and_submit(c, &spec, &s, e);
	sources_release(&s, true);
	return rc;
}

int verb_tokenizer_import(struct client *c, struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__TokenizerSpec t = TF__TOKENIZER_SPEC__INIT;
	struct sources s = { 0 };
	int rc;

	spec.kind = TF__JOB_KIND__TOKENIZER;
	spec.spec_case = TF__JOB_SPEC__SPEC_TOKENIZER;
	spec.tokenizer = &t;
	t.tokenizer = c->args.operand.word[0];
	t.has_import = t.import = 1;
	sources_add(&s, c->args.operand.word[1]);
	tokenizer_sources(&t, c, &s);
	rc = send_and_submit(c, &spec, &s, e);
	sources_release(&s, true);
	return rc;
}

/* ---- looking at datasets */

#define READ_MS 3600000 /* a verification reads everything */

/* Prints the daemon's report. */
static int print_report(struct client *c, const Tf__TextResult *result, struct err *e)
{
	json_error_t why;
	json_t *o = json_loads(result->json, JSON_DECODE_ANY, &why);

	FAIL_IF(!o, e, TF_EINTERNAL, "the daemon's report is no JSON: %s", why.text);
	if (args_has(&c->args, OPTION_JSON)) {
		json_print(o);
	} else {
		print_json_for_people(o, 0);
		json_decref(o);
	}
	return result->failed ? STATUS_FAILED : STATUS_DONE;
}

static int ask_report(struct client *c, Tf__Request *r, struct err *e)
{
	Tf__Reply *reply;
	int rc;

	TRY(client_ask_for(c, r, TF__REPLY__BODY_TEXT_RESULT, READ_MS, &reply, e));
	rc = print_report(c, reply->text_result, e);
	tf__reply__free_unpacked(reply, NULL);
	return rc;
}

int verb_data_sample(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__DataSample m = TF__DATA_SAMPLE__INIT;
	int64_t count = 3, seed = 0;

	TRY(args_int(&c->args, OPTION_COUNT, 1, 1000, &count, e));
	TRY(args_int(&c->args, OPTION_SEED, 0, INT64_MAX, &seed, e));
	TRY(name_check("dataset", c->args.operand.word[0], e));
	m.name = c->args.operand.word[0];
	m.has_count = m.has_seed = 1;
	m.count = (uint32_t)count;
	m.seed = (uint64_t)seed;
	r.body_case = TF__REQUEST__BODY_DATA_SAMPLE;
	r.data_sample = &m;
	return ask_report(c, &r, e);
}

int verb_data_verify(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__DataVerify m = TF__DATA_VERIFY__INIT;

	TRY(name_check("dataset", c->args.operand.word[0], e));
	m.name = c->args.operand.word[0];
	r.body_case = TF__REQUEST__BODY_DATA_VERIFY;
	r.data_verify = &m;
	return ask_report(c, &r, e);
}
