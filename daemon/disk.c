/* SPDX-License-Identifier: Apache-2.0
 * Room on the disk of the state. Below min_free_mib no new work is taken or started, so that what
 * runs can end; above it everything goes on by itself. Looked at once a second. */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/log.h"

#include <sys/statvfs.h>

void disk_tick(struct daemon *d)
{
	struct statvfs disk;
	bool low;

	if (statvfs(d->folder, &disk) < 0)
		return; /* the commits will say so */
	d->disk_free = (uint64_t)disk.f_bavail * disk.f_frsize;
	low = d->disk_free < (uint64_t)d->options.min_free_mib << 20;
	if (low && !d->disk_low)
		log_error("the disk of %s has %llu MiB free, less than %lld: no new work until "
			  "there is more",
			  d->folder, (unsigned long long)d->disk_free >> 20,
			  (long long)d->options.min_free_mib);
	else if (!low && d->disk_low)
		log_info("the disk of %s has %llu MiB free again: work goes on", d->folder,
			 (unsigned long long)d->disk_free >> 20);
	d->disk_low = low;
}

int disk_check(const struct daemon *d, struct err *e)
{
	FAIL_IF(d->disk_low, e, TF_ENOSPACE,
		"the disk of the state has %llu MiB free, less than %lld (option min_free_mib): no "
		"new work is taken until there is more; running jobs go on",
		(unsigned long long)d->disk_free >> 20, (long long)d->options.min_free_mib);
	return 0;
}
