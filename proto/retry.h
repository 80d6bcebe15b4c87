/* SPDX-License-Identifier: Apache-2.0
 * When a failed attempt is followed by another: a rule for each kind of failure (retry.def), which
 * a job may change. */
#ifndef PROTO_RETRY_H
#define PROTO_RETRY_H

#include "lib/err.h"
#include "proto/transfused.pb-c.h"

#include <stdint.h>

#define FAILURES (TF__FAILURE__FAILURE_PREEMPTED + 1)
#define RETRY_ANY UINT32_MAX /* as often as it happens */

const char *failure_name(Tf__Failure failure); /* "crash", "oom", ...; "error" for OTHER */
/* "oom=3" or "oom=3:60" (further attempts, seconds before the first). */
int retry_parse(const char *text, Tf__RetryRule *out, struct err *e);
int retry_check(const Tf__JobSpec *spec, struct err *e);
/* How many further attempts the job gets after failures of this kind; may be RETRY_ANY. */
uint32_t retry_times(const Tf__JobSpec *spec, Tf__Failure failure);
/* Which failure of its kind it is, from 1, when the attempt fails now. One that had run for long
 * counts as the first: what stops a job every few days does not add up over months. */
#define RETRY_ANEW_S 3600
uint32_t retry_number(const Tf__Job *j, Tf__Failure failure, int64_t now_ms);
/* Milliseconds until the next attempt after the n-th failure (from 1) of this kind. */
int64_t retry_delay_ms(const Tf__JobSpec *spec, Tf__Failure failure, uint32_t n);

#endif
