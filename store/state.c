/* SPDX-License-Identifier: Apache-2.0
 * The environment under the daemon's records; see state.h. At most one transaction is open: a
 * read-only one for lookups, replaced by the writing one at the first change. A commit puts the
 * changes into the journal (journal.h); the writing transaction stays open with them until it is
 * folded, so it holds what the journal holds and what is not yet committed. */
#include "config.h"
#include "store/state.h"
#include "lib/fault.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/journal.h"
#include "store/undo.h"

#include <lmdb.h>
#include <errno.h>
#include <string.h>

#define FOLD_BYTES (16u << 20)

static const char *const table_names[STATE_TABLES] = {
	"meta",     "jobs",  "specs", "live",      "after", "tokens",
	"attempts", "users", "names", "artefacts", "uses",  "uploads", "usage",
	"shares",
	"disk",
	"slots",
	"notices",
};

struct state {
	MDB_env *env;
	MDB_dbi table[STATE_TABLES];
	MDB_txn *read;  /* kept reset between turns */
	bool reading;   /* `read` is live */
	MDB_txn *write; /* NULL: all is in the environment */
	bool part;      /* one is open */
	bool aside;     /* it is, and changes are not of it */
	struct undo undo; /* of the part */
	bool spoiled;   /* a change failed: do not commit */
	bool failed;    /* a commit failed: to be closed */
	bool must_fold; /* nothing is added to the journal: it may not be on disk as it was read, or
			   enough waits */
	size_t tokens, apart; /* put since the last fold; of them beside no other. What is forgotten
				 counts, too */
	uint64_t new_job;     /* the least whose token was put since then; 0: none was */
	struct journal *journal; /* NULL: only read */
	bool reading_only;
	bool missing[STATE_TABLES]; /* an older program's store, opened for reading, lacks it */
	char *folder;
};

static int mdb_error(struct err *e, const struct state *s, const char *what, int rc)
{
	int code = rc == MDB_MAP_FULL || rc == ENOSPC ? TF_ENOSPACE
		   : rc == MDB_CORRUPTED || rc == MDB_PAGE_NOTFOUND || rc == MDB_INVALID
			   ? TF_ECORRUPT
		   : rc == MDB_VERSION_MISMATCH ? TF_EVERSION
						: TF_EIO;

	return err_set(e, code, "%s: %s: %s", s->folder, what, mdb_strerror(rc));
}

void state_key(uint64_t number, uint8_t out[8])
{
	for (int i = 7; i >= 0; i--, number >>= 8)
		out[i] = (uint8_t)number;
}

uint64_t state_key_number(const void *key)
{
	const uint8_t *p = key;
	uint64_t number = 0;

	for (int i = 0; i < 8; i++)
		number = number << 8 | p[i];
	return number;
}

/* The transaction to read with. */
static int reader(struct state *s, MDB_txn **out, struct err *e)
{
	int rc = 0;

	FAIL_IF(s->failed, e, TF_EIO, "%s: a commit failed", s->folder);
	if (!s->write && !s->reading) {
		rc = s->read ? mdb_txn_renew(s->read)
			     : mdb_txn_begin(s->env, NULL, MDB_RDONLY, &s->read);
		if (rc)
			return mdb_error(e, s, "begin of reading", rc);
		s->reading = true;
	}
	*out = s->write ? s->write : s->read;
	return 0;
}

static void reader_rest(struct state *s)
{
	if (s->reading)
		mdb_txn_reset(s->read);
	s->reading = false;
}

static int writer(struct state *s, struct err *e)
{
	int rc;

	CHECK(!s->reading_only);
	FAIL_IF(s->failed, e, TF_EIO, "%s: a commit failed", s->folder);
	if (s->write)
		return 0;
	reader_rest(s);
	rc = fault_hit("store-begin") ? EIO : mdb_txn_begin(s->env, NULL, 0, &s->write);
	if (rc)
		return mdb_error(e, s, "begin of writing", rc);
	s->spoiled = false;
	return 0;
}

static int check_version(struct state *s, uint64_t *version, struct err *e)
{
	TRY(state_number(s, "version", version, e));
	FAIL_IF(*version > TF_STORE_VERSION, e, TF_EVERSION,
		"%s: written by a newer program (store version %llu, this one knows %u)", s->folder,
		(unsigned long long)*version, TF_STORE_VERSION);
	return 0;
}

/* A change of the journal, into the environment. */
static int apply(void *arg, unsigned table, const void *key, size_t key_len, const void *value,
		 size_t len, struct err *e)
{
	struct state *s = arg;
	MDB_val k = { key_len, (void *)key }, v = { len, (void *)value };
	int rc;

	FAIL_IF(table >= STATE_TABLES, e, TF_EVERSION,
		"%s: written by a newer program (its journal has a table %u)", s->folder, table);
	TRY(writer(s, e));
	rc = value ? mdb_put(s->write, s->table[table], &k, &v, 0)
		   : mdb_del(s->write, s->table[table], &k, NULL);
	return rc && rc != MDB_NOTFOUND ? mdb_error(e, s, "journal", rc) : 0;
}

/* What the journal has becomes the writing transaction. */
static int redo(struct state *s, struct err *e)
{
	uint64_t epoch;

	TRY(state_number(s, JOURNAL_FILE, &epoch, e));
	s->must_fold |= epoch == 0;
	return journal_read(s->journal, epoch, apply, s, e);
}

/* All of the writing transaction, durably; the journal begins anew. */
static int fold(struct state *s, struct err *e)
{
	uint64_t epoch = journal_new_epoch();
	MDB_txn *txn;
	int rc;

	TRY(state_set_number(s, JOURNAL_FILE, epoch, e));
	txn = s->write;
	s->write = NULL;
	rc = mdb_txn_commit(txn);
	if (rc)
		return mdb_error(e, s, "commit", rc);
	journal_begin(s->journal, epoch);
	s->must_fold = false;
	s->tokens = s->apart = 0;
	s->new_job = 0;
	return 0;
}

static void drop_write(struct state *s)
{
	if (s->write)
		mdb_txn_abort(s->write);
	s->write = NULL;
}

static void give_up(struct state *s)
{
	s->failed = true;
	drop_write(s);
}

static int redo_and_fold(struct state *s, struct err *e)
{
	drop_write(s);
	TRY(redo(s, e));
	return s->must_fold || !journal_empty(s->journal) ? fold(s, e) : 0;
}

/* What was acknowledged had room when it was put; folding it may take a few pages more than the
 * map has. */
static int fold_beyond(struct state *s, uint64_t map_bytes, struct err *e)
{
	int rc;

	drop_write(s);
	reader_rest(s);
	rc = mdb_env_set_mapsize(s->env, map_bytes + FOLD_BYTES);
	if (rc)
		return mdb_error(e, s, "a larger map", rc);
	TRY(redo_and_fold(s, e));
	reader_rest(s);
	rc = mdb_env_set_mapsize(s->env, map_bytes);
	return rc ? mdb_error(e, s, "the map", rc) : 0;
}

enum opening { OPEN_READING, OPEN_FOLDED, OPEN_UNFOLDED };

/* What the journal has goes into the environment, or only into the writing transaction. */
static int settle(struct state *s, uint64_t map_bytes, enum opening how, struct err *e)
{
	struct err why = ERR_INIT;
	int rc;

	if (how == OPEN_UNFOLDED) {
		s->must_fold = true;
		return redo(s, e);
	}
	rc = redo_and_fold(s, &why);
	if (rc == TF_ENOSPACE && map_bytes > 0)
		return fold_beyond(s, map_bytes, e);
	return rc < 0 ? err_set(e, rc, "%s", why.text) : 0;
}

/* The environment's files must be found after a power cut, which its own syncs do not see to. */
static int open_tables(struct state *s, uint64_t map_bytes, enum opening how, struct err *e)
{
	uint64_t version;
	int rc;

	TRY(journal_open(s->folder, &s->journal, e));
	TRY(writer(s, e));
	for (int i = 0; i < STATE_TABLES; i++) {
		rc = mdb_dbi_open(s->write, table_names[i], MDB_CREATE, &s->table[i]);
		if (rc)
			return mdb_error(e, s, table_names[i], rc);
	}
	TRY(check_version(s, &version, e));
	if (version == 0) {
		TRY(state_set_number(s, "version", TF_STORE_VERSION, e));
		TRY(file_fsync(s->folder, e));
		return state_fold(s, e);
	}
	rc = mdb_txn_commit(s->write);
	s->write = NULL;
	if (rc)
		return mdb_error(e, s, "tables", rc);
	TRY(settle(s, map_bytes, how, e));
	return check_version(s, &version, e);
}

static int find_tables(struct state *s, struct err *e)
{
	uint64_t version;
	MDB_txn *txn;
	int rc = mdb_txn_begin(s->env, NULL, MDB_RDONLY, &txn);

	if (rc)
		return mdb_error(e, s, "begin of reading", rc);
	for (int i = 0; i < STATE_TABLES && !rc; i++) {
		rc = mdb_dbi_open(txn, table_names[i], 0, &s->table[i]);
		s->missing[i] = rc == MDB_NOTFOUND;
		rc = s->missing[i] ? 0 : rc;
	}
	if (!rc)
		rc = mdb_txn_commit(txn);
	else
		mdb_txn_abort(txn);
	if (rc)
		return mdb_error(e, s, "tables", rc);
	TRY(check_version(s, &version, e));
	FAIL_IF(version == 0, e, TF_ECORRUPT, "%s: is no store of transfused", s->folder);
	return 0;
}

/* The environment's first pages, alone in a folder and synced. */
static int make_pages(struct state *s, const char *folder, struct err *e)
{
	MDB_env *env = NULL;
	int rc = mdb_env_create(&env);

	if (!rc)
		rc = mdb_env_open(env, folder, MDB_NOTLS, 0600);
	if (!rc)
		rc = mdb_env_sync(env, 1);
	mdb_env_close(env);
	return rc ? mdb_error(e, s, "making it", rc) : 0;
}

/* A new one gets its name when its first pages are on disk: LMDB does not sync them, and after a
 * power cut would find a file that is none of its own. */
static int make_environment(struct state *s, struct err *e)
{
	char *aside = xasprintf("%s/new", s->folder), *from = xasprintf("%s/data.mdb", aside);
	char *to = xasprintf("%s/data.mdb", s->folder);
	int rc = dir_remove(aside, e);

	if (rc == 0 && !file_exists(to)) {
		rc = dir_make(aside, 0700, e);
		if (rc == 0)
			rc = make_pages(s, aside, e);
		if (rc == 0)
			rc = file_rename(from, to, e);
		if (rc == 0)
			rc = dir_remove(aside, e);
	}
	xfree(to);
	xfree(from);
	xfree(aside);
	return rc;
}

static int open_environment(struct state *s, uint64_t map_bytes, struct err *e)
{
	unsigned flags = MDB_NOTLS | (s->reading_only ? MDB_RDONLY : 0);
	int rc = mdb_env_create(&s->env);

	if (!rc)
		rc = mdb_env_set_maxdbs(s->env, STATE_TABLES);
	if (!rc && map_bytes)
		rc = mdb_env_set_mapsize(s->env, map_bytes);
	if (!rc)
		rc = mdb_env_open(s->env, s->folder, flags, 0600);
	if (rc)
		return mdb_error(e, s, "open", rc);
	state_reader_check(s);
	return 0;
}

static int open_state(const char *folder, uint64_t map_bytes, enum opening how, struct state **out,
		      struct err *e)
{
	struct state *s = xcalloc(1, sizeof *s);
	int rc;

	s->folder = xstrdup(folder);
	s->reading_only = how == OPEN_READING;
	rc = s->reading_only ? 0 : dir_make(folder, 0700, e);
	if (rc == 0 && !s->reading_only)
		rc = make_environment(s, e);
	if (rc == 0)
		rc = open_environment(s, map_bytes, e);
	if (rc == 0)
		rc = s->reading_only ? find_tables(s, e) : open_tables(s, map_bytes, how, e);
	if (rc < 0) {
		s->failed = true;
		state_close(s);
		return rc;
	}
	*out = s;
	return 0;
}

/* When the disk does not take what the journal has, it can be read all the same. An environment
 * whose commit failed may be of no use any more: it is opened anew. */
int state_open(const char *folder, uint64_t map_bytes, struct state **out, struct err *e)
{
	struct err why = ERR_INIT;
	int rc = open_state(folder, map_bytes, OPEN_FOLDED, out, &why);

	if (rc == TF_ENOSPACE || rc == TF_EIO)
		return open_state(folder, map_bytes, OPEN_UNFOLDED, out, e);
	return rc < 0 ? err_set(e, rc, "%s", why.text) : 0;
}

int state_open_reading(const char *folder, struct state **out, struct err *e)
{
	return open_state(folder, 0, OPEN_READING, out, e);
}

int state_copy(struct state *s, const char *folder, struct err *e)
{
	char *from = xasprintf("%s/" JOURNAL_FILE, s->folder);
	char *to = xasprintf("%s/" JOURNAL_FILE, folder);
	int rc = dir_make(folder, 0700, e);

	if (rc == 0) /* first: what is folded meanwhile is in the environment then */
		rc = file_copy(from, to, false, NULL, e);
	xfree(from);
	xfree(to);
	if (rc < 0 && rc != TF_ENOTFOUND)
		return rc;
	rc = mdb_env_copy2(s->env, folder, MDB_CP_COMPACT);
	return rc ? mdb_error(e, s, "copy", rc) : 0;
}

void state_close(struct state *s)
{
	if (!s)
		return;
	reader_rest(s);
	if (s->write && !s->part && !s->failed && !state_changed(s) && fold(s, NULL) < 0)
		give_up(s); /* the journal has it */
	if (s->write)
		mdb_txn_abort(s->write);
	if (s->read)
		mdb_txn_abort(s->read);
	if (s->env)
		mdb_env_close(s->env);
	journal_close(s->journal);
	undo_release(&s->undo);
	xfree(s->folder);
	xfree_(s);
}

int state_get(struct state *s, enum state_table table, const void *key, size_t key_len,
	      struct state_value *out, struct err *e)
{
	MDB_val k = { key_len, (void *)key }, v;
	MDB_txn *txn = NULL;
	int rc;

	TRY(reader(s, &txn, e));
	if (s->missing[table])
		return TF_ENOTFOUND;
	rc = mdb_get(txn, s->table[table], &k, &v);
	if (rc == MDB_NOTFOUND)
		return TF_ENOTFOUND;
	if (rc)
		return mdb_error(e, s, table_names[table], rc);
	*out = (struct state_value){ v.mv_data, v.mv_size };
	return 0;
}

static bool in_part(const struct state *s)
{
	return s->part && !s->aside;
}

/* What is new, as most of a part is, is found to be so by the put itself. */
static int put(struct state *s, enum state_table table, MDB_val *k, MDB_val *v)
{
	MDB_val old = *v;
	int rc;

	if (!in_part(s))
		return mdb_put(s->write, s->table[table], k, v, 0);
	rc = mdb_put(s->write, s->table[table], k, &old, MDB_NOOVERWRITE);
	if (rc && rc != MDB_KEYEXIST)
		return rc;
	undo_note(&s->undo, table, k->mv_data, k->mv_size, rc ? old.mv_data : NULL,
		  rc ? old.mv_size : 0);
	return rc ? mdb_put(s->write, s->table[table], k, v, 0) : 0;
}

static int delete(struct state *s, enum state_table table, MDB_val *k)
{
	MDB_val old;
	int rc = in_part(s) ? mdb_get(s->write, s->table[table], k, &old) : 0;

	if (rc)
		return rc;
	if (in_part(s))
		undo_note(&s->undo, table, k->mv_data, k->mv_size, old.mv_data, old.mv_size);
	return mdb_del(s->write, s->table[table], k, NULL);
}

/* Whether the token a step away was put since the last fold: numbers of jobs only grow. */
static bool beside_new(const struct state *s, MDB_cursor *c, MDB_val k, MDB_cursor_op step)
{
	MDB_val v;

	return mdb_cursor_get(c, &k, &v, MDB_SET) == 0 && mdb_cursor_get(c, &k, &v, step) == 0 &&
	       v.mv_size == 8 && state_key_number(v.mv_data) >= s->new_job;
}

/* LMDB holds a changed page in memory until the fold, and that memory for good. A random token
 * changes a page of its own, so it is the number of those that must not be left to chance. One
 * beside a token that is new, too, is on a page that has changed already, or on the next one: so
 * are nearly all tokens that begin with the time (proto/token.h), whatever else is in the table. */
static void token_note(struct state *s, MDB_val k, uint64_t job)
{
	MDB_cursor *c = NULL;
	bool beside = s->new_job && !mdb_cursor_open(s->write, s->table[STATE_TOKENS], &c) &&
		      (beside_new(s, c, k, MDB_PREV) || beside_new(s, c, k, MDB_NEXT));

	mdb_cursor_close(c);
	s->tokens++;
	s->apart += !beside;
	if (!s->new_job || job < s->new_job)
		s->new_job = job;
}

int state_put(struct state *s, enum state_table table, const void *key, size_t key_len,
	      const void *data, size_t len, struct err *e)
{
	MDB_val k = { key_len, (void *)key }, v = { len, (void *)data };
	int rc;

	CHECK(key_len > 0 && key_len <= 511);
	TRY(writer(s, e));
	rc = fault_hit("store-put") ? MDB_MAP_FULL : put(s, table, &k, &v);
	if (rc) {
		s->spoiled = true;
		return mdb_error(e, s, table_names[table], rc);
	}
	journal_note(s->journal, in_part(s), table, key, key_len, len ? data : "", len);
	if (table == STATE_TOKENS && len == 8)
		token_note(s, k, state_key_number(data));
	return 0;
}

int state_delete(struct state *s, enum state_table table, const void *key, size_t key_len,
		 struct err *e)
{
	MDB_val k = { key_len, (void *)key };
	int rc;

	TRY(writer(s, e));
	rc = delete(s, table, &k);
	if (rc == MDB_NOTFOUND)
		return 0;
	if (rc) {
		s->spoiled = true;
		return mdb_error(e, s, table_names[table], rc);
	}
	journal_note(s->journal, in_part(s), table, key, key_len, NULL, 0);
	return 0;
}

/* Puts the cursor on the first entry of the walk; MDB_NOTFOUND when there is none. */
static int walk_first(MDB_cursor *c, const void *from, size_t from_len, bool backward, MDB_val *k,
		      MDB_val *v)
{
	int rc;

	*k = (MDB_val){ from_len, (void *)from };
	if (!from_len)
		return mdb_cursor_get(c, k, v, backward ? MDB_LAST : MDB_FIRST);
	rc = mdb_cursor_get(c, k, v, MDB_SET_RANGE);
	if (!backward)
		return rc;
	return mdb_cursor_get(c, k, v, rc == MDB_NOTFOUND ? MDB_LAST : MDB_PREV);
}

int state_each(struct state *s, enum state_table table, const void *from, size_t from_len,
	       bool backward, state_fn fn, void *arg, struct err *e)
{
	MDB_cursor *c = NULL;
	MDB_val k, v;
	MDB_txn *txn = NULL;
	int rc, code = 0;

	TRY(reader(s, &txn, e));
	if (s->missing[table])
		return 0;
	rc = mdb_cursor_open(txn, s->table[table], &c);
	if (rc)
		return mdb_error(e, s, table_names[table], rc);
	rc = walk_first(c, from, from_len, backward, &k, &v);
	while (rc == 0 && code == 0) {
		code = fn(arg, (struct state_value){ k.mv_data, k.mv_size },
			  (struct state_value){ v.mv_data, v.mv_size });
		if (code == 0)
			rc = mdb_cursor_get(c, &k, &v, backward ? MDB_PREV : MDB_NEXT);
	}
	mdb_cursor_close(c);
	if (rc && rc != MDB_NOTFOUND)
		return mdb_error(e, s, table_names[table], rc);
	return code < 0 ? code : 0;
}

uint64_t state_count(struct state *s, enum state_table table)
{
	MDB_stat st;
	MDB_txn *txn = NULL;

	if (reader(s, &txn, NULL) < 0 || s->missing[table] || mdb_stat(txn, s->table[table], &st))
		return 0;
	return st.ms_entries;
}

bool state_changed(const struct state *s)
{
	return s->write && (s->spoiled || journal_noted(s->journal) > 0);
}

bool state_folded(const struct state *s)
{
	return !s->write;
}

int state_part_begin(struct state *s, struct err *e)
{
	CHECK(!s->part);
	TRY(writer(s, e));
	s->part = true;
	return 0;
}

void state_part_aside(struct state *s, bool aside)
{
	CHECK(s->part);
	s->aside = aside;
}

/* After a failed change nothing need be taken back: the transaction goes as a whole. */
int state_part_end(struct state *s, bool keep, struct err *e)
{
	int rc = 0;

	CHECK(s->part && !s->aside);
	s->part = false;
	if (!keep && !s->spoiled)
		rc = undo_each(&s->undo, apply, s, e);
	undo_clear(&s->undo);
	journal_part_end(s->journal, keep);
	s->spoiled |= rc < 0;
	return rc;
}

bool state_can_commit(const struct state *s)
{
	return !s->part || (s->aside && !s->must_fold && journal_fits(s->journal));
}

static int journal_commit(struct state *s, struct err *e)
{
	TRY(journal_write(s->journal, e));
	s->must_fold = s->apart >= LIMIT_UNFOLDED_TOKENS || s->tokens >= LIMIT_UNFOLDED_JOBS;
	return 0;
}

static int commit(struct state *s, bool folding, struct err *e)
{
	bool changed = state_changed(s);
	int rc = 0;

	CHECK(!folding || !s->part);
	CHECK(state_can_commit(s));
	if (changed && (s->spoiled || fault_hit("store-commit")))
		rc = err_set(e, TF_EIO, "%s: commit: a change before it failed", s->folder);
	if (rc == 0 && (folding || s->must_fold || !journal_fits(s->journal)))
		rc = fold(s, e);
	else if (rc == 0)
		rc = journal_commit(s, e);
	if (rc == 0 && changed && fault_hit("store-committed"))
		rc = err_set(e, TF_EIO, "%s: commit: no answer from the disk", s->folder);
	if (rc < 0)
		give_up(s);
	return rc;
}

int state_commit(struct state *s, struct err *e)
{
	reader_rest(s);
	return state_changed(s) ? commit(s, false, e) : 0;
}

int state_fold(struct state *s, struct err *e)
{
	reader_rest(s);
	return s->write ? commit(s, true, e) : 0;
}

void state_abort(struct state *s)
{
	reader_rest(s);
	CHECK(!s->part);
	if (!s->write || !state_changed(s))
		return;
	mdb_txn_abort(s->write);
	s->write = NULL;
	s->spoiled = false;
	journal_forget(s->journal);
	if (!journal_empty(s->journal) && redo(s, NULL) < 0)
		give_up(s);
}

void state_reader_check(struct state *s)
{
	int dead;

	mdb_reader_check(s->env, &dead);
}

int state_number(struct state *s, const char *name, uint64_t *out, struct err *e)
{
	struct state_value v;
	int rc = state_get(s, STATE_META, name, strlen(name), &v, e);

	*out = 0;
	if (rc == TF_ENOTFOUND)
		return 0;
	TRY(rc);
	FAIL_IF(v.len != 8, e, TF_ECORRUPT, "%s: meta: %s has %zu bytes instead of 8", s->folder,
		name, v.len);
	*out = state_key_number(v.data);
	return 0;
}

int state_set_number(struct state *s, const char *name, uint64_t value, struct err *e)
{
	bool aside = s->aside;
	uint8_t data[8];
	int rc;

	state_key(value, data);
	s->aside = true;
	rc = state_put(s, STATE_META, name, strlen(name), data, sizeof data, e);
	s->aside = aside;
	return rc;
}
