/* SPDX-License-Identifier: Apache-2.0
 * Reference of the matrix product and of the operations on rows of kernels.def. */
#include "config.h"
#include "kernels/ref/ref.h"

static double product(const struct tensor *a, bool ta, const struct tensor *b, bool tb, int64_t m,
		      int64_t n, int64_t inner)
{
	double sum = 0;

	for (int64_t i = 0; i < inner; i++)
		sum += (double)ref_get(a, ta ? i * a->dim[1] + m : m * a->dim[1] + i) *
			ref_get(b, tb ? n * b->dim[1] + i : i * b->dim[1] + n);
	return sum;
}

void ref_matmul(struct kernels *k, struct tensor c, struct tensor a, bool ta, struct tensor b,
		bool tb, struct tensor bias, float beta)
{
	int64_t rows = c.dim[0], columns = c.dim[1], inner = a.dim[ta ? 0 : 1];

	(void)k;
	CHECK(a.rank == 2 && b.rank == 2 && c.rank == 2 && a.type == b.type);
	CHECK(ref_is_act(&a) && ref_is_act(&c) && (beta == 0 || beta == 1));
	CHECK(a.dim[ta ? 1 : 0] == rows && b.dim[tb ? 0 : 1] == columns &&
	      b.dim[tb ? 1 : 0] == inner);
	CHECK(!bias.data || (bias.type == DT_F32 && tensor_count(&bias) == columns));
	for (int64_t m = 0; m < rows; m++)
		for (int64_t n = 0; n < columns; n++) {
			double sum = product(&a, ta, &b, tb, m, n, inner);

			if (bias.data)
				sum += ref_get(&bias, n);
			if (beta != 0)
				sum += ref_get(&c, m * columns + n);
			ref_put(&c, m * columns + n, sum);
		}
}

void ref_bias_backward(struct kernels *k, struct tensor dbias, struct tensor dy)
{
	int64_t columns = dy.dim[1];

	(void)k;
	CHECK(dy.rank == 2 && dbias.type == DT_F32 && tensor_count(&dbias) == columns);
	for (int64_t n = 0; n < columns; n++) {
		double sum = ref_get(&dbias, n);

		for (int64_t m = 0; m < dy.dim[0]; m++)
			sum += ref_get(&dy, m * columns + n);
		ref_put(&dbias, n, sum);
	}
}

/* One row of width d: to[i] = from[j]. */
static void copy_row(const struct tensor *to, int64_t i, const struct tensor *from, int64_t j)
{
	int64_t d = to->dim[1];

	for (int64_t c = 0; c < d; c++)
		ref_put(to, i * d + c, ref_get(from, j * d + c));
}

static void add_row(const struct tensor *to, int64_t i, const struct tensor *from, int64_t j)
{
	int64_t d = to->dim[1];

	for (int64_t c = 0; c < d; c++)
		ref_put(to, i * d + c, (double)ref_get(to, i * d + c) + ref_get(from, j * d + c));
}

static void check_rows(const struct tensor *wide, const struct tensor *narrow,
		       const struct tensor *row)
{
	CHECK(wide->rank == 2 && narrow->rank == 2 && wide->dim[1] == narrow->dim[1]);
	CHECK(row->type == DT_I32 && tensor_count(row) == narrow->dim[0]);
}

void ref_embed(struct kernels *k, struct tensor out, struct tensor table, struct tensor token)
{
	(void)k;
	check_rows(&table, &out, &token);
	for (int64_t i = 0; i < out.dim[0]; i++) {
		CHECK(ref_index(&token, i) < table.dim[0]);
		if (ref_index(&token, i) >= 0)
			copy_row(&out, i, &table, ref_index(&token, i));
	}
}

void ref_embed_backward(struct kernels *k, struct tensor dtable, struct tensor dout,
			struct tensor token)
{
	(void)k;
	check_rows(&dtable, &dout, &token);
	CHECK(dtable.type == DT_F32);
	for (int64_t i = 0; i < dout.dim[0]; i++) {
		CHECK(ref_index(&token, i) < dtable.dim[0]);
		if (ref_index(&token, i) >= 0)
			add_row(&dtable, ref_index(&token, i), &dout, i);
	}
}

void ref_gather_rows(struct kernels *k, struct tensor out, struct tensor in, struct tensor row)
{
	(void)k;
	check_rows(&in, &out, &row);
	for (int64_t i = 0; i < out.dim[0]; i++) {
		CHECK(ref_index(&row, i) < in.dim[0]);
		if (ref_index(&row, i) >= 0) {
			copy_row(&out, i, &in, ref_index(&row, i));
			continue;
		}
		for (int64_t c = 0; c < out.dim[1]; c++)
			ref_put(&out, i * out.dim[1] + c, 0);
	}
}

void ref_scatter_rows(struct kernels *k, struct tensor out, struct tensor in, struct tensor row)
{
	(void)k;
	check_rows(&out, &in, &row);
	for (int64_t i = 0; i < in.dim[0]; i++) {
		CHECK(ref_index(&row, i) < out.dim[0]);
		if (ref_index(&row, i) >= 0)
			copy_row(&out, ref_index(&row, i), &in, i);
	}
}

void ref_scatter_add_rows(struct kernels *k, struct tensor out, struct tensor in, struct tensor row)
{
	(void)k;
	check_rows(&out, &in, &row);
	for (int64_t i = 0; i < in.dim[0]; i++) {
		CHECK(ref_index(&row, i) < out.dim[0]);
		if (ref_index(&row, i) >= 0)
			add_row(&out, ref_index(&row, i), &in, i);
	}
}

void ref_add_per_image(struct kernels *k, struct tensor rows, struct tensor vector)
{
	int64_t patches = vector.dim[0] ? rows.dim[0] / vector.dim[0] : 0;

	(void)k;
	CHECK(rows.dim[1] == vector.dim[1] && patches * vector.dim[0] == rows.dim[0]);
	for (int64_t i = 0; i < rows.dim[0]; i++)
		add_row(&rows, i, &vector, i / patches);
}

void ref_add_per_image_backward(struct kernels *k, struct tensor dvector, struct tensor drows)
{
	int64_t images = dvector.dim[0], d = dvector.dim[1];
	int64_t patches = images ? drows.dim[0] / images : 0;

	(void)k;
	CHECK(drows.dim[1] == d && patches * images == drows.dim[0]);
	for (int64_t i = 0; i < images; i++)
		for (int64_t c = 0; c < d; c++) {
			double sum = 0;

			for (int64_t p = 0; p < patches; p++)
				sum += ref_get(&drows, (i * patches + p) * d + c);
			ref_put(&dvector, i * d + c, sum);
		}
}
