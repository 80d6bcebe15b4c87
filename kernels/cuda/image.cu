/* SPDX-License-Identifier: Apache-2.0
 * The rest of the convolutional nets, NHWC: doubling of size, and the VAE's posterior. */
#include "kernels/cuda/common.cuh"

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
