/* SPDX-License-Identifier: Apache-2.0
 * The jobs that a command line names: by their ids, or by tags. */
#include "config.h"
#include "client/client.h"
#include "lib/mem.h"

#include <string.h>

static void add(struct selection *s, uint64_t id)
{
	s->id = xrealloc(s->id, s->count + 1, sizeof *s->id);
	s->id[s->count++] = id;
}

void selection_release(struct selection *s)
{
	xfree(s->id);
	*s = (struct selection){ 0 };
}

static int add_job(void *arg, const Tf__Job *job)
{
	add(arg, job->id);
	return 0;
}

static int by_tags(struct client *c, const Tf__JobState *state, size_t states,
		   struct selection *out, struct err *e)
{
	Tf__JobList m = TF__JOB_LIST__INIT;

	m.tag = c->args.given[OPTION_TAG].word;
	m.n_tag = (size_t)c->args.given[OPTION_TAG].count;
	m.state = (Tf__JobState *)state;
	m.n_state = states;
	m.has_all = m.all = states == 0;
	TRY(client_list_jobs(c, &m, UINT64_MAX, add_job, out, e));
	/* the oldest first, as they were submitted */
	for (size_t i = 0; i < out->count / 2; i++) {
		uint64_t id = out->id[i];

		out->id[i] = out->id[out->count - 1 - i];
		out->id[out->count - 1 - i] = id;
	}
	return 0;
}

int selection_read(struct client *c, const Tf__JobState *state, size_t states,
		   struct selection *out, struct err *e)
{
	bool tags = args_has(&c->args, OPTION_TAG);
	uint64_t id;

	*out = (struct selection){ 0 };
	FAIL_IF(tags == (c->args.operand.count > 0), e, TF_EUSAGE,
		"%s expects ids of jobs, or --tag WORD", c->verb->word);
	if (tags)
		TRY(by_tags(c, state, states, out, e));
	for (int i = 0; i < c->args.operand.count; i++) {
		TRY(operand_job(c, i, &id, e));
		add(out, id);
	}
	c->refused = out->count == 0;
	FAIL_IF(out->count == 0, e, TF_ENOTFOUND, "no such job has the tag");
	FAIL_IF(out->count > LIMIT_JOB_REFS, e, TF_EUSAGE,
		"%zu jobs are named, at most %u are allowed", out->count, LIMIT_JOB_REFS);
	return 0;
}

int states_read(const struct args *a, Tf__JobState state[LIMIT_FILTERS], size_t *n, struct err *e)
{
	const struct words *given = &a->given[OPTION_STATE];

	*n = 0;
	FAIL_IF(given->count > (int)LIMIT_FILTERS, e, TF_EUSAGE,
		"--state is given %d times, at most %u are allowed", given->count, LIMIT_FILTERS);
	for (int i = 0; i < given->count; i++) {
		Tf__JobState s = TF__JOB_STATE__QUEUED;

		while (s <= TF__JOB_STATE__CANCELLED &&
		       strcmp(given->word[i], job_state_name(s)) != 0)
			s++;
		FAIL_IF(s > TF__JOB_STATE__CANCELLED, e, TF_EUSAGE,
			"--state '%s' is none of queued, waiting, held, starting, running, "
			"stopping, done, failed, cancelled",
			given->word[i]);
		state[(*n)++] = s;
	}
	return 0;
}
