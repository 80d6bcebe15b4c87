/* SPDX-License-Identifier: Apache-2.0
 * Which queued job starts on which free slot. A pure function of its input, so that years of
 * arrivals can be played through it in a test. Today: first come, first served among those a free
 * slot suits. */
#include "config.h"
#include "daemon/daemon.h"

#include <string.h>

static bool slot_suits(const struct slot *s, enum job_device device)
{
	return device == DEVICE_ANY || device == device_parse(s->device);
}

size_t schedule_decide(const struct schedule_input *in, struct decision *out, size_t room)
{
	bool taken[LIMIT_SLOTS] = { false };
	size_t n = 0, left = 0;

	for (size_t s = 0; s < in->slots; s++) {
		taken[s] = in->slot[s].job != 0;
		left += !taken[s];
	}
	for (size_t i = 0; i < in->count && left > 0 && n < room; i++) {
		const struct job *j = in->job[i];

		if (!j || j->state != TF__JOB_STATE__QUEUED)
			continue;
		for (size_t s = 0; s < in->slots; s++) {
			if (taken[s] || !slot_suits(&in->slot[s], (enum job_device)j->device))
				continue;
			out[n++] = (struct decision){ j->id, (int)s };
			taken[s] = true;
			left--;
			break;
		}
	}
	return n;
}
