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

static void print_valid(struct client *c, const char *path, const char *kind, json_t *plan)
{
	json_t *o;

	if (!args_has(&c->args, OPTION_JSON)) {
		printf("%s: valid (%s)\n", path, kind);
		if (plan)
			print_plan(plan);
		return;
	}
	o = json_object();
	json_object_set_new(o, "file", json_string(path));
	json_object_set_new(o, "kind", json_string(kind));
	json_object_set_new(o, "valid", json_true());
	json_object_set(o, "plan", plan ? plan : json_null());
	json_print(o);
}

static int check_train(struct client *c, const char *path, const struct buf *text, struct err *e)
{
	json_t *facts = NULL, *plan = NULL;
	int rc;

	TRY(given_facts(c, &facts, e));
	rc = plan_experiment(text->data, args_text(&c->args, OPTION_DEVICE), facts, &plan, e);
	if (rc == 0)
		print_valid(c, path, "train", plan);
	json_decref(facts);
	json_decref(plan);
	return rc;
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

int verb_check(struct client *c, struct err *e)
{
	struct buf file = BUF_INIT, text = BUF_INIT;
	enum experiment_kind kind;
	const char *path;
	int rc;

	if (args_has(&c->args, OPTION_SETTINGS))
		return print_settings();
	FAIL_IF(c->args.operand.count == 0, e, TF_EUSAGE, "check expects FILE.yaml");
	path = c->args.operand.word[0];
	rc = file_read(path, LIMIT_EXPERIMENT_BYTES, &file, e);
	if (rc == 0)
		rc = experiment_detect(path, file.data ? file.data : "", file.len, &kind, e);
	if (rc == 0)
		rc = resolve(c, kind, path, &file, &text, e);
	if (rc == 0 && kind == EXPERIMENT_TRAIN)
		rc = check_train(c, path, &text, e);
	else if (rc == 0)
		print_valid(c, path, "vae", NULL);
	buf_release(&file);
	buf_release(&text);
	return rc;
}
