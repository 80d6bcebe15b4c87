/* SPDX-License-Identifier: Apache-2.0
 * Submitting a job and following it to its end. A submit carries a token: the same
 * message sent again after a lost connection is the same job. */
#include "config.h"
#include "client/client.h"
#include "client/line.h"
#include "client/submit.h"
#include "lib/clock.h"
#include "lib/mem.h"
#include "lib/quantity.h"
#include "proto/retry.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define POLL_MS 10000 /* one question about a job waits so long for news */

static int read_size(const struct args *a, enum option_id o, uint64_t *out, struct err *e)
{
	const char *text = args_text(a, o);

	return text ? size_parse(option_rows[o].name, text, out, e) : 0;
}

/* "+2h" from now, or "2026-01-31T12:00" in UTC. */
static int read_when(const struct args *a, enum option_id o, int64_t *out, struct err *e)
{
	const char *text = args_text(a, o), *end;
	struct tm tm = { 0 };
	int64_t seconds;

	if (!text)
		return 0;
	if (*text == '+') {
		TRY(span_parse(option_rows[o].name, text + 1, &seconds, e));
		*out = clock_wall_ms() + 1000 * seconds;
		return 0;
	}
	end = strptime(text, "%Y-%m-%dT%H:%M", &tm);
	if (end && *end == ':')
		end = strptime(text, "%Y-%m-%dT%H:%M:%S", &tm);
	FAIL_IF(!end || (*end && strcmp(end, "Z") != 0) || timegm(&tm) < 0, e, TF_EUSAGE,
		"--%s is '%.40s', expected +SPAN (+2h) or a time in UTC (2026-01-31T12:00)",
		option_rows[o].name, text);
	*out = 1000 * (int64_t)timegm(&tm);
	return 0;
}

/* When it may run, for how long, and how much it matters. */
static int times_read(const struct args *a, Tf__Demand *d, struct err *e)
{
	const char *priority = args_text(a, OPTION_PRIORITY), *time = args_text(a, OPTION_TIME);
	int64_t seconds = 0;

	if (priority) {
		d->has_priority = true;
		d->priority = priority_named(priority);
		FAIL_IF(!d->priority, e, TF_EUSAGE,
			"--priority is '%.40s', expected low, normal, high or urgent", priority);
	}
	if (time)
		TRY(span_parse("--time", time, &seconds, e));
	FAIL_IF(time && seconds == 0, e, TF_EUSAGE, "--time is 0, expected at least 1s");
	TRY(read_when(a, OPTION_BEGIN, &d->begin, e));
	TRY(read_when(a, OPTION_DEADLINE, &d->deadline, e));
	d->walltime = (uint64_t)seconds;
	d->has_walltime = seconds > 0;
	d->has_begin = d->begin > 0;
	d->has_deadline = d->deadline > 0;
	return 0;
}

/* The resources the command line asks for; the one spec a process submits points to them. */
static int demand_read(const struct args *a, Tf__JobSpec *spec, struct err *e)
{
	static Tf__Demand d = TF__DEMAND__INIT;
	int64_t gpus = 0, cpus = 0;

	TRY(args_int(a, OPTION_GPUS, 1, LIMIT_GPUS, &gpus, e));
	TRY(args_int(a, OPTION_CPUS, 1, LIMIT_CPUS, &cpus, e));
	TRY(read_size(a, OPTION_GPU_MEM, &d.gpu_mem, e));
	TRY(read_size(a, OPTION_MEM, &d.mem, e));
	d.gpus = (uint32_t)gpus;
	d.cpus = (uint32_t)cpus;
	d.has_gpus = gpus > 0;
	d.has_cpus = cpus > 0;
	d.has_gpu_mem = d.gpu_mem > 0;
	d.has_mem = d.mem > 0;
	TRY(times_read(a, &d, e));
	if (tf__demand__get_packed_size(&d) > 0)
		spec->demand = &d;
	return 0;
}

/* The ids given by an option that is repeated; borrowed, of the one spec a process submits. */
static int ids_read(const struct args *a, enum option_id o, uint64_t room[LIMIT_AFTER],
		    uint64_t **out, size_t *count, struct err *e)
{
	const struct words *ids = &a->given[o];
	int64_t id = 0;

	FAIL_IF(ids->count > (int)LIMIT_AFTER, e, TF_EUSAGE,
		"--%s is given %d times, at most %u are allowed", option_rows[o].name, ids->count,
		LIMIT_AFTER);
	for (int i = 0; i < ids->count; i++) {
		TRY(text_to_int(option_rows[o].name, ids->word[i], 1, INT64_MAX, &id, e));
		room[i] = (uint64_t)id;
	}
	*out = room;
	*count = (size_t)ids->count;
	return 0;
}

/* When it may start, and the words it is found by. */
static int order_read(const struct args *a, Tf__JobSpec *s, struct err *e)
{
	static uint64_t room[3][LIMIT_AFTER];

	TRY(ids_read(a, OPTION_AFTER, room[0], &s->after, &s->n_after, e));
	TRY(ids_read(a, OPTION_AFTER_ANY, room[1], &s->after_any, &s->n_after_any, e));
	TRY(ids_read(a, OPTION_AFTER_FAILED, room[2], &s->after_failed, &s->n_after_failed, e));
	s->tag = a->given[OPTION_TAG].word;
	s->n_tag = (size_t)a->given[OPTION_TAG].count;
	s->has_hold = s->hold = args_has(a, OPTION_HOLD);
	return 0;
}

/* Rules for further attempts; of the one spec a process submits. */
static int retry_read(const struct args *a, Tf__JobSpec *s, struct err *e)
{
	static Tf__RetryRule rule[FAILURES], *list[FAILURES];
	const struct words *given = &a->given[OPTION_RETRY];

	FAIL_IF(given->count >= FAILURES, e, TF_EUSAGE,
		"--retry is given %d times, at most %d are allowed", given->count, FAILURES - 1);
	for (int i = 0; i < given->count; i++) {
		TRY(retry_parse(given->word[i], &rule[i], e));
		list[i] = &rule[i];
	}
	s->retry = list;
	s->n_retry = (size_t)given->count;
	return 0;
}

int submit_check(struct client *c, Tf__JobSpec *spec, struct err *e)
{
	int64_t threads = 0, retries = 2;

	TRY(args_int(&c->args, OPTION_THREADS, 1, 1024, &threads, e));
	TRY(args_int(&c->args, OPTION_RETRIES, 0, LIMIT_RETRIES, &retries, e));
	spec->name = (char *)args_text(&c->args, OPTION_JOB_NAME);
	spec->project = (char *)args_text(&c->args, OPTION_PROJECT);
	spec->device = (char *)args_text(&c->args, OPTION_DEVICE);
	spec->has_threads = threads > 0;
	spec->threads = (int32_t)threads;
	spec->has_retries = 1;
	spec->retries = (uint32_t)retries;
	TRY(demand_read(&c->args, spec, e));
	TRY(order_read(&c->args, spec, e));
	TRY(retry_read(&c->args, spec, e));
	return spec_check(spec, e);
}

static int send_submit(struct client *c, Tf__JobSpec *spec, bool dry, Tf__Reply **out,
		       struct err *e)
{
	TRY(client_connect(c, e));
	return client_note(c, line_submit(c->line, spec, dry, out, e));
}

/* ---- dry run */

static json_t *describe(const Tf__JobSpec *spec, const Tf__Submitted *s)
{
	json_t *o = json_object(), *inputs = json_array();

	for (size_t i = 0; i < s->n_input; i++) {
		const Tf__Input *in = s->input[i];
		json_t *item = json_object();

		json_object_set_new(item, "role", json_string(in->role ? in->role : ""));
		json_object_set_new(item, "kind", json_string(artefact_kind_name(in->kind)));
		json_object_set_new(item, "name", json_string(in->name));
		if (in->step)
			json_object_set_new(item, "step", json_string(in->step));
		if (in->ema)
			json_object_set_new(item, "ema", json_true());
		json_array_append_new(inputs, item);
	}
	json_object_set_new(o, "kind", json_string(job_kind_name(spec->kind)));
	json_object_set_new(o, "inputs", inputs);
	json_object_set_new(o, "facts", json_of_pairs(s->n_fact, s->fact));
	return o;
}

static int dry_run(struct client *c, Tf__JobSpec *spec, struct err *e)
{
	Tf__Reply *reply;
	json_t *what, *plan = NULL;
	int rc;

	TRY(send_submit(c, spec, true, &reply, e));
	what = describe(spec, reply->submitted);
	tf__reply__free_unpacked(reply, NULL);
	rc = spec->kind != TF__JOB_KIND__TRAIN
		     ? 0
		     : plan_experiment(spec->train->experiment, spec->device,
				       json_object_get(what, "facts"), &plan, e);
	if (rc < 0) {
		json_decref(what);
		return rc;
	}
	if (args_has(&c->args, OPTION_JSON)) {
		json_object_set(what, "plan", plan ? plan : json_null());
		json_print(what);
	} else {
		printf("The daemon would take this %s job; nothing was submitted.\n",
		       job_kind_name(spec->kind));
		print_json_for_people(json_object_get(what, "inputs"), 2);
		if (plan)
			print_plan(plan);
		json_decref(what);
	}
	json_decref(plan);
	return STATUS_DONE;
}

/* ---- following */

static enum status status_of_job(const Tf__Job *j)
{
	switch (j->state) {
	case TF__JOB_STATE__FAILED:
		return STATUS_FAILED;
	case TF__JOB_STATE__CANCELLED:
		return STATUS_CANCELLED;
	default:
		return STATUS_DONE;
	}
}

static int ask_news(struct client *c, uint64_t id, uint64_t since, uint32_t wait_ms,
		    Tf__Reply **out, struct err *e)
{
	TRY(client_connect(c, e));
	return client_note(c, line_news(c->line, id, since, wait_ms, out, e));
}

uint32_t follow_left(const struct follow *f)
{
	int64_t left = f->until_ms - clock_mono_ms();

	return left < 0 ? 0 : left < POLL_MS ? (uint32_t)left : POLL_MS;
}

/* A job that ended otherwise fits no more: one that ran has been running, which is as good as its
 * end is. */
bool follow_fits(const struct follow *f, const Tf__Job *j, int *status)
{
	bool ran = j->has_started && j->started > 0 &&
		   f->states & (1u << TF__JOB_STATE__STARTING | 1u << TF__JOB_STATE__RUNNING);

	*status = STATUS_DONE;
	if (f->states >> j->state & 1)
		return true;
	if (!job_state_is_end(j->state))
		return false;
	*status = status_of_job(j);
	if (f->states && !ran && *status == STATUS_DONE)
		*status = STATUS_FAILED;
	return true;
}

static void say_how_to_go_on(uint64_t id)
{
	fprintf(stderr,
		"job %" PRIu64 " goes on; follow it again: transfuse wait %" PRIu64
		"; stop it: transfuse cancel %" PRIu64 "\n",
		id, id, id);
}

int follow_until(struct client *c, uint64_t id, const struct follow *f, Tf__Reply **last,
		 struct err *e)
{
	struct progress_view view;
	uint64_t since = 0;

	progress_init(&view, f->quiet);
	for (;;) {
		uint32_t left = follow_left(f);
		Tf__Reply *reply = NULL;
		const Tf__Job *j;
		int rc = ask_news(c, id, since, left, &reply, e), status;

		if (rc < 0) {
			progress_end(&view);
			if (rc == TF_ECANCELLED || rc == TF_ENODAEMON || rc == TF_ETIMEOUT)
				say_how_to_go_on(id);
			return rc;
		}
		j = reply->jobs->job[0];
		since = j->has_seq ? j->seq : since;
		if (follow_fits(f, j, &status) || left == 0) {
			status = follow_fits(f, j, &status) ? status : STATUS_TIMEOUT;
			progress_end(&view);
			*last = reply;
			return status;
		}
		progress_job(&view, j);
		tf__reply__free_unpacked(reply, NULL);
	}
}

int follow_job(struct client *c, uint64_t id, bool quiet, Tf__Reply **last, struct err *e)
{
	return follow_until(c, id, &(struct follow){ quiet, 0, INT64_MAX }, last, e);
}

/* "time in ms: queue 1, load 0.2, steps 19.5" */
static void print_timing(const Tf__Job *j)
{
	if (j->n_timing)
		printf("time in ms: queue %" PRId64, j->started - j->submitted);
	for (size_t i = 0; i < j->n_timing; i++)
		printf(", %s %.3g", j->timing[i]->name, j->timing[i]->value);
	if (j->n_timing)
		putchar('\n');
}

void print_end(const Tf__Job *j)
{
	static const char *const head[] = { "result", "value" };
	char *reason = text_safe(j->reason), *name = text_safe(j->name), span[CLOCK_TEXT_MAX];
	struct table t;

	printf("job %" PRIu64 " (%s%s%s): %s", j->id, job_kind_name(j->kind), *name ? " " : "",
	       name, job_state_name(j->state));
	if (j->has_started && j->started > 0 && j->has_ended && j->ended >= j->started) {
		clock_format_span((double)(j->ended - j->started) / 1000, span);
		printf(" after %s", span);
	}
	printf("%s%s\n", *reason ? ": " : "", reason);
	if (j->n_result) {
		table_init(&t, "lr", head);
		for (size_t i = 0; i < j->n_result; i++) {
			char value[FORMAT_MAX];

			format_value(j->result[i]->value, value);
			table_add(&t, (const char *[]){ j->result[i]->name, value });
		}
		table_print(&t);
	}
	print_timing(j);
	xfree(reason);
	xfree(name);
}

/* ---- the whole */

static int print_submitted(struct client *c, const Tf__JobSpec *spec, uint64_t id, struct err *e)
{
	Tf__Reply *reply;

	if (!args_has(&c->args, OPTION_JSON)) {
		printf("job %" PRIu64 " (%s) is submitted; follow it: transfuse wait %" PRIu64 "\n",
		       id, job_kind_name(spec->kind), id);
		return STATUS_DONE;
	}
	TRY(ask_news(c, id, 0, 0, &reply, e));
	json_print(json_of_job(reply->jobs->job[0]));
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}

int submit(struct client *c, Tf__JobSpec *spec, bool follow, uint64_t *id, struct err *e)
{
	bool json = args_has(&c->args, OPTION_JSON);
	Tf__Reply *reply;
	int status;

	*id = 0;
	TRY(submit_check(c, spec, e));
	if (args_has(&c->args, OPTION_DRY_RUN))
		return dry_run(c, spec, e);
	TRY(send_submit(c, spec, false, &reply, e));
	*id = reply->submitted->job;
	tf__reply__free_unpacked(reply, NULL);
	if (!follow && !args_has(&c->args, OPTION_WAIT))
		return print_submitted(c, spec, *id, e);
	if (!json)
		fprintf(stderr, "job %" PRIu64 " (%s)\n", *id, job_kind_name(spec->kind));
	TRY(status = follow_job(c, *id, json, &reply, e));
	if (json)
		json_print(json_of_job(reply->jobs->job[0]));
	else
		print_end(reply->jobs->job[0]);
	tf__reply__free_unpacked(reply, NULL);
	return status;
}
