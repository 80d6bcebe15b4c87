/* SPDX-License-Identifier: Apache-2.0
 * Verbs about what was used and what is kept: usage, gc. */
#include "config.h"
#include "client/client.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* ---- usage */

enum column { BY_MONTH = 1, BY_USER = 2, BY_PROJECT = 4 };

static const struct {
	enum column column;
	const char *name;
} columns[] = { { BY_MONTH, "month" }, { BY_USER, "user" }, { BY_PROJECT, "project" } };

/* "user,month"; 0: all three. */
static int read_columns(const char *text, unsigned *out, struct err *e)
{
	*out = 0;
	while (text && *text) {
		size_t n = strcspn(text, ","), i = 0;

		while (i < ARRAY_LEN(columns) && (strlen(columns[i].name) != n ||
						  memcmp(columns[i].name, text, n) != 0))
			i++;
		FAIL_IF(i == ARRAY_LEN(columns), e, TF_EUSAGE,
			"--by '%s': expected some of month, user, project with commas", text);
		*out |= columns[i].column;
		text += n + (text[n] == ',');
	}
	*out = *out ? *out : BY_MONTH | BY_USER | BY_PROJECT;
	return 0;
}

struct sums {
	Tf__UsageRow *row; /* texts borrowed from the reply; "" where a column is summed over */
	size_t count;
};

static void sum_up(const Tf__Usage *u, unsigned by, const char *user, struct sums *out)
{
	out->row = xcalloc(u->n_row + 1, sizeof *out->row);
	for (size_t i = 0; i < u->n_row; i++) {
		const Tf__UsageRow *from = u->row[i];
		char *month = by & BY_MONTH ? from->month : (char *)"";
		char *whose = by & BY_USER ? from->user : (char *)"";
		char *project = by & BY_PROJECT ? from->project : (char *)"";
		size_t k = 0;

		if (user && strcmp(user, from->user) != 0)
			continue;
		while (k < out->count && (strcmp(out->row[k].month, month) != 0 ||
					  strcmp(out->row[k].user, whose) != 0 ||
					  strcmp(out->row[k].project, project) != 0))
			k++;
		if (k == out->count) {
			tf__usage_row__init(&out->row[out->count++]);
			out->row[k].month = month;
			out->row[k].user = whose;
			out->row[k].project = project;
		}
		out->row[k].jobs += from->jobs;
		out->row[k].attempts += from->attempts;
		out->row[k].running += from->running;
		out->row[k].cpu_s += from->cpu_s;
		out->row[k].gpu_s += from->gpu_s;
	}
}

static const char *cell_of(const Tf__UsageRow *r, enum column column)
{
	return column == BY_MONTH ? r->month : column == BY_USER ? r->user : r->project;
}

static void print_json(const struct sums *s, unsigned by)
{
	json_t *list = json_array();

	for (size_t i = 0; i < s->count; i++) {
		const Tf__UsageRow *r = &s->row[i];
		json_t *o = json_object();

		for (size_t k = 0; k < ARRAY_LEN(columns); k++)
			if (by & columns[k].column)
				json_object_set_new(o, columns[k].name,
						    json_string(cell_of(r, columns[k].column)));
		json_object_set_new(o, "gpu_hours", json_real(r->gpu_s / 3600));
		json_object_set_new(o, "cpu_hours", json_real(r->cpu_s / 3600));
		json_object_set_new(o, "jobs", json_integer((json_int_t)r->jobs));
		json_object_set_new(o, "attempts", json_integer((json_int_t)r->attempts));
		json_object_set_new(o, "running", json_integer((json_int_t)r->running));
		json_array_append_new(list, o);
	}
	json_print(list);
}

/* Names have no comma, quote or line end in them (proto/names.c), so nothing needs quoting. */
static void print_csv(const struct sums *s, unsigned by)
{
	for (size_t k = 0; k < ARRAY_LEN(columns); k++)
		if (by & columns[k].column)
			printf("%s,", columns[k].name);
	puts("gpu_hours,cpu_hours,jobs,attempts,running");
	for (size_t i = 0; i < s->count; i++) {
		const Tf__UsageRow *r = &s->row[i];

		for (size_t k = 0; k < ARRAY_LEN(columns); k++)
			if (by & columns[k].column)
				printf("%s,", cell_of(r, columns[k].column));
		printf("%.6f,%.6f,%" PRIu64 ",%" PRIu64 ",%" PRIu64 "\n", r->gpu_s / 3600,
		       r->cpu_s / 3600, r->jobs, r->attempts, r->running);
	}
}

static void print_table(const struct sums *s, unsigned by)
{
	static const char *const figures[] = { "GPU-hours", "CPU-hours", "jobs", "attempts",
					       "running" };
	const char *head[8], *cell[8];
	char align[9] = "", number[5][FORMAT_MAX];
	struct table t;
	size_t n = 0;

	for (size_t k = 0; k < ARRAY_LEN(columns); k++)
		if (by & columns[k].column) {
			head[n] = columns[k].name;
			align[n++] = 'l';
		}
	memcpy(head + n, figures, sizeof figures);
	memcpy(align + n, "rrrrr", 6);
	table_init(&t, align, head);
	for (size_t i = 0; i < s->count; i++) {
		const Tf__UsageRow *r = &s->row[i];

		n = 0;
		for (size_t k = 0; k < ARRAY_LEN(columns); k++)
			if (by & columns[k].column)
				cell[n++] = *cell_of(r, columns[k].column)
						    ? cell_of(r, columns[k].column)
						    : NULL;
		snprintf(number[0], FORMAT_MAX, "%.2f", r->gpu_s / 3600);
		snprintf(number[1], FORMAT_MAX, "%.2f", r->cpu_s / 3600);
		format_count(r->jobs, number[2]);
		format_count(r->attempts, number[3]);
		format_count(r->running, number[4]);
		for (int k = 0; k < 5; k++)
			cell[n++] = number[k];
		table_add(&t, cell);
	}
	table_print(&t);
}

int verb_usage(struct client *c, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UsageList m = TF__USAGE_LIST__INIT;
	struct sums sums = { 0 };
	Tf__Reply *reply;
	unsigned by;

	TRY(read_columns(args_text(&c->args, OPTION_BY), &by, e));
	m.since = (char *)args_text(&c->args, OPTION_SINCE);
	m.until = (char *)args_text(&c->args, OPTION_UNTIL);
	r.body_case = TF__REQUEST__BODY_USAGE;
	r.usage = &m;
	TRY(client_ask(c, &r, TF__REPLY__BODY_USAGE, &reply, e));
	sum_up(reply->usage, by, args_text(&c->args, OPTION_USER), &sums);
	if (args_has(&c->args, OPTION_JSON))
		print_json(&sums, by);
	else if (args_has(&c->args, OPTION_CSV))
		print_csv(&sums, by);
	else if (sums.count == 0)
		puts("nothing was used in that time");
	else
		print_table(&sums, by);
	xfree(sums.row);
	tf__reply__free_unpacked(reply, NULL);
	return STATUS_DONE;
}

/* ---- gc */

static int ask_gc(struct client *c, bool dry_run, const char *from, Tf__Reply **out, struct err *e)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Gc m = TF__GC__INIT;

	m.has_dry_run = m.dry_run = dry_run;
	m.from = (char *)from;
	r.body_case = TF__REQUEST__BODY_GC;
	r.gc = &m;
	return client_ask(c, &r, TF__REPLY__BODY_GC, out, e);
}

static json_t *json_of_item(const Tf__GcItem *item)
{
	json_t *o = json_object();

	json_object_set_new(o, "path", json_string(item->path));
	json_object_set_new(o, "bytes", json_integer((json_int_t)item->bytes));
	json_object_set_new(o, "why", json_string(item->why));
	return o;
}

int verb_gc(struct client *c, struct err *e)
{
	bool dry_run = args_has(&c->args, OPTION_DRY_RUN), json = args_has(&c->args, OPTION_JSON);
	json_t *list = json_array();
	uint64_t bytes = 0, items = 0;
	char *from = xstrdup(""), size[FORMAT_MAX];
	int rc = 0;

	while (rc == 0 && from) {
		Tf__Reply *reply = NULL;

		rc = ask_gc(c, dry_run, from, &reply, e);
		xfree(from);
		for (size_t i = 0; rc == 0 && i < reply->gc->n_item; i++) {
			const Tf__GcItem *item = reply->gc->item[i];

			format_bytes(item->bytes, size);
			if (json)
				json_array_append_new(list, json_of_item(item));
			else
				printf("%10s  %s  %s\n", size, item->path, item->why);
			items++;
			bytes += item->bytes;
		}
		from = rc == 0 ? xstrdup(reply->gc->next) : NULL;
		if (reply)
			tf__reply__free_unpacked(reply, NULL);
	}
	format_bytes(bytes, size);
	if (rc == 0 && json)
		json_print(json_incref(list));
	else if (rc == 0)
		printf("%" PRIu64 " files and folders %s, %s\n", items,
		       dry_run ? "would go" : "go", size);
	json_decref(list);
	return rc;
}
