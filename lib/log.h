/* SPDX-License-Identifier: Apache-2.0
 * Logs: one line to stderr, `LEVEL time component job=ID text key=value ...`; nothing secret goes
 * in.
 * An error is logged once, where it is handled. Safe from any thread (one write per line). */
#ifndef LIB_LOG_H
#define LIB_LOG_H

#include <stdint.h>

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* component: the program's short name, kept by pointer. Lines below level are dropped. */
void log_init(const char *component, enum log_level level);
/* The job all further lines of this process speak of (0: none). */
void log_set_job(uint64_t job);
/* job 0 means the one of log_set_job. Control characters in the text are shown escaped. */
void log_line(enum log_level level, uint64_t job, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

#define log_debug(...) log_line(LOG_DEBUG, 0, __VA_ARGS__)
#define log_info(...) log_line(LOG_INFO, 0, __VA_ARGS__)
#define log_warn(...) log_line(LOG_WARN, 0, __VA_ARGS__)
#define log_error(...) log_line(LOG_ERROR, 0, __VA_ARGS__)

#endif
