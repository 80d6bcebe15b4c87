/* SPDX-License-Identifier: Apache-2.0
 * Backup and restore of a state folder. A backup is itself laid out as a state folder, with the
 * file `backup` written last. It is of one moment: what was committed when the store was copied.
 * Attempts are not in it: a job that ran then is queued again, in the backup, not here. */
#ifndef STORE_BACKUP_H
#define STORE_BACKUP_H

#include "lib/err.h"

#include <stdint.h>

struct backup_report {
	uint64_t jobs, artefacts, records;
	uint64_t bytes; /* of all files, linked ones too */
};

/* Backs up `state`, whose daemon may run, into the folder `to`, which must be empty or absent.
 * Files that never change (artefacts, uploads, files of ended jobs) become hard links where `to`
 * is on the same disk; all else is copied. Synced, and checked as store_check does, when 0 is
 * returned. */
int backup_make(const char *state, const char *to, struct backup_report *out, struct err *e);
/* Makes the state folder `state`, which must be empty or absent, of a backup: all files copied,
 * synced and checked. */
int backup_restore(const char *from, const char *state, struct backup_report *out, struct err *e);

#endif
