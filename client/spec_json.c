/* SPDX-License-Identifier: Apache-2.0
 * Job specs as JSON; see spec_json.h. Messages are filled through their descriptors, as protobuf-c
 * does when it unpacks; what is made here is freed by its free_unpacked. */
#include "config.h"
#include "client/spec_json.h"
#include "lib/mem.h"
#include "proto/spec.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

typedef ProtobufCFieldDescriptor field_t;
typedef ProtobufCMessageDescriptor message_t;

static int wrong(const message_t *in, const field_t *f, const json_t *v, const char *expected,
		 struct err *e)
{
	char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
	int rc = err_set(e, TF_EINVALID, "field '%s' of %s: found %.60s, expected %s", f->name,
			 in->short_name, text ? text : "?", expected);

	free(text);
	return rc;
}

static int put_integer(const message_t *in, const field_t *f, const json_t *v, int64_t least,
		       int64_t most, int64_t *out, struct err *e)
{
	char range[80];

	*out = json_integer_value(v);
	if (json_is_integer(v) && *out >= least && *out <= most)
		return 0;
	snprintf(range, sizeof range, "a whole number from %lld to %lld", (long long)least,
		 (long long)most);
	return wrong(in, f, v, range, e);
}

static int put_enum(const message_t *in, const field_t *f, const json_t *v, int *out,
		    struct err *e)
{
	const ProtobufCEnumDescriptor *d = f->descriptor;

	for (unsigned i = 0; json_is_string(v) && i < d->n_values; i++)
		if (strcasecmp(d->values[i].name, json_string_value(v)) == 0) {
			*out = d->values[i].value;
			return 0;
		}
	return wrong(in, f, v, d->values[0].name, e);
}

static int read_message(const message_t *d, const json_t *o, ProtobufCMessage **out,
			struct err *e);

/* A value of the field's type into its member. */
static int put_value(const message_t *in, const field_t *f, const json_t *v, void *member,
		     struct err *e)
{
	int64_t n = 0;

	switch (f->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		TRY(put_integer(in, f, v, INT32_MIN, INT32_MAX, &n, e));
		*(int32_t *)member = (int32_t)n;
		return 0;
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		TRY(put_integer(in, f, v, 0, UINT32_MAX, &n, e));
		*(uint32_t *)member = (uint32_t)n;
		return 0;
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		return put_integer(in, f, v, INT64_MIN, INT64_MAX, member, e);
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return put_integer(in, f, v, 0, INT64_MAX, member, e);
	case PROTOBUF_C_TYPE_FLOAT:
		*(float *)member = (float)json_number_value(v);
		return json_is_number(v) ? 0 : wrong(in, f, v, "a number", e);
	case PROTOBUF_C_TYPE_DOUBLE:
		*(double *)member = json_number_value(v);
		return json_is_number(v) ? 0 : wrong(in, f, v, "a number", e);
	case PROTOBUF_C_TYPE_BOOL:
		*(protobuf_c_boolean *)member = json_is_true(v);
		return json_is_boolean(v) ? 0 : wrong(in, f, v, "true or false", e);
	case PROTOBUF_C_TYPE_ENUM: return put_enum(in, f, v, member, e);
	case PROTOBUF_C_TYPE_STRING:
		if (!json_is_string(v))
			return wrong(in, f, v, "a text", e);
		*(char **)member = xstrdup(json_string_value(v));
		return 0;
	case PROTOBUF_C_TYPE_BYTES:
		return err_set(e, TF_EUNSUPPORTED,
			       "field '%s' of %s holds bytes, which cannot be given as JSON",
			       f->name, in->short_name);
	default: return read_message(f->descriptor, v, member, e);
	}
}

static size_t size_of(const field_t *f)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE: return sizeof(void *);
	case PROTOBUF_C_TYPE_BYTES: return sizeof(ProtobufCBinaryData);
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
	case PROTOBUF_C_TYPE_DOUBLE: return 8;
	default: return 4;
	}
}

static int put_list(const message_t *in, const field_t *f, const json_t *v, char *message,
		    struct err *e)
{
	size_t *count = (size_t *)(void *)(message + f->quantifier_offset);
	char **list = (char **)(void *)(message + f->offset);
	size_t size = size_of(f);

	if (!json_is_array(v))
		return wrong(in, f, v, "a list", e);
	if (json_array_size(v) > 0)
		*list = xcalloc(json_array_size(v), size);
	for (size_t i = 0; i < json_array_size(v); i++) {
		TRY(put_value(in, f, json_array_get(v, i), *list + i * size, e));
		++*count;
	}
	return 0;
}

static int put_field(const message_t *in, const field_t *f, const json_t *v,
		     ProtobufCMessage *message, struct err *e)
{
	char *base = (char *)message;
	int *quantifier = (int *)(void *)(base + f->quantifier_offset);

	if (f->label == PROTOBUF_C_LABEL_REPEATED)
		return put_list(in, f, v, base, e);
	if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
		FAIL_IF(*quantifier != 0, e, TF_EINVALID,
			"%s has '%s' beside another member of which there can be one",
			in->short_name, f->name);
		TRY(put_value(in, f, v, base + f->offset, e));
		*quantifier = (int)f->id;
		return 0;
	}
	TRY(put_value(in, f, v, base + f->offset, e));
	if (f->label == PROTOBUF_C_LABEL_OPTIONAL && f->type != PROTOBUF_C_TYPE_STRING &&
	    f->type != PROTOBUF_C_TYPE_MESSAGE)
		*quantifier = 1;
	return 0;
}

static int fill(const message_t *d, const json_t *o, ProtobufCMessage *m, struct err *e)
{
	const char *key;
	json_t *v;

	FAIL_IF(!json_is_object(o), e, TF_EINVALID, "%s: expected an object", d->short_name);
	json_object_foreach((json_t *)o, key, v) {
		const field_t *f = protobuf_c_message_descriptor_get_field_by_name(d, key);

		FAIL_IF(!f, e, TF_EINVALID, "%s has no field '%.60s'", d->short_name, key);
		TRY(put_field(d, f, v, m, e));
	}
	for (unsigned i = 0; i < d->n_fields; i++)
		FAIL_IF(d->fields[i].label == PROTOBUF_C_LABEL_REQUIRED &&
				!json_object_get(o, d->fields[i].name),
			e, TF_EINVALID, "%s needs the field '%s'", d->short_name,
			d->fields[i].name);
	return 0;
}

static int read_message(const message_t *d, const json_t *o, ProtobufCMessage **out,
			struct err *e)
{
	ProtobufCMessage *m = xcalloc(1, d->sizeof_message);
	int rc;

	protobuf_c_message_init(d, m);
	rc = fill(d, o, m, e);
	if (rc == 0)
		*out = m;
	else
		protobuf_c_message_free_unpacked(m, NULL);
	return rc;
}

/* The kind, when its spec alone is given. */
static void add_kind(json_t *o)
{
	if (json_object_get(o, "kind"))
		return;
	for (size_t i = 0; i < job_kind_count; i++)
		if (json_object_get(o, job_kinds[i].id))
			json_object_set_new(o, "kind", json_string(job_kinds[i].id));
}

int spec_json_read(const char *text, size_t len, Tf__JobSpec **out, struct err *e)
{
	json_error_t why;
	json_t *o = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
	ProtobufCMessage *m = NULL;
	int rc;

	FAIL_IF(!o, e, TF_EINVALID, "not JSON: %s (column %d)", why.text, why.column);
	if (json_is_object(o))
		add_kind(o);
	rc = read_message(&tf__job_spec__descriptor, o, &m, e);
	json_decref(o);
	TRY(rc);
	*out = (Tf__JobSpec *)m;
	rc = spec_check(*out, e);
	if (rc < 0) {
		tf__job_spec__free_unpacked(*out, NULL);
		*out = NULL;
	}
	return rc;
}
