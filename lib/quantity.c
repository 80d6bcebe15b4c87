/* SPDX-License-Identifier: Apache-2.0
 * Sizes and spans of time as people write them; see quantity.h. */
#include "config.h"
#include "lib/quantity.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define SPAN_SECONDS_MAX (100ll * 365 * 86400)

static const char size_letters[] = "KMGT";

/* Decimal digits at *text, which is moved behind them; false: none, or too many. */
static bool take_digits(const char **text, uint64_t *out)
{
	const char *start = *text;
	uint64_t n = 0;

	for (; **text >= '0' && **text <= '9'; ++*text) {
		if (n > (UINT64_MAX - 9) / 10)
			return false;
		n = 10 * n + (uint64_t)(**text - '0');
	}
	*out = n;
	return *text > start;
}

int size_parse(const char *what, const char *text, uint64_t *bytes, struct err *e)
{
	const char *p = text, *letter;
	int shift = 0;
	uint64_t n = 0;
	bool good = take_digits(&p, &n);

	letter = *p ? strchr(size_letters, *p) : NULL;
	if (letter) {
		shift = 10 * (int)(letter - size_letters + 1);
		p++;
		if (strcmp(p, "B") == 0 || strcmp(p, "iB") == 0)
			p += strlen(p);
	}
	FAIL_IF(!good || *p || n > (UINT64_MAX >> 1) >> shift, e, TF_EINVALID,
		"%s is '%.40s', expected a size such as 20G or 512M", what, text);
	*bytes = n << shift;
	return 0;
}

void size_format(uint64_t bytes, char out[SIZE_TEXT_MAX])
{
	int unit = -1;

	while (unit < 3 && bytes > 0 && bytes % 1024 == 0) {
		bytes /= 1024;
		unit++;
	}
	snprintf(out, SIZE_TEXT_MAX, "%" PRIu64 "%.1s", bytes, unit < 0 ? "" : size_letters + unit);
}

int span_parse(const char *what, const char *text, int64_t *seconds, struct err *e)
{
	static const struct {
		char letter;
		int64_t seconds;
	} unit[] = { { 'd', 86400 }, { 'h', 3600 }, { 'm', 60 }, { 's', 1 } };
	const char *p = text;
	size_t next = 0;
	int64_t sum = 0;
	bool good = *p;

	while (good && *p) {
		uint64_t n = 0;

		good = take_digits(&p, &n) && n <= SPAN_SECONDS_MAX;
		while (good && *p && next < 4 && unit[next].letter != *p)
			next++;
		good = good && next < 4 && (*p || next == 0);
		if (!good)
			break;
		sum += (int64_t)n * (*p ? unit[next].seconds : 1);
		p += *p != 0;
		next++;
	}
	FAIL_IF(!good || sum > SPAN_SECONDS_MAX, e, TF_EINVALID,
		"%s is '%.40s', expected a span of time such as 90s, 45m or 1h30m", what, text);
	*seconds = sum;
	return 0;
}
