/* SPDX-License-Identifier: Apache-2.0
 * Attention of one head of one sequence, compiled once for each instruction set. Keys are taken a
 * panel at a time, copied to f32 and transposed; queries in groups of HEAD_GROUP, for which only
 * the keys that any of them sees are multiplied. Softmax is kept up to date from panel to panel
 * (Milakov & Gimelshein 2018); the backward pass recomputes it from lse (Dao et al. 2022). All
 * products are of one kind: c[rows, columns] = a[rows, inner] b[inner, columns], columns along the
 * vectors. */
#include "config.h"
#include "kernels/cpu/loops/head.h"

#include <math.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8
#elif defined(__AVX2__)
#define LANES 8
#define ROWS 4
#else
#define LANES 4
#define ROWS 4
#endif

#define INLINE static inline __attribute__((always_inline))

/* Runs the call with T a constant, so that a copy for each type is compiled. */
#define BY_TYPE(type, call)                                                                        \
	do {                                                                                       \
		if ((type) == DT_F32) {                                                            \
			enum { T = DT_F32 };                                                       \
			call;                                                                      \
		} else {                                                                           \
			enum { T = DT_BF16 };                                                      \
			call;                                                                      \
		}                                                                                  \
	} while (0)

INLINE float get(const void *x, int type, int64_t i)
{
	union {
		uint32_t u;
		float f;
	} v;

	if (type == DT_F32)
		return ((const float *)x)[i];
	v.u = (uint32_t)((const uint16_t *)x)[i] << 16;
	return v.f;
}

INLINE void put(void *x, int type, int64_t i, float value)
{
	union {
		float f;
		uint32_t u;
	} v = { value };
	uint32_t rounded = (v.u + 0x7fffu + (v.u >> 16 & 1)) >> 16;

	if (type == DT_F32)
		((float *)x)[i] = value;
	else
		((uint16_t *)x)[i] =
			(uint16_t)((v.u & 0x7fffffffu) > 0x7f800000u ? v.u >> 16 | 0x40 : rounded);
}

/* Element i of x, for x[i] of either type. */
INLINE const void *element(const void *x, int type, int64_t i)
{
	return (const char *)x + i * (type == DT_F32 ? 4 : 2);
}

typedef float vec __attribute__((vector_size(LANES * 4)));

_Static_assert(HEAD_GROUP % ROWS == 0 && 16 % ROWS == 0,
	       "groups of queries and keys are whole blocks");

/* A matrix read element by element: a[row * down + i * along]. */
struct strided {
	const float *x;
	int64_t down, along;
};

/* ROWS rows and `vecs` vectors of c; add: to what is there. */
INLINE void block(float *c, int64_t c_stride, struct strided a, const float *b, int64_t b_stride,
		  int64_t inner, const int vecs, bool add)
{
	vec sum[ROWS][2];

#pragma GCC unroll 8
	for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
		for (int v = 0; v < vecs; v++)
			sum[m][v] = add ? *(const vec *)(c + m * c_stride + v * LANES) : (vec){ 0 };
	for (int64_t i = 0; i < inner; i++) {
		vec row[2];

#pragma GCC unroll 2
		for (int v = 0; v < vecs; v++)
			row[v] = *(const vec *)(b + i * b_stride + v * LANES);
#pragma GCC unroll 8
		for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
			for (int v = 0; v < vecs; v++)
				sum[m][v] += row[v] * a.x[m * a.down + i * a.along];
	}
#pragma GCC unroll 8
	for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
		for (int v = 0; v < vecs; v++)
			*(vec *)(c + m * c_stride + v * LANES) = sum[m][v];
}

/* rows: a multiple of ROWS; columns: of LANES; b and c aligned to vectors. */
INLINE void product(float *c, int64_t c_stride, struct strided a, const float *b, int64_t b_stride,
		    int64_t rows, int64_t columns, int64_t inner, bool add)
{
	for (int64_t m = 0; m < rows; m += ROWS) {
		struct strided part = { a.x + m * a.down, a.down, a.along };
		float *to = c + m * c_stride;
		int64_t n = 0;

		for (; n + 2 * LANES <= columns; n += 2 * LANES)
			block(to + n, c_stride, part, b + n, b_stride, inner, 2, add);
		if (n < columns)
			block(to + n, c_stride, part, b + n, b_stride, inner, 1, add);
	}
}

/* Where things are in a head's scratch. */
struct space {
	int64_t width;          /* hd, as whole vectors */
	float *q, *o, *dout;    /* [queries, width]; o: out, or dq */
	float *most, *sum;      /* [queries]: of the softmax; backward lse, dout . out */
	float *kt, *vt;         /* [width, HEAD_PANEL_STRIDE] */
	float *k, *v, *dk, *dv; /* [HEAD_PANEL, width] */
	float *s, *ds;          /* [HEAD_GROUP, HEAD_PANEL_STRIDE] */
};

static struct space space_of(const struct head *h)
{
	int64_t rows = head_groups(h->queries) * HEAD_GROUP, w = head_width(h->hd);
	int64_t scalars = (rows + 15) / 16 * 16;
	struct space s = { .width = w };

	s.q = h->scratch;
	s.o = s.q + rows * w;
	s.dout = s.o + rows * w;
	s.most = s.dout + rows * w;
	s.sum = s.most + scalars;
	s.kt = s.sum + scalars;
	s.vt = s.kt + w * HEAD_PANEL_STRIDE;
	s.k = s.vt + w * HEAD_PANEL_STRIDE;
	s.v = s.k + w * HEAD_PANEL;
	s.dk = s.v + w * HEAD_PANEL;
	s.dv = s.dk + w * HEAD_PANEL;
	s.s = s.dv + w * HEAD_PANEL;
	s.ds = s.s + HEAD_GROUP * HEAD_PANEL_STRIDE;
	return s;
}

/* to[rows, width] = by * from, zero beyond n rows and hd columns. */
INLINE void pack_as(float *to, int64_t rows, int64_t width, const void *from, int t, int64_t stride,
		    int64_t n, int hd, float by)
{
	for (int64_t i = 0; i < n; i++) {
#pragma omp simd
		for (int c = 0; c < hd; c++)
			to[i * width + c] = by * get(from, t, i * stride + c);
		for (int64_t c = hd; c < width; c++)
			to[i * width + c] = 0;
	}
	memset(to + n * width, 0, (size_t)((rows - n) * width) * sizeof *to);
}

static void pack(float *to, int64_t rows, int64_t width, const void *from, enum dtype type,
		 int64_t stride, int64_t n, int hd, float by)
{
	BY_TYPE(type, pack_as(to, rows, width, from, T, stride, n, hd, by));
}

/* to[width, columns] = the transpose of packed rows[columns, width]; columns are a multiple of 16.
 */
static void transpose(float *to, const float *rows, int64_t columns, int64_t width)
{
	for (int64_t j = 0; j < columns; j += 16)
		for (int64_t c = 0; c < width; c++) {
			const float *from = rows + j * width + c;
			float *line = to + c * HEAD_PANEL_STRIDE + j;

#pragma omp simd
			for (int i = 0; i < 16; i++)
				line[i] = from[i * width];
		}
}

/* The keys that a query sees within a panel, relative to it: lo .. hi - 1. */
struct range {
	int64_t lo, hi;
};

static struct range seen(const struct head *h, int64_t query, int64_t panel, int64_t keys)
{
	struct range r = { 0, 0 };

	if (query >= h->queries)
		return r;
	r.lo = (h->start ? h->start[query] : 0) - panel;
	r.hi = (int64_t)h->limit[query] + 1 - panel;
	r.lo = r.lo < 0 ? 0 : r.lo;
	r.hi = r.hi > keys ? keys : r.hi;
	return r;
}

/* What the queries of a group see together, widened to whole vectors; hi 0 when nothing. */
static struct range group_range(const struct head *h, int64_t first, int64_t panel, int64_t keys)
{
	struct range all = { INT64_MAX, 0 };

	for (int64_t i = first; i < first + HEAD_GROUP; i++) {
		struct range r = seen(h, i, panel, keys);

		if (r.lo >= r.hi)
			continue;
		all.lo = r.lo < all.lo ? r.lo : all.lo;
		all.hi = r.hi > all.hi ? r.hi : all.hi;
	}
	all.lo = all.lo / 16 * 16;
	all.hi = (all.hi + 15) / 16 * 16;
	return all;
}

/* ---- forward */

/* Scores of one query become its shares, 0 outside r; what was summed before is brought to the new
 * greatest score. */
static void softmax_row(float *restrict score, struct range r, struct range all, float *most,
			float *sum, float *restrict o, int64_t width)
{
	int lo = (int)r.lo, hi = (int)r.hi, end = (int)all.hi;
	float top = -INFINITY, total = 0;

	if (r.lo >= r.hi) {
		memset(score + all.lo, 0, (size_t)(all.hi - all.lo) * sizeof *score);
		return;
	}
#pragma omp simd reduction(max : top)
	for (int j = lo; j < hi; j++)
		top = score[j] > top ? score[j] : top;
	if (top > *most) {
		float factor = *sum > 0 ? loop_exp(*most - top) : 0;

		*most = top;
		*sum *= factor;
#pragma omp simd
		for (int64_t c = 0; c < width; c++)
			o[c] *= factor;
	}
	top = *most;
#pragma omp simd reduction(+ : total)
	for (int j = (int)all.lo; j < end; j++) {
		float e = loop_exp(score[j] - top);

		e = j >= lo && j < hi ? e : 0;
		score[j] = e;
		total += e;
	}
	*sum += total;
}

static void group_forward(const struct head *h, const struct space *s, int64_t first, int64_t panel,
			  int64_t keys)
{
	struct range all = group_range(h, first, panel, keys);
	int64_t w = s->width, n = all.hi - all.lo;

	if (all.hi == 0)
		return;
	product(s->s + all.lo, HEAD_PANEL_STRIDE, (struct strided){ s->q + first * w, w, 1 },
		s->kt + all.lo, HEAD_PANEL_STRIDE, HEAD_GROUP, n, w, false);
	for (int64_t i = 0; i < HEAD_GROUP; i++)
		softmax_row(s->s + i * HEAD_PANEL_STRIDE, seen(h, first + i, panel, keys), all,
			    &s->most[first + i], &s->sum[first + i], s->o + (first + i) * w, w);
	product(s->o + first * w, w, (struct strided){ s->s + all.lo, HEAD_PANEL_STRIDE, 1 },
		s->v + all.lo * w, w, HEAD_GROUP, w, n, true);
}

INLINE void finish_as(const struct head *h, const struct space *s, int t)
{
	for (int64_t i = 0; i < h->queries; i++) {
		float by = s->sum[i] > 0 || isnan(s->sum[i]) ? 1.0f / s->sum[i] : 0;
		const float *o = s->o + i * s->width;
		void *to = (void *)element(h->out, t, i * h->out_stride);

#pragma omp simd
		for (int c = 0; c < h->hd; c++)
			put(to, t, c, o[c] * by);
		if (h->lse)
			h->lse[i] = s->most[i] + logf(s->sum[i]);
	}
}

/* The keys that any query sees. */
static struct range keys_seen(const struct head *h)
{
	struct range all = { h->keys, 0 };

	for (int64_t i = 0; i < h->queries; i++) {
		int64_t lo = h->start ? h->start[i] : 0;

		all.lo = lo < all.lo ? lo : all.lo;
		all.hi = h->limit[i] >= all.hi ? h->limit[i] + 1 : all.hi;
	}
	return all;
}

void LOOP(head_forward)(const struct head *h)
{
	struct space s = space_of(h);
	int64_t groups = head_groups(h->queries), rows = groups * HEAD_GROUP, w = s.width;
	struct range all = keys_seen(h);

	pack(s.q, rows, w, h->q, h->type, h->q_stride, h->queries, h->hd,
	     1.0f / sqrtf((float)h->hd));
	memset(s.o, 0, (size_t)(rows * w) * sizeof(float));
	for (int64_t i = 0; i < rows; i++) {
		s.most[i] = -INFINITY;
		s.sum[i] = 0;
	}
	for (int64_t panel = all.lo; panel < all.hi; panel += HEAD_PANEL) {
		int64_t keys = all.hi - panel < HEAD_PANEL ? all.hi - panel : HEAD_PANEL;
		int64_t padded = (keys + 15) / 16 * 16, from = panel * h->key_stride;

		pack(s.k, padded, w, element(h->k, (int)h->type, from), h->type, h->key_stride,
		     keys, h->hd, 1);
		transpose(s.kt, s.k, padded, w);
		pack(s.v, padded, w, element(h->v, (int)h->type, from), h->type, h->key_stride,
		     keys, h->hd, 1);
		for (int64_t g = 0; g < groups; g++)
			group_forward(h, &s, g * HEAD_GROUP, panel, keys);
	}
	BY_TYPE(h->type, finish_as(h, &s, T));
}

/* ---- backward */

/* score becomes p = exp(score - lse), ds (which holds dout . v) becomes p (ds - dout . out). */
static void softmax_backward_row(float *restrict score, float *restrict ds, struct range r,
				 struct range all, float lse, float mean)
{
	int lo = (int)r.lo, hi = (int)r.hi, end = (int)all.hi;

#pragma omp simd
	for (int j = (int)all.lo; j < end; j++) {
		float p = loop_exp(score[j] - lse);

		p = j >= lo && j < hi ? p : 0;
		score[j] = p;
		ds[j] = p * (ds[j] - mean);
	}
}

static void group_backward(const struct head *h, const struct space *s, int64_t first,
			   int64_t panel, int64_t keys)
{
	struct range all = group_range(h, first, panel, keys);
	int64_t w = s->width, n = all.hi - all.lo;
	struct strided q = { s->q + first * w, w, 1 }, dout = { s->dout + first * w, w, 1 };

	if (all.hi == 0)
		return;
	product(s->s + all.lo, HEAD_PANEL_STRIDE, q, s->kt + all.lo, HEAD_PANEL_STRIDE, HEAD_GROUP,
		n, w, false);
	product(s->ds + all.lo, HEAD_PANEL_STRIDE, dout, s->vt + all.lo, HEAD_PANEL_STRIDE,
		HEAD_GROUP, n, w, false);
	for (int64_t i = 0; i < HEAD_GROUP; i++)
		softmax_backward_row(s->s + i * HEAD_PANEL_STRIDE, s->ds + i * HEAD_PANEL_STRIDE,
				     seen(h, first + i, panel, keys), all, s->most[first + i],
				     s->sum[first + i]);
	product(s->o + first * w, w, (struct strided){ s->ds + all.lo, HEAD_PANEL_STRIDE, 1 },
		s->k + all.lo * w, w, HEAD_GROUP, w, n, true);
	product(s->dv + all.lo * w, w, (struct strided){ s->s + all.lo, 1, HEAD_PANEL_STRIDE },
		dout.x, w, n, w, HEAD_GROUP, true);
	product(s->dk + all.lo * w, w, (struct strided){ s->ds + all.lo, 1, HEAD_PANEL_STRIDE },
		q.x, w, n, w, HEAD_GROUP, true);
}

INLINE void write_rows_as(void *to, int t, int64_t stride, const float *from, int64_t n,
			  int64_t width, int hd, float by)
{
	for (int64_t i = 0; i < n; i++) {
#pragma omp simd
		for (int c = 0; c < hd; c++)
			put(to, t, i * stride + c, by * from[i * width + c]);
	}
}

static void write_rows(void *to, enum dtype type, int64_t stride, const float *from, int64_t n,
		       int64_t width, int hd, float by)
{
	BY_TYPE(type, write_rows_as(to, T, stride, from, n, width, hd, by));
}

/* lse and dout . out of each query. */
INLINE void means_as(const struct head *h, const struct space *s, int t)
{
	for (int64_t i = 0; i < h->queries; i++) {
		const float *dout = s->dout + i * s->width;
		float dot = 0;

#pragma omp simd reduction(+ : dot)
		for (int c = 0; c < h->hd; c++)
			dot += dout[c] * get(h->out, t, i * h->out_stride + c);
		s->most[i] = h->lse[i];
		s->sum[i] = dot;
	}
}

static void panel_backward(const struct head *h, const struct space *s, int64_t panel, int64_t keys)
{
	int64_t padded = (keys + 15) / 16 * 16, w = s->width, from = panel * h->key_stride;
	int type = (int)h->type;

	pack(s->v, padded, w, element(h->v, type, from), h->type, h->key_stride, keys, h->hd, 1);
	transpose(s->vt, s->v, padded, w);
	pack(s->k, padded, w, element(h->k, type, from), h->type, h->key_stride, keys, h->hd, 1);
	transpose(s->kt, s->k, padded, w);
	memset(s->dk, 0, (size_t)(padded * w) * sizeof(float));
	memset(s->dv, 0, (size_t)(padded * w) * sizeof(float));
	for (int64_t i = 0; i < h->queries; i += HEAD_GROUP)
		group_backward(h, s, i, panel, keys);
	write_rows((void *)element(h->dk, type, from), h->type, h->key_stride, s->dk, keys, w,
		   h->hd, 1);
	write_rows((void *)element(h->dv, type, from), h->type, h->key_stride, s->dv, keys, w,
		   h->hd, 1);
}

void LOOP(head_backward)(const struct head *h)
{
	float scale = 1.0f / sqrtf((float)h->hd);
	struct space s = space_of(h);
	int64_t rows = head_groups(h->queries) * HEAD_GROUP, w = s.width;

	pack(s.q, rows, w, h->q, h->type, h->q_stride, h->queries, h->hd, scale);
	pack(s.dout, rows, w, h->dout, h->type, h->out_stride, h->queries, h->hd, 1);
	memset(s.o, 0, (size_t)(rows * w) * sizeof(float));
	memset(s.most, 0, (size_t)rows * sizeof(float));
	memset(s.sum, 0, (size_t)rows * sizeof(float));
	BY_TYPE(h->type, means_as(h, &s, T));
	for (int64_t panel = 0; panel < h->keys; panel += HEAD_PANEL)
		panel_backward(h, &s, panel,
			       h->keys - panel < HEAD_PANEL ? h->keys - panel : HEAD_PANEL);
	write_rows(h->dq, h->type, h->q_stride, s.o, h->queries, w, h->hd, scale);
}
