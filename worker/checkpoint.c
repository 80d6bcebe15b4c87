/* SPDX-License-Identifier: Apache-2.0
 * Writing and reading the files of a checkpoint; see checkpoint.h. */
#include "config.h"
#include "worker/checkpoint.h"
#include "lib/fault.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/safetensors.h"
#include "proto/limits.h"
#include "store/checkpoints.h"
#include "worker/worker.h"

#include <inttypes.h>
#include <string.h>

#define STATE_VERSION 1

void model_facts_release(struct model_facts *f)
{
	xfree(f->experiment);
}

/* ---- writing */

static void describe_model(struct st_writer *w, const struct checkpoint *c,
			   const struct model_facts *f)
{
	st_writer_meta(w, "format", "transfused model");
	st_writer_meta(w, "program", PACKAGE_VERSION);
	st_writer_count(w, "step", c->step);
	st_writer_count(w, "pieces", (uint64_t)f->pieces);
	st_writer_count(w, "bos", (uint64_t)f->bos);
	st_writer_count(w, "eos", (uint64_t)f->eos);
	st_writer_count(w, "latent_height", (uint64_t)f->latent_height);
	st_writer_count(w, "latent_width", (uint64_t)f->latent_width);
	st_writer_count(w, "latent_channels", (uint64_t)f->latent_channels);
	st_writer_meta(w, "tokenizer", f->tokenizer);
	st_writer_meta(w, "vae", f->vae);
	st_writer_meta(w, "experiment", f->experiment);
}

/* The parameters with another array as their values. */
static struct params with_values(const struct params *p, float *values)
{
	struct params view = *p;

	view.master = values;
	return view;
}

static int save_weights(const char *folder, const char *name, const struct checkpoint_copy *copy,
			const struct model_facts *f, enum checkpoint_array array, struct err *e)
{
	char *path = job_path(folder, "%s", name);
	struct st_writer w;
	int rc;

	st_writer_init(&w);
	describe_model(&w, &copy->of, f);
	params_declare(&copy->of.model->params, PARAMS_MASTER, "", copy->array[array], &w);
	rc = st_writer_save(&w, path, e);
	st_writer_release(&w);
	xfree(path);
	return rc;
}

static int save_state(const char *folder, const struct checkpoint_copy *copy, struct err *e)
{
	const struct checkpoint *c = &copy->of;
	const struct params *p = &c->model->params;
	char *path = job_path(folder, CHECKPOINT_STATE);
	int64_t loader_bytes = (int64_t)c->loader.len;
	struct st_writer w;
	int rc;

	st_writer_init(&w);
	st_writer_meta(&w, "format", "transfused state");
	st_writer_meta(&w, "program", PACKAGE_VERSION);
	st_writer_count(&w, "version", STATE_VERSION);
	st_writer_count(&w, "step", c->step);
	st_writer_count(&w, "skipped", c->skipped);
	st_writer_count(&w, "positions", c->positions);
	st_writer_count(&w, "images", c->images);
	st_writer_count(&w, "updates", copy->updates);
	st_writer_meta(&w, "backend", copy->k->backend);
	st_writer_meta(&w, "choices", copy->choices);
	st_writer_count(&w, "threads", (uint64_t)copy->k->threads);
	params_declare(p, PARAMS_M, "m.", copy->array[CHECKPOINT_M], &w);
	params_declare(p, PARAMS_V, "v.", copy->array[CHECKPOINT_V], &w);
	st_writer_add(&w, "loader", ST_U8, 1, &loader_bytes, c->loader.data);
	rc = st_writer_save(&w, path, e);
	st_writer_release(&w);
	xfree(path);
	return rc;
}

static int save_experiment(const char *folder, const char *text, struct err *e)
{
	char *path = job_path(folder, CHECKPOINT_EXPERIMENT);
	int rc = file_write(path, text, strlen(text), 0644, e);

	xfree(path);
	return rc;
}

static const enum params_array source[] = {
	[CHECKPOINT_VALUES] = PARAMS_MASTER,
	[CHECKPOINT_AVERAGED] = PARAMS_MASTER,
	[CHECKPOINT_M] = PARAMS_M,
	[CHECKPOINT_V] = PARAMS_V,
};

static size_t array_bytes(const struct params *p, enum checkpoint_array a, bool average)
{
	return a == CHECKPOINT_AVERAGED && !average ? 0 : params_bytes(p, source[a]);
}

size_t checkpoint_copy_bytes(const struct params *p, bool average)
{
	size_t bytes = 0;

	for (int a = 0; a < CHECKPOINT_ARRAYS; a++)
		bytes += array_bytes(p, a, average);
	return bytes;
}

int checkpoint_copy_new(const struct checkpoint *c, struct checkpoint_copy **out, struct err *e)
{
	const struct params *p = &c->model->params;
	size_t bytes = checkpoint_copy_bytes(p, c->average), at = 0;
	struct checkpoint_copy *copy = xcalloc(1, sizeof *copy);

	copy->k = p->k;
	copy->memory = p->k->ops->host_alloc(p->k, bytes);
	if (!copy->memory) {
		xfree(copy);
		return err_set(e, TF_ENOMEM, "no memory of the host for checkpoints: %.1f GiB",
			       (double)bytes / (1 << 30));
	}
	for (int a = 0; a < CHECKPOINT_ARRAYS; a++) {
		copy->array[a] = array_bytes(p, a, c->average) ? copy->memory + at : NULL;
		at += array_bytes(p, a, c->average);
	}
	*out = copy;
	return 0;
}

static void await(struct checkpoint_copy *copy)
{
	for (int a = 0; a < CHECKPOINT_ARRAYS && copy->under_way; a++)
		if (copy->array[a])
			copy->k->ops->fetch_end(copy->k, &copy->fetch[a]);
	copy->under_way = false;
}

void checkpoint_copy_free(struct checkpoint_copy *copy)
{
	if (!copy)
		return;
	await(copy);
	copy->k->ops->host_release(copy->k, copy->memory);
	buf_release(&copy->of.loader);
	xfree(copy->choices);
	xfree(copy);
}

void checkpoint_copy_take(struct checkpoint_copy *copy, const struct checkpoint *c, double score)
{
	struct buf loader = copy->of.loader;

	CHECK(!copy->under_way);
	buf_clear(&loader);
	buf_append(&loader, c->loader.data, c->loader.len);
	copy->of = *c;
	copy->of.loader = loader;
	xfree(copy->choices);
	copy->choices = kernels_choices(copy->k);
	copy->updates = (uint64_t)(c->model->params.step - c->model->params.left_out);
	copy->score = score;
	for (int a = 0; a < CHECKPOINT_ARRAYS; a++) {
		struct params view = c->model->params;

		if (a == CHECKPOINT_AVERAGED)
			view = with_values(&view, c->average);
		if (copy->array[a])
			params_fetch_begin(&view, source[a], &copy->fetch[a], copy->array[a]);
	}
	copy->under_way = true;
}

int checkpoint_copy_write(struct checkpoint_copy *copy, const char *folder,
			  const struct model_facts *f, struct err *e)
{
	uint64_t step = copy->of.step;
	char *path = NULL;
	int rc;

	await(copy);
	TRY(checkpoint_begin(folder, step, &path, e));
	rc = save_weights(path, CHECKPOINT_WEIGHTS, copy, f, CHECKPOINT_VALUES, e);
	if (rc == 0 && copy->array[CHECKPOINT_AVERAGED])
		rc = save_weights(path, CHECKPOINT_AVERAGE, copy, f, CHECKPOINT_AVERAGED, e);
	if (rc == 0)
		rc = save_state(path, copy, e);
	if (rc == 0)
		rc = save_experiment(path, f->experiment, e);
	if (rc == 0 && fault_hit("checkpoint-save"))
		rc = err_set(e, TF_ENOSPACE, "%s: No space left on device", path);
	if (rc == 0)
		rc = checkpoint_commit(folder, step, path, copy->score, e);
	xfree(path);
	return rc;
}

int checkpoint_save(const char *folder, const struct checkpoint *c, const struct model_facts *f,
		    double score, struct err *e)
{
	struct checkpoint_copy *copy;
	int rc;

	TRY(checkpoint_copy_new(c, &copy, e));
	checkpoint_copy_take(copy, c, score);
	rc = checkpoint_copy_write(copy, folder, f, e);
	checkpoint_copy_free(copy);
	return rc;
}

/* ---- reading */

static int read_small(const struct st_file *f, const char *path, const char *key, int64_t *out,
		      struct err *e)
{
	uint64_t value = 0;

	TRY(st_meta_count(f, path, key, INT32_MAX, &value, e));
	*out = (int64_t)value;
	return 0;
}

static int read_hash(const struct st_file *f, const char *path, const char *key, char out[33],
		     struct err *e)
{
	const char *text = st_meta(f, key);
	size_t len = text ? strlen(text) : 1;

	FAIL_IF((len != 0 && len != 32) || strspn(text, "0123456789abcdef") != len, e, TF_ECORRUPT,
		"%s: metadata '%s' is not a hash of 32 hex digits", path, key);
	memcpy(out, text, len + 1);
	return 0;
}

static int read_facts(const struct st_file *f, const char *path, struct model_facts *out,
		      struct err *e)
{
	const char *experiment = st_meta(f, "experiment");

	TRY(read_small(f, path, "pieces", &out->pieces, e));
	TRY(read_small(f, path, "bos", &out->bos, e));
	TRY(read_small(f, path, "eos", &out->eos, e));
	TRY(read_small(f, path, "latent_height", &out->latent_height, e));
	TRY(read_small(f, path, "latent_width", &out->latent_width, e));
	TRY(read_small(f, path, "latent_channels", &out->latent_channels, e));
	TRY(read_hash(f, path, "tokenizer", out->tokenizer, e));
	TRY(read_hash(f, path, "vae", out->vae, e));
	FAIL_IF(!experiment || strlen(experiment) > LIMIT_EXPERIMENT_BYTES, e, TF_ECORRUPT,
		"%s: its metadata has no experiment", path);
	out->experiment = xstrdup(experiment);
	return 0;
}

int checkpoint_facts(const char *path, struct model_facts *out, struct err *e)
{
	char *name = job_path(path, CHECKPOINT_WEIGHTS);
	struct st_file f;
	int rc = st_open(name, &f, e);

	memset(out, 0, sizeof *out);
	if (rc == 0) {
		rc = read_facts(&f, name, out, e);
		st_close(&f);
	}
	xfree(name);
	return rc;
}

/* One file of weights into `values`, or the parameters' own. */
static int load_values(const char *folder, const char *name, struct params *p, struct err *e)
{
	char *path = job_path(folder, "%s", name);
	struct st_file f;
	int rc = st_open(path, &f, e);

	if (rc == 0) {
		rc = params_read(p, PARAMS_MASTER, "", &f, path, e);
		st_close(&f);
	}
	xfree(path);
	return rc;
}

int checkpoint_weights(const char *path, bool average, struct transformer *m, struct err *e)
{
	char *averaged = job_path(path, CHECKPOINT_AVERAGE);
	bool has_average = file_exists(averaged);

	xfree(averaged);
	FAIL_IF(average && !has_average, e, TF_ENOTFOUND,
		"%s: no averaged weights (@ema): the run had train.ema 0", path);
	return load_values(path, average ? CHECKPOINT_AVERAGE : CHECKPOINT_WEIGHTS, &m->params, e);
}

static int read_state(const struct st_file *f, const char *path, struct checkpoint *c,
		      struct err *e)
{
	static const int64_t any = -1;
	const struct st_tensor *loader = NULL;
	uint64_t version = 0, updates = 0;

	TRY(st_meta_count(f, path, "version", UINT32_MAX, &version, e));
	FAIL_IF(version != STATE_VERSION, e, TF_EVERSION,
		"%s: state version %" PRIu64 ", this program reads %d", path, version,
		STATE_VERSION);
	TRY(st_meta_count(f, path, "step", INT64_MAX, &c->step, e));
	TRY(st_meta_count(f, path, "skipped", INT64_MAX, &c->skipped, e));
	TRY(st_meta_count(f, path, "positions", INT64_MAX, &c->positions, e));
	TRY(st_meta_count(f, path, "images", INT64_MAX, &c->images, e));
	TRY(st_meta_count(f, path, "updates", INT64_MAX, &updates, e));
	TRY(params_read(&c->model->params, PARAMS_M, "m.", f, path, e));
	TRY(params_read(&c->model->params, PARAMS_V, "v.", f, path, e));
	TRY(st_need(f, path, "loader", ST_U8, 1, &any, &loader, e));
	c->model->params.step = (int64_t)updates;
	buf_clear(&c->loader);
	buf_append(&c->loader, loader->data, loader->bytes);
	kernels_choose_again(c->model->k, st_meta(f, "choices"));
	return 0;
}

int checkpoint_resume(const char *path, struct checkpoint *c, struct err *e)
{
	char *name = job_path(path, CHECKPOINT_STATE);
	struct st_file f;
	int rc = st_open(name, &f, e);

	if (rc == 0) {
		rc = read_state(&f, name, c, e);
		st_close(&f);
	}
	xfree(name);
	TRY(rc);
	TRY(load_values(path, CHECKPOINT_WEIGHTS, &c->model->params, e));
	if (c->average) {
		struct params view = with_values(&c->model->params, c->average);

		view.resident = NULL; /* the bf16 copy is of the weights themselves */
		TRY(load_values(path, CHECKPOINT_AVERAGE, &view, e));
	}
	return 0;
}
