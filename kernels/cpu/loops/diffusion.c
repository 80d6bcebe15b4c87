/* SPDX-License-Identifier: Apache-2.0
 * Noise, patches, time embedding and what else goes by images; see loops.h. Normals are those of
 * lib/philox.c bit for bit. */
#include "config.h"
#include "kernels/cpu/loops/loops.h"

#include <math.h>

void LOOP(normals)(struct kernels *k, struct tensor out, uint64_t seed, enum philox_purpose purpose,
		   struct tensor sample)
{
	int64_t n = tensor_count(&sample), each = n ? tensor_count(&out) / n : 0;
	const int64_t *which = sample.data;

	(void)k;
	CHECK(out.type == DT_F32 && sample.type == DT_I64 && each * n == tensor_count(&out));
#pragma omp parallel for schedule(static) if (n * each > LOOP_PARALLEL / 16)
	for (int64_t i = 0; i < n; i++)
		philox_normals(seed, purpose, (uint64_t)which[i], 0, loop_f32(&out) + i * each,
			       (uint64_t)each);
}

/* Floats from one tensor to another, of either type each. */
static void move(const struct tensor *to, int64_t at, const struct tensor *from, int64_t first,
		 int64_t n)
{
	for (int64_t i = 0; i < n; i += LOOP_BLOCK) {
		int64_t m = loop_min(LOOP_BLOCK, n - i);
		float in[LOOP_BLOCK], out[LOOP_BLOCK];
		const float *x = loop_load(from, first + i, m, in);
		float *y = loop_target(to, at + i, out);

		memcpy(y, x, m * sizeof *y);
		loop_store(to, at + i, m, y);
	}
}

/* Patch vectors are made of rows of `patch` pixels that lie together in the latent, too. */
static void patch_rows(const struct tensor *patches, const struct tensor *latent, int patch,
		       bool from_latent)
{
	int64_t h = latent->dim[1], w = latent->dim[2], c = latent->dim[3];
	int64_t across = patch > 0 ? w / patch : 0, piece = patch * c, n = tensor_count(latent);

	CHECK(latent->rank == 4 && patches->rank == 2 && latent->type == DT_F32 && patch > 0);
	CHECK(h % patch == 0 && w % patch == 0 && patches->dim[1] == patch * piece);
	CHECK(tensor_count(patches) == n);
#pragma omp parallel for schedule(static) if (n > LOOP_PARALLEL)
	for (int64_t line = 0; line < latent->dim[0] * h; line++)
		for (int64_t x = 0; x < across; x++) {
			int64_t row = line / patch * across + x;
			int64_t inside = (row * patch + line % patch) * piece;
			int64_t outside = (line * w + x * patch) * c;

			if (from_latent)
				move(patches, inside, latent, outside, piece);
			else
				move(latent, outside, patches, inside, piece);
		}
}

void LOOP(patchify)(struct kernels *k, struct tensor patches, struct tensor latent, int patch)
{
	(void)k;
	patch_rows(&patches, &latent, patch, true);
}

void LOOP(unpatchify)(struct kernels *k, struct tensor latent, struct tensor patches, int patch)
{
	(void)k;
	patch_rows(&patches, &latent, patch, false);
}

void LOOP(time_embedding)(struct kernels *k, struct tensor out, struct tensor time)
{
	int64_t n = tensor_count(&time), half = out.dim[1] / 2;
	double frequency[LOOP_BLOCK];

	(void)k;
	CHECK(out.rank == 2 && out.dim[0] == n && out.dim[1] == 2 * half && time.type == DT_F32);
	CHECK(half <= LOOP_BLOCK);
	for (int64_t j = 0; j < half; j++)
		frequency[j] = pow(10000, -(double)j / (double)half);
#pragma omp parallel for schedule(static) if (n * half > LOOP_PARALLEL / 16)
	for (int64_t i = 0; i < n; i++) {
		float block[2 * LOOP_BLOCK], *y = loop_target(&out, i * 2 * half, block);

		for (int64_t j = 0; j < half; j++) {
			double angle = (double)loop_f32(&time)[i] * frequency[j];

			y[j] = (float)cos(angle);
			y[half + j] = (float)sin(angle);
		}
		loop_store(&out, i * 2 * half, 2 * half, y);
	}
}

/* An image's rows summed column by column, in order. */
void LOOP(add_per_image_backward)(struct kernels *k, struct tensor dvector, struct tensor drows)
{
	int64_t images = dvector.dim[0], d = dvector.dim[1];
	int64_t patches = images ? drows.dim[0] / images : 0;

	(void)k;
	CHECK(drows.dim[1] == d && patches * images == drows.dim[0]);
#pragma omp parallel for schedule(static) if (images * patches * d > LOOP_PARALLEL)
	for (int64_t i = 0; i < images; i++)
		for (int64_t at = 0; at < d; at += LOOP_BLOCK) {
			int64_t m = loop_min(LOOP_BLOCK, d - at);
			float in[LOOP_BLOCK], sum[LOOP_BLOCK] = { 0 }, out[LOOP_BLOCK];
			float *y = loop_target(&dvector, i * d + at, out);

			for (int64_t p = 0; p < patches; p++) {
				const float *x =
					loop_load(&drows, (i * patches + p) * d + at, m, in);

#pragma omp simd
				for (int64_t c = 0; c < m; c++)
					sum[c] += x[c];
			}
			memcpy(y, sum, m * sizeof *y);
			loop_store(&dvector, i * d + at, m, y);
		}
}
