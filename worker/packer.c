/* SPDX-License-Identifier: Apache-2.0
 * First-fit packing; see packer.h. */
#include "config.h"
#include "worker/packer.h"

#include <string.h>

void packer_add(struct packer *p, const struct waiting *w)
{
	CHECK(!packer_is_full(p) && w->length > 0);
	p->list[p->count++] = *w;
}

int packer_find(const struct packer *p, int64_t room, int64_t sequence, bool images)
{
	for (int i = 0; i < p->count; i++) {
		const struct waiting *w = &p->list[i];
		bool cut = !w->image && w->length > sequence && room == sequence;

		if ((w->length <= room || cut) && (images || !w->image))
			return i;
	}
	return -1;
}

void packer_remove(struct packer *p, int index)
{
	CHECK(index >= 0 && index < p->count);
	p->count--;
	memmove(p->list + index, p->list + index + 1, (p->count - index) * sizeof *p->list);
}
