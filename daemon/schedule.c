/* SPDX-License-Identifier: Apache-2.0
 * Which queued job starts, and with what. A pure function of its input, so that years of arrivals
 * can be played through it in a test. Today: first come, first served among those that fit. */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/mem.h"

struct demand job_demand(const struct machine *m, Tf__JobKind kind, enum job_device device,
			 const struct demand *asked)
{
	static const Tf__JobKind computes[] = { TF__JOB_KIND__VAE, TF__JOB_KIND__TRAIN,
						TF__JOB_KIND__EVAL, TF__JOB_KIND__GENERATE };
	struct demand want = *asked;
	bool gpu = device == DEVICE_CUDA;

	if (device == DEVICE_ANY && m->gpus) {
		gpu = m->slots == 0;
		for (size_t i = 0; i < ARRAY_LEN(computes); i++)
			gpu |= kind == computes[i];
	}
	if (gpu && want.gpus == 0 && want.gpu_mem == 0)
		want.gpus = 1;
	return want;
}

size_t schedule_decide(const struct schedule_input *in, struct decision *out, size_t room)
{
	struct room free;
	size_t n = 0;

	room_init(&free, in->machine, false);
	for (size_t i = 0; i < in->holdings; i++)
		room_take(&free, in->machine, &in->holding[i]);
	for (size_t i = 0; i < in->count && n < room; i++) {
		const struct job *j = in->job[i];
		struct holding h;
		struct demand want;

		if (!(free.slots | free.whole | free.part))
			break;
		if (!j || j->state != TF__JOB_STATE__QUEUED)
			continue;
		want = job_demand(in->machine, (Tf__JobKind)j->kind, (enum job_device)j->device,
				  &j->demand);
		if (!room_place(&free, &want, &h))
			continue;
		h.job = j->id;
		room_take(&free, in->machine, &h);
		out[n++] = (struct decision){ j->id, h };
	}
	return n;
}
