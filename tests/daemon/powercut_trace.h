/* SPDX-License-Identifier: Apache-2.0
 * The trace of powercut_shim.c: what a process did to the files below a folder, in order, and which
 * of it was synced. One record: this head, path, second path, data. */
#ifndef TESTS_DAEMON_POWERCUT_TRACE_H
#define TESTS_DAEMON_POWERCUT_TRACE_H

#include <stdint.h>

#define POWERCUT_ROOT "TF_POWERCUT_ROOT"   /* the folder, absolute */
#define POWERCUT_TRACE "TF_POWERCUT_TRACE" /* the file, outside it */

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
