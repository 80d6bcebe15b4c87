/* SPDX-License-Identifier: Apache-2.0
 * The audit log: what is in it, what is never in it, what a kill leaves, and its bounds. */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

static struct harness h;
static struct key_pair bob, stranger;
static char user_bob[100];
static struct err e;

static int prepare(void **state)
{
	harness_prepared(state);
	if (key_pair_make(&bob, &e) < 0 || key_pair_make(&stranger, &e) < 0)
		return -1;
	snprintf(user_bob, sizeof user_bob, "bob member %s", bob.public_key);
	h.extra[0] = "--user";
	h.extra[1] = user_bob;
	h.extra[2] = "--audit-mib";
	h.extra[3] = "1";
	return 0;
}

static int start(void **state)
{
	int rc = prepare(state);

	if (rc == 0)
		harness_start(&h);
	return rc;
}

static int ask(struct connection *c, const char *user, int64_t since, uint32_t limit,
	       Tf__Reply **reply)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__AuditRead m = TF__AUDIT_READ__INIT;

	m.has_since = m.has_limit = true;
	m.since = since;
	m.limit = limit;
	m.user = (char *)user;
	r.body_case = TF__REQUEST__BODY_AUDIT_READ;
	r.audit_read = &m;
	err_clear(&e);
	return harness_call(c, &r, reply, &e);
}

/* The newest entry of the user as "action|subject|outcome|text"; from and key are looked at. */
static const char *newest(const char *user)
{
	static char text[800];
	Tf__Reply *reply = NULL;
	const Tf__AuditEntry *a;

	assert_ok(ask(h.line, user, 0, 1, &reply), &e);
	assert_int_equal(reply->audit->n_entry, 1);
	a = reply->audit->entry[0];
	assert_non_null(strstr(a->from, "uid "));
	snprintf(text, sizeof text, "%s|%s|%s|%s", a->action, a->subject, a->outcome, a->text);
	tf__reply__free_unpacked(reply, NULL);
	return text;
}

static void who_did_what(void **state)
{
	struct connection *c = harness_line(&h, &bob);
	uint64_t theirs = harness_noop(&h, "wait"), own = 0;
	Tf__Reply *reply = NULL;

	(void)state;
	assert_ok(harness_submit_noop(c, "mine", NULL, &own, &e), &e);
	assert_string_equal(newest("bob"), "submit|kind=NOOP name=mine job=2|done|-");
	assert_int_equal(harness_cancel(c, theirs, &e), TF_EREFUSED);
	assert_non_null(strstr(newest("bob"), "job_cancel|job=1|TF_EREFUSED|job 1 belongs to "));
	assert_int_equal(ask(c, NULL, 0, 1, NULL), TF_EREFUSED);
	assert_non_null(strstr(newest("bob"), "audit_read|-|TF_EREFUSED|audit_read is for admins"));
	assert_ok(harness_cancel(h.line, own, &e), &e);
	assert_ok(ask(h.line, NULL, 0, 10, &reply), &e);
	assert_int_equal(reply->audit->n_entry, 5); /* oldest first */
	assert_string_equal(reply->audit->entry[0]->subject, "kind=NOOP name=wait job=1");
	assert_string_equal(reply->audit->entry[4]->subject, "job=2");
	assert_memory_equal(reply->audit->entry[1]->key, bob.public_key, 8);
	assert_false(reply->audit->more);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(ask(h.line, NULL, clock_wall_ms() + 60000, 10, &reply), &e);
	assert_int_equal(reply->audit->n_entry, 0);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(ask(h.line, NULL, clock_wall_ms() - 60000, 2, &reply), &e);
	assert_int_equal(reply->audit->n_entry, 2);
	assert_true(reply->audit->more);
	tf__reply__free_unpacked(reply, NULL);
	connection_close(c);
}

static void a_stranger_is_put_down(void **state)
{
	const char *refused = "connect|-|TF_EREFUSED|unknown key";
	struct connection *c = harness_line(&h, &stranger);

	(void)state;
	assert_int_equal(harness_submit_noop(c, "x", NULL, NULL, &e), TF_EREFUSED);
	/* a handshake is answered before the turn's lines are written */
	for (int i = 0; i < 3000 && strcmp(newest(NULL), refused) != 0; i++)
		clock_sleep_ms(20);
	assert_string_equal(newest(NULL), refused);
	connection_close(c);
}

static char *log_text(int number)
{
	char *path = number ? harness_path(&h, "audit/log.%d", number)
			    : harness_path(&h, "audit/log");
	struct buf b = BUF_INIT;

	file_read(path, 8 << 20, &b, NULL);
	xfree(path);
	return buf_detach(&b);
}

static void no_prompt_is_in_it(void **state)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__GenerateSpec generate = TF__GENERATE_SPEC__INIT;
	char *prompt = (char *)"a secret prompt", *text;

	(void)state;
	generate.model = (char *)"none\tgiven\nhere";
	generate.n_prompt = 1;
	generate.prompt = &prompt;
	spec.kind = TF__JOB_KIND__GENERATE;
	spec.spec_case = TF__JOB_SPEC__SPEC_GENERATE;
	spec.generate = &generate;
	assert_true(harness_submit(h.line, &spec, NULL, false, NULL, &e) < 0);
	assert_non_null(strstr(newest(NULL), "submit|kind=GENERATE model=none?given?here|"));
	text = log_text(0);
	assert_non_null(strstr(text, "GENERATE"));
	assert_null(strstr(text, "secret prompt"));
	xfree(text);
}

static void a_kill_loses_nothing_acknowledged(void **state)
{
	(void)state;
	assert_ok(harness_submit_noop(h.line, "last-words", NULL, NULL, &e), &e);
	harness_kill(&h, 9);
	harness_start(&h);
	assert_string_equal(newest(NULL), "submit|kind=NOOP name=last-words job=1|done|-");
}

/* Half a line that a power cut left harms neither the lines before nor those after it. */
static void half_a_line_is_passed_over(void **state)
{
	char *path;
	struct buf b = BUF_INIT;

	(void)state;
	assert_ok(harness_submit_noop(h.line, "before", NULL, NULL, &e), &e);
	harness_kill(&h, 15);
	path = harness_path(&h, "audit/log");
	assert_ok(file_read(path, 1 << 20, &b, &e), &e);
	buf_text(&b, "2026-01-01T00:00:00.000Z\tbo");
	assert_ok(file_write(path, b.data, b.len, 0600, &e), &e);
	buf_release(&b);
	xfree(path);
	harness_start(&h);
	assert_string_equal(newest(NULL), "submit|kind=NOOP name=before job=1|done|-");
	assert_ok(harness_submit_noop(h.line, "after", NULL, NULL, &e), &e);
	assert_string_equal(newest(NULL), "submit|kind=NOOP name=after job=2|done|-");
}

static void an_unknown_outcome_is_none_done(void **state)
{
	(void)state;
	h.fault = "store-commit:3";
	harness_start(&h);
	for (int i = 0; i < 5 && e.code != TF_EUNKNOWN; i++)
		harness_submit_noop(h.line, "try", NULL, NULL, &e);
	assert_int_equal(e.code, TF_EUNKNOWN);
	assert_non_null(strstr(newest(NULL), "|TF_EUNKNOWN|"));
}

static void refusals_are_bounded(void **state)
{
	struct connection *c = harness_line(&h, &bob);
	Tf__Reply *reply = NULL;
	int64_t until;
	int lines = 0;

	(void)state;
	until = clock_mono_ms() + 3000;
	for (int i = 0; i < 2 * (int)LIMIT_AUDIT_REFUSALS && clock_mono_ms() < until; i++)
		assert_int_equal(ask(c, NULL, 0, 1, NULL), TF_EREFUSED);
	clock_sleep_ms(1100);
	assert_ok(harness_submit_noop(c, "next", NULL, NULL, &e), &e);
	assert_ok(ask(h.line, NULL, 0, 1000, &reply), &e);
	for (size_t i = 0; i < reply->audit->n_entry; i++)
		lines += strstr(reply->audit->entry[i]->text, "lines are left out here") != NULL;
	assert_true(lines > 0 || clock_mono_ms() >= until); /* a slow machine asks no faster */
	tf__reply__free_unpacked(reply, NULL);
	assert_int_equal(ask(h.line, NULL, 0, LIMIT_AUDIT_LISTED + 1, NULL), TF_ELIMIT);
	connection_close(c);
}

/* So many bytes are looked at for an answer, from the end; it says that there is more. */
static void so_much_is_looked_at(void **state)
{
	Tf__Reply *reply = NULL;
	char name[LIMIT_NAME_BYTES + 1] = { 0 };

	(void)state;
	h.bound = "audit-scan-bytes:200000";
	harness_start(&h);
	assert_ok(harness_submit_noop(h.line, "first", NULL, NULL, &e), &e);
	memset(name, 'n', sizeof name - 1);
	for (int i = 0; i < 2; i++) {
		assert_ok(ask(h.line, NULL, 0, 5000, &reply), &e);
		assert_int_equal(reply->audit->n_entry, i ? reply->audit->n_entry : 1);
		assert_int_equal(reply->audit->more, i);
		if (i)
			assert_true(reply->audit->n_entry > 500 && reply->audit->n_entry < 1999);
		tf__reply__free_unpacked(reply, NULL);
		for (int k = 0; i == 0 && k < 2000; k++)
			assert_ok(harness_submit_noop(h.line, name, NULL, NULL, &e), &e);
	}
}

/* Full files move on, the last one goes. */
static void the_files_are_bounded(void **state)
{
	char name[LIMIT_NAME_BYTES + 1], *text;
	char *oldest = harness_path(&h, "audit/log.%d", LIMIT_AUDIT_FILES - 1);
	char *beyond = harness_path(&h, "audit/log.%d", LIMIT_AUDIT_FILES);
	char *second = harness_path(&h, "audit/log.%d", LIMIT_AUDIT_FILES - 2);

	(void)state;
	assert_ok(file_write(oldest, "oldest\n", 7, 0600, &e), &e);
	assert_ok(file_write(second, "second\n", 7, 0600, &e), &e);
	memset(name, 'n', sizeof name - 1);
	name[sizeof name - 1] = 0;
	for (int i = 0; i < 3000 && !harness_exists(&h, "audit/log.1"); i++)
		assert_ok(harness_submit_noop(h.line, name, NULL, NULL, &e), &e);
	assert_true(harness_exists(&h, "audit/log.1"));
	assert_false(file_exists(beyond));
	text = log_text(LIMIT_AUDIT_FILES - 1);
	assert_string_equal(text, "second\n");
	xfree(text);
	text = log_text(1);
	assert_true(strlen(text) <= (1 << 20) / LIMIT_AUDIT_FILES + 4096);
	xfree(text);
	assert_ok(harness_submit_noop(h.line, "again", NULL, NULL, &e), &e);
	assert_non_null(strstr(newest(NULL), "name=again"));
	xfree(oldest);
	xfree(beyond);
	xfree(second);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(who_did_what, start),
		WITH_HARNESS(a_stranger_is_put_down, start),
		WITH_HARNESS(no_prompt_is_in_it, start),
		WITH_HARNESS(a_kill_loses_nothing_acknowledged, start),
		WITH_HARNESS(half_a_line_is_passed_over, start),
		WITH_HARNESS(an_unknown_outcome_is_none_done, prepare),
		WITH_HARNESS(refusals_are_bounded, start),
		WITH_HARNESS(so_much_is_looked_at, prepare),
		WITH_HARNESS(the_files_are_bounded, start),
	};

	return cmocka_run_group_tests_name("audit", tests, NULL, NULL);
}
