/* SPDX-License-Identifier: Apache-2.0
 * Messages by chance; see any.h. */
#include "config.h"
#include "tests/fuzz/any.h"
#include "lib/err.h"
#include "lib/mem.h"

#include <ctype.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 6

uint64_t any_number(uint64_t *chance, uint64_t below)
{
	uint64_t x = *chance += 0x9e3779b97f4a7c15u; /* SplitMix64 */

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return (x ^ x >> 31) % below;
}

static bool one_in(uint64_t *chance, uint64_t n)
{
	return any_number(chance, n) == 0;
}

/* ---------------------------------------------------------------- words */

/* What fields of a name may hold, divided by '|'; for numbers too. What fuzz_request.c makes, or
 * nearly, goes by these names. */
static const struct {
	const char *field, *words;
} hints[] = {
	{ "version", "1" },
	{ "id", "1|2|3|4|5|6|7|8|9|10|11|12|13|14|15|0" },
	{ "job", "1|2|3|4|5|6|7|8|9|10|11|12|13|0" },
	{ "after", "1|2|3|4|5|6|7|8|9|10|11|99" },
	{ "after_any", "1|2|3|4|5|6|7|8|9|10|11|99" },
	{ "after_failed", "1|2|3|4|5|6|7|8|9|10|11|99" },
	{ "member", "0|1|2|3|9" },
	{ "attempt", "1|1|2|3|0" },
	{ "code", "0|0|0|-2|-5|-12|-15|-20|-22|7" },
	{ "offset", "0|0|1|5|10|100" },
	{ "length", "0|1|100|1048576|1048577" },
	{ "size", "0|1|10|10|64" },
	{ "limit", "0|1|2|10" },
	{ "retries", "0|1|2|10|11" },
	{ "name", "ann|bob|eve|root|pairs|words|pixels|net|net:5|net:best@ema|net@ema|new|new2|a*|"
		  "*|up.bin|../up|.|late|dream" },
	{ "who", "ann|bob|eve|root|new|" ANY_KEY("b") "|" ANY_KEY("d") },
	{ "as_user", "ann|bob|eve|root|nobody" },
	{ "user", "ann|bob|eve|root|nobody" },
	{ "key", ANY_KEY("a") "|" ANY_KEY("b") "|" ANY_KEY("c") "|" ANY_KEY("d") "|" ANY_KEY("e")
		 "|" ANY_KEY("f") "|" ANY_KEY("x") },
	{ "role", "reader|member|admin|worker|data|tokenizer|vae|model" },
	{ "experiment",
	  "preset: tiny\ndata:\n- name: pairs\n|preset: vae-tiny\ndata:\n- name: pairs\n|"
	  "preset: tiny\ndata:\n- name: new\n|data:\n- name: pairs\n" },
	{ "since", "2026-11|2026-13|1970-01|0|1|5|1000" },
	{ "until", "2026-12|1970-01|9999-12" },
	{ "upload", ANY_ID("01") "|" ANY_ID("02") "|" ANY_ID("03") "|" ANY_ID("04") "|x" },
	{ "path", "log|metrics.jsonl|results/a.txt|results/../../../store/data.mdb|results/|"
		  "results//a.txt|/dev/null|/etc/passwd|/dev/../etc/passwd|data/x|results/link" },
	{ "slot", "cpu0|cpu1|fast0|gpu0|cpu9" },
	{ "project", "p|q|p/q" },
	{ "group", "g|h" },
	{ "tag", "t|u|net" },
	{ "task", "perplexity|loss|caption|draw" },
	{ "data", "pairs|new" },
	{ "dataset", "pairs|new|new2|../x" },
	{ "tokenizer", "words|new|new2" },
	{ "vae", "pixels|pixels:3|new|new2" },
	{ "model", "net|net:5|net:7|net@ema|net:latest|new|dream" },
	{ "split", "heldout|train" },
	{ "sampler", "ddpm|ddim" },
	{ "mode", "auto|image|text|free" },
	{ "format", "tsv|jsonl|pictures" },
	{ "device", "cpu|cuda" },
	{ "fail", "crash|error|nan" },
	{ "state", "ready|making|stopped" },
	{ "from", "net.3|a|anet.3|j3|j99" },
	{ "step", "5|latest|x" },
};

/* The n-th word, to be freed; NULL: the list is shorter. */
static char *nth_word(const char *words, size_t n)
{
	while (n-- > 0 && words)
		words = strchr(words, '|') ? strchr(words, '|') + 1 : NULL;
	return words ? xstrndup(words, strcspn(words, "|")) : NULL;
}

/* A word of the field's; NULL: it has none. */
static char *hint(uint64_t *chance, const ProtobufCFieldDescriptor *f)
{
	for (size_t i = 0; i < ARRAY_LEN(hints); i++) {
		size_t n = 1;

		if (strcmp(hints[i].field, f->name) != 0)
			continue;
		for (const char *p = hints[i].words; (p = strchr(p, '|')) != NULL; p++)
			n++;
		return nth_word(hints[i].words, any_number(chance, n));
	}
	return NULL;
}

static char *any_text(uint64_t *chance, const ProtobufCFieldDescriptor *f)
{
	/* those with @@ become longer: fuzz_request.c */
	static const char words[] = "|x|net|@@pabc|@@gx/|@@h\xe2\x82\xac|@@l\xe2\x82\xac|*|..|/|-|"
				    "2026-11|0|%s%n|\xc3\xa4\n";
	char *text = one_in(chance, 16) ? NULL : hint(chance, f);

	if (!text)
		text = nth_word(words, any_number(chance, 15));
	if (one_in(chance, 30) && *text)
		text[any_number(chance, strlen(text))] = (char)(' ' + any_number(chance, 95));
	return text;
}

static void any_bytes(uint64_t *chance, const ProtobufCFieldDescriptor *f, ProtobufCBinaryData *out)
{
	bool token = strcmp(f->name, "token") == 0;
	bool submit = strcmp(f->name, "submit") == 0; /* a message in a message */
	ProtobufCMessage *m = submit ? any_message(chance, &tf__submit__descriptor) : NULL;

	out->len = token ? 16 : any_number(chance, 30);
	if (m)
		out->len = protobuf_c_message_get_packed_size(m);
	out->data = xmalloc(out->len + 1);
	memset(out->data, (int)any_number(chance, token ? 40 : 256), out->len);
	if (m) {
		protobuf_c_message_pack(m, out->data);
		protobuf_c_message_free_unpacked(m, NULL);
	}
}

static uint64_t any_integer(uint64_t *chance, const ProtobufCFieldDescriptor *f)
{
	static const uint64_t edges[] = { 0, 1, 2, 63, 64, 255, 10000, 1u << 20, INT32_MAX,
					  UINT32_MAX, INT64_MAX, 1ull << 63, UINT64_MAX,
					  1796000000000 };
	char *word = one_in(chance, 20) ? NULL : hint(chance, f);
	uint64_t n;

	if (word)
		n = (uint64_t)strtoll(word, NULL, 10);
	else if (one_in(chance, 3))
		n = edges[any_number(chance, ARRAY_LEN(edges))];
	else
		n = any_number(chance, one_in(chance, 8) ? UINT64_MAX : 20);
	xfree(word);
	return n;
}

static double any_float(uint64_t *chance)
{
	static const double edges[] = { 0, 1, 0.5, 3, -1, 1e-300, 1e9, DBL_MAX, INFINITY, NAN };

	return edges[any_number(chance, ARRAY_LEN(edges))];
}

static int any_enum(uint64_t *chance, const ProtobufCEnumDescriptor *type)
{
	if (one_in(chance, 200))
		return (int)any_number(chance, 200) - 100;
	return type->values[any_number(chance, type->n_values)].value;
}

/* ---------------------------------------------------------------- fields */

static ProtobufCMessage *make(uint64_t *chance, const ProtobufCMessageDescriptor *type, int depth);

static size_t size_of(const ProtobufCFieldDescriptor *f)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE:
		return 8;
	default:
		return 4;
	}
}

static void put_value(uint64_t *chance, const ProtobufCFieldDescriptor *f, void *at, int depth)
{
	uint64_t n;
	float x;

	switch (f->type) {
	case PROTOBUF_C_TYPE_BYTES:
		any_bytes(chance, f, at);
		break;
	case PROTOBUF_C_TYPE_STRING:
		*(char **)at = any_text(chance, f);
		break;
	case PROTOBUF_C_TYPE_MESSAGE:
		*(ProtobufCMessage **)at = make(chance, f->descriptor, depth + 1);
		break;
	case PROTOBUF_C_TYPE_DOUBLE:
		*(double *)at = any_float(chance);
		break;
	case PROTOBUF_C_TYPE_FLOAT:
		x = (float)any_float(chance);
		memcpy(at, &x, sizeof x);
		break;
	case PROTOBUF_C_TYPE_ENUM:
		*(int *)at = any_enum(chance, f->descriptor);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		*(protobuf_c_boolean *)at = (protobuf_c_boolean)any_number(chance, 2);
		break;
	default:
		n = any_integer(chance, f);
		memcpy(at, &n, size_of(f)); /* the low half of a smaller one */
	}
}

static void drop_value(const ProtobufCFieldDescriptor *f, void *at)
{
	if (f->type == PROTOBUF_C_TYPE_BYTES)
		xfree(((ProtobufCBinaryData *)at)->data);
	else if (f->type == PROTOBUF_C_TYPE_STRING && *(const void **)at != f->default_value)
		xfree(*(char **)at);
	else if (f->type == PROTOBUF_C_TYPE_MESSAGE && *(void **)at)
		protobuf_c_message_free_unpacked(*(ProtobufCMessage **)at, NULL);
	memset(at, 0, size_of(f));
}

static void *member(ProtobufCMessage *m, unsigned offset)
{
	return (char *)m + offset;
}

static bool is_oneof(const ProtobufCFieldDescriptor *f)
{
	return (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) != 0;
}

/* How many values the field has, and the first of them. */
static size_t values_of(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, char **first)
{
	*first = member(m, f->offset);
	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		*first = *(void **)*first;
		return *(size_t *)member(m, f->quantifier_offset);
	}
	if (is_oneof(f))
		return *(uint32_t *)member(m, f->quantifier_offset) == f->id;
	if (f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_MESSAGE)
		return *(void **)*first && *(const void **)*first != f->default_value;
	return f->label == PROTOBUF_C_LABEL_REQUIRED ||
	       *(protobuf_c_boolean *)member(m, f->quantifier_offset);
}

static void clear_field(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
	char *first;
	size_t n = values_of(m, f, &first);

	for (size_t i = 0; i < n; i++)
		drop_value(f, first + i * size_of(f));
	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		xfree(*(void **)member(m, f->offset));
		*(size_t *)member(m, f->quantifier_offset) = 0;
	} else if (is_oneof(f)) {
		if (n) /* else another one is chosen */
			*(uint32_t *)member(m, f->quantifier_offset) = 0;
	} else if (f->label == PROTOBUF_C_LABEL_OPTIONAL && f->type != PROTOBUF_C_TYPE_STRING &&
		   f->type != PROTOBUF_C_TYPE_MESSAGE) {
		*(protobuf_c_boolean *)member(m, f->quantifier_offset) = 0;
	}
}

static void set_field(uint64_t *chance, ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
		      int depth)
{
	char **list = member(m, f->offset);
	size_t *n = member(m, f->quantifier_offset), more;

	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		more = one_in(chance, 40) ? 1 + any_number(chance, 300) : 1 + any_number(chance, 3);
		*list = xrealloc(*list, *n + more, size_of(f));
		for (size_t i = 0; i < more; i++)
			put_value(chance, f, *list + (*n)++ * size_of(f), depth);
		return;
	}
	for (unsigned i = 0; is_oneof(f) && i < m->descriptor->n_fields; i++)
		if (is_oneof(&m->descriptor->fields[i]))
			clear_field(m, &m->descriptor->fields[i]);
	clear_field(m, f);
	put_value(chance, f, member(m, f->offset), depth);
	if (is_oneof(f))
		*(uint32_t *)member(m, f->quantifier_offset) = f->id;
	else if (f->label == PROTOBUF_C_LABEL_OPTIONAL && f->type != PROTOBUF_C_TYPE_STRING &&
		 f->type != PROTOBUF_C_TYPE_MESSAGE)
		*(protobuf_c_boolean *)member(m, f->quantifier_offset) = 1;
}

/* ---------------------------------------------------------------- messages */

/* A message with a kind and a choice is mostly of the kind that it carries. */
static void fit_kind(ProtobufCMessage *m, const ProtobufCFieldDescriptor *chosen)
{
	const ProtobufCFieldDescriptor *kind =
		protobuf_c_message_descriptor_get_field_by_name(m->descriptor, "kind");
	const ProtobufCEnumValue *value;
	char name[32] = "";

	if (!kind || kind->type != PROTOBUF_C_TYPE_ENUM)
		return;
	for (size_t i = 0; chosen->name[i] && i < sizeof name - 1; i++)
		name[i] = (char)toupper((unsigned char)chosen->name[i]);
	value = protobuf_c_enum_descriptor_get_value_by_name(kind->descriptor, name);
	if (value)
		*(int *)member(m, kind->offset) = value->value;
}

static ProtobufCMessage *make(uint64_t *chance, const ProtobufCMessageDescriptor *type, int depth)
{
	ProtobufCMessage *m = xcalloc(1, type->sizeof_message);
	const ProtobufCFieldDescriptor *chosen = NULL;
	static const uint8_t shares[] = { 2, 4, 12, 40 }; /* one of so many fields is there */
	uint64_t choices = 0, share = shares[any_number(chance, ARRAY_LEN(shares))];

	protobuf_c_message_init(type, m);
	for (unsigned i = 0; i < type->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &type->fields[i];

		if (is_oneof(f)) {
			if (one_in(chance, ++choices))
				chosen = f;
		} else if (f->label == PROTOBUF_C_LABEL_REQUIRED ||
			   (depth < DEPTH_MAX && one_in(chance, depth ? share : 30))) {
			set_field(chance, m, f, depth);
		}
	}
	if (chosen) {
		set_field(chance, m, chosen, depth);
		if (!one_in(chance, 20))
			fit_kind(m, chosen);
	}
	return m;
}

ProtobufCMessage *any_message(uint64_t *chance, const ProtobufCMessageDescriptor *type)
{
	return make(chance, type, 0);
}

static void change_field(uint64_t *chance, ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
			 int depth)
{
	char *first, *at;
	size_t n = values_of(m, f, &first);

	if (n == 0) {
		set_field(chance, m, f, depth);
	} else if (f->label != PROTOBUF_C_LABEL_REQUIRED && one_in(chance, 4)) {
		clear_field(m, f);
	} else if (f->label == PROTOBUF_C_LABEL_REPEATED && one_in(chance, 3)) {
		set_field(chance, m, f, depth);
	} else {
		at = first + any_number(chance, n) * size_of(f);
		drop_value(f, at);
		put_value(chance, f, at, depth);
	}
}

/* One of a later program, which may become longer, too. */
static void add_unknown(uint64_t *chance, ProtobufCMessage *m)
{
	uint8_t bytes[] = { 3, '@', '@', (uint8_t)('a' + any_number(chance, 22)) };
	ProtobufCMessageUnknownField *f;

	m->unknown_fields =
		xrealloc(m->unknown_fields, m->n_unknown_fields + 1, sizeof *m->unknown_fields);
	f = &m->unknown_fields[m->n_unknown_fields++];
	*f = (ProtobufCMessageUnknownField){ 1000, PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED,
					     sizeof bytes, xmemdup(bytes, sizeof bytes) };
}

void any_change(uint64_t *chance, ProtobufCMessage *m)
{
	for (int depth = 0;; depth++) {
		unsigned which = (unsigned)any_number(chance, m->descriptor->n_fields + !depth);
		const ProtobufCFieldDescriptor *f;
		char *first;
		size_t n = 0;

		/* at the top the one that is chosen, mostly: it is what the message is about */
		for (unsigned i = 0; depth == 0 && i < m->descriptor->n_fields; i++)
			if (is_oneof(&m->descriptor->fields[i]) && !one_in(chance, 8) &&
			    values_of(m, &m->descriptor->fields[i], &first))
				which = i;
		if (which >= m->descriptor->n_fields || one_in(chance, 60)) {
			add_unknown(chance, m);
			return;
		}
		f = &m->descriptor->fields[which];
		if (f->type == PROTOBUF_C_TYPE_MESSAGE)
			n = values_of(m, f, &first);
		if (n == 0 || one_in(chance, 8)) {
			change_field(chance, m, f, depth);
			return;
		}
		m = ((ProtobufCMessage **)first)[any_number(chance, n)];
		if (m->descriptor->n_fields == 0)
			return;
	}
}

void any_walk(ProtobufCMessage *m, any_fn fn, void *arg)
{
	for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
		char *first;
		size_t n = values_of(m, f, &first);

		for (size_t k = 0; k < n; k++) {
			fn(arg, f, first + k * size_of(f));
			if (f->type == PROTOBUF_C_TYPE_MESSAGE)
				any_walk(((ProtobufCMessage **)first)[k], fn, arg);
		}
	}
}
