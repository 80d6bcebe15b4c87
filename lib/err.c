/* SPDX-License-Identifier: Apache-2.0
 * Error codes and sentences; see err.h. No state but the program's name. */
#include "config.h"
#include "lib/err.h"
#include "lib/utf8.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *program = "transfused";
static void (*die_hook)(int status, const char *text);
static _Thread_local bool dying; /* the hook died of something itself */

static const struct { int code; const char *name, *text; } table[] = {
#define E(name, number, text) { number, #name, text },
#include "lib/errors.def"
#undef E
};

const char *err_name(int code)
{
	for (size_t i = 0; i < sizeof table / sizeof *table; i++)
		if (table[i].code == code)
			return table[i].name;
	return "TF_E?";
}

const char *err_text(int code)
{
	for (size_t i = 0; i < sizeof table / sizeof *table; i++)
		if (table[i].code == code)
			return table[i].text;
	return "unknown error";
}

int err_set(struct err *e, int code, const char *fmt, ...)
{
	va_list ap;

	if (!e || e->code)
		return code;
	e->code = code;
	va_start(ap, fmt);
	vsnprintf(e->text, sizeof e->text, fmt, ap);
	va_end(ap);
	utf8_mend(e->text);
	return code;
}

static int code_of_errno(int number)
{
	switch (number) {
	case ENOSPC: case EDQUOT: return TF_ENOSPACE;
	case ENOENT: return TF_ENOTFOUND;
	case ENOMEM: return TF_ENOMEM;
	default: return TF_EIO;
	}
}

int err_errno(struct err *e, const char *fmt, ...)
{
	int number = errno;
	int code = code_of_errno(number);
	char text[ERR_TEXT_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return err_set(e, code, "%s: %s", text, strerror(number));
}

int err_prefix(struct err *e, const char *fmt, ...)
{
	char prefix[ERR_TEXT_MAX], text[ERR_TEXT_MAX];
	va_list ap;

	if (!e)
		return TF_EINTERNAL;
	va_start(ap, fmt);
	vsnprintf(prefix, sizeof prefix, fmt, ap);
	va_end(ap);
	memcpy(text, e->text, sizeof text);
	snprintf(e->text, sizeof e->text, "%.500s: %.500s", prefix, text);
	utf8_mend(e->text);
	return e->code;
}

void err_clear(struct err *e)
{
	if (!e)
		return;
	e->code = 0;
	e->text[0] = 0;
}

void die_set_program(const char *name)
{
	program = name;
}

void die_set_hook(void (*hook)(int status, const char *text))
{
	die_hook = hook;
}

void die(int status, const char *fmt, ...)
{
	char text[ERR_TEXT_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	fprintf(stderr, "%s: %s\n", program, text);
	if (die_hook && !dying) {
		dying = true;
		die_hook(status, text);
	}
	exit(status);
}

void bug_at(const char *file, int line, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "%s: bug at %s:%d: ", program, file, line);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	abort();
}
