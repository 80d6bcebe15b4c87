/* SPDX-License-Identifier: Apache-2.0
 * The vocabulary of transfused: one process, one thread that owns everything below, and a few
 * helper threads (task.c) that see nothing but their own task.
 *
 * A turn of the loop (loop.c): take what came (messages, ended processes, finished tasks, time),
 * change the store in one transaction, commit it, then send the answers; after that start what can
 * start. No answer leaves before the commit that makes it true. struct job holds of a job what the
 * scheduler and the waits need; everything else is read from the store when it is wanted. */
#ifndef DAEMON_DAEMON_H
#define DAEMON_DAEMON_H

#include "daemon/gpu_watch.h"
#include "daemon/inbox.h"
#include "daemon/machine.h"
#include "daemon/notice.h"
#include "daemon/queue.h"
#include "daemon/slots.h"
#include "lib/buf.h"
#include "lib/err.h"
#include "proto/keys.h"
#include "proto/limits.h"
#include "proto/spec.h"
#include "proto/transfused.pb-c.h"
#include "store/catalogue.h"
#include "store/jobs.h"
#include "store/state.h"
#include "store/users.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ROUTE_BYTES_MAX 255

struct daemon;

/* ---------------------------------------------------------------- options */

struct text_list {
	char **text;
	size_t count;
};

/* options.def has a row for each: member, type, default, range, help. */
struct options {
#define O_TEXT char *
#define O_INT int64_t
#define O_LIST struct text_list
#define O(name, type, fallback, least, most, help) O_##type name;
#include "daemon/options.def"
#undef O
#undef O_TEXT
#undef O_INT
#undef O_LIST
	bool background;
};

enum options_result { OPTIONS_RUN, OPTIONS_EXIT };

/* Reads --config FILE and the command line over it. OPTIONS_EXIT: --help or --version was answered.
 */
int options_read(int argc, char **argv, struct options *out, enum options_result *result,
		 struct err *e);
void options_release(struct options *o);
void options_help(struct buf *out);
/* The number of a level's name (NULL: only whether there is one). */
int log_level_find(const char *name, int *level, struct err *e);
/* The state folder they mean: the option, TRANSFUSE_STATE, or the system's. Borrowed. */
const char *options_state(const struct options *o);

/* ---------------------------------------------------------------- jobs */

/* What can befall a job; job_state.c has the table next[state][event]. */
enum job_event {
	EVENT_READY,   /* all it waited for has come */
	EVENT_UNREADY, /* something it waited for cannot come any more */
	EVENT_HOLD,
	EVENT_RELEASE,
	EVENT_START, /* a worker was started for a new attempt */
	EVENT_HELLO, /* the worker reported */
	EVENT_STOP,  /* the worker is to checkpoint and leave; edit.stopping says why */
	EVENT_CANCEL,
	EVENT_DONE,
	EVENT_FAIL,
	EVENT_REQUEUE, /* the attempt ended without an end of the job */
	EVENT_AGAIN,   /* it had ended; somebody wants it to run again */
	JOB_EVENTS
};

/* The live jobs by rising id. Ended ones leave holes (NULL) that are closed now and then. */
struct live {
	struct job **job;
	size_t count, room, holes;
	size_t deadlines;     /* of them have one */
	struct shares shares; /* the users they belong to */
};

/* What goes with an event into the record; unset fields change nothing. */
struct job_edit {
	const char *reason; /* "": remove it */
	Tf__StopReason stopping;
	const char *slot;
	const Tf__Outcome *outcome; /* its results are copied */
	double lost_s;              /* by leaving as it was told */
	bool failed;                /* the attempt; failure says how */
	Tf__Failure failure;
	uint32_t failures; /* of this kind by now */
	int64_t next_try_ms; /* of a job that is queued again; wall clock, 0: at once */
};

/* ---------------------------------------------------------------- workers */

/* An attempt of a job and the process it is in, that may be alive. Several may be in one process
 * (join.c): they have its key in common, and one of them what it holds. */
struct worker {
	uint64_t job;
	uint32_t attempt;
	struct holding holding;  /* until the process is gone */
	bool joined;             /* another one of the process has it counted */
	bool unheard;            /* it was put into a process that has not said hello for it */
	uint64_t together;       /* its jobs': struct job */
	uint32_t room;           /* further jobs the process would take in */
	struct charge charge;    /* for it */
	struct user_share *user; /* who pays; NULL: the job had ended */
	double part;             /* of the process that it pays for now */
	double had_ms;           /* of the time until had_at_ms, by those parts */
	int64_t begun_ms, had_at_ms; /* monotonic */
	pid_t pid;
	uint64_t pid_start;      /* field 22 of /proc/PID/stat: unique with the pid, in a boot */
	int pidfd;               /* readable when the process ended; -1: it is gone already */
	bool child;              /* ours to reap; false: adopted from an earlier daemon */
	bool reaped;             /* it ended with exit_status */
	int exit_status;
	char key[KEY_CHARS + 1]; /* public key of the attempt */
	char secret[KEY_CHARS + 1];
	int key_pipe;            /* gets the secret after the commit; -1: it has it */
	bool ended;              /* its outcome was applied; only the process remains */
	bool terminated, killed; /* SIGTERM, SIGKILL were sent */
	bool warned;             /* its walltime ends soon */
	bool warm;               /* it may stay when its job has ended */
	bool idle;               /* ended, and waits for another job (warm.c) */
	bool unsaid;             /* its next assignment waits for the commit */
	char *model;             /* what its last job had open; NULL: nothing */
	int64_t idle_ms;         /* since when, monotonic */
	int64_t hello_by_ms;     /* monotonic; 0: it was heard of */
	int64_t stop_at_ms;      /* when it was told to leave; 0: it was not */
	uint8_t route[ROUTE_BYTES_MAX];
	size_t route_len; /* 0: not connected */
};

/* ---------------------------------------------------------------- messages */

/* A request being answered. */
struct request {
	uint8_t route[ROUTE_BYTES_MAX];
	size_t route_len;
	uint64_t id;
	char key[KEY_CHARS + 1];
	char user[LIMIT_NAME_BYTES + 1];
	char from[64]; /* address of the peer */
	bool later;	       /* it is answered, and audited, by what it began */
	uint64_t made;	       /* job that was made; 0: none */
	size_t made_more;      /* and so many after it */
	char admin[LIMIT_NAME_BYTES + 1]; /* who asks as `user`; "": the user */
	enum user_role role;
	struct worker *worker; /* role worker: whose key it is */
	const Tf__Request *message;
	struct err err;
};

/* An answer that waits for the commit of its turn. */
struct letter {
	uint8_t route[ROUTE_BYTES_MAX];
	uint8_t route_len;
	uint64_t id;
	uint8_t *data;
	size_t len;
	int tries;
};

struct outbox {
	struct letter *letter;
	size_t count, room;
};

/* A request that is answered when something happens, or at a time. */
enum wait_kind { WAIT_JOB, WAIT_LOG };
struct wait {
	enum wait_kind kind;
	uint8_t route[ROUTE_BYTES_MAX];
	uint8_t route_len;
	uint64_t id;
	char key[KEY_CHARS + 1]; /* who waits: the key may be revoked meanwhile */
	uint64_t job;
	uint64_t since;   /* seq, or offset in the log */
	int64_t until_ms; /* monotonic */
};

/* ---------------------------------------------------------------- work aside */

/* Work of another thread: run in it, then done in the loop. arg is the task's own. */
struct task {
	void (*run)(void *arg);
	void (*done)(struct daemon *d, void *arg);
	void *arg;
	struct task *next;
};

/* A process that reads a dataset for a client, so that a damaged one cannot harm the daemon. */
struct reader_process {
	pid_t pid;
	int pidfd, output;      /* -1, -1: unused */
	struct request request; /* whom to answer */
	int64_t until_ms;
};
#define READER_PROCESSES_MAX 4

/* Lines of the audit log that wait for the end of the turn. */
struct audit_mark {
	size_t at; /* where in `lines` it says that something was done */
};
struct audit {
	int fd; /* -1: it could not be opened */
	uint64_t size;
	struct buf lines;
	struct audit_mark *mark;
	size_t marks;
	int64_t second; /* of the last refusal, and how many there were in it */
	uint32_t refusals;
	uint64_t lost; /* lines left out */
	bool dirty, syncing, failing, reading;
};

struct upload; /* upload.c: one whose bytes are coming in */
struct tasks;  /* task.c */

/* ---------------------------------------------------------------- the daemon */

struct daemon {
	int argc; /* what it was started with */
	char **argv;
	struct options options;
	char *folder;  /* of the state, absolute */
	char *runtime; /* of the sockets, short */
	char *worker_program;
	char *worker_endpoint;  /* ipc, for workers and clients of this machine */
	struct text_list bound; /* it and those of `listen`, as others can reach them */
	int lock;               /* state/lock, locked by this process */
	struct key_pair server; /* our keys */
	int64_t started_ms;     /* wall clock */

	struct state *state;        /* NULL: it could not be opened again after a failed commit */
	uint64_t seq, seq_reserved; /* last given; the store says that none above was given */
	bool read_only;             /* a commit failed; loop.c tries to open the store again */
	int64_t retry_store_ms;
	int64_t fold_ms; /* the store is folded then unless it changes, monotonic */
	struct err store_trouble; /* why it is read_only */
	uint64_t disk_free; /* bytes; as of the last second */
	bool disk_low;      /* less than min_free_mib: no new work */
	struct live live;
	struct buf ended; /* uint64_t ids that ended in this turn and are not yet followed up */
	bool announced;   /* some job changed in this turn: look at the waits */
	struct text_list doomed; /* folders to remove once the commit is through */
	uint64_t removed;        /* so many were */

	struct machine machine;
	struct first_in_line first; /* as last decided */
	bool schedule_due;          /* something changed since */
	uint64_t forecast_seq;      /* of the changes it is made from */
	int64_t forecast_ms;
	struct slot slot[SLOTS_MAX];
	struct gpu_watch gpu_watch;
	struct worker **worker;
	size_t workers;
	int64_t spawn_after_ms; /* a start failed: not before this */
	int spawn_failures;
	bool draining, leave_when_idle;

	void *zmq, *router, *zap;
	struct wire_peers *peers; /* of the router */
	size_t connections;
	struct audit audit;
	struct notices notices;
	struct inbox *inbox; /* requests that wait */
	struct wire_message held; /* of a worker, came while a batch was made */
	bool holding;
	int64_t between_ns;  /* of the request being handled, what others took meanwhile */
	bool flooded;        /* some were refused as their line is full */
	bool others;         /* while that flood was held back somebody else came */
	struct outbox outbox;
	struct wait *wait;
	size_t waits, wait_room;
	struct upload **upload;
	size_t uploads;
	struct reader_process reader[READER_PROCESSES_MAX];
	struct tasks *tasks;
	int signal_fd, task_fd;
	bool leaving;                          /* SIGTERM came */
	int64_t minute_ms, second_ms, tick_ms; /* next housekeeping, monotonic */
	int64_t gc_at_ms;                      /* next round of gc.c, monotonic */
	char gc_next[LIMIT_NAME_BYTES + 32];   /* where the round goes on */
};

/* What is declared elsewhere:
 *   spawn.h    spawn.c
 *   job.h      job_state.c, job_end.c, after.c, job_filter.c
 *   submit.h   resolve.c, handle_jobs.c
 *   artefact.h artefact.c, quota.c
 *   warm.h     warm.c, join.c
 *   reply.h    reply.c, wait.c
 *   files.h    folder.c, upload.c, reader.c */

/* ---- main.c ---- */
/* Tells whoever started us that requests are answered now (--ready-fd, NOTIFY_SOCKET). */
void ready_say(struct daemon *d);

/* ---- keep.c: check, backup, restore ---- */
bool keep_knows(const char *word);
void keep_help(struct buf *out);
int keep_main(int argc, char **argv); /* argv[1] is a word it knows; the exit status */

/* ---- startup.c: from options to a daemon that can take requests ---- */
int daemon_open(struct daemon *d, struct err *e);
void daemon_close(struct daemon *d);
/* What the options count of the host; at the start and after a reload. */
int machine_configure(struct machine *m, const struct options *o, struct err *e);
int64_t machine_threads(const struct machine *m); /* of a worker when the options say none */
/* Fills the memory from the store: live jobs, sequence, attempts to examine. */
int daemon_load(struct daemon *d, struct err *e);
/* "<state folder>/<formatted>"; the caller frees it. */
char *daemon_path(const struct daemon *d, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* ---- loop.c ---- */
void loop_run(struct daemon *d);
/* What comes in a turn after all that there was has been taken: what is due, the commit, the
 * answers, then the starts. */
void loop_settle(struct daemon *d);
/* Ends a turn: follows up ended jobs, answers waits, commits, sends. False when the commit failed.
 */
bool loop_commit(struct daemon *d);
/* Removes a folder below the state after the commit of this turn. Takes the string. */
void loop_doom(struct daemon *d, char *path);
#define REMOVED_FOLDER "removed" /* what goes lies in it until it is gone */
void loop_collect(struct daemon *d); /* dooms what an earlier daemon left there */

/* ---- disk.c: room for new work ---- */
void disk_tick(struct daemon *d);
int disk_check(const struct daemon *d, struct err *e); /* TF_ENOSPACE while there is too little */

/* ---- live.c ---- */
struct job *live_add(struct live *l, const Tf__JobRecord *r);
struct job *live_find(const struct live *l, uint64_t id); /* NULL: ended, or never was */
void live_remove(struct live *l, uint64_t id);
void live_release(struct live *l);
void live_state(struct live *l, struct job *j, Tf__JobState state); /* in or out of its line */
enum job_device device_parse(const char *text);
/* Not before this, wall clock: what was asked for, or when it is to be tried again. */
int64_t begin_of(const Tf__Job *j);
struct demand demand_of(const Tf__Demand *d); /* NULL: nothing asked */

/* ---- usage.c: who used how much ---- */
/* Adds what the attempt had to the sums; j as it was before the end was applied. */
int usage_attempt_ended(struct daemon *d, const struct worker *w, const Tf__Job *j, struct err *e);

/* ---- log_file.c: the daemon's own log with --background ---- */
int log_file_open(struct daemon *d, struct err *e); /* and lets the terminal go */
void log_file_tick(struct daemon *d);

/* ---- reload.c ---- */
void options_reload(struct daemon *d); /* SIGHUP */

/* ---- gc.c: what the options no longer keep ---- */
void gc_tick(struct daemon *d); /* a pass, if one is due */

/* ---- worker.c: processes of attempts ---- */
/* Asks the scheduler, starts what it says and commits; `committed`: what came before is already. */
void worker_start_all(struct daemon *d, bool committed);
/* Tells the job's worker to leave (the reason is on record); the clock of escalation starts. */
void worker_order(struct daemon *d, struct worker *w);
int worker_threads(const struct daemon *d, const struct worker *w);
/* Where the outcome of its attempt goes; the caller frees it. */
char *worker_outcome_path(struct daemon *d, const struct worker *w);
struct worker *worker_of(struct daemon *d, uint64_t job); /* of its running attempt; NULL: none */
bool worker_is_left(const struct daemon *d, uint64_t job); /* at it, if only to end */
size_t worker_most(void); /* attempts that have a process */
struct worker *worker_by_key(struct daemon *d, const char *key);
void worker_exited(struct daemon *d, struct worker *w); /* its pidfd became readable */
void worker_tick(struct daemon *d);                     /* hello in time, escalation, log size */
/* Takes up an attempt that an earlier daemon (or store) left: alive, ended or lost. */
int worker_adopt(struct daemon *d, const Tf__AttemptRecord *r, struct err *e);
/* Ends those that were started in a turn whose commit failed: they have no key, so did nothing. */
void worker_drop_unborn(struct daemon *d);
void worker_forget_all(struct daemon *d); /* closes descriptors; processes go on */

struct worker *worker_new(void);
void worker_add(struct daemon *d, struct worker *w);
void worker_remove(struct daemon *d, struct worker *w); /* and frees it */
/* Puts the attempt on record and its job into `starting`. */
int worker_record(struct daemon *d, struct worker *w, struct err *e);

/* ---- server.c: sockets, keys, dispatch ---- */
int server_open(struct daemon *d, struct err *e);
void server_close(struct daemon *d);
/* A member changes what is their own, an administrator everything. TF_EREFUSED: "<what> belongs to
 * <owner>". owner NULL: nobody. */
int may_change(const struct request *r, const char *owner, const char *what, struct err *e);
void server_zap(struct daemon *d);     /* answers the questions of handshakes */
/* Reads messages and handles a turn's worth of requests. */
void server_receive(struct daemon *d);
/* Handles one, whoever sent it: its answer is in the outbox, waits, or comes with a task. m stays
 * the caller's. */
void server_take(struct daemon *d, struct wire_message *m);
void server_hold_back(struct daemon *d); /* waits a little when there is a flood */
/* While a batch is made, whose part of the transaction is open: other users' submits that meet none
 * of its jobs are handled and committed, at most one of each. False: that failed, and the store was
 * opened again without the part. */
struct job_numbers;
bool server_between(struct daemon *d, const struct job_numbers *batch);
/* Until a request that waits may be handled, 0: now; INT64_MAX: none waits. */
int64_t server_wait_ms(const struct daemon *d);

/* ---- audit.c, audit_read.c ---- */
int audit_open(struct daemon *d, struct err *e);
void audit_close(struct daemon *d);
/* Puts down that r did something (code 0) or was refused (text says why). */
void audit_note(struct daemon *d, const struct request *r, const char *action, int code,
		const char *text);
/* After the commit, before the answers leave. committed false: none of it is known to be done. */
void audit_write(struct daemon *d, bool committed);
void audit_tick(struct daemon *d); /* each second: sync */

/* ---- task.c ---- */
int tasks_open(struct daemon *d, struct err *e);
void tasks_close(struct daemon *d); /* finishes what was begun */
void task_start(struct daemon *d, void (*run)(void *), void (*done)(struct daemon *, void *),
		void *arg);
void tasks_finish(struct daemon *d); /* task_fd became readable */

/* ---- handle_worker.c ---- */
/* Answers r, or says unasked (r NULL), what the worker's job is; its job is running then. */
int worker_assign(struct daemon *d, struct worker *w, struct request *r, struct err *e);

/* ---- handle_*.c: one function a row of requests.def ---- */
/* Puts a reply and returns 0; or returns an error with r->err set; or sees that it comes later. */
#define R(name, role, writes) int handle_##name(struct daemon *d, struct request *r);
#include "proto/requests.def"
#undef R

#endif
