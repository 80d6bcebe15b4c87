/* SPDX-License-Identifier: Apache-2.0
 * What a training run learns from: tokenizer, datasets, loaders; see train.h. */
#include "config.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "worker/opened.h"
#include "worker/train.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* All datasets with pictures have the first one's latents; loader_new checks it again by hash. */
static void take_facts(struct model_facts *f, const struct dataset_info *info)
{
	if (info->channels == 0 || f->latent_channels)
		return;
	f->latent_height = info->rows;
	f->latent_width = info->columns;
	f->latent_channels = info->channels;
	snprintf(f->vae, sizeof f->vae, "%s", info->vae);
}

static int open_dataset(struct training *t, int number, struct err *e)
{
	const Tf__Input *in = job_input(t->job, "data", (size_t)number);
	const struct dataset_info *info;

	FAIL_IF(!in || !in->path, e, TF_EINVALID,
		"dataset '%s' of the experiment is no input of the job", t->x.data[number].name);
	TRY(dataset_open(in->path, &t->data[number], e));
	t->sources = number + 1;
	info = dataset_info(t->data[number]);
	FAIL_IF(in->hash && *in->hash && strcmp(in->hash, info->hash) != 0, e, TF_EMISMATCH,
		"dataset '%s' has the hash %s, expected %s", in->name, info->hash, in->hash);
	FAIL_IF(!*info->tokenizer, e, TF_EINVALID,
		"dataset '%s' was imported without a tokenizer: import it again with --tokenizer",
		in->name);
	FAIL_IF(strcmp(info->tokenizer, spm_hash(t->spm)) != 0, e, TF_EMISMATCH,
		"dataset '%s' was made with another tokenizer", in->name);
	FAIL_IF(info->height && !info->channels, e, TF_EINVALID,
		"dataset '%s' has pictures without latents: import it again with --vae", in->name);
	take_facts(&t->facts, info);
	log_info("data=%s samples=%" PRIu64 " heldout=%" PRIu64 " tokens=%" PRIu64, in->name,
		 info->samples[DATASET_TRAIN], info->samples[DATASET_HELDOUT],
		 info->tokens[DATASET_TRAIN]);
	return 0;
}

int train_open_data(struct training *t, struct err *e)
{
	TRY(opened_tokenizer(t->job, &t->spm, e));
	t->facts.pieces = spm_pieces(t->spm);
	t->facts.bos = spm_bos(t->spm);
	t->facts.eos = spm_eos(t->spm);
	snprintf(t->facts.tokenizer, sizeof t->facts.tokenizer, "%s", spm_hash(t->spm));
	for (int i = 0; i < t->x.data_count; i++)
		TRY(open_dataset(t, i, e));
	return 0;
}

static struct loader_options options_of(const struct training *t, enum dataset_split split)
{
	return (struct loader_options) {
		.seed = (uint64_t)t->x.train.seed,
		.split = split,
		.caption_first = t->x.images.caption_first,
		.caption_dropout = t->x.images.caption_dropout,
		.noise_limit = (int)t->x.images.noise_limit,
		.once = split == DATASET_HELDOUT,
	};
}

int train_open_loaders(struct training *t, struct err *e)
{
	struct loader_source all[EXPERIMENT_SOURCES_MAX] = { { 0 } };
	struct loader_source held[EXPERIMENT_SOURCES_MAX] = { { 0 } };
	struct loader_options train = options_of(t, DATASET_TRAIN);
	struct loader_options heldout = options_of(t, DATASET_HELDOUT);
	int n = 0;

	for (int i = 0; i < t->sources; i++) {
		all[i] = (struct loader_source) { t->data[i], t->x.data[i].weight };
		if (dataset_info(t->data[i])->samples[DATASET_HELDOUT] > 0)
			held[n++] = all[i];
	}
	TRY(loader_new(&t->dims, all, t->sources, &train, &t->loader, e));
	if (n == 0 || t->x.eval.every == 0)
		return 0;
	return loader_new(&t->dims, held, n, &heldout, &t->heldout, e);
}

void train_close_data(struct training *t)
{
	if (t->heldout)
		loader_free(t->heldout);
	if (t->loader)
		loader_free(t->loader);
	for (int i = 0; i < t->sources; i++)
		dataset_close(t->data[i]);
	if (t->spm)
		spm_close(t->spm);
}
