/* SPDX-License-Identifier: Apache-2.0
 * The worker's line to the daemon against a small daemon in a thread: hello, progress, orders,
 * fencing, a daemon that goes away and comes back, and the outcome. */
#include "tests/test.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "tests/worker/fake_daemon.h"
#include "worker/link.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

static char *folder, *endpoint;
static char server_public[41], server_secret[41], worker_public[41], worker_secret[41];

static atomic_int fenced_calls;

static void on_fenced(const char *text)
{
	assert_string_equal(text, "as the test wants");
	fenced_calls++;
}

static void begin(struct fake *f)
{
	static Tf__Assignment a = TF__ASSIGNMENT__INIT;
	static Tf__JobSpec spec = TF__JOB_SPEC__INIT;

	spec.kind = TF__JOB_KIND__NOOP;
	a.job = JOB;
	a.attempt = ATTEMPT;
	a.spec = &spec;
	a.job_folder = a.attempt_folder = folder;
	f->endpoint = endpoint;
	f->secret_key = server_secret;
	f->assignment = &a;
	fake_start(f);
}

static struct link *open_link(void)
{
	struct link_options o = {
		endpoint, server_public, worker_secret, JOB, ATTEMPT, on_fenced
	};
	struct link *l = NULL;
	struct err e = ERR_INIT;

	assert_ok(link_open(&o, &l, &e), &e);
	return l;
}

static void progress(struct link *l, uint64_t done)
{
	Tf__Progress p = TF__PROGRESS__INIT;

	p.has_done = true;
	p.done = done;
	link_progress(l, &p);
}

static void hello_progress_and_outcome(void **state)
{
	const Tf__Assignment *a = NULL;
	struct err e = ERR_INIT;
	struct fake f;
	struct link *l;
	Tf__Outcome o = TF__OUTCOME__INIT;
	struct buf packed = BUF_INIT;

	(void)state;
	begin(&f);
	l = open_link();
	assert_ok(link_assignment(l, WAIT_MS, &a, &e), &e);
	assert_int_equal(a->job, JOB);
	assert_int_equal(a->spec->kind, TF__JOB_KIND__NOOP);
	progress(l, 42);
	wait_for(f.reports, 1);
	assert_int_equal(f.progress, 42);
	assert_int_equal(link_stop(l), TF__STOP_REASON__STOP_NONE);
	o.version = 1;
	o.code = TF_ENAN;
	buf_reserve(&packed, 100);
	packed.len = tf__outcome__pack(&o, (uint8_t *)packed.data);
	link_done(l, &packed, false);
	assert_ok(link_told(l, WAIT_MS, &e), &e);
	assert_int_equal(f.dones, 1);
	assert_int_equal(f.last_done_code, TF_ENAN);
	assert_true(link_peak_rss_anon(l) > 0);
	link_close(l);
	fake_stop(&f);
	buf_release(&packed);
}

/* The next job comes with the answer to the outcome. The earlier one's memory stays until the
 * process asks. */
static void a_job_comes_with_the_answer(void **state)
{
	Tf__Assignment second = TF__ASSIGNMENT__INIT;
	const Tf__Assignment *a = NULL, *b = NULL;
	struct err e = ERR_INIT;
	struct fake f;
	struct link *l;
	Tf__Outcome o = TF__OUTCOME__INIT;
	struct buf packed = BUF_INIT;

	(void)state;
	begin(&f);
	l = open_link();
	assert_ok(link_assignment(l, WAIT_MS, &a, &e), &e);
	second = *a;
	second.job = JOB + 1;
	f.next = &second;
	f.next_with_done = 1;
	o.version = 1;
	buf_reserve(&packed, 100);
	packed.len = tf__outcome__pack(&o, (uint8_t *)packed.data);
	progress(l, 7); /* its answer is not waited for */
	link_done(l, &packed, true);
	assert_ok(link_told(l, WAIT_MS, &e), &e);
	clock_sleep_ms(50);
	assert_int_equal(a->job, JOB);
	assert_ok(link_next(l, WAIT_MS, &b, &e), &e);
	assert_int_equal(b->job, JOB + 1);
	link_done(l, &packed, false);
	assert_ok(link_told(l, WAIT_MS, &e), &e);
	assert_int_equal(f.dones, 2);
	link_close(l);
	fake_stop(&f);
	buf_release(&packed);
}

static void an_order_arrives(void **state)
{
	const Tf__Assignment *a = NULL;
	struct err e = ERR_INIT;
	struct fake f;
	struct link *l;

	(void)state;
	begin(&f);
	f.order = TF__STOP_REASON__STOP_PREEMPT;
	l = open_link();
	assert_ok(link_assignment(l, WAIT_MS, &a, &e), &e);
	wait_for((int)link_stop(l), 1);
	assert_int_equal(link_stop(l), TF__STOP_REASON__STOP_PREEMPT);
	link_leave(l); /* the first reason stays */
	assert_int_equal(link_stop(l), TF__STOP_REASON__STOP_PREEMPT);
	link_close(l);
	fake_stop(&f);
}

/* Reports never wait, and the newest one reaches the next daemon after a hello. */
static void a_daemon_goes_and_comes_back(void **state)
{
	const Tf__Assignment *a = NULL;
	struct err e = ERR_INIT;
	struct fake f;
	struct link *l;
	int64_t start;

	(void)state;
	begin(&f);
	l = open_link();
	assert_ok(link_assignment(l, WAIT_MS, &a, &e), &e);
	fake_stop(&f);
	start = clock_mono_ms();
	for (uint64_t i = 1; i <= 1000; i++)
		progress(l, i);
	assert_true(clock_mono_ms() - start < WAIT_MS); /* 1000 that waited would take longer */
	clock_sleep_ms(300);
	begin(&f);
	wait_for(f.reports, 1);
	assert_int_equal(f.progress, 1000);
	assert_string_equal(a->job_folder, folder); /* still the first assignment's memory */
	link_close(l);
	fake_stop(&f);
}

/* A request that is not answered is followed by a new hello. */
static void silence_leads_to_a_new_hello(void **state)
{
	const Tf__Assignment *a = NULL;
	struct err e = ERR_INIT;
	struct fake f;
	struct link *l;

	(void)state;
	begin(&f);
	l = open_link();
	assert_ok(link_assignment(l, WAIT_MS, &a, &e), &e);
	f.silent = 1;
	progress(l, 5);
	wait_for(f.hellos, 2);
	progress(l, 6);
	wait_for(f.progress, 6);
	link_close(l);
	fake_stop(&f);
}

static void a_fenced_attempt_is_told(void **state)
{
	const Tf__Assignment *a = NULL;
	struct err e = ERR_INIT;
	struct fake f;
	struct link *l;

	(void)state;
	begin(&f);
	l = open_link();
	assert_ok(link_assignment(l, WAIT_MS, &a, &e), &e);
	f.answer = TF_EFENCED;
	progress(l, 1);
	wait_for(fenced_calls, 1);
	link_close(l);
	fake_stop(&f);
}

static void refusals_and_absence_end_with_a_sentence(void **state)
{
	struct link_options bad = { endpoint, "short", worker_secret, JOB, ATTEMPT, on_fenced };
	const Tf__Assignment *a = NULL;
	struct err e = ERR_INIT;
	struct fake f;
	struct link *l = open_link();

	(void)state;
	assert_int_equal(link_assignment(l, 200, &a, &e), TF_ENODAEMON);
	assert_non_null(strstr(e.text, "gave no assignment in 0 s"));
	begin(&f);
	f.answer = TF_EREFUSED;
	wait_for(f.hellos, 1);
	err_clear(&e);
	assert_int_equal(link_assignment(l, 500, &a, &e), TF_ENODAEMON);
	assert_non_null(strstr(e.text, "as the test wants"));
	f.answer = 0;
	err_clear(&e);
	assert_ok(link_assignment(l, WAIT_MS, &a, &e), &e);
	link_close(l);
	fake_stop(&f);
	assert_int_equal(link_open(&bad, &l, &e), TF_EINVALID);
	err_clear(&e);
	bad.server_key = server_public;
	bad.endpoint = "nowhere";
	assert_int_equal(link_open(&bad, &l, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "endpoint 'nowhere'"));
}

static int set_up(void **state)
{
	const char *tmp = getenv("TMPDIR");

	(void)state;
	folder = xasprintf("%s/tl.XXXXXX", tmp ? tmp : "/tmp");
	if (!mkdtemp(folder))
		return -1;
	endpoint = xasprintf("ipc://%s/s", folder);
	return zmq_curve_keypair(server_public, server_secret) |
	       zmq_curve_keypair(worker_public, worker_secret);
}

static int tear_down(void **state)
{
	int rc = dir_remove(folder, NULL);

	(void)state;
	xfree(folder);
	xfree(endpoint);
	return rc;
}

int main(void)
{
	const struct CMUnitTest link_tests[] = {
		cmocka_unit_test(hello_progress_and_outcome),
		cmocka_unit_test(a_job_comes_with_the_answer),
		cmocka_unit_test(an_order_arrives),
		cmocka_unit_test(a_daemon_goes_and_comes_back),
		cmocka_unit_test(silence_leads_to_a_new_hello),
		cmocka_unit_test(a_fenced_attempt_is_told),
		cmocka_unit_test(refusals_and_absence_end_with_a_sentence),
	};
	return cmocka_run_group_tests_name("link", link_tests, set_up, tear_down);
}
