/* SPDX-License-Identifier: Apache-2.0
 * Lines of waiting requests: pure functions, driven by a made-up clock. */
#include "tests/test.h"
#include "daemon/inbox.h"

#include <stdio.h>
#include <string.h>

static const struct inbox_bounds wide = { 100000, UINT64_MAX / 2, 0 };

/* A request of one byte that names its sender's connection. */
static int put(struct inbox *b, const char *user, const struct inbox_bounds *bounds, char from,
	       int64_t now, struct err *e)
{
	struct wire_message m = { .route_len = 1 };
	int rc;

	m.route[0] = (uint8_t)from;
	zmq_msg_init_size(&m.body, 100);
	rc = inbox_put(b, user, bounds, &m, now, e);
	if (rc < 0)
		wire_message_close(&m);
	return rc;
}

static char take(struct inbox *b, const struct inbox_bounds *bounds, int64_t now)
{
	struct wire_message m;

	if (!inbox_take(b, bounds, &m, now))
		return 0;
	wire_message_close(&m);
	return (char)m.route[0];
}

/* Eight connections of one user count as much as one of another. */
static void users_are_served_in_turn(void **state)
{
	struct inbox *b = inbox_new();
	char order[100] = "";
	struct err e = ERR_INIT;

	(void)state;
	for (int i = 0; i < 24; i++)
		assert_ok(put(b, "flo", &wide, "abcdefgh"[i % 8], 0, &e), &e);
	for (int i = 0; i < 4; i++)
		assert_ok(put(b, "pat", &wide, 'P', 0, &e), &e);
	assert_ok(put(b, "rob", &wide, 'R', 0, &e), &e);
	for (size_t i = 0; (order[i] = take(b, &wide, 0)) != 0; i++)
		;
	assert_string_equal(order, "aPRbPcPdPefghabcdefghabcdefgh");
	inbox_free(b);
}

/* One request a third of a millisecond, in a flood of another user's that take 30 microseconds
 * each: what it waits for, and what the flood gets. A turn's commit takes 150 microseconds. */
static void a_flood_leaves_most_of_the_time(void **state)
{
	struct inbox *b = inbox_new();
	int64_t now = 0, next = 5000000, waited = 0, most = 0, flood_ns = 0, asked = 0;
	struct err e = ERR_INIT;
	int polite = 0;

	(void)state;
	for (int i = 0; i < 90000; i++)
		assert_ok(put(b, "flo", &wide, 'f', 0, &e), &e);
	inbox_expect(b, "pat", 0);
	while (now < 1000000000) {
		int64_t rest;
		char who;
		bool handled = false;

		if (next && now >= next) {
			asked = next;
			next = 0;
			assert_ok(put(b, "pat", &wide, 'P', now, &e), &e);
		}
		while ((who = take(b, &wide, now)) != 0) {
			now += 30000;
			inbox_charge(b, 30000, now);
			handled = true;
			if (who == 'P') {
				int64_t took = now + 150000 - asked;

				polite++;
				waited += took;
				most = took > most ? took : most;
				next = now + 150000 + 333000;
			} else {
				flood_ns += 30000;
			}
		}
		if (handled)
			now += 150000;
		rest = inbox_wait_ns(b, now);
		if (next && next - now < rest)
			rest = next - now;
		now += rest > 0 ? rest : 0;
	}
	print_message("# %d polite requests: %.0f us in the mean, %.0f at most; "
		      "the flood had %.1f %% of the time\n",
		      polite, (double)waited / polite / 1e3, (double)most / 1e3,
		      (double)flood_ns / 1e7);
	assert_true(polite > 1000);
	assert_true(flood_ns > 50000000 && flood_ns < 100000000);
	assert_true(2 * waited / polite < 3 * 180000); /* alone: handled and committed */
	assert_true(most < 180000 + 150000 + 2 * INBOX_QUANTUM_NS);
	inbox_free(b);
}

static bool is_capital(void *arg, const struct wire_message *m)
{
	(void)arg;
	return m->route[0] < 'a';
}

static char beside(struct inbox *b, size_t *at, int64_t now)
{
	struct wire_message m;

	if (!inbox_take_beside(b, &wide, is_capital, NULL, at, &m, 1000, now))
		return 0;
	wire_message_close(&m);
	return (char)m.route[0];
}

/* While a long request of one is handled: what fits of the others, one each a round, in the order
 * in which they sent it, and within their share; the long one is charged to whose it is. */
static void others_come_beside(void **state)
{
	struct inbox *b = inbox_new();
	struct err e = ERR_INIT;
	size_t at = 0;

	(void)state;
	for (int i = 0; i < 3; i++)
		assert_ok(put(b, "flo", &wide, 'F', 0, &e), &e);
	assert_int_equal(take(b, &wide, 0), 'F');
	assert_ok(put(b, "pat", &wide, 'P', 0, &e), &e);
	assert_ok(put(b, "pat", &wide, 'p', 0, &e), &e);
	assert_ok(put(b, "pat", &wide, 'P', 0, &e), &e);
	assert_ok(put(b, "rob", &wide, 'R', 0, &e), &e);
	assert_int_equal(beside(b, &at, 0), 'P');
	assert_int_equal(beside(b, &at, 0), 'R');
	assert_int_equal(beside(b, &at, 0), 0);
	at = 0;
	assert_int_equal(beside(b, &at, 0), 0); /* what does not fit is before it */
	for (int i = 0; i < 100; i++)
		assert_ok(put(b, "sam", &wide, 'S', 0, &e), &e);
	for (int i = 0; i < 100; i++) {
		at = 0;
		if (!beside(b, &at, 0))
			break;
		assert_true(i < 50); /* 61 us each, of 0.5 ms */
	}
	inbox_charge(b, 5000000, 0);
	assert_int_equal(take(b, &wide, 0), 'p');
	assert_int_equal(take(b, &wide, 0), 'P');
	assert_int_equal(take(b, &wide, 0), 0);
	inbox_free(b);
}

/* Nobody else is about: nothing is held back; after it, the other waits no longer than usual. */
static void alone_there_is_no_share(void **state)
{
	struct inbox *b = inbox_new();
	struct err e = ERR_INIT;
	int64_t now = 0;

	(void)state;
	for (int i = 0; i < 1000; i++) {
		assert_ok(put(b, "flo", &wide, 'f', now, &e), &e);
		assert_int_equal(take(b, &wide, now), 'f');
		now += 1000000;
		inbox_charge(b, 1000000, now);
	}
	assert_false(inbox_is_shared(b, now));
	assert_ok(put(b, "flo", &wide, 'f', now, &e), &e);
	inbox_expect(b, "pat", now);
	assert_true(inbox_is_shared(b, now));
	assert_int_equal(take(b, &wide, now), 0);
	assert_int_equal(inbox_ready(b, now), 0);
	assert_ok(put(b, "pat", &wide, 'P', now, &e), &e);
	assert_int_equal(inbox_ready(b, now), 1);
	assert_int_equal(take(b, &wide, now), 'P');
	now += inbox_wait_ns(b, now);
	assert_true(now <= 1000000000 + INBOX_SHARE * (1000000 + INBOX_QUANTUM_NS));
	assert_int_equal(take(b, &wide, now), 'f');
	inbox_tick(b, now + INBOX_FORGET_NS);
	assert_int_equal(inbox_wait_ns(b, now), INT64_MAX);
	inbox_free(b);
}

static void rate_count_and_bytes_are_bounded(void **state)
{
	struct inbox_bounds bounds = { 8, 600, 10 };
	struct inbox *b = inbox_new();
	struct err e = ERR_INIT;
	int64_t now = 5;

	(void)state;
	for (int i = 0; i < 6; i++)
		assert_ok(put(b, "flo", &bounds, 'f', now, &e), &e);
	assert_int_equal(put(b, "flo", &bounds, 'f', now, &e), TF_ELIMIT);
	assert_non_null(strstr(e.text, "requests of flo with 600 bytes wait already"));
	err_clear(&e);
	bounds.requests = 6;
	assert_int_equal(put(b, "flo", &bounds, 'f', now, &e), TF_ELIMIT);
	assert_non_null(strstr(e.text, "6 requests of flo wait already"));
	err_clear(&e);
	assert_ok(put(b, "pat", &bounds, 'P', now, &e), &e); /* another's line is their own */
	assert_int_equal(take(b, &bounds, now), 'f');
	assert_int_equal(take(b, &bounds, now), 'P');
	/* a tenth of a second's requests may come at once: one more */
	assert_int_equal(take(b, &bounds, now), 'f');
	assert_int_equal(take(b, &bounds, now), 0);
	assert_int_equal(inbox_wait_ns(b, now), 100000000);
	assert_int_equal(take(b, &bounds, now + 99999999), 0);
	assert_int_equal(take(b, &bounds, now + 100000000), 'f');
	inbox_free(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(users_are_served_in_turn),
		cmocka_unit_test(a_flood_leaves_most_of_the_time),
		cmocka_unit_test(others_come_beside),
		cmocka_unit_test(alone_there_is_no_share),
		cmocka_unit_test(rate_count_and_bytes_are_bounded),
	};

	return cmocka_run_group_tests_name("inbox", tests, NULL, NULL);
}
