/* SPDX-License-Identifier: Apache-2.0
 * Diffusion: noise as a function of (seed, purpose, sample, element), noising, patches, time
 * embedding, one denoising update. The random numbers are those of lib/philox.c up to the last bits
 * of the maths. */
#include "kernels/cuda/philox.cuh"

__global__ void draw_normals(float *out, uint32_t key0, uint32_t key1, const int64_t *sample,
			     int64_t n, int64_t elements)
{
	int64_t blocks = (elements + 3) / 4;

	EACH (i, n * blocks) {
		int64_t row = i / blocks, b = i % blocks;
		uint64_t at = (uint64_t)sample[row];
		uint32_t w[4] = { (uint32_t)b, (uint32_t)((uint64_t)b >> 32), (uint32_t)at,
				  (uint32_t)(at >> 32) };
		float four[4];

		philox(w, key0, key1);
#pragma unroll
		for (int pair = 0; pair < 4; pair += 2) {
			float u = ((float)w[pair] + 1.0f) * 0x1p-32f,
			      v = (float)w[pair + 1] * 0x1p-32f;
			float r = -2.0f * logf(u);

			r = r > 0.0f ? sqrtf(r) : 0.0f;
			four[pair] = r * cosf(6.283185307179586f * v);
			four[pair + 1] = r * sinf(6.283185307179586f * v);
		}
		for (int j = 0; j < 4 && 4 * b + j < elements; j++)
			out[row * elements + 4 * b + j] = four[j];
	}
}

void cuda_normals(struct kernels *k, struct tensor out, uint64_t seed, enum philox_purpose purpose,
		  struct tensor sample)
{
	struct cuda_state *s = state_of(k);
	int64_t n = tensor_count(&sample), elements = n ? tensor_count(&out) / n : 0;

	CHECK(out.type == DT_F32 && sample.type == DT_I64 && n * elements == tensor_count(&out));
	if (!n)
		return;
	draw_normals<<<grid_for(s, n * div_up(elements, 4), 256), 256, 0, s->stream>>>(
		(float *)out.data, (uint32_t)seed, philox_key(seed, purpose),
		(const int64_t *)sample.data, n, elements);
	LAUNCHED();
}

__global__ void mix_noise(float *out, const float *x, const float *noise, const float *signal,
			  const float *sigma, int64_t n, int64_t elements)
{
	EACH (i, n * elements)
		out[i] = signal[i / elements] * x[i] + sigma[i / elements] * noise[i];
}

void cuda_add_noise(struct kernels *k, struct tensor out, struct tensor x, struct tensor noise,
		    struct tensor signal, struct tensor sigma)
{
	struct cuda_state *s = state_of(k);
	int64_t n = tensor_count(&signal), count = tensor_count(&out);

	CHECK(out.type == DT_F32 && x.type == DT_F32 && noise.type == DT_F32 &&
	      signal.type == DT_F32);
	CHECK(tensor_count(&x) == count && tensor_count(&noise) == count &&
	      tensor_count(&sigma) == n);
	if (!count)
		return;
	mix_noise<<<grid_for(s, count, 256), 256, 0, s->stream>>>(
		(float *)out.data, (const float *)x.data, (const float *)noise.data,
		(const float *)signal.data, (const float *)sigma.data, n, count / n);
	LAUNCHED();
}

struct grid_of_patches {
	int64_t n, h, w, c, p;
};

/* Where element i of the patch vectors lies in the latent. */
static __device__ __forceinline__ int64_t latent_index(const struct grid_of_patches &g, int64_t i)
{
	int64_t channel = i % g.c, x = i / g.c % g.p, y = i / (g.c * g.p) % g.p;
	int64_t patch = i / (g.c * g.p * g.p), across = g.w / g.p, down = g.h / g.p;
	int64_t column = patch % across, row = patch / across % down,
		image = patch / (across * down);

	return ((image * g.h + row * g.p + y) * g.w + column * g.p + x) * g.c + channel;
}

template <typename T>
__global__ void to_patches(T *patches, const float *latent, struct grid_of_patches g)
{
	EACH (i, g.n * g.h * g.w * g.c)
		put(patches + i, latent[latent_index(g, i)]);
}

template <typename T>
__global__ void from_patches(float *latent, const T *patches, struct grid_of_patches g)
{
	EACH (i, g.n * g.h * g.w * g.c)
		latent[latent_index(g, i)] = to_float(patches[i]);
}

static struct grid_of_patches patch_grid(const struct tensor *latent, const struct tensor *patches,
					 int p)
{
	struct grid_of_patches g = { latent->dim[0], latent->dim[1], latent->dim[2], latent->dim[3],
				     p };

	CHECK(latent->type == DT_F32 && latent->rank == 4 && g.h % p == 0 && g.w % p == 0);
	CHECK(tensor_count(latent) == tensor_count(patches));
	return g;
}

void cuda_patchify(struct kernels *k, struct tensor patches, struct tensor latent, int patch)
{
	struct cuda_state *s = state_of(k);
	struct grid_of_patches g = patch_grid(&latent, &patches, patch);
	unsigned grid = grid_for(s, tensor_count(&latent), 256);

	if (!tensor_count(&latent))
		return;
	ACT(patches.type, to_patches<<<grid, 256, 0, s->stream>>>((T *)patches.data,
								  (const float *)latent.data, g));
	LAUNCHED();
}

void cuda_unpatchify(struct kernels *k, struct tensor latent, struct tensor patches, int patch)
{
	struct cuda_state *s = state_of(k);
	struct grid_of_patches g = patch_grid(&latent, &patches, patch);
	unsigned grid = grid_for(s, tensor_count(&latent), 256);

	if (!tensor_count(&latent))
		return;
	ACT(patches.type, from_patches<<<grid, 256, 0, s->stream>>>((float *)latent.data,
								    (const T *)patches.data, g));
	LAUNCHED();
}

template <typename T>
__global__ void embed_time(T *out, const float *time, int64_t n, int64_t half)
{
	EACH (i, n * half) {
		int64_t row = i / half, j = i % half;
		float angle = time[row] * powf(10000.0f, -(float)j / (float)half);

		put(out + row * 2 * half + j, cosf(angle));
		put(out + row * 2 * half + half + j, sinf(angle));
	}
}

void cuda_time_embedding(struct kernels *k, struct tensor out, struct tensor time)
{
	struct cuda_state *s = state_of(k);
	int64_t n = tensor_count(&time), half = out.dim[1] / 2;

	CHECK(time.type == DT_F32 && out.rank == 2 && out.dim[0] == n && out.dim[1] == 2 * half);
	if (!n)
		return;
	ACT(out.type, embed_time<<<grid_for(s, n * half, 256), 256, 0, s->stream>>>(
			      (T *)out.data, (const float *)time.data, n, half));
	LAUNCHED();
}

__global__ void denoise_step(struct denoise d)
{
	float sqrt_abar = d.step[DENOISE_SQRT_ABAR], c_x0 = d.step[DENOISE_X0],
	      sqrt_one_minus_abar = d.step[DENOISE_SQRT_ONE_MINUS_ABAR],
	      c_eps = d.step[DENOISE_EPS], c_x = d.step[DENOISE_X], sigma = d.step[DENOISE_SIGMA];

	EACH (i, d.n) {
		float x = d.x[i], eps = d.eps_c[i], x0, out;

		if (d.eps_u)
			eps = d.eps_u[i] + d.guidance * (eps - d.eps_u[i]);
		x0 = (x - sqrt_one_minus_abar * eps) / sqrt_abar;
		if (d.clamp > 0.0f) {
			x0 = fminf(fmaxf(x0, -d.clamp), d.clamp);
			eps = (x - sqrt_abar * x0) / sqrt_one_minus_abar;
		}
		out = c_x0 * x0 + c_eps * eps + c_x * x;
		if (d.noise && sigma != 0.0f)
			out += sigma * d.noise[i];
		d.x[i] = out;
	}
}

void cuda_denoise(struct kernels *k, const struct denoise *d)
{
	struct cuda_state *s = state_of(k);

	if (!d->n)
		return;
	CHECK(d->x && d->eps_c && d->step);
	denoise_step<<<grid_for(s, d->n, 256), 256, 0, s->stream>>>(*d);
	LAUNCHED();
}
