/* SPDX-License-Identifier: Apache-2.0
 * The layout of datasets, shared by the files that read, write and verify them. doc/store.md
 * says it in words. Keys of a shard: KEY_BLOCK, KEY_TRAIN, KEY_HELDOUT, KEY_BAD + u32
 * big-endian number; KEY_STATE alone. All numbers in values are little-endian. */
#ifndef STORE_DATASET_LAYOUT_H
#define STORE_DATASET_LAYOUT_H

#include "lib/buf.h"
#include "store/dataset.h"

#include <jansson.h>
#include <lmdb.h>

#define DATASET_VERSION 1
#define DATASET_BLOCK_BYTES (256u << 10)     /* a block is closed when it has so many */
#define DATASET_PAGE 1024u                   /* entries of an index page */
#define RECORD_MAGIC 0x31524654u             /* "TFR1" */
#define RECORD_HEAD 64u
#define CHAIN_BYTES 16

enum { KEY_BLOCK = 'B', KEY_TRAIN = 'T', KEY_HELDOUT = 'H', KEY_BAD = 'X', KEY_STATE = 'S' };

/* One entry of an index page. */
struct dataset_entry {
	uint32_t block;
	uint32_t offset;
};
_Static_assert(sizeof(struct dataset_entry) == 8, "an index entry has 8 bytes");

/* A key with its bytes. */
struct dataset_key {
	uint8_t byte[5];
};
MDB_val dataset_key(struct dataset_key *k, int kind, uint32_t number);
int dataset_index_kind(enum dataset_split split);

/* ---- records (dataset_record.c) ---- */
/* Appends a record; the sample was checked. Returns its checksum. */
uint64_t record_write(const struct sample *s, enum dataset_split split, struct buf *out);
/* The record at offset of a block: bounds, shape and checksum. `where` is for messages. next
 * (may be NULL): offset after it. */
int record_read(const void *block, size_t bytes, uint32_t offset, const char *where,
		struct sample *out, enum dataset_split *split, uint64_t *sum, size_t *next,
		struct err *e);
/* Bytes the record of a sample takes. */
size_t record_bytes(const struct sample *s);
/* chain = XXH3-128(chain, split, checksum): the running hash of all records in their order. */
void chain_add(uint8_t chain[CHAIN_BYTES], enum dataset_split split, uint64_t sum);
void chain_hex(const uint8_t chain[CHAIN_BYTES], char hex[DATASET_HASH_TEXT]);
int chain_parse(const char *hex, uint8_t chain[CHAIN_BYTES]);

/* ---- manifest (dataset_manifest.c) ---- */
struct dataset_shard {
	uint64_t bytes;              /* of the file */
	char hash[DATASET_HASH_TEXT];  /* XXH3-128 of the file */
	uint64_t samples[DATASET_SPLITS];
	uint32_t blocks;
};
struct dataset_manifest {
	struct dataset_info info;
	struct dataset_shard *shard; /* owned */
	unsigned shards;
};
int manifest_read(const char *folder, struct dataset_manifest *out, struct err *e);
int manifest_write(const char *folder, const struct dataset_manifest *m, struct err *e);
void manifest_release(struct dataset_manifest *m);
json_t *manifest_facts(const struct dataset_info *i);   /* a new object */
/* The dataset's hash, from the chain of its records and what they are to be read with. */
void manifest_hash(const struct dataset_info *i, const uint8_t chain[CHAIN_BYTES],
		   char hex[DATASET_HASH_TEXT]);
char *dataset_shard_path(const char *folder, unsigned number);
/* XXH3-128 of a file, told to progress (may be NULL) after *done. */
int dataset_hash_file(const char *path, char hex[DATASET_HASH_TEXT], dataset_progress *progress,
		      void *arg, uint64_t *done, uint64_t total, struct err *e);

/* ---- opening shards (dataset.c) ---- */
/* Turns LMDB's answer into ours, naming path and what was done. */
int dataset_lmdb_error(struct err *e, int rc, const char *path, const char *what);
struct dataset_map {
	MDB_env *env;
	MDB_txn *txn;
	MDB_dbi dbi;
};
/* Opens a shard for reading, without locks; size is what the manifest says. */
int dataset_map_open(const char *path, uint64_t size, struct dataset_map *out, struct err *e);
void dataset_map_close(struct dataset_map *m);
/* The value of a key; TF_ENOTFOUND (no sentence) when there is none. */
int dataset_map_get(const struct dataset_map *m, const char *path, int kind, uint32_t number,
		    MDB_val *out, struct err *e);

#endif
