/* SPDX-License-Identifier: Apache-2.0
 * SIGHUP: reads the configuration again, with the command line the daemon was started with. All of
 * it is checked before any of it is taken; a mistake changes nothing. options_live.def says which
 * options change at once; of the others a change is only noted. */
#include "config.h"
#include "daemon/artefact.h"
#include "daemon/daemon.h"
#include "lib/log.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- one option of each type */

static bool same_TEXT(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b) == 0;
}

static bool same_INT(const void *a, const void *b)
{
	return *(const int64_t *)a == *(const int64_t *)b;
}

static bool same_LIST(const void *a, const void *b)
{
	const struct text_list *x = a, *y = b;
	bool same = x->count == y->count;

	for (size_t i = 0; same && i < x->count; i++)
		same = strcmp(x->text[i], y->text[i]) == 0;
	return same;
}

static void put_TEXT(struct buf *out, const void *value)
{
	buf_printf(out, "'%s'", *(char *const *)value);
}

static void put_INT(struct buf *out, const void *value)
{
	buf_printf(out, "%lld", (long long)*(const int64_t *)value);
}

static void put_LIST(struct buf *out, const void *value)
{
	buf_printf(out, "%zu entries", ((const struct text_list *)value)->count);
}

/* ---------------------------------------------------------------- all of them */

static const struct row {
	const char *name;
	size_t offset, size;
	bool (*same)(const void *a, const void *b);
	void (*put)(struct buf *out, const void *value);
} rows[] = {
#define O_TEXT char *
#define O_INT int64_t
#define O_LIST struct text_list
#define O(name, type, fallback, least, most, help)                                                 \
	{ #name, offsetof(struct options, name), sizeof(O_##type), same_##type, put_##type },
#include "daemon/options.def"
#undef O
#undef O_TEXT
#undef O_INT
#undef O_LIST
};

static const char *const live[] = {
#define L(name, type) #name,
#include "daemon/options_live.def"
#undef L
};

static bool is_live(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(live); i++)
		if (strcmp(live[i], name) == 0)
			return true;
	return false;
}

/* Swaps the values, so that the old one is released with the rest of `fresh`. */
static void take(const struct row *row, struct options *now, struct options *fresh)
{
	char kept[sizeof(struct text_list)];
	void *a = (char *)now + row->offset, *b = (char *)fresh + row->offset;

	CHECK(row->size <= sizeof kept);
	memcpy(kept, a, row->size);
	memcpy(a, b, row->size);
	memcpy(b, kept, row->size);
}

static void take_changed(struct daemon *d, struct options *fresh)
{
	/* descriptors and numbers found at the start are no changes */
	static const char *const settled[] = { "ready_fd", "threads" };

	for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
		const struct row *row = &rows[i];
		const void *old = (const char *)&d->options + row->offset;
		const void *new = (const char *)fresh + row->offset;
		struct buf text = BUF_INIT;

		if (row->same(old, new) || strcmp(row->name, settled[0]) == 0 ||
		    strcmp(row->name, settled[1]) == 0)
			continue;
		row->put(&text, old);
		buf_text(&text, " -> ");
		row->put(&text, new);
		if (is_live(row->name)) {
			take(row, &d->options, fresh);
			log_info("option %s: %s", row->name, text.data);
		} else {
			log_warn("option %s: %s takes a new daemon: as before until then",
				 row->name, text.data);
		}
		buf_release(&text);
	}
}

/* What has a form of its own is checked like at the start. */
static int check(struct daemon *d, const struct options *fresh, struct err *e)
{
	struct machine machine = { 0 };
	uint64_t bytes;

	TRY(log_level_find(fresh->log_level, NULL, e));
	TRY(quota_limit(fresh, NULL, &bytes, e));
	TRY(queue_check(fresh, e));
	TRY(machine_configure(&machine, fresh, e));
	TRY(gpu_foreign_check(fresh->gpu_foreign, e));
	TRY(notices_read(fresh, NULL, NULL, e));
	FAIL_IF(d->read_only, e, TF_EUNKNOWN, "the state cannot be written now");
	return users_configure(d->state, (const char *const *)fresh->user.text, fresh->user.count,
			       e);
}

/* What is made from the options; they were checked. */
static int follow(struct daemon *d, bool threads, struct err *e)
{
	TRY(machine_configure(&d->machine, &d->options, e));
	if (!threads)
		d->options.threads = machine_threads(&d->machine);
	TRY(queue_configure(d, e));
	TRY(notices_configure(d, e));
	return slots_load(d, e); /* a slot that is there again may be drained */
}

void options_reload(struct daemon *d)
{
	struct options fresh;
	enum options_result result;
	struct err e = ERR_INIT;
	int level = 0;
	int rc = options_read(d->argc, d->argv, &fresh, &result, &e);

	if (rc == 0)
		rc = state_part_begin(d->state, &e);
	if (rc == 0) {
		rc = check(d, &fresh, &e);
		if (state_part_end(d->state, rc == 0, &e) < 0)
			rc = e.code;
	}
	if (rc < 0) {
		log_error("the configuration stays as it was: %s", e.text);
	} else {
		take_changed(d, &fresh);
		if (follow(d, fresh.threads > 0, &e) < 0)
			log_error("not all of the configuration is followed: %s", e.text);
		log_level_find(d->options.log_level, &level, NULL);
		log_init("transfused", (enum log_level)level);
		log_info("the configuration was read again");
	}
	options_release(&fresh);
}
