/* SPDX-License-Identifier: Apache-2.0
 * Verbs with an experiment file: check, train, vae train. The file is read here, preset and overrides
 * put in, so mistakes are told with its own line numbers and the daemon gets a text that stands for
 * itself. */
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

/* "32x32x8", or "0" for text alone. */
static int latent_size(const char *text, struct experiment_facts *f, struct err *e)
{
	int64_t *const part[] = { &f->latent_height, &f->latent_width, &f->latent_channels };
	const char *at = text;

	f->latent_height = f->latent_width = f->latent_channels = 0;
	if (strcmp(text, "0") == 0)
		return 0;
	for (size_t i = 0; i < ARRAY_LEN(part); i++) {
		char *end;

		*part[i] = *at >= '0' && *at <= '9' ? strtol(at, &end, 10) : 0;
		FAIL_IF(*part[i] < 1 || *part[i] > 4096 || *end != (i < 2 ? 'x' : 0), e, TF_EUSAGE,
			"--latent is '%s', expected HEIGHTxWIDTHxCHANNELS such as 8x8x8, or 0",
			text);
		at = end + 1;
	}
	return 0;
}

/* What the data is taken to be like where no daemon is asked. */
static int assumed_facts(struct client *c, struct experiment_facts *f, struct err *e)
{
	const char *latent = args_text(&c->args, OPTION_LATENT);

	*f = (struct experiment_facts){ 2000, 8, 8, 8 };
	TRY(args_int(&c->args, OPTION_PIECES, 16, 1000000, &f->pieces, e));
	return latent ? latent_size(latent, f, e) : 0;
}

static json_t *json_of_facts(const struct experiment_facts *f)
{
	json_t *o = json_object();

	json_object_set_new(o, "pieces", json_integer(f->pieces));
	json_object_set_new(o, "latent_height", json_integer(f->latent_height));
	json_object_set_new(o, "latent_width", json_integer(f->latent_width));
	json_object_set_new(o, "latent_channels", json_integer(f->latent_channels));
	return o;
}

static void print_valid(struct client *c, const char *path, const char *kind, json_t *facts,
			json_t *plan)
{
	if (args_has(&c->args, OPTION_JSON)) {
		json_t *o = json_object();

		json_object_set_new(o, "file", json_string(path));
		json_object_set_new(o, "kind", json_string(kind));
		json_object_set_new(o, "valid", json_true());
		json_object_set(o, "facts", facts ? facts : json_null());
		json_object_set(o, "plan", plan ? plan : json_null());
		json_print(o);
		return;
	}
	printf("%s: valid (%s)\n", path, kind);
	if (!plan)
		return;
	printf("for a tokenizer of %lld pieces and latents of %lld x %lld x %lld%s:\n",
	       (long long)json_integer_value(json_object_get(facts, "pieces")),
	       (long long)json_integer_value(json_object_get(facts, "latent_height")),
	       (long long)json_integer_value(json_object_get(facts, "latent_width")),
	       (long long)json_integer_value(json_object_get(facts, "latent_channels")),
	       args_has(&c->args, OPTION_PIECES) && args_has(&c->args, OPTION_LATENT)
		       ? "" : " (--pieces and --latent change this)");
	print_plan(plan);
}

static int check_train(struct client *c, const char *path, const struct buf *text, struct err *e)
{
	json_t *facts = NULL, *plan = NULL;
	struct experiment_facts f;
	struct train_experiment x;
	int rc = assumed_facts(c, &f, e);

	TRY(rc);
	TRY(train_experiment_read(path, text->data, text->len, &x, e));
	rc = train_experiment_fits(&x, &f, e);
	train_experiment_release(&x);
	TRY(rc);
	facts = json_of_facts(&f);
	rc = plan_experiment(text->data, facts, &plan, e);
	if (rc == 0)
		print_valid(c, path, "train", facts, plan);
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
		print_valid(c, path, "vae", NULL, NULL);
	buf_release(&file);
	buf_release(&text);
	return rc;
}
