/* SPDX-License-Identifier: Apache-2.0
 * Reading the audit log for an administrator: from its end backwards, in a thread aside, within
 * bounds. The files are opened in the loop, so a rotation meanwhile changes nothing. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "lib/bound.h"
#include "lib/clock.h"
#include "lib/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK_BYTES (256u << 10)
#define LINE_BYTES_MAX 4096u
#define COLUMNS 9
#define ENTRIES_DEFAULT 50

struct reading {
	struct request request;
	int fd[LIMIT_AUDIT_FILES];
	int files;
	char since[CLOCK_TEXT_MAX]; /* "": from the beginning */
	char user[LIMIT_NAME_BYTES + 1];
	size_t limit, scanned;
	struct buf lines; /* those that match, newest first, NUL-ended */
	size_t count;
	bool full, over; /* a bound was reached; older ones are not wanted */
	int code;
	struct err err;
};

/* Cuts a line at its tabs; false when it is none of ours. */
static bool split(char *line, char *column[COLUMNS])
{
	for (int i = 0; i < COLUMNS; i++) {
		column[i] = line;
		line = line ? strchr(line, '\t') : NULL;
		if (!line)
			return i == COLUMNS - 1;
		*line++ = 0;
	}
	return true;
}

static void take_line(struct reading *g, const char *at, size_t len)
{
	char line[LINE_BYTES_MAX + 1], *column[COLUMNS];

	if (len == 0 || len > LINE_BYTES_MAX || g->full || g->over)
		return;
	memcpy(line, at, len);
	line[len] = 0;
	if (!split(line, column))
		return;
	if (*g->since && strcmp(column[0], g->since) < 0) {
		g->over = true;
		return;
	}
	if (*g->user && strcmp(column[1], g->user) != 0 && strcmp(column[2], g->user) != 0)
		return;
	if (g->count >= g->limit || g->lines.len > LIMIT_MESSAGE_BYTES / 2) {
		g->full = true;
		return;
	}
	buf_append(&g->lines, at, len);
	buf_append(&g->lines, "", 1);
	g->count++;
}

/* The lines of a block from its last to its second; what comes before its first newline stays. */
static size_t take_block(struct reading *g, const char *data, size_t len)
{
	size_t end = len;

	while (end > 0) {
		const char *newline = memrchr(data, '\n', end);

		if (!newline)
			return end;
		take_line(g, newline + 1, end - (size_t)(newline + 1 - data));
		end = (size_t)(newline - data);
	}
	return 0;
}

static int read_file(struct reading *g, int fd, struct err *e)
{
	char *data = xmalloc(BLOCK_BYTES + LINE_BYTES_MAX);
	size_t kept = 0;
	struct stat st;
	int rc = fstat(fd, &st) < 0 ? err_errno(e, "the audit log") : 0;
	off_t at = rc == 0 ? st.st_size : 0;

	while (rc == 0 && at > 0 && !g->full && !g->over) {
		size_t n = at < (off_t)BLOCK_BYTES ? (size_t)at : BLOCK_BYTES;

		at -= (off_t)n;
		memmove(data + n, data, kept);
		if (pread(fd, data, n, at) != (ssize_t)n)
			rc = err_errno(e, "the audit log");
		else
			kept = take_block(g, data, n + kept);
		if (kept > LINE_BYTES_MAX)
			kept = 0; /* no line of ours */
		g->scanned += n;
		if (g->scanned >= bound("audit-scan-bytes", LIMIT_AUDIT_SCAN_BYTES))
			g->full = true;
	}
	if (rc == 0 && at == 0)
		take_line(g, data, kept);
	xfree(data);
	return rc;
}

static void read_all(void *arg)
{
	struct reading *g = arg;

	for (int i = 0; i < g->files; i++) {
		if (g->code == 0 && !g->full && !g->over)
			g->code = read_file(g, g->fd[i], &g->err);
		close(g->fd[i]);
	}
}

/* ---------------------------------------------------------------- the answer */

static void fill(Tf__AuditEntry *a, char *line)
{
	char *column[COLUMNS];

	tf__audit_entry__init(a);
	CHECK(split(line, column));
	a->time = column[0];
	a->user = column[1];
	a->admin = column[2];
	a->key = column[3];
	a->from = column[4];
	a->action = column[5];
	a->subject = column[6];
	a->outcome = column[7];
	a->text = column[8];
}

static void answer(struct daemon *d, struct reading *g)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__Audit audit = TF__AUDIT__INIT;
	Tf__AuditEntry *entry = xcalloc(g->count + 1, sizeof *entry);
	char *at = g->lines.data;

	audit.entry = xcalloc(g->count + 1, sizeof *audit.entry);
	audit.n_entry = g->count;
	for (size_t i = g->count; i > 0; i--) { /* oldest first */
		size_t len = strlen(at);

		fill(&entry[i - 1], at);
		audit.entry[i - 1] = &entry[i - 1];
		at += len + 1;
	}
	audit.has_more = audit.more = g->full;
	reply.body_case = TF__REPLY__BODY_AUDIT;
	reply.audit = &audit;
	reply_put(d, &g->request, &reply);
	xfree(audit.entry);
	xfree(entry);
}

static void was_read(struct daemon *d, void *arg)
{
	struct reading *g = arg;

	d->audit.reading = false;
	if (g->code == 0)
		answer(d, g);
	else
		reply_error(d, &g->request, g->code, g->err.text);
	buf_release(&g->lines);
	xfree(g);
}

static int open_files(struct daemon *d, struct reading *g, struct err *e)
{
	for (int i = 0; i < LIMIT_AUDIT_FILES; i++) {
		char *path = i ? daemon_path(d, "audit/log.%d", i) : daemon_path(d, "audit/log");
		int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);

		xfree(path);
		if (fd >= 0)
			g->fd[g->files++] = fd;
		else if (errno != ENOENT)
			return err_errno(e, "the audit log");
	}
	return 0;
}

int handle_audit_read(struct daemon *d, struct request *r)
{
	const Tf__AuditRead *m = r->message->audit_read;
	struct reading *g;
	int rc;

	FAIL_IF(d->audit.reading, &r->err, TF_EBUSY, "the audit log is being read for another");
	FAIL_IF(m->limit > LIMIT_AUDIT_LISTED, &r->err, TF_ELIMIT,
		"%u entries of the audit log: the limit is %u", m->limit, LIMIT_AUDIT_LISTED);
	FAIL_IF(m->user && strlen(m->user) > LIMIT_NAME_BYTES, &r->err, TF_EINVALID,
		"a user's name of %zu bytes: at most %u are possible", strlen(m->user),
		LIMIT_NAME_BYTES);
	g = xcalloc(1, sizeof *g);
	g->request = *r;
	g->request.message = NULL;
	g->limit = m->limit ? m->limit : ENTRIES_DEFAULT;
	if (m->since > 0 && m->since < INT64_C(253402300800000)) /* the year 10000 */
		clock_format_ms(m->since, g->since);
	snprintf(g->user, sizeof g->user, "%s", m->user ? m->user : "");
	rc = open_files(d, g, &r->err);
	if (rc < 0) {
		while (g->files > 0)
			close(g->fd[--g->files]);
		xfree(g);
		return rc;
	}
	d->audit.reading = true;
	task_start(d, read_all, was_read, g);
	return 0;
}
