/* SPDX-License-Identifier: Apache-2.0
 * Time: wall clock for records and people, monotonic for measuring and timeouts. */
#ifndef LIB_CLOCK_H
#define LIB_CLOCK_H

#include <stdint.h>

#define CLOCK_TEXT_MAX 32

int64_t clock_wall_ms(void);     /* milliseconds since 1970, UTC */
int64_t clock_wall_us(void);
int64_t clock_mono_ns(void);     /* monotonic nanoseconds */
int64_t clock_mono_ms(void);
/* ISO 8601 in UTC with milliseconds: 2026-01-31T12:00:00.123Z. */
void clock_format_ms(int64_t wall_ms, char out[CLOCK_TEXT_MAX]);
/* A duration for people: "850 ms", "12.3 s", "4 min 05 s", "3 h 12 min". */
void clock_format_span(double seconds, char out[CLOCK_TEXT_MAX]);
void clock_sleep_ms(int64_t ms);

#endif
