/* SPDX-License-Identifier: Apache-2.0
 * The journal; see journal.h. The file is written whole when it is made, and read whole when it is
 * opened: later writes need neither new blocks nor a read. */
#include "config.h"
#include "store/journal.h"
#include "lib/buf.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
#include "store/state.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
#include <xxhash.h>

#define HEAD_BYTES 32
#define HASH_AT 24
#define NOTED_KEPT_BYTES (64u << 10) /* of memory between commits */
#define CHANGE_BYTES 8 /* table, deletes, bytes of the key, bytes of the value (4) before both */

struct journal {
	char *path;
	int fd;
	uint64_t epoch, place; /* of the next record */
	size_t at;             /* where it comes */
	struct buf noted;      /* it, beginning with room for its head */
	struct buf part;       /* changes that are not yet of it */
};

static void note_nothing(struct journal *j)
{
	static const char head[HEAD_BYTES];

	if (j->noted.room > NOTED_KEPT_BYTES)
		buf_release(&j->noted);
	buf_clear(&j->noted);
	buf_append(&j->noted, head, sizeof head);
}

int journal_open(const char *folder, struct journal **out, struct err *e)
{
	struct journal *j = xcalloc(1, sizeof *j);
	int rc = 0;

	j->path = xasprintf("%s/" JOURNAL_FILE, folder);
	if (file_size(j->path) != LIMIT_JOURNAL_BYTES) {
		char *zeros = xcalloc(1, LIMIT_JOURNAL_BYTES);

		rc = file_write(j->path, zeros, LIMIT_JOURNAL_BYTES, 0600, e);
		xfree(zeros);
	}
	j->fd = rc == 0 ? open(j->path, O_RDWR | O_DSYNC | O_CLOEXEC) : -1;
	if (rc == 0 && j->fd < 0)
		rc = err_errno(e, "%s", j->path);
	note_nothing(j);
	if (rc < 0)
		journal_close(j);
	else
		*out = j;
	return rc;
}

void journal_close(struct journal *j)
{
	if (!j)
		return;
	if (j->fd >= 0)
		close(j->fd);
	buf_release(&j->noted);
	buf_release(&j->part);
	xfree(j->path);
	xfree(j);
}

uint64_t journal_new_epoch(void)
{
	uint64_t epoch = 0;

	while (epoch == 0)
		CHECK(getrandom(&epoch, sizeof epoch, 0) == sizeof epoch);
	return epoch;
}

void journal_begin(struct journal *j, uint64_t epoch)
{
	j->epoch = epoch;
	j->place = j->at = 0;
	note_nothing(j);
}

bool journal_empty(const struct journal *j)
{
	return j->place == 0;
}

/* ---------------------------------------------------------------- reading */

static uint64_t hash_of(const char *record, size_t len)
{
	return XXH64(record + HEAD_BYTES, len - HEAD_BYTES, XXH64(record, HASH_AT, 0));
}

/* The length of the record that comes next; 0: there is none. */
static size_t record_at(const struct journal *j, const char *data, size_t room)
{
	uint64_t len;

	if (room < HEAD_BYTES || state_key_number(data) != j->epoch ||
	    state_key_number(data + 8) != j->place)
		return 0;
	len = state_key_number(data + 16);
	if (len < HEAD_BYTES || len > room)
		return 0;
	return state_key_number(data + HASH_AT) == hash_of(data, len) ? (size_t)len : 0;
}

static uint32_t get_number(const char *from, int bytes)
{
	uint32_t number = 0;

	for (int i = 0; i < bytes; i++)
		number = number << 8 | (uint8_t)from[i];
	return number;
}

static int each_change(const struct journal *j, const char *p, const char *end, journal_fn fn,
		       void *arg, struct err *e)
{
	while (end - p >= CHANGE_BYTES) {
		size_t key_len = get_number(p + 2, 2), len = get_number(p + 4, 4);
		const char *key = p + CHANGE_BYTES;
		bool deletes = p[1];

		if (key_len > (size_t)(end - key) || len > (size_t)(end - key) - key_len)
			break;
		TRY(fn(arg, (uint8_t)p[0], key, key_len, deletes ? NULL : key + key_len, len, e));
		p = key + key_len + len;
	}
	FAIL_IF(p != end, e, TF_ECORRUPT, "%s: a record is whole but makes no sense", j->path);
	return 0;
}

int journal_read(struct journal *j, uint64_t epoch, journal_fn fn, void *arg, struct err *e)
{
	struct buf b = BUF_INIT;
	size_t len;
	int rc = file_read(j->path, LIMIT_JOURNAL_BYTES, &b, e);

	journal_begin(j, epoch);
	while (rc == 0 && (len = record_at(j, b.data + j->at, b.len - j->at)) > 0) {
		if (fn)
			rc = each_change(j, b.data + j->at + HEAD_BYTES, b.data + j->at + len, fn,
					 arg, e);
		j->at += len;
		j->place++;
	}
	buf_release(&b);
	return rc;
}

/* ---------------------------------------------------------------- writing */

static void put_number(char *to, int bytes, uint64_t number)
{
	for (int i = bytes - 1; i >= 0; i--, number >>= 8)
		to[i] = (char)(uint8_t)number;
}

void journal_note(struct journal *j, bool part, unsigned table, const void *key, size_t key_len,
		  const void *value, size_t len)
{
	char head[CHANGE_BYTES] = { (char)table, !value };
	struct buf *to = part ? &j->part : &j->noted;

	put_number(head + 2, 2, key_len);
	put_number(head + 4, 4, len);
	buf_append(to, head, sizeof head);
	buf_append(to, key, key_len);
	if (len)
		buf_append(to, value, len);
}

size_t journal_noted(const struct journal *j)
{
	return j->noted.len - HEAD_BYTES;
}

void journal_forget(struct journal *j)
{
	j->noted.len = HEAD_BYTES;
}

void journal_part_end(struct journal *j, bool keep)
{
	if (keep && j->part.len)
		buf_append(&j->noted, j->part.data, j->part.len);
	if (j->part.room > NOTED_KEPT_BYTES)
		buf_release(&j->part);
	buf_clear(&j->part);
}

bool journal_fits(const struct journal *j)
{
	return j->noted.len <= LIMIT_JOURNAL_BYTES - j->at;
}

int journal_write(struct journal *j, struct err *e)
{
	char *record = j->noted.data;
	size_t len = j->noted.len, done = 0;

	CHECK(journal_fits(j));
	put_number(record, 8, j->epoch);
	put_number(record + 8, 8, j->place);
	put_number(record + 16, 8, len);
	put_number(record + HASH_AT, 8, hash_of(record, len));
	while (done < len) {
		ssize_t n = pwrite(j->fd, record + done, len - done, (off_t)(j->at + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(e, "%s", j->path);
		done += (size_t)n;
	}
	j->at += len;
	j->place++;
	note_nothing(j);
	return 0;
}
