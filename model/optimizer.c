/* SPDX-License-Identifier: Apache-2.0
 * Learning rate and averaging over the steps of a run. */
#include "config.h"
#include "model/optimizer.h"
#include "lib/err.h"

#include <math.h>

#define PI 3.14159265358979323846

double optimizer_lr(int64_t step, int64_t steps, int64_t warmup, double lr, double lr_end)
{
	double done;

	CHECK(step >= 0 && warmup >= 0);
	if (step < warmup)
		return lr * (double)(step + 1) / (double)warmup;
	if (steps - 1 <= warmup)
		return step < steps - 1 ? lr : lr_end;
	done = fmin((double)(step - warmup) / (double)(steps - 1 - warmup), 1);
	return lr_end + (lr - lr_end) * 0.5 * (1 + cos(PI * done));
}

double optimizer_ema_decay(int64_t step, double decay)
{
	return fmin(decay, (double)(step + 1) / (double)(step + 10));
}
