/* SPDX-License-Identifier: Apache-2.0
 * GPUs found and watched through another process; see gpu_watch.h. A GPU keeps its name as long as
 * its UUID is on record: a running worker's holding speaks of it by that name. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/nvml.h"
#include "daemon/spawn.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define RESTART_MS 5000
#define RETRY_DRIVER_MS 60000
#define SILENT_TIMES 6 /* gpu_timeout_ms without a word of a GPU: the process is ended */

/* ---------------------------------------------------------------- the GPUs of the machine */

static int gpu_by_uuid(const struct machine *m, const char *uuid)
{
	for (size_t i = 0; i < m->gpus; i++)
		if (*uuid && strcmp(m->gpu[i].uuid, uuid) == 0)
			return (int)i;
	return -1;
}

static bool name_is_free(struct daemon *d, const char *name)
{
	Tf__SlotRecord *r = NULL;
	bool taken = slot_get(d->state, name, &r, NULL) == 0 && r->uuid;

	record_free(r);
	return !taken && slot_find(d, name) < 0;
}

/* A GPU that was never seen gets the first number that no other has. */
static int add_gpu(struct daemon *d, const Tf__GpuState *m)
{
	size_t i = d->machine.gpus;
	struct gpu *g = &d->machine.gpu[i];
	char name[GPU_NAME_MAX];
	struct err e = ERR_INIT;

	if (i == LIMIT_GPUS || strlen(m->uuid) >= sizeof g->uuid) {
		log_error("the GPU %s is left out: there is no room for it", m->uuid);
		return -1;
	}
	for (int number = 0; number < 10000; number++) {
		snprintf(name, sizeof name, "gpu%d", number);
		if (name_is_free(d, name))
			break;
	}
	*g = (struct gpu){ .memory = m->memory };
	memcpy(g->name, name, sizeof name);
	snprintf(g->uuid, sizeof g->uuid, "%s", m->uuid);
	snprintf(g->device, sizeof g->device, "cuda:%u", m->number % 1000);
	d->machine.gpus++;
	slot_of_gpu(d, i)->watched = true;
	if (!d->read_only && slot_remember(d, i, &e) < 0)
		log_error("%s is not on record: %s", g->name, e.text);
	return (int)i;
}

static bool is_list_given(const struct daemon *d)
{
	return d->options.gpus > 0 || d->options.gpu.count > 0;
}

/* Those that an earlier daemon found, until the driver lists them. */
static int add_remembered(void *arg, const char *name, const Tf__SlotRecord *r)
{
	struct daemon *d = arg;
	struct gpu *g = &d->machine.gpu[d->machine.gpus];
	struct slot *s = slot_of_gpu(d, d->machine.gpus);

	if (!r->uuid || d->machine.gpus == LIMIT_GPUS || strlen(name) >= sizeof g->name ||
	    strlen(r->uuid) >= sizeof g->uuid)
		return 0;
	*g = (struct gpu){ .memory = r->memory };
	snprintf(g->name, sizeof g->name, "%s", name);
	snprintf(g->device, sizeof g->device, "%s", r->device ? r->device : "cuda");
	snprintf(g->uuid, sizeof g->uuid, "%s", r->uuid);
	s->watched = s->missing = true;
	d->machine.gpus++;
	return 0;
}

/* The first report: the driver and its GPUs. */
static void take_list(struct daemon *d, const Tf__GpuReport *r)
{
	struct gpu_watch *w = &d->gpu_watch;
	int64_t now = clock_mono_ms();

	w->listed = true;
	w->fault[0] = 0;
	snprintf(w->driver, sizeof w->driver, "%s", r->driver ? r->driver : "unknown");
	for (size_t i = 0; i < d->machine.gpus; i++)
		slot_of_gpu(d, i)->watched = slot_of_gpu(d, i)->missing = *d->machine.gpu[i].uuid;
	for (size_t i = 0; i < r->n_gpu; i++) {
		const Tf__GpuState *m = r->gpu[i];
		int gpu = gpu_by_uuid(&d->machine, m->uuid);

		if (gpu < 0 && *m->uuid && !is_list_given(d))
			gpu = add_gpu(d, m);
		if (gpu < 0)
			continue;
		slot_of_gpu(d, (size_t)gpu)->missing = false;
		slot_of_gpu(d, (size_t)gpu)->seen_ms = now;
		slot_of_gpu(d, (size_t)gpu)->xids_seen = 0; /* it counts from its start */
		snprintf(d->machine.gpu[gpu].device, GPU_NAME_MAX, "cuda:%u", m->number % 1000);
		if (m->memory)
			d->machine.gpu[gpu].memory = m->memory;
	}
	log_info("driver %s, %zu GPUs", w->driver, r->n_gpu);
}

/* ---------------------------------------------------------------- reports */

static void set_fault(struct gpu_watch *w, const char *text)
{
	if (strncmp(w->fault, text, sizeof w->fault - 1) != 0)
		log_info("GPUs are not watched: %s", text);
	snprintf(w->fault, sizeof w->fault, "%.190s", text);
}

static void take_report(struct daemon *d, const void *data, size_t len)
{
	Tf__GpuReport *r = NULL;
	struct err e = ERR_INIT;
	int gpu;

	if (wire_unpack(&tf__gpu_report__descriptor, data, len, (ProtobufCMessage **)&r, &e) < 0) {
		log_error("a report about the GPUs: %s", e.text);
		return;
	}
	if (r->fault) {
		set_fault(&d->gpu_watch, r->fault);
	} else if (r->driver) {
		take_list(d, r);
	} else if (r->n_gpu == 1) {
		gpu = gpu_by_uuid(&d->machine, r->gpu[0]->uuid);
		if (gpu >= 0) {
			slot_report(d, (size_t)gpu, r);
			r = NULL;
		}
	}
	if (r)
		tf__gpu_report__free_unpacked(r, NULL);
}

/* Whole frames out of what was read. */
static bool take_frames(struct daemon *d)
{
	struct buf *b = &d->gpu_watch.pending;
	size_t used = 0;

	while (b->len - used >= 4) {
		const uint8_t *p = (const uint8_t *)b->data + used;
		size_t len = p[0] | p[1] << 8 | p[2] << 16 | (size_t)p[3] << 24;

		if (len > GPU_REPORT_BYTES_MAX)
			return false;
		if (b->len - used - 4 < len)
			break;
		take_report(d, p + 4, len);
		used += 4 + len;
	}
	if (used) {
		memmove(b->data, b->data + used, b->len - used);
		b->len -= used;
	}
	return true;
}

static void end_reports(struct daemon *d, int64_t restart_in_ms)
{
	struct gpu_watch *w = &d->gpu_watch;

	if (w->fd >= 0)
		close(w->fd);
	w->fd = -1;
	buf_clear(&w->pending);
	if (w->pid > 0)
		kill(w->pid, SIGKILL);
	w->restart_ms = restart_in_ms ? clock_mono_ms() + restart_in_ms : 0;
}

void gpu_watch_read(struct daemon *d)
{
	struct gpu_watch *w = &d->gpu_watch;
	ssize_t n;

	do {
		buf_reserve(&w->pending, 4096);
		n = read(w->fd, w->pending.data + w->pending.len, 4096);
		if (n > 0)
			w->pending.len += (size_t)n;
		if (n > 0 && !take_frames(d)) {
			log_error("the process that watches the GPUs talks nonsense");
			n = 0;
		}
	} while (n == 4096);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		if (w->listed)
			set_fault(w, "the process that watches them has ended");
		/* without a driver there is nothing to wait for, unless it was there once */
		end_reports(d, w->listed ? RESTART_MS : d->machine.gpus ? RETRY_DRIVER_MS : 0);
	}
	slots_judge(d);
}

/* ---------------------------------------------------------------- the process */

static int start_process(struct daemon *d, struct err *e)
{
	struct gpu_watch *w = &d->gpu_watch;
	bool chosen = strcmp(d->options.nvml, "auto") != 0;
	char query[24];
	char *argv[] = { (char *)"/proc/self/exe",
			 (char *)"--watch-gpus",
			 chosen ? d->options.nvml : (char *)NVML_LIBRARY,
			 chosen ? (char *)"" : d->worker_program,
			 query,
			 NULL };
	struct spawn s = { .argv = argv };
	int fd[2], pidfd = -1, rc;

	snprintf(query, sizeof query, "%lld", (long long)d->options.gpu_query_ms);
	if (pipe2(fd, O_CLOEXEC) < 0)
		return err_errno(e, "a pipe for the reports about GPUs");
	fcntl(fd[0], F_SETFL, O_NONBLOCK);
	s.output = open("/dev/null", O_RDWR | O_CLOEXEC);
	s.extra = fd[1];
	s.environment = spawn_env(1, NULL);
	rc = s.output < 0 ? err_errno(e, "/dev/null")
			  : spawn_process(&s, &w->pid, &pidfd, e);
	spawn_env_free((char **)s.environment);
	if (s.output >= 0)
		close(s.output);
	if (pidfd >= 0)
		close(pidfd);
	close(fd[1]);
	if (rc < 0) {
		w->pid = 0;
		close(fd[0]);
		return rc;
	}
	w->fd = fd[0];
	w->listed = false;
	w->restart_ms = 0;
	return 0;
}

/* At the start alone: the list, or why there is none. */
static void wait_for_list(struct daemon *d)
{
	struct gpu_watch *w = &d->gpu_watch;
	int64_t until = clock_mono_ms() + d->options.gpu_timeout_ms;

	while (w->fd >= 0 && !w->listed && !*w->fault) {
		struct pollfd item = { .fd = w->fd, .events = POLLIN };
		int64_t left = until - clock_mono_ms();

		if (left <= 0) {
			set_fault(w, "the driver did not answer in time");
			break;
		}
		if (poll(&item, 1, (int)left) > 0)
			gpu_watch_read(d);
	}
}

int gpu_foreign_check(const char *text, struct err *e)
{
	FAIL_IF(strcmp(text, "auto") != 0 && strcmp(text, "drain") != 0 &&
			strcmp(text, "ignore") != 0,
		e, TF_EINVALID, "gpu_foreign is '%s', expected auto, drain or ignore", text);
	return 0;
}

int gpu_watch_open(struct daemon *d, struct err *e)
{
	struct gpu_watch *w = &d->gpu_watch;
	bool wanted = !is_list_given(d);

	TRY(gpu_foreign_check(d->options.gpu_foreign, e));
	for (size_t i = 0; i < d->machine.gpus; i++)
		wanted |= *d->machine.gpu[i].uuid != 0;
	if (strcmp(d->options.nvml, "off") == 0 || !wanted) {
		snprintf(w->fault, sizeof w->fault, "%s",
			 wanted ? "the option nvml is off" : "the list of GPUs has no UUIDs");
		return 0;
	}
	if (!is_list_given(d))
		TRY(slots_each(d->state, add_remembered, d, e));
	TRY(slots_load(d, e));
	if (start_process(d, e) < 0) { /* the queue goes on without; tried again */
		set_fault(w, e->text);
		err_clear(e);
		w->restart_ms = clock_mono_ms() + RETRY_DRIVER_MS;
	}
	wait_for_list(d);
	return 0;
}

/* A process that says nothing of some GPU for long does not come back to it. */
static bool is_stuck(struct daemon *d)
{
	int64_t least = clock_mono_ms() - SILENT_TIMES * d->options.gpu_timeout_ms;

	for (size_t i = 0; i < d->machine.gpus; i++) {
		const struct slot *s = slot_of_gpu(d, i);

		if (s->watched && !s->missing && s->seen_ms < least)
			return true;
	}
	return false;
}

void gpu_watch_tick(struct daemon *d)
{
	struct gpu_watch *w = &d->gpu_watch;
	struct err e = ERR_INIT;

	if (w->fd >= 0 && w->listed && is_stuck(d)) {
		set_fault(w, "the driver does not answer");
		end_reports(d, RESTART_MS);
	}
	if (w->pid > 0 && w->fd < 0 && waitpid(w->pid, NULL, WNOHANG) == w->pid)
		w->pid = 0; /* one that the driver holds must leave before another starts */
	if (w->pid == 0 && w->restart_ms && clock_mono_ms() >= w->restart_ms &&
	    start_process(d, &e) < 0) {
		set_fault(w, e.text);
		w->restart_ms = clock_mono_ms() + RETRY_DRIVER_MS;
	}
	if (d->machine.gpus)
		slots_judge(d);
}

void gpu_watch_close(struct daemon *d)
{
	struct gpu_watch *w = &d->gpu_watch;

	end_reports(d, 0);
	if (w->pid > 0)
		waitpid(w->pid, NULL, WNOHANG);
	buf_release(&w->pending);
}
