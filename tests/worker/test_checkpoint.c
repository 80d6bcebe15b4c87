/* SPDX-License-Identifier: Apache-2.0
 * Checkpoints: what is saved comes back to the bit, half-made ones are never seen, pruning keeps
 * what it should, damage is named. */
#include "tests/test.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/safetensors.h"
#include "model/vae_train.h"
#include "store/checkpoints.h"
#include "worker/checkpoint.h"
#include "worker/saver.h"
#include "worker/worker.h"
#include "tests/worker/same.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *folder;
static struct kernels *kernels;
static struct dims dims;

static struct model_facts facts = { .pieces = 300,
				    .bos = 1,
				    .eos = 2,
				    .latent_height = 4,
				    .latent_width = 4,
				    .latent_channels = 4,
				    .tokenizer = "0123456789abcdef0123456789abcdef",
				    .vae = "fedcba9876543210fedcba9876543210",
				    .experiment = "model:\n  layers: 1\n" };

static int set_up(void **state)
{
	const char *tmp = getenv("TMPDIR");
	struct err e = ERR_INIT;

	(void)state;
	folder = xasprintf("%s/test_checkpoint.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(folder) || kernels_open("ref", 1, &kernels, &e) < 0)
		return -1;
	dims = (struct dims) { .layers = 1,
			       .d = 16,
			       .H = 2,
			       .F = 32,
			       .patch = 2,
			       .h = 4,
			       .w = 4,
			       .c = 4,
			       .eps = 1e-5f,
			       .rope_base = 10000,
			       .act = DT_F32,
			       .positions_restart = true,
			       .B = 1,
			       .T = 32,
			       .row_multiple = 16 };
	dims.images = dims_images_most(&dims);
	return vocabulary_init(&dims.vocabulary, 300, 1, 2, &e);
}

static int tear_down(void **state)
{
	(void)state;
	kernels_close(kernels);
	dir_remove(folder, NULL);
	xfree(folder);
	return 0;
}

static void make_model(struct transformer *m, uint64_t seed)
{
	struct err e = ERR_INIT;

	assert_ok(transformer_init(m, kernels, &dims, dims.T, true, &e), &e);
	transformer_draw(m, seed);
	for (int64_t i = 0; i < m->params.total; i++) {
		((float *)m->params.m)[i] = (float)i * (float)seed;
		((float *)m->params.v)[i] = 1.0f / (float)(i + 1);
	}
	m->params.step = 17;
}

static char *inside(const char *name)
{
	return xasprintf("%s/%s", folder, name);
}

static void what_is_saved_comes_back(void **state)
{
	struct transformer a, b;
	struct checkpoint c = { .step = 20, .skipped = 1, .positions = 999, .images = 50 },
			  d = { 0 };
	struct model_facts read;
	struct err e = ERR_INIT;
	char *path = inside("step-00000020");
	size_t bytes;

	(void)state;
	make_model(&a, 3);
	make_model(&b, 4);
	bytes = (size_t)a.params.total * sizeof(float);
	c.model = &a;
	d.model = &b;
	c.average = xmemdup(a.params.m, bytes);
	d.average = xcalloc(1, bytes);
	buf_append(&c.loader, "some\0state", 10);
	assert_ok(checkpoint_save(folder, &c, &facts, 1.25, &e), &e);
	b.params.step = 0;
	assert_ok(checkpoint_resume(path, &d, &e), &e);
	assert_int_equal(d.step, 20);
	assert_int_equal(d.skipped, 1);
	assert_int_equal(d.positions, 999);
	assert_int_equal(d.images, 50);
	assert_int_equal(b.params.step, 17);
	assert_int_equal(d.loader.len, 10);
	assert_memory_equal(d.loader.data, "some\0state", 10);
	for (int i = 0; i < b.params.count; i++) {
		const struct param *p = &b.params.list[i];
		size_t n = (size_t)p->count * sizeof(float);

		assert_memory_equal(b.params.master + p->at, a.params.master + p->at, n);
		assert_memory_equal((float *)b.params.m + p->at, (float *)a.params.m + p->at, n);
		assert_memory_equal((float *)b.params.v + p->at, (float *)a.params.v + p->at, n);
		assert_memory_equal(d.average + p->at, c.average + p->at, n);
	}
	assert_ok(checkpoint_facts(path, &read, &e), &e);
	assert_int_equal(read.pieces, 300);
	assert_string_equal(read.vae, facts.vae);
	assert_string_equal(read.experiment, facts.experiment);
	model_facts_release(&read);
	assert_ok(checkpoint_weights(path, true, &b, &e), &e);
	assert_memory_equal(b.params.master, c.average, 16);
	buf_release(&c.loader);
	buf_release(&d.loader);
	xfree(c.average);
	xfree(d.average);
	xfree(path);
	transformer_release(&a);
	transformer_release(&b);
}

static void save_step(uint64_t step, double score)
{
	struct checkpoint c = { .step = step };
	struct transformer m;
	struct err e = ERR_INIT;

	make_model(&m, step);
	c.model = &m;
	assert_ok(checkpoint_save(folder, &c, &facts, score, &e), &e);
	transformer_release(&m);
}

static void names_find_steps(void **state)
{
	struct err e = ERR_INIT;
	uint64_t step = 0;
	char *half = inside("making-step-00000099");

	(void)state;
	save_step(30, 0.5);
	save_step(40, NAN);
	assert_ok(dir_make(half, 0755, &e), &e); /* what a killed save leaves */
	assert_ok(checkpoints_find(folder, "latest", &step, &e), &e);
	assert_int_equal(step, 40);
	assert_ok(checkpoints_find(folder, "best", &step, &e), &e);
	assert_int_equal(step, 30);
	assert_ok(checkpoints_find(folder, "20", &step, &e), &e);
	assert_int_equal(checkpoints_find(folder, "99", &step, &e), TF_ENOTFOUND);
	assert_string_equal(e.text, "no checkpoint of step 99: there are 3, of steps 20 to 40");
	err_clear(&e);
	assert_int_equal(checkpoints_find(folder, "last", &step, &e), TF_EINVALID);
	save_step(50, 0.75);
	assert_false(file_exists(half));
	xfree(half);
}

static void pruning_keeps_what_it_should(void **state)
{
	struct checkpoint_entry *entry = NULL;
	struct err e = ERR_INIT;
	size_t count = 0;

	(void)state;
	assert_ok(checkpoints_prune(folder, 1, 20, &e), &e);
	assert_ok(checkpoints_list(folder, &entry, &count, &e), &e);
	assert_int_equal(count, 4); /* 20 and 40 (every 20), 30 (best), 50 (last) */
	xfree(entry);
	assert_ok(checkpoints_prune(folder, 1, 0, &e), &e);
	assert_ok(checkpoints_list(folder, &entry, &count, &e), &e);
	assert_int_equal(count, 2);
	assert_int_equal(entry[0].step, 30);
	assert_int_equal(entry[1].step, 50);
	xfree(entry);
}

static void damage_is_named(void **state)
{
	char *path = inside("step-00000050"),
	     *weights = inside("step-00000050/weights.safetensors");
	struct checkpoint c = { 0 };
	struct model_facts read;
	struct transformer m;
	struct dims wider = dims;
	struct err e = ERR_INIT;

	(void)state;
	make_model(&m, 1);
	assert_int_equal(checkpoint_weights(path, true, &m, &e), TF_ENOTFOUND);
	assert_non_null(strstr(e.text, "no averaged weights"));
	transformer_release(&m);
	err_clear(&e);
	wider.F = 48;
	assert_ok(transformer_init(&m, kernels, &wider, 32, true, &e), &e);
	c.model = &m;
	assert_int_equal(checkpoint_resume(path, &c, &e), TF_EMISMATCH);
	assert_non_null(strstr(e.text, "state.safetensors: tensor 'm.blocks.0."));
	transformer_release(&m);
	assert_int_equal(truncate(weights, 1000), 0);
	err_clear(&e);
	assert_int_equal(checkpoint_facts(path, &read, &e), TF_ECORRUPT);
	assert_non_null(strstr(e.text, "weights.safetensors"));
	xfree(weights);
	xfree(path);
}

/* A folder that cannot be written: an error, and the checkpoints are as before. */
static void a_failed_save_changes_nothing(void **state)
{
	struct checkpoint c = { .step = 60 };
	struct transformer m;
	struct err e = ERR_INIT;
	uint64_t step;
	char *gone = inside("no/such/folder");

	(void)state;
	make_model(&m, 1);
	c.model = &m;
	assert_int_equal(checkpoint_save(gone, &c, &facts, NAN, &e), TF_ENOTFOUND);
	err_clear(&e);
	assert_ok(checkpoints_find(folder, "latest", &step, &e), &e);
	assert_int_equal(step, 50);
	transformer_release(&m);
	xfree(gone);
}

/* What the run does while its checkpoint is written does not get into it; a save that fails is told
 * and the next one does. */
static int write_copy(void *copy, uint64_t step, struct err *e)
{
	char *later = inside("later");
	int rc = checkpoint_copy_write(copy, later, &facts, e);

	(void)step;
	xfree(later);
	return rc;
}

static void the_run_goes_on_while_it_is_saved(void **state)
{
	struct checkpoint c = { .step = 70 };
	struct saver_options o = { inside("later"), 9, 0, write_copy, NULL };
	struct checkpoint_copy *copy = NULL;
	char *path = inside("later/step-00000080");
	struct transformer m, read;
	struct saver *s = NULL;
	struct err e = ERR_INIT;
	uint64_t step = 0;
	int64_t took;

	(void)state;
	make_model(&m, 1);
	make_model(&read, 2);
	c.model = &m;
	assert_ok(checkpoint_copy_new(&c, &copy, &e), &e);
	o.copy = copy;
	s = saver_new(&o);
	checkpoint_copy_take(copy, &c, NAN);
	saver_begin(s, c.step);
	assert_int_equal(saver_end(s, &step, &took, &e), TF_ENOTFOUND);
	assert_int_equal(step, 70);
	assert_non_null(strstr(e.text, "later"));
	err_clear(&e);
	assert_ok(dir_make(o.folder, 0700, &e), &e);
	c.step = 80;
	checkpoint_copy_take(copy, &c, 0.5);
	saver_begin(s, c.step);
	kernels->ops->fill(kernels, tensor_1d(m.params.master, DT_F32, m.params.total), 7);
	buf_append(&c.loader, "later", 5);
	c.step = 90;
	assert_ok(saver_end(s, &step, &took, &e), &e);
	assert_int_equal(step, 80);
	assert_true(took >= 0 && !saver_is_busy(s));
	assert_ok(checkpoint_weights(path, false, &read, &e), &e);
	transformer_draw(&m, 1);
	for (int i = 0; i < m.params.count; i++) {
		const struct param *q = &m.params.list[i];

		assert_memory_equal(read.params.master + q->at, m.params.master + q->at,
				    (size_t)q->count * sizeof(float));
	}
	checkpoint_copy_take(copy, &c, 0.5);
	saver_begin(s, c.step);
	saver_free(s); /* waits */
	checkpoint_copy_free(copy);
	assert_ok(checkpoints_find(o.folder, "latest", &step, &e), &e);
	assert_int_equal(step, 90);
	buf_release(&c.loader);
	transformer_release(&m);
	transformer_release(&read);
	xfree(path);
	xfree_((char *)o.folder);
}

/* A step of an autoencoder and its discriminator on some pictures. */
static void step_vae(struct vae_train *t)
{
	size_t bytes = vae_train_figures(t) * sizeof(float);
	float *figures = kernels->ops->host_alloc(kernels, bytes);
	struct fetch fetch[VAE_TRAIN_FETCHES];
	struct vae_losses losses;
	uint8_t pictures[2 * 16 * 16 * 3];
	int64_t step = vae_train_step_count(t);
	int n;

	for (size_t i = 0; i < sizeof pictures; i++)
		pictures[i] = (uint8_t)(37 * i);
	n = vae_train_launch(t, pictures, fetch, figures);
	for (int i = 0; i < n; i++)
		kernels->ops->fetch_end(kernels, &fetch[i]);
	vae_train_settle(t, step, figures, &losses);
	assert_true(losses.counts);
	kernels->ops->host_release(kernels, figures);
}

static void write_vae(struct vae_copy *copy, const char *name)
{
	char *vae = xasprintf("%s/%s-vae", folder, name);
	char *rest = xasprintf("%s/%s-state", folder, name);
	struct err e = ERR_INIT;

	assert_ok(vae_copy_write(copy, vae, rest, &e), &e);
	xfree(vae);
	xfree(rest);
}

static bool same(const char *a, const char *b)
{
	char *p = inside(a), *q = inside(b);
	bool is = same_content(p, q, 1 << 22);

	xfree(p);
	xfree(q);
	return is;
}

/* Likewise an autoencoder: what is written is the run as it was when the copy was taken, with the
 * discriminator, and the run goes on from it to the same bits. */
static void a_copy_of_an_autoencoder_is_of_its_moment(void **state)
{
	static const struct vae_config config = { 2, { 8, 8 }, 1, 4, 4 };
	struct vae_train_config c = vae_train_config_small;
	struct vae_train *t = NULL, *again = NULL;
	struct vae_copy *copy = NULL, *other = NULL;
	struct vae *v = NULL, *read = NULL;
	char *vae = inside("then-vae"), *rest = inside("then-state");
	struct err e = ERR_INIT;
	uint64_t skipped = 0;

	(void)state;
	c.batch = 2;
	c.size = 16;
	c.warmup = 1;
	c.gan_weight = 0.1;
	c.gan = (struct patchgan_config) { 8, 1, 4 };
	assert_ok(vae_new(kernels, &config, DT_F32, 1, &v, &e), &e);
	assert_ok(vae_train_new(v, &c, &t, &e), &e);
	assert_ok(vae_copy_new(t, &copy, &e), &e);
	step_vae(t);
	vae_copy_take(copy, t, 3);
	write_vae(copy, "then");
	vae_copy_take(copy, t, 3);
	step_vae(t);
	write_vae(copy, "late");
	assert_true(same("then-vae", "late-vae") && same("then-state", "late-state"));
	vae_copy_take(copy, t, 3);
	write_vae(copy, "next");
	assert_false(same("then-vae", "next-vae") || same("then-state", "next-state"));
	assert_ok(vae_open(kernels, vae, DT_F32, &read, &e), &e);
	assert_ok(vae_train_new(read, &c, &again, &e), &e);
	assert_ok(vae_train_load(again, rest, &skipped, &e), &e);
	assert_int_equal(skipped, 3);
	assert_int_equal(vae_train_step_count(again), 1);
	assert_ok(vae_copy_new(again, &other, &e), &e);
	step_vae(again);
	vae_copy_take(other, again, 3);
	write_vae(other, "again");
	assert_true(same("next-vae", "again-vae") && same("next-state", "again-state"));
	vae_copy_free(copy);
	vae_copy_free(other);
	vae_train_free(t);
	vae_train_free(again);
	vae_free(v);
	vae_free(read);
	xfree(vae);
	xfree(rest);
}

int main(void)
{
	const struct CMUnitTest checkpoint[] = {
		cmocka_unit_test(what_is_saved_comes_back),
		cmocka_unit_test(names_find_steps),
		cmocka_unit_test(pruning_keeps_what_it_should),
		cmocka_unit_test(damage_is_named),
		cmocka_unit_test(a_failed_save_changes_nothing),
		cmocka_unit_test(the_run_goes_on_while_it_is_saved),
		cmocka_unit_test(a_copy_of_an_autoencoder_is_of_its_moment),
	};
	return cmocka_run_group_tests_name("checkpoint", checkpoint, set_up, tear_down);
}
