/* SPDX-License-Identifier: Apache-2.0
 * The reference backend itself: its table, and memory, which is the process's own. */
#include "config.h"
#include "kernels/backends.h"
#include "kernels/ref/ref.h"
#include "lib/mem.h"

#include <stdlib.h>
#include <string.h>

const struct kernel_ops ref_ops = {
#define K(ret, name, args) .name = ref_##name,
#include "kernels/kernels.def"
#undef K
};

int ref_open(int threads, struct kernels **out, struct err *e)
{
	struct kernels *k;

	(void)threads; /* an oracle needs no speed */
	TRY(kernels_check_table("ref", &ref_ops, e));
	k = xcalloc(1, sizeof *k);
	*k = (struct kernels){ .ops = &ref_ops, .backend = "ref", .threads = 1,
			       .has_bf16 = true, .prefers_bf16 = true, .has_fp8 = true };
	*out = k;
	return 0;
}

void ref_close(struct kernels *k)
{
	xfree(k);
}

const char *ref_describe(const struct kernels *k)
{
	(void)k;
	return "plain C reference, 1 thread";
}

void *ref_alloc(struct kernels *k, size_t bytes)
{
	size_t rounded = (bytes + 63) / 64 * 64;
	void *p;

	(void)k;
	if (rounded < bytes)
		return NULL;
	p = aligned_alloc(64, rounded ? rounded : 64);
	return p ? memset(p, 0, rounded) : NULL;
}

void ref_release(struct kernels *k, void *p)
{
	(void)k;
	free(p);
}

void ref_copy(struct kernels *k, void *to, const void *from, size_t bytes)
{
	(void)k;
	if (bytes)
		memmove(to, from, bytes);
}

void ref_upload(struct kernels *k, void *to, const void *host, size_t bytes)
{
	ref_copy(k, to, host, bytes);
}

void ref_download(struct kernels *k, void *host, const void *from, size_t bytes)
{
	ref_copy(k, host, from, bytes);
}

void *ref_host_alloc(struct kernels *k, size_t bytes)
{
	size_t rounded = (bytes + 63) / 64 * 64;

	(void)k;
	return rounded < bytes ? NULL : aligned_alloc(64, rounded ? rounded : 64);
}

void ref_host_release(struct kernels *k, void *p)
{
	ref_release(k, p);
}

/* Memory is one: the copy is done at once. */
void ref_fetch_begin(struct kernels *k, struct fetch *f, void *host, const void *from,
		     size_t bytes)
{
	f->mark = 0;
	ref_copy(k, host, from, bytes);
}

void ref_fetch_end(struct kernels *k, struct fetch *f)
{
	(void)k, (void)f;
}

void ref_zero(struct kernels *k, void *p, size_t bytes)
{
	(void)k;
	if (bytes)
		memset(p, 0, bytes);
}

void ref_sync(struct kernels *k)
{
	(void)k;
}

/* has_graphs is false: a call is a bug of the caller. */
void ref_graph_begin(struct kernels *k)
{
	BUG("the %s backend records no graphs", k->backend);
}

void *ref_graph_end(struct kernels *k)
{
	BUG("the %s backend records no graphs", k->backend);
}

void ref_graph_run(struct kernels *k, void *graph)
{
	BUG("the %s backend records no graphs (%p)", k->backend, graph);
}

void ref_graph_release(struct kernels *k, void *graph)
{
	BUG("the %s backend records no graphs (%p)", k->backend, graph);
}
