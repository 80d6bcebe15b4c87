/* SPDX-License-Identifier: Apache-2.0
 * Saving and loading a VAE's training; see vae_train.h. */
#include "config.h"
#include "model/vae_net.h"
#include "model/vae_train_plan.h"
#include "lib/mem.h"

#include <string.h>

#define FORMAT "transfused vae training 1"

/* What a copy consists of: the VAE's parameters, which have a file of their own, then the arrays of
 * the state's file. */
static const struct {
	bool judge; /* the discriminator's */
	enum params_array which;
	const char *prefix;
} source[] = {
	{ false, PARAMS_MASTER, "" },
	{ false, PARAMS_M, "m." }, { false, PARAMS_V, "v." },
	{ true, PARAMS_MASTER, "" }, { true, PARAMS_M, "m." }, { true, PARAMS_V, "v." },
};
#define ARRAYS ((int)ARRAY_LEN(source))
_Static_assert(ARRAY_LEN(source) == VAE_COPY_FETCHES, "a fetch for each array");

struct vae_copy {
	const struct vae_train *t;
	char *memory;                /* of host_alloc */
	char *array[ARRAY_LEN(source)];
	struct fetch fetch[ARRAY_LEN(source)];
	bool under_way;              /* fetches have begun and not ended */
	int64_t step, updates, judge_updates;
	uint64_t skipped;
	char *choices;               /* see kernels_choices */
};

/* ---- copying */

static struct params *params_of(struct vae_train *t, int a)
{
	return source[a].judge ? &t->judge : t->params;
}

static int arrays_of(const struct vae_train *t)
{
	return t->judge_tape ? ARRAYS : ARRAYS - 3;
}

int vae_copy_new(struct vae_train *t, struct vae_copy **out, struct err *e)
{
	size_t at[ARRAY_LEN(source) + 1] = { 0 };
	struct vae_copy *c;
	char *memory;

	for (int a = 0; a < arrays_of(t); a++)
		at[a + 1] = at[a] + params_bytes(params_of(t, a), source[a].which);
	memory = t->k->ops->host_alloc(t->k, at[arrays_of(t)]);
	FAIL_IF(!memory, e, TF_ENOMEM, "no memory of the host for checkpoints: %zu MiB",
		at[arrays_of(t)] >> 20);
	c = xcalloc(1, sizeof *c);
	c->t = t;
	c->memory = memory;
	for (int a = 0; a < arrays_of(t); a++)
		c->array[a] = memory + at[a];
	*out = c;
	return 0;
}

static void await(struct vae_copy *c)
{
	for (int a = 0; a < arrays_of(c->t) && c->under_way; a++)
		c->t->k->ops->fetch_end(c->t->k, &c->fetch[a]);
	c->under_way = false;
}

void vae_copy_free(struct vae_copy *c)
{
	if (!c)
		return;
	await(c);
	c->t->k->ops->host_release(c->t->k, c->memory);
	xfree(c->choices);
	xfree(c);
}

void vae_copy_take(struct vae_copy *c, struct vae_train *t, uint64_t skipped)
{
	CHECK(c->t == t && !c->under_way);
	xfree(c->choices);
	c->choices = kernels_choices(t->k);
	c->step = t->step;
	c->skipped = skipped;
	c->updates = t->params->step - t->params->left_out;
	c->judge_updates = t->judge.step - t->judge.left_out;
	for (int a = 0; a < arrays_of(t); a++)
		params_fetch_begin(params_of(t, a), source[a].which, &c->fetch[a], c->array[a]);
	c->under_way = true;
}

/* ---- writing */

int vae_copy_write(struct vae_copy *c, const char *vae_path, const char *path, struct err *e)
{
	const struct vae_train *t = c->t;
	struct st_writer w;
	int rc;

	await(c);
	TRY(vae_write(t->vae, c->array[0], vae_path, e));
	st_writer_init(&w);
	st_writer_meta(&w, "format", FORMAT);
	st_writer_meta(&w, "choices", c->choices);
	st_writer_count(&w, "step", (uint64_t)c->step);
	st_writer_count(&w, "skipped", c->skipped);
	st_writer_count(&w, "updates", (uint64_t)c->updates);
	st_writer_count(&w, "judge_updates", (uint64_t)c->judge_updates);
	for (int a = 1; a < arrays_of(t); a++)
		params_declare(source[a].judge ? &t->judge : t->params, source[a].which,
			       source[a].prefix, c->array[a], &w);
	rc = st_writer_save(&w, path, e);
	st_writer_release(&w);
	return rc;
}

/* ---- reading */

static int read_state(struct vae_train *t, const struct st_file *f, const char *path,
		      uint64_t *skipped, struct err *e)
{
	const char *format = st_meta(f, "format");
	uint64_t step, updates, judge_updates;

	FAIL_IF(!format || strcmp(format, FORMAT), e, TF_EVERSION,
		"%s: metadata format is \"%.40s\", expected \"%s\"", path, format ? format : "",
		FORMAT);
	TRY(st_meta_count(f, path, "step", INT64_MAX, &step, e));
	TRY(st_meta_count(f, path, "skipped", INT64_MAX, skipped, e));
	TRY(st_meta_count(f, path, "updates", INT64_MAX, &updates, e));
	TRY(st_meta_count(f, path, "judge_updates", INT64_MAX, &judge_updates, e));
	for (int a = 1; a < arrays_of(t); a++)
		TRY(params_read(params_of(t, a), source[a].which, source[a].prefix, f, path, e));
	t->step = (int64_t)step;
	t->params->step = (int64_t)updates;
	t->judge.step = (int64_t)judge_updates;
	return 0;
}

int vae_train_load(struct vae_train *t, const char *path, uint64_t *skipped, struct err *e)
{
	struct st_file f;
	int rc;

	TRY(st_open(path, &f, e));
	rc = read_state(t, &f, path, skipped, e);
	if (rc == 0)
		kernels_choose_again(t->k, st_meta(&f, "choices"));
	st_close(&f);
	return rc;
}
