/* SPDX-License-Identifier: Apache-2.0
 * Reference of the rows that let sampling run on without the host: rows taken by a counter, tokens
 * drawn, and drawn tokens fed back. The CPU backend uses them as they are. */
#include "config.h"
#include "kernels/ref/ref.h"
#include "lib/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void ref_next_row(struct kernels *k, struct tensor out, struct tensor table, struct tensor counter)
{
	int32_t *count = counter.data;
	int64_t row = *count < 0 ? 0 : *count < table.dim[0] ? *count : table.dim[0] - 1;

	(void)k;
	CHECK(out.type == DT_F32 && table.type == DT_F32 && counter.type == DT_I32);
	CHECK(table.rank == 2 && table.dim[0] > 0 && tensor_count(&out) == table.dim[1]);
	memcpy(out.data, (const float *)table.data + row * table.dim[1],
	       (size_t)table.dim[1] * sizeof(float));
	++*count;
}

void ref_advance_tokens(struct kernels *k, const struct token_rows *t)
{
	int32_t step = *t->counter;

	(void)k;
	for (int64_t i = 0; i < t->n; i++) {
		t->token[i] = t->drawn[i];
		if (step >= 0 && step < t->steps)
			t->history[step * t->n + i] = t->drawn[i];
		if (t->limit[i] >= 0) {
			t->limit[i]++;
			t->position[i]++;
			t->at[i]++;
		}
	}
	++*t->counter;
}

struct chance {
	int32_t token;
	double weight;
};

static int by_weight(const void *a, const void *b)
{
	const struct chance *x = a, *y = b;

	if (x->weight != y->weight)
		return x->weight < y->weight ? 1 : -1;
	return x->token < y->token ? -1 : 1;
}

/* The token that u in [0,1) picks from softmax(logits / temperature) cut to its likeliest share. */
static int32_t draw(const struct tensor *logits, int64_t from, int32_t n, float temperature,
		    float top_p, double u, struct chance *c)
{
	double most = ref_get(logits, from), sum = 0, kept = 0, reached = 0;
	int32_t count = 0;

	for (int32_t i = 1; i < n; i++)
		most = fmax(most, ref_get(logits, from + i));
	for (int32_t i = 0; i < n; i++) {
		c[i] = (struct chance){ i, exp((ref_get(logits, from + i) - most) / temperature) };
		sum += c[i].weight;
	}
	qsort(c, (size_t)n, sizeof *c, by_weight);
	while (count < n && (count == 0 || kept < (double)top_p * sum))
		kept += c[count++].weight;
	for (int32_t i = 0; i < count; i++) {
		reached += c[i].weight;
		if (u * kept < reached)
			return c[i].token;
	}
	return c[count - 1].token;
}

void ref_draw_tokens(struct kernels *k, struct tensor out, struct tensor logits, int64_t vocab,
		     float temperature, float top_p, uint64_t seed, struct tensor index,
		     struct tensor position)
{
	struct chance *c = xcalloc((size_t)vocab, sizeof *c);

	(void)k;
	CHECK(out.type == DT_I32 && logits.rank == 2 && logits.dim[0] == tensor_count(&out));
	CHECK(vocab > 0 && vocab <= logits.dim[1] && temperature > 0);
	CHECK(index.type == DT_I64 && tensor_count(&index) == logits.dim[0] &&
	      tensor_count(&position) == logits.dim[0]);
	for (int64_t m = 0; m < logits.dim[0]; m++) {
		double u = philox_uniform(seed, PHILOX_TEXT, ((const uint64_t *)index.data)[m],
					  (uint64_t)ref_index(&position, m) + 1);

		((int32_t *)out.data)[m] = draw(&logits, m * logits.dim[1], (int32_t)vocab,
						temperature, top_p, u, c);
	}
	xfree(c);
}
