/* SPDX-License-Identifier: Apache-2.0
 * A daemon for a fuzzer; see stage.h. Each function that is replaced says why. */
#include "config.h"
#include "tests/fuzz/stage.h"
#include "daemon/files.h"
#include "daemon/reply.h"
#include "daemon/spawn.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "store/journal.h"
#include "tests/fuzz/any.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define NO_PID 0x40000000 /* and above: the system gives no such */

struct daemon stage;
uint64_t stage_troubles;
static char *folder; /* of this process: state and run */
static struct options options;

/* ---------------------------------------------------------------- replaced and looked into */

struct later {
	void (*run)(void *arg);
	void (*done)(struct daemon *d, void *arg);
	void *arg;
};

static struct later *later;
static size_t laters;
static pid_t last_pid;
static struct {
	const char *point;
	unsigned left; /* passages until it fails; 0: it does not */
	bool met;      /* since the store was last written well */
} trouble;

int __wrap_spawn_process(const struct spawn *s, pid_t *pid, int *pidfd, struct err *e);
int __wrap_process_fd(pid_t pid);
void __wrap_task_start(struct daemon *to, void (*run)(void *),
		       void (*done)(struct daemon *, void *), void *arg);
int __wrap_journal_read(struct journal *j, uint64_t epoch, journal_fn fn, void *arg,
			struct err *e);
int __wrap_tasks_open(struct daemon *of, struct err *e);
int __wrap_server_open(struct daemon *of, struct err *e);
int __real_server_open(struct daemon *of, struct err *e);
bool __wrap_fault_hit(const char *point);
void __wrap_outbox_send(struct daemon *of, bool committed);
void __real_outbox_send(struct daemon *of, bool committed);

int __wrap_spawn_process(const struct spawn *s, pid_t *pid, int *pidfd, struct err *e)
{
	(void)s;
	*pid = last_pid++;
	*pidfd = eventfd(0, EFD_CLOEXEC);
	return *pidfd < 0 ? err_errno(e, "eventfd") : 0;
}

/* Of a process that takes in another job. */
int __wrap_process_fd(pid_t pid)
{
	(void)pid;
	return eventfd(0, EFD_CLOEXEC);
}

void __wrap_task_start(struct daemon *to, void (*run)(void *),
		       void (*done)(struct daemon *, void *), void *arg)
{
	(void)to;
	later = xrealloc(later, laters + 1, sizeof *later);
	later[laters++] = (struct later){ run, done, arg };
}

/* Each state begins with an empty one, whose megabyte of zeros takes longer than the rest. */
int __wrap_journal_read(struct journal *j, uint64_t epoch, journal_fn fn, void *arg,
			struct err *e)
{
	(void)fn;
	(void)arg;
	(void)e;
	journal_begin(j, epoch);
	return 0;
}

int __wrap_tasks_open(struct daemon *of, struct err *e)
{
	(void)of;
	(void)e;
	return 0;
}

/* Once, for what it knows of requests; later ones have no sockets: no answer leaves. */
int __wrap_server_open(struct daemon *of, struct err *e)
{
	static bool once;
	int rc = once ? 0 : __real_server_open(of, e);

	once = true;
	return rc;
}

bool __wrap_fault_hit(const char *point)
{
	if (trouble.left == 0 || strcmp(point, trouble.point) != 0 || --trouble.left > 0)
		return false;
	trouble.met = true;
	stage_troubles++;
	return true;
}

void stage_trouble(const char *point, unsigned n)
{
	trouble.point = point;
	trouble.left = n;
}

void stage_run_tasks(void)
{
	for (size_t i = 0; i < laters; i++) {
		struct later task = later[i]; /* the list may grow */

		task.run(task.arg);
		task.done(&stage, task.arg);
	}
	laters = 0;
}

void __wrap_outbox_send(struct daemon *of, bool committed)
{
	for (size_t i = 0; i < of->outbox.count; i++)
		stage_letter(&of->outbox.letter[i]);
	__real_outbox_send(of, committed);
	CHECK(of->outbox.count == 0); /* nobody is connected */
}

/* ---------------------------------------------------------------- a daemon */

void stage_must(int rc, const struct err *e)
{
	if (rc < 0)
		BUG("%s", e->text);
}

char *stage_path(const char *name)
{
	return xasprintf("%s/%s", folder, name);
}

/* ---- what each state begins as, in memory */

struct kept {
	char *path;
	bool is_folder;
	struct buf bytes;
};

static struct kept *kept;
static size_t kept_count;

static int keep_entry(void *arg, const char *name)
{
	struct kept *k;
	struct err e = ERR_INIT;

	if (strcmp(name, JOURNAL_FILE) == 0)
		return 0; /* its records have a number that a daemon takes anew */
	kept = xrealloc(kept, kept_count + 1, sizeof *kept);
	k = &kept[kept_count++];
	*k = (struct kept){ .path = xasprintf("%s/%s", (const char *)arg, name) };
	k->is_folder = dir_is(k->path);
	if (k->is_folder) {
		char *path = k->path; /* the list may move */

		stage_must(dir_each(path, keep_entry, path, &e), &e);
	} else {
		stage_must(file_read(k->path, 1u << 20, &k->bytes, &e), &e);
	}
	return 0;
}

void stage_renew(void)
{
	char *state = stage_path("state"), *journal = stage_path("state/store/" JOURNAL_FILE);
	char *aside = stage_path(JOURNAL_FILE);
	struct err e = ERR_INIT;

	CHECK(rename(journal, aside) == 0);
	stage_must(dir_remove(state, &e), &e);
	CHECK(mkdir(state, 0700) == 0);
	for (size_t i = 0; i < kept_count; i++) {
		const struct kept *k = &kept[i];
		int fd = k->is_folder ? mkdir(k->path, 0700)
				      : open(k->path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

		CHECK(fd >= 0);
		if (!k->is_folder) {
			stage_must(file_write_all(fd, k->bytes.data, k->bytes.len, k->path, &e),
				   &e);
			close(fd);
		}
	}
	CHECK(rename(aside, journal) == 0);
	xfree(aside);
	xfree(journal);
	xfree(state);
}

/* ---- one over it */

static void copy_list(struct text_list *l)
{
	char **from = l->text;

	l->text = xcalloc(l->count + 1, sizeof *l->text);
	for (size_t i = 0; i < l->count; i++)
		l->text[i] = xstrdup(from[i]);
}

/* Of those that were read once. */
static void copy_options(struct options *to)
{
#define COPY_TEXT(name) to->name = xstrdup(to->name)
#define COPY_INT(name) (void)to->name
#define COPY_LIST(name) copy_list(&to->name)
#define O(name, type, fallback, least, most, help) COPY_##type(name);
#include "daemon/options.def"
#undef O
}

static void read_options(void)
{
	char *state = stage_path("state"), *run = stage_path("run");
	char *argv[] = { (char *)"fuzz_request",
			 (char *)"--state", state,
			 (char *)"--runtime", run,
			 (char *)"--worker", (char *)"/dev/null",
			 (char *)"--map-mib", (char *)"64",
			 (char *)"--nvml", (char *)"off",
			 (char *)"--slots", (char *)"2",
			 (char *)"--root", (char *)"/dev",
			 (char *)"--user", (char *)"root admin " ANY_KEY("a"),
			 NULL };
	enum options_result result;
	struct err e = ERR_INIT;

	stage_must(options_read((int)ARRAY_LEN(argv) - 1, argv, &options, &result, &e), &e);
	xfree(state);
	xfree(run);
}

void stage_open(void)
{
	struct err e = ERR_INIT;
	sigset_t ours;

	memset(&stage, 0, sizeof stage);
	last_pid = NO_PID;
	memset(&trouble, 0, sizeof trouble);
	stage.options = options;
	copy_options(&stage.options);
	stage_must(daemon_open(&stage, &e), &e);
	sigemptyset(&ours);
	sigaddset(&ours, SIGINT);
	sigaddset(&ours, SIGTERM);
	sigprocmask(SIG_UNBLOCK, &ours, NULL); /* they end the fuzzer, not the daemon */
}

void stage_settle(void)
{
	loop_settle(&stage);
	CHECK(stage.state && (stage.read_only ? trouble.met : !state_changed(stage.state)));
	trouble.met = stage.read_only;
}

void stage_recover(void)
{
	trouble.left = 0;
	for (int i = 0; i < 2; i++) { /* what failed in this turn, its commit tells */
		stage.retry_store_ms = 0;
		stage_settle();
	}
	CHECK(!stage.read_only);
}

void stage_close(void)
{
	stage_run_tasks();
	daemon_close(&stage);
	stage_run_tasks();
	xfree(later);
}

struct worker *stage_worker(size_t n)
{
	return stage.workers ? stage.worker[n % stage.workers] : NULL;
}


void stage_pass_time(void)
{
	stage.tick_ms = stage.second_ms = stage.minute_ms = 0;
	stage.gc_at_ms = stage.spawn_after_ms = stage.fold_ms = stage.retry_store_ms = 0;
	for (size_t i = 0; i < stage.waits; i++)
		stage.wait[i].until_ms = 0;
	for (int i = 0; i < READER_PROCESSES_MAX; i++)
		if (stage.reader[i].pidfd >= 0)
			reader_exited(&stage, &stage.reader[i]);
	if (stage.notices.pidfd >= 0)
		notice_exited(&stage);
}

void stage_make(void)
{
	const char *given = getenv("TMPDIR"), *memory = dir_is("/dev/shm") ? "/dev/shm" : "/tmp";
	char *base = xasprintf("%s/fuzz_request-XXXXXX", given ? given : memory);

	CHECK(mkdtemp(base));
	folder = base;
	log_init("fuzz_request", (enum log_level)(LOG_ERROR + 1)); /* nothing */
	read_options();
}

void stage_keep(void)
{
	char *state = stage_path("state");
	struct err e = ERR_INIT;

	stage_must(dir_each(state, keep_entry, state, &e), &e);
	xfree(state);
}

void stage_remove(void)
{
	dir_remove(folder, NULL);
	xfree(folder);
}
