/* SPDX-License-Identifier: Apache-2.0
 * Sampling: independence of the batch, groups, runs that join others under way, a token alone and
 * beside others, refusals, stopping, and the memory it says it needs. */
#include "tests/test.h"
#include "tests/model/fixture.h"
#include "model/linear.h"
#include "model/sampler_plan.h"
#include "lib/mem.h"

#include <math.h>
#include <string.h>

static void open_sized(struct transformer *m, const char *backend, const struct dims *dims,
		       int64_t positions)
{
	struct err e = ERR_INIT;

	assert_ok(transformer_init(m, fixture_kernels(backend), dims, positions, false, &e), &e);
	fixture_draw(m, 8);
}

static void open_model(struct transformer *m, const char *backend, enum dtype act)
{
	struct dims dims = fixture_dims();

	dims.act = act;
	open_sized(m, backend, &dims, 64);
}

static void close_model(struct transformer *m)
{
	struct kernels *k = m->k;

	transformer_release(m);
	kernels_close(k);
}

static struct sampler_options options(enum sampler_mode mode)
{
	return (struct sampler_options){ .mode = mode, .schedule = SCHEDULE_DDPM, .steps = 6,
					 .guidance = 2, .clamp = 4, .top_p = 0.9f, .temperature = 1,
					 .seed = 21, .max_tokens = 6, .max_images = 2 };
}

static const int32_t word[] = { 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 };

/* n prompts of 1, 2, ... tokens. */
static void make_prompts(struct segment *part, struct sampler_prompt *prompt, int n)
{
	for (int i = 0; i < n; i++) {
		part[i] = fixture_text(word + i, 1 + i % 4);
		prompt[i] = (struct sampler_prompt){ &part[i], 1, (uint64_t)i };
	}
}

static void assert_same(const struct sampler_result *a, const struct sampler_result *b, double near)
{
	assert_int_equal(a->parts, b->parts);
	assert_int_equal(a->end, b->end);
	for (int64_t n = 0; n < a->parts; n++) {
		const struct sampler_part *x = &a->part[n], *y = &b->part[n];

		assert_int_equal(x->count, y->count);
		if (!x->latent)
			assert_memory_equal(x->token, y->token, (size_t)x->count * 4);
		else if (!(fixture_largest(x->latent, y->latent, 32) <= near))
			fail_msg("pictures are %.3g apart, at most %.3g expected",
				 fixture_largest(x->latent, y->latent, 32), near);
	}
}

/* Seven prompts at once, in groups of three, and the fifth alone give the same. */
static void check_independence(const char *backend, enum dtype act, enum sampler_mode mode,
			       double near)
{
	struct err e = ERR_INIT;
	struct transformer m;
	struct sampler *wide, *narrow;
	struct sampler_options o = options(mode);
	struct segment part[7];
	struct sampler_prompt prompt[7];
	struct sampler_result all[7], groups[7], one;

	open_model(&m, backend, act);
	make_prompts(part, prompt, 7);
	assert_ok(sampler_new(&m, 7, 40, true, &wide, &e), &e);
	assert_ok(sampler_new(&m, 3, 40, true, &narrow, &e), &e);
	assert_ok(sampler_run(wide, &o, prompt, 7, NULL, all, &e), &e);
	assert_ok(sampler_run(narrow, &o, prompt, 7, NULL, groups, &e), &e);
	assert_ok(sampler_run(narrow, &o, prompt + 4, 1, NULL, &one, &e), &e);
	for (int i = 0; i < 7; i++) {
		const struct sampler_result *other[] = { &groups[i], i == 4 ? &one : &groups[i] };

		assert_same(&all[i], other[0], near);
		assert_same(&all[i], other[1], near);
	}
	for (int i = 0; i < 7; i++) {
		sampler_result_release(&all[i]);
		sampler_result_release(&groups[i]);
	}
	sampler_result_release(&one);
	sampler_free(wide);
	sampler_free(narrow);
	close_model(&m);
}

static void test_a_picture_depends_on_seed_and_index_alone(void **state)
{
	(void)state;
	check_independence("ref", DT_F32, SAMPLE_IMAGE, 1e-4);
	check_independence("cpu", DT_F32, SAMPLE_IMAGE, 1e-3);
}

static void test_a_text_depends_on_seed_and_index_alone(void **state)
{
	(void)state;
	check_independence("ref", DT_F32, SAMPLE_TEXT, 0);
	check_independence("cpu", DT_F32, SAMPLE_TEXT, 0);
}

static void test_free_sequences_do_not_disturb_each_other(void **state)
{
	(void)state;
	check_independence("ref", DT_F32, SAMPLE_FREE, 1e-4);
}

/* ---- several runs at once */

#define RUNS 6
#define DROPPED 3 /* this run leaves half way */

struct run {
	struct sampler_options o;
	struct segment part[2];
	struct sampler_prompt prompt[2];
	struct sampler_entry entry[2];
	int n, before; /* prompts; the turn before which it comes */
	bool in, over;
};

/* Other seeds, lengths, steps, guidance, temperatures, one or two prompts; but the last two differ
 * in when they come alone, and the second and third in their seeds as far as texts go. */
static void make_runs(struct run run[RUNS], enum sampler_mode mode)
{
	memset(run, 0, RUNS * sizeof *run);
	for (int r = 0; r < RUNS; r++) {
		struct run *x = &run[r];

		x->o = options(mode);
		x->o.schedule = r % 3 == 1 ? SCHEDULE_DDIM : SCHEDULE_DDPM;
		x->o.steps = 4 + 2 * (r % 4);
		x->o.guidance = 1.5f + (float)r / 2;
		x->o.temperature = r % 3 == 0 ? 0 : 0.6f + (float)(r / 3);
		x->o.max_tokens = 4 + 3 * (r % 4);
		x->o.seed = 21 + (uint64_t)(r / 2);
		if (r == RUNS - 1)
			x->o = run[r - 1].o;
		x->n = 1 + r % 2;
		x->before = mode == SAMPLE_TEXT ? r / 2 : 2 * r - (r == 2);
		for (int i = 0; i < x->n; i++) {
			x->part[i] = fixture_text(word + r, 1 + (r + i) % 4);
			x->prompt[i] = (struct sampler_prompt){ &x->part[i], 1, (uint64_t)i };
			x->entry[i].options = &x->o;
			x->entry[i].prompt = &x->prompt[i];
		}
	}
}

/* Takes in what comes before this turn; where there is no room, or by chance, the sampler grows. */
static void admit_runs(struct sampler **s, struct run *run, int turn, int64_t *most)
{
	struct err e = ERR_INIT;

	for (int r = 0; r < RUNS; r++) {
		if (run[r].in || turn < run[r].before)
			continue;
		sampler_close_up(*s);
		if (sampler_room(*s) < run[r].n)
			assert_ok(sampler_resize(s, sampler_count(*s) + run[r].n,
						 sampler_positions(*s) + 1, &e), &e);
		sampler_admit(*s, run[r].entry, run[r].n);
		run[r].in = true;
		*most = sampler_count(*s) > *most ? sampler_count(*s) : *most;
	}
}

static int leave_runs(struct sampler *s, struct run *run)
{
	int over = 0;

	for (int r = 0; r < RUNS; r++) {
		bool ended = run[r].in;

		for (int i = 0; i < run[r].n; i++)
			ended = ended && run[r].entry[i].ended;
		if (!run[r].over && (ended || (r == DROPPED && run[r].entry[0].done >= 2))) {
			sampler_drop(s, run[r].entry, run[r].n);
			run[r].over = true;
		}
		over += run[r].over;
	}
	return over;
}

static void check_joining(const char *backend, enum sampler_mode mode, int ahead, double near)
{
	struct err e = ERR_INIT;
	struct transformer m;
	struct sampler *s, *alone;
	struct run run[RUNS];
	int64_t most = 0;
	int turn = 0;

	open_model(&m, backend, DT_F32);
	make_runs(run, mode);
	assert_ok(sampler_new(&m, 2, 30, mode == SAMPLE_IMAGE, &s, &e), &e);
	assert_ok(sampler_new(&m, 2, 30, mode == SAMPLE_IMAGE, &alone, &e), &e);
	do {
		admit_runs(&s, run, turn++, &most); /* may make it anew */
		s->steps_ahead = s->tokens_ahead = ahead;
		sampler_step(s);
	} while (leave_runs(s, run) < RUNS && turn < 1000);
	assert_int_equal(sampler_count(s), 0);
	assert_true(most > 3); /* several were in at a time */
	for (int r = 0; r < RUNS; r++) {
		struct sampler_result one[2];

		assert_ok(sampler_run(alone, &run[r].o, run[r].prompt, run[r].n, NULL, one, &e),
			  &e);
		for (int i = 0; i < run[r].n; i++) {
			assert_int_equal(run[r].entry[i].ended, r != DROPPED);
			if (r != DROPPED)
				assert_same(&run[r].entry[i].result, &one[i], near);
			sampler_result_release(&run[r].entry[i].result);
			sampler_result_release(&one[i]);
		}
	}
	sampler_free(s);
	sampler_free(alone);
	close_model(&m);
}

static void test_pictures_that_join_are_as_alone(void **state)
{
	(void)state;
	check_joining("ref", SAMPLE_IMAGE, 1, 1e-4);
	check_joining("ref", SAMPLE_IMAGE, 3, 1e-4);
	check_joining("cpu", SAMPLE_IMAGE, 1, 1e-3);
}

static void test_texts_that_join_are_as_alone(void **state)
{
	(void)state;
	check_joining("ref", SAMPLE_TEXT, 1, 0);
	check_joining("ref", SAMPLE_TEXT, 3, 0);
	check_joining("cpu", SAMPLE_TEXT, 1, 0);
}

/* ---- a token alone and beside others */

#define BESIDE 16
#define CONTEXT 710
#define WIDTH 320
#define PIECES 128 /* rows of the vocabulary matrices */
#define ROUNDS 8
#define STRETCH 256

/* Keys that a sequence's row sees, the last of them its own; 0: a free row. */
static const int32_t seen[BESIDE] = { 700, 64, 0, 3, 65, 1, 512, 257,
				      710, 505, 0, 2, 500, 63, 480, 515 };

/* All that comes of a row, with and without logits; keys and values of each layer. */
struct answer {
	uint16_t x[2][WIDTH], out[WIDTH], logits[PIECES], cached[2][2][WIDTH];
};
#define ANSWER (sizeof(struct answer) / sizeof(uint16_t))

/* Elements of a stream of normals from `first` on, times `size`, rounded to bf16; and every other
 * STRETCH rows of a cache up by `swing`, those between down. */
static void draw(struct kernels *k, struct tensor to, uint64_t number, int64_t first, float size,
		 float swing)
{
	size_t n = (size_t)tensor_count(&to);
	float *value = xcalloc(n, sizeof *value);
	uint16_t *rounded = xcalloc(n, sizeof *rounded);

	philox_normals(8, PHILOX_TEST, number, (uint64_t)first, value, n);
	for (size_t i = 0; i < n; i++) {
		bool down = i / WIDTH % CONTEXT / STRETCH % 2;

		rounded[i] = bf16_from_float(size * value[i] + (down ? -swing : swing));
	}
	k->ops->upload(k, to.data, rounded, n * sizeof *rounded);
	xfree(value);
	xfree(rounded);
}

/* In the first layer keys are much alike, and values cancel each other but for little: roundings of
 * the sums on the way show in what is left, so that their order does. */
static void draw_caches(struct sampler *s)
{
	draw(s->k, s->keys[0], 1000, 0, 0.1f, 0);
	draw(s->k, s->values[0], 1001, 0, 1, 16);
	draw(s->k, s->keys[1], 1002, 0, 1, 0);
	draw(s->k, s->values[1], 1003, 0, 1, 0);
}

/* Where the sequence's row puts its key or value; of a free one, where it must not. */
static struct tensor new_row(struct tensor cache, int64_t sequence)
{
	int64_t at = sequence * CONTEXT + (seen[sequence] ? seen[sequence] - 1 : 0);

	return sampler_rows(tensor_2d(cache.data, DT_BF16, BESIDE * CONTEXT, WIDTH), at, 1);
}

/* Inputs of n sequences from `first` on: small, so that what attention adds is not lost in them. */
static void lay_rows(struct sampler *s, int64_t first, int64_t n, uint64_t round)
{
	int32_t limit[BESIDE], at[BESIDE];

	for (int64_t i = 0; i < n; i++) {
		limit[i] = seen[first + i] - 1;
		at[i] = limit[i] < 0 ? 0 : limit[i];
		for (int l = 0; l < 2; l++) {
			s->k->ops->fill(s->k, new_row(s->keys[l], first + i), 9);
			s->k->ops->fill(s->k, new_row(s->values[l], first + i), 9);
		}
	}
	s->first = first;
	s->span = n;
	sampler_send(s, LIMIT, limit, n);
	sampler_send(s, AT, at, n);
	sampler_send(s, POSITION, at, n);
	draw(s->k, sampler_rows(s->t[X_IN], 0, n), round, first * WIDTH, 1 / 64.0f, 0);
}

static void take_row(struct sampler *s, uint16_t *to, struct tensor from, int64_t row)
{
	from = sampler_rows(from, row, 1);
	s->k->ops->download(s->k, to, from.data, tensor_bytes(&from));
}

static void answer(struct sampler *s, int64_t first, int64_t n, uint64_t round, struct answer *a)
{
	lay_rows(s, first, n, round);
	sampler_blocks(s, 1, NO_TENSOR);
	for (int64_t i = 0; i < n; i++) {
		take_row(s, a[i].x[0], s->t[X_IN], i);
		take_row(s, a[i].out, s->t[NORMED], i);
	}
	lay_rows(s, first, n, round);
	sampler_blocks(s, 1, sampler_rows(s->t[LOGITS], 0, n));
	for (int64_t i = 0; i < n; i++) {
		take_row(s, a[i].x[1], s->t[X_IN], i);
		take_row(s, a[i].logits, s->t[LOGITS], i);
		for (int l = 0; l < 2; l++) {
			take_row(s, a[i].cached[l][0], new_row(s->keys[l], first + i), 0);
			take_row(s, a[i].cached[l][1], new_row(s->values[l], first + i), 0);
		}
	}
}

/* Bit for bit, but for the CPU's products: how oneDNN divides their sums depends on the number of
 * rows, and a sum that is rounded to bf16 the other way is 2^-8 apart. */
static void assert_answers(const struct kernels *k, const struct answer *a, const struct answer *b,
			   int64_t sequence)
{
	double near = strcmp(k->backend, "cpu") == 0 ? 0.02 : 0, apart;
	float x[ANSWER], y[ANSWER];

	if (memcmp(a, b, sizeof *a) == 0)
		return;
	for (size_t i = 0; i < ANSWER; i++) {
		x[i] = bf16_to_float(((const uint16_t *)a)[i]);
		y[i] = bf16_to_float(((const uint16_t *)b)[i]);
	}
	apart = fixture_distance(x, y, (int64_t)ANSWER);
	if (!(apart < near))
		fail_msg("%s: the row of sequence %d is %.3g apart alone", k->backend,
			 (int)sequence, apart);
}

/* On a GPU attention has a form for the 80 heads of all sequences and another one for the 5 of one,
 * and products differ in how many rows they are for. */
static void test_a_token_has_the_same_bits_alone(void **state)
{
	struct err e = ERR_INIT;
	const char *device[2];
	struct dims dims = fixture_dims();
	struct answer all[BESIDE], one;
	int devices = fixture_devices(device);

	(void)state;
	dims.act = DT_BF16;
	dims.d = WIDTH;
	dims.H = 5;
	dims.F = 480;
	for (int n = 0; n < devices; n++) {
		struct transformer m;
		struct sampler *s;

		open_sized(&m, device[n], &dims, CONTEXT);
		assert_ok(sampler_new(&m, BESIDE, CONTEXT, false, &s, &e), &e);
		draw_caches(s);
		for (uint64_t round = 0; round < ROUNDS; round++) {
			answer(s, 0, BESIDE, round, all);
			for (int64_t i = 0; i < BESIDE; i++) {
				answer(s, i, 1, round, &one);
				assert_answers(m.k, &one, &all[i], i);
			}
		}
		sampler_free(s);
		close_model(&m);
	}
}

/* Over many pictures: a single one may lie where the clamp doubles every rounding. */
static void test_bf16_draws_near_f32(void **state)
{
	struct err e = ERR_INIT;
	struct sampler_options o = options(SAMPLE_IMAGE);
	float latent[2][16][32];
	double apart;

	(void)state;
	o.steps = 3;
	for (int i = 0; i < 2; i++) {
		struct transformer m;
		struct sampler *s;
		struct sampler_result result[16];
		struct segment part[16];
		struct sampler_prompt prompt[16];

		open_model(&m, "cpu", i ? DT_BF16 : DT_F32);
		for (int n = 0; n < 16; n++) {
			part[n] = fixture_text(word + n % 4, 3);
			prompt[n] = (struct sampler_prompt){ &part[n], 1, (uint64_t)n };
		}
		assert_ok(sampler_new(&m, 16, 20, true, &s, &e), &e);
		assert_ok(sampler_run(s, &o, prompt, 16, NULL, result, &e), &e);
		for (int n = 0; n < 16; n++) {
			memcpy(latent[i][n], result[n].part[0].latent, sizeof latent[i][n]);
			sampler_result_release(&result[n]);
		}
		sampler_free(s);
		close_model(&m);
	}
	apart = fixture_distance(latent[1][0], latent[0][0], 16 * 32);
	if (!(apart > 0 && apart < 0.15))
		fail_msg("pictures drawn in bf16 are %.3g apart from f32", apart);
}

static void test_greedy_takes_the_likeliest_and_a_tiny_nucleus_is_greedy(void **state)
{
	struct err e = ERR_INIT;
	struct transformer m;
	struct sampler *s;
	struct segment part[3];
	struct sampler_prompt prompt[3];
	struct sampler_result greedy[3], nucleus[3];
	struct sampler_options o = options(SAMPLE_TEXT);

	(void)state;
	open_model(&m, "ref", DT_F32);
	make_prompts(part, prompt, 3);
	assert_ok(sampler_new(&m, 3, 20, false, &s, &e), &e);
	o.temperature = 0;
	assert_ok(sampler_run(s, &o, prompt, 3, NULL, greedy, &e), &e);
	o.temperature = 1.5f;
	o.top_p = 1e-6f;
	assert_ok(sampler_run(s, &o, prompt, 3, NULL, nucleus, &e), &e);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(greedy[i].parts, nucleus[i].parts);
		if (greedy[i].parts)
			assert_memory_equal(greedy[i].part[0].token, nucleus[i].part[0].token,
					    (size_t)greedy[i].part[0].count * 4);
		sampler_result_release(&greedy[i]);
		sampler_result_release(&nucleus[i]);
	}
	sampler_free(s);
	close_model(&m);
}

/* Looking after every token and looking late give the same, whatever ends when. */
static void test_running_ahead_changes_nothing(void **state)
{
	struct err e = ERR_INIT;
	struct transformer m;
	struct sampler *s;
	struct segment part[5];
	struct sampler_prompt prompt[5];
	struct sampler_result late[5], each[5];

	(void)state;
	open_model(&m, "ref", DT_F32);
	make_prompts(part, prompt, 5);
	assert_ok(sampler_new(&m, 4, 29, true, &s, &e), &e);
	for (int i = 0; i < 9; i++) {
		struct sampler_options o = options(i % 3 == 2 ? SAMPLE_TEXT : SAMPLE_FREE);

		o.temperature = i % 3 ? 2 : 0;
		o.max_tokens = 3 + 4 * i;
		o.seed = (uint64_t)i;
		s->tokens_ahead = TOKENS_AHEAD;
		s->steps_ahead = STEPS_AHEAD;
		assert_ok(sampler_run(s, &o, prompt, 5, NULL, late, &e), &e);
		s->tokens_ahead = s->steps_ahead = 1;
		assert_ok(sampler_run(s, &o, prompt, 5, NULL, each, &e), &e);
		for (int n = 0; n < 5; n++) {
			assert_same(&late[n], &each[n], 0);
			sampler_result_release(&late[n]);
			sampler_result_release(&each[n]);
		}
	}
	sampler_free(s);
	close_model(&m);
}

/* What a sampler did before, and recorded, changes nothing: each run gives what a new one gives. */
static void test_a_used_sampler_draws_as_a_new_one(void **state)
{
	struct err e = ERR_INIT;
	struct transformer m;
	struct sampler *used, *fresh;
	struct segment part[2];
	struct sampler_prompt prompt[2];
	struct sampler_result a[2], b[2];

	(void)state;
	open_model(&m, "ref", DT_F32);
	make_prompts(part, prompt, 2);
	assert_ok(sampler_new(&m, 2, 40, true, &used, &e), &e);
	for (int i = 0; i < 12; i++) {
		struct sampler_options o = options(i % 6 == 3 ? SAMPLE_FREE : SAMPLE_IMAGE);
		int n = i % 6 == 4 ? 1 : 2;

		o.seed = i % 6 == 1 ? 22 : 21;
		o.steps = i % 6 == 2 ? 9 : 6;
		o.guidance = i % 6 == 5 ? 1 : 2;
		o.schedule = i < 6 ? SCHEDULE_DDPM : SCHEDULE_DDIM;
		assert_ok(sampler_new(&m, 2, 40, true, &fresh, &e), &e);
		assert_true(sampler_is_for(used, 2, 40, true));
		assert_ok(sampler_run(used, &o, prompt, n, NULL, a, &e), &e);
		assert_ok(sampler_run(used, &o, prompt, n, NULL, b, &e), &e);
		for (int k = 0; k < n; k++) {
			assert_same(&a[k], &b[k], 0);
			sampler_result_release(&b[k]);
		}
		assert_ok(sampler_run(fresh, &o, prompt, n, NULL, b, &e), &e);
		for (int k = 0; k < n; k++) {
			assert_same(&a[k], &b[k], 0);
			sampler_result_release(&a[k]);
			sampler_result_release(&b[k]);
		}
		sampler_free(fresh);
	}
	sampler_free(used);
	close_model(&m);
}

static bool stop_at_third(void *arg, const char *phase, int64_t done, int64_t total)
{
	int *calls = arg;

	(void)phase, (void)done, (void)total;
	return ++*calls == 3;
}

static void test_stopping_leaves_nothing_behind(void **state)
{
	struct err e = ERR_INIT;
	struct transformer m;
	struct sampler *s;
	struct segment part[4];
	struct sampler_prompt prompt[4];
	struct sampler_result result[4];

	(void)state;
	open_model(&m, "ref", DT_F32);
	make_prompts(part, prompt, 4);
	assert_ok(sampler_new(&m, 2, 40, true, &s, &e), &e);
	for (int mode = SAMPLE_IMAGE; mode <= SAMPLE_FREE; mode++) {
		struct sampler_options o = options((enum sampler_mode)mode);
		/* in the second group: one call for the prompts, then one for each look */
		int calls = mode == SAMPLE_IMAGE ? 1 - (int)(5 / s->steps_ahead + 1) : 0;
		struct sampler_watch watch = { stop_at_third, &calls };

		err_clear(&e);
		assert_int_equal(sampler_run(s, &o, prompt, 4, &watch, result, &e), TF_ECANCELLED);
		assert_true(e.text[0] != 0);
	}
	sampler_free(s);
	close_model(&m);
}

static void test_wrong_options_are_refused(void **state)
{
	struct err e = ERR_INIT;
	struct transformer m;
	struct sampler *s;
	struct sampler_result result;
	const struct segment text = fixture_text(word, 2);
	const struct sampler_prompt prompt = { &text, 1, 0 };
	struct sampler_options o[10];
	const char *said[10] = { "steps", "steps", "guidance", "clamp", "temperature", "top-p",
				 "top-p", "tokens", "pictures", "branch" };

	(void)state;
	open_model(&m, "ref", DT_F32);
	assert_ok(sampler_new(&m, 1, 20, false, &s, &e), &e);
	for (int i = 0; i < 10; i++) {
		o[i] = options(SAMPLE_FREE);
		o[i].guidance = i == 9 ? 2 : 1;
	}
	o[0].steps = 0;
	o[1].steps = 1001;
	o[2].guidance = -1;
	o[3].clamp = -1;
	o[4].temperature = NAN;
	o[5].top_p = 0;
	o[6].top_p = 1.5f;
	o[7].max_tokens = 0;
	o[8].max_images = -1;
	for (int i = 0; i < 10; i++) {
		err_clear(&e);
		assert_int_equal(sampler_run(s, &o[i], &prompt, 1, NULL, &result, &e), TF_EINVALID);
		assert_non_null(strstr(e.text, said[i]));
	}
	sampler_free(s);
	assert_int_equal(sampler_new(&m, 1, 65, false, &s, &e), TF_ELIMIT);
	assert_int_equal(sampler_new(&m, 0, 20, false, &s, &e), TF_EINVALID);
	close_model(&m);
}

static void test_wrong_prompts_are_refused(void **state)
{
	struct err e = ERR_INIT;
	struct transformer m;
	struct sampler *s;
	struct sampler_result result;
	struct sampler_options o = options(SAMPLE_IMAGE);
	const int32_t special[] = { 40 };
	float latent[32] = { 0 };
	const struct segment bad[] = { fixture_text(special, 1), fixture_image(NULL, 0, 0),
				       fixture_image(latent, 5, 0), fixture_text(word, -1) };
	const struct segment good = fixture_text(word, 1);
	const struct sampler_prompt far = { &good, 1, UINT64_C(1) << 40 };

	(void)state;
	open_model(&m, "ref", DT_F32);
	assert_ok(sampler_new(&m, 1, 30, true, &s, &e), &e);
	for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
		const struct sampler_prompt prompt = { &bad[i], 1, 0 };

		err_clear(&e);
		assert_int_equal(sampler_run(s, &o, &prompt, 1, NULL, &result, &e), TF_EINVALID);
		assert_true(e.text[0] != 0);
	}
	assert_int_equal(sampler_run(s, &o, &far, 1, NULL, &result, &e), TF_EINVALID);
	sampler_free(s);
	close_model(&m);
}

static void test_contexts_are_as_long_as_said(void **state)
{
	struct dims m = fixture_dims();
	struct sampler_options o = options(SAMPLE_IMAGE);
	const struct segment part[] = { fixture_text(word, 3), fixture_image((const float[32]){ 0 },
									  0, 0) };
	const struct sampler_prompt prompt = { part, 2, 0 };

	(void)state;
	assert_int_equal(sampler_prompt_length(&m, &prompt), 1 + 3 + 6);
	assert_int_equal(sampler_context(&m, &o, 10), 16);
	o.mode = SAMPLE_TEXT;
	assert_int_equal(sampler_context(&m, &o, 10), 16);
	o.mode = SAMPLE_FREE;
	assert_int_equal(sampler_context(&m, &o, 10), 10 + 6 + 2 * 6);
}

static void test_memory_is_what_was_planned(void **state)
{
	struct err e = ERR_INIT;
	struct transformer m;
	struct sampler *s;
	struct memory_plan plan;

	(void)state;
	open_model(&m, "ref", DT_BF16);
	transformer_memory(&m.dims, 64, false, false, &plan);
	assert_int_equal(plan.weights, m.params.total * 6);
	assert_int_equal(plan.constants, 2 * 64 * 4 * sizeof(float));
	assert_ok(sampler_new(&m, 3, 33, true, &s, &e), &e);
	sampler_memory(&m.dims, 3, 33, true, &plan);
	assert_int_equal(plan.activations, s->plan.bytes);
	assert_true(memory_plan_total(&plan) > plan.activations + plan.weights);
	sampler_free(s);
	close_model(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_picture_depends_on_seed_and_index_alone),
		cmocka_unit_test(test_a_text_depends_on_seed_and_index_alone),
		cmocka_unit_test(test_free_sequences_do_not_disturb_each_other),
		cmocka_unit_test(test_pictures_that_join_are_as_alone),
		cmocka_unit_test(test_texts_that_join_are_as_alone),
		cmocka_unit_test(test_a_token_has_the_same_bits_alone),
		cmocka_unit_test(test_bf16_draws_near_f32),
		cmocka_unit_test(test_greedy_takes_the_likeliest_and_a_tiny_nucleus_is_greedy),
		cmocka_unit_test(test_running_ahead_changes_nothing),
		cmocka_unit_test(test_a_used_sampler_draws_as_a_new_one),
		cmocka_unit_test(test_stopping_leaves_nothing_behind),
		cmocka_unit_test(test_wrong_options_are_refused),
		cmocka_unit_test(test_wrong_prompts_are_refused),
		cmocka_unit_test(test_contexts_are_as_long_as_said),
		cmocka_unit_test(test_memory_is_what_was_planned),
	};

	return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
