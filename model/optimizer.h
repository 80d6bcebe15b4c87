/* SPDX-License-Identifier: Apache-2.0
 * What changes from step to step in training. Steps count from 0. */
#ifndef MODEL_OPTIMIZER_H
#define MODEL_OPTIMIZER_H

#include <stdint.h>

/* Linear warm-up over the first `warmup` steps (lr (step + 1) / warmup), then a cosine from lr to
 * lr_end at the last step of `steps`. */
double optimizer_lr(int64_t step, int64_t steps, int64_t warmup, double lr, double lr_end);
/* Decay of the averaged weights at a step: min(decay, (step + 1) / (step + 10)). */
double optimizer_ema_decay(int64_t step, double decay);

#endif
