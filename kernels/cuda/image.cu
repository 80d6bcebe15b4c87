/* SPDX-License-Identifier: Apache-2.0
 * The rest of the convolutional nets, NHWC: group norm with SiLU, doubling of size, and the VAE's
 * posterior. Statistics of a group are summed by one block in a fixed order. */
#include "kernels/cuda/common.cuh"

struct groups {
	int64_t pixels, channels, each;
}; /* each: channels of a group */

/* A block an (image, group): mean, then the deviation's square in a second pass. */
template <typename T>
__global__ void group_statistics(float *mean, float *rstd, const T *x, struct groups g, float eps)
{
	int64_t per_group = g.channels / g.each, image = blockIdx.x / per_group,
		group = blockIdx.x % per_group;
	const T *from = x + image * g.pixels * g.channels + group * g.each;
	int64_t count = g.pixels * g.each;
	float sum = 0.0f, square = 0.0f, m;

	for (int64_t i = threadIdx.x; i < count; i += blockDim.x)
		sum += to_float(from[i / g.each * g.channels + i % g.each]);
	m = block_sum(sum) / (float)count;
	for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
		float v = to_float(from[i / g.each * g.channels + i % g.each]) - m;

		square += v * v;
	}
	square = block_sum(square) / (float)count;
	if (threadIdx.x == 0) {
		mean[blockIdx.x] = m;
		rstd[blockIdx.x] = rsqrtf(square + eps);
	}
}

template <typename T>
__global__ void group_apply(T *out, const T *x, const float *mean, const float *rstd,
			    const float *weight, const float *bias, struct groups g, int64_t count,
			    bool silu)
{
	EACH (i, count) {
		int64_t c = i % g.channels, image = i / (g.pixels * g.channels);
		int64_t at = image * (g.channels / g.each) + c / g.each;
		float y = (to_float(x[i]) - mean[at]) * rstd[at] * weight[c] + bias[c];

		put(out + i, silu ? y / (1.0f + expf(-y)) : y);
	}
}

static struct groups groups_of(const struct tensor *x, int groups)
{
	struct groups g = { x->dim[1] * x->dim[2], x->dim[3], x->dim[3] / groups };

	CHECK(x->rank == 4 && groups > 0 && x->dim[3] % groups == 0);
	return g;
}

void cuda_group_norm(struct kernels *k, struct tensor out, struct tensor mean, struct tensor rstd,
		     struct tensor x, struct tensor weight, struct tensor bias, int groups,
		     float eps, bool silu)
{
	struct cuda_state *s = state_of(k);
	struct groups g = groups_of(&x, groups);
	int64_t count = tensor_count(&x);

	CHECK(out.type == x.type && tensor_count(&mean) == x.dim[0] * groups &&
	      mean.type == DT_F32);
	CHECK(weight.type == DT_F32 && bias.type == DT_F32 && rstd.type == DT_F32);
	if (!count)
		return;
	ACT(x.type, group_statistics<<<(unsigned)(x.dim[0] * groups), 512, 0, s->stream>>>(
			    (float *)mean.data, (float *)rstd.data, (const T *)x.data, g, eps));
	LAUNCHED();
	ACT(x.type, group_apply<<<grid_for(s, count, 256), 256, 0, s->stream>>>(
			    (T *)out.data, (const T *)x.data, (const float *)mean.data,
			    (const float *)rstd.data, (const float *)weight.data,
			    (const float *)bias.data, g, count, silu));
	LAUNCHED();
}

/* The gradient that reaches y = w xhat + b, through SiLU when there is one. */
static __device__ __forceinline__ float through_silu(float dout, float y, bool silu)
{
	float s;

	if (!silu)
		return dout;
	s = 1.0f / (1.0f + expf(-y));
	return dout * s * (1.0f + y * (1.0f - s));
}

/* part[image, 0/1, c] = sums over the image's pixels of dy xhat and of dy: what the weight's and
 * the bias's gradients and, weighted, a group's two means are made of. 32 channels x 8 rows of
 * threads. */
template <typename T>
__global__ void group_sums(float *part, const T *dout, const T *x, const float *mean,
			   const float *rstd, const float *weight, const float *bias,
			   struct groups g, bool silu)
{
	__shared__ float sums[2][8][33];
	int64_t image = blockIdx.y, c = (int64_t)blockIdx.x * 32 + threadIdx.x;
	float scaled = 0.0f, plain = 0.0f;

	if (c < g.channels) {
		int64_t at = image * (g.channels / g.each) + c / g.each,
			base = image * g.pixels * g.channels + c;
		float m = mean[at], r = rstd[at], w = weight[c], b = bias[c];

		for (int64_t p = threadIdx.y; p < g.pixels; p += 8) {
			float xhat = (to_float(x[base + p * g.channels]) - m) * r;
			float dy = through_silu(to_float(dout[base + p * g.channels]), w * xhat + b,
						silu);

			scaled += dy * xhat;
			plain += dy;
		}
	}
	sums[0][threadIdx.y][threadIdx.x] = scaled;
	sums[1][threadIdx.y][threadIdx.x] = plain;
	__syncthreads();
	if (threadIdx.y >= 2 || c >= g.channels)
		return;
	scaled = 0.0f;
	for (int i = 0; i < 8; i++)
		scaled += sums[threadIdx.y][i][threadIdx.x];
	part[(image * 2 + threadIdx.y) * g.channels + c] = scaled;
}

__global__ void group_parameters(float *dweight, float *dbias, const float *part, int64_t images,
				 int64_t channels)
{
	EACH (c, channels) {
		float scaled = 0.0f, plain = 0.0f;

		for (int64_t i = 0; i < images; i++) {
			scaled += part[2 * i * channels + c];
			plain += part[(2 * i + 1) * channels + c];
		}
		dweight[c] += scaled;
		dbias[c] += plain;
	}
}

/* both[image, group] = means over the group of w dy xhat and of w dy. */
__global__ void group_means(float2 *both, const float *part, const float *weight, struct groups g,
			    int64_t count)
{
	EACH (i, count) {
		int64_t per_group = g.channels / g.each, image = i / per_group,
			first = i % per_group * g.each;
		float scaled = 0.0f, plain = 0.0f, size = (float)(g.pixels * g.each);

		for (int64_t c = first; c < first + g.each; c++) {
			scaled += weight[c] * part[2 * image * g.channels + c];
			plain += weight[c] * part[(2 * image + 1) * g.channels + c];
		}
		both[i] = make_float2(scaled / size, plain / size);
	}
}

template <typename T>
__global__ void group_gradient(T *dx, const T *dout, const T *x, const float *mean,
			       const float *rstd, const float *weight, const float *bias,
			       const float2 *both, struct groups g, int64_t count, bool silu)
{
	EACH (i, count) {
		int64_t c = i % g.channels, image = i / (g.pixels * g.channels);
		int64_t at = image * (g.channels / g.each) + c / g.each;
		float xhat = (to_float(x[i]) - mean[at]) * rstd[at];
		float dy = through_silu(to_float(dout[i]), weight[c] * xhat + bias[c], silu);

		put(dx + i, rstd[at] * (weight[c] * dy - both[at].y - xhat * both[at].x));
	}
}

void cuda_group_norm_backward(struct kernels *k, struct tensor dx, struct tensor dweight,
			      struct tensor dbias, struct tensor dout, struct tensor x,
			      struct tensor weight, struct tensor bias, struct tensor mean,
			      struct tensor rstd, int groups, bool silu)
{
	struct cuda_state *s = state_of(k);
	struct groups g = groups_of(&x, groups);
	int64_t images = x.dim[0], count = tensor_count(&x), means = images * groups;
	float *part = (float *)cuda_scratch(s, (size_t)(2 * images * g.channels + 2 * means) *
						       sizeof *part);
	float2 *both = (float2 *)(part + 2 * images * g.channels);
	const float *m = (const float *)mean.data, *r = (const float *)rstd.data;
	const float *w = (const float *)weight.data, *b = (const float *)bias.data;
	dim3 grid((unsigned)div_up(g.channels, 32), (unsigned)images), block(32, 8);

	CHECK(dx.type == x.type && dout.type == x.type && dweight.type == DT_F32 && images < 65536);
	if (!count)
		return;
	ACT(x.type, group_sums<<<grid, block, 0, s->stream>>>(
			    part, (const T *)dout.data, (const T *)x.data, m, r, w, b, g, silu));
	LAUNCHED();
	group_parameters<<<grid_for(s, g.channels, 64), 64, 0, s->stream>>>(
		(float *)dweight.data, (float *)dbias.data, part, images, g.channels);
	group_means<<<grid_for(s, means, 64), 64, 0, s->stream>>>(both, part, w, g, means);
	LAUNCHED();
	ACT(x.type, group_gradient<<<grid_for(s, count, 256), 256, 0, s->stream>>>(
			    (T *)dx.data, (const T *)dout.data, (const T *)x.data, m, r, w, b, both,
			    g, count, silu));
	LAUNCHED();
}

/* Index into [n,h,w,c] of the pixel that [n,2h,2w,c] element i repeats. */
static __device__ __forceinline__ int64_t half_index(int64_t i, int64_t h, int64_t w, int64_t c)
{
	int64_t x = i / c % (2 * w), y = i / (c * 2 * w) % (2 * h), n = i / (c * 4 * w * h);

	return ((n * h + y / 2) * w + x / 2) * c + i % c;
}

template <typename T>
__global__ void double_size(T *out, const T *x, int64_t count, int64_t h, int64_t w, int64_t c)
{
	EACH (i, count)
		out[i] = x[half_index(i, h, w, c)];
}

template <typename T>
__global__ void half_size_sums(T *dx, const T *dout, int64_t count, int64_t w, int64_t c)
{
	EACH (i, count) {
		int64_t channel = i % c, x = i / c % w, row = i / (c * w);
		const T *at = dout + (row * 2 * 2 * w + 2 * x) * c + channel;

		put(dx + i, to_float(at[0]) + to_float(at[c]) +
				    (to_float(at[2 * w * c]) + to_float(at[(2 * w + 1) * c])));
	}
}

void cuda_upsample2(struct kernels *k, struct tensor out, struct tensor x)
{
	struct cuda_state *s = state_of(k);
	int64_t count = tensor_count(&out);

	CHECK(out.type == x.type && x.rank == 4 && count == 4 * tensor_count(&x) &&
	      out.dim[3] == x.dim[3]);
	if (!count)
		return;
	ACT(x.type, double_size<<<grid_for(s, count, 256), 256, 0, s->stream>>>(
			    (T *)out.data, (const T *)x.data, count, x.dim[1], x.dim[2], x.dim[3]));
	LAUNCHED();
}

void cuda_upsample2_backward(struct kernels *k, struct tensor dx, struct tensor dout)
{
	struct cuda_state *s = state_of(k);
	int64_t count = tensor_count(&dx);

	CHECK(dx.type == dout.type && dx.rank == 4 && tensor_count(&dout) == 4 * count);
	if (!count)
		return;
	ACT(dx.type, half_size_sums<<<grid_for(s, count, 256), 256, 0, s->stream>>>(
			     (T *)dx.data, (const T *)dout.data, count, dx.dim[2], dx.dim[3]));
	LAUNCHED();
}

#define LOG_VARIANCE_LEAST (-20.0f)
#define LOG_VARIANCE_MOST 5.0f

static __device__ __forceinline__ float clamped(float lv)
{
	return fminf(fmaxf(lv, LOG_VARIANCE_LEAST), LOG_VARIANCE_MOST);
}

/* A block an image: z and the mean of (mean^2 + exp(lv) - 1 - lv) / 2. */
__global__ void posterior_images(float *z, float *kl, const float *moments, const float *noise,
				 int64_t elements, int64_t c)
{
	int64_t at = (int64_t)blockIdx.x * elements;
	float sum = 0.0f;

	for (int64_t i = threadIdx.x; i < elements; i += blockDim.x) {
		const float *pixel = moments + 2 * at + i / c * 2 * c + i % c;
		float mean = pixel[0], lv = clamped(pixel[c]);

		z[at + i] = noise ? mean + expf(0.5f * lv) * noise[at + i] : mean;
		sum += 0.5f * (mean * mean + expf(lv) - 1.0f - lv);
	}
	sum = block_sum(sum);
	if (threadIdx.x == 0)
		kl[blockIdx.x] = sum / (float)elements;
}

void cuda_posterior(struct kernels *k, struct tensor z, struct tensor kl, struct tensor moments,
		    struct tensor noise)
{
	struct cuda_state *s = state_of(k);
	int64_t n = z.dim[0], elements = n ? tensor_count(&z) / n : 0;

	CHECK(z.rank == 4 && z.type == DT_F32 && moments.type == DT_F32 && kl.type == DT_F32);
	CHECK(tensor_count(&moments) == 2 * n * elements && tensor_count(&kl) == n);
	if (!n)
		return;
	posterior_images<<<(unsigned)n, 512, 0, s->stream>>>(
		(float *)z.data, (float *)kl.data, (const float *)moments.data,
		(const float *)noise.data, elements, z.dim[3]);
	LAUNCHED();
}

__global__ void posterior_gradient(float *dmoments, const float *dz, const float *kl_weight,
				   const float *moments, const float *noise, int64_t count,
				   int64_t elements, int64_t c)
{
	EACH (i, count) {
		int64_t at = i / c * 2 * c + i % c;
		float mean = moments[at], raw = moments[at + c], lv = clamped(raw);
		float w = kl_weight[i / elements] / (float)elements,
		      d = 0.5f * w * (expf(lv) - 1.0f);

		if (noise)
			d += dz[i] * noise[i] * 0.5f * expf(0.5f * lv);
		dmoments[at] = dz[i] + w * mean;
		dmoments[at + c] = raw < LOG_VARIANCE_LEAST || raw > LOG_VARIANCE_MOST ? 0.0f : d;
	}
}

void cuda_posterior_backward(struct kernels *k, struct tensor dmoments, struct tensor dz,
			     struct tensor kl_weight, struct tensor moments, struct tensor noise)
{
	struct cuda_state *s = state_of(k);
	int64_t count = tensor_count(&dz), n = dz.dim[0];

	CHECK(dz.rank == 4 && tensor_count(&dmoments) == 2 * count &&
	      tensor_count(&moments) == 2 * count);
	CHECK(dz.type == DT_F32 && dmoments.type == DT_F32 && tensor_count(&kl_weight) == n);
	if (!count)
		return;
	posterior_gradient<<<grid_for(s, count, 256), 256, 0, s->stream>>>(
		(float *)dmoments.data, (const float *)dz.data, (const float *)kl_weight.data,
		(const float *)moments.data, (const float *)noise.data, count, count / n,
		dz.dim[3]);
	LAUNCHED();
}
