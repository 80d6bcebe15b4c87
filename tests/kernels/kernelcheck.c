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
#include "lib/mem.h"
#include "kernels/cpu/loops/loops.h"
#include "kernels/ref/ref.h"
#include "tests/kernels/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PERF_BATCHES 12

static int points, failures;
static char *const *tested; /* operations that are tested, to a NULL; NULL: all */

static struct run do_run(struct kernels *k, const struct op_case *c, const int64_t *dim,
			 enum dtype act, struct inputs *inputs)
{
	struct run r = { .k = k, .seed = 11, .act = act, .dim = dim, .passes = 1,
			 .inputs = inputs };

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

/* The backend's outputs against those that are wanted, and against its own of a second run. */
static void test_backend(const struct run *want, struct kernels *k, const struct op_case *c,
			 struct inputs *inputs)
{
	struct run got = do_run(k, c, want->dim, want->act, inputs);
	struct run again = do_run(k, c, want->dim, want->act, inputs);
	double worst = 0;

	for (int i = 0; i < want->count; i++)
		if (want->output[i])
			worst = fmax(worst, distance(&got, want, i));
	point(worst <= tolerance(c, want->act), c, k->backend, want->dim, want->act, "off by",
	      worst);
	if (!same_bits(&got, &again))
		point(false, c, k->backend, want->dim, want->act, "other bits the second time", 0);
	run_release(&got);
	run_release(&again);
}

/* Every backend of the list, which a NULL ends. */
static void test_case(struct kernels *ref, struct kernels *const *list, const struct op_case *c,
		      const int64_t *dim, enum dtype act)
{
	struct inputs inputs = { 0 };
	struct run want = do_run(ref, c, dim, act, &inputs);

	for (; *list; list++)
		test_backend(&want, *list, c, &inputs);
	run_release(&want);
	inputs_release(&inputs);
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

/* A CPU has nothing to fill: a few will do. */
static void make_few(int64_t *dim, unsigned fills)
{
	for (int i = 0; i < CHECK_DIMS; i++)
		if (fills >> i & 1 && dim[i] > 3)
			dim[i] = 1 + dim[i] % 3;
}

/* All cases on backends of one device. */
static void test_backends(struct kernels *ref, struct kernels *const *list)
{
	bool few = strcmp((*list)->backend, "cuda") != 0;
	const struct op_case *c;

	for (int i = 0; (c = case_at(i)); i++)
		for (int s = 0; is_tested(c->op) && s < 4 && c->shape[s][0]; s++) {
			int64_t dim[CHECK_DIMS];

			memcpy(dim, c->shape[s], sizeof dim);
			if (few)
				make_few(dim, c->fills);
			test_case(ref, list, c, dim, DT_F32);
			if (c->bf16)
				test_case(ref, list, c, dim, DT_BF16);
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

/* A device's backend; the CPU's also with the loops of narrower processors and without products of
 * bf16, which they lack. */
struct tested_device {
	struct kernels *k;
	struct kernels level[2];
	struct kernel_ops ops[2];
	struct kernels *list[4]; /* all of them, and a NULL */
};

static void add_level(struct tested_device *d, int i, const char *name,
		      void (*install)(struct kernel_ops *ops))
{
	d->ops[i] = *d->k->ops;
	install(&d->ops[i]);
	d->level[i] = *d->k;
	d->level[i].ops = &d->ops[i];
	d->level[i].backend = name;
	d->level[i].has_bf16 = false;
	d->list[1 + i] = &d->level[i];
}

static void add_levels(struct tested_device *d)
{
	d->list[0] = d->k;
	if (strcmp(d->k->backend, "cpu") != 0)
		return;
	add_level(d, 0, "cpu without vectors", loop_install_base);
#ifdef HAVE_X86_LEVELS
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		add_level(d, 1, "cpu with AVX2", loop_install_v3);
#endif
}

static int test_all(struct kernels *ref)
{
	const char *devices[] = { "cpu", "cuda:0" }, *one = getenv("TF_DEVICE");
	int count = one ? 1 : 2;
	struct err e = ERR_INIT;

	devices[0] = one ? one : devices[0];
	for (int i = 0; i < count; i++) {
		struct tested_device d = { NULL };

		err_clear(&e);
		if (kernels_open(devices[i], 2, &d.k, &e) < 0) {
			printf("ok %d - %s # SKIP %s\n", ++points, devices[i], e.text);
			continue;
		}
		add_levels(&d);
		test_backends(ref, d.list);
		kernels_close(d.k);
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
