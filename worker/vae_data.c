/* SPDX-License-Identifier: Apache-2.0
 * Pictures for training an autoencoder; see vae_data.h. Belongs to the thread that trains. */
#include "config.h"
#include "lib/mem.h"
#include "lib/philox.h"
#include "worker/vae_data.h"

#include <inttypes.h>
#include <string.h>

struct source {
	struct dataset *data;
	double weight;
	uint64_t count[DATASET_SPLITS];
	uint64_t taken;
};

struct vae_data {
	struct source source[EXPERIMENT_SOURCES_MAX];
	int sources;
	int size;
	uint64_t seed, taken;
	bool flip;
};

static int check_pictures(struct vae_data *d, const char *name, const struct dataset_info *info,
			  struct err *e)
{
	FAIL_IF(!info->pixels, e, TF_EINVALID,
		"dataset '%s' keeps no pixels: import its pictures without an autoencoder", name);
	FAIL_IF(info->height != info->width, e, TF_EINVALID,
		"dataset '%s' has pictures of %d x %d, expected squares", name, info->width,
		info->height);
	FAIL_IF(d->size && d->size != info->height, e, TF_EMISMATCH,
		"dataset '%s' has pictures of side %d, the ones before it %d", name, info->height,
		d->size);
	d->size = info->height;
	return 0;
}

static int open_source(struct vae_data *d, const struct job *job, double weight, struct err *e)
{
	const Tf__Input *in = job_input(job, "data", (size_t)d->sources);
	struct source *s = &d->source[d->sources];
	const struct dataset_info *info;

	FAIL_IF(!in || !in->path, e, TF_EINVALID, "the job has no dataset number %d",
		d->sources + 1);
	TRY(dataset_open(in->path, &s->data, e));
	d->sources++;
	info = dataset_info(s->data);
	s->weight = weight;
	for (int split = 0; split < DATASET_SPLITS; split++)
		s->count[split] = info->samples[split];
	FAIL_IF(s->count[DATASET_TRAIN] == 0, e, TF_EINVALID,
		"dataset '%s' has no pictures to train on", in->name);
	return check_pictures(d, in->name, info, e);
}

int vae_data_open(struct job *job, const struct vae_experiment *x, struct vae_data **out,
		  struct err *e)
{
	struct vae_data *d = xcalloc(1, sizeof *d);
	int rc = 0;

	d->seed = (uint64_t)x->train.seed;
	d->flip = x->train.flip;
	for (int i = 0; i < x->data_count && rc == 0; i++)
		rc = open_source(d, job, x->data[i].weight, e);
	if (rc == 0 && d->sources == 0)
		rc = err_set(e, TF_EINVALID, "the experiment names no dataset (data: [NAME])");
	if (rc < 0) {
		vae_data_close(d);
		return rc;
	}
	*out = d;
	return 0;
}

void vae_data_close(struct vae_data *d)
{
	if (!d)
		return;
	for (int i = 0; i < d->sources; i++)
		dataset_close(d->source[i].data);
	xfree(d);
}

int vae_data_size(const struct vae_data *d)
{
	return d->size;
}

size_t vae_data_bytes(const struct vae_data *d)
{
	return (size_t)d->size * (size_t)d->size * 3;
}

uint64_t vae_data_count(const struct vae_data *d, enum dataset_split split)
{
	uint64_t n = 0;

	for (int i = 0; i < d->sources; i++)
		n += d->source[i].count[split];
	return n;
}

static int get(struct vae_data *d, struct source *s, enum dataset_split split, uint64_t i,
	       uint8_t *out, struct err *e)
{
	struct sample sample;

	TRY(dataset_get(s->data, split, i, &sample, e));
	FAIL_IF(!sample.pixels || sample.height != d->size || sample.width != d->size, e,
		TF_ECORRUPT, "sample '%s' has no pixels of %d x %d", sample.name, d->size,
		d->size);
	memcpy(out, sample.pixels, vae_data_bytes(d));
	return 0;
}

int vae_data_get(struct vae_data *d, enum dataset_split split, uint64_t i, uint8_t *out,
		 struct err *e)
{
	for (int k = 0; k < d->sources; k++) {
		struct source *s = &d->source[k];

		if (i < s->count[split])
			return get(d, s, split, i, out, e);
		i -= s->count[split];
	}
	return err_set(e, TF_EINVALID, "no picture %" PRIu64 " more in the %s split", i,
		       dataset_split_name(split));
}

/* The dataset with the least pictures taken / weight; the first of equals. */
static struct source *choose(struct vae_data *d)
{
	struct source *best = &d->source[0];

	for (int i = 1; i < d->sources; i++)
		if ((double)d->source[i].taken * best->weight <
		    (double)best->taken * d->source[i].weight)
			best = &d->source[i];
	return best;
}

static void mirror(uint8_t *picture, int size)
{
	for (int row = 0; row < size; row++, picture += 3 * size)
		for (int left = 0, right = size - 1; left < right; left++, right--) {
			uint8_t pixel[3];

			memcpy(pixel, picture + 3 * left, 3);
			memcpy(picture + 3 * left, picture + 3 * right, 3);
			memcpy(picture + 3 * right, pixel, 3);
		}
}

int vae_data_next(struct vae_data *d, uint64_t n, uint8_t *out, struct err *e)
{
	for (uint64_t i = 0; i < n; i++, out += vae_data_bytes(d)) {
		struct source *s = choose(d);
		uint64_t count = s->count[DATASET_TRAIN];
		uint64_t at = philox_permute(d->seed, s->taken / count, s->taken % count, count);

		TRY(get(d, s, DATASET_TRAIN, at, out, e));
		if (d->flip && philox_uniform(d->seed, PHILOX_LAYOUT, d->taken, 0) < 0.5f)
			mirror(out, d->size);
		s->taken++;
		d->taken++;
	}
	return 0;
}

void vae_data_skip(struct vae_data *d, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		choose(d)->taken++;
	d->taken += n;
}
