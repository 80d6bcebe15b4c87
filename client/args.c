/* SPDX-License-Identifier: Apache-2.0
 * The command line of a verb: options by the rows of options.def through getopt_long, operands
 * by the verb's row. */
#include "config.h"
#include "client/client.h"
#include "lib/mem.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONG_ONLY 256 /* getopt's value of an option without a letter: LONG_ONLY + id */

const struct option_row option_rows[OPTIONS] = {
#define O(id, name, letter, argument, help) { name, letter, argument, help },
#include "client/options.def"
#undef O
};

static void words_add(struct words *w, char *word)
{
	w->word = xrealloc(w->word, w->count + 1, sizeof *w->word);
	w->word[w->count++] = word;
}

/* Tables for getopt_long of what the verb takes. */
static void make_tables(const struct verb *v, char *letters, struct option *table)
{
	*letters++ = ':';
	for (int o = 0; o < OPTIONS; o++) {
		const struct option_row *row = &option_rows[o];

		if (!verb_takes(v, o))
			continue;
		*table++ = (struct option){ row->name, row->argument != NULL, NULL,
					    LONG_ONLY + o };
		if (!row->letter)
			continue;
		*letters++ = row->letter;
		if (row->argument)
			*letters++ = ':';
	}
	*letters = 0;
	*table = (struct option){ 0 };
}

static int option_of(const struct verb *v, int code)
{
	if (code >= LONG_ONLY)
		return code - LONG_ONLY;
	for (int o = 0; o < OPTIONS; o++)
		if (option_rows[o].letter == code && verb_takes(v, o))
			return o;
	return -1;
}

static int unknown_option(const struct verb *v, const char *text, struct err *e)
{
	const char *near = strncmp(text, "--", 2) == 0 ? suggest_option(v, text + 2) : NULL;

	return err_set(e, TF_EUSAGE, "%s%s%s has no option '%s'%s%s%s", v->word, *v->sub ? " " : "",
		       v->sub, text, near ? "; did you mean --" : "", near ? near : "",
		       near ? "?" : "");
}

static int check_operands(const struct verb *v, const struct args *a, struct err *e)
{
	int n = a->operand.count;

	if (args_has(a, OPTION_HELP) || (n >= v->least && (v->most < 0 || n <= v->most)))
		return 0;
	if (v->most == 0)
		return err_set(e, TF_EUSAGE, "%s%s%s takes no operand, '%s' is given", v->word,
			       *v->sub ? " " : "", v->sub, a->operand.word[0]);
	return err_set(e, TF_EUSAGE, "%s%s%s expects %s, %d operand%s given", v->word,
		       *v->sub ? " " : "", v->sub, v->operands, n, n == 1 ? " is" : "s are");
}

int args_read(const struct verb *v, int argc, char **argv, struct args *out, struct err *e)
{
	char letters[2 * OPTIONS + 2];
	struct option table[OPTIONS + 1];
	int code;

	memset(out, 0, sizeof *out);
	make_tables(v, letters, table);
	optind = 0; /* start anew (GNU) */
	opterr = 0;
	while ((code = getopt_long(argc, argv, letters, table, NULL)) != -1) {
		int o = option_of(v, code);

		if (code == ':')
			return err_set(e, TF_EUSAGE, "option '%s' needs a value",
				       argv[optind - 1]);
		if (o < 0) {
			char letter[3] = { '-', (char)optopt, 0 };

			return unknown_option(v, optopt && optopt < LONG_ONLY ? letter
								: argv[optind - 1], e);
		}
		words_add(&out->given[o], optarg);
	}
	while (optind < argc)
		words_add(&out->operand, argv[optind++]);
	return check_operands(v, out, e);
}

void args_release(struct args *a)
{
	for (int o = 0; o < OPTIONS; o++)
		xfree(a->given[o].word);
	xfree(a->operand.word);
}

bool args_has(const struct args *a, enum option_id o)
{
	return a->given[o].count > 0;
}

const char *args_text(const struct args *a, enum option_id o)
{
	return a->given[o].count ? a->given[o].word[a->given[o].count - 1] : NULL;
}

int text_to_int(const char *what, const char *text, int64_t least, int64_t most, int64_t *out,
		struct err *e)
{
	char *end;
	long long n;

	errno = 0;
	n = strtoll(text, &end, 10);
	FAIL_IF(errno || end == text || *end || *text == ' ' || n < least || n > most, e,
		TF_EUSAGE, "%s is '%s', expected a whole number from %" PRId64 " to %" PRId64,
		what, text, least, most);
	*out = n;
	return 0;
}

int args_int(const struct args *a, enum option_id o, int64_t least, int64_t most, int64_t *out,
	     struct err *e)
{
	char what[40];

	if (!args_has(a, o))
		return 0;
	snprintf(what, sizeof what, "--%s", option_rows[o].name);
	return text_to_int(what, args_text(a, o), least, most, out, e);
}

int args_float(const struct args *a, enum option_id o, double least, double most, double *out,
	       struct err *e)
{
	const char *text = args_text(a, o);
	char *end;
	double x;

	if (!text)
		return 0;
	x = strtod(text, &end);
	FAIL_IF(end == text || *end || *text == ' ' || !isfinite(x) || x < least || x > most, e,
		TF_EUSAGE, "--%s is '%s', expected a number from %g to %g", option_rows[o].name,
		text, least, most);
	*out = x;
	return 0;
}
