/* SPDX-License-Identifier: Apache-2.0
 * Plans of tensors; see plan.h. */
#include "config.h"
#include "model/plan.h"
#include "lib/mem.h"

void plan_add(struct plan *p, const char *name, struct tensor *slot, enum dtype type, int64_t a,
	      int64_t b, int64_t c, int64_t d)
{
	struct tensor t = { .type = type, .rank = 1, .dim = { a > 0 ? a : 1, 1, 1, 1 } };

	CHECK(!p->memory);
	if (b > 0)
		t = (struct tensor){ .type = type, .rank = 2, .dim = { t.dim[0], b, 1, 1 } };
	if (c > 0)
		t = (struct tensor){ .type = type, .rank = 3, .dim = { t.dim[0], b, c, 1 } };
	if (d > 0)
		t = (struct tensor){ .type = type, .rank = 4, .dim = { t.dim[0], b, c, d } };
	*slot = t;
	if (p->count == p->room) {
		p->room = p->room ? 2 * p->room : 64;
		p->entry = xrealloc(p->entry, (size_t)p->room, sizeof *p->entry);
	}
	p->entry[p->count++] = (struct plan_entry){ name, slot, p->bytes };
	p->bytes += plan_bytes(tensor_bytes(slot));
}

int plan_alloc(struct plan *p, struct kernels *k, const char *what, struct err *e)
{
	CHECK(!p->memory);
	p->memory = k->ops->alloc(k, p->bytes ? p->bytes : PLAN_ALIGN);
	FAIL_IF(!p->memory, e, TF_ENOMEM, "no memory for %s: %.1f MiB on %s", what,
		(double)p->bytes / (1 << 20), k->backend);
	for (int i = 0; i < p->count; i++)
		p->entry[i].slot->data = (char *)p->memory + p->entry[i].at;
	return 0;
}

void plan_release(struct plan *p, struct kernels *k)
{
	if (p->memory)
		k->ops->release(k, p->memory);
	xfree(p->entry);
	*p = (struct plan)PLAN_INIT;
}
