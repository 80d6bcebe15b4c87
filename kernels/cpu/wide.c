/* SPDX-License-Identifier: Apache-2.0
 * bf16 where the processor multiplies none (has_bf16): oneDNN has no such products below AVX-512,
 * and emulates them above at less than half of f32's speed (doc/speed.md). Operands are copied as
 * f32, the operation is that of f32, and its result is rounded once, as it would be. */
#include "config.h"
#include "kernels/cpu/cpu.h"

struct tensor cpu_wide_space(struct kernels *k, enum cpu_operand which, struct tensor t)
{
	struct cpu_state *s = k->state;

	if (t.type != DT_BF16 || k->has_bf16)
		return t;
	t.type = DT_F32;
	t.data = cpu_scratch(&s->wide[which], (size_t)tensor_count(&t) * sizeof(float));
	return t;
}

struct tensor cpu_wide(struct kernels *k, enum cpu_operand which, struct tensor t)
{
	struct tensor wide = cpu_wide_space(k, which, t);

	if (wide.type != t.type)
		k->ops->convert(k, wide, t);
	return wide;
}

void cpu_narrow(struct kernels *k, struct tensor to, struct tensor wide)
{
	if (wide.type != to.type)
		k->ops->convert(k, to, wide);
}
