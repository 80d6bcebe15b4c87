/* SPDX-License-Identifier: Apache-2.0
 * What the files of the reference backend share: its prototypes and typed access to elements. */
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H

#include "kernels/kernels.h"

#define K(ret, name, args) ret ref_##name args;
#include "kernels/kernels.def"
#undef K

extern const struct kernel_ops ref_ops;

static inline float ref_get(const struct tensor *t, int64_t i)
{
	return t->type == DT_BF16 ? bf16_to_float(((const uint16_t *)t->data)[i])
				  : ((const float *)t->data)[i];
}

static inline void ref_put(const struct tensor *t, int64_t i, double value)
{
	if (t->type == DT_BF16)
		((uint16_t *)t->data)[i] = bf16_from_float((float)value);
	else
		((float *)t->data)[i] = (float)value;
}

static inline bool ref_is_act(const struct tensor *t)
{
	return t->type == DT_F32 || t->type == DT_BF16;
}

static inline void ref_also(struct kernels *k, struct scaled also, struct tensor rows)
{
	if (also.q.data)
		ref_quantise(k, also.q, also.scale, rows, false);
}

static inline int32_t ref_index(const struct tensor *t, int64_t i)
{
	return ((const int32_t *)t->data)[i];
}

#endif
