/* SPDX-License-Identifier: Apache-2.0
 * The verb submit: many jobs from a file with a spec a line. */
#include "config.h"
#include "client/client.h"
#include "client/line.h"
#include "client/spec_json.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct batch {
	const char *name;    /* of the file */
	struct buf text;
	Tf__JobSpec **spec;
	size_t *line;        /* of each spec, from 1 */
	uint64_t *job;
	size_t count, room, sent;
};

static void batch_release(struct batch *b)
{
	for (size_t i = 0; i < b->count; i++)
		tf__job_spec__free_unpacked(b->spec[i], NULL);
	xfree(b->spec);
	xfree(b->line);
	xfree(b->job);
	buf_release(&b->text);
}

static int read_stdin(struct buf *out, struct err *e)
{
	ssize_t n;

	do {
		buf_reserve(out, 1 << 16);
		n = read(STDIN_FILENO, out->data + out->len, 1 << 16);
		if (n < 0 && errno != EINTR)
			return err_errno(e, "standard input");
		out->len += n > 0 ? (size_t)n : 0;
		FAIL_IF(out->len > LIMIT_BATCH_BYTES, e, TF_ELIMIT,
			"standard input: more than %u bytes, the most a batch may have",
			LIMIT_BATCH_BYTES);
	} while (n != 0);
	return 0;
}

static int add_line(struct batch *b, const char *text, size_t len, size_t line, struct err *e)
{
	Tf__JobSpec *spec = NULL;

	if (spec_json_read(text, len, &spec, e) < 0)
		return err_prefix(e, "%s, line %zu", b->name, line);
	if (b->count == b->room) {
		b->room = b->room ? 2 * b->room : 256;
		b->spec = xrealloc(b->spec, b->room, sizeof *b->spec);
		b->line = xrealloc(b->line, b->room, sizeof *b->line);
	}
	b->line[b->count] = line;
	b->spec[b->count++] = spec;
	return 0;
}

/* Every line is checked before anything is sent. Empty ones are passed over. */
static int read_batch(struct batch *b, struct err *e)
{
	const char *at, *end;
	size_t line = 1;

	if (strcmp(b->name, "-") == 0)
		TRY(read_stdin(&b->text, e));
	else
		TRY(file_read(b->name, LIMIT_BATCH_BYTES, &b->text, e));
	at = b->text.data;
	end = at ? at + b->text.len : at;
	for (; at < end; line++) {
		const char *stop = memchr(at, '\n', (size_t)(end - at));
		size_t len = (size_t)((stop ? stop : end) - at);

		if (len > strspn(at, " \t\r"))
			TRY(add_line(b, at, len, line, e));
		at += len + 1;
	}
	FAIL_IF(b->count == 0, e, TF_EINVALID, "%s: no line with a job", b->name);
	b->job = xcalloc(b->count, sizeof *b->job);
	return 0;
}

/* How many of the next specs go into one message. */
static size_t portion(const struct batch *b)
{
	size_t n = 0, bytes = 0;

	while (b->sent + n < b->count && n < LIMIT_BATCH_JOBS) {
		bytes += tf__job_spec__get_packed_size(b->spec[b->sent + n]) + 64;
		if (n > 0 && bytes > LIMIT_MESSAGE_BYTES / 2)
			break;
		n++;
	}
	return n;
}

static int send_batch(struct client *c, struct batch *b, struct err *e)
{
	TRY(client_connect(c, e));
	while (b->sent < b->count) {
		size_t n = portion(b);

		if (client_note(c, line_submit_batch(c->line, b->spec + b->sent, n,
						     b->job + b->sent, e)) < 0)
			return err_prefix(e, "%s, lines %zu to %zu (%zu jobs before them are "
					     "submitted)",
					  b->name, b->line[b->sent], b->line[b->sent + n - 1],
					  b->sent);
		b->sent += n;
	}
	return 0;
}

/* What was submitted, also when the rest could not be; then the error follows. */
static void print_batch(const struct client *c, const struct batch *b)
{
	if (b->sent == 0)
		return;
	if (args_has(&c->args, OPTION_JSON)) {
		json_t *o = json_object(), *jobs = json_array();

		for (size_t i = 0; i < b->sent; i++)
			json_array_append_new(jobs, json_integer((json_int_t)b->job[i]));
		json_object_set_new(o, "jobs", jobs);
		json_print(o);
	} else {
		printf("%zu job%s submitted: %" PRIu64 " to %" PRIu64 "\n", b->sent,
		       b->sent == 1 ? " is" : "s are", b->job[0], b->job[b->sent - 1]);
	}
}

int verb_submit(struct client *c, struct err *e)
{
	struct batch b = { .name = args_text(&c->args, OPTION_BATCH) };
	int rc;

	FAIL_IF(!b.name, e, TF_EUSAGE, "submit expects --batch FILE (- for standard input)");
	rc = read_batch(&b, e);
	if (rc == 0)
		rc = send_batch(c, &b, e);
	print_batch(c, &b);
	batch_release(&b);
	return rc < 0 ? rc : STATUS_DONE;
}
