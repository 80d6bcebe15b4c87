/* SPDX-License-Identifier: Apache-2.0
 * Convolutional operations of the CPU backend: what the backend's opening and closing must know,
 * and the loops that are compiled once for each instruction set (conv_loops.c). */
#ifndef KERNELS_CPU_CONV_H
#define KERNELS_CPU_CONV_H

#include "kernels/kernels.h"

/* Frees every primitive and all scratch memory; called when the backend closes. */
void cpu_conv_close(struct kernels *k);

/* A pass over one image x[pixels, channels] of a group norm. Arrays by channel are f32. */
struct norm_image {
	const void *x, *dout;            /* act; dout only backward */
	void *out;                       /* act: out, or dx */
	enum dtype type;
	int64_t pixels;
	int channels, groups;
	const float *weight, *bias;      /* [channels] */
	float *mean, *rstd;              /* [groups]: written forward, read backward */
	float *dweight, *dbias;          /* [channels] of this image alone: written backward */
	float eps;
	bool silu;
	float *scratch;                  /* norm_scratch_floats(channels), 64-byte aligned */
};

#define NORM_BLOCK 512                   /* elements handled at a time, at least */
static inline size_t norm_block_floats(int channels)
{
	int64_t pixels = (NORM_BLOCK + channels - 1) / channels;

	return (size_t)(pixels * channels + 15) / 16 * 16;
}
static inline size_t norm_scratch_floats(int channels) { return 8 * norm_block_floats(channels); }

struct conv_loops {
	void (*norm)(const struct norm_image *g);
	void (*norm_backward)(const struct norm_image *g);
	/* Elements first .. last - 1 of act arrays. */
	void (*leaky_relu)(void *out, const void *x, enum dtype type, float slope, int64_t first,
			   int64_t last);
	void (*leaky_relu_backward)(void *dx, const void *dout, const void *x, enum dtype type,
				    float slope, int64_t first, int64_t last);
	/* One output row of nearest doubling, from one input row of `width` pixels, and the way
	 * back from two rows. */
	void (*upsample_row)(void *out, const void *x, enum dtype type, int64_t width,
			     int64_t channels);
	void (*upsample_row_backward)(void *dx, const void *upper, const void *lower,
				      enum dtype type, int64_t width, int64_t channels);
	/* Sum of |x - target| over n elements; dx = step * sign when dx is given. */
	double (*l1)(void *dx, const void *x, enum dtype type, const float *target, float step,
		     int64_t n);
};

extern const struct conv_loops conv_loops_base;
#ifdef HAVE_X86_LEVELS
extern const struct conv_loops conv_loops_v3, conv_loops_v4;
#endif

#endif
