/* SPDX-License-Identifier: Apache-2.0
 * Commands of the program that are no daemon, for who may read the state folder:
 *   transfused check [OPTION VALUE]...         is the state sound
 *   transfused backup DIR [OPTION VALUE]...    back it up; its daemon may run
 *   transfused restore DIR [OPTION VALUE]...   make an empty state of a backup
 * They read the store beside a daemon, in a process of their own: it waits for none of them. Exit
 * statuses: 0 done, 1 could not or found problems, 2 wrong usage. */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "store/backup.h"
#include "store/check.h"
#include "store/journal.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void print_problem(void *arg, const char *problem)
{
	(void)arg;
	puts(problem);
}

static void no_problem(void *arg, const char *problem)
{
	(void)arg;
	(void)problem;
}

/* Locks the state as its daemon does; -1: one runs, or it is not ours to lock. */
static int lock_state(const char *folder)
{
	char *path = xasprintf("%s/lock", folder);
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd >= 0 && fcntl(fd, F_SETLK, &whole) < 0) {
		close(fd);
		fd = -1;
	}
	xfree(path);
	return fd;
}

/* What a killed daemon left in the journal. */
static void fold_journal(const char *store)
{
	char *path = xasprintf("%s/" JOURNAL_FILE, store);
	struct state *s = NULL;

	if (file_exists(path) && state_open(store, 0, &s, NULL) == 0)
		state_close(s);
	xfree(path);
}

/* While a daemon runs it may remove what the store still spoke of: such a problem is gone when
 * the store is read again, a lasting one is not. */
static int check(const char *folder, const char *operand, struct err *e)
{
	char *store = xasprintf("%s/store", folder);
	struct check_report found = { 0 };
	struct state *s = NULL;
	int lock = lock_state(folder), rc;

	(void)operand;
	if (lock >= 0) {
		fold_journal(store);
		close(lock);
	}
	rc = state_open_reading(store, &s, e);
	if (rc == 0 && lock < 0) {
		rc = store_check(s, folder, no_problem, NULL, &found, e);
		state_abort(s);
	} else if (rc == 0) {
		found.problems = 1;
	}
	if (rc == 0 && found.problems > 0)
		rc = store_check(s, folder, print_problem, NULL, &found, e);
	if (rc == 0)
		printf("%s: %llu records, %llu problems\n", folder,
		       (unsigned long long)found.records, (unsigned long long)found.problems);
	state_close(s);
	xfree(store);
	return rc < 0 ? rc : found.problems > 0;
}

static void print_report(const char *what, const char *from, const char *to,
			 const struct backup_report *r)
{
	printf("%s %s to %s: %llu jobs, %llu artefacts, %llu records, %.1f MB of files; checked\n",
	       what, from, to, (unsigned long long)r->jobs, (unsigned long long)r->artefacts,
	       (unsigned long long)r->records, (double)r->bytes / 1e6);
}

static int backup(const char *folder, const char *operand, struct err *e)
{
	struct backup_report r = { 0 };

	TRY(backup_make(folder, operand, &r, e));
	print_report("backed up", folder, operand, &r);
	return 0;
}

static int restore(const char *folder, const char *operand, struct err *e)
{
	struct backup_report r = { 0 };

	TRY(backup_restore(operand, folder, &r, e));
	print_report("restored", operand, folder, &r);
	return 0;
}

static const struct command {
	const char *name, *operand, *help;
	int (*run)(const char *folder, const char *operand, struct err *e);
} commands[] = {
	{ "check", NULL, "is the state sound: records, indexes, files", check },
	{ "backup", "DIR", "back the state up into an empty folder; its daemon may run", backup },
	{ "restore", "DIR", "make an empty state folder (--state) of a backup", restore },
};

void keep_help(struct buf *out)
{
	buf_text(out, "\nInstead of a daemon:\n");
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		buf_printf(out, "  %s %-*s %s\n", commands[i].name,
			   (int)(23 - strlen(commands[i].name)),
			   commands[i].operand ? commands[i].operand : "", commands[i].help);
	buf_text(out, "Example: transfused backup /mnt/backup/monday --state ~/transfused\n");
}

bool keep_knows(const char *word)
{
	for (size_t i = 0; i < ARRAY_LEN(commands); i++)
		if (strcmp(commands[i].name, word) == 0)
			return true;
	return false;
}

int keep_main(int argc, char **argv)
{
	const struct command *c = commands;
	struct options o;
	enum options_result result;
	struct err e = ERR_INIT;
	const char *operand = NULL;
	int rc, taken = 1;

	umask(077);
	while (strcmp(c->name, argv[1]) != 0)
		c++;
	if (c->operand && argc > 2 && argv[2][0] != '-')
		operand = argv[++taken];
	argv[taken] = argv[0];
	if (options_read(argc - taken, argv + taken, &o, &result, &e) < 0)
		die(2, "%s", e.text);
	if (result == OPTIONS_EXIT)
		return 0;
	if (c->operand && !operand)
		die(2, "usage: transfused %s %s [--state FOLDER]", c->name, c->operand);
	rc = c->run(options_state(&o), operand, &e);
	options_release(&o);
	if (rc < 0)
		die(1, "%s", e.text);
	return rc;
}
