/* SPDX-License-Identifier: Apache-2.0
 * The bounds of the queue and of transfers, each reached once; and datasets read for clients. */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/wire.h"
#include "store/catalogue.h"
#include "store/shares.h"
#include "store/state.h"
#include "store/usage.h"
#include "store/users.h"
#include "tests/daemon/own_store.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct harness h;
static struct err e;

static int call(Tf__Request *r, Tf__Reply **reply)
{
	err_clear(&e);
	return harness_call(h.line, r, reply, &e);
}

#define PEOPLE 5 /* of whom all but the last may have as much as each may */

static void enrol_people(struct key_pair *keys)
{
	for (int i = 0; i < PEOPLE; i++) {
		char name[] = "user-0";

		name[5] = (char)('0' + i);
		harness_enrol(&h, name, "member", &keys[i]);
	}
}

/* The bound of a key, and of all keys together. */
static void waits_are_bounded(void **state)
{
	void *context = zmq_ctx_new(), *socket[PEOPLE];
	struct key_pair keys[PEOPLE];
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobWait m = TF__JOB_WAIT__INIT;
	Tf__Reply *reply;

	(void)state;
	_Static_assert((PEOPLE - 1) * LIMIT_USER_WAITS == LIMIT_WAITS, "all but one fill it");
	enrol_people(keys);
	m.job = harness_noop(&h, "wait");
	m.has_since = m.has_timeout_ms = true;
	m.since = UINT64_MAX;
	m.timeout_ms = LIMIT_WAIT_MS;
	r.version = TF_PROTOCOL_VERSION;
	r.body_case = TF__REQUEST__BODY_JOB_WAIT;
	r.job_wait = &m;
	for (int i = 0; i < PEOPLE; i++) {
		uint64_t most = i < PEOPLE - 1 ? LIMIT_USER_WAITS : 0;

		socket[i] = harness_socket(&h, context, &keys[i]);
		for (r.id = 1; r.id <= most + 1; r.id++)
			harness_send(socket[i], &r);
		reply = harness_receive(socket[i], LIMIT_WAIT_MS);
		assert_non_null(reply);
		assert_int_equal(reply->id, most + 1);
		assert_int_equal(reply->code, TF_ELIMIT);
		assert_non_null(strstr(reply->text, most ? "requests of this key wait already"
							 : "requests wait already"));
		tf__reply__free_unpacked(reply, NULL);
	}
	for (int i = 0; i < PEOPLE; i++)
		zmq_close(socket[i]);
	zmq_ctx_term(context);
}

static void uploads_are_bounded(void **state)
{
	struct key_pair keys[PEOPLE];

	(void)state;
	_Static_assert((PEOPLE - 1) * LIMIT_USER_UPLOADS == LIMIT_UPLOADS, "all but one fill it");
	enrol_people(keys);
	for (int i = 0; i < PEOPLE; i++) {
		struct connection *c = harness_line(&h, &keys[i]);

		err_clear(&e);
		for (unsigned j = 0; i < PEOPLE - 1 && j < LIMIT_USER_UPLOADS; j++)
			assert_ok(harness_upload_open(c, 1, &e), &e);
		assert_int_equal(harness_upload_open(c, 1, &e), TF_ELIMIT);
		assert_non_null(strstr(e.text, i < PEOPLE - 1 ? "uploads of user-"
							      : "uploads are open already"));
		connection_close(c);
	}
}

static void a_list_comes_in_pages(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;
	Tf__Reply *reply = NULL;

	(void)state;
	for (int i = 0; i < 5; i++)
		harness_noop(&h, "wait");
	m.has_limit = m.has_all = m.has_before = true;
	m.all = true;
	m.limit = 3;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	assert_ok(call(&r, &reply), &e);
	assert_int_equal(reply->jobs->n_job, 3);
	assert_int_equal(reply->jobs->job[0]->id, 5);
	assert_true(reply->jobs->more);
	m.before = reply->jobs->job[2]->id;
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(call(&r, &reply), &e);
	assert_int_equal(reply->jobs->n_job, 2);
	assert_int_equal(reply->jobs->job[1]->id, 1);
	assert_false(reply->jobs->more);
	tf__reply__free_unpacked(reply, NULL);
}

static size_t listed(Tf__JobList *m)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__Reply *reply = NULL;
	size_t n;

	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = m;
	assert_ok(call(&r, &reply), &e);
	n = reply->jobs->n_job;
	tf__reply__free_unpacked(reply, NULL);
	return n;
}

/* Submits so many at once, over a socket of its own. */
static void submit_many(unsigned count)
{
	void *context = zmq_ctx_new(), *socket = harness_socket(&h, context, NULL);
	struct wire_message answer;

	harness_send_noops(socket, "wait", 1, count);
	for (unsigned i = 0; i < count; i++) {
		zmq_pollitem_t item = { .socket = socket, .events = ZMQ_POLLIN };

		assert_true(zmq_poll(&item, 1, 10000) > 0);
		assert_int_equal(wire_receive(socket, false, &answer, &e), 1);
		wire_message_close(&answer);
	}
	zmq_close(socket);
	zmq_ctx_term(context);
}

static void a_list_passes_over_so_many(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;
	Tf__JobState done = TF__JOB_STATE__DONE;
	Tf__Reply *reply = NULL;

	(void)state;
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	submit_many(LIMIT_JOBS_PASSED + 1);
	m.n_state = 1;
	m.state = &done;
	m.has_before = true;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	assert_ok(call(&r, &reply), &e);
	assert_int_equal(reply->jobs->n_job, 0);
	assert_true(reply->jobs->more);
	m.before = reply->jobs->next;
	assert_true(m.before > 1);
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(call(&r, &reply), &e);
	assert_int_equal(reply->jobs->n_job, 1);
	assert_int_equal(reply->jobs->job[0]->id, 1);
	assert_false(reply->jobs->more);
	tf__reply__free_unpacked(reply, NULL);
}

static void a_list_is_filtered(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;
	Tf__JobState one = TF__JOB_STATE__DONE, many[LIMIT_FILTERS + 1];
	Tf__JobKind kind = TF__JOB_KIND__TRAIN;
	char *user = (char *)"nobody here", name[LIMIT_NAME_BYTES + 2];

	(void)state;
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	for (int i = 0; i < 3; i++)
		harness_noop(&h, "wait");
	assert_int_equal(listed(&m), 3);
	m.n_state = 1;
	m.state = &one;
	assert_int_equal(listed(&m), 1); /* without `all` */
	m.n_state = 0;
	m.has_all = m.all = true;
	m.name = (char *)"wa?t";
	assert_int_equal(listed(&m), 3);
	m.name = NULL;
	m.n_user = 1;
	m.user = &user;
	assert_int_equal(listed(&m), 0);
	m.n_user = 0;
	m.n_kind = 1;
	m.kind = &kind;
	assert_int_equal(listed(&m), 0);
	kind = TF__JOB_KIND__NOOP;
	assert_int_equal(listed(&m), 4);
	for (size_t i = 0; i < ARRAY_LEN(many); i++)
		many[i] = TF__JOB_STATE__DONE;
	m.n_state = ARRAY_LEN(many);
	m.state = many;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	assert_int_equal(call(&r, NULL), TF_ELIMIT);
	m.n_state = 0;
	memset(name, 'a', sizeof name - 1);
	name[sizeof name - 1] = 0;
	m.name = name;
	assert_int_equal(call(&r, NULL), TF_ELIMIT);
}

static void too_many_jobs_to_cancel(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;

	(void)state;
	m.n_job = LIMIT_JOB_REFS + 1;
	m.job = xcalloc(m.n_job, sizeof *m.job);
	r.body_case = TF__REQUEST__BODY_JOB_CANCEL;
	r.job_cancel = &m;
	assert_int_equal(call(&r, NULL), TF_ELIMIT);
	xfree(m.job);
}

/* What was changed and what was not fill an answer each: it has the refusals and what else fits. */
static void a_long_answer_about_jobs(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	char tag[LIMIT_TAGS][LIMIT_NAME_BYTES + 1], *tags[LIMIT_TAGS];
	Tf__Reply *reply = NULL;
	uint64_t large, running;

	(void)state;
	running = harness_noop(&h, "wait");
	harness_until(&h, running, TF__JOB_STATE__RUNNING);
	for (unsigned i = 0; i < LIMIT_TAGS; i++) {
		memset(tag[i], 'a' + (int)i, LIMIT_NAME_BYTES);
		tag[i][LIMIT_NAME_BYTES] = 0;
		tags[i] = tag[i];
	}
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	spec.n_tag = LIMIT_TAGS;
	spec.tag = tags;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &large, &e), &e);
	m.n_job = LIMIT_JOB_REFS;
	m.job = xcalloc(m.n_job, sizeof *m.job);
	for (unsigned i = 0; i < LIMIT_JOB_REFS; i++)
		m.job[i] = i % 2 ? large : running;
	r.body_case = TF__REQUEST__BODY_JOB_HOLD;
	r.job_hold = &m;
	assert_ok(call(&r, &reply), &e);
	assert_int_equal(reply->jobs->n_refused, LIMIT_JOB_REFS / 2);
	assert_in_range(reply->jobs->n_job, 1000, LIMIT_JOB_REFS / 2 - 1);
	assert_true(reply->jobs->more);
	tf__reply__free_unpacked(reply, NULL);
	xfree(m.job);
}

static int import(const char *dataset, uint64_t *id)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__IngestSpec ingest = TF__INGEST_SPEC__INIT;
	char *path = xasprintf("%s/source.txt", h.folder);
	int rc;

	err_clear(&e);
	assert_ok(file_write(path, "text\n", 5, 0600, &e), &e);
	ingest.dataset = (char *)dataset;
	ingest.n_path = 1;
	ingest.path = &path;
	spec.kind = TF__JOB_KIND__INGEST;
	spec.name = (char *)"make";
	spec.spec_case = TF__JOB_SPEC__SPEC_INGEST;
	spec.ingest = &ingest;
	rc = harness_submit(h.line, &spec, NULL, false, id, &e);
	xfree(path);
	return rc;
}

/* A folder that is no dataset: the process that reads it says so, the daemon lives on. */
static void a_damaged_dataset_is_named(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__DataVerify verify = TF__DATA_VERIFY__INIT;
	Tf__DataSample sample = TF__DATA_SAMPLE__INIT;
	uint64_t id;

	(void)state;
	assert_ok(import("words", &id), &e);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	verify.name = sample.name = (char *)"words";
	r.body_case = TF__REQUEST__BODY_DATA_SAMPLE;
	r.data_sample = &sample;
	assert_int_equal(call(&r, NULL), TF_ENOTFOUND);
	assert_non_null(strstr(e.text, "manifest.json"));
	r.body_case = TF__REQUEST__BODY_DATA_VERIFY;
	r.data_verify = &verify;
	assert_true(call(&r, NULL) <= 0);
	verify.name = (char *)"none";
	assert_int_equal(call(&r, NULL), TF_ENOTFOUND);
}

static void files_are_listed_up_to_a_bound(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__FileList m = TF__FILE_LIST__INIT;
	Tf__FileOf of = TF__FILE_OF__INIT;
	uint64_t id = harness_noop(&h, "done");
	char *folder = harness_path(&h, "jobs/%llu/results", (unsigned long long)id);

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__DONE);
	assert_ok(dir_make(folder, 0700, &e), &e);
	for (unsigned i = 0; i <= LIMIT_FILES_LISTED; i++) {
		char *path = xasprintf("%s/%u", folder, i);

		close(open(path, O_WRONLY | O_CREAT, 0600));
		xfree(path);
	}
	of.of_case = TF__FILE_OF__OF_JOB;
	of.job = id;
	r.body_case = TF__REQUEST__BODY_FILE_LIST;
	m.of = &of;
	r.file_list = &m;
	assert_int_equal(call(&r, NULL), TF_ELIMIT);
	assert_non_null(strstr(e.text, "10000 files"));
	xfree(folder);
}

/* A mebibyte is the least bound; the worker's lines go on behind the cut. */
static void a_log_is_cut(void **state)
{
	char *path, *text = xcalloc(1, (1 << 20) + 1);
	int64_t until = clock_mono_ms() + 30000;
	struct buf log = BUF_INIT;
	uint64_t id;
	int fd;

	(void)state;
	harness_kill(&h, SIGTERM);
	h.extra[2] = "--log-mib";
	h.extra[3] = "1";
	harness_start(&h);
	id = harness_noop(&h, "wait");
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	memset(text, 'x', 1 << 20);
	path = harness_path(&h, "jobs/%llu/log", (unsigned long long)id);
	fd = open(path, O_WRONLY | O_APPEND);
	assert_ok(file_write_all(fd, text, 1 << 20, path, &e), &e);
	close(fd);
	do {
		assert_true(clock_mono_ms() < until);
		clock_sleep_ms(20);
		buf_clear(&log);
		assert_ok(file_read(path, 2 << 20, &log, &e), &e);
	} while (!strstr(log.data, "(the log is over its limit"));
	assert_true(file_size(path) <= 1 << 20);
	buf_release(&log);
	xfree(path);
	xfree(text);
}

static void more_slots_than_the_bound(void **state)
{
	char text[2000];

	(void)state;
	harness_kill(&h, SIGTERM);
	h.slots = "65";
	assert_int_equal(harness_start_fails(&h, text, sizeof text), 2);
	if (!strstr(text, "64"))
		fail_msg("it said: %s", text);
	h.slots = NULL;
	harness_start(&h);
}

static void figures_of_progress_are_bounded(void **state)
{
	uint64_t id = harness_noop(&h, "chatty");
	char *reason;

	(void)state;
	harness_until(&h, id, TF__JOB_STATE__FAILED);
	reason = harness_reason(&h, id, NULL);
	assert_string_equal(reason, "answered so");
	xfree(reason);
}

/* ---------------------------------------------------------------- what only a store shows */

/* Stops the daemon, lets `fill` write into its store, and starts it again. */
static void with_store(void (*fill)(struct state *s))
{
	char *path = harness_path(&h, "store");
	struct state *s = NULL;

	harness_kill(&h, SIGTERM);
	assert_ok(state_open(path, 1ull << 30, &s, &e), &e);
	fill(s);
	assert_ok(state_commit(s, &e), &e);
	state_close(s);
	xfree(path);
	harness_start(&h);
}

/* All but one: the owner has a key. */
static void fill_users(struct state *s)
{
	for (unsigned i = 1; i < LIMIT_USERS; i++) {
		Tf__UserRecord r = TF__USER_RECORD__INIT;
		char key[KEY_CHARS + 1];

		snprintf(key, sizeof key, "%040u", i);
		r.name = (char *)"one-of-many";
		r.role = ROLE_MEMBER;
		r.created = clock_wall_ms();
		assert_ok(user_put(s, key, &r, &e), &e);
	}
}

static void keys_are_bounded(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserAdd m = TF__USER_ADD__INIT;
	struct key_pair keys;

	(void)state;
	with_store(fill_users);
	assert_ok(key_pair_make(&keys, &e), &e);
	m.name = (char *)"late";
	m.role = (char *)"member";
	m.key = keys.public_key;
	r.body_case = TF__REQUEST__BODY_USER_ADD;
	r.user_add = &m;
	assert_int_equal(call(&r, NULL), TF_ELIMIT);
	assert_non_null(strstr(e.text, "10000 keys are enrolled"));
}

static void fill_usage(struct state *s)
{
	for (unsigned i = 0; i <= LIMIT_USAGE_LISTED; i++) {
		struct usage_attempt a = { .user = "u", .from_ms = 1760000000000, .cpus = 1 };
		char project[32];

		snprintf(project, sizeof project, "project-%u", i);
		a.project = project;
		a.to_ms = a.from_ms + 1000;
		assert_ok(usage_add(s, &a, &e), &e);
	}
}

static void sums_of_usage_are_bounded(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UsageList m = TF__USAGE_LIST__INIT;

	(void)state;
	with_store(fill_usage);
	r.body_case = TF__REQUEST__BODY_USAGE;
	r.usage = &m;
	assert_int_equal(call(&r, NULL), TF_ELIMIT);
	assert_non_null(strstr(e.text, "more than 10000 sums"));
	m.since = (char *)"2025-11";
	assert_ok(call(&r, NULL), &e);
}

static void fill_shares(struct state *s)
{
	Tf__ShareRecord r = TF__SHARE_RECORD__INIT;

	for (unsigned i = 0; i < 100; i++) {
		char name[32];

		snprintf(name, sizeof name, "%s-%u", i % 10 ? "gone" : "here", i);
		r.used = 1e6; /* of which some is left after a day */
		r.used_ms = clock_wall_ms() - (i % 10 ? 365 : 1) * 86400000LL;
		r.month_gpu_s = i % 10 ? 1e6 : 0;
		assert_ok(share_put(s, name, &r, &e), &e);
	}
}

static int count_share(void *arg, const char *user, const Tf__ShareRecord *r)
{
	unsigned *count = arg;

	(void)r;
	count[strncmp(user, "gone-", 5) == 0]++;
	return 0;
}

/* Who used something a year ago is no row any more; who did yesterday is, and who has a job. */
static void old_use_is_forgotten(void **state)
{
	unsigned count[2] = { 0, 0 };
	struct state *s;

	(void)state;
	with_store(fill_shares);
	harness_until(&h, harness_noop(&h, "done"), TF__JOB_STATE__DONE);
	harness_kill(&h, SIGTERM);
	s = own_store_of(h.state);
	assert_ok(shares_each(s, count_share, count, &e), &e);
	state_close(s);
	assert_int_equal(count[1], 0);
	assert_in_range(count[0], 10, 11); /* and ours, as long as it is something */
	harness_start(&h);
}

/* One of many; its name is in `name`. */
static Tf__Artefact data_set(unsigned number, char name[32])
{
	Tf__Artefact a = TF__ARTEFACT__INIT;

	snprintf(name, 32, "set-%u", number);
	a.kind = TF__ARTEFACT_KIND__DATASET;
	a.name = a.id = name;
	a.state = (char *)ARTEFACT_READY;
	return a;
}

static void fill_artefacts(struct state *s)
{
	for (unsigned i = 0; i < LIMIT_ARTEFACTS; i++) {
		char name[32];
		Tf__Artefact a = data_set(i, name);

		a.user = (char *)"one-of-many";
		assert_ok(artefact_put(s, &a, &e), &e);
	}
}

/* How many answers a list of all datasets takes; each of so many is in one, in their order. */
static unsigned pages_of_artefacts(unsigned expected)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactList m = TF__ARTEFACT_LIST__INIT;
	unsigned pages = 0, found = 0;
	char last[LIMIT_NAME_BYTES] = "";

	m.kind = TF__ARTEFACT_KIND__DATASET;
	r.body_case = TF__REQUEST__BODY_ARTEFACT_LIST;
	r.artefact_list = &m;
	do {
		Tf__Reply *reply = NULL;

		assert_ok(call(&r, &reply), &e);
		for (size_t i = 0; i < reply->artefacts->n_artefact; i++) {
			assert_true(strcmp(last, reply->artefacts->artefact[i]->id) < 0);
			snprintf(last, sizeof last, "%s", reply->artefacts->artefact[i]->id);
		}
		found += (unsigned)reply->artefacts->n_artefact;
		pages++;
		xfree(m.from);
		m.from = xstrdup(reply->artefacts->next);
		tf__reply__free_unpacked(reply, NULL);
	} while (m.from);
	assert_int_equal(found, expected);
	return pages;
}

/* How many lines the command line prints for all datasets. */
static unsigned lines_of_artefacts(void)
{
	const char *build = getenv("TF_BUILD");
	char *command = xasprintf("TRANSFUSE_STATE=%s %s/transfuse data list | wc -l", h.state,
				  build ? build : ".");
	FILE *f = popen(command, "r");
	unsigned lines = 0;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%u", &lines), 1);
	assert_int_equal(pclose(f), 0);
	xfree(command);
	return lines;
}

static void artefacts_are_listed_in_pages(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactList m = TF__ARTEFACT_LIST__INIT;

	(void)state;
	with_store(fill_artefacts);
	assert_int_equal(pages_of_artefacts(LIMIT_ARTEFACTS),
			 (LIMIT_ARTEFACTS + LIMIT_ARTEFACTS_LOOKED - 1) / LIMIT_ARTEFACTS_LOOKED);
	assert_int_equal(lines_of_artefacts(), 1 + LIMIT_ARTEFACTS);
	m.kind = TF__ARTEFACT_KIND__DATASET;
	m.from = xcalloc(1, 1000);
	memset(m.from, 'x', 999);
	r.body_case = TF__REQUEST__BODY_ARTEFACT_LIST;
	r.artefact_list = &m;
	assert_int_equal(call(&r, NULL), TF_EINVALID);
	xfree(m.from);
}

#define LARGE_ARTEFACTS 10
#define LARGE_FACTS 16 /* together a quarter of a message */

static void fill_large_artefacts(struct state *s)
{
	Tf__KeyValue fact = TF__KEY_VALUE__INIT, *facts[LARGE_FACTS];

	fact.key = (char *)"large";
	fact.value = xcalloc(1, LIMIT_TEXT_BYTES + 1);
	memset(fact.value, 'x', LIMIT_TEXT_BYTES);
	for (unsigned i = 0; i < LARGE_FACTS; i++)
		facts[i] = &fact;
	for (unsigned i = 0; i < LARGE_ARTEFACTS; i++) {
		char name[32];
		Tf__Artefact a = data_set(i, name);

		a.n_fact = LARGE_FACTS;
		a.fact = facts;
		assert_ok(artefact_put(s, &a, &e), &e);
	}
	xfree(fact.value);
}

static void large_artefacts_fill_pages(void **state)
{
	(void)state;
	with_store(fill_large_artefacts);
	assert_int_equal(pages_of_artefacts(LARGE_ARTEFACTS), (LARGE_ARTEFACTS + 2) / 3);
}

static void artefacts_are_bounded(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactRef m = TF__ARTEFACT_REF__INIT;
	uint64_t id;

	(void)state;
	with_store(fill_artefacts);
	assert_int_equal(import("late", &id), TF_ELIMIT);
	assert_non_null(strstr(e.text, "there are 100000 artefacts, the limit"));
	m.kind = TF__ARTEFACT_KIND__DATASET;
	m.name = (char *)"set-7";
	r.body_case = TF__REQUEST__BODY_ARTEFACT_DELETE;
	r.artefact_delete = &m;
	assert_ok(call(&r, NULL), &e);
	assert_ok(import("late", &id), &e);
}

/* Another try of the daemon, with a bound lowered. */
static void start_lowered(const char *bound)
{
	harness_kill(&h, SIGTERM);
	h.bound = bound;
	harness_start(&h);
}

static void queued_jobs_are_bounded(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;
	uint64_t job[4];

	(void)state;
	start_lowered("jobs-queued:3");
	for (int i = 0; i < 3; i++)
		job[i] = harness_noop(&h, "wait");
	assert_int_equal(harness_submit_noop(h.line, "wait", NULL, NULL, &e), TF_ELIMIT);
	assert_string_equal(e.text, "3 jobs are queued, the limit");
	assert_ok(harness_cancel(h.line, job[2], &e), &e);
	job[3] = harness_noop(&h, "wait");
	m.n_job = 1;
	m.job = &job[2];
	r.body_case = TF__REQUEST__BODY_JOB_REQUEUE;
	r.job_requeue = &m;
	assert_int_equal(call(&r, NULL), TF_ELIMIT);
	assert_string_equal(e.text, "3 jobs are queued, the limit");
	assert_ok(harness_cancel(h.line, job[3], &e), &e);
	assert_ok(call(&r, NULL), &e);
}

/* The processes that read for clients stand still at a pipe in the place of the manifest. */
static void readers_are_bounded(void **state)
{
	void *context = zmq_ctx_new(), *socket;
	Tf__Request r = TF__REQUEST__INIT;
	Tf__DataVerify m = TF__DATA_VERIFY__INIT;
	Tf__Reply *reply;
	int64_t until = clock_mono_ms() + 30000;
	char *path;
	uint64_t id;

	(void)state;
	assert_ok(import("words", &id), &e);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	path = harness_path(&h, "data/words.%llu/manifest.json", (unsigned long long)id);
	unlink(path);
	assert_int_equal(mkfifo(path, 0600), 0);
	socket = harness_socket(&h, context, NULL);
	m.name = (char *)"words";
	r.version = TF_PROTOCOL_VERSION;
	r.body_case = TF__REQUEST__BODY_DATA_VERIFY;
	r.data_verify = &m;
	for (r.id = 1; r.id <= 5; r.id++)
		harness_send(socket, &r);
	reply = harness_receive(socket, 10000);
	assert_non_null(reply);
	assert_int_equal(reply->id, 5);
	assert_int_equal(reply->code, TF_EBUSY);
	assert_non_null(strstr(reply->text, "4 datasets are being read"));
	tf__reply__free_unpacked(reply, NULL);
	for (int answers = 0; answers < 4;) {
		int fd = open(path, O_WRONLY | O_NONBLOCK); /* whoever waits there goes on */

		if (fd >= 0)
			close(fd);
		reply = harness_receive(socket, 100);
		if (!reply) {
			assert_true(clock_mono_ms() < until);
			continue;
		}
		assert_true(reply->id <= 4);
		tf__reply__free_unpacked(reply, NULL);
		answers++;
	}
	zmq_close(socket);
	zmq_ctx_term(context);
	xfree(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(waits_are_bounded, harness_rooted),
		WITH_HARNESS(uploads_are_bounded, harness_rooted),
		WITH_HARNESS(a_list_comes_in_pages, harness_rooted),
		WITH_HARNESS(a_list_passes_over_so_many, harness_rooted),
		WITH_HARNESS(a_list_is_filtered, harness_rooted),
		WITH_HARNESS(too_many_jobs_to_cancel, harness_rooted),
		WITH_HARNESS(a_long_answer_about_jobs, harness_rooted),
		WITH_HARNESS(files_are_listed_up_to_a_bound, harness_rooted),
		WITH_HARNESS(a_log_is_cut, harness_rooted),
		WITH_HARNESS(more_slots_than_the_bound, harness_rooted),
		WITH_HARNESS(figures_of_progress_are_bounded, harness_rooted),
		WITH_HARNESS(keys_are_bounded, harness_rooted),
		WITH_HARNESS(sums_of_usage_are_bounded, harness_rooted),
		WITH_HARNESS(old_use_is_forgotten, harness_rooted),
		WITH_HARNESS(artefacts_are_bounded, harness_rooted),
		WITH_HARNESS(artefacts_are_listed_in_pages, harness_rooted),
		WITH_HARNESS(large_artefacts_fill_pages, harness_rooted),
		WITH_HARNESS(queued_jobs_are_bounded, harness_rooted),
		WITH_HARNESS(readers_are_bounded, harness_rooted),
		WITH_HARNESS(a_damaged_dataset_is_named, harness_rooted),
	};

	return cmocka_run_group_tests_name("limits", tests, NULL, NULL);
}
