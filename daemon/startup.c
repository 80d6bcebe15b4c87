/* SPDX-License-Identifier: Apache-2.0
 * From options to a daemon that can take requests: the state folder and its lock, keys, store,
 * slots, sockets; then the jobs and attempts that an earlier daemon left. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "daemon/files.h"
#include "daemon/job.h"
#include "daemon/reply.h"
#include "daemon/spawn.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "lib/quantity.h"
#include "store/upgrade.h"

#include <xxhash.h>
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

char *daemon_path(const struct daemon *d, const char *fmt, ...)
{
	char *tail = NULL, *path;
	va_list ap;

	va_start(ap, fmt);
	if (vasprintf(&tail, fmt, ap) < 0)
		BUG("no memory for a path");
	va_end(ap);
	path = xasprintf("%s/%s", d->folder, tail);
	free(tail);
	return path;
}

/* ---------------------------------------------------------------- folders */

static int open_folder(struct daemon *d, struct err *e)
{
	static const char *const below[] = { "store", "keys",       "jobs", "uploads",  "audit",
					     "data",  "tokenizers", "vaes", "models",
					     REMOVED_FOLDER };
	const char *wanted = options_state(&d->options);
	char *real;
	int rc;

	rc = dir_make(wanted, 0700, e);
	if (rc < 0)
		return err_prefix(e, "the state folder (--state or TRANSFUSE_STATE)");
	real = realpath(wanted, NULL);
	if (!real)
		return err_errno(e, "%s", wanted);
	d->folder = xstrdup(real);
	free(real);
	for (size_t i = 0; rc == 0 && i < ARRAY_LEN(below); i++) {
		char *path = daemon_path(d, "%s", below[i]);

		rc = dir_make(path, 0700, e);
		xfree(path);
	}
	return rc;
}

/* A lock of the process, not of the descriptor: a worker that was being started when its daemon
 * was killed does not hold it for the moment before it closes what it inherited. */
static int take_lock(struct daemon *d, struct err *e)
{
	struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	char *path = daemon_path(d, "lock");
	char text[32] = "";
	int rc = 0;

	d->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (d->lock < 0) {
		rc = err_errno(e, "%s", path);
	} else if (fcntl(d->lock, F_SETLK, &whole) < 0) {
		ssize_t n = pread(d->lock, text, sizeof text - 1, 0);

		text[n > 0 ? n : 0] = 0;
		text[strcspn(text, "\n")] = 0;
		rc = err_set(e, TF_EBUSY, "another daemon (pid %s) owns %s",
			     *text ? text : "unknown", d->folder);
	} else {
		int n = snprintf(text, sizeof text, "%d\n", (int)getpid());

		if (ftruncate(d->lock, 0) < 0 || pwrite(d->lock, text, (size_t)n, 0) < 0)
			rc = err_errno(e, "%s", path);
	}
	xfree(path);
	return rc;
}

/* Sockets' paths are short, so they lie in a folder of their own whose name comes from the state's.
 */
static int open_runtime(struct daemon *d, struct err *e)
{
	const char *given = d->options.runtime, *base = getenv("XDG_RUNTIME_DIR");
	struct stat st;

	if (!*given)
		given = getenv("RUNTIME_DIRECTORY");
	if (given && *given)
		d->runtime = xstrdup(given);
	else
		d->runtime = xasprintf("%s/transfused-%u-%016llx",
				       base && strlen(base) < 50 && *base ? base : "/tmp",
				       (unsigned)getuid(),
				       (unsigned long long)XXH64(d->folder, strlen(d->folder), 0));
	if (mkdir(d->runtime, 0700) < 0 && errno != EEXIST)
		return err_errno(e, "%s", d->runtime);
	if (lstat(d->runtime, &st) < 0)
		return err_errno(e, "%s", d->runtime);
	FAIL_IF(!S_ISDIR(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 022), e,
		TF_EREFUSED, "%s: the folder of the sockets must be ours and writable by us alone",
		d->runtime);
	d->worker_endpoint = xasprintf("ipc://%s/socket", d->runtime);
	return 0;
}

static int find_worker(struct daemon *d, struct err *e)
{
	if (*d->options.worker) {
		char *real = realpath(d->options.worker, NULL);

		if (!real)
			return err_errno(e, "worker %s", d->options.worker);
		d->worker_program = xstrdup(real);
		free(real);
	} else {
		d->worker_program = program_beside("transfuse-worker");
	}
	if (access(d->worker_program, X_OK) < 0)
		log_warn("no jobs can start: %s: %s", d->worker_program, strerror(errno));
	return 0;
}

/* ---------------------------------------------------------------- keys, users, slots */

/* Whoever owns the folder is let in when its key is new, or when nobody else is left to let them
 * in: so a revoked key of theirs stays revoked. */
static int enrol_owner(struct daemon *d, const char *key, bool fresh, struct err *e)
{
	struct passwd *pw = getpwuid(geteuid());
	Tf__UserRecord owner = TF__USER_RECORD__INIT;
	struct user *user = NULL;
	size_t count = 0;
	bool known = false, admin = false;

	TRY(users_list(d->state, &user, &count, e));
	for (size_t i = 0; i < count; i++) {
		known |= strcmp(user[i].key, key) == 0;
		admin |= user[i].role == ROLE_ADMIN && !user[i].configured;
	}
	xfree(user);
	if (known || (admin && !fresh))
		return 0;
	owner.name = pw ? pw->pw_name : (char *)"owner";
	owner.role = ROLE_ADMIN;
	owner.created = clock_wall_ms();
	return user_put(d->state, key, &owner, e);
}

static int open_keys(struct daemon *d, struct err *e)
{
	struct key_pair owner;
	char *file = daemon_path(d, "keys/client.key");
	bool fresh = !file_exists(file);
	int rc;

	xfree(file);
	TRY(keys_private_make(d->folder, &d->server, &owner, e));
	rc = users_configure(d->state, (const char *const *)d->options.user.text,
			     d->options.user.count, e);
	if (rc == 0)
		rc = enrol_owner(d, owner.public_key, fresh, e);
	key_pair_wipe(&owner);
	return rc;
}

/* The GPUs that the options name: so many of unknown memory, or a list of them. */
static int open_gpus(struct daemon *d, struct err *e)
{
	struct machine *m = &d->machine;

	FAIL_IF(d->options.gpus && d->options.gpu.count, e, TF_EINVALID,
		"gpus and gpu are both given, expected one of them");
	for (int64_t i = 0; i < d->options.gpus; i++) {
		struct gpu *g = &m->gpu[m->gpus++];

		snprintf(g->name, sizeof g->name, "gpu%d", (int)i);
		snprintf(g->device, sizeof g->device, "cuda:%d", (int)i);
	}
	for (size_t i = 0; i < d->options.gpu.count; i++) {
		TRY(gpu_parse(d->options.gpu.text[i], &m->gpu[m->gpus], e));
		for (size_t k = 0; k < m->gpus; k++)
			FAIL_IF(strcmp(m->gpu[k].name, m->gpu[m->gpus].name) == 0, e, TF_EINVALID,
				"gpu: two have the name %s", m->gpu[k].name);
		m->gpus++;
	}
	return 0;
}

/* Those this process may run on: a container or taskset may leave fewer than the machine has. */
static long usable_processors(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof set, &set) == 0)
		return CPU_COUNT(&set);
	return sysconf(_SC_NPROCESSORS_ONLN);
}

int machine_configure(struct machine *m, const struct options *o, struct err *e)
{
	uint64_t mem = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

	if (*o->mem)
		TRY(size_parse("mem", o->mem, &mem, e));
	m->slots = (uint32_t)o->slots;
	m->fast = (uint32_t)o->fast_slots;
	m->cpus = (uint32_t)(o->cpus ? o->cpus : usable_processors());
	m->mem = mem;
	return 0;
}

int64_t machine_threads(const struct machine *m)
{
	int64_t at_a_time = (int64_t)(m->slots + m->gpus);
	int64_t threads = usable_processors() / (at_a_time ? at_a_time : 1);

	return threads < 1 ? 1 : threads;
}

static int open_machine(struct daemon *d, struct err *e)
{
	TRY(machine_configure(&d->machine, &d->options, e));
	TRY(open_gpus(d, e));
	TRY(gpu_watch_open(d, e));
	if (d->options.threads == 0)
		d->options.threads = machine_threads(&d->machine);
	return 0;
}

static int open_signals(struct daemon *d, struct err *e)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return d->signal_fd < 0 ? err_errno(e, "signalfd") : 0;
}

static int tell_endpoints(struct daemon *d, struct err *e)
{
	const char *endpoint[1 + 16];
	size_t n = 0;

	endpoint[n++] = d->worker_endpoint;
	for (size_t i = 0; i < d->options.listen.count && n < ARRAY_LEN(endpoint); i++)
		endpoint[n++] = d->options.listen.text[i];
	return endpoint_write(d->folder, endpoint, n, e);
}

/* ---------------------------------------------------------------- what was left */

static int load_job(void *arg, Tf__JobRecord *r)
{
	struct daemon *d = arg;

	live_add(&d->live, r);
	if (r->job->seq > d->seq)
		d->seq = r->job->seq;
	return 0;
}

struct attempts {
	Tf__AttemptRecord **record;
	size_t count;
};

static int load_attempt(void *arg, const Tf__AttemptRecord *r)
{
	struct attempts *a = arg;
	Tf__AttemptRecord *copy = xmalloc(sizeof *copy);

	*copy = *r;
	copy->key = xstrdup(r->key);
	copy->boot = r->boot ? xstrdup(r->boot) : NULL;
	copy->slot = xstrdup(r->slot); /* its other fields are numbers */
	a->record = xrealloc(a->record, a->count + 1, sizeof *a->record);
	a->record[a->count++] = copy;
	return 0;
}

static bool has_attempt(const struct attempts *a, const struct job *j)
{
	for (size_t i = 0; i < a->count; i++)
		if (a->record[i]->job == j->id && a->record[i]->attempt == j->attempt)
			return true;
	return false;
}

/* Adopts every attempt on record; a running job without one (which cannot be) goes back to the
 * queue. */
static int examine(struct daemon *d, struct err *e)
{
	struct attempts a = { 0 };
	int rc = attempts_each(d->state, load_attempt, &a, e);

	for (size_t i = 0; rc == 0 && i < d->live.count; i++) {
		const struct job *j = d->live.job[i];

		if (j && job_state_active((Tf__JobState)j->state) && !has_attempt(&a, j)) {
			log_line(LOG_ERROR, j->id, "no process is on record for it");
			rc = job_change(d, j->id, EVENT_REQUEUE, NULL, e);
		}
	}
	for (size_t i = 0; i < a.count; i++) {
		if (rc == 0)
			rc = worker_adopt(d, a.record[i], e);
		xfree(a.record[i]->key);
		xfree(a.record[i]->slot);
		xfree(a.record[i]->boot);
		xfree(a.record[i]);
	}
	xfree(a.record);
	return rc;
}

int daemon_load(struct daemon *d, struct err *e)
{
	uint64_t reserved = 0;

	worker_forget_all(d);
	upload_release_open(d);
	live_release(&d->live);
	TRY(queue_load(d, e));
	TRY(state_number(d->state, "seq", &reserved, e));
	d->seq = d->seq > reserved ? d->seq : reserved;
	d->seq_reserved = reserved;
	TRY(slots_load(d, e));
	TRY(jobs_each_live(d->state, load_job, d, e));
	TRY(examine(d, e));
	d->announced = true;
	job_follow_up(d);
	return 0;
}

/* ---------------------------------------------------------------- the whole */

static int upgrade(struct daemon *d, struct err *e)
{
	uint64_t from;

	TRY(store_upgrade(d->state, &from, e));
	if (from != TF_STORE_VERSION)
		log_info("the store of version %llu was taken over to version %u",
			 (unsigned long long)from, TF_STORE_VERSION);
	return 0;
}

int daemon_open(struct daemon *d, struct err *e)
{
	char *store;
	uint64_t quota;
	int rc;

	umask(077);
	d->lock = d->signal_fd = d->task_fd = d->audit.fd = d->gpu_watch.fd = -1;
	d->notices.pidfd = d->notices.output = -1;
	for (int i = 0; i < READER_PROCESSES_MAX; i++)
		d->reader[i].pidfd = d->reader[i].output = -1;
	d->started_ms = clock_wall_ms();
	TRY(open_folder(d, e));
	TRY(take_lock(d, e));
	TRY(open_runtime(d, e));
	TRY(find_worker(d, e));
	TRY(open_signals(d, e));
	TRY(tasks_open(d, e));
	TRY(quota_limit(&d->options, NULL, &quota, e));
	store = daemon_path(d, "store");
	rc = state_open(store, (uint64_t)d->options.map_mib << 20, &d->state, e);
	xfree(store);
	TRY(rc);
	TRY(upgrade(d, e));
	TRY(audit_open(d, e));
	d->inbox = inbox_new();
	TRY(open_keys(d, e));
	TRY(open_machine(d, e));
	TRY(queue_configure(d, e));
	TRY(notices_configure(d, e));
	TRY(notices_load(d, e));
	TRY(daemon_load(d, e));
	artefact_collect(d);
	upload_collect(d);
	loop_collect(d);
	TRY(server_open(d, e));
	FAIL_IF(!loop_commit(d), e, TF_EIO, "the state in %s cannot be written", d->folder);
	return tell_endpoints(d, e);
}

void daemon_close(struct daemon *d)
{
	inbox_free(d->inbox);
	d->inbox = NULL;
	server_close(d);
	gpu_watch_close(d);
	slots_release(d);
	tasks_close(d);
	audit_close(d);
	notices_close(d);
	worker_forget_all(d);
	upload_release_all(d);
	outbox_release(&d->outbox);
	live_release(&d->live);
	shares_release(&d->live.shares);
	state_close(d->state);
	buf_release(&d->ended);
	xfree(d->wait);
	xfree(d->doomed.text);
	xfree(d->worker_program);
	xfree(d->worker_endpoint);
	xfree(d->runtime);
	key_pair_wipe(&d->server);
	if (d->signal_fd >= 0)
		close(d->signal_fd);
	if (d->lock >= 0)
		close(d->lock);
	xfree(d->folder);
	options_release(&d->options);
}
