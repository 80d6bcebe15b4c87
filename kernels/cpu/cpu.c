/* SPDX-License-Identifier: Apache-2.0
 * The CPU backend: its table, oneDNN's engine and the number of threads, which is the process's. */
#include "config.h"
#include "kernels/backends.h"
#include "kernels/cpu/conv.h"
#include "kernels/cpu/cpu.h"
#include "lib/mem.h"

#include <omp.h>
#include <sched.h>

static const struct kernel_ops cpu_ops = {
#define K(ret, name, args) .name = cpu_##name,
#include "kernels/kernels.def"
#undef K
};

/* CPUs this process may run on. */
static int cpus_allowed(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

static const char *isa_words(void)
{
	switch (dnnl_get_effective_cpu_isa()) {
	case dnnl_cpu_isa_avx512_core_bf16: return "AVX-512 with bf16";
	case dnnl_cpu_isa_avx512_core_vnni:
	case dnnl_cpu_isa_avx512_core: return "AVX-512";
	case dnnl_cpu_isa_avx2_vnni:
	case dnnl_cpu_isa_avx2: return "AVX2";
	default: return "the basic instruction set";
	}
}

int cpu_open(int threads, struct kernels **out, struct err *e)
{
	const dnnl_version_t *version = dnnl_version();
	struct cpu_state *state;
	struct kernels *k;

	TRY(kernels_check_table("cpu", &cpu_ops, e));
	k = xcalloc(1, sizeof *k);
	state = k->state = xcalloc(1, sizeof *state);
	k->ops = &cpu_ops;
	k->backend = "cpu";
	k->threads = threads ? threads : cpus_allowed();
	k->has_bf16 = dnnl_get_effective_cpu_isa() == dnnl_cpu_isa_avx512_core_bf16;
	omp_set_num_threads(k->threads);
	omp_set_dynamic(0);
	CPU_DNNL(dnnl_engine_create(&state->engine, dnnl_cpu, 0));
	CPU_DNNL(dnnl_stream_create(&state->stream, state->engine, dnnl_stream_default_flags));
	snprintf(state->words, sizeof state->words, "oneDNN %d.%d.%d, %s, %d thread%s", version->major,
		 version->minor, version->patch, isa_words(), k->threads, k->threads == 1 ? "" : "s");
	*out = k;
	return 0;
}

static void product_release(struct cpu_product *p)
{
	dnnl_primitive_destroy(p->primitive);
	dnnl_memory_destroy(p->a);
	dnnl_memory_destroy(p->b);
	dnnl_memory_destroy(p->c);
	if (p->bias)
		dnnl_memory_destroy(p->bias_memory);
}

void cpu_close(struct kernels *k)
{
	struct cpu_state *state = k->state;

	for (int i = 0; i < state->products; i++)
		product_release(&state->product[i]);
	cpu_conv_close(k);
	dnnl_stream_destroy(state->stream);
	dnnl_engine_destroy(state->engine);
	xfree(state);
	xfree(k);
}

const char *cpu_describe(const struct kernels *k)
{
	return ((const struct cpu_state *)k->state)->words;
}
