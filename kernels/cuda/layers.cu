/* SPDX-License-Identifier: Apache-2.0
 * All layers of sampling. One row a sequence and at most FEW_ROWS of them (tokens): five kernels a
 * layer, each of which reads its weights or cache while those ahead of it run. Otherwise
 * (prompts, pictures): products with what follows them (fused.cu), or the library's and one kernel
 * that turns queries and keys and fills the cache; residuals are added inside the products. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/few.cuh"
#include "kernels/cuda/fused.cuh"
#include "kernels/cuda/query.cuh"

/* ---- tokens */
/* The products of a layer, in order. */
enum { QKV, ATTENTION_OUT, GATE_UP, DOWN, PRODUCTS };

static struct few product_of(const struct tensor *out, const struct tensor *x,
			     const struct tensor *w, const struct tensor *norm, float eps)
{
	struct few f = {};

	f.x = (const bf16 *)x->data;
	f.w = (const bf16 *)w->data;
	f.out = out->data;
	f.norm = norm ? (const float *)norm->data : NULL;
	f.eps = eps;
	f.m = (int)x->dim[0];
	f.n = (int)out->dim[1];
	f.k = (int)x->dim[1];
	f.add = !norm;
	f.type = DT_BF16;
	return f;
}

static void products_of(const struct cached_layers *c, int layer, struct few f[PRODUCTS])
{
	const struct cached_layer *l = &c->layer[layer];

	f[QKV] = product_of(&c->qkv, &c->x, &l->qkv, &l->attention_norm, c->eps);
	f[ATTENTION_OUT] = product_of(&c->x, &c->attention, &l->attention_out, NULL, 0);
	f[GATE_UP] = product_of(&c->swiglu, &c->x, &l->gate_up, &l->ff_norm, c->eps);
	f[GATE_UP].swiglu = true;
	f[DOWN] = product_of(&c->x, &c->swiglu, &l->down, NULL, 0);
	f[ATTENTION_OUT].gently = f[GATE_UP].gently = f[DOWN].gently = true;
	f[QKV].gently = f[QKV].m > 4; /* else down, ahead of it, is over too soon */
}

/* The logits, of the layers' output before its norm. */
static struct few head_of(const struct cached_layers *c)
{
	struct few f = product_of(&c->logits, &c->x, &c->head, &c->norm, c->eps);

	f.m = (int)c->logits.dim[0];
	return f;
}

static bool tokens_fit(const struct cuda_state *s, const struct cached_layers *c)
{
	int64_t rows = c->x.dim[0], d = c->x.dim[1], hd = d / c->heads;
	struct few head = head_of(c);

	if (!c->layers || c->x.type != DT_BF16 || rows != tensor_count(&c->at) || rows > FEW_ROWS ||
	    rows < 1 || rows * c->heads > ARRIVALS || !(hd == 32 || hd == 64 || hd == 128))
		return false;
	if (!aligned16(c->qkv.data) || !aligned16(c->attention.data) ||
	    !aligned16(c->swiglu.data) || !aligned16(c->cosine.data) || !aligned16(c->sine.data))
		return false;
	if (c->logits.data && !few_fits(&head))
		return false;
	for (int i = 0; i < c->layers; i++) {
		const struct cached_layer *l = &c->layer[i];
		struct few f[PRODUCTS];

		products_of(c, i, f);
		for (int j = 0; j < PRODUCTS; j++)
			if (!few_fits(&f[j]))
				return false;
		if (!aligned16(l->keys.data) || !aligned16(l->values.data))
			return false;
	}
	return s->arrived != NULL;
}

static void run_tokens(struct cuda_state *s, const struct cached_layers *c)
{
	struct query q = {};

	q.qkv = (const bf16 *)c->qkv.data;
	q.out = (bf16 *)c->attention.data;
	q.cosine = (const float *)c->cosine.data;
	q.sine = (const float *)c->sine.data;
	q.position = (const int32_t *)c->position.data;
	q.at = (const int32_t *)c->at.data;
	q.limit = (const int32_t *)c->limit.data;
	q.sequences = (int)c->x.dim[0];
	q.heads = c->heads;
	q.hd = (int)c->x.dim[1] / c->heads;
	q.capacity = (int)c->layer[0].keys.dim[1];
	q.scale = 1.44269504f / sqrtf((float)q.hd);
	for (int i = 0; i < c->layers; i++) {
		struct few f[PRODUCTS];

		products_of(c, i, f);
		q.keys = (bf16 *)c->layer[i].keys.data;
		q.values = (bf16 *)c->layer[i].values.data;
		for (int p = 0; p < PRODUCTS; p++) {
			few_run(s, &f[p], true);
			if (p == QKV)
				query_run(s, &q);
		}
	}
	if (c->logits.data) {
		struct few head = head_of(c);

		few_run(s, &head, true);
	}
}

/* ---- many rows */

/* Turns the queries in place and the keys on their way to the cache; a thread takes eight pairs of
 * a head of the query, the key or the value. */
template <bool WIDE, typename T>
__global__ void turn_and_append(T *qkv, T *keys, T *values, const float *cosine, const float *sine,
				const int32_t *position, const int32_t *at, const int32_t *limit,
				int64_t rows, int64_t n, int64_t capacity, int heads, int half)
{
	int eights = (half + 7) / 8;
	int64_t width = (int64_t)heads * half * 2;

	EACH (i, rows * 3 * heads * eights) {
		int c = (int)(i % eights) * 8, head = (int)(i / eights % heads);
		int kind = (int)(i / eights / heads % 3);
		int64_t row = i / eights / heads / 3, place = at[row / n] + row % n;
		T *from = qkv + row * 3 * width + kind * width + head * 2 * half + c, *to = from;
		float a[8], b[8], cs[8], sn[8], x[8], y[8];

		if (kind > 0 && (limit[row] < 0 || place < 0 || place >= capacity))
			continue;
		if (kind > 0)
			to = (kind == 1 ? keys : values) + (row / n * capacity + place) * width +
			     head * 2 * half + c;
		get_eight<WIDE>(from, half - c, a);
		get_eight<WIDE>(from + half, half - c, b);
		if (kind == 2) {
			put_eight<WIDE>(to, half - c, a);
			put_eight<WIDE>(to + half, half - c, b);
			continue;
		}
		get_eight<WIDE>(cosine + (int64_t)position[row] * half + c, half - c, cs);
		get_eight<WIDE>(sine + (int64_t)position[row] * half + c, half - c, sn);
#pragma unroll
		for (int j = 0; j < 8; j++) {
			x[j] = a[j] * cs[j] - b[j] * sn[j];
			y[j] = b[j] * cs[j] + a[j] * sn[j];
		}
		put_eight<WIDE>(to, half - c, x);
		put_eight<WIDE>(to + half, half - c, y);
	}
}

static void run_turn(struct cuda_state *s, const struct cached_layers *c,
		     const struct cached_layer *l)
{
	int64_t rows = c->x.dim[0], sequences = tensor_count(&c->at), capacity = l->keys.dim[1];
	int half = (int)c->cosine.dim[1];
	unsigned grid = grid_for(s, rows * 3 * c->heads * div_up(half, 8), 256);
	bool wide = half % 8 == 0 && aligned16(c->qkv.data) && aligned16(l->keys.data) &&
		    aligned16(l->values.data) && aligned16(c->cosine.data) &&
		    aligned16(c->sine.data);
	const float *cosine = (const float *)c->cosine.data, *sine = (const float *)c->sine.data;
	const int32_t *position = (const int32_t *)c->position.data;
	const int32_t *at = (const int32_t *)c->at.data, *limit = (const int32_t *)c->limit.data;

	if (wide)
		ACT(c->x.type, turn_and_append<true><<<grid, 256, 0, s->stream>>>(
				       (T *)c->qkv.data, (T *)l->keys.data, (T *)l->values.data,
				       cosine, sine, position, at, limit, rows, rows / sequences,
				       capacity, c->heads, half));
	else
		ACT(c->x.type, turn_and_append<false><<<grid, 256, 0, s->stream>>>(
				       (T *)c->qkv.data, (T *)l->keys.data, (T *)l->values.data,
				       cosine, sine, position, at, limit, rows, rows / sequences,
				       capacity, c->heads, half));
	LAUNCHED();
}

static void product(struct kernels *k, const struct tensor *y, const struct tensor *x,
		    const struct tensor *w, bool add)
{
	struct tensor none = {};

	cuda_matmul(k, *y, *x, false, *w, true, none, add ? 1.0f : 0.0f);
}

static void run_qkv(struct kernels *k, const struct cached_layers *c, const struct cached_layer *l)
{
	const struct fused_turn t = {
		(const float *)c->cosine.data,
		(const float *)c->sine.data,
		(const int32_t *)c->position.data,
		(const int32_t *)c->limit.data,
		(const int32_t *)c->at.data,
		(bf16 *)l->keys.data,
		(bf16 *)l->values.data,
		(int)(c->x.dim[0] / tensor_count(&c->at)),
		(int)l->keys.dim[1],
		(int)(2 * c->cosine.dim[1]),
	};

	if (fused_qkv_fits(state_of(k), &c->qkv, &c->h, &l->qkv, &t)) {
		fused_qkv(state_of(k), &c->qkv, &c->h, &l->qkv, &t);
		return;
	}
	product(k, &c->qkv, &c->h, &l->qkv, false);
	run_turn(state_of(k), c, l);
}

/* keep: gate_up is wanted, too; else it is scratch. */
static void run_gate_up(struct kernels *k, const struct tensor *out, const struct tensor *gate_up,
			const struct tensor *x, const struct tensor *w, bool keep)
{
	if (fused_swiglu_fits(state_of(k), out, x, w)) {
		fused_swiglu(state_of(k), out, keep ? gate_up : NULL, x, w);
		return;
	}
	product(k, gate_up, x, w, false);
	cuda_swiglu(k, *out, *gate_up, NOT_SCALED);
}

void cuda_matmul_swiglu(struct kernels *k, struct tensor out, struct tensor gate_up,
			struct tensor x, struct tensor w)
{
	run_gate_up(k, &out, &gate_up, &x, &w, true);
}

static void run_rows(struct kernels *k, const struct cached_layers *c)
{
	struct cuda_state *s = state_of(k);
	struct attend_plan plan = { NULL, NULL, c->layers };

	for (int i = 0; i < c->layers; i++) {
		const struct cached_layer *l = &c->layer[i];

		cuda_rmsnorm(k, c->h, c->rstd, c->x, l->attention_norm, c->eps);
		run_qkv(k, c, l);
		attend_cache(s, &c->attention, &c->qkv, c->heads, &l->keys, &l->values, &c->limit,
			     &plan);
		product(k, &c->x, &c->attention, &l->attention_out, true);
		cuda_rmsnorm(k, c->h, c->rstd, c->x, l->ff_norm, c->eps);
		run_gate_up(k, &c->swiglu, &c->gate_up, &c->h, &l->gate_up, false);
		product(k, &c->x, &c->swiglu, &l->down, true);
	}
}

void cuda_cached_layers(struct kernels *k, const struct cached_layers *c)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = c->x.dim[0], sequences = tensor_count(&c->at), d = c->x.dim[1];

	CHECK(c->position.type == DT_I32 && c->limit.type == DT_I32 && c->at.type == DT_I32);
	CHECK(tensor_count(&c->position) == rows && tensor_count(&c->limit) == rows);
	CHECK(c->cosine.type == DT_F32 && c->sine.type == DT_F32 && c->heads > 0 &&
	      d == 2 * c->cosine.dim[1] * c->heads);
	if (!rows)
		return;
	CHECK(sequences > 0 && rows % sequences == 0);
	for (int i = 0; i < c->layers; i++) {
		const struct cached_layer *l = &c->layer[i];

		CHECK(l->keys.rank == 3 && l->keys.dim[0] == sequences && l->keys.dim[2] == d);
		CHECK(l->keys.type == c->x.type && l->values.type == c->x.type &&
		      tensor_count(&l->values) == tensor_count(&l->keys) &&
		      l->keys.dim[1] == c->layer[0].keys.dim[1]);
		CHECK(l->qkv.type == c->x.type && tensor_count(&l->qkv) == 3 * d * d);
	}
	if (c->logits.data)
		CHECK(c->logits.type == c->x.type && c->logits.dim[0] > 0 &&
		      c->logits.dim[0] <= rows && c->head.dim[0] == c->logits.dim[1] &&
		      c->head.dim[1] == d && c->head.type == c->x.type);
	if (tokens_fit(s, c)) {
		run_tokens(s, c);
		if (c->logits.data)
			return;
	} else {
		run_rows(k, c);
	}
	cuda_rmsnorm(k, c->out, c->rstd, c->x, c->norm, c->eps);
	if (c->logits.data) {
		struct tensor out = c->out;

		out.dim[0] = c->logits.dim[0];
		product(k, &c->logits, &out, &c->head, false);
	}
}
