/* SPDX-License-Identifier: Apache-2.0
 * Convolutions through cuDNN, channels last, accumulated in f32. The library is opened when the
 * first convolution comes (models without pictures never need it) and by name, so that the program
 * starts without it. Its own ranking picks the algorithm, never a clock: the first that sums in a
 * fixed order, so that the same input gives the same bits. Gradients of bf16 weights are rounded to
 * bf16 once before they are added to the f32 ones. */
#include "kernels/cuda/conv.cuh"
#include "kernels/cuda/library.cuh"

extern "C" {
#include "lib/mem.h"
}

#ifndef HAVE_CUDNN

bool cudnn_conv(struct cuda_state *, enum conv_pass, const struct geometry *, enum dtype,
		const void *, const void *, void *)
{
	return false;
}

void cudnn_close(struct cuda_state *)
{
}

#else

#include <cudnn.h>
#include <string.h>

#define LIBRARY LIBRARY_FILE("libcudnn", CUDNN_MAJOR)
#define ALGORITHMS_MOST 16

#define FUNCTIONS(F)                                                                       \
	F(cudnnCreate)                                                                     \
	F(cudnnDestroy)                                                                    \
	F(cudnnSetStream)                                                                  \
	F(cudnnGetErrorString)                                                             \
	F(cudnnCreateTensorDescriptor)                                                     \
	F(cudnnDestroyTensorDescriptor)                                                    \
	F(cudnnSetTensor4dDescriptor)                                                      \
	F(cudnnCreateFilterDescriptor)                                                     \
	F(cudnnDestroyFilterDescriptor)                                                    \
	F(cudnnSetFilter4dDescriptor)                                                      \
	F(cudnnCreateConvolutionDescriptor)                                                \
	F(cudnnDestroyConvolutionDescriptor)                                               \
	F(cudnnSetConvolution2dDescriptor)                                                 \
	F(cudnnSetConvolutionMathType)                                                     \
	F(cudnnGetConvolutionForwardAlgorithm_v7)                                          \
	F(cudnnGetConvolutionBackwardDataAlgorithm_v7)                                     \
	F(cudnnGetConvolutionBackwardFilterAlgorithm_v7)                                   \
	F(cudnnGetConvolutionForwardWorkspaceSize)                                         \
	F(cudnnGetConvolutionBackwardDataWorkspaceSize)                                    \
	F(cudnnGetConvolutionBackwardFilterWorkspaceSize)                                  \
	F(cudnnConvolutionForward)                                                         \
	F(cudnnConvolutionBackwardData)                                                    \
	F(cudnnConvolutionBackwardFilter)

/* What an algorithm was chosen for. Compared by bytes: no padding. */
struct conv_shape {
	struct geometry g;
	int32_t pass, type;
};

struct conv_plan {
	struct conv_shape shape;
	bool usable;
	int algorithm; /* of the pass's enum */
	size_t workspace;
	cudnnTensorDescriptor_t x, y;
	cudnnFilterDescriptor_t w;
	cudnnConvolutionDescriptor_t conv;
};

struct cudnn {
	FUNCTIONS(LIBRARY_POINTER)
	cudnnHandle_t handle; /* NULL: there is no such library */
	struct conv_plan *plan;
	int count, room;
};

static void check(const struct cudnn *c, cudnnStatus_t rc, const char *what, int line)
{
	if (rc != CUDNN_STATUS_SUCCESS)
		die(KERNEL_EXIT_DEVICE, "the GPU failed: cuDNN says %s in %s at %s:%d",
		    c->cudnnGetErrorString(rc), what, __FILE__, line);
}
#define DNN(call) check(c, c->call, #call, __LINE__)

static struct cudnn *cudnn_open(struct cuda_state *s)
{
	static const char *const names[] = { FUNCTIONS(LIBRARY_NAME) };
	struct cudnn *c = (struct cudnn *)xcalloc(1, sizeof *c);

	static_assert(offsetof(struct cudnn, handle) == sizeof names, "a name a pointer");
	if (library_open(LIBRARY, names, ARRAY_LEN(names), (void **)c, NULL) < 0 ||
	    c->cudnnCreate(&c->handle) != CUDNN_STATUS_SUCCESS)
		c->handle = NULL;
	else
		DNN(cudnnSetStream(c->handle, s->stream));
	return c;
}

static void plan_release(struct cudnn *c, struct conv_plan *p)
{
	c->cudnnDestroyTensorDescriptor(p->x);
	c->cudnnDestroyTensorDescriptor(p->y);
	c->cudnnDestroyFilterDescriptor(p->w);
	c->cudnnDestroyConvolutionDescriptor(p->conv);
}

void cudnn_close(struct cuda_state *s)
{
	struct cudnn *c = s->cudnn;

	if (!c)
		return;
	for (int i = 0; i < c->count; i++)
		plan_release(c, &c->plan[i]);
	if (c->handle)
		c->cudnnDestroy(c->handle);
	xfree_(c->plan);
	xfree_(c);
	s->cudnn = NULL;
}

static void describe(struct cudnn *c, struct conv_plan *p)
{
	const struct geometry *g = &p->shape.g;
	bool half = p->shape.type == DT_BF16;
	cudnnDataType_t type = half ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
	int pad = (int)g->before, stride = (int)g->stride;

	DNN(cudnnCreateTensorDescriptor(&p->x));
	DNN(cudnnCreateTensorDescriptor(&p->y));
	DNN(cudnnCreateFilterDescriptor(&p->w));
	DNN(cudnnCreateConvolutionDescriptor(&p->conv));
	DNN(cudnnSetTensor4dDescriptor(p->x, CUDNN_TENSOR_NHWC, type, (int)g->n, (int)g->ci,
				       (int)g->h, (int)g->w));
	DNN(cudnnSetTensor4dDescriptor(p->y, CUDNN_TENSOR_NHWC, type, (int)g->n, (int)g->co,
				       (int)g->ho, (int)g->wo));
	DNN(cudnnSetFilter4dDescriptor(p->w, type, CUDNN_TENSOR_NHWC, (int)g->co, (int)g->ci,
				       (int)g->kh, (int)g->kw));
	DNN(cudnnSetConvolution2dDescriptor(p->conv, pad, pad, stride, stride, 1, 1,
					    CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT));
	DNN(cudnnSetConvolutionMathType(p->conv, half ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH));
}

/* The best ranked of fixed order, and the memory it asks for. */
template <typename PERFORMANCE>
static bool take_first(struct conv_plan *p, const PERFORMANCE *found, int count)
{
	for (int i = 0; i < count; i++)
		if (found[i].status == CUDNN_STATUS_SUCCESS &&
		    found[i].determinism == CUDNN_DETERMINISTIC) {
			p->algorithm = (int)found[i].algo;
			return true;
		}
	return false;
}

static bool choose_forward(struct cudnn *c, struct conv_plan *p)
{
	cudnnConvolutionFwdAlgoPerf_t found[ALGORITHMS_MOST];
	int n = 0;

	return c->cudnnGetConvolutionForwardAlgorithm_v7(c->handle, p->x, p->w, p->conv, p->y,
							 ALGORITHMS_MOST, &n,
							 found) == CUDNN_STATUS_SUCCESS &&
	       take_first(p, found, n) &&
	       c->cudnnGetConvolutionForwardWorkspaceSize(
		       c->handle, p->x, p->w, p->conv, p->y,
		       (cudnnConvolutionFwdAlgo_t)p->algorithm,
		       &p->workspace) == CUDNN_STATUS_SUCCESS;
}

static bool choose_data(struct cudnn *c, struct conv_plan *p)
{
	cudnnConvolutionBwdDataAlgoPerf_t found[ALGORITHMS_MOST];
	int n = 0;

	return c->cudnnGetConvolutionBackwardDataAlgorithm_v7(c->handle, p->w, p->y, p->conv, p->x,
							      ALGORITHMS_MOST, &n,
							      found) == CUDNN_STATUS_SUCCESS &&
	       take_first(p, found, n) &&
	       c->cudnnGetConvolutionBackwardDataWorkspaceSize(
		       c->handle, p->w, p->y, p->conv, p->x,
		       (cudnnConvolutionBwdDataAlgo_t)p->algorithm,
		       &p->workspace) == CUDNN_STATUS_SUCCESS;
}

static bool choose_weight(struct cudnn *c, struct conv_plan *p)
{
	cudnnConvolutionBwdFilterAlgoPerf_t found[ALGORITHMS_MOST];
	int n = 0;

	return c->cudnnGetConvolutionBackwardFilterAlgorithm_v7(c->handle, p->x, p->y, p->conv,
								p->w, ALGORITHMS_MOST, &n,
								found) == CUDNN_STATUS_SUCCESS &&
	       take_first(p, found, n) &&
	       c->cudnnGetConvolutionBackwardFilterWorkspaceSize(
		       c->handle, p->x, p->y, p->conv, p->w,
		       (cudnnConvolutionBwdFilterAlgo_t)p->algorithm,
		       &p->workspace) == CUDNN_STATUS_SUCCESS;
}

static struct conv_plan *plan_of(struct cudnn *c, const struct conv_shape *shape)
{
	static bool (*const choose[CONV_PASSES])(struct cudnn *, struct conv_plan *) = {
		choose_forward, choose_data, choose_weight
	};
	struct conv_plan *p;

	for (int i = 0; i < c->count; i++)
		if (!memcmp(&c->plan[i].shape, shape, sizeof *shape))
			return &c->plan[i];
	if (c->count == c->room) {
		c->room = c->room ? 2 * c->room : 32;
		c->plan =
			(struct conv_plan *)xrealloc(c->plan, (size_t)c->room, sizeof *c->plan);
	}
	p = &c->plan[c->count++];
	memset(p, 0, sizeof *p);
	p->shape = *shape;
	describe(c, p);
	p->usable = choose[shape->pass](c, p);
	return p;
}

__global__ void add_rounded(float *to, const bf16 *from, int64_t count)
{
	EACH (i, count)
		to[i] += to_float(from[i]);
}

/* dweight += dout * x; bf16 ones through scratch that lies before the library's own. */
static void run_weight(struct cuda_state *s, struct cudnn *c, const struct conv_plan *p,
		       const void *dout, const void *x, float *out)
{
	const struct geometry *g = &p->shape.g;
	bool half = p->shape.type == DT_BF16;
	int64_t count = g->co * g->kh * g->kw * g->ci;
	size_t own = half ? ((size_t)count * sizeof(bf16) + 255) / 256 * 256 : 0;
	char *scratch = (char *)cuda_scratch(s, own + p->workspace);
	const float one = 1.0f, keep = half ? 0.0f : 1.0f;

	DNN(cudnnConvolutionBackwardFilter(c->handle, &one, p->x, x, p->y, dout, p->conv,
					   (cudnnConvolutionBwdFilterAlgo_t)p->algorithm,
					   scratch + own, p->workspace, &keep, p->w,
					   half ? (void *)scratch : (void *)out));
	if (!half)
		return;
	add_rounded<<<grid_for(s, count, 256), 256, 0, s->stream>>>(out, (const bf16 *)scratch,
								    count);
	LAUNCHED();
}

bool cudnn_conv(struct cuda_state *s, enum conv_pass pass, const struct geometry *g,
		enum dtype type, const void *a, const void *b, void *out)
{
	struct conv_shape shape = { *g, pass, type };
	const float one = 1.0f, none = 0.0f;
	struct cudnn *c;
	struct conv_plan *p;

	if (!s->cudnn)
		s->cudnn = cudnn_open(s);
	c = s->cudnn;
	if (!c->handle || g->before != g->after)
		return false;
	p = plan_of(c, &shape);
	if (!p->usable)
		return false;
	if (pass == CONV_WEIGHT) {
		run_weight(s, c, p, a, b, (float *)out);
		return true;
	}
	void *work = p->workspace ? cuda_scratch(s, p->workspace) : NULL;

	if (pass == CONV_FORWARD)
		DNN(cudnnConvolutionForward(c->handle, &one, p->x, a, p->w, b, p->conv,
					    (cudnnConvolutionFwdAlgo_t)p->algorithm, work,
					    p->workspace, &none, p->y, out));
	else
		DNN(cudnnConvolutionBackwardData(c->handle, &one, p->w, b, p->y, a, p->conv,
						 (cudnnConvolutionBwdDataAlgo_t)p->algorithm, work,
						 p->workspace, &none, p->x, out));
	return true;
}

#endif
