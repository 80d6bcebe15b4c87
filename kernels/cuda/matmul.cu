/* SPDX-License-Identifier: Apache-2.0
 * Matrix products, accumulated in f32: of few rows by few.cu, else through cuBLASLt. The algorithm
 * of a shape is chosen by timing the library's candidates on the real operands the first time the
 * shape is seen, then remembered; candidates that reduce in place (in no fixed order) are left out,
 * and for some products those that divide the depth (undivided).
 * The list can be written down and read back (cuda_choose). While a graph is recorded nothing can
 * be timed: a new shape then takes the library's first candidate.
 *
 * Products of e4m3 are scaled by rows of A and of B; fp8.cu makes those.
 *
 * The library is column-major: it computes C^T[N,M] = op(B)^T op(A)^T, so B is its first operand.
 */
#include "kernels/cuda/few.cuh"
#include "kernels/cuda/library.cuh"

extern "C" {
#include "lib/mem.h"
}

#include <cublasLt.h>
#include <cuda_fp8.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIBRARY LIBRARY_FILE("libcublasLt", CUBLAS_VER_MAJOR)
#define FUNCTIONS(F)                                    \
	F(cublasLtCreate)                               \
	F(cublasLtDestroy)                              \
	F(cublasLtGetStatusString)                      \
	F(cublasLtGetVersion)                           \
	F(cublasLtMatmul)                               \
	F(cublasLtMatmulAlgoCheck)                      \
	F(cublasLtMatmulAlgoConfigGetAttribute)         \
	F(cublasLtMatmulAlgoGetHeuristic)               \
	F(cublasLtMatmulDescCreate)                     \
	F(cublasLtMatmulDescDestroy)                    \
	F(cublasLtMatmulDescSetAttribute)               \
	F(cublasLtMatmulPreferenceCreate)               \
	F(cublasLtMatmulPreferenceDestroy)              \
	F(cublasLtMatmulPreferenceSetAttribute)         \
	F(cublasLtMatrixLayoutCreate)                   \
	F(cublasLtMatrixLayoutDestroy)

#define WORKSPACE_BYTES ((size_t)64 << 20)
#define CANDIDATES 16
#define TIMED_RUNS 4

/* What the library does to sums besides: adds a bias, or scales rows and columns. */
enum with { WITH_NOTHING, WITH_BIAS, WITH_SCALES, WITH_SCALES_ROUGH };

/* What an algorithm was chosen for. Compared by bytes: no padding. */
struct shape {
	int64_t m, n, k;
	int32_t ta, tb, in, out, with, beta, align, unused;
};

struct choice {
	struct shape shape;
	cublasLtMatmulAlgo_t algorithm;
	bool plain;			/* the library has none: product_plain */
	bool given;			/* by cuda_choose, not checked yet */
	cublasLtMatmulDesc_t operation; /* made on first use */
	cublasLtMatrixLayout_t a, b, c;
};

struct matmul_table {
	FUNCTIONS(LIBRARY_POINTER)
	cublasLtHandle_t library;
	void *workspace;
	cudaEvent_t begin, end;
	struct choice *choice;
	int count, room;
};

static void lt_check(const struct matmul_table *t, cublasStatus_t rc, const char *what, int line)
{
	if (rc != CUBLAS_STATUS_SUCCESS)
		die(KERNEL_EXIT_DEVICE, "the GPU failed: cuBLASLt says %s in %s at %s:%d",
		    t->cublasLtGetStatusString(rc), what, __FILE__, line);
}
#define LT(call) lt_check(t, t->call, #call, __LINE__)

static int start_library(struct cuda_state *s, struct matmul_table *t, struct err *e)
{
	static const char *const names[] = { FUNCTIONS(LIBRARY_NAME) };
	cublasStatus_t rc;

	static_assert(offsetof(struct matmul_table, library) == sizeof names, "a name a pointer");
	if (library_open(LIBRARY, names, ARRAY_LEN(names), (void **)t, e) < 0)
		return err_prefix(e, "device cuda:%d", s->device);
	rc = t->cublasLtCreate(&t->library);
	FAIL_IF(rc != CUBLAS_STATUS_SUCCESS, e, TF_EUNSUPPORTED,
		"device cuda:%d: cuBLASLt cannot be started: %s", s->device,
		t->cublasLtGetStatusString(rc));
	return 0;
}

struct matmul_table *matmul_table_new(struct cuda_state *s, struct err *e)
{
	struct matmul_table *t = (struct matmul_table *)xcalloc(1, sizeof *t);

	if (start_library(s, t, e) < 0) {
		xfree_(t);
		return NULL;
	}
	if (cudaMalloc(&t->workspace, WORKSPACE_BYTES) != cudaSuccess ||
	    cudaEventCreate(&t->begin) != cudaSuccess || cudaEventCreate(&t->end) != cudaSuccess) {
		err_set(e, TF_EUNSUPPORTED,
			"device cuda:%d: no memory for the workspace of %zu bytes", s->device,
			WORKSPACE_BYTES);
		matmul_table_free(t);
		return NULL;
	}
	return t;
}

bool matmul_has_fp8(const struct cuda_state *s)
{
	return s->capability == 90 && s->matmul && s->matmul->cublasLtGetVersion() >= 120900;
}

static void choice_release(struct matmul_table *t, struct choice *c)
{
	if (c->operation) {
		t->cublasLtMatmulDescDestroy(c->operation);
		t->cublasLtMatrixLayoutDestroy(c->a);
		t->cublasLtMatrixLayoutDestroy(c->b);
		t->cublasLtMatrixLayoutDestroy(c->c);
	}
}

void matmul_table_free(struct matmul_table *t)
{
	if (!t)
		return;
	for (int i = 0; i < t->count; i++)
		choice_release(t, &t->choice[i]);
	if (t->begin)
		(void)cudaEventDestroy(t->begin);
	if (t->end)
		(void)cudaEventDestroy(t->end);
	(void)cudaFree(t->workspace);
	t->cublasLtDestroy(t->library);
	xfree_(t->choice);
	xfree_(t);
}

/* ---- without the library: odd shapes it has no algorithm for, adding a bias, tiny and plain */
template <typename TI, typename TO>
__global__ void product_plain(const TI *a, const TI *b, TO *c, const float *bias, int64_t m,
			      int64_t n, int64_t depth, bool ta, bool tb, float beta)
{
	EACH (i, m * n) {
		int64_t row = i / n, column = i % n;
		float sum = bias ? bias[column] : 0.0f;

		for (int64_t j = 0; j < depth; j++)
			sum += to_float(ta ? a[j * m + row] : a[row * depth + j]) *
			       to_float(tb ? b[column * depth + j] : b[j * n + column]);
		put(c + i, beta != 0.0f ? sum + to_float(c[i]) : sum);
	}
}

template <typename TO>
__global__ void scaled_plain(const __nv_fp8_e4m3 *a, const float *a_scale, const __nv_fp8_e4m3 *b,
			     const float *b_scale, TO *c, int64_t m, int64_t n, int64_t depth)
{
	EACH (i, m * n) {
		int64_t row = i / n, column = i % n;
		float sum = 0.0f;

		for (int64_t j = 0; j < depth; j++)
			sum += (float)a[row * depth + j] * (float)b[column * depth + j];
		put(c + i, a_scale[row] * b_scale[column] * sum);
	}
}

static void run_plain(struct cuda_state *s, const struct product *p)
{
	unsigned grid = grid_for(s, p->m * p->n, 256);

	if (p->onto)
		CUDA(cudaMemcpyAsync(p->c, p->onto, (size_t)(p->m * p->n) * dtype_bytes(p->out),
				     cudaMemcpyDeviceToDevice, s->stream));
	if (p->in == DT_E4M3)
		ACT(p->out, scaled_plain<T><<<grid, 256, 0, s->stream>>>(
				    (const __nv_fp8_e4m3 *)p->a, p->a_scale,
				    (const __nv_fp8_e4m3 *)p->b, p->b_scale, (T *)p->c, p->m, p->n,
				    p->k));
	else if (p->in == DT_BF16)
		ACT(p->out, product_plain<bf16, T><<<grid, 256, 0, s->stream>>>(
				    (const bf16 *)p->a, (const bf16 *)p->b, (T *)p->c, p->bias,
				    p->m, p->n, p->k, p->ta, p->tb, p->beta));
	else
		ACT(p->out, product_plain<float, T><<<grid, 256, 0, s->stream>>>(
				    (const float *)p->a, (const float *)p->b, (T *)p->c, p->bias,
				    p->m, p->n, p->k, p->ta, p->tb, p->beta));
	LAUNCHED();
}

/* c[M,N] = x[M,N] (which may be c) + bias[N] + beta c: what the library does not fuse. */
template <typename TX, typename TC>
__global__ void finish_product(TC *c, const TX *x, const float *bias, int64_t count, int64_t n,
			       float beta)
{
	EACH (i, count) {
		float v = to_float(x[i]) + (bias ? bias[i % n] : 0.0f);

		put(c + i, beta != 0.0f ? v + to_float(c[i]) : v);
	}
}

/* ---- descriptors */
static int alignment_of(const struct product *p)
{
	uintptr_t bits = (uintptr_t)p->a | (uintptr_t)p->b | (uintptr_t)p->c | 16;

	return (int)(bits & -bits);
}

static enum with with_of(const struct product *p)
{
	if (p->in == DT_E4M3)
		return p->rough ? WITH_SCALES_ROUGH : WITH_SCALES;
	return p->bias ? WITH_BIAS : WITH_NOTHING;
}

static struct shape shape_of(const struct product *p)
{
	struct shape x = { p->m,
			   p->n,
			   p->k,
			   p->ta,
			   p->tb,
			   p->in,
			   p->out,
			   with_of(p),
			   p->beta != 0.0f,
			   alignment_of(p),
			   0 };
	return x;
}

static cudaDataType_t library_type(int t)
{
	return t == DT_E4M3 ? CUDA_R_8F_E4M3 : t == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

static cublasLtMatrixLayout_t layout(struct matmul_table *t, int type, int64_t rows,
				     int64_t columns)
{
	cublasLtMatrixLayout_t l = NULL;

	LT(cublasLtMatrixLayoutCreate(&l, library_type(type), (uint64_t)rows, (uint64_t)columns,
				      rows));
	return l;
}

static void set(struct matmul_table *t, const struct choice *c,
		cublasLtMatmulDescAttributes_t attribute, const void *value, size_t bytes)
{
	LT(cublasLtMatmulDescSetAttribute(c->operation, attribute, value, bytes));
}

static void describe(struct matmul_table *t, struct choice *c)
{
	const struct shape *x = &c->shape;
	cublasOperation_t first = x->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
	cublasOperation_t second = x->ta ? CUBLAS_OP_T : CUBLAS_OP_N;
	cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
	int32_t rows = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
	int8_t fast = x->with == WITH_SCALES_ROUGH;

	LT(cublasLtMatmulDescCreate(&c->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
	set(t, c, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
	set(t, c, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
	if (x->with == WITH_BIAS)
		set(t, c, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
	if (x->with >= WITH_SCALES) {
		set(t, c, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &rows, sizeof rows);
		set(t, c, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &rows, sizeof rows);
		set(t, c, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast);
	}
	c->b = x->tb ? layout(t, x->in, x->k, x->n) : layout(t, x->in, x->n, x->k);
	c->a = x->ta ? layout(t, x->in, x->m, x->k) : layout(t, x->in, x->k, x->m);
	c->c = layout(t, x->out, x->n, x->m);
}

static cublasStatus_t run(struct cuda_state *s, const struct choice *c, const struct product *p,
			  void *out)
{
	struct matmul_table *t = s->matmul;
	float one = 1.0f, beta = p->beta;

	return t->cublasLtMatmul(t->library, c->operation, &one, p->b, c->b, p->a, c->a, &beta,
				 p->onto ? p->onto : p->c, c->c, out, c->c, &c->algorithm,
				 t->workspace, WORKSPACE_BYTES, s->stream);
}

static void run_checked(struct cuda_state *s, const struct choice *c, const struct product *p,
			void *out)
{
	lt_check(s->matmul, run(s, c, p, out), "cublasLtMatmul", __LINE__);
}

/* Whether the depth must not be divided among sums that are added up afterwards. What is drawn
 * beside others goes through the same products with more rows, for which timing may choose another
 * algorithm; in f32 it is to be as when drawn alone, but for rounding, so both must add along the
 * depth. bf16 rounds by far more than that; gradients of weights (ta), of few outputs and deep
 * sums, are no part of drawing and would lose most. */
static bool undivided(const struct shape *x)
{
	return x->in == DT_F32 && !x->ta;
}

static int candidates(struct matmul_table *t, const struct choice *c,
		      cublasLtMatmulHeuristicResult_t found[CANDIDATES])
{
	cublasLtMatmulPreference_t wish = NULL;
	uint64_t bytes = WORKSPACE_BYTES;
	uint32_t align = (uint32_t)c->shape.align;
	uint32_t ordered = undivided(&c->shape) ? CUBLASLT_REDUCTION_SCHEME_NONE
						: CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE |
							  CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE;
	int n = 0;

	LT(cublasLtMatmulPreferenceCreate(&wish));
	LT(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
						&bytes, sizeof bytes));
	LT(cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
						&ordered, sizeof ordered));
	for (int i = CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
	     i <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES; i++)
		LT(cublasLtMatmulPreferenceSetAttribute(
			wish, (cublasLtMatmulPreferenceAttributes_t)i, &align, sizeof align));
	if (t->cublasLtMatmulAlgoGetHeuristic(t->library, c->operation, c->b, c->a, c->c, c->c,
					      wish, CANDIDATES, found,
					      &n) != CUBLAS_STATUS_SUCCESS)
		n = 0;
	LT(cublasLtMatmulPreferenceDestroy(wish));
	return n;
}

/* Milliseconds of TIMED_RUNS runs into `out`, or a huge figure when the algorithm refuses. */
static float time_of(struct cuda_state *s, const struct choice *c, const struct product *p,
		     void *out)
{
	float ms = 0;

	if (run(s, c, p, out) != CUBLAS_STATUS_SUCCESS)
		return 1e30f;
	CUDA(cudaEventRecord(s->matmul->begin, s->stream));
	for (int i = 0; i < TIMED_RUNS; i++)
		run_checked(s, c, p, out);
	CUDA(cudaEventRecord(s->matmul->end, s->stream));
	CUDA(cudaEventSynchronize(s->matmul->end));
	CUDA(cudaEventElapsedTime(&ms, s->matmul->begin, s->matmul->end));
	return ms;
}

/* Fastest of the candidates; the output of the timed runs goes to memory of its own, so that C
 * keeps what beta adds to. */
static void choose(struct cuda_state *s, struct choice *c, const struct product *p)
{
	cublasLtMatmulHeuristicResult_t found[CANDIDATES];
	int n = candidates(s->matmul, c, found), best = 0;
	float best_ms = 1e30f;
	void *out = NULL;

	c->plain = n == 0;
	if (n > 1 && !s->recording &&
	    cudaMalloc(&out, (size_t)(p->m * p->n) * dtype_bytes(p->out)) == cudaSuccess) {
		for (int i = 0; i < n; i++) {
			float ms;

			c->algorithm = found[i].algo;
			ms = time_of(s, c, p, out);
			if (ms < best_ms) {
				best_ms = ms;
				best = i;
			}
		}
		CUDA(cudaFree(out));
	}
	(void)cudaGetLastError();
	if (n)
		c->algorithm = found[best].algo;
}

static struct choice *table_find(struct matmul_table *t, const struct shape *x)
{
	for (int i = 0; i < t->count; i++)
		if (!memcmp(&t->choice[i].shape, x, sizeof *x))
			return &t->choice[i];
	return NULL;
}

static struct choice *table_add(struct matmul_table *t, const struct shape *x)
{
	struct choice *c;

	if (t->count == t->room) {
		t->room = t->room ? 2 * t->room : 64;
		t->choice =
			(struct choice *)xrealloc(t->choice, (size_t)t->room, sizeof *t->choice);
	}
	c = &t->choice[t->count++];
	memset(c, 0, sizeof *c);
	c->shape = *x;
	return c;
}

static bool divides(struct matmul_table *t, const struct choice *c)
{
	uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;

	return t->cublasLtMatmulAlgoConfigGetAttribute(
		       &c->algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme,
		       NULL) != CUBLAS_STATUS_SUCCESS ||
	       scheme != CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* Whether an algorithm from outside can serve its shape here. The list has no mark of undivided
 * sums and may be older than these: the library is asked what the algorithm does. */
static bool serves(struct matmul_table *t, const struct choice *c)
{
	cublasLtMatmulHeuristicResult_t found;

	return !(undivided(&c->shape) && divides(t, c)) &&
	       t->cublasLtMatmulAlgoCheck(t->library, c->operation, c->b, c->a, c->c, c->c,
					  &c->algorithm, &found) == CUBLAS_STATUS_SUCCESS &&
	       found.workspaceSize <= WORKSPACE_BYTES;
}

static void run_library(struct cuda_state *s, const struct product *p)
{
	struct matmul_table *t = s->matmul;
	struct shape x = shape_of(p);
	struct choice *c = table_find(t, &x);
	bool fresh = !c;

	if (!c)
		c = table_add(t, &x);
	if (!c->operation)
		describe(t, c);
	if (p->bias)
		set(t, c, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
	if (p->in == DT_E4M3) {
		set(t, c, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &p->b_scale, sizeof p->b_scale);
		set(t, c, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &p->a_scale, sizeof p->a_scale);
	}
	if (fresh || (c->given && !serves(t, c)))
		choose(s, c, p);
	c->given = false;
	if (c->plain)
		run_plain(s, p);
	else
		run_checked(s, c, p, p->c);
}

/* Few rows of bf16: bound by the weights' bytes, and better off without the library. */
static bool run_few(struct cuda_state *s, const struct product *p)
{
	struct few f = {};

	if (p->in != DT_BF16 || p->ta || !p->tb || p->m > FEW_ROWS || p->n > INT32_MAX ||
	    p->k > INT32_MAX)
		return false;
	f.x = (const bf16 *)p->a;
	f.w = (const bf16 *)p->b;
	f.out = p->c;
	f.bias = p->bias;
	f.m = (int)p->m;
	f.n = (int)p->n;
	f.k = (int)p->k;
	f.add = p->beta != 0.0f;
	f.type = p->out;
	if (!few_fits(&f))
		return false;
	few_run(s, &f, false);
	return true;
}

void cuda_product(struct cuda_state *s, const struct product *p)
{
	struct product q = *p;
	int64_t count = p->m * p->n;

	if (!count || run_few(s, p))
		return;
	if (p->out == DT_F32 || p->in == DT_E4M3 || (p->in == DT_BF16 && !p->bias)) {
		if (p->bias &&
		    p->beta != 0.0f) { /* the epilogue adds the bias once; keep it apart */
			q.bias = NULL;
			run_library(s, &q);
			finish_product<float, float>
				<<<grid_for(s, count, 256), 256, 0, s->stream>>>(
					(float *)p->c, (const float *)p->c, p->bias, count, p->n,
					0.0f);
			LAUNCHED();
			return;
		}
		run_library(s, p);
		return;
	}
	/* bf16 out with an f32 bias, or from f32 operands: through f32 scratch, rounded once. */
	q.c = cuda_scratch(s, (size_t)count * 4);
	q.out = DT_F32;
	q.bias = NULL;
	q.beta = 0.0f;
	run_library(s, &q);
	finish_product<float, bf16><<<grid_for(s, count, 256), 256, 0, s->stream>>>(
		(bf16 *)p->c, (const float *)q.c, p->bias, count, p->n, p->beta);
	LAUNCHED();
}

void cuda_matmul(struct kernels *k, struct tensor c, struct tensor a, bool ta, struct tensor b,
		 bool tb, struct tensor bias, float beta)
{
	struct product p = { c.dim[0],
			     c.dim[1],
			     ta ? a.dim[0] : a.dim[1],
			     a.data,
			     b.data,
			     c.data,
			     (const float *)bias.data,
			     ta,
			     tb,
			     a.type,
			     c.type,
			     beta };

	CHECK(c.rank == 2 && a.rank == 2 && b.rank == 2 && a.type == b.type);
	CHECK(a.type == DT_F32 || a.type == DT_BF16);
	CHECK((ta ? a.dim[1] : a.dim[0]) == p.m && (tb ? b.dim[1] : b.dim[0]) == p.k);
	CHECK((tb ? b.dim[0] : b.dim[1]) == p.n && (beta == 0.0f || beta == 1.0f));
	CHECK(!bias.data || (bias.type == DT_F32 && tensor_count(&bias) == p.n));
	cuda_product(state_of(k), &p);
}

void cuda_matmul_add(struct kernels *k, struct tensor c, struct tensor x, struct tensor a,
		     struct tensor b)
{
	struct product p = { c.dim[0], c.dim[1], a.dim[1], a.data, b.data, c.data };

	CHECK(c.rank == 2 && x.rank == 2 && x.dim[0] == p.m && x.dim[1] == p.n);
	CHECK(a.dim[0] == p.m && b.dim[0] == p.n && b.dim[1] == p.k && x.data != c.data);
	CHECK(c.type == x.type && a.type == c.type && b.type == c.type);
	p.tb = true;
	p.in = p.out = c.type;
	p.beta = 1.0f;
	if (p.m <= FEW_ROWS)
		cuda_copy(k, c.data, x.data, tensor_bytes(&c));
	else
		p.onto = x.data;
	cuda_product(state_of(k), &p);
}

/* ---- the list of choices as text: the library's version and the device's name, then lines of
 * m n k ta tb in out with beta align algorithm */
#define LINE_MOST 512

char *cuda_choices(const struct kernels *k)
{
	const struct cuda_state *s = (const struct cuda_state *)k->state;
	const struct matmul_table *t = s->matmul;
	size_t room = ((size_t)t->count + 1) * LINE_MOST, used;
	char *text = (char *)xcalloc(1, room);

	used = (size_t)snprintf(text, room, "%zu %s\n", t->cublasLtGetVersion(), s->name);
	for (int i = 0; i < t->count; i++) {
		const struct choice *c = &t->choice[i];
		const struct shape *x = &c->shape;
		const unsigned char *bytes = (const unsigned char *)&c->algorithm;

		if (c->plain)
			continue;
		used += (size_t)snprintf(text + used, room - used,
					 "%lld %lld %lld %d %d %d %d %d %d %d ", (long long)x->m,
					 (long long)x->n, (long long)x->k, x->ta, x->tb, x->in,
					 x->out, x->with, x->beta, x->align);
		for (size_t j = 0; j < sizeof c->algorithm; j++)
			used += (size_t)snprintf(text + used, room - used, "%02x", bytes[j]);
		used += (size_t)snprintf(text + used, room - used, "\n");
	}
	return text;
}

static bool parse_algorithm(const char *hex, cublasLtMatmulAlgo_t *out)
{
	unsigned char *bytes = (unsigned char *)out;

	for (size_t i = 0; i < sizeof *out; i++) {
		unsigned v;

		if (sscanf(hex + 2 * i, "%2x", &v) != 1)
			return false;
		bytes[i] = (unsigned char)v;
	}
	return true;
}

/* One line; the algorithm is checked when its shape first comes. */
static bool parse_choice(const char *line, struct shape *x, cublasLtMatmulAlgo_t *algorithm)
{
	long long m, n, depth;
	int at = 0;

	memset(x, 0, sizeof *x);
	if (sscanf(line, "%lld %lld %lld %d %d %d %d %d %d %d %n", &m, &n, &depth, &x->ta, &x->tb,
		   &x->in, &x->out, &x->with, &x->beta, &x->align, &at) != 10)
		return false;
	x->m = m;
	x->n = n;
	x->k = depth;
	return at && strlen(line + at) >= 2 * sizeof *algorithm &&
	       parse_algorithm(line + at, algorithm);
}

int cuda_choose(struct kernels *k, const char *text, struct err *e)
{
	struct cuda_state *s = state_of(k);
	struct matmul_table *t = s->matmul;
	const char *end = strchr(text, '\n');
	size_t version = 0;
	int at = 0;

	FAIL_IF(!end || sscanf(text, "%zu %n", &version, &at) != 1 || !at || text + at > end, e,
		TF_EINVALID, "chosen algorithms: no library version and device in the first line");
	FAIL_IF(version != t->cublasLtGetVersion(), e, TF_EUNSUPPORTED,
		"the algorithms were chosen with cuBLASLt %zu, this is %zu", version,
		t->cublasLtGetVersion());
	FAIL_IF(strlen(s->name) != (size_t)(end - text - at) ||
			strncmp(text + at, s->name, strlen(s->name)),
		e, TF_EUNSUPPORTED, "the algorithms were chosen on %.*s, this is %s",
		(int)(end - text - at), text + at, s->name);
	for (int line = 2; *++end; line++) {
		cublasLtMatmulAlgo_t algorithm;
		struct shape x;
		struct choice *c;

		FAIL_IF(!parse_choice(end, &x, &algorithm) || !strchr(end, '\n'), e, TF_EINVALID,
			"chosen algorithms, line %d: not ten numbers and an algorithm in hex",
			line);
		c = table_find(t, &x);
		if (!c)
			c = table_add(t, &x);
		c->algorithm = algorithm;
		c->plain = false;
		c->given = true;
		end = strchr(end, '\n');
	}
	return TF_OK;
}
