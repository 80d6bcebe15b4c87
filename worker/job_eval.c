/* SPDX-License-Identifier: Apache-2.0
 * Evaluating a model on a dataset: opens both, runs a task of eval_<task>.c, writes
 * results/report.json. */
#include "config.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/spec.h"
#include "worker/eval.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
	const char *name;
	int (*run)(struct evaluation *ev, struct err *e);
} tasks[] = {
#define T(name, data, help) { #name, eval_##name },
#include "proto/tasks.def"
#undef T
};

void eval_result(struct evaluation *ev, const char *name, double value)
{
	job_result(ev->job, name, value);
	json_object_set_new(ev->report, name, isfinite(value) ? json_real(value) : json_null());
}

uint64_t eval_samples(const struct evaluation *ev)
{
	uint64_t all = ev->info->samples[ev->split];

	return ev->spec->limit && ev->spec->limit < all ? ev->spec->limit : all;
}

uint64_t eval_number(const struct evaluation *ev, uint64_t i)
{
	uint64_t all = ev->info->samples[ev->split];

	return eval_samples(ev) < all ? philox_permute(ev->spec->seed, 0, i, all) : i;
}

int eval_sample(struct evaluation *ev, uint64_t i, struct sample *out, struct err *e)
{
	return dataset_get(ev->data, ev->split, eval_number(ev, i), out, e);
}

void eval_line(struct eval_lines *l, json_t *object)
{
	char *text = json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER);

	CHECK(text);
	buf_text(&l->text, text);
	buf_text(&l->text, "\n");
	free(text);
	json_decref(object);
}

int eval_lines_write(struct eval_lines *l, const struct evaluation *ev, const char *name,
		     struct err *e)
{
	char *path = job_result_path(ev->job, "%s", name);
	int rc = file_write(path, l->text.len ? l->text.data : "", l->text.len, 0600, e);

	buf_release(&l->text);
	xfree(path);
	return rc;
}

static int open_data(struct evaluation *ev, struct err *e)
{
	const Tf__Input *in = NULL;

	TRY(job_need_input(ev->job, "data", &in, e));
	TRY(dataset_split_parse(ev->spec->split, &ev->split, e));
	TRY(dataset_open(in->path, &ev->data, e));
	ev->info = dataset_info(ev->data);
	FAIL_IF(ev->info->samples[ev->split] == 0, e, TF_EINVALID,
		"dataset '%s' has no samples in its split %s", in->name,
		dataset_split_name(ev->split));
	FAIL_IF(strcmp(ev->info->tokenizer, ev->o.facts.tokenizer) != 0, e, TF_EMISMATCH,
		"dataset '%s' was made with another tokenizer than the model", in->name);
	FAIL_IF(*ev->info->vae && strcmp(ev->info->vae, ev->o.facts.vae) != 0, e, TF_EMISMATCH,
		"dataset '%s' was made with another autoencoder than the model", in->name);
	return 0;
}

static int write_report(struct evaluation *ev, struct err *e)
{
	char *path = job_result_path(ev->job, "report.json");
	char *text = json_dumps(ev->report, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
	int rc;

	CHECK(text);
	rc = file_write(path, text, strlen(text), 0600, e);
	free(text);
	xfree(path);
	return rc;
}

static int run(struct evaluation *ev, struct err *e)
{
	const Tf__EvalSpec *spec = ev->spec;
	size_t task = 0;

	while (task < ARRAY_LEN(tasks) && strcmp(tasks[task].name, spec->task) != 0)
		task++;
	FAIL_IF(task == ARRAY_LEN(tasks), e, TF_EINVALID,
		"task: found '%.40s', expected one of %s", spec->task, EVAL_TASKS);
	job_stage(ev->job, "load");
	TRY(opened_init(&ev->o, ev->job, spec->has_batch ? spec->batch : 0, e));
	TRY(open_data(ev, e));
	ev->report =
		json_pack("{s:s, s:s, s:s, s:s, s:I}", "task", spec->task, "model", ev->o.name,
			  "data", spec->data, "split", dataset_split_name(ev->split), "samples",
			  (json_int_t)eval_samples(ev));
	CHECK(ev->report);
	eval_result(ev, "samples", (double)eval_samples(ev));
	job_stage(ev->job, "measure");
	TRY(tasks[task].run(ev, e));
	job_stage(ev->job, "write");
	return write_report(ev, e);
}

int job_eval(struct job *job, struct err *e)
{
	struct evaluation ev = { .job = job, .spec = job->spec->eval };
	int rc;

	rc = run(&ev, e);
	json_decref(ev.report);
	if (ev.data)
		dataset_close(ev.data);
	if (rc == 0)
		opened_leave(&ev.o, job);
	else
		opened_release(&ev.o);
	return rc;
}
