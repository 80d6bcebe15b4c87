/* SPDX-License-Identifier: Apache-2.0
 * Counting what is free and finding a place in it; see machine.h. */
#include "config.h"
#include "daemon/machine.h"
#include "lib/quantity.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(LIMIT_GPUS <= 64 && LIMIT_SLOTS <= 64, "masks of GPUs and slots are 64 bits");

#define BIT(i) (1ull << (i))

static uint64_t first_bits(size_t n)
{
	return n >= 64 ? UINT64_MAX : BIT(n) - 1;
}

int gpu_parse(const char *text, struct gpu *out, struct err *e)
{
	char memory[24] = "", more[2] = "";
	int n;

	memset(out, 0, sizeof *out);
	n = sscanf(text, "%15s %15s %23s %63s %1s", out->name, out->device, memory, out->uuid,
		   more);
	FAIL_IF(n < 3 || n > 4 || strncmp(out->device, "cuda:", 5) != 0, e, TF_EINVALID,
		"gpu: '%.100s': expected 'NAME cuda:NUMBER MEMORY [UUID]'", text);
	FAIL_IF(strpbrk(out->name, ",/") || strncmp(out->name, "cpu", 3) == 0 ||
			strncmp(out->name, "fast", 4) == 0,
		e, TF_EINVALID,
		"gpu: the name '%s' must not begin with cpu or fast nor contain ',' or '/'",
		out->name);
	return size_parse("gpu: the memory", memory, &out->memory, e);
}

void room_init(struct room *r, const struct machine *m, bool with_drained)
{
	memset(r, 0, sizeof *r);
	r->slots = first_bits(m->slots) & ~(with_drained ? 0 : m->drained);
	r->fast = first_bits(m->fast);
	r->cpus = m->cpus;
	r->mem = m->mem;
	for (size_t i = 0; i < m->gpus; i++) {
		r->left[i] = m->gpu[i].memory;
		if (!m->gpu[i].drained || with_drained)
			r->whole |= BIT(i);
	}
}

bool holding_drained(const struct machine *m, const struct holding *h)
{
	for (size_t i = 0; i < m->gpus; i++)
		if (h->gpus & BIT(i) && m->gpu[i].drained)
			return true;
	if (h->slot >= (int)LIMIT_SLOTS)
		return h->slot >= (int)(LIMIT_SLOTS + m->fast);
	return h->slot >= (int)m->slots || (h->slot >= 0 && (m->drained & BIT(h->slot)));
}

void room_take(struct room *r, const struct machine *m, const struct holding *h)
{
	if (h->slot >= (int)LIMIT_SLOTS)
		r->fast &= ~BIT(h->slot - (int)LIMIT_SLOTS);
	else if (h->slot >= 0)
		r->slots &= ~BIT(h->slot);
	r->cpus -= h->cpus < r->cpus ? h->cpus : r->cpus;
	r->mem -= h->mem < r->mem ? h->mem : r->mem;
	for (uint64_t mask = h->gpus & first_bits(m->gpus); mask; mask &= mask - 1) {
		int i = __builtin_ctzll(mask);

		if (h->share && (r->whole | r->part) & BIT(i))
			r->part |= BIT(i);
		else
			r->part &= ~BIT(i);
		r->whole &= ~BIT(i);
		r->left[i] -= h->share && h->share < r->left[i] ? h->share : r->left[i];
	}
}

/* A share goes to a GPU that is shared already, to the fullest that can take it; else to a free
 * one. */
static int place_share(const struct room *r, uint64_t bytes)
{
	int best = -1;

	for (uint64_t mask = r->part; mask; mask &= mask - 1) {
		int i = __builtin_ctzll(mask);

		if (r->left[i] >= bytes && (best < 0 || r->left[i] < r->left[best]))
			best = i;
	}
	for (uint64_t mask = best < 0 ? r->whole : 0; mask && best < 0; mask &= mask - 1)
		if (r->left[__builtin_ctzll(mask)] >= bytes)
			best = __builtin_ctzll(mask);
	return best;
}

bool room_place(const struct room *r, const struct demand *want, struct holding *out)
{
	uint64_t mask = r->whole;
	int i;

	*out = (struct holding){ .slot = -1, .cpus = want->cpus, .mem = want->mem };
	if (want->cpus > r->cpus || want->mem > r->mem)
		return false;
	if (want->gpu_mem) {
		i = place_share(r, want->gpu_mem);
		out->share = want->gpu_mem;
		out->gpus = i < 0 ? 0 : BIT(i);
		return i >= 0;
	}
	if (want->gpus == 0) {
		if (r->slots)
			out->slot = __builtin_ctzll(r->slots);
		else if (want->fast && r->fast)
			out->slot = (int)LIMIT_SLOTS + __builtin_ctzll(r->fast);
		return out->slot >= 0;
	}
	if ((uint32_t)__builtin_popcountll(mask) < want->gpus)
		return false;
	for (uint32_t n = 0; n < want->gpus; n++, mask &= mask - 1)
		out->gpus |= mask & -mask;
	return true;
}

void room_common(struct room *out, const struct room *a, const struct room *b)
{
	uint64_t usable = (a->whole | a->part) & (b->whole | b->part);

	out->slots = a->slots & b->slots;
	out->fast = a->fast & b->fast;
	out->whole = a->whole & b->whole;
	out->part = usable & ~out->whole;
	out->cpus = a->cpus < b->cpus ? a->cpus : b->cpus;
	out->mem = a->mem < b->mem ? a->mem : b->mem;
	for (uint64_t mask = usable; mask; mask &= mask - 1) {
		int i = __builtin_ctzll(mask);

		out->left[i] = a->left[i] < b->left[i] ? a->left[i] : b->left[i];
	}
}

void room_claim(struct room *r, const struct demand *want)
{
	uint64_t most = 0;

	r->cpus -= want->cpus < r->cpus ? want->cpus : r->cpus;
	r->mem -= want->mem < r->mem ? want->mem : r->mem;
	for (uint32_t n = 0; n < want->gpus && r->whole; n++)
		r->whole &= r->whole - 1;
	if (want->gpus == 0 && want->gpu_mem == 0)
		r->slots &= r->slots - 1;
	for (uint64_t mask = want->gpu_mem ? r->whole | r->part : 0; mask; mask &= mask - 1)
		if (!most || r->left[__builtin_ctzll(mask)] > r->left[__builtin_ctzll(most)])
			most = mask & -mask;
	r->whole &= ~most;
	r->part &= ~most;
}

void machine_text(const struct machine *m, char *out, size_t room)
{
	char size[SIZE_TEXT_MAX];
	size_t n;

	size_format(m->mem >> 20 << 20, size); /* as a person would ask for it */
	n = (size_t)snprintf(out, room,
			     "%u slots of the processor, %u CPUs, %s of memory, %zu GPUs", m->slots,
			     m->cpus, size, m->gpus);
	for (size_t i = 0; i < m->gpus && n < room; i++) {
		size_format(m->gpu[i].memory, size);
		n += (size_t)snprintf(out + n, room - n, "%s%s%s%s", i ? ", " : " (",
				      m->gpu[i].name, m->gpu[i].memory ? " " : "",
				      m->gpu[i].memory ? size : "");
	}
	if (m->gpus && n < room)
		snprintf(out + n, room - n, ")");
}

int machine_suits(const struct machine *m, const struct demand *want, struct err *e)
{
	char there[400], asked[100], gpu_mem[SIZE_TEXT_MAX], mem[SIZE_TEXT_MAX];
	struct holding h;
	struct room all;

	room_init(&all, m, true);
	if (room_place(&all, want, &h))
		return 0;
	machine_text(m, there, sizeof there);
	size_format(want->gpu_mem, gpu_mem);
	size_format(want->mem, mem);
	if (want->gpu_mem)
		snprintf(asked, sizeof asked, "%s of a GPU", gpu_mem);
	else if (want->gpus)
		snprintf(asked, sizeof asked, "%u GPU%s", want->gpus, want->gpus > 1 ? "s" : "");
	else
		snprintf(asked, sizeof asked, "a slot of the processor");
	return err_set(e, TF_EREFUSED,
		       "the job asks for %s, %u CPUs and %s of memory; this machine has %s", asked,
		       want->cpus, mem, there);
}

void holding_text(const struct machine *m, const struct holding *h, char out[HOLDING_TEXT_MAX])
{
	char size[SIZE_TEXT_MAX];
	size_t n = 0;

	if (h->slot >= (int)LIMIT_SLOTS)
		snprintf(out, HOLDING_TEXT_MAX, "fast%d", h->slot - (int)LIMIT_SLOTS);
	else
		snprintf(out, HOLDING_TEXT_MAX, "cpu%d", h->slot);
	for (size_t i = 0; i < m->gpus && n < HOLDING_TEXT_MAX; i++)
		if (h->gpus & BIT(i))
			n += (size_t)snprintf(out + n, HOLDING_TEXT_MAX - n, "%s%s", n ? "," : "",
					      m->gpu[i].name);
	size_format(h->share, size);
	if (h->share && n < HOLDING_TEXT_MAX)
		snprintf(out + n, HOLDING_TEXT_MAX - n, "/%s", size);
}

void holding_parse(const struct machine *m, const char *text, struct holding *out)
{
	const char *share = strchr(text, '/'), *p = text;

	out->slot = -1;
	out->gpus = out->share = 0;
	if (strncmp(text, "cpu", 3) == 0) {
		int slot = atoi(text + 3);

		out->slot = slot >= 0 && slot < (int)m->slots ? slot : -1;
		return;
	}
	if (strncmp(text, "fast", 4) == 0) {
		int slot = atoi(text + 4);

		out->slot = slot >= 0 && slot < (int)m->fast ? (int)LIMIT_SLOTS + slot : -1;
		return;
	}
	while (*p && *p != '/') {
		size_t len = strcspn(p, ",/");

		for (size_t i = 0; i < m->gpus; i++)
			if (strlen(m->gpu[i].name) == len &&
			    memcmp(m->gpu[i].name, p, len) == 0)
				out->gpus |= BIT(i);
		p += len;
		p += *p == ',';
	}
	if (share)
		size_parse("a share", share + 1, &out->share, NULL);
}
