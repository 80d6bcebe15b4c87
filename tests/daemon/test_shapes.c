/* SPDX-License-Identifier: Apache-2.0
 * Shapes of work: what waits for what; holding and putting back; tags. */
#include "tests/daemon/harness.h"
#include "lib/buf.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static struct harness h;
static struct err e;

/* ---------------------------------------------------------------- after, hold, requeue */

/* Submits a noop job; the others are members of spec that a test sets. */
static int submit(const char *how, Tf__JobSpec *spec, uint64_t *id)
{
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;

	err_clear(&e);
	spec->kind = TF__JOB_KIND__NOOP;
	spec->name = (char *)how;
	spec->spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec->noop = &noop;
	return harness_submit(h.line, spec, NULL, false, id, &e);
}

static uint64_t after(char kind, uint64_t job, const char *how)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	uint64_t id = 0;

	spec.n_after = kind == 'd';
	spec.n_after_any = kind == 'a';
	spec.n_after_failed = kind == 'f';
	spec.after = spec.after_any = spec.after_failed = &job;
	assert_ok(submit(how, &spec, &id), &e);
	return id;
}

static int ask(Tf__Request__BodyCase what, uint64_t job)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;

	err_clear(&e);
	m.n_job = 1;
	m.job = &job;
	r.body_case = what;
	r.job_hold = &m; /* all of these are JobRefs */
	return harness_call(h.line, &r, NULL, &e);
}

static void says(uint64_t job, const char *text)
{
	char *reason = harness_reason(&h, job, NULL);

	if (!strstr(reason, text))
		fail_msg("job %llu: '%s' is not in '%s'", (unsigned long long)job, text, reason);
	xfree(reason);
}

static void jobs_wait_for_every_kind_of_end(void **state)
{
	uint64_t good, bad, gone, a, b, c, d2, f, g;

	(void)state;
	good = harness_noop(&h, "wait");
	harness_until(&h, good, TF__JOB_STATE__RUNNING);
	bad = harness_noop(&h, "fail");
	gone = harness_noop(&h, "wait");
	a = after('a', bad, "done");
	b = after('f', bad, "done");
	c = after('d', bad, "done");
	d2 = after('f', c, "done"); /* c is cancelled, which is no failure */
	f = after('a', gone, "done");
	g = after('f', gone, "done");
	assert_int_equal(harness_state(&h, g), TF__JOB_STATE__WAITING);
	harness_cancel(h.line, gone, NULL);
	harness_kill(&h, SIGKILL); /* what waits is on disk */
	harness_start(&h);
	harness_cancel(h.line, good, NULL);
	harness_until(&h, a, TF__JOB_STATE__DONE);
	harness_until(&h, b, TF__JOB_STATE__DONE);
	harness_until(&h, f, TF__JOB_STATE__DONE);
	assert_int_equal(harness_state(&h, c), TF__JOB_STATE__CANCELLED);
	says(c, "it waits for job 2 to be done, which is failed");
	assert_int_equal(harness_state(&h, d2), TF__JOB_STATE__CANCELLED);
	says(d2, "to fail, which is cancelled");
	assert_int_equal(harness_state(&h, g), TF__JOB_STATE__CANCELLED);
	/* what cannot come any more is refused at once */
	{
		Tf__JobSpec spec = TF__JOB_SPEC__INIT;

		spec.n_after_failed = 1;
		spec.after_failed = &a;
		assert_int_equal(submit("done", &spec, NULL), TF_EREFUSED);
		assert_non_null(strstr(e.text, "to fail, which is done"));
	}
}

static void held_jobs_stay_until_they_are_released(void **state)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	uint64_t held, first, second, next;

	(void)state;
	spec.has_hold = spec.hold = true;
	assert_ok(submit("done", &spec, &held), &e);
	first = harness_noop(&h, "wait");
	harness_until(&h, first, TF__JOB_STATE__RUNNING); /* it went past */
	second = after('d', first, "done");
	next = harness_noop(&h, "done");
	assert_ok(ask(TF__REQUEST__BODY_JOB_HOLD, second), &e);
	assert_ok(ask(TF__REQUEST__BODY_JOB_HOLD, next), &e);
	says(next, "held by");
	assert_int_equal(ask(TF__REQUEST__BODY_JOB_HOLD, first), TF_ESTATE);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	assert_int_equal(harness_state(&h, held), TF__JOB_STATE__HELD);
	assert_ok(ask(TF__REQUEST__BODY_JOB_RELEASE, second), &e);
	assert_int_equal(harness_state(&h, second), TF__JOB_STATE__WAITING);
	assert_ok(ask(TF__REQUEST__BODY_JOB_RELEASE, held), &e);
	assert_int_equal(harness_state(&h, held), TF__JOB_STATE__QUEUED);
	harness_cancel(h.line, first, NULL);
	harness_until(&h, held, TF__JOB_STATE__DONE);
	harness_until(&h, second, TF__JOB_STATE__CANCELLED);
	assert_int_equal(harness_state(&h, next), TF__JOB_STATE__HELD);
	assert_ok(ask(TF__REQUEST__BODY_JOB_RELEASE, next), &e);
	harness_until(&h, next, TF__JOB_STATE__DONE);
	assert_int_equal(ask(TF__REQUEST__BODY_JOB_RELEASE, next), TF_ESTATE);
}

static void an_ended_job_is_put_back(void **state)
{
	uint64_t first = harness_noop(&h, "first"), waiter = after('d', first, "done"), done;
	Tf__Reply *reply;
	char *log;

	(void)state;
	harness_until(&h, first, TF__JOB_STATE__FAILED); /* in its first attempt only */
	harness_until(&h, waiter, TF__JOB_STATE__CANCELLED);
	assert_int_equal(ask(TF__REQUEST__BODY_JOB_REQUEUE, waiter), TF_EREFUSED);
	done = harness_noop(&h, "done"); /* a newer one, so that the older comes in between */
	harness_until(&h, done, TF__JOB_STATE__DONE);
	assert_int_equal(ask(TF__REQUEST__BODY_JOB_REQUEUE, done), TF_ESTATE);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	assert_ok(ask(TF__REQUEST__BODY_JOB_REQUEUE, first), &e);
	assert_ok(ask(TF__REQUEST__BODY_JOB_REQUEUE, waiter), &e);
	harness_until(&h, first, TF__JOB_STATE__DONE);
	harness_until(&h, waiter, TF__JOB_STATE__DONE);
	reply = harness_show(&h, first);
	assert_int_equal(reply->jobs->job[0]->attempt, 2);
	assert_int_equal(reply->jobs->job[0]->requeued, 1);
	tf__reply__free_unpacked(reply, NULL);
	log = harness_log(&h, first);
	assert_string_equal(log, "begin 1\nend 1\nbegin 2\nend 2\n");
	xfree(log);
}

/* Both requests come in one turn, at least once: what follows from the end comes before. */
static void a_job_is_put_back_in_the_turn_of_its_end(void **state)
{
	void *context = zmq_ctx_new(), *socket = harness_socket(&h, context, NULL);
	uint64_t first = harness_noop(&h, "wait"), job = harness_noop(&h, "done");
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;
	Tf__Reply *reply;

	(void)state;
	r.version = TF_PROTOCOL_VERSION;
	r.job_cancel = &m; /* and job_requeue */
	m.n_job = 1;
	m.job = &job;
	for (r.id = 1; r.id <= 100; r.id++) {
		r.body_case = r.id % 2 ? TF__REQUEST__BODY_JOB_CANCEL
				       : TF__REQUEST__BODY_JOB_REQUEUE;
		harness_send(socket, &r);
	}
	for (uint64_t id = 1; id <= 100; id++) {
		reply = harness_receive(socket, LIMIT_WAIT_MS);
		assert_non_null(reply);
		assert_int_equal(reply->id, id);
		assert_int_equal(reply->code, 0);
		tf__reply__free_unpacked(reply, NULL);
	}
	zmq_close(socket);
	zmq_ctx_term(context);
	assert_ok(harness_cancel(h.line, first, &e), &e);
	harness_until(&h, job, TF__JOB_STATE__DONE);
}

/* An admin who puts back the job of another is not asked for their own room in the queue. */
static void the_owners_limits_count_when_a_job_is_put_back(void **state)
{
	struct key_pair keys;
	struct connection *own;
	uint64_t failed, waiting;
	char *user;

	(void)state;
	harness_kill(&h, SIGTERM);
	assert_ok(key_pair_make(&keys, &e), &e);
	user = xasprintf("ann member %s", keys.public_key);
	h.extra[0] = "--user";
	h.extra[1] = user;
	h.extra[2] = "--user-limit";
	h.extra[3] = "ann queued=1";
	harness_start(&h);
	own = h.line;
	h.line = harness_line(&h, &keys);
	failed = harness_noop(&h, "fail");
	harness_until(&h, failed, TF__JOB_STATE__FAILED);
	waiting = harness_noop(&h, "wait");
	harness_until(&h, waiting, TF__JOB_STATE__RUNNING);
	waiting = harness_noop(&h, "done");
	connection_close(h.line);
	h.line = own;
	assert_int_equal(ask(TF__REQUEST__BODY_JOB_REQUEUE, failed), TF_ELIMIT);
	assert_string_equal(e.text, "ann has 1 jobs waiting, the limit");
	assert_ok(harness_cancel(h.line, waiting, &e), &e);
	assert_ok(ask(TF__REQUEST__BODY_JOB_REQUEUE, failed), &e);
	xfree(user);
}

/* A member changes their own jobs; several at once are all theirs or none is changed. */
static void the_jobs_of_others_are_left_alone(void **state)
{
	static const Tf__Request__BodyCase what[] = { TF__REQUEST__BODY_JOB_HOLD,
						      TF__REQUEST__BODY_JOB_RELEASE,
						      TF__REQUEST__BODY_JOB_REQUEUE };
	uint64_t first = harness_noop(&h, "wait"), failed, queued, both[2];
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;
	struct key_pair keys;
	struct connection *own;
	char *user;

	(void)state;
	harness_cancel(h.line, first, NULL);
	failed = harness_noop(&h, "fail");
	harness_until(&h, failed, TF__JOB_STATE__FAILED);
	harness_kill(&h, SIGTERM);
	assert_ok(key_pair_make(&keys, &e), &e);
	user = xasprintf("ann member %s", keys.public_key);
	h.extra[0] = "--user";
	h.extra[1] = user;
	harness_start(&h);
	first = harness_noop(&h, "wait");
	queued = harness_noop(&h, "done");
	own = h.line;
	h.line = harness_line(&h, &keys);
	for (size_t i = 0; i < ARRAY_LEN(what); i++) {
		assert_int_equal(ask(what[i], i == 2 ? failed : queued), TF_EREFUSED);
		assert_non_null(strstr(e.text, "belongs to"));
	}
	both[0] = harness_noop(&h, "done");
	both[1] = queued;
	m.job = both;
	m.n_job = 2;
	r.body_case = TF__REQUEST__BODY_JOB_HOLD;
	r.job_hold = &m;
	err_clear(&e);
	assert_int_equal(harness_call(h.line, &r, NULL, &e), TF_EREFUSED);
	assert_int_equal(harness_state(&h, both[0]), TF__JOB_STATE__QUEUED);
	connection_close(h.line);
	h.line = own;
	assert_int_equal(harness_state(&h, queued), TF__JOB_STATE__QUEUED);
	assert_ok(harness_call(h.line, &r, NULL, &e), &e); /* an admin may */
	xfree(user);
}

/* A job that waits for others says for which. */
static void what_is_waited_for_is_told(void **state)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	uint64_t first = harness_noop(&h, "wait"), after[2] = { first, 0 }, id;
	Tf__Reply *reply;

	(void)state;
	harness_until(&h, first, TF__JOB_STATE__RUNNING);
	after[1] = harness_noop(&h, "done");
	spec.kind = TF__JOB_KIND__NOOP;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	spec.n_after = 2;
	spec.after = after;
	assert_ok(harness_submit(h.line, &spec, NULL, false, &id, &e), &e);
	reply = harness_show(&h, id);
	assert_non_null(reply->jobs->job[0]->waits);
	assert_string_equal(reply->jobs->job[0]->waits,
			    "after job 1, which is running, and 1 more");
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(harness_cancel(h.line, first, &e), &e);
}

/* One that cannot be changed does not keep the others from it, wherever it stands; all of them: an
 * error as of one alone. */
static void some_of_several_are_changed(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobRefs m = TF__JOB_REFS__INIT;
	Tf__Reply *reply = NULL;
	uint64_t job[4];

	(void)state;
	job[0] = harness_noop(&h, "done");
	harness_until(&h, job[0], TF__JOB_STATE__DONE);
	job[1] = harness_noop(&h, "wait");
	harness_until(&h, job[1], TF__JOB_STATE__RUNNING);
	job[2] = harness_noop(&h, "done");
	job[3] = 0;
	m.job = job;
	m.n_job = 3;
	r.body_case = TF__REQUEST__BODY_JOB_HOLD;
	r.job_hold = &m;
	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	assert_int_equal(reply->jobs->n_job, 1);
	assert_int_equal(reply->jobs->job[0]->id, job[2]);
	assert_int_equal(reply->jobs->job[0]->state, TF__JOB_STATE__HELD);
	assert_int_equal(reply->jobs->n_refused, 2);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(reply->jobs->refused[i]->job, job[i]);
		assert_int_equal(reply->jobs->refused[i]->code, TF_ESTATE);
		assert_true(*reply->jobs->refused[i]->text != 0);
	}
	tf__reply__free_unpacked(reply, NULL);
	m.n_job = 2;
	assert_int_equal(harness_call(h.line, &r, NULL, &e), TF_ESTATE);
	assert_non_null(strstr(e.text, "nor is another one changed"));
	job[3] = 4711;
	m.job = job + 2;
	r.body_case = TF__REQUEST__BODY_JOB_RELEASE;
	assert_int_equal(harness_call(h.line, &r, NULL, &e), TF_ENOTFOUND);
	assert_int_equal(harness_state(&h, job[2]), TF__JOB_STATE__HELD);
	assert_ok(harness_cancel(h.line, job[1], &e), &e);
}

/* ---------------------------------------------------------------- groups */

static uint64_t in_group(const char *how, const char *group, uint32_t most)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	uint64_t id = 0;

	spec.group = (char *)group;
	spec.has_group_running = true;
	spec.group_running = most;
	assert_ok(submit(how, &spec, &id), &e);
	return id;
}

static void so_many_of_a_group_run(void **state)
{
	uint64_t job[4], other;
	Tf__Reply *reply;

	(void)state;
	harness_kill(&h, SIGTERM);
	h.slots = "4";
	harness_start(&h);
	for (size_t i = 0; i < ARRAY_LEN(job); i++)
		job[i] = in_group("wait", "few", 2);
	harness_until(&h, job[1], TF__JOB_STATE__RUNNING);
	other = in_group("done", "more", 1); /* it goes past those that wait */
	harness_until(&h, other, TF__JOB_STATE__DONE);
	assert_int_equal(harness_state(&h, job[2]), TF__JOB_STATE__QUEUED);
	reply = harness_show(&h, job[2]);
	assert_string_equal(reply->jobs->job[0]->waits, "2 jobs of group few may run at a time");
	assert_false(reply->jobs->job[0]->has_expected_start); /* for all the free slots */
	tf__reply__free_unpacked(reply, NULL);
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	other = in_group("done", "more", 1);
	harness_until(&h, other, TF__JOB_STATE__DONE);
	assert_int_equal(harness_state(&h, job[0]), TF__JOB_STATE__RUNNING);
	assert_int_equal(harness_state(&h, job[2]), TF__JOB_STATE__QUEUED);
	assert_ok(harness_cancel(h.line, job[0], &e), &e);
	harness_until(&h, job[2], TF__JOB_STATE__RUNNING);
	assert_int_equal(harness_state(&h, job[3]), TF__JOB_STATE__QUEUED);
}

static void groups_are_counted(void **state)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	char name[16];
	uint64_t id;

	(void)state;
	spec.has_hold = spec.hold = spec.has_group_running = true;
	spec.group_running = 1;
	assert_int_equal(submit("done", &spec, &id), TF_EINVALID); /* of which group? */
	spec.group = name;
	for (unsigned i = 0; i <= LIMIT_GROUPS; i++) {
		snprintf(name, sizeof name, "g%u", i);
		assert_int_equal(submit("done", &spec, &id), i < LIMIT_GROUPS ? 0 : TF_ELIMIT);
	}
	snprintf(name, sizeof name, "g1");
	assert_ok(submit("done", &spec, &id), &e);
	spec.group_running = 0;
	assert_int_equal(submit("done", &spec, &id), TF_EINVALID);
}

/* ---------------------------------------------------------------- tags */

/* The ids that a list gives, as text, newest first. */
static char *list(const char *tag, Tf__JobState job_state, uint64_t before, Tf__Jobs *last)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobList m = TF__JOB_LIST__INIT;
	Tf__Reply *reply = NULL;
	struct buf out = BUF_INIT;

	m.has_all = m.all = true;
	m.has_before = before > 0;
	m.before = before;
	m.n_tag = tag != NULL;
	m.tag = (char **)&tag;
	m.n_state = job_state != 0;
	m.state = &job_state;
	r.body_case = TF__REQUEST__BODY_JOB_LIST;
	r.job_list = &m;
	err_clear(&e);
	assert_ok(harness_call(h.line, &r, &reply, &e), &e);
	for (size_t i = 0; i < reply->jobs->n_job; i++)
		buf_printf(&out, "%llu ", (unsigned long long)reply->jobs->job[i]->id);
	if (last)
		*last = (Tf__Jobs){ .more = reply->jobs->more, .next = reply->jobs->next };
	tf__reply__free_unpacked(reply, NULL);
	buf_text(&out, "");
	return buf_detach(&out);
}

static void lists(const char *tag, Tf__JobState job_state, const char *wanted)
{
	char *got = list(tag, job_state, 0, NULL);

	assert_string_equal(got, wanted);
	xfree(got);
}

static void lists_are_filtered(void **state)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	char *tags[] = { (char *)"red", (char *)"blue" }, *many[LIMIT_TAGS + 1];
	uint64_t id;

	(void)state;
	spec.has_hold = spec.hold = true;
	assert_ok(submit("done", &spec, &id), &e);
	spec.tag = tags;
	spec.n_tag = 1;
	assert_ok(submit("done", &spec, &id), &e);
	spec.n_tag = 2;
	assert_ok(submit("done", &spec, &id), &e);
	spec.hold = false;
	assert_ok(submit("done", &spec, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	lists(NULL, 0, "4 3 2 1 ");
	lists("red", 0, "4 3 2 ");
	lists("blue", 0, "4 3 ");
	lists("green", 0, "");
	lists(NULL, TF__JOB_STATE__HELD, "3 2 1 ");
	lists("blue", TF__JOB_STATE__HELD, "3 ");
	for (size_t i = 0; i <= LIMIT_TAGS; i++)
		many[i] = (char *)"many";
	spec.tag = many;
	spec.n_tag = LIMIT_TAGS + 1;
	assert_int_equal(submit("done", &spec, &id), TF_ELIMIT);
	spec.n_tag = LIMIT_TAGS;
	assert_ok(submit("done", &spec, &id), &e);
	many[0] = (char *)"a/b";
	assert_int_equal(submit("done", &spec, &id), TF_EINVALID);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(some_of_several_are_changed, harness_started),
		WITH_HARNESS(what_is_waited_for_is_told, harness_started),
		WITH_HARNESS(jobs_wait_for_every_kind_of_end, harness_started),
		WITH_HARNESS(held_jobs_stay_until_they_are_released, harness_started),
		WITH_HARNESS(an_ended_job_is_put_back, harness_started),
		WITH_HARNESS(a_job_is_put_back_in_the_turn_of_its_end, harness_started),
		WITH_HARNESS(the_owners_limits_count_when_a_job_is_put_back, harness_started),
		WITH_HARNESS(the_jobs_of_others_are_left_alone, harness_started),
		WITH_HARNESS(so_many_of_a_group_run, harness_started),
		WITH_HARNESS(groups_are_counted, harness_started),
		WITH_HARNESS(lists_are_filtered, harness_started),
	};

	return cmocka_run_group_tests_name("shapes", tests, NULL, NULL);
}
