/* SPDX-License-Identifier: Apache-2.0
 * One-line logs to stderr; see log.h. */
#include "config.h"
#include "lib/log.h"
#include "lib/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

static const char *log_component = "transfused";
static enum log_level log_least = LOG_INFO;
static uint64_t log_job;

void log_init(const char *component, enum log_level level)
{
	log_component = component;
	log_least = level;
}

void log_set_job(uint64_t job)
{
	log_job = job;
}

static int escape(char *to, int room, const char *from)
{
	int n = 0;

	for (; *from && n + 4 < room; from++) {
		if ((unsigned char)*from < 32 || *from == 127)
			n += snprintf(to + n, room - n, "\\x%02x", (unsigned char)*from);
		else
			to[n++] = *from;
	}
	to[n] = 0;
	return n;
}

void log_line(enum log_level level, uint64_t job, const char *fmt, ...)
{
	static const char *const names[] = { "DEBUG", "INFO", "WARN", "ERROR" };
	char text[2048], line[4096], when[CLOCK_TEXT_MAX];
	va_list ap;
	int n;

	if (level < log_least)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	clock_format_ms(clock_wall_ms(), when);
	n = snprintf(line, sizeof line, "%s %s %s ", names[level], when, log_component);
	if (job || log_job)
		n += snprintf(line + n, sizeof line - n, "job=%llu ",
			      (unsigned long long)(job ? job : log_job));
	n += escape(line + n, (int)sizeof line - n - 1, text);
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, n) < 0)
		return; /* there is nowhere left to say it */
}
