/* SPDX-License-Identifier: Apache-2.0
 * Messages all the way through the daemon: handlers, the commit of a turn, tasks, ticks and starts,
 * in this process. An input is a list of entries: a byte that says who, two bytes of length (little
 * endian), so many bytes. Who is a person or the worker of an attempt, whose bytes are a Request;
 * or a worker's process that ends, leaving the bytes as its outcome; or time that passes; or the
 * store, of which something is to fail soon: the length says when.
 *
 * Every input has a daemon of its own on a fresh copy of a state that was made once, so that each
 * crash comes from its input alone; only the keys of attempts and the clock differ.
 *
 * After each message: who may only read has changed nothing, a member nothing of others. In the end
 * each request was answered once, within the limit and so that a client can unpack it; no commit
 * failed but those that were to; the store's check finds nothing; the memory agrees with the store;
 * no descriptor is left.
 *
 * To reach handlers soon, a text "@@p..." of a message is repeated to 2^16 bytes ('p': the 16th
 * letter), a field of a later program that is "@@p" becomes as long, and what a worker says of its
 * job, attempt and pid is made true, but for a liar's. */
#include "config.h"
#include "daemon/daemon.h"
#include "lib/files.h"
#include "lib/mem.h"
#include "proto/wire.h"
#include "store/check.h"
#include "tests/fuzz/any.h"
#include "tests/fuzz/scene.h"
#include "tests/fuzz/stage.h"

#include <xxhash.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ENTRIES_MAX 64
#define HEAD_BYTES 3
#define OWNERS 64 /* users are told apart by a hash */
#define SWELL_BYTES_MAX (6u << 20) /* of one message: over its limit is possible */

#define WHICH_WORKER(byte) ((byte) >> 4 & 3)
#define TASKS_LATER 0x40 /* they run after a later message */
#define SAME_TURN 0x80   /* no commit yet */

struct entry {
	uint8_t who;
	const uint8_t *data;
	size_t len;
};

/* What became of a request: its route is its number. */
struct asked {
	uint64_t id;
	unsigned body, answers;
};

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
				 uint8_t *out, size_t most, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

static struct asked asked[ENTRIES_MAX];
static uint32_t asked_count;
static uint64_t inputs, messages, good;
static uint64_t good_of[100], sent_of[100]; /* by the number of Request.body */

/* ---------------------------------------------------------------- answers */

/* A client could read it, and it answers what it was asked, which is unanswered. */
void stage_letter(const struct letter *l)
{
	struct err e = ERR_INIT;
	Tf__Reply *reply = NULL;
	uint32_t number;

	CHECK(l->len <= LIMIT_MESSAGE_BYTES);
	if (wire_unpack_reply(l->data, l->len, &reply, &e) < 0)
		BUG("an answer that no client can read: %s", e.text);
	CHECK(reply->id == l->id && l->route_len == sizeof number);
	memcpy(&number, l->route, sizeof number);
	CHECK(number < asked_count);
	if (l->id != 0) {
		CHECK(asked[number].id == l->id && ++asked[number].answers == 1);
		good += !reply->code;
		good_of[asked[number].body] += !reply->code;
	}
	tf__reply__free_unpacked(reply, NULL);
}

/* ---------------------------------------------------------------- who changed what */

/* A sum over the records of each owner. */
struct sums {
	uint64_t of[OWNERS];
};

static uint64_t *sum_of(struct sums *s, const char *owner)
{
	return &s->of[owner ? XXH64(owner, strlen(owner), 0) % OWNERS : 0];
}

static int sum_job(void *arg, Tf__JobRecord *r)
{
	uint8_t bytes[4096];
	size_t len = tf__job_record__get_packed_size(r);
	uint8_t *packed = len > sizeof bytes ? xmalloc(len) : bytes;

	tf__job_record__pack(r, packed);
	*sum_of(arg, r->job->user) += XXH64(packed, len, 1);
	if (packed != bytes)
		xfree(packed);
	return 0;
}

static int sum_artefact(void *arg, const Tf__Artefact *a)
{
	uint64_t *sum = sum_of(arg, a->user);

	*sum += XXH64(a->id, strlen(a->id), 2) * (a->job + 1);
	*sum += XXH64(a->state, strlen(a->state), 3);
	return 0;
}

static int sum_upload(void *arg, const uint8_t token[16], const Tf__UploadRecord *r)
{
	*sum_of(arg, r->user) += XXH64(token, 16, 4) + r->closed;
	return 0;
}

static int sum_user(void *arg, struct state_value key, struct state_value value)
{
	((struct sums *)arg)->of[0] += XXH64(key.data, key.len, XXH64(value.data, value.len, 5));
	return 0;
}

static struct sums sum_all(void)
{
	struct sums s = { { 0 } };
	struct err e = ERR_INIT;

	stage_must(jobs_each(stage.state, 0, sum_job, &s, &e), &e);
	stage_must(artefacts_each(stage.state, 0, sum_artefact, &s, &e), &e);
	stage_must(uploads_each(stage.state, sum_upload, &s, &e), &e);
	stage_must(state_each(stage.state, STATE_USERS, NULL, 0, false, sum_user, &s, &e), &e);
	return s;
}

static void check_changes(struct sums *before, enum user_role role, const char *name)
{
	struct sums after = sum_all();

	if (role == ROLE_MEMBER)
		*sum_of(before, name) = *sum_of(&after, name);
	CHECK(memcmp(before, &after, sizeof after) == 0);
}

/* ---------------------------------------------------------------- a message */

struct swell {
	const struct worker *worker; /* whose numbers it has; NULL: its own */
	size_t room;
};

static void swell_text(struct swell *s, char **text)
{
	const char *rest = *text + 3;
	size_t len = strlen(rest), want = (size_t)1 << ((*text)[2] & 31), n = len ? want / len : 0;
	char *long_text;

	if (want > s->room || n == 0)
		return;
	s->room -= want;
	long_text = xmalloc(n * len + 1);
	for (size_t i = 0; i < n; i++)
		memcpy(long_text + i * len, rest, len);
	long_text[n * len] = 0;
	xfree(*text);
	*text = long_text;
}

static void swell_unknown(struct swell *s, ProtobufCMessage *m)
{
	for (unsigned i = 0; i < m->n_unknown_fields; i++) {
		ProtobufCMessageUnknownField *f = &m->unknown_fields[i];
		size_t want = f->len == 4 ? (size_t)1 << (f->data[3] & 31) : 0, n = 0;
		uint8_t *data;

		if (want == 0 || want > s->room || memcmp(f->data + 1, "@@", 2) != 0)
			continue;
		s->room -= want;
		data = xcalloc(1, want + 10);
		for (size_t rest = want; n == 0 || rest; rest >>= 7) /* its length comes first */
			data[n++] = (uint8_t)((rest & 0x7F) | (rest > 0x7F ? 0x80 : 0));
		xfree(f->data);
		f->data = data;
		f->len = n + want;
	}
}

static void swell_value(void *arg, const ProtobufCFieldDescriptor *f, void *at)
{
	struct swell *s = arg;

	if (f->type == PROTOBUF_C_TYPE_STRING && strncmp(*(char **)at, "@@", 2) == 0 &&
	    strlen(*(char **)at) > 3)
		swell_text(s, at);
	if (f->type == PROTOBUF_C_TYPE_MESSAGE)
		swell_unknown(s, *(ProtobufCMessage **)at);
	if (!s->worker)
		return;
	if (strcmp(f->name, "job") == 0)
		*(uint64_t *)at = s->worker->job;
	if (strcmp(f->name, "attempt") == 0)
		*(uint32_t *)at = s->worker->attempt;
	if (strcmp(f->name, "pid") == 0)
		*(uint32_t *)at = (uint32_t)s->worker->pid;
}

/* The bytes as they are sent; the caller's. *m (may be NULL) is not to be unpacked again. */
static uint8_t *swollen(ProtobufCMessage *m, const struct entry *en, const struct worker *w,
			size_t *len)
{
	struct swell s = { w, SWELL_BYTES_MAX };
	uint8_t *bytes;

	*len = en->len;
	if (!m || (!w && !memmem(en->data, en->len, "@@", 2)))
		return xmemdup(en->data, en->len);
	any_walk(m, swell_value, &s);
	*len = protobuf_c_message_get_packed_size(m);
	bytes = xmalloc(*len + 1);
	protobuf_c_message_pack(m, bytes);
	return bytes;
}

static void fill_message(struct wire_message *wm, const char *key, const void *data, size_t len)
{
	*wm = (struct wire_message){ .route_len = sizeof asked_count };
	memcpy(wm->route, &asked_count, sizeof asked_count);
	snprintf(wm->user, sizeof wm->user, "%s", key);
	snprintf(wm->from, sizeof wm->from, "127.0.0.1");
	CHECK(zmq_msg_init_size(&wm->body, len) == 0);
	memcpy(zmq_msg_data(&wm->body), data, len);
}

static enum user_role role_of(const char *key, char name[LIMIT_NAME_BYTES + 1])
{
	Tf__UserRecord *user = NULL;
	enum user_role role = ROLE_NONE;

	if (user_get(stage.state, key, &user, NULL) == 0) {
		role = (enum user_role)user->role;
		snprintf(name, LIMIT_NAME_BYTES + 1, "%s", user->name);
	}
	record_free(user);
	return role;
}

static void send_bytes(const char *key, const void *data, size_t len)
{
	struct asked *a = &asked[asked_count];
	char name[LIMIT_NAME_BYTES + 1] = "";
	Tf__Request *again = NULL;
	struct wire_message wm;
	enum user_role role = role_of(key, name);
	bool changed = state_changed(stage.state), bound = role < ROLE_ADMIN;
	bool ended = stage.ended.len > 0 && role == ROLE_MEMBER; /* others wait for those jobs */
	struct sums before;

	if (worker_by_key(&stage, key))
		bound = false;
	else if (bound)
		before = sum_all();
	*a = (struct asked){ 0 };
	if (wire_unpack_request(data, len, &again, &a->id, NULL) == 0)
		a->body = (unsigned)again->body_case;
	if (again)
		tf__request__free_unpacked(again, NULL);
	sent_of[a->body]++;
	messages++;
	fill_message(&wm, key, data, len);
	asked_count++;
	server_take(&stage, &wm);
	wire_message_close(&wm);
	if (bound && role < ROLE_MEMBER)
		CHECK(state_changed(stage.state) == changed);
	if (bound && !ended && state_changed(stage.state))
		check_changes(&before, role, name);
}

void scene_ask(enum who who, unsigned body, void *of_body)
{
	Tf__Request r = TF__REQUEST__INIT;
	uint64_t before = good;
	uint8_t *bytes;
	size_t len;

	asked_count = 0;
	r.version = TF_PROTOCOL_VERSION;
	r.id = 1;
	r.body_case = (Tf__Request__BodyCase)body;
	r.ping = of_body; /* all of them are pointers */
	stage_must(wire_pack(&r.base, &bytes, &len, NULL), &stage.store_trouble);
	send_bytes(who == WORKER ? stage_worker(0)->key : scene_keys[who], bytes, len);
	xfree(bytes);
	stage_run_tasks();
	stage_settle();
	CHECK(good == before + 1);
}

static void send_entry(const struct entry *en)
{
	enum who who = (en->who & 15) % WHOS;
	const struct worker *w = who >= WORKER ? stage_worker(WHICH_WORKER(en->who)) : NULL;
	const char *key = w ? w->key : scene_keys[who < STRANGER ? who : STRANGER];
	Tf__Request *m = NULL;
	struct err e = ERR_INIT;
	uint8_t *bytes;
	uint64_t id;
	size_t len;

	wire_unpack_request(en->data, en->len, &m, &id, &e);
	bytes = swollen(m ? &m->base : NULL, en, who == WORKER ? w : NULL, &len);
	if (m)
		tf__request__free_unpacked(m, NULL);
	send_bytes(key, bytes, len);
	xfree(bytes);
}

/* ---------------------------------------------------------------- what else happens */

/* The process of a worker ends; what it left for one of its jobs is what the daemon reads then. */
static void end_process(const struct entry *en)
{
	struct worker *w = stage_worker(WHICH_WORKER(en->who));
	char key[KEY_CHARS + 1];
	ProtobufCMessage *m = NULL;
	struct err e = ERR_INIT;
	uint8_t *bytes;
	char *path;
	size_t len;

	if (!w)
		return;
	wire_unpack(&tf__outcome__descriptor, en->data, en->len, &m, &e);
	bytes = swollen(m, en, NULL, &len);
	if (m)
		protobuf_c_message_free_unpacked(m, NULL);
	err_clear(&e);
	path = daemon_path(&stage, "jobs/%" PRIu64, w->job);
	stage_must(dir_make(path, 0700, &e), &e); /* one that joined has it of its worker */
	xfree(path);
	path = worker_outcome_path(&stage, w);
	if (len)
		stage_must(file_put(path, bytes, len, 0600, &e), &e);
	xfree(path);
	xfree(bytes);
	memcpy(key, w->key, sizeof key);
	while ((w = worker_by_key(&stage, key)) != NULL) /* of all of its jobs */
		worker_exited(&stage, w);
}

static void take_entry(const struct entry *en)
{
	static const char *const troubles[] = { "store-begin", "store-put", "store-commit",
						"store-committed" };
	enum who who = (en->who & 15) % WHOS;

	if (who == EXITED)
		end_process(en);
	else if (who == TIME)
		stage_pass_time();
	else if (who == TROUBLE)
		stage_trouble(troubles[WHICH_WORKER(en->who)], en->len % 16 + 1);
	else
		send_entry(en);
	if (!(en->who & TASKS_LATER))
		stage_run_tasks();
	if (!(en->who & SAME_TURN))
		stage_settle();
}

/* ---------------------------------------------------------------- what must hold in the end */

static void print_problem(void *arg, const char *problem)
{
	(void)arg;
	fprintf(stderr, "the store: %s\n", problem);
}

static int count_open(void *arg, const uint8_t token[16], const Tf__UploadRecord *r)
{
	(void)token;
	*(size_t *)arg += !r->closed;
	return 0;
}

static void check_memory(void)
{
	uint64_t live = 0;
	size_t open = 0;
	struct err why = ERR_INIT;

	for (size_t i = 0; i < stage.live.count; i++) {
		const struct job *j = stage.live.job[i];
		Tf__JobRecord *r = NULL;
		struct err e = ERR_INIT;

		if (!j)
			continue;
		stage_must(job_get(stage.state, j->id, &r, &e), &e);
		CHECK(r->job->state == j->state && r->job->attempt == j->attempt);
		CHECK(j->seq >= r->job->seq);
		record_free(r);
		live++;
	}
	CHECK(live == state_count(stage.state, STATE_LIVE));
	stage_must(uploads_each(stage.state, count_open, &open, &why), &why);
	CHECK(stage.uploads <= open);
}

static void check_end(void)
{
	struct check_report report;
	struct err e = ERR_INIT;

	stage_run_tasks();
	stage_recover();
	for (int i = 0; i < 3; i++) { /* what waited is answered, what that began is done */
		stage_pass_time();
		stage_settle();
		stage_run_tasks();
	}
	stage_settle();
	for (uint32_t i = 0; i < asked_count; i++)
		CHECK(asked[i].id == 0 || asked[i].answers == 1);
	stage_must(store_check(stage.state, NULL, print_problem, NULL, &report, &e), &e);
	CHECK(report.problems == 0);
	check_memory();
}

/* ---------------------------------------------------------------- entries */

/* A length that is too long takes what there is. */
static size_t parse(const uint8_t *data, size_t size, struct entry *list)
{
	size_t n = 0;

	while (size >= HEAD_BYTES && n < ENTRIES_MAX) {
		struct entry *en = &list[n++];
		size_t len = data[1] | (size_t)data[2] << 8;

		data += HEAD_BYTES;
		size -= HEAD_BYTES;
		*en = (struct entry){ data[-HEAD_BYTES], data, len < size ? len : size };
		data += en->len;
		size -= en->len;
	}
	return n;
}

/* Those that fit; out may not be what they lie in. */
static size_t join(const struct entry *list, size_t n, uint8_t *out, size_t most)
{
	size_t at = 0;

	for (size_t i = 0; i < n; i++) {
		const struct entry *en = &list[i];

		if (en->len > UINT16_MAX || at + HEAD_BYTES + en->len > most)
			continue;
		out[at] = en->who;
		out[at + 1] = (uint8_t)en->len;
		out[at + 2] = (uint8_t)(en->len >> 8);
		if (en->len)
			memcpy(out + at + HEAD_BYTES, en->data, en->len);
		at += HEAD_BYTES + en->len;
	}
	return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct entry list[ENTRIES_MAX];
	size_t n = parse(data, size, list);
	int first = dup(0), again;

	close(first);
	stage_renew();
	asked_count = 0;
	stage_open();
	stage_settle();
	for (size_t i = 0; i < n && !(stage.leave_when_idle && stage.workers == 0); i++)
		take_entry(&list[i]);
	check_end();
	stage_close();
	again = dup(0);
	close(again);
	CHECK(again == first);
	inputs++;
	return 0;
}

/* ---------------------------------------------------------------- mutation */

static const ProtobufCMessageDescriptor *type_of(const struct entry *en)
{
	enum who who = (en->who & 15) % WHOS;

	return who == EXITED ? &tf__outcome__descriptor : &tf__request__descriptor;
}

static void pack_into(struct entry *en, ProtobufCMessage *m)
{
	uint8_t *bytes = xmalloc(protobuf_c_message_get_packed_size(m) + 1);

	en->len = protobuf_c_message_pack(m, bytes);
	en->data = bytes;
	protobuf_c_message_free_unpacked(m, NULL);
}

static uint8_t any_who(uint64_t *chance)
{
	static const uint8_t likely[] = { ADMIN,    ADMIN,  MEMBER, MEMBER, MEMBER,
					  OTHER,    OTHER,  READER, WORKER, WORKER,
					  STRANGER, WORKER, LIAR,   EXITED, TIME,   TROUBLE };
	uint64_t flags = any_number(chance, 16);

	return (uint8_t)(likely[any_number(chance, ARRAY_LEN(likely))] |
			 any_number(chance, 4) << 4 | (flags == 0 ? TASKS_LATER : 0) |
			 (flags > 10 ? SAME_TURN : 0));
}

/* Changes the entry; what it then has is *own, the caller's. */
static void change_entry(uint64_t *chance, struct entry *en, uint8_t **own)
{
	uint64_t how = any_number(chance, 20);
	ProtobufCMessage *m = NULL;

	*own = NULL;
	if (how == 0) {
		en->who = any_who(chance);
		return;
	}
	m = how == 1 ? NULL : protobuf_c_message_unpack(type_of(en), NULL, en->len, en->data);
	if (m) {
		for (uint64_t i = any_number(chance, 3) + 1; i > 0; i--)
			any_change(chance, m);
		pack_into(en, m);
		*own = (uint8_t *)en->data;
	} else {
		*own = xmalloc(en->len + 64);
		if (en->len)
			memcpy(*own, en->data, en->len);
		en->len = LLVMFuzzerMutate(*own, en->len, en->len + 64);
		en->data = *own;
	}
}

static void insert(struct entry *list, size_t *n, size_t at, struct entry en)
{
	*n -= *n == ENTRIES_MAX; /* the last one goes */
	memmove(list + at + 1, list + at, (*n - at) * sizeof *list);
	list[at] = en;
	++*n;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
	uint64_t chance = seed, how = any_number(&chance, 10);
	struct entry list[ENTRIES_MAX + 1], en = { .who = any_who(&chance) };
	size_t n = parse(data, size, list), at = n ? any_number(&chance, n) : 0;
	uint8_t *out = xmalloc(most + 1), *own = NULL;

	if (n == 0 || how < 3) {
		pack_into(&en, any_message(&chance, type_of(&en)));
		own = (uint8_t *)en.data;
		at = any_number(&chance, n + 1 < ENTRIES_MAX ? n + 1 : n);
		insert(list, &n, at, en);
	} else if (how == 3) {
		memmove(list + at, list + at + 1, (--n - at) * sizeof *list);
	} else if (how == 4) {
		en = list[any_number(&chance, n)]; /* once more, as it is: by another, perhaps */
		en.who = any_number(&chance, 3) ? en.who : any_who(&chance);
		insert(list, &n, at, en);
	} else {
		change_entry(&chance, &list[at], &own);
	}
	size = join(list, n, out, most);
	memcpy(data, out, size);
	xfree(own);
	xfree(out);
	return size;
}

/* The first entries of one, then the last of the other. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size,
				 uint8_t *out, size_t most, unsigned seed)
{
	struct entry list[2 * ENTRIES_MAX], other[ENTRIES_MAX];
	uint64_t chance = seed;
	size_t n = parse(a, a_size, list), m = parse(b, b_size, other), from;

	n = any_number(&chance, n + 1);
	from = any_number(&chance, m + 1);
	memcpy(list + n, other + from, (m - from) * sizeof *list);
	n += m - from;
	return join(list, n < ENTRIES_MAX ? n : ENTRIES_MAX, out, most);
}

/* ---------------------------------------------------------------- the process */

static void say_and_clean(void)
{
	fprintf(stderr,
		"handled %" PRIu64 " messages in %" PRIu64 " inputs, the store failed %" PRIu64
		" times, %" PRIu64 " granted:",
		messages, inputs, stage_troubles, good);
	for (unsigned i = 0; i < ARRAY_LEN(sent_of); i++)
		if (sent_of[i])
			fprintf(stderr, " %s %" PRIu64 "/%" PRIu64,
				i ? protobuf_c_message_descriptor_get_field(
					    &tf__request__descriptor, i)
					    ->name
				  : "none",
				good_of[i], sent_of[i]);
	fprintf(stderr, "\n");
	stage_remove();
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	stage_make();
	scene_make();
	messages = good = 0;
	memset(good_of, 0, sizeof good_of);
	memset(sent_of, 0, sizeof sent_of);
	atexit(say_and_clean);
	return 0;
}
