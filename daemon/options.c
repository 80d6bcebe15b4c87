/* SPDX-License-Identifier: Apache-2.0
 * Options: the rows of options.def, from a YAML file and from the command line. A command-line
 * option becomes a setting of the same tree, so both go through one check. */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/yaml.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The table's fields as lib/yaml.h fills them: lists are nodes of the tree. */
struct raw {
#define O_TEXT char *
#define O_INT int64_t
#define O_LIST struct yaml_node *
#define O(name, type, fallback, least, most, help) O_##type name;
#include "daemon/options.def"
#undef O
};

enum option_type { OPTION_TEXT = YAML_TEXT, OPTION_INT = YAML_INT, OPTION_LIST = YAML_NODE };

static const struct yaml_field fields[] = {
#define O(name, type, fallback, least, most, help)                                                 \
	{ #name,                                                                                   \
	  (enum yaml_type)OPTION_##type,                                                           \
	  offsetof(struct raw, name),                                                              \
	  fallback,                                                                                \
	  least,                                                                                   \
	  most,                                                                                    \
	  NULL,                                                                                    \
	  help },
#include "daemon/options.def"
#undef O
};

static const struct {
	const char *name, *help;
} plain[] = {
	{ "config", "a YAML file with these options as its fields" },
	{ "background", "return when requests are answered; log to <state>/daemon.log" },
	{ "help", "this text" },
	{ "version", "the program's version" },
};

int log_level_find(const char *name, int *level, struct err *e)
{
	static const char *const names[] = { "debug", "info", "warn", "error" };

	for (int i = 0; i < (int)ARRAY_LEN(names); i++)
		if (strcmp(names[i], name) == 0) {
			if (level)
				*level = i;
			return 0;
		}
	return err_set(e, TF_EINVALID, "log_level '%s': expected debug, info, warn or error", name);
}

#define SYSTEM_STATE "/var/lib/transfused"

const char *options_state(const struct options *o)
{
	const char *variable = getenv("TRANSFUSE_STATE");

	if (*o->state)
		return o->state;
	return variable && *variable ? variable : SYSTEM_STATE;
}

static void as_flag(const char *name, char out[40])
{
	snprintf(out, 40, "%s", name);
	for (char *p = out; *p; p++)
		if (*p == '_')
			*p = '-';
}

void options_help(struct buf *out)
{
	char flag[40];

	buf_text(out,
		 "usage: transfused [--config FILE] [OPTION VALUE]...\n"
		 "The daemon that owns a state folder: its datasets, models and queue of jobs.\n"
		 "Example: transfused --state ~/transfused --listen tcp://0.0.0.0:7080 "
		 "--background\n\n");
	for (size_t i = 0; i < ARRAY_LEN(plain); i++)
		buf_printf(out, "  --%-22s %s\n", plain[i].name, plain[i].help);
	for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
		as_flag(fields[i].name, flag);
		buf_printf(out, "  --%-22s %s", flag, fields[i].help);
		if (fields[i].type == YAML_INT)
			buf_printf(out, " (%s)", fields[i].fallback);
		buf_text(out, "\n");
	}
	keep_help(out);
}

static void quote(struct buf *b, const char *text)
{
	buf_text(b, "\"");
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			buf_text(b, "\\");
		buf_append(b, text, 1);
	}
	buf_text(b, "\"");
}

/* Turns the values given for one field into a setting of the tree. */
static int set_field(struct yaml *y, const struct yaml_field *f, const struct text_list *given,
		     struct err *e)
{
	struct buf b = BUF_INIT;
	int rc;

	if (given->count == 0)
		return 0;
	buf_printf(&b, "%s=", f->name);
	if (f->type == YAML_NODE)
		buf_text(&b, "[");
	for (size_t i = 0; i < given->count; i++) {
		if (f->type != YAML_NODE && i + 1 < given->count)
			continue; /* the last one counts */
		if (f->type == YAML_NODE && i > 0)
			buf_text(&b, ", ");
		if (f->type == YAML_INT)
			buf_text(&b, given->text[i]);
		else
			quote(&b, given->text[i]);
	}
	if (f->type == YAML_NODE)
		buf_text(&b, "]");
	rc = yaml_set(y, b.data, e);
	buf_release(&b);
	return rc;
}

static int read_list(const struct yaml *y, const struct yaml_node *n, const struct yaml_field *f,
		     struct text_list *out, struct err *e)
{
	if (!n)
		return 0;
	FAIL_IF(n->kind != YAML_LIST, e, TF_EINVALID, "%s: line %d: %s: expected a list", y->file,
		n->line, f->name);
	for (const struct yaml_node *c = n->child; c; c = c->next) {
		FAIL_IF(c->kind != YAML_SCALAR, e, TF_EINVALID,
			"%s: line %d: %s: expected a list of texts", y->file, c->line, f->name);
		FAIL_IF((double)out->count >= f->most, e, TF_ELIMIT,
			"%s: line %d: %s: more than %g entries", y->file, c->line, f->name,
			f->most);
		out->text = xrealloc(out->text, out->count + 1, sizeof *out->text);
		out->text[out->count++] = xstrdup(c->text);
	}
	return 0;
}

/* Here, where the line is known: a user with a wrong key could never come in, and not ask why. */
static int check_users(const struct yaml *y, const struct yaml_node *n, struct err *e)
{
	for (const struct yaml_node *c = n ? n->child : NULL; c; c = c->next) {
		if (users_line_check(c->text, e) == 0)
			continue;
		return c->line ? err_prefix(e, "%s:%d", y->file, c->line)
			       : err_prefix(e, "the command line");
	}
	return 0;
}

static int take(const struct yaml *y, struct raw *raw, struct options *out, struct err *e)
{
	const struct yaml_field *f = fields;
	int rc = 0;

#define TAKE_TEXT(name) out->name = raw->name
#define TAKE_INT(name) out->name = raw->name
#define TAKE_LIST(name)                                                                            \
	if (rc == 0)                                                                               \
	rc = read_list(y, raw->name, f, &out->name, e)
#define O(name, type, fallback, least, most, help)                                                 \
	TAKE_##type(name);                                                                         \
	f++;
#include "daemon/options.def"
#undef O
	return rc;
}

static void release_list(struct text_list *l)
{
	for (size_t i = 0; i < l->count; i++)
		xfree(l->text[i]);
	xfree(l->text);
	l->count = 0;
}

void options_release(struct options *o)
{
#define FREE_TEXT(name) xfree(o->name)
#define FREE_INT(name) (void)o->name
#define FREE_LIST(name) release_list(&o->name)
#define O(name, type, fallback, least, most, help) FREE_##type(name);
#include "daemon/options.def"
#undef O
}

static int load_config(const char *path, struct yaml *y, struct err *e)
{
	struct buf b = BUF_INIT;
	int rc = path ? file_read(path, YAML_BYTES_MAX, &b, e) : 0;

	if (rc == 0)
		rc = yaml_parse(path ? path : "the command line", b.data ? b.data : "", b.len, y,
				e);
	buf_release(&b);
	return rc;
}

struct command_line {
	const char *config;
	bool background, help, version;
	struct text_list given[ARRAY_LEN(fields)];
};

static int read_command_line(int argc, char **argv, struct command_line *c, struct err *e)
{
	struct option long_option[ARRAY_LEN(fields) + ARRAY_LEN(plain) + 1] = { 0 };
	char flag[ARRAY_LEN(fields)][40];
	size_t n = 0;
	int which;

	for (size_t i = 0; i < ARRAY_LEN(fields); i++) {
		as_flag(fields[i].name, flag[i]);
		long_option[n++] =
			(struct option){ flag[i], required_argument, NULL, (int)(1000 + i) };
	}
	for (size_t i = 0; i < ARRAY_LEN(plain); i++)
		long_option[n++] =
			(struct option){ plain[i].name, i == 0 ? required_argument : no_argument,
					 NULL, (int)(2000 + i) };
	optind = 1;
	opterr = 0;
	while ((which = getopt_long(argc, argv, "", long_option, NULL)) != -1) {
		FAIL_IF(which == '?', e, TF_EUSAGE,
			"'%s': no such option, or its value is missing (--help)", argv[optind - 1]);
		c->config = which == 2000 ? optarg : c->config;
		c->background |= which == 2001;
		c->help |= which == 2002;
		c->version |= which == 2003;
		if (which < 2000) {
			struct text_list *g = &c->given[which - 1000];

			g->text = xrealloc(g->text, g->count + 1, sizeof *g->text);
			g->text[g->count++] = xstrdup(optarg);
		}
	}
	FAIL_IF(optind < argc, e, TF_EUSAGE, "'%s': not an option (--help)", argv[optind]);
	return 0;
}

int options_read(int argc, char **argv, struct options *out, enum options_result *result,
		 struct err *e)
{
	struct command_line c = { 0 };
	struct yaml y = { 0 };
	struct raw raw = { 0 };
	struct buf help = BUF_INIT;
	int rc = read_command_line(argc, argv, &c, e);

	memset(out, 0, sizeof *out);
	*result = c.help || c.version ? OPTIONS_EXIT : OPTIONS_RUN;
	if (rc == 0 && c.help) {
		options_help(&help);
		fputs(help.data, stdout);
	} else if (rc == 0 && c.version) {
		puts("transfused " PACKAGE_VERSION);
	} else if (rc == 0) {
		rc = load_config(c.config, &y, e);
		for (size_t i = 0; rc == 0 && i < ARRAY_LEN(fields); i++)
			rc = set_field(&y, &fields[i], &c.given[i], e);
		if (rc == 0)
			rc = yaml_fields_read(&y, fields, ARRAY_LEN(fields), &raw, e);
		if (rc == 0)
			rc = take(&y, &raw, out, e);
		if (rc == 0)
			rc = check_users(&y, raw.user, e);
		out->background = c.background;
	}
	for (size_t i = 0; i < ARRAY_LEN(fields); i++)
		release_list(&c.given[i]);
	yaml_release(&y);
	buf_release(&help);
	return rc;
}
