/* SPDX-License-Identifier: Apache-2.0
 * The daemon's side of the process that asks the driver about the GPUs (gpu_probe.c): it is started
 * again when it ends, and ended when it says nothing any more. */
#ifndef DAEMON_GPU_WATCH_H
#define DAEMON_GPU_WATCH_H

#include "lib/buf.h"
#include "lib/err.h"
#include "store/store.pb-c.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define GPU_REPORT_BYTES_MAX (256u << 10)

struct daemon;

struct gpu_watch {
	pid_t pid;          /* 0: none runs */
	int fd;             /* its reports; -1: at their end */
	struct buf pending; /* the begin of a report */
	bool listed;        /* this process has said which GPUs there are */
	int64_t restart_ms; /* when to start another, monotonic; 0: not at all */
	char driver[96];
	char fault[200];    /* why the GPUs are not watched; "": they are */
};

/* Finds the GPUs and starts to watch them. Waits at most gpu_timeout_ms for the driver; GPUs that
 * an earlier daemon found are known even when it does not answer. */
int gpu_watch_open(struct daemon *d, struct err *e);
int gpu_foreign_check(const char *text, struct err *e); /* is the option well formed? */
void gpu_watch_close(struct daemon *d);
void gpu_watch_read(struct daemon *d); /* its descriptor became readable */
void gpu_watch_tick(struct daemon *d); /* once a second */
/* What the other process does. */
int gpu_probe_main(int argc, char **argv);

#endif
