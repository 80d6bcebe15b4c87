/* SPDX-License-Identifier: Apache-2.0
 * Verbs that use a model: generate, eval. */
#include "config.h"
#include "client/client.h"
#include "client/submit.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define RESULTS "results/"
#define TEXTS_BYTES_MAX (64u << 20)

/* Puts a number given by an option into a field and its has_. */
#define NUMBER(field, option, least, most)                                                        \
	do {                                                                                      \
		int64_t value_ = 0;                                                               \
		TRY(args_int(a, option, least, most, &value_, e));                                \
		s->has_##field = args_has(a, option);                                             \
		if (s->has_##field)                                                               \
			s->field = (__typeof__(s->field))value_;                                  \
	} while (0)
#define REAL(field, option, least, most)                                                          \
	do {                                                                                      \
		TRY(args_float(a, option, least, most, &s->field, e));                            \
		s->has_##field = args_has(a, option);                                             \
	} while (0)
/* A text replaces the spec's default only when it is given. */
#define TEXT(field, option)                                                                       \
	do {                                                                                      \
		if (args_has(a, option))                                                          \
			s->field = (char *)args_text(a, option);                                  \
	} while (0)

/* ---- generate */

struct drawing {
	char **prompt;
	size_t prompts;
	struct buf file;             /* --prompts */
	ProtobufCBinaryData *image;
	size_t images;
};

static void drawing_release(struct drawing *d)
{
	for (size_t i = 0; i < d->images; i++)
		xfree(d->image[i].data);
	xfree(d->image);
	xfree(d->prompt);
	buf_release(&d->file);
}

static void add_prompt(struct drawing *d, char *text)
{
	d->prompt = xrealloc(d->prompt, d->prompts + 1, sizeof *d->prompt);
	d->prompt[d->prompts++] = text;
}

static int read_prompts(const char *path, struct drawing *d, struct err *e)
{
	char *line, *next;

	TRY(file_read(path, LIMIT_MESSAGE_BYTES, &d->file, e));
	for (line = d->file.data; line && *line; line = next) {
		size_t len = strcspn(line, "\r\n");

		next = line + len + strspn(line + len, "\r\n");
		line[len] = 0;
		if (len)
			add_prompt(d, line);
		FAIL_IF(d->prompts > LIMIT_PROMPTS, e, TF_ELIMIT,
			"%s: more than %u prompts, the most a job may have", path, LIMIT_PROMPTS);
	}
	FAIL_IF(d->prompts == 0, e, TF_EINVALID, "%s: no line with a prompt", path);
	return 0;
}

static int read_image(const char *path, struct drawing *d, struct err *e)
{
	struct buf bytes = BUF_INIT;
	int rc = file_read(path, LIMIT_MESSAGE_BYTES / 2, &bytes, e);

	if (rc < 0) {
		buf_release(&bytes);
		return rc;
	}
	d->image = xrealloc(d->image, d->images + 1, sizeof *d->image);
	d->image[d->images].len = bytes.len;
	d->image[d->images++].data = (uint8_t *)buf_detach(&bytes);
	return 0;
}

static int drawing_read(const struct args *a, struct drawing *d, struct err *e)
{
	const struct words *prompts = &a->given[OPTION_PROMPT], *images = &a->given[OPTION_IMAGE];

	for (int i = 0; i < prompts->count; i++)
		add_prompt(d, prompts->word[i]);
	if (args_has(a, OPTION_PROMPTS))
		TRY(read_prompts(args_text(a, OPTION_PROMPTS), d, e));
	for (int i = 0; i < images->count; i++)
		TRY(read_image(images->word[i], d, e));
	FAIL_IF(d->prompts + d->images == 0, e, TF_EUSAGE,
		"generate expects --prompt TEXT, --prompts FILE or --image FILE");
	return 0;
}

static int generate_options(const struct args *a, Tf__GenerateSpec *s, struct err *e)
{
	NUMBER(count, OPTION_COUNT, 1, LIMIT_IMAGES_PER_PROMPT);
	NUMBER(steps, OPTION_STEPS, 1, 1000);
	NUMBER(seed, OPTION_SEED, 0, INT64_MAX);
	NUMBER(max_tokens, OPTION_MAX_TOKENS, 1, 1048576);
	REAL(guidance, OPTION_GUIDANCE, 0, 100);
	REAL(temperature, OPTION_TEMPERATURE, 0, 100);
	REAL(top_p, OPTION_TOP_P, 0, 1);
	REAL(clamp, OPTION_CLAMP, 0, 1000);
	TEXT(sampler, OPTION_SAMPLER);
	TEXT(mode, OPTION_MODE);
	return 0;
}

/* Brings the results of a job here and says what came. */
static int fetch_results(struct client *c, uint64_t id, const char *folder, struct err *e)
{
	Tf__FileOf of = TF__FILE_OF__INIT;
	struct buf names = BUF_INIT;
	int rc;

	of.of_case = TF__FILE_OF__OF_JOB;
	of.job = id;
	rc = fetch_files(c, &of, RESULTS, folder, &names, e);
	if (names.len)
		fputs(names.data, args_has(&c->args, OPTION_JSON) ? stderr : stdout);
	buf_release(&names);
	return rc;
}

/* For a person who waited: the texts of a job whose results came. */
static void print_texts(const char *folder)
{
	char *path = xasprintf("%s/texts.jsonl", folder);
	struct buf file = BUF_INIT;

	if (file_size(path) > 0 && file_read(path, TEXTS_BYTES_MAX, &file, NULL) == 0)
		for (char *line = file.data, *next; line && *line; line = next) {
			json_t *o = json_loadb(line, strcspn(line, "\n"), 0, NULL);
			const char *text = json_string_value(json_object_get(o, "text"));
			char *safe = text_safe(text ? text : "");

			printf("%lld: %s\n",
			       (long long)json_integer_value(json_object_get(o, "index")), safe);
			xfree(safe);
			json_decref(o);
			next = line + strcspn(line, "\n");
			next += *next == '\n';
		}
	buf_release(&file);
	xfree(path);
}

int verb_generate(struct client *c, struct err *e)
{
	const char *folder = args_text(&c->args, OPTION_OUTPUT);
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__GenerateSpec generate = TF__GENERATE_SPEC__INIT;
	struct drawing d = { 0 };
	uint64_t id = 0;
	int rc = drawing_read(&c->args, &d, e);

	spec.kind = TF__JOB_KIND__GENERATE;
	spec.spec_case = TF__JOB_SPEC__SPEC_GENERATE;
	spec.generate = &generate;
	generate.model = c->args.operand.word[0];
	generate.prompt = d.prompt;
	generate.n_prompt = d.prompts;
	generate.image = d.image;
	generate.n_image = d.images;
	if (rc == 0)
		rc = generate_options(&c->args, &generate, e);
	if (rc == 0)
		rc = submit(c, &spec, folder != NULL, &id, e);
	if (rc == STATUS_DONE && folder && id)
		rc = fetch_results(c, id, folder, e);
	if (rc == STATUS_DONE && folder && id && !args_has(&c->args, OPTION_JSON))
		print_texts(folder);
	drawing_release(&d);
	return rc;
}

/* ---- eval */

static int eval_options(const struct args *a, Tf__EvalSpec *s, struct err *e)
{
	NUMBER(limit, OPTION_LIMIT, 1, INT32_MAX);
	NUMBER(steps, OPTION_STEPS, 1, 1000);
	NUMBER(seed, OPTION_SEED, 0, INT64_MAX);
	NUMBER(batch, OPTION_BATCH, 1, 65536);
	REAL(guidance, OPTION_GUIDANCE, 0, 100);
	TEXT(sampler, OPTION_SAMPLER);
	TEXT(split, OPTION_SPLIT);
	s->has_sheet = s->sheet = args_has(a, OPTION_SHEET);
	s->has_dump = s->dump = args_has(a, OPTION_DUMP);
	return 0;
}

static int fetch_eval(struct client *c, uint64_t id, struct err *e)
{
	Tf__FileOf of = TF__FILE_OF__INIT;
	const char *sheet = args_text(&c->args, OPTION_SHEET);
	const char *dump = args_text(&c->args, OPTION_DUMP);

	of.of_case = TF__FILE_OF__OF_JOB;
	of.job = id;
	if (sheet)
		TRY(fetch_one(c, &of, RESULTS "sheet.png", sheet, e));
	if (dump)
		TRY(fetch_one(c, &of, RESULTS "dump.safetensors", dump, e));
	return STATUS_DONE;
}

int verb_eval(struct client *c, struct err *e)
{
	const struct args *a = &c->args;
	bool follow = args_has(a, OPTION_SHEET) || args_has(a, OPTION_DUMP);
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__EvalSpec eval = TF__EVAL_SPEC__INIT;
	uint64_t id = 0;
	int rc;

	FAIL_IF(!args_has(a, OPTION_TASK) || !args_has(a, OPTION_DATA), e, TF_EUSAGE,
		"eval expects --task %s and --data NAME", EVAL_TASKS);
	spec.kind = TF__JOB_KIND__EVAL;
	spec.spec_case = TF__JOB_SPEC__SPEC_EVAL;
	spec.eval = &eval;
	eval.model = a->operand.word[0];
	eval.task = (char *)args_text(a, OPTION_TASK);
	eval.data = (char *)args_text(a, OPTION_DATA);
	TRY(eval_options(a, &eval, e));
	TRY(rc = submit(c, &spec, follow, &id, e));
	return rc == STATUS_DONE && follow && id ? fetch_eval(c, id, e) : rc;
}
