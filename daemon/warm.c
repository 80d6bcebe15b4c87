/* SPDX-License-Identifier: Apache-2.0
 * Warm workers. */
#include "config.h"
#include "daemon/daemon.h"

int handle_worker_next(struct daemon *d, struct request *r)
{
	(void)d;
	return err_set(&r->err, TF_EFENCED, "there is no other job");
}
