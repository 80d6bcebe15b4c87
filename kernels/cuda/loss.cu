/* SPDX-License-Identifier: Apache-2.0
 * Losses over rows, a block a row: cross entropy with its gradient written over the logits, mean
 * squared error, and the index of the largest logit. */
#include "kernels/cuda/common.cuh"

#define LOSS_THREADS 512

/* The largest logit of the row and the sum of exp(logit - largest), in every thread. */
template <bool WIDE, typename T>
static __device__ void softmax_terms(const T *row, int64_t vocab, float *largest, float *sum)
{
	float most = -INFINITY, total = 0.0f, all;

	for (int64_t c = (int64_t)threadIdx.x * 8; c < vocab; c += LOSS_THREADS * 8) {
		float x[8], here = most;

		get_eight<WIDE>(row + c, vocab - c, x);
#pragma unroll
		for (int j = 0; j < 8; j++)
			here = c + j < vocab ? fmaxf(here, x[j]) : here;
		total *= __expf(most - here);
		most = here;
#pragma unroll
		for (int j = 0; j < 8; j++)
			total += c + j < vocab ? __expf(x[j] - most) : 0.0f;
	}
	all = block_max(most);
	*sum = block_sum(total > 0.0f ? total * __expf(most - all) : 0.0f);
	*largest = all;
}

/* WIDE: the padded width is a multiple of 8, so that whole eights may be touched beyond vocab. */
template <bool WIDE, typename T>
__global__ void __launch_bounds__(LOSS_THREADS)
	cross_entropy_rows(float *loss, T *logits, const int32_t *target, const float *weight,
			   int64_t width, int64_t vocab, bool backward)
{
	T *row = logits + (int64_t)blockIdx.x * width;
	int32_t t = target[blockIdx.x];
	bool counted = t >= 0;
	float largest = 0.0f, sum = 1.0f, w, from_largest;

	if (counted)
		softmax_terms<WIDE>(row, vocab, &largest, &sum);
	from_largest = counted ? to_float(row[t]) - largest : 0.0f;
	if (threadIdx.x == 0)
		loss[blockIdx.x] = counted ? logf(sum) - from_largest : 0.0f;
	if (!backward)
		return;
	__syncthreads(); /* everyone has read the target's logit */
	w = counted ? weight[blockIdx.x] : 0.0f;
	for (int64_t c = (int64_t)threadIdx.x * 8; c < width; c += LOSS_THREADS * 8) {
		float x[8];

		get_eight<WIDE>(row + c, width - c, x);
#pragma unroll
		for (int j = 0; j < 8; j++) {
			float p = __expf(x[j] - largest) / sum - (c + j == t ? 1.0f : 0.0f);

			x[j] = counted && c + j < vocab ? w * p : 0.0f;
		}
		put_eight<WIDE>(row + c, width - c, x);
	}
}

void cuda_cross_entropy(struct kernels *k, struct tensor loss, struct tensor logits,
			struct tensor target, struct tensor weight, int64_t vocab, bool backward)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = logits.dim[0], width = logits.dim[1];

	CHECK(loss.type == DT_F32 && target.type == DT_I32 && vocab > 0 && vocab <= width);
	CHECK(tensor_count(&loss) == rows && tensor_count(&target) == rows);
	CHECK(!backward || (weight.type == DT_F32 && tensor_count(&weight) == rows));
	if (!rows)
		return;
	if (width % 8 == 0 && aligned16(logits.data))
		ACT(logits.type,
		    cross_entropy_rows<true><<<(unsigned)rows, LOSS_THREADS, 0, s->stream>>>(
			    (float *)loss.data, (T *)logits.data, (const int32_t *)target.data,
			    (const float *)weight.data, width, vocab, backward));
	else
		ACT(logits.type,
		    cross_entropy_rows<false><<<(unsigned)rows, LOSS_THREADS, 0, s->stream>>>(
			    (float *)loss.data, (T *)logits.data, (const int32_t *)target.data,
			    (const float *)weight.data, width, vocab, backward));
	LAUNCHED();
}

/* A block an item of d elements. KIND says which loss; sign is the hinge's. */
enum row_loss { LOSS_SQUARE, LOSS_ABSOLUTE, LOSS_HINGE };

template <typename T, row_loss KIND>
__global__ void loss_rows(float *loss, T *dx, const T *x, const float *target, const float *weight,
			  int64_t d, float sign)
{
	int64_t at = (int64_t)blockIdx.x * d;
	float sum = 0.0f, w = dx ? weight[blockIdx.x] / (float)d : 0.0f;

	for (int64_t c = threadIdx.x; c < d; c += blockDim.x) {
		float v = to_float(x[at + c]), slope;

		if (KIND == LOSS_SQUARE) {
			v -= target[at + c];
			slope = 2.0f * v;
			sum += v * v;
		} else if (KIND == LOSS_ABSOLUTE) {
			v -= target[at + c];
			slope = v > 0.0f ? 1.0f : v < 0.0f ? -1.0f : 0.0f;
			sum += fabsf(v);
		} else if (sign == 0.0f) {
			slope = -1.0f;
			sum -= v;
		} else {
			slope = 1.0f - sign * v > 0.0f ? -sign : 0.0f;
			sum += fmaxf(0.0f, 1.0f - sign * v);
		}
		if (dx)
			put(dx + at + c, w * slope);
	}
	sum = block_sum(sum);
	if (threadIdx.x == 0)
		loss[blockIdx.x] = sum / (float)d;
}

template <row_loss KIND>
static void run_loss(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		     const void *target, struct tensor weight, int sign)
{
	struct cuda_state *s = state_of(k);
	int64_t rows = tensor_count(&loss), d = rows ? tensor_count(&x) / rows : 0;
	unsigned threads = d >= 512 ? 512 : (unsigned)(div_up(d, 32) * 32);

	CHECK(loss.type == DT_F32 && rows * d == tensor_count(&x));
	CHECK(!dx.data ||
	      (dx.type == x.type && weight.type == DT_F32 && tensor_count(&weight) == rows));
	if (!rows)
		return;
	ACT(x.type, loss_rows<T, KIND><<<(unsigned)rows, threads, 0, s->stream>>>(
			    (float *)loss.data, (T *)dx.data, (const T *)x.data,
			    (const float *)target, (const float *)weight.data, d, (float)sign));
	LAUNCHED();
}

void cuda_mse_rows(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		   struct tensor target, struct tensor weight)
{
	CHECK(target.type == DT_F32 && tensor_count(&target) == tensor_count(&x));
	run_loss<LOSS_SQUARE>(k, loss, dx, x, target.data, weight, 0);
}

void cuda_l1_images(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		    struct tensor target, struct tensor weight)
{
	CHECK(target.type == DT_F32 && tensor_count(&target) == tensor_count(&x));
	run_loss<LOSS_ABSOLUTE>(k, loss, dx, x, target.data, weight, 0);
}

void cuda_hinge_images(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		       int sign, struct tensor weight)
{
	run_loss<LOSS_HINGE>(k, loss, dx, x, NULL, weight, sign);
}
