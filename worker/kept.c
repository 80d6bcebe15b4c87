/* SPDX-License-Identifier: Apache-2.0
 * Kernels and the last model, from one job to the next; see kept.h. */
#include "config.h"
#include "worker/kept.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <string.h>

void kept_release(struct kept *k)
{
	opened_release(&k->opened); /* before the kernels its memory came from */
	if (k->kernels)
		kernels_close(k->kernels);
	xfree(k->device);
	*k = (struct kept) { 0 };
}

int kept_kernels(struct kept *k, const char *device, int threads, struct kernels **out,
		 struct err *e)
{
	if (k->kernels && (strcmp(k->device, device) != 0 || k->threads != threads))
		kept_release(k);
	if (!k->kernels) {
		TRY(kernels_open(device, threads, &k->kernels, e));
		k->device = xstrdup(device);
		k->threads = threads;
	}
	*out = k->kernels;
	return 0;
}

bool kept_take(struct kept *k, const char *key, struct opened *out)
{
	if (!k->opened.key || strcmp(k->opened.key, key) != 0) {
		opened_release(&k->opened); /* another is coming: its memory may be needed */
		return false;
	}
	*out = k->opened;
	memset(&k->opened, 0, sizeof k->opened);
	return true;
}

void kept_put(struct kept *k, struct opened *o)
{
	CHECK(o->key);
	opened_release(&k->opened);
	k->opened = *o;
	memset(o, 0, sizeof *o);
}
