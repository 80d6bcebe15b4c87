/* SPDX-License-Identifier: Apache-2.0
 * Times training, decoding and drawing of models of 0.16 to 7 billion parameters on a GPU, on a
 * workload that a PyTorch program can be given too: sequences of 4096 positions, six captions of 64
 * tokens each with a picture of 256 patches (2 x 2 x 8), then one text of 2164 tokens; positions
 * restart in each document and attention stays inside it. Prints one JSON object a row.
 *
 *	bench_gpu train|save|decode|diffuse|profile [--device D] [--layers N] [--dim N] [--heads N]
 *		[--batch N] [--steps N] [--context N]
 *		[--recompute LAYERS] [--moments BITS] [--stochastic 1] [--fp8 1]
 *
 * --recompute, --moments 16 (bf16), --stochastic and --fp8 are train.recompute, moments, rounding
 * and fp8.
 * profile: a training step again, with the time of each operation. save: steps while a checkpoint
 * is written to a folder in TMPDIR, beside steps without. */
#include "config.h"
#include "lib/clock.h"
#include "lib/err.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "model/pass.h"
#include "model/sampler.h"
#include "worker/checkpoint.h"
#include "worker/saver.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define T_POSITIONS 4096
#define PICTURES 6
#define CAPTION 64
#define LATENT_SIDE 32
#define LATENT_CHANNELS 8
#define VOCABULARY 32768
#define GROUPS 5             /* of steps; the median of their means is printed */
#define BATCHES 2

struct bench {
	const char *what, *device;
	int64_t layers, dim, heads, batch, steps, context;
	int64_t recompute, moments, stochastic, fp8;
	struct dims dims;
	struct kernels *k;
	struct transformer m;
	size_t free_at_start;
};

static void need(int rc, const struct err *e)
{
	if (rc < 0)
		die(1, "%s", e->text);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *x, size_t n)
{
	qsort(x, n, sizeof *x, by_value);
	return x[n / 2];
}

static double elapsed_ms(int64_t from_ns)
{
	return (double)(clock_mono_ns() - from_ns) / 1e6;
}

/* ---- the model and its work */

static void set_dims(struct bench *b, int64_t batch)
{
	struct err e = ERR_INIT;
	struct dims *m = &b->dims;

	*m = (struct dims){ .layers = b->layers, .d = b->dim, .H = b->heads,
			    .F = (8 * b->dim / 3 + 255) / 256 * 256, .patch = 2,
			    .h = LATENT_SIDE, .w = LATENT_SIDE, .c = LATENT_CHANNELS,
			    .time = TIME_AT_MODEL, .eps = 1e-5f, .rope_base = 10000,
			    .act = DT_BF16, .positions_restart = true, .B = batch,
			    .T = T_POSITIONS, .row_multiple = 1024,
			    .recompute = b->recompute < b->layers ? b->recompute : b->layers,
			    .moments = b->moments == 16 ? DT_BF16 : DT_F32,
			    .stochastic = b->stochastic != 0, .rounding = 1,
			    .fp8 = b->fp8 != 0 };
	/* three specials after the pieces make exactly VOCABULARY rows */
	need(vocabulary_init(&m->vocabulary, VOCABULARY - 3, 1, 2, &e), &e);
	m->images = PICTURES * batch;
	need(dims_check(m, &e), &e);
}

static size_t free_bytes(struct kernels *k)   /* of a GPU */
{
	struct err e = ERR_INIT;
	size_t available = 0, total;

	(void)kernels_memory(k, &available, &total, &e);
	return available;
}

static void open_model(struct bench *b, bool training, int64_t batch)
{
	struct err e = ERR_INIT;

	set_dims(b, batch);
	need(kernels_open(b->device, 0, &b->k, &e), &e);
	if (b->fp8 && !b->k->has_fp8)
		die(1, "--fp8 1: %s has no products of 8-bit floats", kernels_describe(b->k));
	b->free_at_start = free_bytes(b->k);
	need(transformer_init(&b->m, b->k, &b->dims, T_POSITIONS, training, &e), &e);
	transformer_draw(&b->m, 1);
}

static void close_model(struct bench *b)
{
	transformer_release(&b->m);
	kernels_close(b->k);
}

static double used_gib(struct bench *b)
{
	return (double)(b->free_at_start - free_bytes(b->k)) / (1 << 30);
}

/* What --dry-run would say. */
static double planned_gib(const struct bench *b)
{
	struct memory_plan m;

	transformer_memory(&b->dims, b->dims.T, true, false, &m);
	pass_memory(&b->dims, true, &m);
	return (double)(memory_plan_total(&m) - m.host + pass_scratch(&b->dims)) / (1 << 30);
}

static int32_t *draw_tokens(int64_t stream, int64_t n)
{
	int32_t *token = xmalloc((size_t)n * sizeof *token);

	for (int64_t i = 0; i < n; i++)
		token[i] = 3 + (int32_t)philox_below(7, PHILOX_TEST, (uint64_t)stream, (uint64_t)i,
						     VOCABULARY - 6);
	return token;
}

/* Captions with pictures, then a text to the end; no marks but BOI and EOI. */
static void fill_sequence(struct batch *b, int64_t i, int64_t stream)
{
	const struct dims *m = b->dims;
	int64_t rest = T_POSITIONS - PICTURES * (CAPTION + 2 + dims_patches(m));
	float *latent = xmalloc((size_t)dims_latent(m) * sizeof *latent);
	struct err e = ERR_INIT;

	for (int64_t p = 0; p <= PICTURES; p++) {
		int64_t number = (stream * b->dims->B + i) * (PICTURES + 1) + p;
		int64_t n = p < PICTURES ? CAPTION : rest;
		int32_t *token = draw_tokens(number, n);
		struct segment part[2] = {
			{ .kind = SEGMENT_TEXT, .token = token, .count = n },
			{ .kind = SEGMENT_IMAGE, .latent = latent, .sample = number,
			  .time = 1 + (int32_t)philox_below(7, PHILOX_TEST, (uint64_t)number,
							    1u << 20, TIMESTEPS) },
		};
		struct document doc = { part, p < PICTURES ? 2 : 1, false, false };

		philox_normals(8, PHILOX_TEST, (uint64_t)number, 0, latent,
			       (uint64_t)dims_latent(m));
		need(batch_add(b, i, &doc, &e), &e);
		xfree(token);
	}
	xfree(latent);
}

static void fill_batch(struct batch *b, const struct dims *m, int64_t stream)
{
	batch_init(b, m);
	batch_clear(b, 9, PHILOX_NOISE);
	for (int64_t i = 0; i < m->B; i++)
		fill_sequence(b, i, stream);
}

static double flops_per_step(const struct dims *m, const struct batch *b)
{
	double layer = (double)(m->layers * (4 * m->d * m->d + 3 * m->d * m->F)), pairs = 0;
	int64_t N = m->B * m->T;

	for (int64_t i = 0; i < N; i++)
		pairs += b->limit[i] - b->start[i] + 1;
	return 6 * (layer * (double)N + (double)(m->d * VOCABULARY * b->targets) +
		    (double)(2 * m->d * dims_patch_width(m) * b->images * dims_patches(m))) +
	       12.0 * (double)m->d * pairs * (double)m->layers;
}

/* ---- training */

struct trainer {
	struct bench *b;
	struct pass *p;
	struct batch batch[BATCHES];
	struct pass_losses losses;
};

static void train_step(struct trainer *t, int64_t step)
{
	static const struct params_update u = { .lr = 3e-4f, .beta1 = 0.9f, .beta2 = 0.95f,
						.eps = 1e-8f, .weight_decay = 0.1f, .clip = 1,
						.grad_scale = 1 };
	const struct batch *batch = &t->batch[step % BATCHES];
	struct params *params = &t->b->m.params;

	params_zero_gradients(params);
	pass_run(t->p, batch, &(struct pass_totals){ batch->targets, batch->noised, 5 });
	params_step(params, &u);
}

static void trainer_open(struct trainer *t, struct bench *b)
{
	struct err e = ERR_INIT;

	t->b = b;
	open_model(b, true, b->batch);
	need(pass_new(&b->m, true, &t->p, &e), &e);
	for (int64_t i = 0; i < BATCHES; i++)
		fill_batch(&t->batch[i], &b->dims, i);
	for (int64_t i = 0; i < 4; i++)
		train_step(t, i);
	pass_losses(t->p, &t->losses);
}

static void trainer_close(struct trainer *t)
{
	for (int64_t i = 0; i < BATCHES; i++)
		batch_release(&t->batch[i]);
	pass_free(t->p);
	close_model(t->b);
}

static void print_row(const struct bench *b)
{
	printf("{\"what\": \"%s\", \"program\": \"transfused\", \"layers\": %lld, \"dim\": %lld, "
	       "\"heads\": %lld, \"batch\": %lld", b->what, (long long)b->layers,
	       (long long)b->dim, (long long)b->heads, (long long)b->batch);
}

static void bench_train(struct bench *b)
{
	struct trainer t = { 0 };
	double ms[GROUPS], middle, flops;
	int64_t each = (b->steps + GROUPS - 1) / GROUPS;

	trainer_open(&t, b);
	for (int g = 0; g < GROUPS; g++) {
		int64_t from = clock_mono_ns();

		for (int64_t i = 0; i < each; i++)
			train_step(&t, i);
		pass_losses(t.p, &t.losses);
		ms[g] = elapsed_ms(from) / (double)each;
	}
	middle = median(ms, GROUPS);
	flops = flops_per_step(&b->dims, &t.batch[0]);
	print_row(b);
	printf(", \"ms\": %.3f, \"tokens_s\": %.0f, \"tflops\": %.1f, \"params\": %lld, "
	       "\"peak_gib\": %.2f, \"planned_gib\": %.2f, \"recompute\": %lld, "
	       "\"moments\": %lld, \"fp8\": %s, \"loss\": %.4f}\n", middle,
	       (double)(b->batch * T_POSITIONS) / middle * 1e3, flops / middle / 1e9,
	       (long long)params_count(&b->m.params), used_gib(b), planned_gib(b),
	       (long long)b->dims.recompute, (long long)b->moments,
	       b->dims.fp8 ? "true" : "false", t.losses.loss);
	trainer_close(&t);
}

static void print_operation(void *arg, const char *name, int64_t calls, double ms)
{
	double *sum = arg;

	*sum += ms;
	printf(", \"%s\": [%lld, %.3f]", name, (long long)calls, ms);
}

static void bench_profile(struct bench *b)
{
	struct err e = ERR_INIT;
	struct trainer t = { 0 };
	double sum = 0;

	trainer_open(&t, b);
	need(kernels_profile_begin(b->k, &e), &e);
	train_step(&t, 0);
	print_row(b);
	kernels_profile_end(b->k, print_operation, &sum);
	printf(", \"sum_ms\": %.3f}\n", sum);
	trainer_close(&t);
}

/* ---- saving */

/* Steps as a training run makes them, two ahead of the host, until `count` of them, or (count 0)
 * until the checkpoint is written. Milliseconds of each. */
static double time_steps(struct trainer *t, int64_t count, struct saver *s)
{
	struct kernels *k = t->b->k;
	float *sums = k->ops->host_alloc(k, 4 * sizeof *sums);
	struct fetch fetch[2];
	int64_t from = clock_mono_ns(), n = 0;

	while (count ? n < count : !saver_is_done(s)) {
		if (n >= 2)
			k->ops->fetch_end(k, &fetch[n % 2]);
		train_step(t, n);
		pass_losses_begin(t->p, &fetch[n % 2], sums + 2 * (n % 2));
		n++;
	}
	for (int64_t i = n < 2 ? 0 : n - 2; i < n; i++)
		k->ops->fetch_end(k, &fetch[i % 2]);
	k->ops->sync(k);
	k->ops->host_release(k, sums);
	return elapsed_ms(from) / (double)(n ? n : 1);
}

/* What the saver writes. */
struct saved {
	char *folder;
	struct model_facts facts;
	struct checkpoint_copy *copy;
};

static int write_copy(void *arg, uint64_t step, struct err *e)
{
	struct saved *s = arg;

	(void)step;
	return checkpoint_copy_write(s->copy, s->folder, &s->facts, e);
}

static void bench_save(struct bench *b)
{
	const char *tmp = getenv("TMPDIR");
	struct saved saved = { xasprintf("%s/bench_gpu.XXXXXX", tmp ? tmp : "/tmp"),
			       { .pieces = VOCABULARY - 3, .bos = 1, .eos = 2,
				 .experiment = xstrdup("model: {}\n") }, NULL };
	struct saver_options o = { saved.folder, 1, 0, write_copy, &saved };
	struct err e = ERR_INIT;
	struct trainer t = { 0 };
	struct checkpoint c = { .step = 1 };
	struct saver *s;
	int64_t began, took = 0;
	double open_ms, plain, during, held;
	uint64_t step;

	if (!mkdtemp(saved.folder))
		die(1, "%s cannot be made", o.folder);
	trainer_open(&t, b);
	c.model = &b->m;
	began = clock_mono_ns();
	need(checkpoint_copy_new(&c, &saved.copy, &e), &e);
	s = saver_new(&o);
	open_ms = elapsed_ms(began);
	plain = time_steps(&t, b->steps, NULL);
	began = clock_mono_ns();
	checkpoint_copy_take(saved.copy, &c, NAN);
	saver_begin(s, c.step);
	held = elapsed_ms(began);
	during = time_steps(&t, 0, s);
	need(saver_end(s, &step, &took, &e), &e);
	print_row(b);
	printf(", \"ms\": %.3f, \"ms_while_saving\": %.3f, \"ratio\": %.3f, \"save_s\": %.2f, "
	       "\"gib\": %.2f, \"held_ms\": %.3f, \"pinning_s\": %.2f}\n", plain, during,
	       during / plain, (double)took / 1e3,
	       (double)checkpoint_copy_bytes(&b->m.params, false) / (1 << 30), held,
	       open_ms / 1e3);
	saver_free(s);
	checkpoint_copy_free(saved.copy);
	dir_remove(saved.folder, NULL);
	xfree(saved.folder);
	model_facts_release(&saved.facts);
	trainer_close(&t);
}

/* ---- sampling */

struct stopwatch {
	const char *phase;
	int64_t from, until;          /* steps of the phase */
	int64_t began, ended;         /* the sampler's looks among them, every few steps */
	int64_t began_ns, ended_ns;
};

static bool on_step(void *arg, const char *phase, int64_t done, int64_t total)
{
	struct stopwatch *w = arg;

	(void)total;
	if (strcmp(phase, w->phase) != 0)
		return false;
	if (done < w->from || done > w->until)
		return false;
	w->ended = done;
	w->ended_ns = clock_mono_ns();
	if (w->began == 0) {
		w->began = w->ended;
		w->began_ns = w->ended_ns;
	}
	return false;
}

/* Milliseconds of a step between two of one run. */
static double time_sampling(struct bench *b, const struct sampler_options *o, int64_t length,
			    struct stopwatch *w)
{
	struct err e = ERR_INIT;
	const struct sampler_watch watch = { on_step, w };
	struct sampler_prompt *prompt = xcalloc((size_t)b->batch, sizeof *prompt);
	struct sampler_result *result = xcalloc((size_t)b->batch, sizeof *result);
	struct segment *part = xcalloc((size_t)b->batch, sizeof *part);
	int32_t **token = xcalloc((size_t)b->batch, sizeof *token);
	struct sampler *s;
	double ms;

	w->began = w->ended = 0;
	for (int64_t i = 0; i < b->batch; i++) {
		token[i] = draw_tokens(i, length);
		part[i] = (struct segment){ .kind = SEGMENT_TEXT, .count = length,
					    .token = token[i] };
		prompt[i] = (struct sampler_prompt){ &part[i], 1, (uint64_t)i };
	}
	need(sampler_new(&b->m, b->batch, sampler_context(&b->dims, o, length + 1),
			 o->guidance != 1, &s, &e), &e);
	need(sampler_run(s, o, prompt, b->batch, &watch, result, &e), &e);
	ms = w->ended > w->began && w->began > 0
		? (double)(w->ended_ns - w->began_ns) / 1e6 / (double)(w->ended - w->began) : NAN;
	for (int64_t i = 0; i < b->batch; i++) {
		sampler_result_release(&result[i]);
		xfree(token[i]);
	}
	sampler_free(s);
	xfree(token);
	xfree(part);
	xfree(prompt);
	xfree(result);
	return ms;
}

/* Tokens around position --context of every sequence: enough of them for the sampler to look at
 * some while it runs ahead, and after what it does once. */
#define TOKENS_LEAST 128

static void bench_decode(struct bench *b)
{
	int64_t tokens = b->steps > TOKENS_LEAST ? b->steps : TOKENS_LEAST;
	struct sampler_options o = { .mode = SAMPLE_TEXT, .guidance = 1, .max_tokens = tokens,
				     .steps = 1, .clamp = 4, .top_p = 1, .seed = 1 };
	struct stopwatch w = { .phase = "token", .from = 32, .until = tokens - 1 };
	double ms;

	if (b->context <= tokens / 2)
		die(2, "--context %lld: expected more than half of %lld tokens",
		    (long long)b->context, (long long)tokens);
	open_model(b, false, 1);
	ms = time_sampling(b, &o, b->context - tokens / 2, &w);
	print_row(b);
	printf(", \"context\": %lld, \"ms\": %.4f, \"tokens_s\": %.0f}\n", (long long)b->context,
	       ms, (double)b->batch / ms * 1e3);
	close_model(b);
}

/* Pictures of 256 patches after captions, both branches of guidance. */
static void bench_diffuse(struct bench *b)
{
	struct sampler_options o = { .mode = SAMPLE_IMAGE, .schedule = SCHEDULE_DDPM,
				     .steps = b->steps, .guidance = 3, .clamp = 4, .top_p = 1,
				     .seed = 1 };
	struct stopwatch w = { .phase = "denoise", .from = b->steps / 4, .until = b->steps - 1 };
	double ms;

	open_model(b, false, 1);
	time_sampling(b, &o, CAPTION, &w);
	ms = time_sampling(b, &o, CAPTION, &w);
	print_row(b);
	printf(", \"ms_per_step\": %.3f, \"images_s_250\": %.3f}\n", ms,
	       (double)b->batch / (250 * ms) * 1e3);
	close_model(b);
}

/* ---- the command line */

static void read_options(struct bench *b, int argc, char **argv)
{
	const struct { const char *name; int64_t *to; } number[] = {
		{ "--layers", &b->layers }, { "--dim", &b->dim }, { "--heads", &b->heads },
		{ "--batch", &b->batch }, { "--steps", &b->steps }, { "--context", &b->context },
		{ "--recompute", &b->recompute }, { "--moments", &b->moments },
		{ "--stochastic", &b->stochastic }, { "--fp8", &b->fp8 },
	};

	if (argc < 2 || argc % 2 != 0)
		die(2, "see the first lines of tests/bench/bench_gpu.c");
	b->what = argv[1];
	for (int i = 2; i < argc; i += 2) {
		size_t n = 0;

		while (n < ARRAY_LEN(number) && strcmp(argv[i], number[n].name) != 0)
			n++;
		if (strcmp(argv[i], "--device") == 0)
			b->device = argv[i + 1];
		else if (n < ARRAY_LEN(number) && (*number[n].to = atoll(argv[i + 1])) > 0)
			continue;
		else
			die(2, "%s %s: expected an option of the first lines of "
			    "tests/bench/bench_gpu.c and a number above 0", argv[i], argv[i + 1]);
	}
}

int main(int argc, char **argv)
{
	static const struct { const char *what; void (*run)(struct bench *b); } work[] = {
		{ "train", bench_train }, { "save", bench_save }, { "profile", bench_profile },
		{ "decode", bench_decode }, { "diffuse", bench_diffuse },
	};
	struct bench b = { .device = "cuda", .layers = 24, .dim = 1536, .heads = 24, .batch = 4,
			   .steps = 20, .context = 1024, .moments = 32 };

	die_set_program("bench_gpu");
	read_options(&b, argc, argv);
	for (size_t i = 0; i < ARRAY_LEN(work); i++)
		if (strcmp(b.what, work[i].what) == 0) {
			work[i].run(&b);
			return 0;
		}
	die(2, "%s: expected train, save, profile, decode or diffuse", b.what);
}
