/* SPDX-License-Identifier: Apache-2.0
 * Answers that can be read whatever was asked and said before: texts that are cut are still texts,
 * what a message carries besides its known fields is not kept, and what a worker says of its job is
 * bounded, so that a list of jobs fits into a message. */
#include "tests/daemon/harness.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

#define UNKNOWN_BYTES (3u << 20)

static struct harness h;
static struct err e;

static int list_jobs(struct connection *c, Tf__Reply **reply)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;

	m.has_all = m.all = true;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	err_clear(&e);
	return harness_call(c, &r, reply, &e);
}

/* Of a character of three bytes, with others before so that any cut falls into one. */
static void fill_text(char text[241], int ahead)
{
	snprintf(text, 4, "%.*s", ahead, "/ab");
	for (int i = 0; i < 79; i++)
		strcat(text, "\xe2\x82\xac");
}

static void cut_texts_are_texts(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UploadOpen m = TF__UPLOAD_OPEN__INIT;
	Tf__UserRevoke revoke = TF__USER_REVOKE__INIT;
	Tf__AuditRead audit = TF__AUDIT_READ__INIT;
	uint8_t token[16] = { 1 };
	struct key_pair keys;
	struct connection *c;
	char text[241];

	(void)state;
	harness_enrol(&h, "bob", "member", &keys);
	c = harness_line(&h, &keys);
	m.token = (ProtobufCBinaryData){ sizeof token, token };
	m.name = text;
	for (int ahead = 1; ahead <= 3; ahead++) {
		fill_text(text, ahead);
		r.body_case = TF__REQUEST__BODY_UPLOAD_OPEN;
		r.upload_open = &m;
		err_clear(&e);
		assert_int_equal(harness_call(c, &r, NULL, &e), TF_EINVALID);
		revoke.who = text;
		r.body_case = TF__REQUEST__BODY_USER_REVOKE;
		r.user_revoke = &revoke;
		err_clear(&e);
		assert_int_equal(harness_call(h.line, &r, NULL, &e), TF_ENOTFOUND);
	}
	r.body_case = TF__REQUEST__BODY_AUDIT_READ;
	r.audit_read = &audit;
	err_clear(&e);
	assert_ok(harness_call(h.line, &r, NULL, &e), &e);
	connection_close(c);
}

/* Two of them are more than a message; what is demanded goes into the job's record and so into
 * every list. */
static void unknown_fields_are_left_out(void **state)
{
	ProtobufCMessageUnknownField field = { .tag = 1000,
					       .wire_type = PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED };
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__Demand demand = TF__DEMAND__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	Tf__Reply *reply = NULL;

	(void)state;
	field.data = xcalloc(1, UNKNOWN_BYTES);
	memcpy(field.data, "\xfc\xff\xbf\x01", 4); /* 3 MiB without these four */
	field.len = UNKNOWN_BYTES;
	demand.base.n_unknown_fields = 1;
	demand.base.unknown_fields = &field;
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	spec.demand = &demand;
	for (int i = 0; i < 2; i++)
		assert_ok(harness_submit(h.line, &spec, NULL, false, NULL, &e), &e);
	assert_ok(list_jobs(h.line, &reply), &e);
	assert_int_equal(reply->jobs->n_job, 2);
	assert_int_equal(reply->jobs->job[0]->demand->base.n_unknown_fields, 0);
	tf__reply__free_unpacked(reply, NULL);
	xfree(field.data);
}

static void long_names_of_figures(void **state)
{
	uint64_t id = harness_noop(&h, "wordy");
	Tf__Reply *reply;

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__DONE);
	reply = harness_show(&h, id);
	assert_int_equal(reply->jobs->job[0]->n_result, 1);
	assert_string_equal(reply->jobs->job[0]->result[0]->name, "figure");
	tf__reply__free_unpacked(reply, NULL);
}

static void long_facts(void **state)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__TokenizerSpec tokenizer = TF__TOKENIZER_SPEC__INIT;
	char *path = harness_path(&h, "lock"), *reason; /* any file */
	uint64_t id;

	(void)state;
	spec.kind = TF__JOB_KIND__TOKENIZER;
	spec.spec_case = TF__JOB_SPEC__SPEC_TOKENIZER;
	spec.tokenizer = &tokenizer;
	spec.name = (char *)"boast";
	tokenizer.tokenizer = (char *)"proud";
	tokenizer.n_path = 1;
	tokenizer.path = &path;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	reason = harness_reason(&h, id, NULL);
	if (!strstr(reason, "what the worker says of tokenizer 'proud' takes"))
		fail_msg("the reason is: %s", reason);
	xfree(reason);
	xfree(path);
}

/* An outcome that cannot be read is none: the attempt is lost, and the list of jobs is not. */
static void a_garbled_outcome(void **state)
{
	uint64_t id = harness_noop(&h, "garbled");
	Tf__Reply *reply = NULL;

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	assert_ok(list_jobs(h.line, &reply), &e);
	assert_non_null(strstr(reply->jobs->job[0]->reason, "no outcome"));
	tf__reply__free_unpacked(reply, NULL);
}

/* The other files are listed. */
static void a_name_that_is_no_text(void **state)
{
	uint64_t id = harness_noop(&h, "done");
	Tf__Request r = TF__REQUEST__INIT;
	Tf__FileList m = TF__FILE_LIST__INIT;
	Tf__FileOf of = TF__FILE_OF__INIT;
	Tf__Reply *reply = NULL;
	char *path;

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__DONE);
	path = harness_path(&h, "jobs/%llu/results", (unsigned long long)id);
	assert_ok(dir_make(path, 0700, &e), &e);
	xfree(path);
	for (int i = 0; i < 2; i++) {
		path = harness_path(&h, "jobs/%llu/results/%s", (unsigned long long)id,
				    i ? "good" : "bad\xff");
		assert_ok(file_put(path, "x", 1, 0600, &e), &e);
		xfree(path);
	}
	of.of_case = TF__FILE_OF__OF_JOB;
	of.job = id;
	m.of = &of;
	r.body_case = TF__REQUEST__BODY_FILE_LIST;
	r.file_list = &m;
	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	assert_int_equal(reply->files->n_file, 2); /* and the log */
	assert_string_equal(reply->files->file[1]->path, "results/good");
	tf__reply__free_unpacked(reply, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(cut_texts_are_texts, harness_started),
		WITH_HARNESS(unknown_fields_are_left_out, harness_started),
		WITH_HARNESS(long_names_of_figures, harness_started),
		WITH_HARNESS(long_facts, harness_rooted),
		WITH_HARNESS(a_garbled_outcome, harness_started),
		WITH_HARNESS(a_name_that_is_no_text, harness_started),
	};

	return cmocka_run_group_tests_name("answers", tests, NULL, NULL);
}
