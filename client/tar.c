/* SPDX-License-Identifier: Apache-2.0
 * A tar of plain files, as POSIX 1003.1 says (ustar, pax); see tar.h. Written here because a
 * library that knows every format takes a fifth of the time of a short command to load. */
#include "config.h"
#include "client/tar.h"
#include "lib/buf.h"

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define BLOCK 512
#define USTAR_SIZE_MAX 077777777777ull
#define MODE 0644

struct header {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8], type;
	char link[100], magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155];
	char unused[12];
};

_Static_assert(sizeof(struct header) == BLOCK, "a header is a block");

static int put_header(const char *name, uint64_t size, char type, tar_put put, void *arg,
		      struct err *e)
{
	struct header h = { .type = type, .magic = "ustar", .version = { '0', '0' } };
	unsigned sum = 0;

	for (size_t i = 0; i < sizeof h.name && name[i]; i++)
		h.name[i] = (unsigned char)name[i] < 128 ? name[i] : '_';
	snprintf(h.mode, sizeof h.mode, "%07o", MODE);
	snprintf(h.uid, sizeof h.uid, "%07o", 0);
	snprintf(h.gid, sizeof h.gid, "%07o", 0);
	snprintf(h.size, sizeof h.size, "%011" PRIo64, size <= USTAR_SIZE_MAX ? size : 0);
	snprintf(h.mtime, sizeof h.mtime, "%011o", 0);
	memset(h.checksum, ' ', sizeof h.checksum);
	for (size_t i = 0; i < sizeof h; i++)
		sum += ((unsigned char *)&h)[i];
	snprintf(h.checksum, sizeof h.checksum, "%06o", sum);
	return put(arg, &h, sizeof h, e);
}

/* "LENGTH KEY=VALUE\n", where the length counts its own digits. */
static void add_record(struct buf *out, const char *key, const char *value)
{
	size_t rest = strlen(key) + strlen(value) + 3, len = rest + 1;

	while (rest + (size_t)snprintf(NULL, 0, "%zu", len) != len)
		len = rest + (size_t)snprintf(NULL, 0, "%zu", len);
	buf_printf(out, "%zu %s=%s\n", len, key, value);
}

static bool is_plain(const char *path)
{
	size_t n = 0;

	for (; path[n]; n++)
		if ((unsigned char)path[n] >= 128)
			return false;
	return n <= sizeof((struct header *)0)->name;
}

int tar_begin(const char *path, uint64_t size, tar_put put, void *arg, struct err *e)
{
	struct buf records = BUF_INIT;
	char number[24];
	int rc = 0;

	if (!is_plain(path))
		add_record(&records, "path", path);
	if (size > USTAR_SIZE_MAX) {
		snprintf(number, sizeof number, "%" PRIu64, size);
		add_record(&records, "size", number);
	}
	if (records.len > 0) {
		rc = put_header("PaxHeader", records.len, 'x', put, arg, e);
		if (rc == 0)
			rc = put(arg, records.data, records.len, e);
		if (rc == 0)
			rc = tar_pad(records.len, put, arg, e);
	}
	buf_release(&records);
	return rc == 0 ? put_header(path, size, '0', put, arg, e) : rc;
}

int tar_pad(uint64_t size, tar_put put, void *arg, struct err *e)
{
	static const char zeros[BLOCK];
	size_t over = size % BLOCK;

	return over ? put(arg, zeros, BLOCK - over, e) : 0;
}

int tar_finish(tar_put put, void *arg, struct err *e)
{
	static const char zeros[2 * BLOCK];

	return put(arg, zeros, sizeof zeros, e);
}
