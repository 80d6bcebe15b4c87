/* SPDX-License-Identifier: Apache-2.0
 * The rows that the vectorised loops serve; see loops.h. */
#include "config.h"
#include "kernels/cpu/loops/loops.h"

#define INSTALL(name) ops->name = LOOP(name)

void LOOPS_PASTE(loop_install, LOOPS_LEVEL)(struct kernel_ops *ops)
{
	INSTALL(convert);
	INSTALL(fill);
	INSTALL(add);
	INSTALL(scale);
	INSTALL(lerp);
	INSTALL(silu);
	INSTALL(silu_backward);
	INSTALL(sum);
	INSTALL(sum_squares);
	INSTALL(bias_backward);
	INSTALL(embed);
	INSTALL(embed_backward);
	INSTALL(gather_rows);
	INSTALL(scatter_rows);
	INSTALL(scatter_add_rows);
	INSTALL(add_per_image);
	INSTALL(rmsnorm);
	INSTALL(add_rmsnorm);
	INSTALL(rmsnorm_backward);
	INSTALL(rope);
	INSTALL(attention);
	INSTALL(attention_backward);
	INSTALL(attention_cached);
	INSTALL(swiglu);
	INSTALL(swiglu_backward);
	INSTALL(cross_entropy);
	INSTALL(mse_rows);
	INSTALL(argmax);
	INSTALL(add_per_image_backward);
	INSTALL(normals);
	INSTALL(patchify);
	INSTALL(unpatchify);
	INSTALL(time_embedding);
	INSTALL(add_noise);
	INSTALL(denoise);
	INSTALL(adamw);
}
