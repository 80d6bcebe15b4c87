/* SPDX-License-Identifier: Apache-2.0
 * Rules of further attempts; see retry.h. */
#include "config.h"
#include "proto/retry.h"
#include "lib/mem.h"
#include "proto/limits.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct row {
	const char *id;
	uint32_t times;
	double delay_s;
} rows[FAILURES] = {
	[TF__FAILURE__FAILURE_OTHER] = { "error", 0, 0 },
#define ANY RETRY_ANY
#define F(id, ENUM, times, delay_s, help) [TF__FAILURE__FAILURE_##ENUM] = { #id, times, delay_s },
#include "proto/retry.def"
#undef F
#undef ANY
};

/* "crash, oom, nan, lost or preempted" */
static const char *names(void)
{
	static char text[80];
	size_t n = 0;

	for (int i = 1; i < FAILURES; i++)
		n += (size_t)snprintf(text + n, sizeof text - n, "%s%s", rows[i].id,
				      i + 2 < FAILURES   ? ", "
				      : i + 1 < FAILURES ? " or "
							 : "");
	return text;
}

const char *failure_name(Tf__Failure failure)
{
	return (unsigned)failure < FAILURES ? rows[failure].id : "error";
}

int retry_parse(const char *text, Tf__RetryRule *out, struct err *e)
{
	size_t len = strcspn(text, "=");
	unsigned long times;
	char *end;

	*out = (Tf__RetryRule)TF__RETRY_RULE__INIT;
	for (int i = 1; i < FAILURES; i++)
		if (strlen(rows[i].id) == len && strncmp(rows[i].id, text, len) == 0)
			out->failure = (Tf__Failure)i;
	times = strtoul(text[len] ? text + len + 1 : "", &end, 10);
	FAIL_IF(out->failure == TF__FAILURE__FAILURE_OTHER || end == text + len + 1 || !text[len] ||
			text[len + 1] == '-' || times > LIMIT_RETRIES,
		e, TF_EUSAGE,
		"--retry is '%.60s', expected %s, and 0 to %u further attempts, such as oom=3 or "
		"oom=3:60 (seconds before the first)",
		text, names(), LIMIT_RETRIES);
	out->has_times = 1;
	out->times = (uint32_t)times;
	if (*end == 0)
		return 0;
	FAIL_IF(*end != ':' || !end[1], e, TF_EUSAGE,
		"--retry is '%.60s': expected ':' and seconds after the number", text);
	out->has_delay_s = 1;
	out->delay_s = strtod(end + 1, &end);
	FAIL_IF(*end, e, TF_EUSAGE, "--retry is '%.60s': the seconds are no number", text);
	return 0;
}

int retry_check(const Tf__JobSpec *spec, struct err *e)
{
	FAIL_IF(spec->n_retry >= FAILURES, e, TF_ELIMIT,
		"retry has %zu rules, at most %d are allowed", spec->n_retry, FAILURES - 1);
	for (size_t i = 0; i < spec->n_retry; i++) {
		const Tf__RetryRule *r = spec->retry[i];

		FAIL_IF(r->failure == TF__FAILURE__FAILURE_OTHER, e, TF_EINVALID,
			"retry: failure is FAILURE_OTHER, expected %s", names());
		FAIL_IF(r->times > LIMIT_RETRIES, e, TF_EINVALID,
			"retry: %s is %u, expected 0 to %u", failure_name(r->failure), r->times,
			LIMIT_RETRIES);
		FAIL_IF(!(r->delay_s >= 0 && r->delay_s <= LIMIT_RETRY_DELAY_S), e, TF_EINVALID,
			"retry: the delay of %s is %g, expected 0 to %u seconds",
			failure_name(r->failure), r->delay_s, LIMIT_RETRY_DELAY_S);
		for (size_t k = 0; k < i; k++)
			FAIL_IF(spec->retry[k]->failure == r->failure, e, TF_EINVALID,
				"retry has two rules for %s, expected one",
				failure_name(r->failure));
	}
	return 0;
}

static const Tf__RetryRule *rule_of(const Tf__JobSpec *spec, Tf__Failure failure)
{
	for (size_t i = 0; i < spec->n_retry; i++)
		if (spec->retry[i]->failure == failure)
			return spec->retry[i];
	return NULL;
}

uint32_t retry_times(const Tf__JobSpec *spec, Tf__Failure failure)
{
	const Tf__RetryRule *r = rule_of(spec, failure);
	uint32_t times = rows[failure].times;

	if (failure == TF__FAILURE__FAILURE_CRASH || failure == TF__FAILURE__FAILURE_LOST)
		times = spec->retries;
	if (r && r->has_times)
		times = r->times;
	return times < LIMIT_RETRIES || times == RETRY_ANY ? times : LIMIT_RETRIES;
}

uint32_t retry_number(const Tf__Job *j, Tf__Failure failure, int64_t now_ms)
{
	bool anew = failure != TF__FAILURE__FAILURE_PREEMPTED && j->started > 0 &&
		    now_ms - j->started >= 1000ll * RETRY_ANEW_S;

	return 1 + (!anew && (size_t)failure < j->n_failed ? j->failed[failure] : 0);
}

int64_t retry_delay_ms(const Tf__JobSpec *spec, Tf__Failure failure, uint32_t n)
{
	const Tf__RetryRule *r = rule_of(spec, failure);
	double s = r && r->has_delay_s ? r->delay_s : rows[failure].delay_s;

	s = ldexp(s, n > 0 && n < 64 ? (int)n - 1 : 0);
	return (int64_t)(1000 * (s < LIMIT_RETRY_DELAY_S ? s : LIMIT_RETRY_DELAY_S));
}
