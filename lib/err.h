/* SPDX-License-Identifier: Apache-2.0
 * Errors: functions return 0 or a negative TF_E* code (errors.def); the sentence for the person
 * goes into a struct err that the caller owns and may pass as NULL.
 *
 * Three severities: BUG() for what cannot be (aborts); die() in main functions, at startup and in
 * workers; everything else returns. */
#ifndef LIB_ERR_H
#define LIB_ERR_H

#include <stdarg.h>
#include <stddef.h>

enum tf_error {
#define E(name, number, text) name = number,
#include "lib/errors.def"
#undef E
};

#define ERR_TEXT_MAX 1024

struct err {
	int code;                 /* TF_OK or the code last set */
	char text[ERR_TEXT_MAX];  /* one sentence, no newline; cut when too long; always UTF-8 */
};

#define ERR_INIT { 0, { 0 } }

/* The table's words for a code; "unknown error" for one it does not have. Never NULL. */
const char *err_name(int code);
const char *err_text(int code);

/* Sets *e (may be NULL) and returns code, so that it can be returned in one line.
 * The first sentence wins: an error already set is kept (err_clear first to replace it). */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* The same with ": <strerror(errno)>" appended; ENOSPC/EDQUOT become TF_ENOSPACE, ENOENT
 * TF_ENOTFOUND, ENOMEM TF_ENOMEM, anything else TF_EIO. */
int err_errno(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Puts "<prefix>: " before the sentence of an error already set. Returns e's code. */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void err_clear(struct err *e);

/* Prints "<program>: <sentence>" to stderr and exits with status. */
void die(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));
#define EXIT_MEMORY 41 /* exit status when there is no memory */
void die_set_program(const char *name);
/* Called by die before it exits, from whatever thread dies: a worker leaves its outcome. NULL:
 * none. */
void die_set_hook(void (*hook)(int status, const char *text));

void bug_at(const char *file, int line, const char *fmt, ...)
	__attribute__((format(printf, 3, 4), noreturn));
/* States a broken invariant and aborts. CHECK stays on in release builds. */
#define BUG(...) bug_at(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(cond) do { if (!(cond)) BUG("not so: %s", #cond); } while (0)

/* Leaves the function with the code of a failed call. */
#define TRY(expr) do { int try_rc_ = (expr); if (try_rc_ < 0) return try_rc_; } while (0)
/* Leaves the function with code and a sentence when cond holds. */
#define FAIL_IF(cond, e, code, ...) \
	do { if (cond) return err_set((e), (code), __VA_ARGS__); } while (0)

#endif
