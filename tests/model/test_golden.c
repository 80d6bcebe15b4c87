/* SPDX-License-Identifier: Apache-2.0
 * The transformer against an independent PyTorch model (tools/golden.py): layouts, losses,
 * gradients and 50 steps of training, on each backend of the CPU or on TF_DEVICE. */
#include "tests/test.h"
#include "tests/model/fixture.h"
#include "model/optimizer.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static void assert_same_ints(const struct golden *g, const char *name, const int32_t *ours)
{
	const int32_t *theirs = golden_data(g, name);

	for (int64_t i = 0; i < g->dims.B * g->dims.T; i++)
		if (ours[i] != theirs[i])
			fail_msg("%s: row %lld is %d, expected %d", name, (long long)i, ours[i],
				 theirs[i]);
}

static void check_layout(const char *name)
{
	struct golden g;
	struct batch b;

	golden_open(&g, name);
	batch_init(&b, &g.dims);
	golden_batch(&g, &b);
	assert_same_ints(&g, "layout.token", b.token);
	assert_same_ints(&g, "layout.start", b.start);
	assert_same_ints(&g, "layout.limit", b.limit);
	assert_same_ints(&g, "layout.position", b.position);
	batch_release(&b);
	golden_close(&g);
}

static void test_layouts(void **state)
{
	const char *name[] = { "patch1", "patch2", "causal", "edit", "text" };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(name); i++)
		check_layout(name[i]);
}

/* Every gradient within 1e-4 of PyTorch's in relative norm. */
static void check_gradients(const struct golden *g, const struct transformer *m, const char *name)
{
	for (int i = 0; i < m->params.count; i++) {
		struct tensor t = params_gradient(&m->params, i);
		char full[2 * PARAM_NAME_MAX];
		float *ours = xmalloc(tensor_bytes(&t));
		double apart;

		snprintf(full, sizeof full, "grad.%s", m->params.list[i].name);
		m->k->ops->download(m->k, ours, t.data, tensor_bytes(&t));
		apart = fixture_distance(ours, golden_data(g, full), tensor_count(&t));
		if (!(apart < 1e-4))
			fail_msg("%s: gradient of %s is %.3g apart", name,
				 m->params.list[i].name, apart);
		xfree(ours);
	}
}

static void check_each_loss(struct pass *p, const struct golden *g, const struct batch *b)
{
	float *token = xcalloc((size_t)b->targets, sizeof *token);
	float *image = xcalloc((size_t)b->images + 1, sizeof *image);

	assert_int_equal(b->targets, st_find(&g->file, "token_loss")->dim[0]);
	pass_evaluate(p, b, token, image);
	assert_true(fixture_distance(token, golden_data(g, "token_loss"), b->targets) < 1e-5);
	assert_true(fixture_distance(image, golden_data(g, "image_loss"), b->images) < 1e-5);
	xfree(token);
	xfree(image);
}

static void check_case(const char *device, const char *name)
{
	struct err e = ERR_INIT;
	struct kernels *k = fixture_kernels(device);
	struct golden g;
	struct transformer m;
	struct pass *p;
	struct batch b;
	struct pass_losses losses;
	const float *loss;

	golden_open(&g, name);
	assert_ok(transformer_init(&m, k, &g.dims, g.dims.T, true, &e), &e);
	assert_ok(params_read(&m.params, PARAMS_MASTER, "", &g.file, name, &e), &e);
	assert_ok(pass_new(&m, true, &p, &e), &e);
	batch_init(&b, &g.dims);
	golden_batch(&g, &b);
	b.noise = golden_data(&g, "noise");
	loss = golden_data(&g, "loss");
	params_zero_gradients(&m.params);
	pass_run(p, &b, &(struct pass_totals){ b.targets, b.noised, 5 });
	pass_losses(p, &losses);
	assert_true(fabs(losses.loss / loss[0] - 1) < 1e-5);
	assert_true(fabs(losses.lm / loss[1] - 1) < 1e-5);
	assert_true(fabs(losses.diffusion - loss[2]) <= 1e-5 * loss[2]);
	check_gradients(&g, &m, name);
	check_each_loss(p, &g, &b);
	batch_release(&b);
	pass_free(p);
	transformer_release(&m);
	golden_close(&g);
	kernels_close(k);
}

static void check_on_all(const char *name)
{
	const char *device[2];
	int devices = fixture_devices(device);

	for (int i = 0; i < devices; i++)
		check_case(device[i], name);
}

static void test_patch1(void **state)
{
	(void)state;
	check_on_all("patch1");
}

static void test_patch2_time_at_model_positions_by_sequence(void **state)
{
	(void)state;
	check_on_all("patch2");
}

static void test_causal_attention(void **state)
{
	(void)state;
	check_on_all("causal");
}

static void test_edit_with_clean_and_noisy_pictures(void **state)
{
	(void)state;
	check_on_all("edit");
}

static void test_text_alone(void **state)
{
	(void)state;
	check_on_all("text");
}

/* One step of the stored run: micro batches of the same documents, latents and noise of their
 * own. */
static void run_step(struct pass *p, const struct golden *g, struct batch *b, int64_t step,
		     struct pass_losses *losses)
{
	int64_t micro = (int64_t)golden_fact(g, "micro"), E = dims_latent(&g->dims), n = b->images;
	const float *latent = golden_data(g, "latent"), *noise = golden_data(g, "noise");
	const int32_t *times = golden_data(g, "times");
	struct pass_totals totals = { micro * b->targets, micro * n, 5 };

	for (int64_t i = 0; i < micro; i++) {
		memcpy(b->latent, latent + i * n * E, (size_t)(n * E) * sizeof *latent);
		memcpy(b->image_time, times + (step * micro + i) * n, (size_t)n * sizeof *times);
		b->noise = noise + (step * micro + i) * n * E;
		pass_run(p, b, &totals);
	}
	pass_losses(p, losses);
}

static void check_curve(const char *device)
{
	struct err e = ERR_INIT;
	struct kernels *k = fixture_kernels(device);
	struct golden g;
	struct transformer m;
	struct pass *p;
	struct batch b;
	const float *curve;
	int64_t steps;

	golden_open(&g, "curve");
	steps = (int64_t)golden_fact(&g, "steps");
	curve = golden_data(&g, "curve");
	assert_ok(transformer_init(&m, k, &g.dims, g.dims.T, true, &e), &e);
	assert_ok(params_read(&m.params, PARAMS_MASTER, "", &g.file, "curve", &e), &e);
	assert_ok(pass_new(&m, true, &p, &e), &e);
	batch_init(&b, &g.dims);
	golden_batch(&g, &b);
	for (int64_t step = 0; step < steps; step++) {
		struct params_update u = { .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f,
					   .weight_decay = 0.1f, .clip = 1, .grad_scale = 1 };
		struct pass_losses losses;

		params_zero_gradients(&m.params);
		run_step(p, &g, &b, step, &losses);
		if (!(fabs(losses.loss - curve[3 * step]) < 1e-3))
			fail_msg("%s: loss of step %lld is %.6f, expected %.6f", device,
				 (long long)step, losses.loss, (double)curve[3 * step]);
		u.lr = (float)optimizer_lr(step, steps, (int64_t)golden_fact(&g, "warmup"),
					   golden_fact(&g, "lr"), golden_fact(&g, "lr_end"));
		params_step(&m.params, &u);
	}
	assert_true(curve[3 * (steps - 1)] < 0.9f * curve[0]);
	batch_release(&b);
	pass_free(p);
	transformer_release(&m);
	golden_close(&g);
	kernels_close(k);
}

static void test_fifty_steps_of_training(void **state)
{
	const char *device[2];
	int devices = fixture_devices(device);

	(void)state;
	for (int i = 0; i < devices; i++)
		check_curve(device[i]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layouts),
		cmocka_unit_test(test_patch1),
		cmocka_unit_test(test_patch2_time_at_model_positions_by_sequence),
		cmocka_unit_test(test_causal_attention),
		cmocka_unit_test(test_edit_with_clean_and_noisy_pictures),
		cmocka_unit_test(test_text_alone),
		cmocka_unit_test(test_fifty_steps_of_training),
	};

	return cmocka_run_group_tests_name("golden", tests, NULL, NULL);
}
