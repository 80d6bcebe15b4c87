/* SPDX-License-Identifier: Apache-2.0
 * Verbs with an experiment file: check, train, vae train. The file is read here, preset and
 * overrides put in, so mistakes are told with its own line numbers and the daemon gets a text
 * that stands for itself. */
#include "config.h"
#include "client/client.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/experiment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int resolve(struct client *c, enum experiment_kind kind, const char *path, struct buf *file,
		   struct buf *out, struct err *e)
{
	const struct words *set = &c->args.given[OPTION_SET];

	return experiment_resolve(kind, path, file->data ? file->data : "", file->len,
				  (const char *const *)set->word, (size_t)set->count, out, e);
}

/* A preset names no data, but is checked as if it did. */
static int resolve_preset(struct client *c, enum experiment_kind kind, const char *path,
			  struct buf *file, struct buf *out, struct err *e)
{
	const struct words *set = &c->args.given[OPTION_SET];
	const char **all = xcalloc((size_t)set->count + 1, sizeof *all);
	int rc;

	all[0] = "data.0.name=data";
	for (int i = 0; i < set->count; i++)
		all[i + 1] = set->word[i];
	rc = experiment_resolve(kind, path, file->data ? file->data : "", file->len, all,
				(size_t)set->count + 1, out, e);
	xfree(all);
	return rc;
}

static int read_experiment(struct client *c, enum experiment_kind kind, const char *path,
			   struct buf *out, struct err *e)
{
	struct buf file = BUF_INIT;
	int rc = file_read(path, LIMIT_EXPERIMENT_BYTES, &file, e);

	if (rc == 0)
		rc = resolve(c, kind, path, &file, out, e);
	buf_release(&file);
	return rc;
}

int verb_train(struct client *c, struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__TrainSpec train = TF__TRAIN_SPEC__INIT;
	struct buf text = BUF_INIT;
	uint64_t id;
	int rc;

	TRY(read_experiment(c, EXPERIMENT_TRAIN, c->args.operand.word[1], &text, e));
	spec.kind = TF__JOB_KIND__TRAIN;
	spec.spec_case = TF__JOB_SPEC__SPEC_TRAIN;
	spec.train = &train;
	train.model = c->args.operand.word[0];
	train.experiment = text.data;
	train.has_resume = train.resume = args_has(&c->args, OPTION_RESUME);
	rc = submit(c, &spec, false, &id, e);
	buf_release(&text);
	return rc;
}

int verb_vae_train(struct client *c, struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__VaeSpec vae = TF__VAE_SPEC__INIT;
	struct buf text = BUF_INIT;
	uint64_t id;
	int rc;

	TRY(read_experiment(c, EXPERIMENT_VAE, c->args.operand.word[1], &text, e));
	spec.kind = TF__JOB_KIND__VAE;
	spec.spec_case = TF__JOB_SPEC__SPEC_VAE;
	spec.vae = &vae;
	vae.vae = c->args.operand.word[0];
	vae.experiment = text.data;
	vae.has_resume = vae.resume = args_has(&c->args, OPTION_RESUME);
	rc = submit(c, &spec, false, &id, e);
	buf_release(&text);
	return rc;
}

/* ---- check */

/* What was given of the data; the worker's program says what it assumes of the rest. */
static int given_facts(struct client *c, json_t **out, struct err *e)
{
	const char *latent = args_text(&c->args, OPTION_LATENT);
	int rows, columns, channels;
	int64_t pieces = 0;
	char rest;

	TRY(args_int(&c->args, OPTION_PIECES, 16, 1000000, &pieces, e));
	FAIL_IF(latent && sscanf(latent, "%dx%dx%d%c", &rows, &columns, &channels, &rest) != 3, e,
		TF_EUSAGE, "--latent is '%s', expected HEIGHTxWIDTHxCHANNELS such as 8x8x8",
		latent);
	*out = json_object();
	if (pieces)
		json_object_set_new(*out, "pieces", json_integer(pieces));
	if (latent) {
		json_object_set_new(*out, "latent_height", json_integer(rows));
		json_object_set_new(*out, "latent_width", json_integer(columns));
		json_object_set_new(*out, "latent_channels", json_integer(channels));
	}
	return 0;
}

/* What is said of a valid file; plan (may be NULL) stays the caller's. */
static json_t *valid_object(const char *path, const char *kind, json_t *plan, bool names_data)
{
	json_t *o = json_object();

	json_object_set_new(o, "file", json_string(path));
	json_object_set_new(o, "kind", json_string(kind));
	json_object_set_new(o, "valid", json_true());
	json_object_set_new(o, "preset", json_boolean(!names_data));
	json_object_set(o, "plan", plan ? plan : json_null());
	return o;
}

static int check_file(struct client *c, const char *path, json_t **out, struct err *e)
{
	struct buf file = BUF_INIT, text = BUF_INIT;
	json_t *facts = NULL, *plan = NULL;
	enum experiment_kind kind = EXPERIMENT_TRAIN;
	bool names_data = true;
	int rc = file_read(path, LIMIT_EXPERIMENT_BYTES, &file, e);

	if (rc == 0)
		rc = experiment_detect(path, file.data ? file.data : "", file.len, &kind,
				       &names_data, e);
	if (rc == 0)
		rc = names_data ? resolve(c, kind, path, &file, &text, e)
				: resolve_preset(c, kind, path, &file, &text, e);
	if (rc == 0 && kind == EXPERIMENT_TRAIN)
		rc = given_facts(c, &facts, e);
	if (rc == 0 && kind == EXPERIMENT_TRAIN)
		rc = plan_experiment(text.data, args_text(&c->args, OPTION_DEVICE), facts, &plan,
				     e);
	if (rc == 0)
		*out = valid_object(path, kind == EXPERIMENT_TRAIN ? "train" : "vae", plan,
				    names_data);
	json_decref(facts);
	json_decref(plan);
	buf_release(&file);
	buf_release(&text);
	return rc;
}

/* A file of several that is wrong; the others are still looked at. */
static json_t *wrong_object(const char *path, const struct err *why)
{
	json_t *o = json_object();

	json_object_set_new(o, "file", json_string(path));
	json_object_set_new(o, "valid", json_false());
	json_object_set_new(o, "reason", json_string(why->text));
	return o;
}

static void print_checked(const json_t *o)
{
	const json_t *plan = json_object_get(o, "plan");

	printf("%s: valid (%s%s)\n", json_string_value(json_object_get(o, "file")),
	       json_string_value(json_object_get(o, "kind")),
	       json_is_true(json_object_get(o, "preset")) ? "; a preset, it names no data" : "");
	if (json_is_object(plan))
		print_plan(plan);
}

static int print_settings(void)
{
	struct buf out = BUF_INIT;

	buf_text(&out, "Settings of a training run:\n");
	experiment_describe(EXPERIMENT_TRAIN, &out);
	buf_text(&out, "\nSettings of an autoencoder:\n");
	experiment_describe(EXPERIMENT_VAE, &out);
	fputs(out.data, stdout);
	buf_release(&out);
	return STATUS_DONE;
}

/* All of several files, whatever is wrong with some of them. */
static int check_all(struct client *c, const struct words *files)
{
	bool json = args_has(&c->args, OPTION_JSON);
	json_t *list = json_array(), *o;
	int status = STATUS_DONE;

	for (int i = 0; i < files->count; i++) {
		struct err why = ERR_INIT;

		if (check_file(c, files->word[i], &o, &why) < 0) {
			fprintf(stderr, "transfuse: %s\n", why.text);
			status = STATUS_USAGE;
			o = wrong_object(files->word[i], &why);
		} else if (!json) {
			print_checked(o);
		}
		json_array_append_new(list, o);
	}
	if (json)
		json_print(list);
	else
		json_decref(list);
	return status;
}

int verb_check(struct client *c, struct err *e)
{
	const struct words *files = &c->args.operand;
	json_t *o = NULL;

	if (args_has(&c->args, OPTION_SETTINGS))
		return print_settings();
	FAIL_IF(files->count == 0, e, TF_EUSAGE, "check expects FILE.yaml");
	if (files->count > 1)
		return check_all(c, files);
	TRY(check_file(c, files->word[0], &o, e));
	if (args_has(&c->args, OPTION_JSON)) {
		json_print(o);
	} else {
		print_checked(o);
		json_decref(o);
	}
	return STATUS_DONE;
}
