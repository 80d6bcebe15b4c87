/* SPDX-License-Identifier: Apache-2.0
 * Lines of waiting requests; see inbox.h. Rate and share are kept in the same way: a time until
 * which what was used is paid off, and something may come while it is no farther than a burst away.
 * Whoever used up the share rests until all is paid off: many requests come in few turns then, for
 * each turn has a commit that the others would wait for. */
#include "config.h"
#include "daemon/inbox.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

struct incoming {
	struct wire_message message;
	struct incoming *next;
};

struct line {
	char user[LIMIT_NAME_BYTES + 1];
	struct incoming *first, **last;
	size_t count;
	uint64_t bytes;
	int64_t seen;       /* its last request */
	int64_t rate_until; /* paid off then, at so many a second */
	int64_t time_until; /* and at a share of the time */
	bool resting;       /* until then */
};

struct inbox {
	struct line **line;
	size_t lines;
	size_t next;        /* whose turn it is */
	struct line *taken; /* of the last one */
};

struct inbox *inbox_new(void)
{
	return xcalloc(1, sizeof(struct inbox));
}

static struct line *line_of(struct inbox *b, const char *user)
{
	struct line *l;

	for (size_t i = 0; i < b->lines; i++)
		if (strcmp(b->line[i]->user, user) == 0)
			return b->line[i];
	l = xcalloc(1, sizeof *l);
	snprintf(l->user, sizeof l->user, "%s", user);
	l->last = &l->first;
	b->line = xrealloc(b->line, b->lines + 1, sizeof *b->line);
	b->line[b->lines++] = l;
	return l;
}

void inbox_expect(struct inbox *b, const char *user, int64_t now)
{
	line_of(b, user)->seen = now;
}

int inbox_put(struct inbox *b, const char *user, const struct inbox_bounds *bounds,
	      struct wire_message *m, int64_t now, struct err *e)
{
	struct line *l = line_of(b, user);
	size_t size = zmq_msg_size(&m->body);
	struct incoming *one;

	l->seen = now;
	FAIL_IF(l->count >= bounds->requests, e, TF_ELIMIT,
		"%zu requests of %s wait already, the limit", l->count, user);
	FAIL_IF(l->bytes + size > bounds->bytes, e, TF_ELIMIT,
		"requests of %s with %llu bytes wait already, the limit is %llu MiB "
		"(option user_pending_mib)",
		user, (unsigned long long)l->bytes, (unsigned long long)bounds->bytes >> 20);
	one = xmalloc(sizeof *one);
	wire_message_move(&one->message, m);
	one->next = NULL;
	*l->last = one;
	l->last = &one->next;
	l->count++;
	l->bytes += size;
	return 0;
}

static void pop(struct line *l, struct wire_message *out)
{
	struct incoming *one = l->first;

	l->first = one->next;
	if (!l->first)
		l->last = &l->first;
	l->count--;
	l->bytes -= zmq_msg_size(&one->message.body);
	wire_message_move(out, &one->message);
	xfree(one);
}

bool inbox_is_shared(const struct inbox *b, int64_t now)
{
	size_t about = 0;

	for (size_t i = 0; i < b->lines; i++)
		about += b->line[i]->first || now - b->line[i]->seen < INBOX_ABOUT_NS;
	return about > 1;
}

/* Until the line's first may be handled. */
static int64_t delay(const struct line *l, bool shared, int64_t now)
{
	int64_t rate = l->rate_until - INBOX_BURST_NS - now;
	int64_t time = shared && l->resting ? l->time_until - now : 0;
	int64_t most = rate > time ? rate : time;

	return most > 0 ? most : 0;
}

static void take_first(struct line *l, const struct inbox_bounds *bounds, struct wire_message *out,
		       int64_t now)
{
	pop(l, out);
	if (l->rate_until < now)
		l->rate_until = now;
	if (bounds->per_second > 0)
		l->rate_until += 1000000000 / bounds->per_second;
}

bool inbox_take(struct inbox *b, const struct inbox_bounds *bounds, struct wire_message *out,
		int64_t now)
{
	bool shared = inbox_is_shared(b, now);

	for (size_t i = 0; i < b->lines; i++) {
		size_t at = (b->next + i) % b->lines;
		struct line *l = b->line[at];

		if (!l->first || delay(l, shared, now) > 0)
			continue;
		b->next = at + 1;
		b->taken = l;
		take_first(l, bounds, out, now);
		return true;
	}
	return false;
}

/* What was used while nobody else was about counts no longer: at most the last request does. */
static void charge(struct line *l, int64_t took, int64_t now)
{
	int64_t cost = INBOX_SHARE * (took + (l->first ? INBOX_REQUEST_NS : 0));
	int64_t burst = INBOX_SHARE * INBOX_QUANTUM_NS;

	if (l->time_until < now)
		l->time_until = now;
	l->time_until += cost;
	if (l->time_until > now + burst + cost)
		l->time_until = now + burst + cost;
	l->resting = l->time_until > now + burst;
}

void inbox_charge(struct inbox *b, int64_t took, int64_t now)
{
	if (b->taken)
		charge(b->taken, took, now);
}

bool inbox_take_beside(struct inbox *b, const struct inbox_bounds *bounds,
		       bool (*fits)(void *arg, const struct wire_message *m), void *arg, size_t *at,
		       struct wire_message *out, int64_t took, int64_t now)
{
	while (*at < b->lines) {
		struct line *l = b->line[(*at)++];

		if (l == b->taken || !l->first || delay(l, true, now) > 0 ||
		    !fits(arg, &l->first->message))
			continue;
		take_first(l, bounds, out, now);
		charge(l, took, now);
		return true;
	}
	return false;
}

size_t inbox_ready(const struct inbox *b, int64_t now)
{
	bool shared = inbox_is_shared(b, now);
	size_t n = 0;

	for (size_t i = 0; i < b->lines; i++)
		n += delay(b->line[i], shared, now) == 0 ? b->line[i]->count : 0;
	return n;
}

int64_t inbox_wait_ns(const struct inbox *b, int64_t now)
{
	bool shared = inbox_is_shared(b, now);
	int64_t least = INT64_MAX;

	for (size_t i = 0; i < b->lines; i++) {
		int64_t wait = b->line[i]->first ? delay(b->line[i], shared, now) : INT64_MAX;

		least = wait < least ? wait : least;
	}
	return least;
}

static void line_free(struct line *l)
{
	struct wire_message m;

	while (l->first) {
		pop(l, &m);
		wire_message_close(&m);
	}
	xfree(l);
}

void inbox_tick(struct inbox *b, int64_t now)
{
	size_t kept = 0;

	for (size_t i = 0; i < b->lines; i++)
		if (b->line[i]->first || now - b->line[i]->seen < INBOX_FORGET_NS)
			b->line[kept++] = b->line[i];
		else
			line_free(b->line[i]);
	b->lines = kept;
	b->taken = NULL;
}

void inbox_free(struct inbox *b)
{
	if (!b)
		return;
	for (size_t i = 0; i < b->lines; i++)
		line_free(b->line[i]);
	xfree(b->line);
	xfree(b);
}
