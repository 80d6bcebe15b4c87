/* SPDX-License-Identifier: Apache-2.0
 * People: enrolling, revoking, rotating, roles, asking as somebody else, and what is whose. */
#include "tests/daemon/harness.h"
#include "tests/daemon/user_keys.h"
#include "lib/clock.h"
#include "lib/files.h"
#include "lib/mem.h"

#include <stdio.h>
#include <string.h>

static struct harness h;
static struct key_pair bob, spare, filed;
static char user_filed[100];
static struct err e;

static int start(void **state)
{
	harness_prepared(state);
	if (key_pair_make(&bob, &e) < 0 || key_pair_make(&spare, &e) < 0 ||
	    key_pair_make(&filed, &e) < 0)
		return -1;
	snprintf(user_filed, sizeof user_filed, "eve member %s", filed.public_key);
	h.extra[0] = "--user";
	h.extra[1] = user_filed;
	h.extra[2] = "--root";
	h.extra[3] = h.folder;
	harness_start(&h);
	return 0;
}

static int call(struct connection *c, Tf__Request *r, Tf__Reply **reply)
{
	err_clear(&e);
	return harness_call(c, r, reply, &e);
}

static int add(struct connection *c, const char *name, const char *role, const char *key)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserAdd m = TF__USER_ADD__INIT;

	m.name = (char *)name;
	m.role = (char *)role;
	m.key = (char *)key;
	r.body_case = TF__REQUEST__BODY_USER_ADD;
	r.user_add = &m;
	return call(c, &r, NULL);
}

static int revoke(struct connection *c, const char *who)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserRevoke m = TF__USER_REVOKE__INIT;

	m.who = (char *)who;
	r.body_case = TF__REQUEST__BODY_USER_REVOKE;
	r.user_revoke = &m;
	return call(c, &r, NULL);
}

static int rotate(struct connection *c, const char *name, const char *key)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserRotate m = TF__USER_ROTATE__INIT;

	m.name = (char *)name;
	m.key = (char *)key;
	r.body_case = TF__REQUEST__BODY_USER_ROTATE;
	r.user_rotate = &m;
	return call(c, &r, NULL);
}

static int give_role(struct connection *c, const char *name, const char *role)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__UserRole m = TF__USER_ROLE__INIT;

	m.name = (char *)name;
	m.role = (char *)role;
	r.body_case = TF__REQUEST__BODY_USER_ROLE;
	r.user_role = &m;
	return call(c, &r, NULL);
}

/* Who the daemon takes the asker for, as "name role"; the error's name when it refuses. */
static const char *who(struct connection *c, const char *as)
{
	static char text[200];
	Tf__Request r = harness_empty(TF__REQUEST__BODY_STATUS);
	Tf__Reply *reply = NULL;
	int rc;

	r.as_user = (char *)as;
	rc = call(c, &r, &reply);
	if (rc < 0)
		return err_name(rc);
	snprintf(text, sizeof text, "%s %s", reply->status->user, reply->status->role);
	tf__reply__free_unpacked(reply, NULL);
	return text;
}

static size_t count_users(void)
{
	Tf__Request r = harness_empty(TF__REQUEST__BODY_USER_LIST);
	Tf__Reply *reply = NULL;
	size_t n;

	assert_ok(call(h.line, &r, &reply), &e);
	n = reply->users->n_user;
	tf__reply__free_unpacked(reply, NULL);
	return n;
}

static uint64_t submit(struct connection *c, const char *as)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__NoopSpec noop = TF__NOOP_SPEC__INIT;
	Tf__Submit m = TF__SUBMIT__INIT;
	Tf__Request r = TF__REQUEST__INIT;
	int64_t token[2] = { clock_mono_ns(), 1 };
	Tf__Reply *reply = NULL;
	uint64_t id = 0;

	spec.kind = TF__JOB_KIND__NOOP;
	spec.name = (char *)"wait";
	spec.spec_case = TF__JOB_SPEC__SPEC_NOOP;
	spec.noop = &noop;
	m.token.len = 16;
	m.token.data = (uint8_t *)token;
	m.spec = &spec;
	r.body_case = TF__REQUEST__BODY_SUBMIT;
	r.submit = &m;
	r.as_user = (char *)as;
	if (call(c, &r, &reply) == 0) {
		id = reply->submitted->job;
		tf__reply__free_unpacked(reply, NULL);
	}
	return id;
}

static void an_enrolled_user_stays(void **state)
{
	struct connection *c;

	(void)state;
	assert_ok(add(h.line, "bob", "member", bob.public_key), &e);
	assert_ok(add(h.line, "bob", "member", bob.public_key), &e); /* asked again */
	c = harness_line(&h, &bob);
	assert_string_equal(who(c, NULL), "bob member");
	assert_int_equal(add(c, "eva", "admin", spare.public_key), TF_EREFUSED);
	connection_close(c);
	harness_kill(&h, 9);
	harness_start(&h);
	c = harness_line(&h, &bob);
	assert_string_equal(who(c, NULL), "bob member");
	connection_close(c);
	assert_int_equal(count_users(), 3);
}

static void what_is_wrong_is_said(void **state)
{
	(void)state;
	assert_int_equal(add(h.line, "../bob", "member", bob.public_key), TF_EINVALID);
	assert_int_equal(add(h.line, "bob", "king", bob.public_key), TF_EINVALID);
	assert_non_null(strstr(e.text, "king"));
	assert_int_equal(add(h.line, "bob", "worker", bob.public_key), TF_EINVALID);
	assert_int_equal(add(h.line, "bob", "member", "short"), TF_EINVALID);
	assert_ok(add(h.line, "bob", "member", bob.public_key), &e);
	assert_int_equal(add(h.line, "bill", "member", bob.public_key), TF_EEXISTS);
	assert_int_equal(add(h.line, "bob", "admin", spare.public_key), TF_EEXISTS);
	assert_int_equal(revoke(h.line, "nobody"), TF_ENOTFOUND);
	assert_int_equal(rotate(h.line, "nobody", spare.public_key), TF_ENOTFOUND);
	assert_int_equal(rotate(h.line, "bob", filed.public_key), TF_EEXISTS);
	assert_int_equal(give_role(h.line, "bob", "none"), TF_EINVALID);
	assert_int_equal(give_role(h.line, "nobody", "admin"), TF_ENOTFOUND);
}

static void a_configured_user_stays_configured(void **state)
{
	(void)state;
	assert_int_equal(revoke(h.line, "eve"), TF_EREFUSED);
	assert_non_null(strstr(e.text, "configuration"));
	assert_int_equal(revoke(h.line, filed.public_key), TF_EREFUSED);
	assert_int_equal(rotate(h.line, "eve", spare.public_key), TF_EREFUSED);
	assert_int_equal(give_role(h.line, "eve", "admin"), TF_EREFUSED);
}

/* In an open connection, and for a wait that was begun before. */
static void a_revoked_key_is_out_at_once(void **state)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__JobWait m = TF__JOB_WAIT__INIT;
	uint64_t id = harness_noop(&h, "wait"), open;
	struct connection *c, *second;
	Tf__Reply *reply = NULL;

	(void)state;
	assert_ok(add(h.line, "bob", "member", bob.public_key), &e);
	assert_ok(add(h.line, "bob", "member", spare.public_key), &e);
	c = harness_line(&h, &bob);
	second = harness_line(&h, &spare);
	assert_string_equal(who(c, NULL), "bob member");
	assert_string_equal(who(second, NULL), "bob member");
	harness_until(&h, id, TF__JOB_STATE__RUNNING);
	m.job = id;
	m.has_since = m.has_timeout_ms = true;
	m.since = UINT64_MAX;
	m.timeout_ms = 300;
	r.body_case = TF__REQUEST__BODY_JOB_WAIT;
	r.job_wait = &m;
	assert_ok(connection_send(c, &r, &open, &e), &e);
	assert_ok(revoke(h.line, bob.public_key), &e);
	assert_ok(connection_receive(c, 5000, &reply, &e), &e);
	assert_int_equal(reply->code, TF_EREFUSED);
	tf__reply__free_unpacked(reply, NULL);
	assert_string_equal(who(c, NULL), "TF_EREFUSED");
	assert_string_equal(who(second, NULL), "bob member");
	assert_ok(revoke(h.line, "bob"), &e);
	assert_string_equal(who(second, NULL), "TF_EREFUSED");
	connection_close(c);
	connection_close(second);
	c = harness_line(&h, &bob); /* nor in a new one */
	assert_string_equal(who(c, NULL), "TF_EREFUSED");
	connection_close(c);
}

static void a_rotated_key_takes_the_place_of_the_old(void **state)
{
	struct connection *c, *other;

	(void)state;
	assert_ok(add(h.line, "bob", "reader", bob.public_key), &e);
	c = harness_line(&h, &bob);
	assert_string_equal(who(c, NULL), "bob reader");
	assert_ok(rotate(h.line, "bob", spare.public_key), &e);
	assert_ok(rotate(h.line, "bob", spare.public_key), &e);
	other = harness_line(&h, &spare);
	assert_string_equal(who(c, NULL), "TF_EREFUSED");
	assert_string_equal(who(other, NULL), "bob reader");
	connection_close(c);
	connection_close(other);
}

static void an_administrator_is_always_left(void **state)
{
	struct connection *c;
	char *text = NULL;

	(void)state;
	text = xstrdup(who(h.line, NULL));
	*strchr(text, ' ') = 0;
	assert_int_equal(revoke(h.line, text), TF_EREFUSED);
	assert_int_equal(give_role(h.line, text, "member"), TF_EREFUSED);
	assert_ok(add(h.line, "bob", "member", bob.public_key), &e);
	assert_int_equal(revoke(h.line, text), TF_EREFUSED);
	assert_ok(give_role(h.line, "bob", "admin"), &e);
	c = harness_line(&h, &bob);
	assert_ok(revoke(c, text), &e);
	assert_string_equal(who(h.line, NULL), "TF_EREFUSED");
	assert_int_equal(revoke(c, "bob"), TF_EREFUSED);
	connection_close(c);
	harness_kill(&h, 15);
	harness_start(&h); /* a revoked key of the folder stays out while another is in */
	assert_string_equal(who(h.line, NULL), "TF_EREFUSED");
	xfree(text);
}

static void an_administrator_asks_as_somebody(void **state)
{
	struct connection *c;
	Tf__Reply *reply;
	uint64_t id;

	(void)state;
	assert_ok(add(h.line, "bob", "member", bob.public_key), &e);
	assert_string_equal(who(h.line, "bob"), "bob member");
	assert_string_equal(who(h.line, "nobody"), "TF_ENOTFOUND");
	c = harness_line(&h, &bob);
	assert_string_equal(who(c, "eve"), "TF_EREFUSED");
	assert_string_equal(who(c, "bob"), "TF_EREFUSED");
	id = submit(h.line, "bob");
	assert_true(id > 0);
	reply = harness_show(&h, id);
	assert_string_equal(reply->jobs->job[0]->user, "bob");
	tf__reply__free_unpacked(reply, NULL);
	assert_ok(harness_cancel(c, id, &e), &e);
	connection_close(c);
}

static int make(struct connection *c, const char *how, bool vae, bool resume, uint64_t *id)
{
	Tf__JobSpec spec = TF__JOB_SPEC__INIT;
	Tf__VaeSpec v = TF__VAE_SPEC__INIT;
	Tf__IngestSpec ingest = TF__INGEST_SPEC__INIT;
	char *path = xasprintf("%s/source.txt", h.folder);
	int rc;

	assert_ok(file_write(path, "text\n", 5, 0600, &e), &e);
	ingest.dataset = (char *)"pictures";
	ingest.n_path = 1;
	ingest.path = &path;
	v.vae = (char *)"look";
	v.experiment = (char *)"data:\n  - name: pictures\ntrain:\n  steps: 100\n";
	v.has_resume = v.resume = resume;
	spec.kind = vae ? TF__JOB_KIND__VAE : TF__JOB_KIND__INGEST;
	spec.name = (char *)how;
	spec.spec_case = vae ? TF__JOB_SPEC__SPEC_VAE : TF__JOB_SPEC__SPEC_INGEST;
	spec.vae = &v;
	if (!vae)
		spec.ingest = &ingest;
	err_clear(&e);
	rc = harness_submit(c, &spec, NULL, false, id, &e);
	xfree(path);
	return rc;
}

static int remove_artefact(struct connection *c, Tf__ArtefactKind kind, const char *name)
{
	Tf__Request r = TF__REQUEST__INIT;
	Tf__ArtefactRef m = TF__ARTEFACT_REF__INIT;

	m.kind = kind;
	m.name = (char *)name;
	r.body_case = TF__REQUEST__BODY_ARTEFACT_DELETE;
	r.artefact_delete = &m;
	return call(c, &r, NULL);
}

/* A member uses what others made, and changes none of it. */
static void a_members_hands_stay_off_the_others(void **state)
{
	struct connection *c;
	uint64_t id, own;

	(void)state;
	assert_ok(add(h.line, "bob", "member", bob.public_key), &e);
	c = harness_line(&h, &bob);
	assert_ok(make(h.line, "make", false, false, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__DONE);
	assert_ok(make(h.line, "steps", true, false, &id), &e);
	harness_until(&h, id, TF__JOB_STATE__FAILED); /* it leaves a checkpoint */
	id = harness_noop(&h, "wait");
	assert_int_equal(harness_cancel(c, id, &e), TF_EREFUSED);
	err_clear(&e);
	assert_ok(harness_cancel(h.line, id, &e), &e);
	assert_int_equal(make(c, "make", true, true, NULL), TF_EREFUSED);
	assert_non_null(strstr(e.text, "vae 'look' belongs to"));
	assert_int_equal(remove_artefact(c, TF__ARTEFACT_KIND__VAE_MODEL, "look"), TF_EREFUSED);
	assert_int_equal(remove_artefact(c, TF__ARTEFACT_KIND__DATASET, "pictures"), TF_EREFUSED);
	own = submit(c, NULL);
	assert_ok(harness_cancel(h.line, own, &e), &e); /* an administrator may */
	assert_ok(make(h.line, "make", true, true, &id), &e);
	connection_close(c);
}

/* They could never come in: the daemon does not start, and says who, what and where. */
static void wrong_users_of_the_configuration_are_refused(void **state)
{
	static const struct {
		const char *line, *says;
	} wrong[] = {
		{ "ann reader " KEY_A "x", "user 'ann': key 'rq:rM>}U...' of 41 characters" },
		{ "ann reader rq:rM>}U?@Lns47E1~kR.o@n%FcmmsL/@{H8]yf7",
		  "user 'ann': key 'rq:rM>}U...' of 40 characters is no public key" },
		{ "a/b reader " KEY_A, "user: 'a/b' is no name of a user" },
		{ "ann owner " KEY_A, "role 'owner': expected reader, member or admin" },
		{ "ann reader", "two words, expected NAME ROLE KEY" },
		{ KEY_A " ann reader", "user 'rq:rM>}U...': a key comes first" },
		{ "ann reader " KEY_A " " KEY_A, "user 'ann': more than three words" },
	};
	char *path = xasprintf("%s/users.yaml", h.folder), option[300], text[2000], where[200];

	(void)state;
	snprintf(option, sizeof option, "--config=%s", path);
	h.extra[0] = option;
	h.extra[1] = NULL;
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		char *yaml = xasprintf("user:\n  - '%s'\n", wrong[i].line);

		assert_ok(file_write(path, yaml, strlen(yaml), 0600, &e), &e);
		assert_int_equal(harness_start_fails(&h, text, sizeof text), 2);
		snprintf(where, sizeof where, "%s:2: user", path);
		if (!strstr(text, where) || !strstr(text, wrong[i].says))
			fail_msg("'%s' is told as: %s", wrong[i].line, text);
		assert_null(strstr(text, KEY_A)); /* it may be the secret one */
		xfree(yaml);
	}
	xfree(path);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		WITH_HARNESS(an_enrolled_user_stays, start),
		WITH_HARNESS(what_is_wrong_is_said, start),
		WITH_HARNESS(a_configured_user_stays_configured, start),
		WITH_HARNESS(a_revoked_key_is_out_at_once, start),
		WITH_HARNESS(a_rotated_key_takes_the_place_of_the_old, start),
		WITH_HARNESS(an_administrator_is_always_left, start),
		WITH_HARNESS(an_administrator_asks_as_somebody, start),
		WITH_HARNESS(a_members_hands_stay_off_the_others, start),
		WITH_HARNESS(wrong_users_of_the_configuration_are_refused, harness_prepared),
	};

	return cmocka_run_group_tests_name("users", tests, NULL, NULL);
}
