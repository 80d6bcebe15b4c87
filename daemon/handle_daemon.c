/* SPDX-License-Identifier: Apache-2.0
 * Requests about the daemon itself: ping, version, status, drain. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/job.h"
#include "daemon/reply.h"
#include "daemon/warm.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <lmdb.h>
#include <zmq.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SYNC_PROBES 5
#define SYNC_KEEP_MS 10000
#define FACTS_MAX 16

int handle_ping(struct daemon *d, struct request *r)
{
	reply_ok(d, r);
	return 0;
}

int handle_version_info(struct daemon *d, struct request *r)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__VersionInfo v = TF__VERSION_INFO__INIT;

	v.program = (char *)PACKAGE_VERSION;
	v.protocol = TF_PROTOCOL_VERSION;
	v.has_store = true;
	v.store = TF_STORE_VERSION;
	reply.body_case = TF__REPLY__BODY_VERSION_INFO;
	reply.version_info = &v;
	reply_put(d, r, &reply);
	return 0;
}

/* ---------------------------------------------------------------- status */

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Median of a few small synced writes in the state folder, measured at most every ten seconds. */
static double sync_ms(struct daemon *d)
{
	static double kept;
	static int64_t until_ms;
	char *path = daemon_path(d, "sync-probe"), data[4096] = { 0 };
	double took[SYNC_PROBES];
	int fd;

	if (clock_mono_ms() < until_ms) {
		xfree(path);
		return kept;
	}
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	for (int i = 0; i < SYNC_PROBES && fd >= 0; i++) {
		int64_t start = clock_mono_ns();

		if (pwrite(fd, data, sizeof data, 0) < 0 || fdatasync(fd) < 0)
			log_warn("%s cannot be written", path);
		took[i] = (double)(clock_mono_ns() - start) / 1e6;
	}
	if (fd >= 0) {
		qsort(took, SYNC_PROBES, sizeof *took, by_size);
		kept = took[SYNC_PROBES / 2];
		until_ms = clock_mono_ms() + SYNC_KEEP_MS;
		close(fd);
		unlink(path);
	}
	xfree(path);
	return kept;
}

struct facts {
	Tf__KeyValue item[FACTS_MAX], *list[FACTS_MAX];
	size_t count;
};

__attribute__((format(printf, 3, 4))) static void add_fact(struct facts *f, const char *key,
							   const char *fmt, ...)
{
	Tf__KeyValue *kv = &f->item[f->count];
	char text[1200];
	va_list ap;

	CHECK(f->count < FACTS_MAX);
	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	tf__key_value__init(kv);
	kv->key = (char *)key;
	kv->value = xstrdup(text);
	f->list[f->count++] = kv;
}

static void release_facts(struct facts *f)
{
	for (size_t i = 0; i < f->count; i++)
		xfree(f->item[i].value);
}

static void fill_facts(struct daemon *d, struct facts *f)
{
	char *keys = daemon_path(d, "keys/server.key");
	struct stat st;
	int major, minor, patch;

	add_fact(f, "program", "%s", PACKAGE_VERSION);
	add_fact(f, "state", "%s", d->folder);
	add_fact(f, "endpoint", "%s", d->worker_endpoint);
	add_fact(f, "lmdb", "%s", mdb_version(NULL, NULL, NULL));
	zmq_version(&major, &minor, &patch);
	add_fact(f, "zeromq", "%d.%d.%d%s", major, minor, patch,
		 zmq_has("curve") ? "" : ", no CURVE");
	add_fact(f, "protobuf-c", "%s", protobuf_c_version());
	disk_tick(d);
	add_fact(f, "disk_free_bytes", "%llu", (unsigned long long)d->disk_free);
	if (stat(keys, &st) == 0)
		add_fact(f, "key_mode", "%04o", st.st_mode & 07777);
	add_fact(f, "worker", "%s%s", d->worker_program,
		 access(d->worker_program, X_OK) == 0 ? "" : " (cannot be run)");
	add_fact(f, "threads", "%lld", (long long)d->options.threads);
	add_fact(f, "spawn_failures", "%d", d->spawn_failures);
	xfree(keys);
}

/* Counts of the live states from memory, of all ended ones from the store's number of jobs. */
static void fill_counts(struct daemon *d, struct facts *f)
{
	uint64_t count[TF__JOB_STATE__CANCELLED + 1] = { 0 }, live = 0;

	for (size_t i = 0; i < d->live.count; i++)
		if (d->live.job[i]) {
			count[d->live.job[i]->state]++;
			live++;
		}
	for (int s = TF__JOB_STATE__QUEUED; s < TF__JOB_STATE__DONE; s++)
		add_fact(f, job_state_name((Tf__JobState)s), "%llu", (unsigned long long)count[s]);
	add_fact(f, "ended", "%llu",
		 (unsigned long long)(state_count(d->state, STATE_JOBS) - live));
}

int handle_status(struct daemon *d, struct request *r)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Status s = TF__STATUS__INIT;
	struct slot_rows *slots = slot_rows_new(d);
	struct err low = ERR_INIT;
	struct facts facts = { .count = 0 }, counts = { .count = 0 };

	fill_facts(d, &facts);
	fill_counts(d, &counts);
	s.user = r->user;
	s.role = (char *)role_name(r->role);
	s.pid = (uint32_t)getpid();
	s.started = d->started_ms;
	s.n_slot = slots->count;
	s.slot = slots->list;
	s.n_count = counts.count;
	s.count = counts.list;
	s.has_sync_ms = true;
	s.sync_ms = sync_ms(d);
	s.n_fact = facts.count;
	s.fact = facts.list;
	s.n_endpoint = d->bound.count;
	s.endpoint = d->bound.text;
	s.has_draining = s.has_read_only = true;
	s.draining = d->draining;
	s.read_only = d->read_only;
	if (d->read_only)
		s.trouble = d->store_trouble.text;
	else if (disk_check(d, &low) < 0)
		s.trouble = low.text;
	reply.body_case = TF__REPLY__BODY_STATUS;
	reply.status = &s;
	reply_put(d, r, &reply);
	release_facts(&facts);
	release_facts(&counts);
	xfree(slots);
	return 0;
}

/* ---------------------------------------------------------------- drain */

/* Every running job is told to save its state and go back to the queue. */
static int stop_all(struct daemon *d, struct err *e)
{
	struct job_edit edit = { .stopping = TF__STOP_REASON__STOP_SHUTDOWN };

	for (size_t i = 0; i < d->workers; i++) {
		struct worker *w = d->worker[i];
		const struct job *j = live_find(&d->live, w->job);

		if (w->ended || !j || j->attempt != w->attempt)
			continue;
		if (j->state != TF__JOB_STATE__STOPPING)
			TRY(job_change(d, w->job, EVENT_STOP, &edit, e));
		worker_order(d, w);
	}
	return 0;
}

int handle_drain(struct daemon *d, struct request *r)
{
	const Tf__Drain *m = r->message->drain;

	if (m->resume) {
		d->draining = d->leave_when_idle = false;
	} else {
		TRY(stop_all(d, &r->err));
		warm_drop_all(d, "the daemon drains");
		d->draining = true;
		d->leave_when_idle = m->stop_daemon;
	}
	log_info("%s by %s", m->resume ? "resumed" : "drained", r->user);
	reply_ok(d, r);
	return 0;
}
