/* SPDX-License-Identifier: Apache-2.0
 * Reference of the convolutional operations (kernels.def, "convolutional nets"): one loop per
 * index, sums in double, in a fixed order. Every other backend is tested against it. */
#include "config.h"
#include "kernels/ref/ref.h"
#include "lib/err.h"

#include <math.h>

static bool same_shape(const struct tensor *a, const struct tensor *b)
{
	bool same = a->rank == b->rank;

	for (int i = 0; i < a->rank && same; i++)
		same = a->dim[i] == b->dim[i];
	return same;
}

/* The shapes of out[n,ho,wo,co], x[n,h,w,ci], weight[co,kh,kw,ci] belong together. */
static void check_conv(const struct tensor *out, const struct tensor *x,
		       const struct tensor *weight, struct conv c)
{
	CHECK(out->rank == 4 && x->rank == 4 && weight->rank == 4 && c.stride > 0);
	CHECK(out->dim[0] == x->dim[0]);
	CHECK(out->dim[3] == weight->dim[0] && x->dim[3] == weight->dim[3]);
	for (int axis = 1; axis <= 2; axis++) {
		int64_t padded = x->dim[axis] + c.pad_before + c.pad_after;

		CHECK(padded >= weight->dim[axis]);
		CHECK(out->dim[axis] == (padded - weight->dim[axis]) / c.stride + 1);
	}
}

/* Calls for every product of a convolution: output index o, input index i, filter index f. Input
 * positions in the padding are left out. */
struct walk { const struct tensor *out, *x, *weight; struct conv c; };

static int64_t input_at(const struct walk *w, int64_t n, int64_t row, int64_t column)
{
	const int64_t *d = w->x->dim;

	if (row < 0 || row >= d[1] || column < 0 || column >= d[2])
		return -1;
	return ((n * d[1] + row) * d[2] + column) * d[3];
}

static double conv_sum(const struct walk *w, int64_t n, int64_t row, int64_t column, int64_t co)
{
	const int64_t *f = w->weight->dim;
	double sum = 0;

	for (int64_t kh = 0; kh < f[1]; kh++)
		for (int64_t kw = 0; kw < f[2]; kw++) {
			int64_t x = input_at(w, n, row * w->c.stride + kh - w->c.pad_before,
					     column * w->c.stride + kw - w->c.pad_before);
			int64_t filter = ((co * f[1] + kh) * f[2] + kw) * f[3];

			for (int64_t ci = 0; x >= 0 && ci < f[3]; ci++)
				sum += (double)ref_get(w->x, x + ci) *
				       ref_get(w->weight, filter + ci);
		}
	return sum;
}

void ref_conv2d(struct kernels *k, struct tensor out, struct tensor x, struct tensor weight,
		struct tensor bias, struct conv c)
{
	struct walk w = { &out, &x, &weight, c };
	int64_t i = 0;

	(void)k;
	check_conv(&out, &x, &weight, c);
	CHECK(ref_is_act(&out) && out.type == x.type && out.type == weight.type);
	CHECK(!bias.data || (bias.type == DT_F32 && bias.dim[0] == out.dim[3]));
	for (int64_t n = 0; n < out.dim[0]; n++)
		for (int64_t row = 0; row < out.dim[1]; row++)
			for (int64_t column = 0; column < out.dim[2]; column++)
				for (int64_t co = 0; co < out.dim[3]; co++)
					ref_put(&out, i++, conv_sum(&w, n, row, column, co) +
						       (bias.data ? ref_get(&bias, co) : 0));
}

/* The gradient of one input element: all outputs it took part in. */
static double data_sum(const struct walk *w, int64_t n, int64_t row, int64_t column, int64_t ci)
{
	const int64_t *f = w->weight->dim, *o = w->out->dim;
	double sum = 0;

	for (int64_t kh = 0; kh < f[1]; kh++)
		for (int64_t kw = 0; kw < f[2]; kw++) {
			int64_t r = row + w->c.pad_before - kh, s = column + w->c.pad_before - kw;
			int64_t at;

			if (r < 0 || s < 0 || r % w->c.stride || s % w->c.stride)
				continue;
			r /= w->c.stride;
			s /= w->c.stride;
			if (r >= o[1] || s >= o[2])
				continue;
			at = ((n * o[1] + r) * o[2] + s) * o[3];
			for (int64_t co = 0; co < o[3]; co++)
				sum += (double)ref_get(w->out, at + co) *
				       ref_get(w->weight,
					       ((co * f[1] + kh) * f[2] + kw) * f[3] + ci);
		}
	return sum;
}

void ref_conv2d_backward_data(struct kernels *k, struct tensor dx, struct tensor dout,
			      struct tensor weight, struct conv c)
{
	struct walk w = { &dout, &dx, &weight, c };
	int64_t i = 0;

	(void)k;
	check_conv(&dout, &dx, &weight, c);
	CHECK(ref_is_act(&dx) && dx.type == dout.type && dx.type == weight.type);
	for (int64_t n = 0; n < dx.dim[0]; n++)
		for (int64_t row = 0; row < dx.dim[1]; row++)
			for (int64_t column = 0; column < dx.dim[2]; column++)
				for (int64_t ci = 0; ci < dx.dim[3]; ci++)
					ref_put(&dx, i++, data_sum(&w, n, row, column, ci));
}

static double weight_sum(const struct walk *w, int64_t co, int64_t kh, int64_t kw, int64_t ci)
{
	const int64_t *o = w->out->dim;
	double sum = 0;

	for (int64_t n = 0; n < o[0]; n++)
		for (int64_t row = 0; row < o[1]; row++)
			for (int64_t column = 0; column < o[2]; column++) {
				int64_t x = input_at(w, n, row * w->c.stride + kh - w->c.pad_before,
						     column * w->c.stride + kw - w->c.pad_before);
				int64_t at = ((n * o[1] + row) * o[2] + column) * o[3] + co;

				if (x >= 0)
					sum += (double)ref_get(w->x, x + ci) * ref_get(w->out, at);
			}
	return sum;
}

void ref_conv2d_backward_weight(struct kernels *k, struct tensor dweight, struct tensor dbias,
				struct tensor dout, struct tensor x, struct conv c)
{
	struct walk w = { &dout, &x, &dweight, c };
	const int64_t *f = dweight.dim;
	float *gradient = dweight.data;
	int64_t positions = dout.dim[0] * dout.dim[1] * dout.dim[2];

	(void)k;
	check_conv(&dout, &x, &dweight, c);
	CHECK(ref_is_act(&dout) && dout.type == x.type && dweight.type == DT_F32);
	for (int64_t co = 0; co < f[0]; co++)
		for (int64_t kh = 0; kh < f[1]; kh++)
			for (int64_t kw = 0; kw < f[2]; kw++)
				for (int64_t ci = 0; ci < f[3]; ci++)
					*gradient++ += (float)weight_sum(&w, co, kh, kw, ci);
	if (!dbias.data)
		return;
	CHECK(dbias.type == DT_F32 && dbias.dim[0] == f[0]);
	for (int64_t co = 0; co < f[0]; co++) {
		double sum = 0;

		for (int64_t p = 0; p < positions; p++)
			sum += ref_get(&dout, p * f[0] + co);
		((float *)dbias.data)[co] += (float)sum;
	}
}

/* One group of one image: channels first .. first + width - 1 of `pixels` pixels of C channels
 * each. */
struct group { int64_t base, pixels, C, first, width; };

static struct group group_of(const struct tensor *x, int groups, int64_t n, int64_t g)
{
	int64_t pixels = x->dim[1] * x->dim[2], C = x->dim[3];

	return (struct group){ n * pixels * C, pixels, C, g * (C / groups), C / groups };
}

static int64_t group_index(const struct group *g, int64_t i)
{
	return g->base + i / g->width * g->C + g->first + i % g->width;
}

static void check_norm(const struct tensor *x, const struct tensor *weight,
		       const struct tensor *bias, const struct tensor *mean,
		       const struct tensor *rstd, int groups)
{
	CHECK(x->rank == 4 && ref_is_act(x) && groups > 0 && x->dim[3] % groups == 0);
	CHECK(weight->type == DT_F32 && bias->type == DT_F32);
	CHECK(weight->dim[0] == x->dim[3] && bias->dim[0] == x->dim[3]);
	CHECK(mean->type == DT_F32 && rstd->type == DT_F32);
	CHECK(tensor_count(mean) == x->dim[0] * groups && tensor_count(rstd) == x->dim[0] * groups);
}

void ref_group_norm(struct kernels *k, struct tensor out, struct tensor mean, struct tensor rstd,
		    struct tensor x, struct tensor weight, struct tensor bias, int groups,
		    float eps, bool silu)
{
	(void)k;
	check_norm(&x, &weight, &bias, &mean, &rstd, groups);
	CHECK(same_shape(&out, &x) && out.type == x.type);
	for (int64_t j = 0; j < x.dim[0] * groups; j++) {
		struct group g = group_of(&x, groups, j / groups, j % groups);
		int64_t count = g.pixels * g.width;
		double sum = 0, squares = 0, m, r;

		for (int64_t i = 0; i < count; i++)
			sum += ref_get(&x, group_index(&g, i));
		m = sum / (double)count;
		for (int64_t i = 0; i < count; i++)
			squares += pow(ref_get(&x, group_index(&g, i)) - m, 2);
		r = 1 / sqrt(squares / (double)count + eps);
		((float *)mean.data)[j] = (float)m;
		((float *)rstd.data)[j] = (float)r;
		for (int64_t i = 0; i < count; i++) {
			int64_t at = group_index(&g, i), channel = g.first + i % g.width;
			double y = (ref_get(&x, at) - m) * r * ref_get(&weight, channel) +
				   ref_get(&bias, channel);

			ref_put(&out, at, silu ? y / (1 + exp(-y)) : y);
		}
	}
}

/* Gradient at the norm's own output (before SiLU) of element `at`; *hat is the normalised input. */
static double norm_output_gradient(const struct tensor *dout, const struct tensor *x, int64_t at,
				   double m, double r, double weight, double bias, bool silu,
				   double *hat)
{
	double d = ref_get(dout, at), y, s;

	*hat = (ref_get(x, at) - m) * r;
	if (!silu)
		return d;
	y = *hat * weight + bias;
	s = 1 / (1 + exp(-y));
	return d * s * (1 + y * (1 - s));
}

void ref_group_norm_backward(struct kernels *k, struct tensor dx, struct tensor dweight,
			     struct tensor dbias, struct tensor dout, struct tensor x,
			     struct tensor weight, struct tensor bias, struct tensor mean,
			     struct tensor rstd, int groups, bool silu)
{
	(void)k;
	check_norm(&x, &weight, &bias, &mean, &rstd, groups);
	CHECK(same_shape(&dx, &x) && same_shape(&dout, &x) && dx.type == x.type &&
	      dout.type == x.type);
	CHECK(dweight.type == DT_F32 && dbias.type == DT_F32);
	for (int64_t j = 0; j < x.dim[0] * groups; j++) {
		struct group g = group_of(&x, groups, j / groups, j % groups);
		int64_t count = g.pixels * g.width;
		double m = ref_get(&mean, j), r = ref_get(&rstd, j), sum = 0, sum_hat = 0, hat;

		for (int64_t i = 0; i < count; i++) {
			int64_t at = group_index(&g, i), channel = g.first + i % g.width;
			double w = ref_get(&weight, channel);
			double d = norm_output_gradient(&dout, &x, at, m, r, w,
							ref_get(&bias, channel), silu, &hat);

			if (dweight.data) {
				((float *)dweight.data)[channel] += (float)(d * hat);
				((float *)dbias.data)[channel] += (float)d;
			}
			sum += d * w;
			sum_hat += d * w * hat;
		}
		for (int64_t i = 0; i < count; i++) {
			int64_t at = group_index(&g, i), channel = g.first + i % g.width;
			double w = ref_get(&weight, channel);
			double d = norm_output_gradient(&dout, &x, at, m, r, w,
							ref_get(&bias, channel), silu, &hat);

			ref_put(&dx, at, r * (d * w - (sum + hat * sum_hat) / (double)count));
		}
	}
}

static void check_upsample(const struct tensor *large, const struct tensor *small)
{
	CHECK(large->rank == 4 && small->rank == 4 && ref_is_act(small) &&
	      large->type == small->type);
	CHECK(large->dim[0] == small->dim[0] && large->dim[3] == small->dim[3]);
	CHECK(large->dim[1] == 2 * small->dim[1] && large->dim[2] == 2 * small->dim[2]);
}

void ref_upsample2(struct kernels *k, struct tensor out, struct tensor x)
{
	int64_t h = out.dim[1], w = out.dim[2], C = out.dim[3], i = 0;

	(void)k;
	check_upsample(&out, &x);
	for (int64_t n = 0; n < out.dim[0]; n++)
		for (int64_t row = 0; row < h; row++)
			for (int64_t column = 0; column < w; column++)
				for (int64_t c = 0; c < C; c++)
					ref_put(&out, i++,
						ref_get(&x, ((n * (h / 2) + row / 2) * (w / 2) +
							     column / 2) * C +
								    c));
}

void ref_upsample2_backward(struct kernels *k, struct tensor dx, struct tensor dout)
{
	int64_t h = dx.dim[1], w = dx.dim[2], C = dx.dim[3], i = 0;

	(void)k;
	check_upsample(&dout, &dx);
	for (int64_t n = 0; n < dx.dim[0]; n++)
		for (int64_t row = 0; row < h; row++)
			for (int64_t column = 0; column < w; column++)
				for (int64_t c = 0; c < C; c++) {
					int64_t at =
						((n * 2 * h + 2 * row) * 2 * w + 2 * column) * C +
						c;

					ref_put(&dx, i++,
						(double)ref_get(&dout, at) +
							ref_get(&dout, at + C) +
							ref_get(&dout, at + 2 * w * C) +
							ref_get(&dout, at + 2 * w * C + C));
				}
}

void ref_leaky_relu(struct kernels *k, struct tensor out, struct tensor x, float slope)
{
	(void)k;
	CHECK(ref_is_act(&x) && out.type == x.type && tensor_count(&out) == tensor_count(&x));
	for (int64_t i = 0; i < tensor_count(&x); i++)
		ref_put(&out, i, ref_get(&x, i) > 0 ? ref_get(&x, i) : slope * ref_get(&x, i));
}

void ref_leaky_relu_backward(struct kernels *k, struct tensor dx, struct tensor dout,
			     struct tensor x, float slope)
{
	(void)k;
	CHECK(ref_is_act(&x) && dx.type == x.type && dout.type == x.type);
	CHECK(tensor_count(&dx) == tensor_count(&x) && tensor_count(&dout) == tensor_count(&x));
	for (int64_t i = 0; i < tensor_count(&x); i++)
		ref_put(&dx, i, ref_get(&x, i) > 0 ? ref_get(&dout, i) : slope * ref_get(&dout, i));
}

static void check_posterior(const struct tensor *z, const struct tensor *images,
			    const struct tensor *moments, const struct tensor *noise)
{
	CHECK(z->rank == 4 && moments->rank == 4 && z->type == DT_F32 && moments->type == DT_F32);
	CHECK(z->dim[0] == moments->dim[0] && 2 * z->dim[3] == moments->dim[3]);
	CHECK(z->dim[1] == moments->dim[1] && z->dim[2] == moments->dim[2]);
	CHECK(images->type == DT_F32 && images->dim[0] == z->dim[0]);
	CHECK(!noise->data || (noise->type == DT_F32 && tensor_count(noise) == tensor_count(z)));
}

/* The two moments of latent element i. */
static void moments_of(const struct tensor *moments, int64_t i, double *mean, double *log_variance)
{
	int64_t C = moments->dim[3] / 2, at = i / C * 2 * C + i % C;

	*mean = ref_get(moments, at);
	*log_variance = fmin(fmax(ref_get(moments, at + C), -20), 5);
}

void ref_posterior(struct kernels *k, struct tensor z, struct tensor kl, struct tensor moments,
		   struct tensor noise)
{
	int64_t count = z.dim[1] * z.dim[2] * z.dim[3];

	(void)k;
	check_posterior(&z, &kl, &moments, &noise);
	for (int64_t n = 0; n < z.dim[0]; n++) {
		double sum = 0, mean, lv;

		for (int64_t i = n * count; i < (n + 1) * count; i++) {
			moments_of(&moments, i, &mean, &lv);
			ref_put(&z, i, mean + (noise.data ? exp(lv / 2) * ref_get(&noise, i) : 0));
			sum += (mean * mean + exp(lv) - 1 - lv) / 2;
		}
		ref_put(&kl, n, sum / (double)count);
	}
}

void ref_posterior_backward(struct kernels *k, struct tensor dmoments, struct tensor dz,
			    struct tensor kl_weight, struct tensor moments, struct tensor noise)
{
	int64_t count = dz.dim[1] * dz.dim[2] * dz.dim[3], C = dz.dim[3];

	(void)k;
	check_posterior(&dz, &kl_weight, &moments, &noise);
	CHECK(same_shape(&dmoments, &moments) && dmoments.type == DT_F32);
	for (int64_t i = 0; i < dz.dim[0] * count; i++) {
		double w = ref_get(&kl_weight, i / count) / (double)count, d = ref_get(&dz, i),
		       mean, lv;
		int64_t at = i / C * 2 * C + i % C;
		float raw = ref_get(&moments, at + C);
		double through_z;

		moments_of(&moments, i, &mean, &lv);
		through_z = noise.data ? d * exp(lv / 2) / 2 * ref_get(&noise, i) : 0;
		ref_put(&dmoments, at, d + w * mean);
		ref_put(&dmoments, at + C,
		    raw < -20 || raw > 5 ? 0 : through_z + w * (exp(lv) - 1) / 2);
	}
}

static void check_images(const struct tensor *loss, const struct tensor *dx, const struct tensor *x,
			 const struct tensor *weight)
{
	CHECK(x->rank == 2 && ref_is_act(x) && loss->type == DT_F32 && loss->dim[0] == x->dim[0]);
	CHECK(!dx->data || (same_shape(dx, x) && dx->type == x->type));
	CHECK(!dx->data || (weight->type == DT_F32 && weight->dim[0] == x->dim[0]));
}

void ref_l1_images(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		   struct tensor target, struct tensor weight)
{
	int64_t E = x.dim[1];

	(void)k;
	check_images(&loss, &dx, &x, &weight);
	CHECK(target.type == DT_F32 && same_shape(&target, &x));
	for (int64_t n = 0; n < x.dim[0]; n++) {
		double sum = 0;

		for (int64_t i = n * E; i < (n + 1) * E; i++) {
			double d = (double)ref_get(&x, i) - ref_get(&target, i);

			sum += fabs(d);
			if (dx.data)
				ref_put(&dx, i,
					ref_get(&weight, n) * ((d > 0) - (d < 0)) / (double)E);
		}
		ref_put(&loss, n, sum / (double)E);
	}
}

void ref_hinge_images(struct kernels *k, struct tensor loss, struct tensor dx, struct tensor x,
		      int sign, struct tensor weight)
{
	int64_t E = x.dim[1];

	(void)k;
	check_images(&loss, &dx, &x, &weight);
	CHECK(sign >= -1 && sign <= 1);
	for (int64_t n = 0; n < x.dim[0]; n++) {
		double sum = 0;

		for (int64_t i = n * E; i < (n + 1) * E; i++) {
			double margin = sign ? 1 - sign * (double)ref_get(&x, i) : 1;
			double slope = sign ? (margin > 0 ? -sign : 0) : -1;

			sum += sign ? fmax(0, margin) : -(double)ref_get(&x, i);
			if (dx.data)
				ref_put(&dx, i, ref_get(&weight, n) * slope / (double)E);
		}
		ref_put(&loss, n, sum / (double)E);
	}
}
