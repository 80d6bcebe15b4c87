/* SPDX-License-Identifier: Apache-2.0
 * The audit log: a line for every action of a person that writes, and for every refusal. The files
 * audit/log, audit/log.1 ... of the state folder, each bounded; the oldest goes.
 *
 * Lines gather in memory during a turn and are written by one write between the commit and the
 * answers: what was acknowledged is in the log also when the daemon is killed. The disk is synced
 * by another thread within a second, so a power cut may take the lines of the last one. A line
 * names what was asked for and never a prompt, a secret or the contents of a file: only the fields
 * of `shown` are taken from a request.
 *
 * A line: time, user, administrator who asked as them, key, address, action, subject, outcome and
 * sentence, divided by tabs; "-" is nothing. */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/bound.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/log.h"
#include "lib/mem.h"
#include "lib/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DONE "done"
#define KEY_SHOWN 8
#define TEXT_SHOWN 300
#define SUBJECT_SHOWN 300
#define VALUE_SHOWN 100 /* of one of its texts */
#define DEPTH_MAX 3
#define ITEMS_SHOWN 4

/* ---------------------------------------------------------------- the subject of a request */

/* Fields that may be shown, wherever in a request they are. */
static const char *const shown[] = {
	"job",      "kind",	"name",     "who",	"role",	  "key",     "upload",
	"size",     "resume",	"dry_run",  "dataset",	"tokenizer", "vae",  "model",
	"submit",   "spec",	"ingest",   "train",	"eval",	  "generate", "noop",
	"task",     "stop_daemon", "priority", "slot",	"path",	  "state",   "tag",
	"action",
};

static bool is_shown(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(shown); i++)
		if (strcmp(shown[i], name) == 0)
			return true;
	return false;
}

static void put_message(struct buf *b, const ProtobufCMessage *m, int depth);

static void put_value(struct buf *b, const ProtobufCFieldDescriptor *f, const void *at, int depth)
{
	const ProtobufCEnumValue *v;
	const char *text;

	switch (f->type) {
	case PROTOBUF_C_TYPE_STRING:
		text = *(char *const *)at;
		buf_printf(b, " %s=%.*s", f->name, (int)utf8_cut(text, VALUE_SHOWN), text);
		break;
	case PROTOBUF_C_TYPE_UINT64:
		buf_printf(b, " %s=%llu", f->name, (unsigned long long)*(const uint64_t *)at);
		break;
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_INT32:
		buf_printf(b, " %s=%d", f->name, *(const int *)at);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		buf_printf(b, " %s=%s", f->name,
			   *(const protobuf_c_boolean *)at ? "yes" : "no");
		break;
	case PROTOBUF_C_TYPE_ENUM:
		v = protobuf_c_enum_descriptor_get_value(f->descriptor, *(const int *)at);
		buf_printf(b, " %s=%s", f->name, v ? v->name : "?");
		break;
	case PROTOBUF_C_TYPE_MESSAGE:
		put_message(b, *(ProtobufCMessage *const *)at, depth + 1);
		break;
	default:
		break;
	}
}

static size_t value_size(const ProtobufCFieldDescriptor *f)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	case PROTOBUF_C_TYPE_UINT64:
		return sizeof(uint64_t);
	default:
		return sizeof(int);
	}
}

static bool is_set(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
	const void *quantifier = (const char *)m + f->quantifier_offset;

	if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF && *(const uint32_t *)quantifier != f->id)
		return false;
	if (f->label == PROTOBUF_C_LABEL_REPEATED)
		return *(const size_t *)quantifier > 0;
	if (f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_MESSAGE)
		return *(const void *const *)((const char *)m + f->offset) != NULL;
	if (f->label == PROTOBUF_C_LABEL_OPTIONAL && !(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
		return *(const protobuf_c_boolean *)quantifier;
	return true;
}

static void put_message(struct buf *b, const ProtobufCMessage *m, int depth)
{
	for (unsigned i = 0; depth < DEPTH_MAX && i < m->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
		const char *at = (const char *)m + f->offset;
		size_t n, size = value_size(f);

		if (!is_set(m, f) || !is_shown(f->name)) /* few fields are set */
			continue;
		if (f->label != PROTOBUF_C_LABEL_REPEATED) {
			put_value(b, f, at, depth);
			continue;
		}
		n = *(const size_t *)((const char *)m + f->quantifier_offset);
		at = *(const char *const *)at;
		for (size_t k = 0; k < n && k < ITEMS_SHOWN; k++)
			put_value(b, f, at + k * size, depth);
		if (n > ITEMS_SHOWN)
			buf_printf(b, " (%zu of them)", n);
	}
}

/* What a request is about, by the field of its body. */
static void put_subject(struct buf *b, const Tf__Request *m)
{
	const ProtobufCFieldDescriptor *f =
		m ? protobuf_c_message_descriptor_get_field(&tf__request__descriptor, m->body_case)
		  : NULL;

	if (f && f->type == PROTOBUF_C_TYPE_MESSAGE)
		put_message(b, *(ProtobufCMessage *const *)((const char *)m + f->offset), 0);
}

/* ---------------------------------------------------------------- lines */

/* One column: what would break a line is shown as '?'. */
static void put_column(struct buf *b, const char *text, size_t most)
{
	size_t n = utf8_cut(text, most), at;

	buf_text(b, "\t");
	at = b->len;
	buf_append(b, *text ? text : "-", *text ? n : 1);
	for (; at < b->len; at++)
		if ((unsigned char)b->data[at] < 32 || b->data[at] == 127)
			b->data[at] = '?';
}

static void add(struct daemon *d, const struct request *r, const char *action, const char *subject,
		int code, const char *text)
{
	struct audit *a = &d->audit;
	char when[CLOCK_TEXT_MAX], who[40];
	struct audit_mark *mark;

	clock_format_ms(clock_wall_ms(), when);
	snprintf(who, sizeof who, "%.*s", KEY_SHOWN, r->key);
	buf_text(&a->lines, when);
	put_column(&a->lines, r->role == ROLE_WORKER ? "(worker)" : r->user, LIMIT_NAME_BYTES);
	put_column(&a->lines, r->admin, LIMIT_NAME_BYTES);
	put_column(&a->lines, who, KEY_SHOWN);
	put_column(&a->lines, r->from, sizeof r->from);
	put_column(&a->lines, action, LIMIT_NAME_BYTES);
	put_column(&a->lines, subject, SUBJECT_SHOWN);
	if (code == 0) {
		a->mark = xrealloc(a->mark, a->marks + 1, sizeof *a->mark);
		mark = &a->mark[a->marks++];
		mark->at = a->lines.len + 1;
	}
	put_column(&a->lines, code == 0 ? DONE : err_name(code), 40);
	put_column(&a->lines, code == 0 ? "" : text, TEXT_SHOWN);
	buf_text(&a->lines, "\n");
}

static bool is_full(const struct audit *a)
{
	return a->lines.len > bound("audit-pending-bytes", LIMIT_AUDIT_PENDING_BYTES);
}

/* How many lines are not there, in a line in their place. */
static void add_lost(struct daemon *d)
{
	struct request nobody = { .user = "" };
	char text[100];

	if (d->audit.lost == 0 || is_full(&d->audit))
		return;
	snprintf(text, sizeof text, "%llu more lines are left out here",
		 (unsigned long long)d->audit.lost);
	d->audit.lost = 0;
	add(d, &nobody, "audit", "", TF_ELIMIT, text);
}

/* Refusals of another second than the last one's are counted anew. */
static void turn_second(struct daemon *d)
{
	int64_t second = clock_mono_ms() / 1000;

	if (second == d->audit.second)
		return;
	add_lost(d);
	d->audit.second = second;
	d->audit.refusals = 0;
}

static bool may_add(struct daemon *d, bool refusal)
{
	struct audit *a = &d->audit;

	turn_second(d);
	if (!is_full(a) && (!refusal || a->refusals++ < LIMIT_AUDIT_REFUSALS))
		return true;
	a->lost++;
	return false;
}

void audit_note(struct daemon *d, const struct request *r, const char *action, int code,
		const char *text)
{
	struct buf subject = BUF_INIT;

	if (!may_add(d, code < 0))
		return;
	put_subject(&subject, r->message);
	if (r->made)
		buf_printf(&subject, " job=%llu", (unsigned long long)r->made);
	if (r->made_more)
		buf_printf(&subject, " and %zu more", r->made_more);
	add(d, r, action, subject.data && subject.len ? subject.data + 1 : "", code, text);
	buf_release(&subject);
}

/* ---------------------------------------------------------------- the files */

static char *file_path(const struct daemon *d, int number)
{
	return number ? daemon_path(d, "audit/log.%d", number) : daemon_path(d, "audit/log");
}

static int open_current(struct daemon *d, struct err *e)
{
	struct audit *a = &d->audit;
	char *path = file_path(d, 0), last = '\n';
	struct stat st;
	int rc = 0;

	a->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (a->fd < 0 || fstat(a->fd, &st) < 0)
		rc = err_errno(e, "%s", path);
	if (rc == 0) {
		a->size = (uint64_t)st.st_size;
		if (a->size > 0 && pread(a->fd, &last, 1, (off_t)a->size - 1) == 1 &&
		    last != '\n')
			buf_text(&a->lines, "\n"); /* a power cut left half a line */
	}
	xfree(path);
	return rc;
}

int audit_open(struct daemon *d, struct err *e)
{
	return open_current(d, e);
}

/* log becomes log.1 and so on; the last one is gone. */
static void rotate(struct daemon *d)
{
	struct audit *a = &d->audit;
	struct err e = ERR_INIT;

	if (fdatasync(a->fd) < 0)
		log_error("the audit log is not synced: %s", strerror(errno));
	close(a->fd);
	for (int i = LIMIT_AUDIT_FILES - 1; i > 0; i--) {
		char *from = file_path(d, i - 1), *to = file_path(d, i);

		if (rename(from, to) < 0 && errno != ENOENT)
			log_error("%s cannot be renamed: %s", from, strerror(errno));
		xfree(from);
		xfree(to);
	}
	if (open_current(d, &e) < 0)
		log_error("the audit log cannot go on: %s", e.text);
}

/* The commit failed: what was done may not have been. */
static void mark_unknown(struct audit *a)
{
	struct buf b = BUF_INIT;
	size_t from = 0;

	for (size_t i = 0; i < a->marks; i++) {
		buf_append(&b, a->lines.data + from, a->mark[i].at - from);
		buf_text(&b, err_name(TF_EUNKNOWN));
		from = a->mark[i].at + strlen(DONE);
	}
	buf_append(&b, a->lines.data + from, a->lines.len - from);
	buf_release(&a->lines);
	a->lines = b;
}

static int write_lines(struct audit *a)
{
	size_t done = 0;

	while (done < a->lines.len) {
		ssize_t n = pwrite(a->fd, a->lines.data + done, a->lines.len - done,
				   (off_t)(a->size + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1; /* all of it once more in the next turn, at the same place */
		done += (size_t)n;
	}
	a->size += done;
	buf_clear(&a->lines);
	return 0;
}

void audit_write(struct daemon *d, bool committed)
{
	struct audit *a = &d->audit;

	if (!committed && a->marks > 0)
		mark_unknown(a);
	a->marks = 0;
	turn_second(d);
	if (a->lines.len == 0)
		return;
	if (a->fd < 0 || write_lines(a) < 0) {
		if (!a->failing)
			log_error("the audit log cannot be written: %s", strerror(errno));
		a->failing = true;
		return;
	}
	a->failing = false;
	a->dirty = true;
	if (a->size >= ((uint64_t)d->options.audit_mib << 20) / LIMIT_AUDIT_FILES)
		rotate(d);
}

/* ---------------------------------------------------------------- syncing */

static void sync_file(void *arg)
{
	int *fd = arg;

	if (fdatasync(*fd) < 0)
		log_error("the audit log is not synced: %s", strerror(errno));
	close(*fd);
}

static void synced(struct daemon *d, void *arg)
{
	d->audit.syncing = false;
	xfree_(arg);
}

void audit_tick(struct daemon *d)
{
	struct audit *a = &d->audit;
	int *fd;

	if (a->fd < 0) {
		struct err e = ERR_INIT;

		if (open_current(d, &e) < 0)
			return; /* it was said */
	}
	if (!a->dirty || a->syncing)
		return;
	fd = xmalloc(sizeof *fd);
	*fd = fcntl(a->fd, F_DUPFD_CLOEXEC, 10);
	if (*fd < 0) {
		xfree(fd);
		return; /* the next tick */
	}
	a->dirty = false;
	a->syncing = true;
	task_start(d, sync_file, synced, fd);
}

void audit_close(struct daemon *d)
{
	struct audit *a = &d->audit;

	if (a->fd >= 0) {
		audit_write(d, true);
		fdatasync(a->fd);
		close(a->fd);
	}
	a->fd = -1;
	buf_release(&a->lines);
	xfree(a->mark);
}
