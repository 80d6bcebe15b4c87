/* SPDX-License-Identifier: Apache-2.0
 * When the store is folded for new jobs: soon for tokens that lie apart, as each keeps a page in
 * memory; late for those that begin with the time. */
#include "tests/test.h"
#include "proto/limits.h"
#include "store/jobs.h"
#include "store/journal.h"
#include "tests/daemon/own_store.h"

#include <string.h>

#define OLD_JOBS 2000u /* folded before; their tokens are all over the table */

static char *folder;
static struct state *store;
static struct err e;

static void put_job(const uint8_t token[TOKEN_BYTES], uint64_t id)
{
	Tf__JobRecord r = TF__JOB_RECORD__INIT;
	Tf__Job j = TF__JOB__INIT;

	j.id = id;
	j.kind = TF__JOB_KIND__NOOP;
	j.state = TF__JOB_STATE__QUEUED;
	r.job = &j;
	r.token.data = (uint8_t *)token;
	r.token.len = TOKEN_BYTES;
	assert_ok(job_put(store, &r, &e), &e);
}

/* Far from each other, as those of clients that draw all bytes: each lands in one of the widest
 * gaps that those before it left. */
static void scattered_token(uint64_t id, uint8_t token[TOKEN_BYTES])
{
	memset(token, 0, TOKEN_BYTES);
	state_key(id * 0x9e3779b97f4a7c15, token);
}

static void commit_scattered(uint64_t first, uint64_t count)
{
	uint8_t token[TOKEN_BYTES];

	for (uint64_t id = first; id < first + count; id++) {
		scattered_token(id, token);
		put_job(token, id);
	}
	assert_ok(state_commit(store, &e), &e);
}

static int open_store(void **state)
{
	(void)state;
	TRY(own_store_open(&folder, &store, &e));
	commit_scattered(1, OLD_JOBS);
	return state_fold(store, &e);
}

static int close_store(void **state)
{
	(void)state;
	own_store_close(&folder, &store);
	return 0;
}

static void change_something(void)
{
	assert_ok(state_set_number(store, "a", 1, &e), &e);
	assert_ok(state_commit(store, &e), &e);
}

/* However they are spread over commits; a change of a job is no new one. */
static void many_new_jobs_are_folded(void **state)
{
	const uint64_t first = OLD_JOBS + 1, last = OLD_JOBS + LIMIT_UNFOLDED_TOKENS;

	(void)state;
	for (uint64_t id = first; id < last; id++)
		commit_scattered(id, 1);
	commit_scattered(first, LIMIT_UNFOLDED_TOKENS - 1);
	assert_false(state_folded(store));
	commit_scattered(last, 1);
	assert_false(state_folded(store));
	change_something();
	assert_true(state_folded(store));
	commit_scattered(last + 1, 2 * LIMIT_UNFOLDED_TOKENS);
	assert_false(state_folded(store));
	change_something();
	assert_true(state_folded(store));
}

/* As of a clock that is seconds late. */
static void set_back(uint8_t token[TOKEN_BYTES])
{
	size_t i = TOKEN_TIME_BYTES - 3;
	bool borrow = token[i] < 0x10;

	token[i] -= 0x10;
	while (borrow)
		borrow = token[--i]-- == 0;
}

static void time_token(uint64_t id, uint8_t token[TOKEN_BYTES])
{
	assert_ok(token_make(token, &e), &e);
	if (id % 3 == 0)
		set_back(token);
}

/* How many folds there are while so many jobs come, a commit each. */
static size_t folds_of(void (*make)(uint64_t id, uint8_t token[TOKEN_BYTES]), uint64_t first,
		       uint64_t count)
{
	uint64_t epoch, now;
	size_t folds = 0;

	assert_ok(state_fold(store, &e), &e);
	assert_ok(state_number(store, JOURNAL_FILE, &epoch, &e), &e);
	for (uint64_t id = first; id < first + count; id++, epoch = now) {
		uint8_t token[TOKEN_BYTES];

		make(id, token);
		put_job(token, id);
		assert_ok(state_commit(store, &e), &e);
		assert_ok(state_number(store, JOURNAL_FILE, &now, &e), &e);
		folds += now != epoch;
	}
	return folds;
}

static void tokens_of_one_time_are_folded_late(void **state)
{
	const uint64_t count = LIMIT_UNFOLDED_JOBS;
	uint64_t next = OLD_JOBS + 1;

	(void)state;
	for (int i = 0; i < 2; i++, next += 2 * count) {
		assert_int_equal(folds_of(time_token, next, count), 0);
		change_something();
		assert_true(state_folded(store)); /* enough all the same */
		assert_int_equal(folds_of(scattered_token, next + count, count),
				 count / (LIMIT_UNFOLDED_TOKENS + 1));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(many_new_jobs_are_folded, open_store, close_store),
		cmocka_unit_test_setup_teardown(tokens_of_one_time_are_folded_late, open_store,
						close_store),
	};

	return cmocka_run_group_tests_name("folds", tests, NULL, NULL);
}
