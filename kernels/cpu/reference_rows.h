/* SPDX-License-Identifier: Apache-2.0
 * Rows of the CPU backend that the reference serves as they are. */
#ifndef KERNELS_CPU_REFERENCE_ROWS_H
#define KERNELS_CPU_REFERENCE_ROWS_H

#define cpu_convert ref_convert
#define cpu_fill ref_fill
#define cpu_add ref_add
#define cpu_scale ref_scale
#define cpu_lerp ref_lerp
#define cpu_silu ref_silu
#define cpu_silu_backward ref_silu_backward
#define cpu_sum ref_sum
#define cpu_sum_squares ref_sum_squares
#define cpu_bias_backward ref_bias_backward
#define cpu_embed ref_embed
#define cpu_embed_backward ref_embed_backward
#define cpu_gather_rows ref_gather_rows
#define cpu_scatter_rows ref_scatter_rows
#define cpu_scatter_add_rows ref_scatter_add_rows
#define cpu_add_per_image ref_add_per_image
#define cpu_add_per_image_backward ref_add_per_image_backward
#define cpu_rmsnorm ref_rmsnorm
#define cpu_add_rmsnorm ref_add_rmsnorm
#define cpu_rmsnorm_backward ref_rmsnorm_backward
#define cpu_rope ref_rope
#define cpu_attention ref_attention
#define cpu_attention_backward ref_attention_backward
#define cpu_attention_cached ref_attention_cached
#define cpu_swiglu ref_swiglu
#define cpu_swiglu_backward ref_swiglu_backward
#define cpu_cross_entropy ref_cross_entropy
#define cpu_mse_rows ref_mse_rows
#define cpu_argmax ref_argmax
#define cpu_normals ref_normals
#define cpu_add_noise ref_add_noise
#define cpu_patchify ref_patchify
#define cpu_unpatchify ref_unpatchify
#define cpu_time_embedding ref_time_embedding
#define cpu_denoise ref_denoise
#define cpu_adamw ref_adamw

#endif
