/* SPDX-License-Identifier: Apache-2.0
 * What --json prints. The keys are stable: programs depend on them; new ones may be added. */
#include "config.h"
#include "client/client.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static json_t *text_or_null(const char *text)
{
	return text && *text ? json_string(text) : json_null();
}

static json_t *time_or_null(protobuf_c_boolean has, int64_t ms)
{
	char text[CLOCK_TEXT_MAX];

	if (!has || ms <= 0)
		return json_null();
	clock_format_ms(ms, text);
	return json_string(text);
}

static json_t *real_or_null(double x)
{
	return isfinite(x) ? json_real(x) : json_null();
}

static json_t *number_or_null(protobuf_c_boolean has, uint64_t n)
{
	return has ? json_integer((json_int_t)n) : json_null();
}

static json_t *json_of_ids(size_t n, const uint64_t *id)
{
	json_t *list = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, json_integer((json_int_t)id[i]));
	return list;
}

json_t *json_of_audit(const Tf__Audit *a)
{
	json_t *list = json_array();

	for (size_t i = 0; i < a->n_entry; i++) {
		const Tf__AuditEntry *x = a->entry[i];
		const struct {
			const char *key, *value;
		} column[] = {
			{ "time", x->time },	   { "user", x->user },
			{ "admin", x->admin },	   { "key", x->key },
			{ "from", x->from },	   { "action", x->action },
			{ "subject", x->subject }, { "outcome", x->outcome },
			{ "text", x->text },
		};
		json_t *o = json_object();

		for (size_t k = 0; k < ARRAY_LEN(column); k++)
			json_object_set_new(o, column[k].key,
					    text_or_null(strcmp(column[k].value, "-") == 0
								 ? NULL : column[k].value));
		json_array_append_new(list, o);
	}
	return list;
}

json_t *json_of_users(const Tf__Users *users)
{
	json_t *list = json_array();

	for (size_t i = 0; i < users->n_user; i++) {
		const Tf__User *u = users->user[i];
		json_t *o = json_object();

		json_object_set_new(o, "name", json_string(u->name));
		json_object_set_new(o, "role", json_string(u->role));
		json_object_set_new(o, "key", json_string(u->key));
		json_object_set_new(o, "enrolled", time_or_null(u->has_created, u->created));
		json_object_set_new(o, "configured", json_boolean(u->configured));
		json_array_append_new(list, o);
	}
	return list;
}

static json_t *json_of_gpu(const Tf__GpuState *g)
{
	json_t *o;

	if (!g)
		return json_null();
	o = json_object();
	json_object_set_new(o, "number", json_integer(g->number));
	json_object_set_new(o, "uuid", json_string(g->uuid));
	json_object_set_new(o, "model", text_or_null(g->model));
	json_object_set_new(o, "memory_used", number_or_null(g->has_memory_used, g->memory_used));
	json_object_set_new(o, "load", number_or_null(g->has_load, g->load));
	json_object_set_new(o, "power_w", g->has_power_w ? real_or_null(g->power_w) : json_null());
	json_object_set_new(o, "power_limit_w", g->has_power_limit_w
							? real_or_null(g->power_limit_w)
							: json_null());
	json_object_set_new(o, "temperature", number_or_null(g->has_temperature, g->temperature));
	json_object_set_new(o, "ecc_errors", number_or_null(g->has_ecc_errors, g->ecc_errors));
	json_object_set_new(o, "processes", json_integer((json_int_t)g->n_process));
	return o;
}

json_t *json_of_slot(const Tf__SlotState *s)
{
	json_t *o = json_object();

	json_object_set_new(o, "name", json_string(s->name));
	json_object_set_new(o, "device", json_string(s->device));
	json_object_set_new(o, "job", number_or_null(s->job > 0, s->job));
	json_object_set_new(o, "jobs", json_of_ids(s->n_jobs, s->jobs));
	json_object_set_new(o, "memory", json_integer((json_int_t)s->memory));
	json_object_set_new(o, "given", json_integer((json_int_t)s->given));
	json_object_set_new(o, "drained", json_boolean(s->drained));
	json_object_set_new(o, "reason", text_or_null(s->reason));
	json_object_set_new(o, "drained_by", text_or_null(s->drained_by));
	json_object_set_new(o, "drained_since",
			    time_or_null(s->has_drained_since, s->drained_since));
	json_object_set_new(o, "gpu", json_of_gpu(s->gpu));
	return o;
}

json_t *json_of_pairs(size_t n, Tf__KeyValue **pair)
{
	json_t *o = json_object();

	for (size_t i = 0; i < n; i++)
		json_object_set_new(o, pair[i]->key, text_or_null(pair[i]->value));
	return o;
}

json_t *json_of_artefact(const Tf__Artefact *a)
{
	json_t *o = json_object(), *from = json_array();

	json_object_set_new(o, "id", json_string(a->id));
	json_object_set_new(o, "kind", json_string(artefact_kind_name(a->kind)));
	json_object_set_new(o, "name", json_string(a->name));
	json_object_set_new(o, "user", text_or_null(a->user));
	json_object_set_new(o, "state", text_or_null(a->state));
	json_object_set_new(o, "created", time_or_null(a->has_created, a->created));
	json_object_set_new(o, "bytes", a->has_bytes ? json_integer((json_int_t)a->bytes)
						     : json_null());
	json_object_set_new(o, "hash", text_or_null(a->hash));
	json_object_set_new(o, "job", a->has_job && a->job ? json_integer((json_int_t)a->job)
							   : json_null());
	json_object_set_new(o, "facts", json_of_pairs(a->n_fact, a->fact));
	for (size_t i = 0; i < a->n_made_from; i++) {
		const Tf__Input *in = a->made_from[i];
		json_t *item = json_object();

		json_object_set_new(item, "kind", json_string(artefact_kind_name(in->kind)));
		json_object_set_new(item, "name", json_string(in->name));
		json_object_set_new(item, "id", json_string(in->id));
		json_object_set_new(item, "role", text_or_null(in->role));
		json_array_append_new(from, item);
	}
	json_object_set_new(o, "made_from", from);
	return o;
}

void json_print(json_t *value)
{
	char *text = json_dumps(value, JSON_COMPACT | JSON_REAL_PRECISION(JSON_DIGITS));

	CHECK(text);
	puts(text);
	free(text);
	json_decref(value);
}
