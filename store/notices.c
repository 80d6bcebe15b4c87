/* SPDX-License-Identifier: Apache-2.0
 * Notices in the store; see notices.h. */
#include "config.h"
#include "store/notices.h"

int notice_put(struct state *s, uint64_t number, Tf__NoticeRecord *record, struct err *e)
{
	uint8_t key[8];

	state_key(number, key);
	return record_put(s, STATE_NOTICES, key, sizeof key, &record->base, e);
}

int notice_delete(struct state *s, uint64_t number, struct err *e)
{
	uint8_t key[8];

	state_key(number, key);
	return state_delete(s, STATE_NOTICES, key, sizeof key, e);
}

struct walk {
	notice_fn fn;
	void *arg;
	struct err *e;
};

static int walk_notice(void *arg, struct state_value key, struct state_value value)
{
	struct walk *w = arg;
	Tf__NoticeRecord *r = NULL;
	int rc;

	FAIL_IF(key.len != 8, w->e, TF_ECORRUPT, "store: a notice's number of %zu bytes", key.len);
	TRY(record_unpack(value, &tf__notice_record__descriptor, &r, w->e));
	rc = w->fn(w->arg, state_key_number(key.data), r);
	record_free(r);
	return rc;
}

int notices_each(struct state *s, notice_fn fn, void *arg, struct err *e)
{
	struct walk w = { fn, arg, e };

	return state_each(s, STATE_NOTICES, NULL, 0, false, walk_notice, &w, e);
}

static int first_number(void *arg, struct state_value key, struct state_value value)
{
	(void)value;
	*(uint64_t *)arg = key.len == 8 ? state_key_number(key.data) : 0;
	return 1;
}

int notices_forget(struct state *s, struct err *e)
{
	uint64_t number = 0;

	while (state_count(s, STATE_NOTICES) > 0) {
		TRY(state_each(s, STATE_NOTICES, NULL, 0, false, first_number, &number, e));
		TRY(notice_delete(s, number, e));
	}
	return 0;
}
