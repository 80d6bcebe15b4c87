/* SPDX-License-Identifier: Apache-2.0
 * Opening a model with tokenizer and autoencoder; see opened.h. */
#include "config.h"
#include "worker/opened.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "store/checkpoints.h"
#include "worker/kept.h"

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#define ROWS_CUDA 1024 /* one graph for each capacity: few of them */
#define ROWS_CPU 64    /* one set of products for each shape */
#define NORM_EPS 1e-5f
#define PASS_POSITIONS 4096 /* of an evaluation's pass, about */

static enum dtype number_type(const struct train_experiment *x, const struct kernels *k)
{
	if (x->model.precision == PRECISION_AUTO)
		return k->prefers_bf16 ? DT_BF16 : DT_F32;
	return x->model.precision == PRECISION_BF16 ? DT_BF16 : DT_F32;
}

int opened_dims(const struct train_experiment *x, const struct model_facts *f, int64_t B,
		const struct kernels *k, struct dims *out, struct err *e)
{
	const struct experiment_facts facts = { f->pieces, f->latent_height, f->latent_width,
						f->latent_channels };

	TRY(train_experiment_fits(x, &facts, e));
	*out = (struct dims) {
		.layers = x->model.layers,
		.d = x->model.dim,
		.H = x->model.heads,
		.F = x->model.ff,
		.patch = x->model.patch,
		.h = f->latent_height,
		.w = f->latent_width,
		.c = f->latent_channels,
		.time = x->model.time == TIME_PATCH ? TIME_AT_PATCH : TIME_AT_MODEL,
		.eps = NORM_EPS,
		.rope_base = (float)x->model.rope_base,
		.act = number_type(x, k),
		.causal = x->model.attention == ATTENTION_CAUSAL,
		.positions_restart = x->model.positions == POSITIONS_DOCUMENT,
		.B = B,
		.T = x->train.sequence,
		.row_multiple = strcmp(k->backend, "cuda") == 0 ? ROWS_CUDA : ROWS_CPU,
		.moments = x->train.moments == MOMENTS_BF16 ? DT_BF16 : DT_F32,
		.stochastic = x->train.rounding == ROUNDING_STOCHASTIC,
		.rounding = (uint64_t)x->train.seed,
		.fp8 = x->train.fp8 == FP8_ON,
	};
	TRY(vocabulary_init(&out->vocabulary, (int32_t)f->pieces, (int32_t)f->bos, (int32_t)f->eos,
			    e));
	out->images = dims_images_most(out);
	return dims_check(out, e);
}

int opened_fp8(const struct train_experiment *x, const struct kernels *k, struct err *e)
{
	FAIL_IF(x->train.fp8 == FP8_ON && !k->has_fp8, e, TF_EUNSUPPORTED,
		"train.fp8: found on, but the device (%s) has no products of 8-bit floats: "
		"expected a GPU of compute capability 9.0 with cuBLASLt 12.9 or later, or off",
		kernels_describe(k));
	return 0;
}

static int same_hash(const char *what, const char *name, const char *is, const char *expected,
		     struct err *e)
{
	FAIL_IF(expected && *expected && strcmp(is, expected) != 0, e, TF_EMISMATCH,
		"%s '%s' has the hash %s, expected %s: it is not the one this was made with", what,
		name, is, expected);
	return 0;
}

int opened_tokenizer(const struct job *job, struct spm **out, struct err *e)
{
	const Tf__Input *in = NULL;
	int rc;

	TRY(job_need_input(job, "tokenizer", &in, e));
	TRY(spm_open_folder(in->path, out, e));
	rc = same_hash("tokenizer", in->name, spm_hash(*out), in->hash, e);
	if (rc < 0) {
		spm_close(*out);
		*out = NULL;
	}
	return rc;
}

/* The file in the folder of its last step, or in the VAE's folder itself. */
static int vae_path(const Tf__Input *in, char **out, struct err *e)
{
	char name[CHECKPOINT_NAME_MAX];
	uint64_t step;

	*out = job_path(in->path, VAE_FILE);
	if (file_exists(*out))
		return 0;
	xfree(*out);
	TRY(checkpoints_find(in->path, in->step, &step, e));
	checkpoint_name(step, name);
	*out = job_path(in->path, "%s/" VAE_FILE, name);
	return 0;
}

int opened_vae(const struct job *job, enum dtype act, struct vae **out, struct err *e)
{
	const Tf__Input *in = NULL;
	char *path = NULL;
	int rc;

	TRY(job_need_input(job, "vae", &in, e));
	TRY(vae_path(in, &path, e));
	rc = vae_open(job->kernels, path, act, out, e);
	xfree(path);
	TRY(rc);
	rc = same_hash("autoencoder", in->name, vae_hash(*out), in->hash, e);
	if (rc < 0) {
		vae_free(*out);
		*out = NULL;
	}
	return rc;
}

static int open_parts(struct opened *o, struct job *job, struct err *e)
{
	TRY(opened_tokenizer(job, &o->spm, e));
	TRY(same_hash("tokenizer", "", spm_hash(o->spm), o->facts.tokenizer, e));
	if (o->facts.latent_height == 0)
		return 0;
	TRY(opened_vae(job, o->dims.act, &o->vae, e));
	return same_hash("autoencoder", "", vae_hash(o->vae), o->facts.vae, e);
}

static int open_model(struct opened *o, struct job *job, const Tf__Input *in, int64_t B,
		      struct err *e)
{
	bool average = in->has_ema && in->ema;
	char name[CHECKPOINT_NAME_MAX];
	char *path;
	int rc;

	TRY(checkpoints_find(in->path, in->step, &o->step, e));
	checkpoint_name(o->step, name);
	path = job_path(in->path, "%s", name);
	rc = checkpoint_facts(path, &o->facts, e);
	if (rc == 0)
		rc = train_experiment_read("the model's experiment", o->facts.experiment,
					   strlen(o->facts.experiment), &o->x, e);
	if (rc == 0 && B == 0)
		B = PASS_POSITIONS / o->x.train.sequence > 0 ? PASS_POSITIONS / o->x.train.sequence
							     : 1;
	if (rc == 0)
		rc = opened_dims(&o->x, &o->facts, B, job->kernels, &o->dims, e);
	if (rc == 0)
		rc = transformer_init(&o->model, job->kernels, &o->dims, o->dims.T, false, e);
	if (rc == 0)
		rc = checkpoint_weights(path, average, &o->model, e);
	xfree(path);
	o->name = xasprintf("%s:%" PRIu64 "%s", in->name, o->step, average ? "@ema" : "");
	return rc;
}

/* ---- kept from job to job */

static int add_file(struct buf *key, const char *path, struct err *e)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return err_errno(e, "%s", path);
	buf_printf(key, " %s %llu:%llu %lld %lld.%09ld", path, (unsigned long long)st.st_dev,
		   (unsigned long long)st.st_ino, (long long)st.st_size,
		   (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
	return 0;
}

static int add_model(struct buf *key, const Tf__Input *in, struct err *e)
{
	bool average = in->has_ema && in->ema;
	char name[CHECKPOINT_NAME_MAX], *path;
	uint64_t step;
	int rc;

	TRY(checkpoints_find(in->path, in->step, &step, e));
	checkpoint_name(step, name);
	path = job_path(in->path, "%s/%s", name, average ? CHECKPOINT_AVERAGE : CHECKPOINT_WEIGHTS);
	buf_printf(key, "%s%s", in->name, average ? "@ema" : "");
	rc = add_file(key, path, e);
	xfree(path);
	return rc;
}

static int add_part(struct buf *key, const Tf__Input *in, bool vae, struct err *e)
{
	char *path = NULL;
	int rc = 0;

	if (!in)
		return 0;
	if (vae)
		rc = vae_path(in, &path, e);
	else
		path = job_path(in->path, SPM_FILE);
	buf_printf(key, "\n%s %s", in->name, in->hash ? in->hash : "");
	if (rc == 0)
		rc = add_file(key, path, e);
	xfree(path);
	return rc;
}

int opened_key(const struct job *job, int64_t B, char **out, struct err *e)
{
	struct buf key = BUF_INIT;
	const Tf__Input *in = NULL;
	int rc = job_need_input(job, "model", &in, e);

	buf_printf(&key, "%s %d %" PRId64 "\n", job->device, job->threads, B);
	if (rc == 0)
		rc = add_model(&key, in, e);
	if (rc == 0)
		rc = add_part(&key, job_input(job, "tokenizer", 0), false, e);
	if (rc == 0)
		rc = add_part(&key, job_input(job, "vae", 0), true, e);
	*out = rc == 0 ? buf_detach(&key) : NULL;
	buf_release(&key);
	return rc;
}

void opened_leave(struct opened *o, struct job *job)
{
	if (job->kept && o->key)
		kept_put(job->kept, o);
	else
		opened_release(o);
}

static int open_all(struct opened *o, struct job *job, int64_t B, struct err *e)
{
	const Tf__Input *in = NULL;

	TRY(job_need_input(job, "model", &in, e));
	TRY(open_model(o, job, in, B, e));
	return open_parts(o, job, e);
}

int opened_init(struct opened *o, struct job *job, int64_t B, struct err *e)
{
	char *key = NULL;
	int rc;

	memset(o, 0, sizeof *o);
	TRY(job_kernels(job, e));
	if (job->kept)
		TRY(opened_key(job, B, &key, e));
	if (key && kept_take(job->kept, key, o)) {
		log_info("model=%s, kept from the job before", o->name);
		xfree(key);
		return 0;
	}
	rc = open_all(o, job, B, e);
	o->key = key;
	if (rc < 0)
		opened_release(o);
	else
		log_info("model=%s", o->name);
	return rc;
}

void opened_release(struct opened *o)
{
	sampler_free(o->sampler); /* it borrows the model */
	if (o->vae)
		vae_free(o->vae);
	if (o->spm)
		spm_close(o->spm);
	if (o->model.k)
		transformer_release(&o->model);
	train_experiment_release(&o->x);
	model_facts_release(&o->facts);
	xfree(o->name);
	xfree(o->key);
	memset(o, 0, sizeof *o);
}
