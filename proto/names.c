/* SPDX-License-Identifier: Apache-2.0
 * Names of artefacts, and the words for the enums; declared in spec.h. */
#include "config.h"
#include "lib/mem.h"
#include "proto/spec.h"

#include <stdio.h>
#include <string.h>

#define NAME_CHARS "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

const struct job_kind job_kinds[] = {
#define J(id, kind, field, makes, resumable, warm, joint, help) \
	{ #id, TF__JOB_KIND__##kind, (Tf__JobSpec__SpecCase)(TF__JOB_KIND__##kind + 9),            \
	  (Tf__ArtefactKind)(makes), resumable, warm, joint, help },
#include "proto/jobs.def"
#undef J
};
const size_t job_kind_count = ARRAY_LEN(job_kinds);

/* The field numbers of JobSpec.spec follow the kinds. */
_Static_assert(TF__JOB_SPEC__SPEC_INGEST == TF__JOB_KIND__INGEST + 9 &&
		       TF__JOB_SPEC__SPEC_TOKENIZER == TF__JOB_KIND__TOKENIZER + 9 &&
		       TF__JOB_SPEC__SPEC_VAE == TF__JOB_KIND__VAE + 9 &&
		       TF__JOB_SPEC__SPEC_TRAIN == TF__JOB_KIND__TRAIN + 9 &&
		       TF__JOB_SPEC__SPEC_EVAL == TF__JOB_KIND__EVAL + 9 &&
		       TF__JOB_SPEC__SPEC_GENERATE == TF__JOB_KIND__GENERATE + 9 &&
		       TF__JOB_SPEC__SPEC_NOOP == TF__JOB_KIND__NOOP + 9,
	       "JobSpec.spec");

const struct job_kind *job_kind_find(Tf__JobKind kind)
{
	for (size_t i = 0; i < job_kind_count; i++)
		if (job_kinds[i].kind == kind)
			return &job_kinds[i];
	return NULL;
}

const struct job_kind *job_kind_named(const char *id)
{
	for (size_t i = 0; i < job_kind_count; i++)
		if (strcmp(job_kinds[i].id, id) == 0)
			return &job_kinds[i];
	return NULL;
}

const char *job_kind_name(Tf__JobKind kind)
{
	const struct job_kind *k = job_kind_find(kind);

	return k ? k->id : "unknown";
}

static const char *word_of(const char *const *words, size_t count, int i)
{
	return i >= 0 && (size_t)i < count && words[i] ? words[i] : "unknown";
}

const char *job_state_name(Tf__JobState state)
{
	static const char *const words[] = {
		[TF__JOB_STATE__QUEUED] = "queued",   [TF__JOB_STATE__WAITING] = "waiting",
		[TF__JOB_STATE__HELD] = "held",       [TF__JOB_STATE__STARTING] = "starting",
		[TF__JOB_STATE__RUNNING] = "running", [TF__JOB_STATE__STOPPING] = "stopping",
		[TF__JOB_STATE__DONE] = "done",       [TF__JOB_STATE__FAILED] = "failed",
		[TF__JOB_STATE__CANCELLED] = "cancelled",
	};

	return word_of(words, ARRAY_LEN(words), state);
}

static const char *const priorities[] = {
#define P(id, kind, charge, admins, help) [TF__PRIORITY__##kind] = #id,
#include "proto/priorities.def"
#undef P
};

const char *priority_name(Tf__Priority priority)
{
	return word_of(priorities, ARRAY_LEN(priorities), priority);
}

Tf__Priority priority_named(const char *text)
{
	for (size_t i = 0; i < ARRAY_LEN(priorities); i++)
		if (priorities[i] && strcmp(priorities[i], text) == 0)
			return (Tf__Priority)i;
	return (Tf__Priority)0;
}

const char *stop_reason_name(Tf__StopReason reason)
{
	static const char *const words[] = {
		[TF__STOP_REASON__STOP_NONE] = "none",
		[TF__STOP_REASON__STOP_CANCEL] = "cancel",
		[TF__STOP_REASON__STOP_PREEMPT] = "preempt",
		[TF__STOP_REASON__STOP_LIMIT] = "limit",
		[TF__STOP_REASON__STOP_SHUTDOWN] = "shutdown",
	};

	return word_of(words, ARRAY_LEN(words), reason);
}

const char *artefact_kind_name(Tf__ArtefactKind kind)
{
	static const char *const words[] = {
		[TF__ARTEFACT_KIND__DATASET] = "dataset",
		[TF__ARTEFACT_KIND__TOKENIZER_MODEL] = "tokenizer",
		[TF__ARTEFACT_KIND__VAE_MODEL] = "vae",
		[TF__ARTEFACT_KIND__MODEL] = "model",
	};

	return word_of(words, ARRAY_LEN(words), kind);
}

const char eval_tasks_barred[] =
#define T(name, data, help) "|" #name
#include "proto/tasks.def"
#undef T
	;

const char *eval_task_data(const char *task)
{
	static const struct {
		const char *name, *data;
	} tasks[] = {
#define T(name, data, help) { #name, data },
#include "proto/tasks.def"
#undef T
	};

	for (size_t i = 0; i < ARRAY_LEN(tasks); i++)
		if (strcmp(tasks[i].name, task) == 0)
			return tasks[i].data;
	return "";
}

bool job_state_is_end(Tf__JobState state)
{
	return state == TF__JOB_STATE__DONE || state == TF__JOB_STATE__FAILED ||
	       state == TF__JOB_STATE__CANCELLED;
}

int name_check(const char *what, const char *name, struct err *e)
{
	size_t len = strlen(name);

	FAIL_IF(len == 0, e, TF_EINVALID, "the name of a %s is empty", what);
	FAIL_IF(len > LIMIT_NAME_BYTES, e, TF_ELIMIT,
		"the name of a %s has %zu bytes, at most %u are allowed", what, len,
		LIMIT_NAME_BYTES);
	FAIL_IF(name[0] == '.' || name[0] == '-' || name[strspn(name, NAME_CHARS)], e, TF_EINVALID,
		"'%s' is no name of a %s: expected letters, digits, '.', '_' and '-', "
		"not beginning with '.' or '-'",
		name, what);
	return 0;
}

static bool step_is_valid(const char *step)
{
	size_t digits = strspn(step, "0123456789");

	if (strcmp(step, "latest") == 0 || strcmp(step, "best") == 0)
		return true;
	return digits > 0 && digits < 19 && step[digits] == 0 && (step[0] != '0' || digits == 1);
}

int artefact_name_parse(const char *what, const char *text, struct artefact_name *out,
			struct err *e)
{
	size_t len = strcspn(text, ":@"), step_len = 0;
	const char *rest = text + len;

	memset(out, 0, sizeof *out);
	FAIL_IF(len > LIMIT_NAME_BYTES, e, TF_ELIMIT,
		"the name of a %s has %zu bytes, at most %u are allowed", what, len,
		LIMIT_NAME_BYTES);
	memcpy(out->name, text, len);
	TRY(name_check(what, out->name, e));
	if (*rest == ':') {
		step_len = strcspn(++rest, "@");
		if (step_len < sizeof out->step)
			memcpy(out->step, rest, step_len);
		FAIL_IF(!step_is_valid(out->step), e, TF_EINVALID,
			"%s '%.120s': after ':' expected a step's number, latest or best", what,
			text);
		rest += step_len;
	}
	out->ema = strcmp(rest, "@ema") == 0;
	FAIL_IF(*rest && !out->ema, e, TF_EINVALID, "%s '%.120s': after '@' expected ema", what,
		text);
	return 0;
}
