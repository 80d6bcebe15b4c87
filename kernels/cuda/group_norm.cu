/* SPDX-License-Identifier: Apache-2.0
 * Group norm with SiLU over NHWC. A block takes a slice of an image's pixels; each of its threads
 * has eight channels, whose numbers it keeps in registers, and walks down the pixels, so that rows
 * are read whole. Sums over a slice are written down and added in order. */
#include "kernels/cuda/common.cuh"

#define THREADS 256
#define SLICES_MOST 128
#define BLOCKS_WANTED 8 /* on a multiprocessor */

struct groups {
	int64_t pixels, channels, each; /* each: channels of a group */
	int slices;			/* of an image's pixels */
};

/* What a thread has: channels c to c + 7 of every `step`th pixel. */
struct slab {
	int64_t image, c, pixel, end;
	int octets, rows; /* eights of channels and rows of pixels of the block */
	bool there;
};

static __device__ __forceinline__ struct slab slab_of(const struct groups &g)
{
	struct slab t;
	int64_t left = (g.channels + 7) / 8 - (int64_t)blockIdx.z * THREADS;
	int row;

	t.octets = (int)(left < THREADS ? left : THREADS);
	t.rows = THREADS / t.octets;
	row = (int)threadIdx.x / t.octets;
	t.there = row < t.rows;
	t.image = blockIdx.y;
	t.c = ((int64_t)blockIdx.z * THREADS + threadIdx.x % t.octets) * 8;
	t.pixel = g.pixels * blockIdx.x / g.slices + row;
	t.end = t.there ? g.pixels * (blockIdx.x + 1) / g.slices : 0;
	return t;
}

/* Where the thread's eight of a pixel lie. */
static __device__ __forceinline__ int64_t place(const struct groups &g, const struct slab &t,
						int64_t pixel)
{
	return (t.image * g.pixels + pixel) * g.channels + t.c;
}

static __device__ __forceinline__ float of_channel(const float *x, int64_t c,
						   const struct groups &g)
{
	return c < g.channels ? x[c] : 0.0f;
}

static __device__ __forceinline__ float of_group(const float *x, int64_t image, int64_t c,
						 const struct groups &g)
{
	return c < g.channels ? x[image * (g.channels / g.each) + c / g.each] : 0.0f;
}

/* part[image, slice, 0/1, c] = the block's sums of a and of b. */
static __device__ void put_sums(float *part, const float (&a)[8], const float (&b)[8],
				const struct groups &g, const struct slab &t)
{
	__shared__ float sums[2][8][THREADS];
	int64_t to = (t.image * g.slices + blockIdx.x) * 2,
		first = (int64_t)blockIdx.z * THREADS * 8;

#pragma unroll
	for (int i = 0; i < 8; i++) {
		sums[0][i][threadIdx.x] = a[i];
		sums[1][i][threadIdx.x] = b[i];
	}
	__syncthreads();
	for (int j = (int)threadIdx.x; j < 16 * t.octets; j += THREADS) {
		int which = j / (8 * t.octets), c = j % (8 * t.octets);
		float sum = 0.0f;

		for (int row = 0; row < t.rows; row++)
			sum += sums[which][c % 8][row * t.octets + c / 8];
		if (first + c < g.channels)
			part[(to + which) * g.channels + first + c] = sum;
	}
}

/* Sums of x - k and (x - k)^2 of each channel, k being its value at the image's first pixel. */
template <bool WIDE, typename T>
__global__ void __launch_bounds__(THREADS) statistics(float *part, const T *x, struct groups g)
{
	struct slab t = slab_of(g);
	float k[8], v[8], sum[8] = {}, square[8] = {};

	get_eight<WIDE>(x + place(g, t, 0), g.channels - t.c, k);
#pragma unroll 4
	for (int64_t p = t.pixel; p < t.end; p += t.rows) {
		get_eight<WIDE>(x + place(g, t, p), g.channels - t.c, v);
#pragma unroll
		for (int i = 0; i < 8; i++) {
			v[i] -= k[i];
			sum[i] += v[i];
			square[i] += v[i] * v[i];
		}
	}
	put_sums(part, sum, square, g, t);
}

/* A warp an (image, group): its channels are joined one after the other (Chan et al. 1983). */
template <typename T>
__global__ void join_statistics(float *mean, float *rstd, const float *part, const T *x,
				struct groups g, int64_t count, float eps)
{
	int64_t i = thread_index() / 32, per_group = g.channels / g.each, image = i / per_group;
	int64_t first = i % per_group * g.each;
	float m = 0.0f, square = 0.0f, size = (float)g.pixels;

	if (i >= count)
		return;
	for (int64_t c = first; c < first + g.each; c++) {
		float a = 0.0f, b = 0.0f, before = (float)(c - first), apart;

		for (int j = (int)threadIdx.x % 32; j < g.slices; j += 32) {
			int64_t at = (image * g.slices + j) * 2 * g.channels + c;

			a += part[at];
			b += part[at + g.channels];
		}
		a = warp_sum(a);
		b = warp_sum(b);
		apart = to_float(x[image * g.pixels * g.channels + c]) + a / size - m;
		m += apart / (before + 1.0f);
		square += b - a * a / size + size * apart * apart * before / (before + 1.0f);
	}
	if (threadIdx.x % 32)
		return;
	mean[i] = m;
	rstd[i] = rsqrtf(fmaxf(square, 0.0f) / (size * (float)g.each) + eps);
}

template <bool WIDE, typename T>
__global__ void __launch_bounds__(THREADS)
	apply(T *out, const T *x, const float *mean, const float *rstd, const float *weight,
	      const float *bias, struct groups g, bool silu)
{
	struct slab t = slab_of(g);
	float m[8], by[8], b[8], v[8];

#pragma unroll
	for (int i = 0; i < 8; i++) {
		m[i] = of_group(mean, t.image, t.c + i, g);
		by[i] = of_group(rstd, t.image, t.c + i, g) * of_channel(weight, t.c + i, g);
		b[i] = of_channel(bias, t.c + i, g);
	}
#pragma unroll 2
	for (int64_t p = t.pixel; p < t.end; p += t.rows) {
		get_eight<WIDE>(x + place(g, t, p), g.channels - t.c, v);
#pragma unroll
		for (int i = 0; i < 8; i++) {
			v[i] = (v[i] - m[i]) * by[i] + b[i];
			if (silu)
				v[i] /= 1.0f + __expf(-v[i]);
		}
		put_eight<WIDE>(out + place(g, t, p), g.channels - t.c, v);
	}
}

static struct groups groups_of(const struct cuda_state *s, const struct tensor *x, int groups)
{
	struct groups g = { x->dim[1] * x->dim[2], x->dim[3], x->dim[3] / groups, 1 };
	int64_t wanted = x->dim[0] ? div_up((int64_t)s->processors * BLOCKS_WANTED, x->dim[0]) : 1,
		most = div_up(g.pixels, 16);

	CHECK(x->rank == 4 && groups > 0 && x->dim[3] % groups == 0 && x->dim[0] < 65536);
	wanted = wanted < most ? wanted : most;
	g.slices = (int)(wanted < 1 ? 1 : wanted > SLICES_MOST ? SLICES_MOST : wanted);
	return g;
}

static dim3 grid_of(const struct groups *g, int64_t images)
{
	return dim3((unsigned)g->slices, (unsigned)images,
		    (unsigned)div_up(div_up(g->channels, 8), THREADS));
}

#define WIDTH(wide, ...)                     \
	do {                                 \
		if (wide) {                  \
			constexpr bool W = true;  \
			__VA_ARGS__;         \
		} else {                     \
			constexpr bool W = false; \
			__VA_ARGS__;         \
		}                            \
	} while (0)

void cuda_group_norm(struct kernels *k, struct tensor out, struct tensor mean, struct tensor rstd,
		     struct tensor x, struct tensor weight, struct tensor bias, int groups,
		     float eps, bool silu)
{
	struct cuda_state *s = state_of(k);
	struct groups g = groups_of(s, &x, groups);
	int64_t images = x.dim[0], count = images * groups;
	dim3 grid = grid_of(&g, images);
	bool wide = g.channels % 8 == 0 && aligned16(x.data) && aligned16(out.data);
	float *part;

	CHECK(out.type == x.type && tensor_count(&mean) == count && mean.type == DT_F32);
	CHECK(weight.type == DT_F32 && bias.type == DT_F32 && rstd.type == DT_F32);
	if (!tensor_count(&x))
		return;
	part = (float *)cuda_scratch(s, (size_t)(images * g.slices * 2 * g.channels) * 4);
	WIDTH(wide, ACT(x.type, statistics<W><<<grid, THREADS, 0, s->stream>>>(
					part, (const T *)x.data, g)));
	LAUNCHED();
	ACT(x.type, join_statistics<<<(unsigned)div_up(count, 4), 128, 0, s->stream>>>(
			    (float *)mean.data, (float *)rstd.data, part, (const T *)x.data, g,
			    count, eps));
	LAUNCHED();
	WIDTH(wide, ACT(x.type, apply<W><<<grid, THREADS, 0, s->stream>>>(
					(T *)out.data, (const T *)x.data, (const float *)mean.data,
					(const float *)rstd.data, (const float *)weight.data,
					(const float *)bias.data, g, silu)));
	LAUNCHED();
}

/* The gradient that reaches y = w xhat + b, through SiLU when there is one. */
static __device__ __forceinline__ float through_silu(float dout, float y, bool silu)
{
	float s;

	if (!silu)
		return dout;
	s = 1.0f / (1.0f + __expf(-y));
	return dout * s * (1.0f + y * (1.0f - s));
}

/* What both passes of the gradient know of a thread's channels. */
struct channels {
	float mean[8], rstd[8], weight[8], bias[8];
};

struct group_inputs {
	const float *mean, *rstd, *weight, *bias;
	bool silu;
};

static __device__ __forceinline__ void get_channels(struct channels &to,
						    const struct group_inputs &in,
						    const struct groups &g, const struct slab &t)
{
#pragma unroll
	for (int i = 0; i < 8; i++) {
		to.mean[i] = of_group(in.mean, t.image, t.c + i, g);
		to.rstd[i] = of_group(in.rstd, t.image, t.c + i, g);
		to.weight[i] = of_channel(in.weight, t.c + i, g);
		to.bias[i] = of_channel(in.bias, t.c + i, g);
	}
}

/* x becomes xhat, dout becomes dy. */
static __device__ __forceinline__ void to_gradients(float (&x)[8], float (&dout)[8],
						    const struct channels &c, bool silu)
{
#pragma unroll
	for (int i = 0; i < 8; i++) {
		x[i] = (x[i] - c.mean[i]) * c.rstd[i];
		dout[i] = through_silu(dout[i], c.weight[i] * x[i] + c.bias[i], silu);
	}
}

/* Sums of dy xhat and of dy: what the weight's and the bias's gradients and, weighted, a group's
 * two means are made of. */
template <bool WIDE, typename T>
__global__ void __launch_bounds__(THREADS)
	gradient_sums(float *part, const T *dout, const T *x, struct group_inputs in,
		      struct groups g)
{
	struct slab t = slab_of(g);
	struct channels c;
	float v[8], dy[8], scaled[8] = {}, plain[8] = {};

	get_channels(c, in, g, t);
#pragma unroll 2
	for (int64_t p = t.pixel; p < t.end; p += t.rows) {
		get_eight<WIDE>(x + place(g, t, p), g.channels - t.c, v);
		get_eight<WIDE>(dout + place(g, t, p), g.channels - t.c, dy);
		to_gradients(v, dy, c, in.silu);
#pragma unroll
		for (int i = 0; i < 8; i++) {
			scaled[i] += dy[i] * v[i];
			plain[i] += dy[i];
		}
	}
	put_sums(part, scaled, plain, g, t);
}

/* sums[image, 0/1, c] over the slices. */
__global__ void add_slices(float *sums, const float *part, struct groups g, int64_t count)
{
	EACH (i, count) {
		int64_t image = i / (2 * g.channels), rest = i % (2 * g.channels);
		float sum = 0.0f;

		for (int j = 0; j < g.slices; j++)
			sum += part[(image * g.slices + j) * 2 * g.channels + rest];
		sums[i] = sum;
	}
}

__global__ void group_parameters(float *dweight, float *dbias, const float *sums, int64_t images,
				 int64_t channels)
{
	EACH (c, channels) {
		float scaled = 0.0f, plain = 0.0f;

		for (int64_t i = 0; i < images; i++) {
			scaled += sums[2 * i * channels + c];
			plain += sums[(2 * i + 1) * channels + c];
		}
		dweight[c] += scaled;
		dbias[c] += plain;
	}
}

/* scaled and plain [image, group]: means over the group of w dy xhat and of w dy. */
__global__ void group_means(float *scaled, float *plain, const float *sums, const float *weight,
			    struct groups g, int64_t count)
{
	EACH (i, count) {
		int64_t per_group = g.channels / g.each, image = i / per_group,
			first = i % per_group * g.each;
		float a = 0.0f, b = 0.0f, size = (float)(g.pixels * g.each);

		for (int64_t c = first; c < first + g.each; c++) {
			a += weight[c] * sums[2 * image * g.channels + c];
			b += weight[c] * sums[(2 * image + 1) * g.channels + c];
		}
		scaled[i] = a / size;
		plain[i] = b / size;
	}
}

template <bool WIDE, typename T>
__global__ void __launch_bounds__(THREADS)
	gradient(T *dx, const T *dout, const T *x, struct group_inputs in, const float *scaled,
		 const float *plain, struct groups g)
{
	struct slab t = slab_of(g);
	struct channels c;
	float v[8], dy[8], s[8], d[8];

	get_channels(c, in, g, t);
#pragma unroll
	for (int i = 0; i < 8; i++) {
		s[i] = of_group(scaled, t.image, t.c + i, g);
		d[i] = of_group(plain, t.image, t.c + i, g);
	}
	for (int64_t p = t.pixel; p < t.end; p += t.rows) {
		get_eight<WIDE>(x + place(g, t, p), g.channels - t.c, v);
		get_eight<WIDE>(dout + place(g, t, p), g.channels - t.c, dy);
		to_gradients(v, dy, c, in.silu);
#pragma unroll
		for (int i = 0; i < 8; i++)
			v[i] = c.rstd[i] * (c.weight[i] * dy[i] - d[i] - v[i] * s[i]);
		put_eight<WIDE>(dx + place(g, t, p), g.channels - t.c, v);
	}
}

void cuda_group_norm_backward(struct kernels *k, struct tensor dx, struct tensor dweight,
			      struct tensor dbias, struct tensor dout, struct tensor x,
			      struct tensor weight, struct tensor bias, struct tensor mean,
			      struct tensor rstd, int groups, bool silu)
{
	struct cuda_state *s = state_of(k);
	struct groups g = groups_of(s, &x, groups);
	int64_t images = x.dim[0], means = images * groups, each = images * 2 * g.channels;
	const struct group_inputs in = { (const float *)mean.data, (const float *)rstd.data,
					 (const float *)weight.data, (const float *)bias.data,
					 silu };
	dim3 grid = grid_of(&g, images);
	bool wide = g.channels % 8 == 0 && aligned16(x.data) && aligned16(dx.data) &&
		    aligned16(dout.data);
	float *part, *sums, *scaled;

	CHECK(dx.type == x.type && dout.type == x.type && dweight.type == DT_F32);
	if (!tensor_count(&x))
		return;
	part = (float *)cuda_scratch(s, (size_t)(each * (g.slices + 1) + 2 * means) * sizeof *part);
	sums = part + each * g.slices;
	scaled = sums + each;
	WIDTH(wide, ACT(x.type, gradient_sums<W><<<grid, THREADS, 0, s->stream>>>(
					part, (const T *)dout.data, (const T *)x.data, in, g)));
	LAUNCHED();
	add_slices<<<grid_for(s, each, 128), 128, 0, s->stream>>>(sums, part, g, each);
	if (dweight.data)
		group_parameters<<<grid_for(s, g.channels, 64), 64, 0, s->stream>>>(
			(float *)dweight.data, (float *)dbias.data, sums, images, g.channels);
	group_means<<<grid_for(s, means, 64), 64, 0, s->stream>>>(
		scaled, scaled + means, sums, in.weight, g, means);
	LAUNCHED();
	WIDTH(wide, ACT(x.type, gradient<W><<<grid, THREADS, 0, s->stream>>>(
					(T *)dx.data, (const T *)dout.data, (const T *)x.data, in,
					scaled, scaled + means, g)));
	LAUNCHED();
}
