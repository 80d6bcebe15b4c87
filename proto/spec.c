/* SPDX-License-Identifier: Apache-2.0
 * Checks of what a job is asked to do, a function for each kind of jobs.def; see spec.h. */
#include "config.h"
#include "proto/spec.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/retry.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_LEAST 8
#define SIZE_MOST 4096
#define PIECES_LEAST 16
#define DIFFUSION_STEPS 1000
#define TOKENS_MOST 1048576
#define SECONDS_MOST (7 * 86400.0)
#define THREADS_MOST 1024
#define TIME_MOST (1ull << 45)              /* ms since 1970: a thousand years */
#define WALLTIME_MOST (10ull * 365 * 86400) /* seconds */

/* ---- single values */

static int int_check(const char *field, uint64_t value, uint64_t least, uint64_t most,
		     struct err *e)
{
	FAIL_IF(value < least || value > most, e, TF_EINVALID,
		"%s is %" PRIu64 ", expected %" PRIu64 " to %" PRIu64, field, value, least, most);
	return 0;
}

static int float_check(const char *field, double value, double least, double most, struct err *e)
{
	FAIL_IF(!isfinite(value) || value < least || value > most, e, TF_EINVALID,
		"%s is %g, expected %g to %g", field, value, least, most);
	return 0;
}

/* The value is one of the words, divided by '|'. */
static int word_check(const char *field, const char *value, const char *words, struct err *e)
{
	size_t len = strlen(value);

	for (const char *w = words; w; w = strchr(w, '|') ? strchr(w, '|') + 1 : NULL)
		if (len > 0 && strcspn(w, "|") == len && strncmp(w, value, len) == 0)
			return 0;
	return err_set(e, TF_EINVALID, "%s is '%.40s', expected one of %s", field, value, words);
}

static int count_check(const char *field, size_t count, size_t most, struct err *e)
{
	FAIL_IF(count > most, e, TF_ELIMIT, "%s has %zu entries, at most %zu are allowed", field,
		count, most);
	return 0;
}

static int text_check(const char *field, const char *text, size_t most, struct err *e)
{
	size_t len = strlen(text);

	FAIL_IF(len > most, e, TF_ELIMIT, "%s has %zu bytes, at most %zu are allowed", field, len,
		most);
	return 0;
}

static int experiment_check(const char *text, struct err *e)
{
	FAIL_IF(text[0] == 0, e, TF_EINVALID, "the experiment file is empty");
	return text_check("the experiment file", text, LIMIT_EXPERIMENT_BYTES, e);
}

static int reference_check(const char *what, const char *text, struct err *e)
{
	struct artefact_name name;

	return artefact_name_parse(what, text, &name, e);
}

/* Absolute, no "..", within bounds; whether the daemon opens it is for its roots to say. */
static int server_path_check(const char *path, struct err *e)
{
	TRY(text_check("path", path, LIMIT_PATH_BYTES, e));
	FAIL_IF(path[0] != '/' || !path_is_plain(path + 1), e, TF_EINVALID,
		"path '%.200s': expected an absolute path on the server, without '..'", path);
	return 0;
}

static int upload_check(const char *id, struct err *e)
{
	FAIL_IF(strlen(id) > LIMIT_NAME_BYTES || !path_is_plain(id) || strchr(id, '/'), e,
		TF_EINVALID, "upload '%.100s' is no id of an upload", id);
	return 0;
}

/* Files to read: paths on the server or uploads, not both. */
static int sources_check(char **path, size_t paths, char **upload, size_t uploads, struct err *e)
{
	FAIL_IF(paths && uploads, e, TF_EINVALID,
		"paths on the server and uploads are both given, expected one of them");
	TRY(count_check("path", paths, LIMIT_SOURCES, e));
	TRY(count_check("upload", uploads, LIMIT_SOURCES, e));
	for (size_t i = 0; i < paths; i++)
		TRY(server_path_check(path[i], e));
	for (size_t i = 0; i < uploads; i++)
		TRY(upload_check(upload[i], e));
	return 0;
}

/* ---- the kinds */

/* As worker/source.c calls them. */
#define IMPORT_FORMATS "tsv|jsonl|pictures|pictures+captions|text files|text lines"

static int check_ingest(const Tf__JobSpec *spec, struct err *e)
{
	const Tf__IngestSpec *s = spec->ingest;

	TRY(name_check("dataset", s->dataset, e));
	FAIL_IF(s->n_path + s->n_upload == 0, e, TF_EINVALID,
		"an import names no files, expected at least one");
	TRY(sources_check(s->path, s->n_path, s->upload, s->n_upload, e));
	if (s->tokenizer && *s->tokenizer)
		TRY(reference_check("tokenizer", s->tokenizer, e));
	if (s->vae && *s->vae)
		TRY(reference_check("vae", s->vae, e));
	TRY(int_check("size", s->size, SIZE_LEAST, SIZE_MOST, e));
	if (s->has_holdout_percent)
		TRY(float_check("holdout_percent", s->holdout_percent, 0, 90, e));
	TRY(count_check("heldout", s->n_heldout, LIMIT_HELDOUT_NAMES, e));
	FAIL_IF(s->n_heldout && s->has_holdout_percent && s->holdout_percent > 0, e, TF_EINVALID,
		"holdout_percent and heldout are both given, expected one of them");
	for (size_t i = 0; i < s->n_heldout; i++)
		TRY(text_check("heldout", s->heldout[i], LIMIT_PATH_BYTES, e));
	return s->format && *s->format ? word_check("format", s->format, IMPORT_FORMATS, e) : 0;
}

static int check_tokenizer(const Tf__JobSpec *spec, struct err *e)
{
	const Tf__TokenizerSpec *s = spec->tokenizer;
	size_t sources = s->n_path + s->n_upload;

	TRY(name_check("tokenizer", s->tokenizer, e));
	TRY(sources_check(s->path, s->n_path, s->upload, s->n_upload, e));
	TRY(count_check("dataset", s->n_dataset, LIMIT_SOURCES, e));
	for (size_t i = 0; i < s->n_dataset; i++)
		TRY(reference_check("dataset", s->dataset[i], e));
	FAIL_IF(sources + s->n_dataset == 0, e, TF_EINVALID,
		"a tokenizer needs files or datasets to learn from, expected at least one");
	FAIL_IF(s->import && (sources != 1 || s->n_dataset), e, TF_EINVALID,
		"importing a tokenizer takes one file, %zu are given", sources);
	return int_check("pieces", s->pieces, PIECES_LEAST, LIMIT_TOKENIZER_PIECES, e);
}

static int check_vae(const Tf__JobSpec *spec, struct err *e)
{
	TRY(name_check("vae", spec->vae->vae, e));
	return experiment_check(spec->vae->experiment, e);
}

static int check_train(const Tf__JobSpec *spec, struct err *e)
{
	TRY(name_check("model", spec->train->model, e));
	return experiment_check(spec->train->experiment, e);
}

static int check_generate(const Tf__JobSpec *spec, struct err *e)
{
	const Tf__GenerateSpec *s = spec->generate;
	size_t bytes = 0;

	TRY(reference_check("model", s->model, e));
	FAIL_IF(s->n_prompt + s->n_image == 0, e, TF_EINVALID,
		"there is neither a prompt nor a picture, expected one");
	TRY(count_check("prompt", s->n_prompt, LIMIT_PROMPTS, e));
	TRY(count_check("image", s->n_image, LIMIT_PROMPTS, e));
	for (size_t i = 0; i < s->n_prompt; i++)
		TRY(text_check("prompt", s->prompt[i], LIMIT_TEXT_BYTES, e));
	for (size_t i = 0; i < s->n_image; i++) {
		FAIL_IF(s->image[i].len == 0, e, TF_EINVALID, "image %zu is empty", i + 1);
		bytes += s->image[i].len;
	}
	FAIL_IF(bytes > LIMIT_MESSAGE_BYTES / 2, e, TF_ELIMIT,
		"the pictures have %zu bytes, at most %u fit into a job", bytes,
		LIMIT_MESSAGE_BYTES / 2);
	TRY(int_check("count", s->count, 1, LIMIT_IMAGES_PER_PROMPT, e));
	TRY(int_check("steps", s->steps, 1, DIFFUSION_STEPS, e));
	TRY(float_check("guidance", s->guidance, 0, 100, e));
	TRY(float_check("temperature", s->temperature, 0, 100, e));
	FAIL_IF(!(s->top_p > 0 && s->top_p <= 1), e, TF_EINVALID,
		"top_p is %g, expected more than 0 and at most 1", s->top_p);
	TRY(int_check("seed", s->seed, 0, INT64_MAX, e));
	TRY(word_check("sampler", s->sampler, "ddpm|ddim", e));
	TRY(word_check("mode", s->mode, "auto|image|text|free", e));
	TRY(int_check("max_tokens", s->max_tokens, 1, TOKENS_MOST, e));
	return float_check("clamp", s->clamp, 0, 1000, e);
}

static int check_eval(const Tf__JobSpec *spec, struct err *e)
{
	const Tf__EvalSpec *s = spec->eval;

	TRY(reference_check("model", s->model, e));
	TRY(word_check("task", s->task, EVAL_TASKS, e));
	TRY(reference_check("dataset", s->data, e));
	TRY(word_check("split", s->split, "train|heldout", e));
	TRY(int_check("steps", s->steps, 1, DIFFUSION_STEPS, e));
	TRY(float_check("guidance", s->guidance, 0, 100, e));
	TRY(int_check("seed", s->seed, 0, INT64_MAX, e));
	TRY(word_check("sampler", s->sampler, "ddpm|ddim", e));
	FAIL_IF(s->sheet && strcmp(s->task, "draw") != 0, e, TF_EINVALID,
		"sheet is made by task draw, the task is %s", s->task);
	FAIL_IF(s->dump && strcmp(s->task, "loss") != 0, e, TF_EINVALID,
		"dump is made by task loss, the task is %s", s->task);
	return s->has_batch ? int_check("batch", s->batch, 1, 65536, e) : 0;
}

static int check_noop(const Tf__JobSpec *spec, struct err *e)
{
	const Tf__NoopSpec *s = spec->noop;

	TRY(float_check("seconds", s->seconds, 0, SECONDS_MOST, e));
	if (s->fail && *s->fail)
		TRY(word_check("fail", s->fail, "crash|error|nan", e));
	return s->echo ? text_check("echo", s->echo, LIMIT_TEXT_BYTES, e) : 0;
}

/* ---- the whole */

static int demand_check(const Tf__JobSpec *s, struct err *e)
{
	const Tf__Demand *d = s->demand;
	bool gpu = d && (d->gpus || d->gpu_mem);

	if (!d)
		return 0;
	TRY(int_check("gpus", d->gpus, 0, LIMIT_GPUS, e));
	FAIL_IF(d->gpus && d->gpu_mem, e, TF_EINVALID,
		"gpus (whole ones) and gpu_mem (a share of one) are both given, expected one");
	FAIL_IF(gpu && s->device && strcmp(s->device, "cpu") == 0, e, TF_EINVALID,
		"device is 'cpu', but GPUs are asked for too");
	TRY(int_check("gpu_mem", d->gpu_mem, 0, INT64_MAX, e));
	TRY(int_check("cpus", d->cpus, 0, LIMIT_CPUS, e));
	TRY(int_check("mem", d->mem, 0, INT64_MAX, e));
	TRY(int_check("begin", (uint64_t)d->begin, 0, TIME_MOST, e));
	TRY(int_check("deadline", (uint64_t)d->deadline, 0, TIME_MOST, e));
	return int_check("walltime", d->walltime, 0, WALLTIME_MOST, e);
}

static int after_check(const char *field, const uint64_t *job, size_t count, struct err *e)
{
	TRY(count_check(field, count, LIMIT_AFTER, e));
	for (size_t i = 0; i < count; i++)
		FAIL_IF(job[i] == 0, e, TF_EINVALID, "%s is 0, expected the id of a job", field);
	return 0;
}

static int group_check(const Tf__JobSpec *s, struct err *e)
{
	if (!s->group || !*s->group) {
		FAIL_IF(s->has_group_running, e, TF_EINVALID, "group_running needs a group");
		return 0;
	}
	TRY(name_check("group", s->group, e));
	return int_check("group_running", s->group_running, 1, LIMIT_WORKERS, e);
}

static int common_check(const Tf__JobSpec *s, struct err *e)
{
	if (s->name && *s->name)
		TRY(name_check("name", s->name, e));
	if (s->project && *s->project)
		TRY(name_check("project", s->project, e));
	FAIL_IF(s->threads < 0 || s->threads > THREADS_MOST, e, TF_EINVALID,
		"threads is %d, expected 0 to %d", s->threads, THREADS_MOST);
	if (s->device && *s->device)
		TRY(word_check("device", s->device, "cpu|cuda", e));
	TRY(demand_check(s, e));
	TRY(after_check("after", s->after, s->n_after, e));
	TRY(after_check("after_any", s->after_any, s->n_after_any, e));
	TRY(after_check("after_failed", s->after_failed, s->n_after_failed, e));
	TRY(count_check("tag", s->n_tag, LIMIT_TAGS, e));
	for (size_t i = 0; i < s->n_tag; i++)
		TRY(name_check("tag", s->tag[i], e));
	TRY(retry_check(s, e));
	TRY(group_check(s, e));
	return int_check("retries", s->retries, 0, LIMIT_RETRIES, e);
}

/* A worker is told it in one message, which has what it reads a second time, as paths of its own; a
 * client sees it beside the job's record. */
static int size_check(const Tf__JobSpec *spec, struct err *e)
{
	bool reads = spec->spec_case == TF__JOB_SPEC__SPEC_INGEST ||
		     spec->spec_case == TF__JOB_SPEC__SPEC_TOKENIZER;
	size_t bytes = tf__job_spec__get_packed_size(spec);
	size_t most = reads ? LIMIT_SPEC_BYTES / 2 : LIMIT_SPEC_BYTES;

	FAIL_IF(bytes > most, e, TF_ELIMIT, "it takes %zu bytes: the limit is %zu", bytes, most);
	return 0;
}

int spec_check(const Tf__JobSpec *spec, struct err *e)
{
	static int (*const check[])(const Tf__JobSpec *, struct err *) = {
#define J(id, kind, field, makes, resumable, warm, joint, help) [TF__JOB_KIND__##kind] = check_##id,
#include "proto/jobs.def"
#undef J
	};
	const struct job_kind *k = job_kind_find(spec->kind);
	int rc;

	FAIL_IF(!k, e, TF_EINVALID, "kind is %d, expected one of the kinds of jobs", spec->kind);
	FAIL_IF(spec->spec_case != k->spec, e, TF_EINVALID,
		"a job of kind %s carries no spec of this kind", k->id);
	rc = common_check(spec, e);
	if (rc == 0)
		rc = check[spec->kind](spec, e);
	if (rc == 0)
		rc = size_check(spec, e);
	if (rc < 0)
		err_prefix(e, "%s job", k->id);
	return rc;
}
