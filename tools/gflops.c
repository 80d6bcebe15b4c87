/* SPDX-License-Identifier: Apache-2.0
 * Prints how many GFLOP/s this machine's CPU backend does in f32 matrix products, measured for
 * about a second: `gflops [--threads N]`. The quickstart tells from it how long it will take. */
#include "config.h"
#include "kernels/kernels.h"
#include "lib/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { M = 2048, N = 512, INNER = 512 };

static struct tensor matrix(struct kernels *k, int64_t rows, int64_t columns)
{
	void *data = k->ops->alloc(k, (size_t)rows * columns * sizeof(float));
	struct tensor t;

	if (!data)
		die(1, "no memory");
	t = tensor_2d(data, DT_F32, rows, columns);
	k->ops->fill(k, t, 0.5f);
	return t;
}

int main(int argc, char **argv)
{
	struct tensor none = tensor_1d(NULL, DT_F32, 0), a, b, c;
	struct err e = ERR_INIT;
	int threads = 0, runs = 0;
	struct kernels *k;
	int64_t begin;

	if (argc == 3 && strcmp(argv[1], "--threads") == 0)
		threads = atoi(argv[2]);
	else if (argc != 1)
		die(2, "usage: gflops [--threads N]");
	if (kernels_open("cpu", threads, &k, &e) < 0)
		die(1, "%s", e.text);
	a = matrix(k, M, INNER);
	b = matrix(k, N, INNER);
	c = matrix(k, M, N);
	k->ops->matmul(k, c, a, false, b, true, none, 0);
	begin = clock_mono_ns();
	do {
		k->ops->matmul(k, c, a, false, b, true, none, 0);
		k->ops->sync(k);
		runs++;
	} while (clock_mono_ns() - begin < 1000000000);
	printf("%.0f\n", 2.0 * M * N * INNER * runs / (double)(clock_mono_ns() - begin));
	k->ops->release(k, a.data);
	k->ops->release(k, b.data);
	k->ops->release(k, c.data);
	kernels_close(k);
	return 0;
}
