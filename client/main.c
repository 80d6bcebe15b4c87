/* SPDX-License-Identifier: Apache-2.0
 * transfuse: finds the verb in the table, reads its command line, runs it, and turns errors
 * into one sentence and an exit status. */
#include "config.h"
#include "client/client.h"
#include "lib/mem.h"
#include "lib/utf8.h"

#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Whether the caller is a program, also when the rest of the command line is wrong. */
static bool wants_json(int argc, char **argv)
{
	for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
		if (strcmp(argv[i], "--json") == 0)
			return true;
	return false;
}

/* JSON is UTF-8; what is quoted in a sentence may be none. */
static json_t *sentence(const char *text)
{
	char *copy = xstrdup(text);
	json_t *value;

	for (char *p = copy; !utf8_valid(text, strlen(text)) && *p; p++)
		*p = (unsigned char)*p < 0x80 ? *p : '?';
	value = json_string(copy);
	xfree(copy);
	return value;
}

static int complain(int status, int code, const struct err *e, bool json)
{
	const char *text = *e->text ? e->text : err_text(code);
	json_t *o;

	if (!json) {
		fprintf(stderr, "transfuse: %s\n", text);
		if (code == TF_ENODAEMON)
			fprintf(stderr, "transfuse: `transfuse doctor` says more\n");
		return status;
	}
	o = json_object();
	json_object_set_new(o, "error", sentence(text));
	json_object_set_new(o, "code", json_string(err_name(code)));
	json_object_set_new(o, "status", json_integer(status));
	json_dumpf(o, stderr, JSON_COMPACT);
	fputc('\n', stderr);
	json_decref(o);
	return status;
}

static int print_help(const struct verb *v)
{
	struct buf out = BUF_INIT;

	if (v)
		help_verb(v, &out);
	else
		help_all(&out);
	fputs(out.data, stdout);
	buf_release(&out);
	return STATUS_DONE;
}

static int unknown_verb(const char *word, struct err *e)
{
	const char *near = suggest_verb(word);

	return err_set(e, TF_EUSAGE, "there is no verb '%s'%s%s%s; see transfuse --help", word,
		       near ? ": did you mean '" : "", near ? near : "", near ? "'?" : "");
}

/* The verb of argv[1] (and argv[2]); *words says how many name it. */
static int find_verb(int argc, char **argv, const struct verb **out, int *words, struct err *e)
{
	const struct verb *v = verb_find(argv[1], NULL);
	const char *sub = argc > 2 ? argv[2] : "", *near;

	*words = 1;
	*out = v;
	if (!v)
		return unknown_verb(argv[1], e);
	if (!*v->sub && (!*sub || !verb_find(argv[1], sub)))
		return 0;
	*words = 2;
	*out = verb_find(argv[1], sub);
	if (*out)
		return 0;
	near = suggest_sub(argv[1], sub);
	if (!*sub || *sub == '-')
		return err_set(e, TF_EUSAGE, "'%s' expects one more word, such as '%s %s'",
			       v->word, v->word, v->sub);
	return err_set(e, TF_EUSAGE, "there is no '%s %s'%s%s%s; see transfuse --help", argv[1],
		       sub, near ? ": did you mean '" : "", near ? near : "", near ? "'?" : "");
}

/* `transfuse data --help` lists the verbs of the word. */
static bool help_of_word(int argc, char **argv)
{
	struct buf out = BUF_INIT;

	if (argc != 3 || !verb_find(argv[1], NULL) || *verb_find(argv[1], NULL)->sub == 0 ||
	    (strcmp(argv[2], "--help") != 0 && strcmp(argv[2], "-h") != 0))
		return false;
	for (size_t i = 0; i < verb_count; i++)
		if (strcmp(verbs[i].word, argv[1]) == 0)
			buf_printf(&out, "transfuse %s %s %s\n    %s; e.g. %s\n", verbs[i].word,
				   verbs[i].sub, verbs[i].operands, verbs[i].help,
				   verbs[i].example);
	fputs(out.data, stdout);
	buf_release(&out);
	return true;
}

static int run(struct client *c, bool json, struct err *e)
{
	int rc = c->verb->run(c, e);

	if (rc >= 0)
		return rc;
	if (client_interrupted() && rc == TF_ECANCELLED)
		return STATUS_INTERRUPTED;
	return complain(status_of(c, rc), rc, e, json);
}

/* All was answered and printed: the kernel closes a connection in a fraction of the time that
 * ZeroMQ takes to end its threads. */
static void leave(struct client *c, int status)
{
#ifndef ORDERLY_EXIT
	if (c->line)
		_exit(status);
#endif
	(void)status;
	client_release(c);
}

int main(int argc, char **argv)
{
	struct client c = { 0 };
	struct err e = ERR_INIT;
	bool json = wants_json(argc, argv);
	int words, status;

	setlocale(LC_CTYPE, "");
	die_set_program("transfuse");
	signal(SIGPIPE, SIG_IGN);
	if (argc < 2) {
		print_help(NULL);
		return STATUS_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
	    strcmp(argv[1], "help") == 0)
		return print_help(NULL);
	if (strcmp(argv[1], "--version") == 0) {
		printf("transfuse %s\n", PACKAGE_VERSION);
		return STATUS_DONE;
	}
	if (help_of_word(argc, argv))
		return STATUS_DONE;
	if (find_verb(argc, argv, &c.verb, &words, &e) < 0)
		return complain(STATUS_USAGE, TF_EUSAGE, &e, json);
	if (args_read(c.verb, argc - words, argv + words, &c.args, &e) < 0)
		status = complain(STATUS_USAGE, TF_EUSAGE, &e, json);
	else if (args_has(&c.args, OPTION_HELP))
		status = print_help(c.verb);
	else
		status = run(&c, json, &e);
	args_release(&c.args);
	if (fflush(stdout) != 0 && status == STATUS_DONE)
		status = STATUS_FAILED;
	leave(&c, status);
	return status;
}
