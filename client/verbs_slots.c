/* SPDX-License-Identifier: Apache-2.0
 * Verbs about slots: slots, slots drain, slots resume, slots forget. */
#include "config.h"
#include "client/client.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <stdio.h>

int ask_slots(struct client *c, Tf__Reply **out, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Empty empty = TF__EMPTY__INIT;

	r.body_case = TF__REQUEST__BODY_SLOT_LIST;
	r.slot_list = &empty;
	return client_ask(c, &r, TF__REPLY__BODY_SLOTS, out, e);
}

/* "12, 13"; "free" or "drained" without jobs. */
static void format_holders(const Tf__SlotState *s, struct buf *out)
{
	for (size_t i = 0; i < s->n_jobs; i++)
		buf_printf(out, "%s%" PRIu64, i ? ", " : "", s->jobs[i]);
	if (s->n_jobs == 0)
		buf_text(out, s->drained ? "drained" : "free");
}

static double gib(uint64_t bytes)
{
	return (double)bytes / (1u << 30);
}

struct figures {
	char memory[32], given[16], load[16], power[32], temperature[16];
};

static void format_figures(const Tf__SlotState *s, struct figures *f)
{
	const Tf__GpuState *g = s->gpu;

	*f = (struct figures){ .memory = "" };
	if (g && g->has_memory_used)
		snprintf(f->memory, sizeof f->memory, "%.1f of %.1f GiB", gib(g->memory_used),
			 gib(s->memory));
	else if (s->memory)
		snprintf(f->memory, sizeof f->memory, "%.1f GiB", gib(s->memory));
	if (s->given)
		snprintf(f->given, sizeof f->given, "%.1f GiB", gib(s->given));
	if (g && g->has_load)
		snprintf(f->load, sizeof f->load, "%u %%", g->load);
	if (g && g->has_power_w && g->has_power_limit_w)
		snprintf(f->power, sizeof f->power, "%.0f of %.0f W", g->power_w,
			 g->power_limit_w);
	else if (g && g->has_power_w)
		snprintf(f->power, sizeof f->power, "%.0f W", g->power_w);
	if (g && g->has_temperature)
		snprintf(f->temperature, sizeof f->temperature, "%u C", g->temperature);
}

void table_of_slots(struct table *t, const Tf__Slots *s)
{
	static const char *const head[] = { "slot", "device", "jobs",  "memory", "shares",
					    "load", "power",  "heat", "drained" };

	table_init(t, "lllrrrrrl", head);
	for (size_t i = 0; i < s->n_slot; i++) {
		const Tf__SlotState *slot = s->slot[i];
		struct buf jobs = BUF_INIT, why = BUF_INIT;
		struct figures f;

		format_figures(slot, &f);
		format_holders(slot, &jobs);
		if (slot->drained)
			buf_printf(&why, "%s%s%s", slot->drained_by ? slot->drained_by : "",
				   slot->drained_by ? ": " : "", slot->reason);
		table_add(t, (const char *[]){ slot->name,
					       slot->gpu && slot->gpu->model ? slot->gpu->model
									     : slot->device,
					       jobs.data, f.memory, f.given, f.load, f.power,
					       f.temperature, why.len ? why.data : " " });
		buf_release(&jobs);
		buf_release(&why);
	}
}

static json_t *json_of_slots(const Tf__Slots *s)
{
	json_t *list = json_array();

	for (size_t i = 0; i < s->n_slot; i++)
		json_array_append_new(list, json_of_slot(s->slot[i]));
	return list;
}

int verb_slots(struct client *c, struct err *e)
{
	Tf__Reply *reply;
	struct table t;

	TRY(ask_slots(c, &reply, e));
	if (args_has(&c->args, OPTION_JSON)) {
		json_print(json_of_slots(reply->slots));
	} else {
		table_of_slots(&t, reply->slots);
		table_print(&t);
		if (reply->slots->fault) {
			char *fault = text_safe(reply->slots->fault);

			printf("GPUs are not watched: %s\n", fault);
			xfree(fault);
		}
	}
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}

/* One after the other: the first that is refused ends it. */
static int set_slots(struct client *c, Tf__SlotAction action, const char *done, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__SlotSet m = TF__SLOT_SET__INIT;

	m.action = action;
	m.reason = (char *)args_text(&c->args, OPTION_REASON);
	r.body_case = TF__REQUEST__BODY_SLOT_SET;
	r.slot_set = &m;
	for (int i = 0; i < c->args.operand.count; i++) {
		Tf__Reply *reply;

		m.slot = c->args.operand.word[i];
		TRY(client_ask(c, &r, TF__REPLY__BODY_OK, &reply, e));
		tf__reply__free_unpacked(reply, NULL);
		printf("%s %s\n", m.slot, done);
	}
	return STATUS_DONE;
}

int verb_slots_drain(struct client *c, struct err *e)
{
	return set_slots(c, TF__SLOT_ACTION__SLOT_DRAIN,
			 "takes no more jobs; what runs there goes on", e);
}

int verb_slots_resume(struct client *c, struct err *e)
{
	return set_slots(c, TF__SLOT_ACTION__SLOT_RESUME, "takes jobs again", e);
}

int verb_slots_forget(struct client *c, struct err *e)
{
	return set_slots(c, TF__SLOT_ACTION__SLOT_FORGET,
			 "is forgotten; it is not shown from the daemon's next start on", e);
}
