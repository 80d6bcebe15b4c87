/* SPDX-License-Identifier: Apache-2.0
 * The CPU backend: its table, oneDNN's engine, scratch memory and the number of threads, which is
 * the process's. */
#include "config.h"
#include "kernels/backends.h"
#include "kernels/cpu/conv.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/loops/loops.h"
#include "lib/mem.h"

#include <assert.h>
#include <omp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

static struct kernel_ops cpu_ops;

/* Rows that the reference serves as they are: memory is the process's own, there are no graphs,
 * the layers of sampling are put together of other rows, a few numbers a token need no speed, and
 * 8-bit products are a GPU's (has_fp8). */
static void install_reference(struct kernel_ops *ops)
{
#define INSTALL(name) ops->name = ref_##name
	INSTALL(alloc);
	INSTALL(release);
	INSTALL(upload);
	INSTALL(download);
	INSTALL(host_alloc);
	INSTALL(host_release);
	INSTALL(fetch_begin);
	INSTALL(fetch_end);
	INSTALL(copy);
	INSTALL(zero);
	INSTALL(sync);
	INSTALL(graph_begin);
	INSTALL(graph_end);
	INSTALL(graph_run);
	INSTALL(graph_release);
	INSTALL(cached_layers);
	INSTALL(matmul_add);
	INSTALL(matmul_swiglu);
	INSTALL(quantise);
	INSTALL(matmul_scaled);
	INSTALL(draw_tokens);
	INSTALL(advance_tokens);
	INSTALL(next_row);
#undef INSTALL
}

/* Rows of matmul.c and conv.c. */
static void install_dnnl(struct kernel_ops *ops)
{
#define INSTALL(name) ops->name = cpu_##name
	INSTALL(matmul);
	INSTALL(conv2d);
	INSTALL(conv2d_backward_data);
	INSTALL(conv2d_backward_weight);
	INSTALL(group_norm);
	INSTALL(group_norm_backward);
	INSTALL(upsample2);
	INSTALL(upsample2_backward);
	INSTALL(leaky_relu);
	INSTALL(leaky_relu_backward);
	INSTALL(posterior);
	INSTALL(posterior_backward);
	INSTALL(l1_images);
	INSTALL(hinge_images);
#undef INSTALL
}

enum cpu_level cpu_level(void)
{
#ifdef HAVE_X86_LEVELS
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
		return CPU_V4;
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return CPU_V3;
#endif
	return CPU_BASE;
}

static void install_loops(struct kernel_ops *ops)
{
	switch (cpu_level()) {
#ifdef HAVE_X86_LEVELS
	case CPU_V4: loop_install_v4(ops); break;
	case CPU_V3: loop_install_v3(ops); break;
#endif
	default: loop_install_base(ops);
	}
}

/* CPUs this process may run on. */
static int cpus_allowed(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static const char *isa_words(void)
{
	switch (onednn.dnnl_get_effective_cpu_isa()) {
	case dnnl_cpu_isa_avx512_core_amx: return "AVX-512 and AMX";
	case dnnl_cpu_isa_avx512_core_bf16: return "AVX-512 with bf16";
	case dnnl_cpu_isa_avx512_core_vnni:
	case dnnl_cpu_isa_avx512_core: return "AVX-512";
	case dnnl_cpu_isa_avx2_vnni:
	case dnnl_cpu_isa_avx2: return "AVX2";
	default: return "the basic instruction set";
	}
}

/* Each instruction set's number has the bits of those that it includes. */
static bool multiplies_bf16(void)
{
	return (onednn.dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) ==
	       dnnl_cpu_isa_avx512_core_bf16;
}

/* Intel's cores multiply bf16 in AVX-512 no faster than f32, and converting comes on top: a step
 * of the tiny preset takes 1.4 times as long there, and 0.55 times on AMD's (doc/speed.md). A rule,
 * not a measurement, so that a resumed run computes what it would have. */
static bool bf16_pays(void)
{
#if defined __x86_64__
	return !__builtin_cpu_is("intel");
#else
	return true;
#endif
}

void *cpu_scratch(struct cpu_scratch *s, size_t bytes)
{
	if (s->bytes >= bytes)
		return s->data;
	cpu_scratch_release(s);
	if (posix_memalign(&s->data, 64, (bytes + 63) / 64 * 64) != 0)
		die(EXIT_MEMORY, "no memory for an operation: %zu bytes wanted", bytes);
	s->bytes = bytes;
	return s->data;
}

void cpu_scratch_release(struct cpu_scratch *s)
{
	free(s->data);
	*s = (struct cpu_scratch){ NULL };
}

struct onednn onednn;

static int open_onednn(struct err *e)
{
	static const char *const names[] = { ONEDNN_FUNCTIONS(LIBRARY_NAME) };

	static_assert(sizeof onednn == sizeof names, "a name a pointer");
	if (onednn.dnnl_version) /* the last one: all were found */
		return 0;
	return library_open(LIBRARY_FILE("libdnnl", DNNL_VERSION_MAJOR), names, ARRAY_LEN(names),
			    (void **)&onednn, e);
}

int cpu_open(int threads, struct kernels **out, struct err *e)
{
	const dnnl_version_t *version;
	struct cpu_state *state;
	struct kernels *k;

	TRY(open_onednn(e));
	version = onednn.dnnl_version();
	install_reference(&cpu_ops);
	install_loops(&cpu_ops);
	install_dnnl(&cpu_ops);
	TRY(kernels_check_table("cpu", &cpu_ops, e));
	k = xcalloc(1, sizeof *k);
	state = k->state = xcalloc(1, sizeof *state);
	k->ops = &cpu_ops;
	k->backend = "cpu";
	k->threads = threads ? threads : cpus_allowed();
	k->has_bf16 = multiplies_bf16();
	k->prefers_bf16 = k->has_bf16 && bf16_pays();
	omp_set_num_threads(k->threads);
	omp_set_dynamic(0);
	CPU_DNNL(dnnl_engine_create(&state->engine, dnnl_cpu, 0));
	CPU_DNNL(dnnl_stream_create(&state->stream, state->engine, dnnl_stream_default_flags));
	snprintf(state->words, sizeof state->words, "oneDNN %d.%d.%d, %s, %d thread%s",
		 version->major, version->minor, version->patch, isa_words(), k->threads,
		 k->threads == 1 ? "" : "s");
	*out = k;
	return 0;
}

void cpu_close(struct kernels *k)
{
	struct cpu_state *state = k->state;

	for (int i = 0; i < state->products; i++)
		cpu_product_release(&state->product[i]);
	cpu_conv_close(k);
	for (int i = 0; i < OPERANDS; i++)
		cpu_scratch_release(&state->wide[i]);
	onednn.dnnl_stream_destroy(state->stream);
	onednn.dnnl_engine_destroy(state->engine);
	xfree(state);
	xfree(k);
}

const char *cpu_describe(const struct kernels *k)
{
	return ((const struct cpu_state *)k->state)->words;
}
