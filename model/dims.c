/* SPDX-License-Identifier: Apache-2.0
 * Sizes: what follows from them, and what they may be. */
#include "config.h"
#include "model/dims.h"

#define LAYERS_MAX 1024
#define SIZE_MAX_ONE (1 << 20)          /* any one size */
#define ELEMENTS_MAX (INT64_C(1) << 40) /* of the largest tensor */

int vocabulary_init(struct vocabulary *v, int32_t pieces, int32_t bos, int32_t eos, struct err *e)
{
	FAIL_IF(pieces < 3 || pieces > SIZE_MAX_ONE, e, TF_EINVALID,
		"a tokenizer of %d pieces, expected 3 to %d", pieces, SIZE_MAX_ONE);
	FAIL_IF(bos < 0 || bos >= pieces, e, TF_EINVALID,
		"the tokenizer's BOS is %d, expected a piece below %d", bos, pieces);
	FAIL_IF(eos < 0 || eos >= pieces || eos == bos, e, TF_EINVALID,
		"the tokenizer's EOS is %d, expected a piece below %d other than BOS", eos, pieces);
	*v = (struct vocabulary){ .pieces = pieces, .bos = bos, .eos = eos,
				  .boi = pieces, .eoi = pieces + 1, .pad = pieces + 2,
				  .ids = pieces + 3 };
	v->rows = (v->ids + VOCABULARY_MULTIPLE - 1) / VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE;
	return 0;
}

struct bound {
	const char *name;
	int64_t value, least, most;
};

static int check_bounds(const struct dims *m, struct err *e)
{
	int least = m->h || m->w || m->c ? 1 : 0;
	const struct bound bound[] = {
		{ "layers", m->layers, 1, LAYERS_MAX },
		{ "dim", m->d, 2, SIZE_MAX_ONE },
		{ "heads", m->H, 1, SIZE_MAX_ONE },
		{ "feed-forward width", m->F, 1, SIZE_MAX_ONE },
		{ "patch", m->patch, 1, 64 },
		{ "latent height", m->h, least, 4096 },
		{ "latent width", m->w, least, 4096 },
		{ "latent channels", m->c, least, 4096 },
		{ "micro batch", m->B, 1, SIZE_MAX_ONE },
		{ "sequence", m->T, 1, SIZE_MAX_ONE },
		{ "pictures of a micro batch", m->images, 0, SIZE_MAX_ONE },
		{ "row multiple", m->row_multiple, 1, SIZE_MAX_ONE },
		{ "layers computed again", m->recompute, 0, m->layers },
	};

	for (size_t i = 0; i < sizeof bound / sizeof *bound; i++)
		FAIL_IF(bound[i].value < bound[i].least || bound[i].value > bound[i].most, e,
			TF_EINVALID, "%s is %lld, expected %lld to %lld", bound[i].name,
			(long long)bound[i].value, (long long)bound[i].least,
			(long long)bound[i].most);
	return 0;
}

int dims_check(const struct dims *m, struct err *e)
{
	int64_t P, widest;

	TRY(check_bounds(m, e));
	FAIL_IF(m->d % m->H != 0 || m->d / m->H % 2 != 0, e, TF_EINVALID,
		"dim %lld over %lld heads: expected an even whole width for each head",
		(long long)m->d, (long long)m->H);
	FAIL_IF(m->h % m->patch != 0 || m->w % m->patch != 0, e, TF_EINVALID,
		"patch %lld does not divide the latent of %lld x %lld", (long long)m->patch,
		(long long)m->h, (long long)m->w);
	P = dims_patches(m);
	FAIL_IF(P > 0 && P + 4 > m->T, e, TF_EINVALID,
		"a picture takes %lld positions with its marks, a sequence has %lld",
		(long long)P + 4, (long long)m->T);
	FAIL_IF(P > 0 && m->images < 1, e, TF_EINVALID,
		"a micro batch has room for %lld pictures, expected at least 1",
		(long long)m->images);
	FAIL_IF(m->act != DT_F32 && m->act != DT_BF16, e, TF_EINVALID,
		"activations are of type %d, expected f32 or bf16", (int)m->act);
	FAIL_IF(m->moments != DT_F32 && m->moments != DT_BF16, e, TF_EINVALID,
		"moments are of type %d, expected f32 or bf16", (int)m->moments);
	FAIL_IF(!(m->eps > 0) || !(m->rope_base >= 1), e, TF_EINVALID,
		"eps %g and rotary base %g: expected above 0, and at least 1", (double)m->eps,
		(double)m->rope_base);
	widest = 3 * m->d > 2 * m->F ? 3 * m->d : 2 * m->F;
	if (widest < m->vocabulary.rows)
		widest = m->vocabulary.rows;
	FAIL_IF(m->B * m->T > ELEMENTS_MAX / widest || m->layers * m->d > ELEMENTS_MAX / widest, e,
		TF_ELIMIT, "a tensor of the model would have more than 2^40 elements");
	return 0;
}

int64_t dims_patches(const struct dims *m)
{
	return m->h / m->patch * (m->w / m->patch);
}

int64_t dims_patch_width(const struct dims *m)
{
	return m->patch * m->patch * m->c;
}

int64_t dims_latent(const struct dims *m)
{
	return m->h * m->w * m->c;
}

int64_t dims_time_width(const struct dims *m)
{
	return m->time == TIME_AT_PATCH ? dims_patch_width(m) : m->d;
}

int64_t dims_images_most(const struct dims *m)
{
	int64_t P = dims_patches(m);

	return P ? m->B * (m->T / (P + 2)) : 0;
}

int64_t dims_round_rows(const struct dims *m, int64_t n)
{
	return (n + m->row_multiple - 1) / m->row_multiple * m->row_multiple;
}

int64_t dims_round_images(const struct dims *m, int64_t n)
{
	int64_t P = dims_patches(m), rounded;

	if (n == 0)
		return 0;
	rounded = (dims_round_rows(m, n * P) + P - 1) / P;
	return rounded < m->images ? rounded : m->images;
}
