/* SPDX-License-Identifier: Apache-2.0
 * Who starts, who waits and who steps back: pure functions of jobs, resources, users and the time,
 * so that months of arrivals are played through them in a test. doc/queue.md, "Order", has the
 * rules. */
#ifndef DAEMON_SCHEDULE_H
#define DAEMON_SCHEDULE_H

#include "daemon/share.h"

#define FAST_SECONDS 60 /* a generate job of at most so long takes the fast lane */
#define NEVER_MS INT64_MAX

enum job_device { DEVICE_ANY, DEVICE_CPU, DEVICE_CUDA };

/* A job that has not ended. The store has the rest of it. */
struct job {
	uint64_t id;
	/* A decision looks at these of every queued job: they lie together. */
	struct job *before, *after; /* in its line, while it is queued */
	struct user_share *user;
	struct group *group;  /* NULL: none */
	uint32_t group_most;  /* of it run at a time when this one starts */
	struct demand demand; /* as submitted; job_demand says what it comes to here */
	uint8_t state;        /* Tf__JobState */
	uint8_t kind;         /* Tf__JobKind */
	uint8_t device;       /* enum job_device */
	uint8_t priority;     /* Tf__Priority */
	uint8_t lane;         /* enum lane */
	uint8_t stopping;     /* Tf__StopReason */
	uint8_t resuming;     /* Tf__StopReason of its last attempt, until this one reports */
	int64_t begin_ms;     /* not before; 0: at once */
	int64_t deadline_ms;  /* to have ended by; 0: none */
	int64_t walltime_ms;  /* it may run in all; 0: unbounded */
	int64_t ran_ms;       /* of that, in earlier attempts whose work was kept */

	uint64_t together; /* jobs of the same number may run in one process; 0: it runs alone */
	uint64_t seq; /* of its last change, progress included */
	uint32_t attempt;
	uint32_t place;         /* in the queue, from 1, as last forecast */
	int64_t expected_ms;    /* start, as last forecast; NEVER_MS: not known */
	int64_t submitted_ms;
	int64_t started_ms;     /* the newest attempt */
	Tf__Progress *progress; /* of the running attempt; NULL: none yet */
};

/* The line of its user and lane; by rising id. */
void line_add(struct job *j);
void line_remove(struct job *j);
enum lane lane_of(Tf__JobKind kind, Tf__Priority priority, int64_t walltime_ms);

/* A process that may be alive. */
struct running {
	struct holding holding;
	int64_t started_ms;
	int64_t ends_ms;   /* by its walltime; NEVER_MS: nobody knows */
	uint8_t priority;  /* Tf__Priority */
	bool may_step_back; /* it saves its state and can go on later */
	bool stopping;      /* it was told to leave */
	uint64_t together;  /* of its jobs */
	uint32_t room;      /* further jobs of that number it may take in */
	uint32_t jobs;      /* it runs now */
	const struct user_share *user[LIMIT_JOINED]; /* whose they are */
};

struct schedule_rules {
	int64_t aging_ms;         /* a line that got nothing for so long goes before its class */
	int64_t preempt_after_ms; /* a job runs at least so long before it is made to step back */
};

struct schedule_input {
	const struct machine *machine;
	const struct running *running;
	size_t runnings; /* at most LIMIT_WORKERS */
	const struct shares *shares;
	struct schedule_rules rules;
	int64_t now_ms;
};

enum decision_kind { DECIDE_START, DECIDE_JOIN, DECIDE_STEP_BACK };

struct decision {
	enum decision_kind kind;
	uint64_t job;
	struct job *start;      /* DECIDE_START, DECIDE_JOIN */
	uint64_t beside;        /* DECIDE_JOIN: a job of the process that takes it in */
	struct holding holding; /* what it is to get */
};

/* The first in line that cannot start yet, for which the rest is kept out of the way. */
struct first_in_line {
	uint64_t job;     /* 0: none */
	int64_t start_ms; /* no later, by walltimes; NEVER_MS: nobody knows */
	size_t ahead;     /* decisions for jobs before it; those after it must not delay it */
	bool makes_room;  /* others were told to step back for it */
};

/* What a job of this kind and device needs on this machine: one that says nothing takes a whole
 * GPU if it computes and there is one, else a slot of the processor, else a GPU. */
struct demand job_demand(const struct machine *m, const struct job *j);
/* When a job that starts now ends by its walltime; NEVER_MS without one. */
int64_t job_ends_ms(const struct job *j, int64_t start_ms);
/* Writes at most room decisions; returns how many. *first may be NULL. */
size_t schedule_decide(const struct schedule_input *in, struct decision *out, size_t room,
		       struct first_in_line *first);

/* The queued jobs in their order. */
struct order;
struct order *order_open(const struct schedule_input *in);
struct job *order_next(struct order *o); /* NULL: no more */
/* The job given last is taken to start: its user's other jobs move back accordingly. */
void order_start(struct order *o, struct charge c);
void order_close(struct order *o);

/* Sets place and expected_ms of every queued job (forecast.c). */
void schedule_forecast(const struct schedule_input *in);
/* Why a queued job does not run, for people. */
void schedule_explain(const struct schedule_input *in, const struct first_in_line *first,
		      const struct job *j, char *out, size_t room);

#endif
