/* SPDX-License-Identifier: Apache-2.0
 * Products of few rows (sampling): bound by reading the weights once. few_hopper.cu has those of
 * layers.cu that follow one another, with a norm before or SwiGLU after them, and the large ones of
 * matmul.cu; few.cu any other of bf16 that fits. */
#ifndef KERNELS_CUDA_FEW_CUH
#define KERNELS_CUDA_FEW_CUH

#include "kernels/cuda/early.cuh"

#define FEW_ROWS 16
#define TILE 16 /* rows of the weights a block takes */

/* out[m,n] = x[m,k] w[n,k]^T + bias (NULL: none) + out (where add is set). */
struct few {
	const bf16 *x, *w;
	void *out;
	const float *bias;
	const float *norm;   /* not NULL: x's rows are normalised first, with this weight */
	float eps;
	int m, n, k;
	bool add;
	bool swiglu;         /* w[2n,k], gate first: out = silu(gate) up */
	bool gently;         /* what is read early is read slowly: kernels ahead read, too */
	enum dtype type;     /* of out */
};

bool few_fits(const struct few *f);
/* early: the weights may be read before the kernel ahead has finished (it does not write them). */
void few_run(struct cuda_state *s, const struct few *f, bool early);
/* The same with nothing of Hopper's: what few_run comes to where its own form has no use. */
void few_run_anywhere(struct cuda_state *s, const struct few *f, bool early);

/* Row r of the block's tile in the weights; beyond the last one, the last. */
static __device__ __forceinline__ const bf16 *tile_row(const struct few &f, int r)
{
	int row = f.swiglu ? (int)blockIdx.x * (TILE / 2) + r % (TILE / 2)
			   : (int)blockIdx.x * TILE + r;

	row = min(row, f.n - 1);
	if (f.swiglu && r >= TILE / 2)
		row += f.n;
	return f.w + (int64_t)row * f.k;
}

/* c[16,8] += a[16,16] b[16,8] */
static __device__ __forceinline__ void multiply(float c[4], uint32_t a0, uint32_t a1, uint32_t a2,
						uint32_t a3, uint32_t b0, uint32_t b1)
{
	asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
	    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
	    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	    : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#endif
