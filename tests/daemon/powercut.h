/* SPDX-License-Identifier: Apache-2.0
 * Replays a trace (powercut_trace.h) up to any moment and writes the folder as a power cut at that
 * moment might leave it. Sure are: bytes synced later (fsync, fdatasync, O_DSYNC), and names synced
 * with their folder. Of the rest nothing, all, or a part stays: any 4 KiB pieces of the bytes; of
 * the names those before some moment, as a journal keeps them. */
#ifndef TESTS_DAEMON_POWERCUT_H
#define TESTS_DAEMON_POWERCUT_H

#include "lib/err.h"
#include "tests/daemon/powercut_trace.h"

#include <stdbool.h>
#include <stddef.h>

struct powercut;

enum powercut_luck { LUCK_NONE, LUCK_ALL, LUCK_SOME };

int powercut_open(const char *trace, struct powercut **out, struct err *e);
void powercut_close(struct powercut *p);
size_t powercut_records(const struct powercut *p);
/* Takes the next record into the model; its head and data are borrowed until the close. False at
 * the end. */
bool powercut_step(struct powercut *p, struct powercut_head *head, const char **data);
/* Writes the folder as after a cut now; seed chooses with LUCK_SOME. */
int powercut_write(const struct powercut *p, enum powercut_luck luck, uint64_t seed,
		   const char *folder, struct err *e);

#endif
