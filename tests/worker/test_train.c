/* SPDX-License-Identifier: Apache-2.0
 * Training: it learns, writes its metrics, and goes on bit for bit after a kill. */
#include "config.h"
#include "tests/test.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/limits.h"
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

#define KILLED 1 /* what train_with_fault returns when a fault killed the program */

/* This program again, with faults on (they are read once in a process) and settings apart by
 * blanks: what the job returned, its sentence in text. A job called vae... trains an
 * autoencoder. */
static int train_with_fault(const char *fault, const char *job, const char *model, const char *set,
			    char text[ERR_TEXT_MAX])
{
	struct err e = ERR_INIT;
	int ends[2], status = 0;
	pid_t pid;

	assert_int_equal(pipe(ends), 0);
	pid = fork();
	if (pid == 0) {
		setenv("TF_FAULT", fault, 1);
		dup2(ends[1], 3);
		execl("/proc/self/exe", "test_train", toy.folder, job, model, set, NULL);
		_exit(127);
	}
	close(ends[1]);
	if (read(ends[0], &e, sizeof e) == 0)
		e.code = KILLED;
	close(ends[0]);
	waitpid(pid, &status, 0);
	assert_true(WIFSIGNALED(status) == (e.code == KILLED));
	memcpy(text, e.text, ERR_TEXT_MAX);
	return e.code;
}

static int run_as_child(char **argv)
{
	const char *set[8];
	struct err e = ERR_INIT;
	char *save = NULL;
	size_t n = 0;

	for (char *word = strtok_r(argv[4], " ", &save); word && n < ARRAY_LEN(set);
	     word = strtok_r(NULL, " ", &save))
		set[n++] = word;
	toy_open(&toy, argv[1]);
	if (strncmp(argv[2], "vae", 3) == 0)
		toy_train_vae(&toy, argv[2], argv[3], set, n, &e);
	else
		toy_train(&toy, argv[2], argv[3], set, n, &e);
	return write(3, &e, sizeof e) == sizeof e ? 0 : 1;
}

/* A loss that is no number ends the run with a reason, or is left out and counted. */
static void a_loss_that_is_no_number(void **state)
{
	char *model = in_folder("nan-model"), *other = in_folder("skip-model");
	char text[ERR_TEXT_MAX];
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dir_make(model, 0700, &e), &e);
	assert_ok(dir_make(other, 0700, &e), &e);
	assert_int_equal(train_with_fault("train-loss:7", "nan", model, "train.nan=stop", text),
			 TF_ENAN);
	assert_non_null(strstr(text, "step 7: loss nan"));
	assert_int_equal(train_with_fault("train-loss:7", "skip", other, "train.nan=skip", text),
			 0);
	assert_true(metric("skip", 20, "skipped") == 1);
	assert_true(isnan(metric("skip", 7, "loss")) || metric("skip", 7, "loss") == 0);
	assert_true(metric("skip", 6, "skipped") == 0 && metric("skip", 8, "loss") > 0);
	xfree(model);
	xfree(other);
}

/* Too many of them one after another end the run all the same. */
static void losses_that_are_no_numbers_have_a_limit(void **state)
{
	char *model = in_folder("limit-model");
	char text[ERR_TEXT_MAX];
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dir_make(model, 0700, &e), &e);
	assert_int_equal(train_with_fault("train-loss:7+", "limit", model,
					  "train.nan=skip train.nan_limit=2", text),
			 TF_ENAN);
	assert_non_null(strstr(text, "step 9: loss nan"));
	assert_non_null(strstr(text, "neither were the 2 steps before (train.nan_limit)"));
	assert_true(metric("limit", 8, "skipped") == 2);
	xfree(model);
}

/* A step that was left out is as if it had never been, after a kill and a resume, too. */
static void a_run_that_left_out_a_step_goes_on_bit_for_bit(void **state)
{
	char *model = in_folder("left-model"), *other = in_folder("left-killed");
	char *one = xasprintf("%s/step-00000020", model);
	char *two = xasprintf("%s/step-00000020", other);
	char text[ERR_TEXT_MAX];
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dir_make(model, 0700, &e), &e);
	assert_ok(dir_make(other, 0700, &e), &e);
	assert_int_equal(train_with_fault("train-loss:7", "left", model, "train.nan=skip", text),
			 0);
	assert_int_equal(train_with_fault("train-loss:7,checkpoint-save:3!", "left-2", other,
					  "train.nan=skip", text),
			 KILLED);
	assert_int_equal(train_with_fault("none:1", "left-2", other, "train.nan=skip", text), 0);
	same_file(one, two, "weights.safetensors");
	same_file(one, two, "ema.safetensors");
	same_file(one, two, "state.safetensors");
	xfree(model);
	xfree(other);
	xfree(one);
	xfree(two);
}

/* An autoencoder's steps, which are launched ahead too: what is no number ends the run by name, is
 * left out of both nets, and a kill and a resume leave no trace. */
static void an_autoencoder_leaves_out_a_step_and_goes_on_bit_for_bit(void **state)
{
	char *stopped = in_folder("vae-stopped"), *left = in_folder("vae-left");
	char *killed = in_folder("vae-killed");
	char *one = xasprintf("%s/step-00000012", left);
	char *two = xasprintf("%s/step-00000012", killed);
	char text[ERR_TEXT_MAX];
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dir_make(stopped, 0700, &e), &e);
	assert_ok(dir_make(left, 0700, &e), &e);
	assert_ok(dir_make(killed, 0700, &e), &e);
	assert_int_equal(train_with_fault("train-loss:7", "vae-stop", stopped, "train.nan=stop",
					  text),
			 TF_ENAN);
	assert_non_null(strstr(text, "step 7: loss nan"));
	assert_int_equal(train_with_fault("train-loss:5+", "vae-limit", stopped,
					  "train.nan=skip train.nan_limit=2", text),
			 TF_ENAN);
	assert_non_null(strstr(text, "neither were the 2 steps before (train.nan_limit)"));
	assert_int_equal(train_with_fault("train-loss:7", "vae-left", left, "train.nan=skip",
					  text),
			 0);
	assert_true(isnan(metric("vae-left", 7, "loss")) || metric("vae-left", 7, "loss") == 0);
	assert_true(metric("vae-left", 6, "gan") > 0 && metric("vae-left", 8, "loss") > 0);
	assert_true(metric("vae-left", 12, "loss") < metric("vae-left", 1, "loss"));
	/* As it writes the third one: the second, behind step 7, is whole then. */
	assert_int_equal(train_with_fault("train-loss:7,checkpoint-save:3!", "vae-killed", killed,
					  "train.nan=skip", text),
			 KILLED);
	assert_int_equal(train_with_fault("none:1", "vae-killed", killed, "train.nan=skip", text),
			 0);
	same_file(one, two, "vae.safetensors");
	same_file(one, two, "state.safetensors");
	xfree(stopped);
	xfree(left);
	xfree(killed);
	xfree(one);
	xfree(two);
}

/* The training goes on without more rows. */
static void metrics_have_a_bound(void **state)
{
	char *folder = xasprintf("%s/chatty", toy.folder);
	char *path = xasprintf("%s/metrics.jsonl", folder);
	struct err e = ERR_INIT;
	FILE *f;

	(void)state;
	dir_make(folder, 0700, NULL);
	f = fopen(path, "w"); /* a row of step 0, with a hole in it */
	assert_non_null(f);
	fprintf(f, "{\"step\":0}");
	assert_int_equal(fseeko(f, LIMIT_METRICS_BYTES - 2, SEEK_SET), 0);
	fprintf(f, "\n");
	assert_int_equal(fclose(f), 0);
	assert_ok(toy_train(&toy, "chatty", toy.model, NULL, 0, &e), &e);
	assert_int_equal(file_size(path), LIMIT_METRICS_BYTES - 1);
	assert_int_equal(unlink(path), 0);
	xfree(path);
	xfree(folder);
}

/* Layers computed again leave the same bits; bf16 moments learn, too, and go on bit for bit. */
static void less_memory(void **state)
{
	static const char *const again[] = { "train.recompute=on" };
	static const char *const half[] = { "train.moments=bf16" };
	static const char *const f32[] = { "train.moments=f32" };
	char *model = in_folder("again-model"), *other = in_folder("half-model");
	char *killed = in_folder("half-killed");
	char *one = xasprintf("%s/step-00000020", other);
	char *two = xasprintf("%s/step-00000020", killed);
	char text[ERR_TEXT_MAX];
	struct err e = ERR_INIT;

	(void)state;
	assert_ok(dir_make(model, 0700, &e), &e);
	assert_ok(dir_make(other, 0700, &e), &e);
	assert_ok(dir_make(killed, 0700, &e), &e);
	assert_ok(toy_train(&toy, "again", model, again, 1, &e), &e);
	for (uint64_t step = 1; step <= 20; step++)
		assert_true(metric("straight", step, "loss") == metric("again", step, "loss"));
	assert_ok(toy_train(&toy, "half", other, half, 1, &e), &e);
	assert_true(metric("half", 20, "loss") != metric("straight", 20, "loss"));
	assert_true(fabs(metric("half", 20, "loss") / metric("straight", 20, "loss") - 1) < 0.05);
	assert_int_equal(train_with_fault("checkpoint-save:2!", "half-2", killed, half[0], text),
			 KILLED);
	assert_ok(toy_train(&toy, "half-2", killed, half, 1, &e), &e);
	same_file(one, two, "weights.safetensors");
	same_file(one, two, "state.safetensors");
	assert_int_equal(toy_train(&toy, "half-3", other, f32, 1, &e), TF_EMISMATCH);
	assert_non_null(strstr(e.text, "state.safetensors"));
	err_clear(&e);
	xfree(model);
	xfree(other);
	xfree(killed);
	xfree(one);
	xfree(two);
}

/* 8-bit products learn, too, and go on bit for bit, a step that is left out included: nothing of
 * them is kept. A device without them is refused. */
static void products_of_8_bits(void **state)
{
	static const char *const on[] = { "train.fp8=on", "train.nan=skip" };
	char *model = in_folder("fp8-model"), *killed = in_folder("fp8-killed");
	char *one = xasprintf("%s/step-00000020", model);
	char *two = xasprintf("%s/step-00000020", killed);
	char text[ERR_TEXT_MAX];
	struct err e = ERR_INIT;
	struct toy cpu = toy;

	(void)state;
	assert_ok(dir_make(model, 0700, &e), &e);
	assert_ok(dir_make(killed, 0700, &e), &e);
	assert_int_equal(train_with_fault("train-loss:7", "fp8", model,
					  "train.fp8=on train.nan=skip", text), 0);
	assert_true(metric("fp8", 20, "skipped") == 1);
	assert_true(metric("fp8", 6, "loss") != metric("straight", 6, "loss"));
	assert_true(fabs(metric("fp8", 6, "loss") / metric("straight", 6, "loss") - 1) < 0.05);
	assert_int_equal(train_with_fault("train-loss:7,checkpoint-save:3!", "fp8-2", killed,
					  "train.fp8=on train.nan=skip", text),
			 KILLED);
	assert_ok(toy_train(&toy, "fp8-2", killed, on, 2, &e), &e);
	same_file(one, two, "weights.safetensors");
	same_file(one, two, "state.safetensors");
	cpu.device = "cpu";
	assert_int_equal(toy_train(&cpu, "fp8-cpu", model, on, 1, &e), TF_EUNSUPPORTED);
	assert_non_null(strstr(e.text, "train.fp8: found on, but the device (oneDNN"));
	err_clear(&e);
	xfree(model);
	xfree(killed);
	xfree(one);
	xfree(two);
}

/* Trains with a disk that is full at the second save, which is an event, and always, which is the
 * end. The checkpoints of the first run; xfree them. */
static struct checkpoint_entry *train_on_full_disks(const char *once, const char *folder,
						    const char *always, const char *other,
						    size_t *count)
{
	struct checkpoint_entry *entry = NULL;
	char text[ERR_TEXT_MAX];
	struct err e = ERR_INIT;

	assert_ok(dir_make(folder, 0700, &e), &e);
	assert_ok(dir_make(other, 0700, &e), &e);
	assert_int_equal(train_with_fault("checkpoint-save:2", once, folder, "train.seed=1", text),
			 0);
	assert_ok(checkpoints_list(folder, &entry, count, &e), &e);
	assert_int_equal(train_with_fault("checkpoint-save:1+", always, other, "train.seed=1",
					  text),
			 TF_ENOSPACE);
	assert_non_null(strstr(text, "No space left"));
	return entry;
}

/* A full disk at one save is an event; at the last step it is the end. */
static void a_full_disk(void **state)
{
	char *model = in_folder("full-model"), *never = in_folder("never-model");
	struct checkpoint_entry *entry;
	size_t count = 0;

	(void)state;
	entry = train_on_full_disks("full", model, "never", never, &count);
	assert_int_equal(count, 3); /* 5, 15 and 20, not 10 */
	assert_int_equal(entry[1].step, 15);
	xfree(entry);
	xfree(model);
	xfree(never);
}

/* Likewise an autoencoder's; and one that ends in the middle of writing goes on from the checkpoint
 * before, to the same bits. */
static void a_full_disk_under_an_autoencoder(void **state)
{
	char *full = in_folder("vae-full"), *never = in_folder("vae-never");
	char *killed = in_folder("vae-half");
	char *one = xasprintf("%s/step-00000012", full);
	char *two = xasprintf("%s/step-00000012", killed);
	char text[ERR_TEXT_MAX];
	struct checkpoint_entry *entry;
	struct err e = ERR_INIT;
	size_t count = 0;

	(void)state;
	entry = train_on_full_disks("vae-full", full, "vae-never", never, &count);
	assert_int_equal(count, 2); /* 4 and 12, not 8 */
	assert_int_equal(entry[0].step, 4);
	assert_int_equal(entry[1].step, 12);
	xfree(entry);
	assert_ok(dir_make(killed, 0700, &e), &e);
	assert_int_equal(train_with_fault("checkpoint-save:2!", "vae-half", killed, "train.seed=1",
					  text),
			 KILLED);
	assert_int_equal(train_with_fault("none:1", "vae-half", killed, "train.seed=1", text), 0);
	same_file(one, two, "vae.safetensors");
	same_file(one, two, "state.safetensors");
	xfree(full);
	xfree(never);
	xfree(killed);
	xfree(one);
	xfree(two);
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

int main(int argc, char **argv)
{
	const struct CMUnitTest train[] = {
		cmocka_unit_test(training_learns_and_reports),
		cmocka_unit_test(a_killed_run_goes_on_bit_for_bit),
		cmocka_unit_test(micro_batches_make_the_same_step),
		cmocka_unit_test(what_does_not_fit_is_refused),
		cmocka_unit_test(a_loss_that_is_no_number),
		cmocka_unit_test(losses_that_are_no_numbers_have_a_limit),
		cmocka_unit_test(a_run_that_left_out_a_step_goes_on_bit_for_bit),
		cmocka_unit_test(an_autoencoder_leaves_out_a_step_and_goes_on_bit_for_bit),
		cmocka_unit_test(metrics_have_a_bound),
		cmocka_unit_test(less_memory),
		cmocka_unit_test(products_of_8_bits),
		cmocka_unit_test(a_full_disk),
		cmocka_unit_test(a_full_disk_under_an_autoencoder),
	};
	if (argc == 5)
		return run_as_child(argv);
	return cmocka_run_group_tests_name("train", train, set_up, tear_down);
}
