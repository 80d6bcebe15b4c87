/* SPDX-License-Identifier: Apache-2.0
 * The cases of kernelcheck: a function an operation, a row each in the table at the end. Shapes
 * are odd on purpose: widths that no vector divides, single rows, ignored rows. */
#include "config.h"
#include "tests/kernels/cases.h"
#include "lib/mem.h"

#include <math.h>

static void do_convert(struct run *r)
{
	TIMED(OPS->convert(r->k, out2(r, DT_BF16, D(0), D(1)), run_input2(r, r->act, D(0), D(1))));
	r->bytes = D(0) * D(1) * 6.0;
}

static void do_fill(struct run *r)
{
	TIMED(OPS->fill(r->k, out2(r, r->act, D(0), D(1)), 0.375f));
}

static void do_add(struct run *r)
{
	struct tensor a = run_input2(r, r->act, D(0), D(1)), b = run_input2(r, r->act, D(0), D(1));

	TIMED(OPS->add(r->k, out2(r, r->act, D(0), D(1)), a, b));
	r->bytes = D(0) * D(1) * 3.0 * dtype_bytes(r->act);
}

static void do_scale(struct run *r)
{
	TIMED(OPS->scale(r->k, run_changes(r, run_input2(r, r->act, D(0), D(1))), 0.3f));
}

static void do_lerp(struct run *r)
{
	struct tensor to = run_changes(r, run_input2(r, DT_F32, D(0), D(1)));

	TIMED(OPS->lerp(r->k, to, run_input2(r, DT_F32, D(0), D(1)), 0.01f));
	r->bytes = D(0) * D(1) * 12.0;
}

static void do_silu(struct run *r)
{
	TIMED(OPS->silu(r->k, out2(r, r->act, D(0), D(1)), run_input2(r, r->act, D(0), D(1))));
}

static void do_silu_backward(struct run *r)
{
	struct tensor dy = run_input2(r, r->act, D(0), D(1)), x = run_input2(r, r->act, D(0), D(1));

	TIMED(OPS->silu_backward(r->k, out2(r, r->act, D(0), D(1)), dy, x));
}

static void do_sum(struct run *r)
{
	TIMED(OPS->sum(r->k, out1(r, 1).data, run_input1(r, DT_F32, D(0)).data, D(0)));
}

static void do_sum_squares(struct run *r)
{
	TIMED(OPS->sum_squares(r->k, out1(r, 1).data, run_input1(r, DT_F32, D(0)).data, D(0)));
	r->bytes = D(0) * 4.0;
}

/* m, n, k, transposes (bit 0: a, bit 1: b), bias, beta */
static void do_matmul(struct run *r)
{
	bool ta = D(3) & 1, tb = D(3) & 2;
	struct tensor a = run_input2(r, r->act, ta ? D(2) : D(0), ta ? D(0) : D(2));
	struct tensor b = run_input2(r, r->act, tb ? D(1) : D(2), tb ? D(2) : D(1));
	struct tensor bias = D(4) ? run_input1(r, DT_F32, D(1)) : NONE;
	struct tensor c = D(5) ? run_changes(r, run_input2(r, D(5) == 1 ? DT_F32 : r->act, D(0),
							   D(1)))
			       : out2(r, r->act, D(0), D(1));

	TIMED(OPS->matmul(r->k, c, a, ta, b, tb, bias, D(5) ? 1 : 0));
	r->flops = 2.0 * D(0) * D(1) * D(2);
}

/* m, n, k */
static void do_matmul_add(struct run *r)
{
	struct tensor x = run_input2(r, r->act, D(0), D(1)), a = run_input2(r, r->act, D(0), D(2));
	struct tensor b = run_input2(r, r->act, D(1), D(2)), c = out2(r, r->act, D(0), D(1));

	TIMED(OPS->matmul_add(r->k, c, x, a, b));
	r->flops = 2.0 * D(0) * D(1) * D(2);
}

static void do_bias_backward(struct run *r)
{
	struct tensor to = run_changes(r, run_input1(r, DT_F32, D(1)));

	TIMED(OPS->bias_backward(r->k, to, run_input2(r, r->act, D(0), D(1))));
}

static void do_embed(struct run *r)
{
	struct tensor out = run_changes(r, run_input2(r, r->act, D(0), D(1)));
	struct tensor table = run_input2(r, r->act, D(2), D(1));

	TIMED(OPS->embed(r->k, out, table, run_integers(r, D(0), -1, D(2) - 1)));
}

static void do_embed_backward(struct run *r)
{
	struct tensor to = run_changes(r, run_input2(r, DT_F32, D(2), D(1)));
	struct tensor dout = run_input2(r, r->act, D(0), D(1));

	TIMED(OPS->embed_backward(r->k, to, dout, run_integers(r, D(0), -1, D(2) - 1)));
	r->bytes = D(0) * D(1) * (8.0 + dtype_bytes(r->act));
}

static void do_gather_rows(struct run *r)
{
	struct tensor in = run_input2(r, r->act, D(2), D(1));

	TIMED(OPS->gather_rows(r->k, out2(r, r->act, D(0), D(1)), in, run_distinct(r, D(0), D(2))));
	r->bytes = D(0) * D(1) * 2.0 * dtype_bytes(r->act);
}

static void do_scatter_rows(struct run *r)
{
	struct tensor to = run_changes(r, run_input2(r, r->act, D(2), D(1)));
	struct tensor in = run_input2(r, r->act, D(0), D(1));

	TIMED(OPS->scatter_rows(r->k, to, in, run_distinct(r, D(0), D(2))));
}

static void do_scatter_add_rows(struct run *r)
{
	struct tensor to = run_changes(r, run_input2(r, r->act, D(2), D(1)));
	struct tensor in = run_input2(r, r->act, D(0), D(1));

	TIMED(OPS->scatter_add_rows(r->k, to, in, run_distinct(r, D(0), D(2))));
}

static void do_add_per_image(struct run *r)
{
	struct tensor rows = run_changes(r, run_input2(r, r->act, D(0) * D(2), D(1)));

	TIMED(OPS->add_per_image(r->k, rows, run_input2(r, r->act, D(0), D(1))));
}

static void do_add_per_image_backward(struct run *r)
{
	struct tensor rows = run_input2(r, r->act, D(0) * D(2), D(1));

	TIMED(OPS->add_per_image_backward(r->k, out2(r, r->act, D(0), D(1)), rows));
}

/* rows, heads, head dim, inverse */
static void do_rope(struct run *r)
{
	struct tensor qkv = run_changes(r, run_input4(r, r->act, D(0), 3, D(1), D(2)));
	struct tensor cosine = run_input2(r, DT_F32, 40, D(2) / 2);
	struct tensor sine = run_input2(r, DT_F32, 40, D(2) / 2);

	TIMED(OPS->rope(r->k, qkv, (int)D(1), cosine, sine, run_integers(r, D(0), 0, 39), D(3)));
	r->bytes = D(0) * D(1) * D(2) * 4.0 * dtype_bytes(r->act);
}

/* Intervals of packed documents of `document` positions, every second one with an image of `image`
 * patches behind its first third, or at its end. Returns the allowed pairs. */
static double intervals(struct run *r, int64_t B, int64_t T, int64_t document, int64_t image,
			struct tensor *start, struct tensor *limit)
{
	int64_t room = document - image, before = document / 3 < room ? document / 3 : room;
	int32_t *from = xcalloc(B * T, sizeof *from), *to = xcalloc(B * T, sizeof *to);
	double pairs = 0;

	CHECK(before >= 0); /* neither start nor limit may decrease */
	for (int64_t i = 0; i < B * T; i++) {
		int64_t t = i % T, first = t / document * document, at = t - first - before;
		bool patch = t / document % 2 == 0 && at >= 0 && at < image;

		from[i] = (int32_t)first;
		to[i] = (int32_t)(patch ? t - at + image - 1 : t);
		if (to[i] >= T)
			to[i] = (int32_t)T - 1;
		pairs += to[i] - from[i] + 1;
	}
	*start = run_i32(r, B * T, from);
	*limit = run_i32(r, B * T, to);
	*start = tensor_2d(start->data, DT_I32, B, T);
	*limit = tensor_2d(limit->data, DT_I32, B, T);
	xfree(from);
	xfree(to);
	return pairs;
}

/* B, T, heads, head dim, document, image */
static void do_attention(struct run *r)
{
	struct tensor qkv = run_input4(r, r->act, D(0) * D(1), 3, D(2), D(3)), start, limit;
	double pairs = intervals(r, D(0), D(1), D(4), D(5), &start, &limit);
	struct tensor out = out2(r, r->act, D(0) * D(1), D(2) * D(3));
	struct tensor lse = run_output(r, tensor_3d(NULL, DT_F32, D(0), D(2), D(1)));

	TIMED(OPS->attention(r->k, out, lse, qkv, (int)D(2), start, limit));
	r->flops = 4 * pairs * D(2) * D(3);
}

static void do_attention_backward(struct run *r)
{
	struct tensor qkv = run_input4(r, r->act, D(0) * D(1), 3, D(2), D(3)), start, limit;
	double pairs = intervals(r, D(0), D(1), D(4), D(5), &start, &limit);
	struct tensor dout = run_input2(r, r->act, D(0) * D(1), D(2) * D(3));
	struct tensor out = out2(r, r->act, D(0) * D(1), D(2) * D(3));
	struct tensor lse = run_output(r, tensor_3d(NULL, DT_F32, D(0), D(2), D(1)));
	struct tensor dqkv = run_output(r, tensor_4d(NULL, r->act, D(0) * D(1), 3, D(2), D(3)));

	struct turned turned = { run_input2(r, DT_F32, 40, D(3) / 2),
				 run_input2(r, DT_F32, 40, D(3) / 2),
				 run_integers(r, D(0) * D(1), 0, 39) };

	OPS->attention(r->k, out, lse, qkv, (int)D(2), start, limit);
	TIMED(OPS->attention_backward(r->k, dqkv, dout, out, lse, qkv, (int)D(2), start, limit,
				      D(6) ? &turned : NULL));
	r->flops = 10 * pairs * D(2) * D(3);
}

/* S, n, heads, head dim, capacity, keys there already */
static void do_attention_cached(struct run *r)
{
	int64_t rows = D(0) * D(1), width = D(2) * D(3);
	int32_t *at = xcalloc(D(0), sizeof *at), *limit = xcalloc(rows, sizeof *limit);
	struct tensor qkv = run_input4(r, r->act, rows, 3, D(2), D(3));
	struct tensor keys = run_changes(r, run_input3(r, r->act, D(0), D(4), width));
	struct tensor values = run_changes(r, run_input3(r, r->act, D(0), D(4), width));

	for (int64_t s = 0; s < D(0); s++)
		at[s] = (int32_t)(D(5) > s ? D(5) - s : 0);
	for (int64_t i = 0; i < rows; i++)
		limit[i] = i % 5 == 4 || i % D(1) >= 64 ? -1
							: (int32_t)(at[i / D(1)] + i % D(1));
	TIMED(OPS->attention_cached(r->k, out2(r, r->act, rows, width), qkv, (int)D(2), keys,
				    values, run_i32(r, D(0), at), run_i32(r, rows, limit)));
	r->bytes = 2.0 * D(0) * D(5) * width * dtype_bytes(r->act);
	xfree(at);
	xfree(limit);
}

/* A weight of rows x columns, scaled so that outputs are of a size with inputs. */
static struct tensor run_weight(struct run *r, int64_t rows, int64_t columns)
{
	struct tensor w = run_input2(r, r->act, rows, columns);

	OPS->scale(r->k, w, 1 / sqrtf((float)columns));
	return w;
}

/* S, n, heads, head dim, capacity, keys there already, a vocabulary (0: none) for which all rows
 * but the last of several have logits; two layers of feed-forward 3/2 as wide, or 8/3 where S is
 * odd. */
static void do_cached_layers(struct run *r)
{
	int64_t S = D(0), rows = S * D(1), d = D(2) * D(3);
	int64_t F = S % 2 ? d * 8 / 3 / 32 * 32 : d * 3 / 2 / 8 * 8;
	int32_t *at = xcalloc(S, sizeof *at), *limit = xcalloc(rows, sizeof *limit),
		*position = xcalloc(rows, sizeof *position);
	struct cached_layer layer[2];
	struct cached_layers c = { .layer = layer, .layers = 2, .heads = (int)D(2), .eps = 1e-5f };

	for (int64_t i = 0; i < rows; i++) {
		int64_t s = i / D(1);

		at[s] = (int32_t)(D(5) > 3 * s ? D(5) - 3 * s : 0);
		position[i] = (int32_t)(at[s] + i % D(1));
		limit[i] = i % 7 == 5 ? -1 : position[i];
	}
	for (int l = 0; l < 2; l++)
		layer[l] = (struct cached_layer){
			run_input1(r, DT_F32, d), run_input1(r, DT_F32, d),
			run_weight(r, 3 * d, d), run_weight(r, d, d),
			run_weight(r, 2 * F, d), run_weight(r, d, F),
			run_changes(r, run_input3(r, r->act, S, D(4), d)),
			run_changes(r, run_input3(r, r->act, S, D(4), d)),
		};
	c.norm = run_input1(r, DT_F32, d);
	c.x = run_changes(r, run_input2(r, r->act, rows, d));
	c.cosine = run_input2(r, DT_F32, D(4), D(3) / 2);
	c.sine = run_input2(r, DT_F32, D(4), D(3) / 2);
	c.position = run_i32(r, rows, position);
	c.limit = run_i32(r, rows, limit);
	c.at = run_i32(r, S, at);
	c.h = run_input2(r, r->act, rows, d);
	c.qkv = run_input2(r, r->act, rows, 3 * d);
	c.attention = run_input2(r, r->act, rows, d);
	c.gate_up = run_input2(r, r->act, rows, 2 * F);
	c.swiglu = run_input2(r, r->act, rows, F);
	c.rstd = run_input1(r, DT_F32, rows);
	if (D(6)) {
		c.head = run_weight(r, D(6), d);
		c.out = run_input2(r, r->act, rows, d);
		c.logits = out2(r, r->act, rows > 1 ? rows - 1 : 1, D(6));
	} else {
		c.out = out2(r, r->act, rows, d);
	}
	TIMED(OPS->cached_layers(r->k, &c));
	r->bytes = (2.0 * S * D(5) * d + 4.0 * d * d + 3.0 * d * F) * 2 * dtype_bytes(r->act);
	xfree(at);
	xfree(limit);
	xfree(position);
}

/* rows, width, vocab, backward */
static void do_cross_entropy(struct run *r)
{
	struct tensor x = run_input2(r, r->act, D(0), D(1)), weight = run_input1(r, DT_F32, D(0));
	struct tensor target = run_integers(r, D(0), -1, D(2) - 1);

	if (D(3))
		x = run_changes(r, x);
	TIMED(OPS->cross_entropy(r->k, out1(r, D(0)), x, target, weight, D(2), D(3)));
	r->bytes = D(0) * D(1) * 2.0 * dtype_bytes(r->act);
}

static void do_mse_rows(struct run *r)
{
	struct tensor x = run_input2(r, r->act, D(0), D(1)), y = run_input2(r, DT_F32, D(0), D(1));
	struct tensor weight = run_input1(r, DT_F32, D(0));
	struct tensor dx = D(2) ? out2(r, r->act, D(0), D(1)) : NONE;

	TIMED(OPS->mse_rows(r->k, out1(r, D(0)), dx, x, y, weight));
}

static void do_argmax(struct run *r)
{
	struct tensor out = run_output(r, tensor_1d(NULL, DT_I32, D(0)));

	TIMED(OPS->argmax(r->k, out, run_input2(r, r->act, D(0), D(1)), D(2)));
}

static struct tensor samples(struct run *r, int64_t n)
{
	struct tensor i32 = run_integers(r, 2 * n, 0, 1 << 20);

	return tensor_1d(i32.data, DT_I64, n);
}

static void do_normals(struct run *r)
{
	TIMED(OPS->normals(r->k, out2(r, DT_F32, D(0), D(1)), 77, PHILOX_TEST, samples(r, D(0))));
}

static void do_add_noise(struct run *r)
{
	struct tensor x = run_input2(r, DT_F32, D(0), D(1)),
		      eps = run_input2(r, DT_F32, D(0), D(1));
	struct tensor signal = run_input1(r, DT_F32, D(0)), sigma = run_input1(r, DT_F32, D(0));

	TIMED(OPS->add_noise(r->k, out2(r, DT_F32, D(0), D(1)), x, eps, signal, sigma));
}

/* n, h, w, c, patch */
static void do_patchify(struct run *r)
{
	int64_t rows = D(0) * (D(1) / D(4)) * (D(2) / D(4)), width = D(4) * D(4) * D(3);

	TIMED(OPS->patchify(r->k, out2(r, r->act, rows, width),
			    run_input4(r, DT_F32, D(0), D(1), D(2), D(3)), (int)D(4)));
}

static void do_unpatchify(struct run *r)
{
	int64_t rows = D(0) * (D(1) / D(4)) * (D(2) / D(4)), width = D(4) * D(4) * D(3);

	TIMED(OPS->unpatchify(r->k, run_output(r, tensor_4d(NULL, DT_F32, D(0), D(1), D(2), D(3))),
			      run_input2(r, r->act, rows, width), (int)D(4)));
}

static void do_time_embedding(struct run *r)
{
	struct tensor time = run_input1(r, DT_F32, D(0));

	TIMED(OPS->time_embedding(r->k, out2(r, r->act, D(0), D(1)), time));
}

/* Values of the host's, as an input. */
static struct tensor run_values(struct run *r, int64_t n, const float *values)
{
	struct tensor t = run_input1(r, DT_F32, n);

	OPS->upload(r->k, t.data, values, (size_t)n * sizeof *values);
	return t;
}

/* n, guided, clamped, noisy: 1, or 2 where only sigma says that nothing is added */
static void do_denoise(struct run *r)
{
	const float step[DENOISE_VALUES] = { 0.8f, 0.6f, 0.7f, 0.2f, 0.1f, D(3) == 2 ? 0 : 0.05f };
	struct tensor x = run_changes(r, run_input1(r, DT_F32, D(0)));
	struct denoise d = { .x = x.data,
			     .eps_c = run_input1(r, DT_F32, D(0)).data,
			     .n = D(0),
			     .eps_u = D(1) ? run_input1(r, DT_F32, D(0)).data : NULL,
			     .noise = D(3) ? run_input1(r, DT_F32, D(0)).data : NULL,
			     .step = run_values(r, DENOISE_VALUES, step).data,
			     .guidance = 3,
			     .clamp = D(2) ? 0.9f : 0 };

	TIMED(OPS->denoise(r->k, &d));
}

/* rows, width, vocab, temperature and top_p in hundredths */
static void do_draw_tokens(struct run *r)
{
	struct tensor logits = run_input2(r, r->act, D(0), D(1));
	struct tensor out = run_output(r, tensor_1d(NULL, DT_I32, D(0)));
	struct tensor index = run_integers(r, 2 * D(0), 0, 1 << 20);
	struct tensor position = run_integers(r, D(0), 0, 4000);

	index = tensor_1d(index.data, DT_I64, D(0));
	OPS->scale(r->k, logits, 3);
	TIMED(OPS->draw_tokens(r->k, out, logits, D(2), (float)D(3) / 100, (float)D(4) / 100, 77,
			       index, position));
}

/* n, kept steps, steps before */
static void do_advance_tokens(struct run *r)
{
	const int32_t before = (int32_t)D(2);
	struct token_rows t = { .n = D(0), .steps = D(1) };

	t.token = run_output(r, tensor_1d(NULL, DT_I32, D(0))).data;
	t.position = run_changes(r, run_integers(r, D(0), 0, 99)).data;
	t.at = run_changes(r, run_integers(r, D(0), 0, 99)).data;
	t.limit = run_changes(r, run_integers(r, D(0), -1, 3)).data;
	t.drawn = run_integers(r, D(0), 0, 1000).data;
	t.history = run_output(r, tensor_1d(NULL, DT_I32, D(0) * D(1))).data;
	t.counter = run_changes(r, run_i32(r, 1, &before)).data;
	TIMED(OPS->advance_tokens(r->k, &t));
}

/* rows, width, rows taken before */
static void do_next_row(struct run *r)
{
	const int32_t before = (int32_t)D(2);
	struct tensor table = run_input2(r, DT_F32, D(0), D(1));
	struct tensor counter = run_changes(r, run_i32(r, 1, &before));

	TIMED(OPS->next_row(r->k, out1(r, D(1)), table, counter));
}

/* n, decayed, step, resident, clip, more: the sum of
 * 1: an average goes along; 2: the norm is no number; 4: two steps were left out before;
 * 8: bf16 moments, 16: rounded by chance */
static void do_adamw(struct run *r)
{
	struct tensor p = run_changes(r, run_input1(r, DT_F32, D(0)));
	enum dtype moments = D(5) & 8 ? DT_BF16 : DT_F32;
	struct tensor m = run_changes(r, run_input1(r, moments, D(0)));
	struct tensor v = run_changes(r, run_input1(r, moments, D(0)));
	struct tensor g = run_input1(r, DT_F32, D(0)), norm = run_input1(r, DT_F32, 1);
	struct tensor average = run_changes(r, run_input1(r, DT_F32, D(5) & 1 ? D(0) : 0));
	struct tensor skipped = run_changes(r, run_integers(r, 1, D(5) & 4 ? 2 : 0,
							    D(5) & 4 ? 2 : 0));
	struct tensor copy = run_changes(r, run_input1(r, DT_BF16, D(3) ? D(0) : 0));
	struct adamw a = { .master = p.data,
			   .grad = g.data,
			   .m = m.data,
			   .v = v.data,
			   .n = D(0),
			   .resident = D(3) ? copy.data : NULL,
			   .moments = moments,
			   .stochastic = D(5) & 16,
			   .seed = r->seed,
			   .average = D(5) & 1 ? average.data : NULL,
			   .average_weight = 0.125f,
			   .grad_norm2 = norm.data,
			   .skipped = skipped.data,
			   .decayed = D(1),
			   .step = D(2),
			   .lr = 1e-2f,
			   .beta1 = 0.9f,
			   .beta2 = 0.95f,
			   .eps = 1e-8f,
			   .weight_decay = 0.1f,
			   .grad_scale = 0.5f,
			   .clip = (float)D(4) };

	OPS->fill(r->k, v, 0.25f);
	OPS->sum_squares(r->k, norm.data, g.data, D(0));
	if (D(5) & 2)
		OPS->fill(r->k, norm, NAN);
	TIMED(OPS->adamw(r->k, &a));
	r->bytes = D(0) * (moments == DT_BF16 ? 20.0 : 28.0);
}

const struct op_case op_cases[] = {
	{ "convert", do_convert, true, 1,
	  { { 3, 7 }, { 1, 1025 }, { 37, 600 } },
	  { { 2048, 2048 } } },
	{ "fill", do_fill, true, 1, { { 3, 7 }, { 1, 1025 } }, { { 0 } } },
	{ "add", do_add, true, 1, { { 3, 7 }, { 1, 1025 }, { 37, 600 } }, { { 2048, 1536 } } },
	{ "scale", do_scale, true, 1, { { 3, 7 }, { 37, 600 } }, { { 0 } } },
	{ "lerp", do_lerp, false, 1, { { 3, 7 }, { 37, 600 } }, { { 2048, 1536 } } },
	{ "silu", do_silu, true, 1, { { 3, 7 }, { 37, 600 } }, { { 0 } } },
	{ "silu_backward", do_silu_backward, true, 1, { { 3, 7 }, { 37, 600 } }, { { 0 } } },
	{ "sum", do_sum, false, 100, { { 1 }, { 4097 }, { 300001 } }, { { 0 } } },
	{ "sum_squares", do_sum_squares, false, 1,
	  { { 1 }, { 4097 }, { 300001 } },
	  { { 1 << 24 } } },
	{ "matmul", do_matmul, true, 1,
	  { { 5, 7, 3, 0, 1, 0 },
	    { 33, 65, 17, 2, 1, 0 },
	    { 64, 96, 130, 1, 0, 1 },
	    { 1, 128, 192, 2, 0, 0 } },
	  { { 1792, 576, 192, 2, 0, 0 },
	    { 1792, 192, 512, 2, 0, 0 },
	    { 1792, 192, 1024, 0, 0, 0 } } },
	{ "matmul", do_matmul, true, 1,
	  { { 9, 40, 24, 3, 0, 1 }, { 192, 576, 256, 1, 0, 1 } },
	  { { 576, 192, 1792, 1, 0, 1 }, { 192, 512, 1792, 1, 0, 1 } } },
	{ "matmul", do_matmul, true, 1,
	  { { 1, 33, 40, 2, 0, 0 },
	    { 7, 130, 1000, 2, 1, 0 },
	    { 16, 17, 264, 2, 0, 1 },
	    { 9, 64, 4096, 2, 1, 1 } },
	  { { 1, 8192, 1536, 2, 0, 0 }, { 8, 8192, 1536, 2, 0, 0 }, { 8, 32768, 1536, 2, 0, 0 } } },
	{ "matmul", do_matmul, true, 1,
	  { { 8, 31, 8, 2, 1, 0 },
	    { 3, 1, 2056, 2, 0, 0 },
	    { 16, 300, 72, 2, 1, 2 },
	    { 17, 40, 64, 2, 0, 2 } },
	  { { 0 } } },
	/* as large as a vocabulary's, which Hopper copies ahead */
	{ "matmul", do_matmul, true, 1,
	  { { 9, 33000, 520, 2, 0, 0 }, { 3, 9000, 1900, 2, 0, 0 }, { 2, 4100, 4104, 2, 0, 2 } },
	  { { 0 } } },
	{ "matmul_add", do_matmul_add, true, 1,
	  { { 5, 7, 3 }, { 33, 65, 17 }, { 16, 40, 64 }, { 130, 192, 512 } },
	  { { 1792, 192, 512 }, { 32768, 1536, 4096 }, { 32768, 1536, 1536 } } },
	{ "bias_backward", do_bias_backward, true, 2,
	  { { 1, 5 }, { 77, 130 }, { 600, 300 } },
	  { { 0 } } },
	{ "embed", do_embed, true, 1, { { 5, 7, 3 }, { 70, 513, 100 } }, { { 0 } } },
	{ "embed_backward", do_embed_backward, true, 1,
	  { { 5, 7, 3 }, { 300, 513, 20 } },
	  { { 1792, 192, 384 } } },
	{ "gather_rows", do_gather_rows, true, 1,
	  { { 5, 7, 9 }, { 70, 513, 100 } },
	  { { 2048, 1536, 4096 } } },
	{ "scatter_rows", do_scatter_rows, true, 1, { { 5, 7, 9 }, { 70, 513, 100 } }, { { 0 } } },
	{ "scatter_add_rows", do_scatter_add_rows, true, 1,
	  { { 5, 7, 9 }, { 70, 513, 100 } },
	  { { 0 } } },
	{ "add_per_image", do_add_per_image, true, 1, { { 2, 7, 3 }, { 9, 130, 16 } }, { { 0 } } },
	{ "add_per_image_backward", do_add_per_image_backward, true, 1,
	  { { 2, 7, 3 }, { 9, 130, 16 } },
	  { { 0 } } },
	{ "rope", do_rope, true, 1,
	  { { 3, 1, 2, 0 }, { 17, 3, 32, 1 }, { 50, 2, 128, 0 } },
	  { { 1792, 6, 32, 0 }, { 4096, 16, 64, 0 } } },
	{ "attention", do_attention, true, 1,
	  { { 1, 1, 1, 64, 1, 0 }, { 2, 45, 3, 32, 17, 5 }, { 1, 130, 2, 64, 130, 33 },
	    { 1, 300, 1, 128, 101, 16 } },
	  { { 7, 256, 6, 32, 30, 16 } } },
	{ "attention", do_attention, true, 1,
	  { { 2, 517, 2, 64, 70, 33 }, { 1, 700, 1, 64, 322, 256 }, { 2, 517, 1, 128, 70, 33 },
	    { 1, 700, 1, 128, 322, 256 } },
	  { { 0 } } },
	{ "attention", do_attention, true, 1,
	  { { 2, 256, 2, 64, 256, 0 }, { 1, 1000, 2, 64, 450, 130 },
	    { 1, 1000, 1, 128, 450, 130 } },
	  { { 1, 4096, 4, 64, 4096, 0 } } },
	{ "attention_backward", do_attention_backward, true, 2,
	  { { 1, 1, 1, 64, 1, 0, 0 }, { 2, 45, 3, 32, 17, 5, 1 }, { 1, 130, 2, 64, 130, 33, 0 },
	    { 1, 300, 1, 128, 101, 16, 0 } },
	  { { 7, 256, 6, 32, 30, 16, 1 } } },
	{ "attention_backward", do_attention_backward, true, 2,
	  { { 2, 517, 2, 64, 70, 33, 1 }, { 1, 700, 1, 64, 322, 256, 0 },
	    { 2, 517, 1, 128, 70, 33, 1 }, { 1, 700, 1, 128, 322, 256, 0 } },
	  { { 0 } } },
	{ "attention_backward", do_attention_backward, true, 2,
	  { { 2, 256, 2, 64, 256, 0, 0 }, { 1, 1000, 2, 64, 450, 130, 1 },
	    { 1, 1000, 1, 128, 450, 130, 1 } },
	  { { 1, 4096, 4, 64, 4096, 0, 1 } } },
	/* more tiles than a GPU has multiprocessors */
	{ "attention", do_attention, true, 1,
	  { { 1, 200, 72, 64, 130, 33 }, { 1, 130, 72, 128, 101, 33 } },
	  { { 0 } }, 1 << 2 },
	{ "attention_backward", do_attention_backward, true, 2,
	  { { 1, 130, 72, 64, 101, 33, 1 }, { 1, 130, 72, 128, 101, 33, 0 } },
	  { { 0 } }, 1 << 2 },
	{ "attention_cached", do_attention_cached, true, 1,
	  { { 2, 1, 2, 32, 9, 5 },
	    { 3, 7, 1, 64, 40, 20 },
	    { 1, 16, 3, 128, 64, 48 },
	    { 2, 200, 2, 64, 300, 200 } },
	  { { 100, 16, 6, 32, 32, 14 }, { 8, 1, 24, 64, 1024, 1000 } } },
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 1, 1, 2, 64, 1100, 1090 },
	    { 3, 1, 2, 32, 200, 130 },
	    { 8, 1, 2, 128, 300, 290 },
	    { 16, 1, 1, 64, 128, 45 } },
	  { { 1, 1, 24, 64, 1024, 1000 },
	    { 8, 1, 24, 64, 1024, 1000 },
	    { 16, 256, 24, 64, 322, 65 } }, 1 << 2 },
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 2, 1, 3, 64, 128, 127 },
	    { 11, 1, 2, 64, 64, 0 },
	    { 2, 40, 2, 64, 300, 200 },
	    { 5, 1, 3, 40, 70, 66 } },
	  { { 0 } }, 1 << 2 },
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 7, 1, 5, 64, 90, 77 },
	    { 2, 1, 16, 32, 1500, 1490 },
	    { 2, 1, 9, 128, 60, 58 },
	    { 4, 1, 1, 32, 40, 12 } },
	  { { 1, 1, 16, 128, 1024, 1000 }, { 3, 1, 24, 64, 1024, 1000 } }, 1 << 2 },
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 2, 270, 4, 64, 600, 300 }, /* GPU: shares tiles out in halves, as the next */
	    { 2, 260, 1, 128, 530, 200 },
	    { 8, 1, 3, 64, 40, 39 } },
	  { { 0 } }, 1 << 2 },
	/* GPU: the last pair of tiles has 128 and 128 rows; 2 and none; 128 and 44 */
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 2, 256, 8, 64, 520, 260 },
	    { 2, 257, 4, 64, 300, 40 },
	    { 4, 171, 4, 64, 300, 100 } },
	  { { 0 } }, 1 << 2 },
	/* GPU: 26 rows and none with heads of 128; tiles in halves and some, 68 on 66 pairs of
	 * multiprocessors */
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 30, 35, 2, 128, 130, 87 },
	    { 612, 14, 1, 128, 20, 4 } },
	  { { 0 } }, 1 << 0 },
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 1, 1, 2, 64, 100, 90, 515 },
	    { 8, 1, 3, 64, 40, 39, 1000 },
	    { 13, 1, 1, 128, 60, 58, 130 },
	    { 2, 40, 2, 64, 300, 200, 70 } },
	  { { 0 } } },
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 9, 1, 25, 32, 40, 33 },
	    { 16, 1, 7, 64, 140, 127 },
	    { 6, 1, 11, 32, 1100, 1060 },
	    { 9, 1, 24, 64, 40, 30 } },
	  { { 0 } }, 1 << 2 },
	/* GPU: products whose depth is that of a kernel of its own: 1536 and 4096, 2048, 5632 */
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 5, 1, 24, 64, 70, 63 },
	    { 6, 1, 16, 128, 70, 66, 300 },
	    { 3, 1, 33, 64, 70, 60 },
	    { 11, 1, 33, 64, 70, 60 } },
	  { { 0 } }, 1 << 2 },
	/* GPU: heads of attention have clusters of four or five blocks, of two, of five to seven as
	 * these fit there, and none, as there are too many keys; then of two, as there is much to
	 * read */
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 1, 1, 24, 64, 1100, 1090 },
	    { 6, 1, 10, 64, 300, 290 },
	    { 6, 1, 3, 128, 900, 890 },
	    { 1, 1, 2, 64, 8300, 8290 } },
	  { { 0 } }, 1 << 2 },
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 16, 1, 24, 64, 700, 690 } },
	  { { 0 } }, 1 << 2 },
	/* GPU: a block of attention has units of several heads, of one, and parts of one */
	{ "cached_layers", do_cached_layers, true, 5,
	  { { 3, 1, 24, 64, 40, 30 },
	    { 1, 1, 16, 128, 40, 39 },
	    { 2, 1, 4, 128, 700, 650 },
	    { 16, 1, 13, 64, 70, 66 } },
	  { { 0 } }, 1 << 2 },
	{ "cross_entropy", do_cross_entropy, true, 1,
	  { { 5, 128, 100, 1 }, { 33, 640, 600, 0 }, { 7, 1152, 1100, 1 } },
	  { { 640, 384, 384, 1 }, { 1024, 32768, 32700, 1 } } },
	{ "mse_rows", do_mse_rows, true, 1,
	  { { 5, 32, 1 }, { 33, 129, 0 }, { 7, 32, 1 } },
	  { { 0 } } },
	{ "argmax", do_argmax, true, 1,
	  { { 5, 128, 100 }, { 33, 640, 600 }, { 2, 131, 77 }, { 3, 32768, 32765 } },
	  { { 1, 32768, 32768 } } },
	{ "normals", do_normals, false, 5, { { 3, 7 }, { 5, 512 } }, { { 0 } } },
	{ "add_noise", do_add_noise, false, 1, { { 3, 7 }, { 5, 512 } }, { { 0 } } },
	{ "patchify", do_patchify, true, 1,
	  { { 1, 2, 2, 3, 1 }, { 3, 8, 8, 8, 2 }, { 2, 8, 16, 4, 8 } },
	  { { 0 } } },
	{ "unpatchify", do_unpatchify, true, 1,
	  { { 1, 2, 2, 3, 1 }, { 3, 8, 8, 8, 2 }, { 2, 8, 16, 4, 8 } },
	  { { 0 } } },
	{ "time_embedding", do_time_embedding, true, 1, { { 1, 256 }, { 9, 256 } }, { { 0 } } },
	{ "denoise", do_denoise, false, 1,
	  { { 9, 1, 1, 1 }, { 513, 0, 1, 0 }, { 64, 1, 0, 0 }, { 70, 0, 0, 2 } },
	  { { 0 } } },
	{ "draw_tokens", do_draw_tokens, true, 1,
	  { { 3, 40, 37, 100, 100 },
	    { 2, 3000, 2999, 70, 90 },
	    { 4, 1031, 1030, 150, 30 },
	    { 1, 2, 1, 100, 1 } },
	  { { 8, 32768, 32768, 100, 90 } } },
	{ "draw_tokens", do_draw_tokens, true, 1,
	  { { 2, 32768, 32765, 100, 95 }, { 3, 60001, 60000, 80, 100 } },
	  { { 0 } } },
	{ "advance_tokens", do_advance_tokens, false, 1,
	  { { 3, 5, 2 }, { 70, 2, 0 }, { 4, 2, 2 } },
	  { { 0 } } },
	{ "next_row", do_next_row, false, 1,
	  { { 5, 7, 2 }, { 3, 300, 9 }, { 1, 1, 0 } },
	  { { 0 } } },
	{ "adamw", do_adamw, false, 2,
	  { { 1025, 1000, 9, 1, 1, 3 }, { 4096, 512, 100, 0, 1, 7 }, { 513, 100, 4, 1, 0, 4 } },
	  { { 0 } } },
	{ "adamw", do_adamw, false, 2,
	  { { 7, 3, 2, 0, 0, 8 }, { 1025, 1000, 9, 1, 1, 24 }, { 70000, 512, 100, 1, 1, 29 } },
	  { { 1 << 22, 1 << 21, 10, 1, 1, 8 }, { 1 << 22, 1 << 21, 10, 1, 1, 24 } } },
	{ "adamw", do_adamw, false, 2,
	  { { 7, 3, 1, 0, 0 }, { 1025, 1000, 9, 1, 1, 1 }, { 70000, 512, 100, 1, 1, 5 } },
	  { { 2700000, 2600000, 10, 0, 1 }, { 1 << 22, 1 << 21, 10, 1, 1 } } },
};

const int op_cases_count = ARRAY_LEN(op_cases);
