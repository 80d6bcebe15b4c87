/* SPDX-License-Identifier: Apache-2.0
 * submit_batch: many jobs that come into being together, or not at all. They are made in a part of
 * the turn's transaction, which is taken back when one of them is refused; the memory follows. A
 * batch may take many times as long as a submit: after a few jobs of it others' submits have their
 * turn (server_between). Its jobs' numbers are taken together before. */
#include "config.h"
#include "daemon/daemon.h"
#include "daemon/reply.h"
#include "daemon/submit.h"
#include "lib/mem.h"
#include "proto/wire.h"

#include <string.h>

#define PIECE 8 /* jobs, then it is others' turn */

struct batch {
	uint64_t *job; /* of the members so far */
	size_t count;
	uint64_t *made; /* those of them that were not submitted before */
	size_t new;
	struct job_numbers numbers;
};

static void append(uint64_t **list, size_t *count, uint64_t id)
{
	*list = xrealloc(*list, *count + 1, sizeof **list);
	(*list)[(*count)++] = id;
}

/* Names members as jobs, now that their numbers are known. */
static int settle_members(const struct batch *b, Tf__Submit *m, struct err *e)
{
	Tf__JobSpec *s = m->spec;

	FAIL_IF(m->n_after_member > LIMIT_AFTER, e, TF_ELIMIT,
		"after_member has %zu entries, at most %u are allowed", m->n_after_member,
		LIMIT_AFTER);
	for (size_t i = 0; i < m->n_after_member; i++) {
		uint32_t member = m->after_member[i]->member;

		FAIL_IF(b->count == 0, e, TF_EINVALID,
			"after_member is %u, but no job comes before this one", member);
		FAIL_IF(member >= b->count, e, TF_EINVALID,
			"after_member is %u, expected a job before this one, 0 to %zu", member,
			b->count - 1);
		switch (m->after_member[i]->when) {
		case TF__AFTER_WHEN__AFTER_ANY:
			append(&s->after_any, &s->n_after_any, b->job[member]);
			break;
		case TF__AFTER_WHEN__AFTER_FAILED:
			append(&s->after_failed, &s->n_after_failed, b->job[member]);
			break;
		default:
			append(&s->after, &s->n_after, b->job[member]);
		}
	}
	return 0;
}

static int add_member(struct daemon *d, const struct request *r, const ProtobufCBinaryData *packed,
		      struct batch *b, struct err *e)
{
	ProtobufCMessage *unpacked = NULL;
	struct submitted s = { 0 };
	Tf__Submit *m;
	int rc;

	TRY(wire_unpack(&tf__submit__descriptor, packed->data, packed->len, &unpacked, e));
	m = (Tf__Submit *)unpacked;
	rc = m->dry_run ? err_set(e, TF_EINVALID, "dry_run is for the batch, not for one of it")
			: settle_members(b, m, e);
	if (rc == 0)
		rc = submit_one(d, r, m, &b->numbers, &s, e);
	if (rc == 0) {
		b->job[b->count++] = s.job;
		if (!s.already)
			b->made[b->new ++] = s.job;
		resolved_release(&s.resolved);
	}
	tf__submit__free_unpacked(m, NULL);
	return rc;
}

static int add_members(struct daemon *d, const struct request *r, const Tf__SubmitBatch *m,
		       struct batch *b, struct err *e)
{
	for (size_t i = 0; i < m->n_submit; i++) {
		int rc = add_member(d, r, &m->submit[i], b, e);

		if (rc < 0) {
			err_prefix(e, "job %zu of %zu", i + 1, m->n_submit);
			return rc;
		}
		FAIL_IF((i + 1) % PIECE == 0 && !server_between(d, &b->numbers), e, TF_EUNKNOWN,
			"the state could not be written: nothing of the batch is in it, see the "
			"daemon's log");
	}
	FAIL_IF(b->new != 0 && b->new != b->count, e, TF_EINVALID,
		"%zu of the %zu tokens are known: expected all or none", b->count - b->new,
		b->count);
	return 0;
}

/* The jobs will not be. */
static int undo(struct daemon *d, const struct batch *b, struct err *e)
{
	for (size_t i = 0; i < b->new; i++)
		live_remove(&d->live, b->made[i]);
	if (d->read_only)
		return 0; /* the part is gone with the store that was open */
	TRY(state_part_end(d->state, false, e));
	return b->numbers.first ? jobs_return_ids(d->state, b->numbers.count, b->numbers.first, e)
				: 0;
}

static void reply_batch(struct daemon *d, struct request *r, const struct batch *b, bool dry_run)
{
	Tf__Reply reply = TF__REPLY__INIT;
	Tf__SubmittedBatch s = TF__SUBMITTED_BATCH__INIT;

	s.n_job = dry_run ? 0 : b->count;
	s.job = b->job;
	s.has_already = s.already = b->new == 0;
	r->made = s.n_job ? b->job[0] : 0;
	r->made_more = s.n_job ? s.n_job - 1 : 0;
	reply.body_case = TF__REPLY__BODY_SUBMITTED_BATCH;
	reply.submitted_batch = &s;
	reply_put(d, r, &reply);
}

int handle_submit_batch(struct daemon *d, struct request *r)
{
	const Tf__SubmitBatch *m = r->message->submit_batch;
	struct batch b = { .numbers = { .count = m->n_submit } };
	int rc, end;

	FAIL_IF(m->n_submit == 0 || m->n_submit > LIMIT_BATCH_JOBS, &r->err, TF_ELIMIT,
		"%zu jobs in a batch: expected 1 to %u", m->n_submit, LIMIT_BATCH_JOBS);
	TRY(state_part_begin(d->state, &r->err));
	b.job = xcalloc(m->n_submit, sizeof *b.job);
	b.made = xcalloc(m->n_submit, sizeof *b.made);
	rc = add_members(d, r, m, &b, &r->err);
	if (rc == 0 && !m->dry_run)
		end = state_part_end(d->state, true, &r->err);
	else
		end = undo(d, &b, rc == 0 ? &r->err : NULL);
	if (end < 0 && rc == 0)
		rc = TF_EUNKNOWN; /* the turn's commit fails too */
	if (rc == 0)
		reply_batch(d, r, &b, m->dry_run);
	xfree(b.job);
	xfree(b.made);
	return rc;
}
