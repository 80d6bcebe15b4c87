/* SPDX-License-Identifier: Apache-2.0
 * The people, jobs, artefacts and uploads that each input of fuzz_request.c finds: jobs 1 done,
 * 2 failed, 3 held, 4 waiting for it, 5 cancelled, 6 to 9 queued, of which some start at once. */
#ifndef TESTS_FUZZ_SCENE_H
#define TESTS_FUZZ_SCENE_H

#include "tests/fuzz/any.h"
#include "tests/fuzz/stage.h"

enum who {
	ADMIN, MEMBER, OTHER, READER, STRANGER, WORKER, LIAR, /* who send requests */
	EXITED,                                               /* a worker's process */
	TIME,
	TROUBLE,                                              /* of the store */
	WHOS
};

/* Public keys of those before WORKER; names of those who are enrolled. */
extern const char *const scene_keys[];
extern const char *const scene_names[];

/* Makes the state, and keeps it for stage_renew. */
void scene_make(void);
/* A request that must be granted, with what follows; body is a number of Request.body, of_body its
 * message. The fuzzer's. */
void scene_ask(enum who who, unsigned body, void *of_body);

#endif
