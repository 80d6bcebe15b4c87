/* SPDX-License-Identifier: Apache-2.0
 * Reading datasets: shards are mapped when first needed and stay mapped; a sample is found
 * through its index page and read in place. */
#include "config.h"
#include "store/dataset.h"

#include "lib/files.h"
#include "lib/mem.h"
#include "lib/philox.h"
#include "store/dataset_layout.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct shard {
	struct dataset_map map;
	uint64_t end[DATASET_SPLITS]; /* samples of each split up to the end of this shard */
};

struct dataset {
	char *folder;
	struct dataset_manifest manifest;
	struct shard *shard;
};

MDB_val dataset_key(struct dataset_key *k, int kind, uint32_t number)
{
	k->byte[0] = (uint8_t)kind;
	for (int i = 0; i < 4; i++)
		k->byte[1 + i] = (uint8_t)(number >> (24 - 8 * i));
	return (MDB_val){ kind == KEY_STATE ? 1 : sizeof k->byte, k->byte };
}

int dataset_index_kind(enum dataset_split split)
{
	return split == DATASET_HELDOUT ? KEY_HELDOUT : KEY_TRAIN;
}

int dataset_lmdb_error(struct err *e, int rc, const char *path, const char *what)
{
	if (rc > 0) {
		errno = rc;
		return err_errno(e, "%s: %s", path, what);
	}
	if (rc == MDB_NOTFOUND)
		return err_set(e, TF_ECORRUPT, "%s: %s: an entry is missing", path, what);
	if (rc == MDB_MAP_FULL)
		return err_set(e, TF_ELIMIT, "%s: %s: the shard's map is full", path, what);
	return err_set(e, TF_ECORRUPT, "%s: %s: %s", path, what, mdb_strerror(rc));
}

int dataset_map_open(const char *path, uint64_t size, struct dataset_map *out, struct err *e)
{
	const unsigned flags = MDB_RDONLY | MDB_NOLOCK | MDB_NOSUBDIR | MDB_NOTLS;
	int64_t found = file_size(path);
	int rc;

	memset(out, 0, sizeof *out);
	FAIL_IF(found < 0 || (uint64_t)found != size, e, TF_ECORRUPT,
		"%s: found %lld bytes, expected %llu", path, (long long)found,
		(unsigned long long)size);
	rc = mdb_env_create(&out->env);
	if (rc == 0)
		rc = mdb_env_set_mapsize(out->env, size);
	if (rc == 0)
		rc = mdb_env_open(out->env, path, flags, 0);
	if (rc == 0)
		rc = mdb_txn_begin(out->env, NULL, MDB_RDONLY, &out->txn);
	if (rc == 0)
		rc = mdb_dbi_open(out->txn, NULL, 0, &out->dbi);
	if (rc != 0) {
		dataset_lmdb_error(e, rc, path, "opening");
		dataset_map_close(out);
		return e ? e->code : TF_ECORRUPT;
	}
	return 0;
}

void dataset_map_close(struct dataset_map *m)
{
	if (m->txn)
		mdb_txn_abort(m->txn);
	if (m->env)
		mdb_env_close(m->env);
	memset(m, 0, sizeof *m);
}

int dataset_map_get(const struct dataset_map *m, const char *path, int kind, uint32_t number,
		    MDB_val *out, struct err *e)
{
	struct dataset_key bytes;
	MDB_val key = dataset_key(&bytes, kind, number);
	int rc = mdb_get(m->txn, m->dbi, &key, out);

	if (rc == MDB_NOTFOUND)
		return TF_ENOTFOUND;
	return rc == 0 ? 0 : dataset_lmdb_error(e, rc, path, "reading");
}

static int check_shards(struct dataset *d, struct err *e)
{
	uint64_t end[DATASET_SPLITS] = { 0 };

	for (unsigned i = 0; i < d->manifest.shards; i++) {
		char *path = dataset_shard_path(d->folder, i);
		int64_t found = file_size(path), expected = (int64_t)d->manifest.shard[i].bytes;
		int rc = 0;

		if (found != expected)
			rc = err_set(e, TF_ECORRUPT, "%s: found %lld bytes, expected %lld", path,
				     (long long)found, (long long)expected);
		xfree(path);
		TRY(rc);
		for (int k = 0; k < DATASET_SPLITS; k++) {
			end[k] += d->manifest.shard[i].samples[k];
			d->shard[i].end[k] = end[k];
		}
	}
	return 0;
}

int dataset_open(const char *folder, struct dataset **out, struct err *e)
{
	struct dataset *d = xcalloc(1, sizeof *d);
	int rc = manifest_read(folder, &d->manifest, e);

	*out = NULL;
	d->folder = xstrdup(folder);
	if (rc >= 0) {
		d->shard = xcalloc(d->manifest.shards ? d->manifest.shards : 1, sizeof *d->shard);
		rc = check_shards(d, e);
	}
	if (rc < 0) {
		dataset_close(d);
		return rc;
	}
	*out = d;
	return 0;
}

void dataset_close(struct dataset *d)
{
	if (!d)
		return;
	for (unsigned i = 0; d->shard && i < d->manifest.shards; i++)
		dataset_map_close(&d->shard[i].map);
	xfree(d->shard);
	manifest_release(&d->manifest);
	xfree(d->folder);
	xfree(d);
}

const struct dataset_info *dataset_info(const struct dataset *d)
{
	return &d->manifest.info;
}

/* The first shard whose end lies beyond i. */
static unsigned find_shard(const struct dataset *d, enum dataset_split split, uint64_t i)
{
	unsigned low = 0, high = d->manifest.shards - 1;

	while (low < high) {
		unsigned middle = low + (high - low) / 2;

		if (d->shard[middle].end[split] > i)
			high = middle;
		else
			low = middle + 1;
	}
	return low;
}

/* Reads sample i of a shard's split; path names the shard. */
static int shard_get(struct shard *s, const char *path, enum dataset_split split, uint64_t i,
		     const char *where, struct sample *out, struct err *e)
{
	uint32_t place = (uint32_t)(i % DATASET_PAGE);
	struct dataset_entry entry;
	enum dataset_split found;
	MDB_val value;
	uint64_t sum;
	int rc;

	rc = dataset_map_get(&s->map, path, dataset_index_kind(split),
			     (uint32_t)(i / DATASET_PAGE), &value, e);
	FAIL_IF(rc == TF_ENOTFOUND || (rc == 0 && value.mv_size < (place + 1) * sizeof entry), e,
		TF_ECORRUPT, "%s: the index has no such sample", where);
	TRY(rc);
	memcpy(&entry, (const char *)value.mv_data + place * sizeof entry, sizeof entry);
	rc = dataset_map_get(&s->map, path, KEY_BLOCK, entry.block, &value, e);
	FAIL_IF(rc == TF_ENOTFOUND, e, TF_ECORRUPT, "%s: block %u is missing", where,
		entry.block);
	TRY(rc);
	TRY(record_read(value.mv_data, value.mv_size, entry.offset, where, out, &found, &sum,
			NULL, e));
	FAIL_IF(found != split, e, TF_ECORRUPT, "%s: found a record of split %s", where,
		dataset_split_name(found));
	return 0;
}

int dataset_get(struct dataset *d, enum dataset_split split, uint64_t i, struct sample *out,
		struct err *e)
{
	uint64_t count = d->manifest.info.samples[split];
	unsigned number;
	struct shard *s;
	char *path, *where;
	int rc = 0;

	FAIL_IF(i >= count, e, TF_EINVALID, "%s: %s sample %llu: there are %llu", d->folder,
		dataset_split_name(split), (unsigned long long)i, (unsigned long long)count);
	number = find_shard(d, split, i);
	s = &d->shard[number];
	path = dataset_shard_path(d->folder, number);
	where = xasprintf("%s: %s sample %llu", path, dataset_split_name(split),
			  (unsigned long long)i);
	if (!s->map.env)
		rc = dataset_map_open(path, d->manifest.shard[number].bytes, &s->map, e);
	if (rc >= 0)
		rc = shard_get(s, path, split, number ? i - d->shard[number - 1].end[split] : i,
			       where, out, e);
	xfree(where);
	xfree(path);
	return rc;
}

/* Text as JSON; what is not UTF-8 is said to be so. */
static json_t *json_words(const char *text, size_t bytes)
{
	json_t *o = json_stringn(text, bytes);

	return o ? o : json_string("(not UTF-8)");
}

static json_t *sample_facts(const struct sample *s, enum dataset_split split)
{
	json_t *o =
		json_pack("{so ss so}", "name", json_words(s->name, strlen(s->name)), "split",
			  dataset_split_name(split), "text", json_words(s->text, s->text_bytes));
	json_t *ids = json_array();

	CHECK(o);
	for (size_t i = 0; i < s->tokens; i++) {
		int32_t id;

		sample_tokens(s, i, 1, &id);
		json_array_append_new(ids, json_integer(id));
	}
	json_object_set_new(o, "tokens", json_integer((json_int_t)s->tokens));
	json_object_set_new(o, "ids", ids);
	if (s->pixels)
		json_object_set_new(o, "picture", json_pack("[ii]", s->height, s->width));
	if (s->latent)
		json_object_set_new(o, "latent",
				    json_pack("[iii]", s->rows, s->columns, s->channels));
	return o;
}

int dataset_sample_json(const char *folder, uint32_t count, uint64_t seed, struct buf *out,
			struct err *e)
{
	struct dataset *d = NULL;
	json_t *list = json_array();
	uint64_t train, total;
	int rc = dataset_open(folder, &d, e);
	char *text;

	train = d ? dataset_info(d)->samples[DATASET_TRAIN] : 0;
	total = d ? train + dataset_info(d)->samples[DATASET_HELDOUT] : 0;
	for (uint64_t i = 0; rc >= 0 && i < count && i < total; i++) {
		uint64_t k = philox_permute(seed, 0, i, total);
		enum dataset_split split = k < train ? DATASET_TRAIN : DATASET_HELDOUT;
		struct sample s;

		rc = dataset_get(d, split, k < train ? k : k - train, &s, e);
		if (rc >= 0)
			json_array_append_new(list, sample_facts(&s, split));
	}
	if (rc >= 0) {
		text = json_dumps(list, JSON_INDENT(1));
		CHECK(text);
		buf_text(out, text);
		free(text);
	}
	json_decref(list);
	dataset_close(d);
	return rc < 0 ? rc : 0;
}
