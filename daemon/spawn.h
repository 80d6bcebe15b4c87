/* SPDX-License-Identifier: Apache-2.0
 * Starting a process and knowing it again. */
#ifndef DAEMON_SPAWN_H
#define DAEMON_SPAWN_H

#include "daemon/daemon.h"

/* ---- spawn.c ---- */
struct spawn {
	char *const *argv; /* argv[0]: the program's path */
	char *const *environment;
	const char *folder; /* to run in; NULL: / */
	int output;         /* stdout and stderr */
	int extra;          /* becomes descriptor 3; -1: none */
	uint64_t data_bytes; /* RLIMIT_DATA; 0: none */
};
/* Starts a process in a session of its own with no other descriptor. *pidfd is the caller's. After
 * an error there is no process. */
int spawn_process(const struct spawn *s, pid_t *pid, int *pidfd, struct err *e);
/* When the process started, in clock ticks since boot; 0: there is no such process. */
uint64_t process_start(pid_t pid);
char *program_beside(const char *name); /* path of one in our own folder; the caller frees it */
/* What this boot of the machine is called; "": not known. Static. */
const char *machine_boot(void);
int process_fd(pid_t pid); /* -1 when there is none */
/* The variables a child gets (NULL-ended), threads > 0 as OMP_NUM_THREADS; visible (may be NULL)
 * as CUDA_VISIBLE_DEVICES instead of ours; free with spawn_env_free. */
char **spawn_env(int threads, const char *visible);
void spawn_env_free(char **environment);

#endif
