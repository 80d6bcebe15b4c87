/* SPDX-License-Identifier: Apache-2.0
 * The model of a file system under powercut.h: files and folders as nodes, each with what is sure
 * and a list of what is not yet. */
#include "config.h"
#include "tests/daemon/powercut.h"
#include "lib/buf.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define PIECE_BYTES 4096u

struct change {          /* of a file, not synced */
	bool cut;        /* to `offset` bytes; else data at offset */
	uint64_t offset, len;
	const char *data;
};

struct entry {
	char *name;
	struct node *node;
};

struct naming { /* of a folder, not synced: name now means node (NULL: nothing) */
	char *name;
	struct node *node;
	uint64_t when; /* two of one rename have the same */
};

struct node {
	bool folder;
	struct buf sure;
	struct change *change;
	size_t changes;
	struct entry *now, *kept; /* a folder's names: as programs see them; as synced */
	size_t nows, kepts;
	struct naming *naming;
	size_t namings;
};

struct powercut {
	struct buf trace;
	size_t at, records;
	uint64_t when;
	struct node *root, **all;
	size_t nodes;
};

/* ---------------------------------------------------------------- names */

static struct node *node_new(struct powercut *p, bool folder)
{
	struct node *n = xcalloc(1, sizeof *n);

	n->folder = folder;
	p->all = xrealloc(p->all, p->nodes + 1, sizeof *p->all);
	p->all[p->nodes++] = n;
	return n;
}

static struct entry *entry_find(struct entry *list, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (strcmp(list[i].name, name) == 0)
			return &list[i];
	return NULL;
}

static void entry_set(struct entry **list, size_t *count, const char *name, struct node *node)
{
	struct entry *e = entry_find(*list, *count, name);

	if (e && node) {
		e->node = node;
	} else if (e) {
		xfree(e->name);
		*e = (*list)[--*count];
	} else if (node) {
		*list = xrealloc(*list, *count + 1, sizeof **list);
		(*list)[(*count)++] = (struct entry){ xstrdup(name), node };
	}
}

static void name_set(struct powercut *p, struct node *folder, const char *name, struct node *node)
{
	entry_set(&folder->now, &folder->nows, name, node);
	folder->naming = xrealloc(folder->naming, folder->namings + 1, sizeof *folder->naming);
	folder->naming[folder->namings++] = (struct naming){ xstrdup(name), node, p->when };
}

/* The node of "/a/b" ("": the root) and, when wanted, its folder and name. NULL: unknown. */
static struct node *node_at(const struct powercut *p, const char *path, struct node **folder,
			    char name[256])
{
	struct node *n = p->root;

	while (n && *path == '/') {
		size_t len = strcspn(++path, "/");
		char part[256];
		struct entry *e;

		snprintf(part, sizeof part, "%.*s", (int)len, path);
		path += len;
		e = entry_find(n->now, n->nows, part);
		if (folder && !*path) {
			*folder = n;
			memcpy(name, part, sizeof part);
		}
		n = e ? e->node : NULL;
	}
	return *path ? NULL : n;
}

/* ---------------------------------------------------------------- the trace */

static void change_add(struct node *n, struct change c)
{
	n->change = xrealloc(n->change, n->changes + 1, sizeof *n->change);
	n->change[n->changes++] = c;
}

static void bytes_put(struct buf *b, const struct change *c, uint64_t skip, uint64_t len)
{
	uint64_t end = c->offset + skip + len;

	if (c->cut && b->len > c->offset)
		b->len = c->offset;
	if (c->cut)
		end = c->offset;
	while (b->len < end)
		buf_append(b, "", 1);
	if (!c->cut)
		memcpy(b->data + c->offset + skip, c->data + skip, len);
}

static void sync_node(struct node *n)
{
	for (size_t i = 0; i < n->changes; i++)
		bytes_put(&n->sure, &n->change[i], 0, n->change[i].len);
	n->changes = 0;
	for (size_t i = 0; i < n->namings; i++) {
		entry_set(&n->kept, &n->kepts, n->naming[i].name, n->naming[i].node);
		xfree(n->naming[i].name);
	}
	n->namings = 0;
}

static void apply(struct powercut *p, const struct powercut_head *h, const char *path,
		  const char *second, const char *data)
{
	struct node *folder = NULL, *other = NULL;
	char name[256], to[256];
	struct node *n = node_at(p, path, &folder, name);
	struct change c = { h->op == OP_TRUNCATE, h->offset, h->data_len, data };

	p->when++;
	switch (h->op) {
	case OP_CREATE:
	case OP_MKDIR:
		if (folder)
			name_set(p, folder, name, node_new(p, h->op == OP_MKDIR));
		break;
	case OP_REMOVE:
		if (folder && n)
			name_set(p, folder, name, NULL);
		break;
	case OP_RENAME:
		node_at(p, second, &other, to);
		if (folder && n && other) {
			name_set(p, other, to, n);
			name_set(p, folder, name, NULL);
		}
		break;
	case OP_SYNC:
		if (n)
			sync_node(n);
		break;
	case OP_WRITE:
	case OP_TRUNCATE:
		if (n && h->synced)
			bytes_put(&n->sure, &c, 0, c.len);
		else if (n)
			change_add(n, c);
		break;
	default:
		break;
	}
}

bool powercut_step(struct powercut *p, struct powercut_head *head, const char **data)
{
	const char *at = p->trace.data + p->at;
	char path[1024], second[1024];

	if (p->trace.len - p->at < sizeof *head)
		return false;
	memcpy(head, at, sizeof *head);
	at += sizeof *head;
	CHECK(head->path_len < sizeof path && head->second_len < sizeof second);
	snprintf(path, sizeof path, "%.*s", (int)head->path_len, at);
	snprintf(second, sizeof second, "%.*s", (int)head->second_len, at + head->path_len);
	*data = at + head->path_len + head->second_len;
	p->at += sizeof *head + head->path_len + head->second_len + head->data_len;
	CHECK(p->at <= p->trace.len);
	apply(p, head, path, second, *data);
	return true;
}

size_t powercut_records(const struct powercut *p)
{
	struct powercut_head h;
	size_t n = 0;

	for (size_t at = 0; at + sizeof h <= p->trace.len; n++) {
		memcpy(&h, p->trace.data + at, sizeof h);
		at += sizeof h + h.path_len + h.second_len + h.data_len;
	}
	return n;
}

int powercut_open(const char *trace, struct powercut **out, struct err *e)
{
	struct powercut *p = xcalloc(1, sizeof *p);
	int rc = file_read(trace, 1u << 30, &p->trace, e);

	p->root = node_new(p, true);
	if (rc < 0)
		powercut_close(p);
	else
		*out = p;
	return rc;
}

void powercut_close(struct powercut *p)
{
	for (size_t i = 0; i < p->nodes; i++) {
		struct node *n = p->all[i];

		for (size_t k = 0; k < n->nows; k++)
			xfree(n->now[k].name);
		for (size_t k = 0; k < n->kepts; k++)
			xfree(n->kept[k].name);
		for (size_t k = 0; k < n->namings; k++)
			xfree(n->naming[k].name);
		xfree(n->now);
		xfree(n->kept);
		xfree(n->naming);
		xfree(n->change);
		buf_release(&n->sure);
		xfree(n);
	}
	xfree(p->all);
	buf_release(&p->trace);
	xfree(p);
}

/* ---------------------------------------------------------------- the cut */

struct cut {
	enum powercut_luck luck;
	uint64_t random, until; /* names given before this moment stay */
	struct err *e;
};

static uint64_t draw(struct cut *c)
{
	c->random = c->random * 6364136223846793005u + 1442695040888963407u;
	return c->random >> 33;
}

static int write_file(struct cut *c, const struct node *n, const char *path)
{
	struct buf b = BUF_INIT;
	FILE *f = fopen(path, "w");
	int rc = 0;

	buf_append(&b, n->sure.data ? n->sure.data : "", n->sure.len);
	for (size_t i = 0; i < n->changes; i++) {
		const struct change *change = &n->change[i];

		for (uint64_t at = 0; at == 0 || at < change->len; at += PIECE_BYTES) {
			uint64_t left = change->len - at;

			if (c->luck == LUCK_ALL || (c->luck == LUCK_SOME && draw(c) % 2))
				bytes_put(&b, change, at, left < PIECE_BYTES ? left : PIECE_BYTES);
		}
	}
	if (!f || (b.len && fwrite(b.data, b.len, 1, f) != 1) || chmod(path, 0600) < 0)
		rc = err_errno(c->e, "%s", path);
	if (f)
		fclose(f);
	buf_release(&b);
	return rc;
}

static int write_folder(struct cut *c, const struct node *n, const char *path)
{
	struct entry *list = NULL;
	size_t count = 0;
	int rc = mkdir(path, 0700) < 0 ? err_errno(c->e, "%s", path) : 0;

	for (size_t i = 0; i < n->kepts; i++)
		entry_set(&list, &count, n->kept[i].name, n->kept[i].node);
	for (size_t i = 0; i < n->namings; i++)
		if (c->luck == LUCK_ALL || (c->luck == LUCK_SOME && n->naming[i].when < c->until))
			entry_set(&list, &count, n->naming[i].name, n->naming[i].node);
	for (size_t i = 0; i < count; i++) {
		char *child = xasprintf("%s/%s", path, list[i].name);

		if (rc == 0)
			rc = list[i].node->folder ? write_folder(c, list[i].node, child)
						  : write_file(c, list[i].node, child);
		xfree(child);
		xfree(list[i].name);
	}
	xfree(list);
	return rc;
}

int powercut_write(const struct powercut *p, enum powercut_luck luck, uint64_t seed,
		   const char *folder, struct err *e)
{
	struct cut c = { .luck = luck, .random = seed, .e = e };

	draw(&c);
	c.until = p->when ? p->when - draw(&c) % (p->when < 20 ? p->when : 20) : 0;
	return write_folder(&c, p->root, folder);
}
