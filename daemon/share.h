/* SPDX-License-Identifier: Apache-2.0
 * What each user has had, may have, and has queued. Use is measured in resource-seconds that decay:
 * a GPU is one unit, a share of one its part of the memory, a processor a sixteenth; times the
 * charge of the job's class. What a running job adds is added as time goes by (share_settle), so a
 * job counts while it runs. No clock, no store. */
#ifndef DAEMON_SHARE_H
#define DAEMON_SHARE_H

#include "daemon/machine.h"
#include "proto/transfused.pb-c.h"

#define PROCESSOR_UNITS (1.0 / 16)
#define LOOKAHEAD_S 3600 /* running and starting jobs count as if so much of them was used */

struct job;

/* Where a job waits: a line for each class, and one for short generate jobs. */
enum lane { LANE_LOW, LANE_NORMAL, LANE_HIGH, LANE_URGENT, LANE_FAST, LANES };

/* Queued jobs by rising id. */
struct line {
	struct job *first, *last;
};

struct user_limits {
	double weight;      /* of the fair share */
	uint32_t running;   /* jobs at a time; 0, as below: no limit */
	uint32_t queued;    /* jobs that have not ended and do not run */
	uint32_t gpus;      /* at a time */
	uint32_t gpu_hours; /* a month (UTC) */
};

/* What holding something costs in a second. */
struct charge {
	double units; /* with the class's charge */
	double gpus;  /* without it; shares count as their part */
	double held;  /* for the limit of GPUs at a time: those of a process that runs several jobs
		       * count for each of their users once, and whole */
};

struct user_share {
	char name[LIMIT_NAME_BYTES + 1];
	struct user_limits limits;
	double used;        /* decayed unit-seconds, at used_ms */
	double month_gpu_s; /* GPU-seconds in the month of used_ms, not decayed */
	int64_t used_ms;    /* wall clock */
	int64_t last_start_ms[LANES];
	struct charge rate; /* of all that runs */
	uint32_t running;
	uint32_t queued; /* in the lines */
	uint32_t jobs;   /* that have not ended */
	uint32_t groups; /* of those */
	bool changed;    /* since it was saved */
	struct line line[LANES];
	struct {         /* of a decision being made */
		double used;
		struct charge rate;
		uint32_t running;
		int64_t last_start_ms[LANES];
		bool closed; /* a limit is reached */
	} pass;
};

/* Jobs of a user that are kept from running all at a time. */
struct group {
	struct user_share *user;
	char name[LIMIT_NAME_BYTES + 1];
	uint32_t jobs;     /* that have not ended */
	uint32_t running;  /* of them, starting and stopping ones too */
	uint32_t starting; /* of a decision being made */
};

/* All users that have a job, or had one not long ago, by name. */
struct shares {
	struct user_share **user;
	size_t count;
	struct group **group; /* by user and name */
	size_t groups;
	struct user_limits limits; /* of who has none of their own */
	double half_life_s;
};

struct user_share *shares_get(struct shares *s, const char *name); /* made when there is none */
/* Whether what is known of the user makes no difference any more: no job, no limits of their own,
 * no GPU-second in this month, and less than a unit-millisecond of decayed use. */
bool share_is_nothing(const struct shares *s, const struct user_share *u, int64_t now_ms);
void shares_remove(struct shares *s, size_t i); /* nobody points to it */
void shares_release(struct shares *s);
/* ---- group.c */
struct group *group_find(const struct shares *s, const struct user_share *user, const char *name);
struct group *group_enter(struct shares *s, struct user_share *user, const char *name);
void group_leave(struct shares *s, struct group *g); /* the last one frees it */
void groups_release(struct shares *s);

struct charge charge_of(const struct machine *m, const struct holding *h, Tf__Priority priority);
/* Decayed use at a time, without and with what runs counted ahead. */
double share_used(const struct user_share *u, double half_life_s, int64_t now_ms);
/* GPU-seconds of the month of now_ms; 0 when nothing was used in it yet. */
double share_month_gpu_s(const struct user_share *u, int64_t now_ms);
/* Brings the use to now; before each change of the rate. */
void share_settle(struct user_share *u, double half_life_s, int64_t now_ms);
void share_start(struct user_share *u, double half_life_s, struct charge c, int64_t now_ms);
void share_end(struct user_share *u, double half_life_s, struct charge c, int64_t now_ms);
/* "NAME weight=2 running=4 queued=100 gpus=2 gpu_hours=300": what is not said stays. */
int limits_parse(const char *text, char name[LIMIT_NAME_BYTES + 1], struct user_limits *out,
		 struct err *e);

#endif
