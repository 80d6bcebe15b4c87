/* SPDX-License-Identifier: Apache-2.0
 * The process that asks the driver about the GPUs: this program, started again as `transfused
 * --watch-gpus LIBRARY WORKER QUERY_MS`. A call that hangs or crashes in the driver takes this one
 * with it, never the daemon. A thread for each GPU, so that one that hangs hides no other; one more
 * waits for critical errors. Each report is a frame on descriptor 3: its length in four bytes,
 * lowest first, and a GpuReport. It leaves when nobody reads them. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/gpu_watch.h"
#include "daemon/nvml.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <pthread.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPORT_FD 3
#define XID_WAIT_MS 1000

static struct {
	struct nvml *nvml;
	int64_t query_ms;
	pthread_mutex_t mutex; /* of what follows and of the pipe */
	uint32_t xid[LIMIT_GPUS], xids[LIMIT_GPUS]; /* the last one and how many came */
} probe = { .mutex = PTHREAD_MUTEX_INITIALIZER };

/* Under the mutex, so that frames do not mix. */
static void send_report(Tf__GpuReport *r)
{
	size_t len = tf__gpu_report__get_packed_size(r);
	uint8_t *frame = xmalloc(len + 4);

	CHECK(len <= GPU_REPORT_BYTES_MAX);
	for (int i = 0; i < 4; i++)
		frame[i] = (uint8_t)(len >> 8 * i);
	tf__gpu_report__pack(r, frame + 4);
	if (file_write_all(REPORT_FD, frame, len + 4, "the report", NULL) < 0)
		_exit(0); /* the daemon is gone */
	xfree(frame);
}

static void send_fault(const char *text)
{
	Tf__GpuReport r = TF__GPU_REPORT__INIT;

	r.fault = (char *)text;
	send_report(&r);
}

/* Which GPUs there are. */
static void send_list(void)
{
	uint32_t count = nvml_count(probe.nvml);
	struct gpu_sample *sample = xcalloc(count + 1, sizeof *sample);
	Tf__GpuState *list[LIMIT_GPUS];
	Tf__GpuReport r = TF__GPU_REPORT__INIT;

	for (uint32_t i = 0; i < count; i++) {
		nvml_identify(probe.nvml, i, &sample[i]);
		list[i] = &sample[i].message;
	}
	r.driver = (char *)nvml_driver(probe.nvml);
	r.n_gpu = count;
	r.gpu = list;
	send_report(&r);
	xfree(sample);
}

static void *watch_gpu(void *arg)
{
	uint32_t gpu = (uint32_t)(uintptr_t)arg;
	struct gpu_sample *sample = xcalloc(1, sizeof *sample);

	for (;;) {
		Tf__GpuState *one = &sample->message;
		Tf__GpuReport r = TF__GPU_REPORT__INIT;

		nvml_look(probe.nvml, gpu, sample);
		pthread_mutex_lock(&probe.mutex);
		one->has_xid = one->has_xids = true;
		one->xid = probe.xid[gpu];
		one->xids = probe.xids[gpu];
		r.n_gpu = 1;
		r.gpu = &one;
		send_report(&r);
		pthread_mutex_unlock(&probe.mutex);
		clock_sleep_ms(probe.query_ms);
	}
	return NULL;
}

static void watch_xids(void)
{
	struct err e = ERR_INIT;

	if (nvml_watch_xids(probe.nvml, &e) < 0)
		for (;;)
			pause();
	for (;;) {
		uint32_t gpu, xid;

		if (!nvml_next_xid(probe.nvml, XID_WAIT_MS, &gpu, &xid))
			continue;
		pthread_mutex_lock(&probe.mutex);
		probe.xid[gpu] = xid;
		probe.xids[gpu]++;
		pthread_mutex_unlock(&probe.mutex);
	}
}

/* A GPU is of use only to workers that were built for it. */
static bool worker_uses_gpus(const char *worker)
{
	char text[200] = "";
	int fd[2], status;
	ssize_t n = 0, got;
	pid_t pid;

	if (pipe(fd) < 0 || (pid = fork()) < 0)
		return false;
	if (pid == 0) {
		dup2(fd[1], STDOUT_FILENO);
		close(fd[0]);
		close(fd[1]);
		close(REPORT_FD);
		execl(worker, worker, "--backends", (char *)NULL);
		_exit(127);
	}
	close(fd[1]);
	while (n < (ssize_t)sizeof text - 1 &&
	       (got = read(fd[0], text + n, sizeof text - 1 - (size_t)n)) > 0)
		n += got;
	close(fd[0]);
	return waitpid(pid, &status, 0) == pid && status == 0 && strstr(text, "cuda");
}

int gpu_probe_main(int argc, char **argv)
{
	struct err e = ERR_INIT;
	pthread_t thread;

	if (argc != 3)
		die(2, "--watch-gpus LIBRARY WORKER QUERY_MS");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	probe.query_ms = atoll(argv[2]);
	if (nvml_open(argv[0], &probe.nvml, &e) < 0) {
		send_fault(e.text);
		return 0;
	}
	if (*argv[1] && nvml_count(probe.nvml) && !worker_uses_gpus(argv[1])) {
		send_fault("GPUs are not handed out: the worker program is built without CUDA");
		return 0;
	}
	send_list();
	for (uint32_t i = 0; i < nvml_count(probe.nvml); i++) {
		errno = pthread_create(&thread, NULL, watch_gpu, (void *)(uintptr_t)i);
		if (errno)
			die(1, "a thread for a GPU: %s", strerror(errno));
	}
	watch_xids();
	return 0;
}
