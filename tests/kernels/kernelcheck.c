/* SPDX-License-Identifier: Apache-2.0
 * Holds every operation of every backend against the reference, on the cases of cases.c.
 *
 * kernelcheck [test [OPERATION...]]
 *			outputs against ref, and the same bits twice; TAP
 * kernelcheck grad     finite differences of the reference's backward operations; TAP
 * kernelcheck support  which rows each backend serves itself
 * kernelcheck perf [BACKEND [OPERATION]]
 *			GFLOP/s and GB/s at the cases' big shapes, after the machine's peaks
 *
 * test goes over the CPU and the GPU, or over the device of TF_DEVICE alone. A GPU that is not
 * there is skipped with a word. */
#include "config.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "kernels/cpu/loops/loops.h"
#include "kernels/ref/ref.h"
#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PERF_BATCH 4
#define PERF_BATCHES 12

static int points, failures;
static char *const *tested; /* operations that are tested, to a NULL; NULL: all */

static struct tensor keep(struct run *r, struct tensor t, const void *host)
{
	CHECK(r->count < RUN_TENSORS_MAX);
	t.data = r->k->ops->alloc(r->k, tensor_bytes(&t));
	CHECK(t.data);
	if (host)
		r->k->ops->upload(r->k, t.data, host, tensor_bytes(&t));
	r->tensor[r->count++] = t;
	return t;
}

/* In a later pass the arguments of the operation are the first pass's. */
static bool replayed(struct run *r, struct tensor *t)
{
	if (r->done < 2)
		return false;
	CHECK(r->replay < r->count);
	*t = r->tensor[r->replay++];
	return true;
}

struct tensor run_input(struct run *r, enum dtype type, int rank, const int64_t *dim)
{
	struct tensor t = { NULL, type, rank, { 1, 1, 1, 1 } };
	float *values;
	int64_t n;

	if (replayed(r, &t))
		return t;
	memcpy(t.dim, dim, rank * sizeof *dim);
	n = tensor_count(&t);
	values = xcalloc(n, sizeof *values);
	philox_normals(r->seed, PHILOX_TEST, r->drawn++, 0, values, n);
	for (int64_t i = 0; type == DT_BF16 && i < n; i++)
		((uint16_t *)values)[i] = bf16_from_float(values[i]);
	t = keep(r, t, values);
	xfree(values);
	return t;
}

struct tensor run_input1(struct run *r, enum dtype type, int64_t n)
{
	return run_input(r, type, 1, (int64_t[]){ n });
}

struct tensor run_input2(struct run *r, enum dtype type, int64_t a, int64_t b)
{
	return run_input(r, type, 2, (int64_t[]){ a, b });
}

struct tensor run_input3(struct run *r, enum dtype type, int64_t a, int64_t b, int64_t c)
{
	return run_input(r, type, 3, (int64_t[]){ a, b, c });
}

struct tensor run_input4(struct run *r, enum dtype type, int64_t a, int64_t b, int64_t c, int64_t d)
{
	return run_input(r, type, 4, (int64_t[]){ a, b, c, d });
}

struct tensor run_i32(struct run *r, int64_t n, const int32_t *values)
{
	struct tensor t;

	return replayed(r, &t) ? t : keep(r, tensor_1d(NULL, DT_I32, n), values);
}

struct tensor run_integers(struct run *r, int64_t n, int64_t least, int64_t most)
{
	int32_t *values = xcalloc(n, sizeof *values);
	struct tensor t;

	if (replayed(r, &t)) {
		xfree(values);
		return t;
	}
	for (int64_t i = 0; i < n; i++)
		values[i] = (int32_t)(least + (int64_t)philox_below(r->seed, PHILOX_TEST, r->drawn,
								    i, most - least + 1));
	r->drawn++;
	t = run_i32(r, n, values);
	xfree(values);
	return t;
}

struct tensor run_distinct(struct run *r, int64_t n, int64_t range)
{
	int32_t *values = xcalloc(n, sizeof *values);
	struct tensor t;

	if (replayed(r, &t)) {
		xfree(values);
		return t;
	}
	CHECK(n <= range);
	for (int64_t i = 0; i < n; i++)
		values[i] = i % 4 == 3 ? -1 : (int32_t)philox_permute(r->seed, r->drawn, i, range);
	r->drawn++;
	t = run_i32(r, n, values);
	xfree(values);
	return t;
}

struct tensor run_changes(struct run *r, struct tensor input)
{
	for (int i = 0; i < r->count; i++)
		if (r->tensor[i].data == input.data)
			r->output[i] = true;
	return input;
}

struct tensor run_output(struct run *r, struct tensor like)
{
	void *poison;
	struct tensor t;

	if (replayed(r, &t))
		return t;
	poison = xmalloc(tensor_bytes(&like));
	memset(poison, 0xff, tensor_bytes(&like));
	t = keep(r, like, poison);
	xfree(poison);
	return run_changes(r, t);
}

void run_release(struct run *r)
{
	for (int i = 0; i < r->count; i++)
		r->k->ops->release(r->k, r->tensor[i].data);
}

/* After a first pass, batches of passes are timed; the fastest counts, as others may use the
 * machine. */
bool run_again(struct run *r)
{
	if (r->done == 0)
		r->mark = r->count;
	r->replay = r->mark;
	if (r->done >= 1 && (r->done - 1) % PERF_BATCH == 0) {
		int64_t now;
		double each;

		r->k->ops->sync(r->k);
		now = clock_mono_ns();
		each = (double)(now - r->begin) * 1e-9 / PERF_BATCH;
		if (r->done > 1 && (r->seconds == 0 || each < r->seconds))
			r->seconds = each;
		r->begin = now;
	}
	return r->done++ < r->passes;
}

static struct run do_run(struct kernels *k, const struct op_case *c, const int64_t *dim,
			 enum dtype act)
{
	struct run r = { .k = k, .seed = 11, .act = act, .dim = dim, .passes = 1 };

	c->run(&r);
	k->ops->sync(k);
	return r;
}

static char *fetch(const struct run *r, int i)
{
	char *host = xmalloc(tensor_bytes(&r->tensor[i]));

	r->k->ops->download(r->k, host, r->tensor[i].data, tensor_bytes(&r->tensor[i]));
	return host;
}

static double value(const struct tensor *t, const char *host, int64_t i)
{
	switch (t->type) {
	case DT_F32: return ((const float *)(const void *)host)[i];
	case DT_BF16: return bf16_to_float(((const uint16_t *)(const void *)host)[i]);
	case DT_I32: return ((const int32_t *)(const void *)host)[i];
	case DT_E4M3: return e4m3_to_float((uint8_t)host[i]);
	default: return host[i];
	}
}

/* ||a - b|| / ||b||; NaN or infinity anywhere counts as infinitely far. */
static double distance(const struct run *a, const struct run *b, int i)
{
	char *x = fetch(a, i), *y = fetch(b, i);
	double off = 0, size = 0;

	for (int64_t j = 0; j < tensor_count(&a->tensor[i]); j++) {
		double u = value(&a->tensor[i], x, j), v = value(&a->tensor[i], y, j);

		off += (u - v) * (u - v);
		size += v * v;
	}
	xfree(x);
	xfree(y);
	if (!isfinite(off) || !isfinite(size))
		return INFINITY;
	return size > 0 ? sqrt(off / size) : sqrt(off);
}

static bool same_bits(const struct run *a, const struct run *b)
{
	bool same = true;

	for (int i = 0; i < a->count; i++)
		if (a->output[i]) {
			char *x = fetch(a, i), *y = fetch(b, i);

			same = same && memcmp(x, y, tensor_bytes(&a->tensor[i])) == 0;
			xfree(x);
			xfree(y);
		}
	return same;
}

static void point(bool good, const struct op_case *c, const char *backend, const int64_t *d,
		  enum dtype act, const char *what, double off)
{
	points++;
	failures += !good;
	printf("%s %d - %s on %s, %s, %ldx%ldx%ldx%ldx%ldx%ld: %s %.2e\n", good ? "ok" : "not ok",
	       points, c->op, backend, act == DT_F32 ? "f32" : "bf16", (long)d[0], (long)d[1],
	       (long)d[2], (long)d[3], (long)d[4], (long)d[5], what, off);
}

/* f32 sums of some hundred terms stay within 3e-6; one bf16 rounding is 2^-9, and products of bf16
 * inputs accumulate in f32 before they are rounded once. */
static double tolerance(const struct op_case *c, enum dtype act)
{
	return c->loose * (act == DT_F32 ? 3e-6 : 4e-3);
}

static void test_case(struct kernels *ref, struct kernels *k, const struct op_case *c,
		      const int64_t *dim, enum dtype act)
{
	struct run want = do_run(ref, c, dim, act), got = do_run(k, c, dim, act);
	struct run again = do_run(k, c, dim, act);
	double worst = 0;

	for (int i = 0; i < want.count; i++)
		if (want.output[i])
			worst = fmax(worst, distance(&got, &want, i));
	point(worst <= tolerance(c, act), c, k->backend, dim, act, "off by", worst);
	if (!same_bits(&got, &again))
		point(false, c, k->backend, dim, act, "other bits the second time", 0);
	run_release(&want);
	run_release(&got);
	run_release(&again);
}

/* Case i of all tables; NULL after the last. */
static const struct op_case *case_at(int i)
{
	const struct { const struct op_case *cases; int count; } table[] = {
		{ op_cases, op_cases_count },
		{ row_cases, row_cases_count },
		{ image_cases, image_cases_count },
	};

	for (size_t t = 0; t < ARRAY_LEN(table); i -= table[t++].count)
		if (i < table[t].count)
			return &table[t].cases[i];
	return NULL;
}

static bool is_tested(const char *op)
{
	char *const *name = tested;

	while (name && *name && strcmp(*name, op) != 0)
		name++;
	return !name || *name;
}

static void test_backend(struct kernels *ref, struct kernels *k)
{
	const struct op_case *c;

	for (int i = 0; (c = case_at(i)); i++)
		for (int s = 0; is_tested(c->op) && s < 4 && c->shape[s][0]; s++) {
			test_case(ref, k, c, c->shape[s], DT_F32);
			if (c->bf16)
				test_case(ref, k, c, c->shape[s], DT_BF16);
		}
}

static void perf_case(struct kernels *k, const struct op_case *c, const int64_t *dim,
		      enum dtype act)
{
	struct run r = { .k = k, .seed = 11, .act = act, .dim = dim,
			 .passes = 1 + PERF_BATCHES * PERF_BATCH };
	char shape[64];

	c->run(&r);
	snprintf(shape, sizeof shape, "%ldx%ldx%ldx%ldx%ld", (long)dim[0], (long)dim[1],
		 (long)dim[2], (long)dim[3], (long)dim[4]);
	printf("%-22s %-4s %-22s %9.3f ms", c->op, act == DT_F32 ? "f32" : "bf16", shape,
	       r.seconds * 1e3);
	if (r.flops > 0)
		printf(" %9.1f GFLOP/s", r.flops / r.seconds * 1e-9);
	if (r.bytes > 0)
		printf(" %9.1f GB/s", r.bytes / r.seconds * 1e-9);
	putchar('\n');
	run_release(&r);
}

/* What one long product and one long pass over memory reach here: the measures of all else. */
static void perf_peaks(struct kernels *k)
{
	static const int64_t product[CHECK_DIMS] = { 1536, 1536, 1536 };
	static const int64_t pass[CHECK_DIMS] = { 1 << 24 };
	const struct op_case *c;

	for (c = op_cases; strcmp(c->op, "matmul") != 0; c++)
		;
	for (int act = DT_F32; act <= DT_BF16; act++)
		perf_case(k, c, product, (enum dtype)act);
	for (c = op_cases; strcmp(c->op, "sum_squares") != 0; c++)
		;
	perf_case(k, c, pass, DT_F32);
}

/* only: one operation, or NULL for all after the peaks. */
static void perf(const char *device, const char *only)
{
	struct err e = ERR_INIT;
	const struct op_case *c;
	struct kernels *k;

	if (kernels_open(device, 0, &k, &e) < 0)
		die(1, "%s", e.text);
	printf("%s\n", kernels_describe(k));
	if (!only) {
		perf_peaks(k);
		puts("--");
	}
	for (int i = 0; (c = case_at(i)); i++)
		for (int b = 0; b < 4 && c->big[b][0]; b++)
			for (int act = DT_F32; act <= c->bf16; act++)
				if (!only || strcmp(only, c->op) == 0)
					perf_case(k, c, c->big[b], (enum dtype)act);
	kernels_close(k);
}

/* The CPU's loops as narrower processors run them. */
static void test_levels(struct kernels *ref, const struct kernels *cpu)
{
	struct kernel_ops ops = *cpu->ops;
	struct kernels k = *cpu;

	k.ops = &ops;
	loop_install_base(&ops);
	k.backend = "cpu without vectors";
	test_backend(ref, &k);
#ifdef HAVE_X86_LEVELS
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
		return;
	loop_install_v3(&ops);
	k.backend = "cpu with AVX2";
	test_backend(ref, &k);
#endif
}

static int test_all(struct kernels *ref)
{
	const char *devices[] = { "cpu", "cuda:0" }, *one = getenv("TF_DEVICE");
	int count = one ? 1 : 2;
	struct err e = ERR_INIT;
	struct kernels *k;

	devices[0] = one ? one : devices[0];
	for (int d = 0; d < count; d++) {
		err_clear(&e);
		if (kernels_open(devices[d], 2, &k, &e) < 0) {
			printf("ok %d - %s # SKIP %s\n", ++points, devices[d], e.text);
			continue;
		}
		test_backend(ref, k);
		if (strcmp(k->backend, "cpu") == 0)
			test_levels(ref, k);
		kernels_close(k);
	}
	printf("1..%d\n", points);
	return failures;
}

/* The table of a backend, or NULL where it does not open; it stays valid after the close. */
static const struct kernel_ops *table_of(const char *device)
{
	const struct kernel_ops *ops;
	struct err e = ERR_INIT;
	struct kernels *k;

	if (kernels_open(device, 0, &k, &e) < 0) {
		printf("%s: %s\n", device, e.text);
		return NULL;
	}
	ops = k->ops;
	printf("%s: %s\n", device, kernels_describe(k));
	kernels_close(k);
	return ops;
}

static void support(void)
{
	const struct kernel_ops *cpu = table_of("cpu"), *cuda = table_of("cuda:0");

	printf("%-24s %-10s %s\n", "operation", "cpu", "cuda");
#define SERVED(ops, name) (!(ops) ? "-" : (ops)->name == ref_ops.name ? "reference" : "own")
#define K(ret, name, args) printf("%-24s %-10s %s\n", #name, SERVED(cpu, name), SERVED(cuda, name));
#include "kernels/kernels.def"
#undef K
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "test";
	struct err e = ERR_INIT;
	struct kernels *ref;
	int wrong = 0;

	setvbuf(stdout, NULL, _IOLBF, 0); /* the last line tells where a case hangs */
	if (kernels_open("ref", 0, &ref, &e) < 0)
		die(1, "%s", e.text);
	if (strcmp(mode, "test") == 0) {
		tested = argc > 2 ? argv + 2 : NULL;
		wrong = test_all(ref) || points == 0; /* a name of no operation tests nothing */
	} else if (strcmp(mode, "grad") == 0)
		wrong = check_gradients(ref);
	else if (strcmp(mode, "perf") == 0)
		perf(argc > 2 ? argv[2] : "cpu", argc > 3 ? argv[3] : NULL);
	else if (strcmp(mode, "support") == 0)
		support();
	else
		die(2, "mode \"%s\": expected test, grad, support or perf", mode);
	kernels_close(ref);
	return wrong != 0;
}
