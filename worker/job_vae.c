/* SPDX-License-Identifier: Apache-2.0
 * Training an autoencoder: the loop. The autoencoder's folder is the job's output folder;
 * checkpoints appear in it by a rename and hold vae.safetensors, state.safetensors and
 * experiment.yaml; the finished autoencoder is VAE_FILE in the folder itself. A run that finds a
 * checkpoint goes on from it, bit for bit: which pictures a step sees follows from the seed and
 * the step's number. Steps are launched ahead and settle later (flights.h), and go on while a
 * checkpoint is written (saver.h). */
#include "config.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "model/vae_train.h"
#include "proto/experiment.h"
#include "store/checkpoints.h"
#include "worker/flights.h"
#include "worker/saver.h"
#include "worker/vae_data.h"
#include "worker/worker.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define STATE_FILE "state.safetensors"
#define EXPERIMENT_FILE "experiment.yaml"
#define CODE_BATCH 8 /* pictures measured at a time */
#define GAN_LAYERS 3
#define GAN_GROUPS 8
_Static_assert(VAE_COPY_FETCHES + FLIGHTS_MOST * VAE_TRAIN_FETCHES <= FETCHES_MOST,
	       "a checkpoint and the steps launched meanwhile");

struct vae_run {
	struct job *job;
	struct vae_experiment x;
	struct vae_data *data;
	struct vae *vae;
	struct vae_train *train;
	struct vae_train_config c;
	uint8_t *batch;             /* pictures of a step */
	struct flights flights;
	struct saver *saver;
	struct vae_copy *copy;      /* what it writes, */
	double copied_score;        /* with this score */
	struct vae_losses losses;   /* of the step that settled last */
	double psnr, psnr_training; /* last measured; NaN: not yet */
	int64_t psnr_step;
	int64_t started_ns, started_step;
};

/* ---- checkpoints */

static int write_files(const struct vae_run *r, const char *folder, struct err *e)
{
	const char *text = r->job->spec->vae->experiment;
	char *vae = job_path(folder, VAE_FILE), *state = job_path(folder, STATE_FILE);
	char *experiment = job_path(folder, EXPERIMENT_FILE);
	int rc = vae_copy_write(r->copy, vae, state, e);

	if (rc == 0)
		rc = file_write(experiment, text, strlen(text), 0644, e);
	xfree(experiment);
	xfree(state);
	xfree(vae);
	return rc;
}

static int write_copy(void *copy, uint64_t step, struct err *e)
{
	const struct vae_run *r = copy;
	char *folder = NULL;
	int rc;

	TRY(checkpoint_begin(r->job->output, step, &folder, e));
	rc = write_files(r, folder, e);
	if (rc == 0 && fault_hit("checkpoint-save"))
		rc = err_set(e, TF_ENOSPACE, "%s: No space left on device", folder);
	if (rc == 0)
		rc = checkpoint_commit(r->job->output, step, folder, r->copied_score, e);
	xfree(folder);
	return rc;
}

static int open_saver(struct vae_run *r, struct err *e)
{
	const struct saver_options o = { r->job->output, r->x.save.keep_last, r->x.save.keep_every,
					 write_copy, r };

	TRY(vae_copy_new(r->train, &r->copy, e));
	r->saver = saver_new(&o);
	return 0;
}

static void save_begin(struct vae_run *r)
{
	int64_t step = vae_train_step_count(r->train);

	saver_settle(r->saver, r->job);
	r->copied_score = r->psnr_step == step ? -r->psnr : NAN;
	vae_copy_take(r->copy, r->train, r->flights.skipped);
	saver_begin(r->saver, (uint64_t)step);
}

/* ---- beginning and end */

static int config_of_net(const struct vae_experiment *x, struct vae_config *c, struct err *e)
{
	*c = (struct vae_config) {
		.levels = x->model.channels.count,
		.blocks = (int)x->model.blocks,
		.latent_channels = (int)x->model.latent_channels,
		.groups = (int)x->model.groups,
	};
	FAIL_IF(c->levels > VAE_LEVELS_MAX, e, TF_EINVALID,
		"model.channels has %d entries, expected 2 to %d", c->levels, VAE_LEVELS_MAX);
	for (int i = 0; i < c->levels; i++)
		c->channels[i] = (int)x->model.channels.value[i];
	TRY(vae_config_check(c, e));
	FAIL_IF(vae_factor(c) != x->model.downsample, e, TF_EINVALID,
		"model.downsample is %" PRId64 ", but %d entries of model.channels make it %d",
		x->model.downsample, c->levels, vae_factor(c));
	return 0;
}

static struct patchgan_config config_of_judge(const struct vae_experiment *x, int size)
{
	struct patchgan_config c = { (int)x->loss.gan_channels, GAN_LAYERS, GAN_GROUPS };

	while (c.channels % c.groups)
		c.groups--;
	while (c.layers > 1 && size < 4 << c.layers)
		c.layers--;
	return c;
}

static struct vae_train_config config_of_training(const struct vae_experiment *x, int size)
{
	return (struct vae_train_config) {
		.steps = x->train.steps,
		.warmup = x->train.warmup,
		.batch = (int)x->train.batch,
		.micro_batch = (int)x->train.micro_batch,
		.size = size,
		.lr = x->train.lr,
		.lr_final = x->train.lr_end,
		.beta1 = x->train.beta1,
		.beta2 = x->train.beta2,
		.eps = x->train.eps,
		.weight_decay = x->train.weight_decay,
		.clip = x->train.clip,
		.l1_weight = x->loss.l1,
		.kl_weight = x->loss.kl,
		.gan_weight = x->loss.gan,
		.gan_start = x->loss.gan_start,
		.gan_lr = x->loss.gan_lr,
		.gan = config_of_judge(x, size),
		.seed = (uint64_t)x->train.seed,
	};
}

static enum dtype number_type(const struct vae_run *r)
{
	if (r->x.model.precision == PRECISION_AUTO)
		return r->job->kernels->prefers_bf16 ? DT_BF16 : DT_F32;
	return r->x.model.precision == PRECISION_BF16 ? DT_BF16 : DT_F32;
}

static int read_experiment(struct vae_run *r, struct err *e)
{
	const Tf__VaeSpec *spec = r->job->spec->vae;

	FAIL_IF(!spec, e, TF_EINVALID, "the job has no vae in its spec");
	FAIL_IF(!r->job->output, e, TF_EINVALID, "the assignment names no output folder");
	return vae_experiment_read("the experiment", spec->experiment, strlen(spec->experiment),
				   &r->x, e);
}

/* The net, drawn or from a checkpoint's folder, and its training. */
static int make_net(struct vae_run *r, const char *folder, struct err *e)
{
	struct vae_config net;
	char *path;
	int rc;

	TRY(config_of_net(&r->x, &net, e));
	if (!folder) {
		TRY(vae_new(r->job->kernels, &net, number_type(r), r->c.seed, &r->vae, e));
		return vae_train_new(r->vae, &r->c, &r->train, e);
	}
	path = job_path(folder, VAE_FILE);
	rc = vae_open(r->job->kernels, path, number_type(r), &r->vae, e);
	if (rc == 0 && memcmp(&net, vae_config_of(r->vae), sizeof net) != 0)
		rc = err_set(e, TF_EMISMATCH, "%s: its sizes are not those of the experiment",
			     path);
	if (rc == 0)
		rc = vae_train_new(r->vae, &r->c, &r->train, e);
	xfree(path);
	if (rc < 0)
		return rc;
	path = job_path(folder, STATE_FILE);
	rc = vae_train_load(r->train, path, &r->flights.skipped, e);
	xfree(path);
	return rc;
}

static int resume_from(struct vae_run *r, uint64_t step, struct err *e)
{
	char name[CHECKPOINT_NAME_MAX];
	char *folder;
	int rc;

	checkpoint_name(step, name);
	folder = job_path(r->job->output, "%s", name);
	rc = make_net(r, folder, e);
	if (rc == 0 && vae_train_step_count(r->train) > r->c.steps)
		rc = err_set(e, TF_EINVALID,
			     "the autoencoder has made %" PRId64 " steps, train.steps is %" PRId64,
			     vae_train_step_count(r->train), r->c.steps);
	if (rc == 0)
		log_info("resumed from %s", folder);
	xfree(folder);
	return rc;
}

/* Goes on from the newest checkpoint when there is one. */
static int make_or_resume(struct vae_run *r, struct err *e)
{
	uint64_t step = 0;
	int rc = checkpoints_find(r->job->output, "latest", &step, NULL);

	if (rc == TF_ENOTFOUND && r->job->spec->vae->resume && r->job->attempt == 1)
		return err_set(e, TF_ENOTFOUND, "--resume: the autoencoder has no checkpoint yet");
	if (rc == 0)
		TRY(resume_from(r, step, e));
	else if (rc == TF_ENOTFOUND)
		TRY(make_net(r, NULL, e));
	else
		return checkpoints_find(r->job->output, "latest", &step, e);
	vae_data_skip(r->data, (uint64_t)vae_train_step_count(r->train) * (uint64_t)r->c.batch);
	return job_metrics_rewind(r->job, (uint64_t)vae_train_step_count(r->train), e);
}

static int start(struct vae_run *r, struct err *e)
{
	TRY(read_experiment(r, e));
	TRY(job_kernels(r->job, e));
	TRY(vae_data_open(r->job, &r->x, &r->data, e));
	r->c = config_of_training(&r->x, vae_data_size(r->data));
	TRY(make_or_resume(r, e));
	TRY(flights_open(&r->flights, r->job->kernels, vae_train_figures(r->train), e));
	TRY(open_saver(r, e));
	r->batch = xmalloc((size_t)r->c.batch * vae_data_bytes(r->data));
	r->started_ns = clock_mono_ns();
	r->started_step = vae_train_step_count(r->train);
	log_info("parameters=%" PRId64 " pictures=%" PRIu64 " heldout=%" PRIu64 " type=%s",
		 vae_parameters(r->vae), vae_data_count(r->data, DATASET_TRAIN),
		 vae_data_count(r->data, DATASET_HELDOUT),
		 number_type(r) == DT_BF16 ? "bf16" : "f32");
	return 0;
}

static void release(struct vae_run *r)
{
	saver_settle(r->saver, r->job);
	saver_free(r->saver);
	vae_copy_free(r->copy);
	flights_close(&r->flights);
	vae_train_free(r->train);
	vae_free(r->vae);
	vae_data_close(r->data);
	xfree(r->batch);
	vae_experiment_release(&r->x);
}

/* ---- measuring */

struct codes {
	float *latents, *pictures, *truth;
	uint8_t *bytes;
};

static void codes_init(struct codes *s, const struct vae_run *r)
{
	const struct vae_config *c = vae_config_of(r->vae);
	int small = r->c.size / vae_factor(c);
	size_t bytes = vae_data_bytes(r->data);

	s->bytes = xmalloc(CODE_BATCH * bytes);
	s->pictures = xcalloc(CODE_BATCH * bytes, sizeof(float));
	s->truth = xcalloc(bytes, sizeof(float));
	s->latents =
		xcalloc((size_t)(CODE_BATCH * small * small * c->latent_channels), sizeof(float));
}

static void codes_release(struct codes *s)
{
	xfree(s->bytes);
	xfree(s->pictures);
	xfree(s->truth);
	xfree(s->latents);
}

/* Sums the PSNR of n pictures in s->bytes. */
static int add_psnr(struct vae_run *r, struct codes *s, int n, double *sum, struct err *e)
{
	int side = r->c.size, small = side / vae_factor(vae_config_of(r->vae));
	size_t bytes = vae_data_bytes(r->data);

	TRY(vae_encode_u8(r->vae, s->bytes, n, side, side, s->latents, e));
	TRY(vae_decode(r->vae, s->latents, n, small, small, s->pictures, e));
	for (int i = 0; i < n; i++) {
		for (size_t k = 0; k < bytes; k++)
			s->truth[k] = (float)s->bytes[(size_t)i * bytes + k] / 127.5f - 1;
		*sum += vae_psnr(s->pictures + (size_t)i * bytes, s->truth, (int64_t)bytes);
	}
	return 0;
}

/* Mean PSNR of at most `most` pictures of a split, spread evenly over it; NaN for none. */
static int measure_split(struct vae_run *r, enum dataset_split split, uint64_t most, double *psnr,
			 struct err *e)
{
	uint64_t total = vae_data_count(r->data, split), count = total < most ? total : most;
	size_t bytes = vae_data_bytes(r->data);
	struct codes s;
	double sum = 0;
	int rc = 0;

	*psnr = NAN;
	codes_init(&s, r);
	for (uint64_t at = 0; at < count && rc == 0; at += CODE_BATCH) {
		int n = count - at < CODE_BATCH ? (int)(count - at) : CODE_BATCH;

		for (int i = 0; i < n && rc == 0; i++)
			rc = vae_data_get(r->data, split, (at + (uint64_t)i) * total / count,
					  s.bytes + (size_t)i * bytes, e);
		if (rc == 0)
			rc = add_psnr(r, &s, n, &sum, e);
	}
	codes_release(&s);
	if (rc == 0 && count > 0)
		*psnr = sum / (double)count;
	return rc;
}

/* On held-out pictures; on training ones when none are held out, and then says so. */
static int measure(struct vae_run *r, struct err *e)
{
	bool held = vae_data_count(r->data, DATASET_HELDOUT) > 0;
	const char *name = held ? "heldout_psnr" : "training_psnr";

	TRY(measure_split(r, held ? DATASET_HELDOUT : DATASET_TRAIN, (uint64_t)r->x.eval.pictures,
			  &r->psnr, e));
	r->psnr_step = vae_train_step_count(r->train);
	job_metrics(r->job, (uint64_t)r->psnr_step, (struct job_metric[]) { { name, r->psnr } },
		    1);
	job_gauge(r->job, "psnr", r->psnr);
	log_info("step=%" PRId64 " %s=%.2f", r->psnr_step, name, r->psnr);
	return 0;
}

/* The latents' mean and deviation over the training split: part of the autoencoder. */
static int measure_statistics(struct vae_run *r, struct err *e)
{
	struct vae_statistics sums = { .channels = vae_config_of(r->vae)->latent_channels };
	float mean[VAE_LATENT_CHANNELS_MAX], deviation[VAE_LATENT_CHANNELS_MAX];
	int side = r->c.size, small = side / vae_factor(vae_config_of(r->vae)), rc = 0;
	uint64_t total = vae_data_count(r->data, DATASET_TRAIN);
	size_t bytes = vae_data_bytes(r->data);
	struct codes s;

	codes_init(&s, r);
	for (uint64_t at = 0; at < total && rc == 0; at += CODE_BATCH) {
		int n = total - at < CODE_BATCH ? (int)(total - at) : CODE_BATCH;

		if (job_should_stop(r->job))
			rc = job_stopped(r->job, e);
		for (int i = 0; i < n && rc == 0; i++)
			rc = vae_data_get(r->data, DATASET_TRAIN, at + (uint64_t)i,
					  s.bytes + (size_t)i * bytes, e);
		if (rc == 0)
			rc = vae_encode_u8(r->vae, s.bytes, n, side, side, s.latents, e);
		if (rc == 0)
			vae_statistics_add(&sums, s.latents, (int64_t)n * small * small);
		job_report(r->job, "measuring", at + (uint64_t)n, total, "picture");
	}
	codes_release(&s);
	TRY(rc);
	vae_statistics_read(&sums, mean, deviation);
	vae_set_statistics(r->vae, mean, deviation);
	return 0;
}

/* ---- the run */

static void tell(struct vae_run *r, const struct flight *f)
{
	const struct vae_losses *l = &r->losses;
	double seconds = (double)(clock_mono_ns() - r->started_ns) / 1e9;
	double rate = (double)(((int64_t)f->step - r->started_step) * r->c.batch) /
		      (seconds > 0 ? seconds : 1);

	job_metrics(r->job, f->step,
		    (struct job_metric[]) { { "loss", l->loss },
					    { "l1", l->l1 },
					    { "kl", l->kl },
					    { "gan", l->gan },
					    { "discriminator", l->discriminator },
					    { "lr", l->lr },
					    { "grad_norm", l->grad_norm },
					    { "pictures_s", rate } },
		    8);
	job_gauge(r->job, "loss", l->loss);
	job_gauge(r->job, "l1", l->l1);
	job_gauge(r->job, "kl", l->kl);
	job_gauge(r->job, "lr", l->lr);
	job_gauge(r->job, "pictures_s", rate);
	if (r->c.gan_weight > 0)
		job_gauge(r->job, "discriminator", l->discriminator);
	if (r->flights.skipped)
		job_gauge(r->job, "skipped", (double)r->flights.skipped);
	job_report(r->job, "training", f->step, (uint64_t)r->c.steps, "step");
}

static int launch(struct vae_run *r, struct err *e)
{
	struct flight *f;

	TRY(vae_data_next(r->data, (uint64_t)r->c.batch, r->batch, e));
	if (fault_hit("train-loss"))
		vae_train_spoil(r->train);
	f = flights_launch(&r->flights, (uint64_t)vae_train_step_count(r->train) + 1);
	f->fetches = vae_train_launch(r->train, r->batch, f->fetch, f->figures);
	return 0;
}

/* A step that the device left out, or losses that are no numbers: the policy. */
static int judge(struct vae_run *r, const struct flight *f, struct err *e)
{
	const struct vae_losses *l = &r->losses;
	char words[200];
	const struct flight_result result = {
		l->counts, isfinite(l->loss) && isfinite(l->discriminator),
		r->x.train.nan == NAN_STOP, r->x.train.nan_limit, words,
	};

	snprintf(words, sizeof words,
		 "step %" PRIu64 ": loss %g (L1 %g, KL %g), gradient norm %g", f->step, l->loss,
		 l->l1, l->kl, l->grad_norm);
	if (!l->counts)
		log_warn("%s: left out", words);
	return flights_judge(&r->flights, &result, e);
}

/* Waits until at most `most` steps are not settled. */
static int settle(struct vae_run *r, int most, struct err *e)
{
	while (r->flights.count > most) {
		struct flight f = flights_settle(&r->flights);

		vae_train_settle(r->train, (int64_t)f.step - 1, f.figures, &r->losses);
		TRY(judge(r, &f, e));
		tell(r, &f);
	}
	return 0;
}

static bool is_due(const struct vae_run *r, int64_t every)
{
	int64_t step = vae_train_step_count(r->train);

	return step == r->c.steps || (every > 0 && step % every == 0);
}

/* What is due after a step looks at the net as that step left it. */
static int after_step(struct vae_run *r, struct err *e)
{
	bool measures = is_due(r, r->x.eval.every);
	bool saves = vae_train_step_count(r->train) < r->c.steps && is_due(r, r->x.save.every);

	if (measures || saves)
		TRY(settle(r, 0, e));
	if (measures)
		TRY(measure(r, e));
	if (saves)
		save_begin(r);
	return 0;
}

static int run(struct vae_run *r, struct err *e)
{
	while (vae_train_step_count(r->train) < r->c.steps) {
		if (job_should_stop(r->job)) {
			TRY(settle(r, 0, e));
			save_begin(r);
			saver_settle(r->saver, r->job);
			return job_stopped(r->job, e);
		}
		if (saver_is_done(r->saver))
			saver_settle(r->saver, r->job);
		TRY(settle(r, FLIGHTS_MOST - 1, e));
		TRY(launch(r, e));
		TRY(after_step(r, e));
	}
	TRY(settle(r, 0, e));
	job_result(r->job, "loss", r->losses.loss);
	job_result(r->job, "l1", r->losses.l1);
	job_result(r->job, "kl", r->losses.kl);
	return 0;
}

static void describe(struct vae_run *r)
{
	const struct vae_config *c = vae_config_of(r->vae);
	bool held = vae_data_count(r->data, DATASET_HELDOUT) > 0;

	job_artefact(r->job, TF__ARTEFACT_KIND__VAE_MODEL, vae_hash(r->vae));
	job_fact(r->job, "parameters", "%" PRId64, vae_parameters(r->vae));
	job_fact(r->job, "steps", "%" PRId64, vae_train_step_count(r->train));
	job_fact(r->job, "size", "%d", r->c.size);
	job_fact(r->job, "downsample", "%d", vae_factor(c));
	job_fact(r->job, "latent_channels", "%d", c->latent_channels);
	job_fact(r->job, "drawing_bytes", "%zu",
		 vae_drawing_bytes(r->vae, CODE_BATCH, r->c.size / vae_factor(c),
				   r->c.size / vae_factor(c)));
	job_fact(r->job, "psnr", "%.2f", r->psnr);
	job_fact(r->job, "psnr_of", "%s", held ? "held-out pictures" : "training pictures");
	job_result(r->job, "psnr", r->psnr);
	job_result(r->job, "steps", (double)vae_train_step_count(r->train));
	job_result(r->job, "skipped", (double)r->flights.skipped);
}

/* A finished run that is resumed finds its last checkpoint and measures again. */
static int finish(struct vae_run *r, struct err *e)
{
	uint64_t latest;
	char *path;
	int rc;

	if (r->psnr_step != r->c.steps)
		TRY(measure(r, e));
	saver_settle(r->saver, r->job);
	if (checkpoints_find(r->job->output, "latest", &latest, NULL) < 0 ||
	    latest != (uint64_t)r->c.steps) {
		save_begin(r);
		TRY(saver_tell(r->saver, r->job, e));
	}
	TRY(measure_statistics(r, e));
	path = job_path(r->job->output, VAE_FILE);
	rc = vae_save(r->vae, path, e);
	xfree(path);
	TRY(rc);
	describe(r);
	return 0;
}

int job_vae(struct job *job, struct err *e)
{
	struct vae_run r = { .job = job, .psnr = NAN, .psnr_step = -1 };
	int rc = start(&r, e);

	if (rc == 0)
		rc = run(&r, e);
	if (rc == 0)
		rc = finish(&r, e);
	release(&r);
	return rc;
}
