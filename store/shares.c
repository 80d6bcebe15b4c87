/* SPDX-License-Identifier: Apache-2.0
 * Users' shares in the store; see shares.h. */
#include "config.h"
#include "store/shares.h"
#include "proto/limits.h"

#include <math.h>
#include <string.h>

static bool record_is_whole(const Tf__ShareRecord *r)
{
	return isfinite(r->used) && r->used >= 0 && isfinite(r->month_gpu_s) &&
	       r->month_gpu_s >= 0;
}

int share_put(struct state *s, const char *user, Tf__ShareRecord *record, struct err *e)
{
	FAIL_IF(!record_is_whole(record), e, TF_EINTERNAL, "the share of %s is no number", user);
	return record_put(s, STATE_SHARES, user, strlen(user), &record->base, e);
}

int share_delete(struct state *s, const char *user, struct err *e)
{
	return state_delete(s, STATE_SHARES, user, strlen(user), e);
}

struct walk {
	share_fn fn;
	void *arg;
	struct err *e;
};

static int one(void *arg, struct state_value key, struct state_value value)
{
	struct walk *w = arg;
	Tf__ShareRecord *r = NULL;
	char name[LIMIT_NAME_BYTES + 1] = "";
	int rc;

	FAIL_IF(key.len > LIMIT_NAME_BYTES, w->e, TF_ECORRUPT,
		"store: a share has a name of %zu bytes", key.len);
	memcpy(name, key.data, key.len);
	TRY(record_unpack(value, &tf__share_record__descriptor, &r, w->e));
	rc = record_is_whole(r) ? w->fn(w->arg, name, r)
				: err_set(w->e, TF_ECORRUPT,
					  "store: the share of %s contradicts itself", name);
	record_free(r);
	return rc;
}

int shares_each(struct state *s, share_fn fn, void *arg, struct err *e)
{
	struct walk w = { fn, arg, e };

	return state_each(s, STATE_SHARES, NULL, 0, false, one, &w, e);
}
