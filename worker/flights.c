/* SPDX-License-Identifier: Apache-2.0
 * Steps under way; see flights.h. */
#include "config.h"
#include "worker/flights.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <string.h>

int flights_open(struct flights *f, struct kernels *k, size_t width, struct err *e)
{
	CHECK(!f->figures);
	f->k = k;
	f->width = width;
	f->figures = k->ops->host_alloc(k, FLIGHTS_MOST * width * sizeof *f->figures);
	FAIL_IF(!f->figures, e, TF_ENOMEM, "no memory of the host to read losses into");
	return 0;
}

void flights_close(struct flights *f)
{
	if (!f->figures)
		return;
	f->k->ops->sync(f->k); /* what is under way may still write there */
	f->k->ops->host_release(f->k, f->figures);
	f->figures = NULL;
}

struct flight *flights_launch(struct flights *f, uint64_t step)
{
	struct flight *flight = &f->list[f->count];

	CHECK(f->count < FLIGHTS_MOST);
	f->count++;
	*flight = (struct flight) { .step = step,
				    .figures = f->figures + step % FLIGHTS_MOST * f->width };
	return flight;
}

struct flight flights_settle(struct flights *f)
{
	struct flight first = f->list[0];

	CHECK(f->count > 0);
	for (int i = 0; i < first.fetches; i++)
		f->k->ops->fetch_end(f->k, &first.fetch[i]);
	f->count--;
	memmove(f->list, f->list + 1, (size_t)f->count * sizeof *f->list);
	return first;
}

int flights_judge(struct flights *f, const struct flight_result *r, struct err *e)
{
	if (r->counts) {
		f->skipped_in_row = 0;
	} else {
		f->skipped++;
		f->skipped_in_row++;
	}
	FAIL_IF(r->stops && !(r->counts && r->finite), e, TF_ENAN, "%s: not a number", r->words);
	FAIL_IF(f->skipped_in_row > r->limit, e, TF_ENAN,
		"%s: not a number, and neither were the %" PRId64
		" steps before (train.nan_limit)",
		r->words, r->limit);
	return 0;
}
