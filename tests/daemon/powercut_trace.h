/* SPDX-License-Identifier: Apache-2.0
 * What powercut_shim.c is told and tells. Its trace says what a process did to the files below a
 * folder, in order, and which of it was synced; one record: a head, path, second path, data. Its
 * faults are switched on by a file that holds one of the words below. */
#ifndef TESTS_DAEMON_POWERCUT_TRACE_H
#define TESTS_DAEMON_POWERCUT_TRACE_H

#include <stdint.h>

#define POWERCUT_ROOT "TF_POWERCUT_ROOT"   /* the folder, absolute */
#define POWERCUT_TRACE "TF_POWERCUT_TRACE" /* the file, outside it; unset: no trace */
#define POWERCUT_FAULT "TF_POWERCUT_FAULT" /* the file of the word, outside it; unset: no faults */

#define FAULT_FULL "full"     /* ENOSPC for bytes and new names */
#define FAULT_BROKEN "broken" /* EIO for syncs */
#define FAULT_SLOW "slow"     /* a sync takes 100 ms */
#define FAULT_FORK "fork"     /* EAGAIN for new processes */

enum powercut_op {
	OP_CREATE = 1,
	OP_MKDIR,
	OP_WRITE, /* data at offset; synced: through a descriptor with O_DSYNC */
	OP_TRUNCATE,
	OP_SYNC, /* of a file or a folder */
	OP_RENAME,
	OP_REMOVE,
	OP_SAID, /* by the test: the daemon has answered; data says what */
};

struct powercut_head {
	uint32_t op, synced;
	uint32_t path_len, second_len;
	uint64_t offset, data_len;
};

#endif
