/* SPDX-License-Identifier: Apache-2.0
 * Clocks and their text forms; see clock.h. */
#include "config.h"
#include "lib/clock.h"

#include <stdio.h>
#include <time.h>

int64_t clock_wall_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t clock_wall_ms(void)
{
	return clock_wall_us() / 1000;
}

int64_t clock_mono_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t clock_mono_ms(void)
{
	return clock_mono_ns() / 1000000;
}

static char *put_digits(char *p, int value, int count, char behind)
{
	for (int i = count; i-- > 0; value /= 10)
		p[i] = (char)('0' + value % 10);
	p[count] = behind;
	return p + count + 1;
}

/* By hand: lists of jobs have ten thousands of them. */
void clock_format_ms(int64_t wall_ms, char out[CLOCK_TEXT_MAX])
{
	static _Thread_local struct tm day; /* of the last one: they are often of one day */
	static _Thread_local time_t day_of = -1; /* none */
	const time_t seconds = wall_ms / 1000, today = seconds < 0 ? -1 : seconds / 86400;
	int second = (int)(seconds % 86400);

	if (today < 0 || today != day_of) {
		gmtime_r(&seconds, &day);
		day_of = today;
		second = day.tm_hour * 3600 + day.tm_min * 60 + day.tm_sec;
	}
	out = put_digits(out, day.tm_year + 1900, 4, '-');
	out = put_digits(out, day.tm_mon + 1, 2, '-');
	out = put_digits(out, day.tm_mday, 2, 'T');
	out = put_digits(out, second / 3600, 2, ':');
	out = put_digits(out, second / 60 % 60, 2, ':');
	out = put_digits(out, second % 60, 2, '.');
	out = put_digits(out, (int)(wall_ms % 1000), 3, 'Z');
	*out = 0;
}

void clock_format_span(double seconds, char out[CLOCK_TEXT_MAX])
{
	long s = (long)(seconds + 0.5);

	if (seconds < 1)
		snprintf(out, CLOCK_TEXT_MAX, "%d ms", (int)(seconds * 1000 + 0.5));
	else if (seconds < 60)
		snprintf(out, CLOCK_TEXT_MAX, "%.1f s", seconds);
	else if (s < 3600)
		snprintf(out, CLOCK_TEXT_MAX, "%ld min %02ld s", s / 60, s % 60);
	else
		snprintf(out, CLOCK_TEXT_MAX, "%ld h %02ld min", s / 3600, s / 60 % 60);
}

void clock_sleep_ms(int64_t ms)
{
	struct timespec t = { ms / 1000, ms % 1000 * 1000000 };

	nanosleep(&t, NULL);
}
