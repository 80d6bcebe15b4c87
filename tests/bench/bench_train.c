/* SPDX-License-Identifier: Apache-2.0
 * Times training steps of the tiny preset on packed batches of captions and pictures, and the
 * drawing of captions. Prints one JSON object a line. tests/bench/compare runs PyTorch on the very
 * same batches.
 *
 *	bench_train [--precision f32|bf16] [--steps N] [--threads N] [--device D] [--dump FILE]
 *		[--draw] */
#include "config.h"
#include "lib/clock.h"
#include "lib/err.h"
#include "lib/mem.h"
#include "lib/safetensors.h"
#include "model/pass.h"
#include "model/sampler.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCHES 4
#define DOCUMENTS_MAX 16     /* of a sequence */
#define CAPTION_MAX 14
#define DRAWN 100
#define DRAW_STEPS 50

struct bench {
	const char *device, *precision, *dump;
	int64_t steps;
	int threads;
	bool draw;
	struct dims dims;
	struct kernels *k;
	struct transformer m;
	struct pass *p;
	struct batch batch[BATCHES];
};

static void need(int rc, const struct err *e)
{
	if (rc < 0)
		die(1, "%s", e->text);
}

static struct dims tiny(enum dtype act)
{
	struct err e = ERR_INIT;
	struct dims m = { .layers = 6, .d = 192, .H = 6, .F = 512,
			  .patch = 2, .h = 8, .w = 8, .c = 8,
			  .time = TIME_AT_PATCH, .eps = 1e-5f, .rope_base = 10000, .act = act,
			  .positions_restart = true, .B = 7, .T = 256, .row_multiple = 64 };

	need(vocabulary_init(&m.vocabulary, 381, 1, 2, &e), &e);
	m.images = dims_images_most(&m);
	return m;
}

static uint64_t below(uint64_t stream, uint64_t element, uint64_t n)
{
	return philox_below(7, PHILOX_TEST, stream, element, n);
}

/* Document `number`: a caption of 4 to 14 tokens and a picture, one in five the other way round. */
static void make_document(const struct dims *m, uint64_t number, int32_t token[CAPTION_MAX],
			  float *latent, struct segment part[2])
{
	int64_t n = 4 + (int64_t)below(number, 0, CAPTION_MAX - 3);
	bool image_first = below(number, 1, 5) == 0;

	for (int64_t i = 0; i < n; i++)
		token[i] = 3 + (int32_t)below(number, (uint64_t)(2 + i), 378);
	philox_normals(8, PHILOX_TEST, number, 0, latent, (uint64_t)dims_latent(m));
	part[image_first] = (struct segment){ .kind = SEGMENT_TEXT, .token = token, .count = n };
	part[!image_first] = (struct segment){
		.kind = SEGMENT_IMAGE, .latent = latent, .sample = (int64_t)number,
		.time = 1 + (int32_t)below(number, 100, image_first ? 500 : TIMESTEPS),
	};
}

static void fill_batch(struct batch *b, uint64_t *number)
{
	const struct dims *m = b->dims;
	float *latent = xmalloc((size_t)dims_latent(m) * sizeof *latent);

	batch_clear(b, 9, PHILOX_NOISE);
	for (int64_t i = 0; i < m->B; i++) {
		for (int n = 0; n < DOCUMENTS_MAX; n++) {
			struct err e = ERR_INIT;
			int32_t token[CAPTION_MAX];
			struct segment part[2];
			struct document doc = { part, 2, true, true };

			make_document(m, *number, token, latent, part);
			if (document_length(m, &doc) > batch_room(b, i))
				break;
			need(batch_add(b, i, &doc, &e), &e);
			++*number;
		}
	}
	xfree(latent);
}

static void open_bench(struct bench *b)
{
	struct err e = ERR_INIT;
	uint64_t number = 0;

	b->dims = tiny(strcmp(b->precision, "bf16") == 0 ? DT_BF16 : DT_F32);
	need(kernels_open(b->device, b->threads, &b->k, &e), &e);
	need(transformer_init(&b->m, b->k, &b->dims, b->dims.T, true, &e), &e);
	transformer_draw(&b->m, 1);
	need(pass_new(&b->m, true, &b->p, &e), &e);
	for (int i = 0; i < BATCHES; i++) {
		batch_init(&b->batch[i], &b->dims);
		fill_batch(&b->batch[i], &number);
	}
}

static void close_bench(struct bench *b)
{
	for (int i = 0; i < BATCHES; i++)
		batch_release(&b->batch[i]);
	pass_free(b->p);
	transformer_release(&b->m);
	kernels_close(b->k);
}

static double train_step(struct bench *b, int64_t step)
{
	const struct params_update u = { .lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f,
					 .weight_decay = 0.1f, .clip = 1, .grad_scale = 1 };
	const struct batch *batch = &b->batch[step % BATCHES];
	struct pass_losses losses;

	params_zero_gradients(&b->m.params);
	pass_run(b->p, batch, &(struct pass_totals){ batch->targets, batch->noised, 5 });
	pass_losses(b->p, &losses);
	params_step(&b->m.params, &u);
	return losses.loss;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *x, int64_t n)
{
	qsort(x, (size_t)n, sizeof *x, by_value);
	return x[n / 2];
}

static void time_training(struct bench *b)
{
	double *ms = xcalloc((size_t)b->steps, sizeof *ms), first = train_step(b, 0), middle;
	int64_t positions = b->dims.B * b->dims.T;

	for (int64_t i = 1; i < 2 * BATCHES; i++)
		train_step(b, i);
	for (int64_t i = 0; i < b->steps; i++) {
		int64_t from = clock_mono_ns();

		train_step(b, i);
		ms[i] = (double)(clock_mono_ns() - from) / 1e6;
	}
	middle = median(ms, b->steps);   /* sorted now */
	printf("{\"what\": \"train\", \"program\": \"transfused\", \"device\": \"%s\", "
	       "\"precision\": \"%s\", \"threads\": %d, \"ms\": %.3f, \"ms_least\": %.3f, "
	       "\"positions_s\": %.0f, \"first_loss\": %.6f}\n",
	       b->device, b->precision, b->threads, middle, ms[0],
	       (double)positions / middle * 1e3, first);
	xfree(ms);
}

static void add_ints(struct st_writer *w, const char *name, int64_t n, const int32_t *data)
{
	st_writer_add(w, name, ST_I32, 1, &n, data);
}

/* The batches as PyTorch needs them, the noise that is drawn for them, and the weights. */
static void dump(struct bench *b)
{
	struct err e = ERR_INIT;
	struct st_writer w;
	int64_t N = b->dims.B * b->dims.T, E = dims_latent(&b->dims);
	float *noise[BATCHES];
	void *weights;
	char name[64];

	st_writer_init(&w);
	for (int i = 0; i < BATCHES; i++) {
		const struct batch *x = &b->batch[i];
		int64_t shape[] = { x->images, E };
		struct { const char *name; int64_t n; const int32_t *data; } ints[] = {
			{ "token", N, x->token }, { "start", N, x->start },
			{ "limit", N, x->limit },
			{ "position", N, x->position }, { "lm_row", x->targets, x->lm_row },
			{ "lm_target", x->targets, x->lm_target },
			{ "image_row", x->images, x->image_row },
			{ "image_time", x->images, x->image_time },
		};

		for (size_t j = 0; j < ARRAY_LEN(ints); j++) {
			snprintf(name, sizeof name, "%d.%s", i, ints[j].name);
			add_ints(&w, name, ints[j].n, ints[j].data);
		}
		noise[i] = xmalloc((size_t)(x->images * E) * sizeof(float));
		for (int64_t n = 0; n < x->images; n++)
			philox_normals(x->noise_seed, PHILOX_NOISE, (uint64_t)x->image_sample[n], 0,
				       noise[i] + n * E, (uint64_t)E);
		snprintf(name, sizeof name, "%d.latent", i);
		st_writer_add(&w, name, ST_F32, 2, shape, x->latent);
		snprintf(name, sizeof name, "%d.noise", i);
		st_writer_add(&w, name, ST_F32, 2, shape, noise[i]);
	}
	params_write(&b->m.params, PARAMS_MASTER, "", &w, &weights);
	need(st_writer_save(&w, b->dump, &e), &e);
	for (int i = 0; i < BATCHES; i++)
		xfree(noise[i]);
	xfree(weights);
	st_writer_release(&w);
}

/* DRAWN captions in one batch with guidance. */
static void time_drawing(struct bench *b)
{
	struct err e = ERR_INIT;
	struct sampler_options o = { .mode = SAMPLE_IMAGE, .schedule = SCHEDULE_DDIM,
				     .steps = DRAW_STEPS, .guidance = 5, .clamp = 4, .seed = 1 };
	struct sampler_prompt prompt[DRAWN];
	struct sampler_result result[DRAWN];
	struct segment part[DRAWN][2];
	int32_t token[DRAWN][CAPTION_MAX];
	float *latent = xmalloc((size_t)dims_latent(&b->dims) * sizeof *latent);
	struct sampler *s;
	int64_t from;

	for (int i = 0; i < DRAWN; i++) {
		make_document(&b->dims, (uint64_t)i, token[i], latent, part[i]);
		if (part[i][0].kind == SEGMENT_IMAGE)
			part[i][0] = part[i][1];
		prompt[i] = (struct sampler_prompt){ part[i], 1, (uint64_t)i };
	}
	need(sampler_new(&b->m, DRAWN, 1 + CAPTION_MAX + dims_patches(&b->dims) + 2, true, &s, &e),
	     &e);
	from = clock_mono_ns();
	need(sampler_run(s, &o, prompt, DRAWN, NULL, result, &e), &e);
	printf("{\"what\": \"draw\", \"program\": \"transfused\", \"device\": \"%s\", "
	       "\"precision\": \"%s\", \"pictures\": %d, \"steps\": %d, \"s\": %.3f}\n", b->device,
	       b->precision, DRAWN, DRAW_STEPS, (double)(clock_mono_ns() - from) / 1e9);
	for (int i = 0; i < DRAWN; i++)
		sampler_result_release(&result[i]);
	sampler_free(s);
	xfree(latent);
}

static void read_options(struct bench *b, int argc, char **argv)
{
	static const struct option option[] = {
		{ "precision", required_argument, NULL, 'p' },
		{ "steps", required_argument, NULL, 's' },
		{ "device", required_argument, NULL, 'd' },
		{ "threads", required_argument, NULL, 't' },
		{ "dump", required_argument, NULL, 'o' },
		{ "draw", no_argument, NULL, 'w' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", option, NULL)) != -1) {
		switch (c) {
		case 'p': b->precision = optarg; break;
		case 's': b->steps = atoll(optarg); break;
		case 't': b->threads = atoi(optarg); break;
		case 'd': b->device = optarg; break;
		case 'o': b->dump = optarg; break;
		case 'w': b->draw = true; break;
		default: die(2, "see the first lines of tests/bench/bench_train.c");
		}
	}
	if (b->steps < 1 || b->threads < 1)
		die(2, "--steps and --threads are at least 1");
}

int main(int argc, char **argv)
{
	struct bench b = { .device = "cpu", .precision = "f32", .steps = 20, .threads = 2 };

	die_set_program("bench_train");
	read_options(&b, argc, argv);
	open_bench(&b);
	if (b.dump)
		dump(&b);
	else if (b.draw)
		time_drawing(&b);
	else
		time_training(&b);
	close_bench(&b);
	return 0;
}
