/* SPDX-License-Identifier: Apache-2.0
 * The safetensors file format (8-byte little-endian header length, JSON header, data): reading
 * through a read-only map with every bound checked, and writing whole or not at all. */
#ifndef LIB_SAFETENSORS_H
#define LIB_SAFETENSORS_H

#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ST_RANK_MAX 8
#define ST_HEADER_MAX (100u << 20)
#define ST_TENSORS_MAX 100000

enum st_type {
	ST_F64,
	ST_F32,
	ST_F16,
	ST_BF16,
	ST_I64,
	ST_I32,
	ST_I16,
	ST_I8,
	ST_U8,
	ST_U16,
	ST_BOOL,
	ST_TYPES
};

size_t st_type_bytes(enum st_type type);
const char *st_type_name(enum st_type type); /* "F32", "BF16", ... */

struct st_tensor {
	char *name;
	enum st_type type;
	int rank;
	int64_t dim[ST_RANK_MAX];
	/* in the map of an opened file; the caller's when writing. Maybe unaligned */
	const void *data;
	size_t bytes;
};

struct st_file {
	struct st_tensor *tensors;
	size_t count;
	char **meta_key, **meta_value; /* the "__metadata__" map */
	size_t meta_count;
	void *map;
	size_t map_bytes;
};

/* Opens and checks path: header, names, types, shapes, offsets (no overlap, no hole, inside the
 * file).
 * On success f is released by st_close; tensors' data lives as long. */
int st_open(const char *path, struct st_file *f, struct err *e);
void st_close(struct st_file *f);
const struct st_tensor *st_find(const struct st_file *f, const char *name);
const char *st_meta(const struct st_file *f, const char *key); /* NULL when absent */
/* The same as a number from 0 to `most` (at most INT64_MAX), in decimal; path for the error
 * (TF_ECORRUPT). */
int st_meta_count(const struct st_file *f, const char *path, const char *key, uint64_t most,
		  uint64_t *out, struct err *e);
/* Finds name and demands type (ST_TYPES: any), rank and dims (negative: any); a sentence says what
 * differs. */
int st_need(const struct st_file *f, const char *path, const char *name, enum st_type type,
	    int rank, const int64_t *dim, const struct st_tensor **out, struct err *e);

/* A writer: declare all tensors, then write. Writes <path>.tmp, fsyncs, renames, fsyncs the
 * folder. */
struct st_writer {
	struct st_tensor *tensors;
	size_t count, room;
	char **meta_key, **meta_value;
	size_t meta_count, meta_room;
};

void st_writer_init(struct st_writer *w);
void st_writer_meta(struct st_writer *w, const char *key, const char *value); /* copies both */
void st_writer_count(struct st_writer *w, const char *key, uint64_t value);
/* data is borrowed until st_writer_save. */
void st_writer_add(struct st_writer *w, const char *name, enum st_type type, int rank,
		   const int64_t *dim, const void *data);
int st_writer_save(struct st_writer *w, const char *path, struct err *e);
void st_writer_release(struct st_writer *w);

#endif
