/* SPDX-License-Identifier: Apache-2.0
 * transfuse-worker: one process runs one attempt of one job at a time, of a joint kind several. The
 * daemon starts it; it says hello, gets its Assignment, runs the job's function, writes the
 * outcome, tells the daemon. Where the Assignment says so it then waits for another job, keeping
 * the model (kept.h); else it exits. Each job has the log, the folder and the reports of its own.
 *
 * The main thread runs the job; link.c has a thread for the daemon's messages. SIGTERM asks the
 * job to leave in order. worker.h lists the exit statuses. */
#include "config.h"
#include "kernels/kernels.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/keys.h"
#include "worker/crew.h"
#include "worker/plan.h"
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

#define HELLO_MS 60000     /* how long an assignment is waited for */
#define WARM_MORE_MS 60000 /* the daemon ends a wait for another job; this is for when it forgets */

static struct crew *crew;

static const struct {
	Tf__JobKind kind;
	const char *name;
	bool joint;
	int (*run)(struct job *job, struct err *e);
} kinds[] = {
#define J(id, ENUM, field, artefact, resumable, warm, joint, help) \
	{ TF__JOB_KIND__##ENUM, #id, joint, job_##id },
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
	if (crew)
		crew_signal(crew);
}

static void set_signals(void)
{
	struct sigaction leave = { .sa_handler = on_sigterm, .sa_flags = SA_RESTART };
	struct sigaction ignore = { .sa_handler = SIG_IGN };

	sigaction(SIGTERM, &leave, NULL);
	sigaction(SIGINT, &leave, NULL);
	sigaction(SIGPIPE, &ignore, NULL);
}

/* Another attempt counts: nothing more may be written by this one. Where others run beside it, the
 * job leaves alone. */
static void fenced(const char *text)
{
	if (crew && !crew_is_lone(crew))
		return;
	log_error("%s: leaving at once", text);
	_exit(WORKER_FENCED);
}

/* A death in any thread (a device error, mostly) is an outcome, too. */
static void on_death(int status, const char *text)
{
	int code = status == EXIT_MEMORY ? TF_ENOMEM : TF_EINTERNAL;
	Tf__Failure failure = status == EXIT_MEMORY	? TF__FAILURE__FAILURE_MEMORY
			      : status == WORKER_DEVICE ? TF__FAILURE__FAILURE_CRASH
							: TF__FAILURE__FAILURE_OTHER;

	if (crew && crew_die(crew, code, text, failure))
		_exit(status);
}

/* Runs the job, and those that join it. */
static void work_on(const Tf__Assignment *assignment, bool warm)
{
	struct err e = ERR_INIT;
	struct job *job = NULL;
	int rc = crew_begin(crew, assignment, warm, &job, &e);
	size_t i = 0;

	while (i < ARRAY_LEN(kinds) && kinds[i].kind != assignment->spec->kind)
		i++;
	if (rc == 0 && i == ARRAY_LEN(kinds))
		rc = err_set(&e, TF_EUNSUPPORTED, "kind %d is not known to this worker",
			     (int)assignment->spec->kind);
	if (rc == 0) {
		log_info("%s attempt=%u device=%s", kinds[i].name, job->attempt, job->device);
		rc = kinds[i].run(job, &e);
		if (kinds[i].joint)
			return; /* all of them have left */
	}
	crew_leave(crew, job, rc, &e);
}

/* Waits for another job. False: there is none. */
static bool another(int64_t warm_ms, const Tf__Assignment **out)
{
	crew_turn_to(crew, NULL);
	return link_next(crew_line(crew), warm_ms + WARM_MORE_MS, out, NULL) == 0;
}

static int work(struct link *line)
{
	const Tf__Assignment *assignment = NULL;
	struct kept kept = { 0 };
	struct err e = ERR_INIT;
	int64_t warm_ms;
	int status;

	crew = crew_new(line, &kept);
	if (link_assignment(line, HELLO_MS, &assignment, &e) < 0)
		die(WORKER_NO_DAEMON, "%s", e.text);
	do {
		warm_ms = assignment->has_warm_seconds ? assignment->warm_seconds * 1000LL : 0;
		work_on(assignment, warm_ms > 0);
	} while (crew_stays(crew) && another(warm_ms, &assignment));
	status = crew_status(crew);
	kept_release(&kept);
#ifdef ORDERLY_EXIT
	crew_close(crew);
	crew = NULL;
#endif
	return status;
}

int main(int argc, char **argv)
{
	struct arguments a = { 0 };
	struct err e = ERR_INIT;
	struct link *line;
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
	status = work(line);
#ifndef ORDERLY_EXIT
	fflush(NULL);
	_exit(status); /* its slot is free when it is gone: nothing is to be done any more */
#endif
	return status;
}
