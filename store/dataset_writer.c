/* SPDX-License-Identifier: Apache-2.0
 * Writing datasets. Records gather in a block; a full block goes into the open transaction
 * together with the index entries of its records; a commit also holds the writer's state
 * (counts, the running hash, the source's position), so that a killed import continues exactly
 * after the last commit. One writer, one thread; the folder is its own until the manifest is
 * there. */
#include "config.h"
#include "lib/bound.h"
#include "lib/clock.h"
#include "lib/fault.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/dataset_layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define COMMIT_BYTES (16u << 20) /* put since the last commit, or */
#define COMMIT_MS 2000           /* so long after it */
#define STATE_BYTES_MAX (1u << 20)

/* What a commit makes durable besides blocks. */
struct progress {
	struct dataset_info total; /* counts of the whole dataset */
	struct dataset_shard here; /* of the current shard */
	uint64_t payload;          /* bytes of the current shard's blocks */
	uint8_t chain[CHAIN_BYTES];
	uint64_t bad_here; /* entries listed in this shard */
	char *position;
};

struct dataset_writer {
	char *folder, *path;      /* of the current shard's file */
	struct dataset_plan plan; /* texts and lists point into the copies below */
	char *fingerprint;
	char **held; /* sorted */
	size_t helds;
	unsigned shard;
	struct dataset_map map;
	struct progress now;
	struct buf block;
	struct dataset_entry *pending; /* of the records in block */
	uint8_t *pending_split;
	size_t pendings, pending_room;
	struct buf bad; /* lines of bad samples not yet put, zero-divided */
	struct dataset_entry page[DATASET_SPLITS]
				 [DATASET_PAGE]; /* last index page of each split */
	uint64_t uncommitted;
	int64_t committed_ms;
};

bool dataset_holdout_by_hash(const char *name, double percent)
{
	return (double)(XXH64(name, strlen(name), 0) % 10000) < 100 * percent;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool is_listed(const struct dataset_writer *w, const char *name)
{
	return bsearch(&name, w->held, w->helds, sizeof *w->held, compare_names);
}

static enum dataset_split split_of(const struct dataset_writer *w, const char *name)
{
	const char *last = strrchr(name, '/');
	bool held = w->helds ? is_listed(w, name) || (last && is_listed(w, last + 1))
			     : dataset_holdout_by_hash(name, w->plan.holdout.percent);

	return held ? DATASET_HELDOUT : DATASET_TRAIN;
}

/* ---- the state record ---- */

static char *state_text(const struct dataset_writer *w)
{
	const struct progress *p = &w->now;
	char hex[DATASET_HASH_TEXT], *text;
	json_t *o;

	chain_hex(p->chain, hex);
	o = json_pack("{si ss ss ss so s[II] sI sI sI}", "version", DATASET_VERSION, "plan",
		      w->fingerprint, "position", p->position, "chain", hex, "total",
		      manifest_facts(&p->total), "here", (json_int_t)p->here.samples[0],
		      (json_int_t)p->here.samples[1], "blocks", (json_int_t)p->here.blocks,
		      "payload", (json_int_t)p->payload, "bad_here", (json_int_t)p->bad_here);
	CHECK(o);
	text = json_dumps(o, JSON_COMPACT);
	CHECK(text);
	json_decref(o);
	return text;
}

static uint64_t count_at(json_t *o, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(o, key));
}

static void state_counts(json_t *total, struct dataset_info *t)
{
	static const char *const key[] = { "samples", "tokens", "text_bytes" };
	uint64_t *const field[] = { t->samples, t->tokens, t->text_bytes };

	for (size_t i = 0; i < ARRAY_LEN(key); i++)
		for (int k = 0; k < DATASET_SPLITS; k++)
			field[i][k] =
				count_at(json_object_get(total, key[i]), dataset_split_name(k));
	t->captions = count_at(total, "captions");
	t->longest_tokens = count_at(total, "longest_tokens");
	t->bad = count_at(total, "bad");
}

/* Takes up a shard's state; TF_ENOTFOUND when it has none. */
static int state_read(struct dataset_writer *w, const struct dataset_map *map, const char *path,
		      struct progress *p, struct err *e)
{
	const char *plan, *position, *chain;
	json_t *o, *here;
	MDB_val value;
	int rc = 0;

	TRY(dataset_map_get(map, path, KEY_STATE, 0, &value, e));
	o = value.mv_size <= STATE_BYTES_MAX ? json_loadb(value.mv_data, value.mv_size, 0, NULL)
					     : NULL;
	plan = json_string_value(json_object_get(o, "plan"));
	position = json_string_value(json_object_get(o, "position"));
	chain = json_string_value(json_object_get(o, "chain"));
	here = json_object_get(o, "here");
	if (!plan || !position || !chain || strlen(chain) != 2 * CHAIN_BYTES ||
	    chain_parse(chain, p->chain) < 0 || json_array_size(here) != DATASET_SPLITS)
		rc = err_set(e, TF_ECORRUPT, "%s: the writer's state cannot be read", path);
	else if (strcmp(plan, w->fingerprint) != 0)
		rc = err_set(e, TF_EMISMATCH,
			     "%s: was begun with other settings: found '%s', "
			     "expected '%s'",
			     path, plan, w->fingerprint);
	if (rc == 0) {
		xfree(p->position);
		p->position = xstrdup(position);
		state_counts(json_object_get(o, "total"), &p->total);
		for (int k = 0; k < DATASET_SPLITS; k++)
			p->here.samples[k] =
				(uint64_t)json_integer_value(json_array_get(here, (size_t)k));
		p->here.blocks = (uint32_t)count_at(o, "blocks");
		p->payload = count_at(o, "payload");
		p->bad_here = count_at(o, "bad_here");
	}
	json_decref(o);
	return rc;
}

/* ---- transactions ---- */

static int put(struct dataset_writer *w, int kind, uint32_t number, const void *data,
	       size_t bytes, struct err *e)
{
	struct dataset_key k;
	MDB_val key = dataset_key(&k, kind, number), value = { bytes, (void *)data };
	int rc;

	if (!w->map.txn) {
		rc = mdb_txn_begin(w->map.env, NULL, 0, &w->map.txn);
		if (rc != 0)
			return dataset_lmdb_error(e, rc, w->path, "writing");
	}
	rc = mdb_put(w->map.txn, w->map.dbi, &key, &value, 0);
	w->uncommitted += bytes;
	return rc == 0 ? 0 : dataset_lmdb_error(e, rc, w->path, "writing");
}

static int put_page(struct dataset_writer *w, enum dataset_split split, struct err *e)
{
	uint64_t count = w->now.here.samples[split];
	uint32_t last = (uint32_t)((count - 1) / DATASET_PAGE);

	return put(w, dataset_index_kind(split), last, w->page[split],
		   (count - (uint64_t)last * DATASET_PAGE) * sizeof **w->page, e);
}

static int commit(struct dataset_writer *w, struct err *e)
{
	char *state = state_text(w);
	int rc = 0;

	for (int k = 0; k < DATASET_SPLITS && rc == 0; k++)
		if (w->now.here.samples[k] % DATASET_PAGE)
			rc = put_page(w, k, e);
	if (rc == 0)
		rc = put(w, KEY_STATE, 0, state, strlen(state), e);
	if (rc == 0 && fault_hit("dataset-commit"))
		rc = err_set(e, TF_EIO, "%s: commit: failed as asked", w->path);
	if (rc == 0) {
		int lmdb = mdb_txn_commit(w->map.txn);

		w->map.txn = NULL;
		if (lmdb != 0)
			rc = dataset_lmdb_error(e, lmdb, w->path, "commit");
	}
	free(state);
	w->uncommitted = 0;
	w->committed_ms = clock_mono_ms();
	return rc;
}

static int put_bad(struct dataset_writer *w, struct err *e)
{
	for (size_t at = 0; at < w->bad.len; at += strlen(w->bad.data + at) + 1)
		TRY(put(w, KEY_BAD, (uint32_t)w->now.bad_here++, w->bad.data + at,
			strlen(w->bad.data + at), e));
	buf_clear(&w->bad);
	return 0;
}

/* Puts the block, the index entries of its records and the bad samples met meanwhile. */
static int flush(struct dataset_writer *w, struct err *e)
{
	struct dataset_shard *here = &w->now.here;

	TRY(put_bad(w, e));
	if (!w->block.len)
		return 0;
	TRY(put(w, KEY_BLOCK, here->blocks, w->block.data, w->block.len, e));
	for (size_t i = 0; i < w->pendings; i++) {
		int k = w->pending_split[i];

		w->pending[i].block = here->blocks;
		w->page[k][here->samples[k]++ % DATASET_PAGE] = w->pending[i];
		if (here->samples[k] % DATASET_PAGE == 0)
			TRY(put_page(w, k, e));
	}
	here->blocks++;
	w->now.payload += w->block.len;
	w->pendings = 0;
	buf_clear(&w->block);
	return 0;
}

/* ---- shards ---- */

static int open_shard(struct dataset_writer *w, unsigned number, struct err *e)
{
	uint64_t most = bound("shards", LIMIT_SHARDS);
	const char *path;
	int rc;

	xfree(w->path);
	path = w->path = dataset_shard_path(w->folder, number);
	w->shard = number;
	FAIL_IF(number >= most, e, TF_ELIMIT, "%s: more than %llu shards", w->folder,
		(unsigned long long)most);
	rc = mdb_env_create(&w->map.env);
	if (rc == 0)
		rc = mdb_env_set_mapsize(w->map.env, w->plan.map_bytes);
	if (rc == 0)
		rc = mdb_env_open(w->map.env, path, MDB_NOLOCK | MDB_NOSUBDIR | MDB_NOTLS, 0644);
	if (rc == 0)
		rc = mdb_txn_begin(w->map.env, NULL, 0, &w->map.txn);
	if (rc == 0)
		rc = mdb_dbi_open(w->map.txn, NULL, 0, &w->map.dbi);
	return rc == 0 ? 0 : dataset_lmdb_error(e, rc, path, "opening for writing");
}

/* The last index page of a split, to be filled further. */
static int load_page(struct dataset_writer *w, enum dataset_split split, struct err *e)
{
	uint64_t count = w->now.here.samples[split];
	MDB_val value;
	int rc;

	if (count % DATASET_PAGE == 0)
		return 0;
	rc = dataset_map_get(&w->map, w->path, dataset_index_kind(split),
			     (uint32_t)(count / DATASET_PAGE), &value, e);
	FAIL_IF(rc == TF_ENOTFOUND || (rc == 0 && value.mv_size != count % DATASET_PAGE * 8), e,
		TF_ECORRUPT, "%s: the index ends too early", w->path);
	TRY(rc);
	memcpy(w->page[split], value.mv_data, value.mv_size);
	return 0;
}

static unsigned count_shards(const char *folder)
{
	unsigned n = 0;

	for (;; n++) {
		char *path = dataset_shard_path(folder, n);
		bool there = file_exists(path);

		xfree(path);
		if (!there)
			return n;
	}
}

/* Goes on with the last shard that has a state; a later one without is begun anew. */
static int take_up(struct dataset_writer *w, struct err *e)
{
	for (unsigned n = count_shards(w->folder); n > 0; n--) {
		int rc;

		TRY(open_shard(w, n - 1, e));
		rc = state_read(w, &w->map, w->path, &w->now, e);
		for (int k = 0; k < DATASET_SPLITS && rc == 0; k++)
			rc = load_page(w, k, e);
		if (rc != TF_ENOTFOUND)
			return rc;
		dataset_map_close(&w->map);
		if (unlink(w->path) != 0)
			return err_errno(e, "%s", w->path);
	}
	return open_shard(w, 0, e);
}

/* Closes the full shard and begins the next. */
static int next_shard(struct dataset_writer *w, struct err *e)
{
	TRY(commit(w, e));
	dataset_map_close(&w->map);
	memset(&w->now.here, 0, sizeof w->now.here);
	w->now.payload = w->now.bad_here = 0;
	return open_shard(w, w->shard + 1, e);
}

/* After a block: a commit when enough has gathered, another shard when this one is full. */
static int after_flush(struct dataset_writer *w, struct err *e)
{
	if (w->now.payload > w->plan.map_bytes / 2)
		return next_shard(w, e);
	if (w->uncommitted >= COMMIT_BYTES || clock_mono_ms() - w->committed_ms >= COMMIT_MS)
		return commit(w, e);
	return 0;
}

/* ---- the plan ---- */

static void copy_plan(struct dataset_writer *w, const struct dataset_plan *plan)
{
	struct dataset_info *t = &w->now.total;
	struct buf text = BUF_INIT;
	uint64_t names = 0;

	w->plan = *plan;
	w->plan.map_bytes = plan->map_bytes ? plan->map_bytes : DATASET_MAP_BYTES;
	w->helds = plan->holdout.names;
	w->held = xcalloc(w->helds + 1, sizeof *w->held);
	for (size_t i = 0; i < w->helds; i++)
		w->held[i] = xstrdup(plan->holdout.name[i]);
	qsort(w->held, w->helds, sizeof *w->held, compare_names);
	for (size_t i = 0; i < w->helds; i++)
		names = XXH64(w->held[i], strlen(w->held[i]) + 1, names);
	t->kind = plan->kind;
	snprintf(t->tokenizer, sizeof t->tokenizer, "%s", plan->tokenizer ? plan->tokenizer : "");
	snprintf(t->vae, sizeof t->vae, "%s", plan->vae ? plan->vae : "");
	snprintf(t->format, sizeof t->format, "%s", plan->format ? plan->format : "");
	t->pieces = plan->tokenizer ? plan->pieces : 0;
	t->height = plan->height;
	t->width = plan->width;
	t->pixels = plan->pixels;
	t->rows = plan->rows;
	t->columns = plan->columns;
	t->channels = plan->channels;
	t->holdout_percent = plan->holdout.percent;
	for (int i = 0; i < plan->channels; i++) {
		t->mean[i] = plan->mean[i];
		t->deviation[i] = plan->deviation[i];
	}
	buf_printf(&text,
		   "%s, %dx%d%s, tokenizer %s, vae %s, %dx%dx%d, held out %g %% or %zu (%llx)",
		   dataset_kind_name(plan->kind), plan->height, plan->width,
		   plan->pixels ? " kept" : "", t->tokenizer, t->vae, plan->rows, plan->columns,
		   plan->channels, plan->holdout.percent, w->helds, (unsigned long long)names);
	w->fingerprint = buf_detach(&text);
}

static int check_plan(const struct dataset_plan *p, struct err *e)
{
	FAIL_IF(!(p->holdout.percent >= 0 && p->holdout.percent <= 100), e, TF_EINVALID,
		"holdout: found %g %%, expected 0 to 100", p->holdout.percent);
	FAIL_IF(p->height < 0 || p->height > DATASET_SIDE_MAX || p->width < 0 ||
			p->width > DATASET_SIDE_MAX,
		e, TF_EINVALID, "picture size: found %dx%d, expected at most %d", p->height,
		p->width, DATASET_SIDE_MAX);
	FAIL_IF(p->channels < 0 || p->channels > DATASET_CHANNELS_MAX, e, TF_EINVALID,
		"latent channels: found %d, expected at most %d", p->channels,
		DATASET_CHANNELS_MAX);
	FAIL_IF(p->map_bytes && p->map_bytes < (1u << 20), e, TF_EINVALID,
		"map size: found %llu bytes, expected at least 1 MiB",
		(unsigned long long)p->map_bytes);
	FAIL_IF(p->holdout.names > LIMIT_HELDOUT_NAMES, e, TF_ELIMIT,
		"held-out names: found %zu, expected at most %u", p->holdout.names,
		LIMIT_HELDOUT_NAMES);
	return 0;
}

int dataset_writer_open(const char *folder, const struct dataset_plan *plan,
			struct dataset_writer **out, struct err *e)
{
	struct dataset_writer *w;
	int rc;

	*out = NULL;
	TRY(check_plan(plan, e));
	w = xcalloc(1, sizeof *w);
	w->folder = xstrdup(folder);
	w->now.position = xstrdup("");
	w->committed_ms = clock_mono_ms();
	copy_plan(w, plan);
	rc = take_up(w, e);
	if (rc < 0) {
		dataset_writer_close(w);
		return rc;
	}
	*out = w;
	return 0;
}

void dataset_writer_close(struct dataset_writer *w)
{
	if (!w)
		return;
	dataset_map_close(&w->map);
	for (size_t i = 0; i < w->helds; i++)
		xfree(w->held[i]);
	xfree(w->held);
	xfree(w->pending);
	xfree(w->pending_split);
	xfree(w->now.position);
	xfree(w->fingerprint);
	xfree(w->folder);
	xfree(w->path);
	buf_release(&w->block);
	buf_release(&w->bad);
	xfree(w);
}

const char *dataset_writer_position(const struct dataset_writer *w)
{
	return w->now.position;
}

uint64_t dataset_writer_samples(const struct dataset_writer *w)
{
	return w->now.total.samples[DATASET_TRAIN] + w->now.total.samples[DATASET_HELDOUT];
}

uint64_t dataset_writer_bad_samples(const struct dataset_writer *w)
{
	return w->now.total.bad;
}

static void set_position(struct dataset_writer *w, const char *position)
{
	xfree(w->now.position);
	w->now.position = xstrdup(position);
}

static int check_sample(const struct dataset_writer *w, const struct sample *s, struct err *e)
{
	const struct dataset_plan *p = &w->plan;
	const char *name = s->name && *s->name ? s->name : "(no name)";
	size_t most = p->map_bytes / 8 < (1u << 30) ? p->map_bytes / 8 : (1u << 30);

	FAIL_IF(!s->name || !*s->name || strlen(s->name) > LIMIT_SAMPLE_NAME_BYTES, e,
		TF_EINVALID, "%.80s: a sample's name has 1 to %u bytes", name,
		LIMIT_SAMPLE_NAME_BYTES);
	FAIL_IF(s->text_bytes > LIMIT_SAMPLE_TEXT_BYTES, e, TF_ELIMIT,
		"%.80s: a text of %zu bytes, expected at most %u", name, s->text_bytes,
		LIMIT_SAMPLE_TEXT_BYTES);
	FAIL_IF(!s->token != !p->tokenizer || (s->token && s->token_bytes != 4) ||
			s->tokens > LIMIT_SAMPLE_TEXT_BYTES,
		e, TF_EINVALID, "%.80s: its tokens are not as planned", name);
	FAIL_IF(!s->pixels != !p->pixels ||
			(s->pixels && (s->height != p->height || s->width != p->width)),
		e, TF_EINVALID, "%.80s: its pixels are not as planned", name);
	FAIL_IF(!s->latent != !p->vae ||
			(s->latent && (s->rows != p->rows || s->columns != p->columns ||
				       s->channels != p->channels)),
		e, TF_EINVALID, "%.80s: its latent is not as planned", name);
	FAIL_IF(record_bytes(s) > most, e, TF_ELIMIT,
		"%.80s: a record of %zu bytes, expected at most %zu (an eighth of the map)", name,
		record_bytes(s), most);
	return 0;
}

int dataset_writer_add(struct dataset_writer *w, const struct sample *s, const char *position,
		       struct err *e)
{
	struct dataset_info *t = &w->now.total;
	enum dataset_split split;
	size_t n = w->pendings;

	TRY(check_sample(w, s, e));
	split = split_of(w, s->name);
	if (n == w->pending_room) {
		w->pending_room = n ? 2 * n : 256;
		w->pending = xrealloc(w->pending, w->pending_room, sizeof *w->pending);
		w->pending_split = xrealloc(w->pending_split, w->pending_room, 1);
	}
	w->pending[n] = (struct dataset_entry){ 0, (uint32_t)w->block.len };
	w->pending_split[n] = (uint8_t)split;
	w->pendings++;
	chain_add(w->now.chain, split, record_write(s, split, &w->block));
	t->samples[split]++;
	t->tokens[split] += s->tokens;
	t->text_bytes[split] += s->text_bytes;
	t->captions += s->text_bytes > 0;
	if (s->tokens > t->longest_tokens)
		t->longest_tokens = s->tokens;
	set_position(w, position);
	if (w->block.len < DATASET_BLOCK_BYTES)
		return 0;
	TRY(flush(w, e));
	return after_flush(w, e);
}

int dataset_writer_bad(struct dataset_writer *w, const char *file, const char *reason,
		       const char *position, struct err *e)
{
	json_t *o;
	char *line;

	(void)e;
	if (w->now.total.bad++ < LIMIT_BAD_LISTED) {
		o = json_pack("{ss* ss*}", "file", file, "reason", reason);
		if (!o)
			o = json_pack("{ss ss}", "file", "(name not UTF-8)", "reason",
				      "name or reason is not UTF-8");
		line = json_dumps(o, JSON_COMPACT | JSON_SORT_KEYS);
		CHECK(line);
		buf_append(&w->bad, line, strlen(line) + 1);
		free(line);
		json_decref(o);
	}
	set_position(w, position);
	return 0;
}

int dataset_writer_sync(struct dataset_writer *w, struct err *e)
{
	TRY(flush(w, e));
	return commit(w, e);
}

/* ---- the end ---- */

/* Appends a shard's list of bad samples, and its counts and hash to the manifest. */
static int close_shard(struct dataset_writer *w, unsigned number, struct dataset_manifest *m,
		       struct buf *bad, struct err *e)
{
	char *path = dataset_shard_path(w->folder, number);
	struct progress p = { 0 };
	struct dataset_shard *s = &m->shard[number];
	struct dataset_map map;
	uint64_t done = 0;
	MDB_val line;
	int rc;

	s->bytes = (uint64_t)file_size(path);
	rc = dataset_map_open(path, s->bytes, &map, e);
	if (rc == 0)
		rc = state_read(w, &map, path, &p, e);
	for (uint32_t i = 0; rc == 0 && i < p.bad_here; i++) {
		rc = dataset_map_get(&map, path, KEY_BAD, i, &line, e);
		if (rc == 0) {
			buf_append(bad, line.mv_data, line.mv_size);
			buf_text(bad, "\n");
		}
	}
	dataset_map_close(&map);
	memcpy(s->samples, p.here.samples, sizeof s->samples);
	s->blocks = p.here.blocks;
	if (rc == 0)
		rc = dataset_hash_file(path, s->hash, NULL, NULL, &done, 0, e);
	m->info.bytes += s->bytes;
	xfree(p.position);
	xfree(path);
	return rc == TF_ENOTFOUND ? err_set(e, TF_ECORRUPT, "%s: shard %u is not complete",
					    w->folder, number)
				  : rc;
}

/* A list that names nobody would train on what was to be kept apart. */
static int check_held(const struct dataset_writer *w, struct err *e)
{
	FAIL_IF(w->helds > 0 && w->now.total.samples[DATASET_HELDOUT] == 0, e, TF_EINVALID,
		"held-out names: none of the %zu is a sample's, found '%.120s', expected names "
		"as data sample shows them, without .png or the like",
		w->helds, w->held[0]);
	return 0;
}

int dataset_writer_finish(struct dataset_writer *w, struct dataset_info *info, struct err *e)
{
	struct dataset_manifest m = { .info = w->now.total };
	struct buf bad = BUF_INIT;
	char *path;
	int rc;

	TRY(check_held(w, e));
	TRY(dataset_writer_sync(w, e));
	dataset_map_close(&w->map);
	manifest_hash(&m.info, w->now.chain, m.info.hash);
	m.shards = w->shard + 1;
	m.shard = xcalloc(m.shards, sizeof *m.shard);
	rc = 0;
	for (unsigned i = 0; i < m.shards && rc >= 0; i++)
		rc = close_shard(w, i, &m, &bad, e);
	path = xasprintf("%s/%s", w->folder, DATASET_BAD);
	if (rc >= 0)
		rc = file_write(path, bad.data ? bad.data : "", bad.len, 0644, e);
	xfree(path);
	if (rc >= 0 && fault_hit("dataset-manifest"))
		rc = err_set(e, TF_EIO, "%s: manifest: failed as asked", w->folder);
	if (rc >= 0)
		rc = manifest_write(w->folder, &m, e);
	if (rc >= 0 && info)
		*info = m.info;
	buf_release(&bad);
	manifest_release(&m);
	return rc;
}
