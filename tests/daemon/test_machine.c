/* SPDX-License-Identifier: Apache-2.0
 * What there is and who has it: places found and given, drained GPUs, names written and read back,
 * what fits nowhere; then the same with a live daemon, over a restart. */
#include "tests/daemon/harness.h"
#include "daemon/machine.h"
#include "lib/buf.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "lib/quantity.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#define G (1ull << 30)

static struct machine two_gpus(void)
{
	struct machine m = { .slots = 2, .cpus = 8, .mem = 64 * G };
	struct err e = ERR_INIT;

	assert_ok(gpu_parse("gpu0 cuda:0 80G GPU-aaaa", &m.gpu[m.gpus++], &e), &e);
	assert_ok(gpu_parse("gpu1 cuda:1 40G", &m.gpu[m.gpus++], &e), &e);
	return m;
}

static bool give(struct room *r, const struct machine *m, struct demand want, const char *expected)
{
	char text[HOLDING_TEXT_MAX];
	struct holding h;

	if (!room_place(r, &want, &h))
		return expected == NULL;
	room_take(r, m, &h);
	holding_text(m, &h, text);
	if (!expected || strcmp(text, expected) != 0)
		print_message("given %s instead of %s\n", text, expected ? expected : "nothing");
	return expected && strcmp(text, expected) == 0;
}

static void places_are_found_and_given(void **state)
{
	struct machine m = two_gpus();
	struct room r;

	(void)state;
	room_init(&r, &m, false);
	assert_true(give(&r, &m, (struct demand){ .cpus = 5 }, "cpu0"));
	assert_true(give(&r, &m, (struct demand){ .cpus = 4 }, NULL));
	assert_true(give(&r, &m, (struct demand){ .mem = 65 * G }, NULL));
	assert_true(give(&r, &m, (struct demand){ .mem = 64 * G }, "cpu1"));
	assert_true(give(&r, &m, (struct demand){ 0 }, NULL));
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 90 * G }, NULL));
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 30 * G }, "gpu0/30G"));
	assert_true(give(&r, &m, (struct demand){ .gpus = 2 }, NULL));
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 50 * G }, "gpu0/50G"));
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = G / 2 }, "gpu1/512M"));
	assert_true(give(&r, &m, (struct demand){ .gpus = 1 }, NULL));
	room_init(&r, &m, false);
	assert_true(give(&r, &m, (struct demand){ .gpus = 2 }, "gpu0,gpu1"));
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 1 }, NULL));
}

/* A share goes where the least is left, so that whole GPUs stay whole. */
static void shares_gather(void **state)
{
	struct machine m = two_gpus();
	struct room r;

	(void)state;
	room_init(&r, &m, false);
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 60 * G }, "gpu0/60G"));
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 25 * G }, "gpu1/25G"));
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 10 * G }, "gpu1/10G"));
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 15 * G }, "gpu0/15G"));
}

static void a_drained_gpu_takes_nothing_new(void **state)
{
	struct machine m = two_gpus();
	struct demand both = { .gpus = 2 };
	struct holding h = { .slot = -1, .gpus = 1, .share = G };
	struct err e = ERR_INIT;
	struct room r;

	(void)state;
	m.gpu[0].drained = true;
	room_init(&r, &m, false);
	room_take(&r, &m, &h); /* one that has run there since before */
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 2 * G }, "gpu1/2G"));
	assert_true(give(&r, &m, (struct demand){ .gpu_mem = 39 * G }, NULL));
	assert_ok(machine_suits(&m, &both, &e), &e); /* it may come back */
}

static void names_are_read_back(void **state)
{
	static const char *const text[] = { "cpu1", "gpu0,gpu1", "gpu1/20G", "gpu0/1234567" };
	struct machine m = two_gpus();
	char again[HOLDING_TEXT_MAX];
	struct holding h;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(text); i++) {
		holding_parse(&m, text[i], &h);
		holding_text(&m, &h, again);
		assert_string_equal(again, text[i]);
	}
	holding_parse(&m, "cpu9", &h);
	assert_int_equal(h.slot, -1);
	holding_parse(&m, "gpu7,gpu1", &h);
	assert_int_equal(h.gpus, 2);
}

static void what_fits_nowhere_is_told_what_exists(void **state)
{
	struct machine m = two_gpus();
	struct demand three = { .gpus = 3 }, much = { .mem = 65 * G };
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(machine_suits(&m, &three, &e), TF_EREFUSED);
	assert_string_equal(e.text, "the job asks for 3 GPUs, 0 CPUs and 0 of memory; this machine "
				    "has 2 slots of the processor, 8 CPUs, 64G of memory, 2 GPUs "
				    "(gpu0 80G, gpu1 40G)");
	assert_int_equal(machine_suits(&m, &much, &e), TF_EREFUSED);
}

static void gpus_and_sizes_are_read_strictly(void **state)
{
	static const char *const wrong[] = { "", "gpu0 cuda:0", "gpu0 cpu 80G", "gpu0 cuda:0 80X",
					     "cpu0 cuda:0 8G", "a,b cuda:0 8G",
					     "gpu0 cuda:0 80G uuid more" };
	static const char *const sizes[] = { "", "G", "-1G", "1.5G", "20GX", "99999999T", "20 G" };
	static const char *const spans[] = { "", "h", "1m1h", "1x", "5m3", "-1s" };
	struct err e = ERR_INIT;
	uint64_t bytes;
	int64_t seconds;
	struct gpu g;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
		assert_int_equal(gpu_parse(wrong[i], &g, &e), TF_EINVALID);
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++)
		assert_int_equal(size_parse("size", sizes[i], &bytes, &e), TF_EINVALID);
	for (size_t i = 0; i < ARRAY_LEN(spans); i++)
		assert_int_equal(span_parse("span", spans[i], &seconds, &e), TF_EINVALID);
	assert_ok(size_parse("size", "20GiB", &bytes, &e), &e);
	assert_true(bytes == 20 * G);
	assert_ok(span_parse("span", "1d2h3m4s", &seconds, &e), &e);
	assert_int_equal(seconds, 86400 + 7200 + 180 + 4);
	assert_ok(span_parse("span", "90", &seconds, &e), &e);
	assert_int_equal(seconds, 90);
}

/* ---------------------------------------------------------------- live */

static uint64_t submit(struct harness *h, const char *how, Tf__Demand demand, int expected,
		       struct err *e)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	uint64_t id = 0;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)how;
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	spec.demand = &demand;
	err_clear(e);
	assert_int_equal(harness_submit(h->line, &spec, NULL, false, &id, e), expected);
	return id;
}

static Tf__Demand gpus_of(uint32_t gpus, uint64_t share)
{
	Tf__Demand d = TF__DEMAND__INIT;

	d.has_gpus = gpus > 0;
	d.gpus = gpus;
	d.has_gpu_mem = share > 0;
	d.gpu_mem = share;
	return d;
}

static void expect_slot(struct harness *h, uint64_t id, const char *slot)
{
	Tf__Reply *reply = harness_show(h, id);

	assert_non_null(reply->jobs->job[0]->slot);
	assert_string_equal(reply->jobs->job[0]->slot, slot);
	tf__reply__free_unpacked(reply, NULL);
}

static void expect_in_log(struct harness *h, uint64_t id, const char *line)
{
	int64_t until = clock_mono_ms() + 60000;
	char *log = harness_log(h, id);

	while ((!log || !strstr(log, line)) && clock_mono_ms() < until) {
		xfree(log);
		clock_sleep_ms(5);
		log = harness_log(h, id);
	}
	if (!log || !strstr(log, line))
		fail_msg("no '%s' in '%s'", line, log ? log : "");
	xfree(log);
}

static void start_with_gpus(struct harness *h)
{
	static const char *const options[] = { "--gpu",  "gpu0 cuda:0 80G GPU-aaaa", "--gpu",
					       "gpu1 cuda:1 40G", "--cpus", "8" };

	harness_init(h);
	for (size_t i = 0; i < ARRAY_LEN(options); i++)
		h->extra[i] = options[i];
	harness_start(h);
}

/* What is held is held over a kill of the daemon, and each worker sees its own alone. */
static void holdings_outlive_the_daemon(void **state)
{
	struct harness h;
	struct err e = ERR_INIT;
	uint64_t whole, share, second, later;
	Tf__Demand hour = gpus_of(0, 50 * G);

	(void)state;
	start_with_gpus(&h);
	share = submit(&h, "env", gpus_of(0, 30 * G), 0, &e);
	whole = submit(&h, "env", gpus_of(1, 0), 0, &e);
	harness_until(&h, share, TF__JOB_STATE__RUNNING);
	harness_until(&h, whole, TF__JOB_STATE__RUNNING);
	expect_slot(&h, share, "gpu0/30G");
	expect_slot(&h, whole, "gpu1");
	expect_in_log(&h, share, "CUDA_VISIBLE_DEVICES=GPU-aaaa device=cuda:0");
	expect_in_log(&h, whole, "CUDA_VISIBLE_DEVICES=1 device=cuda:0");
	harness_kill(&h, SIGKILL);
	harness_start(&h);
	later = submit(&h, "done", gpus_of(0, 51 * G), 0, &e);
	hour.has_walltime = true; /* one that never ends would stand in the way of `later` */
	hour.walltime = 3600;
	second = submit(&h, "env", hour, 0, &e);
	harness_until(&h, second, TF__JOB_STATE__RUNNING);
	expect_slot(&h, second, "gpu0/50G");
	assert_int_equal(harness_state(&h, later), TF__JOB_STATE__QUEUED);
	assert_ok(harness_cancel(h.line, share, &e), &e);
	assert_ok(harness_cancel(h.line, second, &e), &e);
	harness_until(&h, later, TF__JOB_STATE__DONE);
	harness_stop(&h);
}

static void processors_and_memory_are_counted(void **state)
{
	struct harness h;
	struct err e = ERR_INIT;
	Tf__Demand six = TF__DEMAND__INIT, three = TF__DEMAND__INIT;
	uint64_t first, second;

	(void)state;
	six.has_cpus = three.has_cpus = six.has_mem = true;
	six.cpus = 6;
	six.mem = G;
	three.cpus = 3;
	harness_init(&h);
	h.slots = "2";
	h.extra[0] = "--cpus";
	h.extra[1] = "8";
	h.extra[2] = "--mem";
	h.extra[3] = "4G";
	harness_start(&h);
	first = submit(&h, "env", six, 0, &e);
	second = submit(&h, "done", three, 0, &e);
	expect_in_log(&h, first, "OMP_NUM_THREADS=6 threads=6");
#if !defined(__SANITIZE_ADDRESS__)
	expect_in_log(&h, first, "data=1073741824");
#endif
	assert_int_equal(harness_state(&h, second), TF__JOB_STATE__QUEUED);
	assert_ok(harness_cancel(h.line, first, &e), &e);
	harness_until(&h, second, TF__JOB_STATE__DONE);
	six.mem = 5 * G;
	submit(&h, "done", six, TF_EREFUSED, &e);
	assert_non_null(strstr(e.text, "4G of memory"));
	harness_stop(&h);
}

static void a_demand_is_checked(void **state)
{
	struct harness h;
	struct err e = ERR_INIT;
	Tf__Demand both = gpus_of(1, G), many = gpus_of(LIMIT_GPUS + 1, 0), cpus;

	(void)state;
	start_with_gpus(&h);
	submit(&h, "done", both, TF_EINVALID, &e);
	submit(&h, "done", many, TF_EINVALID, &e);
	assert_non_null(strstr(e.text, "gpus is 65, expected 0 to 64"));
	submit(&h, "done", gpus_of(3, 0), TF_EREFUSED, &e);
	submit(&h, "done", gpus_of(0, 81 * G), TF_EREFUSED, &e);
	assert_non_null(strstr(e.text, "81G of a GPU"));
	cpus = (Tf__Demand)TF__DEMAND__INIT;
	cpus.has_cpus = true;
	cpus.cpus = LIMIT_CPUS + 1;
	submit(&h, "done", cpus, TF_EINVALID, &e);
	harness_stop(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(places_are_found_and_given),
		cmocka_unit_test(shares_gather),
		cmocka_unit_test(a_drained_gpu_takes_nothing_new),
		cmocka_unit_test(names_are_read_back),
		cmocka_unit_test(what_fits_nowhere_is_told_what_exists),
		cmocka_unit_test(gpus_and_sizes_are_read_strictly),
		cmocka_unit_test(holdings_outlive_the_daemon),
		cmocka_unit_test(processors_and_memory_are_counted),
		cmocka_unit_test(a_demand_is_checked),
	};

	return cmocka_run_group_tests_name("machine", tests, NULL, NULL);
}
