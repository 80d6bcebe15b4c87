/* SPDX-License-Identifier: Apache-2.0
 * Verifying a dataset. A shard's file is hashed with plain reads first; only one that is byte for
 * byte what was published is opened, so no damaged tree is ever walked. Then every record is read
 * again, in the order of its adding, the index is held against it, and the dataset's hash made.
 *  */
#include "config.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "store/dataset_layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DAMAGE_LISTED 100

struct verify {
	const char *folder;
	struct dataset_manifest manifest;
	json_t *damage;
	uint64_t samples, done;
	uint8_t chain[CHAIN_BYTES];
	dataset_progress *progress;
	void *arg;
};

static void note(struct verify *v, const char *text)
{
	if (json_array_size(v->damage) < DAMAGE_LISTED)
		json_array_append_new(v->damage, json_string(text));
}

/* Whether the file is what the manifest says. */
static int check_file(struct verify *v, const char *path, const struct dataset_shard *s,
		      bool *same, struct err *e)
{
	char hash[DATASET_HASH_TEXT], text[ERR_TEXT_MAX];
	int64_t size = file_size(path);

	*same = false;
	if (size < 0 || (uint64_t)size != s->bytes) {
		snprintf(text, sizeof text, "%s: found %lld bytes, expected %llu", path,
			 (long long)size, (unsigned long long)s->bytes);
		note(v, text);
		return 0;
	}
	TRY(dataset_hash_file(path, hash, v->progress, v->arg, &v->done, v->manifest.info.bytes,
			      e));
	*same = strcmp(hash, s->hash) == 0;
	if (!*same) {
		snprintf(text, sizeof text, "%s: its content has hash %s, expected %s", path,
			 hash, s->hash);
		note(v, text);
	}
	return 0;
}

/* The index entry of the number-th sample of a split must say where the record was found. */
static int check_index(const struct dataset_map *map, const char *path, enum dataset_split split,
		       uint64_t number, uint32_t block, uint32_t offset, struct err *e)
{
	size_t place = number % DATASET_PAGE;
	struct dataset_entry entry = { 0, 0 };
	MDB_val page;
	int rc = dataset_map_get(map, path, dataset_index_kind(split),
				 (uint32_t)(number / DATASET_PAGE), &page, e);

	if (rc == 0 && page.mv_size >= (place + 1) * sizeof entry)
		memcpy(&entry, (char *)page.mv_data + place * sizeof entry, sizeof entry);
	else if (rc == 0 || rc == TF_ENOTFOUND)
		rc = TF_ECORRUPT;
	FAIL_IF(rc < 0 || entry.block != block || entry.offset != offset, e, TF_ECORRUPT,
		"%s: the index entry of %s sample %llu is wrong", path, dataset_split_name(split),
		(unsigned long long)number);
	return 0;
}

static int check_block(struct verify *v, const struct dataset_map *map, const char *path,
		       uint32_t block, uint64_t count[DATASET_SPLITS], struct err *e)
{
	MDB_val value;
	size_t at = 0;
	int rc = dataset_map_get(map, path, KEY_BLOCK, block, &value, e);

	FAIL_IF(rc == TF_ENOTFOUND, e, TF_ECORRUPT, "%s: block %u is missing", path, block);
	TRY(rc);
	while (at < value.mv_size) {
		uint32_t offset = (uint32_t)at;
		enum dataset_split split;
		struct sample s;
		uint64_t sum;

		TRY(record_read(value.mv_data, value.mv_size, offset, path, &s, &split, &sum, &at,
				e));
		TRY(check_index(map, path, split, count[split], block, offset, e));
		chain_add(v->chain, split, sum);
		count[split]++;
		v->samples++;
	}
	return 0;
}

static int check_records(struct verify *v, const char *path, const struct dataset_shard *s,
			 struct err *e)
{
	uint64_t count[DATASET_SPLITS] = { 0 };
	struct dataset_map map;
	int rc = dataset_map_open(path, s->bytes, &map, e);

	for (uint32_t i = 0; rc == 0 && i < s->blocks; i++)
		rc = check_block(v, &map, path, i, count, e);
	dataset_map_close(&map);
	TRY(rc);
	FAIL_IF(memcmp(count, s->samples, sizeof count) != 0, e, TF_ECORRUPT,
		"%s: found %llu + %llu samples, expected %llu + %llu", path,
		(unsigned long long)count[0], (unsigned long long)count[1],
		(unsigned long long)s->samples[0], (unsigned long long)s->samples[1]);
	return 0;
}

static int check_shard(struct verify *v, unsigned number, struct err *e)
{
	const struct dataset_shard *s = &v->manifest.shard[number];
	char *path = dataset_shard_path(v->folder, number);
	struct err inner = ERR_INIT;
	bool same;
	int rc = check_file(v, path, s, &same, e);

	if (rc >= 0 && same && check_records(v, path, s, &inner) < 0)
		note(v, inner.text);
	xfree(path);
	return rc;
}

int dataset_verify(const char *folder, struct buf *report, bool *good, dataset_progress *progress,
		   void *arg, struct err *e)
{
	struct verify v = {
		.folder = folder, .damage = json_array(), .progress = progress, .arg = arg
	};
	char hash[DATASET_HASH_TEXT], *text;
	struct err inner = ERR_INIT;
	json_t *o;
	int rc = manifest_read(folder, &v.manifest, &inner);

	if (rc == TF_ENOTFOUND) {
		json_decref(v.damage);
		return err_set(e, rc, "%s", inner.text);
	}
	if (rc < 0)
		note(&v, inner.text);
	rc = 0;
	for (unsigned i = 0; i < v.manifest.shards && rc >= 0; i++)
		rc = check_shard(&v, i, e);
	manifest_hash(&v.manifest.info, v.chain, hash);
	if (!json_array_size(v.damage) && strcmp(hash, v.manifest.info.hash) != 0)
		note(&v, "the records together do not have the hash of the manifest");
	*good = json_array_size(v.damage) == 0;
	o = json_pack("{sb sI sI sO}", "good", (int)*good, "samples", (json_int_t)v.samples,
		      "bytes", (json_int_t)v.done, "damage", v.damage);
	CHECK(o);
	text = json_dumps(o, JSON_INDENT(1));
	buf_text(report, text);
	free(text);
	json_decref(o);
	json_decref(v.damage);
	manifest_release(&v.manifest);
	return rc < 0 ? rc : 0;
}
