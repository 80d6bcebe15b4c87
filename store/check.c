/* SPDX-License-Identifier: Apache-2.0
 * The integrity check; see check.h. A pass over each table: first that all of its records parse,
 * then, table by table, what one record says of another. */
#include "config.h"
#include "store/check.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "store/catalogue.h"
#include "store/checkpoints.h"
#include "store/dataset.h"
#include "store/jobs.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct check {
	struct state *state;
	const char *folder;
	enum state_table table;
	check_fn problem;
	void *arg;
	struct check_report *report;
	uint64_t last_job, live;
};

__attribute__((format(printf, 2, 3))) static void found(struct check *c, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	c->report->problems++;
	c->problem(c->arg, text);
}

/* ---------------------------------------------------------------- every record parses */

static const ProtobufCMessageDescriptor *const records[STATE_TABLES] = {
	[STATE_JOBS] = &tf__job_record__descriptor,
	[STATE_SPECS] = &tf__spec_record__descriptor,
	[STATE_ATTEMPTS] = &tf__attempt_record__descriptor,
	[STATE_USERS] = &tf__user_record__descriptor,
	[STATE_ARTEFACTS] = &tf__artefact_record__descriptor,
	[STATE_UPLOADS] = &tf__upload_record__descriptor,
	[STATE_SLOTS] = &tf__slot_record__descriptor,
	[STATE_USAGE] = &tf__usage_record__descriptor,
	[STATE_SHARES] = &tf__share_record__descriptor,
	[STATE_DISK] = &tf__disk_record__descriptor,
	[STATE_NOTICES] = &tf__notice_record__descriptor,
};

static int parse_one(void *arg, struct state_value key, struct state_value value)
{
	struct check *c = arg;
	ProtobufCMessage *m = NULL;
	struct err e = ERR_INIT;

	(void)key;
	c->report->records++;
	if (records[c->table] && record_unpack(value, records[c->table], &m, &e) < 0)
		found(c, "%s", e.text);
	if (m)
		protobuf_c_message_free_unpacked(m, NULL);
	return 0;
}

/* ---------------------------------------------------------------- jobs */

static bool has(struct check *c, enum state_table table, const void *key, size_t len)
{
	struct state_value v;

	return state_get(c->state, table, key, len, &v, NULL) == 0;
}

static void check_after(struct check *c, uint64_t id, const uint64_t *job, size_t count)
{
	uint8_t key[8];

	for (size_t i = 0; i < count; i++) {
		state_key(job[i], key);
		if (!has(c, STATE_JOBS, key, sizeof key))
			found(c, "job %llu: waits for job %llu, which is not there",
			      (unsigned long long)id, (unsigned long long)job[i]);
	}
}

static void check_job(struct check *c, const Tf__JobRecord *r)
{
	unsigned long long id = r->job->id;
	bool ended = job_state_is_end(r->job->state);
	uint64_t by_token = 0;
	uint8_t key[8];

	state_key(r->job->id, key);
	if (r->job->id > c->last_job)
		found(c, "job %llu: the last number given is %llu", id,
		      (unsigned long long)c->last_job);
	if (!has(c, STATE_SPECS, key, sizeof key))
		found(c, "job %llu: what was asked for is missing", id);
	if (has(c, STATE_LIVE, key, sizeof key) == ended)
		found(c, "job %llu is %s: the list of live jobs says otherwise", id,
		      job_state_name(r->job->state));
	c->live += !ended;
	if (job_by_token(c->state, r->token.data, &by_token, NULL) < 0 || by_token != r->job->id)
		found(c, "job %llu: its token does not lead to it", id);
	if (!ended && r->artefact && !has(c, STATE_ARTEFACTS, r->artefact, strlen(r->artefact)))
		found(c, "job %llu: '%s', which it makes, is not in the catalogue", id,
		      r->artefact);
	check_after(c, r->job->id, r->job->after, r->job->n_after);
	check_after(c, r->job->id, r->job->after_any, r->job->n_after_any);
	check_after(c, r->job->id, r->job->after_failed, r->job->n_after_failed);
}

static int walk_job(void *arg, struct state_value key, struct state_value value)
{
	struct check *c = arg;
	Tf__JobRecord *r = NULL;
	struct err e = ERR_INIT;

	(void)value;
	if (key.len != 8)
		found(c, "jobs: a key of %zu bytes", key.len);
	else if (job_get(c->state, state_key_number(key.data), &r, &e) < 0)
		found(c, "%s", e.text);
	else
		check_job(c, r);
	record_free(r);
	return 0;
}

/* A table whose keys begin with a job's number: is that job there? */
static int walk_of_job(void *arg, struct state_value key, struct state_value value)
{
	static const char *const what[STATE_TABLES] = {
		[STATE_SPECS] = "a spec",
		[STATE_LIVE] = "an entry of the live jobs",
		[STATE_AFTER] = "a dependency",
		[STATE_ATTEMPTS] = "an attempt",
	};
	struct check *c = arg;

	(void)value;
	if (key.len < 8 || !has(c, STATE_JOBS, key.data, 8))
		found(c, "%s belongs to no job", what[c->table]);
	return 0;
}

static int walk_token(void *arg, struct state_value key, struct state_value value)
{
	struct check *c = arg;

	if (key.len != TOKEN_BYTES || value.len != 8 ||
	    !has(c, STATE_JOBS, value.data, value.len))
		found(c, "a token leads to no job");
	return 0;
}

/* ---------------------------------------------------------------- artefacts */

/* The files of one that is ready. Those of a dataset must have the sizes of its manifest. */
static void check_files(struct check *c, const Tf__Artefact *a)
{
	char *path = xasprintf("%s/%s/%s", c->folder, artefact_kind_folder(a->kind), a->id);
	struct dataset *data = NULL;
	struct err e = ERR_INIT;
	uint64_t step;
	int rc = 0;

	if (!file_exists(path))
		rc = err_set(&e, TF_ENOTFOUND, "%s: is missing", path);
	else if (a->kind == TF__ARTEFACT_KIND__DATASET)
		rc = dataset_open(path, &data, &e);
	else if (a->kind != TF__ARTEFACT_KIND__TOKENIZER_MODEL)
		rc = checkpoints_find(path, NULL, &step, &e);
	if (rc < 0)
		found(c, "%s '%s': %s", artefact_kind_name(a->kind), a->name, e.text);
	if (data)
		dataset_close(data);
	xfree(path);
}

static int walk_artefact(void *arg, struct state_value key, struct state_value value)
{
	struct check *c = arg;
	Tf__ArtefactRecord *r = NULL, *named = NULL;
	struct err e = ERR_INIT;
	char *id = xstrndup(key.data, key.len);

	(void)value;
	if (artefact_get(c->state, id, &r, &e) < 0)
		found(c, "%s", *e.text ? e.text : "a record of the catalogue cannot be found");
	else if (strcmp(r->artefact->id, id) != 0)
		found(c, "the record of '%s' says that it is '%s'", id, r->artefact->id);
	else if (artefact_find(c->state, r->artefact->kind, r->artefact->name, &named, &e) < 0)
		found(c, "%s", e.text);
	else if (strcmp(named->artefact->id, id) != 0)
		found(c, "the name '%s' leads to '%s', not to '%s'", r->artefact->name,
		      named->artefact->id, id);
	if (r && c->folder && strcmp(r->artefact->state, ARTEFACT_READY) == 0)
		check_files(c, r->artefact);
	record_free(named);
	record_free(r);
	xfree(id);
	return 0;
}

static int walk_name(void *arg, struct state_value key, struct state_value value)
{
	struct check *c = arg;

	if (!has(c, STATE_ARTEFACTS, value.data, value.len))
		found(c, "the name '%.*s' leads to nothing", (int)(key.len > 1 ? key.len - 1 : 0),
		      (const char *)key.data + 1);
	return 0;
}

/* id, 0, 'j' or 'a', who: a user that is there. */
static int walk_use(void *arg, struct state_value key, struct state_value value)
{
	struct check *c = arg;
	const char *id = key.data, *end = memchr(id, 0, key.len);
	uint8_t job[8];
	char *who;
	bool there;

	(void)value;
	if (!end || (size_t)(end - id) + 2 >= key.len) {
		found(c, "a use that cannot be read");
		return 0;
	}
	who = xstrndup(end + 2, key.len - (size_t)(end - id) - 2);
	state_key(strtoull(who, NULL, 10), job);
	there = end[1] == 'j' ? has(c, STATE_LIVE, job, sizeof job)
			      : has(c, STATE_ARTEFACTS, who, strlen(who));
	if (!there)
		found(c, "'%s' is used by %s %s, which is not there", id,
		      end[1] == 'j' ? "live job" : "artefact", who);
	xfree(who);
	return 0;
}

static int walk_upload(void *arg, const uint8_t token[16], const Tf__UploadRecord *r)
{
	struct check *c = arg;
	char *path = xasprintf("%s/uploads/%s/%s", c->folder ? c->folder : "", r->id, r->name);

	(void)token;
	if (c->folder && r->closed && file_size(path) != (int64_t)r->size)
		found(c, "upload %s: %s: %lld bytes instead of %llu", r->id, path,
		      (long long)file_size(path), (unsigned long long)r->size);
	xfree(path);
	return 0;
}

/* ---------------------------------------------------------------- the whole */

static const state_fn walks[STATE_TABLES] = {
	[STATE_JOBS] = walk_job,	 [STATE_SPECS] = walk_of_job,
	[STATE_LIVE] = walk_of_job,	 [STATE_AFTER] = walk_of_job,
	[STATE_ATTEMPTS] = walk_of_job,	 [STATE_TOKENS] = walk_token,
	[STATE_ARTEFACTS] = walk_artefact, [STATE_NAMES] = walk_name,
	[STATE_USES] = walk_use,
};

int store_check(struct state *s, const char *folder, check_fn problem, void *arg,
		struct check_report *out, struct err *e)
{
	struct check c = { .state = s,
			   .folder = folder,
			   .problem = problem,
			   .arg = arg,
			   .report = out };

	*out = (struct check_report){ 0, 0 };
	TRY(state_number(s, "last-job", &c.last_job, e));
	for (int t = 0; t < STATE_TABLES; t++) {
		c.table = (enum state_table)t;
		TRY(state_each(s, c.table, NULL, 0, false, parse_one, &c, e));
	}
	if (out->problems > 0)
		return 0; /* what they say of each other cannot be asked */
	for (int t = 0; t < STATE_TABLES; t++) {
		c.table = (enum state_table)t;
		if (walks[t])
			TRY(state_each(s, c.table, NULL, 0, false, walks[t], &c, e));
	}
	if (c.live != state_count(s, STATE_LIVE))
		found(&c, "%llu jobs live, their list has %llu", (unsigned long long)c.live,
		      (unsigned long long)state_count(s, STATE_LIVE));
	return uploads_each(s, walk_upload, &c, e);
}
