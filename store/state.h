/* SPDX-License-Identifier: Apache-2.0
 * state/store: one LMDB environment with everything the daemon must not forget, and a journal of
 * its last commits (journal.h). One process and one thread use it. Changes gather in one
 * transaction until state_commit, which puts them into the journal, synced: the group commit of the
 * daemon. Keys are big-endian numbers or text; values are records of store.proto.
 *
 * Values returned point into the map: they are good until the next put, delete or commit. */
#ifndef STORE_STATE_H
#define STORE_STATE_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The journal has these numbers: new tables come last. */
enum state_table {
	STATE_META,      /* "version", "last-job", "seq", "journal": u64 */
	STATE_JOBS,      /* job -> JobRecord */
	STATE_SPECS,     /* job -> SpecRecord */
	STATE_LIVE,      /* job -> nothing: the jobs that have not ended */
	STATE_AFTER,     /* job, one that waits for it -> nothing */
	STATE_TOKENS,    /* token of the submit -> job */
	STATE_ATTEMPTS,  /* job, attempt -> AttemptRecord */
	STATE_USERS,     /* public key -> UserRecord */
	STATE_NAMES,     /* kind, name -> id of the artefact */
	STATE_ARTEFACTS, /* id -> ArtefactRecord */
	STATE_USES,      /* id of an artefact or upload, 0, 'j' or 'a', who -> nothing */
	STATE_UPLOADS,   /* token -> UploadRecord */
	STATE_USAGE,     /* month, 0, user, 0, project -> UsageRecord */
	STATE_SHARES,    /* name of a user -> ShareRecord */
	STATE_DISK,      /* user -> DiskRecord */
	STATE_SLOTS,     /* name -> SlotRecord */
	STATE_NOTICES,   /* number -> NoticeRecord */
	STATE_TABLES
};

struct state;

struct state_value {
	const void *data;
	size_t len;
};

/* Opens (or makes) the environment in folder. map_bytes bounds its size for good; it costs address
 * space only. TF_EVERSION when a newer program wrote it; one of an earlier version is opened as it
 * is (store_upgrade). *out is closed by state_close. */
int state_open(const char *folder, uint64_t map_bytes, struct state **out, struct err *e);
/* Opens an environment, also one that a daemon writes, to look at it only: what was folded when the
 * first value is asked for, until state_abort. Nothing may be put. */
int state_open_reading(const char *folder, struct state **out, struct err *e);
/* Writes what is committed now, compacted, as a new environment in folder (made when missing; must
 * hold none), for state_open. Not synced. Nobody who writes waits for it. */
int state_copy(struct state *s, const char *folder, struct err *e);
/* Drops what was not committed, folds the rest when it can. NULL is fine. */
void state_close(struct state *s);

/* TF_ENOTFOUND without a sentence when the key is not there. */
int state_get(struct state *s, enum state_table table, const void *key, size_t key_len,
	      struct state_value *out, struct err *e);
/* A failed put or delete spoils the transaction: its commit fails too. */
int state_put(struct state *s, enum state_table table, const void *key, size_t key_len,
	      const void *data, size_t len, struct err *e);
/* Deleting what is not there is fine. */
int state_delete(struct state *s, enum state_table table, const void *key, size_t key_len,
		 struct err *e);
/* Calls fn for each entry from the first key >= `from` (len 0: from the first) upwards; with
 * backward from the last key < `from` (len 0: from the last) downwards. fn must not change the
 * store; a positive return ends the walk with 0, a negative one is returned. */
typedef int (*state_fn)(void *arg, struct state_value key, struct state_value value);
int state_each(struct state *s, enum state_table table, const void *from, size_t from_len,
	       bool backward, state_fn fn, void *arg, struct err *e);
/* Number of entries of a table; 0 when it cannot be had. */
uint64_t state_count(struct state *s, enum state_table table);

bool state_changed(const struct state *s); /* something waits to be committed */
/* A part of the changes that is kept or taken back as a whole, before the commit. One at a time;
 * what state_get gave before its end is void after it. Numbers (state_set_number) are of no part.
 * While it is set aside, changes are of none; they may be committed if state_can_commit, and must
 * not be of its records. */
int state_part_begin(struct state *s, struct err *e);
void state_part_aside(struct state *s, bool aside);
int state_part_end(struct state *s, bool keep, struct err *e);
bool state_can_commit(const struct state *s);
/* Makes all changes since the last commit durable, or none: after an error nothing of them is in
 * the store that state_open gives next, or all is ("outcome unknown"), and this one must be closed.
 */
int state_commit(struct state *s, struct err *e);
/* The same, and the environment itself has all of it then: the journal is empty, and whoever opens
 * the environment for reading sees it. Takes longer. */
int state_fold(struct state *s, struct err *e);
bool state_folded(const struct state *s); /* nothing is left to fold, nor to commit */
/* Forgets the changes since the last commit. */
void state_abort(struct state *s);
/* Lets go of dead readers' pages; now and then. */
void state_reader_check(struct state *s);

/* Numbers of the table meta; absent ones are 0. */
int state_number(struct state *s, const char *name, uint64_t *out, struct err *e);
int state_set_number(struct state *s, const char *name, uint64_t value, struct err *e);

/* Big-endian 64-bit keys. */
void state_key(uint64_t number, uint8_t out[8]);
uint64_t state_key_number(const void *key);

#endif
