/* SPDX-License-Identifier: Apache-2.0
 * Between the files of transfuse-notify. */
#ifndef DAEMON_NOTIFY_H
#define DAEMON_NOTIFY_H

#include "lib/err.h"

#include <stdbool.h>
#include <stdint.h>

/* Posts a JSON text; 0 when the answer is a 2xx. *again: another try may succeed. The sentence
 * names the host alone: an address may hold a secret. */
int web_post(const char *url, const char *body, int64_t timeout_ms, bool *again, struct err *e);

#endif
