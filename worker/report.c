/* SPDX-License-Identifier: Apache-2.0
 * Progress with rate and time to go, the metrics file, and the summary of a job; see worker.h and
 * report.h. All of it in the main thread: the link gets packed copies. */
#include "config.h"
#include "worker/report.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "worker/link.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REPORT_INTERVAL_NS 250000000
#define RATE_MEMORY_S 10.0 /* the rate is an average that forgets over this time */
#define FACTS_MAX 64

struct figure {
	char *name;
	double value;
};

struct figures {
	struct figure list[LIMIT_METRICS];
	size_t count;
};

struct report {
	char *phase;
	uint64_t done; /* as last sent */
	int64_t sent_ns;
	double rate; /* units a second; 0: unknown yet */
	struct figures gauges, results;
	struct figures timing; /* milliseconds of the stages that are over */
	const char *stage;     /* the one at hand, or NULL */
	int64_t stage_ns;      /* since when */
	struct {
		char *key, *value;
	} fact[FACTS_MAX];
	size_t facts;
	bool has_artefact;
	Tf__ArtefactKind kind;
	char *hash;
	int metrics_fd; /* -1: not open yet; -2: failed or full, said once */
	uint64_t metrics_bytes;
};

struct report *report_new(void)
{
	struct report *r = xcalloc(1, sizeof *r);

	r->metrics_fd = -1;
	return r;
}

static void figures_release(struct figures *f)
{
	for (size_t i = 0; i < f->count; i++)
		xfree(f->list[i].name);
}

void report_free(struct report *r)
{
	if (!r)
		return;
	if (r->metrics_fd >= 0)
		close(r->metrics_fd);
	figures_release(&r->gauges);
	figures_release(&r->results);
	figures_release(&r->timing);
	for (size_t i = 0; i < r->facts; i++) {
		xfree(r->fact[i].key);
		xfree(r->fact[i].value);
	}
	xfree(r->phase);
	xfree(r->hash);
	xfree(r);
}

/* What exceeds the wire's limit is dropped: figures are for people. */
static double *figures_at(struct figures *f, const char *name)
{
	static double nowhere;

	for (size_t i = 0; i < f->count; i++)
		if (strcmp(f->list[i].name, name) == 0)
			return &f->list[i].value;
	if (f->count == LIMIT_METRICS)
		return &nowhere;
	f->list[f->count] = (struct figure) { xstrdup(name), 0 };
	return &f->list[f->count++].value;
}

void job_gauge(struct job *job, const char *name, double value)
{
	*figures_at(&job->state->gauges, name) = value;
}

void job_result(struct job *job, const char *name, double value)
{
	*figures_at(&job->state->results, name) = value;
}

void job_stage(struct job *job, const char *stage)
{
	struct report *r = job->state;
	int64_t now = clock_mono_ns();

	if (r->stage)
		*figures_at(&r->timing, r->stage) += (double)(now - r->stage_ns) / 1e6;
	r->stage = stage;
	r->stage_ns = now;
}

void job_stage_within(struct job *job, const char *stage)
{
	if (job->state->stage)
		job_stage(job, stage);
}

struct metrics {
	Tf__Metric metric[LIMIT_METRICS], *list[LIMIT_METRICS];
};

/* Figures as they are sent; names are borrowed. */
static Tf__Metric **metrics_of(const struct figures *f, struct metrics *m)
{
	for (size_t i = 0; i < f->count; i++) {
		tf__metric__init(&m->metric[i]);
		m->metric[i].name = f->list[i].name;
		m->metric[i].value = f->list[i].value;
		m->list[i] = &m->metric[i];
	}
	return m->list;
}

/* ---- progress */

/* Updates the average rate; the first figure of a phase counts whole. */
static void measure_rate(struct report *r, uint64_t done, double seconds)
{
	double now, keep;

	if (seconds <= 0 || done < r->done)
		return;
	now = (double)(done - r->done) / seconds;
	keep = r->rate > 0 ? exp(-seconds / RATE_MEMORY_S) : 0;
	r->rate = keep * r->rate + (1 - keep) * now;
}

static void send_progress(struct job *job, uint64_t done, uint64_t total, const char *unit)
{
	struct report *r = job->state;
	Tf__Progress p = TF__PROGRESS__INIT;
	struct metrics gauges;

	p.phase = r->phase;
	p.has_done = true;
	p.done = done;
	p.has_total = total > 0;
	p.total = total;
	p.unit = (char *)unit;
	p.has_rate = r->rate > 0;
	p.rate = r->rate;
	p.has_eta_s = r->rate > 0 && total >= done && total > 0;
	p.eta_s = p.has_eta_s ? (double)(total - done) / r->rate : 0;
	p.n_metric = r->gauges.count;
	p.metric = metrics_of(&r->gauges, &gauges);
	link_progress(job->link, &p);
}

void job_report(struct job *job, const char *phase, uint64_t done, uint64_t total,
		const char *unit)
{
	struct report *r = job->state;
	int64_t now = clock_mono_ns();
	bool new_phase = !r->phase || strcmp(r->phase, phase) != 0;

	if (!new_phase && now - r->sent_ns < REPORT_INTERVAL_NS && (total == 0 || done != total))
		return;
	if (new_phase) {
		xfree(r->phase);
		r->phase = xstrdup(phase);
		r->rate = 0;
		log_info("phase=%s total=%" PRIu64 " %ss", phase, total, unit);
	} else {
		measure_rate(r, done, (double)(now - r->sent_ns) / 1e9);
	}
	r->done = done;
	r->sent_ns = now;
	if (job->link)
		send_progress(job, done, total, unit);
}

/* ---- metrics.jsonl */

static int open_metrics(struct job *job)
{
	struct report *r = job->state;
	char *path;

	if (r->metrics_fd != -1)
		return r->metrics_fd;
	path = job_path(job->folder, "metrics.jsonl");
	r->metrics_fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	r->metrics_bytes = (uint64_t)(file_size(path) > 0 ? file_size(path) : 0);
	if (r->metrics_fd < 0) {
		log_error("%s: %s; metrics are not written", path, strerror(errno));
		r->metrics_fd = -2;
	}
	xfree(path);
	return r->metrics_fd;
}

void job_metrics(struct job *job, uint64_t step, const struct job_metric *metric, size_t count)
{
	struct report *r = job->state;
	struct buf line = BUF_INIT;
	struct err e = ERR_INIT;
	int fd = open_metrics(job);

	if (fd < 0)
		return;
	buf_printf(&line, "{\"step\":%" PRIu64, step);
	for (size_t i = 0; i < count; i++) {
		if (isfinite(metric[i].value))
			buf_printf(&line, ",\"%s\":%.9g", metric[i].name, metric[i].value);
		else
			buf_printf(&line, ",\"%s\":null", metric[i].name);
	}
	buf_text(&line, "}\n");
	r->metrics_bytes += line.len;
	if (r->metrics_bytes > LIMIT_METRICS_BYTES)
		err_set(&e, TF_ELIMIT, "metrics.jsonl would be longer than %u bytes, the limit",
			LIMIT_METRICS_BYTES);
	else
		file_write_all(fd, line.data, line.len, "metrics.jsonl", &e);
	if (e.code < 0) {
		log_error("%s; metrics are no longer written", e.text);
		close(fd);
		r->metrics_fd = -2;
	}
	buf_release(&line);
}

/* The length of the lines whose step is at most `step`; a last line without its end is not whole.
 */
static size_t kept_bytes(const struct buf *text, uint64_t step)
{
	size_t at = 0;

	while (at < text->len) {
		const char *end = memchr(text->data + at, '\n', text->len - at);
		uint64_t line_step;

		if (!end || sscanf(text->data + at, "{\"step\":%" SCNu64, &line_step) != 1 ||
		    line_step > step)
			break;
		at = (size_t)(end - text->data) + 1;
	}
	return at;
}

int job_metrics_rewind(struct job *job, uint64_t step, struct err *e)
{
	char *path = job_path(job->folder, "metrics.jsonl");
	struct buf text = BUF_INIT;
	int rc = 0;

	CHECK(job->state->metrics_fd == -1);
	if (file_exists(path)) {
		rc = file_read(path, (size_t)1 << 32, &text, e);
		if (rc == 0 && truncate(path, (off_t)kept_bytes(&text, step)) < 0)
			rc = err_errno(e, "%s", path);
	}
	buf_release(&text);
	xfree(path);
	return rc;
}

/* ---- the outcome */

void job_artefact(struct job *job, Tf__ArtefactKind kind, const char *hash)
{
	struct report *r = job->state;

	r->has_artefact = true;
	r->kind = kind;
	xfree(r->hash);
	r->hash = xstrdup(hash);
}

void job_fact(struct job *job, const char *key, const char *fmt, ...)
{
	struct report *r = job->state;
	struct buf value = BUF_INIT;
	char text[ERR_TEXT_MAX];
	va_list ap;
	size_t i;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	for (i = 0; i < r->facts && strcmp(r->fact[i].key, key) != 0; i++)
		;
	CHECK(i < FACTS_MAX);
	if (i == r->facts)
		r->fact[r->facts++].key = xstrdup(key);
	else
		xfree(r->fact[i].value);
	buf_text(&value, text);
	r->fact[i].value = buf_detach(&value);
}

static void pack(const Tf__Outcome *o, struct buf *out)
{
	size_t len = tf__outcome__get_packed_size(o);

	buf_reserve(out, len);
	tf__outcome__pack(o, (uint8_t *)out->data + out->len);
	out->len += len;
}

void report_outcome(struct report *r, int code, const char *text, Tf__Failure failure,
		    struct buf *out)
{
	Tf__Outcome o = TF__OUTCOME__INIT;
	Tf__Artefact artefact = TF__ARTEFACT__INIT;
	Tf__KeyValue fact[FACTS_MAX], *facts[FACTS_MAX];
	struct metrics results, timing;

	o.version = TF_PROTOCOL_VERSION;
	o.code = code;
	o.text = (char *)text;
	o.has_failure = true;
	o.failure = failure;
	for (size_t i = 0; i < r->facts; i++) {
		tf__key_value__init(&fact[i]);
		fact[i].key = r->fact[i].key;
		fact[i].value = r->fact[i].value;
		facts[i] = &fact[i];
	}
	artefact.kind = r->kind;
	artefact.name = ""; /* the daemon knows name and id */
	artefact.id = "";
	artefact.hash = r->hash;
	artefact.n_fact = r->facts;
	artefact.fact = facts;
	o.artefact = r->has_artefact ? &artefact : NULL;
	o.n_result = r->results.count;
	o.result = metrics_of(&r->results, &results);
	o.n_timing = r->timing.count;
	o.timing = metrics_of(&r->timing, &timing);
	pack(&o, out);
}

/* The job's folder and its name among the others. */
static int sync_names(const struct job *job, struct err *e)
{
	TRY(file_fsync(job->folder, e));
	return file_fsync_parent(job->folder, e);
}

/* Straight in it: an older daemon wants a folder of the attempt between. The paths are compared as
 * they are written; of two spellings of one folder it is synced twice, which does no harm. */
static bool lies_in_folder(const struct job *job)
{
	size_t len = strlen(job->folder);

	return strncmp(job->outcome, job->folder, len) == 0 &&
	       strrchr(job->outcome, '/') == job->outcome + len;
}

int report_sync_outcome(const struct job *job, struct err *e)
{
	TRY(file_fsync(job->outcome, e));
	if (!lies_in_folder(job))
		TRY(file_fsync_parent(job->outcome, e));
	return sync_names(job, e);
}

int report_sync_results(const struct job *job, struct err *e)
{
	/* rmdir says without reading it whether anything is in there */
	if (!job->results || rmdir(job->results) == 0 || errno == ENOENT)
		return 0;
	return sync_names(job, e);
}
