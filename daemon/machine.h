/* SPDX-License-Identifier: Apache-2.0
 * What there is to hand out, what a job asks for, and what an attempt holds. GPUs are whole or
 * shared by counted bytes; jobs on the processor take a slot; --cpus and --mem are counted against
 * the host, whatever else runs there. Plain arithmetic: no clock, no store, no process. */
#ifndef DAEMON_MACHINE_H
#define DAEMON_MACHINE_H

#include "lib/err.h"
#include "proto/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GPU_NAME_MAX 16
#define GPU_UUID_MAX 64
#define GPU_WHY_MAX 128
#define HOLDING_TEXT_MAX 1100

struct gpu {
	char name[GPU_NAME_MAX];   /* "gpu0" */
	char device[GPU_NAME_MAX]; /* "cuda:0" as the daemon would see it */
	char uuid[GPU_UUID_MAX];   /* for CUDA_VISIBLE_DEVICES; "": the number of device */
	uint64_t memory;           /* bytes; 0: not known, so it cannot be shared */
	bool drained;              /* nothing new starts on it */
	char why[GPU_WHY_MAX];     /* it is drained */
};

struct machine {
	uint32_t slots; /* jobs on the processor at a time, at most LIMIT_SLOTS */
	uint32_t fast;  /* short generate jobs beside them, at most LIMIT_FAST_SLOTS */
	uint64_t drained; /* a bit for each of them on which nothing new starts */
	uint32_t cpus;  /* that --cpus may take together */
	uint64_t mem;   /* bytes that --mem may take together */
	struct gpu gpu[LIMIT_GPUS];
	size_t gpus;
};

/* What a job needs to run. Neither gpus nor gpu_mem: a slot of the processor. */
struct demand {
	uint32_t gpus;    /* whole ones */
	uint32_t cpus;    /* 0: not counted */
	uint64_t gpu_mem; /* bytes of one shared GPU; 0: none */
	uint64_t mem;     /* bytes; 0: not counted */
	bool fast;        /* may take a slot of the fast lane */
};

/* What an attempt has until its process is gone. */
struct holding {
	uint64_t job;
	uint64_t gpus;  /* a bit for each GPU */
	uint64_t share; /* bytes of the one GPU; 0: they are whole */
	uint64_t mem;
	uint32_t cpus;
	int slot; /* of the processor; from LIMIT_SLOTS on: of the fast lane; -1: none */
};

/* What is free. */
struct room {
	uint64_t slots; /* a bit for each free slot of the processor */
	uint64_t fast;  /* and of the fast lane */
	uint64_t whole; /* GPUs that nobody has anything of and that are not drained */
	uint64_t part;  /* GPUs of which some bytes are given */
	uint64_t left[LIMIT_GPUS]; /* bytes not given of each */
	uint64_t mem;
	uint32_t cpus;
};

/* "NAME DEVICE MEMORY [UUID]", as in "gpu0 cuda:0 80G". */
int gpu_parse(const char *text, struct gpu *out, struct err *e);
/* Everything, nothing taken. with_drained: as if no GPU was drained. */
void room_init(struct room *r, const struct machine *m, bool with_drained);
void room_take(struct room *r, const struct machine *m, const struct holding *h);
/* Finds a place: *out is what the job would hold. Whole GPUs are the first free ones; a share goes
 * where the least is left that suffices. False: it does not fit now. */
bool room_place(const struct room *r, const struct demand *want, struct holding *out);
/* What is free in both. */
void room_common(struct room *out, const struct room *a, const struct room *b);
/* Takes as much of what is wanted as there is, for somebody it does not suffice. */
void room_claim(struct room *r, const struct demand *want);
/* TF_EREFUSED, saying what exists, when the demand fits not even the empty machine. */
int machine_suits(const struct machine *m, const struct demand *want, struct err *e);
/* Whether some of what is held takes nothing new: it is drained, or no longer handed out. */
bool holding_drained(const struct machine *m, const struct holding *h);
/* What exists: "4 slots of the processor, 8 CPUs, 64G of memory, 2 GPUs (gpu0 80G, gpu1 80G)". */
void machine_text(const struct machine *m, char *out, size_t room);
/* "gpu0,gpu1", "gpu0/20G", "cpu0", for lists and records. */
void holding_text(const struct machine *m, const struct holding *h, char out[HOLDING_TEXT_MAX]);
/* The same read back; names that no longer exist are left out. */
void holding_parse(const struct machine *m, const char *text, struct holding *out);

#endif
