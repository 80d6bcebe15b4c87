/* SPDX-License-Identifier: Apache-2.0
 * Cases of kernelcheck for what works row by row, and for 8-bit products; see cases.c. */
#include "config.h"
#include "tests/kernels/cases.h"
#include "lib/mem.h"

/* rows, width, turned; odd rows are 1000 times as large, and the last one is zeros */
static void do_quantise(struct run *r)
{
	bool turned = D(2);
	struct tensor x = run_input2(r, r->act, turned ? D(1) : D(0), turned ? D(0) : D(1));
	struct tensor q = out2(r, DT_E4M3, D(0), D(1)), scale = out1(r, D(0));
	size_t bytes = (size_t)D(1) * dtype_bytes(r->act);

	for (int64_t m = 1; m < D(0) && !turned; m += 2)
		OPS->scale(r->k, tensor_1d((char *)x.data + m * bytes, r->act, D(1)), 1000);
	if (!turned)
		OPS->zero(r->k, (char *)x.data + (D(0) - 1) * bytes, bytes);
	TIMED(OPS->quantise(r->k, q, scale, x, turned));
	r->bytes = D(0) * D(1) * (1.0 + dtype_bytes(r->act));
}

/* m, n, k, rough, C is bf16. Sums of e4m3 products have some 13 bits on a GPU. */
static void do_matmul_scaled(struct run *r)
{
	struct tensor x = run_input2(r, DT_F32, D(0), D(2)), w = run_input2(r, DT_F32, D(1), D(2));
	struct tensor a = run_input2(r, DT_E4M3, D(0), D(2)), a_scale = run_input1(r, DT_F32, D(0));
	struct tensor b = run_input2(r, DT_E4M3, D(1), D(2)), b_scale = run_input1(r, DT_F32, D(1));
	struct tensor c = out2(r, D(4) ? DT_BF16 : DT_F32, D(0), D(1));

	OPS->quantise(r->k, a, a_scale, x, false);
	OPS->quantise(r->k, b, b_scale, w, false);
	TIMED(OPS->matmul_scaled(r->k, c, a, a_scale, b, b_scale, D(3)));
	r->flops = 2.0 * D(0) * D(1) * D(2);
}

/* Rows of an output as e4m3 besides, where they are wanted: as the operation made them, as quantise
 * does, and, an output itself, how many bytes differ. */
struct also {
	struct scaled made, again;
	struct tensor differ;
};

static struct scaled run_scaled(struct run *r, int64_t rows, int64_t d)
{
	return (struct scaled){ run_input2(r, DT_E4M3, rows, d), run_input1(r, DT_F32, rows) };
}

static struct also run_also(struct run *r, bool wanted, int64_t rows, int64_t d)
{
	if (!wanted)
		return (struct also){ NOT_SCALED, NOT_SCALED, NONE };
	return (struct also){ run_scaled(r, rows, d), run_scaled(r, rows, d), out1(r, 1) };
}

static char *download(struct run *r, struct scaled rows)
{
	size_t n = tensor_bytes(&rows.q), more = tensor_bytes(&rows.scale);
	char *bytes = xmalloc(n + more);

	OPS->download(r->k, bytes, rows.q.data, n);
	OPS->download(r->k, bytes + n, rows.scale.data, more);
	return bytes;
}

static void check_also(struct run *r, const struct also *a, struct tensor out)
{
	char *made, *again;
	float count = 0;

	if (!a->made.q.data)
		return;
	OPS->quantise(r->k, a->again.q, a->again.scale, out, false);
	made = download(r, a->made);
	again = download(r, a->again);
	for (size_t i = 0; i < tensor_bytes(&a->made.q) + tensor_bytes(&a->made.scale); i++)
		count += made[i] != again[i];
	OPS->upload(r->k, a->differ.data, &count, sizeof count);
	xfree(made);
	xfree(again);
}

static void do_rmsnorm(struct run *r)
{
	struct tensor x = run_input2(r, r->act, D(0), D(1)), w = run_input1(r, DT_F32, D(1));
	struct tensor out = out2(r, r->act, D(0), D(1));

	TIMED(OPS->rmsnorm(r->k, out, out1(r, D(0)), x, w, 1e-5f));
	r->bytes = D(0) * D(1) * 2.0 * dtype_bytes(r->act);
}

static void do_add_rmsnorm(struct run *r)
{
	struct tensor x = run_input2(r, r->act, D(0), D(1)),
		      delta = run_input2(r, r->act, D(0), D(1));
	struct tensor w = run_input1(r, DT_F32, D(1)), out = out2(r, r->act, D(0), D(1));
	struct tensor sum = out2(r, r->act, D(0), D(1));
	struct also also = run_also(r, D(2), D(0), D(1));

	TIMED(OPS->add_rmsnorm(r->k, out, out1(r, D(0)), sum, x, delta, w, 1e-5f, also.made));
	check_also(r, &also, out);
	r->bytes = D(0) * D(1) * 4.0 * dtype_bytes(r->act);
}

static void do_rmsnorm_backward(struct run *r)
{
	struct tensor x = run_input2(r, r->act, D(0), D(1)), w = run_input1(r, DT_F32, D(1));
	struct tensor dout = run_input2(r, r->act, D(0), D(1));
	struct tensor more = D(2) ? run_input2(r, r->act, D(0), D(1)) : NONE;
	struct tensor rstd = run_input1(r, DT_F32, D(0)), scrap = out2(r, r->act, D(0), D(1));
	struct tensor dweight = run_changes(r, run_input1(r, DT_F32, D(1)));
	struct tensor dx = out2(r, r->act, D(0), D(1));
	struct also also = run_also(r, D(3), D(0), D(1));

	OPS->rmsnorm(r->k, scrap, rstd, x, w, 1e-5f);
	TIMED(OPS->rmsnorm_backward(r->k, dx, dweight, dout, x, w, rstd, more, also.made));
	check_also(r, &also, dx);
	r->bytes = D(0) * D(1) * 6.0 * dtype_bytes(r->act);
}

static void do_swiglu(struct run *r)
{
	struct tensor gate_up = run_input2(r, r->act, D(0), 2 * D(1));
	struct tensor out = out2(r, r->act, D(0), D(1));
	struct also also = run_also(r, D(2), D(0), D(1));

	TIMED(OPS->swiglu(r->k, out, gate_up, also.made));
	check_also(r, &also, out);
	r->bytes = D(0) * D(1) * 3.0 * dtype_bytes(r->act);
}

/* rows, outputs, inputs */
static void do_matmul_swiglu(struct run *r)
{
	struct tensor x = run_input2(r, r->act, D(0), D(2));
	struct tensor w = run_input2(r, r->act, 2 * D(1), D(2));
	struct tensor gate_up = out2(r, r->act, D(0), 2 * D(1));
	struct tensor out = out2(r, r->act, D(0), D(1));

	TIMED(OPS->matmul_swiglu(r->k, out, gate_up, x, w));
	r->flops = D(0) * D(1) * D(2) * 4.0;
}

static void do_swiglu_backward(struct run *r)
{
	struct tensor dout = run_input2(r, r->act, D(0), D(1));
	struct tensor gate_up = run_input2(r, r->act, D(0), 2 * D(1));
	struct tensor dgate_up = out2(r, r->act, D(0), 2 * D(1));
	struct also also = run_also(r, D(2), D(0), 2 * D(1));

	TIMED(OPS->swiglu_backward(r->k, dgate_up, dout, gate_up, also.made));
	check_also(r, &also, dgate_up);
	r->bytes = D(0) * D(1) * 5.0 * dtype_bytes(r->act);
}

const struct op_case row_cases[] = {
	{ "quantise", do_quantise, true, 1,
	  { { 3, 7, 0 }, { 5, 1031, 0 }, { 70, 4608, 0 }, { 3, 17000, 0 } },
	  { { 32768, 1536, 0 }, { 32768, 8192, 0 }, { 8192, 1536, 0 } } },
	{ "quantise", do_quantise, true, 1,
	  { { 7, 3, 1 }, { 65, 129, 1 }, { 136, 80, 1 }, { 1536, 512, 1 } },
	  { { 1536, 8192, 1 }, { 4096, 1536, 1 } } },
	{ "matmul_scaled", do_matmul_scaled, false, 1000,
	  { { 5, 7, 3, 0, 0 },
	    { 33, 48, 64, 0, 0 },
	    { 64, 96, 144, 0, 1 },
	    { 130, 512, 1024, 0, 1 } },
	  { { 32768, 8192, 1536, 1, 1 },
	    { 32768, 1536, 4096, 1, 1 },
	    { 32768, 4608, 1536, 1, 1 } } },
	{ "matmul_scaled", do_matmul_scaled, false, 1000,
	  { { 33, 48, 64, 1, 0 },
	    { 16, 16, 16, 1, 1 },
	    { 130, 512, 1024, 1, 1 },
	    { 256, 384, 4096, 1, 0 } },
	  { { 32768, 1536, 8192, 0, 1 },
	    { 32768, 1536, 4608, 0, 1 },
	    { 32768, 4096, 1536, 0, 1 } } },
	{ "rmsnorm", do_rmsnorm, true, 1,
	  { { 3, 7 }, { 1, 1025 }, { 70, 192 } },
	  { { 1792, 192 } } },
	{ "add_rmsnorm", do_add_rmsnorm, true, 1,
	  { { 3, 7, 1 }, { 1, 1025, 0 }, { 70, 192, 0 }, { 70, 4104, 1 } },
	  { { 1792, 192 }, { 2048, 1536 }, { 32768, 1536, 0 }, { 32768, 1536, 1 } } },
	{ "rmsnorm_backward", do_rmsnorm_backward, true, 2,
	  { { 3, 7, 0, 1 }, { 1, 1025, 1, 0 }, { 2500, 192, 1, 1 }, { 5, 8208, 0, 0 } },
	  { { 1792, 192, 1 }, { 2048, 1536, 1 }, { 32768, 1536, 1, 0 }, { 32768, 1536, 1, 1 } } },
	{ "swiglu", do_swiglu, true, 1,
	  { { 3, 7, 1 }, { 1, 1025, 0 }, { 37, 512, 1 }, { 3, 8200, 1 } },
	  { { 1792, 512 }, { 32768, 4096, 0 }, { 32768, 4096, 1 } } },
	{ "matmul_swiglu", do_matmul_swiglu, true, 2,
	  { { 5, 7, 3 }, { 33, 48, 64 }, { 520, 128, 64 }, { 1025, 384, 192 } },
	  { { 32768, 2816, 1024 }, { 32768, 4096, 1536 }, { 32768, 5632, 2048 } } },
	{ "swiglu_backward", do_swiglu_backward, true, 1,
	  { { 3, 7, 1 }, { 1, 1025, 0 }, { 37, 512, 1 }, { 3, 8200, 1 } },
	  { { 1792, 512 }, { 32768, 4096, 0 }, { 32768, 4096, 1 } } },
};

const int row_cases_count = ARRAY_LEN(row_cases);
