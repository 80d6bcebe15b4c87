/* SPDX-License-Identifier: Apache-2.0
 * Records of samples: flat, little-endian, with a checksum; written into blocks, read in place.
 *
 *	 0 u32 magic		 4 u32 bytes of the whole record, a multiple of 8
 *	 8 u64 xxh64 of what follows, to the end
 *	16 u32 split		20 u32 bytes of name	24 u32 bytes of text	28 u32 tokens
 *	32 u32 bytes a token	36 u32 pixels' height	40 u32 width (0: none)
 *	44 u32 latent's rows	48 u32 columns	52 u32 channels (0: none)	56 u64 zero
 *	64 name, zero; text, zero; then, each at a multiple of 8: tokens, pixels, latent */
#include "config.h"
#include "store/dataset_layout.h"

#include "lib/mem.h"
#include "proto/limits.h"

#include <endian.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "records are read in place: a little-endian machine is needed"
#endif

enum field {
	SPLIT,
	NAME,
	TEXT,
	TOKENS,
	TOKEN_BYTES,
	HEIGHT,
	WIDTH,
	ROWS,
	COLUMNS,
	CHANNELS,
	FIELDS
};
#define FIRST_FIELD 16

/* Where the parts of a record lie. */
struct parts {
	size_t text, tokens, pixels, latent, end;
};

static size_t round8(size_t n)
{
	return (n + 7) & ~(size_t)7;
}

static void parts_of(const uint32_t f[FIELDS], struct parts *p)
{
	p->text = RECORD_HEAD + (size_t)f[NAME] + 1;
	p->tokens = round8(p->text + f[TEXT] + 1);
	p->pixels = round8(p->tokens + (size_t)f[TOKENS] * f[TOKEN_BYTES]);
	p->latent = round8(p->pixels + (size_t)f[HEIGHT] * f[WIDTH] * 3);
	p->end = round8(p->latent + (size_t)f[ROWS] * f[COLUMNS] * f[CHANNELS] * 2);
}

/* Two bytes are enough where no token is larger. */
static int token_width(const struct sample *s)
{
	const int32_t *token = s->token;

	CHECK(!s->tokens || s->token_bytes == 4);
	for (size_t i = 0; i < s->tokens; i++)
		if (token[i] > UINT16_MAX)
			return 4;
	return 2;
}

static void fields_of(const struct sample *s, enum dataset_split split, uint32_t f[FIELDS])
{
	memset(f, 0, FIELDS * sizeof *f);
	f[SPLIT] = split;
	f[NAME] = (uint32_t)strlen(s->name);
	f[TEXT] = (uint32_t)s->text_bytes;
	f[TOKENS] = s->token ? (uint32_t)s->tokens : 0;
	f[TOKEN_BYTES] = (uint32_t)(s->token ? token_width(s) : 0);
	if (s->pixels) {
		f[HEIGHT] = (uint32_t)s->height;
		f[WIDTH] = (uint32_t)s->width;
	}
	if (s->latent) {
		f[ROWS] = (uint32_t)s->rows;
		f[COLUMNS] = (uint32_t)s->columns;
		f[CHANNELS] = (uint32_t)s->channels;
	}
}

size_t record_bytes(const struct sample *s)
{
	uint32_t f[FIELDS];
	struct parts p;

	fields_of(s, 0, f);
	parts_of(f, &p);
	return p.end;
}

static void write_tokens(const struct sample *s, int width, char *at)
{
	const int32_t *token = s->token;

	if (width == 4) {
		memcpy(at, token, 4 * s->tokens);
		return;
	}
	for (size_t i = 0; i < s->tokens; i++) {
		uint16_t small = (uint16_t)token[i];

		memcpy(at + 2 * i, &small, 2);
	}
}

uint64_t record_write(const struct sample *s, enum dataset_split split, struct buf *out)
{
	uint32_t f[FIELDS], head[2] = { RECORD_MAGIC, 0 };
	struct parts p;
	uint64_t sum;
	char *at;

	fields_of(s, split, f);
	parts_of(f, &p);
	CHECK(p.end <= UINT32_MAX / 4);
	buf_reserve(out, p.end);
	at = out->data + out->len;
	memset(at, 0, p.end);
	head[1] = (uint32_t)p.end;
	memcpy(at, head, sizeof head);
	memcpy(at + FIRST_FIELD, f, sizeof f);
	memcpy(at + RECORD_HEAD, s->name, f[NAME]);
	memcpy(at + p.text, s->text ? s->text : "", f[TEXT]);
	if (f[TOKENS])
		write_tokens(s, (int)f[TOKEN_BYTES], at + p.tokens);
	if (f[HEIGHT])
		memcpy(at + p.pixels, s->pixels, (size_t)f[HEIGHT] * f[WIDTH] * 3);
	if (f[ROWS])
		memcpy(at + p.latent, s->latent, (size_t)f[ROWS] * f[COLUMNS] * f[CHANNELS] * 2);
	sum = XXH64(at + FIRST_FIELD, p.end - FIRST_FIELD, 0);
	memcpy(at + 8, &sum, sizeof sum);
	out->len += p.end;
	out->data[out->len] = 0;
	return sum;
}

static bool fields_possible(const uint32_t f[FIELDS])
{
	bool width = f[TOKEN_BYTES] == 2 || f[TOKEN_BYTES] == 4 ||
		     (f[TOKEN_BYTES] == 0 && f[TOKENS] == 0);

	return f[SPLIT] < DATASET_SPLITS && f[NAME] <= LIMIT_SAMPLE_NAME_BYTES &&
	       f[TEXT] <= LIMIT_SAMPLE_TEXT_BYTES && f[TOKENS] <= LIMIT_SAMPLE_TEXT_BYTES &&
	       width && f[HEIGHT] <= DATASET_SIDE_MAX && f[WIDTH] <= DATASET_SIDE_MAX &&
	       f[ROWS] <= DATASET_SIDE_MAX && f[COLUMNS] <= DATASET_SIDE_MAX &&
	       f[CHANNELS] <= DATASET_CHANNELS_MAX;
}

static void fill_sample(const char *at, const uint32_t f[FIELDS], const struct parts *p,
			struct sample *out)
{
	memset(out, 0, sizeof *out);
	out->name = at + RECORD_HEAD;
	out->text = at + p->text;
	out->text_bytes = f[TEXT];
	if (f[TOKEN_BYTES]) {
		out->token = at + p->tokens;
		out->tokens = f[TOKENS];
		out->token_bytes = (int)f[TOKEN_BYTES];
	}
	if (f[HEIGHT] && f[WIDTH]) {
		out->pixels = (const uint8_t *)at + p->pixels;
		out->height = (int)f[HEIGHT];
		out->width = (int)f[WIDTH];
	}
	if (f[ROWS] && f[COLUMNS] && f[CHANNELS]) {
		out->latent = at + p->latent;
		out->rows = (int)f[ROWS];
		out->columns = (int)f[COLUMNS];
		out->channels = (int)f[CHANNELS];
	}
}

int record_read(const void *block, size_t bytes, uint32_t offset, const char *where,
		struct sample *out, enum dataset_split *split, uint64_t *sum, size_t *next,
		struct err *e)
{
	const char *at = (const char *)block + offset;
	uint32_t head[2], f[FIELDS];
	struct parts p;

	FAIL_IF(offset > bytes || bytes - offset < RECORD_HEAD, e, TF_ECORRUPT,
		"%s: a record at %u lies beyond its block of %zu bytes", where, offset, bytes);
	memcpy(head, at, sizeof head);
	memcpy(sum, at + 8, sizeof *sum);
	memcpy(f, at + FIRST_FIELD, sizeof f);
	FAIL_IF(head[0] != RECORD_MAGIC, e, TF_ECORRUPT,
		"%s: no record begins at %u of its block", where, offset);
	FAIL_IF(head[1] < RECORD_HEAD || head[1] > bytes - offset, e, TF_ECORRUPT,
		"%s: a record of %u bytes at %u in a block of %zu", where, head[1], offset,
		bytes);
	FAIL_IF(XXH64(at + FIRST_FIELD, head[1] - FIRST_FIELD, 0) != *sum, e, TF_ECORRUPT,
		"%s: the record's checksum does not match its content", where);
	FAIL_IF(!fields_possible(f), e, TF_ECORRUPT, "%s: a record with impossible sizes", where);
	parts_of(f, &p);
	FAIL_IF(p.end != head[1], e, TF_ECORRUPT, "%s: a record of %u bytes whose parts take %zu",
		where, head[1], p.end);
	FAIL_IF(at[p.text - 1] || at[p.text + f[TEXT]], e, TF_ECORRUPT,
		"%s: a record's name or text does not end", where);
	fill_sample(at, f, &p, out);
	*split = f[SPLIT];
	if (next)
		*next = offset + p.end;
	return 0;
}

void chain_add(uint8_t chain[CHAIN_BYTES], enum dataset_split split, uint64_t sum)
{
	uint8_t data[CHAIN_BYTES + 1 + sizeof sum];
	XXH128_canonical_t digest;

	memcpy(data, chain, CHAIN_BYTES);
	data[CHAIN_BYTES] = (uint8_t)split;
	memcpy(data + CHAIN_BYTES + 1, &sum, sizeof sum);
	XXH128_canonicalFromHash(&digest, XXH3_128bits(data, sizeof data));
	memcpy(chain, digest.digest, CHAIN_BYTES);
}

void chain_hex(const uint8_t chain[CHAIN_BYTES], char hex[DATASET_HASH_TEXT])
{
	for (int i = 0; i < CHAIN_BYTES; i++)
		snprintf(hex + 2 * i, 3, "%02x", chain[i]);
}

int chain_parse(const char *hex, uint8_t chain[CHAIN_BYTES])
{
	for (int i = 0; i < CHAIN_BYTES; i++) {
		unsigned value;

		if (strspn(hex + 2 * i, "0123456789abcdef") < 2 ||
		    sscanf(hex + 2 * i, "%2x", &value) != 1)
			return TF_ECORRUPT;
		chain[i] = (uint8_t)value;
	}
	return 0;
}

void sample_tokens(const struct sample *s, size_t first, size_t count, int32_t *out)
{
	const char *at = s->token;

	CHECK(first <= s->tokens && count <= s->tokens - first);
	for (size_t i = 0; i < count; i++) {
		uint16_t small;
		uint32_t wide;

		if (s->token_bytes == 2) {
			memcpy(&small, at + 2 * (first + i), 2);
			out[i] = small;
		} else {
			memcpy(&wide, at + 4 * (first + i), 4);
			out[i] = (int32_t)wide;
		}
	}
}

void sample_latent(const struct sample *s, const float *mean, const float *deviation, float *out)
{
	size_t pixels = (size_t)s->rows * s->columns, channels = (size_t)s->channels;
	const char *at = s->latent;

	CHECK(at && !mean == !deviation);
	for (size_t i = 0; i < pixels * channels; i++) {
		uint16_t half;
		uint32_t bits;

		memcpy(&half, at + 2 * i, 2);
		bits = (uint32_t)half << 16;
		memcpy(&out[i], &bits, 4);
		if (mean)
			out[i] = (out[i] - mean[i % channels]) / deviation[i % channels];
	}
}
