/* SPDX-License-Identifier: Apache-2.0
 * The private memory of this process, as the system counts it. */
#ifndef WORKER_MEMORY_H
#define WORKER_MEMORY_H

#include <stdint.h>

/* RssAnon of /proc/self/status in bytes; 0 where it cannot be had. Safe from any thread. */
int64_t memory_rss_anon(void);

#endif
