/* SPDX-License-Identifier: Apache-2.0
 * The cosine noise schedule (Nichol & Dhariwal 2021) and the coefficients of a denoising step
 * (DDPM: Ho et al. 2020; DDIM: Song et al. 2021, eta 0). Times are 0..TIMESTEPS; 0 is the clean
 * picture. */
#ifndef MODEL_SCHEDULE_H
#define MODEL_SCHEDULE_H

#include "model/dims.h"

#include <stdint.h>

/* cos^2(((t / 1000 + 0.008) / 1.008) pi / 2) clamped to [1e-5, 0.9999]; 1 at t = 0. */
double schedule_abar(int64_t t);
/* The k-th time of `steps` denoising steps: round(1000 (1 - k / steps)), k = 0..steps. */
int64_t schedule_time(int64_t k, int64_t steps);
/* A timestep of training, uniform in 1..most, of the stream (seed, PHILOX_TIME, sample). */
int32_t schedule_draw(uint64_t seed, int64_t sample, int64_t most);
/* The fixed timestep of sample `sample` in held-out losses, uniform in 1..most. */
int32_t schedule_draw_eval(uint64_t seed, int64_t sample, int64_t most);

enum schedule_kind { SCHEDULE_DDPM, SCHEDULE_DDIM };

/* One step from time t down to s (s < t): x_s = c_x0 x0 + c_eps eps + c_x x_t + sigma noise, with
 * x0 and eps as in struct denoise (kernels.h). At s = 0 it is x0 exactly. DDPM: the posterior's
 * mean and variance. */
struct schedule_step {
	float sqrt_abar, sqrt_one_minus_abar;   /* of t */
	float c_x0, c_eps, c_x, sigma;
};

struct schedule_step schedule_step(enum schedule_kind kind, int64_t t, int64_t s);

#endif
