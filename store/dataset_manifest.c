/* SPDX-License-Identifier: Apache-2.0
 * The manifest of a dataset: what it holds and what its shards' files must be, as JSON. It is
 * written last, so a folder with a manifest is whole. */
#include "config.h"
#include "lib/bound.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/dataset_layout.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

static const char *const kinds[DATASET_KINDS] = { "text", "images", "pairs" };
static const char *const splits[DATASET_SPLITS] = { "train", "heldout" };

const char *dataset_kind_name(enum dataset_kind kind)
{
	CHECK((unsigned)kind < DATASET_KINDS);
	return kinds[kind];
}

const char *dataset_split_name(enum dataset_split split)
{
	CHECK((unsigned)split < DATASET_SPLITS);
	return splits[split];
}

int dataset_split_parse(const char *word, enum dataset_split *out, struct err *e)
{
	for (int i = 0; i < DATASET_SPLITS; i++)
		if (strcmp(word, splits[i]) == 0) {
			*out = i;
			return 0;
		}
	return err_set(e, TF_EINVALID, "split: found '%.40s', expected train or heldout", word);
}

char *dataset_shard_path(const char *folder, unsigned number)
{
	return xasprintf("%s/shard-%04u.mdb", folder, number);
}

void manifest_release(struct dataset_manifest *m)
{
	xfree(m->shard);
	memset(m, 0, sizeof *m);
}

void manifest_hash(const struct dataset_info *i, const uint8_t chain[CHAIN_BYTES],
		   char hex[DATASET_HASH_TEXT])
{
	struct buf text = BUF_INIT;
	XXH128_canonical_t digest;

	buf_printf(&text, "%s %s %d %s %dx%d %dx%dx%d\n", kinds[i->kind], i->tokenizer,
		   (int)i->pieces, i->vae, i->height, i->width, i->rows, i->columns, i->channels);
	buf_append(&text, chain, CHAIN_BYTES);
	XXH128_canonicalFromHash(&digest, XXH3_128bits(text.data, text.len));
	chain_hex(digest.digest, hex);
	buf_release(&text);
}

int dataset_hash_file(const char *path, char hex[DATASET_HASH_TEXT], dataset_progress *progress,
		      void *arg, uint64_t *done, uint64_t total, struct err *e)
{
	enum { CHUNK = 1 << 20 };
	XXH3_state_t *state = XXH3_createState();
	char *chunk = xmalloc(CHUNK);
	XXH128_canonical_t digest;
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
	ssize_t n = 0;

	CHECK(state);
	XXH3_128bits_reset(state);
	while (fd >= 0 && rc >= 0 && (n = read(fd, chunk, CHUNK)) > 0) {
		XXH3_128bits_update(state, chunk, (size_t)n);
		*done += (uint64_t)n;
		if (progress)
			rc = progress(arg, *done, total);
	}
	if (fd < 0 || n < 0)
		rc = err_errno(e, "%s", path);
	else if (rc < 0)
		err_set(e, rc, "%s: stopped", path);
	XXH128_canonicalFromHash(&digest, XXH3_128bits_digest(state));
	chain_hex(digest.digest, hex);
	XXH3_freeState(state);
	xfree(chunk);
	if (fd >= 0)
		close(fd);
	return rc < 0 ? rc : 0;
}

/* ---- writing ---- */

static json_t *per_split(const uint64_t count[DATASET_SPLITS])
{
	return json_pack("{sI sI}", splits[0], (json_int_t)count[0], splits[1],
			 (json_int_t)count[1]);
}

static json_t *numbers(const float *value, int count)
{
	json_t *list = json_array();

	for (int i = 0; i < count; i++)
		json_array_append_new(list, json_real((double)value[i]));
	return list;
}

json_t *manifest_facts(const struct dataset_info *i)
{
	json_t *o = json_pack("{ss so so so sI sI sI sI}", "kind", kinds[i->kind], "samples",
			      per_split(i->samples), "tokens", per_split(i->tokens), "text_bytes",
			      per_split(i->text_bytes), "captions", (json_int_t)i->captions,
			      "longest_tokens", (json_int_t)i->longest_tokens, "bytes",
			      (json_int_t)i->bytes, "bad", (json_int_t)i->bad);

	CHECK(o);
	json_object_set_new(o, "tokenizer",
			    json_pack("{ss si}", "hash", i->tokenizer, "pieces", (int)i->pieces));
	json_object_set_new(o, "picture",
			    json_pack("{si si sb}", "height", i->height, "width", i->width,
				      "pixels", (int)i->pixels));
	json_object_set_new(o, "latent",
			    json_pack("{ss si si si so so}", "vae", i->vae, "rows", i->rows,
				      "columns", i->columns, "channels", i->channels, "mean",
				      numbers(i->mean, i->channels), "deviation",
				      numbers(i->deviation, i->channels)));
	json_object_set_new(o, "holdout_percent", json_real(i->holdout_percent));
	json_object_set_new(o, "format", json_string(i->format));
	json_object_set_new(o, "hash", json_string(i->hash));
	return o;
}

int manifest_write(const char *folder, const struct dataset_manifest *m, struct err *e)
{
	json_t *o = manifest_facts(&m->info), *shards = json_array();
	char *path = xasprintf("%s/%s", folder, DATASET_MANIFEST), *text;
	int rc;

	for (unsigned i = 0; i < m->shards; i++) {
		const struct dataset_shard *s = &m->shard[i];

		json_array_append_new(shards,
				      json_pack("{sI ss so sI}", "bytes", (json_int_t)s->bytes,
						"hash", s->hash, "samples", per_split(s->samples),
						"blocks", (json_int_t)s->blocks));
	}
	json_object_set_new(o, "version", json_integer(DATASET_VERSION));
	json_object_set_new(o, "shards", shards);
	text = json_dumps(o, JSON_INDENT(1) | JSON_SORT_KEYS);
	CHECK(text);
	rc = file_write(path, text, strlen(text), 0644, e);
	json_decref(o);
	free(text);
	xfree(path);
	return rc;
}

/* ---- reading ---- */

static int64_t number_at(json_t *o, const char *key, int64_t most, bool *bad)
{
	json_t *v = json_object_get(o, key);

	if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > most) {
		*bad = true;
		return 0;
	}
	return json_integer_value(v);
}

static void text_at(json_t *o, const char *key, char *out, size_t room, bool *bad)
{
	const char *text = json_string_value(json_object_get(o, key));

	*bad |= !text || strlen(text) >= room;
	snprintf(out, room, "%s", text && strlen(text) < room ? text : "");
}

static void splits_at(json_t *o, const char *key, uint64_t out[DATASET_SPLITS], bool *bad)
{
	for (int i = 0; i < DATASET_SPLITS; i++)
		out[i] = (uint64_t)number_at(json_object_get(o, key), splits[i], INT64_MAX / 4,
					     bad);
}

static void numbers_at(json_t *o, const char *key, int count, bool positive, float *out,
		       bool *bad)
{
	json_t *list = json_object_get(o, key);

	*bad |= !json_is_array(list) || json_array_size(list) != (size_t)count;
	for (int i = 0; i < count && !*bad; i++) {
		out[i] = (float)json_number_value(json_array_get(list, (size_t)i));
		*bad |= !isfinite(out[i]) || (positive && out[i] <= 0);
	}
}

static void read_facts(json_t *o, struct dataset_info *i, bool *bad)
{
	json_t *tokenizer = json_object_get(o, "tokenizer"),
	       *latent = json_object_get(o, "latent");
	json_t *picture = json_object_get(o, "picture"), *percent;
	char kind[16];
	int k;

	text_at(o, "kind", kind, sizeof kind, bad);
	for (k = 0; k < DATASET_KINDS && strcmp(kind, kinds[k]) != 0; k++)
		;
	*bad |= k == DATASET_KINDS;
	i->kind = k % DATASET_KINDS;
	splits_at(o, "samples", i->samples, bad);
	splits_at(o, "tokens", i->tokens, bad);
	splits_at(o, "text_bytes", i->text_bytes, bad);
	i->captions = (uint64_t)number_at(o, "captions", INT64_MAX / 4, bad);
	i->longest_tokens = (uint64_t)number_at(o, "longest_tokens", INT64_MAX / 4, bad);
	i->bytes = (uint64_t)number_at(o, "bytes", INT64_MAX / 4, bad);
	i->bad = (uint64_t)number_at(o, "bad", INT64_MAX / 4, bad);
	text_at(tokenizer, "hash", i->tokenizer, sizeof i->tokenizer, bad);
	i->pieces = (int32_t)number_at(tokenizer, "pieces", LIMIT_TOKENIZER_PIECES, bad);
	i->height = (int)number_at(picture, "height", DATASET_SIDE_MAX, bad);
	i->width = (int)number_at(picture, "width", DATASET_SIDE_MAX, bad);
	i->pixels = json_is_true(json_object_get(picture, "pixels"));
	text_at(latent, "vae", i->vae, sizeof i->vae, bad);
	i->rows = (int)number_at(latent, "rows", DATASET_SIDE_MAX, bad);
	i->columns = (int)number_at(latent, "columns", DATASET_SIDE_MAX, bad);
	i->channels = (int)number_at(latent, "channels", DATASET_CHANNELS_MAX, bad);
	numbers_at(latent, "mean", i->channels, false, i->mean, bad);
	numbers_at(latent, "deviation", i->channels, true, i->deviation, bad);
	percent = json_object_get(o, "holdout_percent");
	i->holdout_percent = json_number_value(percent);
	*bad |= !json_is_number(percent) ||
		!(i->holdout_percent >= 0 && i->holdout_percent <= 100);
	text_at(o, "format", i->format, sizeof i->format, bad);
	text_at(o, "hash", i->hash, sizeof i->hash, bad);
}

static void read_shards(json_t *o, struct dataset_manifest *m, bool *bad)
{
	json_t *shards = json_object_get(o, "shards");
	uint64_t total[DATASET_SPLITS] = { 0 };

	if (!json_is_array(shards) || json_array_size(shards) > bound("shards", LIMIT_SHARDS)) {
		*bad = true;
		return;
	}
	m->shards = (unsigned)json_array_size(shards);
	m->shard = xcalloc(m->shards ? m->shards : 1, sizeof *m->shard);
	for (unsigned i = 0; i < m->shards; i++) {
		json_t *s = json_array_get(shards, i);

		m->shard[i].bytes = (uint64_t)number_at(s, "bytes", INT64_MAX / 4, bad);
		text_at(s, "hash", m->shard[i].hash, sizeof m->shard[i].hash, bad);
		splits_at(s, "samples", m->shard[i].samples, bad);
		m->shard[i].blocks = (uint32_t)number_at(s, "blocks", UINT32_MAX, bad);
		for (int k = 0; k < DATASET_SPLITS; k++)
			total[k] += m->shard[i].samples[k];
	}
	*bad |= memcmp(total, m->info.samples, sizeof total) != 0;
}

int manifest_read(const char *folder, struct dataset_manifest *out, struct err *e)
{
	char *path = xasprintf("%s/%s", folder, DATASET_MANIFEST);
	struct buf text = BUF_INIT;
	json_error_t where;
	json_t *o = NULL;
	bool bad = false;
	int rc;

	memset(out, 0, sizeof *out);
	rc = file_read(path, LIMIT_MANIFEST_BYTES, &text, e);
	if (rc >= 0) {
		o = json_loadb(text.data ? text.data : "", text.len, JSON_REJECT_DUPLICATES,
			       &where);
		if (!json_is_object(o))
			rc = err_set(e, TF_ECORRUPT, "%s: not a manifest: %s", path,
				     o ? "not an object" : where.text);
	}
	if (rc >= 0 && number_at(o, "version", UINT32_MAX, &bad) != DATASET_VERSION)
		rc = err_set(e, bad ? TF_ECORRUPT : TF_EVERSION, "%s: version: expected %d", path,
			     DATASET_VERSION);
	if (rc >= 0) {
		read_facts(o, &out->info, &bad);
		read_shards(o, out, &bad);
		if (bad)
			rc = err_set(e, TF_ECORRUPT,
				     "%s: a field is missing, out of range or does not "
				     "agree with the shards",
				     path);
	}
	if (rc < 0)
		manifest_release(out);
	json_decref(o);
	buf_release(&text);
	xfree(path);
	return rc;
}

int dataset_read_info(const char *folder, struct dataset_info *out, struct err *e)
{
	struct dataset_manifest m;

	TRY(manifest_read(folder, &m, e));
	*out = m.info;
	manifest_release(&m);
	return 0;
}

int dataset_info_json(const char *folder, struct buf *out, struct err *e)
{
	struct dataset_info info;
	json_t *o;
	char *text;

	TRY(dataset_read_info(folder, &info, e));
	o = manifest_facts(&info);
	text = json_dumps(o, JSON_INDENT(1));
	CHECK(text);
	buf_text(out, text);
	free(text);
	json_decref(o);
	return 0;
}
