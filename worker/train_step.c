/* SPDX-License-Identifier: Apache-2.0
 * The steps of a training run; see train.h. A step is launched, and settled once its losses have
 * come, while the device is busy with those behind it (flights.h): nothing in between waits for the
 * device. */
#include "config.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "model/optimizer.h"
#include "worker/train.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

enum figure { FIGURE_LM, FIGURE_DIFFUSION, FIGURE_NORM2, FIGURES };

int train_open_steps(struct training *t, struct err *e)
{
	return flights_open(&t->flights, t->job->kernels, FIGURES, e);
}

void train_close_steps(struct training *t)
{
	flights_close(&t->flights);
}

/* ---- launching */

static int load_batches(struct training *t, struct pass_totals *totals, struct err *e)
{
	*totals = (struct pass_totals) { .lambda = (float)t->x.train.lambda };
	for (int64_t i = 0; i < t->micro; i++) {
		struct batch *b = &t->batch[i];

		TRY(loader_next(t->loader, b, NULL, e));
		totals->targets += b->targets;
		totals->noised += b->noised;
		t->images += (uint64_t)b->images;
		for (int64_t s = 0; s < t->dims.B; s++)
			t->positions += (uint64_t)b->used[s];
	}
	return 0;
}

static void update(struct training *t, double lr)
{
	double decay = optimizer_ema_decay((int64_t)t->step, t->x.train.ema);
	struct params_update u = {
		.lr = (float)lr,
		.beta1 = (float)t->x.train.beta1,
		.beta2 = (float)t->x.train.beta2,
		.eps = (float)t->x.train.eps,
		.weight_decay = (float)t->x.train.weight_decay,
		.clip = (float)t->x.train.clip,
		.grad_scale = 1,
		.average = t->average,
		.average_weight = (float)(1 - decay),
	};

	params_step(&t->model.params, &u);
}

/* The losses and the norm of the step just launched set out for the host. */
static void take_off(struct training *t, double lr)
{
	struct flight *f = flights_launch(&t->flights, t->step);

	f->positions = t->positions;
	f->lr = lr;
	pass_losses_begin(t->pass, &f->fetch[f->fetches++], f->figures + FIGURE_LM);
	params_norm2_begin(&t->model.params, &f->fetch[f->fetches++], f->figures + FIGURE_NORM2);
}

int train_launch(struct training *t, struct err *e)
{
	double lr = optimizer_lr((int64_t)t->step, t->x.train.steps, t->x.train.warmup,
				 t->x.train.lr, t->x.train.lr_end);
	struct pass_totals totals;

	TRY(load_batches(t, &totals, e));
	params_zero_gradients(&t->model.params);
	for (int64_t i = 0; i < t->micro; i++)
		pass_run(t->pass, &t->batch[i], &totals);
	if (fault_hit("train-loss"))
		pass_spoil(t->pass);
	update(t, lr);
	t->step++;
	take_off(t, lr);
	return 0;
}

/* ---- settling */

static void tell(struct training *t, const struct flight *f, double grad_norm)
{
	const struct pass_losses *losses = &t->losses;
	double seconds = (double)(clock_mono_ns() - t->started_ns) / 1e9;
	double rate = (double)(f->positions - t->started_positions) / (seconds > 0 ? seconds : 1);

	job_metrics(t->job, f->step,
		    (struct job_metric[]) { { "loss", losses->loss },
					    { "lm", losses->lm },
					    { "diffusion", losses->diffusion },
					    { "lr", f->lr },
					    { "grad_norm", grad_norm },
					    { "positions_s", rate },
					    { "skipped", (double)t->flights.skipped } },
		    7);
	job_gauge(t->job, "loss", losses->loss);
	job_gauge(t->job, "lm", losses->lm);
	job_gauge(t->job, "diffusion", losses->diffusion);
	job_gauge(t->job, "lr", f->lr);
	job_gauge(t->job, "positions_s", rate);
	job_report(t->job, "training", f->step, (uint64_t)t->x.train.steps, "step");
}

/* A step that the device left out, or losses that are no numbers: the policy. */
static int judge(struct training *t, const struct flight *f, double grad_norm, struct err *e)
{
	const struct pass_losses *l = &t->losses;
	char words[200];
	const struct flight_result r = { isfinite(grad_norm), isfinite(l->loss),
					 t->x.train.nan == NAN_STOP, t->x.train.nan_limit, words };

	snprintf(words, sizeof words,
		 "step %" PRIu64 ": loss %g (text %g, pictures %g), gradient norm %g", f->step,
		 l->loss, l->lm, l->diffusion, grad_norm);
	t->model.params.left_out += !r.counts;
	return flights_judge(&t->flights, &r, e);
}

static int settle_first(struct training *t, struct err *e)
{
	struct flight f = flights_settle(&t->flights);
	double grad_norm = sqrt((double)f.figures[FIGURE_NORM2]);

	pass_losses_of(t->pass, f.figures + FIGURE_LM, &t->losses);
	TRY(judge(t, &f, grad_norm, e));
	tell(t, &f, grad_norm);
	return 0;
}

int train_settle(struct training *t, int most, struct err *e)
{
	while (t->flights.count > most)
		TRY(settle_first(t, e));
	return 0;
}
