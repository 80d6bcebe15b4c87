/* SPDX-License-Identifier: Apache-2.0
 * What the tables say for people: help, near misses, and bash completion. */
#include "config.h"
#include "client/client.h"
#include "lib/mem.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#define SUBMIT                                                                                     \
	"wait json dry-run name tag after after-any after-failed hold project "                    \
	"threads device gpus gpu-mem cpus mem priority time begin deadline retries retry"
#define SWEEP                                                                                      \
	"wait json dry-run tag after after-any after-failed hold project threads device gpus "     \
	"gpu-mem cpus mem priority time begin deadline retries retry"
#define WORD_MAX 32
#define HELP_COLUMN 28

const struct verb verbs[] = {
#define V(word, sub, run, operands, least, most, options, help, example)                          \
	{ word, sub, run, operands, least, most, options, help, example },
#include "client/verbs.def"
#undef V
};
const size_t verb_count = ARRAY_LEN(verbs);

bool verb_takes(const struct verb *v, enum option_id o)
{
	const char *name = option_rows[o].name, *at = v->options;
	size_t len = strlen(name);

	if (o < GLOBAL_OPTIONS)
		return true;
	while (at && *at) {
		if (strncmp(at, name, len) == 0 && (at[len] == ' ' || at[len] == 0))
			return true;
		at = strchr(at, ' ');
		at = at ? at + 1 : NULL;
	}
	return false;
}

const struct verb *verb_find(const char *word, const char *sub)
{
	for (size_t i = 0; i < verb_count; i++)
		if (strcmp(verbs[i].word, word) == 0 && (!sub || strcmp(verbs[i].sub, sub) == 0))
			return &verbs[i];
	return NULL;
}

/* ---- help */

void help_all(struct buf *out)
{
	buf_text(out, "Usage: transfuse VERB [OPTION...] [OPERAND...]\n"
		      "Talks to transfused, which owns datasets and a queue of jobs.\n\n");
	for (size_t i = 0; i < verb_count; i++) {
		char name[WORD_MAX];

		if (!*verbs[i].help)
			continue;
		snprintf(name, sizeof name, "%s %s", verbs[i].word, verbs[i].sub);
		buf_printf(out, "  %-18s %s\n", name, verbs[i].help);
	}
	buf_text(out,
		 "\n`transfuse VERB --help` says more, with an example.\n\n"
		 "The daemon is found by --endpoint, then TRANSFUSE_ENDPOINT, then the private\n"
		 "daemon of the folder in TRANSFUSE_STATE, then the one of `transfuse login`,\n"
		 "then the system's (/etc/transfused).\n"
		 "\n"
		 "Exit status: 0 done, 1 the job failed, 2 usage, 3 no daemon, 4 refused,\n"
		 "5 cancelled, 6 the time of wait is up, 130 interrupted while waiting (the job\n"
		 "goes on). Of several jobs: 1 if one failed, else 5 if one was cancelled.\n"
		 "With --json an error is an object on stderr: its sentence (error), its name\n"
		 "(code) and the exit status (status).\n");
}

static void help_option(const struct option_row *row, struct buf *out)
{
	char text[80];

	snprintf(text, sizeof text, "%s%c%s--%s%s%s", row->letter ? "-" : " ",
		 row->letter ? row->letter : ' ', row->letter ? ", " : "  ", row->name,
		 row->argument ? " " : "", row->argument ? row->argument : "");
	if (strlen(text) <= HELP_COLUMN)
		buf_printf(out, "  %-*s %s\n", HELP_COLUMN, text, row->help);
	else
		buf_printf(out, "  %s\n  %*s %s\n", text, HELP_COLUMN, "", row->help);
}

/* What --task may be, with a line for each. */
static void help_tasks(struct buf *out)
{
	static const struct {
		const char *name, *help;
	} tasks[] = {
#define T(name, data, help) { #name, help },
#include "proto/tasks.def"
#undef T
	};

	buf_text(out, "\nTasks:\n");
	for (size_t i = 0; i < ARRAY_LEN(tasks); i++)
		buf_printf(out, "  %-*s %s\n", HELP_COLUMN, tasks[i].name, tasks[i].help);
}

void help_verb(const struct verb *v, struct buf *out)
{
	const char *space = *v->sub ? " " : "";

	buf_printf(out, "Usage: transfuse %s%s%s [OPTION...]%s%s\n", v->word, space, v->sub,
		   *v->operands ? " " : "", v->operands);
	if (*v->help)
		buf_printf(out, "%c%s.\n", toupper((unsigned char)*v->help), v->help + 1);
	buf_text(out, "\n");
	for (int o = GLOBAL_OPTIONS; o < OPTIONS; o++)
		if (verb_takes(v, o))
			help_option(&option_rows[o], out);
	for (int o = 0; o < GLOBAL_OPTIONS; o++)
		help_option(&option_rows[o], out);
	if (verb_takes(v, OPTION_TASK))
		help_tasks(out);
	buf_printf(out, "\nExample:\n  %s\n", v->example);
}

/* ---- near misses */

static size_t least_of(size_t a, size_t b, size_t c)
{
	size_t least = a < b ? a : b;

	return c < least ? c : least;
}

/* How many letters to add, take away or change. */
static size_t distance(const char *a, const char *b)
{
	size_t n = strlen(a), m = strlen(b), row[WORD_MAX + 1];

	if (n > WORD_MAX || m > WORD_MAX)
		return WORD_MAX;
	for (size_t j = 0; j <= m; j++)
		row[j] = j;
	for (size_t i = 1; i <= n; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= m; j++) {
			size_t above = row[j];

			row[j] = least_of(above + 1, row[j - 1] + 1,
					  diagonal + (a[i - 1] != b[j - 1]));
			diagonal = above;
		}
	}
	return row[m];
}

/* Keeps in *best the nearer one; a third of the letters may differ. */
static void nearer(const char *text, const char *candidate, const char **best, size_t *least)
{
	size_t d = distance(text, candidate);

	if (d < *least && d <= (strlen(candidate) + 2) / 3) {
		*least = d;
		*best = candidate;
	}
}

const char *suggest_verb(const char *text)
{
	const char *best = NULL;
	size_t least = WORD_MAX;

	for (size_t i = 0; i < verb_count; i++)
		if (*verbs[i].help)
			nearer(text, verbs[i].word, &best, &least);
	return best;
}

const char *suggest_sub(const char *word, const char *text)
{
	const char *best = NULL;
	size_t least = WORD_MAX;

	for (size_t i = 0; i < verb_count; i++)
		if (strcmp(verbs[i].word, word) == 0)
			nearer(text, verbs[i].sub, &best, &least);
	return best;
}

const char *suggest_option(const struct verb *v, const char *text)
{
	char name[WORD_MAX];
	const char *best = NULL;
	size_t least = WORD_MAX;

	snprintf(name, sizeof name, "%.*s", (int)strcspn(text, "="), text);
	for (int o = 0; o < OPTIONS; o++)
		if (verb_takes(v, o))
			nearer(name, option_rows[o].name, &best, &least);
	return best;
}

/* ---- bash completion */

static void completion_options(const struct verb *v, struct buf *out)
{
	buf_printf(out, "\t'%s%s%s') words='", v->word, *v->sub ? " " : "", v->sub);
	for (int o = 0; o < OPTIONS; o++)
		if (verb_takes(v, o))
			buf_printf(out, "%s--%s", o ? " " : "", option_rows[o].name);
	buf_text(out, "' ;;\n");
}

static void completion_words(struct buf *out)
{
	const char *last = "";

	for (size_t i = 0; i < verb_count; i++) {
		if (!*verbs[i].help || strcmp(verbs[i].word, last) == 0)
			continue;
		last = verbs[i].word;
		buf_printf(out, "%s%s", i ? " " : "", last);
	}
}

static void completion_subs(struct buf *out)
{
	for (size_t i = 0; i < verb_count; i++) {
		bool first = i == 0 || strcmp(verbs[i].word, verbs[i - 1].word) != 0 ||
			     !*verbs[i - 1].sub;
		bool last = i + 1 == verb_count || strcmp(verbs[i].word, verbs[i + 1].word) != 0;

		if (!*verbs[i].sub)
			continue;
		if (first)
			buf_printf(out, "\t%s) subs='", verbs[i].word);
		buf_printf(out, "%s%s", first ? "" : " ", verbs[i].sub);
		if (last)
			buf_text(out, "' ;;\n");
	}
}

int verb_completion(struct client *c, struct err *e)
{
	struct buf out = BUF_INIT;

	(void)c;
	(void)e;
	buf_text(&out, "# SPDX-License-Identifier: Apache-2.0\n"
		       "# Completion of transfuse for bash; made by `transfuse completion`.\n"
		       "_transfuse() {\n"
		       "\tlocal current=${COMP_WORDS[COMP_CWORD]} verb=${COMP_WORDS[1]} "
		       "subs= words=\n"
		       "\tcase $verb in\n");
	completion_subs(&out);
	buf_text(&out, "\tesac\n"
		       "\tif [ \"$COMP_CWORD\" -eq 1 ]; then\n\t\twords='");
	completion_words(&out);
	buf_text(&out, "'\n"
		       "\telif [ \"$COMP_CWORD\" -eq 2 ] && [ -n \"$subs\" ]; then\n"
		       "\t\twords=$subs\n"
		       "\telse\n"
		       "\t[ -z \"$subs\" ] || verb=\"$verb ${COMP_WORDS[2]}\"\n"
		       "\tcase $verb in\n");
	for (size_t i = 0; i < verb_count; i++)
		if (*verbs[i].help)
			completion_options(&verbs[i], &out);
	buf_text(&out, "\tesac\n"
		       "\t[[ $current == -* ]] || words=\n"
		       "\tfi\n"
		       "\tCOMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
		       "}\n"
		       "complete -o default -F _transfuse transfuse\n");
	fputs(out.data, stdout);
	buf_release(&out);
	return STATUS_DONE;
}
