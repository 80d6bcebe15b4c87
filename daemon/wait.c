/* SPDX-License-Identifier: Apache-2.0
 * Long polls: requests that are answered when a job changes or its log grows, or when their time is
 * up. They are bounded in number and time, so a client that went away costs little and not for
 * long. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <string.h>

static size_t waits_of(const struct daemon *d, const char *key)
{
	size_t n = 0;

	for (size_t i = 0; i < d->waits; i++)
		n += memcmp(d->wait[i].key, key, KEY_CHARS) == 0;
	return n;
}

int wait_add(struct daemon *d, const struct request *r, enum wait_kind kind, uint64_t job,
	     uint64_t since, uint32_t timeout_ms, struct err *e)
{
	struct wait *w;

	FAIL_IF(waits_of(d, r->key) >= LIMIT_USER_WAITS, e, TF_ELIMIT,
		"%u requests of this key wait already, the limit", LIMIT_USER_WAITS);
	FAIL_IF(d->waits >= LIMIT_WAITS, e, TF_ELIMIT, "%u requests wait already, the limit",
		LIMIT_WAITS);
	if (d->waits == d->wait_room) {
		d->wait_room = d->wait_room ? 2 * d->wait_room : 16;
		d->wait = xrealloc(d->wait, d->wait_room, sizeof *d->wait);
	}
	w = &d->wait[d->waits++];
	w->kind = kind;
	w->route_len = (uint8_t)r->route_len;
	memcpy(w->route, r->route, r->route_len);
	w->id = r->id;
	memcpy(w->key, r->key, sizeof w->key);
	w->job = job;
	w->since = since;
	w->until_ms = clock_mono_ms() + (timeout_ms < LIMIT_WAIT_MS ? timeout_ms : LIMIT_WAIT_MS);
	return 0;
}

static bool log_grew(struct daemon *d, const struct wait *w)
{
	char *path = daemon_path(d, "jobs/%llu/log", (unsigned long long)w->job);
	int64_t size = file_size(path);

	xfree(path);
	return size > 0 && (uint64_t)size > w->since;
}

static bool is_due(struct daemon *d, const struct wait *w, bool tick, int64_t now)
{
	const struct job *j = live_find(&d->live, w->job);

	if (!j || now >= w->until_ms)
		return true;
	return w->kind == WAIT_JOB ? j->seq > w->since : tick && log_grew(d, w);
}

static bool is_known(struct daemon *d, const char *key)
{
	Tf__UserRecord *user = NULL;
	bool known = user_get(d->state, key, &user, NULL) == 0;

	record_free(user);
	return known;
}

static void answer(struct daemon *d, const struct wait *w)
{
	struct request r = { .route_len = w->route_len, .id = w->id };

	memcpy(r.route, w->route, w->route_len);
	if (!is_known(d, w->key))
		reply_error(d, &r, TF_EREFUSED, "the key is not known here any more");
	else if (w->kind == WAIT_JOB)
		reply_job(d, &r, w->job, false);
	else
		reply_log(d, &r, w->job, w->since);
}

void wait_answer(struct daemon *d, bool tick)
{
	int64_t now = clock_mono_ms();
	size_t kept = 0;

	if (!tick && !d->announced)
		return;
	d->announced = false;
	for (size_t i = 0; i < d->waits; i++) {
		if (is_due(d, &d->wait[i], tick, now))
			answer(d, &d->wait[i]);
		else
			d->wait[kept++] = d->wait[i];
	}
	d->waits = kept;
}
