/* SPDX-License-Identifier: Apache-2.0
 * What a generate job leaves in results/: PNG files that say how they were made, texts.jsonl with
 * a line for each sample, and manifest.json, the list of all of it. */
#include "config.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "worker/draw.h"
#include "worker/generate.h"
#include "worker/png.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DECODED_AT_ONCE 64

struct output {
	struct generation *g;
	json_t *list;     /* of manifest.json */
	struct buf lines; /* texts.jsonl */
	size_t pictures, texts;
};

/* Where a picture lies in the results. */
struct place {
	size_t sample; /* request x count + k */
	int64_t part;
	int ordinal; /* among the sample's pictures */
};

static size_t places_of(const struct generation *g, struct place *out)
{
	size_t n = 0;

	for (size_t i = 0; i < g->results; i++) {
		int ordinal = 0;

		for (int64_t p = 0; p < g->result[i].parts; p++) {
			if (g->result[i].part[p].kind != SEGMENT_IMAGE)
				continue;
			if (out)
				out[n] = (struct place) { i, p, ordinal };
			ordinal++;
			n++;
		}
	}
	return n;
}

static void picture_name(const struct place *p, char out[64])
{
	if (p->ordinal == 0)
		snprintf(out, 64, "%05zu.png", p->sample);
	else
		snprintf(out, 64, "%05zu-%d.png", p->sample, p->ordinal);
}

static int write_picture(const struct generation *g, const struct place *p, const uint8_t *rgb,
			 struct err *e)
{
	const Tf__GenerateSpec *s = g->spec;
	const char *prompt = g->request[p->sample / s->count].text;
	char settings[200], seed[24], index[24], name[64];
	const struct png_text text[] = {
		{ "Software", "transfused " PACKAGE_VERSION },
		{ "prompt", prompt ? prompt : "" },
		{ "model", g->o->name },
		{ "settings", settings },
		{ "seed", seed },
		{ "index", index },
	};
	struct picture picture = { draw_width(g->o->vae, &g->o->dims),
				   draw_height(g->o->vae, &g->o->dims), (uint8_t *)rgb };
	struct buf png = BUF_INIT;
	char *path;
	int rc;

	snprintf(settings, sizeof settings, "sampler=%s steps=%u guidance=%g clamp=%g", s->sampler,
		 s->steps, s->guidance, s->clamp);
	snprintf(seed, sizeof seed, "%" PRIu64, s->seed);
	snprintf(index, sizeof index, "%zu", p->sample);
	picture_name(p, name);
	path = job_result_path(g->job, "%s", name);
	rc = png_encode(&picture, text, ARRAY_LEN(text), &png, e);
	if (rc == 0)
		rc = file_put(path, png.data, png.len, 0644, e);
	buf_release(&png);
	xfree(path);
	return rc;
}

static int write_pictures(struct output *out, struct err *e)
{
	struct generation *g = out->g;
	size_t n = places_of(g, NULL), bytes = n ? draw_bytes(g->o->vae, &g->o->dims) : 0;
	struct place *place = xcalloc(n, sizeof *place);
	uint8_t *rgb = xcalloc(DECODED_AT_ONCE, bytes);
	const float *latent[DECODED_AT_ONCE];
	int rc = 0;

	places_of(g, place);
	for (size_t i = 0; rc == 0 && i < n; i += DECODED_AT_ONCE) {
		size_t now = n - i < DECODED_AT_ONCE ? n - i : DECODED_AT_ONCE;

		for (size_t k = 0; k < now; k++)
			latent[k] = g->result[place[i + k].sample].part[place[i + k].part].latent;
		job_stage(g->job, "decode");
		rc = draw_decode(g->o->vae, &g->o->dims, latent, (int64_t)now, rgb, e);
		job_stage(g->job, "write");
		for (size_t k = 0; rc == 0 && k < now; k++)
			rc = write_picture(g, &place[i + k], rgb + k * bytes, e);
		job_report(g->job, "saving", i + now, n, "picture");
	}
	out->pictures = n;
	xfree(rgb);
	xfree(place);
	return rc;
}

static const char *end_word(enum sampler_end end)
{
	static const char *const words[] = { [END_EOS] = "eos",
					     [END_TOKENS] = "max_tokens",
					     [END_IMAGES] = "images",
					     [END_CONTEXT] = "context" };

	return (unsigned)end < ARRAY_LEN(words) ? words[end] : "?";
}

/* A text of bytes that may end within a character. */
static json_t *text_value(const struct buf *b)
{
	size_t len = b->len;

	for (int i = 0; i < 4 && len > 0; i++, len--) {
		json_t *value = json_stringn(b->data, len);

		if (value)
			return value;
	}
	return json_string("");
}

/* The parts of a sample in order: {"text": ...} and {"picture": file}. */
static int describe_parts(struct output *out, size_t sample, json_t *parts, struct buf *whole,
			  struct err *e)
{
	const struct sampler_result *r = &out->g->result[sample];
	struct place place = { sample, 0, 0 };

	for (int64_t i = 0; i < r->parts; i++) {
		struct buf text = BUF_INIT;
		char name[64];

		if (r->part[i].kind == SEGMENT_IMAGE) {
			picture_name(&place, name);
			place.ordinal++;
			json_array_append_new(parts, json_pack("{s:s}", "picture", name));
			continue;
		}
		TRY(spm_decode(out->g->o->spm, r->part[i].token, (size_t)r->part[i].count, &text,
			       e));
		json_array_append_new(parts, json_pack("{s:o}", "text", text_value(&text)));
		buf_append(whole, text.data, text.len);
		buf_release(&text);
	}
	return 0;
}

static int describe_sample(struct output *out, size_t sample, struct err *e)
{
	const struct generation *g = out->g;
	const struct request *r = &g->request[sample / g->spec->count];
	json_t *entry, *parts = json_array();
	struct buf text = BUF_INIT;
	char *line;
	int rc = describe_parts(out, sample, parts, &text, e);

	entry = json_pack("{s:I, s:s, s:o, s:s, s:o}", "index", (json_int_t)sample, "prompt",
			  r->text ? r->text : "", "text", text_value(&text), "end",
			  end_word(g->result[sample].end), "parts", parts);
	CHECK(entry);
	if (r->picture >= 0)
		json_object_set_new(entry, "picture_given", json_integer(r->picture));
	if (g->options.mode != SAMPLE_IMAGE) {
		line = json_dumps(entry, JSON_COMPACT | JSON_PRESERVE_ORDER);
		buf_printf(&out->lines, "%s\n", line);
		free(line);
		out->texts++;
	}
	json_array_append_new(out->list, entry);
	buf_release(&text);
	return rc;
}

static int write_manifest(struct output *out, struct err *e)
{
	const Tf__GenerateSpec *s = out->g->spec;
	json_t *root =
		json_pack("{s:s, s:I, s:I, s:s, s:f, s:f, s:f, s:O}", "model", out->g->o->name,
			  "seed", (json_int_t)s->seed, "steps", (json_int_t)s->steps, "sampler",
			  s->sampler, "guidance", s->guidance, "temperature", s->temperature,
			  "top_p", s->top_p, "samples", out->list);
	char *path = job_result_path(out->g->job, "manifest.json");
	char *text;
	int rc;

	CHECK(root);
	text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
	rc = file_put(path, text, strlen(text), 0600, e);
	free(text);
	xfree(path);
	json_decref(root);
	return rc;
}

static int write_texts(struct output *out, struct err *e)
{
	char *path = job_result_path(out->g->job, "texts.jsonl");
	int rc = out->texts ? file_put(path, out->lines.data, out->lines.len, 0600, e) : 0;

	xfree(path);
	return rc;
}

int generate_write(struct generation *g, struct err *e)
{
	struct output out = { .g = g, .list = json_array() };
	int rc;

	job_stage(g->job, "write");
	rc = write_pictures(&out, e);
	for (size_t i = 0; rc == 0 && i < g->results; i++)
		rc = describe_sample(&out, i, e);
	if (rc == 0)
		rc = write_texts(&out, e);
	if (rc == 0)
		rc = write_manifest(&out, e);
	if (rc == 0)
		rc = dir_sync(g->job->results, e);
	job_result(g->job, "pictures", (double)out.pictures);
	job_result(g->job, "texts", (double)out.texts);
	json_decref(out.list);
	buf_release(&out.lines);
	return rc;
}
