/* SPDX-License-Identifier: Apache-2.0
 * transfuse-worker: one process runs one attempt of one job at a time. The daemon starts it; it
 * says hello, gets its Assignment, runs the job's function, writes the outcome, tells the daemon.
 * Where the Assignment says so it then waits for another job, keeping the model (kept.h); else it
 * exits. Each job has the log, the folder and the reports of its own.
 *
 * The main thread runs the job; link.c has a thread for the daemon's messages. SIGTERM asks the
 * job to leave in order. worker.h lists the exit statuses. */
#include "config.h"
#include "kernels/kernels.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/keys.h"
#include "worker/kept.h"
#include "worker/link.h"
#include "worker/plan.h"
#include "worker/report.h"
#include "worker/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HELLO_MS 60000 /* how long an assignment is waited for */
#define SOON_MS 200    /* a daemon that answers in this time has the outcome on disk itself */
#define DONE_MS 180000 /* how long a daemon is waited for once the outcome is on disk here */
#define WARM_MORE_MS 60000 /* the daemon ends a wait for another job; this is for when it forgets */

static struct link *line; /* for the signal handler */
static struct {
	struct job *job;      /* NULL: nothing to leave an outcome for */
	pthread_mutex_t lock; /* whoever dies first writes it */
} dying = { NULL, PTHREAD_MUTEX_INITIALIZER };

static const struct {
	Tf__JobKind kind;
	const char *name;
	int (*run)(struct job *job, struct err *e);
} kinds[] = {
#define J(id, ENUM, field, artefact, resumable, warm, help) { TF__JOB_KIND__##ENUM, #id, job_##id },
#include "proto/jobs.def"
#undef J
};

static const char usage[] =
	"Usage: transfuse-worker --endpoint E --server-key KEY --job N --attempt N --key-fd FD\n"
	"       transfuse-worker --plan | --backends\n"
	"Runs one attempt of a job, and further ones while it is warm; started by transfused.\n"
	"With --plan: reads an experiment as JSON from stdin and answers with its sizes and memory "
	"as JSON.\n"
	"With --backends: says on what it can compute.\n\n"
	"  --endpoint E        where the daemon listens\n"
	"  --server-key KEY    its public key, Z85\n"
	"  --job N             the job\n"
	"  --attempt N         which attempt of it\n"
	"  --key-fd FD         descriptor to read this attempt's secret key from, one line of "
	"Z85\n"
	"  --backends          what it was built to compute on: ref, cpu, cuda\n"
	"  --plan              sizes and memory of an experiment\n"
	"  --help, --version\n\n"
	"Example: transfuse-worker --endpoint ipc:///run/transfused/worker --server-key KEY --job "
	"1"
	" --attempt 1 --key-fd 3\n";

struct arguments {
	struct link_options link;
	char secret[KEY_CHARS + 1];
	int key_fd;
};

static uint64_t number(const char *option, const char *text, uint64_t most)
{
	char *end;
	unsigned long long n;

	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || n > most)
		die(WORKER_USAGE, "%s %s: expected a number up to %llu", option, text,
		    (unsigned long long)most);
	return n;
}

static void read_key(struct arguments *a)
{
	size_t have = 0;

	while (have < KEY_CHARS) {
		ssize_t n = read(a->key_fd, a->secret + have, KEY_CHARS - have);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			die(WORKER_USAGE, "--key-fd %d: expected a line of %d characters of Z85",
			    a->key_fd, KEY_CHARS);
		have += (size_t)n;
	}
	close(a->key_fd);
	a->link.secret_key = a->secret;
}

static void parse_arguments(int argc, char **argv, struct arguments *a)
{
	static const struct option options[] = {
		{ "endpoint", required_argument, NULL, 'e' },
		{ "server-key", required_argument, NULL, 's' },
		{ "job", required_argument, NULL, 'j' },
		{ "attempt", required_argument, NULL, 'a' },
		{ "key-fd", required_argument, NULL, 'k' },
		{ "plan", no_argument, NULL, 'p' },
		{ "backends", no_argument, NULL, 'b' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	a->key_fd = -1;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'e': a->link.endpoint = optarg; break;
		case 's': a->link.server_key = optarg; break;
		case 'j': a->link.job = number("--job", optarg, UINT64_MAX); break;
		case 'a':
			a->link.attempt = (uint32_t)number("--attempt", optarg, UINT32_MAX);
			break;
		case 'k': a->key_fd = (int)number("--key-fd", optarg, 1 << 20); break;
		case 'b': puts(kernels_built_in()); exit(0);
		case 'p': exit(plan_main(stdin, stdout));
		case 'h': fputs(usage, stdout); exit(0);
		case 'v': puts("transfuse-worker " PACKAGE_VERSION); exit(0);
		default: exit(WORKER_USAGE);
		}
	}
	if (optind < argc)
		die(WORKER_USAGE, "unexpected argument '%s'; --help shows the usage",
		    argv[optind]);
	if (!a->link.endpoint || !a->link.server_key || !a->link.job || !a->link.attempt ||
	    a->key_fd < 0)
		die(WORKER_USAGE,
		    "--endpoint, --server-key, --job, --attempt and --key-fd are needed; "
		    "--help shows the usage");
}

static void on_sigterm(int signal_number)
{
	(void)signal_number;
	if (line)
		link_leave(line);
}

static void set_signals(void)
{
	struct sigaction leave = { .sa_handler = on_sigterm, .sa_flags = SA_RESTART };
	struct sigaction ignore = { .sa_handler = SIG_IGN };

	sigaction(SIGTERM, &leave, NULL);
	sigaction(SIGINT, &leave, NULL);
	sigaction(SIGPIPE, &ignore, NULL);
}

/* Another attempt counts: nothing more may be written by this one. */
static void fenced(const char *text)
{
	log_error("%s: leaving at once", text);
	_exit(WORKER_FENCED);
}

/* What kind of failure a code is, for another attempt. */
static Tf__Failure failure_of(int code)
{
	return code == TF_EIO || code == TF_ETIMEOUT || code == TF_EINTERNAL
		       ? TF__FAILURE__FAILURE_CRASH
	       : code == TF_ENOMEM ? TF__FAILURE__FAILURE_MEMORY
	       : code == TF_ENAN   ? TF__FAILURE__FAILURE_NAN
				   : TF__FAILURE__FAILURE_OTHER;
}

/* Writes the outcome; what is told to the daemon then is in *packed. */
static int leave_outcome(struct job *job, int code, const char *text, Tf__Failure failure,
			 struct buf *packed, struct err *e)
{
	job_stage(job, NULL);
	job_result(job, "peak_rss_anon_bytes", (double)link_peak_rss_anon(line));
	report_outcome(job->state, code, text, failure, packed);
	return report_write_outcome(job->attempt_folder, packed, e);
}

/* A death in any thread (a device error, mostly) is an outcome, too. */
static void on_death(int status, const char *text)
{
	struct buf packed = BUF_INIT;
	struct err e = ERR_INIT;
	int code = status == EXIT_MEMORY ? TF_ENOMEM : TF_EINTERNAL;
	Tf__Failure failure = status == EXIT_MEMORY || status == WORKER_DEVICE
				      ? failure_of(code)
				      : TF__FAILURE__FAILURE_OTHER;

	pthread_mutex_lock(&dying.lock); /* never released: the process ends */
	if (!dying.job)
		return;
	if (leave_outcome(dying.job, code, text, failure, &packed, &e) == 0 &&
	    report_sync_outcome(dying.job, &e) == 0) {
		link_done(line, &packed, false);
		link_told(line, HELLO_MS, &e);
	}
	if (e.code)
		log_error("%s", e.text);
	_exit(status);
}

static int run(struct job *job, struct err *e)
{
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++)
		if (kinds[i].kind == job->spec->kind) {
			log_info("%s attempt=%u device=%s", kinds[i].name, job->attempt,
				 job->device);
			return kinds[i].run(job, e);
		}
	return err_set(e, TF_EUNSUPPORTED, "kind %d is not known to this worker",
		       (int)job->spec->kind);
}

/* The daemon is told and has the outcome on disk, in its own records; when it does not answer soon,
 * the file is synced, so that the outcome counts whatever happens until it does. */
static bool tell(struct job *job, const struct buf *packed, bool stay)
{
	struct err e = ERR_INIT;

	link_done(line, packed, stay);
	if (link_told(line, SOON_MS, NULL) == 0)
		return true;
	if (report_sync_outcome(job, &e) < 0)
		log_error("the outcome cannot be synced: %s", e.text);
	err_clear(&e);
	if (link_told(line, DONE_MS, &e) == 0)
		return true;
	log_warn("%s", e.text);
	return false;
}

/* Writes the outcome and tells it; *stay: whether another job would be taken, and can come. */
static int finish(struct job *job, int rc, const struct err *why, bool *stay)
{
	struct buf packed = BUF_INIT;
	struct err e = ERR_INIT, late = *why;
	int synced = report_sync_results(job, rc == 0 ? &late : NULL);
	const char *text;

	rc = rc == 0 ? synced : rc;
	text = late.code ? late.text : err_text(rc);
	if (rc == 0)
		log_info("done");
	else
		log_line(rc == TF_ECANCELLED ? LOG_INFO : LOG_ERROR, 0, "%s", text);
	if (leave_outcome(job, rc, rc == 0 ? NULL : text, failure_of(rc), &packed, &e) < 0)
		log_error("the outcome cannot be written: %s", e.text);
	*stay = *stay && (rc == 0 || rc == TF_ECANCELLED);
	*stay = tell(job, &packed, *stay) && *stay;
	buf_release(&packed);
	return rc == 0 ? WORKER_DONE : rc == TF_ECANCELLED ? WORKER_STOPPED : WORKER_FAILED;
}

/* Runs the job; *stay when it is a warm one and the process is fit for another: it did what it was
 * told, in order. */
static int work_on(const Tf__Assignment *assignment, struct kept *kept, bool *stay)
{
	struct err e = ERR_INIT;
	struct job job;
	int rc = job_init(&job, assignment, line, &e), status;

	job.kept = kept;
	if (rc == 0) {
		dying.job = &job;
		rc = run(&job, &e);
	}
	CHECK(rc <= 0);
	pthread_mutex_lock(&dying.lock);
	dying.job = NULL;
	pthread_mutex_unlock(&dying.lock);
	*stay = kept != NULL;
	status = finish(&job, rc, &e, stay);
	job_release(&job);
	return status;
}

static void write_to(const char *path, int flags)
{
	int fd = open(path, flags | O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);

	fflush(stdout);
	if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0 || dup2(fd, STDERR_FILENO) < 0)
		die(WORKER_FAILED, "%s: %s", path, strerror(errno));
	close(fd);
}

/* Waits for another job; then log and folder are its own. False: there is none. */
static bool another(int64_t warm_ms, const Tf__Assignment **out)
{
	struct err e = ERR_INIT;
	char *log;

	write_to("/dev/null", 0); /* the log of the job that is over is not ours any more */
	log_set_job(0);
	if (link_next(line, warm_ms + WARM_MORE_MS, out, &e) < 0)
		return false;
	log = job_path((*out)->job_folder, "log");
	write_to(log, O_CREAT);
	xfree(log);
	log_set_job((*out)->job);
	if (chdir((*out)->attempt_folder) < 0)
		die(WORKER_FAILED, "%s: %s", (*out)->attempt_folder, strerror(errno));
	return true;
}

static int work(void)
{
	const Tf__Assignment *assignment = NULL;
	struct kept kept = { 0 };
	struct err e = ERR_INIT;
	int64_t warm_ms;
	bool stay;
	int status;

	if (link_assignment(line, HELLO_MS, &assignment, &e) < 0)
		die(WORKER_NO_DAEMON, "%s", e.text);
	do {
		warm_ms = assignment->has_warm_seconds ? assignment->warm_seconds * 1000LL : 0;
		status = work_on(assignment, warm_ms ? &kept : NULL, &stay);
	} while (stay && another(warm_ms, &assignment));
	kept_release(&kept);
	return status;
}

int main(int argc, char **argv)
{
	struct arguments a = { 0 };
	struct err e = ERR_INIT;
	int status;

	die_set_program("transfuse-worker");
	die_set_hook(on_death);
	log_init("worker", LOG_INFO);
	parse_arguments(argc, argv, &a);
	log_set_job(a.link.job);
	read_key(&a);
	a.link.fenced = fenced;
	set_signals();
	if (link_open(&a.link, &line, &e) < 0)
		die(WORKER_USAGE, "%s", e.text);
	explicit_bzero(a.secret, sizeof a.secret);
	status = work();
#ifndef ORDERLY_EXIT
	fflush(NULL);
	_exit(status); /* its slot is free when it is gone: nothing is to be done any more */
#endif
	link_close(line);
	return status;
}
