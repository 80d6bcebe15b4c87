/* SPDX-License-Identifier: Apache-2.0
 * The steps of a training run; see train.h. A step is launched, and settled once its losses have
 * come, while the device is busy with those behind it: nothing in between waits for the device.
 * Whether a step counts, the device decides by itself (struct adamw); the host learns of it when
 * the step settles. */
#include "config.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "model/optimizer.h"
#include "worker/train.h"

#include <inttypes.h>
#include <math.h>

enum figure { FIGURE_LM, FIGURE_DIFFUSION, FIGURE_NORM2, FIGURES };

int train_open_steps(struct training *t, struct err *e)
{
	const struct kernels *k = t->job->kernels;

	t->figures = k->ops->host_alloc(t->job->kernels,
					FLIGHTS_MOST * FIGURES * sizeof *t->figures);
	FAIL_IF(!t->figures, e, TF_ENOMEM, "no memory of the host to read losses into");
	return 0;
}

void train_close_steps(struct training *t)
{
	struct kernels *k = t->job->kernels;

	if (!t->figures)
		return;
	k->ops->sync(k); /* what is under way may still write there */
	k->ops->host_release(k, t->figures);
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
	struct flight *f = &t->flight[t->flights++];

	*f = (struct flight) { .step = t->step, .positions = t->positions, .lr = lr };
	f->figures = t->figures + t->step % FLIGHTS_MOST * FIGURES;
	pass_losses_begin(t->pass, &f->sums, f->figures + FIGURE_LM);
	params_norm2_begin(&t->model.params, &f->norm2, f->figures + FIGURE_NORM2);
}

int train_launch(struct training *t, struct err *e)
{
	double lr = optimizer_lr((int64_t)t->step, t->x.train.steps, t->x.train.warmup,
				 t->x.train.lr, t->x.train.lr_end);
	struct pass_totals totals;

	CHECK(t->flights < FLIGHTS_MOST);
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
					    { "skipped", (double)t->skipped } },
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
	bool counts = isfinite(grad_norm);

	if (counts) {
		t->skipped_in_row = 0;
	} else {
		t->model.params.left_out++;
		t->skipped++;
		t->skipped_in_row++;
	}
	FAIL_IF(t->x.train.nan == NAN_STOP && !(counts && isfinite(l->loss)), e, TF_ENAN,
		"step %" PRIu64 ": loss %g (text %g, pictures %g), gradient norm %g: not a number",
		f->step, l->loss, l->lm, l->diffusion, grad_norm);
	FAIL_IF(t->skipped_in_row > t->x.train.nan_limit, e, TF_ENAN,
		"step %" PRIu64 ": loss %g, gradient norm %g: not a number, and neither were the %"
		PRId64 " steps before (train.nan_limit)",
		f->step, l->loss, grad_norm, t->x.train.nan_limit);
	return 0;
}

static int settle_first(struct training *t, struct err *e)
{
	struct kernels *k = t->job->kernels;
	struct flight f = t->flight[0];
	double grad_norm;

	k->ops->fetch_end(k, &f.sums);
	k->ops->fetch_end(k, &f.norm2);
	for (int i = 1; i < t->flights; i++)
		t->flight[i - 1] = t->flight[i];
	t->flights--;
	pass_losses_of(t->pass, f.figures + FIGURE_LM, &t->losses);
	grad_norm = sqrt((double)f.figures[FIGURE_NORM2]);
	TRY(judge(t, &f, grad_norm, e));
	tell(t, &f, grad_norm);
	return 0;
}

int train_settle(struct training *t, int most, struct err *e)
{
	while (t->flights > most)
		TRY(settle_first(t, e));
	return 0;
}
