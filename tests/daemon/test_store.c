/* SPDX-License-Identifier: Apache-2.0
 * The store of the daemon: what is committed is there when it is opened again, what is not is not,
 * and the indexes follow the records. */
#include "tests/test.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/catalogue.h"
#include "store/jobs.h"
#include "store/journal.h"
#include "store/users.h"
#include "tests/daemon/own_store.h"
#include "tests/daemon/user_keys.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static char *folder;
static struct state *store;
static struct err e;

static int open_store(void **state)
{
	(void)state;
	return own_store_open(&folder, &store, &e);
}

static int close_store(void **state)
{
	(void)state;
	own_store_close(&folder, &store);
	return 0;
}

static void reopen(void)
{
	state_close(store);
	store = NULL;
	assert_ok(state_open(folder, OWN_STORE_MAP_BYTES, &store, &e), &e);
}

static void put_job(uint64_t id, Tf__JobState state)
{
	Tf__JobRecord r = TF__JOB_RECORD__INIT;
	Tf__Job j = TF__JOB__INIT;
	uint8_t token[16] = "token 0000000000";

	state_key(id, token + 6);
	j.id = id;
	j.kind = TF__JOB_KIND__NOOP;
	j.state = state;
	j.has_attempt = true;
	j.attempt = 1;
	r.job = &j;
	r.token.data = token;
	r.token.len = sizeof token;
	assert_ok(job_put(store, &r, &e), &e);
}

static void commit_is_kept_and_abort_is_not(void **state)
{
	uint64_t value;

	(void)state;
	assert_ok(state_set_number(store, "a", 7, &e), &e);
	assert_ok(state_commit(store, &e), &e);
	assert_ok(state_set_number(store, "a", 8, &e), &e);
	assert_true(state_changed(store));
	reopen();
	assert_ok(state_number(store, "a", &value, &e), &e);
	assert_int_equal(value, 7);
	assert_false(state_changed(store));
}

static void a_killed_writer_loses_nothing_committed(void **state)
{
	uint64_t value, same;
	int status, ready[2];
	char byte;
	pid_t pid;

	(void)state;
	state_close(store);
	store = NULL;
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (pid == 0) {
		struct state *own = NULL;

		if (state_open(folder, OWN_STORE_MAP_BYTES, &own, NULL) < 0)
			_exit(1);
		for (uint64_t i = 1;; i++) {
			state_set_number(own, "count", i, NULL);
			state_set_number(own, "same", i, NULL);
			if (state_commit(own, NULL) < 0 ||
			    (i == 20 && write(ready[1], "x", 1) != 1))
				_exit(1);
		}
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	assert_ok(state_open(folder, OWN_STORE_MAP_BYTES, &store, &e), &e);
	assert_ok(state_number(store, "count", &value, &e), &e);
	assert_true(value >= 20);
	assert_ok(state_number(store, "same", &same, &e), &e);
	assert_int_equal(same, value);
}

static void a_newer_store_is_refused(void **state)
{
	struct state *other = NULL;

	(void)state;
	assert_ok(state_set_number(store, "version", TF_STORE_VERSION + 1, &e), &e);
	assert_ok(state_commit(store, &e), &e);
	state_close(store);
	store = NULL;
	assert_int_equal(state_open(folder, OWN_STORE_MAP_BYTES, &other, &e), TF_EVERSION);
	assert_non_null(strstr(e.text, "newer program"));
}

static void a_full_map_spoils_the_turn_only(void **state)
{
	char *big = xcalloc(1, 1 << 20), key[16];
	uint64_t value;
	int rc = 0;

	(void)state;
	assert_ok(state_set_number(store, "a", 1, &e), &e);
	assert_ok(state_commit(store, &e), &e);
	for (int i = 0; i < 20 && rc == 0; i++) {
		snprintf(key, sizeof key, "key %d", i);
		rc = state_put(store, STATE_META, key, strlen(key), big, 1 << 20, &e);
	}
	assert_int_equal(rc, TF_ENOSPACE);
	assert_true(state_commit(store, NULL) < 0);
	reopen();
	assert_ok(state_number(store, "a", &value, &e), &e);
	assert_int_equal(value, 1);
	assert_int_equal(state_get(store, STATE_META, "key 0", 5, &(struct state_value){ 0 }, &e),
			 TF_ENOTFOUND);
	xfree(big);
}

/* ---------------------------------------------------------------- the journal */

static void copy_file(const char *from, const char *to, const char *name)
{
	char *a = xasprintf("%s/%s", from, name), *b = xasprintf("%s/%s", to, name);

	assert_ok(file_copy(a, b, false, NULL, &e), &e);
	xfree(a);
	xfree(b);
}

/* The store as a process that is killed now leaves it, in a folder beside it. */
static char *killed_now(void)
{
	char *to = xasprintf("%s/killed", folder);

	assert_ok(dir_remove(to, &e), &e);
	assert_ok(dir_make(to, 0700, &e), &e);
	copy_file(folder, to, "data.mdb");
	copy_file(folder, to, "journal");
	return to;
}

static void put_number(const char *name, uint64_t value)
{
	assert_ok(state_set_number(store, name, value, &e), &e);
	assert_ok(state_commit(store, &e), &e);
}

static uint64_t number_in(const char *where, const char *name)
{
	struct state *other = NULL;
	uint64_t value;

	assert_ok(state_open(where, OWN_STORE_MAP_BYTES, &other, &e), &e);
	assert_ok(state_number(other, name, &value, &e), &e);
	state_close(other);
	return value;
}

/* What the environment alone has. */
static uint64_t folded_number(const char *name)
{
	struct state *other = NULL;
	char *path = xasprintf("%s/reader", folder);
	uint64_t value;

	assert_ok(dir_remove(path, &e), &e);
	assert_ok(dir_make(path, 0700, &e), &e);
	copy_file(folder, path, "data.mdb"); /* a process opens an environment once */
	assert_ok(state_open_reading(path, &other, &e), &e);
	assert_ok(state_number(other, name, &value, &e), &e);
	state_close(other);
	xfree(path);
	return value;
}

static void what_the_journal_has_is_kept(void **state)
{
	char *killed, *copy = xasprintf("%s/copy", folder);

	(void)state;
	put_number("a", 1);
	put_number("a", 2);
	assert_false(state_folded(store));
	assert_int_equal(folded_number("a"), 0);
	killed = killed_now();
	assert_int_equal(number_in(killed, "a"), 2);
	assert_int_equal(number_in(killed, "a"), 2); /* it was folded, and still is there */
	assert_ok(state_copy(store, copy, &e), &e);
	assert_int_equal(number_in(copy, "a"), 2);
	assert_ok(state_fold(store, &e), &e);
	assert_true(state_folded(store));
	assert_int_equal(folded_number("a"), 2);
	put_number("a", 3);
	xfree(killed);
	killed = killed_now();
	assert_int_equal(number_in(killed, "a"), 3);
	xfree(killed);
	xfree(copy);
}

/* Where the first record ends, or the second. */
static size_t end_of_record(const char *journal, int which)
{
	size_t at = 0;

	for (int i = 0; i < which; i++)
		at += state_key_number(journal + at + 16);
	return at;
}

static void half_a_record_was_never_there(void **state)
{
	char *killed, *path;
	size_t first, second;
	struct buf b = BUF_INIT;

	(void)state;
	put_number("a", 1);
	put_number("a", 2);
	killed = killed_now();
	path = xasprintf("%s/journal", killed);
	assert_ok(file_read(path, LIMIT_JOURNAL_BYTES, &b, &e), &e);
	first = end_of_record(b.data, 1);
	second = end_of_record(b.data, 2);
	for (size_t at = first; at < second; at++) {
		xfree(killed);
		killed = killed_now();
		b.data[at] ^= 1;
		assert_ok(file_write(path, b.data, b.len, 0600, &e), &e);
		assert_int_equal(number_in(killed, "a"), 1);
		b.data[at] ^= 1;
	}
	buf_release(&b);
	xfree(path);
	xfree(killed);
}

static void a_journal_of_earlier_is_nothing(void **state)
{
	char *killed;

	(void)state;
	put_number("a", 1);
	killed = killed_now(); /* its journal says 1 */
	put_number("a", 2);
	reopen();
	copy_file(folder, killed, "data.mdb");
	assert_int_equal(number_in(killed, "a"), 2);
	xfree(killed);
}

static void forgotten_changes_are_not_in_the_journal(void **state)
{
	char *killed;

	(void)state;
	assert_ok(state_set_number(store, "z", 1, &e), &e);
	state_abort(store);
	put_number("a", 1);
	assert_ok(state_set_number(store, "a", 2, &e), &e);
	assert_ok(state_set_number(store, "b", 2, &e), &e);
	state_abort(store);
	assert_false(state_changed(store));
	put_number("c", 4);
	killed = killed_now();
	assert_int_equal(number_in(killed, "a"), 1);
	assert_int_equal(number_in(killed, "b"), 0);
	assert_int_equal(number_in(killed, "c"), 4);
	assert_int_equal(number_in(killed, "z"), 0);
	xfree(killed);
}

/* A change like those of records. */
static void put_record(const char *name, uint8_t value)
{
	uint8_t data[8] = { 0, 0, 0, 0, 0, 0, 0, value };

	assert_ok(state_put(store, STATE_META, name, strlen(name), data, sizeof data, &e), &e);
}

static uint64_t number_now(const char *name)
{
	uint64_t value;

	assert_ok(state_number(store, name, &value, &e), &e);
	return value;
}

/* One of each: changed twice, deleted, new. */
static void change_in_part(void)
{
	assert_ok(state_part_begin(store, &e), &e);
	put_record("a", 2);
	put_record("a", 3);
	assert_ok(state_delete(store, STATE_META, "b", 1, &e), &e);
	assert_ok(state_delete(store, STATE_META, "none", 4, &e), &e);
	put_record("c", 4);
}

static void is_as_before(const char *where)
{
	assert_int_equal(where ? number_in(where, "a") : number_now("a"), 1);
	assert_int_equal(where ? number_in(where, "b") : number_now("b"), 1);
	assert_int_equal(where ? number_in(where, "c") : number_now("c"), 0);
}

/* What is committed in between has nothing of it, nor has a process that is killed then. */
static void a_part_is_kept_or_taken_back(void **state)
{
	char *killed;

	(void)state;
	put_number("a", 1);
	put_number("b", 1);
	change_in_part();
	assert_false(state_can_commit(store));
	state_part_aside(store, true);
	assert_true(state_can_commit(store));
	put_number("d", 5);
	killed = killed_now();
	is_as_before(killed);
	assert_int_equal(number_in(killed, "d"), 5);
	xfree(killed);
	state_part_aside(store, false);
	assert_int_equal(number_now("a"), 3);
	assert_ok(state_part_end(store, false, &e), &e);
	is_as_before(NULL);
	put_number("d", 6);
	killed = killed_now();
	is_as_before(killed);
	xfree(killed);
	change_in_part();
	assert_ok(state_set_number(store, "of no part", 7, &e), &e);
	assert_ok(state_part_end(store, true, &e), &e);
	assert_ok(state_commit(store, &e), &e);
	killed = killed_now();
	assert_int_equal(number_in(killed, "a"), 3);
	assert_int_equal(number_in(killed, "b"), 0);
	assert_int_equal(number_in(killed, "c"), 4);
	assert_int_equal(number_in(killed, "of no part"), 7);
	xfree(killed);
}

/* A fold would take the part along. */
static void a_part_is_not_folded(void **state)
{
	char *big = xcalloc(1, LIMIT_JOURNAL_BYTES);

	(void)state;
	put_number("a", 1);
	assert_ok(state_part_begin(store, &e), &e);
	put_record("a", 2);
	state_part_aside(store, true);
	assert_ok(state_put(store, STATE_META, "big", 3, big, LIMIT_JOURNAL_BYTES, &e), &e);
	assert_false(state_can_commit(store));
	state_part_aside(store, false);
	assert_ok(state_part_end(store, false, &e), &e);
	assert_ok(state_commit(store, &e), &e);
	assert_int_equal(folded_number("a"), 1);
	xfree(big);
}

/* More than it holds, by many commits and by one. */
static void a_full_journal_is_folded(void **state)
{
	char *killed, *big = xcalloc(1, LIMIT_JOURNAL_BYTES), *journal;
	uint64_t folds = 0;

	(void)state;
	for (uint64_t i = 1; i <= 40; i++) {
		assert_ok(state_put(store, STATE_META, "big", 3, big, LIMIT_JOURNAL_BYTES / 16, &e),
			  &e);
		put_number("a", i);
		folds += state_folded(store);
	}
	assert_int_equal(folds, 2);
	killed = killed_now();
	assert_int_equal(number_in(killed, "a"), 40);
	assert_ok(state_put(store, STATE_META, "big", 3, big, LIMIT_JOURNAL_BYTES, &e), &e);
	put_number("a", 41);
	assert_true(state_folded(store));
	journal = xasprintf("%s/journal", folder);
	assert_int_equal(file_size(journal), LIMIT_JOURNAL_BYTES);
	xfree(journal);
	xfree(killed);
	xfree(big);
}

#define SMALL_MAP_BYTES (2u << 20)

/* Values of so many bytes until one is refused; all that were acknowledged are there then. */
static void fill_with(size_t bytes)
{
	char *value = xcalloc(1, bytes), key[16];
	uint64_t taken = 0, found;
	int rc = 0;

	state_close(store);
	assert_ok(state_open(folder, SMALL_MAP_BYTES, &store, &e), &e);
	while (rc == 0) {
		snprintf(key, sizeof key, "key %05llu", (unsigned long long)taken);
		rc = state_put(store, STATE_META, key, strlen(key), value, bytes, NULL);
		if (rc == 0)
			rc = state_set_number(store, "taken", taken + 1, NULL);
		if (rc == 0)
			rc = state_commit(store, NULL);
		taken += rc == 0;
	}
	assert_int_equal(rc, TF_ENOSPACE);
	state_close(store);
	store = NULL;
	assert_ok(state_open(folder, SMALL_MAP_BYTES, &store, &e), &e);
	assert_ok(state_number(store, "taken", &found, &e), &e);
	assert_int_equal(found, taken);
	assert_true(state_folded(store));
	assert_true(taken * bytes > SMALL_MAP_BYTES / 4);
	xfree(value);
}

/* Whatever the map is filled with, what was acknowledged comes out of the journal. */
static void a_map_filled_to_the_edge_is_opened(void **state)
{
	static const size_t bytes[] = { 1500, 3000, 9000, 40000 };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(bytes); i++) {
		fill_with(bytes[i]);
		close_store(NULL);
		assert_int_equal(open_store(NULL), 0);
	}
}

/* An environment of which nothing more than the journal's size can be written. */
static void a_full_disk_can_be_read_from(void **state)
{
	char *killed, *big = xcalloc(1, LIMIT_JOURNAL_BYTES / 2);
	struct rlimit old, full;
	struct state *other = NULL;
	uint64_t value;

	(void)state;
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	full = (struct rlimit){ LIMIT_JOURNAL_BYTES, old.rlim_max };
	for (char key = 'a'; key < 'e'; key++)
		assert_ok(state_put(store, STATE_META, &key, 1, big, LIMIT_JOURNAL_BYTES / 2, &e),
			  &e);
	assert_ok(state_fold(store, &e), &e);
	assert_ok(state_put(store, STATE_META, "e", 1, big, LIMIT_JOURNAL_BYTES / 2, &e), &e);
	put_number("a", 7);
	assert_false(state_folded(store));
	killed = killed_now();
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &full), 0);
	assert_ok(state_open(killed, OWN_STORE_MAP_BYTES, &other, &e), &e);
	assert_ok(state_number(other, "a", &value, &e), &e);
	assert_int_equal(value, 7);
	assert_ok(state_set_number(other, "a", 8, &e), &e);
	assert_true(state_commit(other, NULL) < 0);
	state_close(other);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	assert_int_equal(number_in(killed, "a"), 7);
	xfree(killed);
	xfree(big);
}

/* A newer program's journal may speak of tables that are not known here. */
static void a_newer_journal_is_refused(void **state)
{
	char *killed;
	struct journal *j = NULL;
	struct state *other = NULL;
	uint64_t epoch;

	(void)state;
	put_number("a", 1);
	assert_ok(state_fold(store, &e), &e);
	assert_ok(state_number(store, "journal", &epoch, &e), &e);
	killed = killed_now();
	assert_ok(journal_open(killed, &j, &e), &e);
	assert_ok(journal_read(j, epoch, NULL, NULL, &e), &e);
	journal_note(j, false, STATE_TABLES, "key", 3, "value", 5);
	assert_ok(journal_write(j, &e), &e);
	journal_close(j);
	assert_int_equal(state_open(killed, OWN_STORE_MAP_BYTES, &other, &e), TF_EVERSION);
	assert_non_null(strstr(e.text, "newer program"));
	xfree(killed);
}

struct seen {
	uint64_t id[16];
	size_t count;
};

static int see(void *arg, Tf__JobRecord *r)
{
	struct seen *s = arg;

	s->id[s->count++] = r->job->id;
	return 0;
}

static int see_row(void *arg, Tf__JobRecord *r, struct state_value job)
{
	uint8_t packed[1024];

	assert_int_equal(job.len, tf__job__get_packed_size(r->job));
	assert_true(job.len <= sizeof packed);
	tf__job__pack(r->job, packed);
	assert_memory_equal(job.data, packed, job.len);
	return see(arg, r);
}

static void indexes_follow_the_records(void **state)
{
	struct seen live = { .count = 0 }, all = { .count = 0 }, old = { .count = 0 };
	struct seen rows = { .count = 0 };
	uint8_t token[16] = "token 0000000000";
	uint64_t id;

	(void)state;
	put_job(1, TF__JOB_STATE__QUEUED);
	put_job(2, TF__JOB_STATE__RUNNING);
	put_job(3, TF__JOB_STATE__QUEUED);
	put_job(2, TF__JOB_STATE__DONE);
	assert_ok(jobs_each_live(store, see, &live, &e), &e);
	assert_int_equal(live.count, 2);
	assert_int_equal(live.id[0], 1);
	assert_int_equal(live.id[1], 3);
	assert_ok(jobs_each(store, 0, see, &all, &e), &e);
	assert_int_equal(all.count, 3);
	assert_int_equal(all.id[0], 3);
	assert_ok(jobs_list(store, true, 0, see_row, &rows, &e), &e);
	assert_int_equal(rows.count, 3);
	assert_int_equal(rows.id[2], 1);
	rows.count = 0;
	assert_ok(jobs_list(store, false, 3, see_row, &rows, &e), &e);
	assert_int_equal(rows.count, 1);
	assert_int_equal(rows.id[0], 1);
	assert_ok(jobs_each(store, 3, see, &old, &e), &e);
	assert_int_equal(old.count, 2);
	assert_int_equal(old.id[0], 2);
	state_key(2, token + 6);
	assert_ok(job_by_token(store, token, &id, &e), &e);
	assert_int_equal(id, 2);
	token[0] = 'x';
	assert_int_equal(job_by_token(store, token, &id, &e), TF_ENOTFOUND);
}

static int measure(void *arg, Tf__JobRecord *r)
{
	struct seen *s = arg;
	size_t len = strlen(r->job->reason);

	assert_true(r->job->reason[len - 1] == (char)('a' + r->job->id));
	s->id[s->count++] = len;
	return 0;
}

/* Small ones share the walk's memory, large ones do not fit in. */
static void a_walk_meets_records_of_all_sizes(void **state)
{
	static const size_t len[] = { 10, 40000, 100, 7000, 8000, 1 };
	static char reason[40001];
	struct seen seen = { .count = 0 };

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(len); i++) {
		Tf__JobRecord *r = NULL;

		put_job(i + 1, TF__JOB_STATE__QUEUED);
		assert_ok(job_get(store, i + 1, &r, &e), &e);
		memset(reason, (char)('a' + i + 1), len[i]);
		reason[len[i]] = 0;
		xfree(r->job->reason);
		r->job->reason = xstrdup(reason);
		assert_ok(job_put(store, r, &e), &e);
		record_free(r);
	}
	assert_ok(jobs_each_live(store, measure, &seen, &e), &e);
	assert_int_equal(seen.count, ARRAY_LEN(len));
	for (size_t i = 0; i < ARRAY_LEN(len); i++)
		assert_int_equal(seen.id[i], len[i]);
}

static void job_numbers_never_come_again(void **state)
{
	uint64_t a, b;

	(void)state;
	assert_ok(jobs_next_id(store, 1, &a, &e), &e);
	assert_ok(state_commit(store, &e), &e);
	reopen();
	assert_ok(jobs_next_id(store, 1, &b, &e), &e);
	assert_int_equal(b, a + 1);
}

static void a_damaged_record_is_named(void **state)
{
	Tf__JobRecord *r = NULL;
	uint8_t key[8];

	(void)state;
	state_key(5, key);
	assert_ok(state_put(store, STATE_JOBS, key, 8, "rubbish", 7, &e), &e);
	assert_int_equal(job_get(store, 5, &r, &e), TF_ECORRUPT);
	assert_non_null(strstr(e.text, "JobRecord"));
	err_clear(&e);
	assert_int_equal(job_get(store, 6, &r, &e), TF_ENOTFOUND);
}

static void waiters_are_found_by_the_job(void **state)
{
	uint64_t *waiter = NULL;
	size_t n;

	(void)state;
	assert_ok(job_after_put(store, 1, 5, &e), &e);
	assert_ok(job_after_put(store, 1, 6, &e), &e);
	assert_ok(job_after_put(store, 2, 7, &e), &e);
	assert_ok(job_waiters(store, 1, &waiter, &n, &e), &e);
	assert_int_equal(n, 2);
	assert_int_equal(waiter[1], 6);
	xfree(waiter);
	assert_ok(job_after_delete(store, 1, 5, &e), &e);
	assert_ok(job_waiters(store, 1, &waiter, &n, &e), &e);
	assert_int_equal(n, 1);
	xfree(waiter);
}

static void a_name_leads_to_its_artefact(void **state)
{
	Tf__Artefact a = TF__ARTEFACT__INIT;
	Tf__Input from = TF__INPUT__INIT, *list = &from;
	Tf__ArtefactRecord *r = NULL;
	char who, *name = NULL;

	(void)state;
	from.kind = TF__ARTEFACT_KIND__TOKENIZER_MODEL;
	from.name = (char *)"t";
	from.id = (char *)"t.1";
	a.kind = TF__ARTEFACT_KIND__DATASET;
	a.name = (char *)"emoji";
	a.id = (char *)"emoji.2";
	a.state = (char *)ARTEFACT_READY;
	a.n_made_from = 1;
	a.made_from = &list;
	assert_ok(artefact_put(store, &a, &e), &e);
	assert_ok(artefact_find(store, TF__ARTEFACT_KIND__DATASET, "emoji", &r, &e), &e);
	assert_string_equal(r->artefact->id, "emoji.2");
	record_free(r);
	assert_int_equal(artefact_find(store, TF__ARTEFACT_KIND__MODEL, "emoji", &r, &e),
			 TF_ENOTFOUND);
	assert_string_equal(e.text, "no model called 'emoji'");
	assert_ok(use_find(store, "t.1", &who, &name, &e), &e);
	assert_int_equal(who, 'a');
	assert_string_equal(name, "emoji.2");
	xfree(name);
	assert_int_equal(use_find(store, "t.", &who, &name, &e), TF_ENOTFOUND);
	assert_ok(artefact_remove(store, &a, &e), &e);
	assert_int_equal(use_find(store, "t.1", &who, &name, &e), TF_ENOTFOUND);
	assert_int_equal(artefact_get(store, "emoji.2", &r, &e), TF_ENOTFOUND);
}

static void configured_users_come_and_go(void **state)
{
	const char *two[] = { "ann reader " KEY_A, "bob admin " KEY_B };
	const char *bad[] = { "ann owner " KEY_A };
	const char *same[] = { "bob admin " KEY_B, "ann reader " KEY_B };
	Tf__UserRecord *r = NULL;

	(void)state;
	assert_ok(users_configure(store, two, 2, &e), &e);
	assert_ok(user_get(store, KEY_B, &r, &e), &e);
	assert_string_equal(r->name, "bob");
	assert_int_equal(r->role, ROLE_ADMIN);
	record_free(r);
	assert_ok(users_configure(store, two, 1, &e), &e);
	assert_int_equal(user_get(store, KEY_B, &r, &e), TF_ENOTFOUND);
	assert_int_equal(users_configure(store, bad, 1, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "role 'owner'"));
	err_clear(&e);
	assert_int_equal(users_configure(store, same, 2, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "user 'ann': key 'Yne@$w-v...' is that of 'bob'"));
	assert_ok(user_get(store, KEY_A, &r, &e), &e); /* a mistake changes nothing */
	record_free(r);
	assert_int_equal(user_get(store, KEY_B, &r, &e), TF_ENOTFOUND);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(commit_is_kept_and_abort_is_not, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(a_killed_writer_loses_nothing_committed, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(a_newer_store_is_refused, open_store, close_store),
		cmocka_unit_test_setup_teardown(a_full_map_spoils_the_turn_only, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(what_the_journal_has_is_kept, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(half_a_record_was_never_there, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(a_journal_of_earlier_is_nothing, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(forgotten_changes_are_not_in_the_journal,
						open_store, close_store),
		cmocka_unit_test_setup_teardown(a_part_is_kept_or_taken_back, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(a_part_is_not_folded, open_store, close_store),
		cmocka_unit_test_setup_teardown(a_full_journal_is_folded, open_store, close_store),
		cmocka_unit_test_setup_teardown(a_map_filled_to_the_edge_is_opened, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(a_full_disk_can_be_read_from, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(a_newer_journal_is_refused, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(indexes_follow_the_records, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(a_walk_meets_records_of_all_sizes, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(job_numbers_never_come_again, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(a_damaged_record_is_named, open_store, close_store),
		cmocka_unit_test_setup_teardown(waiters_are_found_by_the_job, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(a_name_leads_to_its_artefact, open_store,
						close_store),
		cmocka_unit_test_setup_teardown(configured_users_come_and_go, open_store,
						close_store),
	};

	return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
