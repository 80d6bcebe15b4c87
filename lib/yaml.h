/* SPDX-License-Identifier: Apache-2.0
 * YAML for people's files: a tree of nodes with line numbers, strict scalars, `--set a.b=c`
 * overrides, and a table of fields that fills a struct. Every mistake is one sentence with file,
 * line, field, what was found and what was expected. Aliases, anchors, tags, several documents and
 * duplicate keys are refused; depth, nodes and size are bounded. */
#ifndef LIB_YAML_H
#define LIB_YAML_H

#include "lib/buf.h"
#include "lib/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define YAML_BYTES_MAX (1 << 20)
#define YAML_NODES_MAX 20000
#define YAML_DEPTH_MAX 16

enum yaml_kind { YAML_SCALAR, YAML_LIST, YAML_MAP };

struct yaml_node {
	enum yaml_kind kind;
	int line;                /* 1-based, of the key; 0 when it came from --set */
	bool quoted;             /* scalar written in quotes: always text */
	bool used;               /* read by somebody: what is left over is an unknown field */
	char *key;               /* in a map: its key; else NULL */
	char *text;              /* scalar */
	struct yaml_node *child; /* list or map: first entry */
	struct yaml_node *next;  /* sibling */
};

struct yaml {
	char *file;             /* name for messages */
	struct yaml_node *root; /* a map (an empty file gives an empty map) */
};

/* Parses text (len bytes) of a file called `file`. On success *out is owned by the caller. */
int yaml_parse(const char *file, const char *text, size_t len, struct yaml *out, struct err *e);
void yaml_release(struct yaml *y);
/* Applies "a.b=c" or "a.0.b=c"; the value is parsed as YAML, maps on the way are made. */
int yaml_set(struct yaml *y, const char *assignment, struct err *e);
/* Child of a map by key, or NULL. Marks nothing. */
struct yaml_node *yaml_get(const struct yaml_node *map, const char *key);
/* Appends the tree as YAML that yaml_parse reads back to the same tree. */
void yaml_write(const struct yaml *y, struct buf *out);

/* A value left out: nothing, ~ or null without quotes. */
bool yaml_is_null(const struct yaml_node *n);
/* Takes into y what base says and y does not; lists are taken whole. base is released. What was
 * taken has line 0. */
void yaml_inherit(struct yaml *y, struct yaml *base);
/* Pieces of yaml_write: a node after its "key:" or "-" (with its newline); a text, quoted where it
 * must. */
void yaml_write_node(const struct yaml_node *n, int indent, struct buf *out);
void yaml_write_text(const char *text, bool quoted, struct buf *out);

/* "FILE:LINE: PATH: " and the sentence; without ":LINE" for what came from --set or a preset. n
 * may be NULL. Returns TF_EINVALID. */
int yaml_error(const struct yaml *y, const struct yaml_node *n, const char *path, struct err *e,
	       const char *fmt, ...) __attribute__((format(printf, 5, 6)));

/* Strict scalars; path is the dotted name for the message. YAML 1.2 core forms only: decimal
 * integers without leading zeros (with an optional k, M or G suffix meaning 1000s), plain floats
 * and exponents, true/false. */
int yaml_int(const struct yaml *y, struct yaml_node *n, const char *path, int64_t least,
	     int64_t most, int64_t *out, struct err *e);
int yaml_float(const struct yaml *y, struct yaml_node *n, const char *path, double least,
	       double most, double *out, struct err *e);
int yaml_bool(const struct yaml *y, struct yaml_node *n, const char *path, bool *out,
	      struct err *e);

enum yaml_type {
	YAML_INT,   /* int64_t */
	YAML_FLOAT, /* double */
	YAML_BOOL,  /* bool */
	YAML_TEXT,  /* char *, owned by the struct (yaml_fields_release) */
	YAML_ENUM,  /* int: index into `choices`, words divided by '|' */
	YAML_INTS,  /* struct yaml_ints: list of integers in [least, most] */
	YAML_NODE,  /* struct yaml_node *: borrowed, for the caller to read; NULL when absent */
};

#define YAML_INTS_MAX 16
struct yaml_ints {
	int count;
	int64_t value[YAML_INTS_MAX];
};

/* One field: dotted name, where it lies in the struct, its type, default and range, and help for
 * people.
 * `fallback` is YAML text; NULL makes the field required. For YAML_TEXT, least..most bounds the
 * length. */
struct yaml_field {
	const char *name;
	enum yaml_type type;
	size_t offset;
	const char *fallback;
	double least, most;
	const char *choices;
	const char *help;
};

/* The node of a dotted name, or NULL. Marks it and the maps on the way as used. */
struct yaml_node *yaml_find(const struct yaml *y, const char *name);

/* Fills the struct at `to` from y by the table; unknown fields are errors that name the nearest
 * known. */
int yaml_fields_read(const struct yaml *y, const struct yaml_field *table, size_t count, void *to,
		     struct err *e);
void yaml_fields_release(const struct yaml_field *table, size_t count, void *from);
/* The struct at `from` as YAML text with every field, in table order. */
void yaml_fields_write(const struct yaml_field *table, size_t count, const void *from,
		       struct buf *out);

#endif
