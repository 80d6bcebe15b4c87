/* SPDX-License-Identifier: Apache-2.0
 * Convolutions in NHWC. cuDNN does them where it is there and has an algorithm (cudnn.cu); else
 * they are matrix products: the input's windows are laid out as rows of a matrix
 * [n*ho*wo, kh*kw*ci] in scratch, some images at a time, and cuBLASLt does the rest (bf16 or f32
 * operands, f32 accumulation). A 1x1 convolution of stride 1 needs no windows. The gradient of the
 * input gathers from the windows' gradients, so that every sum has a fixed order. */
#include "kernels/cuda/conv.cuh"

#define WINDOW_BYTES ((size_t)512 << 20) /* scratch for windows at most, but one image at least */

static struct geometry geometry_of(const struct tensor *x, const struct tensor *weight,
				   const struct tensor *out, struct conv c)
{
	struct geometry g = { x->dim[0],      x->dim[1],      x->dim[2],      x->dim[3],
			      weight->dim[0], weight->dim[1], weight->dim[2], out->dim[1],
			      out->dim[2],    c.stride,	      c.pad_before,   c.pad_after };

	CHECK(x->rank == 4 && weight->rank == 4 && out->rank == 4 && weight->dim[3] == g.ci);
	CHECK(out->dim[0] == g.n && out->dim[3] == g.co && c.stride >= 1);
	CHECK(g.ho == (g.h + c.pad_before + c.pad_after - g.kh) / c.stride + 1);
	CHECK(g.wo == (g.w + c.pad_before + c.pad_after - g.kw) / c.stride + 1);
	return g;
}

static bool needs_windows(const struct geometry *g)
{
	return g->kh != 1 || g->kw != 1 || g->stride != 1 || g->before != 0 || g->ho != g->h ||
	       g->wo != g->w;
}

/* Images whose windows fit into the scratch. */
static int64_t images_at_once(const struct geometry *g, enum dtype type)
{
	size_t image = (size_t)(g->ho * g->wo * g->kh * g->kw * g->ci) * dtype_bytes(type);
	int64_t fit = (int64_t)(WINDOW_BYTES / (image ? image : 1));

	return fit < 1 ? 1 : fit < g->n ? fit : g->n;
}

/* windows[(image, y, x), (dy, dx, c)]; V channels a thread. */
template <typename T, int V>
__global__ void lay_windows(T *windows, const T *x, struct geometry g, int64_t images)
{
	typedef struct {
		T v[V];
	} __align__(sizeof(T) * V) chunk;
	int64_t chunks = g.ci / V, total = images * g.ho * g.wo * g.kh * g.kw * chunks;

	EACH (i, total) {
		int64_t c = i % chunks, dx = i / chunks % g.kw, dy = i / (chunks * g.kw) % g.kh;
		int64_t at = i / (chunks * g.kw * g.kh), ox = at % g.wo, oy = at / g.wo % g.ho;
		int64_t image = at / (g.wo * g.ho);
		int64_t iy = oy * g.stride + dy - g.before, ix = ox * g.stride + dx - g.before;
		chunk value;

		if (iy >= 0 && iy < g.h && ix >= 0 && ix < g.w)
			value = ((const chunk *)x)[((image * g.h + iy) * g.w + ix) * chunks + c];
		else
			memset(&value, 0, sizeof value);
		((chunk *)windows)[i] = value;
	}
}

/* dx of a pixel: the sum over the windows that hold it. */
template <typename T>
__global__ void gather_windows(T *dx, const T *windows, struct geometry g, int64_t images)
{
	EACH (i, images * g.h * g.w * g.ci) {
		int64_t c = i % g.ci, x = i / g.ci % g.w, y = i / (g.ci * g.w) % g.h,
			image = i / (g.ci * g.w * g.h);
		float sum = 0.0f;

		for (int64_t dy = 0; dy < g.kh; dy++) {
			int64_t oy = y + g.before - dy;

			if (oy < 0 || oy % g.stride || oy / g.stride >= g.ho)
				continue;
			for (int64_t kx = 0; kx < g.kw; kx++) {
				int64_t ox = x + g.before - kx;

				if (ox < 0 || ox % g.stride || ox / g.stride >= g.wo)
					continue;
				sum += to_float(windows[((((image * g.ho + oy / g.stride) * g.wo +
							   ox / g.stride) *
								  g.kh +
							  dy) * g.kw +
							 kx) * g.ci +
							c]);
			}
		}
		put(dx + i, sum);
	}
}

/* The windows of `images` images from `first` on, in scratch (or the input itself, when it serves).
 */
static const void *windows_of(struct cuda_state *s, void *scratch, const struct tensor *x,
			      const struct geometry *g, int64_t first, int64_t images)
{
	const char *from = (const char *)x->data +
			   (size_t)(first * g->h * g->w * g->ci) * dtype_bytes(x->type);
	int64_t count = images * g->ho * g->wo * g->kh * g->kw * g->ci;
	bool wide = g->ci % 8 == 0 && aligned16(from);

	if (!needs_windows(g))
		return from;
	if (wide && x->type == DT_BF16)
		lay_windows<bf16, 8><<<grid_for(s, count / 8, 256), 256, 0, s->stream>>>(
			(bf16 *)scratch, (const bf16 *)from, *g, images);
	else if (wide)
		lay_windows<float, 4><<<grid_for(s, count / 4, 256), 256, 0, s->stream>>>(
			(float *)scratch, (const float *)from, *g, images);
	else
		ACT(x->type, lay_windows<T, 1><<<grid_for(s, count, 256), 256, 0, s->stream>>>(
				     (T *)scratch, (const T *)from, *g, images));
	LAUNCHED();
	return scratch;
}

/* The products' own scratch (bf16 out with a bias) lies behind the windows: both come from one
 * block. */
static char *scratch_for(struct cuda_state *s, const struct geometry *g, enum dtype type,
			 size_t behind)
{
	size_t window = (size_t)(images_at_once(g, type) * g->ho * g->wo * g->kh * g->kw * g->ci) *
			dtype_bytes(type);

	return (char *)cuda_scratch(s, (needs_windows(g) ? window : 0) + behind);
}

template <typename T>
__global__ void add_bias(T *out, const float *bias, int64_t count, int64_t channels)
{
	EACH (i, count)
		put(out + i, to_float(out[i]) + bias[i % channels]);
}

static void put_bias(struct cuda_state *s, const struct tensor *out, const struct tensor *bias)
{
	int64_t count = tensor_count(out);

	if (!bias->data)
		return;
	ACT(out->type, add_bias<<<grid_for(s, count, 256), 256, 0, s->stream>>>(
			       (T *)out->data, (const float *)bias->data, count, out->dim[3]));
	LAUNCHED();
}

void cuda_conv2d(struct kernels *k, struct tensor out, struct tensor x, struct tensor weight,
		 struct tensor bias, struct conv c)
{
	struct cuda_state *s = state_of(k);
	struct geometry g = geometry_of(&x, &weight, &out, c);
	int64_t at_once = images_at_once(&g, x.type), pixels = g.ho * g.wo;
	char *scratch;

	CHECK(x.type == weight.type && out.type == x.type && (!bias.data || bias.type == DT_F32));
	if (!tensor_count(&out))
		return;
	if (cudnn_conv(s, CONV_FORWARD, &g, x.type, x.data, weight.data, out.data)) {
		put_bias(s, &out, &bias);
		return;
	}
	scratch = scratch_for(s, &g, x.type, 0);
	for (int64_t i = 0; i < g.n; i += at_once) {
		int64_t images = g.n - i < at_once ? g.n - i : at_once;
		char *to = (char *)out.data + (size_t)(i * pixels * g.co) * dtype_bytes(out.type);
		struct product p = { images * pixels,
				     g.co,
				     g.kh * g.kw * g.ci,
				     windows_of(s, scratch, &x, &g, i, images),
				     weight.data,
				     to,
				     out.type == DT_F32 ? (const float *)bias.data : NULL,
				     false,
				     true,
				     x.type,
				     out.type,
				     0.0f };

		cuda_product(s, &p);
	}
	if (out.type == DT_BF16)
		put_bias(s, &out, &bias);
}

void cuda_conv2d_backward_data(struct kernels *k, struct tensor dx, struct tensor dout,
			       struct tensor weight, struct conv c)
{
	struct cuda_state *s = state_of(k);
	struct geometry g = geometry_of(&dx, &weight, &dout, c);
	int64_t at_once = images_at_once(&g, dx.type), pixels = g.ho * g.wo;
	char *scratch;

	CHECK(dx.type == weight.type && dout.type == dx.type);
	if (!tensor_count(&dx))
		return;
	if (cudnn_conv(s, CONV_DATA, &g, dx.type, dout.data, weight.data, dx.data))
		return;
	scratch = scratch_for(s, &g, dx.type, 0);
	for (int64_t i = 0; i < g.n; i += at_once) {
		int64_t images = g.n - i < at_once ? g.n - i : at_once,
			count = images * g.h * g.w * g.ci;
		size_t element = dtype_bytes(dx.type);
		char *to = (char *)dx.data + (size_t)(i * g.h * g.w * g.ci) * element;
		struct product p = { images * pixels,
				     g.kh * g.kw * g.ci,
				     g.co,
				     (const char *)dout.data +
					     (size_t)(i * pixels * g.co) * element,
				     weight.data,
				     needs_windows(&g) ? scratch : to,
				     NULL,
				     false,
				     false,
				     dx.type,
				     dx.type,
				     0.0f };

		cuda_product(s, &p);
		if (!needs_windows(&g))
			continue;
		ACT(dx.type, gather_windows<<<grid_for(s, count, 256), 256, 0, s->stream>>>(
				     (T *)to, (const T *)scratch, g, images));
		LAUNCHED();
	}
}

void cuda_conv2d_backward_weight(struct kernels *k, struct tensor dweight, struct tensor dbias,
				 struct tensor dout, struct tensor x, struct conv c)
{
	struct cuda_state *s = state_of(k);
	struct geometry g = geometry_of(&x, &dweight, &dout, c);
	int64_t at_once = images_at_once(&g, x.type), pixels = g.ho * g.wo;
	char *scratch;

	CHECK(dweight.type == DT_F32 && dout.type == x.type);
	if (!tensor_count(&dout))
		return;
	if (dbias.data)
		cuda_bias_backward(k, dbias, tensor_2d(dout.data, dout.type, g.n * pixels, g.co));
	if (cudnn_conv(s, CONV_WEIGHT, &g, x.type, dout.data, x.data, dweight.data))
		return;
	scratch = scratch_for(s, &g, x.type, 0);
	for (int64_t i = 0; i < g.n; i += at_once) {
		int64_t images = g.n - i < at_once ? g.n - i : at_once;
		struct product p = { g.co,
				     g.kh * g.kw * g.ci,
				     images * pixels,
				     (const char *)dout.data +
					     (size_t)(i * pixels * g.co) * dtype_bytes(dout.type),
				     windows_of(s, scratch, &x, &g, i, images),
				     dweight.data,
				     NULL,
				     true,
				     false,
				     x.type,
				     DT_F32,
				     1.0f };

		cuda_product(s, &p);
	}
}
