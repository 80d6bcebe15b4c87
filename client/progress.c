/* SPDX-License-Identifier: Apache-2.0
 * Progress on stderr: on a terminal one line redrawn in place, as wide as the terminal; elsewhere a
 * plain line when the phase changes, and now and then. */
#include "config.h"
#include "client/client.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define REDRAW_MS 100
#define PLAIN_MS 5000
#define BAR_MOST 30
#define BAR_LEAST 6

/* Metrics worth the room of a line, in this order. */
static const char *const shown[] = { "loss", "lm", "diffusion", "psnr", "bad" };

void progress_init(struct progress_view *v, bool quiet)
{
	*v = (struct progress_view){ .width = terminal_width(STDERR_FILENO), .quiet = quiet };
}

void progress_end(struct progress_view *v)
{
	if (v->drawn)
		fputc('\n', stderr);
	v->drawn = false;
	fflush(stderr);
}

/* "[=====>    ] " of the share done, at most `width` columns wide. */
static void put_bar(struct buf *out, double share, int width)
{
	int inside = width - 3, full;

	if (inside > BAR_MOST)
		inside = BAR_MOST;
	if (inside < BAR_LEAST)
		return;
	full = (int)(share * inside);
	buf_text(out, "[");
	for (int i = 0; i < inside; i++)
		buf_text(out, i < full ? "=" : i == full ? ">" : " ");
	buf_text(out, "] ");
}

static void put_counts(struct buf *out, uint64_t done, uint64_t total, const char *unit)
{
	char a[FORMAT_MAX], b[FORMAT_MAX];

	format_count(done, a);
	format_count(total, b);
	if (total)
		buf_printf(out, "%3.0f %%  %s/%s %s", 100.0 * (double)done / (double)total, a, b,
			   unit);
	else
		buf_printf(out, "%s %s", a, unit);
}

/* Rate, losses and time left. */
static void put_figures(struct buf *out, const Tf__Progress *p)
{
	char span[CLOCK_TEXT_MAX];

	if (p->has_rate && p->rate > 0)
		buf_printf(out, "  %.*f/s", p->rate < 10 ? 2 : 0, p->rate);
	for (size_t i = 0; i < ARRAY_LEN(shown); i++)
		for (size_t k = 0; k < p->n_metric; k++)
			if (strcmp(p->metric[k]->name, shown[i]) == 0)
				buf_printf(out, "  %s %.4g", shown[i], p->metric[k]->value);
	if (p->has_eta_s && isfinite(p->eta_s) && p->eta_s > 0) {
		clock_format_span(p->eta_s, span);
		buf_printf(out, "  ETA %s", span);
	}
}

/* Puts the line; `head` and `tail` are texts, a bar goes between them when there is room. */
static void draw(struct progress_view *v, const char *head, double share, const char *tail)
{
	struct buf line = BUF_INIT;
	char *safe;
	int room;

	buf_text(&line, head);
	room = v->width - 1 - text_width(head) - text_width(tail);
	if (share >= 0 && share <= 1)
		put_bar(&line, share, room);
	buf_text(&line, tail);
	safe = text_safe(line.data);
	while (*safe && text_width(safe) > v->width - 1)
		safe[strlen(safe) - 1] = 0;
	fprintf(stderr, "\r%s\033[K", safe);
	fflush(stderr);
	v->drawn = true;
	xfree(safe);
	buf_release(&line);
}

/* Whether now is the time for a line about `what`. */
static bool is_due(struct progress_view *v, const char *what, bool finished)
{
	int64_t now = clock_mono_ms();
	bool news = strncmp(v->last, what, sizeof v->last - 1) != 0;

	if (v->quiet || (!news && !finished &&
			 now - v->last_ms < (v->width ? REDRAW_MS : PLAIN_MS)))
		return false;
	if (v->width && news && v->drawn && *v->last)
		progress_end(v);
	v->last_ms = now;
	snprintf(v->last, sizeof v->last, "%s", what);
	return true;
}

static void show(struct progress_view *v, const char *head, double share, const char *tail)
{
	char *safe;

	if (v->width) {
		draw(v, head, share, tail);
		return;
	}
	safe = xasprintf("%s%s", head, tail);
	fprintf(stderr, "%.*s\n", (int)strlen(safe) - !*tail, safe); /* no space at the end */
	xfree(safe);
}

void progress_job(struct progress_view *v, const Tf__Job *j)
{
	const Tf__Progress *p = j->progress;
	bool working = p && !job_state_is_end(j->state) && j->state != TF__JOB_STATE__QUEUED &&
		       j->state != TF__JOB_STATE__WAITING;
	const char *phase = working && p->phase && *p->phase ? p->phase : job_state_name(j->state);
	uint64_t total = working && p->has_total ? p->total : 0;
	uint64_t done = working && p->has_done ? p->done : 0;
	struct buf tail = BUF_INIT;
	char *head, *safe;

	if (is_due(v, phase, total && done >= total && v->width)) {
		if (working && (p->has_done || total)) {
			put_counts(&tail, done, total, p->unit ? p->unit : "");
			put_figures(&tail, p);
		} else if (j->reason && *j->reason) {
			buf_printf(&tail, "(%s)", j->reason);
		}
		safe = text_safe(tail.data ? tail.data : "");
		head = xasprintf("job %llu %s ", (unsigned long long)j->id, phase);
		show(v, head, total ? (double)done / (double)total : -1, safe);
		xfree(head);
		xfree(safe);
	}
	buf_release(&tail);
}

void progress_transfer(struct progress_view *v, const char *what, uint64_t done, uint64_t total)
{
	char a[FORMAT_MAX], b[FORMAT_MAX], *head, *tail;
	double share = total ? (double)done / (double)total : 1;

	if (!is_due(v, what, done == total))
		return;
	format_bytes(done, a);
	format_bytes(total, b);
	head = xasprintf("%s ", what);
	tail = xasprintf("%3.0f %%  %s of %s", 100 * share, a, b);
	show(v, head, share, tail);
	xfree(head);
	xfree(tail);
	if (done == total)
		progress_end(v);
}
