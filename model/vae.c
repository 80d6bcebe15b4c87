/* SPDX-License-Identifier: Apache-2.0
 * The autoencoder in use (vae.h): its file, and coding pictures a fixed batch at a time, so that
 * what a picture becomes depends neither on its neighbours nor on how many they are. */
#include "config.h"
#include "model/vae.h"
#include "model/vae_net.h"
#include "lib/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define FORMAT "transfused vae 1"
#define BATCH_FIRST 8
#define SIDE_MAX 16384
#define FEW 2 /* pictures that are decoded one by one: a batch would be filled up with zeros */

/* One half of the net laid out for a shape. */
struct half {
	struct tape *tape;
	int in, out;
	int64_t n, h, w;
};

struct vae {
	struct kernels *k;
	struct vae_config config;
	struct params params;
	struct half encoder, decoder;
	struct half single;              /* the decoder for a picture alone */
	int batch;
	float mean[VAE_LATENT_CHANNELS_MAX], deviation[VAE_LATENT_CHANNELS_MAX];
	char hash[VAE_HASH_TEXT];
};

const struct vae_config vae_config_small = { 3, { 16, 32, 64 }, 1, 8, 8 };

int vae_config_check(const struct vae_config *c, struct err *e)
{
	FAIL_IF(c->levels < 2 || c->levels > VAE_LEVELS_MAX, e, TF_EINVALID,
		"the autoencoder has %d levels, expected 2, 3 or 4 (4x, 8x, 16x smaller latents)",
		c->levels);
	FAIL_IF(c->blocks < 0 || c->blocks > VAE_BLOCKS_MAX, e, TF_EINVALID,
		"the autoencoder has %d blocks a level, expected 0 to %d", c->blocks,
		VAE_BLOCKS_MAX);
	FAIL_IF(c->latent_channels < 1 || c->latent_channels > VAE_LATENT_CHANNELS_MAX, e,
		TF_EINVALID, "the autoencoder has %d latent channels, expected 1 to %d",
		c->latent_channels, VAE_LATENT_CHANNELS_MAX);
	FAIL_IF(c->groups < 1 || c->groups > VAE_CHANNELS_MAX, e, TF_EINVALID,
		"the autoencoder has %d norm groups, expected 1 to %d", c->groups,
		VAE_CHANNELS_MAX);
	for (int i = 0; i < c->levels; i++) {
		FAIL_IF(c->channels[i] < 1 || c->channels[i] > VAE_CHANNELS_MAX, e, TF_EINVALID,
			"level %d of the autoencoder has %d channels, expected 1 to %d", i,
			c->channels[i], VAE_CHANNELS_MAX);
		FAIL_IF(c->channels[i] % c->groups, e, TF_EINVALID,
			"level %d of the autoencoder has %d channels, expected a multiple of its "
			"%d norm groups",
			i, c->channels[i], c->groups);
	}
	return 0;
}

/* ---- making and releasing */

static void half_clear(struct half *h)
{
	tape_free(h->tape);
	*h = (struct half){ 0 };
}

/* Declares all parameters, without planning anything: a tape for the smallest picture. */
static int declare(struct vae *v, struct err *e)
{
	struct tape *t = tape_new(&v->params);
	int64_t side = vae_factor(&v->config);

	vae_net_encode(t, tape_input(t, DT_F32, 1, side, side, 3, false), &v->config);
	vae_net_decode(t, tape_input(t, DT_F32, 1, 1, 1, v->config.latent_channels, false),
		       &v->config);
	tape_free(t);
	return params_alloc(&v->params, false, e);
}

static int make(struct kernels *k, const struct vae_config *c, enum dtype act, struct vae **out,
		struct err *e)
{
	struct vae *v;
	int rc;

	TRY(vae_config_check(c, e));
	v = xcalloc(1, sizeof *v);
	v->k = k;
	v->config = *c;
	v->batch = BATCH_FIRST;
	for (int i = 0; i < c->latent_channels; i++)
		v->deviation[i] = 1;
	params_init(&v->params, k, act);
	rc = declare(v, e);
	if (rc < 0) {
		vae_free(v);
		return rc;
	}
	*out = v;
	return 0;
}

int vae_new(struct kernels *k, const struct vae_config *c, enum dtype act, uint64_t seed,
	    struct vae **out, struct err *e)
{
	TRY(make(k, c, act, out, e));
	params_draw(&(*out)->params, seed);
	return 0;
}

void vae_free(struct vae *v)
{
	if (!v)
		return;
	half_clear(&v->encoder);
	half_clear(&v->decoder);
	half_clear(&v->single);
	params_release(&v->params);
	xfree(v);
}

/* ---- the file */

static int meta_int(const struct st_file *f, const char *path, const char *key, int *out,
		    struct err *e)
{
	uint64_t value;

	TRY(st_meta_count(f, path, key, 1 << 20, &value, e));
	*out = (int)value;
	return 0;
}

static int meta_channels(const struct st_file *f, const char *path, struct vae_config *c,
			 struct err *e)
{
	const char *text = st_meta(f, "channels"), *p = text;

	FAIL_IF(!text, e, TF_ECORRUPT, "%s: metadata has no channels", path);
	while (c->levels < VAE_LEVELS_MAX) {
		char *end;
		long value = strtol(p, &end, 10);

		if (end == p || value < 1 || value > VAE_CHANNELS_MAX)
			break;
		c->channels[c->levels++] = (int)value;
		p = end;
		if (*p != ',')
			break;
		p++;
	}
	FAIL_IF(*p || p == text || p[-1] == ',', e, TF_ECORRUPT,
		"%s: metadata channels is \"%.40s\", expected 2 to %d numbers with commas between",
		path, text, VAE_LEVELS_MAX);
	return 0;
}

static int read_config(const struct st_file *f, const char *path, struct vae_config *c,
		       struct err *e)
{
	const char *format = st_meta(f, "format");
	int rc;

	FAIL_IF(!format || strcmp(format, FORMAT), e, TF_EVERSION,
		"%s: metadata format is \"%.40s\", expected \"%s\"", path, format ? format : "",
		FORMAT);
	TRY(meta_channels(f, path, c, e));
	TRY(meta_int(f, path, "blocks", &c->blocks, e));
	TRY(meta_int(f, path, "latent_channels", &c->latent_channels, e));
	TRY(meta_int(f, path, "groups", &c->groups, e));
	rc = vae_config_check(c, e);
	return rc < 0 ? err_prefix(e, "%s", path) : 0;
}

static int read_statistics(struct vae *v, const struct st_file *f, const char *path, struct err *e)
{
	const struct st_tensor *mean, *deviation;
	int64_t c = v->config.latent_channels;

	TRY(st_need(f, path, "latent.mean", ST_F32, 1, &c, &mean, e));
	TRY(st_need(f, path, "latent.deviation", ST_F32, 1, &c, &deviation, e));
	memcpy(v->mean, mean->data, mean->bytes);
	memcpy(v->deviation, deviation->data, deviation->bytes);
	for (int64_t i = 0; i < c; i++)
		FAIL_IF(!isfinite(v->mean[i]) || !isfinite(v->deviation[i]) || v->deviation[i] <= 0,
			e, TF_ECORRUPT,
			"%s: latent channel %lld has mean %g and deviation %g, expected "
			"finite numbers and a positive deviation",
			path, (long long)i, (double)v->mean[i], (double)v->deviation[i]);
	return 0;
}

static void hash_of(const struct st_file *f, char out[VAE_HASH_TEXT])
{
	XXH128_hash_t h = XXH3_128bits(f->map, f->map_bytes);

	snprintf(out, VAE_HASH_TEXT, "%016llx%016llx", (unsigned long long)h.high64,
		 (unsigned long long)h.low64);
}

static int read_file(struct kernels *k, const struct st_file *f, const char *path, enum dtype act,
		     struct vae **out, struct err *e)
{
	struct vae_config c = { 0 };
	int rc;

	TRY(read_config(f, path, &c, e));
	TRY(make(k, &c, act, out, e));
	rc = params_read(&(*out)->params, PARAMS_MASTER, "", f, path, e);
	if (rc == 0)
		rc = read_statistics(*out, f, path, e);
	if (rc == 0) {
		hash_of(f, (*out)->hash);
	} else {
		vae_free(*out);
		*out = NULL;
	}
	return rc;
}

int vae_open(struct kernels *k, const char *path, enum dtype act, struct vae **out, struct err *e)
{
	struct st_file f;
	int rc;

	TRY(st_open(path, &f, e));
	rc = read_file(k, &f, path, act, out, e);
	st_close(&f);
	return rc;
}

static void write_config(const struct vae_config *c, struct st_writer *w)
{
	char text[64] = "";
	size_t n = 0;

	for (int i = 0; i < c->levels; i++)
		n += (size_t)snprintf(text + n, sizeof text - n, "%s%d", i ? "," : "",
				      c->channels[i]);
	st_writer_meta(w, "format", FORMAT);
	st_writer_meta(w, "channels", text);
	st_writer_count(w, "blocks", (uint64_t)c->blocks);
	st_writer_count(w, "latent_channels", (uint64_t)c->latent_channels);
	st_writer_count(w, "groups", (uint64_t)c->groups);
}

int vae_write(const struct vae *v, const void *values, const char *path, struct err *e)
{
	int64_t c = v->config.latent_channels;
	struct st_writer w;
	int rc;

	st_writer_init(&w);
	write_config(&v->config, &w);
	params_declare(&v->params, PARAMS_MASTER, "", values, &w);
	st_writer_add(&w, "latent.mean", ST_F32, 1, &c, v->mean);
	st_writer_add(&w, "latent.deviation", ST_F32, 1, &c, v->deviation);
	rc = st_writer_save(&w, path, e);
	st_writer_release(&w);
	return rc;
}

int vae_save(struct vae *v, const char *path, struct err *e)
{
	size_t bytes = params_bytes(&v->params, PARAMS_MASTER);
	void *values = xmalloc(bytes);
	struct st_file f;
	int rc;

	v->params.k->ops->download(v->params.k, values, v->params.master, bytes);
	rc = vae_write(v, values, path, e);
	xfree(values);
	TRY(rc);
	TRY(st_open(path, &f, e));
	hash_of(&f, v->hash);
	st_close(&f);
	return 0;
}

/* ---- what it is */

const struct vae_config *vae_config_of(const struct vae *v) { return &v->config; }
struct params *vae_params(struct vae *v) { return &v->params; }
int64_t vae_parameters(const struct vae *v) { return params_count(&v->params); }
const char *vae_hash(const struct vae *v) { return v->hash; }
const float *vae_mean(const struct vae *v) { return v->mean; }
const float *vae_deviation(const struct vae *v) { return v->deviation; }

void vae_set_statistics(struct vae *v, const float *mean, const float *deviation)
{
	for (int i = 0; i < v->config.latent_channels; i++) {
		CHECK(isfinite(mean[i]) && isfinite(deviation[i]) && deviation[i] > 0);
		v->mean[i] = mean[i];
		v->deviation[i] = deviation[i];
	}
}

void vae_set_batch(struct vae *v, int pictures)
{
	CHECK(pictures > 0);
	v->batch = pictures;
}

void vae_normalise(const struct vae *v, float *latents, int64_t pixels)
{
	int c = v->config.latent_channels;

	for (int64_t i = 0; i < pixels * c; i++)
		latents[i] = (latents[i] - v->mean[i % c]) / v->deviation[i % c];
}

void vae_denormalise(const struct vae *v, float *latents, int64_t pixels)
{
	int c = v->config.latent_channels;

	for (int64_t i = 0; i < pixels * c; i++)
		latents[i] = latents[i] * v->deviation[i % c] + v->mean[i % c];
}

/* ---- coding */

typedef int net_fn(struct tape *t, int x, const struct vae_config *c);

/* Lays out a half for n pictures (or latents) of h x w. */
static void lay_half(struct half *half, struct params *p, const struct vae_config *config,
		     net_fn *net, int64_t n, int64_t h, int64_t w, int64_t c)
{
	half->tape = tape_new(p);
	half->in = tape_input(half->tape, DT_F32, n, h, w, c, false);
	half->out = net(half->tape, half->in, config);
	tape_output(half->tape, half->out);
}

/* The half's plan for pictures (or latents) of h x w; an earlier one is kept when it fits. */
static int half_plan(struct vae *v, struct half *half, net_fn *net, int64_t n, int64_t h, int64_t w,
		     int64_t c, struct err *e)
{
	int rc;

	if (half->tape && half->n == n && half->h == h && half->w == w)
		return 0;
	half_clear(half);
	lay_half(half, &v->params, &v->config, net, n, h, w, c);
	rc = tape_plan(half->tape, false, e);
	if (rc < 0) {
		half_clear(half);
		return rc;
	}
	half->n = n;
	half->h = h;
	half->w = w;
	return 0;
}

static int64_t image_elements(const struct tensor *t)
{
	return tensor_count(t) / t->dim[0];
}

/* Runs n items through a planned half; the last batch is filled up with zeros. */
static void half_run(struct vae *v, struct half *half, const float *in, int64_t n, float *out)
{
	struct tensor x = tape_value(half->tape, half->in), y = tape_value(half->tape, half->out);
	int64_t from = image_elements(&x), to = image_elements(&y);

	for (int64_t at = 0; at < n; at += half->n) {
		int64_t count = n - at < half->n ? n - at : half->n;

		if (count < half->n)
			v->k->ops->zero(v->k, x.data, tensor_bytes(&x));
		v->k->ops->upload(v->k, x.data, in + at * from,
				  (size_t)(count * from) * sizeof *in);
		tape_forward(half->tape);
		v->k->ops->download(v->k, out + at * to, y.data,
				    (size_t)(count * to) * sizeof *out);
	}
}

static int check_side(int64_t h, int64_t w, int64_t factor, struct err *e)
{
	FAIL_IF(h < factor || w < factor || h % factor || w % factor || h > SIDE_MAX ||
			w > SIDE_MAX,
		e, TF_EINVALID,
		"a picture of %lld x %lld cannot be coded: the sides must be multiples of "
		"%lld up to %d",
		(long long)w, (long long)h, (long long)factor, SIDE_MAX);
	return 0;
}

/* Encodes at most one batch; moments is scratch for it. */
static void encode_batch(struct vae *v, const float *images, int64_t n, float *moments,
			 float *latents)
{
	struct tensor y = tape_value(v->encoder.tape, v->encoder.out);
	int64_t pixels = n * y.dim[1] * y.dim[2], c = v->config.latent_channels;

	half_run(v, &v->encoder, images, n, moments);
	for (int64_t p = 0; p < pixels; p++)
		memcpy(latents + p * c, moments + p * 2 * c, (size_t)c * sizeof *latents);
}

/* Pictures come as floats, or as bytes when `bytes` is given. */
static int encode(struct vae *v, const float *images, const uint8_t *bytes, int64_t n,
		  int64_t height, int64_t width, float *latents, struct err *e)
{
	int64_t factor = vae_factor(&v->config), size = height * width * 3;
	int64_t latent = height / factor * (width / factor) * v->config.latent_channels;
	float *moments, *pictures;

	TRY(check_side(height, width, factor, e));
	TRY(half_plan(v, &v->encoder, vae_net_encode, v->batch, height, width, 3, e));
	moments = xcalloc((size_t)(v->batch * 2 * latent), sizeof *moments);
	pictures = xcalloc(bytes ? (size_t)(v->batch * size) : 1, sizeof *pictures);
	for (int64_t at = 0; at < n; at += v->batch) {
		int64_t count = n - at < v->batch ? n - at : v->batch;

		for (int64_t i = 0; bytes && i < count * size; i++)
			pictures[i] = (float)bytes[at * size + i] / 127.5f - 1;
		encode_batch(v, bytes ? pictures : images + at * size, count, moments,
			     latents + at * latent);
	}
	xfree(pictures);
	xfree(moments);
	return 0;
}

int vae_encode(struct vae *v, const float *images, int64_t n, int64_t height, int64_t width,
	       float *latents, struct err *e)
{
	return encode(v, images, NULL, n, height, width, latents, e);
}

int vae_encode_u8(struct vae *v, const uint8_t *images, int64_t n, int64_t height, int64_t width,
		  float *latents, struct err *e)
{
	return encode(v, NULL, images, n, height, width, latents, e);
}

int vae_decode(struct vae *v, const float *latents, int64_t n, int64_t rows, int64_t columns,
	       float *images, struct err *e)
{
	int64_t factor = vae_factor(&v->config);
	bool few = n <= FEW;
	struct half *half = few ? &v->single : &v->decoder;

	TRY(check_side(rows * factor, columns * factor, factor, e));
	TRY(half_plan(v, half, vae_net_decode, few ? 1 : v->batch, rows, columns,
		      v->config.latent_channels, e));
	half_run(v, half, latents, n, images);
	return 0;
}

size_t vae_drawing_bytes(struct vae *v, int64_t n, int64_t rows, int64_t columns)
{
	size_t element = sizeof(float) + (v->params.resident ? sizeof(uint16_t) : 0);
	struct half half = { 0 };
	size_t bytes;

	lay_half(&half, &v->params, &v->config, vae_net_decode, n <= FEW ? 1 : v->batch, rows,
		 columns, v->config.latent_channels);
	bytes = tape_measure(half.tape, false);
	half_clear(&half);
	return bytes + (size_t)v->params.total * element;
}

void vae_to_bytes(const float *images, int64_t count, uint8_t *bytes)
{
	for (int64_t i = 0; i < count; i++) {
		float x = (images[i] + 1) * 127.5f;

		bytes[i] = x >= 255 ? 255 : x > 0 ? (uint8_t)(x + 0.5f) : 0;   /* NaN: 0 */
	}
}
