/* SPDX-License-Identifier: Apache-2.0
 * Steps of training that were launched and are not settled: the device has the next one waiting
 * when it has done one, and the host learns of a step's figures while those behind it run. Whether
 * a step counts, the device decides by itself (struct adamw); what the host then makes of it is the
 * policy of train.nan. Main thread only. */
#ifndef WORKER_FLIGHTS_H
#define WORKER_FLIGHTS_H

#include "kernels/kernels.h"

#define FLIGHTS_MOST 3
#define FLIGHT_FETCHES 3

struct flight {
	uint64_t step;      /* counted from 1 */
	uint64_t positions; /* for the caller: seen in all, this step's included */
	double lr;          /* for the caller */
	struct fetch fetch[FLIGHT_FETCHES];
	int fetches;
	float *figures; /* where they go: `width` of host_alloc's memory */
};

struct flights {
	struct kernels *k;
	size_t width;
	struct flight list[FLIGHTS_MOST]; /* the oldest first */
	int count;
	float *figures;
	uint64_t skipped; /* settled steps that the device left out; a resumed run sets it */
	int64_t skipped_in_row;
};

/* width: floats of a step's figures. TF_ENOMEM. */
int flights_open(struct flights *f, struct kernels *k, size_t width, struct err *e);
void flights_close(struct flights *f);
/* The place of a step that is being launched, of which there is one: the caller begins its fetches
 * and counts them. Valid until the next settles. */
struct flight *flights_launch(struct flights *f, uint64_t step);
/* Waits for the oldest one's figures, which stay until FLIGHTS_MOST - 1 more have been launched. */
struct flight flights_settle(struct flights *f);

/* What a settled step came to. */
struct flight_result {
	bool counts;       /* the device did not leave it out */
	bool finite;       /* its losses are numbers */
	bool stops;        /* train.nan: stop */
	int64_t limit;     /* train.nan_limit */
	const char *words; /* "step 3: loss nan, gradient norm nan" */
};
/* Counts it. TF_ENAN when it ends the run. */
int flights_judge(struct flights *f, const struct flight_result *r, struct err *e);

#endif
