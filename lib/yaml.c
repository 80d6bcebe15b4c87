/* SPDX-License-Identifier: Apache-2.0
 * The tree of a YAML file: reading by libyaml's events with every bound checked, overrides,
 * inheritance and writing; see yaml.h. Scalars and field tables are in yaml_fields.c. No global
 * state. */
#include "config.h"
#include "lib/yaml.h"
#include "lib/mem.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#define KEY_BYTES_MAX 200

struct reading {
	const char *file;
	yaml_parser_t parser;
	struct err *e;
	int nodes;
};

static void node_free(struct yaml_node *n)
{
	while (n) {
		struct yaml_node *next = n->next;

		node_free(n->child);
		xfree(n->key);
		xfree(n->text);
		xfree(n);
		n = next;
	}
}

static int syntax_error(struct reading *r)
{
	const yaml_parser_t *p = &r->parser;
	const char *problem = p->problem ? p->problem : "not YAML";

	if (p->error == YAML_READER_ERROR)
		return err_set(r->e, TF_EINVALID, "%s: byte %zu: %s", r->file, p->problem_offset,
			       problem);
	return err_set(r->e, TF_EINVALID, "%s:%zu: %s", r->file, p->problem_mark.line + 1,
		       problem);
}

static int next_event(struct reading *r, yaml_event_t *event)
{
	if (!yaml_parser_parse(&r->parser, event))
		return syntax_error(r);
	return 0;
}

static int line_of(const yaml_event_t *event)
{
	return (int)event->start_mark.line + 1;
}

static int refuse(struct reading *r, const yaml_event_t *event, const char *what)
{
	return err_set(r->e, TF_EINVALID, "%s:%d: %s", r->file, line_of(event), what);
}

/* Anchors and tags are refused: what the file says is all there is. */
static int check_plain(struct reading *r, const yaml_event_t *event)
{
	const yaml_char_t *anchor = NULL, *tag = NULL;

	switch (event->type) {
	case YAML_SCALAR_EVENT:
		anchor = event->data.scalar.anchor;
		tag = event->data.scalar.tag;
		break;
	case YAML_SEQUENCE_START_EVENT:
		anchor = event->data.sequence_start.anchor;
		tag = event->data.sequence_start.tag;
		break;
	case YAML_MAPPING_START_EVENT:
		anchor = event->data.mapping_start.anchor;
		tag = event->data.mapping_start.tag;
		break;
	default: break;
	}
	if (anchor)
		return refuse(r, event, "anchors (&name) are not supported");
	if (tag)
		return refuse(r, event, "tags (!name) are not supported");
	return 0;
}

static int read_node(struct reading *r, yaml_event_t *event, int depth, struct yaml_node **out);

static int check_key(struct reading *r, const yaml_event_t *event, const struct yaml_node *map)
{
	const char *key = (const char *)event->data.scalar.value;
	size_t len = event->data.scalar.length;

	if (event->type != YAML_SCALAR_EVENT)
		return refuse(r, event, "a key must be a word");
	TRY(check_plain(r, event));
	if (len == 0 || len > KEY_BYTES_MAX || strlen(key) != len)
		return refuse(r, event, "a key must have 1 to 200 bytes");
	for (size_t i = 0; i < len; i++)
		if ((unsigned char)key[i] < 32 || key[i] == 127)
			return refuse(r, event, "a key must not have control characters");
	FAIL_IF(yaml_get(map, key), r->e, TF_EINVALID, "%s:%d: '%s' is given twice", r->file,
		line_of(event), key);
	return 0;
}

static int read_map(struct reading *r, struct yaml_node *map, int depth)
{
	struct yaml_node **tail = &map->child;

	for (;;) {
		yaml_event_t event;
		char *key = NULL;
		int line, rc;

		TRY(next_event(r, &event));
		line = line_of(&event);
		if (event.type == YAML_MAPPING_END_EVENT) {
			yaml_event_delete(&event);
			return 0;
		}
		rc = check_key(r, &event, map);
		if (rc == 0)
			key = xstrdup((const char *)event.data.scalar.value);
		yaml_event_delete(&event);
		if (rc == 0)
			rc = next_event(r, &event);
		if (rc == 0)
			rc = read_node(r, &event, depth + 1, tail);
		if (rc < 0) {
			xfree(key);
			return rc;
		}
		(*tail)->key = key;
		(*tail)->line = line; /* a section begins for libyaml at its first entry */
		tail = &(*tail)->next;
	}
}

static int read_list(struct reading *r, struct yaml_node *list, int depth)
{
	struct yaml_node **tail = &list->child;

	for (;;) {
		yaml_event_t event;

		TRY(next_event(r, &event));
		if (event.type == YAML_SEQUENCE_END_EVENT) {
			yaml_event_delete(&event);
			return 0;
		}
		TRY(read_node(r, &event, depth + 1, tail));
		tail = &(*tail)->next;
	}
}

static int read_scalar(struct reading *r, const yaml_event_t *event, struct yaml_node *n)
{
	const char *text = (const char *)event->data.scalar.value;

	n->quoted = event->data.scalar.style != YAML_PLAIN_SCALAR_STYLE;
	if (strlen(text) != event->data.scalar.length)
		return refuse(r, event, "text must not have zero bytes");
	n->text = xstrdup(text);
	return 0;
}

/* Reads the node that event begins; takes the event. On failure *out is NULL. */
static int read_node(struct reading *r, yaml_event_t *event, int depth, struct yaml_node **out)
{
	struct yaml_node *n = xcalloc(1, sizeof *n);
	int rc = check_plain(r, event);

	n->line = line_of(event);
	if (rc == 0 && event->type == YAML_ALIAS_EVENT)
		rc = refuse(r, event, "aliases (*name) are not supported");
	if (rc == 0 && ++r->nodes > YAML_NODES_MAX)
		rc = err_set(r->e, TF_ELIMIT, "%s: more than %d entries", r->file, YAML_NODES_MAX);
	if (rc == 0 && depth > YAML_DEPTH_MAX)
		rc = err_set(r->e, TF_ELIMIT, "%s:%d: nested deeper than %d", r->file, n->line,
			     YAML_DEPTH_MAX);
	if (rc == 0) {
		switch (event->type) {
		case YAML_SCALAR_EVENT:
			n->kind = YAML_SCALAR;
			rc = read_scalar(r, event, n);
			break;
		case YAML_SEQUENCE_START_EVENT:
			n->kind = YAML_LIST;
			rc = read_list(r, n, depth);
			break;
		case YAML_MAPPING_START_EVENT:
			n->kind = YAML_MAP;
			rc = read_map(r, n, depth);
			break;
		default: rc = refuse(r, event, "not a value");
		}
	}
	yaml_event_delete(event);
	if (rc < 0)
		node_free(n);
	*out = rc < 0 ? NULL : n;
	return rc;
}

/* Everything between the stream's start and end: at most one document. */
static int read_stream(struct reading *r, struct yaml_node **out)
{
	yaml_event_t event;

	for (;;) {
		yaml_event_type_t type;
		int rc = 0;

		TRY(next_event(r, &event));
		type = event.type;
		if (type == YAML_DOCUMENT_START_EVENT && *out)
			rc = refuse(r, &event, "a second document; expected one");
		if (type != YAML_SCALAR_EVENT && type != YAML_SEQUENCE_START_EVENT &&
		    type != YAML_MAPPING_START_EVENT && type != YAML_ALIAS_EVENT)
			yaml_event_delete(&event);
		else
			rc = read_node(r, &event, 0, out);
		if (rc < 0 || type == YAML_STREAM_END_EVENT || type == YAML_NO_EVENT)
			return rc;
	}
}

/* Reads any value; *out is NULL when there is none. */
static int read_tree(const char *file, const char *text, size_t len, struct yaml_node **out,
		     struct err *e)
{
	struct reading r = { .file = file, .e = e };
	int rc;

	*out = NULL;
	FAIL_IF(len > YAML_BYTES_MAX, e, TF_ELIMIT, "%s: %zu bytes, at most %d are read", file,
		len, YAML_BYTES_MAX);
	if (!yaml_parser_initialize(&r.parser))
		BUG("out of memory");
	yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
	yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, len);
	rc = read_stream(&r, out);
	yaml_parser_delete(&r.parser);
	if (rc < 0) {
		node_free(*out);
		*out = NULL;
	}
	return rc;
}

static struct yaml_node *node_new(enum yaml_kind kind)
{
	struct yaml_node *n = xcalloc(1, sizeof *n);

	n->kind = kind;
	return n;
}

bool yaml_is_null(const struct yaml_node *n)
{
	return n->kind == YAML_SCALAR && !n->quoted &&
	       (!*n->text || strcmp(n->text, "~") == 0 || strcmp(n->text, "null") == 0);
}

int yaml_parse(const char *file, const char *text, size_t len, struct yaml *out, struct err *e)
{
	struct yaml_node *root;

	TRY(read_tree(file, text, len, &root, e));
	if (root && yaml_is_null(root)) {
		node_free(root);
		root = NULL;
	}
	if (root && root->kind != YAML_MAP) {
		err_set(e, TF_EINVALID, "%s:%d: expected settings, `name: value`", file,
			root->line);
		node_free(root);
		return TF_EINVALID;
	}
	out->root = root ? root : node_new(YAML_MAP);
	out->file = xstrdup(file);
	return 0;
}

void yaml_release(struct yaml *y)
{
	node_free(y->root);
	y->root = NULL;
	xfree(y->file);
}

struct yaml_node *yaml_get(const struct yaml_node *map, const char *key)
{
	if (map->kind != YAML_MAP)
		return NULL;
	for (struct yaml_node *n = map->child; n; n = n->next)
		if (strcmp(n->key, key) == 0)
			return n;
	return NULL;
}

/* ---- overrides */

static void forget_lines(struct yaml_node *n)
{
	for (; n; n = n->next) {
		n->line = 0;
		forget_lines(n->child);
	}
}

static bool is_index(const char *word, size_t len)
{
	return len > 0 && len < 6 && strspn(word, "0123456789") >= len;
}

/* Makes n a container fit for the word that follows on the path: a list for an index, else a map.
 */
static void become_container(struct yaml_node *n, bool list)
{
	if (n->kind != YAML_SCALAR || !yaml_is_null(n))
		return;
	xfree(n->text);
	n->kind = list ? YAML_LIST : YAML_MAP;
}

static struct yaml_node *append_null(struct yaml_node *parent, const char *key, size_t len)
{
	struct yaml_node *n = node_new(YAML_SCALAR), **tail = &parent->child;

	n->text = xstrdup("");
	n->key = key ? xstrndup(key, len) : NULL;
	while (*tail)
		tail = &(*tail)->next;
	*tail = n;
	return n;
}

/* The entry of parent that the first len bytes of word name, made when it is not there. */
static int step_into(struct yaml_node *parent, const char *assignment, const char *word,
		     size_t len, struct yaml_node **out, struct err *e)
{
	char *name;

	FAIL_IF(parent->kind == YAML_SCALAR, e, TF_EINVALID,
		"--set %s: what stands before '%.*s' is a single value", assignment, (int)len,
		word);
	if (parent->kind == YAML_LIST) {
		long index = is_index(word, len) ? strtol(word, NULL, 10) : -1, count = 0;

		*out = NULL;
		for (struct yaml_node *n = parent->child; n; n = n->next, count++)
			if (count == index)
				*out = n;
		FAIL_IF(index < 0 || index > count, e, TF_EINVALID,
			"--set %s: '%.*s': expected a place in the list, 0 to %ld", assignment,
			(int)len, word, count);
		if (!*out)
			*out = append_null(parent, NULL, 0);
		return 0;
	}
	name = xstrndup(word, len);
	*out = yaml_get(parent, name);
	if (!*out)
		*out = append_null(parent, word, len);
	xfree(name);
	return 0;
}

static int find_place(struct yaml *y, const char *assignment, const char *equals,
		      struct yaml_node **out, struct err *e)
{
	struct yaml_node *at = y->root;
	const char *word = assignment;
	int depth = 0;

	while (word <= equals) {
		size_t len = strcspn(word, ".=");

		FAIL_IF(len == 0 || len > KEY_BYTES_MAX || ++depth > YAML_DEPTH_MAX, e,
			TF_EINVALID, "--set %s: expected name=value or section.name=value",
			assignment);
		become_container(at, is_index(word, len));
		TRY(step_into(at, assignment, word, len, &at, e));
		word += len + 1;
	}
	*out = at;
	return 0;
}

int yaml_set(struct yaml *y, const char *assignment, struct err *e)
{
	const char *equals = strchr(assignment, '=');
	struct yaml_node *value = NULL, *place = NULL;
	int rc;

	FAIL_IF(!equals || equals == assignment, e, TF_EINVALID, "--set %s: expected name=value",
		assignment);
	rc = read_tree("--set", equals + 1, strlen(equals + 1), &value, e);
	if (rc == 0)
		rc = find_place(y, assignment, equals, &place, e);
	if (rc == 0) {
		node_free(place->child);
		xfree(place->text);
		place->line = 0;
		place->quoted = value && value->quoted;
		place->kind = value ? value->kind : YAML_SCALAR;
		place->text = value ? value->text : xstrdup("");
		place->child = value ? value->child : NULL;
		forget_lines(place->child);
		if (value)
			value->text = NULL, value->child = NULL;
	}
	node_free(value);
	return rc;
}

/* ---- inheritance */

static void inherit_map(struct yaml_node *map, struct yaml_node *base)
{
	struct yaml_node *n = base->child, *next;

	base->child = NULL;
	for (; n; n = next) {
		struct yaml_node *have = yaml_get(map, n->key), **tail = &map->child;

		next = n->next;
		n->next = NULL;
		if (!have) {
			n->line = 0;
			forget_lines(n->child);
			while (*tail)
				tail = &(*tail)->next;
			*tail = n;
			continue;
		}
		if (n->kind == YAML_MAP)
			become_container(have, false);
		if (have->kind == YAML_MAP && n->kind == YAML_MAP)
			inherit_map(have, n);
		node_free(n);
	}
}

void yaml_inherit(struct yaml *y, struct yaml *base)
{
	CHECK(y->root->kind == YAML_MAP && base->root->kind == YAML_MAP);
	inherit_map(y->root, base->root);
	yaml_release(base);
}

/* ---- writing */

static bool is_plain_text(const char *text)
{
	size_t len = strlen(text);

	if (len == 0 || text[len - 1] == ' ' || text[0] == ' ')
		return false;
	if (text[0] == '-' && !(text[1] >= '0' && text[1] <= '9'))
		return false;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (!(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z') &&
		    !(c >= '0' && c <= '9') && !strchr("_-.+/ ", c))
			return false;
	}
	return true;
}

/* One character of UTF-8 that YAML does not take as it is, as an escape; others as they are.
 * Returns the bytes read. */
static size_t write_character(const unsigned char *p, struct buf *out)
{
	uint32_t c = p[0];
	size_t len = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;

	if (len > 1) {
		c &= 0x7Fu >> len;
		for (size_t i = 1; i < len; i++)
			c = c << 6 | (p[i] & 0x3Fu);
	}
	if (c == '"' || c == '\\')
		buf_printf(out, "\\%c", (int)c);
	else if (c < 32 || (c >= 0x7F && c < 0xA0))
		buf_printf(out, "\\x%02X", c);
	else if (c == 0x2028 || c == 0x2029 || c == 0xFEFF || c == 0xFFFE || c == 0xFFFF)
		buf_printf(out, "\\u%04X", c);
	else
		buf_append(out, p, len);
	return len;
}

void yaml_write_text(const char *text, bool quoted, struct buf *out)
{
	const unsigned char *p = (const unsigned char *)text;

	if (!quoted && is_plain_text(text)) {
		buf_text(out, text);
		return;
	}
	buf_text(out, "\"");
	while (*p)
		p += write_character(p, out);
	buf_text(out, "\"");
}

/* The entries of a map, each on its line; the first goes on after "- " when it begins a list's
 * entry. */
static void write_entries(const struct yaml_node *map, int indent, bool after_dash,
			  struct buf *out)
{
	for (const struct yaml_node *c = map->child; c; c = c->next) {
		if (!after_dash || c != map->child)
			buf_printf(out, "%*s", indent, "");
		yaml_write_text(c->key, false, out);
		buf_text(out, ":");
		yaml_write_node(c, indent + 2, out);
	}
}

void yaml_write_node(const struct yaml_node *n, int indent, struct buf *out)
{
	if (n->kind == YAML_SCALAR) {
		buf_text(out, " ");
		yaml_write_text(yaml_is_null(n) ? "null" : n->text, n->quoted, out);
		buf_text(out, "\n");
	} else if (!n->child) {
		buf_text(out, n->kind == YAML_MAP ? " {}\n" : " []\n");
	} else if (n->kind == YAML_MAP) {
		buf_text(out, "\n");
		write_entries(n, indent, false, out);
	} else {
		buf_text(out, "\n");
		for (const struct yaml_node *c = n->child; c; c = c->next) {
			buf_printf(out, "%*s-", indent, "");
			if (c->kind == YAML_MAP && c->child) {
				buf_text(out, " ");
				write_entries(c, indent + 2, true, out);
			} else {
				yaml_write_node(c, indent + 2, out);
			}
		}
	}
}

void yaml_write(const struct yaml *y, struct buf *out)
{
	if (!y->root->child)
		buf_text(out, "{}\n");
	write_entries(y->root, 0, false, out);
}
