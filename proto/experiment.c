/* SPDX-License-Identifier: Apache-2.0
 * Reading, checking and resolving experiment files; see experiment.h. The tables say what single
 * settings may be; what settings must be together is checked here. No state. */
#include "config.h"
#include "proto/experiment.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define VAE_PRESET_PREFIX "vae-"

#define SECTION(section)
#define END(section)
#define F(section, name, type, fallback, least, most, choices, help)                              \
	{ #section "." #name,                                                                     \
	  YAML_##type,                                                                            \
	  offsetof(struct EXPERIMENT, section.name),                                              \
	  fallback,                                                                               \
	  least,                                                                                  \
	  most,                                                                                   \
	  choices,                                                                                \
	  help },

struct train_file { /* train_experiment as the table fills it */
	struct train_experiment x;
	struct yaml_node *data;
};
struct vae_file {
	struct vae_experiment x;
	struct yaml_node *data;
};

#define DATA_FIELD(file)                                                                          \
	{                                                                                         \
		"data", YAML_NODE, offsetof(struct file, data), "[]", 0, 0, NULL,                 \
			"datasets: a list of {name: NAME, weight: WEIGHT}"                        \
	}

#define EXPERIMENT train_experiment
static const struct yaml_field train_table[] = {
#include "proto/experiment_train.def"
	DATA_FIELD(train_file),
};
#undef EXPERIMENT
#define EXPERIMENT vae_experiment
static const struct yaml_field vae_table[] = {
#include "proto/experiment_vae.def"
	DATA_FIELD(vae_file),
};
#undef EXPERIMENT
#undef SECTION
#undef END
#undef F

_Static_assert(offsetof(struct train_file, x) == 0 && offsetof(struct vae_file, x) == 0,
	       "the tables' offsets hold for the whole file");

/* ---- presets */

static const struct experiment_preset *find_preset(const char *name)
{
	for (const struct experiment_preset *p = experiment_presets; p->name; p++)
		if (strcmp(p->name, name) == 0)
			return p;
	return NULL;
}

static int unknown_preset(const struct yaml *y, const struct yaml_node *n, struct err *e)
{
	struct buf known = BUF_INIT;
	int rc;

	for (const struct experiment_preset *p = experiment_presets; p->name; p++)
		buf_printf(&known, "%s%s", known.len ? ", " : "", p->name);
	rc = yaml_error(y, n, "preset", e, "found '%.60s', expected one of %s", n->text,
			known.data);
	buf_release(&known);
	return rc;
}

static void detach(struct yaml_node *map, const struct yaml_node *entry, struct yaml *into)
{
	struct yaml_node **at = &map->child;

	while (*at != entry)
		at = &(*at)->next;
	into->root = *at;
	*at = (*at)->next;
	into->root->next = NULL;
}

/* Takes `preset:` out of the tree and its settings in. */
static int inherit_preset(struct yaml *y, enum experiment_kind kind, struct err *e)
{
	struct yaml_node *n = yaml_get(y->root, "preset");
	const struct experiment_preset *preset;
	struct yaml base = { 0 }, name = { 0 };
	bool for_vae;

	if (!n)
		return 0;
	if (n->kind != YAML_SCALAR || yaml_is_null(n))
		return yaml_error(y, n, "preset", e, "expected the name of a preset");
	preset = find_preset(n->text);
	if (!preset)
		return unknown_preset(y, n, e);
	for_vae = strncmp(preset->name, VAE_PRESET_PREFIX, strlen(VAE_PRESET_PREFIX)) == 0;
	if (for_vae != (kind == EXPERIMENT_VAE))
		return yaml_error(y, n, "preset", e, "%s is a preset for %s", preset->name,
				  for_vae ? "autoencoders" : "training runs");
	TRY(yaml_parse(preset->name, preset->text, strlen(preset->text), &base, e));
	detach(y->root, n, &name);
	yaml_release(&name);
	yaml_inherit(y, &base);
	return 0;
}

/* The file with overrides and preset. On success *y is the caller's. */
static int load(enum experiment_kind kind, const char *file, const char *text, size_t len,
		const char *const *set, size_t n, struct yaml *y, struct err *e)
{
	int rc;

	FAIL_IF(len > LIMIT_EXPERIMENT_BYTES, e, TF_ELIMIT, "%s: %zu bytes, at most %u are read",
		file, len, LIMIT_EXPERIMENT_BYTES);
	TRY(yaml_parse(file, text, len, y, e));
	rc = 0;
	for (size_t i = 0; rc == 0 && i < n; i++)
		rc = yaml_set(y, set[i], e);
	if (rc == 0)
		rc = inherit_preset(y, kind, e);
	if (rc < 0)
		yaml_release(y);
	return rc;
}

/* ---- data */

static int read_source(const struct yaml *y, struct yaml_node *n, int index,
		       struct experiment_source *out, struct err *e)
{
	char path[64], weight[80];
	struct yaml_node *name = yaml_get(n, "name"), *share = yaml_get(n, "weight");

	snprintf(path, sizeof path, "data.%d", index);
	snprintf(weight, sizeof weight, "data.%d.weight", index);
	if (n->kind != YAML_MAP || !name)
		return yaml_error(y, n, path, e,
				  "expected a dataset, {name: NAME, weight: WEIGHT}");
	for (struct yaml_node *c = n->child; c; c = c->next)
		if (c != name && c != share)
			return yaml_error(y, c, path, e, "'%.60s': a dataset has name and weight",
					  c->key);
	if (name->kind != YAML_SCALAR || yaml_is_null(name) ||
	    strlen(name->text) > LIMIT_NAME_BYTES)
		return yaml_error(y, name, path, e, "expected a dataset's name of 1 to %u bytes",
				  LIMIT_NAME_BYTES);
	out->weight = 1;
	if (share)
		TRY(yaml_float(y, share, weight, 1e-6, 1e6, &out->weight, e));
	out->name = xstrdup(name->text);
	return 0;
}

static void release_sources(struct experiment_source *data, int count)
{
	for (int i = 0; i < count; i++)
		xfree(data[i].name);
	xfree(data);
}

static int read_sources(const struct yaml *y, struct yaml_node *list,
			struct experiment_source **out, int *count, struct err *e)
{
	int rc = 0;

	*out = NULL;
	*count = 0;
	if (!list || list->kind != YAML_LIST || !list->child)
		return yaml_error(y, list, "data", e,
				  "expected at least one dataset, as in `data: [{name: NAME}]`");
	for (struct yaml_node *n = list->child; rc == 0 && n; n = n->next) {
		struct experiment_source source = { 0 };

		if (*count == EXPERIMENT_SOURCES_MAX)
			rc = yaml_error(y, n, "data", e, "more than %d datasets",
					EXPERIMENT_SOURCES_MAX);
		else
			rc = read_source(y, n, *count, &source, e);
		for (int i = 0; rc == 0 && i < *count; i++)
			if (strcmp((*out)[i].name, source.name) == 0) {
				rc = yaml_error(y, n, "data", e, "%s is given twice", source.name);
				xfree(source.name);
			}
		if (rc < 0)
			break;
		*out = xrealloc(*out, (size_t)*count + 1, sizeof **out);
		(*out)[(*count)++] = source;
	}
	if (rc < 0) {
		release_sources(*out, *count);
		*out = NULL;
		*count = 0;
	}
	return rc;
}

/* ---- training runs */

static struct yaml_node *at(const struct yaml *y, const char *path)
{
	return yaml_find(y, path);
}

static int check_model(const struct train_experiment *x, struct err *e)
{
	const struct yaml *y = &x->tree;
	int64_t patch = x->model.patch;

	if (x->model.dim % x->model.heads)
		return yaml_error(y, at(y, "model.dim"), "model.dim", e,
				  "found %" PRId64 ", expected a multiple of heads (%" PRId64 ")",
				  x->model.dim, x->model.heads);
	if (x->model.dim / x->model.heads % 2)
		return yaml_error(y, at(y, "model.heads"), "model.heads", e,
				  "%" PRId64 " heads of a"
				  " width of %" PRId64 " have %" PRId64
				  " each, expected an even number",
				  x->model.heads, x->model.dim, x->model.dim / x->model.heads);
	if (patch & (patch - 1))
		return yaml_error(y, at(y, "model.patch"), "model.patch", e,
				  "found %" PRId64 ", expected 1, 2, 4 or 8", patch);
	return 0;
}

/* Rows of 8-bit products begin at multiples of 16 bytes. */
static int check_fp8(const struct train_experiment *x, struct err *e)
{
	const struct { const char *name; int64_t value; } size[] = {
		{ "model.dim", x->model.dim }, { "model.ff", x->model.ff },
		{ "train.sequence", x->train.sequence },
	};
	const struct yaml *y = &x->tree;

	if (x->train.fp8 == FP8_OFF)
		return 0;
	if (x->model.precision == PRECISION_F32)
		return yaml_error(y, at(y, "model.precision"), "model.precision", e,
				  "found f32, expected auto or bf16 with train.fp8: on");
	for (size_t i = 0; i < ARRAY_LEN(size); i++)
		if (size[i].value % 16)
			return yaml_error(y, at(y, size[i].name), size[i].name, e,
					  "found %" PRId64
					  ", expected a multiple of 16 with train.fp8: on",
					  size[i].value);
	return 0;
}

static int check_steps(const struct yaml *y, int64_t steps, int64_t warmup, int64_t batch,
		       int64_t micro_batch, double lr, double lr_end, struct err *e)
{
	if (warmup >= steps)
		return yaml_error(y, at(y, "train.warmup"), "train.warmup", e,
				  "found %" PRId64 ", expected fewer than steps (%" PRId64 ")",
				  warmup, steps);
	if (micro_batch && batch % micro_batch)
		return yaml_error(y, at(y, "train.micro_batch"), "train.micro_batch", e,
				  "found %" PRId64 ", expected a divisor of batch (%" PRId64 ")",
				  micro_batch, batch);
	if (lr_end > lr)
		return yaml_error(y, at(y, "train.lr_end"), "train.lr_end", e,
				  "found %g, expected at most lr (%g)", lr_end, lr);
	return 0;
}

static int read_prompts(struct train_experiment *x, struct err *e)
{
	const struct yaml *y = &x->tree;
	struct yaml_node *list = x->sample.prompts;

	if (!list)
		return 0;
	if (list->kind != YAML_LIST)
		return yaml_error(y, list, "sample.prompts", e, "expected a list of texts");
	for (struct yaml_node *n = list->child; n; n = n->next) {
		if (n->kind != YAML_SCALAR || yaml_is_null(n))
			return yaml_error(y, n, "sample.prompts", e, "expected a text");
		if (x->prompt_count == EXPERIMENT_PROMPTS_MAX)
			return yaml_error(y, n, "sample.prompts", e, "more than %d texts",
					  EXPERIMENT_PROMPTS_MAX);
		x->prompt = xrealloc(x->prompt, (size_t)x->prompt_count + 1, sizeof *x->prompt);
		x->prompt[x->prompt_count++] = xstrdup(n->text);
	}
	return 0;
}

/* Takes the tree. */
static int fill_train(struct yaml *tree, struct train_experiment *out, struct err *e)
{
	struct train_file file = { 0 };
	struct train_experiment *x = &file.x;
	int rc = yaml_fields_read(tree, train_table, ARRAY_LEN(train_table), &file, e);

	x->tree = *tree;
	if (rc == 0)
		rc = check_model(x, e);
	if (rc == 0)
		rc = check_fp8(x, e);
	if (rc == 0)
		rc = check_steps(&x->tree, x->train.steps, x->train.warmup, x->train.batch,
				 x->train.micro_batch, x->train.lr, x->train.lr_end, e);
	if (rc == 0)
		rc = read_prompts(x, e);
	if (rc == 0)
		rc = read_sources(&x->tree, file.data, &x->data, &x->data_count, e);
	if (rc < 0)
		train_experiment_release(x);
	else
		*out = *x;
	return rc;
}

int train_experiment_read(const char *file, const char *text, size_t len,
			  struct train_experiment *out, struct err *e)
{
	struct yaml tree = { 0 };

	TRY(load(EXPERIMENT_TRAIN, file, text, len, NULL, 0, &tree, e));
	return fill_train(&tree, out, e);
}

void train_experiment_release(struct train_experiment *x)
{
	for (int i = 0; i < x->prompt_count; i++)
		xfree(x->prompt[i]);
	xfree(x->prompt);
	release_sources(x->data, x->data_count);
	yaml_release(&x->tree);
	memset(x, 0, sizeof *x);
}

int train_experiment_fits(const struct train_experiment *x, const struct experiment_facts *facts,
			  struct err *e)
{
	const struct yaml *y = &x->tree;
	int64_t patch = x->model.patch, positions;

	if (!facts->latent_height)
		return 0;
	if (facts->latent_height % patch || facts->latent_width % patch)
		return yaml_error(y, at(y, "model.patch"), "model.patch", e,
				  "found %" PRId64 ", expected a divisor of the latents' %" PRId64
				  " x %" PRId64 " pixels",
				  patch, facts->latent_height, facts->latent_width);
	/* BOS BOI picture EOI EOS */
	positions = facts->latent_height / patch * (facts->latent_width / patch) + 4;
	if (positions > x->train.sequence)
		return yaml_error(y, at(y, "train.sequence"), "train.sequence", e,
				  "found %" PRId64 ", a picture with its marks takes %" PRId64
				  " positions",
				  x->train.sequence, positions);
	return 0;
}

/* ---- autoencoders */

static int check_channels(const struct vae_experiment *x, struct err *e)
{
	const struct yaml *y = &x->tree;
	const struct yaml_ints *channels = &x->model.channels;
	int64_t factor = x->model.downsample;

	if (factor != 4 && factor != 8 && factor != 16)
		return yaml_error(y, at(y, "model.downsample"), "model.downsample", e,
				  "found %" PRId64 ", expected 4, 8 or 16", factor);
	if (factor != (int64_t)1 << channels->count)
		return yaml_error(y, at(y, "model.channels"), "model.channels", e,
				  "%d levels make "
				  "latents %d times smaller, downsample says %" PRId64,
				  channels->count, 1 << channels->count, factor);
	for (int i = 0; i < channels->count; i++)
		if (channels->value[i] % x->model.groups)
			return yaml_error(y, at(y, "model.channels"), "model.channels", e,
					  "found %" PRId64
					  ", expected multiples of groups (%" PRId64 ")",
					  channels->value[i], x->model.groups);
	return 0;
}

static int fill_vae(struct yaml *tree, struct vae_experiment *out, struct err *e)
{
	struct vae_file file = { 0 };
	struct vae_experiment *x = &file.x;
	int rc = yaml_fields_read(tree, vae_table, ARRAY_LEN(vae_table), &file, e);

	x->tree = *tree;
	if (rc == 0)
		rc = check_channels(x, e);
	if (rc == 0)
		rc = check_steps(&x->tree, x->train.steps, x->train.warmup, x->train.batch,
				 x->train.micro_batch, x->train.lr, x->train.lr_end, e);
	if (rc == 0)
		rc = read_sources(&x->tree, file.data, &x->data, &x->data_count, e);
	if (rc < 0)
		vae_experiment_release(x);
	else
		*out = *x;
	return rc;
}

int vae_experiment_read(const char *file, const char *text, size_t len, struct vae_experiment *out,
			struct err *e)
{
	struct yaml tree = { 0 };

	TRY(load(EXPERIMENT_VAE, file, text, len, NULL, 0, &tree, e));
	return fill_vae(&tree, out, e);
}

void vae_experiment_release(struct vae_experiment *x)
{
	release_sources(x->data, x->data_count);
	yaml_release(&x->tree);
	memset(x, 0, sizeof *x);
}

/* ---- both */

int experiment_resolve(enum experiment_kind kind, const char *file, const char *text, size_t len,
		       const char *const *set, size_t n, struct buf *out, struct err *e)
{
	struct yaml tree = { 0 };

	TRY(load(kind, file, text, len, set, n, &tree, e));
	if (kind == EXPERIMENT_TRAIN) {
		struct train_file x = { 0 };

		TRY(fill_train(&tree, &x.x, e));
		x.data = yaml_get(x.x.tree.root, "data");
		yaml_fields_write(train_table, ARRAY_LEN(train_table), &x, out);
		train_experiment_release(&x.x);
	} else {
		struct vae_file x = { 0 };

		TRY(fill_vae(&tree, &x.x, e));
		x.data = yaml_get(x.x.tree.root, "data");
		yaml_fields_write(vae_table, ARRAY_LEN(vae_table), &x, out);
		vae_experiment_release(&x.x);
	}
	return 0;
}

int experiment_detect(const char *file, const char *text, size_t len, enum experiment_kind *out,
		      bool *names_data, struct err *e)
{
	struct yaml y = { 0 };
	struct yaml_node *model, *preset;

	TRY(yaml_parse(file, text, len, &y, e));
	model = yaml_get(y.root, "model");
	preset = yaml_get(y.root, "preset");
	*out = EXPERIMENT_TRAIN;
	if (yaml_get(y.root, "loss") || (model && yaml_get(model, "channels")) ||
	    (preset && preset->text &&
	     strncmp(preset->text, VAE_PRESET_PREFIX, strlen(VAE_PRESET_PREFIX)) == 0))
		*out = EXPERIMENT_VAE;
	*names_data = yaml_get(y.root, "data") != NULL;
	yaml_release(&y);
	return 0;
}

static void describe_range(const struct yaml_field *f, struct buf *out)
{
	switch (f->type) {
	case YAML_INT:
	case YAML_FLOAT:
	case YAML_INTS:
		buf_printf(out, "%s%.15g to %.15g", f->type == YAML_INTS ? "list of " : "",
			   f->least, f->most);
		break;
	case YAML_BOOL: buf_text(out, "true, false"); break;
	case YAML_ENUM:
		for (const char *p = f->choices; *p; p++)
			buf_append(out, *p == '|' ? ", " : p, *p == '|' ? 2 : 1);
		break;
	default: buf_text(out, "list");
	}
}

void experiment_describe(enum experiment_kind kind, struct buf *out)
{
	const struct yaml_field *table = kind == EXPERIMENT_TRAIN ? train_table : vae_table;
	size_t count = kind == EXPERIMENT_TRAIN ? ARRAY_LEN(train_table) : ARRAY_LEN(vae_table);

	for (size_t i = 0; i < count; i++) {
		buf_printf(out, "%s: %s\n    ", table[i].name, table[i].help);
		describe_range(&table[i], out);
		buf_printf(out, "; %s%s\n", table[i].fallback ? "default " : "must be given",
			   table[i].fallback ? table[i].fallback : "");
	}
}
