/* SPDX-License-Identifier: Apache-2.0
 * CIDEr-D; see cider.h. N-grams are known by a 64-bit hash of their words; a caption's are kept
 * sorted. */
#include "config.h"
#include "worker/cider.h"
#include "lib/buf.h"
#include "lib/err.h"
#include "lib/mem.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define ORDERS 4
#define DEVIATION 6.0 /* of the length penalty */

struct ngram {
	uint64_t hash;
	int order;    /* 0..ORDERS - 1 */
	double count; /* then its tf-idf */
};

struct caption {
	struct ngram *ngram; /* sorted by hash */
	size_t count;
	size_t words;
	double norm[ORDERS];
};

/* How many pictures have an n-gram. */
struct frequencies {
	uint64_t *hash; /* sorted, one entry for each picture that has it */
	size_t count, room;
};

static bool is_word_byte(unsigned char c)
{
	return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c >= 0x80;
}

/* The words in lower case, each followed by a zero byte. */
static size_t split_words(const char *text, struct buf *out)
{
	size_t words = 0;
	bool inside = false;

	for (; *text; text++) {
		char c = *text >= 'A' && *text <= 'Z' ? (char)(*text - 'A' + 'a') : *text;

		if (is_word_byte((unsigned char)c)) {
			buf_append(out, &c, 1);
			words += !inside;
			inside = true;
		} else if (inside) {
			buf_append(out, "", 1);
			inside = false;
		}
	}
	if (inside)
		buf_append(out, "", 1);
	return words;
}

static int by_hash(const void *a, const void *b)
{
	uint64_t x = ((const struct ngram *)a)->hash, y = ((const struct ngram *)b)->hash;

	return (x > y) - (x < y);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Sorts, and counts what is there several times. */
static void merge(struct caption *c)
{
	size_t kept = 0;

	if (c->count == 0)
		return;
	qsort(c->ngram, c->count, sizeof *c->ngram, by_hash);
	for (size_t i = 1; i < c->count; i++) {
		if (c->ngram[i].hash == c->ngram[kept].hash)
			c->ngram[kept].count++;
		else
			c->ngram[++kept] = c->ngram[i];
	}
	c->count = kept + 1;
}

static void caption_init(struct caption *c, const char *text)
{
	struct buf words = BUF_INIT;
	size_t *start;

	memset(c, 0, sizeof *c);
	c->words = split_words(text, &words);
	start = xcalloc(c->words + 1, sizeof *start);
	for (size_t i = 0; i < c->words; i++)
		start[i + 1] = start[i] + strlen(words.data + start[i]) + 1;
	c->ngram = xcalloc(c->words * ORDERS, sizeof *c->ngram);
	for (int order = 0; order < ORDERS; order++)
		for (size_t i = 0; i + (size_t)order < c->words; i++) {
			size_t len = start[i + (size_t)order + 1] - start[i];

			c->ngram[c->count++] =
				(struct ngram) { XXH3_64bits_withSeed(words.data + start[i], len,
								      (XXH64_hash_t)order),
						 order, 1 };
		}
	merge(c);
	xfree(start);
	buf_release(&words);
}

static void caption_release(struct caption *c)
{
	xfree(c->ngram);
}

/* Adds the n-grams of one picture's references, each once. */
static void count_picture(struct frequencies *f, const struct caption *reference,
			  size_t references)
{
	uint64_t *all;
	size_t n = 0, most = 0;

	for (size_t i = 0; i < references; i++)
		most += reference[i].count;
	all = xcalloc(most, sizeof *all);
	for (size_t i = 0; i < references; i++)
		for (size_t j = 0; j < reference[i].count; j++)
			all[n++] = reference[i].ngram[j].hash;
	if (n)
		qsort(all, n, sizeof *all, by_value);
	if (f->count + n > f->room) {
		f->room = 2 * (f->count + n);
		f->hash = xrealloc(f->hash, f->room, sizeof *f->hash);
	}
	for (size_t i = 0; i < n; i++)
		if (i == 0 || all[i] != all[i - 1])
			f->hash[f->count++] = all[i];
	xfree(all);
}

/* The first index whose value is not below x. */
static size_t lower_bound(const struct frequencies *f, uint64_t x)
{
	size_t low = 0, high = f->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (f->hash[middle] < x)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* Counts become tf-idf. */
static void weigh(struct caption *c, const struct frequencies *f, size_t pictures)
{
	for (size_t i = 0; i < c->count; i++) {
		struct ngram *g = &c->ngram[i];
		size_t first = lower_bound(f, g->hash), df = 0;

		while (first + df < f->count && f->hash[first + df] == g->hash)
			df++;
		g->count *= log((double)pictures / (double)(df ? df : 1));
		c->norm[g->order] += g->count * g->count;
	}
	for (int order = 0; order < ORDERS; order++)
		c->norm[order] = sqrt(c->norm[order]);
}

static double compare(const struct caption *c, const struct caption *s)
{
	double product[ORDERS] = { 0 }, sum = 0, apart = (double)c->words - (double)s->words;

	for (size_t i = 0, j = 0; i < c->count && j < s->count;) {
		const struct ngram *a = &c->ngram[i], *b = &s->ngram[j];

		if (a->hash == b->hash)
			product[a->order] += fmin(a->count, b->count) * b->count;
		i += a->hash <= b->hash;
		j += b->hash <= a->hash;
	}
	for (int order = 0; order < ORDERS; order++)
		if (c->norm[order] > 0 && s->norm[order] > 0)
			sum += product[order] / (c->norm[order] * s->norm[order]);
	return 10 * exp(-apart * apart / (2 * DEVIATION * DEVIATION)) * sum / ORDERS;
}

static struct caption **read_references(const struct cider_item *item, size_t count,
					struct frequencies *f)
{
	struct caption **all = xcalloc(count, sizeof *all);

	for (size_t i = 0; i < count; i++) {
		CHECK(item[i].references > 0);
		all[i] = xcalloc(item[i].references, sizeof **all);
		for (size_t j = 0; j < item[i].references; j++)
			caption_init(&all[i][j], item[i].reference[j]);
		count_picture(f, all[i], item[i].references);
	}
	if (f->count)
		qsort(f->hash, f->count, sizeof *f->hash, by_value);
	return all;
}

double cider_score(const struct cider_item *item, size_t count, double *each)
{
	struct frequencies f = { 0 };
	struct caption **reference = read_references(item, count, &f);
	double total = 0;

	for (size_t i = 0; i < count; i++) {
		struct caption candidate;
		double score = 0;

		caption_init(&candidate, item[i].candidate);
		weigh(&candidate, &f, count);
		for (size_t j = 0; j < item[i].references; j++) {
			weigh(&reference[i][j], &f, count);
			score += compare(&candidate, &reference[i][j]);
			caption_release(&reference[i][j]);
		}
		score /= (double)item[i].references;
		if (each)
			each[i] = score;
		total += score;
		caption_release(&candidate);
		xfree(reference[i]);
	}
	xfree(reference);
	xfree(f.hash);
	return count ? total / (double)count : 0;
}
