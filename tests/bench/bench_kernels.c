/* SPDX-License-Identifier: Apache-2.0
 * Speed of the operations that a training step is made of, and of the layers of a token, at the
 * shapes of the 0.76B and 1.4B models and the mask of the benchmark (six captioned pictures of 322
 * positions, then a text): one JSON object a line. Usage: bench_kernels [DEVICE [NAME]] */
#include "config.h"
#include "kernels/kernels.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define T 4096
#define DOCUMENT 322
#define CAPTION 64
#define DRAWN 4096 /* rows of a denoising step: 8 pictures of 256 patches, both branches */

static struct kernels *k;
static const char *only = "";

/* Backend memory of n random values (f32 or bf16). */
static void *random_memory(int64_t n, enum dtype type, float by)
{
	int64_t part = n < 1 << 20 ? n : 1 << 20;
	char *host = xcalloc((size_t)part, dtype_bytes(type)),
	     *p = k->ops->alloc(k, (size_t)n * dtype_bytes(type));
	uint32_t state = 12345;

	CHECK(p);
	for (int64_t i = 0; i < part; i++) {
		float sum = 0;

		for (int j = 0; j < 4; j++) {
			state = state * 1664525u + 1013904223u;
			sum += (float)(state >> 8) / 16777216.0f - 0.5f;
		}
		if (type == DT_F32)
			((float *)host)[i] = by * 1.7f * sum;
		else
			((uint16_t *)host)[i] = bf16_from_float(by * 1.7f * sum);
	}
	for (int64_t at = 0; at < n; at += part)
		k->ops->upload(k, p + (size_t)at * dtype_bytes(type), host,
			       (size_t)(n - at < part ? n - at : part) * dtype_bytes(type));
	xfree(host);
	return p;
}

static struct tensor random_tensor(enum dtype type, int64_t rows, int64_t columns)
{
	return tensor_2d(random_memory(rows * columns, type, 1), type, rows, columns);
}

static void release(struct tensor *t, int n)
{
	for (int i = 0; i < n; i++)
		k->ops->release(k, t[i].data);
}

/* Milliseconds a call, over about 0.2 s after two warm ones. */
static double time_of(void (*call)(void *), void *of)
{
	int64_t begin, end;
	int runs = 1;

	call(of);
	call(of);
	k->ops->sync(k);
	for (;;) {
		begin = clock_mono_ns();
		for (int i = 0; i < runs; i++)
			call(of);
		k->ops->sync(k);
		end = clock_mono_ns();
		if (end - begin > 150000000 || runs >= 4096)
			return (double)(end - begin) / 1e6 / runs;
		runs *= 2;
	}
}

/* The same after a second of it: work that reaches the power limit runs at a clock of its own,
 * which takes a while to settle. */
static double settled_time_of(void (*call)(void *), void *of)
{
	int64_t begin = clock_mono_ns();

	do {
		call(of);
		k->ops->sync(k);
	} while (clock_mono_ns() - begin < 1000000000);
	return time_of(call, of);
}

static void report(const char *name, double ms, double flops, double bytes)
{
	printf("{\"what\": \"%s\", \"ms\": %.4f", name, ms);
	if (flops > 0)
		printf(", \"tflops\": %.1f", flops / ms / 1e9);
	if (bytes > 0)
		printf(", \"gb_s\": %.0f", bytes / ms / 1e6);
	printf("}\n");
	fflush(stdout);
}

static bool wanted(const char *name)
{
	return strstr(name, only) != NULL;
}

/* ---- attention */
struct attention_case {
	struct tensor t[9]; /* qkv out lse start limit dout dqkv, cosine and sine, position */
	int heads;
};

static void run_attention(void *of)
{
	struct attention_case *a = of;

	k->ops->attention(k, a->t[1], a->t[2], a->t[0], a->heads, a->t[3], a->t[4]);
}

static void run_attention_backward(void *of)
{
	struct attention_case *a = of;
	const struct turned turned = { a->t[7], a->t[7], a->t[8] };

	k->ops->attention_backward(k, a->t[6], a->t[5], a->t[1], a->t[2], a->t[0], a->heads,
				   a->t[3], a->t[4], &turned);
}

/* Fills the intervals of a sequence; returns the allowed pairs. */
static double intervals(int32_t *start, int32_t *limit, bool documents)
{
	double pairs = 0;

	for (int t = 0; t < T; t++) {
		int first = documents ? t / DOCUMENT * DOCUMENT : 0, at = t - first;

		if (documents && first >= 6 * DOCUMENT) {
			first = 6 * DOCUMENT;
			at = -1;
		}
		start[t] = first;
		limit[t] =
			documents && at > CAPTION && at < DOCUMENT - 1 ? first + DOCUMENT - 2 : t;
		pairs += limit[t] - first + 1;
	}
	return pairs;
}

static void bench_attention(int batch, int heads, int hd, bool documents)
{
	struct attention_case a = { .heads = heads };
	int32_t start[T], limit[T];
	double pairs = intervals(start, limit, documents) * batch * heads;
	int64_t rows = (int64_t)batch * T, width = heads * hd;
	char name[96];

	snprintf(name, sizeof name, "attention head %d, %s", hd,
		 documents ? "documents" : "causal");
	if (!wanted(name))
		return;
	a.t[0] = random_tensor(DT_BF16, rows, 3 * width);
	a.t[1] = random_tensor(DT_BF16, rows, width);
	a.t[2] = tensor_3d(k->ops->alloc(k, (size_t)rows * heads * 4), DT_F32, batch, heads, T);
	a.t[3] = tensor_2d(k->ops->alloc(k, (size_t)rows * 4), DT_I32, batch, T);
	a.t[4] = tensor_2d(k->ops->alloc(k, (size_t)rows * 4), DT_I32, batch, T);
	a.t[5] = random_tensor(DT_BF16, rows, width);
	a.t[6] = random_tensor(DT_BF16, rows, 3 * width);
	a.t[7] = random_tensor(DT_F32, T, hd / 2);
	a.t[8] = tensor_1d(k->ops->alloc(k, (size_t)rows * 4), DT_I32, rows);
	for (int b = 0; b < batch; b++) {
		k->ops->upload(k, (int32_t *)a.t[3].data + b * T, start, sizeof start);
		k->ops->upload(k, (int32_t *)a.t[4].data + b * T, limit, sizeof limit);
		for (int t = 0; t < T; t++)
			start[t] = t - start[t];
		k->ops->upload(k, (int32_t *)a.t[8].data + b * T, start, sizeof start);
		for (int t = 0; t < T; t++)
			start[t] = t - start[t];
	}
	report(name, settled_time_of(run_attention, &a), 4 * pairs * hd, 0);
	snprintf(name, sizeof name, "attention backward head %d, %s", hd,
		 documents ? "documents" : "causal");
	report(name, settled_time_of(run_attention_backward, &a), 10 * pairs * hd, 0);
	release(a.t, 9);
}

/* ---- matrix products of a layer: forward, gradient of the input, gradient of the weight */
struct product_case {
	struct tensor c, a, b;
	bool ta, tb;
	float beta;
};

static void run_product(void *of)
{
	struct product_case *p = of;
	struct tensor none = { 0 };

	k->ops->matmul(k, p->c, p->a, p->ta, p->b, p->tb, none, p->beta);
}

/* Forward alone where the rows are those of sampling. */
static void bench_products(int64_t rows, int64_t out, int64_t in)
{
	static const char *const what[3] = { "forward", "input gradient", "weight gradient" };
	const int n = rows <= DRAWN ? 1 : 3;
	char name[3][96];
	bool any = false;

	for (int i = 0; i < n; i++) {
		snprintf(name[i], sizeof name[i], "matmul %s %lld x %lld x %lld", what[i],
			 (long long)rows, (long long)out, (long long)in);
		any |= wanted(name[i]);
	}
	if (!any)
		return;

	struct tensor t[4] = { random_tensor(DT_BF16, rows, in), random_tensor(DT_BF16, out, in),
			       random_tensor(DT_BF16, rows, out), random_tensor(DT_F32, out, in) };
	struct product_case p[3] = { { t[2], t[0], t[1], false, true, 0 },
				     { t[0], t[2], t[1], false, false, 0 },
				     { t[3], t[2], t[0], true, false, 1 } };

	for (int i = 0; i < n; i++)
		if (wanted(name[i]))
			report(name[i], time_of(run_product, &p[i]),
			       2.0 * (double)rows * (double)out * (double)in, 0);
	release(t, 4);
}

/* ---- layers of sampling, recorded */
#define LAYERS 24

static struct tensor weight(int64_t rows, int64_t columns)
{
	return tensor_2d(random_memory(rows * columns, DT_BF16, 1 / sqrtf((float)columns)),
			 DT_BF16, rows, columns);
}

static void run_graph(void *of)
{
	k->ops->graph_run(k, of);
}

static struct tensor copy_of(struct tensor t)
{
	struct tensor c = t;

	c.data = k->ops->alloc(k, tensor_bytes(&t));
	CHECK(c.data);
	k->ops->copy(k, c.data, t.data, tensor_bytes(&t));
	return c;
}

/* All alike, each in memory of its own. */
static void make_layers(struct cached_layer layer[LAYERS], int S, int64_t d, int64_t F,
			int64_t capacity)
{
	struct tensor norm = tensor_1d(random_memory(d, DT_F32, 1), DT_F32, d);
	struct cached_layer l = {
		norm, norm, weight(3 * d, d), weight(d, d), weight(2 * F, d), weight(d, F),
		tensor_3d(random_memory(S * capacity * d, DT_BF16, 1), DT_BF16, S, capacity, d),
		tensor_3d(random_memory(S * capacity * d, DT_BF16, 1), DT_BF16, S, capacity, d),
	};

	layer[0] = l;
	for (int i = 1; i < LAYERS; i++)
		layer[i] = (struct cached_layer){ copy_of(norm), copy_of(norm), copy_of(l.qkv),
						  copy_of(l.attention_out), copy_of(l.gate_up),
						  copy_of(l.down), copy_of(l.keys),
						  copy_of(l.values) };
}

static struct tensor integers(int64_t n, int first, int each, int step)
{
	int32_t *host = xcalloc((size_t)n, sizeof *host);
	struct tensor t = tensor_1d(k->ops->alloc(k, (size_t)n * 4), DT_I32, n);

	for (int64_t i = 0; i < n; i++)
		host[i] = first + (int32_t)(i % each) * step;
	k->ops->upload(k, t.data, host, (size_t)n * 4);
	xfree(host);
	return t;
}

/* LAYERS of them over `rows` rows of S sequences; what says where the rows lie is the caller's. */
static struct cached_layers layers_of(struct cached_layer layer[LAYERS], int rows, int S, int64_t d,
				      int heads, int64_t F, int64_t capacity)
{
	struct cached_layers c = { .layer = layer, .layers = LAYERS, .heads = heads, .eps = 1e-5f };

	make_layers(layer, S, d, F, capacity);
	c.norm = layer[0].ff_norm;
	c.x = random_tensor(DT_BF16, rows, d);
	c.out = c.h = random_tensor(DT_BF16, rows, d);
	c.cosine = random_tensor(DT_F32, capacity, d / heads / 2);
	c.sine = random_tensor(DT_F32, capacity, d / heads / 2);
	c.qkv = random_tensor(DT_BF16, rows, 3 * d);
	c.attention = random_tensor(DT_BF16, rows, d);
	c.gate_up = random_tensor(DT_BF16, rows, 2 * F);
	c.swiglu = random_tensor(DT_BF16, rows, F);
	c.rstd = tensor_1d(random_memory(rows, DT_F32, 1), DT_F32, rows);
	return c;
}

/* Milliseconds of one of the layers. */
static double time_of_layers(const struct cached_layers *c)
{
	double ms;
	void *graph;

	k->ops->cached_layers(k, c);
	k->ops->graph_begin(k);
	k->ops->cached_layers(k, c);
	graph = k->ops->graph_end(k);
	ms = time_of(run_graph, graph) / LAYERS;
	k->ops->graph_release(k, graph);
	return ms;
}

/* ---- a layer of a denoising step, and its attention: S sequences of `each` patches */
static void run_drawing_attention(void *of)
{
	const struct cached_layers *c = of;

	k->ops->attention_cached(k, c->attention, c->qkv, c->heads, c->layer->keys,
				 c->layer->values, c->at, c->limit);
}

static void bench_drawing(int S, int each, int64_t d, int heads, int64_t F)
{
	const int rows = S * each, capacity = CAPTION + 3 + each;
	struct cached_layer layer[LAYERS];
	struct cached_layers c;
	const double pairs = 4.0 * rows * (double)d * (capacity - 1);
	char name[64];

	snprintf(name, sizeof name, "drawing, a layer of %lld, %d rows", (long long)d, rows);
	if (!wanted(name) || !k->has_graphs)
		return;
	c = layers_of(layer, rows, S, d, heads, F, capacity);
	c.position = integers(rows, CAPTION + 2, each, 1);
	c.limit = integers(rows, capacity - 2, each, 0);
	c.at = integers(S, CAPTION + 2, 1, 0);
	report(name, time_of_layers(&c),
	       2.0 * rows * (double)d * (4.0 * (double)d + 3.0 * (double)F) + pairs, 0);
	snprintf(name, sizeof name, "drawing, attention of %lld, %d rows", (long long)d, rows);
	report(name, time_of(run_drawing_attention, &c), pairs, 0);
}

/* ---- the layers of a token: one row a sequence over keys that are there already */
static void bench_tokens(int S, int64_t d, int heads, int64_t F, int keys)
{
	const int64_t capacity = keys + 65;
	struct cached_layer layer[LAYERS];
	struct cached_layers c;
	double bytes = (double)(4 * d * d + 3 * d * F + 2 * S * keys * d) * 2;
	char name[64];

	snprintf(name, sizeof name, "tokens, a layer of %lld, batch %d, %d keys", (long long)d, S,
		 keys);
	if (!wanted(name) || !k->has_graphs)
		return;
	c = layers_of(layer, S, S, d, heads, F, capacity);
	c.position = integers(S, keys, 1, 0);
	c.limit = integers(S, keys, 1, 0);
	c.at = integers(S, keys, 1, 0);
	report(name, time_of_layers(&c), 0, bytes);
}

/* ---- bound by memory */
struct rows_case {
	struct tensor t[6];
};

static void run_norm(void *of)
{
	struct tensor *t = ((struct rows_case *)of)->t;

	k->ops->add_rmsnorm(k, t[0], t[4], t[1], t[2], t[3], t[5], 1e-5f,
			    NOT_SCALED);
}

static void run_norm_backward(void *of)
{
	struct tensor *t = ((struct rows_case *)of)->t;
	struct tensor dweight = t[5];

	k->ops->rmsnorm_backward(k, t[0], dweight, t[1], t[2], t[5], t[4], t[3],
				 NOT_SCALED);
}

static void bench_norm(int64_t rows, int64_t d)
{
	if (!wanted("add_rmsnorm") && !wanted("rmsnorm_backward"))
		return;

	struct rows_case c = { { random_tensor(DT_BF16, rows, d), random_tensor(DT_BF16, rows, d),
				 random_tensor(DT_BF16, rows, d), random_tensor(DT_BF16, rows, d),
				 tensor_1d(random_memory(rows, DT_F32, 1), DT_F32, rows),
				 tensor_1d(random_memory(d, DT_F32, 1), DT_F32, d) } };

	if (wanted("add_rmsnorm"))
		report("add_rmsnorm", time_of(run_norm, &c), 0, 8.0 * (double)rows * (double)d);
	if (wanted("rmsnorm_backward"))
		report("rmsnorm_backward", time_of(run_norm_backward, &c), 0,
		       8.0 * (double)rows * (double)d);
	release(c.t, 6);
}

static void run_swiglu(void *of)
{
	struct tensor *t = ((struct rows_case *)of)->t;

	k->ops->swiglu(k, t[0], t[1], NOT_SCALED);
}

static void run_swiglu_backward(void *of)
{
	struct tensor *t = ((struct rows_case *)of)->t;

	k->ops->swiglu_backward(k, t[2], t[0], t[1], NOT_SCALED);
}

static void bench_swiglu(int64_t rows, int64_t f)
{
	if (!wanted("swiglu") && !wanted("swiglu_backward"))
		return;

	struct rows_case c = { { random_tensor(DT_BF16, rows, f),
				 random_tensor(DT_BF16, rows, 2 * f),
				 random_tensor(DT_BF16, rows, 2 * f) } };

	if (wanted("swiglu"))
		report("swiglu", time_of(run_swiglu, &c), 0, 6.0 * (double)rows * (double)f);
	if (wanted("swiglu_backward"))
		report("swiglu_backward", time_of(run_swiglu_backward, &c), 0,
		       10.0 * (double)rows * (double)f);
	release(c.t, 3);
}

static void run_matmul_swiglu(void *of)
{
	struct tensor *t = ((struct rows_case *)of)->t;

	k->ops->matmul_swiglu(k, t[0], t[1], t[2], t[3]);
}

static void bench_matmul_swiglu(int64_t rows, int64_t f, int64_t d)
{
	if (!wanted("matmul_swiglu"))
		return;

	struct rows_case c = { { random_tensor(DT_BF16, rows, f),
				 random_tensor(DT_BF16, rows, 2 * f),
				 random_tensor(DT_BF16, rows, d),
				 random_tensor(DT_BF16, 2 * f, d) } };

	report("matmul_swiglu", time_of(run_matmul_swiglu, &c),
	       4.0 * (double)rows * (double)f * (double)d, 0);
	release(c.t, 4);
}

static void run_rope(void *of)
{
	struct tensor *t = ((struct rows_case *)of)->t;

	k->ops->rope(k, t[0], 24, t[1], t[2], t[3], false);
}

static void bench_rope(int64_t rows, int64_t d)
{
	if (!wanted("rope"))
		return;

	struct rows_case c = { { random_tensor(DT_BF16, rows, 3 * d),
				 random_tensor(DT_F32, T, d / 48), random_tensor(DT_F32, T, d / 48),
				 tensor_1d(k->ops->alloc(k, (size_t)rows * 4), DT_I32, rows) } };

	if (wanted("rope"))
		report("rope", time_of(run_rope, &c), 0, 8.0 * (double)rows * (double)d);
	release(c.t, 4);
}

static void run_loss(void *of)
{
	struct tensor *t = ((struct rows_case *)of)->t;

	k->ops->cross_entropy(k, t[0], t[1], t[2], t[3], t[1].dim[1], true);
}

static void bench_loss(int64_t rows, int64_t vocab)
{
	if (!wanted("cross_entropy"))
		return;

	struct rows_case c = { { tensor_1d(random_memory(rows, DT_F32, 1), DT_F32, rows),
				 random_tensor(DT_BF16, rows, vocab),
				 tensor_1d(k->ops->alloc(k, (size_t)rows * 4), DT_I32, rows),
				 tensor_1d(random_memory(rows, DT_F32, 1), DT_F32, rows) } };

	if (wanted("cross_entropy"))
		report("cross_entropy", time_of(run_loss, &c), 0,
		       4.0 * (double)rows * (double)vocab);
	release(c.t, 4);
}

static void run_adamw(void *of)
{
	k->ops->adamw(k, of);
}

static void bench_adamw(int64_t n)
{
	struct adamw a = { 0 };
	void *p[6];

	if (!wanted("adamw"))
		return;
	for (int i = 0; i < 5; i++)
		p[i] = random_memory(n, i == 4 ? DT_BF16 : DT_F32, 0.01f);
	p[5] = random_memory(1, DT_F32, 1);
	k->ops->fill(k, tensor_1d(p[5], DT_F32, 1), 1.0f);
	k->ops->fill(k, tensor_1d(p[3], DT_F32, n), 1e-4f);
	a.master = p[0];
	a.grad = p[1];
	a.m = p[2];
	a.v = p[3];
	a.resident = p[4];
	a.grad_norm2 = p[5];
	a.n = a.decayed = n;
	a.step = 10;
	a.lr = 1e-6f;
	a.beta1 = 0.9f;
	a.beta2 = 0.95f;
	a.eps = 1e-8f;
	a.grad_scale = 1;
	a.clip = 1;
	report("adamw", time_of(run_adamw, &a), 0, 30.0 * (double)n);
	for (int i = 0; i < 6; i++)
		k->ops->release(k, p[i]);
}

int main(int argc, char **argv)
{
	struct err e = ERR_INIT;
	int64_t rows = 8 * T;

	if (kernels_open(argc > 1 ? argv[1] : "cuda", 0, &k, &e) < 0) {
		fprintf(stderr, "bench_kernels: %s\n", e.text);
		return 77;
	}
	only = argc > 2 ? argv[2] : "";
	printf("{\"what\": \"device\", \"name\": \"%s\"}\n", kernels_describe(k));
	for (int documents = 0; documents < 2; documents++) {
		bench_attention(8, 24, 64, documents);
		bench_attention(8, 16, 128, documents);
	}
	bench_products(8192, 8192, 8192);
	bench_products(rows, 3 * 1536, 1536);
	bench_products(rows, 1536, 1536);
	bench_products(rows, 2 * 4096, 1536);
	bench_products(rows, 1536, 4096);
	bench_products(8 * 2547, 32768, 1536);
	bench_products(DRAWN, 3 * 1536, 1536);
	bench_products(DRAWN, 1536, 1536);
	bench_products(DRAWN, 2 * 4096, 1536);
	bench_products(DRAWN, 1536, 4096);
	bench_drawing(16, 256, 1536, 24, 4096);
	bench_drawing(4, 256, 1536, 24, 4096);
	bench_products(1, 32768, 1536);
	bench_products(8, 32768, 1536);
	bench_tokens(1, 1536, 24, 4096, 1023);
	bench_tokens(8, 1536, 24, 4096, 1023);
	bench_tokens(1, 2048, 16, 5632, 1023);
	bench_tokens(16, 1536, 24, 4096, 1023);
	bench_tokens(8, 1536, 24, 4096, 3900);
	bench_tokens(8, 2048, 16, 5632, 1023);
	bench_norm(rows, 1536);
	bench_swiglu(rows, 4096);
	bench_matmul_swiglu(rows, 2048, 768);
	bench_matmul_swiglu(rows, 2816, 1024);
	bench_matmul_swiglu(rows, 4096, 1536);
	bench_matmul_swiglu(rows, 5632, 2048);
	bench_rope(rows, 1536);
	bench_loss(8 * 2547, 32768);
	bench_adamw(300000000);
	kernels_close(k);
	return 0;
}
