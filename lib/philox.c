/* SPDX-License-Identifier: Apache-2.0
 * Philox4x32-10 and what is drawn from it; see philox.h. */
#include "config.h"
#include "lib/philox.h"
#include "lib/err.h"

#include <math.h>

void philox_block(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
	uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
	uint32_t k0 = key[0], k1 = key[1];

	for (int round = 0; round < 10; round++) {
		uint64_t p0 = (uint64_t)0xD2511F53u * c0;
		uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;

		c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
		c1 = (uint32_t)p1;
		c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
		c3 = (uint32_t)p0;
		k0 += 0x9E3779B9u;
		k1 += 0xBB67AE85u;
	}
	out[0] = c0;
	out[1] = c1;
	out[2] = c2;
	out[3] = c3;
}

void philox_words(uint64_t seed, enum philox_purpose purpose, uint64_t sample, uint64_t block,
		  uint32_t out[4])
{
	uint32_t key[2] = { (uint32_t)seed,
			    (uint32_t)(seed >> 32) ^ (uint32_t)purpose * 0x9E3779B9u };
	uint32_t counter[4] = { (uint32_t)block, (uint32_t)(block >> 32),
				(uint32_t)sample, (uint32_t)(sample >> 32) };

	philox_block(counter, key, out);
}

float philox_uniform(uint64_t seed, enum philox_purpose purpose, uint64_t sample, uint64_t element)
{
	uint32_t w[4];

	philox_words(seed, purpose, sample, element, w);
	return (float)(w[0] >> 8) * 0x1p-24f;
}

uint64_t philox_below(uint64_t seed, enum philox_purpose purpose, uint64_t sample, uint64_t element,
		      uint64_t n)
{
	uint32_t w[4];
	uint64_t x;

	CHECK(n > 0);
	philox_words(seed, purpose, sample, element, w);
	x = (uint64_t)w[1] << 32 | w[0];
	return (uint64_t)((unsigned __int128)x * n >> 64);
}

static void normals_of_block(const uint32_t w[4], float out[4])
{
	for (int pair = 0; pair < 4; pair += 2) {
		float u = ((float)w[pair] + 1.0f) * 0x1p-32f;
		float v = (float)w[pair + 1] * 0x1p-32f;
		float r = sqrtf(-2.0f * logf(u));

		if (!(r >= 0.0f)) /* u rounded just above 1 */
			r = 0.0f;
		out[pair] = r * cosf(6.283185307179586f * v);
		out[pair + 1] = r * sinf(6.283185307179586f * v);
	}
}

void philox_normals(uint64_t seed, enum philox_purpose purpose, uint64_t sample, uint64_t first,
		    float *out, uint64_t n)
{
	uint64_t i = 0;

	while (i < n) {
		uint64_t lane = (first + i) % 4;
		uint32_t w[4];
		float four[4];

		philox_words(seed, purpose, sample, (first + i) / 4, w);
		normals_of_block(w, four);
		for (; lane < 4 && i < n; lane++, i++)
			out[i] = four[lane];
	}
}

/* One pass of a balanced Feistel network over 2 * half bits. */
static uint64_t feistel(uint64_t seed, uint64_t epoch, uint64_t x, int half)
{
	uint64_t mask = ((uint64_t)1 << half) - 1;
	uint64_t left = x >> half, right = x & mask;

	for (int round = 0; round < 4; round++) {
		uint32_t w[4];
		uint64_t next;

		philox_words(seed, PHILOX_ORDER, epoch, right * 4 + round, w);
		next = left ^ (((uint64_t)w[1] << 32 | w[0]) & mask);
		left = right;
		right = next;
	}
	return left << half | right;
}

uint64_t philox_permute(uint64_t seed, uint64_t epoch, uint64_t i, uint64_t n)
{
	int half = 1;

	CHECK(i < n && n <= (uint64_t)1 << 60);
	while ((uint64_t)1 << 2 * half < n)
		half++;
	do {
		i = feistel(seed, epoch, i, half);
	} while (i >= n);
	return i;
}
