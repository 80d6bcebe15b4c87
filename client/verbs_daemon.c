/* SPDX-License-Identifier: Apache-2.0
 * Verbs about the daemon itself: ping, version, status, drain. */
#include "config.h"
#include "client/client.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "lib/quantity.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

int verb_ping(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Empty empty = TF__EMPTY__INIT;
	int64_t start;
	Tf__Reply *reply;

	r.body_case = TF__REQUEST__BODY_PING;
	r.ping = &empty;
	TRY(client_connect(c, e));
	start = clock_mono_ns();
	TRY(client_ask(c, &r, TF__REPLY__BODY_OK, &reply, e));
	printf("the daemon at %s answers in %.1f ms\n", c->place->endpoint,
	       (double)(clock_mono_ns() - start) / 1e6);
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}

static int ask_version(struct client *c, Tf__Reply **out, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Empty empty = TF__EMPTY__INIT;

	r.body_case = TF__REQUEST__BODY_VERSION_INFO;
	r.version_info = &empty;
	return client_ask(c, &r, TF__REPLY__BODY_VERSION_INFO, out, e);
}

/* Without a daemon the program's own version is still an answer. */
int verb_version(struct client *c, struct err *e)
{
	bool json = args_has(&c->args, OPTION_JSON);
	json_t *o = json_object();
	Tf__Reply *reply = NULL;
	int rc = ask_version(c, &reply, e);

	json_object_set_new(o, "client", json_string(PACKAGE_VERSION));
	json_object_set_new(o, "protocol", json_integer(TF_PROTOCOL_VERSION));
	json_object_set_new(o, "daemon", reply ? json_string(reply->version_info->program)
					       : json_null());
	if (!json)
		printf("transfuse %s, protocol %u\n", PACKAGE_VERSION, TF_PROTOCOL_VERSION);
	if (!json && reply) {
		char *program = text_safe(reply->version_info->program);

		printf("transfused %s, protocol %u, store %u\n", program,
		       reply->version_info->protocol, reply->version_info->store);
		xfree(program);
	}
	if (json)
		json_print(o);
	else
		json_decref(o);
	if (reply)
		tf__reply__free_unpacked(reply, NULL);
	return rc;
}

int ask_status(struct client *c, Tf__Reply **out, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Empty empty = TF__EMPTY__INIT;

	r.body_case = TF__REQUEST__BODY_STATUS;
	r.status = &empty;
	return client_ask(c, &r, TF__REPLY__BODY_STATUS, out, e);
}

static json_t *json_of_status(const Tf__Status *s)
{
	json_t *o = json_object(), *slots = json_array();
	char started[CLOCK_TEXT_MAX];

	clock_format_ms(s->started, started);
	for (size_t i = 0; i < s->n_slot; i++)
		json_array_append_new(slots, json_of_slot(s->slot[i]));
	json_object_set_new(o, "user", json_string(s->user));
	json_object_set_new(o, "role", json_string(s->role));
	json_object_set_new(o, "pid", json_integer(s->pid));
	json_object_set_new(o, "started", json_string(started));
	json_object_set_new(o, "slots", slots);
	json_object_set_new(o, "jobs", json_of_pairs(s->n_count, s->count));
	json_object_set_new(o, "facts", json_of_pairs(s->n_fact, s->fact));
	json_object_set_new(o, "draining", json_boolean(s->draining));
	json_object_set_new(o, "read_only", json_boolean(s->read_only));
	json_object_set_new(o, "trouble", s->trouble ? json_string(s->trouble) : json_null());
	json_object_set_new(o, "sync_ms", s->has_sync_ms ? json_real(s->sync_ms) : json_null());
	return o;
}

static void print_slots(const Tf__Status *s)
{
	static const char *const head[] = { "slot", "device", "memory", "jobs" };
	struct table t;

	table_init(&t, "llrl", head);
	for (size_t i = 0; i < s->n_slot; i++) {
		const Tf__SlotState *slot = s->slot[i];
		struct buf jobs = BUF_INIT;
		char memory[SIZE_TEXT_MAX];

		for (size_t k = 0; k < slot->n_jobs; k++)
			buf_printf(&jobs, "%s%" PRIu64, k ? ", " : "", slot->jobs[k]);
		size_format(slot->memory, memory);
		table_add(&t, (const char *[]){ slot->name, slot->device,
						slot->memory ? memory : NULL,
						jobs.len	? jobs.data
						: slot->drained ? "drained"
								: "free" });
		buf_release(&jobs);
	}
	table_print(&t);
}

static void print_trouble(const Tf__Status *s)
{
	char *text = s->trouble ? text_safe(s->trouble) : NULL;

	if (text)
		printf("NO NEW WORK: %s\n", text);
	xfree(text);
}

int verb_status(struct client *c, struct err *e)
{
	Tf__Reply *reply;
	const Tf__Status *s;
	char age[FORMAT_MAX], *user;

	TRY(ask_status(c, &reply, e));
	s = reply->status;
	if (args_has(&c->args, OPTION_JSON)) {
		json_print(json_of_status(s));
	} else {
		format_age(s->started, age);
		user = text_safe(s->user);
		printf("daemon %u at %s, up %s; you are %s (%s)%s%s\n", s->pid, c->place->endpoint,
		       age, user, s->role, s->draining ? "; draining" : "",
		       s->read_only ? "; READ-ONLY, see its log" : "");
		xfree(user);
		print_trouble(s);
		print_slots(s);
		for (size_t i = 0; i < s->n_count; i++)
			printf("%s%s %s", i ? ", " : "jobs: ", s->count[i]->value,
			       s->count[i]->key);
		if (s->n_count)
			putchar('\n');
	}
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}

int verb_drain(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Drain m = TF__DRAIN__INIT;
	Tf__Reply *reply;

	m.has_resume = m.resume = args_has(&c->args, OPTION_RESUME);
	m.has_stop_daemon = m.stop_daemon = args_has(&c->args, OPTION_STOP);
	FAIL_IF(m.resume && m.stop_daemon, e, TF_EUSAGE,
		"--resume and --stop are both given, expected one of them");
	r.body_case = TF__REQUEST__BODY_DRAIN;
	r.drain = &m;
	TRY(client_ask(c, &r, TF__REPLY__BODY_OK, &reply, e));
	tf__reply__free_unpacked(reply, NULL);
	puts(m.resume ? "the daemon starts jobs again"
	     : m.stop_daemon
		     ? "the daemon starts no more jobs and ends when its workers have left"
		     : "the daemon starts no more jobs; running ones checkpoint and leave "
		       "(transfuse drain --resume undoes it)");
	return STATUS_DONE;
}
