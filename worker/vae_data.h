/* SPDX-License-Identifier: Apache-2.0
 * Pictures for training an autoencoder: the pixels of the job's datasets. Which picture is the
 * n-th is a function of the seed and n: each pass over a dataset is a keyed permutation, and the
 * next picture comes from the dataset with the least pictures / weight. */
#ifndef WORKER_VAE_DATA_H
#define WORKER_VAE_DATA_H

#include "proto/experiment.h"
#include "store/dataset.h"
#include "worker/worker.h"

struct vae_data;

/* Opens the job's inputs "data". All must keep pixels, square and of one size: TF_EINVALID,
 * TF_EMISMATCH. */
int vae_data_open(struct job *job, const struct vae_experiment *x, struct vae_data **out,
		  struct err *e);
void vae_data_close(struct vae_data *d);
int vae_data_size(const struct vae_data *d);         /* side of the pictures */
size_t vae_data_bytes(const struct vae_data *d);     /* of one picture, [size,size,3] */
uint64_t vae_data_count(const struct vae_data *d, enum dataset_split split);

/* Picture i of a split, over all datasets in their order. */
int vae_data_get(struct vae_data *d, enum dataset_split split, uint64_t i, uint8_t *out,
		 struct err *e);
/* The next n training pictures, mirrored by chance where the experiment says so. */
int vae_data_next(struct vae_data *d, uint64_t n, uint8_t *out, struct err *e);
/* Goes on as if n pictures had been taken. */
void vae_data_skip(struct vae_data *d, uint64_t n);

#endif
