/* SPDX-License-Identifier: Apache-2.0
 * Reference of the diffusion operations of kernels.def. */
#include "config.h"
#include "kernels/ref/ref.h"

#include <math.h>

void ref_normals(struct kernels *k, struct tensor out, uint64_t seed, enum philox_purpose purpose,
		 struct tensor sample)
{
	int64_t n = tensor_count(&sample), each = n ? tensor_count(&out) / n : 0;

	(void)k;
	CHECK(out.type == DT_F32 && sample.type == DT_I64 && each * n == tensor_count(&out));
	for (int64_t i = 0; i < n; i++)
		philox_normals(seed, purpose, (uint64_t)((const int64_t *)sample.data)[i], 0,
			       (float *)out.data + i * each, each);
}

void ref_add_noise(struct kernels *k, struct tensor out, struct tensor x, struct tensor noise,
		   struct tensor signal, struct tensor sigma)
{
	int64_t n = tensor_count(&signal), each = n ? tensor_count(&x) / n : 0;

	(void)k;
	CHECK(each * n == tensor_count(&x) && tensor_count(&noise) == tensor_count(&x));
	CHECK(tensor_count(&out) == tensor_count(&x) && tensor_count(&sigma) == n);
	for (int64_t i = 0; i < n * each; i++)
		ref_put(&out, i, (double)ref_get(&signal, i / each) * ref_get(&x, i) +
			(double)ref_get(&sigma, i / each) * ref_get(&noise, i));
}

/* Index into the latent [n,h,w,c] of element e of patch vector `row`. */
static int64_t latent_at(const struct tensor *latent, int patch, int64_t row, int64_t e)
{
	int64_t h = latent->dim[1], w = latent->dim[2], c = latent->dim[3];
	int64_t across = w / patch, per_image = h / patch * across;
	int64_t image = row / per_image, place = row % per_image;
	int64_t y = place / across * patch + e / (patch * c);
	int64_t x = place % across * patch + e / c % patch;

	return ((image * h + y) * w + x) * c + e % c;
}

static void check_patches(const struct tensor *latent, const struct tensor *patches, int patch)
{
	CHECK(latent->rank == 4 && patches->rank == 2 && latent->type == DT_F32 && patch > 0);
	CHECK(latent->dim[1] % patch == 0 && latent->dim[2] % patch == 0);
	CHECK(patches->dim[1] == patch * patch * latent->dim[3]);
	CHECK(tensor_count(patches) == tensor_count(latent));
}

void ref_patchify(struct kernels *k, struct tensor patches, struct tensor latent, int patch)
{
	int64_t width = patches.dim[1];

	(void)k;
	check_patches(&latent, &patches, patch);
	for (int64_t i = 0; i < tensor_count(&patches); i++)
		ref_put(&patches, i,
			ref_get(&latent, latent_at(&latent, patch, i / width, i % width)));
}

void ref_unpatchify(struct kernels *k, struct tensor latent, struct tensor patches, int patch)
{
	int64_t width = patches.dim[1];

	(void)k;
	check_patches(&latent, &patches, patch);
	for (int64_t i = 0; i < tensor_count(&patches); i++)
		ref_put(&latent, latent_at(&latent, patch, i / width, i % width),
			ref_get(&patches, i));
}

void ref_time_embedding(struct kernels *k, struct tensor out, struct tensor time)
{
	int64_t n = tensor_count(&time), half = out.dim[1] / 2;

	(void)k;
	CHECK(out.rank == 2 && out.dim[0] == n && out.dim[1] == 2 * half && time.type == DT_F32);
	for (int64_t i = 0; i < n; i++)
		for (int64_t j = 0; j < half; j++) {
			double angle = ref_get(&time, i) * pow(10000, -(double)j / half);

			ref_put(&out, i * 2 * half + j, cos(angle));
			ref_put(&out, i * 2 * half + half + j, sin(angle));
		}
}

void ref_denoise(struct kernels *k, const struct denoise *d)
{
	const float *v = d->step;
	double sqrt_abar = v[DENOISE_SQRT_ABAR], sigma = d->noise ? v[DENOISE_SIGMA] : 0;
	double sqrt_one_minus_abar = v[DENOISE_SQRT_ONE_MINUS_ABAR];

	(void)k;
	CHECK(sqrt_abar > 0);
	for (int64_t i = 0; i < d->n; i++) {
		double eps = d->eps_c[i], x = d->x[i], x0;

		if (d->eps_u)
			eps = d->eps_u[i] + (double)d->guidance * (eps - d->eps_u[i]);
		x0 = (x - sqrt_one_minus_abar * eps) / sqrt_abar;
		if (d->clamp > 0) {
			x0 = fmin(fmax(x0, -d->clamp), d->clamp);
			eps = (x - sqrt_abar * x0) / sqrt_one_minus_abar;
		}
		d->x[i] = (float)(v[DENOISE_X0] * x0 + v[DENOISE_EPS] * eps + v[DENOISE_X] * x +
				  (sigma != 0 ? sigma * (double)d->noise[i] : 0));
	}
}
