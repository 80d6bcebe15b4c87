/* SPDX-License-Identifier: Apache-2.0
 * transfuse doctor: one line for each thing that must work, and for each that does not what to
 * do. */
#include "config.h"
#include "client/client.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLOW_SYNC_MS 50

struct doctor {
	struct client *client;
	int bad;
};

static void good(const char *what, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void bad(struct doctor *d, const char *what, const char *advice, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

static void print_line(const char *mark, const char *what, const char *fmt, va_list values)
{
	char text[ERR_TEXT_MAX + 256], *safe;

	vsnprintf(text, sizeof text, fmt, values);
	safe = text_safe(text);
	printf("%-4s %-10s %s\n", mark, what, safe);
	xfree(safe);
}

static void good(const char *what, const char *fmt, ...)
{
	va_list values;

	va_start(values, fmt);
	print_line("ok", what, fmt, values);
	va_end(values);
}

static void bad(struct doctor *d, const char *what, const char *advice, const char *fmt, ...)
{
	va_list values;

	va_start(values, fmt);
	print_line("BAD", what, fmt, values);
	va_end(values);
	printf("     %-10s -> %s\n", "", advice);
	d->bad++;
}

static const char *advice_for(int rc)
{
	switch (rc) {
	case TF_ENODAEMON:
		return "start it: transfused --state DIR, and set TRANSFUSE_STATE=DIR (or give "
		       "--endpoint)";
	case TF_ETIMEOUT:
		return "it is there but busy or stopped: look at its log";
	case TF_EREFUSED:
		return "let the administrator add the key that `transfuse key` prints, or "
		       "chmod 600 the key file";
	case TF_EVERSION:
		return "install the same version of transfuse and transfused";
	default:
		return "see `transfuse --help` for how the daemon and the keys are found";
	}
}

static void look_at_slots(struct doctor *d, const Tf__Status *s)
{
	size_t busy = 0;

	for (size_t i = 0; i < s->n_slot; i++)
		busy += s->slot[i]->job != 0;
	if (s->n_slot == 0)
		bad(d, "slots", "give transfused --slots N or --gpus N",
		    "there are none: no job runs");
	else
		good("slots", "%zu, %zu busy, first is %s on %s", s->n_slot, busy,
		     s->slot[0]->name, s->slot[0]->device);
	for (size_t i = 0; i < s->n_slot; i++)
		if (s->slot[i]->drained)
			bad(d, s->slot[i]->name,
			    "see `transfuse slots`; an administrator resumes it once it is well",
			    "drained: %s", s->slot[i]->reason ? s->slot[i]->reason : "unknown");
}

static void look_at_state(struct doctor *d, const Tf__Status *s)
{
	if (s->read_only)
		bad(d, "store", "mend or free the disk: the daemon goes on by itself then",
		    "the state cannot be written: %s", s->trouble ? s->trouble : "a commit failed");
	else
		good("store", "it can be written");
	if (s->trouble && !s->read_only)
		bad(d, "room", "free the disk: transfuse gc --dry-run says what could go", "%s",
		    s->trouble);
	if (s->draining)
		bad(d, "queue", "transfuse drain --resume",
		    "the daemon is draining: no job starts");
	else
		good("queue", "jobs start");
	if (s->has_sync_ms && s->sync_ms > SLOW_SYNC_MS)
		bad(d, "disk", "put the state folder on a faster disk: each submit waits so long",
		    "a small write and sync takes %.1f ms", s->sync_ms);
	else if (s->has_sync_ms)
		good("disk", "a small write and sync takes %.1f ms", s->sync_ms);
}

/* What the daemon says of itself; a fact whose value begins with "BAD" asks for attention. */
static void look_at_facts(struct doctor *d, const Tf__Status *s)
{
	for (size_t i = 0; i < s->n_fact; i++) {
		const char *value = s->fact[i]->value ? s->fact[i]->value : "";
		char *key = text_safe(s->fact[i]->key);

		if (strncmp(value, "BAD", 3) == 0)
			bad(d, key, "look at the daemon's log", "%s", value + 3);
		else
			good(key, "%s", value);
		xfree(key);
	}
}

static int look_at_daemon(struct doctor *d, struct err *e)
{
	const Tf__Status *s;
	Tf__Reply *reply;
	char age[FORMAT_MAX];
	int rc = ask_status(d->client, &reply, e);

	if (rc < 0) {
		bad(d, "daemon", advice_for(rc), "%s", e->text);
		return rc;
	}
	s = reply->status;
	format_age(s->started, age);
	good("daemon", "process %u, up %s", s->pid, age);
	good("user", "you are %s, role %s", s->user, s->role);
	look_at_state(d, s);
	look_at_slots(d, s);
	look_at_facts(d, s);
	tf__reply__free_unpacked(reply, NULL);
	return 0;
}

static int look_at_place(struct doctor *d, struct err *e)
{
	int rc = client_connect(d->client, e);

	if (rc < 0) {
		bad(d, "endpoint", advice_for(rc), "%s", e->text);
		return rc;
	}
	good("endpoint", "%s (by %s)", d->client->place->endpoint, d->client->place->found_by);
	good("keys", "%s, only yours to read", d->client->place->key_file);
	return 0;
}

int verb_doctor(struct client *c, struct err *e)
{
	struct doctor d = { c, 0 };
	int rc;

	good("client", "transfuse %s, protocol %u, ZeroMQ and CURVE", PACKAGE_VERSION,
	     TF_PROTOCOL_VERSION);
	rc = look_at_place(&d, e);
	if (rc == 0)
		rc = look_at_daemon(&d, e);
	if (d.bad)
		printf("%d thing%s to look at\n", d.bad, d.bad == 1 ? "" : "s");
	else
		puts("all is well");
	if (rc < 0)
		return status_of(c, rc);
	return d.bad ? STATUS_FAILED : STATUS_DONE;
}
