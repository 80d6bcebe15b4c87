/* SPDX-License-Identifier: Apache-2.0
 * The noise schedule; see schedule.h. Computed in double: it is host work, a few numbers a step. */
#include "config.h"
#include "model/schedule.h"

#include <math.h>

#define PI 3.14159265358979323846

double schedule_abar(int64_t t)
{
	double root;

	CHECK(t >= 0 && t <= TIMESTEPS);
	if (t == 0)
		return 1;
	root = cos(((double)t / TIMESTEPS + 0.008) / 1.008 * PI / 2);
	return fmin(fmax(root * root, 1e-5), 0.9999);
}

int64_t schedule_time(int64_t k, int64_t steps)
{
	CHECK(steps >= 1 && k >= 0 && k <= steps);
	return (int64_t)floor((double)TIMESTEPS * (1 - (double)k / (double)steps) + 0.5);
}

static int32_t draw(uint64_t seed, enum philox_purpose purpose, int64_t sample, uint64_t element,
		    int64_t most)
{
	CHECK(most >= 1 && most <= TIMESTEPS);
	return 1 + (int32_t)philox_below(seed, purpose, (uint64_t)sample, element, (uint64_t)most);
}

int32_t schedule_draw(uint64_t seed, int64_t sample, int64_t most)
{
	return draw(seed, PHILOX_TIME, sample, 0, most);
}

/* The first blocks of this stream are the noise; the time lies far behind them. */
int32_t schedule_draw_eval(uint64_t seed, int64_t sample, int64_t most)
{
	return draw(seed, PHILOX_EVAL, sample, UINT64_C(1) << 40, most);
}

struct schedule_step schedule_step(enum schedule_kind kind, int64_t t, int64_t s)
{
	double a = schedule_abar(t), b = schedule_abar(s), ratio = a / b;
	struct schedule_step out = { .sqrt_abar = (float)sqrt(a),
				     .sqrt_one_minus_abar = (float)sqrt(1 - a) };

	CHECK(s >= 0 && s < t);
	if (s == 0) {
		out.c_x0 = 1;
	} else if (kind == SCHEDULE_DDIM) {
		out.c_x0 = (float)sqrt(b);
		out.c_eps = (float)sqrt(1 - b);
	} else {
		out.c_x0 = (float)(sqrt(b) * (1 - ratio) / (1 - a));
		out.c_x = (float)(sqrt(ratio) * (1 - b) / (1 - a));
		out.sigma = (float)sqrt((1 - b) / (1 - a) * (1 - ratio));
	}
	return out;
}
