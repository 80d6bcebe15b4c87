/* SPDX-License-Identifier: Apache-2.0
 * Training: it learns, writes its metrics, and goes on bit for bit after a kill. */
#include "tests/test.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "store/checkpoints.h"
#include "tests/worker/toy.h"

#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct toy toy;

static char *in_folder(const char *name)
{
	return xasprintf("%s/%s", toy.folder, name);
}

static void same_file(const char *a, const char *b, const char *name)
{
	char *x = xasprintf("%s/%s", a, name), *y = xasprintf("%s/%s", b, name);
	struct buf p = BUF_INIT, q = BUF_INIT;
	struct err e = ERR_INIT;

	assert_ok(file_read(x, 1 << 26, &p, &e), &e);
	assert_ok(file_read(y, 1 << 26, &q, &e), &e);
	assert_int_equal(p.len, q.len);
	assert_memory_equal(p.data, q.data, p.len);
	buf_release(&p);
	buf_release(&q);
	xfree(x);
	xfree(y);
}

/* A figure of the metrics at a step; NaN when the line has it not. */
static double metric(const char *job, uint64_t step, const char *name)
{
	char *path = xasprintf("%s/%s/metrics.jsonl", toy.folder, job);
	struct buf text = BUF_INIT;
	struct err e = ERR_INIT;
	double value = NAN;
	char *save = NULL;

	assert_ok(file_read(path, 1 << 20, &text, &e), &e);
	for (char *line = strtok_r(text.data, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save)) {
		json_t *o = json_loads(line, 0, NULL);

		assert_non_null(o);
		if ((uint64_t)json_integer_value(json_object_get(o, "step")) == step &&
		    json_object_get(o, name))
			value = json_number_value(json_object_get(o, name));
		json_decref(o);
	}
	buf_release(&text);
	xfree(path);
	return value;
}

static void training_learns_and_reports(void **state)
{
	struct err e = ERR_INIT;
	uint64_t step = 0;

	(void)state;
	assert_ok(toy_train(&toy, "straight", toy.model, NULL, 0, &e), &e);
	assert_ok(checkpoints_find(toy.model, "latest", &step, &e), &e);
	assert_int_equal(step, 20);
	assert_true(metric("straight", 20, "loss") < 0.8 * metric("straight", 1, "loss"));
	assert_true(metric("straight", 20, "heldout_loss") <
		    metric("straight", 10, "heldout_loss"));
	assert_true(metric("straight", 20, "grad_norm") > 0);
	assert_true(fabs(metric("straight", 20, "lr") - 1e-4) < 1e-9);
}

static void kill_after(const char *model, const char *checkpoint, pid_t pid)
{
	char *path = xasprintf("%s/%s", model, checkpoint);
	int64_t end = clock_mono_ms() + 60000;

	while (!file_exists(path) && clock_mono_ms() < end)
		clock_sleep_ms(1);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	assert_true(file_exists(path));
	xfree(path);
}

/* 20 steps at once and 20 steps with two kills in between leave the same bytes. */
static void a_killed_run_goes_on_bit_for_bit(void **state)
{
	static const char *const at[] = { "step-00000005", "step-00000010" };
	char *model = in_folder("killed-model");
	char *one = xasprintf("%s/step-00000020", toy.model);
	char *two = xasprintf("%s/step-00000020", model);
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dir_make(model, 0700, &e), &e);
	for (int i = 0; i < 2; i++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(toy_train(&toy, "killed", model, NULL, 0, &e) == 0 ? 0 : 1);
		kill_after(model, at[i], pid);
	}
	assert_ok(toy_train(&toy, "killed", model, NULL, 0, &e), &e);
	same_file(one, two, "weights.safetensors");
	same_file(one, two, "ema.safetensors");
	same_file(one, two, "state.safetensors");
	for (uint64_t step = 1; step <= 20; step++)
		assert_true(metric("straight", step, "loss") == metric("killed", step, "loss"));
	assert_true(metric("straight", 20, "heldout_loss") ==
		    metric("killed", 20, "heldout_loss"));
	xfree(model);
	xfree(one);
	xfree(two);
}

/* Accumulating over micro batches is the same step up to rounding. */
static void micro_batches_make_the_same_step(void **state)
{
	static const char *const set[] = { "train.micro_batch=1", "train.steps=6" };
	char *model = in_folder("micro-model");
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dir_make(model, 0700, &e), &e);
	assert_ok(toy_train(&toy, "micro", model, set, 2, &e), &e);
	for (uint64_t step = 1; step <= 3; step++) {
		double a = metric("straight", step, "loss"), b = metric("micro", step, "loss");

		assert_true(fabs(a - b) < 1e-4 * a);
	}
	xfree(model);
}

static void what_does_not_fit_is_refused(void **state)
{
	static const char *const wider[] = { "model.ff=96" };
	static const char *const patch[] = { "model.patch=8" };
	static const char *const fewer[] = { "train.steps=10" };
	char *model = in_folder("other-model");
	struct err e = ERR_INIT;

	(void)state;
	assert_int_equal(toy_train(&toy, "wider", toy.model, wider, 1, &e), TF_EMISMATCH);
	assert_non_null(strstr(e.text, "state.safetensors"));
	err_clear(&e);
	assert_int_equal(toy_train(&toy, "fewer", toy.model, fewer, 1, &e), TF_EINVALID);
	assert_non_null(strstr(e.text, "the model has made 20 steps, train.steps is 10"));
	err_clear(&e);
	assert_ok(dir_make(model, 0700, &e), &e);
	assert_int_equal(toy_train(&toy, "patch", model, patch, 1, &e), TF_EINVALID);
	assert_non_null(
		strstr(e.text, "model.patch: found 8, expected a divisor of the latents' 4 x 4"));
	xfree(model);
}

static int set_up(void **state)
{
	(void)state;
	return toy_init(&toy);
}

static int tear_down(void **state)
{
	(void)state;
	toy_release(&toy);
	return 0;
}

int main(void)
{
	const struct CMUnitTest train[] = {
		cmocka_unit_test(training_learns_and_reports),
		cmocka_unit_test(a_killed_run_goes_on_bit_for_bit),
		cmocka_unit_test(micro_batches_make_the_same_step),
		cmocka_unit_test(what_does_not_fit_is_refused),
	};
	return cmocka_run_group_tests_name("train", train, set_up, tear_down);
}
