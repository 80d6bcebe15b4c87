/* SPDX-License-Identifier: Apache-2.0
 * The safetensors format; see safetensors.h. A file from outside is believed in nothing: the
 * header's length, JSON, types, shapes and offsets are checked before a tensor is handed out. */
#include "config.h"
#include "lib/safetensors.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define PREFIX_BYTES 8    /* length of the header, little-endian */
#define DATA_ALIGNMENT 64 /* of our own files */

static const struct {
	const char *name;
	size_t bytes;
} types[ST_TYPES] = {
	[ST_F64] = { "F64", 8 },   [ST_F32] = { "F32", 4 },   [ST_F16] = { "F16", 2 },
	[ST_BF16] = { "BF16", 2 }, [ST_I64] = { "I64", 8 },   [ST_I32] = { "I32", 4 },
	[ST_I16] = { "I16", 2 },   [ST_I8] = { "I8", 1 },     [ST_U8] = { "U8", 1 },
	[ST_U16] = { "U16", 2 },   [ST_BOOL] = { "BOOL", 1 },
};

size_t st_type_bytes(enum st_type type)
{
	CHECK((unsigned)type < ST_TYPES);
	return types[type].bytes;
}

const char *st_type_name(enum st_type type)
{
	CHECK((unsigned)type <= ST_TYPES);
	return type == ST_TYPES ? "any type" : types[type].name;
}

/* Bytes of a tensor; false when the product does not fit. */
static bool tensor_size(enum st_type type, int rank, const int64_t *dim, size_t *bytes)
{
	size_t n = st_type_bytes(type);

	for (int i = 0; i < rank; i++)
		if (dim[i] < 0 || __builtin_mul_overflow(n, (size_t)dim[i], &n))
			return false;
	*bytes = n;
	return n <= INT64_MAX;
}

/* ---- reading */

static int read_type(const char *path, const char *name, const json_t *dtype, enum st_type *out,
		     struct err *e)
{
	const char *word = json_string_value(dtype);

	FAIL_IF(!word, e, TF_ECORRUPT, "%s: tensor '%s' has no dtype", path, name);
	for (int i = 0; i < ST_TYPES; i++)
		if (strcmp(types[i].name, word) == 0) {
			*out = (enum st_type)i;
			return 0;
		}
	return err_set(e, TF_EUNSUPPORTED,
		       "%s: tensor '%s' has dtype '%.20s', which is not supported", path, name,
		       word);
}

static int read_shape(const char *path, const json_t *shape, struct st_tensor *t, struct err *e)
{
	FAIL_IF(!json_is_array(shape) || json_array_size(shape) > ST_RANK_MAX, e, TF_ECORRUPT,
		"%s: tensor '%s' has no shape of at most %d dimensions", path, t->name,
		ST_RANK_MAX);
	t->rank = (int)json_array_size(shape);
	for (int i = 0; i < t->rank; i++) {
		const json_t *d = json_array_get(shape, (size_t)i);

		FAIL_IF(!json_is_integer(d) || json_integer_value(d) < 0, e, TF_ECORRUPT,
			"%s: tensor '%s': dimension %d is not a whole number", path, t->name, i);
		t->dim[i] = json_integer_value(d);
	}
	FAIL_IF(!tensor_size(t->type, t->rank, t->dim, &t->bytes), e, TF_ECORRUPT,
		"%s: tensor '%s' is larger than any file", path, t->name);
	return 0;
}

static int read_tensor(const char *path, const char *name, const json_t *entry, const char *data,
		       size_t data_bytes, struct st_tensor *t, struct err *e)
{
	const json_t *span = json_object_get(entry, "data_offsets");
	const json_t *from = json_array_get(span, 0), *to = json_array_get(span, 1);
	json_int_t begin, end;

	FAIL_IF(!json_is_object(entry) || json_object_size(entry) != 3, e, TF_ECORRUPT,
		"%s: tensor '%s': expected dtype, shape and data_offsets", path, name);
	t->name = xstrdup(name);
	TRY(read_type(path, name, json_object_get(entry, "dtype"), &t->type, e));
	TRY(read_shape(path, json_object_get(entry, "shape"), t, e));
	FAIL_IF(json_array_size(span) != 2 || !json_is_integer(from) || !json_is_integer(to), e,
		TF_ECORRUPT, "%s: tensor '%s' has no data_offsets [begin, end]", path, name);
	begin = json_integer_value(from);
	end = json_integer_value(to);
	FAIL_IF(begin < 0 || end < begin || (uint64_t)end > data_bytes, e, TF_ECORRUPT,
		"%s: tensor '%s' lies at bytes %" PRId64 " to %" PRId64 " of %zu", path, name,
		(int64_t)begin, (int64_t)end, data_bytes);
	FAIL_IF((uint64_t)(end - begin) != t->bytes, e, TF_ECORRUPT,
		"%s: tensor '%s' has %" PRId64 " bytes, its shape and type need %zu", path, name,
		(int64_t)(end - begin), t->bytes);
	t->data = data + begin;
	return 0;
}

static int read_metadata(const char *path, const json_t *map, struct st_file *f, struct err *e)
{
	size_t count = json_object_size(map);
	const char *key;
	json_t *value;

	FAIL_IF(!json_is_object(map) || count > ST_TENSORS_MAX, e, TF_ECORRUPT,
		"%s: __metadata__ is not a map of texts", path);
	f->meta_key = xcalloc(count, sizeof *f->meta_key);
	f->meta_value = xcalloc(count, sizeof *f->meta_value);
	json_object_foreach ((json_t *)map, key, value) {
		FAIL_IF(!json_is_string(value), e, TF_ECORRUPT,
			"%s: __metadata__: '%.100s' is not a text", path, key);
		f->meta_key[f->meta_count] = xstrdup(key);
		f->meta_value[f->meta_count++] = xstrdup(json_string_value(value));
	}
	return 0;
}

static int by_place(const void *a, const void *b)
{
	const struct st_tensor *x = a, *y = b;
	const char *p = x->data, *q = y->data;

	return p != q ? (p > q) - (p < q) : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Tensors must follow each other from the first byte of data to the last. */
static int check_places(const char *path, struct st_file *f, const char *data, size_t data_bytes,
			struct err *e)
{
	const char *at = data;

	if (f->count)
		qsort(f->tensors, f->count, sizeof *f->tensors, by_place);
	for (size_t i = 0; i < f->count; i++) {
		const struct st_tensor *t = &f->tensors[i];

		FAIL_IF((const char *)t->data != at, e, TF_ECORRUPT,
			"%s: tensor '%s' begins at byte %td of the data, expected %td (%s)", path,
			t->name, (const char *)t->data - data, at - data,
			(const char *)t->data > at ? "a hole" : "an overlap");
		at += t->bytes;
	}
	FAIL_IF((size_t)(at - data) != data_bytes, e, TF_ECORRUPT,
		"%s: %zu bytes of data, its tensors have %td", path, data_bytes, at - data);
	return 0;
}

static int read_header(const char *path, const json_t *root, size_t header_bytes,
		       struct st_file *f, struct err *e)
{
	const char *data = (const char *)f->map + PREFIX_BYTES + header_bytes;
	size_t data_bytes = f->map_bytes - PREFIX_BYTES - header_bytes;
	const char *name;
	json_t *entry;

	FAIL_IF(!json_is_object(root) || json_object_size(root) > ST_TENSORS_MAX, e, TF_ECORRUPT,
		"%s: the header is not a map of at most %d tensors", path, ST_TENSORS_MAX);
	f->tensors = xcalloc(json_object_size(root), sizeof *f->tensors);
	json_object_foreach ((json_t *)root, name, entry) {
		if (strcmp(name, "__metadata__") == 0) {
			TRY(read_metadata(path, entry, f, e));
			continue;
		}
		TRY(read_tensor(path, name, entry, data, data_bytes, &f->tensors[f->count++], e));
	}
	return check_places(path, f, data, data_bytes, e);
}

static int parse_file(const char *path, struct st_file *f, struct err *e)
{
	const unsigned char *p = f->map;
	uint64_t header_bytes = 0;
	json_error_t error;
	json_t *root;
	int rc;

	for (int i = PREFIX_BYTES - 1; i >= 0; i--)
		header_bytes = header_bytes << 8 | p[i];
	FAIL_IF(header_bytes > ST_HEADER_MAX || header_bytes > f->map_bytes - PREFIX_BYTES, e,
		TF_ECORRUPT, "%s: not safetensors: a header of %" PRIu64 " bytes in a file of %zu",
		path, header_bytes, f->map_bytes);
	FAIL_IF(header_bytes < 2 || p[PREFIX_BYTES] != '{', e, TF_ECORRUPT,
		"%s: not safetensors: the header does not begin with '{'", path);
	root = json_loadb((const char *)p + PREFIX_BYTES, header_bytes, JSON_REJECT_DUPLICATES,
			  &error);
	FAIL_IF(!root, e, TF_ECORRUPT, "%s: header, byte %d: %s", path, error.position,
		error.text);
	rc = read_header(path, root, header_bytes, f, e);
	json_decref(root);
	return rc;
}

static int map_file(const char *path, struct st_file *f, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	int rc = 0;

	if (fd < 0)
		return err_errno(e, "%s", path);
	if (fstat(fd, &st) < 0) {
		rc = err_errno(e, "%s", path);
	} else if (!S_ISREG(st.st_mode) || st.st_size < PREFIX_BYTES + 2) {
		rc = err_set(e, TF_ECORRUPT, "%s: not safetensors: %s", path,
			     S_ISREG(st.st_mode) ? "too short" : "not a regular file");
	} else {
		f->map_bytes = (size_t)st.st_size;
		f->map = mmap(NULL, f->map_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
		if (f->map == MAP_FAILED) {
			rc = err_errno(e, "%s", path);
			f->map = NULL;
		}
	}
	close(fd);
	return rc;
}

int st_open(const char *path, struct st_file *f, struct err *e)
{
	int rc;

	memset(f, 0, sizeof *f);
	rc = map_file(path, f, e);
	if (rc == 0)
		rc = parse_file(path, f, e);
	if (rc < 0)
		st_close(f);
	return rc;
}

void st_close(struct st_file *f)
{
	for (size_t i = 0; i < f->count; i++)
		xfree(f->tensors[i].name);
	for (size_t i = 0; i < f->meta_count; i++) {
		xfree(f->meta_key[i]);
		xfree(f->meta_value[i]);
	}
	xfree(f->tensors);
	xfree(f->meta_key);
	xfree(f->meta_value);
	if (f->map)
		munmap(f->map, f->map_bytes);
	memset(f, 0, sizeof *f);
}

const struct st_tensor *st_find(const struct st_file *f, const char *name)
{
	for (size_t i = 0; i < f->count; i++)
		if (strcmp(f->tensors[i].name, name) == 0)
			return &f->tensors[i];
	return NULL;
}

const char *st_meta(const struct st_file *f, const char *key)
{
	for (size_t i = 0; i < f->meta_count; i++)
		if (strcmp(f->meta_key[i], key) == 0)
			return f->meta_value[i];
	return NULL;
}

int st_meta_count(const struct st_file *f, const char *path, const char *key, uint64_t most,
		  uint64_t *out, struct err *e)
{
	const char *text = st_meta(f, key);

	FAIL_IF(!text, e, TF_ECORRUPT, "%s: its metadata has no '%s'", path, key);
	*out = strtoull(text, NULL, 10);
	FAIL_IF(!*text || strspn(text, "0123456789") != strlen(text) || *out > most, e,
		TF_ECORRUPT, "%s: metadata '%s': found '%.40s', expected a number up to %" PRIu64,
		path, key, text, most);
	return 0;
}

static void shape_text(int rank, const int64_t *dim, char out[256])
{
	size_t at = 0;

	out[at++] = '[';
	for (int i = 0; i < rank; i++)
		at += (size_t)snprintf(out + at, 256 - at, dim[i] < 0 ? "%s*" : "%s%" PRId64,
				       i ? ", " : "", dim[i]);
	snprintf(out + at, 256 - at, "]");
}

int st_need(const struct st_file *f, const char *path, const char *name, enum st_type type,
	    int rank, const int64_t *dim, const struct st_tensor **out, struct err *e)
{
	const struct st_tensor *t = st_find(f, name);
	bool fits = t && (type == ST_TYPES || t->type == type) && t->rank == rank;
	char want[256], have[256];

	FAIL_IF(!t, e, TF_ENOTFOUND, "%s: tensor '%s' is missing", path, name);
	for (int i = 0; fits && i < rank; i++)
		fits = dim[i] < 0 || dim[i] == t->dim[i];
	if (fits) {
		*out = t;
		return 0;
	}
	shape_text(rank, dim, want);
	shape_text(t->rank, t->dim, have);
	return err_set(e, TF_EMISMATCH, "%s: tensor '%s' is %s %s, expected %s %s", path, name,
		       st_type_name(t->type), have, st_type_name(type), want);
}

/* ---- writing */

void st_writer_init(struct st_writer *w)
{
	memset(w, 0, sizeof *w);
}

void st_writer_meta(struct st_writer *w, const char *key, const char *value)
{
	if (w->meta_count == w->meta_room) {
		w->meta_room = w->meta_room ? 2 * w->meta_room : 8;
		w->meta_key = xrealloc(w->meta_key, w->meta_room, sizeof *w->meta_key);
		w->meta_value = xrealloc(w->meta_value, w->meta_room, sizeof *w->meta_value);
	}
	w->meta_key[w->meta_count] = xstrdup(key);
	w->meta_value[w->meta_count++] = xstrdup(value);
}

void st_writer_count(struct st_writer *w, const char *key, uint64_t value)
{
	char text[24];

	snprintf(text, sizeof text, "%" PRIu64, value);
	st_writer_meta(w, key, text);
}

void st_writer_add(struct st_writer *w, const char *name, enum st_type type, int rank,
		   const int64_t *dim, const void *data)
{
	struct st_tensor t = { .type = type, .rank = rank, .data = data };

	CHECK(rank >= 0 && rank <= ST_RANK_MAX && *name && strcmp(name, "__metadata__") != 0);
	CHECK(tensor_size(type, rank, dim, &t.bytes));
	if (rank)
		memcpy(t.dim, dim, (size_t)rank * sizeof *dim);
	t.name = xstrdup(name);
	if (w->count == w->room) {
		w->room = w->room ? 2 * w->room : 64;
		w->tensors = xrealloc(w->tensors, w->room, sizeof *w->tensors);
	}
	w->tensors[w->count++] = t;
}

static json_t *describe(const struct st_tensor *t, size_t begin)
{
	json_t *shape = json_array();

	for (int i = 0; i < t->rank; i++)
		json_array_append_new(shape, json_integer(t->dim[i]));
	return json_pack("{s:s, s:o, s:[I, I]}", "dtype", st_type_name(t->type), "shape", shape,
			 "data_offsets", (json_int_t)begin, (json_int_t)(begin + t->bytes));
}

/* The header's JSON, padded with spaces so that the data begins aligned. */
static int make_header(const struct st_writer *w, const char *path, struct buf *out, struct err *e)
{
	json_t *root = json_object(), *meta = json_object();
	size_t begin = 0;
	char *text = NULL;
	int rc = 0;

	for (size_t i = 0; i < w->meta_count; i++)
		if (json_object_set_new(meta, w->meta_key[i], json_string(w->meta_value[i])) < 0)
			rc = err_set(e, TF_EINVALID, "%s: metadata '%.100s' is not UTF-8", path,
				     w->meta_key[i]);
	if (w->meta_count)
		json_object_set(root, "__metadata__", meta);
	for (size_t i = 0; rc == 0 && i < w->count; i++) {
		CHECK(!json_object_get(root, w->tensors[i].name));
		if (json_object_set_new(root, w->tensors[i].name,
					describe(&w->tensors[i], begin)) < 0)
			rc = err_set(e, TF_EINVALID, "%s: a tensor's name is not UTF-8", path);
		begin += w->tensors[i].bytes;
	}
	if (rc == 0) {
		text = json_dumps(root, JSON_COMPACT | JSON_PRESERVE_ORDER);
		CHECK(text);
		buf_text(out, text);
		while ((PREFIX_BYTES + out->len) % DATA_ALIGNMENT)
			buf_text(out, " ");
		free(text);
	}
	json_decref(meta);
	json_decref(root);
	return rc;
}

static int write_to(const struct st_writer *w, const struct buf *header, int fd, const char *path,
		    struct err *e)
{
	unsigned char prefix[PREFIX_BYTES];

	for (int i = 0; i < PREFIX_BYTES; i++)
		prefix[i] = (unsigned char)((uint64_t)header->len >> 8 * i);
	TRY(file_write_all(fd, prefix, sizeof prefix, path, e));
	TRY(file_write_all(fd, header->data, header->len, path, e));
	for (size_t i = 0; i < w->count; i++)
		TRY(file_write_all(fd, w->tensors[i].data, w->tensors[i].bytes, path, e));
	if (fsync(fd) < 0)
		return err_errno(e, "sync of %s", path);
	return 0;
}

int st_writer_save(struct st_writer *w, const char *path, struct err *e)
{
	char *tmp = xasprintf("%s.tmp", path);
	struct buf header = BUF_INIT;
	int fd = -1;
	int rc = make_header(w, path, &header, e);

	if (rc == 0) {
		fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
		rc = fd < 0 ? err_errno(e, "%s", tmp) : write_to(w, &header, fd, tmp, e);
	}
	if (fd >= 0 && close(fd) < 0 && rc == 0)
		rc = err_errno(e, "%s", tmp);
	if (rc == 0)
		rc = file_rename(tmp, path, e);
	else if (fd >= 0)
		unlink(tmp);
	buf_release(&header);
	xfree(tmp);
	return rc;
}

void st_writer_release(struct st_writer *w)
{
	for (size_t i = 0; i < w->count; i++)
		xfree(w->tensors[i].name);
	for (size_t i = 0; i < w->meta_count; i++) {
		xfree(w->meta_key[i]);
		xfree(w->meta_value[i]);
	}
	xfree(w->tensors);
	xfree(w->meta_key);
	xfree(w->meta_value);
	memset(w, 0, sizeof *w);
}
