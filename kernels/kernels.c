/* SPDX-License-Identifier: Apache-2.0
 * Opening of backends and views of tensors; see kernels.h. A backend whose table lacks a row is
 * refused here, so that no operation is ever replaced in silence. */
#include "config.h"
#include "kernels/kernels.h"
#include "kernels/backends.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <stdlib.h>
#include <string.h>

static struct tensor view(void *data, enum dtype type, int rank, int64_t a, int64_t b, int64_t c,
			  int64_t d)
{
	struct tensor t = { data, type, rank, { a, b, c, d } };

	CHECK(a >= 0 && b >= 0 && c >= 0 && d >= 0);
	return t;
}

struct tensor tensor_1d(void *data, enum dtype type, int64_t n)
{
	return view(data, type, 1, n, 1, 1, 1);
}

struct tensor tensor_2d(void *data, enum dtype type, int64_t rows, int64_t columns)
{
	return view(data, type, 2, rows, columns, 1, 1);
}

struct tensor tensor_3d(void *data, enum dtype type, int64_t a, int64_t b, int64_t c)
{
	return view(data, type, 3, a, b, c, 1);
}

struct tensor tensor_4d(void *data, enum dtype type, int64_t a, int64_t b, int64_t c, int64_t d)
{
	return view(data, type, 4, a, b, c, d);
}

int64_t tensor_count(const struct tensor *t)
{
	int64_t n = 1;

	for (int i = 0; i < t->rank; i++)
		n *= t->dim[i];
	return n;
}

size_t tensor_bytes(const struct tensor *t)
{
	return (size_t)tensor_count(t) * dtype_bytes(t->type);
}

int kernels_check_table(const char *backend, const struct kernel_ops *ops, struct err *e)
{
#define K(ret, name, args)                                                                         \
	FAIL_IF(!ops->name, e, TF_EUNSUPPORTED, "the %s backend lacks the operation " #name,       \
		backend);
#include "kernels/kernels.def"
#undef K
	return 0;
}

static int open_cuda(const char *device, struct kernels **out, struct err *e)
{
#ifdef HAVE_CUDA
	const char *number = device[4] == ':' ? device + 5 : "0";
	char *end;
	long n = strtol(number, &end, 10);

	FAIL_IF(*end || end == number || n < 0 || n > 1023, e, TF_EINVALID,
		"device \"%s\": expected cuda:N", device);
	return cuda_open((int)n, out, e);
#else
	(void)out;
	return err_set(e, TF_EUNSUPPORTED, "device \"%s\": this program was built without CUDA",
		       device);
#endif
}

int kernels_open(const char *device, int threads, struct kernels **out, struct err *e)
{
	*out = NULL;
	FAIL_IF(threads < 0 || threads > 1024, e, TF_EINVALID, "threads: %d, expected 0 to 1024",
		threads);
	if (strcmp(device, "ref") == 0)
		return ref_open(threads, out, e);
	if (strcmp(device, "cpu") == 0)
		return cpu_open(threads, out, e);
	if (strncmp(device, "cuda", 4) == 0 && (device[4] == 0 || device[4] == ':'))
		return open_cuda(device, out, e);
	return err_set(e, TF_EINVALID, "device \"%s\": expected cpu, cuda, cuda:N or ref", device);
}

const char *kernels_built_in(void)
{
#ifdef HAVE_CUDA
	return "ref cpu cuda";
#else
	return "ref cpu";
#endif
}

static bool is_backend(const struct kernels *k, const char *name)
{
	return strcmp(k->backend, name) == 0;
}

void kernels_close(struct kernels *k)
{
	if (!k)
		return;
	if (is_backend(k, "ref"))
		ref_close(k);
	else if (is_backend(k, "cpu"))
		cpu_close(k);
#ifdef HAVE_CUDA
	else
		cuda_close(k);
#endif
}

const char *kernels_describe(const struct kernels *k)
{
	if (is_backend(k, "ref"))
		return ref_describe(k);
#ifdef HAVE_CUDA
	if (!is_backend(k, "cpu"))
		return cuda_describe(k);
#endif
	return cpu_describe(k);
}

static bool is_gpu(const struct kernels *k)
{
	return !is_backend(k, "ref") && !is_backend(k, "cpu");
}

char *kernels_choices(const struct kernels *k)
{
#ifdef HAVE_CUDA
	if (is_gpu(k))
		return cuda_choices(k);
#endif
	(void)k;
	return xstrdup("");
}

int kernels_choose(struct kernels *k, const char *choices, struct err *e)
{
	if (!*choices)
		return 0;
	FAIL_IF(!is_gpu(k), e, TF_EUNSUPPORTED, "the algorithms were chosen on a GPU, this is %s",
		k->backend);
#ifdef HAVE_CUDA
	return cuda_choose(k, choices, e);
#else
	return 0;
#endif
}

void kernels_choose_again(struct kernels *k, const char *choices)
{
	struct err e = ERR_INIT;

	if (choices && kernels_choose(k, choices, &e) < 0)
		log_warn("the run goes on, but not bit for bit: %s", e.text);
	err_clear(&e);
}

static int need_gpu(const struct kernels *k, const char *what, struct err *e)
{
	FAIL_IF(!is_gpu(k), e, TF_EUNSUPPORTED, "the %s backend has no %s", k->backend,
		what);
	return 0;
}

int kernels_profile_begin(struct kernels *k, struct err *e)
{
	TRY(need_gpu(k, "profile of operations", e));
#ifdef HAVE_CUDA
	cuda_profile_begin(k);
#endif
	return 0;
}

void kernels_profile_end(struct kernels *k, kernels_profile_row *row, void *arg)
{
#ifdef HAVE_CUDA
	cuda_profile_end(k, row, arg);
#else
	(void)k, (void)row, (void)arg;
#endif
}

int kernels_memory(struct kernels *k, size_t *available, size_t *total, struct err *e)
{
	TRY(need_gpu(k, "memory of its own", e));
#ifdef HAVE_CUDA
	cuda_memory(k, available, total);
#else
	*available = *total = 0;
#endif
	return 0;
}
