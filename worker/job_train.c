/* SPDX-License-Identifier: Apache-2.0
 * Training a Transfusion model: the loop. The model's folder is the job's output folder;
 * checkpoints appear in it by a rename. A run that finds a checkpoint there goes on from it, bit
 * for bit: a later attempt after a crash, or --resume. */
#include "config.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "store/checkpoints.h"
#include "worker/needs.h"
#include "worker/opened.h"
#include "worker/train.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- checkpoints */

static struct checkpoint as_checkpoint(struct training *t)
{
	return (struct checkpoint) { .step = t->step,
				     .skipped = t->flights.skipped,
				     .positions = t->positions,
				     .images = t->images,
				     .model = &t->model,
				     .average = t->average };
}

static int write_copy(void *copy, uint64_t step, struct err *e)
{
	struct training *t = copy;

	CHECK(t->copy->of.step == step);
	return checkpoint_copy_write(t->copy, t->job->output, &t->facts, e);
}

static int open_saver(struct training *t, struct err *e)
{
	const struct checkpoint c = as_checkpoint(t);
	const struct saver_options o = { t->job->output, t->x.save.keep_last, t->x.save.keep_every,
					 write_copy, t };

	TRY(checkpoint_copy_new(&c, &t->copy, e));
	t->saver = saver_new(&o);
	return 0;
}

static void save_begin(struct training *t)
{
	struct checkpoint c = as_checkpoint(t);

	saver_settle(t->saver, t->job);
	loader_save(t->loader, &c.loader);
	checkpoint_copy_take(t->copy, &c, t->scored_at == t->step ? t->score : NAN);
	saver_begin(t->saver, t->step);
	buf_release(&c.loader);
}

/* ---- beginning and end */

static int read_experiment(struct training *t, struct err *e)
{
	const Tf__TrainSpec *spec = t->job->spec->train;

	FAIL_IF(!t->job->output, e, TF_EINVALID, "the assignment names no output folder");
	TRY(train_experiment_read("the experiment", spec->experiment, strlen(spec->experiment),
				  &t->x, e));
	t->facts.experiment = xstrdup(spec->experiment);
	return 0;
}

static int make_batches(struct training *t, struct err *e)
{
	t->micro = t->x.train.batch / t->dims.B;
	t->batch = xcalloc((size_t)t->micro, sizeof *t->batch);
	for (int64_t i = 0; i < t->micro; i++)
		batch_init(&t->batch[i], &t->dims);
	return pass_new(&t->model, true, &t->pass, e);
}

/* What a GPU has left; 0: no GPU. */
static size_t device_bytes(struct kernels *k)
{
	struct err e = ERR_INIT;
	size_t available = 0, total;

	return kernels_memory(k, &available, &total, &e) < 0 ? 0 : available;
}

static int make_model(struct training *t, struct err *e)
{
	struct params *p = &t->model.params;
	struct kernels *k = t->job->kernels;
	size_t available = device_bytes(k), drawing = 0;
	int64_t micro_batch = t->x.train.micro_batch ? t->x.train.micro_batch : t->x.train.batch;

	TRY(opened_fp8(&t->x, k, e));
	TRY(opened_dims(&t->x, &t->facts, micro_batch, k, &t->dims, e));
	TRY(train_open_samples(t, e));
	if (t->vae)
		drawing = vae_drawing_bytes(t->vae, needs_samples(&t->x), t->dims.h, t->dims.w);
	needs_fit(&t->x, available, drawing, &t->dims);
	if (t->dims.recompute)
		log_info("recompute=%" PRId64 " layers=%" PRId64, t->dims.recompute,
			 t->dims.layers);
	TRY(transformer_init(&t->model, k, &t->dims, t->dims.T, true, e));
	transformer_draw(&t->model, (uint64_t)t->x.train.seed);
	if (t->x.train.ema > 0) {
		t->average = k->ops->alloc(k, (size_t)p->total * sizeof(float));
		FAIL_IF(!t->average, e, TF_ENOMEM, "no memory for averaged weights");
		k->ops->copy(k, t->average, p->master, (size_t)p->total * sizeof(float));
	}
	return make_batches(t, e);
}

static int load_checkpoint(struct training *t, uint64_t step, struct err *e)
{
	struct checkpoint c = as_checkpoint(t);
	char name[CHECKPOINT_NAME_MAX];
	char *path;
	int rc;

	checkpoint_name(step, name);
	path = job_path(t->job->output, "%s", name);
	rc = checkpoint_resume(path, &c, e);
	if (rc == 0)
		rc = loader_restore(t->loader, c.loader.data, c.loader.len, e);
	if (rc == 0) {
		t->step = c.step;
		t->flights.skipped = c.skipped;
		t->positions = c.positions;
		t->images = c.images;
		log_info("resumed from %s", path);
	}
	buf_release(&c.loader);
	xfree(path);
	return rc;
}

/* Goes on from the newest checkpoint when there is one. */
static int resume(struct training *t, struct err *e)
{
	uint64_t step;
	int rc = checkpoints_find(t->job->output, "latest", &step, NULL);

	if (rc == TF_ENOTFOUND && t->job->spec->train->resume && t->job->attempt == 1)
		return err_set(e, TF_ENOTFOUND, "--resume: the model has no checkpoint yet");
	if (rc == TF_ENOTFOUND)
		return job_metrics_rewind(t->job, 0, e);
	TRY(rc);
	TRY(load_checkpoint(t, step, e));
	FAIL_IF(t->step > (uint64_t)t->x.train.steps, e, TF_EINVALID,
		"the model has made %" PRIu64 " steps, train.steps is %" PRId64, t->step,
		t->x.train.steps);
	return job_metrics_rewind(t->job, t->step, e);
}

static int start(struct training *t, struct err *e)
{
	TRY(read_experiment(t, e));
	TRY(job_kernels(t->job, e));
	TRY(train_open_data(t, e));
	TRY(make_model(t, e));
	TRY(train_open_loaders(t, e));
	TRY(train_open_steps(t, e));
	TRY(open_saver(t, e));
	TRY(resume(t, e));
	t->started_ns = clock_mono_ns();
	t->started_positions = t->positions;
	log_info("parameters=%" PRId64 " positions_per_step=%" PRId64 " type=%s fp8=%s",
		 params_count(&t->model.params), t->x.train.batch * t->dims.T,
		 t->dims.act == DT_BF16 ? "bf16" : "f32", t->dims.fp8 ? "on" : "off");
	return 0;
}

static void release(struct training *t)
{
	saver_settle(t->saver, t->job);
	saver_free(t->saver);
	checkpoint_copy_free(t->copy);
	train_close_steps(t);
	if (t->pass)
		pass_free(t->pass);
	for (int64_t i = 0; i < t->micro; i++)
		batch_release(&t->batch[i]);
	xfree(t->batch);
	if (t->average)
		t->job->kernels->ops->release(t->job->kernels, t->average);
	if (t->model.k)
		transformer_release(&t->model);
	if (t->vae)
		vae_free(t->vae);
	train_close_data(t);
	model_facts_release(&t->facts);
	train_experiment_release(&t->x);
}

/* ---- the run */

static bool is_due(const struct training *t, int64_t every)
{
	return every > 0 &&
	       (t->step % (uint64_t)every == 0 || t->step == (uint64_t)t->x.train.steps);
}

/* A stop order in the middle of drawing is obeyed by the loop, which saves. */
static int draw_samples(struct training *t, struct err *e)
{
	int rc = train_draw_samples(t, e);

	if (rc != TF_ECANCELLED)
		return rc;
	err_clear(e);
	return 0;
}

/* What is due after a step looks at the model as that step left it. */
static int after_step(struct training *t, struct err *e)
{
	bool measure = is_due(t, t->x.eval.every), draw = is_due(t, t->x.sample.every);
	bool saves = is_due(t, t->x.save.every) && t->step < (uint64_t)t->x.train.steps;

	if (measure || draw || saves)
		TRY(train_settle(t, 0, e));
	if (measure)
		TRY(train_measure(t, e));
	if (draw)
		TRY(draw_samples(t, e));
	if (saves)
		save_begin(t);
	return 0;
}

static int run(struct training *t, struct err *e)
{
	bool finished = t->step >= (uint64_t)t->x.train.steps;
	unsigned passed = 0;

	while (t->step < (uint64_t)t->x.train.steps) {
		if (job_should_stop(t->job)) {
			TRY(train_settle(t, 0, e));
			save_begin(t);
			saver_settle(t->saver, t->job);
			return job_stopped(t->job, e);
		}
		if (fault_held("train-step", &passed)) {
			clock_sleep_ms(1);
			continue;
		}
		if (saver_is_done(t->saver))
			saver_settle(t->saver, t->job);
		TRY(train_settle(t, FLIGHTS_MOST - 1, e));
		TRY(train_launch(t, e));
		TRY(after_step(t, e));
	}
	if (finished) /* a resume that found nothing to do has no losses to tell */
		return 0;
	TRY(train_settle(t, 0, e));
	job_result(t->job, "loss", t->losses.loss);
	job_result(t->job, "lm", t->losses.lm);
	job_result(t->job, "diffusion", t->losses.diffusion);
	return 0;
}

static int describe(struct training *t, struct err *e)
{
	char name[CHECKPOINT_NAME_MAX], hash[33];
	char *path;
	int rc;

	checkpoint_name(t->step, name);
	path = job_path(t->job->output, "%s/" CHECKPOINT_WEIGHTS, name);
	rc = job_hash_file(path, hash, e);
	xfree(path);
	TRY(rc);
	job_artefact(t->job, TF__ARTEFACT_KIND__MODEL, hash);
	job_fact(t->job, "parameters", "%" PRId64, params_count(&t->model.params));
	job_fact(t->job, "steps", "%" PRIu64, t->step);
	job_fact(t->job, "positions", "%" PRIu64, t->positions);
	job_fact(t->job, "images", "%" PRIu64, t->images);
	job_fact(t->job, "pieces", "%" PRId64, t->facts.pieces);
	job_fact(t->job, "latent_height", "%" PRId64, t->facts.latent_height);
	job_fact(t->job, "latent_width", "%" PRId64, t->facts.latent_width);
	job_fact(t->job, "latent_channels", "%" PRId64, t->facts.latent_channels);
	job_fact(t->job, "ema", "%s", t->average ? "yes" : "no");
	if (!isnan(t->score))
		job_fact(t->job, "heldout_loss", "%.5g", t->score);
	job_result(t->job, "steps", (double)t->step);
	job_result(t->job, "skipped", (double)t->flights.skipped);
	job_result(t->job, "positions", (double)t->positions);
	return 0;
}

/* The last step's checkpoint must be there; a finished run that is resumed has it already. */
static int finish(struct training *t, struct err *e)
{
	uint64_t latest;

	saver_settle(t->saver, t->job);
	if (checkpoints_find(t->job->output, "latest", &latest, NULL) < 0 || latest != t->step) {
		save_begin(t);
		TRY(saver_tell(t->saver, t->job, e));
	}
	return describe(t, e);
}

int job_train(struct job *job, struct err *e)
{
	struct training t = { .job = job, .score = NAN };
	int rc = start(&t, e);

	if (rc == 0)
		rc = run(&t, e);
	if (rc == 0)
		rc = finish(&t, e);
	release(&t);
	return rc;
}
