/* SPDX-License-Identifier: Apache-2.0
 * Experiment files: what a training run or an autoencoder is made with, as YAML. A file may begin
 * with `preset: NAME` (a file of etc/, built in): its settings are taken where the file says
 * nothing. The tables experiment_train.def and experiment_vae.def give every setting with range,
 * default and help. The client checks a file with its line numbers and sends the text; the daemon
 * checks again; the worker reads it. */
#ifndef PROTO_EXPERIMENT_H
#define PROTO_EXPERIMENT_H

#include "lib/buf.h"
#include "lib/err.h"
#include "lib/yaml.h"

#include <stdbool.h>
#include <stdint.h>

#define EXPERIMENT_SOURCES_MAX 256
#define EXPERIMENT_PROMPTS_MAX 256

enum experiment_kind { EXPERIMENT_TRAIN, EXPERIMENT_VAE };

/* The words of ENUM settings, in the order of the tables. */
enum experiment_attention { ATTENTION_IMAGE, ATTENTION_CAUSAL };
enum experiment_positions { POSITIONS_DOCUMENT, POSITIONS_SEQUENCE };
enum experiment_time { TIME_PATCH, TIME_MODEL };
enum experiment_precision { PRECISION_AUTO, PRECISION_F32, PRECISION_BF16 };
enum experiment_nan { NAN_STOP, NAN_SKIP };
enum experiment_recompute { RECOMPUTE_AUTO, RECOMPUTE_ON, RECOMPUTE_OFF };
enum experiment_fp8 { FP8_OFF, FP8_ON };
enum experiment_moments { MOMENTS_F32, MOMENTS_BF16 };
enum experiment_rounding { ROUNDING_NEAREST, ROUNDING_STOCHASTIC };
enum experiment_sampler { SAMPLER_DDPM, SAMPLER_DDIM };

#define EXPERIMENT_C_INT int64_t
#define EXPERIMENT_C_FLOAT double
#define EXPERIMENT_C_BOOL bool
#define EXPERIMENT_C_TEXT char *
#define EXPERIMENT_C_ENUM int
#define EXPERIMENT_C_INTS struct yaml_ints
#define EXPERIMENT_C_NODE struct yaml_node *
#define SECTION(section) struct {
#define F(section, name, type, fallback, least, most, choices, help) EXPERIMENT_C_##type name;
#define END(section)                                                                              \
	}                                                                                         \
	section;

/* An entry of `data:`, a list of {name: DATASET, weight: W}; weight defaults to 1. */
struct experiment_source {
	char *name;
	double weight;
};

struct train_experiment { /* x.model.layers, x.train.lr, x.images.noise_limit ... */
#include "proto/experiment_train.def"
	struct experiment_source *data;
	int data_count;
	char **prompt; /* sample.prompts */
	int prompt_count;
	struct yaml tree; /* the file as it was read, preset included */
};

struct vae_experiment {
#include "proto/experiment_vae.def"
	struct experiment_source *data;
	int data_count;
	struct yaml tree;
};

#undef SECTION
#undef F
#undef END

/* Read and check text (len bytes) of a file called `file` in messages. On success the caller
 * releases *out; on failure nothing is owned. Every mistake names file, line, field, value and
 * expectation. */
int train_experiment_read(const char *file, const char *text, size_t len,
			  struct train_experiment *out, struct err *e);
void train_experiment_release(struct train_experiment *x);
int vae_experiment_read(const char *file, const char *text, size_t len, struct vae_experiment *out,
			struct err *e);
void vae_experiment_release(struct vae_experiment *x);

/* What a run of `kind` with this file and these "a.b=c" overrides (n of them) is made with: the
 * preset filled in, overrides applied, everything checked, as YAML that stands for itself.
 * Appended to *out. */
int experiment_resolve(enum experiment_kind kind, const char *file, const char *text, size_t len,
		       const char *const *set, size_t n, struct buf *out, struct err *e);
/* Whether the text has the sections of an autoencoder (`model.channels` or `loss`) or of a
 * training run. A preset names no data. */
int experiment_detect(const char *file, const char *text, size_t len, enum experiment_kind *out,
		      bool *names_data, struct err *e);

/* What is known of the data when a training run is submitted (dry run, worker). Latent dims 0: no
 * pictures among the data. */
struct experiment_facts {
	int64_t pieces; /* V0: pieces of the tokenizer */
	int64_t latent_height, latent_width, latent_channels;
};
/* Patch divides the latent, a picture with its marks fits into a sequence. */
int train_experiment_fits(const struct train_experiment *x, const struct experiment_facts *facts,
			  struct err *e);

/* The presets built in, in order; NULL beyond the last. text is the whole file. */
struct experiment_preset {
	const char *name;
	const char *text;
};
extern const struct experiment_preset experiment_presets[];

/* Every setting with type, range, default and help, as text for people (`transfuse check
 * --settings`). */
void experiment_describe(enum experiment_kind kind, struct buf *out);

#endif
