/* SPDX-License-Identifier: Apache-2.0
 * A daemon in this process for a fuzzer, without sockets, threads and processes: its link replaces
 * spawn_process, process_fd, task_start, tasks_open, server_open, journal_read and fault_hit, and
 * looks into outbox_send (--wrap). Its state lies in TMPDIR, without one in /dev/shm; what was kept
 * of it is brought back quickly. */
#ifndef TESTS_FUZZ_STAGE_H
#define TESTS_FUZZ_STAGE_H

#include "daemon/daemon.h"

extern struct daemon stage;

void stage_make(void); /* the folder; an empty state */
void stage_remove(void);
/* A daemon on the state that is there. */
void stage_open(void);
void stage_close(void);
/* The files of the state as they are now, for stage_renew. */
void stage_keep(void);
void stage_renew(void); /* while none is open */
char *stage_path(const char *name); /* of the folder; the caller's */

/* The rest of a turn; no commit may fail, but after stage_trouble. */
void stage_settle(void);
/* The n-th passage of this point (lib/fault.h) from now on fails. */
void stage_trouble(const char *point, unsigned n);
extern uint64_t stage_troubles; /* so many did */
/* What was to fail yet will not, and the store is written again. */
void stage_recover(void);
/* What was started and not yet run. */
void stage_run_tasks(void);
/* All that is done now and then is due; long polls and readers of datasets end. */
void stage_pass_time(void);
struct worker *stage_worker(size_t n); /* of as many as there are; NULL: there are none */

/* Each answer, before it leaves: the fuzzer's. */
void stage_letter(const struct letter *l);

/* Ends with the sentence when rc is an error. */
void stage_must(int rc, const struct err *e);

#endif
