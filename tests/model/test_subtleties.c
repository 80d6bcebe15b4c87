/* SPDX-License-Identifier: Apache-2.0
 * Twelve things that implementations of this model get wrong, a test each. Those that belong to
 * files and jobs have further tests in tests/worker. */
#include "tests/test.h"
#include "tests/model/fixture.h"
#include "model/sampler_plan.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NEAR 2e-5

/* A model, a training pass and a batch, on the reference. */
struct rig {
	struct kernels *k;
	struct dims dims;
	struct transformer m;
	struct pass *p;
	struct batch b;
	float *latent[4];
};

static void rig_open(struct rig *r, struct dims dims)
{
	struct err e = ERR_INIT;

	*r = (struct rig){ .k = fixture_kernels("ref"), .dims = dims };
	assert_ok(transformer_init(&r->m, r->k, &r->dims, 80, true, &e), &e);
	fixture_draw(&r->m, 3);
	assert_ok(pass_new(&r->m, true, &r->p, &e), &e);
	batch_init(&r->b, &r->m.dims);
	for (uint64_t i = 0; i < 4; i++)
		r->latent[i] = fixture_latent(&r->dims, i);
}

static void rig_close(struct rig *r)
{
	for (int i = 0; i < 4; i++)
		xfree(r->latent[i]);
	batch_release(&r->b);
	pass_free(r->p);
	transformer_release(&r->m);
	kernels_close(r->k);
}

static void add(struct rig *r, int64_t sequence, const struct document *doc)
{
	struct err e = ERR_INIT;

	assert_ok(batch_add(&r->b, sequence, doc, &e), &e);
}

static float *gradients(struct rig *r)
{
	float *g = xmalloc((size_t)r->m.params.total * sizeof *g);

	params_settle_gradients(&r->m.params);
	r->k->ops->download(r->k, g, r->m.params.grad, (size_t)r->m.params.total * sizeof *g);
	return g;
}

static void test_01_losses_are_normalised_by_global_counts(void **state)
{
	struct rig r;
	struct pass_losses whole, parts;
	struct pass_totals totals;
	float *once, *twice;

	(void)state;
	rig_open(&r, fixture_dims());
	add(&r, 0, DOCUMENT(TEXT(5, 6, 7, 8, 9, 10, 11), fixture_image(r.latent[0], 300, 1)));
	add(&r, 1, DOCUMENT(fixture_image(r.latent[1], 90, 2), TEXT(4),
			    fixture_image(r.latent[2], 700, 3)));
	totals = (struct pass_totals){ r.b.targets, r.b.noised, 5 };
	params_zero_gradients(&r.m.params);
	pass_run(r.p, &r.b, &totals);
	pass_losses(r.p, &whole);
	once = gradients(&r);
	params_zero_gradients(&r.m.params);
	for (int part = 0; part < 2; part++) {
		batch_clear(&r.b, 0, PHILOX_NOISE);
		if (part == 0)
			add(&r, 0, DOCUMENT(TEXT(5, 6, 7, 8, 9, 10, 11),
					    fixture_image(r.latent[0], 300, 1)));
		else
			add(&r, 1, DOCUMENT(fixture_image(r.latent[1], 90, 2), TEXT(4),
					    fixture_image(r.latent[2], 700, 3)));
		pass_run(r.p, &r.b, &totals);
	}
	pass_losses(r.p, &parts);
	twice = gradients(&r);
	assert_true(fabs(whole.loss - parts.loss) < NEAR && fabs(whole.lm - parts.lm) < NEAR);
	assert_true(fixture_distance(twice, once, r.m.params.total) < NEAR);
	params_zero_gradients(&r.m.params);
	batch_clear(&r.b, 0, PHILOX_NOISE);   /* nothing at all: no loss, no gradient, no NaN */
	pass_run(r.p, &r.b, &(struct pass_totals){ 0, 0, 5 });
	pass_losses(r.p, &parts);
	assert_true(parts.loss == 0 && params_gradient_norm2(&r.m.params) == 0);
	xfree(once);
	xfree(twice);
	rig_close(&r);
}

/* x at the last denoising step, kept by the watch. */
struct seen {
	struct sampler *s;
	float *x;
	int64_t n, calls;
};

static bool watch_x(void *arg, const char *phase, int64_t done, int64_t total)
{
	struct seen *seen = arg;

	(void)done, (void)total;
	if (strcmp(phase, "denoise") != 0)
		return false;
	seen->calls++;
	seen->s->k->ops->download(seen->s->k, seen->x, seen->s->t[PICTURE].data,
				  (size_t)seen->n * sizeof *seen->x);
	return false;
}

static struct sampler_options drawing(int64_t steps, float guidance)
{
	return (struct sampler_options){ .mode = SAMPLE_IMAGE, .schedule = SCHEDULE_DDIM,
					 .steps = steps, .guidance = guidance, .clamp = 4,
					 .top_p = 1, .seed = 11, .max_tokens = 8, .max_images = 1 };
}

/* Noise the training forward predicts for a picture with value x at time t, after `before`. */
static void predict(struct rig *r, const struct segment *before, int64_t n, const float *x,
		    int32_t t, float *out)
{
	int64_t E = dims_latent(&r->dims);
	struct segment part[4];
	float *latent = xmalloc((size_t)E * sizeof *latent), *none = xcalloc((size_t)E * 4, 4);

	for (int64_t i = 0; i < E; i++)
		latent[i] = x[i] / (float)sqrt(schedule_abar(t));
	for (int64_t i = 0; i < n; i++)
		part[i] = before[i];
	part[n] = fixture_image(latent, t, 0);
	batch_clear(&r->b, 0, PHILOX_NOISE);
	add(r, 0, &(struct document){ part, n + 1, true, true });
	r->b.noise = none;
	pass_evaluate(r->p, &r->b, NULL, NULL);
	pass_read(r->p, NULL, out, NULL);
	xfree(latent);
	xfree(none);
}

static void test_02_cached_noise_prediction_equals_the_training_forward(void **state)
{
	struct err e = ERR_INIT;
	struct rig r;
	struct sampler *s;
	struct sampler_result result[2];
	struct sampler_options o = drawing(5, 3);
	const struct segment first[] = { TEXT(3, 4, 5, 6, 7) }, second[] = { TEXT(9, 8) };
	const struct sampler_prompt prompt[] = { { first, 1, 0 }, { second, 1, 1 } };
	float eps[4 * 32], expected[32], x[2 * 32];
	struct seen seen = { .x = x, .n = 2 * 32 };

	(void)state;
	rig_open(&r, fixture_dims());
	assert_int_equal(dims_latent(&r.dims), 32);
	assert_ok(sampler_new(&r.m, 2, 20, true, &s, &e), &e);
	seen.s = s;
	assert_ok(sampler_run(s, &o, prompt, 2, &(struct sampler_watch){ watch_x, &seen }, result,
			      &e), &e);
	r.k->ops->download(r.k, eps, s->t[EPS].data, sizeof eps);
	for (int i = 0; i < 2; i++) {
		predict(&r, prompt[i].segment, 1, x + 32 * i, 200, expected);
		assert_true(fixture_distance(eps + 32 * i, expected, 32) < NEAR);
		predict(&r, NULL, 0, x + 32 * i, 200, expected);
		assert_true(fixture_distance(eps + 32 * (2 + i), expected, 32) < NEAR);
		sampler_result_release(&result[i]);
	}
	sampler_free(s);
	rig_close(&r);
}

/* Greedy text after a prompt; returns the sampler, whose LOGITS are of the last token drawn. */
static struct sampler *write_text(struct rig *r, const struct sampler_prompt *prompt, int64_t n,
				  const struct sampler_options *o, struct sampler_result *result)
{
	struct err e = ERR_INIT;
	struct sampler *s;

	assert_ok(sampler_new(&r->m, n, 40, o->mode == SAMPLE_FREE, &s, &e), &e);
	assert_ok(sampler_run(s, o, prompt, n, NULL, result, &e), &e);
	return s;
}

/* Whether the sampler's last logits of prompt i are those of the training forward over everything
 * it holds: the prompt and what was drawn, less the last token. */
static double logits_apart(struct rig *r, struct sampler *s, const struct sampler_prompt *prompt,
			   int64_t i, const struct sampler_result *result)
{
	int64_t V = r->dims.vocabulary.rows, ids = r->dims.vocabulary.ids, n = prompt->segments;
	struct segment part[8];
	float *ours = xmalloc((size_t)V * 4), *all = xmalloc((size_t)(40 * ids) * sizeof *all);
	double apart;

	for (int64_t j = 0; j < n; j++)
		part[j] = prompt->segment[j];
	for (int64_t j = 0; j < result->parts; j++, n++) {
		const struct sampler_part *q = &result->part[j];

		part[n] = q->kind == SEGMENT_TEXT ? fixture_text(q->token, q->count)
						  : fixture_image(q->latent, 0, 0);
	}
	batch_clear(&r->b, 0, PHILOX_NOISE);
	add(r, 0, &(struct document){ part, n, true, false });
	pass_evaluate(r->p, &r->b, NULL, NULL);
	pass_read(r->p, all, NULL, NULL);
	r->k->ops->download(r->k, ours, (float *)s->t[LOGITS].data + i * V, (size_t)V * 4);
	apart = fixture_distance(ours, all + (r->b.targets - 1) * ids, ids);
	xfree(ours);
	xfree(all);
	return apart;
}

static void test_02_cached_decoding_equals_teacher_forced_logits(void **state)
{
	struct rig r;
	struct sampler *s;
	struct sampler_result result[2];
	struct sampler_options o = { .mode = SAMPLE_TEXT, .top_p = 1, .max_tokens = 9 };
	struct segment first[] = { TEXT(3, 4, 5, 6, 7, 8), { 0 }, TEXT(9) };
	const struct segment second[] = { TEXT(12) };
	const struct sampler_prompt prompt[] = { { first, 3, 0 }, { second, 1, 1 } };

	(void)state;
	rig_open(&r, fixture_dims());
	first[1] = fixture_image(r.latent[0], 0, 0);
	s = write_text(&r, prompt, 2, &o, result);
	for (int i = 0; i < 2; i++) {
		if (result[i].end == END_TOKENS)
			assert_true(logits_apart(&r, s, &prompt[i], i, &result[i]) < NEAR);
		else
			assert_int_equal(result[i].end, END_EOS);
	}
	assert_true(result[0].end == END_TOKENS || result[1].end == END_TOKENS);
	for (int i = 0; i < 2; i++)
		sampler_result_release(&result[i]);
	sampler_free(s);
	rig_close(&r);
}

static void test_03_marks_positions_and_clean_time_are_the_same_everywhere(void **state)
{
	struct rig r;
	struct sampler *s;
	struct sampler_result result;
	struct sampler_options o = { .mode = SAMPLE_TEXT, .top_p = 1, .max_tokens = 1 };
	struct segment part[] = { TEXT(7), { 0 }, TEXT(8) };
	struct sampler_prompt prompt = { part, 3, 0 };
	struct document doc = { part, 3, true, true };
	struct element x[16];
	float time;

	(void)state;
	rig_open(&r, fixture_dims());
	part[1] = fixture_image(r.latent[0], 0, 0);
	assert_int_equal(document_length(&r.dims, &doc), 10);
	document_layout(&r.dims, &doc, x);
	assert_int_equal(x[2].token, r.dims.vocabulary.boi);
	assert_int_equal(x[2].limit, 2);
	for (int i = 3; i < 7; i++)
		assert_true(x[i].token == -1 && x[i].limit == 6 && x[i].patch == i - 3);
	assert_int_equal(x[7].token, r.dims.vocabulary.eoi);
	assert_int_equal(x[7].limit, 7);
	add(&r, 1, &doc);
	s = write_text(&r, &prompt, 1, &o, &result);
	for (int t = 0; t < 9; t++) {   /* what the sampler uploaded is what a batch holds */
		assert_int_equal(r.b.position[40 + t], s->host_position[t]);
		assert_int_equal(r.b.limit[40 + t], s->host_limit[t]);
		assert_int_equal(r.b.token[40 + t], s->host_token[t]);
	}
	r.k->ops->download(r.k, &time, s->t[TIME].data, sizeof time);
	assert_true(time == 1);
	sampler_result_release(&result);
	sampler_free(s);
	rig_close(&r);
}

/* Free running with seeds from 0 on until a sequence has drawn a picture and then written on. */
static struct sampler *write_and_draw(struct rig *r, const struct sampler_prompt *prompt,
				      struct sampler_result *result)
{
	struct sampler_options o = drawing(3, 2);

	o.mode = SAMPLE_FREE;
	o.temperature = 2;
	for (o.seed = 0; o.seed < 300; o.seed++) {
		struct sampler *s = write_text(r, prompt, 1, &o, result);

		if (result->parts >= 2 && result->end == END_TOKENS
		    && result->part[result->parts - 2].kind == SEGMENT_IMAGE)
			return s;
		sampler_result_release(result);
		sampler_free(s);
	}
	fail_msg("no seed below 300 draws a picture and writes on");
	return NULL;
}

static void test_04_the_cache_is_refreshed_with_the_clean_latent(void **state)
{
	struct rig r;
	struct sampler *s;
	struct sampler_result result;
	const struct segment part[] = { TEXT(7, 9) };
	const struct sampler_prompt prompt = { part, 1, 5 };

	(void)state;
	rig_open(&r, fixture_dims());
	s = write_and_draw(&r, &prompt, &result);
	assert_true(logits_apart(&r, s, &prompt, 0, &result) < NEAR);
	for (int i = 0; i < 32; i++)   /* the test would notice a cache that was not */
		result.part[result.parts - 2].latent[i] += 0.5f;
	assert_true(logits_apart(&r, s, &prompt, 0, &result) > 1e-3);
	sampler_result_release(&result);
	sampler_free(s);
	rig_close(&r);
}

/* Draws a picture, looked at before every step: as many evaluations as steps, the last on x_0. */
static void draw_and_check(struct rig *r, struct sampler *s, const struct sampler_options *o,
			   float out[32])
{
	struct err e = ERR_INIT;
	const struct segment part[] = { TEXT(3, 4) };
	const struct sampler_prompt prompt = { part, 1, 0 };
	float eps[32], x[32];
	struct seen seen = { .s = s, .x = x, .n = 32 };
	struct sampler_watch watch = { watch_x, &seen };
	struct sampler_result result;
	int64_t evaluations = sampler_evaluations(s);
	double a = schedule_abar(schedule_time(o->steps - 1, o->steps));

	assert_ok(sampler_run(s, o, &prompt, 1, &watch, &result, &e), &e);
	assert_int_equal(sampler_evaluations(s) - evaluations, o->steps);
	assert_true(seen.calls == o->steps || s->steps_ahead > 1);
	r->k->ops->download(r->k, eps, s->t[EPS].data, sizeof eps);
	for (int i = 0; i < 32 && seen.calls == o->steps; i++) {
		double x0 = (x[i] - sqrt(1 - a) * eps[i]) / sqrt(a);

		x0 = fmin(fmax(x0, -4), 4);
		assert_true(fabs(result.part[0].latent[i] - x0) < 1e-3);
	}
	memcpy(out, result.part[0].latent, 32 * sizeof *out);
	sampler_result_release(&result);
}

/* Steps run one by one, and then as many at once as the backend likes, which change no bit. */
static void test_05_steps_are_evaluations_and_the_last_lands_on_x0(void **state)
{
	struct err e = ERR_INIT;
	struct rig r;
	struct sampler *s;
	float single[32], together[32];
	int64_t ahead;

	(void)state;
	rig_open(&r, fixture_dims());
	assert_ok(sampler_new(&r.m, 1, 20, false, &s, &e), &e);
	ahead = s->steps_ahead;
	for (int64_t steps = 1; steps <= 7; steps += 2) {
		for (int kind = SCHEDULE_DDPM; kind <= SCHEDULE_DDIM; kind++) {
			struct sampler_options o = drawing(steps, 1);

			o.schedule = kind;
			s->steps_ahead = 1;
			draw_and_check(&r, s, &o, single);
			s->steps_ahead = ahead;
			draw_and_check(&r, s, &o, together);
			assert_memory_equal(single, together, sizeof single);
		}
	}
	sampler_free(s);
	rig_close(&r);
}

static void test_06_guidance_is_on_the_noise_and_scale_one_is_one_branch(void **state)
{
	struct err e = ERR_INIT;
	struct rig r;
	struct sampler *s;
	struct sampler_result result;
	struct sampler_options o = drawing(1, 4);
	const struct segment part[] = { TEXT(3, 4) };
	const struct sampler_prompt prompt = { part, 1, 0 };
	double a = schedule_abar(1000);
	float eps[64], x[32];
	struct seen seen = { .x = x, .n = 32 };

	(void)state;
	rig_open(&r, fixture_dims());
	assert_ok(sampler_new(&r.m, 1, 20, true, &s, &e), &e);
	seen.s = s;
	o.clamp = 0;
	assert_ok(sampler_run(s, &o, &prompt, 1, &(struct sampler_watch){ watch_x, &seen }, &result,
			      &e), &e);
	assert_int_equal(s->branches, 2);
	r.k->ops->download(r.k, eps, s->t[EPS].data, sizeof eps);
	for (int i = 0; i < 32; i++) {
		double guided = eps[32 + i] + 4 * ((double)eps[i] - eps[32 + i]);
		double x0 = (x[i] - sqrt(1 - a) * guided) / sqrt(a);

		assert_true(fabs(result.part[0].latent[i] / x0 - 1) < 1e-2);
	}
	sampler_result_release(&result);
	o.guidance = 1;
	assert_ok(sampler_run(s, &o, &prompt, 1, NULL, &result, &e), &e);
	assert_int_equal(s->branches, 1);
	sampler_result_release(&result);
	sampler_free(s);
	rig_close(&r);
}

static void test_07_each_picture_has_its_own_timestep(void **state)
{
	struct rig r;
	float together[3], alone[1], changed[3];
	int32_t least = TIMESTEPS, most = 1, same = 0;

	(void)state;
	rig_open(&r, fixture_dims());
	add(&r, 0, DOCUMENT(fixture_image(r.latent[0], 900, 1), TEXT(4)));
	add(&r, 0, DOCUMENT(fixture_image(r.latent[1], 20, 2)));
	add(&r, 1, DOCUMENT(TEXT(9), fixture_image(r.latent[2], 500, 3)));
	pass_evaluate(r.p, &r.b, NULL, together);
	r.b.image_time[0] = 901;
	pass_evaluate(r.p, &r.b, NULL, changed);
	assert_true(changed[0] != together[0]);
	assert_true(changed[1] == together[1] && changed[2] == together[2]);
	batch_clear(&r.b, 0, PHILOX_NOISE);
	add(&r, 0, DOCUMENT(fixture_image(r.latent[1], 20, 2)));
	pass_evaluate(r.p, &r.b, NULL, alone);
	assert_true(fabsf(alone[0] - together[1]) < NEAR);
	for (int64_t i = 0; i < 2000; i++) {
		int32_t t = schedule_draw(7, i, 500);

		same += t == schedule_draw(7, i + 1, 500);
		least = t < least ? t : least;
		most = t > most ? t : most;
	}
	assert_true(least >= 1 && least < 20 && most <= 500 && most > 480 && same < 20);
	rig_close(&r);
}

static void test_08_padding_and_other_documents_change_nothing(void **state)
{
	struct rig r;
	float alone[8], packed[32], image[4];
	float first;

	(void)state;
	rig_open(&r, fixture_dims());
	add(&r, 0, DOCUMENT(TEXT(4, 5, 6), fixture_image(r.latent[0], 300, 1)));
	assert_int_equal(r.b.targets, 5);     /* 4 5 6 BOI EOS */
	pass_evaluate(r.p, &r.b, alone, image);
	first = image[0];
	batch_clear(&r.b, 0, PHILOX_NOISE);
	add(&r, 0, DOCUMENT(TEXT(30, 31, 32, 33), fixture_image(r.latent[1], 800, 2)));
	add(&r, 0, DOCUMENT(TEXT(4, 5, 6), fixture_image(r.latent[0], 300, 1)));
	add(&r, 0, DOCUMENT(TEXT(35, 36, 37, 38)));
	assert_int_equal(r.b.targets, 6 + 5 + 5);
	pass_evaluate(r.p, &r.b, packed, image);
	for (int i = 0; i < 5; i++)
		assert_true(fabsf(packed[6 + i] - alone[i]) < NEAR);
	assert_true(fabsf(image[1] - first) < NEAR);
	for (int64_t t = r.b.used[0]; t < r.dims.T; t++)
		assert_true(r.b.start[t] == t && r.b.limit[t] == t);
	for (int64_t i = 0; i < r.b.targets; i++)
		assert_true(r.b.lm_target[i] != r.dims.vocabulary.pad
			    && r.b.lm_row[i] < r.b.used[0]);
	rig_close(&r);
}

static void train_step(struct rig *r, int64_t step)
{
	const struct params_update u = { .lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f,
					 .weight_decay = 0.1f, .clip = 1, .grad_scale = 1 };

	batch_clear(&r->b, 77, PHILOX_NOISE);
	add(r, 0, DOCUMENT(TEXT(4, 5), fixture_image(r->latent[step % 4],
						     schedule_draw(77, step, 1000), step)));
	params_zero_gradients(&r->m.params);
	pass_run(r->p, &r->b, &(struct pass_totals){ r->b.targets, r->b.noised, 5 });
	params_step(&r->m.params, &u);
}

static const char *const array_name[] = { "", "m.", "v." };

static void save(struct rig *r, const char *path)
{
	struct err e = ERR_INIT;
	struct st_writer w;
	char *choices = kernels_choices(r->k);
	void *copy[3];

	st_writer_init(&w);
	st_writer_meta(&w, "choices", choices);
	for (int i = 0; i < 3; i++)
		params_write(&r->m.params, (enum params_array)i, array_name[i], &w, &copy[i]);
	assert_ok(st_writer_save(&w, path, &e), &e);
	xfree(choices);
	for (int i = 0; i < 3; i++)
		xfree(copy[i]);
	st_writer_release(&w);
}

static float *values(const struct rig *r)
{
	float *v = xmalloc((size_t)r->m.params.total * sizeof *v);

	r->k->ops->download(r->k, v, r->m.params.master, (size_t)r->m.params.total * sizeof *v);
	return v;
}

static void scratch(char *path, size_t room)
{
	const char *folder = getenv("TMPDIR");

	snprintf(path, room, "%s/subtleties-%ld.safetensors", folder ? folder : "/tmp",
		 (long)getpid());
}

static void test_09_a_resumed_run_continues_bit_for_bit(void **state)
{
	struct err e = ERR_INIT;
	struct rig a, b;
	struct st_file f;
	char path[1024];
	float *straight, *resumed;

	(void)state;
	scratch(path, sizeof path);
	rig_open(&a, fixture_dims());
	rig_open(&b, fixture_dims());
	for (int64_t step = 0; step < 3; step++)
		train_step(&a, step);
	save(&a, path);
	assert_ok(st_open(path, &f, &e), &e);
	for (int i = 0; i < 3; i++)
		assert_ok(params_read(&b.m.params, (enum params_array)i, array_name[i], &f, path,
				      &e), &e);
	assert_ok(kernels_choose(b.k, st_meta(&f, "choices"), &e), &e);
	b.m.params.step = a.m.params.step;
	for (int64_t step = 3; step < 6; step++) {
		train_step(&a, step);
		train_step(&b, step);
	}
	straight = values(&a);
	resumed = values(&b);
	assert_memory_equal(straight, resumed, (size_t)a.m.params.total * sizeof *straight);
	xfree(straight);
	xfree(resumed);
	st_close(&f);
	unlink(path);
	rig_close(&a);
	rig_close(&b);
}

static void test_10_half_a_checkpoint_is_never_loaded(void **state)
{
	struct err e = ERR_INIT;
	struct rig r;
	struct st_file f;
	struct buf whole = BUF_INIT;
	char path[1024];
	float *before, *after;

	(void)state;
	scratch(path, sizeof path);
	rig_open(&r, fixture_dims());
	save(&r, path);
	assert_ok(file_read(path, 1 << 24, &whole, &e), &e);
	for (size_t len = 0; len < whole.len; len += whole.len / 7 + 1) {
		assert_ok(file_write(path, whole.data, len, 0644, &e), &e);
		assert_true(st_open(path, &f, &e) < 0);
		err_clear(&e);
	}
	whole.data[whole.len - 1] = 0x7f;      /* not a finite number */
	whole.data[whole.len - 2] = (char)0xff;
	assert_ok(file_write(path, whole.data, whole.len, 0644, &e), &e);
	assert_ok(st_open(path, &f, &e), &e);
	before = values(&r);
	for (int i = 0; i < 3; i++)
		params_read(&r.m.params, (enum params_array)i, array_name[i], &f, path, &e);
	assert_int_equal(e.code, TF_ECORRUPT);
	after = values(&r);
	assert_memory_equal(before, after, (size_t)r.m.params.total * sizeof *before);
	xfree(before);
	xfree(after);
	buf_release(&whole);
	st_close(&f);
	unlink(path);
	rig_close(&r);
}

static void test_11_every_end_is_clean_and_what_cannot_fit_is_refused(void **state)
{
	struct err e = ERR_INIT;
	struct rig r;
	struct sampler *s;
	struct sampler_result result;
	struct sampler_options o = drawing(2, 1);
	const struct segment part[] = { TEXT(3, 4, 5) };
	const struct sampler_prompt prompt = { part, 1, 0 };
	bool seen[4] = { false };

	(void)state;
	rig_open(&r, fixture_dims());
	assert_ok(sampler_new(&r.m, 1, 9, false, &s, &e), &e);   /* BOS 3 4 5 BOI, 4 patches */
	assert_int_equal(sampler_run(s, &o, &prompt, 1, NULL, &result, &e), TF_ELIMIT);
	assert_int_equal(sampler_evaluations(s), 0);
	sampler_free(s);
	err_clear(&e);
	assert_ok(sampler_new(&r.m, 1, 13, false, &s, &e), &e);
	o.mode = SAMPLE_FREE;
	o.temperature = 3;
	for (o.seed = 0; o.seed < 400; o.seed++) {
		o.max_tokens = o.seed % 2 ? 4 : 30;
		assert_ok(sampler_run(s, &o, &prompt, 1, NULL, &result, &e), &e);
		assert_true(s->context == 13);
		seen[result.end] = true;
		for (int64_t i = 0; i < result.parts; i++)
			for (int64_t n = 0; n < result.part[i].count; n++)
				assert_true(result.part[i].token[n] < r.dims.vocabulary.pieces
					    && result.part[i].token[n] != r.dims.vocabulary.eos);
		sampler_result_release(&result);
	}
	assert_true(seen[END_EOS] && seen[END_TOKENS] && seen[END_IMAGES] && seen[END_CONTEXT]);
	sampler_free(s);
	rig_close(&r);
}

static void test_12_time_enters_once_at_the_input(void **state)
{
	for (int place = TIME_AT_PATCH; place <= TIME_AT_MODEL; place++) {
		struct dims dims = fixture_dims();
		struct rig r;
		int64_t time = 0;

		dims.time = (enum time_place)place;
		rig_open(&r, dims);
		for (int i = 0; i < r.m.params.count; i++) {
			const struct param *p = &r.m.params.list[i];

			time += strncmp(p->name, "time.", 5) == 0;
			assert_true(!strncmp(p->name, "blocks.", 7) || !strstr(p->name, ".time"));
		}
		assert_int_equal(time, 4);
		assert_int_equal(r.m.params.count, 3 + 4 + 4 + 6 * dims.layers);
		rig_close(&r);
	}
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_01_losses_are_normalised_by_global_counts),
		cmocka_unit_test(test_02_cached_noise_prediction_equals_the_training_forward),
		cmocka_unit_test(test_02_cached_decoding_equals_teacher_forced_logits),
		cmocka_unit_test(test_03_marks_positions_and_clean_time_are_the_same_everywhere),
		cmocka_unit_test(test_04_the_cache_is_refreshed_with_the_clean_latent),
		cmocka_unit_test(test_05_steps_are_evaluations_and_the_last_lands_on_x0),
		cmocka_unit_test(test_06_guidance_is_on_the_noise_and_scale_one_is_one_branch),
		cmocka_unit_test(test_07_each_picture_has_its_own_timestep),
		cmocka_unit_test(test_08_padding_and_other_documents_change_nothing),
		cmocka_unit_test(test_09_a_resumed_run_continues_bit_for_bit),
		cmocka_unit_test(test_10_half_a_checkpoint_is_never_loaded),
		cmocka_unit_test(test_11_every_end_is_clean_and_what_cannot_fit_is_refused),
		cmocka_unit_test(test_12_time_enters_once_at_the_input),
	};

	return cmocka_run_group_tests_name("subtleties", tests, NULL, NULL);
}
