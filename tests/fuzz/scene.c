/* SPDX-License-Identifier: Apache-2.0
 * What each input of fuzz_request.c finds; see scene.h. Made by requests, but for the artefacts. */
#include "config.h"
#include "tests/fuzz/scene.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <xxhash.h>
#include <stdio.h>
#include <string.h>

const char *const scene_keys[] = { ANY_KEY("a"), ANY_KEY("b"), ANY_KEY("c"), ANY_KEY("d"),
				   ANY_KEY("x") };
const char *const scene_names[] = { "root", "ann", "bob", "eve" };

static void enrol(enum who who, const char *role)
{
	Tf__UserAdd m = TF__USER_ADD__INIT;

	m.name = (char *)scene_names[who];
	m.role = (char *)role;
	m.key = (char *)scene_keys[who];
	scene_ask(ADMIN, TF__REQUEST__BODY_USER_ADD, &m);
}

static void upload(enum who who, uint8_t byte, uint64_t have)
{
	uint8_t token[16], data[10] = "0123456789";
	Tf__UploadOpen open = TF__UPLOAD_OPEN__INIT;
	Tf__UploadChunk chunk = TF__UPLOAD_CHUNK__INIT;
	Tf__UploadClose end = TF__UPLOAD_CLOSE__INIT;
	char id[33];

	memset(token, byte, sizeof token);
	upload_id(token, id);
	open.token = (ProtobufCBinaryData){ sizeof token, token };
	open.name = (char *)"up.bin";
	open.size = sizeof data;
	scene_ask(who, TF__REQUEST__BODY_UPLOAD_OPEN, &open);
	chunk.upload = end.upload = id;
	chunk.data = (ProtobufCBinaryData){ have, data };
	scene_ask(who, TF__REQUEST__BODY_UPLOAD_CHUNK, &chunk);
	end.xxh64 = XXH64(data, sizeof data, 0);
	if (have == sizeof data)
		scene_ask(who, TF__REQUEST__BODY_UPLOAD_CLOSE, &end);
}

/* One that is there; of models with a checkpoint of the step. */
static void make_artefact(Tf__ArtefactKind kind, const char *name, enum who owner,
			  const char *files)
{
	Tf__Artefact a = TF__ARTEFACT__INIT;
	struct err e = ERR_INIT;
	char *path;

	a.kind = kind;
	a.name = (char *)name;
	a.id = xasprintf("%s.0", name);
	a.hash = (char *)"0123456789abcdef";
	a.has_created = a.has_bytes = true;
	a.bytes = 10;
	a.state = (char *)ARTEFACT_READY;
	a.user = (char *)scene_names[owner];
	stage_must(artefact_put(stage.state, &a, &e), &e);
	path = daemon_path(&stage, "%s/%s%s", artefact_kind_folder(kind), a.id, files);
	stage_must(dir_make(path, 0700, &e), &e);
	xfree(path);
	xfree(a.id);
}

static void submit(enum who who, uint8_t token, Tf__JobSpec *spec)
{
	Tf__Submit m = TF__SUBMIT__INIT;
	uint8_t bytes[16];

	memset(bytes, token, sizeof bytes);
	m.token = (ProtobufCBinaryData){ sizeof bytes, bytes };
	m.spec = spec;
	scene_ask(who, TF__REQUEST__BODY_SUBMIT, &m);
}

static Tf__JobSpec noop_spec(Tf__NoopSpec *noop)
{
	Tf__JobSpec s = TF__JOB_SPEC__INIT;

	tf__noop_spec__init(noop);
	s.kind = TF__JOB_KIND__NOOP;
	s.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	s.noop = noop;
	return s;
}

static void write_file(const char *rel, const char *text)
{
	char *path = stage_path(rel), *slash = strrchr(path, '/');
	struct err e = ERR_INIT;

	*slash = 0;
	stage_must(dir_make(path, 0700, &e), &e);
	*slash = '/';
	stage_must(file_put(path, text, strlen(text), 0600, &e), &e);
	xfree(path);
}

/* Jobs 1 and 2, done and failed: who asks for them, and how they end. */
static void run_job(enum who who, int code)
{
	Tf__WorkerHello hello = TF__WORKER_HELLO__INIT;
	Tf__WorkerDone done = TF__WORKER_DONE__INIT;
	Tf__Outcome outcome = TF__OUTCOME__INIT;
	Tf__Metric loss = TF__METRIC__INIT, *result = &loss;
	Tf__NoopSpec noop;
	Tf__JobSpec s = noop_spec(&noop);

	submit(who, (uint8_t)(1 + (code != 0)), &s);
	stage_settle();
	hello.job = done.job = stage_worker(0)->job;
	hello.attempt = done.attempt = stage_worker(0)->attempt;
	hello.pid = (uint32_t)stage_worker(0)->pid;
	scene_ask(WORKER, TF__REQUEST__BODY_WORKER_HELLO, &hello);
	loss.name = (char *)"loss";
	loss.value = 0.5;
	outcome.version = TF_PROTOCOL_VERSION;
	outcome.code = code;
	outcome.n_result = code == 0;
	outcome.result = &result;
	done.outcome = &outcome;
	scene_ask(WORKER, TF__REQUEST__BODY_WORKER_DONE, &done);
	worker_exited(&stage, stage_worker(0));
	stage_settle();
}

static void make_jobs(void)
{
	Tf__GenerateSpec generate = TF__GENERATE_SPEC__INIT;
	Tf__TrainSpec train = TF__TRAIN_SPEC__INIT;
	Tf__Drain drain = TF__DRAIN__INIT;
	Tf__JobRefs refs = TF__JOB_REFS__INIT;
	char *prompt = (char *)"a cat";
	Tf__NoopSpec noop;
	Tf__JobSpec s = noop_spec(&noop);
	uint64_t three = 3, five = 5;

	run_job(MEMBER, 0);
	run_job(OTHER, TF_EINVALID);
	write_file("state/jobs/1/log", "a line\nanother\n");
	write_file("state/jobs/1/metrics.jsonl", "{\"loss\": 0.5}\n");
	write_file("state/jobs/1/results/a.txt", "text");
	/* what is queued now starts with an input */
	scene_ask(ADMIN, TF__REQUEST__BODY_DRAIN, &drain);
	s.has_hold = s.hold = true;
	submit(MEMBER, 3, &s);
	s.has_hold = s.hold = false;
	s.n_after = 1;
	s.after = &three;
	submit(OTHER, 4, &s);
	s.n_after = 0;
	submit(MEMBER, 5, &s);
	refs.n_job = 1;
	refs.job = &five;
	scene_ask(MEMBER, TF__REQUEST__BODY_JOB_CANCEL, &refs);
	s.group = (char *)"g";
	s.has_group_running = true;
	s.group_running = 1;
	submit(OTHER, 6, &s);
	s.group = NULL;
	s.has_group_running = false;
	s.kind = TF__JOB_KIND__GENERATE;
	s.spec_case = TF__JOB_SPEC__SPEC_GENERATE;
	s.generate = &generate;
	generate.model = (char *)"net";
	generate.n_prompt = 1;
	generate.prompt = &prompt;
	submit(MEMBER, 7, &s);
	submit(MEMBER, 8, &s);
	s.kind = TF__JOB_KIND__TRAIN;
	s.spec_case = TF__JOB_SPEC__SPEC_TRAIN;
	s.train = &train;
	train.model = (char *)"dream";
	train.experiment = (char *)"preset: tiny\ndata:\n- name: pairs\n";
	submit(OTHER, 9, &s);
}

void scene_make(void)
{
	stage_open();
	enrol(MEMBER, "member");
	enrol(OTHER, "member");
	enrol(READER, "reader");
	make_artefact(TF__ARTEFACT_KIND__DATASET, "pairs", MEMBER, "");
	make_artefact(TF__ARTEFACT_KIND__TOKENIZER_MODEL, "words", MEMBER, "");
	make_artefact(TF__ARTEFACT_KIND__VAE_MODEL, "pixels", OTHER, "/step-00000003");
	make_artefact(TF__ARTEFACT_KIND__MODEL, "net", MEMBER, "/step-00000005");
	stage_settle();
	make_jobs();
	upload(MEMBER, 1, 5);
	upload(MEMBER, 2, 10);
	upload(OTHER, 3, 10);
	stage_close();
	stage_keep();
}
