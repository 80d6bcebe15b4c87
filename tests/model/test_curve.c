/* SPDX-License-Identifier: Apache-2.0
 * 200 steps of the tiny preset follow PyTorch's loss curve (tools/curve.py) from the same weights,
 * data, times and noise: in f32 closely, in bf16 within the spread of PyTorch's own bf16 runs. On
 * the CPU, or on TF_DEVICE. The environment's TF_CURVE names a file for the curves as CSV;
 * TF_SANITIZED makes it the first 40 steps.
 *
 *	test_curve --dump FILE		writes what tools/curve.py trains on */
#include "tests/test.h"
#include "tests/model/fixture.h"
#include "model/optimizer.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define STEPS 200
#define BATCHES 8            /* a step takes the next one */
#define CLASSES 32           /* of pictures, each with a caption of its own */
#define CAPTION 5
#define SEED 11
#define STRETCH 20           /* steps whose losses are averaged: single steps are too uneven */
#define ALLOWED 4.0          /* standard deviations; doc/speed.md says what faults come to */
#define F32_SHARE 0.05       /* so much closer is f32 */

struct world {
	struct dims dims;
	struct transformer m;
	struct pass *pass;
	int64_t steps;
	struct batch batch[BATCHES];
	float *noise;                /* of a step */
};

static struct dims tiny(enum dtype act)
{
	struct err e = ERR_INIT;
	struct dims m = { .layers = 6, .d = 192, .H = 6, .F = 512, .patch = 2, .h = 8, .w = 8,
			  .c = 8, .time = TIME_AT_MODEL, .eps = 1e-5f, .rope_base = 10000,
			  .act = act, .positions_restart = true, .B = 3, .T = 256,
			  .row_multiple = 64 };

	assert_ok(vocabulary_init(&m.vocabulary, 381, 1, 2, &e), &e);
	m.images = dims_images_most(&m);
	return m;
}

static uint64_t below(uint64_t stream, uint64_t element, uint64_t n)
{
	return philox_below(SEED, PHILOX_TEST, stream, element, n);
}

/* A picture of a class, which differs from others of it, and its caption; one in five the other way
 * round. */
static void add_document(struct batch *b, int64_t sequence, uint64_t number)
{
	size_t E = (size_t)dims_latent(b->dims);
	int32_t class = (int32_t)below(number, 0, CLASSES), token[CAPTION];
	float *latent = xmalloc(E * sizeof *latent), *own = xmalloc(E * sizeof *own);
	bool image_first = below(number, 1, 5) == 0;
	struct segment part[2];
	struct document doc = { part, 2, true, true };
	struct err e = ERR_INIT;

	for (int i = 0; i < CAPTION; i++)
		token[i] = 3 + (int32_t)below(1 << 20, (uint64_t)(class * CAPTION + i), 378);
	philox_normals(SEED, PHILOX_TEST, 1 << 21 | (uint64_t)class, 0, latent, E);
	philox_normals(SEED, PHILOX_TEST, 1 << 22 | number, 0, own, E);
	for (size_t i = 0; i < E; i++)
		latent[i] = 0.9f * latent[i] + 0.4f * own[i];
	part[image_first] = fixture_text(token, CAPTION);
	part[!image_first] = fixture_image(latent, 1, 0);
	assert_ok(batch_add(b, sequence, &doc, &e), &e);
	xfree(own);
	xfree(latent);
}

static void fill(struct world *w)
{
	int64_t length = CAPTION + dims_patches(&w->dims) + 4; /* BOS, BOI, EOI, EOS */
	uint64_t number = 0;

	for (int i = 0; i < BATCHES; i++) {
		batch_init(&w->batch[i], &w->dims);
		for (int64_t s = 0; s < w->dims.B; s++)
			while (batch_room(&w->batch[i], s) >= length)
				add_document(&w->batch[i], s, number++);
	}
}

/* Times and noise of a step, new each time. */
static struct batch *draw_step(struct world *w, int64_t step)
{
	struct batch *b = &w->batch[step % BATCHES];
	int64_t E = dims_latent(&w->dims);

	for (int64_t i = 0; i < b->images; i++) {
		uint64_t stream = (uint64_t)(1 << 23 | step << 10 | i);

		b->image_time[i] = 1 + (int32_t)below(stream, 0, TIMESTEPS);
		philox_normals(SEED, PHILOX_NOISE, stream, 0, w->noise + i * E, (uint64_t)E);
	}
	b->noise = w->noise;
	return b;
}

/* The weights are those that the CPU draws. */
static void draw_weights(struct world *w)
{
	struct dims dims = tiny(DT_F32);
	struct params *p = &w->m.params;
	struct err e = ERR_INIT;
	struct kernels *k = NULL;
	struct transformer m;

	assert_ok(kernels_open("cpu", 1, &k, &e), &e);
	assert_ok(transformer_init(&m, k, &dims, dims.T, true, &e), &e);
	transformer_draw(&m, SEED);
	assert_int_equal(m.params.total, p->total);
	p->k->ops->upload(p->k, p->master, m.params.master,
			  (size_t)p->total * sizeof *p->master);
	if (p->resident)
		p->k->ops->convert(p->k, tensor_1d(p->resident, DT_BF16, p->total),
				   tensor_1d(p->master, DT_F32, p->total));
	transformer_release(&m);
	kernels_close(k);
}

static void open_world(struct world *w, struct kernels *k, enum dtype act)
{
	struct err e = ERR_INIT;

	w->dims = tiny(act);
	w->steps = getenv("TF_SANITIZED") ? 2 * STRETCH : STEPS;
	assert_ok(transformer_init(&w->m, k, &w->dims, w->dims.T, true, &e), &e);
	assert_ok(pass_new(&w->m, true, &w->pass, &e), &e);
	draw_weights(w);
	fill(w);
	w->noise = xcalloc((size_t)(w->dims.images * dims_latent(&w->dims)), sizeof *w->noise);
}

static void close_world(struct world *w)
{
	for (int i = 0; i < BATCHES; i++)
		batch_release(&w->batch[i]);
	xfree(w->noise);
	pass_free(w->pass);
	transformer_release(&w->m);
}

/* [steps, 3]: loss, text, pictures. */
static void train(struct world *w, float (*curve)[3])
{
	for (int64_t step = 0; step < w->steps; step++) {
		struct batch *b = draw_step(w, step);
		struct params_update u = { .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f,
					   .weight_decay = 0.1f, .clip = 1, .grad_scale = 1 };
		struct pass_losses l;

		u.lr = (float)optimizer_lr(step, STEPS, 20, 1.5e-3, 7.5e-5);
		params_zero_gradients(&w->m.params);
		pass_run(w->pass, b, &(struct pass_totals){ b->targets, b->noised, 5 });
		pass_losses(w->pass, &l);
		params_step(&w->m.params, &u);
		curve[step][0] = (float)l.loss;
		curve[step][1] = (float)l.lm;
		curve[step][2] = (float)l.diffusion;
	}
}

/* ---- against PyTorch */

/* PyTorch's curves: one in f32, `runs` in bf16, [STEPS, 3] each. */
struct torch {
	struct st_file file;
	const float (*f32)[3], (*bf16)[3];
	int64_t runs;
};

static void torch_open(struct torch *t)
{
	const char *source = getenv("TF_SOURCE");
	char *path = xasprintf("%s/tests/model/golden-tiny.safetensors", source ? source : ".");
	const struct st_tensor *f32, *bf16;
	struct err e = ERR_INIT;

	assert_ok(st_open(path, &t->file, &e), &e);
	assert_ok(st_need(&t->file, path, "f32", ST_F32, 2, (int64_t[]){ STEPS, 3 }, &f32, &e),
		  &e);
	assert_ok(st_need(&t->file, path, "bf16", ST_F32, 3, (int64_t[]){ -1, STEPS, 3 }, &bf16,
			  &e), &e);
	t->f32 = f32->data;
	t->bf16 = bf16->data;
	t->runs = bf16->dim[0];
	xfree(path);
}

static double apart(const struct torch *t, const float (*curve)[3], int64_t step)
{
	return (double)curve[step][0] - (double)t->f32[step][0];
}

/* Root of the mean square distance from PyTorch's f32. */
static double distance(const struct torch *t, const float (*curve)[3], int64_t steps)
{
	double sum = 0;

	for (int64_t s = 0; s < steps; s++)
		sum += pow(apart(t, curve, s), 2);
	return sqrt(sum / (double)steps);
}

static double mean_apart(const struct torch *t, const float (*curve)[3], int64_t first)
{
	double sum = 0;

	for (int64_t s = first; s < first + STRETCH; s++)
		sum += apart(t, curve, s);
	return sum / STRETCH;
}

/* How far the curve's mean over a stretch is from that of PyTorch's bf16 runs, in their standard
 * deviations. */
static double deviation(const struct torch *t, const float (*curve)[3], int64_t first)
{
	double n = (double)t->runs, sum = 0, squares = 0;

	for (int64_t r = 0; r < t->runs; r++) {
		double m = mean_apart(t, t->bf16 + r * STEPS, first);

		sum += m;
		squares += m * m;
	}
	return (mean_apart(t, curve, first) - sum / n) /
	       sqrt((squares - sum * sum / n) / (n - 1));
}

/* Root of the mean square over all stretches. */
static double deviations(const struct torch *t, const float (*curve)[3], int64_t steps)
{
	double sum = 0;

	for (int64_t first = 0; first < steps; first += STRETCH)
		sum += pow(deviation(t, curve, first), 2);
	return sqrt(sum * STRETCH / (double)steps);
}

static void compare(const struct torch *t, const char *name, const float (*curve)[3],
		    int64_t steps, enum dtype act)
{
	double ours = distance(t, curve, steps), off = deviations(t, curve, steps), theirs = 0;

	for (int64_t r = 0; r < t->runs; r++)
		theirs += distance(t, t->bf16 + r * STEPS, steps) / (double)t->runs;
	print_message("# %s: %.6f from PyTorch's f32, PyTorch's bf16 %.6f in the mean; %.2f "
		      "standard deviations of those from their mean\n", name, ours, theirs, off);
	if (act == DT_BF16)
		assert_true(off <= ALLOWED);
	else
		assert_true(ours <= F32_SHARE * theirs);
}

static void write_csv(const char *device, const char *precision, float (*curve)[3], int64_t steps)
{
	const char *path = getenv("TF_CURVE");
	FILE *f = path ? fopen(path, "a") : NULL;

	for (int64_t s = 0; f && s < steps; s++)
		fprintf(f, "%s,%s,%lld,%.7g,%.7g,%.7g\n", device, precision, (long long)s,
			(double)curve[s][0], (double)curve[s][1], (double)curve[s][2]);
	if (f)
		fclose(f);
}

static void check(enum dtype act)
{
	const char *precision = act == DT_BF16 ? "bf16" : "f32", *device = getenv("TF_DEVICE");
	struct kernels *k = fixture_kernels("cpu");
	float (*curve)[3] = xcalloc(STEPS, sizeof *curve);
	char name[40];
	struct world w;
	struct torch t;

	device = device ? device : "cpu";
	snprintf(name, sizeof name, "%s %s", device, precision);
	open_world(&w, k, act);
	train(&w, curve);
	write_csv(device, precision, curve, w.steps);
	torch_open(&t);
	compare(&t, name, (const float (*)[3])curve, w.steps, act);
	assert_true(curve[w.steps - 1][0] < 0.6f * curve[0][0]);
	st_close(&t.file);
	close_world(&w);
	kernels_close(k);
	xfree(curve);
}

static void the_curve_in_f32_is_that_of_pytorch(void **state)
{
	(void)state;
	check(DT_F32);
}

static void the_curve_in_bf16_is_within_its_spread(void **state)
{
	(void)state;
	check(DT_BF16);
}

/* ---- for tools/curve.py */

static void add(struct st_writer *w, int i, const char *name, enum st_type type, int64_t n,
		const void *data)
{
	char full[40];

	snprintf(full, sizeof full, "%d.%s", i, name);
	st_writer_add(w, full, type, 1, &n, data);
}

static int dump(const char *path)
{
	struct err e = ERR_INIT;
	struct kernels *k = NULL;
	struct st_writer out;
	struct world w;
	int64_t E;
	float *noise;
	int32_t *times;
	void *weights;

	if (kernels_open("cpu", 1, &k, &e) < 0)
		return 1;
	open_world(&w, k, DT_F32);
	E = dims_latent(&w.dims);
	noise = xcalloc((size_t)(STEPS * w.dims.images * E), sizeof *noise);
	times = xcalloc((size_t)(STEPS * w.dims.images), sizeof *times);
	st_writer_init(&out);
	for (int i = 0; i < BATCHES; i++) {
		const struct batch *b = &w.batch[i];
		int64_t N = w.dims.B * w.dims.T;

		add(&out, i, "token", ST_I32, N, b->token);
		add(&out, i, "start", ST_I32, N, b->start);
		add(&out, i, "limit", ST_I32, N, b->limit);
		add(&out, i, "position", ST_I32, N, b->position);
		add(&out, i, "lm_row", ST_I32, b->targets, b->lm_row);
		add(&out, i, "lm_target", ST_I32, b->targets, b->lm_target);
		add(&out, i, "image_row", ST_I32, b->images, b->image_row);
		add(&out, i, "latent", ST_F32, b->images * E, b->latent);
	}
	for (int64_t step = 0; step < STEPS; step++) {
		struct batch *b = draw_step(&w, step);
		size_t n = (size_t)b->images, at = (size_t)(step * w.dims.images);

		memcpy(times + at, b->image_time, n * sizeof *times);
		memcpy(noise + at * (size_t)E, w.noise, n * (size_t)E * sizeof *noise);
	}
	st_writer_add(&out, "times", ST_I32, 2, (int64_t[]){ STEPS, w.dims.images }, times);
	st_writer_add(&out, "noise", ST_F32, 3, (int64_t[]){ STEPS, w.dims.images, E }, noise);
	params_write(&w.m.params, PARAMS_MASTER, "", &out, &weights);
	if (st_writer_save(&out, path, &e) < 0)
		fprintf(stderr, "%s\n", e.text);
	st_writer_release(&out);
	xfree(weights);
	xfree(times);
	xfree(noise);
	close_world(&w);
	kernels_close(k);
	return e.code < 0;
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_curve_in_f32_is_that_of_pytorch),
		cmocka_unit_test(the_curve_in_bf16_is_within_its_spread),
	};

	if (argc == 3 && strcmp(argv[1], "--dump") == 0)
		return dump(argv[2]);
	return cmocka_run_group_tests_name("curve", tests, NULL, NULL);
}
